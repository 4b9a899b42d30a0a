"""Interface sampling in a store without the frames of every path: the last path of each ensemble, and of all others what was noted.

A molecule's paths take gigabytes, and only the last ones are needed to go on; the first ones are kept once (``"<name>/first"``).  Each
commit appends what was noted of the cycles since the one before (``"<name>/rows"``), and replaces where all sets stand
(``"<name>/stand"``), in one transaction.  A cycle that was interrupted is done again from its seed.
"""

from __future__ import annotations

from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np

from couloir.errors import StoreError
from couloir.sampling.interface_sets import InterfaceSets, Rows, Snapshot
from couloir.sampling.path_store import COMMIT_SECONDS, First, described_cv, keep_plan, packed, unpacked
from couloir.store import Arrays, Store, text_array, text_value

_SHARE = 20
"""Times longer than a commit takes, that the next one waits at least."""


class Checkpoints:
    """Where interface sampling stands in a store, cycle by cycle.

    Parameters
    ----------
    store : where.
    name : prefix of the series.
    plan : everything that the run follows from, as JSON.
    sets : stand where the store says from now on, if it holds anything.
    first : what they started from, to be kept.

    Raises
    ------
    StoreError : the store holds a run of this name that follows from something else, or its cycles are not in order.
    """

    def __init__(self, store: Store, name: str, plan: dict[str, Any], sets: InterfaceSets, first: First | None = None) -> None:
        self._store, self._sets = store, sets
        self._rows, self._stand = f"{name}/rows", f"{name}/stand"
        described = {cv.name: described_cv(cv) for cv in sets.record}
        keep_plan(store, name, {**plan, "frames": "of the last paths", "record": described}, first=first)
        self._last, self._committed, self._wait, self._stored = sets.snapshot(), perf_counter(), COMMIT_SECONDS, 0
        if store.count(self._stand):
            self._take()

    @property
    def cycles(self) -> int:
        """Cycles that are done."""
        return self._last.n_noted

    def add(self) -> None:
        """Remember where the sets stand after a cycle; a commit may wait."""
        self._last = self._sets.snapshot()
        if perf_counter() - self._committed > self._wait:
            self.commit()

    def commit(self) -> None:
        """Commit what was added, all or nothing."""
        begin = perf_counter()
        if self._last.n_noted > self._stored:
            rows = self._sets.rows(self._stored, self._last.n_noted)
            chunks = {self._rows: asdict(rows), self._stand: _arrays(self._last)}
            self._store.append(chunks, replace=(self._stand,))
            self._stored = self._last.n_noted
        self._committed = perf_counter()
        self._wait = max(COMMIT_SECONDS, _SHARE * (self._committed - begin))

    def _take(self) -> None:
        sets = self._sets
        for chunk in self._store.chunks(self._rows):
            sets.take_rows(Rows(**chunk))
        path = sets.paths[0]
        found = _snapshot(self._store.chunk(self._stand, 0), path.stride, path.topology)
        if sets.steps != list(range(1, found.n_noted + 1)):
            raise StoreError(f"cycles of {self._rows!r} are stored out of order", "two runs wrote at the same time: use a new store")
        sets.take(found)
        self._last, self._stored = sets.snapshot(), found.n_noted


def stored_cycles(store: Store, name: str) -> int:
    """Return how many cycles of a run are stored; 0 where there are none."""
    return int(store.chunk(f"{name}/rows", -1)["steps"][-1]) if store.count(f"{name}/rows") else 0


def _arrays(snapshot: Snapshot) -> Arrays:
    held = snapshot.held
    rest = {
        "n_noted": snapshot.n_noted, "numbers": snapshot.numbers,
        "counts": {name: {reason: count.tolist() for reason, count in counts.items()} for name, counts in snapshot.counts.items()},
    }  # fmt: skip
    return packed(
        held["paths"], made_by=np.concatenate(held["made_by"]), facts=np.array(held["_facts"], dtype=np.float64),
        lineage=np.array(held["_lineage"], dtype=np.int64), from_a=np.array(held["_from_a"]), cut=snapshot.cut, rest=text_array(rest),
    )  # fmt: skip


def _snapshot(data: Arrays, stride: float, topology: Any) -> Snapshot:
    rest = text_value(data["rest"])
    held: dict[str, list[Any]] = {
        "paths": unpacked(data, stride, topology),
        "made_by": np.split(data["made_by"], np.cumsum(data["lengths"])[:-1]),
        "_facts": [(float(top), float(low), int(n), bool(in_b)) for top, low, n, in_b in data["facts"]],
        "_lineage": data["lineage"].tolist(),
        "_from_a": data["from_a"].tolist(),
    }
    counts = {name: {reason: np.array(count, dtype=np.int64) for reason, count in some.items()} for name, some in rest["counts"].items()}
    return Snapshot(rest["n_noted"], held, counts, data["cut"].copy(), rest["numbers"])
