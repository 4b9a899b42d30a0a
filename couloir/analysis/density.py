"""Probability of a surface's cells from weighted samples: histogram, kernel density, or maximum-likelihood spline.

All three turn the weighted mass in *fine* bins into the probability of each cell, so the estimate and its bootstrap replicas, which are
replicas of that mass, take one path.

*Kernel density*: Gaussian kernels integrated over cells; wrapped around a period, reflected where the sampled range ends or at given
limits that no sample crosses.  In one dimension the density that is smoothed is that of the rows as they were sampled, and its ratio to
the unbiased one, a fixed smooth function, is taken off afterwards: windows flatten steep flanks, which smoothing would fill.  The
bandwidth is that of Botev, Grotowski & Kroese, Ann. Stat. 38, 2916 (2010), section 5 (improved Sheather-Jones), with the *effective*
number of samples in place of their number; in two dimensions that of each marginal times n^(1/5 - 1/6), which turns the optimal order
of one dimension into that of two.

*Spline*: F is a cubic B-spline whose coefficients maximize the likelihood of the rows as they were sampled (Shirts & Ferguson,
J. Chem. Theory Comput. 16, 4107 (2020)), a convex problem solved by Newton's method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from couloir.analysis.grid import Grid
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.spline import fit_spline
from couloir.cv.base import wrap
from couloir.errors import DataError, nearest
from couloir.trajectory import Array

REACH = 3.0
"""Cells farther than this many bandwidths from every sample stay unknown."""
_TAIL = 6.0
_STAGES = 7
_FINE = 2048
METHODS = ("histogram", "kde", "spline")


@dataclass(frozen=True, eq=False)
class Density:
    """How mass in fine bins becomes the probability of cells.

    Attributes
    ----------
    bin : (n_rows,) fine bin of each row, -1 where it plays no role.
    n_bins : number of fine bins.
    probability : function of mass (n, n_bins) that returns (n, n_cells), each row summing to 1, 0 where unknown.
    n_effective : (n_cells,) decorrelated samples behind each cell.
    label : what it is, with bandwidth or number of knots; empty for the histogram.
    """

    bin: IntArray
    n_bins: int
    probability: Callable[[Array], Array]
    n_effective: Array
    label: str = ""


def make_density(
    samples: BiasedSamples,
    grid: Grid,
    weights: Array,
    inefficiency: Array,
    *,
    method: str = "histogram",
    bandwidth: Any = None,
    knots: Any = None,
) -> Density:
    """Return the estimator of cells' probabilities called ``method``.

    Parameters
    ----------
    weights : (n_rows,) of rows in the unbiased state.
    inefficiency : (n_rows,) statistical inefficiency that belongs to each row.
    method : ``"histogram"``, ``"kde"`` or ``"spline"``.
    bandwidth : standard deviation of the kernel in the CV's unit, one or one per CV; None for the rule in the module's text.
    knots : intervals of the spline; None for the number with the least BIC.

    Raises
    ------
    DataError : the method is unknown, a number does not fit, or no sample with weight lies on the grid.
    """
    if method not in METHODS:
        raise DataError(f"unknown method {method!r}{nearest(method, METHODS)}")
    if (bandwidth is not None and method != "kde") or (knots is not None and method != "spline"):
        raise DataError(f"method {method!r} takes no {'knots' if bandwidth is None else 'bandwidth'}", 'use method="kde" or "spline"')
    cell = grid.cells(samples)
    if not weights[cell >= 0].sum() > 0:
        raise DataError(f"no sample lies on the grid along {', '.join(grid.names)}", "check limits")
    n_cells = int(np.prod(grid.shape))
    if method == "kde":
        return _kernel_density(samples, grid, weights, inefficiency, bandwidth)
    n_effective = effective_in_cells(cell, weights, inefficiency, n_cells)
    if method == "histogram":
        return Density(cell, n_cells, _normalized, n_effective)
    if len(grid.names) != 1:
        raise DataError("a maximum-likelihood spline runs along one CV", 'use method="kde" for two')
    return _spline_density(samples, grid, weights, inefficiency, knots, n_effective)


def effective_number(weights: Array, inefficiency: Array) -> float:
    """Return Kish's effective sample size with every row counted as 1/g of an independent one."""
    return float(weights.sum() ** 2 / (weights**2 * inefficiency).sum())


