"""Crossing probabilities, flux and rate constants from paths that interfaces sort into ensembles.

State A is where the order parameter lies below the first interface, at frames.  A path of ensemble i, [i+], starts with one
frame in A, stays out of A, and ends with one frame in A or in B; its maximum reaches interface i.  A path of [0-] is the time
between: one frame out of A, frames in A, one frame out of A.  Lengths count all frames, with both ends; the time a path takes
is that of the frames between its ends, so that a long trajectory that comes from A is cut into [0-] and [0+] paths that share
no time.

Paths of [i+] are paths of [0+] that are seen only if their maximum reaches interface i.  With M_k paths whose maximum lies
between interfaces k and k+1 and n_i paths of ensemble i, WHAM (Rogal, Lechner, Juraszek, Ensing & Bolhuis, J. Chem. Phys. 133,
174109 (2010), eqs. 12-14) gives each of these the weight w_k = 1 / sum_{i<=k} n_i / P_i, with P_i = sum_{k>=i} M_k w_k.
Interfaces are ordered, so this has a solution in closed form.  With R_k the paths of ensembles 0..k that reach interface k,

    P_{k+1} = P_k (R_k - M_k) / R_k,    w_k = P_k / R_k,

because R_{k+1} = R_k - M_k + n_{k+1} makes R_k / P_k grow by n_{k+1} / P_{k+1}.  It is the product-limit estimator of Lynden-Bell
(Mon. Not. R. Astron. Soc. 155, 95 (1971)) for truncated data, hence the likeliest distribution of maxima.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from couloir.analysis.bootstrap import MANY_WALKERS, MOST_BLOCKS, Blocks
from couloir.analysis.interface_samples import MINUS, InterfaceSamples
from couloir.analysis.positive import PositiveEstimate, quantile
from couloir.analysis.samples import IntArray
from couloir.analysis.surface import Estimate
from couloir.analysis.timeseries import statistical_inefficiency
from couloir.errors import DataError, Finding
from couloir.streams import stream
from couloir.trajectory import Array

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FEW_BLOCKS = 8
"""Blocks of an ensemble below which its errors are uncertain."""
BLOCK_LENGTH = 8
"""Length of a block in statistical inefficiencies: what neighbours share makes errors too small by about 3 %."""
RARE = 0.05
"""Probability to reach the next interface below which another one between is worth its cost."""


@dataclass(frozen=True, eq=False)
class CrossingProbability:
    """Probability that a path that leaves A reaches a value of the order parameter before it returns.

    Attributes
    ----------
    along, unit : of the order parameter.
    interfaces : (n,) where.
    probability, standard_error : (n,) P(interface | first interface); the first is 1 exactly.
    relative_error : (n,) standard error of ln ``probability``.
    local, local_error : (n,) P(next interface | interface); the last entry is P(B | last interface).
    total : P(B | first interface).
    levels, curve : (n_levels,) maxima that paths reached, ascending, and the probability to reach each.
    freedom : degrees of freedom of the errors.
    findings : what is unsure.
    """

    along: str
    unit: str
    interfaces: Array
    probability: Array
    standard_error: Array
    relative_error: Array
    local: Array
    local_error: Array
    total: PositiveEstimate
    levels: Array
    curve: Array
    freedom: float
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        rows = zip(self.interfaces, self.probability, self.standard_error, self.local, self.local_error, strict=True)
        lines = [f"CrossingProbability along {self.along}: P(B | {self.interfaces[0]:g}) = {self.total}".rstrip()]
        lines.append(f"  {'interface':>10} {'P':>10} {'error':>9} {'P(next)':>9} {'error':>9}")
        lines += [f"  {x:10.4g} {p:10.3e} {e:9.1e} {q:9.4f} {s:9.4f}" for x, p, e, q, s in rows]
        return "\n".join([*lines, *map(str, self.findings)])

    @property
    def interval(self) -> tuple[Array, Array]:
        """The 95 % intervals of ``probability``, (n,) each, log-normal."""
        factor = np.exp(quantile(self.freedom) * self.relative_error)
        return self.probability / factor, self.probability * factor

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per interface."""
        import pandas as pd

        low, high = self.interval
        return pd.DataFrame({
            "interface": self.interfaces, "probability": self.probability, "standard_error": self.standard_error, "low": low,
            "high": high, "local": self.local, "local_error": self.local_error,
        })  # fmt: skip

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the probability to reach each value, with the 95 % intervals at interfaces, on a logarithmic axis; returns the axes."""
        from couloir.analysis.plots import _LINE, _axes, label

        ax = _axes(ax)
        ax.plot(self.levels, self.curve, color=_LINE, linewidth=1.3, drawstyle="steps-pre")
        low, high = self.interval
        bars = np.array([self.probability - low, high - self.probability])
        ax.errorbar(self.interfaces, self.probability, bars, fmt="o", color=_LINE, markersize=4, capsize=2, label="interfaces, 95 %")
        ax.set_yscale("log")
        ax.set_xlabel(label(self.along, self.unit))
        ax.set_ylabel("probability to reach")
        ax.legend(frameon=False)
        return ax


@dataclass(frozen=True, eq=False)
class InterfaceRate:
    """Rate constant out of A: flux through the first interface times the probability to reach B from there.

    Attributes
    ----------
    rate, flux : per ps spent in the overall state A (since the last visit of A, B was not entered).
    crossing : probabilities to reach interfaces and B.
    time_in, time_out : mean time of a path of [0-] and of [0+] between its ends, ps.
    findings : what is unsure.
    """

    rate: PositiveEstimate
    flux: PositiveEstimate
    crossing: CrossingProbability
    time_in: PositiveEstimate
    time_out: PositiveEstimate
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        low, high = self.rate.interval
        head = f"InterfaceRate: k = {self.rate} (95 %: {low:.3g} to {high:.3g})"
        parts = f"  flux {self.flux}, in A {self.time_in}, out of A {self.time_out}"
        return "\n".join([head, parts, str(self.crossing)])

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per quantity: the rate, the flux, P(B | first interface) and the times in and out of A."""
        import pandas as pd

        parts = {"rate": self.rate, "flux": self.flux, "crossing": self.crossing.total}
        parts |= {"time_in": self.time_in, "time_out": self.time_out}
        return pd.DataFrame([
            {"quantity": name, "value": e.value, "error": e.standard_error, "low": e.interval[0], "high": e.interval[1], "unit": e.unit}
            for name, e in parts.items()
        ])  # fmt: skip

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the crossing probability; see :meth:`CrossingProbability.plot`."""
        return self.crossing.plot(ax)


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
    at_risk = np.cumsum(entered[:, 1:], axis=1) - np.cumsum(ended[:, 1:], axis=1) + ended[:, 1:]
    local = 1.0 - ended[:, 1:-1] / at_risk[:, :-1]
    reach = np.asarray(np.cumprod(np.column_stack([np.ones(len(local)), local]), axis=1), dtype=np.float64)
    plus = reach / at_risk
    minus = np.divide(1.0, entered[:, 0], out=np.zeros(len(entered)), where=entered[:, 0] > 0)
    findings = _findings(samples, blocks)
    freedom = max(1, int(np.bincount(blocks.window).min()) - 1)
    return PathWeights(group, blocks.block, factors, np.column_stack([minus, plus]), reach, findings, freedom)


def crossing_probability(samples: InterfaceSamples, *, n_bootstrap: int = 200, seed: int = 0) -> CrossingProbability:
    """Return the probability to reach each interface, and B, from the first interface, using every path of every ensemble.

    Parameters
    ----------
    samples : paths of interface ensembles.
    n_bootstrap, seed : replicas for the errors; see :func:`path_weights`.

    Raises
    ------
    DataError : an interface is reached by no path of the ensembles before it.
    """
    return _crossing(samples, path_weights(samples, n_bootstrap=n_bootstrap, seed=seed))[0]


def interface_rate(samples: InterfaceSamples, *, n_bootstrap: int = 200, seed: int = 0) -> InterfaceRate:
    """Return the rate constant k_AB = flux * P(B | first interface) with its parts.

    The flux is 1 / (<t of [0-]> + <t of [0+]>) (van Erp, Phys. Rev. Lett. 98, 268301 (2007), eq. 3) with times between the ends
    of paths: (length - 2) strides.  The mean over [0+] uses the paths of all ensembles with their weights.

    Parameters
    ----------
    samples : paths of [0-] and of interface ensembles.
    n_bootstrap, seed : replicas for the errors; see :func:`path_weights`.

    Raises
    ------
    DataError : there are no paths of [0-], or an interface is reached by no path of the ensembles before it.
    """
    require_minus(samples)
    weights = path_weights(samples, n_bootstrap=n_bootstrap, seed=seed)
    crossing, total = _crossing(samples, weights)
    minus, plus = np.flatnonzero(samples.ensemble == MINUS), np.flatnonzero(samples.ensemble != MINUS)
    time_in, time_out = (samples.stride * weights.sums(rows, samples.inside[rows])[:, 0] for rows in (minus, plus))
    flux = 1.0 / (time_in + time_out)
    return InterfaceRate(
        positive(flux * total, "1/ps", weights.freedom),
        positive(flux, "1/ps", weights.freedom),
        crossing,
        positive(time_in, "ps", weights.freedom),
        positive(time_out, "ps", weights.freedom),
        crossing.findings,
    )


def require_minus(samples: InterfaceSamples) -> None:
    """Raise DataError when there are no paths of [0-]."""
    if not (samples.ensemble == MINUS).any():
        raise DataError("there are no paths of [0-]: the time spent in A is unknown", "sample the ensemble -1 too")


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


def estimate(replicas: Array, unit: str) -> Estimate:
    """Return the first entry of ``replicas`` (1 + n_bootstrap,) with the spread of the others as its error; NaN where unknown."""
    draws = replicas[1:][np.isfinite(replicas[1:])]
    return Estimate(float(replicas[0]), float(draws.std(ddof=1)) if len(draws) > 1 else float("nan"), unit)


def positive(replicas: Array, unit: str, freedom: float) -> PositiveEstimate:
    """Return the same of a positive quantity, with the spread of the replicas' logarithms; infinite where a replica is 0."""
    plain = estimate(replicas, unit)
    draws = replicas[1:][np.isfinite(replicas[1:])]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = float(np.log(draws).std(ddof=1)) if len(draws) > 1 and (draws > 0).all() else float("inf")
    return PositiveEstimate(plain.value, plain.standard_error, unit, spread, freedom)


