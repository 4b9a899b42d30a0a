"""The stages behind ``couloir run``: system -> unbiased dynamics -> model -> seeds -> windows -> surfaces -> paths -> rates -> report.

Every stage writes to the run's store (or, a model, to its folder) in atomic steps and starts by looking at what is
there, so the same call finishes a run from wherever it was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis import equilibrated, free_energy_surface
from couloir.analysis.samples import BiasedSamples
from couloir.build import build_cvs, build_engine, build_representation, build_windows, keep_saved, learn_cvs, model_labels
from couloir.cv import CollectiveVariable, Region
from couloir.errors import ConfigError, CouloirError
from couloir.paths_stage import read_files, sample_paths
from couloir.placement import placed_windows
from couloir.preflight import check, check_model
from couloir.rates_agreement import note_agreement
from couloir.rates_stage import sample_rates
from couloir.run import Run, provenance, write_json
from couloir.sampling.chunks import ChunkedRun, record_steps
from couloir.sampling.dragging import dragged_seeds
from couloir.sampling.seeding import seed_windows
from couloir.sampling.seeds import Seeds, load_seeds, save_seeds
from couloir.sampling.target import run_until
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.streams import integer_seed
from couloir.trajectory import Array, State

if TYPE_CHECKING:
    from couloir.analysis.surface import FreeEnergySurface

Say = Callable[[str], None]


def execute(run: Run, say: Say = print) -> list[FreeEnergySurface]:
    """Carry a run from wherever it stands to its report; returns its surfaces.

    Parameters
    ----------
    say : told in one line what begins and what came of it.
    """
    if run.store.get("provenance") is None:
        run.store["provenance"] = provenance()
    run.store["finished"] = False
    engine, start = build_engine(run)
    known = build_cvs(run, engine.topology)
    check(run.config, engine, known)
    _check_what_can_be(run, engine, known)
    keep_saved(run, engine.topology, known)
    say(str(engine))
    run.store["engine"] = engine.to_dict()
    with _timed(run, "explore"):
        explored = explore(run, engine, start, known, say)
    surfaces: list[FreeEnergySurface] = []
    if run.config.umbrella is not None or run.config.paths is not None:
        cvs = learn_cvs(run, engine.topology, known, explored)
    if run.config.umbrella is not None:
        with _timed(run, "placement"):
            windows = placed_windows(run, engine, cvs, start, explored, say)
        say(str(windows))
        seeds = prepare_seeds(run, engine, start, windows, explored, cvs, say)
        with _timed(run, "umbrella"):
            samples = sample_windows(run, engine, windows, seeds, cvs, say)
        with _timed(run, "analysis"):
            surfaces = make_surfaces(run, samples, cvs, say)
    if run.config.paths is not None:
        with _timed(run, "paths"):
            paths = sample_paths(run, engine, start, cvs, explored, say)
        if run.config.rates is not None:
            with _timed(run, "rates"):
                sample_rates(run, engine, paths, cvs, say)
                note_agreement(run, surfaces, say)
    run.store["finished"] = True
    return surfaces


def _check_what_can_be(run: Run, engine: Any, known: dict[str, CollectiveVariable]) -> None:
    """Read files of paths, and build windows and representation, before any dynamics, as far as they do not wait for a CV to be learned."""
    if run.config.paths is not None and run.config.paths.first_path == "file":
        read_files(run, engine)
    table = run.config.umbrella
    if table is None or not set(table.along) <= set(known):
        return
    windows = build_windows(run, engine, known)
    if table.seeding == "model" and (run.config.model is None or run.config.model.label in {None, *known}):
        labels = model_labels(run, windows, known)
        check_model(build_representation(run, engine, labels), labels)


def explore(run: Run, engine: Any, start: State, cvs: dict[str, CollectiveVariable], say: Say) -> Array:
    """Run (or read) the unbiased dynamics; returns its frames (n, n_atoms, 3), a user's own files included."""
    table = run.config.explore
    if table is None:
        return np.empty((0, *start.positions.shape))
    frames_of = _user_frames(run, engine)
    states = [start] * table.walkers
    if table.minimize and run.store.get("explore/plan") is None:
        states = engine.minimize(states)
    elif table.minimize:
        states = _stored_starts(run, states)
    _store_starts(run, states)
    n_steps = record_steps(engine, table.stride, default=500)
    chunked = ChunkedRun(
        engine=engine, store=run.store, name="explore", walkers=tuple(f"x{i:03d}" for i in range(table.walkers)),
        states=tuple(states), biases=(None,) * table.walkers, record=tuple(cvs.values()), record_steps=n_steps, frame_records=1,
        seed=integer_seed(run.config.seed, "explore"),
    )  # fmt: skip
    n_records = chunked.n_records(table.duration / table.walkers)
    chunked.advance(n_records, "unbiased dynamics")
    frames = np.concatenate([chunked.frames(w)[:n_records] for w in chunked.walkers] + frames_of)
    say(f"unbiased dynamics: {table.duration:g} ps, {len(frames)} frames")
    return frames


