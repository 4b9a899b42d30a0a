"""How a molecule becomes the vector x that a model generates, and how a density of x becomes one of structures.

A representation is a change of variables ``x = encode(positions)`` on configurations modulo rigid motion, with

    log p(configuration) = log p(x) - log_volume(x),        log_volume(x) = log |d configuration / d x| .

Coordinates of x are of two kinds: *circular* ones are angles in [-pi, pi), unscaled; all others are standardized to zero
mean and unit variance over the data given to :meth:`Representation.fit`.  ``fit`` returns a new, fitted object.
:class:`Vector` serves toy systems, :class:`Cartesian` aligned atoms, :class:`~couloir.generative.internal.InternalCoordinates`
bonds, angles and torsions; :class:`~couloir.generative.heavy_atoms.HeavyAtoms` and
:class:`~couloir.generative.heavy_internal.HeavyInternal` are the same without hydrogens, for snippets of trajectories.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from couloir.cv.base import wrap
from couloir.errors import DataError, ModelError, nearest
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj

    from couloir.cv.base import CollectiveVariable

BoolArray = npt.NDArray[np.bool_]


class Representation(ABC):
    """A change of variables between positions (n, n_atoms, 3) in nm and vectors x (n, dimension)."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Number of coordinates of x.  Raises ModelError before fitting."""

    @property
    @abstractmethod
    def circular(self) -> BoolArray:
        """(dimension,) True for an angle in [-pi, pi), unscaled; False for a standardized coordinate."""

    @abstractmethod
    def fit(self, positions: Array) -> Self:
        """Return a new representation that has learned its reference, means and scales from positions (n, n_atoms, 3).

        Raises
        ------
        DataError : the positions have the wrong shape, are not finite, or do not vary.
        """

    @abstractmethod
    def encode(self, positions: Array) -> Array:
        """Return x (n, dimension) of positions (n, n_atoms, 3) nm.

        Raises
        ------
        ModelError : the representation is not fitted.
        DataError : the positions have the wrong shape or are not finite.
        """

    @abstractmethod
    def decode(self, x: Array) -> Array:
        """Return positions (n, n_atoms, 3) nm of x (n, dimension), in a frame of the representation's choice.

        Raises
        ------
        ModelError : the representation is not fitted.
        DataError : x has the wrong shape.
        """

    @abstractmethod
    def log_volume(self, x: Array) -> Array:
        """Return log |d(positions modulo rigid motion) / dx| (n,) at x (n, dimension)."""

    @abstractmethod
    def coordinate_of(self, cv: CollectiveVariable) -> int | None:
        """Return the index of the coordinate of x that *is* this CV (up to standardization), or None."""

    @abstractmethod
    def standardize(self, index: int, values: Array) -> Array:
        """Return coordinate ``index`` of x for values (n,) in natural units (rad, nm), such as those of the CV it is."""

    @abstractmethod
    def scale_of(self, index: int) -> float:
        """Return d(natural unit) / dx of coordinate ``index``: its standard deviation in the data, or period / 2 pi if circular."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able part of what :func:`representation_from` needs."""

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """Return the numerical part of what :func:`representation_from` needs; empty before fitting."""

    @classmethod
    @abstractmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Return the representation that :meth:`to_dict` and :meth:`arrays` came from."""


def representation_from(data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Representation:
    """Return the representation saved as ``data`` (``to_dict()``) and ``arrays`` (``arrays()``).

    Raises
    ------
    ModelError : the kind of representation is unknown, or something is missing.
    """
    from couloir.generative.heavy_atoms import HeavyAtoms
    from couloir.generative.heavy_internal import HeavyInternal
    from couloir.generative.internal import InternalCoordinates

    kinds: dict[str, type[Representation]] = {
        "vector": Vector, "cartesian": Cartesian, "heavy_atoms": HeavyAtoms,
        "internal": InternalCoordinates, "heavy_internal": HeavyInternal,
    }  # fmt: skip
    kind = str(data.get("kind"))
    if kind not in kinds:
        raise ModelError(f"unknown representation {kind!r}{nearest(kind, kinds)}", "load a model saved by this version of Couloir")
    try:
        return kinds[kind].restore(data, {name: np.asarray(value) for name, value in arrays.items()})
    except KeyError as missing:
        raise ModelError(f"the saved {kind} representation lacks {missing}", "save the model again") from None


def as_frames(positions: Array, shape: tuple[int, int] | None = None) -> Array:
    """Return positions as finite float64 (n, n_atoms, n_dim); one frame (n_atoms, n_dim) counts as a batch of one.

    Raises
    ------
    DataError : the shape is not that, differs from ``shape`` (n_atoms, n_dim), or a value is not finite.
    """
    batch = np.asarray(positions, dtype=np.float64)
    batch = batch[None] if batch.ndim == 2 else batch
    if batch.ndim != 3 or (shape is not None and batch.shape[1:] != shape):
        expected = "(n, n_atoms, 3)" if shape is None else f"(n, {shape[0]}, {shape[1]})"
        raise DataError(f"positions have shape {np.shape(positions)}, expected {expected}", "give frames of the molecule that was fitted")
    if not np.isfinite(batch).all():
        bad = int(np.flatnonzero(~np.isfinite(batch).all(axis=(1, 2)))[0])
        raise DataError(f"positions of frame {bad} are not finite", "leave out the frames of a simulation that blew up")
    return batch


def as_vectors(x: Array, dimension: int) -> Array:
    """Return x as float64 (n, dimension); one vector counts as a batch of one.

    Raises
    ------
    DataError : x has another shape.
    """
    batch = np.atleast_2d(np.asarray(x, dtype=np.float64))
    if batch.ndim != 2 or batch.shape[1] != dimension:
        raise DataError(f"x has shape {np.shape(x)}, expected (n, {dimension})", "give complete vectors of this representation")
    return batch


def not_fitted(what: object) -> ModelError:
    """Return the error for using a representation that has learned nothing yet."""
    return ModelError(f"{type(what).__name__} is not fitted", "use what representation.fit(positions) returns")


def require_variation(scale: Array, minimum: float, names: Sequence[str]) -> None:
    """Raise a DataError naming the first coordinate whose standard deviation does not exceed ``minimum``."""
    still = np.flatnonzero(~(scale > minimum))
    if len(still):
        raise DataError(
            f"{names[int(still[0])]} does not vary over the frames given (standard deviation {scale[still[0]]:.2g})",
            "give many frames of a simulation in which nothing but bonds to hydrogen is constrained",
        )


class Vector(Representation):
    """Plain standardized coordinates, for toy systems with positions (n, 1, n_dim).

    Parameters
    ----------
    n_dim : number of coordinates; taken from the data when None.
    periods : period of each coordinate, None for one that is not periodic.  A coordinate with period P becomes the
        circular coordinate 2 pi q / P.
    """

    def __init__(self, n_dim: int | None = None, periods: Sequence[float | None] | None = None) -> None:
        if periods is not None and n_dim not in (None, len(periods)):
            raise DataError(f"{len(periods)} periods for {n_dim} coordinates", "give one period, or None, for each coordinate")
        self.periods = None if periods is None else tuple(None if p is None else float(p) for p in periods)
        self.n_dim = n_dim if periods is None else len(periods)
        self._mean: Array | None = None
        self._scale: Array | None = None

    @property
    def dimension(self) -> int:
        if self.n_dim is None:
            raise not_fitted(self)
        return self.n_dim

    @property
    def circular(self) -> BoolArray:
        return np.array([p is not None for p in self.periods or (None,) * self.dimension], dtype=bool)

    def fit(self, positions: Array) -> Vector:
        q = as_frames(positions, None if self.n_dim is None else (1, self.n_dim))
        if q.shape[1] != 1:
            raise DataError(f"positions have shape {q.shape}, expected (n, 1, n_dim)", "use Cartesian or InternalCoordinates for molecules")
        fitted = Vector(q.shape[2], self.periods)
        mean, scale = q[:, 0].mean(axis=0), q[:, 0].std(axis=0)
        for i, period in enumerate(self.periods or ()):
            if period is not None:
                mean[i], scale[i] = 0.0, period / math.tau
        require_variation(scale, 0.0, [f"coordinate {i}" for i in range(len(scale))])
        fitted._mean, fitted._scale = mean, scale
        return fitted

    def encode(self, positions: Array) -> Array:
        mean, scale = self._learned()
        x = (as_frames(positions, (1, self.dimension))[:, 0] - mean) / scale
        return np.where(self.circular, wrap(x, math.tau), x)

    def decode(self, x: Array) -> Array:
        mean, scale = self._learned()
        return (as_vectors(x, self.dimension) * scale + mean)[:, None]

    def log_volume(self, x: Array) -> Array:
        return np.full(len(as_vectors(x, self.dimension)), np.log(self._learned()[1]).sum())

    def coordinate_of(self, cv: CollectiveVariable) -> int | None:
        from couloir.cv.geometric import Coordinate

        return cv.index if isinstance(cv, Coordinate) and cv.index < self.dimension else None

    def standardize(self, index: int, values: Array) -> Array:
        mean, scale = self._learned()
        x = (np.asarray(values, dtype=np.float64) - mean[index]) / scale[index]
        return wrap(x, math.tau) if self.circular[index] else x

    def scale_of(self, index: int) -> float:
        return float(self._learned()[1][index])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "vector", "n_dim": self.n_dim, "periods": None if self.periods is None else list(self.periods)}

    def arrays(self) -> dict[str, Array]:
        return {} if self._mean is None or self._scale is None else {"mean": self._mean, "scale": self._scale}

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Vector:
        restored = cls(data["n_dim"], data["periods"])
        if arrays:
            restored._mean, restored._scale = arrays["mean"], arrays["scale"]
        return restored

    def _learned(self) -> tuple[Array, Array]:
        if self._mean is None or self._scale is None:
            raise not_fitted(self)
        return self._mean, self._scale

    def __str__(self) -> str:
        return f"Vector: {self.n_dim or '?'} coordinates{'' if self._mean is not None else ', not fitted'}"


class Cartesian(Representation):
    """Cartesian coordinates of all atoms after rotation onto a reference (Kabsch 1976), standardized.

    Aligned frames fill a (3 n_atoms - 6)-dimensional surface in the 3 n_atoms coordinates of x, and constrained bonds
    thin it further.  A density fitted to x is therefore a density in this ambient space (``log_volume`` is the
    standardization alone), *not* one of configurations modulo rigid motion: rank and propose with it, do not
    reweight with it.  For reweighting use :class:`~couloir.generative.internal.InternalCoordinates`.

    Parameters
    ----------
    topology : the molecule; alignment then fits its heavy atoms by default.
    atoms : indices of the atoms that the alignment fits; by default the heavy atoms, or all atoms without a topology.
    isotropic : one scale for all coordinates (mean variance 1) instead of one scale each (every variance 1).
    """

    def __init__(self, topology: mdtraj.Topology | None = None, atoms: Sequence[int] | None = None, isotropic: bool = False) -> None:
        self.n_atoms: int | None = None if topology is None else int(topology.n_atoms)
        if atoms is None and topology is not None:
            heavy = [a.index for a in topology.atoms if a.element is not None and a.element.atomic_number > 1]
            atoms = heavy if len(heavy) >= 3 else range(topology.n_atoms)
        self.aligned_atoms = None if atoms is None else np.asarray(atoms, dtype=np.int64)
        self.isotropic = isotropic
        self._reference: Array | None = None
        self._mean: Array | None = None
        self._scale: Array | None = None

    @property
    def dimension(self) -> int:
        if self.n_atoms is None:
            raise not_fitted(self)
        return 3 * self.n_atoms

    @property
    def circular(self) -> BoolArray:
        return np.zeros(self.dimension, dtype=bool)

    def fit(self, positions: Array) -> Self:
        frames = as_frames(positions, None if self.n_atoms is None else (self.n_atoms, 3))
        if frames.shape[2] != 3:
            raise DataError(f"positions have shape {frames.shape}, expected (n, n_atoms, 3)", "use Vector for toy systems")
        n_atoms = frames.shape[1]
        atoms = np.arange(n_atoms) if self.aligned_atoms is None else self.aligned_atoms
        if len(atoms) < 3 or atoms.min() < 0 or atoms.max() >= n_atoms:
            raise DataError(f"cannot align on atoms {atoms.tolist()} of {n_atoms}", "give at least three atom indices of the molecule")
        reference = frames[0]
        for _ in range(3):  # the mean moves little once frames are aligned to a mean
            reference = align(frames, reference, atoms).mean(axis=0)
        aligned = align(frames, reference, atoms).reshape(len(frames), -1)
        mean, scale = aligned.mean(axis=0), aligned.std(axis=0)
        if self.isotropic:
            scale = np.full_like(scale, np.sqrt((scale**2).mean()))
        require_variation(scale, 0.0, [f"{'xyz'[i % 3]} of atom {i // 3}" for i in range(len(scale))])
        fitted = copy.copy(self)
        fitted.n_atoms, fitted.aligned_atoms = n_atoms, atoms
        fitted._reference, fitted._mean, fitted._scale = reference, mean, scale
        return fitted

    def encode(self, positions: Array) -> Array:
        mean, scale = self._learned()
        if self._reference is None or self.aligned_atoms is None:
            raise not_fitted(self)
        aligned = align(as_frames(positions, (self.dimension // 3, 3)), self._reference, self.aligned_atoms)
        return (aligned.reshape(len(aligned), -1) - mean) / scale

    def decode(self, x: Array) -> Array:
        mean, scale = self._learned()
        return (as_vectors(x, self.dimension) * scale + mean).reshape(-1, self.dimension // 3, 3)

    def log_volume(self, x: Array) -> Array:
        return np.full(len(as_vectors(x, self.dimension)), np.log(self._learned()[1]).sum())

    def coordinate_of(self, cv: CollectiveVariable) -> int | None:
        return None

    def standardize(self, index: int, values: Array) -> Array:
        mean, scale = self._learned()
        return np.asarray((np.asarray(values, dtype=np.float64) - mean[index]) / scale[index])

    def scale_of(self, index: int) -> float:
        return float(self._learned()[1][index])

    def to_dict(self) -> dict[str, Any]:
        atoms = None if self.aligned_atoms is None else self.aligned_atoms.tolist()
        return {"kind": "cartesian", "n_atoms": self.n_atoms, "atoms": atoms, "isotropic": self.isotropic}

    def arrays(self) -> dict[str, Array]:
        if self._reference is None:
            return {}
        mean, scale = self._learned()
        return {"reference": self._reference, "mean": mean, "scale": scale}

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Cartesian:
        restored = cls(None, data["atoms"], data["isotropic"])
        restored.n_atoms = data["n_atoms"]
        restored._take(arrays)
        return restored

    def _take(self, arrays: Mapping[str, Array]) -> None:
        if arrays:
            self._reference, self._mean, self._scale = arrays["reference"], arrays["mean"], arrays["scale"]

    def _learned(self) -> tuple[Array, Array]:
        if self._mean is None or self._scale is None:
            raise not_fitted(self)
        return self._mean, self._scale

    def __str__(self) -> str:
        return f"Cartesian: {self.n_atoms or '?'} atoms{'' if self._mean is not None else ', not fitted'}"


def align(positions: Array, reference: Array, atoms: npt.NDArray[np.int64]) -> Array:
    """Return every frame moved rigidly onto ``reference`` with the least squared distance over ``atoms``.

    Kabsch, Acta Cryst. A 32, 922 (1976): R = V diag(1, 1, d) U^T from the singular vectors of the covariance, with
    d = +-1 such that R is a rotation, never a reflection.

    Parameters
    ----------
    positions : (n, n_atoms, 3).
    reference : (n_atoms, 3).
    atoms : indices that are fitted.
    """
    center = reference[atoms].mean(axis=0)
    moved = positions - positions[:, atoms].mean(axis=1, keepdims=True)
    covariance = np.einsum("nai,aj->nij", moved[:, atoms], reference[atoms] - center)
    u, _, vt = np.linalg.svd(covariance)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return np.asarray(moved @ (u @ vt) + center)
