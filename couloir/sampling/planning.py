"""Where windows go: new ones where neighbours share too little (:mod:`couloir.sampling.window_overlap`).

The mean force at a window's mean is k (c - m), and kT / variance - k the curvature (Kästner & Thiel, J. Chem. Phys. 123,
144104 (2005), eqs. 6 and 7), along several CVs the matrix kT inverse(covariance) - diag(k): so samples tell where a window
must be centred for its *samples* to fall into a gap, and how stiff it must be to stand on a slope or a barrier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir.analysis.samples import BiasedSamples
from couloir.analysis.timeseries import equilibrated
from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import HarmonicBias, bias_from_dict
from couloir.errors import DataError, Finding
from couloir.sampling.engine import Engine
from couloir.sampling.seeds import Seeds, window_centers
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.sampling.window_overlap import LEAST_OVERLAP, TARGET_OVERLAP, PairOverlap, gaps, moments_of, pair_overlaps, spacing
from couloir.store import Store
from couloir.streams import integer_seed
from couloir.trajectory import Array, State

MOST_INSERTED = 6
"""Windows put into one gap at once: further ones are better placed once these have been sampled."""
MOST_REPORTED = 8
"""Gaps named one by one in the findings; further ones are counted."""
_STIFFER = 2.0
"""A window on a barrier of curvature -c gets at least a force constant of 2 c: half of it is left to hold the samples."""


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
    findings : gaps that are left: neighbours that still share too little; and whether the windows allowed were used up.
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


def coarse_windows(
    cvs: CollectiveVariable | Sequence[CollectiveVariable], n_windows: int | Sequence[int], kT: float, range: Any = None,
    overlap: float = TARGET_OVERLAP,
) -> UmbrellaSampling:  # fmt: skip
    """Return a grid to start from, with the force constants that give next neighbours this overlap where the surface is flat.

    Parameters
    ----------
    n_windows, range : as for :meth:`UmbrellaSampling.grid`; two windows or more per CV.
    kT : kJ/mol.

    Raises
    ------
    DataError : there are fewer than two windows along a CV, or the grid or overlap cannot be planned for.
    """
    trial = UmbrellaSampling.grid(cvs, n_windows, 1.0, range)
    constants = []
    for i, cv in enumerate(trial.cvs):
        steps = np.diff(np.unique(trial.centers[:, i].round(12)))
        if len(steps) == 0:
            raise DataError(f"one window along {cv.name} has no neighbour to overlap with", "give two or more per CV")
        constants.append(float(kT * (spacing(overlap) / steps.min()) ** 2))
    return UmbrellaSampling.grid(cvs, n_windows, constants, range)


def adapt_windows(
    windows: UmbrellaSampling, samples: BiasedSamples, overlap: float = TARGET_OVERLAP, least: float = LEAST_OVERLAP
) -> UmbrellaSampling:
    """Return the windows with new ones, after the old, in every gap between neighbours (see :func:`gaps`), worst gap first.

    New windows stand evenly between the samples of the two; their number follows from the width that the curvature of the
    surface allows, their force constants from the spacing (softer where they can be, stiffer where the surface curves down),
    their centres from the mean force, so that the samples fall where they are missing.  Where gaps cross, one of them is
    filled first.  Without a gap the same windows come back.  A pure function of its arguments.

    Parameters
    ----------
    windows : those that were sampled, in the order of ``samples``.
    samples : rows of every window; leave transients out (``analysis.equilibrated``).
    overlap : wanted between neighbours.
    least : below it a pair gets windows in between.

    Raises
    ------
    DataError : a window has no samples, or the overlap cannot be planned for.
    """
    found = gaps(windows, samples, pair_overlaps(windows, samples), least)
    return _filled(windows, samples, found, overlap)


def _filled(windows: UmbrellaSampling, samples: BiasedSamples, found: Sequence[PairOverlap], overlap: float) -> UmbrellaSampling:
    new: list[_Inserted] = []
    for pair in found:
        proposed = _between(windows, samples, *pair.windows, overlap)
        new += [p for p in proposed if not any(p.meets(other, windows, overlap) for other in new)]
    return UmbrellaSampling(windows.cvs, [*windows.windows, *(inserted.bias for inserted in new)]) if new else windows


@dataclass(frozen=True, eq=False)
class _Inserted:
    """A new window, where its samples are to fall (n_cvs,), their precision (n_cvs, n_cvs), and the gap it is for."""

    bias: HarmonicBias
    place: Array
    precision: Array
    gap: tuple[int, int]

    def meets(self, other: _Inserted, windows: UmbrellaSampling, overlap: float) -> bool:
        """Whether a window for another gap already stands within half of the wanted spacing."""
        delta = windows.displacement(self.place - other.place)
        return self.gap != other.gap and float(delta @ self.precision @ delta) < (0.5 * spacing(overlap)) ** 2


def _between(windows: UmbrellaSampling, samples: BiasedSamples, i: int, j: int, overlap: float) -> list[_Inserted]:
    """Return windows for the gap between the samples of windows i and j."""
    kT = float(np.mean(samples.kT[[i, j]]))
    k = np.array([windows.windows[w].force_constants for w in (i, j)])
    # CVs times the square root of the force constant: energies then, whatever their units.
    unit = np.sqrt(np.sqrt(k[0] * k[1]))
    k = k / unit**2
    moments = [moments_of(windows, samples, w) for w in (i, j)]
    shift = np.array([mean for mean, _ in moments])
    start = windows.centers[i] + shift[0]
    gap = windows.displacement(windows.centers[j] + shift[1] - start) * unit
    shift, force = shift * unit, -k * shift * unit
    precision = [_inverse(covariance * np.outer(unit, unit), 1e-6 * kT) for _, covariance in moments]
    wide, length = spacing(overlap), float(np.linalg.norm(gap))
    n = int(np.clip(np.ceil(np.sqrt(gap @ np.mean(precision, axis=0) @ gap) / wide) - 1, 1, MOST_INSERTED))
    along = gap / length
    curvatures = _curvatures(kT * np.array(precision) - [np.diag(x) for x in k], force, gap)
    constants = _constants(k, kT * (wide * (n + 1) / length) ** 2, curvatures, along)
    # A centre may not leave the stretch between the two by more than the gap: a wrong force must not carry it away.
    # Across, the two windows show how far a slope carries samples.
    reach = length + float(np.linalg.norm(shift - np.outer(shift @ along, along), axis=1).max())
    width = np.diag(unit) @ (np.diag(constants) + np.mean(curvatures, axis=0)) @ np.diag(unit) / kT
    out = []
    for share in np.arange(1, n + 1) / (n + 1):
        ahead = ((1 - share) * force[0] + share * force[1]) / constants
        ahead = ahead * min(1.0, reach / max(float(np.linalg.norm(ahead)), 1e-300))
        place = start + share * gap / unit
        center = windows.displacement(place + ahead / unit)
        bias = HarmonicBias.on(windows.cvs, [float(x) for x in center], [float(x) for x in constants * unit**2])
        out.append(_Inserted(bias, place, width, (i, j)))
    return out


def _inverse(covariance: Array, least: float) -> Array:
    """Return the inverse of a covariance, no direction of which is taken to be narrower than a variance of ``least``."""
    variance, axes = np.linalg.eigh(covariance)
    return np.asarray((axes / np.maximum(variance, least)) @ axes.T)


def _curvatures(at_ends: Array, force: Array, gap: Array) -> Array:
    """Return curvature matrices (3, n, n): at both ends, and their mean with the change of force along the gap in its place."""
    along, length = gap / np.linalg.norm(gap), np.linalg.norm(gap)
    mean = at_ends.mean(axis=0)
    between = (force[1] - force[0]) @ along / length
    return np.asarray([*at_ends, mean + (between - along @ mean @ along) * np.outer(along, along)])


def _constants(k: Array, wanted: float, curvatures: Array, along: Array) -> Array:
    """Return the force constants (n,) that leave a total curvature ``wanted`` in the direction ``along``, if they may.

    Parameters
    ----------
    k : (2, n) those of the windows at both ends, whose geometric mean is one.
    """
    lowest = min(float(along @ c @ along) for c in curvatures)
    # With 1 + u_a^2 (r - 1) along axis a the sum over u_a^2 k_a is 1 + (r - 1) sum u_a^4.
    stiffening = (wanted - lowest - 1.0) / float(np.sum(along**4))
    # Gershgorin: with twice what off-diagonal elements leave, the total curvature is positive in every direction.
    off_diagonal = np.abs(curvatures).sum(axis=2) - np.abs(np.diagonal(curvatures, axis1=1, axis2=2))
    bound = (np.diagonal(curvatures, axis1=1, axis2=2) - off_diagonal).min(axis=0)
    floor = np.maximum(-_STIFFER * bound, 0.5 * k.min(axis=0))
    # With several CVs there are neighbours across, too: a window much narrower than they are would share less with these.
    most = (4.0 if k.shape[1] == 1 else 1.0) * k.max(axis=0)
    return np.asarray(np.clip(1.0 + along**2 * stiffening, floor, np.maximum(floor, most)))


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
    max_windows: int | None = None,
    record_stride: Any = None,
    store: Store | None = None,
    name: str = "pilot",
) -> AdaptedWindows:
    """Sample coarse windows and insert further ones until all neighbours overlap; only new windows are sampled each round.

    New windows start from the frame kept so far that is nearest to them.  The same call on the same store continues, with
    the windows that the store says were inserted.

    Parameters
    ----------
    windows : to start from.
    seeds : a state or more per window, as for :meth:`UmbrellaSampling.run`.
    duration : of every walker's pilot.
    overlap, least : wanted between neighbours, and below which a gap gets windows (see :func:`adapt_windows`).
    max_rounds : most pilots; what then still shares too little is in the findings.
    max_windows : most windows in all, default ten times those given: where the surface is steep beyond all that windows of
        this kind can hold, gaps never close.
    record_stride, store, name : as for :meth:`UmbrellaSampling.run`; each round is a run of its own, ``pilot0``, ``pilot1``, ...

    Raises
    ------
    DataError : a window has no seed, or the overlap cannot be planned for.
    SimulationError : a walker blew up.
    """
    spacing(overlap)
    store = store or Store()
    limit = 10 * len(windows) if max_windows is None else max_windows
    new, parts, done = windows, [], 0
    starts: Seeds | Mapping[int, Sequence[State]] = seeds
    while True:
        parts.append(
            new.run(
                engine, starts, duration, seed=integer_seed(seed, name, done), record_stride=record_stride,
                exchange=False, store=store, name=f"{name}{done}",
            )
        )  # fmt: skip
        samples, done = equilibrated(BiasedSamples.join(*parts)), done + 1
        pairs = pair_overlaps(windows, samples)
        left = gaps(windows, samples, pairs, least)
        if not left or done >= max_rounds or len(windows) >= limit:
            break
        # Rounding on another machine must not move windows that were run already.
        if (inserted := store.get(f"{name}{done}/windows")) is None:
            inserted = [bias.to_dict() for bias in _filled(windows, samples, left, overlap).windows[len(windows) : limit]]
            store[f"{name}{done}/windows"] = inserted
        new = UmbrellaSampling(windows.cvs, [_harmonic(bias) for bias in inserted])
        starts = _nearest_frames(store, [f"{name}{i}" for i in range(done)], new)
        windows = UmbrellaSampling(windows.cvs, [*windows.windows, *new.windows])
    findings = _findings(left, done, len(windows), limit)
    own = _nearest_frames(store, [f"{name}{i}" for i in range(done)], windows)
    found = Seeds(
        tuple(own[w][0] for w in range(len(windows))), np.arange(len(windows)), ("given",) * len(windows),
        findings=findings, centers=window_centers(windows),
    )  # fmt: skip
    return AdaptedWindows(windows, found, BiasedSamples.join(*parts), pairs, done, findings)


def _harmonic(data: Mapping[str, Any]) -> HarmonicBias:
    bias = bias_from_dict(data)
    assert isinstance(bias, HarmonicBias)
    return bias


def _findings(left: Sequence[PairOverlap], rounds: int, n_windows: int, limit: int) -> tuple[Finding, ...]:
    fix = "allow more rounds or longer pilots, or record what else is slow there"
    named = [Finding("low-overlap", f"after {rounds} rounds, {pair}", fix) for pair in left[:MOST_REPORTED]]
    if len(left) > MOST_REPORTED:
        named.append(Finding("low-overlap", f"{len(left) - MOST_REPORTED} further pairs of neighbouring windows share too little", fix))
    if left and n_windows >= limit:
        text = f"{n_windows} windows, as many as are allowed, leave gaps; the worst is between windows {left[0].windows[0]} and "
        text += f"{left[0].windows[1]}"
        named.append(Finding("window-limit", text, "allow more (max_windows), or leave out what is never reached (a smaller range)"))
    return tuple(named)


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
