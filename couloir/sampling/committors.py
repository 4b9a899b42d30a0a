"""Committors by shooting: from a configuration, how often does fresh dynamics reach B before A?

Every shot is a Bernoulli trial.  With k of n shots in B, p_B is estimated by k/n, and its standard error by the standard
deviation of the posterior of p_B under Jeffreys' prior, Beta(k + 1/2, n - k + 1/2), which 0 of n and n of n shots have too:

    p' = (k + 1/2) / (n + 1),      s^2 = p' (1 - p') / (n + 2)

Shots go where s is still too large, which is near p_B = 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.cv.region import Region
from couloir.errors import DataError, Finding
from couloir.sampling.dragging import propagated
from couloir.sampling.engine import Engine, as_states, steps
from couloir.sampling.shot_log import ShotLog, digest_of
from couloir.sampling.velocities import fresh
from couloir.store import Store
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array, State, Trajectory
from couloir.units import convert

if TYPE_CHECKING:
    import pandas as pd

IntArray = npt.NDArray[np.int64]

_BATCH = 4096
"""Shots propagated at once: bounds the memory that a batch takes."""
_KEPT_BATCH = 256
"""The same where batches are written down: bounds what is lost when a call is killed."""
_STRIDE, _LONGEST = 10, 10_000
"""Time steps between frames, and frames of the longest shot, by default."""
_SIGNIFICANT = 0.05
_A, _B, _UNFINISHED, _FAILED = range(4)


@dataclass(frozen=True, eq=False)
class CommittorResult:
    """Committors of n configurations.

    Attributes
    ----------
    p : (n,) share of the finished shots that reached B before A; 0 or 1 inside A or B, NaN where no shot finished.
    standard_error : (n,) binomial, by Jeffreys' posterior (see the module); 0 inside A or B, NaN where no shot finished.
    n_shots : (n,) how many shots were made; 0 inside A or B.
    to_a, to_b, unfinished, failed : (n,) how many of them reached A, reached B, reached neither in time, and broke down.
    target : the standard error that was asked for.
    force_evaluations : steps of dynamics that were spent.
    warnings : where the answer is doubtful.
    """

    p: Array
    standard_error: Array
    n_shots: IntArray
    to_a: IntArray
    to_b: IntArray
    unfinished: IntArray
    failed: IntArray
    target: float
    force_evaluations: int
    warnings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.p)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per configuration."""
        import pandas as pd

        return pd.DataFrame({
            "p": self.p, "standard_error": self.standard_error, "n_shots": self.n_shots, "to_a": self.to_a,
            "to_b": self.to_b, "unfinished": self.unfinished, "failed": self.failed,
        })  # fmt: skip

    def __str__(self) -> str:
        known = self.p[np.isfinite(self.p)]
        span = f"p_B from {known.min():.2f} to {known.max():.2f}" if len(known) else "p_B unknown"
        lost = f", {self.unfinished.sum()} unfinished, {self.failed.sum()} failed" if self.unfinished.any() or self.failed.any() else ""
        return "\n".join([
            f"CommittorResult: {len(self)} configurations, {span}; {self.n_shots.sum()} shots{lost}, "
            f"{self.force_evaluations} force evaluations",
            *(f"  {warning}" for warning in self.warnings),
        ])  # fmt: skip


