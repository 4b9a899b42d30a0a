"""Score-based model assisted sampling (Crabtree, Bello-Rivas & Kevrekidis 2023) on its two fast/slow systems.

    python -m benchmarks.assisted_sampling --scale small|paper [--only pdf steps exact labels]

Conventions: noise as printed is per step, so kT = 0.1^2 / (2 x 0.01) = 0.5; z1 goes from 0 to 10 in 1e5 units of time.  All
exact answers are laws of z2 *given* z1 (z1 is driven, so exp(-U/kT) is no law of both).  Errors are L1 distances, 0 to 2.
The variable barrier runs at a time step of 1e-3, not the printed 1e-2: its wells are so stiff (curvature 8 (1 + h)) that at 1e-2
Euler-Maruyama itself is far from exp(-U/kT), which a row states.

pdf     evolving wells: the model's density at z1 = 5 and, extrapolated, at 12; ten seeded windows of 1,000 steps.
steps   variable barrier, ten walkers in one window at z1 = 5: error against steps per walker when all begin in the left well, are
        seeded by a model of a long unbiased run, or ideally (exact draws).
exact   the same window at 8 kT, with a good model and one that learned from data whose right well counts ten times.
        With walkers that never cross: (a) pooled rows converge to the model's weights; (b) MBAR of model and modes, (c) generative
        moves and (d) exchange between windows along z2 converge to exp(-U/kT | z1).  A tenth of the budget of (b) buys energies of
        the model's structures; (c) spends one energy every 100 steps; (d) spends all on dynamics.
        Whether pooling is flagged is asked of an experiment as a user would do it: ten windows from z1 = 0.5 to 9.5, four walkers each.
        Moves take a table of the model's density to save time; one row each takes the network's own, in UmbrellaSampling.run.
labels  a diffusion map of 10,000 samples, thinned from a hundred runs, in place of z1 as the label.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from benchmarks.assisted.exactness import exact
from benchmarks.assisted.fast_slow import CELLS, TabulatedModel, binned, draw, driven, exact_cells, l1
from benchmarks.assisted.labels import labels
from benchmarks.assisted.pictures import draw_curves
from benchmarks.assisted.runs import WALKERS, Curves, cumulative_errors, fit, long_run, mean_and_error
from benchmarks.results import Row, scale_parser, write_results
from couloir.sampling import potentials
from couloir.streams import stream
from couloir.trajectory import Array

STEPS = (10, 30, 100, 300, 1000, 3000, 10000)


def pdf(trainings: int, repeats: int) -> tuple[list[Row], Curves]:
    """Evolving wells: the conditional density inside and outside of the data, and windows seeded from it."""
    potential, kT = potentials.evolving_wells(), 0.5
    engine = driven(potential, kT, 1e-2)
    data = long_run(potential, kT, 1e-2, seed=1)
    models = [fit(data, seed) for seed in range(trainings)]
    rows, curves = [], {}
    for z1, target in ((5.0, 0.05), (12.0, 0.15)):
        exact = exact_cells(potential, kT, z1)
        tables = [TabulatedModel.of(model, z1) for model in models]
        errors = np.array([l1(table.cells, exact) for table in tables])
        value = float(np.median(errors))
        what = "" if z1 <= 10 else ", outside the data,"
        rows.append(
            Row(
                f"evolving wells: L1 of p(z2 | z1 = {z1:g}){what} median of {trainings} trainings",
                value,
                "",
                float(errors.std(ddof=1) / np.sqrt(trainings)),
                target,
                value <= target,
            )
        )
        for side, name in ((-1, "left"), (1, "right"))[: 2 if z1 <= 10 else 1]:
            ratio = np.median([width(t.cells, side) for t in tables]) / width(exact, side) - 1
            rows.append(
                Row(
                    f"evolving wells: width of the {name} well at z1 = {z1:g}, model over exact - 1",
                    float(100 * ratio),
                    "%",
                    None,
                    3.0,
                    bool(abs(ratio) <= 0.03),
                )
            )
        curves[f"z1 = {z1:g}"] = (exact, np.median([t.cells for t in tables], axis=0))
    centers = np.arange(0.5, 10.0)
    for name, places in (("ten windows from z1 = 0.5 to 9.5", centers), ("ten windows at z1 = 12", np.full(WALKERS, 12.0))):
        cells = [exact_cells(potential, kT, z) for z in places]
        made = models[0].sample(np.tile(places, repeats), seed=3)[:, 0, 1].reshape(repeats, -1)
        error, _ = cumulative_errors(engine, places, made, binned(np.mean(cells, axis=0)), (1000,), seed=4)
        best, _ = cumulative_errors(
            engine,
            places,
            np.stack([draw(c, repeats, stream(5, i)) for i, c in enumerate(cells)], axis=1),
            binned(np.mean(cells, axis=0)),
            (1000,),
            seed=6,
        )
        (m,), (s,) = mean_and_error(error)
        rows.append(
            Row(
                f"evolving wells: L1 of {name}, seeded, 1,000 steps each ({repeats} repeats)",
                float(m),
                "",
                float(s),
                peer="ideal seeds",
                peer_value=float(best.mean()),
            )
        )
    return rows, curves


def width(cells: Array, side: int) -> float:
    """Return the standard deviation of z2 on one side of 0."""
    centres = 0.5 * (CELLS[1:] + CELLS[:-1])
    p = np.where(centres * side > 0, cells, 0.0)
    p = p / p.sum()
    return float(np.sqrt(p @ centres**2 - (p @ centres) ** 2))


def discretization(height: float, kT: float, time_step: float) -> float:
    """Return the L1 distance between what Euler-Maruyama leaves invariant and exp(-U/kT), without sampling.

    The transition matrix between cells is Gaussian; its invariant vector is found by squaring.
    """
    potential = potentials.variable_barrier(height)
    centres = (0.5 * (CELLS[1:] + CELLS[:-1]))[300:900]
    drift = centres - time_step * potential.gradient(np.stack([np.zeros_like(centres), centres], axis=1))[:, 1]
    step = np.exp(-((centres - drift[:, None]) ** 2) / (4 * kT * time_step))
    step /= np.maximum(step.sum(axis=1, keepdims=True), 1e-300)
    for _ in range(40):
        step = step @ step
        step /= np.maximum(step.sum(axis=1, keepdims=True), 1e-300)
    law = np.zeros(len(CELLS) - 1)
    # Both wells weigh the same by symmetry, which rounding must not spoil over a high barrier.
    law[300:900] = 0.5 * (step[200] + step[400])
    return float(l1(law, exact_cells(potential, kT, 0.0)))


def steps(repeats: int, ratios: tuple[int, ...], training: int) -> tuple[list[Row], Curves]:
    """Variable barrier: error against steps for three ways to start, barriers of 2 to 10 kT."""
    rows, curves = [], {}
    for height in (4.0, 8.0):
        potential = potentials.variable_barrier(height)
        at_printed = discretization(height, 0.5, 1e-2)
        rows.append(
            Row(
                f"variable barrier h = {height:g}: L1 of the time step alone, printed constants (1e-2)",
                at_printed,
                "",
                peer="time step 1e-3",
                peer_value=discretization(height, 0.5, 1e-3),
            )
        )
        for ratio in ratios:
            kT = height / ratio
            engine, exact = driven(potential, kT, 1e-3), exact_cells(potential, kT, 5.0)
            table = TabulatedModel.of(fit(long_run(potential, kT, 1e-3, seed=11), ratio, steps=training), 5.0)
            starts = {
                "unseeded": np.full((repeats, WALKERS), -1.0),
                "model": draw(table.cells, repeats * WALKERS, stream(12, ratio)).reshape(repeats, -1),
                "ideal": draw(exact, repeats * WALKERS, stream(13, ratio)).reshape(repeats, -1),
            }
            errors = {
                name: cumulative_errors(engine, np.full(WALKERS, 5.0), z2, binned(exact), STEPS, 14)[0] for name, z2 in starts.items()
            }
            stats = {name: mean_and_error(e) for name, e in errors.items()}
            for name, stat in stats.items():
                curves[f"h = {height:g}, {ratio} kT: {name}"] = stat
            better = bool((stats["model"][0] < stats["unseeded"][0]).all())
            gain = stats["unseeded"][0] / stats["model"][0]
            rows.append(
                Row(
                    f"variable barrier h = {height:g} = {ratio} kT: unseeded over seeded error, least of all budgets ({repeats} repeats)",
                    float(gain.min()),
                    "x",
                    None,
                    1.0 if ratio >= 4 else None,
                    better if ratio >= 4 else None,
                )
            )
            for i, n in enumerate(STEPS):
                for name in ("model", "ideal"):
                    m, s = stats[name][0][i], stats[name][1][i]
                    rows.append(
                        Row(
                            f"variable barrier h = {height:g} = {ratio} kT: L1 after {n} steps, {name} seeds",
                            float(m),
                            "",
                            float(s),
                            peer="all from one well",
                            peer_value=float(stats["unseeded"][0][i]),
                        )
                    )
            print(f"h = {height:g}, {ratio} kT: " + "; ".join(f"{k} {np.round(v[0], 3)}" for k, v in stats.items()), flush=True)
    return rows, curves


def main() -> None:
    parser = scale_parser(__doc__)
    parts = ("pdf", "steps", "exact", "labels")
    parser.add_argument("--only", choices=parts, nargs="+", help="measure some of them, and keep the rows of all others")
    arguments = parser.parse_args()
    small = arguments.scale == "small"
    measures = {
        "pdf": lambda: pdf(3 if small else 5, 200 if small else 1000),
        "steps": lambda: steps(200 if small else 1000, (2, 4, 8) if small else (2, 4, 6, 8, 10), 600 if small else 900),
        "exact": lambda: exact(200 if small else 1000, 50 if small else 100, 600 if small else 1200),
        "labels": lambda: labels(1500, 3 if small else 5),
    }
    rows: list[Row] = []
    for name in arguments.only or measures:
        began = perf_counter()
        found, curves = measures[name]()
        rows += found
        draw_curves(f"assisted_sampling_{name}", curves)
        print(f"{name}: {perf_counter() - began:.0f} s", flush=True)
    write_results("assisted_sampling", rows, scale=arguments.scale, update=arguments.only is not None)


if __name__ == "__main__":
    main()
