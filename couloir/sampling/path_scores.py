"""Scores of generated paths: what each would have to answer for in front of the simulation it imitates.

A generated path is compared with molecular dynamics frame by frame (energy, bonds, angles) and step by step (how far
two successive frames lie apart).  The size of a step is the root-mean-square displacement per atom after optimal
superposition (Kabsch, Acta Cryst. A 32, 922 (1976)) for molecules, and the distance for toys.  Nothing is dropped:
every path keeps its scores and the gates it failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    import mdtraj
    import pandas as pd

Mask = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

_BOND_FLOOR = 1e-3  # nm: a bond held rigid has no spread of its own
_ANGLE_FLOOR = 1e-2  # rad
_MD_FRAMES = 2000  # enough for means, spreads and a 99.9th percentile of energies


@dataclass(frozen=True, eq=False)
class PathScores:
    """Scores of paths, one row per path; infinite for a path that has coordinates which are not finite.

    Attributes
    ----------
    energies : (n, frames) potential energy, kJ/mol; NaN when it was not evaluated.
    energy_max, energy_mean : (n,) the same over the frames.
    bond_deviation, angle_deviation : (n,) largest deviation from the MD mean, in MD standard deviations; NaN without a topology.
    jump : (n,) largest step between successive frames, nm.
    jump_quantile : (n,) share of MD steps that are smaller.
    jump_ratio : (n,) ``jump`` over the 99.9th percentile of MD steps.
    seam_ratio : (n,) the same for the steps into and out of imposed frames; NaN when none was imposed.
    passed : gate -> (n,) whether the path passed it; gates that could not be judged are absent.
    thresholds : gate -> the limit that was applied.
    not_judged : gate -> why it could not be judged.
    """

    energies: Array
    energy_max: Array
    energy_mean: Array
    bond_deviation: Array
    angle_deviation: Array
    jump: Array
    jump_quantile: Array
    jump_ratio: Array
    seam_ratio: Array
    passed: dict[str, Mask]
    thresholds: dict[str, float]
    not_judged: dict[str, str]

    def __len__(self) -> int:
        return len(self.jump)

    @property
    def passed_all(self) -> Mask:
        """Whether each path passed every gate that was judged, (n,)."""
        return np.array(np.logical_and.reduce(list(self.passed.values())), dtype=bool)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per path: its scores, and ``failed``, the gates it failed."""
        import pandas as pd

        names = (
            "energy_max", "energy_mean", "bond_deviation", "angle_deviation", "jump", "jump_quantile", "jump_ratio", "seam_ratio",
        )  # fmt: skip
        failed = [", ".join(gate for gate, ok in self.passed.items() if not ok[i]) for i in range(len(self))]
        return pd.DataFrame({**{name: getattr(self, name) for name in names}, "failed": failed})

    def __str__(self) -> str:
        gates = ", ".join(f"{gate} {int(ok.sum())}" for gate, ok in self.passed.items())
        head = f"PathScores: {int(self.passed_all.sum())} of {len(self)} paths passed every gate that was judged ({gates})"
        table = self.to_dataframe().dropna(axis=1, how="all").to_string(max_rows=20, float_format=lambda x: f"{x:.3g}")
        return "\n".join([head, *self.unjudged_lines(), table])

    def unjudged_lines(self) -> list[str]:
        """Return one line per gate that was not judged, with the reason."""
        return [f"  gate not judged: {gate} ({why})" for gate, why in self.not_judged.items()]


