"""From generated paths of molecules to reactive ones: constraints, boxes, and atoms that the model does not generate."""

from functools import cache

import numpy as np
import pytest

from couloir.cv import HarmonicBias
from couloir.cv.geometric import Dihedral, Distance
from couloir.errors import DataError
from couloir.sampling import MolecularSystem, OpenMMEngine, reactive_seeds, systems, two_way_shots
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_sampling import TransitionPathSampling
from couloir.streams import stream
from couloir.trajectory import State, Trajectory


@cache
def butane():
    engine = OpenMMEngine(systems.butane(), platform="Reference", workers=1, friction="5/ps")
    carbons = [a.index for a in engine.topology.atoms if a.element.symbol == "C"]
    return engine, Dihedral(atoms=tuple(carbons), name="torsion")


def at_torsion(engine, torsion, value):
    bias = HarmonicBias.on([torsion], [value], [2000.0])
    return engine.minimize([engine.molecule.state], bias=bias, record=[torsion])[0]


def test_shots_of_a_molecule_obey_constraints_and_continue_through_the_shooting_point():
    engine, torsion = butane()
    trans, gauche = (torsion > 2.6) | (torsion < -2.6), torsion.between(0.6, 1.5)
    top = at_torsion(engine, torsion, 2.06)
    shots = two_way_shots(engine, top, trans, gauche, max_duration="1 ps", stride="0.002 ps", seed=4, n_per_state=6)
    assert shots.counts()["failed"] == 0
    for path, frame in zip(shots.paths, shots.shooting_frames, strict=True):
        v, x = path.velocities[frame], path.positions[frame]
        for i, j, length in engine.molecule.constraints:
            assert abs((v[i] - v[j]) @ (x[i] - x[j])) < 1e-4
            assert np.linalg.norm(x[i] - x[j]) == pytest.approx(length, rel=1e-4)
        step = np.linalg.norm(np.diff(path.positions, axis=0), axis=2).max(axis=1)
        assert step[max(0, frame - 1) : frame + 1].max() < 2 * np.quantile(step, 0.99)
    kinetic = [0.5 * (engine.masses[:, None] * p.velocities[f] ** 2).sum() for p, f in zip(shots.paths, shots.shooting_frames, strict=True)]
    n_free = 3 * len(engine.masses) - len(engine.molecule.constraints)
    expected = n_free * engine.kT / 2
    assert abs(np.mean(kinetic) - expected) < 4 * expected * np.sqrt(2 / n_free / len(kinetic))


class Rotation:
    """All atoms of butane, its torsion driven from end to end: the frames between are minimized under a restraint."""

    n_frames, stride = 9, 0.02

    def inpaint(self, known, mask, *, seed):
        engine, torsion = butane()
        frames = [at_torsion(engine, torsion, value).positions for value in np.linspace(3.0, 1.1, len(mask))]
        return np.repeat(np.array(frames)[None], len(known), axis=0)


def test_a_molecule_is_shot_from_generated_frames_to_paths_of_real_dynamics():
    engine, torsion = butane()
    trans, gauche = (torsion > 2.6) | (torsion < -2.6), torsion.between(0.6, 1.5)
    starts = [[at_torsion(engine, torsion, value)] for value in (3.0, 1.1)]
    found = reactive_seeds(
        Rotation(), engine, trans, gauche, 2, seed=1, starts_a=starts[0], starts_b=starts[1], n_generate=6, max_duration="4 ps"
    )
    assert len(found) >= 2
    for path in found:
        assert trans.contains(path.positions[:1])[0]
        assert gauche.contains(path.positions[-1:])[0]
        assert not (trans | gauche).contains(path.positions[1:-1]).any()
        assert path.velocities is not None
        assert path.topology is engine.topology


class CarbonRotation(Rotation):
    """The same of the carbons alone."""

    class representation:
        atoms = butane()[1].atoms

    def inpaint(self, known, mask, *, seed):
        return super().inpaint(known, mask, seed=seed)[:, :, list(self.representation.atoms)]


def test_a_model_of_some_atoms_needs_a_rebuild_and_regions_it_can_see():
    engine, torsion = butane()
    trans, gauche = (torsion > 2.6) | (torsion < -2.6), torsion.between(0.6, 1.5)
    hydrogens = [a.index for a in engine.topology.atoms if a.element.symbol == "H"]
    starts = {"starts_a": [at_torsion(engine, torsion, 3.0)], "starts_b": [at_torsion(engine, torsion, 1.1)]}
    settings = {**starts, "seed": 1, "n_generate": 6, "max_duration": "4 ps"}

    def rebuild(frames):
        whole = np.zeros((len(frames), len(engine.masses), 3))
        whole[:, list(torsion.atoms)] = frames
        return [None if i == 0 else at_torsion(engine, torsion, value) for i, value in enumerate(torsion.evaluate(whole))]

    found = reactive_seeds(CarbonRotation(), engine, trans, gauche, 1, rebuild=rebuild, **settings)
    assert len(found) >= 1
    assert found.counts["not rebuilt"] >= 1
    assert 0 not in found.generated_paths
    assert len(reactive_seeds(CarbonRotation(), engine, trans, gauche, 1, **settings)) >= 1
    methyl = Dihedral(atoms=(hydrogens[0], *torsion.atoms[:3]), name="methyl")
    with pytest.raises(DataError, match="heavy atoms"):
        reactive_seeds(CarbonRotation(), engine, trans & ((methyl < 0) | (methyl > 0)), gauche, 1, rebuild=rebuild, **settings)


