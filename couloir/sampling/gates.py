"""Gates: what a generated structure must satisfy before dynamics may start from it.

The reference is a physical structure of the same molecule; a gate compares bond lengths, stereo centres, peptide
bonds and contacts with it.  Gates judge, they never repair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj

Mask = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

GEOMETRY_GATES = ("finite", "bonds", "chirality", "peptide", "clash")


@dataclass(frozen=True, eq=False)
class GeometryGates:
    """The geometry gates of one molecule.

    Attributes
    ----------
    bonds : (n_bonds, 2) bonded atoms; lengths : (n_bonds,) reference lengths, nm.
    centers : (n, 4) a stereo centre and three neighbours; handedness : (n,) sign of their reference volume.
    peptides : (n, 4) atoms of each omega torsion; trans : (n,) whether the reference is trans.
    contacts : (n, 2) pairs more than three bonds apart; closest : (n,) smallest distance allowed, nm.
    """

    bonds: IntArray
    lengths: Array
    centers: IntArray
    handedness: Array
    peptides: IntArray
    trans: Mask
    contacts: IntArray
    closest: Array

    @classmethod
    def of(cls, topology: mdtraj.Topology, reference: Array) -> GeometryGates:
        """Read the gates off a molecule's topology and a physical structure (n_atoms, 3)."""
        neighbours, elements = _neighbours(topology), _elements(topology)
        bonds = np.array(sorted({(min(i, j), max(i, j)) for i, js in enumerate(neighbours) for j in js}), dtype=np.int64).reshape(-1, 2)
        centers = np.array(_stereo_centers(neighbours, elements), dtype=np.int64).reshape(-1, 4)
        peptides = np.array(_peptides(neighbours, elements), dtype=np.int64).reshape(-1, 4)
        contacts, closest = _contacts(neighbours, elements)
        frame = np.asarray(reference, dtype=np.float64)[None]
        trans = _is_trans(frame, peptides)
        return cls(
            bonds, _distances(frame, bonds)[0], centers, np.sign(_volumes(frame, centers)[0]),
            peptides, trans.reshape(-1), contacts, closest,
        )  # fmt: skip

    def check(self, positions: Array, *, bond_tolerance: float = 0.03, contact_scale: float = 1.0) -> dict[str, Mask]:
        """Return, per gate, which of the structures (n, n_atoms, 3) pass it.

        Parameters
        ----------
        bond_tolerance : largest deviation of a bond from its reference length, nm.
        contact_scale : factor on the smallest allowed distances; below 1 it forgives what minimization can repair.
        """
        finite = all_finite(positions)
        safe = np.where(finite[:, None, None], positions, 0.0)
        return {
            "finite": finite,
            "bonds": (np.abs(_distances(safe, self.bonds) - self.lengths) <= bond_tolerance).all(axis=1),
            "chirality": (np.sign(_volumes(safe, self.centers)) == self.handedness).all(axis=1),
            "peptide": (_is_trans(safe, self.peptides) == self.trans).all(axis=1),
            "clash": (_distances(safe, self.contacts) >= contact_scale * self.closest).all(axis=1),
        }


def isomer(topology: mdtraj.Topology, positions: Array) -> Mask:
    """Return the handedness of every stereo centre and cis or trans of every peptide bond, (n, n_centers + n_peptides), of structures.

    Parameters
    ----------
    positions : (n, n_atoms, 3).
    """
    neighbours, elements = _neighbours(topology), _elements(topology)
    centers = np.array(_stereo_centers(neighbours, elements), dtype=np.int64).reshape(-1, 4)
    peptides = np.array(_peptides(neighbours, elements), dtype=np.int64).reshape(-1, 4)
    return np.concatenate([_volumes(positions, centers) > 0, _is_trans(positions, peptides)], axis=1)


def all_finite(positions: Array) -> Mask:
    """Return which structures (n, n_atoms, 3) have finite coordinates only."""
    return np.array(np.isfinite(positions).all(axis=(1, 2)), dtype=bool)


def _neighbours(topology: mdtraj.Topology) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in range(topology.n_atoms)]
    for a, b in topology.bonds:
        out[a.index].append(b.index)
        out[b.index].append(a.index)
    return out


def _elements(topology: mdtraj.Topology) -> list[str]:
    return [atom.element.symbol if atom.element is not None else "X" for atom in topology.atoms]


def _stereo_centers(neighbours: list[list[int]], elements: list[str]) -> list[tuple[int, int, int, int]]:
    """Atoms with four neighbours of which at most one is a hydrogen: labelled atoms cannot swap without inversion."""
    out = []
    for i, js in enumerate(neighbours):
        if len(js) == 4 and sum(elements[j] == "H" for j in js) <= 1:
            heavy_first = sorted(js, key=lambda j: (elements[j] == "H", j))
            out.append((i, heavy_first[0], heavy_first[1], heavy_first[2]))
    return out


def _peptides(neighbours: list[list[int]], elements: list[str]) -> list[tuple[int, int, int, int]]:
    out = []
    for c, js in enumerate(neighbours):
        carbonyl = elements[c] == "C" and any(elements[j] == "O" and len(neighbours[j]) == 1 for j in js)
        for n in (j for j in js if carbonyl and elements[j] == "N"):
            before = [j for j in js if elements[j] == "C"]
            after = [j for j in neighbours[n] if elements[j] == "C" and j != c]
            if before and after:
                out.append((before[0], c, n, after[0]))
    return out


def _contacts(neighbours: list[list[int]], elements: list[str]) -> tuple[IntArray, Array]:
    n = len(neighbours)
    near = np.eye(n, dtype=bool)
    bonded = np.zeros((n, n), dtype=bool)
    for i, js in enumerate(neighbours):
        bonded[i, js] = True
    for _ in range(3):
        near |= (near.astype(int) @ bonded.astype(int)) > 0
    pairs = np.argwhere(np.triu(~near, 1))
    hydrogens = np.array([[elements[i] == "H", elements[j] == "H"] for i, j in pairs], dtype=int).reshape(-1, 2).sum(axis=1)
    # Below these no thermal structure goes: heavy-heavy, heavy-hydrogen (hydrogen bonds reach 0.16), hydrogen-hydrogen.
    return pairs.astype(np.int64), np.array([0.24, 0.155, 0.135])[hydrogens]


def _distances(x: Array, pairs: IntArray) -> Array:
    return np.asarray(np.linalg.norm(x[:, pairs[:, 0]] - x[:, pairs[:, 1]], axis=-1))


def _volumes(x: Array, centers: IntArray) -> Array:
    a, b, c = (x[:, centers[:, k]] - x[:, centers[:, 0]] for k in (1, 2, 3))
    return np.asarray(np.sum(np.cross(a, b) * c, axis=-1))


def _cos_torsions(x: Array, atoms: IntArray) -> Array:
    b1, b2, b3 = (x[:, atoms[:, k + 1]] - x[:, atoms[:, k]] for k in (0, 1, 2))
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    lengths = np.linalg.norm(n1, axis=-1) * np.linalg.norm(n2, axis=-1)
    return np.asarray(np.sum(n1 * n2, axis=-1) / np.maximum(lengths, 1e-12))


def _is_trans(x: Array, atoms: IntArray) -> Mask:
    return np.array(_cos_torsions(x, atoms) < 0, dtype=bool)
