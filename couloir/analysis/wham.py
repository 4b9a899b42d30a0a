"""WHAM: free energies of biased windows from sparse fine bins, by Newton's method on the convex dual.

With N_k samples in window k, M_b samples in bin b, and reduced bias energies u_k(b), the free energies f_k minimize

    A(f) = -sum_k N_k f_k + sum_b M_b log sum_k N_k exp(f_k - u_k(b)),

which is convex (Zhu & Hummer, J. Comput. Chem. 33, 453 (2012), eq. 19; with one sample per bin it is the MBAR
likelihood of Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008)).  Wide bins bias histogram WHAM; here bins are a small
fraction of a window's width, only occupied ones exist, and u_k(b) is taken at the *mean* of the samples in the bin, which
leaves an error of second order in the bin's width.  Sets of windows that share no samples are solved apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from couloir.analysis.overlap import Sets, biased_names, connected_sets, disconnected, name_windows
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.timeseries import inefficiencies, on_circle
from couloir.cv.base import wrap
from couloir.errors import DataError, Finding
from couloir.trajectory import Array

_STEP = 20.0
"""Longest Newton step in kT, for the first iterations from a poor start."""


@dataclass(frozen=True, eq=False)
class WhamResult:
    """Free energies of windows and weights of samples.

    Attributes
    ----------
    free_energies : (n_windows,) of the biased windows relative to the unbiased state of their set, kT; NaN for an empty
        window when there are several sets.
    weights : (n_rows,) probability of each row in the unbiased state; sums to 1 (every disconnected set to an equal share).
    names : CVs that the bins are in.
    bin_means : (n_bins, n_names) mean of the samples in each occupied bin.
    bin_index : (n_rows,) the bin of each row.
    overlap : (n_windows, n_windows) overlap matrix; row i: where samples of window i could have come from.
    sets : the sets of windows that share samples.
    n_iterations, converged : of Newton's method, over all sets.
    findings : what is unsure.
    """

    free_energies: Array
    weights: Array
    names: tuple[str, ...]
    bin_means: Array
    bin_index: IntArray
    overlap: Array
    sets: Sets
    n_iterations: int
    converged: bool
    findings: tuple[Finding, ...] = ()

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The same as ``findings``."""
        return self.findings

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        head = f"WHAM: {len(self.free_energies)} windows, {len(self.bin_means)} bins, {state} in {self.n_iterations} iterations"
        body = [f"  window {k:3d}: {f:10.4f} kT" for k, f in enumerate(self.free_energies)]
        return "\n".join([head, *body, *(str(f) for f in self.findings)])


@dataclass(frozen=True, eq=False)
class BinnedStates:
    """Samples in occupied bins with the reduced energy of every window there.

    Attributes
    ----------
    index : (n_rows,) bin of each row.
    means : (n_bins, n_dims) mean of the samples in each bin.
    names : of the dimensions.
    reduced : (n_windows, n_bins) reduced energies u_k(b).
    target : (n_bins,) reduced energies of the unbiased state.
    counts : (n_windows,) samples per window.
    """

    index: IntArray
    means: Array
    names: tuple[str, ...]
    reduced: Array
    target: Array
    counts: Array

    def per_set(self, sets: Sets, window: IntArray) -> Array:
        """Return how many rows of each set's windows fall in each bin, (n_sets, n_bins)."""
        owner = set_of_windows(sets, len(self.counts))[window]
        n_bins = len(self.means)
        return np.bincount(owner * n_bins + self.index, minlength=len(sets) * n_bins).reshape(len(sets), n_bins).astype(float)


@dataclass(frozen=True, eq=False)
class DualSolution:
    """Free energies (n_windows,), log-weight of one sample in each set's bins (n_sets, n_bins), and how it went."""

    free_energies: Array
    log_weights: Array
    n_iterations: int
    converged: bool


