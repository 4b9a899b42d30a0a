"""Path ensembles: which paths belong, and when dynamics that makes one may stop.

A path is a :class:`couloir.trajectory.Trajectory`; everything is decided at its frames, so an ensemble is exact for the
dynamics as it is seen every stride.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from couloir.cv.region import Region
from couloir.errors import DataError
from couloir.trajectory import Trajectory


class PathSet(Protocol):
    """What a path move asks of an ensemble.

    Attributes
    ----------
    stop : where dynamics ends, going forward or backward in time; None: nowhere, as all paths of the ensemble have one length.
    directed : whether no path of the ensemble is in it backwards too; only then may a trial that fits backwards be turned.
    """

    @property
    def stop(self) -> Region | None: ...
    @property
    def directed(self) -> bool: ...
    def accepts(self, path: Trajectory, *, ends_only: bool = False) -> bool:
        """Return whether a path belongs to the ensemble.

        Parameters
        ----------
        ends_only : whether dynamics is already known to stop at no frame between the ends and at the ends, so that only
            what else makes the ensemble has to be looked at.
        """
        ...


@dataclass(frozen=True, eq=False)
class TransitionEnsemble:
    """Paths from A to B: the first frame in A, the last in B, and at least one frame, all outside both, between them."""

    region_a: Region
    region_b: Region

    @cached_property
    def stop(self) -> Region:
        """Where dynamics ends, A or B."""
        return self.region_a | self.region_b

    @property
    def directed(self) -> bool:
        """A path from A to B never runs from A to B backwards."""
        return True

    def accepts(self, path: Trajectory, *, ends_only: bool = False) -> bool:
        """Return whether ``path`` runs from A to B and touches them at its ends only (``ends_only``: which is known already)."""
        if len(path) < 3:
            return False
        if ends_only:
            (first, last), a, b = path.positions[[0, -1]], self.region_a.decider(), self.region_b.decider()
            return a(first) and b(last) and not b(first) and not a(last)
        values = {cv.name: cv.evaluate(path.positions) for cv in self.stop.cvs}  # each once, though both states may use it
        in_a, in_b = self.region_a.contains_values(values), self.region_b.contains_values(values)
        ends = in_a[0] and not in_b[0] and in_b[-1] and not in_a[-1]
        return bool(ends and not (in_a | in_b)[1:-1].any())

    def require(self, path: Trajectory, name: str = "the path") -> None:
        """Refuse a path that is not of this ensemble, saying why.

        Raises
        ------
        DataError : it does not start in A, does not end in B, or is in one of them in between.
        """
        if self.accepts(path):
            return
        in_a, in_b = self.region_a.contains(path.positions), self.region_b.contains(path.positions)
        between = np.flatnonzero((in_a | in_b)[1:-1]) + 1
        if len(path) < 3:
            raise DataError(f"{name} has {len(path)} frames, expected at least 3", "use a shorter stride")
        if (in_a & in_b).any():
            raise DataError(f"frame {np.flatnonzero(in_a & in_b)[0]} of {name} is in A and in B", "make the regions disjoint")
        if not in_a[0] or not in_b[-1]:
            missed = f"start in A ({self.region_a})" if not in_a[0] else f"end in B ({self.region_b})"
            raise DataError(f"{name} does not {missed}", "cut it to the frames from the last in A to the first in B after it")
        raise DataError(f"frame {between[0]} of {name} is already in A or B", "cut it from the last frame in A to the first in B after it")


@dataclass(frozen=True, eq=False)
class FixedLengthEnsemble:
    """Paths of ``n_frames`` frames: the first in A and not in B, the last in B and not in A, and anything between them.

    The ensemble of Dellago, Bolhuis, Csajka & Chandler, J. Chem. Phys. 108, 1964 (1998): paths may wait in either state, and
    leave it and come back.

    Raises
    ------
    DataError : ``n_frames`` is below 3, so that no frame is between the ends.
    """

    region_a: Region
    region_b: Region
    n_frames: int

    def __post_init__(self) -> None:
        if self.n_frames < 3:
            raise DataError(f"n_frames = {self.n_frames}, expected at least 3", "shooting needs a frame between the ends")

    @property
    def stop(self) -> None:
        """Nowhere: dynamics runs for as long as a path takes."""
        return

    @property
    def directed(self) -> bool:
        """A path from A to B never runs from A to B backwards."""
        return True

    def accepts(self, path: Trajectory, *, ends_only: bool = False) -> bool:
        """Return whether ``path`` has the right number of frames and runs from A to B; only its ends matter anyway."""
        if len(path) != self.n_frames:
            return False
        (first, last), a, b = path.positions[[0, -1]], self.region_a.decider(), self.region_b.decider()
        return a(first) and b(last) and not b(first) and not a(last)

    def require(self, path: Trajectory, name: str = "the path") -> None:
        """Refuse a path that is not of this ensemble, saying why.

        Raises
        ------
        DataError : it has another number of frames, does not start in A alone or does not end in B alone.
        """
        if self.accepts(path):
            return
        if len(path) != self.n_frames:
            raise DataError(f"{name} has {len(path)} frames, expected {self.n_frames}", "cut it, or let it wait in A or B")
        ends = path.positions[[0, -1]]
        in_a, in_b = self.region_a.contains(ends), self.region_b.contains(ends)
        if (in_a & in_b).any():
            raise DataError(f"an end of {name} is in A and in B", "make the regions disjoint")
        missed = f"start in A ({self.region_a})" if not in_a[0] else f"end in B ({self.region_b})"
        raise DataError(f"{name} does not {missed}", "choose frames the right number of strides apart, one in A and one in B")
