from dataclasses import replace

import numpy as np
import pytest
from exact_systems import KT, double_well, exact_cells, gauge, torsion, umbrella

from couloir.analysis import FreeEnergySurface, convergence, diagnose, equilibrated, free_energy_surface, wham
from couloir.analysis.diagnostics import surface_findings
from couloir.analysis.grid import Grid
from couloir.cv import Coordinate
from couloir.errors import DataError

CENTERS = np.linspace(-1.6, 1.6, 14)


@pytest.fixture(scope="module")
def samples():
    def orthogonal(rng, x, window, walker):
        return 0.5 * x + 0.2 * rng.standard_normal(len(x))

    return umbrella(double_well, CENTERS, 60 * KT, 2000, seed=1, hidden=orthogonal)


@pytest.fixture(scope="module")
def surface(samples):
    return free_energy_surface(samples, "x", bins=40, limits=(-1.5, 1.5), seed=1, equilibrate=False)


def test_surface_recovers_double_well_within_four_standard_errors(surface):
    z = (gauge(surface) - exact_cells(double_well, surface.grid[0])) / surface.standard_error
    assert np.nanmin(surface.free_energy) == 0
    assert np.abs(z).max() < 4.5
    assert 0.4 < np.sqrt(np.mean(z**2)) < 2
    assert surface.rmse(double_well) < 0.15 * KT
    assert surface.findings == ()


def test_mbar_and_wham_give_one_surface(samples, surface):
    other = free_energy_surface(samples, "x", bins=40, limits=(-1.5, 1.5), estimator="mbar", n_bootstrap=20, seed=1, equilibrate=False)
    near = surface.free_energy < 8 * KT
    assert np.abs(gauge(other) - gauge(surface))[near].max() < 0.02 * KT
    assert (np.abs(gauge(other) - gauge(surface)) < 0.25 * surface.standard_error)[near].all()


def test_surface_along_an_unbiased_cv_is_exact(samples):
    found = free_energy_surface(samples, "y", bins=30, limits=(-0.9, 0.9), seed=1)
    x = np.linspace(-3, 3, 3001)

    def exact(y):
        weight = np.exp(-double_well(x) / KT) * np.exp(-0.5 * ((np.asarray(y)[..., None] - 0.5 * x) / 0.2) ** 2)
        return -KT * np.log(weight.sum(axis=-1))

    z = (gauge(found) - exact_cells(exact, found.grid[0])) / found.standard_error
    assert np.abs(z).max() < 4.5


def test_two_dimensional_surface_has_the_right_marginal(samples, surface):
    both = free_energy_surface(samples, ("x", "y"), bins=40, limits=[(-1.5, 1.5), (-1.6, 1.6)], n_bootstrap=10)
    marginal = both.probability.sum(axis=1)
    assert np.allclose(marginal, surface.probability, atol=1e-9)
    assert both.free_energy.shape == (40, 40)
    assert both.barrier((-1.5, -0.5), (0.5, 1.5)).value > 3 * KT
    assert both.plot().get_xlabel() == "x [nm]"


def test_periodic_surface_covers_the_circle():
    windows = umbrella(torsion, np.linspace(-np.pi, np.pi, 20, endpoint=False), 30 * KT, 1000, period=2 * np.pi, seed=2)
    found = free_energy_surface(windows, "x", bins=36, seed=2)
    z = (gauge(found) - exact_cells(torsion, found.grid[0])) / found.standard_error
    assert found.grid[0][0] == pytest.approx(-np.pi + np.pi / 36)
    assert np.abs(z).max() < 4.5
    # The way from one basin to the other across the edge is the low one.
    path = found.minimum_path((2.0, 3.0), (-2.9, -1.5))
    assert not ((path > -1.4) & (path < 1.9)).any()


def test_barriers_and_differences_carry_true_errors(surface):
    difference = surface.difference((-1.5, 0.0), (0.0, 1.5))
    x = np.linspace(-1.5, 1.5, 20001)
    p = np.exp(-double_well(x) / KT)
    exact = -KT * np.log(p[x > 0].sum() / p[x < 0].sum())
    assert abs(difference.value - exact) < 4 * difference.standard_error
    assert 0.01 * KT < difference.standard_error < 0.3 * KT
    barrier = surface.barrier((-1.5, -0.5), (0.5, 1.5))
    assert abs(barrier.value - (double_well(0.0) - double_well(-1.02))) < 4 * barrier.standard_error + 0.1 * KT
    named = surface.with_basins(left=(-1.5, -0.5), right=(0.5, 1.5))
    assert named.barrier("left", "right").value == barrier.value
    with pytest.raises(DataError, match="did you mean 'left'"):
        named.barrier("lift", "right")
    assert str(barrier).endswith("kJ/mol")


def test_correlated_samples_get_larger_errors():
    one = umbrella(double_well, CENTERS, 60 * KT, 1500, seed=5)
    other = umbrella(double_well, CENTERS, 60 * KT, 1500, seed=5, correlation=0.9)
    a, b = (free_energy_surface(s, "x", bins=30, limits=(-1.4, 1.4)) for s in (one, other))
    # g = 19 for the noise behind the series, so errors grow by about its root.
    assert 2.5 < np.median(b.standard_error / a.standard_error) < 6.5


