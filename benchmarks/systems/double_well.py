"""The double well of DynamicsDiffusion and what is measured of its trajectories (used by ``benchmarks.dynamics_diffusion``).

V = -9 x^2 + x^3 + 4.5 x^4 + 3 y^2, overdamped, mobility 1, time step 0.001, a frame every 10 steps (Petersen, Roig & Covino
2023).  x and y are independent, so F(x) is V along x, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from couloir.sampling import ToyEngine, potentials
from couloir.trajectory import Array, Trajectory

TIME_STEP, STRIDE = 1e-3, 1e-2
BELOW = 7.0
"""kT above the minimum up to which bins count."""
TRANSITION = (-0.5, 0.5)
CORES = (-0.8, 0.8)
"""A is x < -0.8, B is x > 0.8."""


def engine(kT: float = 1.0) -> ToyEngine:
    """Return the simulator."""
    return ToyEngine(potentials.dynamics_diffusion_well(), kT=kT, time_step=TIME_STEP)


def simulate(duration: float, seed: int, kT: float = 1.0, walkers: int = 16) -> list[Trajectory]:
    """Return trajectories of ``duration`` in all, begun in equilibrium (drawn from the exact distribution along x)."""
    simulator, rng = engine(kT), np.random.default_rng(seed)
    x = np.linspace(-2.0, 2.0, 4001)
    cdf = np.cumsum(np.exp(-energy(x) / kT))
    starts = np.interp(rng.random(walkers), cdf / cdf[-1], x)
    states = [simulator.state(float(a), float(b)) for a, b in zip(starts, rng.normal(scale=np.sqrt(kT / 6), size=walkers), strict=True)]
    return simulator.propagate(states, duration=duration / walkers, stride=STRIDE, seed=seed)


def energy(x: Array) -> Array:
    """Return V along x."""
    return np.asarray(-9 * x**2 + x**3 + 4.5 * x**4)


def snippets(trajectories: list[Trajectory], n_frames: int) -> Array:
    """Return trajectories cut into snippets (n, n_frames, 2) that do not overlap."""
    out = []
    for trajectory in trajectories:
        frames = trajectory.positions[:, 0, :]
        n = len(frames) // n_frames
        out.append(frames[: n * n_frames].reshape(n, n_frames, 2))
    return np.concatenate(out)


@dataclass(frozen=True)
class ProfileError:
    """Mean absolute error (kT) of F(x) over 100 bins below 7 kT, and over those of the transition region, -0.5 < x < 0.5."""

    everywhere: float
    transition: float


def profile(x: Array, kT: float = 1.0, n_bins: int = 100) -> tuple[Array, Array, Array]:
    """Return bin centres, F(x) from samples and the exact F(x), kT, both normalized over the bins; NaN where no sample fell."""
    fine = np.linspace(-2.0, 2.0, 40001)
    low = fine[(energy(fine) - energy(fine).min()) / kT < BELOW]
    edges = np.linspace(low[0], low[-1], n_bins + 1)
    counts, _ = np.histogram(x, edges)
    within = np.digitize(fine, edges) - 1
    inside = (within >= 0) & (within < n_bins)
    p = np.bincount(within[inside], np.exp(-(energy(fine[inside]) - energy(fine).min()) / kT), n_bins)
    with np.errstate(divide="ignore"):
        free = -np.log(counts / counts.sum())
    return 0.5 * (edges[1:] + edges[:-1]), np.where(counts > 0, free, np.nan), -np.log(p / p.sum())


def profile_error(x: Array, kT: float = 1.0) -> ProfileError:
    """Return how far F(x) of samples is from the exact one; an empty bin counts as 3 kT."""
    centers, free, exact = profile(x, kT)
    off = np.where(np.isfinite(free), np.abs(free - exact), 3.0)
    between = (centers > TRANSITION[0]) & (centers < TRANSITION[1])
    return ProfileError(float(off.mean()), float(off[between].mean()))


def autocorrelation(series: Array, mean: float, variance: float, lags: Sequence[int]) -> Array:
    """Return the autocorrelation (n_lags,) of snippets (n, n_frames) about the stationary mean and variance, at lags in frames."""
    centred = series - mean
    n = series.shape[1]
    return np.array([(centred[:, : n - k] * centred[:, k:]).mean() / variance for k in lags])


@dataclass(frozen=True)
class Transitions:
    """Passages between A and B within snippets: their number, the time watched, and how long each was on its way."""

    number: int
    time: float
    durations: Array

    @property
    def rate(self) -> float:
        """Passages per unit time."""
        return self.number / self.time

    @property
    def standard_error(self) -> float:
        """Of the rate: passages in different snippets are independent, and there is hardly ever more than one."""
        return float(np.sqrt(max(self.number, 1)) / self.time)


def transitions(x: Array) -> Transitions:
    """Return the passages in snippets (n, n_frames) of x."""
    state = np.where(x < CORES[0], -1, np.where(x > CORES[1], 1, 0))
    durations = []
    for row in state:
        visited = np.flatnonzero(row)
        changes = np.flatnonzero(np.diff(row[visited]) != 0)
        durations += [(visited[i + 1] - visited[i]) * STRIDE for i in changes]
    return Transitions(len(durations), x.shape[0] * (x.shape[1] - 1) * STRIDE, np.array(durations))


def passages(trajectory: Array) -> list[Array]:
    """Return every passage between A and B in frames (n, 2), from the last frame in the one to the first in the other.

    Those from B to A are turned round, which equilibrium dynamics leaves equally likely; so all run from A to B.
    """
    x = trajectory[:, 0]
    core = np.where(x < CORES[0], -1, np.where(x > CORES[1], 1, 0))
    visited = np.flatnonzero(core)
    out = []
    for i in np.flatnonzero(np.diff(core[visited]) != 0):
        path = trajectory[visited[i] : visited[i + 1] + 1]
        out.append(path if core[visited[i]] < 0 else path[::-1])
    return out


def between_cores(frames: Array) -> Array:
    """Return those of snippets (n, n_frames, 2) that have one end in A and the other in B, turned to begin in A."""
    first, last = frames[:, 0, 0], frames[:, -1, 0]
    there, back = (first < CORES[0]) & (last > CORES[1]), (first > CORES[1]) & (last < CORES[0])
    return np.concatenate([frames[there], frames[back][:, ::-1]])
