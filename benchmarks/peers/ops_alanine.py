"""One-way shooting in OpenPathSampling, timed: started by ``benchmarks.path_ensembles`` with an interpreter that has it.

    python ops_alanine.py FOLDER TRIALS SEED none|netcdf|simstore [mdtraj|function] [kick|flip]

FOLDER holds ``system.xml``, ``topology.pdb`` and ``first.npz`` (a path with velocities, and the numbers of the dynamics).
The last line printed is a JSON object: trials, steps of dynamics, wall-clock and CPU seconds, frames of the path after every
50 trials, and the version.  Neither imports nor the first trial (which makes the Context) count.

OpenPathSampling runs backward in time from the velocities with their signs changed (``flip``).  Those of OpenMM's Langevin
integrators are from before the kick of the next step, and changing their signs leads elsewhere: every shot backward gains or
loses energy, and a chain of paths ends with crossings of three frames.  ``kick`` has it start from the velocities
that do lead back (:mod:`couloir.sampling.velocities`), for one more evaluation of forces per shot.
"""

import json
import os
import sys
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import openpathsampling as paths
import openpathsampling.engines.openmm as ops_openmm
from openmm import unit
from openpathsampling.engines import MDTrajTopology

EVERY = 50


def dihedral(snapshot, atoms):
    """Return the torsion of four atoms in rad, the plainest way in NumPy; a storage wants the import inside."""
    import numpy as np

    a, b, c, d = snapshot.xyz[atoms]
    u, v, w = b - a, c - b, d - c
    n, m = np.cross(u, v), np.cross(v, w)
    return float(np.arctan2(np.linalg.norm(v) * (u @ m), n @ m))


class Kicking(ops_openmm.Engine):
    """The engine, with velocities that lead back wherever a snapshot is run backward in time."""

    _steps_over_masses = None

    @property
    def current_snapshot(self):
        """The snapshot in the Context."""
        return super().current_snapshot

    @current_snapshot.setter
    def current_snapshot(self, snapshot):
        fresh = snapshot is not self._current_snapshot
        ops_openmm.Engine.current_snapshot.fset(self, snapshot)
        if not (fresh and snapshot.is_reversed):
            return
        context, integrator = self.simulation.context, self.simulation.integrator
        if self._steps_over_masses is None:
            system = context.getSystem()
            masses = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])
            self._steps_over_masses = integrator.getStepSize()._value / masses[:, None]
        state = context.getState(velocities=True, forces=True)
        kick = state.getForces(asNumpy=True)._value * self._steps_over_masses
        context.setVelocities(state.getVelocities(asNumpy=True)._value - kick)
        context.applyVelocityConstraints(integrator.getConstraintTolerance())


def collective_variable(kind, atoms, topology):
    """Return phi as MDTraj computes it (as in the tutorials), or by a function of one snapshot."""
    if kind == "mdtraj":
        return paths.MDTrajFunctionCV("phi", mdtraj.compute_dihedrals, topology, indices=[atoms])
    return paths.CoordinateFunctionCV("phi", dihedral, atoms=atoms)


def make_storage(kind, file, template):
    """Return an open storage of a kind, or None."""
    if kind == "none":
        return None
    if kind == "netcdf":
        return paths.Storage(file, "w", template=template)
    from openpathsampling.experimental.storage import Storage, monkey_patch_all

    monkey_patch_all(paths)
    return Storage(file, "w")


def main():
    """Run and print."""
    folder, trials, seed, storing = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    kind = sys.argv[5] if len(sys.argv) > 5 else "function"
    backward = sys.argv[6] if len(sys.argv) > 6 else "kick"
    given = np.load(folder / "first.npz")
    numbers = {name: float(given[name]) for name in ("temperature", "friction", "time_step")}
    system = openmm.XmlSerializer.deserialize((folder / "system.xml").read_text())
    integrator = openmm.LangevinMiddleIntegrator(*numbers.values())
    integrator.setRandomNumberSeed(seed)
    paths.rng.DEFAULT_RNG = np.random.default_rng(seed)
    topology = MDTrajTopology(mdtraj.load(str(folder / "topology.pdb")).topology)
    options = {"n_steps_per_frame": int(given["frame_steps"]), "n_frames_max": int(given["max_frames"])}
    engine = (Kicking if backward == "kick" else ops_openmm.Engine)(topology, system, integrator, options=options).named("engine")
    engine.initialize("Reference")

    box = np.array([side.value_in_unit(unit.nanometer) for side in system.getDefaultPeriodicBoxVectors()]) * unit.nanometer
    first = paths.Trajectory([
        ops_openmm.Snapshot.construct(
            coordinates=x * unit.nanometer, box_vectors=box, velocities=v * unit.nanometer / unit.picosecond, engine=engine
        )
        for x, v in zip(given["positions"], given["velocities"], strict=True)
    ])  # fmt: skip
    file = str(folder / f"ops_{storing}.{'nc' if storing == 'netcdf' else 'db'}")
    storage = make_storage(storing, file, first[0])
    phi = collective_variable(kind, [int(i) for i in given["atoms"]], topology)
    a, b = (paths.CVDefinedVolume(phi, *(float(x) for x in given[name])).named(name) for name in ("A", "B"))
    scheme = paths.OneWayShootingMoveScheme(paths.TPSNetwork(a, b), selector=paths.UniformSelector(), engine=engine)
    sampler = paths.PathSampling(storage=storage, move_scheme=scheme, sample_set=scheme.initial_conditions_from_trajectories(first))
    with open(os.devnull, "w") as nowhere:
        sampler.output_stream = nowhere
        sampler.run(1)
        context = engine.simulation.context
        steps, wall, cpu = context.getStepCount(), time.perf_counter(), time.process_time()
        frames = []
        for done in range(0, trials, EVERY):
            sampler.run(min(EVERY, trials - done))
            frames.append(len(sampler.sample_set[0].trajectory))
        if storage is not None:
            storage.sync() if storing == "netcdf" else storage.sync_all()
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    version = f"{paths.version.version}, OpenMM {openmm.version.version}"
    found = {
        "trials": trials, "steps": context.getStepCount() - steps, "seconds": seconds, "cpu_seconds": cpu_seconds, "frames": frames,
        "version": version,
    }  # fmt: skip
    if storage is not None:
        storage.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
