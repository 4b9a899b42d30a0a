"""Seeding OpenMM's noise.

A Context takes its seed only when it is initialized, which costs a small molecule as much as hundreds of steps.  The
Reference platform, however, has one random generator for the whole process, which a checkpoint of any Context holds:
loading the checkpoint of a particle whose generator has just been seeded seeds all, and in it the seed is four bytes
that can be replaced.  Gaussians are made in pairs, and the second of a pair is forgotten by loading, before that, a
checkpoint taken between pairs.  OpenMM promises none of this, so it is tried out, once per process, before it is used.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import numpy as np
import openmm

_STEPS = 3  # an odd number of Gaussians in three dimensions: one is left over
_SEEDS = (0x12345678, 0x2BCDEF01)


def random_forces(system: openmm.System) -> list[Any]:
    """Return the forces that draw random numbers (barostats, thermostats); they also adapt, which only a new start undoes."""
    return [force for force in system.getForces() if hasattr(force, "setRandomNumberSeed")]


def reseed_reference(seed: int) -> bool:
    """Seed the Reference platform's generator as initializing a Context with this seed would; return False where that cannot be done.

    The caller holds the process's turn: the generator is everybody's.
    """
    seeder = _seeder()
    if seeder is None:
        return False
    seeder.seed(seed)
    return True


class _Particle:
    """A free particle with a Langevin integrator."""

    def __init__(self, mass: float) -> None:
        system = openmm.System()
        system.addParticle(mass)
        self.integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.002)
        self.context = openmm.Context(system, self.integrator, openmm.Platform.getPlatformByName("Reference"))

    def initialize(self, seed: int) -> None:
        self.integrator.setRandomNumberSeed(seed)
        self.context.reinitialize()
        self.context.setPositions(np.zeros((1, 3)))

    def walk(self) -> Any:
        """Return where a few steps from rest at the origin lead."""
        self.context.setPositions(np.zeros((1, 3)))
        self.context.setVelocities(np.zeros((1, 3)))
        self.integrator.step(_STEPS)
        return self.context.getState(positions=True).getPositions(asNumpy=True)._value


class _Seeder:
    """A particle that is there for its checkpoints: one between pairs, and one just seeded, ``before`` + seed + ``after``."""

    def __init__(self) -> None:
        self.particle = _Particle(1.0)
        first, second = (self._checkpoint(seed) for seed in _SEEDS)
        self.before, found, self.after = first.partition(struct.pack("=I", _SEEDS[0]))
        self.particle.integrator.step(2)
        self.between_pairs = bytes(self.particle.context.createCheckpoint())
        self.works = bool(found) and self._with(_SEEDS[1]) == second and self._is_exact()

    def seed(self, seed: int) -> None:
        self.particle.context.loadCheckpoint(self.between_pairs)
        self.particle.context.loadCheckpoint(self._with(seed))

    def _with(self, seed: int) -> bytes:
        return self.before + struct.pack("=I", seed) + self.after

    def _checkpoint(self, seed: int) -> bytes:
        self.particle.initialize(seed)
        return bytes(self.particle.context.createCheckpoint())

    def _is_exact(self) -> bool:
        """Return whether another particle walks exactly as when it was itself initialized with the seed."""
        other = _Particle(2.0)
        other.initialize(1)
        walks = [other.walk()]
        elsewhere = other.walk()
        for _ in range(2):  # with nothing left over by the walk before, then with a Gaussian
            self.seed(1)
            walks.append(other.walk())
        return all(np.array_equal(walk, walks[0]) for walk in walks) and not np.array_equal(elsewhere, walks[0])


@cache
def _seeder() -> _Seeder | None:
    try:
        seeder = _Seeder()
    except openmm.OpenMMException:
        return None
    return seeder if seeder.works else None
