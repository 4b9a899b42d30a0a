"""Features: the numbers per frame that a collective variable is discovered from.

Torsions enter as sine and cosine, which know their period; distances and aligned coordinates in units of ``length``, so
that a change of 0.1 nm counts like a turn of one radian; the coordinates of toy systems in units of a scale each.
Features add up: ``Features.torsions(topology) + Features.distances(atoms=(0, 5, 9))``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from couloir.cv._native import constant
from couloir.cv.geometric import _cross, _dot, _integers, _norm
from couloir.errors import ConfigError, DataError, SelectionError, nearest
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj

KINDS = ("torsions", "distances", "aligned", "coordinates")
"""What a run file may ask for."""


@dataclass(frozen=True)
class Features:
    """What is computed from every frame; made by :meth:`torsions`, :meth:`distances`, :meth:`aligned`, :meth:`coordinates`.

    Attributes
    ----------
    dihedrals : four atoms each; two features, sine and cosine.
    pairs : two atoms each; one feature, their distance divided by ``length``.
    fitted_atoms, reference : atoms and where they are in the reference (nm); three features per atom, its coordinates
        after the optimal superposition of these atoms, divided by ``length``.
    indices, scales : coordinates of the only particle of a toy system, each divided by its scale.
    length : nm that count as one.

    Raises
    ------
    SelectionError : atoms are no indices, or repeat within a torsion or pair.
    DataError : the reference or a scale does not fit, or there is no feature at all.
    """

    dihedrals: tuple[tuple[int, ...], ...] = ()
    pairs: tuple[tuple[int, ...], ...] = ()
    fitted_atoms: tuple[int, ...] = ()
    reference: tuple[tuple[float, ...], ...] = ()
    indices: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    length: float = 0.1

    def __post_init__(self) -> None:
        for name, size in (("dihedrals", 4), ("pairs", 2)):
            groups = tuple(_integers(group) for group in getattr(self, name))
            for group in groups:
                if len(group) != size or len(set(group)) != size:
                    raise SelectionError(f"each of the {name} needs {size} different atoms, got {list(group)}")
            object.__setattr__(self, name, groups)
        object.__setattr__(self, "fitted_atoms", _integers(self.fitted_atoms))
        object.__setattr__(self, "indices", _integers(self.indices))
        object.__setattr__(self, "reference", tuple(tuple(float(v) for v in row) for row in self.reference))
        object.__setattr__(self, "scales", tuple(float(s) for s in self.scales) or (1.0,) * len(self.indices))
        reference = np.array(self.reference)
        if self.fitted_atoms and (reference.shape != (len(self.fitted_atoms), 3) or len(set(self.fitted_atoms)) < 3):
            raise DataError(
                f"the reference has shape {reference.shape} for {len(self.fitted_atoms)} atoms", "align three or more atoms to (n, 3) nm"
            )
        if len(self.scales) != len(self.indices) or not all(s > 0 for s in (*self.scales, self.length)):
            raise DataError(f"scales {self.scales} and length {self.length} do not fit", "give one positive scale per coordinate")
        if not len(self):
            raise DataError("there is nothing to compute: no torsion, distance, atom or coordinate was given")

    @classmethod
    def torsions(cls, topology: mdtraj.Topology | None = None, *, atoms: Iterable[Sequence[int]] | None = None) -> Features:
        """Return sine and cosine of torsions: those given by four ``atoms`` each, or all proper ones of heavy atoms.

        Raises
        ------
        SelectionError : the topology has no proper torsion of heavy atoms.
        """
        if atoms is None:
            atoms = _heavy_torsions(_needed(topology, "torsions"))
            if not atoms:
                raise SelectionError("the topology has no proper torsion of heavy atoms", "has it bonds? use distances otherwise")
        return cls(dihedrals=tuple(tuple(group) for group in atoms))

    @classmethod
    def distances(cls, topology: mdtraj.Topology | None = None, *, atoms: Sequence[int] | None = None, length: float = 0.1) -> Features:
        """Return all distances between ``atoms``, by default all heavy atoms of the topology."""
        chosen = _heavy_atoms(_needed(topology, "distances")) if atoms is None else atoms
        return cls(pairs=tuple(combinations(_integers(chosen), 2)), length=length)

    @classmethod
    def aligned(
        cls,
        reference: Array,
        topology: mdtraj.Topology | None = None,
        *,
        atoms: Sequence[int] | None = None,
        length: float = 0.1,
    ) -> Features:
        """Return coordinates aligned to ``reference`` (n_atoms, 3) nm of the whole system, by default of all heavy atoms."""
        chosen = _integers(_heavy_atoms(_needed(topology, "aligned")) if atoms is None else atoms)
        whole = np.asarray(reference, dtype=np.float64)
        if whole.ndim != 2 or whole.shape[1] != 3 or max(chosen, default=0) >= len(whole) or not np.isfinite(whole).all():
            raise DataError(f"the reference has shape {whole.shape}, expected finite positions (n_atoms, 3) of the whole system")
        return cls(fitted_atoms=chosen, reference=tuple(map(tuple, whole[list(chosen)].tolist())), length=length)

    @classmethod
    def coordinates(cls, indices: Sequence[int], *, scales: Sequence[float] = ()) -> Features:
        """Return raw coordinates of a toy system, by index, each divided by its scale (default 1)."""
        return cls(indices=tuple(indices), scales=tuple(scales))

    def __add__(self, other: Features) -> Features:
        if self.fitted_atoms and other.fitted_atoms:
            raise DataError("both sets of features hold aligned coordinates", "align all atoms to one reference")
        if self._has_lengths and other._has_lengths and self.length != other.length:
            raise DataError(f"the features have lengths {self.length} and {other.length} nm", "give both the same length")
        joined = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "length"}
        return Features(**joined, length=self.length if self._has_lengths else other.length)

    def __len__(self) -> int:
        return 2 * len(self.dihedrals) + len(self.pairs) + 3 * len(self.fitted_atoms) + len(self.indices)

    @property
    def _has_lengths(self) -> bool:
        return bool(self.pairs or self.fitted_atoms)

    @property
    def atoms(self) -> tuple[int, ...]:
        """The atoms that the features depend on, sorted."""
        of_groups = [i for group in (*self.dihedrals, *self.pairs) for i in group]
        return tuple(sorted({*of_groups, *self.fitted_atoms, *((0,) if self.indices else ())}))

    def on(self, atoms: Sequence[int]) -> Features:
        """Return the same features of positions that hold only ``atoms``, in that order."""
        where = {atom: i for i, atom in enumerate(atoms)}
        return Features(
            tuple(tuple(where[i] for i in group) for group in self.dihedrals),
            tuple(tuple(where[i] for i in group) for group in self.pairs),
            tuple(where[i] for i in self.fitted_atoms),
            self.reference, self.indices, self.scales, self.length,
        )  # fmt: skip

    def compute(self, positions: Any, xp: Any) -> Any:
        """Return the features (n_frames, n_features) of positions (n_frames, n_atoms, 3), using the array module ``xp``."""
        parts = []
        if self.dihedrals:
            parts += self._sines_and_cosines(positions, xp)
        if self.pairs:
            i, j = (list(side) for side in zip(*self.pairs, strict=True))
            parts.append(_norm(positions[:, i] - positions[:, j], xp) / self.length)
        if self.fitted_atoms:
            parts.append(self._superposed(positions, xp) / self.length)
        if self.indices:
            parts.append(positions[:, 0, list(self.indices)] / constant(self.scales, positions, xp))
        return xp.concatenate(parts, axis=-1)

    def _sines_and_cosines(self, positions: Any, xp: Any) -> list[Any]:
        a, b, c, d = (positions[:, list(side)] for side in zip(*self.dihedrals, strict=True))
        b1, b2, b3 = b - a, c - b, d - c
        c1, c2 = _cross(b2, b3, xp), _cross(b1, b2, xp)
        sine, cosine = _dot(b1, c1, xp) * _norm(b2, xp), _dot(c1, c2, xp)
        size = _norm(xp.stack([sine, cosine], axis=-1), xp)
        size = xp.where(size > 0, size, xp.ones_like(size))  # four atoms on a line have no torsion: both features are 0
        return [sine / size, cosine / size]

    def _superposed(self, positions: Any, xp: Any) -> Any:
        """Coordinates after the rotation U diag(1, 1, det(U V^T)) V^T, X^T Y = U S V^T (Kabsch, Acta Cryst. A 34, 827 (1978))."""
        x = positions[:, list(self.fitted_atoms)]
        y = np.array(self.reference)
        x, y = x - x.mean(axis=1)[:, None], constant(y - y.mean(axis=0), x, xp)
        u, _, vt = xp.linalg.svd(xp.einsum("fai,aj->fij", x, y))
        sign = xp.linalg.det(u @ vt)
        handed = xp.stack([xp.ones_like(sign), xp.ones_like(sign), sign], axis=-1)
        return (x @ ((u * handed[:, None, :]) @ vt)).reshape(len(x), -1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_dict` turns back into these features."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Features:
        """Rebuild features from what :meth:`to_dict` returned.

        Raises
        ------
        ConfigError : an entry is unknown.
        """
        for key in data:
            if key not in {f.name for f in fields(cls)}:
                raise ConfigError(f"features have the unknown entry {key!r}{nearest(key, (f.name for f in fields(cls)))}")
        return cls(**data)

    def __str__(self) -> str:
        parts = [f"{len(self.dihedrals)} torsions", f"{len(self.pairs)} distances", f"{len(self.fitted_atoms)} aligned atoms"]
        parts.append(f"{len(self.indices)} coordinates")
        return ", ".join(part for part in parts if not part.startswith("0 "))


def features_from_config(
    kinds: Sequence[str],
    topology: mdtraj.Topology | None,
    select: Any = None,
    *,
    reference: Array | None = None,
    n_coordinates: int | None = None,
) -> Features:
    """Return the features that a run file asks for by their kinds.

    Parameters
    ----------
    kinds : one or more of ``"torsions"``, ``"distances"``, ``"aligned"``; ``"coordinates"`` for toy systems.
    topology : None for toy systems.
    select : atoms, as :func:`couloir.cv.select_atoms` takes them, that all features are limited to; default heavy atoms.
    reference : (n_atoms, 3) nm for aligned coordinates.
    n_coordinates : how many coordinates a toy system has.

    Raises
    ------
    ConfigError : a kind is unknown or does not fit the system.
    """
    from couloir.cv.selection import select_atoms

    asked = [kinds] if isinstance(kinds, str) else list(kinds)
    if not asked or len(set(asked)) < len(asked):
        raise ConfigError(f"features = {asked} is empty or repeats itself", 'write features = ["torsions"]')
    parts = []
    for kind in asked:
        if kind not in KINDS:
            raise ConfigError(f"unknown features {kind!r}{nearest(str(kind), KINDS)}")
        if (kind == "coordinates") != (topology is None):
            fit: Literal["coordinates", "torsions"] = "coordinates" if topology is None else "torsions"
            raise ConfigError(f"features {kind!r} do not fit this system", f'use features = ["{fit}"]')
        if topology is None:
            parts.append(Features.coordinates(range(n_coordinates or 0)))
            continue
        atoms = None if select is None else select_atoms(topology, select)
        if kind == "torsions":
            every = Features.torsions(topology).dihedrals
            parts.append(Features.torsions(atoms=[t for t in every if atoms is None or set(t) <= set(atoms)]))
        elif kind == "distances":
            parts.append(Features.distances(topology, atoms=atoms))
        else:
            parts.append(Features.aligned(np.asarray(reference), topology, atoms=atoms))
    return sum(parts[1:], start=parts[0])


def _needed(topology: Any, kind: str) -> Any:
    if topology is None:
        raise SelectionError(f"{kind} need a topology or atoms", "give one of the two")
    return topology


def _heavy_atoms(topology: Any) -> list[int]:
    return [atom.index for atom in topology.atoms if atom.element is not None and atom.element.symbol != "H"]


def _heavy_torsions(topology: Any) -> list[tuple[int, int, int, int]]:
    heavy = set(_heavy_atoms(topology))
    bonds = sorted({(min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds})
    bonds = [bond for bond in bonds if heavy.issuperset(bond)]
    partners: dict[int, list[int]] = {atom: [] for atom in heavy}
    for b, c in bonds:
        partners[b].append(c)
        partners[c].append(b)
    return [(a, b, c, d) for b, c in bonds for a in partners[b] for d in partners[c] if len({a, b, c, d}) == 4]
