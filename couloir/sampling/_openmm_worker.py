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
_LENGTH = unit.nanometer

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
    record: tuple[CollectiveVariable, ...] | None
    stop: Region | None
    velocities: bool


@dataclass
class WalkerResult:
    """Arrays of one walker; ``failure`` says why it broke at record ``n_records + 1``, or is None."""

    index: int
    positions: Array
    velocities: Array | None
    boxes: Array | None
    values: Array
    potential: Array | None
    n_records: int
    last: State
    ended: Literal["complete", "stopped", "failed"] = "complete"
    failure: str | None = None


@dataclass
class Simulation:
    """A Context and what drives it."""

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

    @cached_property
    def constraints(self) -> tuple[npt.NDArray[np.int64], Array]:
        """Pairs of particles (n, 2) whose distance is fixed, and those distances (n,) in nm."""
        system = self.context.getSystem()
        rows = [system.getConstraintParameters(i) for i in range(system.getNumConstraints())]
        pairs = np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1, 2)
        return pairs, np.array([row[2].value_in_unit(_LENGTH) for row in rows], dtype=np.float64)

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
        return State.owning(positions_of(snapshot), velocities_of(snapshot), box_of(snapshot) if self.periodic else None)


def free_group(system: openmm.System) -> int:
    """Return the highest force group that no force of the System uses."""
    used = {force.getForceGroup() for force in system.getForces()}
    return max(group for group in range(32) if group not in used)


def simulation(description: Description, bias: BiasPlan | None) -> Simulation:
    """Return this thread's Context for a description and a kind of bias, made on first use."""
    contexts: OrderedDict[tuple[Description, str], Simulation] = _cache.__dict__.setdefault("contexts", OrderedDict())
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
    contexts[key] = Simulation(context, integrator, system.usesPeriodicBoundaryConditions(), unbiased, shared_noise)
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

    def __init__(self, task: WalkerTask, driver: Simulation) -> None:
        self.task, self.driver, self.cvs = task, driver, task.record or ()
        self.stops = None if task.stop is None else task.stop.decider()
        n_atoms, n_frames = len(task.state.positions), task.n_records // task.frame_every if task.frame_every else 0
        self.frames = np.empty((n_frames, n_atoms, 3))
        self.velocities = np.empty((n_frames, n_atoms, 3)) if task.velocities else None
        self.boxes = np.empty((n_frames, 3, 3)) if driver.periodic else None
        self.values = np.empty((task.n_records, len(self.cvs)))
        self.potential = None if task.record is None else np.empty(task.n_records)
        # at least two, so that the last good positions outlive the reading of bad ones
        size = min(task.n_records, _BLOCK_RECORDS, max(2, _BLOCK_FLOATS // (3 * n_atoms)))
        self.block = self.frames if task.frame_every == 1 and not self.cvs else np.empty((size, n_atoms, 3))
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
        last = self._last() if failure is None else self._last_good()
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
        energy = self.potential is not None  # costs as much as a step
        try:
            driver.step(task.record_steps)
            snapshot = driver.context.getState(
                positions=True, energy=energy, velocities=keep and task.velocities, groups=driver.unbiased_groups
            )
        except openmm.OpenMMException as error:
            return str(error)
        positions = vectors(snapshot, openmm.State.Positions, self.block[self.done % len(self.block)])
        flat = positions.ravel()
        # one sum of squares says at once that all is well; the largest coordinate is looked for when it does not
        if not flat @ flat < _FAR**2 and not np.abs(flat).max() < _FAR:  # also when one is NaN
            return f"a particle is not within {_FAR:g} nm of the origin"
        if self.potential is not None:
            self.potential[self.done] = potential = snapshot.getPotentialEnergy()._value
            if not math.isfinite(potential):
                return f"the potential energy is {potential}"
        if self.boxes is not None:
            self.box = box_of(snapshot)
        if keep:
            self._keep(snapshot, positions)
        self.done += 1
        return None

    def _keep(self, snapshot: openmm.State, positions: Array) -> None:
        frame = self.done // self.task.frame_every
        if self.block is not self.frames:
            self.frames[frame] = positions
        if self.velocities is not None:
            vectors(snapshot, openmm.State.Velocities, self.velocities[frame])
        if self.boxes is not None and self.box is not None:
            self.boxes[frame] = self.box

    def _evaluate(self) -> None:
        """Evaluate the CVs on the records of the block that were not evaluated yet."""
        n = self.done - self.evaluated
        if n:
            for column, cv in enumerate(self.cvs):
                self.values[self.evaluated : self.done, column] = cv.evaluate(self.block[:n])
        self.evaluated = self.done

    def _last(self) -> State:
        """Return where the walker stands: its last frame, where that was kept with velocities and nothing came after it."""
        every = self.task.frame_every
        if self.velocities is None or every == 0 or self.done % every or not self.done:
            return self.driver.state()
        return State.owning(self._newest().copy(), self.velocities[self.done // every - 1].copy(), self.box)

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
            None if self.potential is None else cut(self.potential, n),
            n,
            last,
            ended,
            failure,
        )


def positions_of(snapshot: openmm.State) -> Array:
    """Return positions (n_atoms, 3) in nm."""
    return vectors(snapshot, openmm.State.Positions)


def velocities_of(snapshot: openmm.State) -> Array:
    """Return velocities (n_atoms, 3) in nm/ps."""
    return vectors(snapshot, openmm.State.Velocities)


def vectors(snapshot: openmm.State, what: int, out: Array | None = None) -> Array:
    """Read vectors in OpenMM's units (nm, nm/ps) without making a Quantity, which costs ten times as much as the copy."""
    if out is None:
        out = np.empty((snapshot._getNumParticles(), 3))
    snapshot._getVectorAsNumpy(what, out)
    return out


def box_of(snapshot: openmm.State) -> npt.NDArray[np.float64]:
    """Return box vectors (3, 3) in nm."""
    return np.asarray(snapshot.getPeriodicBoxVectors(asNumpy=True).value_in_unit(_LENGTH))
