"""The hunt for reactive paths: two-way shots from frames of generated paths, round after round, until enough connect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.cv.region import Region
from couloir.errors import ConfigError, SimulationError
from couloir.sampling.engine import Engine
from couloir.sampling.path_ends import PathEnds
from couloir.sampling.shots import OUTCOMES, ShotResults, two_way_shots
from couloir.streams import integer_seed
from couloir.trajectory import Array, State, Trajectory

if TYPE_CHECKING:
    import pandas as pd

    from couloir.sampling.rebuild import Rebuilt

IntArray = npt.NDArray[np.int64]
Rebuild = Callable[[Array], "Rebuilt | Sequence[State | None]"]

_UNBUILT = "unbuilt"
_UNNAMED = "unnamed"  # the gate of a frame that a rebuild refused without saying why


@dataclass(frozen=True, eq=False)
class RebuiltFrames:
    """Every generated frame that was rebuilt to be shot from, or was refused, in the order of the shots.

    Attributes
    ----------
    paths, frames : (n,) the generated path, and the frame of it.
    failed : the first gate that each frame failed, ``""`` for none, ``"unnamed"`` where the rebuild gave no state and no reason.
    displacement : (n,) root-mean-square distance from the generated atoms, nm; NaN where the rebuild does not say.
    energies : (n,) potential energy, kJ/mol; NaN where the rebuild does not say.
    """

    paths: IntArray
    frames: IntArray
    failed: tuple[str, ...]
    displacement: Array
    energies: Array

    def __len__(self) -> int:
        return len(self.failed)

    @property
    def failures(self) -> dict[str, int]:
        """Frames that failed each gate, for gates that any failed."""
        return dict(Counter(gate for gate in self.failed if gate))

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per frame: path, frame, the gate it failed (empty if none), displacement in nm, energy in kJ/mol."""
        import pandas as pd

        return pd.DataFrame({
            "generated_path": self.paths, "generated_frame": self.frames, "failed": list(self.failed),
            "displacement_nm": self.displacement, "energy_kJ_mol": self.energies,
        })  # fmt: skip


