r"""The committor learned from shots, as a collective variable.

A network z(y) of features y gives the logit of p_B = 1 / (1 + exp(-z)).  It is fitted to how shots from configurations i
ended, k_A times in A and k_B times in B, by the binomial likelihood (Jung et al., Nat. Comput. Sci. 3, 334 (2023))

    -log L = - sum_i [ k_A log(1 - p_B(y_i)) + k_B log p_B(y_i) ] = sum_i [ k_A softplus(z_i) + k_B softplus(-z_i) ]

so one shot per configuration is as good as many.  Training stops where the likelihood of configurations held out is best.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from couloir.cv._native import check_name, constant
from couloir.cv.base import CollectiveVariable
from couloir.cv.features import Features
from couloir.cv.reliability import Reliability, reliability, shot_counts
from couloir.errors import DataError, Finding, ModelError
from couloir.streams import stream
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj
    import openmm

IntArray = npt.NDArray[np.int64]
Layer = tuple[Array, Array]
"""Matrix (n_in, n_out) and offset (n_out,)."""

_KIND, _VERSION = "learned_committor", 1
_CHUNK = 4096
_FEWEST = 10


@dataclass(frozen=True)
class CommittorCoordinate(CollectiveVariable):
    """A learned committor as a CV: the logit of p_B, which changes everywhere, or p_B itself.

    Bias the logit rather than p_B, whose gradient dies out in A and B.  As a bias it runs through OpenMM's PythonForce (see
    :mod:`couloir.cv.custom`), under a millisecond per step for small networks.

    Attributes
    ----------
    features : what the positions become first.
    matrices, offsets : of the layers, with tanh between; the first holds the normalization of the features.
    output : ``"logit"`` or ``"p"``.
    """

    features: Features
    matrices: tuple[tuple[tuple[float, ...], ...], ...] = field(repr=False)
    offsets: tuple[tuple[float, ...], ...] = field(repr=False)
    output: Literal["logit", "p"] = "logit"
    name: str = "committor"
    unit: str = field(default="", init=False, repr=False)
    period: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if isinstance(self.features, Mapping):
            object.__setattr__(self, "features", Features.from_dict(self.features))
        if self.output not in ("logit", "p"):
            raise DataError(f"{self.name!r} has the unknown output {self.output!r}", "use 'logit' or 'p'")
        _check_layers(self._layers, len(self.features))

    @cached_property
    def _layers(self) -> tuple[Layer, ...]:
        return tuple(
            (np.array(w, dtype=np.float64), np.array(b, dtype=np.float64)) for w, b in zip(self.matrices, self.offsets, strict=True)
        )

    def compute(self, positions: Any, xp: Any) -> Any:
        layers = [(constant(w, positions, xp), constant(b, positions, xp)) for w, b in self._layers]
        starts = range(0, max(len(positions), 1), _CHUNK)
        parts = [network(self.features.compute(positions[i : i + _CHUNK], xp), layers, xp) for i in starts]
        logit = parts[0] if len(parts) == 1 else xp.concatenate(parts)
        return logit if self.output == "logit" else _probability(logit, xp)

    def to_dict(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {"type": _KIND, **plain, "features": self.features.to_dict()}

    def save(self, file: str | Path, topology: mdtraj.Topology | None = None) -> None:
        """Write the CV with its features to one JSON file, which a run file can name as ``[cv.NAME]``.

        Parameters
        ----------
        topology : of the system it belongs to; the names of its atoms are then checked whenever the file is used.

        Raises
        ------
        DataError : the topology lacks atoms of the features.
        """
        from couloir.cv.committor_file import write_committor

        write_committor(file, self, topology)

    @classmethod
    def load(cls, file: str | Path, topology: mdtraj.Topology | None = None) -> CommittorCoordinate:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ModelError : there is no such file, or it holds something else or is damaged.
        DataError : the committor was learned for other atoms than those of ``topology``.
        """
        from couloir.cv.committor_file import read_committor

        return read_committor(file, topology)

    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        import torch

        from couloir.cv.custom import FunctionCV

        if max(self.features.indices, default=0) > 2:
            raise DataError(f"{self.name!r} needs more than three coordinates of a particle", "use a toy engine")
        atoms = self.features.atoms
        reduced = CommittorCoordinate(self.features.on(atoms), self.matrices, self.offsets, self.output, self.name)
        return FunctionCV(lambda x: reduced.compute(x, torch), self.name, atoms=atoms).to_openmm_energy(expression, parameters)


