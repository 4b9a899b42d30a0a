"""Representations: round trips, Jacobians against numerical determinants, chirality, CV coordinates, saving, errors."""

import json
from pathlib import Path

import numpy as np
import pytest

import couloir
from couloir.cv import wrap
from couloir.cv.geometric import Coordinate, Dihedral
from couloir.errors import DataError, ModelError, SelectionError
from couloir.generative.internal import InternalCoordinates
from couloir.generative.representation import Cartesian, Vector, align, representation_from
from couloir.generative.zmatrix import build, measure, place

md = pytest.importorskip("mdtraj")

TWO_PI = 2 * np.pi
PHI, PSI = Dihedral(atoms=(4, 6, 8, 14), name="phi"), Dihedral(atoms=(6, 8, 14, 16), name="psi")
PDB = Path(couloir.__file__).parent / "sampling" / "structures" / "alanine_dipeptide.pdb"


@pytest.fixture(scope="module")
def pdb():
    return md.load(str(PDB))


@pytest.fixture(scope="module")
def shaken(pdb):
    """Alanine dipeptide, every atom displaced by noise of 0.008 nm: all bonds flexible."""
    start = pdb.xyz[0].astype(np.float64)
    return start + 0.008 * np.random.default_rng(1).standard_normal((200, *start.shape))


