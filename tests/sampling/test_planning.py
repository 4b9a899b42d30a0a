"""Planning: overlap foreseen is overlap measured, and gaps get windows that close them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from couloir.analysis import BiasedSamples, equilibrated, free_energy_surface, wham
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError
from couloir.sampling.planning import MOST_REPORTED, AdaptedWindows, adapt_windows, coarse_windows, place_windows
from couloir.sampling.potentials import double_well
from couloir.sampling.toy import ToyEngine
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.sampling.window_overlap import gaps, gaussian_overlap, pair_overlaps, spacing
from couloir.store import Store
from couloir.trajectory import Array, State

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


XY = (X, Coordinate(1, "y"))
PLANE = double_well(barrier=10.0, harmonic=20.0)


def _gapped() -> tuple[ToyEngine, UmbrellaSampling, dict[int, list[State]]]:
    """A grid on the plane in which no two windows share anything."""
    windows = UmbrellaSampling.grid(XY, (4, 2), 80.0, [(-1.2, 1.2), (-0.4, 0.4)])
    return ToyEngine(PLANE, kT=1.0, time_step=2e-4), windows, {w: [State(c[None])] for w, c in enumerate(windows.centers)}


def _on_plane(windows: UmbrellaSampling, hessian: Array, n: int, seed: int) -> BiasedSamples:
    """Independent samples of harmonic windows on F = x H x / 2 at kT = 1."""
    rng = np.random.default_rng(seed)
    values = []
    for window in windows.windows:
        k = np.diag(window.force_constants)
        values.append(rng.multivariate_normal(np.linalg.solve(k + hessian, k @ window.centers), np.linalg.inv(k + hessian), n))
    index, time = np.repeat(np.arange(len(windows)), n), np.tile(np.arange(1.0, n + 1), len(windows))
    return BiasedSamples(
        ("x", "y"), ("", ""), (None, None), np.concatenate(values), np.full(len(index), np.nan), index, index, time,
        windows.windows, np.array([1 / 0.00831446261815324]),
    )  # fmt: skip


def test_a_coarse_grid_overlaps_as_wanted_where_the_surface_is_flat() -> None:
    windows = coarse_windows(XY, (3, 4), 1.0, [(-1.0, 1.0), (0.0, 6.0)], overlap=0.2)
    pairs = pair_overlaps(windows, _on_plane(windows, np.zeros((2, 2)), 4000, seed=1))
    beside = {pair.windows: pair for pair in pairs if abs(np.subtract(*pair.windows)) in (1, 4)}
    assert len(beside) == 3 * 3 + 2 * 4
    assert all(abs(pair.overlap - 0.2) < 4.5 * pair.standard_error + 1e-3 for pair in beside.values())
    with pytest.raises(DataError, match="one window along y"):
        coarse_windows(XY, (3, 1), 1.0, [(-1.0, 1.0), (0.0, 6.0)])


@pytest.mark.parametrize("hessian", [np.zeros((2, 2)), np.array([[30.0, 25.0], [25.0, 40.0]]), np.array([[-15.0, 0.0], [0.0, 40.0]])])
def test_a_new_window_on_a_plane_fills_the_middle_whatever_the_slope_and_curvature(hessian: Array) -> None:
    windows = UmbrellaSampling.at(XY, [(-0.5, 0.9), (0.3, 0.9)], 50.0)
    samples = _on_plane(windows, hessian, 20_000, seed=2)
    means = np.array([samples.values[samples.window == w].mean(axis=0) for w in (0, 1)])
    adapted = adapt_windows(windows, samples)
    inserted = _on_plane(adapted, hessian, 20_000, seed=3)
    n = len(adapted) - 2
    assert n >= 1
    for w in range(n):
        wanted = means[0] + (w + 1) / (n + 1) * (means[1] - means[0])
        got = inserted.values[inserted.window == w + 2].mean(axis=0)
        assert np.linalg.norm(got - wanted) < 0.15 * np.linalg.norm(means[1] - means[0])
    assert min(pair.overlap for pair in pair_overlaps(adapted, inserted)) > 0.05


def test_diagonals_of_a_grid_are_no_gaps_but_holes_are() -> None:
    d = spacing(0.1)
    full = [(x * d, y * d) for x in range(4) for y in range(4)]
    windows = UmbrellaSampling.at(XY, full, 1.0)
    samples = _on_plane(windows, np.zeros((2, 2)), 1000, seed=4)
    pairs = pair_overlaps(windows, samples)
    assert min(pair.overlap for pair in pairs) < 0.05
    assert gaps(windows, samples, pairs) == ()
    holed = UmbrellaSampling.at(XY, [c for i, c in enumerate(full) if i not in (5, 6)], 1.0)
    adapted = adapt_windows(holed, _on_plane(holed, np.zeros((2, 2)), 1000, seed=5))
    new = adapted.centers[len(holed) :]
    # The hole of two windows is filled, and by few.
    assert 1 <= len(new) <= 6
    assert ((new > 0.5 * d) & (new < (1.5 * d, 2.5 * d))).all()


def test_three_windows_around_a_circle_leave_the_gap_behind_them_open() -> None:
    phi = Coordinate(0, "x", period=2 * np.pi)
    windows = UmbrellaSampling.at(phi, [-1.9, 0.0, 1.9], 1.5)
    samples = replace(_gaussians(windows, 0.0, 4000, seed=6), periods=(2 * np.pi,))
    pairs = pair_overlaps(windows, samples)
    assert [pair.windows for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    assert pairs[1].overlap < 0.12 < min(pairs[0].overlap, pairs[2].overlap)
    assert [pair.windows for pair in gaps(windows, samples, pairs, least=0.12)] == [(0, 2)]


def test_a_plane_with_gaps_is_filled_and_gives_the_exact_surface() -> None:
    engine, windows, states = _gapped()
    placed = place_windows(engine, windows, states, 6.0, seed=8, record_stride=0.01)
    assert placed.findings == ()
    assert 8 < len(placed.windows) < 60
    samples = equilibrated(placed.windows.run(engine, placed.seeds, 10.0, seed=9, record_stride=0.02, exchange=False))
    assert len(wham(samples).sets) == 1
    pairs = pair_overlaps(placed.windows, samples)
    assert gaps(placed.windows, samples, pairs) == ()
    surface = free_energy_surface(samples, ("x", "y"), bins=16, limits=[(-1.2, 1.2), (-0.4, 0.4)], n_bootstrap=30, equilibrate=False)
    # Cells are wide on this scale, so the exact surface is averaged over each.
    fine = [(x[:, None] + (x[1] - x[0]) * (np.arange(8) - 3.5) / 8).ravel() for x in surface.grid]
    weight = np.exp(-PLANE.exact_free_energy(fine, along=("x", "y"), kT=1.0))
    exact = -np.log(weight.reshape(16, 8, 16, 8).mean(axis=(1, 3)))
    deviation = surface.free_energy - exact
    deviation -= deviation.mean()
    assert np.isfinite(deviation).all()
    assert np.sqrt(np.mean((deviation / surface.standard_error) ** 2)) < 2.2
    assert np.abs(deviation).max() < 1.0


def test_no_more_windows_than_allowed_are_placed_and_the_gaps_that_stay_are_named() -> None:
    engine, windows, states = _gapped()
    placed = place_windows(engine, windows, states, 1.0, seed=1, record_stride=0.01, max_windows=12)
    assert len(placed.windows) == 12
    codes = [finding.code for finding in placed.findings]
    assert codes[-1] == "window-limit"
    assert 1 < len(codes) <= MOST_REPORTED + 2
    first = placed.findings[0].message
    a, b = min(placed.overlaps, key=lambda pair: pair.overlap).windows
    assert f"windows {a} and {b}: overlap" in first
    assert f"between windows {a} and {b}" in placed.findings[-1].message


def test_rows_no_window_can_climb_to_do_not_draw_windows_for_ever() -> None:
    engine = ToyEngine(double_well(barrier=10.0, harmonic=400.0), kT=1.0, time_step=1e-4)
    windows = UmbrellaSampling.grid(XY, (3, 3), 20.0, [(-1.2, 1.2), (-4.0, 4.0)])
    states = {w: [State(c[None])] for w, c in enumerate(windows.centers)}
    placed = place_windows(engine, windows, states, 2.0, seed=2, record_stride=0.01)
    assert placed.n_rounds <= 8
    assert len(placed.windows) <= 90
