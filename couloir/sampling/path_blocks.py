"""Steps of path sampling: one by one, or in blocks where workers take whole chains some steps ahead.

A trial follows from its chain's path and its seed alone, so the same steps come out either way.  Waiting for all chains after
every step, and handing each piece of dynamics over, would take longer than the dynamics of a small molecule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.sampling.engine import Engine
from couloir.sampling.path_chains import Chains
from couloir.sampling.path_ensembles import PathSet
from couloir.sampling.path_moves import ShootingMove, Trial
from couloir.sampling.path_store import bare
from couloir.trajectory import Trajectory

if TYPE_CHECKING:
    import mdtraj

BLOCK_SECONDS = 1.0
"""Time that a block is to take: what is lost when a run is interrupted."""
_GROUPS_PER_WORKER = 2


@dataclass(frozen=True)
class _Part:
    """What a worker needs to take some chains some steps ahead: ``seeds`` has a row per step and a column per chain."""

    move: ShootingMove
    ensemble: PathSet
    paths: list[Trajectory]
    anchors: list[int | None]
    seeds: list[list[int]]
    max_frames: int


def trials_of_steps(
    move: ShootingMove,
    engine: Engine,
    ensemble: PathSet,
    chains: Chains,
    *,
    seeds: Callable[[int], list[int]],
    max_frames: int,
    left: Callable[[], int],
) -> Iterator[list[Trial]]:
    """Yield one trial per chain, step after step; each step is applied to ``chains`` before the next is asked for.

    Parameters
    ----------
    seeds : of all chains, by the number of the step.
    left : how many more steps are surely wanted, at least 1.
    """
    side_by_side: Any = getattr(engine, "side_by_side", None)
    n_groups = min(len(chains.paths), _GROUPS_PER_WORKER * getattr(engine, "workers", 1))
    if side_by_side is None or getattr(engine, "workers", 1) == 1 or n_groups == 1:
        while True:
            yield chains.propose(move, engine, ensemble, seeds=seeds(chains.steps + 1), max_frames=max_frames)
    groups, size = np.array_split(np.arange(len(chains.paths)), n_groups), 1
    while True:
        size = min(size, left())
        begin, first = time.perf_counter(), chains.steps + 1
        rows = [seeds(k) for k in range(first, first + size)]
        parts = [
            _Part(
                move, ensemble, [_with_topology(chains.paths[c], None) for c in group], [chains.anchors[c] for c in group],
                [[row[c] for c in group] for row in rows], max_frames,
            )
            for group in groups
        ]  # fmt: skip
        ahead = side_by_side(_advanced, parts)
        for k in range(size):
            trials = [trial for part in ahead for trial in part[k]]
            yield [_returned(trial, path.topology) for trial, path in zip(trials, chains.paths, strict=True)]
        size = max(1, min(2 * size, round(size * BLOCK_SECONDS / (time.perf_counter() - begin))))


def _advanced(engine: Engine, part: _Part) -> list[list[Trial]]:
    """Return the trials of every step of some chains."""
    paths, anchors, out = list(part.paths), list(part.anchors), []
    for seeds in part.seeds:
        trials = part.move.propose(engine, paths, part.ensemble, seeds=seeds, max_frames=part.max_frames, anchors=anchors)
        out.append([_returned(trial, None) for trial in trials])
        anchors = [trial.anchor for trial in trials]
        paths = [path if trial.path is None else bare(trial.path) for trial, path in zip(trials, paths, strict=True)]
    return out


def _returned(trial: Trial, topology: mdtraj.Topology | None) -> Trial:
    return trial if trial.path is None else replace(trial, path=_with_topology(trial.path, topology))


def _with_topology(path: Trajectory, topology: mdtraj.Topology | None) -> Trajectory:
    """Return a path with another topology; without one it travels fast."""
    return Trajectory.owning(path.positions, path.stride, path.velocities, path.boxes, topology)
