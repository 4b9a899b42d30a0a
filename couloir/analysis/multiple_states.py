"""Rate constants between many states, from one interface sampling out of each.

A run out of state i has all other states together as its B, and an order parameter of its own that grows out of i.  Its flux times
the probability that a departure ends in j is k_ij (Rogal & Bolhuis, J. Chem. Phys. 129, 224107 (2008)); since every path carries the
WHAM weight it has among departures (:mod:`couloir.analysis.path_weights`), that probability is a weighted share of all paths, also of
those that end in j without having crossed the last interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from couloir.analysis.crossing import path_times, positive, require_minus, share
from couloir.analysis.interface_drift import drift
from couloir.analysis.interface_samples import MINUS, InterfaceSamples
from couloir.analysis.path_weights import PathWeights, path_weights
from couloir.analysis.positive import PositiveEstimate, ShareEstimate
from couloir.analysis.samples import IntArray
from couloir.cv.region import Region
from couloir.errors import DataError, Finding, nearest
from couloir.trajectory import Array

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class RateMatrix:
    """Rate constants between states, as the generator of a Markov process that jumps between them.

    A system is in the overall state i from when it enters i until it enters another state; rates are per time spent so.

    Attributes
    ----------
    names : (n,) of the states.
    values : (n, n) 1/ps; row i, column j is the rate from i to j, and minus the rate out of i is on the diagonal: rows add up to 0.
    standard_errors : (n, n) of ``values``, 1/ps; NaN where no path ended in j, so that the rate 0 has an unknown error.
    replicas : (n_bootstrap, n, n) bootstrap replicas of ``values``; rows are resampled independently, as their runs are independent.
    freedom : (n,) degrees of freedom of the errors in each row.
    findings : what is unsure.
    """

    names: tuple[str, ...]
    values: Array
    standard_errors: Array
    replicas: Array
    freedom: Array
    findings: tuple[Finding, ...] = ()

    def rate(self, start: str, end: str) -> PositiveEstimate:
        """Return the rate constant from one state to another, 1/ps, with its log-normal interval.

        Raises
        ------
        DataError : a name is unknown, or both are the same.
        """
        i, j = self._pair(start, end)
        return positive(self._all[:, i, j], "1/ps", float(self.freedom[i]))

    @property
    def populations(self) -> tuple[ShareEstimate, ...]:
        """Share of time in each overall state, one per name; NaN where the rates do not tell.

        They balance the transitions into and out of each state, which holds whether or not the states forget how they were entered.
        """
        shares = np.array([stationary(one) for one in self._all])
        return tuple(share(draws) for draws in shares.T)

    @property
    def passage_times(self) -> Array:
        """Mean time from having entered state i until state j is entered, (n, n) ps; 0 on the diagonal, infinite where j may be missed.

        It takes a process that forgets in each state how it came there: stable states, well inside their basins.
        """
        return passage_times(self.values)

    def passage_time(self, start: str, end: str) -> PositiveEstimate:
        """Return one of :attr:`passage_times` with its error, ps.

        Raises
        ------
        DataError : a name is unknown, or both are the same.
        """
        i, j = self._pair(start, end)
        times = np.array([passage_times(one)[i, j] for one in self._all])
        freedom = float(self.freedom.min())
        if not np.isfinite(times).all():
            return PositiveEstimate(float(times[0]), float("nan"), "ps", float("inf"), freedom)
        return positive(times, "ps", freedom)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per pair of different states: the rate in 1/ps, its error and 95 % interval, and the passage time in ps."""
        import pandas as pd

        times, rows = self.passage_times, []
        for i, start in enumerate(self.names):
            for j, end in enumerate(self.names):
                if i != j:
                    low, high = self.rate(start, end).interval
                    rows.append({
                        "start": start, "end": end, "rate": self.values[i, j], "standard_error": self.standard_errors[i, j],
                        "low": low, "high": high, "passage_time_ps": times[i, j],
                    })  # fmt: skip
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        width = max(19, *(len(name) + 2 for name in self.names))
        lines = [f"RateMatrix of {len(self.names)} states, 1/ps, from the state of the row to that of the column"]
        lines.append("  " + " " * width + "".join(f"{name:>{width}}" for name in (*self.names, "share of time")))
        for i, (name, population) in enumerate(zip(self.names, self.populations, strict=True)):
            cells = [f"{k:.3g} ± {e:.2g}" for k, e in zip(self.values[i], self.standard_errors[i], strict=True)]
            cells[i] = "-"
            lines.append("  " + f"{name:>{width}}" + "".join(f"{cell:>{width}}" for cell in (*cells, str(population))))
        return "\n".join([*lines, *map(str, self.findings)])

    @property
    def _all(self) -> Array:
        return np.concatenate([self.values[None], self.replicas])

    def _pair(self, start: str, end: str) -> tuple[int, int]:
        for name in (start, end):
            if name not in self.names:
                raise DataError(f"there is no state {name!r}{nearest(name, self.names)}")
        if start == end:
            raise DataError(f"a rate leads from one state to another, not from {start!r} to itself", "values has the rate out of a state")
        return self.names.index(start), self.names.index(end)


