"""Blocks of steps of a batch of toy walkers: in the compiled loop, or, step for step the same, in NumPy."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import Bias
from couloir.cv.region import Region
from couloir.sampling import toy_kernels
from couloir.sampling._pool import available_cores
from couloir.sampling.potentials import ToyPotential
from couloir.sampling.toy_terms import Compiled, biases_on
from couloir.trajectory import Array

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dynamics:
    """The equations of motion as the loops need them.

    Attributes
    ----------
    potential : where the walkers move.
    driven : (n_dim,) whether a coordinate does not feel the potential.
    drift : (n_dim,) constant force, kJ/mol/nm.
    underdamped : BAOAB rather than Euler-Maruyama.
    coefficients : of one step, as :func:`couloir.sampling.toy_kernels.propagate_block` takes them.
    """

    potential: ToyPotential
    driven: npt.NDArray[np.bool_]
    drift: Array
    underdamped: bool
    coefficients: Array

    def wrap(self, x: Array) -> Array:
        """Return coordinates (..., n_dim) with those that have a period in [-period/2, period/2)."""
        out = np.array(x)
        for i, period in enumerate(self.potential.periods):
            if period is not None:
                outside = (out[..., i] < -period / 2) | (out[..., i] >= period / 2)
                out[..., i] = np.where(outside, (out[..., i] + period / 2) % period - period / 2, out[..., i])
        return out

    def kernel_arguments(self) -> tuple[Any, ...]:
        """Return the first arguments of :func:`couloir.sampling.toy_kernels.propagate_block`."""
        periods = np.array([p or 0.0 for p in self.potential.periods])
        kind, parameters = toy_kernels.KINDS[self.potential.formula], np.array(self.potential.parameters, dtype=float)
        return kind, parameters, periods, self.driven, self.drift, self.underdamped, self.coefficients


@dataclass(eq=False)
class Task:
    """One call of ``propagate``: the walkers as they stand, and what was asked of them.

    Attributes
    ----------
    x, v, rng : (n_walkers, n_dim), (n_walkers, n_dim) and (n_walkers, 4): coordinates, velocities and random states.
    record, cvs : CVs to record, and those with the CVs of the stop region.
    biases : one per walker.
    stop : ends a walker at the first record inside it.
    n_records : (n_walkers,) records in all.
    n_steps, per_frame : steps per record and records per kept frame (0 keeps none).
    velocities : keep velocities with the frames.
    finished : (n_walkers,) 0 goes on, 1 stopped inside the region, 2 failed.
    done : (n_walkers,) records made.
    """

    x: Array
    v: Array
    rng: npt.NDArray[np.uint64]
    record: tuple[CollectiveVariable, ...]
    cvs: tuple[CollectiveVariable, ...]
    biases: list[Bias | None]
    stop: Region | None
    n_records: Ints
    n_steps: int
    per_frame: int
    velocities: bool
    finished: Ints = field(init=False)
    done: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.finished, self.done = np.zeros((2, len(self.x)), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive records of one walker: values (n, n_cvs), energies (n,), and kept frames (n_frames, n_dim)."""

    values: Array
    energies: Array
    positions: Array
    velocities: Array


