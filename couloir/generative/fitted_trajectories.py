"""What fitting a :class:`couloir.generative.TrajectoryDiffusion` returns: trajectory snippets, completed and varied ones, and long ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from couloir.errors import DataError, ModelError
from couloir.generative import conditioning, long_trajectories, solvers
from couloir.generative.checkpoint import load_model, save_model
from couloir.generative.denoiser import Denoiser, on_device
from couloir.generative.networks.temporal_unet import SnippetDenoiser, TemporalUNet
from couloir.generative.representation import BoolArray, Representation, representation_from
from couloir.generative.schedule import NoiseSchedule, schedule_from_dict
from couloir.generative.training import TrainingResult
from couloir.streams import integer_seed
from couloir.trajectory import Array
from couloir.units import positive

_KIND, _VERSION = "TrajectoryDiffusion", 1
_FRAMES_AT_ONCE = 16_384
"""Frames that the network is given at once when it generates."""


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
        n_calls: int = 40,
        device: str = "auto",
        **settings: Any,
    ) -> Array:
        """Return snippets in which the frames ``mask`` are those of ``known``, up to the rounding of float64.

        A molecule comes back as its representation lays it in space, imposed frames too.

        Parameters
        ----------
        known : (frames, n_atoms, n_dim), from which ``n`` snippets are drawn, or (n, frames, n_atoms, n_dim); only the imposed
            frames are read.  Frames of a molecule hold all atoms, or those that the representation keeps.
        mask : (frames,) True at imposed frames, or (n, frames) for each snippet its own.
        n_calls : network calls of one pass from noise to data.
        device : as in :meth:`sample`.
        settings : ``method``, ``resamples``, ``solver`` of :func:`couloir.generative.conditioning.inpaint`.

        Raises
        ------
        DataError : shapes do not fit, or no frame, or every frame, of a snippet is imposed.
        """
        given, imposed = _with_masks(known, mask, n)
        counts = imposed.sum(axis=1)
        if not ((counts > 0) & (counts < imposed.shape[1])).all():
            wrong = counts[(counts == 0) | (counts == imposed.shape[1])][0]
            raise DataError(f"{wrong} of {imposed.shape[1]} frames are imposed", "impose some frames, and leave some to be generated")
        where = torch.from_numpy(imposed)
        x = torch.zeros(*where.shape, self.representation.dimension)
        exact = self._encode(given[imposed])
        x[where] = exact.float()

        def some(
            denoiser: Denoiser, noise: Tensor, condition: Tensor | None, generator: torch.Generator, known: Tensor, mask: Tensor
        ) -> Tensor:
            return conditioning.inpaint(
                denoiser, self.schedule, noise, known, mask, n_calls=n_calls, condition=condition, generator=generator, **settings
            )

        drawn = self._batched(len(x), x.shape[1], kT, integer_seed(seed, "inpaint"), some, x, where[..., None], device=device)
        out = self._decode(drawn)
        out[imposed] = self._decode(exact)  # the network computes in float32; what was given was not
        return out

    def interpolate(self, start: Array, end: Array, n_frames: int | None = None) -> Array:
        """Return straight lines (n, n_frames, n_atoms, n_dim) in the coordinates of the representation: paths to :meth:`vary`.

        Parameters
        ----------
        start, end : (n, n_atoms, n_dim), the first and the last frame of each; all atoms, or those that the representation keeps.
        n_frames : default the longest that was trained on.
        """
        weight = torch.linspace(0.0, 1.0, self.n_frames if n_frames is None else n_frames, dtype=torch.float64)[:, None]
        first, last = (self._encode(np.asarray(frames, dtype=np.float64)[:, None]) for frames in (start, end))
        return self._decode((1.0 - weight) * first + weight * last)

    def vary(
        self,
        path: Array,
        level: float,
        n: int | None = None,
        *,
        mask: Any = None,
        kT: Any = None,
        seed: int,
        n_calls: int = 20,
        device: str = "auto",
        **settings: Any,
    ) -> Array:
        """Return variations of a trajectory: noised to the noise-to-signal ratio ``level`` and denoised from there.

        Parameters
        ----------
        path : (frames, n_atoms, n_dim), of which ``n`` variations are made, or (n, frames, n_atoms, n_dim).
        level : 0 returns the path; features smaller than this, in units of the spread of the data, are drawn anew.
        mask : (frames,) True at frames that are kept, (n, frames) for each variation its own, or None.
        n_calls : network calls, all spent below ``level``.
        device : as in :meth:`sample`.
        settings : ``method``, ``resamples``, ``solver`` of :func:`couloir.generative.conditioning.vary`.

        Raises
        ------
        DataError : shapes do not fit.
        ConfigError : the level is negative, or beyond the largest noise of the schedule.
        """
        given, kept = (_copies(path, n), None) if mask is None else _with_masks(path, mask, n)
        exact = self._encode(given)
        where = () if kept is None else (torch.from_numpy(kept)[..., None],)

        def some(
            denoiser: Denoiser, noise: Tensor, condition: Tensor | None, generator: torch.Generator, x: Tensor, *kept: Tensor
        ) -> Tensor:
            mask = kept[0] if kept else None
            return conditioning.vary(
                denoiser, self.schedule, x, level, mask=mask, n_calls=n_calls, condition=condition, generator=generator, **settings
            )

        drawn = self._batched(len(exact), exact.shape[1], kT, integer_seed(seed, "vary"), some, exact.float(), *where, device=device)
        out = self._decode(drawn)
        if kept is not None:
            out[kept] = self._decode(exact[torch.from_numpy(kept)])
        return out

    def extend(
        self, path: Array, n_frames: int, *, overlap: int | None = None, kT: Any = None, seed: int, device: str = "auto", **settings: Any
    ) -> Array:
        """Return trajectories that begin with ``path``, of dynamics or generated, and go on from its end in overlapping snippets.

        A molecule comes back as its representation lays it in space, the frames of ``path`` too.

        Parameters
        ----------
        path : (frames, n_atoms, n_dim), or (n, frames, n_atoms, n_dim), at the model's ``stride``; repeat one to get several
            continuations.  Frames of a molecule hold all atoms, or those that the representation keeps.
        n_frames : of the result, those of ``path`` included.
        overlap : frames of each snippet that are imposed from what is there; default a quarter of a snippet, or the whole
            ``path`` where that is shorter.
        kT, device : as in :meth:`sample`.
        settings : ``method``, ``n_calls``, ``resamples``, ``solver`` of :func:`couloir.generative.long_trajectories.extend`.

        Returns
        -------
        (n, n_frames, n_atoms, n_dim).

        Raises
        ------
        DataError : the path is shorter than the overlap or longer than ``n_frames``, or kT does not fit the model.
        ConfigError : the overlap leaves nothing to generate.
        """
        exact = self._encode(_copies(path, None))
        shared = max(1, min(self.n_frames // 4, exact.shape[1])) if overlap is None else overlap

        def some(denoiser: Denoiser, noise: Tensor, condition: Tensor | None, generator: torch.Generator, path: Tensor) -> Tensor:
            return long_trajectories.extend(
                denoiser, self.schedule, path, n_frames,
                window=self.n_frames, overlap=shared, condition=condition, generator=generator, **settings,
            )  # fmt: skip

        x = self._batched(len(exact), self.n_frames, kT, integer_seed(seed, "extend"), some, exact.float(), device=device)
        # the network computes in float32; what was given was not
        return self._decode(torch.cat([exact, x[:, exact.shape[1] :].double()], dim=1))

    def sample_long(
        self,
        n: int,
        n_frames: int,
        *,
        overlap: int | None = None,
        kT: Any = None,
        seed: int,
        n_calls: int = 40,
        device: str = "auto",
        **settings: Any,
    ) -> Array:
        """Return trajectories of any number of frames: :meth:`sample`, and :meth:`extend` from there.

        Parameters
        ----------
        overlap, settings : as in :meth:`extend`.
        kT, n_calls, device : as in :meth:`sample`.

        Raises
        ------
        DataError : no frame is asked for, or kT does not fit the model.
        ConfigError : the overlap leaves nothing to generate.
        """
        if n_frames < 1:
            raise DataError(f"{n} trajectories of {n_frames} frames were asked for", "ask for at least one frame")
        first = self.sample(n, kT=kT, seed=seed, n_calls=n_calls, device=device)
        if n_frames <= self.n_frames:
            return first[:, :n_frames]
        return self.extend(first, n_frames, overlap=overlap, kT=kT, seed=seed, n_calls=n_calls, device=device, **settings)

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
        """Return x (..., dimension), float64, of frames (..., n_atoms, n_dim)."""
        x = self.representation.encode(frames.reshape(-1, *frames.shape[-2:]))
        return torch.from_numpy(x).reshape(*frames.shape[:-2], -1)

    def _decode(self, x: Tensor) -> Array:
        positions = self.representation.decode(x.reshape(-1, x.shape[-1]).double().numpy())
        return positions.reshape(*x.shape[:-1], *positions.shape[1:])

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


def _with_masks(frames: Array, mask: Any, n: int | None) -> tuple[Array, BoolArray]:
    """Return (n, frames, n_atoms, n_dim) as :func:`_copies` does, and which of these frames the mask chooses, (n, frames)."""
    chosen = np.asarray(mask)
    given = _copies(frames, len(chosen) if n is None and chosen.ndim == 2 and np.ndim(frames) == 3 else n)
    if chosen.dtype != bool or chosen.shape not in (given.shape[1:2], given.shape[:2]):
        raise DataError(
            f"known frames have shape {given.shape}, the mask is {chosen.dtype} {chosen.shape}",
            "give a boolean for each frame: (frames,) for all snippets, or (n, frames)",
        )
    return given, np.broadcast_to(chosen, given.shape[:2]).copy()
