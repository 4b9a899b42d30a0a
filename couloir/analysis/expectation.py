"""Unbiased expectation values of any observable, and conditional ones along a CV, with bootstrap error bars.

With the weights w_n of rows in the unbiased state, <y> = sum_n w_n y_n / sum_n w_n.  A periodic observable has a mean direction, the
angle of sum_n w_n exp(i y_n).  Replicas are those of surfaces (:mod:`couloir.analysis.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from couloir.analysis.bootstrap import replica_problem, replicas
from couloir.analysis.density import effective_in_cells, effective_number
from couloir.analysis.diagnostics import LEAST_SAMPLES, findings_of, neighbours_of
from couloir.analysis.free_energy import weigh_rows
from couloir.analysis.grid import Grid
from couloir.analysis.mbar import MbarResult
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.timeseries import equilibrated, inefficiencies
from couloir.analysis.wham import WhamResult, target_temperature
from couloir.cv.base import CollectiveVariable, wrap
from couloir.errors import DataError, Finding
from couloir.trajectory import Array

Observable = str | CollectiveVariable | Array | Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True, eq=False)
class Expectation:
    """An expectation value, or one per cell along a CV.

    Attributes
    ----------
    value : of the observable: a number, or (n_cells,) with NaN where no sample lies.
    standard_error : of the same shape; NaN where unknown.
    unit, period : of the observable.
    temperature : K.
    n_effective : decorrelated samples behind it, of the same shape.
    replicas : (n_bootstrap,) or (n_bootstrap, n_cells); of a periodic observable within half a period of ``value``.
    along, grid : the CV and the centres of its cells; empty for a single number.
    findings : what is unsure; also as ``warnings``.
    """

    value: Any
    standard_error: Any
    unit: str
    period: float | None
    temperature: float
    n_effective: Any
    replicas: Array = field(repr=False)
    along: str = ""
    grid: Array = field(default_factory=lambda: np.empty(0), repr=False)
    findings: tuple[Finding, ...] = ()

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The same as ``findings``."""
        return self.findings

    @property
    def interval(self) -> tuple[Any, Any]:
        """The 95 % interval."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error

    def __str__(self) -> str:
        if self.along:
            return f"mean along {self.along} in {len(self.grid)} cells at {self.temperature:g} K"
        return f"{self.value:.4g} ± {self.standard_error:.2g} {self.unit}".rstrip()


def expectation(
    samples: BiasedSamples,
    observable: Observable,
    *,
    along: Any = None,
    bins: int | None = None,
    limits: tuple[float, float] | None = None,
    temperature: Any = None,
    estimator: Literal["wham", "mbar"] | None = None,
    weights: WhamResult | MbarResult | Array | None = None,
    period: float | None = None,
    unit: str = "",
    n_bootstrap: int = 100,
    seed: int = 0,
    equilibrate: bool = True,
) -> Expectation:
    """Return the unbiased mean of an observable, with its standard error.

    Parameters
    ----------
    samples : windows with whatever was recorded in them.
    observable : a recorded CV or its name, ``"potential"``, values (n_rows,), or a function that takes recorded columns by name,
        ``lambda row: row["d"] ** 2``, and returns (n_rows,).
    along : a recorded CV (or name): the mean in each of its cells instead of a single number.
    bins, limits : of those cells (see :meth:`couloir.analysis.grid.Grid.over`).
    temperature : to reweight to (K or text); default that of the first window.  Another one needs potential energies.
    estimator : ``"wham"`` or ``"mbar"``; default WHAM, and MBAR where temperatures differ.
    weights : an estimate made before, or weights (n_rows,) of the rows that are taken as exactly known.
    period, unit : of an observable that is not a recorded CV.
    n_bootstrap : replicas; 0 for no error bars.
    seed : of the bootstrap.
    equilibrate : leave out each walker's transient first, unless ``weights`` are given.

    Raises
    ------
    DataError : a CV was not recorded, values do not fit or are not finite, another temperature needs potential energies, or no
        sample lies along the CV.
    """
    samples, name = _record(samples, observable, period, unit)
    if equilibrate and weights is None:
        samples = equilibrated(samples)
    if isinstance(weights, MbarResult) and temperature is None:
        temperature = weights.temperature
    target, energies = target_temperature(samples, temperature)
    row_weights, _, fixed = weigh_rows(samples, estimator or ("mbar" if energies else "wham"), weights, target)
    y, period, unit = _column(samples, name)
    cell, centres, along_name = _cells(samples, along, bins, limits)
    n_cells = max(len(centres), 1)
    # exp(i y) has a mean on a circle; elsewhere values near their mean keep their digits.
    centre = 0.0 if period is not None else float(row_weights @ y / row_weights.sum())
    terms = _terms(y - centre, period)
    inside = cell >= 0
    sums = np.stack([np.bincount(cell[inside], (row_weights * t)[inside], n_cells) for t in terms.T]).astype(float)
    if not sums[0].sum() > 0:
        raise DataError(f"no sample lies on the grid along {along_name}", "check limits")
    value = _mean(sums, period) + centre
    g = inefficiencies(samples)
    recorded = _without(samples, name) if name == _NAME else samples
    neighbours = neighbours_of(recorded, weights)
    draws = np.empty((0, terms.shape[1], n_cells))
    if n_bootstrap > 0:
        draws = replicas(
            samples, *replica_problem(samples, weights, target, energies), cell, n_cells, n=n_bootstrap, seed=seed,
            fixed=row_weights if fixed else None, neighbours=neighbours, values=terms,
        )  # fmt: skip
    replica = value + wrap(_mean(draws.swapaxes(0, 1), period) + centre - value, period)
    error = np.std(replica, axis=0, ddof=1) if len(replica) > 1 else np.full(n_cells, np.nan)
    row_g = g[samples.window]
    n_effective = effective_in_cells(cell, row_weights, row_g, n_cells)
    findings = findings_of(recorded, weights, g, neighbours) + _findings(row_weights, row_g, target, samples)
    if along_name:
        return Expectation(value, error, unit, period, target, n_effective, replica, along_name, centres, findings)
    return Expectation(
        float(value[0]), float(error[0]), unit, period, target, float(n_effective[0]), replica[:, 0], findings=findings
    )  # fmt: skip


_NAME = "the observable"


def _record(samples: BiasedSamples, observable: Observable, period: float | None, unit: str) -> tuple[BiasedSamples, str]:
    """Return samples in which the observable is a column, and its name.

    As a column it takes part in equilibration, inefficiencies, and the comparison of walkers.
    """
    if isinstance(observable, CollectiveVariable):
        observable = observable.name
    if isinstance(observable, str):
        if observable == "potential" and "potential" not in samples.names:
            observable, unit = samples.potential, unit or "kJ/mol"
        else:
            samples.column(observable)
            return samples, observable
    elif callable(observable):
        observable = observable({name: samples[name] for name in samples.names} | {"potential": samples.potential})
    values = np.asarray(observable, dtype=float)
    if values.shape != (len(samples),):
        raise DataError(f"the observable has shape {values.shape} for {len(samples)} rows", "give one number per row")
    if not np.isfinite(values).all():
        raise DataError(
            f"{int((~np.isfinite(values)).sum())} values of the observable are not finite",
            "record what it needs (potential energies are NaN where they were not recorded), or leave those rows out",
        )
    columns = np.column_stack([samples.values, values])
    names, units = (*samples.names, _NAME), (*samples.units, unit)
    return replace(samples, names=names, units=units, periods=(*samples.periods, period), values=columns), _NAME


def _without(samples: BiasedSamples, name: str) -> BiasedSamples:
    """Return samples without a column: neighbours' bins cannot tell a function of the biased CVs from a hidden mode."""
    keep = [i for i, n in enumerate(samples.names) if n != name]
    return replace(
        samples, names=tuple(samples.names[i] for i in keep), units=tuple(samples.units[i] for i in keep),
        periods=tuple(samples.periods[i] for i in keep), values=samples.values[:, keep],
    )  # fmt: skip


