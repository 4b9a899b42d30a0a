"""Systems ready to run, one line each: small peptides, alkanes and toy potentials with known answers.

Peptides use the Amber ff14SB force field (Maier et al., J. Chem. Theory Comput. 11, 3696 (2015)), alone, in OBC2
implicit solvent, or in TIP3P water.  They are named by their number of peptide bonds, as is usual: alanine dipeptide is
Ace-Ala-Nme.  The structures and how they were made are described in ``structures/README.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from couloir.cv.base import CollectiveVariable
from couloir.cv.region import Region
from couloir.errors import ConfigError, nearest
from couloir.sampling.alkanes import alkane
from couloir.sampling.molecule import MolecularSystem
from couloir.sampling.potentials import (
    double_well,
    dynamics_diffusion_well,
    evolving_wells,
    harmonic,
    hidden_barrier,
    hysteresis,
    mueller_brown,
    variable_barrier,
)

__all__ = [
    "alanine_basins",
    "alanine_dipeptide",
    "alanine_tetrapeptide",
    "alanine_tripeptide",
    "alkane",
    "butane",
    "double_well",
    "dynamics_diffusion_well",
    "ethane",
    "evolving_wells",
    "harmonic",
    "hidden_barrier",
    "hysteresis",
    "mueller_brown",
    "pentane",
    "propane",
    "structure_file",
    "variable_barrier",
]

Solvent = Literal["vacuum", "obc2", "tip3p"]
Constraints = Literal["none", "HBonds", "AllBonds"]

_PROTEIN = "amber14/protein.ff14SB.xml"
_SOLVENTS: dict[str, list[str]] = {"vacuum": [], "obc2": ["implicit/obc2.xml"], "tip3p": ["amber14/tip3p.xml"]}
_WATER_CUTOFF = 0.9
_STRUCTURES = Path(__file__).parent / "structures"


def alanine_dipeptide(solvent: Solvent = "vacuum", constraints: Constraints = "HBonds") -> MolecularSystem:
    """Return Ace-Ala-Nme (22 atoms), in the alpha-R basin (phi -71, psi -18 degrees).

    Parameters
    ----------
    solvent : ``"vacuum"``, ``"obc2"`` (implicit) or ``"tip3p"`` (explicit; 537 rigid waters, particle-mesh Ewald, 0.9 nm).
    constraints : ``"HBonds"`` (2 fs steps), ``"AllBonds"`` or ``"none"`` (flexible bonds and water, 1 fs or less).

    Raises
    ------
    ConfigError : the solvent or the kind of constraint does not exist.
    """
    return _peptide("alanine_dipeptide", solvent, constraints)


def alanine_basins(phi: CollectiveVariable) -> dict[str, Region]:
    """Return the two basins along ``phi`` of alanine dipeptide: C7eq (-2.8 to -0.7 rad) and alphaL (0.7 to 1.5 rad).

    Parameters
    ----------
    phi : the torsion C-N-CA-C of the residue; the ``basins`` of :func:`couloir.analysis.free_energy_surface` take the result.
    """
    return {"C7eq": (phi > -2.8) & (phi < -0.7), "alphaL": (phi > 0.7) & (phi < 1.5)}


def alanine_tripeptide(solvent: Solvent = "vacuum", constraints: Constraints = "HBonds") -> MolecularSystem:
    """Return Ace-Ala2-Nme (32 atoms); parameters and errors as in :func:`alanine_dipeptide`."""
    return _peptide("alanine_tripeptide", solvent, constraints)


def alanine_tetrapeptide(solvent: Solvent = "vacuum", constraints: Constraints = "HBonds") -> MolecularSystem:
    """Return Ace-Ala3-Nme (42 atoms) in ``"vacuum"`` or ``"obc2"``; otherwise as :func:`alanine_dipeptide`."""
    return _peptide("alanine_tetrapeptide", solvent, constraints)


def ethane(constraints: Constraints = "HBonds") -> MolecularSystem:
    """Return ethane (8 atoms) with OPLS-AA; see :func:`alkane`."""
    return alkane(2, constraints)


def propane(constraints: Constraints = "HBonds") -> MolecularSystem:
    """Return propane (11 atoms) with OPLS-AA; see :func:`alkane`."""
    return alkane(3, constraints)


def butane(constraints: Constraints = "HBonds") -> MolecularSystem:
    """Return butane (14 atoms) with OPLS-AA; its carbons are atoms 0-3.  See :func:`alkane`."""
    return alkane(4, constraints)


def pentane(constraints: Constraints = "HBonds") -> MolecularSystem:
    """Return pentane (17 atoms) with OPLS-AA; its carbons are atoms 0-4.  See :func:`alkane`."""
    return alkane(5, constraints)


def structure_file(name: str) -> Path:
    """Return the path of a structure that ships with Couloir, such as ``"alanine_dipeptide.pdb"``.

    Raises
    ------
    ConfigError : there is no structure of this name.
    """
    shipped = sorted(path.name for path in _STRUCTURES.iterdir() if ".pdb" in path.name)
    if name not in shipped:
        raise ConfigError(f"no structure {name!r} ships with Couloir{nearest(name, shipped)}")
    return _STRUCTURES / name


def _peptide(name: str, solvent: str, constraints: str) -> MolecularSystem:
    offered = [s for s in _SOLVENTS if s != "tip3p" or (_STRUCTURES / f"{name}_tip3p.pdb.gz").exists()]
    if solvent not in offered:
        raise ConfigError(f"solvent = {solvent!r} is not offered for {name}", f"give one of {', '.join(offered)}")
    explicit = solvent == "tip3p"
    return MolecularSystem.from_pdb(
        structure_file(f"{name}_tip3p.pdb.gz" if explicit else f"{name}.pdb"),
        [_PROTEIN, *_SOLVENTS[solvent]],
        constraints=constraints,
        nonbonded_cutoff=_WATER_CUTOFF if explicit else None,
        name=f"{name} ({solvent})",
    )