def _store_starts(run: Run, states: list[State]) -> None:
    if run.store.count("start") == 0:
        run.store.append({"start": {"positions": np.array([s.positions for s in states])}})


def _stored_starts(run: Run, states: list[State]) -> list[State]:
    positions = run.store.chunk("start", 0)["positions"]
    return [State(x, None, s.box) for x, s in zip(positions, states, strict=True)]


def _user_frames(run: Run, engine: Any) -> list[Array]:
    assert run.config.explore is not None
    out = []
    for file in run.config.explore.files:
        path = run.folder / file
        if not path.exists():
            raise ConfigError(f"explore.files: no such file {path}")
        import mdtraj

        try:
            trajectory = mdtraj.load(str(path), top=engine.topology)
        except (ValueError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"explore.files: {path} does not fit the system: {error}", "its atoms must be the system's, in order"
            ) from None
        out.append(np.asarray(trajectory.xyz, dtype=np.float64))
    return out


def prepare_seeds(
    run: Run, engine: Any, start: State, windows: UmbrellaSampling, explored: Array, cvs: dict[str, CollectiveVariable], say: Say
) -> Seeds:
    """Return the seeds of every window: from a trained model, or dragged."""
    table = run.config.umbrella
    assert table is not None
    if run.store.count("seeds"):
        return load_seeds(run.store)
    seed = integer_seed(run.config.seed, "seeds")
    if table.seeding == "dragged":
        with _timed(run, "seeding"):
            seeds = dragged_seeds(engine, windows, start, table.seeds_per_window, seed=seed)
    else:
        with _timed(run, "model"):
            model = train_model(run, engine, windows, explored, cvs, start, say)
        with _timed(run, "seeding"):
            fallback = _by_window(windows, explored)
            seeds = seed_windows(model, engine, windows, table.seeds_per_window, seed=seed, reference=start, fallback=fallback)
    save_seeds(run.store, seeds)
    kinds = ", ".join(f"{seeds.origins.count(kind)} {kind}" for kind in ("model", "dragged") if kind in seeds.origins)
    say(f"seeds: {len(seeds)} in {len(windows)} windows ({kinds})")
    for finding in seeds.findings:
        say(str(finding))
    return seeds


def _by_window(windows: UmbrellaSampling, frames: Array) -> dict[int, list[State]]:
    """Return up to four frames nearest to the centre of every window that the frames touch."""
    if len(frames) == 0:
        return {}
    values = np.stack([cv.evaluate(frames) for cv in windows.cvs], axis=1)
    far = np.stack([windows.distance(values, center) for center in windows.centers])
    home = far.argmin(axis=0)
    out = {}
    for w in np.unique(home):
        rows = np.flatnonzero(home == w)
        nearest_rows = rows[np.argsort(far[w, rows])[:4]]
        out[int(w)] = [State(frames[i]) for i in nearest_rows]
    return out


