"""Molecules are read as their files say, keep their chemistry, and complain so that the reader knows what to do."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app, unit

from couloir.errors import ConfigError, DataError
from couloir.sampling import MolecularSystem, systems
from couloir.sampling.implicit import native_obc

FF14SB = "amber14/protein.ff14SB.xml"
OBC2 = "implicit/obc2.xml"
DIPEPTIDE = systems.structure_file("alanine_dipeptide.pdb")
PEPTIDES = ("alanine_dipeptide", "alanine_tripeptide", "alanine_tetrapeptide")


def energy_and_forces(system: openmm.System, positions: np.ndarray) -> tuple[float, np.ndarray]:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.array(positions))
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, np.array(state.getForces(asNumpy=True)._value)


def custom_system(solvent: str = OBC2, **options: object) -> openmm.System:
    return app.ForceField(FF14SB, solvent).createSystem(app.PDBFile(str(DIPEPTIDE)).topology, **options)


# --- implicit solvent ---------------------------------------------------------------------------------------------------


def test_native_obc2_has_the_energies_and_forces_of_the_custom_force() -> None:
    custom, native = custom_system(), custom_system()
    assert native_obc(native)
    assert not any(isinstance(force, openmm.CustomGBForce) for force in native.getForces())
    start, rng = systems.alanine_dipeptide().state.positions, np.random.default_rng(1)
    for width in (0.0, 0.002, 0.005, 0.01, 0.02):
        positions = start + width * rng.standard_normal(start.shape)
        expected, expected_forces = energy_and_forces(custom, positions)
        energy, forces = energy_and_forces(native, positions)
        assert energy == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose(forces, expected_forces, atol=1e-4 * np.abs(expected_forces).max())


def test_native_obc2_keeps_dielectrics_and_a_missing_surface_term() -> None:
    options = {"solventDielectric": 40.0, "soluteDielectric": 2.0, "sasaMethod": None}
    custom, native = custom_system(**options), custom_system(**options)
    assert native_obc(native)
    positions = systems.alanine_dipeptide().state.positions
    assert energy_and_forces(native, positions)[0] == pytest.approx(energy_and_forces(custom, positions)[0], rel=1e-4)


@pytest.mark.parametrize("solvent", ["hct", "obc1", "gbn", "gbn2"])
def test_other_generalized_born_models_are_left_alone(solvent: str) -> None:
    system = custom_system(f"implicit/{solvent}.xml")
    before = openmm.XmlSerializer.serialize(system)
    assert not native_obc(system)
    assert openmm.XmlSerializer.serialize(system) == before


@pytest.mark.parametrize("options", [{"implicitSolventKappa": 1.0}, {"nonbondedMethod": app.CutoffNonPeriodic}])
def test_obc2_with_salt_or_cutoff_is_left_alone(options: dict[str, object]) -> None:
    assert not native_obc(custom_system(**options))


# --- shipped systems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", [*(f"{name}.pdb" for name in PEPTIDES), "alanine_dipeptide_tip3p.pdb.gz", "alanine_tripeptide_tip3p.pdb.gz"]
)
def test_shipped_peptides_are_left_handed_with_trans_peptide_bonds(file: str) -> None:
    molecule = MolecularSystem.from_pdb(systems.structure_file(file), [FF14SB, "amber14/tip3p.xml"])
    trajectory = mdtraj.Trajectory(molecule.state.positions, molecule.topology)
    alanines = [residue for residue in molecule.topology.residues if residue.name == "ALA"]
    for residue in alanines:
        n, ca, c, cb = (molecule.state.positions[next(residue.atoms_by_name(name)).index] for name in ("N", "CA", "C", "CB"))
        assert np.dot(np.cross(n - ca, c - ca), cb - ca) > 0.001  # L: looking from H, CO-R-N reads clockwise (CORN rule)
    carbons = [
        atom.index for atom in molecule.topology.atoms if atom.name in ("CH3", "CA") or (atom.residue.name == "NME" and atom.name == "C")
    ]
    carbonyls = [atom.index for atom in molecule.topology.atoms if atom.name == "C" and atom.residue.name in ("ACE", "ALA")]
    nitrogens = [atom.index for atom in molecule.topology.atoms if atom.name == "N"]
    omega = mdtraj.compute_dihedrals(trajectory, list(zip(carbons[:-1], carbonyls, nitrogens, carbons[1:], strict=True)))
    assert omega.size == len(alanines) + 1
    assert np.all(np.cos(omega) < np.cos(np.radians(150)))


@pytest.mark.parametrize("name", PEPTIDES)
@pytest.mark.parametrize("solvent", ["vacuum", "obc2"])
def test_isolated_peptides_start_near_a_minimum_and_keep_their_residue_numbers(name: str, solvent: str) -> None:
    molecule = getattr(systems, name)(solvent)
    n = PEPTIDES.index(name) + 1
    assert molecule.n_atoms == 12 + 10 * n
    assert [residue.resSeq for residue in molecule.topology.residues] == list(range(1, n + 3))
    assert not molecule.is_periodic
    assert len(molecule.constraints) == sum(atom.element.symbol == "H" for atom in molecule.topology.atoms)
    assert molecule.masses.sum() == pytest.approx(73.09 + 71.08 * n, abs=0.05)
    energy, forces = energy_and_forces(molecule.system(), molecule.state.positions)
    assert np.isfinite(energy)
    assert np.abs(forces).max() < 2000
    system = molecule.system()
    names = [force.getName() for force in system.getForces()]
    assert ("GBSAOBCForce" in names) == (solvent == "obc2")
    assert "CMMotionRemover" not in names
    assert system.getNumParticles() == molecule.n_atoms


def test_alanine_dipeptide_in_obc2_has_its_known_energy() -> None:
    molecule = systems.alanine_dipeptide("obc2")
    assert energy_and_forces(molecule.system(), molecule.state.positions)[0] == pytest.approx(-142.8637, abs=1e-3)


def test_explicit_water_is_rigid_periodic_and_of_the_right_density() -> None:
    molecule = systems.alanine_dipeptide("tip3p")
    n_water = sum(residue.name == "HOH" for residue in molecule.topology.residues)
    assert molecule.is_periodic
    assert len(molecule.constraints) == 12 + 3 * n_water
    volume = float(np.linalg.det(molecule.state.box)) - 0.3
    assert 18.0153 * n_water / 602.214 / volume == pytest.approx(0.985, abs=0.005)
    system = molecule.system()
    [nonbonded] = [force for force in system.getForces() if isinstance(force, openmm.NonbondedForce)]
    assert nonbonded.getNonbondedMethod() == openmm.NonbondedForce.PME
    assert nonbonded.getCutoffDistance()._value == pytest.approx(0.9)
    topology = molecule.openmm_topology()
    for vectors in (system.getDefaultPeriodicBoxVectors(), topology.getPeriodicBoxVectors()):
        np.testing.assert_allclose([list(vector.value_in_unit(unit.nanometer)) for vector in vectors], molecule.state.box)


@pytest.mark.parametrize(("name", "n_carbons"), [("ethane", 2), ("propane", 3), ("butane", 4), ("pentane", 5)])
def test_alkanes_have_their_formula_and_are_neutral(name: str, n_carbons: int) -> None:
    molecule = getattr(systems, name)()
    assert molecule.name == name
    assert [atom.element.symbol for atom in molecule.topology.atoms] == ["C"] * n_carbons + ["H"] * (2 * n_carbons + 2)
    assert molecule.topology.n_bonds == 3 * n_carbons + 1
    assert len(molecule.constraints) == 2 * n_carbons + 2
    system = molecule.system()
    [nonbonded] = [force for force in system.getForces() if isinstance(force, openmm.NonbondedForce)]
    assert sum(nonbonded.getParticleParameters(i)[0]._value for i in range(molecule.n_atoms)) == pytest.approx(0.0, abs=1e-12)
    assert np.abs(energy_and_forces(system, molecule.state.positions)[1]).max() < 1000


def minimum_of_butane(torsion: float) -> tuple[float, float]:
    """Return torsion (degrees) and energy (kJ/mol) of the minimum next to a torsion."""
    molecule = systems.butane(constraints="none")
    positions = np.array(molecule.state.positions)
    axis = positions[2] - positions[1]
    angle, axis = np.radians(torsion - 180.0), axis / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), axis)
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    moving = [atom.index for atom in molecule.topology.atoms if atom.name[:2] in ("C4", "H3", "H4")]
    positions[moving] = positions[2] + (positions[moving] - positions[2]) @ rotation.T
    context = openmm.Context(molecule.system(), openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, 0.01)
    state = context.getState(energy=True, positions=True)
    frame = mdtraj.Trajectory(np.array(state.getPositions(asNumpy=True)._value), molecule.topology)
    return float(np.degrees(mdtraj.compute_dihedrals(frame, [[0, 1, 2, 3]])[0, 0])), state.getPotentialEnergy()._value


def test_butane_is_trans_with_gauche_minima_near_0_8_kcal_per_mol() -> None:
    trans, trans_energy = minimum_of_butane(180.0)
    assert abs(trans) == pytest.approx(180.0, abs=1.0)
    for start in (65.0, -65.0):
        gauche, gauche_energy = minimum_of_butane(start)
        assert gauche == pytest.approx(start, abs=8.0)
        assert 0.6 < (gauche_energy - trans_energy) / 4.184 < 0.9


def test_flexible_and_constrained_alkanes_agree_where_bonds_have_their_equilibrium_length() -> None:
    flexible, rigid = systems.pentane("none"), systems.pentane("AllBonds")
    assert (len(flexible.constraints), len(rigid.constraints)) == (0, 16)
    positions = flexible.state.positions
    assert energy_and_forces(rigid.system(), positions)[0] == pytest.approx(energy_and_forces(flexible.system(), positions)[0], abs=1e-8)


def test_toy_potentials_are_offered_beside_the_molecules() -> None:
    assert callable(systems.hidden_barrier)
    assert all(hasattr(systems, name) for name in systems.__all__)


# --- the object ---------------------------------------------------------------------------------------------------------


def test_a_molecule_survives_pickling_and_hands_out_independent_systems() -> None:
    molecule = pickle.loads(pickle.dumps(systems.alanine_dipeptide("obc2")))
    molecule.system().addParticle(1.0)
    assert molecule.system().getNumParticles() == molecule.n_atoms == 22
    assert "GBSAOBCForce" in str(molecule)
    assert "22 in 3 residues" in str(molecule)
    again = molecule.openmm_topology()
    assert [residue.id for residue in again.residues()] == ["1", "2", "3"]
    assert again.getNumBonds() == 21


def test_from_system_takes_quantities_and_both_kinds_of_topology() -> None:
    structure, system = app.PDBFile(str(DIPEPTIDE)), custom_system()
    one = MolecularSystem.from_system(system, structure.topology, structure.positions, name="mine")
    two = MolecularSystem.from_system(system, one.topology, structure.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    assert one.name == "mine"
    assert "CustomGBForce" in str(one)  # taken as it is
    np.testing.assert_array_equal(one.state.positions, two.state.positions)


def test_mismatched_atoms_are_named() -> None:
    molecule = systems.alanine_dipeptide()
    with pytest.raises(DataError, match="22 atoms and the structure has 21"):
        MolecularSystem.from_system(molecule.system(), molecule.topology, molecule.state.positions[:-1])
    with pytest.raises(DataError, match="8 particles and the topology has 22"):
        MolecularSystem.from_system(systems.ethane().system(), molecule.topology, molecule.state.positions)


# --- PDB ----------------------------------------------------------------------------------------------------------------


def edited(tmp_path: Path, *replacements: tuple[str, str], drop: str | None = None) -> Path:
    lines = DIPEPTIDE.read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if drop is None or drop not in line)
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "edited.pdb"
    path.write_text(text)
    return path


def without_hydrogens(tmp_path: Path) -> Path:
    keep = [line for line in DIPEPTIDE.read_text().splitlines() if line.startswith(("ATOM", "HETATM")) and not line.rstrip().endswith("H")]
    path = tmp_path / "heavy.pdb"
    path.write_text("\n".join(keep) + "\nEND\n")
    return path


def test_a_pdb_gets_the_default_force_field_and_its_file_name() -> None:
    molecule = MolecularSystem.from_pdb(DIPEPTIDE)
    assert molecule.name == "alanine_dipeptide"
    assert "GBSAOBCForce" in str(molecule)


def test_a_compressed_pdb_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.pdb.gz"
    path.write_bytes(gzip.compress(DIPEPTIDE.read_bytes()))
    np.testing.assert_array_equal(MolecularSystem.from_pdb(path).state.positions, MolecularSystem.from_pdb(DIPEPTIDE).state.positions)


def test_constraints_and_hydrogen_mass_are_applied() -> None:
    heavy = MolecularSystem.from_pdb(DIPEPTIDE, FF14SB, constraints="AllBonds", hydrogen_mass="3 amu")
    assert len(heavy.constraints) == 21
    assert heavy.masses.min() == pytest.approx(3.0)
    assert heavy.masses.sum() == pytest.approx(systems.alanine_dipeptide().masses.sum())
    assert MolecularSystem.from_pdb(DIPEPTIDE, FF14SB, constraints="none").constraints == []


def test_missing_hydrogens_are_built_the_same_way_every_time(tmp_path: Path) -> None:
    path = without_hydrogens(tmp_path)
    one, two = (MolecularSystem.from_pdb(path, [FF14SB, OBC2], add_hydrogens=True) for _ in range(2))
    assert one.n_atoms == 22
    np.testing.assert_array_equal(one.state.positions, two.state.positions)


def test_missing_hydrogens_are_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"heavy\.pdb: residue ACE 1 of chain A(?s:.*)add_hydrogens"):
        MolecularSystem.from_pdb(without_hydrogens(tmp_path), [FF14SB, OBC2])


def test_an_unknown_residue_is_named_with_the_fix(tmp_path: Path) -> None:
    path = edited(tmp_path, ("ALA A", "LIG A"))
    with pytest.raises(DataError, match=r"residue LIG 2 of chain A(?s:.*)force field that has this residue"):
        MolecularSystem.from_pdb(path, FF14SB)


def test_uncapped_ends_are_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"residue ALA 2 of chain A(?s:.*)cap the chain ends"):
        MolecularSystem.from_pdb(edited(tmp_path, drop=" NME "), FF14SB)


def test_a_missing_heavy_atom_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"residue ALA 2 of chain A(?s:.*)complete the residue"):
        MolecularSystem.from_pdb(edited(tmp_path, drop="  O   ALA"), FF14SB)


def test_not_finite_coordinates_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="atom N of residue ALA 2"):
        MolecularSystem.from_pdb(edited(tmp_path, ("   2.189  -1.024", "     nan  -1.024")))


def test_files_that_are_missing_or_no_structure_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: nowhere\.pdb"):
        MolecularSystem.from_pdb("nowhere.pdb")
    (tmp_path / "words.pdb").write_text("This is prose.\n")
    with pytest.raises(DataError, match=r"words\.pdb has no atoms"):
        MolecularSystem.from_pdb(tmp_path / "words.pdb")
    (tmp_path / "broken.pdb").write_text("ATOM      1  N   ALA A   1       x.xxx   1.000   1.000\n")
    with pytest.raises(DataError, match=r"cannot read the structure file .*broken\.pdb"):
        MolecularSystem.from_pdb(tmp_path / "broken.pdb")
    (tmp_path / "zip.pdb.gz").write_bytes(b"not compressed")
    with pytest.raises(DataError, match=r"cannot read the structure file .*zip\.pdb\.gz"):
        MolecularSystem.from_pdb(tmp_path / "zip.pdb.gz")


def test_a_misspelt_force_field_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"amber14al\.xml.*did you mean 'amber14-all\.xml'"):
        MolecularSystem.from_pdb(DIPEPTIDE, "amber14al.xml")


def test_other_wrong_choices_get_the_choices() -> None:
    with pytest.raises(ConfigError, match="'hbonds'; did you mean 'HBonds'"):
        MolecularSystem.from_pdb(DIPEPTIDE, constraints="hbonds")
    with pytest.raises(ConfigError, match="give one of vacuum, obc2, tip3p"):
        systems.alanine_dipeptide("octanol")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="from 2 to 30"):
        systems.alkane(1)
    with pytest.raises(ConfigError, match=r"did you mean 'alanine_dipeptide\.pdb'"):
        systems.structure_file("alanin_dipeptide.pdb")
    with pytest.raises(DataError, match="not positive"):
        MolecularSystem.from_pdb(DIPEPTIDE, nonbonded_cutoff=-1.0)


def test_water_must_fit_box_force_field_and_cutoff(tmp_path: Path) -> None:
    solvated = systems.structure_file("alanine_dipeptide_tip3p.pdb.gz")
    with pytest.raises(DataError, match=r"contains water(?s:.*)implicit"):
        MolecularSystem.from_pdb(solvated)
    with pytest.raises(DataError, match=r"less than two cutoffs of 1\.5 nm(?s:.*)below 1\.28"):
        MolecularSystem.from_pdb(solvated, [FF14SB, "amber14/tip3p.xml"], nonbonded_cutoff="15 A")
    path = tmp_path / "nobox.pdb"
    lines = gzip.decompress(solvated.read_bytes()).decode().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("CRYST1")))
    with pytest.raises(DataError, match="no periodic box"):
        MolecularSystem.from_pdb(path, [FF14SB, "amber14/tip3p.xml"])


# --- Amber and Gromacs: hydrogen chloride, small enough to write by hand --------------------------------------------------

BOND, STIFFNESS, CHARGE = 0.127, 1000.0, 0.2  # nm, kJ/mol/nm^2, e

GROMACS_TOP = f"""
[ defaults ]
1 2 yes 0.5 0.8333
[ atomtypes ]
HC 1.008 0.0 A 0.10 0.05
CL 35.45 0.0 A 0.35 1.00
[ moleculetype ]
HCL 3
[ atoms ]
1 HC 1 HCL H1 1 {CHARGE} 1.008
2 CL 1 HCL CL1 1 {-CHARGE} 35.45
[ bonds ]
1 2 1 {BOND} {STIFFNESS}
[ system ]
hydrogen chloride
[ molecules ]
HCL {{count}}
"""


def gromacs_files(folder: Path, offsets: list[float], box: float) -> tuple[Path, Path]:
    """Write molecules of HCl along x, their bonds 0.01 nm too long, each at an offset along y."""
    rows = []
    for number, y in enumerate(offsets, start=1):
        for k, (name, x) in enumerate((("H1", 0.0), ("CL1", BOND + 0.01))):
            rows.append(f"{number:5d}{'HCL':<5}{name:>5}{2 * number - 1 + k:5d}{x:8.3f}{y:8.3f}{0:8.3f}")
    top, gro = folder / "hcl.top", folder / "hcl.gro"
    top.write_text(GROMACS_TOP.format(count=len(offsets)))
    gro.write_text("\n".join(["hydrogen chloride", f"{len(rows)}", *rows, f"{box:12.7f}{box:12.7f}{box:12.7f}"]) + "\n")
    return top, gro


def test_a_gromacs_molecule_has_its_energy_and_no_box(tmp_path: Path) -> None:
    molecule = MolecularSystem.from_gromacs(*gromacs_files(tmp_path, [0.0], box=0.0), constraints="none")
    assert (molecule.name, molecule.n_atoms, molecule.is_periodic, molecule.state.box) == ("hcl", 2, False, None)
    assert energy_and_forces(molecule.system(), molecule.state.positions)[0] == pytest.approx(0.5 * STIFFNESS * 0.01**2, rel=1e-6)
    rigid = MolecularSystem.from_gromacs(*gromacs_files(tmp_path, [0.0], box=0.0))
    assert rigid.constraints == [(0, 1, pytest.approx(BOND))]


def test_a_gromacs_box_is_periodic(tmp_path: Path) -> None:
    molecule = MolecularSystem.from_gromacs(*gromacs_files(tmp_path, [0.0, 0.5], box=2.5), nonbonded_cutoff="1 nm")
    assert molecule.is_periodic
    np.testing.assert_allclose(molecule.state.box, 2.5 * np.eye(3))


def test_gromacs_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    top, gro = gromacs_files(tmp_path, [0.0, 0.5], box=0.0)
    (tmp_path / "one.top").write_text(GROMACS_TOP.format(count=1))
    with pytest.raises(DataError, match=r"one\.top has 2 atoms and .*hcl\.gro has 4"):
        MolecularSystem.from_gromacs(tmp_path / "one.top", gro)
    (tmp_path / "include.top").write_text('#include "amber99sb.ff/forcefield.itp"\n')
    with pytest.raises(DataError, match=r"cannot read the Gromacs topology .*include\.top(?s:.*)include_dir"):
        MolecularSystem.from_gromacs(tmp_path / "include.top", gro)
    with pytest.raises(DataError, match="no such directory"):
        MolecularSystem.from_gromacs(top, gro, include_dir=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no such file"):
        MolecularSystem.from_gromacs(top, tmp_path / "nowhere.gro")


def amber_files(folder: Path) -> tuple[Path, Path]:
    """Write one HCl molecule as prmtop and inpcrd; Amber counts in kcal/mol, angstrom and e times 18.2223."""
    pointers = [0] * 31
    pointers[0], pointers[1], pointers[2] = 2, 2, 1  # atoms, atom types, bonds with hydrogen
    pointers[10], pointers[11], pointers[15], pointers[28] = 2, 1, 1, 2  # exclusions, residues, bond types, largest residue
    integer, real, text = ("%FORMAT(10I8)", 8, "d"), ("%FORMAT(5E16.8)", 16, ".8E"), ("%FORMAT(20a4)", 4, "s")
    sections: list[tuple[str, tuple[str, int, str], list[object]]] = [
        ("POINTERS", integer, list(pointers)),
        ("ATOM_NAME", text, ["H1", "CL1"]),
        ("CHARGE", real, [18.2223 * CHARGE, -18.2223 * CHARGE]),
        ("ATOMIC_NUMBER", integer, [1, 17]),
        ("MASS", real, [1.008, 35.45]),
        ("ATOM_TYPE_INDEX", integer, [1, 2]),
        ("NUMBER_EXCLUDED_ATOMS", integer, [1, 1]),
        ("NONBONDED_PARM_INDEX", integer, [1, 2, 2, 3]),
        ("RESIDUE_LABEL", text, ["HCL"]),
        ("RESIDUE_POINTER", integer, [1]),
        ("BOND_FORCE_CONSTANT", real, [STIFFNESS / 2 / 418.4]),
        ("BOND_EQUIL_VALUE", real, [10 * BOND]),
        *((name, real, []) for name in ("ANGLE_FORCE_CONSTANT", "ANGLE_EQUIL_VALUE")),
        *((f"DIHEDRAL_{name}", real, []) for name in ("FORCE_CONSTANT", "PERIODICITY", "PHASE")),
        *((name, real, []) for name in ("SCEE_SCALE_FACTOR", "SCNB_SCALE_FACTOR", "SOLTY")),
        ("LENNARD_JONES_ACOEF", real, [1e3, 1e4, 1e5]),
        ("LENNARD_JONES_BCOEF", real, [1.0, 10.0, 100.0]),
        ("BONDS_INC_HYDROGEN", integer, [0, 3, 1]),
        ("BONDS_WITHOUT_HYDROGEN", integer, []),
        *((f"{kind}_{which}_HYDROGEN", integer, []) for kind in ("ANGLES", "DIHEDRALS") for which in ("INC", "WITHOUT")),
        ("EXCLUDED_ATOMS_LIST", integer, [2, 0]),
        *((f"HBOND_{name}", real, []) for name in ("ACOEF", "BCOEF")),
        ("HBCUT", real, []),
        ("AMBER_ATOM_TYPE", text, ["HC", "CL"]),
        ("TREE_CHAIN_CLASSIFICATION", text, ["M", "M"]),
        ("JOIN_ARRAY", integer, [0, 0]),
        ("IROTAT", integer, [0, 0]),
        ("RADIUS_SET", text, ["mbondi2"]),
        ("RADII", real, [1.2, 1.7]),
        ("SCREEN", real, [0.85, 0.8]),
    ]
    lines = ["%VERSION  VERSION_STAMP = V0001.000  DATE = 01/01/26  00:00:00"]
    for name, (form, width, code), values in sections:
        per_line = {8: 10, 16: 5, 4: 20}[width]
        cells = [f"{value:<{width}s}" if code == "s" else f"{value:{width}{code}}" for value in values]
        rows = ["".join(cells[i : i + per_line]) for i in range(0, len(cells), per_line)] or [""]
        lines += [f"%FLAG {name}", form, *rows]
    prmtop, inpcrd = folder / "hcl.prmtop", folder / "hcl.inpcrd"
    prmtop.write_text("\n".join(lines) + "\n")
    coordinates = [0.0, 0.0, 0.0, 10 * (BOND + 0.01), 0.0, 0.0]
    inpcrd.write_text("hydrogen chloride\n    2\n" + "".join(f"{x:12.7f}" for x in coordinates) + "\n")
    return prmtop, inpcrd


def test_an_amber_molecule_has_its_energy_and_is_isolated(tmp_path: Path) -> None:
    molecule = MolecularSystem.from_amber(*amber_files(tmp_path), constraints="none")
    assert (molecule.name, molecule.n_atoms, molecule.is_periodic) == ("hcl", 2, False)
    np.testing.assert_allclose(molecule.masses, [1.008, 35.45])
    assert energy_and_forces(molecule.system(), molecule.state.positions)[0] == pytest.approx(0.5 * STIFFNESS * 0.01**2, rel=1e-5)


def test_obc2_of_amber_files_becomes_native_with_the_same_energy(tmp_path: Path) -> None:
    prmtop, inpcrd = amber_files(tmp_path)
    molecule = MolecularSystem.from_amber(prmtop, inpcrd, "obc2")
    assert "GBSAOBCForce" in str(molecule)
    custom = app.AmberPrmtopFile(str(prmtop)).createSystem(implicitSolvent=app.OBC2, constraints=app.HBonds)
    expected = energy_and_forces(custom, molecule.state.positions)[0]
    assert expected < -4.0
    assert energy_and_forces(molecule.system(), molecule.state.positions)[0] == pytest.approx(expected, rel=1e-4)
    assert "CustomGBForce" in str(MolecularSystem.from_amber(prmtop, inpcrd, "obc1"))


def test_amber_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    prmtop, inpcrd = amber_files(tmp_path)
    with pytest.raises(ConfigError, match="'obc3'; did you mean"):
        MolecularSystem.from_amber(prmtop, inpcrd, "obc3")
    with pytest.raises(DataError, match=r"cannot read the Amber coordinate file .*hcl\.prmtop"):
        MolecularSystem.from_amber(inpcrd, prmtop)
    inpcrd.write_text("one atom\n    1\n" + "".join(f"{x:12.7f}" for x in (0, 0, 0)) + "\n")
    with pytest.raises(DataError, match=r"hcl\.prmtop has 2 atoms and .*hcl\.inpcrd has 1"):
        MolecularSystem.from_amber(prmtop, inpcrd)
