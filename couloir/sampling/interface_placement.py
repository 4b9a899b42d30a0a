"""Where interfaces go: pilot runs climb from A to B, and each says how far the next interface may be.

The first paths of [0+] are dynamics out of A: given reactive paths are rare there, and would take long to relax.  Chains of paths
are moved in the ensemble [i+] of the highest interface so far.  The next one goes where their maxima say that a share of about
0.3 comes; near 0.2 a transition costs the fewest paths (van Erp, Adv. Chem. Phys. 151, 27 (2012)).  When as many come to B
itself, there is no next one.  All pilot runs together then tell the probability to reach any value, and interfaces are spread
evenly along its logarithm.  Pilot paths carry no weight; they are what all ensembles start from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from couloir.analysis.path_weights import product_limit
from couloir.cv.base import CollectiveVariable
from couloir.cv.region import Region
from couloir.errors import DataError, SimulationError
from couloir.sampling.interface_ensembles import departures, require_boundary
from couloir.sampling.interface_starts import TIMES_KEPT, evenly, leave, require_stays
from couloir.sampling.path_store import PathLog, bare, packed, unpacked
from couloir.sampling.velocities import turned_paths
from couloir.store import Store
from couloir.streams import integer_seed
from couloir.trajectory import Array, State, Trajectory
from couloir.units import convert

if TYPE_CHECKING:
    from couloir.sampling.interface_sampling import TransitionInterfaceSampling

Visited = tuple[Array, npt.NDArray[np.bool_]]
"""Maxima of paths, and whether each ended in B."""

SHARE = 0.3
"""Share of the paths of an ensemble that the next interface is placed to be reached by."""
NEAR_B = 0.2
"""Share of paths that come to B from which on there is no further interface."""
MOST_SHOTS = 8
"""Most moves of a path in a cycle."""
N_INSIDE = 16
"""Paths of [0-] that are made to start from, and to see how long they are."""
STAYS = 10
"""Times the longest stay in A that was seen, that paths may take where the default is too short for stays."""
MOST_STAY = 10_000.0
"""ps; the longest duration of paths is not doubled beyond, in search of how long stays in A are."""
MOST_INTERFACES = 60
"""Interfaces after which placement gives up."""


@dataclass(frozen=True)
class Pilot:
    """How long each ensemble is sampled to place the next interface.

    Attributes
    ----------
    n_chains : paths moved side by side.  They do not exchange with ensembles below, so that channels are weighed as those are that
        come up: few chains lose the one that matters at the barrier where another is easier at first.
    n_steps : moves of each that count; a third as many before do not.
    """

    n_chains: int = 96
    n_steps: int = 9


def boundary(region_a: Region, along: CollectiveVariable) -> float:
    """Return the value of ``along`` where A ends towards B: the highest limit that A has.

    Raises
    ------
    DataError : A has no limit along ``along``.
    """
    limits = region_a.limits.get(along.name, ())
    if not limits:
        raise DataError(
            f"A ({region_a}) has no limit along {along.name}, where the first interface would be", f"make A {along.name} <= ..."
        )
    return float(limits[-1])


def next_level(maxima: Array, ends_in_b: npt.NDArray[np.bool_], share: float = SHARE) -> float | None:
    """Return the value that a share of the paths nearest to ``share`` (in the logarithm) reaches; None where B is as near.

    Parameters
    ----------
    maxima : (n,) of the order parameter along paths.
    ends_in_b : (n,) whether a path ends in B; what only those reach may be inside B.
    """
    if ends_in_b.mean() >= NEAR_B:
        return None
    levels = np.unique(maxima[~ends_in_b])
    reached = 1.0 - np.searchsorted(np.sort(maxima), levels, side="left") / len(maxima)
    levels, reached = levels[reached < 1], reached[reached < 1]
    return float(levels[np.argmin(np.abs(np.log(reached / share)))]) if len(levels) else None


def even_levels(levels: Sequence[float], seen: Sequence[Visited], share: float = SHARE) -> tuple[float, ...]:
    """Return interfaces from the first of ``levels`` on, each reached by about the same share of the paths that reach the one before.

    Parameters
    ----------
    levels : (n,) interfaces of the pilot runs, ascending.
    seen : per pilot run, maxima of its paths and whether each ended in B; some of the last run's did.
    share : how many reach the next interface, or B from the last one, to within what a whole number of interfaces allows.
    """
    maxima, arrived = (np.concatenate(column) for column in zip(*seen, strict=True))
    ensemble = np.repeat(np.arange(len(seen)), [len(tops) for tops, _ in seen])
    passed = np.searchsorted(levels, maxima, side="right") - 1
    entered, ended = (np.bincount(column, minlength=len(levels)).astype(float) for column in (ensemble, passed))
    weights = product_limit(entered, ended)[1][passed]  # sums of them are probabilities in [0+]
    to_b = float(weights[arrived].sum())
    if not to_b:  # pilot runs too short to tell: what they climbed by has to do
        return tuple(levels)
    order = np.argsort(maxima[~arrived])
    tops = maxima[~arrived][order]
    reached = to_b + np.cumsum(weights[~arrived][order][::-1])[::-1]
    n = max(1, round(float(np.log(to_b) / np.log(share))))
    found = [levels[0]]
    for goal in to_b ** (np.arange(1, n) / n):
        beyond = tops[(reached <= goal) & (tops > found[-1])]
        found += beyond[:1].tolist()
    return tuple(float(x) for x in found)


def place(
    sampling: TransitionInterfaceSampling,
    given: Sequence[Trajectory],
    *,
    seed: int,
    pilot: Pilot,
    store: Store | None = None,
    longer: bool = False,
) -> TransitionInterfaceSampling:
    """Return the sampling with interfaces up to B, and with pilot paths to start from.

    Parameters
    ----------
    sampling : has the first interface.
    given : trajectories that leave A; dynamics into A starts from where they did.
    store : where the pilot's steps are kept; a store that holds some of them already is continued.
    longer : whether ``max_duration`` may be raised, as far as it takes to see how long the system stays in A.

    Raises
    ------
    DataError : nothing in ``given`` leaves A and comes to A or B again, or A does not end at the first interface.
    SimulationError : dynamics does not leave A, or B is still far after :data:`MOST_INTERFACES` interfaces.
    """
    require_boundary(given, sampling.region_a, sampling.along, float(sampling.interfaces[0]))
    out = departures(given, sampling.region_a, sampling.region_b)
    if not out:
        raise DataError(f"no path leaves A ({sampling.region_a}) and comes to A or B", "give paths from A to B")
    into = [path.state(len(path) - 1) for path in turned_paths(sampling.engine, out)]
    walkers = -(-pilot.n_chains // TIMES_KEPT)
    starts = [into[i] for i in (np.arange(walkers) * max(1, len(into) / walkers)).astype(int) % len(into)]  # of all paths that are given
    sampling, chains, inside = _around_a(sampling, starts, given[0], seed, store, longer=longer)
    levels, first, seen, lengths = [float(sampling.interfaces[0])], list(inside), list[Visited](), list[float]()
    while len(levels) <= MOST_INTERFACES:
        here = replace(sampling, interfaces=tuple(levels))
        chains = [chains[i % len(chains)] for i in range(pilot.n_chains)]
        visited, spent = _pilot_run(here, chains, seed, pilot, store)
        sampling = replace(sampling, placement_force_evaluations=sampling.placement_force_evaluations + spent)
        first += evenly(visited, pilot.n_chains)
        maxima = np.array([sampling.along.evaluate(path.positions).max() for path in visited])
        arrived = sampling.region_b.contains(np.array([path.positions[-1] for path in visited]))
        seen.append((maxima, arrived))
        lengths.append(float(np.mean([len(path) for path in visited])))
        level = next_level(maxima, arrived)
        if level is None:
            interfaces = even_levels(levels, seen)
            outside = float(np.mean(lengths)) * len(interfaces)
            shots = round(float(np.mean([len(path) for path in inside])) / outside)
            return replace(sampling, interfaces=interfaces, first=tuple(first), shots=min(max(shots, 1), MOST_SHOTS))
        levels.append(level)
        chains = evenly([path for path, top in zip(visited, maxima, strict=True) if top >= level], pilot.n_chains)
    raise SimulationError(
        f"{MOST_INTERFACES} interfaces up to {sampling.along.name} = {levels[-1]:.4g} do not come near B ({sampling.region_b})",
        "check that the order parameter grows from A to B; give more pilot steps, or the interfaces yourself",
    )


def _around_a(
    sampling: TransitionInterfaceSampling, starts: Sequence[State], like: Trajectory, seed: int, store: Store | None, *, longer: bool
) -> tuple[TransitionInterfaceSampling, list[Trajectory], list[Trajectory]]:
    """Return the sampling with what it cost, paths of [0+] and of [0-]; read where a store holds them.

    Where ``longer``, the longest duration is doubled until no stay in A is cut off, and then is :data:`STAYS` times the longest of them.
    """
    key = f"{sampling.name}/around A"
    if store is None or not store.count(key):
        out = leave(sampling, starts, like.stride, integer_seed(seed, sampling.name, "out of A"))
        spent, some = out.force_evaluations, out[:: max(1, len(out) // N_INSIDE)]
        longest, cut = float(convert(sampling.max_duration, "ps", "max_duration")), 0
        while True:
            inside, steps, n_cut = replace(sampling, max_duration=longest).into(some, integer_seed(seed, sampling.name, "into A"))
            spent, cut = spent + steps, cut + n_cut
            if not (longer and n_cut and longest < MOST_STAY):
                break
            longest *= 2
        require_stays(replace(sampling, max_duration=longest), inside)
        if longer and cut:
            longest = max(longest, STAYS * max(len(path) for path in inside) * like.stride)
        arrays = packed([*out, *inside], n_out=np.array([len(out)]), spent=np.array([spent]), longest=np.array([longest]))
        if store is None:
            return _at(sampling, longest, spent), list(out), inside
        store.append({key: arrays})
    data = store.chunk(key, 0)
    paths, n = unpacked(data, like.stride, like.topology), int(data["n_out"][0])
    return _at(sampling, float(data["longest"][0]), int(data["spent"][0])), paths[:n], paths[n:]


def _at(sampling: TransitionInterfaceSampling, longest: float, spent: int) -> TransitionInterfaceSampling:
    return replace(sampling, max_duration=longest, placement_force_evaluations=spent)


def _pilot_run(
    sampling: TransitionInterfaceSampling, chains: list[Trajectory], seed: int, pilot: Pilot, store: Store | None
) -> tuple[list[Trajectory], int]:
    """Return the paths of chains in the ensemble of the highest interface after each step that counts, and the cost of all steps."""
    name = f"{sampling.name}/pilot {len(sampling.interfaces) - 1}"
    log = PathLog(store, name, sampling.plan(chains, len(chains), seed))
    longest = sampling.max_frames(chains[0].stride)
    paths, visited = list(chains), []
    stored = log.replay(paths)
    begin, spent = pilot.n_steps // 3, 0
    try:
        for k in range(1, begin + pilot.n_steps + 1):
            trials = next(stored, None)
            if trials is None:
                seeds = [integer_seed(seed, name, "chain", c, "step", k) for c in range(len(paths))]
                top = [sampling.ensembles[-1]] * len(paths)
                trials = sampling.move.propose(sampling.engine, paths, top, seeds=seeds, max_frames=longest)
                log.add(trials, paths)
            spent += sum(trial.force_evaluations for trial in trials)
            for c, trial in enumerate(trials):
                if trial.path is not None:
                    paths[c] = bare(trial.path)
            if k > begin:
                visited += paths
    finally:
        log.commit()
    return visited, spent
