"""The numerical steps of a diffusion map: landmarks, bandwidth, connectivity, eigenvectors; see :mod:`couloir.cv.diffusion_map`."""

from __future__ import annotations

from typing import Any

import numpy as np

from couloir.errors import DataError, Finding, ModelError
from couloir.trajectory import Array

_LINK = np.log(1e3)
"""Landmarks are connected where the kernel is above 1e-3."""
_RARE = 0.01
"""A disconnected set with fewer than this share of the frames is set aside, not an error."""
_GAP = 1.5
"""A ratio of neighbouring timescales below this is no gap."""
_BETWEEN = 0.005
"""A coordinate with fewer than this share of the frames in the middle between two sets only tells these sets apart."""


def choose_bandwidth(squared_distances: Array) -> float:
    """Return eps where the kernel sum grows fastest, d log S / d log eps, but no less than the scale of near neighbours.

    The first is the rule of Berry, Giannakis & Harlim (Phys. Rev. E 91, 032915 (2015), sec. III), S = sum_ij k_ij.  The second
    gives 95 % of the landmarks eight neighbours with a kernel above 1/e: without it, points in sparse regions become traps
    of the walk, and the slowest coordinates tell them from the rest.

    Parameters
    ----------
    squared_distances : (n, n) between landmarks.
    """
    rows = squared_distances[:: max(1, len(squared_distances) // 400)]
    neighbour = min(8, len(squared_distances) - 1)
    near = float(np.quantile(np.partition(rows, neighbour, axis=1)[:, neighbour], 0.95))
    top = float(rows.max())
    floor = max(near, 1e-9 * top) / 4
    grid = np.geomspace(floor / 16, top, 80)
    return max(floor, float(grid[np.argmax([kernel_slope(rows, epsilon) for epsilon in grid])]))


def kernel_slope(squared: Array, epsilon: float) -> float:
    """Return d log S / d log eps of the kernel sum S = sum exp(-squared / 4 eps)."""
    u = squared / (4 * epsilon)
    kernel = np.exp(-u)
    return float((u * kernel).sum() / kernel.sum())


def squared_distances(y: Array) -> Array:
    """Return all squared distances (n, n) between rows of y (n, n_features)."""
    norms = (y * y).sum(axis=1)
    squared = np.maximum(norms[:, None] + norms - 2 * y @ y.T, 0)
    np.fill_diagonal(squared, 0)
    return np.asarray((squared + squared.T) / 2)


def landmarks(y: Array, n: int, farthest: bool, rng: np.random.Generator) -> tuple[Any, Array]:
    """Return indices of n landmarks (fewer if there are fewer different frames) and how many frames are nearest to each."""
    order = rng.permutation(len(y))
    norms = (y * y).sum(axis=1)
    best, owner, picks = np.full(len(y), np.inf), np.zeros(len(y), dtype=np.intp), [int(order[0])]
    while True:
        squared = np.maximum(norms + norms[picks[-1]] - 2 * (y @ y[picks[-1]]), 0)
        squared[picks[-1]] = 0
        closer = squared < best
        best[closer], owner[closer] = squared[closer], len(picks) - 1
        following = int(np.argmax(best)) if farthest else int(order[len(picks) % len(y)])
        if len(picks) == n or (farthest and best[following] < 1e-20 * norms.max()):
            break
        picks.append(following)
    counts = np.bincount(owner, minlength=len(picks)).astype(np.float64)
    used = counts > 0  # a random landmark may repeat another frame
    return np.array(picks)[used], counts[used]


def connected(squared: Array, counts: Array, epsilon: float) -> tuple[Any, list[Finding]]:
    """Return the landmarks to keep; sets that hold few frames are left out with a finding, larger ones are an error."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n_sets, of = connected_components(csr_array(squared < 4 * epsilon * _LINK), directed=False)
    shares = np.bincount(of, counts, n_sets) / counts.sum()
    largest = int(np.argmax(shares))
    if n_sets == 1:
        return np.flatnonzero(of == largest), []
    shown = ", ".join(f"{share:.1%}" for share in np.sort(shares)[::-1][:5])
    if (shares >= _RARE).sum() > 1:
        raise DataError(
            f"the data fall into {n_sets} sets that the kernel does not connect at bandwidth {epsilon:.3g} (shares of frames: {shown})",
            "simulate until they are connected, learn each by itself, leave out a feature that separates them, or widen the bandwidth "
            f"to {bridging_bandwidth(squared, of == largest):.2g}",
        )
    message = f"{1 - shares[largest]:.2%} of the frames, in {n_sets - 1} set(s), are not connected to the rest and were left out"
    return np.flatnonzero(of == largest), [Finding("disconnected-frames", message, "sample more around them")]


def transition_matrix(y: Array, counts: Array, q: Array, alpha: float, epsilon: float) -> Array:
    """Return the transition matrix (n, n) of the diffusion between landmarks y, each standing for ``counts`` frames.

    ``q`` is the density estimate and ``alpha`` its power in the normalization (Coifman & Lafon, Appl. Comput. Harmon.
    Anal. 21, 5 (2006)).
    """
    import pydiffmap.diffusion_map as pydiffmap

    remaining = iter(counts)  # pydiffmap asks for weights point by point, in order
    walk = pydiffmap.DiffusionMap.from_sklearn(
        alpha=alpha, k=len(y), epsilon=epsilon, weight_fxn=lambda _: next(remaining), density_fxn=lambda _: q,
        neighbor_params={"algorithm": "brute"},
    ).construct_Lmat(y)  # fmt: skip
    transition = np.eye(len(y)) + epsilon * walk.L.toarray()
    if not np.isfinite(transition).all():
        raise ModelError("the transition matrix of the diffusion map is not finite", "give a larger bandwidth")
    return np.asarray(transition)


def slowest(transition: Array, n: int) -> tuple[Array, Array]:
    """Return the n largest eigenvalues below 1 and right eigenvectors of a reversible transition matrix."""
    from scipy.linalg import eigh

    # detailed balance pi_i P_ij = pi_j P_ji makes sqrt(P_ij P_ji) a symmetric matrix with the same eigenvalues
    size = len(transition)
    values, vectors = eigh(np.sqrt(np.maximum(transition * transition.T, 0)), subset_by_index=[size - n - 1, size - 1])
    # its eigenvector of eigenvalue 1 is sqrt(pi), by which the others are divided
    psi = vectors[:, :-1] / vectors[:, -1:]
    return values[:-1][::-1], psi[:, ::-1]


def signs(values: Array, y: Array) -> Array:
    """Return +-1 per coordinate so that it grows with the feature it is most correlated with."""
    centred = y - y.mean(axis=0)
    spread = centred.std(axis=0)
    correlation = centred.T @ (values - values.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)[:, None]
    strongest = correlation[np.argmax(np.abs(correlation), axis=0), np.arange(values.shape[1])]
    return np.where(strongest < 0, -1.0, 1.0)


def spectral_findings(eigenvalues: Array, epsilon: float, values: Array) -> list[Finding]:
    """Return what is doubtful about a spectrum: no gap, or coordinates that tell a few frames from the rest."""
    found = []
    if (largest := gaps(eigenvalues, epsilon).max()) < _GAP:
        message = f"no gap among the {len(eigenvalues)} timescales (largest ratio {largest:.2f})"
        found.append(Finding("no-spectral-gap", message, "choose other features, or check what a coordinate means"))
    squares = np.sort((values - values.mean(axis=0)) ** 2, axis=0)
    shares = squares[-max(1, len(squares) // 100) :].sum(axis=0) / squares.sum(axis=0)
    for i in np.flatnonzero(shares > 0.5):
        message = f"half of the variance of coordinate {i + 1} comes from one frame in a hundred: it tells a few frames from the rest"
        found.append(Finding("coordinate-of-few-frames", message, "sample more around them, or give a larger bandwidth"))
    return found


def gap_findings(psi: Array, counts: Array, squared: Array, epsilon: float) -> list[Finding]:
    """Return which of the first coordinates only tell two sets of frames apart, across a gap that the kernel hardly bridges.

    Such a walk stays longer in a set than it takes to explore it, so the set comes before all that varies inside: two wells
    with few frames on the barrier hide a slower, continuous variable, although alpha = 1 is meant to ignore densities.

    Parameters
    ----------
    psi : (n_landmarks, n_coordinates).
    counts : (n_landmarks,) frames for which each landmark stands.
    squared : (n_landmarks, n_landmarks) squared distances.
    """
    found = []
    for i, values in enumerate(psi.T):
        upper = _upper_set(values, counts)
        low, high = (np.average(values[side], weights=counts[side]) for side in (~upper, upper))
        middle, share = (high + low) / 2, counts[upper].sum() / counts.sum()
        between = counts[np.abs(values - middle) < (high - low) / 4].sum() / counts.sum()
        wider = bridging_bandwidth(squared, upper)
        if between >= _BETWEEN or min(share, 1 - share) < _RARE or wider <= epsilon:
            break  # what comes after a coordinate that varies is no longer hidden
        message = (
            f"coordinate {i + 1} only tells two sets of frames apart ({1 - share:.0%} and {share:.0%}, {between:.2%} between): the "
            f"bandwidth {epsilon:.2g} hardly bridges the gap, so what varies inside the sets comes later"
        )
        fix = f"use a later coordinate, give bandwidth = {wider:.2g} to see past the gap, or sample between the sets"
        found.append(Finding("coordinate-of-a-gap", message, fix))
    return found


def _upper_set(values: Array, counts: Array) -> Any:
    """Return the landmarks (n,) above the threshold that separates values best (Otsu, IEEE Trans. Syst. Man Cybern. 9, 62 (1979))."""
    order = np.argsort(values)
    weight = np.cumsum(counts[order])[:-1] / counts.sum()
    total = np.cumsum((counts * values)[order]) / counts.sum()
    contrast = (total[-1] * weight - total[:-1]) ** 2 / (weight * (1 - weight))
    return values > values[order[np.argmax(contrast)]]


def bridging_bandwidth(squared: Array, inside: Any) -> float:
    """Return eps at which the kernel's standard deviation, sqrt(2 eps), is half the distance between two sets of landmarks.

    That distance is the median over ``inside`` of the way to the nearest landmark outside of it.
    """
    return float(np.median(squared[np.ix_(inside, ~inside)].min(axis=1))) / 8


def timescales(eigenvalues: Array, epsilon: float) -> Array:
    """Return the relaxation time of each eigenvalue, in units in which the diffusion has unit rate."""
    return np.asarray(-epsilon / np.log(np.clip(eigenvalues, 1e-12, 1 - 1e-15)))


def gaps(eigenvalues: Array, epsilon: float) -> Array:
    """Return the ratio of each relaxation time to the next (n - 1,)."""
    times = timescales(eigenvalues, epsilon)
    return np.asarray(times[:-1] / times[1:])
