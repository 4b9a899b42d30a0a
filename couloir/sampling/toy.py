"""The toy engine: many walkers on an analytic potential, compiled, under the same contract as OpenMM.

Overdamped (``friction=None``), Euler-Maruyama, per coordinate i with mobility mu_i:

    dx_i = (-mu_i dU/dx_i + drift_i) dt + noise_i dB_i,      noise_i = sqrt(2 kT mu_i) unless given

Underdamped, BAOAB (Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34), in which a given drift or noise means the
same as in the overdamped limit (mu_i = 1 / (m friction_i)).  A bias adds its gradient to that of U.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import Bias
from couloir.cv.region import Region
from couloir.errors import DataError, SimulationError, nearest
from couloir.sampling import toy_kernels
from couloir.sampling.engine import OnResult, as_states, per_walker_biases, per_walker_seeds, schedules
from couloir.sampling.potentials import ToyPotential
from couloir.sampling.toy_blocks import Block, Dynamics, Task, advance
from couloir.sampling.toy_terms import biases_on, check_biases, compile_walkers
from couloir.trajectory import Array, Series, State, Trajectory
from couloir.units import GAS_CONSTANT, convert, positive

_BLOCK_STEPS = 2**24  # about a second of one walker: how long an interrupt may have to wait
_FIRST_BLOCK = 1024  # records; walkers that may stop early do not allocate for their whole time limit


class ToyEngine:
    """Langevin dynamics on a :class:`ToyPotential`; positions are (1, n_dim) per state, and topology is None.

    Parameters
    ----------
    potential : where it moves.
    kT : kJ/mol; the temperature follows from it.
    time_step : ps.
    friction : None for overdamped dynamics, which has no velocities; else 1/ps, one number or one per coordinate (BAOAB).
    masses : amu, one number: the toy is one particle.
    mobility : overdamped only: nm^2/(kJ/mol)/ps, one number or one per coordinate: each coordinate's time scale.
    noise : nm/sqrt(ps), one number or one per coordinate (None entries: the thermal noise of ``kT``).
    drift : nm/ps, one number or one per coordinate.
    driven : coordinates, by name or index, that the potential does not push: they feel drift, noise and biases only.
    threads : over which the walkers are spread; default every core.  Results do not depend on it.

    Raises
    ------
    DataError : a number is not positive where it must be, or there is not one per coordinate.
    """

    def __init__(
        self,
        potential: ToyPotential,
        kT: Any = 1.0,
        time_step: Any = 1e-3,
        friction: Any = None,
        masses: Any = 1.0,
        mobility: Any = 1.0,
        noise: Any = None,
        drift: Any = None,
        driven: Sequence[int | str] = (),
        threads: int | None = None,
    ) -> None:
        self.potential = potential
        self._kT = positive(kT, "kJ/mol", "kT")
        self.temperature = self._kT / GAS_CONSTANT
        self.time_step = positive(time_step, "ps", "time_step")
        self.mass = positive(masses, "amu", "masses")
        self.underdamped = friction is not None
        self.threads = threads
        d = potential.n_dim
        frictions = _each(friction, d, "1/ps", "friction", positive) if self.underdamped else np.ones(d)
        self.friction = frictions if self.underdamped else None
        if self.underdamped and not np.all(np.asarray(mobility) == 1.0):
            raise DataError("mobility belongs to overdamped dynamics", "set the time scale of an underdamped engine by its friction")
        self._mobility = 1 / (self.mass * frictions) if self.underdamped else _each(mobility, d, "", "mobility", positive)
        thermal = np.sqrt(2 * self._kT * self._mobility)
        given = noise if isinstance(noise, (list, tuple, np.ndarray)) else [noise] * d
        if len(given) != d:
            raise DataError(f"noise has {len(given)} entries for {d} coordinates")
        self._noise = np.array([t if n is None else convert(n, "", "noise") for n, t in zip(given, thermal, strict=True)])
        self._drift = _each(drift if drift is not None else 0.0, d, "", "drift")
        if (self._noise < 0).any():
            raise DataError("noise must not be negative")
        self._driven = np.zeros(d, dtype=np.bool_)
        for axis in driven:
            if axis not in potential.names and axis not in range(d):
                raise DataError(f"driven names {axis!r}, which is no coordinate{nearest(str(axis), potential.names)}")
            self._driven[potential.names.index(axis) if isinstance(axis, str) else axis] = True
        drift_force = self._drift / self._mobility
        self._dynamics = Dynamics(potential, self._driven, drift_force, self.underdamped, self._integrator(frictions))

    def _integrator(self, friction: Array) -> Array:
        """Coefficients of one step, as ``toy_kernels.propagate_block`` takes them."""
        dt, one = self.time_step, np.ones(self.potential.n_dim)
        if not self.underdamped:
            return np.stack([self._mobility * dt, self._noise * np.sqrt(dt)])
        keep = np.exp(-friction * dt)
        # noise^2 = 2 kT_i / (m friction_i) defines the temperature of each coordinate: <v_i^2> = kT_i / m = noise^2 friction_i / 2
        width = np.sqrt(self._noise**2 * friction / 2 * (1 - keep**2))
        return np.stack([one * dt / (2 * self.mass), one * dt / 2, keep, width])

    @property
    def reversible(self) -> bool:
        """Whether forces follow from an energy, and noise is that of ``kT`` in every coordinate: only then may a path run backwards."""
        circular = np.array([period is not None for period in self.potential.periods])
        thermal = np.allclose(self._noise, np.sqrt(2 * self._kT * self._mobility))
        return bool(thermal and not self._driven.any() and not (self._drift[circular] != 0).any())

    @property
    def kT(self) -> float:
        """Thermal energy, kJ/mol."""
        return self._kT

    @property
    def masses(self) -> Array:
        """Mass of the only particle, (1,) amu."""
        return np.array([self.mass])

    @property
    def topology(self) -> None:
        """Toy systems have none."""
        return

    def to_dict(self) -> dict[str, Any]:
        """Return what produced the numbers, for provenance."""
        return {
            "type": "toy", "potential": self.potential.name, "parameters": list(self.potential.parameters),
            "integrator": "BAOAB" if self.underdamped else "Euler-Maruyama", "kT": self.kT, "temperature": self.temperature,
            "time_step": self.time_step, "mobility": self._mobility.tolist(), "noise": self._noise.tolist(),
            "drift": self._drift.tolist(), "platform": "compiled", "precision": "double",
        }  # fmt: skip

    def digest(self) -> str:
        """Return a hash of potential, integrator and their numbers."""
        facts = {**self.to_dict(), "mass": self.mass, "driven": self._driven.tolist()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        kind = "BAOAB" if self.underdamped else "overdamped"
        where = f"{self.potential.name} ({', '.join(self.potential.names)})"
        return f"ToyEngine: {where}, {kind}, kT = {self.kT:g} kJ/mol, time step {self.time_step:g} ps"

    def state(self, *x: float) -> State:
        """Return the state at coordinates ``x``; raises DataError when their number is wrong."""
        if len(x) != self.potential.n_dim:
            raise DataError(f"{len(x)} numbers for the coordinates {', '.join(self.potential.names)}")
        return State(np.array([x]))

    def energies(self, positions: Array) -> Array:
        """Return the potential energy (n_frames,) in kJ/mol of positions (n_frames, 1, n_dim)."""
        return self.potential.energy(positions)

    def propagate(
        self,
        states: State | Sequence[State],
        *,
        duration: Any,
        stride: Any = None,
        bias: Bias | Sequence[Bias | None] | None = None,
        record: Sequence[CollectiveVariable] | None = (),
        record_stride: Any = None,
        stop: Region | None = None,
        velocities: bool = False,
        seed: int | Sequence[int] = 0,
        on_result: OnResult | None = None,
    ) -> list[Trajectory]:
        """Propagate a batch of walkers; see :class:`couloir.sampling.Engine` for the arguments.

        Harmonic and flat-bottom biases on coordinates (:class:`~couloir.cv.geometric.Coordinate`) or their linear
        combinations without a period (:class:`~couloir.cv.composite.LinearCombination`) run inside the compiled loop; so
        do records of coordinates, any linear combinations and functions (:class:`~couloir.cv.composite.FunctionOfCVs`) of
        such CVs, and stop regions of intervals on them.  Any other CV, bias (such as one along a function) or region takes
        the same steps with the same random numbers in NumPy, about a thousand times slower.  A function may differ
        between the two in its last digits.  Overdamped trajectories and their ``last`` have no velocities.
        """
        start, silent, record = as_states(states), record is None, record or ()
        biases, seeds = per_walker_biases(bias, len(start)), per_walker_seeds(seed, len(start))
        n_records, n_steps, per_frame = schedules(duration, len(start), stride, record_stride, self.time_step)
        x, v, rng = self._start(start, seeds)
        extra = [] if stop is None else [cv for cv in stop.cvs if cv.name not in {c.name for c in record}]
        limits = np.array(n_records)
        task = Task(x, v, rng, tuple(record), (*record, *extra), biases, stop, limits, n_steps, per_frame, velocities)
        check_biases(biases, record)
        fast = compile_walkers(task.cvs, biases, stop, self.potential.n_dim)
        blocks: list[list[Block]] = [[] for _ in start]
        out: dict[int, Trajectory] = {}
        active, at, size = np.arange(len(start)), 0, _FIRST_BLOCK if stop is not None else max(n_records)
        while len(active):
            longest = int(limits[active].max()) - at
            n = min(size, max(1, _BLOCK_STEPS // n_steps), longest)
            n = min(longest, -(-n // per_frame) * per_frame if per_frame else n)
            for w, block in zip(active, advance(self._dynamics, task, fast, active, n, self.threads), strict=True):
                blocks[w].append(block)
            at, size = at + n, size * 2
            ended = (task.finished[active] > 0) | (task.done[active] == limits[active])
            for walker in active[ended].tolist():
                out[walker] = self._collect(task, walker, blocks[walker], silent)
                if on_result is not None and task.finished[walker] != 2:
                    on_result(walker, out[walker])
            active = active[~ended]
        results = [out[w] for w in range(len(start))]
        self._check_finite(task, blocks, results)
        return results

    def minimize(
        self,
        states: State | Sequence[State],
        *,
        bias: Bias | Sequence[Bias | None] | None = None,
        record: Sequence[CollectiveVariable] = (),
        tolerance: Any = 1e-6,
        max_iterations: int = 0,
    ) -> list[State]:
        """Return each state at the nearest minimum of potential plus bias (L-BFGS), without velocities.

        Parameters
        ----------
        states, bias, record : as in :meth:`propagate`.
        tolerance : largest force component left, kJ/mol/nm.
        max_iterations : 0 minimizes until converged.
        """
        from scipy.optimize import minimize

        start = as_states(states)
        biases = per_walker_biases(bias, len(start))
        check_biases(biases, record)
        limit = convert(tolerance, "kJ/mol/nm", "tolerance")
        out = []
        for state, one in zip(start, biases, strict=True):

            def function(x: Array, one: Bias | None = one) -> tuple[float, Array]:
                energy, gradient = self.potential.energy_and_gradient(x[None])
                pull, slope = biases_on([one], record, x[None])
                return float(energy[0] + pull[0]), gradient[0] + slope[0]

            options = {"gtol": limit, "ftol": 0.0, "maxiter": max_iterations or 100_000}
            found = minimize(function, self._coordinates(state), jac=True, method="L-BFGS-B", options=options)
            out.append(State(self._dynamics.wrap(found.x[None])))
        return out

    def _coordinates(self, state: State) -> Array:
        if state.positions.shape != (1, self.potential.n_dim):
            raise DataError(f"positions have shape {state.positions.shape}, but {self.potential.name} needs (1, {self.potential.n_dim})")
        return np.array(state.positions[0])

    def _start(self, states: list[State], seeds: list[int]) -> tuple[Array, Array, npt.NDArray[np.uint64]]:
        x = self._dynamics.wrap(np.stack([self._coordinates(state) for state in states]))
        rng = np.zeros((len(states), 4), dtype=np.uint64)
        v = np.zeros_like(x)
        for w, (state, seed) in enumerate(zip(states, seeds, strict=True)):
            toy_kernels.seed_state(np.uint64(seed % 2**64), rng[w])
            if self.underdamped and state.velocities is not None:
                v[w] = state.velocities[0]
            elif self.underdamped:
                toy_kernels.normals(rng[w : w + 1], v[w : w + 1])
                v[w] *= np.sqrt(self.kT / self.mass)
        return x, v, rng

    def _collect(self, task: Task, walker: int, blocks: list[Block], silent: bool) -> Trajectory:
        step = self.time_step * task.n_steps
        names = tuple(cv.name for cv in task.record)
        values = np.concatenate([b.values for b in blocks])[:, : len(names)]
        series = Series(names, values, np.concatenate([b.energies for b in blocks]), step)
        keep = task.velocities and self.underdamped and task.per_frame
        return Trajectory(
            positions=np.concatenate([b.positions for b in blocks])[:, None, :],
            stride=step * (task.per_frame or int(task.n_records[walker])),
            velocities=np.concatenate([b.velocities for b in blocks])[:, None, :] if keep else None,
            series=None if silent else series,
            last=State(task.x[walker][None], task.v[walker][None] if self.underdamped else None),
            ended=_ENDED[task.finished[walker]],
        )

    def _check_finite(self, task: Task, blocks: list[list[Block]], results: list[Trajectory]) -> None:
        bad = np.flatnonzero(task.finished == 2)
        if not len(bad):
            return
        walker = int(bad[0])
        records = sum(len(b.energies) for b in blocks[walker])
        time = records * self.time_step * task.n_steps
        frame = f"frame {records // task.per_frame} (record {records})" if task.per_frame else f"record {records}"
        error = SimulationError(
            f"walker {walker}{f' and {len(bad) - 1} more' if len(bad) > 1 else ''}: positions or energy stopped being finite "
            f"at {frame}, after {time:g} ps, with a time step of {self.time_step:g} ps",
            "use a shorter time step, a softer bias, or start closer to a minimum",
        )
        error.partial = results
        raise error


_ENDED: tuple[Literal["complete"], Literal["stopped"], Literal["failed"]] = ("complete", "stopped", "failed")


def _each(value: Any, n: int, unit: str, name: str, read: Callable[[Any, str, str], float] = convert) -> Array:
    given = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value] * n
    if len(given) != n:
        raise DataError(f"{name} has {len(given)} entries for {n} coordinates")
    return np.array([read(v, unit, name) for v in given])
