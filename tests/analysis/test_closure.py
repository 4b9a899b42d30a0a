"""Windows pair by pair and all windows together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from couloir.analysis import BiasedSamples, diagnose, free_energy_surface
from couloir.analysis.closure import bennett
from couloir.cv.bias import HarmonicBias
from couloir.trajectory import Array
from couloir.units import kt

KT = kt(300.0)
CENTERS = np.arange(12) * math.tau / 12 - math.pi + math.tau / 24
STIFFNESS = 12 * KT
GRID = np.linspace(-math.pi, math.pi, 4001)[:-1]
BARRIER = 2.0


def energy(angle: Array) -> Array:
    """Return U in kT on the circle: one broad wave, and a barrier that is sharper than the windows."""
    return np.asarray(2 * np.cos(angle) + 9 * np.exp(-0.5 * ((angle - BARRIER) / 0.12) ** 2))


def away(angle: Array, center: float) -> Array:
    return np.asarray((angle - center + math.pi) % math.tau - math.pi)


def ring(rng: np.random.Generator, n: int, beyond: float | None = None) -> BiasedSamples:
    """Return exact windows on the circle; ``beyond`` makes the one next to the barrier spend that share of its rows beyond it."""
    values = []
    for k, center in enumerate(CENTERS):
        p = np.exp(-energy(GRID) - 0.5 * STIFFNESS / KT * away(GRID, center) ** 2)
        p /= p.sum()
        if beyond is not None and k == 9:
            right = GRID > BARRIER
            p = np.where(right, beyond * p / p[right].sum(), (1 - beyond) * p / p[~right].sum())
        values.append(GRID[np.searchsorted(np.cumsum(p), rng.random(n) * p.sum()).clip(max=len(GRID) - 1)])
    which = np.repeat(np.arange(12), n)
    biases = tuple(HarmonicBias(("phi",), (float(c),), (STIFFNESS,), (math.tau,)) for c in CENTERS)
    return BiasedSamples(
        ("phi",), ("rad",), (math.tau,), np.concatenate(values)[:, None], np.full(12 * n, np.nan), which, which,
        np.tile(np.arange(1.0, n + 1), 12), biases, np.array([300.0]),
    )  # fmt: skip


def codes(samples: BiasedSamples) -> set[str]:
    return {finding.code for finding in diagnose(samples)}


@pytest.mark.parametrize("batch", range(4))
def test_windows_in_equilibrium_do_not_contradict_each_other(batch: int) -> None:
    for seed in range(5):
        assert "windows-contradict" not in codes(ring(np.random.default_rng([batch, seed]), 1000))


@pytest.mark.parametrize("seed", range(3))
def test_a_window_with_the_wrong_share_beyond_a_barrier_is_found_out(seed: int) -> None:
    samples = ring(np.random.default_rng(seed), 1000, beyond=0.9)
    (finding,) = [f for f in diagnose(samples) if f.code == "windows-contradict"]
    assert "pair by pair" in finding.message
    assert "stiffer" in finding.fix
    # It matters: the surface is off by far more than its error bars say.
    surface = free_energy_surface(samples, "phi", bins=36, n_bootstrap=30, equilibrate=False)
    off = surface.free_energy / KT - energy(surface.grid[0])
    low = energy(surface.grid[0]) < 4
    assert np.ptp(off[low]) > 0.8
    assert np.nanmedian(surface.standard_error[low]) / KT < 0.15


def test_bennett_gives_the_difference_of_two_normal_distributions_within_its_error() -> None:
    rng, score = np.random.default_rng(3), []
    wide, narrow, apart = 1.0, 0.6, 0.8  # u = x^2 / 2 and (x - apart)^2 / (2 narrow^2): f_1 - f_0 = ln(wide / narrow)
    for _ in range(400):
        x, y = rng.normal(0, wide, 300), rng.normal(apart, narrow, 150)
        forward, backward = (0.5 * ((z - apart) / narrow) ** 2 - 0.5 * z**2 for z in (x, y))
        value, error = bennett(forward, -backward)
        score.append((value - math.log(wide / narrow)) / error)
    assert abs(np.mean(score)) < 4 / math.sqrt(400)
    # The standard deviation of 400 scores has itself an error of 0.035.
    assert 0.86 < np.std(score) < 1.14


def test_bennett_of_states_far_apart_is_finite() -> None:
    value, error = bennett(np.full(5, 900.0), np.full(5, -890.0))
    assert 880 < value < 910
    assert np.isfinite(error)
