"""Two-way shots: from one configuration, real dynamics forward and backward in time until a stable state is reached.

Velocities v are drawn from the Maxwell-Boltzmann distribution at the engine's temperature; the forward half starts from
(x, v), the backward half from the turned state R(x, v) of :mod:`couloir.sampling.velocities` and is turned round
(Dellago, Bolhuis, Geissler, Adv. Chem. Phys. 123, 1 (2002)).  Overdamped dynamics has no velocities: its halves are two
independent runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.cv.region import Region
from couloir.errors import DataError
from couloir.sampling.dragging import propagated
from couloir.sampling.engine import Engine, as_states, steps
from couloir.sampling.velocities import fresh, turned, turned_paths
from couloir.streams import integer_seed
from couloir.trajectory import Array, State, Trajectory

if TYPE_CHECKING:
    import pandas as pd

IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

OUTCOMES = ("connecting", "A and A", "B and B", "unfinished", "failed")
"""What can become of a two-way shot."""
NOWHERE = ""
"""End of a half that reached neither state in time, or broke down."""


@dataclass(frozen=True, eq=False)
class ShotResults:
    """Two-way shots, one entry per shot.

    Attributes
    ----------
    states : (n,) the starting state each shot was made from.
    backward_ends, forward_ends : ``"A"``, ``"B"``, or ``""`` (neither in time) for each half.
    paths : backward half, shooting point and forward half, in time order; where the engine has velocities, so have they.
    shooting_frames : (n,) the frame of each path that is the shooting point.
    durations : (n, 2) ps from the shooting point to the end of the backward and the forward half.
    failed : (n,) whether the dynamics of a half broke down, or its velocities cannot be turned; that end is ``""`` then.
    force_evaluations : steps of dynamics that were spent.
    from_b_to_a : shot -> its path turned round, for those that were found from B to A.
    """

    states: IntArray
    backward_ends: tuple[str, ...]
    forward_ends: tuple[str, ...]
    paths: tuple[Trajectory, ...]
    shooting_frames: IntArray
    durations: Array
    failed: Mask
    force_evaluations: int
    from_b_to_a: Mapping[int, Trajectory]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def connecting(self) -> Mask:
        """Which shots have one end in A and the other in B, (n,)."""
        pairs = zip(self.backward_ends, self.forward_ends, strict=True)
        return np.array([set(pair) == {"A", "B"} for pair in pairs], dtype=bool)

    def reactive_path(self, shot: int) -> tuple[Trajectory, int]:
        """Return the path of a connecting shot in time order from A to B, and the frame of its shooting point.

        A path that was found from B to A is turned round (velocities too), which equilibrium dynamics leaves equally likely.

        Raises
        ------
        DataError : the shot does not connect A and B.
        """
        if not self.connecting[shot]:
            ends = self.backward_ends[shot] or "nowhere", self.forward_ends[shot] or "nowhere"
            raise DataError(f"shot {shot} does not connect A and B: it ends in {ends[0]} and {ends[1]}")
        path, frame = self.paths[shot], int(self.shooting_frames[shot])
        return (path, frame) if self.backward_ends[shot] == "A" else (self.from_b_to_a[shot], len(path) - 1 - frame)

    def counts(self) -> dict[str, int]:
        """Return how many shots ended how."""
        pairs = list(zip(self.backward_ends, self.forward_ends, strict=True))
        unfinished = sum(NOWHERE in pair and not bad for pair, bad in zip(pairs, self.failed, strict=True))
        same = (pairs.count(("A", "A")), pairs.count(("B", "B")))
        return dict(zip(OUTCOMES, (int(self.connecting.sum()), *same, unfinished, int(self.failed.sum())), strict=True))

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per shot."""
        import pandas as pd

        return pd.DataFrame({
            "state": self.states, "backward": self.backward_ends, "forward": self.forward_ends, "connecting": self.connecting,
            "backward_ps": self.durations[:, 0], "forward_ps": self.durations[:, 1], "failed": self.failed,
        })  # fmt: skip

    def __str__(self) -> str:
        how = ", ".join(f"{n} {name}" for name, n in self.counts().items() if n)
        return f"ShotResults: {len(self)} two-way shots ({how}), {self.force_evaluations} force evaluations"


