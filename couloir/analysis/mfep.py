"""Minimum free-energy paths: the simplified string method on a spline through the cells of a surface."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from couloir.analysis.grid import minimax_path
from couloir.analysis.landscape import landscape
from couloir.analysis.surface import Estimate, FreeEnergySurface
from couloir.cv.base import wrap
from couloir.cv.region import Mask
from couloir.errors import DataError
from couloir.trajectory import Array

_PAD = 8  # cells added around a period: the weight of a cell in a cubic spline falls fourfold per cell


@dataclass(frozen=True, eq=False)
class MinimumFreeEnergyPath:
    """A path along which the free energy falls off to no side.

    Attributes
    ----------
    images : (n_images, n_cvs), from minimum to minimum, equally spaced in arc length; periodic CVs wrapped.
    arc_length : (n_images,) from 0, in the CVs' unit (in lengths of ``scale`` when one was used).
    free_energy, standard_error : (n_images,) on the surface's scale; the error is that of -kT ln p along this same path.
    saddles : (n_saddles, n_cvs), every pass on the way, refined to where the gradient vanishes.
    saddle : (n_cvs,), the highest of them.
    barrier, reverse_barrier : height of ``saddle`` above the first and the last image.
    perpendicular_gradient : the largest left over, energy per arc length.
    scale : (n_cvs,) lengths that counted as 1.
    unit : of energies.
    """

    images: Array
    arc_length: Array
    free_energy: Array
    standard_error: Array
    saddles: Array
    saddle: Array
    barrier: Estimate
    reverse_barrier: Estimate
    perpendicular_gradient: float
    scale: Array = field(repr=False)
    unit: str = "kJ/mol"

    def __str__(self) -> str:
        ends = [", ".join(f"{v:.3f}" for v in point) for point in (self.images[0], self.saddle, self.images[-1])]
        return (
            f"MinimumFreeEnergyPath of {len(self.images)} images from ({ends[0]}) over ({ends[1]}) to ({ends[2]})\n"
            f"  barrier {self.barrier}, back {self.reverse_barrier}; length {self.arc_length[-1]:.3g}; {len(self.saddles)} saddles"
        )


def minimum_free_energy_path(
    surface: FreeEnergySurface,
    a: Any,
    b: Any,
    n_images: int = 50,
    smoothing: float = 0.0,
    scale: Sequence[float] | None = None,
    max_steps: int = 10000,
) -> MinimumFreeEnergyPath:
    """Return the minimum free-energy path between the minima of two basins.

    The simplified string method (E, Ren & Vanden-Eijnden, J. Chem. Phys. 126, 164103 (2007), sec. II) on a cubic spline of the surface,
    from the grid path with the lowest pass.  What is a steepest descent depends on how lengths along the CVs compare.

    Parameters
    ----------
    a, b : as :meth:`FreeEnergySurface.difference` takes them, or labels of :func:`landscape`.
    n_images : points on the path, at least 5.
    smoothing : standard deviation, in cells, of a Gaussian that takes cell-to-cell noise off the surface and its replicas; 1 or 2 help
        where the path jitters, and lower a pass of curvature -c by about c/2 times its square.
    scale : per CV, the length that counts as 1; default: 1 for CVs of one unit, else the range of the grid.
    max_steps : of the string.

    Raises
    ------
    DataError : a basin is unknown or unsampled; unsampled cells block the way; the two relax to one minimum; the grid is too small.
    """
    if n_images < 5 or min(surface.free_energy.shape) < 4 or not smoothing >= 0:
        raise DataError(
            f"{n_images} images on a grid of {surface.free_energy.shape} cells, smoothing {smoothing:g}",
            "take at least 5 images, 4 cells per CV and a smoothing of 0 or more",
        )
    start, end = _start(surface, a), _start(surface, b)
    cells = minimax_path(surface.free_energy, [p is not None for p in surface.periods], start, end)
    if cells is None:
        raise DataError(f"unsampled cells block every path from {a} to {b}", "insert windows in between, or use wider bins")
    lengths = _scale(surface, scale)
    spline = _Spline(surface, surface.free_energy, lengths, smoothing)
    string = _unwrap(np.array([surface._place(c) for c in cells]), surface.periods) / lengths
    string = _respaced(_smoothed(string, spline, len(cells)), n_images)
    if np.linalg.norm(string[-1] - string[0]) < 0.5 * spline.cell:
        raise DataError(f"{a} and {b} have the same minimum", "choose basins with a barrier between them")
    if string.shape[1] > 1:
        string = _relaxed(string, spline, max_steps)
    if not _sampled(surface, string * lengths).all():
        raise DataError(
            f"unsampled cells block the path from {a} to {b}: it runs into them or along their edge",
            "sample beside the path, or use wider bins",
        )
    return _result(surface, spline, string, lengths)


def _start(surface: FreeEnergySurface, basin: Any) -> tuple[int, ...]:
    if isinstance(basin, str) and basin not in surface.basins:
        return landscape(surface).basin(basin).cell
    return surface._lowest(surface._mask(basin), str(basin))


def _scale(surface: FreeEnergySurface, given: Sequence[float] | None) -> Array:
    if given is not None:
        lengths = np.asarray(given, dtype=float)
        if lengths.shape != (len(surface.grid),) or not (lengths > 0).all():
            raise DataError(f"scale = {given} for {len(surface.grid)} CVs", "give one positive length per CV")
        return lengths
    if len(set(surface.units)) == 1:
        return np.ones(len(surface.grid))
    return np.array([x[-1] - x[0] for x in surface.grid])


class _Spline:
    """Cubic spline of values on the surface's grid, in scaled coordinates; unsampled cells rise away from the sampled ones."""

    def __init__(self, surface: FreeEnergySurface, values: Array, lengths: Array, smoothing: float) -> None:
        from scipy.interpolate import RectBivariateSpline, make_interp_spline
        from scipy.ndimage import gaussian_filter

        filled, axes, self.smoothing = _filled(values, surface), [], smoothing
        if smoothing > 0:
            filled = gaussian_filter(filled, smoothing, mode=["nearest" if p is None else "wrap" for p in surface.periods])
        self.periods = [None if p is None else p / s for p, s in zip(surface.periods, lengths, strict=True)]
        for i, (x, period) in enumerate(zip(surface.grid, surface.periods, strict=True)):
            if period is not None:
                n = min(_PAD, len(x))
                filled = np.pad(filled, [(n, n) if j == i else (0, 0) for j in range(filled.ndim)], mode="wrap")
                x = np.concatenate([x[-n:] - period, x, x[:n] + period])
            axes.append(x / lengths[i])
        self.low = np.array([-np.inf if p is not None else x[0] for x, p in zip(axes, self.periods, strict=True)])
        self.high = np.array([np.inf if p is not None else x[-1] for x, p in zip(axes, self.periods, strict=True)])
        self.cells = np.array([x[1] - x[0] for x in axes])
        self.cell = float(self.cells.min())
        self._f = make_interp_spline(axes[0], filled, 3) if filled.ndim == 1 else RectBivariateSpline(*axes, filled, kx=3, ky=3, s=0)

    def __call__(self, points: Array, order: tuple[int, ...] | None = None) -> Array:
        x = [wrap(points[:, i], p) for i, p in enumerate(self.periods)]
        if len(x) == 1:
            return np.asarray(self._f(x[0], 0 if order is None else order[0]))
        dx, dy = order or (0, 0)
        return np.asarray(self._f.ev(*x, dx=dx, dy=dy))

    def gradient(self, points: Array) -> Array:
        n = points.shape[1]
        return np.stack([self(points, tuple(int(i == j) for j in range(n))) for i in range(n)], axis=1)

    def hessian(self, points: Array) -> Array:
        n = points.shape[1]
        unit = np.eye(n, dtype=int)
        rows = [[self(points, tuple((unit[i] + unit[j]).tolist())) for j in range(n)] for i in range(n)]
        return np.moveaxis(np.array(rows), -1, 0)


