"""DynamicsDiffusion on its double well: ``python -m benchmarks.dynamics_diffusion --scale small|paper [--model FOLDER]``.

A model of 64-frame snippets is trained on simulated trajectories (or read, where ``FOLDER`` holds one) and judged by what it
generates in 30 network calls: F(x) against the exact surface, and memory, rate and duration of transitions against the simulator, all with
the simulator's snippets cut alike.  Beside them stand the numbers that the paper prints (Petersen, Roig & Covino 2023).
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from benchmarks.dynamics_pictures import draw_snippets
from benchmarks.results import Row, scale_parser, write_results
from benchmarks.systems.double_well import autocorrelation, profile_error, simulate, snippets, transitions
from couloir.generative import FittedTrajectoryDiffusion, TrajectoryDiffusion, Vector
from couloir.generative.trajectory_diffusion import DEFAULT_PLAN
from couloir.trajectory import Array

N_FRAMES, N_CALLS = 64, 30
LAGS = (1, 5, 10, 20, 40)
SCALES: dict[str, dict[str, Any]] = {
    "small": {"data": 80_000.0, "steps": 6_000, "generated": 20_000, "network": {"base_channels": 32, "head": "plain"}},
    "paper": {"data": 2_300_000.0, "steps": 100_000, "generated": 100_000, "network": {"base_channels": 128}},
}
"""Simulated time units to learn from, gradient steps, snippets generated, and the network.

On a CPU the energy head costs more than twice the time per step and four times that per snippet, so ``small`` has the plain one.
"""
REFERENCE = 200_000.0
"""Time units of the simulation that dynamics are compared with."""


def train(scale: str, folder: Path) -> FittedTrajectoryDiffusion:
    """Return the model in ``folder``, trained now unless it is there."""
    if (folder / "model.json").exists():
        return TrajectoryDiffusion.load(folder)
    size = SCALES[scale]
    untrained = TrajectoryDiffusion(Vector(), N_FRAMES, **size["network"])
    plan = replace(DEFAULT_PLAN, steps=size["steps"], learning_rate=2e-3)

    def tell(step: int, now: float, held_out: float) -> None:
        print(f"step {step}: loss {now:.4f}, held out {held_out:.4f}", flush=True)

    model = untrained.fit(simulate(size["data"], seed=11), seed=1, plan=plan, checkpoint=folder / "training", progress=tell)
    model.save(folder)
    return model


def memory(x: Array, reference: Array) -> tuple[float, float]:
    """Return the largest difference of autocorrelations (generated, simulated; (n, frames)) over those lags that fit, and its error.

    The error is that of the simulation's autocorrelation at the same lag and of the generated one, by bootstrap over snippets.
    """
    mean, variance = float(reference.mean()), float(reference.var())
    lags = [lag for lag in LAGS if lag < x.shape[1]]
    both = [autocorrelation(series, mean, variance, lags) for series in (x, reference)]
    worst, rng = int(np.abs(both[0] - both[1]).argmax()), np.random.default_rng(0)
    spread = [
        np.std([autocorrelation(series[rng.integers(len(series), size=len(series))], mean, variance, [lags[worst]])[0] for _ in range(20)])
        for series in (x, reference)
    ]
    return float(np.abs(both[0] - both[1])[worst]), float(np.hypot(*spread))


def surface_rows(x: Array, reference: Array) -> list[Row]:
    """Return rows about F(x) from generated snippets (n, frames), beside as many simulated ones."""
    error, rng = profile_error(x), np.random.default_rng(0)
    draws = [profile_error(x[rng.integers(len(x), size=len(x))]) for _ in range(50)]
    spread = [float(np.std([getattr(d, part) for d in draws])) for part in ("everywhere", "transition")]
    floor = profile_error(reference[: len(x)])
    as_many = f"F(x) from {len(reference[: len(x)]):,} simulated snippets"
    return [
        Row(f"F(x) over 100 bins below 7 kT, mean absolute error, {N_CALLS} calls, {len(x):,} snippets", error.everywhere, "kT", spread[0],
            0.10, error.everywhere <= 0.10, "paper", 0.17),
        Row("the same over the transition region", error.transition, "kT", spread[1], 0.20, error.transition <= 0.20, "paper", 0.33),
        Row(f"{as_many}, mean absolute error", floor.everywhere, "kT", None, None, None, "transition region, kT", floor.transition),
    ]  # fmt: skip


def dynamics_rows(generated: Array, reference: Array) -> list[Row]:
    """Return rows about memory and transitions of generated snippets (n, frames, 2), beside the simulator's."""
    rows = []
    for i, name in enumerate("xy"):
        off, error = memory(generated[..., i], reference[..., i])
        rows.append(Row(f"autocorrelation of {name}, largest difference from the simulator's", off, "", error))
    mine, real = transitions(generated[..., 0]), transitions(reference[..., 0])
    rows.append(Row("transitions per unit time", mine.rate, "", mine.standard_error, None, None, "simulator", real.rate))
    if len(mine.durations) > 1:
        error = float(mine.durations.std() / np.sqrt(len(mine.durations)))
        rows.append(Row("mean duration of a transition", float(mine.durations.mean()), "", error, None, None,
                        "simulator", float(real.durations.mean())))  # fmt: skip
        test = ks_2samp(mine.durations, real.durations)
        claim = f"durations of {len(mine.durations)} transitions, largest difference of distributions"
        rows.append(Row(claim, float(test.statistic), "", None, None, None, "p of equality", float(test.pvalue)))
    return rows


def measure(model: FittedTrajectoryDiffusion, scale: str) -> list[Row]:
    """Return the rows of the table, and draw the picture."""
    start = time.perf_counter()
    generated = model.sample(SCALES[scale]["generated"], seed=3, n_calls=N_CALLS)[:, :, 0]
    rate = len(generated) / (time.perf_counter() - start)
    reference = snippets(simulate(REFERENCE, seed=12), N_FRAMES)
    draw_snippets(generated, reference)
    return [
        *surface_rows(generated[..., 0], reference[..., 0]),
        *dynamics_rows(generated, reference),
        Row("snippets generated per second", rate, "1/s"),
    ]


def main() -> None:
    """Train, measure, print the table, write the results."""
    parser = scale_parser(__doc__, SCALES)
    parser.add_argument("--model", type=Path, default=None, help="folder that holds the model, or will")
    arguments = parser.parse_args()
    folder = arguments.model or Path(__file__).parents[1] / "runs" / f"dynamics_diffusion_{arguments.scale}"
    write_results("dynamics_diffusion", measure(train(arguments.scale, folder), arguments.scale), scale=arguments.scale)


if __name__ == "__main__":
    main()
