"""Numbers of ``[rates]`` as ``results/rates.json`` has them, and as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.units import per_time

if TYPE_CHECKING:
    from couloir.analysis.interface_samples import InterfaceSamples
    from couloir.analysis.reweighted_paths import ReweightedPaths
    from couloir.analysis.surface import Estimate

FEWEST_IN_CHANNELS = 10
"""Different paths below which a group may be a path or two that happen to be alike."""


def as_json(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate with its errors, for ``rates.json``."""
    low, high = estimate.interval
    out = {"value": estimate.value, "standard_error": estimate.standard_error, "low": low, "high": high}
    relative = getattr(estimate, "relative_error", None)
    out |= {} if relative is None else {"relative_error": relative}
    return {**{key: finite(value) for key, value in out.items()}, "unit": estimate.unit}


def finite(value: Any) -> float | None:
    """Return a number, or None where JSON has none."""
    return float(value) if math.isfinite(value) else None


def tried(samples: InterfaceSamples) -> dict[str, Any]:
    """Return what became of shots in each ensemble, [0-] first, and of exchanges of each with the next, for ``rates.json``."""
    from couloir.analysis.interface_samples import MINUS, ensemble_name

    counts = {"shots": samples.outcomes, "exchanges": samples.exchanges}
    names = [ensemble_name(number) for number in range(MINUS, len(samples.interfaces))]
    return {"ensembles": names, **{what: {key: n.tolist() for key, n in found.items()} for what, found in counts.items()}}


def channels_of(paths: ReweightedPaths, names: Sequence[str]) -> dict[str, Any] | None:
    """Return channels of the reactive paths from A along CVs, for ``rates.json``; None for a single CV, which tells no ways apart.

    Of fewer than :data:`FEWEST_IN_CHANNELS` different paths only their number is told.
    """
    from couloir.analysis.path_independence import series_means

    side = paths.sides[0]
    samples = side.samples
    if len(names) < 2:
        return None
    told: dict[str, Any] = {"along": list(names), "units": [samples.units.get(name, "") for name in names]}
    reactive = np.flatnonzero(samples.ends_in_b & (samples.ensemble >= 0))
    n = len({tuple(side.series(name)[row].tobytes() for name in names) for row in reactive})
    if n < FEWEST_IN_CHANNELS:
        return {**told, "paths": n, "channels": []}
    found, weights = paths.channels(names), side.weights.per_path
    means = np.column_stack(
        [found.means(series_means(side.series(name), samples.periods.get(name)), weights, samples.periods.get(name)) for name in names]
    )
    rows = [
        {
            "paths": int((found.label == k).sum()),
            "share": as_json(share),
            "means": means[k].tolist(),
            "most_central": f"set {samples.chain[medoid]}, cycle {samples.step[medoid]}",
        }
        for k, (share, medoid) in enumerate(zip(found.shares, found.medoids, strict=True))
    ]
    return {**told, "paths": n, "silhouette": finite(found.silhouette), "channels": rows}


def readable(number: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rate of ``rates.json``, which has 1/ps, in the unit of time in which it is no small number."""
    factor, unit = per_time(number["value"] or 0.0)
    keys = ("value", "standard_error", "low", "high")
    return {**number, **{key: None if number[key] is None else number[key] * factor for key in keys}, "unit": unit}


def summary(found: Mapping[str, Any]) -> str:
    """Return both rates in one line."""
    parts = []
    for key, ways in (("from_a", "A to B"), ("from_b", "B to A")):
        rate = readable(found["rates"][key])
        parts.append(f"{ways} {_text(rate)} (95 %: {_short(rate['low'])} to {_short(rate['high'])})")
    return "rates: " + "; ".join(parts)


def _text(number: Mapping[str, Any]) -> str:
    return f"{_short(number['value'])} ± {_short(number['standard_error'], 2)} {number['unit']}".rstrip()


def _short(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}g}"
