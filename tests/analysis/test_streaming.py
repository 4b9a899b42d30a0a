import tracemalloc

import numpy as np
import pytest
from exact_systems import KT, double_well, exact_cells, exact_free_energies, gauge, torsion, umbrella

from couloir.analysis import BiasedSamples, StreamedWham, wham
from couloir.cv.bias import HarmonicBias
from couloir.errors import DataError
from couloir.units import GAS_CONSTANT

STIFF = 60 * KT
CENTERS = np.linspace(-1.6, 1.6, 14)


def wells(n=600, **options):
    return umbrella(double_well, CENTERS, STIFF, n, **options)


def accumulator(samples, **options):
    return StreamedWham(samples.biases, samples.temperatures, units=samples.units, **options)


def fed(samples, size=None, **options):
    """Return an accumulator that got the samples in blocks of ``size`` rows."""
    total = accumulator(samples, **options)
    for start in range(0, len(samples), size or len(samples)):
        total.add_samples(samples.select(slice(start, start + (size or len(samples)))))
    return total


def two_temperatures(n=20_000, seed=1, shift=-5e5):
    """x in V = 0.5 k x^2 around 0 at 300 K and around 0.1 at 400 K, with energies as large as those of a big system."""
    rng = np.random.default_rng(seed)
    k, kappa, temperatures, centers = 100.0, 50.0, np.array([300.0, 400.0]), np.array([0.0, 0.1])
    x = [
        kappa * c / (k + kappa) + np.sqrt(GAS_CONSTANT * t / (k + kappa)) * rng.standard_normal(n)
        for t, c in zip(temperatures, centers, strict=True)
    ]
    which = np.repeat([0, 1], n)
    x = np.concatenate(x)
    biases = tuple(HarmonicBias(("x",), (float(c),), (kappa,), (None,)) for c in centers)
    samples = BiasedSamples(
        ("x",), ("nm",), (None,), x[:, None], 0.5 * k * x**2 + shift, which, which, np.tile(np.arange(1.0 * n), 2), biases, temperatures
    )
    return samples, GAS_CONSTANT * 350 / k


@pytest.mark.parametrize("size", [None, 997])
def test_streamed_samples_give_what_samples_in_memory_give(size):
    samples = wells(seed=1)
    there, here = fed(samples, size, widths=0.01).solve(), wham(samples, widths=0.01)
    assert np.abs(there.free_energies - here.free_energies).max() < 1e-12
    assert np.abs(there.bin_means - here.bin_means).max() < 1e-12
    assert np.abs(np.bincount(there.bin_index, there.weights) - np.bincount(here.bin_index, here.weights)).max() < 1e-12
    assert there.sets == here.sets


def test_the_same_holds_around_a_period():
    samples = umbrella(torsion, np.linspace(-np.pi, np.pi, 18, endpoint=False), 30 * KT, 500, period=2 * np.pi, seed=2)
    streamed = fed(samples, 1000)
    assert streamed.periods == (2 * np.pi,)
    result = streamed.solve()
    assert np.abs(result.free_energies - wham(samples, widths=streamed.widths).free_energies).max() < 1e-12
    assert len(result.sets) == 1


def test_streamed_free_energies_are_exact_within_their_error():
    samples = wells(n=4000, seed=3)
    error = fed(samples).solve().free_energies - exact_free_energies(double_well, samples)
    assert np.abs(error - error.mean()).max() < 4 * np.sqrt(13 * 4 / 4000)


def test_two_halves_merge_into_the_whole():
    samples = wells(seed=4)
    odd = samples.select(np.arange(len(samples)) % 2 == 1)
    even = samples.select(np.arange(len(samples)) % 2 == 0)
    whole, merged = fed(samples), fed(odd).merge(fed(even))
    assert merged.counts.tolist() == whole.counts.tolist()
    assert merged.n_occupied == whole.n_occupied
    assert np.abs(merged.solve().free_energies - whole.solve().free_energies).max() < 1e-12


def test_only_alike_accumulators_merge():
    samples = wells(n=50)
    with pytest.raises(DataError, match="different windows, temperatures or bins"):
        fed(samples).merge(fed(samples, widths=0.5))


