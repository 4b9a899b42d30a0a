"""PathEnsemble: reactive paths sampled by Markov chains, with their weights, and averages over them with error bars.

A path that a chain keeps for several steps is listed once and counted as often (its multiplicity).  Paths that still
hold frames of the path their chain was started from carry no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from couloir.analysis import path_files
from couloir.analysis.path_density import PathDensity, path_density
from couloir.analysis.path_independence import n_effective_by_chains, path_means
from couloir.analysis.samples import IntArray
from couloir.analysis.surface import Estimate
from couloir.analysis.timeseries import scale_reduction, statistical_inefficiency
from couloir.cv.base import CollectiveVariable
from couloir.errors import DataError, Finding
from couloir.trajectory import Array, State, Trajectory

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from couloir.analysis.channels import Channels

Mask = npt.NDArray[np.bool_]
Observable = Callable[[Trajectory], float] | npt.ArrayLike

FEW = 5.0
"""Effectively independent paths per chain below which chains are not compared, and errors are uncertain."""
DISAGREE = 1.2
"""Potential scale reduction above which chains are said to sample different paths."""
_DRAWN = 50  # paths drawn in a figure


@dataclass(frozen=True, eq=False)
class PathEnsemble:
    """Paths that Markov chains visited, one entry per path a chain moved to.

    Attributes
    ----------
    paths : from A to B in time order.
    chain, step : (n,) which chain moved to the path, and at which step; step 0 is the path a chain was started from.
    multiplicity : (n,) steps the chain spent at the path, counting rejected moves from it.
    decorrelated : (n,) whether no frame of the path is a frame of the path its chain was started from.
    outcomes : per outcome of a move, how often each chain met it, (n_chains,).
    force_evaluations : steps of dynamics that were spent.
    findings : named warnings.
    shooting : (n,) the frame of each path that its dynamics was started from; -1 where it was not made by shooting.

    Raises
    ------
    DataError : there are no paths, the arrays are not one number per path, or strides differ.
    """

    paths: tuple[Trajectory, ...]
    chain: IntArray
    step: IntArray
    multiplicity: IntArray
    decorrelated: Mask
    outcomes: Mapping[str, IntArray]
    force_evaluations: int
    findings: tuple[Finding, ...] = ()
    shooting: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        n = len(self.paths)
        if n == 0:
            raise DataError("there are no paths")
        if not np.allclose([path.stride for path in self.paths], self.paths[0].stride):
            raise DataError("paths differ in the time between frames", "use paths of one stride")
        if not len(self.shooting):
            object.__setattr__(self, "shooting", np.full(n, -1))
        for name in path_files.ROWS:
            array = np.array(getattr(self, name), dtype=np.bool_ if name == "decorrelated" else np.int64)
            if array.shape != (n,):
                raise DataError(f"{name} has shape {array.shape}, expected ({n},): one entry per path")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if (self.multiplicity < 0).any():
            raise DataError("multiplicities must not be negative")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def stride(self) -> float:
        """Time between frames, ps."""
        return self.paths[0].stride

    @property
    def n_chains(self) -> int:
        """Number of chains."""
        return int(self.chain.max()) + 1

    @property
    def n_steps(self) -> int:
        """Steps each chain was moved."""
        return int(self.multiplicity.sum()) // self.n_chains

    @property
    def weights(self) -> Array:
        """Share of each path in averages, (n,): its multiplicity, 0 before decorrelation; sums to 1 (all 0 when none is decorrelated)."""
        counts = self.multiplicity * self.decorrelated
        return np.asarray(counts / max(1, int(counts.sum())), dtype=np.float64)

    @property
    def lengths(self) -> IntArray:
        """Number of frames of each path, (n,)."""
        return np.array([len(path) for path in self.paths], dtype=np.int64)

    @property
    def durations(self) -> Array:
        """Time from the last frame in A to the first frame in B, (n,) ps; of paths of fixed length, all of it."""
        return np.asarray((self.lengths - 1) * self.stride)

    @property
    def acceptance(self) -> float:
        """Share of all moves that were accepted; NaN before any move."""
        total = sum(int(counts.sum()) for counts in self.outcomes.values())
        return float(self.outcomes["accepted"].sum()) / total if total else float("nan")

    @property
    def n_effective(self) -> float:
        """Effectively independent decorrelated paths, judged by their durations (all alike: by repeats); 0 when none is decorrelated."""
        return self._n_effective(self._series(self.durations))

    def n_independent(self, cvs: Sequence[CollectiveVariable] = ()) -> float:
        """Return how many decorrelated paths are effectively independent by whatever tells the fewest: durations, or one of some CVs.

        By a CV, what counts is its mean over each path: how long a chain remembers it, and how far the means of chains lie
        apart (which alone shows chains that stay in channels of equal duration).

        Parameters
        ----------
        cvs : along which channels may differ.

        Returns
        -------
        At most :attr:`n_effective`; 0 when no path is decorrelated.
        """
        return min([self.n_effective, *(self._n_along(cv) for cv in cvs)])

    def values(self, observable: Observable) -> Array:
        """Return a number per path (n,): of a function of a path, or of an array that has them already.

        Raises
        ------
        DataError : there is not one finite number per path.
        """
        found = np.array([observable(path) for path in self.paths] if callable(observable) else observable, dtype=np.float64)
        if found.shape != (len(self),) or not np.isfinite(found).all():
            raise DataError(f"the observable has shape {found.shape}, expected one finite number for each of {len(self)} paths")
        return found

    def mean(self, observable: Observable, unit: str = "") -> Estimate:
        """Return the mean of an observable over decorrelated paths, repeats counted.

        The standard error is that of n/g independent paths, with g the largest statistical inefficiency of any chain (one
        that did not hop for a while looks fast) and no more of them than the slowest chain has paths for; or it follows
        from how far the chains' means lie apart where that is more.  It is infinite for a single independent path.

        Raises
        ------
        DataError : no path is decorrelated, or the observable is not one finite number per path.
        """
        self._decorrelated()
        series = self._series(self.values(observable))
        together = np.concatenate(series)
        mean = float(together.mean())
        n_effective = self._n_effective(series)
        error = float(together.std()) / np.sqrt(n_effective - 1) if n_effective > 1 else np.inf
        if len(series) > 1:
            share = np.array([len(s) for s in series]) / len(together)
            apart = share * (np.array([s.mean() for s in series]) - mean)
            error = max(error, float(np.sqrt((apart**2).sum() * len(series) / (len(series) - 1))))
        return Estimate(mean, float(error), unit)

    def density(self, cv: CollectiveVariable, bins: int | npt.ArrayLike = 50) -> PathDensity:
        """Return the density of frames of decorrelated paths along a CV; the end frames, which lie in A and B, are left out.

        Parameters
        ----------
        cv : where.
        bins : their number over all frames between the ends of paths (a whole period), or their edges in increasing order.

        Raises
        ------
        DataError : no path is decorrelated, the edges do not increase, or no frame is between them.
        """
        return path_density(self, cv, bins)

    def transition_states(self, n: int = 20, *, committor: CollectiveVariable | None = None, at: float | None = None) -> list[State]:
        """Return up to ``n`` frames of decorrelated paths that may be transition states; candidates, without weights.

        With a committor, the frame of each path where it is nearest to ``at``, ends left out.  It is as good as the model is.

        Without one, the shooting points of accepted moves.  Those of two-way and aimless moves fell to A on one side and to B
        on the other with fresh velocities, which has the probability 2 p_B (1 - p_B) without inertia: more often near
        p_B = 1/2 than elsewhere, but over a wide range (Peters & Trout, J. Chem. Phys. 125, 054108 (2006)).  Those of one-way
        moves are spread over the barrier as the frames of paths are.  A selector brings both nearer to the top.  Either way
        :func:`couloir.sampling.committor` decides.

        Parameters
        ----------
        n : at most one per path, evenly picked among the chains and steps.
        committor : a collective variable that tells how far a reaction went, such as a learned committor.
        at : its value at the transition state; default 1/2, or 0 for one that returns the logit of p_B.

        Raises
        ------
        DataError : ``n`` is not positive, no path is decorrelated, or none was made by shooting and there is no committor.
        """
        if n < 1:
            raise DataError(f"n = {n}, expected at least 1")
        rows = self._decorrelated()
        if committor is None:
            rows = rows[self.shooting[rows] >= 0]
            frames = self.shooting[rows]
            if not len(rows):
                raise DataError("no decorrelated path was made by shooting", "give a committor")
        else:
            top = at if at is not None else 0.0 if getattr(committor, "output", None) == "logit" else 0.5
            distance = [np.abs(np.asarray(committor.evaluate(self.paths[i].positions)) - top) for i in rows]
            frames = np.array([1 + int(np.argmin(d[1:-1])) for d in distance])
        picked = np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int))
        return [self.paths[rows[i]].state(int(frames[i])) for i in picked]

    def channels(self, cvs: Sequence[CollectiveVariable] | CollectiveVariable, n: int | None = None, *, points: int = 20) -> Channels:
        """Return groups of decorrelated paths that follow each other along CVs, with the share of transitions each carries.

        Paths are compared at ``points`` even fractions of their duration and grouped by k-medoids, see
        :func:`couloir.analysis.channels.channels`.  Shares are means over the chains like any other (:meth:`mean`): where chains
        never change channel, the error is that of how far they lie apart.

        Parameters
        ----------
        cvs : along which channels differ; each counts alike.
        n : number of channels; None takes that of 2 to 6 with the largest mean silhouette, or 1 if that is below 1/2.
        points : per path.

        Raises
        ------
        DataError : no path is decorrelated, there are fewer than ``n`` different ones, or no CVs.
        """
        from couloir.analysis.channels import ensemble_channels

        return ensemble_channels(self, cvs, n, points=points)

    def save(self, file: str | Path) -> None:
        """Write everything to one npz file (no pickles); it is replaced at once or not at all."""
        path_files.save(self, file)

    @classmethod
    def load(cls, file: str | Path) -> PathEnsemble:
        """Read what :meth:`save` wrote, bit for bit; raises DataError when the file is something else."""
        return cls(**path_files.load(file))

    def export(self, folder: str | Path, *, every_path: bool = False) -> list[Path]:
        """Write decorrelated paths for other programs: ``topology.pdb``, a DCD file each, and ``paths.csv`` with their weights.

        Positions are rounded to single precision, and velocities are left out: to go on from paths, use :meth:`save`.

        Parameters
        ----------
        folder : made if missing.
        every_path : also those that still hold frames of a first path.

        Returns
        -------
        The DCD files, named by chain and step.

        Raises
        ------
        DataError : there is no path to write, or no topology.
        """
        return path_files.export(self, folder, every_path=every_path)

    def diagnose(self, cvs: Sequence[CollectiveVariable] = ()) -> list[Finding]:
        """Return what is unsure: findings of the sampling, too few independent paths, and chains whose paths disagree.

        Parameters
        ----------
        cvs : of several chains, paths are independent only when the means of these over them are, too (:meth:`n_independent`): they
            tell channels apart that take as long.
        """
        found = list(self.findings)
        series = self._series(self.durations)
        n = self._n_effective(series)
        if series and n < FEW * len(series):
            text = f"{n:.1f} effectively independent paths from {len(series)} chains: errors are uncertain"
            found.append(Finding("few-independent-paths", text, "sample more steps"))
        elif len(series) > 1:
            ratio = scale_reduction(series, None).value
            if ratio > DISAGREE:
                text = f"the chains' paths differ in duration more than chance explains (R = {ratio:.2f})"
                found.append(Finding("chains-disagree", text, "sample more steps; chains may sit in different channels"))
        for cv in cvs if len(series) > 1 else ():
            n = self._n_along(cv)
            if n < FEW * len(series):
                text = f"{n:.1f} effectively independent paths from {len(series)} chains by {cv.name}: chains hardly change it"
                found.append(Finding("few-independent-paths", text, "sample more steps; chains may sit in different channels"))
        return found

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per path."""
        import pandas as pd

        return pd.DataFrame({
            "chain": self.chain, "step": self.step, "multiplicity": self.multiplicity, "decorrelated": self.decorrelated,
            "weight": self.weights, "frames": self.lengths, "duration_ps": self.durations,
        })  # fmt: skip

    def plot(self, cv: CollectiveVariable, ax: Axes | None = None) -> Axes:
        """Draw a CV along decorrelated paths (at most 50, evenly picked; all kinds when none is decorrelated); returns the axes."""
        from couloir.analysis.plots import _LINE, _axes, label

        ax = _axes(ax)
        pool = np.flatnonzero(self.weights > 0) if self.decorrelated.any() else np.arange(len(self))
        for i in pool[np.unique(np.linspace(0, len(pool) - 1, _DRAWN).astype(int))] if len(pool) else pool:
            y = np.array(cv.evaluate(self.paths[i].positions), dtype=np.float64)
            x = self.stride * np.arange(len(y), dtype=np.float64)
            if cv.period is not None:  # the line stops at the seam instead of crossing the figure
                seam = np.flatnonzero(np.abs(np.diff(y)) > cv.period / 2) + 1
                x, y = np.insert(x, seam, np.nan), np.insert(y, seam, np.nan)
            ax.plot(x, y, color=_LINE, alpha=0.25, linewidth=0.8)
        ax.set_xlabel(label("time since A", "ps"))
        ax.set_ylabel(label(cv.name, cv.unit))
        return ax

    def __str__(self) -> str:
        names = list(self.outcomes)
        lines = [
            f"PathEnsemble: {len(self)} paths ({int(self.decorrelated.sum())} decorrelated), "
            f"{self.n_chains} chains x {self.n_steps} steps, {self.force_evaluations} force evaluations",
            "  chain" + "".join(f"{name:>12}" for name in names) + f"{'decorrelated':>14}",
        ]
        for c in range(self.n_chains):
            free = self.step[(self.chain == c) & self.decorrelated]
            since = f"from step {free.min()}" if len(free) else "never"
            lines.append(f"  {c:>5}" + "".join(f"{self.outcomes[name][c]:>12}" for name in names) + f"{since:>14}")
        if self.weights.any():
            lines.append(f"  duration {self.mean(self.durations, 'ps')}, {self.n_effective:.0f} effectively independent paths")
        return "\n".join([*lines, *map(str, self.diagnose())])

    def _series(self, values: Array) -> list[Array]:
        """Return, per chain that has any, the values at its steps after decorrelation."""
        return [np.repeat(values[rows], self.multiplicity[rows]) for rows in self._rows()]

    def _decorrelated(self) -> IntArray:
        """Return which paths are decorrelated and counted, by chain and step; a DataError when none is."""
        rows = self._rows()
        if not rows:
            raise DataError("no path is decorrelated from the paths the chains were started from", "sample more steps")
        return np.concatenate(rows)

    def _rows(self) -> list[IntArray]:
        """Return, per chain that has any, its decorrelated paths in the order of their steps."""
        order = np.lexsort((self.step, self.chain))
        counted = order[(self.decorrelated & (self.multiplicity > 0))[order]]
        return [counted[self.chain[counted] == c] for c in np.unique(self.chain[counted])]

    def _n_along(self, cv: CollectiveVariable) -> float:
        """Return effectively independent paths by the mean of a CV over each."""
        series = self._series(path_means(cv, self.paths))
        n = self._n_effective(series, cv.period)
        return min(n, n_effective_by_chains(series, cv.period)) if len(series) > 1 else n

    def _n_effective(self, series: list[Array], period: float | None = None) -> float:
        if not series:
            return 0.0
        # a chain that is stuck has a constant series, which looks uncorrelated: repeats of a path are never independent
        g = max(max(statistical_inefficiency(s, period), len(s) / len(rows)) for s, rows in zip(series, self._rows(), strict=True))
        return sum(map(len, series)) / g