def network(y: Any, layers: Sequence[tuple[Any, Any]], xp: Any) -> Any:
    """Return the logit (n,) of features y (n, n_features): linear layers, arrays of module ``xp`` like y, with tanh between."""
    for i, (matrix, offset) in enumerate(layers):
        y = (xp.tanh(y) if i else y) @ matrix + offset
    return y[:, 0]


def _probability(logit: Any, xp: Any) -> Any:
    return 0.5 * (1 + xp.tanh(0.5 * logit))  # as the logistic function, without overflow


@dataclass(frozen=True, eq=False)
class FittedCommittor:
    """A committor learned from shots.

    Attributes
    ----------
    layers : of the network; the first holds the normalization of the features.
    train_loss, held_out_loss : -log likelihood per shot, of the configurations trained on and of those held out.
    constant_loss : that of those held out, if the committor were the same everywhere.
    held_out : calibration on the configurations held out.
    n_configurations, n_shots, n_epochs : what it was learned from, and how long.
    warnings : what should be known before it is used.
    """

    layers: tuple[Layer, ...]
    train_loss: float
    held_out_loss: float
    constant_loss: float
    held_out: Reliability
    n_configurations: int
    n_shots: int
    n_epochs: int
    warnings: tuple[Finding, ...] = ()

    @property
    def n_features(self) -> int:
        """How many features the network takes."""
        return len(self.layers[0][0])

    def logit(self, y: Any) -> Array:
        """Return log p_B/(1 - p_B), (n,), of features y (n, n_features)."""
        return np.asarray(network(_features(y, self.n_features), self.layers, np))

    def p(self, y: Any) -> Array:
        """Return p_B (n,) of features y (n, n_features)."""
        return np.asarray(_probability(self.logit(y), np))

    def coordinate(self, features: Features, name: str = "committor", output: Literal["logit", "p"] = "logit") -> CommittorCoordinate:
        """Return the committor as a CV of positions, from which ``features`` gives what it was learned from.

        Raises
        ------
        DataError : the number of features differs.
        """
        matrices = tuple(tuple(map(tuple, w.tolist())) for w, _ in self.layers)
        return CommittorCoordinate(features, matrices, tuple(tuple(b.tolist()) for _, b in self.layers), output, name)

    def save(self, folder: str | Path) -> None:
        """Write the model to ``folder``: ``weights.safetensors`` and ``model.json``."""
        from safetensors.numpy import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{i}": np.ascontiguousarray(a) for i, layer in enumerate(self.layers) for name, a in zip("wb", layer, strict=True)
        }
        tensors |= {f"held_out.{f.name}": getattr(self.held_out, f.name) for f in fields(Reliability)}
        data = save(tensors)
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        findings = [[w.code, w.message, w.fix] for w in self.warnings]
        sidecar = {"kind": _KIND, "version": _VERSION, "sha256": hashlib.sha256(data).hexdigest(), "config": numbers, "warnings": findings}
        for file, content in (("weights.safetensors", data), ("model.json", json.dumps(sidecar, indent=1).encode())):
            part = folder / f"{file}.part"
            part.write_bytes(content)
            part.replace(folder / file)

    @classmethod
    def load(cls, folder: str | Path) -> FittedCommittor:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ModelError : the folder holds no learned committor, or a damaged one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)
        try:
            sidecar = json.loads((folder / "model.json").read_text())
            data = (folder / "weights.safetensors").read_bytes()
            if (sidecar["kind"], sidecar["version"]) != (_KIND, _VERSION) or hashlib.sha256(data).hexdigest() != sidecar["sha256"]:
                raise ModelError(f"{folder} holds no learned committor of format {_VERSION}, or files of two saves", "save it again")
            tensors = load(data)
            layers = tuple((tensors[f"w.{i}"], tensors[f"b.{i}"]) for i in range(sum(name.startswith("w.") for name in tensors)))
            held_out = Reliability(**{f.name: tensors[f"held_out.{f.name}"] for f in fields(Reliability)})
            numbers = {name: sidecar["config"][name] for name in _NUMBERS}
            return cls(layers, held_out=held_out, warnings=tuple(Finding(*w) for w in sidecar["warnings"]), **numbers)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(f"{folder} holds no learned committor that can be read: {error}", "save it again") from error

    def __str__(self) -> str:
        sizes = " x ".join(str(len(w)) for w, _ in self.layers)
        return "\n".join([
            f"Learned committor of {self.n_features} features ({sizes} x 1), from {self.n_shots} shots of {self.n_configurations} "
            f"configurations, {self.n_epochs} epochs",
            f"  -log likelihood per shot: {self.train_loss:.3f} (trained), {self.held_out_loss:.3f} (held out), "
            f"{self.constant_loss:.3f} (one committor for all)",
            *(f"  {warning}" for warning in self.warnings),
        ])  # fmt: skip


