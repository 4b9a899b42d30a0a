"""OpenMM as an engine: batches of walkers of a real molecule, on as many cores or devices as there are.

The dynamics is Langevin, dv = -grad U/m dt - gamma v dt + sqrt(2 gamma kT/m) dW, discretized by OpenMM's
``LangevinMiddleIntegrator`` (Zhang et al., J. Phys. Chem. A 123, 6056 (2019): BAOA splitting), plus the bias.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import Bias
from couloir.cv.region import Region
from couloir.errors import ConfigError, DataError, SimulationError, nearest
from couloir.sampling import _openmm_tasks as single
from couloir.sampling import _openmm_worker as worker
from couloir.sampling._openmm_bias import BiasPlan, plan_bias
from couloir.sampling._pool import available_cores, run_tasks
from couloir.sampling.engine import OnResult, as_states, per_walker_biases, per_walker_seeds, schedules
from couloir.sampling.platforms import PlatformSpeed, available_platforms, platform_properties, time_platforms
from couloir.trajectory import Array, Series, State, Trajectory
from couloir.units import kt, positive

if TYPE_CHECKING:
    from couloir.sampling.molecule import MolecularSystem

Result = TypeVar("Result")
_measured: dict[tuple[Any, ...], list[PlatformSpeed]] = {}


def _with_engine(task: tuple[Callable[[OpenMMEngine, Any], Result], OpenMMEngine, Any]) -> Result:
    function, engine, part = task
    return function(engine, part)


class OpenMMEngine:
    """Langevin dynamics of a molecule in OpenMM; a picklable description whose Contexts are made where work lands.

    On host platforms (Reference, CPU) walkers run in worker processes, because OpenMM's host platforms share one
    random generator per process; on devices they run in threads.  One worker or one walker runs inline.  On the
    Reference platform a walker's numbers depend, to the last bit, on its state, bias and seed alone.  The CPU platform
    divides the cores among its walkers and draws noise per thread, so there this holds for a fixed number of threads
    (``platform_properties={"Threads": "1"}``); devices are reproducible to within rounding.

    Parameters
    ----------
    molecule : what is simulated.
    temperature : K, text or Quantity.
    time_step : ps, text or Quantity.
    friction : 1/ps, text or Quantity.
    platform : an OpenMM platform, or ``"auto"``: the fastest in aggregate, timed on this system at first use.
    workers : walkers at once; default one per core.
    platform_properties : OpenMM Context properties that replace the defaults, e.g. ``{"DeviceIndex": "1"}``.

    Raises
    ------
    ConfigError : the platform does not exist here.
    DataError : a number is not positive.
    UnitError : a value has a unit that does not fit.
    """

    def __init__(
        self,
        molecule: MolecularSystem,
        temperature: Any = "300 K",
        time_step: Any = "2 fs",
        friction: Any = "1/ps",
        platform: str = "auto",
        workers: int | None = None,
        platform_properties: Mapping[str, str] | None = None,
    ) -> None:
        self.molecule = molecule
        self.temperature = positive(temperature, "K", "temperature")
        self.time_step = positive(time_step, "ps", "time_step")
        self.friction = positive(friction, "1/ps", "friction")
        if platform != "auto" and platform not in available_platforms():
            raise ConfigError(f"there is no OpenMM platform {platform!r} here{nearest(platform, ['auto', *available_platforms()])}")
        if workers is not None and workers < 1:
            raise ConfigError(f"workers = {workers}, expected at least 1", "leave it out to use one per core")
        self.workers = workers or available_cores()
        self._platform = platform
        self._properties = dict(platform_properties or {})
        self._system = worker.Description.compress(molecule.system_xml)
        self._descriptions: dict[tuple[str, int], worker.Description] = {}

    @property
    def kT(self) -> float:
        """Thermal energy, kJ/mol."""
        return kt(self.temperature)

    @cached_property
    def masses(self) -> Array:
        """Particle masses (n_atoms,) in amu; 0 for virtual sites and fixed atoms."""
        from openmm import unit

        system = self._describe("").load_system()
        return np.array([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())])

    @property
    def periodic(self) -> bool:
        """Whether the system has a box, which then belongs to each of its states."""
        return self.molecule.state.box is not None

    @property
    def topology(self) -> Any:
        """The molecule's mdtraj topology."""
        return self.molecule.topology

    @property
    def platform(self) -> str:
        """The platform in use; with ``"auto"`` it is timed and chosen on first access."""
        if self._platform == "auto":
            fastest = self.platform_report[0]
            self._platform = fastest.name if fastest.aggregate > 0 else "CPU"
        return self._platform

    @property
    def platform_report(self) -> list[PlatformSpeed]:
        """Speed of every platform on this system, fastest in aggregate first; timed once per process."""
        key = (self._system, self.temperature, self.time_step, self.friction, self.workers)
        if key not in _measured:
            _measured[key] = time_platforms(self._describe(""), self.molecule.state.positions, self.workers)
        return _measured[key]

    def to_dict(self) -> dict[str, Any]:
        """Return what produced the numbers, for provenance."""
        import openmm

        return {
            "type": "openmm", "molecule": self.molecule.name, "openmm": openmm.__version__, "integrator": "LangevinMiddle",
            "temperature": self.temperature, "time_step": self.time_step, "friction": self.friction, "workers": self.workers,
            "platform": self.platform, "platform_properties": dict(self._context_properties(self.workers)),
            "precision": {"Reference": "double", "CPU": "single"}.get(self.platform, "mixed"),
        }  # fmt: skip

    def digest(self) -> str:
        """Return a hash of the System and the integrator's numbers; the platform is not part of it."""
        facts = f"{self.temperature!r} {self.friction!r} {self.time_step!r}"
        return hashlib.sha256(self.molecule.system_xml.encode() + facts.encode()).hexdigest()

    def __str__(self) -> str:
        return (
            f"OpenMMEngine: {self.molecule.name} ({len(self.molecule.state.positions)} atoms) at {self.temperature:g} K, "
            f"{self.time_step * 1000:g} fs, {self.friction:g}/ps, platform {self._platform}, {self.workers} workers"
        )

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
        """Propagate a batch of walkers in parallel; see :meth:`couloir.sampling.engine.Engine.propagate`."""
        batch = self._checked(states)
        seeds = per_walker_seeds(seed, len(batch))
        n_records, record_steps, frame_every = schedules(duration, len(batch), stride, record_stride, self.time_step)
        description = self._describe(self.platform, len(batch))
        tasks = [
            worker.WalkerTask(
                i, description, plan, parameters, state, seeds[i],
                n_records[i], record_steps, frame_every, None if record is None else tuple(record), stop, velocities,
            )
            for i, (state, (plan, parameters)) in enumerate(zip(batch, self._plans(bias, record or (), len(batch)), strict=True))
        ]  # fmt: skip
        trajectories: dict[int, Trajectory] = {}
        failures: dict[int, str] = {}
        stride_ps = record_steps * self.time_step

        def receive(index: int, result: worker.WalkerResult) -> None:
            trajectories[index] = self._trajectory(result, tuple(cv.name for cv in record or ()), stride_ps, frame_every)
            if result.failure is not None:
                failures[index] = self._describe_failure(result, stride_ps, frame_every)
            elif on_result is not None:
                on_result(index, trajectories[index])

        self._run(worker.run_walker, tasks, receive, short=stop is not None)
        ordered = [trajectories[i] for i in range(len(batch))]
        if failures:
            more = f" ({len(failures)} of {len(batch)} walkers failed)" if len(failures) > 1 else ""
            error = SimulationError(
                failures[min(failures)] + more, "use a smaller time step, or start from minimized structures (engine.minimize)"
            )
            error.partial = ordered
            raise error
        return ordered

    def minimize(
        self,
        states: State | Sequence[State],
        *,
        bias: Bias | Sequence[Bias | None] | None = None,
        record: Sequence[CollectiveVariable] = (),
        max_iterations: int = 0,
        tolerance: float = 10.0,
    ) -> list[State]:
        """Return the states at local minima of the (biased) energy, constraints satisfied, without velocities.

        Parameters
        ----------
        states, bias, record : as in :meth:`propagate`.
        max_iterations : 0 minimizes until converged.
        tolerance : root-mean-square force to reach, kJ/mol/nm.

        Raises
        ------
        SimulationError : a minimization failed; ``partial`` holds the states, None where it failed.
        """
        batch = self._checked(states)
        description = self._describe(self.platform, len(batch))
        tasks = [
            single.MinimizeTask(i, description, plan, parameters, state, max_iterations, tolerance)
            for i, (state, (plan, parameters)) in enumerate(zip(batch, self._plans(bias, record, len(batch)), strict=True))
        ]
        results = self._run(single.run_minimize, tasks)
        failed = [(i, text) for i, text in enumerate(results) if isinstance(text, str)]
        if failed:
            error = SimulationError(f"the minimization of state {failed[0][0]} failed: {failed[0][1]}", "check it for overlapping atoms")
            error.partial = [r if isinstance(r, State) else None for r in results]
            raise error
        return [r for r in results if isinstance(r, State)]

    def energies(self, positions: Array, boxes: Array | None = None) -> Array:
        """Return unbiased potential energies (n,) in kJ/mol.

        Parameters
        ----------
        positions : (n, n_atoms, 3) nm, or one configuration (n_atoms, 3).
        boxes : (n, 3, 3) nm, or None for the System's own box.

        Returns
        -------
        Energies; NaN where OpenMM cannot evaluate a configuration.

        Raises
        ------
        DataError : the shapes do not fit.
        """
        batch = np.asarray(positions, dtype=np.float64)
        batch = batch[None] if batch.ndim == 2 else batch
        if batch.shape[1:] != self.molecule.state.positions.shape:
            raise DataError(f"positions have shape {batch.shape}, expected (n, {len(self.molecule.state.positions)}, 3)")
        if boxes is not None and np.shape(boxes) != (len(batch), 3, 3):
            raise DataError(f"boxes have shape {np.shape(boxes)}, expected ({len(batch)}, 3, 3)")
        parts = np.array_split(np.arange(len(batch)), max(1, min(self.workers, len(batch) // 500)))
        description = self._describe(self.platform, len(parts))
        tasks = [
            single.EnergyTask(i, description, batch[rows], None if boxes is None else np.asarray(boxes)[rows])
            for i, rows in enumerate(parts)
        ]
        return np.concatenate(self._run(single.run_energies, tasks))

    def apply_constraints(self, state: State) -> State:
        """Return the state moved onto the constraints (and its velocities, if any, along them).

        Raises
        ------
        SimulationError : no positions nearby satisfy the constraints.
        """
        (checked,) = self._checked(state)
        (out,) = self._run(single.run_constraints, [single.MinimizeTask(0, self._describe(self.platform), None, {}, checked, 0, 0.0)])
        if isinstance(out, str):
            raise SimulationError(f"the constraints of {self.molecule.name} cannot be satisfied: {out}", "check the state's bond lengths")
        return cast(State, out)

    def kicked(self, positions: Array, velocities: Array, fraction: float, boxes: Array | None = None) -> Array:
        """Return velocities P (v + fraction dt f / m), f being the forces and P the projection along constraints.

        The integrator keeps v from before the kick of its next step: a half kick gives the velocity at the time of the
        positions, a full one what the positions are moved by.

        Parameters
        ----------
        positions, velocities : (n, n_atoms, 3) nm and nm/ps.
        fraction : of the kick of one step; may be negative.
        boxes : (n, 3, 3) nm, or None for the System's own box.

        Returns
        -------
        Velocities (n, n_atoms, 3) in nm/ps; NaN where OpenMM cannot evaluate a configuration.

        Raises
        ------
        DataError : the shapes do not fit.
        """
        expected = (len(positions), *self.molecule.state.positions.shape)
        if not np.shape(positions) == np.shape(velocities) == expected:
            raise DataError(
                f"positions {np.shape(positions)} and velocities {np.shape(velocities)} to kick do not have the shape {expected}"
            )
        n_parts = max(1, min(self.workers, len(positions) // 500))
        description = self._describe(self.platform, n_parts)
        edges = [len(positions) * k // n_parts for k in range(n_parts + 1)]
        tasks = [
            single.KickTask(i, description, positions[a:b], velocities[a:b], None if boxes is None else boxes[a:b], fraction)
            for i, (a, b) in enumerate(pairwise(edges))
        ]
        kicked = self._run(single.run_kicks, tasks)
        return kicked[0] if n_parts == 1 else np.concatenate(kicked)

    def side_by_side(self, function: Callable[[OpenMMEngine, Any], Result], parts: Sequence[Any]) -> list[Result]:
        """Return ``function(engine, part)`` of each part, worked on by as many workers as there are.

        Parameters
        ----------
        function : importable; the engine it gets runs everything inline, on one worker's share of the cores.
        """
        alone = copy.copy(self)
        alone._platform, alone._properties = self.platform, dict(self._context_properties(len(parts)))
        alone.workers, alone._descriptions = 1, {}
        return self._run(_with_engine, [(function, alone, part) for part in parts])

    def _describe(self, platform: str, n_walkers: int = 1) -> worker.Description:
        if (platform, n_walkers) not in self._descriptions:
            base = worker.Description(self._system, self.temperature, self.friction, self.time_step, platform)
            whole = replace(base, properties=self._context_properties(n_walkers)) if platform else base
            self._descriptions[platform, n_walkers] = whole
        return self._descriptions[platform, n_walkers]

    def _context_properties(self, n_walkers: int) -> tuple[tuple[str, str], ...]:
        defaults = dict(platform_properties(self.platform, min(self.workers, n_walkers)))
        return tuple(sorted((defaults | self._properties).items()))

    def _run(self, function: Any, tasks: Sequence[Any], on_done: Any = None, *, short: bool = False) -> list[Any]:
        import openmm

        processes = self.platform in worker.HOST_PLATFORMS
        try:
            return run_tasks(function, tasks, self.workers, processes=processes, on_done=on_done, short=short)
        except openmm.OpenMMException as error:
            raise SimulationError(
                f"OpenMM cannot run {self.molecule.name} on platform {self.platform}: {error}",
                "check platform_properties and the memory of the device, or choose another platform",
            ) from error

    def _checked(self, states: State | Sequence[State]) -> list[State]:
        batch, expected = as_states(states), self.molecule.state.positions.shape
        for i, state in enumerate(batch):
            if state.positions.shape != expected:
                raise DataError(f"state {i} has positions of shape {state.positions.shape}, but {self.molecule.name} needs {expected}")
        return batch

    def _plans(
        self, bias: Bias | Sequence[Bias | None] | None, record: Sequence[CollectiveVariable], n: int
    ) -> list[tuple[BiasPlan | None, dict[str, float]]]:
        cvs = {cv.name: cv for cv in record}
        if len(cvs) != len(record):
            raise DataError(f"two recorded CVs have the same name: {', '.join(cv.name for cv in record)}", "give each CV its own name")
        plans: list[tuple[BiasPlan | None, dict[str, float]]] = []
        for i, one in enumerate(per_walker_biases(bias, n)):
            missing = [] if one is None else [name for name in one.names if name not in cvs]
            if missing:
                raise DataError(f"the bias of walker {i} is on {missing[0]!r}, which is not in record{nearest(missing[0], cvs)}")
            plans.append((None, {}) if one is None else plan_bias(one, cvs))
        return plans

    def _trajectory(self, result: worker.WalkerResult, names: tuple[str, ...], stride: float, frame_every: int) -> Trajectory:
        return Trajectory.owning(
            result.positions,
            stride * max(1, frame_every),
            result.velocities,
            result.boxes,
            self.topology,
            None if result.potential is None else Series(names, result.values, result.potential, stride),
            result.last,
            result.ended,
        )

    def _describe_failure(self, result: worker.WalkerResult, stride: float, frame_every: int) -> str:
        record = result.n_records + 1
        frame = f" (frame {(record - 1) // frame_every + 1})" if frame_every else ""
        return f"walker {result.index} broke down before record {record}{frame}, t = {record * stride:g} ps: {result.failure}"