def test_walkers_that_disagree_widen_the_error():
    def stuck(rng, x, window, walker):
        return (1.0 if walker % 2 else -1.0) + 0.3 * rng.standard_normal(len(x))

    def free(rng, x, window, walker):
        return rng.choice([-1.0, 1.0], len(x)) + 0.3 * rng.standard_normal(len(x))

    errors = []
    for hidden in (stuck, free):
        windows = umbrella(double_well, CENTERS, 60 * KT, 1000, seed=6, walkers=2, hidden=hidden)
        errors.append(free_energy_surface(windows, "y", bins=20).difference((-2, 0), (0, 2)).standard_error)
    assert errors[0] > 3 * errors[1]


def test_same_seed_same_errors_and_units_scale(samples, surface):
    again = free_energy_surface(samples, "x", bins=40, limits=(-1.5, 1.5), seed=1, equilibrate=False)
    assert np.array_equal(again.replicas, surface.replicas)
    other = free_energy_surface(samples, "x", bins=40, limits=(-1.5, 1.5), seed=2)
    assert not np.array_equal(other.replicas, surface.replicas)
    assert np.allclose(surface.in_kT.free_energy * KT, surface.free_energy)
    assert surface.in_kT.barrier((-1.5, -0.5), (0.5, 1.5)).unit == "kT"


def test_surface_is_saved_and_loaded(surface, tmp_path):
    named = surface.with_basins(left=(-1.5, -0.5))
    named.save(tmp_path / "f.npz")
    back = FreeEnergySurface.load(tmp_path / "f.npz")
    assert np.array_equal(back.free_energy, named.free_energy, equal_nan=True)
    assert back.basins == {"left": (-1.5, -0.5)}
    assert str(back) == str(named)
    (tmp_path / "bad.npz").write_text("nothing")
    with pytest.raises(DataError, match="does not hold"):
        FreeEnergySurface.load(tmp_path / "bad.npz")


def test_basins_given_as_regions_survive_saving(samples, tmp_path):
    x, y = Coordinate(0, "x"), Coordinate(1, "y")
    basins = {"left": (x < -0.5) & (y < 0.5), "right": (0.5, 1.5)}
    plane = free_energy_surface(samples, ("x", "y"), bins=20, n_bootstrap=5, basins=basins, equilibrate=False)
    plane.save(tmp_path / "f.npz")
    back = FreeEnergySurface.load(tmp_path / "f.npz")
    assert list(back.basins) == ["left", "right"]
    for answer in (FreeEnergySurface.barrier, FreeEnergySurface.difference):
        assert answer(back, "left", "right") == answer(plane, "left", "right")
    with pytest.raises(DataError, match="a mask of shape"):
        back.difference(np.ones(3, dtype=bool), "right")


def test_no_basin_is_known_by_the_name_of_a_cv():
    windows = umbrella(torsion, np.linspace(-3, 3, 12), 30 * KT, 300, period=2 * np.pi, seed=2)
    assert free_energy_surface(replace(windows, names=("phi",), biases=(None,) * 12), "phi", n_bootstrap=0).basins == {}


def test_surface_is_exported(surface, tmp_path):
    surface.to_csv(tmp_path / "f.csv")
    table = np.genfromtxt(tmp_path / "f.csv", delimiter=",", names=True)
    assert np.allclose(table["free_energy"], surface.free_energy)
    surface.to_plumed_grid(tmp_path / "f.grid")
    text = (tmp_path / "f.grid").read_text()
    assert text.startswith("#! FIELDS x free_energy standard_error\n#! SET min_x -1.5\n")
    assert np.allclose(np.loadtxt(tmp_path / "f.grid")[:, 1], surface.free_energy)


def test_gaps_are_named_not_smoothed_over():
    centers = np.concatenate([np.linspace(-1.4, -0.6, 5), np.linspace(0.8, 1.4, 4)])
    found = free_energy_surface(umbrella(double_well, centers, 150 * KT, 1000, seed=7), "x", bins=60)
    assert {"disconnected-windows", "empty-bins"} <= {f.code for f in found.findings}
    assert np.isnan(found.free_energy).any()
    with pytest.raises(DataError, match="no sampled path"):
        found.barrier((-1.4, -0.6), (0.8, 1.4))


def test_windows_must_share_decorrelated_samples():
    pair = umbrella(double_well, [-1.0, -0.7], 60 * KT, 4000, seed=3)
    assert len(wham(pair).sets) == 1
    # The same rows, in an order that makes all of them one slow visit.
    order = np.concatenate([np.sort(np.flatnonzero(pair.window == k))[np.argsort(pair["x"][pair.window == k])] for k in range(2)])
    slow = replace(pair, values=pair.values[order])
    assert len(wham(slow).sets) == 2
    assert "disconnected-windows" in {f.code for f in diagnose(slow)}