def test_windows_at_two_temperatures_reweight_to_a_third():
    samples, exact = two_temperatures()
    streamed = fed(samples, 3000, widths=0.005, temperature="350 K").solve()
    x = streamed.bin_means[streamed.bin_index, 0]
    # 40,000 samples of slightly narrower wells: the weights leave more than 10,000.
    assert streamed.weights @ x**2 == pytest.approx(exact, rel=4 * np.sqrt(2 / 10_000))
    memory = wham(samples, widths=0.005, temperature="350 K")
    # Energies of -5e5 kJ/mol leave ten digits of their differences.
    assert np.abs(streamed.free_energies - memory.free_energies).max() < 1e-9


def test_missing_energies_are_refused():
    total = StreamedWham(two_temperatures(n=5)[0].biases, [300, 400])
    with pytest.raises(DataError, match="needs its potential energy"):
        total.add(np.zeros(3), 0)


def test_disconnected_windows_are_named_and_solved_apart():
    centers = np.concatenate([np.linspace(-1.4, -0.6, 5), np.linspace(0.8, 1.4, 4)])
    samples = umbrella(double_well, centers, 150 * KT, 2000, seed=7)
    result = fed(samples).solve()
    assert result.sets == ((0, 1, 2, 3, 4), (5, 6, 7, 8))
    (finding,) = [f for f in result.findings if f.code == "disconnected-windows"]
    assert "windows 0-4 and 5-8" in finding.message
    exact = exact_free_energies(double_well, samples)
    for members in map(list, result.sets):
        error = (result.free_energies - exact)[members]
        assert np.abs(error - error.mean()).max() < 0.3


def test_windows_in_three_dimensions_on_a_gaussian():
    rng = np.random.default_rng(5)
    k, kappa, n = 3 * KT, 2 * KT, 1500
    centers = [(a, b, c) for a in (-1.0, 0.0, 1.0) for b in (-0.7, 0.7) for c in (-0.7, 0.7)]
    names = ("x", "y", "z")
    biases = [HarmonicBias(names, c, (k, k, k), (None, None, None)) for c in centers]
    total = StreamedWham(biases, 300.0)
    for i, c in enumerate(centers):
        total.add(k * np.array(c) / (k + kappa) + np.sqrt(KT / (k + kappa)) * rng.standard_normal((n, 3)), i)
    result = total.solve()
    stretch = 0.5 * k * kappa / (k + kappa) * (np.array(centers) ** 2).sum(axis=1) / KT
    error = result.free_energies - stretch - 1.5 * np.log((k + kappa) / kappa)
    assert len(result.sets) == 1
    # Differences between windows rest on overlaps of a tenth and more, over three steps at most.
    assert np.abs(error - error.mean()).max() < 4 * np.sqrt(3 * 10 / n)
    assert len(result.bin_means) < len(centers) * n


def test_the_surface_and_its_errors():
    samples = wells(n=4000, seed=8)
    surface = fed(samples).surface("x", bins=30, limits=(-1.5, 1.5), n_bootstrap=40)
    deviation = gauge(surface) - exact_cells(double_well, surface.grid[0])
    assert (surface.standard_error > 0).all()
    assert np.abs(deviation / surface.standard_error).max() < 6
    # Neighbours share a quarter of 4,000 samples, so neither are errors huge.
    assert surface.standard_error.max() < 0.5 * KT


def test_damaged_blocks_are_refused():
    total = accumulator(wells(n=20))
    with pytest.raises(DataError, match="row 1 of the block is not finite"):
        total.add(np.array([0.0, np.nan]), 0)
    with pytest.raises(DataError, match="windows run from 14"):
        total.add(np.zeros(2), 14)
    with pytest.raises(DataError, match="shape"):
        total.add(np.zeros((2, 2)), 0)
    with pytest.raises(DataError, match="nothing was added"):
        total.solve()
    with pytest.raises(DataError, match="too many bins"):
        StreamedWham([HarmonicBias(("x",), (0.0,), (1.0,), (None,))], 300.0, widths=1e-18).add(np.array([9.0]), 0)


def test_bins_of_unbiased_cvs_need_a_width():
    with pytest.raises(DataError, match="give widths"):
        StreamedWham([None], 300.0, names=("x",))


@pytest.mark.statistical
def test_ten_million_rows_need_memory_for_occupied_bins_alone():
    rng = np.random.default_rng(6)
    total = accumulator(wells(n=20))
    tracemalloc.start()
    for block in range(100):
        window = block % len(CENTERS)
        total.add(CENTERS[window] + 0.13 * rng.standard_normal(100_000), window)
    result = total.solve()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total.counts.sum() == 10_000_000
    assert result.converged
    assert peak < 50e6
