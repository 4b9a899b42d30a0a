"""The exact density of a generative model: the probability-flow ODE and its divergence.

The ODE dx/dt = f x - 1/2 g^2 score (Song et al. 2021, eq. 13) carries the noise at ``schedule.start`` to data at
``schedule.end``; the density that it leaves there is the model's, and is normalized whatever the network says.  It is the
density at ``end``, which still includes noise of relative size sigma(end) / alpha(end); nothing is denoised afterwards.

The ODE is integrated in u = ln(sigma / alpha) for z = x / (alpha c), c^2 = 1 + e^2u for ordinary coordinates and 1 for
angles, so that data of unit variance hardly moves:

    dz/du = (x / alpha - D) / c - a z,        d ln p(z) / du = -(div of the right side),        a = e^2u / c^2 (0 for angles).

The divergence is the full trace of the Jacobian.  A random estimate of it would put noise into ln p, and the mean of
exp(noise) is not one: importance weights and acceptance ratios would be biased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from couloir.errors import ConfigError, nearest
from couloir.generative.denoiser import Denoiser
from couloir.generative.schedule import NoiseSchedule
from couloir.generative.solvers import circular_mask, wrap_angles

Check = Literal["halving", "return"]


@dataclass(frozen=True)
class LogProb:
    """Log-densities with the error of their integration.

    Attributes
    ----------
    values : (n,) ln p.
    error : (n,) estimate of the integration error of each; NaN when it was not asked for.
    n_calls : evaluations of the denoiser with its Jacobian, per sample.
    """

    values: Tensor
    error: Tensor
    n_calls: int


class _Flow(NamedTuple):
    """Positions (n, d) in x and the accumulated integral (n,) of the divergence of dx/du."""

    x: Tensor
    integral: Tensor


# Nodes, the lower triangle, weights: classical Runge-Kutta methods (Hairer, Norsett & Wanner 1993, section II.1).
_METHODS: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "heun": ((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def log_prob(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    *,
    condition: Tensor | None = None,
    circular: Tensor | None = None,
    n_steps: int = 100,
    method: Literal["heun", "rk4"] = "rk4",
    check: Check | None = "halving",
    chunk: int = 1024,
    dtype: torch.dtype | None = None,
) -> LogProb:
    """Return ln p(x) of the probability-flow ODE of ``denoiser``.

    Parameters
    ----------
    x : (n, d) states at ``schedule.end``; angles in any period.
    condition : (n, c), or None.
    circular : (d,) mask of the angles, whose density is per radian on the circle; needs a schedule with alpha = 1.
    n_steps : steps from ``end`` to ``start``, uniform in log-SNR; 2 calls a step for ``"heun"``, 4 for ``"rk4"``.
    check : where ``error`` comes from: ``"halving"`` is the difference to half as many steps (1.5 times the price; an upper
        bound once steps are small), ``"return"`` the change of ln p along the ODE there and back plus that caused by
        missing the start (2 times the price), None is no check.
    chunk : rows integrated at once; memory grows as chunk x d x the network's width.
    dtype : that of the integration, by default that of ``x``.  The denoiser must accept it.

    Raises
    ------
    ConfigError : for an unknown method or check, too few steps, or angles under a schedule that scales the data.
    """
    x = x if dtype is None else x.to(dtype)
    condition = condition if dtype is None or condition is None else condition.to(dtype)

    def integrate(rows: slice) -> tuple[Tensor, LogProb]:
        c = None if condition is None else condition[rows]
        ode = _ODE(denoiser, schedule, c, circular_mask(schedule, circular, x), method)
        return ode.density_of(x[rows], n_steps, check)

    return _in_chunks(integrate, len(x), chunk)[1]


def sample_with_log_prob(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    *,
    condition: Tensor | None = None,
    circular: Tensor | None = None,
    n_steps: int = 100,
    method: Literal["heun", "rk4"] = "rk4",
    check: Check | None = "halving",
    chunk: int = 1024,
) -> tuple[Tensor, LogProb]:
    """Carry ``noise`` (n, d) at ``schedule.start`` to samples (n, d), and return them with the density they were drawn from.

    This is the sampler for everything that is weighted: samples and density belong to the same discretized ODE.  Angles
    come back in [-pi, pi).  Parameters and errors are those of :func:`log_prob`, and the noise of ``initial_noise``.
    """

    def integrate(rows: slice) -> tuple[Tensor, LogProb]:
        c = None if condition is None else condition[rows]
        ode = _ODE(denoiser, schedule, c, circular_mask(schedule, circular, noise), method)
        return ode.density_from(noise[rows], n_steps, check)

    x, result = _in_chunks(integrate, len(noise), chunk)
    return wrap_angles(x, circular_mask(schedule, circular, noise)), result


class _ODE:
    """The probability-flow ODE of one denoiser for one batch."""

    def __init__(self, denoiser: Denoiser, schedule: NoiseSchedule, condition: Tensor | None, mask: Tensor | None, method: str) -> None:
        if method not in _METHODS:
            raise ConfigError(f"there is no method {method!r}{nearest(method, _METHODS)}")
        self.denoiser, self.schedule, self.condition, self.mask = denoiser, schedule, condition, mask
        self.tableau = _METHODS[method]
        ends = torch.tensor([schedule.end, schedule.start], dtype=torch.float64)
        self.low, self.high = (-0.5 * schedule.log_snr(ends)).tolist()
        self.alpha_low, self.alpha_high = schedule.alpha(ends).tolist()

    def density_of(self, x: Tensor, n_steps: int, check: Check | None) -> tuple[Tensor, LogProb]:
        """Return ``x`` and its density, from data to noise."""
        calls = self._calls(n_steps, check)
        end = self._run(x, n_steps, outward=True)
        values = self._log_prior(end.x) + end.integral
        error = torch.full_like(values, math.nan)
        if check == "halving":
            coarse = self._run(x, n_steps // 2, outward=True)
            error = (self._log_prior(coarse.x) + coarse.integral - values).abs()
        elif check == "return":
            back = self._run(end.x, n_steps, outward=False)
            error = (back.integral + end.integral).abs() + self._missed(back.x, x)
        return x, LogProb(values, error, calls)

    def density_from(self, noise: Tensor, n_steps: int, check: Check | None) -> tuple[Tensor, LogProb]:
        """Return where ``noise`` ends and the density there, from noise to data."""
        calls = self._calls(n_steps, check)
        end = self._run(noise, n_steps, outward=False)
        values = self._log_prior(noise) - end.integral
        error = torch.full_like(values, math.nan)
        if check == "halving":
            coarse = self._run(noise, n_steps // 2, outward=False)
            error = (end.integral - coarse.integral).abs()
        elif check == "return":
            back = self._run(end.x, n_steps, outward=True)
            error = (self._log_prior(back.x) + back.integral - values).abs()
        return end.x, LogProb(values, error, calls)

    def _calls(self, n_steps: int, check: Check | None) -> int:
        if check not in ("halving", "return", None):
            raise ConfigError(f"there is no check {check!r}", "use 'halving', 'return' or None")
        if n_steps < 2:
            raise ConfigError(f"n_steps = {n_steps} is too few", "use at least 2")
        extra = {"halving": n_steps // 2, "return": n_steps, None: 0}[check]
        return len(self.tableau[0]) * (n_steps + extra)

    def _log_prior(self, x: Tensor) -> Tensor:
        std = self.schedule.prior_std()
        terms = -0.5 * (x / std) ** 2 - math.log(std) - 0.5 * math.log(2.0 * math.pi)
        if self.mask is not None:
            terms = torch.where(self.mask, torch.full_like(x, -math.log(2.0 * math.pi)), terms)
        return terms.sum(1)

    def _missed(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Return the change of ln p (n,) over the displacement, with the score at ``end``."""
        t = torch.full((len(wanted),), self.schedule.end, dtype=wanted.dtype, device=wanted.device)
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        with torch.no_grad():
            score = (alpha * self.denoiser(wanted, t, self.condition) - wanted) / sigma**2
        return (score * (found - wanted)).sum(1).abs()

    def _scale(self, u: float, x: Tensor) -> Tensor:
        """Return c(u) for every coordinate, (d,)."""
        c = torch.full(x.shape[-1:], math.sqrt(1.0 + math.exp(2.0 * u)), dtype=x.dtype, device=x.device)
        return c if self.mask is None else torch.where(self.mask, torch.ones_like(c), c)

    def _slope(self, z: Tensor, u: float) -> tuple[Tensor, Tensor]:
        """Return dz/du (n, d) and its divergence (n,)."""
        c = self._scale(u, z)
        a = 1.0 - c**-2
        time = self.schedule.time_of(torch.tensor([-2.0 * u], dtype=torch.float64)).clamp(self.schedule.end, self.schedule.start)
        alpha = float(self.schedule.alpha(time))
        t = time.to(z).expand(len(z))
        clean, trace = _with_trace(lambda x: self.denoiser(x, t, self.condition), alpha * c * z)
        return z * (1.0 - a) - clean / c, (1.0 - a).sum() - alpha * trace

    def _run(self, x: Tensor, n_steps: int, *, outward: bool) -> _Flow:
        """Integrate ``x`` from ``end`` to ``start`` (outward) or back; the integral includes the change of variables to x."""
        first, last = (self.low, self.high) if outward else (self.high, self.low)
        scale_first, scale_last = (self.alpha_low, self.alpha_high) if outward else (self.alpha_high, self.alpha_low)
        scales = scale_first * self._scale(first, x), scale_last * self._scale(last, x)
        nodes, triangle, weights = self.tableau
        z, integral = x / scales[0], torch.zeros_like(x[:, 0])
        h = (last - first) / n_steps
        for i in range(n_steps):
            u = first + i * h
            slopes: list[Tensor] = []
            for node, row, weight in zip(nodes, triangle, weights, strict=True):
                inner = z
                for coefficient, slope in zip(row, slopes, strict=True):
                    if coefficient:
                        inner = inner + h * coefficient * slope
                slope, divergence = self._slope(inner, u + node * h)
                slopes.append(slope)
                integral = integral + h * weight * divergence
            z = z + h * sum((w * s for w, s in zip(weights, slopes, strict=True)), torch.zeros_like(z))
        return _Flow(z * scales[1], integral + (scales[1].log() - scales[0].log()).sum())


def _with_trace(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return function(x) (n, d) and the trace (n,) of its Jacobian, exactly; rows must not depend on each other."""
    n, d = x.shape
    with torch.no_grad():
        value, pull_back, *_ = torch.func.vjp(function, x)
        basis = torch.eye(d, dtype=x.dtype, device=x.device)
        rows = torch.func.vmap(lambda e: (pull_back(e.expand(n, d))[0] * e).sum(1))(basis)
    return value, rows.sum(0)


def _in_chunks(integrate: Callable[[slice], tuple[Tensor, LogProb]], n: int, chunk: int) -> tuple[Tensor, LogProb]:
    parts = [integrate(slice(start, start + chunk)) for start in range(0, max(n, 1), chunk)]
    results = [result for _, result in parts]
    joined = LogProb(torch.cat([r.values for r in results]), torch.cat([r.error for r in results]), results[0].n_calls)
    return torch.cat([x for x, _ in parts]), joined
