"""Which windows share samples: the overlap of states, the sets it connects, and where the gaps are.

With ``p_k(b) = N_k exp(f_k - u_k(b)) / sum_j N_j exp(f_j - u_j(b))``, the chance that a sample in bin b came from window
k, the number of shared samples is ``C_ij = sum_b M_b p_i(b) p_j(b)``.  Its inverse is (nearly) the variance of the free
energy difference between two windows (Bennett, J. Comput. Phys. 22, 245 (1976), eq. 12), so two sets that share less
than one decorrelated sample (a row counts as 1/g) are not connected: the error of their offset exceeds 1 kT.
``O_ij = C_ij / N_i`` is the overlap matrix of Klimovich, Shirts & Mobley, J. Comput. Aided Mol. Des. 29, 397 (2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from couloir.analysis.samples import BiasedSamples
from couloir.analysis.timeseries import on_circle
from couloir.cv.base import wrap
from couloir.errors import Finding
from couloir.trajectory import Array

Sets = tuple[tuple[int, ...], ...]


def connected_sets(shared: Array, windows: list[int], threshold: float = 1.0) -> Sets:
    """Return the sets of ``windows`` that sharing at least ``threshold`` connects.

    Parameters
    ----------
    shared : (n_windows, n_windows) symmetric: samples shared by pairs, in any unit that adds up over pairs.
    windows : the windows to look at (those that hold samples).
    threshold : least amount two sets must share to be joined.
    """
    sets = [[w] for w in windows]
    links = shared[np.ix_(windows, windows)].astype(float)
    np.fill_diagonal(links, -np.inf)
    while len(sets) > 1:
        a, b = sorted(np.unravel_index(int(np.argmax(links)), links.shape))
        if links[a, b] < threshold:
            break
        sets[a] += sets[b]
        links[a] += links[b]
        links[:, a] = links[a]
        links[a, a] = -np.inf
        links = np.delete(np.delete(links, b, axis=0), b, axis=1)
        del sets[b]
    return tuple(sorted(tuple(sorted(s)) for s in sets))


def biased_names(samples: BiasedSamples) -> tuple[str, ...]:
    """Return the names of all CVs that some window biases, in column order."""
    used = {name for bias in samples.biases if bias is not None for name in bias.names}
    return tuple(name for name in samples.names if name in used)


def window_means(samples: BiasedSamples, names: tuple[str, ...]) -> Array:
    """Return the mean of each CV in each window (n_windows, n_names), around the circle for periodic ones; NaN when empty."""
    out = np.full((samples.n_windows, len(names)), np.nan)
    counts = samples.counts
    filled = counts > 0
    for i, name in enumerate(names):
        period = samples.periods[samples.column(name)]
        points = on_circle(samples[name], period)
        sums = np.stack([np.bincount(samples.window, p, samples.n_windows) for p in points.T], axis=1)
        if period is None:
            out[filled, i] = sums[filled, 0] / counts[filled]
        else:
            out[filled, i] = np.arctan2(sums[filled, 1], sums[filled, 0]) * period / (2 * np.pi)
    return out


def describe_windows(windows: tuple[int, ...]) -> str:
    """Return window numbers as text, runs shortened: ``0-4, 7``."""
    runs: list[list[int]] = []
    for w in windows:
        if runs and w == runs[-1][1] + 1:
            runs[-1][1] = w
        else:
            runs.append([w, w])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def name_windows(windows: tuple[int, ...]) -> str:
    """Return ``window 3`` or ``windows 0-4, 7``."""
    return f"window{'s' if len(windows) > 1 else ''} {describe_windows(windows)}"


def describe_place(point: Array, names: Sequence[str], units: Sequence[str], periods: Sequence[float | None]) -> str:
    """Return CV values (n_names,) as text, periodic ones wrapped: ``phi = 1.9 rad, psi = 0.3 rad``."""
    values = [float(wrap(np.array([x]), period)[0]) for x, period in zip(point, periods, strict=True)]
    return ", ".join(f"{name} = {value:.3g} {unit}".rstrip() for name, value, unit in zip(names, values, units, strict=True))


def gap(samples: BiasedSamples, one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, int, str]:
    """Return the two windows where two sets come closest, and the place halfway as text: ``phi = 1.9 rad``."""
    names = biased_names(samples) or samples.names
    periods = [samples.periods[samples.column(n)] for n in names]
    means = window_means(samples, names)
    spread = np.array([max(float(np.nanstd(means[:, i])), 1e-12) for i in range(len(names))])
    delta = means[list(other)][None] - means[list(one)][:, None]
    delta = np.stack([wrap(delta[..., i], p) for i, p in enumerate(periods)], axis=-1)
    distance = ((delta / spread) ** 2).sum(axis=-1)
    i, j = np.unravel_index(int(np.argmin(distance)), distance.shape)
    middle = means[one[i]] + 0.5 * delta[i, j]
    return one[i], other[j], describe_place(middle, names, [samples.units[samples.column(n)] for n in names], periods)


def gap_findings(samples: BiasedSamples, sets: Sets, code: str, problem: str) -> tuple[Finding, ...]:
    """Return one finding per set that is cut off from its nearest neighbour, naming the place where a window is missing."""
    out: list[Finding] = []
    seen: set[tuple[int, int]] = set()
    for one in sets if len(sets) > 1 else ():
        rest = tuple(w for s in sets if s is not one for w in s)
        a, b, where = gap(samples, one, rest)
        pair = (min(a, b), max(a, b))
        if pair in seen:
            continue
        seen.add(pair)
        other = next(s for s in sets if b in s)
        message = f"windows {describe_windows(one)} and {describe_windows(other)} {problem} (nearest: windows {pair[0]} and {pair[1]})"
        out.append(Finding(code, message, f"insert a window at {where}, or soften the force constants around it"))
    return tuple(out)


def disconnected(samples: BiasedSamples, sets: Sets) -> tuple[Finding, ...]:
    """Return the ``disconnected-windows`` findings of sets that were solved apart."""
    problem = "share less than one decorrelated sample: the height of one against the other is unknown, and each set"
    problem += " was given the same total weight"
    return gap_findings(samples, sets, "disconnected-windows", problem)
