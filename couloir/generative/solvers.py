"""Solvers: from noise to samples in a given number of network calls.

One loop, :func:`sample`, walks a schedule's time grid; a solver is the step from time t to the earlier time s < t of
x_t = alpha x_0 + sigma eps, given the denoiser's D = E[x_0 | x_t].  They solve either the probability-flow ODE or the
reverse SDE (Song et al. 2021, eq. 13 and 6),

    dx = (f x - 1/2 g^2 score) dt,        dx = (f x - g^2 score) dt + g dw,        score = (alpha D - x) / sigma^2.

The last call.  At ``schedule.end`` the state still carries noise of relative size s = sigma / alpha, which widens a mode
of width w by s^2 / 2 w^2; returning D narrows it by as much.  The ODE of the rest, from s to 0, moves half way from x / alpha
to D up to order s^4 / w^4 ("half-denoising", Hyvarinen 2024), and that is what every solver does with its last call.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from couloir.errors import ConfigError, DataError, nearest
from couloir.generative.denoiser import Denoiser
from couloir.generative.schedule import NoiseSchedule

Estimate = Callable[[Tensor, float], Tensor]
"""The denoiser at one time for the whole batch: (x (n, d), t) -> D (n, d)."""


@dataclass(frozen=True)
class Level:
    """The schedule at one time: alpha, sigma, their ratio, and f and g^2 of the forward process."""

    t: float
    alpha: float
    sigma: float
    f: float
    g2: float

    @property
    def ratio(self) -> float:
        """Noise-to-signal ratio sigma / alpha."""
        return self.sigma / self.alpha


class Solver(ABC):
    """One step of a solver.  ``calls`` is its price in network calls."""

    calls: ClassVar[int] = 1

    @abstractmethod
    def step(self, estimate: Estimate, x: Tensor, t: Level, s: Level, draw: Callable[[], Tensor]) -> Tensor:
        """Return the state (n, d) at level ``s``, from ``x`` at the noisier level ``t``; ``draw()`` gives fresh normals."""

    def fresh(self) -> Solver:
        """Return the solver to use for one run; solvers that remember earlier steps return a new one."""
        return self


@dataclass(frozen=True)
class DDIM(Solver):
    """Song, Meng & Ermon 2021, eq. 12: first order; deterministic for ``eta = 0``, ancestral sampling for ``eta = 1``.

    The fresh noise has eta^2 times the variance of q(x_s | x_t, x_0), written for any alpha and sigma.
    """

    eta: float = 0.0

    def step(self, estimate: Estimate, x: Tensor, t: Level, s: Level, draw: Callable[[], Tensor]) -> Tensor:
        """Return alpha_s D + sqrt(sigma_s^2 - v) eps + sqrt(v) z."""
        clean = estimate(x, t.t)
        eps = (x - t.alpha * clean) / t.sigma
        # var(x_s | x_t, x_0) = sigma_s^2 (1 - (ratio_s / ratio_t)^2), Kingma et al. 2021, eq. 31.
        fresh = (self.eta * s.sigma) ** 2 * (1.0 - (s.ratio / t.ratio) ** 2)
        out = s.alpha * clean + math.sqrt(s.sigma**2 - fresh) * eps
        return out + math.sqrt(fresh) * draw() if fresh > 0.0 else out


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Reverse SDE by Euler-Maruyama: x - (f x - g^2 score) dt + g sqrt(dt) z, dt = t - s."""

    def step(self, estimate: Estimate, x: Tensor, t: Level, s: Level, draw: Callable[[], Tensor]) -> Tensor:
        """Return the state after one step of the reverse SDE."""
        dt = t.t - s.t
        score = (t.alpha * estimate(x, t.t) - x) / t.sigma**2
        return x - (t.f * x - t.g2 * score) * dt + math.sqrt(t.g2 * dt) * draw()


@dataclass(frozen=True)
class Heun(Solver):
    """Karras et al. 2022, algorithm 1, in y = x / alpha as a function of r = sigma / alpha: dy/dr = (y - D) / r."""

    calls: ClassVar[int] = 2

    def step(self, estimate: Estimate, x: Tensor, t: Level, s: Level, draw: Callable[[], Tensor]) -> Tensor:
        """Return the state after an Euler step and its trapezoidal correction."""
        y, dr = x / t.alpha, s.ratio - t.ratio
        slope = (y - estimate(x, t.t)) / t.ratio
        ahead = y + dr * slope
        slope_ahead = (ahead - estimate(s.alpha * ahead, s.t)) / s.ratio
        return s.alpha * (y + 0.5 * dr * (slope + slope_ahead))


