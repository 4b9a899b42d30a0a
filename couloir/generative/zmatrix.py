"""Z-matrices: a tree over the bond graph, and the map between positions and bonds, angles and torsions.

Every atom D is placed from three that stand already: C, to which it is bonded, B, bonded to C, and A.  The torsion
A-B-C-D is the angle between the planes ABC and BCD.  Of the atoms that hang on one C, the *first* takes for A a
neighbour of B (a proper torsion: one rotor for the bond B-C); all its siblings take the first one for A.  Their
torsions are then narrow, tell the chirality of C, and turn with the rotor.

The volume element of n atoms is, up to rigid motion (translation and the Haar measure of rotation),

    prod_bonds r^2 dr  prod_angles sin(theta) dtheta  prod_torsions dtau:

the first three atoms give r12^2 r23^2 sin(theta) (x1 free, x2 in spherical coordinates about x1, x3 about x2 with the
axis x1-x2), and each further atom is in spherical coordinates about C with the axis B-C (Go and Scheraga,
Macromolecules 9, 535 (1976)).  Placement is NeRF (Parsons et al., J. Comput. Chem. 26, 1063 (2005)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError
from couloir.trajectory import Array

IntArray = npt.NDArray[np.int64]
Four = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class ZMatrix:
    """Which atom is placed from which.

    Attributes
    ----------
    atoms : (n_atoms,) indices in the order of placement.
    references : (n_atoms, 3) for each of them C (bond), B (angle) and A (torsion); -1 where the first three have none.
    relative : (n_atoms,) True where A is a sibling, so that the torsion is relative to that of A.
    """

    atoms: IntArray
    references: IntArray
    relative: npt.NDArray[np.bool_]

    @property
    def bonds(self) -> IntArray:
        """(n_atoms - 1, 2) atoms C, D."""
        return np.column_stack([self.references[1:, 0], self.atoms[1:]])

    @property
    def angles(self) -> IntArray:
        """(n_atoms - 2, 3) atoms B, C, D."""
        return np.column_stack([self.references[2:, 1::-1], self.atoms[2:]])

    @property
    def torsions(self) -> IntArray:
        """(n_atoms - 3, 4) atoms A, B, C, D."""
        return np.column_stack([self.references[3:, ::-1], self.atoms[3:]])


def fragments(n_atoms: int, bonds: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the connected sets of atoms, each sorted, in the order of their first atoms."""
    neighbours = _neighbours(n_atoms, bonds)
    seen: set[int] = set()
    found = []
    for start in range(n_atoms):
        if start not in seen:
            reached = list(_distances(start, neighbours, set(range(n_atoms))))
            seen.update(reached)
            found.append(sorted(reached))
    return found


def build(
    bonds: Sequence[tuple[int, int]], heavy: npt.NDArray[np.bool_], wanted: Sequence[Four] = (), preferred: Sequence[Four] = ()
) -> ZMatrix:
    """Return a Z-matrix of one connected molecule: heavy atoms first, outwards from its middle, hydrogens last.

    Parameters
    ----------
    bonds : pairs of atoms.  Bonds that close a ring are not coordinates.
    heavy : (n_atoms,) True for atoms other than hydrogen.
    wanted : torsions that must be coordinates, as chains of bonded atoms.
    preferred : torsions that should be, where the tree allows.

    Raises
    ------
    DataError : there are fewer than three atoms, the graph is not connected, or a wanted torsion cannot be a coordinate.
    """
    n_atoms = len(heavy)
    pieces = fragments(n_atoms, bonds)
    if n_atoms < 3 or len(pieces) > 1:
        raise DataError(f"a Z-matrix needs one molecule of at least three atoms, not {n_atoms} atoms in {len(pieces)} fragments")
    neighbours = _neighbours(n_atoms, bonds)
    rank = {t: 1 for torsion in preferred for t in (tuple(torsion), tuple(torsion)[::-1])}
    rank |= {t: 0 for torsion in wanted for t in (tuple(torsion), tuple(torsion)[::-1])}
    matrix = _rows(_tree(neighbours, heavy), neighbours, rank)
    have = {t for row in matrix.torsions.tolist() for t in (tuple(row), tuple(row[::-1]))}
    for torsion in wanted:
        if tuple(torsion) not in have:
            raise DataError(
                f"the torsion {'-'.join(map(str, torsion))} cannot be a coordinate",
                "give four bonded atoms, none across a ring closure or from a hydrogen to heavy atoms, and one torsion per middle bond",
            )
    return matrix


def measure(positions: Array, matrix: ZMatrix) -> tuple[Array, Array, Array]:
    """Return bonds (n, n_atoms - 1) nm, angles (n, n_atoms - 2) and torsions (n, n_atoms - 3) in rad of positions (n, n_atoms, 3)."""
    xyz = np.ascontiguousarray(positions.transpose(2, 1, 0))  # (3, n_atoms, n): long contiguous axes
    c, d = matrix.bonds.T
    bonds = _norm(xyz[:, d] - xyz[:, c])
    b, c, d = matrix.angles.T
    u, v = xyz[:, b] - xyz[:, c], xyz[:, d] - xyz[:, c]
    angles = np.arctan2(_norm(_cross(u, v)), _dot(u, v))
    a, b, c, d = matrix.torsions.T
    ab, bc, cd = xyz[:, b] - xyz[:, a], xyz[:, c] - xyz[:, b], xyz[:, d] - xyz[:, c]
    normal = _cross(bc, cd)
    torsions = np.arctan2(_norm(bc) * _dot(ab, normal), _dot(_cross(ab, bc), normal))
    return bonds.T, angles.T, torsions.T


