"""Rebuilt frames are the frames given, thermal, ready to run, and never returned when a gate says no."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from couloir.cv import wrap
from couloir.cv.bias import HarmonicBias
from couloir.cv.geometric import Dihedral
from couloir.errors import DataError
from couloir.generative import HeavyAtoms, representation_from
from couloir.sampling import OpenMMEngine, reactive_seeds, systems
from couloir.sampling.gates import GeometryGates
from couloir.sampling.hydrogens import place_hydrogens
from couloir.sampling.path_scores import superposed_distance
from couloir.sampling.rebuild import REBUILD_GATES, Rebuilt, rebuild
from couloir.trajectory import Array, State

PHI, PSI = Dihedral((4, 6, 8, 14), "phi"), Dihedral((6, 8, 14, 16), "psi")


def engine_of(molecule: systems.MolecularSystem, workers: int = 1) -> OpenMMEngine:
    return OpenMMEngine(molecule, "300 K", platform="Reference", workers=workers)


def heavy(engine: OpenMMEngine) -> npt.NDArray[np.int64]:
    return HeavyAtoms(engine.topology).atoms


def rebuilt(engine: OpenMMEngine, frames: Array, **settings: object) -> Rebuilt:
    """Rebuild frames of all atoms from their heavy atoms."""
    atoms = heavy(engine)
    return rebuild(engine, frames[:, atoms], atoms, reference=engine.molecule.state, **{"seed": 1, **settings})


def positions(result: Rebuilt) -> Array:
    return np.array([state.positions for state in result.passed])


def turned(positions: Array, axis: tuple[int, int], moving: list[int], angle: float) -> Array:
    """Return a structure with some atoms rotated about a bond."""
    from scipy.spatial.transform import Rotation

    start, out = positions[axis[0]], positions.copy()
    along = positions[axis[1]] - start
    out[moving] = start + Rotation.from_rotvec(angle * along / np.linalg.norm(along)).apply(positions[moving] - start)
    return out


@pytest.fixture(scope="module")
def alanine() -> OpenMMEngine:
    return engine_of(systems.alanine_dipeptide())


@pytest.fixture(scope="module")
def md(alanine: OpenMMEngine) -> Array:
    """200 frames at 300 K."""
    return alanine.propagate(alanine.molecule.state, duration="100 ps", stride="0.5 ps", seed=3)[0].positions


@pytest.fixture(scope="module")
def dynamics(alanine: OpenMMEngine, md: Array) -> Rebuilt:
    return rebuilt(alanine, md)


def test_md_frames_without_hydrogens_come_back_where_they_were(md: Array, dynamics: Rebuilt) -> None:
    assert dynamics.rows.tolist() == list(range(200))
    y = positions(dynamics)
    atoms = [0, 4, 5, 6, 8, 10, 14, 15, 16, 18]
    np.testing.assert_allclose(dynamics.displacement, superposed_distance(y[:, atoms], md[:, atoms]), atol=1e-10)
    assert dynamics.displacement.max() < 0.01
    assert np.abs(y[:, atoms] - md[:, atoms]).max() < 0.03  # not even turned or moved
    for cv in (PHI, PSI):
        assert np.degrees(np.abs(wrap(cv.evaluate(y) - cv.evaluate(md), 2 * np.pi))).max() < 10


def test_energies_of_rebuilt_md_overlap_with_those_of_the_md(alanine: OpenMMEngine, md: Array, dynamics: Rebuilt) -> None:
    before, after = alanine.energies(md), dynamics.energies
    np.testing.assert_allclose(after, alanine.energies(positions(dynamics)), rtol=1e-10)
    # the minimization takes heat out of the stiff modes of ten heavy atoms: at most kT/2 for each of 24
    assert -12 * alanine.kT < after.mean() - before.mean() < 0
    assert np.quantile(after, 0.95) > np.quantile(before, 0.25)
    assert after.max() < before.max()


def test_hydrogens_are_thermal_given_the_heavy_atoms(alanine: OpenMMEngine, md: Array) -> None:
    # Heavy atoms that are held where equilibrium put them, and hydrogens drawn given them: equilibrium again.
    change = rebuilt(alanine, md, force_constant="1e8 kJ/mol/nm^2").energies - alanine.energies(md)
    error = change.std() / np.sqrt(len(change))
    assert error < 1.5
    assert abs(change.mean()) < 4.5 * error
    # and without that run they are cold: each of 36 hydrogen coordinates less 12 constraints lacks up to kT/2
    cold = rebuilt(alanine, md[:50], force_constant="1e8 kJ/mol/nm^2", relaxation="2 fs").energies - alanine.energies(md[:50])
    assert cold.mean() < -6 * alanine.kT


def test_every_rebuilt_state_satisfies_the_constraints_and_runs(alanine: OpenMMEngine, dynamics: Rebuilt) -> None:
    y = positions(dynamics)
    for i, j, length in alanine.molecule.constraints:
        assert np.abs(np.linalg.norm(y[:, i] - y[:, j], axis=-1) - length).max() < 1e-5
    runs = alanine.propagate(dynamics.passed[::8], duration="2 ps", stride="1 ps", seed=5)  # 1000 steps each
    assert all(run.ended == "complete" and np.isfinite(run.positions).all() for run in runs)
    assert all(np.isfinite(run.series.potential).all() for run in runs if run.series is not None)


def test_velocities_are_drawn_at_the_temperature_along_the_constraints(alanine: OpenMMEngine, dynamics: Rebuilt) -> None:
    v = np.array([state.velocities for state in dynamics.passed])
    free = 3 * 22 - len(alanine.molecule.constraints)
    temperatures = (alanine.masses[:, None] * v**2).sum(axis=(1, 2)) / (free * alanine.kT)
    # chi-squared over its f degrees of freedom: variance 2 / f
    assert abs(temperatures.mean() - 1) < 4.5 * np.sqrt(2 / free / len(v))
    y = positions(dynamics)
    for i, j, _ in alanine.molecule.constraints:
        assert np.abs(((y[:, i] - y[:, j]) * (v[:, i] - v[:, j])).sum(axis=-1)).max() < 1e-3


@pytest.mark.parametrize("phi", [0.0, 1.0])
def test_frames_on_the_barrier_and_beyond_it_stay_there(alanine: OpenMMEngine, phi: float) -> None:
    bias = HarmonicBias.on([PHI], [phi], [500.0])
    frames = alanine.propagate(alanine.molecule.state, duration="10 ps", stride="0.5 ps", seed=3, record=[PHI], bias=bias)[0].positions[10:]
    result = rebuilt(alanine, frames)
    assert len(result.rows) == len(frames)
    assert np.degrees(np.abs(PHI.evaluate(positions(result)) - PHI.evaluate(frames))).max() < 10


def test_a_representation_there_and_back_gives_frames_that_run(alanine: OpenMMEngine, md: Array) -> None:
    fitted = HeavyAtoms(alanine.topology).fit(md)
    fitted = representation_from(json.loads(json.dumps(fitted.to_dict())), fitted.arrays())
    noise = 0.004 / fitted.scale_of(0) * np.random.default_rng(2).standard_normal((20, 30))  # a model's error: 0.004 nm per coordinate
    generated = fitted.decode(fitted.encode(md[:20]) + noise)
    result = rebuild(alanine, generated, fitted.atoms, reference=alanine.molecule.state, seed=1)
    assert len(result.rows) == 20
    assert result.displacement.max() < 0.01
    # strain of 0.004 nm on nine stiff bonds would cost tens of kT; little of it is left
    assert np.median(result.energies) < np.median(alanine.energies(md)) + 5 * alanine.kT


def test_paths_of_heavy_atoms_are_rebuilt_frame_after_frame_without_being_told_their_atoms(alanine: OpenMMEngine, md: Array) -> None:
    atoms = heavy(alanine)
    paths = md[:6, atoms].reshape(2, 3, len(atoms), 3)
    result = rebuild(alanine, paths, seed=1)
    expected = rebuilt(alanine, md[:6])
    np.testing.assert_array_equal(positions(result), positions(expected))
    assert len(rebuild(alanine, md[:2].reshape(1, 2, -1, 3), seed=1).passed) == 2


def test_nonsense_is_reported_by_the_gate_it_fails_and_not_returned(alanine: OpenMMEngine, md: Array) -> None:
    start = alanine.molecule.state.positions
    frames = np.repeat(md[:1], 5, axis=0)
    frames[0, 6, 1] = np.nan
    frames[1, 18] += 0.15
    frames[2] *= -1
    frames[3] = turned(start, (14, 16), list(range(16, 22)), np.pi)
    result = rebuilt(alanine, frames)
    assert result.failed == ("finite", "bonds", "chirality", "peptide", None)
    assert [state is None for state in result.states] == [True, True, True, True, False]
    assert result.rows.tolist() == [4]
    assert len(result.passed) == result.counts["rebuilt"] == 1
    assert set(result.counts) == {"given", *REBUILD_GATES, "rebuilt"}
    assert result.to_dataframe()["failed"].tolist()[:4] == ["finite", "bonds", "chirality", "peptide"]
    assert "chirality   1" in str(result)


def test_overlapping_heavy_atoms_are_never_returned(alanine: OpenMMEngine) -> None:
    start = alanine.molecule.state.positions
    near, seen = heavy(alanine), []
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        bent = turned(start, (6, 8), list(range(10, 22)), angle)
        closest = np.linalg.norm(bent[near][:, None] - bent[near][None], axis=-1)[:3, 6:].min()
        result = rebuilt(alanine, bent[None])
        seen.append((closest, result.failed[0]))
    assert any(closest < 0.2 for closest, _ in seen)
    assert all(gate == "clash" for closest, gate in seen if closest < 0.2)
    assert any(gate is None for _, gate in seen)


def test_limits_that_are_asked_for_are_gates(alanine: OpenMMEngine, md: Array) -> None:
    assert rebuilt(alanine, md[:3], max_displacement="1e-5 nm").failed == ("moved",) * 3
    assert rebuilt(alanine, md[:3], max_energy=-1000.0).failed == ("energy",) * 3


def test_what_rebuilding_costs_is_counted_frame_by_frame(alanine: OpenMMEngine, md: Array) -> None:
    none, one, two = (rebuilt(alanine, md[:n]) for n in range(3))
    assert (none.force_evaluations, one.dynamics_steps, two.dynamics_steps) == (0, 200, 400)
    assert rebuilt(alanine, md[:1], relaxation="0.1 ps").dynamics_steps == 50
    assert 0 < one.minimizer_iterations < two.minimizer_iterations
    assert two.force_evaluations >= 400 + two.minimizer_iterations
    broken = np.full_like(md[:1], np.nan)
    assert rebuilt(alanine, np.concatenate([md[:1], broken])).force_evaluations == one.force_evaluations


def test_every_iteration_of_the_minimizer_is_counted(alanine: OpenMMEngine, md: Array) -> None:
    """A force that counts its calls sees as many as the iterations say, and the line searches."""
    import openmm

    from couloir.sampling._openmm_tasks import Iterations

    system, calls = alanine.molecule.system(), 0

    def count(state: Any) -> tuple[float, Array]:
        nonlocal calls
        calls += 1
        return 0.0, np.zeros((22, 3))

    system.addForce(openmm.PythonForce(count))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    iterations = Iterations()
    context.setPositions(md[0])
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 0, iterations)
    assert 20 < iterations.n < calls < 1.4 * iterations.n + 10


def test_a_row_depends_on_its_frame_and_number_alone(alanine: OpenMMEngine, md: Array, dynamics: Rebuilt) -> None:
    again = rebuilt(alanine, md[:3])
    other = rebuilt(alanine, md[:3], seed=2)
    for i in range(3):
        np.testing.assert_array_equal(again.passed[i].positions, dynamics.passed[i].positions)
        np.testing.assert_array_equal(again.passed[i].velocities, dynamics.passed[i].velocities)
        assert np.abs(other.passed[i].velocities - again.passed[i].velocities).max() > 0.1


@pytest.mark.parametrize("name", ["butane", "alanine_tetrapeptide", "flexible"])
def test_other_molecules_come_back_too(name: str) -> None:
    molecule = {
        "butane": systems.butane,
        "alanine_tetrapeptide": systems.alanine_tetrapeptide,
        "flexible": lambda: systems.alanine_dipeptide("vacuum", "none"),
    }[name]()
    engine = OpenMMEngine(molecule, "300 K", time_step="1 fs", platform="Reference", workers=1)
    frames = engine.propagate(molecule.state, duration="10 ps", stride="0.5 ps", seed=4)[0].positions
    result = rebuilt(engine, frames)
    assert len(result.rows) == 20
    assert result.displacement.max() < 0.01
    assert all(run.ended == "complete" for run in engine.propagate(result.passed[::5], duration="1 ps", seed=2))


def test_methyls_are_staggered_and_amide_hydrogens_planar_whatever_the_reference() -> None:
    molecule = systems.butane()
    start, hydrogens = molecule.state.positions, [4, 5, 6]
    assert [a.element.symbol for a in molecule.topology.atoms][:5] == ["C", "C", "C", "C", "H"]
    eclipsed = turned(start, (1, 0), hydrogens, 0.9)
    placed = place_hydrogens(molecule.topology, eclipsed, start[None, :4], np.arange(4))
    torsions = np.degrees([Dihedral((h, 0, 1, 2), "methyl").evaluate(placed)[0] for h in hydrogens]) % 360
    np.testing.assert_allclose(np.sort(torsions), [60, 180, 300], atol=2)

    peptide = systems.alanine_dipeptide()
    bent = peptide.state.positions.copy()
    amide = next(h.index for h in peptide.topology.atoms if h.name == "H" and h.residue.name == "ALA")
    normal = np.cross(bent[4] - bent[6], bent[8] - bent[6])
    bent[amide] += 0.04 * normal / np.linalg.norm(normal)
    atoms = HeavyAtoms(peptide.topology).atoms
    placed = place_hydrogens(peptide.topology, bent, bent[None, atoms], atoms)
    assert abs((placed[0, amide] - bent[6]) @ normal) < 1e-12


def test_placing_is_exact_in_the_reference_turned_and_moved() -> None:
    molecule = systems.butane()
    x = molecule.state.positions
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    moved = x @ (turn * np.sign(np.linalg.det(turn))) + 2.0
    placed = place_hydrogens(molecule.topology, x, moved[None, :4], np.arange(4))
    assert np.abs(placed[0] - moved).max() < 2e-3  # its methyls are staggered to within a degree


class CarbonsTurned:
    """Paths of butane's carbons alone, the last one carried round evenly from trans to gauche."""

    n_frames, stride = 21, 0.1

    def __init__(self, engine: OpenMMEngine) -> None:
        self.representation = HeavyAtoms(engine.topology)
        self.carbons = engine.molecule.state.positions[:4]

    def inpaint(self, known: Array, mask: npt.NDArray[np.bool_], *, seed: int) -> Array:
        angles = np.linspace(0, 2 * np.pi / 3, known.shape[1])
        return np.repeat([[turned(self.carbons, (1, 2), [3], angle) for angle in angles]], len(known), axis=0)


