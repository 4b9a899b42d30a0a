"""Where forces or constraints fail outside of dynamics, one shot is rejected and counted, and nothing else changes."""

from functools import cache

import mdtraj
import numpy as np
import openmm
import pytest

from couloir.cv.geometric import Distance
from couloir.errors import SimulationError
from couloir.sampling import OpenMMEngine, systems
from couloir.sampling.interface_ensembles import departures
from couloir.sampling.interface_sampling import TransitionInterfaceSampling
from couloir.sampling.interface_starts import both_ways
from couloir.sampling.molecule import MolecularSystem
from couloir.sampling.path_ensembles import TransitionEnsemble
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_sampling import TransitionPathSampling
from couloir.sampling.shots import two_way_shots
from couloir.sampling.velocities import fresh, turned_paths
from couloir.trajectory import State, Trajectory

STEP = 0.002
D = Distance((0, 1), "d")
A, B = D < 0.9, D > 1.1
SHORT = "d - 0.8985"
"""What must be positive for forces to be numbers; many steps into A go farther than that."""


@cache
def pair(finite="1", workers=1):
    """Return an engine of two particles on a spring whose forces are NaN where ``finite`` is negative.

    Dynamics of one step per frame stops at the first such frame before it needs the forces there.
    """
    system = openmm.System()
    spring = openmm.CustomBondForce(f"50*(d-1)^2 + 1e-12*sqrt({finite}); d=r")
    spring.addBond(0, 1)
    system.addForce(spring)
    topology = mdtraj.Topology()
    residue = topology.add_residue("PAIR", topology.add_chain())
    for name in ("A", "B"):
        system.addParticle(2.0)
        topology.add_atom(name, mdtraj.element.helium, residue)
    molecule = MolecularSystem("pair", openmm.XmlSerializer.serialize(system), topology, State(np.array([[0.0, 0, 0], [1.0, 0, 0]])))
    return OpenMMEngine(molecule, platform="Reference", workers=workers)


@cache
def run():
    """Return dynamics that goes to and fro between A and B."""
    return pair().propagate(pair().molecule.state, duration=4.0, stride=STEP, velocities=True, seed=1)[0]


@cache
def first():
    """Return a path from A to B whose ends have forces that are numbers."""
    passages = [path for path in departures([run()], A, B) if B.contains(path.positions[-1:])[0]]
    ends = [D.evaluate(path.positions[[0, -1]]) for path in passages]
    return next(path for path, (begin, end) in zip(passages, ends, strict=True) if begin > 0.8986 and end < 1.1014)


@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.two_way()])
def test_a_path_that_cannot_be_turned_is_a_failed_shot_and_the_others_stay_the_same(move):
    shots = {"seeds": range(60), "max_frames": 1000}
    sound, brittle = (move.propose(engine, [first()] * 60, TransitionEnsemble(A, B), **shots) for engine in (pair(), pair(SHORT)))
    assert {trial.reason for trial in sound} <= {"accepted", "ensemble", "acceptance"}
    failed = [i for i, trial in enumerate(brittle) if trial.reason == "failed"]
    assert len(failed) >= 3
    for i, (was, now) in enumerate(zip(sound, brittle, strict=True)):
        assert now.force_evaluations == was.force_evaluations
        if i in failed:
            assert was.accepted
            assert D.evaluate(was.path.positions)[0] < 0.8985
            assert (now.path, now.accepted, now.shared) == (None, False, None)
        else:
            assert now.reason == was.reason
        if now.accepted:
            np.testing.assert_allclose(now.path.positions, was.path.positions, atol=1e-6)
            assert np.isfinite(now.path.velocities).all()


def test_failed_shots_of_a_run_are_counted_alike_by_one_worker_and_two():
    one, two = (
        TransitionPathSampling(pair(SHORT, workers), A, B, ShootingMove.two_way(), max_duration=2.0).run(first(), 16, 4, seed=1)
        for workers in (1, 2)
    )
    assert one.outcomes["failed"].sum() >= 1
    for reason, counts in one.outcomes.items():
        np.testing.assert_array_equal(counts, two.outcomes[reason])
    for path, same in zip(one.paths, two.paths, strict=True):
        np.testing.assert_array_equal(path.velocities, same.velocities)
        assert np.isfinite(path.velocities).all()


