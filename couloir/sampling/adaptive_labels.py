"""Structures of a model where they are worth most: labels are drawn where the weights of those before come from.

A model that imposes all slow coordinates as labels c leaves the fast ones to its network, which a moment of dynamics in each of many
windows teaches: within a window p(x | c) does not depend on the bias.  What the windows do not say is how much each c weighs; that
follows from the energies of structures the model makes, w = exp(-U/kT) / q, one force evaluation each.

Which labels to draw is found by adaptive multiple importance sampling (Cornuet, Marin, Mira & Robert, Scand. J. Stat. 39, 798
(2012)).  Labels begin spread evenly.  To know the free energy along one of them equally well everywhere, structures in each of its
cells should lie where the others are probable, so later labels are drawn around earlier ones picked by their weight in the cell.
All structures are weighed in the mixture of all densities that labels were drawn from, whichever each came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from couloir.cv.base import CollectiveVariable
from couloir.errors import ConfigError, DataError
from couloir.generative.conditional_sgm import FittedConditionalSGM, ProposedStructures
from couloir.generative.model_state import LabelDensity, MixtureLabels, ModelState, UniformLabels
from couloir.sampling.gates import GeometryGates
from couloir.sampling.independence import EnergyEngine
from couloir.sampling.model_samples import HIGHEST, ModelSamples, judged_structures, weighed_structures
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array

FIRST = 0.2
"""Share of all structures whose labels are spread evenly before anything is known."""
SPREAD = 0.15
"""Share of each later round whose labels still are: what was missed at first is found then."""
CENTERS = 300
"""Labels that those of a round are drawn around."""
WIDTH = 1.5
"""Their distance from these, in cells."""


@dataclass
class _Mixture:
    """Everything that was drawn, and the densities that labels were drawn from with how often each was used."""

    kT: float
    labels: list[Array] = field(default_factory=list)
    positions: list[Array] = field(default_factory=list)
    energies: list[Array] = field(default_factory=list)
    log_given: list[Array] = field(default_factory=list)
    errors: list[Array] = field(default_factory=list)
    parts: list[tuple[LabelDensity, int]] = field(default_factory=list)

    def add(self, density: LabelDensity, n: int, drawn: ProposedStructures, energies: Array) -> None:
        given = drawn.log_prob - density.log_density(drawn.labels)
        whole = np.isfinite(given)
        self.parts.append((density, n))
        self.labels.append(drawn.labels[whole])
        self.positions.append(drawn.positions[whole])
        self.energies.append(energies[whole])
        self.log_given.append(given[whole])
        self.errors.append(np.asarray(drawn.error)[whole])

    def log_prob(self) -> Array:
        """Return the log-density (n,) of every structure in the mixture of all parts."""
        values = np.concatenate(self.labels)
        total = sum(n for _, n in self.parts)
        each = [np.log(n / total) + density.log_density(values) for density, n in self.parts]
        return np.asarray(np.concatenate(self.log_given) + np.logaddexp.reduce(each, axis=0))


def sample_adaptively(
    model: FittedConditionalSGM,
    engine: EnergyEngine,
    n: int,
    along: CollectiveVariable,
    *,
    seed: int,
    record: Sequence[CollectiveVariable] = (),
    limits: Sequence[tuple[float, float]] | None = None,
    bins: int = 36,
    highest: float = 10.0,
    rounds: int = 4,
    settings: dict[str, Any] | None = None,
    gates: GeometryGates | None = None,
) -> ModelSamples:
    """Return about ``n`` structures of a model with their weights, drawn so that the free energy along one label is known evenly.

    Later labels depend on earlier structures, so that weights have a bias that falls as 1/n, as importance weights do anyway, and rows are
    not quite independent, which the bootstrap of error bars leaves out.

    Parameters
    ----------
    model : fitted, with every slow coordinate as a label that it imposes.
    along : one of its labels.
    record : CVs that are recorded besides the labels.
    limits : per label, where structures are wanted; default its period, or the values it was trained on.  The few that are drawn beyond
        are left out.
    bins : cells of ``along`` that count alike.
    highest : kT above the lowest cell from which on a cell counts less and less.
    rounds : how often labels are drawn; the first time evenly.
    settings : how the density is integrated (:func:`couloir.generative.likelihood.log_prob`).
    gates : of the molecule, as in :func:`sample_model`.

    Raises
    ------
    ConfigError : ``along`` is no label of the model, or there are fewer structures than rounds can use.
    DataError : no structure of the first round has a finite density and energy.
    ModelError : the model learned a label instead of imposing it.
    """
    names = [cv.name for cv in model.labels]
    if along.name not in names:
        raise ConfigError(f"{along.name!r} is no label of the model, which has {', '.join(names)}", "give one of these")
    if rounds < 1 or n < 10 * rounds:
        raise ConfigError(f"n = {n}, rounds = {rounds}", "draw at least ten structures a round")
    box, column = _box(model, limits), names.index(along.name)
    widths = WIDTH * (box.high - box.low) / bins
    edges = np.linspace(box.low[column], box.high[column], bins + 1)
    drawn, cvs = _Mixture(engine.kT), (*model.labels, *(cv for cv in record if cv.name not in names))
    first = n if rounds == 1 else round(FIRST * n)
    sizes = [first, *(len(part) for part in np.array_split(np.arange(n - first), max(rounds - 1, 1)))][:rounds]
    for number, size in enumerate(sizes):
        parts: list[tuple[LabelDensity, int]] = [(box, size)]
        if number:
            around = _around(drawn, column, edges, highest, widths, box, stream(seed, "centers", number))
            parts = [(box, round(SPREAD * size)), (around, size - round(SPREAD * size))]
        for part, (density, m) in enumerate(parts):
            state = ModelState(model, density, settings or {"n_steps": 40})
            drawn.add(density, m, *judged_structures(state, engine, m, seed=integer_seed(seed, "draw", number, part), gates=gates))
        if not any((energies < HIGHEST).any() for energies in drawn.energies):
            raise DataError(
                f"none of {size} structures has a finite density and energy", "train the model longer, or look at what it makes"
            )
    # those beyond the limits, where kernels reach but a little, would carry large weights
    inside = np.isfinite(box.log_density(np.concatenate(drawn.labels)))
    positions, energies, errors = (np.concatenate(column)[inside] for column in (drawn.positions, drawn.energies, drawn.errors))
    return weighed_structures(positions, drawn.log_prob()[inside], energies, errors, cvs, engine.temperature)


def _box(model: FittedConditionalSGM, limits: Sequence[tuple[float, float]] | None) -> UniformLabels:
    periods = tuple(cv.period for cv in model.labels)
    low, high = np.array(model.label_range.low, dtype=np.float64), np.array(model.label_range.high, dtype=np.float64)
    for i, period in enumerate(periods):
        if period is not None:
            low[i], high[i] = -period / 2, period / 2
        if limits is not None:
            low[i], high[i] = limits[i]
    return UniformLabels(low, high, periods)


def _around(
    drawn: _Mixture, column: int, edges: Array, highest: float, widths: Array, box: UniformLabels, rng: np.random.Generator
) -> MixtureLabels:
    """Return labels around those drawn, picked in proportion to their weight in their cell, every cell that counts alike."""
    values = np.concatenate(drawn.labels)
    log_w = -np.concatenate(drawn.energies) / drawn.kT - drawn.log_prob()
    log_w[~np.isfinite(box.log_density(values))] = -np.inf  # else labels would wander off over the limits
    weight = np.exp(log_w - log_w.max())
    place, period = values[:, column], box.periods[column]
    if period is not None:
        place = box.low[column] + np.mod(place - box.low[column], period)
    cell = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, len(edges) - 2)
    share = np.bincount(cell, weight, len(edges) - 1)
    with np.errstate(divide="ignore"):
        height = -np.log(share / share.max())
    counts = np.where(np.isfinite(height), np.exp(-np.maximum(height - highest, 0.0)), 0.0)
    chance = counts[cell] * weight / np.where(share[cell] > 0, share[cell], 1.0)
    picked = np.searchsorted(np.cumsum(chance / chance.sum()), (np.arange(CENTERS) + rng.random()) / CENTERS).clip(max=len(chance) - 1)
    return MixtureLabels(values[picked], widths, box.periods)
