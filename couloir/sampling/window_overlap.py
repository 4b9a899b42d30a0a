"""How much windows share, measured and foreseen.

The overlap of two windows is ``integral p1 p2 / (p1 + p2)``: the off-diagonal entry of the overlap matrix of the two taken
alone (Klimovich, Shirts & Mobley, J. Comput. Aided Mol. Des. 29, 397 (2015)), one half when they are the same.  A harmonic
window where the surface has curvature F'' is a Gaussian of variance kT / (k + F''); two such, d widths apart, overlap by a
function of d alone, so a wanted overlap is a wanted spacing in widths.

Along several CVs, neighbours (:func:`couloir.analysis.exchange.neighbours`) that share too little are no gap when a third
window beside them shares enough with both: so it is with the diagonals of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from couloir.analysis.exchange import neighbours
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.timeseries import inefficiencies
from couloir.errors import DataError
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.trajectory import Array

TARGET_OVERLAP = 0.1
LEAST_OVERLAP = 0.05
"""Neighbours that overlap less get a window between them."""
SLACK = 0.8
"""With distances to this power a window is between two others in a lens, four fifths as thick as the ball of the Gabriel graph
(along one CV: as ever): a mean just inside the ball, where noise put it, must not hide a gap."""


@dataclass(frozen=True, eq=False)
class PairOverlap:
    """How much two neighbouring windows share: ``overlap`` 0 ... 0.5, with its ``standard_error``."""

    windows: tuple[int, int]
    overlap: float
    standard_error: float

    def __str__(self) -> str:
        return f"windows {self.windows[0]} and {self.windows[1]}: overlap {self.overlap:.3f} ± {self.standard_error:.1g}"


def gaussian_overlap(distance: float, ratio: float = 1.0) -> float:
    """Return the overlap (0 ... 0.5) of two Gaussians.

    Parameters
    ----------
    distance : between their means, in standard deviations of the first.
    ratio : standard deviation of the second over that of the first.
    """
    reach = 8.0 * max(1.0, ratio)
    x = np.linspace(-reach, distance + reach, 4001)
    first = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    second = np.exp(-0.5 * ((x - distance) / ratio) ** 2) / (np.sqrt(2 * np.pi) * ratio)
    return float(np.sum(first * second / np.maximum(first + second, 1e-300)) * (x[1] - x[0]))


def spacing(overlap: float = TARGET_OVERLAP) -> float:
    """Return how many widths apart two equally wide Gaussians have this overlap.

    Raises
    ------
    DataError : the overlap is not between 0 and 0.5.
    """
    from scipy.optimize import brentq

    if not 1e-6 < overlap < 0.5:
        raise DataError(f"an overlap of {overlap:g} cannot be planned for", "give one between 0 and 0.5, such as 0.1")
    return float(brentq(lambda d: gaussian_overlap(d) - overlap, 0.0, 12.0))


def pair_overlaps(windows: UmbrellaSampling, samples: BiasedSamples) -> tuple[PairOverlap, ...]:
    """Return the overlap of all neighbouring windows that hold samples, measured from these.

    Windows are neighbours when no third has its samples between theirs: the Gabriel graph of the samples' means and, along
    several CVs, pairs that noise might bring into it (see ``SLACK``).

    Parameters
    ----------
    windows : those that were sampled, in the order of ``samples``.
    samples : rows of every window; leave transients out (``analysis.equilibrated``).

    Raises
    ------
    DataError : a window has no samples.
    """
    means = _means(windows, samples)
    g = inefficiencies(samples)
    kT = float(np.mean(samples.kT))
    distance = np.array([windows.distance(means, mean, kT) for mean in means])
    return tuple(_pair_overlap(samples, int(i), int(j), g) for i, j in neighbours(distance**SLACK))


def _pair_overlap(samples: BiasedSamples, i: int, j: int, g: Array) -> PairOverlap:
    from scipy.optimize import brentq
    from scipy.special import expit

    rows = [samples.values[samples.window == w] for w in (i, j)]
    # How much likelier, up to a constant, a row is in window j than in window i.
    log_ratio = [(samples.bias_energy(i, x) / samples.kT[i] - samples.bias_energy(j, x) / samples.kT[j]) for x in rows]
    low, high = min(x.min() for x in log_ratio), max(x.max() for x in log_ratio)
    # Bennett's equation: seen from the mixture of both, each window holds half.
    f = brentq(lambda f: sum(float(expit(f + x).mean()) for x in log_ratio) - 1.0, -high - 40.0, -low + 40.0)
    shared = [expit(f + x) * expit(-f - x) for x in log_ratio]
    error = np.sqrt(sum(float(s.var()) * g[w] / len(s) for s, w in zip(shared, (i, j), strict=True)))
    return PairOverlap((i, j), float(sum(s.mean() for s in shared)), float(error))


def gaps(
    windows: UmbrellaSampling, samples: BiasedSamples, pairs: Sequence[PairOverlap], least: float = LEAST_OVERLAP
) -> tuple[PairOverlap, ...]:
    """Return the neighbours that overlap by less than ``least``, worst first, and are not bridged by a third window.

    A window bridges two others when it shares ``least`` or more with both and its samples lie beside the stretch between
    theirs (along one CV no window does: it would lie between them, and they would be no neighbours).

    Parameters
    ----------
    pairs : what :func:`pair_overlaps` returned for these windows and samples.
    """
    means = _means(windows, samples)
    scale = np.sqrt(np.mean([window.force_constants for window in windows.windows], axis=0))
    linked: dict[int, set[int]] = {}
    for pair in pairs:
        if pair.overlap >= least:
            for a, b in (pair.windows, pair.windows[::-1]):
                linked.setdefault(a, set()).add(b)

    def bridged(i: int, j: int) -> bool:
        way = windows.displacement(means[j] - means[i]) * scale
        for k in linked.get(i, set()) & linked.get(j, set()):
            to, on = (windows.displacement(x) * scale for x in (means[k] - means[i], means[j] - means[k]))
            # Around a period the three need not form a triangle: k may be behind both.
            if np.allclose(to + on, way, rtol=0, atol=1e-6 * float(scale.max())) and 0 < to @ way < way @ way:
                return True
        return False

    low = [pair for pair in pairs if pair.overlap < least and not bridged(*pair.windows)]
    return tuple(sorted(low, key=lambda pair: pair.overlap))


def _means(windows: UmbrellaSampling, samples: BiasedSamples) -> Array:
    """Return where the samples of each window are on average (n_windows, n_cvs), as images next to its centre."""
    return np.asarray(windows.centers + np.array([moments_of(windows, samples, w)[0] for w in range(len(windows))]))


def moments_of(windows: UmbrellaSampling, samples: BiasedSamples, window: int) -> tuple[Array, Array]:
    """Return the mean (n_cvs,) of a window's samples, relative to its centre, and their covariance (n_cvs, n_cvs)."""
    rows = samples.window == window
    if not rows.any():
        raise DataError(f"window {window} has no samples", "run it before planning further windows")
    delta = windows.displacement(np.stack([samples[cv.name][rows] for cv in windows.cvs], axis=1) - windows.centers[window])
    mean = delta.mean(axis=0)
    return mean, (delta - mean).T @ (delta - mean) / len(delta)
