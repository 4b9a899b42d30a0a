"""What path sampling costs over bare dynamics, and beside OpenPathSampling: ``python -m benchmarks.path_ensembles --scale small|paper``.

Alanine dipeptide in implicit solvent (OBC2, 300 K, 2 fs) on the Reference platform, one-way shooting between C7eq and
alpha-L, a frame every 10 steps, every frame as likely to be shot from as any other.  One repeat times, each from the same
first path: a bare loop that reads positions every 10 steps; one chain with and without a store; many chains on one core
and on all; and OpenPathSampling with and without storage.  Ratios are of sums over repeats, errors from a bootstrap over
repeats.  Everything on one core is CPU time of the process, only what runs on all cores, and what it is compared with, is
wall-clock time and means something on an idle machine only.

How many steps an attempt takes is chance: lengths of successive paths are correlated, and a run of 500 attempts may need half
as many steps again as the next.  Programs are therefore compared by attempts of one length, that of all runs together: what
an attempt costs beyond its steps, plus so many steps at the speed of the bare loop.  OpenPathSampling as it comes would make
shorter ones: it changes the signs of velocities that are half a step old (``benchmarks/peers/ops_alanine.py``), heats its paths up
and ends with crossings of three frames.  It is timed with the right velocities, and a row says what comes without.

OpenPathSampling joins when ``--peer`` or the variable COULOIR_OPS names an interpreter that has it; its own environment,
because it asks for NumPy 1:

    python -m venv ops && ops/bin/pip install openpathsampling==1.7.0 openmm==8.6.1 six setuptools
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openmm

from benchmarks.results import Row, scale_parser, write_results
from couloir.cv.geometric import Dihedral
from couloir.cv.region import Region
from couloir.sampling import OpenMMEngine, ShootingMove, TransitionPathSampling, UmbrellaSampling, dragged_seeds, systems, two_way_shots
from couloir.sampling._pool import available_cores
from couloir.store import Store
from couloir.trajectory import Trajectory

FRAME_STEPS = 10
BASINS = {"A": (-2.8, -0.7), "B": (0.7, 1.5)}
"""C7eq and alpha-L along phi, rad."""
PHI = Dihedral(atoms=(4, 6, 8, 14), name="phi")
MAX_FRAMES = 5000
CHAINS_PER_CORE = 8
"""Chains wait for each other at every step; with several per core the wait is short."""
PEER = Path(__file__).parent / "peers" / "ops_alanine.py"
PEERS = {
    "tutorial": ("none", "mdtraj"),
    "tutorial, stored": ("netcdf", "mdtraj"),
    "fastest": ("none", "function"),
    "fastest, stored": ("netcdf", "function"),
    "SimStore": ("simstore", "function"),
}
"""How the peer stores and computes phi: as its tutorials do, and the ways that cost it less."""
AS_IT_COMES = ("none", "function", "flip")
"""The peer with velocities that do not lead back in time."""
EVERY, FORGOTTEN = 50, 100
"""Trials after which the length of the path is noted; those at the beginning that do not count for its mean."""
RUNS = Path(__file__).parents[1] / "runs"


@dataclass(frozen=True)
class Scale:
    """Repeats, trials of one chain, of each of many, and of the peer, per repeat."""

    repeats: int
    trials: int
    trials_each: int
    peer_trials: int


SCALES = {"small": Scale(3, 200, 20, 60), "paper": Scale(12, 500, 150, 250)}


@dataclass(frozen=True)
class Timing:
    """Trials that were made, the steps of dynamics they took, and the seconds that cost: by the clock, and of one CPU.

    ``frames`` are lengths of a chain's path now and then, where they are known.
    """

    trials: int
    steps: int
    seconds: float
    cpu_seconds: float
    frames: tuple[int, ...] = ()

    def __add__(self, other: Timing) -> Timing:
        """Return both together."""
        return Timing(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


Timings = dict[str, list[Timing]]
Work = tuple[int, int, tuple[int, ...]]
"""Trials, steps, and lengths of paths."""
Quantity = Callable[[Sequence[Timing]], float]


def attempts(timings: Sequence[Timing]) -> float:
    """Return trials per second of CPU time."""
    return sum(t.trials for t in timings) / sum(t.cpu_seconds for t in timings)


def attempts_by_clock(timings: Sequence[Timing]) -> float:
    """Return trials per second."""
    return sum(t.trials for t in timings) / sum(t.seconds for t in timings)


def speed(timings: Sequence[Timing]) -> float:
    """Return steps of dynamics per second of CPU time."""
    return sum(t.steps for t in timings) / sum(t.cpu_seconds for t in timings)


def overhead(timings: Sequence[Timing], bare: Sequence[Timing]) -> float:
    """Return what a trial costs beyond its dynamics, ms of CPU time."""
    return 1000 * (1 / attempts(timings) - length(timings) / speed(bare))


def length(timings: Sequence[Timing]) -> float:
    """Return steps of dynamics per trial."""
    return sum(t.steps for t in timings) / sum(t.trials for t in timings)


def attempts_of_length(n_steps: float, bare: float) -> Quantity:
    """Return the function that says how many trials of one length (steps) there would be per second of CPU time.

    ``bare`` are steps of dynamics per second where nothing else is done.
    """

    def of(timings: Sequence[Timing]) -> float:
        beyond = sum(t.cpu_seconds - t.steps / bare for t in timings) / sum(t.trials for t in timings)
        return 1 / (beyond + n_steps / bare)

    return of


def ratio(what: Quantity, a: Sequence[Timing], b: Sequence[Timing]) -> tuple[float, float]:
    """Return what(a) / what(b) and its bootstrap error over repeats."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(a), size=len(a)) for _ in range(500)]
    scatter = np.std([what([a[i] for i in rows]) / what([b[i] for i in rows]) for rows in draws])
    return what(a) / what(b), float(scatter)