@pytest.fixture(scope="module")
def dynamics(pdb):
    """Alanine dipeptide at 600 K in vacuum with constrained bonds to hydrogen, 60 frames."""
    import openmm
    from openmm import app, unit

    file = app.PDBFile(str(PDB))
    system = app.ForceField("amber14-all.xml").createSystem(file.topology, constraints=app.HBonds)
    integrator = openmm.LangevinMiddleIntegrator(600, 5.0, 0.002)
    integrator.setRandomNumberSeed(3)
    integrator.setConstraintTolerance(1e-8)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(file.positions)
    context.setVelocitiesToTemperature(600, 3)
    frames = []
    for _ in range(60):
        integrator.step(25)
        frames.append(context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    return np.array(frames)


@pytest.fixture(scope="module")
def flexible(pdb, shaken):
    return InternalCoordinates(pdb.topology, fix_hydrogen_bonds=False).fit(shaken)


@pytest.fixture(scope="module")
def fitted(pdb, dynamics):
    return InternalCoordinates(pdb.topology, torsions=[PHI.atoms, PSI.atoms]).fit(dynamics)


def pair_distances(positions):
    i, j = np.triu_indices(positions.shape[1], 1)
    return np.linalg.norm(positions[:, i] - positions[:, j], axis=-1)


def chain(elements, bonds):
    topology = md.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    atoms = [topology.add_atom(f"{e}{i}", md.element.Element.getBySymbol(e), residue) for i, e in enumerate(elements)]
    for i, j in bonds:
        topology.add_bond(atoms[i], atoms[j])
    return topology


def test_internal_coordinates_reproduce_perturbed_geometries_to_round_off(flexible, shaken):
    decoded = flexible.decode(flexible.encode(shaken))
    assert np.abs(pair_distances(decoded) - pair_distances(shaken)).max() < 1e-8
    superposed = np.concatenate([align(d[None], s, np.arange(22)) for d, s in zip(decoded, shaken, strict=True)])
    assert np.abs(superposed - shaken).max() < 1e-8


def test_internal_coordinates_reproduce_constrained_dynamics_to_the_constraint_tolerance(fitted, dynamics):
    assert np.abs(pair_distances(fitted.decode(fitted.encode(dynamics))) - pair_distances(dynamics)).max() < 1e-6
    assert fitted.dimension == 3 * 22 - 6 - 12


def test_encode_inverts_decode_for_vectors_nobody_simulated(fitted):
    x = np.random.default_rng(5).standard_normal((50, fitted.dimension))
    x = np.where(fitted.circular, wrap(x, TWO_PI), x)
    np.testing.assert_allclose(fitted.encode(fitted.decode(x)), x, atol=1e-8)


def test_encoding_ignores_rigid_motion(flexible, shaken):
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    np.testing.assert_allclose(flexible.encode(shaken @ rotation + 3.0), flexible.encode(shaken), atol=1e-8)


def test_linear_coordinates_are_standardized_and_circular_ones_are_angles(fitted, dynamics):
    x = fitted.encode(dynamics)
    assert np.abs(x[:, ~fitted.circular].mean(axis=0)).max() < 1e-10
    np.testing.assert_allclose(x[:, ~fitted.circular].std(axis=0), 1.0, atol=1e-10)
    assert (np.abs(x[:, fitted.circular]) <= np.pi).all()


def test_phi_and_psi_are_circular_coordinates_forwards_and_backwards(fitted, dynamics):
    for cv in (PHI, PSI):
        index = fitted.coordinate_of(cv)
        assert index is not None
        assert fitted.circular[index]
        assert fitted.coordinate_of(Dihedral(atoms=cv.atoms[::-1], name="reversed")) == index
        np.testing.assert_allclose(wrap(fitted.encode(dynamics)[:, index] - cv.evaluate(dynamics), TWO_PI), 0.0, atol=1e-10)
        np.testing.assert_allclose(fitted.standardize(index, cv.evaluate(dynamics)), fitted.encode(dynamics)[:, index], atol=1e-10)
    assert fitted.coordinate_of(Dihedral(atoms=(1, 4, 6, 8), name="no_chain")) is None


def test_a_narrow_torsion_is_a_linear_coordinate_that_standardize_reaches(pdb, shaken):
    plain = InternalCoordinates(pdb.topology, fix_hydrogen_bonds=False).fit(shaken)
    index = plain.coordinate_of(PHI)
    assert not plain.circular[index]
    x = plain.encode(shaken)
    np.testing.assert_allclose(plain.standardize(index, PHI.evaluate(shaken)), x[:, index], atol=1e-9)
    moved = x + 0.5 * np.eye(plain.dimension)[index]
    turned = wrap(PHI.evaluate(plain.decode(moved)) - PHI.evaluate(shaken), TWO_PI)
    np.testing.assert_allclose(turned, 0.5 * plain.scale_of(index), atol=1e-9)


@pytest.mark.parametrize(("cv", "other"), [(PHI, PSI), (PSI, PHI)])
def test_turning_one_torsion_changes_nothing_else(fitted, dynamics, pdb, cv, other):
    x = fitted.encode(dynamics)
    turned = x.copy()
    index = fitted.coordinate_of(cv)
    turned[:, index] = wrap(turned[:, index] + 1.3, TWO_PI)
    before, after = fitted.decode(x), fitted.decode(turned)
    np.testing.assert_allclose(wrap(cv.evaluate(after) - cv.evaluate(before) - 1.3, TWO_PI), 0.0, atol=1e-9)
    np.testing.assert_allclose(wrap(other.evaluate(after) - other.evaluate(before), TWO_PI), 0.0, atol=1e-9)
    bonds = [(a.index, b.index) for a, b in pdb.topology.bonds]
    near = {tuple(sorted(b)) for b in bonds}
    near |= {
        tuple(sorted((i, k))) for i, j in bonds + [b[::-1] for b in bonds] for m, k in bonds + [b[::-1] for b in bonds] if m == j and i != k
    }
    i, j = np.array(sorted(near)).T  # all bonds and all 1-3 distances: bonds, angles and impropers (up to their sign)
    length = [np.linalg.norm(p[:, i] - p[:, j], axis=-1) for p in (before, after)]
    np.testing.assert_allclose(*length, atol=1e-9)


def test_decoding_keeps_chirality_whatever_the_rotors_do(fitted, dynamics):
    x = fitted.encode(dynamics)
    x[:, fitted.circular] = np.random.default_rng(4).uniform(-np.pi, np.pi, (len(x), int(fitted.circular.sum())))
    for frames in (dynamics, fitted.decode(x)):
        n, c, cb = (frames[:, k] - frames[:, 8] for k in (6, 14, 10))
        assert (np.einsum("ni,ni->n", np.cross(n, c), cb) > 0).all()


def test_a_mirror_image_encodes_to_another_vector(fitted, dynamics):
    mirrored = fitted.encode(dynamics * np.array([1.0, 1.0, -1.0]))
    assert (np.abs(mirrored - fitted.encode(dynamics)).max(axis=1) > 5).all()


def test_a_methyl_group_has_one_rotor(fitted):
    table = fitted.describe()
    torsions = table[table.kind == "torsion"]
    rotors = {row[1:3] for row in torsions[torsions.behaviour == "circular"].atoms}
    assert len(torsions) == 19
    assert (torsions.behaviour == "circular").sum() == len(rotors)  # never two circular torsions about one bond
    assert table[(table.kind == "bond") & table.label.str.contains(":H")].behaviour.eq("fixed").all()


def frame_free_determinant(representation, x):
    """log |det d positions / d (x, rigid motion)| by central differences, the rigid motion at the identity."""
    step, n = 1e-5, x.size
    columns = [(representation.decode(x + step * e) - representation.decode(x - step * e)).ravel() / (2 * step) for e in np.eye(n)]
    positions = representation.decode(x)[0]
    columns += [np.tile(e, len(positions)) for e in np.eye(3)]
    columns += [np.cross(e, positions).ravel() for e in np.eye(3)]
    return np.linalg.slogdet(np.array(columns).T)[1]


def test_log_volume_is_the_numerical_determinant_for_alanine_dipeptide(flexible, shaken):
    for x in flexible.encode(shaken[:4]):
        assert flexible.log_volume(x)[0] == pytest.approx(frame_free_determinant(flexible, x), abs=1e-5)


@pytest.mark.parametrize(
    ("elements", "bonds"),
    [
        ("OHH", [(0, 1), (0, 2)]),
        ("CHHHH", [(0, 1), (0, 2), (0, 3), (0, 4)]),
        ("COHHHH", [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5)]),
        ("CCCCO", [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ("CCCCCC", [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]),
        ("CCCCC", [(0, 1), (0, 2), (0, 3), (3, 4)]),
    ],
    ids=["water", "methane", "methanol", "chain", "ring", "branched"],
)
def test_log_volume_is_the_numerical_determinant_for_random_molecules(elements, bonds):
    rng = np.random.default_rng(len(bonds))
    frames = rng.standard_normal((1, len(elements), 3)) + 0.1 * rng.standard_normal((30, len(elements), 3))
    representation = InternalCoordinates(chain(elements, bonds), fix_hydrogen_bonds=False).fit(frames)
    x = representation.encode(frames)
    assert np.abs(pair_distances(representation.decode(x)) - pair_distances(frames)).max() < 1e-8
    for row in x[:5]:
        assert representation.log_volume(row)[0] == pytest.approx(frame_free_determinant(representation, row), abs=1e-5)


def test_fixed_bonds_contribute_nothing_to_the_volume(pdb, dynamics, fitted):
    x = fitted.encode(dynamics)
    table = fitted.describe()
    free = table[table.behaviour != "fixed"]
    values = x * free.scale.to_numpy() + free["mean"].to_numpy()
    expected = np.log(free.scale).sum() + 2 * np.log(values[:, (free.kind == "bond").to_numpy()]).sum(axis=1)
    expected += np.log(np.sin(values[:, (free.kind == "angle").to_numpy()])).sum(axis=1)
    np.testing.assert_allclose(fitted.log_volume(x), expected, atol=1e-10)


def test_decode_guards_against_negative_bonds_and_turned_over_angles(fitted):
    frames = fitted.decode(np.where(fitted.circular, 0.0, -200.0 * np.ones(fitted.dimension)))
    assert np.isfinite(frames).all()
    bonds, angles, _ = measure(frames, fitted.matrix)
    assert bonds.min() == pytest.approx(0.01)
    assert angles.min() > 0.0199
    assert np.isfinite(fitted.log_volume(np.full(fitted.dimension, -200.0))).all()


def test_a_wanted_torsion_changes_the_tree(pdb):
    to_beta_carbon = (4, 6, 8, 10)
    representation = InternalCoordinates(pdb.topology, torsions=[to_beta_carbon])
    assert representation.coordinate_of(Dihedral(atoms=to_beta_carbon, name="phi_cb")) is not None
    assert representation.coordinate_of(PHI) is None


def test_torsions_asked_for_are_coordinates_wherever_the_tree_starts():
    # a six-ring with a branched tail, asked for torsions that run towards the middle, away from it and beside the ring
    bonds = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (2, 6), (6, 7), (7, 8), (7, 9)]
    for wanted in ((2, 6, 7, 9), (8, 7, 6, 2), (1, 2, 6, 7), (3, 2, 6, 7)):
        matrix = build(bonds, np.ones(10, dtype=bool), [wanted])
        rows = {tuple(r) for r in matrix.torsions.tolist()}
        assert {wanted, wanted[::-1]} & rows
        frames = np.random.default_rng(0).standard_normal((3, 10, 3))
        assert np.abs(pair_distances(place(*measure(frames, matrix), matrix)) - pair_distances(frames)).max() < 1e-9


def test_every_backbone_torsion_of_a_protein_is_a_coordinate_without_being_named():
    from mdtraj.geometry import dihedral
    from openmm import app

    protein = md.load(str(Path(app.__file__).parent / "data" / "test.pdb"))  # 35 residues, rings and a proline among them
    protein = protein.atom_slice(protein.topology.select("protein"))
    representation = InternalCoordinates(protein.topology)
    rows = [r for table in (dihedral.indices_phi, dihedral.indices_psi, dihedral.indices_omega) for r in table(protein.topology).tolist()]
    assert len(rows) > 90
    assert all(representation.coordinate_of(Dihedral(atoms=tuple(row), name="torsion")) is not None for row in rows)


@pytest.mark.parametrize("kind", ["internal", "cartesian", "isotropic", "vector"])
def test_saving_and_loading_gives_the_same_maps(kind, pdb, dynamics):
    representation = {
        "internal": InternalCoordinates(pdb.topology, torsions=[PHI.atoms]),
        "cartesian": Cartesian(pdb.topology),
        "isotropic": Cartesian(isotropic=True),
        "vector": Vector(periods=[None, TWO_PI, 3.0]),
    }[kind]
    frames = dynamics if kind != "vector" else np.random.default_rng(0).uniform(-1.0, 1.0, (20, 1, 3))
    assert representation_from(json.loads(json.dumps(representation.to_dict())), representation.arrays()).arrays() == {}
    fitted = representation.fit(frames)
    restored = representation_from(json.loads(json.dumps(fitted.to_dict())), fitted.arrays())
    x = fitted.encode(frames)
    np.testing.assert_array_equal(restored.encode(frames), x)
    np.testing.assert_array_equal(restored.decode(x), fitted.decode(x))
    np.testing.assert_array_equal(restored.log_volume(x), fitted.log_volume(x))
    np.testing.assert_array_equal(restored.circular, fitted.circular)
    assert restored.coordinate_of(PHI) == fitted.coordinate_of(PHI)


def test_fitting_returns_a_new_object_and_leaves_the_old_one_unfitted(pdb, shaken):
    for representation in (InternalCoordinates(pdb.topology, fix_hydrogen_bonds=False), Cartesian(pdb.topology)):
        assert representation.fit(shaken) is not representation
        with pytest.raises(ModelError, match="not fitted"):
            representation.encode(shaken)


@pytest.mark.parametrize("isotropic", [False, True])
def test_cartesian_round_trip_is_exact_up_to_alignment(pdb, dynamics, isotropic):
    fitted = Cartesian(pdb.topology, isotropic=isotropic).fit(dynamics)
    x = fitted.encode(dynamics)
    assert np.abs(pair_distances(fitted.decode(x)) - pair_distances(dynamics)).max() < 1e-10
    np.testing.assert_allclose(fitted.encode(fitted.decode(x)), x, atol=1e-8)
    assert np.abs(x.mean(axis=0)).max() < 1e-10
    assert (x**2).mean() == pytest.approx(1.0)
    assert fitted.log_volume(x)[0] == pytest.approx(np.log(fitted.arrays()["scale"]).sum())


def test_cartesian_encoding_ignores_rigid_motion_but_not_mirrors(pdb, dynamics):
    fitted = Cartesian(pdb.topology).fit(dynamics)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    np.testing.assert_allclose(fitted.encode(dynamics @ rotation - 2.0), fitted.encode(dynamics), atol=1e-8)
    assert np.abs(fitted.encode(-dynamics) - fitted.encode(dynamics)).max() > 1


def test_vector_standardizes_and_wraps_periodic_coordinates():
    q = np.random.default_rng(0).uniform(0.0, 6.0, (500, 1, 2)) + np.array([10.0, 0.0])
    fitted = Vector(periods=[None, TWO_PI]).fit(q)
    x = fitted.encode(q)
    assert fitted.circular.tolist() == [False, True]
    assert x[:, 0].std() == pytest.approx(1.0)
    np.testing.assert_allclose(x[:, 1], wrap(q[:, 0, 1], TWO_PI))
    np.testing.assert_allclose(wrap(fitted.decode(x) - q, TWO_PI), 0.0, atol=1e-10)
    assert fitted.log_volume(x) == pytest.approx(np.log(q[:, 0, 0].std()))
    first = Coordinate(index=0)
    assert fitted.coordinate_of(first) == 0
    assert [fitted.scale_of(0), fitted.scale_of(1)] == pytest.approx([q[:, 0, 0].std(), 1.0])
    np.testing.assert_allclose(fitted.standardize(0, first.evaluate(q)), x[:, 0])
    assert fitted.coordinate_of(PHI) is None


def test_bonds_that_should_be_fixed_but_vary_are_an_error(pdb, shaken):
    with pytest.raises(DataError, match=r"varies by .* nm but is to be fixed"):
        InternalCoordinates(pdb.topology).fit(shaken)


def test_one_frame_is_not_enough_to_learn_scales_from(pdb, shaken):
    with pytest.raises(DataError, match="does not vary"):
        InternalCoordinates(pdb.topology).fit(shaken[:1])


def test_a_topology_without_bonds_asks_for_conect_records():
    with pytest.raises(DataError, match="CONECT"):
        InternalCoordinates(chain("CCCC", []))


def test_standard_bonds_are_found_without_touching_the_topology_given(pdb):
    bare = pdb.topology.copy()
    bare._bonds = []
    assert InternalCoordinates(bare).bonds == InternalCoordinates(pdb.topology).bonds
    assert bare.n_bonds == 0


def test_two_molecules_are_an_error_that_names_an_atom_of_each():
    with pytest.raises(DataError, match=r"2 disconnected fragments; MOL0:C0 and MOL0:C3"):
        InternalCoordinates(chain("CCCCCC", [(0, 1), (1, 2), (3, 4), (4, 5)]))


def test_torsions_that_cannot_be_coordinates_are_errors(pdb):
    with pytest.raises(DataError, match="0-4-8-14 cannot be a coordinate"):
        InternalCoordinates(pdb.topology, torsions=[(0, 4, 8, 14)])
    with pytest.raises(DataError, match="one torsion per middle bond"):
        InternalCoordinates(pdb.topology, torsions=[(4, 6, 8, 14), (4, 6, 8, 10)])
    with pytest.raises(SelectionError, match="four different atoms"):
        InternalCoordinates(pdb.topology, torsions=[(4, 6, 8, 99)])


def test_a_straight_angle_is_an_error(pdb):
    frames = np.array([[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.25, 0.1, 0]]) + 1e-3 * np.random.default_rng(0).standard_normal((20, 4, 3))
    with pytest.raises(DataError, match="nearly straight"):
        InternalCoordinates(chain("CCCC", [(0, 1), (1, 2), (2, 3)])).fit(frames)


def test_wrong_shapes_and_unknown_kinds_are_errors(flexible, shaken):
    with pytest.raises(DataError, match=r"expected \(n, 22, 3\)"):
        flexible.encode(shaken[:, :5])
    with pytest.raises(DataError, match=r"expected \(n, 60\)"):
        flexible.decode(np.zeros((2, 3)))
    with pytest.raises(DataError, match="frame 1 are not finite"):
        flexible.encode(np.where(np.arange(200)[:, None, None] == 1, np.nan, shaken))
    with pytest.raises(ModelError, match="did you mean 'cartesian'"):
        representation_from({"kind": "cartesien"}, {})