def committor(
    engine: Engine,
    states: State | Sequence[State],
    region_a: Region,
    region_b: Region,
    *,
    standard_error: float = 0.05,
    max_shots: int | None = None,
    max_duration: Any = None,
    stride: Any = None,
    seed: int,
    store: Store | None = None,
    name: str = "committor",
) -> CommittorResult:
    """Estimate the probability to reach B before A, by shots with fresh velocities, until its error is small everywhere.

    The first round gives every state half of the shots that p_B = 1/2 needs; each later one what the shots so far say is
    missing.  A state is done when its error would be below the target even with p_B one error closer to 1/2: stopping at
    the first small error would favour extreme p_B.  The shots depend on a state's place and on ``seed``, not on the others.
    With a store, every batch of shots is committed when it is done; the same call again goes on behind the last one and ends
    with the same numbers as a call that was never interrupted.

    Parameters
    ----------
    states : configurations; their velocities are not used.  One inside A or B has p_B = 0 or 1 without a shot.
    standard_error : to be reached for every state; p_B = 1/2 takes 1/(2 standard_error)^2 shots.
    max_shots : per state, unfinished and failed ones included; default twice what p_B = 1/2 needs.
    max_duration : time limit of a shot, a multiple of ``stride``; default 10,000 strides.  Shots that reach it are left out of ``p``.
    stride : time between the frames at which it is decided whether A or B is reached; default ten time steps.
    store : where shots are written down; None keeps nothing.
    name : what the shots are called in the store.

    Raises
    ------
    DataError : the target or the limit is out of range, or A and B overlap where a state is or a shot ends.
    StoreError : the store holds other shots of this name, or cannot be written.
    """
    start = as_states(states)
    if not 0 < standard_error < 0.5:
        raise DataError(f"standard_error = {standard_error} of a probability must lie between 0 and 0.5", "try 0.05")
    needed = int(np.ceil(0.25 / standard_error**2))
    limit = 2 * needed if max_shots is None else max_shots
    if limit < 1:
        raise DataError(f"max_shots = {max_shots}, expected at least 1")
    where = _ends(np.array([state.positions for state in start]), region_a, region_b)
    counts = np.zeros((len(start), 4), dtype=np.int64)
    want = np.where(where == _UNFINISHED, min(limit, -(-needed // 2)), 0)
    spent = 0
    every = _STRIDE * engine.time_step if stride is None else convert(stride, "ps", "stride")
    times = {"duration": _LONGEST * every if max_duration is None else max_duration, "record_stride": every}
    shooting = _Shooting(engine, start, region_a, region_b, times, seed)
    log = ShotLog(store, name, shooting.plan(standard_error, limit) if store is not None else {})
    size = _BATCH if store is None else _KEPT_BATCH
    while want.any():
        shots = [(int(i), int(counts[i].sum()) + k) for i in np.flatnonzero(want) for k in range(want[i])]
        for at in range(0, len(shots), size):
            batch = shots[at : at + size]
            outcomes, cost = log.outcomes(batch, shooting.run)
            np.add.at(counts, (np.array([i for i, _ in batch]), outcomes), 1)
            spent += cost
        want = np.where(where == _UNFINISHED, _missing(counts, standard_error, limit), 0)
    return _result(counts, where, standard_error, spent)


def jeffreys_error(to_a: Any, to_b: Any) -> Array:
    """Return the posterior standard deviation of p_B under Jeffreys' prior (Jeffreys, Proc. R. Soc. A 186, 453 (1946))."""
    n = np.asarray(to_a) + np.asarray(to_b)
    mean = (np.asarray(to_b) + 0.5) / (n + 1)
    return np.asarray(np.sqrt(mean * (1 - mean) / (n + 2)))


@dataclass(frozen=True, eq=False)
class _Shooting:
    engine: Engine
    states: list[State]
    region_a: Region
    region_b: Region
    times: dict[str, Any]
    seed: int

    def plan(self, standard_error: float, limit: int) -> dict[str, Any]:
        """Return everything that the shots follow from, as JSON."""
        times = {key: convert(value, "ps", key) for key, value in self.times.items()}
        return {
            "dynamics": self.engine.digest(), "A": str(self.region_a), "B": str(self.region_b), "states": digest_of(self.states),
            "standard_error": standard_error, "max_shots": limit, "seed": self.seed, **times,
        }  # fmt: skip

    def run(self, shots: Sequence[tuple[int, int]]) -> tuple[IntArray, int]:
        """Return how the shots (state, number of the shot) end, and what they cost in steps."""
        starts = fresh(self.engine, [self.states[i] for i, _ in shots], [integer_seed(self.seed, "velocities", *shot) for shot in shots])
        seeds = [integer_seed(self.seed, "shot", *shot) for shot in shots]
        done = propagated(self.engine, starts, stop=self.region_a | self.region_b, seed=seeds, **self.times)
        outcomes = np.full(len(done), _UNFINISHED)
        outcomes[[t.ended == "failed" for t in done]] = _FAILED
        stopped = np.flatnonzero([t.ended == "stopped" for t in done])
        if len(stopped):
            ends = np.array([_last(done[i]).positions for i in stopped])
            outcomes[stopped] = _ends(ends, self.region_a, self.region_b)
        records = sum(0 if t.series is None else len(t.series) for t in done)
        return outcomes, records * steps(self.times["record_stride"], self.engine.time_step, "stride")


def _last(trajectory: Trajectory) -> State:
    assert trajectory.last is not None
    return trajectory.last


def _ends(positions: Array, region_a: Region, region_b: Region) -> IntArray:
    in_a, in_b = region_a.contains(positions), region_b.contains(positions)
    if (in_a & in_b).any():
        raise DataError(f"A ({region_a}) and B ({region_b}) overlap: a configuration is in both", "make the two states disjoint")
    return np.where(in_a, _A, np.where(in_b, _B, _UNFINISHED))


def _missing(counts: IntArray, target: float, limit: int) -> IntArray:
    """Return how many more shots each state (row of ``counts``) gets now; see :func:`committor`."""
    made, to_a, to_b = counts.sum(axis=1), counts[:, _A], counts[:, _B]
    finished = to_a + to_b
    smaller = (np.minimum(to_a, to_b) + 0.5) / (finished + 1)  # the variance is the same for p and 1 - p
    cautious = np.minimum(smaller + jeffreys_error(to_a, to_b), 0.5)
    lacking = np.maximum(np.ceil(cautious * (1 - cautious) / target**2) - 2 - finished, 0)
    # if a share of the shots is lost, as many more must be made
    more = np.ceil(lacking * made / np.maximum(finished, 1)).astype(np.int64)
    return np.asarray(np.minimum(np.minimum(more, made), limit - made), dtype=np.int64)


def _result(counts: IntArray, where: IntArray, target: float, spent: int) -> CommittorResult:
    to_a, to_b, unfinished, failed = (np.array(column) for column in counts.T)
    finished, inside = to_a + to_b, where != _UNFINISHED
    p = np.where(finished > 0, to_b / np.maximum(finished, 1), np.nan)
    error = np.where(finished > 0, jeffreys_error(to_a, to_b), np.nan)
    p[inside], error[inside] = (where == _B)[inside], 0.0
    warnings = tuple(_findings(counts, p, error, inside, target))
    return CommittorResult(p, error, counts.sum(axis=1), to_a, to_b, unfinished, failed, target, spent, warnings)


def _findings(counts: IntArray, p: Array, error: Array, inside: npt.NDArray[np.bool_], target: float) -> list[Finding]:
    found, made = [], counts.sum(axis=1)
    finished = counts[:, _A] + counts[:, _B]
    for column, code, what, fix in (
        (_UNFINISHED, "unfinished-shots", "reached neither A nor B in time", "give a longer max_duration"),
        (_FAILED, "failed-shots", "broke down", "use a shorter time step, or minimize the configurations first"),
    ):
        lost = counts[:, column]
        # had all lost shots ended in the less likely state, p would differ by this much
        shift = lost / np.maximum(finished + lost, 1) * np.maximum(p, 1 - p)
        bad = (lost > 0) & ~(shift <= error)  # NaN, where nothing finished, counts as bad
        if bad.any():
            found.append(Finding(
                code, f"{lost.sum()} of {made.sum()} shots {what}; this may move p_B by more than its error for {bad.sum()} of "
                f"{len(p)} configurations", fix,
            ))  # fmt: skip
    short = ~inside & ~(error <= target)
    if short.any():
        worst = f"the largest is {np.nanmax(error[short]):.3g}" if np.isfinite(error[short]).any() else "none of their shots finished"
        message = f"{short.sum()} of {len(p)} configurations have a standard error above {target:g} ({worst})"
        found.append(Finding("committor-error-not-reached", message, "allow more max_shots"))
    return found


@dataclass(frozen=True)
class CommittorHistogram:
    """Whether configurations at one value of a coordinate have one committor.

    Attributes
    ----------
    mean : of p_B over the configurations.
    mean_error : its standard error.
    variance, variance_error : of p_B itself, the binomial variance of the shots subtracted, and its standard error
        (jackknife over configurations); chance may make the estimate negative.
    p_value : how often shots with one p_B for all are spread as widely as these or more.
    n_configurations, n_shots : what it is based on.
    """

    mean: float
    mean_error: float
    variance: float
    variance_error: float
    p_value: float
    n_configurations: int
    n_shots: int

    @property
    def standard_deviation(self) -> float:
        """The intrinsic standard deviation of p_B: 0 if the coordinate is the committor, up to 1/2 if it says nothing."""
        return float(np.sqrt(max(self.variance, 0.0)))

    @property
    def standard_deviation_error(self) -> float:
        """How much larger the intrinsic standard deviation is when its variance is one standard error larger."""
        return float(np.sqrt(max(self.variance, 0.0) + self.variance_error)) - self.standard_deviation

    @property
    def one_committor(self) -> bool:
        """Whether the shots are consistent with one p_B (p-value at least 0.05); with few shots, almost anything is."""
        return self.p_value >= _SIGNIFICANT

    @property
    def largest_standard_deviation(self) -> float:
        """The intrinsic standard deviation that cannot be excluded (two standard errors of the variance)."""
        return float(np.sqrt(max(self.variance, 0.0) + 2 * self.variance_error))

    def __str__(self) -> str:
        verdict = "consistent with one committor" if self.one_committor else "not one committor: the coordinate misses something"
        return (
            f"CommittorHistogram: {self.n_configurations} configurations, {self.n_shots} shots: mean {self.mean:.3f} +- "
            f"{self.mean_error:.3f}, intrinsic standard deviation {self.standard_deviation:.3f} +- {self.standard_deviation_error:.3f}; "
            f"{verdict} (p = {self.p_value:.3g}; up to {self.largest_standard_deviation:.2f} cannot be excluded)"
        )


def committor_histogram_test(to_a: Any, to_b: Any, *, seed: int, n_resamples: int = 9999) -> CommittorHistogram:
    """Test whether configurations harvested at one value of a coordinate share one committor.

    The variance of the shares k_i/n_i holds the binomial variance of the shots, which is subtracted without bias for any
    numbers of shots: E[k(k-1)/(n(n-1))] = p^2, and products of different configurations give the squared mean.  For equal n
    this is the correction of Peters, J. Chem. Phys. 125, 241101 (2006).  The p-value is exact: with one p_B for all and the total of
    hits given, hits are spread over the configurations by a multivariate hypergeometric law; spread is measured by
    sum_i (k_i - n_i k/n)^2 (Tarone, Biometrika 66, 585 (1979)).

    Parameters
    ----------
    to_a, to_b : (n,) finished shots of each configuration; two or more configurations with two or more shots each.  Outcomes must not
        have decided how many shots were made, as :func:`committor` lets them: that alone makes configurations of one
        p_B scatter.  ``committor(..., standard_error=0.01, max_shots=100)`` gives 100 to every configuration.
    n_resamples : random spreads for the p-value.

    Raises
    ------
    DataError : the counts are not whole numbers (n,), or there are too few.
    """
    a, hits = (_counts(values, name) for values, name in ((to_a, "to_a"), (to_b, "to_b")))
    if a.shape != hits.shape or len(a) < 2 or (a + hits).min() < 2:
        raise DataError(
            f"shots of {len(a)} and {len(hits)} configurations", "give both counts of two or more configurations, two or more shots each"
        )
    n = a + hits
    m = len(n)
    share, square = hits / n, hits * (hits - 1) / (n * (n - 1))

    def variance(sum_p: Any, sum_p2: Any, sum_square: Any, size: int) -> Any:
        return sum_square / size - (sum_p**2 - sum_p2) / (size * (size - 1))

    sums = share.sum(), (share**2).sum(), square.sum()
    error = np.nan
    if m > 2:
        without = variance(sums[0] - share, sums[1] - share**2, sums[2] - square, m - 1)
        error = float(np.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum()))
    spread = stream(seed, "committor_histogram_test").multivariate_hypergeometric(n, int(hits.sum()), size=n_resamples, method="marginals")
    expected = n * hits.sum() / n.sum()
    wider = (((spread - expected) ** 2).sum(axis=1) >= ((hits - expected) ** 2).sum() * (1 - 1e-12)).sum()
    return CommittorHistogram(
        float(share.mean()), float(share.std(ddof=1) / np.sqrt(m)), float(variance(*sums, m)), error,
        float((wider + 1) / (n_resamples + 1)), m, int(n.sum()),
    )  # fmt: skip


def _counts(values: Any, name: str) -> IntArray:
    given = np.asarray(values)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.number) or not (given == np.round(given)).all() or (given < 0).any():
        raise DataError(f"{name} has shape {given.shape} and type {given.dtype}, expected whole numbers (n,) of shots, none negative")
    return given.astype(np.int64)