def rate_matrix(
    samples: Mapping[str, InterfaceSamples], states: Mapping[str, Region], *, n_bootstrap: int = 200, seed: int = 0
) -> RateMatrix:
    """Return the rate constants between states: k_ij = flux out of i * P(j | first interface of i).

    The sum of a row is the rate constant of its samples, :attr:`InterfaceSamples.rate`.  In which state a path ended is what the
    recorded values of its last frame say: run with ``record=`` all CVs of all states.

    Parameters
    ----------
    samples : per state, what interface sampling from it returned: ``region_a`` the state, ``region_b`` the union of all others, and
        ``along`` any order parameter that grows out of the state.  Other states may lie anywhere beyond its first interface.
    states : the same names, with the regions; they must not overlap.
    n_bootstrap, seed : replicas for the errors; see :func:`path_weights`.

    Raises
    ------
    DataError : names differ or are fewer than two, strides differ, a series of a CV of a state is missing, a path starts or ends in
        none or several of the states or not where its samples say, there are no paths of [0-], or an interface is not reached.
    """
    names = tuple(states)
    if len(names) < 2 or set(samples) != set(names):
        raise DataError(
            f"samples are of {', '.join(samples) or 'nothing'}, states are {', '.join(names) or 'none'}",
            "give at least two states, and one run of interface sampling from each",
        )
    if len({round(one.stride, 12) for one in samples.values()}) > 1:
        raise DataError("the runs differ in the time between frames", "use one stride: states are entered at frames")
    replicas = np.zeros((1 + n_bootstrap, len(names), len(names)))
    seen = np.zeros((len(names), len(names)), dtype=bool)
    freedom, findings = np.empty(len(names)), list[Finding]()
    for i, name in enumerate(names):
        one = samples[name]
        require_minus(one)
        weights = path_weights(one, n_bootstrap=n_bootstrap, seed=seed, label=f"from {name}")
        replicas[:, i], ends = _row(name, one, states, weights)
        seen[i, ends], freedom[i] = True, weights.freedom
        told = (*one.findings, *weights.findings, *drift(one))
        findings += [replace(finding, message=f"from {name}: {finding.message}") for finding in told]
    errors = np.array([[positive(draws, "1/ps", 1.0).standard_error for draws in row] for row in np.abs(replicas).transpose(1, 2, 0)])
    errors[replicas[0] == 0] = np.nan
    return RateMatrix(names, replicas[0], errors, replicas[1:], freedom, (*findings, *_unseen(names, seen)))


def _row(name: str, samples: InterfaceSamples, states: Mapping[str, Region], weights: PathWeights) -> tuple[Array, IntArray]:
    """Return replicas (1 + n_bootstrap, n_states) of a row of the generator, and the numbers of states that paths ended in."""
    plus = np.flatnonzero(samples.ensemble != MINUS)
    own = list(states).index(name)
    if (_state_of(name, samples, states, plus, 0) != own).any():
        raise DataError(f"paths from {name} start elsewhere", f"check that region_a of this run was {states[name]}")
    ends = _state_of(name, samples, states, plus, -1)
    if ((ends != own) != samples.ends_in_b[plus]).any():
        raise DataError(f"paths from {name} end where its run did not stop them", "run with the union of all other states as region_b")
    time_in, time_out = path_times(samples, weights)
    arrivals = weights.sums(plus, ends != own, ends, len(states))
    row = arrivals / (time_in + time_out)[:, None]
    row[:, own] = -row.sum(axis=1)
    return row, np.unique(ends[ends != own])


