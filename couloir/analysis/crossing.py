"""Crossing probabilities, flux and rate constants from paths that interfaces sort into ensembles.

State A is where the order parameter lies below the first interface, at frames.  A path of ensemble i, [i+], starts with one
frame in A, stays out of A, and ends with one frame in A or in B; its maximum reaches interface i.  A path of [0-] is the time
between: one frame out of A, frames in A, one frame out of A.  Lengths count all frames, with both ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from couloir.analysis.samples import IntArray
from couloir.errors import DataError
from couloir.trajectory import Array, Trajectory

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

    def __post_init__(self) -> None:
        interfaces = np.array(self.interfaces, dtype=np.float64)
        if interfaces.ndim != 1 or len(interfaces) == 0 or not (np.diff(interfaces) > 0).all():
            raise DataError(f"the interfaces along {self.along} do not ascend", "give increasing values of the order parameter")
        object.__setattr__(self, "interfaces", interfaces)
        n = len(self.ensemble)
        kinds = {"ensemble": np.int64, "chain": np.int64, "step": np.int64, "maximum": np.float64, "minimum": np.float64,
                 "length": np.int64, "ends_in_b": np.bool_}  # fmt: skip
        for name, kind in kinds.items():
            array = np.array(getattr(self, name), dtype=kind)
            if array.shape != (n,):
                raise DataError(f"{name} has shape {array.shape}, expected ({n},): one entry per path")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if n == 0 or self.ensemble.min() < MINUS or self.ensemble.max() >= len(interfaces):
            raise DataError(f"ensembles must be -1 to {len(interfaces) - 1}, and at least one path is needed")
        plus = self.ensemble >= 0
        if (self.maximum[plus] < interfaces[self.ensemble[plus]]).any():
            raise DataError("a path does not reach the interface of its ensemble", "a rejected step repeats the path before it")
        if (self.length < 3).any():
            raise DataError("a path has fewer than 3 frames", "count both ends, one frame in each state, and what lies between")
        if self.stride <= 0:
            raise DataError(f"the time between frames is {self.stride:g} ps, expected a positive time")
        for name, values in self.series.items():
            if len(values) != n or any(len(v) != m for v, m in zip(values, self.length, strict=False)):
                raise DataError(f"the series of {name} are not one value per frame of each path")
        if self.paths and len(self.paths) != n:
            raise DataError(f"{len(self.paths)} paths for {n} rows", "give one path per row; rows may share a path")

    def __len__(self) -> int:
        return len(self.ensemble)
