"""Weights of paths by the interfaces they reach: WHAM over interface ensembles, in closed form, with replicas for errors.

Paths of [i+] are paths of [0+] that are seen only if their maximum reaches interface i.  With M_k paths whose maximum lies
between interfaces k and k+1 and n_i paths of ensemble i, WHAM (Rogal, Lechner, Juraszek, Ensing & Bolhuis, J. Chem. Phys. 133,
174109 (2010), eqs. 12-14) gives each of these the weight w_k = 1 / sum_{i<=k} n_i / P_i, with P_i = sum_{k>=i} M_k w_k.
Interfaces are ordered, so this has a solution in closed form.  With R_k the paths of ensembles 0..k that reach interface k,

    P_{k+1} = P_k (R_k - M_k) / R_k,    w_k = P_k / R_k,

because R_{k+1} = R_k - M_k + n_{k+1} makes R_k / P_k grow by n_{k+1} / P_{k+1}.  It is the product-limit estimator of Lynden-Bell
(Mon. Not. R. Astron. Soc. 155, 95 (1971)) for truncated data, hence the likeliest distribution of maxima.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from couloir.analysis.bootstrap import MANY_WALKERS, MOST_BLOCKS, Blocks
from couloir.analysis.interface_samples import MINUS, InterfaceSamples, ensemble_name
from couloir.analysis.samples import IntArray
from couloir.analysis.timeseries import statistical_inefficiency
from couloir.errors import DataError, Finding
from couloir.streams import stream
from couloir.trajectory import Array

FEW_BLOCKS = 8
"""Blocks of an ensemble below which its errors are uncertain."""
BLOCK_LENGTH = 8
"""Length of a block in statistical inefficiencies: what neighbours share makes errors too small by about 3 %."""


@dataclass(frozen=True, eq=False)
class PathWeights:
    """Weights of paths by the interfaces they reach, with bootstrap replicas; the first row is the estimate itself.

    Attributes
    ----------
    group : (n_paths,) of each path: 0 for [0-], 1 + k for a path that reaches interface k and not the next.
    block : (n_paths,) block each path is resampled with.
    factors : (1 + n_bootstrap, n_blocks) random weight of each block; 1 in the first row.
    weights : (1 + n_bootstrap, 1 + n_interfaces) weight of one path of each group: those of [0-] add up to 1, so do all others.
    reach : (1 + n_bootstrap, n_interfaces) probability to reach each interface.
    findings : ensembles without paths or with few blocks.
    freedom : degrees of freedom of the errors: blocks of the smallest stratum less one.
    """

    group: IntArray
    block: IntArray
    factors: Array
    weights: Array
    reach: Array
    findings: tuple[Finding, ...]
    freedom: float

    @property
    def per_path(self) -> Array:
        """Weight of each path, (n_paths,)."""
        return np.asarray(self.weights[0, self.group])

    def sums(self, rows: IntArray, values: npt.ArrayLike, cell: IntArray | None = None, n_cells: int = 1) -> Array:
        """Return weighted sums in cells, (1 + n_bootstrap, n_cells).

        Parameters
        ----------
        rows : (n,) path each value belongs to.
        values : (n,) what is added up.
        cell : (n,) where; default all in one.
        """
        n_groups = self.weights.shape[1]
        keys, pair = np.unique(self.block[rows] * n_groups + self.group[rows], return_inverse=True)
        where = np.zeros(len(rows), dtype=np.int64) if cell is None else cell
        table = np.bincount(pair * n_cells + where, np.asarray(values, dtype=np.float64), len(keys) * n_cells).reshape(len(keys), n_cells)
        return np.asarray((self.factors[:, keys // n_groups] * self.weights[:, keys % n_groups]) @ table)


def path_weights(samples: InterfaceSamples, *, n_bootstrap: int = 200, seed: int = 0, label: str = "bootstrap") -> PathWeights:
    """Return the WHAM weights of all paths with replicas from blocks of chains.

    A block holds steps of one chain in all of its ensembles (replica exchange makes them depend on each other), eight times the
    steps the slowest ensemble needs to forget its path; from eight chains on, whole chains are resampled instead.

    Parameters
    ----------
    samples : paths of [0+] at least.
    n_bootstrap : replicas.
    seed, label : of the random weights of blocks: labels keep apart what is resampled independently.

    Raises
    ------
    DataError : an interface is reached by no path of the ensembles before it.
    """
    n = len(samples.interfaces)
    unreached = [i for i in range(n) if not _reached(samples, i)]
    if unreached:
        text = f"no path sampled below [{unreached[0]}+] reaches interface {unreached[0]}" if unreached[0] else "there are no paths of [0+]"
        raise DataError(text, "sample more paths of the ensembles before, or place interfaces closer")
    blocks = interface_blocks(samples)
    rng = stream(seed, label)
    factors = np.stack([np.ones(len(blocks.window)), *(blocks.draw(rng) for _ in range(n_bootstrap))])
    group = samples.bin + 1
    entered = _per_block(blocks, samples.ensemble + 1, n + 1)
    ended = _per_block(blocks, group, n + 1)
    entered, ended = factors @ entered, factors @ ended
    reach, plus = product_limit(entered[:, 1:], ended[:, 1:])
    minus = np.divide(1.0, entered[:, 0], out=np.zeros(len(entered)), where=entered[:, 0] > 0)
    findings = _findings(samples, blocks)
    freedom = max(1, int(np.bincount(blocks.window).min()) - 1)
    return PathWeights(group, blocks.block, factors, np.column_stack([minus, plus]), reach, findings, freedom)


def product_limit(entered: Array, ended: Array) -> tuple[Array, Array]:
    """Return the probability to reach each interface, and the weight of one path whose maximum lies between it and the next.

    Parameters
    ----------
    entered, ended : (..., n_interfaces) paths of each ensemble, and paths that reach each interface and not the next.
    """
    at_risk = np.cumsum(entered, axis=-1) - np.cumsum(ended, axis=-1) + ended
    local = 1.0 - ended[..., :-1] / at_risk[..., :-1]
    reach = np.cumprod(np.concatenate([np.ones_like(at_risk[..., :1]), local], axis=-1), axis=-1, dtype=np.float64)
    return reach, reach / at_risk


def interface_blocks(samples: InterfaceSamples) -> Blocks:
    """Return the blocks of chains that are resampled together, in strata of chains that visit the same ensembles."""
    block = np.empty(len(samples), dtype=np.int64)
    window: list[int] = []
    strata: dict[tuple[int, ...], list[int]] = {}
    for c in np.unique(samples.chain):
        strata.setdefault(tuple(np.unique(samples.ensemble[samples.chain == c]).tolist()), []).append(int(c))
    for number, chains in enumerate(strata.values()):
        memory = _memory(samples, chains)
        steps = {c: np.unique(samples.step[samples.chain == c]) for c in chains}
        n_steps = sum(map(len, steps.values()))
        length = max(BLOCK_LENGTH * memory, n_steps / MOST_BLOCKS)
        for c in chains:
            rows = np.flatnonzero(samples.chain == c)
            n = 1 if len(chains) >= MANY_WALKERS else max(1, int(len(steps[c]) / length))
            if len(chains) == 1:
                n = max(n, min(2, len(steps[c])))
            block[rows] = len(window) + np.searchsorted(steps[c], samples.step[rows]) * n // len(steps[c])
            window += [number] * n
    return Blocks(block, np.array(window, dtype=np.int64))


def _per_block(blocks: Blocks, column: IntArray, n: int) -> Array:
    """Return how many paths of each column each block holds, (n_blocks, n)."""
    size = len(blocks.window)
    return np.bincount(blocks.block * n + column, minlength=size * n).reshape(size, n).astype(float)


def _reached(samples: InterfaceSamples, i: int) -> bool:
    """Whether a path that interface ``i`` did not select shows the probability to reach it."""
    earlier = (samples.ensemble >= 0) & (samples.ensemble < max(i, 1))
    return bool((samples.maximum[earlier] >= samples.interfaces[i]).any())


def _memory(samples: InterfaceSamples, chains: list[int]) -> float:
    """Return the steps chains need to forget their path in the slowest ensemble: a mean over chains, as short ones are noisy.

    Where ensembles exchange paths, each forgets its own at once, and only how many paths of all reach an interface tells.
    """
    worst = _memory_of_all(samples, chains)
    levels = np.append(samples.interfaces, np.inf)
    for i in np.unique(samples.ensemble[np.isin(samples.chain, chains)]):
        found = []
        for c in chains:
            rows = np.flatnonzero((samples.chain == c) & (samples.ensemble == i))
            rows = rows[np.argsort(samples.step[rows], kind="stable")]
            top, low, length = samples.maximum[rows], samples.minimum[rows], samples.length[rows].astype(float)
            series = [length] if i == MINUS else [length, samples.ends_in_b[rows].astype(float), (top >= levels[i + 1]).astype(float)]
            found.append([statistical_inefficiency(x) for x in series])
            # A chain that is stuck has a constant series, which looks uncorrelated: repeats are never independent.
            moved = (np.diff(top) != 0) | (np.diff(low) != 0) | (np.diff(length) != 0)
            worst = max(worst, len(rows) / (1 + int(moved.sum())))
        worst = max(worst, float(np.mean(found, axis=0).max()))
    return worst


def _memory_of_all(samples: InterfaceSamples, chains: list[int]) -> float:
    """Return the slowest memory of what the paths of all ensembles are together, whichever ensemble holds which.

    It is that of how many reach an interface or B and how long all are, and at least the steps between changes of a path.
    """
    found: list[list[float]] = []
    stuck = 1.0
    for c in chains:
        rows = np.flatnonzero((samples.chain == c) & (samples.ensemble != MINUS))
        if not len(rows):
            continue
        steps, step = np.unique(samples.step[rows], return_inverse=True)
        reach = samples.maximum[rows, None] >= samples.interfaces
        columns = np.column_stack([reach, samples.ends_in_b[rows], samples.length[rows]]).T.astype(float)
        found.append([statistical_inefficiency(np.bincount(step, column).astype(float)) for column in columns])
        facts = [tuple(row) for row in np.column_stack([samples.maximum[rows], samples.minimum[rows], samples.length[rows]]).tolist()]
        held: list[Counter[tuple[float, ...]]] = [Counter() for _ in steps]
        for k, fact in zip(step, facts, strict=True):
            held[k][fact] += 1
        changes = sum((after - before).total() for before, after in pairwise(held))
        stuck = max(stuck, len(rows) / (1 + changes))
    return max(stuck, float(np.mean(found, axis=0).max())) if found else stuck


def _findings(samples: InterfaceSamples, blocks: Blocks) -> tuple[Finding, ...]:
    found = []
    few = [i for i in np.unique(samples.ensemble) if len(np.unique(blocks.block[samples.ensemble == i])) < FEW_BLOCKS]
    if few:
        names = ", ".join(ensemble_name(int(i)) for i in few)
        found.append(
            Finding("few-blocks", f"{names}: fewer than {FEW_BLOCKS} independent blocks, errors are uncertain", "sample more steps")
        )
    if not samples.ends_in_b[samples.ensemble != MINUS].any():
        found.append(
            Finding("no-reactive-path", "no path ends in B: the probability to reach it is 0 with unknown error", "add interfaces")
        )
    return tuple(found)
