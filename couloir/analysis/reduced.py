"""Reduced potentials: what MBAR needs to know about a state, whatever kind of state it is.

A window has u = (U + bias)/kT, another temperature u = U/kT', another Hamiltonian u = U'/kT, and a generative model with density q
has u = -log q (its free energy is then that of a normalized density: zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis.samples import BiasedSamples
from couloir.errors import DataError, Finding
from couloir.trajectory import Array
from couloir.units import GAS_CONSTANT, convert

if TYPE_CHECKING:
    from couloir.analysis.expectation import Expectation, Observable
    from couloir.analysis.mbar import MbarResult
    from couloir.analysis.wham import WhamResult


@dataclass(frozen=True, eq=False)
class ReducedState:
    """A thermodynamic state given by its reduced potential on every row of some samples.

    Attributes
    ----------
    reduced_potentials : (n_rows,) on the rows of all windows, also those that other states sampled; infinite where it is forbidden.
    window : number of the window of the samples whose rows were drawn from this state; None when none were.
    name : for tables.
    """

    reduced_potentials: Array
    window: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        u = np.array(self.reduced_potentials, dtype=float)
        bad = np.isnan(u) | (u == -np.inf)
        if u.ndim != 1 or bad.any() or not np.isfinite(u).any():
            found = (
                f"shape {u.shape}"
                if u.ndim != 1
                else f"{u[bad][0]} in row {int(np.flatnonzero(bad)[0])}"
                if bad.any()
                else "no finite number"
            )
            raise DataError(f"reduced potentials of state {self.name!r} hold {found}", "give one number per row, none of them NaN")
        u.setflags(write=False)
        object.__setattr__(self, "reduced_potentials", u)

    @classmethod
    def from_energies(cls, energies: Any, temperature: Any, *, window: int | None = None, name: str = "") -> ReducedState:
        """Return the state of a Hamiltonian with ``energies`` (n_rows,) in kJ/mol at ``temperature`` (K or text)."""
        return cls(np.asarray(energies, dtype=float) / (GAS_CONSTANT * convert(temperature, "K", "temperature")), window, name)

    @classmethod
    def from_model(cls, model: Any, positions: Any, *, window: int | None = None, name: str = "", batch: int = 4096) -> ReducedState:
        """Return the state that a generative model samples.

        Parameters
        ----------
        model : anything with ``log_prob(positions) -> (n,)``, the exact log-density in the coordinates of ``positions``.
        positions : (n_rows, ...) of every row, 4096 (``batch``) of them given to the model at a time.
        window : the window of the samples that holds what the model generated, if it generated any.
        """
        parts = [model.log_prob(positions[i : i + batch]) for i in range(0, len(positions), batch)]
        log_prob = [np.asarray(p.detach().cpu() if hasattr(p, "detach") else p, dtype=float) for p in parts]
        for number, part in enumerate(log_prob):
            if part.shape != (min(batch, len(positions) - number * batch),):
                raise DataError(f"log_prob of {name or type(model).__name__} has shape {part.shape}", "return one number per structure")
        return cls(-np.concatenate(log_prob) if log_prob else np.zeros(0), window, name or type(model).__name__)


@dataclass(frozen=True, eq=False)
class Reweighted:
    """All rows reweighted to one state.

    Attributes
    ----------
    samples : the rows.
    log_weights : (n_rows,) logarithm of the probability of each row; sums to 1 as weights.
    free_energy : of the state, kT, relative to what the free energies of the estimate are relative to.
    effective_samples : Kish effective sample size.
    estimate : what made the weights of the unbiased state; None for another state.
    findings : what is unsure.
    """

    samples: BiasedSamples = field(repr=False)
    log_weights: Array = field(repr=False)
    free_energy: float
    effective_samples: float
    estimate: MbarResult | WhamResult | None = field(default=None, repr=False)
    findings: tuple[Finding, ...] = ()

    @property
    def weights(self) -> Array:
        """Probability of each row, (n_rows,)."""
        return np.exp(self.log_weights)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The same as ``findings``."""
        return self.findings

    def mean(self, observable: Observable, **options: Any) -> Expectation:
        """Return the expectation value of an observable in the state, with standard error and effective sample size.

        In the unbiased state the error includes that of the weights.  In another one the weights are taken as known, so it is a lower
        bound where free energies of the windows are unsure.

        Parameters
        ----------
        observable : a recorded CV or its name, values (n_rows,), or a function of columns (:func:`couloir.analysis.expectation`).
        options : ``along``, ``bins``, ``limits``, ``period``, ``unit``, ``n_bootstrap`` and ``seed`` of that function.
        """
        from couloir.analysis.expectation import expectation

        return expectation(self.samples, observable, weights=self.weights if self.estimate is None else self.estimate, **options)

    def __str__(self) -> str:
        head = f"{len(self.samples)} rows worth {self.effective_samples:.4g} samples of a state with free energy {self.free_energy:.4g} kT"
        return "\n".join([head, *(str(f) for f in self.findings)])


