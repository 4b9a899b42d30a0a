"""Imposed values and variations, from a denoiser that knows nothing of them.

Everything here is a pure function of a denoiser D = E[x_0 | x_t] and a schedule, x_t = alpha x_0 + sigma eps.  Imposing values
y on some entries A of x_0 turns D into an estimate of E[x_0 | x_t, x_0,A = y], which any solver can follow:

- ``Replacement``: D_A = y and the rest as it was.  A then follows its own noise to y exactly (replacement, Song et al. 2021,
  section 5 and appendix I), and the rest sees a noised y instead of y.  Resampling (Lugmayr et al. 2022, algorithm 1) repairs that.
- ``Guidance``: with V = Cov[x_0 | x_t] = (sigma^2 / alpha) dD/dx_t (Tweedie's second-order formula),

      D' = D + V_:A V_AA^-1 (y - D_A),

  which is exact when x_0 given x_t is Gaussian, as it is for Gaussian data, and otherwise has its first two moments matched
  (Boys et al. 2023; Rozet et al. 2024).  V is never built: V times a vector is one backward pass through the denoiser.
  V_AA = r^2 with r^2 = sigma^2 d^2 / (sigma^2 + alpha^2 d^2), d the spread of the data, is PiGDM (Song et al. 2023).

What each converges to is on the page ``docs/theory/inpainting.md``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from couloir.errors import ConfigError, DataError, nearest
from couloir.generative.denoiser import Denoiser
from couloir.generative.schedule import NoiseSchedule, schedule_from_dict
from couloir.generative.solvers import Solver, sample

_SMALLEST = 1e-6  # eigenvalue of V_AA / r^2, below which rounding decides


class Method(ABC):
    """A way to impose values.  ``resamples`` and ``solver`` are its defaults."""

    resamples: ClassVar[int]
    solver: ClassVar[str]

    @abstractmethod
    def estimate(
        self, denoise: Callable[[Tensor], Tensor], x_t: Tensor, alpha: Tensor, sigma: Tensor, known: Tensor, mask: Tensor
    ) -> Tensor:
        """Return E[x_0 | x_t, known] of the shape of ``x_t``; ``alpha`` and ``sigma`` broadcast to it, ``denoise`` is D at this time."""


@dataclass(frozen=True)
class Replacement(Method):
    """Imposed entries follow their own noise; the others see them only through the denoiser.

    The default solver is second order and deterministic, because every repetition adds the solver's own error once more:
    ancestral steps, repeated, settle on a distribution that is too narrow.
    """

    resamples: ClassVar[int] = 10
    solver: ClassVar[str] = "heun"

    def estimate(
        self, denoise: Callable[[Tensor], Tensor], x_t: Tensor, alpha: Tensor, sigma: Tensor, known: Tensor, mask: Tensor
    ) -> Tensor:
        """Return D with the imposed entries put in."""
        return torch.where(mask, known, denoise(x_t))


@dataclass(frozen=True)
class Guidance(Method):
    """Moment-matched posterior guidance.

    V_AA^-1 (y - D_A) is solved for in the Krylov space of y - D_A, whose Ritz matrix would be symmetric and positive if the
    Jacobian were that of an exact denoiser.  A learned one's is not, least of all at much noise, where V is sigma^2 times a small
    derivative.  So its symmetric part is inverted, with no eigenvalue below the error that it admits: the size of its
    antisymmetric part, or that of its most negative eigenvalue.

    Parameters
    ----------
    solves : largest dimension of that space, each one backward pass; it is exhausted after as many as there are imposed entries.
        0 is PiGDM, one backward pass with V_AA taken as r^2.
    data_std : spread d of the data in r^2.

    Raises
    ------
    ConfigError : for a negative ``solves`` or a spread that is not positive.
    """

    solves: int = 8
    data_std: float = 1.0
    resamples: ClassVar[int] = 1
    solver: ClassVar[str] = "dpmpp_2m_sde"

    def __post_init__(self) -> None:
        if self.solves < 0 or not self.data_std > 0.0:
            given = f"solves={self.solves}, data_std={self.data_std:g}"
            raise ConfigError(f"Guidance({given}) makes no sense", "use solves >= 0, data_std > 0")

    def estimate(
        self, denoise: Callable[[Tensor], Tensor], x_t: Tensor, alpha: Tensor, sigma: Tensor, known: Tensor, mask: Tensor
    ) -> Tensor:
        """Return D + V_:A V_AA^-1 (y - D_A), with the imposed entries put in."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            clean = denoise(x)
            # V / r^2, whose A block is near the identity where noise is small against the data.
            scale = 1.0 / alpha * (sigma**2 + (alpha * self.data_std) ** 2) / self.data_std**2

            def covariance(v: Tensor) -> Tensor:
                (out,) = torch.autograd.grad(clean, x, v, retain_graph=True)
                return scale * out

            gap = torch.where(mask, known - clean, 0.0).detach()
            shift = _shift(covariance, gap, mask, self.solves) if self.solves else covariance(gap)
        return torch.where(mask, known, clean.detach() + shift)


