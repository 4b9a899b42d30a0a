"""What happens where OpenMM work lands: Contexts are made, cached and driven here; nothing here knows about pools.

A task is plain data, so it runs the same in the calling process, in a worker process or in a thread.  Every task
reseeds its Context from its own seed before it sets positions, so its numbers depend on (state, bias, seed) alone:
the Reference platform has one random generator per process, and another Context's work moves it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import openmm
from openmm import unit

from couloir.cv.base import CollectiveVariable
from couloir.cv.region import Region
from couloir.sampling._openmm_bias import BiasPlan, bias_forces
from couloir.sampling._openmm_noise import random_forces, reseed_reference
from couloir.streams import integer_seed
from couloir.trajectory import Array, State

HOST_PLATFORMS = ("Reference", "CPU")
"""Platforms that compute on the host: their walkers run in processes, one at a time in each."""

_MAX_CONTEXTS = 8
_STEPS_PER_CALL = 500  # a longer call could not be interrupted
_BLOCK_FLOATS = 2_000_000  # positions held between two CV evaluations: 16 MB
_BLOCK_RECORDS = 1000
_FAR = 1e6  # nm; nothing diffuses a millimetre, but an exploding integrator passes it long before it overflows
_ENERGY, _LENGTH = unit.kilojoule_per_mole, unit.nanometer

_host_lock = threading.RLock()
_cache = threading.local()


@dataclass(frozen=True)
class Description:
    """Everything a Context is made of, except the bias; hashable, and small when pickled."""

    system: bytes
    temperature: float
    friction: float
    time_step: float
    platform: str
    properties: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def compress(system_xml: str) -> bytes:
        """Return the serialized System as it travels."""
        return zlib.compress(system_xml.encode(), 6)

    def load_system(self) -> openmm.System:
        """Return a fresh System."""
        return openmm.XmlSerializer.deserialize(zlib.decompress(self.system).decode())


@dataclass(frozen=True)
class WalkerTask:
    """One walker's propagation: ``n_records`` times ``record_steps`` steps, keeping every ``frame_every``-th (0: none)."""

    index: int
    description: Description
    bias: BiasPlan | None
    parameters: Mapping[str, float]
    state: State
    seed: int
    n_records: int
    record_steps: int
    frame_every: int
    record: tuple[CollectiveVariable, ...]
    stop: Region | None
    velocities: bool


@dataclass
class WalkerResult:
    """Arrays of one walker; ``failure`` says why it broke at record ``len(potential) + 1``, or is None."""

    index: int
    positions: Array
    velocities: Array | None
    boxes: Array | None
    values: Array
    potential: Array
    last: State
    ended: Literal["complete", "stopped", "failed"] = "complete"
    failure: str | None = None


@dataclass(frozen=True)
class MinimizeTask:
    """Energy minimization of one state under a bias."""

    index: int
    description: Description
    bias: BiasPlan | None
    parameters: Mapping[str, float]
    state: State
    max_iterations: int
    tolerance: float


@dataclass(frozen=True)
class EnergyTask:
    """Unbiased potential energies of a batch of positions (n, n_atoms, 3)."""

    index: int
    description: Description
    positions: Array
    boxes: Array | None


@dataclass(frozen=True)
class KickTask:
    """Velocities of states after ``fraction`` of the kick of one step."""

    index: int
    description: Description
    states: tuple[State, ...]
    fraction: float


