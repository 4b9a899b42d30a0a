"""From generated to physical: first reactive paths between two states, proposed by a model, found by real dynamics.

configurations of A and B -> imposed as the ends of a generated path -> scores and gates -> frames near the top of the
barrier -> all-atom states -> two-way shots.  Only what real dynamics connects is returned; every generated path is kept
with its scores, and a table counts what became of them.

The paths found are a start for path sampling, not a sample: they claim no weight.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from couloir.cv.region import Region
from couloir.errors import ConfigError, DataError, Finding, ModelError, SimulationError
from couloir.sampling.engine import Engine
from couloir.sampling.path_scores import PathScores, score_paths
from couloir.sampling.shots import OUTCOMES, ShotResults, two_way_shots
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array, State, Trajectory

if TYPE_CHECKING:
    import pandas as pd

IntArray = npt.NDArray[np.int64]
Starts = State | Trajectory | Sequence[State] | Sequence[Trajectory]
Rebuild = Callable[[Array], Sequence[State | None]]

_UNBUILT = "unbuilt"
_SAMPLED = 256  # snippets in which a model that is given no configurations looks for some


class PathModel(Protocol):
    """Whatever completes paths with imposed frames (a fitted ``TrajectoryDiffusion`` does).

    A model of some atoms only names them as ``representation.atoms``; one that has ``sample`` can find its own ends.
    """

    n_frames: int
    stride: float

    def inpaint(self, known: Array, mask: npt.NDArray[np.bool_], *, seed: int) -> Array:
        """Return paths (n, frames, n_atoms, 3) that agree with ``known`` (n, frames, n_atoms, 3) where ``mask`` (frames,) is True."""
        ...


@dataclass(frozen=True, eq=False)
class ReactiveSeeds:
    """Reactive paths found by real dynamics from generated ones; they carry no weight.

    Attributes
    ----------
    paths : from A to B in time order; first frame in A, last frame in B, all others in neither.
    generated_paths, generated_frames : (n,) the generated path and its frame that each was shot from.
    shooting_frames : (n,) the frame of each path that is the shooting point.
    generated : (n_generated, frames, n_atoms, 3) every generated path.
    scores : of the generated paths, or None when there was no MD to score them against.
    counts : what became of the generated paths and the shots, and what it cost.
    findings : named warnings.
    """

    paths: tuple[Trajectory, ...]
    generated_paths: IntArray
    generated_frames: IntArray
    shooting_frames: IntArray
    generated: Array
    scores: PathScores | None
    counts: dict[str, int]
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Trajectory]:
        return iter(self.paths)

    def shooting_state(self, path: int) -> State:
        """Return the shooting point of a path."""
        return self.paths[path].state(int(self.shooting_frames[path]))

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per path: where it came from and how long it takes, ps."""
        import pandas as pd

        return pd.DataFrame({
            "generated_path": self.generated_paths, "generated_frame": self.generated_frames, "shooting_frame": self.shooting_frames,
            "duration_ps": [(len(path) - 1) * path.stride for path in self.paths],
        })  # fmt: skip

    def table(self) -> str:
        """Return the counts as text, one per line."""
        return "\n".join(f"  {name:<34}{n}" for name, n in self.counts.items())

    def __str__(self) -> str:
        return "\n".join([f"ReactiveSeeds: {len(self)} paths from A to B (no weights)", self.table(), *map(str, self.findings)])


