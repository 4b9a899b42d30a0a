"""From heavy atoms to a simulation: hydrogens placed, clashes relaxed, velocities drawn, and every frame judged.

hydrogens in the reference's local geometry -> loose gates (what can never be repaired) -> minimization of the engine's
energy plus k/2 |x - x0|^2 on every given atom -> dynamics of the hydrogens alone -> velocities -> strict gates.

While the hydrogens move, the given atoms stand still (they carry a mass of 1e6 amu), so the hydrogens end distributed
as exp(-U / kT) *given* the other atoms, up to the length of that run, and a torsion at the top of a barrier stays there.
What the reference decides for good is the rotamer of each hydroxyl, unless thermal motion or the minimization turns it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError
from couloir.sampling import _openmm_tasks as single
from couloir.sampling import _openmm_worker as worker
from couloir.sampling.engine import steps
from couloir.sampling.gates import GEOMETRY_GATES, GeometryGates
from couloir.sampling.hydrogens import place_hydrogens
from couloir.sampling.openmm_engine import OpenMMEngine
from couloir.sampling.path_scores import superposed_distance
from couloir.streams import integer_seed
from couloir.trajectory import Array, State
from couloir.units import convert, positive

if TYPE_CHECKING:
    import mdtraj
    import pandas as pd

IntArray = npt.NDArray[np.int64]

REBUILD_GATES = (*GEOMETRY_GATES, "dynamics", "moved", "energy")
RELAXATION_STEPS = 200

_STILL = 1e6  # amu: at 300 K such an atom drifts 0.001 nm/ps
_FRICTION = "10/ps"  # hydrogens forget how they were placed within the default relaxation
_RESTRAINT = "rebuild_restraint"
_PER_ITERATION = 1.4  # most force evaluations per iteration, line searches included, seen with a force that counts its calls


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """Frames with all their atoms, one entry per frame given.

    Attributes
    ----------
    states : ready to run (velocities at the engine's temperature, constraints satisfied), or None where a gate failed.
    failed : the first gate that each frame failed, or None.
    displacement : (n,) root-mean-square distance from the given atoms after superposition, nm; NaN where there is none.
    energies : (n,) potential energy, kJ/mol; NaN where there is none.
    minimizer_iterations : of all frames and of the reference, failed ones too.
    dynamics_steps : of the relaxation of all frames.
    """

    states: tuple[State | None, ...]
    failed: tuple[str | None, ...]
    displacement: Array
    energies: Array
    minimizer_iterations: int = 0
    dynamics_steps: int = 0

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[State | None]:
        return iter(self.states)

    @property
    def force_evaluations(self) -> int:
        """Steps of dynamics, and 1.4 times the iterations of the minimizer (for small molecules it takes 1.2 to 1.4 evaluations each)."""
        return self.dynamics_steps + round(_PER_ITERATION * self.minimizer_iterations)

    @property
    def rows(self) -> IntArray:
        """(n_passed,) the frames that were rebuilt."""
        return np.array([i for i, gate in enumerate(self.failed) if gate is None], dtype=np.int64)

    @property
    def passed(self) -> list[State]:
        """The states of the frames that were rebuilt, in the order of :attr:`rows`."""
        return [state for state in self.states if state is not None]

    @property
    def counts(self) -> dict[str, int]:
        """Frames given, frames that failed each gate (the first they failed), frames rebuilt."""
        return {"given": len(self), **{gate: self.failed.count(gate) for gate in REBUILD_GATES}, "rebuilt": self.failed.count(None)}

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per frame: the gate it failed (empty if none), displacement in nm, energy in kJ/mol."""
        import pandas as pd

        gates = [gate or "" for gate in self.failed]
        return pd.DataFrame({"failed": gates, "displacement_nm": self.displacement, "energy_kJ_mol": self.energies})

    def table(self) -> str:
        """Return the counts as text, one per line; gates that nothing failed are left out."""
        return "\n".join(f"  {name:<12}{n}" for name, n in self.counts.items() if n or name in ("given", "rebuilt"))

    def __str__(self) -> str:
        return f"Rebuilt: {len(self.rows)} of {len(self)} frames\n{self.table()}"


def rebuild(
    engine: OpenMMEngine,
    frames: Array,
    atoms: Sequence[int] | IntArray | None = None,
    *,
    reference: State | None = None,
    seed: int,
    force_constant: Any = "2e5 kJ/mol/nm^2",
    relaxation: Any = None,
    max_displacement: Any = "0.02 nm",
    max_energy: float = 15.0,
) -> Rebuilt:
    """Return all-atom states that dynamics can start from, for frames of heavy atoms, such as ``model.sample`` or ``inpaint`` returns.

    Parameters
    ----------
    frames : (n, n_kept, 3) nm, positions of ``atoms``; paths (n_paths, n_frames, n_kept, 3) count as all their frames, path
        after path, and one frame (n_kept, 3) as a batch of one.
    atoms : (n_kept,) indices of the atoms given: every heavy atom, in any order, and hydrogens if wanted; default all atoms
        where there are as many, else the heavy ones in the molecule's order, which is what models of heavy atoms generate.
    reference : a physical structure of the whole molecule, for local geometry, gates and box; default the engine's own.
    seed : row i draws from its own stream.
    force_constant : of the restraint on every given atom during minimization.
    relaxation : time for which the hydrogens move; default 200 steps.
    max_displacement : gate ``moved``: largest root-mean-square distance of the given atoms from where they were given.
    max_energy : gate ``energy``: kT that a state may lie above the energy minimum next to the reference, besides the
        thermal energy of its degrees of freedom, f/2 kT, and six standard deviations of that, 6 sqrt(f/2) kT.

    Raises
    ------
    DataError : shapes or atoms do not fit, a heavy atom is not given, or a hydrogen has too few heavy atoms around it.
    """
    reference, topology = engine.molecule.state if reference is None else reference, engine.molecule.topology
    x, kept = _checked(topology, frames, atoms, reference)
    finite = np.array(np.isfinite(x).all(axis=(1, 2)), dtype=bool)
    complete = place_hydrogens(topology, reference.positions, np.where(finite[:, None, None], x, reference.positions[kept]), kept)
    bench = _Bench(GeometryGates.of(topology, reference.positions), [None if ok else "finite" for ok in finite])
    bench.judge(complete, bond_tolerance=0.06, contact_scale=0.4)
    n_steps = RELAXATION_STEPS if relaxation is None else steps(relaxation, engine.time_step, "relaxation")
    stiffness = float(positive(force_constant, "kJ/mol/nm^2", "force_constant"))
    done = _relaxed(engine, complete, kept, reference.box, bench.alive, stiffness, n_steps, seed)
    iterations, n_moved = (sum(getattr(d, name) for d in done.values()) for name in ("iterations", "steps"))
    states = {i: d.state for i, d in done.items() if d.state is not None}
    bench.fail([i for i in bench.alive if i not in states], "dynamics")
    for i, state in states.items():
        complete[i] = state.positions
    bench.judge(complete)
    displacement, energies = np.full(len(x), np.nan), np.full(len(x), np.nan)
    if states:
        rows = list(states)
        displacement[rows] = superposed_distance(complete[rows][:, kept], x[rows])
        energies[rows] = engine.energies(complete[rows], None if reference.box is None else np.repeat(reference.box[None], len(rows), 0))
        bench.fail(np.flatnonzero(~(displacement <= convert(max_displacement, "nm", "max_displacement"))), "moved")
        ceiling, more = _ceiling(engine, reference, max_energy)
        iterations += more
        bench.fail(np.flatnonzero(~(energies <= ceiling)), "energy")
    passed = tuple(states[i] if gate is None else None for i, gate in enumerate(bench.failed))
    return Rebuilt(passed, tuple(bench.failed), displacement, energies, iterations, n_moved)


class _Bench:
    """The first gate that each frame failed."""

    def __init__(self, gates: GeometryGates, failed: list[str | None]) -> None:
        self.gates, self.failed = gates, failed

    @property
    def alive(self) -> list[int]:
        return [i for i, gate in enumerate(self.failed) if gate is None]

    def fail(self, rows: Sequence[int] | IntArray, gate: str) -> None:
        for i in rows:
            self.failed[i] = self.failed[i] or gate

    def judge(self, positions: Array, **tolerances: float) -> None:
        for gate, passed in self.gates.check(positions, **tolerances).items():
            self.fail(np.flatnonzero(~passed), gate)


def _checked(topology: mdtraj.Topology, frames: Array, atoms: Sequence[int] | IntArray | None, reference: State) -> tuple[Array, IntArray]:
    """Return frames (n, n_kept, 3) and the atoms that they hold (n_kept,)."""
    if reference.positions.shape != (topology.n_atoms, 3):
        raise DataError(
            f"the molecule has {topology.n_atoms} atoms and the reference {len(reference.positions)}", "give a whole structure as reference"
        )
    x = np.asarray(frames, dtype=np.float64)
    x = x[None] if x.ndim == 2 else x.reshape(-1, *x.shape[2:]) if x.ndim == 4 else x
    if atoms is None:
        heavy = [a.index for a in topology.atoms if not _is_hydrogen(a)]
        kept = np.arange(topology.n_atoms) if x.shape[1:2] == (topology.n_atoms,) else np.array(heavy, dtype=np.int64)
    else:
        kept = np.asarray(atoms, dtype=np.int64)
    if kept.ndim != 1 or x.ndim != 3 or x.shape[1:] != (len(kept), 3):
        raise DataError(
            f"frames have shape {np.shape(frames)}, expected (n, {len(kept)}, 3) or (n_paths, n_frames, {len(kept)}, 3)",
            "name the atoms that the frames hold with atoms=" if atoms is None else "give as many positions as atoms",
        )
    if len(set(kept.tolist())) != len(kept) or kept.min(initial=0) < 0 or kept.max(initial=0) >= topology.n_atoms:
        raise DataError(f"atoms {kept.tolist()} are not distinct indices of {topology.n_atoms} atoms")
    given = set(kept.tolist())
    lost = [a for a in topology.atoms if a.index not in given and not _is_hydrogen(a)]
    if lost:
        raise DataError(f"heavy atom {lost[0]} (atom {lost[0].index}) is not given", "only hydrogens can be rebuilt")
    return x, kept


def _is_hydrogen(atom: Any) -> bool:
    return atom.element is not None and atom.element.symbol == "H"


@dataclass(frozen=True)
class _Task:
    """One frame: where its given atoms are held, what relaxes it there, and where it gets its velocities."""

    target: Array
    minimize: single.MinimizeTask
    walk: worker.WalkerTask
    home: worker.Description
    seed: int


@dataclass(frozen=True)
class _Done:
    """What became of one frame, None when it broke down, and what that took."""

    state: State | None
    iterations: int
    steps: int = 0


def _relaxed(
    engine: OpenMMEngine, complete: Array, kept: IntArray, box: Array | None, rows: list[int], stiffness: float, n_steps: int, seed: int
) -> dict[int, _Done]:
    """Return what became of the rows."""
    if not rows:
        return {}
    held = OpenMMEngine(
        replace(engine.molecule, system_xml=_held(engine, kept, stiffness)),
        engine.temperature, engine.time_step, _FRICTION, engine.platform, engine.workers, engine._properties,
    )  # fmt: skip
    there, home = held._describe(held.platform, len(rows)), engine._describe(engine.platform, len(rows))
    tasks = []
    for i in rows:
        start, key = State(complete[i], None, box), integer_seed(seed, "rebuild", i)
        walk = worker.WalkerTask(i, there, None, {}, start, key, 1, n_steps, 0, (), None, False)
        minimize = single.MinimizeTask(i, there, None, {}, start, 0, 10.0)
        tasks.append(_Task(complete[i][kept], minimize, walk, home, integer_seed(key, "velocities")))
    return dict(zip(rows, held._run(_relax, tasks), strict=True))


def _held(engine: OpenMMEngine, kept: IntArray, stiffness: float) -> str:
    """Return the engine's System with restraints on the given atoms, which are too heavy to move in dynamics."""
    import openmm

    system = engine.molecule.system()
    distance = "periodicdistance(x, y, z, x0, y0, z0)^2" if system.usesPeriodicBoundaryConditions() else "(x-x0)^2 + (y-y0)^2 + (z-z0)^2"
    force = openmm.CustomExternalForce(f"{stiffness / 2!r} * ({distance})")
    force.setName(_RESTRAINT)
    for name in ("x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    for i in kept.tolist():
        if system.getParticleMass(i)._value > 0:  # neither virtual nor fixed
            system.setParticleMass(i, _STILL)
        force.addParticle(i, (0.0, 0.0, 0.0))
    system.addForce(force)
    return str(openmm.XmlSerializer.serialize(system))


def _relax(task: _Task) -> _Done:
    """Minimize and relax one frame where its work lands."""
    with worker.turn(task.walk.description):
        driver = worker.simulation(task.walk.description, None)
        (force,) = (f for f in driver.context.getSystem().getForces() if f.getName() == _RESTRAINT)
        for k, place in enumerate(task.target):
            force.setParticleParameters(k, force.getParticleParameters(k)[0], place)
        force.updateParametersInContext(driver.context)
        minimized, iterations = _minimize(task.minimize)
        if not isinstance(minimized, State):
            return _Done(None, iterations)
        relaxed = worker.run_walker(replace(task.walk, state=minimized))
        n_steps = driver.context.getStepCount()  # run_walker counts from zero
        if relaxed.failure is not None:
            return _Done(None, iterations, n_steps)
        own = worker.simulation(task.home, None)
        own.place(State(relaxed.last.positions, None, task.walk.state.box))
        own.context.applyConstraints(own.integrator.getConstraintTolerance())
        own.context.setVelocitiesToTemperature(task.home.temperature, task.seed)
        return _Done(own.state(), iterations, n_steps)


def _minimize(task: single.MinimizeTask) -> tuple[State | str, int]:
    """Return what :func:`~couloir.sampling._openmm_single.run_minimize` returns, and how many iterations that took."""
    iterations = single.Iterations()
    return single.run_minimize(task, iterations), iterations.n


def _ceiling(engine: OpenMMEngine, reference: State, max_energy: float) -> tuple[float, int]:
    """Return the highest potential energy, kJ/mol, of a thermal structure that may also stand on a barrier, and iterations spent."""
    start = State(reference.positions, None, reference.box)
    task = single.MinimizeTask(0, engine._describe(engine.platform), None, {}, start, 0, 10.0)
    [(lowest, iterations)] = engine._run(_minimize, [task])
    if not isinstance(lowest, State):
        raise DataError(f"the reference cannot be minimized: {lowest}", "give a physical structure as reference")
    n_free = int((engine.masses > 0).sum()) * 3 - len(engine.molecule.constraints)
    energy = engine.energies(lowest.positions, None if reference.box is None else reference.box[None])[0]
    return float(energy + engine.kT * (n_free / 2 + max_energy + 6 * np.sqrt(n_free / 2))), iterations
