"""A commented run file for a molecule, to start from: ``couloir init MOLECULE.pdb``.

What is suggested is read from the structure: backbone torsions of the residue in the middle, or the most central
rotatable torsion, and an end-to-end distance; implicit solvent, or water where there is water.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from couloir.config import parse_config, read_config
from couloir.errors import ConfigError, CouloirError, DataError
from couloir.trajectory import Array

_SMALL_BOX = 2.0  # nm: two default cutoffs


def write_run_file(pdb: Path, output: Path | None = None) -> Path:
    """Write a run file for the molecule in a PDB file and return its path.

    Parameters
    ----------
    pdb : the structure; not changed.
    output : file to write; default the name of the PDB with the suffix ``.toml``.

    Raises
    ------
    ConfigError : the output exists already (nothing is overwritten), or cannot be written.
    DataError : the structure is missing, unreadable or empty, or holds nothing but water.
    """
    pdb = Path(pdb)
    output = Path(output) if output is not None else pdb.with_name(pdb.name.removesuffix(".gz")).with_suffix(".toml")
    if output.exists():
        raise ConfigError(f"{output} exists already, and is not overwritten", "move it away, or choose another name with --output")
    text = "\n".join(_Draft(pdb, os.path.relpath(pdb, output.parent)).lines()) + "\n"
    parse_config(tomllib.loads(text), str(output))
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}", "choose another name with --output") from None
    read_config(output)
    return output


class _Draft:
    """What the structure tells, and the run file that follows from it."""

    def __init__(self, pdb: Path, shown: str) -> None:
        import mdtraj

        from couloir.sampling.readers import WATER, read_structure

        topology, positions = read_structure(pdb)
        self.pdb, self.shown = pdb, shown
        self.box = topology.getPeriodicBoxVectors()
        self.topology: Any = mdtraj.Topology.from_openmm(topology)
        self.positions: Array = np.array([list(row) for row in positions._value], dtype=np.float64)
        self.water = any(residue.name in WATER for residue in self.topology.residues)
        molecules = [r for r in self.topology.residues if r.name not in WATER and len(_heavy(r)) > 1]
        if not molecules:
            raise DataError(f"{pdb} holds no molecule besides water and ions", "give the structure of the molecule to study")
        self.residues = [r for r in molecules if r.chain.index == molecules[0].chain.index]
        self.add_hydrogens = not all(any(a.element.symbol == "H" for a in r.atoms if a.element is not None) for r in molecules)
        self.force_field = ["amber14-all.xml", "amber14/tip3p.xml" if self.water else "implicit/obc2.xml"]
        self.torsions = self._backbone() or self._central()
        self.model = not self.water and bool(self.torsions)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the run file."""
        yield "# couloir run FILE          carries this out; run it again to resume, or to extend after raising a duration"
        yield "# couloir status FILE       shows how far it is; couloir report FILE writes the report again"
        yield f"# Residues: {' '.join(f'{r.name}{r.resSeq}' for r in self.residues[:20])}{' ...' if len(self.residues) > 20 else ''}"
        yield '# Times, lengths and energies are text with a unit, such as "400 ps"; plain numbers are ps, nm, kJ/mol, K and radians.'
        yield ""
        yield "seed = 1                    # the same seed gives the same random numbers"
        yield ""
        yield from self._system()
        yield from self._engine()
        yield from self._cvs()
        yield from self._sampling()

    def _system(self) -> Iterator[str]:
        yield "[system]"
        yield f"pdb = {json.dumps(self.shown)}    # relative to this file"
        yield f"force_field = {json.dumps(self.force_field)}    # OpenMM force-field files, by name or path"
        if self.add_hydrogens:
            yield "add_hydrogens = true        # the structure lacks hydrogens: they are added for pH 7"
        if self.water and self.box is not None and (smallest := float(np.diag(np.array(self.box._value)).min())) < _SMALL_BOX:
            yield f'nonbonded_cutoff = "{0.45 * smallest:.2f} nm"    # less than half of the smallest side of the box'
        yield 'constraints = "HBonds"      # bonds to hydrogen are rigid, which allows steps of 2 fs; or "none" with 0.5 to 1 fs'
        problem = self._problem()
        if problem is not None:
            yield "# TO BE SETTLED before this runs:"
            yield from (f"#   {line}" for line in problem.splitlines())
        yield ""

    def _problem(self) -> str | None:
        """Return what keeps the force field from fitting the structure, or None."""
        from couloir.sampling.molecule import MolecularSystem

        cutoff = None
        if self.water and self.box is not None:
            cutoff = min(1.0, 0.45 * float(np.diag(np.array(self.box._value)).min()))
        try:
            MolecularSystem.from_pdb(self.pdb, self.force_field, add_hydrogens=self.add_hydrogens, nonbonded_cutoff=cutoff)
        except CouloirError as error:
            return str(error)
        return None

    def _engine(self) -> Iterator[str]:
        yield "[engine]"
        yield 'temperature = "300 K"'
        yield 'time_step = "2 fs"'
        yield 'friction = "1/ps"           # of the Langevin thermostat'
        yield 'platform = "auto"           # the fastest here, measured on this system; or "CUDA", "OpenCL", "CPU", "Reference"'
        yield ""

    def _cvs(self) -> Iterator[str]:
        yield "# Collective variables: what to look along. Atoms are named RESIDUE:ATOM as in the PDB file."
        for name, atoms in self.torsions.items():
            yield f"[cv.{name}]"
            yield 'type = "dihedral"           # in radians, from -pi to pi'
            yield f"select = {json.dumps([self._label(a) for a in atoms])}"
            yield ""
        yield "[cv.end_to_end]"
        yield 'type = "distance"           # in nm'
        yield f"select = {json.dumps([self._label(a) for a in self._ends()])}"
        yield ""

    def _sampling(self) -> Iterator[str]:
        along = next(iter(self.torsions), "end_to_end")
        if self.model:
            yield "[explore]                   # unbiased dynamics: the data that the generative model learns from"
            yield 'duration = "2 ns"           # in all; raise it for larger molecules'
            yield 'stride = "1 ps"             # time between the frames that are kept'
            yield "walkers = 2                 # run side by side, each for its share of the duration"
            yield ""
            yield "[model]                     # proposes starting structures for every window; they are checked and carry no weight"
            yield 'type = "conditional_sgm"'
            yield 'representation = "internal" # bonds, angles and torsions; or "cartesian"'
            yield ""
        yield "[umbrella]"
        yield f"along = {json.dumps(along)}    # the CV that is biased; what crosses the barrier you care about"
        if self.torsions:
            yield "windows = 36                # evenly over the whole period"
        else:
            low, high = self._span()
            yield "windows = 24                # evenly over the range"
            yield f'range = ["{low:.2f} nm", "{high:.2f} nm"]'
        yield '# force_constant = "100 kJ/mol/rad^2"    # default: neighbouring windows one width apart'
        yield "# overlap = 0.1              # instead of both: short pilots place the windows so that neighbours share this much"
        yield (
            f'seeding = "{"model" if self.model else "dragged"}"'.ljust(28)
            + '# "model", or "dragged" from window to window, which needs no [explore]'
        )
        yield "seeds_per_window = 2        # walkers per window; two or more reveal hidden barriers"
        yield 'duration = "400 ps"         # of each walker; or, instead of it, the error to reach: until = "0.25 kT"'
        yield 'record_stride = "0.2 ps"    # time between recorded CV values'
        yield ""
        yield "[surface]                   # may be changed and run again at any time; nothing is simulated anew"
        pair = [[*list(self.torsions)[:2]]] if len(self.torsions) > 1 else []
        yield f"along = {json.dumps([along, *pair])}    # one CV, or two in brackets"
        yield 'estimator = "wham"          # or "mbar"'
        yield "bootstrap = 100             # replicas for the error bars"

    def _label(self, atom: int) -> str:
        """Return how a run file names an atom: RES#:ATOM, or an mdtraj selection where that is ambiguous."""
        from couloir.cv.selection import select_atoms
        from couloir.errors import SelectionError

        found = self.topology.atom(atom)
        residue = found.residue
        label = f"{residue.name}{residue.resSeq}:{found.name}"
        try:
            if select_atoms(self.topology, label) == (atom,):
                return label
        except SelectionError:
            pass
        return f"select chainid {residue.chain.index} and resid {residue.index} and name '{found.name}'"

    def _backbone(self) -> dict[str, tuple[int, ...]]:
        """Return phi and psi of the residue in the middle that has both; of a proline only if there is no other."""
        found = []
        for before, here, after in zip(self.residues, self.residues[1:], self.residues[2:], strict=False):
            c, n = _named(before, "C"), _named(after, "N")
            own = [_named(here, name) for name in ("N", "CA", "C")]
            if c is not None and n is not None and None not in own:
                atoms = [c, *[a for a in own if a is not None], n]
                found.append((here.name, {"phi": tuple(atoms[:4]), "psi": tuple(atoms[1:])}))
        free = [torsions for name, torsions in found if name != "PRO"] or [torsions for _, torsions in found]
        return free[len(free) // 2] if free else {}

    def _central(self) -> dict[str, tuple[int, ...]]:
        """Return the torsion about the rotatable bond that divides the heavy atoms most evenly."""
        heavy = {i for r in self.residues for i in _heavy(r)}
        bonded: dict[int, list[int]] = {i: [] for i in sorted(heavy)}
        for a, b in self.topology.bonds:
            if {a.index, b.index} <= heavy:
                bonded[a.index].append(b.index)
                bonded[b.index].append(a.index)
        best = 0
        torsion: dict[str, tuple[int, ...]] = {}
        inner = [(a, b) for a in bonded for b in bonded[a] if a < b and min(len(bonded[a]), len(bonded[b])) > 1]
        for i, j in inner:
            side = _side(bonded, i, j)
            share = 0 if j in side else min(len(side), len(_side(bonded, j, i)))  # a bond of a ring does not rotate
            if share > best:
                first, last = (min(k for k in bonded[x] if k != y) for x, y in ((i, j), (j, i)))
                best, torsion = share, {"torsion": (first, i, j, last)}
        return torsion

    def _ends(self) -> tuple[int, int]:
        alphas = [a for r in self.residues if (a := _named(r, "CA")) is not None and _named(r, "N") is not None]
        if len(alphas) > 1:
            return alphas[0], alphas[-1]
        heavy = [i for r in self.residues for i in _heavy(r)]
        return heavy[0], heavy[-1]

    def _span(self) -> tuple[float, float]:
        a, b = self._ends()
        here = float(np.linalg.norm(self.positions[a] - self.positions[b]))
        return 0.7 * here, 1.3 * here


def _heavy(residue: Any) -> list[int]:
    return [atom.index for atom in residue.atoms if atom.element is not None and atom.element.symbol not in ("H", "VS")]


def _side(bonded: dict[int, list[int]], start: int, without: int) -> set[int]:
    """Return the atoms that are connected to ``start`` when its bond to ``without`` is cut."""
    found, todo = {start}, [k for k in bonded[start] if k != without]
    while todo:
        atom = todo.pop()
        if atom not in found:
            found.add(atom)
            todo += bonded[atom]
    return found


def _named(residue: Any, name: str) -> int | None:
    return next((int(atom.index) for atom in residue.atoms if atom.name == name), None)
