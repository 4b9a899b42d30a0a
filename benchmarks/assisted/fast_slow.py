"""The fast/slow systems of Crabtree, Bello-Rivas & Kevrekidis (2023): exact answers, ideal seeds, models as tables.

z1 is driven: it feels drift, noise and biases, never the potential.  So exp(-U/kT) is no law of (z1, z2) together, but,
z1 being slow, it is the law of z2 *given* z1, and every exact answer here is such a conditional one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir.cv.geometric import Coordinate
from couloir.generative.conditional_sgm import FittedConditionalSGM, ProposedStructures
from couloir.sampling import ToyEngine
from couloir.sampling.potentials import ToyPotential
from couloir.streams import stream
from couloir.trajectory import Array

Z1, Z2 = Coordinate(0, "z1"), Coordinate(1, "z2")
CELLS = np.linspace(-3.0, 3.0, 1201)
"""Edges of the fine cells of z2 on which densities are tabulated."""
EDGES = CELLS[::20]
"""Edges of the histogram bins on which L1 errors are measured, 0.1 wide."""


def driven(potential: ToyPotential, kT: float, time_step: float) -> ToyEngine:
    """Return the engine of a fast/slow system: z1 drifts by 1e-4 per unit of time with noise 1e-3 per its square root."""
    return ToyEngine(potential, kT=kT, time_step=time_step, drift=(1e-4, 0.0), noise=(1e-3, None), driven=("z1",))


def exact_cells(potential: ToyPotential, kT: float, z1: float) -> Array:
    """Return the probability of every fine cell of z2 given z1 (n_cells,), by the midpoint rule."""
    centres = 0.5 * (CELLS[1:] + CELLS[:-1])
    energy = potential.energy(np.stack([np.full_like(centres, z1), centres], axis=1))
    weight = np.exp(-(energy - energy.min()) / kT)
    return np.asarray(weight / weight.sum())


def binned(cells: Array) -> Array:
    """Return probabilities of the histogram bins (..., n_bins) from those of the fine cells (..., n_cells)."""
    return np.asarray(cells.reshape(*cells.shape[:-1], len(EDGES) - 1, -1).sum(axis=-1))


def draw(cells: Array, n: int, rng: np.random.Generator) -> Array:
    """Draw n values of z2 from cell probabilities, uniformly within a cell: the inverse of the cumulative distribution."""
    cumulative = np.concatenate([[0.0], np.cumsum(cells)])
    return np.asarray(np.interp(rng.random(n) * cumulative[-1], cumulative, CELLS))


def histogram(z2: Array) -> Array:
    """Return shares of the bins (n_groups, n_bins) of values (n_groups, n); what lies outside of all bins counts in none."""
    n_bins, width = len(EDGES) - 1, EDGES[1] - EDGES[0]
    index = np.floor((z2 - EDGES[0]) / width).astype(np.int64)
    inside = (index >= 0) & (index < n_bins)
    group = np.broadcast_to(np.arange(len(z2))[:, None], z2.shape)
    flat = np.bincount(group[inside] * n_bins + index[inside], minlength=len(z2) * n_bins)
    return np.asarray(flat.reshape(len(z2), n_bins) / z2.shape[1])


def l1(p: Array, q: Array) -> Array:
    """Return sum |p - q| over the last axis: 0 for equal distributions, 2 for disjoint ones."""
    return np.asarray(np.abs(p - q).sum(axis=-1))


@dataclass(frozen=True, eq=False)
class TabulatedModel:
    """A conditional model at one label as cell probabilities: normalized, drawn from exactly, and free to evaluate.

    The table is made once from the model's probability-flow density; in one dimension that is exact to the width of a cell,
    and what is proposed and what is divided by are the same density to the last bit.  It keeps z1 as it is (imposed).

    Attributes
    ----------
    cells : (n_cells,) probabilities.
    z1 : the label it was tabulated at.
    """

    cells: Array
    z1: float

    labels = (Z1,)
    imposed = (0,)

    @classmethod
    def of(cls, model: FittedConditionalSGM, z1: float, **settings: Any) -> TabulatedModel:
        """Tabulate a fitted model at z1; ``settings`` integrate its density."""
        centres = 0.5 * (CELLS[1:] + CELLS[:-1])
        points = np.stack([np.full_like(centres, z1), centres], axis=1)[:, None]
        density = np.exp(model.log_prob(points, **{"n_steps": 40, "check": None, **settings}))
        return cls(density / density.sum(), z1)

    def sample_with_log_prob(self, cv_values: Any, n: int | None = None, *, seed: int, **_: Any) -> ProposedStructures:
        """Return one draw of z2 for every row of labels, at that label."""
        labels = np.asarray(cv_values, dtype=float).reshape(-1)
        z2 = draw(self.cells, len(labels), stream(seed, "table"))
        positions = np.stack([labels, z2], axis=1)[:, None]
        return ProposedStructures(positions, labels[:, None], self.log_prob(positions), np.zeros(len(labels)))

    def sample(self, n: int, *, seed: int) -> ProposedStructures:
        """Return n draws at the table's label."""
        return self.sample_with_log_prob(np.full(n, self.z1), seed=seed)

    def log_prob(self, positions: Array, cv_values: Any = None, **_: Any) -> Array:
        """Return the log-density of z2 (n,); -inf outside of the table."""
        z2, width = positions[:, 0, 1], CELLS[1] - CELLS[0]
        index = np.floor((z2 - CELLS[0]) / width).astype(np.int64)
        inside = (index >= 0) & (index < len(self.cells))
        with np.errstate(divide="ignore"):
            return np.where(inside, np.log(self.cells[np.clip(index, 0, len(self.cells) - 1)] / width), -np.inf)

    def digest(self) -> str:
        """Return a hash of the table."""
        return hashlib.sha256(self.cells.tobytes()).hexdigest()
