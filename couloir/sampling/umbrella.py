"""Umbrella sampling: harmonic windows along one or more CVs, run in parallel from given seeds, stored as they go.

:mod:`couloir.sampling.chunks` says how they resume.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis.exchange import ExchangeReport, exchange_report
from couloir.analysis.overlap import describe_place
from couloir.analysis.samples import ROWS, BiasedSamples
from couloir.cv.base import CollectiveVariable, require_in_period, wrap
from couloir.cv.bias import HarmonicBias, bias_from_dict
from couloir.errors import DataError, nearest
from couloir.sampling.chunks import CHUNK_RECORDS, ChunkedRun, exchange_history, record_steps
from couloir.sampling.engine import Engine
from couloir.sampling.independence import IndependenceMoves, MoveReport, move_report
from couloir.store import Store
from couloir.trajectory import Array, State
from couloir.units import convert

if TYPE_CHECKING:
    from couloir.sampling.seeds import Seeds

FRAME_RECORDS = 25
EXCHANGE_RECORDS = 10
"""Records between exchange attempts; frames are then kept once per attempt."""


class UmbrellaSampling:
    """A set of harmonic windows along ``cvs``.

    Parameters
    ----------
    cvs : the biased CV, or several.
    windows : one bias per window, all on these CVs; see :meth:`grid` and :meth:`at`.

    Raises
    ------
    DataError : there is no window, or a window biases other CVs.
    """

    def __init__(self, cvs: CollectiveVariable | Sequence[CollectiveVariable], windows: Sequence[HarmonicBias]) -> None:
        self.cvs = (cvs,) if isinstance(cvs, CollectiveVariable) else tuple(cvs)
        self.windows = tuple(windows)
        self._run: ChunkedRun | None = None
        self._asked = np.zeros(len(self.windows))
        if not self.windows:
            raise DataError("umbrella sampling needs at least one window")
        names = tuple(cv.name for cv in self.cvs)
        for i, window in enumerate(self.windows):
            if window.names != names:
                raise DataError(f"window {i} biases {window.names}, the CVs are {names}")

    @classmethod
    def at(cls, cvs: CollectiveVariable | Sequence[CollectiveVariable], centers: Sequence[Any], force_constant: Any) -> UmbrellaSampling:
        """Place windows at a list of centres (a number, or one number per CV), all with one force constant.

        Raises
        ------
        DataError : a centre is outside the period of a periodic CV, or does not have one number per CV.
        UnitError : a value has a unit that does not fit its CV.
        """
        along = (cvs,) if isinstance(cvs, CollectiveVariable) else tuple(cvs)
        for i, center in enumerate(centers):
            given = center if isinstance(center, (list, tuple, np.ndarray)) else [center] * len(along)
            for cv, value in zip(along, given, strict=False):  # HarmonicBias.on counts them
                require_in_period(cv, convert(value, cv.unit, "center"), f"the centre of window {i}")
        return cls(along, [HarmonicBias.on(along, center, force_constant) for center in centers])

    @classmethod
    def grid(
        cls,
        cvs: CollectiveVariable | Sequence[CollectiveVariable],
        n_windows: int | Sequence[int],
        force_constant: Any,
        range: tuple[Any, Any] | Sequence[tuple[Any, Any]] | None = None,
    ) -> UmbrellaSampling:
        """Place windows evenly: over the whole period of a periodic CV, or over ``range`` (ends included).

        Parameters
        ----------
        n_windows : a number, or one per CV (their grid is the product).
        range : (low, high), or one per CV; required for CVs without a period, None for a whole period.

        Raises
        ------
        DataError : a CV without a period has no range, or the range is empty or outside the period.
        """
        along = (cvs,) if isinstance(cvs, CollectiveVariable) else tuple(cvs)
        numbers = [n_windows] * len(along) if isinstance(n_windows, int) else list(n_windows)
        ranges: list[Any] = [range] if len(along) == 1 else list(range) if range is not None else [None] * len(along)
        if len(numbers) != len(along) or len(ranges) != len(along):
            raise DataError(f"{len(numbers)} window numbers and {len(ranges)} ranges for {len(along)} CVs")
        axes = [_axis(cv, n, limits) for cv, n, limits in zip(along, numbers, ranges, strict=True)]
        return cls.at(along, list(itertools.product(*axes)), force_constant)

    @property
    def centers(self) -> Array:
        """Window centres, (n_windows, n_cvs)."""
        return np.array([window.centers for window in self.windows])

    def displacement(self, delta: Any) -> Array:
        """Return differences of CV values (..., n_cvs) as their nearest images."""
        delta = np.asarray(delta, dtype=np.float64)
        return np.stack([wrap(delta[..., i], cv.period) for i, cv in enumerate(self.cvs)], axis=-1)

    def distance(self, points: Array, origin: Array, kT: float = 1.0) -> Array:
        """Return distances (n,) of points (n, n_cvs) from one origin in typical window widths, sqrt(kT / k) per CV."""
        scale = np.sqrt(np.mean([window.force_constants for window in self.windows], axis=0) / kT)
        return np.asarray(np.linalg.norm(self.displacement(points - origin) * scale, axis=-1))

    def __len__(self) -> int:
        return len(self.windows)

    def __str__(self) -> str:
        k = np.array([window.force_constants for window in self.windows])
        spans = [
            f"{cv.name}: {self.centers[:, i].min():.3g} ... {self.centers[:, i].max():.3g} {cv.unit}, k = {k[:, i].min():g}"
            + ("" if np.ptp(k[:, i]) == 0 else f" ... {k[:, i].max():g}")
            for i, cv in enumerate(self.cvs)
        ]
        return f"UmbrellaSampling: {len(self)} windows; " + "; ".join(spans)

    def run(
        self,
        engine: Engine,
        seeds: Seeds | Mapping[int, Sequence[State]],
        duration: Any,
        *,
        seed: int,
        record: Sequence[CollectiveVariable] = (),
        record_stride: Any = None,
        exchange: bool = True,
        moves: IndependenceMoves | None = None,
        store: Store | None = None,
        name: str = "umbrella",
    ) -> BiasedSamples:
        """Run every seed in its window for ``duration``.

        The same call on a store that already holds part of the work continues it; a longer duration appends.

        Parameters
        ----------
        seeds : what :func:`seed_windows` returned, or window number -> starting states (one walker each).
        duration : time per walker, one value or one per window; rounded up to whole records.  Windows that are given more
            go on, and exchange, among themselves.
        record : further CVs to record.
        record_stride : time between records; default 100 time steps.
        exchange : let windows exchange configurations every ``EXCHANGE_RECORDS`` records (replica exchange by Gibbs
            sampling; walker k of every window takes part in set k).  It needs CV values only, so it costs nothing, and
            lets an orthogonal mode that is trapped in one window be left through another.
        moves : let a model propose whole configurations to every walker at the same intervals, accepted by an exact rule.
        store : where chunks go as they are finished; None keeps them in memory.
        name : prefix of the series in the store.

        Returns
        -------
        All rows sampled so far, the transients of each walker included (see ``analysis.equilibrated``).

        Raises
        ------
        DataError : a window has no seed.
        StoreError : the store holds a different run.
        SimulationError : a walker blew up; everything finished before stays in the store.
        """
        walkers, states = _walkers(seeds, len(self))
        extra = tuple(cv for cv in record if cv.name not in {c.name for c in self.cvs})
        interrupted = exchange or moves is not None
        self._run = ChunkedRun(
            engine=engine,
            store=store or Store(),
            name=name,
            walkers=tuple(f"w{w:04d}/{k:03d}" for w, k in walkers),
            states=states,
            biases=tuple(self.windows[w] for w, _ in walkers),
            record=self.cvs + extra,
            record_steps=record_steps(engine, record_stride),
            frame_records=EXCHANGE_RECORDS if interrupted else FRAME_RECORDS,
            seed=seed,
            chunk_records=EXCHANGE_RECORDS if interrupted else CHUNK_RECORDS,
            groups=_sets(walkers) if exchange else (),
            moves=moves,
        )
        return self._until(self._durations(duration))

    def extend(self, samples: BiasedSamples, duration: Any) -> BiasedSamples:
        """Run every walker of the last :meth:`run` for another ``duration``; returns old and new rows together.

        Parameters
        ----------
        samples : what the last call returned.
        duration : further time per walker, one value or one per window (zero for those that need none).

        Raises
        ------
        DataError : nothing has been run with this object yet.
        """
        if self._run is None:
            raise DataError("there is nothing to extend", "call run first (with the same store it picks up where it was)")
        if len(samples.biases) != len(self):
            raise DataError(f"the samples have {len(samples.biases)} windows, these are {len(self)}", "give what run or extend returned")
        return self._until(self._asked + self._durations(duration))

    def exchange_report(self) -> ExchangeReport:
        """Return what windows exchanged in the last :meth:`run`: shares, round trips and their mean time.

        Raises
        ------
        DataError : nothing has been run with this object yet, or nothing was exchanged.
        """
        if self._run is None:
            raise DataError("nothing has been run", "call run first (with the same store it picks up where it was)")
        return stored_exchange(self._run.store, self._run.name, {cv.name: cv.unit for cv in self.cvs})

    def move_report(self) -> MoveReport:
        """Return how many generative moves of the last :meth:`run` were accepted, window by window.

        Raises
        ------
        DataError : nothing has been run with this object yet, or without such moves.
        """
        if self._run is None or self._run.moves is None:
            raise DataError("no generative moves have been made", "call run with moves=IndependenceMoves(model) first")
        return move_report(self._run.store, self._run.name, np.array([int(walker[1:5]) for walker in self._run.walkers]))

    def _durations(self, duration: Any) -> Array:
        """Return ps per walker of each window, (n_windows,)."""
        each = duration if isinstance(duration, (list, tuple, np.ndarray)) else [duration] * len(self)
        if len(each) != len(self):
            raise DataError(f"{len(each)} durations for {len(self)} windows", "give one for all, or one per window")
        times = np.array([convert(time, "ps", "duration") for time in each])
        if (times < 0).any():
            raise DataError(f"the duration of window {int(np.argmin(times))} is negative: {times.min():g} ps")
        return times

    def _until(self, durations: Array) -> BiasedSamples:
        run = self._run
        assert run is not None
        self._asked = durations
        records = np.array([run.n_records(float(time)) for time in durations])
        if (records < 1).any():
            raise DataError(f"window {int(np.argmin(records))} gets no time", "give every window a positive duration")
        home = [int(walker[1:5]) for walker in run.walkers]
        run.advance([int(records[w]) for w in home], f"{len(self)} windows, {len(run.walkers)} walkers")
        parts: dict[str, list[Any]] = {key: [] for key in ROWS}
        for number, (walker, window, carried) in enumerate(zip(run.walkers, home, run.replicas(), strict=True)):
            chunks = run.chunks(walker)
            values = np.concatenate([c["values"] for c in chunks])[: records[window]]
            parts["values"].append(values)
            parts["potential"].append(np.concatenate([c["potential"] for c in chunks])[: records[window]])
            parts["window"].append(np.full(len(values), window))
            parts["walker"].append(np.full(len(values), number))
            parts["time"].append(run.record_stride * np.arange(1, len(values) + 1))
            parts["replica"].append(np.repeat(carried, run.chunk_records)[: len(values)])
        return BiasedSamples(
            names=tuple(cv.name for cv in run.record),
            units=tuple(cv.unit for cv in run.record),
            periods=tuple(cv.period for cv in run.record),
            biases=self.windows,
            temperatures=np.full(len(self), run.engine.temperature),
            **{key: np.concatenate(arrays) for key, arrays in parts.items()},
        )


def stored_frames(store: Store, name: str = "umbrella") -> tuple[Array, Array]:
    """Return the configurations kept by an umbrella run: positions (n, n_atoms, 3) and their windows (n,)."""
    positions, windows = [], []
    for series in store.series(f"{name}/w"):
        for chunk in store.chunks(series):
            positions.append(chunk["positions"])
            windows.append(np.full(len(chunk["positions"]), int(series.split("/")[-2][1:])))
    if not positions:
        raise DataError(f"the store has no frames of {name!r}{nearest(name, {s.split('/')[0] for s in store.series()})}")
    return np.concatenate(positions).astype(np.float64), np.concatenate(windows)


def stored_exchange(store: Store, name: str = "umbrella", units: Mapping[str, str] | None = None) -> ExchangeReport:
    """Return what windows exchanged in the run that a store holds, finished or not.

    Parameters
    ----------
    name : of the run.
    units : of the CVs by name, for the places that findings name.

    Raises
    ------
    DataError : there is no such run, or nothing was exchanged.
    """
    histories, plan = exchange_history(store, name), store.get(f"{name}/plan")
    biases = {int(w[1:5]): bias_from_dict(b) for w, b in zip(plan["walkers"], plan["biases"], strict=True)}
    windows = [bias for _, bias in sorted(biases.items()) if isinstance(bias, HarmonicBias)]
    names, periods = windows[0].names, windows[0].periods
    centers = np.array([window.centers for window in windows])
    delta = centers - centers[:, None]
    delta = np.stack([wrap(delta[..., i], period) for i, period in enumerate(periods)], axis=-1)
    # In units of typical widths, as :meth:`UmbrellaSampling.distance`; kT is the same for all.
    scale = np.sqrt(np.mean([window.force_constants for window in windows], axis=0))

    def halfway(a: int, b: int) -> str:
        return describe_place(centers[a] + 0.5 * delta[a, b], names, [(units or {}).get(n, "") for n in names], periods)

    return exchange_report(histories, np.linalg.norm(delta * scale, axis=-1), halfway)


def _axis(cv: CollectiveVariable, n: int, limits: tuple[Any, Any] | None) -> Array:
    if n < 1:
        raise DataError(f"{n} windows along {cv.name}", "give at least one")
    if limits is None:
        if cv.period is None:
            raise DataError(f"{cv.name} has no period, so its windows need a range", "give range=(low, high)")
        return np.asarray(-cv.period / 2 + (np.arange(n) + 0.5) * cv.period / n)
    low, high = (convert(x, cv.unit, "range") for x in limits)
    if not low < high:
        raise DataError(f"the range {low:g} ... {high:g} of {cv.name} is empty", "give range=(low, high) with low < high")
    if cv.period is not None and (low < -cv.period / 2 - 1e-9 or high > cv.period / 2 + 1e-9):
        raise DataError(
            f"the range {low:g} ... {high:g} leaves the period of {cv.name}", f"values lie in [{-cv.period / 2:.4g}, {cv.period / 2:.4g})"
        )
    return np.linspace(low, high, n)


def _walkers(seeds: Seeds | Mapping[int, Sequence[State]], n_windows: int) -> tuple[tuple[tuple[int, int], ...], tuple[State, ...]]:
    by_window = seeds if isinstance(seeds, Mapping) else seeds.by_window()
    outside = [w for w in by_window if not 0 <= w < n_windows]
    if outside:
        raise DataError(f"seeds are given for window {outside[0]}, but there are {n_windows} windows (0 ... {n_windows - 1})")
    missing = [w for w in range(n_windows) if not by_window.get(w)]
    if missing:
        raise DataError(f"no seed for window {', '.join(map(str, missing))}", "give at least one starting state per window")
    pairs = [(w, k) for w in range(n_windows) for k in range(len(by_window[w]))]
    return tuple(pairs), tuple(by_window[w][k] for w, k in pairs)


def _sets(walkers: tuple[tuple[int, int], ...]) -> tuple[tuple[int, ...], ...]:
    """Walker k of every window that has one: the groups that exchange."""
    number = {walker: i for i, walker in enumerate(walkers)}
    return tuple(tuple(i for (_, k), i in number.items() if k == set_) for set_ in sorted({k for _, k in walkers}))
