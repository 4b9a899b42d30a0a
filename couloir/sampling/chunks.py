"""Long runs of many walkers, cut into chunks that are stored as they finish.

Chunk c of a walker is a pure function of the walker's state at the end of chunk c-1, its bias and a seed derived from
(seed, run name, walker, first record of the chunk); so a killed run continues exactly where an uninterrupted one would
have gone, whatever the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import Bias
from couloir.errors import DataError, StoreError
from couloir.progress import Progress, progress_bar
from couloir.sampling.engine import Engine, steps
from couloir.store import Arrays, Store
from couloir.streams import integer_seed
from couloir.trajectory import Array, State, Trajectory
from couloir.units import convert

CHUNK_RECORDS = 100


@dataclass(frozen=True)
class ChunkedRun:
    """Walkers with their biases, what is recorded of them, and the store they write to.

    Attributes
    ----------
    name : prefix of the series in the store.
    walkers : a key per walker, also its series in the store and part of its seed; e.g. ``"w0003/001"``.
    states, biases : where each walker starts, and its bias (None: none).
    record : CVs recorded every ``record_steps`` steps; frames are kept every ``frame_records`` records.

    Raises
    ------
    StoreError : the store already holds a run of this name that was asked for differently.
    """

    engine: Engine
    store: Store
    name: str
    walkers: tuple[str, ...]
    states: tuple[State, ...]
    biases: tuple[Bias | None, ...]
    record: tuple[CollectiveVariable, ...]
    record_steps: int
    frame_records: int
    seed: int

    def __post_init__(self) -> None:
        if CHUNK_RECORDS % self.frame_records:
            raise DataError(f"frames every {self.frame_records} records do not divide chunks of {CHUNK_RECORDS} records")
        plan = {
            "walkers": list(self.walkers),
            "biases": [None if bias is None else bias.to_dict() for bias in self.biases],
            "record": [cv.name for cv in self.record],
            "record_steps": self.record_steps,
            "frame_records": self.frame_records,
            "time_step": self.engine.time_step,
            "temperature": self.engine.temperature,
            "seed": self.seed,
        }
        stored = self.store.get(f"{self.name}/plan")
        if stored is None:
            self.store[f"{self.name}/plan"] = plan
        elif stored != plan:
            changed = ", ".join(key for key in plan if plan[key] != stored.get(key))
            raise StoreError(f"the store holds another {self.name!r} run (different {changed})", "use a new store, or ask for the same run")

    @property
    def record_stride(self) -> float:
        """Time between records, ps."""
        return self.record_steps * self.engine.time_step

    def n_records(self, duration: Any) -> int:
        """Return how many records a duration holds, rounded up."""
        return math.ceil(round(convert(duration, "ps", "duration") / self.record_stride, 6))

    def advance(self, n_records: int, title: str) -> None:
        """Continue every walker until it has ``n_records`` records."""
        done = [sum(len(chunk["values"]) for chunk in self.chunks(w)) for w in self.walkers]
        with progress_bar(title, n_records * self.record_stride * len(done), "ps") as bar:
            bar.advance(sum(done) * self.record_stride)
            while min(done) < n_records:
                # The walkers that are furthest behind go first, so that a resumed run falls into step again.
                start = min(done)
                behind = [i for i, n in enumerate(done) if n == start]
                length = min(CHUNK_RECORDS - start % CHUNK_RECORDS, n_records - start)
                self._chunk(behind, start, length, bar)
                for i in behind:
                    done[i] += length

    def chunks(self, walker: str) -> list[Arrays]:
        """Return the stored chunks of a walker."""
        return list(self.store.chunks(f"{self.name}/{walker}"))

    def frames(self, walker: str) -> Array:
        """Return the frames kept of a walker, (n_frames, n_atoms, 3)."""
        return np.concatenate([chunk["positions"] for chunk in self.chunks(walker)]).astype(np.float64)

    def last(self, i: int) -> State:
        """Return where walker number ``i`` stands."""
        series = f"{self.name}/{self.walkers[i]}"
        if self.store.count(series) == 0:
            return self.states[i]
        chunk = self.store.chunk(series, -1)
        return State(chunk["last_positions"], chunk.get("last_velocities"), chunk.get("last_box"))

    def _chunk(self, members: Sequence[int], start: int, length: int, bar: Progress) -> None:
        dt = self.record_stride
        whole = length % self.frame_records == 0

        def keep(i: int, trajectory: Trajectory) -> None:
            self.store.append({f"{self.name}/{self.walkers[members[i]]}": _pack(trajectory)})
            bar.advance(length * dt)

        self.engine.propagate(
            [self.last(i) for i in members],
            duration=length * dt,
            stride=self.frame_records * dt if whole else None,
            bias=[self.biases[i] for i in members],
            record=self.record,
            record_stride=dt,
            seed=[integer_seed(self.seed, self.name, self.walkers[i], start) for i in members],
            on_result=keep,
        )


def record_steps(engine: Engine, stride: Any, default: int = 100) -> int:
    """Return a record stride as steps; ``default`` steps when None."""
    return default if stride is None else steps(stride, engine.time_step, "record_stride")


def _pack(trajectory: Trajectory) -> Arrays:
    assert trajectory.series is not None
    assert trajectory.last is not None
    arrays: Arrays = {
        "values": trajectory.series.values,
        "potential": trajectory.series.potential,
        "positions": trajectory.positions.astype(np.float32),
        "last_positions": trajectory.last.positions,
    }
    if trajectory.last.velocities is not None:
        arrays["last_velocities"] = trajectory.last.velocities
    if trajectory.last.box is not None:
        arrays["last_box"] = trajectory.last.box
    return arrays
