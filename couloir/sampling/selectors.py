"""Selectors: from which frame of a path the next shot is made.

Frame i of a path x is chosen with probability w(x_i) / sum_j w(x_j); the two end frames, in A and B, never.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from couloir.cv.base import CollectiveVariable
from couloir.errors import DataError
from couloir.trajectory import Array


class Selector(Protocol):
    """Weighs the frames of a path."""

    def weights(self, positions: Array) -> Array:
        """Return unnormalized weights (n_frames,) of positions (n_frames, n_atoms, 3), zero for the two end frames."""
        ...

    def longest(self, n_old: int, u: float) -> float:
        """Return the number of frames beyond which no new path can be accepted.

        Parameters
        ----------
        n_old : frames of the old path.
        u : the uniform number that is compared with the acceptance ratio.
        """
        ...


@dataclass(frozen=True)
class UniformSelector:
    """Every frame between the ends is as likely as any other."""

    def weights(self, positions: Array) -> Array:
        """Return one for every frame but the ends, (n_frames,)."""
        return _without_ends(np.ones(len(positions)))

    def longest(self, n_old: int, u: float) -> float:
        """Return the largest n with (n_old - 2) / (n - 2) >= u, to within a frame above it."""
        return math.inf if u <= 0 else 3 + (n_old - 2) / u


@dataclass(frozen=True, eq=False)
class _OnCV:
    """A weight that is largest where a CV has the value ``center``; ``width`` is in the CV's unit.

    Raises
    ------
    DataError : the width is not positive.
    """

    cv: CollectiveVariable
    center: float
    width: float

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise DataError(f"width = {self.width}, expected a positive number in the unit of {self.cv.name}")

    def _distance(self, positions: Array) -> Array:
        """Return (CV - center) / width, the short way round where the CV has a period."""
        difference = np.asarray(self.cv.evaluate(positions)) - self.center
        if self.cv.period is not None:
            difference -= self.cv.period * np.round(difference / self.cv.period)
        return np.asarray(difference / self.width)

    def longest(self, n_old: int, u: float) -> float:
        """Return infinity: how much weight a path collects is not known from its length."""
        return math.inf


class GaussianSelector(_OnCV):
    """Frames near ``center``: w = exp(-((CV - center) / width)^2 / 2).

    Parameters
    ----------
    cv : a collective variable, such as a committor model.
    center, width : in the CV's unit.
    """

    def weights(self, positions: Array) -> Array:
        """Return the weights (n_frames,) up to a factor, zero for the ends."""
        return _without_ends(np.exp(-0.5 * self._distance(positions) ** 2))


class LorentzianSelector(_OnCV):
    """Frames near ``center``, with tails that never vanish: w = 1 / (1 + ((CV - center) / width)^2).

    Parameters
    ----------
    cv : a collective variable, such as a committor model.
    center, width : in the CV's unit.
    """

    def weights(self, positions: Array) -> Array:
        """Return the weights (n_frames,), zero for the ends."""
        return _without_ends(1 / (1 + self._distance(positions) ** 2))


@dataclass(frozen=True)
class TabulatedSelector:
    """Frames by a table along a CV: each bin has a weight, and values beyond the table have that of the nearest bin.

    Parameters
    ----------
    cv : a collective variable.
    edges : (n_bins + 1,) of the bins, increasing, in the CV's unit.
    table : (n_bins,) weights up to a factor, all positive: a path without any weight could never be left or reached.

    Raises
    ------
    DataError : the edges do not increase, there is not one weight per bin, or a weight is not positive and finite.
    """

    cv: CollectiveVariable
    edges: tuple[float, ...]
    table: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("edges", "table"):  # as numbers: what a run follows from is compared as text
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if len(self.edges) < 2 or not (np.diff(self.edges) > 0).all():
            raise DataError(f"the edges of the bins along {self.cv.name} do not increase")
        if len(self.table) != len(self.edges) - 1:
            raise DataError(f"{len(self.table)} weights for {len(self.edges) - 1} bins along {self.cv.name}")
        if not all(0 < w < math.inf for w in self.table):
            raise DataError("a weight in the table is not positive and finite", "raise empty bins to a small weight")

    def weights(self, positions: Array) -> Array:
        """Return the weights (n_frames,), zero for the ends."""
        values = np.asarray(self.cv.evaluate(positions))
        return _without_ends(np.asarray(self.table)[np.searchsorted(self.edges[1:-1], values, side="right")])

    def longest(self, n_old: int, u: float) -> float:
        """Return infinity: how much weight a path collects is not known from its length."""
        return math.inf


def density_ratio_selector(cv: CollectiveVariable, generated: Array, sampled: Array, bins: int = 20) -> TabulatedSelector:
    """Return a selector of frames by q/p: how much denser points of a model are than those of dynamics, along a CV.

    q and p are shares of the points in each bin after one more point was put into every bin of either (Laplace's rule), so
    that the ratio is finite and positive everywhere.  The acceptance of a move corrects for the selection, whatever q/p is:
    it changes how often moves are accepted and not which paths are sampled (Bolhuis & Swenson, Adv. Theory Simul. 4, 2000237
    (2021), Eq. 13).

    Parameters
    ----------
    cv : a collective variable.
    generated, sampled : (n,) its values at points of the model, and at points of dynamics, in its unit.
    bins : their number, from the least value to the largest of either; over the whole period where the CV has one.

    Raises
    ------
    DataError : there are no values or bins, a value is not finite, or all are alike.
    """
    parts = [np.ravel(np.asarray(values, dtype=np.float64)) for values in (generated, sampled)]
    together = np.concatenate(parts)
    if bins < 1 or not all(map(len, parts)) or not np.isfinite(together).all():
        raise DataError(f"{len(parts[0])} generated and {len(parts[1])} sampled values in {bins} bins, expected finite values of both")
    low, high = float(together.min()), float(together.max())
    if cv.period is not None:
        low, high = -cv.period / 2, cv.period / 2
    if not low < high:
        raise DataError(f"all values of {cv.name} are {low:g}, so nothing tells frames apart", "use another collective variable")
    edges = np.linspace(low, high, bins + 1)
    q, p = ((np.histogram(part, edges)[0] + 1) / (len(part) + bins) for part in parts)
    return TabulatedSelector(cv, tuple(edges.tolist()), tuple((q / p).tolist()))


def log_probability(selector: Selector, positions: Array, frame: int) -> float:
    """Return the logarithm of the probability w_i / sum w with which ``frame`` is chosen; -inf where there is none."""
    if not 0 <= frame < len(positions):
        return -math.inf
    if type(selector) is UniformSelector:
        return -math.log(len(positions) - 2) if 0 < frame < len(positions) - 1 else -math.inf
    weights = selector.weights(positions)
    return math.log(weights[frame]) - math.log(weights.sum()) if weights[frame] > 0 else -math.inf


def choose(selector: Selector, positions: Array, rng: np.random.Generator) -> int | None:
    """Return a frame drawn with its probability, or None where every weight is zero."""
    if type(selector) is UniformSelector:
        return 1 + int(rng.random() * (len(positions) - 2)) if len(positions) > 2 else None
    total = np.cumsum(selector.weights(positions))
    if not total[-1] > 0:
        return None
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


def _without_ends(weights: Array) -> Array:
    weights[0] = weights[-1] = 0.0
    return weights
