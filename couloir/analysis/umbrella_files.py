"""Umbrella windows from other programs: WHAM metafiles and PLUMED COLVAR files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from couloir.cv.base import wrap
from couloir.cv.bias import HarmonicBias
from couloir.errors import DataError, nearest
from couloir.trajectory import Array

_ENERGIES = {"kJ/mol": 1.0, "kcal/mol": 4.184}
_ANGLES = {"rad": 1.0, "deg": np.pi / 180}
_LAYOUT = "write each line as: path, one centre per CV, one force constant per CV"


def read_metafile(
    metafile: Path, temperature: float, names: tuple[str, ...], units: tuple[str, ...], periods: tuple[float | None, ...], *,
    energy_unit: str = "kJ/mol", angle_unit: str = "rad",
) -> dict[str, Any]:  # fmt: skip
    """Return the fields of a BiasedSamples from a metafile; see :meth:`couloir.analysis.BiasedSamples.from_plumed`."""
    if not len(names) == len(units) == len(periods):
        raise DataError(f"{len(names)} names, {len(units)} units and {len(periods)} periods of CVs", "give one of each per CV")
    energy, scales = _factors(names, units, periods, energy_unit, angle_unit)
    n, biases, times, values = len(names), [], [], []
    for number, line in enumerate(_read(metafile).splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            numbers = [float(w) for w in words[1 : 1 + 2 * n]]
        except ValueError:
            raise DataError(f"{metafile}, line {number}: {line.strip()!r} holds something that is not a number", _LAYOUT) from None
        if len(numbers) < 2 * n or not np.isfinite(numbers).all() or min(numbers[n:]) < 0:
            raise DataError(f"{metafile}, line {number}: expected {n} centres and {n} force constants >= 0 after the path", _LAYOUT)
        centers = tuple(float(wrap(np.array([c * s]), p)[0]) for c, s, p in zip(numbers[:n], scales, periods, strict=True))
        constants = tuple(k * energy / s**2 for k, s in zip(numbers[n:], scales, strict=True))
        biases.append(HarmonicBias(names, centers, constants, periods))
        time, x = read_series(metafile.parent / words[0], names, scales, periods)
        times.append(time)
        values.append(x)
    if not biases:
        raise DataError(f"{metafile} lists no windows", _LAYOUT)
    window = np.repeat(np.arange(len(values)), [len(v) for v in values])
    return {
        "names": names, "units": units, "periods": periods, "values": np.concatenate(values), "potential": np.full(len(window), np.nan),
        "window": window, "walker": window, "time": np.concatenate(times), "biases": tuple(biases), "temperatures": np.array([temperature]),
    }  # fmt: skip


def _factors(
    names: tuple[str, ...], units: tuple[str, ...], periods: tuple[float | None, ...], energy_unit: str, angle_unit: str
) -> tuple[float, tuple[float, ...]]:
    """Return what energies and each CV of the files are multiplied by."""
    for name, unit, choices in (("energy_unit", energy_unit, _ENERGIES), ("angle_unit", angle_unit, _ANGLES)):
        if unit not in choices:
            raise DataError(f"{name} = {unit!r} cannot be read{nearest(unit, choices)}")
    for name, unit, period in zip(names, units, periods, strict=True):
        if unit in ("deg", "degree", "degrees"):
            raise DataError(f"{name} cannot be in {unit!r}: angles are in radians once read", 'give units "rad" and angle_unit="deg"')
        if period is not None and not 0 < period < np.inf:
            raise DataError(f"{name} has the period {period}", "give a positive number, or None for a CV that is not periodic")
        if period is not None and unit == "rad" and period > 2 * np.pi * (1 + 1e-6):
            raise DataError(
                f"{name} has the period {period:g} in radians, more than a full turn",
                'give periods in radians (2 pi) whatever the files are in, and angle_unit="deg" for files in degrees',
            )
    return _ENERGIES[energy_unit], tuple(_ANGLES[angle_unit] if unit == "rad" else 1.0 for unit in units)


def read_series(file: Path, names: tuple[str, ...], scales: tuple[float, ...], periods: tuple[float | None, ...]) -> tuple[Array, Array]:
    """Return times (n,) and CV values (n, n_names) from a text file; columns by ``#! FIELDS`` names, else in order after the time.

    Values are multiplied by ``scales`` and wrapped into ``periods``.

    Raises
    ------
    DataError : the file is missing, is not a table of numbers, lacks a column, or says that a CV has another period.
    """
    lines = _read(file).splitlines()
    columns = list(range(len(names) + 1))
    fields = next((line.split()[2:] for line in lines if line.startswith("#! FIELDS")), None)
    if fields is not None:
        for name in ("time", *names):
            if name not in fields:
                raise DataError(f"{file} has no column {name!r}{nearest(name, fields)}")
        columns = [fields.index(name) for name in ("time", *names)]
    _require_periods(file, lines, names, scales, periods)
    rows = [line.split() for line in lines if line.strip() and not line.lstrip().startswith(("#", "@"))]
    try:
        table = np.array([[float(row[c]) for c in columns] for row in rows])
    except (ValueError, IndexError):
        raise DataError(f"{file} is not a table with {len(columns)} columns of numbers", "is its last line cut off?") from None
    if len(table) == 0:
        return np.empty(0), np.empty((0, len(names)))
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise DataError(f"{file}: row {row} of the table holds a number that is not finite", "remove it, or find out why it is there")
    return table[:, 0], np.stack([wrap(table[:, i + 1] * s, p) for i, (s, p) in enumerate(zip(scales, periods, strict=True))], axis=1)


def _require_periods(
    file: Path, lines: list[str], names: tuple[str, ...], scales: tuple[float, ...], periods: tuple[float | None, ...]
) -> None:
    """Raise a DataError where ``#! SET min_name`` and ``max_name`` lines (PLUMED writes them for periodic CVs) contradict a period."""
    words = [line.split() for line in lines if line.startswith("#! SET")]
    given = {w[2]: w[3] for w in words if len(w) == 4}
    for name, scale, period in zip(names, scales, periods, strict=True):
        try:
            low, high = (_number(given[f"{end}_{name}"]) for end in ("min", "max"))
        except (KeyError, ValueError):
            continue
        found = (high - low) * scale
        if period is None or abs(found - period) > 1e-4 * found:
            raise DataError(
                f"{file} says that {name} has the period {high - low:g}, which is {found:g} once read, but {period} was given",
                f"give the period {found:.12g}, or check angle_unit",
            )


def _number(text: str) -> float:
    """Return a number that PLUMED wrote, which may be ``pi`` or ``-pi``."""
    return {"pi": np.pi, "+pi": np.pi, "-pi": -np.pi}[text] if text.endswith("pi") else float(text)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}", "check the path; those in a metafile are relative to it") from error
