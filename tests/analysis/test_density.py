import numpy as np
import pytest
from exact_systems import KT, double_well, exact_cells, gauge, torsion, umbrella

from couloir.analysis import BiasedSamples, free_energy_surface
from couloir.analysis.density import botev_bandwidth
from couloir.analysis.grid import Grid
from couloir.analysis.spline import bspline_basis, fit_spline
from couloir.errors import DataError

CIRCLE = 2 * np.pi


def unbiased(x, *, period=None, **more):
    values = np.column_stack([x, *more.values()])
    n, m = len(values), values.shape[1]
    return BiasedSamples(
        names=("x", *more), units=("nm",) * m, periods=(period,) + (None,) * (m - 1), values=values, potential=np.full(n, np.nan),
        window=np.zeros(n, int), walker=np.zeros(n, int), time=np.arange(n) + 1.0, biases=(None,), temperatures=np.array([300.0]),
    )  # fmt: skip


def smoothed(potential, centers, h, period=None):
    """Exact -kT ln p of cells after convolution of the density with a Gaussian of width ``h``, kJ/mol."""
    z = np.linspace(-6, 6, 241)
    weight = np.exp(-0.5 * z**2)
    width = centers[1] - centers[0]
    fine = ((np.arange(21) + 0.5) / 21 - 0.5) * width
    p = (np.exp(-potential((centers[:, None] + fine)[..., None] + h * z) / KT) * weight).sum(-1).mean(1)
    return -KT * np.log(p / p.sum())


@pytest.fixture(scope="module")
def windows():
    return umbrella(double_well, np.linspace(-1.6, 1.6, 14), 60 * KT, 2000, seed=11)


@pytest.fixture(scope="module")
def circle():
    return umbrella(torsion, np.linspace(-np.pi, np.pi, 20, endpoint=False), 30 * KT, 1000, period=CIRCLE, seed=12)


def test_kernel_density_is_exact_but_for_its_smoothing(windows):
    h = 0.06
    found = free_energy_surface(windows, "x", bins=40, limits=(-1.5, 1.5), method="kde", bandwidth=h, seed=1, equilibrate=False)
    centers = found.grid[0]
    bias = smoothed(double_well, centers, h) - exact_cells(double_well, centers)
    error = gauge(found) - exact_cells(double_well, centers)
    assert (np.abs(error) < 4.5 * found.standard_error + np.abs(bias)).all()
    # Windows are flatter than the flanks at the ends, where smoothing the unbiased density would cost over 1 kT.
    steep = np.abs(centers) > 1.3
    assert np.abs(bias[steep]).max() > KT
    assert np.abs(error[steep]).max() < 0.5 * np.abs(bias[steep]).max()
    assert found.estimator == "wham, kde, bandwidth 0.06"


def test_spline_recovers_the_double_well_within_its_errors(windows):
    found = free_energy_surface(windows, "x", bins=40, limits=(-1.5, 1.5), method="spline", knots=14, seed=1, equilibrate=False)
    z = (gauge(found) - exact_cells(double_well, found.grid[0])) / found.standard_error
    assert np.abs(z).max() < 4.5
    assert 0.3 < np.sqrt(np.mean(z**2)) < 2
    assert np.abs(gauge(found) - exact_cells(double_well, found.grid[0])).max() < 0.5 * KT


@pytest.mark.parametrize("method", ["kde", "spline"])
def test_a_circle_has_no_seam(circle, method):
    found = free_energy_surface(circle, "x", bins=36, method=method, seed=2, equilibrate=False)
    error = gauge(found) - exact_cells(torsion, found.grid[0])
    assert np.abs(error / found.standard_error).max() < 5.5
    # The step over the edge is as exact as any other.
    step = error[0] - error[-1]
    spread = np.std(found.replicas[:, 0] - found.replicas[:, -1])
    assert abs(step) < 4.5 * spread + 0.02 * KT


def test_kernels_wrap_around_the_circle():
    x = np.random.default_rng(0).uniform(-np.pi, np.pi, 4000)
    rows = [unbiased((x + shift + np.pi) % CIRCLE - np.pi, period=CIRCLE) for shift in (0.0, CIRCLE / 4)]
    one, other = (free_energy_surface(r, "x", bins=40, method="kde", bandwidth=0.4, n_bootstrap=0).probability for r in rows)
    assert np.allclose(np.roll(one, 10), other, rtol=2e-3)


@pytest.mark.parametrize("method", ["kde", "spline"])
def test_a_reflecting_boundary_shows_no_dip(method):
    x = np.random.default_rng(3).uniform(0.0, 1.0, 20_000)
    found = free_energy_surface(unbiased(x), "x", bins=50, method=method, seed=3)
    z = (gauge(found) - KT * np.log(50)) / found.standard_error
    assert np.abs(z[[0, 1, -2, -1]]).max() < 4.5
    # Half of a kernel at the end would be lost without reflection: 0.69 kT.
    assert np.abs(gauge(found) - KT * np.log(50))[[0, -1]].max() < 0.2 * KT


