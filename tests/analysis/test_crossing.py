"""Crossing probabilities, flux and rates from interface ensembles, beside the exact numbers of a Markov chain."""

import numpy as np
import pytest
from line_chain import LineChain, draw_samples

from couloir.analysis.crossing import crossing_probability, interface_rate
from couloir.analysis.interface_samples import InterfaceSamples
from couloir.analysis.path_weights import path_weights
from couloir.analysis.positive import PositiveEstimate, ShareEstimate
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
@pytest.mark.parametrize(("n", "keep", "n_chains"), [(600, 0.0, 4), (600, 0.6, 4), (300, 0.6, 4), (600, 0.6, 8)])
def test_95_percent_intervals_cover_the_truth_as_often_also_when_paths_are_kept_and_blocks_are_few(n, keep, n_chains):
    covered, missed = [], []
    for seed in range(250):
        samples = draw_samples(CHAIN, (5, 7, 9), n, stream(seed, "coverage"), keep=keep, n_chains=n_chains)
        found = interface_rate(samples, n_bootstrap=100, seed=seed)
        row = [(*e.interval, x) for e, x in (
            (found.rate, CHAIN.rate / STRIDE), (found.flux, CHAIN.flux / STRIDE), (found.crossing.total, CHAIN.crossing(15)))]  # fmt: skip
        covered.append([low < x < high for low, high, x in row])
        missed.append([x > high for _, high, x in row])
    share = np.mean(covered, axis=0)
    # the standard error of a coverage of 95 % is 1.4 %
    assert (share >= 0.90).all()
    assert (share <= 0.99).all()
    # in the logarithm both sides are missed alike; with symmetric intervals nearly all misses are rates found too low
    assert np.mean(missed, axis=0).max() < 0.07


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


def test_an_interval_of_a_rate_is_even_in_the_logarithm_and_wider_with_few_blocks():
    low, high = PositiveEstimate(2.0, 1.0, "1/ps", 0.5).interval
    assert (low, high) == pytest.approx((2 * np.exp(-0.98), 2 * np.exp(0.98)), rel=1e-4)
    few = PositiveEstimate(2.0, 1.0, "1/ps", 0.5, freedom=4).interval
    assert few == pytest.approx((2 * np.exp(-0.5 * 2.7764), 2 * np.exp(0.5 * 2.7764)), rel=1e-4)
    assert PositiveEstimate(2.0, 1.0, "1/ps", np.inf).interval == (0.0, np.inf)
    assert PositiveEstimate(0.0, 0.0, "1/ps", np.inf).interval == (0.0, np.inf)


def test_intervals_of_shares_stay_between_0_and_1_and_hold_the_truth():
    assert ShareEstimate(0.5, 1e-4, "").interval == pytest.approx((0.5 - 1.96e-4, 0.5 + 1.96e-4), rel=1e-6)
    low, high = ShareEstimate(0.995, 0.01, "").interval
    assert 0 < low < 0.995 < high < 1
    assert ShareEstimate(1.0, 0.0, "").interval == (1.0, 1.0)
    assert ShareEstimate(1.0, np.nan, "").interval == ShareEstimate(0.3, np.inf, "").interval == (0.0, 1.0)
    n, true = 200, 0.05
    found = stream(1, "draw").binomial(n, true, 4000) / n
    held = [low < true < high for p in found for low, high in [ShareEstimate(p, np.sqrt(p * (1 - p) / n), "").interval]]
    assert 0.95 < np.mean(held) < 0.985  # exactly 0.967; p +- 1.96 errors holds it in 0.926
    assert str(ShareEstimate(0.25, 0.01, "")) == "0.25 ± 0.01"


def test_an_interface_that_few_paths_reach_is_named_with_a_place_for_another():
    far = interface_rate(draw_samples(CHAIN, (5, 11), 3000, stream(6, "draw")))
    [finding] = [f for f in far.findings if f.code == "rare-crossing"]
    assert "reach the interface at 10.5" in finding.message
    place = float(finding.fix.rsplit("= ", 1)[1])
    assert 5 < place < 11
    reach = CHAIN.crossing(int(np.ceil(place)))
    assert CHAIN.crossing(11) < reach < 1
    near = interface_rate(draw_samples(CHAIN, (5, 7, 9), 3000, stream(7, "draw")))
    assert "rare-crossing" not in [f.code for f in near.findings]


def test_results_are_tables_and_a_figure():
    samples = draw_samples(CHAIN, LEVELS, 400, stream(8, "draw"))
    assert samples.rate.rate == interface_rate(samples).rate
    table = samples.rate.to_dataframe().set_index("quantity")
    assert table.loc["rate", "low"] < table.loc["rate", "value"] < table.loc["rate", "high"]
    crossing = samples.crossing.to_dataframe()
    assert (crossing["low"] <= crossing["probability"]).all()
    assert crossing["probability"].is_monotonic_decreasing
    ax = samples.rate.plot()
    assert ax.get_yscale() == "log"
    assert ax.lines[0].get_ydata()[0] == pytest.approx(1.0)
    assert "95 %" in str(samples.rate)
    assert len(str(samples).splitlines()) == 2 + 1 + len(LEVELS)
    assert len(samples.to_dataframe()) == len(samples)


def test_rows_of_later_steps_keep_their_order_and_series():
    samples = draw_samples(CHAIN, (5, 7), 80, stream(9, "draw"))
    later = samples.after(9)
    kept = samples.step > 9
    assert (later.maximum == samples.maximum[kept]).all()
    assert all(x.max() == m for x, m in zip(later.series["x"], later.maximum, strict=True))
    with pytest.raises(DataError, match="after step 19"):
        samples.after(19)
