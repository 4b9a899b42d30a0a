"""Interface sampling out of each of three states gives their rate matrix: exactly known ones of a chain on a star."""

from dataclasses import replace
from functools import reduce
from operator import or_

import numpy as np
import pytest
from markov_chain import MarkovChain
from scipy.linalg import expm

from couloir.analysis import RateMatrix, rate_matrix
from couloir.analysis.multiple_states import passage_times, stationary
from couloir.cv import LinearCombination
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError
from couloir.sampling import TransitionInterfaceSampling
from couloir.trajectory import Trajectory

CVS = tuple(Coordinate(i, name) for i, name in enumerate("xyz"))
X, Y, Z = CVS
STATES = {"a": X > 2.5, "b": Y > 1.5, "c": Z > 2.5}
BACK = LinearCombination((X,), (-1.0,), "back")  # grows out of a, and is the same in b and in c
FROM_B = LinearCombination((Y, Z), (-1.0, 1.0), "from_b")  # its last interface is not on the way to a
FROM_C = LinearCombination((X, Y, Z), (1.0, 1.0, -1.0), "from_c")
ALONG = {"a": (BACK, (-2.5, -1.5, -0.5)), "b": (FROM_B, (-1.5, -0.5, 0.5)), "c": (FROM_C, (-2.5, -1.5, 0.5))}
MOST = 5.5
"""Standard errors that an estimate may be off: 15 of them, each from 40 sets, are more with probability 15 x 2.6e-6 at most."""


class Star(MarkovChain):
    """A reversible Markov chain on a star of three arms x, y and z; site (1, 1, 0) leads from arm x to y past the centre.

    The ends of the arms are the states; each is entered through one site only, so that it forgets how it was entered.
    """

    def __init__(self):
        energies = {(0, 0, 0): 2.4, (1, 1, 0): 1.5}
        for k, arm in enumerate(([1.6, 1.2, 0.5, 0.0], [1.5, 0.6, 0.3], [1.7, 1.5, 0.9, 0.4])):
            energies |= {tuple(d * np.eye(3, dtype=int)[k]): energy for d, energy in enumerate(arm, 1)}
        steps = np.array(list(energies))
        near = np.abs(steps[:, None] - steps[None]).sum(axis=2) == 1
        super().__init__(list(energies.values()), np.where(near, 0.24, 0.0), steps)
        self.inside = np.array([region.contains(self.frames) for region in STATES.values()])
        self.free = ~self.inside.any(axis=0)
        assert self.free.sum() == len(energies) - 6 == 7

    def exact(self):
        """Return rate constants (3, 3), with 0 on the diagonal, and the share of time in each overall state (3,), from linear algebra."""
        first = self.inside.astype(float)  # probability to come to each state first; reversed in time, to have been there last
        inner = np.eye(self.free.sum()) - self.P[np.ix_(self.free, self.free)]
        for k, state in enumerate(self.inside):
            first[k, self.free] = np.linalg.solve(inner, self.P[np.ix_(self.free, state)].sum(axis=1))
        time = first @ self.pi
        moves = (first * self.pi) @ self.P @ self.inside.T.astype(float)  # from overall state i into j in one step
        np.fill_diagonal(moves, 0.0)
        return moves / time[:, None], time

    def first_passage(self, start, goal):
        """Return the mean time from the site ``start`` to the state number ``goal``."""
        other = np.flatnonzero(~self.inside[goal])
        times = np.linalg.solve(np.eye(len(other)) - self.P[np.ix_(other, other)], np.ones(len(other)))
        return times[other.tolist().index(self.number[start])]


STAR = Star()
ENTRIES = ((3, 0, 0), (0, 2, 0), (0, 0, 3))


def through_the_centre(i, j):
    """Return the shortest path from the entry of state i to that of state j."""
    out = [tuple(d * np.eye(3)[i]) for d in range(max(ENTRIES[i]), 0, -1)]
    back = [tuple(d * np.eye(3)[j]) for d in range(1, max(ENTRIES[j]) + 1)]
    return Trajectory(np.array([*out, (0, 0, 0), *back], dtype=float)[:, None, :], 1.0)


def sampled(name, n_cycles=75, n_sets=40, **settings):
    along, interfaces = ALONG[name]
    others = reduce(or_, (region for other, region in STATES.items() if other != name))
    sampling = TransitionInterfaceSampling(STAR, STATES[name], others, along, interfaces, max_duration=4000)
    i = list(STATES).index(name)
    first = [through_the_centre(i, j) for j in range(3) if j != i]
    return sampling.run(first, n_cycles, seed=7 + i, n_sets=n_sets, **({"record": CVS} | settings))