def test_samples_beyond_given_limits_reach_into_the_grid():
    x = np.random.default_rng(4).standard_normal(20_000)
    found = free_energy_surface(unbiased(x), "x", bins=20, limits=(0.5, 1.5), method="kde", bandwidth=0.1, seed=4)
    exact = smoothed(lambda y: 0.5 * KT * y**2, found.grid[0], 0.1)
    assert np.abs((gauge(found) - exact) / found.standard_error).max() < 4.5
    # Reflected at 0.5 instead, the slope there would be flat.
    assert gauge(found)[1] - gauge(found)[0] > 0.5 * (exact[1] - exact[0])


def test_cells_far_from_any_sample_stay_unknown():
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(-1, 0.05, 2000), rng.normal(1, 0.05, 2000)])
    found = free_energy_surface(unbiased(x), "x", bins=60, method="kde", bandwidth=0.05, n_bootstrap=0, equilibrate=False)
    gap = np.abs(found.grid[0]) < 0.5
    assert np.isnan(found.free_energy[gap]).all()
    assert np.isfinite(found.free_energy[np.abs(np.abs(found.grid[0]) - 1) < 0.1]).all()
    assert any(f.code == "empty-bins" for f in found.findings)


def test_two_dimensional_kernels_recover_a_gaussian():
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((2, 5000))
    options = {"bins": 16, "limits": [(-2, 2), (-1, 1)], "method": "kde", "bandwidth": (0.25, 0.125), "n_bootstrap": 40, "seed": 6}
    found = free_energy_surface(unbiased(x, y=0.5 * y), ("x", "y"), **options)
    one = smoothed(lambda u: 0.5 * KT * u**2, found.grid[0], 0.25)
    exact = one[:, None] + one
    z = (gauge(found) - exact) / found.standard_error
    assert np.abs(z).max() < 5
    default = free_energy_surface(unbiased(x, y=0.5 * y), ("x", "y"), bins=16, method="kde", n_bootstrap=0)
    assert default.rmse(lambda u, v: 0.5 * KT * (u**2 + 4 * v**2), below=3.0) < 0.2 * KT


def test_the_bandwidth_of_a_normal_density_is_the_optimal_one():
    x = np.random.default_rng(7).standard_normal(10_000)
    best = (4 / 3) ** 0.2 * 10_000**-0.2
    assert botev_bandwidth(x, np.ones(10_000), 10_000) == pytest.approx(best, rel=0.15)
    assert botev_bandwidth(x, np.ones(10_000), 10_000, period=20.0) == pytest.approx(best, rel=0.15)
    # Two far modes are as narrow as one; Silverman's rule would smear them.
    two = np.concatenate([x[:5000] - 20, x[5000:] + 20])
    assert botev_bandwidth(two, np.ones(10_000), 10_000) < 1.3 * best
    # Correlated rows are worth fewer, and get a wider kernel.
    assert botev_bandwidth(x, np.ones(10_000), 100) > 1.5 * best


def test_the_spline_predicts_new_rows_better_than_the_histogram():
    rng = np.random.default_rng(8)
    train, test = rng.standard_normal((2, 1500))
    rows, new = unbiased(np.clip(train, -3, 3)), unbiased(np.clip(test, -3, 3))
    score = {}
    for method in ("histogram", "spline"):
        found = free_energy_surface(rows, "x", bins=60, limits=(-3, 3), method=method, n_bootstrap=0)
        cell = Grid.over(rows, ("x",), 60, (-3, 3)).cells(new)
        score[method] = np.log(np.maximum(found.probability, 1e-6)[cell]).sum()
    assert score["spline"] > score["histogram"]


def test_spline_moments_are_those_of_the_samples():
    # The gradient of the likelihood vanishes: every B-spline has the sampled mean.
    x = np.linspace(-1, 1, 801)[:-1] + 1 / 800
    mass = np.random.default_rng(9).dirichlet(np.full(800, 5.0))
    fit = fit_spline(x, mass, np.ones(800), 4000, low=-1, high=1, knots=10)
    assert np.allclose(fit.basis.T @ fit.refit(mass), fit.basis.T @ mass, atol=1e-6)
    assert np.allclose(bspline_basis(x, 10, -1, 1, True).sum(axis=1), 1)
    more = fit_spline(x, mass, np.ones(800), 4000, low=-1, high=1, knots=20)
    assert more.loss < fit.loss


def test_wrong_options_are_named(windows):
    for options, text in (
        ({"method": "kd"}, "did you mean 'kde'"),
        ({"bandwidth": 0.1}, "takes no bandwidth"),
        ({"method": "kde", "knots": 8}, "takes no knots"),
        ({"method": "kde", "bandwidth": -1.0}, "one positive number"),
        ({"method": "spline", "knots": 2}, "between 4 and"),
    ):
        with pytest.raises(DataError, match=text):
            free_energy_surface(windows, "x", n_bootstrap=0, **options)
