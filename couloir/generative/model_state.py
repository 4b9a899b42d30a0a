"""A conditional model as one thermodynamic state: one normalized density of structures, to be weighted by MBAR.

A model that imposes its labels knows p(x | c) at c = CV(x).  With labels drawn from a density r it is the density

    q(x) = r(CV(x)) p(x | CV(x)),

normalized over all structures.  A model that learned its labels scatters CV(x) around c; then only a *fixed* label gives a
density that can be computed, q(x) = p(x | c): with a drawn one q would be an integral over labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from couloir.cv.base import wrap
from couloir.errors import DataError, ModelError
from couloir.generative.conditional_sgm import FittedConditionalSGM, ProposedStructures
from couloir.generative.labels import as_labels
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array


class LabelDensity(Protocol):
    """Where the labels of a state come from."""

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Return labels (n, n_labels)."""
        ...

    def log_density(self, values: Array) -> Array:
        """Return the log-density (n,) of labels (n, n_labels); -inf where none are drawn."""
        ...


@dataclass(frozen=True, eq=False)
class UniformLabels:
    """Labels spread evenly over a box.

    Attributes
    ----------
    low, high : (n_labels,) its edges; for a periodic label low < high <= low + period.
    periods : (n_labels,) None for a label without.
    """

    low: Array
    high: Array
    periods: tuple[float | None, ...]

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64)))
        sizes = {len(self.low), len(self.high), len(self.periods)}
        too_long = [p is not None and h - lo > p * (1 + 1e-9) for lo, h, p in zip(self.low, self.high, self.periods, strict=False)]
        if len(sizes) > 1 or not (self.low < self.high).all() or any(too_long):
            raise DataError(f"the label box {self.low} ... {self.high} is empty, longer than a period or ill-shaped", "give low < high")

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Return labels (n, n_labels)."""
        return self._wrapped(self.low + (self.high - self.low) * rng.random((n, len(self.low))))

    def log_density(self, values: Array) -> Array:
        """Return the log-density (n,) of labels (n, n_labels)."""
        beyond = values - self.low
        turned = [b if p is None else np.mod(b, p) for b, p in zip(beyond.T, self.periods, strict=True)]
        inside = np.all([(b >= 0) & (b <= h) for b, h in zip(turned, self.high - self.low, strict=True)], axis=0)
        return np.where(inside, -np.log(self.high - self.low).sum(), -np.inf)

    def _wrapped(self, values: Array) -> Array:
        return np.stack([v if p is None else wrap(v, p) for v, p in zip(values.T, self.periods, strict=True)], axis=1)


@dataclass(frozen=True, eq=False)
class MixtureLabels:
    """Labels around several centres: an even mixture of normal distributions, wrapped where a label is periodic.

    Attributes
    ----------
    centers : (n, n_labels).
    widths : (n_labels,) standard deviations.
    periods : (n_labels,) None for a label without.
    """

    centers: Array
    widths: Array
    periods: tuple[float | None, ...]

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Return labels (n, n_labels), every centre getting its share but for rounding."""
        which = rng.permutation(np.arange(n) % len(self.centers))
        values = self.centers[which] + self.widths * rng.standard_normal((n, len(self.widths)))
        return np.stack([v if p is None else wrap(v, p) for v, p in zip(values.T, self.periods, strict=True)], axis=1)

    def log_density(self, values: Array) -> Array:
        """Return the log-density (n,) of labels (n, n_labels)."""
        total = np.zeros((len(values), len(self.centers)))
        for i, (width, period) in enumerate(zip(self.widths, self.periods, strict=True)):
            away = values[:, i, None] - self.centers[:, i]
            images = [0.0] if period is None else period * np.arange(-2, 3)
            near = away if period is None else wrap(away, period)
            parts = [-0.5 * ((near + image) / width) ** 2 for image in images]
            total += np.logaddexp.reduce(parts, axis=0) - np.log(width * np.sqrt(2 * np.pi))
        return np.asarray(np.logaddexp.reduce(total, axis=1) - np.log(len(self.centers)))


@dataclass(frozen=True, eq=False)
class ModelState:
    """A fitted conditional model together with where its labels come from.

    Parameters
    ----------
    model : fitted, with all its labels imposed, or none.
    labels : the density of the labels; for a model that learned its labels one label value (n_labels,) instead.
    settings : how the density is integrated (:func:`couloir.generative.likelihood.log_prob`).

    Raises
    ------
    ModelError : labels that are drawn for a model that learned them, or fixed for one that imposes them.
    """

    model: FittedConditionalSGM
    labels: LabelDensity | Sequence[float]
    settings: dict[str, Any] = field(default_factory=lambda: {"n_steps": 50})

    def __post_init__(self) -> None:
        learned = {index is None for index in self.model.imposed}
        if len(learned) > 1:
            raise ModelError("the model imposes some of its labels and learned others", "fit it with impose=True or impose=False")
        if learned == {True} and hasattr(self.labels, "draw"):
            raise ModelError("this model learned its labels, so drawn ones leave no density that can be computed", "give one label value")
        if learned == {False} and not hasattr(self.labels, "draw"):
            raise ModelError("at one imposed label a model has no density over all structures", "draw labels, e.g. UniformLabels(...)")

    def sample(self, n: int, *, seed: int) -> ProposedStructures:
        """Return ``n`` structures drawn from the state, with their log-density in it."""
        if hasattr(self.labels, "draw"):
            density = cast("LabelDensity", self.labels)
            values = density.draw(n, stream(seed, "labels"))
            drawn = self.model.sample_with_log_prob(values, seed=integer_seed(seed, "structures"), **self.settings)
            return ProposedStructures(drawn.positions, values, drawn.log_prob + density.log_density(values), drawn.error)
        return self.model.sample_with_log_prob(self._fixed(n), seed=integer_seed(seed, "structures"), **self.settings)

    def log_prob(self, positions: Array) -> Array:
        """Return the log-density (n,) of structures (n, n_atoms, 3) in nm."""
        settings = {"check": None, **self.settings}
        if not hasattr(self.labels, "draw"):
            return self.model.log_prob(positions, self._fixed(len(positions)), **settings)
        values = np.stack([cv.evaluate(positions) for cv in self.model.labels], axis=1)
        drawn = cast("LabelDensity", self.labels).log_density(values)
        out, inside = np.full(len(positions), -np.inf), np.isfinite(drawn)
        if inside.any():
            out[inside] = drawn[inside] + self.model.log_prob(positions[inside], values[inside], **settings)
        return out

    def _fixed(self, n: int) -> Array:
        return as_labels(np.asarray(self.labels, dtype=np.float64)[None], len(self.model.labels), n)