@dataclass
class _Simulation:
    context: openmm.Context
    integrator: openmm.Integrator
    periodic: bool
    unbiased_groups: int
    seeds_by_process: bool = False
    """Whether its noise is the Reference platform's, and the integrator the only one that remembers anything between steps."""

    @cached_property
    def inverse_masses(self) -> Array:
        """1 / mass (n_atoms, 1) in 1/amu; 0 for particles without mass."""
        system = self.context.getSystem()
        masses = np.array([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())])
        return np.asarray(np.divide(1.0, masses, out=np.zeros_like(masses), where=masses > 0)[:, None])

    def place(self, state: State) -> None:
        """Set box (the System's own when the state has none), then positions (virtual sites included)."""
        if self.periodic:
            box = self.context.getSystem().getDefaultPeriodicBoxVectors() if state.box is None else state.box
            self.context.setPeriodicBoxVectors(*box)
        self.context.setPositions(state.positions)
        self.context.computeVirtualSites()

    def reset(self, parameters: Mapping[str, float], seed: int) -> None:
        """Forget everything: the next steps depend on the seed and on what is set from here on."""
        value = integer_seed(seed, "dynamics")
        if self.seeds_by_process and reseed_reference(value):
            self.context.setTime(0.0)
            self.context.setStepCount(0)
        else:
            self.integrator.setRandomNumberSeed(value)
            for force in random_forces(self.context.getSystem()):
                force.setRandomNumberSeed(value)
            self.context.reinitialize(preserveState=False)
        self.set_parameters(parameters)

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        for name, value in parameters.items():
            self.context.setParameter(name, value)

    def step(self, n: int) -> None:
        while n > 0:
            self.integrator.step(min(n, _STEPS_PER_CALL))
            n -= _STEPS_PER_CALL

    def state(self) -> State:
        snapshot = self.context.getState(positions=True, velocities=True)
        return State(_positions(snapshot), _velocities(snapshot), _box(snapshot) if self.periodic else None)


def free_group(system: openmm.System) -> int:
    """Return the highest force group that no force of the System uses."""
    used = {force.getForceGroup() for force in system.getForces()}
    return max(group for group in range(32) if group not in used)


def simulation(description: Description, bias: BiasPlan | None) -> _Simulation:
    """Return this thread's Context for a description and a kind of bias, made on first use."""
    contexts: OrderedDict[tuple[Description, str], _Simulation] = _cache.__dict__.setdefault("contexts", OrderedDict())
    key = (description, "" if bias is None else bias.key)
    if key in contexts:
        contexts.move_to_end(key)
        return contexts[key]
    while len(contexts) >= _MAX_CONTEXTS:
        contexts.popitem(last=False)
    system = description.load_system()
    group = free_group(system)
    if bias is not None:
        for force in bias_forces(bias):
            force.setForceGroup(group)
            system.addForce(force)
    integrator = openmm.LangevinMiddleIntegrator(description.temperature, description.friction, description.time_step)
    platform = openmm.Platform.getPlatformByName(description.platform)
    context = openmm.Context(system, integrator, platform, dict(description.properties))
    unbiased = 0xFFFFFFFF & ~(1 << group) if bias is not None else -1
    shared_noise = description.platform == "Reference" and not random_forces(system)
    contexts[key] = _Simulation(context, integrator, system.usesPeriodicBoundaryConditions(), unbiased, shared_noise)
    return contexts[key]


def turn(description: Description) -> contextlib.AbstractContextManager[Any]:
    """Return what a task holds while it runs: on the host one task per process, elsewhere nothing."""
    return _host_lock if description.platform in HOST_PLATFORMS else contextlib.nullcontext()


def run_walker(task: WalkerTask) -> WalkerResult:
    """Propagate one walker from its state with its seed."""
    with turn(task.description):
        return _Recorder(task, simulation(task.description, task.bias)).run()


