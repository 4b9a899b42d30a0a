"""Whether two free energies along the same CVs, found from independent data, agree within their errors.

Errors of neighbouring cells go together, and most of all those of all cells of one well: a sum of squares of differences in standard
errors has no known distribution.  The largest difference in its standard errors is compared instead with the largest of many drawn
differences whose covariance is the sum of those of either surface's bootstrap replicas.  That needs no inverse of a covariance that few
replicas cannot resolve (the multiplier bootstrap of maxima: Chernozhukov, Chetverikov & Kato, Ann. Stat. 41, 2786 (2013)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import PchipInterpolator

from couloir.analysis.surface import FreeEnergySurface
from couloir.cv.region import Mask
from couloir.errors import DataError, Finding
from couloir.trajectory import Array

FALSE_ALARM = 1e-3
"""Chance to say that surfaces disagree where they do not."""
LEAST_REPLICAS = 20
_SHARE, _MOST = 0.9, 5  # components are taken that hold this share of the variance, but no more than this number
_CHUNK = 5000


@dataclass(frozen=True, eq=False)
class Agreement:
    """What came of a comparison of two surfaces, over the cells that both know.

    Attributes
    ----------
    shift : kJ/mol to add to the other surface, so that the weighted means over the compared cells are the same.
    rms : root mean square difference after this shift, kT.
    n_cells : how many cells were compared.
    largest : the largest difference of a cell in its standard errors.
    place : centre of the cell where it is, one number per CV.
    p : chance of differences as large as these where both surfaces are of the same free energy.
    findings : ``surfaces-disagree`` where that chance is below 0.001.
    """

    shift: float
    rms: float
    n_cells: int
    largest: float
    place: tuple[float, ...]
    p: float
    findings: tuple[Finding, ...] = ()


def agreement(
    one: FreeEnergySurface,
    other: FreeEnergySurface,
    *,
    below: float = 8.0,
    largest_error: float = 1.0,
    freedom: Sequence[float | None] = (None, None),
    n_draws: int = 50_000,
    seed: int = 0,
) -> Agreement:
    """Test whether two surfaces from independent data show the same free energy, but for a constant.

    Parameters
    ----------
    one, other : on the same grid (see :func:`on_grid`), at the same temperature, with bootstrap replicas.
    below : compare where both lie within this many kT of their minima.
    largest_error : compare where both have standard errors below this, kT.
    freedom : degrees of freedom of either surface's errors, such as independent blocks less one; None: those of its replicas.
    n_draws, seed : drawn differences; the smallest ``p`` is one over their number.

    Raises
    ------
    DataError : grids or temperatures differ, there are fewer than 20 replicas, or fewer than 2 cells to compare.
    """
    _require_same(one, other)
    use = _shared(one, other, below, largest_error)
    weight = 1.0 / (one.standard_error[use] ** 2 + other.standard_error[use] ** 2)
    weight /= weight.sum()
    shift = float(weight @ (one.free_energy[use] - other.free_energy[use]))
    difference = (one.free_energy[use] - other.free_energy[use] - shift) / one.kT
    rows = [_deviations(surface.replicas[:, use] / one.kT, weight) for surface in (one, other)]
    error = np.sqrt(sum((r**2).sum(axis=0) for r in rows))
    scaled = [r / error for r in rows]
    contrasts = _contrasts(np.concatenate(scaled))
    errors = difference / error
    seen = float(np.abs(errors @ contrasts).max())
    drawn = _largest_by_chance(np.concatenate(scaled) @ contrasts, _freedom(scaled, freedom), n_draws, seed)
    p = (1 + int((drawn >= seen).sum())) / (1 + n_draws)
    cell = int(np.abs(errors).argmax())
    place = tuple(float(x[use][cell]) for x in np.meshgrid(*one.grid, indexing="ij"))
    found = Agreement(shift, float(np.sqrt(np.mean(difference**2))), len(errors), float(np.abs(errors[cell])), place, p)
    return replace(found, findings=(_finding(one, other, found),)) if p < FALSE_ALARM else found


def on_grid(surface: FreeEnergySurface, centres: Array) -> FreeEnergySurface:
    """Return a surface along one CV, and its replicas, on other evenly spaced cells.

    Probability below each edge is interpolated by monotone cubics (Fritsch & Butland, SIAM J. Sci. Stat. Comput. 5, 300 (1984)).

    Parameters
    ----------
    centres : (n_cells,) of the new cells, ascending, at most one period.

    Returns
    -------
    NaN where a new cell overlaps one without samples, or reaches out of the grid; ``n_effective`` is not known there or elsewhere.

    Raises
    ------
    DataError : the surface is not along one CV, or a grid has fewer than 2 cells.
    """
    if len(surface.grid) != 1 or min(len(surface.grid[0]), len(centres)) < 2:
        raise DataError("only surfaces along one CV, of 2 cells at least, are put on another grid", "make both with the same bins")
    old, period = _edges(surface.grid[0]), surface.periods[0]
    edges = _edges(np.asarray(centres, dtype=np.float64))
    f = np.concatenate([surface.free_energy[None], surface.replicas]) / surface.kT
    if period is not None:
        edges = edges - period * np.floor((edges[0] - old[0]) / period)
        f = np.tile(f, 2)
        old = np.concatenate([old, old[1:] + period])
    width = old[1] - old[0]
    edges = np.where(np.abs(edges - old[0]) < 1e-6 * width, old[0], np.where(np.abs(edges - old[-1]) < 1e-6 * width, old[-1], edges))
    known = np.isfinite(f)
    p = np.where(known, np.exp(-(f - np.nanmin(f, axis=1, keepdims=True))), 0.0)
    p /= p.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # where probability is 0 or outside, which is what NaN is for
        below = PchipInterpolator(old, np.pad(np.cumsum(p, axis=1), ((0, 0), (1, 0))), axis=1, extrapolate=False)(edges)
        new = -surface.kT * np.log(np.diff(below, axis=1))
    position = (edges - old[0]) / width
    first, last = np.floor(position[:-1] + 1e-6).astype(int), np.ceil(position[1:] - 1e-6).astype(int)
    out = (first < 0) | (last > known.shape[1])
    gaps = np.pad(np.cumsum(~known, axis=1), ((0, 0), (1, 0)))
    first, last = (np.clip(i, 0, known.shape[1]) for i in (first, last))
    new = np.where(~out & (gaps[:, last] == gaps[:, first]) & np.isfinite(new), new, np.nan)
    if not np.isfinite(new[0]).any():
        raise DataError("the surface has no sampled cell on the other grid")
    enough = len(new) > 2
    error = new[1:].std(axis=0, ddof=1) if enough else np.full(len(centres), np.nan)
    return replace(
        surface, grid=(np.asarray(centres, dtype=np.float64),), free_energy=new[0] - np.nanmin(new[0]),
        standard_error=np.where(np.isfinite(new[0]), error, np.nan), replicas=new[1:] - np.nanmin(new[0]),
        n_effective=np.full(len(centres), np.nan), basins={},
    )  # fmt: skip


def _edges(centres: Array) -> Array:
    width = (centres[-1] - centres[0]) / (len(centres) - 1)
    return np.asarray(centres[0] + width * (np.arange(len(centres) + 1) - 0.5))


def _require_same(one: FreeEnergySurface, other: FreeEnergySurface) -> None:
    """Raise where two surfaces cannot be compared cell by cell, or have too few replicas."""
    if one.names != other.names or [len(x) for x in one.grid] != [len(x) for x in other.grid]:
        raise DataError("the two surfaces are on different grids", "make both with the same bins and ranges, or use on_grid")
    if not all(np.allclose(x, y, rtol=0, atol=1e-6 * (1 + np.ptp(x))) for x, y in zip(one.grid, other.grid, strict=True)):
        raise DataError("the two surfaces are on different grids", "make both with the same bins and ranges, or use on_grid")
    if abs(one.kT - other.kT) > 1e-3 * one.kT:
        raise DataError(f"the two surfaces are at different temperatures: kT = {one.kT:.4g} and {other.kT:.4g}", "reweight one of them")
    fewest = min(len(one.replicas), len(other.replicas))
    if fewest < LEAST_REPLICAS:
        text = f"one of the surfaces has {fewest} bootstrap replicas, and {LEAST_REPLICAS} are needed to compare"
        raise DataError(text, "raise the number of replicas (surface.bootstrap, n_bootstrap)")


def _shared(one: FreeEnergySurface, other: FreeEnergySurface, below: float, largest_error: float) -> Mask:
    """Return the cells that both surfaces know; a cell that some replica does not have is not known."""
    use = np.ones(one.free_energy.shape, dtype=bool)
    for surface in (one, other):
        error = surface.standard_error
        use &= np.isfinite(surface.free_energy) & np.isfinite(surface.replicas).all(axis=0)
        with np.errstate(invalid="ignore"):
            use &= (error > 0) & (error < largest_error * one.kT) & (surface.free_energy < below * one.kT)
    if use.sum() < 2:
        raise DataError("the two surfaces share fewer than 2 cells that both know", "sample more, or use wider bins")
    return use


def _deviations(replicas: Array, weight: Array) -> Array:
    """Return deviations from the mean over replicas (n_replicas, n_cells), whose squares sum to variances, each replica's mean removed."""
    f = replicas - (replicas @ weight)[:, None]
    return np.asarray((f - f.mean(axis=0)) / np.sqrt(len(f) - 1))


