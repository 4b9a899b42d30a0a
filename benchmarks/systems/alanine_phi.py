"""Alanine dipeptide in implicit solvent crossing phi = 0: its states, and how often long simulations cross (``benchmarks.alanine_rate``).

ff14SB, OBC2, 300 K, Langevin dynamics (1/ps, 4 fs, hydrogens of 3 amu, bonds to hydrogen rigid); phi is looked at every 0.02 ps.
The order parameter is phi, cut open at phi = 120 degrees, where the free energy is 23 kT: a state is all that lies on one side.
A is everything below phi = -0.7 rad (C5, C7eq and alpha-R), B everything above 0.55 rad (alpha-L).  Both limits lie about 4 kT above
their minima: a system stays for some 10 ps before it looks out, long enough to forget where in psi it came from.

Simulations are kept in files of 2.5 ns and go on from the last file there is.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from couloir.analysis.samples import IntArray
from couloir.cv import CollectiveVariable, Dihedral, FunctionOfCVs, HarmonicBias
from couloir.cv.region import Region
from couloir.sampling import MolecularSystem, OpenMMEngine, systems
from couloir.trajectory import Array, State

TEMPERATURE, TIME_STEP, STRIDE = 300.0, 0.004, 0.02
"""K; ps; ps between two looks at phi."""
CUT = 2.0 * np.pi / 3.0
LIMITS = (-0.7, 0.55)
"""rad; A is below, B above."""
LONGEST = 2000.0
"""ps; time that a path may take at most."""
CHUNK = 2500.0
RUNS = Path(__file__).parents[2] / "runs"
STEP = 1e-4
"""rad; phi is kept as a whole number of these."""


def molecule() -> MolecularSystem:
    """Return Ace-Ala-Nme in implicit solvent with heavy hydrogens."""
    file = systems.structure_file("alanine_dipeptide.pdb")
    return MolecularSystem.from_pdb(
        file, ["amber14/protein.ff14SB.xml", "implicit/obc2.xml"], hydrogen_mass="3 amu", name="alanine dipeptide"
    )


def engine(workers: int | None = None) -> OpenMMEngine:
    """Return the simulator."""
    return OpenMMEngine(molecule(), temperature=TEMPERATURE, time_step=TIME_STEP, friction="1/ps", platform="Reference", workers=workers)


def torsion(md: OpenMMEngine) -> Dihedral:
    """Return phi."""
    return Dihedral.phi(md.topology, residue=2)


def progress(md: OpenMMEngine, sign: float = 1.0) -> CollectiveVariable:
    """Return the order parameter, rad from the cut: grows from A to B, or with ``sign=-1`` from B to A."""
    shift = np.pi - CUT
    return FunctionOfCVs(
        (torsion(md),), f"{sign:g}*(phi + {shift!r})", name="onward" if sign > 0 else "backward", unit="rad", period=2 * np.pi
    )


def states(md: OpenMMEngine, sign: float = 1.0) -> tuple[Region, Region]:
    """Return A and B along :func:`progress`, or B and A seen from the other side."""
    along, shift = progress(md, sign), np.pi - CUT
    low, high = sorted(sign * (limit + shift) for limit in LIMITS)
    return along < low, along > high


def in_b(md: OpenMMEngine) -> State:
    """Return a minimized structure in alpha-L, pulled there."""
    phi = torsion(md)
    (pulled,) = md.minimize(md.molecule.state, bias=HarmonicBias.on(phi, 1.0, "1000 kJ/mol/rad^2"), record=[phi])
    relaxed: list[State] = md.minimize(pulled)
    return relaxed[0]


@dataclass(frozen=True)
class Crossings:
    """What long simulations say about one direction: how often they arrived, and the time since they were in the first state last, ps."""

    arrivals: int
    time: float

    def __add__(self, other: Crossings) -> Crossings:
        """Return both together."""
        return Crossings(self.arrivals + other.arrivals, self.time + other.time)

    @property
    def rate(self) -> float:
        """Arrivals per ps."""
        return self.arrivals / self.time

    @property
    def relative_error(self) -> float:
        """Of the rate: arrivals are rare, so that their number is Poisson's."""
        return 1.0 / np.sqrt(self.arrivals) if self.arrivals else float("inf")

    def __str__(self) -> str:
        return f"{self.arrivals} in {self.time / 1000:.4g} ns"


def crossings(phi: Array) -> tuple[Crossings, Crossings]:
    """Return the crossings from A to B and from B to A of one run, phi (n,) every :data:`STRIDE`."""
    shift = np.pi - CUT
    along = (phi + shift + np.pi) % (2 * np.pi) - np.pi
    low, high = LIMITS[0] + shift, LIMITS[1] + shift
    at = np.where(along < low, 1, np.where(along > high, -1, 0))
    seen = np.maximum.accumulate(np.where(at != 0, np.arange(len(at)), -1))
    last = np.where(seen >= 0, at[seen], 0)
    changes = last[:-1] - last[1:]
    return (
        Crossings(int(((changes == 2) & (last[:-1] == 1)).sum()), float((last == 1).sum() * STRIDE)),
        Crossings(int(((changes == -2) & (last[:-1] == -1)).sum()), float((last == -1).sum() * STRIDE)),
    )