def _state_of(name: str, samples: InterfaceSamples, states: Mapping[str, Region], rows: IntArray, frame: int) -> IntArray:
    """Return the number of the state that one frame (first or last) of paths is in, (n_rows,)."""
    cvs = {cv.name: cv for region in states.values() for cv in region.cvs}
    missing = [cv for cv in cvs if cv not in samples.series]
    if missing:
        raise DataError(
            f"paths from {name} have no series of {', '.join(missing)}, which say in which state a path ends",
            f"run with record=[{', '.join(cvs)}], or keep_paths=True and samples.with_series([...])",
        )
    values = {cv: np.array([samples.series[cv][r][frame] for r in rows]) for cv in cvs}
    inside = np.array([region.contains_values(values) for region in states.values()])
    wrong = np.flatnonzero(inside.sum(axis=0) != 1)
    if len(wrong):
        at, found = wrong[0], [state for state, there in zip(states, inside[:, wrong[0]], strict=True) if there]
        where = ", ".join(f"{cv} = {value[at]:.4g}" for cv, value in values.items())
        raise DataError(
            f"{len(wrong)} of {len(rows)} paths from {name} {'end' if frame else 'start'} in {' and '.join(found) or 'no state'}, "
            f"one at {where}",
            "make states that do not overlap, and run with the union of all others as region_b",
        )
    return np.asarray(np.argmax(inside, axis=0), dtype=np.int64)


def _unseen(names: tuple[str, ...], seen: npt.NDArray[np.bool_]) -> tuple[Finding, ...]:
    """Return a finding per state that no path ends in, and per state from which none ends in some of the others."""
    found, fix = [], "sample more, or start also from paths that do"
    reached = np.asarray(seen.any(axis=0))
    for name in np.array(names)[~reached]:
        text = f"no path ends in {name}: rates into it and its share of time are 0 with unknown error"
        found.append(Finding("unreached-state", text, fix))
    for i, name in enumerate(names):
        ends = [other for j, other in enumerate(names) if j != i and reached[j] and not seen[i, j]]
        if ends:
            text = f"no path from {name} ends in {' or '.join(ends)}: the rate is 0 with unknown error"
            found.append(Finding("unseen-transition", text, f"{fix}, unless all go by another state"))
    return tuple(found)


def stationary(rates: Array) -> Array:
    """Return the populations that a generator (n, n) keeps as they are; NaN where there are several such.

    By elimination without subtractions, which loses no digits where rates differ by many orders of magnitude (Grassmann, Taksar &
    Heyman, Oper. Res. 33, 1107 (1985)).
    """
    n = len(rates)
    leads = _leads(rates)
    kept = np.flatnonzero((~leads | leads.T).all(axis=1))  # states that every state they lead to leads back to
    if not leads[np.ix_(kept, kept)].all():
        return np.full(n, np.nan)
    k = rates[np.ix_(kept, kept)].astype(np.float64)
    for last in range(len(kept) - 1, 0, -1):
        k[:last, last] /= k[last, :last].sum()
        k[:last, :last] += np.outer(k[:last, last], k[last, :last])
    share: Array = np.ones(len(kept))
    for last in range(1, len(kept)):
        share[last] = share[:last] @ k[:last, last]
    out: Array = np.zeros(n)
    out[kept] = share / share.sum()
    return out


def passage_times(rates: Array) -> Array:
    """Return mean first passage times (n, n) from state i to j under a generator: the solution t of sum_k K_ik t_k = -1 with t_j = 0."""
    n = len(rates)
    times: Array = np.full((n, n), np.inf)
    for j in range(n):
        stopped = np.array(rates)
        stopped[j] = 0.0
        leads = _leads(stopped)
        sure = np.asarray((~leads | leads[:, j]).all(axis=1))  # wherever these lead to, j can still be reached
        times[j, j], sure[j] = 0.0, False
        at = np.flatnonzero(sure)
        times[at, j] = np.linalg.solve(-rates[np.ix_(at, at)], np.ones(len(at)))
    return times


def _leads(rates: Array) -> npt.NDArray[np.bool_]:
    """Return whether state i leads to j, (n, n), by any number of transitions; every state leads to itself."""
    leads = (rates > 0) | np.eye(len(rates), dtype=bool)
    for k in range(len(rates)):
        leads |= np.outer(leads[:, k], leads[k])
    return leads
