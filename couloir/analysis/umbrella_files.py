"""Umbrella windows from other programs: WHAM metafiles and PLUMED COLVAR files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from couloir.cv.base import wrap
from couloir.cv.bias import HarmonicBias
from couloir.errors import DataError, nearest
from couloir.trajectory import Array

_LAYOUT = "write each line as: path, one centre per CV, one force constant per CV"


def read_metafile(
    metafile: Path, temperature: float, names: tuple[str, ...], units: tuple[str, ...], periods: tuple[float | None, ...]
) -> dict[str, Any]:
    """Return the fields of a BiasedSamples from a metafile; see :meth:`couloir.analysis.BiasedSamples.from_plumed`."""
    if not len(names) == len(units) == len(periods):
        raise DataError(f"{len(names)} names, {len(units)} units and {len(periods)} periods of CVs", "give one of each per CV")
    n, biases, times, values = len(names), [], [], []
    for number, line in enumerate(_read(metafile).splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            numbers = [float(w) for w in words[1 : 1 + 2 * n]]
        except ValueError:
            raise DataError(f"{metafile}, line {number}: {line.strip()!r} holds something that is not a number", _LAYOUT) from None
        if len(numbers) < 2 * n or min(numbers[n:]) < 0:
            raise DataError(f"{metafile}, line {number}: expected {n} centres and {n} force constants >= 0 after the path", _LAYOUT)
        centers = tuple(float(wrap(np.array([c]), p)[0]) for c, p in zip(numbers[:n], periods, strict=True))
        biases.append(HarmonicBias(names, centers, tuple(numbers[n:]), periods))
        time, x = read_series(metafile.parent / words[0], names)
        times.append(time)
        values.append(np.stack([wrap(x[:, i], p) for i, p in enumerate(periods)], axis=1))
    if not biases:
        raise DataError(f"{metafile} lists no windows", _LAYOUT)
    window = np.repeat(np.arange(len(values)), [len(v) for v in values])
    return {
        "names": names, "units": units, "periods": periods, "values": np.concatenate(values), "potential": np.full(len(window), np.nan),
        "window": window, "walker": window, "time": np.concatenate(times), "biases": tuple(biases), "temperatures": np.array([temperature]),
    }  # fmt: skip


def read_series(file: Path, names: tuple[str, ...]) -> tuple[Array, Array]:
    """Return times (n,) and CV values (n, n_names) from a text file; columns by ``#! FIELDS`` names, else in order after the time.

    Raises
    ------
    DataError : the file is missing, is not a table of numbers, or lacks a column.
    """
    lines = _read(file).splitlines()
    columns = list(range(len(names) + 1))
    fields = next((line.split()[2:] for line in lines if line.startswith("#! FIELDS")), None)
    if fields is not None:
        for name in ("time", *names):
            if name not in fields:
                raise DataError(f"{file} has no column {name!r}{nearest(name, fields)}")
        columns = [fields.index(name) for name in ("time", *names)]
    rows = [line.split() for line in lines if line.strip() and not line.lstrip().startswith(("#", "@"))]
    try:
        table = np.array([[float(row[c]) for c in columns] for row in rows])
    except (ValueError, IndexError):
        raise DataError(f"{file} is not a table with {len(columns)} columns of numbers", "is its last line cut off?") from None
    if len(table) == 0:
        return np.empty(0), np.empty((0, len(names)))
    return table[:, 0], table[:, 1:]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}", "check the path; those in a metafile are relative to it") from error