@cache
def crossing():
    """Real dynamics of butane from trans over the barrier to gauche, found by two-way shots: frames (n, 14, 3), 0.02 ps apart."""
    engine, torsion = butane()
    trans, gauche = states_of(torsion)
    top = at_torsion(engine, torsion, 2.06)
    shots = two_way_shots(engine, top, trans, gauche, max_duration="4 ps", stride="0.02 ps", seed=7, n_per_state=12)
    [first, *_] = np.flatnonzero(shots.connecting)
    return shots.reactive_path(first)[0].positions


def states_of(torsion):
    return (torsion > 2.6) | (torsion < -2.6), torsion.between(0.6, 1.5)


class Jittered:
    """Snippets of real dynamics that cross, every coordinate of the carbons off by 0.001 nm; asked for ends, it gives its own."""

    stride = 0.02

    class representation:
        atoms = butane()[1].atoms

    @property
    def n_frames(self):
        return len(crossing())

    def inpaint(self, known, mask, *, seed):
        carbons = crossing()[:, list(self.representation.atoms)]
        return carbons + 1e-3 * stream(seed, "jitter").standard_normal((len(known), *carbons.shape))


@cache
def basins():
    """MD of butane, a frame per 0.02 ps, that starts in trans and in gauche."""
    engine, torsion = butane()
    starts = [at_torsion(engine, torsion, value) for value in (3.0, 1.1)]
    return tuple(engine.propagate(starts, duration="4 ps", stride="0.02 ps", seed=3))


def carbons_of(trajectories):
    carbons = list(butane()[1].atoms)
    return [Trajectory(t.positions[:, carbons], t.stride, topology=t.topology.subset(carbons)) for t in trajectories]


def test_md_of_the_generated_atoms_alone_serves_as_well_as_md_of_all():
    engine, torsion = butane()
    trans, gauche = states_of(torsion)
    settings = {"seed": 1, "n_generate": 4, "n_shots_per_path": 3, "max_duration": "4 ps", "require_gates": False}
    whole, carbons, mixed = (
        reactive_seeds(Jittered(), engine, trans, gauche, 1, data=data, **settings)
        for data in (basins(), carbons_of(basins()), [basins()[0], *carbons_of(basins()[1:])])
    )
    for found in (carbons, mixed):
        for name in ("bond_deviation", "angle_deviation", "jump_ratio", "seam_ratio"):
            np.testing.assert_allclose(getattr(found.scores, name), getattr(whole.scores, name))
        assert len(found) >= 1
        assert found.counts["force evaluations of rebuilding"] > 200 * found.counts["shots"]
    assert np.isfinite(whole.scores.bond_deviation).all()
    kept = [State(t.positions[0]) for t in carbons_of(basins())]
    assert len(reactive_seeds(Jittered(), engine, trans, gauche, 1, starts_a=kept[:1], starts_b=kept[1].positions, **settings)) >= 1
    with pytest.raises(DataError, match="hold 3 atoms, expected all 14 or the 4"):
        reactive_seeds(Jittered(), engine, trans, gauche, 1, starts_a=kept[0].positions[:3], starts_b=kept[1], **settings)


def test_seeds_of_a_molecule_start_path_sampling():
    engine, torsion = butane()
    trans, gauche = states_of(torsion)
    found = reactive_seeds(Jittered(), engine, trans, gauche, 2, data=carbons_of(basins()), seed=2, n_generate=4, max_duration="4 ps",
                           require_gates=False)  # fmt: skip
    sampling = TransitionPathSampling(engine, trans, gauche, ShootingMove.one_way(), max_duration="6 ps")
    sampled = sampling.run(found, 10, n_chains=2, seed=3)
    for path in sampled.paths:
        assert trans.contains(path.positions[:1])[0]
        assert gauche.contains(path.positions[-1:])[0]
        assert not (trans | gauche).contains(path.positions[1:-1]).any()
    assert sum(int(n.sum()) for n in sampled.outcomes.values()) == 10


def test_shots_in_a_periodic_box_keep_the_box_with_every_frame():
    import mdtraj
    import openmm

    system, spring, topology = openmm.System(), openmm.HarmonicBondForce(), mdtraj.Topology()
    residue = topology.add_residue("ARG", topology.add_chain())
    for name in ("A", "B"):
        system.addParticle(20.0)
        topology.add_atom(name, mdtraj.element.argon, residue)
    spring.addBond(0, 1, 1.0, 1000.0)
    spring.setUsesPeriodicBoundaryConditions(True)
    system.addForce(spring)
    box = np.eye(3) * 4.0
    system.setDefaultPeriodicBoxVectors(*box)
    molecule = MolecularSystem.from_system(system, topology, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], box=box)
    engine = OpenMMEngine(molecule, platform="Reference", workers=1)
    length = Distance(atoms=(0, 1), name="length")
    start = State(molecule.state.positions)
    shots = two_way_shots(engine, start, length < 0.97, length > 1.03, max_duration="2 ps", stride="2 fs", seed=1)
    assert (shots.paths[0].boxes == box).all()
    assert len(shots.paths[0].boxes) == len(shots.paths[0])
