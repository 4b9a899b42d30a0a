"""Alanine dipeptide in vacuum, amber99SB at 320 K: its simulations, and what is measured of them (``benchmarks.dynamics_alanine``).

Langevin dynamics (1/ps, 2 fs, bonds to hydrogen rigid) with a frame per 0.02 ps, as Petersen, Roig & Covino (2023) have it; they do not
say the friction.  Simulations are kept in files of 1 ns, heavy atoms in single precision, and go on from the last file there is.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from couloir.cv import Dihedral, HarmonicBias
from couloir.cv.region import Region
from couloir.sampling import MolecularSystem, OpenMMEngine, systems
from couloir.trajectory import Array, State

TEMPERATURE, TIME_STEP, STRIDE, CHUNK = 320.0, 0.002, 0.02, 1000.0
"""K; ps; ps between frames; ps per file."""
SPARSE = 500
"""One frame of so many is kept with all its atoms."""
C7EQ, C7AX = (-2.8, -0.7), (0.8, 1.6)
"""Cores of the states along phi, rad; each is left for the other over phi = 0 or, more rarely, over phi = 2.1."""
BARRIERS = ((-0.4, 0.4), (1.9, 2.5))
"""Where a trajectory is cut so that it holds no crossing, rad."""
RUNS = Path(__file__).parents[2] / "runs"


@dataclass(frozen=True, eq=False)
class Chunk:
    """A piece of simulation: heavy atoms (n_frames, 10, 3) nm of every frame, all atoms (n, 22, 3) of some, and whether it left C7ax."""

    heavy: npt.NDArray[np.float32]
    complete: Array
    last: State
    escaped: bool


def molecule() -> MolecularSystem:
    """Return Ace-Ala-Nme in vacuum with amber99SB (Hornak et al. 2006)."""
    return MolecularSystem.from_pdb(systems.structure_file("alanine_dipeptide.pdb"), ["amber99sb.xml"], name="alanine dipeptide, amber99SB")


def engine(workers: int | None = None) -> OpenMMEngine:
    """Return the simulator."""
    return OpenMMEngine(molecule(), temperature=TEMPERATURE, time_step=TIME_STEP, friction="1/ps", platform="Reference", workers=workers)


def heavy_atoms(topology: Any) -> npt.NDArray[np.int64]:
    """Return the indices of the atoms that are not hydrogen."""
    return np.array([a.index for a in topology.atoms if a.element.symbol != "H"])


def regions(topology: Any) -> tuple[Region, Region]:
    """Return C7eq and C7ax as regions along phi."""
    phi = Dihedral.phi(topology, residue=2)
    return (phi > C7EQ[0]) & (phi < C7EQ[1]), (phi > C7AX[0]) & (phi < C7AX[1])


def in_c7ax(simulator: OpenMMEngine) -> State:
    """Return a minimized structure in C7ax, pulled there."""
    phi = Dihedral.phi(simulator.topology, residue=2)
    (pulled,) = simulator.minimize(simulator.molecule.state, bias=HarmonicBias.on(phi, 1.2, "1000 kJ/mol/rad^2"), record=[phi])
    relaxed: list[State] = simulator.minimize(pulled)
    return relaxed[0]


def simulated(basin: str, n_chunks: int, folder: Path = RUNS) -> list[Chunk]:
    """Return ``n_chunks`` pieces of 1 ns, simulating those that ``folder`` does not hold.

    ``"c7eq"`` is one long simulation, wherever it goes; ``"c7ax"`` starts anew in C7ax where the last piece left it, and stops there.
    """
    simulator, out = engine(workers=1), []
    topology = simulator.topology
    stop = None if basin == "c7eq" else regions(topology)[0]
    start: State | None = None
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n_chunks):
        file = folder / f"alanine_vacuum_{basin}_{k:03d}.npz"
        if not file.exists():
            if start is None:
                fresh = simulator.molecule.state if basin == "c7eq" else in_c7ax(simulator)
                (warm,) = simulator.propagate(fresh, duration="20 ps", seed=9000 + k)
                start = warm.last
            (run,) = simulator.propagate(start, duration=CHUNK, stride=STRIDE, stop=stop, seed=k + (0 if basin == "c7eq" else 5000))
            _save(file, run.positions, heavy_atoms(topology), run.last, run.ended == "stopped")
        chunk = _load(file)
        start = None if chunk.escaped else chunk.last
        out.append(chunk)
    return out


@dataclass(frozen=True)
class Waiting:
    """Brute force: how often simulations begun in one state arrived in the other, and the time that took, ps."""

    arrivals: int
    time: float

    @property
    def force_evaluations(self) -> float:
        """Force evaluations per arrival; a lower bound at 95 % confidence, time / 3, where nothing arrived."""
        return self.time / (self.arrivals or 3) / TIME_STEP

    def at_least(self, found: int, force_evaluations: float) -> float:
        """Return how many times fewer force evaluations than these took paths of which ``found`` were found, at 95 % confidence.

        Both counts are Poisson's, so that given their sum the one is binomial (Przyborowski & Wilenski, Biometrika 31, 313 (1940)): it
        holds without any arrival.
        """
        if not found:
            return 0.0
        share = float(beta.ppf(0.05, found, self.arrivals + 1))
        return share / (1.0 - share) * self.time / TIME_STEP / force_evaluations

    def __str__(self) -> str:
        return f"{self.arrivals} arrivals in {self.time / 1000:.3g} ns{'' if self.arrivals else ': a lower bound'}"


def waiting(n_chunks: int, folder: Path = RUNS) -> Waiting:
    """Return what ``n_chunks`` simulations of at most 10 ns found, simulating those that ``folder`` does not hold; arrivals start anew."""
    simulator, arrivals, total = engine(workers=1), 0, 0.0
    phi = Dihedral.phi(simulator.topology, residue=2)
    start: State | None = None
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n_chunks):
        file = folder / f"alanine_vacuum_waiting_{k:03d}.npz"
        if not file.exists():
            if start is None:
                (warm,) = simulator.propagate(simulator.molecule.state, duration="20 ps", seed=19_000 + k)
                start = warm.last
            stop = regions(simulator.topology)[1]
            (run,) = simulator.propagate(start, duration=10 * CHUNK, record=[phi], record_stride=0.1, stop=stop, seed=15_000 + k)
            _write(
                file, time=len(run.series) * 0.1, arrived=run.ended == "stopped", last=run.last.positions, velocities=run.last.velocities
            )
        with np.load(file) as data:
            arrivals, total = arrivals + int(data["arrived"]), total + float(data["time"])
            start = None if data["arrived"] else State(data["last"], data["velocities"])
    return Waiting(arrivals, total)


def _save(file: Path, positions: Array, heavy: npt.NDArray[np.int64], last: State, escaped: bool) -> None:
    _write(
        file, heavy=positions[:, heavy].astype(np.float32), complete=positions[::SPARSE], last=last.positions,
        velocities=last.velocities, escaped=escaped,
    )  # fmt: skip


def _write(file: Path, **arrays: Any) -> None:
    part = file.with_suffix(".part.npz")  # an interrupted write leaves no file that looks whole
    np.savez(part, **arrays)
    part.rename(file)


def _load(file: Path) -> Chunk:
    with np.load(file) as data:
        return Chunk(data["heavy"], data["complete"], State(data["last"], data["velocities"]), bool(data["escaped"]))


def main() -> None:
    """Simulate: ``python -m benchmarks.systems.alanine c7eq|c7ax|waiting 20``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("basin", choices=("c7eq", "c7ax", "waiting"))
    parser.add_argument("chunks", type=int)
    arguments = parser.parse_args()
    if arguments.basin == "waiting":
        print(waiting(arguments.chunks))
        return
    chunks = simulated(arguments.basin, arguments.chunks)
    print(f"{arguments.basin}: {sum(len(c.heavy) for c in chunks) * STRIDE / 1000:g} ns, {sum(c.escaped for c in chunks)} escapes")


if __name__ == "__main__":
    main()