def _column(samples: BiasedSamples, name: str) -> tuple[Array, float | None, str]:
    i = samples.column(name)
    return samples.values[:, i], samples.periods[i], samples.units[i]


def _cells(samples: BiasedSamples, along: Any, bins: int | None, limits: tuple[float, float] | None) -> tuple[IntArray, Array, str]:
    """Return the cell of each row, the cells' centres, and the CV's name; one cell for all rows without a CV."""
    if along is None:
        return np.zeros(len(samples), dtype=np.int64), np.empty(0), ""
    name = along if isinstance(along, str) else along.name
    grid = Grid.over(samples, (name,), bins, limits)
    return grid.cells(samples), grid.centers[0], name


def _terms(y: Array, period: float | None) -> Array:
    """Return what is summed up per row: 1 and y, or 1, cos and sin on a circle, (n_rows, 2 or 3)."""
    if period is None:
        return np.column_stack([np.ones(len(y)), y])
    angle = 2 * np.pi / period * y
    return np.column_stack([np.ones(len(y)), np.cos(angle), np.sin(angle)])


def _mean(sums: Array, period: float | None) -> Array:
    """Return the mean from sums of :func:`_terms`, whose first axis they are; NaN where the weight is 0."""
    if period is None:
        return np.asarray(np.divide(sums[1], sums[0], out=np.full(sums.shape[1:], np.nan), where=sums[0] > 0))
    return np.asarray(np.where(sums[0] > 0, period / (2 * np.pi) * np.arctan2(sums[2], sums[1]), np.nan))


def _findings(weights: Array, g: Array, target: float, samples: BiasedSamples) -> tuple[Finding, ...]:
    n = effective_number(weights, g)
    if n >= LEAST_SAMPLES:
        return ()
    present = np.unique(samples.temperatures[samples.counts > 0])
    sampled = " and ".join(f"{t:g}" for t in present) if len(present) < 4 else f"{present[0]:g} to {present[-1]:g}"
    message = f"all rows are worth {n:.2g} decorrelated samples of the unbiased state at {target:g} K (sampled: {sampled} K)"
    return (Finding("few-effective-samples", message, "sample at a temperature closer to it, or run longer"),)
