"""Ablations of DynamicsDiffusion: ``python -m benchmarks.dynamics_studies --scale small|paper --study NAME [--threads N] [--trainings N]``.

Models of the double well of :mod:`benchmarks.dynamics_diffusion`, several trainings of each with data and seeds of their own, judged alike:
error of F(x) against the exact surface, time of a training step, time to generate.  Rows are means and standard errors over trainings.

    heads        energy or plain head, with attention or without; what the energy head costs (Petersen, Roig & Covino 2023, tables 1 and 9)
    encoder      the encoder alone beside the whole U-Net (table 4)
    data         1/1 to 1/10,000 of the data, for long and for short snippets (table 7), beside F(x) of those data themselves
    calls        5 to 100 network calls, and 1,000 of ancestral sampling (figure 9)
    lengths      one model of mixed lengths, generating at several, also beyond those it saw (figure 11)
    norms        models of mixed lengths that normalize over all frames, or over each frame alone
    temperature  one model given kT, at temperatures that it saw and at others

A perfect model has an error too, because a finite number of snippets is generated: every table begins with that of as many snippets of
the simulator.  Each training lives in ``runs/studies_<scale>/<name>_<seed>/`` and is shared by the studies that need it; what is there is
not done again, and what was interrupted continues.  Each runs in a process of its own with one thread, ``--threads`` of them at a time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alone import alone
from benchmarks.dynamics_diffusion import memory
from benchmarks.results import Row, scale_parser, write_results
from benchmarks.systems.ablations import N_FRAMES, SCALES, Look, Scale, Study, Training, core_seconds, studies
from benchmarks.systems.double_well import BELOW, TRANSITION, profile, simulate, snippets
from couloir.generative import FittedTrajectoryDiffusion, TrajectoryDiffusion, Vector
from couloir.generative.trajectory_diffusion import DEFAULT_PLAN
from couloir.trajectory import Array, Trajectory

RUNS = Path(__file__).parents[1] / "runs"
WALKERS = 16
"""Trajectories that a simulation is made of, whole time units each."""
REFERENCE = 80_000.0
"""Time units of the simulation that generated snippets are compared with."""
EMPTY = 3.0
"""kT, the error of a bin that no sample fell into."""
MEASURES = {"everywhere": "F(x)", "transition": "F(x) in the transition region"}
PAPER = {"energy_attention": {"everywhere": 0.17, "transition": 0.33}}
"""Errors that the paper prints, kT; of those known to us, the model judged in :mod:`benchmarks.dynamics_diffusion`."""


def error_of_profile(x: Array, kT: float = 1.0) -> dict[str, float]:
    """Return the mean absolute error (kT) of F(x) over the bins up to 7 kT, everywhere and in the transition region.

    For kT >= 1 these are the bins of :func:`benchmarks.systems.double_well.profile_error`; at lower kT the barrier is higher than 7 kT,
    where nothing can be said with some thousand snippets, and a region without any bin has NaN.
    """
    centers, free, exact = profile(x, kT)
    off = np.where(np.isfinite(free), np.abs(free - exact), EMPTY)
    low = exact - exact.min() < BELOW
    between = low & (centers > TRANSITION[0]) & (centers < TRANSITION[1])
    return {"everywhere": float(off[low].mean()), "transition": float(off[between].mean()) if between.any() else float("nan")}


def beginning(trajectories: Sequence[Trajectory], fraction: float, n_frames: int) -> list[Trajectory]:
    """Return a share of the simulation: trajectories one after the other until it is reached, the last cut, if it holds a snippet."""
    left, out = round(fraction * sum(len(t.positions) for t in trajectories)), []
    for trajectory in trajectories:
        part = min(left, len(trajectory.positions))
        if part >= n_frames:
            out.append(Trajectory(trajectory.positions[:part], trajectory.stride))
        left -= part
    return out


def learn_from(training: Training, scale: Scale, seed: int) -> tuple[list[Trajectory], list[float]]:
    """Return the training data and the temperature of each trajectory; the same amount in all for any number of temperatures."""
    parts: list[Trajectory] = []
    kT: list[float] = []
    duration = WALKERS * round(scale.data / len(training.kT) / WALKERS)
    for i, temperature in enumerate(training.kT):
        whole = simulate(duration, seed=1000 + 10 * seed + i, kT=temperature, walkers=WALKERS)
        parts += beginning(whole, training.fraction, training.lengths[1])
        kT += [temperature] * (len(parts) - len(kT))
    return parts, kT


def train(training: Training, scale: Scale, seed: int, folder: Path) -> FittedTrajectoryDiffusion:
    """Return the model in ``folder``, trained now, or further, unless it is complete."""
    if (folder / "model.json").exists():
        return TrajectoryDiffusion.load(folder)
    given = len(training.kT) > 1
    data, kT = learn_from(training, scale, seed)
    untrained = TrajectoryDiffusion(
        Vector(), training.lengths, temperature_conditioned=given, base_channels=scale.channels, **training.network
    )  # fmt: skip
    steps = scale.more_steps if training.more else scale.steps
    plan = replace(DEFAULT_PLAN, steps=steps, batch_size=scale.batch, learning_rate=2e-3, held_out_rows=256)

    def tell(step: int, now: float, held_out: float) -> None:
        print(f"{folder.name}: step {step} of {steps}: loss {now:.4f}, held out {held_out:.4f}", flush=True)

    model = untrained.fit(data, seed=seed, kT=kT if given else None, plan=plan, checkpoint=folder / "training", progress=tell)
    assert model.history is not None
    own = {} if given else error_of_profile(np.concatenate([t.positions[:, 0, 0] for t in data]))
    (folder / "training.json").write_text(json.dumps({"seconds": model.history.seconds / steps, "data": own}))
    model.save(folder)
    return model


@lru_cache(maxsize=2)
def reference(kT: float) -> list[Trajectory]:
    """Return the simulation that generated snippets are compared with."""
    return simulate(REFERENCE, seed=12, kT=kT)


def judge(model: FittedTrajectoryDiffusion, look: Look, scale: Scale, seed: int) -> dict[str, float]:
    """Return the errors of F(x) and of the autocorrelation of x of generated snippets, and the seconds that generating one took."""
    n_frames, n = look.n_frames or model.n_frames, max(1, round(look.share * scale.generated))
    start = time.perf_counter()
    x = model.sample(
        n, n_frames=n_frames, kT=None if model.log_kT is None else look.kT, seed=100 + seed, solver=look.solver, n_calls=look.n_calls
    )[:, :, 0, 0]  # fmt: skip
    seconds = (time.perf_counter() - start) / n
    real = snippets(reference(look.kT), n_frames)[..., 0]
    return {**error_of_profile(x, look.kT), "memory": memory(x, real)[0], "seconds": seconds}


def perfect(look: Look, n_frames: int, scale: Scale, draws: int = 10) -> dict[str, float]:
    """Return the errors of F(x) of as many snippets of the simulator, mean over some draws of them."""
    real, rng = snippets(reference(look.kT), n_frames)[..., 0], np.random.default_rng(0)
    n = max(1, round(look.share * scale.generated))
    errors = [error_of_profile(real[rng.integers(len(real), size=n)], look.kT) for _ in range(draws)]
    return {key: float(np.mean([e[key] for e in errors])) for key in ("everywhere", "transition")}


def work(training: Training, looks: Sequence[Look], scale: Scale, seed: int, folder: Path) -> str:
    """Train one model and measure it, in this process with one thread, leaving out what is done; return what it was."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    model = train(training, scale, seed, folder)
    for look in looks:
        file = folder / f"look_{look.name}.json"
        if not file.exists():
            measured = judge(model, look, scale, seed)
            file.write_text(json.dumps({**asdict(look), **measured}))
            print(f"{folder.name}: {look.name}: F(x) off by {measured['everywhere']:.3f} kT, {measured['seconds']:.3g} s each", flush=True)
    return folder.name


