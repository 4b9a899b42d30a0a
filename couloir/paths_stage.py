"""The stage behind ``[paths]``: first paths from A to B, then chains of paths, kept in the run's store step by step.

First paths carry no weight: chains are moved until ``n_paths`` paths hold no frame of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.build import build_engine
from couloir.cv import CollectiveVariable, Region
from couloir.errors import ConfigError, CouloirError, DataError, Finding, ModelError
from couloir.generated_paths import keep_generated, stored_generated
from couloir.run import Run
from couloir.sampling.chunks import ChunkedRun
from couloir.sampling.guides import Guides, first_paths, heated, steer
from couloir.sampling.path_chains import played_back
from couloir.sampling.path_sampling import TransitionPathSampling
from couloir.sampling.path_store import holds_first, kept_first, packed, unpacked
from couloir.sampling.path_tree import Branch, stored_tree
from couloir.shooting import move_of
from couloir.streams import integer_seed
from couloir.trajectory import Array, State, Trajectory
from couloir.transition_states import shoot_candidates

if TYPE_CHECKING:
    from couloir.analysis.path_ensemble import PathEnsemble
    from couloir.sampling.reactive import ReactiveSeeds
    from couloir.store import Store

Say = Callable[[str], None]

NAME = "paths"
STRIDE_STEPS = 10
"""Time steps between frames of paths by default."""
SHOT_FRAMES = 2000
"""Frames of each half of a shot for first paths, when ``max_duration`` does not say."""
HOTTER = 2.0
"""Times the temperature, for first paths at a high temperature by default."""
_HOT_FRAMES = 50_000  # of a hot run, at most
_FIRST, _ABOUT, _BASINS = "first-paths", "first-paths/about", "paths-basins"


def sample_paths(run: Run, engine: Any, start: State, cvs: dict[str, CollectiveVariable], explored: Array, say: Say) -> PathEnsemble:
    """Find first paths (or read them), sample as many as asked for, save them as ``results/paths.npz``, and shoot from candidates.

    Parameters
    ----------
    start : where structures are steered from when no frame of ``explored`` is in A.
    explored : (n, n_atoms, 3) unbiased data, perhaps none.
    say : told in one line what came of it.

    Raises
    ------
    SimulationError : no first path was found.
    """
    table = run.config.paths
    assert table is not None
    a, b = states_of(run, cvs)
    if run.store.count(_FIRST) == 0:
        _find_first(run, engine, start, a, b, explored, say)
    first = load_first(run, engine)
    sampling = TransitionPathSampling(engine, a, b, move_of(table, cvs), max_duration=table.max_duration, name=NAME)
    paths = sampling.run(
        first, table.n_paths, table.n_chains, seed=integer_seed(run.config.seed, NAME), store=run.store, run_until_decorrelated=True
    )
    results = run.path / "results"
    results.mkdir(exist_ok=True)
    paths.save(results / "paths.npz")
    run.store["paths/done"] = table.n_paths
    say(f"paths: {len(paths)} different ones in {paths.n_chains} chains, acceptance {paths.acceptance:.2f}")
    for finding in paths.diagnose(tuple(cvs.values())):
        say(str(finding))
    shoot_candidates(run, engine, paths, a, b, cvs, say)
    return paths


def states_of(run: Run, cvs: dict[str, CollectiveVariable]) -> tuple[Region, Region]:
    """Return A and B of ``[paths]``."""
    table = run.config.paths
    assert table is not None
    return Region.parse(table.region_a, cvs), Region.parse(table.region_b, cvs)


def stride_of(run: Run, engine: Any) -> float:
    """Return ps between the frames of paths."""
    assert run.config.paths is not None
    return float(run.config.paths.stride or STRIDE_STEPS * engine.time_step)


def load_first(run: Run, engine: Any) -> list[Trajectory]:
    """Return the first paths that the store holds."""
    return kept_paths(run, engine, run.store.chunk(_FIRST, 0))


def keep_paths(store: Store, key: str, paths: Sequence[Trajectory], **more: Any) -> None:
    """Append paths, and arrays with them, to a series as one chunk."""
    store.append({key: packed(paths, **more)})


def kept_paths(run: Run, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
    """Return the paths of a chunk that :func:`keep_paths` wrote."""
    return unpacked(data, stride_of(run, engine), engine.topology)


def stored_paths(run: Run, engine: Any) -> PathEnsemble | None:
    """Return the paths that chains have visited so far, also of a run that is not finished; None before the first step."""
    plan = run.store.get(f"{NAME}/plan")
    if plan is None or not run.store.count(_FIRST) or not run.store.count(f"{NAME}/steps"):
        return None
    return played_back(run.store, NAME, _starts(run, engine, plan))


def stored_branches(run: Run, engine: Any) -> list[Branch]:
    """Return the tree of the first chain's first paths; there must be steps."""
    return stored_tree(run.store, NAME, _starts(run, engine, run.store.get(f"{NAME}/plan")))


