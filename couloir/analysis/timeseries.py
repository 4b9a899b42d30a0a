"""How many independent samples a time series holds, where it is in equilibrium, and whether walkers agree.

The statistical inefficiency is ``g = 1 + 2 sum_t (1 - t/n) C(t)`` (Chodera et al., J. Chem. Theory Comput. 3, 26
(2007), eq. 20); ``n/g`` samples are effectively independent.  The correlation of a periodic CV is that of its point on
the circle, (cos, sin), so nothing happens at the period's edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.errors import DataError
from couloir.trajectory import Array

_GRID = np.arange(0.0, 0.51, 0.02)
_LONG = 4096
SIGNIFICANT = 5.0
"""Standard errors by which what came before must differ from the last halves to be dropped as a transient."""
FEW = 10.0
"""Effective samples of the last half below which a walker that also differs from its first half still drifts."""


@dataclass(frozen=True)
class WalkerEquilibration:
    """Where one walker reaches equilibrium.

    Attributes
    ----------
    discarded, kept : rows of its transient, and the rest.
    inefficiency : statistical inefficiency of the rest.
    drifting : whether it had not arrived after half of its time.
    """

    window: int
    walker: int
    discarded: int
    inefficiency: float
    kept: int
    drifting: bool = False

    @property
    def n_effective(self) -> float:
        """Number of effectively independent rows kept."""
        return self.kept / self.inefficiency


_NEAR = 16
"""Lags whose correlation is summed directly before the series is transformed."""


def on_circle(values: Array, period: float | None) -> Array:
    """Return values (n,) as points in which distance is plain: (n, 1), or (n, 2) on the unit circle when periodic."""
    if period is None:
        return np.asarray(values, dtype=float)[:, None]
    angle = 2 * np.pi * np.asarray(values, dtype=float) / period
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def statistical_inefficiency(series: Array, period: float | None = None) -> float:
    """Return the statistical inefficiency g >= 1 of a series (n,), in rows.

    The sum of the correlation function ends where it first drops to zero.

    Raises
    ------
    DataError : the series is empty.
    """
    points = on_circle(series, period)
    n = len(points)
    if n == 0:
        raise DataError("a time series without values has no statistical inefficiency")
    points = points - points.mean(axis=0)
    variance = float((points**2).sum())
    if n < 4 or variance <= 1e-24 * n * (1.0 + float(np.abs(np.asarray(series)).max()) ** 2):
        return 1.0
    # Rows far apart in time are often uncorrelated after a few lags: no need to transform the whole series.
    g = 1.0
    for lag in range(1, min(_NEAR, n - 1)):
        near = float((points[:-lag] * points[lag:]).sum()) / variance
        if near <= 0:
            return g
        g += 2.0 * near
    size = 1 << (2 * n - 1).bit_length()
    power = (np.abs(np.fft.rfft(points, size, axis=0)) ** 2).sum(axis=1)
    # The transform gives sum_i x_i x_{i+t}; dividing by n (not n - t) is the (1 - t/n) of the formula.
    correlation = np.fft.irfft(power, size)[1:n] / variance
    negative = np.flatnonzero(correlation <= 0)
    end = int(negative[0]) if len(negative) else n - 1
    return max(1.0, 1.0 + 2.0 * float(correlation[:end].sum()))


def detect_equilibration(
    series: Array, period: float | None = None, alike: Sequence[Array] = (), slowest: float = 1.0
) -> tuple[int, float]:
    """Return (t0, g): drop the first ``t0`` values (n,), and the rest has statistical inefficiency ``g``.

    ``t0`` maximizes the number of effective samples (n - t0)/g(t0) over a grid of starts in the first half (Chodera, J.
    Chem. Theory Comput. 12, 1799 (2016), eq. 9), with two guards for series that hop between modes.  Both look at the
    last halves of this series and of those ``alike``: g is never taken smaller than the largest of theirs or ``slowest``
    (a stretch without a hop looks fast), and what is dropped must differ from all of them together by five standard
    errors, or a mode visited early by chance would be dropped and lose weight.  Long series are thinned for the search.

    Parameters
    ----------
    alike : further series of the same distribution: those of the other walkers of a window.
    slowest : statistical inefficiency of anything slower that moves this series a little, in rows.

    Raises
    ------
    DataError : the series is empty.
    """
    series = np.asarray(series, dtype=float)
    stride = max(1, len(series) // _LONG)
    thin = series[::stride]
    tails = [np.asarray(x, dtype=float)[::stride][len(x[::stride]) // 2 :] for x in (series, *alike)]
    floor = max(slowest / stride, *(statistical_inefficiency(tail, period) for tail in tails))
    starts = np.unique((_GRID * len(thin)).astype(int))
    n_effective = [(len(thin) - t) / max(floor, statistical_inefficiency(thin[t:], period)) for t in starts]
    t0 = int(starts[int(np.argmax(n_effective))])
    if t0 > 0 and _deviation(thin[:t0], np.concatenate(tails), floor, period) < SIGNIFICANT:
        t0 = 0
    t0 *= stride
    return t0, statistical_inefficiency(series[t0:], period)


def _deviation(part: Array, rest: Array, g: float, period: float | None) -> float:
    """Return how many standard errors the mean of ``part`` lies from that of ``rest``, given the spread and g of the rest."""
    a, b = on_circle(part, period), on_circle(rest, period)
    distance = float(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)))
    error = float(np.sqrt(b.var(axis=0).sum() * g * (1 / len(a) + 1 / len(b))))
    return distance / error if error > 0 else 0.0 if distance == 0 else np.inf


def _drifting(series: Array, period: float | None) -> bool:
    """Whether the last half holds few effective samples, and differs from the first by more than these explain."""
    half = len(series) // 2
    g = statistical_inefficiency(series[half:], period)
    return half / g < FEW and _deviation(series[:half], series[half:], g, period) > SIGNIFICANT


def walkers(samples: BiasedSamples) -> Iterator[tuple[int, int, IntArray]]:
    """Yield (window, walker, rows in time order) of every walker; one that changes window counts once in each."""
    order = np.arange(len(samples)) if _in_order(samples) else np.lexsort((samples.time, samples.walker, samples.window))
    key = np.stack([samples.window[order], samples.walker[order]])
    edges = np.flatnonzero((np.diff(key, axis=1) != 0).any(axis=0)) + 1
    for rows in np.split(order, edges):
        yield int(samples.window[rows[0]]), int(samples.walker[rows[0]]), rows


def _in_order(samples: BiasedSamples) -> bool:
    """Whether rows are sorted by window, walker and time already, as most files are."""
    window, walker, time = (np.diff(x) for x in (samples.window, samples.walker, samples.time))
    return bool(((window > 0) | ((window == 0) & ((walker > 0) | ((walker == 0) & (time >= 0))))).all())


def observables(samples: BiasedSamples) -> list[tuple[str, Array, float | None]]:
    """Return (name, values, period) of everything recorded: the CVs, and the potential energy where all rows have it."""
    found: list[tuple[str, Array, float | None]] = [(n, samples[n], p) for n, p in zip(samples.names, samples.periods, strict=True)]
    return [*found, ("potential", samples.potential, None)] if np.isfinite(samples.potential).all() else found


def inefficiencies(samples: BiasedSamples) -> Array:
    """Return the statistical inefficiency of each window (n_windows,): the worst of its walkers and observables; NaN when empty."""
    g = np.full(samples.n_windows, np.nan)
    columns = observables(samples)
    for window, _, rows in walkers(samples):
        worst = max(statistical_inefficiency(x[rows], p) for _, x, p in columns)
        g[window] = np.nanmax([g[window], worst])
    return g


def equilibration(samples: BiasedSamples) -> list[WalkerEquilibration]:
    """Return where each walker reaches equilibrium, judged by the slowest of all recorded CVs and the potential energy."""
    table = []
    columns = observables(samples)
    groups: dict[int, list[tuple[int, IntArray]]] = {}
    for window, walker, rows in walkers(samples):
        groups.setdefault(window, []).append((walker, rows))
    for window, members in groups.items():
        # Where psi hops rarely, phi follows it a little, far below its own fast noise: the slowest observable judges for all.
        slowest = max(statistical_inefficiency(x[r[len(r) // 2 :]], p) for _, x, p in columns for _, r in members)
        for walker, rows in members:
            others = [r for k, r in members if k != walker]
            t0 = max(detect_equilibration(x[rows], p, [x[r] for r in others], slowest)[0] for _, x, p in columns)
            kept = rows[t0:]
            g = max(statistical_inefficiency(x[kept], p) for _, x, p in columns)
            drifting = len(rows) >= 20 and any(_drifting(x[rows], p) for _, x, p in columns)
            table.append(WalkerEquilibration(window, walker, t0, g, len(kept), drifting))
    return table


def equilibrated(samples: BiasedSamples, table: list[WalkerEquilibration] | None = None) -> BiasedSamples:
    """Return the samples without each walker's own transient.

    Parameters
    ----------
    samples : anything recorded.
    table : what :func:`equilibration` found, to save finding it again.
    """
    drop = {(w.window, w.walker): w.discarded for w in (equilibration(samples) if table is None else table)}
    keep = np.ones(len(samples), dtype=bool)
    for window, walker, rows in walkers(samples):
        keep[rows[: drop.get((window, walker), 0)]] = False
    return samples.select(keep)


def between_walkers(samples: BiasedSamples) -> Array:
    """Return the potential scale reduction of each CV in each window, (n_windows, n_cvs); NaN with fewer than two walkers.

    ``R² = 1 + B/W``: variance of the walkers' means against their mean variance within (Gelman & Rubin, Stat. Sci. 7,
    457 (1992)), after subtracting from B what means of n/g independent samples differ by anyway.  1 where walkers sample
    the same distribution; large where a hidden barrier keeps them apart.
    """
    out = np.full((samples.n_windows, len(samples.names)), np.nan)
    groups: dict[int, list[IntArray]] = {}
    for window, _, rows in walkers(samples):
        groups.setdefault(window, []).append(rows)
    for window, members in groups.items():
        if len(members) < 2:
            continue
        for c, period in enumerate(samples.periods):
            out[window, c] = scale_reduction([samples.values[rows, c] for rows in members], period).value
    return out


@dataclass(frozen=True, eq=False)
class ScaleReduction:
    """R of some walkers, ``ratio`` of the variance of their means to what chance gives, and their effective samples."""

    value: float
    ratio: float
    n_effective: Array


def scale_reduction(parts: list[Array], period: float | None) -> ScaleReduction:
    """Return how far the series of several walkers lie apart; see :func:`between_walkers`."""
    points = [on_circle(x, period) for x in parts]
    means = np.stack([p.mean(axis=0) for p in points])
    within = np.array([p.var(axis=0).sum() for p in points])
    n_effective = np.array([len(x) / statistical_inefficiency(x, period) for x in parts])
    # Means are weighted by their effective samples, so that a short walker cannot raise an alarm by its noise.
    share = n_effective / n_effective.sum()
    spread = float((share[:, None] * (means - share @ means) ** 2).sum()) * len(parts) / (len(parts) - 1)
    noise = float((within / np.maximum(n_effective, 1.0)) @ share)
    scale = float(share @ within)
    if scale <= 1e-24:
        far = 0.0 if spread <= 1e-24 else np.inf
        return ScaleReduction(1.0 + far, far, n_effective)
    return ScaleReduction(float(np.sqrt(1.0 + max(0.0, spread - noise) / scale)), spread / noise, n_effective)
