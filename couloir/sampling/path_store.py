"""What path sampling writes down: every trial, and of an accepted path only the frames that its parent does not have.

One chunk of the series ``"<name>/steps"`` holds some consecutive steps of all chains.  Reading plays the trials back
onto the first paths, which ``"<name>/first"`` holds, so what comes back is bit for bit what was sampled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from couloir.cv.base import CollectiveVariable
from couloir.cv.region import Region, all_limits
from couloir.errors import DataError, StoreError
from couloir.sampling.path_moves import Direction, Reason, Trial
from couloir.store import Arrays, Store
from couloir.trajectory import Array, Trajectory

COMMIT_SECONDS = 3.0
"""Steps are committed at least this often, and when a run ends or fails."""

REASONS: tuple[Reason, ...] = ("accepted", "ensemble", "acceptance", "max length", "failed")
"""What can become of a trial."""
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "both")
_KEPT = ("positions", "velocities", "boxes")
First = tuple[list[Trajectory], int]
"""The path that each chain (or each ensemble of each set) starts from, and the steps of dynamics it took to make some of them."""

ADDED = ("cvs", "limits")
"""What plans of older stores do not say."""


def described_cv(cv: CollectiveVariable) -> str:
    """Return a digest of what a CV is."""
    return hashlib.sha256(json.dumps(cv.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def described_states(region_a: Region, region_b: Region, selector: Any = None) -> dict[str, Any]:
    """Return what A and B and the choice of shooting points are made of, for a plan: digests of CVs by name, and limits to the last bit.

    A Python function has no digest, and is known by its name.
    """
    chosen = getattr(selector, "cv", None)
    cvs: dict[str, str] = {}
    for cv in (*region_a.cvs, *region_b.cvs, *(() if chosen is None else (chosen,))):
        try:
            cvs[cv.name] = described_cv(cv)
        except DataError:
            cvs[cv.name] = cv.name
    return {"cvs": cvs, "limits": all_limits(region_a, region_b)}


def paths_digest(paths: Sequence[Trajectory]) -> str:
    """Return a SHA-256 of the frames of paths, in their order."""
    total = hashlib.sha256()
    for path in paths:
        for name in _KEPT:
            array = getattr(path, name)
            total.update(b"-" if array is None else f"{array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def _first_chunk(starts: Sequence[Trajectory], spent: int) -> Arrays | None:
    """Return the paths that a run starts from as the arrays of one chunk, each of them once; None where only some have boxes."""
    if any(len({getattr(path, name) is None for path in starts}) > 1 for name in _KEPT):
        return None  # neither can the steps that follow be read back
    distinct = {id(path): path for path in starts}
    number = {key: i for i, key in enumerate(distinct)}
    which = np.array([number[id(path)] for path in starts], dtype=np.int64)
    return packed(list(distinct.values()), which=which, stride=np.array([starts[0].stride]), spent=np.array([spent], dtype=np.int64))


def holds_first(store: Store | None, name: str) -> bool:
    """Return whether a store holds a run of this name with the paths that it started from."""
    return store is not None and store.get(f"{name}/plan") is not None and store.count(f"{name}/first") > 0


def kept_first(store: Store | None, name: str, topology: Any) -> First:
    """Return what a stored run started from.

    Raises
    ------
    DataError : there is no store, or no run of this name in it.
    StoreError : the store was written before first paths were kept.
    """
    if store is None or store.get(f"{name}/plan") is None:
        where = "" if store is None else f", and the store holds no run called {name!r}"
        raise DataError(f"there are no first paths{where}", "give some, which reactive_seeds or initial_paths find, or the store of a run")
    if not holds_first(store, name):
        raise StoreError(
            f"the store holds a run called {name!r}, but not the paths that it started from",
            "call run with first=, the very paths that it was begun with: they are kept from then on",
        )
    data = store.chunk(f"{name}/first", 0)
    distinct = unpacked(data, float(data["stride"][0]), topology)
    return [distinct[i] for i in data["which"]], int(data["spent"][0])


def keep_plan(store: Store, name: str, plan: dict[str, Any], what: str = "paths", first: First | None = None) -> None:
    """Write down what a run follows from, where that is not there yet.

    Parameters
    ----------
    what : the run makes, as an error names it.
    first : what it starts from; kept before the plan is, so that no plan is without.

    Raises
    ------
    StoreError : the store holds a run of this name that follows from something else.
    """
    plan = json.loads(json.dumps(plan))  # as it is stored: a tuple of atoms is a list there
    stored = store.get(f"{name}/plan")
    plan = {key: value for key, value in plan.items() if stored is None or key in stored or key not in ADDED}
    if stored is not None and stored != plan:
        changed = ", ".join(key for key in {**stored, **plan} if plan.get(key) != stored.get(key))
        held = " (first=None takes the first paths that it holds)" if "first" in changed.split(", ") and holds_first(store, name) else ""
        fix = f"use a new store, or ask for the same run{held}"
        raise StoreError(f"the store holds other {what} called {name!r} (different {changed})", fix)
    series = f"{name}/first"
    if first is not None and (stored is None or not store.count(series)):
        chunk = _first_chunk(*first)
        if chunk is not None:
            store.append({series: chunk}, replace=(series,))
    if stored is None:
        store[f"{name}/plan"] = plan


class PathLog:
    """The trials of some chains in a store, in the order of their steps.

    Parameters
    ----------
    store : where; None writes nothing.
    name : prefix of the series.
    plan : everything the trials follow from, as JSON.
    first : what the chains start from, to be kept; None where those who read have it.

    Raises
    ------
    StoreError : the store holds trials under this name that follow from something else.
    """

    def __init__(self, store: Store | None, name: str, plan: dict[str, Any], first: First | None = None) -> None:
        self._store, self._series = store, f"{name}/steps"
        self._steps: list[list[tuple[Trial, Arrays]]] = []
        self._begin, self._committed = 0, perf_counter()
        if store is not None:
            keep_plan(store, name, plan, first=first)

    def replay(self, paths: list[Trajectory]) -> Iterator[list[Trial]]:
        """Yield the trials of each stored step.

        ``paths`` are those the chains stand at, and must be kept up to date by who iterates.
        """
        if self._store is None:
            return
        for chunk in self._store.chunks(self._series):
            if int(chunk["begin"][0]) != self._begin:
                raise StoreError(f"steps of {self._series!r} are stored out of order", "two runs wrote at the same time: use a new store")
            at = 0
            for k in range(len(chunk["reason"])):
                trials = []
                for c, parent in enumerate(paths):
                    n = int(chunk["made"][k, c].sum())
                    trials.append(_trial(chunk, k, c, parent, slice(at, at + n)))
                    at += n
                self._begin += 1
                yield trials

    def add(self, trials: Sequence[Trial], parents: Sequence[Trajectory]) -> None:
        """Write down one step of all chains; a commit may wait for :data:`COMMIT_SECONDS`."""
        if self._store is None:
            return
        self._steps.append([(trial, _new_frames(trial, parent)) for trial, parent in zip(trials, parents, strict=True)])
        if perf_counter() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Commit what was added, all or nothing."""
        if self._store is not None and self._steps:
            self._store.append({self._series: _pack(self._steps, self._begin)})
            self._begin += len(self._steps)
            self._steps.clear()
        self._committed = perf_counter()