def train_model(
    run: Run, engine: Any, windows: UmbrellaSampling, frames: Array, cvs: dict[str, CollectiveVariable], start: State, say: Say
) -> Any:
    """Return the trained conditional model, read from the run if it is there; with frontier rounds when asked for."""
    from couloir.generative.conditional_sgm import ConditionalSGM
    from couloir.generative.training import TrainingPlan

    assert run.config.umbrella is not None
    table = run.config.model
    folder = run.path / "model"
    label = model_labels(run, windows, cvs)
    if (folder / "model.json").exists():
        return ConditionalSGM.load(folder, label=label)
    sizes = {key: getattr(table, key) for key in ("width", "depth") if table is not None and getattr(table, key) is not None}
    limits = {key: getattr(table, key) for key in ("steps", "max_minutes") if table is not None and getattr(table, key) is not None}
    untrained = ConditionalSGM(build_representation(run, engine, label), label=label, **sizes)
    plan = TrainingPlan(**limits)
    seed = integer_seed(run.config.seed, "model")
    if run.config.umbrella.frontier:
        from couloir.sampling.frontier import frontier_rounds

        def fit(positions: Array, weights: Array, seed: int) -> Any:
            return untrained.fit(positions, seed=seed, plan=plan, weights=weights, checkpoint=run.path / "training" / str(seed))

        result = frontier_rounds(fit, engine, windows, frames, seed=seed, reference=start, store=run.store, on_round=say)
        run.note_findings("frontier", result.findings)
        say("\n".join(map(str, [result, *result.findings])))
        model: Any = result.model
    else:
        model = untrained.fit(frames, seed=seed, plan=plan, checkpoint=run.path / "training")
    model.save(folder)
    say(f"model: {model}")
    return model


def sample_windows(
    run: Run, engine: Any, windows: UmbrellaSampling, seeds: Seeds, cvs: dict[str, CollectiveVariable], say: Say
) -> BiasedSamples:
    """Run the windows for the duration asked for, or until the surface is known as well as asked for."""
    table = run.config.umbrella
    assert table is not None
    names = table.record if table.record is not None else tuple(cvs)
    record = [cvs[name] for name in names]
    seed = integer_seed(run.config.seed, "umbrella")

    settings: dict[str, Any] = {"record": record, "record_stride": table.record_stride, "exchange": table.exchange, "store": run.store}
    if table.duration is not None:
        samples = windows.run(engine, seeds, table.duration, seed=seed, **settings)
    else:
        known = run_until(
            windows, engine, seeds, table.until, seed=seed, most=table.max_duration, allocation=table.allocation,
            on_stage=lambda stage: say(f"{stage} (target {table.until})"), **settings,
        )  # fmt: skip
        samples = known.samples
        for finding in known.findings:
            say(str(finding))
        run.note_findings("umbrella", list(known.findings))
    say(f"umbrella sampling: {len(windows)} windows, {len(samples)} rows")
    return samples


def make_surfaces(run: Run, samples: BiasedSamples, cvs: dict[str, CollectiveVariable], say: Say) -> list[FreeEnergySurface]:
    """Compute, save and announce the surfaces that ``[surface]`` asks for (default: along the biased CVs)."""
    table = run.config.surface
    assert run.config.umbrella is not None
    wanted = table.along or (tuple(run.config.umbrella.along[:2]),)
    results = run.path / "results"
    results.mkdir(exist_ok=True)
    kept = equilibrated(samples)
    samples.save(results / "samples.npz")
    surfaces = []
    for entry in wanted:
        names = (entry,) if isinstance(entry, str) else entry
        basins = {name: Region.parse(text, cvs) for name, text in table.basins.items()}
        basins = {name: region for name, region in basins.items() if {cv.name for cv in region.cvs} <= set(names)}
        surface = free_energy_surface(
            kept, names, estimator=table.estimator, method=table.method, bins=table.bins, n_bootstrap=table.bootstrap,
            seed=run.config.seed, basins=basins, equilibrate=False,
        )  # fmt: skip
        stem = results / ("free_energy_" + "_".join(names))
        surface.save(stem.with_suffix(".npz"))
        surface.to_csv(stem.with_suffix(".csv"))
        surfaces.append(surface)
        say(str(surface))
    write_json(results / "provenance.json", {**run.store.get("provenance"), "engine": run.store.get("engine")})
    return surfaces


@contextmanager
def _timed(run: Run, stage: str) -> Iterator[None]:
    run.log(f"{stage}: begin")
    began = time.perf_counter()
    try:
        yield
    except CouloirError as error:
        run.log(f"{stage}: {error}")
        raise
    finally:
        run.note_timing(stage, time.perf_counter() - began)
    run.log(f"{stage}: done")
