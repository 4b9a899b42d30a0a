"""Stationary Gaussian processes, and mixtures of them, with their exact denoisers of snippets."""

import torch

from couloir.generative.exact import GaussianMixture
from couloir.generative.schedule import EDM

FRAMES, RATE = 10, 0.2
SCHEDULE = EDM()


def covariance(frames=FRAMES, rate=RATE):
    """Ornstein-Uhlenbeck process of variance one: exp(-rate |i - j|)."""
    i = torch.arange(frames, dtype=torch.float64)
    return torch.exp(-rate * (i[:, None] - i).abs())


class Snippets:
    """The exact denoiser of a mixture of Gaussian processes, for snippets (n, frames, d) of independent coordinates."""

    def __init__(self, weights, means, cov, schedule=SCHEDULE):
        self.exact = GaussianMixture(weights, means, cov.expand(len(weights), *cov.shape)).denoiser(schedule)

    def __call__(self, x_t, t, condition=None, /):
        n, frames, d = x_t.shape
        flat = x_t.transpose(1, 2).reshape(n * d, frames)
        return self.exact(flat, t.repeat_interleave(d), None).reshape(n, d, frames).transpose(1, 2)