def packed(paths: Sequence[Trajectory], **more: npt.NDArray[Any]) -> Arrays:
    """Return paths as the arrays of one chunk, with more arrays beside them."""
    arrays: Arrays = {"lengths": np.array([len(path) for path in paths], dtype=np.int64), **more}
    for name in _KEPT:
        parts = [getattr(path, name) for path in paths]
        if all(part is not None for part in parts):
            arrays[name] = np.concatenate(parts)
    return arrays


def unpacked(data: Mapping[str, npt.NDArray[Any]], stride: float, topology: Any) -> list[Trajectory]:
    """Return the paths of a chunk that :func:`packed` made."""
    out, at = [], 0
    for n in data["lengths"]:
        frames = {name: data[name][at : at + n] for name in _KEPT if name in data}
        out.append(Trajectory(frames["positions"], stride, frames.get("velocities"), frames.get("boxes"), topology))
        at += int(n)
    return out


def bare(path: Trajectory) -> Trajectory:
    """Return a path with nothing but its frames, as a store gives it back."""
    return Trajectory(path.positions, path.stride, path.velocities, path.boxes, path.topology)


def _new_frames(trial: Trial, parent: Trajectory) -> Arrays:
    """Return the frames of an accepted path that its parent lacks, how many are before and after, and the range it shares."""
    if not trial.accepted or trial.path is None:
        return {"made": np.zeros(2, dtype=np.int64), "kept": np.zeros(2, dtype=np.int64)}
    path, made, kept = trial.path, (len(trial.path), 0), (0, 0)
    if trial.shared is not None:
        first, last = trial.shared
        start = first + trial.frame_new - trial.frame_old
        after = start + last + 1 - first
        # a path made one way has frames of its parent; elsewhere a shooting point keeps its positions but may have new velocities
        if trial.direction != "both" or all(
            _same(getattr(path, name), getattr(parent, name), slice(start, after), slice(first, last + 1)) for name in _KEPT
        ):
            made, kept = (start, len(path) - after), (first, last + 1)
    before, behind = slice(0, made[0]), slice(len(path) - made[1], len(path))
    arrays = {}
    for name in _KEPT:
        array = getattr(path, name)
        if array is not None:
            # a slice where there is one piece: the chain keeps the path anyway
            arrays[name] = (
                array[before] if not made[1] else array[behind] if not made[0] else np.concatenate((array[before], array[behind]))
            )
    return {"made": np.array(made, dtype=np.int64), "kept": np.array(kept, dtype=np.int64), **arrays}