def wham(samples: BiasedSamples, *, bins: int | Sequence[int] | None = None, tolerance: float = 1e-8) -> WhamResult:
    """Return the WHAM estimate from all windows.

    Parameters
    ----------
    samples : windows at one temperature.
    bins : fine bins per biased CV (one number, or one per CV); default: a twentieth of a window's width in one dimension,
        a sixth in more.
    tolerance : largest change of a free energy, in kT, in the last Newton step.

    Raises
    ------
    DataError : windows have different temperatures (use :func:`couloir.analysis.mbar`).
    """
    temperatures = samples.temperatures[samples.counts > 0]
    if np.ptp(temperatures) > 1e-9 * temperatures.max():
        raise DataError(
            f"WHAM needs windows at one temperature, these are at {temperatures.min():g} to {temperatures.max():g} K",
            'use mbar(samples), or free_energy_surface(..., estimator="mbar"), which take recorded potential energies into account',
        )
    states = bin_states(samples, bins=bins)
    sets, solution, shared = solve_connected(states, samples, tolerance=tolerance)
    owner = set_of_windows(sets, samples.n_windows)[samples.window]
    counts = np.maximum(states.counts, 1.0)
    return WhamResult(
        free_energies=solution.free_energies, weights=np.exp(solution.log_weights[owner, states.index]), names=states.names,
        bin_means=states.means, bin_index=states.index, overlap=shared / counts[:, None], sets=sets,
        n_iterations=solution.n_iterations, converged=solution.converged, findings=solution_findings(samples, sets, solution.converged),
    )  # fmt: skip


def solution_findings(samples: BiasedSamples, sets: Sets, converged: bool) -> tuple[Finding, ...]:
    """Return what every estimator reports: disconnected sets, empty windows, no convergence."""
    out = list(disconnected(samples, sets))
    empty = tuple(int(k) for k in np.flatnonzero(samples.counts == 0))
    if empty:
        out.append(
            Finding(
                "empty-windows",
                f"{name_windows(empty)} {'holds' if len(empty) == 1 else 'hold'} no samples",
                "run what is empty, or leave it out",
            )
        )
    if not converged:
        out.append(Finding("not-converged", "the free energies did not converge", "look at the overlap of the windows first"))
    return tuple(out)


def bin_states(
    samples: BiasedSamples, *, bins: int | Sequence[int] | None = None, temperature: float | None = None, energies: bool = False
) -> BinnedStates:
    """Return the samples in sparse bins of the biased CVs, and of the potential energy where temperatures differ.

    Parameters
    ----------
    samples : anything recorded.
    bins : fine bins per biased CV; None chooses them from the windows' widths.
    temperature : of the unbiased state, K; default that of the first window.
    energies : let the potential energy be one more dimension (needed when temperatures differ).
    """
    names = biased_names(samples)
    data = np.stack([samples[n] for n in names], axis=1) if names else np.zeros((len(samples), 0))
    periods = [samples.periods[samples.column(n)] for n in names]
    numbers = bin_numbers(samples, names, bins)
    if energies:
        data, periods, numbers = np.column_stack([data, samples.potential]), [*periods, None], [*numbers, 200]
    index, means = occupied_bins(data, periods, numbers)
    values = np.zeros((len(means), len(samples.names)))
    for i, name in enumerate(names):
        values[:, samples.column(name)] = means[:, i]
    beta = 1.0 / samples.kT
    reduced = np.stack([beta[k] * samples.bias_energy(k, values) for k in range(samples.n_windows)])
    target = np.zeros(len(means))
    if energies:
        scale = samples.kT[0] / samples.temperatures[0]
        reduced = reduced + beta[:, None] * means[:, -1]
        target = means[:, -1] / (scale * (samples.temperatures[0] if temperature is None else temperature))
    return BinnedStates(index, means, (*names, "potential") if energies else names, reduced, target, samples.counts.astype(float))


def solve_connected(states: BinnedStates, samples: BiasedSamples, *, tolerance: float = 1e-8) -> tuple[Sets, DualSolution, Array]:
    """Solve once for all windows, find the sets that share samples, solve those apart when there are several.

    Returns
    -------
    The sets, the solution and the shared samples (n_windows, n_windows).
    """
    filled = [int(k) for k in np.flatnonzero(states.counts > 0)]
    everything: Sets = (tuple(filled),)
    counts = states.per_set(everything, samples.window)
    solution = solve_dual(states, counts, everything, tolerance=tolerance)
    chance = _membership(states, solution.free_energies, filled)
    shared = np.zeros((samples.n_windows, samples.n_windows))
    shared[np.ix_(filled, filled)] = (chance * counts[0]) @ chance.T
    # Rows of one visit tell no more than one row: each counts as 1/g of a sample.
    row = (1.0 / inefficiencies(samples))[samples.window]
    decorrelated = np.zeros_like(shared)
    decorrelated[np.ix_(filled, filled)] = (chance * np.bincount(states.index, row, len(states.means))) @ chance.T
    sets = connected_sets(decorrelated, filled)
    if len(sets) > 1:
        solution = solve_dual(states, states.per_set(sets, samples.window), sets, start=solution.free_energies, tolerance=tolerance)
    return sets, solution, shared