METHODS: dict[str, Method] = {"guidance": Guidance(), "replacement": Replacement()}


@dataclass(frozen=True)
class Imposed:
    """The denoiser of what remains when the entries ``mask`` of x_0 are ``known``; it serves any solver.

    Parameters
    ----------
    known : values to impose, of the shape of the states; only those at ``mask`` are read.
    mask : True at imposed entries, broadcastable to ``known``.
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    known: Tensor
    mask: Tensor
    method: Method

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, /) -> Tensor:
        """Return E[x_0 | x_t, known], of the shape of ``x_t``."""
        shape = (-1,) + (1,) * (x_t.ndim - 1)
        alpha, sigma = self.schedule.alpha(t).reshape(shape), self.schedule.sigma(t).reshape(shape)
        return self.method.estimate(lambda x: self.denoiser(x, t, condition), x_t, alpha, sigma, self.known, self.mask)


def inpaint(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    known: Tensor,
    mask: Tensor,
    *,
    method: str | Method = "guidance",
    n_calls: int = 40,
    resamples: int | None = None,
    solver: str | Solver | None = None,
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw samples that have the values ``known`` at the entries ``mask``.

    Parameters
    ----------
    denoiser : called with (x (n, frames, d), t (n,), condition); guidance differentiates it with respect to x.
    noise : (n, frames, d), normal of std ``schedule.prior_std()``; (n, d) works as well.
    known : values to impose, broadcastable to ``noise``; only those at ``mask`` are read.
    mask : True at imposed entries, broadcastable to ``noise``: (frames, 1) imposes whole frames.
    method : ``"guidance"``, ``"replacement"``, or an object such as ``Guidance(solves=0)``.
    n_calls : network calls of one pass from noise to data.
    resamples : times that every step is taken, at as many times the calls; by default 1 for guidance, 10 for replacement.
    solver : by default ``"dpmpp_2m_sde"`` for guidance, ``"heun"`` for replacement.
    condition : (n, c), or None.
    generator : source of all noise but ``noise``.

    Returns
    -------
    Samples of the shape and dtype of ``noise``, equal to ``known`` at ``mask`` to the last bit.

    Raises
    ------
    DataError : when shapes do not fit or an imposed value is not finite.
    ConfigError : for an unknown method or solver, or too few calls or resamples.
    """
    way = _method(method)
    known, mask = _imposed(known, mask, noise)
    level = schedule.alpha(torch.tensor(schedule.start, dtype=torch.float64)).item()
    return _fill(
        denoiser,
        schedule,
        noise + torch.where(mask, level * known, 0.0),
        known,
        mask,
        way,
        n_calls,
        resamples,
        solver,
        condition,
        generator,
    )