def _same(new: Array | None, old: Array | None, there: slice, here: slice) -> bool:
    if new is None or old is None:
        return new is old
    return np.array_equal(new[there], old[here])


def _pack(steps: list[list[tuple[Trial, Arrays]]], begin: int) -> Arrays:
    trials = [[trial for trial, _ in step] for step in steps]

    def table(value: Any, kind: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.array([[value(trial) for trial in step] for step in trials], dtype=kind)

    frames = [arrays for step in steps for _, arrays in step]
    packed: Arrays = {
        "begin": np.array([begin], dtype=np.int64),
        "reason": table(lambda t: REASONS.index(t.reason), np.int8),
        "log_ratio": table(lambda t: t.log_ratio, np.float64),
        "frames": table(lambda t: (t.frame_old, t.frame_new), np.int64),
        "direction": table(lambda t: DIRECTIONS.index(t.direction), np.int8),
        "shared": table(lambda t: t.shared if t.shared is not None else (-1, -1), np.int64),
        "anchor": table(lambda t: -1 if t.anchor is None else t.anchor, np.int64),
        "evaluations": table(lambda t: t.force_evaluations, np.int64),
        "made": np.array([[arrays["made"] for _, arrays in step] for step in steps]),
        "kept": np.array([[arrays["kept"] for _, arrays in step] for step in steps]),
    }
    for name in _KEPT:
        parts = [arrays[name] for arrays in frames if name in arrays]
        if parts:
            packed[name] = np.concatenate(parts)
    return packed


def _trial(chunk: Arrays, k: int, c: int, parent: Trajectory, rows: slice) -> Trial:
    reason = REASONS[int(chunk["reason"][k, c])]
    shared = tuple(int(i) for i in chunk["shared"][k, c])
    path = None
    if reason == "accepted":
        before, (first, end) = int(chunk["made"][k, c, 0]), (int(i) for i in chunk["kept"][k, c])
        frames = {}
        for name in _KEPT:
            if name in chunk:
                new, old = chunk[name][rows], getattr(parent, name)
                parts = [new[:before], new[before:]] if first == end else [new[:before], old[first:end], new[before:]]
                frames[name] = np.concatenate(parts)
        path = Trajectory(frames["positions"], parent.stride, frames.get("velocities"), frames.get("boxes"), parent.topology)
    anchor = int(chunk["anchor"][k, c])
    old_frame, new_frame = (int(i) for i in chunk["frames"][k, c])
    return Trial(
        path=path,
        accepted=reason == "accepted",
        reason=reason,
        log_ratio=float(chunk["log_ratio"][k, c]),
        frame_old=old_frame,
        frame_new=new_frame,
        direction=DIRECTIONS[int(chunk["direction"][k, c])],
        shared=None if shared[0] < 0 else (shared[0], shared[1]),
        force_evaluations=int(chunk["evaluations"][k, c]),
        anchor=None if anchor < 0 else anchor,
    )
