"""The OpenMM engine: the engine contract, exact reproducibility, biases that do what they say, honest failures."""

import pickle
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import couloir.sampling
from couloir.cv import FlatBottom, HarmonicBias, Tabulated
from couloir.cv.geometric import Dihedral, Distance
from couloir.errors import ConfigError, DataError, SimulationError
from couloir.sampling.engine import Engine
from couloir.sampling.hunt import constrained
from couloir.sampling.molecule import MolecularSystem
from couloir.sampling.openmm_engine import OpenMMEngine
from couloir.sampling.platforms import benchmark_platforms
from couloir.trajectory import State
from couloir.units import GAS_CONSTANT

STRUCTURE = Path(couloir.sampling.__file__).parent / "structures" / "alanine_dipeptide.pdb"
PHI = Dihedral(atoms=(4, 6, 8, 14), name="phi")
PSI = Dihedral(atoms=(6, 8, 14, 16), name="psi")


@cache
def alanine() -> MolecularSystem:
    import mdtraj
    import openmm
    from openmm import app

    pdb = app.PDBFile(str(STRUCTURE))
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(pdb.topology, constraints=app.HBonds, removeCMMotion=False)
    positions = np.array(pdb.getPositions(asNumpy=True)._value)
    return MolecularSystem("alanine", openmm.XmlSerializer.serialize(system), mdtraj.Topology.from_openmm(pdb.topology), State(positions))


@cache
def pair(periodic: bool = False) -> MolecularSystem:
    """Two particles on a harmonic spring of 1000 kJ/mol/nm^2 at 1 nm; periodic, in a barostated box."""
    import mdtraj
    import openmm

    system = openmm.System()
    spring = openmm.HarmonicBondForce()
    for _ in range(2):
        system.addParticle(20.0)
    spring.addBond(0, 1, 1.0, 1000.0)
    system.addForce(spring)
    topology = mdtraj.Topology()
    residue = topology.add_residue("ARG", topology.add_chain())
    for name in ("A", "B"):
        topology.add_atom(name, mdtraj.element.argon, residue)
    box = None
    if periodic:
        spring.setUsesPeriodicBoundaryConditions(True)
        box = np.eye(3) * 4.0
        system.setDefaultPeriodicBoxVectors(*box)
        system.addForce(openmm.MonteCarloBarostat(100.0, 300.0, 5))
    state = State(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), None, box)
    return MolecularSystem("pair", openmm.XmlSerializer.serialize(system), topology, state)


def engine(molecule: MolecularSystem | None = None, **options: object) -> OpenMMEngine:
    return OpenMMEngine(molecule or alanine(), **{"platform": "Reference", "workers": 1, **options})


def same(a, b) -> bool:
    pairs = [(a.positions, b.positions), (a.series.values, b.series.values), (a.series.potential, b.series.potential)]
    pairs += [(a.last.positions, b.last.positions), (a.last.velocities, b.last.velocities)]
    return all(np.array_equal(x, y) for x, y in pairs)


def test_it_is_an_engine_that_pickles_as_a_description():
    original = engine()
    copy = pickle.loads(pickle.dumps(original))
    assert isinstance(copy, Engine)
    assert (copy.temperature, copy.time_step, copy.kT) == (300.0, 0.002, pytest.approx(300 * GAS_CONSTANT))
    assert copy.masses.shape == (22,)
    assert copy.masses.sum() == pytest.approx(144.17, abs=0.05)
    assert copy.topology.n_atoms == 22
    assert copy.to_dict()["platform"] == "Reference"
    assert copy._describe("Reference") == original._describe("Reference")


def test_frames_and_records_come_at_their_own_strides():
    [md] = engine().propagate(alanine().state, duration="2 ps", stride="0.4 ps", record=[PHI, PSI], record_stride="0.1 ps", velocities=True)
    assert md.positions.shape == md.velocities.shape == (5, 22, 3)
    assert md.boxes is None
    assert md.stride == pytest.approx(0.4)
    assert md.series.names == ("phi", "psi")
    assert md.series.values.shape == (20, 2)
    assert md.series.stride == pytest.approx(0.1)
    np.testing.assert_array_equal(md.series["phi"][3::4], PHI.evaluate(md.positions))
    np.testing.assert_allclose(md.series.potential[3::4], engine().energies(md.positions), rtol=1e-12)
    np.testing.assert_array_equal(md.last.positions, md.positions[-1])
    np.testing.assert_array_equal(md.last.velocities, md.velocities[-1])
    assert md.ended == "complete"


