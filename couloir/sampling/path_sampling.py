"""Transition path sampling: Markov chains of reactive paths, all moved together, from first paths that carry no weight.

Step k of a chain is a pure function of its path after step k-1 and a seed derived from (seed, name, chain, k), so a run
that was interrupted continues exactly where an uninterrupted one would have gone (Dellago, Bolhuis, Geissler, Adv. Chem.
Phys. 123, 1 (2002); Bolhuis, Dellago, Rev. Comput. Chem. 27, 111 (2010)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from couloir.analysis.path_ensemble import PathEnsemble
from couloir.cv.region import Region
from couloir.errors import DataError
from couloir.progress import progress_bar
from couloir.sampling.engine import Engine
from couloir.sampling.path_blocks import trials_of_steps
from couloir.sampling.path_chains import Chains
from couloir.sampling.path_ensembles import FixedLengthEnsemble, PathSet, TransitionEnsemble
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_store import PathLog, described_states, kept_first, paths_digest
from couloir.sampling.velocities import fresh, require_velocities, turned
from couloir.store import Store
from couloir.streams import integer_seed
from couloir.trajectory import State, Trajectory
from couloir.units import convert

OnProgress = Callable[[int, int], None]

PATIENCE = 10
"""Times the steps asked for, after which a run until decorrelation gives up."""
_TIMES = 10
"""Times the longest first path, that paths may take by default."""


@dataclass(frozen=True, eq=False)
class TransitionPathSampling:
    """Sampling of the paths that lead from A to B, by moves that leave their distribution unchanged.

    Attributes
    ----------
    region_a, region_b : the two states; decided at frames only.
    move : proposes and accepts paths.
    max_duration : ps; longer paths are not part of the ensemble; default ten times the longest path that a chain begins with.
        The finding ``paths-cut`` says when that matters.
    n_frames : paths of exactly so many frames, that may be in A and B between their ends (:class:`FixedLengthEnsemble`), instead
        of those that end when they reach A or B; then there is no ``max_duration``.
    name : prefix of what is stored, and part of every random stream.
    """

    engine: Engine
    region_a: Region
    region_b: Region
    move: ShootingMove = field(default_factory=ShootingMove.one_way)
    max_duration: Any = field(default=None, kw_only=True)
    n_frames: int | None = field(default=None, kw_only=True)
    name: str = field(default="paths", kw_only=True)

    def run(
        self,
        first: Trajectory | Iterable[Trajectory] | None,
        n_paths: int,
        n_chains: int = 4,
        *,
        seed: int,
        store: Store | None = None,
        run_until_decorrelated: bool = False,
        on_progress: OnProgress | None = None,
    ) -> PathEnsemble:
        """Move chains of paths and return every path they visited.

        Parameters
        ----------
        first : paths that lead from A to B or back (trajectories, or what :func:`reactive_seeds` returns), dealt to the
            chains in turn; what is before the last frame in A and after the first frame in B is cut off.  With ``n_frames``, the
            first piece of that length from A to B is taken, or else a shorter one whose ends are repeated.  None: those that the
            store holds of a run that was begun before, frame by frame.
        n_paths : paths to sample over all chains, rejected moves counting the old path again; rounded up to whole steps.
        store : where first paths and every step are kept; a store that holds some of this run already is continued.
        run_until_decorrelated : count only paths that hold no frame of the first ones, and go on until every chain has
            left its first path; a finding says so when that fails after ten times as many steps.
        on_progress : called with the paths sampled and asked for, after every step.

        Raises
        ------
        DataError : a first path does not connect A and B, or is longer than ``max_duration`` or ``n_frames``; strides or atoms
            differ; there are no paths or chains to sample, or no first paths; boxes are missing in a periodic system; or
            ``n_frames`` is below 3 or is given together with ``max_duration``.
        SimulationError : forces or constraints fail at a frame of a first path.
        StoreError : the store holds another run of this name, or one without the first paths that are to be taken from it.
        """
        if n_paths < 1 or n_chains < 1:
            raise DataError(f"n_paths = {n_paths}, n_chains = {n_chains}, expected at least 1 of each")
        ensemble = self._ensemble()
        given = first if first is not None else kept_first(store, self.name, self.engine.topology)[0]
        starts, max_frames = self._first_paths(given, n_chains, seed)
        log = PathLog(store, self.name, self._plan(starts, max_frames, seed), (starts, 0))
        chains = Chains(starts)
        goal = _Goal(n_paths, math.ceil(n_paths / n_chains), run_until_decorrelated)
        with progress_bar(self.name, n_paths, "paths") as bar:
            stored, shown = log.replay(chains.paths), 0
            fresh_ones = trials_of_steps(
                self.move, self.engine, ensemble, chains, max_frames=max_frames, left=lambda: goal.left(chains),
                seeds=lambda step: [integer_seed(seed, self.name, "chain", c, "step", step) for c in range(n_chains)],
            )  # fmt: skip
            try:
                while not goal.reached(chains):
                    trials = next(stored, None)
                    if trials is None:
                        trials = next(fresh_ones)
                        log.add(trials, chains.paths)
                    chains.apply(trials)
                    done = min(goal.done(chains), n_paths)
                    bar.advance(done - shown, f"acceptance {chains.acceptance:.2f}")
                    shown = done
                    if on_progress is not None:
                        on_progress(done, n_paths)
            finally:
                log.commit()
        return chains.ensemble()

    def _ensemble(self) -> PathSet:
        if self.n_frames is None:
            return TransitionEnsemble(self.region_a, self.region_b)
        if self.max_duration is not None:
            raise DataError("paths have either a fixed n_frames or a max_duration", "leave one of them out")
        return FixedLengthEnsemble(self.region_a, self.region_b, self.n_frames)

    def _first_paths(self, first: Trajectory | Iterable[Trajectory], n_chains: int, seed: int) -> tuple[list[Trajectory], int]:
        """Return the first path of each chain, from A to B, and the most frames a path may have."""
        given = [first] if isinstance(first, Trajectory) else list(first)
        if not given:
            raise DataError("there are no first paths", "find some by reactive_seeds, two_way_shots, or a run at higher temperature")
        if len({(path.positions.shape[1:], round(path.stride, 9)) for path in given}) > 1:
            raise DataError("first paths differ in atoms or stride", "give paths of one system at one stride")
        bare = [i for i, path in enumerate(given) if path.boxes is None]
        if getattr(self.engine, "periodic", False) and bare:
            raise DataError(
                f"first path {bare[0]} has no boxes, but the system is periodic: where its frames' images are is not known",
                "give paths with the box of every frame, as the engine makes them",
            )
        paths = [self._reactive(path, i, integer_seed(seed, "first", i)) for i, path in enumerate(given[:n_chains])]
        if self.n_frames is not None:
            return [paths[c % len(paths)] for c in range(n_chains)], self.n_frames
        max_frames = _TIMES * (max(map(len, paths)) - 1) + 1
        if self.max_duration is not None:
            max_frames = math.floor(round(convert(self.max_duration, "ps", "max_duration") / given[0].stride, 6)) + 1
        if max_frames < 3:
            raise DataError(f"max_duration = {self.max_duration} holds no path of frames every {given[0].stride:g} ps", "raise it")
        for i, path in enumerate(paths):
            if len(path) > max_frames:
                length = (len(path) - 1) * path.stride
                raise DataError(f"first path {i} takes {length:g} ps, longer than max_duration = {self.max_duration}", "raise max_duration")
        return [paths[c % len(paths)] for c in range(n_chains)], max_frames

    def _reactive(self, path: Trajectory, number: int, seed: int) -> Trajectory:
        """Return the part of a path from A to B, turned round when it runs from B to A; with velocities where the engine has them."""
        in_a, in_b = self.region_a.contains(path.positions), self.region_b.contains(path.positions)
        if (in_a & in_b).any():
            raise DataError(f"A ({self.region_a}) and B ({self.region_b}) overlap", "make the two states disjoint")
        ahead, behind = _longest_up_to(self.n_frames, in_a, in_b), _longest_up_to(self.n_frames, in_b, in_a)
        found = ahead if ahead is not None else behind
        if found is None:
            never = " and ".join(name for name, inside in (("A", in_a), ("B", in_b)) if not inside.any())
            raise DataError(
                f"first path {number} does not connect A ({self.region_a}) and B ({self.region_b})"
                + (f": it is never in {never}" if never else f" in {self.n_frames} frames" if self.n_frames is not None else ""),
                "give paths that visit both states, or find some by reactive_seeds",
            )
        if self.n_frames is None and found.stop - found.start < 3:
            raise DataError(f"first path {number} has no frame between A and B to shoot from", "keep frames more often, or shrink A and B")
        states = [path.state(i) for i in range(found.start, found.stop)]
        if not getattr(self.engine, "underdamped", True):
            states = [State(state.positions, None, state.box) for state in states]
        elif path.velocities is None:
            states = fresh(self.engine, states, seed)
        if ahead is None:
            states = turned(self.engine, states)
        require_velocities(number, [state.velocities for state in states], found.start)
        if ahead is None:
            states = states[::-1]
        if not getattr(self.engine, "periodic", True):  # new dynamics will not have any
            states = [State(state.positions, state.velocities) for state in states]
        if self.n_frames is not None:
            missing = self.n_frames - len(states)
            states = [states[0]] * (missing // 2) + states + [states[-1]] * (missing - missing // 2)
        return _from_states(states, path)

    def _plan(self, starts: Sequence[Trajectory], max_frames: int, seed: int) -> dict[str, Any]:
        fixed = {} if self.n_frames is None else {"n_frames": self.n_frames}
        return fixed | {
            "dynamics": self.engine.digest(), "A": str(self.region_a), "B": str(self.region_b), "move": described(self.move),
            "max_frames": max_frames, "n_chains": len(starts), "stride": starts[0].stride, "seed": seed, "first": paths_digest(starts),
            **described_states(self.region_a, self.region_b, self.move.selector),
        }  # fmt: skip


@dataclass(frozen=True)
class _Goal:
    """When enough has been sampled."""

    n_paths: int
    n_steps: int
    decorrelated: bool

    def done(self, chains: Chains) -> int:
        return chains.n_decorrelated if self.decorrelated else chains.steps * len(chains.paths)

    def left(self, chains: Chains) -> int:
        """Return how many more steps are surely wanted, at least 1."""
        wanted = self.n_paths - self.done(chains)
        return max(1, -(-wanted // len(chains.paths)))

    def reached(self, chains: Chains) -> bool:
        if not self.decorrelated:
            return chains.steps >= self.n_steps
        return chains.steps >= PATIENCE * self.n_steps or (self.done(chains) >= self.n_paths and all(chains.decorrelated))


def described(move: ShootingMove) -> str:
    """Return a move with the numbers of its selector; other settings by their kind, as their text may differ between processes."""
    settings = {
        key: value if isinstance(value, (int, float, str, tuple)) else getattr(value, "name", type(value).__name__)
        for key, value in sorted(vars(move.selector).items())
    }
    if move.offsets:
        settings |= {"offsets": list(move.offsets), "bias": move.bias}
    return f"{move} {settings}" if settings else str(move)


def connection(start: npt.NDArray[np.bool_], end: npt.NDArray[np.bool_]) -> slice | None:
    """Return the first stretch from a last frame in ``start`` to a first frame in ``end``, both included."""
    if not start.any() or not end[np.flatnonzero(start)[0] :].any():
        return None
    begin = int(np.flatnonzero(start)[0])
    arrival = begin + int(np.flatnonzero(end[begin:])[0])
    return slice(begin + int(np.flatnonzero(start[begin:arrival])[-1]), arrival + 1)


def _longest_up_to(n_frames: int | None, start: npt.NDArray[np.bool_], end: npt.NDArray[np.bool_]) -> slice | None:
    """Return the first ``n_frames`` frames from ``start`` to ``end``, or else the first connection that is not longer; None: any."""
    if n_frames is None:
        return connection(start, end)
    begins = np.flatnonzero(start[: max(0, len(start) - n_frames + 1)] & end[n_frames - 1 :])
    if len(begins):
        return slice(int(begins[0]), int(begins[0]) + n_frames)
    marked = pairwise(np.flatnonzero(start | end).tolist())
    return next((slice(i, j + 1) for i, j in marked if start[i] and end[j] and j - i < n_frames), None)


def _from_states(states: Sequence[State], like: Trajectory) -> Trajectory:
    velocities = [s.velocities for s in states if s.velocities is not None]
    boxes = [s.box for s in states if s.box is not None]
    return Trajectory(
        np.array([s.positions for s in states]),
        like.stride,
        np.array(velocities) if velocities else None,
        np.array(boxes) if boxes else None,
        like.topology,
    )
