"""What chains in interface ensembles sampled: a row per step, from which crossing probabilities and rates follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from couloir.analysis import interface_files
from couloir.analysis.samples import IntArray
from couloir.cv.base import CollectiveVariable
from couloir.errors import DataError, Finding
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    import pandas as pd

    from couloir.analysis.crossing import CrossingProbability, InterfaceRate

Mask = npt.NDArray[np.bool_]

MINUS = -1
"""Number of the ensemble [0-]."""


def ensemble_name(number: int) -> str:
    """Return the usual name of an ensemble: [0-] for -1, else [i+]."""
    return "[0-]" if number == MINUS else f"[{number}+]"


@dataclass(frozen=True, eq=False)
class InterfaceSamples:
    """What chains in interface ensembles sampled: a row per step of a chain; a rejected step repeats the old row.

    Attributes
    ----------
    interfaces : (n_interfaces,) values of the order parameter, ascending; A is below the first.
    along, unit : name and unit of the order parameter.
    ensemble : (n_paths,) number i of the interface whose ensemble [i+] the path was sampled in, -1 for [0-].
    chain, step : (n_paths,) which chain, and at which of its steps.
    maximum, minimum : (n_paths,) extremes of the order parameter over the path's frames.
    length : (n_paths,) frames of the path, with both ends.
    ends_in_b : (n_paths,) whether the last frame is in B.
    stride : time between frames, ps.
    series : per name of a CV, its values (length,) along every path; empty when not recorded.
    paths : the paths themselves, one per row (rows of one path share one object); empty when not kept.
    periods : of the CVs in ``series`` that have one.
    units : of the CVs in ``series``.
    findings : what was unsure while sampling.
    outcomes : per outcome of a shot, how often each ensemble met it, (1 + n_interfaces,), [0-] first; empty when not known.
        Shots of cycles that were discarded count, too.
    exchanges : per outcome of an exchange, how often each pair of neighbours met it, (n_interfaces,), [0-] with [0+] first; with
        permutations, accepted says that paths passed between the ensembles up to the one and those from the other on.
    force_evaluations : steps of dynamics that shots and exchanges spent; 0 when not known.

    Raises
    ------
    DataError : interfaces do not ascend, an array is not one entry per path, or a path is not in its ensemble.
    """

    interfaces: Array
    along: str
    unit: str
    ensemble: IntArray
    chain: IntArray
    step: IntArray
    maximum: Array
    minimum: Array
    length: IntArray
    ends_in_b: Mask
    stride: float
    series: Mapping[str, tuple[Array, ...]] = field(default_factory=dict)
    paths: tuple[Trajectory, ...] = ()
    periods: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    outcomes: Mapping[str, IntArray] = field(default_factory=dict)
    exchanges: Mapping[str, IntArray] = field(default_factory=dict)
    force_evaluations: int = 0

    def __post_init__(self) -> None:
        interfaces = np.array(self.interfaces, dtype=np.float64)
        if interfaces.ndim != 1 or len(interfaces) == 0 or not (np.diff(interfaces) > 0).all():
            raise DataError(f"the interfaces along {self.along} do not ascend", "give increasing values of the order parameter")
        object.__setattr__(self, "interfaces", interfaces)
        n = len(self.ensemble)
        kinds = {"ensemble": np.int64, "chain": np.int64, "step": np.int64, "maximum": np.float64, "minimum": np.float64,
                 "length": np.int64, "ends_in_b": np.bool_}  # fmt: skip
        for name, kind in kinds.items():
            array: npt.NDArray[np.generic] = np.array(getattr(self, name), dtype=kind)
            if array.shape != (n,):
                raise DataError(f"{name} has shape {array.shape}, expected ({n},): one entry per path")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if n == 0 or self.ensemble.min() < MINUS or self.ensemble.max() >= len(interfaces):
            raise DataError(f"ensembles must be -1 to {len(interfaces) - 1}, and at least one path is needed")
        plus = self.ensemble >= 0
        if (self.maximum[plus] < interfaces[self.ensemble[plus]]).any():
            raise DataError("a path does not reach the interface of its ensemble", "a rejected step repeats the path before it")
        if (self.length < 2).any():
            raise DataError("a path has fewer than 2 frames", "count both ends and what lies between")
        if self.stride <= 0:
            raise DataError(f"the time between frames is {self.stride:g} ps, expected a positive time")
        for name, values in self.series.items():
            if len(values) != n or any(len(v) != m for v, m in zip(values, self.length, strict=False)):
                raise DataError(f"the series of {name} are not one value per frame of each path")
        if self.paths and len(self.paths) != n:
            raise DataError(f"{len(self.paths)} paths for {n} rows", "give one path per row; rows may share a path")
        for counts, m in ((self.outcomes, len(interfaces) + 1), (self.exchanges, len(interfaces))):
            if any(np.shape(count) != (m,) for count in counts.values()):
                raise DataError(f"outcomes must be {m} counts each", "one per ensemble for shots, one per pair of neighbours for exchanges")

    def __len__(self) -> int:
        return len(self.ensemble)

    @property
    def bin(self) -> IntArray:
        """Number of the highest interface each path reaches, (n_paths,); -1 for paths of [0-]."""
        highest = np.searchsorted(self.interfaces, self.maximum, side="right") - 1
        return np.where(self.ensemble == MINUS, MINUS, highest).astype(np.int64)

    @property
    def inside(self) -> IntArray:
        """Frames of each path between its ends, (n_paths,)."""
        return self.length - 2

    @cached_property
    def crossing(self) -> CrossingProbability:
        """Probabilities to reach the interfaces and B; see :func:`couloir.analysis.crossing_probability`."""
        from couloir.analysis.crossing import crossing_probability

        return crossing_probability(self)

    @cached_property
    def rate(self) -> InterfaceRate:
        """Rate constant out of A with its parts; see :func:`couloir.analysis.interface_rate`."""
        from couloir.analysis.crossing import interface_rate

        return interface_rate(self)

    def after(self, step: int) -> InterfaceSamples:
        """Return the rows of later steps than ``step``.

        Raises
        ------
        DataError : there are none.
        """
        rows = np.flatnonzero(self.step > step)
        if not len(rows):
            raise DataError(f"no path was sampled after step {step}", f"the last step is {self.step.max()}")
        arrays = {name: getattr(self, name)[rows] for name in interface_files.ROWS}
        series = {name: tuple(values[i] for i in rows) for name, values in self.series.items()}
        return replace(self, **arrays, series=series, paths=tuple(self.paths[i] for i in rows) if self.paths else ())

    def with_series(self, cvs: Sequence[CollectiveVariable]) -> InterfaceSamples:
        """Return the same with CVs along the paths, each evaluated once per distinct path.

        Raises
        ------
        DataError : paths were not kept.
        """
        if not self.paths:
            raise DataError(
                "paths were not kept, so that nothing can be evaluated along them", "sample with keep_paths=True or record=[...]"
            )
        distinct = {id(path): path for path in self.paths}
        found = {cv.name: {key: cv.evaluate(path.positions) for key, path in distinct.items()} for cv in cvs}
        series = {name: tuple(values[id(path)] for path in self.paths) for name, values in found.items()}
        periods = {cv.name: cv.period for cv in cvs if cv.period is not None}
        units = {cv.name: cv.unit for cv in cvs}
        return replace(
            self, series={**self.series, **series}, periods={**self.periods, **periods}, units={**self.units, **units},
        )  # fmt: skip

    def save(self, file: str | Path) -> None:
        """Write everything to one npz file (no pickles), of paths their frames; it is replaced at once or not at all."""
        interface_files.save(self, file)

    @classmethod
    def load(cls, file: str | Path) -> InterfaceSamples:
        """Read what :meth:`save` wrote, bit for bit; raises DataError when the file is something else."""
        return cls(**interface_files.load(file))

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per path."""
        import pandas as pd

        table = {name: getattr(self, name) for name in interface_files.ROWS}
        return pd.DataFrame({**table, "duration_ps": self.inside * self.stride})

    def __str__(self) -> str:
        n_chains, n_steps = len(np.unique(self.chain)), len(np.unique(self.step))
        lines = [
            f"InterfaceSamples along {self.along}: {len(self)} paths, {len(self.interfaces)} interfaces, {n_chains} sets x {n_steps} steps",
            f"  {'ensemble':>8} {'interface':>10} {'paths':>8} {'reach next':>11} {'in B':>8} {'mean time':>12}",
        ]
        levels = np.append(self.interfaces, np.nan)
        for i in np.unique(self.ensemble):
            mine = self.ensemble == i
            name, at = ensemble_name(int(i)), "" if i == MINUS else f"{levels[i]:.4g}"
            last = i in (MINUS, len(self.interfaces) - 1)
            beyond = "" if last else f"{(self.maximum[mine] >= levels[i + 1]).mean():.3f}"
            arrived = "" if i == MINUS else f"{self.ends_in_b[mine].mean():.3f}"
            time = f"{self.inside[mine].mean() * self.stride:.4g} ps"
            lines.append(f"  {name:>8} {at:>10} {int(mine.sum()):>8} {beyond:>11} {arrived:>8} {time:>12}")
        names = [ensemble_name(i) for i in range(MINUS, len(self.interfaces))]
        lines += _tally("shots", names, self.outcomes)
        lines += _tally("exchanges", [f"{a} {b}" for a, b in pairwise(names)], self.exchanges)
        if self.force_evaluations:
            lines.append(f"  {self.force_evaluations} force evaluations")
        return "\n".join([*lines, *map(str, self.findings)])


def _tally(title: str, names: Sequence[str], outcomes: Mapping[str, IntArray]) -> list[str]:
    """Return a table of what became of trials, a line per ensemble or pair, or nothing where nothing was tried."""
    if not outcomes or not sum(count.sum() for count in outcomes.values()):
        return []
    lines = [f"  {title:>11}" + "".join(f" {reason:>11}" for reason in outcomes)]
    return lines + [f"  {name:>11}" + "".join(f" {count[i]:>11}" for count in outcomes.values()) for i, name in enumerate(names)]
