"""Chains of paths as they are moved: what a runner of path sampling keeps from step to step, and what a store tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from couloir.analysis.path_ensemble import PathEnsemble
from couloir.errors import Finding, StoreError
from couloir.sampling.engine import Engine
from couloir.sampling.path_ensembles import PathSet
from couloir.sampling.path_moves import ShootingMove, Trial
from couloir.sampling.path_store import REASONS, PathLog, bare, kept_first
from couloir.store import Store
from couloir.trajectory import Trajectory

IntArray = npt.NDArray[np.int64]

CUT = 0.05
"""Share of trials beyond the maximum length, among those and the accepted ones, above which a finding says so."""


def stored_ensemble(store: Store, name: str = "paths", topology: Any = None) -> PathEnsemble:
    """Return every path that transition path sampling has visited so far, from the store that it writes to.

    This is what :meth:`couloir.sampling.TransitionPathSampling.run` would return after the steps that are stored.  Nothing is
    simulated and nothing is written, and the store may be that of a run which is still going on.

    Parameters
    ----------
    name : of the sampling.
    topology : mdtraj topology of the paths, which a store does not hold; such as ``engine.topology``.

    Raises
    ------
    DataError : there is no run of this name.
    StoreError : the run has no steps yet, is of another kind, or was stored before first paths were kept.
    """
    starts, _ = kept_first(store, name, topology)
    if "n_chains" not in store.get(f"{name}/plan"):
        raise StoreError(f"the run called {name!r} is not one of transition path sampling", "name one that is")
    if not store.count(f"{name}/steps"):
        raise StoreError(f"the run called {name!r} has no steps yet", "wait until it has taken some, or go on with it")
    return played_back(store, name, starts)


def played_back(store: Store, name: str, starts: Sequence[Trajectory]) -> PathEnsemble:
    """Return every path that chains from ``starts`` have visited according to a store."""
    chains = Chains(starts)
    for trials in PathLog(store, name, store.get(f"{name}/plan")).replay(chains.paths):
        chains.apply(trials)
    return chains.ensemble()


class Chains:
    """The paths of all chains so far, where each frame comes from, and what became of the trials.

    A step is ``apply(trials)``, with trials of :meth:`propose`, or those that a store gives back.

    Attributes
    ----------
    paths : where each chain stands.
    anchors : where each chain's anchor is in its path; None for moves without one, and before the first trial.
    steps : steps taken.
    force_evaluations : steps of dynamics spent.
    n_decorrelated : paths so far without a frame of the first ones, repeats counted.
    outcomes : per outcome of a trial, how often each chain met it.
    """

    def __init__(self, starts: Sequence[Trajectory]) -> None:
        self.paths = list(starts)
        self.anchors: list[int | None] = [None] * len(starts)
        self.steps = 0
        self.force_evaluations = 0
        self.n_decorrelated = 0
        self.visited = list(starts)
        self.rows: list[list[int]] = [[c, 0, 0, 0, -1] for c in range(len(starts))]  # chain, step, multiplicity, decorrelated, shooting
        self.made_by = [np.zeros(len(path), dtype=np.int64) for path in starts]  # the step that made each frame; 0: the first path
        self.outcomes: dict[str, IntArray] = {reason: np.zeros(len(starts), dtype=np.int64) for reason in REASONS}
        self._row = list(range(len(starts)))

    @property
    def acceptance(self) -> float:
        """Share of the trials that were accepted; 0 before the first."""
        return float(self.outcomes["accepted"].sum()) / max(1, self.steps * len(self.paths))

    @property
    def decorrelated(self) -> list[bool]:
        """Whether each chain's path is free of frames of its first one."""
        return [bool(self.rows[row][3]) for row in self._row]

    def propose(
        self, move: ShootingMove, engine: Engine, ensemble: PathSet | Sequence[PathSet], *, seeds: Sequence[int], max_frames: int
    ) -> list[Trial]:
        """Return one trial per chain, from where it stands; nothing changes before they are applied."""
        return move.propose(engine, self.paths, ensemble, seeds=seeds, max_frames=max_frames, anchors=self.anchors)

    def apply(self, trials: Sequence[Trial]) -> None:
        """Take one step: each chain moves to an accepted path, or stays where it is once more."""
        self.steps += 1
        for c, trial in enumerate(trials):
            self.outcomes[trial.reason][c] += 1
            self.force_evaluations += trial.force_evaluations
            self.anchors[c] = trial.anchor
            if trial.accepted and trial.path is not None:
                self.made_by[c] = made_by(trial, self.made_by[c], self.steps)
                self.paths[c] = bare(trial.path)
                self._row[c] = len(self.rows)
                self.visited.append(self.paths[c])
                self.rows.append([c, self.steps, 0, int((self.made_by[c] > 0).all()), trial.frame_new])
            row = self.rows[self._row[c]]
            row[2] += 1
            self.n_decorrelated += row[3]

    def ensemble(self) -> PathEnsemble:
        """Return every path visited so far."""
        table = np.array(self.rows, dtype=np.int64)
        order = np.lexsort((table[:, 1], table[:, 0]))
        chain, step, multiplicity, free, shooting = table[order].T
        paths = tuple(self.visited[i] for i in order)
        counts, found = {name: n.copy() for name, n in self.outcomes.items()}, self._findings()
        return PathEnsemble(paths, chain, step, multiplicity, free.astype(bool), counts, self.force_evaluations, found, shooting)

    def _findings(self) -> tuple[Finding, ...]:
        found = []
        stuck = [c for c, free in enumerate(self.decorrelated) if not free]
        if stuck:
            text = f"{len(stuck)} of {len(self.paths)} chains still hold frames of their first path after {self.steps} steps: no weight"
            found.append(Finding("first-path-remains", text, "sample more steps, or run until decorrelated"))
        # only trials that the acceptance would let grow that long are cut off, so the others say nothing about the limit
        cut = int(self.outcomes["max length"].sum())
        share = cut / max(1, cut + int(self.outcomes["accepted"].sum()))
        if share > CUT:
            text = f"{cut} trials were cut off at the maximum length: {share:.0%} of these and the accepted ones"
            found.append(Finding("paths-cut", text, "raise max_duration: long paths are missing from the ensemble"))
        return tuple(found)


def made_by(trial: Trial, old: IntArray, step: int) -> IntArray:
    """Return the step that made each frame of an accepted path, given those of the old path's frames.

    A shooting point keeps its positions, so it counts as a frame of the old path even where its velocities are new.
    """
    assert trial.path is not None
    out = np.full(len(trial.path), step, dtype=np.int64)
    shared = trial.shared if trial.shared is not None else (trial.frame_old, trial.frame_old) if trial.frame_old >= 0 else None
    if shared is not None:
        first, last = shared
        shift = trial.frame_new - trial.frame_old
        out[first + shift : last + shift + 1] = old[first : last + 1]
    return out