def score_paths(
    paths: Array,
    *,
    md: Trajectory | Sequence[Trajectory],
    engine: Any = None,
    topology: mdtraj.Topology | None = None,
    atoms: Sequence[int] | IntArray | None = None,
    imposed: Any = None,
    stride: float | None = None,
    max_energy: float = 25.0,
    max_deviation: float = 7.0,
    max_jump: float = 1.5,
    max_seam: float = 1.5,
) -> PathScores:
    """Score paths against molecular dynamics of the same system.

    Parameters
    ----------
    paths : (n, frames, n_atoms, 3) nm; toys (n, frames, 1, n_dim).
    md : trajectories to compare with, of all atoms or of those in ``atoms``, at the paths' stride or, with ``stride``, at one
        that divides it.
    engine : evaluates energies, when the paths hold all atoms; its period, if a toy's coordinate has one, is respected.
    topology : of the whole molecule, or of the atoms of the paths, for bonds and angles; default that of the MD.
    atoms : which atoms of the molecule the paths hold; default all.
    imposed : (frames,) or (n, frames), True for frames that were imposed, not generated.
    stride : ps between the frames of the paths; default that of the MD.
    max_energy : gate ``energy``: kT that the highest frame may lie above the 99.9th percentile of MD energies.
    max_deviation : gates ``bonds`` and ``angles``: MD standard deviations (at least 0.001 nm and 0.01 rad are counted as one).
    max_jump, max_seam : gates ``jump`` and ``seam``: largest step over the 99.9th percentile of MD steps.

    Raises
    ------
    DataError : shapes, atoms or strides of paths and MD do not fit, or there are too few frames to compare with.
    """
    x = np.asarray(paths, dtype=np.float64)
    if x.ndim != 4 or x.shape[1] < 2:
        raise DataError(f"paths have shape {x.shape}, expected (n, frames, n_atoms, 3) with at least two frames")
    trajectories = [md] if isinstance(md, Trajectory) else list(md)
    parts = [_thinned(t, stride) for t in trajectories]
    whole = topology if topology is not None else next((t.topology for t in trajectories), None)
    kept = None if atoms is None else np.asarray(atoms, dtype=np.int64)
    reduced = [p if _holds_only(kept, p.shape[1]) else p[:, kept] for p in parts]
    if not reduced or any(p.shape[1:] != x.shape[2:] for p in reduced):
        shapes = {p.shape[1:] for p in reduced}
        raise DataError(f"paths have frames of shape {x.shape[2:]}, MD has {shapes}", "name the atoms of the paths with atoms=")
    finite = np.array(np.isfinite(x).all(axis=(1, 2, 3)), dtype=bool)
    safe = np.where(finite[:, None, None, None], x, x[finite][:1] if finite.any() else 0.0)
    steps = _Steps(reduced, whole is not None, getattr(getattr(engine, "potential", None), "periods", None))
    taken = steps.between(safe)
    scores = {"jump": taken.max(axis=1)}
    scores["jump_quantile"] = np.searchsorted(steps.md, scores["jump"], side="left") / len(steps.md)
    scores["jump_ratio"] = scores["jump"] / steps.scale
    scores["seam_ratio"] = _at_seams(taken, imposed) / steps.scale
    numbered = whole is None or _holds_only(kept, whole.n_atoms)
    scores |= _geometry(safe, reduced, whole, None if numbered else kept)
    energies, ceiling = _energies(safe, parts, engine, engine is not None and x.shape[2] == len(engine.masses))
    energies = np.where(finite[:, None] | np.isnan(energies), energies, np.inf)
    scores["energy_max"], scores["energy_mean"] = energies.max(axis=1), energies.mean(axis=1)
    for name, values in scores.items():
        scores[name] = np.where(finite | np.isnan(values), values, np.inf)
    limits = {
        "energy": (scores["energy_max"], ceiling + max_energy * (engine.kT if engine is not None else 0.0), max_energy),
        "bonds": (scores["bond_deviation"], max_deviation, max_deviation),
        "angles": (scores["angle_deviation"], max_deviation, max_deviation),
        "jump": (scores["jump_ratio"], max_jump, max_jump),
        "seam": (scores["seam_ratio"], max_seam, max_seam),
    }
    judged = {gate: entry for gate, entry in limits.items() if not np.isnan(entry[0]).all()}
    # a path without a seam, among others with one, has nothing to fail
    passed = {"finite": finite, **{gate: (values <= limit) | np.isnan(values) for gate, (values, limit, _) in judged.items()}}
    reasons = _why_not(engine, x.shape[2], whole is not None, imposed is not None)
    return PathScores(
        energies, **scores, passed=passed, thresholds={gate: given for gate, (_, _, given) in judged.items()},
        not_judged={gate: reasons[gate] for gate in limits if gate not in judged},
    )  # fmt: skip