def test_without_a_stride_no_frames_are_kept_but_the_energy_is():
    [md] = engine().propagate(alanine().state, duration="0.2 ps")
    assert md.positions.shape == (0, 22, 3)
    assert md.series.values.shape == (1, 0)
    assert md.last.velocities is not None


def test_blocks_of_records_change_nothing(monkeypatch):
    from couloir.sampling import _openmm_worker

    options = {"duration": "0.5 ps", "stride": "0.05 ps", "record": [PHI], "record_stride": "0.01 ps", "seed": 3}
    [whole] = engine().propagate(alanine().state, **options)
    monkeypatch.setattr(_openmm_worker, "_BLOCK_RECORDS", 7)
    [blocks] = engine().propagate(alanine().state, **options)
    assert same(whole, blocks)


def test_numbers_do_not_depend_on_the_number_of_workers():
    biases = [HarmonicBias.on(PHI, c, 100) for c in (-2.0, -1.0, 3.1)]
    options = {"duration": "1 ps", "stride": "0.5 ps", "record": [PHI], "record_stride": "0.1 ps", "bias": biases, "seed": 5}
    states = [alanine().state] * 3
    arrived = []
    two = engine(workers=2).propagate(states, on_result=lambda i, t: arrived.append(i), **options)
    one = engine(workers=1).propagate(states, **options)
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert sorted(arrived) == [0, 1, 2]
    assert not np.array_equal(one[0].positions, one[1].positions)


def test_a_walker_does_not_depend_on_its_neighbours():
    e, state = engine(), alanine().state
    options = {"duration": "0.2 ps", "record": [PHI]}
    alone = e.propagate(state, seed=[11], **options)[0]
    among = e.propagate([state] * 3, seed=[4, 11, 6], bias=[HarmonicBias.on(PHI, 1.0, 50), None, None], **options)[1]
    assert same(alone, among)


def test_walkers_with_durations_of_their_own_are_as_if_alone():
    e, state = engine(), alanine().state
    times = [0.04, 0.12, 0.02]
    together = e.propagate([state] * 3, duration=times, stride=0.02, seed=[4, 11, 6])
    for run, time, seed in zip(together, times, (4, 11, 6), strict=True):
        assert same(run, e.propagate(state, duration=time, stride=0.02, seed=[seed])[0])
        assert len(run) == round(time / 0.02)


def test_continuing_in_another_process_equals_continuing_here():
    e, options = engine(), {"duration": "0.4 ps", "stride": "0.1 ps", "record": [PHI], "bias": HarmonicBias.on(PHI, -1.0, 100)}
    [first] = e.propagate(alanine().state, seed=[1], **options)
    [here] = e.propagate(first.last, seed=[2], **options)
    elsewhere = engine(workers=2).propagate([first.last, first.last], seed=[2, 2], **options)
    assert same(here, elsewhere[0])
    assert same(here, elsewhere[1])


def test_a_script_needs_no_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import numpy, openmm, mdtraj
        from openmm import app
        from couloir.sampling.molecule import MolecularSystem
        from couloir.sampling.openmm_engine import OpenMMEngine
        from couloir.trajectory import State
        pdb = app.PDBFile({str(STRUCTURE)!r})
        system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(pdb.topology)
        state = State(numpy.array(pdb.getPositions(asNumpy=True)._value))
        molecule = MolecularSystem("a", openmm.XmlSerializer.serialize(system), mdtraj.Topology.from_openmm(pdb.topology), state)
        engine = OpenMMEngine(molecule, time_step="0.5 fs", platform="Reference", workers=2)
        print("ran", len(engine.propagate([state] * 2, duration="0.1 ps")))
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "ran 2\n", done.stderr


