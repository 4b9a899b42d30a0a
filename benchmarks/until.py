"""Sampling until the error is small enough, on alanine dipeptide: ``python -m benchmarks.until --scale small|paper``.

Windows along phi, and along phi and psi, run until the largest standard error below 8 kT is 0.2 kT, once with further time
going to the windows that need it and once with the same time for all.  Both surfaces are compared with 144 ns of windows
made without Couloir's sampling code.  One run says little about what allocation saves, so the same is repeated 20 times on
two systems whose surface is known exactly; there the differences from it, in standard errors, also say whether stopping when
the error looks small makes the errors too small.  ``small`` leaves out phi and psi together.  Interrupted, it goes on from what
``runs/`` holds.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.coverage import EXPERIMENTS, X, Y, exactly, starts
from benchmarks.reference.data import alanine_dipeptide_surface
from benchmarks.results import Row, scale_parser, write_results
from couloir.analysis.allocation import BELOW
from couloir.analysis.surface import FreeEnergySurface
from couloir.cv import CollectiveVariable
from couloir.cv.geometric import Dihedral
from couloir.sampling import OpenMMEngine, ToyEngine, UmbrellaSampling, systems
from couloir.sampling.dragging import dragged_seeds
from couloir.sampling.seeds import load_seeds, save_seeds
from couloir.sampling.target import KnownSurface, SharedOut, Stage, cells_that_count, run_until
from couloir.store import Store

TARGET = 0.2
SHARED_OUT: tuple[SharedOut, SharedOut] = ("adaptive", "uniform")
RUNS = Path(__file__).parents[1] / "runs"


@dataclass(frozen=True)
class Task:
    """Windows over the whole circle along some CVs, walkers in each, and the cells of the surface."""

    along: tuple[str, ...]
    n_windows: int
    force_constant: str
    walkers: int
    bins: int
    first: float


TASKS = {
    "phi": Task(("phi",), 36, "100 kJ/mol/rad^2", 2, 72, 40.0),
    "phi, psi": Task(("phi", "psi"), 24, "100 kJ/mol/rad^2", 1, 24, 25.0),
}


def sample(task: Task, allocation: SharedOut, most: float | None = None, seed: int = 1) -> KnownSurface:
    """Return what sampling until the target, or until ``most`` ps per walker, gives."""
    molecule = systems.alanine_dipeptide(solvent="obc2")
    engine = OpenMMEngine(molecule, platform="Reference")
    torsions: dict[str, CollectiveVariable] = {
        "phi": Dihedral.phi(molecule.topology, residue=2), "psi": Dihedral.psi(molecule.topology, residue=2)
    }  # fmt: skip
    windows = UmbrellaSampling.grid([torsions[name] for name in task.along], task.n_windows, task.force_constant)
    RUNS.mkdir(exist_ok=True)
    with Store(RUNS / f"until_{'_'.join(task.along)}_{allocation}.db") as store:
        if store.count("seeds") == 0:
            start = engine.propagate(engine.minimize([molecule.state]), duration=20.0, stride=20.0, seed=seed)[0].state(-1)
            save_seeds(store, dragged_seeds(engine, windows, start, task.walkers, seed=seed))
        return run_until(
            windows,
            engine,
            load_seeds(store),
            TARGET,
            seed=seed,
            first=task.first,
            most=most,
            allocation=allocation,
            bins=task.bins,
            store=store,
            record=tuple(torsions.values()),
            on_stage=lambda stage: print(f"{', '.join(task.along)}, {allocation}: {stage}", flush=True),
        )


def truth_of(task: Task) -> FreeEnergySurface:
    """Return the reference surface on the same cells."""
    along = task.along[0] if len(task.along) == 1 else (task.along[0], task.along[1])
    return alanine_dipeptide_surface(along, n_bootstrap=100, bins=task.bins, seed=1)


def compare(surface: FreeEnergySurface, truth: FreeEnergySurface) -> tuple[float, float, float]:
    """Return the RMSE (kT) below 8 kT, the reference's own rms standard error there (kT), and the rms difference over its standard error.

    Both are free energies of the normalized surface, as the standard errors are.
    """
    kT = surface.kT
    use = (truth.free_energy < BELOW * kT) & (surface.free_energy < (BELOW + 1) * kT)

    def normalized(f: FreeEnergySurface) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.asarray(f.free_energy / kT + np.log(np.exp(-f.free_energy[np.isfinite(f.free_energy)] / kT).sum()))

    off = (normalized(surface) - normalized(truth))[use]
    error = np.hypot(surface.standard_error, truth.standard_error)[use] / kT
    known = np.isfinite(error) & (error > 0)
    own = float(np.sqrt(np.nanmean((truth.standard_error[use] / kT) ** 2)))
    return surface.rmse(truth, below=BELOW) / kT, own, float(np.sqrt(((off[known] / error[known]) ** 2).mean()))


REPEATS = 20
TOYS = {"double well": 0.15, "hidden barrier of 4 kT": 0.25}
"""Experiments of ``benchmarks.coverage``, and the error (kT) each is to reach."""


def repeat(job: tuple[str, SharedOut, int]) -> tuple[float, float]:
    """Return time spent on an experiment, and the root mean square difference from the exact surface in standard errors."""
    name, allocation, seed = job
    experiment = next(e for e in EXPERIMENTS if e.name == name)
    potential = experiment.potential()
    engine = ToyEngine(potential, kT=experiment.kT, time_step=experiment.time_step, threads=1)
    windows = UmbrellaSampling.grid(experiment.cv, experiment.n_windows, experiment.force_constant, range=experiment.span)
    known = run_until(
        windows, engine, starts(engine, windows, experiment), TOYS[name], seed=seed, first=experiment.duration / 8,
        allocation=allocation, record=(X, Y) if potential.n_dim > 1 else (X,), record_stride=experiment.duration / 400,
    )  # fmt: skip
    surface = known.surface
    use = cells_that_count(surface, windows) & (surface.standard_error > 0)
    truth = exactly(surface, potential, experiment)
    free, exact = (f / experiment.kT + np.log(np.exp(-f[use] / experiment.kT).sum()) for f in (surface.free_energy, truth))
    return known.stages[-1].total, float(np.sqrt((((free - exact)[use] * experiment.kT / surface.standard_error[use]) ** 2).mean()))


def toys() -> list[Row]:
    """Return the rows of the repeated experiments."""
    rows = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for name, target in TOYS.items():
            found = {}
            for allocation in SHARED_OUT:
                found[allocation] = np.array(list(pool.map(repeat, [(name, allocation, seed) for seed in range(REPEATS)])))
                print(name, allocation, found[allocation].mean(axis=0), flush=True)
            ratio = np.log(found["uniform"][:, 0] / found["adaptive"][:, 0])
            saved, spread = float(np.exp(ratio.mean())), float(np.exp(ratio.mean()) * ratio.std(ddof=1) / np.sqrt(REPEATS))
            rows.append(Row(f"{name}: time until {target:g} kT, uniform over adaptive ({REPEATS} repeats)", saved, "x", spread))
            for allocation, values in found.items():
                off = float(np.sqrt((values[:, 1] ** 2).mean()))
                error = float(values[:, 1].std(ddof=1) / np.sqrt(REPEATS))
                claim = f"{name}, {allocation}: root mean square difference from the exact surface in standard errors, once stopped"
                rows.append(Row(claim, off, "sigma", error, 1.3, off <= 1.3))
    return rows


def measure(name: str) -> list[Row]:
    """Return the rows of one task.

    Along phi and psi uniform sampling stops at the cost of the adaptive one: what it would have cost to reach the target
    follows from the error it has there, which falls with the square root of the time.
    """
    task, rows = TASKS[name], []
    stages: dict[str, Stage] = {}
    truth = truth_of(task)
    n_walkers = task.n_windows ** len(task.along) * task.walkers
    for allocation in SHARED_OUT:
        most = stages["adaptive"].total / n_walkers if allocation == "uniform" and len(task.along) > 1 else None
        known = sample(task, allocation, most)
        stage = stages[allocation] = known.stages[-1]
        rmse, own, ratio = compare(known.surface, truth)
        # Nothing can be closer to the reference than the reference is to the truth.
        near = float(np.hypot(TARGET, own))
        goal, sure = None if most is not None else TARGET, not known.findings
        for finding in known.findings:
            print(f"{name}, {allocation}: {finding}", flush=True)
        rows += [
            Row(f"{name}, {allocation}: largest standard error below 8 kT when it stopped", stage.error, "kT", None, goal,
                None if goal is None else stage.error <= goal and sure, "simulated in all, ns", stage.total / 1000),
            Row(f"{name}, {allocation}: RMSE below 8 kT from the 144 ns reference", rmse, "kT", None, near,
                rmse <= near, "rms standard error of the reference, kT", own),
            Row(f"{name}, {allocation}: root mean square difference from it in standard errors", ratio, "sigma", None, 1.3, ratio <= 1.3),
        ]  # fmt: skip
    needed = {k: s.total * max(1.0, s.error / TARGET) ** 2 for k, s in stages.items()}
    how = "until the target" if stages["uniform"].error <= TARGET else "until the target (of uniform sampling: extrapolated)"
    saved = needed["uniform"] / needed["adaptive"]
    rows.append(Row(f"{name}: time {how}, uniform over adaptive", saved, "x", None, None, None, "uniform, ns", needed["uniform"] / 1000))
    return rows


def main() -> None:
    """Measure, print the table, write the results."""
    scale = scale_parser(__doc__).parse_args().scale
    molecules = [row for name in TASKS if scale == "paper" or name == "phi" for row in measure(name)]
    write_results("until", [*molecules, *toys()], scale=scale)


if __name__ == "__main__":
    main()
