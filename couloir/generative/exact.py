"""Distributions whose denoiser is known exactly: what solvers, likelihoods and networks are tested against.

A mixture of Gaussians stays one under x_t = alpha x_0 + sigma eps: component k has mean alpha m_k and covariance
alpha^2 C_k + sigma^2.  Its posterior mean is the responsibility-weighted sum of linear ones,

    D(x_t) = sum_k r_k(x_t) [m_k + alpha C_k (alpha^2 C_k + sigma^2)^-1 (x_t - alpha m_k)].

On a circle each component is a wrapped normal, a sum over images m + 2 pi j; for variances above 3 rad^2 its Fourier series
1/(2 pi) [1 + 2 sum_n exp(-n^2 v / 2) cos n(x - m)] converges faster (Mardia & Jupp 2000, section 3.5.7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from couloir.errors import ConfigError, DataError
from couloir.generative.schedule import NoiseSchedule
from couloir.generative.solvers import circular_mask, wrap_angles

_SWITCH = 3.0  # rad^2: at this variance 3 images and 6 harmonics are both exact to 1e-16
_IMAGES = 3
_HARMONICS = 6


class GaussianMixture:
    """A mixture of (wrapped) Gaussians, in float64 unless ``dtype`` says otherwise.

    Parameters
    ----------
    weights : (k,) positive, normalized here.
    means : (k, d).
    spreads : (k, d) standard deviations, or (k, d, d) covariance matrices.
    circular : (d,) mask of angles in radians; only with standard deviations.

    Raises
    ------
    DataError : when shapes disagree, weights or spreads are not positive, or angles are given full covariances.
    """

    def __init__(
        self, weights: Any, means: Any, spreads: Any, circular: Tensor | Sequence[bool] | None = None, dtype: torch.dtype = torch.float64
    ) -> None:
        weight = torch.as_tensor(weights, dtype=dtype)
        self.means = torch.as_tensor(means, dtype=dtype)
        spread = torch.as_tensor(spreads, dtype=dtype)
        k, d = self.means.shape
        if weight.shape != (k,) or spread.shape not in ((k, d), (k, d, d)):
            raise DataError(f"weights {tuple(weight.shape)} and spreads {tuple(spread.shape)} do not fit means {(k, d)}")
        if spread.ndim == 3:
            self.variances, self.axes = torch.linalg.eigh(spread)
        else:
            self.variances, self.axes = spread**2, torch.eye(d, dtype=dtype).expand(k, d, d)
        if not bool((weight > 0).all()) or not bool((self.variances > 0).all()):
            raise DataError("weights and spreads of a mixture must be positive")
        self.circular = torch.zeros(d, dtype=torch.bool) if circular is None else torch.as_tensor(circular, dtype=torch.bool)
        if bool(self.circular.any()) and spread.ndim == 3:
            raise DataError("angles cannot be correlated in this mixture", "give standard deviations (k, d)")
        self.weights = weight / weight.sum()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` independent samples (n, d), angles in [-pi, pi)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        x = self.means[which] + torch.einsum("nij,nj->ni", self.axes[which], self.variances[which].sqrt() * z)
        return wrap_angles(x, self.circular)

    def log_prob(self, x: Tensor, *, schedule: NoiseSchedule | None = None, t: float | None = None) -> Tensor:
        """Return the log-density (n,) of ``x`` (n, d); with a schedule, that of x_t at time ``t``.

        Raises
        ------
        ConfigError : when only one of ``schedule`` and ``t`` is given.
        """
        if (schedule is None) != (t is None):
            raise ConfigError("the density at a time needs both the schedule and t")
        if schedule is None or t is None:
            alpha, sigma = torch.ones(1, dtype=x.dtype), torch.zeros(1, dtype=x.dtype)
        else:
            time = torch.tensor([t], dtype=torch.float64)
            alpha, sigma = schedule.alpha(time).to(x.dtype), schedule.sigma(time).to(x.dtype)
        return torch.logsumexp(self._components(x, alpha, sigma)[0], dim=1)

    def denoiser(self, schedule: NoiseSchedule) -> ExactDenoiser:
        """Return the exact denoiser under ``schedule``; raises ConfigError for angles under one that scales the data."""
        circular_mask(schedule, self.circular, self.means)
        return ExactDenoiser(self, schedule)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return ln(weight x density) (n, k) and posterior means (n, k, d) of every component; alpha, sigma are (n,)."""
        alpha, noise = alpha[:, None, None], sigma[:, None, None] ** 2
        total = alpha**2 * self.variances + noise
        # Offsets from the means, along the axes of each component.
        offset = torch.einsum("kij,nki->nkj", self.axes, x[:, None, :] - alpha * self.means)
        log_density = -0.5 * (offset**2 / total + (2.0 * math.pi * total).log())
        shift = alpha * self.variances / total * offset
        if bool(self.circular.any()):
            log_wrapped, slope = _wrapped_normal(offset, total)
            log_density = torch.where(self.circular, log_wrapped, log_density)
            # D = x + sigma^2 score, with D = mean + shift and offset = x - mean.
            shift = torch.where(self.circular, offset + noise * slope, shift)
        means = self.means + torch.einsum("kij,nkj->nki", self.axes, shift)
        return self.weights.log() + log_density.sum(-1), means


@dataclass(frozen=True)
class ExactDenoiser:
    """The posterior mean of a mixture under a schedule; ignores the condition."""

    mixture: GaussianMixture
    schedule: NoiseSchedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, /) -> Tensor:
        """Return E[x_0 | x_t] (n, d)."""
        log_weights, means = self.mixture._components(x_t, self.schedule.alpha(t), self.schedule.sigma(t))
        return torch.einsum("nk,nkd->nd", torch.softmax(log_weights, dim=1), means)


def _wrapped_normal(offset: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-density of a wrapped normal at ``offset`` from its mean, and its derivative."""
    offset = torch.remainder(offset + math.pi, 2.0 * math.pi) - math.pi
    j = torch.arange(-_IMAGES, _IMAGES + 1, dtype=offset.dtype)
    away = offset[..., None] - 2.0 * math.pi * j
    terms = -0.5 * away**2 / variance[..., None]
    log_images = torch.logsumexp(terms, -1) - 0.5 * (2.0 * math.pi * variance).log()
    slope_images = -(torch.softmax(terms, -1) * away).sum(-1) / variance
    n = torch.arange(1, _HARMONICS + 1, dtype=offset.dtype)
    # Clamped because below the switch the truncated series may be negative and would poison gradients through `where`.
    damping = 2.0 * (-0.5 * n**2 * variance.clamp(min=_SWITCH)[..., None]).exp()
    series = 1.0 + (damping * (n * offset[..., None]).cos()).sum(-1)
    slope_series = -(damping * n * (n * offset[..., None]).sin()).sum(-1) / series
    narrow = variance < _SWITCH
    log_series = series.log() - math.log(2.0 * math.pi)
    return torch.where(narrow, log_images, log_series), torch.where(narrow, slope_images, slope_series)