def _blocked_mean(values: np.ndarray, n_blocks: int = 20) -> tuple[float, float]:
    blocks = values[: len(values) // n_blocks * n_blocks].reshape(n_blocks, -1).mean(axis=1)
    return float(blocks.mean()), float(blocks.std(ddof=1) / np.sqrt(n_blocks))


def test_a_harmonic_bias_samples_its_boltzmann_distribution():
    """p(r) ~ r^2 exp(-[500 (r-1)^2 + k/2 (r-c)^2] / kT), by quadrature."""
    molecule, r = pair(), Distance(atoms=(0, 1), name="r")
    e = engine(molecule, time_step="4 fs")
    [md] = e.propagate(molecule.state, duration="1 ns", record=[r], record_stride="0.04 ps", bias=HarmonicBias.on(r, 1.3, 3000), seed=8)
    grid = np.linspace(0.8, 1.8, 4001)
    weight = grid**2 * np.exp(-(500 * (grid - 1) ** 2 + 1500 * (grid - 1.3) ** 2) / e.kT)
    expected = (weight * grid).sum() / weight.sum()
    mean, error = _blocked_mean(md.series["r"])
    assert error < 2e-3
    assert abs(mean - expected) < 5 * error
    second, error2 = _blocked_mean((md.series["r"] - expected) ** 2)
    assert abs(second - (weight * (grid - expected) ** 2).sum() / weight.sum()) < 5 * error2
    np.testing.assert_allclose(md.series.potential, 500 * (md.series["r"] - 1) ** 2, atol=1e-9)


@pytest.mark.parametrize(
    "bias",
    [
        HarmonicBias.on([PHI, PSI], [3.0, -2.0], [40.0, 60.0]),
        FlatBottom.on(PHI, 2.0, 0.3, 80.0) + HarmonicBias.on(PSI, 1.0, 20.0) + HarmonicBias.on(PHI, 0.5, 10.0),
        Tabulated(("phi",), -np.pi, np.pi, tuple(20 * np.cos(np.linspace(-np.pi, np.pi, 41))), True),
    ],
)
def test_the_forces_of_a_bias_have_its_energy(bias):
    import openmm

    from couloir.sampling._openmm_bias import bias_forces, plan_bias

    plan, parameters = plan_bias(bias, {"phi": PHI, "psi": PSI})
    system = openmm.XmlSerializer.deserialize(alanine().system_xml)
    while system.getNumForces():
        system.removeForce(0)
    for force in bias_forces(plan):
        system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(alanine().state.positions)
    for name, value in parameters.items():
        context.setParameter(name, value)
    values = np.stack([PHI.evaluate(alanine().state.positions), PSI.evaluate(alanine().state.positions)], axis=1)
    expected = bias.energy(values[:, [("phi", "psi").index(name) for name in bias.names]])[0]
    assert context.getState(energy=True).getPotentialEnergy()._value == pytest.approx(expected, rel=1e-6)


def test_windows_that_differ_in_numbers_share_a_context():
    from couloir.sampling._openmm_bias import plan_bias

    keys = {plan_bias(HarmonicBias.on(PHI, c, k), {"phi": PHI})[0].key for c, k in [(0, 1), (1, 1), (2, 5)]}
    assert len(keys) == 1
    assert plan_bias(HarmonicBias.on(PSI, 0, 1), {"psi": PSI})[0].key not in keys


def test_a_walker_ends_at_its_first_record_inside_the_stop_region():
    free = engine().propagate(alanine().state, duration="4 ps", stride="0.02 ps", record=[PHI], seed=[3])[0]
    limit = float(np.quantile(free.series["phi"], 0.9))
    first = int(np.flatnonzero(free.series["phi"] >= limit)[0])
    [md] = engine().propagate(alanine().state, duration="4 ps", stride="0.02 ps", record=[PSI], stop=limit <= PHI, seed=[3])
    assert md.ended == "stopped"
    assert len(md) == len(md.series) == first + 1
    np.testing.assert_array_equal(md.positions, free.positions[: first + 1])
    np.testing.assert_array_equal(md.last.positions, md.positions[-1])
    [unmet] = engine().propagate(alanine().state, duration="0.2 ps", stop=(PHI > 3.0) & (PHI < -3.0))
    assert unmet.ended == "complete"


def test_missing_velocities_are_drawn_and_the_dynamics_is_canonical():
    e = engine()
    [md] = e.propagate(alanine().state, duration="60 ps", stride="0.1 ps", velocities=True, seed=2)
    kinetic = 0.5 * (e.masses[:, None] * md.velocities**2).sum(axis=(1, 2))
    n_degrees = 3 * 22 - 12
    mean, error = _blocked_mean(kinetic[50:])
    assert error < 0.03 * mean
    assert abs(mean - 0.5 * n_degrees * e.kT) < 5 * error + 0.005 * mean  # leapfrog half-step velocities: O(dt^2) bias


def test_a_walker_that_explodes_is_named_and_everything_sampled_is_kept():
    molecule, r = pair(), Distance(atoms=(0, 1), name="r")
    biases = [HarmonicBias.on(r, 1.2, 500.0), HarmonicBias.on(r, 1.2, 1e6)]  # the second is too stiff for 10 fs: it doubles every few steps
    with pytest.raises(SimulationError, match=r"walker 1 broke down before record \d+ \(frame \d+\), t = .* ps") as caught:
        engine(molecule, time_step="10 fs").propagate(
            [molecule.state] * 2, duration="1 ps", stride="0.02 ps", record=[r], record_stride="0.01 ps", bias=biases
        )
    good, broken = caught.value.partial
    assert len(good) == 50
    assert good.ended == "complete"
    assert 0 < len(broken) == len(broken.series) // 2 < 50
    assert np.isfinite(broken.positions).all()
    assert broken.ended == "failed"
    assert "minimize" in caught.value.fix


@pytest.mark.timeout(60)
def test_overlapping_atoms_cannot_be_minimized_and_do_not_stop_the_others():
    molecule = alanine()
    heap = State(np.zeros_like(molecule.state.positions))
    with pytest.raises(SimulationError, match="state 1 failed") as caught:
        engine(molecule).minimize([molecule.state, heap])
    good, bad = caught.value.partial
    assert isinstance(good, State)
    assert bad is None


@pytest.mark.timeout(60)
def test_a_walker_that_cannot_begin_is_named_and_the_others_finish():
    molecule = alanine()
    heap = State(np.zeros_like(molecule.state.positions))
    with pytest.raises(SimulationError, match="walker 1 broke down") as caught:
        engine(molecule).propagate([molecule.state, heap], duration="0.1 ps", stride="0.02 ps")
    assert [t.ended for t in caught.value.partial] == ["complete", "failed"]
    assert [len(t) for t in caught.value.partial] == [5, 0]


def test_what_openmm_refuses_is_an_error_with_a_fix():
    molecule = alanine()
    broken = engine(molecule, platform_properties={"NoSuchProperty": "1"})
    with pytest.raises(SimulationError, match="NoSuchProperty") as caught:
        broken.propagate(molecule.state, duration="0.1 ps")
    assert "platform_properties" in caught.value.fix


def test_boxes_are_carried_and_barostats_move_them():
    molecule = pair(periodic=True)
    [md] = engine(molecule).propagate(molecule.state, duration="0.2 ps", stride="0.02 ps", seed=1)
    assert md.boxes.shape == (10, 3, 3)
    assert len(np.unique(md.boxes[:, 0, 0])) > 1
    np.testing.assert_array_equal(md.last.box, md.boxes[-1])
    [again] = engine(molecule).propagate(molecule.state, duration="0.2 ps", stride="0.02 ps", seed=1)
    np.testing.assert_array_equal(again.boxes, md.boxes)


def test_minimize_goes_downhill_and_follows_the_bias():
    e, state = engine(), alanine().state
    [plain] = e.minimize(state)
    restraints = [HarmonicBias.on(PHI, c, 5000.0) for c in (-1.0, -2.5)]
    restrained = e.minimize([state, state], bias=restraints, record=[PHI])
    assert e.energies(plain.positions)[0] <= e.energies(state.positions)[0]
    np.testing.assert_allclose([PHI.evaluate(s.positions)[0] for s in restrained], [-1.0, -2.5], atol=0.05)
    np.testing.assert_allclose(e.apply_constraints(plain).positions, plain.positions, atol=1e-5)


def test_constraints_are_repaired():
    rng = np.random.default_rng(0)
    bent = State(alanine().state.positions + 0.002 * rng.standard_normal((22, 3)), np.ones((22, 3)))
    fixed = engine().apply_constraints(bent)
    bonds = [(b[0].index, b[1].index) for b in alanine().topology.bonds if "H" in (b[0].element.symbol, b[1].element.symbol)]
    length = np.array([np.linalg.norm(fixed.positions[i] - fixed.positions[j]) for i, j in bonds])
    original = np.array([np.linalg.norm(alanine().state.positions[i] - alanine().state.positions[j]) for i, j in bonds])
    assert len(bonds) == 12
    np.testing.assert_allclose(length, original, rtol=2e-3)
    assert fixed.velocities is not None


def test_constraints_that_cannot_be_satisfied_are_told():
    x = alanine().state.positions
    for hopeless in (x + 0.5 * np.random.default_rng(1).standard_normal(x.shape), np.zeros_like(x)):  # OpenMM does not complain
        with pytest.raises(SimulationError, match="the constraints of alanine cannot be satisfied: a"):
            engine().apply_constraints(State(hopeless))
        assert constrained(engine(), State(hopeless)) is None


def test_a_kick_where_openmm_has_no_forces_is_nan_and_spoils_no_other():
    import openmm

    system, force = openmm.System(), openmm.NonbondedForce()
    for _ in range(2):
        system.addParticle(20.0)
        force.addParticle(0.0, 0.3, 1.0)
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    system.addForce(force)
    system.setDefaultPeriodicBoxVectors(*np.eye(3) * 4.0)
    state = State(np.array([[0.0, 0.0, 0.0], [0.4, 0.0, 0.0]]), None, np.eye(3) * 4.0)
    e = engine(MolecularSystem("argon", openmm.XmlSerializer.serialize(system), pair().topology, state))
    x, v = np.array([state.positions] * 3), np.zeros((3, 2, 3))
    kicked = e.kicked(x, v, 1.0, np.array([np.eye(3) * size for size in (4.0, 1.5, 4.0)]))  # a box of less than twice the cutoff
    assert np.isnan(kicked[1]).all()
    np.testing.assert_array_equal(kicked[[0, 2]], e.kicked(x[:2], v[:2], 1.0))


def test_energies_are_the_same_in_parts_and_in_one_piece():
    [md] = engine().propagate(alanine().state, duration="0.4 ps", stride="0.02 ps")
    many = np.tile(md.positions, (60, 1, 1))
    np.testing.assert_array_equal(engine(workers=2).energies(many), np.tile(engine().energies(md.positions), 60))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": HarmonicBias.on(PHI, 0, 1), "record": [PSI]}, "'phi', which is not in record"),
        ({"record": [PHI, PHI]}, "same name"),
        ({"duration": "1 ps", "stride": "0.3 ps"}, "do not divide"),
        ({"bias": [None, None]}, "2 biases for 1 walkers"),
        ({"states": State(np.zeros((3, 3)))}, "needs \\(22, 3\\)"),
    ],
)
def test_bad_requests_say_what_is_wrong(options, message):
    request = {"states": alanine().state, "duration": "0.2 ps"} | options
    with pytest.raises(DataError, match=message):
        engine().propagate(request.pop("states"), **request)


def test_an_unknown_platform_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'Reference'"):
        engine(platform="Referense")


def test_the_platform_is_measured_on_the_system():
    speeds = benchmark_platforms(alanine(), workers=1, seconds=0.2)
    assert {"Reference", "CPU"} <= {speed.name for speed in speeds}
    assert [s.aggregate for s in speeds] == sorted((s.aggregate for s in speeds), reverse=True)
    automatic = engine(platform="auto")
    assert automatic.platform == automatic.platform_report[0].name
    assert automatic.to_dict()["platform"] == automatic.platform