def reactive_seeds(
    model: PathModel,
    engine: Engine,
    region_a: Region,
    region_b: Region,
    n: int,
    *,
    seed: int,
    starts_a: Starts | None = None,
    starts_b: Starts | None = None,
    data: Trajectory | Sequence[Trajectory] | None = None,
    n_frames: int | None = None,
    n_generate: int | None = None,
    selection: Literal["top", "spread"] = "top",
    n_shots_per_path: int = 4,
    max_duration: Any = None,
    stride: Any = None,
    require_gates: bool = True,
    rebuild: Rebuild | None = None,
    inpainting: Mapping[str, Any] | None = None,
) -> ReactiveSeeds:
    """Find paths from A to B by shooting from the barrier frames of generated ones.

    Parameters
    ----------
    n : paths wanted; shooting ends with the round of shots that reaches it, and all that connect are returned.
    starts_a, starts_b : configurations, of which those inside A and inside B become the ends of generated paths; default those
        in ``data``, else in snippets that the model samples.
    data : MD, to take ends from and to score the generated paths against; without it they are not scored.
    n_frames : length of the generated paths; default the model's.
    n_generate : generated paths; default 3 n.
    selection : ``"top"`` shoots from the middle of the stretch between A and B first; a path whose shots fall to A is shot next
        from half-way to B, and the reverse.  ``"spread"`` shoots from frames evenly spaced over the stretch, all at once.
    n_shots_per_path : most shots from one generated path.
    max_duration : time limit of each half shot; default ten times the length of a generated path.
    stride : time between the frames of a shot; default the model's.
    require_gates : shoot only from generated paths that passed every gate.
    rebuild : turns generated frames (m, n_kept, 3) into states the engine can start from (None where it cannot); default
        the frames as they are for toys, on their constraints for molecules of which the model generates every atom, and
        :func:`couloir.sampling.rebuild.rebuild` from a structure of A or B where it generates some.
    inpainting : further settings of ``model.inpaint``, such as ``n_calls``.

    Raises
    ------
    DataError : there is no configuration of A or of B, or the regions need atoms that the model does not generate.
    ModelError : no generated path passed the gates, or none has a frame between A and B.
    SimulationError : no shot connects A and B; ``partial`` holds the seeds object with the generated paths and the counts.
    """
    if n < 1 or n_shots_per_path < 1 or selection not in ("top", "spread"):
        raise ConfigError(
            f"n = {n}, n_shots_per_path = {n_shots_per_path}, selection = {selection!r}",
            'give positive numbers and selection="top" or "spread"',
        )
    md = None if data is None else [data] if isinstance(data, Trajectory) else list(data)
    ends = _Ends(model, engine, region_a, region_b, seed)
    from_a, from_b = (md if starts is None else starts for starts in (starts_a, starts_b))
    known, mask = ends.imposed(from_a, from_b, n_generate or 3 * n, n_frames or model.n_frames)
    settings = dict(inpainting or {})
    generated = np.asarray(model.inpaint(known, mask, seed=integer_seed(seed, "inpainting"), **settings), dtype=np.float64)
    scores = None if md is None else score_paths(
        generated, md=md, engine=engine if hasattr(engine, "energies") else None, atoms=ends.atoms, imposed=mask, stride=model.stride
    )  # fmt: skip
    finite = np.array(np.isfinite(generated).all(axis=(1, 2, 3)), dtype=bool)
    usable = finite if scores is None or not require_gates else scores.passed_all
    stretches = [ends.between(path) if ok else np.zeros(0, dtype=np.int64) for path, ok in zip(generated, usable, strict=True)]
    hunt = _Hunt(engine, region_a, region_b, generated, stretches, rebuild or _rebuilder(engine, ends))
    hunt.counts |= {"generated": len(generated), "network calls": _network_calls(model, len(generated), settings)}
    if scores is not None:
        hunt.counts["passed every gate"] = int(scores.passed_all.sum())
    hunt.counts["with frames between A and B"] = sum(len(stretch) > 0 for stretch in stretches)
    if not any(len(stretch) for stretch in stretches):
        raise ModelError(
            f"no generated path can be shot from:\n{hunt.seeds(generated, scores, 0).table()}",
            "train longer, generate more, use longer paths (n_frames), or shoot regardless of the gates (require_gates=False)",
        )
    frames = stride if stride is not None else model.stride
    limit = max_duration if max_duration is not None else 10 * generated.shape[1] * model.stride
    hunt.shoot(n, selection, n_shots_per_path, integer_seed(seed, "shots"), max_duration=limit, stride=frames)
    found = hunt.seeds(generated, scores, n)
    if not len(found):
        error = SimulationError(
            f"no shot connects A and B:\n{found.table()}",
            "raise max_duration if shots are unfinished, n_shots_per_path or n_generate if they fall to one side",
        )
        error.partial = found
        raise error
    return found


