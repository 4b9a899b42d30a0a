"""Are the rare paths the right paths: ``python -m benchmarks.transition_paths --scale small|paper [--model FOLDER]``.

Generated transitions of the double well of DynamicsDiffusion against those of brute-force simulation (Petersen, Roig & Covino 2023,
Fig. 10).  A transition path runs from the last frame in A (x < -0.8) to the first frame in B (x > 0.8), a frame every 0.01; passages from
B to A are turned round.  The transition path ensemble (TPE) holds every passage of a long simulation, of any duration.

What is generated has a length, so it answers another question than the TPE: snippets of L frames that begin in A and end in B.  It is
compared with the simulation's snippets cut alike, and both are first cut down to their (first) passage:

- *Inpainted*: both ends imposed.  The ends are taken from one half of the simulation's snippets, the reference is the other half, so a
  perfect model and a perfect method would give two samples of one law; what is left is their error.  The imposed frames are the outer
  ones of a snippet, or lie within it (frames 12 and 51, the reference being snippets of 40 frames).  In practice such ends are
  not known: ends drawn from A and from B by themselves, in equilibrium, are compared with the TPE, which they need not reproduce.
- *Varied*: noised to a level and denoised with the ends kept.  Of snippets of the simulation: a perfect model gives snippets of the
  same law, at every level.  Of straight lines from A to B: low levels keep what is wrong with a line, high levels forget it.

- *After shooting*: every generated path, cut down to its passage, is the first path of a chain of one-way shooting moves in real dynamics.
  The last path of each chain, whatever became of it, is compared with the TPE, without a limit of duration.  Shooting is exact, so what is
  measured is whether 50 moves suffice to forget where the seed came from.

Four numbers are taken from every path, one each, so that paths that are independent give samples that are: its duration; x of one of its
frames at random (the density along the path); y at the first frame beyond the top of the barrier, x = 0; and the mean square of the steps
along x that begin in |x| < 0.5 (the mean-square displacement across the region, at the lag where generated noise shows).  Two-sample
Kolmogorov-Smirnov tests compare each with the reference.  The table has the largest of the four distances and the smallest of the four
p-values times four (Bonferroni); ties of durations, which are multiples of 0.01, make that p-value too large rather than too small.
It tests equality: not to reject that with n and m paths bounds the distance, at about 1.6 sqrt(1/n + 1/m), and proves no more.  The target
p > 0.01 is missed by a perfect ensemble once in a hundred rows; that the same test rejects the seeds shows what it can see.

A path is discontinuous when one of its steps is longer than 1.5 times the 99.9th percentile of the simulation's
(:func:`couloir.sampling.path_scores.score_paths`).  None is left out of the tests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dynamics_diffusion import N_FRAMES, train
from benchmarks.dynamics_pictures import figure_of, save
from benchmarks.results import Row, scale_parser, write_results
from benchmarks.systems.double_well import CORES, STRIDE, TRANSITION, between_cores, engine, passages, simulate, snippets
from couloir.cv import Coordinate
from couloir.generative import FittedTrajectoryDiffusion
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_sampling import TransitionPathSampling
from couloir.sampling.path_scores import score_paths
from couloir.streams import stream
from couloir.trajectory import Array, Trajectory

RUNS = Path(__file__).parents[1] / "runs"


@dataclass(frozen=True)
class Scale:
    """Simulated time units, generated paths of each kind, chains of shooting moves per kind, noise levels of variations."""

    truth: float
    paths: int
    chains: int
    levels: tuple[float, ...]


SCALES = {"small": Scale(160_000.0, 300, 250, (0.5, 2.0)), "paper": Scale(1_600_000.0, 3_000, 1_000, (0.25, 0.5, 1.0, 2.0, 4.0, 8.0))}
INNER = (12, 51)
"""Imposed frames of the second placement."""
AT_ONCE = 80_000.0
"""Time units simulated at a time, to bound the memory."""
MOVES = 50
"""Shooting moves per seed."""
MAX_DURATION = 3.0
"""Of a path while shooting; the TPE holds none as long."""
NAMES = ("duration", "x of a random frame", "y at the top", "mean square step across the top")


@dataclass(frozen=True, eq=False)
class Truth:
    """What the brute-force simulation holds.

    Attributes
    ----------
    paths : the TPE: every passage, turned to run from A to B, frames (n, 2) each.
    outer, inner : snippets of 64 and of 40 frames that begin in A and end in B, (n, n_frames, 2).
    in_a, in_b : frames in equilibrium within A and within B, (n, 2).
    """

    paths: list[Array]
    outer: Array
    inner: Array
    in_a: Array
    in_b: Array


@dataclass(frozen=True, eq=False)
class Kind:
    """Paths of one origin: the passages, and the share of the generated paths that were discontinuous."""

    name: str
    paths: list[Array]
    discontinuous: float


def truth(duration: float) -> Truth:
    """Return what a simulation of ``duration`` holds, from the file under ``runs/`` if it was made before."""
    file = RUNS / f"transition_paths_truth_{duration:g}.npz"
    if not file.exists():
        kept: dict[str, list[Array]] = {"outer": [], "inner": [], "in_a": [], "in_b": [], "paths": []}
        for part in range(int(np.ceil(duration / AT_ONCE))):
            trajectories = simulate(min(AT_ONCE, duration), seed=1000 + part)
            frames = [trajectory.positions[:, 0] for trajectory in trajectories]
            kept["paths"] += [path for one in frames for path in passages(one)]
            kept["outer"].append(between_cores(snippets(trajectories, N_FRAMES)))
            kept["inner"].append(between_cores(snippets(trajectories, INNER[1] - INNER[0] + 1)))
            some = np.concatenate([one[::200] for one in frames])
            kept["in_a"].append(some[some[:, 0] < CORES[0]])
            kept["in_b"].append(some[some[:, 0] > CORES[1]])
        lengths = np.array([len(path) for path in kept["paths"]])
        file.parent.mkdir(exist_ok=True)
        np.savez(file, lengths=lengths, **{name: np.concatenate(parts) for name, parts in kept.items()})  # type: ignore[arg-type]
    with np.load(file) as held:
        paths = np.split(held["paths"], np.cumsum(held["lengths"])[:-1])
        return Truth(paths, held["outer"], held["inner"], held["in_a"], held["in_b"])


def generate(model: FittedTrajectoryDiffusion, real: Truth, n: int, levels: Sequence[float], md: Sequence[Trajectory]) -> list[Kind]:
    """Return the inpainted and the varied paths, ``n`` of each kind or as many as there are ends of their own."""
    outer, inner = real.outer[::2][:n], np.zeros((len(real.inner[::2][:n]), N_FRAMES, 2))
    inner[:, list(INNER)] = real.inner[::2][:n][:, [0, -1]]
    rng = stream(1, "ends")
    free = np.zeros_like(outer)
    free[:, 0], free[:, -1] = rng.choice(real.in_a, len(free)), rng.choice(real.in_b, len(free))
    weight = np.linspace(0.0, 1.0, N_FRAMES)[None, :, None]
    lines = (1.0 - weight) * outer[:, :1] + weight * outer[:, -1:]
    ends = np.isin(np.arange(N_FRAMES), (0, N_FRAMES - 1))

    def kind(name: str, made: Array, imposed: Any) -> Kind:
        print(f"{name}: {len(made)} paths", flush=True)
        steps = score_paths(made, md=md, imposed=imposed)
        return Kind(name, first_passages(made[:, :, 0]), float(1.0 - steps.passed["jump"].mean()))

    within = np.isin(np.arange(N_FRAMES), INNER)
    out = [
        kind("inpainted", model.inpaint(outer[:, :, None], ends, seed=2), ends),
        kind("inpainted by replacement", model.inpaint(outer[:, :, None], ends, seed=3, method="replacement"), ends),
        kind("inpainted within", model.inpaint(inner[:, :, None], within, seed=4)[:, INNER[0] : INNER[1] + 1], None),
        kind("inpainted, any ends", model.inpaint(free[:, :, None], ends, seed=5), ends),
    ]
    for level in levels:
        for name, given in (("real paths", outer), ("straight lines", lines)):
            out.append(kind(f"{name} varied at {level:g}", model.vary(given[:, :, None], level, mask=ends, seed=6), ends))
    return out


def first_passages(frames: Array) -> list[Array]:
    """Return the first passage of each of the snippets (n, n_frames, 2), which begin in A and end in B."""
    return [passages(one)[0] for one in frames]


def observables(paths: Sequence[Array], seed: int) -> dict[str, Array]:
    """Return the four numbers of every path, by name, (n,) each."""
    rng = stream(seed, "frames")
    durations = np.array([(len(path) - 1) * STRIDE for path in paths])
    frame = np.array([path[rng.integers(len(path)), 0] for path in paths])
    top = np.array([path[np.argmax(path[:, 0] > 0.0), 1] for path in paths])
    return dict(zip(NAMES, (durations, frame, top, np.array([_mean_square_step(path[:, 0]) for path in paths])), strict=True))


def _mean_square_step(x: Array) -> float:
    squares = np.diff(x) ** 2
    across = (x[:-1] > TRANSITION[0]) & (x[:-1] < TRANSITION[1])
    return float(squares[across].mean() if across.any() else squares.max())  # a path may jump over the region


@dataclass(frozen=True)
class Comparison:
    """The largest Kolmogorov-Smirnov distance, where it was, and the smallest p-value times the number of tests."""

    distance: float
    of: str
    p: float


def compare(paths: Sequence[Array], reference: Sequence[Array]) -> Comparison:
    """Return how two samples of paths differ, over the four observables."""
    from scipy.stats import ks_2samp

    mine, real = observables(paths, 1), observables(reference, 2)
    tests = {name: ks_2samp(mine[name], real[name]) for name in NAMES}
    of = max(NAMES, key=lambda name: tests[name].statistic)
    return Comparison(float(tests[of].statistic), of, min(1.0, len(NAMES) * min(float(test.pvalue) for test in tests.values())))


def shoot(kind: Kind, n: int, reference: Sequence[Array]) -> tuple[Kind, list[Row]]:
    """Return the last paths of chains that begin at up to ``n`` paths of a kind, and their rows."""
    x = Coordinate(0, name="x")
    seeds = [path for path in kind.paths if len(path) > 2][:n]  # a path without a frame between A and B cannot be shot from
    first = [Trajectory(path[:, None], STRIDE) for path in seeds]
    sampling = TransitionPathSampling(engine(), x < CORES[0], x > CORES[1], ShootingMove.one_way(), max_duration=MAX_DURATION)
    start = time.perf_counter()
    visited = sampling.run(first, MOVES * len(first), len(first), seed=7)
    print(f"{kind.name}: {len(first)} chains in {time.perf_counter() - start:.0f} s", flush=True)
    last = {int(chain): i for i, chain in enumerate(visited.chain)}  # in the order of steps within each chain
    ends = [visited.paths[i].positions[:, 0] for i in last.values()]
    name, free = f"{kind.name}, after {MOVES} moves", float(np.mean([visited.decorrelated[i] for i in last.values()]))
    shot = Kind(name, ends, 0.0)
    mean, distance, p = rows_of(shot, reference, "all transition paths")[:3]
    forgotten = Row(f"{name} ({len(ends)}): last paths that hold no frame of the seed", free, "")
    return shot, [mean, distance, replace(p, target=0.01, met=p.value > 0.01), forgotten]


def rows_of(kind: Kind, reference: Sequence[Array], against: str) -> list[Row]:
    """Return the rows of one kind of generated paths: what they are like beside the reference, without a target."""
    found = compare(kind.paths, reference)
    durations, real = ([(len(path) - 1) * STRIDE for path in some] for some in (kind.paths, reference))
    head, error = f"{kind.name} ({len(kind.paths)})", float(np.std(durations) / np.sqrt(len(durations)))
    return [
        Row(f"{head}: mean duration", float(np.mean(durations)), "", error, peer=against, peer_value=float(np.mean(real))),
        Row(f"{head}: largest KS distance", found.distance, "", peer=f"{against}, {found.of}"),
        Row(f"{head}: p of equality", found.p, "", peer=against),
        Row(f"{head}: discontinuous", kind.discontinuous, ""),
    ]


def measure(model: FittedTrajectoryDiffusion, scale: str) -> list[Row]:
    """Return the rows of the table, and draw the picture."""
    size = SCALES[scale]
    real, md = truth(size.truth), simulate(2_000.0, seed=13)
    outer, inner = first_passages(real.outer[1::2]), first_passages(real.inner[1::2])
    kinds = generate(model, real, size.paths, size.levels, md)
    checks = score_paths(real.outer[:, :, None], md=md)
    halves = compare(first_passages(real.outer[::2]), outer)
    rows = [
        Row("transition paths of the simulation", len(real.paths), "", None, 2000, len(real.paths) >= 2000),
        Row("simulated snippets from A to B, one half against the other: p of equality", halves.p, ""),
        Row("simulated snippets from A to B: discontinuous", float(1.0 - checks.passed["jump"].mean()), ""),
        *rows_of(Kind("simulated snippets from A to B", outer, 0.0), real.paths, "all transition paths")[:3],
    ]
    for kind in kinds:
        if kind.name.endswith("any ends"):
            rows += rows_of(kind, real.paths, "all transition paths")
        else:
            rows += rows_of(kind, inner if kind.name.endswith("within") else outer, "simulated snippets from A to B")
    shots = [shoot(kind, size.chains, real.paths) for kind in kinds if not kind.name.startswith("real paths")]
    rows += [row for _, found in shots for row in found]
    known = [Kind("TPE, simulated", real.paths, 0.0), Kind("snippets, simulated", outer, 0.0)]
    draw([*known, *kinds[:4], *(shot for shot, _ in shots[:2])])
    return rows


def draw(kinds: Sequence[Kind]) -> None:
    """Write ``results/transition_paths.png``: durations, density along x, and mean-square displacement across the region."""
    figure, (left, middle, right) = figure_of(3, (14, 4))
    lags = np.arange(1, 11)
    for kind in kinds:
        style: dict[str, Any] = {"color": "black", "lw": 2} if kind.name.startswith("TPE") else {}
        style |= {"ls": "--"} if "after" in kind.name else {}
        durations = [(len(path) - 1) * STRIDE for path in kind.paths]
        left.hist(durations, np.arange(-0.005, 0.7, 0.02), density=True, histtype="step", label=kind.name, **style)
        middle.hist(np.concatenate(kind.paths)[:, 0], np.linspace(-1.2, 1.2, 31), density=True, histtype="step", **style)
        right.plot(lags * STRIDE, displacement(kind.paths, lags), **style)
    left.set(xlabel="duration", ylabel="density")
    middle.set(xlabel="x along the path", ylabel="density")
    right.set(xlabel="lag", ylabel="mean-square displacement of x from |x| < 0.5")
    left.legend(fontsize="small")
    save(figure, "transition_paths")


def displacement(paths: Sequence[Array], lags: Array | Any) -> Array:
    """Return the mean-square displacement of x within the paths, from frames in |x| < 0.5, at every lag (frames); NaN without any."""
    out = []
    for lag in lags:
        starts = np.concatenate([path[:-lag, 0] for path in paths])
        ends = np.concatenate([path[lag:, 0] for path in paths])
        across = (starts > TRANSITION[0]) & (starts < TRANSITION[1])
        out.append(float(np.mean((ends - starts)[across] ** 2)) if across.any() else np.nan)
    return np.array(out)


def main() -> None:
    """Train unless it is done, measure, print the table, write the results."""
    parser = scale_parser(__doc__, SCALES)
    parser.add_argument("--model", type=Path, default=None, help="folder that holds the model, or will")
    arguments = parser.parse_args()
    folder = arguments.model or RUNS / f"dynamics_diffusion_{arguments.scale}"
    write_results("transition_paths", measure(train(arguments.scale, folder), arguments.scale), scale=arguments.scale)


if __name__ == "__main__":
    main()
