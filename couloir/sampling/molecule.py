"""A molecule ready to be simulated: force field, topology and a starting structure in one immutable object.

The force field is kept as OpenMM's serialized XML, so a :class:`MolecularSystem` pickles, compares and travels between
processes as text; ``system()`` makes a fresh ``openmm.System`` from it.  OBC2 implicit solvent that a reader builds as a
``CustomGBForce`` is replaced by the equivalent and far faster ``GBSAOBCForce`` (see :mod:`couloir.sampling.implicit`).
The readers add no centre-of-mass motion remover: it is no part of Langevin dynamics and would break its reversibility.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.errors import ConfigError, DataError, nearest
from couloir.sampling import readers
from couloir.trajectory import Array, State
from couloir.units import convert

if TYPE_CHECKING:
    import mdtraj

CONSTRAINTS = ("none", "HBonds", "AllBonds", "HAngles")
"""What a reader can hold rigid: nothing, bonds to hydrogen, all bonds, all bonds and H-X-H / H-O-X angles."""
IMPLICIT_SOLVENTS = ("hct", "obc1", "obc2", "gbn", "gbn2")
"""Generalized Born models that an Amber topology can be simulated in."""


@dataclass(frozen=True, eq=False)
class MolecularSystem:
    """A molecule with its force field and a starting structure.

    Attributes
    ----------
    name : what tables and reports call it.
    system_xml : the ``openmm.System`` as text (``openmm.XmlSerializer``).
    topology : mdtraj topology; residue numbers are those of the input file.
    state : starting positions (n_atoms, 3) in nm and, for periodic systems, box vectors (3, 3) in nm.

    Raises
    ------
    DataError : the topology and the positions differ in their number of atoms.
    """

    name: str
    system_xml: str
    topology: mdtraj.Topology
    state: State

    def __post_init__(self) -> None:
        if self.topology.n_atoms != len(self.state.positions):
            raise DataError(
                f"the topology has {self.topology.n_atoms} atoms and the structure has {len(self.state.positions)} positions",
                "give topology and coordinates of the same molecule, with the same atoms in the same order",
            )

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return int(self.topology.n_atoms)

    @cached_property
    def masses(self) -> Array:
        """Masses as simulated (after any hydrogen mass repartitioning), shape (n_atoms,), amu."""
        system = self.system()
        return np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])

    @cached_property
    def constraints(self) -> list[tuple[int, int, float]]:
        """Distances held fixed, as (first atom, second atom, nm)."""
        system = self.system()
        found = (system.getConstraintParameters(i) for i in range(system.getNumConstraints()))
        return [(int(i), int(j), float(d._value)) for i, j, d in found]

    @cached_property
    def is_periodic(self) -> bool:
        """Whether the forces use periodic boundary conditions."""
        return bool(self.system().usesPeriodicBoundaryConditions())

    def system(self) -> Any:
        """Return a new ``openmm.System``; changing it leaves this object as it was."""
        import openmm

        return openmm.XmlSerializer.deserialize(self.system_xml)

    def openmm_topology(self) -> Any:
        """Return the topology as a new ``openmm.app.Topology``, with the box of the starting structure."""
        topology = self.topology.to_openmm()
        topology.setPeriodicBoxVectors(None if self.state.box is None else self.state.box * _nanometer())
        return topology

    def __str__(self) -> str:
        system = self.system()  # kept alive: the forces belong to it
        forces = [force.getName() for force in system.getForces()]
        rows = [
            ("atoms", f"{self.n_atoms} in {self.topology.n_residues} residues, {self.masses.sum():.1f} amu"),
            ("constraints", f"{len(self.constraints)}"),
            ("box", "none" if self.state.box is None else " x ".join(f"{length:.2f}" for length in np.diag(self.state.box)) + " nm"),
            ("forces", ", ".join(forces)),
        ]
        return "\n".join([f"MolecularSystem {self.name}", *(f"  {key:<12}{value}" for key, value in rows)])

    @classmethod
    def from_system(cls, system: Any, topology: Any, positions: Any, box: Any = None, name: str = "molecule") -> MolecularSystem:
        """Take over an ``openmm.System`` that exists already, as it is.

        Parameters
        ----------
        system : ``openmm.System``.
        topology : ``openmm.app.Topology`` or ``mdtraj.Topology``.
        positions : (n_atoms, 3), nm or a Quantity.
        box : (3, 3) box vectors, nm or a Quantity; for a periodic system the default is the system's own.

        Raises
        ------
        DataError : system, topology and positions differ in their number of atoms, or a position is not finite.
        """
        import mdtraj
        import openmm

        if not isinstance(topology, mdtraj.Topology):
            topology = mdtraj.Topology.from_openmm(topology)
        coordinates = _lengths(positions)
        if system.getNumParticles() != topology.n_atoms:
            raise DataError(
                f"the system has {system.getNumParticles()} particles and the topology has {topology.n_atoms} atoms",
                "give the topology that the system was made from",
            )
        if not system.usesPeriodicBoundaryConditions():
            box = None
        elif box is None:
            box = system.getDefaultPeriodicBoxVectors()
        state = State(coordinates, box=None if box is None else _lengths(box))
        return cls(name, openmm.XmlSerializer.serialize(system), topology, state)

    @classmethod
    def from_pdb(
        cls,
        path: str | Path,
        force_field: str | Sequence[str] = ("amber14-all.xml", "implicit/obc2.xml"),
        *,
        constraints: str = "HBonds",
        nonbonded_cutoff: Any = None,
        add_hydrogens: bool = False,
        hydrogen_mass: Any = None,
        name: str | None = None,
    ) -> MolecularSystem:
        """Read a PDB or mmCIF file and give it a force field.

        A structure with water and a box is periodic with particle-mesh Ewald; any other is isolated, without a cutoff.

        Parameters
        ----------
        path : ``.pdb``, ``.cif`` or ``.mmcif`` file, also with ``.gz``.
        force_field : OpenMM force-field XML files, by path or by name in OpenMM's own collection.
        constraints : ``"none"``, ``"HBonds"``, ``"AllBonds"`` or ``"HAngles"``.  Water is rigid unless ``"none"``.
        nonbonded_cutoff : nm; None is no cutoff for an isolated molecule and 1 nm for a periodic one.
        add_hydrogens : build missing hydrogens (pH 7), reproducibly.
        hydrogen_mass : amu, to repartition mass onto hydrogens, or None.
        name : default is the file's name.

        Raises
        ------
        DataError : the file is missing or unreadable, a coordinate is not finite, an atom is not in the force field, or
            water and the box do not fit the force field.
        ConfigError : a force-field file or a kind of constraint does not exist.
        """
        path = Path(path)
        topology, positions = readers.read_structure(path)
        files = [force_field] if isinstance(force_field, str) else list(force_field)
        field = readers.load_force_field(files)
        if add_hydrogens:
            topology, positions = readers.with_hydrogens(topology, positions, field, path)
        implicit = any("implicit" in file or "obc" in file.lower() for file in files)
        method = readers.nonbonded_method(topology, implicit, _optional(nonbonded_cutoff, "nm", "nonbonded_cutoff"), path)
        system = readers.parametrize(field, topology, method | _options(constraints, hydrogen_mass), path)
        return cls.from_system(system, topology, positions, topology.getPeriodicBoxVectors(), name or path.stem)

    @classmethod
    def from_amber(
        cls,
        prmtop: str | Path,
        inpcrd: str | Path,
        implicit_solvent: str | None = None,
        *,
        constraints: str = "HBonds",
        nonbonded_cutoff: Any = None,
        hydrogen_mass: Any = None,
        name: str | None = None,
    ) -> MolecularSystem:
        """Read an Amber topology and coordinates (``tleap`` output).

        Parameters
        ----------
        prmtop, inpcrd : the two files.
        implicit_solvent : ``"hct"``, ``"obc1"``, ``"obc2"``, ``"gbn"``, ``"gbn2"`` or None.
        constraints, nonbonded_cutoff, hydrogen_mass, name : as in :meth:`from_pdb`.

        Raises
        ------
        DataError : a file is missing or unreadable, or the two do not belong together.
        ConfigError : a solvent model or a kind of constraint does not exist.
        """
        prmtop, inpcrd = Path(prmtop), Path(inpcrd)
        if implicit_solvent is not None and implicit_solvent.lower() not in IMPLICIT_SOLVENTS:
            raise ConfigError(f"unknown implicit solvent {implicit_solvent!r}{nearest(implicit_solvent.lower(), IMPLICIT_SOLVENTS)}")
        cutoff = _optional(nonbonded_cutoff, "nm", "nonbonded_cutoff")
        system, topology, positions, box = readers.read_amber(
            prmtop, inpcrd, implicit_solvent, cutoff, _options(constraints, hydrogen_mass)
        )
        return cls.from_system(system, topology, positions, box, name or prmtop.stem)

    @classmethod
    def from_gromacs(
        cls,
        top: str | Path,
        gro: str | Path,
        include_dir: str | Path | None = None,
        *,
        constraints: str = "HBonds",
        nonbonded_cutoff: Any = None,
        hydrogen_mass: Any = None,
        name: str | None = None,
    ) -> MolecularSystem:
        """Read a Gromacs topology and coordinates.

        A box of zero size in the ``.gro`` file means an isolated molecule.

        Parameters
        ----------
        top, gro : the two files.
        include_dir : where ``#include`` files of the topology are (Gromacs' ``share/gromacs/top``).
        constraints, nonbonded_cutoff, hydrogen_mass, name : as in :meth:`from_pdb`.

        Raises
        ------
        DataError : a file is missing or unreadable, or the two do not belong together.
        ConfigError : a kind of constraint does not exist.
        """
        top, gro = Path(top), Path(gro)
        cutoff = _optional(nonbonded_cutoff, "nm", "nonbonded_cutoff")
        system, topology, positions, box = readers.read_gromacs(top, gro, include_dir, cutoff, _options(constraints, hydrogen_mass))
        return cls.from_system(system, topology, positions, box, name or top.stem)


def _nanometer() -> Any:
    from openmm import unit

    return unit.nanometer


def _lengths(values: Any) -> Array:
    from openmm import unit

    if unit.is_quantity(values):
        values = values.value_in_unit(unit.nanometer)
    else:
        values = [row.value_in_unit(unit.nanometer) if unit.is_quantity(row) else row for row in values]
    return np.array([list(row) for row in values], dtype=np.float64)


def _optional(value: Any, unit: str, name: str) -> float | None:
    return None if value is None else convert(value, unit, name)


def _options(constraints: str, hydrogen_mass: Any) -> dict[str, Any]:
    """Return the arguments that all of OpenMM's ``createSystem`` share."""
    from openmm import app, unit

    if constraints not in CONSTRAINTS:
        raise ConfigError(f"unknown constraints {constraints!r}{nearest(constraints, CONSTRAINTS)}")
    mass = _optional(hydrogen_mass, "amu", "hydrogen_mass")
    return {
        "constraints": None if constraints == "none" else getattr(app, constraints),
        "rigidWater": constraints != "none",
        "hydrogenMass": None if mass is None else mass * unit.dalton,
        "removeCMMotion": False,
    }
