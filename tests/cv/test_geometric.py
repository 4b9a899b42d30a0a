"""What single CVs promise beyond the common contract."""

from __future__ import annotations

from pathlib import Path

import mdtraj
import numpy as np
import pytest

import couloir.sampling
from couloir.cv import (
    RMSD,
    Angle,
    CoordinationNumber,
    Dihedral,
    Distance,
    FunctionCV,
    FunctionOfCVs,
    LinearCombination,
    RadiusOfGyration,
    check_gradient,
    from_config,
    from_dict,
    path_s,
    path_z,
    select_atoms,
)
from couloir.errors import ConfigError, DataError, ModelError, SelectionError

PDB = Path(couloir.sampling.__file__).parent / "structures" / "alanine_dipeptide.pdb"


@pytest.fixture(scope="module")
def molecule():
    structure = mdtraj.load(str(PDB))
    noise = np.random.default_rng(0).normal(scale=0.05, size=(20, structure.n_atoms, 3))
    return mdtraj.Trajectory(structure.xyz + noise, structure.topology)


def test_backbone_torsions_are_found_and_equal_those_of_mdtraj(molecule):
    phi, psi = Dihedral.phi(molecule.topology, residue=2), Dihedral.psi(molecule.topology, residue="ALA2")
    assert phi == Dihedral(atoms=(4, 6, 8, 14), name="phi")
    assert psi == Dihedral(atoms=(6, 8, 14, 16), name="psi")
    assert phi.evaluate(molecule.xyz) == pytest.approx(mdtraj.compute_phi(molecule)[1][:, 0], abs=1e-4)
    assert psi.evaluate(molecule.xyz) == pytest.approx(mdtraj.compute_psi(molecule)[1][:, 0], abs=1e-4)


def test_sizes_and_deviations_equal_those_of_mdtraj(molecule):
    rg = RadiusOfGyration(tuple(range(22)))
    assert rg.evaluate(molecule.xyz) == pytest.approx(mdtraj.compute_rg(molecule), abs=1e-5)
    assert RMSD(molecule.xyz[3]).evaluate(molecule.xyz) == pytest.approx(mdtraj.rmsd(molecule, molecule, 3), abs=1e-4)


def test_the_weighted_radius_of_gyration_is_the_weighted_sum_over_pairs(molecule):
    masses = np.array([a.element.mass for a in molecule.topology.atoms])
    pairs = ((molecule.xyz[:, :, None] - molecule.xyz[:, None]) ** 2).sum(-1)
    expected = np.sqrt(0.5 * np.einsum("i,j,fij->f", masses, masses, pairs)) / masses.sum()
    rg = from_config({"type": "radius_of_gyration", "select": list(range(22))}, molecule.topology, "rg")
    assert rg.evaluate(molecule.xyz) == pytest.approx(expected, abs=1e-6)


def test_the_ends_of_a_chain_have_no_torsion_beyond_them(molecule):
    with pytest.raises(SelectionError, match="no residue before it"):
        Dihedral.phi(molecule.topology, residue=1)
    with pytest.raises(SelectionError, match="no residue is called '9'"):
        Dihedral.psi(molecule.topology, residue=9)


@pytest.mark.parametrize("middle", [[0.1, 0, 0], [0.3, 0, 0]])
def test_gradients_stay_finite_where_an_angle_is_degenerate(middle):
    line = np.array([[[0, 0, 0], middle, [0.2, 0, 0], [0.4, 0, 0]]], dtype=float)
    for cv in (Angle((0, 1, 2)), Dihedral((0, 1, 2, 3)), Distance((0, 1)), RMSD(line[0])):
        value, gradient = cv.value_and_gradient(line)
        assert np.isfinite(value).all()
        assert np.isfinite(gradient).all()


def test_a_nearly_straight_angle_keeps_its_precision():
    bend = 1e-7
    x = np.array([[-1.0, 0, 0], [0, 0, 0], [np.cos(bend), np.sin(bend), 0]])
    assert np.pi - Angle((0, 1, 2)).evaluate(x)[0] == pytest.approx(bend, rel=1e-6)


