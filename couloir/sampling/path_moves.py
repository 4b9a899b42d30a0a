"""Shooting moves: a new path from an old one, so that paths keep the probability that equilibrium dynamics gives them.

A frame x_s of the old path is chosen with the selector's probability w(x_s) / sum w, new dynamics is run from it until
the ensemble says stop, and the new path is accepted, if it belongs to the ensemble, with probability

    min(1, [w(x_s) / sum_new w] / [w(x_s) / sum_old w])

(Bolhuis & Swenson, Adv. Theory Simul. 4, 2000237 (2021), Eqs. 9-13; flexible length: van Erp, Moroni, Bolhuis, J. Chem.
Phys. 118, 7762 (2003)).  Aimless and spring moves carry a frame x_a along with the path, the anchor, which has that
probability; x_s lies near it, and the new anchor lies near x_s with the same distribution of distances, so that the ratio
is that of w(x_a) / sum w; the other moves have a = s.  The dynamics' own probabilities cancel: it is reversible under R of
:mod:`couloir.sampling.velocities`, and fresh velocities are drawn from equilibrium.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from couloir.cv.region import Region
from couloir.errors import DataError
from couloir.sampling.dragging import propagated
from couloir.sampling.engine import Engine, steps
from couloir.sampling.path_ensembles import PathSet
from couloir.sampling.path_pieces import at, backward_positions, joined, one_frame, piece
from couloir.sampling.selectors import Selector, UniformSelector, choose, log_probability
from couloir.sampling.velocities import fresh, has_velocities, turned, turned_paths
from couloir.streams import stream
from couloir.trajectory import State, Trajectory

Direction = Literal["forward", "backward", "both"]
Reason = Literal["accepted", "ensemble", "acceptance", "max length", "failed"]

_SEEDS = 2**31 - 2  # how many: OpenMM's are positive 32-bit integers with a sign

LEAST_NOISE = 1e-4
"""Friction times duration of a path below which shooting one way is refused: what is made anew follows the old path."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What became of one proposed path.

    Attributes
    ----------
    path : the new path, or None unless it is accepted.
    accepted : whether the chain goes on from it.
    reason : ``"accepted"``; ``"ensemble"``: it does not belong; ``"acceptance"``: the random number was too large;
        ``"max length"``: it did not end in time; ``"failed"``: its dynamics broke down, or
        forces or constraints failed where velocities are drawn or turned.
    log_ratio : logarithm of the acceptance ratio; -inf where the path was given up before it was known.
    frame_old, frame_new : the shooting point in the old path, and in the new one (-1 if there is none).
    direction : in which direction of time dynamics was run.
    shared : first and last frame of the old path that the new one keeps, or None.
    force_evaluations : steps of dynamics that were spent.
    anchor : of a move that has one, where it is now in the chain's path, accepted or not: hand it to the next proposal.
    """

    path: Trajectory | None
    accepted: bool
    reason: Reason
    log_ratio: float
    frame_old: int
    frame_new: int
    direction: Direction
    shared: tuple[int, int] | None
    force_evaluations: int
    anchor: int | None = None


@dataclass(eq=False, slots=True)
class _Shot:
    """One chain's shot before any dynamics: from where, which way, and how long its path may become."""

    path: Trajectory
    frame: int
    anchor: int
    offset: int
    direction: Direction
    log_u: float
    limit: int
    early: bool
    seeds: tuple[int, ...]
    """Of the fresh velocities and of the two halves."""
    fixed: bool
    """Whether its path has as many frames as the old one, and ``limit`` is their number."""
    starts: tuple[State, ...] = ()

    @property
    def budget(self) -> int:
        """The most frames that one half may add."""
        kept = {"forward": self.frame + 1, "backward": len(self.path) - self.frame, "both": 2}
        return self.limit - kept[self.direction]

    @property
    def budgets(self) -> tuple[int, ...]:
        """The most frames that each half may add; where the length is fixed, how many it adds."""
        if self.direction != "both":
            return (self.budget,)
        return (self.frame, len(self.path) - 1 - self.frame) if self.fixed else (self.budget, self.budget)

    def anchor_after(self, accepted: int | None) -> int:
        """Return the anchor when the new path is accepted with this shooting point, or (None) rejected."""
        return self.anchor if accepted is None else accepted - self.offset

    @property
    def kept(self) -> tuple[int, int] | None:
        """First and last frame of the old path that the new one keeps."""
        spans = {"forward": (0, self.frame), "backward": (self.frame, len(self.path) - 1)}
        return spans.get(self.direction)


