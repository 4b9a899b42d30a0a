"""OpenMM's readers of structures, force fields, Amber and Gromacs files, with errors that name file, residue and fix."""

from __future__ import annotations

import gzip
import io
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from couloir.errors import ConfigError, CouloirError, DataError, nearest
from couloir.sampling.implicit import native_obc
from couloir.trajectory import Array

WATER = frozenset({"HOH", "WAT", "SOL", "TIP3", "TIP", "H2O"})
_PERIODIC_CUTOFF = 1.0


def read_structure(path: Path) -> tuple[Any, Any]:
    """Return the ``openmm.app`` topology and the positions (Quantity) of a PDB or mmCIF file, or one compressed (``.gz``).

    Raises
    ------
    DataError : the file is missing, unreadable or without atoms, or a coordinate is not finite.
    """
    from openmm import app

    _must_exist(path)
    compressed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix if compressed else path.suffix
    kind = app.PDBxFile if suffix.lower() in (".cif", ".mmcif") else app.PDBFile
    fix = "check that it is a PDB (or, with the suffix .cif, an mmCIF) file"
    with _reading(path, "structure file", fix), gzip.open(path, "rt") if compressed else path.open() as file:
        text = file.read()
        if kind is app.PDBFile and not re.search(r"^(ATOM|HETATM)", text, re.MULTILINE):
            raise DataError(f"{path} has no atoms", fix)
        structure = kind(io.StringIO(text))
    positions = structure.getPositions()
    atoms = list(structure.topology.atoms())
    bad = np.flatnonzero(~np.isfinite(_nanometers(positions)).all(axis=1))
    if len(bad):
        atom = atoms[bad[0]]
        raise DataError(
            f"{path}: the coordinates of atom {atom.name} of {_residue(atom.residue)} are not finite ({len(bad)} such atoms)",
            "repair or rebuild the structure",
        )
    return structure.topology, positions


def load_force_field(files: list[str]) -> Any:
    """Return an ``openmm.app.ForceField`` from XML files given by path or by name in OpenMM's collection.

    Raises
    ------
    ConfigError : a file does not exist or cannot be read; the message names the nearest one of OpenMM's.
    """
    from openmm import app

    shipped = Path(app.__file__).parent / "data"
    known = [str(path.relative_to(shipped)) for path in shipped.rglob("*.xml")]
    for file in files:
        if not Path(file).is_file() and file not in known:
            hint = nearest(file, known)
            raise ConfigError(
                f"no such force field: {file!r}" + (hint if "did you mean" in hint else ""),
                'give the path of an OpenMM XML file, or one that OpenMM has, such as "amber14-all.xml" or "charmm36.xml"',
            )
    try:
        return app.ForceField(*files)
    except Exception as error:
        raise ConfigError(f"cannot read the force field {', '.join(files)}: {error}", "check that the XML files belong together") from error


def with_hydrogens(topology: Any, positions: Any, force_field: Any, path: Path) -> tuple[Any, Any]:
    """Return topology and positions with missing hydrogens added (pH 7), the same ones every time.

    Raises
    ------
    DataError : the force field does not know a residue.
    """
    from openmm import Platform, app

    modeller = app.Modeller(topology, positions)
    with _fixed_random(), _templates(topology, path):
        modeller.addHydrogens(force_field, platform=Platform.getPlatformByName("Reference"))
    return modeller.topology, modeller.positions


def nonbonded_method(topology: Any, implicit: bool, cutoff: float | None, path: Path) -> dict[str, Any]:
    """Return ``createSystem`` arguments that fit a structure: PME for water in a box, otherwise an isolated molecule.

    Raises
    ------
    DataError : water without a box, water in implicit solvent, or a box smaller than two cutoffs.
    """
    water = any(residue.name in WATER for residue in topology.residues())
    box = topology.getPeriodicBoxVectors()
    if water and implicit:
        raise DataError(
            f"{path} contains water, and the force field has an implicit solvent",
            'remove the water, or replace the implicit solvent by a water model such as "amber14/tip3p.xml"',
        )
    if water and box is None:
        raise DataError(f"{path} contains water and has no periodic box", "add a CRYST1 record with the box, or remove the water")
    return method_for(box if water or (cutoff is not None and not implicit) else None, cutoff, path)


def method_for(box: Any, cutoff: float | None, path: Path) -> dict[str, Any]:
    """Return the nonbonded arguments of ``createSystem`` for a box (a Quantity) or None.

    Raises
    ------
    DataError : the cutoff is not positive, or the box is smaller than two cutoffs.
    """
    from openmm import app, unit

    if cutoff is not None and cutoff <= 0:
        raise DataError(f"nonbonded_cutoff = {cutoff:g} nm is not positive", "give a positive distance, or None for no cutoff")
    if box is None:
        if cutoff is None:
            return {"nonbondedMethod": app.NoCutoff}
        return {"nonbondedMethod": app.CutoffNonPeriodic, "nonbondedCutoff": cutoff * unit.nanometer}
    cutoff = _PERIODIC_CUTOFF if cutoff is None else cutoff
    smallest = float(np.diag(_nanometers(box)).min())
    if smallest < 2 * cutoff:
        raise DataError(
            f"{path}: the box is {smallest:.3g} nm wide, less than two cutoffs of {cutoff:g} nm",
            f"set nonbonded_cutoff below {smallest / 2:.3g} nm or use a larger box",
        )
    return {"nonbondedMethod": app.PME, "nonbondedCutoff": cutoff * unit.nanometer}


