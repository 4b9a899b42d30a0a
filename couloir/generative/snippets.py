"""Snippets: where pieces of trajectory can be cut, without ever copying one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from couloir.errors import DataError
from couloir.generative.representation import Representation, as_frames
from couloir.trajectory import Array, Trajectory
from couloir.units import positive

_FIT_FRAMES = 200_000
"""Frames that the representation learns its means and scales from, at most."""


@dataclass(frozen=True, eq=False)
class Snippets:
    """Frames of all trajectories one after the other, and where snippets may begin.

    Attributes
    ----------
    frames : (n_frames, dimension) float32, encoded.
    starts : (n_starts,) first frames of the shortest snippets that end within their trajectory.
    room : (n_starts,) frames of the longest snippet, of any length, that begins there and ends within its trajectory.
    conditions : (n_starts, 1) standardized log kT, or None.
    log_kT : mean and standard deviation of log kT over the trajectories, or None.
    representation : fitted.
    stride : ps between the frames of a snippet.
    span : frames of the data from the first to the last of the longest snippet, both counted.
    """

    frames: Tensor
    starts: Tensor
    room: Tensor
    conditions: Tensor | None
    log_kT: tuple[float, float] | None
    representation: Representation
    stride: float
    span: int

    @classmethod
    def of(
        cls,
        data: Any,
        representation: Representation,
        lengths: tuple[int, int],
        stride: Any,
        kT: Sequence[Any] | None,
        stride_frames: int = 1,
    ) -> Snippets:
        """Return the snippets of a trajectory, of several, or of arrays of positions.

        Parameters
        ----------
        lengths : frames of the shortest and of the longest, ``stride_frames`` apart.

        Raises
        ------
        DataError : trajectories too short for a snippet, strides that differ or are missing, temperatures that do not fit.
        """
        parts = [data] if isinstance(data, Trajectory) or (isinstance(data, np.ndarray) and data.ndim == 3) else list(data)
        if not parts:
            raise DataError("there are no trajectories to learn from")
        if stride_frames < 1:
            raise DataError(f"stride_frames = {stride_frames} makes no sense", "give 1 to use every frame, 2 for every other, ...")
        step = stride_frames * _common_stride(parts, stride)
        shortest, longest = ((length - 1) * stride_frames + 1 for length in lengths)
        positions = [as_frames(part.positions if isinstance(part, Trajectory) else part) for part in parts]
        for i, frames in enumerate(positions):
            if len(frames) < shortest:
                raise DataError(f"trajectory {i} has {len(frames)} frames, a snippet {shortest}", "leave it out, or shorten n_frames")
        if max(len(frames) for frames in positions) < longest:
            raise DataError(f"no trajectory has the {longest} frames of the longest snippet", "shorten n_frames")
        total = sum(len(frames) for frames in positions)
        every = max(1, total // _FIT_FRAMES)
        fitted = representation.fit(np.concatenate([frames[::every] for frames in positions]))
        encoded = [torch.from_numpy(fitted.encode(frames)).float() for frames in positions]
        begins = np.cumsum([0, *(len(frames) for frames in positions[:-1])])
        starts = [begin + np.arange(len(frames) - shortest + 1) for begin, frames in zip(begins, positions, strict=True)]
        room = np.concatenate([np.arange(len(frames) - 1, shortest - 2, -1) // stride_frames + 1 for frames in positions])
        conditions, log_kT = None, None
        if kT is not None:
            log_kT, values = _temperatures(kT, len(parts))
            conditions = torch.cat([torch.full((len(s), 1), v) for s, v in zip(starts, values, strict=True)])
        where = torch.from_numpy(np.concatenate(starts))
        return cls(torch.cat(encoded), where, torch.from_numpy(room), conditions, log_kT, fitted, step, longest)


def holding(room: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Return rows (n,) that all have ``room`` (n,) for ``length`` frames.

    One that has not gives way to one that has, drawn at random: so snippets of any length begin wherever they can, equally often.
    """
    fits = room >= length
    good = fits.nonzero()[:, 0]
    others = good[torch.randint(len(good), room.shape, generator=generator, device=room.device)]
    return torch.where(fits, torch.arange(len(room), device=room.device), others)


def _common_stride(parts: Sequence[Trajectory | Array], stride: Any) -> float:
    given = {round(part.stride, 9) for part in parts if isinstance(part, Trajectory)}
    given |= set() if stride is None else {round(positive(stride, "ps", "stride"), 9)}
    if len(given) != 1:
        what = "no stride is known" if not given else f"strides differ: {', '.join(f'{s:g}' for s in sorted(given))} ps"
        raise DataError(what, "give trajectories with frames equally far apart, or arrays and their stride")
    return given.pop()


def _temperatures(kT: Sequence[Any], n: int) -> tuple[tuple[float, float], list[float]]:
    """Return mean and spread of log kT, and the standardized value of each trajectory."""
    values = np.log([positive(value, "kJ/mol", "kT") for value in ([kT] if np.ndim(kT) == 0 else kT)])
    if len(values) != n:
        raise DataError(f"{len(values)} temperatures for {n} trajectories", "give one kT per trajectory")
    if np.ptp(values) < 1e-6:
        raise DataError("all trajectories have one temperature", "give several, or temperature_conditioned=False")
    mean, spread = float(values.mean()), float(values.std())
    return (mean, spread), [float((value - mean) / spread) for value in values]