def folder_of(root: Path, training: Training, seed: int) -> Path:
    """Return where a training lives."""
    return root / f"{training.name}_{seed}"


def run(study: Study, scale: Scale, root: Path, trainings: int, threads: int) -> None:
    """Do all trainings and measurements, ``threads`` at a time; the dearest first, so that none is left alone at the end."""
    os.environ["OMP_NUM_THREADS"] = "1"
    tasks = [(training, seed) for training in study.trainings for seed in range(trainings)]
    tasks.sort(key=lambda task: -core_seconds(task[0], study.looks, scale, folder_of(root, *task)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(threads, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(work, t, study.looks, scale, seed, folder_of(root, t, seed)) for t, seed in tasks]
        try:
            for i, future in enumerate(as_completed(futures), 1):
                print(f"{future.result()} done, {i} of {len(tasks)}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard error, which a single value has not."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def table(name: str, study: Study, scale: Scale, root: Path, trainings: int) -> list[Row]:
    """Return the rows of a study from what its trainings left in their folders."""
    rows, floors = [], {}
    for training in study.trainings:
        folders = [folder_of(root, training, seed) for seed in range(trainings)]
        records = [json.loads((folder / "training.json").read_text()) for folder in folders]
        for look in study.looks:
            measured = [json.loads((folder / f"look_{look.name}.json").read_text()) for folder in folders]
            n_frames = look.n_frames or training.lengths[1]
            floors[look.kT, look.share, n_frames] = look
            label = study.label(training, look)
            for key, what in MEASURES.items():
                value, error = mean_and_error([m[key] for m in measured])
                if not np.isnan(value):
                    rows.append(Row(f"{label}: error of {what}", value, "kT", error, None, None, *_peer(name, training, key, records)))
            if name in ("lengths", "norms"):
                value, error = mean_and_error([m["memory"] for m in measured])
                rows.append(Row(f"{label}: autocorrelation of x, largest difference from the simulator's", value, "", error))
            value, error = mean_and_error([1e3 * m["seconds"] for m in measured])
            rows.append(Row(f"{label}: time to generate a snippet", value, "ms", error))
        value, error = mean_and_error([1e3 * record["seconds"] for record in records])
        rows.append(Row(f"{training.name}: time of a training step", value, "ms", error))
    return [*_floor_rows(floors, scale), *rows]


def _peer(name: str, training: Training, key: str, records: Sequence[dict[str, Any]]) -> tuple[str, float | None]:
    if name == "data":
        return "the data themselves", float(np.mean([record["data"][key] for record in records]))
    known = PAPER.get(training.name, {}).get(key)
    return ("", None) if known is None else ("paper", known)


def _floor_rows(floors: dict[tuple[float, float, int], Look], scale: Scale) -> list[Row]:
    rows = []
    for (kT, share, n_frames), look in sorted(floors.items(), key=lambda item: item[0]):
        floor, n = perfect(look, n_frames, scale), max(1, round(share * scale.generated))
        words = f"{n} snippets of {n_frames} frames by the simulator, kT = {kT:g}"
        rows += [Row(f"{words}: error of {what}", floor[key], "kT") for key, what in MEASURES.items() if not np.isnan(floor[key])]
    return rows


def a_step(options: dict[str, Any], channels: int, batch: int) -> Callable[[], float]:
    """Return one training step of a new network (for :func:`benchmarks.alone.alone`), on the GPU where there is one."""
    import torch

    from couloir.generative.networks.temporal_unet import TemporalUNet, snippet_loss

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = TemporalUNet(2, base_channels=channels, **options).to(device)
    schedule, generator = TrajectoryDiffusion(Vector(), N_FRAMES).schedule, torch.Generator(device).manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x = torch.randn(batch, N_FRAMES, 2, device=device)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = snippet_loss(network, schedule, x, None, 0.1, generator).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    step()
    return step


def a_sample(options: dict[str, Any], channels: int, batch: int) -> Callable[[], Array]:
    """Return the generation of ``batch`` snippets in five calls by a new network."""
    schedule = TrajectoryDiffusion(Vector(), N_FRAMES).schedule
    network = {"base_channels": channels, **options}
    representation = Vector().fit(np.random.default_rng(0).normal(size=(100, 1, 2)))
    model = FittedTrajectoryDiffusion(representation, schedule, (N_FRAMES, N_FRAMES), 0.01, None, network)
    return lambda: model.sample(batch, seed=0, n_calls=5)


def slow_down(study: Study, scale: Scale) -> list[Row]:
    """Return how much longer the energy head takes than the plain one: four networks one after the other, each in its own process."""
    rows, seconds = [], {}
    for training in study.trainings:
        for what, prepare in (("training step", a_step), ("sample", a_sample)):
            measured = alone(prepare, training.network, scale.channels, scale.batch, limit=600.0, calls=8)
            seconds[training.network["head"], training.network["attention"], what] = float("nan") if measured is None else measured.seconds
    for attention, words in ((True, "with attention"), (False, "without attention")):
        for what in ("training step", "sample"):
            energy, plain = (seconds[head, attention, what] for head in ("energy", "plain"))
            rows.append(Row(f"time of a {what}, energy head over plain head, {words}", energy / plain, ""))
    return rows


def main() -> None:
    """Train, measure, print the table, write the results."""
    parser = scale_parser(__doc__, SCALES)
    parser.add_argument("--study", choices=sorted(studies(SCALES["small"])), required=True)
    parser.add_argument("--threads", type=int, default=1, help="trainings at a time, a thread each")
    parser.add_argument("--trainings", type=int, default=None, help="of each model; default 3 small, 10 paper")
    parser.add_argument("--steps", type=int, default=None, help="gradient steps, to try it out: few data, nothing written")
    arguments = parser.parse_args()
    scale, root = SCALES[arguments.scale], RUNS / f"studies_{arguments.scale}"
    if arguments.steps is not None:
        scale = replace(scale, steps=arguments.steps, more_steps=arguments.steps, data=8_000.0, generated=64)
        root = RUNS / f"studies_{arguments.scale}_trial_{arguments.steps}"
    trainings = arguments.trainings or scale.trainings
    study = studies(scale)[arguments.study]
    left = sum(core_seconds(t, study.looks, scale, folder_of(root, t, seed)) for t in study.trainings for seed in range(trainings))
    print(f"{arguments.study}: {len(study.trainings)} models, {trainings} trainings each; "
          f"about {left / 60:.0f} minutes of one CPU core are left to do, {arguments.threads} at a time", flush=True)  # fmt: skip
    run(study, scale, root, trainings, arguments.threads)
    rows = table(arguments.study, study, scale, root, trainings)
    if arguments.study == "heads":
        rows += slow_down(study, scale)
    if arguments.steps is None:
        write_results(f"dynamics_{arguments.study}", rows, scale=arguments.scale)
    else:
        print("\n".join(f"{row.claim}: {row.value:.4g} {row.unit}; {row.peer} {row.peer_value}" for row in rows))


if __name__ == "__main__":
    main()