def test_rebuilt_barrier_frames_of_a_heavy_atom_model_lead_to_reactive_paths() -> None:
    engine = engine_of(systems.butane())
    torsion, state = Dihedral((0, 1, 2, 3), "torsion"), engine.molecule.state
    trans, gauche = (torsion > 2.6) | (torsion < -2.6), (torsion > 0.6) & (torsion < 1.5) | (torsion > -1.5) & (torsion < -0.6)
    ends = {"starts_a": state, "starts_b": State(turned(state.positions, (1, 2), [3, 11, 12, 13], 2 * np.pi / 3))}
    model = CarbonsTurned(engine)
    found = reactive_seeds(
        model, engine, trans, gauche, 1, seed=1, n_generate=8, max_duration="4 ps", **ends,
        rebuild=lambda frames: rebuild(engine, frames, model.representation.atoms, reference=state, seed=1),
    )  # fmt: skip
    assert found.counts["not rebuilt"] == 0
    assert found.counts["force evaluations of rebuilding"] > 200 * found.counts["shots"]
    assert np.isfinite(found.rebuilt.energies).all()
    assert (found.rebuilt.displacement <= 0.02).all()
    assert set(found.rebuilt.failed) == {""}
    path = found.paths[0].positions
    assert trans.contains(path[:1])[0]
    assert gauche.contains(path[-1:])[0]


