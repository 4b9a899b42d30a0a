"""Long runs of many walkers, cut into chunks that are stored as they finish.

Chunk c of a walker is a pure function of a state at the end of chunk c-1, the walker's bias and a seed derived from
(seed, run name, walker, c); so a killed run continues exactly where an uninterrupted one would have gone, whatever the
number of workers.  Chunks of all walkers go in rounds (:mod:`couloir.sampling.rounds`).  Chunks are always finished;
whoever reads takes as many records as were asked for.

With exchange, walkers of one group hand each other their configurations between chunks: the permutation is drawn from
its exact conditional distribution given the CV values (Gibbs sampling of the state indices, Chodera & Shirts, J. Chem.
Phys. 135, 194110 (2011), by many pair swaps), as a pure function of the stored values, so it needs no storage.
Generative moves (:mod:`couloir.sampling.independence`) come after the exchange; what they did is stored.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import Bias, bias_from_dict
from couloir.errors import DataError, StoreError
from couloir.progress import Progress, progress_bar
from couloir.sampling.engine import Engine, steps
from couloir.sampling.rounds import Rounds
from couloir.store import Arrays, Store
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array, State, Trajectory
from couloir.units import GAS_CONSTANT, convert

if TYPE_CHECKING:
    from couloir.sampling.independence import IndependenceMoves

CHUNK_RECORDS = 100
COMMIT_SECONDS = 1.0
"""Results are committed at least this often, and whenever a round of chunks is complete or fails."""


@dataclass(frozen=True)
class ChunkedRun:
    """Walkers with their biases, what is recorded of them, and the store they write to.

    Attributes
    ----------
    name : prefix of the series in the store.
    walkers : a key per walker, also its series in the store and part of its seed; e.g. ``"w0003/001"``.
    states, biases : where each walker starts, and its bias (None: none).
    record : CVs recorded every ``record_steps`` steps; frames are kept every ``frame_records`` records.
    chunk_records : records per chunk.
    groups : walkers that exchange configurations after every chunk, as lists of walker numbers; empty for no exchange.
    moves : generative moves between chunks, or None.

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
    chunk_records: int = CHUNK_RECORDS
    groups: tuple[tuple[int, ...], ...] = ()
    moves: IndependenceMoves | None = None
    _drawn: dict[int, list[list[int]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.chunk_records % self.frame_records:
            raise DataError(f"frames every {self.frame_records} records do not divide chunks of {self.chunk_records} records")
        plan = {
            "walkers": list(self.walkers),
            "biases": [None if bias is None else bias.to_dict() for bias in self.biases],
            "record": [cv.name for cv in self.record],
            "record_steps": self.record_steps,
            "frame_records": self.frame_records,
            "chunk_records": self.chunk_records,
            "groups": [list(group) for group in self.groups],
            "dynamics": self.engine.digest(),
            "states": _digest(self.states),
            "time_step": self.engine.time_step,
            "temperature": self.engine.temperature,
            "seed": self.seed,
            **({} if self.moves is None else {"moves": self.moves.digest()}),
        }
        stored = self.store.get(f"{self.name}/plan")
        if stored is None:
            self.store[f"{self.name}/plan"] = plan
        elif stored != plan:
            changed = ", ".join(sorted(key for key in {*plan, *stored} if plan.get(key) != stored.get(key)))
            raise StoreError(f"the store holds another {self.name!r} run (different {changed})", "use a new store, or ask for the same run")

    @property
    def record_stride(self) -> float:
        """Time between records, ps."""
        return self.record_steps * self.engine.time_step

    def n_records(self, duration: Any) -> int:
        """Return how many records a duration holds, rounded up."""
        return math.ceil(round(convert(duration, "ps", "duration") / self.record_stride, 6))

    def advance(self, n_records: int | Sequence[int], title: str) -> None:
        """Continue every walker until it has at least ``n_records`` records: one number, or one per walker."""
        wanted = [max(1, math.ceil(n / self.chunk_records)) for n in np.broadcast_to(n_records, len(self.walkers)).tolist()]
        done, rounds = self._done(), self._rounds()
        time = self.chunk_records * self.record_stride
        with progress_bar(title, sum(map(max, wanted, done)) * time, "ps") as bar:
            bar.advance(sum(done) * time)
            while short := [i for i, n in enumerate(wanted) if done[i] < n]:
                # A round that was begun is finished first, so that a resumed run falls into step again.
                number = rounds.current(done)
                before = rounds.chunks_before(number)
                members = [i for i in rounds.members(number) if done[i] == before[i]]
                if len(members) == len(rounds.members(number)) and members != short:
                    members, rounds = short, rounds.then(number, short)
                    self.store[f"{self.name}/rounds"] = rounds.to_list()
                self._chunk(members, number, bar)
                for i in members:
                    done[i] += 1

    def _done(self) -> list[int]:
        return [self.store.count(f"{self.name}/{w}") for w in self.walkers]

    def _rounds(self) -> Rounds:
        return Rounds.from_list(len(self.walkers), self.store.get(f"{self.name}/rounds"))

    def chunks(self, walker: str) -> list[Arrays]:
        """Return the stored chunks of a walker."""
        return list(self.store.chunks(f"{self.name}/{walker}"))

    def frames(self, walker: str) -> Array:
        """Return the frames kept of a walker, (n_frames, n_atoms, 3)."""
        return np.concatenate([chunk["positions"] for chunk in self.chunks(walker)]).astype(np.float64)

    def starts(self, number: int) -> list[State]:
        """Return the state in which each walker begins round ``number``, exchanges and generative moves included."""
        if number == 0:
            return list(self.states)
        rounds = self._rounds()
        last = rounds.chunks_before(number) - 1
        ends = [self.store.chunk(f"{self.name}/{walker}", int(i)) for walker, i in zip(self.walkers, last, strict=True)]
        order = list(range(len(ends)))
        if self.groups:
            sources = self._exchange(number, rounds.members(number), np.array([end["values"][-1] for end in ends]))
            for group, new in zip(self.groups, sources, strict=True):
                for place, source in zip(group, new, strict=True):
                    order[place] = group[source]
        return self._moved([_state(ends[i]) for i in order], number)

    def _exchange(self, number: int, members: Sequence[int], ends: Array) -> list[list[int]]:
        """Return the sources of every place before round ``number``, per group, given all last CV values; drawn once."""
        if number not in self._drawn:
            names, key = [cv.name for cv in self.record], (self.seed, self.name, number)
            self._drawn[number] = _sources(self.groups, members, self.biases, names, ends, self.engine.kT, key)
        return self._drawn[number]

    def replicas(self) -> list[npt.NDArray[np.int64]]:
        """Return which configuration every walker carried in each of its chunks: the number of the walker that began with it."""
        done, rounds = self._done(), self._rounds()
        occupant, out = np.arange(len(done)), [np.full(n, i) for i, n in enumerate(done)]
        if not self.groups:
            return out
        ends = [np.array([chunk["values"][-1] for chunk in self.store.chunks(f"{self.name}/{w}")]) for w in self.walkers]
        for number in range(rounds.current(done) + 1):
            before = rounds.chunks_before(number)
            members = [i for i in rounds.members(number) if before[i] < done[i]]
            if not members:  # who takes part in a round that has not begun may still change
                break
            if number:
                last = np.array([end[i] for end, i in zip(ends, before - 1, strict=True)])
                for group, source in zip(self.groups, self._exchange(number, rounds.members(number), last), strict=True):
                    occupant[list(group)] = occupant[[group[k] for k in source]]
            for i in members:
                out[i][before[i]] = occupant[i]
        return out

    def _moved(self, states: list[State], number: int) -> list[State]:
        """Return the states after the generative moves before round ``number``, which are made once and stored."""
        if self.moves is None or number % self.moves.every:
            return states
        series, index = f"{self.name}/moves", number // self.moves.every - 1
        if self.store.count(series) <= index:
            members = list(self._rounds().members(number))
            seed = integer_seed(self.seed, self.name, "moves", number)
            moved = self.moves.apply(self.engine, [states[i] for i in members], [self.biases[i] for i in members], self.record, seed)
            new = [s.positions for s, yes in zip(moved.states, moved.accepted, strict=True) if yes]
            arrays = {"members": np.array(members), "accepted": moved.accepted, "log_ratio": moved.log_ratio}
            shape = states[0].positions.shape
            self.store.append({series: {**arrays, "positions": np.array(new).reshape(-1, *shape)}})
        done = self.store.chunk(series, index)
        for i, x in zip(done["members"][done["accepted"]].tolist(), done["positions"], strict=True):
            states[i] = State(x, box=states[i].box)
        return states

    def _chunk(self, members: Sequence[int], number: int, bar: Progress) -> None:
        time = self.chunk_records * self.record_stride
        starts, chunk, committed = self.starts(number), self._rounds().chunks_before(number), perf_counter()
        pending: dict[str, Arrays] = {}

        def commit() -> None:
            nonlocal committed
            if pending:
                self.store.append(pending)
                pending.clear()
            committed = perf_counter()

        def keep(i: int, trajectory: Trajectory) -> None:
            pending[f"{self.name}/{self.walkers[members[i]]}"] = _pack(trajectory)
            bar.advance(time)
            if perf_counter() - committed > COMMIT_SECONDS:
                commit()

        try:
            self.engine.propagate(
                [starts[i] for i in members],
                duration=time,
                stride=self.frame_records * self.record_stride,
                bias=[self.biases[i] for i in members],
                record=self.record,
                record_stride=self.record_stride,
                seed=[integer_seed(self.seed, self.name, self.walkers[i], int(chunk[i])) for i in members],
                on_result=keep,
            )
        finally:
            commit()


def gibbs_permutation(energies: Array, rng: np.random.Generator) -> list[int]:
    """Return which configuration each place gets, drawn given all reduced energies (n_places, n_configurations).

    Pair swaps with the Metropolis rule, n^2 of them (at least 100): each leaves the exact conditional distribution of
    permutations, proportional to exp(-sum_place energies[place, configuration]), unchanged.
    """
    n = len(energies)
    order, u = list(range(n)), energies.tolist()
    n_swaps = max(100, n * n) if n > 1 else 0
    pairs, uniform = rng.integers(0, n, size=(n_swaps, 2)).tolist(), rng.random(n_swaps).tolist()
    for (i, j), r in zip(pairs, uniform, strict=True):
        delta = u[i][order[j]] + u[j][order[i]] - u[i][order[i]] - u[j][order[j]]
        if delta <= 0 or r < math.exp(-delta):
            order[i], order[j] = order[j], order[i]
    return order


@dataclass(frozen=True, eq=False)
class ExchangeHistory:
    """Which configuration every walker of one exchanging group was given, chunk after chunk.

    Attributes
    ----------
    windows : (n_places,) the window of each place of the group.
    sources : (n_attempts, n_places) the place whose configuration each place was given.
    took_part : (n_attempts, n_places) whether the place was run on; windows that need no more time stand aside.
    interval : time between attempts, ps.
    """

    windows: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    took_part: npt.NDArray[np.bool_]
    interval: float


def exchange_history(store: Store, name: str) -> list[ExchangeHistory]:
    """Return what the groups of a stored run exchanged so far; empty when it ran without exchange.

    Permutations are not stored but drawn again from stored CV values.  Only attempts whose next chunk every walker has
    finished are counted.

    Raises
    ------
    DataError : the store holds no run of this name.
    """
    plan = store.get(f"{name}/plan")
    if plan is None:
        raise DataError(f"the store holds no run called {name!r}", "run the windows first")
    walkers, groups, biases = plan["walkers"], plan["groups"], [None if b is None else bias_from_dict(b) for b in plan["biases"]]
    if not groups:
        return []
    done = [store.count(f"{name}/{w}") for w in walkers]
    rounds = Rounds.from_list(len(walkers), store.get(f"{name}/rounds"))
    ends = [np.array([chunk["values"][-1] for chunk in store.chunks(f"{name}/{w}")]) for w in walkers]
    kT = GAS_CONSTANT * plan["temperature"]
    drawn, took_part = [], []
    for number in range(1, rounds.current(done)):
        last, members = rounds.chunks_before(number) - 1, rounds.members(number)
        values = np.array([end[i] for end, i in zip(ends, last, strict=True)])
        drawn.append(_sources(groups, members, biases, plan["record"], values, kT, (plan["seed"], name, number)))
        took_part.append(np.isin(np.arange(len(walkers)), members))
    window = np.array([int(w[1:5]) for w in walkers])
    interval = plan["chunk_records"] * plan["record_steps"] * plan["time_step"]
    shape = len(drawn), len(walkers)
    return [
        ExchangeHistory(
            window[group],
            np.array([d[g] for d in drawn], dtype=np.int64).reshape(-1, len(group)),
            np.array(took_part, dtype=bool).reshape(shape)[:, group],
            interval,
        )
        for g, group in enumerate(groups)
    ]


def _sources(
    groups: Sequence[Sequence[int]],
    members: Sequence[int],
    biases: Sequence[Bias | None],
    names: Sequence[str],
    ends: Array,
    kT: float,
    key: tuple[int, str, int],
) -> list[list[int]]:
    """Return, per group, the place whose configuration each place gets before round ``key[2]``, given all last CV values.

    Walkers that are no members keep theirs.
    """
    seed, name, number = key
    out, taking_part = [], set(members)
    for g, group in enumerate(groups):
        places = [place for place, i in enumerate(group) if i in taking_part]
        values, rows = ends[[group[place] for place in places]], []
        for bias in (biases[group[place]] for place in places):
            columns = [] if bias is None else [names.index(n) for n in bias.names]
            rows.append(np.zeros(len(values)) if bias is None else bias.energy(values[:, columns]))
        sources = list(range(len(group)))
        if places:
            order = gibbs_permutation(np.array(rows) / kT, stream(seed, name, "exchange", g, number))
            for place, source in zip(places, order, strict=True):
                sources[place] = places[source]
        out.append(sources)
    return out


def record_steps(engine: Engine, stride: Any, default: int = 100) -> int:
    """Return a record stride as steps; ``default`` steps when None."""
    return default if stride is None else steps(stride, engine.time_step, "record_stride")


def _state(chunk: Arrays) -> State:
    return State(chunk["last_positions"], chunk.get("last_velocities"), chunk.get("last_box"))


def _digest(states: Sequence[State]) -> str:
    total = hashlib.sha256()
    for state in states:
        for array in (state.positions, state.velocities, state.box):
            total.update(b"-" if array is None else array.tobytes())
    return total.hexdigest()


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