def place(bonds: Array, angles: Array, torsions: Array, matrix: ZMatrix) -> Array:
    """Return positions (n, n_atoms, 3) of :func:`measure`'s values: first atom at the origin, second on x, third in the xy plane."""
    r, theta, tau = (np.ascontiguousarray(values.T) for values in (bonds, angles, torsions))
    xyz = np.zeros((len(matrix.atoms), 3, bonds.shape[0]))
    second, third = matrix.atoms[1:3]
    xyz[second, 0] = r[0]
    xyz[third, 0], xyz[third, 1] = r[1] * np.cos(theta[0]), r[1] * np.sin(theta[0])
    along, aside = -r[2:] * np.cos(theta[1:]), r[2:] * np.sin(theta[1:])
    out, up = aside * np.cos(tau), aside * np.sin(tau)
    for i, (a, b, c, d) in enumerate(matrix.torsions):
        bc = xyz[c] - xyz[b]
        bc /= _norm(bc)
        normal = _cross(xyz[b] - xyz[a], bc)
        normal /= np.maximum(_norm(normal), 1e-300)
        xyz[d] = xyz[c] + along[i] * bc + out[i] * _cross(normal, bc) + up[i] * normal
    return np.ascontiguousarray(xyz.transpose(2, 0, 1))


@dataclass(frozen=True)
class _Tree:
    root: int
    parent: dict[int, int]
    children: dict[int, list[int]]
    late: set[int]
    size: dict[int, int]


def _neighbours(n_atoms: int, bonds: Sequence[tuple[int, int]]) -> list[list[int]]:
    sets: list[set[int]] = [set() for _ in range(n_atoms)]
    for i, j in bonds:
        sets[i].add(j)
        sets[j].add(i)
    return [sorted(s) for s in sets]


def _distances(start: int, neighbours: list[list[int]], allowed: set[int]) -> dict[int, int]:
    """Return the number of bonds from ``start`` to every atom reached through ``allowed`` atoms, breadth first."""
    distance = {start: 0}
    queue = [start]
    for atom in queue:
        for other in neighbours[atom]:
            if other in allowed and other not in distance:
                distance[other] = distance[atom] + 1
                queue.append(other)
    return distance


def _tree(neighbours: list[list[int]], heavy: npt.NDArray[np.bool_]) -> _Tree:
    """Return a spanning tree rooted in the middle of the heavy atoms, where a turn about a bond moves the fewest atoms."""
    skeleton = {int(i) for i in np.flatnonzero(heavy)}

    def unfitness(atom: int) -> tuple[bool, int, int, int]:
        n_heavy = sum(bool(heavy[k]) for k in neighbours[atom])
        return not heavy[atom], -min(n_heavy, 2), max(_distances(atom, neighbours, skeleton).values()), atom

    root = min((atom for atom in range(len(heavy)) if len(neighbours[atom]) > 1), key=unfitness)
    early = list(_distances(root, neighbours, skeleton))
    parent: dict[int, int] = {}
    order = [root]
    for allowed in (set(early), set(range(len(heavy)))):  # the second round hangs hydrogens on what stands
        for atom in order:
            for other in neighbours[atom]:
                if other in allowed and other != root and other not in parent:
                    parent[other] = atom
                    order.append(other)
    children: dict[int, list[int]] = {atom: [] for atom in order}
    size = {atom: int(heavy[atom]) for atom in order}
    for atom in reversed(order[1:]):
        children[parent[atom]].append(atom)
        size[parent[atom]] += size[atom]
    return _Tree(root, parent, children, set(order) - set(early), size)


def _rows(tree: _Tree, neighbours: list[list[int]], rank: dict[tuple[int, ...], int]) -> ZMatrix:
    """Return the rows of the tree, placing first at each atom the child whose torsion is asked for, else the larger branch."""

    def priority(child: int) -> tuple[int, int, int]:
        c = tree.parent[child]
        b = tree.parent.get(c)
        ranks = [] if b is None else [rank.get((a, b, c, child), 2) for a in neighbours[b] if a != c]
        return min(ranks, default=2), -tree.size[child], child

    order = [tree.root]
    for late in (False, True):
        for atom in order:
            order += sorted((k for k in tree.children[atom] if (k in tree.late) is late and k not in order), key=priority)
    # The root's first two children must stand before anything is placed from them; breadth first they do, unless
    # the second is a hydrogen (a root with one heavy neighbour).
    third = next(k for k in order[2:] if tree.parent[k] == tree.root)
    order.remove(third)
    order.insert(2, third)

    first_child: dict[int, int] = {}
    position: dict[int, int] = {order[0]: 0, order[1]: 1, order[2]: 2}
    references, relative = [[-1, -1, -1], [tree.root, -1, -1], [tree.root, order[1], -1]], [False, False, False]
    for number, d in enumerate(order[3:], start=3):
        c = tree.parent[d]
        b = order[1] if c == tree.root else tree.parent[c]
        if c == tree.root or c in first_child:
            a = order[2] if c == tree.root else first_child[c]
            relative.append(True)
        else:
            standing = [k for k in neighbours[b] if k != c and k in position]
            above = tree.parent.get(b)
            a = min(standing, key=lambda k: (rank.get((k, b, c, d), 2), k != above, position[k]))
            first_child[c] = d
            relative.append(False)
        references.append([c, b, a])
        position[d] = number
    return ZMatrix(np.array(order, dtype=np.int64), np.array(references, dtype=np.int64), np.array(relative, dtype=bool))


def _dot(u: Array, v: Array) -> Array:
    return np.asarray(u[0] * v[0] + u[1] * v[1] + u[2] * v[2])


def _norm(u: Array) -> Array:
    return np.sqrt(_dot(u, u))


def _cross(u: Array, v: Array) -> Array:
    return np.stack([u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]])
