"""Transition interface sampling with replica exchange: how often a system leaves A, and how far it comes.

Every ensemble [0-], [0+] ... [n-1+] of :mod:`couloir.sampling.interface_ensembles` holds one path per set.  In each cycle all
paths of all sets are moved by shooting, as often as ``shots`` says, and then exchanged.

- [0+] ... [n-1+] exchange theirs after every move.  Each weighs its paths alike, so that all ways to give them out in which every path
  reaches its interface are as likely (van Erp, Phys. Rev. Lett. 98, 268301 (2007)), and one of them is drawn.  A path that comes far
  may so pass from the first ensemble to the last at once, where swaps of neighbours diffuse; replica exchange with all permutations
  is what infinite swapping averages over (Roet, Zhang & van Erp, J. Phys. Chem. A 126, 8878 (2022)).
- [0-] and [0+] exchange by dynamics, in even cycles: the end of the excursion, one frame in A and one outside, is run forward until A
  or B and becomes the new departure, and the start of the departure, run backward until it is outside A, the new
  excursion.  Reversible dynamics makes this ratio 1 as well.

Step k follows from the paths after step k-1 and a seed derived from (seed, name, set, ensemble, k).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from couloir.analysis.interface_drift import uncertain
from couloir.analysis.interface_samples import InterfaceSamples
from couloir.analysis.path_ensemble import PathEnsemble
from couloir.cv.base import CollectiveVariable
from couloir.cv.region import Region
from couloir.errors import DataError
from couloir.progress import progress_bar
from couloir.sampling.dragging import propagated
from couloir.sampling.engine import Engine, steps
from couloir.sampling.interface_checkpoint import Checkpoints
from couloir.sampling.interface_ensembles import (
    CrossingEnsemble,
    ExcursionEnsemble,
    piece,
)
from couloir.sampling.interface_placement import Pilot, boundary, place
from couloir.sampling.interface_sets import InterfaceSets
from couloir.sampling.interface_starts import begun, both_ways, evenly, free_of_first
from couloir.sampling.path_moves import Reason, ShootingMove, Trial
from couloir.sampling.path_sampling import OnProgress, described
from couloir.sampling.path_store import PathLog, bare, described_states, paths_digest
from couloir.sampling.velocities import turned, turned_paths
from couloir.store import Store
from couloir.streams import integer_seed, stream
from couloir.trajectory import Trajectory
from couloir.units import convert

MOST_CYCLES = 20_000
"""Cycles after which a run for a relative error gives up."""
FIRST_LOOK = 100
"""Cycles after which such a run looks at its error for the first time."""
_TIMES = 20
"""Times the longest reactive path, that paths may take by default."""
_MOST_FIRST = 64
"""Reactive paths that pilot runs start from."""
_REASON_ENDED: dict[str, Reason] = {"stopped": "accepted", "complete": "max length", "failed": "failed"}
"""What the end of its dynamics makes of one side of an exchange."""


@dataclass(frozen=True, eq=False)
class TransitionInterfaceSampling:
    """Sampling of paths that leave A and cross interfaces on the way to B.

    Attributes
    ----------
    region_a : everything up to the first interface; decided at frames only, as everything here.
    region_b : where paths end that do not come back.
    along : the order parameter; grows from A to B.
    interfaces : (n,) its values in ascending order, in its unit; the first is the boundary of A.
    move : one-way or two-way shooting.
    swaps : whether ensembles exchange paths.  Without, each stays in the channel of its first path unless shooting leaves it, and no
        finding tells (``few-passages`` counts exchanges).
    max_duration : ps; longer paths are not part of the ensembles.
    shots : moves of every path in a cycle, but one of [0-]: where A holds the system for long, that one costs more than all others.
    first : paths to start from when a run is given none.
    name : prefix of what is stored, and part of every random stream.
    placement_force_evaluations : steps of dynamics that placing the interfaces took; 0 where they were given.

    Raises
    ------
    DataError : the interfaces do not ascend, the move is one that carries an anchor, or ``shots`` is less than 1.
    """

    engine: Engine
    region_a: Region
    region_b: Region
    along: CollectiveVariable
    interfaces: Sequence[Any]
    move: ShootingMove = field(default_factory=ShootingMove.one_way)
    swaps: bool = True
    max_duration: Any = field(kw_only=True)
    shots: int = field(default=1, kw_only=True)
    first: tuple[Trajectory, ...] = field(default=(), kw_only=True, repr=False)
    name: str = field(default="interfaces", kw_only=True)
    placement_force_evaluations: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        values = tuple(convert(v, self.along.unit, f"an interface along {self.along.name}") for v in self.interfaces)
        object.__setattr__(self, "interfaces", values)
        if not values or (np.diff(values) <= 0).any():
            raise DataError(f"interfaces = {values}, expected at least one, in ascending order")
        if self.move.offsets:
            raise DataError(f"{self.move} carries an anchor, which exchanges would lose", "use ShootingMove.one_way() or two_way()")
        if self.shots < 1:
            raise DataError(f"shots = {self.shots}, expected at least 1 in a cycle")

    @classmethod
    def from_paths(
        cls,
        paths: PathEnsemble | Iterable[Trajectory],
        engine: Engine,
        region_a: Region,
        region_b: Region,
        *,
        along: CollectiveVariable,
        seed: int,
        move: ShootingMove | None = None,
        max_duration: Any = None,
        pilot: Pilot | None = None,
        store: Store | None = None,
        name: str = "interfaces",
    ) -> TransitionInterfaceSampling:
        """Return a sampling that starts from reactive paths, with interfaces placed by pilot runs.

        About three in ten paths of each ensemble reach the next interface; the first is where A ends along ``along``.  Paths are moved
        so often in a cycle that all of them together take about as long as [0-] does, at most :data:`MOST_SHOTS` times.

        Parameters
        ----------
        paths : from A to B or back, as :class:`TransitionPathSampling` returns them; what engine made them is not written in them.
            Of an ensemble, paths of all its chains that hold no frame of a first path, if there are any.
        max_duration : ps; default twenty times the longest of ``paths``, or ten times the longest stay in A that is seen where that
            is too short for some.
        pilot : how long the pilot runs are.
        store : where pilot runs are kept; may be that of the run, and a store that holds some already is continued.

        Raises
        ------
        DataError : A has no limit along the order parameter or is not everything below it, or no path leaves A.
        SimulationError : the interfaces do not come near B, or forces or constraints fail at a frame of a path.
        """
        given = free_of_first(paths) if isinstance(paths, PathEnsemble) else list(paths)
        if not given:
            raise DataError("there are no paths to start from", "find some by TransitionPathSampling or reactive_seeds")
        longer = max_duration is None
        if max_duration is None:
            max_duration = _TIMES * max((len(path) - 1) * path.stride for path in given)
        start = cls(
            engine, region_a, region_b, along, (boundary(region_a, along),), move or ShootingMove.one_way(),
            max_duration=max_duration, name=name,
        )  # fmt: skip
        moving = both_ways(engine, evenly(given, _MOST_FIRST), seed, "given")  # seen from B, paths from A to B lead the other way
        return place(start, moving, seed=seed, pilot=pilot or Pilot(), store=store, longer=longer)

    @cached_property
    def ensembles(self) -> tuple[ExcursionEnsemble | CrossingEnsemble, ...]:
        """[0-], then [0+] ... [n-1+]; the latter share one stop region, so that their dynamics is one batch."""
        stop = self.region_a | self.region_b
        crossing = (CrossingEnsemble(self.region_a, self.region_b, self.along, value, stop) for value in self.interfaces)
        return ExcursionEnsemble(self.region_a, ~self.region_a), *crossing

    def max_frames(self, stride: float) -> int:
        """Return the most frames a path may have, one every ``stride`` ps.

        Raises
        ------
        DataError : ``max_duration`` holds no path.
        """
        frames = math.floor(round(convert(self.max_duration, "ps", "max_duration") / stride, 6)) + 1
        if frames < 3:
            raise DataError(f"max_duration = {self.max_duration} holds no path of frames every {stride:g} ps", "raise it")
        return frames

    def run(
        self,
        first: Trajectory | Iterable[Trajectory] | None = None,
        n_cycles: int | None = None,
        *,
        seed: int,
        relative_error: float | None = None,
        n_sets: int = 1,
        discard: int | None = None,
        keep_paths: bool = False,
        record: Sequence[CollectiveVariable] = (),
        store: Store | None = None,
        keep_frames: bool = True,
        on_progress: OnProgress | None = None,
    ) -> InterfaceSamples:
        """Move all paths ``n_cycles`` times, or until the rate is known well enough, and return what they were after each cycle.

        Parameters
        ----------
        first : trajectories at one stride, of which every ensemble takes what belongs to it: a path from A to B is enough,
            and so is what :func:`initial_paths` returns.  Default: the paths that the store holds of a run that was begun before,
            or else those that came with the sampling.
        n_cycles : how many; with ``relative_error`` the most, by default 20000.
        relative_error : go on until the standard error of the logarithm of the rate is this small and at least 8 blocks of every
            ensemble tell it; looked at after 100 cycles, and whenever there are half as many more.
        n_sets : independent sets of all ensembles, moved side by side: they use more cores, and tell errors.
        discard : cycles at the beginning that are not returned; default a tenth.  First paths carry no weight, so that these are never
            fewer than it takes until no path of any set holds a frame of them; a finding ``first-path-remains`` says when some still do.
        keep_paths : whether the paths themselves are returned.
        record : CVs whose values along the paths are returned, for :func:`couloir.analysis.reweighted_paths`.
        store : where first paths and every step are kept; a store that holds some of this run already is continued.
        keep_frames : whether the store keeps all frames of all paths, which may be gigabytes for a molecule.  Without, it keeps the
            last path of every ensemble, and of all others the values of CVs in ``record``, which cannot be changed then.
        on_progress : called with the cycles done and asked for.

        Returns
        -------
        One row per ensemble, set and cycle; where nothing was accepted, the old path's again.  Findings say when first paths remain,
        when paths were cut off (``paths-cut``), when A is left for B at once (``jumps-to-b``) and when the rate is not known well enough.

        Raises
        ------
        DataError : ``first`` has no path for some ensemble, or A does not end at the first interface, which may show only once
            a path leaves A elsewhere.
        SimulationError : forces or constraints fail at a frame of a path in ``first``.
        StoreError : the store holds another run of this name, or one without the first paths that are to be taken from it.
        """
        if n_cycles is None:
            if relative_error is None:
                raise DataError("neither n_cycles nor relative_error says when to stop", "give one, or both: what is reached first")
            n_cycles = MOST_CYCLES
        if n_cycles <= (discard or 0) or (discard or 0) < 0 or n_sets < 1:
            raise DataError(
                f"n_cycles = {n_cycles}, discard = {discard}, n_sets = {n_sets}", "sample more cycles than are discarded, at least 1 set"
            )
        if relative_error is not None and relative_error <= 0:
            raise DataError(f"relative_error = {relative_error}, expected a positive number")
        if keep_paths and store is not None and not keep_frames:
            raise DataError("keep_paths needs all frames, which the store is not to keep", "leave out keep_frames=False")
        starts, spent = begun(self, first, n_sets, seed, store)
        plan = self.plan(starts, n_sets, seed)
        sets = InterfaceSets(self, starts, n_sets, keep_paths, record)
        sets.force_evaluations = spent
        last = None if keep_frames or store is None else Checkpoints(store, self.name, plan, sets, (starts, spent))
        log = PathLog(store if last is None else None, self.name, plan, (starts, spent))
        stored, done = log.replay(sets.paths), len(sets.steps)
        look = FIRST_LOOK
        while look < done:
            look += look // 2
        with progress_bar(self.name, n_cycles, "cycles") as bar:
            try:
                for k in range(max(1, done), n_cycles + 1):
                    if k > done:
                        self._cycle(sets, k, seed, stored, log)
                        sets.note(k)
                        if last is not None:
                            last.add()
                    bar.advance(1 if k > done else k, f"acceptance {sets.acceptance:.2f}")
                    if on_progress is not None:
                        on_progress(k, n_cycles)
                    if relative_error is not None and k == look:
                        if k > (discard or 0) and uncertain(sets.samples(discard), relative_error) is None:
                            break
                        look += look // 2
            finally:
                log.commit()
                if last is not None:
                    last.commit()
        samples = sets.samples(discard)
        lacking = None if relative_error is None else uncertain(samples, relative_error)
        return samples if lacking is None else replace(samples, findings=(*samples.findings, lacking))

    def _cycle(self, sets: InterfaceSets, k: int, seed: int, stored: Iterable[list[Trial]], log: PathLog) -> None:
        replay = iter(stored)
        for shot in range(self.shots):
            moved = [c for c, (_, e) in enumerate(sets.places) if e > 0 or shot == 0]
            trials = next(replay, None)
            if trials is None:
                trials = self._shots(sets, moved, (k, shot) if shot else (k,), seed)
                log.add(trials, sets.paths)
            sets.apply(trials, k, moved)
            if self.swaps:
                key = (k, shot) if shot else (k,)
                sets.permute([stream(seed, self.name, "set", s, "permutation", *key) for s in range(sets.n_sets)])
        if not self.swaps:
            return
        if k % 2 == 0:
            trials = next(replay, None)
            if trials is None:
                seeds = [integer_seed(seed, self.name, "set", s, "exchange", k) for s in range(sets.n_sets)]
                trials = self._exchange(sets, seeds)
                log.add(trials, sets.paths)
            sets.apply_exchange(trials, k)

    def _shots(self, sets: InterfaceSets, moved: Sequence[int], key: tuple[int, ...], seed: int) -> list[Trial]:
        """Return a shot of each path in ``moved``; those of the others change nothing."""
        places = [sets.places[c] for c in moved]
        seeds = [integer_seed(seed, self.name, "set", s, "ensemble", e, "step", *key) for s, e in places]
        ensembles, paths = [self.ensembles[e] for _, e in places], [sets.paths[c] for c in moved]
        out = [_rejected("ensemble", 0) for _ in sets.paths]
        for c, trial in zip(moved, self.move.propose(self.engine, paths, ensembles, seeds=seeds, max_frames=sets.max_frames), strict=True):
            out[c] = trial
        return out

    def _exchange(self, sets: InterfaceSets, seeds: Sequence[int]) -> list[Trial]:
        """Return trials of [0-] and [0+] that take each other's end and run on from it; those of the others change nothing."""
        inner, outer = (sets.of(e) for e in (0, 1))
        ends = [piece(sets.paths[c], len(sets.paths[c]) - 2, len(sets.paths[c])) for c in inner]
        begins = [piece(sets.paths[c], 0, 2) for c in outer]
        ahead = self._run_on(ends, 1, [integer_seed(one, "ahead") for one in seeds], sets.max_frames)
        behind = self._run_on(begins, 0, [integer_seed(one, "behind") for one in seeds], sets.max_frames)
        per_frame = steps(sets.paths[0].stride, self.engine.time_step, "stride")
        out = [_rejected("ensemble", 0) for _ in sets.paths]
        for c_in, c_out, new_out, new_in in zip(inner, outer, ahead, behind, strict=True):
            reasons = [_REASON_ENDED[new.ended] for new in (new_in, new_out)]
            if reasons == ["accepted"] * 2 and not (self.ensembles[0].accepts(new_in) and self.ensembles[1].accepts(new_out)):
                reasons = ["ensemble"] * 2
            taken = reasons == ["accepted"] * 2
            for c, new, reason in zip((c_in, c_out), (new_in, new_out), reasons, strict=True):
                spent = per_frame * (len(new) - 2)
                out[c] = _taken(new, spent) if taken else _rejected("ensemble" if reason == "accepted" else reason, spent)
        return out

    def _run_on(self, pairs: Sequence[Trajectory], ensemble: int, seeds: Sequence[int], max_frames: int) -> list[Trajectory]:
        """Return pairs of frames, run forward from the second into a path of [0+], or backward from the first into one of [0-]."""
        forward = ensemble == 1
        states = [pair.state(1 if forward else 0) for pair in pairs]
        more = propagated(
            self.engine, states if forward else turned(self.engine, states), duration=(max_frames - 2) * pairs[0].stride,
            stride=pairs[0].stride, record=None, stop=self.ensembles[ensemble].stop, velocities=True, seed=seeds,
        )  # fmt: skip
        ended = [run.ended for run in more]
        parts = [[pair, bare(run)] for pair, run in zip(pairs, more, strict=True)]
        if not forward:
            pasts = turned_paths(self.engine, more)
            ended = ["failed" if past.ended == "failed" else how for past, how in zip(pasts, ended, strict=True)]
            parts = [[past, pair] for past, pair in zip(pasts, pairs, strict=True)]
        return [replace(Trajectory.join(both), ended=how, last=None) for both, how in zip(parts, ended, strict=True)]

    def into(self, departures: Sequence[Trajectory], seed: int) -> tuple[list[Trajectory], int, int]:
        """Return paths of [0-], run backward from where departures leave A; steps of dynamics they took; how many were cut off."""
        starts = [piece(path, 0, 2) for path in departures]
        seeds = [integer_seed(seed, "into A", i) for i in range(len(starts))]
        paths = self._run_on(starts, 0, seeds, self.max_frames(starts[0].stride))
        spent = steps(starts[0].stride, self.engine.time_step, "stride") * sum(len(path) - 2 for path in paths)
        done = [bare(path) for path in paths if path.ended == "stopped"]
        return done, spent, sum(path.ended == "complete" for path in paths)

    def plan(self, starts: Sequence[Trajectory], n_sets: int, seed: int) -> dict[str, Any]:
        """Return everything that a run follows from, as JSON."""
        return {
            "dynamics": self.engine.digest(), "A": str(self.region_a), "B": str(self.region_b), "along": self.along.to_dict(),
            "interfaces": list(self.interfaces), "move": described(self.move), "shots": self.shots, "n_sets": n_sets, "seed": seed,
            "swaps": "all permutations" if self.swaps else False, "first": paths_digest(starts),
            "max_frames": self.max_frames(starts[0].stride), "stride": starts[0].stride,
            **described_states(self.region_a, self.region_b, self.move.selector),
        }  # fmt: skip


def _rejected(reason: Reason, evaluations: int) -> Trial:
    return Trial(None, False, reason, -math.inf, -1, -1, "both", None, evaluations)


def _taken(path: Trajectory, evaluations: int) -> Trial:
    return Trial(bare(path), True, "accepted", 0.0, -1, -1, "both", None, evaluations)