def _crossing(samples: InterfaceSamples, weights: PathWeights) -> tuple[CrossingProbability, Array]:
    """Return the crossing probabilities, and replicas of the total."""
    plus = np.flatnonzero(samples.ensemble != MINUS)
    total = weights.sums(plus, samples.ends_in_b[plus].astype(float))[:, 0]
    reach = np.column_stack([weights.reach, total])
    with np.errstate(divide="ignore", invalid="ignore"):
        local = reach[:, 1:] / reach[:, :-1]
    order = plus[np.argsort(samples.maximum[plus], kind="stable")]
    levels, first = np.unique(samples.maximum[order], return_index=True)
    tail = np.cumsum(weights.per_path[order][::-1])[::-1]
    curve, spread = tail[first], np.log(np.maximum(reach[1:, :-1], 1e-300)).std(axis=0, ddof=1)
    findings = (*samples.findings, *weights.findings, *_rare(samples, reach[0], levels, curve))
    found = CrossingProbability(
        samples.along, samples.unit, samples.interfaces, reach[0, :-1], reach[1:, :-1].std(axis=0, ddof=1), spread, local[0],
        local[1:].std(axis=0, ddof=1), positive(total, "", weights.freedom), levels, curve, weights.freedom, findings,
    )  # fmt: skip
    return found, total


