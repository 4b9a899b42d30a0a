"""Hydrogens that nothing tells apart: structures that differ by turning a methyl group are one structure.

A short simulation leaves most methyl groups in the well where they began.  A model that learns from several such simulations takes
that for a preference, here for one well and there for another, which costs a factor of up to three per group in its weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from couloir.errors import DataError
from couloir.streams import stream
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj


def equivalent_hydrogens(topology: mdtraj.Topology) -> list[tuple[int, int, int]]:
    """Return the hydrogens of every group X-H3: cyclic changes of their numbers keep energy and handedness."""
    around: dict[int, list[int]] = {}
    for a, b in topology.bonds:
        for center, other in ((a, b), (b, a)):
            if other.element is not None and other.element.symbol == "H":
                around.setdefault(center.index, []).append(other.index)
    return [(h[0], h[1], h[2]) for h in (sorted(hydrogens) for hydrogens in around.values()) if len(h) == 3]


def turned_at_random(positions: Array, topology: mdtraj.Topology, *, seed: int) -> Array:
    """Return structures whose equivalent hydrogens changed places cyclically, each group of each structure at random.

    Parameters
    ----------
    positions : (n, n_atoms, 3) nm.

    Raises
    ------
    DataError : positions and topology differ in their number of atoms.
    """
    batch = np.array(positions, dtype=np.float64)
    if batch.ndim != 3 or batch.shape[1] != topology.n_atoms:
        raise DataError(f"positions have shape {batch.shape}, expected (n, {topology.n_atoms}, 3)", "give the topology they belong to")
    rng = stream(seed, "equivalent hydrogens")
    for group in equivalent_hydrogens(topology):
        source = (np.arange(3) + rng.integers(3, size=len(batch))[:, None]) % 3
        batch[:, group] = np.take_along_axis(batch[:, group], source[:, :, None], axis=1)
    return batch
