"""Data, trainings and runs that the benchmarks of model-assisted sampling share."""

from __future__ import annotations

from functools import cache

import numpy as np

from benchmarks.assisted.fast_slow import Z1, Z2, driven, histogram, l1
from couloir.cv.bias import HarmonicBias
from couloir.generative import ConditionalSGM, Vector
from couloir.generative.conditional_sgm import FittedConditionalSGM
from couloir.generative.training import TrainingPlan
from couloir.sampling import ToyEngine
from couloir.sampling.potentials import ToyPotential
from couloir.streams import integer_seed
from couloir.trajectory import Array

WALKERS = 10
Curves = dict[str, tuple[Array, Array]]


@cache
def long_run(potential: ToyPotential, kT: float, time_step: float, seed: int) -> Array:
    """Return 100,000 structures (n, 1, 2) of one unbiased run of 1e5 units of time, in which z1 goes from 0 to 10."""
    engine = driven(potential, kT, time_step)
    return np.asarray(engine.propagate(engine.state(0.0, -1.0), duration=1e5, stride=1.0, record=None, seed=seed)[0].positions)


def thinned_runs(potential: ToyPotential, kT: float, time_step: float, seed: int, n_runs: int = 100, n: int = 10_000) -> Array:
    """Return n structures (n, 1, 2) of several runs like :func:`long_run`, so far apart that wells follow one another almost at random.

    Twenty runs would have structures 200 units of time apart, which over the higher barrier mostly are in the same well as the one before:
    10,000 of them know the weights of the wells no better than far fewer independent ones, and no model can know them better.
    """
    engine = driven(potential, kT, time_step)
    starts = [engine.state(0.0, (-1.0) ** i) for i in range(n_runs)]
    seeds = [integer_seed(seed, "thinned", i) for i in range(n_runs)]
    runs = engine.propagate(starts, duration=1e5, stride=1e5 * n_runs / n, record=None, seed=seeds)
    return np.concatenate([run.positions for run in runs])


def fit(data: Array, seed: int, weights: Array | None = None, steps: int = 1200) -> FittedConditionalSGM:
    """Train the model of z2 given z1; a two-dimensional system needs no more than a small network."""
    plan = TrainingPlan(steps=steps, evaluations=4, held_out_rows=5000, patience=None)
    model: FittedConditionalSGM = ConditionalSGM(Vector(), label=Z1, width=64, depth=2).fit(data, seed=seed, plan=plan, weights=weights)
    return model


def cumulative_errors(
    engine: ToyEngine, centers: Array, z2: Array, exact: Array, budgets: tuple[int, ...], seed: int
) -> tuple[Array, Array]:
    """Run every walker in its window and return what pooling gives after each budget.

    Parameters
    ----------
    centers : (n_walkers,) windows along z1; every walker starts at its centre.
    z2 : (n_repeats, n_walkers) where they start.
    exact : (n_bins,) what the pooled rows should look like.

    Returns
    -------
    errors : (n_budgets, n_repeats) L1 distances.
    shares : (n_budgets, n_repeats) of rows with z2 > 0.
    """
    repeats, n = z2.shape
    starts = [engine.state(float(c), float(y)) for row in z2 for c, y in zip(centers, row, strict=True)]
    windows = [HarmonicBias.on(Z1, float(c), 1.0) for c in centers] * repeats
    done = engine.propagate(
        starts, duration=max(budgets) * engine.time_step, bias=windows, record=(Z1, Z2), record_stride=10 * engine.time_step,
        seed=[integer_seed(seed, i) for i in range(len(starts))],
    )  # fmt: skip
    values = np.array([walker.series["z2"] for walker in done]).reshape(repeats, n, -1)
    errors, shares = [], []
    for budget in budgets:
        rows = values[:, :, : budget // 10].reshape(repeats, -1)
        errors.append(l1(histogram(rows), exact))
        shares.append((rows > 0).mean(axis=1))
    return np.array(errors), np.array(shares)


def mean_and_error(values: Array) -> tuple[Array, Array]:
    """Return means and standard errors over the last axis."""
    return values.mean(axis=-1), values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])
