"""What a model generated, as samples of a thermodynamic state: with weights, beside physical windows or alone.

:func:`sample_model` draws structures whose density is known and asks the engine for their energies; each costs one force
evaluation, not a trajectory.  Alone they are importance samples, w = exp(-U/kT) / q; :func:`with_windows` puts them beside
umbrella windows for MBAR (Shirts & Chodera 2008), which then needs q on the windows' frames as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from couloir.analysis import free_energy_surface, mbar
from couloir.analysis.reduced import ReducedState, effective_number
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import FreeEnergySurface
from couloir.cv.base import CollectiveVariable
from couloir.errors import DataError, Finding
from couloir.sampling.gates import GeometryGates
from couloir.sampling.independence import EnergyEngine
from couloir.trajectory import Array

HIGHEST = 1e9
"""kJ/mol; the energy that a broken structure counts with: its weight is zero all the same."""
INEXACT = 0.1
"""Error of a log-density above which it is no weight."""
ENOUGH = 50
"""Effective samples below which weights are not to be trusted."""


class State(Protocol):
    """A normalized density of structures (``ModelState``); its samples have ``positions``, ``log_prob`` and ``error``."""

    def sample(self, n: int, *, seed: int) -> Any: ...
    def log_prob(self, positions: Array) -> Array: ...


@dataclass(frozen=True, eq=False)
class ModelSamples:
    """Structures drawn from a model's density, with their physical energies.

    Attributes
    ----------
    samples : CV values and energies in one window without bias; walkers are single rows, because rows are independent.
    positions : (n, n_atoms, 3) nm.
    log_prob : (n,) of the density they were drawn from.
    error : (n,) estimated error of ``log_prob`` from integrating the model's flow; NaN where it was not checked.
    """

    samples: BiasedSamples
    positions: Array
    log_prob: Array
    error: Array

    @property
    def log_weights(self) -> Array:
        """(n,) logarithms of normalized importance weights in the unbiased state."""
        u = -self.samples.potential / self.samples.kT[0] - self.log_prob
        return np.asarray(u - np.logaddexp.reduce(u))

    @property
    def effective_samples(self) -> float:
        """Kish effective sample size of the weights."""
        return effective_number(self.log_weights)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Too few effective samples, or densities that are not known well enough to be weights."""
        n, out = self.effective_samples, []
        if n < ENOUGH:
            text = f"{len(self.positions)} structures of the model are worth {n:.3g} samples of the molecule"
            out.append(Finding("model-far-off", text, "train the model on more data, and do not trust its weights before"))
        checked = self.error[np.isfinite(self.error)]
        if len(checked) and np.median(checked) > INEXACT:
            text = f"log-densities are off by {np.median(checked):.2g} (median) from integrating the model's flow in too few steps"
            out.append(Finding("inexact-density", text, "raise n_steps in its settings"))
        return tuple(out)

    @property
    def state(self) -> ReducedState:
        """The model as a state of :func:`couloir.analysis.mbar`, for these rows alone."""
        return ReducedState(-self.log_prob, window=0, name="model")

    def surface(self, along: Any, **options: Any) -> FreeEnergySurface:
        """Return the free energy along recorded CVs; ``options`` are those of :func:`couloir.analysis.free_energy_surface`."""
        return free_energy_surface(self.samples, along, weights=mbar(self.samples, states=[self.state]), **options)

    def __len__(self) -> int:
        return len(self.positions)

    def __str__(self) -> str:
        share = self.effective_samples / len(self)
        lines = [f"ModelSamples: {len(self)} structures worth {self.effective_samples:.4g} ({share:.1%})"]
        return "\n".join([*lines, *(str(finding) for finding in self.findings)])


def sample_model(
    state: State, engine: EnergyEngine, n: int, cvs: Sequence[CollectiveVariable], *, seed: int, gates: GeometryGates | None = None
) -> ModelSamples:
    """Draw ``n`` structures from a model's density and weigh them by the engine's energies.

    Parameters
    ----------
    cvs : recorded on every structure.
    gates : of the molecule; structures of another handedness, or with another cis or trans peptide bond, get no weight: force fields
        find mirror images as good, dynamics never makes them.

    Raises
    ------
    DataError : no structure has a finite density and energy.
    """
    drawn, energy = judged_structures(state, engine, n, seed=seed, gates=gates)
    whole = np.isfinite(drawn.log_prob)
    if not (whole & (energy < HIGHEST)).any():
        raise DataError(f"none of {n} structures has a finite density and energy", "train the model longer, or look at what it makes")
    log_prob, error = np.asarray(drawn.log_prob), np.asarray(drawn.error)
    return weighed_structures(drawn.positions[whole], log_prob[whole], energy[whole], error[whole], cvs, engine.temperature)


