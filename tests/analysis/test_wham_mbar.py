import logging

import numpy as np
import pytest
from exact_systems import KT, double_well, exact_free_energies, torsion, umbrella

from couloir.analysis import BiasedSamples, free_energy_surface, mbar, wham
from couloir.cv.bias import HarmonicBias
from couloir.errors import DataError
from couloir.units import GAS_CONSTANT

STIFF = 60 * KT


def wells(**options):
    return umbrella(double_well, np.linspace(-1.6, 1.6, 14), STIFF, options.pop("n", 600), **options)


def test_wham_recovers_free_energies_of_windows():
    samples = wells(n=2000, seed=3)
    result = wham(samples)
    error = result.free_energies - exact_free_energies(double_well, samples)
    # Neighbours overlap by a quarter: 13 steps of about sqrt(4/2000) kT each.
    assert result.converged
    assert len(result.sets) == 1
    assert np.abs(error - error.mean()).max() < 4 * np.sqrt(13 * 4 / 2000)
    assert result.findings == ()


def test_wham_equals_mbar_to_a_hundredth_of_kt():
    samples = wells(seed=4)
    assert np.abs(wham(samples).free_energies - mbar(samples).free_energies).max() < 0.01


def test_weights_of_wham_equal_those_of_mbar():
    samples = wells(seed=4)
    a, b = wham(samples).weights, mbar(samples).weights
    assert a.sum() == pytest.approx(1)
    assert b.sum() == pytest.approx(1)
    assert np.abs(np.cumsum((a - b)[np.argsort(samples["x"])])).max() < 0.003


def test_warm_started_mbar_gives_the_same_numbers():
    samples = wells(n=300, seed=5)
    warm, cold = mbar(samples), mbar(samples, warm_start=False)
    assert np.abs(warm.free_energies - cold.free_energies).max() < 1e-6
    assert np.abs(warm.overlap.sum(axis=1) - 1).max() < 1e-6
    assert (warm.effective_samples > 300).all()


def test_windows_at_the_periods_edge_are_neighbours():
    centers = np.linspace(-np.pi, np.pi, 18, endpoint=False)
    samples = umbrella(torsion, centers, 30 * KT, 2000, period=2 * np.pi, seed=6)
    result = wham(samples)
    error = result.free_energies - exact_free_energies(torsion, samples)
    assert len(result.sets) == 1
    assert result.overlap[0, -1] > 0.05
    assert np.abs(error - error.mean()).max() < 4 * np.sqrt(9 * 6 / 2000)


def test_disconnected_sets_are_found_named_and_solved_apart():
    centers = np.concatenate([np.linspace(-1.4, -0.6, 5), np.linspace(0.8, 1.4, 4)])
    samples = umbrella(double_well, centers, 150 * KT, 2000, seed=7)
    for result in (wham(samples), mbar(samples)):
        assert result.sets == ((0, 1, 2, 3, 4), (5, 6, 7, 8))
        (finding,) = [f for f in result.findings if f.code == "disconnected-windows"]
        assert "windows 0-4 and 5-8" in finding.message
        place = float(finding.fix.split("x = ")[1].split()[0])
        assert -0.6 < place < 0.8
        # Each set is as right as it would be alone.
        for members in result.sets:
            error = (result.free_energies - exact_free_energies(double_well, samples))[list(members)]
            assert np.abs(error - error.mean()).max() < 0.3
        assert result.weights[samples.window <= 4].sum() == pytest.approx(0.5)


def test_an_empty_window_is_reported_and_still_gets_a_free_energy():
    samples = wells(n=2000, seed=8)
    without = samples.select(samples.window != 6)
    for result in (wham(without), mbar(without)):
        assert [f.code for f in result.findings] == ["empty-windows"]
        error = result.free_energies - exact_free_energies(double_well, samples)
        assert np.abs(error - error.mean()).max() < 0.7


def test_an_unbiased_simulation_joins_the_windows():
    samples = wells(seed=9)
    free = umbrella(double_well, [0.0], 0.0, 600, seed=10)
    free = BiasedSamples(**{**free.__dict__, "biases": (None,)})
    result = wham(BiasedSamples.join(samples, free))
    # The unbiased window is the unbiased state: zero up to the error.
    assert abs(result.free_energies[-1]) < 0.02


