"""Are the error bars true?  Repeated umbrella experiments on systems whose free energy is known exactly.

    python -m benchmarks.coverage --scale small|paper

Each experiment is a whole one: starting structures, windows run by the toy engine (with exchange between windows),
transients detected, WHAM, block bootstrap.  Counted is how often 95 % intervals of the barrier and of the difference
between two basins hold the truth, and how often warnings of trapped walkers are raised where walkers are trapped and
where they are not:

* ``double well`` along x, a 6 kT barrier, nothing hidden;
* ``Mueller-Brown`` along x - y at kT = 15 (its barriers are 7 and 2.4 kT), two valleys and a bent way between them;
* ``hidden barrier`` of 4 kT, which walkers cross now and then, helped by exchange between windows;
* ``hidden barrier`` of 11 kT without exchange, started in both modes: the modes keep the weights of the seeds, so intervals
  *cannot* be trusted, and a warning has to say so;
* the same with exchange, among windows none of which leads around the barrier: configurations of both modes pass through every
  walker, and only following them shows that they never change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np

from benchmarks.results import Row, scale_parser, write_results
from couloir.analysis import free_energy_surface
from couloir.analysis.surface import FreeEnergySurface
from couloir.cv.base import CollectiveVariable
from couloir.cv.composite import LinearCombination
from couloir.cv.geometric import Coordinate
from couloir.sampling import ToyEngine, UmbrellaSampling, potentials
from couloir.sampling.potentials import ToyPotential
from couloir.trajectory import Array, State

ALARMS = {"walkers-disagree", "replicas-disagree", "windows-disagree", "disconnected-windows"}
X, Y = Coordinate(0, "x"), Coordinate(1, "y")


@dataclass(frozen=True)
class Experiment:
    """A system, its windows along a CV, and the two basins compared (ranges of the CV)."""

    name: str
    potential: Callable[[], ToyPotential]
    cv: CollectiveVariable
    kT: float
    time_step: float
    n_windows: int
    span: tuple[float, float]
    force_constant: float
    basins: tuple[tuple[float, float], tuple[float, float]]
    starts: tuple[float, ...]
    duration: float
    exchange: bool = True
    trapped: bool = False
    bins: int = 40
    limits: tuple[float, float] = (-1.5, 1.5)


EXPERIMENTS = (
    Experiment(
        "double well", partial(potentials.double_well, 6.0), X, 1.0, 2e-3, 12, (-1.5, 1.5), 40.0, ((-1.5, 0.0), (0.0, 1.5)), (), 60.0
    ),
    Experiment(
        "Mueller-Brown", potentials.mueller_brown, LinearCombination((X, Y), (1.0, -1.0), name="s"), 15.0, 1e-5, 18, (-2.5, 1.3), 600.0,
        ((-2.5, -1.5), (0.2, 1.2)), (), 8.0, limits=(-2.4, 1.2),
    ),
    Experiment(
        "hidden barrier of 4 kT", partial(potentials.hidden_barrier, 1.0, 4.0), X, 1.0, 1e-3, 14, (-1.9, 2.0), 20.0,
        ((-1.9, -0.5), (0.5, 1.9)), (-1.0, 1.0), 400.0, limits=(-1.9, 1.9),
    ),
    Experiment(
        "hidden barrier of 11 kT, walkers trapped", potentials.hidden_barrier, X, 1.0, 1e-3, 14, (-1.9, 2.0), 20.0,
        ((-1.9, -0.5), (0.5, 1.9)), (-1.0, 1.0), 60.0, exchange=False, trapped=True, limits=(-1.9, 1.9),
    ),
    Experiment(
        "hidden barrier of 11 kT, configurations trapped", potentials.hidden_barrier, X, 1.0, 1e-3, 11, (-1.1, 2.0), 20.0,
        ((-1.1, 0.0), (0.5, 1.9)), (-1.0, 1.0), 60.0, trapped=True, limits=(-1.1, 1.9),
    ),
)  # fmt: skip


def run(experiment: Experiment, seed: int) -> tuple[bool, bool, bool]:
    """Carry out one experiment; return whether the intervals of barrier and difference hold the truth, and whether it warned."""
    potential = experiment.potential()
    engine = ToyEngine(potential, kT=experiment.kT, time_step=experiment.time_step, threads=1)
    windows = UmbrellaSampling.grid(experiment.cv, experiment.n_windows, experiment.force_constant, range=experiment.span)
    samples = windows.run(
        engine, starts(engine, windows, experiment), experiment.duration, seed=seed,
        record=(X, Y) if potential.n_dim > 1 else (X,), record_stride=experiment.duration / 400, exchange=experiment.exchange,
    )  # fmt: skip
    surface = free_energy_surface(samples, experiment.cv.name, bins=experiment.bins, limits=experiment.limits, n_bootstrap=100, seed=seed)
    truth = exactly(surface, potential, experiment)
    a, b = experiment.basins
    cells = [int(np.argmin(truth + np.where(_inside(surface.grid[0], r), 0.0, np.inf))) for r in (a, b)]
    between = slice(min(cells), max(cells) + 1)
    top = between.start + int(np.argmax(truth[between]))
    height = surface.free_energy[top] - surface.free_energy[cells[0]]
    spread = float(np.std(surface.replicas[:, top] - surface.replicas[:, cells[0]], ddof=1))
    difference = surface.difference(a, b)
    exact = _difference(truth, surface.grid[0], a, b, experiment.kT)
    return (
        abs(height - (truth[top] - truth[cells[0]])) < 1.96 * spread,
        difference.interval[0] < exact < difference.interval[1],
        bool(ALARMS & {finding.code for finding in surface.findings}),
    )


def starts(engine: ToyEngine, windows: UmbrellaSampling, experiment: Experiment) -> dict[int, Sequence[State]]:
    """Return two walkers per window, at its centre; where a y is hidden, one in each mode, as seeds from a model would be."""
    if engine.potential.n_dim == 1:
        return {w: [engine.state(float(c))] * 2 for w, (c,) in enumerate(windows.centers)}
    if not experiment.starts:
        points, energy = _plane(engine.potential, 300)
        values = experiment.cv.evaluate(points[:, None, :])
        lowest = [int(np.argmin(energy + np.where(abs(values - c) < 0.02, 0.0, np.inf))) for (c,) in windows.centers]
        return {w: [engine.state(*map(float, points[i]))] * 2 for w, i in enumerate(lowest)}
    modes = experiment.starts
    # Turned from window to window, so that both modes are among the configurations that exchange.
    return {w: [engine.state(float(c), y) for y in (*modes[w % 2 :], *modes[: w % 2])] for w, (c,) in enumerate(windows.centers)}


def exactly(surface: FreeEnergySurface, potential: ToyPotential, experiment: Experiment) -> Array:
    """Return the exact free energy of every cell by quadrature."""
    x, kT = surface.grid[0], experiment.kT
    points, energy = _plane(potential)
    width = x[1] - x[0]
    cell = np.floor((experiment.cv.evaluate(points[:, None, :]) - x[0]) / width + 0.5).astype(int)
    inside = (cell >= 0) & (cell < len(x))
    weight = np.bincount(cell[inside], np.exp(-(energy[inside] - energy.min()) / kT), len(x))
    return np.asarray(-kT * np.log(weight))


def _plane(potential: ToyPotential, n: int = 1500) -> tuple[Array, Array]:
    """Return points of a fine grid over the box of a potential (n_points, n_dim), and their energies."""
    n = n if potential.n_dim > 1 else 100 * n
    axes = [low + (high - low) * (np.arange(n) + 0.5) / n for low, high in potential.bounds]
    points = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    return points, ToyEngine(potential, kT=1.0, time_step=1e-3, threads=1).energies(points[:, None, :])


def _inside(x: Array, limits: tuple[float, float]) -> Array:
    return np.asarray((x >= limits[0]) & (x <= limits[1]))


def _difference(f: Array, x: Array, a: tuple[float, float], b: tuple[float, float], kT: float) -> float:
    p = np.exp(-f / kT)
    return float(-kT * np.log(p[_inside(x, b)].sum() / p[_inside(x, a)].sum()))


def main() -> None:
    parser = scale_parser(__doc__)
    parser.add_argument("--only", choices=[e.name for e in EXPERIMENTS], help="measure one experiment, and keep the rows of all others")
    arguments = parser.parse_args()
    repeats = 100 if arguments.scale == "small" else 200
    rows = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for experiment in (e for e in EXPERIMENTS if arguments.only in (None, e.name)):
            outcome = np.array(list(pool.map(partial(run, experiment), range(repeats)))).astype(float).mean(axis=0)
            print(f"{experiment.name}: barrier {outcome[0]:.3f}, difference {outcome[1]:.3f}, warned {outcome[2]:.3f}", flush=True)
            rows += report(experiment, repeats, outcome)
    write_results("coverage", rows, scale=arguments.scale, update=arguments.only is not None)


def report(experiment: Experiment, repeats: int, outcome: Array) -> list[Row]:
    """Return the rows of one experiment."""

    def error(p: float) -> float:
        return float(np.sqrt(max(p * (1 - p), 1 / repeats) / repeats))

    trapped = experiment.trapped
    alarm = float(outcome[2])
    rows = [
        Row(f"{experiment.name}: runs that warn of trapped walkers", 100 * alarm, "%", 100 * error(alarm), 95.0 if trapped else 5.0,
            alarm >= 0.95 if trapped else alarm <= 0.05)
    ]  # fmt: skip
    for what, share in (("barrier", float(outcome[0])), ("difference of basins", float(outcome[1]))):
        claim = f"{experiment.name}: 95 % intervals of the {what} that hold the truth ({repeats} experiments, 90-99 % wanted)"
        met = None if trapped else 0.90 <= share <= 0.99
        rows.append(Row(claim, 100 * share, "%", 100 * error(share), None if trapped else 95.0, met))
    return rows


if __name__ == "__main__":
    main()
