"""Alanine dipeptide with psi as the label, as in Crabtree, Bello-Rivas & Kevrekidis 2023, and with phi.

    python -m benchmarks.assisted_psi --scale small|paper

ff14SB, OBC2, 300 K, 1/ps.  The models learn from 20 ns of plain dynamics at 1 fs (100,000 structures), as in the paper, each with one
torsion as its label; all answers are compared with the 144 ns reference.

conditional  p(phi | psi) and p(psi | phi) in cells of 10 degrees: L1 distances (0 to 2) from the reference, beside those of the 20 ns
             themselves, in cells of which these have at least 200 structures.  What the 20 ns do not show no model of them can know, which
             concerns alpha-L (phi from 0 to 120 degrees): rows say how much of the reference lies there.
windows      the same windows along psi, begun from structures of the model and dragged from one structure: error of F(psi) against time.
exact        structures of the model weighed by their energies: F(psi) without any dynamics, and what the weights are worth.

Nothing that begins with these data goes to alpha-L, behind the barrier along phi: what F(psi) lacks without it stands in a row.

Training data, models and repeats that are done are kept in ``runs/``.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.assisted.pictures import draw_ramachandran
from benchmarks.assisted_alanine import BINS, KT, MOLECULE, PHI, PSI, RUNS, engine, error_of, kept, start
from benchmarks.reference.data import alanine_dipeptide_surface
from benchmarks.results import Row, scale_parser, write_results
from couloir.analysis import free_energy_surface
from couloir.cv.geometric import Dihedral
from couloir.generative import ConditionalSGM, InternalCoordinates, TrainingPlan
from couloir.generative.conditional_sgm import FittedConditionalSGM
from couloir.generative.symmetry import turned_at_random
from couloir.sampling import OpenMMEngine, UmbrellaSampling, dragged_seeds, sample_adaptively, seed_windows
from couloir.sampling.seeding import geometry_gates
from couloir.streams import stream
from couloir.trajectory import Array

PIECES, LENGTH, STRIDE = 4, 5000.0, 0.2
"""Runs of plain dynamics; ps of each; ps between two structures."""
EDGES = np.linspace(-np.pi, np.pi, BINS + 1)
CENTRES = 0.5 * (EDGES[1:] + EDGES[:-1])
ALPHA_L = np.abs(CENTRES - np.pi / 3) < np.pi / 3
"""Cells of phi."""
LEAST = 200
"""Structures in a cell of the label below which there is nothing to compare."""
MADE = 4000
"""Structures that a model makes in each cell."""
PLANS = {"small": TrainingPlan(steps=3000), "paper": TrainingPlan(steps=12_000)}
TIMES = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""ps per walker."""
GENERATED = {"small": 6000, "paper": 15_000}
WINDOWS, REPEATS = 24, 5


def piece(number: int) -> dict[str, Array]:
    """Return structures (n, 22, 3) of one run of plain dynamics from C7eq."""
    md = OpenMMEngine(MOLECULE, platform="Reference", temperature=300.0, time_step="1 fs", friction="1/ps")
    [run] = md.propagate([start()], duration=LENGTH, stride=STRIDE, seed=1000 + number)
    return {"positions": run.positions.astype(np.float32)}


def plain_dynamics() -> Array:
    """Return all 100,000 structures (n, 22, 3), equivalent hydrogens exchanged at random."""
    pieces = [kept("psi_data", i, partial(piece, i))["positions"] for i in range(PIECES)]
    return turned_at_random(np.concatenate(pieces).astype(np.float64), MOLECULE.topology, seed=1)


def trained(data: Array, label: Dihedral, scale: str) -> FittedConditionalSGM:
    """Return the model of everything else given one torsion."""
    folder = RUNS / f"assisted_psi_{label.name}_{scale}"
    if not folder.exists():
        internal = InternalCoordinates(MOLECULE.topology, torsions=[label.atoms])
        ConditionalSGM(internal, label=label).fit(data, seed=1, plan=PLANS[scale]).save(folder)
    model = ConditionalSGM.load(folder, label)
    print(f"{label.name}: {model}", flush=True)
    return model


