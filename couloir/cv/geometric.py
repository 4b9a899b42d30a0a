"""Geometric CVs: distance, angle, dihedral, radius of gyration, RMSD, coordination number and plain coordinates.

Molecules are expected whole: nothing here applies minimum images, in NumPy, torch and OpenMM alike.  A distance, angle
or dihedral becomes one native bonded term with the whole bias in its expression; sums become a CustomCVForce.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.cv import _single as single
from couloir.cv._native import bonded, calls_table, check_name, collective, constant, define, wrapped_text
from couloir.cv.base import CollectiveVariable, wrap
from couloir.cv.selection import atom_of, find_residue
from couloir.errors import DataError, SelectionError
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj
    import openmm


def _integers(values: Any) -> tuple[int, ...]:
    try:
        atoms = tuple(operator.index(v) for v in values)
    except TypeError:
        raise SelectionError(
            f"atoms are indices from 0, got {values!r}", "turn names into indices with select_atoms(topology, [...])"
        ) from None
    if atoms and min(atoms) < 0:
        raise SelectionError(f"atom index {min(atoms)} is negative", "count atoms from 0")
    return atoms


class _Geometric(CollectiveVariable):
    """A CV whose constructor arguments are plain data."""

    type: str

    def to_dict(self) -> dict[str, Any]:
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]
        return {"type": self.type, **given}


class _Bonded(_Geometric):
    """A CV of a fixed number of atoms that OpenMM has as a bonded term."""

    atoms: tuple[int, ...]
    n_atoms: int
    native: tuple[str, str]

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "atoms", _integers(self.atoms))
        if len(self.atoms) != self.n_atoms or len(set(self.atoms)) != self.n_atoms:
            raise SelectionError(f"{self.type} {self.name!r} needs {self.n_atoms} different atoms, got {list(self.atoms)}")

    def _vectors(self, positions: Any) -> list[Any]:
        return [positions[:, b] - positions[:, a] for a, b in zip(self.atoms, self.atoms[1:], strict=False)]

    def of_frame(self) -> Callable[[Array], float]:
        formula, rows = single.FORMULAS[self.type], np.array(self.atoms)
        return lambda frame: formula(*frame.take(rows, axis=0).tolist())

    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        kind, variable = self.native
        if calls_table(expression):  # only the compound form of a bonded term takes tabulated functions
            particles = ",".join(f"p{i + 1}" for i in range(self.n_atoms))
            return bonded("Compound", define(expression, self.name, f"{self.type}({particles})"), parameters, self.atoms)
        return bonded(kind, define(expression, self.name, variable), parameters, self.atoms)


@dataclass(frozen=True)
class Distance(_Bonded):
    """Distance of two atoms in nm."""

    atoms: tuple[int, ...]
    name: str = "distance"
    unit: str = field(default="nm", init=False, repr=False)
    period: None = field(default=None, init=False, repr=False)

    type = "distance"
    n_atoms = 2
    native = ("Bond", "r")

    def compute(self, positions: Any, xp: Any) -> Any:
        return _norm(self._vectors(positions)[0], xp)


@dataclass(frozen=True)
class Angle(_Bonded):
    """Angle at the middle one of three atoms, in radians from 0 to pi."""

    atoms: tuple[int, ...]
    name: str = "angle"
    unit: str = field(default="rad", init=False, repr=False)
    period: None = field(default=None, init=False, repr=False)

    type = "angle"
    n_atoms = 3
    native = ("Angle", "theta")

    def compute(self, positions: Any, xp: Any) -> Any:
        a, b = self._vectors(positions)
        # atan2 keeps full precision, and a gradient, near 0 and pi where arccos loses both
        return xp.arctan2(_norm(_cross(a, b, xp), xp), -_dot(a, b, xp))


@dataclass(frozen=True)
class Dihedral(_Bonded):
    """Dihedral angle of four atoms in radians, in [-pi, pi), cis = 0, IUPAC sign (as in OpenMM and mdtraj)."""

    atoms: tuple[int, ...]
    name: str = "dihedral"
    unit: str = field(default="rad", init=False, repr=False)
    period: float = field(default=math.tau, init=False, repr=False)

    type = "dihedral"
    n_atoms = 4
    native = ("Torsion", "theta")

    @classmethod
    def phi(cls, topology: mdtraj.Topology, residue: int | str = 2, name: str = "phi") -> Dihedral:
        """Return the backbone torsion C(i-1)-N-CA-C of a residue, given by its number in the PDB (or ``"ALA2"``).

        Raises
        ------
        SelectionError : the residue, the one before it, or one of the four atoms does not exist.
        """
        here = find_residue(topology, residue)
        atoms = (atom_of(_neighbour(topology, here, -1), "C"), *(atom_of(here, atom) for atom in ("N", "CA", "C")))
        return cls(atoms, name)

    @classmethod
    def psi(cls, topology: mdtraj.Topology, residue: int | str = 2, name: str = "psi") -> Dihedral:
        """Return the backbone torsion N-CA-C-N(i+1) of a residue, given by its number in the PDB (or ``"ALA2"``).

        Raises
        ------
        SelectionError : the residue, the one after it, or one of the four atoms does not exist.
        """
        here = find_residue(topology, residue)
        atoms = (*(atom_of(here, atom) for atom in ("N", "CA", "C")), atom_of(_neighbour(topology, here, 1), "N"))
        return cls(atoms, name)

    def compute(self, positions: Any, xp: Any) -> Any:
        b1, b2, b3 = self._vectors(positions)
        c1, c2 = _cross(b2, b3, xp), _cross(b1, b2, xp)
        sine, cosine = _dot(b1, c1, xp) * _norm(b2, xp), _dot(c1, c2, xp)
        collinear = (sine == 0) & (cosine == 0)
        value = xp.arctan2(sine, xp.where(collinear, xp.ones_like(cosine), cosine))
        return xp.where(value >= math.pi, value - math.tau, value)


@dataclass(frozen=True)
class RadiusOfGyration(_Geometric):
    """Radius of gyration in nm, Rg^2 = sum_i w_i |x_i - sum_j w_j x_j|^2, w_i = m_i / M.

    ``masses`` weigh the atoms; None weighs them equally.
    """

    atoms: tuple[int, ...]
    masses: tuple[float, ...] | None = None
    name: str = "rg"
    unit: str = field(default="nm", init=False, repr=False)
    period: None = field(default=None, init=False, repr=False)

    type = "radius_of_gyration"

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "atoms", _integers(self.atoms))
        if len(self.atoms) < 2 or len(set(self.atoms)) != len(self.atoms):
            raise SelectionError(f"the radius of gyration {self.name!r} needs two or more different atoms")
        if self.masses is not None:
            object.__setattr__(self, "masses", tuple(float(m) for m in self.masses))
            if len(self.masses) != len(self.atoms) or min(self.masses) < 0 or sum(self.masses) <= 0:
                raise DataError(f"{self.name!r} has {len(self.atoms)} atoms and masses {self.masses}", "give one positive mass per atom")

    @cached_property
    def _weights(self) -> Array:
        masses = np.ones(len(self.atoms)) if self.masses is None else np.array(self.masses)
        return np.asarray(masses / masses.sum())

    def compute(self, positions: Any, xp: Any) -> Any:
        x = positions[:, list(self.atoms)]
        w = constant(self._weights, x, xp)[None, :, None]
        x = x - (w * x).sum(axis=1)[:, None]
        return _norm((xp.sqrt(w) * x).reshape(len(x), -1), xp)

    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        import openmm

        squares = openmm.CustomCentroidBondForce(2, "w*distance(g1,g2)^2")
        squares.addPerBondParameter("w")
        centre = squares.addGroup(list(self.atoms), list(self._weights))
        for atom, weight in zip(self.atoms, self._weights, strict=True):
            squares.addBond([squares.addGroup([atom], [1.0]), centre], [weight])
        return collective(f"{expression}; {self.name}=sqrt({self.name}_squared)", parameters, {f"{self.name}_squared": squares})


@dataclass(frozen=True)
class RMSD(_Geometric):
    """Root-mean-square deviation in nm from a reference after optimal superposition.

    ``reference`` holds positions (n_atoms, 3) of the whole system, ``atoms`` the ones to compare (None: all).
    The optimal rotation is never built: with K the 4x4 matrix of Theobald (Acta Cryst. A 61, 478 (2005), eq. 4-6),
    RMSD^2 = (sum |x|^2 + sum |y|^2 - 2 max eigenvalue of K) / n.
    """

    reference: tuple[tuple[float, ...], ...]
    atoms: tuple[int, ...] | None = None
    name: str = "rmsd"
    unit: str = field(default="nm", init=False, repr=False)
    period: None = field(default=None, init=False, repr=False)

    type = "rmsd"

    def __post_init__(self) -> None:
        check_name(self.name)
        reference = np.asarray(self.reference, dtype=np.float64)
        if reference.ndim != 2 or reference.shape[1] != 3 or not np.isfinite(reference).all():
            raise DataError(f"the reference of {self.name!r} has shape {reference.shape}, expected finite (n_atoms, 3) in nm")
        object.__setattr__(self, "reference", tuple(tuple(row) for row in reference.tolist()))
        if self.atoms is not None:
            object.__setattr__(self, "atoms", _integers(self.atoms))
        if max(self._atoms) >= len(reference):
            raise SelectionError(f"the RMSD {self.name!r} selects atoms beyond the {len(reference)} of its reference")
        if len(set(self._atoms)) < 3:
            raise SelectionError(f"the RMSD {self.name!r} needs three or more different atoms")

    @property
    def _atoms(self) -> tuple[int, ...]:
        return tuple(range(len(self.reference))) if self.atoms is None else self.atoms

    @cached_property
    def _centred(self) -> Array:
        y = np.array(self.reference)[list(self._atoms)]
        return np.asarray(y - y.mean(axis=0))

    def compute(self, positions: Any, xp: Any) -> Any:
        x = positions[:, list(self._atoms)]
        y = constant(self._centred, x, xp)
        x = x - x.mean(axis=1)[:, None]
        s = xp.einsum("fai,aj->fij", x, y)
        (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = [[s[:, i, j] for j in range(3)] for i in range(3)]
        rows = [
            [xx + yy + zz, yz - zy, zx - xz, xy - yx],
            [yz - zy, xx - yy - zz, xy + yx, zx + xz],
            [zx - xz, xy + yx, yy - xx - zz, yz + zy],
            [xy - yx, zx + xz, yz + zy, zz - xx - yy],
        ]
        k = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
        largest = xp.linalg.eigvalsh(k)[:, -1]
        return _safe_sqrt(((x * x).sum(axis=(1, 2)) + (y * y).sum() - 2 * largest) / len(self._atoms), xp)

    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        import openmm

        return collective(expression, parameters, {self.name: openmm.RMSDForce(np.array(self.reference), list(self._atoms))})


@dataclass(frozen=True)
class CoordinationNumber(_Geometric):
    """Number of contacts between two groups, sum over pairs of (1 - (r/r0)^n) / (1 - (r/r0)^m).

    An atom makes no contact with itself, and a pair that lies in both groups counts once.  With integer powers both
    polynomials divide by 1 - (r/r0)^g, g = gcd(n, m), which removes the 0/0 at r = r0.
    """

    group_a: tuple[int, ...]
    group_b: tuple[int, ...]
    r0: float
    n: int = 6
    m: int = 12
    name: str = "coordination"
    unit: str = field(default="", init=False, repr=False)
    period: None = field(default=None, init=False, repr=False)

    type = "coordination"

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "group_a", _integers(self.group_a))
        object.__setattr__(self, "group_b", _integers(self.group_b))
        if not (self.r0 > 0 and 0 < self.n < self.m and self.n == int(self.n) and self.m == int(self.m)):
            raise DataError(f"{self.name!r} has r0 = {self.r0}, n = {self.n}, m = {self.m}", "use r0 > 0 and whole powers 0 < n < m")
        if not self._pairs:
            raise SelectionError(f"the groups of {self.name!r} make no pair of different atoms")

    @cached_property
    def _pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(sorted({(min(a, b), max(a, b)) for a in self.group_a for b in self.group_b if a != b}))

    @property
    def _lengths(self) -> tuple[int, int, int]:
        g = math.gcd(self.n, self.m)
        return g, self.n // g, self.m // g

    def compute(self, positions: Any, xp: Any) -> Any:
        i, j = (list(side) for side in zip(*self._pairs, strict=True))
        g, top, bottom = self._lengths
        y = (_norm(positions[:, i] - positions[:, j], xp) / self.r0) ** g
        return (sum(y**k for k in range(top)) / sum(y**k for k in range(bottom))).sum(axis=-1)

    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        import openmm

        g, top, bottom = self._lengths
        sums = ["+".join(["1", *(f"y^{k}" for k in range(1, length))]) for length in (top, bottom)]
        contacts = openmm.CustomBondForce(f"({sums[0]})/({sums[1]}); y=(r/{self.r0!r})^{g}")
        for i, j in self._pairs:
            contacts.addBond(i, j, [])
        return collective(expression, parameters, {self.name: contacts})


@dataclass(frozen=True)
class Coordinate(_Geometric):
    """Coordinate number ``index`` of the only particle of a toy system, wrapped when it has a ``period``."""

    index: int
    name: str = "x"
    period: float | None = None
    unit: str = field(default="nm", init=False, repr=False)

    type = "coordinate"

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.index < 0 or (self.period is not None and self.period <= 0):
            raise DataError(f"coordinate {self.name!r} has index {self.index} and period {self.period}", "both must be positive")

    def compute(self, positions: Any, xp: Any) -> Any:
        return wrap(positions[:, 0, self.index], self.period)

    def of_frame(self) -> Callable[[Array], float]:
        return lambda frame: float(wrap(frame[0, self.index], self.period))

    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        if self.index > 2:
            raise DataError(f"coordinate {self.name!r} has index {self.index}, but OpenMM has three dimensions", "use a toy engine")
        axis = "xyz"[self.index]
        compound = calls_table(expression)
        text = define(expression, self.name, wrapped_text(axis + "1" if compound else axis, self.period))
        return bonded("Compound" if compound else "External", text, parameters, (0,))


def _neighbour(topology: mdtraj.Topology, residue: Any, step: int) -> Any:
    index = residue.index + step
    if 0 <= index < topology.n_residues and topology.residue(index).chain.index == residue.chain.index:
        return topology.residue(index)
    side = "before" if step < 0 else "after"
    raise SelectionError(f"residue {residue.name}{residue.resSeq} has no residue {side} it in its chain", "choose one inside the chain")


def _dot(a: Any, b: Any, xp: Any) -> Any:
    return xp.sum(a * b, axis=-1)


def _cross(a: Any, b: Any, xp: Any) -> Any:
    (ax, ay, az), (bx, by, bz) = [[v[..., i] for i in range(3)] for v in (a, b)]
    return xp.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)


def _safe_sqrt(square: Any, xp: Any) -> Any:
    # where() on both sides, so that autograd gives 0 instead of NaN where the root is 0
    positive = square > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, square, xp.ones_like(square))), xp.zeros_like(square))


def _norm(v: Any, xp: Any) -> Any:
    return _safe_sqrt(_dot(v, v, xp), xp)
