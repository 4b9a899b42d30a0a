"""Shooting moves of molecules: with constraints, every frame of a new path leads to the next; with a box, every frame has one."""

from functools import cache

import mdtraj
import numpy as np
import openmm
import pytest

from couloir.cv import Dihedral
from couloir.cv.geometric import Distance
from couloir.errors import DataError
from couloir.sampling import OpenMMEngine, path_blocks, systems
from couloir.sampling.molecule import MolecularSystem
from couloir.sampling.path_ensembles import TransitionEnsemble
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_sampling import TransitionPathSampling
from couloir.store import Store
from couloir.trajectory import State, Trajectory

STEP = 0.002
NOISE = 1e-4  # nm, how far the little friction moves a hydrogen in a step; turned velocities that are wrong move it by 1e-3


@cache
def peptide():
    """Return an engine with little noise, one with none, paths between two values of phi, and one of them, a frame per step."""
    molecule = systems.alanine_dipeptide()
    calm, silent, warm = (OpenMMEngine(molecule, friction=f, platform="Reference", workers=1) for f in (0.02, 1e-14, 10.0))
    (run,) = warm.propagate(molecule.state, duration=0.4, seed=1)
    (path,) = calm.propagate(run.last, duration=0.2, stride=STEP, velocities=True, seed=1)
    phi = Dihedral.phi(molecule.topology)
    sampling = TransitionPathSampling(calm, phi < -1.45, phi > -1.3)
    (first,), _ = sampling._first_paths(path, 1, 1)
    return calm, silent, TransitionEnsemble(sampling.region_a, sampling.region_b), first


@pytest.mark.parametrize(("move", "direction"), [(ShootingMove.one_way(), "backward"), (ShootingMove.two_way(), "both")])
def test_every_frame_of_an_accepted_path_leads_to_the_next(move, direction):
    calm, silent, ensemble, first = peptide()
    n = 60
    trials = move.propose(calm, [first] * n, ensemble, seeds=range(n), max_frames=60)
    accepted = [t for t in trials if t.accepted and t.direction == direction and t.frame_new >= 2]
    assert len(accepted) >= 2
    for trial in accepted[:3]:
        path = trial.path
        assert ensemble.accepts(path)
        states = [path.state(i) for i in range(len(path) - 1)]
        ahead = silent.propagate(states, duration=STEP, stride=STEP, seed=1)
        off = np.array([np.abs(run.positions[0] - path.positions[i + 1]).max() for i, run in enumerate(ahead)])
        assert off.max() < NOISE
        assert np.abs(np.diff(path.positions, axis=0)).max() > 10 * NOISE  # it moves at all


@cache
def pair():
    """Return an engine of two particles on a spring in a box with a barostat."""
    system, spring = openmm.System(), openmm.HarmonicBondForce()
    for _ in range(2):
        system.addParticle(20.0)
    spring.addBond(0, 1, 1.0, 100.0)
    spring.setUsesPeriodicBoundaryConditions(True)
    system.addForce(spring)
    box = np.eye(3) * 4.0
    system.setDefaultPeriodicBoxVectors(*box)
    system.addForce(openmm.MonteCarloBarostat(100.0, 300.0, 5))
    topology = mdtraj.Topology()
    residue = topology.add_residue("ARG", topology.add_chain())
    for name in ("A", "B"):
        topology.add_atom(name, mdtraj.element.argon, residue)
    state = State(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), None, box)
    return OpenMMEngine(MolecularSystem("pair", openmm.XmlSerializer.serialize(system), topology, state), platform="Reference", workers=1)


@cache
def vibrations():
    engine, distance = pair(), Distance((0, 1), "d")
    (run,) = engine.propagate(engine.molecule.state, duration=8.0, stride=0.02, velocities=True, seed=1)
    return TransitionPathSampling(engine, distance < 0.9, distance > 1.1, max_duration=4.0), run


def without_boxes(path):
    return Trajectory(path.positions, path.stride, path.velocities, None, path.topology)


@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.two_way()])
def test_paths_of_a_periodic_system_have_the_box_of_every_frame(move):
    sampling, run = vibrations()
    sampled = TransitionPathSampling(sampling.engine, sampling.region_a, sampling.region_b, move, max_duration=4.0).run(run, 12, 2, seed=1)
    assert sampled.outcomes["accepted"].sum() > 2
    for path in sampled.paths:
        assert path.boxes.shape == (len(path), 3, 3)
    assert len({round(float(path.boxes[k, 0, 0]), 9) for path in sampled.paths for k in range(len(path))}) > 2  # the barostat moved them


def test_first_paths_without_boxes_are_refused_where_the_system_is_periodic():
    sampling, run = vibrations()
    with pytest.raises(DataError, match="first path 1 has no boxes, but the system is periodic"):
        sampling.run([run, without_boxes(run)], 4, 2, seed=1)
    (first,), _ = sampling._first_paths(run, 1, 1)
    ensemble = TransitionEnsemble(sampling.region_a, sampling.region_b)
    with pytest.raises(DataError, match="path 0 has no boxes, but the system is periodic"):
        sampling.move.propose(sampling.engine, [without_boxes(first)], ensemble, seeds=[1], max_frames=99)


def test_boxes_of_a_system_that_is_not_periodic_are_left_out():
    calm, _, ensemble, first = peptide()
    boxed = Trajectory(first.positions, STEP, first.velocities, np.broadcast_to(np.eye(3), (len(first), 3, 3)), first.topology)
    sampled = TransitionPathSampling(calm, ensemble.region_a, ensemble.region_b).run([first, boxed], 6, 2, seed=1)
    assert all(path.boxes is None for path in sampled.paths)


@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.aimless(2)], ids=str)
def test_paths_are_the_same_however_many_workers_take_chains_ahead(move, monkeypatch, tmp_path):
    calm, _, ensemble, first = peptide()
    engines = [OpenMMEngine(calm.molecule, friction=10.0, platform="Reference", workers=n) for n in (1, 2)]
    found, asked = [], []
    monkeypatch.setattr(path_blocks, "BLOCK_SECONDS", 1e9)
    side_by_side = OpenMMEngine.side_by_side
    monkeypatch.setattr(OpenMMEngine, "side_by_side", lambda self, *what: asked.append(self.workers) or side_by_side(self, *what))
    for engine in engines:
        sampling = TransitionPathSampling(engine, ensemble.region_a, ensemble.region_b, move)
        store = Store(tmp_path / f"{engine.workers}")
        found.append(sampling.run(first, 3 * 9, n_chains=3, seed=1, store=store))
        again = sampling.run(first, 3 * 9, n_chains=3, seed=1, store=store)
        assert [path.positions.tobytes() for path in again.paths] == [path.positions.tobytes() for path in found[-1].paths]
    assert asked == [2] * 4  # blocks of 1, 2, 4 and 2 steps
    alone, together = found
    assert len(alone.paths) > 3
    assert [path.positions.tobytes() for path in alone.paths] == [path.positions.tobytes() for path in together.paths]
    assert [path.velocities.tobytes() for path in alone.paths] == [path.velocities.tobytes() for path in together.paths]
    assert all(path.topology is not None for path in together.paths)
    for name in ("chain", "step", "multiplicity", "shooting"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))
    assert alone.force_evaluations == together.force_evaluations