def shares(label: Array, other: Array) -> Array:
    """Return p(other | label) in cells (BINS, BINS), one row per cell of the label."""
    counts, _, _ = np.histogram2d(label, other, bins=(EDGES, EDGES))
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))


@cache
def plane() -> Array:
    """Return the reference's probability of every cell of phi and psi."""
    f = alanine_dipeptide_surface(("phi", "psi"), n_bootstrap=0, bins=(BINS, BINS), limits=((-np.pi, np.pi),) * 2).free_energy / KT
    p = np.exp(-np.where(np.isfinite(f), f - np.nanmin(f), np.inf))
    return np.asarray(p / p.sum())


def reference(first: str) -> Array:
    """Return the reference's p(other | first) in cells."""
    p = plane() if first == "phi" else plane().T
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def conditional(model: FittedConditionalSGM, label: Dihedral, other: Dihedral, data: Array) -> tuple[list[Row], dict[str, Array]]:
    """Return how far the model's p(other | label) is from the truth, cell by cell of the label."""
    seen_label, seen_other = label.evaluate(data), other.evaluate(data)
    counts, _ = np.histogram(seen_label, EDGES)
    known = counts >= LEAST
    asked = (EDGES[:-1, None] + (EDGES[1] - EDGES[0]) * stream(3, label.name).random((BINS, MADE))).ravel()
    made = other.evaluate(model.sample(asked, seed=2))
    laws = {"reference": reference(label.name), "model": shares(asked, made), "the 20 ns": shares(seen_label, seen_other)}
    apart = {name: np.abs(law - laws["reference"]).sum(axis=1) for name, law in laws.items()}
    what = f"p({other.name} | {label.name})"
    inside = f"{known.sum()} of {BINS} cells that the 20 ns know"
    rows = [
        Row(f"{what}: median L1 from the reference, {inside}", float(np.median(apart["model"][known])), "", peer="the 20 ns themselves",
            peer_value=float(np.median(apart["the 20 ns"][known]))),
        Row(f"{what}: largest L1 from the reference, {inside}", float(apart["model"][known].max()), "", peer="the 20 ns themselves",
            peer_value=float(apart["the 20 ns"][known].max())),
    ]  # fmt: skip
    if label.name == "psi":
        worst = int(np.argmax(np.where(known, laws["reference"][:, ALPHA_L].sum(axis=1), 0.0)))
        left = {name: law[:, ~ALPHA_L] / np.maximum(law[:, ~ALPHA_L].sum(axis=1, keepdims=True), 1e-300) for name, law in laws.items()}
        at = np.degrees(CENTRES[worst])
        halves = {name: np.abs(law - left["reference"]).sum(axis=1) for name, law in left.items()}
        rows += [
            Row(f"{what} without alpha-L: median L1 from the reference, {inside}", float(np.median(halves["model"][known])), "",
                peer="the 20 ns themselves", peer_value=float(np.median(halves["the 20 ns"][known]))),
            Row(f"{what}: share in alpha-L at psi = {at:.0f} degrees, where it is largest", float(laws["model"][worst, ALPHA_L].sum()), "",
                peer="reference", peer_value=float(laws["reference"][worst, ALPHA_L].sum())),
        ]  # fmt: skip
    return rows, laws


def without_alpha_l() -> Array:
    """Return the reference's F(psi), kJ/mol, of all that is not in alpha-L."""
    return np.asarray(-KT * np.log(plane()[~ALPHA_L].sum(axis=0)))