def states() -> tuple[Region, Region]:
    """Return C7eq and alpha-L."""
    basins = systems.alanine_basins(PHI)
    return basins["C7eq"], basins["alphaL"]


def engine(workers: int = 1) -> OpenMMEngine:
    """Return the engine that everything is timed on."""
    return OpenMMEngine(systems.alanine_dipeptide(solvent="obc2"), platform="Reference", workers=workers)


def sampling(md: OpenMMEngine) -> TransitionPathSampling:
    """Return path sampling from C7eq to alpha-L."""
    longest = (MAX_FRAMES - 1) * FRAME_STEPS * md.time_step
    return TransitionPathSampling(md, *states(), ShootingMove.one_way(), max_duration=longest)


def first_path(file: Path) -> Trajectory:
    """Return an equilibrated path; made once, from two-way shots at the barrier."""
    md, stride = engine(available_cores()), FRAME_STEPS * 0.002
    if file.exists():
        with np.load(file) as stored:
            positions, velocities = np.array(stored["positions"]), np.array(stored["velocities"])
        return Trajectory(positions, stride, velocities, topology=md.topology)
    windows = UmbrellaSampling.grid(PHI, 7, "200 kJ/mol/rad^2", range=(-1.2, 0.0))
    seeds = dragged_seeds(md, windows, md.minimize([md.molecule.state])[0], 4, seed=1)
    top = [state for state, window in zip(seeds.states, seeds.windows, strict=True) if window == len(windows) - 1]
    found = two_way_shots(md, top, *states(), max_duration=100.0, stride=stride, n_per_state=4, seed=2)
    paths = [found.reactive_path(int(k))[0] for k in np.flatnonzero(found.connecting)]
    path: Trajectory = sampling(md).run(paths, 100, n_chains=4, run_until_decorrelated=True, seed=3).paths[-1]
    file.parent.mkdir(exist_ok=True)
    np.savez(file, positions=path.positions, velocities=np.asarray(path.velocities))
    return path


def timed(work: Callable[[], Work]) -> Timing:
    """Return what a call costs that returns its trials, steps and lengths of paths."""
    wall, cpu = time.perf_counter(), time.process_time()
    trials, n_steps, frames = work()
    return Timing(trials, n_steps, time.perf_counter() - wall, time.process_time() - cpu, frames)


def bare_loop(md: OpenMMEngine, path: Trajectory) -> Callable[[int], Work]:
    """Return a function that makes frames in a bare Context and reads their positions."""
    integrator = openmm.LangevinMiddleIntegrator(md.temperature, md.friction, md.time_step)
    system = openmm.XmlSerializer.deserialize(md.molecule.system_xml)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(path.positions[0])
    context.setVelocitiesToTemperature(md.temperature, 1)

    def run(n_frames: int) -> Work:
        for _ in range(n_frames):
            integrator.step(FRAME_STEPS)
            context.getState(positions=True).getPositions(asNumpy=True)
        return n_frames, n_frames * FRAME_STEPS, ()

    return run


