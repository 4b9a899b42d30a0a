"""A residual MLP as denoiser, for vectors whose coordinates are numbers, angles, or both.

With x = x_t / alpha and noise level s = sigma / alpha (so x = x_0 + s eps for every schedule), the network F gives

    ordinary coordinate:  D = c_skip x + c_out F,   c_skip = 1 / (1 + s^2),  c_out = s / sqrt(1 + s^2)
                          (Karras et al. 2022, eq. 7 and table 1 with sigma_data = 1, inputs scaled by 1 / sqrt(1 + s^2));
    circular coordinate:  score = N(s) F,           D = x + s^2 score,

where N(s) is close to the root-mean-square of the wrapped-normal score (Jing et al. 2022, section 3.2): 1/s for small
noise, sqrt(2) exp(-s^2/2) for large noise, where the distribution on the circle is uniform and the score vanishes.
So F has targets of about unit size at every noise level, and D and the score have the right limits whatever F is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from couloir.generative.schedule import NoiseSchedule


class ScoreMLP(nn.Module):
    """Denoiser for rows of ``dimension`` coordinates, conditioned on ``condition_dim`` numbers.

    Parameters
    ----------
    circular : (dimension,) True for angles in radians; they enter as sines and cosines.
    condition_dim : numbers per condition; 0 for an unconditional network.
    width, depth : hidden units, and residual blocks of two layers.
    harmonics : multiples of an angle whose sine and cosine are inputs.
    dropout : share of the hidden units of a block that are dropped in training.
    """

    circular: Tensor
    angles: Tensor
    numbers: Tensor
    frequencies: Tensor

    def __init__(
        self, dimension: int, circular: Tensor, condition_dim: int, width: int = 128, depth: int = 3, harmonics: int = 3,
        dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("circular", circular.clone().to(torch.bool), persistent=False)
        self.register_buffer("frequencies", torch.arange(1, 17) * 0.25, persistent=False)
        self.harmonics = harmonics
        # Index lists, because a boolean mask cannot be batched by torch.func when likelihoods take Jacobians.
        self.register_buffer("angles", circular.nonzero()[:, 0], persistent=False)
        self.register_buffer("numbers", (~circular.bool()).nonzero()[:, 0], persistent=False)
        n_circular = len(self.angles)
        self.enter = nn.Linear(dimension - n_circular + 2 * harmonics * n_circular, width)
        self.time = nn.Sequential(nn.Linear(2 * len(self.frequencies) + 1, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Sequential(nn.Linear(condition_dim, width), nn.SiLU(), nn.Linear(width, width)) if condition_dim else None
        self.unconditional = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        self.leave = nn.Linear(width, dimension)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def raw(
        self, x: Tensor, noise: Tensor, condition: Tensor | None, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return F (n, dimension) at x = x_t / alpha (n, dimension), noise level (n,) and condition (n, c) or None.

        ``keep`` (n,) is False for rows that are treated as unconditional; units are dropped by ``generator`` in training mode.
        """
        angles, numbers = x.index_select(1, self.angles), x.index_select(1, self.numbers)
        turned = [f(k * angles) for k in range(1, self.harmonics + 1) for f in (torch.sin, torch.cos)]
        h = self.enter(torch.cat([numbers / (1 + noise**2).sqrt()[:, None], *turned], dim=1))
        level = noise.log()[:, None]
        waves = level * self.frequencies
        context = self.time(torch.cat([level / 4, waves.sin(), waves.cos()], dim=1))
        if condition is None or self.condition is None:
            context = context + self.unconditional
        elif keep is None:
            context = context + self.condition(condition)
        else:
            context = context + torch.where(keep[:, None], self.condition(condition), self.unconditional)
        context = nn.functional.silu(context)
        for block in self.blocks:
            h = block(h, context, generator)
        return self.leave(nn.functional.silu(h))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the denoised D (n, dimension) at x = x_t / alpha, noise level sigma / alpha (n,) and condition."""
        f = self.raw(x, noise, condition)
        s = noise[:, None]
        ordinary = (x + s * (1 + s**2).sqrt() * f) / (1 + s**2)
        return torch.where(self.circular, x + s**2 * score_size(s) * f, ordinary)


class _Block(nn.Module):
    """Residual block h + W2 silu(W1 silu(h) + E context); W2 starts at zero, so a new network is the identity here."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.context = nn.Linear(width, 2 * width, bias=False)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor, context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shift, scale = self.context(context).chunk(2, dim=1)
        inner = nn.functional.silu(self.first(nn.functional.silu(h)) * (1 + scale) + shift)
        if self.training and generator is not None and self.dropout > 0:
            # Not nn.Dropout, whose masks come from a global stream: training must resume with the noise it would have had.
            inner = inner * (torch.rand(inner.shape, generator=generator, device=inner.device) >= self.dropout) / (1 - self.dropout)
        return h + self.second(inner)  # type: ignore[no-any-return]


