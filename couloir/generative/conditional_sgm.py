"""Score-based model of configurations at given CV values (Crabtree, Bello-Rivas & Kevrekidis 2023).

Training pairs a configuration x with its label c = CV(x) and learns the score of p(x_t | c) at every noise level by
denoising score matching, minimizing E |F(x_t, t, c) - F*|^2 (see :mod:`couloir.generative.networks.mlp`).  One
training row in ten has its label hidden, so the same network also knows p(x_t) (Ho & Salimans 2022).

A label that *is* a coordinate of the representation is imposed: the network generates the other coordinates and the
label is put in its place, so generated structures carry it exactly, inside the data and beyond.  The density is then

    log p(structure | c) = log p(other coordinates | c) - log_volume(x) + log |d CV / d x_label|,

the density with respect to delta(CV(structure) - c) d(structure), the Cartesian volume modulo rigid motion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from couloir.cv.base import CollectiveVariable
from couloir.errors import DataError, ModelError
from couloir.generative import likelihood, solvers
from couloir.generative.checkpoint import load_model, save_model
from couloir.generative.denoiser import Denoiser, Guided
from couloir.generative.labels import LabelRange, as_labels, described, rebuilt_labels
from couloir.generative.networks.mlp import NetworkDenoiser, ScoreMLP, denoising_loss
from couloir.generative.representation import Representation, representation_from
from couloir.generative.schedule import EDM, NoiseSchedule, schedule_from_dict
from couloir.generative.training import Progress, TrainingPlan, TrainingResult, train
from couloir.streams import integer_seed
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    from couloir.generative.model_state import LabelDensity, ModelState

_KIND, _VERSION = "ConditionalSGM", 1
_CHUNK = 8192  # rows per network call when sampling: bounds memory, and large enough not to cost speed


@dataclass(frozen=True, eq=False)
class ProposedStructures:
    """Generated structures with their density, which may therefore be weighted or accepted by an exact rule.

    Attributes
    ----------
    positions : (n, n_atoms, 3) nm.
    labels : (n, n_labels) the CV values they were generated at.
    log_prob : (n,) log-density in Cartesian volume modulo rigid motion, given the label.
    error : (n,) estimated error of ``log_prob`` from solving the probability-flow equation.
    """

    positions: Array
    labels: Array
    log_prob: Array
    error: Array

    def __len__(self) -> int:
        return len(self.positions)


class ConditionalSGM:
    """A generative model of structures at given values of one or several CVs, to be fitted to labelled structures.

    Parameters
    ----------
    representation : how structures become vectors, e.g. ``InternalCoordinates(topology)``.
    label : the CV, or CVs, that structures are generated at.
    schedule : noise schedule; circular coordinates need :class:`~couloir.generative.schedule.EDM`.
    width, depth : size of the network.
    impose : ``"auto"`` imposes every label that is a coordinate of the representation, True insists on it, False never does.
    drop : share of the training rows whose label is hidden, for guidance.
    """

    def __init__(
        self,
        representation: Representation,
        label: CollectiveVariable | Sequence[CollectiveVariable],
        *,
        schedule: NoiseSchedule | None = None,
        width: int = 128,
        depth: int = 3,
        impose: bool | Literal["auto"] = "auto",
        drop: float = 0.1,
    ) -> None:
        self.representation = representation
        self.labels = (label,) if isinstance(label, CollectiveVariable) else tuple(label)
        if not self.labels:
            raise ModelError("a conditional model needs at least one label", "give a CV, e.g. Dihedral.phi(topology, residue=2)")
        # Noise of the size of the torsions' modes gets the most training: which mode a structure is in is decided there.
        self.schedule = schedule or EDM(sigma_max=20.0, p_mean=0.0)
        self.width, self.depth, self.impose, self.drop = width, depth, impose, drop

    def fit(
        self,
        data: Trajectory | Sequence[Trajectory] | Array,
        *,
        seed: int,
        plan: TrainingPlan | None = None,
        labels: Array | None = None,
        weights: Array | None = None,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> FittedConditionalSGM:
        """Train on structures and return the fitted model.

        Parameters
        ----------
        data : a trajectory, several, or positions (n_frames, n_atoms, 3) nm.
        labels : (n_frames,) or (n_frames, n_labels) label values; by default the CVs are evaluated on the structures.
        weights : (n_frames,) weights of the frames, e.g. from MBAR over several biased simulations.
        checkpoint : folder from which an interrupted training with the same data and seed continues.
        progress : called as ``progress(step, training_loss, held_out_loss)``.

        Raises
        ------
        DataError : empty, damaged or constant data, or labels that do not fit it.
        ModelError : the loss is not finite, or a label that should be imposed is no coordinate of the representation.
        """
        positions = _positions(data)
        if labels is None:
            labels = np.stack([cv.evaluate(positions) for cv in self.labels], axis=1)
        values = as_labels(labels, len(self.labels))
        if len(values) != len(positions):
            raise DataError(f"{len(values)} label values for {len(positions)} frames", "give one label for every frame")
        representation = self.representation.fit(positions)
        x = representation.encode(positions)
        imposed = self._imposed(representation, x, values)
        seen = LabelRange.of(self.labels, values)
        model = FittedConditionalSGM(representation, self.labels, self.schedule, self.width, self.depth, imposed, seen, seed)
        rows = (torch.from_numpy(x[:, model.free]).float(), torch.from_numpy(seen.encode(values)).float())

        def loss(network: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
            assert isinstance(network, ScoreMLP)
            return denoising_loss(network, self.schedule, batch[0], batch[1], self.drop, generator)

        model.history = train(
            model.network, loss, rows, plan, seed=integer_seed(seed, "fit"), weights=weights, checkpoint=checkpoint, progress=progress
        )
        return model

    def _imposed(self, representation: Representation, x: Array, values: Array) -> tuple[int | None, ...]:
        """Return for every label the coordinate of x that it is imposed on, or None."""
        if self.impose is False:
            return (None,) * len(self.labels)
        where = tuple(representation.coordinate_of(cv) for cv in self.labels)
        for i, (cv, index) in enumerate(zip(self.labels, where, strict=True)):
            if index is None and self.impose is True:
                raise ModelError(f"{cv.name!r} is no coordinate of {representation}, so it cannot be imposed", "use impose='auto'")
            if index is not None:
                apart = np.abs(x[:, index] - representation.standardize(index, values[:, i]))
                if representation.circular[index]:
                    apart = np.minimum(apart, 2 * np.pi - apart)
                if apart.max() > 1e-3:
                    raise DataError(f"the labels given are not the values of {cv.name!r} in the data", "leave labels out, or impose=False")
        return where

    @classmethod
    def load(cls, folder: str | Path, label: CollectiveVariable | Sequence[CollectiveVariable] | None = None) -> FittedConditionalSGM:
        """Return the fitted model saved in ``folder``; give ``label`` again when it is a Python function.

        Raises
        ------
        ModelError : the folder holds something else, a newer format, or labels that cannot be rebuilt.
        """
        return FittedConditionalSGM.load(folder, label)

    def sample(self, *_: Any, **__: Any) -> Array:
        """Raise: only what :meth:`fit` returns can sample."""
        raise ModelError("this ConditionalSGM is not fitted", "use the model that fit(data, seed=...) returns")


class FittedConditionalSGM:
    """A trained model of structures given CV values, as :meth:`ConditionalSGM.fit` returns it.

    Attributes
    ----------
    representation, labels, schedule : as given, the representation fitted.
    imposed : per label, the coordinate of x it is imposed on, or None.
    free : indices of the coordinates of x that the network generates.
    label_range : the label values of the training data; ``label_range.covers(value)``.
    history : what the training did; None for a loaded model.
    """

    def __init__(
        self,
        representation: Representation,
        labels: tuple[CollectiveVariable, ...],
        schedule: NoiseSchedule,
        width: int,
        depth: int,
        imposed: tuple[int | None, ...],
        label_range: LabelRange,
        seed: int = 0,
    ) -> None:
        self.representation, self.labels, self.schedule, self.imposed, self.label_range = (
            representation, labels, schedule, imposed, label_range,
        )  # fmt: skip
        self.free = np.setdiff1d(np.arange(representation.dimension), [i for i in imposed if i is not None])
        if len(self.free) == 0:
            raise ModelError("every coordinate is imposed by a label, so nothing is left to generate", "drop a label, or impose=False")
        self.circular = torch.from_numpy(np.asarray(representation.circular[self.free]))
        if bool(self.circular.any()) and not isinstance(schedule, EDM):
            raise ModelError(f"circular coordinates cannot use {type(schedule).__name__}, which scales angles", "use schedule=EDM(...)")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer_seed(seed, "network"))
            self.network = ScoreMLP(len(self.free), self.circular, label_range.encoded_size, width, depth).eval()
        self.denoiser: Denoiser = NetworkDenoiser(self.network, schedule)
        self.width, self.depth = width, depth
        self.history: TrainingResult | None = None

    def sample(
        self, cv_values: Any, n: int | None = None, *, seed: int, solver: str = "dpmpp_2m", n_calls: int = 20, guidance: float = 1.0
    ) -> Array:
        """Return structures (n, n_atoms, 3) in nm at given CV values; they are seeds and carry no weight.

        Parameters
        ----------
        cv_values : one label: a number (with ``n``) or (n,); several labels: (n_labels,) with ``n``, or (n, n_labels).
        solver, n_calls : how the reverse process is solved and how many network calls it may take.
        guidance : 1 samples the conditional distribution; larger values crowd where the label is most certain.

        Raises
        ------
        DataError : label values of the wrong shape, or not finite.
        """
        values = as_labels(cv_values, len(self.labels), n)
        condition = torch.from_numpy(self.label_range.encode(values)).float()
        generator = torch.Generator().manual_seed(integer_seed(seed, "sample"))
        noise = solvers.initial_noise(self.schedule, len(values), len(self.free), self.circular, generator)
        denoiser: Denoiser = self.denoiser if guidance == 1.0 else Guided(self.denoiser, guidance)
        with torch.no_grad():
            parts = [
                solvers.sample(
                    denoiser, self.schedule, z, solver=solver, n_calls=n_calls, condition=c, circular=self.circular, generator=generator
                )
                for z, c in zip(torch.split(noise, _CHUNK), torch.split(condition, _CHUNK), strict=True)
            ]
        return self.representation.decode(self._complete(torch.cat(parts), values))

    def sample_with_log_prob(self, cv_values: Any, n: int | None = None, *, seed: int, **settings: Any) -> ProposedStructures:
        """Return structures from the probability-flow equation with their exact log-density under it.

        ``settings`` go to :func:`couloir.generative.likelihood.sample_with_log_prob`.
        """
        values = as_labels(cv_values, len(self.labels), n)
        condition = torch.from_numpy(self.label_range.encode(values))
        generator = torch.Generator().manual_seed(integer_seed(seed, "sample"))
        noise = solvers.initial_noise(self.schedule, len(values), len(self.free), self.circular, generator)
        free, density = likelihood.sample_with_log_prob(
            self.denoiser, self.schedule, noise.double(), condition=condition, circular=self.circular, **settings
        )
        x = self._complete(free, values)
        log_prob = _numpy(density.values) + self._log_jacobian(x)
        return ProposedStructures(self.representation.decode(x), values, log_prob, _numpy(density.error))

    def log_prob(self, positions: Array, cv_values: Any = None, **settings: Any) -> Array:
        """Return log p(structure | CV values) (n,) in Cartesian volume modulo rigid motion.

        Parameters
        ----------
        positions : (n, n_atoms, 3) nm.
        cv_values : as in :meth:`sample`; None evaluates the labels on the structures themselves.

        Returns
        -------
        log_prob : (n,); -inf where an imposed label is not the CV value of the structure.
        """
        x, values = self._encode(positions, cv_values)
        return self.log_prob_internal(x, values, **settings) + self._log_jacobian(x)

    def log_prob_internal(self, x: Array, cv_values: Any, **settings: Any) -> Array:
        """Return log p(generated coordinates | CV values) (n,) of vectors x (n, dimension) of the representation."""
        values = as_labels(cv_values, len(self.labels), len(x))
        condition = torch.from_numpy(self.label_range.encode(values))
        free = torch.from_numpy(np.ascontiguousarray(x[:, self.free]))
        density = likelihood.log_prob(self.denoiser, self.schedule, free, condition=condition, circular=self.circular, **settings)
        apart = np.abs(x - self._complete(free, values))
        circular = np.asarray(self.representation.circular)
        apart[:, circular] = np.minimum(apart[:, circular], 2 * np.pi - apart[:, circular])
        return np.where(apart.max(axis=1) > 1e-4, -np.inf, _numpy(density.values))

    def _encode(self, positions: Array, cv_values: Any) -> tuple[Array, Array]:
        batch = np.asarray(positions, dtype=np.float64)
        batch = batch[None] if batch.ndim == 2 else batch
        if cv_values is None:
            cv_values = np.stack([cv.evaluate(batch) for cv in self.labels], axis=1)
        return self.representation.encode(batch), as_labels(cv_values, len(self.labels), len(batch))

    def _log_jacobian(self, x: Array) -> Array:
        """Return what turns a log-density of the generated coordinates into one of structures, (n,)."""
        jacobian = -self.representation.log_volume(x)
        for index in self.imposed:
            if index is not None:
                jacobian = jacobian + np.log(self.representation.scale_of(index))
        return jacobian

    def _complete(self, free: Tensor, values: Array) -> Array:
        """Return x (n, dimension) from the generated coordinates (n, n_free) and the labels imposed on the others."""
        x = np.empty((len(values), self.representation.dimension))
        x[:, self.free] = _numpy(free)
        for i, index in enumerate(self.imposed):
            if index is not None:
                x[:, index] = self.representation.standardize(index, values[:, i])
        return x

    def as_state(self, labels: LabelDensity | Sequence[float], **settings: Any) -> ModelState:
        """Return the model as one normalized density of structures, for :func:`couloir.sampling.model_samples.sample_model` and MBAR.

        Parameters
        ----------
        labels : the density its labels are drawn from, e.g. ``UniformLabels``; for learned labels one value (n_labels,).
        settings : how the density is integrated (:func:`couloir.generative.likelihood.log_prob`).

        Raises
        ------
        ModelError : labels that are drawn for a model that learned them, or fixed for one that imposes them.
        """
        from couloir.generative.model_state import ModelState

        return ModelState(self, labels, settings) if settings else ModelState(self, labels)

    def digest(self) -> str:
        """Return a hash of the weights and the representation."""
        total = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            total.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        for name, array in sorted(self.representation.arrays().items()):
            total.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the model to ``folder``: ``weights.safetensors`` and ``model.json``."""
        config = {
            "representation": self.representation.to_dict(), "schedule": self.schedule.to_dict(), "width": self.width, "depth": self.depth,
            "imposed": list(self.imposed), "label_range": self.label_range.to_dict(), "labels": [described(cv) for cv in self.labels],
        }  # fmt: skip
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for part, arrays in (("representation", self.representation.arrays()), ("label_range", self.label_range.arrays())):
            tensors |= {f"{part}/{name}": torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        save_model(folder, _KIND, _VERSION, config, tensors)

    @classmethod
    def load(cls, folder: str | Path, label: CollectiveVariable | Sequence[CollectiveVariable] | None = None) -> FittedConditionalSGM:
        """Return the model saved in ``folder``; see :meth:`ConditionalSGM.load`."""
        config, tensors = load_model(folder, _KIND, _VERSION)
        part: dict[str, dict[str, Tensor]] = {"network": {}, "representation": {}, "label_range": {}}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            part[kind][name] = value
        arrays = {kind: {name: value.numpy() for name, value in part[kind].items()} for kind in ("representation", "label_range")}
        seen = LabelRange.restore(config["label_range"], arrays["label_range"])
        model = cls(
            representation_from(config["representation"], arrays["representation"]), rebuilt_labels(config["labels"], seen, label, folder),
            schedule_from_dict(config["schedule"]), config["width"], config["depth"], tuple(config["imposed"]), seen,
        )  # fmt: skip
        model.network.load_state_dict(part["network"])
        return model

    def __str__(self) -> str:
        how = ", ".join(f"{cv.name} ({'imposed' if i is not None else 'learned'})" for cv, i in zip(self.labels, self.imposed, strict=True))
        size = sum(p.numel() for p in self.network.parameters())
        lines = [f"ConditionalSGM given {how}: {len(self.free)} coordinates, {size:,} parameters", f"  labels seen  {self.label_range}"]
        return "\n".join(lines if self.history is None else [*lines, f"  {self.history}"])


def _positions(data: Trajectory | Sequence[Trajectory] | Array) -> Array:
    if isinstance(data, Trajectory):
        return data.positions
    if not isinstance(data, np.ndarray) and len(data) and all(isinstance(part, Trajectory) for part in data):
        if len({part.positions.shape[1:] for part in data}) > 1:
            raise DataError("the trajectories differ in their atoms")
        return np.concatenate([part.positions for part in data])
    positions = np.asarray(data, dtype=np.float64)
    if positions.ndim != 3 or len(positions) == 0:
        raise DataError(f"positions have shape {positions.shape}, expected (n_frames, n_atoms, 3) with at least one frame")
    if not np.isfinite(positions).all():
        frame = int(np.flatnonzero(~np.isfinite(positions).all(axis=(1, 2)))[0])
        raise DataError(f"positions of frame {frame} are not finite", "remove the damaged frames, or find out why they are there")
    return positions


def _numpy(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)