@pytest.fixture(scope="module")
def runs():
    return {name: sampled(name) for name in STATES}


def test_rates_and_populations_of_three_states_are_exact(runs):
    found = rate_matrix(runs, STATES)
    exact, time = STAR.exact()
    for i, start in enumerate(STATES):
        for j, end in enumerate(STATES):
            if i != j:
                estimate = found.rate(start, end)
                assert 0 < estimate.relative_error < 0.2, (start, end)
                assert abs(np.log(estimate.value / exact[i, j])) < MOST * estimate.relative_error, (start, end)
                assert found.values[i, j] == estimate.value
                assert found.standard_errors[i, j] == estimate.standard_error
                time_ij = found.passage_time(start, end)
                assert 0 < time_ij.relative_error < 0.2
                truth = STAR.first_passage(ENTRIES[i], j)
                assert abs(np.log(time_ij.value / truth)) < MOST * time_ij.relative_error, (start, end)
    for estimate, truth in zip(found.populations, time, strict=True):
        assert 0 < estimate.standard_error < 0.15 * truth
        assert abs(estimate.value - truth) < MOST * estimate.standard_error
    assert sum(estimate.value for estimate in found.populations) == pytest.approx(1)
    # the tolerance tells rates apart that do differ: a run's own ends, dealt to the wrong states, are far off
    assert abs(np.log(found.values[0, 2] / exact[0, 1])) > MOST * found.rate("a", "c").relative_error


def test_a_row_adds_up_to_the_rate_of_its_run(runs):
    found = rate_matrix(runs, STATES)
    np.testing.assert_allclose(found.values.sum(axis=1), 0, atol=1e-15)
    for i, name in enumerate(STATES):
        assert -found.values[i, i] == pytest.approx(runs[name].rate.rate.value, rel=1e-12)
        assert found.standard_errors[i, i] == pytest.approx(runs[name].rate.rate.standard_error, rel=0.25)
    # ends in a state count wherever the path's maximum was
    assert (runs["b"].ends_in_b & (runs["b"].maximum < ALONG["b"][1][-1])).any()


def test_runs_of_states_are_resampled_independently(runs):
    draws = rate_matrix(runs, STATES, n_bootstrap=400).replicas
    outs = np.log(-np.diagonal(draws, axis1=1, axis2=2))
    among = np.corrcoef(outs.T)[np.triu_indices(3, 1)]
    assert np.abs(among).max() < 4.5 / np.sqrt(400)


def test_the_table_names_states_and_findings(runs):
    found = rate_matrix(runs, STATES)
    text = str(found)
    assert text.splitlines()[0].startswith("RateMatrix of 3 states")
    assert f"{found.values[0, 1]:.3g} ± {found.standard_errors[0, 1]:.2g}" in text.splitlines()[2]
    table = found.to_dataframe()
    assert len(table) == 6
    row = table[(table.start == "c") & (table.end == "b")].iloc[0]
    assert row.low < row.rate < row.high
    assert row.passage_time_ps == found.passage_times[2, 1]


def test_exact_rates_give_the_passage_times_and_populations_of_the_chain():
    exact, time = STAR.exact()
    generator = exact - np.diag(exact.sum(axis=1))
    np.testing.assert_allclose(stationary(generator), time, rtol=1e-10)
    times = passage_times(generator)
    for i, entry in enumerate(ENTRIES):
        for j in range(3):
            assert times[i, j] == pytest.approx(0 if i == j else STAR.first_passage(entry, j), rel=1e-10)


