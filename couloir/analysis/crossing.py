"""Crossing probabilities, flux and rate constants from paths that interfaces sort into ensembles.

State A is where the order parameter lies below the first interface, at frames.  A path of ensemble i, [i+], starts with one
frame in A, stays out of A, and ends with one frame in A or in B; its maximum reaches interface i.  A path of [0-] is the time
between: one frame out of A, frames in A, one frame out of A.  Lengths count all frames, with both ends; the time a path takes
is that of the frames between its ends, so that a long trajectory that comes from A is cut into [0-] and [0+] paths that share
no time.  Weights of paths are those of :mod:`couloir.analysis.path_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from couloir.analysis.interface_drift import drift
from couloir.analysis.interface_samples import MINUS, InterfaceSamples
from couloir.analysis.path_weights import PathWeights, path_weights
from couloir.analysis.positive import PositiveEstimate, ShareEstimate, quantile
from couloir.errors import DataError, Finding
from couloir.trajectory import Array

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

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
    local, local_error : (n,) P(next interface | interface); the last entry is P(B | last interface), or P(B) over P(last interface)
        where B can also be reached around it.
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
        lines = [f"CrossingProbability along {self.along}: P(B | {self.interfaces[0]:g}) = {self.total}"]
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
    time_in, time_out = path_times(samples, weights)
    flux = 1.0 / (time_in + time_out)
    return InterfaceRate(
        positive(flux * total, "1/ps", weights.freedom),
        positive(flux, "1/ps", weights.freedom),
        crossing,
        positive(time_in, "ps", weights.freedom),
        positive(time_out, "ps", weights.freedom),
        crossing.findings,
    )


def path_times(samples: InterfaceSamples, weights: PathWeights) -> tuple[Array, Array]:
    """Return replicas (1 + n_bootstrap,) of the mean time of a path of [0-] and of [0+] between its ends, ps."""
    minus, plus = np.flatnonzero(samples.ensemble == MINUS), np.flatnonzero(samples.ensemble != MINUS)
    time_in, time_out = (samples.stride * weights.sums(rows, samples.inside[rows])[:, 0] for rows in (minus, plus))
    return time_in, time_out


def require_minus(samples: InterfaceSamples) -> None:
    """Raise DataError when there are no paths of [0-]."""
    if not (samples.ensemble == MINUS).any():
        raise DataError("there are no paths of [0-]: the time spent in A is unknown", "sample the ensemble -1 too")


def share(replicas: Array) -> ShareEstimate:
    """Return the first entry of ``replicas`` (1 + n_bootstrap,) with the spread of the others as its error; NaN where unknown."""
    draws = replicas[1:][np.isfinite(replicas[1:])]
    return ShareEstimate(float(replicas[0]), float(draws.std(ddof=1)) if len(draws) > 1 else float("nan"), "")


def positive(replicas: Array, unit: str, freedom: float) -> PositiveEstimate:
    """Return the same of a positive quantity, with the error of its logarithm; infinite where a replica is 0.

    Errors are distances of replicas from the estimate, not from their own mean: with few blocks all of them may lie far below a
    product of rare probabilities, close together.
    """
    value, draws = float(replicas[0]), replicas[1:][np.isfinite(replicas[1:])]
    if len(draws) < 2:
        return PositiveEstimate(value, float("nan"), unit, float("inf"), freedom)
    known = value > 0 and bool((draws > 0).all())
    spread = float(np.sqrt(np.mean(np.log(draws / value) ** 2))) if known else float("inf")
    return PositiveEstimate(value, float(np.sqrt(np.mean((draws - value) ** 2))), unit, spread, freedom)


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
    curve = tail[first]
    findings = (*samples.findings, *weights.findings, *drift(samples), *_rare(samples, reach[0], levels, curve))
    known = reach[:, :-1]
    found = CrossingProbability(
        samples.along, samples.unit, samples.interfaces, known[0], _distance(known), _distance(np.log(np.maximum(known, 1e-300))), local[0],
        _distance(local), positive(total, "", weights.freedom), levels, curve, weights.freedom, findings,
    )  # fmt: skip
    return found, total


def _distance(replicas: Array) -> Array:
    """Return the root mean square distance of replicas (1 + n_bootstrap, n) from the first: see :func:`positive`."""
    return np.asarray(np.sqrt(np.mean((replicas[1:] - replicas[0]) ** 2, axis=0)))


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
