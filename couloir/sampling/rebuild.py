"""From heavy atoms to a simulation: hydrogens placed, clashes relaxed, velocities drawn, and every frame judged.

hydrogens in the reference's local geometry -> loose gates (what can never be repaired) -> minimization of the engine's
energy plus k/2 |x - x0|^2 on every given atom -> dynamics of the hydrogens alone -> velocities -> strict gates.

While the hydrogens move, the given atoms stand still (they carry a mass of 1e6 amu), so the hydrogens end distributed
as exp(-U / kT) *given* the other atoms, up to the length of that run, and a torsion at the top of a barrier stays there.
What the reference decides for good is the rotamer of each hydroxyl, unless thermal motion or the minimization turns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError, SimulationError
from couloir.sampling import _openmm_worker as worker
from couloir.sampling.engine import steps
from couloir.sampling.gates import GEOMETRY_GATES, GeometryGates
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


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """Frames with all their atoms, one entry per frame given.

    Attributes
    ----------
    states : ready to run (velocities at the engine's temperature, constraints satisfied), or None where a gate failed.
    failed : the first gate that each frame failed, or None.
    displacement : (n,) root-mean-square distance from the given atoms after superposition, nm; NaN where there is none.
    energies : (n,) potential energy, kJ/mol; NaN where there is none.
    """

    states: tuple[State | None, ...]
    failed: tuple[str | None, ...]
    displacement: Array
    energies: Array

    def __len__(self) -> int:
        return len(self.states)

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
    topology: mdtraj.Topology,
    heavy: Array,
    atoms: Sequence[int] | IntArray,
    *,
    reference: State,
    seed: int,
    force_constant: Any = "2e5 kJ/mol/nm^2",
    relaxation: Any = None,
    max_displacement: Any = "0.02 nm",
    max_energy: float = 15.0,
) -> Rebuilt:
    """Return all-atom states that dynamics can start from, for frames of heavy atoms.

    Generated frames become the starting points of :func:`~couloir.sampling.reactive.reactive_seeds` by
    ``rebuild=lambda frames: rebuild(engine, topology, frames, atoms, reference=state, seed=0).states``.

    Parameters
    ----------
    heavy : (n, n_kept, 3) nm, positions of ``atoms``; one frame (n_kept, 3) counts as a batch of one.
    atoms : (n_kept,) indices of the atoms given: every heavy atom, in any order, and hydrogens if wanted.
    reference : a physical structure of the whole molecule, for local geometry, gates and box.
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
    x, kept = _checked(engine, topology, heavy, atoms, reference)
    finite = np.array(np.isfinite(x).all(axis=(1, 2)), dtype=bool)
    complete = place_hydrogens(topology, reference.positions, np.where(finite[:, None, None], x, reference.positions[kept]), kept)
    bench = _Bench(GeometryGates.of(topology, reference.positions), [None if ok else "finite" for ok in finite])
    bench.judge(complete, bond_tolerance=0.06, contact_scale=0.4)
    n_steps = RELAXATION_STEPS if relaxation is None else steps(relaxation, engine.time_step, "relaxation")
    stiffness = float(positive(force_constant, "kJ/mol/nm^2", "force_constant"))
    states = _relaxed(engine, complete, kept, reference.box, bench.alive, stiffness, n_steps, seed)
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
        bench.fail(np.flatnonzero(~(energies <= _ceiling(engine, reference, max_energy))), "energy")
    passed = tuple(states[i] if gate is None else None for i, gate in enumerate(bench.failed))
    return Rebuilt(passed, tuple(bench.failed), displacement, energies)


def place_hydrogens(topology: mdtraj.Topology, reference: Array, kept: Array, atoms: IntArray) -> Array:
    """Return positions (n, n_atoms, 3) of all atoms: those given, and hydrogens as they stand in the reference.

    Each hydrogen keeps its place in axes fixed to its heavy atom P: e1 away from P's heavy neighbours, e2 in the plane
    of e1 and the first of them (for a single neighbour Q, of e1 and the direction from Q to its next heavy atom),
    e3 = e1 x e2.  Methyls on a saturated atom are turned to be staggered; lone hydrogens of planar atoms are put in the plane.

    Parameters
    ----------
    reference : (n_atoms, 3) a physical structure.
    kept : (n, n_kept, 3) positions of ``atoms``.
    atoms : (n_kept,) indices.

    Raises
    ------
    DataError : a hydrogen is not bonded to a given heavy atom, or the heavy atoms around it do not fix its direction.
    """
    out = np.empty((len(kept), topology.n_atoms, 3))
    out[:, atoms] = kept
    for site in _sites(topology, {int(i) for i in atoms}):
        local = _shaped(site, (reference[site.hydrogens] - reference[site.parent]) @ _axes(reference[None], site)[0].T)
        out[:, site.hydrogens] = out[:, [site.parent]] + local @ _axes(out, site)
    return out


@dataclass(frozen=True)
class _Site:
    """Hydrogens on one heavy atom; ``azimuth`` is the bond (from, to) that tells directions around e1 apart."""

    parent: int
    neighbours: list[int]
    azimuth: tuple[int, int]
    hydrogens: list[int]
    staggered: bool
    planar: bool


def _sites(topology: mdtraj.Topology, given: set[int]) -> list[_Site]:
    bonded: dict[int, list[int]] = {i: [] for i in range(topology.n_atoms)}
    for a, b in topology.bonds:
        bonded[a.index].append(b.index)
        bonded[b.index].append(a.index)
    elements = [a.element.symbol if a.element is not None else "X" for a in topology.atoms]
    heavy = {i: sorted(j for j in js if elements[j] != "H") for i, js in bonded.items()}
    missing: dict[int, list[int]] = {}
    for h in (i for i in range(topology.n_atoms) if i not in given):
        if len(bonded[h]) != 1 or not heavy[h]:
            raise DataError(f"hydrogen {topology.atom(h)} (atom {h}) has {len(bonded[h])} bonds, expected one to a heavy atom")
        missing.setdefault(heavy[h][0], []).append(h)
    return [_site(topology, parent, hydrogens, bonded, heavy, elements) for parent, hydrogens in missing.items()]


def _site(
    topology: mdtraj.Topology,
    parent: int,
    hydrogens: list[int],
    bonded: dict[int, list[int]],
    heavy: dict[int, list[int]],
    elements: list[str],
) -> _Site:
    around = heavy[parent]
    beyond = [j for j in heavy[around[0]] if j != parent] if len(around) == 1 else []
    if len(around) < 2 and not beyond:
        raise DataError(
            f"the direction of the hydrogens on {topology.atom(parent)} (atom {parent}) is not fixed by the heavy atoms around it",
            "give the positions of these hydrogens too",
        )
    unsaturated = {i for i, js in bonded.items() if elements[i] == "C" and len(js) < 4}
    lone = len(around) == 2 and len(bonded[parent]) == 3
    planar = lone and (parent in unsaturated or (elements[parent] == "N" and not unsaturated.isdisjoint(around)))
    staggered = len(around) == 1 and len(hydrogens) == 3 and len(bonded[around[0]]) == 4
    return _Site(parent, around, (around[0], beyond[0]) if beyond else (parent, around[0]), hydrogens, staggered, planar)


def _shaped(site: _Site, local: Array) -> Array:
    """Return a site's hydrogens (n_hydrogens, 3), in its axes, staggered or in the plane where they should be."""
    if site.planar:
        return local * [1.0, 1.0, 0.0]
    if not site.staggered:
        return local
    angles = np.arctan2(local[:, 2], local[:, 1])
    turn = np.angle(-np.exp(-3j * angles).sum()) / 3  # three-fold: 60, 180 and 300 degrees from the azimuth
    c, s = np.cos(turn), np.sin(turn)
    return np.asarray(local @ np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]]))