@dataclass(frozen=True, eq=False)
class _Verdict:
    """What positions alone decide: the trial path, and, where there is one, its past as it was run and what follows it."""

    reason: Reason
    log_ratio: float = -math.inf
    frame: int = -1
    path: Trajectory | None = None
    past: Trajectory | None = None
    rest: Trajectory | None = None


@dataclass(frozen=True)
class ShootingMove:
    """A kind of shooting move; made by :meth:`one_way`, :meth:`two_way`, :meth:`aimless` and :meth:`spring`.

    Parameters
    ----------
    ways : 1 keeps one side of the old path, 2 makes both anew, with fresh velocities.
    selector : which frames are shot from; where there are offsets, which frames are anchors.
    offsets : of the shooting point from the anchor, in frames; () has no anchor.
    bias : an offset d is taken with a weight exp(-bias d) forward and exp(bias d) backward.
    """

    ways: Literal[1, 2]
    selector: Selector = field(default_factory=UniformSelector)
    offsets: tuple[int, ...] = ()
    bias: float = 0.0

    @classmethod
    def one_way(cls, selector: Selector | None = None) -> ShootingMove:
        """Keep the past or the future of a frame, each in half of the cases, and make the other anew: stochastic dynamics only."""
        return cls(1, selector or UniformSelector())

    @classmethod
    def two_way(cls, selector: Selector | None = None) -> ShootingMove:
        """Draw velocities anew and run both ways."""
        return cls(2, selector or UniformSelector())

    @classmethod
    def aimless(cls, dt_frames: int, selector: Selector | None = None) -> ShootingMove:
        """Shoot two ways from the anchor or from ``dt_frames`` before or after it (Peters & Trout, J. Chem. Phys. 125, 054108 (2006)).

        Raises
        ------
        DataError : ``dt_frames`` is not positive.
        """
        _at_least_one("dt_frames", dt_frames)
        return cls(2, selector or UniformSelector(), (-dt_frames, 0, dt_frames))

    @classmethod
    def spring(cls, reach: int, stiffness: float, selector: Selector | None = None) -> ShootingMove:
        """Shoot one way from up to ``reach`` frames around the anchor: forward rather from before it, backward from after it.

        After Brotzakis & Bolhuis, J. Chem. Phys. 145, 164112 (2016), with offsets weighed by exp(-+ stiffness d).

        Raises
        ------
        DataError : ``reach`` is not positive.
        """
        _at_least_one("reach", reach)
        return cls(1, selector or UniformSelector(), tuple(range(-reach, reach + 1)), stiffness)

    def __str__(self) -> str:
        kind = ("aimless" if self.ways == 2 else "spring") if self.offsets else ("two-way" if self.ways == 2 else "one-way")
        return f"{kind} shooting ({type(self.selector).__name__})"

    def propose(
        self,
        engine: Engine,
        paths: Sequence[Trajectory],
        ensemble: PathSet | Sequence[PathSet],
        *,
        seeds: Sequence[int],
        max_frames: int,
        anchors: Sequence[int | None] | None = None,
    ) -> list[Trial]:
        """Return one trial per chain, all dynamics that stops at the same places in one parallel batch.

        Parameters
        ----------
        paths : the chains' paths, all with one stride; with velocities where the engine has them and one side is kept.
        ensemble : what the paths must belong to, one for all or one per chain; the old ones do.  Ensembles that stop at the
            same places share one region object.
        seeds : one per chain: a trial depends on its path and seed alone.
        max_frames : longer paths do not belong to the ensemble either; in one of fixed length, it says nothing.
        anchors : for aimless and spring moves, of each chain's last trial; None for a chain's first, whose anchor is drawn.

        Raises
        ------
        DataError : numbers of paths, seeds or anchors or strides differ, a path lacks velocities or boxes or the move its anchors, the
            dynamics is not reversible, or one side is to be made anew by dynamics that has next to no noise.
        """
        self._check(engine, paths, seeds)
        if self.offsets and (anchors is None or len(anchors) != len(paths)):
            raise DataError(
                "this move needs one anchor per chain", "give anchors=[trial.anchor for trial in the last trials], None at first"
            )
        ensembles = list(ensemble) if isinstance(ensemble, Sequence) else [ensemble] * len(paths)
        if len(ensembles) != len(paths):
            raise DataError(f"{len(ensembles)} ensembles for {len(paths)} paths", "give one for all, or one per path")
        by_ensemble = {id(e): e.stop for e in ensembles}
        stops = [by_ensemble[id(e)] for e in ensembles]
        limits = [None if stop is None else max_frames for stop in stops]
        shots = [self._aim(*one) for one in zip(paths, seeds, limits, anchors or [None] * len(paths), strict=True)]
        self._start(engine, shots)
        halves = self._run(engine, shots, stops)
        evaluations = steps(paths[0].stride, engine.time_step, "stride")
        return self._judged(engine, shots, halves, ensembles, evaluations)

    def _check(self, engine: Engine, paths: Sequence[Trajectory], seeds: Sequence[int]) -> None:
        if not paths or len(paths) != len(seeds):
            raise DataError(f"{len(paths)} paths and {len(seeds)} seeds, expected one seed for each of at least one path")
        if not getattr(engine, "reversible", True):
            raise DataError(
                "the dynamics is driven, so it does not run backwards as it runs forwards: shooting would sample other paths than it has",
                "use an engine whose forces follow from an energy, with thermal noise",
            )
        periodic, kept = getattr(engine, "periodic", False), self.ways == 1 and has_velocities(engine)
        for i, path in enumerate(paths):
            if not math.isclose(path.stride, paths[0].stride):
                raise DataError(f"path {i} has a frame every {path.stride:g} ps, path 0 every {paths[0].stride:g} ps")
            if periodic and path.boxes is None:
                raise DataError(f"path {i} has no boxes, but the system is periodic", "give paths with the box of every frame")
            if kept and path.velocities is None:
                raise DataError(f"path {i} has no velocities, so its future cannot be made anew alone", "shoot two ways first")
        if self.ways == 2:
            return
        friction, span = getattr(engine, "friction", None), max(map(len, paths)) * paths[0].stride
        if friction is None:
            return
        largest = friction if isinstance(friction, float) else float(np.max(friction))
        if largest * span < LEAST_NOISE:
            raise DataError(
                f"with a friction of {largest:g}/ps, dynamics has next to no noise within the {span:g} ps of a path: shooting "
                "one way from it gives the same path again",
                "shoot two ways, or raise the friction",
            )

    def _aim(self, path: Trajectory, seed: int, max_frames: int | None, anchor: int | None) -> _Shot:
        rng = stream(seed, "shot")
        u, way, *others = rng.random(5).tolist()
        seeds = tuple(1 + int(_SEEDS * x) for x in others)
        direction: Direction = "both" if self.ways == 2 else "forward" if way < 0.5 else "backward"
        if anchor is None:
            anchor = choose(self.selector, path.positions, rng)
        if anchor is None:
            raise DataError("the selector gives every frame of a path the weight zero", "make it wider, or move its center")
        there, back = self._offset(direction, rng), self._offset(direction, rng)
        if max_frames is None:  # every path of the ensemble is as long as the old one
            limit, early = len(path), False
        else:
            longest = self.selector.longest(len(path), u)
            limit, early = (max_frames, False) if longest > max_frames else (math.floor(longest), True)
        frame = anchor + there
        if not 0 < frame < len(path) - 1:  # no shooting point: nothing is run, and the chain stays where it is
            frame, limit, early = anchor, 0, True
        return _Shot(path, frame, anchor, back, direction, math.log(u) if u > 0 else -math.inf, limit, early, seeds, max_frames is None)

    def _offset(self, direction: Direction, rng: np.random.Generator) -> int:
        if not self.offsets:
            return 0
        weights = np.exp((self.bias if direction == "backward" else -self.bias) * np.array(self.offsets))
        return int(rng.choice(self.offsets, p=weights / weights.sum()))

    def _start(self, engine: Engine, shots: Sequence[_Shot]) -> None:
        """Give the shots the states that their dynamics starts from: back in time, ahead, or both."""
        points = [at(shot.path, shot.frame) for shot in shots]
        if self.ways == 2:
            points = fresh(engine, points, [shot.seeds[0] for shot in shots])
        back = iter(turned(engine, [p for p, shot in zip(points, shots, strict=True) if shot.direction != "forward"]))
        for point, shot in zip(points, shots, strict=True):
            shot.starts = (point,) if shot.direction == "forward" else (next(back),)
            if shot.direction == "both":
                shot.starts += (point,)

    def _run(self, engine: Engine, shots: Sequence[_Shot], stops: Sequence[Region | None]) -> list[tuple[Trajectory, ...] | None]:
        """Return the halves of every shot, None where the old path leaves no frame for one."""
        out: list[tuple[Trajectory, ...] | None] = [None] * len(shots)
        for stop in {id(stop): stop for stop in stops}.values():
            going = [i for i, shot in enumerate(shots) if stops[i] is stop and shot.budget >= 1]
            if not going:
                continue
            stride = shots[going[0]].path.stride
            halves = iter(
                propagated(
                    engine,
                    [state for i in going for state in shots[i].starts],
                    duration=[budget * stride for i in going for budget in shots[i].budgets],
                    stride=stride,
                    record=None,
                    stop=stop,
                    velocities=True,
                    seed=[seed for i in going for seed in shots[i].seeds[1 : 1 + len(shots[i].starts)]],
                )
            )
            for i in going:
                out[i] = tuple(next(halves) for _ in shots[i].starts)
        return out

    def _judged(
        self,
        engine: Engine,
        shots: Sequence[_Shot],
        halves: Sequence[tuple[Trajectory, ...] | None],
        ensembles: Sequence[PathSet],
        evaluations: int,
    ) -> list[Trial]:
        verdicts = [self._verdict(*one) for one in zip(shots, halves, ensembles, strict=True)]
        pasts = {
            i: v.past for i, v in enumerate(verdicts) if v.reason == "accepted" and v.past is not None and v.past.velocities is not None
        }
        paths = [verdict.path for verdict in verdicts]
        for i, past in zip(pasts, turned_paths(engine, list(pasts.values())), strict=True):
            rest = verdicts[i].rest
            assert rest is not None
            if past.ended == "failed":
                verdicts[i] = _Verdict("failed")
            else:
                paths[i] = joined(past, rest)
        accepted = [v.reason == "accepted" for v in verdicts]
        return [
            Trial(
                path if ok else None, ok, v.reason, v.log_ratio, shot.frame, v.frame, shot.direction, shot.kept if ok else None,
                evaluations * sum(len(half) for half in run or ()), shot.anchor_after(v.frame if ok else None) if self.offsets else None,
            )
            for path, ok, v, shot, run in zip(paths, accepted, verdicts, shots, halves, strict=True)
        ]  # fmt: skip

    def _verdict(self, shot: _Shot, halves: tuple[Trajectory, ...] | None, ensemble: PathSet) -> _Verdict:
        """Decide on a trial by its positions alone; velocities of the past are turned for accepted paths only."""
        out_of_time = _Verdict("acceptance" if shot.early else "max length")
        if halves is None:
            return out_of_time
        if any(half.ended == "failed" for half in halves):
            return _Verdict("failed")
        n_new = sum(len(half) for half in halves) + shot.limit - shot.budget - (1 if shot.direction == "both" else 0)
        if any(half.ended != ("complete" if shot.fixed else "stopped") for half in halves) or n_new > shot.limit:
            return out_of_time
        for past, rest in _orders(shot, halves, ensemble.directed):
            frame = shot.frame if past is None else len(past)
            path = rest if past is None else joined(backward_positions(past), rest)
            if not ensemble.accepts(path, ends_only=True):  # the old path is of the ensemble, and dynamics stopped by itself
                continue
            after = log_probability(self.selector, path.positions, frame - shot.offset)
            log_ratio = after - log_probability(self.selector, shot.path.positions, shot.anchor)
            return _Verdict("accepted" if shot.log_u < log_ratio else "acceptance", log_ratio, frame, path, past, rest)
        return _Verdict("ensemble")


def _orders(shot: _Shot, halves: tuple[Trajectory, ...], directed: bool) -> Iterator[tuple[Trajectory | None, Trajectory]]:
    """Yield which new half may be the past (as it was run; None: there is none), and the path that follows it.

    Velocities v and R v are drawn equally often, so either half of a two-way shot may be the past; in an ensemble that
    has no path together with its reverse, taking the one that fits doubles the chance of every path alike.  Where the
    length is fixed, that moves the shooting point from frame s to n - 1 - s, and the reverse move takes it back.
    """
    old, s = shot.path, shot.frame
    if shot.direction == "forward":
        yield None, joined(piece(old, 0, s + 1), halves[0])
    elif shot.direction == "backward":
        yield halves[0], piece(old, s, len(old))
    else:
        back, forth = (one_frame(state, old) for state in shot.starts)
        yield halves[0], joined(forth, halves[1])
        if directed:
            yield halves[1], joined(back, halves[0])


def _at_least_one(name: str, frames: int) -> None:
    if frames < 1:
        raise DataError(f"{name} = {frames}, expected at least 1 frame")
