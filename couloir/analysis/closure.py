"""Whether windows pair by pair and all windows together say the same about their free energies.

The samples of two windows alone give the difference of their free energies by Bennett's acceptance ratio (J. Comput. Phys.
22, 245 (1976)), and such differences add up along routes of windows.  In equilibrium all windows together (WHAM, MBAR) say
the same within errors.  A window that sits on both sides of a barrier sharper than its restraint, with the wrong shares,
breaks this: routes around it and through it differ, and the estimate of all windows spreads the misfit over the whole
surface, where no error bar shows it.

Differences are added up in the spanning tree of the most precise ones.  Neighbouring links share a window, so their errors
are not independent; the variance of a sum is taken as twice that of independent ones.  That of its difference from the
estimate of all windows is smaller, because that estimate is the more efficient one of the same data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.special import expit

from couloir.analysis.agreement import FALSE_ALARM, LEAST_EFFECTIVE
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.trajectory import Array

LEAST_MISFIT = 0.25
"""kT of misfit below which it does not matter."""


@dataclass(frozen=True)
class Contradiction:
    """Two windows whose free energies differ otherwise pair by pair than by all windows together.

    Attributes
    ----------
    windows : the two.
    by_pairs : f_j - f_i added up over pairs of windows on the way from one to the other, kT.
    standard_error : of ``by_pairs``, kT.
    together : the same from all windows, kT.
    others : how many more pairs of windows contradict each other.
    suspects : windows with too few decorrelated samples to take part, in which the reason may lie.
    """

    windows: tuple[int, int]
    by_pairs: float
    standard_error: float
    together: float
    others: int
    suspects: tuple[int, ...]


def contradiction(samples: BiasedSamples, free_energies: Array, shared: Array, inefficiency: Array) -> Contradiction | None:
    """Return the pair of windows with the largest significant misfit, or None.

    Parameters
    ----------
    free_energies : (n_windows,) of all windows together, kT.
    shared : (n_windows, n_windows) rows that windows share; pairs that share fewer than 20 decorrelated ones are not compared.
    inefficiency : (n_windows,) statistical inefficiency, rows.
    """
    effective = samples.counts / inefficiency
    same = np.isclose(samples.temperatures[:, None], samples.temperatures)
    linked = same & (shared / np.maximum.outer(inefficiency, inefficiency) >= LEAST_EFFECTIVE)
    links = np.argwhere(np.triu(linked, 1))
    rows = {int(w): np.flatnonzero(samples.window == w) for w in np.unique(links)}
    difference, variance = np.zeros((2, samples.n_windows, samples.n_windows))
    for i, j in links.tolist():
        value, error = bennett(_work(samples, rows[i], i, j), _work(samples, rows[j], j, i))
        difference[i, j], difference[j, i] = value, -value
        variance[i, j] = variance[j, i] = error**2 * max(inefficiency[i], inefficiency[j])
    apart, spread, fewest = _added_up(links, difference, variance, effective)
    misfit = np.abs(apart - (free_energies[None, :] - free_energies[:, None]))
    first, second = np.nonzero(np.triu(np.isfinite(spread), 1))
    pairs = misfit[first, second], np.sqrt(2 * spread[first, second])
    chance = 2 * stats.t.sf(pairs[0] / pairs[1], 0.5 * fewest[first, second])
    bad = np.flatnonzero((chance < FALSE_ALARM / max(1, len(first))) & (pairs[0] > LEAST_MISFIT))
    if not len(bad):
        return None
    worst = int(bad[np.argmax(pairs[0][bad])])
    i, j = int(first[worst]), int(second[worst])
    suspects = tuple(int(w) for w in np.flatnonzero((samples.counts > 0) & (effective < 2 * LEAST_EFFECTIVE)))
    return Contradiction(
        (i, j), float(apart[i, j]), float(pairs[1][worst]), float(free_energies[j] - free_energies[i]), len(bad) - 1, suspects
    )


def _added_up(links: IntArray, difference: Array, variance: Array, effective: Array) -> tuple[Array, Array, Array]:
    """Return (n_windows, n_windows) differences along the tree, their variances (infinite without a route), and the fewest samples."""
    n = len(effective)
    i, j = links.T
    forest = minimum_spanning_tree(coo_array((variance[i, j], (i, j)), shape=(n, n)).tocsr())
    apart, spread = np.zeros((n, n)), np.full((n, n), np.inf)
    fewest, seen = np.minimum.outer(effective, effective), np.zeros(n, dtype=bool)
    for root in range(n):
        if seen[root]:
            continue
        order, parent = breadth_first_order(forest, root, directed=False)
        seen[order] = True
        spread[root, root] = 0.0
        for k, node in enumerate(order[1:], start=1):
            before, up = order[:k], int(parent[node])
            apart[before, node] = apart[before, up] + difference[up, node]
            apart[node, before] = -apart[before, node]
            spread[before, node] = spread[node, before] = spread[before, up] + variance[up, node]
            fewest[before, node] = fewest[node, before] = np.minimum(fewest[before, up], effective[node])
            spread[node, node] = 0.0
    return apart, spread, fewest


def bennett(forward: Array, backward: Array) -> tuple[float, float]:
    """Return f_1 - f_0 in kT and its standard error for uncorrelated rows.

    Parameters
    ----------
    forward : (n_0,) u_1 - u_0 on rows of state 0.
    backward : (n_1,) u_0 - u_1 on rows of state 1.
    """
    shift = float(np.log(len(backward) / len(forward)))

    def excess(f: float) -> tuple[float, float]:
        ahead, behind = expit(f - forward + shift), expit(-f - backward - shift)
        return float(ahead.sum() - behind.sum()), float((ahead * (1 - ahead)).sum() + (behind * (1 - behind)).sum())

    # The excess grows with f from minus to plus: bisect, because Newton's step is useless where the slope vanishes.
    low, high = float(min(forward.min(), -backward.max())) - 50.0, float(max(forward.max(), -backward.min())) + 50.0
    while high - low > 1e-9 * max(1.0, abs(low) + abs(high)):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle)[0] < 0 else (low, middle)
    # Shirts, Bair, Hooker & Pande, Phys. Rev. Lett. 91, 140601 (2003), eq. 10, for rows pooled as they are.
    information = excess(0.5 * (low + high))[1]
    variance = 1 / max(information, 1e-300) - 1 / len(forward) - 1 / len(backward)
    return 0.5 * (low + high), float(np.sqrt(max(variance, 1e-12)))


def _work(samples: BiasedSamples, rows: IntArray, here: int, there: int) -> Array:
    """Return u_there - u_here (n_rows,) in kT on rows of one temperature."""
    values = samples.values[rows]
    difference = samples.bias_energy(there, values) - samples.bias_energy(here, values)
    return np.asarray(difference / samples.kT[here])