def set_of_windows(sets: Sets, n_windows: int) -> IntArray:
    """Return the number of the set each window belongs to (n_windows,); 0 for windows in none."""
    out = np.zeros(n_windows, dtype=np.int64)
    for i, members in enumerate(sets):
        out[list(members)] = i
    return out


def solve_dual(
    states: BinnedStates, bin_counts: Array, sets: Sets, *, start: Array | None = None, tolerance: float = 1e-8, max_iterations: int = 200
) -> DualSolution:
    """Minimize A(f) in every set.

    Parameters
    ----------
    states : reduced energies in bins.
    bin_counts : (n_sets, n_bins) samples per bin, not necessarily whole numbers.
    sets : windows solved together.
    start : (n_windows,) free energies to start from.
    """
    n_windows, n_bins = states.reduced.shape
    f = np.full(n_windows, np.nan)
    log_weights = np.full((len(sets), n_bins), -np.inf)
    total, converged = 0, True
    for i, members in enumerate(sets):
        rows, occupied = list(members), bin_counts[i] > 0
        u, m = states.reduced[rows][:, occupied], bin_counts[i][occupied]
        n = states.counts[rows]
        # Windows together must hold what the bins hold, or the dual has no minimum.
        n = n * (m.sum() / n.sum())
        f_set, steps, ok = _newton(u, n, m, None if start is None else start[rows], tolerance, max_iterations)
        total, converged = total + steps, converged and ok
        log_w = -_log_mixture(u, n, f_set) - states.target[occupied]
        norm = _logsumexp(log_w + np.log(m))
        f[rows] = f_set + norm
        log_weights[i, occupied] = log_w - norm - np.log(len(sets))
        if len(sets) == 1:
            empty = np.flatnonzero(states.counts == 0)
            all_log = log_w - norm + states.target[occupied] + np.log(m)
            for k in empty:
                f[k] = -_logsumexp(all_log - states.reduced[k, occupied])
    return DualSolution(f, log_weights, total, converged)


def _newton(u: Array, n: Array, m: Array, start: Array | None, tolerance: float, max_iterations: int) -> tuple[Array, int, bool]:
    f = np.zeros(len(n)) if start is None else start - start[0]
    objective = _objective(u, n, m, f)
    for iteration in range(1, max_iterations + 1):
        p = _chances(u, n, f)
        weighted = p * m
        expected = weighted.sum(axis=1)
        gradient = expected - n
        if np.abs(gradient).max() < 1e-9:
            return f - f[0], iteration, True
        hessian = np.diag(expected) - weighted @ p.T
        # The gauge (a constant added to f) has no curvature: give it some; the tiny diagonal bounds steps between
        # windows that share nothing, whose offset the data do not determine.
        hessian += expected.sum() / len(n) ** 2 + 1e-8 * np.eye(len(n))
        step = -np.linalg.solve(hessian, gradient)
        step -= step.mean()
        longest = float(np.abs(step).max())
        step *= min(1.0, _STEP / longest)
        slope, scale = float(gradient @ step), 1.0
        while True:
            trial = _objective(u, n, m, f + scale * step)
            # Close to the minimum the decrease drowns in rounding: allow for it.
            if trial <= objective + 1e-4 * scale * slope + 1e-13 * abs(objective) or scale < 1e-6:
                break
            scale *= 0.5
        f, objective = f + scale * step, trial
        if longest < tolerance:
            return f - f[0], iteration, True
    return f - f[0], max_iterations, False


def _log_mixture(u: Array, n: Array, f: Array) -> Array:
    """Return log sum_k N_k exp(f_k - u_k(b)), (n_bins,)."""
    exponent = (np.log(n) + f)[:, None] - u
    top = exponent.max(axis=0)
    return np.asarray(top + np.log(np.exp(exponent - top).sum(axis=0)))


