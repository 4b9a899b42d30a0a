"""The reweighted path ensemble beside the exact equilibrium, committor and rates of a Markov chain."""

import numpy as np
import pytest
from line_chain import LineChain, draw_samples

from couloir.analysis.reweighted_paths import reweighted_paths
from couloir.errors import DataError
from couloir.streams import stream

CHAIN = LineChain()
BACK = CHAIN.reversed()
LEVELS = (5, 7, 9, 11)
STRIDE = 0.5  # of draw_samples
STATES = np.arange(21) - 0.5


@pytest.fixture(scope="module")
def sides():
    rng = stream(1, "draw")
    return draw_samples(CHAIN, LEVELS, 3000, rng), draw_samples(BACK, LEVELS, 3000, rng, mirror=True)


@pytest.fixture(scope="module")
def both(sides):
    return reweighted_paths(*sides)


def within(estimate, exact):
    return abs(estimate.value - exact) < 4.5 * estimate.standard_error


def test_rates_population_and_reactive_flux_are_exact_within_error(both):
    assert within(both.rates[0], CHAIN.rate / STRIDE)
    assert within(both.rates[1], BACK.rate / STRIDE)
    assert within(both.population, CHAIN.population)
    assert within(both.reactive_flux, CHAIN.rate * CHAIN.population / STRIDE)
    assert both.reactive_flux.standard_error < 0.1 * both.reactive_flux.value


def test_weights_times_frames_between_ends_are_all_time(both):
    total = sum((w * side.samples.inside).sum() for w, side in zip(both.weights, both.sides, strict=True))
    assert total == pytest.approx(1.0)


def test_free_energy_is_that_of_equilibrium(both):
    surface = both.free_energy("x", temperature="300 K", bins=STATES).in_kT
    exact = -np.log(CHAIN.pi)
    seen = surface.n_effective > 20
    p = surface.probability
    assert seen.sum() >= 15
    assert (np.abs(-np.log(p[seen]) - exact[seen]) < 4.5 * surface.standard_error[seen]).all()
    assert np.median(surface.standard_error[seen]) < 0.1


def test_committor_is_that_of_the_chain(both):
    found = both.committor("x", bins=STATES)
    between = slice(5, 15)
    assert (np.abs(found.committor - CHAIN.committor)[between] < 4.5 * found.standard_error[between]).all()
    assert found.standard_error[between].max() < 0.06
    assert np.nanmax(found.committor[:5]) == 0
    assert np.nanmin(found.committor[15:]) == 1


def test_paths_from_a_alone_give_rate_and_committor_and_say_what_is_missing(sides):
    found = reweighted_paths(sides[0])
    assert within(found.rates[0], CHAIN.rate / STRIDE)
    committor = found.committor("x", bins=STATES)
    assert (np.abs(committor.committor - CHAIN.committor)[5:15] < 4.5 * committor.standard_error[5:15]).all()
    surface = found.free_energy("x", temperature=300, bins=STATES)
    assert "one-sided" in [f.code for f in surface.findings]
    # time in the overall state A: the equilibrium, times the chance to have come from A
    exact = CHAIN.pi * (1 - CHAIN.committor) / CHAIN.population
    seen = surface.n_effective > 20
    off = np.log(exact[seen]) - np.log(surface.probability[seen])
    assert (np.abs(off) < 4.5 * surface.in_kT.standard_error[seen]).all()


def test_a_map_along_two_cvs_sums_to_that_along_one(both):
    one = both.committor("x", bins=STATES)
    two = both.committor(("x", "x"), bins=(STATES, STATES))
    assert np.diag(two.committor) == pytest.approx(one.committor, nan_ok=True)


def test_a_series_that_was_not_recorded_is_named(both):
    with pytest.raises(DataError, match="no series of y"):
        both.committor("y")