def _axes(x: Array, site: _Site) -> Array:
    """Return e1, e2, e3 as rows (n, 3, 3) at a site of frames x (n, n_atoms, 3)."""
    first = -_unit(_unit(x[:, site.neighbours] - x[:, [site.parent]]).sum(axis=1))
    side = x[:, site.azimuth[1]] - x[:, site.azimuth[0]]
    side = side - (side * first).sum(axis=-1, keepdims=True) * first
    any_side = np.cross(first, np.eye(3)[np.abs(first).argmin(axis=-1)])  # three atoms in a line, as in a nitrile
    second = _unit(np.where(np.linalg.norm(side, axis=-1, keepdims=True) > 1e-6, side, any_side))
    return np.stack([first, second, np.cross(first, second)], axis=1)


def _unit(v: Array) -> Array:
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12))


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


def _checked(
    engine: OpenMMEngine, topology: mdtraj.Topology, heavy: Array, atoms: Sequence[int] | IntArray, reference: State
) -> tuple[Array, IntArray]:
    kept = np.asarray(atoms, dtype=np.int64)
    x = np.asarray(heavy, dtype=np.float64)
    x = x[None] if x.ndim == 2 else x
    if len(engine.masses) != topology.n_atoms or reference.positions.shape != (topology.n_atoms, 3):
        raise DataError(
            f"the topology has {topology.n_atoms} atoms, the engine {len(engine.masses)} and the reference {len(reference.positions)}",
            "give topology and reference of the engine's molecule",
        )
    if kept.ndim != 1 or x.ndim != 3 or x.shape[1:] != (len(kept), 3):
        raise DataError(f"heavy has shape {np.shape(heavy)}, expected (n, {len(kept)}, 3) for {len(kept)} atoms")
    if len(set(kept.tolist())) != len(kept) or kept.min(initial=0) < 0 or kept.max(initial=0) >= topology.n_atoms:
        raise DataError(f"atoms {kept.tolist()} are not distinct indices of {topology.n_atoms} atoms")
    given = set(kept.tolist())
    lost = [a for a in topology.atoms if a.index not in given and (a.element is None or a.element.symbol != "H")]
    if lost:
        raise DataError(f"heavy atom {lost[0]} (atom {lost[0].index}) is not given", "only hydrogens can be rebuilt")
    return x, kept


