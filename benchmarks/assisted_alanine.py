"""Alanine dipeptide from one basin: generated and weighed, dragged and umbrella sampled, or flooded by metadynamics.

    python -m benchmarks.assisted_alanine --scale small|paper

OBC2, 300 K, 2 fs; every contender begins at the same minimum in C7eq, and is charged every force evaluation: energies of generated
structures, dragging and training data included.  Its error is the RMSE of F(phi) from the 144 ns reference below 8 kT over 36
cells.  The time to 0.3 kT is the first after which the error stays there, or a lower bound where it never does.

``assisted`` knows phi and psi: a structure is dragged over a grid of windows on both, and what 0.6 ps in each show teaches a model
of everything else, given phi and psi; how much each phi and psi weigh, its structures tell by their energies
(:func:`couloir.sampling.sample_adaptively`).  It gives one answer per repeat.  Dragged windows and metadynamics know phi, as usual;
to see what knowing psi is worth without a model, a denser grid of windows on both is run with exchange and weighed by WHAM.
``phi alone`` is the closed loop :func:`couloir.sampling.assisted_sampling`, which is not given psi.
Networks cost time too, which is reported.  Repeats that are done are kept in ``runs/``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.reference.data import alanine_dipeptide_surface
from benchmarks.results import Row, scale_parser, write_results
from couloir.analysis import free_energy_surface
from couloir.cv.geometric import Dihedral
from couloir.generative import ConditionalSGM, InternalCoordinates, TrainingPlan
from couloir.generative.symmetry import turned_at_random
from couloir.sampling import OpenMMEngine, Seeds, UmbrellaSampling, assisted_sampling, dragged_seeds, sample_adaptively, systems
from couloir.sampling.dragging import THERMALIZATION_STEPS
from couloir.sampling.seeding import geometry_gates
from couloir.streams import integer_seed
from couloir.trajectory import Array, State
from couloir.units import GAS_CONSTANT

RUNS = Path(__file__).parents[1] / "runs"
TARGET = 0.3
BINS = 36
REPEATS = {"small": 5, "paper": 5}
LOOPED = 3
"""Repeats of the closed loop that knows phi alone."""
KNOWN = 50.0
"""ps of unbiased dynamics in C7eq that the first model learns from."""
LONGEST = {"small": 100.0, "paper": 200.0}
"""ps per walker of the dragged windows."""
FLOODED = {"small": 5000.0, "paper": 10_000.0}
"""ps of metadynamics."""
FINAL = 150
"""Structures per window at the end."""

MOLECULE = systems.alanine_dipeptide(solvent="obc2")
PHI, PSI = Dihedral.phi(MOLECULE.topology, residue=2), Dihedral.psi(MOLECULE.topology, residue=2)
KT = GAS_CONSTANT * 300.0
PLAN = TrainingPlan(steps=1200, patience=4)
GRID, STIFFNESS, SETTLING, SHOWN = 12, 60.0, 0.2, 0.6
"""Windows along phi and along psi, their force constant (kJ/mol/rad^2), and the time in each that counts not, and that does, ps."""
GENERATED = 15_000
DENSE, STIFF = 18, 150.0
"""The same for a grid without a model, which needs windows that overlap and hold on every slope; and ps in each of them."""
LEAST = {"small": 3.0, "paper": 8.0}


def engine() -> OpenMMEngine:
    """Return the engine of all contenders."""
    return OpenMMEngine(MOLECULE, platform="Reference")


def windows() -> UmbrellaSampling:
    """Return the windows along phi."""
    return UmbrellaSampling.grid(PHI, 36, "100 kJ/mol/rad^2")


def start() -> State:
    """Return the minimum in C7eq."""
    (state,) = engine().minimize([MOLECULE.state])
    assert isinstance(state, State)
    return state


def error_of(free_energy: Array, along: str = "phi", truth: Array | None = None) -> float:
    """Return the RMSE (kT) of F (BINS,) in kJ/mol from the reference, or from ``truth``, where the reference is below 8 kT.

    Cells never seen count as 8 kT.
    """
    whole = alanine_dipeptide_surface(along, n_bootstrap=0, bins=BINS).free_energy / KT
    f = free_energy / KT
    f = np.where(np.isfinite(f), f, np.nanmin(f) + 8.0)
    use = whole - whole.min() < 8.0
    return float(np.std((f - (whole if truth is None else truth / KT))[use]))


def plane(n: int, stiffness: float, seed: int) -> tuple[UmbrellaSampling, Seeds, float]:
    """Return windows along phi and psi, a structure dragged to each, and the force evaluations that took."""
    along = UmbrellaSampling.grid([PHI, PSI], [n, n], f"{stiffness} kJ/mol/rad^2")
    seeds = dragged_seeds(engine(), along, start(), 1, seed=seed, thermalization=SETTLING, relax=False)
    moves = int(np.ceil(2 * np.pi / n / np.sqrt(KT / stiffness)))
    return along, seeds, len(along) * SETTLING / 0.002 * (1 + (moves - 1) / 4)


def assisted(seed: int) -> dict[str, Array]:
    """Return what a model given phi and psi reaches and costs."""
    begun, md = time.perf_counter(), engine()
    along, seeds, before = plane(GRID, STIFFNESS, seed)
    runs = md.propagate(
        list(seeds.states), duration=SHOWN, stride=0.02, bias=[along.windows[w] for w in seeds.windows], record=along.cvs,
        seed=[integer_seed(seed, "window", i) for i in range(len(along))],
    )  # fmt: skip
    frames = turned_at_random(np.concatenate([run.positions for run in runs]), MOLECULE.topology, seed=seed)
    internal = InternalCoordinates(MOLECULE.topology, torsions=[PHI.atoms, PSI.atoms])
    model = ConditionalSGM(internal, label=(PHI, PSI)).fit(frames, seed=seed, plan=TrainingPlan(steps=1500, patience=6))
    print(f"assisted {seed}: {model}", flush=True)
    made = sample_adaptively(model, md, GENERATED, PHI, seed=seed, settings={"n_steps": 12, "check": None}, gates=geometry_gates(md, None))
    print(f"assisted {seed}: {made}", flush=True)
    surface = made.surface("phi", bins=BINS, limits=(-np.pi, np.pi), n_bootstrap=100, seed=seed)
    spent = before + len(along) * SHOWN / 0.002 + GENERATED
    own = float(np.nanmedian(surface.standard_error) / KT)
    share = made.effective_samples / len(made)
    numbers = [error_of(surface.free_energy), spent, len(made), time.perf_counter() - begun, share, own]
    values, weights = made.samples.values, np.exp(made.log_weights)
    return {"numbers": np.array(numbers), "free_energy": surface.free_energy, "labels": values[:, :2], "weights": weights}


def windowed(seed: int, longest: float) -> dict[str, Array]:
    """Return the error of WHAM over windows along phi and psi, reached in the same way, against force evaluations."""
    begun = time.perf_counter()
    along, seeds, before = plane(DENSE, STIFF, seed)
    samples = along.run(engine(), seeds, longest, seed=seed, record_stride=0.02)
    times = np.geomspace(SHOWN, longest, 6)
    errors = [error_of(free_energy_surface(samples.until(t), "phi", n_bootstrap=0, bins=BINS).free_energy) for t in times]
    cost = before + len(along) * times / 0.002
    return {"cost": cost, "error": np.array(errors), "numbers": np.array([time.perf_counter() - begun])}


def looped(seed: int) -> dict[str, Array]:
    """Return what the closed loop reaches and costs that knows phi alone."""
    begun = time.perf_counter()
    [md] = engine().propagate([start()], duration=KNOWN, stride=0.05, seed=seed)
    model = ConditionalSGM(InternalCoordinates(MOLECULE.topology, torsions=[PHI.atoms]), label=PHI)

    def fit(positions: Array, weights: Array, seed: int) -> object:
        return model.fit(positions, weights=weights, seed=seed, plan=PLAN)

    done = assisted_sampling(
        fit, engine(), windows(), md.positions, seed=seed, record=(PSI,), final=FINAL, burst="2 ps", proposals=40, per_window=4, enough=3.0,
        settings={"n_steps": 30, "check": None}, on_round=lambda line: print(f"phi alone {seed}: {line}", flush=True),
    )  # fmt: skip
    print(done, flush=True)
    surface = done.surface("phi", bins=BINS, limits=(-np.pi, np.pi), n_bootstrap=100, seed=seed)
    share = done.generated.effective_samples / len(done.generated)
    spent = done.force_evaluations + round(KNOWN / 0.002)
    own = float(np.nanmedian(surface.standard_error) / KT)
    numbers = [error_of(surface.free_energy), spent, done.structures, time.perf_counter() - begun, share, own]
    return {"numbers": np.array(numbers), "free_energy": surface.free_energy}


def dragged(seed: int, longest: float) -> dict[str, Array]:
    """Return the error of dragged windows with exchange against force evaluations."""
    begun, along = time.perf_counter(), windows()
    seeds = dragged_seeds(engine(), along, start(), 2, seed=seed)
    samples = along.run(engine(), seeds, longest, seed=seed, record=(PSI,))
    # One window to the next: as many moves of a quarter thermalization as widths lie between, then a whole one.
    moves = int(np.ceil(2 * np.pi / 36 / np.sqrt(KT / 100.0)))
    before = 72 * THERMALIZATION_STEPS * (1 + (moves - 1) / 4)
    times = np.geomspace(5.0, longest, 16)
    errors = [error_of(free_energy_surface(samples.until(t), "phi", n_bootstrap=0, bins=BINS).free_energy) for t in times]
    return {"cost": before + 72 * times / 0.002, "error": np.array(errors), "numbers": np.array([time.perf_counter() - begun])}


def metadynamics(seed: int, longest: float) -> dict[str, Array]:
    """Return the error of OpenMM's well-tempered metadynamics along phi against force evaluations.

    Bias factor 8, hills of 1 kJ/mol and 0.25 rad every ps: usual choices for this molecule.
    """
    import openmm
    from openmm import unit
    from openmm.app import BiasVariable, Metadynamics, Simulation, Topology

    begun = time.perf_counter()
    system = openmm.XmlSerializer.deserialize(MOLECULE.system_xml)
    torsion = openmm.CustomTorsionForce("theta")
    torsion.addTorsion(*PHI.atoms)
    variable = BiasVariable(torsion, -np.pi, np.pi, 0.25, True, gridWidth=BINS * 5 + 1)
    flood = Metadynamics(system, [variable], 300 * unit.kelvin, 8.0, 1.0 * unit.kilojoules_per_mole, 500)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.002)
    integrator.setRandomNumberSeed(seed + 1)
    topology = Topology()
    chain = topology.addChain()
    residue = topology.addResidue("ALA", chain)
    for atom in MOLECULE.topology.atoms:
        topology.addAtom(atom.name, None, residue)
    simulation = Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(start().positions)
    simulation.context.setVelocitiesToTemperature(300.0, seed + 1)
    times, errors, at = np.geomspace(100.0, longest, 20).round(), [], 0.0
    for t in times:
        flood.step(simulation, round((t - at) / 0.002))
        at = t
        grid = np.asarray(flood.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)).ravel()[:-1]
        # Five grid points around each cell's centre (the first of all lies on the edge): their Boltzmann mean is the cell's.
        cell = -KT * np.log(np.exp(-(np.roll(grid, -1) - grid.min()) / KT).reshape(BINS, 5).mean(axis=1))
        errors.append(error_of(cell))
    return {"cost": times / 0.002, "error": np.array(errors), "numbers": np.array([time.perf_counter() - begun])}


def kept(name: str, seed: int, made: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """Return the repeat kept in ``runs/``, or make and keep it."""
    file = RUNS / f"assisted_alanine_{name}_{seed}.npz"
    if not file.exists():
        RUNS.mkdir(exist_ok=True)
        np.savez(file, **made())  # type: ignore[arg-type]
    with np.load(file) as data:
        return {key: data[key] for key in data.files}


def reached(one: dict[str, Array]) -> tuple[float, bool]:
    """Return the force evaluations after which the error stays at the target, or all that were spent and False."""
    bad = np.flatnonzero(one["error"] > TARGET)
    first = 0 if not len(bad) else int(bad[-1]) + 1
    return (float(one["cost"][first]), True) if first < len(one["cost"]) else (float(one["cost"][-1]), False)


def basins(one: dict[str, Array]) -> list[tuple[str, float, int]]:
    """Return the basins of the plane with the share of effective samples among the structures in each, and how many these are."""
    phi, psi = one["labels"].T
    inside = {
        "C7eq and C5": (phi < 0) & (psi > 0),
        "alpha-R": (phi < 0) & (psi <= 0),
        "alpha-L": (phi > 0.3) & (phi < 1.6) & (psi > -0.5) & (psi < 2.0),
    }
    return [(name, float(w.sum() ** 2 / (w**2).sum() / len(w)), len(w)) for name, mask in inside.items() for w in (one["weights"][mask],)]


def crossing(one: dict[str, Array], seed: int) -> float:
    """Return the share of generated structures that a chain of independence moves accepts and that take it across phi = 0."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(one["weights"]))
    at, crossed = order[np.argmax(one["weights"][order] > 0)], 0
    for k in order:
        if rng.random() * one["weights"][at] < one["weights"][k]:
            crossed += int((one["labels"][at, 0] > 0) != (one["labels"][k, 0] > 0))
            at = k
    return crossed / len(order)