_NUMBERS = ("train_loss", "held_out_loss", "constant_loss", "n_configurations", "n_shots", "n_epochs")


@dataclass(frozen=True)
class LearnedCommittor:
    """How to learn a committor from shots; :meth:`fit` does it.

    Parameters
    ----------
    hidden : widths of the hidden layers; empty for a linear logit.
    learning_rate, weight_decay, batch_size : of AdamW.
    held_out : share of the configurations that training does not see.
    patience : epochs without a better held-out likelihood before training stops.
    max_epochs : when it stops at the latest.

    Raises
    ------
    DataError : a setting is out of range.
    """

    hidden: Sequence[int] = (32, 32)
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    batch_size: int = 256
    held_out: float = 0.2
    patience: int = 40
    max_epochs: int = 2000

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        positive = (*self.hidden, self.batch_size, self.patience, self.max_epochs, self.learning_rate)
        if min(positive) <= 0 or self.weight_decay < 0 or not 0 < self.held_out < 1:
            raise DataError(f"a setting of {self} is out of range", "widths, rate and numbers must be positive, held_out within (0, 1)")

    def fit(self, y: Any, to_a: Any, to_b: Any, *, seed: int) -> FittedCommittor:
        """Learn p_B from shots.

        Parameters
        ----------
        y : (n, n_features) features of the configurations.
        to_a, to_b : (n,) how many shots from each ended in A and in B; configurations without any are left out.

        Raises
        ------
        DataError : the arrays do not fit or are not finite, fewer than ten configurations have shots, or all ended alike.
        """
        x = _features(y, None)
        a, b = shot_counts(to_a, to_b, len(x))
        used = np.flatnonzero(a + b)
        if len(used) < _FEWEST or not a.any() or not b.any():
            raise DataError(
                f"{len(used)} configurations have shots, {a.sum()} to A and {b.sum()} to B: nothing to learn from",
                f"shoot from {_FEWEST} configurations or more between A and B",
            )
        rng = stream(seed, "learned_committor")
        order = rng.permutation(used)
        aside = max(2, round(self.held_out * len(order)))
        test, train = order[:aside], order[aside:]
        mean, scale = x[train].mean(axis=0), x[train].std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        layers, losses, epochs = self._train((x - mean) / scale, a, b, train, test, rng)
        first = layers[0][0] / scale[:, None]
        whole = ((first, layers[0][1] - mean @ first), *layers[1:])
        share = np.clip(b[train].sum() / (a + b)[train].sum(), 1e-6, 1 - 1e-6)
        alike = np.full(len(test), np.log(share / (1 - share)))
        learned = network(x[test], whole, np)
        n_test = (a + b)[test].sum()
        constant_loss = float(_loss(alike, a[test], b[test]).sum() / n_test)
        gain = (_loss(alike, a[test], b[test]) - _loss(learned, a[test], b[test])) / n_test
        calibration = reliability(_probability(learned, np), a[test], b[test])
        warnings = _findings(float(gain.sum()), float(gain.std(ddof=1) * np.sqrt(len(gain))))
        return FittedCommittor(whole, *losses, constant_loss, calibration, len(used), int((a + b).sum()), epochs, warnings)

    def _train(
        self, x: Array, a: IntArray, b: IntArray, train: IntArray, test: IntArray, rng: np.random.Generator
    ) -> tuple[tuple[Layer, ...], tuple[float, float], int]:
        """Return the layers with the best held-out likelihood, -log likelihoods per shot, and the number of epochs."""
        import torch

        sizes = (x.shape[1], *self.hidden, 1)
        drawn = [(rng.normal(size=(i, o)) / np.sqrt(i), np.zeros(o)) for i, o in pairwise(sizes)]
        drawn[-1] = (drawn[-1][0] * 0.1, np.full(1, np.log((b[train].sum() + 0.5) / (a[train].sum() + 0.5))))
        layers = [(torch.tensor(w, requires_grad=True), torch.tensor(c, requires_grad=True)) for w, c in drawn]
        inputs, k_a, k_b = (torch.tensor(np.asarray(v, dtype=np.float64)) for v in (x, a, b))

        def loss(rows: IntArray) -> Any:
            z = network(inputs[rows], layers, torch)
            shots = k_a[rows] * torch.nn.functional.softplus(z) + k_b[rows] * torch.nn.functional.softplus(-z)
            return shots.sum() / (k_a[rows] + k_b[rows]).sum()

        optimizer = torch.optim.AdamW([p for layer in layers for p in layer], lr=self.learning_rate, weight_decay=self.weight_decay)
        best, kept, best_epoch, epoch = np.inf, drawn, 0, 0
        while epoch < self.max_epochs and epoch - best_epoch < self.patience:
            epoch += 1
            shuffled = rng.permutation(train)
            for at in range(0, len(shuffled), self.batch_size):
                optimizer.zero_grad()
                loss(shuffled[at : at + self.batch_size]).backward()
                optimizer.step()
            with torch.no_grad():
                now = float(loss(test))
            if now < best:
                best, best_epoch = now, epoch
                kept = [(w.detach().numpy().copy(), c.detach().numpy().copy()) for w, c in layers]
        for layer, values in zip(layers, kept, strict=True):
            for parameter, value in zip(layer, values, strict=True):
                parameter.data = torch.tensor(value)
        with torch.no_grad():
            return tuple(kept), (float(loss(train)), best), epoch


