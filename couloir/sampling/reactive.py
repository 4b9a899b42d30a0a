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
from couloir.sampling.hunt import Hunt, Rebuild, RebuiltFrames, rebuilder
from couloir.sampling.path_ends import PathEnds, Starts
from couloir.sampling.path_scores import PathScores, score_paths
from couloir.streams import integer_seed
from couloir.trajectory import Array, State, Trajectory

if TYPE_CHECKING:
    import pandas as pd

Mask = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class PathModel(Protocol):
    """Whatever completes paths with imposed frames (a fitted ``TrajectoryDiffusion`` does).

    A model of some atoms only names them as ``representation.atoms``; one that has ``sample`` can find its own ends.
    """

    n_frames: int
    stride: float

    def inpaint(self, known: Array, mask: Mask, *, seed: int) -> Array:
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
    rebuilt : every frame that was made ready to be shot from, with displacement, energy and the gate it failed.
    """

    paths: tuple[Trajectory, ...]
    generated_paths: IntArray
    generated_frames: IntArray
    shooting_frames: IntArray
    generated: Array
    scores: PathScores | None
    counts: dict[str, int]
    findings: tuple[Finding, ...] = ()
    rebuilt: RebuiltFrames | None = None

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
        """Return the counts as text, one per line, and the gates of generated paths that were not judged."""
        unjudged = [] if self.scores is None else self.scores.unjudged_lines()
        return "\n".join([*(f"  {name:<34}{n}" for name, n in self.counts.items()), *unjudged])

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
    level: float | None = None,
    generated: ReactiveSeeds | Array | None = None,
    imposed: Mask | Sequence[bool] | None = None,
    selection: Literal["top", "spread"] = "top",
    n_shots_per_path: int = 4,
    max_duration: Any = None,
    stride: Any = None,
    require_gates: bool = True,
    gates: Mapping[str, float] | None = None,
    rebuild: Rebuild | None = None,
    inpainting: Mapping[str, Any] | None = None,
) -> ReactiveSeeds:
    """Find paths from A to B by shooting from the barrier frames of generated ones.

    Frames may hold all atoms of the engine's system or only those that the model generates.

    Parameters
    ----------
    n : paths wanted; shooting ends with the round of shots that reaches it, and all that connect are returned.
    starts_a, starts_b : configurations (states, trajectories or an array), of which those inside A and inside B become the ends
        of generated paths; default those in ``data``, else in snippets that the model samples.
    data : MD, to take ends from and to score the generated paths against; without it they are not scored.
    n_frames : length of the generated paths; default the model's.
    n_generate : generated paths; default 3 n.
    level : generate paths by varying straight lines between the ends at this noise-to-signal ratio (``model.interpolate``, then
        ``model.vary``) in place of completing them; 0 takes the lines as they are.  For a model that has seen no crossing.
    generated : paths to shoot from, made before: (n, frames, n_atoms, 3), or the ``partial`` of an error.  Then none are generated.
    imposed : with ``generated``, (frames,) or (n, frames), True for its imposed frames, where the gate ``seam`` looks; default both ends.
    selection : ``"top"`` shoots from the middle of the stretch between A and B first; a path whose shots fall to A is shot next
        from half-way to B, and the reverse.  ``"spread"`` shoots from frames evenly spaced over the stretch, all at once.
    n_shots_per_path : most shots from one generated path.
    max_duration : time limit of each half shot; default ten times the length of a generated path.
    stride : time between the frames of a shot; default the model's.
    require_gates : shoot only from generated paths that passed every gate.
    gates : limits of :func:`~couloir.sampling.path_scores.score_paths`, such as ``{"max_jump": 2.0}``.
    rebuild : turns generated frames (m, n_kept, 3) into states the engine can start from (None where it cannot); default
        the frames as they are for toys, on their constraints for molecules of which the model generates every atom, and
        :func:`couloir.sampling.rebuild.rebuild` where it generates some, with the first configuration given that has all atoms,
        or else the engine's own, as reference.
    inpainting : further settings of ``model.inpaint``, or ``model.vary``, such as ``n_calls``; a model conditioned on temperature is
        given the engine's, unless ``kT`` is among them.

    Raises
    ------
    DataError : there is no configuration of A or of B, the regions need atoms that the model does not generate, or frames hold
        neither all atoms nor those.
    ConfigError : numbers below one, limits of gates without MD to judge by, ``imposed`` without ``generated`` and MD, or a
        ``level`` for a model that cannot interpolate.
    ModelError : no generated path passed the gates, or none has a frame between A and B; ``partial`` as below.
    SimulationError : no shot connects A and B; ``partial`` holds the seeds object with the generated paths and the counts.
    """
    if n < 1 or n_shots_per_path < 1 or selection not in ("top", "spread"):
        raise ConfigError(
            f"n = {n}, n_shots_per_path = {n_shots_per_path}, selection = {selection!r}",
            'give positive numbers and selection="top" or "spread"',
        )
    if imposed is not None and (generated is None or data is None):
        raise ConfigError(
            "imposed= says where paths that were made before are judged for seams",
            "give generated= and data= with it; paths that are generated here have both ends imposed",
        )
    md = None if data is None else [data] if isinstance(data, Trajectory) else list(data)
    settings = dict(inpainting or {})
    if getattr(model, "log_kT", None) is not None:
        settings.setdefault("kT", engine.kT)
    ends = PathEnds(model, engine, region_a, region_b, seed, kT=settings.get("kT"))
    from_a, from_b = (md if starts is None else starts for starts in (starts_a, starts_b))
    ends.refer(from_a, from_b)
    counts: dict[str, int] = {"network calls": 0}
    if generated is None:
        known = ends.imposed(from_a, from_b, n_generate or 3 * n, n_frames or model.n_frames)
        made, counts["network calls"] = _generated(model, known, level, integer_seed(seed, "inpainting"), settings)
    else:
        made = generated.generated if isinstance(generated, ReactiveSeeds) else generated
    paths = np.asarray(made, dtype=np.float64)
    if paths.ndim != 4 or paths.shape[1] < 3:
        raise DataError(f"generated paths have shape {paths.shape}, expected (n, frames, n_atoms, n_dim) with three frames or more")
    scores = _scored(paths, md, engine, ends, model.stride, dict(gates or {}), imposed)
    finite = np.array(np.isfinite(paths).all(axis=(1, 2, 3)), dtype=bool)
    usable = finite if scores is None or not require_gates else scores.passed_all
    stretches = [ends.between(path) if ok else np.zeros(0, dtype=np.int64) for path, ok in zip(paths, usable, strict=True)]
    counts = {"generated": len(paths), **counts}
    if scores is not None:
        counts["passed every gate"] = int(scores.passed_all.sum())
    counts["with frames between A and B"] = sum(len(stretch) > 0 for stretch in stretches)
    hunt = Hunt(engine, region_a, region_b, paths, stretches, rebuild or rebuilder(engine, ends))
    if not counts["with frames between A and B"]:
        raise _nothing_to_shoot_from(_seeds(hunt, paths, scores, counts, n), int(usable.sum()))
    frames = stride if stride is not None else model.stride
    limit = max_duration if max_duration is not None else 10 * paths.shape[1] * model.stride
    hunt.shoot(n, selection, n_shots_per_path, integer_seed(seed, "shots"), max_duration=limit, stride=frames)
    found = _seeds(hunt, paths, scores, counts, n)
    if not len(found):
        error = SimulationError(
            f"no shot connects A and B:\n{found.table()}",
            "raise max_duration if shots are unfinished, n_shots_per_path or n_generate if they fall to one side",
        )
        error.partial = found
        raise error
    return found


def _both_ends(n_frames: int) -> Mask:
    mask = np.zeros(n_frames, dtype=bool)
    mask[[0, -1]] = True
    return mask


def _scored(
    paths: Array,
    md: list[Trajectory] | None,
    engine: Engine,
    ends: PathEnds,
    stride: float,
    limits: dict[str, float],
    imposed: Mask | Sequence[bool] | None,
) -> PathScores | None:
    if md is None:
        if limits:
            raise ConfigError(f"gates = {limits} without data", "give data= to score the generated paths against")
        return None
    return score_paths(
        paths, md=md, engine=engine if hasattr(engine, "energies") else None, topology=engine.topology, atoms=ends.atoms,
        imposed=_both_ends(paths.shape[1]) if imposed is None else imposed, stride=stride, **limits,
    )  # fmt: skip


def _seeds(hunt: Hunt, generated: Array, scores: PathScores | None, counts: dict[str, int], n: int) -> ReactiveSeeds:
    """Return what was found so far, with the counts."""
    findings = []
    if 0 < len(hunt.found) < n:
        text = f"{len(hunt.found)} of {n} paths were found"
        findings.append(Finding("few-reactive-seeds", text, "raise n_generate or n_shots_per_path"))
    if scores is None:
        findings.append(Finding("paths-not-scored", "there was no MD to score the generated paths against", "give data="))
    columns = np.array([row[1:] for row in hunt.found], dtype=np.int64).reshape(-1, 3)
    rebuilt = hunt.rebuilt
    refused = {f"not rebuilt: {gate}": count for gate, count in rebuilt.failures.items()}
    return ReactiveSeeds(
        tuple(row[0] for row in hunt.found), columns[:, 1], columns[:, 2], columns[:, 0],
        generated, scores, counts | hunt.tally | refused, tuple(findings), rebuilt,
    )  # fmt: skip


_REMEDIES = {
    "finite": "train anew at a smaller learning rate",
    "energy": "train longer",
    "bonds": "train longer",
    "angles": "train longer",
    "jump": "give the crossing more frames (n_frames) or train longer",
    "seam": 'raise resamples or n_calls (inpainting={"resamples": ...}), or train longer',
}


def _nothing_to_shoot_from(partial: ReactiveSeeds, n_usable: int) -> ModelError:
    """Return the error that says why no generated path can be shot from."""
    n, scores = len(partial.generated), partial.scores
    table = partial.table()
    if n_usable or scores is None:
        why = f"{n_usable} of {n} generated paths could be used, but none has a frame between A and B"
        fix = "use frames closer together (the model's stride) or other n_frames, or shrink A and B"
    else:
        failed = {gate: int((~ok).sum()) for gate, ok in scores.passed.items()}
        worst = max(failed, key=lambda gate: failed[gate])
        why = f"no generated path passed every gate; the gate {worst!r} failed most, {failed[worst]} of {n}{_nearest_miss(scores, worst)}"
        fix = _REMEDIES[worst] + "; or shoot from these paths regardless: generated=error.partial with looser gates= or require_gates=False"
    error = ModelError(f"{why}:\n{table}", fix)
    error.partial = partial
    return error


def _nearest_miss(scores: PathScores, gate: str) -> str:
    """Return how near the best path that fails a gate comes to its limit; nothing where that is no ratio of the scores."""
    column = {"bonds": "bond_deviation", "angles": "angle_deviation", "jump": "jump_ratio", "seam": "seam_ratio"}.get(gate)
    if column is None:
        return ""
    values = getattr(scores, column)[~scores.passed[gate]]
    return f" (the best of these has {column} {values.min():.3g}, the limit is {scores.thresholds[gate]:.3g})"


def _generated(model: PathModel, known: Array, level: float | None, seed: int, settings: Mapping[str, Any]) -> tuple[Array, int]:
    """Return paths between the ends of ``known`` (n, frames, n_atoms, 3), and the network calls that they cost."""
    n, n_frames = known.shape[:2]
    if level is None:
        made = model.inpaint(known, _both_ends(n_frames), seed=seed, **settings)
        return made, _network_calls(model.inpaint, n, settings)
    if not (hasattr(model, "interpolate") and hasattr(model, "vary")):
        raise ConfigError(
            f"level = {level:g}, but {type(model).__name__} has no interpolate and vary", "leave level out, or use TrajectoryDiffusion"
        )
    lines = model.interpolate(known[:, 0], known[:, -1], n_frames)
    if level == 0.0:
        return lines, 0
    return model.vary(lines, level, mask=_both_ends(n_frames), seed=seed, **settings), _network_calls(model.vary, n, settings)


def _network_calls(method: Callable[..., Array], n: int, settings: Mapping[str, Any]) -> int:
    """Return the evaluations of the network that n paths cost, a batch counting once per path; 0 for a model without ``n_calls``."""
    parameters = inspect.signature(method).parameters
    chosen = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty} | dict(settings)
    if not isinstance(chosen.get("n_calls"), int):
        return 0
    resamples = chosen.get("resamples")
    if resamples is None:
        from couloir.generative.conditioning import METHODS

        way = chosen.get("method", "guidance")
        resamples = (METHODS[way] if isinstance(way, str) else way).resamples
    return int(n * chosen["n_calls"] * resamples)
