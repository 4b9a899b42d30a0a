"""Turning methyl groups changes neither energy nor handedness, and visits all three places of each hydrogen alike."""

import numpy as np
import pytest
from scipy import stats

from couloir.errors import DataError
from couloir.generative.symmetry import equivalent_hydrogens, turned_at_random
from couloir.sampling import OpenMMEngine, systems
from couloir.sampling.seeding import geometry_gates

MOLECULE = systems.alanine_dipeptide()


def test_the_methyl_groups_of_alanine_dipeptide_are_found():
    groups = equivalent_hydrogens(MOLECULE.topology)
    names = [[str(MOLECULE.topology.atom(i)) for i in group] for group in groups]
    assert names == [["ACE1-H1", "ACE1-H2", "ACE1-H3"], ["ALA2-HB1", "ALA2-HB2", "ALA2-HB3"], ["NME3-H1", "NME3-H2", "NME3-H3"]]


def test_turned_structures_have_the_same_energy_and_handedness():
    engine = OpenMMEngine(MOLECULE, platform="Reference", workers=1)
    (run,) = engine.propagate(MOLECULE.state, duration=1.0, stride=0.05, seed=1)
    turned = turned_at_random(run.positions, MOLECULE.topology, seed=1)
    np.testing.assert_allclose(engine.energies(turned), engine.energies(run.positions), atol=1e-8)
    assert geometry_gates(engine, None).check(turned)["chirality"].all()
    assert np.abs(turned - run.positions).max() > 0.1


def test_every_place_is_as_likely_for_every_group():
    n = 3000
    same = np.broadcast_to(MOLECULE.state.positions, (n, *MOLECULE.state.positions.shape))
    turned = turned_at_random(same, MOLECULE.topology, seed=2)
    found = []
    for group in equivalent_hydrogens(MOLECULE.topology):
        near = np.linalg.norm(turned[:, group[0], None] - same[:, group], axis=2).argmin(axis=1)
        assert stats.chisquare(np.bincount(near, minlength=3)).pvalue > 1e-5
        found.append(near)
    pairs = np.bincount(3 * found[0] + found[1], minlength=9)  # groups turn by themselves
    assert stats.chisquare(pairs).pvalue > 1e-5


def test_positions_of_another_molecule_are_refused():
    with pytest.raises(DataError, match="expected"):
        turned_at_random(np.zeros((2, 5, 3)), MOLECULE.topology, seed=1)