def test_a_contact_at_r0_counts_n_over_m():
    x = np.array([[0.0, 0, 0], [0.5, 0, 0]])
    assert CoordinationNumber((0,), (1,), 0.5).evaluate(x)[0] == pytest.approx(6 / 12)
    assert CoordinationNumber((0,), (1,), 0.5, 4, 7).evaluate(x)[0] == pytest.approx(4 / 7)
    x[1, 0] = 0.7
    assert CoordinationNumber((0,), (1,), 0.5, 4, 7).evaluate(x)[0] == pytest.approx((1 - 1.4**4) / (1 - 1.4**7))


def test_a_path_counts_its_nodes_across_the_edge_of_the_period():
    phi = Dihedral((0, 1, 2, 3), "phi")
    torsions = np.array([2.5, 3.0, -3.0 + 0.21681469, -2.5])
    nodes = torsions[:, None]
    frames = []
    for angle in torsions:
        frames.append([[1, 0, 0], [0, 0, 0], [0, 0, 1], [np.cos(angle), np.sin(angle), 1]])
    sign = np.sign(phi.evaluate(np.array(frames))[0])
    s = path_s((phi,), sign * nodes, smoothing=2000.0)
    z = path_z((phi,), sign * nodes, smoothing=2000.0)
    assert s.evaluate(np.array(frames)) == pytest.approx([1, 2, 3, 4], abs=1e-6)
    assert z.evaluate(np.array(frames)) == pytest.approx(0, abs=1e-6)


def test_a_path_far_from_its_nodes_does_not_underflow():
    d = Distance((0, 1), "d")
    far = np.array([[0.0, 0, 0], [50.0, 0, 0]])
    assert path_s((d,), [[0.1], [0.2], [0.3]]).evaluate(far)[0] == pytest.approx(3)
    assert path_z((d,), [[0.1], [0.2], [0.3]]).evaluate(far)[0] == pytest.approx(49.7**2)


def test_a_sum_that_would_jump_where_a_torsion_wraps_is_refused():
    phi = Dihedral((0, 1, 2, 3), "phi")
    with pytest.raises(ConfigError, match="would jump"):
        LinearCombination((phi, Distance((0, 1), "d")), (1, 1), "bad")
    with pytest.raises(ConfigError, match="would jump"):
        LinearCombination((phi,), (0.5,), "bad", "rad", 2 * np.pi)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cos(phy)", "unknown name 'phy'.*did you mean 'phi'"),
        ("coss(phi)", "unknown function 'coss'.*did you mean"),
        ("atan2(phi)", "takes 2 argument"),
        ("phi +", "cannot read"),
        ("__import__('os').getcwd()", "cannot read"),
        ("phi.real", "cannot read"),
        ("2*3", "does not use phi"),
    ],
)
def test_bad_expressions_are_named(text, message):
    with pytest.raises(ConfigError, match=message):
        FunctionOfCVs((Dihedral((0, 1, 2, 3), "phi"),), text, "f")


@pytest.mark.parametrize("name", ["", "my cv", "2d", "cos", "a-b"])
def test_names_that_no_expression_can_hold_are_refused(name):
    with pytest.raises(ConfigError, match="cannot name"):
        Distance((0, 1), name)


def test_a_function_with_a_wrong_gradient_is_caught_before_it_biases():
    import torch

    wrong = FunctionCV(lambda x: x[:, 0, 0] * x[:, 1, 0].detach(), "wrong")
    x = np.random.default_rng(1).normal(size=(3, 4, 3))
    with pytest.raises(ModelError, match="is not that of its value"):
        check_gradient(wrong, x)
    with pytest.raises(ModelError, match="cannot differentiate"):
        check_gradient(FunctionCV(lambda x: torch.tensor(x.detach().numpy()[:, 0, 0]), "numpy_inside"), x)
    with pytest.raises(DataError, match="one value per frame"):
        FunctionCV(lambda x: x.sum(), "scalar").evaluate(x)
    with pytest.raises(DataError, match="cannot be written"):
        wrong.to_dict()

    import openmm

    system = openmm.System()
    for _ in range(4):
        system.addParticle(1.0)
    system.addForce(wrong.to_openmm())
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x[0])
    with pytest.raises(Exception, match="is not that of its value"):
        context.getState(energy=True)


@pytest.mark.parametrize("atoms", [(0, 1, 1, 2), (0, 1, 2), (-1, 0, 1, 2), ("ACE1:C", 6, 8, 14), (0.5, 1, 2, 3)])
def test_atoms_that_make_no_dihedral_are_refused(atoms):
    with pytest.raises(SelectionError):
        Dihedral(atoms)


