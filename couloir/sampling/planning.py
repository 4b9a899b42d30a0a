"""Where windows go: how far two windows may be apart, how much they do share, and new ones where they share too little.

The overlap of two windows is ``integral p1 p2 / (p1 + p2)``: the off-diagonal entry of the overlap matrix of the two taken
alone (Klimovich, Shirts & Mobley, J. Comput. Aided Mol. Des. 29, 397 (2015)), one half when they are the same.  A harmonic
window where the surface has curvature F'' is a Gaussian of variance kT / (k + F''); two such, d widths apart, overlap by a
function of d alone, so a wanted overlap is a wanted spacing in widths.  The mean force at a window's mean is k (c - m), and
kT / variance - k the curvature (Kästner & Thiel, J. Chem. Phys. 123, 144104 (2005), eqs. 6 and 7): so samples tell where a
window must be centred for its *samples* to fall into a gap, and how stiff it must be to stand on a slope or a barrier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir.analysis.exchange import neighbours
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.timeseries import equilibrated, inefficiencies
from couloir.cv.bias import HarmonicBias
from couloir.errors import DataError, Finding
from couloir.sampling.engine import Engine
from couloir.sampling.seeds import Seeds, window_centers
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store
from couloir.streams import integer_seed
from couloir.trajectory import Array, State

TARGET_OVERLAP = 0.1
LEAST_OVERLAP = 0.05
"""Neighbours that overlap less get a window between them."""
MOST_INSERTED = 6
"""Windows put into one gap at once: further ones are better placed once these have been sampled."""
_STIFFER = 2.0
"""A window on a barrier of curvature -c gets at least a force constant of 2 c: half of it is left to hold the samples."""


@dataclass(frozen=True, eq=False)
class PairOverlap:
    """How much two neighbouring windows share: ``overlap`` 0 ... 0.5, with its ``standard_error``."""

    windows: tuple[int, int]
    overlap: float
    standard_error: float

    def __str__(self) -> str:
        return f"windows {self.windows[0]} and {self.windows[1]}: overlap {self.overlap:.3f} ± {self.standard_error:.1g}"


@dataclass(frozen=True, eq=False)
class AdaptedWindows:
    """Windows that were placed by sampling them.

    Attributes
    ----------
    windows : all of them, those first given first.
    seeds : a state for each, sampled in it.
    samples : everything the pilots recorded, window by window.
    overlaps : of neighbours, measured.
    n_rounds : pilots run.
    findings : neighbours that still share too little.
    """

    windows: UmbrellaSampling
    seeds: Seeds
    samples: BiasedSamples
    overlaps: tuple[PairOverlap, ...]
    n_rounds: int
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        least = min(self.overlaps, key=lambda pair: pair.overlap, default=None)
        lines = [str(self.windows), f"  placed in {self.n_rounds} rounds" + ("" if least is None else f"; least overlap: {least}")]
        return "\n".join([*lines, *(f"  {f}" for f in self.findings)])


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

    Windows are neighbours when no third has its samples between theirs.

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
    return tuple(_pair_overlap(samples, int(i), int(j), g) for i, j in neighbours(distance))


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


def _means(windows: UmbrellaSampling, samples: BiasedSamples) -> Array:
    """Return where the samples of each window are on average (n_windows, n_cvs), as images next to its centre."""
    return np.asarray(windows.centers + np.array([_moments(windows, samples, w)[0] for w in range(len(windows))]))


def _moments(windows: UmbrellaSampling, samples: BiasedSamples, window: int) -> tuple[Array, Array]:
    rows = samples.window == window
    if not rows.any():
        raise DataError(f"window {window} has no samples", "run it before planning further windows")
    delta = windows.displacement(np.stack([samples[cv.name][rows] for cv in windows.cvs], axis=1) - windows.centers[window])
    return delta.mean(axis=0), delta.var(axis=0)


def adapt_windows(
    windows: UmbrellaSampling, samples: BiasedSamples, overlap: float = TARGET_OVERLAP, least: float = LEAST_OVERLAP
) -> UmbrellaSampling:
    """Return the windows with new ones, after the old, in every gap between neighbours that overlap by less than ``least``.

    New windows stand evenly between the samples of the two; their number follows from the width that the curvature of the
    surface allows, their force constant from the spacing (softer where they can be, stiffer where the surface curves down),
    their centres from the mean force, so that the samples fall where they are missing.  Without a gap the same
    windows come back.  A pure function of its arguments.

    Parameters
    ----------
    windows : those that were sampled, in the order of ``samples``.
    samples : rows of every window; leave transients out (``analysis.equilibrated``).
    overlap : wanted between neighbours.
    least : below it a pair gets windows in between.

    Raises
    ------
    DataError : there are several CVs, a window has no samples, or the overlap cannot be planned for.
    """
    if len(windows.cvs) > 1:
        names = ", ".join(cv.name for cv in windows.cvs)
        raise DataError(f"windows along {names} cannot be placed between others: gaps are found along one CV", "use UmbrellaSampling.grid")
    new = [
        bias
        for pair in pair_overlaps(windows, samples)
        if pair.overlap < least
        for bias in _between(windows, samples, *pair.windows, overlap)
    ]
    return UmbrellaSampling(windows.cvs, [*windows.windows, *new]) if new else windows


def _between(windows: UmbrellaSampling, samples: BiasedSamples, i: int, j: int, overlap: float) -> list[HarmonicBias]:
    """Return windows for the gap between the samples of windows i and j."""
    kT = float(np.mean(samples.kT[[i, j]]))
    k = np.array([windows.windows[w].force_constants for w in (i, j)])
    (shift_i, variance_i), (shift_j, variance_j) = (_moments(windows, samples, w) for w in (i, j))
    start, gap = windows.centers[i] + shift_i, windows.displacement(windows.centers[j] + shift_j - windows.centers[i] - shift_i)
    force = np.array([-k[0] * shift_i, -k[1] * shift_j])
    spread = np.maximum(np.array([variance_i, variance_j]), 1e-12)
    wide = spacing(overlap)
    width = np.sqrt(np.mean(1.0 / spread, axis=0) ** -1)
    n = int(np.clip(np.ceil(np.linalg.norm(gap / width) / wide) - 1, 1, MOST_INSERTED))
    part = np.abs(gap) / (n + 1)
    curvature = np.minimum((force[1] - force[0]) / gap, (kT / spread - k).min(axis=0))
    floor = np.maximum(-_STIFFER * curvature, 0.5 * k.min(axis=0))
    constants = np.clip(kT * (wide / part) ** 2 - curvature, floor, np.maximum(floor, 4.0 * k.max(axis=0)))
    out = []
    for share in np.arange(1, n + 1) / (n + 1):
        place = start + share * gap
        centre = windows.displacement(place + ((1 - share) * force[0] + share * force[1]) / constants)
        # A centre may not leave the stretch between the two by more than the gap: a wrong force must not carry it away.
        centre = place + np.clip(windows.displacement(centre - place), -np.abs(gap), np.abs(gap))
        out.append(HarmonicBias.on(windows.cvs, [float(x) for x in centre], [float(x) for x in constants]))
    return out


def place_windows(
    engine: Engine,
    windows: UmbrellaSampling,
    seeds: Seeds | Mapping[int, Sequence[State]],
    duration: Any,
    *,
    seed: int,
    overlap: float = TARGET_OVERLAP,
    least: float = LEAST_OVERLAP,
    max_rounds: int = 8,
    record_stride: Any = None,
    store: Store | None = None,
    name: str = "pilot",
) -> AdaptedWindows:
    """Sample coarse windows and insert further ones until all neighbours overlap; only new windows are sampled each round.

    New windows start from the frame kept so far that is nearest to them.  The same call on the same store continues.

    Parameters
    ----------
    windows : to start from.
    seeds : a state or more per window, as for :meth:`UmbrellaSampling.run`.
    duration : of every walker's pilot.
    overlap, least : wanted between neighbours, and below which a gap gets windows (see :func:`adapt_windows`).
    max_rounds : most pilots; what then still shares too little is in the findings.
    record_stride, store, name : as for :meth:`UmbrellaSampling.run`; each round is a run of its own, ``pilot0``, ``pilot1``, ...

    Raises
    ------
    DataError : there are several CVs, a window has no seed, or the overlap cannot be planned for.
    SimulationError : a walker blew up.
    """
    spacing(overlap)
    store = store or Store()
    new, parts, done = windows, [], 0
    starts: Seeds | Mapping[int, Sequence[State]] = seeds
    for number in range(max_rounds):
        parts.append(
            new.run(
                engine, starts, duration, seed=integer_seed(seed, name, number), record_stride=record_stride,
                exchange=False, store=store, name=f"{name}{number}",
            )
        )  # fmt: skip
        samples = equilibrated(BiasedSamples.join(*parts))
        done, adapted = number + 1, adapt_windows(windows, samples, overlap, least)
        if len(adapted) == len(windows) or done == max_rounds:
            break
        new = UmbrellaSampling(windows.cvs, adapted.windows[len(windows) :])
        starts, windows = _nearest_frames(store, [f"{name}{i}" for i in range(done)], new), adapted
    pairs = pair_overlaps(windows, samples)
    findings = tuple(
        Finding("low-overlap", f"after {done} rounds, {pair}", "allow more rounds or longer pilots, or record what else is slow there")
        for pair in pairs
        if pair.overlap < least
    )
    own = _nearest_frames(store, [f"{name}{i}" for i in range(done)], windows)
    found = Seeds(
        tuple(own[w][0] for w in range(len(windows))), np.arange(len(windows)), ("given",) * len(windows),
        findings=findings, centers=window_centers(windows),
    )  # fmt: skip
    return AdaptedWindows(windows, found, BiasedSamples.join(*parts), pairs, done, findings)


def _nearest_frames(store: Store, names: Sequence[str], windows: UmbrellaSampling) -> dict[int, list[State]]:
    """Return, for every window, the stored frame of lowest bias energy."""
    best: list[tuple[float, State]] = [(np.inf, State(np.zeros((0, 3))))] * len(windows)
    for name in names:
        for series in store.series(f"{name}/w"):
            for chunk in store.chunks(series):
                frames = chunk["positions"].astype(np.float64)
                values = np.stack([cv.evaluate(frames) for cv in windows.cvs], axis=1)
                for w, bias in enumerate(windows.windows):
                    energy = bias.energy(values)
                    i = int(np.argmin(energy))
                    if energy[i] < best[w][0]:
                        best[w] = (float(energy[i]), State(frames[i], None, chunk.get("last_box")))
    return {w: [state] for w, (_, state) in enumerate(best)}