class DPMpp2M(Solver):
    """DPM-Solver++ (2M): multistep, second order, in the clean estimate D (Lu et al. 2022, algorithm 2).

    The linear part of the ODE is solved exactly; D is extrapolated along lambda = ln(alpha / sigma) from the last two calls.
    With ``eta = 1`` it is the reverse SDE that is solved so, SDE-DPM-Solver++ (2M) (Lu et al. 2022, section 6).
    """

    def __init__(self, eta: float = 0.0) -> None:
        self.eta = eta
        self._last: tuple[Tensor, float] | None = None

    def fresh(self) -> Solver:
        """Return a solver without history."""
        return DPMpp2M(self.eta)

    def step(self, estimate: Estimate, x: Tensor, t: Level, s: Level, draw: Callable[[], Tensor]) -> Tensor:
        """Return (sigma_s / sigma_t) e^(-eta h) x - alpha_s (e^(-(1 + eta) h) - 1) D' + sigma_s sqrt(1 - e^(-2 eta h)) z.

        h is the step in lambda.
        """
        clean = estimate(x, t.t)
        h = math.log(t.ratio / s.ratio)
        guess = clean
        if self._last is not None:
            before, h_before = self._last
            guess = clean + (0.5 * h / h_before) * (clean - before)
        self._last = (clean, h)
        out = (s.sigma / t.sigma) * math.exp(-self.eta * h) * x - s.alpha * math.expm1(-(1.0 + self.eta) * h) * guess
        return out + s.sigma * math.sqrt(-math.expm1(-2.0 * self.eta * h)) * draw() if self.eta > 0.0 else out


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Reverse SDE step, then one Langevin step at the new level (Song et al. 2021, algorithm 1).

    The corrector x + d score + sqrt(2 d) z takes d = (snr sigma)^2, which keeps its own width error below snr^2 / 4 in any
    mode, and does not couple the samples of a batch as a step chosen from gradient norms would.
    """

    snr: float = 0.16
    calls: ClassVar[int] = 2

    def step(self, estimate: Estimate, x: Tensor, t: Level, s: Level, draw: Callable[[], Tensor]) -> Tensor:
        """Return the state after predictor and corrector."""
        x = EulerMaruyama().step(estimate, x, t, s, draw)
        size = (self.snr * s.sigma) ** 2
        score = (s.alpha * estimate(x, s.t) - x) / s.sigma**2
        return x + size * score + math.sqrt(2.0 * size) * draw()


SOLVERS: dict[str, Solver] = {
    "ancestral": DDIM(eta=1.0),
    "euler_maruyama": EulerMaruyama(),
    "ddim": DDIM(),
    "heun": Heun(),
    "dpmpp_2m": DPMpp2M(),
    "dpmpp_2m_sde": DPMpp2M(eta=1.0),
    "predictor_corrector": PredictorCorrector(),
}


def sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    *,
    solver: str | Solver = "dpmpp_2m",
    n_calls: int = 20,
    resamples: int = 1,
    condition: Tensor | None = None,
    circular: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Turn noise into samples.

    Gradients are off (``torch.no_grad``); a denoiser that differentiates inside must say ``torch.enable_grad`` itself.

    Parameters
    ----------
    denoiser : called ``n_calls`` times with (x (n, d), t (n,), condition); one less when a solver of two calls a step
        does not fit.
    noise : (n, d) states at ``schedule.start``, from :func:`initial_noise`.
    solver : a name in ``SOLVERS`` or a solver object such as ``DDIM(eta=0.5)``.
    resamples : times that every step is taken, the state being noised back in between (Lugmayr et al. 2022, algorithm 1), at
        as many times the calls.  More than one pays only when the denoiser is a guided one that the steps do not follow exactly.
    condition : (n, c), or None for the unconditional distribution.
    circular : (d,) mask of the angles in radians, which come back in [-pi, pi); needs a schedule with alpha = 1.
    generator : source of the fresh noise of stochastic solvers.

    Returns
    -------
    (n, d) samples, of the dtype and on the device of ``noise``.

    Raises
    ------
    ConfigError : for an unknown solver, too few calls or resamples, or angles under a schedule that scales the data.
    """
    stepper = _solver(solver).fresh()
    n_steps = (n_calls - 1) // stepper.calls
    if n_steps < 1:
        raise ConfigError(f"n_calls = {n_calls} is too few", f"this solver needs at least {stepper.calls + 1}")
    if resamples < 1:
        raise ConfigError(f"resamples = {resamples} is too few", "every step is taken at least once")
    mask = circular_mask(schedule, circular, noise)
    levels = _levels(schedule, n_steps)

    def estimate(x: Tensor, t: float) -> Tensor:
        return denoiser(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device), condition)

    def draw() -> Tensor:
        return torch.randn(noise.shape, generator=generator, dtype=noise.dtype, device=noise.device)

    x = noise
    with torch.no_grad():
        for t, s in itertools.pairwise(levels):
            for left in reversed(range(resamples)):
                x = stepper.step(estimate, x, t, s, draw)
                if left:
                    x, stepper = _noised_back(x, s, t, draw), stepper.fresh()
        x = 0.5 * (x / levels[-1].alpha + estimate(x, levels[-1].t))
    return wrap_angles(x, mask)


