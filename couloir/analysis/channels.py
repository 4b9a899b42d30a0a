"""Channels: groups of reactive paths that follow each other along chosen CVs, with the share of transitions each carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from couloir.analysis.crossing import estimate
from couloir.analysis.interface_samples import MINUS
from couloir.analysis.reweighted_paths import PathSide, ReweightedPaths
from couloir.analysis.samples import IntArray
from couloir.analysis.surface import Estimate
from couloir.analysis.timeseries import on_circle
from couloir.errors import DataError
from couloir.trajectory import Array

_MOST = 1500  # paths between which all distances are computed


@dataclass(frozen=True, eq=False)
class Channels:
    """Groups of paths from A to B.

    Attributes
    ----------
    names : CVs that paths were compared along.
    rows : (n_reactive,) rows of the paths from A that reach B.
    label : (n_reactive,) channel of each; channel 0 carries most transitions.
    medoids : (n_channels,) row of the most central path of each.
    shares : per channel, the share of transitions from A to B that follow it.
    silhouette : mean silhouette of the paths, 1 for channels far apart; NaN for one channel.
    """

    names: tuple[str, ...]
    rows: IntArray
    label: IntArray
    medoids: IntArray
    shares: tuple[Estimate, ...]
    silhouette: float


def channels(paths: ReweightedPaths, along: Sequence[str], n: int, *, points: int = 20) -> Channels:
    """Return ``n`` channels of the reactive paths from A, by k-medoids.

    Each CV along a path is read at ``points`` even fractions of the path's duration and divided by its spread over reactive paths
    (a periodic one becomes a point on a circle); the distance of two paths is Euclidean.  Medoids start far from each other
    and move to the path of least summed distance until none moves.  Repeats of a path count by their weight in shares only.

    Parameters
    ----------
    paths : reweighted paths with series of the CVs.
    along : names of CVs.
    n : number of channels; compare ``silhouette`` of several.
    points : per path.

    Raises
    ------
    DataError : a series is missing, or there are fewer than ``n`` different reactive paths.
    """
    side = paths.sides[0]
    samples = side.samples
    rows = np.flatnonzero(samples.ends_in_b & (samples.ensemble != MINUS))
    if not len(rows):
        raise DataError("no path reaches B: there are no channels", "sample more paths")
    features = np.column_stack([_resampled(side, name, rows, points) for name in along])
    distinct = np.unique(features, axis=0)
    if not 1 <= n <= len(distinct):
        raise DataError(f"{n} channels from {len(distinct)} different reactive paths", "ask for fewer channels")
    picked = distinct[np.unique(np.linspace(0, len(distinct) - 1, _MOST).astype(int))]
    centers = picked[_medoids(cdist(picked, picked), n)]
    apart = cdist(features, centers)
    label = apart.argmin(axis=1)
    flow = side.weights.sums(rows, np.ones(len(rows)), label, n)
    order = np.argsort(-flow[0], kind="stable")
    label = np.argsort(order)[label]
    shares = flow / flow.sum(axis=1, keepdims=True)
    medoids = rows[apart.argmin(axis=0)][order]
    quality = _silhouette(picked, cdist(picked, centers).argmin(axis=1)) if n > 1 else float("nan")
    return Channels(tuple(along), rows, label, medoids, tuple(estimate(shares[:, k], "") for k in order), quality)


def _resampled(side: PathSide, name: str, rows: IntArray, points: int) -> Array:
    """Return a CV at even fractions of each path's duration, (n_rows, points * dimensions), of unit spread."""
    series = side.samples.series.get(name)
    if series is None:
        raise DataError(f"paths have no series of {name}", "record the CV along paths")
    fraction = np.linspace(0.0, 1.0, points)
    out = []
    for r in rows:
        y = on_circle(series[r], side.samples.periods.get(name))
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


def _silhouette(features: Array, label: IntArray) -> float:
    """Return the mean silhouette (Rousseeuw, J. Comput. Appl. Math. 20, 53 (1987)); 0 for a path alone in its channel."""
    distance = cdist(features, features)
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
