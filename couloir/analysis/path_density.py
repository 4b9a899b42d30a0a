"""Where along a CV reactive paths spend their time: the density of the frames between the two ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.cv.base import CollectiveVariable
from couloir.errors import DataError
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    from couloir.analysis.path_ensemble import PathEnsemble


@dataclass(frozen=True, eq=False)
class PathDensity:
    """Where along a CV reactive paths spend their time.

    Attributes
    ----------
    name, unit : of the CV.
    edges : (n_bins + 1,) of the bins.
    density, standard_error : (n_bins,) one over the unit of the CV; the density integrates to 1 over the bins.
    """

    name: str
    unit: str
    edges: Array
    density: Array
    standard_error: Array

    @property
    def centers(self) -> Array:
        """Centres of the bins, (n_bins,)."""
        return np.asarray((self.edges[1:] + self.edges[:-1]) / 2)


def between_ends(cv: CollectiveVariable, path: Trajectory) -> Array:
    """Return a CV at the frames of a path between its ends in A and B, (max(n_frames - 2, 0),)."""
    # of the whole path, because not every CV takes no frame at all
    return np.asarray(cv.evaluate(path.positions), dtype=np.float64)[1:-1]


def path_density(paths: PathEnsemble, cv: CollectiveVariable, bins: int | npt.ArrayLike) -> PathDensity:
    """Return the density of an ensemble's frames between the ends of paths; see :meth:`PathEnsemble.density`."""
    along = [between_ends(cv, path) for path in paths.paths]
    edges = _edges(cv, np.concatenate(along), bins)
    counts = np.array([np.histogram(x, edges)[0] for x in along], dtype=np.float64)
    per_path = paths.mean(counts.sum(axis=1)).value
    if per_path == 0:
        text = f"no frame of a decorrelated path is between {edges[0]:g} and {edges[-1]:g} of {cv.name}, their ends in A and B left out"
        raise DataError(text, "widen the bins, or sample with a shorter stride")
    share = paths.weights @ counts / per_path
    # a ratio of two means: its error is that of counts minus what the path's length explains (delta method)
    errors = [paths.mean((counts[:, i] - p * counts.sum(axis=1)) / per_path).standard_error for i, p in enumerate(share)]
    width = np.diff(edges)
    return PathDensity(cv.name, cv.unit, edges, share / width, np.array(errors) / width)


def _edges(cv: CollectiveVariable, values: Array, bins: Any) -> Array:
    if np.ndim(bins) == 0:
        if cv.period is not None:
            return np.linspace(-cv.period / 2, cv.period / 2, int(bins) + 1)
        if not len(values):
            raise DataError("no path has a frame between its ends in A and B", "sample with a shorter stride")
        low, high = float(values.min()), float(values.max())
        if low == high:  # one frame, say: bins of no width have no density
            low, high = low - 0.5, high + 0.5
        return np.linspace(low, high, int(bins) + 1)
    edges = np.array(bins, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise DataError(f"the edges of the bins along {cv.name} do not increase", "give a number of bins, or increasing edges")
    return edges
