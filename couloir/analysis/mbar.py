"""MBAR: every sample its own bin, any temperatures, further states such as generative models; warm-started by WHAM.

Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008), eq. 11; the weight of a sample in the unbiased state is
``exp(-u_0(x)) / sum_k N_k exp(f_k - u_k(x))`` (eq. 9 with a target that has no samples).  All rows are used; errors come from
the block bootstrap of :func:`couloir.analysis.free_energy_surface`, which knows about correlation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from couloir.analysis._mbar_torch import MbarSolution, newton, require_possible, rows_per_chunk
from couloir.analysis.overlap import Sets, connected_sets
from couloir.analysis.reduced import Mixture, ReducedState, Reweighted, effective_number, reweight_rows, weigh_state
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.timeseries import inefficiencies
from couloir.analysis.wham import WhamResult, bin_states, solution_findings, solve_connected, target_temperature
from couloir.errors import ConfigError, DataError, Finding, nearest
from couloir.trajectory import Array

CONVERGED = 1e-4
"""Residual in kT up to which the solution counts as converged: far below any statistical error."""
CLOSE = 1e-8
"""Residual in kT with which pymbar may stop."""
SOLVERS = ("auto", "pymbar", "torch")
LARGE = 2_000_000
"""Reduced potentials above which ``"auto"`` means torch."""
STORED_ROWS = 1_000_000
"""Rows up to which torch is given a stored matrix; above, each pass computes it again, chunk by chunk."""


@dataclass(frozen=True, eq=False)
class MbarResult:
    """Free energies of states and log-weights of samples.

    Attributes
    ----------
    free_energies : (n_states,) relative to the unbiased state of their set, kT; windows first, then given states without samples.
    log_weights : (n_rows,) logarithm of the probability of each row in the unbiased state; sums to 1 as weights (every
        disconnected set to an equal share).
    temperature : K, of the unbiased state that the weights are for.
    overlap : (n_states, n_states) overlap matrix; row i: where samples of state i could have come from.
    effective_samples : (n_states,) Kish effective sample size of all rows reweighted to each state.
    sets : windows that share samples.
    residual : largest violation of the self-consistent equations over all windows that hold samples, kT: one more iteration of
        eq. 11 would change no free energy by more.
    findings : what is unsure.
    log_mixture : (n_rows,) a state with reduced potential u and free energy f gives a row the probability exp(f - u - log_mixture).
    energies : whether reduced potentials include the potential energy; they leave it out where it is common to all states.
    states : further states that took part.
    """

    free_energies: Array
    log_weights: Array
    temperature: float
    overlap: Array
    effective_samples: Array
    sets: Sets
    residual: float = 0.0
    findings: tuple[Finding, ...] = ()
    log_mixture: Array = field(default_factory=lambda: np.empty(0))
    energies: bool = False
    states: tuple[ReducedState, ...] = ()

    @property
    def sampled_states(self) -> IntArray:
        """Numbers of the windows whose rows came from a further state."""
        return np.array(sorted(s.window for s in self.states if s.window is not None), dtype=np.int64)

    @property
    def weights(self) -> Array:
        """Probability of each row in the unbiased state, (n_rows,)."""
        return np.exp(self.log_weights)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The same as ``findings``."""
        return self.findings

    def __str__(self) -> str:
        body = [
            f"  window {k:3d}: {f:10.4f} kT   {n:10.0f} effective samples"
            for k, (f, n) in enumerate(zip(self.free_energies, self.effective_samples, strict=True))
        ]
        return "\n".join(
            [
                f"MBAR: {len(body)} windows, weights at {self.temperature:g} K, residual {self.residual:.1g} kT",
                *body,
                *(str(f) for f in self.findings),
            ]
        )