def _starts(run: Run, engine: Any, plan: dict[str, Any]) -> list[Trajectory]:
    """Return the path that each chain was started from."""
    if holds_first(run.store, NAME):
        return kept_first(run.store, NAME, engine.topology)[0]
    first = load_first(run, engine)
    return [first[c % len(first)] for c in range(plan["n_chains"])]


def stored_steps(run: Run) -> int:
    """Return how many steps every chain has taken."""
    if not run.store.count(f"{NAME}/steps"):
        return 0
    last = run.store.chunk(f"{NAME}/steps", -1)
    return int(last["begin"][0]) + len(last["reason"])


def about_first(run: Run) -> dict[str, Any] | None:
    """Return how the first paths came about: ``how``, ``n``, ``counts`` of shots, and ``force_evaluations``; None before."""
    found: dict[str, Any] | None = run.store.get(_ABOUT)
    return found


def _find_first(run: Run, engine: Any, start: State, a: Region, b: Region, explored: Array, say: Say) -> None:
    """Find first paths and store them."""
    table = run.config.paths
    assert table is not None
    paths, about = _shoot_first(run, engine, start, a, b, explored, say)
    if not getattr(engine, "underdamped", True):
        paths = [replace(path, velocities=None) for path in paths]
    run.store[_ABOUT] = about
    keep_paths(run.store, _FIRST, paths)
    say(f"first paths: {len(paths)} from A to B ({about['how']}), {about['force_evaluations']} force evaluations")