def _filled(values: Array, surface: FreeEnergySurface) -> Array:
    """Return values with each unsampled cell as its nearest sampled one plus kT per cell of distance, which keeps a string away."""
    if np.isfinite(values).all():
        return values
    from scipy.ndimage import distance_transform_edt

    # Tiled once around each period, so that the nearest cell may lie across it.
    tiles = [(n, n) if p is not None else (0, 0) for n, p in zip(values.shape, surface.periods, strict=True)]
    padded = np.pad(values, tiles, mode="wrap")
    distance, nearest = distance_transform_edt(~np.isfinite(padded), return_indices=True)
    middle = tuple(slice(low, low + n) for (low, _), n in zip(tiles, values.shape, strict=True))
    return np.asarray((padded[tuple(nearest)] + surface.kT * distance)[middle])


def _unwrap(points: Array, periods: Sequence[float | None]) -> Array:
    columns = [x if p is None else np.unwrap(x, period=p) for x, p in zip(points.T, periods, strict=True)]
    return np.stack(columns, axis=1)


def _arc(string: Array) -> Array:
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(string, axis=0), axis=1))])


def _respaced(string: Array, n: int) -> Array:
    """Return n points at equal arc length on the cubic spline through the string."""
    from scipy.interpolate import make_interp_spline

    arc = _arc(string)
    keep = np.concatenate([[True], np.diff(arc) > 1e-12 * max(arc[-1], 1e-300)])
    if keep.sum() < 4:
        return np.stack([np.interp(np.linspace(0, arc[-1], n), arc, x) for x in string.T], axis=1)
    return np.asarray(make_interp_spline(arc[keep], string[keep], 3)(np.linspace(0, arc[-1], n)))


