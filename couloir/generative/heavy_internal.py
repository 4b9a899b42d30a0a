"""Heavy atoms as bonds, angles and torsions without a seam: the vector x of snippets of a molecule.

Stiff coordinates are coordinates of their own here, each with unit variance, so that a model need not find a bond's width
of thousandths of a nanometre among Cartesian motions a hundred times as large.  A torsion that turns is a point on the
circle, (cos tau, sin tau), because a trajectory may pass the seam of an angle any number of times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from couloir.errors import DataError, ModelError
from couloir.generative.internal import InternalCoordinates
from couloir.generative.representation import BoolArray, Representation, as_frames, as_vectors, not_fitted
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj

    from couloir.cv.base import CollectiveVariable


class HeavyInternal(Representation):
    """Internal coordinates of the heavy atoms, the broad torsions among them as points in the plane.

    x holds the linear coordinates of :class:`~couloir.generative.internal.InternalCoordinates` (bonds, angles, narrow
    torsions), then for every broad torsion ((cos, sin) - mean) / scale with one scale for both.  ``decode`` takes the
    direction of a point that is off the circle, so x has no density of structures.  ``fit`` and ``encode`` take frames of
    all atoms or of the kept atoms alone; ``decode`` gives the kept atoms (n, n_kept, 3), each frame placed by itself.

    Parameters
    ----------
    topology : the molecule, with its bonds; its heavy atoms must hang together.

    Attributes
    ----------
    atoms : (n_kept,) indices of the atoms that x holds.

    Raises
    ------
    DataError : the molecule has fewer than three heavy atoms, or they are not one molecule.
    """

    def __init__(self, topology: mdtraj.Topology) -> None:
        heavy = [a.index for a in topology.atoms if a.element is not None and a.element.atomic_number > 1]
        if len(heavy) < 3:
            raise DataError(f"the molecule has {len(heavy)} heavy atoms, and angles need three", "use InternalCoordinates or Cartesian")
        if topology.n_bonds == 0:
            topology = topology.copy()
            topology.create_standard_bonds()
        self._set_up(InternalCoordinates(topology.subset(heavy)), heavy, int(topology.n_atoms))

    def _set_up(self, internal: InternalCoordinates, atoms: list[int], n_all: int, circle: Array | None = None) -> None:
        self.internal, self._n_all, self._circle = internal, n_all, circle
        self.atoms = np.array(atoms, dtype=np.int64)
        self.n_atoms = len(atoms)

    @property
    def dimension(self) -> int:
        return self.internal.dimension + len(self._learned()[0])

    @property
    def circular(self) -> BoolArray:
        return np.zeros(self.dimension, dtype=bool)

    def fit(self, positions: Array) -> Self:
        frames = self._kept(positions)
        internal = self.internal.fit(frames)
        angles = internal.encode(frames)[:, internal.circular]
        points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        mean = points.mean(axis=0)
        scale = np.sqrt(points.var(axis=0).mean(axis=1))
        fitted = type(self).__new__(type(self))
        fitted._set_up(internal, self.atoms.tolist(), self._n_all, np.column_stack([mean, scale]).reshape(-1, 3))
        return fitted

    def encode(self, positions: Array) -> Array:
        circle, turning = self._learned()
        values = self.internal.encode(self._kept(positions))
        points = np.stack([np.cos(values[:, turning]), np.sin(values[:, turning])], axis=-1)
        planar = (points - circle[:, :2]) / circle[:, 2:]
        return np.concatenate([values[:, ~turning], planar.reshape(len(values), -1)], axis=1)

    def decode(self, x: Array) -> Array:
        circle, turning = self._learned()
        batch = as_vectors(x, self.dimension)
        values = np.empty((len(batch), len(turning)))
        n_linear = int((~turning).sum())
        values[:, ~turning] = batch[:, :n_linear]
        points = batch[:, n_linear:].reshape(len(batch), -1, 2) * circle[:, 2:] + circle[:, :2]
        values[:, turning] = np.arctan2(points[..., 1], points[..., 0])
        return self.internal.decode(values)

    def log_volume(self, x: Array) -> Array:
        """Raise ModelError: points off the circle stand for no structure of their own, so there is no density."""
        raise ModelError("torsions as points in the plane have no density of structures", "use InternalCoordinates for densities")

    def coordinate_of(self, cv: CollectiveVariable) -> int | None:
        """Return None: a torsion is two coordinates here, or one that is centred elsewhere."""
        return None

    def standardize(self, index: int, values: Array) -> Array:
        raise self._no_coordinate()

    def scale_of(self, index: int) -> float:
        raise self._no_coordinate()

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "heavy_internal", "n_atoms": self._n_all, "atoms": self.atoms.tolist(), "internal": self.internal.to_dict()}

    def arrays(self) -> dict[str, Array]:
        return {} if self._circle is None else {"circle": self._circle, **self.internal.arrays()}

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        restored = cls.__new__(cls)
        internal = InternalCoordinates.restore(data["internal"], {k: v for k, v in arrays.items() if k != "circle"})
        restored._set_up(internal, data["atoms"], data["n_atoms"], np.asarray(arrays["circle"]).reshape(-1, 3) if arrays else None)
        return restored

    def __str__(self) -> str:
        text = f"HeavyInternal: {len(self.atoms)} of {self._n_all} atoms"
        return f"{text}, not fitted" if self._circle is None else f"{text}, {self.dimension} coordinates, {len(self._circle)} torsions turn"

    def _learned(self) -> tuple[Array, BoolArray]:
        """Return mean and scale (n_turning, 3) of points on the circle, and which internal coordinates turn."""
        if self._circle is None:
            raise not_fitted(self)
        return self._circle, self.internal.circular

    def _kept(self, positions: Array) -> Array:
        """Return the kept atoms of frames (n, n_atoms, 3), of all atoms or of these alone."""
        batch = np.asarray(positions, dtype=np.float64)
        whole = batch.ndim >= 2 and batch.shape[-2] == self._n_all
        return as_frames(batch[..., self.atoms, :] if whole else batch, (self.n_atoms, 3))

    @staticmethod
    def _no_coordinate() -> ModelError:
        return ModelError("no coordinate of HeavyInternal is a collective variable", "use InternalCoordinates to condition on one")