class _Ends:
    """The configurations between which paths are generated, and the regions on the atoms that a model generates."""

    def __init__(self, model: PathModel, engine: Engine, region_a: Region, region_b: Region, seed: int) -> None:
        self.model, self.seed, self.regions = model, seed, {"A": region_a, "B": region_b}
        kept = getattr(getattr(model, "representation", None), "atoms", None)
        self.n_atoms = len(engine.masses)
        self.atoms: IntArray | None = None if kept is None or len(kept) == self.n_atoms else np.asarray(kept, dtype=np.int64)
        self.reference: State | None = None

    def whole(self, frames: Array) -> Array:
        """Return frames with every atom of the system, NaN where the model generates none."""
        if self.atoms is None or frames.shape[1] == self.n_atoms:
            return frames
        out = np.full((len(frames), self.n_atoms, frames.shape[2]), np.nan)
        out[:, self.atoms] = frames
        return out

    def inside(self, name: str, frames: Array) -> npt.NDArray[np.bool_]:
        region, full = self.regions[name], self.whole(frames)
        values = {cv.name: cv.evaluate(full) for cv in region.cvs}
        blind = [cv_name for cv_name, v in values.items() if len(v) and np.isnan(v).all()]
        if blind:
            raise DataError(f"{blind[0]} cannot be evaluated on the atoms that the model generates", "define A and B on heavy atoms")
        return region.contains_values(values)

    def between(self, path: Array) -> IntArray:
        """Return the frames of a path after it last leaves A and before it first reaches B; none when it does not."""
        in_a, in_b = np.flatnonzero(self.inside("A", path)), np.flatnonzero(self.inside("B", path))
        for arrival in in_b:
            before = in_a[in_a < arrival]
            if len(before):
                return np.arange(before[-1] + 1, arrival, dtype=np.int64)
        return np.zeros(0, dtype=np.int64)

    def imposed(self, starts_a: Any, starts_b: Any, n: int, n_frames: int) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return paths (n, n_frames, n_atoms, 3) with a configuration of A and one of B as ends, and which frames these are."""
        if starts_a is None or starts_b is None:
            sampled = self._sampled()
            starts_a, starts_b = (sampled if s is None else s for s in (starts_a, starts_b))
        pools = {name: self._inside_only(name, starts) for name, starts in (("A", starts_a), ("B", starts_b))}
        complete = [frame for pool in pools.values() for frame in pool[np.isfinite(pool).all(axis=(1, 2))][:1]]
        self.reference = State(complete[0]) if complete else None
        picks = {name: stream(self.seed, "ends", name).integers(len(pool), size=n) for name, pool in pools.items()}
        first, last = pools["A"][picks["A"]], pools["B"][picks["B"]]
        # only the ends are imposed; the straight line between them merely fills the array
        weight = np.linspace(0.0, 1.0, n_frames)[None, :, None, None]
        mask = np.zeros(n_frames, dtype=bool)
        mask[[0, -1]] = True
        return np.nan_to_num((1 - weight) * first[:, None] + weight * last[:, None]), mask

    def _sampled(self) -> Any:
        sample = getattr(self.model, "sample", None)
        if sample is None:
            raise DataError("there are no configurations of A and B", "give starts_a and starts_b, or data")
        drawn = np.asarray(sample(_SAMPLED, seed=integer_seed(self.seed, "ends")), dtype=np.float64)
        return drawn.reshape(-1, *drawn.shape[2:])

    def _inside_only(self, name: str, starts: Any) -> Array:
        frames = self.whole(_positions(starts))
        pool = frames[self.inside(name, frames)]
        if not len(pool):
            raise DataError(
                f"none of {len(frames)} configurations is in {name} ({self.regions[name]})",
                f"give one as starts_{name.lower()} (a structure from experiment, or from a restrained run), or widen the region",
            )
        return pool


class _Hunt:
    """Shots from generated frames, round after round, until enough connect."""

    def __init__(
        self, engine: Engine, region_a: Region, region_b: Region, generated: Array, stretches: list[IntArray], rebuild: Rebuild
    ) -> None:
        self.engine, self.region_a, self.region_b = engine, region_a, region_b
        self.generated, self.stretches, self.rebuild = generated, stretches, rebuild
        self.counts: dict[str, int] = {}
        self.found: list[tuple[Trajectory, int, int, int]] = []
        self.tally = dict.fromkeys(("not rebuilt", "rebuilt into A or B", "shots", *OUTCOMES, "force evaluations"), 0)

    def shoot(self, n: int, selection: str, n_shots: int, seed: int, **settings: Any) -> None:
        """Shoot in rounds from one frame per path (``"top"``), or from all chosen frames at once (``"spread"``)."""
        if selection == "spread":
            jobs = [(p, int(f)) for p, stretch in enumerate(self.stretches) for f in _spread(stretch, n_shots)]
            self._round(jobs, seed, **settings)
            return
        ranges = {p: (int(stretch[0]), int(stretch[-1])) for p, stretch in enumerate(self.stretches) if len(stretch)}
        for number in range(n_shots):
            jobs = [(p, (low + high) // 2) for p, (low, high) in ranges.items()]
            for (p, frame), fell in zip(jobs, self._round(jobs, integer_seed(seed, number), **settings), strict=True):
                low, high = ranges[p]
                # a frame that cannot be rebuilt is passed over, like one that falls to A
                ranges[p] = (frame + 1, high) if fell in ("A", _UNBUILT) else (low, frame - 1) if fell == "B" else (low, high)
                if fell == "connected" or ranges[p][0] > ranges[p][1]:
                    del ranges[p]
            if len(self.found) >= n or not ranges:
                return

    def _round(self, jobs: list[tuple[int, int]], seed: int, **settings: Any) -> list[str]:
        """Shoot once from each (path, frame); return for each ``"connected"``, the state both ends fell to, ``"unbuilt"`` or ``""``."""
        fate = [""] * len(jobs)
        states: dict[int, State] = {}
        built = self.rebuild(np.array([self.generated[p, f] for p, f in jobs]))
        for i, state in enumerate(built):
            if state is None:
                self.tally["not rebuilt"] += 1
                fate[i] = _UNBUILT
                continue
            fate[i] = next((name for name, region in self._regions() if region.contains(state.positions[None])[0]), "")
            self.tally["rebuilt into A or B"] += bool(fate[i])
            if not fate[i]:
                states[i] = state
        if not states:
            return fate
        shots = two_way_shots(self.engine, list(states.values()), self.region_a, self.region_b, seed=seed, **settings)
        for k, i in enumerate(states):
            fate[i] = "connected" if shots.connecting[k] else _fell(shots, k)
            if shots.connecting[k]:
                self.found.append((*shots.reactive_path(k), *jobs[i]))
        self.tally["shots"] += len(shots)
        self.tally["force evaluations"] += shots.force_evaluations
        for name, number in shots.counts().items():
            self.tally[name] += number
        return fate

    def _regions(self) -> tuple[tuple[str, Region], tuple[str, Region]]:
        return ("A", self.region_a), ("B", self.region_b)

    def seeds(self, generated: Array, scores: PathScores | None, n: int) -> ReactiveSeeds:
        """Return what was found so far, with the counts."""
        findings = []
        if 0 < len(self.found) < n:
            text = f"{len(self.found)} of {n} paths were found"
            findings.append(Finding("few-reactive-seeds", text, "raise n_generate or n_shots_per_path"))
        if scores is None:
            findings.append(Finding("paths-not-scored", "there was no MD to score the generated paths against", "give data="))
        columns = np.array([row[1:] for row in self.found], dtype=np.int64).reshape(-1, 3)
        return ReactiveSeeds(
            tuple(row[0] for row in self.found), columns[:, 1], columns[:, 2], columns[:, 0],
            generated, scores, self.counts | self.tally, tuple(findings),
        )  # fmt: skip


def _fell(shots: ShotResults, shot: int) -> str:
    """Return the state that both halves ended in, or ``""``."""
    ends = shots.backward_ends[shot], shots.forward_ends[shot]
    return ends[0] if ends[0] == ends[1] else ""


def _spread(stretch: IntArray, n: int) -> IntArray:
    """Return up to n frames, evenly spaced inside the stretch."""
    if len(stretch) <= n:
        return stretch
    return np.asarray(stretch[((np.arange(n) + 0.5) / n * len(stretch)).astype(int)])


def _positions(starts: Any) -> Array:
    """Return configurations (n, n_atoms, 3) of states, trajectories or an array."""
    if isinstance(starts, np.ndarray):
        return starts
    parts = [starts] if isinstance(starts, (State, Trajectory)) else list(starts)
    if not parts:
        raise DataError("the list of configurations is empty")
    return np.concatenate([p.positions[None] if isinstance(p, State) else p.positions for p in parts])


def _as_they_are(frames: Array) -> list[State | None]:
    return [State(frame) for frame in frames]


def _rebuilder(engine: Engine, ends: _Ends) -> Rebuild:
    """Return how frames become states when the user does not say."""
    if engine.topology is None:
        return _as_they_are
    if ends.atoms is None:
        # not minimized: that would let the torsions slide down from the barrier
        return lambda frames: [_constrained(engine, State(frame)) for frame in frames]
    if ends.reference is None:
        fix = "give data, starts_a or starts_b with all atoms, or rebuild="
        raise ConfigError(f"the model generates {len(ends.atoms)} of {ends.n_atoms} atoms, and no structure shows where the others go", fix)
    from couloir.sampling.rebuild import rebuild

    atoms, reference, seed = ends.atoms, ends.reference, integer_seed(ends.seed, "rebuild")
    return lambda frames: list(rebuild(engine, engine.topology, frames, atoms, reference=reference, seed=seed).states)  # type: ignore[arg-type]


def _constrained(engine: Engine, state: State) -> State | None:
    constrain = getattr(engine, "apply_constraints", None)
    try:
        return state if constrain is None else constrain(state)
    except SimulationError:
        return None


def _network_calls(model: PathModel, n: int, settings: Mapping[str, Any]) -> int:
    """Return the evaluations of the network that n paths cost, a batch counting once per path; 0 for a model without ``n_calls``."""
    parameters = inspect.signature(model.inpaint).parameters
    chosen = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty} | dict(settings)
    if not isinstance(chosen.get("n_calls"), int):
        return 0
    resamples = chosen.get("resamples")
    if resamples is None:
        from couloir.generative.conditioning import METHODS

        method = chosen.get("method", "guidance")
        resamples = (METHODS[method] if isinstance(method, str) else method).resamples
    return int(n * chosen["n_calls"] * resamples)
