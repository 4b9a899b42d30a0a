"""Calibration: learned committors beside the shots of configurations they were not learned from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError
from couloir.trajectory import Array

if TYPE_CHECKING:
    import pandas as pd

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Predicted beside observed committors, in bins of the prediction that hold shots.

    Attributes
    ----------
    predicted : (n_bins,) mean prediction of the shots in each bin.
    observed : (n_bins,) share of these shots that ended in B.
    standard_error : (n_bins,) of the observed share if the predictions are right, binomial.
    n_configurations, n_shots : (n_bins,).
    """

    predicted: Array
    observed: Array
    standard_error: Array
    n_configurations: IntArray
    n_shots: IntArray

    @property
    def chi_squared(self) -> float:
        """Mean squared deviation in standard errors: about 1 where predictions are right."""
        return float((((self.observed - self.predicted) / self.standard_error) ** 2).mean())

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per bin."""
        import pandas as pd

        return pd.DataFrame({f.name: getattr(self, f.name) for f in fields(self)})

    def __str__(self) -> str:
        rows = [
            f"  {p:9.3f}  {q:8.3f} +- {s:5.3f}  {n:6d}"
            for p, q, s, n in zip(self.predicted, self.observed, self.standard_error, self.n_shots, strict=True)
        ]
        return "\n".join(["Reliability of the committor", "  predicted  observed           shots", *rows])


def reliability(p: Any, to_a: Any, to_b: Any, *, n_bins: int = 10) -> Reliability:
    """Compare predicted committors (n,) with the shots (n,) of configurations that were not used to learn them.

    Raises
    ------
    DataError : the arrays do not fit, or there is no shot.
    """
    predicted = np.asarray(p, dtype=np.float64)
    a, b = shot_counts(to_a, to_b, predicted.shape[0] if predicted.ndim == 1 else -1)
    if not ((predicted >= 0) & (predicted <= 1)).all() or n_bins < 1:
        raise DataError(f"predictions must lie between 0 and 1, and n_bins = {n_bins} be positive")
    n = a + b
    place = np.minimum((predicted * n_bins).astype(np.int64), n_bins - 1)

    def total(values: Any) -> Array:
        return np.asarray(np.bincount(place, values, n_bins)[used], dtype=np.float64)

    used = np.bincount(place, n, n_bins) > 0
    shots = total(n)
    spread = np.maximum(predicted * (1 - predicted), 1e-12)
    return Reliability(
        total(n * predicted) / shots, total(b) / shots, np.sqrt(total(n * spread)) / shots,
        total(n > 0).astype(np.int64), shots.astype(np.int64),
    )  # fmt: skip


def shot_counts(to_a: Any, to_b: Any, n: int) -> tuple[IntArray, IntArray]:
    """Return numbers of shots (n,) that ended in A and in B; raises DataError for anything else."""
    both = [np.asarray(k, dtype=np.float64) for k in (to_a, to_b)]
    for name, k in zip(("to_a", "to_b"), both, strict=True):
        if k.shape != (n,) or not np.isfinite(k).all() or (k < 0).any() or (k != np.round(k)).any():
            raise DataError(f"{name} has shape {k.shape}, expected {n} whole numbers of shots, none negative")
    return both[0].astype(np.int64), both[1].astype(np.int64)
