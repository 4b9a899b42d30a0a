"""Crossing probabilities, flux and rates from interface ensembles, beside the exact numbers of a Markov chain."""

import numpy as np
import pytest
from line_chain import LineChain, draw_samples

from couloir.analysis.crossing import InterfaceSamples, crossing_probability, interface_rate, path_weights
from couloir.errors import DataError
from couloir.streams import stream

CHAIN = LineChain()
LEVELS = (5, 7, 9, 11)
STRIDE = 0.5  # of draw_samples


def rows(maxima, ensemble, interfaces=(0.0, 1.0, 2.0), ends=None, **other):
    n = len(maxima)
    ends = np.zeros(n, dtype=bool) if ends is None else ends
    return InterfaceSamples(
        np.array(interfaces), "x", "", np.array(ensemble), np.zeros(n), np.arange(n), np.array(maxima), np.full(n, -1.0),
        np.full(n, 5), ends, 1.0, **other,
    )  # fmt: skip


def test_weights_solve_the_equations_of_wham_to_rounding():
    samples = draw_samples(CHAIN, LEVELS, 300, stream(1, "draw"))
    weights, reach = path_weights(samples, n_bootstrap=2).per_path, path_weights(samples, n_bootstrap=2).reach[0]
    plus = samples.ensemble >= 0
    n = np.array([(samples.ensemble == i).sum() for i in range(len(LEVELS))])
    for k in range(len(LEVELS)):
        assert weights[plus & (samples.bin == k)] == pytest.approx(1.0 / (n[: k + 1] / reach[: k + 1]).sum(), rel=1e-12)
        assert weights[plus & (samples.maximum >= samples.interfaces[k])].sum() == pytest.approx(reach[k], rel=1e-12)


def test_one_ensemble_alone_gives_plain_counts():
    found = crossing_probability(rows([0.5, 0.5, 1.5, 2.5], [0] * 4, ends=[False, False, False, True]), n_bootstrap=2)
    assert found.probability == pytest.approx([1.0, 0.5, 0.25])
    assert found.total.value == pytest.approx(0.25)
    assert found.curve == pytest.approx([1.0, 0.5, 0.25])


def test_rate_flux_and_crossing_probabilities_agree_with_the_matrix():
    found = interface_rate(draw_samples(CHAIN, LEVELS, 4000, stream(2, "draw")))
    for estimate, exact in (
        (found.flux, CHAIN.flux / STRIDE), (found.crossing.total, CHAIN.crossing(15)), (found.rate, CHAIN.rate / STRIDE),
    ):  # fmt: skip
        assert abs(estimate.value - exact) < 4.5 * estimate.standard_error
        assert estimate.standard_error < 0.1 * exact
    exact = np.array([CHAIN.crossing(level) for level in LEVELS])
    assert (np.abs(found.crossing.probability - exact)[1:] < 4.5 * found.crossing.standard_error[1:]).all()


def test_rate_is_that_of_a_long_trajectory_whichever_interfaces_are_chosen():
    for seed, levels in ((3, (5, 8, 12)), (4, (5, 6, 7, 8, 10))):
        found = interface_rate(draw_samples(CHAIN, levels, 3000, stream(seed, "draw"))).rate
        assert abs(found.value - CHAIN.rate / STRIDE) < 4.5 * found.standard_error


@pytest.mark.statistical
@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_standard_errors_are_the_scatter_of_repeats_also_when_paths_are_kept(keep):
    scores = []
    for seed in range(60):
        samples = draw_samples(CHAIN, (5, 7, 9), 600, stream(seed, "repeat"), keep=keep)
        found = interface_rate(samples, n_bootstrap=100, seed=seed)
        scores.append([(e.value - x) / e.standard_error for e, x in (
            (found.flux, CHAIN.flux / STRIDE), (found.rate, CHAIN.rate / STRIDE))])  # fmt: skip
    # the scatter of 60 scores is known to 9 %; few blocks widen it by up to a quarter
    scatter = np.array(scores).std(axis=0)
    assert (scatter > 0.65).all()
    assert (scatter < 1.5).all()


def test_a_chain_that_keeps_its_path_is_not_taken_for_many_paths():
    free = crossing_probability(draw_samples(CHAIN, (5, 7), 2000, stream(5, "draw")))
    held = crossing_probability(draw_samples(CHAIN, (5, 7), 2000, stream(5, "draw"), keep=0.8))
    assert held.standard_error[1] > 2 * free.standard_error[1]


def test_an_interface_no_path_reaches_is_refused():
    with pytest.raises(DataError, match=r"below \[2\+\] reaches interface 2"):
        crossing_probability(rows([0.5, 1.5, 1.2, 2.5], [0, 0, 1, 2]))


def test_no_flux_without_the_time_in_a():
    with pytest.raises(DataError, match=r"no paths of \[0-\]"):
        interface_rate(rows([0.5, 1.5, 2.5], [0, 0, 0]))


def test_a_path_outside_its_ensemble_is_refused():
    with pytest.raises(DataError, match="does not reach the interface"):
        rows([0.5, 0.5], [0, 1])


def test_no_reactive_path_is_said_so():
    found = crossing_probability(rows([0.5, 1.5, 2.5], [0, 0, 0]))
    assert "no-reactive-path" in [f.code for f in found.findings]
