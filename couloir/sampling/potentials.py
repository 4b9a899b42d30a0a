"""Toy potentials with exact free energies: the systems on which every method is checked against a known answer.

Energies are in kJ/mol, positions in nm, formally; a barrier means something only beside the engine's ``kT``.
Each function returns a :class:`ToyPotential`: a formula (by name), its parameters, and where to look at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir.cv.geometric import Coordinate
from couloir.errors import ConfigError, DataError, nearest
from couloir.sampling import toy_kernels
from couloir.trajectory import Array

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class ToyPotential:
    """An analytic potential, held as the name of its formula and numbers, so that it pickles and compares.

    Attributes
    ----------
    name : what it is called.
    formula : a key of ``couloir.sampling.toy_kernels.KINDS``.
    parameters : numbers of the formula, in its order.
    names : names of the coordinates.
    bounds : (low, high) per coordinate: the box for plots; quadrature starts from it.
    periods : period per coordinate, or None.
    confined : per coordinate, whether the potential binds it; one that is not (a drifting slow coordinate) is
        integrated over its bounds, as if there were walls.
    """

    name: str
    formula: str
    parameters: tuple[float, ...]
    names: tuple[str, ...]
    bounds: tuple[tuple[float, float], ...]
    periods: tuple[float | None, ...] = ()
    confined: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.formula not in toy_kernels.KINDS:
            raise ConfigError(f"unknown toy formula {self.formula!r}{nearest(self.formula, toy_kernels.KINDS)}")
        object.__setattr__(self, "periods", self.periods or (None,) * self.n_dim)
        object.__setattr__(self, "confined", self.confined or (True,) * self.n_dim)
        if not len(self.names) == len(self.bounds) == len(self.periods) == len(self.confined):
            raise DataError(f"{self.name}: names, bounds, periods and confined differ in length")

    @property
    def n_dim(self) -> int:
        """Number of coordinates."""
        return len(self.names)

    def cvs(self) -> tuple[Coordinate, ...]:
        """Return one CV per coordinate, under the coordinate's name."""
        return tuple(Coordinate(index=i, name=n, period=p) for i, (n, p) in enumerate(zip(self.names, self.periods, strict=True)))

    def energy_and_gradient(self, x: Array) -> tuple[Array, Array]:
        """Return energies (n,) in kJ/mol and gradients (n, n_dim) of points x (n, n_dim); (n, 1, n_dim) is taken as well.

        Raises
        ------
        DataError : the points do not have ``n_dim`` coordinates.
        """
        points = np.ascontiguousarray(x, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != self.n_dim:
            raise DataError(f"points of shape {points.shape} do not fit {self.name}, which has {self.n_dim} coordinates")
        points = points.reshape(-1, self.n_dim)
        energy, gradient = np.empty(len(points)), np.empty_like(points)
        toy_kernels.evaluate_many(toy_kernels.KINDS[self.formula], np.array(self.parameters, dtype=float), points, energy, gradient)
        return energy, gradient

    def energy(self, x: Array) -> Array:
        """Return energies (n,) in kJ/mol of points x (n, n_dim)."""
        return self.energy_and_gradient(x)[0]

    def gradient(self, x: Array) -> Array:
        """Return gradients (n, n_dim) in kJ/mol/nm of points x (n, n_dim)."""
        return self.energy_and_gradient(x)[1]

    def exact_free_energy(self, grid: Any, along: int | str | Sequence[int | str] = 0, kT: float = 1.0) -> Array:
        """Return F = -kT ln of the integral of exp(-U/kT) over the other coordinates, minimum 0, kJ/mol.

        Parameters
        ----------
        grid : values (n,) of one coordinate; for a pair, two such arrays (the result is (n, m)).
        along : a coordinate by index or name, or a pair of them.
        kT : kJ/mol.

        Raises
        ------
        DataError : the coordinates do not exist, or the grid does not fit them.
        """
        free = -kT * self._log_marginal(grid, along, kT)
        return np.asarray(free - free.min())

    def exact_density(self, grid: Any, along: int | str | Sequence[int | str] = 0, kT: float = 1.0) -> Array:
        """Return the normalized density of one coordinate (n,) or a pair (n, m) on ``grid``; see :meth:`exact_free_energy`."""
        axes = self._axes(along)
        return np.asarray(np.exp(self._log_marginal(grid, axes, kT) - self._log_normalization(kT)))

    def exact_mean(self, function: Any, kT: float = 1.0) -> float:
        """Return the Boltzmann average of ``function`` (points (n, n_dim) -> (n,)) over the box that holds the density."""
        points, log_weights = self._nodes(list(range(self.n_dim)), kT, np.zeros((1, self.n_dim)))
        log_w = log_weights - self.energy(points) / kT
        w = np.exp(log_w - log_w.max())
        return float(w @ function(points) / w.sum())

    def _axes(self, along: int | str | Sequence[int | str]) -> list[int]:
        given = [along] if isinstance(along, (int, str)) else list(along)
        axes = []
        for axis in given:
            if isinstance(axis, str) and axis not in self.names:
                raise DataError(f"{self.name} has no coordinate {axis!r}{nearest(axis, self.names)}")
            axes.append(self.names.index(axis) if isinstance(axis, str) else int(axis))
        if not 1 <= len(axes) <= 2 or len(set(axes)) < len(axes) or not all(0 <= a < self.n_dim for a in axes):
            raise DataError(f"along = {along!r} is not one coordinate or a pair of {', '.join(self.names)}")
        return axes

    def _log_marginal(self, grid: Any, along: int | str | Sequence[int | str], kT: float) -> Array:
        axes = self._axes(along)
        parts = [np.atleast_1d(np.asarray(g, dtype=float)) for g in (grid if len(axes) == 2 else (grid,))]
        if len(parts) != len(axes) or any(g.ndim != 1 or not len(g) for g in parts):
            raise DataError("grid must be one array of values per coordinate of `along`")
        points = np.zeros((math.prod(len(g) for g in parts), self.n_dim))
        points[:, axes] = np.stack([g.ravel() for g in np.meshgrid(*parts, indexing="ij")], axis=1)
        rest = [i for i in range(self.n_dim) if i not in axes]
        out = self._integral(points, rest, kT)
        return out.reshape([len(g) for g in parts])

    def _log_normalization(self, kT: float) -> float:
        return float(self._integral(np.zeros((1, self.n_dim)), list(range(self.n_dim)), kT)[0])

    def _integral(self, points: Array, rest: list[int], kT: float) -> Array:
        """Log of the integral of exp(-U/kT) over the coordinates ``rest``, with the others as in ``points`` (n, n_dim)."""
        if not rest:
            return -self.energy(points) / kT
        nodes, log_weights = self._nodes(rest, kT, points)
        out = np.empty(len(points))
        for i, point in enumerate(points):
            nodes[:, [a for a in range(self.n_dim) if a not in rest]] = np.delete(point, rest)
            log_w = log_weights - self.energy(nodes) / kT
            top = log_w.max()
            out[i] = top + np.log(np.exp(log_w - top).sum())
        return out

    def _nodes(self, rest: list[int], kT: float, points: Array) -> tuple[Array, Array]:
        """Gauss-Legendre panels over the coordinates ``rest``: nodes (m, n_dim) and log weights (m,)."""
        axes = []
        for axis in rest:
            low, high = self._range(axis, kT)
            edges = np.linspace(low, high, {1: 129, 2: 41}.get(len(rest), 7))
            centre, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
            axes.append(((centre[:, None] + half[:, None] * _NODES).ravel(), (half[:, None] * _WEIGHTS).ravel()))
        nodes = np.zeros((math.prod(len(x) for x, _ in axes), self.n_dim))
        nodes[:, rest] = np.stack([m.ravel() for m in np.meshgrid(*(x for x, _ in axes), indexing="ij")], axis=1)
        weights = np.meshgrid(*(w for _, w in axes), indexing="ij")
        return nodes, np.asarray(np.log(np.prod([w.ravel() for w in weights], axis=0)))

    def _range(self, axis: int, kT: float) -> tuple[float, float]:
        """Widen a confined coordinate's bounds until the density there is below exp(-45) of its peak in the box."""
        low, high = self.bounds[axis]
        if self.periods[axis] is not None:
            return low, low + float(self.periods[axis])  # type: ignore[arg-type]
        if not self.confined[axis]:
            return low, high
        boxes = [np.linspace(*b, 61) if a != axis else np.zeros(1) for a, b in enumerate(self.bounds)]
        others = np.stack([g.ravel() for g in np.meshgrid(*boxes, indexing="ij")], axis=1)
        profile = np.linspace(low, high, 61)
        floor = np.min([self._on(others, axis, value) for value in profile], axis=0)
        for _ in range(40):
            edges = [np.min(self._on(others, axis, end) - floor) > 45 * kT for end in (low, high)]
            if all(edges):
                break
            width = high - low
            low, high = low - (0 if edges[0] else 0.25 * width), high + (0 if edges[1] else 0.25 * width)
        return low, high

    def _on(self, others: Array, axis: int, value: float) -> Array:
        points = others.copy()
        points[:, axis] = value
        return self.energy(points)


def dynamics_diffusion_well() -> ToyPotential:
    """The double well of DynamicsDiffusion (Petersen, Roig, Covino 2023): V = -9x^2 + x^3 + 4.5x^4 + 3y^2."""
    return ToyPotential("dynamics_diffusion_well", "polynomial_well", (-9.0, 1.0, 4.5, 6.0), ("x", "y"), ((-2.2, 2.1), (-2.5, 2.5)))


def double_well(barrier: float = 1.0, harmonic: float | None = None) -> ToyPotential:
    """The 1-D double well barrier (x^4 - 2x^2), minima at +-1; with ``harmonic``, a second coordinate 1/2 k y^2."""
    parameters = (-2.0 * barrier, 0.0, barrier, harmonic or 0.0)
    if harmonic is None:
        return ToyPotential("double_well", "polynomial_well", parameters, ("x",), ((-2.2, 2.2),))
    return ToyPotential("double_well", "polynomial_well", parameters, ("x", "y"), ((-2.2, 2.2), (-3.0, 3.0)))


def harmonic(force_constants: Sequence[float] = (1.0,)) -> ToyPotential:
    """Independent harmonic oscillators, sum of 1/2 k_i x_i^2."""
    names = ("x", "y", "z")[: len(force_constants)] if len(force_constants) <= 3 else tuple(f"x{i}" for i in range(len(force_constants)))
    bounds = tuple((-5 / math.sqrt(k), 5 / math.sqrt(k)) for k in force_constants)
    return ToyPotential("harmonic", "harmonic", tuple(map(float, force_constants)), names, bounds)


def mueller_brown(scale: float = 1.0) -> ToyPotential:
    """The Müller-Brown surface (Theor. Chim. Acta 53, 75 (1979), published constants) times ``scale``; try kT = 15 at scale 1."""
    terms = [
        (-200, -1, 0, -10, 1, 0), (-100, -1, 0, -10, 0, 0.5), (-170, -6.5, 11, -6.5, -0.5, 1.5), (15, 0.7, 0.6, 0.7, -1, 1),
    ]  # fmt: skip
    parameters = (0.0, *(float(v * scale if i == 0 else v) for term in terms for i, v in enumerate(term)))
    return ToyPotential("mueller_brown", "gaussians", parameters, ("x", "y"), ((-1.7, 1.2), (-0.5, 2.2)))


def hysteresis() -> ToyPotential:
    """(x^2+y^2)^2 - 10 exp(-30(x-.2)^2 - 3(y-.4)^2) - 10 exp(-30(x+.2)^2 - 3(y+.4)^2): dragging along x lags behind in y."""
    parameters = (1.0, -10.0, -30.0, 0.0, -3.0, 0.2, 0.4, -10.0, -30.0, 0.0, -3.0, -0.2, -0.4)
    return ToyPotential("hysteresis", "gaussians", parameters, ("x", "y"), ((-1.5, 1.5), (-1.8, 1.8)))


def evolving_wells(offset: float = -1.0, slope: float = 0.2) -> ToyPotential:
    """The evolving wells of Crabtree, Bello-Rivas & Kevrekidis 2023: U = (z2^2-1)^2 + (offset + slope z1) z2.

    Their slow z1 drifts and diffuses by itself: run it in an engine with ``driven=("z1",)``, where z1 feels drift, noise
    and biases only: ``ToyEngine(evolving_wells(), kT=0.5, time_step=1e-2, drift=(1e-4, 0), noise=(1e-3, None),
    driven=("z1",))``.  The noise they print is read per step, so that kT = a3^2/(2 dt) = 0.5.
    F(z1) is that of the gradient system; given z1 the law of z2 is the same in both as z1 is slow.
    """
    return ToyPotential(
        "evolving_wells", "evolving_wells", (offset, slope), ("z1", "z2"), ((0.0, 10.0), (-2.2, 2.2)), confined=(False, True)
    )


def variable_barrier(height: float = 4.0, k: float = 0.0) -> ToyPotential:
    """The second fast/slow system of Crabtree et al. 2023: wells of z2 at +-1 with barrier ``height`` between, z1 slow and free.

    U = (1+z2)^2 (z2^4 + (3k/4-2) z2^3 + (h-k+1) z2^2 - 2h z2 + h); drive z1 as in :func:`evolving_wells`.
    """
    return ToyPotential(
        "variable_barrier", "variable_barrier", (height, k), ("z1", "z2"), ((0.0, 10.0), (-1.9, 1.9)), confined=(False, True)
    )


def hidden_barrier(kT: float = 1.0, barrier: float = 11.0, periodic: bool = False) -> ToyPotential:
    """A molecule-like toy whose windows along the CV x hide a barrier along y; energies in units of the given ``kT``.

    U/kT = V(x) + B(x) (y^2-1)^2 + T(x) y.  Two y modes (near -1 and +1), whose relative weight exp(2T/kT) turns over with x:
    T runs from +1 at x = -2 to -3.5 at x = +2 (crossing 0 at x = -1.11), so y = -1 rules on the left and y = +1 on the right.
    B is ``barrier`` wherever windows go (a window in its minor mode must climb B - |T|, 7.7 to 11 kT by default) except for a
    passage at x < -2, where it falls to 1.  V has wells at x = +-1.6 and a barrier of 2 between.  Windows dragged from the
    left end keep y = -1 and give F(x) = V + T, up to 7 kT above the truth at the right,
    F(x) ~ V - kT ln(exp(-T/kT) + exp(T/kT)) (exactly: :meth:`ToyPotential.exact_free_energy`);
    windows seeded from p(y|x) are right at once.

    With ``periodic``, x is a torsion: V = 2 (1 - cos 2x)/2, T = -0.5 - 2.5 cos x, and the passage is at x = pi (B falls to 1
    within about 0.4 rad of it).
    """
    if periodic:
        numbers = (2 * kT, kT, barrier * kT, math.pi, 12.0, -0.5 * kT, -2.5 * kT)
        box, turn = ((-math.pi, math.pi), (-2.0, 2.0)), 2 * math.pi
        return ToyPotential("hidden_barrier_periodic", "hidden_torsion", numbers, ("x", "y"), box, (turn, None))
    slope = -4.5 / 4 * kT
    numbers8 = (2 * kT, 1.6, kT, barrier * kT, -2.2, 0.06, kT + 2 * slope, slope)
    return ToyPotential("hidden_barrier", "hidden_barrier", numbers8, ("x", "y"), ((-2.8, 2.8), (-2.0, 2.0)))


LIBRARY = {
    function.__name__: function
    for function in (
        dynamics_diffusion_well, double_well, harmonic, mueller_brown, hysteresis, evolving_wells, variable_barrier, hidden_barrier,
    )
}  # fmt: skip
"""Every potential by name, as functions of their parameters."""
