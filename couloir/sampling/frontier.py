"""Frontier rounds: carry a model from the basin it knows across the whole range of a CV.

unbiased data -> model -> windows just beyond the data, seeded by the model -> short biased runs -> retrain on the union
-> repeat until every window holds data (the "extrapolated conditional distributions" of Crabtree 2023, made into an
algorithm).  A bias on the label alone leaves the distribution *conditional* on the label untouched, so the union trains
a conditional model without reweighting between runs; frames are weighted only to even out the label's density.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError, Finding, SimulationError
from couloir.sampling.dragging import SeedingEngine, propagated
from couloir.sampling.engine import steps
from couloir.sampling.seeding import ConditionalSampler, seed_windows
from couloir.sampling.seeds import Seeds
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array, State

MIN_FRAMES = 20
MAX_REACH = 1.5
FRAMES_PER_SEED = 50
PATIENCE = 3
"""Rounds without a new window after which the frontier counts as stuck."""

Fit = Callable[[Array, Array, int], ConditionalSampler]
"""(positions (n, n_atoms, 3), weights (n,), seed) -> a model trained on them."""


class Trainable(Protocol):
    """A model class before fitting (``ConditionalSGM``)."""

    def fit(self, data: Any, *, seed: int, weights: Any = None) -> ConditionalSampler: ...


@dataclass(frozen=True, eq=False)
class FrontierResult:
    """What the frontier rounds arrived at.

    Attributes
    ----------
    model : trained on everything.
    positions : (n, n_atoms, 3) the data it was trained on; weights : (n,) even over the windows.
    seeds : of each round.
    covered : (n_rounds + 1, n_windows) whether a window held data before the first round and after each.
    findings : windows that were never reached.
    """

    model: ConditionalSampler
    positions: Array
    weights: Array
    seeds: tuple[Seeds, ...]
    covered: npt.NDArray[np.bool_]
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        rounds = "\n".join(f"  round {i}: {row.sum()} of {len(row)} windows hold data" for i, row in enumerate(self.covered))
        return f"FrontierResult: {len(self.positions)} frames after {len(self.seeds)} rounds\n{rounds}"


def frontier_rounds(
    fit: Trainable | Fit,
    engine: SeedingEngine,
    windows: UmbrellaSampling,
    positions: Array,
    *,
    seed: int,
    duration: Any = None,
    per_window: int = 4,
    reach: int = 2,
    max_rounds: int = 20,
    reference: State | None = None,
    store: Store | None = None,
    on_round: Callable[[str], None] | None = None,
) -> FrontierResult:
    """Extend ``positions`` window by window until they cover all of ``windows``.

    Parameters
    ----------
    fit : an unfitted model, or a function (positions, weights, seed) -> model.
    positions : (n, n_atoms, 3) configurations of the basin that is known.
    duration : biased time per seed; default 5,000 steps; ``FRAMES_PER_SEED`` frames of it become data.
    reach : how many windows beyond the data a round may go.
    store : keeps the frames of finished rounds; the same call on it continues.
    on_round : told in one line what each round arrived at, once its frames are stored.

    Raises
    ------
    DataError : the data touch no window at all.
    """
    train = fitting(fit)
    store, kT = store or Store(), engine.kT
    data, seeds, covered = np.asarray(positions, dtype=np.float64), [], [coverage(windows, positions, kT)]
    if not covered[0].any():
        raise DataError("the data lie in no window, so there is no frontier to start from", "place windows where the data are")
    for number in range(max_rounds):
        ahead = windows_ahead(windows, covered[-1], reach)
        stuck = len(covered) > PATIENCE and (covered[-1] == covered[-1 - PATIENCE]).all()
        if not ahead or stuck:
            break
        if number < store.count("frontier"):
            new = store.chunk("frontier", number)["positions"]
        else:
            model = train(data, even_weights(windows, data, kT), integer_seed(seed, "model", number))
            fallback = _states_by_window(windows, data, covered[-1], kT, integer_seed(seed, "fallback", number))
            found = seed_windows(
                model, engine, windows, per_window, seed=integer_seed(seed, "seeds", number), reference=reference,
                fallback=fallback, only=ahead,
            )  # fmt: skip
            seeds.append(found)
            new = _explore(engine, windows, found, duration, integer_seed(seed, "explore", number))
            store.append({"frontier": {"positions": new}})
        data = np.concatenate([data, new])
        covered.append(coverage(windows, data, kT))
        if on_round is not None:
            on_round(f"frontier round {number + 1}: {covered[-1].sum()} of {len(windows)} windows hold data")
    weights = even_weights(windows, data, kT)
    final = train(data, weights, integer_seed(seed, "model", "final"))
    return FrontierResult(final, data, weights, tuple(seeds), np.array(covered), tuple(_findings(windows, covered[-1])))


def coverage(windows: UmbrellaSampling, positions: Array, kT: float) -> npt.NDArray[np.bool_]:
    """Return which windows (n_windows,) hold at least ``MIN_FRAMES`` frames near their centre."""
    home, near = homes(windows, positions, kT)
    return np.bincount(home[near], minlength=len(windows)) >= MIN_FRAMES


def even_weights(windows: UmbrellaSampling, positions: Array, kT: float) -> Array:
    """Return frame weights (n,), mean 1, that give every populated window the same total weight."""
    home, _ = homes(windows, positions, kT)
    weights = 1.0 / np.bincount(home, minlength=len(windows))[home]
    return np.asarray(weights / weights.mean())


def fitting(fit: Trainable | Fit) -> Fit:
    """Return the function that trains: itself, or the method of a model class before fitting."""
    if not hasattr(fit, "fit"):
        return fit
    return lambda positions, weights, seed: fit.fit(positions, seed=seed, weights=weights)


def homes(windows: UmbrellaSampling, positions: Array, kT: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the nearest window of every frame, and whether the frame lies within a window's width or half a spacing."""
    values = np.stack([cv.evaluate(positions) for cv in windows.cvs], axis=1)
    far = np.stack([windows.distance(values, center, kT) for center in windows.centers])
    home = far.argmin(axis=0)
    return home, far.min(axis=0) <= max(MAX_REACH, spacing(windows) / np.sqrt(kT) / 2)


