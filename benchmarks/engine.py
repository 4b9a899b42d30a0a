"""What the OpenMM engine costs over a bare OpenMM loop, and what parallel windows gain.

    python -m benchmarks.engine --scale small|paper

Alanine dipeptide on the Reference platform, in implicit solvent (OBC2).  One repeat times, in this order, a bare
``integrator.step`` loop, plain MD in the engine and an umbrella window in the engine with its CV recorded every 100
steps; then one window on one core, and as many windows on as many cores.  Repeats are interleaved, ratios are taken
within a repeat, and the median over repeats is reported with a standard error from a bootstrap.  Overheads are ratios
of this process' CPU time (one thread, no waiting: what wall-clock time would be on an idle machine), the speedup is
wall-clock time and means something on an idle machine only; the load found at the start is reported with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import openmm

from benchmarks.results import Row, scale_parser, write_results
from couloir.cv import HarmonicBias
from couloir.cv.geometric import Dihedral
from couloir.sampling import OpenMMEngine, systems
from couloir.sampling._pool import available_cores

SCALES = {"small": (9, 20_000), "paper": (25, 200_000)}  # repeats, steps per timing
RECORD_STEPS, FRAME_STEPS = 100, 1000
PHI = Dihedral(atoms=(4, 6, 8, 14), name="phi")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time that one call costs this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall_seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(values: list[float]) -> tuple[float, float]:
    """Return the median and its bootstrap standard error."""
    sample = np.array(values)
    draws = np.random.default_rng(0).choice(sample, (2000, len(sample)))
    return float(np.median(sample)), float(np.median(draws, axis=1).std())


def bare_loop(engine: OpenMMEngine) -> Callable[[int], None]:
    """Return a function that steps a bare Context of the engine's system."""
    integrator = openmm.LangevinMiddleIntegrator(engine.temperature, engine.friction, engine.time_step)
    system = openmm.XmlSerializer.deserialize(engine.molecule.system_xml)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(engine.molecule.state.positions)
    context.setVelocitiesToTemperature(engine.temperature, 1)

    def run(n: int) -> None:
        integrator.step(n)
        context.getState(positions=True)

    return run


def main() -> None:
    """Measure, write ``results/engine.json`` and print the table."""
    scale = scale_parser(__doc__, SCALES).parse_args().scale
    repeats, n_steps = SCALES[scale]

    molecule, cores = systems.alanine_dipeptide(solvent="obc2"), available_cores()
    one, many = (OpenMMEngine(molecule, platform="Reference", workers=n) for n in (1, cores))
    bare, state, duration = bare_loop(one), molecule.state, n_steps * one.time_step
    bias = HarmonicBias.on(PHI, -1.5, "100 kJ/mol/rad^2")
    strides = {"stride": FRAME_STEPS * one.time_step, "record_stride": RECORD_STEPS * one.time_step}

    def plain() -> None:
        one.propagate(state, duration=duration, stride=strides["stride"])

    def window(engine: OpenMMEngine, n: int) -> None:
        engine.propagate([state] * n, duration=duration, bias=bias, record=[PHI], **strides)

    bare(n_steps)
    plain()
    window(one, 1)
    window(many, cores)  # starts the workers and makes every Context once
    times: dict[str, list[float]] = {name: [] for name in ("bare", "plain", "window", "again", "single", "parallel")}
    load = os.getloadavg()[0]
    for _ in range(repeats):
        times["bare"].append(cpu_seconds(lambda: bare(n_steps)))
        times["plain"].append(cpu_seconds(plain))
        times["window"].append(cpu_seconds(lambda: window(one, 1)))
        times["again"].append(cpu_seconds(lambda: bare(n_steps)))
        times["single"].append(wall_seconds(lambda: window(one, 1)))
        times["parallel"].append(wall_seconds(lambda: window(many, cores)))

    reference = [(a + b) / 2 for a, b in zip(times["bare"], times["again"], strict=True)]
    rate, _ = median([n_steps / t for t in reference])
    rows = []
    for name, claim, target in (
        ("plain", "plain MD, frames every 1000 steps: time over a bare OpenMM loop", 1.02),
        ("window", "umbrella window, CV and energy every 100 steps: time over a bare OpenMM loop", 1.05),
    ):
        value, error = median([t / r for t, r in zip(times[name], reference, strict=True)])
        rows.append(Row(claim, value, "x", error, target, value <= target, "bare OpenMM, steps/s", rate))
    speedups = [cores * w / p for w, p in zip(times["single"], times["parallel"], strict=True)]
    value, error = median(speedups)
    target = 3.5 / 4 * cores
    claim = f"{cores} windows on {cores} cores against 1 on 1: speedup (3.5x at 4, in proportion)"
    rows.append(Row(claim, value, "x", error, target, value >= target, "1 window on 1 core", 1.0))
    spread = float(np.std(reference) / np.mean(reference))
    rows.append(Row("load average when the benchmark began (other work on this machine)", load, "processes"))
    rows.append(Row("scatter of the bare loop between repeats (machine noise)", spread, "relative"))
    write_results("engine", rows, scale=scale)


if __name__ == "__main__":
    main()
