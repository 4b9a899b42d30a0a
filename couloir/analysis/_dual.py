"""The dual of WHAM and MBAR, A(f), and Newton's method with a line search on it (see :mod:`couloir.analysis.wham`).

The one costly step, chances of all windows in all bins, is written once for any array namespace: numpy, or torch on a
device.  Newton's own algebra is on matrices of windows alone and stays in numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir.analysis.overlap import Sets
from couloir.analysis.samples import IntArray
from couloir.trajectory import Array

_STEP = 20.0
"""Longest Newton step in kT, for the first iterations from a poor start."""


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
    multiplicity : (n_rows,) how many samples a row stands for; None for one each.
    """

    index: IntArray
    means: Array
    names: tuple[str, ...]
    reduced: Array
    target: Array
    counts: Array
    multiplicity: Array | None = None

    def per_set(self, sets: Sets, window: IntArray) -> Array:
        """Return how many samples of each set's windows fall in each bin, (n_sets, n_bins)."""
        owner = set_of_windows(sets, len(self.counts))[window]
        n_bins = len(self.means)
        total = np.bincount(owner * n_bins + self.index, self.multiplicity, len(sets) * n_bins)
        return total.reshape(len(sets), n_bins).astype(float)


@dataclass(frozen=True, eq=False)
class DualSolution:
    """Free energies (n_windows,), log-weight of one sample in each set's bins (n_sets, n_bins), and how it went."""

    free_energies: Array
    log_weights: Array
    n_iterations: int
    converged: bool


def set_of_windows(sets: Sets, n_windows: int) -> IntArray:
    """Return the number of the set each window belongs to (n_windows,); 0 for windows in none."""
    out = np.zeros(n_windows, dtype=np.int64)
    for i, members in enumerate(sets):
        out[list(members)] = i
    return out


def solve_dual(
    states: BinnedStates,
    bin_counts: Array,
    sets: Sets,
    *,
    start: Array | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 200,
    device: str | None = None,
) -> DualSolution:
    """Minimize A(f) in every set.

    Parameters
    ----------
    states : reduced energies in bins.
    bin_counts : (n_sets, n_bins) samples per bin, not necessarily whole numbers.
    sets : windows solved together.
    start : (n_windows,) free energies to start from.
    device : where torch does the sums over bins, in float64 (``"cpu"``, ``"cuda"``); None for numpy.
    """
    n_windows, n_bins = states.reduced.shape
    f = np.full(n_windows, np.nan)
    log_weights = np.full((len(sets), n_bins), -np.inf)
    total, converged = 0, True
    for i, members in enumerate(sets):
        rows, occupied = list(members), bin_counts[i] > 0
        whole = len(rows) == n_windows and bool(occupied.all())
        u, m = states.reduced if whole else states.reduced[rows][:, occupied], bin_counts[i][occupied]
        n = states.counts[rows]
        # Windows together must hold what the bins hold, or the dual has no minimum.
        n = n * (m.sum() / n.sum())
        f_set, log_mixture, steps, ok = _newton(u, n, m, None if start is None else start[rows], tolerance, max_iterations, device)
        total, converged = total + steps, converged and ok
        log_w = -log_mixture - states.target[occupied]
        norm = _logsumexp(log_w + np.log(m))
        f[rows] = f_set + norm
        log_weights[i, occupied] = log_w - norm - np.log(len(sets))
        if len(sets) == 1:
            all_log = log_w - norm + states.target[occupied] + np.log(m)
            for k in np.flatnonzero(states.counts == 0):
                f[k] = -_logsumexp(all_log - states.reduced[k, occupied])
    return DualSolution(f, log_weights, total, converged)


def membership(states: BinnedStates, f: Array, windows: list[int]) -> Array:
    """Return the chance that a sample in a bin came from each of ``windows``, (len(windows), n_bins)."""
    u = states.reduced[windows]
    return np.asarray(_mixture(np, u, np.log(states.counts[windows]) + f[windows], np.empty_like(u))[0])


def _mixture(xp: Any, u: Any, a: Any, out: Any) -> tuple[Any, Any]:
    """Return exp(a_k - u_k(b)) normalized over k, in ``out``, and the log of its sum over k; ``xp`` is numpy or torch."""
    xp.subtract(a[:, None], u, out=out)
    top = xp.amax(out, 0)
    out -= top
    xp.exp(out, out=out)
    total = xp.sum(out, 0)
    out /= total
    return out, top + xp.log(total)


def _evaluator(u: Array, n: Array, m: Array, device: str | None) -> Callable[[Array], tuple[float, Array, Callable[[], Array], Any]]:
    """Return a function of f: A(f), expected samples per window (n_windows,), samples shared by pairs when asked, log mixture."""
    xp: Any = np
    u_x: Any = u
    m_x: Any = m
    if device is not None:
        import torch

        xp = torch
        u_x, m_x = (torch.as_tensor(x, dtype=torch.float64, device=device) for x in (u, m))
    out, log_n = xp.empty_like(u_x), np.log(n)

    def evaluate(f: Array) -> tuple[float, Array, Callable[[], Array], Any]:
        a = log_n + f if device is None else xp.as_tensor(log_n + f, device=device)
        p, log_mixture = _mixture(xp, u_x, a, out)
        expected = _to_numpy(p @ m_x)
        return float(m_x @ log_mixture) - float(n @ f), expected, lambda: _to_numpy((p * m_x) @ p.T), log_mixture

    return evaluate


def _to_numpy(x: Any) -> Array:
    return x if isinstance(x, np.ndarray) else np.asarray(x.cpu().numpy())


def _newton(
    u: Array, n: Array, m: Array, start: Array | None, tolerance: float, max_iterations: int, device: str | None
) -> tuple[Array, Array, int, bool]:
    """Return f (f_0 = 0), log sum_k N_k exp(f_k - u_k(b)), iterations, and whether they converged."""
    evaluate = _evaluator(u, n, m, device)
    f = np.zeros(len(n)) if start is None else start - start[0]
    objective, expected, shared, log_mixture = evaluate(f)
    iteration, converged = 0, False
    while iteration < max_iterations and not converged:
        iteration += 1
        gradient = expected - n
        if np.abs(gradient).max() < 1e-9:
            converged = True
            break
        # The gauge (a constant added to f) has no curvature: give it some; the tiny diagonal bounds steps between
        # windows that share nothing, whose offset the data do not determine.
        hessian = np.diag(expected) - shared() + expected.sum() / len(n) ** 2 + 1e-8 * np.eye(len(n))
        step = -np.linalg.solve(hessian, gradient)
        step -= step.mean()
        longest = float(np.abs(step).max())
        step *= min(1.0, _STEP / max(longest, 1e-300))
        slope, scale = float(gradient @ step), 1.0
        while True:
            trial, expected, shared, log_mixture = evaluate(f + scale * step)
            # Close to the minimum the decrease drowns in rounding: allow for it.
            if trial <= objective + 1e-4 * scale * slope + 1e-13 * abs(objective) or scale < 1e-6:
                break
            scale *= 0.5
        f, objective = f + scale * step, trial
        converged = longest < tolerance
    # Weights belong to the gauge f_0 = 0 that is returned.
    return f - f[0], _to_numpy(log_mixture) - f[0], iteration, converged


def _logsumexp(x: Array) -> float:
    top = float(x.max())
    return top + float(np.log(np.exp(x - top).sum()))
