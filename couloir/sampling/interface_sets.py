"""Paths of all interface ensembles as they are moved and exchanged, and what is noted of them after every cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.analysis.interface_samples import InterfaceSamples, ensemble_name
from couloir.cv.base import CollectiveVariable
from couloir.errors import Finding
from couloir.sampling.interface_ensembles import require_boundary
from couloir.sampling.path_chains import CUT, made_by
from couloir.sampling.path_moves import Reason, Trial
from couloir.sampling.path_store import REASONS, bare
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    from couloir.sampling.interface_sampling import TransitionInterfaceSampling

IntArray = npt.NDArray[np.int64]
Facts = tuple[float, float, int, bool]
"""Maximum and minimum of the order parameter, number of frames, whether the path ends in B."""

FEW_PASSAGES = 20
"""Passages from [0-] to the last ensemble below which channels of the reaction may be those of the first paths."""
_EXCHANGED: tuple[Reason, ...] = ("accepted", "ensemble", "max length", "failed")
"""What can become of an exchange; it is accepted whenever it is possible."""


_HELD = ("paths", "made_by", "_facts", "_lineage", "_from_a")
_COUNTED = ("outcomes", "exchanges")
_NUMBERS = ("free", "force_evaluations", "passages", "_wrapped")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where all sets stand after a cycle.

    Attributes
    ----------
    n_noted : cycles that were noted until then.
    held : per attribute of :class:`InterfaceSets` with an entry per path, these.
    counts : ``outcomes`` and ``exchanges``.
    cut : that attribute.
    numbers : per attribute that is one number, this.
    """

    n_noted: int
    held: dict[str, list[Any]]
    counts: dict[str, dict[Reason, IntArray]]
    cut: IntArray
    numbers: dict[str, int | None]


@dataclass(frozen=True, eq=False)
class Rows:
    """What was noted of some consecutive cycles.

    Attributes
    ----------
    steps : (n_cycles,) their numbers.
    noted : (n_cycles, n_paths, 4) :data:`Facts` of each path.
    which : (n_cycles * n_paths,) number of the values of CVs along each path; empty when none are recorded, as are the next two.
    lengths : (n_distinct,) frames of each distinct path.
    series : (n_cvs, frames) values along all distinct paths, one path after another.
    """

    steps: IntArray
    noted: Array
    which: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    lengths: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    series: Array = field(default_factory=lambda: np.zeros((0, 0)))