def test_no_frames_give_no_states(alanine: OpenMMEngine, md: Array) -> None:
    result = rebuilt(alanine, md[:0])
    assert (len(result), result.passed, result.counts["rebuilt"]) == (0, [], 0)


def test_hydrogens_of_a_protein_are_placed_within_every_gate_on_moved_heavy_atoms() -> None:
    import mdtraj
    from openmm import app

    protein = mdtraj.load(str(Path(app.__file__).parent / "data" / "test.pdb"))  # 35 residues, a proline and rings among them
    protein = protein.atom_slice(protein.topology.select("protein"))
    x, atoms = protein.xyz[0].astype(np.float64), HeavyAtoms(protein.topology).atoms
    noise = 0.002 * np.random.default_rng(0).standard_normal((5, len(atoms), 3))
    placed = place_hydrogens(protein.topology, x, x[atoms] + noise, atoms)
    np.testing.assert_array_equal(placed[:, atoms], x[atoms] + noise)
    gates = GeometryGates.of(protein.topology, x).check(placed, contact_scale=0.9)
    assert {gate for gate, passed in gates.items() if not passed.all()} == set()
    rigid = [
        h.index for a in protein.topology.atoms if a.name in ("CA", "CD", "N") and a.residue.name == "PRO" for h in _hydrogens(protein, a)
    ]
    assert len(rigid) >= 3
    assert np.abs(placed[:, rigid] - x[rigid]).max() < 0.02


def _hydrogens(protein: Any, atom: Any) -> list[Any]:
    pairs = [pair for pair in protein.topology.bonds if atom in pair]
    return [other for pair in pairs for other in pair if other.element.symbol == "H"]


def test_what_does_not_fit_is_refused_by_name(alanine: OpenMMEngine) -> None:
    atoms, state = heavy(alanine), alanine.molecule.state
    given = state.positions[None, atoms]
    with pytest.raises(DataError, match=r"NME.*is not given"):
        rebuild(alanine, given[:, :-1], atoms[:-1], reference=state, seed=1)
    with pytest.raises(DataError, match=r"expected \(n, 10, 3\)"):
        rebuild(alanine, given[:, :-1], atoms, reference=state, seed=1)
    with pytest.raises(DataError, match="reference"):
        rebuild(alanine, given, atoms, reference=State(given[0]), seed=1)
    with pytest.raises(DataError, match="name the atoms"):
        rebuild(alanine, given[:, :-1], seed=1)
    ethane = engine_of(systems.ethane())
    with pytest.raises(DataError, match="direction of the hydrogens"):
        rebuild(ethane, ethane.molecule.state.positions[None, :2], [0, 1], reference=ethane.molecule.state, seed=1)