def departures(phi: Array, levels: Array) -> IntArray:
    """Return how often one run, phi (n,) every :data:`STRIDE`, leaves A and comes to each of ``levels`` along ``onward`` before A or B."""
    shift = np.pi - CUT
    along = (phi + shift + np.pi) % (2 * np.pi) - np.pi
    in_a, in_b = along < LIMITS[0] + shift, along > LIMITS[1] + shift
    begin = np.flatnonzero(in_a[:-1] & ~in_a[1:]) + 1
    end = np.append(np.flatnonzero(in_a | in_b), len(along) - 1)
    stop = end[np.searchsorted(end[:-1], begin)]
    tops = np.array([along[i : j + 1].max() for i, j in zip(begin, stop, strict=True)])
    return np.asarray((tops[:, None] >= levels).sum(axis=0), dtype=np.int64)


def simulate(begin: str, n_chunks: int, folder: Path = RUNS) -> None:
    """Simulate until ``folder`` holds ``n_chunks`` files begun in ``"a"`` or ``"b"``; when a file ends outside B, ``"b"`` starts anew."""
    md = engine(workers=1)
    phi, home = torsion(md), states(md)[0 if begin == "a" else 1]
    folder.mkdir(parents=True, exist_ok=True)
    start, fresh = None, md.molecule.state if begin == "a" else in_b(md)
    for k in range(n_chunks):
        file = chunk_file(folder, begin, k)
        if not file.exists():
            for attempt in range(100):
                if start is not None:
                    break
                (warm,) = md.propagate(fresh, duration="100 ps", seed=(30_000 if begin == "a" else 40_000) + 100 * k + attempt)
                start = warm.last if home.contains(warm.last.positions[None])[0] else None
            clock = time.perf_counter()
            (run,) = md.propagate(start, duration=CHUNK, record=[phi], record_stride=STRIDE, seed=(10_000 if begin == "a" else 20_000) + k)
            part = file.with_suffix(".part.npz")  # an interrupted write leaves no file that looks whole
            values = np.round(np.asarray(run.series["phi"]) / STEP).astype(np.int16)
            np.savez(part, phi=values, positions=run.last.positions, velocities=run.last.velocities)
            part.rename(file)
            there, back = crossings(values.astype(float) * STEP)
            print(f"{file.name}: {there.arrivals} there, {back.arrivals} back, {time.perf_counter() - clock:.0f} s", flush=True)
        with np.load(file) as data:
            start = State(data["positions"], data["velocities"])
        if begin == "b" and not home.contains(start.positions[None])[0]:
            start = None


def chunk_file(folder: Path, begin: str, k: int) -> Path:
    """Return where a piece of simulation is kept."""
    return folder / f"alanine_phi_{begin}_{k:04d}.npz"


def simulated(begin: str, folder: Path = RUNS) -> int:
    """Return how many files begun in ``"a"`` or ``"b"`` there are."""
    k = 0
    while chunk_file(folder, begin, k).exists():
        k += 1
    return k


def brute_force(begin: str, n_chunks: int, folder: Path = RUNS) -> tuple[Crossings, Crossings]:
    """Return the crossings there and back in ``n_chunks`` files begun in ``"a"`` or ``"b"``; one from a file to the next is not seen."""
    simulate(begin, n_chunks, folder)
    there, back = Crossings(0, 0.0), Crossings(0, 0.0)
    for k in range(n_chunks):
        with np.load(chunk_file(folder, begin, k)) as data:
            more = crossings(data["phi"].astype(float) * STEP)
        there, back = there + more[0], back + more[1]
    return there, back


def brute_force_reach(n_chunks: dict[str, int], levels: Array, folder: Path = RUNS) -> IntArray:
    """Return the departures from A that come to each level, (n_levels,), in the files begun in ``"a"`` and in ``"b"``."""
    total = np.zeros(len(levels), dtype=np.int64)
    for begin, n in n_chunks.items():
        for k in range(n):
            with np.load(chunk_file(folder, begin, k)) as data:
                total += departures(data["phi"].astype(float) * STEP, levels)
    return total


def main() -> None:
    """Simulate: ``python -m benchmarks.systems.alanine_phi a|b 200``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("begin", choices=("a", "b"))
    parser.add_argument("chunks", type=int)
    arguments = parser.parse_args()
    there, back = brute_force(arguments.begin, arguments.chunks)
    print(f"A to B: {there}; B to A: {back}")


if __name__ == "__main__":
    main()
