"""Long reference for alanine dipeptide (ff14SB, OBC2, 300 K) along phi, in bare OpenMM.

Deliberately independent of Couloir's engine, biases and windows: four sets of 36 umbrella windows over the full
phi circle, each set started in a different psi basin, with neighbour replica exchange of the biases every
picosecond, so that every window sees every psi basin.  phi and psi are written every 0.5 ps for each *window*.

    python -m benchmarks.reference.alanine_dipeptide_obc2 --nanoseconds 1.0      # per window and set; resumable

writes ``alanine_dipeptide_obc2.npz`` beside this file: ``phi, psi (n_sets, n_windows, n_frames)`` in rad,
``centers (n_windows,)``, ``force_constant`` in kJ/mol/rad^2, ``temperature`` in K, ``accepted (n_sets, n_windows)``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

HERE = Path(__file__).parent
STRUCTURE = HERE.parents[1] / "couloir" / "sampling" / "structures" / "alanine_dipeptide.pdb"
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
N_WINDOWS, FORCE_CONSTANT, TEMPERATURE = 36, 100.0, 300.0
KT = 8.31446261815324e-3 * TEMPERATURE
PSI_STARTS = np.radians([-150.0, -40.0, 60.0, 150.0])
EXCHANGE_STEPS, FRAME_STEPS = 500, 250  # 1 ps, 0.5 ps at 2 fs
EQUILIBRATION = 100  # exchange rounds thrown away


def build_context() -> openmm.Context:
    """Alanine dipeptide with the OBC2 model as a native GBSAOBCForce, one umbrella on phi and one on psi."""
    pdb = app.PDBFile(str(STRUCTURE))
    forcefield = app.ForceField("amber14/protein.ff14SB.xml", "implicit/obc2.xml")
    system = forcefield.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
    custom = next(f for f in system.getForces() if isinstance(f, openmm.CustomGBForce))
    native = openmm.GBSAOBCForce()
    for i in range(custom.getNumParticles()):
        charge, offset_radius, scaled_radius = custom.getParticleParameters(i)
        native.addParticle(charge, offset_radius + 0.009, scaled_radius / offset_radius)
    system.removeForce(next(i for i, f in enumerate(system.getForces()) if isinstance(f, openmm.CustomGBForce)))
    system.addForce(native)
    for name, atoms in (("phi", PHI), ("psi", PSI)):
        umbrella = openmm.CustomTorsionForce(f"0.5*k_{name}*d^2; d=min(r, 6.283185307179586-r); r=abs(theta-c_{name})")
        umbrella.addGlobalParameter(f"k_{name}", 0.0)
        umbrella.addGlobalParameter(f"c_{name}", 0.0)
        umbrella.addTorsion(*atoms)
        system.addForce(umbrella)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, 0.002)
    integrator.setRandomNumberSeed(20231)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(pdb.positions)
    return context


def torsion(positions: np.ndarray, atoms: tuple[int, int, int, int]) -> float:
    a, b, c, d = positions[list(atoms)]
    n1, n2 = np.cross(b - a, c - b), np.cross(c - b, d - c)
    return float(np.arctan2(np.dot(np.cross(n1, n2), c - b) / np.linalg.norm(c - b), np.dot(n1, n2)))


def wrap(x: np.ndarray | float) -> np.ndarray | float:
    return (x + np.pi) % (2 * np.pi) - np.pi


def positions_of(context: openmm.Context) -> np.ndarray:
    return context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def starts(context: openmm.Context, centers: np.ndarray, psi_start: float) -> np.ndarray:
    """One structure per window, dragged around the circle with psi held at ``psi_start``."""
    frames = []
    context.setParameter("k_psi", 500.0)
    context.setParameter("c_psi", psi_start)
    context.setParameter("k_phi", 1000.0)
    for center in centers:
        context.setParameter("c_phi", center)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=500)
        context.setVelocitiesToTemperature(TEMPERATURE)
        context.getIntegrator().step(2000)
        frames.append(positions_of(context))
    context.setParameter("k_psi", 0.0)
    context.setParameter("k_phi", FORCE_CONSTANT)
    return np.array(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanoseconds", type=float, default=1.0, help="per window and set")
    parser.add_argument("--scratch", type=Path, default=HERE / ".scratch.npz", help="where a killed run resumes from")
    arguments = parser.parse_args()

    n_rounds = round(arguments.nanoseconds * 1000)
    per_round = EXCHANGE_STEPS // FRAME_STEPS
    centers = -np.pi + (np.arange(N_WINDOWS) + 0.5) * 2 * np.pi / N_WINDOWS
    context, n_sets = build_context(), len(PSI_STARTS)
    phi = np.full((n_sets, N_WINDOWS, n_rounds * per_round), np.nan, dtype=np.float32)
    psi, accepted, first = phi.copy(), np.zeros((n_sets, N_WINDOWS)), -EQUILIBRATION
    rng = np.random.default_rng(7)
    if arguments.scratch.exists():
        saved = np.load(arguments.scratch)
        positions, velocities, accepted, first = (saved[k] for k in ("positions", "velocities", "accepted", "round"))
        done = int(saved["round"]) * per_round
        phi[..., :done], psi[..., :done] = saved["phi"][..., :done], saved["psi"][..., :done]
        context.getIntegrator().setRandomNumberSeed(20231 + int(first))
        context.reinitialize()
        context.setParameter("k_phi", FORCE_CONSTANT)
        rng = np.random.default_rng((7, int(first)))
    else:
        positions = np.array([starts(context, centers, value) for value in PSI_STARTS])
        velocities = np.zeros_like(positions)
        for s in range(n_sets):
            for w in range(N_WINDOWS):
                context.setVelocitiesToTemperature(TEMPERATURE)
                state = context.getState(velocities=True)
                velocities[s, w] = state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)

    began = time.time()
    for round_ in range(int(first), n_rounds):
        for s in range(n_sets):
            now = np.empty(N_WINDOWS)
            for w in range(N_WINDOWS):
                context.setPositions(positions[s, w])
                context.setVelocities(velocities[s, w])
                context.setParameter("c_phi", centers[w])
                for k in range(per_round):
                    context.getIntegrator().step(FRAME_STEPS)
                    state = context.getState(positions=True, velocities=k == per_round - 1)
                    xyz = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
                    now[w] = torsion(xyz, PHI)
                    if round_ >= 0:
                        phi[s, w, round_ * per_round + k] = now[w]
                        psi[s, w, round_ * per_round + k] = torsion(xyz, PSI)
                positions[s, w] = xyz
                velocities[s, w] = state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
            for i in range(round_ % 2, N_WINDOWS, 2):  # neighbours on the circle, odd and even pairs in turn
                j = (i + 1) % N_WINDOWS
                energy = lambda x, c: 0.5 * FORCE_CONSTANT * wrap(x - c) ** 2  # noqa: E731
                delta = energy(now[i], centers[j]) + energy(now[j], centers[i])
                delta -= energy(now[i], centers[i]) + energy(now[j], centers[j])
                if rng.random() < np.exp(min(0.0, -delta / KT)):
                    positions[s, [i, j]], velocities[s, [i, j]] = positions[s, [j, i]], velocities[s, [j, i]]
                    now[[i, j]] = now[[j, i]]
                    accepted[s, i] += round_ >= 0
        if (round_ + 1) % 20 == 0:
            partial = arguments.scratch.with_suffix(".tmp.npz")
            np.savez(partial, positions=positions, velocities=velocities, accepted=accepted, round=round_ + 1, phi=phi, psi=psi)
            partial.replace(arguments.scratch)
            print(f"{round_ + 1}/{n_rounds} ps per window, {(time.time() - began) / 60:.1f} min", flush=True)
    np.savez_compressed(
        HERE / "alanine_dipeptide_obc2.npz",
        phi=phi,
        psi=psi,
        centers=centers,
        force_constant=FORCE_CONSTANT,
        temperature=TEMPERATURE,
        accepted=accepted / (n_rounds / 2),
    )
    arguments.scratch.unlink()


if __name__ == "__main__":
    main()
