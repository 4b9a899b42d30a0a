"""MBAR by Newton's method in a trust region, in chunks of rows: memory does not grow with the number of samples.

With N_k samples in state k and the reduced potential u_k(n) of row n in state k, the free energies minimize the convex function

    A(f) = sum_n log sum_k N_k exp(f_k - u_k(n)) - sum_k N_k f_k

(Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008), eq. 11 is its stationary point; Newton's method on it: eq. C6).  One pass over
the rows gives A, its gradient and its exact Hessian together, and a chunk is small enough to stay in a processor's cache from the
first operation on it to the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.errors import ConfigError, DataError
from couloir.trajectory import Array

if TYPE_CHECKING:
    import torch

Potentials = Callable[[int, int], Array]
"""Gives reduced potentials (n_states, stop - start) of the rows from ``start`` to ``stop``."""

_CPU_CHUNK, _GPU_CHUNK = 2**17, 2**25
"""Numbers in a chunk: 1 MB, which a processor caches; 256 MB, which keeps a GPU busy."""
_RESIDENT = 2**29
"""Numbers of a matrix that a GPU is given whole (4 GB)."""


@dataclass(frozen=True, eq=False)
class MbarSolution:
    """The solution of MBAR's equations for plain arrays.

    Attributes
    ----------
    free_energies : (n_states,) in kT, relative to the first state that holds samples; states without samples included.
    log_mixture : (n_rows,) log sum_k N_k exp(f_k - u_k): a state with reduced potential u weighs row n by exp(-u - log_mixture).
    overlap : (n_states, n_states) overlap matrix; row i: where samples of state i could have come from.
    effective_samples : (n_states,) Kish effective sample size of all rows reweighted to each state.
    residual : largest violation of the self-consistent equations, kT: one more iteration of them would change no free energy by more.
    n_iterations : passes over all rows.
    converged : whether the last Newton step was shorter than the tolerance.
    """

    free_energies: Array
    log_mixture: Array
    overlap: Array
    effective_samples: Array
    residual: float
    n_iterations: int
    converged: bool


@dataclass(frozen=True, eq=False)
class _Point:
    """A(f), expected counts (n_states,), sums of products of chances (n_states, n_states) and log_mixture (n_rows,) at one f."""

    value: float
    expected: Array
    products: Array
    log_mixture: Array


def solve_mbar(
    u_kn: Any, n_k: Any, *, start: Any = None, tolerance: float = 1e-9, max_iterations: int = 200, chunk: int | None = None,
    device: str | None = None,
) -> MbarSolution:  # fmt: skip
    """Return free energies of any mixture of states from reduced potentials alone.

    The states may be windows, temperatures, Hamiltonians or generative models (reduced potential: minus the log-density); the order
    of the rows does not matter, only how many come from each state.  States whose samples overlap nowhere keep the offset that
    they started with, and nothing here says so: look at ``overlap``.

    Parameters
    ----------
    u_kn : (n_states, n_rows) reduced potential of every row in every state; infinite where a state forbids a row.
    n_k : (n_states,) rows drawn from each state; zero for a state whose free energy is wanted but that was not sampled.
    start : (n_states,) free energies to start from, kT; default the lowest reduced potential of each state.
    tolerance : length in kT of the last Newton step.
    max_iterations : passes over all rows.
    chunk : rows at a time; default as many as fit a processor's cache, or 256 MB on a GPU.
    device : ``"cpu"``, ``"cuda"``, ...; default a GPU when there is one and the problem is large enough to gain from it.

    Raises
    ------
    DataError : shapes do not fit together, a number is NaN, or a row is impossible in every sampled state.
    """
    u, n = np.asarray(u_kn, dtype=float), np.asarray(n_k, dtype=float)
    _check(u, n, start)
    sampled = n > 0
    initial = None if start is None else np.asarray(start, dtype=float)[sampled]

    def potentials(first: int, last: int) -> Array:
        part = u[:, first:last]
        return part if sampled.all() else part[sampled]

    core = newton(potentials, u.shape[1], n[sampled], start=initial, tolerance=tolerance, max_iterations=max_iterations, chunk=chunk,
                  device=device, resident=True)  # fmt: skip
    if sampled.all():
        return core
    return _with_unsampled(core, u, n, chunk or rows_per_chunk(len(n)))


def newton(
    potentials: Potentials, n_rows: int, counts: Array, *, start: Array | None = None, tolerance: float = 1e-9, max_iterations: int = 200,
    chunk: int | None = None, device: str | None = None, resident: bool = False,
) -> MbarSolution:  # fmt: skip
    """Minimize A(f) over states that all hold samples; ``potentials`` gives their reduced potentials chunk by chunk.

    ``resident`` says that chunks are cut from an array in memory, which a GPU may then be given whole.
    """
    evaluate = _evaluator(potentials, n_rows, counts, chunk, device, resident)
    f = _lowest(potentials, n_rows, len(counts)) if start is None else start - start[0]
    here, radius, converged, passes = evaluate(f), 5.0, False, 1
    if start is not None and here.expected.min() < 1e-200:
        # So far off that some state could have sampled nothing: no better than no start.
        f = _lowest(potentials, n_rows, len(counts))
        here, passes = evaluate(f), 2
    scale = np.sqrt(counts)
    while True:
        gradient = here.expected - counts
        step = _step(here, counts, gradient, radius)
        longest = float(np.abs(step - step[0]).max())
        if longest < tolerance:
            converged = True
            break
        if passes == max_iterations or radius < tolerance:
            break
        there = evaluate(f + step)
        passes += 1
        curvature = float(here.expected @ step**2 - step @ here.products @ step)
        predicted = -float(gradient @ step) - 0.5 * curvature
        # Close to the minimum the decrease drowns in rounding: allow for it.
        rounding = 1e-13 * (abs(here.value) + n_rows)
        gained = here.value - there.value
        length = float(np.sqrt(np.mean((scale * step) ** 2) / np.mean(counts)))
        if predicted > rounding and not gained > 0.75 * predicted:
            radius = radius if gained > 0.25 * predicted else 0.25 * length
        else:
            radius = max(radius, 3.0 * length)
        if gained > 1e-4 * predicted - rounding:
            f, here = f + step, there
    return _solution(f, counts, here, passes, converged)


def _lowest(potentials: Potentials, n_rows: int, n_states: int) -> Array:
    """Return the lowest reduced potential of each state (n_states,), relative to the first: no state starts hopelessly far away."""
    size = rows_per_chunk(n_states)
    lowest = np.full(n_states, np.inf)
    for first in range(0, n_rows, size):
        lowest = np.minimum(lowest, potentials(first, min(first + size, n_rows)).min(axis=1))
    return np.asarray(lowest - lowest[0])


def _solution(f: Array, counts: Array, point: _Point, passes: int, converged: bool) -> MbarSolution:
    with np.errstate(divide="ignore"):
        residual = float(np.abs(np.log(point.expected / counts)).max())
    overlap = point.products / counts[:, None]
    effective = point.expected**2 / np.maximum(np.diag(point.products), 1e-300)
    return MbarSolution(f - f[0], point.log_mixture - f[0], overlap, effective, residual, passes, converged)


def _step(point: _Point, counts: Array, gradient: Array, radius: float) -> Array:
    """Return the minimizer of the quadratic model within ``radius`` (root mean square over samples, kT), gauge removed."""
    # In the variables sqrt(N_k) f_k the curvature of a well-sampled state is about one.
    root = np.sqrt(counts)
    hessian = (np.diag(point.expected) - point.products) / np.outer(root, root)
    unit = root / np.linalg.norm(root)
    values, vectors = np.linalg.eigh(hessian + np.outer(unit, unit))
    slope = vectors.T @ (gradient / root)
    # Offsets that the data do not determine: no curvature and no slope but rounding.  They stay where they are.
    slope[(values < 1e-12) & (np.abs(slope) < 1e-9 * np.linalg.norm(root))] = 0.0
    values = np.maximum(values, 1e-14)
    limit = radius * float(np.linalg.norm(root))

    def at(damping: float) -> Array:
        return np.asarray(-slope / (values + damping))

    damping = 0.0
    if np.linalg.norm(at(0.0)) > limit:
        low, high = -16.0, math.log10(max(float(np.linalg.norm(slope) / limit), 1e-15))
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if np.linalg.norm(at(10.0**middle)) > limit else (low, middle)
        damping = 10.0**high
    step = np.asarray((vectors @ at(damping)) / root)
    return step - float(counts @ step / counts.sum())


def _evaluator(
    potentials: Potentials, n_rows: int, counts: Array, chunk: int | None, device: str | None, resident: bool
) -> Callable[[Array], _Point]:
    """Return the function that makes one pass over all rows."""
    import torch

    where = choose_device(device, n_rows * len(counts))
    size = chunk or rows_per_chunk(len(counts), where.type != "cpu")
    log_counts = torch.from_numpy(np.log(counts)).to(where)
    whole = None
    if where.type != "cpu" and resident and n_rows * len(counts) <= _RESIDENT:
        whole = torch.from_numpy(np.array(potentials(0, n_rows), order="C")).to(where)

    def evaluate(f: Array) -> _Point:
        offset = log_counts + torch.from_numpy(f).to(where)
        expected = torch.zeros(len(counts), dtype=torch.float64, device=where)
        products = torch.zeros((len(counts), len(counts)), dtype=torch.float64, device=where)
        total = torch.zeros((), dtype=torch.float64, device=where)
        log_mixture = np.empty(n_rows)
        for first in range(0, n_rows, size):
            last = min(first + size, n_rows)
            # A copy: torch cannot take views that are read-only or run backwards.
            part = torch.from_numpy(np.array(potentials(first, last), order="C")).to(where) if whole is None else whole[:, first:last]
            chance = offset[:, None] - part
            top = chance.amax(dim=0)
            chance.sub_(top).exp_()
            norm = chance.sum(dim=0)
            chance.div_(norm)
            mixture = top + norm.log()
            total += mixture.sum()
            expected += chance.sum(dim=1)
            products.addmm_(chance, chance.T)
            log_mixture[first:last] = mixture.cpu().numpy()
        value = float(total) - float(counts @ f)
        return _Point(value, expected.cpu().numpy(), products.cpu().numpy(), log_mixture)

    return evaluate


def rows_per_chunk(n_states: int, gpu: bool = False) -> int:
    """Return how many rows of ``n_states`` numbers are taken at a time."""
    return max(1, (_GPU_CHUNK if gpu else _CPU_CHUNK) // n_states)


def choose_device(device: str | None, size: int) -> torch.device:
    """Return the device to solve ``size`` reduced potentials on; raises ConfigError when it does not exist or has no float64."""
    import torch

    if device is None:
        # Below this the transfer and the launches cost more than the arithmetic.
        return torch.device("cuda" if torch.cuda.is_available() and size > 10**6 else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}", 'use "cpu", or leave it out') from error
    return chosen


def _check(u: Array, n: Array, start: Any) -> None:
    if u.ndim != 2 or n.shape != u.shape[:1]:
        raise DataError(f"u_kn has shape {u.shape} and n_k {n.shape}", "give u_kn as (n_states, n_rows) and n_k as (n_states,)")
    if (n < 0).any() or not (n == np.round(n)).all() or n.sum() != u.shape[1] or u.shape[1] == 0:
        raise DataError(f"n_k sums to {n.sum():g} but u_kn has {u.shape[1]} rows", "count every row once, in the state it was drawn from")
    if start is not None and (np.shape(start) != n.shape or not np.isfinite(np.asarray(start, dtype=float)[n > 0]).all()):
        raise DataError(f"start has shape {np.shape(start)} for {len(n)} states, or is not finite", "give one finite number per state")
    require_possible(u, n > 0)


def require_possible(u: Array, sampled: npt.NDArray[np.bool_]) -> None:
    """Raise a DataError where reduced potentials (n_states, n_rows) are NaN or minus infinity, or a row has no possible state."""
    lowest = u[sampled].min(axis=0)
    bad = np.isnan(u).any(axis=0) | (u == -np.inf).any(axis=0)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        state = int(np.flatnonzero(np.isnan(u[:, row]) | (u[:, row] == -np.inf))[0])
        raise DataError(f"the reduced potential of row {row} in state {state} is {u[state, row]}", "remove the row, or evaluate it again")
    if np.isposinf(lowest).any():
        row = int(np.flatnonzero(np.isposinf(lowest))[0])
        raise DataError(f"row {row} is impossible (infinite energy) in every state that holds samples", "remove it, or check the states")
    forbidden = np.flatnonzero(sampled & np.isposinf(u.min(axis=1)))
    if len(forbidden):
        raise DataError(f"state {forbidden[0]} holds samples but forbids (infinite energy) every row", "check its energies and its count")


def _with_unsampled(core: MbarSolution, u: Array, n: Array, size: int) -> MbarSolution:
    """Return the solution with free energies, effective samples and overlaps of states that hold no samples."""
    sampled, k = n > 0, len(n)
    f, effective, overlap = np.zeros(k), np.zeros(k), np.zeros((k, k))
    f[sampled], effective[sampled] = core.free_energies, core.effective_samples
    overlap[np.ix_(sampled, sampled)] = core.overlap
    for state in np.flatnonzero(~sampled):
        log_w = -u[state] - core.log_mixture
        f[state] = -np.logaddexp.reduce(log_w)
        weight = np.exp(log_w + f[state])
        effective[state] = 1.0 / (weight**2).sum()
        for first in range(0, u.shape[1], size):
            part = slice(first, first + size)
            chance = np.exp(np.log(n[sampled])[:, None] + core.free_energies[:, None] - u[sampled, part] - core.log_mixture[part])
            overlap[state, sampled] += chance @ weight[part]
    return MbarSolution(f, core.log_mixture, overlap, effective, core.residual, core.n_iterations, core.converged)
