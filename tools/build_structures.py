"""Build the structures in couloir/sampling/structures: capped alanine peptides, alone and in boxes of TIP3P water.

Heavy atoms are placed one after the other from standard bond lengths, angles and torsions (the natural extension
reference frame of Parsons et al., J. Comput. Chem. 26, 1063 (2005)); OpenMM adds the hydrogens and minimizes the energy
with ff14SB in OBC2 solvent.  Existing files are kept unless ``--force`` is given, because simulations start from them.

    python tools/build_structures.py [--force] [folder]
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openmm
from openmm import app, unit

from couloir.sampling import MolecularSystem
from couloir.sampling.readers import with_hydrogens

Array = npt.NDArray[np.float64]

PHI, PSI, OMEGA = -80.0, 75.0, 180.0  # degrees, before minimization
PEPTIDES = {"alanine_dipeptide": 1, "alanine_tripeptide": 2, "alanine_tetrapeptide": 3}
SOLVATED = {"alanine_dipeptide": 2.6, "alanine_tripeptide": 2.8}  # width of the box before its volume is set, nm
WATER_VOLUME = 18.0153 / 0.985 / 602.214  # nm^3 per TIP3P water at 300 K and 1 bar (0.985 g/cm^3)
RESIDUE_VOLUME = 0.1  # nm^3 displaced by a residue or cap, about 60 cm^3/mol
WATER = "amber14/tip3p.xml"
PROTEIN = "amber14/protein.ff14SB.xml"
STRUCTURES = Path(__file__).parents[1] / "couloir" / "sampling" / "structures"


def place(a: Array, b: Array, c: Array, length: float, angle: float, torsion: float) -> Array:
    """Return the position d (nm) at |cd| = length, angle(b, c, d) = angle and torsion(a, b, c, d) = torsion (degrees)."""
    theta, phi = math.radians(angle), math.radians(torsion)
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    across = np.cross(normal, along)
    return c + length * (-math.cos(theta) * along + math.sin(theta) * (math.cos(phi) * across + math.sin(phi) * normal))


def heavy_atoms(n_alanines: int) -> list[tuple[str, int, dict[str, Array]]]:
    """Return (residue name, number, {atom: position}) of Ace-(Ala)n-Nme without hydrogens."""
    methyl, carbonyl = np.zeros(3), np.array([0.1522, 0.0, 0.0])
    oxygen = place(np.array([0.0, 1.0, 0.0]), methyl, carbonyl, 0.1229, 120.4, 0.0)
    nitrogen = place(oxygen, methyl, carbonyl, 0.1335, 116.6, 180.0)
    chain = [("ACE", 1, {"CH3": methyl, "C": carbonyl, "O": oxygen})]
    before = methyl  # the atom before the carbonyl carbon
    for number in range(2, n_alanines + 2):
        alpha = place(before, carbonyl, nitrogen, 0.1449, 121.9, OMEGA)
        next_carbonyl = place(carbonyl, nitrogen, alpha, 0.1522, 110.1, PHI)
        beta = place(carbonyl, nitrogen, alpha, 0.1526, 109.7, PHI - 122.0)  # minus: an L-amino acid
        next_nitrogen = place(nitrogen, alpha, next_carbonyl, 0.1335, 116.6, PSI)
        oxygen = place(nitrogen, alpha, next_carbonyl, 0.1229, 120.4, PSI + 180.0)
        chain.append(("ALA", number, {"N": nitrogen, "CA": alpha, "CB": beta, "C": next_carbonyl, "O": oxygen}))
        before, carbonyl, nitrogen = alpha, next_carbonyl, next_nitrogen
    chain.append(("NME", n_alanines + 2, {"N": nitrogen, "C": place(before, carbonyl, nitrogen, 0.1449, 121.9, OMEGA)}))
    return chain


def peptide(n_alanines: int) -> tuple[app.Topology, Any]:
    """Return topology and minimized positions of Ace-(Ala)n-Nme."""
    topology = app.Topology()
    chain = topology.addChain("A")
    positions: list[Array] = []
    for name, number, atoms in heavy_atoms(n_alanines):
        residue = topology.addResidue(name, chain, id=str(number))
        for atom, position in atoms.items():
            topology.addAtom(atom, app.Element.getBySymbol(atom[0]), residue)
            positions.append(position)
    topology.createStandardBonds()
    field = app.ForceField(PROTEIN, "implicit/obc2.xml")
    topology, start = with_hydrogens(topology, np.array(positions) * unit.nanometer, field, Path("the peptide"))
    return topology, relax(field.createSystem(topology), start, n_steps=0, platform="Reference")


def solvate(topology: app.Topology, positions: Any, width: float) -> tuple[app.Topology, Any]:
    """Return topology and equilibrated positions in a cube of TIP3P whose volume gives water its density at 1 bar."""
    field = app.ForceField(PROTEIN, WATER)
    n_residues = topology.getNumResidues()
    modeller = app.Modeller(topology, positions)
    modeller.addSolvent(field, boxSize=openmm.Vec3(width, width, width) * unit.nanometer)
    n_water = modeller.topology.getNumResidues() - n_residues
    side = (n_water * WATER_VOLUME + n_residues * RESIDUE_VOLUME) ** (1 / 3)
    side = round(side, 4)  # what a CRYST1 record can hold
    spread = spread_molecules(modeller.topology, modeller.positions, side / width)
    modeller.topology.setPeriodicBoxVectors(np.eye(3) * side * unit.nanometer)
    options: dict[str, Any] = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.9 * unit.nanometer, "constraints": app.HBonds}
    system = field.createSystem(modeller.topology, **options)
    return modeller.topology, relax(system, spread, n_steps=2500, platform="CPU")


def spread_molecules(topology: app.Topology, positions: Any, factor: float) -> Any:
    """Return positions with the centre of every molecule scaled by ``factor`` and its shape kept."""
    out = np.array(positions.value_in_unit(unit.nanometer), dtype=float)
    for chain_atoms in molecules(topology):
        centre = out[chain_atoms].mean(axis=0)
        out[chain_atoms] += (factor - 1.0) * centre
    return out * unit.nanometer


def molecules(topology: app.Topology) -> list[list[int]]:
    """Return the atoms of the solute and of every water."""
    water = [[atom.index for atom in residue.atoms()] for residue in topology.residues() if residue.name == "HOH"]
    solute = [atom.index for atom in topology.atoms() if atom.residue.name != "HOH"]
    return [solute, *water]


def relax(system: openmm.System, positions: Any, n_steps: int, platform: str) -> Any:
    """Return positions after minimization and ``n_steps`` of 2 fs Langevin dynamics at 300 K."""
    integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.002)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=0 if n_steps == 0 else 200)
    if n_steps:
        context.setVelocitiesToTemperature(300.0, 1)
        integrator.step(n_steps)
    # Whole molecules near the box, so that no bond crosses its boundary in a viewer.
    return context.getState(positions=True, enforcePeriodicBox=True).getPositions()


def write(path: Path, topology: app.Topology, positions: Any) -> None:
    """Write a PDB file without a date; compressed, and equally every time, if its name ends in ``.gz``."""
    text = io.StringIO()
    app.PDBFile.writeFile(topology, positions, text, keepIds=True)
    data = "".join(line for line in text.getvalue().splitlines(keepends=True) if not line.startswith("REMARK")).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    print(f"wrote {path} ({topology.getNumAtoms()} atoms, {path.stat().st_size / 1024:.0f} kB)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build every structure that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=STRUCTURES)
    parser.add_argument("--force", action="store_true", help="replace existing files too")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)

    def build(path: Path, make: Callable[[], tuple[app.Topology, Any]]) -> None:
        if options.force or not path.exists():
            write(path, *make())
        else:
            print(f"kept {path}")

    for name, n_alanines in PEPTIDES.items():
        alone = options.folder / f"{name}.pdb"
        build(alone, lambda n=n_alanines: peptide(n))  # type: ignore[misc]
        if name in SOLVATED:
            isolated = MolecularSystem.from_pdb(alone, PROTEIN)
            start = np.array(isolated.state.positions) * unit.nanometer
            build(
                options.folder / f"{name}_tip3p.pdb.gz",
                lambda m=isolated, x=start, w=SOLVATED[name]: solvate(m.openmm_topology(), x, w),  # type: ignore[misc]
            )


if __name__ == "__main__":
    main()
