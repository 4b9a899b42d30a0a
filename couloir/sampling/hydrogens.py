"""Hydrogens on heavy atoms: each where it stands in a reference structure, in axes fixed to the atoms around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj

IntArray = npt.NDArray[np.int64]


def place_hydrogens(topology: mdtraj.Topology, reference: Array, kept: Array, atoms: IntArray) -> Array:
    """Return positions (n, n_atoms, 3) of all atoms: those given, and hydrogens as they stand in the reference.

    Each hydrogen keeps its place in axes fixed to its heavy atom P: e1 away from P's heavy neighbours, e2 in the plane
    of e1 and the first of them (for a single neighbour Q, of e1 and the direction from Q to its next heavy atom),
    e3 = e1 x e2.  Methyls on a saturated atom are turned to be staggered; lone hydrogens of planar atoms are put in the plane.

    Parameters
    ----------
    reference : (n_atoms, 3) a physical structure.
    kept : (n, n_kept, 3) positions of ``atoms``.
    atoms : (n_kept,) indices.

    Raises
    ------
    DataError : a hydrogen is not bonded to a given heavy atom, or the heavy atoms around it do not fix its direction.
    """
    out = np.empty((len(kept), topology.n_atoms, 3))
    out[:, atoms] = kept
    for site in _sites(topology, {int(i) for i in atoms}):
        local = _shaped(site, (reference[site.hydrogens] - reference[site.parent]) @ _axes(reference[None], site)[0].T)
        out[:, site.hydrogens] = out[:, [site.parent]] + local @ _axes(out, site)
    return out


@dataclass(frozen=True)
class _Site:
    """Hydrogens on one heavy atom; ``azimuth`` is the bond (from, to) that tells directions around e1 apart."""

    parent: int
    neighbours: list[int]
    azimuth: tuple[int, int]
    hydrogens: list[int]
    staggered: bool
    planar: bool


def _sites(topology: mdtraj.Topology, given: set[int]) -> list[_Site]:
    bonded: dict[int, list[int]] = {i: [] for i in range(topology.n_atoms)}
    for a, b in topology.bonds:
        bonded[a.index].append(b.index)
        bonded[b.index].append(a.index)
    elements = [a.element.symbol if a.element is not None else "X" for a in topology.atoms]
    heavy = {i: sorted(j for j in js if elements[j] != "H") for i, js in bonded.items()}
    missing: dict[int, list[int]] = {}
    for h in (i for i in range(topology.n_atoms) if i not in given):
        if len(bonded[h]) != 1 or not heavy[h]:
            raise DataError(f"hydrogen {topology.atom(h)} (atom {h}) has {len(bonded[h])} bonds, expected one to a heavy atom")
        missing.setdefault(heavy[h][0], []).append(h)
    return [_site(topology, parent, hydrogens, bonded, heavy, elements) for parent, hydrogens in missing.items()]


def _site(
    topology: mdtraj.Topology,
    parent: int,
    hydrogens: list[int],
    bonded: dict[int, list[int]],
    heavy: dict[int, list[int]],
    elements: list[str],
) -> _Site:
    around = heavy[parent]
    beyond = [j for j in heavy[around[0]] if j != parent] if len(around) == 1 else []
    if len(around) < 2 and not beyond:
        raise DataError(
            f"the direction of the hydrogens on {topology.atom(parent)} (atom {parent}) is not fixed by the heavy atoms around it",
            "give the positions of these hydrogens too",
        )
    unsaturated = {i for i, js in bonded.items() if elements[i] == "C" and len(js) < 4}
    lone = len(around) == 2 and len(bonded[parent]) == 3
    planar = lone and (parent in unsaturated or (elements[parent] == "N" and not unsaturated.isdisjoint(around)))
    staggered = len(around) == 1 and len(hydrogens) == 3 and len(bonded[around[0]]) == 4
    return _Site(parent, around, (around[0], beyond[0]) if beyond else (parent, around[0]), hydrogens, staggered, planar)


def _shaped(site: _Site, local: Array) -> Array:
    """Return a site's hydrogens (n_hydrogens, 3), in its axes, staggered or in the plane where they should be."""
    if site.planar:
        return local * [1.0, 1.0, 0.0]
    if not site.staggered:
        return local
    angles = np.arctan2(local[:, 2], local[:, 1])
    turn = np.angle(-np.exp(-3j * angles).sum()) / 3  # three-fold: 60, 180 and 300 degrees from the azimuth
    c, s = np.cos(turn), np.sin(turn)
    return np.asarray(local @ np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]]))


def _axes(x: Array, site: _Site) -> Array:
    """Return e1, e2, e3 as rows (n, 3, 3) at a site of frames x (n, n_atoms, 3)."""
    first = -_unit(_unit(x[:, site.neighbours] - x[:, [site.parent]]).sum(axis=1))
    side = x[:, site.azimuth[1]] - x[:, site.azimuth[0]]
    side = side - (side * first).sum(axis=-1, keepdims=True) * first
    any_side = np.cross(first, np.eye(3)[np.abs(first).argmin(axis=-1)])  # three atoms in a line, as in a nitrile
    second = _unit(np.where(np.linalg.norm(side, axis=-1, keepdims=True) > 1e-6, side, any_side))
    return np.stack([first, second, np.cross(first, second)], axis=1)


def _unit(v: Array) -> Array:
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12))