class Hunt:
    """Shots from generated frames.

    Attributes
    ----------
    found : per reactive path: from A to B, frame of its shooting point, generated path, frame of that.
    tally : what became of frames and shots, and what they cost.
    """

    def __init__(
        self, engine: Engine, region_a: Region, region_b: Region, generated: Array, stretches: list[IntArray], rebuild: Rebuild
    ) -> None:
        self.engine, self.region_a, self.region_b = engine, region_a, region_b
        self.generated, self.stretches, self.rebuild = generated, stretches, rebuild
        self.found: list[tuple[Trajectory, int, int, int]] = []
        names = ("not rebuilt", "rebuilt into A or B", "shots", *OUTCOMES, "force evaluations", "force evaluations of rebuilding")
        self.tally = dict.fromkeys(names, 0)
        self._rebuilt: list[tuple[int, int, str, float, float]] = []

    @property
    def rebuilt(self) -> RebuiltFrames:
        """Frames that were rebuilt so far, and what became of them."""
        paths, frames, failed, displacement, energies = zip(*self._rebuilt, strict=True) if self._rebuilt else ((),) * 5
        return RebuiltFrames(
            np.array(paths, dtype=np.int64), np.array(frames, dtype=np.int64), tuple(failed),
            np.array(displacement, dtype=np.float64), np.array(energies, dtype=np.float64),
        )  # fmt: skip

    def shoot(self, n: int, selection: str, n_shots: int, seed: int, **settings: Any) -> None:
        """Shoot in rounds from one frame per path (``"top"``), or from all chosen frames at once (``"spread"``)."""
        if selection == "spread":
            jobs = [(p, int(f)) for p, stretch in enumerate(self.stretches) for f in _spread(stretch, n_shots)]
            self._round(jobs, seed, **settings)
            return
        ranges = {p: (int(stretch[0]), int(stretch[-1])) for p, stretch in enumerate(self.stretches) if len(stretch)}
        for number in range(n_shots):
            jobs = [(p, (low + high) // 2) for p, (low, high) in ranges.items()]
            for (p, frame), fell in zip(jobs, self._round(jobs, integer_seed(seed, number), **settings), strict=True):
                low, high = ranges[p]
                # a frame that cannot be rebuilt is passed over, like one that falls to A
                ranges[p] = (frame + 1, high) if fell in ("A", _UNBUILT) else (low, frame - 1) if fell == "B" else (low, high)
                if fell == "connected" or ranges[p][0] > ranges[p][1]:
                    del ranges[p]
            if len(self.found) >= n or not ranges:
                return

    def _round(self, jobs: list[tuple[int, int]], seed: int, **settings: Any) -> list[str]:
        """Shoot once from each (path, frame); return for each ``"connected"``, the state both ends fell to, ``"unbuilt"`` or ``""``."""
        fate = [""] * len(jobs)
        states: dict[int, State] = {}
        built = self.rebuild(np.array([self.generated[p, f] for p, f in jobs]))
        self.tally["force evaluations of rebuilding"] += int(getattr(built, "force_evaluations", 0))
        self._rebuilt += [(*job, *told) for job, told in zip(jobs, _said(built), strict=True)]
        for i, state in enumerate(built):
            if state is None:
                self.tally["not rebuilt"] += 1
                fate[i] = _UNBUILT
                continue
            fate[i] = next((name for name, region in self._regions() if region.contains(state.positions[None])[0]), "")
            self.tally["rebuilt into A or B"] += bool(fate[i])
            if not fate[i]:
                states[i] = state
        if not states:
            return fate
        shots = two_way_shots(self.engine, list(states.values()), self.region_a, self.region_b, seed=seed, **settings)
        for k, i in enumerate(states):
            fate[i] = "connected" if shots.connecting[k] else _fell(shots, k)
            if shots.connecting[k]:
                self.found.append((*shots.reactive_path(k), *jobs[i]))
        self.tally["shots"] += len(shots)
        self.tally["force evaluations"] += shots.force_evaluations
        for name, number in shots.counts().items():
            self.tally[name] += number
        return fate

    def _regions(self) -> tuple[tuple[str, Region], tuple[str, Region]]:
        return ("A", self.region_a), ("B", self.region_b)


def _said(built: Rebuilt | Sequence[State | None]) -> list[tuple[str, float, float]]:
    """Return, per frame, the gate it failed, its displacement and its energy, as far as the rebuild says."""
    unknown = np.full(len(built), np.nan)
    gates = getattr(built, "failed", (None,) * len(built))
    failed = ["" if state is not None else gate or _UNNAMED for state, gate in zip(built, gates, strict=True)]
    moved, energies = (getattr(built, name, unknown) for name in ("displacement", "energies"))
    return list(zip(failed, map(float, moved), map(float, energies), strict=True))


def _fell(shots: ShotResults, shot: int) -> str:
    """Return the state that both halves ended in, or ``""``."""
    ends = shots.backward_ends[shot], shots.forward_ends[shot]
    return ends[0] if ends[0] == ends[1] else ""


def _spread(stretch: IntArray, n: int) -> IntArray:
    """Return up to n frames, evenly spaced inside the stretch."""
    if len(stretch) <= n:
        return stretch
    return np.asarray(stretch[((np.arange(n) + 0.5) / n * len(stretch)).astype(int)])


def rebuilder(engine: Engine, ends: PathEnds) -> Rebuild:
    """Return how frames become states when the user does not say.

    Raises
    ------
    ConfigError : the model generates some atoms only, and no structure shows where the others go.
    """
    if engine.topology is None:
        return lambda frames: [State(frame) for frame in frames]
    if ends.atoms is None:
        # not minimized: that would let the torsions slide down from the barrier
        return lambda frames: [constrained(engine, State(frame)) for frame in frames]
    if ends.reference is None:
        fix = "give data, starts_a or starts_b with all atoms, or rebuild="
        raise ConfigError(f"the model generates {len(ends.atoms)} of {ends.n_atoms} atoms, and no structure shows where the others go", fix)
    from couloir.sampling.rebuild import rebuild

    atoms, reference, seed = ends.atoms, ends.reference, integer_seed(ends.seed, "rebuild")
    return lambda frames: rebuild(engine, frames, atoms, reference=reference, seed=seed)  # type: ignore[arg-type]


def constrained(engine: Engine, state: State) -> State | None:
    """Return the state with its rigid bonds as long as they should be, or None where they cannot be."""
    constrain = getattr(engine, "apply_constraints", None)
    try:
        return state if constrain is None else constrain(state)
    except SimulationError:
        return None