def of_assisted(name: str, found: list[dict[str, Array]], target: float | None) -> list[Row]:
    """Return what a contender with models reaches, and what it costs."""
    ours = np.array([one["numbers"] for one in found])
    worst, mean = float(ours[:, 0].max()), float(ours[:, 0].mean())
    return [
        Row(f"{name}: RMSE below 8 kT from the 144 ns reference ({len(ours)} repeats, worst)", worst, "kT", None, target,
            None if target is None else worst <= target, "mean", mean),
        Row(f"{name}: force evaluations in all", float(ours[:, 1].mean()), "", _error(ours[:, 1]), peer="structures generated",
            peer_value=float(ours[:, 2].mean())),
        Row(f"{name}: share of effective samples among the last model's structures", float(100 * ours[:, 4].mean()), "%",
            _error(100 * ours[:, 4])),
        Row(f"{name}: median standard error it claims", float(ours[:, 5].mean()), "kT", _error(ours[:, 5])),
        Row(f"{name}: wall-clock time, networks included", float(ours[:, 3].mean()), "s", _error(ours[:, 3])),
    ]  # fmt: skip


def measure(scale: str) -> list[Row]:
    """Return the rows of all contenders."""
    n = REPEATS[scale]
    ours = [kept("plane", i, partial(assisted, i)) for i in range(n)]
    rows = of_assisted("assisted", ours, TARGET)
    for k, (name, _, _) in enumerate(basins(ours[0])):
        shares, counts = np.array([basins(one)[k][1:] for one in ours]).T
        rows.append(Row(f"assisted: share of effective samples among structures in {name}", float(100 * shares.mean()), "%",
                        _error(100 * shares), peer="structures", peer_value=float(counts.mean())))  # fmt: skip
    moves = 1000 * np.array([crossing(one, i) for i, one in enumerate(ours)])
    rows.append(Row("generative moves accepted across phi = 0, in 1000 proposals", float(moves.mean()), "", _error(moves), 1.0,
                    bool(moves.min() >= 1.0)))  # fmt: skip
    peers = {
        "dragged windows with exchange": [kept(f"dragged_{scale}", i, partial(dragged, i, LONGEST[scale])) for i in range(n)],
        "well-tempered metadynamics": [kept(f"metadynamics_{scale}", i, partial(metadynamics, i, FLOODED[scale])) for i in range(n)],
        "windows along phi and psi": [kept(f"windowed_{scale}", i, partial(windowed, i, LEAST[scale])) for i in range(n)],
    }
    errors, costs = (np.array([one["numbers"][k] for one in ours]) for k in (0, 1))
    there = int((errors <= TARGET).sum())
    for name, found in peers.items():
        spent, done = zip(*(reached(one) for one in found), strict=True)
        ratio = float(np.mean(spent) / costs.mean())
        short = f" (a lower bound: {n - sum(done)} of {n} never got there)" if not all(done) else ""
        target = None if "psi" in name else 5.0  # the goal was set against those that know phi
        # A ratio of costs says something only where both sides arrive.
        rows.append(Row(f"force evaluations to {TARGET} kT, {name} over assisted, which got there in {there} of {n}{short}", ratio, "x",
                        None, target, None if target is None else ratio >= target and there == n,
                        f"{name}, force evaluations", float(np.mean(spent))))  # fmt: skip
        rows.append(Row(f"{name}: wall-clock time", float(np.mean([one["numbers"][0] for one in found])), "s"))
        for i in range(0, len(found[0]["cost"]), 5 if len(found[0]["cost"]) > 6 else 1):
            at = np.array([one["error"][i] for one in found])
            rows.append(Row(f"{name}: RMSE after {found[0]['cost'][i]:.3g} force evaluations", float(at.mean()), "kT", _error(at)))
    rows += of_assisted("phi alone", [kept("assisted", i, partial(looped, i)) for i in range(LOOPED)], None)
    return rows


def _error(values: Array) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def main() -> None:
    """Measure, print the table, write the results."""
    scale = scale_parser(__doc__, REPEATS).parse_args().scale
    write_results("assisted_alanine", measure(scale), scale=scale)


if __name__ == "__main__":
    main()
