"""What shooting for committors writes down: how every shot of a batch ended, and what the batch cost.

One chunk of the series ``"<name>/shots"`` holds one batch, a round of shots or a piece of a long one.  Which shots a batch
holds follows from how those before it ended, so playing the chunks back leads to where an interrupted call stood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from couloir.errors import StoreError
from couloir.sampling.path_store import keep_plan
from couloir.store import Arrays, Store
from couloir.trajectory import State

IntArray = npt.NDArray[np.int64]
Shots = Sequence[tuple[int, int]]
"""State and number of each shot."""


class ShotLog:
    """The batches of shots of one call in a store, in the order in which they were made.

    Parameters
    ----------
    store : where; None writes nothing.
    name : prefix of the series.
    plan : everything the shots follow from, as JSON.

    Raises
    ------
    StoreError : the store holds shots under this name that follow from something else.
    """

    def __init__(self, store: Store | None, name: str, plan: dict[str, Any]) -> None:
        self._store, self._series = store, f"{name}/shots"
        self._kept: Iterator[Arrays] = iter(())
        if store is not None:
            keep_plan(store, name, plan, "shots")
            self._kept = store.chunks(self._series)

    def outcomes(self, shots: Shots, run: Callable[[Shots], tuple[IntArray, int]]) -> tuple[IntArray, int]:
        """Return how the shots of the next batch ended and their cost in steps: as the store has it, or by ``run``, and then stored.

        Raises
        ------
        StoreError : the store has other shots in this place.
        """
        kept = next(self._kept, None)
        which = np.array(shots, dtype=np.int64)
        if kept is not None:
            if not np.array_equal(kept["shots"], which):
                raise StoreError(f"shots of {self._series!r} are stored out of order", "two runs wrote at the same time: use a new store")
            return kept["outcomes"].astype(np.int64), int(kept["evaluations"][0])
        outcomes, cost = run(shots)
        if self._store is not None:
            chunk: Arrays = {"shots": which, "outcomes": outcomes.astype(np.int8), "evaluations": np.array([cost], dtype=np.int64)}
            self._store.append({self._series: chunk})
        return outcomes, cost


def digest_of(states: Sequence[State]) -> str:
    """Return a SHA-256 of the positions and boxes of states."""
    total = hashlib.sha256()
    for state in states:
        for array in (state.positions, state.box):
            total.update(b"-" if array is None else f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
