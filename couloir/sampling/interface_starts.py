"""First paths for interface sampling: from given trajectories, or from a state in A alone.

The latter by dynamics that leaves A, then shots that come farther and farther.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.errors import DataError, SimulationError, StoreError
from couloir.sampling.dragging import propagated
from couloir.sampling.engine import Engine, steps
from couloir.sampling.interface_ensembles import CrossingEnsemble, departures, excursions, require_boundary
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_store import First, bare, holds_first, kept_first
from couloir.sampling.velocities import fresh, has_velocities, require_velocities, turned_paths
from couloir.store import Store
from couloir.streams import integer_seed
from couloir.trajectory import State, Trajectory
from couloir.units import convert

if TYPE_CHECKING:
    from couloir.analysis.path_ensemble import PathEnsemble
    from couloir.sampling.interface_sampling import TransitionInterfaceSampling

PATIENCE = 200
"""Rounds of shots without a path that crosses the next interface, after which the climb gives up."""
TIMES_OUT = 8
"""Times that each walker leaves A and comes back."""
TIMES_KEPT = 4
"""Of these times, how many of the last give paths: those before may still remember where the walker came from."""
LEAST_ROUNDS = 8
"""Rounds of shots from each interface, so that the first paths to cross the next one do not all descend from one."""


class FirstPaths(list[Trajectory]):
    """Trajectories to start from.

    Attributes
    ----------
    force_evaluations : steps of dynamics that it took to find them.
    """

    force_evaluations: int = 0


def initial_paths(
    sampling: TransitionInterfaceSampling, start: State, *, stride: Any, seed: int, n_shots: int = 16, patience: int = PATIENCE
) -> FirstPaths:
    """Return trajectories in which every ensemble of ``sampling`` finds a first path.

    Runs of dynamics from ``start`` leave A; what comes out is shot from, always in the ensemble of the highest interface
    that was crossed, until the next one is.  The paths are seeds: they carry no weight.

    Parameters
    ----------
    start : a state in A.
    stride : time between frames.
    n_shots : paths that are moved side by side.
    patience : rounds without progress after which to give up, out of A and from each interface to the next.

    Raises
    ------
    SimulationError : nothing left A, or nothing crossed an interface, within ``patience`` rounds.
    """
    every = convert(stride, "ps", "stride")
    chains = leave(sampling, [start] * -(-n_shots // TIMES_KEPT), every, seed, patience)
    climbed = FirstPaths(chains)
    climbed.force_evaluations = chains.force_evaluations
    for level, value in enumerate(sampling.interfaces[1:], start=1):
        found: dict[int, Trajectory] = {}
        for k in range(patience):
            tops = _tops(sampling, chains)
            found |= {id(path): path for path, top in zip(chains, tops, strict=True) if top >= value}
            if found and k + 1 >= LEAST_ROUNDS:
                break
            chains = _shot(sampling, chains, level, n_shots, integer_seed(seed, "climb", level, k))
            climbed.force_evaluations += chains.force_evaluations
        if not found:
            raise SimulationError(
                f"no path crossed the interface at {sampling.along.name} = {value:g} in {patience} rounds of {n_shots} shots",
                "put another interface before it, or give more shots",
            )
        chains = FirstPaths(evenly(list(found.values()), n_shots))
        climbed += chains
    return climbed


def evenly(paths: Sequence[Trajectory], n: int) -> list[Trajectory]:
    """Return at most ``n`` different ones, picked evenly: the farthest would all be of the channel that is easiest at first."""
    distinct = list({id(path): path for path in paths}.values())
    return [distinct[i] for i in np.unique(np.linspace(0, len(distinct) - 1, n).round().astype(int))]


def free_of_first(paths: PathEnsemble) -> list[Trajectory]:
    """Return the paths that hold no frame of a first path, or all where every one does."""
    return [path for path, free in zip(paths.paths, paths.decorrelated, strict=True) if free] or list(paths.paths)


def leave(sampling: TransitionInterfaceSampling, starts: Sequence[State], stride: float, seed: int, patience: int = PATIENCE) -> FirstPaths:
    """Return paths of [0+]: of every walker that dynamics from ``starts`` in A leads out of A and back, the last :data:`TIMES_KEPT`.

    What leaves A right after it came in may still have the energy to go on to B, or know by which channel it came; so each walker
    is out :data:`TIMES_OUT` times, and only the last ones count.

    Parameters
    ----------
    starts : states in A; each is one walker, and where it starts again after it came to B.
    stride : time between frames, ps.
    patience : rounds of leaving A, or of ``max_duration`` in A, after which walkers that were out fewer times count, too.

    Raises
    ------
    SimulationError : nothing left A and came to A or B again.
    """
    spent = 0
    states, out, times = list(starts), [list[Trajectory]() for _ in starts], [0] * len(starts)
    for k in range(patience):
        going = [w for w, n in enumerate(times) if n < TIMES_OUT]
        if not going:
            break
        runs = _out_and_back(sampling, [states[w] for w in going], stride, integer_seed(seed, k))
        spent += steps(stride, sampling.engine.time_step, "stride") * sum(len(run) for run in runs)
        for w, run in zip(going, runs, strict=True):
            left = departures([run], sampling.region_a, sampling.region_b) if run.ended == "stopped" else []
            stays = run.last is not None and bool(sampling.region_a.contains(run.last.positions[None])[0])
            states[w] = run.last if stays and run.last is not None else starts[w]
            times[w] = times[w] + len(left[-1:]) if stays else 0
            out[w] += left[-1:] if stays else []
    if any(out):
        found = FirstPaths(path for paths in out for path in paths[-TIMES_KEPT:])
        found.force_evaluations = spent
        return found
    raise SimulationError(
        f"dynamics from the start did not leave A ({sampling.region_a}) and come to A or B again in {patience} rounds",
        "start in A, move the first interface towards A, or raise max_duration",
    )


def _out_and_back(sampling: TransitionInterfaceSampling, states: Sequence[State], stride: float, seed: int) -> list[Trajectory]:
    """Return dynamics from states in A until outside and on to A or B (``ended`` is "stopped"), or as far as it came."""
    minus, plus = sampling.ensembles[:2]
    settings: dict[str, Any] = {"duration": (sampling.max_frames(stride) - 2) * stride, "stride": stride, "velocities": True}
    runs = propagated(sampling.engine, states, stop=minus.stop, seed=integer_seed(seed, "in A"), **settings)
    gone = [w for w, run in enumerate(runs) if run.ended == "stopped"]
    if gone:
        outside = [runs[w].state(len(runs[w]) - 1) for w in gone]
        on = propagated(sampling.engine, outside, stop=plus.stop, seed=integer_seed(seed, "out of A"), **settings)
        for w, after in zip(gone, on, strict=True):
            runs[w] = replace(Trajectory.join([runs[w], after]), ended=after.ended, last=after.last)
    return runs


def _shot(sampling: TransitionInterfaceSampling, chains: list[Trajectory], level: int, n_shots: int, seed: int) -> FirstPaths:
    """Return ``n_shots`` paths one shot on, in the ensemble of the interface below ``level``."""
    below = sampling.ensembles[level]
    assert isinstance(below, CrossingEnsemble)
    parents = [chains[i % len(chains)] for i in range(n_shots)]
    seeds = [integer_seed(seed, i) for i in range(n_shots)]
    longest = sampling.max_frames(parents[0].stride)
    move = ShootingMove.two_way() if sampling.move.ways == 2 else ShootingMove.one_way()
    trials = move.propose(sampling.engine, parents, below, seeds=seeds, max_frames=longest)
    found = FirstPaths(old if trial.path is None else trial.path for trial, old in zip(trials, parents, strict=True))
    found.force_evaluations = sum(trial.force_evaluations for trial in trials)
    return found


def _tops(sampling: TransitionInterfaceSampling, paths: list[Trajectory]) -> np.ndarray:
    return np.array([sampling.along.evaluate(path.positions).max() for path in paths])


def begun(
    sampling: TransitionInterfaceSampling, first: Trajectory | Iterable[Trajectory] | None, n_sets: int, seed: int, store: Store | None
) -> First:
    """Return what :func:`dealt` makes of given paths; where none are given, what the store holds of it, or of those of the sampling.

    Raises
    ------
    DataError : there are no first paths, or some ensemble has none.
    SimulationError : forces or constraints fail at a frame of a given path.
    StoreError : the store's run has other sets or ensembles, or was written before first paths were kept and ``sampling`` has none.
    """
    if first is not None or (sampling.first and not holds_first(store, sampling.name)):
        given = list(sampling.first) if first is None else [first] if isinstance(first, Trajectory) else list(first)
        return dealt(sampling, given, n_sets, seed)
    starts, spent = kept_first(store, sampling.name, sampling.engine.topology)
    if len(starts) != n_sets * len(sampling.ensembles):
        raise StoreError(
            f"the store holds {len(starts)} first paths of {sampling.name!r}, not one for each of {n_sets} sets of "
            f"{len(sampling.ensembles)} ensembles",
            "use the same n_sets and interfaces, or a new store",
        )
    return starts, spent


def dealt(sampling: TransitionInterfaceSampling, given: Sequence[Trajectory], n_sets: int, seed: int) -> tuple[list[Trajectory], int]:
    """Return a path for every set and ensemble, set after set, and the steps of dynamics it took to make those of [0-].

    Candidates are dealt to the sets in turn.

    Raises
    ------
    DataError : ``given`` has no path for some ensemble.
    SimulationError : forces or constraints fail at a frame of a path.
    """
    engine, region_a, along = sampling.engine, sampling.region_a, sampling.along
    if not given:
        raise DataError("there are no first paths", "find some by initial_paths(sampling, state, ...) or reactive_seeds")
    require_boundary(given, region_a, along, sampling.interfaces[0])
    moving = both_ways(engine, given, seed, "first")  # equilibrium dynamics runs them as often backward
    longest = sampling.max_frames(moving[0].stride)
    out = [path for path in departures(moving, region_a, sampling.region_b) if len(path) <= longest]
    if not out:
        raise DataError(
            f"no first path of at most {sampling.max_duration} leaves A ({region_a}) and comes to A or B again",
            "give paths that do, or raise max_duration",
        )
    maxima = [float(along.evaluate(path.positions).max()) for path in out]
    inside, spent = [path for path in excursions(moving, region_a) if len(path) <= longest], 0
    if not inside:
        inside, spent, _ = sampling.into(out[:1], seed)
        require_stays(sampling, inside)
    starts = []
    for s in range(n_sets):
        starts.append(inside[s % len(inside)])
        for value in sampling.interfaces:
            crossing = [path for path, top in zip(out, maxima, strict=True) if top >= value]
            if not crossing:
                raise DataError(
                    f"no first path crosses the interface at {along.name} = {value:g}; the farthest comes to {max(maxima):.4g}",
                    "give a path from A to B, or find paths by initial_paths(sampling, state, ...)",
                )
            starts.append(crossing[s % len(crossing)])
    return starts, spent


def require_stays(sampling: TransitionInterfaceSampling, inside: Sequence[Trajectory]) -> None:
    """Raise a DataError where there is no path of [0-]."""
    if not inside:
        raise DataError(
            f"dynamics into A ({sampling.region_a}) did not leave it again within max_duration = {sampling.max_duration}",
            "raise max_duration, or move the first interface towards A",
        )


def both_ways(engine: Engine, given: Sequence[Trajectory], seed: int, key: str) -> list[Trajectory]:
    """Return paths with velocities where the engine has them, then the same turned round.

    Raises
    ------
    SimulationError : forces or constraints fail at a frame of a path.
    """
    ahead = [with_velocities(engine, path, integer_seed(seed, key, i)) for i, path in enumerate(given)]
    back = turned_paths(engine, ahead)
    for i, velocities in enumerate(path.velocities for path in back):
        if velocities is not None:
            require_velocities(i, velocities[::-1])
    return ahead + back


def with_velocities(engine: Engine, path: Trajectory, seed: int) -> Trajectory:
    """Return a path with velocities where the engine has them and without where it has none."""
    if not has_velocities(engine):
        return replace(bare(path), velocities=None)
    if path.velocities is not None:
        return bare(path)
    drawn = fresh(engine, [path.state(i) for i in range(len(path))], seed)
    return replace(bare(path), velocities=np.array([state.velocities for state in drawn]))
