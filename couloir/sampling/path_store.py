"""What path sampling writes down: every trial, and of an accepted path only the frames that its parent does not have.

One chunk of the series ``"<name>/steps"`` holds some consecutive steps of all chains.  Reading plays the trials back
onto the first paths, so what comes back is bit for bit what was sampled.
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


def keep_plan(store: Store, name: str, plan: dict[str, Any], what: str = "paths") -> None:
    """Write down what a run follows from, where that is not there yet.

    Parameters
    ----------
    what : the run makes, as an error names it.

    Raises
    ------
    StoreError : the store holds a run of this name that follows from something else.
    """
    plan = json.loads(json.dumps(plan))  # as it is stored: a tuple of atoms is a list there
    stored = store.get(f"{name}/plan")
    if stored is None:
        store[f"{name}/plan"] = plan
    plan = {key: value for key, value in plan.items() if stored is None or key in stored or key not in ADDED}
    if stored is not None and stored != plan:
        changed = ", ".join(key for key in {**stored, **plan} if plan.get(key) != stored.get(key))
        raise StoreError(f"the store holds other {what} called {name!r} (different {changed})", "use a new store, or ask for the same run")


class PathLog:
    """The trials of some chains in a store, in the order of their steps.

    Parameters
    ----------
    store : where; None writes nothing.
    name : prefix of the series.
    plan : everything the trials follow from, as JSON.

    Raises
    ------
    StoreError : the store holds trials under this name that follow from something else.
    """

    def __init__(self, store: Store | None, name: str, plan: dict[str, Any]) -> None:
        self._store, self._series = store, f"{name}/steps"
        self._steps: list[list[tuple[Trial, Arrays]]] = []
        self._begin, self._committed = 0, perf_counter()
        if store is not None:
            keep_plan(store, name, plan)

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
