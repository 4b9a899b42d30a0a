"""Alanine dipeptide in implicit solvent crossing phi = 0: simulator, order parameter, states (``benchmarks.alanine_rate``).

ff14SB, OBC2, 300 K, Langevin dynamics (1/ps, 4 fs, hydrogens of 3 amu, bonds to hydrogen rigid); phi is looked at every 0.02 ps.
The order parameter is phi, cut open at phi = 120 degrees, where the free energy is 23 kT: a state is all that lies on one side.
A is everything below phi = -0.7 rad (C5, C7eq and alpha-R), B everything above 0.55 rad (alpha-L).  Both limits lie about 4 kT above
their minima: a system stays for some 10 ps before it looks out, long enough to forget where in psi it came from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from couloir.cv import CollectiveVariable, Dihedral, FunctionOfCVs, HarmonicBias
from couloir.cv.region import Region
from couloir.sampling import MolecularSystem, OpenMMEngine, systems
from couloir.trajectory import State

TEMPERATURE, TIME_STEP, STRIDE = 300.0, 0.004, 0.02
"""K; ps; ps between two looks at phi."""
CUT = 2.0 * np.pi / 3.0
LIMITS = (-0.7, 0.55)
"""rad; A is below, B above."""
LONGEST = 2000.0
"""ps; time that a path may take at most."""
RUNS = Path(__file__).parents[2] / "runs"


def molecule() -> MolecularSystem:
    """Return Ace-Ala-Nme in implicit solvent with heavy hydrogens."""
    file = systems.structure_file("alanine_dipeptide.pdb")
    return MolecularSystem.from_pdb(
        file, ["amber14/protein.ff14SB.xml", "implicit/obc2.xml"], hydrogen_mass="3 amu", name="alanine dipeptide"
    )


def engine(workers: int | None = None) -> OpenMMEngine:
    """Return the simulator."""
    return OpenMMEngine(molecule(), temperature=TEMPERATURE, time_step=TIME_STEP, friction="1/ps", platform="Reference", workers=workers)


def torsion(md: OpenMMEngine) -> Dihedral:
    """Return phi."""
    return Dihedral.phi(md.topology, residue=2)


def progress(md: OpenMMEngine, sign: float = 1.0) -> CollectiveVariable:
    """Return the order parameter, rad from the cut: grows from A to B, or with ``sign=-1`` from B to A."""
    shift = np.pi - CUT
    return FunctionOfCVs(
        (torsion(md),), f"{sign:g}*(phi + {shift!r})", name="onward" if sign > 0 else "backward", unit="rad", period=2 * np.pi
    )


def states(md: OpenMMEngine, sign: float = 1.0) -> tuple[Region, Region]:
    """Return A and B along :func:`progress`, or B and A seen from the other side."""
    along, shift = progress(md, sign), np.pi - CUT
    low, high = sorted(sign * (limit + shift) for limit in LIMITS)
    return along < low, along > high


def in_b(md: OpenMMEngine) -> State:
    """Return a minimized structure in alpha-L, pulled there."""
    phi = torsion(md)
    (pulled,) = md.minimize(md.molecule.state, bias=HarmonicBias.on(phi, 1.0, "1000 kJ/mol/rad^2"), record=[phi])
    relaxed: list[State] = md.minimize(pulled)
    return relaxed[0]
