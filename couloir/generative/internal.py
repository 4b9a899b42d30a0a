"""Internal coordinates: bonds, angles and torsions of one molecule, with the Jacobian that makes densities usable.

With r, theta and tau from :mod:`couloir.generative.zmatrix` and x = (value - mean) / scale for each of them,

    log_volume(x) = sum_bonds 2 log r + sum_angles log sin(theta) + sum log scale,

the measure being the Cartesian one (nm^3 per atom) modulo translation and rotation.  Fixed bonds are constants: they
contribute nothing, and the density is one on the surface where these bonds have their lengths, in the measure of the
remaining coordinates (a stiff bond's limit).  Constrained *dynamics* also carries the mass-metric factor (Fixman,
PNAS 71, 3050 (1974)), which for bonds to hydrogen is nearly constant and is not included here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from couloir.cv.base import wrap
from couloir.errors import DataError, SelectionError
from couloir.generative.representation import BoolArray, Representation, as_frames, as_vectors, not_fitted, require_variation
from couloir.generative.zmatrix import Four, ZMatrix, build, fragments, measure, place
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj
    import pandas as pd

    from couloir.cv.base import CollectiveVariable

SHORTEST_BOND = 0.01
"""nm; decode lengthens shorter bonds to this."""
FLATTEST_ANGLE = 0.02
"""rad; decode keeps angles at least this far from 0 and pi, where torsions lose their meaning."""
NARROW = 0.35
"""rad; a torsion with a smaller circular standard deviation in the data is a linear coordinate."""
FIXED_TOLERANCE = 1e-3
"""nm; the largest standard deviation of a bond that may be taken as fixed."""
LINEAR_ANGLE = np.pi - 0.15
"""rad; angles with a larger mean make the torsions about their bonds singular."""

Atom = tuple[str, str, str, int]


class InternalCoordinates(Representation):
    """Bonds, angles and torsions of a Z-matrix over the bond graph of one molecule.

    Coordinates come in the order bonds (without fixed ones), angles, torsions.  A torsion is circular when its circular
    standard deviation in the data is at least 0.35 rad or it was asked for in ``torsions``; all others are centred at
    their circular mean and standardized, and what a model puts beyond half a turn from there is folded back by
    :meth:`decode`.  Rings are cut open: the bond that closes one is not a coordinate.  :meth:`decode` lengthens bonds
    below 0.01 nm to that and keeps angles 0.02 rad away from 0 and pi; :meth:`log_volume` is that of the structure decoded.

    Parameters
    ----------
    topology : the molecule, with its bonds.
    torsions : chains of four bonded atoms (indices) that must be circular coordinates, such as CVs to condition on.
        Protein backbone and side-chain torsions are coordinates without being named.
    fix_hydrogen_bonds : hold bonds to hydrogen at their mean length in the data; False where dynamics leaves them flexible.

    Raises
    ------
    DataError : the topology has no bonds, more than one molecule, or a torsion cannot be a coordinate.
    SelectionError : a torsion does not name four different atoms of the topology.
    """

    def __init__(self, topology: mdtraj.Topology, torsions: Sequence[Sequence[int]] = (), fix_hydrogen_bonds: bool = True) -> None:
        chains = tuple(_four(torsion, int(topology.n_atoms)) for torsion in torsions)
        atoms = [(a.name, "" if a.element is None else a.element.symbol, a.residue.name, int(a.residue.resSeq)) for a in topology.atoms]
        bonds = _bonds(topology)
        pieces = fragments(len(atoms), bonds)
        if len(pieces) > 1:
            raise DataError(
                f"the topology has {len(pieces)} disconnected fragments; {_label(atoms[pieces[0][0]])} and {_label(atoms[pieces[1][0]])} "
                "are in different ones",
                "internal coordinates describe one molecule: select its atoms, or add the missing bonds (CONECT records)",
            )
        heavy = np.array([symbol not in ("H", "D") for _, symbol, _, _ in atoms], dtype=bool)
        self._set_up(atoms, bonds, build(bonds, heavy, chains, _protein_torsions(topology)), chains, fix_hydrogen_bonds)

    def _set_up(
        self, atoms: Sequence[Atom], bonds: Sequence[tuple[int, int]], matrix: ZMatrix, chains: tuple[Four, ...], fix_hydrogen_bonds: bool
    ) -> None:
        self.atoms, self.bonds, self.matrix, self.torsions = tuple(atoms), tuple(bonds), matrix, chains
        self.fix_hydrogen_bonds = fix_hydrogen_bonds
        self._fixed = np.zeros(3 * len(atoms) - 6, dtype=bool)
        if fix_hydrogen_bonds:
            self._fixed[: len(atoms) - 1] = [any(atoms[k][1] in ("H", "D") for k in bond) for bond in matrix.bonds.tolist()]
        self._mean: Array | None = None
        self._scale: Array | None = None
        self._circular: BoolArray | None = None

    @property
    def dimension(self) -> int:
        return int((~self._fixed).sum())

    @property
    def circular(self) -> BoolArray:
        return self._learned()[2][~self._fixed]

    def fit(self, positions: Array) -> InternalCoordinates:
        n = len(self.atoms)
        bonds, angles, torsions = measure(as_frames(positions, (n, 3)), self.matrix)
        self._check_fit(bonds, angles)
        resultant = np.exp(1j * torsions).mean(axis=0)
        spread = np.sqrt(-2 * np.log(np.clip(np.abs(resultant), 1e-300, 1.0)))  # circular standard deviation (Mardia and Jupp)
        asked = {t for chain in self.torsions for t in (chain, chain[::-1])}
        circular = (spread >= NARROW) | np.array([tuple(row) in asked for row in self.matrix.torsions.tolist()], dtype=bool)
        center = np.where(circular, 0.0, np.angle(resultant))
        width = np.where(circular, 1.0, wrap(torsions - center, math.tau).std(axis=0))
        # the circular mean centres a narrow torsion only to second order in its width: make the mean exactly zero
        center = np.where(circular, 0.0, wrap(center + wrap(torsions - center, math.tau).mean(axis=0), math.tau))
        mean = np.concatenate([bonds.mean(axis=0), angles.mean(axis=0), center])
        scale = np.concatenate([bonds.std(axis=0), angles.std(axis=0), width])
        scale[self._fixed] = 1.0
        require_variation(scale, 1e-5, self._names())
        return self._with(mean, scale, np.concatenate([np.zeros(2 * n - 3, dtype=bool), circular]))

    def encode(self, positions: Array) -> Array:
        mean, scale, _ = self._learned()
        n = len(self.atoms)
        values = np.concatenate(measure(as_frames(positions, (n, 3)), self.matrix), axis=1) - mean
        values[:, 2 * n - 3 :] = wrap(values[:, 2 * n - 3 :], math.tau)
        return np.asarray((values / scale)[:, ~self._fixed])

    def decode(self, x: Array) -> Array:
        return place(*self._values(x), self.matrix)

    def log_volume(self, x: Array) -> Array:
        bonds, angles, _ = self._values(x)
        free = ~self._fixed[: bonds.shape[1]]
        log_scale = float(np.log(self._learned()[1]).sum())  # the scale of fixed and circular coordinates is 1
        return np.asarray(2 * np.log(bonds[:, free]).sum(axis=1) + np.log(np.sin(angles)).sum(axis=1) + log_scale)

    def coordinate_of(self, cv: CollectiveVariable) -> int | None:
        from couloir.cv.geometric import Dihedral

        if not isinstance(cv, Dihedral):
            return None
        atoms = [int(k) for k in cv.atoms]
        rows = self.matrix.torsions.tolist()
        found = [i for i, row in enumerate(rows) if atoms in (row, row[::-1])]
        return self.dimension - len(rows) + found[0] if found else None

    def standardize(self, index: int, values: Array) -> Array:
        mean, scale, _ = self._learned()
        column = int(np.flatnonzero(~self._fixed)[index])
        shifted = np.asarray(values, dtype=np.float64) - mean[column]
        return np.asarray((wrap(shifted, math.tau) if column >= 2 * len(self.atoms) - 3 else shifted) / scale[column])

    def scale_of(self, index: int) -> float:
        return float(self._learned()[1][~self._fixed][index])

    def describe(self) -> pd.DataFrame:
        """Return one row per bond, angle and torsion.

        Columns: ``kind``, ``atoms`` (indices), ``label`` (names), ``behaviour`` (``"linear"``, ``"circular"`` or
        ``"fixed"``), ``index`` (the coordinate of x, -1 when fixed), ``mean`` and ``scale`` (nm or rad; scale 0 when fixed).
        """
        import pandas as pd

        mean, scale, circular = self._learned()
        rows = self._atoms_of_rows()
        kinds = {2: "bond", 3: "angle", 4: "torsion"}
        return pd.DataFrame(
            {
                "kind": [kinds[len(row)] for row in rows],
                "atoms": rows,
                "label": ["-".join(_label(self.atoms[k]) for k in row) for row in rows],
                "behaviour": np.where(self._fixed, "fixed", np.where(circular, "circular", "linear")),
                "index": np.where(self._fixed, -1, np.cumsum(~self._fixed) - 1),
                "mean": mean,
                "scale": np.where(self._fixed, 0.0, scale),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "internal",
            "atoms": [list(atom) for atom in self.atoms],
            "bonds": [list(bond) for bond in self.bonds],
            "torsions": [list(chain) for chain in self.torsions],
            "fix_hydrogen_bonds": self.fix_hydrogen_bonds,
            "placement": np.column_stack([self.matrix.atoms, self.matrix.references, self.matrix.relative]).tolist(),
        }

    def arrays(self) -> dict[str, Array]:
        if self._mean is None or self._scale is None or self._circular is None:
            return {}
        return {"mean": self._mean, "scale": self._scale, "circular": self._circular.astype(np.float64)}

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> InternalCoordinates:
        rows = np.array(data["placement"], dtype=np.int64)
        restored = cls.__new__(cls)
        restored._set_up(
            [cast(Atom, tuple(atom)) for atom in data["atoms"]],
            [(int(i), int(j)) for i, j in data["bonds"]],
            ZMatrix(rows[:, 0], rows[:, 1:4], rows[:, 4].astype(bool)),
            tuple(cast(Four, tuple(chain)) for chain in data["torsions"]),
            data["fix_hydrogen_bonds"],
        )
        return restored._with(arrays["mean"], arrays["scale"], arrays["circular"].astype(bool)) if arrays else restored

    def __str__(self) -> str:
        text = f"InternalCoordinates: {len(self.atoms)} atoms, {self.dimension} coordinates, {int(self._fixed.sum())} bonds fixed"
        return text + (", not fitted" if self._circular is None else f", {int(self._circular.sum())} circular")

    def _with(self, mean: Array, scale: Array, circular: BoolArray) -> InternalCoordinates:
        fitted = type(self).__new__(type(self))
        fitted._set_up(self.atoms, self.bonds, self.matrix, self.torsions, self.fix_hydrogen_bonds)
        fitted._mean, fitted._scale, fitted._circular = mean, scale, circular
        return fitted

    def _learned(self) -> tuple[Array, Array, BoolArray]:
        if self._mean is None or self._scale is None or self._circular is None:
            raise not_fitted(self)
        return self._mean, self._scale, self._circular

    def _values(self, x: Array) -> tuple[Array, Array, Array]:
        """Return the bonds, angles and torsions that x stands for, kept within bounds."""
        mean, scale, _ = self._learned()
        batch = as_vectors(x, self.dimension)
        n = len(self.atoms)
        values = np.tile(mean, (len(batch), 1))
        values[:, ~self._fixed] += batch * scale[~self._fixed]
        bonds, angles, torsions = np.split(values, [n - 1, 2 * n - 3], axis=1)
        return np.maximum(bonds, SHORTEST_BOND), np.clip(angles, FLATTEST_ANGLE, np.pi - FLATTEST_ANGLE), torsions

    def _atoms_of_rows(self) -> list[tuple[int, ...]]:
        tables = (self.matrix.bonds, self.matrix.angles, self.matrix.torsions)
        return [tuple(row) for table in tables for row in table.tolist()]

    def _names(self) -> list[str]:
        kinds = {2: "bond", 3: "angle", 4: "torsion"}
        return [f"the {kinds[len(row)]} {'-'.join(_label(self.atoms[k]) for k in row)}" for row in self._atoms_of_rows()]

    def _check_fit(self, bonds: Array, angles: Array) -> None:
        n = len(self.atoms)
        spread = np.where(self._fixed[: n - 1], bonds.std(axis=0), 0.0)
        if spread.max() > FIXED_TOLERANCE:
            raise DataError(
                f"{self._names()[int(spread.argmax())]} varies by {spread.max():.2g} nm but is to be fixed",
                "give frames from dynamics with constrained bonds to hydrogen, or use fix_hydrogen_bonds=False",
            )
        straight = angles.mean(axis=0)
        if straight.max() > LINEAR_ANGLE:
            raise DataError(
                f"{self._names()[n - 1 + int(straight.argmax())]} is nearly straight, where torsions about its bonds are undefined",
                "use Cartesian coordinates for this molecule",
            )


def _label(atom: Atom) -> str:
    return f"{atom[2]}{atom[3]}:{atom[0]}"


def _four(torsion: Sequence[int], n_atoms: int) -> Four:
    chain = tuple(int(k) for k in torsion)
    if len(chain) != 4 or len(set(chain)) != 4 or min(chain) < 0 or max(chain) >= n_atoms:
        raise SelectionError(f"the torsion {tuple(torsion)} does not name four different atoms of {n_atoms}", "give four indices from 0")
    return chain


def _bonds(topology: mdtraj.Topology) -> list[tuple[int, int]]:
    if topology.n_bonds == 0:
        topology = topology.copy()  # the caller's topology stays as it is
        topology.create_standard_bonds()
    if topology.n_bonds == 0 and topology.n_atoms > 1:
        raise DataError("the topology has no bonds, and none could be found from its residue names", "add CONECT records to the PDB file")
    return sorted({(min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds})


def _protein_torsions(topology: mdtraj.Topology) -> list[Four]:
    from mdtraj.geometry import dihedral

    tables = (dihedral.indices_phi, dihedral.indices_psi, dihedral.indices_omega, dihedral.indices_chi1, dihedral.indices_chi2)
    return [cast(Four, tuple(int(k) for k in row)) for table in tables for row in table(topology)]
