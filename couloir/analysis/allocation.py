"""Which windows to extend: what each contributes to the error of the surface, and where more time reduces it most.

The surface's variance is a sum over windows: V(s) = sum_k a_k(s) / T_k, T_k the time spent in window k (exchange correlates
windows a little, which is left out); the a_k change a little with T, since WHAM weighs windows by their rows, not by what
these tell.  Its terms come from the linear response of WHAM to the weights of blocks of time (the infinitesimal
jackknife; Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 22): a block changes M_b, which moves f by the
inverse Hessian of the dual and every cell with it; block by block this is the bootstrap of
:mod:`couloir.analysis.bootstrap` without solving anything again.  The sum over k of a_k / (T_k + t_k) with sum t_k fixed is
least where a_k / (T_k + t_k)^2 is the same in every window that is extended (Neyman's allocation, J. R. Stat. Soc. 97, 558
(1934)): from there the a_k are found again, and the best of what was tried is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from couloir.analysis.bootstrap import make_blocks
from couloir.analysis.overlap import biased_names
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import make_grid
from couloir.analysis.timeseries import walkers
from couloir.analysis.wham import bin_states, solve_connected
from couloir.errors import DataError
from couloir.trajectory import Array
from couloir.units import convert

if TYPE_CHECKING:
    import pandas as pd

BELOW = 8.0
"""kT above the minimum up to which cells count."""
_ROUNDS = 4
_POWER = 4
"""Cells count by this power of their variance when the largest is to fall."""


@dataclass(frozen=True, eq=False)
class Allocation:
    """Where further simulation goes.

    Attributes
    ----------
    extra : (n_windows,) further time, ps, over all walkers of the window; sums to what was asked for, or to ``most``.
    spent : (n_windows,) time behind the samples, ps.
    variance : (n_windows,) what each window adds to the variance that is to fall, kT².
    error, expected, uniform : its root now, after ``extra``, and after the same time spread evenly, kT.
    """

    extra: Array
    spent: Array
    variance: Array
    error: float
    expected: float
    uniform: float

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per window."""
        import pandas as pd

        return pd.DataFrame({"spent": self.spent, "variance": self.variance, "extra": self.extra})

    def __str__(self) -> str:
        order = np.argsort(-self.extra)
        chosen = ", ".join(f"window {k}: {self.extra[k]:.3g} ps" for k in order[:5] if self.extra[k] > 0)
        n = int((self.extra > 0).sum())
        head = f"Allocation of {self.extra.sum():.3g} ps to {n} of {len(self.extra)} windows"
        errors = f"error {self.error:.2g} kT, then {self.expected:.2g} kT ({self.uniform:.2g} kT if spread evenly)"
        return f"{head}: {errors}\n  most: {chosen}"


