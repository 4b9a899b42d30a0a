from itertools import pairwise

import numpy as np
import pytest
from exact_systems import KT, double_well, torsion, umbrella

from couloir.analysis import BiasedSamples, expectation, mbar, wham
from couloir.errors import DataError
from couloir.units import kt

X = np.linspace(-3, 3, 20_001)
P = np.exp(-double_well(X) / KT)
CIRCLE = 2 * np.pi


@pytest.fixture(scope="module")
def windows():
    def orthogonal(rng, x, window, walker):
        return 0.5 * x + 0.2 * rng.standard_normal(len(x))

    return umbrella(double_well, np.linspace(-1.6, 1.6, 14), 60 * KT, 1500, seed=21, hidden=orthogonal)


def harmonic_well(temperatures, n, *, k=500.0, seed=0, energies=True):
    rng = np.random.default_rng(seed)
    x = np.concatenate([np.sqrt(kt(t) / k) * rng.standard_normal(n) for t in temperatures])
    window = np.repeat(np.arange(len(temperatures)), n)
    potential = 0.5 * k * x**2 if energies else np.full(len(x), np.nan)
    return BiasedSamples(
        names=("x",), units=("nm",), periods=(None,), values=x[:, None], potential=potential, window=window, walker=window,
        time=np.tile(np.arange(1.0, n + 1), len(temperatures)), biases=(None,) * len(temperatures), temperatures=np.array(temperatures),
    )  # fmt: skip


def deviations(found, exact):
    return (found.value - exact) / found.standard_error


def test_moments_of_the_double_well_are_exact(windows):
    for power, observable in ((1, "x"), (2, lambda row: row["x"] ** 2), (4, windows["x"] ** 4)):
        found = expectation(windows, observable, seed=1)
        exact = (P @ X**power) / P.sum()
        assert abs(deviations(found, exact)) < 5
        assert 0 < found.standard_error < 0.1
        assert found.findings == ()


def test_an_unbiased_cv_has_the_right_mean(windows):
    found = expectation(windows, "y", seed=1)
    assert abs(deviations(found, 0.5 * (P @ X) / P.sum())) < 5
    assert found.unit == "nm"
    assert str(found).endswith("nm")


def test_mbar_and_given_weights_agree_with_wham(windows):
    found = expectation(windows, "x", n_bootstrap=20, equilibrate=False)
    other = expectation(windows, "x", estimator="mbar", n_bootstrap=0, equilibrate=False)
    assert abs(found.value - other.value) < 0.2 * found.standard_error
    assert expectation(windows, "x", weights=mbar(windows), n_bootstrap=0).value == other.value
    weights = wham(windows).weights
    fixed = expectation(windows, "x", weights=weights, n_bootstrap=50)
    assert fixed.value == pytest.approx(weights @ windows["x"])
    # Without the windows' offsets the error is smaller than the true one.
    assert 0 < fixed.standard_error < found.standard_error


def test_conditional_means_follow_the_cv(windows):
    found = expectation(windows, "y", along="x", bins=20, limits=(-1.5, 1.5), seed=2)
    edges = np.linspace(-1.5, 1.5, 21)
    inside = [(low <= X) & (high > X) for low, high in pairwise(edges)]
    exact = np.array([0.5 * (P[i] @ X[i]) / P[i].sum() for i in inside])
    z = deviations(found, exact)
    assert np.abs(z).max() < 4.5
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.7
    assert found.value.shape == found.standard_error.shape == found.n_effective.shape == found.grid.shape == (20,)


def test_a_periodic_observable_has_a_mean_direction():
    centers = np.linspace(-np.pi, np.pi, 20, endpoint=False)
    samples = umbrella(torsion, centers, 30 * KT, 1000, period=CIRCLE, seed=23)
    x = np.linspace(-np.pi, np.pi, 20_001)[:-1]
    p = np.exp(-torsion(x) / KT)
    exact = np.angle((p * np.exp(1j * x)).sum())
    found = expectation(samples, "x", seed=3)
    assert abs(deviations(found, exact)) < 5
    # Turned by half a circle the direction turns too, across the edge: a plain mean would not.
    turned = expectation(samples, lambda row: (row["x"] + CIRCLE / 2 + np.pi) % CIRCLE - np.pi, period=CIRCLE, unit="rad", seed=3)
    assert np.cos(turned.value - found.value) == pytest.approx(-1.0)
    assert turned.standard_error == pytest.approx(found.standard_error, rel=0.05)


def test_reweighting_a_harmonic_well_in_temperature_is_exact():
    k = 500.0
    samples = harmonic_well([300.0, 360.0], 4000, k=k, seed=4)
    for temperature in (300.0, 330.0, 360.0):
        found = expectation(samples, lambda row: row["x"] ** 2, temperature=temperature, seed=4)
        assert abs(deviations(found, kt(temperature) / k)) < 5
        assert found.standard_error < 0.05 * kt(temperature) / k
        assert found.temperature == temperature
    energy = expectation(samples, "potential", temperature="330 K", seed=4)
    assert abs(deviations(energy, 0.5 * kt(330.0))) < 5
    assert energy.unit == "kJ/mol"


def test_a_temperature_out_of_reach_is_found():
    many = harmonic_well([300.0], 4000, seed=5)
    # The energy of 200 such wells: Gaussian, and 15 standard deviations away at 600 K.
    rng = np.random.default_rng(5)
    cold = BiasedSamples(**{**vars(many), "potential": 0.5 * kt(300.0) * rng.chisquare(200, len(many))})
    found = expectation(cold, "x", temperature=600.0, n_bootstrap=0)
    assert [f.code for f in found.findings if "600 K" in f.message] == ["few-effective-samples"]
    assert not [f for f in expectation(cold, "x", n_bootstrap=0).findings if "decorrelated samples of the unbiased" in f.message]


def test_another_temperature_needs_potential_energies():
    samples = harmonic_well([300.0], 100, energies=False)
    with pytest.raises(DataError, match="without potential energies") as error:
        expectation(samples, "x", temperature=320.0)
    assert "record the potential energy" in str(error.value)


def test_weights_of_another_temperature_are_refused():
    samples = harmonic_well([300.0], 500, seed=6)
    for weights in (wham(samples), mbar(samples)):
        with pytest.raises(DataError, match="not those of 330 K"):
            expectation(samples, "x", weights=weights, temperature=330.0)


def test_ninety_five_percent_intervals_hold_the_truth():
    exact = (P @ X) / P.sum()
    hits = 0
    for seed in range(60):
        samples = umbrella(double_well, np.linspace(-1.6, 1.6, 10), 40 * KT, 300, seed=1000 + seed)
        low, high = expectation(samples, "x", n_bootstrap=40, seed=seed, equilibrate=False).interval
        hits += low < exact < high
    # A true coverage of 95 % misses 11 or more of 60 once in 30,000.
    assert hits >= 50


def test_wrong_observables_are_named(windows):
    with pytest.raises(DataError, match="shape"):
        expectation(windows, np.zeros(3))
    with pytest.raises(DataError, match="not finite"):
        expectation(windows, "potential")
    with pytest.raises(DataError, match="was not recorded"):
        expectation(windows, "z")
    with pytest.raises(DataError, match="check limits"):
        expectation(windows, "y", along="x", limits=(8.0, 9.0))
