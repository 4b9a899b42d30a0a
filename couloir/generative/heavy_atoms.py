"""Heavy atoms as the vector x: a molecule without its hydrogens, every frame rotated onto one reference.

Hydrogens follow the heavy atoms: what they add is fast, mostly constrained, and rebuilt by physics
(:func:`couloir.sampling.rebuild.rebuild`), so that a model spends its effort on what decides the conformation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from couloir.errors import DataError
from couloir.generative.representation import Cartesian
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj


class HeavyAtoms(Cartesian):
    """Cartesian coordinates of the heavy atoms after rotation onto a reference, all divided by one scale.

    One scale keeps x isotropic: distances in x are distances in space.  Rotations are proper, so a mirror image stays one.
    ``fit`` and ``encode`` take frames of all atoms or of the kept atoms alone; ``decode`` gives the kept atoms
    (n, n_kept, 3).  What :class:`~couloir.generative.representation.Cartesian` says about densities holds here too.

    Parameters
    ----------
    topology : the molecule.

    Attributes
    ----------
    atoms : (n_kept,) indices of the atoms that x holds.

    Raises
    ------
    DataError : the molecule has fewer than three heavy atoms.
    """

    def __init__(self, topology: mdtraj.Topology) -> None:
        heavy = [a.index for a in topology.atoms if a.element is not None and a.element.atomic_number > 1]
        self._set_up(heavy, int(topology.n_atoms))

    def _set_up(self, atoms: list[int], n_all: int) -> None:
        if len(atoms) < 3:
            raise DataError(f"the molecule has {len(atoms)} heavy atoms, and alignment needs three", "use InternalCoordinates or Cartesian")
        super().__init__(atoms=range(len(atoms)), isotropic=True)
        self.atoms = np.array(atoms, dtype=np.int64)
        self.n_atoms, self._n_all = len(atoms), n_all

    def fit(self, positions: Array) -> Self:
        return super().fit(self._kept(positions))

    def encode(self, positions: Array) -> Array:
        return super().encode(self._kept(positions))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "heavy_atoms", "n_atoms": self._n_all, "atoms": self.atoms.tolist()}

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        restored = cls.__new__(cls)
        restored._set_up(data["atoms"], data["n_atoms"])
        restored._take(arrays)
        return restored

    def _kept(self, positions: Array) -> Array:
        """Return the kept atoms of frames; a frame of any other number of atoms is left for the shape check to refuse."""
        batch = np.asarray(positions, dtype=np.float64)
        return batch[..., self.atoms, :] if batch.ndim >= 2 and batch.shape[-2] == self._n_all else batch

    def __str__(self) -> str:
        return f"HeavyAtoms: {len(self.atoms)} of {self._n_all} atoms{'' if self._mean is not None else ', not fitted'}"
