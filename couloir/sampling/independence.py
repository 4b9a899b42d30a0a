"""Generative moves: a model proposes a whole new configuration inside a window, physics accepts it by an exact rule.

A Metropolis independence move at fixed CV value.  With target pi(x) ~ exp(-U(x)/kT - b(CV(x))/kT) and proposals from
p(x | c), whose density is known (:mod:`couloir.generative.likelihood`), a walker at x with c = CV(x) goes to x' with

    min(1, w(x') / w(x)),        w(x) = exp(-U(x)/kT - b(CV(x))/kT) / p(x | c)

(Hastings, Biometrika 57, 97 (1970); Liu, Stat. Comput. 6, 113 (1996)).  Where the model imposes its labels,
x' has the CV value of x, so the bias cancels, and every window and every neighbour keeps its own distribution of the CV; where it
learned them, c is the centre of the window.  Either way the Boltzmann distribution in the window is left unchanged, whatever the model:
a poor model makes rare moves, never wrong ones.  Dynamics between the moves does what the model cannot.  Velocities after
an accepted move are drawn anew.

A molecule keeps its handedness and the cis or trans of its peptide bonds: force fields find mirror images as good, dynamics never makes
them, so that a proposal of another isomer than the walker's is rejected, which is a target confined to that isomer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import Bias, HarmonicBias
from couloir.errors import Finding, ModelError
from couloir.sampling.engine import Engine
from couloir.sampling.gates import isomer
from couloir.store import Store
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array, State

if TYPE_CHECKING:
    import mdtraj

FEW = 0.01
"""Share of accepted moves below which a model does not help."""


class Proposed(Protocol):
    """Structures with the log-density they were drawn with (``ProposedStructures``)."""

    positions: Array
    log_prob: Array


class DensityModel(Protocol):
    """A conditional model whose density is known (``FittedConditionalSGM``)."""

    @property
    def labels(self) -> tuple[CollectiveVariable, ...]: ...
    @property
    def imposed(self) -> tuple[int | None, ...]: ...
    def sample_with_log_prob(self, cv_values: Any, n: int | None = None, *, seed: int, **settings: Any) -> Proposed: ...
    def log_prob(self, positions: Array, cv_values: Any = None, **settings: Any) -> Array: ...
    def digest(self) -> str: ...


@runtime_checkable
class EnergyEngine(Engine, Protocol):
    """An engine that can also judge configurations."""

    def energies(self, positions: Array) -> Array: ...


@dataclass(frozen=True, eq=False)
class Moved:
    """What one round of moves did to a batch of walkers.

    Attributes
    ----------
    states : after the moves.
    accepted : (n_walkers,).
    log_ratio : (n_walkers,) ln w(x') - ln w(x); -inf for a proposal that has no finite energy, or is another isomer.
    """

    states: list[State]
    accepted: npt.NDArray[np.bool_]
    log_ratio: Array


@dataclass(frozen=True, eq=False)
class IndependenceMoves:
    """Generative moves for :meth:`UmbrellaSampling.run`.

    Parameters
    ----------
    model : a fitted conditional model with a density; its labels must all be imposed, or none.
    every : exchange intervals between moves.
    settings : how its density is integrated (``n_steps``, ``method``; see :func:`couloir.generative.likelihood.log_prob`).

    Raises
    ------
    ModelError : some labels are imposed and some learned.
    """

    model: DensityModel
    every: int = 1
    settings: dict[str, Any] = field(default_factory=lambda: {"n_steps": 50})

    def __post_init__(self) -> None:
        if len({index is None for index in self.model.imposed}) > 1:
            raise ModelError("the model imposes some of its labels and learned others", "fit it with impose=True or impose=False")
        if self.every < 1:
            raise ModelError(f"every = {self.every}", "give at least 1")

    def digest(self) -> str:
        """Return a hash of the model and how it is used, so that a store refuses to mix two."""
        return hashlib.sha256(f"{self.model.digest()} {self.every} {sorted(self.settings.items())}".encode()).hexdigest()

    def apply(
        self, engine: Engine, states: Sequence[State], biases: Sequence[Bias | None], cvs: Sequence[CollectiveVariable], seed: int
    ) -> Moved:
        """Propose one new configuration to every walker and accept it or not.

        Parameters
        ----------
        states, biases : of the walkers.
        cvs : those that biases name.

        Raises
        ------
        ModelError : the model learned a label that the windows do not restrain, or the engine cannot tell energies.
        """
        if not isinstance(engine, EnergyEngine):
            raise ModelError(f"{type(engine).__name__} cannot tell energies", "generative moves need an engine with energies(positions)")
        old = np.array([state.positions for state in states])
        given = self._labels(old, biases)
        settings = {"check": None, **self.settings}
        proposed = self.model.sample_with_log_prob(given, seed=integer_seed(seed, "proposals"), **settings)
        new = np.asarray(proposed.positions)
        after = _log_target(engine, new, biases, cvs) - proposed.log_prob
        before = _log_target(engine, old, biases, cvs) - self.model.log_prob(old, given, **settings)
        log_ratio = np.where(np.isfinite(after) & _same_isomer(engine.topology, old, new), after - before, -np.inf)
        accepted = np.log(stream(seed, "acceptance").random(len(states))) < log_ratio
        moved = [State(x, box=s.box) if yes else s for s, x, yes in zip(states, new, accepted, strict=True)]
        return Moved(moved, accepted, log_ratio)

    def _labels(self, positions: Array, biases: Sequence[Bias | None]) -> Array:
        """Return the label values (n_walkers, n_labels) that proposals are made at."""
        if self.model.imposed[0] is not None:
            return np.stack([cv.evaluate(positions) for cv in self.model.labels], axis=1)
        centers = []
        for bias in biases:
            held = dict(zip(bias.names, bias.centers, strict=True)) if isinstance(bias, HarmonicBias) else {}
            free = [cv.name for cv in self.model.labels if cv.name not in held]
            if free:
                raise ModelError(f"the model learned the label {free[0]!r}, which a window does not restrain", "bias it, or impose it")
            centers.append([held[cv.name] for cv in self.model.labels])
        return np.array(centers)


def _same_isomer(topology: mdtraj.Topology | None, old: Array, new: Array) -> npt.NDArray[np.bool_] | bool:
    return True if topology is None else np.asarray((isomer(topology, old) == isomer(topology, new)).all(axis=1))


def _log_target(engine: EnergyEngine, positions: Array, biases: Sequence[Bias | None], cvs: Sequence[CollectiveVariable]) -> Array:
    """Return -(U + bias)/kT (n_walkers,), each walker under its own bias."""
    energy = np.array(engine.energies(positions), dtype=np.float64)
    columns = {cv.name: cv.evaluate(positions) for cv in cvs}
    for i, bias in enumerate(biases):
        if bias is not None:
            energy[i] += bias.energy(np.array([[columns[name][i] for name in bias.names]]))[0]
    return -energy / engine.kT


@dataclass(frozen=True, eq=False)
class MoveReport:
    """How often generative moves were accepted.

    Attributes
    ----------
    attempted, accepted : (n_windows,).
    findings : windows in which the model hardly ever moves a walker.
    """

    attempted: npt.NDArray[np.int64]
    accepted: npt.NDArray[np.int64]
    findings: tuple[Finding, ...]

    @property
    def acceptance(self) -> Array:
        """Share of accepted moves, (n_windows,); NaN where none was tried."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.accepted / self.attempted)

    def __str__(self) -> str:
        share = self.accepted.sum() / max(1, self.attempted.sum())
        lines = [f"generative moves: {self.accepted.sum()} of {self.attempted.sum()} accepted ({share:.1%})"]
        return "\n".join([*lines, *(str(finding) for finding in self.findings)])


def move_report(store: Store, name: str, windows: npt.NDArray[np.int64]) -> MoveReport:
    """Return how the moves of a stored run went; ``windows`` (n_walkers,) says where each of its walkers lives."""
    n = int(windows.max()) + 1
    attempted, accepted = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for chunk in store.chunks(f"{name}/moves"):
        attempted += np.bincount(windows[chunk["members"]], minlength=n)
        accepted += np.bincount(windows[chunk["members"][chunk["accepted"]]], minlength=n)
    poor = np.flatnonzero((attempted > 0) & (accepted < FEW * attempted) & (attempted * FEW >= 1))
    findings: tuple[Finding, ...] = ()
    if len(poor):
        text = f"fewer than {FEW:.0%} of the generative moves were accepted in window {', '.join(map(str, poor))}"
        fix = "train the model on more data from there, or rely on dynamics and exchange alone"
        findings = (Finding("model-moves-rejected", f"{text}; they do not help there", fix),)
    return MoveReport(attempted, accepted, findings)