def allocate(
    samples: BiasedSamples,
    time: Any,
    along: Any = None,
    *,
    aim: Literal["mean", "largest"] = "mean",
    least: float = 0.0,
    most: Array | float = np.inf,
    bins: Any = None,
    limits: Any = None,
    cells: npt.NDArray[np.bool_] | None = None,
) -> Allocation:
    """Return how to spend further ``time`` on the windows so that the surface's variance below 8 kT should fall most.

    What is expected of the allocation is a lower bound: a short pilot misjudges slow windows, and its plan is then too
    good to be true.  Plan in several steps, and give every window at least something.

    Parameters
    ----------
    samples : what windows at one temperature have recorded; leave transients out (``analysis.equilibrated``).
    time : ps to spend in total, over all windows and walkers.
    along, bins, limits : the surface, as for :func:`couloir.analysis.free_energy_surface`; default the (first two) biased CVs.
    aim : what is to fall: the mean variance of the cells, or the largest.
    least : share of ``time`` that is spread evenly whatever the plan says, 0 ... 1.
    most : ps that a window may get, one number or (n_windows,).
    cells : which cells of the surface count, an array of its shape; default all below 8 kT.

    Raises
    ------
    DataError : time is not positive, temperatures differ, a window has no samples, or windows do not overlap: these need
        windows between them, not time.
    """
    budget = convert(time, "ps", "time")
    if budget <= 0:
        raise DataError(f"time = {budget:g} ps is not positive")
    if (samples.counts == 0).any():
        raise DataError(f"window {int(np.argmin(samples.counts))} has no samples", "run every window before comparing them")
    if np.ptp(samples.temperatures) > 0:
        raise DataError("windows at several temperatures cannot be compared in time", "allocate for each temperature apart")
    response = _Response(samples, biased_names(samples)[:2] if along is None else along, bins, limits, cells)
    spent = _time_spent(samples)
    limit = np.broadcast_to(np.asarray(most, dtype=float), spent.shape)
    budget = min(budget, float(limit.sum()))
    even = _evenly(budget, limit)

    def expected(extra: Array) -> tuple[Array, float]:
        return _of_interest(response.variances(1.0 + extra / spent), aim)

    floor = _evenly(least * budget, limit)
    variance, now = expected(np.zeros(len(spent)))
    uniform = expected(even)[1]
    rate, extra, best = variance * spent, even, uniform
    for _ in range(_ROUNDS):
        plan = floor + _fill(rate, spent + floor, budget - float(floor.sum()), limit - floor)
        for trial in (plan, 0.5 * (plan + extra)):
            then = expected(trial)[1]
            if then < best:
                extra, best = trial, then
        rate = expected(extra)[0] * (spent + extra)
    return Allocation(extra, spent, variance, float(np.sqrt(now)), float(np.sqrt(best)), float(np.sqrt(uniform)))


def _of_interest(variances: Array, aim: str) -> tuple[Array, float]:
    """Return what each window adds, (n_windows,), to the mean or the largest of the cells' variances, and that variance.

    The largest is approached as a p-norm, so that cells nearly as bad count too: moving time to the worst cell alone
    would make the next one the worst.
    """
    total = variances.sum(axis=0)
    weight = np.ones(len(total)) if aim == "mean" else (total / total.max()) ** _POWER
    return variances @ (weight / weight.sum()), float(total.mean() if aim == "mean" else total.max())


class _Response:
    """How cells answer to the weights of blocks, for any length of the windows."""

    def __init__(self, samples: BiasedSamples, along: Any, bins: Any, limits: Any, cells: npt.NDArray[np.bool_] | None = None) -> None:
        grid = make_grid(samples, along, bins, limits)
        states = bin_states(samples)
        sets, solution, _ = solve_connected(states, samples)
        if len(sets) > 1:
            raise DataError(f"{len(sets)} sets of windows share no samples", "insert windows between them before extending any")
        cell = grid.cells(samples)
        log_mixture = np.logaddexp.reduce(np.log(states.counts)[:, None] + solution.free_energies[:, None] - states.reduced, axis=0)
        weight = np.exp(-log_mixture - states.target)[states.index]
        population = np.bincount(cell[cell >= 0], weight[cell >= 0], int(np.prod(grid.shape)))
        counted = population > population.max() * np.exp(-BELOW)
        if cells is not None:
            if cells.shape != grid.shape:
                raise DataError(f"cells have shape {cells.shape}, the surface has {grid.shape}", "use the bins and limits of that surface")
            counted = cells.ravel() & (population > 0)
        # Only cells that count are kept: number them anew.
        new = np.where(counted, np.cumsum(counted) - 1, -1)
        self.n_cells = int(counted.sum())
        self.window, self.index, self.cell = samples.window, states.index, np.where(cell >= 0, new[np.maximum(cell, 0)], -1)
        self.counts, self.blocks = states.counts, make_blocks(samples)
        self.logits = solution.free_energies[:, None] - states.reduced
        self.target = states.target

    def variances(self, longer: Array) -> Array:
        """Return what windows add to the variance of cells, (n_windows, n_cells) in kT², run ``longer`` (n_windows,) times."""
        n_windows, n_bins = self.logits.shape
        logits = self.logits + np.log(self.counts * longer)[:, None]
        log_mixture = np.logaddexp.reduce(logits, axis=0)
        chance, weight = np.exp(logits - log_mixture), np.exp(-log_mixture - self.target)
        m = np.bincount(self.index, longer[self.window], n_bins)
        # Adding a constant to all f changes nothing: the pseudo-inverse leaves that direction alone.
        inverse = np.linalg.pinv(np.diag((chance * m).sum(axis=1)) - (chance * m) @ chance.T, rcond=1e-12, hermitian=True)
        use = self.cell >= 0
        cell, index, own = self.cell[use], self.index[use], longer[self.window[use]]
        population = np.bincount(cell, own * weight[index], self.n_cells)
        slope = _sum_by(cell, index, own, (self.n_cells, n_bins)) @ (chance * weight).T
        n_blocks = len(self.blocks.window)
        pushed = _sum_by(self.blocks.block, self.index, np.ones(len(self.index)), (n_blocks, n_bins)) @ chance.T
        direct = _sum_by(self.blocks.block[use], cell, weight[index], (n_blocks, self.n_cells))
        # More weight pushes f down by the inverse Hessian (that of a window's blocks together is fixed: -N_k f_k does not
        # move), and a bin's weight, the inverse of its mixture, falls by p_k for every rise of f_k.
        relative = (direct + (pushed @ inverse) @ slope.T) / population
        relative = relative - (relative @ (population / population.sum()))[:, None]
        out = np.zeros((n_windows, self.n_cells))
        for k in range(n_windows):
            mine = relative[self.blocks.window == k]
            # A window r times as long holds r times as many such blocks.
            out[k] = longer[k] * len(mine) / max(len(mine) - 1, 1) * ((mine - mine.mean(axis=0)) ** 2).sum(axis=0)
        return out


