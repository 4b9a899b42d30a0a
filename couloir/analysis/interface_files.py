"""Files of interface samples: one archive, in which a path that was kept for several steps is written once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis.path_files import DAMAGED, described, frames_of, paths_from, read_meta, write_archive
from couloir.analysis.samples import IntArray
from couloir.errors import DataError, Finding

if TYPE_CHECKING:
    from couloir.analysis.interface_samples import InterfaceSamples

FORMAT = "couloir-interfaces-1"
ROWS = ("ensemble", "chain", "step", "maximum", "minimum", "length", "ends_in_b")
"""The attributes with one number per path."""
_COUNTS = ("outcomes", "exchanges")


def save(samples: InterfaceSamples, file: str | Path) -> None:
    """Write samples to one npz file (no pickles); a file that is there stays whole until the new one is complete."""
    held, first = _distinct(samples)
    meta = {
        "format": FORMAT, "along": samples.along, "unit": samples.unit, "stride": float(samples.stride),
        "periods": {name: float(period) for name, period in samples.periods.items()}, "units": dict(samples.units),
        "findings": [asdict(finding) for finding in samples.findings], "force_evaluations": int(samples.force_evaluations),
        "series": list(samples.series), **{name: list(getattr(samples, name)) for name in _COUNTS},
        "topology": described(samples.paths[0].topology) if samples.paths else None,
    }  # fmt: skip
    arrays: dict[str, Any] = {name: getattr(samples, name) for name in ("interfaces", *ROWS)} | {"held": held}
    arrays |= {f"series_{i}": np.concatenate([values[row] for row in first]) for i, values in enumerate(samples.series.values())}
    for name in _COUNTS:
        arrays |= {f"{name}_{i}": np.asarray(counts) for i, counts in enumerate(getattr(samples, name).values())}
    if samples.paths:
        arrays |= frames_of([samples.paths[row] for row in first])
    write_archive(file, meta, arrays)


def load(file: str | Path) -> dict[str, Any]:
    """Return the fields of the samples that :func:`save` wrote; raises DataError when the file is something else."""
    try:
        with np.load(file, allow_pickle=False) as data:
            meta = read_meta(data, file, FORMAT)
            held = data["held"]
            lengths = data["length"][np.unique(held, return_index=True)[1]]
            cuts = np.cumsum(lengths)[:-1]
            series = {name: np.split(data[f"series_{i}"], cuts) for i, name in enumerate(meta["series"])}
            paths = paths_from(data, lengths, meta)
            return {
                **{name: data[name] for name in ("interfaces", *ROWS)},
                **{name: meta[name] for name in ("along", "unit", "stride", "periods", "units", "force_evaluations")},
                **{name: {key: data[f"{name}_{i}"] for i, key in enumerate(meta[name])} for name in _COUNTS},
                "findings": tuple(Finding(**finding) for finding in meta["findings"]),
                "series": {name: tuple(values[k] for k in held) for name, values in series.items()},
                "paths": tuple(paths[k] for k in held) if paths else (),
            }
    except (*DAMAGED, IndexError) as error:
        raise DataError(f"{file} does not hold saved interface samples: {error}") from error


def _distinct(samples: InterfaceSamples) -> tuple[IntArray, IntArray]:
    """Return which distinct path each row holds, and the first row of each: rows of one path share its objects."""
    kept = [*samples.series.values(), *([samples.paths] if samples.paths else [])]
    number: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    held = np.empty(len(samples), dtype=np.int64)
    for row in range(len(samples)):
        key = tuple(id(values[row]) for values in kept)
        if key not in number:
            number[key] = len(first)
            first.append(row)
        held[row] = number[key]
    return held, np.array(first)
