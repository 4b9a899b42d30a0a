"""Trajectories longer than a denoiser's window: each next window has the last frames so far imposed as its first.

What that is exact for is on the page ``docs/theory/inpainting.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from couloir.errors import ConfigError, DataError
from couloir.generative.conditioning import Method, inpaint
from couloir.generative.denoiser import Denoiser
from couloir.generative.schedule import NoiseSchedule
from couloir.generative.solvers import Solver


def extend(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    path: Tensor,
    n_frames: int,
    *,
    window: int,
    overlap: int,
    method: str | Method = "guidance",
    n_calls: int = 40,
    resamples: int | None = None,
    solver: str | Solver | None = None,
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue trajectories by windows whose first frames are imposed from the last frames so far.

    A frame is drawn given the last ``overlap`` frames before its window, and no earlier ones: exact for data whose future
    depends on no more of the past than that (one frame of a Markov process), an approximation for others.

    Parameters
    ----------
    path : (n, at least ``overlap`` frames, d) what to continue; it comes back unchanged as the beginning.
    n_frames : frames of the result.
    window : frames that the denoiser is given at a time.
    overlap : imposed frames of each window, from 1 to ``window`` - 1.
    method, n_calls, resamples, solver, condition, generator : as in :func:`inpaint`, for each window.

    Returns
    -------
    (n, n_frames, d).

    Raises
    ------
    ConfigError : when window and overlap do not fit, and as :func:`inpaint` does.
    DataError : when ``path`` is shorter than the overlap, longer than ``n_frames``, or not (n, frames, d).
    """
    if not 1 <= overlap < window:
        raise ConfigError(f"an overlap of {overlap} frames does not fit a window of {window}", "impose from 1 to window - 1 frames")
    if path.ndim != 3 or not overlap <= path.shape[1] <= n_frames:
        raise DataError(f"a path of shape {tuple(path.shape)} cannot be continued", f"give (n, {overlap} to {n_frames} frames, d)")
    n, _, d = path.shape
    mask = (torch.arange(window, device=path.device) < overlap)[:, None]
    while path.shape[1] < n_frames:
        known = torch.zeros(n, window, d, dtype=path.dtype, device=path.device)
        known[:, :overlap] = path[:, -overlap:]
        noise = schedule.prior_std() * torch.randn(known.shape, generator=generator, dtype=path.dtype, device=path.device)
        filled = inpaint(
            denoiser, schedule, noise, known, mask,
            method=method, n_calls=n_calls, resamples=resamples, solver=solver, condition=condition, generator=generator,
        )  # fmt: skip
        path = torch.cat([path, filled[:, overlap:]], dim=1)
    return path[:, :n_frames]
