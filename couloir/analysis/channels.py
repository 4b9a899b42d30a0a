"""Channels: groups of reactive paths that follow each other along chosen CVs, with the share of transitions each carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from couloir.analysis.crossing import share
from couloir.analysis.interface_samples import MINUS
from couloir.analysis.positive import ShareEstimate
from couloir.analysis.samples import IntArray
from couloir.analysis.timeseries import on_circle
from couloir.cv.base import CollectiveVariable
from couloir.errors import DataError
from couloir.trajectory import Array

if TYPE_CHECKING:
    from couloir.analysis.path_ensemble import PathEnsemble
    from couloir.analysis.reweighted_paths import PathSide, ReweightedPaths

MOST_CHANNELS = 6
"""Channels that are tried where their number is not given."""
APART = 0.5
"""Mean silhouette below which groups are taken for one: weak structure (Kaufman & Rousseeuw, Finding Groups in Data (1990), ch. 2)."""
_MOST = 1500  # paths between which all distances are computed


@dataclass(frozen=True, eq=False)
class Channels:
    """Groups of paths from A to B.

    Attributes
    ----------
    names : CVs that paths were compared along.
    rows : (n_reactive,) rows of the paths from A that reach B, among all paths that were given.
    label : (n_reactive,) channel of each; channel 0 carries most transitions.
    medoids : (n_channels,) row of the most central path of each.
    shares : per channel, the share of transitions from A to B that follow it.
    silhouette : mean silhouette of the paths, 1 for channels far apart; NaN for one channel.
    """

    names: tuple[str, ...]
    rows: IntArray
    label: IntArray
    medoids: IntArray
    shares: tuple[ShareEstimate, ...]
    silhouette: float

    def means(self, values: npt.ArrayLike, weights: npt.ArrayLike, period: float | None) -> Array:
        """Return the mean over the paths of each channel (n_channels,), of values and weights of all paths; on the circle for a period."""
        points, weight = on_circle(np.asarray(values, dtype=np.float64), period), np.asarray(weights)
        members = [self.rows[self.label == k] for k in range(len(self.shares))]
        centers = np.array([np.average(points[rows], axis=0, weights=weight[rows]) for rows in members])
        return centers[:, 0] if period is None else np.asarray(np.arctan2(centers[:, 1], centers[:, 0]) * period / (2 * np.pi))


def weighted_channels(paths: ReweightedPaths, along: str | Sequence[str], n: int | None = None, *, points: int = 20) -> Channels:
    """Return the channels of the reactive paths from A; see :meth:`ReweightedPaths.channels`."""
    side = paths.sides[0]
    names = (along,) if isinstance(along, str) else tuple(along)
    if not names:
        raise DataError("there is no CV to tell channels apart", "give some along which paths differ")
    rows = np.flatnonzero(side.samples.ends_in_b & (side.samples.ensemble != MINUS))
    if not len(rows):
        raise DataError("no path reaches B: there are no channels", "sample more paths")
    series = [(side.series(name), side.samples.periods.get(name)) for name in names]
    found = _grouped(np.column_stack([_resampled([y[r] for r in rows], period, points) for y, period in series]), n)
    flow = side.weights.sums(rows, np.ones(len(rows)), found.label, len(found.centers))
    order = np.argsort(-flow[0], kind="stable")
    shares = flow / flow.sum(axis=1, keepdims=True)
    apart = _apart(side, rows, found.label, shares[0])
    estimates = [share(shares[:, k]) for k in order]
    known = [replace(one, standard_error=max(one.standard_error, apart[k])) for one, k in zip(estimates, order, strict=True)]
    return found.channels(names, rows, order, known)


def _apart(side: PathSide, rows: IntArray, label: IntArray, shares: Array) -> Array:
    """Return the error of each share by how far chains lie apart, (n_channels,); 0 for a single chain.

    Blocks are as long as lengths and crossings are remembered; a chain may stay in its channel for longer than that.
    """
    _, chain = np.unique(side.samples.chain[rows], return_inverse=True)
    n = len(np.unique(side.samples.chain))
    if n < 2:
        return np.zeros(len(shares))
    weight = side.weights.per_path[rows]
    flow = np.bincount(chain * len(shares) + label, weight, (chain.max() + 1) * len(shares)).reshape(-1, len(shares))
    off = (flow - flow.sum(axis=1, keepdims=True) * shares) / flow.sum()
    return np.asarray(np.sqrt((off**2).sum(axis=0) * n / (n - 1)))


def ensemble_channels(
    paths: PathEnsemble, cvs: Sequence[CollectiveVariable] | CollectiveVariable, n: int | None = None, *, points: int = 20
) -> Channels:
    """Return the channels of the decorrelated paths of an ensemble; see :meth:`PathEnsemble.channels`."""
    together = [cvs] if isinstance(cvs, CollectiveVariable) else list(cvs)
    if not together:
        raise DataError("there is no CV to tell channels apart", "give some along which paths differ")
    rows = np.flatnonzero(paths.decorrelated & (paths.multiplicity > 0))
    if not len(rows):
        raise DataError("no path is decorrelated from the paths the chains were started from", "sample more steps")
    features = [
        _resampled([np.asarray(cv.evaluate(paths.paths[r].positions), dtype=np.float64) for r in rows], cv.period, points)
        for cv in together
    ]
    found = _grouped(np.column_stack(features), n)
    label = np.full(len(paths), -1)
    label[rows] = found.label
    means = [paths.mean(label == k) for k in range(len(found.centers))]
    shares = [ShareEstimate(mean.value, mean.standard_error, "") for mean in means]
    order = np.argsort([-share.value for share in shares], kind="stable")
    return found.channels(tuple(cv.name for cv in together), rows, order, [shares[k] for k in order])


@dataclass(frozen=True, eq=False)
class _Groups:
    """Groups of rows in no order: the group of each row, the row nearest to each centre, and how far apart groups are."""

    label: IntArray
    centers: IntArray
    silhouette: float

    def channels(self, names: tuple[str, ...], rows: IntArray, order: IntArray, shares: Sequence[ShareEstimate]) -> Channels:
        """Return the groups in an order, with their shares in that order."""
        return Channels(names, rows, np.argsort(order)[self.label], rows[self.centers][order], tuple(shares), self.silhouette)


def _grouped(features: Array, n: int | None) -> _Groups:
    """Return ``n`` groups of features (n_rows, n_columns), or (None) the number that is farthest apart, one if none is far."""
    distinct = np.unique(features, axis=0)
    if n is not None and not 1 <= n <= len(distinct):
        raise DataError(f"{n} channels from {len(distinct)} different reactive paths", "ask for fewer channels")
    picked = distinct[np.unique(np.linspace(0, len(distinct) - 1, _MOST).astype(int))]
    between = cdist(picked, picked)
    tried = [_split(between, k) for k in ((n,) if n is not None else range(2, min(MOST_CHANNELS, len(distinct) - 1) + 1))]
    medoids, quality = max(tried, key=lambda one: one[1], default=(np.zeros(0, dtype=np.int64), 0.0))
    if n is None and quality < APART:
        medoids, quality = _split(between, 1)
    apart = cdist(features, picked[medoids])
    return _Groups(apart.argmin(axis=1), apart.argmin(axis=0), quality)


def _split(distance: Array, n: int) -> tuple[IntArray, float]:
    """Return ``n`` medoids and the mean silhouette of their groups."""
    medoids = _medoids(distance, n)
    return medoids, _silhouette(distance, distance[:, medoids].argmin(axis=1)) if n > 1 else float("nan")


def _resampled(series: Sequence[Array], period: float | None, points: int) -> Array:
    """Return a CV at even fractions of each path's duration, (n_paths, points * dimensions), of unit spread."""
    fraction = np.linspace(0.0, 1.0, points)
    out = []
    for values in series:
        y = on_circle(values, period)
        at = fraction * (len(y) - 1)
        out.append(np.concatenate([np.interp(at, np.arange(len(y)), column) for column in y.T]))
    found = np.array(out)
    return np.asarray(found / max(float(found.std()), 1e-12) / np.sqrt(points))


