"""Allocation: time goes where the error comes from."""

from __future__ import annotations

import numpy as np
import pytest

from couloir.analysis import BiasedSamples, free_energy_surface
from couloir.analysis.allocation import _evenly, _fill, _Response, allocate
from couloir.cv import HarmonicBias
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError

X = Coordinate(0, "x")
K, CENTERS = 20.0, np.linspace(-0.9, 0.9, 5)
SLOW = 1
LIMITS = (-1.0, 1.0)


def _series(n: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """A stationary Gaussian series of unit variance whose correlation falls by ``memory`` a row."""
    from scipy.signal import lfilter

    noise = rng.normal(size=n) * np.sqrt(1 - memory**2)
    first = rng.normal()
    return lfilter([1.0], [1.0, -memory], noise, zi=[memory * first])[0]


def _samples(n_rows: np.ndarray, seed: int) -> BiasedSamples:
    """Windows on a flat surface at kT = 1; window SLOW forgets 100 times more slowly than the others."""
    rng = np.random.default_rng(seed)
    parts = [
        c + _series(int(n), 0.98 if w == SLOW else 0.0, rng) / np.sqrt(K) for w, (c, n) in enumerate(zip(CENTERS, n_rows, strict=True))
    ]
    values = np.concatenate(parts)[:, None]
    window = np.repeat(np.arange(len(CENTERS)), n_rows.astype(int))
    time = np.concatenate([np.arange(1.0, int(n) + 1) for n in n_rows])
    biases = tuple(HarmonicBias.on(X, float(c), K) for c in CENTERS)
    T = 1 / 0.00831446261815324
    return BiasedSamples(("x",), ("",), (None,), values, np.full(len(values), np.nan), window, window, time, biases, np.array([T]))


def test_time_goes_to_the_window_that_the_error_comes_from() -> None:
    samples = _samples(np.full(5, 2000), seed=1)
    plan = allocate(samples, "8000 ps", "x", bins=20, limits=LIMITS)
    assert plan.extra.sum() == pytest.approx(8000.0)
    assert plan.extra.min() >= 0
    assert np.argmax(plan.extra) == SLOW
    assert plan.extra[SLOW] > 0.7 * 8000
    assert plan.expected < plan.uniform < plan.error
    np.testing.assert_allclose(plan.spent, 2000.0)
    assert "most: window 1" in str(plan)


def test_the_largest_error_is_brought_down_further_when_it_is_the_aim() -> None:
    samples = _samples(np.full(5, 2000), seed=1)
    plans = {aim: allocate(samples, 4000.0, "x", aim=aim, bins=20, limits=LIMITS) for aim in ("mean", "largest")}
    response = _Response(samples, "x", 20, LIMITS)
    worst = {aim: float(response.variances(1 + plan.extra / plan.spent).sum(axis=0).max()) for aim, plan in plans.items()}
    assert plans["largest"].expected == pytest.approx(np.sqrt(worst["largest"]))
    assert worst["largest"] <= worst["mean"]
    assert plans["largest"].expected < plans["largest"].uniform


def test_a_share_of_the_time_is_spread_evenly_when_asked() -> None:
    samples = _samples(np.full(5, 2000), seed=1)
    plan = allocate(samples, 4000.0, "x", least=0.5, bins=20, limits=LIMITS)
    assert plan.extra.sum() == pytest.approx(4000.0)
    assert plan.extra.min() >= 0.5 * 4000 / 5 - 1e-9
    assert np.argmax(plan.extra) == SLOW


def test_contributions_add_up_to_the_bootstrap_variance() -> None:
    samples = _samples(np.full(5, 4000), seed=2)
    surface = free_energy_surface(samples, "x", bins=20, limits=LIMITS, n_bootstrap=200, equilibrate=False)
    draws = surface.replicas + np.log(np.exp(-surface.replicas).sum(axis=1, keepdims=True))
    variance = _Response(samples, "x", 20, LIMITS).variances(np.ones(5)).mean(axis=1)
    # 200 replicas dominated by a few modes of the slow window: each variance is good to 10 %, the mean to at least that.
    assert variance.sum() == pytest.approx(draws.var(axis=0, ddof=1).mean(), rel=0.3)


def test_equal_windows_with_unequal_time_are_levelled() -> None:
    extra = _fill(np.ones(3), np.array([1.0, 2.0, 6.0]), 4.0, np.full(3, np.inf))
    np.testing.assert_allclose(extra, [2.5, 1.5, 0.0])
    np.testing.assert_allclose(_fill(np.array([4.0, 1.0]), np.array([1.0, 1.0]), 4.0, np.full(2, np.inf)), [3.0, 1.0])


def test_no_window_gets_more_than_its_limit() -> None:
    rate, spent = np.array([100.0, 4.0, 1.0]), np.ones(3)
    np.testing.assert_allclose(_fill(rate, spent, 4.0, np.full(3, 2.0)), [2.0, 5 / 3, 1 / 3])
    np.testing.assert_allclose(_fill(rate, spent, 9.0, np.full(3, 2.0)), [2.0, 2.0, 2.0])
    np.testing.assert_allclose(_evenly(6.0, np.array([1.0, 9.0, 9.0])), [1.0, 2.5, 2.5])
    np.testing.assert_allclose(_evenly(6.0, np.array([1.0, 1.0, 9.0])), [1.0, 1.0, 4.0])
    np.testing.assert_allclose(_evenly(60.0, np.array([1.0, 1.0, 9.0])), [1.0, 1.0, 9.0])
    np.testing.assert_allclose(_evenly(6.0, np.full(3, np.inf)), 2.0)
    samples = _samples(np.full(5, 2000), seed=1)
    plan = allocate(samples, 8000.0, "x", least=0.25, most=2000.0, bins=20, limits=LIMITS)
    assert plan.extra.sum() == pytest.approx(8000.0)
    assert plan.extra.max() <= 2000 + 1e-6
    assert plan.extra[SLOW] == pytest.approx(2000.0)
    tight = allocate(samples, 8000.0, "x", least=0.25, most=[10.0, 20.0, 30.0, 40.0, 50.0], bins=20, limits=LIMITS)
    np.testing.assert_allclose(tight.extra, [10.0, 20.0, 30.0, 40.0, 50.0])


def test_what_time_cannot_cure_is_refused() -> None:
    samples = _samples(np.full(5, 200), seed=3)
    with pytest.raises(DataError, match="not positive"):
        allocate(samples, 0.0, "x")
    with pytest.raises(DataError, match="window 2 has no samples"):
        allocate(samples.select(samples.window != 2), 10.0, "x")
    far = samples.select(np.isin(samples.window, [0, 4]))
    pair = BiasedSamples(
        far.names, far.units, far.periods, far.values, far.potential, (far.window > 0).astype(int), far.walker, far.time,
        (HarmonicBias.on(X, -0.9, 500.0), HarmonicBias.on(X, 0.9, 500.0)), far.temperatures[:1],
    )  # fmt: skip
    with pytest.raises(DataError, match="share no samples"):
        allocate(pair, 10.0, "x")