def _contrasts(scaled: Array) -> Array:
    """Return what of a difference in standard errors is looked at (n_cells, n): every cell, and the components in which most is unsure.

    Cells find a local difference; the components, of unit variance, find that of a well that all its cells share.
    """
    _, size, of = np.linalg.svd(scaled, full_matrices=False)
    share = np.cumsum(size**2) / (size**2).sum()
    n = min(int(np.searchsorted(share, _SHARE)) + 1, _MOST)
    return np.hstack([np.eye(scaled.shape[1]), (of[:n] / size[:n, None]).T])


def _freedom(scaled: list[Array], given: Sequence[float | None]) -> float:
    """Return degrees of freedom of the sum of both variances (Welch, Biometrika 34, 28 (1947); Satterthwaite)."""
    size = [float((r**2).sum()) for r in scaled]
    own = [min(len(r) - 1.0, np.inf if n is None else n) for r, n in zip(scaled, given, strict=True)]
    return sum(size) ** 2 / sum(v**2 / max(n, 1.0) for v, n in zip(size, own, strict=True))


def _largest_by_chance(rows: Array, freedom: float, n: int, seed: int) -> Array:
    """Draw the largest of the contrasts (n,): normal with the covariance of ``rows``, over an error of so many degrees of freedom."""
    random = np.random.default_rng(seed)
    out = [np.abs(random.standard_normal((min(_CHUNK, n - i), len(rows))) @ rows).max(axis=1) for i in range(0, n, _CHUNK)]
    return np.asarray(np.concatenate(out) / np.sqrt(random.chisquare(freedom, n) / freedom))


def _finding(one: FreeEnergySurface, other: FreeEnergySurface, found: Agreement) -> Finding:
    where = ", ".join(f"{name} = {x:.3g}" for name, x in zip(one.names, found.place, strict=True))
    chance = f"p = {found.p:.1g}"
    message = (
        f"free energies along {', '.join(one.names)} ({one.estimator}; {other.estimator}) differ by {found.rms:.2g} kT "
        f"(root mean square over {found.n_cells} cells), by up to {found.largest:.2g} standard errors at {where}: "
        f"more than by chance ({chance})"
    )
    fix = "sample both longer; if the difference stays, look for a slow CV that one of the two does not relax along"
    return Finding("surfaces-disagree", message, fix)