@dataclass(frozen=True)
class _Task:
    """One frame: where its given atoms are held, what relaxes it there, and where it gets its velocities."""

    target: Array
    minimize: worker.MinimizeTask
    walk: worker.WalkerTask
    home: worker.Description
    seed: int


def _relaxed(
    engine: OpenMMEngine, complete: Array, kept: IntArray, box: Array | None, rows: list[int], stiffness: float, n_steps: int, seed: int
) -> dict[int, State]:
    """Return the states that came through, by row."""
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
        minimize = worker.MinimizeTask(i, there, None, {}, start, 0, 10.0)
        tasks.append(_Task(complete[i][kept], minimize, walk, home, integer_seed(key, "velocities")))
    results = held._run(_relax, tasks)
    return {i: state for i, state in zip(rows, results, strict=True) if state is not None}


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


def _relax(task: _Task) -> State | None:
    """Minimize and relax one frame where its work lands; None when it breaks down."""
    with worker.turn(task.walk.description):
        driver = worker.simulation(task.walk.description, None)
        (force,) = (f for f in driver.context.getSystem().getForces() if f.getName() == _RESTRAINT)
        for k, place in enumerate(task.target):
            force.setParticleParameters(k, force.getParticleParameters(k)[0], place)
        force.updateParametersInContext(driver.context)
        minimized = worker.run_minimize(task.minimize)
        if not isinstance(minimized, State):
            return None
        relaxed = worker.run_walker(replace(task.walk, state=minimized))
        if relaxed.failure is not None:
            return None
        own = worker.simulation(task.home, None)
        own.place(State(relaxed.last.positions, None, task.walk.state.box))
        own.context.applyConstraints(own.integrator.getConstraintTolerance())
        own.context.setVelocitiesToTemperature(task.home.temperature, task.seed)
        return own.state()


def _ceiling(engine: OpenMMEngine, reference: State, max_energy: float) -> float:
    """Return the highest potential energy, kJ/mol, of a thermal structure that may also stand on a barrier."""
    try:
        lowest = engine.minimize(State(reference.positions, None, reference.box))[0]
    except SimulationError as error:
        raise DataError(f"the reference cannot be minimized: {error.message}", "give a physical structure as reference") from error
    n_free = int((engine.masses > 0).sum()) * 3 - len(engine.molecule.constraints)
    energy = engine.energies(lowest.positions, None if reference.box is None else reference.box[None])[0]
    return float(energy + engine.kT * (n_free / 2 + max_energy + 6 * np.sqrt(n_free / 2)))
