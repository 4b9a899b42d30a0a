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

from couloir.cv._native import check_name, constant
from couloir.cv.base import CollectiveVariable
from couloir.cv.features import Features, features_from_config
from couloir.errors import ConfigError, CouloirError, DataError, Finding, ModelError
from couloir.streams import stream
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    import mdtraj
    import openmm

_CHUNK = 4096
"""Frames evaluated at once: 4096 x 1000 landmarks x 8 bytes = 33 MB."""
_LINK = np.log(1e3)
"""Landmarks are connected where the kernel is above 1e-3."""
_RARE = 0.01
"""A disconnected set with fewer than this share of the frames is set aside, not an error."""
_GAP = 1.5
"""A ratio of neighbouring timescales below this is no gap."""


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
    centres = constant(landmarks, y, xp)
    # |y|^2 is common to all landmarks of a frame and drops out of the softmax
    exponents = (2 * (y @ centres.T) - (centres * centres).sum(axis=1)) / (4 * bandwidth) + constant(log_weights, y, xp)
    exponents = xp.exp(exponents - xp.amax(exponents, axis=1)[:, None])
    return (exponents @ constant(coefficients, y, xp)) / exponents.sum(axis=1)[:, None]


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
        return _timescales(self.eigenvalues, self.bandwidth)

    @property
    def gaps(self) -> Array:
        """Ratios of neighbouring timescales (n_coordinates - 1,)."""
        return _gaps(self.eigenvalues, self.bandwidth)

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
    bandwidth : eps in squared units of the features, or ``"auto"``: see :func:`choose_bandwidth`.
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
        picks, counts = _landmarks(y, min(self.n_landmarks, len(y)), self.selection == "farthest", stream(seed, "diffusion_map"))
        squared = _squared_distances(y[picks])
        epsilon = choose_bandwidth(squared) if self.bandwidth == "auto" else float(self.bandwidth)
        kept, warnings = _connected(squared < 4 * epsilon * _LINK, counts, epsilon)
        picks, counts, squared = picks[kept], counts[kept], squared[np.ix_(kept, kept)]
        if len(picks) < self.n_coordinates + 2:
            raise DataError(f"only {len(picks)} different frames are left for {self.n_coordinates} coordinates", "give more data")
        q = np.exp(-squared / (4 * epsilon)) @ counts
        log_weights = np.log(counts) - self.alpha * np.log(q)
        transition = _transition_matrix(y[picks], counts, q, self.alpha, epsilon)
        eigenvalues, psi = _slowest(transition, self.n_coordinates)
        if eigenvalues[-1] < 1e-6:
            raise DataError(f"the bandwidth {epsilon:.3g} leaves fewer than {self.n_coordinates} coordinates", "make it smaller")
        raw = psi / eigenvalues
        everywhere = np.concatenate(
            [nystroem(y[i : i + _CHUNK], y[picks], log_weights, raw, epsilon, np) for i in range(0, len(y), _CHUNK)]
        )
        mean, scale = everywhere.mean(axis=0), everywhere.std(axis=0) * _signs(everywhere, y)
        warnings += _spectral_findings(eigenvalues, epsilon, everywhere)
        return FittedDiffusionMap(
            self.features, y[picks], log_weights, epsilon, eigenvalues, (psi - mean) / scale, (raw - mean) / scale,
            2 * _slope(squared, epsilon), len(y), tuple(warnings),
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


def choose_bandwidth(squared_distances: Array) -> float:
    """Return eps where the kernel sum grows fastest, d log S / d log eps, but no less than the scale of near neighbours.

    The first is the rule of Berry, Giannakis & Harlim (Phys. Rev. E 91, 032915 (2015), sec. III), S = sum_ij k_ij.  The second
    gives 95 % of the landmarks eight neighbours with a kernel above 1/e: without it, points in sparse regions become traps
    of the walk, and the slowest coordinates tell them from the rest.

    Parameters
    ----------
    squared_distances : (n, n) between landmarks.
    """
    rows = squared_distances[:: max(1, len(squared_distances) // 400)]
    neighbour = min(8, len(squared_distances) - 1)
    near = float(np.quantile(np.partition(rows, neighbour, axis=1)[:, neighbour], 0.95))
    top = float(rows.max())
    floor = max(near, 1e-9 * top) / 4
    grid = np.geomspace(floor / 16, top, 80)
    return max(floor, float(grid[np.argmax([_slope(rows, epsilon) for epsilon in grid])]))


def _slope(squared: Array, epsilon: float) -> float:
    u = squared / (4 * epsilon)
    kernel = np.exp(-u)
    return float((u * kernel).sum() / kernel.sum())


def _squared_distances(y: Array) -> Array:
    norms = (y * y).sum(axis=1)
    squared = np.maximum(norms[:, None] + norms - 2 * y @ y.T, 0)
    np.fill_diagonal(squared, 0)
    return np.asarray((squared + squared.T) / 2)


def _landmarks(y: Array, n: int, farthest: bool, rng: np.random.Generator) -> tuple[Any, Array]:
    """Return indices of n landmarks (fewer if there are fewer different frames) and how many frames are nearest to each."""
    order = rng.permutation(len(y))
    norms = (y * y).sum(axis=1)
    best, owner, picks = np.full(len(y), np.inf), np.zeros(len(y), dtype=np.intp), [int(order[0])]
    while True:
        squared = np.maximum(norms + norms[picks[-1]] - 2 * (y @ y[picks[-1]]), 0)
        squared[picks[-1]] = 0
        closer = squared < best
        best[closer], owner[closer] = squared[closer], len(picks) - 1
        following = int(np.argmax(best)) if farthest else int(order[len(picks) % len(y)])
        if len(picks) == n or (farthest and best[following] < 1e-20 * norms.max()):
            break
        picks.append(following)
    counts = np.bincount(owner, minlength=len(picks)).astype(np.float64)
    used = counts > 0  # a random landmark may repeat another frame
    return np.array(picks)[used], counts[used]


def _connected(linked: Any, counts: Array, epsilon: float) -> tuple[Any, list[Finding]]:
    """Return the landmarks to keep; sets that hold few frames are left out with a finding, larger ones are an error."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n_sets, of = connected_components(csr_array(linked), directed=False)
    shares = np.bincount(of, counts, n_sets) / counts.sum()
    largest = int(np.argmax(shares))
    if n_sets == 1:
        return np.flatnonzero(of == largest), []
    shown = ", ".join(f"{share:.1%}" for share in np.sort(shares)[::-1][:5])
    if (shares >= _RARE).sum() > 1:
        raise DataError(
            f"the data fall into {n_sets} sets that the kernel does not connect at bandwidth {epsilon:.3g} (shares of frames: {shown})",
            "simulate until they are connected, learn each by itself, leave out a feature that separates them, or widen the bandwidth",
        )
    message = f"{1 - shares[largest]:.2%} of the frames, in {n_sets - 1} set(s), are not connected to the rest and were left out"
    return np.flatnonzero(of == largest), [Finding("disconnected-frames", message, "sample more around them")]


def _transition_matrix(y: Array, counts: Array, q: Array, alpha: float, epsilon: float) -> Array:
    import pydiffmap.diffusion_map as pydiffmap

    remaining = iter(counts)  # pydiffmap asks for weights point by point, in order
    walk = pydiffmap.DiffusionMap.from_sklearn(
        alpha=alpha, k=len(y), epsilon=epsilon, weight_fxn=lambda _: next(remaining), density_fxn=lambda _: q,
        neighbor_params={"algorithm": "brute"},
    ).construct_Lmat(y)  # fmt: skip
    transition = np.eye(len(y)) + epsilon * walk.L.toarray()
    if not np.isfinite(transition).all():
        raise ModelError("the transition matrix of the diffusion map is not finite", "give a larger bandwidth")
    return np.asarray(transition)


def _slowest(transition: Array, n: int) -> tuple[Array, Array]:
    """Return the n largest eigenvalues below 1 and right eigenvectors of a reversible transition matrix."""
    from scipy.linalg import eigh

    # detailed balance pi_i P_ij = pi_j P_ji makes sqrt(P_ij P_ji) a symmetric matrix with the same eigenvalues
    size = len(transition)
    values, vectors = eigh(np.sqrt(np.maximum(transition * transition.T, 0)), subset_by_index=[size - n - 1, size - 1])
    # its eigenvector of eigenvalue 1 is sqrt(pi), by which the others are divided
    psi = vectors[:, :-1] / vectors[:, -1:]
    return values[:-1][::-1], psi[:, ::-1]


def _signs(values: Array, y: Array) -> Array:
    """Return +-1 per coordinate so that it grows with the feature it is most correlated with."""
    centred = y - y.mean(axis=0)
    spread = centred.std(axis=0)
    correlation = centred.T @ (values - values.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)[:, None]
    strongest = correlation[np.argmax(np.abs(correlation), axis=0), np.arange(values.shape[1])]
    return np.where(strongest < 0, -1.0, 1.0)


def _spectral_findings(eigenvalues: Array, epsilon: float, values: Array) -> list[Finding]:
    found = []
    if (largest := _gaps(eigenvalues, epsilon).max()) < _GAP:
        message = f"no gap among the {len(eigenvalues)} timescales (largest ratio {largest:.2f})"
        found.append(Finding("no-spectral-gap", message, "choose other features, or check what a coordinate means"))
    squares = np.sort((values - values.mean(axis=0)) ** 2, axis=0)
    shares = squares[-max(1, len(squares) // 100) :].sum(axis=0) / squares.sum(axis=0)
    for i in np.flatnonzero(shares > 0.5):
        message = f"half of the variance of coordinate {i + 1} comes from one frame in a hundred: it tells a few frames from the rest"
        found.append(Finding("coordinate-of-few-frames", message, "sample more around them, or give a larger bandwidth"))
    return found


def _timescales(eigenvalues: Array, epsilon: float) -> Array:
    return np.asarray(-epsilon / np.log(np.clip(eigenvalues, 1e-12, 1 - 1e-15)))


def _gaps(eigenvalues: Array, epsilon: float) -> Array:
    times = _timescales(eigenvalues, epsilon)
    return np.asarray(times[:-1] / times[1:])