@pytest.mark.parametrize("move", [ShootingMove.two_way(), ShootingMove.aimless(1)])
def test_a_shot_from_where_constraints_cannot_be_satisfied_fails_alone(move):
    molecule = systems.alanine_dipeptide()
    engine, x = OpenMMEngine(molecule, platform="Reference", workers=1), molecule.state.positions
    bent = x + 0.5 * np.random.default_rng(1).standard_normal(x.shape)
    good, bad = (Trajectory(np.array([x, x, middle, x, x]), STEP, np.zeros((5, *x.shape))) for middle in (x, bent))
    ensemble = TransitionEnsemble(Distance((0, 1), "d") < 0.0, Distance((0, 1), "d") > 9.0)
    settings = {"max_frames": 30, "anchors": [2] * 3} if move.offsets else {"max_frames": 30}
    seeds = next(s for s in ([k, k + 1, k + 2] for k in range(99)) if move._aim(bad, s[1], 30, 2 if move.offsets else None).frame == 2)
    trials = move.propose(engine, [good, bad, good], ensemble, seeds=seeds, **settings)
    alone = move.propose(engine, [good] * 3, ensemble, seeds=seeds, **settings)
    assert trials[1].reason == "failed"
    assert alone[1].reason != "failed"
    for k in (0, 2):
        assert (trials[k].reason, trials[k].force_evaluations) == (alone[k].reason, alone[k].force_evaluations)


def test_velocities_are_nan_where_constraints_cannot_be_satisfied():
    molecule = systems.alanine_dipeptide()
    engine, x = OpenMMEngine(molecule, platform="Reference", workers=1), molecule.state.positions
    bent = State(x + 0.5 * np.random.default_rng(1).standard_normal(x.shape))
    states = fresh(engine, [molecule.state, bent, molecule.state], [1, 2, 3])
    assert [bool(np.isfinite(state.velocities).all()) for state in states] == [True, False, True]
    np.testing.assert_array_equal(states[2].velocities, fresh(engine, [molecule.state], [3])[0].velocities)


def test_two_way_shots_that_cannot_be_turned_are_failed_and_connect_nothing():
    sound, brittle = (
        two_way_shots(engine, pair().molecule.state, A, B, max_duration=2.0, stride=STEP, seed=1, n_per_state=40)
        for engine in (pair(), pair(SHORT))
    )
    assert sound.failed.sum() == 0
    assert brittle.failed.sum() >= 5
    assert not (brittle.connecting & brittle.failed).any()
    assert sum(brittle.counts().values()) == 40
    np.testing.assert_array_equal(brittle.connecting[~brittle.failed], sound.connecting[~brittle.failed])
    for shot in np.flatnonzero(brittle.connecting):
        assert np.isfinite(brittle.reactive_path(shot)[0].velocities).all()


def test_an_excursion_that_cannot_be_turned_is_not_taken():
    def into(finite):
        sampling = TransitionInterfaceSampling(pair(finite), A, B, D, (0.9,), max_duration=4.0)
        return sampling.into(list(departures([run()], A, B)), 1)

    sound, brittle = into("1"), into("0.9015 - d")  # forces are NaN right outside of A
    assert 0 < len(brittle[0]) < len(sound[0])
    assert brittle[1:] == sound[1:]
    assert all(np.isfinite(path.velocities).all() for path in brittle[0])


def test_a_first_path_that_cannot_be_turned_is_named():
    back, inner = turned_paths(pair(), [first()])[0], D < 0.895
    deep = run().positions[D.evaluate(run().positions) < 0.895][:1]
    bad = Trajectory(np.concatenate([back.positions, deep]), STEP, np.concatenate([back.velocities, back.velocities[:1]]))
    message = f"first path 1 has no finite velocities at frame {len(back)}: .* forces or constraints fail there"
    with pytest.raises(SimulationError, match=message):
        TransitionPathSampling(pair(SHORT), inner, B).run([run(), bad], 4, 2, seed=1)
    with pytest.raises(SimulationError, match=message):
        both_ways(pair(SHORT), [first(), bad], 1, "first")