def _medoids(distance: Array, n: int) -> IntArray:
    """Return the indices of ``n`` medoids, (n,), from farthest-first starts."""
    chosen = [int(distance.sum(axis=1).argmin())]
    while len(chosen) < n:
        chosen.append(int(distance[chosen].min(axis=0).argmax()))
    medoids = np.array(chosen)
    for _ in range(100):
        label = distance[medoids].argmin(axis=0)
        members = [np.flatnonzero(label == k) for k in range(n)]
        moved = np.array([m[distance[np.ix_(m, m)].sum(axis=1).argmin()] for m in members])
        if (moved == medoids).all():
            break
        medoids = moved
    return medoids


def _silhouette(distance: Array, label: IntArray) -> float:
    """Return the mean silhouette (Rousseeuw, J. Comput. Appl. Math. 20, 53 (1987)); 0 for a path alone in its channel."""
    groups = [label == k for k in range(int(label.max()) + 1)]
    sums = np.stack([distance[:, g].sum(axis=1) for g in groups], axis=1)
    sizes = np.array([g.sum() for g in groups])
    own = np.arange(len(label))
    within = sums[own, label] / np.maximum(sizes[label] - 1, 1)
    means = sums / np.maximum(sizes, 1)
    means[own, label] = np.inf
    nearest = means.min(axis=1)
    score = (nearest - within) / np.maximum(np.maximum(nearest, within), 1e-300)
    return float(np.where(sizes[label] > 1, score, 0.0).mean())
