"""From biased samples to a free-energy surface along any one or two recorded CVs, with bootstrap error bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from couloir.analysis.bootstrap import replica_problem, replicas
from couloir.analysis.density import make_density
from couloir.analysis.diagnostics import findings_of, neighbours_of, surface_findings
from couloir.analysis.mbar import MbarResult, mbar
from couloir.analysis.overlap import biased_names
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import FreeEnergySurface, make_grid
from couloir.analysis.timeseries import equilibrated, inefficiencies
from couloir.analysis.wham import WhamResult, target_temperature, wham
from couloir.errors import DataError, nearest
from couloir.trajectory import Array
from couloir.units import GAS_CONSTANT


def free_energy_surface(
    samples: BiasedSamples,
    along: Any,
    *,
    estimator: Literal["wham", "mbar"] = "wham",
    bins: Any = None,
    limits: Any = None,
    n_bootstrap: int = 100,
    seed: int = 0,
    temperature: Any = None,
    weights: WhamResult | MbarResult | Array | None = None,
    basins: Mapping[str, Any] | None = None,
    equilibrate: bool = True,
    method: Literal["histogram", "kde", "spline"] = "histogram",
    bandwidth: Any = None,
    knots: int | None = None,
) -> FreeEnergySurface:
    """Return the free energy along recorded CVs, with standard errors.

    The standard error is that of a block bootstrap in which every replica solves WHAM again (see
    :mod:`couloir.analysis.bootstrap`).  MBAR's point estimate carries the same error bars: the two solve the same
    equations on the same data and differ by far less than the error.  Where temperatures differ, the replicas' bins
    include the potential energy.

    Parameters
    ----------
    samples : windows with whatever was recorded in them.
    along : one CV or a pair, as CVs or names; need not be biased.
    estimator : ``"wham"`` or ``"mbar"``.
    bins, limits : of the surface's grid, per CV (see :meth:`couloir.analysis.grid.Grid.over`).
    n_bootstrap : replicas; 0 for no error bars.
    seed : of the bootstrap.
    temperature : to reweight to (K or text); default that of the first window.
    weights : an estimate made before, or weights (n_rows,) of the rows that are taken as exactly known.
    basins : names for ranges or regions, for ``barrier`` and ``difference``.
    equilibrate : leave out each walker's transient first (:func:`couloir.analysis.equilibrated`).  With ``weights`` given all
        rows are used: they belong to these rows, and whoever made them chose the rows.
    method : how weighted rows become the probability of cells: counted in each, by a kernel density (one or two CVs), or by a
        maximum-likelihood spline (one CV); see :mod:`couloir.analysis.density`.
    bandwidth : of the kernel, in the CV's unit, one or one per CV; default by Botev's rule.
    knots : intervals of the spline; default by BIC.

    Raises
    ------
    DataError : a CV was not recorded, temperatures need energies that were not recorded, or weights or options do not fit.
    """
    if equilibrate and weights is None:
        samples = equilibrated(samples)
    grid = make_grid(samples, along, bins, limits)
    target, energies = target_temperature(samples, _given_temperature(weights, temperature))
    kT = GAS_CONSTANT * target
    row_weights, name, fixed = weigh_rows(samples, estimator, weights, target)
    g = inefficiencies(samples)
    density = make_density(samples, grid, row_weights, g[samples.window], method=method, bandwidth=bandwidth, knots=knots)
    inside = density.bin >= 0
    mass = np.bincount(density.bin[inside], row_weights[inside], density.n_bins).astype(float)
    with np.errstate(divide="ignore"):
        raw = -kT * np.log(density.probability(mass[None])[0])
    free = np.where(np.isfinite(raw), raw, np.nan).reshape(grid.shape)
    lowest = float(np.nanmin(free))
    neighbours = neighbours_of(samples, weights)
    draws = np.empty((0, density.n_bins))
    if n_bootstrap > 0:
        draws = replicas(
            samples, *replica_problem(samples, weights, target, energies), density.bin, density.n_bins,
            n=n_bootstrap, seed=seed, fixed=row_weights if fixed else None, neighbours=neighbours,
        )  # fmt: skip
    replica = _replica_surfaces(density.probability(draws), kT, lowest).reshape(-1, *grid.shape)
    n_effective = density.n_effective.reshape(grid.shape)
    columns = [samples.column(n) for n in grid.names]
    return FreeEnergySurface(
        names=grid.names, units=tuple(samples.units[c] for c in columns), periods=grid.periods, grid=grid.centers,
        free_energy=free - lowest, standard_error=_spread(replica, np.isfinite(free)), kT=kT,
        estimator=", ".join(filter(None, (name, density.label))), replicas=replica, n_effective=n_effective,
        findings=findings_of(samples, weights, g, neighbours)
        + surface_findings(grid, free - lowest, n_effective, kT, biased_names(samples), [samples.units[c] for c in columns]),
        basins=dict(basins or {}),
    )  # fmt: skip


def _given_temperature(weights: WhamResult | MbarResult | Array | None, temperature: Any) -> Any:
    return weights.temperature if isinstance(weights, (WhamResult, MbarResult)) and temperature is None else temperature


def weigh_rows(
    samples: BiasedSamples, estimator: str, given: WhamResult | MbarResult | Array | None, temperature: float
) -> tuple[Array, str, bool]:
    """Return weights (n_rows,) in the unbiased state, what made them, and whether replicas must keep them (given as an array)."""
    if given is not None:
        weights = np.asarray(given if isinstance(given, np.ndarray) else given.weights, dtype=float)
        if weights.shape != (len(samples),) or not np.isfinite(weights).all() or weights.min() < 0:
            raise DataError(f"weights of shape {weights.shape} for {len(samples)} rows", "give one finite weight >= 0 per row")
        made_for = temperature if isinstance(given, np.ndarray) else given.temperature
        name = {WhamResult: "wham", MbarResult: "mbar"}.get(type(given), "given weights")
        if abs(made_for - temperature) > 1e-6 * temperature:
            raise DataError(f"the weights given are not those of {temperature:g} K", f"give {name}(samples, temperature={temperature:g})")
        return weights, name, isinstance(given, np.ndarray)
    if estimator == "wham":
        return wham(samples, temperature=temperature).weights, "wham", False
    if estimator == "mbar":
        return mbar(samples, temperature=temperature).weights, "mbar", False
    raise DataError(f"unknown estimator {estimator!r}{nearest(estimator, ['wham', 'mbar'])}")


def _replica_surfaces(p: Array, kT: float, lowest: float) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        f = -kT * np.log(p) - lowest
    return np.where(np.isfinite(f), f, np.nan)


def _spread(replica: Array, sampled: Any) -> Array:
    """Return the standard deviation over replicas; NaN where fewer than half of them have samples."""
    enough = np.isfinite(replica).sum(axis=0) >= max(2, 0.5 * len(replica))
    out = np.full(replica.shape[1:], np.nan)
    use = enough & sampled
    out[use] = np.nanstd(replica[:, use], axis=0, ddof=1)
    return out
