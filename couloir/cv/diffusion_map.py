r"""Collective variables discovered in unbiased data: diffusion maps with an out-of-sample formula.

With features y of every frame and the kernel k(y, y') = exp(-|y - y'|^2 / 4 eps), a random walk on landmarks j, each of
which stands for w_j frames, has transition probabilities (Coifman & Lafon, Appl. Comput. Harmon. Anal. 21, 5 (2006), sec. 3)

    P_ij = k_ij v_j / sum_l k_il v_l,    v_j = w_j / q_j^alpha,    q_j = sum_l k_jl w_l .

Its slowest eigenvectors psi are the coordinates; a new frame takes P of itself (Nystroem), which here is a softmax:

    Phi(y) = sum_j softmax_j(-|y - y_j|^2 / 4 eps + log v_j) psi_j / lambda .

alpha = 1 forgets the density of the data (geometry alone); alpha = 1/2 makes the walk the overdamped dynamics in the free
energy of the features (Nadler et al., Appl. Comput. Harmon. Anal. 21, 113 (2006)); alpha = 0 stresses the density most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from couloir.cv import _diffusion
from couloir.cv._native import check_name, constant
from couloir.cv.base import CollectiveVariable
from couloir.cv.features import Features, features_from_config
from couloir.errors import ConfigError, CouloirError, DataError, Finding
from couloir.streams import stream
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    import mdtraj
    import openmm

_CHUNK = 4096
"""Frames evaluated at once: 4096 x 1000 landmarks x 8 bytes = 33 MB."""
_FEW = 4


@dataclass(frozen=True)
class DiffusionCoordinate(CollectiveVariable):
    """One coordinate of a fitted diffusion map, as a CV: zero mean and unit variance over the data it was learned from.

    As a bias it runs through OpenMM's PythonForce (see :mod:`couloir.cv.custom`), at 1 to 3 ms per step with 1000 landmarks.

    Attributes
    ----------
    features : what the positions become first.
    landmarks : (n_landmarks, n_features).
    log_weights : (n_landmarks,) log v_j.
    coefficients : (n_landmarks,) psi_j / lambda, shifted and scaled.
    bandwidth : eps, in squared units of the features.
    """

    features: Features
    landmarks: tuple[tuple[float, ...], ...] = field(repr=False)
    log_weights: tuple[float, ...] = field(repr=False)
    coefficients: tuple[float, ...] = field(repr=False)
    bandwidth: float
    name: str = "slow"
    unit: str = field(default="", init=False, repr=False)
    period: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if isinstance(self.features, Mapping):
            object.__setattr__(self, "features", Features.from_dict(self.features))
        sizes = (len(self.landmarks), len(self.log_weights), len(self.coefficients))
        if len(set(sizes)) != 1 or not sizes[0] or {len(row) for row in self.landmarks} != {len(self.features)}:
            raise DataError(f"{self.name!r} has {sizes} landmarks, weights and coefficients of {len(self.features)} features")

    @cached_property
    def _arrays(self) -> tuple[Array, Array, Array]:
        return np.array(self.landmarks), np.array(self.log_weights), np.array(self.coefficients)[:, None]

    def compute(self, positions: Any, xp: Any) -> Any:
        parts = [
            nystroem(self.features.compute(positions[i : i + _CHUNK], xp), *self._arrays, self.bandwidth, xp)[:, 0]
            for i in range(0, max(len(positions), 1), _CHUNK)
        ]
        return parts[0] if len(parts) == 1 else xp.concatenate(parts)

    def value_and_gradient(self, positions: Array) -> tuple[Array, Array]:
        """Return values and gradients as every CV does; for raw coordinates in closed form, which is many times faster.

        With p = softmax_j, grad Phi = sum_j p_j (c_j - Phi) y_j / 2 eps.
        """
        if len(self.features.indices) < len(self.features):
            return super().value_and_gradient(positions)
        batch = np.asarray(positions, dtype=np.float64)
        batch = batch[None] if batch.ndim == 2 else batch
        centres, _, coefficients = self._arrays
        p = _softmax(self.features.compute(batch, np), centres, self._arrays[1], self.bandwidth, np)
        values = (p * coefficients[:, 0]).sum(axis=1)
        pull = p * (coefficients[:, 0] - values[:, None])
        gradient = np.zeros_like(batch)
        for k, (index, scale) in enumerate(zip(self.features.indices, self.features.scales, strict=True)):
            gradient[:, 0, index] = (pull * centres[:, k]).sum(axis=1) / (2 * self.bandwidth * scale)
        return values, gradient

    def to_dict(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {"type": "diffusion_map", **plain, "features": self.features.to_dict()}

    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        import torch

        from couloir.cv.custom import FunctionCV

        if max(self.features.indices, default=0) > 2:
            raise DataError(f"{self.name!r} needs more than three coordinates of a particle", "use a toy engine")
        atoms = self.features.atoms
        reduced = DiffusionCoordinate(
            self.features.on(atoms), self.landmarks, self.log_weights, self.coefficients, self.bandwidth, self.name
        )
        return FunctionCV(lambda x: reduced.compute(x, torch), self.name, atoms=atoms).to_openmm_energy(expression, parameters)


def nystroem(y: Any, landmarks: Array, log_weights: Array, coefficients: Array, bandwidth: float, xp: Any) -> Any:
    """Return softmax_j(-|y - y_j|^2 / 4 eps + log v_j) @ coefficients, (n, n_coordinates) for features y (n, n_features)."""
    weights = _softmax(y, landmarks, log_weights, bandwidth, xp)
    columns = constant(coefficients, y, xp)
    if columns.shape[1] == 1:
        return (weights * columns[:, 0]).sum(axis=1)[:, None]
    return weights @ columns


def _softmax(y: Any, landmarks: Array, log_weights: Array, bandwidth: float, xp: Any) -> Any:
    """Return softmax_j(-|y - y_j|^2 / 4 eps + log v_j), (n, n_landmarks)."""
    centres = constant(landmarks, y, xp)
    # For few features products are as fast one by one, and then no last bit depends on how many frames come together,
    # as it does in a matrix product; toy walkers must not feel their neighbours.
    few = centres.shape[1] <= _FEW
    product = sum(y[:, k, None] * centres[:, k] for k in range(centres.shape[1])) if few else y @ centres.T
    # |y|^2 is common to all landmarks of a frame and drops out of the softmax
    exponents = (2 * product - (centres * centres).sum(axis=1)) / (4 * bandwidth) + constant(log_weights, y, xp)
    exponents = xp.exp(exponents - xp.amax(exponents, axis=1)[:, None])
    return exponents / exponents.sum(axis=1)[:, None]


@dataclass(frozen=True, eq=False)
class FittedDiffusionMap:
    """A diffusion map learned from data; its coordinates are collective variables.

    Attributes
    ----------
    features, landmarks, log_weights, bandwidth : as in :class:`DiffusionCoordinate`.
    eigenvalues : (n_coordinates,) of the walk, slowest first; the trivial 1 is left out.
    eigenvectors : (n_landmarks, n_coordinates) with zero mean and unit variance over the data.
    coefficients : (n_landmarks, n_coordinates).
    dimension : of the data, as the kernel sum sees it (Berry, Giannakis & Harlim 2015), at this bandwidth.
    n_frames : how many frames were given.
    warnings : what should be known before it is used.
    """

    features: Features
    landmarks: Array
    log_weights: Array
    bandwidth: float
    eigenvalues: Array
    eigenvectors: Array
    coefficients: Array
    dimension: float
    n_frames: int
    warnings: tuple[Finding, ...] = ()

    @property
    def timescales(self) -> Array:
        """Relaxation times -eps / ln(lambda) (n_coordinates,) of the walk, in squared units of the features; only ratios mean much."""
        return _diffusion.timescales(self.eigenvalues, self.bandwidth)

    @property
    def gaps(self) -> Array:
        """Ratios of neighbouring timescales (n_coordinates - 1,)."""
        return _diffusion.gaps(self.eigenvalues, self.bandwidth)

    @property
    def suggested(self) -> int:
        """Number of coordinates before the largest gap."""
        return int(np.argmax(self.gaps)) + 1

    def coordinate(self, index: int = 1, name: str = "slow") -> DiffusionCoordinate:
        """Return coordinate number ``index`` (from 1, slowest first) as a CV.

        Raises
        ------
        DataError : there is no such coordinate.
        """
        if not 1 <= index <= len(self.eigenvalues):
            raise DataError(f"there is no diffusion coordinate {index}", f"count from 1 to {len(self.eigenvalues)}, or fit more")
        return DiffusionCoordinate(
            self.features,
            tuple(map(tuple, self.landmarks.tolist())),
            tuple(self.log_weights.tolist()),
            tuple(self.coefficients[:, index - 1].tolist()),
            self.bandwidth,
            name,
        )

    def __str__(self) -> str:
        rows = [
            f"Diffusion map of {self.n_frames} frames: {self.features}; {len(self.landmarks)} landmarks, "
            f"bandwidth {self.bandwidth:.3g}, dimension {self.dimension:.1f}",
            "  coordinate  eigenvalue  timescale  gap to the next",
        ]
        for i, (value, time) in enumerate(zip(self.eigenvalues, self.timescales, strict=True)):
            gap = f"{self.gaps[i]:15.2f}" if i < len(self.gaps) else ""
            rows.append(f"  {i + 1:10d}  {value:10.6f}  {time:9.3g}  {gap}".rstrip())
        return "\n".join([*rows, f"  suggested: {self.suggested} coordinate(s)", *(f"  {warning}" for warning in self.warnings)])


@dataclass(frozen=True)
class DiffusionMap:
    """How to learn a diffusion map; :meth:`fit` does it.

    Parameters
    ----------
    features : what frames are compared by.
    n_coordinates : how many coordinates to compute (at least 2, to see a gap).
    alpha : 1 forgets the density of the data, 1/2 follows its free energy (see the module).
    bandwidth : eps in squared units of the features, or ``"auto"``: see :func:`couloir.cv._diffusion.choose_bandwidth`.
        A gap in the data that is wider than the kernel becomes the first coordinate; a finding then names a bandwidth that bridges it.
    n_landmarks : frames that stand for all others; with fewer frames than this, all are landmarks.
    selection : landmarks by ``"farthest"`` point, which keeps rare structures, or ``"random"``.

    Raises
    ------
    DataError : a setting is out of range.
    """

    features: Features
    n_coordinates: int = 6
    alpha: float = 1.0
    bandwidth: float | Literal["auto"] = "auto"
    n_landmarks: int = 1000
    selection: Literal["farthest", "random"] = "farthest"

    def __post_init__(self) -> None:
        if self.n_coordinates < 2 or self.n_landmarks < self.n_coordinates + 2:
            raise DataError(
                f"{self.n_coordinates} coordinates of {self.n_landmarks} landmarks", "ask for 2 or more, of many more landmarks"
            )
        if not 0 <= self.alpha <= 1:
            raise DataError(f"alpha = {self.alpha} is not between 0 and 1", "use 1 for geometry, 0.5 for free-energy barriers")
        if self.bandwidth != "auto" and (isinstance(self.bandwidth, str) or not self.bandwidth > 0):
            raise DataError(f"bandwidth = {self.bandwidth!r} is not a positive number", 'or use "auto"')
        if self.selection not in ("farthest", "random"):
            raise DataError(f"unknown selection {self.selection!r} of landmarks", "use 'farthest' or 'random'")

    def fit(self, data: Array | Trajectory, *, seed: int) -> FittedDiffusionMap:
        """Learn the map from unbiased frames.

        Parameters
        ----------
        data : positions (n_frames, n_atoms, 3) nm, or a trajectory.

        Raises
        ------
        DataError : too few frames, or frames that are not finite or all the same, or that fall into disconnected sets.
        """
        y = self._features_of(data)
        picks, counts = _diffusion.landmarks(y, min(self.n_landmarks, len(y)), self.selection == "farthest", stream(seed, "diffusion_map"))
        squared = _diffusion.squared_distances(y[picks])
        epsilon = _diffusion.choose_bandwidth(squared) if self.bandwidth == "auto" else float(self.bandwidth)
        kept, warnings = _diffusion.connected(squared, counts, epsilon)
        picks, counts, squared = picks[kept], counts[kept], squared[np.ix_(kept, kept)]
        if len(picks) < self.n_coordinates + 2:
            raise DataError(f"only {len(picks)} different frames are left for {self.n_coordinates} coordinates", "give more data")
        q = np.exp(-squared / (4 * epsilon)) @ counts
        log_weights = np.log(counts) - self.alpha * np.log(q)
        transition = _diffusion.transition_matrix(y[picks], counts, q, self.alpha, epsilon)
        eigenvalues, psi = _diffusion.slowest(transition, self.n_coordinates)
        if eigenvalues[-1] < 1e-6:
            raise DataError(f"the bandwidth {epsilon:.3g} leaves fewer than {self.n_coordinates} coordinates", "make it smaller")
        raw = psi / eigenvalues
        everywhere = np.concatenate(
            [nystroem(y[i : i + _CHUNK], y[picks], log_weights, raw, epsilon, np) for i in range(0, len(y), _CHUNK)]
        )
        mean, scale = everywhere.mean(axis=0), everywhere.std(axis=0) * _diffusion.signs(everywhere, y)
        warnings += _diffusion.spectral_findings(eigenvalues, epsilon, everywhere)
        warnings += _diffusion.gap_findings(psi, counts, squared, epsilon)
        return FittedDiffusionMap(
            self.features, y[picks], log_weights, epsilon, eigenvalues, (psi - mean) / scale, (raw - mean) / scale,
            2 * _diffusion.kernel_slope(squared, epsilon), len(y), tuple(warnings),
        )  # fmt: skip

    def _features_of(self, data: Array | Trajectory) -> Array:
        positions = np.asarray(data.positions if isinstance(data, Trajectory) else data, dtype=np.float64)
        if positions.ndim != 3 or len(positions) < self.n_coordinates + 2:
            raise DataError(
                f"positions have shape {positions.shape}, expected (n_frames, n_atoms, 3) with {self.n_coordinates + 2} frames or more"
            )
        if not np.isfinite(positions).all():
            bad = int(np.flatnonzero(~np.isfinite(positions).all(axis=(1, 2)))[0])
            raise DataError(f"positions of frame {bad} are not finite", "leave that frame out")
        if max((*self.features.atoms, -1)) >= positions.shape[1] or max((*self.features.indices, -1)) >= positions.shape[2]:
            raise DataError(f"the features use atoms or coordinates that positions of shape {positions.shape} do not have")
        y = np.concatenate([self.features.compute(positions[i : i + _CHUNK], np) for i in range(0, len(positions), _CHUNK)])
        if not np.ptp(y, axis=0).max() > 1e-9:
            raise DataError("all frames have the same features", "give frames of a simulation that moves")
        return y


@dataclass(frozen=True)
class DiffusionMapPlan:
    """What the table of a ``diffusion_map`` in a run file asks for, before there are data; made by :func:`plan_from_config`.

    Attributes
    ----------
    kinds, select : features by kind, and the atoms they are limited to.
    topology : None for toy systems.
    index : which coordinate.
    settings : further arguments of :class:`DiffusionMap`.
    name : of the CV.
    """

    kinds: tuple[str, ...]
    select: Any
    topology: mdtraj.Topology | None = field(repr=False)
    index: int
    settings: Mapping[str, Any]
    name: str

    def fit(self, positions: Array, *, seed: int) -> tuple[FittedDiffusionMap, DiffusionCoordinate]:
        """Return the map learned from positions (n_frames, n_atoms, 3) and the coordinate asked for."""
        frames = np.asarray(positions, dtype=np.float64)
        if frames.ndim != 3 or not len(frames):
            raise DataError(f"[cv.{self.name}]: positions have shape {frames.shape}, expected (n_frames, n_atoms, 3)")
        features = features_from_config(
            self.kinds, self.topology, self.select, reference=frames[0], n_coordinates=frames.shape[2]
        )  # fmt: skip
        n_coordinates = max(6, self.index + 1)
        fitted = DiffusionMap(features, n_coordinates, **self.settings).fit(frames, seed=seed)
        return fitted, fitted.coordinate(self.index, self.name)


def plan_from_config(table: Mapping[str, Any], topology: mdtraj.Topology | None, name: str) -> DiffusionMapPlan:
    """Check the table ``[cv.NAME]`` of type ``diffusion_map`` before anything is simulated.

    Parameters
    ----------
    table : ``features`` and, optionally, ``index``, ``select``, ``alpha``, ``bandwidth``, ``landmarks``.

    Raises
    ------
    ConfigError : a key is unknown or missing, or a value does not fit.
    SelectionError : a selector matches no atom.
    """
    from couloir.cv.registry import check_keys

    where = f"[cv.{name}]"
    check_keys("diffusion_map", table, where)
    kinds, index = table["features"], table.get("index", 1)
    settings = {
        to: table[key] for key, to in (("alpha", "alpha"), ("bandwidth", "bandwidth"), ("landmarks", "n_landmarks")) if key in table
    }
    if not isinstance(index, int) or isinstance(index, bool) or index < 1:
        raise ConfigError(f"{where} has index = {index!r}", "coordinates count from 1, the slowest")
    try:
        reference = None if topology is None else np.zeros((topology.n_atoms, 3))
        features = features_from_config(kinds, topology, table.get("select"), reference=reference, n_coordinates=1)
        DiffusionMap(features, max(6, index + 1), **settings)
    except CouloirError as error:
        raise type(error)(f"{where}: {error.message}", error.fix) from None
    except TypeError as error:
        raise ConfigError(f"{where} has a value that does not fit: {error}") from None
    return DiffusionMapPlan((kinds,) if isinstance(kinds, str) else tuple(kinds), table.get("select"), topology, index, settings, name)


def fit_from_config(
    table: Mapping[str, Any], topology: mdtraj.Topology | None, positions: Array, name: str, *, seed: int
) -> DiffusionCoordinate:
    """Learn the CV of a table ``[cv.NAME]`` of type ``diffusion_map`` from unbiased positions (n_frames, n_atoms, 3)."""
    return plan_from_config(table, topology, name).fit(positions, seed=seed)[1]