def test_a_hole_in_a_plane_is_one_finding():
    grid = Grid(("x", "y"), (None, 2 * np.pi), (np.linspace(0, 1, 7), np.linspace(-np.pi, np.pi, 7)))
    free = np.zeros((6, 6))
    free[0] = np.nan
    enough = np.full((6, 6), 100.0)
    assert surface_findings(grid, free, enough, KT, ("x", "y"), ("nm", "rad")) == ()
    free[3, 0] = np.nan
    (finding,) = surface_findings(grid, free, enough, KT, ("x", "y"), ("nm", "rad"))
    assert finding.code == "empty-bins"
    assert finding.message.startswith("1 cell between sampled ones is empty, the first at x = 0.583 nm, y = -2.62 rad")
    assert finding.fix.startswith("insert a window at x = 0.583 nm, y = -2.62 rad")


def test_low_overlap_is_told_from_none():
    found = diagnose(umbrella(double_well, np.linspace(-1.5, 1.5, 9), 150 * KT, 4000, seed=8))
    assert {f.code for f in found} <= {"low-overlap", "not-equilibrated", "nothing-orthogonal-recorded"}
    assert any("insert a window at x" in f.fix for f in found if f.code == "low-overlap")


def test_few_effective_samples_are_reported():
    found = diagnose(umbrella(double_well, CENTERS, 60 * KT, 300, seed=9, correlation=0.95))
    assert "few-effective-samples" in {f.code for f in found}


def test_surface_converges_with_time(samples):
    parts = convergence(samples, "x", (0.05, 1.0), bins=30, n_bootstrap=20)
    assert parts[0].grid[0].tolist() == parts[1].grid[0].tolist()
    assert np.nanmedian(parts[0].standard_error) > 2 * np.nanmedian(parts[1].standard_error)


def test_a_drift_shows_from_the_start_and_from_the_end(samples):
    late = samples.time > 0.5 * samples.time.max()
    drifted = replace(samples, values=np.where(late[:, None], samples.values, samples.values + np.array([0.15, 0.0])))
    options = {"bins": 30, "limits": (-1.5, 1.5), "n_bootstrap": 0, "equilibrate": False}
    first, last = (convergence(drifted, "x", (0.5,), backward=backward, **options)[0] for backward in (False, True))
    assert last.rmse(double_well) < 0.3 * KT < first.rmse(double_well)


def test_the_end_of_a_short_walker_is_its_own(samples):
    short = samples.select((samples.window != 3) | (samples.time <= 500))
    (part,) = convergence(short, "x", (0.25,), backward=True, bins=30, limits=(-1.5, 1.5), n_bootstrap=0, equilibrate=False)
    assert "empty-windows" not in {f.code for f in part.findings}


def test_weights_made_before_are_used(samples, surface):
    again = free_energy_surface(samples, "x", bins=40, limits=(-1.5, 1.5), weights=wham(samples), seed=1)
    assert np.array_equal(again.replicas, surface.replicas)
    with pytest.raises(DataError, match="weights"):
        free_energy_surface(samples, "x", weights=np.ones(3))
    with pytest.raises(DataError, match="did you mean 'wham'"):
        free_energy_surface(samples, "x", estimator="wahm")
    with pytest.raises(DataError, match="was not recorded"):
        free_energy_surface(samples, "z")


def test_transients_are_left_out_unless_told_otherwise(samples):
    values = samples.values.copy()
    for k in range(samples.n_windows):
        values[np.flatnonzero(samples.window == k)[:400], 1] += np.linspace(3, 0, 400)
    drifting = replace(samples, values=values)
    options = {"bins": 20, "n_bootstrap": 0}
    cut = free_energy_surface(drifting, "y", **options)
    by_hand = free_energy_surface(equilibrated(drifting), "y", equilibrate=False, **options)
    assert cut.grid[0][-1] < 2.5 < free_energy_surface(drifting, "y", equilibrate=False, **options).grid[0][-1]
    assert np.array_equal(cut.free_energy, by_hand.free_energy, equal_nan=True)
    given = free_energy_surface(drifting, "y", weights=wham(drifting), **options)
    assert given.n_effective.sum() > 0
    assert given.grid[0][-1] > 2.5


def test_plots_draw_what_they_say(samples, surface, tmp_path):
    from couloir.analysis.plots import plot_convergence, plot_overlap, plot_windows

    ax = surface.plot()
    assert ax.get_ylabel() == "free energy [kJ/mol]"
    assert np.array_equal(ax.lines[0].get_ydata(), surface.free_energy)
    ax.figure.savefig(tmp_path / "surface.png")
    assert (tmp_path / "surface.png").stat().st_size > 2000
    assert plot_windows(samples, "x").get_xlabel() == "x [nm]"
    assert plot_overlap(wham(samples).overlap).get_xlabel() == "window"
    assert len(plot_convergence([surface, surface]).lines) == 2


def test_windows_are_advised_only_along_what_is_biased():
    grid = Grid(("x", "y"), (None, None), (np.linspace(0, 1, 7), np.linspace(0, 1, 7)))
    free = np.zeros((6, 6))
    free[3, 3] = np.nan
    (finding,) = surface_findings(grid, free, np.full((6, 6), 100.0), KT, ("x",), ("nm", "nm"))
    assert finding.fix == "run longer, or use wider bins"
