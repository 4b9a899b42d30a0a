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