def mbar(
    samples: BiasedSamples, *, states: Sequence[ReducedState] = (), temperature: Any = None, warm_start: bool = True,
    solver: Literal["auto", "pymbar", "torch"] = "auto", device: str | None = None,
) -> MbarResult:  # fmt: skip
    """Return the MBAR estimate from all windows, all further states and all rows.

    Parameters
    ----------
    samples : windows at any temperatures; where these differ, or where ``states`` are given, the potential energy of every row is
        needed.
    states : states that are no windows: other Hamiltonians, generative models.  One that names a ``window`` describes where the rows
        of that window came from, in place of its bias and temperature; the others hold no samples.
    temperature : of the unbiased state to reweight to (K or text); default that of the first window that holds samples.
    warm_start : start from the solution of WHAM on fine bins instead of from zero (not with sampled ``states``, which have no bins).
    solver : ``"pymbar"``, ``"torch"`` (Newton's method in chunks, :func:`solve_mbar`), or ``"auto"``: torch above two million reduced
        potentials (windows times rows), where pymbar takes seconds to minutes and several copies of them; below, what it would
        save is less than importing torch takes.  Both solve the same equations to rounding.
    device : for torch; default a GPU when there is one.

    Raises
    ------
    DataError : temperatures differ (or another one is asked for, or states are given) and potential energies were not recorded;
        states do not fit the samples.
    ConfigError : the solver or the device does not exist.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"unknown solver {solver!r}{nearest(solver, SOLVERS)}")
    target, energies = target_temperature(samples, temperature)
    if states:
        samples.require_potential("further states cannot be combined with windows")
    energies = energies or bool(states)
    mixture = Mixture(samples, target, energies, states)
    if solver == "auto":
        solver = "torch" if len(samples) * len(mixture.counts) > LARGE else "pymbar"
    solve = partial(_solve, mixture, solver=solver, device=device)
    everything = tuple(int(k) for k in np.flatnonzero(mixture.counts > 0))
    sets: Sets
    if any(s.window is not None for s in states):
        start, sets = None, (everything,)
        sets = _sets(mixture, everything, solve(everything, None))
    else:
        sets, binned, _ = solve_connected(bin_states(samples, temperature=target, energies=energies), samples)
        start = binned.free_energies if warm_start else None
    return _assemble(mixture, target, sets, {members: solve(members, start) for members in sets}, tuple(states))


def reweight(samples: BiasedSamples, weights: MbarResult | WhamResult, target: Array | ReducedState | None = None) -> Reweighted:
    """Return the samples with their weights in the unbiased state or in another one; ``.mean(observable)`` is an expectation value.

    Parameters
    ----------
    samples : that ``weights`` were estimated from.
    weights : of :func:`mbar` or :func:`couloir.analysis.wham`.
    target : (n_rows,) reduced potential of another state on every row, on the scale of ``weights``: the full one where potential
        energies took part (``weights.energies``), else relative to the unbiased state.  None for the unbiased state.

    Raises
    ------
    DataError : a reduced potential is NaN, or the number of rows differs.
    """
    n_rows = len(weights.weights)
    if n_rows != len(samples):
        raise DataError(
            f"the weights are for {n_rows} rows, the samples have {len(samples)}", "give the samples that the weights were made from"
        )
    with np.errstate(divide="ignore"):
        log_weights = weights.log_weights if isinstance(weights, MbarResult) else np.log(weights.weights)
    if target is None:
        return weigh_state(samples, log_weights, 0.0, weights)
    u = (target if isinstance(target, ReducedState) else ReducedState(target, name="target")).reduced_potentials
    log_mixture = weights.log_mixture if isinstance(weights, MbarResult) else -log_weights
    if u.shape != log_mixture.shape:
        raise DataError(f"target has shape {u.shape}, the samples have {n_rows} rows", "evaluate the target on every row")
    return weigh_state(samples, *reweight_rows(log_mixture, u), None)


def _assemble(
    mixture: Mixture, target: float, sets: Sets, solutions: Mapping[tuple[int, ...], MbarSolution], given: tuple[ReducedState, ...]
) -> MbarResult:
    """Return one result from the solutions of disconnected sets."""
    samples, k = mixture.samples, len(mixture.counts)
    f, log_weights, overlap, effective = np.full(k, np.nan), np.empty(len(samples)), np.zeros((k, k)), np.zeros(k)
    for members, solution in solutions.items():
        rows, states = _rows(mixture, members), list(members)
        log_w = -mixture.unbiased(rows) - solution.log_mixture
        norm = np.logaddexp.reduce(log_w)
        f[states] = solution.free_energies + norm
        log_weights[rows] = log_w - norm - np.log(len(sets))
        overlap[np.ix_(states, states)], effective[states] = solution.overlap, solution.effective_samples
    log_mixture = -mixture.unbiased(slice(None)) - log_weights
    if len(sets) == 1:
        for empty in np.flatnonzero(mixture.counts == 0):
            log_w, f[empty] = reweight_rows(log_mixture, mixture.potentials([int(empty)], slice(None))[0])
            effective[empty] = effective_number(log_w)
    residual = max(s.residual for s in solutions.values())
    findings = solution_findings(samples, sets, residual < CONVERGED)
    # Back to full reduced potentials: f_k and u_k of a state rise by the same constant.
    return MbarResult(
        f + mixture.offsets - mixture.unbiased_offset, log_weights, target, overlap, effective, sets, residual, findings,
        log_mixture - mixture.unbiased_offset, mixture.energies, given,
    )  # fmt: skip


def _rows(mixture: Mixture, members: Sequence[int]) -> Any:
    """Return the rows of some windows: a slice when they are all, so that nothing is copied."""
    held = np.isin(mixture.samples.window, members)
    return slice(None) if held.all() else np.flatnonzero(held)


def _solve(mixture: Mixture, members: Sequence[int], start: Array | None, *, solver: str, device: str | None) -> MbarSolution:
    """Solve for states that hold samples; a matrix is only kept for up to a million rows."""
    states = list(members)
    rows = _rows(mixture, members)
    counts = mixture.counts[states]
    n_rows = int(counts.sum())
    if start is not None:
        start = start[states] - mixture.offsets[states]
    if solver == "torch" and n_rows > STORED_ROWS:

        def made(first: int, last: int) -> Array:
            return mixture.potentials(states, slice(first, last) if isinstance(rows, slice) else rows[first:last])

        return newton(made, n_rows, counts, start=start, device=device)
    u = mixture.potentials(states, rows)
    require_possible(u, counts > 0)
    if solver == "torch":
        return newton(lambda first, last: u[:, first:last], n_rows, counts, start=start, device=device, resident=True)
    return _pymbar(u, counts, start)


def _sets(mixture: Mixture, members: tuple[int, ...], solution: MbarSolution) -> Sets:
    """Return the sets of states that share at least one decorrelated sample: rows of one visit count as one."""
    states, samples = list(members), mixture.samples
    row = (1.0 / inefficiencies(samples))[samples.window]
    log_counts = np.log(mixture.counts[states]) + solution.free_energies
    shared, size = np.zeros((samples.n_windows, samples.n_windows)), rows_per_chunk(len(states))
    for first in range(0, len(samples), size):
        part = slice(first, first + size)
        chance = np.exp(log_counts[:, None] - mixture.potentials(states, part) - solution.log_mixture[part])
        shared[np.ix_(states, states)] += (chance * row[part]) @ chance.T
    return connected_sets(shared, states)


def _pymbar(u: Array, counts: Array, start: Array | None) -> MbarSolution:
    """Return pymbar's solution for reduced potentials (n_states, n_rows) of states that all hold samples."""
    if len(counts) == 1:
        return _solution(u, counts, np.zeros(1))
    with _quiet_pymbar() as pymbar:
        if start is None:
            return _solution(u, counts, np.asarray(pymbar.MBAR(u, counts).f_k))
        # Adaptive: Newton, or self-consistent iteration whenever that has the smaller gradient.  From close by, a last Newton
        # step of 1e-4 leaves 1e-8; where it did not, more are made.
        for tolerance in (1e-4, 1e-8):
            protocol = ({"method": "adaptive", "tol": tolerance, "options": {"min_sc_iter": 0}},)
            found = _solution(u, counts, np.asarray(pymbar.MBAR(u, counts, initial_f_k=start - start[0], solver_protocol=protocol).f_k))
            if found.residual < CLOSE:
                break
            start = found.free_energies
    return found


def _solution(u: Array, counts: Array, f: Array) -> MbarSolution:
    """Return what free energies mean for reduced potentials (n_states, n_rows), and how well they solve the equations."""
    exponent = (np.log(counts) + f)[:, None] - u
    top = exponent.max(axis=0)
    log_mixture = top + np.log(np.exp(exponent - top).sum(axis=0))
    w = np.exp(f[:, None] - u - log_mixture)
    # The weights of all rows in a state sum to 1 at the solution.
    total = w.sum(axis=1)
    residual = float(np.abs(np.log(total)).max())
    return MbarSolution(f, log_mixture, (w @ w.T) * counts, total**2 / (w**2).sum(axis=1), residual, 0, residual < CONVERGED)


@contextmanager
def _quiet_pymbar() -> Iterator[Any]:
    """Import pymbar without its advice, and let only its errors through while it works."""
    logger = logging.getLogger("pymbar")
    names = ["pymbar.timeseries", "pymbar.mbar_solvers", "pymbar.mbar"]
    loggers = [logger, *(logging.getLogger(name) for name in names)]
    before = [(one, one.level) for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        import pymbar

        yield pymbar
    finally:
        for one, level in before:
            one.setLevel(level)
