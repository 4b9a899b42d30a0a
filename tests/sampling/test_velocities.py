"""Velocities: fresh ones are in equilibrium, and turning time round is exact, for each integrator."""

from functools import cache

import numpy as np
import pytest

from couloir.errors import DataError
from couloir.sampling import OpenMMEngine, ToyEngine, potentials, systems
from couloir.sampling.velocities import fresh, turned, turned_paths
from couloir.trajectory import State

WELL = potentials.double_well(4.0, harmonic=4.0)
N_STEPS = 20


def toy(friction):
    return ToyEngine(WELL, kT=1.0, time_step=5e-3, friction=friction, threads=1)


@cache
def peptide():
    """Return an engine almost without friction and noise, with constrained bonds, and an equilibrated state of it."""
    molecule = systems.alanine_dipeptide()
    warm = OpenMMEngine(molecule, friction="10/ps", platform="Reference", workers=1)
    (run,) = warm.propagate(molecule.state, duration=0.4, seed=1)
    return OpenMMEngine(molecule, friction=1e-14, platform="Reference", workers=1), run.last


def there_and_back(engine, state, turn):
    """Return how far from the start N_STEPS forward, a turn and N_STEPS lead."""
    span = {"duration": N_STEPS * engine.time_step, "seed": 1}
    (ahead,) = engine.propagate(state, **span)
    (back,) = engine.propagate(turn(ahead.last), **span)
    return np.abs(back.last.positions - state.positions).max()


def naive(state):
    return State(state.positions, -state.velocities, state.box)


def test_a_turned_molecule_with_constraints_returns_to_where_it_came_from():
    engine, state = peptide()
    exact = there_and_back(engine, state, lambda s: turned(engine, [s])[0])
    assert exact < 2e-6
    assert there_and_back(engine, state, naive) > 100 * exact


def test_turning_a_molecule_twice_changes_nothing_that_the_dynamics_sees():
    engine, state = peptide()
    once = turned(engine, [state])[0]
    thrice = turned(engine, turned(engine, [once]))[0]
    assert np.abs(thrice.velocities - once.velocities).max() < 1e-5
    assert np.abs(once.velocities).max() > 1


def test_fresh_velocities_of_a_molecule_are_in_equilibrium_at_the_time_of_the_positions():
    engine, state = peptide()
    n = 300
    drawn = fresh(engine, [state] * n, 3)
    stored = np.array([s.velocities for s in drawn])
    centred = engine.kicked(np.array([s.positions for s in drawn]), stored, 0.5)
    masses = engine.masses[:, None]
    energy = (0.5 * masses * centred**2).sum((1, 2))
    freedom = 3 * len(masses) - engine.molecule.system_xml.count("<Constraint ")
    assert abs(energy.mean() - 0.5 * freedom * engine.kT) < 4 * engine.kT * np.sqrt(0.5 * freedom / n)
    free = [i for i, atom in enumerate(engine.topology.atoms) if atom.element.symbol == "O"]  # no constraint touches these
    variance = (masses * centred**2)[:, free].mean()
    assert abs(variance - engine.kT) < 4 * engine.kT * np.sqrt(2 / (3 * n * len(free)))
    assert np.abs((stored - centred).mean(0)).max() > 0.01  # half a kick apart


def test_a_turned_toy_returns_to_where_it_came_from():
    engine = toy(1e-12)
    assert there_and_back(engine, State(np.array([[0.1, 0.3]]), np.array([[0.5, -1.0]])), lambda s: turned(engine, [s])[0]) < 1e-6


def test_fresh_velocities_of_a_toy_have_variance_kT_over_m():
    engine = ToyEngine(WELL, kT=2.5, time_step=1e-3, friction=1.0, masses=4.0, threads=1)
    v = np.array([s.velocities for s in fresh(engine, [engine.state(0.0, 0.0)] * 2000, 1)])
    assert abs((4.0 * v**2).mean() - 2.5) < 4 * 2.5 * np.sqrt(2 / v.size)


def test_overdamped_states_have_no_velocities_and_turn_into_themselves():
    engine = toy(None)
    (state,) = fresh(engine, [State(np.zeros((1, 2)), np.ones((1, 2)))], 1)
    assert state.velocities is None
    assert turned(engine, [state])[0] is state


def test_a_path_turned_round_has_its_frames_in_reverse_order_each_turned():
    engine, state = peptide()
    (path,) = engine.propagate(state, duration=4 * engine.time_step, stride=engine.time_step, velocities=True, seed=1)
    (back,) = turned_paths(engine, [path])
    np.testing.assert_array_equal(back.positions, path.positions[::-1])
    np.testing.assert_array_equal(back.velocities[0], turned(engine, [path.state(3)])[0].velocities)
    (again,) = engine.propagate(back.state(0), duration=3 * engine.time_step, stride=engine.time_step, velocities=True, seed=1)
    assert np.abs(again.positions - back.positions[1:]).max() < 2e-6


def test_a_state_without_velocities_cannot_be_turned():
    with pytest.raises(DataError, match="state 0 has no velocities"):
        turned(toy(1.0), [State(np.zeros((1, 2)))])


def test_velocities_to_kick_must_fit_the_molecule():
    with pytest.raises(DataError, match="to kick do not have the shape"):
        peptide()[0].kicked(peptide()[1].positions[None], np.zeros((1, 3, 3)), 0.5)
