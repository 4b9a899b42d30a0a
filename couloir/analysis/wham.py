"""WHAM: free energies of biased windows from sparse fine bins, by Newton's method on the convex dual.

With N_k samples in window k, M_b samples in bin b, and reduced bias energies u_k(b), the free energies f_k minimize

    A(f) = -sum_k N_k f_k + sum_b M_b log sum_k N_k exp(f_k - u_k(b)),

which is convex (Zhu & Hummer, J. Comput. Chem. 33, 453 (2012), eq. 19; with one sample per bin it is the MBAR
likelihood of Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008)).  Wide bins bias histogram WHAM; here bins are a small
fraction of a window's width, only occupied ones exist, and u_k(b) is taken at the *mean* of the samples in the bin, which
leaves an error of second order in the bin's width.  Sets of windows that share no samples are solved apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from couloir.analysis._dual import BinnedStates, DualSolution, membership, set_of_windows, solve_dual
from couloir.analysis.overlap import Sets, biased_names, connected_sets, disconnected, name_windows
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.timeseries import inefficiencies, on_circle
from couloir.cv.base import wrap
from couloir.errors import DataError, Finding
from couloir.trajectory import Array
from couloir.units import GAS_CONSTANT, convert

__all__ = [
    "BinnedStates", "DualSolution", "WhamResult", "bin_keys", "bin_numbers", "bin_states", "bin_widths", "dense_numbers",
    "energy_width", "occupied_bins", "reduced_energies", "set_of_windows",
    "solution_findings", "solve_connected", "solve_dual", "solve_sets", "wham", "wham_result",
]  # fmt: skip

MOVEMENT = 1e-3
"""Automatic bins: largest change of a free energy, in kT, when all bins were halved for the last time."""
_LARGEST = 50_000_000
"""Automatic bins: most windows times bins (400 MB of energies)."""
_BITS = 62
"""Bits of a bin's key that the dimensions share."""


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
    temperature : of the unbiased state, K.
    findings : what is unsure.
    movement : largest change of a free energy, kT, when the bins were halved for the last time; None without ``bins="auto"``.
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
    temperature: float
    findings: tuple[Finding, ...] = ()
    movement: float | None = None

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The same as ``findings``."""
        return self.findings

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        head = f"WHAM: {len(self.free_energies)} windows, {len(self.bin_means)} bins, {state} in {self.n_iterations} iterations"
        body = [f"  window {k:3d}: {f:10.4f} kT" for k, f in enumerate(self.free_energies)]
        return "\n".join([head, *body, *(str(f) for f in self.findings)])


def wham(
    samples: BiasedSamples,
    *,
    bins: int | Sequence[int] | Literal["auto"] | None = None,
    widths: float | Sequence[float] | None = None,
    temperature: Any = None,
    tolerance: float = 1e-8,
    device: str | None = None,
) -> WhamResult:
    """Return the WHAM estimate from all windows.

    Parameters
    ----------
    samples : windows at any temperatures; where these differ, the potential energy becomes one more dimension of the bins.
    bins : fine bins per biased CV (one number, or one per CV); default: a twentieth of a window's width in one dimension,
        a sixth in more.  ``"auto"`` starts there and halves all bins until no free energy moves by 0.001 kT or the table of
        energies would exceed 400 MB; every halving costs a solution with at most 2^d times the bins, never more than rows.
    widths : instead of ``bins``, the width of a bin along each biased CV; edges lie at whole multiples of it.
    temperature : of the unbiased state (K or text); default that of the first window that holds samples.
    tolerance : largest change of a free energy, in kT, in the last Newton step.
    device : where torch does the sums over bins (``"cpu"``, ``"cuda"``); None for numpy.

    Raises
    ------
    DataError : temperatures differ and potential energies were not recorded, or bins do not fit.
    """
    target, energies = target_temperature(samples, temperature)
    g = inefficiencies(samples)

    def once(numbers: Any, start: Array | None = None) -> WhamResult:
        states = bin_states(samples, bins=numbers, widths=widths, temperature=target, energies=energies)
        return wham_result(states, samples, g, target, start=start, tolerance=tolerance, device=device)

    if bins != "auto":
        return once(bins)
    if widths is not None:
        raise DataError('bins="auto" chooses the widths itself', "give one of the two")
    return _refined(samples, once)


def target_temperature(samples: BiasedSamples, temperature: Any = None) -> tuple[float, bool]:
    """Return the temperature to reweight to, in K, and whether potential energies are needed to get there."""
    present = samples.temperatures[samples.counts > 0]
    target = float(present[0]) if temperature is None else convert(temperature, "K", "temperature")
    energies = bool(np.abs(present - target).max() > 1e-9 * target)
    if energies:
        samples.require_potential(f"windows at {present.min():g} to {present.max():g} K cannot be reweighted to {target:g} K")
    return target, energies


def _refined(samples: BiasedSamples, once: Callable[..., WhamResult]) -> WhamResult:
    """Halve the bins until no free energy moves by ``MOVEMENT``."""
    names = biased_names(samples)
    numbers = bin_numbers(samples, names, None)
    coarse = once(numbers)
    while True:
        numbers = [2 * n for n in numbers]
        fine = once(numbers, coarse.free_energies)
        moved = float(np.nanmax(np.abs(fine.free_energies - coarse.free_energies)))
        if moved < MOVEMENT:
            return replace(fine, movement=moved)
        growth = len(fine.bin_means) ** 2 / len(coarse.bin_means)
        if growth * samples.n_windows > _LARGEST or len(fine.bin_means) == len(coarse.bin_means):
            message = f"free energies still moved by {moved:.2g} kT when the bins were halved for the last time"
            finding = Finding("coarse-bins", message, "use mbar(samples), which has no bins, or fewer samples")
            return replace(fine, movement=moved, findings=(*fine.findings, finding))
        coarse = fine


def wham_result(
    states: BinnedStates,
    samples: BiasedSamples,
    inefficiency: Array,
    temperature: float,
    *,
    start: Array | None = None,
    tolerance: float = 1e-8,
    device: str | None = None,
) -> WhamResult:
    """Solve for samples in bins; ``samples`` has the rows of ``states``, each perhaps standing for many."""
    sets, solution, shared = solve_sets(states, samples.window, inefficiency, start=start, tolerance=tolerance, device=device)
    owner = set_of_windows(sets, samples.n_windows)[samples.window]
    weights = np.exp(solution.log_weights[owner, states.index])
    return WhamResult(
        free_energies=solution.free_energies, weights=weights if states.multiplicity is None else weights * states.multiplicity,
        names=states.names, bin_means=states.means, bin_index=states.index, overlap=shared / np.maximum(states.counts, 1.0)[:, None],
        sets=sets, n_iterations=solution.n_iterations, converged=solution.converged,
        findings=solution_findings(samples, sets, solution.converged), temperature=temperature,
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
    samples: BiasedSamples,
    *,
    bins: int | Sequence[int] | None = None,
    widths: float | Sequence[float] | None = None,
    temperature: float | None = None,
    energies: bool = False,
) -> BinnedStates:
    """Return the samples in sparse bins of the biased CVs, and of the potential energy where temperatures differ.

    Parameters
    ----------
    samples : anything recorded.
    bins : fine bins per biased CV; None chooses them from the windows' widths.
    widths : width of a bin along each biased CV, instead of ``bins``.
    temperature : of the unbiased state, K; default that of the first window.
    energies : let the potential energy be one more dimension (needed when temperatures differ).
    """
    names = biased_names(samples)
    data = np.stack([samples[n] for n in names], axis=1) if names else np.zeros((len(samples), 0))
    periods = [samples.periods[samples.column(n)] for n in names]
    # Energies of large systems are large: only their differences matter, and those keep their digits.
    offset = float(samples.potential.mean()) if energies else 0.0
    if energies:
        data, periods = np.column_stack([data, samples.potential - offset]), [*periods, None]
    if widths is None:
        numbers = bin_numbers(samples, names, bins) + ([200] if energies else [])
        index, means = occupied_bins(data, periods, numbers)
    else:
        steps = bin_widths(widths, names) + (
            [energy_width(np.append(samples.temperatures, temperature or samples.temperatures))] if energies else []
        )
        # Edges lie at multiples of the width, so energies are binned as they are.
        key = bin_keys(data + np.append(np.zeros(len(names)), offset) if energies else data, periods, steps)
        index, n_bins = dense_numbers(key - key.min())
        means = _means(data, periods, index, n_bins)
    reduced, target = reduced_energies(samples, names, means, temperature if energies else None)
    means = means + np.append(np.zeros(len(names)), offset) if energies else means
    return BinnedStates(index, means, (*names, "potential") if energies else names, reduced, target, samples.counts.astype(float))


def reduced_energies(samples: BiasedSamples, names: tuple[str, ...], means: Array, temperature: float | None) -> tuple[Array, Array]:
    """Return reduced energies (n_windows, n_bins) at bin means, and (n_bins,) of the unbiased state.

    With a ``temperature`` the last column of ``means`` is the potential energy; None where it is common to all states.
    """
    values = np.zeros((len(means), len(samples.names)))
    for i, name in enumerate(names):
        values[:, samples.column(name)] = means[:, i]
    kT = samples.kT
    reduced = np.empty((samples.n_windows, len(means)))
    for k in range(samples.n_windows):
        reduced[k] = samples.bias_energy(k, values) / kT[k]
    if temperature is None:
        return reduced, np.zeros(len(means))
    reduced += means[:, -1] / kT[:, None]
    return reduced, means[:, -1] / (GAS_CONSTANT * temperature)


def solve_connected(states: BinnedStates, samples: BiasedSamples, *, tolerance: float = 1e-8) -> tuple[Sets, DualSolution, Array]:
    """Solve once for all windows, find the sets that share samples, solve those apart when there are several.

    Returns
    -------
    The sets, the solution and the shared samples (n_windows, n_windows).
    """
    return solve_sets(states, samples.window, inefficiencies(samples), tolerance=tolerance)


def solve_sets(
    states: BinnedStates,
    window: IntArray,
    inefficiency: Array,
    *,
    start: Array | None = None,
    tolerance: float = 1e-8,
    device: str | None = None,
) -> tuple[Sets, DualSolution, Array]:
    """Do what :func:`solve_connected` does, given the window (n_rows,) of each row and the inefficiency (n_windows,) of each window."""
    n_windows, n_bins = states.reduced.shape
    filled = [int(k) for k in np.flatnonzero(states.counts > 0)]
    everything: Sets = (tuple(filled),)
    counts = states.per_set(everything, window)
    solution = solve_dual(states, counts, everything, start=start, tolerance=tolerance, device=device)
    chance = membership(states, solution.free_energies, filled)
    shared = np.zeros((n_windows, n_windows))
    shared[np.ix_(filled, filled)] = (chance * counts[0]) @ chance.T
    # Rows of one visit tell no more than one row: each counts as 1/g of a sample.
    row = (1.0 / inefficiency)[window] * (1.0 if states.multiplicity is None else states.multiplicity)
    decorrelated = np.zeros_like(shared)
    decorrelated[np.ix_(filled, filled)] = (chance * np.bincount(states.index, row, n_bins)) @ chance.T
    sets = connected_sets(decorrelated, filled)
    if len(sets) > 1:
        solution = solve_dual(states, states.per_set(sets, window), sets, start=solution.free_energies, tolerance=tolerance, device=device)
    return sets, solution, shared


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
    counts = samples.counts
    divisor = np.maximum(counts, 1)
    variance = np.zeros(samples.n_windows)
    for p in points.T:
        p = p - p.mean()
        mean = np.bincount(samples.window, p, samples.n_windows) / divisor
        variance += np.bincount(samples.window, p**2, samples.n_windows) / divisor - mean**2
    biased = [k for k, b in enumerate(samples.biases) if b is not None and name in b.names and counts[k] > 1]
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
    index, n_bins = dense_numbers(key)
    return index, _means(data, periods, index, n_bins)


def bin_widths(widths: float | Sequence[float], names: tuple[str, ...]) -> list[float]:
    """Return one positive width per biased CV.

    Raises
    ------
    DataError : numbers do not fit, or are not positive.
    """
    out = [float(w) for w in np.atleast_1d(np.asarray(widths, dtype=float))]
    out = out * len(names) if len(out) == 1 else out
    if len(out) != len(names) or not all(0 < w < np.inf for w in out):
        raise DataError(f"widths = {widths} for the biased CVs {', '.join(names)}", "give one positive width, or one per biased CV")
    return out


def energy_width(temperatures: Array) -> float:
    """Return the width of bins of the potential energy, kJ/mol, in which reduced energies of all windows differ by 0.05 at most."""
    beta = 1.0 / (GAS_CONSTANT * temperatures)
    return float(0.05 / max(np.ptp(beta), 1e-3 * beta.max()))


def bin_keys(data: Array, periods: Sequence[float | None], widths: Sequence[float]) -> IntArray:
    """Return a number (n_rows,) that names the bin of each row; edges at whole multiples of the width, or of the period / n.

    Raises
    ------
    DataError : a value is so many bins from zero that the keys of all dimensions do not fit in 62 bits.
    """
    bits = _BITS // max(len(widths), 1)
    key = np.zeros(len(data), dtype=np.int64)
    for i, (period, width) in enumerate(zip(periods, widths, strict=True)):
        n = None if period is None else max(1, int(np.ceil(period / width - 1e-9)))
        step = np.floor((wrap(data[:, i], period) + (0.0 if period is None else period / 2)) / (width if n is None else period / n))  # type: ignore[operator]
        if np.abs(step).max(initial=0.0) >= 2 ** (bits - 1):
            worst = float(data[int(np.argmax(np.abs(step))), i])
            raise DataError(f"{worst:g} in dimension {i} lies too many bins of width {width:g} from zero", "use wider bins")
        part = step.astype(np.int64)
        # Rounding may put a value just below the period's edge into the bin after the last.
        part = part + 2 ** (bits - 1) if n is None else np.minimum(part, n - 1)
        key = (key << bits) | part
    return key


def _means(data: Array, periods: Sequence[float | None], index: IntArray, n_bins: int) -> Array:
    counts = np.bincount(index, minlength=n_bins)
    # A bin never reaches across the period's edge, so the plain mean of wrapped values is the mean on the circle.
    means = [np.bincount(index, wrap(data[:, i], p), n_bins) / counts for i, p in enumerate(periods)]
    return np.stack(means, axis=1) if means else np.zeros((n_bins, 0))


def dense_numbers(key: IntArray) -> tuple[IntArray, int]:
    """Number the distinct keys >= 0 as 0, 1, ... in order; without a sort when their range is moderate."""
    top = int(key.max()) + 1
    if top > min(20_000_000, 100_000 + 32 * len(key)):
        unique, index = np.unique(key, return_inverse=True)
        return index.astype(np.int64), len(unique)
    used = np.zeros(top, dtype=bool)
    used[key] = True
    return (np.cumsum(used) - 1)[key], int(used.sum())
