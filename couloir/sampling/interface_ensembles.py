"""Ensembles of paths that leave A and cross an interface, and what is cut out of trajectories to begin with.

With interfaces l_0 < l_1 < ... of an order parameter that grows from A to B, and A everything up to l_0, an ensemble
[i+] holds the paths that start in A, reach l_i and end when they are in A or B; [0-] holds the excursions into A: they
start outside, stay inside and end outside (van Erp, Phys. Rev. Lett. 98, 268301 (2007)).  The classes are named after what
their paths do: :class:`CrossingEnsemble` is [i+], :class:`ExcursionEnsemble` is [0-].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from couloir.cv.base import CollectiveVariable
from couloir.cv.region import Region
from couloir.errors import DataError
from couloir.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class CrossingEnsemble:
    """The ensemble usually written [i+]: paths from A that reach interface i, and end in A or B; reversed, some of them belong too.

    Attributes
    ----------
    region_a, region_b : the two states.
    along : the order parameter.
    interface : its value that a path must reach at some frame.
    stop : A or B; ensembles that share this object share their dynamics.
    """

    region_a: Region
    region_b: Region
    along: CollectiveVariable
    interface: float
    stop: Region

    @property
    def directed(self) -> bool:
        """A path from A to A is one backwards, too."""
        return False

    def accepts(self, path: Trajectory, *, ends_only: bool = False) -> bool:
        """Return whether ``path`` leaves A, reaches the interface and touches A and B at its ends only (the last may be known)."""
        if len(path) < 3 or not self.region_a.decider()(path.positions[0]):
            return False
        if not ends_only:
            inside = self.stop.contains(path.positions)
            if not inside[-1] or inside[1:-1].any():
                return False
        return bool(self.along.evaluate(path.positions).max() >= self.interface)


@dataclass(frozen=True, eq=False)
class ExcursionEnsemble:
    """The ensemble usually written [0-]: paths that start outside A, are inside for a frame or more, and end with the first one outside.

    Attributes
    ----------
    region_a : the state.
    stop : its outside.
    """

    region_a: Region
    stop: Region

    @property
    def directed(self) -> bool:
        """Every path is one backwards, too."""
        return False

    def accepts(self, path: Trajectory, *, ends_only: bool = False) -> bool:
        """Return whether only the ends of ``path`` are outside A (``ends_only``: which is known already)."""
        if ends_only:
            return len(path) > 2
        inside = self.region_a.contains(path.positions)
        return bool(len(path) > 2 and not inside[0] and not inside[-1] and inside[1:-1].all())


def excursions(paths: Iterable[Trajectory], region_a: Region) -> list[Trajectory]:
    """Return every excursion into A that ``paths`` hold whole."""
    return [piece for path in paths for piece in _between(path, ~region_a.contains(path.positions))]


def departures(paths: Iterable[Trajectory], region_a: Region, region_b: Region) -> list[Trajectory]:
    """Return every stretch of ``paths`` that starts in A and ends in A or B with nothing of them in between."""
    out = []
    for path in paths:
        in_a = region_a.contains(path.positions)
        out += [piece for piece in _between(path, in_a | region_b.contains(path.positions)) if region_a.contains(piece.positions[:1])[0]]
    return out


def require_boundary(paths: Iterable[Trajectory], region_a: Region, along: CollectiveVariable, first: float) -> None:
    """Refuse a first interface that is not the boundary of A, on which flux and crossing probability rest.

    Raises
    ------
    DataError : a frame is in A beyond the interface, or not in A before it.
    """
    for path in paths:
        values = along.evaluate(path.positions)
        differs = np.flatnonzero(region_a.contains(path.positions) != (values <= first))
        if len(differs):
            raise DataError(
                f"a frame with {along.name} = {values[differs[0]]:.4g} is {'outside' if values[differs[0]] <= first else 'in'} "
                f"A ({region_a}), but the first interface is at {first:g}",
                f"make A everything up to the first interface: {along.name} <= {first:g}",
            )


def _between(path: Trajectory, marked: npt.NDArray[np.bool_]) -> list[Trajectory]:
    """Return the stretches from one marked frame to the next, both included, with unmarked frames between them."""
    at = np.flatnonzero(marked)
    return [piece(path, int(a), int(b) + 1) for a, b in pairwise(at) if b > a + 1]


def piece(path: Trajectory, first: int, end: int) -> Trajectory:
    """Return frames ``first`` up to but without ``end``."""
    velocities = None if path.velocities is None else path.velocities[first:end]
    boxes = None if path.boxes is None else path.boxes[first:end]
    return Trajectory(path.positions[first:end], path.stride, velocities, boxes, path.topology)
