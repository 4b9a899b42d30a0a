"""Whether replicas travel: what windows exchanged, round trips between the windows furthest apart, and where they get stuck.

A replica is a configuration followed through the windows it is handed to.  A round trip leads from one of the two end
windows to the other and back (Katzgraber, Trebst, Huse & Troyer, J. Stat. Mech. P03018 (2006), sec. 2).  Its mean time is
twice the time that replicas spent under way (since each first touched an end) over the number of passages from end to
end: unlike the mean of completed trips it is not biased towards short ones when runs are short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError, Finding
from couloir.trajectory import Array

if TYPE_CHECKING:
    import pandas as pd

IntArray = npt.NDArray[np.int64]

LEAST_ROUND_TRIPS = 1.0
"""Mean round trips per replica below which replicas are said not to travel."""


@dataclass(frozen=True, eq=False)
class ExchangeReport:
    """What exchange between windows achieved.

    Attributes
    ----------
    n_attempts : exchange attempts of each window's walkers, all together.
    left : (n_windows,) share of attempts in which a window's configuration left it; NaN for a window that never took part.
    neighbours : (n_pairs, 2) windows next to each other.
    passed : (n_pairs,) share of attempts in which a configuration went from one of the two straight to the other, per direction.
    ends : the two windows furthest apart.
    round_trips : (n_replicas,) finished trips from one end to the other and back; a passage counts one half.
    round_trip_time : mean time of a round trip, ps; infinite without a passage.
    standard_error : of ``round_trip_time``, ps, from the spread between replicas; NaN when that is unknown.
    paths : per replica, (n_attempts + 1,) the window it was in from the start and after each attempt.
    interval : time between attempts, ps.
    findings : what is wrong.
    """

    n_attempts: int
    left: Array
    neighbours: IntArray
    passed: Array
    ends: tuple[int, int]
    round_trips: Array
    round_trip_time: float
    standard_error: float
    paths: tuple[IntArray, ...] = field(repr=False)
    interval: float
    findings: tuple[Finding, ...] = ()

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per pair of neighbours: the windows and the share of attempts in which configurations passed."""
        import pandas as pd

        return pd.DataFrame({"window": self.neighbours[:, 0], "neighbour": self.neighbours[:, 1], "passed": self.passed})

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *(f"  {f}" for f in self.findings)])

    def lines(self) -> list[str]:
        """Return what happened as lines of text, findings left out."""
        time = (
            "none finished" if not np.isfinite(self.round_trip_time) else f"{self.round_trip_time:.3g} ± {self.standard_error:.1g} ps each"
        )
        lines = [
            f"Exchange: {self.n_attempts} attempts; a configuration left its window in {100 * np.nanmean(self.left):.0f} % of them",
            f"  round trips between windows {self.ends[0]} and {self.ends[1]}: {self.round_trips.sum():g} by "
            f"{len(self.round_trips)} replicas ({time})",
        ]
        if len(self.passed):
            worst = int(np.argmin(self.passed))
            a, b = self.neighbours[worst]
            lines.append(f"  fewest passages between neighbours: windows {a} and {b}, in {100 * self.passed[worst]:.1f} % of attempts")
        return lines


def replica_places(sources: IntArray) -> IntArray:
    """Return the place of every replica, (n_attempts + 1, n_places), from the source of every place at each attempt.

    Raises
    ------
    DataError : an attempt is not a permutation of the places.
    """
    sources = np.asarray(sources, dtype=np.int64)
    n = sources.shape[1]
    if not (np.sort(sources, axis=1) == np.arange(n)).all():
        raise DataError("an exchange attempt is not a permutation", "give the place whose configuration each place was given")
    occupant = np.arange(n)
    out = np.empty((len(sources) + 1, n), dtype=np.int64)
    out[0] = occupant
    for t, source in enumerate(sources, 1):
        occupant = occupant[source]
        out[t, occupant] = np.arange(n)
    return out


def passages(visited: IntArray, ends: tuple[int, int]) -> tuple[int, int]:
    """Return how often a replica passed from one end to the other, and for how many attempts it was under way.

    Parameters
    ----------
    visited : (n_attempts + 1,) the window of the replica.
    ends : two windows.
    """
    touched = np.flatnonzero((visited == ends[0]) | (visited == ends[1]))
    if len(touched) == 0:
        return 0, 0
    return int((np.diff(visited[touched]) != 0).sum()), len(visited) - 1 - int(touched[0])


