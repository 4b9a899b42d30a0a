"""The one contract that every collective variable passes."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import openmm
import pytest
import torch

from couloir.cv import (
    RMSD,
    Angle,
    CollectiveVariable,
    Coordinate,
    CoordinationNumber,
    DiffusionMap,
    Dihedral,
    Distance,
    Features,
    FunctionCV,
    FunctionOfCVs,
    LearnedCommittor,
    LinearCombination,
    RadiusOfGyration,
    check_gradient,
    from_dict,
    path_s,
    path_z,
    wrap,
)

N_ATOMS, N_FRAMES = 9, 5
POSITIONS = np.random.default_rng(7).normal(scale=0.4, size=(N_FRAMES, N_ATOMS, 3))
REFERENCE = np.random.default_rng(8).normal(scale=0.4, size=(N_ATOMS, 3))
MASSES = np.random.default_rng(9).uniform(1, 20, size=N_ATOMS)
PHI, PSI, BOND = Dihedral((0, 2, 3, 5), "phi"), Dihedral((2, 3, 5, 8), "psi"), Distance((1, 7), "d")
NODES = [[-3.0, -1.0, 0.3], [-1.0, 0.5, 0.5], [1.5, 2.0, 0.8], [3.1, -2.9, 1.0]]
LEARNED_FROM = np.random.default_rng(10).normal(scale=0.4, size=(80, N_ATOMS, 3))
EVERY_FEATURE = Features.torsions(atoms=[PHI.atoms]) + Features.distances(atoms=(1, 4, 7)) + Features.aligned(REFERENCE, atoms=(2, 4, 6, 8))
OUTCOMES = np.random.default_rng(11).integers(0, 5, size=(2, 80))
COMMITTOR = LearnedCommittor((6,), max_epochs=5).fit(EVERY_FEATURE.compute(LEARNED_FROM, np), *OUTCOMES, seed=1)

CVS: list[CollectiveVariable] = [
    BOND,
    Angle((1, 4, 6), "bend"),
    PHI,
    RadiusOfGyration((0, 2, 3, 7, 8), name="rg"),
    RadiusOfGyration(tuple(range(N_ATOMS)), tuple(MASSES), "rg_mass"),
    RMSD(REFERENCE, name="rmsd"),
    RMSD(REFERENCE, (1, 2, 5, 6, 8), "rmsd_some"),
    CoordinationNumber((0, 1, 2, 3), (3, 4, 5), 0.5, name="contacts"),
    CoordinationNumber((0, 1), (6, 7, 8), 0.4, 3, 8, name="contacts_38"),
    Coordinate(1, "y0"),
    Coordinate(0, "x0", period=0.3),
    LinearCombination((BOND, Angle((1, 4, 6), "bend")), (1.5, -0.3), "mix"),
    LinearCombination((PHI, PSI), (1, -2), "turn", "rad", 2 * math.pi),
    LinearCombination((RadiusOfGyration((0, 2, 3), name="rg"), RMSD(REFERENCE, name="rmsd")), (1, 2), "nested"),
    FunctionOfCVs((PHI, BOND), "cos(phi)*exp(-2*d^2) + max(d, 0.4)/3 - -d^2", "f"),
    FunctionOfCVs((PHI, PSI), "atan2(sin(phi)+sin(psi), cos(phi)+cos(psi))", "mean_angle", "rad", 2 * math.pi),
    path_s((PHI, PSI, BOND), NODES, name="s"),
    path_z((PHI, PSI, BOND), NODES, name="z"),
    DiffusionMap(EVERY_FEATURE, bandwidth=20.0).fit(LEARNED_FROM, seed=1).coordinate(1, "discovered"),
    COMMITTOR.coordinate(EVERY_FEATURE, "logit"),
    COMMITTOR.coordinate(EVERY_FEATURE, "p_b", output="p"),
    FunctionCV(lambda x: (x[:, 0] * x[:, 1]).sum(-1) + x[:, 4, 2] ** 3, "user_torch"),
    FunctionCV(lambda x: np.sin(x[:, 0, 0]) * x[:, 1, 1] ** 2, "user_numpy", backend="numpy", atoms=(2, 6, 7)),
]
EVERY_CV = pytest.mark.parametrize("cv", CVS, ids=lambda cv: cv.name)
WRITTEN_BY_USER = {"user_torch", "user_numpy"}
NOT_INVARIANT = {"y0", "x0", *WRITTEN_BY_USER}


def energy_and_forces(force: openmm.Force, positions: np.ndarray, parameters: dict[str, float] | None = None) -> tuple[float, np.ndarray]:
    system = openmm.System()
    for mass in MASSES:
        system.addParticle(mass)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    for name, value in (parameters or {}).items():
        context.setParameter(name, value)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


@EVERY_CV
def test_a_batch_equals_its_frames_one_by_one(cv):
    batch = cv.evaluate(POSITIONS)
    assert batch.shape == (N_FRAMES,)
    assert batch == pytest.approx(np.concatenate([cv.evaluate(frame) for frame in POSITIONS]), abs=1e-12)
    assert len(set(batch.round(9))) > 1


@EVERY_CV
def test_torch_and_numpy_give_the_same_values(cv):
    assert cv.compute(torch.tensor(POSITIONS), torch).detach().numpy() == pytest.approx(cv.evaluate(POSITIONS), abs=1e-10)


@EVERY_CV
def test_values_lie_within_the_period(cv):
    if cv.period is not None:
        values = cv.evaluate(np.random.default_rng(1).normal(size=(500, N_ATOMS, 3)))
        assert values.min() >= -cv.period / 2
        assert values.max() < cv.period / 2
        assert np.ptp(values) > 0.3 * cv.period


@EVERY_CV
def test_values_ignore_translation_and_rotation(cv):
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    moved = POSITIONS @ rotation.T + np.array([1.0, -2.0, 0.5])
    same = wrap(cv.evaluate(moved) - cv.evaluate(POSITIONS), cv.period) == pytest.approx(0, abs=1e-9)
    assert same == (cv.name not in NOT_INVARIANT)


@EVERY_CV
def test_gradient_is_that_of_the_value(cv):
    values, gradient = cv.value_and_gradient(POSITIONS)
    assert values == pytest.approx(cv.evaluate(POSITIONS), abs=1e-10)
    h, numeric = 1e-5, np.zeros_like(POSITIONS)
    for index in np.ndindex(N_ATOMS, 3):
        shift = np.zeros((N_ATOMS, 3))
        shift[index] = h
        numeric[:, index[0], index[1]] = wrap(cv.evaluate(POSITIONS + shift) - cv.evaluate(POSITIONS - shift), cv.period) / (2 * h)
    assert gradient == pytest.approx(numeric, rel=1e-5, abs=1e-6)
    check_gradient(cv, POSITIONS)


@EVERY_CV
def test_native_force_has_the_value_as_energy_and_minus_the_gradient_as_forces(cv):
    values, gradient = cv.value_and_gradient(POSITIONS)
    for frame, value, slope in zip(POSITIONS[:2], values, gradient, strict=False):
        energy, forces = energy_and_forces(cv.to_openmm(), frame)
        assert energy == pytest.approx(value, rel=1e-7, abs=1e-8)
        assert forces == pytest.approx(-slope, rel=1e-6, abs=1e-6)


@EVERY_CV
def test_an_expression_of_the_cv_follows_its_parameters(cv):
    force = cv.to_openmm_energy(f"0.5*k*({cv.name}-c)^2", {"k": 1.0, "c": 0.0})
    (value,), (gradient,) = cv.value_and_gradient(POSITIONS[:1])
    energy, forces = energy_and_forces(force, POSITIONS[0], {"k": 30.0, "c": 0.2})
    assert energy == pytest.approx(15 * (value - 0.2) ** 2, rel=1e-6, abs=1e-7)
    assert forces == pytest.approx(-30 * (value - 0.2) * gradient, rel=1e-5, abs=1e-5)


@EVERY_CV
def test_an_expression_of_the_cv_may_call_a_table(cv):
    force = cv.to_openmm_energy(f"table({cv.name})", {})
    grid = np.linspace(-20, 20, 4001)
    force.addTabulatedFunction("table", openmm.Continuous1DFunction(np.cos(grid), -20, 20))
    energy, _ = energy_and_forces(force, POSITIONS[0])
    assert energy == pytest.approx(math.cos(cv.evaluate(POSITIONS[0])[0]), abs=1e-6)


@EVERY_CV
def test_plain_data_rebuild_the_cv(cv):
    if cv.name not in WRITTEN_BY_USER:
        again = from_dict(json.loads(json.dumps(cv.to_dict())))
        assert again == cv
        assert (again.unit, again.period) == (cv.unit, cv.period)
        assert np.array_equal(again.evaluate(POSITIONS), cv.evaluate(POSITIONS))
        assert pickle.loads(pickle.dumps(cv)) == cv
