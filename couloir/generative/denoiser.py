"""Denoisers: the posterior mean E[x_0 | x_t], and what follows from it.

With x_t = alpha x_0 + sigma eps, a denoiser D(x_t, t, c) = E[x_0 | x_t, c] determines (Tweedie's formula; Efron 2011)

    score = (alpha D - x_t) / sigma^2,        noise E[eps | x_t] = (x_t - alpha D) / sigma = -sigma score.

Circular coordinates (torsions, radians) need alpha = 1.  There x_t = x_0 + sigma eps is understood modulo 2 pi, and
D = x_t + sigma^2 score is *defined* by the score of the wrapped density, so every formula above stays as it is; D is then
an unwrapped number near x_t, not an angle in a standard interval.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from couloir.errors import ConfigError, ModelError
from couloir.generative.schedule import NoiseSchedule


class Denoiser(Protocol):
    """Anything callable as ``denoiser(x_t, t, condition)``.

    ``x_t`` is (n, d), ``t`` is (n,), ``condition`` is (n, c), or None for the unconditional distribution.
    Returns the posterior mean E[x_0 | x_t] (n, d).
    """

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, /) -> Tensor:
        """Return the posterior mean (n, d)."""
        ...


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance: D = D(c = None) + weight (D(c) - D(c = None)) (Ho & Salimans 2022, eq. 6).

    A weight of 1 is the conditional model itself, 0 the unconditional one; above 1 samples crowd where the condition is
    most certain.  Every call costs two calls of ``denoiser`` (one for weights 0 and 1).  The density of guided samples is
    unknown, so they are seeds and never weighted.

    Raises
    ------
    ModelError : when called without a condition.
    """

    denoiser: Denoiser
    weight: float

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, /) -> Tensor:
        """Return the guided estimate (n, d) of x_0."""
        if condition is None:
            raise ModelError("guidance needs a condition and got None", "give one, or use the denoiser without Guided")
        if self.weight == 1.0:
            return self.denoiser(x_t, t, condition)
        free = self.denoiser(x_t, t, None)
        return free if self.weight == 0.0 else torch.lerp(free, self.denoiser(x_t, t, condition), self.weight)


def score(denoiser: Denoiser, schedule: NoiseSchedule, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    """Return the gradient of ln p_t at ``x_t`` (n, d) and times ``t`` (n,), as (n, d)."""
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    return (alpha * denoiser(x_t, t, condition) - x_t) / sigma**2


def noise(denoiser: Denoiser, schedule: NoiseSchedule, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    """Return the expected noise E[eps | x_t] at ``x_t`` (n, d) and times ``t`` (n,), as (n, d)."""
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    return (x_t - alpha * denoiser(x_t, t, condition)) / sigma


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """Compute matrix products and convolutions in float32 inside, where a GPU would round them to TF32."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def on_device(denoiser: nn.Module, device: str) -> Denoiser:
    """Return a denoiser whose network computes on a device, while what it is given and returns stays where it is.

    Noise drawn on the CPU and a solver that runs there so give the same samples on every device, up to rounding.

    Parameters
    ----------
    denoiser : a module on the CPU, which is left as it is.
    device : ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...

    Raises
    ------
    ConfigError : there is no such device, or it computes nothing.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name == "cpu":
        return denoiser
    try:
        place = torch.device(name)
        torch.zeros(1, device=place).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device = {device!r} cannot be used: {str(error).splitlines()[0]}", 'give "auto" or "cpu"') from error
    there = copy.deepcopy(denoiser).to(place)

    def denoise(x_t: Tensor, t: Tensor, condition: Tensor | None = None, /) -> Tensor:
        with single_precision():
            out: Tensor = there(x_t.to(place), t.to(place), None if condition is None else condition.to(place))
        return out.to(x_t.device)

    return denoise