def advance(dynamics: Dynamics, task: Task, fast: Compiled | None, active: Ints, n: int, threads: int | None) -> list[Block]:
    """Advance the ``active`` walkers of ``task`` by up to ``n`` records and return one block of results each.

    Parameters
    ----------
    fast : biases, CVs and stop region for the compiled loop; None takes the NumPy loop.
    threads : over which the compiled loop spreads walkers; None is every core.
    """
    d, frames = dynamics.potential.n_dim, n // task.per_frame if task.per_frame else 0
    m, keep = len(active), task.velocities and dynamics.underdamped
    values, energies = np.zeros((m, n, len(task.cvs))), np.zeros((m, n))
    positions, speeds = np.zeros((m, frames, d)), np.zeros((m, frames, d) if keep else (0, 0, 0))
    x, v, rng = task.x[active], task.v[active], task.rng[active]
    left, finished, done = task.n_records[active] - task.done[active], np.zeros(m, dtype=np.int64), np.zeros(m, dtype=np.int64)
    results: tuple[Any, ...] = (x, v, rng, left, finished, done, values, energies, positions, speeds)

    def part(rows: slice) -> None:
        mine = tuple(a[rows] if len(a) else a for a in results)
        if fast is None:
            _numpy_block(dynamics, task, active[rows], *mine)
        else:
            bias = (fast.along[active[rows]], fast.terms[active[rows]])
            recorded = (fast.directions, fast.period, *fast.programs, fast.low, fast.high, fast.takes_nan)
            toy_kernels.propagate_block(*dynamics.kernel_arguments(), *bias, *recorded, task.n_steps, task.per_frame, *mine)

    n_threads = 1 if fast is None else min(m, threads or available_cores())
    if n_threads == 1:
        part(slice(0, m))
    else:
        edges = np.linspace(0, m, n_threads + 1).astype(int)
        list(_pool(n_threads, os.getpid()).map(part, [slice(a, b) for a, b in pairwise(edges)]))
    task.x[active], task.v[active], task.rng[active], task.finished[active] = x, v, rng, finished
    task.done[active] += done
    kept = done // task.per_frame if task.per_frame else 0 * done
    return [
        Block(values[w, :k], energies[w, :k], positions[w, : kept[w]], speeds[w, : kept[w]] if keep else positions[w, :0])
        for w, k in enumerate(done)
    ]


@cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads of a process that stay: starting some takes longer than many a block, and a forked process has none."""
    return ThreadPoolExecutor(n_threads)


def _numpy_block(
    dynamics: Dynamics, task: Task, walkers: Ints, x: Array, v: Array, rng: Any, left: Ints, finished: Ints, done: Ints,
    values: Array, energies: Array, frames: Array, speeds: Array,
) -> None:  # fmt: skip
    """The compiled loop in NumPy, for CVs, biases and regions that it does not know."""
    c = dynamics.coefficients
    biased = any(task.biases[walker] is not None for walker in walkers)

    def force(y: Array, live: Ints) -> tuple[Array, Array]:
        energy, gradient = dynamics.potential.energy_and_gradient(y[live])
        f = dynamics.drift - np.where(dynamics.driven, 0.0, gradient)
        if biased:
            f -= biases_on([task.biases[walker] for walker in walkers[live]], task.record, y[live])[1]
        return energy, f

    y, u, live = x.copy(), v.copy(), np.arange(len(x))
    f = force(y, live)[1]
    for r in range(energies.shape[1]):
        energy = np.zeros(len(live))
        for _ in range(task.n_steps):
            xi, mine = np.empty((len(live), y.shape[1])), rng[live]
            toy_kernels.normals(mine, xi)
            rng[live] = mine
            if dynamics.underdamped:
                half = u[live] + c[0] * f
                u[live] = c[2] * half + c[3] * xi
                y[live] = dynamics.wrap(y[live] + c[1] * half + c[1] * u[live])
                energy, f = force(y, live)
                u[live] += c[0] * f
            else:
                y[live] = dynamics.wrap(y[live] + c[0] * f + c[1] * xi)
                energy, f = force(y, live)
        good = np.isfinite(energy) & np.isfinite(y[live]).all(axis=1) & np.isfinite(u[live]).all(axis=1)
        finished[live[~good]] = 2
        live, f, energy = live[good], f[good], energy[good]
        x[live], v[live], energies[live, r], done[live] = y[live], u[live], energy, r + 1
        for k, cv in enumerate(task.cvs):
            values[live, r, k] = cv.evaluate(y[live][:, None, :])
        if task.per_frame and (r + 1) % task.per_frame == 0:
            frames[live, (r + 1) // task.per_frame - 1] = y[live]
            if len(speeds):
                speeds[live, (r + 1) // task.per_frame - 1] = u[live]
        if task.stop is not None and len(live):
            inside = task.stop.contains_values({cv.name: values[live, r, k] for k, cv in enumerate(task.cvs)})
            finished[live[inside]] = 1
            live, f = live[~inside], f[~inside]
        going = left[live] > r + 1
        live, f = live[going], f[going]
        if not len(live):
            break