def judged_structures(state: State, engine: EnergyEngine, n: int, *, seed: int, gates: GeometryGates | None) -> tuple[Any, Array]:
    """Return what a state draws, and the energies (n,); broken structures and those that fail the gates have :data:`HIGHEST`."""
    drawn = state.sample(n, seed=seed)
    energy = np.array(engine.energies(drawn.positions), dtype=np.float64)
    energy = np.where(np.isfinite(energy), np.minimum(energy, HIGHEST), HIGHEST)
    if gates is not None:
        checks = gates.check(drawn.positions)
        energy[~(checks["chirality"] & checks["peptide"])] = HIGHEST
    return drawn, energy


def weighed_structures(
    positions: Array, log_prob: Array, energy: Array, error: Array, cvs: Sequence[CollectiveVariable], temperature: float
) -> ModelSamples:
    """Return structures (n, n_atoms, 3) of known density (n,) and energy (n,), kJ/mol, with the CVs evaluated on them."""
    rows = np.arange(len(positions))
    samples = BiasedSamples(
        tuple(cv.name for cv in cvs), tuple(cv.unit for cv in cvs), tuple(cv.period for cv in cvs),
        np.stack([cv.evaluate(positions) for cv in cvs], axis=1), energy, np.zeros(len(rows), dtype=np.int64), rows,
        np.zeros(len(rows)), (None,), np.array([temperature]),
    )  # fmt: skip
    return ModelSamples(samples, positions, log_prob, error)


def with_windows(
    generated: ModelSamples,
    state: State,
    windows: BiasedSamples,
    frames: Array,
    modes: Callable[[Array], npt.NDArray[np.int64]] | None = None,
) -> tuple[BiasedSamples, tuple[ReducedState, ...]]:
    """Return windows and the model's samples as one set, and its further states: for ``mbar(samples, states=states)``.

    MBAR takes the rows of a window for samples of that window.  Walkers that never leave the mode they were seeded in are not: their
    rows say how the window looks *inside* each mode, not how much each mode weighs.  With ``modes`` every mode of a window
    is a state of its own, infinitely high outside of the mode, and the weights between modes come from the model's samples alone.

    Parameters
    ----------
    windows : rows of umbrella windows, with their potential energies.
    frames : (n_rows, n_atoms, 3) the configuration of every one of these rows.
    modes : positions (n, n_atoms, 3) -> (n,) number of the mode each lies in, 0, 1, ...; None where dynamics connects all modes.

    Raises
    ------
    DataError : there is not one configuration per row.
    """
    if len(frames) != len(windows):
        raise DataError(f"{len(frames)} configurations for {len(windows)} rows", "give the rows that frames were kept of")
    if modes is not None:
        windows, home = _split(windows, np.asarray(modes(frames), dtype=np.int64))
    joined = BiasedSamples.join(windows, generated.samples)
    log_prob = np.concatenate([state.log_prob(frames), generated.log_prob])
    model = ReducedState(-log_prob, window=windows.n_windows, name="model")
    if modes is None:
        return joined, (model,)
    where = np.concatenate([modes(frames), modes(generated.positions)])
    inside = []
    for k, mode in enumerate(home):
        u = (joined.potential + joined.bias_energy(k, joined.values)) / joined.kT[k]
        inside.append(ReducedState(np.where(where == mode, u, np.inf), window=k, name=f"mode {mode}"))
    return joined, (*inside, model)


def _split(windows: BiasedSamples, mode: npt.NDArray[np.int64]) -> tuple[BiasedSamples, list[int]]:
    """Return the same rows with a window for each mode that a window visited, and the modes of these windows."""
    pairs, number = np.unique(np.stack([windows.window, mode], axis=1), axis=0, return_inverse=True)
    split = replace(
        windows, window=number.ravel(), biases=tuple(windows.biases[w] for w, _ in pairs),
        temperatures=windows.temperatures[pairs[:, 0]],
    )  # fmt: skip
    return split, pairs[:, 1].tolist()
