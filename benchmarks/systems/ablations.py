"""What the studies of DynamicsDiffusion train, how they generate, and what that costs (used by ``benchmarks.dynamics_studies``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

N_FRAMES, N_CALLS = 64, 30
SAW, HELD_OUT = (0.5, 1.0, 1.5), (0.75, 1.25)
"""kT of the training data of the study of temperature, and kT kept from it."""
_SLOW = ((100, "dpmpp_2m"), (1_000, "ancestral"))
"""Ancestral sampling with a thousand calls is affordable for few snippets, so a quick solver is judged with as few."""


@dataclass(frozen=True)
class Scale:
    """Simulated time units, gradient steps (in the studies of many models, of few), channels, generated snippets, trainings; lengths."""

    data: float
    steps: int
    more_steps: int
    channels: int
    batch: int
    generated: int
    trainings: int
    short: int
    mixed: tuple[int, int]
    looked: tuple[int, ...]


SCALES = {
    "small": Scale(80_000.0, 700, 1_500, 32, 128, 4_000, 3, 16, (16, 128), (16, 32, 64, 128, 192)),
    "paper": Scale(2_300_000.0, 100_000, 100_000, 128, 512, 20_000, 10, 16, (32, 326), (32, 64, 128, 326, 489)),
}
"""``small`` keeps every study below an hour of one CPU core; ``paper`` is for a GPU."""


@dataclass(frozen=True)
class Training:
    """One model: its name, options of it and its network, lengths of its snippets, share of the data, temperatures, and whether it is
    trained for ``more_steps``."""

    name: str
    network: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, int] = (N_FRAMES, N_FRAMES)
    fraction: float = 1.0
    kT: tuple[float, ...] = (1.0,)
    more: bool = False


@dataclass(frozen=True)
class Look:
    """One way to generate: frames (None: the longest trained on), kT, network calls, solver, and how many snippets, in shares."""

    n_frames: int | None = None
    kT: float = 1.0
    n_calls: int = N_CALLS
    solver: str = "dpmpp_2m"
    share: float = 1.0

    @property
    def name(self) -> str:
        """What the file of its measurements is called."""
        return f"{self.n_frames or 'all'}_frames_kT_{self.kT:g}_{self.n_calls}_{self.solver}_{self.share:g}"


@dataclass(frozen=True)
class Study:
    """Models, ways to generate with each of them, and a name for every pair of them."""

    trainings: tuple[Training, ...]
    looks: tuple[Look, ...]
    label: Callable[[Training, Look], str]


def studies(scale: Scale) -> dict[str, Study]:
    """Return what is trained and looked at."""
    heads = tuple(
        Training(f"{head}_{'attention' if attention else 'no_attention'}", {"head": head, "attention": attention})
        for head in ("energy", "plain")
        for attention in (True, False)
    )
    plain = {"head": "plain", "attention": True}
    encoder = Training("encoder_only", {"head": "energy", "attention": True, "encoder_only": True})
    amounts = tuple(
        Training(f"plain_attention_{length}_of_{parts}", plain, (length, length), 1.0 / parts)
        if parts > 1 or length != N_FRAMES
        else next(t for t in heads if t.name == "plain_attention")
        for length in (N_FRAMES, scale.short)
        for parts in (1, 10, 100, 1_000, 10_000)
    )
    few = 0.125
    calls = (*(Look(n_calls=n) for n in (5, 10, 15, 20, 30, 50, 100)), *(Look(n_calls=n, share=few, solver=s) for n, s in _SLOW))
    mixed = Training("plain_mixed", plain, scale.mixed, more=True)
    by_frame = Training("plain_mixed_frame", {**plain, "norm": "frame"}, scale.mixed, more=True)
    return {
        "heads": Study(heads, (Look(),), lambda t, _: t.name.replace("_", ", ", 1).replace("_", " ")),
        "encoder": Study((heads[0], encoder), (Look(),), lambda t, _: "encoder only" if t is encoder else "whole U-Net"),
        "data": Study(amounts, (Look(),), lambda t, _: f"{t.lengths[1]} frames, {t.fraction:g} of the data"),
        "calls": Study(
            (Training("plain_more", plain, more=True),), calls,
            lambda _, look: f"{look.n_calls} calls of {look.solver}" + (f", {look.share:g} of the snippets" if look.share < 1 else ""),
        ),
        "targets": Study(
            (Training("plain_more", plain, more=True), Training("plain_single", {**plain, "companions": 0}, more=True)), (Look(),),
            lambda t, _: "targets that are single snippets" if t.network.get("companions") == 0 else "targets averaged over snippets",
        ),
        "lengths": Study(
            (mixed,), tuple(Look(n_frames=n) for n in scale.looked),
            lambda t, look: f"{look.n_frames} frames" + ("" if (look.n_frames or 0) <= t.lengths[1] else ", longer than any seen"),
        ),
        "norms": Study(
            (mixed, by_frame), tuple(Look(n_frames=n) for n in (scale.mixed[0], N_FRAMES, scale.mixed[1])),
            lambda t, look: f"{look.n_frames} frames, norm over {'each frame' if t is by_frame else 'all frames'}",
        ),
        "temperature": Study(
            (Training("plain_temperature", plain, kT=SAW, more=True),), tuple(Look(kT=kT) for kT in sorted(SAW + HELD_OUT)),
            lambda t, look: f"kT = {look.kT:g}" + ("" if look.kT in t.kT else ", held out"),
        ),
    }  # fmt: skip


def core_seconds(training: Training, looks: Sequence[Look], scale: Scale, folder: Path) -> float:
    """Return about how long a CPU core needs for what is not done yet; microseconds per frame as measured at 32 channels."""
    encoder, energy = training.network.get("encoder_only", False), training.network.get("head", "energy") == "energy"
    step, call = (33.0, 10.0) if encoder else (43.0, 13.0) if energy else (21.0, 7.1)
    steps = 0 if (folder / "model.json").exists() else scale.more_steps if training.more else scale.steps
    frames = steps * scale.batch * 0.5 * sum(training.lengths) * step
    left = [look for look in looks if not (folder / f"look_{look.name}.json").exists()]
    frames += sum(scale.generated * look.share * look.n_calls * (look.n_frames or training.lengths[1]) * call for look in left)
    simulated = 0.0 if not left else 10.0 * scale.data / 80_000.0
    return simulated + 1e-6 * frames * (scale.channels / 32) ** 2
