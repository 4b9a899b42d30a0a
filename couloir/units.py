"""Units at the public edges: nm, ps, kJ/mol, K, amu, radians inside, anything compatible outside.

A parameter with a unit takes a plain number (already in the internal unit), an ``openmm.unit.Quantity`` or a string
such as ``"20 ns"``, ``"100 kJ/mol/rad^2"`` or ``"1/ps"``; :func:`convert` turns any of them into a float once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from couloir.errors import DataError, UnitError, nearest

GAS_CONSTANT = 8.31446261815324e-3
"""Molar gas constant in kJ/mol/K (CODATA 2018)."""

_UNITS: dict[str, tuple[str, float]] = {
    "fs": ("time", 1e-3), "ps": ("time", 1.0), "ns": ("time", 1e3), "us": ("time", 1e6), "ms": ("time", 1e9), "s": ("time", 1e12),
    "nm": ("length", 1.0), "A": ("length", 0.1), "angstrom": ("length", 0.1), "pm": ("length", 1e-3),
    "kJ": ("energy", 1.0), "kcal": ("energy", 4.184), "J": ("energy", 1e-3), "eV": ("energy", 96.48533212331),
    "mol": ("", 1.0),
    "K": ("temperature", 1.0),
    "rad": ("angle", 1.0), "deg": ("angle", math.pi / 180), "degree": ("angle", math.pi / 180), "degrees": ("angle", math.pi / 180),
    "amu": ("mass", 1.0), "Da": ("mass", 1.0), "dalton": ("mass", 1.0),
    "kT": ("thermal energy", 1.0),
}  # fmt: skip
_PER_TIME = ((1.0, "1/ps"), (1e3, "1/ns"), (1e6, "1/us"), (1e9, "1/ms"), (1e12, "1/s"))
_OPENMM = {"time": "picosecond", "length": "nanometer", "temperature": "kelvin", "angle": "radian", "mass": "dalton"}

Dimension = tuple[tuple[str, int], ...]


def kt(temperature: float) -> float:
    """Return the thermal energy in kJ/mol at ``temperature`` in K."""
    return GAS_CONSTANT * temperature


def convert(value: Any, unit: str, name: str = "value") -> float:
    """Convert a number, a string with a unit or an ``openmm.unit.Quantity`` to a float in ``unit``.

    Parameters
    ----------
    value : a number (taken to be in ``unit`` already), ``"20 ns"``, or a Quantity.
    unit : the unit wanted, e.g. ``"ps"`` or ``"kJ/mol/rad^2"``.
    name : what the value is called, for the error message.

    Raises
    ------
    UnitError : the text is not a number with a unit, or its dimension differs from that of ``unit``.
    """
    if hasattr(value, "value_in_unit"):
        return _from_quantity(value, unit, name)
    if isinstance(value, str):
        return _from_text(value, unit, name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UnitError(
            f"{name} = {value!r} is not a number", f'give a number in {unit or "plain units"} or text such as "1 {unit}"'
        ) from None
    if not math.isfinite(number):
        raise UnitError(f"{name} = {value!r} is not finite", f"give a finite number in {unit}")
    return number


def positive(value: Any, unit: str, name: str = "value") -> float:
    """Convert as :func:`convert` does, and refuse a number that is not above zero.

    Raises
    ------
    DataError : the number is zero or negative.
    UnitError : as :func:`convert`.
    """
    number = convert(value, unit, name)
    if number <= 0:
        raise DataError(f"{name} = {value} is not positive", f'give something like "{f"1 {unit}" if unit else 1}"')
    return number


def parse_unit(text: str) -> tuple[Dimension, float]:
    """Return dimension and factor to internal units of a unit expression such as ``"kJ/mol/rad^2"``.

    Raises
    ------
    UnitError : a unit in the expression is unknown, or the expression cannot be read.
    """
    exponents: Counter[str] = Counter()
    factor, sign = 1.0, 1
    expression = text.replace("**", "^").replace("·", "*").strip()
    if re.search(r"^[*/]|[*/]\s*[*/]|[*/]$", expression):
        raise UnitError(f"cannot read the unit {text!r}", 'write units like "ps", "kJ/mol/nm^2" or "1/ps"')
    for operator, word in re.findall(r"([*/]?)\s*([^*/\s]+)", expression):
        match = re.fullmatch(r"(1|[A-Za-zÅµ]+)(?:\^?([+-]?\d+))?", word)
        if match is None:
            raise UnitError(f"cannot read the unit {text!r}", 'write units like "ps", "kJ/mol/nm^2" or "1/ps"')
        symbol, power = match[1].replace("Å", "A").replace("µ", "u"), int(match[2] or 1)
        sign = -1 if operator == "/" else 1
        if symbol == "1":
            continue
        if symbol not in _UNITS:
            raise UnitError(f"unknown unit {symbol!r} in {text!r}{nearest(symbol, _UNITS)}")
        dimension, scale = _UNITS[symbol]
        factor *= scale ** (sign * power)
        if dimension:
            exponents[dimension] += sign * power
    return tuple(sorted((k, v) for k, v in exponents.items() if v)), factor


def _from_text(text: str, unit: str, name: str) -> float:
    match = re.fullmatch(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*", text)
    example = f'write it like "1 {unit}"'
    if match is None:
        raise UnitError(f"{name} = {text!r} is not a number with a unit", example)
    number, expression = float(match[1]), match[2]
    if not expression:
        return number
    if expression.startswith("/"):
        expression = "1" + expression
    have, factor = parse_unit(expression)
    want, target = parse_unit(unit)
    if have != want:
        raise UnitError(f"{name} = {text!r} has a unit that does not fit: expected something like {unit!r}", example)
    return number * factor / target


def _from_quantity(value: Any, unit: str, name: str) -> float:
    import openmm.unit as u

    want, factor = parse_unit(unit)
    target: Any = u.dimensionless
    for dimension, power in want:
        target = target * (u.kilojoule_per_mole if dimension == "energy" else getattr(u, _OPENMM[dimension])) ** power
    try:
        return float(value.value_in_unit(target)) / factor
    except (TypeError, AttributeError):
        raise UnitError(f"{name} = {value} has a unit that does not fit: expected something like {unit!r}") from None


def per_time(value: float) -> tuple[float, str]:
    """Return what a rate in 1/ps must be multiplied by to be no small number, and the unit it has then."""
    return next((one for one in _PER_TIME if abs(value) * one[0] >= 0.1), _PER_TIME[-1] if value else _PER_TIME[0])