class _Recorder:
    """The loop: step, read one block of records in bulk, evaluate CVs on the block."""

    def __init__(self, task: WalkerTask, driver: _Simulation) -> None:
        self.task, self.driver = task, driver
        self.stops = None if task.stop is None else task.stop.decider()
        n_atoms, n_frames = len(task.state.positions), task.n_records // task.frame_every if task.frame_every else 0
        self.frames = np.empty((n_frames, n_atoms, 3))
        self.velocities = np.empty((n_frames, n_atoms, 3)) if task.velocities else None
        self.boxes = np.empty((n_frames, 3, 3)) if driver.periodic else None
        self.values = np.empty((task.n_records, len(task.record)))
        self.potential = np.empty(task.n_records)
        size = min(task.n_records, _BLOCK_RECORDS, max(1, _BLOCK_FLOATS // (3 * n_atoms)))
        self.block = np.empty((size, n_atoms, 3))
        self.done = self.evaluated = 0
        self.box: Array | None = task.state.box if driver.periodic else None

    def run(self) -> WalkerResult:
        task, failure, stopped = self.task, self.begin(), False
        while self.done < task.n_records and not stopped and failure is None:
            failure = self._record()
            if failure is None:
                stopped = self.stops is not None and self.stops(self._newest())
                if self.done - self.evaluated == len(self.block):
                    self._evaluate()
        last = self.driver.state() if failure is None else self._last_good()
        self._evaluate()
        return self._result(last, "failed" if failure is not None else "stopped" if stopped else "complete", failure)

    def begin(self) -> str | None:
        """Put the walker where it starts; return what went wrong, or None."""
        task, driver = self.task, self.driver
        try:
            driver.reset(task.parameters, task.seed)
            driver.place(task.state)
            if task.state.velocities is None:
                driver.context.applyConstraints(driver.integrator.getConstraintTolerance())
                driver.context.setVelocitiesToTemperature(task.description.temperature, integer_seed(task.seed, "velocities"))
            else:
                driver.context.setVelocities(task.state.velocities)
        except openmm.OpenMMException as error:
            return str(error)
        return None

    def _newest(self) -> Array:
        return np.asarray(self.block[(self.done - 1) % len(self.block)])

    def _record(self) -> str | None:
        """Advance by one record; return what went wrong, or None."""
        task, driver = self.task, self.driver
        keep = task.frame_every > 0 and (self.done + 1) % task.frame_every == 0
        try:
            driver.step(task.record_steps)
            snapshot = driver.context.getState(
                positions=True, energy=True, velocities=keep and task.velocities, groups=driver.unbiased_groups
            )
        except openmm.OpenMMException as error:
            return str(error)
        energy, positions = snapshot.getPotentialEnergy()._value, _positions(snapshot)
        if not math.isfinite(energy):
            return f"the potential energy is {energy}"
        if not np.abs(positions).max() < _FAR:  # also when it is NaN
            return f"a particle is not within {_FAR:g} nm of the origin"
        self.block[self.done % len(self.block)] = positions
        self.potential[self.done] = energy
        if self.boxes is not None:
            self.box = _box(snapshot)
        if keep:
            self._keep(snapshot, positions)
        self.done += 1
        return None

    def _keep(self, snapshot: openmm.State, positions: Array) -> None:
        frame = self.done // self.task.frame_every
        self.frames[frame] = positions
        if self.velocities is not None:
            self.velocities[frame] = _velocities(snapshot)
        if self.boxes is not None and self.box is not None:
            self.boxes[frame] = self.box

    def _evaluate(self) -> None:
        """Evaluate the CVs on the records of the block that were not evaluated yet."""
        n = self.done - self.evaluated
        if n:
            for column, cv in enumerate(self.task.record):
                self.values[self.evaluated : self.done, column] = cv.evaluate(self.block[:n])
        self.evaluated = self.done

    def _last_good(self) -> State:
        return State(self._newest(), None, self.box) if self.done else self.task.state

    def _result(self, last: State, ended: Literal["complete", "stopped", "failed"], failure: str | None) -> WalkerResult:
        n, n_frames = self.done, self.done // self.task.frame_every if self.task.frame_every else 0

        def cut(array: Array, length: int) -> Array:
            return array if len(array) == length else array[:length].copy()

        return WalkerResult(
            self.task.index,
            cut(self.frames, n_frames),
            None if self.velocities is None else cut(self.velocities, n_frames),
            None if self.boxes is None else cut(self.boxes, n_frames),
            cut(self.values, n),
            cut(self.potential, n),
            last,
            ended,
            failure,
        )


class Iterations(openmm.MinimizationReporter):  # type: ignore[misc]
    """Counts the iterations of the minimizer."""

    n = 0

    def report(self, iteration: int, x: Any, grad: Any, args: Any) -> bool:
        """Count one more, and let the minimizer go on."""
        self.n += 1
        return False


def run_minimize(task: MinimizeTask, reporter: openmm.MinimizationReporter | None = None) -> State | str:
    """Return the minimized state without velocities, or what went wrong."""
    with turn(task.description):
        driver = simulation(task.description, task.bias)
        driver.set_parameters(task.parameters)
        try:
            driver.place(task.state)
            energy = driver.context.getState(energy=True).getPotentialEnergy().value_in_unit(_ENERGY)
            if not math.isfinite(energy):  # constraints and minimizer would search for ever
                return f"the potential energy is {energy} to begin with"
            driver.context.applyConstraints(driver.integrator.getConstraintTolerance())
            openmm.LocalEnergyMinimizer.minimize(driver.context, task.tolerance, task.max_iterations, reporter)
            driver.context.applyConstraints(driver.integrator.getConstraintTolerance())
            positions = _positions(driver.context.getState(positions=True))
        except openmm.OpenMMException as error:
            return str(error)
        if not np.isfinite(positions).all():
            return "a particle coordinate is not finite"
        return State(positions, None, task.state.box)


def run_constraints(task: MinimizeTask) -> State:
    """Return the state with constraints applied to positions and, if there are any, velocities."""
    with turn(task.description):
        driver = simulation(task.description, None)
        driver.place(task.state)
        tolerance = driver.integrator.getConstraintTolerance()
        driver.context.applyConstraints(tolerance)
        if task.state.velocities is not None:
            driver.context.setVelocities(task.state.velocities)
            driver.context.applyVelocityConstraints(tolerance)
        out = driver.state()
        return State(out.positions, None if task.state.velocities is None else out.velocities, task.state.box)


def run_kicks(task: KickTask) -> list[State]:
    """Return the states with velocities P (v + fraction dt f / m); particles without mass stay as they are."""
    out = []
    with turn(task.description):
        driver = simulation(task.description, None)
        tolerance = driver.integrator.getConstraintTolerance()
        factor = task.fraction * task.description.time_step * driver.inverse_masses
        for state in task.states:
            driver.place(state)
            forces = _read(driver.context.getState(forces=True), openmm.State.Forces)
            driver.context.setVelocities(np.asarray(state.velocities) + factor * forces)
            driver.context.applyVelocityConstraints(tolerance)
            out.append(State(state.positions, _velocities(driver.context.getState(velocities=True)), state.box))
    return out


def run_energies(task: EnergyTask) -> Array:
    """Return potential energies (n,) in kJ/mol; a configuration that OpenMM cannot evaluate gets NaN."""
    out = np.full(len(task.positions), np.nan)
    with turn(task.description):
        driver = simulation(task.description, None)
        for i, positions in enumerate(task.positions):
            try:
                driver.place(State(positions, None, None if task.boxes is None else task.boxes[i]))
                out[i] = driver.context.getState(energy=True).getPotentialEnergy().value_in_unit(_ENERGY)
            except openmm.OpenMMException as error:
                if "nan" not in str(error).lower():
                    raise
    return out


def _positions(snapshot: openmm.State) -> Array:
    return _read(snapshot, openmm.State.Positions)


def _velocities(snapshot: openmm.State) -> Array:
    return _read(snapshot, openmm.State.Velocities)


def _read(snapshot: openmm.State, what: int) -> Array:
    """Read vectors in OpenMM's units (nm, nm/ps) without making a Quantity, which costs ten times as much as the copy."""
    out = np.empty((snapshot._getNumParticles(), 3))
    snapshot._getVectorAsNumpy(what, out)
    return out


def _box(snapshot: openmm.State) -> npt.NDArray[np.float64]:
    return np.asarray(snapshot.getPeriodicBoxVectors(asNumpy=True).value_in_unit(_LENGTH))