def neighbours(distance: Array) -> IntArray:
    """Return the pairs (n_pairs, 2) of windows that are next to each other, given all distances (n_windows, n_windows).

    Two windows are neighbours when no third lies in the ball between them (the Gabriel graph), nor on it: along one CV these
    are adjacent windows, around the circle when it is periodic; on a rectangular grid its edges, not the diagonals.
    """
    square = distance**2
    n = len(square)
    free = np.triu(np.ones((n, n), dtype=bool), 1)
    for k in range(n):
        one, other = square[:, k, None], square[None, :, k]
        # Nearer to both than they are to each other: a second window at the same place blocks nothing.
        between = np.maximum(one, other) < square * (1 - 1e-9)
        free &= ~(between & (one + other < square * (1 + 1e-9)))
    return np.argwhere(free)


def exchange_report(histories: Sequence[Any], distance: Array, halfway: Callable[[int, int], str] | None = None) -> ExchangeReport:
    """Return what groups of walkers exchanged.

    Parameters
    ----------
    histories : one per group: ``windows`` (n_places,), ``sources`` and ``took_part`` (n_attempts, n_places) and ``interval``
        in ps, as :func:`couloir.sampling.chunks.exchange_history` returns them.
    distance : (n_windows, n_windows) between window centres, nearest images.
    halfway : the place between two windows as text (``"phi = 1.9 rad"``), for the advice in findings.

    Raises
    ------
    DataError : nothing has been exchanged, or an attempt is not a permutation.
    """
    used = [h for h in histories if len(h.sources) and len(h.windows) > 1]
    if not used:
        raise DataError(
            "no configurations were exchanged", "run with exchange=True and at least two windows, for longer than one exchange interval"
        )
    n = len(distance)
    moved, attempts = np.zeros((n, n)), np.zeros(n)
    first, second = (int(i) for i in np.unravel_index(int(np.argmax(distance.round(9))), distance.shape))
    counts, under_way, paths = [], [], []
    for history in used:
        places = replica_places(history.sources)
        visited = np.asarray(history.windows)[places]
        active = np.take_along_axis(np.asarray(history.took_part), places[:-1], axis=1)
        np.add.at(moved, (visited[:-1][active], visited[1:][active]), 1)
        attempts += np.bincount(visited[:-1][active], minlength=n)
        for replica, ran in zip(visited.T, active.T, strict=True):
            number, steps = passages(np.concatenate([replica[:1], replica[1:][ran]]), (first, second))
            counts.append(number)
            under_way.append(steps * history.interval)
            paths.append(replica)
    pairs = neighbours(distance)
    share = moved / np.maximum(attempts, 1)[:, None]
    left = np.where(attempts > 0, 1.0 - np.diag(share), np.nan)
    passed = 0.5 * (share[pairs[:, 0], pairs[:, 1]] + share[pairs[:, 1], pairs[:, 0]])
    time, error = _round_trip_time(np.array(counts, dtype=float), np.array(under_way))
    report = ExchangeReport(
        n_attempts=sum(len(h.sources) for h in used), left=left, neighbours=pairs, passed=passed, ends=(first, second),
        round_trips=np.array(counts) / 2, round_trip_time=time, standard_error=error, paths=tuple(paths), interval=used[0].interval,
    )  # fmt: skip
    return replace(report, findings=_findings(report, halfway))


def _round_trip_time(passages: Array, time: Array) -> tuple[float, float]:
    """Return the mean round-trip time and its standard error (that of a ratio of sums over replicas)."""
    n = len(passages)
    if passages.sum() == 0:
        return np.inf, np.nan
    ratio = float(2 * time.sum() / passages.sum())
    if n < 2:
        return ratio, np.nan
    residual = 2 * time - ratio * passages
    return ratio, float(np.sqrt(n / (n - 1) * (residual**2).sum()) / passages.sum())


def findings_that_matter(report: ExchangeReport | None, others: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings of an exchange report if ``others`` say that walkers or windows disagree or share nothing.

    Replicas need not travel where walkers agree without it: windows are right, each by itself, long before the first round trip.
    """
    disagree = {"walkers-disagree", "windows-disagree", "disconnected-windows"} & {finding.code for finding in others}
    return report.findings if report is not None and disagree else ()


def _findings(report: ExchangeReport, halfway: Callable[[int, int], str] | None) -> tuple[Finding, ...]:
    mean = float(report.round_trips.mean())
    if mean >= LEAST_ROUND_TRIPS:
        return ()
    message = (
        f"replicas made {mean:.2g} round trips each between windows {report.ends[0]} and {report.ends[1]}: "
        "exchange has not yet mixed what the windows started from"
    )
    worst = int(np.argmin(report.passed))
    a, b = (int(w) for w in report.neighbours[worst])
    stuck = float(report.passed[worst])
    if stuck < 0.02:
        place = f"between windows {a} and {b}" if halfway is None else f"at {halfway(a, b)}, between windows {a} and {b}"
        fix = f"insert a window {place} (configurations pass there in {100 * stuck:.1g} % of attempts)"
        return (Finding("few-round-trips", message, fix),)
    return (Finding("few-round-trips", message, "run longer"),)