def _why_not(engine: Any, n_atoms: int, molecular: bool, imposed: bool) -> dict[str, str]:
    """Return, for every gate that may go unjudged, the reason if it did."""
    energy = "no engine evaluates them" if engine is None else f"the paths hold {n_atoms} of {len(engine.masses)} atoms"
    geometry = "among the atoms of the paths" if molecular else "without a topology"
    return {
        "energy": energy,
        "bonds": f"there are none {geometry}",
        "angles": f"there are none {geometry}",
        "jump": "the paths have no steps",
        "seam": "no imposed frame has a generated neighbour" if imposed else "no frames were said to be imposed",
    }


def _holds_only(atoms: IntArray | None, n_atoms: int) -> bool:
    """Return whether something of ``n_atoms`` atoms holds just these atoms of the molecule, and so numbers them from zero."""
    return atoms is None or (len(atoms) == n_atoms and int(atoms.max()) >= n_atoms)


def superposed_distance(a: Array, b: Array) -> Array:
    """Return the root-mean-square distance per atom (n,) of frames a and b (n, n_atoms, 3) after optimal superposition (Kabsch 1976)."""
    a, b = a - a.mean(axis=-2, keepdims=True), b - b.mean(axis=-2, keepdims=True)
    covariance = np.swapaxes(a, -1, -2) @ b
    singular = np.linalg.svd(covariance, compute_uv=False)
    singular[..., -1] *= np.sign(np.linalg.det(covariance))  # a rotation, not a reflection
    squares = (a**2).sum(axis=(-2, -1)) + (b**2).sum(axis=(-2, -1)) - 2 * singular.sum(axis=-1)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0) / a.shape[-2]))


class _Steps:
    """Sizes of steps between successive frames; ``md`` holds those of the MD, sorted, ``scale`` their 99.9th percentile."""

    def __init__(self, md: Sequence[Array], molecular: bool, periods: Sequence[float | None] | None) -> None:
        self.molecular, self.periods = molecular, periods
        found = [self.between(part[None])[0] for part in md if len(part) > 1]
        self.md = np.sort(np.concatenate(found)) if found else np.zeros(0)
        self.scale = float(np.quantile(self.md, 0.999)) if len(self.md) else 0.0
        if not self.scale > 0:
            raise DataError("the MD holds no two successive frames that differ", "give trajectories that are longer than the paths")

    def between(self, x: Array) -> Array:
        """Return step sizes (n, frames - 1) of paths (n, frames, n_atoms, 3)."""
        if self.molecular:
            flat = superposed_distance(x[:, 1:].reshape(-1, *x.shape[2:]), x[:, :-1].reshape(-1, *x.shape[2:]))
            return flat.reshape(x.shape[0], x.shape[1] - 1)
        step = np.diff(x, axis=1)
        for i, period in enumerate(self.periods or ()):
            if period is not None:
                step[..., i] -= period * np.round(step[..., i] / period)
        return np.asarray(np.sqrt((step**2).sum(axis=(2, 3)) / x.shape[2]))


def _thinned(trajectory: Trajectory, stride: float | None) -> Array:
    every = 1 if stride is None else round(stride / trajectory.stride)
    if every < 1 or (stride is not None and not np.isclose(every * trajectory.stride, stride)):
        raise DataError(f"the MD has a frame every {trajectory.stride:g} ps, which does not divide the paths' stride of {stride:g} ps")
    return trajectory.positions[::every]


