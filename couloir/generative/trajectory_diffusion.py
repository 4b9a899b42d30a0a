"""DynamicsDiffusion: a diffusion model of trajectory snippets (Petersen, Roig & Covino 2023).

A snippet of L frames is one point of the space that is diffused, (L, n_coordinates); the denoiser is a temporal U-Net
(:mod:`couloir.generative.networks.temporal_unet`).  Snippets are cut at random from simulations, so the model learns the
stationary distribution of pieces of trajectory: their frames, and in which order and how fast they follow each other.
Frames can be imposed (inpainting), a given trajectory varied, and long trajectories made of overlapping snippets
(:mod:`couloir.generative.conditioning`).  What comes out is a proposal: it carries no weight.

Mixed lengths need no filling: all snippets of one batch have one length, drawn anew for every batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import Tensor, nn

from couloir.errors import ConfigError, DataError, ModelError, nearest
from couloir.generative.fitted_trajectories import FittedTrajectoryDiffusion
from couloir.generative.networks.temporal_unet import TemporalUNet, snippet_loss
from couloir.generative.representation import Representation
from couloir.generative.schedule import EDM, NoiseSchedule, VPLinear
from couloir.generative.snippets import Snippets, holding
from couloir.generative.training import Progress, TrainingPlan, train
from couloir.streams import integer_seed
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    import mdtraj

DEFAULT_PLAN = TrainingPlan(
    steps=6000, batch_size=128, learning_rate=1e-3, ema_decay=0.999, held_out_rows=4096, validation_fraction=0.05, patience=None,
    precision="float32",
)  # fmt: skip
"""Better in less time than the paper's: preconditioned targets of size one, a warm-up and a cosine, one average.

