"""Replicas of an estimate by a block bootstrap that keeps windows apart and respects correlation in time.

Blocks of every window (several correlation times long, at most 100 a window) get random weights that sum to their number:
a Bayesian bootstrap (Rubin, Ann. Stat. 9, 130 (1981)) whose Dirichlet parameter (n - 2)/n makes the variance of a mean over n blocks
exactly the unbiased s²/n, where weights drawn like resampled indices give (n - 1)/n of it: for two walkers, half.
Walkers that disagree, or are eight or more in a window, are resampled whole: then the spread between them is the error,
whatever blocks within one say.  Where windows exchange configurations that never change by themselves, these are resampled whole,
with one weight in all windows they visit.  No weight is ever zero: a cell that only one of two blocks reaches must get an error of several
kT, not none.  Each replica solves WHAM again on the weighted bins, so the error of the windows' offsets is included; where
neighbouring windows disagree (:mod:`couloir.analysis.agreement`), replicas also move one side against the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from couloir.analysis.agreement import Neighbours, walkers_disagree
from couloir.analysis.mbar import MbarResult
from couloir.analysis.overlap import Sets
from couloir.analysis.reduced import Mixture
from couloir.analysis.replicas import replicas_disagree
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.timeseries import inefficiencies, walkers
from couloir.analysis.wham import BinnedStates, bin_states, set_of_windows, solve_connected, solve_dual
from couloir.streams import stream
from couloir.trajectory import Array

MOST_BLOCKS = 100
"""Blocks per window: enough for a standard error good to 7 %."""
BLOCK_LENGTH = 5
"""Length of a block in statistical inefficiencies."""
MANY_WALKERS = 8
_FAINT = 1e-3
"""Least weight of one of two blocks: zero would leave cells empty that the other block does not reach."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The units of resampling.

    Attributes
    ----------
    block : (n_rows,) of each row.
    window : (n_blocks,) of each block.
    replica : (n_blocks,) the configuration that a block is part of, where configurations are resampled whole; else None.
    """

    block: IntArray
    window: IntArray
    replica: IntArray | None = None

    def draw(self, rng: np.random.Generator) -> Array:
        """Return random weights (n_blocks,) that average to 1 over the rows of every window."""
        if self.replica is not None:
            n = int(self.replica.max()) + 1
            out = n * rng.dirichlet(np.full(n, (n - 2) / n))[self.replica] + 1e-9
            rows = np.bincount(self.block, minlength=len(out)).astype(float)
            total = np.bincount(self.window, rows) / np.maximum(np.bincount(self.window, rows * out), 1e-300)
            return np.asarray(out * total[self.window])
        out = np.ones(len(self.window))
        for window in np.unique(self.window):
            members = np.flatnonzero(self.window == window)
            n = len(members)
            if n == 2:
                out[members] = rng.permutation([_FAINT, 2.0 - _FAINT])
            elif n > 2:
                out[members] = n * rng.dirichlet(np.full(n, (n - 2) / n))
        return out


def replica_problem(samples: BiasedSamples, given: object, temperature: float, energies: bool) -> tuple[BinnedStates, Sets, Array]:
    """Return what every replica solves again: binned states, their connected sets, and the free energies to start from.

    Where rows came from further states (``given``, an :class:`~couloir.analysis.mbar.MbarResult`), every row is its own bin: such
    states know their reduced potential on rows, not in bins of the CVs.
    """
    if not isinstance(given, MbarResult) or not len(given.sampled_states):
        states = bin_states(samples, temperature=temperature, energies=energies)
        sets, solution, _ = solve_connected(states, samples)
        return states, sets, solution.free_energies
    mixture = Mixture(samples, temperature, True, given.states)
    windows, everything = np.arange(samples.n_windows), slice(None)
    rows = BinnedStates(
        np.arange(len(samples)), samples.values, samples.names, mixture.potentials(windows.tolist(), everything),
        mixture.unbiased(everything), samples.counts.astype(float),
    )  # fmt: skip
    return rows, given.sets, given.free_energies[windows] - mixture.offsets[windows]


def make_blocks(samples: BiasedSamples, inefficiency: Array | None = None) -> Blocks:
    """Return blocks of each window: pieces of its walkers, whole walkers, or whole configurations (see the module's text)."""
    if replicas_disagree(samples) and len(np.unique(samples.replicas)) > 2:
        replica = np.unique(samples.replicas, return_inverse=True)[1]
        pairs, block = np.unique(np.stack([samples.window, replica], axis=1), axis=0, return_inverse=True)
        return Blocks(block.ravel(), pairs[:, 0], pairs[:, 1])
    g = inefficiencies(samples) if inefficiency is None else inefficiency
    apart = walkers_disagree(samples)[1]
    block = np.empty(len(samples), dtype=np.int64)
    window: list[int] = []
    groups: dict[int, list[IntArray]] = {}
    for w, _, rows in walkers(samples):
        groups.setdefault(w, []).append(rows)
    for w, members in groups.items():
        whole = len(members) > 1 and (len(members) >= MANY_WALKERS or bool(apart[w].any()))
        n_rows = sum(len(rows) for rows in members)
        length = max(BLOCK_LENGTH * g[w], n_rows / MOST_BLOCKS)
        for rows in members:
            n = 1 if whole else max(1, int(len(rows) / length))
            if len(members) == 1 and not whole:
                n = max(n, min(2, len(rows)))
            block[rows] = len(window) + (np.arange(len(rows)) * n) // len(rows)
            window += [w] * n
    return Blocks(block, np.array(window, dtype=np.int64))


def replicas(
    samples: BiasedSamples,
    states: BinnedStates,
    sets: Sets,
    start: Array,
    cell: IntArray,
    n_cells: int,
    *,
    n: int,
    seed: int,
    fixed: Array | None = None,
    neighbours: Neighbours | None = None,
    values: Array | None = None,
) -> Array:
    """Return ``n`` replicas of the probability of each cell, (n, n_cells), up to a factor per replica.

    With ``values`` they are replicas of the weighted sums of those values in each cell, (n, n_values, n_cells).

    Parameters
    ----------
    states, sets, start : the binned problem, its connected sets and its solution (n_windows,), where each replica starts.
    cell : (n_rows,) the cell each row falls in; negative for rows outside of all.
    n_cells : number of cells.
    seed : of the random weights.
    fixed : (n_rows,) weights of rows that replicas keep, instead of solving again.
    neighbours : windows that disagree.
    values : (n_rows, n_values) to sum up, instead of counting rows.
    """
    blocks = make_blocks(samples)
    rng = stream(seed, "bootstrap")
    owner = set_of_windows(sets, samples.n_windows)[samples.window]
    n_bins = len(states.means)
    bin_key, bin_weight = _pairs(blocks.block, owner * n_bins + states.index, len(sets) * n_bins, fixed)
    inside = np.flatnonzero(cell >= 0)
    middle = owner[inside] * n_bins + states.index[inside]
    triple = blocks.block[inside] * (len(sets) * n_bins) + middle
    columns = np.ones((len(inside), 1)) if values is None else np.asarray(values, dtype=float)[inside]
    if fixed is not None:
        columns = columns * fixed[inside, None]
    sums = [_pairs(triple, cell[inside], n_cells, column) for column in columns.T]
    cell_key, cell_weights = sums[0][0], [weight for _, weight in sums]
    triple_block, triple_bin = np.divmod(cell_key // n_cells, len(sets) * n_bins)
    triple_cell = cell_key % n_cells
    out = np.empty((n, len(cell_weights), n_cells))
    for i in range(n):
        w = blocks.draw(rng)
        # Offsets act on the weights of cells, after the equations were solved.
        moved = w if neighbours is None else w * np.exp(neighbours.draw(rng, samples.n_windows))[blocks.window]
        if fixed is not None:
            total = np.bincount(bin_key // (len(sets) * n_bins), bin_weight, len(w)) @ w
            out[i] = [np.bincount(triple_cell, weight * moved[triple_block], n_cells) / total for weight in cell_weights]
            continue
        counts = np.bincount(bin_key % (len(sets) * n_bins), bin_weight * w[bin_key // (len(sets) * n_bins)], len(sets) * n_bins)
        solution = solve_dual(states, counts.reshape(len(sets), n_bins).astype(float), sets, start=start, tolerance=1e-4)
        weights = np.exp(solution.log_weights).ravel()
        factor = moved[triple_block] * weights[triple_bin]
        out[i] = [np.bincount(triple_cell, weight * factor, n_cells) for weight in cell_weights]
    return out[:, 0] if values is None else out


def _pairs(first: IntArray, second: IntArray, n_second: int, weights: Array | None) -> tuple[IntArray, Array]:
    """Return the distinct pairs as ``first * n_second + second`` and how many rows (or how much weight) each has."""
    key, inverse = np.unique(first * n_second + second, return_inverse=True)
    return key, np.bincount(inverse, weights, len(key)).astype(float)
