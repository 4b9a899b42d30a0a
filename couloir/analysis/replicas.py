"""Configurations that windows exchange, but that never change by themselves.

Exchange hands configurations from window to window and so mixes the modes of every window; it makes none.  Behind a barrier that no
window lets them over, the number of configurations in each mode stays what the seeds made it, while walkers of a window, through whom
all of them pass, agree.  So configurations are followed: what they carry along, relative to the window they are in,

    z = (y - <y>_window) / sd_window(y),

must average out over each of them as fast as it decorrelates.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from couloir.analysis.agreement import DISAGREE, FALSE_ALARM, LEAST_EFFECTIVE
from couloir.analysis.overlap import biased_names
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.timeseries import observables, on_circle, scale_reduction
from couloir.trajectory import Array

FAR = 10.0
"""Ratio of variances that is believed of fewer decorrelated samples too: where half as many as needed are taken for decorrelated, it is
not above 3."""


def replicas_disagree(samples: BiasedSamples) -> dict[str, float]:
    """Return, by name, the scale reduction of observables that exchanged configurations keep, where it exceeds 1.1 beyond chance.

    Empty where nothing was exchanged: then walkers are the configurations
    (:func:`couloir.analysis.agreement.walkers_disagree`).
    """
    if (samples.replicas == samples.walker).all():
        return {}
    members = [rows for rows in _followed(samples) if len(rows) >= LEAST_EFFECTIVE]
    columns = [c for c in observables(samples) if c[0] not in biased_names(samples)]
    out: dict[str, float] = {}
    for name, values, period in columns if len(members) > 1 else ():
        z = _within_windows(samples, on_circle(values, period))
        for part in z.T:
            found = scale_reduction([part[rows] for rows in members], None)
            # Judged by the median: those that happened not to change look decorrelated, and must not be the only ones asked.
            if np.median(found.n_effective) < LEAST_EFFECTIVE and found.ratio < FAR:
                continue
            freedom = 0.5 * float(found.n_effective.sum())
            chance = 0.0 if np.isinf(found.ratio) else stats.f.sf(found.ratio, len(members) - 1, freedom)
            if found.value > DISAGREE and chance < FALSE_ALARM / (2 * len(columns)):
                out[name] = max(out.get(name, 0.0), found.value)
    return out


def _followed(samples: BiasedSamples) -> list[IntArray]:
    """Return the rows of every configuration in time order."""
    order = np.lexsort((samples.time, samples.replicas))
    return np.split(order, np.flatnonzero(np.diff(samples.replicas[order])) + 1)


def _within_windows(samples: BiasedSamples, points: Array) -> Array:
    """Return points (n_rows, n) less their window's mean, over its standard deviation."""
    n = np.maximum(samples.counts, 1)[:, None]
    mean = np.stack([np.bincount(samples.window, column, samples.n_windows) for column in points.T], axis=1) / n
    away = points - mean[samples.window]
    variance = np.stack([np.bincount(samples.window, column**2, samples.n_windows) for column in away.T], axis=1) / n
    return np.asarray(away / np.sqrt(np.maximum(variance, 1e-24))[samples.window])