def botev_bandwidth(x: Array, weights: Array, n_effective: float, *, period: float | None = None) -> float:
    """Return the improved Sheather-Jones bandwidth (Botev et al. 2010, eq. 27 and algorithm 1) of weighted samples.

    The rule's norms of derivatives come from the Fourier series on a circle and from the cosine series, which reflects at the ends of
    the range, otherwise.  Where the fixed point does not exist (few samples) it falls back on Silverman's rule of thumb.

    Parameters
    ----------
    x, weights : (n,).
    n_effective : number of independent samples that the weighted ones are worth.
    """
    low, span = (-period / 2, period) if period is not None else (float(x.min()), float(np.ptp(x)))
    if not span > 0:
        raise DataError(f"all samples lie at {low:g}", "give a bandwidth")
    unit = (wrap(x, period) - low) / span
    mass = _sums(np.minimum((unit * _FINE).astype(np.int64), _FINE - 1), weights, _FINE)
    mass /= mass.sum()
    order = np.arange(1, _FINE // 2)
    if period is not None:
        frequency, power = np.asarray(2 * np.pi * order), 2 * np.abs(np.fft.rfft(mass)[order]) ** 2
    else:
        # A mirrored copy makes the Fourier series a cosine series; the phase moves bins to their centres and drops out.
        frequency, power = np.asarray(np.pi * order), 0.5 * np.abs(np.fft.rfft(np.concatenate([mass, mass[::-1]]))[order]) ** 2
    n = max(n_effective, 2.0)

    def excess(t: float) -> float:
        return t - _next_time(t, n, frequency, power)

    times = np.geomspace(0.25 / _FINE**2, 0.1, 60)
    values = np.array([excess(t) for t in times])
    crossing = np.flatnonzero((values[:-1] < 0) & (values[1:] >= 0))
    if len(crossing):
        first = crossing[0]
        return span * float(np.sqrt(float(brentq(excess, times[first], times[first + 1]))))
    return _silverman(x, weights, n, period)


def _next_time(t: float, n: float, frequency: Array, power: Array) -> float:
    """Return the squared bandwidth that follows from the plug-in stages started at ``t``."""

    def norm(s: int, time: float) -> float:
        return float((frequency ** (2 * s) * power * np.exp(-(frequency**2) * time)).sum())

    roughness = norm(_STAGES, t)
    for s in range(_STAGES - 1, 1, -1):
        odd = float(np.prod(np.arange(1.0, 2 * s, 2))) / np.sqrt(2 * np.pi)
        factor = (1 + 0.5 ** (s + 0.5)) / 3
        time = (2 * factor * odd / (n * max(roughness, 1e-300))) ** (2 / (3 + 2 * s))
        roughness = norm(s, time)
    return float((2 * n * np.sqrt(np.pi) * max(roughness, 1e-300)) ** -0.4)


def _silverman(x: Array, weights: Array, n: float, period: float | None) -> float:
    p = weights / weights.sum()
    if period is None:
        spread = float(np.sqrt(p @ (x - float(p @ x)) ** 2))
    else:
        length = float(np.abs(p @ np.exp(2j * np.pi * x / period)))
        spread = period / (2 * np.pi) * min(float(np.sqrt(-2 * np.log(max(length, 1e-12)))), np.pi)
    return max(0.9 * float(spread) * float(n**-0.2), 1e-6 * (float(np.ptp(x)) if period is None else period))


def _bandwidths(samples: BiasedSamples, grid: Grid, weights: Array, g: Array, given: Any) -> list[float]:
    if given is not None:
        numbers = [float(given)] * len(grid.names) if np.ndim(given) == 0 else [float(b) for b in given]
        if len(numbers) != len(grid.names) or not all(0 < b < np.inf for b in numbers):
            raise DataError(f"bandwidth = {given} for {len(grid.names)} CVs", "give one positive number, or one per CV")
        return numbers
    n = effective_number(weights, g)
    wider = n ** (1 / 5 - 1 / 6) if len(grid.names) == 2 else 1.0
    return [wider * botev_bandwidth(samples[name], weights, n, period=p) for name, p in zip(grid.names, grid.periods, strict=True)]


def _kernel_density(samples: BiasedSamples, grid: Grid, weights: Array, g: Array, given: Any) -> Density:
    bandwidths = _bandwidths(samples, grid, weights, g, given)
    bins = np.zeros(len(samples), dtype=np.int64)
    outside = np.zeros(len(samples), dtype=bool)
    axes, kernels, near = [], [], []
    most = 32 if len(grid.names) == 1 else 8
    for name, period, edges, h in zip(grid.names, grid.periods, grid.edges, bandwidths, strict=True):
        x = wrap(samples[name], period)
        centres, walls = _fine_axis(x, edges, h, period, most)
        width = centres[1] - centres[0]
        i = np.floor((x - centres[0]) / width + 0.5).astype(np.int64)
        i[x == edges[-1]] = np.minimum(i[x == edges[-1]], round((edges[-1] - centres[0]) / width - 0.5))
        outside |= (i < 0) | (i >= len(centres))
        bins = bins * len(centres) + np.clip(i, 0, len(centres) - 1)
        axes.append(len(centres))
        kernels.append(_kernel(centres, edges, h, period, walls))
        near.append(_within(centres, edges, REACH * h, period))
    bins[outside] = -1
    inside = bins >= 0
    n_bins = int(np.prod(axes))
    if len(axes) == 1:
        mass, rows = _sums(bins[inside], weights[inside], n_bins), _sums(bins[inside], (1.0 / g)[inside], n_bins)
        tilt = _tilt(centres, mass, rows, 0.5 * h, period)
        kernels = [_tilted_kernel(centres, edges, tilt, h, period, walls)]
    occupied = _sums(bins[inside], weights[inside] > 0, n_bins)
    known = _apply(near, occupied[None], axes)[0] > 0

    def probability(mass: Array) -> Array:
        return _normalized(np.where(known, _apply(kernels, mass, axes), 0.0))

    first = _apply(kernels, _sums(bins[inside], weights[inside], n_bins)[None], axes)[0]
    second = _apply([k**2 for k in kernels], _sums(bins[inside], (weights**2 * g)[inside], n_bins)[None], axes)[0]
    n_effective = np.divide(first**2, second, out=np.zeros_like(first), where=known & (second > 0))
    return Density(bins, n_bins, probability, n_effective, f"kde, bandwidth {' x '.join(f'{h:.3g}' for h in bandwidths)}")


def _fine_axis(x: Array, edges: Array, h: float, period: float | None, most: int) -> tuple[Array, tuple[float | None, float | None]]:
    """Return centres of fine bins, a fraction of a bandwidth wide, and the ends (low, high) at which kernels are reflected.

    Where samples lie beyond the grid, the bins go on there instead: those samples reach into the grid's cells.
    """
    n = len(edges) - 1
    refine = int(np.clip(np.ceil(4 * (edges[1] - edges[0]) / h), 1, most))
    width = (edges[-1] - edges[0]) / (n * refine)
    before = after = 0
    if period is None:
        reach = _TAIL * h
        before = int(np.ceil(np.clip(edges[0] - x.min(), 0.0, reach) / width))
        after = int(np.ceil(np.clip(x.max() - edges[-1], 0.0, reach) / width))
    centres = edges[0] + (np.arange(-before, n * refine + after) + 0.5) * width
    if period is not None:
        return centres, (None, None)
    return centres, (None if before else float(edges[0]), None if after else float(edges[-1]))


def _kernel(centres: Array, edges: Array, h: float, period: float | None, walls: Sequence[float | None]) -> Array:
    """Return the share of a kernel at each centre that falls in each cell, (n_cells, n_centres)."""
    if period is not None:
        turns = int(np.ceil(_TAIL * h / period)) + 1
        images = [centres + k * period for k in range(-turns, turns + 1)]
    else:
        images = [centres, *(2 * wall - centres for wall in walls if wall is not None)]
    share = np.zeros((len(edges) - 1, len(centres)))
    for image in images:
        share += np.diff(ndtr((edges[:, None] - image) / h), axis=0)
    return share


def _within(centres: Array, edges: Array, reach: float, period: float | None) -> Array:
    """Return 1.0 where a cell's centre is within ``reach`` (and half a cell) of a fine bin's, (n_cells, n_centres)."""
    middle = 0.5 * (edges[1:] + edges[:-1])
    distance = np.abs(wrap(middle[:, None] - centres, period))
    return np.asarray(distance <= reach + 0.5 * (edges[1] - edges[0]), dtype=float)


def _apply(matrices: list[Array], mass: Array, axes: list[int]) -> Array:
    """Return the product of one matrix per axis with mass (n, n_bins), as (n, n_cells)."""
    if len(matrices) == 1:
        return np.asarray(mass @ matrices[0].T)
    first, second = matrices
    shares = np.asarray(first @ mass.reshape(-1, *axes) @ second.T)
    return shares.reshape(len(mass), len(first) * len(second))


def _tilt(centres: Array, mass: Array, rows: Array, width: float, period: float | None) -> Array:
    """Return the density of rows over that of the unbiased state, both smoothed, at equally spaced points (n,).

    Any fixed positive function serves; this one makes what is smoothed or fitted as flat as it was sampled.  ``width`` is to be
    wide enough to average out noise, and narrow enough to follow the windows.
    """
    half = 0.5 * (centres[1] - centres[0])
    edges = np.append(centres - half, centres[-1] + half)
    smooth = _kernel(centres, edges, width, period, (edges[0], edges[-1]))
    above, below = smooth @ rows, smooth @ mass
    known = (below > 1e-200) & (above > 1e-200)
    return np.asarray(np.exp(np.interp(centres, centres[known], np.log(above[known] / below[known]))))


def _tilted_kernel(centres: Array, edges: Array, tilt: Array, h: float, period: float | None, walls: Sequence[float | None]) -> Array:
    """Return the kernel that smooths the tilted density and takes the tilt off again, (n_cells, n_centres)."""
    width = centres[1] - centres[0]
    refine = round((edges[1] - edges[0]) / width)
    fine = np.linspace(edges[0], edges[-1], refine * (len(edges) - 1) + 1)
    there = np.interp(0.5 * (fine[1:] + fine[:-1]), centres, np.log(tilt))
    share = _kernel(centres, fine, h, period, walls) * np.exp(np.log(tilt) - there[:, None])
    return np.asarray(share.reshape(len(edges) - 1, refine, len(centres)).sum(axis=1))


def _spline_density(samples: BiasedSamples, grid: Grid, weights: Array, g: Array, knots: Any, n_effective: Array) -> Density:
    edges, period = grid.edges[0], grid.periods[0]
    most = 12 if len(edges) < 400 else 4
    fine = Grid(grid.names, grid.periods, (np.linspace(edges[0], edges[-1], most * (len(edges) - 1) + 1),))
    bins = fine.cells(samples)
    n_bins = fine.shape[0]
    inside = bins >= 0
    mass = _sums(bins[inside], weights[inside], n_bins)
    rows = _sums(bins[inside], (1.0 / g)[inside], n_bins)
    centres = fine.centers[0]
    tilt = _tilt(centres, mass, rows, 2 * (edges[1] - edges[0]), period)
    n = effective_number((weights * tilt[bins])[inside], g[inside])
    spline = fit_spline(centres, mass, tilt, n, low=float(edges[0]), high=float(edges[-1]), periodic=period is not None, knots=knots)
    reach = (edges[-1] - edges[0]) / spline.knots
    known = _within(centres, edges, reach, period) @ (mass > 0) > 0

    def probability(fine_mass: Array) -> Array:
        p = np.array([spline.refit(m) for m in fine_mass]).reshape(len(fine_mass), len(edges) - 1, most)
        return _normalized(np.where(known, p.sum(axis=2), 0.0))

    return Density(bins, n_bins, probability, n_effective, f"spline, {spline.knots} knots")


def _sums(index: IntArray, weights: Any, n: int) -> Array:
    """Return the sum of weights with each index (n,)."""
    return np.bincount(index, weights, n).astype(float)


def _normalized(mass: Array) -> Array:
    return np.asarray(mass / mass.sum(axis=1, keepdims=True))


def effective_in_cells(cell: Any, weights: Array, g: Array, n_cells: int) -> Array:
    """Return Kish's effective sample size of each cell with every row counted as 1/g of an independent one."""
    inside = cell >= 0
    first = _sums(cell[inside], weights[inside], n_cells)
    second = _sums(cell[inside], weights[inside] ** 2 * g[inside], n_cells)
    return np.divide(first**2, second, out=np.zeros(n_cells), where=second > 0)