def two_way_shots(
    engine: Engine,
    states: State | Sequence[State],
    region_a: Region,
    region_b: Region,
    *,
    max_duration: Any,
    stride: Any,
    seed: int,
    n_per_state: int = 1,
) -> ShotResults:
    """Shoot both ways from every state until A or B is reached, all halves in one parallel batch.

    Parameters
    ----------
    states : configurations outside A and B; their own velocities are not used.
    max_duration : time limit of each half, a multiple of ``stride``.
    stride : time between frames, at each of which it is decided whether A or B is reached.
    n_per_state : shots per state, each with its own velocities.

    Raises
    ------
    DataError : a state is inside A or B already, or A and B overlap.
    """
    start = as_states(states)
    if n_per_state < 1:
        raise DataError(f"n_per_state = {n_per_state}, expected at least 1")
    _outside(start, region_a, region_b)
    homes = np.repeat(np.arange(len(start)), n_per_state)
    forward = fresh(engine, [start[i] for i in homes], [integer_seed(seed, "velocities", i) for i in range(len(homes))])
    backward = turned(engine, forward)
    seeds = [integer_seed(seed, "half", half, i) for half in range(2) for i in range(len(homes))]
    halves = propagated(
        engine, [*backward, *forward], duration=max_duration, stride=stride, record=None,
        stop=region_a | region_b, velocities=True, seed=seeds,
    )  # fmt: skip
    behind, ahead = halves[: len(homes)], halves[len(homes) :]
    pasts = turned_paths(engine, behind)
    paths = tuple(_joined(past, state, f) for past, state, f in zip(pasts, forward, ahead, strict=True))
    ends = [_end(half, region_a, region_b) for half in halves]
    opposite = [k for k in range(len(homes)) if ends[k] == "B" and ends[len(homes) + k] == "A"]
    from_b_to_a = dict(zip(opposite, turned_paths(engine, [paths[k] for k in opposite]), strict=True))
    stiff = {k for k, past in (*enumerate(pasts), *from_b_to_a.items()) if past.ended == "failed"}  # these cannot be turned
    return ShotResults(
        homes,
        tuple(NOWHERE if k in stiff else end for k, end in enumerate(ends[: len(homes)])),
        tuple(ends[len(homes) :]),
        paths,
        np.array([len(half) for half in behind], dtype=np.int64),
        np.array([[len(b) * b.stride, len(f) * f.stride] for b, f in zip(behind, ahead, strict=True)]),
        np.array([k in stiff or "failed" in (b.ended, f.ended) for k, (b, f) in enumerate(zip(behind, ahead, strict=True))], dtype=bool),
        sum(len(half) for half in halves) * steps(stride, engine.time_step, "stride"),
        from_b_to_a,
    )


def _outside(states: Sequence[State], region_a: Region, region_b: Region) -> None:
    positions = np.array([state.positions for state in states])
    for name, region in (("A", region_a), ("B", region_b)):
        inside = np.flatnonzero(region.contains(positions))
        if len(inside):
            raise DataError(f"state {inside[0]} is inside {name} ({region}), so a shot from it says nothing", "shoot from between A and B")


def _end(half: Trajectory, region_a: Region, region_b: Region) -> str:
    if half.ended != "stopped":
        return NOWHERE
    last = half.positions[-1:]
    in_a, in_b = bool(region_a.contains(last)[0]), bool(region_b.contains(last)[0])
    if in_a and in_b:
        raise DataError(f"A ({region_a}) and B ({region_b}) overlap: a shot ended in both", "make the two states disjoint")
    return "A" if in_a else "B" if in_b else NOWHERE


def _joined(past: Trajectory, state: State, forward: Trajectory) -> Trajectory:
    middle = Trajectory(
        state.positions[None],
        forward.stride,
        None if state.velocities is None else state.velocities[None],
        None if state.box is None else state.box[None],
        forward.topology,
    )
    return Trajectory.join([past, middle, forward])
