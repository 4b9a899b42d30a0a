"""The reweighted path ensemble: every path of every interface ensemble with the weight it has in a long trajectory.

A long trajectory in equilibrium is cut at first frames in and out of the states into paths that share no frame between their
ends.  Paths that come from A follow from A's ensembles, with their WHAM weights (:mod:`couloir.analysis.path_weights`), paths that
come from B from B's; as many transitions lead from A to B as back, so each side counts with 1 / P(other state | first interface).
Sums over frames between the ends, so weighted, are averages over time (Rogal, Lechner, Juraszek, Ensing & Bolhuis, J. Chem.
Phys. 133, 174109 (2010), eqs. 16-20).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.analysis.crossing import positive, require_minus, share
from couloir.analysis.interface_drift import drift
from couloir.analysis.interface_samples import MINUS, InterfaceSamples
from couloir.analysis.path_weights import PathWeights, path_weights
from couloir.analysis.positive import PositiveEstimate, ShareEstimate
from couloir.analysis.samples import IntArray
from couloir.analysis.surface import FreeEnergySurface
from couloir.errors import DataError, Finding
from couloir.trajectory import Array
from couloir.units import GAS_CONSTANT, convert

if TYPE_CHECKING:
    from couloir.analysis.channels import Channels


@dataclass(frozen=True, eq=False)
class CommittorMap:
    """Committor along CVs, averaged over the frames in each cell.

    Attributes
    ----------
    names : of the CVs.
    grid : per CV, centres of its cells.
    committor, standard_error : on the grid; NaN where there are no frames.
    findings : what is unsure.
    """

    names: tuple[str, ...]
    grid: tuple[Array, ...]
    committor: Array
    standard_error: Array
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, eq=False)
class PathSide:
    """Paths that come from one state.

    Attributes
    ----------
    samples : their interface ensembles.
    weights : per crossing of the first interface.
    scale : (1 + n_bootstrap,) crossings per frame of the whole trajectory.
    from_b : whether the state is B; then paths flagged as ending in the other state end in A.
    """

    samples: InterfaceSamples
    weights: PathWeights
    scale: Array
    from_b: bool

    @property
    def hits(self) -> Array:
        """1 for paths that go on to B before A, else 0, (n_paths,); a path of [0-] lies in its own state."""
        crossed = self.samples.ends_in_b & (self.samples.ensemble != MINUS)
        return np.asarray(crossed != self.from_b, dtype=np.float64)

    def series(self, name: str) -> tuple[Array, ...]:
        """Return a CV along every path; raises DataError when it was not recorded."""
        if name not in self.samples.series:
            known = ", ".join(self.samples.series) or "none"
            raise DataError(
                f"paths from {'B' if self.from_b else 'A'} have no series of {name} (recorded: {known})", "record the CV along paths"
            )
        return self.samples.series[name]


@dataclass(frozen=True, eq=False)
class ReweightedPaths:
    """Paths of all ensembles with weights; averages over time follow.

    With paths from A alone, the "whole trajectory" is that in the overall state A: after A, before B.

    Attributes
    ----------
    sides : paths from A, and from B where given.
    findings : what is unsure.
    """

    sides: tuple[PathSide, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def stride(self) -> float:
        """Time between frames, ps."""
        return self.sides[0].samples.stride

    @property
    def weights(self) -> tuple[Array, ...]:
        """Per side, the weight (n_paths,) of every path; over all sides, weights times frames between the ends sum to 1."""
        return tuple(side.weights.per_path * side.scale[0] for side in self.sides)

    @property
    def reactive_flux(self) -> PositiveEstimate:
        """Transitions from A to B per ps of the whole trajectory."""
        freedom = min(side.weights.freedom for side in self.sides)
        return positive(self.sides[0].scale * _probability(self.sides[0]) / self.stride, "1/ps", freedom)

    @property
    def population(self) -> ShareEstimate:
        """Share of time in the overall state A; 1 without paths from B."""
        side = self.sides[0]
        return share(side.scale * _frames(side))

    @property
    def rates(self) -> tuple[PositiveEstimate, ...]:
        """Rate constants out of A, and out of B where given, 1/ps."""
        return tuple(positive(_probability(side) / (_frames(side) * self.stride), "1/ps", side.weights.freedom) for side in self.sides)

    def free_energy(
        self, along: str | Sequence[str], *, temperature: Any, bins: Any = 50, units: Mapping[str, str] | None = None
    ) -> FreeEnergySurface:
        """Return -kT ln p of the frames of the whole trajectory along one or two CVs.

        Parameters
        ----------
        along : names of series that every path has: see ``record`` of
            :meth:`couloir.sampling.TransitionInterfaceSampling.run` and :meth:`InterfaceSamples.with_series`.
        temperature : K, or text with a unit.
        bins : their number, or one number per CV, or evenly spaced edges per CV.
        units : of the CVs; default those recorded with the series.

        Raises
        ------
        DataError : a series is missing, or no frame is in the bins.
        """
        kT = GAS_CONSTANT * convert(temperature, "K", "temperature")
        names, edges = self._edges(along, bins)
        p = self._sums(names, edges)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            p = p / p.sum(axis=1, keepdims=True)
            f = np.where(p > 0, -kT * np.log(p), np.nan)
            error = f[1:].std(axis=0, ddof=1)
            n_effective = (p[0] / p[1:].std(axis=0, ddof=1)) ** 2
        f = f - np.nanmin(f, axis=1, keepdims=True)
        shape = tuple(len(e) - 1 for e in edges)
        periods = tuple(self.sides[0].samples.periods.get(name) for name in names)
        known = {**self.sides[0].samples.units, **(units or {})}
        findings = self.findings
        if len(self.sides) == 1:
            text = "without paths from B this is the density of the overall state A, too low towards B"
            findings = (*findings, Finding("one-sided", text, "give B's interface ensembles too"))
        return FreeEnergySurface(
            names, tuple(known.get(name, "") for name in names), periods, tuple((e[1:] + e[:-1]) / 2 for e in edges),
            f[0].reshape(shape), error.reshape(shape), kT, "reweighted path ensemble", f[1:].reshape(-1, *shape),
            n_effective.reshape(shape), findings,
        )  # fmt: skip

    def committor(self, along: str | Sequence[str], *, bins: Any = 50) -> CommittorMap:
        """Return the share of frames in each cell whose path goes on to B before A.

        With paths from A alone this is the mean over frames that came from A, which is the committor only where the CVs fix it.

        Parameters
        ----------
        along, bins : as for :meth:`free_energy`.

        Raises
        ------
        DataError : a series is missing.
        """
        names, edges = self._edges(along, bins)
        frames, hits = self._sums(names, edges)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = hits / frames
        shape = tuple(len(e) - 1 for e in edges)
        error = share[1:].std(axis=0, ddof=1)
        return CommittorMap(
            names, tuple((e[1:] + e[:-1]) / 2 for e in edges), share[0].reshape(shape), error.reshape(shape), self.findings
        )  # fmt: skip

    def channels(self, along: str | Sequence[str], n: int | None = None, *, points: int = 20) -> Channels:
        """Return groups of reactive paths from A that follow each other along CVs, with the share of the reactive flux each carries.

        Each CV along a path is read at ``points`` even fractions of the path's duration and divided by its spread over reactive paths
        (a periodic one becomes a point on a circle); the distance of two paths is Euclidean.  Paths are grouped by k-medoids, which
        start far from each other and move to the path of least summed distance until none moves.  Repeats of a path and its weight
        count in shares only.  Their errors are from the blocks that tell the error of the rate, or from how far chains lie apart
        where that is more: a chain may stay in a channel for long.

        Parameters
        ----------
        along : names of series, as for :meth:`free_energy`; each counts alike.
        n : number of channels; None takes that of 2 to 6 with the largest mean silhouette, or 1 if that is below 1/2.
        points : per path.

        Raises
        ------
        DataError : no path reaches B, a series is missing, there are fewer than ``n`` different reactive paths, or no CVs.
        """
        from couloir.analysis.channels import weighted_channels

        return weighted_channels(self, along, n, points=points)

    def _edges(self, along: str | Sequence[str], bins: Any) -> tuple[tuple[str, ...], list[Array]]:
        names = (along,) if isinstance(along, str) else tuple(along)
        if len(names) not in (1, 2):
            raise DataError(f"a map runs along one CV or two, not {len(names)}")
        wanted = (
            [bins] * len(names) if isinstance(bins, int) else [bins] if isinstance(along, str) and np.ndim(bins[0]) == 0 else list(bins)
        )
        out = []
        for name, b in zip(names, wanted, strict=True):
            if np.ndim(b) == 1:
                edges = np.array(b, dtype=np.float64)
                if len(edges) < 2 or not (np.diff(edges) > 0).all():
                    raise DataError(f"the edges of the bins along {name} do not increase", "give a number of bins, or increasing edges")
                out.append(edges)
                continue
            period = self.sides[0].samples.periods.get(name)
            values = [np.concatenate([v[1:-1] for v in side.series(name)]) for side in self.sides]
            low, high = (min(v.min() for v in values), max(v.max() for v in values)) if period is None else (-period / 2, period / 2)
            out.append(np.linspace(low, high, int(b) + 1))
        return names, out

    def _sums(self, names: tuple[str, ...], edges: list[Array]) -> tuple[Array, Array]:
        """Return time per cell, and time there before going on to B, both (1 + n_bootstrap, n_cells)."""
        shape = tuple(len(e) - 1 for e in edges)
        n_cells = int(np.prod(shape))
        frames: Array = np.zeros((len(self.sides[0].scale), n_cells))
        hits = np.zeros_like(frames)
        for side in self.sides:
            row = np.repeat(np.arange(len(side.samples)), side.samples.inside)
            along = [np.concatenate([v[1:-1] for v in side.series(name)]) for name in names]
            cell, inside = _cells(along, edges)
            row, cell = row[inside], cell[inside]
            scale = side.scale[:, None]
            frames += scale * side.weights.sums(row, np.ones(len(row)), cell, n_cells)
            hits += scale * side.weights.sums(row, side.hits[row], cell, n_cells)
        return frames, hits


def reweighted_paths(
    from_a: InterfaceSamples, from_b: InterfaceSamples | None = None, *, n_bootstrap: int = 200, seed: int = 0
) -> ReweightedPaths:
    """Return the reweighted path ensemble of paths from A, and from B where given.

    Parameters
    ----------
    from_a : paths of A's ensembles, [0-] included.
    from_b : the same seen from B: its order parameter grows towards A (minus that of A, say), and ``ends_in_b`` flags paths that
        end in A.  Series have the same names and meaning as for A.
    n_bootstrap, seed : replicas for errors; the two sides are resampled independently.

    Raises
    ------
    DataError : a side has no paths of [0-] or none that reaches the other state, or strides differ.
    """
    given = [from_a] if from_b is None else [from_a, from_b]
    if len({round(s.stride, 12) for s in given}) > 1:
        raise DataError("the two sides differ in the time between frames", "use one stride")
    sides = []
    for i, samples in enumerate(given):
        require_minus(samples)
        if len(given) == 2 and not samples.ends_in_b[samples.ensemble != MINUS].any():
            raise DataError(f"no path from {'AB'[i]} reaches the other state: the two sides cannot be joined", "sample higher interfaces")
        weights = path_weights(samples, n_bootstrap=n_bootstrap, seed=seed, label=("from A", "from B")[i])
        sides.append(PathSide(samples, weights, np.ones(n_bootstrap + 1), i == 1))
    # As many transitions go from A to B as back.
    per_crossing = [1.0 / _probability(side) if len(sides) == 2 else side.scale for side in sides]
    total = sum((c * _frames(side) for c, side in zip(per_crossing, sides, strict=True)), np.zeros(n_bootstrap + 1))
    joined = tuple(PathSide(side.samples, side.weights, c / total, side.from_b) for c, side in zip(per_crossing, sides, strict=True))
    return ReweightedPaths(
        joined, tuple(f for side in joined for f in (*side.samples.findings, *side.weights.findings, *drift(side.samples)))
    )


def _probability(side: PathSide) -> Array:
    """Return replicas of the probability to reach the other state from the first interface."""
    rows = np.flatnonzero(side.samples.ensemble != MINUS)
    return np.asarray(side.weights.sums(rows, side.samples.ends_in_b[rows])[:, 0])


def _frames(side: PathSide) -> Array:
    """Return replicas of the frames per crossing, in the state and out of it."""
    return np.asarray(side.weights.sums(np.arange(len(side.samples)), side.samples.inside)[:, 0])


def _cells(along: list[Array], edges: list[Array]) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Return the cell of each frame, the last CV fastest, and whether it is in any."""
    index = [np.searchsorted(e, x, side="right") - 1 for x, e in zip(along, edges, strict=True)]
    # the upper edge belongs to the last bin
    index = [np.where(x == e[-1], len(e) - 2, i) for i, x, e in zip(index, along, edges, strict=True)]
    inside = np.all([(i >= 0) & (i < len(e) - 1) for i, e in zip(index, edges, strict=True)], axis=0)
    cell = np.zeros(len(along[0]), dtype=np.int64)
    for i, e in zip(index, edges, strict=True):
        cell = cell * (len(e) - 1) + i
    return cell, inside