def _sum_by(row: Any, column: Any, values: Array, shape: tuple[int, int]) -> Any:
    """Return a sparse matrix of sums of ``values`` by row and column."""
    from scipy.sparse import coo_array

    return coo_array((values, (row, column)), shape=shape).tocsr()


def _time_spent(samples: BiasedSamples) -> Array:
    """Return the time behind the rows of each window, ps: rows times the walker's interval."""
    out = np.zeros(samples.n_windows)
    for window, _, rows in walkers(samples):
        gaps = np.diff(samples.time[rows])
        interval = float(np.median(gaps)) if len(gaps) else float(samples.time[rows[0]])
        out[window] += len(rows) * interval
    return out


def _evenly(budget: float, most: Array) -> Array:
    """Return equal times that sum to ``budget``, but for windows that reach their ``most``."""
    ranked = np.sort(most)
    filled = np.cumsum(np.append(0.0, ranked))[:-1] + ranked * np.arange(len(most), 0, -1)
    n = int(np.searchsorted(filled, budget))
    if n == len(most):
        return np.asarray(most.copy())
    return np.asarray(np.minimum(most, (budget - ranked[:n].sum()) / (len(most) - n)))


def _fill(rate: Array, spent: Array, budget: float, limit: Array) -> Array:
    """Return times 0 <= t <= ``limit`` that make the sum of rate / (spent + t) least; they sum to ``budget``, or to the limits."""
    out = np.zeros(len(rate))
    free = np.ones(len(rate), dtype=bool)
    while free.any() and budget > 0:
        out[free] = _fill_freely(rate[free], spent[free], budget)
        full = free & (out > limit)
        if not full.any():
            break
        out[full] = limit[full]
        budget -= float(limit[full].sum())
        out[free & ~full] = 0.0
        free &= ~full
    return out


def _fill_freely(rate: Array, spent: Array, budget: float) -> Array:
    """Return the same without limits."""
    root = np.sqrt(np.maximum(rate, 1e-300))
    # Windows are extended in the order of their present gain rate / spent², until the next one's is not reached any more.
    order = np.argsort(-root / spent)
    level, n = 0.0, 0
    for n in range(1, len(order) + 1):
        chosen = order[:n]
        level = (budget + spent[chosen].sum()) / root[chosen].sum()
        if n == len(order) or level * root[order[n]] <= spent[order[n]]:
            break
    out = np.zeros(len(rate))
    out[order[:n]] = level * root[order[:n]] - spent[order[:n]]
    return out
