"""Guides: ways from A to B that no equilibrium dynamics took, from whose frames real dynamics is shot to find first paths.

A guide may be steered along the CVs of the two states, run at a higher temperature, generated, or read from a file.  It only
says where to shoot from; what comes back is real dynamics that starts in A and ends in B, and carries no weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from couloir.cv import CollectiveVariable, wrap
from couloir.cv.bias import HarmonicBias
from couloir.cv.region import Region, all_limits
from couloir.errors import ConfigError, DataError, SimulationError
from couloir.sampling.dragging import propagated
from couloir.sampling.engine import Engine
from couloir.sampling.hunt import Hunt, constrained
from couloir.sampling.path_sampling import connection
from couloir.streams import integer_seed
from couloir.trajectory import Array, State, Trajectory

IntArray = npt.NDArray[np.int64]

MOVES, MOVE_STEPS = 100, 100
"""Pulls on the way from A to B, and time steps of each."""
_HELD = 30  # pulls at the end of the way, for those that lag behind
_WIDTH = 1 / 20  # of the way: the thermal width of the first restraint
_STIFFER = (1.0, 4.0, 16.0)  # force constants tried
_ROUNDS = 4  # hunts with other velocities, each down to a single frame between those that fall to A and to B
_SHOTS = 8  # most shots from one guide in a hunt
_OUTSIDE = 0.25  # of what the limits span: how far beyond the outermost one an open region is entered
_MOST_PLACES = 100_000


@dataclass(frozen=True, eq=False)
class Guides:
    """Ways from A to B.

    Attributes
    ----------
    paths : (n, n_frames, n_atoms, n_dim) each from A to B.
    force_evaluations : steps of dynamics spent on them.
    """

    paths: Array
    force_evaluations: int

    @classmethod
    def of(cls, paths: Sequence[Array], region_a: Region, region_b: Region, force_evaluations: int = 0) -> Guides:
        """Return the parts of paths that lead from A to B, turned round where they lead back; the others are left out.

        Raises
        ------
        DataError : none of them connects A and B.
        """
        found = []
        for path in paths:
            in_a, in_b = region_a.contains(path), region_b.contains(path)
            ahead, behind = connection(in_a, in_b), connection(in_b, in_a)
            if ahead is not None:
                found.append(path[ahead])
            elif behind is not None:
                found.append(path[behind][::-1])
        if not found:
            raise DataError(f"none of {len(paths)} paths connects A ({region_a}) and B ({region_b})", "give one that visits both")
        longest = max(map(len, found))
        # repeats of the last frame are in B, where nothing is shot from
        padded = [np.concatenate([path, np.repeat(path[-1:], longest - len(path), axis=0)]) for path in found]
        return cls(np.array(padded), force_evaluations)

    def __len__(self) -> int:
        return len(self.paths)


def place_in(region: Region, other: Region, near: dict[str, float]) -> dict[str, float]:
    """Return values of a region's CVs that lie inside it, away from its limits, nearest to ``near``.

    Parameters
    ----------
    other : its limits tell the scale of the CVs.
    near : CV values by name.

    Raises
    ------
    ConfigError : none of the places tried is inside, so the region is empty or too intricate.
    """
    limits = all_limits(region, other)
    choices = {cv.name: _between(limits[cv.name], cv.period) for cv in region.cvs}
    if int(np.prod([len(values) for values in choices.values()])) > _MOST_PLACES:
        raise ConfigError(f"the region {region} has too many limits to be steered to", 'give first_path = "file"')
    places = np.array(list(itertools.product(*choices.values())))
    inside = region.contains_values({name: places[:, i] for i, name in enumerate(choices)})
    if not inside.any():
        raise ConfigError(f"no place inside the region {region} was found", 'is it empty? Or give first_path = "file"')
    far = np.zeros(len(places))
    for i, cv in enumerate(region.cvs):
        values = choices[cv.name]
        far += (wrap(places[:, i] - near[cv.name], cv.period) / (cv.period or np.ptp(values) or 1.0)) ** 2
    best = places[int(np.argmin(np.where(inside, far, np.inf)))]
    return dict(zip(choices, map(float, best), strict=True))


def _between(limits: tuple[float, ...], period: float | None) -> list[float]:
    """Return the midpoints between neighbouring limits, and a place beyond the outermost ones; on a circle, its ends are limits, too."""
    x = np.array(limits)
    middles = (x[1:] + x[:-1]) / 2
    if period is not None:
        across = float(wrap(np.array(x[-1] + (x[0] + period - x[-1]) / 2), period))
        return [*middles.tolist(), across, float(x[0] - period / 2) / 2, float(x[-1] + period / 2) / 2]
    reach = _OUTSIDE * (x[-1] - x[0] if len(x) > 1 else abs(x[0]) or 1.0)
    return [float(x[0] - reach), *middles.tolist(), float(x[-1] + reach)]


def steer(engine: Engine, starts: Sequence[State], region: Region, other: Region, *, seed: int) -> Guides:
    """Pull structures into a region by a moving harmonic restraint on its CVs; frames are kept after every pull.

    Structures that do not arrive are left out.  When none does, stiffer restraints are tried.

    Parameters
    ----------
    starts : one per guide.
    other : the region they come from; its limits tell the scale of the CVs.

    Returns
    -------
    Guides of which the first frames are the starts, and the last ones are in the region.

    Raises
    ------
    SimulationError : nothing arrives.
    ConfigError : no place inside the region was found.
    """
    cvs = region.cvs
    begin = np.stack([cv.evaluate(np.array([s.positions for s in starts])) for cv in cvs], axis=1)
    targets = [place_in(region, other, dict(zip([cv.name for cv in cvs], row, strict=True))) for row in begin]
    ways = np.array([[float(wrap(np.array(t[cv.name] - x), cv.period)) for cv, x in zip(cvs, row, strict=True)]
                     for t, row in zip(targets, begin, strict=True)])  # fmt: skip
    spent = 0
    for attempt, stiffer in enumerate(_STIFFER):
        frames, alive, pulls = _pulled(engine, starts, cvs, begin, ways, stiffer, region, integer_seed(seed, "pull", attempt))
        spent += pulls * MOVE_STEPS
        arrived = [i for i in alive if region.contains(frames[i]).any()]
        if arrived:
            return Guides(frames[arrived], spent)
    raise SimulationError(
        f"no structure could be steered into {region}",
        'steering needs CVs that can be pulled on: define the regions on others, or give first_path = "file" or "high_temperature"',
    )


def _pulled(
    engine: Engine, starts: Sequence[State], cvs: Sequence[CollectiveVariable], begin: Array, ways: Array, stiffer: float,
    region: Region, seed: int,
) -> tuple[Array, list[int], int]:  # fmt: skip
    """Return frames (n, n_pulls + 1, ...) of every walker, those that did not break down, and how many pulls it took."""
    scale = np.maximum(np.abs(ways).max(axis=0), 1e-3)
    constants = list(stiffer * engine.kT / (_WIDTH * scale) ** 2)
    states = list(starts)
    frames = [np.array([state.positions for state in states])]
    alive = list(range(len(states)))
    there = np.zeros(len(states), dtype=bool)
    pulls = 0
    for move in range(1, MOVES + _HELD + 1):
        share = min(1.0, move / MOVES)
        done = propagated(
            engine, [states[i] for i in alive], duration=MOVE_STEPS * engine.time_step, record=cvs,
            bias=[HarmonicBias.on(cvs, list(begin[i] + share * ways[i]), constants) for i in alive],
            seed=[integer_seed(seed, move, i) for i in alive],
        )  # fmt: skip
        pulls += len(alive)
        for i, part in zip(list(alive), done, strict=True):
            if part.ended == "failed" or part.last is None:
                alive.remove(i)
            else:
                states[i] = part.last
        frames.append(np.array([state.positions for state in states]))
        there |= region.contains(frames[-1])
        if not alive or there[alive].all():
            break
    return np.stack(frames, axis=1), alive, pulls


def heated(
    engine: Engine, starts: Sequence[State], region_a: Region, region_b: Region, *, duration: float, stride: float, seed: int
) -> Guides:
    """Run hot dynamics from A until B is reached; guides are those runs that reach it.

    Parameters
    ----------
    engine : hotter than the one paths are wanted of.
    duration : ps, of each run at most.

    Raises
    ------
    SimulationError : none reaches B.
    """
    runs = propagated(
        engine, list(starts), duration=duration, stride=stride, stop=region_b,
        seed=[integer_seed(seed, "hot", i) for i in range(len(starts))],
    )  # fmt: skip
    spent = sum(round(len(run) * stride / engine.time_step) for run in runs)
    frames = [np.concatenate([s.positions[None], run.positions]) for s, run in zip(starts, runs, strict=True) if run.ended == "stopped"]
    if not frames:
        raise SimulationError(
            f"none of {len(runs)} runs of {duration:g} ps at the higher temperature reached B ({region_b})", "make it hotter"
        )
    return Guides.of(frames, region_a, region_b, spent)


def first_paths(
    engine: Engine,
    guides: Guides,
    region_a: Region,
    region_b: Region,
    n: int,
    *,
    box: Array | None,
    max_duration: float,
    stride: float,
    seed: int,
) -> tuple[list[Trajectory], dict[str, int]]:
    """Shoot from the frames of guides between A and B, narrowing down on the top, until dynamics connects the two.

    Parameters
    ----------
    n : paths wanted; fewer may be found.
    box : of the guides' frames.
    max_duration : ps, of each half of a shot.

    Returns
    -------
    Paths from A to B, and what became of the shots.

    Raises
    ------
    SimulationError : no shot connects A and B.
    """
    stretches = [_inside(path, region_a, region_b) for path in guides.paths]
    tally: dict[str, int] = {}
    paths: list[Trajectory] = []
    for number in range(_ROUNDS):
        hunt = Hunt(
            engine, region_a, region_b, guides.paths, stretches,
            lambda frames: [constrained(engine, State(frame, None, box)) for frame in frames],
        )  # fmt: skip
        settings: dict[str, Any] = {"max_duration": max_duration, "stride": stride}
        # where no frame is near the top for long, frames all along the way are the last resort
        selection = "top" if number < _ROUNDS - 1 else "spread"
        hunt.shoot(n - len(paths), selection, _SHOTS, integer_seed(seed, "hunt", number), **settings)
        paths += [row[0] for row in hunt.found]
        tally = {key: tally.get(key, 0) + count for key, count in hunt.tally.items()}
        if len(paths) >= n:
            break
    if not paths:
        told = ", ".join(f"{count} {key}" for key, count in tally.items() if count)
        where = "" if any(map(len, stretches)) else " (no guide has a frame between A and B)"
        raise SimulationError(
            f"no shot connects A ({region_a}) and B ({region_b}){where}: {told}",
            "raise max_duration if shots are unfinished; if all fall to one side, other CVs tell A from B better: try another first_path",
        )
    return paths, tally


def _inside(path: Array, region_a: Region, region_b: Region) -> IntArray:
    """Return the frames between the last one in A and the first one in B."""
    found = connection(region_a.contains(path), region_b.contains(path))
    return np.zeros(0, dtype=np.int64) if found is None else np.arange(found.start + 1, found.stop - 1, dtype=np.int64)
