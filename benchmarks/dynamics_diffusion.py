"""DynamicsDiffusion on its double well: ``python -m benchmarks.dynamics_diffusion --scale small|paper [--model FOLDER]``.

A model of 64-frame snippets is trained on simulated trajectories (or read, where ``FOLDER`` holds one) and judged by what it
generates in 30 network calls: F(x) against the exact surface, and memory, rate and duration of transitions against the simulator, all with
the simulator's snippets cut alike.  Beside them stand the numbers that the paper prints (Petersen, Roig & Covino 2023).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.results import Row, write_results
from benchmarks.systems.double_well import autocorrelation, profile_error, simulate, snippets, transitions
from couloir.generative import FittedTrajectoryDiffusion, TrajectoryDiffusion, Vector
from couloir.generative.trajectory_diffusion import DEFAULT_PLAN
from couloir.trajectory import Array

N_FRAMES, N_CALLS = 64, 30
LAGS = (1, 5, 10, 20, 40)
SCALES = {
    "small": {"data": 80_000.0, "steps": 3_000, "channels": 32, "generated": 20_000},
    "paper": {"data": 2_300_000.0, "steps": 100_000, "channels": 128, "generated": 100_000},
}
"""Simulated time units to learn from, gradient steps, channels of the network, snippets generated."""
REFERENCE = 200_000.0
"""Time units of the simulation that dynamics are compared with."""


def train(scale: str, folder: Path) -> FittedTrajectoryDiffusion:
    """Return the model in ``folder``, trained now unless it is there."""
    if (folder / "model.json").exists():
        return TrajectoryDiffusion.load(folder)
    size = SCALES[scale]
    untrained = TrajectoryDiffusion(Vector(), N_FRAMES, base_channels=int(size["channels"]))
    plan = replace(DEFAULT_PLAN, steps=int(size["steps"]), learning_rate=2e-3, held_out_rows=256)

    def tell(step: int, now: float, held_out: float) -> None:
        print(f"step {step}: loss {now:.4f}, held out {held_out:.4f}", flush=True)

    model = untrained.fit(simulate(size["data"], seed=11), seed=1, plan=plan, checkpoint=folder / "training", progress=tell)
    model.save(folder)
    return model


def memory(x: Array, reference: Array) -> float:
    """Return the largest difference of the autocorrelation (generated, simulated; (n, frames)) over those lags that fit."""
    mean, variance = float(reference.mean()), float(reference.var())
    lags = [lag for lag in LAGS if lag < x.shape[1]]
    both = [autocorrelation(series, mean, variance, lags) for series in (x, reference)]
    return float(np.abs(both[0] - both[1]).max())


def measure(model: FittedTrajectoryDiffusion, scale: str) -> list[Row]:
    """Return the rows of the table."""
    start = time.perf_counter()
    generated = model.sample(int(SCALES[scale]["generated"]), seed=3, n_calls=N_CALLS)[:, :, 0]
    seconds = time.perf_counter() - start
    reference = snippets(simulate(REFERENCE, seed=12), N_FRAMES)
    x = generated[..., 0]
    error, rng = profile_error(x), np.random.default_rng(0)
    draws = [profile_error(x[rng.integers(len(x), size=len(x))]) for _ in range(50)]
    spread = [float(np.std([getattr(d, part) for d in draws])) for part in ("everywhere", "transition")]
    mine, real = transitions(x), transitions(reference[..., 0])
    passage, passage_error = float(mine.durations.mean()), float(mine.durations.std() / np.sqrt(max(len(mine.durations), 1)))
    return [
        Row(f"F(x) over 100 bins below 7 kT, mean absolute error, {N_CALLS} calls", error.everywhere, "kT", spread[0], 0.10,
            error.everywhere <= 0.10, "paper", 0.17),
        Row("the same over the transition region", error.transition, "kT", spread[1], 0.20, error.transition <= 0.20, "paper", 0.33),
        Row("autocorrelation of x, largest difference from the simulator's", memory(x, reference[..., 0]), ""),
        Row("autocorrelation of y, largest difference from the simulator's", memory(generated[..., 1], reference[..., 1]), ""),
        Row("transitions per unit time", mine.rate, "", mine.standard_error, None, None, "simulator", real.rate),
        Row("mean duration of a transition", passage, "", passage_error, None, None, "simulator", float(real.durations.mean())),
        Row("snippets generated per second", len(x) / seconds, "1/s"),
    ]  # fmt: skip


def main() -> None:
    """Train, measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    parser.add_argument("--model", type=Path, default=None, help="folder that holds the model, or will")
    arguments = parser.parse_args()
    folder = arguments.model or Path(__file__).parents[1] / "runs" / f"dynamics_diffusion_{arguments.scale}"
    write_results("dynamics_diffusion", measure(train(arguments.scale, folder), arguments.scale), scale=arguments.scale)


if __name__ == "__main__":
    main()
