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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn

from couloir.errors import ConfigError, DataError, ModelError, nearest
from couloir.generative import conditioning, solvers
from couloir.generative.checkpoint import load_model, save_model
from couloir.generative.denoiser import Denoiser, on_device
from couloir.generative.networks.temporal_unet import SnippetDenoiser, TemporalUNet, snippet_loss
from couloir.generative.representation import BoolArray, Representation, representation_from
from couloir.generative.schedule import EDM, NoiseSchedule, VPLinear, schedule_from_dict
from couloir.generative.snippets import Snippets
from couloir.generative.training import Progress, TrainingPlan, TrainingResult, train
from couloir.streams import integer_seed
from couloir.trajectory import Array, Trajectory
from couloir.units import positive

if TYPE_CHECKING:
    import mdtraj

DEFAULT_PLAN = TrainingPlan(
    steps=6000, batch_size=128, learning_rate=1e-3, ema_decay=0.999, held_out_rows=4096, validation_fraction=0.05, patience=None,
    precision="float32",
)  # fmt: skip
"""Better in less time than the paper's: preconditioned targets of size one, a warm-up and a cosine, one average.

Single precision, because rounding x = x_0 + s eps to bfloat16 adds a third of the noise at the smallest s, 0.005.
"""
PAPER_PLAN = TrainingPlan(
    steps=100_000, batch_size=512, learning_rate=1e-4, warmup=0.0, decay="step", ema_decay=0.9975, ema_every=10,
    held_out_rows=4096, validation_fraction=0.05, patience=None, precision="float32",
)  # fmt: skip
"""Adam at 1e-4, then 1e-6; average of decay 0.9975 every 10 steps; batches of 512 (Petersen, Roig & Covino 2023)."""
_KIND, _VERSION = "TrajectoryDiffusion", 1
_FRAMES_AT_ONCE = 16_384
"""Frames that the network is given at once when it generates."""