def initial_noise(
    schedule: NoiseSchedule,
    n: int,
    d: int,
    circular: Tensor | None = None,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw ``n`` states (n, d) at ``schedule.start``: normal of std ``prior_std()``, and uniform on the circle for angles."""
    device = generator.device if device is None and generator is not None else device
    x = schedule.prior_std() * torch.randn(n, d, generator=generator, dtype=dtype, device=device)
    mask = circular_mask(schedule, circular, x)
    if mask is None:
        return x
    angles = (2.0 * torch.rand(n, d, generator=generator, dtype=dtype, device=device) - 1.0) * math.pi
    return torch.where(mask, angles, x)


def circular_mask(schedule: NoiseSchedule, circular: Tensor | None, x: Tensor) -> Tensor | None:
    """Return ``circular`` as a boolean mask (d,) on the device of ``x`` (n, d), or None when no coordinate is an angle.

    Raises
    ------
    DataError : when the mask does not have one entry per coordinate.
    ConfigError : when there are angles and the schedule scales the data.
    """
    if circular is None:
        return None
    mask = torch.as_tensor(circular, dtype=torch.bool, device=x.device)
    if mask.shape != x.shape[-1:]:
        raise DataError(f"the circular mask has shape {tuple(mask.shape)}, expected {tuple(x.shape[-1:])}")
    if not bool(mask.any()):
        return None
    ends = torch.tensor([schedule.start, schedule.end], dtype=torch.float64)
    if not bool((schedule.alpha(ends) == 1.0).all()):
        raise ConfigError(f"the {schedule.kind!r} schedule scales the data, which breaks the period of angles", "use EDM()")
    return mask


def wrap_angles(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``x`` (n, d) with the coordinates in ``mask`` (d,) wrapped into [-pi, pi)."""
    return x if mask is None else torch.where(mask, torch.remainder(x + math.pi, 2.0 * math.pi) - math.pi, x)


def _solver(solver: str | Solver) -> Solver:
    if isinstance(solver, Solver):
        return solver
    if solver not in SOLVERS:
        raise ConfigError(f"there is no solver {solver!r}{nearest(solver, SOLVERS)}")
    return SOLVERS[solver]


def _noised_back(x: Tensor, s: Level, t: Level, draw: Callable[[], Tensor]) -> Tensor:
    """Return a state at level ``t`` from ``x`` at the less noisy ``s``, by the forward process."""
    kept = t.alpha / s.alpha
    return kept * x + math.sqrt(t.sigma**2 - (kept * s.sigma) ** 2) * draw()


def _levels(schedule: NoiseSchedule, n_steps: int) -> list[Level]:
    times = schedule.times(n_steps)
    f, g2 = schedule.drift_and_diffusion(times)
    columns = (times, schedule.alpha(times), schedule.sigma(times), f, g2)
    return [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