def _shoot_first(
    run: Run, engine: Any, start: State, a: Region, b: Region, explored: Array, say: Say
) -> tuple[list[Trajectory], dict[str, Any]]:
    """Return first paths that ``max_duration`` allows, and how they came about."""
    table = run.config.paths
    assert table is not None
    seed, stride = integer_seed(run.config.seed, "first-paths"), stride_of(run, engine)
    # both halves of a shot together are a path
    half = SHOT_FRAMES * stride if table.max_duration is None else max(1, int(round(table.max_duration / stride, 6)) // 2) * stride
    how, paths, total = table.first_path, list[Trajectory](), 0
    findings, tally = list[Finding](), dict[str, int]()
    if table.first_path == "inpainting":
        paths, tally, spent, findings = _inpainted(run, engine, start, a, b, explored, half, seed)
        total = spent + _force_evaluations(tally)
        for finding in findings:
            say(str(finding))
    if not paths:
        how = "steered" if table.first_path == "inpainting" else table.first_path
        guides = _guides(run, engine, start, a, b, explored, how, seed)
        paths, tally = first_paths(engine, guides, a, b, table.n_chains, box=start.box, max_duration=half, stride=stride, seed=seed)
        total += guides.force_evaluations + _force_evaluations(tally)
    run.note_findings("first paths", findings)
    return paths, {"how": how, "n": len(paths), "counts": tally, "force_evaluations": total}


def _force_evaluations(tally: Mapping[str, int]) -> int:
    return int(tally.get("force evaluations", 0) + tally.get("force evaluations of rebuilding", 0))


def _guides(run: Run, engine: Any, start: State, a: Region, b: Region, explored: Array, how: str, seed: int) -> Guides:
    table = run.config.paths
    assert table is not None
    if how == "file":
        return Guides.of(read_files(run, engine), a, b)
    starts, spent = _inside(engine, start, a, b, explored, table.n_chains, integer_seed(seed, "A"))
    if how == "steered":
        guides = steer(engine, starts, b, a, seed=integer_seed(seed, "steer"))
    else:
        stride = stride_of(run, engine)
        duration = _HOT_FRAMES * stride
        guides = heated(
            hotter(run, molecule=engine.topology is not None),
            starts,
            a,
            b,
            duration=duration,
            stride=stride,
            seed=integer_seed(seed, "hot"),
        )
    return Guides(guides.paths, guides.force_evaluations + spent)


def hotter(run: Run, *, molecule: bool) -> Any:
    """Return the engine of a run at the temperature that first paths are looked for."""
    table, engine = run.config.paths, run.config.engine
    assert table is not None
    known: dict[str, Any] = {"kT": table.kT or HOTTER * (engine.kT or 1.0)}
    if molecule:
        known = {"temperature": table.temperature or HOTTER * engine.temperature}
    config = run.config.model_copy(update={"engine": engine.model_copy(update=known)})
    return build_engine(Run(run.path, config, run.store, run.folder))[0]


def _inside(engine: Any, start: State, region: Region, other: Region, explored: Array, n: int, seed: int) -> tuple[list[State], int]:
    """Return n states in a region (the same one again where there are fewer), and the steps of dynamics spent to get there."""
    found = explored[region.contains(explored)] if len(explored) else explored
    if len(found):
        picked = found[np.linspace(0, len(found) - 1, n).round().astype(int)]
        return [State(x, None, start.box) for x in picked], 0
    if region.contains(start.positions[None])[0]:
        return [start] * n, 0
    guides = steer(engine, [start] * n, region, other, seed=seed)
    arrived = [path[np.flatnonzero(region.contains(path))[0]] for path in guides.paths]
    return [State(arrived[i % len(arrived)], None, start.box) for i in range(n)], guides.force_evaluations


def read_files(run: Run, engine: Any) -> list[Array]:
    """Return the frames (n, n_atoms, n_dim) of each of ``paths.files``.

    Raises
    ------
    ConfigError : a file is missing, or does not fit the system.
    """
    table = run.config.paths
    assert table is not None
    out = []
    for file in table.files:
        path = run.folder / file
        if not path.exists():
            raise ConfigError(f"paths.files: no such file {path}")
        if engine.topology is None:
            try:
                with np.load(path, allow_pickle=False) as data:
                    out.append(np.asarray(data["positions"], dtype=np.float64))
            except (OSError, ValueError, KeyError) as error:
                raise ConfigError(f"paths.files: cannot read {path}: {error}", "give an npz file with the array positions") from None
            continue
        import mdtraj

        try:
            out.append(np.asarray(mdtraj.load(str(path), top=engine.topology).xyz, dtype=np.float64))
        except (ValueError, OSError, RuntimeError) as error:
            raise ConfigError(f"paths.files: {path} does not fit the system: {error}", "its atoms must be the system's, in order") from None
    return out


def _inpainted(
    run: Run, engine: Any, start: State, a: Region, b: Region, explored: Array, half: float, seed: int
) -> tuple[list[Trajectory], dict[str, int], int, list[Finding]]:
    """Return first paths shot from generated ones, if any; what became of these, the steps of dynamics to learn from, and findings."""
    from couloir.sampling.reactive import ReactiveSeeds

    spent = 0
    try:
        data, spent = _basins(run, engine, start, a, b, explored, seed)
        found, findings = _generated(run, engine, _trained(run, engine, data, seed), a, b, data, half, seed)
    except CouloirError as error:
        text = f"generated paths led to no first path, so structures were steered instead: {error.message.splitlines()[0]}"
        partial = getattr(error, "partial", None)
        tally = partial.counts if isinstance(partial, ReactiveSeeds) else {}
        return [], tally, spent, [Finding("generated-paths-failed", text, error.fix or "")]
    run.log(str(found))
    return list(found.paths), found.counts, spent, findings


def _generated(
    run: Run, engine: Any, model: Any, a: Region, b: Region, data: list[Trajectory], half: float, seed: int
) -> tuple[ReactiveSeeds, list[Finding]]:
    """Return shots from generated paths that passed every gate, or from all where none did: first paths carry no weight."""
    from couloir.sampling.reactive import ReactiveSeeds, reactive_seeds

    table = run.config.paths
    assert table is not None
    settings: dict[str, Any] = {
        "seed": integer_seed(seed, "generate"), "starts_a": data, "starts_b": data, "data": data, "max_duration": half,
        "stride": stride_of(run, engine),
    }  # fmt: skip
    kept = stored_generated(run)
    asked = {"n_generate": max(64, 8 * table.n_chains)} if kept is None else {"generated": kept["positions"]}
    findings = list[Finding]()
    try:
        found = reactive_seeds(model, engine, a, b, table.n_chains, **asked, **settings)
        keep_generated(run, found, model)
    except CouloirError as error:
        refused = getattr(error, "partial", None)
        if isinstance(refused, ReactiveSeeds) and refused.scores is not None:
            keep_generated(run, refused, model)
        if not isinstance(error, ModelError) or refused is None or refused.counts.get("passed every gate"):
            raise
        text = f"no generated path passed every gate, so all were shot from: {error.message.splitlines()[0]}"
        findings.append(
            Finding("gates-failed", text, "raise paths.model.steps or paths.model.duration, for more first paths at the same cost")
        )
        found = reactive_seeds(model, engine, a, b, table.n_chains, generated=refused, require_gates=False, **settings)
    made = stored_generated(run)
    assert made is not None
    return replace(found, counts=found.counts | {"network calls": int(made["network_calls"])}), findings


def _basins(run: Run, engine: Any, start: State, a: Region, b: Region, explored: Array, seed: int) -> tuple[list[Trajectory], int]:
    """Return unbiased dynamics from A and from B, at the stride of the paths; the part that was computed stays in the store."""
    table, explore = run.config.paths, run.config.explore
    assert table is not None
    stride = stride_of(run, engine)
    asked = table.model.duration if table.model is not None else None
    duration = asked if asked is not None else explore.duration if explore is not None else None
    if duration is None:
        raise DataError("there are no dynamics to learn from", "give paths.model.duration")
    key, spent = f"{_BASINS}/starts", 0
    if not run.store.count(key):
        states: list[State] = []
        for number, (region, other) in enumerate(((a, b), (b, a))):
            (state,), steps = _inside(engine, start, region, other, explored, 1, integer_seed(seed, "basin", number))
            states, spent = [*states, state], spent + steps
        run.store.append({key: {"positions": np.array([state.positions for state in states])}})
    basins = [State(x, None, start.box) for x in run.store.chunk(key, 0)["positions"]]
    chunked = ChunkedRun(
        engine=engine, store=run.store, name=_BASINS, walkers=("a", "b"), states=tuple(basins), biases=(None, None), record=(),
        record_steps=round(stride / engine.time_step), frame_records=1, seed=integer_seed(seed, "basins"),
    )  # fmt: skip
    n = chunked.n_records(duration / 2)
    chunked.advance(n, "dynamics in A and B")
    parts = [Trajectory(chunked.frames(walker)[:n], stride, topology=engine.topology) for walker in chunked.walkers]
    return parts, spent + 2 * n * chunked.record_steps


def _trained(run: Run, engine: Any, data: Sequence[Trajectory], seed: int) -> Any:
    """Return the trained model of trajectory snippets, read from the run if it is there."""
    from couloir.generative.representation import Vector
    from couloir.generative.trajectory_diffusion import DEFAULT_PLAN, TrajectoryDiffusion

    assert run.config.paths is not None
    table = run.config.paths.model
    folder = run.path / "paths_model"
    if (folder / "model.json").exists():
        return TrajectoryDiffusion.load(folder)
    sizes: dict[str, Any] = {} if table is None or table.width is None else {"base_channels": table.width}
    limits = {key: getattr(table, key) for key in ("steps", "max_minutes") if table is not None and getattr(table, key) is not None}
    untrained = TrajectoryDiffusion(
        Vector() if engine.topology is None else engine.topology, table.n_frames if table is not None else 64, **sizes
    )
    model = untrained.fit(
        data, seed=integer_seed(seed, "model"), plan=replace(DEFAULT_PLAN, **limits), checkpoint=run.path / "training" / "paths"
    )
    model.save(folder)
    return model
