"""Which OpenMM platform is fastest for a system here: measured on the system itself, not assumed.

For 22 atoms the Reference platform beats the multi-threaded CPU platform by more than an order of magnitude; for
thousands it is the other way round.  What counts is the aggregate rate of all workers: host platforms run one process
per worker, while Contexts on one device share it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import openmm

from couloir.sampling._openmm_worker import HOST_PLATFORMS, Description, turn
from couloir.sampling._pool import available_cores
from couloir.units import convert

if TYPE_CHECKING:
    from couloir.sampling.molecule import MolecularSystem

REFERENCE_MAX_ATOMS = 1500
"""Above this size the single-threaded Reference platform is hopeless and is not timed."""

_DEVICE_PROPERTIES = {"CUDA": {"Precision": "mixed"}, "OpenCL": {"Precision": "mixed"}, "HIP": {"Precision": "mixed"}}


class PlatformSpeed(NamedTuple):
    """How fast one platform runs a system.

    Attributes
    ----------
    name : OpenMM's name of the platform.
    steps_per_second : of one Context; 0 when the platform does not work or was not timed.
    aggregate : steps per second of all workers together, estimated from one Context.
    problem : why it does not work or was not timed; empty when it does.
    """

    name: str
    steps_per_second: float
    aggregate: float
    problem: str = ""


def available_platforms() -> list[str]:
    """Return the names of the platforms that this OpenMM installation has loaded."""
    return [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]


def platform_properties(name: str, workers: int) -> tuple[tuple[str, str], ...]:
    """Return Context properties for ``workers`` Contexts at once: CPU Contexts share the cores, devices use mixed precision."""
    if name == "CPU":
        return (("DeterministicForces", "true"), ("Threads", str(max(1, available_cores() // max(1, workers)))))
    return tuple(_DEVICE_PROPERTIES.get(name, {}).items())


def benchmark_platforms(
    molecule: MolecularSystem,
    *,
    temperature: Any = "300 K",
    time_step: Any = "2 fs",
    friction: Any = "1/ps",
    workers: int | None = None,
    seconds: float = 0.6,
) -> list[PlatformSpeed]:
    """Time every available platform on a system, from its starting positions; fastest aggregate first.

    Parameters
    ----------
    molecule : the system.
    temperature, time_step, friction : of the integrator.
    workers : walkers at once; default one per core.
    seconds : wall-clock time to spend stepping, divided among the platforms.
    """
    base = Description(
        Description.compress(molecule.system_xml),
        convert(temperature, "K", "temperature"),
        convert(friction, "1/ps", "friction"),
        convert(time_step, "ps", "time_step"),
        "",
    )
    return time_platforms(base, molecule.state.positions, workers or available_cores(), seconds)


def time_platforms(base: Description, positions: Any, workers: int, seconds: float = 0.6) -> list[PlatformSpeed]:
    """Time every available platform on a description; fastest aggregate first."""
    names = available_platforms()
    speeds = [_time_platform(base, np.asarray(positions), name, workers, seconds / len(names)) for name in names]
    return sorted(speeds, key=lambda speed: -speed.aggregate)


def _time_platform(base: Description, positions: Any, name: str, workers: int, seconds: float) -> PlatformSpeed:
    if name == "Reference" and len(positions) > REFERENCE_MAX_ATOMS:
        return PlatformSpeed(name, 0.0, 0.0, f"not timed: too slow above {REFERENCE_MAX_ATOMS} atoms")
    description = Description(base.system, base.temperature, base.friction, base.time_step, name, platform_properties(name, workers))
    try:
        with turn(description):
            rate = _rate(description, positions, seconds)
    except openmm.OpenMMException as error:
        return PlatformSpeed(name, 0.0, 0.0, str(error))
    return PlatformSpeed(name, rate, rate * workers if name in HOST_PLATFORMS else rate)


def _rate(description: Description, positions: Any, seconds: float) -> float:
    integrator = openmm.LangevinMiddleIntegrator(description.temperature, description.friction, description.time_step)
    platform = openmm.Platform.getPlatformByName(description.platform)
    context = openmm.Context(description.load_system(), integrator, platform, dict(description.properties))
    context.setPositions(positions)
    context.setVelocitiesToTemperature(description.temperature, 1)
    integrator.step(2)
    context.getState(energy=True)  # devices compile and step asynchronously: wait for them
    batch, rate = 2, 0.0
    deadline = time.perf_counter() + seconds
    while (start := time.perf_counter()) < deadline:
        integrator.step(batch)
        context.getState(energy=True)
        elapsed = time.perf_counter() - start
        rate = batch / elapsed
        batch = max(2, int(rate * max(0.0, deadline - time.perf_counter()) / 2))
    return rate
