"""What chains in interface ensembles sampled: a row per step, from which crossing probabilities and rates follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from couloir.analysis.samples import IntArray
from couloir.errors import DataError, Finding
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    import pandas as pd

    from couloir.analysis.crossing import CrossingProbability, InterfaceRate

Mask = npt.NDArray[np.bool_]

MINUS = -1
"""Number of the ensemble [0-]."""


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
    findings : what was unsure while sampling.

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
    findings: tuple[Finding, ...] = ()

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
        arrays = {name: getattr(self, name)[rows] for name in _ROWS}
        series = {name: tuple(values[i] for i in rows) for name, values in self.series.items()}
        return replace(self, **arrays, series=series, paths=tuple(self.paths[i] for i in rows) if self.paths else ())

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per path."""
        import pandas as pd

        table = {name: getattr(self, name) for name in _ROWS}
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
            name, at = ("[0-]", "") if i == MINUS else (f"[{i}+]", f"{levels[i]:.4g}")
            last = i in (MINUS, len(self.interfaces) - 1)
            beyond = "" if last else f"{(self.maximum[mine] >= levels[i + 1]).mean():.3f}"
            arrived = "" if i == MINUS else f"{self.ends_in_b[mine].mean():.3f}"
            time = f"{self.inside[mine].mean() * self.stride:.4g} ps"
            lines.append(f"  {name:>8} {at:>10} {int(mine.sum()):>8} {beyond:>11} {arrived:>8} {time:>12}")
        return "\n".join([*lines, *map(str, self.findings)])


_ROWS = ("ensemble", "chain", "step", "maximum", "minimum", "length", "ends_in_b")
"""The attributes with one number per path."""