def _at_seams(taken: Array, imposed: Any) -> Array:
    """Return the largest step (n,) between an imposed frame and a generated neighbour; NaN where there is none."""
    n, n_steps = taken.shape
    if imposed is None:
        return np.full(n, np.nan)
    mask = np.asarray(imposed, dtype=bool)
    if mask.shape not in ((n_steps + 1,), (n, n_steps + 1)):
        raise DataError(f"imposed has shape {mask.shape}, expected ({n_steps + 1},) or ({n}, {n_steps + 1})")
    seams = np.broadcast_to(mask[..., 1:] != mask[..., :-1], taken.shape)
    largest = np.where(seams, taken, -np.inf).max(axis=1)
    return np.where(seams.any(axis=1), largest, np.nan)


def _geometry(x: Array, md: Sequence[Array], topology: mdtraj.Topology | None, atoms: IntArray | None) -> dict[str, Array]:
    """Return the largest deviation of any bond and angle from its MD mean, in standard deviations, each (n,)."""
    out = {"bond_deviation": np.full(len(x), np.nan), "angle_deviation": np.full(len(x), np.nan)}
    if topology is None:
        return out
    bonds, angles = _bonds_and_angles(topology, atoms)
    reference = np.concatenate(md)
    reference = reference[:: max(1, len(reference) // _MD_FRAMES)]
    frames = x.reshape(-1, *x.shape[2:])
    measures = (("bond_deviation", bonds, _lengths, _BOND_FLOOR), ("angle_deviation", angles, _angles, _ANGLE_FLOOR))
    for name, members, measure, floor in measures:
        if len(members):
            expected = measure(reference, members)
            spread = np.maximum(expected.std(axis=0), floor)
            worst = (np.abs(measure(frames, members) - expected.mean(axis=0)) / spread).max(axis=1)
            out[name] = worst.reshape(x.shape[:2]).max(axis=1)
    return out


def _bonds_and_angles(topology: mdtraj.Topology, atoms: IntArray | None) -> tuple[IntArray, IntArray]:
    """Return bonds (n, 2) and angles (n, 3) among the kept atoms, in the numbering of the paths."""
    index = {int(a): i for i, a in enumerate(range(topology.n_atoms) if atoms is None else atoms)}
    pairs = sorted((index[a.index], index[b.index]) for a, b in topology.bonds if a.index in index and b.index in index)
    neighbours: dict[int, list[int]] = {}
    for i, j in pairs:
        neighbours.setdefault(i, []).append(j)
        neighbours.setdefault(j, []).append(i)
    angles = [(i, j, k) for j, around in sorted(neighbours.items()) for n, i in enumerate(around) for k in around[n + 1 :]]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(angles, dtype=np.int64).reshape(-1, 3)


def _lengths(x: Array, bonds: IntArray) -> Array:
    return np.asarray(np.linalg.norm(x[:, bonds[:, 0]] - x[:, bonds[:, 1]], axis=-1))


def _angles(x: Array, atoms: IntArray) -> Array:
    a, b = x[:, atoms[:, 0]] - x[:, atoms[:, 1]], x[:, atoms[:, 2]] - x[:, atoms[:, 1]]
    return np.asarray(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(axis=-1)))


def _energies(x: Array, md: Sequence[Array], engine: Any, complete: bool) -> tuple[Array, float]:
    """Return energies (n, frames) of the paths and the 99.9th percentile of the MD's; NaN when they cannot be evaluated."""
    if engine is None or not complete:
        return np.full(x.shape[:2], np.nan), np.nan
    reference = np.concatenate(md)
    usual = engine.energies(reference[:: max(1, len(reference) // _MD_FRAMES)])
    found = np.asarray(engine.energies(x.reshape(-1, *x.shape[2:]))).reshape(x.shape[:2])
    return np.where(np.isnan(found), np.inf, found), float(np.quantile(usual, 0.999))
