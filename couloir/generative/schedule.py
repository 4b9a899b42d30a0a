"""Noise schedules: how much signal and how much noise there is at time t.

Everything in the diffusion core obeys one equation,

    x_t = alpha(t) x_0 + sigma(t) eps,        eps ~ N(0, 1),

and a schedule is the pair of functions (alpha, sigma).  Generation runs from ``start`` (noise) down to ``end`` (data).
The forward process dx = f x dt + g dw with this marginal has (Song et al. 2021, eq. 29; Kingma et al. 2021, eq. 10)

    f = d ln(alpha) / dt,        g^2 = d sigma^2 / dt - 2 f sigma^2.

``end`` is as small as it is because it, and not the solver, limits the width of stiff modes such as bond lengths: what is
drawn at ``end`` carries noise of relative size sigma(end) / alpha(end) (about 0.003 here).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from couloir.errors import ConfigError, nearest


class NoiseSchedule(ABC):
    """The functions alpha(t) and sigma(t), their time grid and their training times.

    All functions of time take a tensor of any shape and return one of the same shape and dtype; they are evaluated in
    float64, because at small times sigma is a difference of nearly equal numbers.

    Attributes
    ----------
    kind : name of the schedule in :meth:`to_dict`.
    start, end : times of pure noise and of (nearly) pure data; ``start > end``.
    """

    kind: ClassVar[str]
    start: float
    end: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the factor of the signal at times ``t``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the standard deviation of the noise at times ``t``."""

    @abstractmethod
    def drift_and_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(t) and g(t)^2 of the forward process dx = f x dt + g dw."""

    @abstractmethod
    def time_of(self, log_snr: Tensor) -> Tensor:
        """Return the times at which the logarithm of the signal-to-noise ratio has the values ``log_snr``."""

    @abstractmethod
    def sample_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` random times (n,) to train a denoiser at, float32, on the generator's device."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Return ln(alpha^2 / sigma^2), which falls as ``t`` grows (Kingma et al. 2021, eq. 2)."""
        exact = t.double()
        return (2.0 * (self.alpha(exact).log() - self.sigma(exact).log())).to(t.dtype)

    def times(self, n: int) -> Tensor:
        """Return ``n`` steps as n + 1 times (n + 1,), float64, from ``start`` down to ``end``, uniform in log-SNR.

        Raises
        ------
        ConfigError : when ``n`` is less than one.
        """
        _check_steps(n)
        edges = self.log_snr(torch.tensor([self.start, self.end], dtype=torch.float64))
        return self._pinned(self.time_of(edges[0] + (edges[1] - edges[0]) * torch.linspace(0, 1, n + 1, dtype=torch.float64)))

    def prior_std(self) -> float:
        """Return the standard deviation of the noise that generation starts from, sigma(start)."""
        return float(self.sigma(torch.tensor(self.start, dtype=torch.float64)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that :func:`schedule_from_dict` turns back into this schedule."""
        return {"type": self.kind, **asdict(self)}  # type: ignore[call-overload]

    def _pinned(self, times: Tensor) -> Tensor:
        """Return ``times`` with its ends set to exactly ``start`` and ``end``, free of the rounding of an inverse."""
        times[0], times[-1] = self.start, self.end
        return times


class _VariancePreserving(NoiseSchedule):
    """Schedules with alpha^2 + sigma^2 = 1, for which g^2 = -2 f."""

    def sample_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` times (n,) uniform between ``end`` and ``start``, stratified so that a batch covers them all.

        The strata lower the variance of the loss (Kingma et al. 2021, appendix I.1).
        """
        device = generator.device if generator is not None else None
        offset = torch.rand(1, generator=generator, device=device)
        strata = (torch.arange(n, device=device) / n + offset) % 1.0
        # Shuffled, so that the time a row gets says nothing about its place in the batch.
        strata = strata[torch.randperm(n, generator=generator, device=device)]
        return self.end + (self.start - self.end) * strata


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """Variance-preserving schedule with a rate that grows linearly, beta(t) = beta_min + t (beta_max - beta_min).

    Ho et al. 2020 in the continuous form of Song et al. 2021, eq. 32-33; 0 <= t <= 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    start: float = 1.0
    end: float = 1e-4
    kind: ClassVar[str] = "vp_linear"

    def __post_init__(self) -> None:
        _check_order("beta_min", self.beta_min, "beta_max", self.beta_max)
        _check_order("end", self.end, "start", self.start)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def alpha(self, t: Tensor) -> Tensor:
        """Return exp(-1/2 of the integral of beta)."""
        return self._log_alpha(t.double()).exp().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(1 - alpha^2), without cancellation."""
        return (-torch.expm1(2.0 * self._log_alpha(t.double()))).sqrt().to(t.dtype)

    def drift_and_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f = -beta / 2 and g^2 = beta."""
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        return -0.5 * beta, beta

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Return the root of the quadratic -ln(alpha) = (beta_max - beta_min) t^2 / 4 + beta_min t / 2."""
        depth = 0.5 * torch.nn.functional.softplus(-log_snr.double())
        root = (0.25 * self.beta_min**2 + (self.beta_max - self.beta_min) * depth).sqrt()
        return (2.0 * depth / (0.5 * self.beta_min + root)).to(log_snr.dtype)


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    """Variance-preserving schedule alpha(t) = cos(u) / cos(u_0), u = pi/2 (t + offset) / (1 + offset).

    Nichol & Dhariwal 2021, eq. 17.  ``start`` is a little below 1, where alpha is zero and the score of the data is lost.
    """

    offset: float = 0.008
    start: float = 0.995
    end: float = 1e-4
    kind: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        _check_order("end", self.end, "start", self.start)
        _check_order("start", self.start, "1", 1.0)

    def _angle(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * (t.double() + self.offset) / (1.0 + self.offset)

    @property
    def _angle_at_zero(self) -> float:
        return 0.5 * math.pi * self.offset / (1.0 + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        """Return cos(u) / cos(u_0)."""
        return (self._angle(t).cos() / math.cos(self._angle_at_zero)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(1 - alpha^2) as sqrt(sin(u - u_0) sin(u + u_0)) / cos(u_0), without cancellation."""
        u, zero = self._angle(t), self._angle_at_zero
        return (((u - zero).sin() * (u + zero).sin()).sqrt() / math.cos(zero)).to(t.dtype)

    def drift_and_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f = -tan(u) du/dt and g^2 = -2 f."""
        f = (-self._angle(t).tan() * 0.5 * math.pi / (1.0 + self.offset)).to(t.dtype)
        return f, -2.0 * f

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Return the inverse of the log-SNR, from sin(u)^2 = sin(u_0)^2 + sigma^2 cos(u_0)^2."""
        variance = torch.sigmoid(-log_snr.double())
        zero = self._angle_at_zero
        tangent = (math.sin(zero) ** 2 + variance * math.cos(zero) ** 2).sqrt() / ((1.0 - variance).sqrt() * math.cos(zero))
        return (tangent.atan() * 2.0 / math.pi * (1.0 + self.offset) - self.offset).to(log_snr.dtype)


@dataclass(frozen=True)
class EDM(NoiseSchedule):
    """Noise added to unscaled data, alpha = 1 and sigma = t (Karras et al. 2022).

    The only schedule for circular coordinates, because scaling an angle does not respect its period.
    ``sigma_min``, ``sigma_max`` bound the time, ``rho`` spaces the steps (their eq. 5), ``p_mean`` and ``p_std`` are those
    of ln(t) in training (their table 1).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    p_mean: float = -1.2
    p_std: float = 1.2
    kind: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        _check_order("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def start(self) -> float:  # type: ignore[override]
        """The largest noise."""
        return self.sigma_max

    @property
    def end(self) -> float:  # type: ignore[override]
        """The smallest noise."""
        return self.sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        """Return one."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return ``t`` itself."""
        return t

    def drift_and_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f = 0 and g^2 = 2 t."""
        return torch.zeros_like(t), 2.0 * t

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Return exp(-log_snr / 2)."""
        return (-0.5 * log_snr.double()).exp().to(log_snr.dtype)

    def times(self, n: int) -> Tensor:
        """Return n + 1 times (n + 1,), float64, uniform in t^(1/rho) (Karras et al. 2022, eq. 5, ending at sigma_min)."""
        _check_steps(n)
        high, low = self.sigma_max ** (1.0 / self.rho), self.sigma_min ** (1.0 / self.rho)
        return self._pinned((high + (low - high) * torch.linspace(0, 1, n + 1, dtype=torch.float64)) ** self.rho)

    def sample_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` log-normal times (n,), kept between ``end`` and ``start``."""
        device = generator.device if generator is not None else None
        return (self.p_mean + self.p_std * torch.randn(n, generator=generator, device=device)).exp().clamp(self.end, self.start)


_KINDS: dict[str, type[Any]] = {cls.kind: cls for cls in (VPLinear, Cosine, EDM)}


def schedule_from_dict(data: Mapping[str, Any]) -> NoiseSchedule:
    """Return the schedule that :meth:`NoiseSchedule.to_dict` described.

    Raises
    ------
    ConfigError : for an unknown type or parameter.
    """
    parameters = dict(data)
    kind = str(parameters.pop("type", ""))
    if kind not in _KINDS:
        raise ConfigError(f"there is no noise schedule of type {kind!r}{nearest(kind, _KINDS)}")
    known = _KINDS[kind].__dataclass_fields__
    for name in parameters:
        if name not in known:
            raise ConfigError(f"the noise schedule {kind!r} has no parameter {name!r}{nearest(name, known)}")
    schedule: NoiseSchedule = _KINDS[kind](**parameters)
    return schedule


def _check_steps(n: int) -> None:
    if n < 1:
        raise ConfigError(f"a time grid of {n} steps was asked for", "give at least 1")


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if not 0.0 < low < high:
        raise ConfigError(f"{low_name} = {low:g} must be positive and below {high_name} = {high:g}")
