"""A temporal U-Net as denoiser of trajectory snippets, with noise as the gradient of an energy (Petersen, Roig & Covino 2023).

A snippet x (frames, n_coordinates) is a sequence of frames; convolutions run over the frames and the coordinates are
channels.  With x = x_t / alpha, noise level s = sigma / alpha (so x = x_0 + s eps for every schedule), data of standard
deviation d and the network's input u = x / sqrt(s^2 + d^2), the network F gives

    prediction "velocity":  D = c_skip x + c_out F,  c_skip = d^2 / (s^2 + d^2),  c_out = s d / sqrt(s^2 + d^2)
                            (Karras et al. 2022, eq. 7 and table 1; -F is the "v" of Salimans & Ho 2022 for d = 1);
    prediction "noise":     D = x - s F,  F = E[eps | x]  (Ho et al. 2020; what the paper trains).

With the energy head the network gives one energy e_i per frame, and with E = sum_i e_i

    F = -dE/du ("velocity"),  F = dE/du ("noise"),      so that      E[eps | x] = dU/dx,    score = -(1/s) dU/dx

for an energy U(x) that :meth:`TemporalUNet.energy` returns: the score is curl-free by construction, and -U/s is the
logarithm of the snippet's density at noise level s up to a constant.  The e_i are no energies of independent frames:
each depends on all the frames that the convolutions (and attention, if it is on) let it see.

Frames that fill a batch of mixed lengths, or fill a snippet up to a multiple of the total stride, are kept at zero after
every layer and left out of every average, so what the network says of real frames does not depend on them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from couloir.errors import ConfigError, DataError, ModelError, nearest
from couloir.generative.networks.temporal_layers import GROUPS, Level, Norm, coarse, masked
from couloir.generative.schedule import NoiseSchedule

Head = Literal["energy", "plain"]
Prediction = Literal["velocity", "noise"]

_CHOICES: dict[str, tuple[str, ...]] = {"head": ("energy", "plain"), "prediction": ("velocity", "noise"), "norm": ("group", "frame")}


class TemporalUNet(nn.Module):
    """Denoiser of snippets (batch, frames, n_coordinates) of any number of frames.

    With 128 base channels and levels (1, 2) it has 4.1 million parameters (3.8 million without attention, 3.5 million as
    encoder only), with levels (1, 2, 4) 16.6 million.

    Parameters
    ----------
    n_coordinates : coordinates of one frame, none of them an angle.
    n_conditions : numbers per condition (e.g. 1 for kT), 0 for an unconditional network.
    base_channels : channels of the first level, a multiple of 8.
    multipliers : channels of each level in units of ``base_channels``; each level after the first halves the frames.
    kernel_size : frames that a convolution sees, odd.
    attention : self-attention over time in the middle of the network.
    level_attention : self-attention also between the blocks of every level; its cost grows with the square of the frames.
    heads : attention heads.
    head : ``"energy"``, where the output is the gradient of a sum of one energy per frame, or ``"plain"``.
    encoder_only : leave out the way up, and read energies off the coarsest level; energy head only.
    norm : ``"group"`` averages over 8 groups of channels and all frames (the paper's choice), ``"frame"`` over the channels
        of each frame alone, which makes the network local in time: what it says of a frame does not depend on how long
        the snippet is, beyond what convolutions see.
    prediction : what the network is trained to give, see the module's first lines.
    data_std : standard deviation d of the data over all coordinates.

    Raises
    ------
    ConfigError : a choice or number makes no sense.
    """

    frequencies: Tensor

    def __init__(
        self, n_coordinates: int, n_conditions: int = 0, *, base_channels: int = 64, multipliers: Sequence[int] = (1, 2),
        kernel_size: int = 5, attention: bool = True, level_attention: bool = False, heads: int = 4, head: Head = "energy",
        encoder_only: bool = False, norm: Norm = "group", prediction: Prediction = "velocity", data_std: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.description: dict[str, Any] = {
            "n_coordinates": n_coordinates, "n_conditions": n_conditions, "base_channels": base_channels,
            "multipliers": list(multipliers), "kernel_size": kernel_size, "attention": attention, "level_attention": level_attention,
            "heads": heads, "head": head, "encoder_only": encoder_only, "norm": norm, "prediction": prediction, "data_std": data_std,
        }  # fmt: skip
        _check(self.description)
        self.n_coordinates, self.n_conditions, self.head, self.prediction = n_coordinates, n_conditions, head, prediction
        self.encoder_only, self.data_std = encoder_only, data_std
        channels = [base_channels * m for m in multipliers]
        self.stride = 2 ** (len(channels) - 1)

        width = 2 * base_channels
        self.register_buffer("frequencies", torch.arange(1, 17) * 0.25, persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * len(self.frequencies) + 1, width), nn.Mish(), nn.Linear(width, width))
        self.condition = nn.Sequential(nn.Linear(n_conditions, width), nn.Mish(), nn.Linear(width, width)) if n_conditions else None
        self.unconditional = nn.Parameter(torch.zeros(width)) if n_conditions else None

        def level(enter: int, leave: int, attend: bool) -> Level:
            return Level(enter, leave, width, kernel_size, norm, heads if attend else 0)

        enters = [n_coordinates, *channels[:-1]]
        self.down = nn.ModuleList(level(a, b, level_attention) for a, b in zip(enters, channels, strict=True))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = nn.ModuleList([level(channels[-1], channels[-1], attention)])
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for fine, below in [] if encoder_only else [*itertools.pairwise(channels)][::-1]:
            self.grow.append(nn.ConvTranspose1d(below, fine, 4, stride=2, padding=1))
            self.up.append(level(2 * fine, fine, level_attention))
        # A constant in the energy has no gradient, so the energy head has no bias.
        n_out = 1 if head == "energy" else n_coordinates
        self.leave = nn.Conv1d(channels[-1] if encoder_only else channels[0], n_out, 1, bias=head == "plain")
        # A new network predicts F = 0, which is already the best linear denoiser of data of standard deviation d.
        nn.init.zeros_(self.leave.weight)
        if self.leave.bias is not None:
            nn.init.zeros_(self.leave.bias)

    def raw(
        self, x: Tensor, noise: Tensor, condition: Tensor | None = None, keep: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return F (n, frames, n_coordinates), zero at frames that are not real.

        With the energy head F can be differentiated further wherever gradients are on, and costs no more than one
        backward pass where they are off.

        Parameters
        ----------
        x : (n, frames, n_coordinates) snippets x_t / alpha.
        noise : (n,) noise levels sigma / alpha.
        condition : (n, n_conditions), rows with NaN being unconditional; None for the unconditional distribution.
        keep : (n,) False for rows that are treated as unconditional.
        mask : (n, frames) True at real frames, which come first; None when all are real.

        Raises
        ------
        DataError : x, condition or mask have the wrong shape, or a snippet has no real frame.
        ModelError : a condition is given to a network without conditions.
        """
        u = self._scaled(x, noise, mask)
        context = self._context(noise, condition, keep)
        f = self._trunk(u, context, mask) if self.head == "plain" else self._slope(u, context, mask)
        # The gradient does not vanish at filling next to real frames, because convolutions look there.
        return f if mask is None else f.masked_fill(~mask[:, :, None], 0.0)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the denoised D (n, frames, n_coordinates), zero at frames that are not real; arguments as in :meth:`raw`."""
        f = self.raw(x, noise, condition, mask=mask)
        s = noise[:, None, None]
        if self.prediction == "noise":
            denoised = x - s * f
        else:
            d = self.data_std
            denoised = (d * d * x + s * d * (s**2 + d * d).sqrt() * f) / (s**2 + d * d)
        return denoised if mask is None else denoised.masked_fill(~mask[:, :, None], 0.0)

    def energy(self, x: Tensor, noise: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return energies of the frames (n, frames), whose sum U has the gradient dU/dx = E[eps | x] = (x - D) / s.

        Arguments as in :meth:`raw`.  An encoder-only network shares the energy of a coarse step out among its frames.

        Raises
        ------
        ModelError : the network has the plain head.
        """
        if self.head == "plain":
            raise ModelError("a network with the plain head has no energy", 'build it with head="energy"')
        energies = self._trunk(self._scaled(x, noise, mask), self._context(noise, condition, None), mask)[:, :, 0]
        if self.encoder_only:
            real = torch.ones(x.shape[:2], device=x.device) if mask is None else mask
            share = coarse(functional.pad(real.to(x.dtype), (0, -x.shape[1] % self.stride)), self.stride, "count")
            energies = (energies / share.clamp(min=1.0)).repeat_interleave(self.stride, dim=1)[:, : x.shape[1]]
        s, d = noise[:, None], self.data_std
        if self.prediction == "noise":
            energies = (s**2 + d * d).sqrt() * energies
        else:
            energies = d * energies + 0.5 * s / (s**2 + d * d) * (x**2).sum(-1)
        return energies if mask is None else energies.masked_fill(~mask, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_dict` turns back into this network, parameters aside."""
        return {"kind": "temporal_unet", **self.description, "multipliers": list(self.description["multipliers"])}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TemporalUNet:
        """Return a new network of the shape that :meth:`to_dict` described.

        Raises
        ------
        ConfigError : the description is of another kind of network, or names an unknown parameter.
        """
        parameters = dict(data)
        if (kind := parameters.pop("kind", None)) != "temporal_unet":
            raise ConfigError(f"the description is of a network of kind {kind!r}, not 'temporal_unet'")
        known = cls(1).description
        for name in parameters:
            if name not in known:
                raise ConfigError(f"a temporal U-Net has no parameter {name!r}{nearest(name, known)}")
        return cls(**parameters)

    def __str__(self) -> str:
        size = sum(p.numel() for p in self.parameters())
        levels = "x".join(str(m) for m in self.description["multipliers"])
        return f"TemporalUNet: {self.head} head, {self.description['base_channels']} channels, levels {levels}, {size:,} parameters"

    def _scaled(self, x: Tensor, noise: Tensor, mask: Tensor | None) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.n_coordinates or x.shape[1] == 0:
            raise DataError(f"snippets have shape {tuple(x.shape)}, expected (n, frames, {self.n_coordinates})")
        if mask is not None:
            if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
                raise DataError(f"the mask of frames is {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(x.shape[:2])}")
            if not bool(mask[:, 0].all() & (mask[:, :-1] | ~mask[:, 1:]).all()):
                raise DataError("the real frames of every snippet come first, and there is at least one", "put the filling at the end")
            x = x.masked_fill(~mask[:, :, None], 0.0)
        return x * (noise**2 + self.data_std**2).rsqrt()[:, None, None]

    def _slope(self, u: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Return -dE/du or dE/du, whichever is F."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            if not (again and u.requires_grad):
                u = u.detach().requires_grad_()
            total = self._trunk(u, context, mask).sum()
            (slope,) = torch.autograd.grad(total, u, create_graph=again)
        return slope if self.prediction == "noise" else -slope

    def _context(self, noise: Tensor, condition: Tensor | None, keep: Tensor | None) -> Tensor:
        """Return the embedding (n, width) of noise level and condition."""
        level = noise.log()[:, None]
        waves = level * self.frequencies
        context: Tensor = self.time(torch.cat([level / 4, waves.sin(), waves.cos()], dim=1))
        if condition is not None:
            if self.condition is None:
                raise ModelError("a condition was given to an unconditional network", "build it with n_conditions")
            if condition.shape != (len(noise), self.n_conditions):
                raise DataError(f"conditions have shape {tuple(condition.shape)}, expected ({len(noise)}, {self.n_conditions})")
        if self.condition is None or self.unconditional is None:
            return functional.mish(context)
        if condition is None:
            return functional.mish(context + self.unconditional)
        known = ~condition.isnan().any(dim=1)
        known = known if keep is None else known & keep
        # NaN is replaced before the layers see it, because its gradient would survive torch.where.
        embedded = self.condition(condition.masked_fill(~known[:, None], 0.0))
        return functional.mish(context + torch.where(known[:, None], embedded, self.unconditional))

    def _trunk(self, u: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Return what the head gives (n, frames or coarse steps, n_out), zero where there is no real frame."""
        n_frames = u.shape[1]
        fill = -n_frames % self.stride
        h = functional.pad(u.transpose(1, 2), (0, fill))
        masks = self._masks(u, fill, mask)
        skips = []
        for i, level in enumerate(self.down):
            h = level(h, context, masks[i])
            if i < len(self.shrink):
                skips.append(h)
                h = masked(self.shrink[i](h), masks[i + 1])
        h = self.middle[0](h, context, masks[-1])
        for grow, level, m in zip(self.grow, self.up, masks[-2::-1], strict=False):
            h = level(torch.cat([masked(grow(h), m), skips.pop()], dim=1), context, m)
        out = masked(self.leave(h), masks[-1] if self.encoder_only else masks[0]).transpose(1, 2)
        return out if self.encoder_only else out[:, :n_frames]

    def _masks(self, u: Tensor, fill: int, mask: Tensor | None) -> list[Tensor | None]:
        """Return for every level the mask (n, 1, steps) of the steps with a real frame, or None where all have one."""
        if mask is None and fill == 0:
            return [None] * len(self.down)
        real = torch.ones(u.shape[:2], dtype=u.dtype, device=u.device) if mask is None else mask.to(u.dtype)
        finest = functional.pad(real, (0, fill))
        return [coarse(finest, 2**i, "any")[:, None] for i in range(len(self.down))]


class SnippetDenoiser(nn.Module):
    """A :class:`TemporalUNet` under a noise schedule: the callable ``(x_t, t, condition) -> E[x_0 | x_t]`` of the solvers.

    Parameters
    ----------
    mask : (n, frames) True at real frames, when the snippets of a batch differ in length.
    """

    mask: Tensor | None

    def __init__(self, network: TemporalUNet, schedule: NoiseSchedule, mask: Tensor | None = None) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the posterior mean (n, frames, n_coordinates) in the precision of ``x_t``; the network computes in its own."""
        kind = self.network.leave.weight.dtype
        alpha = self.schedule.alpha(t)
        given = None if condition is None else condition.to(kind)
        x, level = (x_t / alpha[:, None, None]).to(kind), (self.schedule.sigma(t) / alpha).to(kind)
        denoised: Tensor = self.network(x, level, given, self.mask)
        return denoised.to(x_t.dtype)


def snippet_loss(
    network: TemporalUNet, schedule: NoiseSchedule, x_0: Tensor, condition: Tensor | None, drop: float, generator: torch.Generator,
    mask: Tensor | None = None, n: int | None = None,
) -> Tensor:  # fmt: skip
    """Return the denoising loss of the first ``n`` snippets (n,), a mean over their real frames, in which F has targets of size one.

    The others are no rows of the loss, but with them the target of a row is E[x_0 | x_t, all snippets] (:func:`posterior_mean`) in place
    of the one snippet that noise was added to: the same on average, by the law of total expectation, with less noise.  That is the
    stable target of Xu, Tong & Jaakkola 2023, there with rows among their own references, which makes it exact.

    Parameters
    ----------
    x_0, condition : independent draws of data (n_all, frames, n_coordinates) and of conditions (n_all, n_conditions) or None.
    drop : probability that a row is trained as unconditional (Ho & Salimans 2022, algorithm 1).
    mask : (n_all, frames) True at real frames; only without ``n``.
    n : default all, whose targets are then the snippets themselves.
    """
    assert mask is None or n is None
    every, condition_of_all = x_0, condition
    x_0, condition = x_0[:n], None if condition is None else condition[:n]
    t = schedule.sample_times(len(x_0), generator)
    s = (schedule.sigma(t) / schedule.alpha(t)).to(x_0.dtype)[:, None, None]
    eps = torch.randn(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
    keep = torch.rand(len(x_0), generator=generator, device=x_0.device) >= drop
    x = x_0 + s * eps
    f = network.raw(x, s[:, 0, 0], condition, keep, mask).to(x_0.dtype)
    if len(every) > len(x_0):
        x_0 = posterior_mean(x, every, s[:, 0, 0], condition_of_all, keep)
        eps = (x - x_0) / s
    d = network.data_std
    # (x_0 - c_skip x) / c_out of Karras et al. 2022, eq. 8, with x = x_0 + s eps put in.
    target = eps if network.prediction == "noise" else (s * x_0 / d - d * eps) * (s**2 + d * d).rsqrt()
    error = ((f - target) ** 2).mean(dim=2)
    if mask is None:
        return error.mean(dim=1)
    return error.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)


def posterior_mean(x: Tensor, data: Tensor, s: Tensor, condition: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    """Return the mean of ``data`` (m, ...) given noisy copies ``x`` (n, ...) of its first n members, each as likely as any (n, ...).

    Parameters
    ----------
    s : (n,) standard deviation of the noise.
    condition : (m, n_conditions) or None; a row that knows its own can only come from data with the same.
    keep : (n,) which rows know their condition.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows, flat = x.flatten(1), data.flatten(1)
        # |x - r|^2 without |x|^2, which is the same for all r
        logits = (rows @ flat.T - 0.5 * (flat * flat).sum(dim=1)) / s[:, None] ** 2
        if condition is not None and keep is not None:
            other = (condition[: len(x), None] != condition[None]).any(dim=2)
            logits = logits.masked_fill(other & keep[:, None], -torch.inf)
        return (torch.softmax(logits, dim=1) @ flat).reshape(x.shape)


def _check(description: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a choice that does not exist or a number that makes no sense."""
    for name, choices in _CHOICES.items():
        if description[name] not in choices:
            raise ConfigError(f"{name} = {description[name]!r} does not exist{nearest(str(description[name]), choices)}")
    multipliers, base = description["multipliers"], description["base_channels"]
    good = {
        "n_coordinates": description["n_coordinates"] >= 1,
        "n_conditions": description["n_conditions"] >= 0,
        "base_channels": base >= 1 and base % GROUPS == 0,
        "multipliers": len(multipliers) >= 1 and all(m >= 1 for m in multipliers),
        "kernel_size": description["kernel_size"] % 2 == 1 and description["kernel_size"] >= 1,
        "heads": description["heads"] >= 1 and base % description["heads"] == 0,
        "data_std": description["data_std"] > 0,
    }
    for name, fine in good.items():
        if not fine:
            raise ConfigError(f"TemporalUNet({name}={description[name]!r}) makes no sense", "see the docstring of TemporalUNet")
    if description["encoder_only"] and description["head"] == "plain":
        raise ConfigError("an encoder has no output per frame, so it cannot have the plain head", 'use head="energy"')