def parametrize(force_field: Any, topology: Any, options: dict[str, Any], path: Path) -> Any:
    """Return the ``openmm.System`` of a topology, with OBC2 as the native force.

    Raises
    ------
    DataError : a residue matches no template; the message says which and what is missing.
    """
    with _templates(topology, path):
        system = force_field.createSystem(topology, **options)
    native_obc(system)
    return system


def read_amber(prmtop: Path, inpcrd: Path, solvent: str | None, cutoff: float | None, options: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Return system, topology, positions and box vectors (or None) of Amber files.

    Raises
    ------
    DataError : a file is missing or unreadable, or the two do not belong together.
    """
    from openmm import app

    _must_exist(prmtop, inpcrd)
    with _reading(inpcrd, "Amber coordinate file", "check that it is an inpcrd or rst7 file"):
        coordinates = app.AmberInpcrdFile(str(inpcrd))
    with _reading(prmtop, "Amber topology", "check that it is a prmtop file and that the two file names are in this order"):
        parameters = app.AmberPrmtopFile(str(prmtop), periodicBoxVectors=coordinates.boxVectors)
    _must_match(parameters.topology, coordinates.positions, prmtop, inpcrd)
    box = None if solvent else parameters.topology.getPeriodicBoxVectors()
    options = options | method_for(box, cutoff, prmtop)
    if solvent:
        options["implicitSolvent"] = {"hct": app.HCT, "obc1": app.OBC1, "obc2": app.OBC2, "gbn": app.GBn, "gbn2": app.GBn2}[solvent.lower()]
    with _reading(prmtop, "Amber topology", "check the file with parmed or cpptraj"):
        system = parameters.createSystem(**options)
    native_obc(system)
    return system, parameters.topology, coordinates.positions, box


def read_gromacs(
    top: Path, gro: Path, include_dir: str | Path | None, cutoff: float | None, options: dict[str, Any]
) -> tuple[Any, Any, Any, Any]:
    """Return system, topology, positions and box vectors (or None) of Gromacs files.

    Raises
    ------
    DataError : a file is missing or unreadable, or the two do not belong together.
    """
    from openmm import app

    _must_exist(top, gro)
    if include_dir is not None and not Path(include_dir).is_dir():
        raise DataError(f"no such directory: {include_dir}", "include_dir is the directory that the #include lines are relative to")
    with _reading(gro, "Gromacs coordinate file", "check that it is a .gro file"):
        structure = app.GromacsGroFile(str(gro))
    box = structure.getPeriodicBoxVectors()
    if box is not None and not np.diag(_nanometers(box)).all():
        box = None
    with _reading(top, "Gromacs topology", "check that its #include files are there, and give their directory as include_dir"):
        topology = app.GromacsTopFile(str(top), periodicBoxVectors=box, includeDir=None if include_dir is None else str(include_dir))
    _must_match(topology.topology, structure.positions, top, gro)
    options = options | method_for(box, cutoff, gro)
    with _reading(top, "Gromacs topology", "OpenMM reads the Amber, CHARMM and OPLS force fields in Gromacs form"):
        system = topology.createSystem(**options)
    return system, topology.topology, structure.positions, box


def _nanometers(quantity: Any) -> Array:
    from openmm import unit

    return np.array([list(row) for row in quantity.value_in_unit(unit.nanometer)], dtype=np.float64)


def _residue(residue: Any) -> str:
    return f"residue {residue.name} {residue.id}" + (f" of chain {residue.chain.id}" if residue.chain.id.strip() else "")


def _must_exist(*paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise DataError(f"no such file: {path}", "check the path; it is relative to the current directory")


def _must_match(topology: Any, positions: Any, one: Path, other: Path) -> None:
    if topology.getNumAtoms() != len(positions):
        raise DataError(
            f"{one} has {topology.getNumAtoms()} atoms and {other} has {len(positions)}",
            "give topology and coordinates of the same molecule, with the same atoms in the same order",
        )


@contextmanager
def _reading(path: Path, what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except CouloirError:
        raise
    except Exception as error:
        raise DataError(f"cannot read the {what} {path}: {error}", fix) from error


@contextmanager
def _fixed_random() -> Iterator[None]:
    """OpenMM places hydrogens with Python's global generator: pin it, and leave it as it was found."""
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


@contextmanager
def _templates(topology: Any, path: Path) -> Iterator[None]:
    """Translate OpenMM's complaints about residues that match no template."""
    try:
        yield
    except ValueError as error:
        match = re.search(r"No template found for residue (\d+) \((.*?)\)\.\s*(.*?)\s*(?:For more information.*)?$", str(error), re.DOTALL)
        if match is None:
            raise DataError(f"{path}: the force field cannot be applied: {error}", "use a force field made for this molecule") from error
        residue = list(topology.residues())[int(match[1])]
        raise DataError(
            f"{path}: {_residue(residue)} does not fit the force field: {match[3].rstrip('.')}", _template_fix(match[3])
        ) from error


def _template_fix(reason: str) -> str:
    if "CONECT" in reason:
        return "correct the residue's name, or use a force field that has this residue and give its bonds as CONECT records"
    if "H atom" in reason or "hydrogen" in reason.lower():
        return "hydrogens are missing: set add_hydrogens=True, or give a structure with all of them"
    if "terminal" in reason or "capping" in reason or "chain" in reason:
        return "cap the chain ends (ACE, NME) or give standard termini (OXT, three hydrogens on N); add_hydrogens=True adds hydrogens only"
    if "missing" in reason:
        return "complete the residue (for instance with PDBFixer), or set add_hydrogens=True if only hydrogens are missing"
    return "use a force field that has this residue, remove it, or correct its name"