def windows(model: FittedConditionalSGM | None, seed: int) -> dict[str, Array]:
    """Return errors of F(psi) after :data:`TIMES` of windows seeded by the model, or dragged without one."""
    md, along = engine(), UmbrellaSampling.grid(PSI, WINDOWS, "60 kJ/mol/rad^2")
    seeds = dragged_seeds(md, along, start(), 2, seed=seed) if model is None else seed_windows(model, md, along, 2, seed=seed)
    samples = along.run(md, seeds, TIMES[-1], seed=seed, record=(PHI,), record_stride=0.05)
    grid: dict[str, Any] = {"n_bootstrap": 0, "bins": BINS, "limits": (-np.pi, np.pi)}
    return {"error": np.array([error_of(free_energy_surface(samples.until(t), "psi", **grid).free_energy, "psi") for t in TIMES])}


def exact(model: FittedConditionalSGM, n: int) -> list[Row]:
    """Return what the model's structures say about F(psi) once their energies weigh them."""
    md = engine()
    made = sample_adaptively(
        model, md, n, PSI, seed=4, record=(PHI,), settings={"n_steps": 12, "check": None}, gates=geometry_gates(md, None)
    )
    print(made, flush=True)
    surface = made.surface("psi", bins=BINS, limits=(-np.pi, np.pi), n_bootstrap=100, seed=4)
    psi, weights = made.samples.values[:, 0], np.exp(made.log_weights)
    worth = [
        float(w.sum() ** 2 / (w**2).sum() / len(w)) for a in range(BINS) if len(w := weights[(psi >= EDGES[a]) & (psi < EDGES[a + 1])])
    ]
    own = float(np.nanmedian(surface.standard_error) / KT)
    return [
        Row(f"exact: RMSE of F(psi) below 8 kT from {n} structures of the model and their energies, no dynamics",
            error_of(surface.free_energy, "psi"), "kT", peer="median standard error it claims", peer_value=own),
        Row("exact: the same from the reference without alpha-L", error_of(surface.free_energy, "psi", without_alpha_l()), "kT"),
        Row("exact: share of effective samples at fixed psi, median over cells", float(100 * np.median(worth)), "%", peer="least",
            peer_value=float(100 * min(worth))),
    ]  # fmt: skip


def measure(scale: str) -> list[Row]:
    """Return all rows, and draw the picture."""
    data = plain_dynamics()
    phi = PHI.evaluate(data)
    left = int(((phi > 0) & (phi < 2 * np.pi / 3)).sum())
    rows = [Row("plain dynamics at 1 fs: structures in alpha-L", float(left), "", peer="structures", peer_value=float(len(data)))]
    laws = {}
    by_psi = trained(data, PSI, scale)
    for model, label, other in ((by_psi, PSI, PHI), (trained(data, PHI, scale), PHI, PSI)):
        found, laws[label.name] = conditional(model, label, other, data)
        rows += found
    draw_ramachandran("assisted_psi", laws, EDGES)
    seeded, dragged = (
        np.array([kept(f"psi_{name}_{scale}", i, partial(windows, model, i))["error"] for i in range(REPEATS)])
        for name, model in (("seeded", by_psi), ("dragged", None))
    )
    for k, t in enumerate(TIMES):
        at = seeded[:, k]
        rows.append(Row(f"windows: RMSE of F(psi) below 8 kT after {t:g} ps per walker, seeded ({REPEATS} repeats)", float(at.mean()), "kT",
                        float(at.std(ddof=1) / np.sqrt(REPEATS)), peer="dragged", peer_value=float(dragged[:, k].mean())))  # fmt: skip
    whole = alanine_dipeptide_surface("psi", bins=BINS, limits=(-np.pi, np.pi)).in_kT
    own = whole.standard_error[whole.free_energy - whole.free_energy.min() < 8.0]
    rows.append(Row("F(psi) of the reference without alpha-L: RMSE from all of it", error_of(without_alpha_l(), "psi"), "kT",
                    peer="root mean square standard error of the reference", peer_value=float(np.sqrt(np.mean(own**2)))))  # fmt: skip
    return rows + exact(by_psi, GENERATED[scale])


def main() -> None:
    """Measure, print the table, write the results."""
    scale = scale_parser(__doc__, PLANS).parse_args().scale
    write_results("assisted_psi", measure(scale), scale=scale)


if __name__ == "__main__":
    main()