def test_populations_keep_their_digits_and_say_what_is_not_known():
    fast, slow = 1e6, 1e-14
    chain = np.array([[0, fast, 0], [2 * fast, 0, slow], [0, 3 * slow, 0]])
    chain -= np.diag(chain.sum(axis=1))
    np.testing.assert_allclose(stationary(chain), np.array([2, 1, 1 / 3]) / (10 / 3), rtol=1e-12)
    trap = np.array([[-3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [4.0, 0.0, -4.0]])
    np.testing.assert_allclose(stationary(trap), expm(trap * 200)[0], atol=1e-12)
    np.testing.assert_array_equal(np.isinf(passage_times(trap)), [[False, False, True], [True, False, True], [False, False, False]])
    two = trap.copy()
    two[2] = 0.0
    assert np.isnan(stationary(two)).all()


def test_a_state_that_is_never_reached_is_a_finding(runs):
    kept = {name: one.after(0) for name, one in runs.items()}
    for name in "ab":  # leave out what ends in c
        one = kept[name]
        rows = np.array([z[-1] < 2.5 for z in one.series["z"]]) | (one.ensemble < 0)
        kept[name] = subset(one, rows)
    found = rate_matrix(kept, STATES)
    assert [f.message.split(":")[0] for f in found.findings if f.code == "unreached-state"] == ["no path ends in c"]
    assert found.values[0, 2] == found.values[1, 2] == 0
    assert np.isnan(found.standard_errors[:2, 2]).all()
    assert found.populations[2].value == 0
    assert np.isinf(found.passage_times[:2, 2]).all()
    assert found.passage_time("a", "c").value == np.inf
    assert np.isfinite(found.passage_times[2]).all()
    found = rate_matrix({**kept, "b": runs["b"]}, STATES)
    [finding] = [f for f in found.findings if f.code == "unseen-transition"]
    assert finding.message.startswith("no path from a ends in c:")


def subset(samples, rows):
    names = ("ensemble", "chain", "step", "maximum", "minimum", "length", "ends_in_b")
    series = {name: tuple(v for v, kept in zip(values, rows, strict=True) if kept) for name, values in samples.series.items()}
    return replace(samples, **{name: getattr(samples, name)[rows] for name in names}, series=series)


def test_findings_of_runs_say_from_which_state():
    runs = {name: sampled(name, 12, 2) for name in STATES}
    findings = rate_matrix(runs, STATES).findings
    assert {f.message.split(":")[0] for f in findings if f.code == "few-blocks"} == {"from a", "from b", "from c"}


def test_what_gives_no_rates_is_refused(runs):
    with pytest.raises(DataError, match="samples are of a, b, states are a, b, c"):
        rate_matrix({name: runs[name] for name in "ab"}, STATES)
    with pytest.raises(DataError, match="at least two"):
        rate_matrix({"a": runs["a"]}, {"a": STATES["a"]})
    with pytest.raises(DataError, match=r"from b have no series of y, z, (.|\n)*record=\[x, y, z\]"):
        rate_matrix({**runs, "b": replace(runs["b"], series={"x": runs["b"].series["x"]})}, STATES)
    with pytest.raises(DataError, match="paths from a end in no state, one at x = 0, y = 0, z = 3"):
        rate_matrix(runs, STATES | {"c": Z > 3.5})
    with pytest.raises(DataError, match="paths from a end in b and c"):
        rate_matrix(runs, STATES | {"c": (Z > 2.5) | (Y > 1.5)})
    with pytest.raises(DataError, match="paths from a start elsewhere"):
        rate_matrix({"a": runs["b"], "b": runs["a"], "c": runs["c"]}, STATES)
    with pytest.raises(DataError, match="time between frames"):
        rate_matrix({**runs, "c": replace(runs["c"], stride=2.0)}, STATES)
    with pytest.raises(DataError, match=r"\[0-\]"):
        rate_matrix({**runs, "c": subset(runs["c"], runs["c"].ensemble >= 0)}, STATES)
    flipped = replace(runs["a"], ends_in_b=~runs["a"].ends_in_b)
    with pytest.raises(DataError, match="end where its run did not stop them"):
        rate_matrix({**runs, "a": flipped}, STATES)
    found = rate_matrix(runs, STATES)
    assert isinstance(found, RateMatrix)
    with pytest.raises(DataError, match="no state 'd'"):
        found.rate("a", "d")
    with pytest.raises(DataError, match="to itself"):
        found.passage_time("a", "a")


def test_kept_paths_serve_as_well_as_records():
    kept = {name: sampled(name, 30, 4, record=(), keep_paths=True).with_series(CVS) for name in STATES}
    recorded = {name: sampled(name, 30, 4) for name in STATES}
    np.testing.assert_array_equal(rate_matrix(kept, STATES).values, rate_matrix(recorded, STATES).values)


def test_interfaces_are_placed_where_the_other_states_lie_off_the_order_parameter():
    paths = [through_the_centre(0, j) for j in (1, 2)]
    sampling = TransitionInterfaceSampling.from_paths(paths, STAR, BACK < -2.5, STATES["b"] | STATES["c"], along=BACK, seed=3)
    assert sampling.interfaces[0] == -2.5
    rate = sampling.run(n_cycles=40, seed=3, n_sets=16).rate.rate
    assert 0 < rate.relative_error < 0.25
    # 16 sets: 7 errors with probability 4e-6
    assert abs(np.log(rate.value / STAR.exact()[0][0].sum())) < 7 * rate.relative_error
