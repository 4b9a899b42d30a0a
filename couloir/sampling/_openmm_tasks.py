"""What OpenMM does with single configurations: energies, constraints, kicks and minimization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from openmm import unit

from couloir.sampling._openmm_bias import BiasPlan
from couloir.sampling._openmm_worker import Description, positions_of, simulation, turn, vectors
from couloir.trajectory import Array, State

_ENERGY = unit.kilojoule_per_mole
_BROKEN = 1e-3  # relative error of a constrained distance; solved ones are within 1e-5, and OpenMM gives up without a word


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
    """Velocities (n, n_atoms, 3) after ``fraction`` of the kick of one step."""

    index: int
    description: Description
    positions: Array
    velocities: Array
    boxes: Array | None
    fraction: float


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
            positions = positions_of(driver.context.getState(positions=True))
        except openmm.OpenMMException as error:
            return str(error)
        if not np.isfinite(positions).all():
            return "a particle coordinate is not finite"
        return State(positions, None, task.state.box)


def run_constraints(task: MinimizeTask) -> State | str:
    """Return the state with constraints applied to positions and, if there are any, velocities, or what went wrong."""
    with turn(task.description):
        driver = simulation(task.description, None)
        tolerance = driver.integrator.getConstraintTolerance()
        try:
            driver.place(task.state)
            driver.context.applyConstraints(tolerance)
            if task.state.velocities is not None:
                driver.context.setVelocities(task.state.velocities)
                driver.context.applyVelocityConstraints(tolerance)
            out = driver.state()
        except openmm.OpenMMException as error:
            return str(error)
        if not np.isfinite(out.positions).all():
            return "a particle coordinate is not finite"
        (pairs, distances), x = driver.constraints, out.positions
        off = np.abs(np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1) - distances)
        if (off > _BROKEN * distances).any():
            worst = int(np.argmax(off / distances))
            return f"atoms {pairs[worst, 0]} and {pairs[worst, 1]} do not come to be {distances[worst]:.4g} nm apart"
        return State.owning(x, None if task.state.velocities is None else out.velocities, task.state.box)


def run_kicks(task: KickTask) -> Array:
    """Return the velocities P (v + fraction dt f / m); those of particles without mass stay as they are.

    A configuration that OpenMM cannot evaluate gets NaN, so that it spoils no other.
    """
    out = np.empty_like(task.velocities)
    with turn(task.description):
        driver = simulation(task.description, None)
        context, tolerance = driver.context, driver.integrator.getConstraintTolerance()
        factor = task.fraction * task.description.time_step * driver.inverse_masses
        for i, velocities in enumerate(task.velocities):
            try:
                driver.place(State.owning(task.positions[i], None, None if task.boxes is None else task.boxes[i]))
                context.setVelocities(velocities + factor * vectors(context.getState(forces=True), openmm.State.Forces))
                context.applyVelocityConstraints(tolerance)
                vectors(context.getState(velocities=True), openmm.State.Velocities, out[i])
            except openmm.OpenMMException:
                out[i] = np.nan
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