Single precision, because rounding x = x_0 + s eps to bfloat16 adds a third of the noise at the smallest s, 0.005.
"""
COMPANIONS = 896
"""Snippets besides those of a batch that tell what a noisy one may have come from: at noise above the spread of the data, targets lose
nearly all of their own."""
_LOOKED = 10_000  # steps between frames that are looked at
PAPER_PLAN = TrainingPlan(
    steps=100_000, batch_size=512, learning_rate=1e-4, warmup=0.0, decay="step", ema_decay=0.9975, ema_every=10,
    held_out_rows=4096, validation_fraction=0.05, patience=None, precision="float32",
)  # fmt: skip
"""Adam at 1e-4, then 1e-6; average of decay 0.9975 every 10 steps; batches of 512 (Petersen, Roig & Covino 2023)."""


class TrajectoryDiffusion:
    """A generative model of trajectory snippets, to be fitted to trajectories.

    Parameters
    ----------
    system : how frames become vectors, such as ``Vector()`` for toy systems; a topology stands for ``HeavyInternal(topology)``,
        the internal coordinates of its heavy atoms; the paper has aligned Cartesian ones, ``HeavyAtoms(topology)``.
    n_frames : frames of a snippet, or the shortest and the longest.
    temperature_conditioned : learn from trajectories at several temperatures, to generate at any between them.
    schedule : noise schedule, one that does not see angles: coordinates with a period cannot be generated.  The default ends far
        below the steps between frames of the data.
    drop : share of the training snippets whose temperature is hidden.
    companions : snippets besides those of a batch from which its targets are averaged
        (:func:`~couloir.generative.networks.temporal_unet.snippet_loss`); with 0 the target of a noisy snippet is the snippet itself.
    network : parameters of :class:`~couloir.generative.networks.temporal_unet.TemporalUNet`, such as ``base_channels=32``,
        ``head="plain"`` or ``attention=False``.

    Raises
    ------
    DataError : a snippet has fewer than two frames.
    ConfigError : the network has no such parameter.
    """

    def __init__(
        self,
        system: Representation | mdtraj.Topology,
        n_frames: int | tuple[int, int] = 64,
        *,
        temperature_conditioned: bool = False,
        schedule: NoiseSchedule | None = None,
        drop: float = 0.1,
        companions: int = COMPANIONS,
        **network: Any,
    ) -> None:
        if isinstance(system, Representation):
            self.representation = system
        else:
            from couloir.generative.heavy_internal import HeavyInternal

            self.representation = HeavyInternal(system)
        low, high = (n_frames, n_frames) if isinstance(n_frames, SupportsIndex) else n_frames
        self.lengths = int(low), int(high)
        if not 2 <= self.lengths[0] <= self.lengths[1]:
            raise DataError(f"snippets of {n_frames} frames", "give a number of at least 2, or (shortest, longest)")
        known = set(inspect.signature(TemporalUNet).parameters) - {"n_coordinates", "n_conditions"}
        for name in sorted(network.keys() - known):
            raise ConfigError(f"TrajectoryDiffusion has no parameter {name!r}{nearest(name, known)}")
        if companions < 0:
            raise ConfigError(f"companions = {companions}, expected 0 or more")
        self.temperature_conditioned, self.drop, self.companions, self.network = temperature_conditioned, drop, companions, network
        # The slowest mode of a snippet of L frames has up to sqrt(L) times the amplitude of one frame, and noise must drown it;
        # the step between frames must rise above the last noise (see ``fit``).  No scale between the two is special, so the
        # steps are uniform in ln(sigma) (rho to infinity): a third of the error of rho = 7 at 20 calls.
        high = 10.0 * self.lengths[1] ** 0.5
        self.own_schedule = schedule is None
        self.schedule = schedule or EDM(sigma_min=0.005, sigma_max=high, rho=1000.0, p_mean=-0.4, p_std=1.6)

    @classmethod
    def as_published(cls, system: Representation | mdtraj.Topology, n_frames: int = 64, **options: Any) -> TrajectoryDiffusion:
        """Return the model of the paper: variance-preserving noise, noise prediction, energy head, attention, aligned heavy atoms.

        Train it with ``plan=PAPER_PLAN``.  Coordinates have unit variance instead of the range [-1, 1].
        """
        if not isinstance(system, Representation):
            from couloir.generative.heavy_atoms import HeavyAtoms

            system = HeavyAtoms(system)
        return cls(system, n_frames, schedule=VPLinear(), **{"prediction": "noise", "base_channels": 128, "companions": 0, **options})

    def fit(
        self,
        data: Trajectory | Sequence[Trajectory] | Sequence[Array],
        *,
        seed: int,
        stride: Any = None,
        kT: Sequence[Any] | None = None,
        stride_frames: int = 1,
        plan: TrainingPlan | None = None,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> FittedTrajectoryDiffusion:
        """Train on trajectories and return the fitted model.

        Parameters
        ----------
        data : a trajectory or several, or arrays of positions (n_frames, n_atoms, n_dim) that are ``stride`` apart.
        kT : kJ/mol, of each trajectory, when the model is conditioned on temperature.
        stride_frames : frames of a snippet are this many frames of the data apart.
        plan : default ``DEFAULT_PLAN``; in single precision unless it asks for ``"bf16"``.
        checkpoint : folder from which an interrupted training with the same data and seed continues.
        progress : called as ``progress(step, training_loss, held_out_loss)``.

        Raises
        ------
        DataError : trajectories too short for a snippet, with different strides, damaged, or without their temperatures; or
            temperatures for a model that is not conditioned on them.
        ModelError : the loss is not finite, or the checkpoint belongs to another training.
        """
        if self.temperature_conditioned and kT is None:
            raise DataError("the model is conditioned on temperature, but kT is missing", "give kT=[...], one per trajectory")
        if kT is not None and not self.temperature_conditioned:
            raise DataError("kT is given to a model that does not learn it", "use TrajectoryDiffusion(..., temperature_conditioned=True)")
        cut = Snippets.of(data, self.representation, self.lengths, stride, kT, stride_frames)
        network = {"n_conditions": 1 if self.temperature_conditioned else 0, **self.network}
        schedule = self.schedule
        if self.own_schedule and isinstance(schedule, EDM):
            schedule = replace(schedule, sigma_min=last_noise(cut, stride_frames))
        model = FittedTrajectoryDiffusion(cut.representation, schedule, self.lengths, cut.stride, cut.log_kT, network, seed)
        (low, high), plan = self.lengths, plan or DEFAULT_PLAN
        if plan.precision == "auto":
            plan = replace(plan, precision="float32")

        def loss(network: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
            assert isinstance(network, TemporalUNet)
            (start, room), condition, frames = batch[:2], batch[2] if len(batch) > 3 else None, batch[-1]
            length = int(torch.randint(low, high + 1, (), generator=generator, device=frames.device))
            if low < high:
                length = min(length, int(room.max()))
                rows = holding(room, length, generator)
                start, condition = start[rows], None if condition is None else condition[rows]
            x = frames[start[:, None] + stride_frames * torch.arange(length, device=start.device)]
            return snippet_loss(network, schedule, x, condition, self.drop, generator, n=plan.batch_size)

        rows = (cut.starts, cut.room, *(() if cut.conditions is None else (cut.conditions,)))
        model.history = train(
            model.network, loss, rows, plan, seed=integer_seed(seed, "fit"), context=(cut.frames,), gap=cut.span,
            companions=self.companions, settings=[schedule.to_dict(), model.network.to_dict(), self.lengths, stride_frames, self.drop],
            checkpoint=checkpoint, progress=progress,
        )  # fmt: skip
        return model

    @classmethod
    def load(cls, folder: str | Path) -> FittedTrajectoryDiffusion:
        """Return the fitted model saved in ``folder``; raises ModelError when it holds something else."""
        return FittedTrajectoryDiffusion.load(folder)

    def sample(self, *_: Any, **__: Any) -> Array:
        """Raise: only what :meth:`fit` returns can sample."""
        raise ModelError("this TrajectoryDiffusion is not fitted", "use the model that fit(data, seed=...) returns")


def last_noise(cut: Snippets, stride_frames: int = 1) -> float:
    """Return the noise at which generation ends: an eighth of the smallest root mean square step between frames, but 0.002 to 0.02.

    Of a random walk the last call then leaves out 2 s^2, 3 % of a step's variance, and no call is spent on noise that nobody sees.
    """
    starts = cut.starts[:: max(1, len(cut.starts) // _LOOKED)]
    steps = (cut.frames[starts + stride_frames] - cut.frames[starts]).double()
    smallest = float(steps.square().mean(dim=0).sqrt().min())
    return min(max(smallest / 8.0, 0.002), 0.02)
