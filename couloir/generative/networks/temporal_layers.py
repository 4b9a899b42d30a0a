"""Layers over the frames of a snippet, (n, channels, steps), that steps without a real frame cannot influence.

A mask (n, 1, steps) of zeros and ones names the real steps, None says that all are.  Every layer leaves zeros at the others,
which is what a convolution finds beyond the end of a snippet that has no filling.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["group", "frame"]

GROUPS = 8  # of channels, in group norm


class Level(nn.Module):
    """Two residual blocks, and self-attention between them when ``heads`` is not zero."""

    def __init__(self, enter: int, leave: int, width: int, kernel_size: int, norm: Norm, heads: int) -> None:
        super().__init__()
        self.first = _Block(enter, leave, width, kernel_size, norm)
        self.attention = _Attention(leave, heads) if heads else None
        self.second = _Block(leave, leave, width, kernel_size, norm)

    def forward(self, h: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Return (n, leave, steps) for ``h`` (n, enter, steps), an embedding (n, width) and a mask (n, 1, steps) of zeros and ones."""
        h = self.first(h, context, mask)
        if self.attention is not None:
            h = self.attention(h, mask)
        return self.second(h, context, mask)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Residual block: (Conv1d, norm, Mish) twice with the embedding of noise and condition added in between."""

    def __init__(self, enter: int, leave: int, width: int, kernel_size: int, norm: Norm) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(enter, leave, kernel_size, padding=kernel_size // 2)
        self.norm_1 = _Norm(leave, norm)
        self.context = nn.Linear(width, leave)
        self.conv_2 = nn.Conv1d(leave, leave, kernel_size, padding=kernel_size // 2)
        self.norm_2 = _Norm(leave, norm)
        self.skip = nn.Conv1d(enter, leave, 1) if enter != leave else nn.Identity()

    def forward(self, h: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        inner = functional.mish(self.norm_1(self.conv_1(h), mask)) + self.context(context)[:, :, None]
        inner = functional.mish(self.norm_2(self.conv_2(masked(inner, mask)), mask))
        return masked(inner + self.skip(h), mask)


class _Norm(nn.Module):
    """Group norm over real frames (Wu & He 2018), or layer norm over the channels of each frame."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        if self.norm == "frame":
            # Written out: over a strided dimension this is faster than layer_norm, above all to differentiate twice.
            centred = h - h.mean(dim=1, keepdim=True)
            normal = centred * ((centred**2).mean(dim=1, keepdim=True) + 1e-5).rsqrt()
            return normal * self.weight[:, None] + self.bias[:, None]
        if mask is None:
            return functional.group_norm(h, GROUPS, self.weight, self.bias)
        groups = h.reshape(len(h), GROUPS, -1, h.shape[2])
        real = mask[:, None]
        count = real.sum(dim=(2, 3), keepdim=True) * groups.shape[2]
        mean = (groups * real).sum(dim=(2, 3), keepdim=True) / count
        variance = ((groups - mean) ** 2 * real).sum(dim=(2, 3), keepdim=True) / count
        normal = ((groups - mean) * (variance + 1e-5).rsqrt()).reshape(h.shape)
        return normal * self.weight[:, None] + self.bias[:, None]


class _Attention(nn.Module):
    """Residual self-attention over time; it starts as the identity."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _Norm(channels, "frame")
        self.enter = nn.Conv1d(channels, 3 * channels, 1, bias=False)
        self.leave = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        n, channels, steps = h.shape
        parts = self.enter(self.norm(h, mask)).reshape(n, 3, self.heads, channels // self.heads, steps)
        query, key, value = parts.transpose(-1, -2).unbind(dim=1)
        # Written out, because PyTorch's fused attention has no second derivative, which the energy head needs.
        overlap = query @ key.transpose(-1, -2) * (channels // self.heads) ** -0.5
        if mask is not None:
            overlap = overlap.masked_fill(mask[:, None] == 0, -torch.inf)
        mixed = (overlap.softmax(dim=-1) @ value).transpose(-1, -2).reshape(n, channels, steps)
        return masked(h + self.leave(mixed), mask)


def masked(h: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``h`` (n, channels, steps) with zeros where ``mask`` (n, 1, steps) is zero."""
    return h if mask is None else h * mask


def coarse(real: Tensor, factor: int, how: Literal["any", "count"]) -> Tensor:
    """Return for steps of ``factor`` frames each whether any is real, or how many are, (n, frames / factor)."""
    steps = real.reshape(len(real), -1, factor)
    return steps.amax(dim=2) if how == "any" else steps.sum(dim=2)