def _chances(u: Array, n: Array, f: Array) -> Array:
    exponent = (np.log(n) + f)[:, None] - u
    exponent -= exponent.max(axis=0)
    np.exp(exponent, out=exponent)
    exponent /= exponent.sum(axis=0)
    return exponent


def _membership(states: BinnedStates, f: Array, windows: list[int]) -> Array:
    return _chances(states.reduced[windows], states.counts[windows], f[windows])


def _objective(u: Array, n: Array, m: Array, f: Array) -> float:
    return float(m @ _log_mixture(u, n, f) - n @ f)


def _logsumexp(x: Array) -> float:
    top = float(x.max())
    return top + float(np.log(np.exp(x - top).sum()))


def bin_numbers(samples: BiasedSamples, names: tuple[str, ...], bins: int | Sequence[int] | None) -> list[int]:
    """Return how many fine bins each biased CV gets, from ``bins`` or from the windows' widths."""
    if bins is not None:
        numbers = [int(bins)] * len(names) if isinstance(bins, (int, np.integer)) else [int(b) for b in bins]
        if len(numbers) != len(names) or min(numbers, default=1) < 1:
            raise DataError(f"bins = {bins} for the biased CVs {', '.join(names)}", "give one positive number, or one per biased CV")
        return numbers
    fraction, low, high = (20, 500, 10_000) if len(names) == 1 else (6, 50, 1000)
    out = []
    for name in names:
        period, x = samples.periods[samples.column(name)], samples[name]
        width = _narrow_window(samples, name)
        span = float(np.ptp(x)) if period is None else period
        out.append(int(np.clip(np.ceil(fraction * span / width) if width > 0 else low, low, high)))
    return out


def _narrow_window(samples: BiasedSamples, name: str) -> float:
    """Return the width (standard deviation) that nine windows in ten exceed along a CV."""
    period = samples.periods[samples.column(name)]
    points = on_circle(samples[name], period)
    counts = np.maximum(samples.counts, 1)
    variance = np.zeros(samples.n_windows)
    for p in points.T:
        p = p - p.mean()
        mean = np.bincount(samples.window, p, samples.n_windows) / counts
        variance += np.bincount(samples.window, p**2, samples.n_windows) / counts - mean**2
    biased = [k for k, b in enumerate(samples.biases) if b is not None and name in b.names and samples.counts[k] > 1]
    widths = np.sqrt(np.maximum(variance[biased], 0.0)) * (1.0 if period is None else period / (2 * np.pi))
    return float(np.quantile(widths, 0.1)) if len(widths) else 0.0


def occupied_bins(data: Array, periods: list[float | None], numbers: list[int]) -> tuple[IntArray, Array]:
    """Return the occupied bin of each row (n_rows,) and the mean of the rows in each, (n_bins, n_dims)."""
    key = np.zeros(len(data), dtype=np.int64)
    lows = []
    for i, (period, n) in enumerate(zip(periods, numbers, strict=True)):
        low = -period / 2 if period is not None else float(data[:, i].min())
        width = (period if period is not None else max(float(np.ptp(data[:, i])), 1e-300)) / n
        x = wrap(data[:, i], period)
        key = key * n + np.clip(np.floor((x - low) / width).astype(np.int64), 0, n - 1)
        lows.append(low)
    index, n_bins = _dense_numbers(key)
    counts = np.bincount(index, minlength=n_bins)
    # A bin never reaches across the period's edge, so the plain mean of wrapped values is the mean on the circle.
    means = [np.bincount(index, wrap(data[:, i], p), n_bins) / counts for i, p in enumerate(periods)]
    return index, np.stack(means, axis=1) if means else np.zeros((n_bins, 0))


def _dense_numbers(key: IntArray) -> tuple[IntArray, int]:
    """Number the distinct keys 0, 1, ... in order; without a sort when their range is moderate."""
    top = int(key.max()) + 1
    if top > 20_000_000:
        unique, index = np.unique(key, return_inverse=True)
        return index.astype(np.int64), len(unique)
    used = np.zeros(top, dtype=bool)
    used[key] = True
    return (np.cumsum(used) - 1)[key], int(used.sum())
