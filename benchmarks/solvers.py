"""Error of every solver against its network calls, on a mixture with stiff modes whose denoiser is known exactly.

The peers are what the papers used: 1000-step ancestral sampling, and 60 calls of a solver that stops at t = 1e-3.
With a network, time is proportional to calls, so the ratio of calls is the ratio of samples per second.

    python -m benchmarks.solvers --scale small|paper
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.results import Row, scale_parser, write_results
from couloir.generative.exact import GaussianMixture
from couloir.generative.schedule import EDM, Cosine, NoiseSchedule, VPLinear
from couloir.generative.solvers import SOLVERS, initial_noise, sample

WIDTHS = torch.tensor([0.2, 0.01, 0.02], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.0, 0.02], [1.0, 0.0, -0.02]], dtype=torch.float64)
MIXTURE = GaussianMixture([0.3, 0.7], MEANS, WIDTHS.expand(2, 3))
CALLS = (10, 15, 20, 40, 60, 100, 250, 1000)


def width_errors(schedule: NoiseSchedule, solver: str, n_calls: int, n: int) -> Tensor:
    """Return the relative errors (3,) of the widths, from the quartiles around the mode that each sample is in."""
    start = initial_noise(schedule, n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    x = sample(MIXTURE.denoiser(schedule), schedule, start, solver=solver, n_calls=n_calls, generator=generator)
    away = (x - MEANS[(x[:, 0] > 0.0).long()]) / WIDTHS
    low, high = away.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64), dim=0)
    return (high - low) / 1.348980 - 1.0


def main() -> None:
    """Print the table and write the results."""
    scale = scale_parser(__doc__).parse_args().scale
    n = 20000 if scale == "small" else 200000
    standard_error = 1.166 / math.sqrt(n)  # of a quartile width of a normal

    print(f"largest relative error of the three widths (standard error {standard_error:.3f})")
    print(f"{'schedule':10s} {'solver':20s}" + "".join(f"{c:>8d}" for c in CALLS))
    worst: dict[tuple[str, str, int], float] = {}
    for schedule in (VPLinear(), Cosine(), EDM()):
        for solver in sorted(SOLVERS):
            for n_calls in CALLS:
                worst[schedule.kind, solver, n_calls] = float(width_errors(schedule, solver, n_calls, n).abs().max())
            print(f"{schedule.kind:10s} {solver:20s}" + "".join(f"{worst[schedule.kind, solver, c]:8.3f}" for c in CALLS), flush=True)

    early = float(width_errors(VPLinear(end=1e-3), "dpmpp_2m", 60, n).abs().max())
    ours, ancestral = worst["vp_linear", "dpmpp_2m", 20], worst["vp_linear", "ancestral", 1000]
    long, short = "1000-step ancestral", "60 calls ending at t = 1e-3"
    width = "width error of 20 calls of DPM-Solver++ 2M"
    rows = [
        Row(width, ours, "relative", standard_error, 0.03, ours <= 0.03, long, ancestral),
        Row(width, ours, "relative", standard_error, early, ours <= early, short, early),
        _saved(worst, 1000, ancestral, 20.0, long),
        _saved(worst, 60, early, 3.0, short),
    ]
    write_results("solvers", rows, scale=scale)


def _saved(worst: dict[tuple[str, str, int], float], peer_calls: int, peer_error: float, target: float, peer: str) -> Row:
    """Return the ratio of the peer's calls to the fewest at which DPM-Solver++ 2M errs no more; 0 when it never does."""
    enough = [c for c in CALLS if worst["vp_linear", "dpmpp_2m", c] <= peer_error]
    ratio = peer_calls / min(enough) if enough else 0.0
    return Row("network calls saved at equal or better width", ratio, "x", None, target, ratio >= target, peer, peer_error)


if __name__ == "__main__":
    main()
