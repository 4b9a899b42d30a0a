"""Dragging: carrying structures from window to window along the CV, the ordinary way to start umbrella sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import HarmonicBias
from couloir.errors import SimulationError
from couloir.sampling.engine import Engine, steps
from couloir.sampling.seeds import Seeds, window_centers
from couloir.streams import integer_seed
from couloir.trajectory import Array, State, Trajectory

if TYPE_CHECKING:
    from couloir.sampling.umbrella import UmbrellaSampling

THERMALIZATION_STEPS = 1000


class SeedingEngine(Engine, Protocol):
    """An engine that can also minimize and evaluate energies, as seeding needs."""

    def minimize(
        self,
        states: Sequence[State],
        *,
        bias: Sequence[HarmonicBias] | None = None,
        record: Sequence[CollectiveVariable] = (),
        max_iterations: int = 0,
    ) -> list[State]: ...
    def energies(self, positions: Array) -> Array: ...


def dragged_seeds(
    engine: SeedingEngine, windows: UmbrellaSampling, start: State, per_window: int = 1, *, seed: int, thermalization: Any = None,
    relax: bool = True,
) -> Seeds:  # fmt: skip
    """Start every window the ordinary way: drag one structure from window to window along the CV, walkers independently.

    Parameters
    ----------
    thermalization : time in each window after the way there; default 1000 steps.
    relax : whether structures are minimized before they are led on, which small steps between windows do without.
    """
    values = np.array([cv.evaluate(start.positions)[0] for cv in windows.cvs])
    nearest = int(np.argmin(windows.distance(windows.centers, values)))
    states, homes = [], []
    for k in range(per_window):
        everywhere = dict.fromkeys(range(len(windows)), 1)
        for w, state in dragged(
            engine, windows, {nearest: [start]}, everywhere, seed=integer_seed(seed, "walker", k), duration=thermalization, relax=relax
        ):
            states.append(state)
            homes.append(w)
    order = np.argsort(homes, kind="stable")
    ordered, origins = tuple(states[i] for i in order), ("dragged",) * len(states)
    return Seeds(ordered, np.array(homes, dtype=np.int64)[order], origins, centers=window_centers(windows))


def dragged(
    engine: SeedingEngine,
    windows: UmbrellaSampling,
    sources: Mapping[int, Sequence[State]],
    missing: Mapping[int, int],
    *,
    seed: int,
    duration: Any = None,
    relax: bool = True,
) -> list[tuple[int, State]]:
    """Drag states to the windows ``missing`` (window -> how many) from the nearest windows that have some.

    Windows are reached one neighbour at a time, nearest first, all windows at the same remove together; the bias moves
    from the source's centre to the target's in steps of about one standard deviation of a window.
    """
    if not missing:
        return []
    have = {w: list(s) for w, s in sources.items()}
    out: list[tuple[int, State]] = []
    todo = dict(missing)
    level = 0
    while todo:
        known = list(have)
        reach = {w: known[int(np.argmin(windows.distance(windows.centers[known], windows.centers[w])))] for w in todo}
        far = {w: float(windows.distance(windows.centers[[h]], windows.centers[w])[0]) for w, h in reach.items()}
        now = [w for w in todo if far[w] <= min(far.values()) + 1e-9]
        jobs = [(w, have[reach[w]][k % len(have[reach[w]])], reach[w]) for w in now for k in range(todo[w])]
        arrived = _drag(engine, windows, jobs, integer_seed(seed, level), duration, relax)
        came = [(w, state) for (w, _, _), state in zip(jobs, arrived, strict=True) if state is not None]
        out += came
        for w in now:
            have[w] = [state for v, state in came if v == w] + have.get(w, [])
            if not have[w]:
                raise SimulationError(
                    f"every structure dragged to window {w} from window {reach[w]} broke down on the way",
                    "use a smaller time step, place windows closer together, or soften the force constants",
                )
            del todo[w]
        level += 1
    return out


def _drag(
    engine: SeedingEngine, windows: UmbrellaSampling, jobs: list[tuple[int, State, int]], seed: int, duration: Any, relax: bool
) -> list[State | None]:
    """Return where each job (window, state, window it comes from) arrived; None for one that broke down on the way."""
    n_steps = THERMALIZATION_STEPS if duration is None else steps(duration, engine.time_step, "thermalization")
    arrived: list[State | None] = [state for _, state, _ in jobs]
    begin = np.array([windows.centers[source] for _, _, source in jobs])
    ways = np.array([windows.displacement(windows.centers[w] - b) for (w, _, _), b in zip(jobs, begin, strict=True)])
    sigma = np.sqrt(engine.kT / np.array([windows.windows[w].force_constants for w, _, _ in jobs]))
    n_moves = max(1, int(np.ceil(np.abs(ways / sigma).max())))
    for move in range(1, n_moves + 1):
        biases = [
            HarmonicBias.on(windows.cvs, list(b + move / n_moves * way), list(windows.windows[w].force_constants))
            for (w, _, _), b, way in zip(jobs, begin, ways, strict=True)
        ]
        if move == 1 and relax:
            arrived = minimized(engine, windows, [state for _, state, _ in jobs], biases)
        length = (n_steps if move == n_moves else max(1, n_steps // 4)) * engine.time_step
        alive = [i for i, state in enumerate(arrived) if state is not None]
        if not alive:
            break
        done = propagated(
            engine, [arrived[i] for i in alive],  # type: ignore[misc]
            duration=length, bias=[biases[i] for i in alive], record=windows.cvs,
            seed=[integer_seed(seed, move, i) for i in alive],
        )  # fmt: skip
        for i, trajectory in zip(alive, done, strict=True):
            arrived[i] = None if trajectory.ended == "failed" else trajectory.last
    return arrived


def minimized(
    engine: SeedingEngine, windows: UmbrellaSampling, states: Sequence[State], biases: Sequence[HarmonicBias], max_iterations: int = 0
) -> list[State | None]:
    """Return the states minimized in their windows, None for those that cannot be."""
    try:
        return list(engine.minimize(states, bias=biases, record=windows.cvs, max_iterations=max_iterations))
    except SimulationError as error:
        return list(error.partial)


def propagated(engine: Engine, states: Sequence[State], **settings: Any) -> list[Trajectory]:
    """Return what the engine propagates; walkers that broke down are there too, ``ended`` being ``"failed"``."""
    try:
        return engine.propagate(states, **settings)
    except SimulationError as error:
        if error.partial is None:  # nothing ran at all: the device ran out of memory, say
            raise
        return list(error.partial)
