"""Between which configurations paths are generated, and the regions on the atoms that a model generates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from couloir.cv.region import Region
from couloir.errors import DataError
from couloir.sampling.engine import Engine
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array, State, Trajectory

IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Starts = State | Trajectory | Array | Sequence[State] | Sequence[Trajectory]

_SAMPLED = 256  # snippets in which a model that is given no configurations looks for some


class PathEnds:
    """The ends of generated paths.  Frames may hold every atom of the system or those that the model generates.

    Attributes
    ----------
    given : what the model is given to sample: a temperature, or nothing.
    atoms : (n_kept,) the atoms that the model generates, or None for all.
    reference : a structure of the whole system, from which the other atoms can be placed; None when there is none.
    """

    def __init__(self, model: Any, engine: Engine, region_a: Region, region_b: Region, seed: int, kT: Any = None) -> None:
        self.given = {} if kT is None else {"kT": kT}
        self.model, self.seed, self.regions = model, seed, {"A": region_a, "B": region_b}
        kept = getattr(getattr(model, "representation", None), "atoms", None)
        self.n_atoms = len(engine.masses)
        self.atoms: IntArray | None = None if kept is None or len(kept) == self.n_atoms else np.asarray(kept, dtype=np.int64)
        self.reference: State | None = getattr(getattr(engine, "molecule", None), "state", None)

    def refer(self, *starts: Starts | None) -> None:
        """Take the first configuration that has all its atoms as the reference, if there is one."""
        box = None if self.reference is None else self.reference.box
        for part in (part for given in starts if given is not None for part in _parts(given)):
            complete = part[np.isfinite(part).all(axis=(1, 2))] if part.shape[1] == self.n_atoms else part[:0]
            if len(complete):
                self.reference = State(complete[0], None, box)
                return

    def whole(self, frames: Array) -> Array:
        """Return frames (n, n_atoms, 3) with every atom of the system, NaN where none is given.

        Raises
        ------
        DataError : the frames hold neither all atoms nor those of the model.
        """
        if frames.shape[1] == self.n_atoms:
            return frames
        if self.atoms is None or frames.shape[1] != len(self.atoms):
            others = "" if self.atoms is None else f" or the {len(self.atoms)} that the model generates"
            raise DataError(f"configurations hold {frames.shape[1]} atoms, expected all {self.n_atoms}{others}")
        out = np.full((len(frames), self.n_atoms, frames.shape[2]), np.nan)
        out[:, self.atoms] = frames
        return out

    def inside(self, name: str, frames: Array) -> Mask:
        """Return which frames are in region ``"A"`` or ``"B"``, (n,)."""
        region, full = self.regions[name], self.whole(frames)
        values = {cv.name: cv.evaluate(full) for cv in region.cvs}
        blind = [cv_name for cv_name, v in values.items() if len(v) and np.isnan(v).all()]
        if blind:
            raise DataError(f"{blind[0]} cannot be evaluated on the atoms that the model generates", "define A and B on heavy atoms")
        return region.contains_values(values)

    def between(self, path: Array) -> IntArray:
        """Return the frames of a path after it last leaves A and before it first reaches B; none when it does not."""
        in_a, in_b = np.flatnonzero(self.inside("A", path)), np.flatnonzero(self.inside("B", path))
        for arrival in in_b:
            before = in_a[in_a < arrival]
            if len(before):
                return np.arange(before[-1] + 1, arrival, dtype=np.int64)
        return np.zeros(0, dtype=np.int64)

    def imposed(self, starts_a: Starts | None, starts_b: Starts | None, n: int, n_frames: int) -> Array:
        """Return paths (n, n_frames, n_atoms, 3) whose first frame is a configuration of A and whose last is one of B.

        Only these two are to be imposed; the straight line between them merely fills the array.
        """
        if starts_a is None or starts_b is None:
            sampled = self._sampled()
            starts_a, starts_b = (sampled if s is None else s for s in (starts_a, starts_b))
        pools = {name: self.pool(name, starts) for name, starts in (("A", starts_a), ("B", starts_b))}
        picks = {name: stream(self.seed, "ends", name).integers(len(pool), size=n) for name, pool in pools.items()}
        first, last = pools["A"][picks["A"]], pools["B"][picks["B"]]
        weight = np.linspace(0.0, 1.0, n_frames)[None, :, None, None]
        return np.asarray(np.nan_to_num((1 - weight) * first[:, None] + weight * last[:, None]))

    def pool(self, name: str, starts: Starts) -> Array:
        """Return the configurations (n, n_atoms, 3) that are in ``"A"`` or ``"B"``, all atoms, NaN where none is given.

        Raises
        ------
        DataError : there is none.
        """
        frames = np.concatenate([self.whole(part) for part in _parts(starts)])
        found = frames[self.inside(name, frames)]
        if not len(found):
            raise DataError(
                f"none of {len(frames)} configurations is in {name} ({self.regions[name]})",
                f"give one as starts_{name.lower()} (a structure from experiment, or from a restrained run), or widen the region",
            )
        return found

    def _sampled(self) -> Array:
        sample = getattr(self.model, "sample", None)
        if sample is None:
            raise DataError("there are no configurations of A and B", "give starts_a and starts_b, or data")
        drawn = np.asarray(sample(_SAMPLED, seed=integer_seed(self.seed, "ends"), **self.given), dtype=np.float64)
        return drawn.reshape(-1, *drawn.shape[2:])


def _parts(starts: Starts) -> list[Array]:
    """Return configurations (n, n_atoms, 3) of states, trajectories or an array, in parts that need not hold the same atoms."""
    if isinstance(starts, np.ndarray):
        return [starts if starts.ndim == 3 else starts[None]]
    parts: list[State | Trajectory] = [starts] if isinstance(starts, (State, Trajectory)) else list(starts)
    if not parts:
        raise DataError("the list of configurations is empty")
    return [p.positions[None] if isinstance(p, State) else p.positions for p in parts]