def spacing(windows: UmbrellaSampling) -> float:
    """Return the median distance of a window to its nearest neighbour (windows.distance at kT = 1)."""
    if len(windows) == 1:
        return 0.0
    nearest = [np.partition(windows.distance(windows.centers, c), 1)[1] for c in windows.centers]
    return float(np.median(nearest))


def windows_ahead(windows: UmbrellaSampling, covered: npt.NDArray[np.bool_], reach: int) -> list[int]:
    """Return the windows without data that lie at most ``reach`` windows beyond those that have some."""
    limit = reach * spacing(windows) * (1 + 1e-6)
    known = windows.centers[covered]
    return [
        w for w in range(len(windows)) if not covered[w] and windows.distance(known, windows.centers[w]).min() <= limit
    ]  # fmt: skip


def _states_by_window(
    windows: UmbrellaSampling, positions: Array, covered: npt.NDArray[np.bool_], kT: float, seed: int
) -> dict[int, Sequence[State]]:
    home, near = homes(windows, positions, kT)
    rng = stream(seed)
    picks = {w: rng.choice(np.flatnonzero((home == w) & near), size=4) for w in np.flatnonzero(covered)}
    return {int(w): [State(positions[i]) for i in rows] for w, rows in picks.items()}


def _explore(engine: SeedingEngine, windows: UmbrellaSampling, seeds: Seeds, duration: Any, seed: int) -> Array:
    n_steps = 5000 if duration is None else steps(duration, engine.time_step, "duration")
    stride = max(1, n_steps // FRAMES_PER_SEED)
    done = propagated(
        engine,
        list(seeds.states),
        duration=stride * FRAMES_PER_SEED * engine.time_step,
        stride=stride * engine.time_step,
        bias=[windows.windows[w] for w in seeds.windows],
        record=windows.cvs,
        seed=[integer_seed(seed, i) for i in range(len(seeds))],
    )
    # A walker that broke down was out of its mind before; one that did not is whole.
    whole = [trajectory.positions for trajectory in done if trajectory.ended != "failed"]
    if not whole:
        raise SimulationError("every walker of this frontier round broke down", "use a smaller time step, or soften the force constants")
    return np.concatenate(whole)


def _findings(windows: UmbrellaSampling, covered: npt.NDArray[np.bool_]) -> list[Finding]:
    if covered.all():
        return []
    where = ", ".join(f"{w} ({', '.join(f'{c:.2f}' for c in windows.centers[w])})" for w in np.flatnonzero(~covered))
    fix = "allow more rounds, place windows closer together or make them stiffer"
    return [Finding("frontier-stopped", f"no data were reached in window {where}", fix)]