def weigh_state(samples: BiasedSamples, log_weights: Array, free_energy: float, estimate: MbarResult | WhamResult | None) -> Reweighted:
    """Return rows with their weights in one state, and a finding where few of them carry it."""
    effective = effective_number(log_weights)
    findings: tuple[Finding, ...] = ()
    if effective < 50:
        message = f"{effective:.3g} effective samples of {len(samples)} rows carry the weight of the state"
        findings = (Finding("few-effective-samples", message, "sample states closer to it"),)
    return Reweighted(samples, log_weights, free_energy, effective, estimate, findings)


def effective_number(log_weights: Array) -> float:
    """Return the Kish effective sample size of rows whose weights sum to 1."""
    return float(np.exp(-np.logaddexp.reduce(2 * log_weights)))


def reweight_rows(log_mixture: Array, u: Array) -> tuple[Array, float]:
    """Return log-weights f - u - log_mixture of all rows in a state without samples, and its f (Shirts & Chodera 2008, eq. 9)."""
    log_w = -u - log_mixture
    f = -float(np.logaddexp.reduce(log_w))
    return log_w + f, f


class Mixture:
    """Reduced potentials of windows and further states on the rows of some samples, computed for a few rows at a time.

    Energies of large systems are large and only their differences matter: a constant of each state (``offsets``) is left out of
    what :meth:`potentials` returns, so that those differences keep their digits.
    """

    def __init__(self, samples: BiasedSamples, temperature: float, energies: bool, states: Sequence[ReducedState] = ()) -> None:
        self.samples, self.energies = samples, energies
        self.counts = np.concatenate([samples.counts, np.zeros(sum(s.window is None for s in states))]).astype(float)
        self._given = _place(states, samples)
        beta = 1.0 / (
            np.append(samples.kT, GAS_CONSTANT * temperature) if energies else np.full(samples.n_windows + 1, GAS_CONSTANT * temperature)
        )
        self._beta, self._beta0 = beta[:-1], float(beta[-1])
        shift = float(samples.potential.mean()) if energies else 0.0
        self._potential = samples.potential - shift if energies else np.zeros(len(samples))
        self.offsets = np.zeros(len(self.counts))
        self.offsets[: samples.n_windows] = self._beta * shift
        self.unbiased_offset = self._beta0 * shift
        for k, u in self._given.items():
            self.offsets[k] = u[np.isfinite(u)].mean()

    def potentials(self, states: Sequence[int], rows: Any) -> Array:
        """Return (n_states, n_rows) of ``states`` on ``rows`` (slice or index), less their offsets."""
        values, potential = self.samples.values[rows], self._potential[rows]
        out = np.empty((len(states), len(values)))
        for i, k in enumerate(states):
            given = self._given.get(k)
            out[i] = (
                given[rows] - self.offsets[k] if given is not None else (self.samples.bias_energy(k, values) + potential) * self._beta[k]
            )
        return out

    def unbiased(self, rows: Any) -> Array:
        """Return (n_rows,) of the unbiased state at the target temperature, less ``unbiased_offset``."""
        return np.asarray(self._potential[rows] * self._beta0)


def _place(states: Sequence[ReducedState], samples: BiasedSamples) -> dict[int, Array]:
    """Return reduced potentials by number of state: the window they replace, or the numbers after the last window."""
    out: dict[int, Array] = {}
    extra = samples.n_windows
    for i, state in enumerate(states):
        label = f"state {state.name!r}" if state.name else f"state {i}"
        if state.reduced_potentials.shape != (len(samples),):
            raise DataError(
                f"{label} has {len(state.reduced_potentials)} reduced potentials for {len(samples)} rows",
                "evaluate it on every row, also those sampled elsewhere",
            )
        if state.window is not None and (not 0 <= state.window < samples.n_windows or state.window in out):
            raise DataError(f"{label} claims window {state.window} of {samples.n_windows}", "name an existing window, each at most once")
        out[extra if state.window is None else state.window] = state.reduced_potentials
        extra += state.window is None
    return out
