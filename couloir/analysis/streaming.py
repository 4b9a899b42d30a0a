"""WHAM on samples that never are in memory together: counts and means of occupied bins are all that is kept.

A window's table holds one line per occupied bin: its key, how many samples fell in it, and the sums of their CVs (and of
their potential energies where temperatures differ).  That is all WHAM at bin means needs, so the answer is that of
:func:`couloir.analysis.wham` with the same bins, and tables of several accumulators simply add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir.analysis._dual import BinnedStates, set_of_windows, solve_dual
from couloir.analysis.grid import Grid
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.surface import FreeEnergySurface
from couloir.analysis.timeseries import statistical_inefficiency
from couloir.analysis.wham import WhamResult, bin_keys, bin_widths, dense_numbers, energy_width, reduced_energies, wham_result
from couloir.cv.base import wrap
from couloir.cv.bias import Bias, FlatBottom, HarmonicBias, SumOfBiases
from couloir.errors import DataError
from couloir.streams import stream
from couloir.trajectory import Array
from couloir.units import GAS_CONSTANT, convert

_SERIES = 100_000
"""Most rows of a block whose correlation in time is looked at."""


@dataclass(frozen=True, eq=False)
class _Table:
    """Occupied bins of one window: keys ascending (n,), counts (n,), sums of what fell in them (n, n_dims)."""

    keys: IntArray
    counts: IntArray
    sums: Array

    def __add__(self, other: _Table) -> _Table:
        keys, index = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.zeros(len(keys), dtype=np.int64)
        sums = np.zeros((len(keys), self.sums.shape[1]))
        for part, where in ((self, index[: len(self.keys)]), (other, index[len(self.keys) :])):
            counts[where] += part.counts
            sums[where] += part.sums
        return _Table(keys, counts, sums)


class StreamedWham:
    """Free energies of any number of samples in the memory of the occupied bins.

    Feed it blocks, in any order, then ask: ``for k, file in enumerate(files): total.add(np.loadtxt(file)[:, 1], window=k)``.
    Accumulators made with the same arguments and fed elsewhere are put together by :meth:`merge`.

    Parameters
    ----------
    biases : of the windows; None for an unbiased one.
    temperatures : of the windows, or of all (K or text).
    names : CVs in the columns of the blocks; default: those of the biases, in their order of appearance.
        CVs that no window biases are allowed, for surfaces along them; every one is one more dimension of the bins.
    units, periods : of the CVs; periods default to those of the biases.
    widths : width of a bin along each CV; edges lie at whole multiples of it.  Default: a twentieth of the width sqrt(kT/k)
        of stiff harmonic windows in one dimension, a sixth in more.  Where the potential energy is much stiffer than
        the bias, give smaller ones.
    temperature : of the unbiased state (K or text); default that of the first window.

    Raises
    ------
    DataError : numbers do not fit, or widths cannot be derived from the biases.
    """

    def __init__(
        self,
        biases: Sequence[Bias | None],
        temperatures: Any,
        *,
        names: Sequence[str] | None = None,
        units: Sequence[str] | None = None,
        periods: Sequence[float | None] | None = None,
        widths: float | Sequence[float] | None = None,
        temperature: Any = None,
    ) -> None:
        self.biases = tuple(biases)
        used = tuple(dict.fromkeys(name for bias in self.biases if bias is not None for name in bias.names))
        self.names = used if names is None else tuple(names)
        if not self.biases or set(used) - set(self.names):
            raise DataError(
                f"{len(self.biases)} windows that bias {used}, CVs {self.names}", "give the biases, and every biased CV in names"
            )
        given = temperatures if isinstance(temperatures, (list, tuple, np.ndarray)) else [temperatures] * len(self.biases)
        self.temperatures = np.array([convert(t, "K", "temperature") for t in given])
        self.units = ("",) * len(self.names) if units is None else tuple(units)
        known = {name: period for bias in self.biases for name, period in _periods(bias).items()}
        self.periods = tuple(known.get(name) for name in self.names) if periods is None else tuple(periods)
        if not len(self.temperatures) == len(self.biases) or not len(self.units) == len(self.periods) == len(self.names):
            raise DataError("one temperature per window, and one unit and period per CV, are needed")
        self.widths = tuple(bin_widths(_default_widths(self) if widths is None else widths, self.names))
        self.temperature = float(self.temperatures[0]) if temperature is None else convert(temperature, "K", "temperature")
        self.energies = bool(np.abs(self.temperatures - self.temperature).max() > 1e-9 * self.temperature)
        n = len(self.names) + int(self.energies)
        self._tables = [_Table(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, n))) for _ in self.biases]
        self._inefficiency = np.full(len(self.biases), np.nan)

    @property
    def counts(self) -> IntArray:
        """Number of samples so far in each window, (n_windows,)."""
        return np.array([int(t.counts.sum()) for t in self._tables], dtype=np.int64)

    @property
    def n_occupied(self) -> int:
        """Lines in all tables: occupied bins, counted once in each window."""
        return sum(len(t.keys) for t in self._tables)

    def __str__(self) -> str:
        return f"StreamedWham: {self.counts.sum():,} samples, {len(self.biases)} windows, {self.n_occupied:,} occupied bins"

    def add(self, values: Any, window: int | IntArray, potential: Any = None) -> None:
        """Count a block of samples.

        Parameters
        ----------
        values : (n_rows, n_cvs), or (n_rows,) of a single CV; the rows of a window in time order, best those of one walker,
            because their correlation in time is judged within a block.  Some 10,000 rows or more make it fast.
        window : the window of all rows, or of each (n_rows,).
        potential : (n_rows,) unbiased potential energy, kJ/mol; needed where temperatures differ.

        Raises
        ------
        DataError : shapes do not fit, a value is not finite, a window does not exist, or energies are missing.
        """
        data = np.asarray(values, dtype=float)
        data = data[:, None] if data.ndim == 1 else data
        windows = np.asarray(window)
        if data.ndim != 2 or data.shape[1] != len(self.names) or (windows.ndim and windows.shape != (len(data),)):
            raise DataError(f"values of shape {data.shape} and window of shape {windows.shape} for the CVs {', '.join(self.names)}")
        if self.energies:
            if potential is None or np.shape(potential) != (len(data),):
                raise DataError("temperatures differ, so every row needs its potential energy", "give potential, one per row, in kJ/mol")
            data = np.column_stack([data, potential])
        if not np.isfinite(data).all():
            row = int(np.flatnonzero(~np.isfinite(data).all(axis=1))[0])
            raise DataError(f"row {row} of the block is not finite", "remove the damaged frames, or find out why they are there")
        if len(data) and (windows.min() < 0 or windows.max() >= len(self.biases)):
            raise DataError(f"windows run from {windows.min()} to {windows.max()} but there are {len(self.biases)} biases")
        if windows.ndim == 0:
            self._count(data, int(windows))
            return
        order = np.argsort(windows, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(windows[order])) + 1):
            if len(rows):
                self._count(data[rows], int(windows[rows[0]]))

    def add_samples(self, samples: BiasedSamples) -> None:
        """Count a block of recorded samples whose windows are numbered as here; columns are found by name."""
        self.add(samples.values[:, [samples.column(n) for n in self.names]], samples.window, samples.potential if self.energies else None)

    def _count(self, data: Array, window: int) -> None:
        if not len(data):
            return
        periods, widths = self._dimensions()
        key = bin_keys(data, periods, widths)
        index, n_bins = dense_numbers(key - key.min())
        keys = np.empty(n_bins, dtype=np.int64)
        keys[index] = key
        sums = [np.bincount(index, wrap(data[:, i], p), n_bins) for i, p in enumerate(periods)]
        block = _Table(keys, np.bincount(index, minlength=n_bins), np.stack(sums, axis=1) if sums else np.zeros((n_bins, 0)))
        self._tables[window] = self._tables[window] + block
        head = data[:_SERIES]
        g = max((statistical_inefficiency(head[:, i], p) for i, p in enumerate(periods)), default=1.0)
        self._inefficiency[window] = np.fmax(self._inefficiency[window], g)

    def _dimensions(self) -> tuple[tuple[float | None, ...], tuple[float, ...]]:
        """Return period and width of every dimension of the bins."""
        if not self.energies:
            return self.periods, self.widths
        return (*self.periods, None), (*self.widths, energy_width(np.append(self.temperatures, self.temperature)))

    def merge(self, *others: StreamedWham) -> StreamedWham:
        """Return what one accumulator fed with the samples of all would hold.

        Raises
        ------
        DataError : they were made with different windows, temperatures or bins.
        """
        out = StreamedWham(
            self.biases, self.temperatures, names=self.names, units=self.units, periods=self.periods, widths=self.widths,
            temperature=self.temperature,
        )  # fmt: skip
        out._tables, out._inefficiency = list(self._tables), self._inefficiency.copy()
        for other in others:
            same = other.biases == self.biases and other.names == self.names and other._dimensions() == self._dimensions()
            if not same or other.temperature != self.temperature or not np.array_equal(other.temperatures, self.temperatures):
                raise DataError("the two were made with different windows, temperatures or bins", "make them with the same arguments")
            out._tables = [a + b for a, b in zip(out._tables, other._tables, strict=True)]
            out._inefficiency = np.fmax(out._inefficiency, other._inefficiency)
        return out

    def solve(self, *, tolerance: float = 1e-8, device: str | None = None) -> WhamResult:
        """Return the WHAM estimate; its rows are occupied bins, once per window that visited them.

        Parameters
        ----------
        tolerance, device : as in :func:`couloir.analysis.wham`.

        Raises
        ------
        DataError : nothing was added.
        """
        states, rows = self._states()
        return wham_result(states, rows, self._inefficiency, self.temperature, tolerance=tolerance, device=device)

    def surface(
        self, along: str | Sequence[str] | None = None, *, bins: Any = None, limits: Any = None, n_bootstrap: int = 50, seed: int = 0
    ) -> FreeEnergySurface:
        """Return the free energy along one or two CVs, a fine bin counted where its mean is.

        Standard errors come from replicas of the bins' counts, drawn per window as a Bayesian bootstrap of count/g
        independent samples.  Walkers are not told apart, so a hidden barrier between them shows only in memory
        (:func:`couloir.analysis.free_energy_surface`).

        Parameters
        ----------
        along : names of CVs; default all.
        bins, limits : of the surface's grid, per CV; its cells should be several fine bins wide.
        n_bootstrap : replicas; 0 for no errors.
        seed : of the replicas.

        Raises
        ------
        DataError : a CV is unknown, or no sample lies on the grid.
        """
        names = self.names if along is None else (along,) if isinstance(along, str) else tuple(along)
        if len(names) not in (1, 2):
            raise DataError(f"a surface is along one or two CVs, not {len(names)}", "name them: surface(along=...)")
        states, rows = self._states()
        result = wham_result(states, rows, self._inefficiency, self.temperature)
        grid = Grid.over(rows, names, bins, limits)
        cell, size = grid.cells(rows), int(np.prod(grid.shape))
        inside = cell >= 0
        mass = np.bincount(cell[inside], result.weights[inside], size).astype(float)
        if not mass.sum() > 0:
            raise DataError(f"no sample lies on the grid along {', '.join(names)}", "check limits")
        kT = GAS_CONSTANT * self.temperature
        free = _free(mass, kT)
        lowest = float(np.nanmin(free))
        draws = [_free(m, kT) - lowest for m in self._replicas(states, rows, result, cell, size, n_bootstrap, seed)]
        replica = np.array(draws).reshape(-1, *grid.shape)
        error = np.full(grid.shape, np.nan)
        known = np.isfinite(replica).sum(axis=0) >= max(2, 0.5 * len(replica))
        error[known] = np.nanstd(replica[:, known], axis=0, ddof=1)
        g = self._inefficiency[rows.window]
        second = np.bincount(cell[inside], (result.weights**2 * g / _multiplicity(states))[inside], size)
        return FreeEnergySurface(
            names=names, units=tuple(self.units[self.names.index(n)] for n in names), periods=grid.periods, grid=grid.centers,
            free_energy=(free - lowest).reshape(grid.shape), standard_error=error, kT=kT, estimator="wham", replicas=replica,
            n_effective=np.divide(mass**2, second, out=np.zeros(size), where=second > 0).reshape(grid.shape), findings=result.findings,
        )  # fmt: skip

    def _states(self) -> tuple[BinnedStates, BiasedSamples]:
        """Return the bins, and one row per line of the tables."""
        lines = [len(t.keys) for t in self._tables]
        if not sum(lines):
            raise DataError("nothing was added", "add(values, window) first")
        keys, index = np.unique(np.concatenate([t.keys for t in self._tables]), return_inverse=True)
        count = np.concatenate([t.counts for t in self._tables]).astype(float)
        sums = np.concatenate([t.sums for t in self._tables])
        total = np.bincount(index, count)
        means = np.stack([np.bincount(index, s) / total for s in sums.T], axis=1) if sums.shape[1] else np.zeros((len(keys), 0))
        window = np.repeat(np.arange(len(lines)), lines)
        rows = BiasedSamples(
            self.names, self.units, self.periods, means[index, : len(self.names)],
            means[index, -1] if self.energies else np.full(len(index), np.nan), window, window, np.arange(float(len(index))),
            self.biases, self.temperatures,
        )  # fmt: skip
        centred = means.copy()
        if self.energies:
            # Energies of large systems are large: only their differences matter, and those keep their digits.
            centred[:, -1] -= total @ means[:, -1] / total.sum()
        reduced, target = reduced_energies(rows, self.names, centred, self.temperature if self.energies else None)
        names = (*self.names, "potential") if self.energies else self.names
        return BinnedStates(index, means, names, reduced, target, self.counts.astype(float), count), rows

    def _replicas(
        self, states: BinnedStates, rows: BiasedSamples, result: WhamResult, cell: IntArray, size: int, n: int, seed: int
    ) -> list[Array]:
        """Return replicas of the cells' probabilities, each (size,)."""
        rng, inside = stream(seed, "streamed bootstrap"), cell >= 0
        out: list[Array] = []
        count = _multiplicity(states)
        g = self._inefficiency[rows.window]
        owner = set_of_windows(result.sets, len(self.biases))
        place = owner[rows.window] * len(states.means) + states.index
        for _ in range(n):
            drawn = rng.gamma(count / g)
            # A window keeps its number of samples, whichever bins they fall in.
            drawn *= (states.counts / np.maximum(np.bincount(rows.window, drawn, len(owner)), 1e-300))[rows.window]
            bins = np.bincount(place, drawn, len(result.sets) * len(states.means)).reshape(len(result.sets), -1).astype(float)
            solution = solve_dual(states, bins, result.sets, start=result.free_energies, tolerance=1e-4)
            weight = drawn * np.exp(solution.log_weights).ravel()[place]
            out.append(np.bincount(cell[inside], weight[inside], size).astype(float))
        return out


