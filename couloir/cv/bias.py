"""Biases: energies that depend on CV *values* alone.

A bias is data.  It knows CVs by name and period, so WHAM, MBAR and exchange attempts evaluate it on recorded numbers,
and an engine turns it into one native OpenMM force whose constants are Context parameters: windows that differ only in
numbers share a Context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from couloir.cv.base import CollectiveVariable, wrap
from couloir.errors import DataError
from couloir.trajectory import Array
from couloir.units import convert


@dataclass(frozen=True)
class LeptonTerm:
    """A bias as OpenMM understands it.

    Attributes
    ----------
    expression : Lepton text in the CV names and the parameters.
    parameters : Context parameters with this bias' values; the names depend on the kind of bias only.
    tables : name -> (low, high, periodic, values) of one-dimensional tabulated functions.
    """

    expression: str
    parameters: dict[str, float] = field(default_factory=dict)
    tables: dict[str, tuple[float, float, bool, tuple[float, ...]]] = field(default_factory=dict)

    @property
    def structure(self) -> tuple[Any, ...]:
        """What must be equal for two biases to share one Context (everything but parameter values)."""
        return (self.expression, tuple(sorted(self.parameters)), tuple(sorted(self.tables.items())))


class Bias(ABC):
    """An energy in kJ/mol as a function of CV values.

    Attributes
    ----------
    names : names of the CVs, in the column order of the values it takes.
    """

    names: tuple[str, ...]

    @abstractmethod
    def energy(self, values: Array) -> Array:
        """Return energies (n,) in kJ/mol of CV values (n, n_cvs)."""

    @abstractmethod
    def gradient(self, values: Array) -> Array:
        """Return dE/dvalue, (n, n_cvs)."""

    @abstractmethod
    def lepton(self, prefix: str = "bias") -> LeptonTerm:
        """Return the bias as a Lepton expression; parameter names start with ``prefix``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain data that :func:`bias_from_dict` turns back into this bias."""

    def __add__(self, other: Bias) -> SumOfBiases:
        return SumOfBiases((self, other))


def _along(cvs: CollectiveVariable | Sequence[CollectiveVariable]) -> tuple[CollectiveVariable, ...]:
    return (cvs,) if isinstance(cvs, CollectiveVariable) else tuple(cvs)


def _numbers(value: Any, units: Sequence[str], name: str) -> tuple[float, ...]:
    given = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value] * len(units)
    if len(given) != len(units):
        raise DataError(f"{name} has {len(given)} entries for {len(units)} CVs")
    return tuple(convert(v, unit, name) for v, unit in zip(given, units, strict=True))


def _wrapped(center: float, period: float | None) -> float:
    return float(wrap(np.array([center]), period)[0])


def _displacement(name: str, center: str, period: float | None) -> str:
    """Lepton text of the distance between a CV and a centre; nearest image when periodic (|centre| <= period/2)."""
    if period is None:
        return f"abs({name}-{center})"
    return f"min(abs({name}-{center}), {period!r}-abs({name}-{center}))"


@dataclass(frozen=True)
class HarmonicBias(Bias):
    """Sum over CVs of 0.5 k (s - c)^2, nearest image for periodic CVs.

    Build it with :meth:`on`, which takes CVs and units.
    """

    names: tuple[str, ...]
    centers: tuple[float, ...]
    force_constants: tuple[float, ...]
    periods: tuple[float | None, ...]

    @classmethod
    def on(cls, cvs: CollectiveVariable | Sequence[CollectiveVariable], center: Any, force_constant: Any) -> HarmonicBias:
        """Restrain one CV (or several) to ``center`` with ``force_constant``; both take units.

        Raises
        ------
        DataError : a force constant is negative, or the numbers of CVs and values differ.
        UnitError : a value has a unit that does not fit its CV.
        """
        along = _along(cvs)
        centers = _numbers(center, [cv.unit for cv in along], "center")
        constants = _numbers(force_constant, [f"kJ/mol/{cv.unit}^2" if cv.unit else "kJ/mol" for cv in along], "force_constant")
        if min(constants) < 0:
            raise DataError(f"force_constant = {min(constants)} is negative", "a restraint needs a positive force constant")
        wrapped = tuple(_wrapped(c, cv.period) for c, cv in zip(centers, along, strict=True))
        return cls(tuple(cv.name for cv in along), wrapped, constants, tuple(cv.period for cv in along))

    def _delta(self, values: Array) -> Array:
        delta = np.asarray(values, dtype=np.float64) - np.array(self.centers)
        return np.stack([wrap(delta[:, i], period) for i, period in enumerate(self.periods)], axis=1)

    def energy(self, values: Array) -> Array:
        return np.asarray(0.5 * self._delta(values) ** 2 @ np.array(self.force_constants))

    def gradient(self, values: Array) -> Array:
        return np.asarray(self._delta(values) * np.array(self.force_constants))

    def lepton(self, prefix: str = "bias") -> LeptonTerm:
        terms, parameters = [], {}
        for i, (name, period) in enumerate(zip(self.names, self.periods, strict=True)):
            terms.append(f"0.5*{prefix}_k{i}*({_displacement(name, f'{prefix}_c{i}', period)})^2")
            parameters[f"{prefix}_k{i}"], parameters[f"{prefix}_c{i}"] = self.force_constants[i], self.centers[i]
        return LeptonTerm(" + ".join(terms), parameters)

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "harmonic", "names": list(self.names), "centers": list(self.centers),
            "force_constants": list(self.force_constants), "periods": list(self.periods),
        }  # fmt: skip


@dataclass(frozen=True)
class FlatBottom(Bias):
    """Zero within ``half_width`` of the centre, 0.5 k (|s - c| - half_width)^2 outside; one CV.  Build it with :meth:`on`."""

    names: tuple[str, ...]
    center: float
    half_width: float
    force_constant: float
    period: float | None

    @classmethod
    def on(cls, cv: CollectiveVariable, center: Any, half_width: Any, force_constant: Any) -> FlatBottom:
        """Keep ``cv`` within ``half_width`` of ``center``; all take units."""
        (c,) = _numbers(center, [cv.unit], "center")
        (w,) = _numbers(half_width, [cv.unit], "half_width")
        (k,) = _numbers(force_constant, [f"kJ/mol/{cv.unit}^2" if cv.unit else "kJ/mol"], "force_constant")
        if w < 0 or k < 0:
            raise DataError(f"half_width = {w} and force_constant = {k} must not be negative")
        return cls((cv.name,), _wrapped(c, cv.period), w, k, cv.period)

    def _outside(self, values: Array) -> Array:
        delta = wrap(np.asarray(values, dtype=np.float64)[:, 0] - self.center, self.period)
        return np.sign(delta) * np.maximum(0.0, np.abs(delta) - self.half_width)

    def energy(self, values: Array) -> Array:
        return np.asarray(0.5 * self.force_constant * self._outside(values) ** 2)

    def gradient(self, values: Array) -> Array:
        return np.asarray(self.force_constant * self._outside(values)[:, None])

    def lepton(self, prefix: str = "bias") -> LeptonTerm:
        distance = _displacement(self.names[0], f"{prefix}_c", self.period)
        return LeptonTerm(
            f"0.5*{prefix}_k*max(0, {distance}-{prefix}_w)^2",
            {f"{prefix}_k": self.force_constant, f"{prefix}_c": self.center, f"{prefix}_w": self.half_width},
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "flat_bottom", "names": list(self.names), "center": self.center, "half_width": self.half_width,
            "force_constant": self.force_constant, "period": self.period,
        }  # fmt: skip


@dataclass(frozen=True)
class Tabulated(Bias):
    """A natural (or periodic) cubic spline through equally spaced energies along one CV, as OpenMM interpolates it.

    ``energies`` are at ``low ... high`` inclusive; a periodic table has equal ends and spans one period.
    Outside a table that is not periodic the energy is zero (so is OpenMM's).
    """

    names: tuple[str, ...]
    low: float
    high: float
    energies: tuple[float, ...]
    periodic: bool = False

    def _spline(self) -> Any:
        from scipy.interpolate import CubicSpline

        grid = np.linspace(self.low, self.high, len(self.energies))
        return CubicSpline(grid, self.energies, bc_type="periodic" if self.periodic else "natural")

    def _evaluate(self, values: Array, derivative: int) -> Array:
        x = np.asarray(values, dtype=np.float64)[:, 0]
        if self.periodic:
            return np.asarray(self._spline()(self.low + (x - self.low) % (self.high - self.low), derivative))
        return np.where((x >= self.low) & (x <= self.high), self._spline()(x, derivative), 0.0)

    def energy(self, values: Array) -> Array:
        return self._evaluate(values, 0)

    def gradient(self, values: Array) -> Array:
        return np.asarray(self._evaluate(values, 1)[:, None])

    def lepton(self, prefix: str = "bias") -> LeptonTerm:
        table = (self.low, self.high, self.periodic, self.energies)
        return LeptonTerm(f"{prefix}_table({self.names[0]})", {}, {f"{prefix}_table": table})

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "tabulated", "names": list(self.names), "low": self.low, "high": self.high,
            "energies": list(self.energies), "periodic": self.periodic,
        }  # fmt: skip


@dataclass(frozen=True)
class SumOfBiases(Bias):
    """The sum of several biases, each on its own CVs."""

    terms: tuple[Bias, ...]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(name for term in self.terms for name in term.names))

    def _columns(self, term: Bias) -> list[int]:
        return [self.names.index(name) for name in term.names]

    def energy(self, values: Array) -> Array:
        values = np.asarray(values, dtype=np.float64)
        return np.asarray(sum(term.energy(values[:, self._columns(term)]) for term in self.terms))

    def gradient(self, values: Array) -> Array:
        values = np.asarray(values, dtype=np.float64)
        out = np.zeros_like(values)
        for term in self.terms:
            out[:, self._columns(term)] += term.gradient(values[:, self._columns(term)])
        return out

    def lepton(self, prefix: str = "bias") -> LeptonTerm:
        parts = [term.lepton(f"{prefix}{i}") for i, term in enumerate(self.terms)]
        return LeptonTerm(
            " + ".join(f"({part.expression})" for part in parts),
            {k: v for part in parts for k, v in part.parameters.items()},
            {k: v for part in parts for k, v in part.tables.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        return {"type": "sum", "terms": [term.to_dict() for term in self.terms]}


def bias_from_dict(data: Mapping[str, Any]) -> Bias:
    """Rebuild a bias from what its ``to_dict`` returned."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "type"}
    if data["type"] == "sum":
        return SumOfBiases(tuple(bias_from_dict(term) for term in data["terms"]))
    kinds: dict[str, type[Bias]] = {"harmonic": HarmonicBias, "flat_bottom": FlatBottom, "tabulated": Tabulated}
    if data["type"] not in kinds:
        raise DataError(f"unknown bias type {data['type']!r}")
    return kinds[data["type"]](**fields)