def _smoothed(string: Array, spline: _Spline, rounds: int) -> Array:
    """Return the grid's staircase without its corners, its ends relaxed to the minima of the spline."""
    string = string.copy()
    for i in (0, -1):
        string[i] = _minimum(string[i], spline)
    for _ in range(min(4, rounds)):
        string[1:-1] = 0.25 * string[:-2] + 0.5 * string[1:-1] + 0.25 * string[2:]
    return string


def _minimum(start: Array, spline: _Spline) -> Array:
    """Return the minimum that ``start`` drains to, sought in boxes of a cell to each side so that no line search leaves the basin."""
    from scipy.optimize import minimize

    x = start
    for _ in range(200):
        low, high = np.maximum(x - spline.cells, spline.low), np.minimum(x + spline.cells, spline.high)
        found = minimize(
            lambda y: float(spline(y[None])[0]), x, jac=lambda y: spline.gradient(y[None])[0],
            method="L-BFGS-B", bounds=list(zip(low, high, strict=True)), options={"ftol": 1e-15, "gtol": 1e-9},
        )  # fmt: skip
        x = np.asarray(found.x)
        inside = (x > low) | (low == spline.low)
        if (inside & ((x < high) | (high == spline.high))).all():
            break
    return x


def _relaxed(string: Array, spline: _Spline, max_steps: int) -> Array:
    """Return the string after steepest descent and respacing until it moves no more; the ends are minima already."""
    n = len(string)
    stiffness = 1.0

    def flow(x: Array) -> Array:
        x = np.clip(x, spline.low, spline.high)
        step = -spline.gradient(x) / stiffness
        return np.asarray(step * np.minimum(1.0, 0.5 * spline.cell / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-300)))

    for k in range(max_steps):
        # Half of what is stable at the stiffest image, looked up now and then; no image moves further than half a cell at once.
        if k % 50 == 0:
            stiffness = max(float(np.abs(np.linalg.eigvalsh(spline.hessian(string))).max()), 1e-300)
        # A Euler step would cut the bends of the string by an error of first order in the step; Runge-Kutta's is of fourth order.
        k1 = flow(string)
        k2 = flow(string + 0.5 * k1)
        k3 = flow(string + 0.5 * k2)
        step = (k1 + 2 * k2 + 2 * k3 + flow(string + k3)) / 6
        step[[0, -1]] = 0.0
        moved = _respaced(np.clip(string + step, spline.low, spline.high), n)
        moved = np.clip(moved, spline.low, spline.high)
        change = float(np.abs(moved - string).max())
        string = moved
        if change < 1e-7 * spline.cell:
            break
    return string