def vary(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    level: float,
    *,
    mask: Tensor | None = None,
    method: str | Method = "guidance",
    n_calls: int = 20,
    resamples: int | None = None,
    solver: str | Solver | None = None,
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise ``x`` to the noise-to-signal ratio ``level`` and denoise it from there.

    What differs from ``x`` by less than ``level`` is drawn anew, what differs by more is kept.  Samples of the model stay samples
    of the model, whatever the level.

    Parameters
    ----------
    x : (n, frames, d) or (n, d); repeat one row to get several variations of it.
    level : sigma / alpha, in units of the data.  At or below the schedule's end, ``x`` comes back.
    mask : True at entries that keep their value, broadcastable to ``x``, or None.
    method, resamples : how ``mask`` is imposed, as in :func:`inpaint`; unused without it.
    n_calls : network calls, all spent below ``level``.
    solver, condition, generator : as in :func:`inpaint`; the default solver without a mask is ``"dpmpp_2m"``.

    Returns
    -------
    Samples of the shape and dtype of ``x``.

    Raises
    ------
    ConfigError : when ``level`` is negative, not finite, or beyond the schedule's start, and as :func:`inpaint` does.
    DataError : when the mask does not fit or a kept value is not finite.
    """
    time = torch.tensor([schedule.end, schedule.start], dtype=torch.float64)
    lowest, highest = (schedule.sigma(time) / schedule.alpha(time)).tolist()
    if not 0.0 <= level <= highest * (1.0 + 1e-9):
        raise ConfigError(f"level = {level:g} is outside this schedule", f"give a noise-to-signal ratio between 0 and {highest:g}")
    way = _method(method)
    kept = None if mask is None else _imposed(x, mask, x)[1]
    if level <= lowest:
        return x.clone()
    below = _starting_at(schedule, level)
    start = torch.tensor(below.start, dtype=torch.float64)
    fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    noised = below.alpha(start).item() * x + below.sigma(start).item() * fresh
    if kept is None:
        return sample(denoiser, below, noised, solver=solver or "dpmpp_2m", n_calls=n_calls, condition=condition, generator=generator)
    return _fill(denoiser, below, noised, x, kept, way, n_calls, resamples, solver, condition, generator)


def _fill(
    denoiser: Denoiser, schedule: NoiseSchedule, x: Tensor, known: Tensor, mask: Tensor, method: Method,
    n_calls: int, resamples: int | None, solver: str | Solver | None, condition: Tensor | None, generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """Denoise ``x``, a state at ``schedule.start`` whose imposed entries are ``known``, noised."""
    filled = sample(
        Imposed(denoiser, schedule, known, mask, method), schedule, x,
        solver=method.solver if solver is None else solver, n_calls=n_calls,
        resamples=method.resamples if resamples is None else resamples, condition=condition, generator=generator,
    )  # fmt: skip
    return torch.where(mask, known, filled)


def _shift(covariance: Callable[[Tensor], Tensor], gap: Tensor, mask: Tensor, size: int) -> Tensor:
    """Return V_:A V_AA^-1 gap of each row of the batch, from at most ``size`` steps of Arnoldi's iteration begun at ``gap``.

    Eigenvalues are bounded as :class:`Guidance` says.
    """
    column = (-1,) + (1,) * (gap.ndim - 1)
    tolerance = torch.finfo(gap.dtype).eps ** 0.5

    def product(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1)

    def unit(v: Tensor, length: Tensor, least: Tensor) -> Tensor:
        return torch.where((length > least).reshape(column), v / length.clamp(min=torch.finfo(v.dtype).tiny).reshape(column), 0.0)

    length = product(gap, gap).sqrt()
    basis, images = [unit(gap, length, torch.zeros_like(length))], list[Tensor]()
    ritz = gap.new_zeros(len(gap), size, size)
    for j in range(size):
        images.append(covariance(basis[j]))
        rest = torch.where(mask, images[j], 0.0)
        least = tolerance * product(rest, rest).sqrt()
        for i in range(j + 1):
            ritz[:, i, j] = product(basis[i], rest)
            rest = rest - ritz[:, i, j].reshape(column) * basis[i]
        left = product(rest, rest).sqrt()
        if j + 1 == size or not bool((left > least).any()):
            break
        ritz[:, j + 1, j] = torch.where(left > least, left, 0.0)
        basis.append(unit(rest, left, least))
    coefficients = length[:, None] * _inverse(torch.nan_to_num(ritz[:, : len(images), : len(images)]))[..., 0]
    return sum((c.reshape(column) * image for c, image in zip(coefficients.T, images, strict=True)), torch.zeros_like(gap))


def _inverse(matrix: Tensor) -> Tensor:
    """Return the inverse of the symmetric part (n, k, k), its eigenvalues at least as large as the error that the matrix admits."""
    symmetric, other = 0.5 * (matrix + matrix.mT), 0.5 * (matrix - matrix.mT)
    values, vectors = torch.linalg.eigh(symmetric)
    admitted = torch.maximum(torch.linalg.matrix_norm(other) / math.sqrt(2.0), -values[:, 0]).clamp(min=_SMALLEST)
    inverse: Tensor = vectors / torch.maximum(values, admitted[:, None])[:, None] @ vectors.mT
    return inverse


def _method(method: str | Method) -> Method:
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ConfigError(f"there is no inpainting method {method!r}{nearest(method, METHODS)}")
    return METHODS[method]


def _imposed(known: Tensor, mask: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``known`` (zero where nothing is imposed) and ``mask``, both of the shape of ``like``."""
    mask = torch.as_tensor(mask, device=like.device)
    if mask.dtype != torch.bool:
        raise DataError(f"the mask of imposed entries has type {mask.dtype}, expected bool")
    try:
        known, mask = known.to(like).expand(like.shape), mask.expand(like.shape)
    except RuntimeError:
        message = f"known {tuple(known.shape)} and mask {tuple(mask.shape)} do not broadcast to the states {tuple(like.shape)}"
        raise DataError(message, "a mask of whole frames has shape (frames, 1)") from None
    known = torch.where(mask, known, 0.0)
    if not bool(known.isfinite().all()):
        raise DataError("an imposed value is not finite")
    return known, mask


def _starting_at(schedule: NoiseSchedule, level: float) -> NoiseSchedule:
    """Return the schedule with its time grid begun at noise-to-signal ratio ``level``; alpha(t) and sigma(t) are the same."""
    plain = schedule.to_dict()
    time = float(schedule.time_of(-2.0 * torch.tensor(level, dtype=torch.float64).log()))
    return schedule_from_dict({**plain, ("sigma_max" if "sigma_max" in plain else "start"): min(time, schedule.start)})
