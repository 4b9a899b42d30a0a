"""The toy engine samples exactly what it says: moments and histograms within their standard errors."""

import numpy as np
import pytest
from scipy import stats

from couloir.cv import FlatBottom, HarmonicBias, LinearCombination
from couloir.sampling import potentials, toy_kernels
from couloir.sampling.toy import ToyEngine

pytestmark = pytest.mark.statistical
SIGMA = 4.5  # two-sided failure probability 7e-6


def frames(toy, start, n_walkers=64, duration=400.0, stride=0.5, discard=0.1, seed=1, **options):
    trajectories = toy.propagate([toy.state(*start)] * n_walkers, duration=duration, stride=stride, seed=seed, **options)
    x = np.stack([t.positions[:, 0] for t in trajectories])
    return x[:, int(discard * x.shape[1]) :]


def agrees(per_walker_values, exact, allowance=0.0, sigma=SIGMA):
    means = per_walker_values.mean(axis=1)
    error = means.std(ddof=1) / np.sqrt(len(means))
    assert abs(means.mean() - exact) < sigma * error + allowance, (means.mean(), exact, error)


def test_normal_numbers_are_normal_and_streams_are_independent():
    states = np.zeros((2, 4), dtype=np.uint64)
    for i in range(2):
        toy_kernels.seed_state(np.uint64(i + 1), states[i])
    draws = np.empty((2, 2_000_000))
    toy_kernels.normals(states, draws)
    assert stats.kstest(draws[0], "norm").pvalue > 1e-5
    # each moment's standard error from the variance of the power of a normal number
    for power, variance in ((1, 1), (2, 2), (3, 15), (4, 96)):
        exact = {1: 0, 2: 1, 3: 0, 4: 3}[power]
        assert abs((draws[0] ** power).mean() - exact) < SIGMA * np.sqrt(variance / 2e6)
    far = (np.abs(draws) > 3.7).sum()  # beyond the ziggurat's base: the tail algorithm
    assert abs(far - 4e6 * 2 * stats.norm.sf(3.7)) < SIGMA * np.sqrt(4e6 * 2 * stats.norm.sf(3.7))
    assert abs((draws[0] * draws[1]).mean()) < SIGMA / np.sqrt(2e6)
    assert abs((draws[0, 1:] * draws[0, :-1]).mean()) < SIGMA / np.sqrt(2e6)


@pytest.mark.parametrize("friction", [None, 2.0])
def test_a_double_well_has_its_exact_moments_and_histogram(friction):
    potential = potentials.double_well(1.5, harmonic=3.0)
    toy = ToyEngine(potential, kT=1.0, time_step=0.0005 if friction is None else 0.01, friction=friction)
    x = frames(toy, (1.0, 0.0))
    agrees(x[..., 0] ** 2, potential.exact_mean(lambda p: p[:, 0] ** 2), allowance=1e-3)
    agrees(x[..., 0], 0.0)
    agrees(x[..., 1] ** 2, 1 / 3, allowance=1e-3)
    edges = np.linspace(-1.6, 1.6, 9)
    fine = np.linspace(-1.6, 1.6, 8 * 200 + 1)
    density = potential.exact_density(fine, 0)
    expected = np.array([np.trapezoid(density[i * 200 : (i + 1) * 200 + 1], fine[i * 200 : (i + 1) * 200 + 1]) for i in range(8)])
    counts = np.stack([np.histogram(walker, edges)[0] / len(walker) for walker in x[..., 0]])
    # walkers are independent, so the covariance of their histograms gives chi^2 without estimating correlation times
    difference = counts.mean(axis=0) - expected
    chi2 = difference @ np.linalg.solve(np.cov(counts.T) / len(counts), difference)
    n, d = len(counts), len(difference)
    assert stats.f.sf(chi2 * (n - d) / (d * (n - 1)), d, n - d) > 1e-4


@pytest.mark.parametrize("time_step", [0.1, 0.5])
def test_baoab_is_exact_in_positions_for_a_harmonic_oscillator_at_any_step(time_step):
    toy = ToyEngine(potentials.harmonic((2.0,)), kT=0.8, time_step=time_step, friction=1.0, masses=1.5)
    x = frames(toy, (0.0,), duration=20000 * time_step, stride=10 * time_step)
    agrees(x[..., 0] ** 2, 0.4)


