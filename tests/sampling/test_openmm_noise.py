"""Seeding without a new start: the same noise, to the last bit, as initializing the Context anew."""

import numpy as np
import pytest

from couloir.sampling import OpenMMEngine, systems
from couloir.sampling import _openmm_noise as noise
from couloir.sampling import _openmm_worker as worker


def walk(engine, state, seed, n_steps):
    (run,) = engine.propagate(state, duration=n_steps * engine.time_step, seed=[seed])
    return run.last


@pytest.mark.parametrize("n_steps", [1, 20, 101])
def test_a_walker_moves_as_if_its_context_had_been_initialized_anew(monkeypatch, n_steps):
    molecule = systems.alanine_dipeptide()
    engine = OpenMMEngine(molecule, platform="Reference", workers=1)
    assert worker.simulation(engine._describe("Reference"), None).seeds_by_process
    short = [walk(engine, molecule.state, seed, n_steps) for seed in (1, 2**31 - 2, 1)]
    monkeypatch.setattr(worker, "reseed_reference", lambda seed: False)
    anew = [walk(engine, molecule.state, seed, n_steps) for seed in (1, 2**31 - 2, 1)]
    for a, b in zip(short, anew, strict=True):
        assert np.array_equal(a.positions, b.positions)
        assert np.array_equal(a.velocities, b.velocities)
    assert not np.array_equal(short[0].positions, short[1].positions)


def test_a_gaussian_left_over_by_another_walk_is_forgotten():
    particle = noise._Particle(3.0)
    particle.initialize(7)
    expected = particle.walk()  # leaves one over
    for _ in range(3):
        assert noise.reseed_reference(7)
        assert np.array_equal(particle.walk(), expected)


def test_a_system_with_a_barostat_starts_anew():
    import openmm

    system = openmm.System()
    system.addParticle(1.0)
    assert noise.random_forces(system) == []
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    assert len(noise.random_forces(system)) == 1


def test_where_checkpoints_are_of_another_kind_every_walker_starts_anew(monkeypatch):
    monkeypatch.setattr(noise._Seeder, "_with", lambda self, seed: b"OpenMM Binary Checkpoint\n, but another")
    assert noise._seeder.__wrapped__() is None