def test_selectors_name_atoms_as_the_pdb_does(molecule):
    top = molecule.topology
    assert select_atoms(top, ["ACE1:C", "ALA2:N", "2:CA", 14]) == (4, 6, 8, 14)
    assert select_atoms(top, "select resSeq 2 and name CA CB") == (8, 10)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("ALA2:CAA", "22 atoms.*no atom 'CAA'.*did you mean 'CA'"),
        ("ALA3:CA", "no residue is called 'ALA3'.*did you mean 'ALA2'"),
        ("7:CA", "there are 3.*choices are ACE1, ALA2, NME3"),
        (22, "there are 22 atoms"),
        (-1, "does not exist"),
        ("CA", "cannot read the atom selector"),
        ("select name ZZ", "matches none of the 22 atoms"),
        ("select nme === CA", "cannot read the selection"),
    ],
)
def test_a_selector_that_matches_nothing_says_what_there_is(molecule, selector, message):
    with pytest.raises(SelectionError, match=message):
        select_atoms(molecule.topology, [selector])


def test_a_selector_that_matches_two_chains_is_ambiguous(molecule):
    with pytest.raises(SelectionError, match="2 residues are called 'ALA2'"):
        select_atoms(molecule.topology.join(molecule.topology, keep_resSeq=True), ["ALA2:CA"])


def test_tables_of_a_run_file_become_cvs(molecule, tmp_path):
    top = molecule.topology
    phi = from_config({"type": "dihedral", "select": ["ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:C"]}, top, "phi")
    psi = from_config({"type": "psi", "residue": 2}, top, "psi")
    assert (phi, psi) == (Dihedral((4, 6, 8, 14), "phi"), Dihedral((6, 8, 14, 16), "psi"))
    contacts = from_config({"type": "coordination", "group_a": ["2:N"], "group_b": ["2:O", "1:O"], "r0": "3 A"}, top, "n")
    assert (contacts.group_a, contacts.group_b, contacts.r0) == ((6,), (15, 5), pytest.approx(0.3))
    rmsd = from_config({"type": "rmsd", "reference": PDB.name, "select": "select name CA C N"}, top, "dev", folder=PDB.parent)
    assert rmsd.evaluate(mdtraj.load(str(PDB)).xyz)[0] == pytest.approx(0, abs=1e-6)
    both = from_config({"type": "function", "of": ["phi", "psi"], "function": "cos(phi)*sin(psi)"}, top, "f", cvs={"phi": phi, "psi": psi})
    assert both.evaluate(molecule.xyz) == pytest.approx(np.cos(phi.evaluate(molecule.xyz)) * np.sin(psi.evaluate(molecule.xyz)))
    assert from_config({"type": "coordinate", "index": 1}, None, "y").evaluate(np.array([[[1.0, 2.0]]])) == [2.0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"type": "dihedrall"}, r"\[cv.q\] has the unknown type 'dihedrall'; did you mean 'dihedral'"),
        ({}, "has no type"),
        ({"type": "dihedral", "selct": []}, "unknown key 'selct'.*did you mean 'select'"),
        ({"type": "coordination", "group_a": [1], "group_b": [2]}, "lacks r0"),
        ({"type": "linear", "of": ["phy"], "coefficients": [1]}, "unknown CV 'phy'"),
        ({"type": "coordination", "group_a": [1], "group_b": [2], "r0": 1.0, "n": "six"}, "does not fit"),
        ({"type": "rmsd", "reference": "nowhere.pdb"}, "does not exist"),
    ],
)
def test_bad_tables_are_named(molecule, table, message):
    with pytest.raises(ConfigError, match=message):
        from_config(table, molecule.topology, "q")
    with pytest.raises(SelectionError, match=r"\[cv.q\].*needs 4 different atoms"):
        from_config({"type": "dihedral", "select": ["2:N", "2:CA"]}, molecule.topology, "q")


def test_unknown_types_and_entries_are_named():
    with pytest.raises(ConfigError, match=r"unknown type 'angel'.*did you mean 'angle'"):
        from_dict({"type": "angel"})
    with pytest.raises(ConfigError, match="cannot be made from"):
        from_dict({"type": "angle", "atom": [1, 2, 3]})