def test_a_biased_window_has_its_exact_mean():
    potential = potentials.double_well(2.0)
    (cv,) = potential.cvs()
    toy = ToyEngine(potential, kT=1.0, time_step=0.0005)
    x = frames(toy, (0.3,), record=[cv], bias=HarmonicBias.on(cv, 0.3, 20.0), duration=100.0, stride=0.2)
    grid = np.linspace(-3, 3, 20001)
    weight = np.exp(-(2 * grid**4 - 4 * grid**2) - 10 * (grid - 0.3) ** 2)
    agrees(x[..., 0], (grid @ weight) / weight.sum(), allowance=1e-3)


@pytest.mark.parametrize("kind", ["harmonic", "flat", "two"])
def test_a_window_along_a_combination_of_coordinates_has_its_exact_mean_and_variance(kind):
    potential, kT = potentials.mueller_brown(), 15.0
    x_cv, y_cv = potential.cvs()
    s = LinearCombination((x_cv, y_cv), (1.0, -1.0), "s")
    bias = {
        "harmonic": HarmonicBias.on(s, -1.3, 1500.0),
        "flat": FlatBottom.on(s, -1.3, 0.1, 3000.0),
        "two": HarmonicBias.on([s, y_cv], [-1.3, 0.9], [1500.0, 300.0]),
    }[kind]
    columns = [0, 2] if kind == "two" else [0]

    def values(p):
        return np.stack([p[..., 0] - p[..., 1], p[..., 0], p[..., 1]], axis=-1)

    def exact(function):
        def weight(p):
            return np.exp(-bias.energy(values(p)[:, columns]) / kT)

        return potential.exact_mean(lambda p: function(p) * weight(p), kT) / potential.exact_mean(weight, kT)

    toy = ToyEngine(potential, kT=kT, time_step=0.002, friction=20.0)
    p = frames(toy, (-0.6, 0.7), n_walkers=256, record=[s, y_cv], bias=bias, duration=60.0, stride=0.1)
    for k in range(3):  # s, and x and y apart
        mean = exact(lambda q, k=k: values(q)[:, k])
        variance = exact(lambda q, k=k, mean=mean: (values(q)[:, k] - mean) ** 2)
        agrees(values(p)[..., k], mean, sigma=4.0)
        agrees((values(p)[..., k] - mean) ** 2, variance, sigma=4.0)


def test_time_scales_per_coordinate_leave_equilibrium_alone_and_set_the_relaxation():
    toy = ToyEngine(potentials.harmonic((1.0, 1.0)), kT=1.0, time_step=0.01, mobility=(1.0, 0.1))
    x = frames(toy, (0.0, 0.0), duration=2000.0, stride=1.0)
    for i, rate in enumerate((1.0, 0.1)):
        agrees(x[..., i] ** 2, 1 / (1 - 0.005 * rate))  # Euler-Maruyama: <x^2> = kT/k / (1 - mobility k dt / 2)
        lagged = x[:, 1:, i] * x[:, :-1, i]
        agrees(lagged, (1 - 0.01 * rate) ** 100 / (1 - 0.005 * rate))


@pytest.mark.parametrize("friction", [None, 50.0])
def test_noise_and_drift_given_per_coordinate_mean_what_they_say(friction):
    flat = potentials.harmonic((1e-12, 1e-12))
    toy = ToyEngine(flat, kT=1.0, time_step=0.01, friction=friction, noise=(0.5, 0.1), drift=(0.2, 0.0), driven=(0, 1))
    last = np.stack([t.last.positions[0] for t in toy.propagate([toy.state(0, 0)] * 4000, duration=50.0, seed=3)])
    # a diffusing coordinate after 50 ps; the memory of velocity, 1/friction = 0.02 ps, is below the allowance
    for i, (drift, noise) in enumerate(((0.2, 0.5), (0.0, 0.1))):
        spread = noise * np.sqrt(50.0)
        assert abs(last[:, i].mean() - 50 * drift) < SIGMA * spread / np.sqrt(4000) + 0.02
        assert abs(last[:, i].var() / spread**2 - 1) < SIGMA * np.sqrt(2 / 4000) + 0.002


def test_a_window_in_the_wrong_mode_of_the_hidden_barrier_stays_there():
    potential = potentials.hidden_barrier()
    x_cv, _ = potential.cvs()
    toy = ToyEngine(potential, kT=1.0, time_step=2e-3)
    wrong = frames(toy, (1.2, -1.0), record=[x_cv], bias=HarmonicBias.on(x_cv, 1.2, 50.0), duration=20.0, stride=0.1, n_walkers=32)
    assert (wrong[..., 1] < 0).mean() > 0.9  # the exact share of y < 0 there is below 1 %
    y = np.linspace(-2, 2, 401)
    weight = np.exp(-potential.energy(np.stack([np.full_like(y, 1.2), y], axis=1)))
    assert weight[y < 0].sum() / weight.sum() < 0.01