def _across(gradient: Array, string: Array) -> Array:
    """Return the part of the gradient at right angles to the cubic spline through the string."""
    from scipy.interpolate import make_interp_spline

    arc = _arc(string)
    tangent = make_interp_spline(arc, string, 3)(arc, 1)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return np.asarray(gradient - (gradient * tangent).sum(axis=1, keepdims=True) * tangent)


def _sampled(surface: FreeEnergySurface, points: Array) -> Mask:
    """Return whether all cells around each point are sampled."""
    corners: list[tuple[Array, Array]] = []
    for x, grid, period in zip(points.T, surface.grid, surface.periods, strict=True):
        i = (wrap(x, period) - grid[0]) / (grid[1] - grid[0])
        low, high = np.floor(i + 1e-6).astype(np.int64), np.ceil(i - 1e-6).astype(np.int64)
        ends = (low % len(grid), high % len(grid)) if period is not None else (np.maximum(low, 0), np.minimum(high, len(grid) - 1))
        corners.append(ends)
    return np.asarray(np.all([np.isfinite(surface.free_energy[corner]) for corner in itertools.product(*corners)], axis=0))


def _passes(string: Array, spline: _Spline) -> Array:
    """Return the maxima of the spline along the string, each taken by Newton steps to where the gradient vanishes."""
    fine = _respaced(string, 20 * len(string))
    f = spline(fine)
    peaks = np.flatnonzero((f[1:-1] >= f[:-2]) & (f[1:-1] > f[2:])) + 1
    out = []
    for start in fine[peaks]:
        x = start[None].copy()
        for _ in range(30):
            hessian = spline.hessian(x)[0]
            x = x - np.linalg.lstsq(hessian, spline.gradient(x)[0], rcond=None)[0]
        # Newton is trusted near the string only, and when it arrived at a saddle of first order.
        near = np.linalg.norm(x[0] - start) < 2 * spline.cell
        out.append(x[0] if near and (np.linalg.eigvalsh(spline.hessian(x)[0]) < 0).sum() == 1 else start)
    return np.array(out).reshape(-1, string.shape[1])


def _result(surface: FreeEnergySurface, spline: _Spline, string: Array, lengths: Array) -> MinimumFreeEnergyPath:
    saddles = _passes(string, spline)
    if not len(saddles):  # without a pass on the way the higher end is the top
        saddles = string[[0 if spline(string[:1])[0] > spline(string[-1:])[0] else -1]]
    top = saddles[int(np.argmax(spline(saddles)))]
    points = np.concatenate([string, top[None]])
    along, draws = spline(points), []
    for replica in surface.replicas:
        p = np.where(np.isfinite(replica), np.exp(-(replica - np.nanmin(replica)) / surface.kT), 0.0)
        values = _Spline(surface, replica, lengths, spline.smoothing)(points) - np.nanmin(replica) + surface.kT * np.log(p.sum())
        draws.append(values)
    spread = np.array(draws).reshape(-1, len(points))
    error = spread.std(axis=0, ddof=1) if len(spread) > 1 else np.full(len(points), np.nan)
    aside = _across(spline.gradient(string), string)
    images, saddles = (
        np.stack([wrap(x, p) for x, p in zip((points * lengths).T, surface.periods, strict=True)], axis=1) for points in (string, saddles)
    )
    return MinimumFreeEnergyPath(
        images, _arc(string), along[:-1], error[:-1], saddles, saddles[int(np.argmax(spline(saddles / lengths)))],
        surface._estimate(float(along[-1] - along[0]), spread[:, -1] - spread[:, 0]),
        surface._estimate(float(along[-1] - along[-2]), spread[:, -1] - spread[:, -2]),
        float(np.linalg.norm(aside, axis=1).max()), lengths, surface.unit,
    )  # fmt: skip