class InterfaceSets:
    """The paths of all sets, ensemble after ensemble in each.

    Parameters
    ----------
    sampling : what the paths must be.
    starts : first paths; they carry no weight, and neither do paths that hold a frame of any of them.
    keep_paths : whether paths are noted themselves.
    record : CVs that are evaluated along every path, once.

    Attributes
    ----------
    places : set and ensemble (0 is [0-]) of each path.
    paths : where each stands.
    made_by : the cycle that made each frame of each path; 0: a first path.
    free : the first cycle after which no path held a frame of a first one, or None as long as some do.
    outcomes : per outcome of a shot, how often each ensemble met it.
    exchanges : per outcome of an exchange, how often each pair of neighbours met it; [0-] with [0+] first.  Of the others, the exchange
        of a cycle is accepted where paths pass between the ensembles up to the one and those from the other on.
    passages : how often exchanges carried a path's lineage from [0-] to the last ensemble, in all sets together.
    cut : trials of each ensemble that came to the maximum length, in shots and exchanges.
    force_evaluations : steps of dynamics spent.
    """

    def __init__(
        self,
        sampling: TransitionInterfaceSampling,
        starts: list[Trajectory],
        n_sets: int,
        keep_paths: bool = False,
        record: Sequence[CollectiveVariable] = (),
    ) -> None:
        self.sampling, self.paths, self.n_sets, self.record = sampling, starts, n_sets, tuple(record)
        self.n_ensembles = len(sampling.ensembles)
        self.places = [(s, e) for s in range(n_sets) for e in range(self.n_ensembles)]
        self.max_frames = sampling.max_frames(starts[0].stride)
        self.made_by = [np.zeros(len(path), dtype=np.int64) for path in starts]
        self.free: int | None = None
        self.outcomes = {reason: np.zeros(self.n_ensembles, dtype=np.int64) for reason in REASONS}
        self.exchanges = {reason: np.zeros(self.n_ensembles - 1, dtype=np.int64) for reason in _EXCHANGED}
        self.cut = np.zeros(self.n_ensembles, dtype=np.int64)
        self.force_evaluations = 0
        self.passages = 0
        self._lineage = list(range(len(starts)))
        self._from_a = [False] * len(starts)  # lineages that were in [0-], and not in the last ensemble since
        self._wrapped = 0
        self._facts = [self._look_at(path, e) for path, (_, e) in zip(starts, self.places, strict=True)]
        self._values: list[tuple[Array, ...] | None] = [None] * len(starts)  # of the CVs; found when a path is noted
        self._steps: list[int] = []
        self._noted: list[list[Facts]] = []
        self._series: list[tuple[Array, ...]] = []
        self._kept: list[Trajectory] | None = [] if keep_paths else None

    @property
    def acceptance(self) -> float:
        """Share of the shots that were accepted; 0 before the first."""
        return float(self.outcomes["accepted"].sum()) / max(1, sum(int(count.sum()) for count in self.outcomes.values()))

    def of(self, ensemble: int) -> list[int]:
        """Return where the paths of one ensemble are, set after set."""
        return [s * self.n_ensembles + ensemble for s in range(self.n_sets)]

    def apply(self, trials: Sequence[Trial], step: int, moved: Sequence[int]) -> None:
        """Take one shot of every path in ``moved``; the trials are of all."""
        for c in moved:
            trial = trials[c]
            self.outcomes[trial.reason][self.places[c][1]] += 1
            self.cut[self.places[c][1]] += trial.reason == "max length"
            self.force_evaluations += trial.force_evaluations
            if trial.accepted and trial.path is not None:
                self._move(c, trial.path, made_by(trial, self.made_by[c], step))

    def apply_exchange(self, trials: Sequence[Trial], step: int) -> None:
        """Take the exchange of [0-] and [0+] in every set: each keeps the two frames that it got from the other, and what made them."""
        for c_in, c_out in zip(self.of(0), self.of(1), strict=True):
            pair = trials[c_in], trials[c_out]
            # of two reasons the graver one
            self.exchanges[max((trial.reason for trial in pair), key=_EXCHANGED.index)][0] += 1
            for c, trial in zip((c_in, c_out), pair, strict=True):
                self.cut[self.places[c][1]] += trial.reason == "max length"
                self.force_evaluations += trial.force_evaluations
            new_in, new_out = (trial.path for trial in pair)
            if new_in is None or new_out is None:
                continue
            end, begin = self.made_by[c_in][-2:], self.made_by[c_out][:2]
            _reorder(self._lineage, (c_in, c_out), (c_out, c_in))
            self._move(c_in, new_in, np.append(np.full(len(new_in) - 2, step, dtype=np.int64), begin))
            self._move(c_out, new_out, np.append(end, np.full(len(new_out) - 2, step, dtype=np.int64)))

    def permute(self, draws: Sequence[np.random.Generator]) -> None:
        """Give the paths of [0+] ... [n-1+] of each set to these ensembles anew: any way in which each is in its ensemble is as likely.

        A path that reaches an interface reaches all before it.  From the last ensemble on, each takes one of the paths that reach
        its interface and are left; how many these are does not depend on what was taken before, so that no way is preferred.
        """
        for s, rng in enumerate(draws):
            places = [s * self.n_ensembles + e for e in range(1, self.n_ensembles)]
            left, source = list(places), list(places)
            for e in reversed(range(len(places))):
                able = [c for c in left if self._facts[c][0] >= self.sampling.interfaces[e]]
                source[e] = able[int(rng.integers(len(able)))] if len(able) > 1 else able[0]
                left.remove(source[e])
            for held in (self.paths, self.made_by, self._facts, self._values, self._lineage):
                _reorder(held, places, source)
            for e in range(1, len(places)):  # of the pairs [0+] [1+], ...
                crossed = any(c >= places[e] for c in source[:e])
                self.exchanges["accepted" if crossed else "ensemble"][e] += 1

    def note(self, step: int) -> None:
        """Note every path at the end of a cycle."""
        if self.free is None and not self.stuck:
            self.free = step
        for first in self.of(0):
            self._from_a[self._lineage[first]] = True
            last = self._lineage[first + self.n_ensembles - 1]
            self.passages += self._from_a[last]
            self._from_a[last] = False
        self._steps.append(step)
        self._noted.append(list(self._facts))
        if self._kept is not None:
            self._kept += self.paths
        if self.record:
            for c, path in enumerate(self.paths):
                values = self._values[c] or tuple(cv.evaluate(path.positions) for cv in self.record)
                self._values[c] = values
                self._series.append(values)

    @property
    def steps(self) -> list[int]:
        """Cycles that were noted."""
        return self._steps

    @property
    def stuck(self) -> list[int]:
        """Which paths hold a frame of a first one."""
        return [c for c, made in enumerate(self.made_by) if not made.all()]

    def snapshot(self) -> Snapshot:
        """Return everything that the next cycle follows from, as it is now."""
        held = {name: list(getattr(self, name)) for name in _HELD}
        counts = {name: {key: count.copy() for key, count in getattr(self, name).items()} for name in _COUNTED}
        return Snapshot(len(self._steps), held, counts, self.cut.copy(), {name: getattr(self, name) for name in _NUMBERS})

    def rows(self, begin: int, end: int) -> Rows:
        """Return what was noted of cycles ``begin`` to ``end``, counted from 0; values of CVs once per path."""
        n = len(self.places)
        noted = np.array(self._noted[begin:end], dtype=np.float64).reshape(-1, n, 4)
        found = Rows(np.array(self._steps[begin:end], dtype=np.int64), noted)
        if not self.record:
            return found
        values = self._series[begin * n : end * n]
        distinct = list({id(one): one for one in values}.values())
        number = {id(one): i for i, one in enumerate(distinct)}
        series = [np.concatenate([one[i] for one in distinct]) for i in range(len(self.record))]
        lengths = np.array([len(one[0]) for one in distinct], dtype=np.int64)
        return Rows(found.steps, noted, np.array([number[id(one)] for one in values], dtype=np.int64), lengths, np.array(series))

    def take_rows(self, rows: Rows) -> None:
        """Append what was noted of earlier cycles."""
        self._steps += rows.steps.tolist()
        self._noted += [[(float(a), float(b), int(n), bool(in_b)) for a, b, n, in_b in cycle] for cycle in rows.noted]
        if self.record:
            ends = np.cumsum(rows.lengths)
            distinct = [tuple(values[end - n : end].copy() for values in rows.series) for n, end in zip(rows.lengths, ends, strict=True)]
            self._series += [distinct[i] for i in rows.which]

    def take(self, snapshot: Snapshot) -> None:
        """Stand where a snapshot was taken; values of CVs are found again."""
        for name in _HELD:
            setattr(self, name, list(snapshot.held[name]))
        for name in _COUNTED:
            setattr(self, name, dict(snapshot.counts[name]))
        for name, value in snapshot.numbers.items():
            setattr(self, name, value)
        self.cut = snapshot.cut
        self._values = [None] * len(self.paths)

    def samples(self, discard: int | None = None) -> InterfaceSamples:
        """Return what was noted after cycle ``discard`` (default a tenth) and after all paths were free of frames of first ones."""
        last = self._steps[-1]
        discard = last // 10 if discard is None else discard
        free = self.free is not None and self.free < last
        table = [row for rows in self._noted for row in rows]
        maximum, minimum, length, ends_in_b = (np.array(column) for column in zip(*table, strict=True))
        sets, ensembles = np.array(self.places, dtype=np.int64).T
        n = len(self._steps)
        found = InterfaceSamples(
            interfaces=np.array(self.sampling.interfaces),
            along=self.sampling.along.name,
            unit=self.sampling.along.unit,
            ensemble=np.tile(ensembles - 1, n),
            chain=np.tile(sets, n),
            step=np.repeat(np.array(self._steps, dtype=np.int64), len(self.places)),
            maximum=maximum,
            minimum=minimum,
            length=length,
            ends_in_b=ends_in_b,
            stride=self.paths[0].stride,
            series={cv.name: tuple(values[i] for values in self._series) for i, cv in enumerate(self.record)},
            paths=tuple(self._kept or ()),
            periods={cv.name: cv.period for cv in self.record if cv.period is not None},
            units={cv.name: cv.unit for cv in self.record},
            findings=(*(() if free else (self._remains(last),)), *self._cut_off(), *self._jumps(), *self._wraps(), *self._few()),
            outcomes={reason: count.copy() for reason, count in self.outcomes.items()},
            exchanges={reason: count.copy() for reason, count in self.exchanges.items()},
            force_evaluations=self.force_evaluations,
        )
        discard = max(discard, self.free or 0) if free else discard
        return found.after(discard) if discard else found

    def _remains(self, last: int) -> Finding:
        where = sorted({self.places[c] for c in self.stuck})
        names = ", ".join(ensemble_name(e - 1) for e in sorted({e for _, e in where}))
        text = f"{len(where)} of {len(self.paths)} paths ({names}) still hold frames of first ones after {last} cycles"
        if not where:
            text = f"paths hold no frame of first ones only since cycle {last}, the last"
        return Finding("first-path-remains", f"{text}: averages are biased towards these", "sample more cycles")

    def _cut_off(self) -> tuple[Finding, ...]:
        # only trials that the acceptance would let grow that long are cut off, so those it rejects do not count
        taken = self.outcomes["accepted"].copy()
        taken[:2] += self.exchanges["accepted"][0]
        share = self.cut / np.maximum(1, self.cut + taken)
        if not (share > CUT).any():
            return ()
        names = ", ".join(f"{ensemble_name(int(e) - 1)} ({share[e]:.0%})" for e in np.flatnonzero(share > CUT))
        text = f"trials were cut off at the maximum length in {names}: long paths and the time they take are missing"
        return (Finding("paths-cut", text, f"raise max_duration = {self.sampling.max_duration}"),)

    def _jumps(self) -> tuple[Finding, ...]:
        """Return a finding when A is left for B from one frame to the next: such a departure has no frame to shoot from."""
        excursions = [rows[c][3] for rows in self._noted for c in self.of(0)]
        if not any(excursions):
            return ()
        text = (
            f"{sum(excursions)} of {len(excursions)} excursions of [0-] end in B, from one frame to the next: no ensemble holds such jumps"
        )
        return (Finding("jumps-to-b", text, "keep frames more often, or move A and B apart: the rate is too low"),)

    def _few(self) -> tuple[Finding, ...]:
        """Return a finding when hardly any lineage came from [0-] to the last ensemble.

        Shooting stays in the channel of its path; only what comes up from [0-] brings another.
        """
        if not self.sampling.swaps or self.passages >= FEW_PASSAGES:
            return ()
        came = f"paths came {self.passages} times from [0-] to {ensemble_name(self.n_ensembles - 2)}"
        text = f"{came}: channels may still be those of first paths, and errors too small"
        return (Finding("few-passages", text, "sample more cycles, or place fewer interfaces"),)

    def _wraps(self) -> tuple[Finding, ...]:
        """Return a finding when a periodic order parameter wrapped along a path: that looks as if every interface were crossed."""
        if not self._wrapped:
            return ()
        along = self.sampling.along
        text = f"{self._wrapped} paths go over the end of the period of {along.name}, from one side of all interfaces to the other"
        function = f'FunctionOfCVs(({along.name},), "{along.name} + shift", ..., period={along.period:g})'
        fix = f"cut the circle where the system does not go: {function}"
        return (Finding("wraps-around", text, fix),)

    def _move(self, c: int, path: Trajectory, made: IntArray) -> None:
        self.paths[c], self.made_by[c], self._values[c] = bare(path), made, None
        self._facts[c] = self._look_at(path, self.places[c][1])

    def _look_at(self, path: Trajectory, ensemble: int) -> Facts:
        """Return what is noted of a path.

        Paths are looked at one by one because those that left A elsewhere than through the first interface are too few or
        absent in [0+], which makes every number wrong and shows nowhere.
        """
        values, period = self.sampling.along.evaluate(path.positions), self.sampling.along.period
        if period is not None and (np.abs(np.diff(values)) > period / 2).any():
            self._wrapped += 1
        beyond, outside = values > self.sampling.interfaces[0], np.full(len(values), ensemble > 0)
        outside[0] = ensemble == 0
        outside[-1] = ensemble == 0 or beyond[-1]  # in A or B
        if (beyond != outside).any():
            require_boundary([path], self.sampling.region_a, self.sampling.along, self.sampling.interfaces[0])
        return float(values.max()), float(values.min()), len(path), bool(self.sampling.region_b.contains(path.positions[-1:])[0])


def _reorder(entries: list[Any], places: Sequence[int], source: Sequence[int]) -> None:
    for c, entry in zip(places, [entries[c] for c in source], strict=True):
        entries[c] = entry