def _loss(logit: Array, a: IntArray, b: IntArray) -> Array:
    """Return -log likelihood (n,) of the shots of each configuration."""
    return np.asarray(a * np.logaddexp(0, logit) + b * np.logaddexp(0, -logit))


def _findings(gain: float, error: float) -> tuple[Finding, ...]:
    # the best epoch was chosen on these same configurations, so a gain within its error is none
    if gain > 2 * error:
        return ()
    message = f"held-out shots are predicted no better than by one committor for all (gain {gain:.3f} +- {error:.3f} per shot)"
    return (Finding("committor-not-learned", message, "choose other features, or shoot from more configurations"),)


def _features(y: Any, n: int | None) -> Array:
    given = np.asarray(y, dtype=np.float64)
    if given.ndim != 2 or (n is not None and given.shape[1] != n) or not given.shape[1] or not np.isfinite(given).all():
        raise DataError(f"features have shape {given.shape}, expected finite numbers (n, {'n_features' if n is None else n})")
    return given


def _check_layers(layers: Sequence[Layer], n_features: int) -> None:
    sizes = [n_features, *(len(offset) for _, offset in layers)]
    shapes = [matrix.shape for matrix, _ in layers]
    if not layers or sizes[-1] != 1 or shapes != list(pairwise(sizes)):
        raise DataError(
            f"layers of shapes {shapes} do not lead from {n_features} features to one number", "give the features it was learned from"
        )
