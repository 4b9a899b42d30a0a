"""Planning: overlap foreseen is overlap measured, and gaps get windows that close them."""

from __future__ import annotations

import numpy as np
import pytest

from couloir.analysis import BiasedSamples, free_energy_surface, wham
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError
from couloir.sampling.planning import AdaptedWindows, adapt_windows, gaussian_overlap, pair_overlaps, place_windows, spacing
from couloir.sampling.potentials import double_well
from couloir.sampling.toy import ToyEngine
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store
from couloir.trajectory import State

X = Coordinate(0, "x")


def _gaussians(windows: UmbrellaSampling, curvature: float, n: int, seed: int) -> BiasedSamples:
    """Independent samples of harmonic windows on F = curvature x^2 / 2 at kT = 1."""
    rng = np.random.default_rng(seed)
    k = np.array([w.force_constants[0] for w in windows.windows])
    means, widths = k * windows.centers[:, 0] / (k + curvature), 1 / np.sqrt(k + curvature)
    values = np.concatenate([m + s * rng.normal(size=n) for m, s in zip(means, widths, strict=True)])[:, None]
    window = np.repeat(np.arange(len(windows)), n)
    time = np.tile(np.arange(1.0, n + 1), len(windows))
    T = 1 / 0.00831446261815324
    return BiasedSamples(("x",), ("",), (None,), values, np.full(len(values), np.nan), window, window, time, windows.windows, np.array([T]))


def test_the_overlap_of_equal_windows_is_one_half_and_falls_with_distance() -> None:
    assert gaussian_overlap(0.0) == pytest.approx(0.5, abs=1e-9)
    assert gaussian_overlap(0.7, 2.0) == pytest.approx(gaussian_overlap(0.35, 0.5), abs=1e-6)
    for wanted in (0.4, 0.1, 0.03):
        assert gaussian_overlap(spacing(wanted)) == pytest.approx(wanted, abs=1e-9)
    with pytest.raises(DataError, match=r"overlap of 0\.6"):
        spacing(0.6)


@pytest.mark.parametrize("curvature", [0.0, 15.0, -10.0])
def test_overlap_foreseen_is_overlap_measured(curvature: float) -> None:
    k = 30.0
    d = spacing(0.1) / np.sqrt(k + curvature)
    centers = np.array([0.0, d, 2 * d]) * (k + curvature) / k
    windows = UmbrellaSampling.at(X, centers.tolist(), k)
    pairs = pair_overlaps(windows, _gaussians(windows, curvature, 4000, seed=1))
    assert [pair.windows for pair in pairs] == [(0, 1), (1, 2)]
    for pair in pairs:
        assert 0 < pair.standard_error < 0.005
        assert abs(pair.overlap - 0.1) < 4.5 * pair.standard_error


def test_windows_that_overlap_stay_as_they_are() -> None:
    windows = UmbrellaSampling.grid(X, 5, 30.0, range=(-0.8, 0.8))
    assert adapt_windows(windows, _gaussians(windows, 0.0, 500, seed=2)) is windows


@pytest.mark.parametrize("curvature", [0.0, 20.0])
def test_new_windows_on_a_parabola_overlap_as_wanted_at_once(curvature: float) -> None:
    windows = UmbrellaSampling.at(X, [-0.6, 0.6], 60.0)
    adapted = adapt_windows(windows, _gaussians(windows, curvature, 2000, seed=3), overlap=0.1)
    assert adapted.windows[:2] == windows.windows
    new = UmbrellaSampling(X, adapted.windows)
    overlaps = [pair.overlap for pair in pair_overlaps(new, _gaussians(new, curvature, 2000, seed=4))]
    assert len(overlaps) == len(adapted) - 1
    assert min(overlaps) > 0.07


def _adapt(seed: int, store: Store | None = None) -> tuple[ToyEngine, AdaptedWindows]:
    engine = ToyEngine(double_well(barrier=20.0), kT=1.0, time_step=2e-4)
    windows = UmbrellaSampling.at(X, [-1.2, -0.4, 0.4, 1.2], 200.0)
    states = {w: [State(c[None])] for w, c in enumerate(windows.centers)}
    return engine, place_windows(engine, windows, states, 10.0, seed=seed, record_stride=0.01, store=store)


def test_four_windows_that_share_nothing_become_a_set_that_gives_the_exact_surface() -> None:
    engine, placed = _adapt(seed=5)
    assert len(wham(placed.samples.select(placed.samples.window < 4)).sets) == 4
    assert 4 < len(placed.windows) < 30
    assert placed.findings == ()
    assert min(pair.overlap for pair in placed.overlaps) >= 0.05
    samples = placed.windows.run(engine, placed.seeds, 20.0, seed=6, record_stride=0.01)
    assert len(wham(samples).sets) == 1
    surface = free_energy_surface(samples, "x", bins=40, limits=(-1.2, 1.2), n_bootstrap=40)
    exact = engine.potential.exact_free_energy(surface.grid[0], kT=1.0)
    deviation = (surface.free_energy - surface.free_energy.mean()) - (exact - exact.mean())
    # Correlated cells: the root mean square of z stays below 2.2 unless bars or surface are wrong.
    assert np.sqrt(np.mean((deviation / surface.standard_error) ** 2)) < 2.2
    assert np.abs(deviation).max() < 1.0


def test_placing_windows_is_repeatable_and_resumes() -> None:
    store = Store()
    _, first = _adapt(seed=7, store=store)
    _, again = _adapt(seed=7, store=store)
    _, fresh = _adapt(seed=7)
    assert first.windows.windows == again.windows.windows == fresh.windows.windows
    np.testing.assert_array_equal(first.samples.values, fresh.samples.values)


def test_what_stays_apart_is_reported() -> None:
    engine = ToyEngine(double_well(barrier=20.0), kT=1.0, time_step=2e-4)
    windows = UmbrellaSampling.at(X, [-1.0, 1.0], 200.0)
    states = {w: [State(c[None])] for w, c in enumerate(windows.centers)}
    placed = place_windows(engine, windows, states, 2.0, seed=1, record_stride=0.01, max_rounds=1)
    assert [f.code for f in placed.findings] == ["low-overlap"]
    assert "windows 0 and 1" in str(placed)


def test_windows_along_two_cvs_are_not_placed_between_others() -> None:
    samples = _gaussians(UmbrellaSampling.at(X, [0.0], 10.0), 0.0, 10, seed=1)
    with pytest.raises(DataError, match="along x, y"):
        adapt_windows(UmbrellaSampling.at((X, Coordinate(1, "y")), [(0.0, 0.0)], 10.0), samples)
