"""What is measured of snippets of alanine dipeptide: pure functions of torsions and heavy-atom frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from couloir.trajectory import Array

IntArray = npt.NDArray[np.int64]


def histogram(phi: Array, psi: Array, n_bins: int = 36) -> Array:
    """Return the share (n_bins, n_bins) of frames in each cell of the phi/psi plane; any shapes, both alike, rad."""
    edges = np.linspace(-np.pi, np.pi, n_bins + 1)
    counts, _, _ = np.histogram2d(np.ravel(phi), np.ravel(psi), bins=[edges, edges])
    return np.asarray(counts / counts.sum())


def jensen_shannon(p: Array, q: Array) -> float:
    """Return the Jensen-Shannon divergence of two distributions over the same cells: 0 when equal, ln 2 when disjoint."""
    middle = 0.5 * (p + q)

    def relative_to_middle(a: Array) -> float:
        there = a > 0
        return float((a[there] * np.log(a[there] / middle[there])).sum())

    return 0.5 * (relative_to_middle(p) + relative_to_middle(q))


def surface_error(p: Array, reference: Array, below: float = 5.0) -> float:
    """Return the mean absolute error, kT, of -ln p over the cells where the reference lies less than ``below`` kT above its minimum.

    Both surfaces are shifted to the same mean over the cells that both have; a cell that ``p`` never visits counts as ``below``.
    """
    within = reference > reference.max() * np.exp(-below)
    both = within & (p > 0)
    if not both.any():
        return below
    difference = np.log(reference[both] / p[both])
    missing = int(within.sum() - both.sum())
    return float((np.abs(difference - difference.mean()).sum() + below * missing) / within.sum())


def circular_autocorrelation(angle: Array, mean: complex) -> Array:
    """Return the autocorrelation (n_frames,) of an angle in snippets (n, n_frames) about a stationary mean of exp(i angle).

    C(k) = (Re <exp i(a(t + k) - a(t))> - |m|^2) / (1 - |m|^2): 1 at lag 0, 0 when nothing is remembered.
    """
    z, n = np.exp(1j * angle), angle.shape[1]
    products = np.array([(z[:, k:] * z[:, : n - k].conj()).real.mean() for k in range(n)])
    return np.asarray((products - abs(mean) ** 2) / (1 - abs(mean) ** 2))


def bond_lengths(frames: Array, bonds: IntArray) -> tuple[Array, Array]:
    """Return mean and standard deviation (n_bonds,), nm, of the bonds (n_bonds, 2) over frames (..., n_atoms, 3)."""
    lengths = np.linalg.norm(frames[..., bonds[:, 0], :] - frames[..., bonds[:, 1], :], axis=-1).reshape(-1, len(bonds))
    return lengths.mean(axis=0), lengths.std(axis=0)


def pieces(frames: Array, phi: Array, barriers: Sequence[tuple[float, float]], shortest: int) -> list[Array]:
    """Return the frames cut wherever phi (n_frames,) is on a barrier or jumps from one side to the other; pieces of ``shortest`` or more.

    What is left holds no crossing: every piece stays in one basin.
    """
    # how many barriers lie below; beyond the last one it is the basin before the first again
    basin = np.sum([phi > high for _, high in barriers], axis=0)
    basin[basin == len(barriers)] = 0
    for low, high in barriers:
        basin[(phi >= low) & (phi <= high)] = -1
    borders = np.flatnonzero(np.diff(basin)) + 1
    runs = np.split(np.arange(len(phi)), borders)
    return [frames[run] for run in runs if len(run) >= shortest and basin[run[0]] >= 0]


def crossings(phi: Array, a: tuple[float, float], b: tuple[float, float]) -> IntArray:
    """Return (from a to b, from b to a): how often phi (n_frames,) came from the core of one state to that of the other."""
    state = np.where((phi > a[0]) & (phi < a[1]), 1, np.where((phi > b[0]) & (phi < b[1]), 2, 0))
    visited = state[state > 0]
    steps = np.diff(visited)
    return np.array([(steps == 1).sum(), (steps == -1).sum()])


def cut(runs: Sequence[Array], n_frames: int) -> Array:
    """Return runs cut into snippets (n, n_frames, ...) that do not overlap."""
    parts = [run[: len(run) // n_frames * n_frames].reshape(-1, n_frames, *run.shape[1:]) for run in runs]
    return np.concatenate(parts)


def torsion(frames: Array, cv: Any) -> Array:
    """Return a CV (...,) of frames (..., n_atoms, 3)."""
    return np.asarray(cv.evaluate(frames.reshape(-1, *frames.shape[-2:]))).reshape(frames.shape[:-2])