def sampled(md: OpenMMEngine, path: Trajectory, trials: int, n_chains: int, seed: int, store: Store | None = None) -> Work:
    """Sample paths and return how many trials of how many steps that took, and lengths of the first chain's paths."""
    found = sampling(md).run(path, trials, n_chains, seed=seed, store=store)
    mine = found.chain == 0
    lengths = np.repeat(found.lengths[mine], found.multiplicity[mine])[EVERY - 1 :: EVERY]
    return sum(int(n.sum()) for n in found.outcomes.values()), found.force_evaluations, tuple(lengths.tolist())


def peer(python: str, folder: Path, trials: int, seed: int, how: Sequence[str]) -> Timing | None:
    """Return what the peer takes in a process of its own; None where it cannot run."""
    done = subprocess.run(
        [python, "-W", "ignore", str(PEER), str(folder), str(trials), str(seed), *how],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        print(f"OpenPathSampling ({', '.join(how)}) does not run with {python}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Timing(found["trials"], found["steps"], found["seconds"], found["cpu_seconds"], tuple(found["frames"]))


def hand_over(md: OpenMMEngine, path: Trajectory, folder: Path) -> None:
    """Write down everything that the peer starts from."""
    (folder / "system.xml").write_text(md.molecule.system_xml)
    (folder / "topology.pdb").write_text(systems.structure_file("alanine_dipeptide.pdb").read_text())
    limits: dict[str, Any] = {name: np.array(edges) for name, edges in BASINS.items()}
    np.savez(
        folder / "first.npz", positions=path.positions, velocities=np.asarray(path.velocities), atoms=PHI.atoms,
        temperature=md.temperature, friction=md.friction, time_step=md.time_step,
        frame_steps=FRAME_STEPS, max_frames=MAX_FRAMES, **limits,
    )  # fmt: skip


def measure(size: Scale, path: Trajectory, python: str | None) -> Timings:
    """Return the timings of every repeat."""
    cores = available_cores()
    one, many = engine(1), engine(cores)
    bare, n_chains = bare_loop(one, path), CHAINS_PER_CORE * cores
    bare(100)
    for md in (one, many):  # starts the workers and makes every Context once
        sampled(md, path, n_chains, n_chains, 0)
    timings: Timings = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hand_over(one, path, folder)
        for k in range(size.repeats):
            store = Store(folder / f"paths_{k}.db")
            work: dict[str, Callable[[], Work]] = {
                "before": partial(bare, size.trials * len(path) // 4),
                "chain": partial(sampled, one, path, size.trials, 1, 2 * k + 1),
                "stored": partial(sampled, one, path, size.trials, 1, 2 * k + 2, store),
                "after": partial(bare, size.trials * len(path) // 4),
                "one core": partial(sampled, one, path, size.trials_each * n_chains, n_chains, 1000 + k),
                "all cores": partial(sampled, many, path, size.trials_each * n_chains, n_chains, 1000 + k),
            }
            found = {what: timed(one_of) for what, one_of in work.items()}
            found["bare"] = found.pop("before") + found.pop("after")
            for how, settings in {**PEERS, "as it comes": AS_IT_COMES}.items() if python else ():
                theirs = peer(str(python), folder, size.peer_trials, k + 1, settings)
                if theirs is not None:
                    found[how] = theirs
            print(f"repeat {k + 1}: " + ", ".join(f"{what} {attempts([t]):.3g}/s" for what, t in found.items()), flush=True)
            for what, t in found.items():
                timings[what].append(t)
    return timings


def own(timings: Timings) -> list[Row]:
    """Return the rows that need no peer."""
    rows, bare = [], speed(timings["bare"])
    for what, how in (("chain", "without storing"), ("stored", "storing every path")):
        value, error = ratio(speed, timings[what], timings["bare"])
        claim = f"path sampling, frame every {FRAME_STEPS} steps, {how}: share of bare speed"
        rows.append(Row(claim, value, "", error, 0.75, value >= 0.75, "bare OpenMM, steps/s", bare))
        rows.append(Row(f"cost of an attempt beyond dynamics, {how}", overhead(timings[what], timings["bare"]), "ms"))
    cores = available_cores()
    value, error = ratio(attempts_by_clock, timings["all cores"], timings["one core"])
    target = 0.75 * cores if cores > 2 else 0.8 * cores
    claim = f"{CHAINS_PER_CORE * cores} chains on {cores} cores against the same on 1: speedup (3x at 4, 1.6x at 2)"
    met = None if cores == 1 else value >= target
    rows.append(
        Row(claim, value, "x", error, None if cores == 1 else target, met, "on 1 core, attempts/s", attempts_by_clock(timings["one core"]))
    )
    frames = length([*timings["chain"], *timings["stored"]]) / FRAME_STEPS
    rows.append(Row("frames of dynamics per attempt (paths are short, so what an attempt costs besides decides)", frames, "frames"))
    return rows


def beside_peer(timings: Timings) -> list[Row]:
    """Return the rows against OpenPathSampling, as its tutorials use it (with targets) and in the ways that cost it less."""
    rows, without, name = [], "without storing", "OpenPathSampling 1.7"
    for how, (storing, cv) in PEERS.items():
        found = timings.get(how)
        if not found:
            continue
        mine = timings["chain" if storing == "none" else "stored"]
        setting = f"{without if storing == 'none' else f'storing every path ({storing})'}, phi by {'MDTraj' if cv == 'mdtraj' else 'NumPy'}"
        target = {"tutorial": 4.0, "tutorial, stored": 10.0}.get(how)
        n_steps, bare = length([*mine, *found]), speed(timings["bare"])
        equal = attempts_of_length(n_steps, bare)
        value, error = ratio(equal, mine, found)
        claim = f"attempts of {n_steps:.0f} steps per second of CPU time on one core, over {name} {setting}"
        met = None if target is None else value >= target
        rows.append(Row(claim, value, "x", error, target, met, f"{name}, attempts/s", equal(found)))
        if target is not None:
            most = bare / n_steps / equal(found)
            rows.append(Row(f"the same for a program that takes no time but that of the bare loop ({setting})", most, "x"))
        for quantity, clock in ((attempts, "CPU time"), (attempts_by_clock, "wall-clock time")):
            value, error = ratio(quantity, mine, found)
            claim = f"attempts of whatever length per second of {clock} on one core, over {name} {setting}"
            rows.append(Row(claim, value, "x", error, None, None, f"{name}, attempts/s", quantity(found)))
        value, error = ratio(speed, found, timings["bare"])
        rows.append(Row(f"{name} {setting}: share of bare speed", value, "", error, peer="its steps per attempt", peer_value=length(found)))
        rows.append(Row(f"{name} {setting}: cost of an attempt beyond dynamics", overhead(found, timings["bare"]), "ms"))
    return rows


def lengths_of_paths(timings: Timings) -> list[Row]:
    """Return the rows about how long paths are: the same ensemble has the same lengths."""
    rows = []
    for what, who in (
        ("chain", "here"),
        ("tutorial", "OpenPathSampling 1.7 with velocities that lead back in time"),
        ("as it comes", "OpenPathSampling 1.7 as it comes (velocities of the leapfrog with changed signs)"),
    ):
        means = [float(np.mean(t.frames[FORGOTTEN // EVERY :])) for t in timings.get(what, ())]
        if means:
            error = float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
            rows.append(Row(f"frames of a path after the first {FORGOTTEN} attempts: {who}", float(np.mean(means)), "frames", error))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the results."""
    parser = scale_parser(__doc__, SCALES)
    parser.add_argument("--peer", default=os.environ.get("COULOIR_OPS"), help="interpreter that has OpenPathSampling")
    parser.add_argument("--dry", action="store_true", help="print and write no results")
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    timings = measure(SCALES[given.scale], first_path(RUNS / "path_ensembles_first.npz"), given.peer)
    rows = [*own(timings), *beside_peer(timings), *lengths_of_paths(timings)]
    rows.append(Row("load average when the benchmark began (other work on this machine)", load, "processes"))
    if given.dry:
        for row in rows:
            print(f"{row.value:10.4g} ± {row.standard_error or 0:.2g} {row.unit} [{row.target}] {row.claim} | {row.peer} {row.peer_value}")
    else:
        write_results("path_ensembles", rows, scale=given.scale)


if __name__ == "__main__":
    main()