def _multiplicity(states: BinnedStates) -> Array:
    return np.ones(len(states.index)) if states.multiplicity is None else states.multiplicity


def _free(mass: Array, kT: float) -> Array:
    """Return -kT ln p, NaN where there is nothing."""
    with np.errstate(divide="ignore"):
        f = -kT * np.log(mass / mass.sum())
    return np.where(np.isfinite(f), f, np.nan)


def _harmonic(bias: Bias | None) -> list[tuple[str, float, float | None]]:
    """Return (name, force constant, period) of each CV that a bias restrains harmonically."""
    if isinstance(bias, HarmonicBias):
        return list(zip(bias.names, bias.force_constants, bias.periods, strict=True))
    if isinstance(bias, FlatBottom):
        return [(bias.names[0], bias.force_constant, bias.period)]
    return [found for term in bias.terms for found in _harmonic(term)] if isinstance(bias, SumOfBiases) else []


def _periods(bias: Bias | None) -> dict[str, float | None]:
    return {name: period for name, _, period in _harmonic(bias)}


def _default_widths(total: StreamedWham) -> list[float]:
    fraction = 20 if len(total.names) == 1 else 6
    out = []
    for name in total.names:
        found = [
            GAS_CONSTANT * t / k
            for bias, t in zip(total.biases, total.temperatures, strict=True)
            for n, k, _ in _harmonic(bias)
            if n == name and k > 0
        ]
        if not found:
            raise DataError(f"no window restrains {name} harmonically, so the width of its bins cannot be derived", "give widths")
        out.append(float(np.sqrt(np.quantile(found, 0.1))) / fraction)
    return out
