"""A diffusion map of 10,000 samples gives the label of the model, in place of z1."""

from __future__ import annotations

import numpy as np

from benchmarks.assisted.fast_slow import CELLS, EDGES, binned, exact_cells, histogram, l1
from benchmarks.assisted.runs import Curves, thinned_runs
from benchmarks.results import Row
from couloir.cv.diffusion_map import DiffusionCoordinate, DiffusionMap
from couloir.cv.features import Features
from couloir.generative import ConditionalSGM, Vector
from couloir.generative.training import TrainingPlan
from couloir.sampling import potentials
from couloir.sampling.potentials import ToyPotential
from couloir.trajectory import Array

NEAR = 1000
"""Frames nearest to Phi = 0 that show how well 10,000 samples know the law there."""


def law_at_zero(phi: DiffusionCoordinate, potential: ToyPotential, kT: float) -> tuple[Array, float]:
    """Return the probability of every fine cell of z2 where Phi = 0 (n_cells,), and the mean of z1 there.

    With z1 uniform over the data, p(z2 | Phi = 0) ~ p(z2 | z1) / |dPhi/dz1| at the z1 where Phi(z1, z2) = 0.
    """
    across, along = 0.5 * (EDGES[1:] + EDGES[:-1]), np.linspace(2.0, 8.0, 121)
    plane = np.stack(np.meshgrid(across, along, indexing="ij"), axis=-1)[..., ::-1].reshape(-1, 1, 2)
    values = phi.evaluate(plane).reshape(len(across), -1)
    values = values * np.sign(values[len(across) // 2, -1] - values[len(across) // 2, 0])
    crossing = np.array([np.interp(0.0, row, along) for row in values])
    rise = np.array([np.interp(z1, along, np.gradient(row, along)) for z1, row in zip(crossing, values, strict=True)])
    centres = 0.5 * (CELLS[1:] + CELLS[:-1])
    z1, jacobian = np.interp(centres, across, crossing), np.interp(centres, across, rise)
    cells = np.array([exact_cells(potential, kT, z)[i] for i, z in enumerate(z1)]) / jacobian
    cells = cells / cells.sum()
    return cells, float(cells @ z1)


def labels(training: int, trainings: int, made: int = 50_000) -> tuple[list[Row], Curves]:
    """Learn the label from 10,000 samples, then the law of z2 where it is zero."""
    out: list[Row] = []
    curves: Curves = {}
    features = Features.coordinates((0, 1))
    for name, potential, time_step in (
        ("evolving wells", potentials.evolving_wells(), 1e-2),
        ("variable barrier", potentials.variable_barrier(4.0), 1e-3),
    ):
        data = thinned_runs(potential, 0.5, time_step, seed=11)
        phi = DiffusionMap(features, bandwidth=0.5).fit(data, seed=0).coordinate(1, "phi")
        values = phi.evaluate(data)
        correlation = abs(float(np.corrcoef(values, data[:, 0, 0])[0, 1]))
        out.append(Row(f"{name}: correlation of |Phi| with z1, 10,000 samples", correlation, "", None, 0.99, correlation > 0.99))
        narrow = DiffusionMap(features).fit(data, seed=0)
        gap = any(finding.code == "coordinate-of-a-gap" for finding in narrow.warnings)
        by_itself = abs(float(np.corrcoef(narrow.coordinate(1).evaluate(data), data[:, 0, 0])[0, 1]))
        said = "with the finding that wells hide z1" if gap else "without a finding"
        out.append(
            Row(f"{name}: the same with the automatic bandwidth", by_itself, "", peer=f"{said}; bandwidth", peer_value=narrow.bandwidth)
        )
        cells, z1 = law_at_zero(phi, potential, 0.5)
        frames = data[np.argsort(abs(values))[:NEAR], 0, 1]
        out.append(
            Row(f"{name}: L1 of the {NEAR} samples nearest to Phi = 0 themselves", float(l1(histogram(frames[None])[0], binned(cells))), "")
        )
        errors, shares = [], []
        # Phi = 0 is a curve in the plane, thinner than a law of z2 alone: it takes a larger network and more calls than z1 as a label.
        plan = TrainingPlan(steps=training, evaluations=4, held_out_rows=1000, patience=None)
        for seed in range(trainings):
            model = ConditionalSGM(Vector(), label=phi, width=128, depth=3).fit(data, seed=seed, labels=values, plan=plan)
            shares.append(histogram(model.sample(0.0, made, seed=1, n_calls=50)[None, :, 0, 1])[0])
            errors.append(float(l1(shares[-1], binned(cells))))
        error = float(np.median(errors))
        spread = float(np.std(errors, ddof=1) / np.sqrt(trainings)) if trainings > 1 else None
        what = f"{name}: L1 of p(z2 | Phi = 0), median of {trainings} trainings of {made} structures"
        out.append(Row(what, error, "", spread, 0.1, error <= 0.1, "z1 there", z1))
        curves[f"{name}, Phi = 0"] = (cells, np.repeat(np.median(shares, axis=0) / 20, 20))
        print(f"{name}: {np.round(errors, 4)}; correlation {correlation:.4f}, automatic {by_itself:.4f}", flush=True)
    return out, curves