def _rare(samples: InterfaceSamples, reach: Array, levels: Array, curve: Array) -> tuple[Finding, ...]:
    """Return what to do about interfaces whose next one (the last one's is B) few paths reach."""
    found = []
    for i, (here, beyond) in enumerate(pairwise(reach)):
        if not 0 < beyond < RARE * here:
            continue
        # halfway in the logarithm both parts are as likely
        between = levels[(levels > samples.interfaces[i]) & (curve <= np.sqrt(here * beyond))]
        goal = f"the interface at {samples.interfaces[i + 1]:.4g}" if i + 1 < len(samples.interfaces) else "B"
        text = f"of the paths beyond {samples.along} = {samples.interfaces[i]:.4g}, {beyond / here:.2g} reach {goal}"
        place = f" at {samples.along} = {between[0]:.4g}" if len(between) else ""
        found.append(Finding("rare-crossing", text, f"insert an interface{place}"))
    return tuple(found)


def _per_block(blocks: Blocks, column: IntArray, n: int) -> Array:
    """Return how many paths of each column each block holds, (n_blocks, n)."""
    size = len(blocks.window)
    return np.bincount(blocks.block * n + column, minlength=size * n).reshape(size, n).astype(float)


def _reached(samples: InterfaceSamples, i: int) -> bool:
    """Whether a path that interface ``i`` did not select shows the probability to reach it."""
    earlier = (samples.ensemble >= 0) & (samples.ensemble < max(i, 1))
    return bool((samples.maximum[earlier] >= samples.interfaces[i]).any())


def _memory(samples: InterfaceSamples, chains: list[int]) -> float:
    """Return the steps chains need to forget their path in the slowest ensemble: a mean over chains, as short ones are noisy."""
    worst = 1.0
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


def _findings(samples: InterfaceSamples, blocks: Blocks) -> tuple[Finding, ...]:
    found = []
    few = [i for i in np.unique(samples.ensemble) if len(np.unique(blocks.block[samples.ensemble == i])) < FEW_BLOCKS]
    if few:
        names = ", ".join("[0-]" if i == MINUS else f"[{i}+]" for i in few)
        found.append(
            Finding("few-blocks", f"{names}: fewer than {FEW_BLOCKS} independent blocks, errors are uncertain", "sample more steps")
        )
    if not samples.ends_in_b[samples.ensemble != MINUS].any():
        found.append(
            Finding("no-reactive-path", "no path ends in B: the probability to reach it is 0 with unknown error", "add interfaces")
        )
    return tuple(found)
