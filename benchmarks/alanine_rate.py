"""Alanine dipeptide over phi = 0, from two states alone: paths, rates, free energy.

``python -m benchmarks.alanine_rate --scale small|paper [--repeats N]``

1. ``couloir run benchmarks/systems/alanine_phi.toml``: 500 paths from A to B that hold no frame of a first path.
2. Interface sampling from either side, started from these paths; every path gets its weight.  The first quarter of the cycles, or
   half, is left out where crossing probabilities still drift with it.
3. Brute force: long simulations begun in A and in B, 1 us together (``python -m benchmarks.reference.alanine_phi_brute_force``).

Rates both ways are compared with brute force, and the free energy along phi with umbrella sampling in bare OpenMM
(``benchmarks/reference``, other masses and time step, hence the same equilibrium), in cells where both know it to 1 kT.
All are kept in ``runs/`` and go on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reference import alanine_phi_brute_force as brute_force
from benchmarks.reference.alanine_phi_brute_force import Crossings
from benchmarks.reference.data import alanine_dipeptide_surface
from benchmarks.results import Row, scale_parser, write_results
from benchmarks.systems import alanine_phi as system
from couloir.analysis import PathEnsemble, reweighted_paths
from couloir.analysis.interface_drift import settled
from couloir.analysis.interface_samples import InterfaceSamples
from couloir.analysis.reweighted_paths import ReweightedPaths
from couloir.analysis.samples import IntArray
from couloir.analysis.surface_agreement import agreement
from couloir.cv import Dihedral
from couloir.generative import TrajectoryDiffusion
from couloir.paths_stage import about_first
from couloir.pipeline import execute
from couloir.run import Run
from couloir.sampling import TransitionInterfaceSampling, reactive_seeds
from couloir.sampling.openmm_engine import OpenMMEngine

RUN_FILE = Path(__file__).parent / "systems" / "alanine_phi.toml"
MODEL = Path(__file__).parents[1] / "tutorials" / "models" / "alanine_vacuum"
N_BINS, KNOWN, HIGHEST = 72, 1.0, 16.0
"""Cells of 5 degrees along phi; kT, the largest error of what counts as known; kT, above which no path of these ensembles goes."""
BY_CHANCE = 0.05
"""Free energies agree when differences as large as theirs have this chance: as for rates, two standard errors, of many cells together."""
KNOWN_BY = 50
"""Departures of brute force that come to an interface, from which on it is known how likely that is."""


@dataclass(frozen=True)
class Scale:
    """Cycles, sets, independent repeats of interface sampling from the placement on."""

    cycles: int
    sets: int
    repeats: int


SCALES = {"small": Scale(300, 8, 1), "paper": Scale(800, 8, 2)}
BRUTE = 1000.0
"""ns of brute force that are asked for."""


def paths() -> tuple[PathEnsemble, int, int]:
    """Return the paths that the run file asks for, the force evaluations of finding first ones, and their number."""
    with Run.create(RUN_FILE, system.RUNS / "alanine_phi.run") as run:
        execute(run)
        about = about_first(run)
        assert about is not None
        return PathEnsemble.load(run.path / "results" / "paths.npz"), int(about["force_evaluations"]), int(about["n"])


def sampled(md: OpenMMEngine, given: PathEnsemble, scale: str, sign: float, repeat: int = 0) -> InterfaceSamples:
    """Return interface sampling from A, or with ``sign=-1`` from B, with phi along every path; kept in a file."""
    a, b = system.states(md, sign)
    name = "from A" if sign > 0 else "from B"
    again = f"_{repeat + 1}" if repeat else ""
    file = system.RUNS / f"alanine_rate_{scale}_{name.replace(' ', '_')}{again}.npz"
    if not file.exists():
        sampling = TransitionInterfaceSampling.from_paths(
            given, md, a, b, along=system.progress(md, sign), seed=2 + 10 * repeat, name=name, max_duration=system.LONGEST
        )
        size = SCALES[scale]
        samples = sampling.run(n_cycles=size.cycles, seed=3 + 10 * repeat, n_sets=size.sets, record=[system.torsion(md)])
        print(samples, samples.rate, sep="\n", flush=True)
        samples.save(file)
    return InterfaceSamples.load(file)


def generated(md: OpenMMEngine, n: int, by_steering: float) -> list[Row]:
    """Return the rows about first paths from generated ones, by a model that was trained in vacuum with another force field.

    First paths carry no weight, so that any model may suggest them.
    """
    a, b = system.states(md)
    (in_a,) = md.propagate(md.molecule.state, duration="20 ps", stride=system.STRIDE, seed=11)
    (in_b,) = md.propagate(system.in_b(md), duration="20 ps", stride=system.STRIDE, seed=12)
    model = TrajectoryDiffusion.load(MODEL)
    settings: dict[str, Any] = {"n_generate": 50 * n, "n_shots_per_path": 4, "require_gates": False}
    found = reactive_seeds(model, md, a, b, n, data=[in_a, in_b], seed=13, **settings)
    print(found, flush=True)
    spent = found.counts["force evaluations"] + found.counts["force evaluations of rebuilding"]
    claim = f"force evaluations per first path from generated ones ({len(found.paths)} found)"
    return [Row(claim, spent / max(len(found.paths), 1), "", peer="by steering", peer_value=by_steering)]


def of_paths(md: OpenMMEngine, found: PathEnsemble, before: int, per_transition: float) -> list[Row]:
    """Return the rows about the ensemble of reactive paths; ``per_transition`` is what brute force spends for one."""
    cvs = (system.torsion(md), Dihedral.psi(md.topology, residue=2))
    independent = found.n_independent(cvs)
    free, all_of_it = int(found.multiplicity[found.decorrelated].sum()), before + found.force_evaluations
    rows = [
        Row("paths from two states by one command, without a frame of a first path", free, "", None, 500, free >= 500),
        Row("of these effectively independent, by phi, psi or durations, whichever gives fewest", independent, ""),
        Row("force evaluations of all of it", all_of_it, "", peer="of which for first paths, by steering", peer_value=before),
    ]
    for what, spent in (("all of it", all_of_it), ("sampling, first paths given", found.force_evaluations)):
        per_path = spent / independent
        target = 100.0 if spent == all_of_it else None
        ratio = per_transition / per_path
        claim = f"force evaluations of brute force per transition, over those per independent path ({what})"
        met = None if target is None else bool(ratio >= target)
        rows.append(Row(claim, ratio, "x", None, target, met, "force evaluations per independent path", per_path))
    return rows


def of_rates(found: list[ReweightedPaths], brute: tuple[Crossings, Crossings], ratio: tuple[float, float]) -> list[Row]:
    """Return the rows about rates both ways; ``ratio`` is the population of B over A by umbrella sampling, and its relative error."""
    rows = []
    there, back = brute
    indirect = back.rate * ratio[0], float(np.hypot(back.relative_error, ratio[1]))
    for way, name in ((1, "B to A"), (0, "A to B")):
        values, errors = np.array([(both.rates[way].value, both.rates[way].standard_error) for both in found]).T
        value, error = float(values.mean()), float(np.sqrt(np.sum(errors**2)) / len(errors))
        each = "; ".join(f"{1000 * v:.3g} ± {1000 * e:.2g}" for v, e in zip(values, errors, strict=True))
        mean = f", mean of {each}" if len(found) > 1 else ""
        direct = (there, back)[way]
        peers = [(f"brute force, {direct}", direct.rate, direct.relative_error)]
        if way == 0:
            peers.append(("brute force back, times populations by umbrella sampling", *indirect))
        for how, true, relative in peers:
            rows.append(Row(f"rate {name} ({how}){mean}", 1000 * value, "1/ns", 1000 * error, peer=how, peer_value=1000 * true))
            if np.isfinite(relative):
                away = abs(np.log(value / true)) / float(np.hypot(error / value, relative))
                rows.append(Row(f"its distance from {how}", away, "combined errors", None, 2.0, bool(away <= 2.0)))
    return rows


def of_reach(from_a: InterfaceSamples, counts: IntArray, which: str) -> list[Row]:
    """Return the rows about the farthest interface that brute force knows: departures from A are many, arrivals in B few."""
    k = int(np.flatnonzero(counts >= KNOWN_BY)[-1])
    value, relative = counts[k] / counts[0], 1.0 / float(np.sqrt(counts[k]))
    found, error = (float(column[k]) for column in (from_a.crossing.probability, from_a.crossing.standard_error))
    away = abs(np.log(found / value)) / float(np.hypot(error / found, relative))
    level = from_a.interfaces[k]
    how = f"brute force, {counts[k]} of {counts[0]}"
    return [
        Row(f"probability to come from A to onward = {level:.3f}{which}", found, "", error, peer=how, peer_value=float(value)),
        Row(f"its distance from {how}{which}", away, "combined errors", None, 2.0, bool(away <= 2.0)),
    ]


def of_surface(both: ReweightedPaths, which: str) -> list[Row]:
    """Return the rows about the free energy along phi."""
    edges = np.linspace(-np.pi, np.pi, N_BINS + 1)
    mine = both.free_energy("phi", temperature=system.TEMPERATURE, bins=edges)
    true = alanine_dipeptide_surface("phi", bins=N_BINS)
    freedom = min(side.weights.freedom for side in both.sides)
    found = agreement(mine, true, below=HIGHEST, largest_error=KNOWN, freedom=(freedom, None))
    return [
        Row(f"free energy along phi from paths, against umbrella sampling: rms difference{which}", found.rms, "kT",
            peer=f"cells of {N_BINS} in which both know it to {KNOWN:g} kT", peer_value=found.n_cells),
        Row(f"its largest difference in combined standard errors{which}", found.largest, ""),
        Row(f"chance of such differences, if both are right: at least {BY_CHANCE:g}{which}", found.p, "", None, BY_CHANCE,
            found.p >= BY_CHANCE),
    ]  # fmt: skip


def populations() -> tuple[float, float]:
    """Return the population of B over that of A by umbrella sampling, and its relative error; all beyond 0 counts, as little is between."""
    surface = alanine_dipeptide_surface("phi", bins=N_BINS).in_kT
    phi = surface.grid[0]
    in_b = (phi > 0) & (phi < system.CUT)
    weights = np.exp(-np.concatenate([surface.free_energy[None], surface.replicas]))
    ratio = np.nansum(weights[:, in_b], axis=1) / np.nansum(weights[:, ~in_b], axis=1)
    return float(ratio[0]), float(np.log(ratio[1:]).std(ddof=1))


def main() -> None:
    """Sample, print the table, write the results."""
    parser = scale_parser(__doc__, SCALES)
    parser.add_argument("--repeats", type=int, default=None, help="of interface sampling, instead of those of the scale")
    arguments = parser.parse_args()
    scale, md = arguments.scale, system.engine()
    n_repeats = arguments.repeats or SCALES[scale].repeats
    given, before, n_first = paths()
    runs = [[sampled(md, given, scale, sign, repeat) for sign in (-1.0, 1.0)][::-1] for repeat in range(n_repeats)]
    spent = sum(side.force_evaluations for sides in runs for side in sides)
    runs = [[settled(side) for side in sides] for sides in runs]
    found = [reweighted_paths(*sides) for sides in runs]
    print(*(finding for both in found for finding in both.findings), sep="\n")
    brute, ratio = brute_force.counted(), populations()
    rows = of_paths(md, given, before, 1.0 / (brute[1].rate * ratio[0] * system.TIME_STEP)) + generated(md, n_first, before / n_first)
    rows += of_rates(found, brute, ratio)
    for number, (sides, both) in enumerate(zip(runs, found, strict=True), 1):
        which = f" (run {number})" if len(runs) > 1 else ""
        reach = brute_force.reach(sides[0].interfaces)
        rows += [*of_reach(sides[0], reach, which), *of_surface(both, which)]
        rows.append(Row(f"population of A from paths{which}", both.population.value, "", both.population.standard_error,
                        peer="umbrella sampling", peer_value=1.0 / (1.0 + ratio[0])))  # fmt: skip
    simulated = sum(way.time for way in brute)
    rows.append(Row("force evaluations of interface sampling, both ways", spent, "",
                    peer="of brute force", peer_value=simulated / system.TIME_STEP))  # fmt: skip
    rows.append(Row("simulated by brute force", simulated / 1000, "ns", None, BRUTE, bool(simulated / 1000 >= 0.99 * BRUTE)))
    write_results("alanine_rate", rows, scale=scale)


if __name__ == "__main__":
    main()
