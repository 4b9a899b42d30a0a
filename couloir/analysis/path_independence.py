"""Whether chains of paths change what they sample: means of a CV over paths, compared between chains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from couloir.analysis.timeseries import on_circle
from couloir.cv.base import CollectiveVariable
from couloir.trajectory import Array, Trajectory


def path_means(cv: CollectiveVariable, paths: Sequence[Trajectory]) -> Array:
    """Return the mean of a CV over each path (n_paths,), on the circle where it is periodic."""
    return series_means([cv.evaluate(path.positions) for path in paths], cv.period)


def series_means(series: Sequence[Array], period: float | None) -> Array:
    """Return the mean of each series of values, (n_series,), on the circle where they are periodic."""
    if period is None:
        return np.array([values.mean() for values in series])
    turn = 2 * np.pi / period
    return np.array([np.angle(np.exp(1j * turn * values).mean()) / turn for values in series])


def n_effective_by_chains(series: Sequence[Array], period: float | None) -> float:
    """Return how many independent values would spread the means of chains as they are spread.

    A chain's own memory does not show that it never leaves a channel; where means lie apart as far as values do, chains count
    as one value each.

    Parameters
    ----------
    series : per chain, values (n_steps,); at least two chains.
    period : of the values.
    """
    parts = [on_circle(values, period) for values in series]
    center = np.concatenate(parts).mean(axis=0)
    n = float(sum(map(len, parts)))
    total = sum(float(((part - center) ** 2).sum()) for part in parts)
    if total <= 1e-24 * n * (1.0 + float((center**2).sum())):  # all the same, but for rounding
        return n
    between = sum(len(part) * float(((part.mean(axis=0) - center) ** 2).sum()) for part in parts) / (len(parts) - 1)
    return min(n, total / between) if between > 0 else n
