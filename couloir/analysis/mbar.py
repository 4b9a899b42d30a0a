"""MBAR through pymbar: every sample its own bin, any temperatures, warm-started by WHAM.

Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008), eq. 11; the weight of a sample in the unbiased state is
``exp(-u_0(x)) / sum_k N_k exp(f_k - u_k(x))`` (eq. 9 with a target that has no samples).  All rows are used; errors come from
the block bootstrap of :func:`couloir.analysis.free_energy_surface`, which knows about correlation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir.analysis.overlap import Sets
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.wham import bin_states, solution_findings, solve_connected
from couloir.errors import DataError, Finding
from couloir.trajectory import Array
from couloir.units import GAS_CONSTANT, convert

CONVERGED = 1e-4
"""Residual in kT up to which the solution counts as converged: far below any statistical error."""


@dataclass(frozen=True, eq=False)
class MbarResult:
    """Free energies of states and log-weights of samples.

    Attributes
    ----------
    free_energies : (n_windows,) relative to the unbiased state of their set, kT.
    log_weights : (n_rows,) logarithm of the probability of each row in the unbiased state; sums to 1 as weights (every
        disconnected set to an equal share).
    temperature : K, of the unbiased state that the weights are for.
    overlap : (n_windows, n_windows) overlap matrix; row i: where samples of window i could have come from.
    effective_samples : (n_windows,) Kish effective sample size of all rows reweighted to each window.
    sets : windows that share samples.
    residual : largest violation of the self-consistent equations over all windows that hold samples, kT: one more iteration of
        eq. 11 would change no free energy by more.
    findings : what is unsure.
    """

    free_energies: Array
    log_weights: Array
    temperature: float
    overlap: Array
    effective_samples: Array
    sets: Sets
    residual: float = 0.0
    findings: tuple[Finding, ...] = ()

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


def mbar(samples: BiasedSamples, *, warm_start: bool = True, temperature: Any = None) -> MbarResult:
    """Return the MBAR estimate from all windows and all rows.

    Parameters
    ----------
    samples : windows at any temperatures; where these differ, the potential energy of every row is needed.
    warm_start : start pymbar from the solution of WHAM on fine bins instead of from zero.
    temperature : of the unbiased state to reweight to (K or text); default that of the first window that holds samples.

    Raises
    ------
    DataError : temperatures differ (or another one is asked for) and potential energies were not recorded.
    """
    target, energies = target_temperature(samples, temperature)
    u, u0 = reduced_potentials(samples, target, energies)
    states = bin_states(samples, temperature=target, energies=energies)
    sets, solution, _ = solve_connected(states, samples)
    k = samples.n_windows
    f, log_weights = np.full(k, np.nan), np.empty(len(samples))
    overlap, effective, residual = np.zeros((k, k)), np.zeros(k), 0.0
    for members in sets:
        windows = list(members)
        rows = np.flatnonzero(np.isin(samples.window, windows))
        counts = states.counts[windows]
        part = u[np.ix_(np.array(windows), rows)]
        start = solution.free_energies[windows] if warm_start else None
        f_set, log_mixture = _solve(part, counts, start)
        log_w = -u0[rows] - log_mixture
        norm = np.logaddexp.reduce(log_w)
        f[windows] = f_set + norm
        log_weights[rows] = log_w - norm - np.log(len(sets))
        w = np.exp(f_set[:, None] - part - log_mixture)
        overlap[np.ix_(windows, windows)] = (w @ w.T) * counts
        # The weights of all rows in a window sum to 1 at the solution.
        residual = max(residual, float(np.abs(np.log(w.sum(axis=1))).max()))
        effective[windows] = w.sum(axis=1) ** 2 / (w**2).sum(axis=1)
    if len(sets) == 1:
        for empty in np.flatnonzero(samples.counts == 0):
            f[empty] = -np.logaddexp.reduce(log_weights + u0 - u[empty])
    return MbarResult(f, log_weights, target, overlap, effective, sets, residual, solution_findings(samples, sets, residual < CONVERGED))


def target_temperature(samples: BiasedSamples, temperature: Any = None) -> tuple[float, bool]:
    """Return the temperature to reweight to, in K, and whether potential energies are needed to get there."""
    present = samples.temperatures[samples.counts > 0]
    target = float(present[0]) if temperature is None else convert(temperature, "K", "temperature")
    energies = bool(np.abs(present - target).max() > 1e-9 * target)
    if energies and not np.isfinite(samples.potential).all():
        raise DataError(
            f"windows at {present.min():g} to {present.max():g} K cannot be reweighted to {target:g} K without potential energies",
            "record the potential energy with the CVs",
        )
    return target, energies


def reduced_potentials(samples: BiasedSamples, temperature: float, energies: bool) -> tuple[Array, Array]:
    """Return reduced potentials (n_windows, n_rows) of all windows, and (n_rows,) of the unbiased state at ``temperature``.

    The potential energy is left out where it is common to all states (``energies`` false).
    """
    u = samples.bias_energies()
    if not energies:
        return u / (GAS_CONSTANT * temperature), np.zeros(len(samples))
    # Energies of large systems are large: only their differences matter, and those keep their digits.
    potential = samples.potential - samples.potential.mean()
    return (u + potential) / samples.kT[:, None], potential / (GAS_CONSTANT * temperature)


def _solve(u: Array, counts: Array, start: Array | None) -> tuple[Array, Array]:
    """Return free energies (n_states,) and log sum_k N_k exp(f_k - u_k), (n_rows,)."""
    if len(counts) == 1:
        f = np.zeros(1)
    else:
        with _quiet_pymbar() as pymbar:
            initial = None if start is None else start - start[0]
            # Adaptive: Newton, or self-consistent iteration whenever that has the smaller gradient.
            protocol = None if start is None else ({"method": "adaptive", "tol": 1e-8, "options": {"min_sc_iter": 0}},)
            f = np.asarray(pymbar.MBAR(u, counts, initial_f_k=initial, solver_protocol=protocol).f_k)
    exponent = (np.log(counts) + f)[:, None] - u
    top = exponent.max(axis=0)
    return f, top + np.log(np.exp(exponent - top).sum(axis=0))


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