class NetworkDenoiser(nn.Module):
    """A :class:`ScoreMLP` under a noise schedule: the callable ``(x_t, t, condition) -> E[x_0 | x_t]`` of the solvers."""

    def __init__(self, network: ScoreMLP, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the posterior mean (n, d) in the precision of ``x_t``; the network computes in its own."""
        kind = self.network.leave.weight.dtype
        alpha = self.schedule.alpha(t)
        given = None if condition is None else condition.to(kind)
        denoised: Tensor = self.network((x_t / alpha[:, None]).to(kind), (self.schedule.sigma(t) / alpha).to(kind), given)
        return denoised.to(x_t.dtype)


def wrapped_score(difference: Tensor, noise: Tensor) -> Tensor:
    """Return d/dx ln of the wrapped normal density with standard deviation ``noise`` at ``difference`` = x - mean, radians.

    Images of the Gaussian for small noise, the Fourier series of the density for large noise; both exact in float32
    where they are used (Jing et al. 2022, section 3.2).
    """
    d = torch.remainder(difference + math.pi, math.tau) - math.pi
    near = noise.clamp(max=1.5)[..., None]
    images = d[..., None] + math.tau * torch.arange(-3, 4, device=d.device)
    by_images = -(torch.softmax(-0.5 * (images / near) ** 2, dim=-1) * images).sum(-1) / near[..., 0] ** 2
    m = torch.arange(1, 6, device=d.device)
    decay = torch.exp(-0.5 * (m * noise.clamp(min=1.5)[..., None]) ** 2)
    density = 1 + 2 * (decay * torch.cos(m * d[..., None])).sum(-1)
    by_series = -2 * (decay * m * torch.sin(m * d[..., None])).sum(-1) / density
    return torch.where(noise < 1.5, by_images, by_series)


def score_size(noise: Tensor) -> Tensor:
    """Return N(s), near the root-mean-square of :func:`wrapped_score`, from 1/N^2 = s^2 + (exp(s^2) - 1 - s^2) / 2."""
    square = (noise**2).clamp(max=60.0)
    return (square + 0.5 * (torch.expm1(square) - square).clamp(min=0.0)).rsqrt()


def denoising_loss(
    network: ScoreMLP, schedule: NoiseSchedule, x_0: Tensor, condition: Tensor, drop: float, generator: torch.Generator
) -> Tensor:
    """Return the denoising-score-matching loss of every row (n,), in units in which F has targets of size one.

    Where there are both, numbers and angles count half each: a molecule has many stiff bond lengths and angles, in which
    there is little to learn, and few torsions, in which everything happens.

    Parameters
    ----------
    x_0, condition : data (n, d) and encoded conditions (n, c).
    drop : probability that a row is trained as unconditional (Ho & Salimans 2022, algorithm 1).
    """
    n, device = len(x_0), x_0.device
    t = schedule.sample_times(n, generator)
    s = (schedule.sigma(t) / schedule.alpha(t))[:, None]
    x = x_0 + s * torch.randn(x_0.shape, generator=generator, device=device)
    keep = torch.rand(n, generator=generator, device=device) >= drop
    f = network.raw(x, s[:, 0], condition, keep, generator).float()
    # Ordinary coordinates: F* = (x_0 - c_skip x) / c_out (Karras et al. 2022, eq. 8), every noise level counting the same.
    root = (1 + s**2).sqrt()
    parts = []
    if len(numbers := network.numbers):
        parts.append(((f - (x_0 * root - x / root) / s) ** 2)[:, numbers].mean(dim=1))
    if len(angles := network.angles):
        size = score_size(s)
        turned = (f[:, angles] - wrapped_score((x - x_0)[:, angles], s.expand(-1, len(angles))) / size) ** 2
        # Where noise has made the circle uniform there is nothing to learn: such rows count by how much score is left.
        parts.append((turned * (s * size).clamp(max=1.0)).mean(dim=1))
    return torch.stack(parts).mean(dim=0)