def test_two_dimensional_windows_agree_with_mbar():
    rng = np.random.default_rng(11)
    centers = [(a, b) for a in np.linspace(-1, 1, 4) for b in np.linspace(-1, 1, 4)]
    k, kappa = 4 * KT, 2 * KT
    spread = np.sqrt(KT / (k + kappa))
    drawn = [k * np.array(c) / (k + kappa) + spread * rng.standard_normal((800, 2)) for c in centers]
    n = len(centers)
    which = np.repeat(np.arange(n), 800)
    biases = tuple(HarmonicBias(("x", "y"), c, (k, k), (None, None)) for c in centers)
    samples = BiasedSamples(
        ("x", "y"), ("", ""), (None, None), np.concatenate(drawn), np.full(n * 800, np.nan), which, which,
        np.tile(np.arange(800.0), n), biases, np.array([300.0]),
    )  # fmt: skip
    result = wham(samples)
    exact = np.array([0.5 * k * kappa / (k + kappa) * (a * a + b * b) / KT for a, b in centers]) + np.log((k + kappa) / kappa)
    assert np.abs(result.free_energies - mbar(samples).free_energies).max() < 0.01
    assert np.abs(result.free_energies - exact).max() < 0.25


def test_windows_at_two_temperatures_need_energies():
    # x in V = 0.5 k x^2 at 300 and 400 K: reweighting to 350 K gives <x^2> = kT/k.
    rng = np.random.default_rng(12)
    k, temperatures, n = 100.0, np.array([300.0, 400.0]), 20000
    x = np.concatenate([np.sqrt(GAS_CONSTANT * t / k) * rng.standard_normal(n) for t in temperatures])
    which = np.repeat([0, 1], n)
    samples = BiasedSamples(
        ("x",),
        ("nm",),
        (None,),
        x[:, None],
        0.5 * k * x**2,
        which,
        which,
        np.tile(np.arange(1.0 * n), 2),
        (None, None),
        temperatures,
    )
    exact = GAS_CONSTANT * 350 / k
    for estimate in (wham, mbar):
        result = estimate(samples, temperature="350 K")
        assert result.weights @ x**2 == pytest.approx(exact, rel=4 * np.sqrt(2 / (2 * n)) * 1.1)
        surface = free_energy_surface(samples, "x", estimator=estimate.__name__, temperature="350 K", bins=30, limits=(-0.4, 0.4))
        low = 0.5 * k * surface.grid[0] ** 2 < 4 * surface.kT
        off = (surface.free_energy - 0.5 * k * surface.grid[0] ** 2)[low]
        assert np.abs((off - off.mean()) / surface.standard_error[low]).max() < 4.5
        assert surface.kT == pytest.approx(GAS_CONSTANT * 350)
    with pytest.raises(DataError, match=r"(?s)not those of 310 K.*wham\(samples, temperature=310\)"):
        free_energy_surface(samples, "x", weights=wham(samples, temperature=350), temperature=310)
    missing = BiasedSamples(**{**samples.__dict__, "potential": np.full(2 * n, np.nan)})
    for estimate in (wham, mbar):
        with pytest.raises(DataError, match="potential energ"):
            estimate(missing)


@pytest.mark.parametrize("warm_start", [True, False])
def test_mbar_says_how_well_its_equations_are_solved(warm_start):
    result = mbar(wells(n=200, seed=14), warm_start=warm_start)
    assert result.residual < 1e-6
    assert "residual" in str(result)
    assert "not-converged" not in {f.code for f in result.findings}


def test_pymbar_keeps_quiet(caplog, capfd):
    with caplog.at_level(logging.INFO):
        mbar(wells(n=50, seed=13))
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_bad_bins_are_refused():
    with pytest.raises(DataError, match="bins"):
        wham(wells(n=20), bins=0)
    with pytest.raises(DataError, match="bins"):
        wham(wells(n=20), bins=[10, 10])
