"""Interface sampling from both sides of a double well gives its free energy, its committor and the populations of its sides."""

from itertools import pairwise

import numpy as np
import pytest

from couloir.analysis import reweighted_paths
from couloir.cv.composite import LinearCombination
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError
from couloir.sampling import ToyEngine, TransitionInterfaceSampling, potentials
from couloir.trajectory import Trajectory

X = Coordinate(0, "x")
BACK = LinearCombination((X,), (-1.0,), "back")  # grows from B to A
KT, STEP, STRIDE = 0.35, 0.002, 0.02
WELL = ToyEngine(potentials.double_well(), kT=KT, time_step=STEP, threads=1)
A, B = X < -0.8, X > 0.8
EDGES = np.linspace(-1.5, 1.5, 25)
GRID = np.linspace(-2.2, 2.2, 881)


def first():
    """A path by hand, both ways: no dynamics would go like this, and it is forgotten."""
    line = np.linspace(-0.9, 0.9, 30)
    return Trajectory(line[:, None, None], STRIDE)


def exact():
    """Return the stationary density, and the committor of dynamics seen once per stride, on the grid."""
    force = -4 * GRID * (GRID**2 - 1)
    kernel = np.exp(-((GRID[None, :] - (GRID + force * STEP)[:, None]) ** 2) / (4 * KT * STEP))
    kernel /= kernel.sum(axis=1, keepdims=True)
    seen = np.linalg.matrix_power(kernel, round(STRIDE / STEP))
    free, done = np.abs(GRID) <= 0.8, GRID > 0.8
    committor = done.astype(float)
    committor[free] = np.linalg.solve(np.eye(free.sum()) - seen[np.ix_(free, free)], seen[np.ix_(free, done)].sum(axis=1))
    return np.exp(-((GRID**2 - 1) ** 2) / KT), committor


def in_bins(values):
    return np.array([values[(low <= GRID) & (high > GRID)].sum() for low, high in pairwise(EDGES)])


@pytest.fixture(scope="module")
def both():
    sides = []
    for along, start, end in ((X, A, B), (BACK, B, A)):
        sampling = TransitionInterfaceSampling(WELL, start, end, along, (-0.8, -0.45), max_duration=100)
        sides.append(sampling.run(first(), 200, seed=3, n_sets=10, record=[X]))
    assert [len(side.findings) for side in sides] == [0, 0]
    return reweighted_paths(*sides)


def test_the_free_energy_is_that_of_the_potential(both):
    surface = both.free_energy("x", temperature=WELL.temperature, bins=EDGES)
    density = in_bins(exact()[0])
    error = surface.in_kT.standard_error
    off = -np.log(surface.probability) + np.log(density / density.sum())
    seen = surface.n_effective > 20
    assert surface.units == ("nm",)
    assert seen.sum() >= 20
    assert np.median(error[seen]) < 0.2
    assert (np.abs(off)[seen] < 4.5 * error[seen]).all()


def test_the_committor_is_that_of_the_dynamics_seen_at_frames(both):
    density, committor = exact()
    found = both.committor("x", bins=EDGES)
    true = in_bins(density * committor) / in_bins(density)
    between = (true > 0.05) & (true < 0.95)  # beyond, few paths decide, and errors are lopsided
    assert between.sum() >= 7
    assert np.median(found.standard_error[between]) < 0.08
    assert (np.abs(found.committor - true)[between] < 4.5 * found.standard_error[between]).all()


def test_both_sides_are_populated_alike_and_their_rates_equal(both):
    assert abs(both.population.value - 0.5) < 4.5 * both.population.standard_error
    assert both.population.standard_error < 0.1
    there, back = (rate.relative_error for rate in both.rates)
    assert abs(np.log(both.rates[0].value / both.rates[1].value)) < 4.5 * np.hypot(there, back)


def test_series_from_kept_paths_are_those_recorded():
    sampling = TransitionInterfaceSampling(WELL, A, B, X, (-0.8, -0.45), max_duration=100)
    samples = sampling.run(first(), 12, seed=3, n_sets=2, record=[X, BACK], keep_paths=True)
    plain = sampling.run(first(), 12, seed=3, n_sets=2, keep_paths=True)
    again = plain.with_series([X]).with_series([BACK])
    assert list(samples.series) == list(again.series) == ["x", "back"]
    assert samples.units == again.units == {"x": "nm", "back": ""}
    for name in samples.series:
        for recorded, evaluated, path in zip(samples.series[name], again.series[name], samples.paths, strict=True):
            np.testing.assert_array_equal(recorded, evaluated)
            assert len(recorded) == len(path)
    assert len({id(values) for values in samples.series["x"]}) == len({id(path) for path in samples.paths}) < len(samples)


def test_a_series_of_paths_that_were_not_kept_is_refused():
    sampling = TransitionInterfaceSampling(WELL, A, B, X, (-0.8,), max_duration=100)
    with pytest.raises(DataError, match="not kept"):
        sampling.run(first(), 3, seed=3).with_series([X])
