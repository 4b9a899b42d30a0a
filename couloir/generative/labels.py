"""Labels of a conditional model: how CV values enter the network, and which of them the model has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from couloir.cv.base import CollectiveVariable
from couloir.errors import CouloirError, DataError, ModelError
from couloir.trajectory import Array


def as_labels(values: Any, n_labels: int, n: int | None = None) -> Array:
    """Return label values as (n, n_labels).

    Parameters
    ----------
    values : one label: a number or (n,); several: one row (n_labels,) or (n, n_labels).  A single row is repeated ``n`` times.

    Raises
    ------
    DataError : the shape does not fit, or a value is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    rows = array.reshape(-1, 1) if n_labels == 1 and array.ndim <= 1 else np.atleast_2d(array)
    if rows.ndim != 2 or rows.shape[1] != n_labels or len(rows) == 0:
        raise DataError(f"label values have shape {array.shape}, expected one row of {n_labels} for every sample")
    if not np.isfinite(rows).all():
        raise DataError(f"label values of row {int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])} are not finite")
    if n is not None and len(rows) == 1:
        rows = np.repeat(rows, n, axis=0)
    if n is not None and len(rows) != n:
        raise DataError(f"{len(rows)} label values for {n} samples", "give one label and n, or one label for every sample")
    return rows


@dataclass(frozen=True, eq=False)
class LabelRange:
    """The label values that a model was trained on.

    Attributes
    ----------
    names, periods : of the labels, in order.
    mean, scale : (n_labels,) standardization of the labels that have no period.
    low, high : (n_labels,) smallest and largest value seen; for a periodic label the ends of the arc that leaves out the
        largest gap, so ``low > high`` says that the arc runs through the period's edge.
    seen : (n_cells, n_labels) labels seen, thinned, in units of ``tolerance``.
    tolerance : (n_labels,) how far from a seen label a value still counts as covered: period/72, or 1/40 of the range.
    """

    names: tuple[str, ...]
    periods: tuple[float | None, ...]
    mean: Array
    scale: Array
    low: Array
    high: Array
    seen: Array
    tolerance: Array

    @classmethod
    def of(cls, labels: Sequence[CollectiveVariable], values: Array) -> Self:
        """Return the range of values (n, n_labels).

        Raises
        ------
        DataError : a label without period is the same in all rows, so nothing can be learned from it.
        """
        mean, scale = values.mean(axis=0), values.std(axis=0)
        periods = tuple(label.period for label in labels)
        ends = np.array([_ends(column, period) for column, period in zip(values.T, periods, strict=True)])
        for i, label in enumerate(labels):
            if np.ptp(values[:, i]) <= 1e-9 * max(1.0, abs(mean[i])):
                raise DataError(f"the label {label.name!r} is {mean[i]:.4g} in every frame", "give frames in which the label varies")
        widths = [np.ptp(column) / 40 if p is None else p / 72 for column, p in zip(values.T, periods, strict=True)]
        tolerance = np.array(widths)
        seen = np.unique(np.round(4 * values / tolerance), axis=0) / 4
        return cls(tuple(label.name for label in labels), periods, mean, scale, ends[:, 0], ends[:, 1], seen, tolerance)

    def covers(self, values: Any) -> bool | np.ndarray[Any, np.dtype[np.bool_]]:
        """Return whether label values lie among those seen: one bool for one label, (n,) for several."""
        array = np.asarray(values, dtype=np.float64)
        rows = as_labels(array, len(self.names)) / self.tolerance
        periods = np.array([np.inf if p is None else p for p in self.periods]) / self.tolerance
        answers = np.empty(len(rows), dtype=bool)
        for i, row in enumerate(rows):
            apart = np.abs(self.seen - row) % periods
            answers[i] = bool((np.minimum(apart, periods - apart).max(axis=1) <= 1.25).any())  # a quarter more, for the thinning
        single = array.ndim == 0 or (array.ndim == 1 and len(self.names) > 1)
        return bool(answers[0]) if single else answers

    def encode(self, values: Array) -> Array:
        """Return the network's input for label values (n, n_labels): standardized numbers, sines and cosines of angles."""
        columns = []
        for i, period in enumerate(self.periods):
            if period is None:
                columns.append((values[:, i] - self.mean[i]) / self.scale[i])
            else:
                angle = 2 * np.pi * values[:, i] / period
                columns += [f(k * angle) for k in (1, 2, 3) for f in (np.cos, np.sin)]
        return np.stack(columns, axis=1)

    @property
    def encoded_size(self) -> int:
        """Number of columns of :meth:`encode`."""
        return sum(1 if period is None else 6 for period in self.periods)

    def to_dict(self) -> dict[str, Any]:
        """Return the names and periods; the numbers are in :meth:`arrays`."""
        return {"names": list(self.names), "periods": list(self.periods)}

    def arrays(self) -> dict[str, Array]:
        """Return the numbers that :meth:`restore` needs."""
        return {name: getattr(self, name) for name in ("mean", "scale", "low", "high", "seen", "tolerance")}

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Return the range that :meth:`to_dict` and :meth:`arrays` came from."""
        return cls(tuple(data["names"]), tuple(data["periods"]), **arrays)

    def __str__(self) -> str:
        return "; ".join(f"{n}: {a:.4g} ... {b:.4g}" for n, a, b in zip(self.names, self.low, self.high, strict=True))


def _ends(values: Array, period: float | None) -> tuple[float, float]:
    """Return the smallest and largest value, or the ends of the arc opposite to the largest gap of a periodic one."""
    ordered = np.sort(values)
    if period is None:
        return float(ordered[0]), float(ordered[-1])
    gaps = np.diff(np.append(ordered, ordered[0] + period))
    widest = int(np.argmax(gaps))
    return float(ordered[(widest + 1) % len(ordered)]), float(ordered[widest])


def described(cv: CollectiveVariable) -> dict[str, Any] | None:
    """Return the CV as plain data, or None for one that cannot be written (a Python function)."""
    try:
        return cv.to_dict()
    except CouloirError:
        return None


def rebuilt_labels(
    stored: list[dict[str, Any] | None],
    seen: LabelRange,
    given: CollectiveVariable | Sequence[CollectiveVariable] | None,
    folder: str | Path,
) -> tuple[CollectiveVariable, ...]:
    """Return the labels of a saved model from their plain data, or those given again.

    Raises
    ------
    ModelError : the labels given do not fit the model, or cannot be rebuilt.
    """
    if given is not None:
        labels = (given,) if isinstance(given, CollectiveVariable) else tuple(given)
        if len(labels) != len(seen.periods) or any(cv.period != p for cv, p in zip(labels, seen.periods, strict=True)):
            raise ModelError(f"{folder} was trained on {', '.join(seen.names)}; the labels given differ in number or period")
        return labels
    if any(item is None for item in stored):
        raise ModelError(
            f"{folder} was trained on a label that is a Python function", "give it again: ConditionalSGM.load(folder, label=...)"
        )
    from couloir.cv.registry import from_dict

    try:
        return tuple(from_dict(item) for item in stored if item is not None)
    except (CouloirError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"a label of {folder} cannot be rebuilt: {error}", "give it: ConditionalSGM.load(folder, label=...)") from error
