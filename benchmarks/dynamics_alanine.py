"""DynamicsDiffusion on alanine dipeptide: ``python -m benchmarks.dynamics_alanine --scale small|paper [--no-crossings] [--model FOLDER]``.

A model of 64-frame snippets (1.28 ps) of vacuum dynamics is trained, or read where ``FOLDER`` holds one, and its snippets are compared with
held-out simulation.  With ``--no-crossings`` its training data are cut into pieces that stay in C7eq or in C7ax; then paths from one to the
other are inpainted, or are lines in internal coordinates that the model varies, and judged by real dynamics, in force evaluations per
reactive path beside brute force.  ``--others FOLDER`` takes simulations made by others instead (``ala2.pdb`` and ``t*.dcd``, implicit
solvent, a frame per ps), without paths.  ``--cartesian`` trains the same network as long on aligned Cartesian coordinates, which the paper
has, instead of internal ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import Row, scale_parser, write_results
from benchmarks.systems import alanine
from benchmarks.systems import snippet_measures as of
from couloir.cv import Dihedral
from couloir.errors import ModelError, SimulationError
from couloir.generative import FittedTrajectoryDiffusion, HeavyAtoms, HeavyInternal, TrajectoryDiffusion
from couloir.generative.trajectory_diffusion import DEFAULT_PLAN
from couloir.sampling import reactive_seeds
from couloir.sampling.path_scores import score_paths, superposed_distance
from couloir.sampling.reactive import ReactiveSeeds
from couloir.trajectory import Array, Trajectory

N_FRAMES, N_CALLS, SHOTS_PER_PATH = 64, 20, 4
SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "c7eq": (18, 2), "c7ax": (9, 2), "waiting": 5, "generated": 2_000, "paths": 200, "steps": 12_000, "others": 5_000,
        "batch": 64, "channels": 32,
    },
    "paper": {
        "c7eq": (20, 2), "c7ax": (10, 2), "waiting": 20, "generated": 10_000, "paths": 500, "steps": 100_000, "others": 100_000,
        "batch": 512, "channels": 128,
    },
}  # fmt: skip
"""Nanoseconds to learn from and to compare with; tens of nanoseconds of brute force; snippets and paths generated; size of training, which
has fewer steps where the few simulations made by others are all there is to learn from."""


WAYS = {"inpainted": None, "lines as they are": 0.0, "lines varied at 0.1": 0.1}
"""How paths across phi are generated, and the level of variation (``reactive_seeds(level=)``)."""


@dataclass(frozen=True, eq=False)
class Data:
    """Heavy-atom runs to learn from and to compare with; ``complete`` holds all-atom structures of C7eq and of C7ax.

    ``spent`` are the force evaluations of what is learned from, ``escapes`` what the runs in C7ax say about the way back.
    """

    topology: Any
    stride: float
    learned: list[Array]
    held_out: list[Array]
    complete: tuple[Array, Array] | None = None
    spent: float = 0.0
    escapes: alanine.Waiting = field(default_factory=lambda: alanine.Waiting(0, 0.0))

    @property
    def kept(self) -> Any:
        """Topology of the heavy atoms."""
        return self.topology.subset(alanine.heavy_atoms(self.topology))


def vacuum(scale: str, no_crossings: bool) -> Data:
    """Return the vacuum simulations: one long run from C7eq, or, without crossings, pieces of it and of runs in C7ax."""
    topology, size = alanine.molecule().topology, SCALES[scale]
    (n_eq, m_eq), (n_ax, m_ax) = size["c7eq"], size["c7ax"]
    eq = alanine.simulated("c7eq", n_eq + m_eq)
    runs = [np.concatenate([c.heavy for c in part]) for part in (eq[:n_eq], eq[n_eq:])]
    data = Data(topology, alanine.STRIDE, runs[:1], runs[1:], None, len(runs[0]) * alanine.STRIDE / alanine.TIME_STEP)
    phi = Dihedral.phi(data.kept, residue=2)
    there, back = of.crossings(of.torsion(runs[0], phi), alanine.C7EQ, alanine.C7AX)
    print(f"{len(runs[0]) * alanine.STRIDE / 1000:g} ns to learn from, {there} crossings C7eq -> C7ax, {back} back", flush=True)
    if not no_crossings:
        return data
    ax = alanine.simulated("c7ax", n_ax + m_ax)
    sides = [[c.heavy for c in part] for part in (ax[:n_ax], ax[n_ax:])]
    # the shares of the two states in the held-out data are those of the training data
    share = sum(map(len, sides[0])) / len(runs[0])
    sides[1] = [np.concatenate(sides[1])[: round(share * len(runs[1]))]]
    learned, held_out = (
        [piece for run in (run, *side) for piece in of.pieces(run, of.torsion(run, phi), alanine.BARRIERS, N_FRAMES)]
        for run, side in zip(runs, sides, strict=True)
    )
    complete = np.concatenate([c.complete for c in eq[:n_eq]]), np.concatenate([c.complete for c in ax[:n_ax]])
    escapes = alanine.Waiting(sum(c.escaped for c in ax), sum(len(c.heavy) for c in ax) * alanine.STRIDE)
    return replace(data, learned=learned, held_out=held_out, complete=complete, spent=data.spent * (1 + share), escapes=escapes)


def others(folder: Path) -> Data:
    """Return simulations made by others: all but the last to learn from."""
    runs = [Trajectory.load(file, folder / "ala2.pdb") for file in sorted(folder.glob("t*.dcd"))]
    topology = runs[0].topology
    heavy = alanine.heavy_atoms(topology)
    frames = [run.positions[:, heavy] for run in runs]
    return Data(topology, 1.0, frames[:-1], frames[-1:])


def train(scale: str, data: Data, folder: Path, steps: int, cartesian: bool) -> FittedTrajectoryDiffusion:
    """Return the model in ``folder``, trained now unless it is there."""
    if (folder / "model.json").exists():
        return TrajectoryDiffusion.load(folder)
    size = SCALES[scale]
    representation = HeavyAtoms(data.topology) if cartesian else HeavyInternal(data.topology)
    untrained = TrajectoryDiffusion(representation, N_FRAMES, base_channels=size["channels"], head="plain")
    plan = replace(DEFAULT_PLAN, steps=steps, batch_size=size["batch"], learning_rate=2e-3)

    def tell(step: int, now: float, held_out: float) -> None:
        print(f"step {step}: loss {now:.4f}, held out {held_out:.4f}", flush=True)

    model = untrained.fit(data.learned, stride=data.stride, seed=1, plan=plan, checkpoint=folder / "training", progress=tell)
    model.save(folder)
    return model


def measure(model: FittedTrajectoryDiffusion, data: Data, n: int) -> list[Row]:
    """Return the rows about snippets that the model generates, beside held-out simulation."""
    start = time.perf_counter()
    made = model.sample(n, seed=3, n_calls=N_CALLS)
    seconds = time.perf_counter() - start
    real, learned = of.cut(data.held_out, N_FRAMES), of.cut(data.learned, N_FRAMES)
    rng = np.random.default_rng(0)
    few = min(len(made), len(real), len(learned))
    same = [x[rng.permutation(len(x))[:few]] for x in (made, real, learned)]  # the divergence depends on the number of frames
    torsions = [Dihedral.phi(data.kept, residue=2), Dihedral.psi(data.kept, residue=2)]
    angles = [[of.torsion(x, cv) for cv in torsions] for x in same]
    surfaces = [of.histogram(pair[0], pair[1]) for pair in angles]
    rows = [
        Row(f"phi/psi surface, Jensen-Shannon divergence from held-out MD, {N_CALLS} calls", of.jensen_shannon(surfaces[0], surfaces[1]),
            "nats", None, None, None, "training MD", of.jensen_shannon(surfaces[2], surfaces[1])),
        Row("F(phi, psi) below 5 kT, mean absolute error", of.surface_error(surfaces[0], surfaces[1]), "kT",
            None, None, None, "training MD", of.surface_error(surfaces[2], surfaces[1])),
    ]  # fmt: skip
    for i, name in enumerate(("phi", "psi")):
        mean = complex(np.exp(1j * angles[1][i]).mean())
        memory = [of.circular_autocorrelation(pair[i], mean)[: N_FRAMES // 2] for pair in angles]
        off = [float(np.abs(memory[j] - memory[1]).max()) for j in (0, 2)]
        claim = f"autocorrelation of {name} up to {N_FRAMES // 2 * data.stride:g} ps, largest difference from held-out MD"
        rows.append(Row(claim, off[0], "", None, None, None, "training MD", off[1]))
    index = {a: i for i, a in enumerate(data.kept.atoms)}
    bonds = np.array([(index[a], index[b]) for a, b in data.kept.bonds])
    lengths = [of.bond_lengths(x, bonds) for x in same]
    shift, ratio = np.abs(lengths[0][0] - lengths[1][0]).max(), (lengths[0][1] / lengths[1][1])
    jumps = [superposed_distance(x[:, 1:].reshape(-1, *x.shape[2:]), x[:, :-1].reshape(-1, *x.shape[2:])) for x in same[:2]]
    against = Trajectory(np.concatenate(data.learned)[:50_000], data.stride, topology=data.kept)
    scores = [score_paths(x, md=against) for x in same[:2]]
    rows += [
        Row("bond lengths, largest error of a mean", 1e4 * float(shift), "1e-4 nm"),
        Row("bond lengths, spread over that of MD, the one farthest off", float(ratio[np.abs(np.log(ratio)).argmax()]), ""),
        Row("step from frame to frame, mean", 1e3 * float(jumps[0].mean()), "1e-3 nm",
            None, None, None, "held-out MD", 1e3 * float(jumps[1].mean())),
        Row("step from frame to frame, 99.9th percentile", 1e3 * float(np.quantile(jumps[0], 0.999)), "1e-3 nm",
            None, None, None, "held-out MD", 1e3 * float(np.quantile(jumps[1], 0.999))),
        Row("snippets that pass every gate", float(scores[0].passed_all.mean()), "",
            None, None, None, "held-out MD", float(scores[1].passed_all.mean())),
    ]  # fmt: skip
    rows += [
        Row(
            f"snippets that pass the gate {gate}",
            float(ok.mean()),
            "",
            None,
            None,
            None,
            "held-out MD",
            float(scores[1].passed[gate].mean()),
        )
        for gate, ok in scores[0].passed.items()
    ]
    speed = n * N_FRAMES * data.stride * 1e-3 / seconds * 86_400
    return [*rows, Row("generation", speed, "ns/day", None, None, None, "OpenMM in vacuum, all cores", simulation_speed())]


def simulation_speed() -> float:
    """Return what OpenMM simulates in vacuum on this machine, one walker per core, ns/day."""
    simulator = alanine.engine()
    starts = [simulator.molecule.state] * simulator.workers
    simulator.propagate(starts, duration="1 ps", seed=0)
    start = time.perf_counter()
    simulator.propagate(starts, duration="200 ps", seed=1)
    return float(0.2 * simulator.workers / (time.perf_counter() - start) * 86_400)


def across_phi(model: FittedTrajectoryDiffusion, data: Data, scale: str, n: int) -> list[Row]:
    """Return the rows about paths from C7eq to C7ax that are generated in each of ``WAYS`` and then shot from."""
    assert data.complete is not None
    simulator = alanine.engine()
    a, b = alanine.regions(simulator.topology)
    settings: dict[str, Any] = {
        "seed": 5, "starts_a": data.complete[0], "starts_b": data.complete[1], "data": _heavy(data), "n_generate": n,
        "n_shots_per_path": SHOTS_PER_PATH,
    }  # fmt: skip
    rows = []
    for way, level in WAYS.items():
        gated = True
        try:
            found = _seeds(model, simulator, a, b, n, settings | {"level": level})
        except ModelError as error:
            print(error, "-> shooting regardless of the gates", flush=True)
            gated = False
            try:
                found = _seeds(model, simulator, a, b, n, settings | {"require_gates": False, "generated": error.partial})
            except ModelError as worse:
                print(worse, flush=True)
                rows.append(Row(f"C7eq -> C7ax, {way}: paths with a frame between the states", 0.0, ""))
                continue
        print(found, flush=True)
        rows += judged(found, way, gated, data, alanine.waiting(SCALES[scale]["waiting"]))
    return rows


def judged(found: ReactiveSeeds, way: str, gated: bool, data: Data, brute: alanine.Waiting) -> list[Row]:
    """Return the rows about what became of generated paths, in force evaluations beside brute force."""
    counts, n = found.counts, found.counts["generated"]
    spent = counts["force evaluations"] + counts["force evaluations of rebuilding"]
    seeds, independent = counts["with frames between A and B"], len(set(found.generated_paths.tolist()))
    gate, nothing = "" if gated else " (none, shot from regardless)", "" if independent else " (none found)"
    rows = [
        Row(f"C7eq -> C7ax, {way}: paths that pass every gate{gate}", counts.get("passed every gate", 0) / n, ""),
        Row(f"{way}: of {seeds} paths shot from, share with a shot that connects", independent / seeds, "",
            float(np.sqrt(independent * (seeds - independent) / seeds**3))),
        Row(f"{way}: of {counts['shots']} shots, share that connects", counts["connecting"] / max(counts["shots"], 1), ""),
        Row(f"{way}: force evaluations per reactive path, shots and rebuilding{nothing}", spent / max(independent, 1), "", None, None, None,
            f"brute force from C7eq, {brute}", brute.force_evaluations),
    ]  # fmt: skip
    for where, simulations, cost, target in (
        ("brute force from C7eq, over it", brute, spent, 50.0),
        ("brute force from C7ax, the easier way, over it", data.escapes, spent, None),
        ("brute force from C7eq, over it and the simulations learned from", brute, spent + data.spent, None),
    ):
        ratio = simulations.at_least(independent, cost)
        met = None if target is None else bool(ratio >= target)
        known = simulations.force_evaluations * independent / cost if simulations.arrivals else None
        said = f"{simulations.arrivals} arrivals in {simulations.time / 1000:.3g} ns" + ("" if known is None else ": estimate")
        rows.append(Row(f"{way}: {where}: lower bound at 95 % confidence", ratio, "x", None, target, met, said, known))
    return rows


def _seeds(model: FittedTrajectoryDiffusion, simulator: Any, a: Any, b: Any, n: int, settings: dict[str, Any]) -> ReactiveSeeds:
    try:
        found: ReactiveSeeds = reactive_seeds(model, simulator, a, b, n, **settings)
    except SimulationError as error:
        partial: Any = error.partial
        if not isinstance(partial, ReactiveSeeds):
            raise
        return partial
    return found


def _heavy(data: Data, n_frames: int = 25_000) -> list[Trajectory]:
    """Return the first and the last training frames, heavy atoms only."""
    together = np.concatenate(data.learned)
    return [Trajectory(frames, data.stride, topology=data.kept) for frames in (together[:n_frames], together[-n_frames:])]


def main() -> None:
    """Simulate, train, measure, print the table, write the results."""
    parser = scale_parser(__doc__, SCALES)
    parser.add_argument("--model", type=Path, default=None, help="folder that holds the model, or will")
    parser.add_argument("--no-crossings", action="store_true", help="learn from pieces that stay on one side of phi; then inpaint across")
    parser.add_argument("--cartesian", action="store_true", help="aligned Cartesian coordinates, as the paper has, not internal ones")
    parser.add_argument("--others", type=Path, default=None, help="folder of simulations made by others")
    parser.add_argument("--steps", type=int, default=None, help="gradient steps in place of those of the scale")
    arguments = parser.parse_args()
    if arguments.others is not None and arguments.no_crossings:
        parser.error("--no-crossings needs the vacuum simulations, not --others")
    kind = "_others" if arguments.others is not None else "_no_crossings" if arguments.no_crossings else ""
    kind += "_cartesian" if arguments.cartesian else ""
    data = vacuum(arguments.scale, arguments.no_crossings) if arguments.others is None else others(arguments.others)
    folder = arguments.model or alanine.RUNS / f"dynamics_alanine{kind}_{arguments.scale}"
    steps = arguments.steps or SCALES[arguments.scale]["steps" if arguments.others is None else "others"]
    model = train(arguments.scale, data, folder, steps, arguments.cartesian)
    rows = measure(model, data, SCALES[arguments.scale]["generated"])
    if arguments.no_crossings:
        rows += across_phi(model, data, arguments.scale, SCALES[arguments.scale]["paths"])
    write_results(f"dynamics_alanine{kind}", rows, scale=arguments.scale)


if __name__ == "__main__":
    main()