class TrajectoryDiffusion:
    """A generative model of trajectory snippets, to be fitted to trajectories.

    Parameters
    ----------
    system : how frames become vectors, such as ``Vector()`` for toy systems; a topology stands for ``HeavyInternal(topology)``,
        the internal coordinates of its heavy atoms; the paper has aligned Cartesian ones, ``HeavyAtoms(topology)``.
    n_frames : frames of a snippet, or the shortest and the longest.
    temperature_conditioned : learn from trajectories at several temperatures, to generate at any between them.
    schedule : noise schedule, one that does not see angles: coordinates with a period cannot be generated.
    drop : share of the training snippets whose temperature is hidden.
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
        self.temperature_conditioned, self.drop, self.network = temperature_conditioned, drop, network
        # The slowest mode of a snippet of L frames has up to sqrt(L) times the amplitude of one frame, and noise must drown it;
        # the step between frames, often a tenth of the spread, must rise above the last noise.  No scale between the two is
        # special, so the steps are uniform in ln(sigma) (rho to infinity): a third of the error of rho = 7 at 20 calls.
        high = 10.0 * self.lengths[1] ** 0.5
        self.schedule = schedule or EDM(sigma_min=0.005, sigma_max=high, rho=1000.0, p_mean=-0.4, p_std=1.6)

    @classmethod
    def as_published(cls, system: Representation | mdtraj.Topology, n_frames: int = 64, **options: Any) -> TrajectoryDiffusion:
        """Return the model of the paper: variance-preserving noise, noise prediction, energy head, attention, aligned heavy atoms.

        Train it with ``plan=PAPER_PLAN``.  Coordinates have unit variance instead of the range [-1, 1].
        """
        if not isinstance(system, Representation):
            from couloir.generative.heavy_atoms import HeavyAtoms

            system = HeavyAtoms(system)
        return cls(system, n_frames, schedule=VPLinear(), **{"prediction": "noise", "base_channels": 128, **options})

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
        plan : default ``DEFAULT_PLAN``.
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
        cut = Snippets.of(data, self.representation, self.lengths[1], stride, kT, stride_frames)
        network = {"n_conditions": 1 if self.temperature_conditioned else 0, **self.network}
        model = FittedTrajectoryDiffusion(cut.representation, self.schedule, self.lengths, cut.stride, cut.log_kT, network, seed)
        low, high = self.lengths

        def loss(network: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
            assert isinstance(network, TemporalUNet)
            start, condition, frames = batch[0], batch[1] if len(batch) > 2 else None, batch[-1]
            length = int(torch.randint(low, high + 1, (), generator=generator, device=frames.device))
            x = frames[start[:, None] + stride_frames * torch.arange(length, device=start.device)]
            return snippet_loss(network, self.schedule, x, condition, self.drop, generator)

        rows = (cut.starts,) if cut.conditions is None else (cut.starts, cut.conditions)
        model.history = train(
            model.network, loss, rows, plan or DEFAULT_PLAN, seed=integer_seed(seed, "fit"), context=(cut.frames,), gap=cut.span,
            settings=[self.schedule.to_dict(), model.network.to_dict(), self.lengths, stride_frames, self.drop],
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


class FittedTrajectoryDiffusion:
    """A trained model of trajectory snippets, as :meth:`TrajectoryDiffusion.fit` returns it.

    Attributes
    ----------
    representation, schedule, network : the parts.
    lengths : frames of the shortest and of the longest snippet it was trained on.
    stride : time between frames, ps.
    log_kT : mean and standard deviation of the logarithm of kT over the training data; None without temperatures.
    history : what the training did; None for a loaded model.
    """

    def __init__(
        self,
        representation: Representation,
        schedule: NoiseSchedule,
        lengths: tuple[int, int],
        stride: float,
        log_kT: tuple[float, float] | None,
        network: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        if np.any(representation.circular):
            raise ModelError("snippets cannot hold coordinates with a period", "use Cartesian coordinates, or a toy without periods")
        self.representation, self.schedule, self.lengths, self.stride, self.log_kT = representation, schedule, lengths, stride, log_kT
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer_seed(seed, "network"))
            self.network = TemporalUNet(representation.dimension, **network).eval()
        self.denoiser = SnippetDenoiser(self.network, schedule)
        self.history: TrainingResult | None = None

    @property
    def n_frames(self) -> int:
        """Frames of the longest snippet it was trained on."""
        return self.lengths[1]

    def sample(
        self,
        n: int,
        *,
        n_frames: int | None = None,
        kT: Any = None,
        seed: int,
        solver: str = "dpmpp_2m",
        n_calls: int = 20,
        device: str = "auto",
    ) -> Array:
        """Return ``n`` snippets (n, n_frames, n_atoms, n_dim) in nm; they carry no weight.

        Parameters
        ----------
        n_frames : of each snippet; default the longest trained on.  Longer ones than that: :meth:`sample_long`.
        kT : kJ/mol, of a model conditioned on temperature.
        solver, n_calls : how the reverse process is solved and how many network calls it may take.
        device : where the network computes: ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda"`` ...; the noise is
            drawn on the CPU, so devices agree up to rounding.

        Raises
        ------
        DataError : no snippet or frame is asked for, or kT does not fit the model.
        """

        def some(denoiser: Denoiser, noise: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
            return solvers.sample(denoiser, self.schedule, noise, solver=solver, n_calls=n_calls, condition=condition, generator=generator)

        return self._decode(
            self._batched(n, self.n_frames if n_frames is None else n_frames, kT, integer_seed(seed, "sample"), some, device=device)
        )

    def inpaint(
        self,
        known: Array,
        mask: Any,
        n: int | None = None,
        *,
        kT: Any = None,
        seed: int,
        n_calls: int = 20,
        device: str = "auto",
        **settings: Any,
    ) -> Array:
        """Return snippets in which the frames ``mask`` are those of ``known``, up to the rounding of float64.

        A molecule comes back as its representation lays it in space, imposed frames too.

        Parameters
        ----------
        known : (frames, n_atoms, n_dim), from which ``n`` snippets are drawn, or (n, frames, n_atoms, n_dim); only the imposed
            frames are read.  Frames of a molecule hold all atoms, or those that the representation keeps.
        mask : (frames,) True at imposed frames.
        n_calls : network calls of one pass from noise to data.
        device : as in :meth:`sample`.
        settings : ``method``, ``resamples``, ``solver`` of :func:`couloir.generative.conditioning.inpaint`.

        Raises
        ------
        DataError : shapes do not fit, or no frame, or every frame, is imposed.
        """
        given, imposed = _copies(known, n), _frame_mask(mask, known)
        if not 0 < imposed.sum() < len(imposed):
            raise DataError(f"{imposed.sum()} of {len(imposed)} frames are imposed", "impose some frames, and leave some to be generated")
        x = torch.zeros(*given.shape[:2], self.representation.dimension)
        exact = self._encode(given[:, imposed])
        x[:, torch.from_numpy(imposed)] = exact.float()
        where = torch.from_numpy(imposed)[:, None]

        def some(denoiser: Denoiser, noise: Tensor, condition: Tensor | None, generator: torch.Generator, known: Tensor) -> Tensor:
            return conditioning.inpaint(
                denoiser, self.schedule, noise, known, where, n_calls=n_calls, condition=condition, generator=generator, **settings
            )

        out = self._decode(self._batched(len(x), x.shape[1], kT, integer_seed(seed, "inpaint"), some, x, device=device))
        out[:, imposed] = self._decode(exact)  # the network computes in float32; what was given was not
        return out

    def vary(
        self,
        path: Array,
        level: float,
        n: int | None = None,
        *,
        mask: Any = None,
        kT: Any = None,
        seed: int,
        device: str = "auto",
        **settings: Any,
    ) -> Array:
        """Return variations of a trajectory: noised to the noise-to-signal ratio ``level`` and denoised from there.

        Parameters
        ----------
        path : (frames, n_atoms, n_dim), of which ``n`` variations are made, or (n, frames, n_atoms, n_dim).
        level : 0 returns the path; features smaller than this, in units of the spread of the data, are drawn anew.
        mask : (frames,) True at frames that are kept, or None.
        device : as in :meth:`sample`.
        settings : ``method``, ``n_calls``, ``resamples``, ``solver`` of :func:`couloir.generative.conditioning.vary`.

        Raises
        ------
        DataError : shapes do not fit.
        ConfigError : the level is negative, or beyond the largest noise of the schedule.
        """
        kept = None if mask is None else _frame_mask(mask, path)
        exact = self._encode(_copies(path, n))
        where = None if kept is None else torch.from_numpy(kept)[:, None]

        def some(denoiser: Denoiser, noise: Tensor, condition: Tensor | None, generator: torch.Generator, path: Tensor) -> Tensor:
            return conditioning.vary(denoiser, self.schedule, path, level, mask=where, condition=condition, generator=generator, **settings)

        out = self._decode(self._batched(len(exact), exact.shape[1], kT, integer_seed(seed, "vary"), some, exact.float(), device=device))
        if kept is not None:
            out[:, kept] = self._decode(exact[:, torch.from_numpy(kept)])
        return out

    def sample_long(
        self, n: int, n_frames: int, *, overlap: int | None = None, kT: Any = None, seed: int, device: str = "auto", **settings: Any
    ) -> Array:
        """Return trajectories of any number of frames, made of overlapping snippets.

        Parameters
        ----------
        overlap : frames of each snippet that are imposed from the last one; default a quarter of a snippet.
        device : as in :meth:`sample`.
        settings : of :func:`couloir.generative.conditioning.generate_long`.
        """
        shared = max(1, self.n_frames // 4) if overlap is None else overlap

        def some(denoiser: Denoiser, noise: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
            return conditioning.generate_long(
                denoiser, self.schedule, noise, n_frames, overlap=shared, condition=condition, generator=generator, **settings
            )

        return self._decode(self._batched(n, self.n_frames, kT, integer_seed(seed, "long"), some, device=device))

    def _batched(self, n: int, n_frames: int, kT: Any, seed: int, draw: Any, *given: Tensor, device: str) -> Tensor:
        """Return draw(denoiser, noise, condition, generator, *given) for ``n`` snippets, some at a time."""
        if n < 1 or n_frames < 1:
            raise DataError(f"{n} snippets of {n_frames} frames were asked for", "ask for at least one of each")
        condition, denoiser = self._condition(kT), on_device(self.denoiser, device)
        generator = torch.Generator().manual_seed(seed)
        size, parts = max(1, _FRAMES_AT_ONCE // n_frames), []
        for first in range(0, n, size):
            m = min(size, n - first)
            noise = self.schedule.prior_std() * torch.randn(m, n_frames, self.representation.dimension, generator=generator)
            rows = None if condition is None else torch.full((m, 1), condition)
            with torch.no_grad():
                parts.append(draw(denoiser, noise, rows, generator, *(x[first : first + m] for x in given)))
        return torch.cat(parts)

    def _condition(self, kT: Any) -> float | None:
        if self.log_kT is None:
            if kT is not None:
                raise DataError("this model is not conditioned on temperature", "fit one with temperature_conditioned=True")
            return None
        if kT is None:
            raise DataError("this model is conditioned on temperature, but kT is missing", "give kT in kJ/mol")
        mean, spread = self.log_kT
        return (float(np.log(positive(kT, "kJ/mol", "kT"))) - mean) / spread

    def _encode(self, frames: Array) -> Tensor:
        """Return x (n, frames, dimension), float64."""
        x = self.representation.encode(frames.reshape(-1, *frames.shape[-2:]))
        return torch.from_numpy(x).reshape(*frames.shape[:-2], -1)

    def _decode(self, x: Tensor) -> Array:
        positions = self.representation.decode(x.reshape(-1, x.shape[-1]).double().numpy())
        return positions.reshape(*x.shape[:2], *positions.shape[1:])

    def save(self, folder: str | Path) -> None:
        """Write the model to ``folder``: ``weights.safetensors`` and ``model.json``."""
        config = {
            "representation": self.representation.to_dict(), "schedule": self.schedule.to_dict(), "network": self.network.to_dict(),
            "lengths": list(self.lengths), "stride": self.stride, "log_kT": None if self.log_kT is None else list(self.log_kT),
        }  # fmt: skip
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"representation/{name}": torch.from_numpy(np.array(value)) for name, value in self.representation.arrays().items()}
        save_model(folder, _KIND, _VERSION, config, tensors)

    @classmethod
    def load(cls, folder: str | Path) -> FittedTrajectoryDiffusion:
        """Return the model saved in ``folder``; see :meth:`TrajectoryDiffusion.load`."""
        config, tensors = load_model(folder, _KIND, _VERSION)
        arrays = {key.partition("/")[2]: value.numpy() for key, value in tensors.items() if key.startswith("representation/")}
        log_kT = None if config["log_kT"] is None else (config["log_kT"][0], config["log_kT"][1])
        network = {key: value for key, value in config["network"].items() if key not in ("kind", "n_coordinates")}
        model = cls(
            representation_from(config["representation"], arrays), schedule_from_dict(config["schedule"]),
            (config["lengths"][0], config["lengths"][1]), config["stride"], log_kT, network,
        )  # fmt: skip
        model.network.load_state_dict({k.partition("/")[2]: v for k, v in tensors.items() if k.startswith("network/")})
        return model

    def __str__(self) -> str:
        low, high = self.lengths
        frames = f"{high}" if low == high else f"{low} to {high}"
        given = "" if self.log_kT is None else " given kT"
        lines = [f"TrajectoryDiffusion{given}: snippets of {frames} frames, {self.stride:g} ps apart; {self.network}"]
        return "\n".join(lines if self.history is None else [*lines, f"  {self.history}"])


def _copies(frames: Array, n: int | None) -> Array:
    """Return (n, frames, n_atoms, n_dim) of one snippet, repeated, or of ``n`` snippets."""
    given = np.asarray(frames, dtype=np.float64)
    if given.ndim == 3:
        return np.repeat(given[None], 1 if n is None else n, axis=0)
    if given.ndim != 4 or n not in (None, len(given)):
        raise DataError(
            f"known frames have shape {given.shape}" + (f" for {n} snippets" if n is not None else ""),
            "give (frames, n_atoms, n_dim) for all, or (n, frames, n_atoms, n_dim)",
        )
    return given


def _frame_mask(mask: Any, frames: Array) -> BoolArray:
    """Return the mask (frames,) of the frames of (..., frames, n_atoms, n_dim)."""
    chosen, shape = np.asarray(mask), np.shape(frames)
    if chosen.dtype != bool or chosen.shape != shape[-3:-2]:
        raise DataError(
            f"known frames have shape {shape}, the mask is {chosen.dtype} {chosen.shape}", "give a boolean for each frame: (frames,)"
        )
    return chosen
