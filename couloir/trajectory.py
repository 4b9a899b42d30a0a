"""What a simulation is in (:class:`State`) and what it leaves behind (:class:`Trajectory`, :class:`Series`).

Molecules have positions ``(n_atoms, 3)`` in nm.  A toy system with ``d`` coordinates is one particle in ``d``
dimensions: positions ``(1, d)``; so arrays over frames are always three-dimensional and everything above the engine
works on both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError

if TYPE_CHECKING:
    import mdtraj

Array = npt.NDArray[np.float64]
Owner = TypeVar("Owner")


def _frozen(value: Any) -> Array:
    array = np.array(value, dtype=np.float64)
    array.setflags(write=False)
    return array


def _owner(cls: type[Owner], arrays: dict[str, Array | None], **others: Any) -> Owner:
    """Return an instance of a frozen dataclass without going through its constructor, which copies and checks."""
    for array in arrays.values():
        if array is not None:
            array.setflags(write=False)
    out = object.__new__(cls)
    out.__dict__.update(arrays, **others)
    return out


@dataclass(frozen=True, eq=False)
class State:
    """Where a system is.

    Attributes
    ----------
    positions : (n_atoms, 3) nm; toy systems (1, n_dim).
    velocities : like positions, nm/ps, or None (drawn from the Maxwell-Boltzmann distribution when needed).
    box : (3, 3) nm box vectors as rows, or None.

    Raises
    ------
    DataError : positions are not two-dimensional or not finite, or the shapes disagree.
    """

    positions: Array
    velocities: Array | None = None
    box: Array | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", _frozen(self.positions))
        if self.positions.ndim != 2:
            raise DataError(f"positions have shape {self.positions.shape}, expected (n_atoms, 3) or (1, n_dim)")
        if not np.isfinite(self.positions).all():
            bad = int(np.flatnonzero(~np.isfinite(self.positions).all(axis=1))[0])
            raise DataError(f"positions of atom {bad} are not finite", "check the structure the state was made from")
        for name in ("velocities", "box"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _frozen(getattr(self, name)))
        if self.velocities is not None and self.velocities.shape != self.positions.shape:
            raise DataError(f"velocities {self.velocities.shape} and positions {self.positions.shape} differ in shape")
        if self.box is not None and self.box.shape != (3, 3):
            raise DataError(f"box has shape {self.box.shape}, expected (3, 3): one box vector per row")

    @classmethod
    def owning(cls, positions: Array, velocities: Array | None = None, box: Array | None = None) -> State:
        """Return a state that takes over sound arrays which nobody else will change: neither copied nor checked."""
        return _owner(cls, {"positions": positions, "velocities": velocities, "box": box})


@dataclass(frozen=True, eq=False)
class Series:
    """CV values and potential energy recorded along a simulation at their own stride.

    Attributes
    ----------
    names : CV names, in column order.
    values : (n_records, n_cvs) in each CV's unit.
    potential : (n_records,) unbiased potential energy, kJ/mol.
    stride : ps between records; the first record is one stride after the start.
    """

    names: tuple[str, ...]
    values: Array
    potential: Array
    stride: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _frozen(self.values))
        object.__setattr__(self, "potential", _frozen(self.potential))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> Array:
        if name not in self.names:
            raise DataError(f"{name!r} was not recorded", f"recorded were {', '.join(self.names) or 'no CVs'}")
        return np.asarray(self.values[:, self.names.index(name)])


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Frames at a fixed stride, with what was recorded between them and where the simulation stands at its end.

    Attributes
    ----------
    positions : (n_frames, n_atoms, 3) nm; the first frame is one stride after the start.
    stride : ps between frames.
    velocities : like positions, or None when they were not kept.
    boxes : (n_frames, 3, 3) nm, or None.
    topology : mdtraj topology, or None for toy systems.
    series : CVs recorded at their own stride, or None.
    last : full-precision state (with velocities) at the end, to continue from.
    ended : ``"complete"``, ``"stopped"`` (a stop region was hit at the last record) or ``"failed"`` (the dynamics broke down).
    """

    positions: Array
    stride: float
    velocities: Array | None = None
    boxes: Array | None = None
    topology: mdtraj.Topology | None = field(default=None, repr=False)
    series: Series | None = None
    last: State | None = None
    ended: Literal["complete", "stopped", "failed"] = "complete"

    def __post_init__(self) -> None:
        for name in ("positions", "velocities", "boxes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _frozen(getattr(self, name)))
        if self.positions.ndim != 3:
            raise DataError(f"trajectory positions have shape {self.positions.shape}, expected (n_frames, n_atoms, 3)")

    @classmethod
    def owning(
        cls,
        positions: Array,
        stride: float,
        velocities: Array | None = None,
        boxes: Array | None = None,
        topology: mdtraj.Topology | None = None,
        series: Series | None = None,
        last: State | None = None,
        ended: Literal["complete", "stopped", "failed"] = "complete",
    ) -> Trajectory:
        """Return a trajectory that takes over sound arrays which nobody else will change: neither copied nor checked."""
        arrays = {"positions": positions, "velocities": velocities, "boxes": boxes}
        return _owner(cls, arrays, stride=stride, topology=topology, series=series, last=last, ended=ended)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def times(self) -> Array:
        """Time of each frame since the start, ps."""
        return self.stride * np.arange(1, len(self) + 1, dtype=np.float64)

    def __str__(self) -> str:
        n_frames, n_atoms, n_dim = self.positions.shape
        what = f"{n_atoms} atoms" if self.topology is not None else f"{n_dim} coordinates"
        text = f"Trajectory: {n_frames} frames x {what}, one every {self.stride:g} ps ({n_frames * self.stride:g} ps), {self.ended}"
        if self.series is not None:
            text += f"; recorded {', '.join(self.series.names) or 'energy'} every {self.series.stride:g} ps"
        return text

    def state(self, frame: int) -> State:
        """Return frame number ``frame`` as a :class:`State`."""
        velocities = None if self.velocities is None else self.velocities[frame]
        return State(self.positions[frame], velocities, None if self.boxes is None else self.boxes[frame])

    def to_mdtraj(self) -> mdtraj.Trajectory:
        """Return the frames as an ``mdtraj.Trajectory`` (positions become float32).

        Raises
        ------
        DataError : there is no topology.
        """
        import mdtraj

        if self.topology is None:
            raise DataError("this trajectory has no topology, so it cannot become an mdtraj trajectory")
        out = mdtraj.Trajectory(self.positions, self.topology, time=self.times)
        if self.boxes is not None:
            out.unitcell_vectors = np.asarray(self.boxes)
        return out

    @classmethod
    def from_mdtraj(cls, trajectory: mdtraj.Trajectory) -> Trajectory:
        """Take over an ``mdtraj.Trajectory``; its time step becomes the stride."""
        if trajectory.n_frames == 0:
            raise DataError("the trajectory has no frames")
        stride = float(trajectory.timestep) if trajectory.n_frames > 1 else 1.0
        return cls(trajectory.xyz, stride, boxes=trajectory.unitcell_vectors, topology=trajectory.topology)

    @classmethod
    def load(cls, file: str | Path, topology: str | Path | None = None) -> Trajectory:
        """Read a trajectory file of any format that mdtraj knows.

        Raises
        ------
        DataError : a file is missing or unreadable, or the atoms of the two files do not match.
        """
        import mdtraj

        for path in (file, topology):
            if path is not None and not Path(path).exists():
                raise DataError(f"no such file: {path}")
        try:
            return cls.from_mdtraj(mdtraj.load(str(file), **({} if topology is None else {"top": str(topology)})))
        except (ValueError, OSError, RuntimeError, IndexError) as error:
            raise DataError(f"cannot read {file}: {error}", "does the topology belong to this trajectory?") from error

    @classmethod
    def join(cls, parts: list[Trajectory]) -> Trajectory:
        """Join trajectories frame after frame (same stride and atoms); series are joined, the last state is kept."""
        if not parts:
            raise DataError("nothing to join: the list of trajectories is empty")
        first = parts[0]
        for part in parts:
            if part.positions.shape[1:] != first.positions.shape[1:] or not math.isclose(part.stride, first.stride, rel_tol=1e-5):
                raise DataError("trajectories to join differ in atoms or stride")

        def together(name: str) -> Array | None:
            arrays = [getattr(p, name) for p in parts]
            return None if any(a is None for a in arrays) else np.concatenate(arrays)

        series = None
        if all(p.series is not None for p in parts) and first.series is not None:
            every = [p.series for p in parts if p.series is not None]
            series = Series(
                first.series.names, np.concatenate([s.values for s in every]),
                np.concatenate([s.potential for s in every]), first.series.stride,
            )  # fmt: skip
        return cls(
            np.concatenate([p.positions for p in parts]), first.stride, together("velocities"), together("boxes"),
            first.topology, series, parts[-1].last, parts[-1].ended,
        )  # fmt: skip
