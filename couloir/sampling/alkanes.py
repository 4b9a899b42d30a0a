"""Linear alkanes with the OPLS all-atom force field, built from nothing but its parameters.

Functional form, charges, Lennard-Jones, bond and angle parameters: Jorgensen, Maxwell and Tirado-Rives, J. Am. Chem. Soc.
118, 11225 (1996).  Torsions: its revision of November 1999, as TINKER (``oplsaa.prm``) and Gromacs (``oplsaa.ff``) ship it;
the gauche minimum of butane lies 0.8 kcal/mol above trans with it, and 1.0 kcal/mol with the torsions of 1996.

    E = sum k_r (r - r0)^2 + sum k_a (a - a0)^2 + sum V1/2 (1 + cos f) + V2/2 (1 - cos 2f) + V3/2 (1 + cos 3f)
        + sum f_ij [q_i q_j e^2 / r + 4 eps_ij ((s_ij / r)^12 - (s_ij / r)^6)]

over pairs three bonds apart (f_ij = 1/2) and farther (f_ij = 1), with eps_ij and s_ij the *geometric* means.  OpenMM's
nonbonded force takes arithmetic means of the diameters, so every pair is given explicitly here.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Any

import numpy as np

from couloir.errors import ConfigError, DataError, nearest
from couloir.sampling.molecule import MolecularSystem
from couloir.trajectory import Array

LONGEST = 30
"""Number of carbons up to which an isolated chain, every pair of whose atoms interacts, is sensible."""

_KCAL = 4.184
_CHARGE = {"CH3": -0.18, "CH2": -0.12, "H": 0.06}
_LENNARD_JONES = {"C": (0.350, 0.066 * _KCAL), "H": (0.250, 0.030 * _KCAL)}  # diameter nm, well depth kJ/mol
_BOND = {"CC": (0.1529, 268.0 * 100 * _KCAL), "CH": (0.1090, 340.0 * 100 * _KCAL)}  # r0 nm, k_r kJ/mol/nm^2
_ANGLE = {"CCC": (112.7, 58.35 * _KCAL), "CCH": (110.7, 37.5 * _KCAL), "HCH": (107.8, 33.0 * _KCAL)}  # a0 degrees, k_a kJ/mol/rad^2
_TORSION = {"CCCC": (1.300, -0.050, 0.200), "CCCH": (0.0, 0.0, 0.300), "HCCH": (0.0, 0.0, 0.300)}  # V1, V2, V3 kcal/mol
_MASS = {"C": 12.011, "H": 1.008}
_NAMES = {2: "ethane", 3: "propane", 4: "butane", 5: "pentane"}


def alkane(n_carbons: int, constraints: str = "HBonds") -> MolecularSystem:
    """Return the isolated linear alkane C(n)H(2n+2), all-trans, with the OPLS-AA force field.

    Carbons are named C1, C2, ...; the hydrogens on C2 are H21 and H22.  Carbon atoms come first.

    Parameters
    ----------
    n_carbons : 2 or more.
    constraints : ``"HBonds"``, ``"AllBonds"`` or ``"none"`` (flexible).

    Raises
    ------
    DataError : the number of carbons is not between 2 and 30.
    ConfigError : the kind of constraint does not exist.
    """
    if isinstance(n_carbons, bool) or not isinstance(n_carbons, int) or not 2 <= n_carbons <= LONGEST:
        raise DataError(f"an alkane with {n_carbons!r} carbons cannot be built", f"give a whole number from 2 to {LONGEST}")
    if constraints not in ("none", "HBonds", "AllBonds"):
        raise ConfigError(f"unknown constraints {constraints!r}{nearest(constraints, ('none', 'HBonds', 'AllBonds'))}")
    names, positions, bonds = _structure(n_carbons)
    name = _NAMES.get(n_carbons, f"alkane_{n_carbons}")
    return MolecularSystem.from_system(_system(names, bonds, constraints), _topology(names, bonds), positions, name=name)


def _structure(n: int) -> tuple[list[str], Array, list[tuple[int, int]]]:
    """Return atom names, all-trans positions (nm) and bonds."""
    r_cc, half = _BOND["CC"][0], math.radians(_ANGLE["CCC"][0]) / 2
    carbons = np.array([[i * r_cc * math.sin(half), (i % 2) * r_cc * math.cos(half), 0.0] for i in range(n)])
    names, positions = [f"C{i + 1}" for i in range(n)], list(carbons)
    bonds = [(i, i + 1) for i in range(n - 1)]
    for i in range(n):
        hydrogens = _methylene(carbons, i) if 0 < i < n - 1 else _methyl(carbons, i)
        for k, position in enumerate(hydrogens):
            bonds.append((i, len(positions)))
            names.append(f"H{i + 1}{k + 1}")
            positions.append(position)
    return names, np.array(positions), bonds


def _methylene(carbons: Array, i: int) -> list[Array]:
    half = math.radians(_ANGLE["HCH"][0]) / 2
    outward = 2 * carbons[i] - carbons[i - 1] - carbons[i + 1]
    outward /= np.linalg.norm(outward)
    side = np.array([0.0, 0.0, 1.0])
    return [carbons[i] + _BOND["CH"][0] * (math.cos(half) * outward + sign * math.sin(half) * side) for sign in (1, -1)]


def _methyl(carbons: Array, i: int) -> list[Array]:
    """Three hydrogens, staggered: the first one trans to the carbon chain and in its plane."""
    inward = 1 if i == 0 else -1
    neighbour = carbons[i + inward]
    # Where the chain goes on; ethane has no third carbon, and opposite directions for its ends stagger them.
    onward = carbons[i + 2 * inward] - neighbour if len(carbons) > 2 else np.array([0.0, -float(inward), 0.0])
    axis = (carbons[i] - neighbour) / np.linalg.norm(carbons[i] - neighbour)
    trans = (onward @ axis) * axis - onward
    trans /= np.linalg.norm(trans)
    across = np.cross(axis, trans)
    slope = math.radians(180.0 - _ANGLE["CCH"][0])
    turns = np.radians([0.0, 120.0, 240.0])
    around = [math.cos(turn) * trans + math.sin(turn) * across for turn in turns]
    return [carbons[i] + _BOND["CH"][0] * (math.cos(slope) * axis + math.sin(slope) * direction) for direction in around]


def _topology(names: list[str], bonds: list[tuple[int, int]]) -> Any:
    from openmm import app

    topology = app.Topology()
    residue = topology.addResidue("ALK", topology.addChain("A"), id="1")
    atoms = [topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in names]
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
    return topology


def _system(names: list[str], bonds: list[tuple[int, int]], constraints: str) -> Any:
    import openmm

    kinds = [name[0] for name in names]
    neighbours: list[list[int]] = [[] for _ in names]
    for i, j in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    system = openmm.System()
    for kind in kinds:
        system.addParticle(_MASS[kind])
    stretch = openmm.HarmonicBondForce()
    for i, j in bonds:
        kind = "".join(sorted(kinds[i] + kinds[j]))
        length, constant = _BOND[kind]
        if constraints == "AllBonds" or (constraints == "HBonds" and kind == "CH"):
            system.addConstraint(i, j, length)
        else:
            stretch.addBond(i, j, length, 2 * constant)  # OpenMM's harmonic energies have a factor 1/2
    for force in (stretch, _bending(kinds, neighbours), _torsions(kinds, neighbours, bonds), _nonbonded(kinds, neighbours)):
        system.addForce(force)
    return system


def _bending(kinds: list[str], neighbours: list[list[int]]) -> Any:
    import openmm

    force = openmm.HarmonicAngleForce()
    for centre, around in enumerate(neighbours):
        for i, j in itertools.combinations(around, 2):
            first, last = sorted((kinds[i], kinds[j]))
            angle, constant = _ANGLE[first + kinds[centre] + last]
            force.addAngle(i, centre, j, math.radians(angle), 2 * constant)
    return force


def _torsions(kinds: list[str], neighbours: list[list[int]], bonds: list[tuple[int, int]]) -> Any:
    import openmm

    force = openmm.PeriodicTorsionForce()
    for j, k in bonds:
        for i, m in itertools.product(neighbours[j], neighbours[k]):
            if i == k or m == j:
                continue
            first, last = sorted((kinds[i], kinds[m]))
            for order, height in enumerate(_TORSION[f"{first}CC{last}"], start=1):
                if height:
                    force.addTorsion(i, j, k, m, order, math.pi if order == 2 else 0.0, height * _KCAL / 2)
    return force


def _nonbonded(kinds: list[str], neighbours: list[list[int]]) -> Any:
    import openmm

    charges = []
    for kind, around in zip(kinds, neighbours, strict=True):
        n_hydrogens = sum(kinds[a] == "H" for a in around)
        charges.append(_CHARGE["H"] if kind == "H" else _CHARGE[f"CH{n_hydrogens}"])
    force = openmm.NonbondedForce()
    for kind, charge in zip(kinds, charges, strict=True):
        force.addParticle(charge, *_LENNARD_JONES[kind])
    separations = [_bonds_away(neighbours, i) for i in range(len(kinds))]
    for i, j in itertools.combinations(range(len(kinds)), 2):
        separation = separations[i][j]
        scale = 0.0 if separation < 3 else 0.5 if separation == 3 else 1.0
        (diameter_i, depth_i), (diameter_j, depth_j) = _LENNARD_JONES[kinds[i]], _LENNARD_JONES[kinds[j]]
        diameter, depth = math.sqrt(diameter_i * diameter_j), math.sqrt(depth_i * depth_j)
        force.addException(i, j, scale * charges[i] * charges[j], diameter, scale * depth)
    return force


def _bonds_away(neighbours: list[list[int]], start: int) -> dict[int, int]:
    """Return the number of bonds between ``start`` and every atom of the molecule."""
    found, queue = {start: 0}, deque([start])
    while queue:
        atom = queue.popleft()
        for other in neighbours[atom]:
            if other not in found:
                found[other] = found[atom] + 1
                queue.append(other)
    return found
