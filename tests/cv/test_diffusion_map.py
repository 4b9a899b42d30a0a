"""Diffusion maps find the slow variable, extend it to new frames, and behave as a CV in every place that takes one."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import mdtraj
import numpy as np
import openmm
import pytest
import torch

from couloir.cv import DiffusionMap, Dihedral, Features, HarmonicBias, check_gradient, from_config, from_dict
from couloir.cv._diffusion import choose_bandwidth
from couloir.cv.diffusion_map import fit_from_config, plan_from_config
from couloir.cv.features import features_from_config
from couloir.errors import ConfigError, DataError, SelectionError
from couloir.generative.conditional_sgm import ConditionalSGM
from couloir.generative.representation import Vector
from couloir.generative.training import TrainingPlan

PLANE = Features.coordinates((0, 1))


def evolving_wells(n: int, seed: int) -> np.ndarray:
    """z1 uniform in 0 ... 10, z2 from the exact conditional density of the evolving wells at kT = 0.5; (n, 1, 2)."""
    rng = np.random.default_rng(seed)
    z1, grid = rng.uniform(0, 10, n), np.linspace(-2.2, 2.2, 1001)
    cumulative = np.cumsum(np.exp(-((grid**2 - 1) ** 2 + (-1 + 0.2 * z1[:, None]) * grid) / 0.5), axis=1)
    uniform = rng.uniform(size=n) * cumulative[:, -1]
    z2 = np.array([np.interp(u, c, grid) for u, c in zip(uniform, cumulative, strict=True)])
    return np.stack([z1, z2], axis=1)[:, None]


def circle(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-np.pi, np.pi, n)
    return (np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(scale=0.02, size=(n, 2)))[:, None], angle


@pytest.fixture(scope="module")
def wells():
    data = evolving_wells(3000, 0)
    return data, DiffusionMap(PLANE, n_landmarks=600).fit(data, seed=1)


@pytest.fixture(scope="module")
def peptide():
    """A chain of eight heavy atoms with random torsions, and a topology that knows its bonds."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("UNL", topology.add_chain())
    atoms = [topology.add_atom(f"C{i}", mdtraj.element.carbon, residue) for i in range(6)]
    for a, b in itertools.pairwise(atoms):
        topology.add_bond(a, b)
    hydrogen = topology.add_atom("H", mdtraj.element.hydrogen, residue)
    topology.add_bond(atoms[0], hydrogen)
    positions = np.cumsum(np.random.default_rng(3).normal(scale=0.1, size=(200, 7, 3)), axis=1)
    return topology, positions


def test_the_first_coordinate_of_the_evolving_wells_is_the_slow_variable(wells):
    _, fitted = wells
    new = evolving_wells(1000, 5)
    values, z1 = fitted.coordinate(1).evaluate(new), new[:, 0, 0]
    assert np.corrcoef(values, z1)[0, 1] > 0.99
    # on an interval the slowest mode is exactly a cosine, which is what limits the correlation with z1 itself to 0.993
    assert np.corrcoef(values, -np.cos(np.pi * z1 / 10))[0, 1] > 0.999
    assert fitted.suggested == 1
    assert fitted.gaps[0] > 3  # the next mode is at most its first harmonic, 4 times faster


def test_a_scale_makes_the_fast_variable_count():
    data = evolving_wells(2000, 0)
    squeezed = DiffusionMap(Features.coordinates((0, 1), scales=(20.0, 0.5)), n_landmarks=400).fit(data, seed=1).coordinate()
    assert abs(np.corrcoef(squeezed.evaluate(data), data[:, 0, 1])[0, 1]) > 0.9


def test_two_coordinates_of_a_circle_give_the_angle():
    data, angle = circle(1200, 1)
    fitted = DiffusionMap(PLANE, n_landmarks=500).fit(data, seed=1)
    found = np.arctan2(fitted.coordinate(2).evaluate(data), fitted.coordinate(1).evaluate(data))
    assert max(abs(np.mean(np.exp(1j * (found - angle)))), abs(np.mean(np.exp(1j * (found + angle))))) > 0.995
    assert fitted.suggested == 2


def test_the_first_coordinate_of_a_strip_is_monotone_along_it():
    data = np.random.default_rng(2).uniform((0, 0), (5, 0.4), size=(1500, 2))[:, None]
    coordinate = DiffusionMap(PLANE, n_landmarks=500).fit(data, seed=1).coordinate()
    along = np.stack([np.linspace(0.1, 4.9, 60), np.full(60, 0.2)], axis=1)[:, None]
    assert (np.diff(coordinate.evaluate(along)) > 0).all()


def test_a_barrier_counts_with_alpha_below_one_only():
    rng = np.random.default_rng(4)
    grid = np.linspace(-1.5, 1.5, 2001)
    cumulative = np.cumsum(np.exp(-2.5 * (grid**2 - 1) ** 2))
    x = np.interp(rng.uniform(size=3000) * cumulative[-1], cumulative, grid)
    data = np.stack([x, rng.uniform(0, 0.1, 3000)], axis=1)[:, None]
    across, along = np.array([[-0.3, 0.05], [0.3, 0.05]])[:, None], np.array([[-1.3, 0.05], [1.3, 0.05]])[:, None]

    def share_at_barrier(alpha: float) -> float:
        coordinate = DiffusionMap(PLANE, alpha=alpha, bandwidth=0.005, n_landmarks=400).fit(data, seed=1).coordinate()
        return float(np.ptp(coordinate.evaluate(across)) / np.ptp(coordinate.evaluate(along)))

    assert share_at_barrier(1.0) == pytest.approx(np.sin(np.pi * 0.3 / 3) / np.sin(np.pi * 1.3 / 3), abs=0.06)
    # alpha = 1/2: the overdamped committor-like mode, whose slope is largest where the density is lowest
    assert share_at_barrier(0.5) > share_at_barrier(1.0) + 0.15
    assert share_at_barrier(0.0) > share_at_barrier(0.5)


def test_the_extension_reproduces_the_eigenvectors_at_the_landmarks(wells):
    _, fitted = wells
    for index in (1, 2, 4):
        at_landmarks = fitted.coordinate(index).evaluate(fitted.landmarks[:, None])
        assert at_landmarks == pytest.approx(fitted.eigenvectors[:, index - 1], abs=1e-8)


def test_the_extension_to_frames_held_out_agrees_with_a_map_that_had_them():
    everything = np.random.default_rng(7).uniform((0, 0), (5, 0.4), size=(1200, 2))[:, None]
    full = DiffusionMap(PLANE, n_landmarks=1200).fit(everything, seed=1).coordinate()
    part = DiffusionMap(PLANE, n_landmarks=1200).fit(everything[:800], seed=1).coordinate()
    held_out = everything[800:]
    assert np.corrcoef(full.evaluate(held_out), part.evaluate(held_out))[0, 1] > 0.999


def test_few_landmarks_give_the_coordinate_of_all_frames():
    data = evolving_wells(1200, 8)
    full = DiffusionMap(PLANE, n_landmarks=1200).fit(data, seed=1).coordinate()
    for selection in ("farthest", "random"):
        few = DiffusionMap(PLANE, n_landmarks=300, selection=selection).fit(data, seed=1).coordinate()
        assert np.corrcoef(full.evaluate(data), few.evaluate(data))[0, 1] > 0.99


def test_coordinates_have_unit_variance_over_the_data_and_a_reproducible_sign(wells):
    data, fitted = wells
    for index in range(1, 7):
        values = fitted.coordinate(index).evaluate(data)
        assert values.mean() == pytest.approx(0, abs=1e-8)
        assert values.std() == pytest.approx(1, abs=1e-8)
    other = DiffusionMap(PLANE, n_landmarks=600).fit(data[::-1], seed=9).coordinate()
    assert np.corrcoef(other.evaluate(data), fitted.coordinate().evaluate(data))[0, 1] > 0.999
    again = DiffusionMap(PLANE, n_landmarks=600).fit(data, seed=1)
    assert np.array_equal(again.coefficients, fitted.coefficients)


def test_disconnected_data_are_refused_with_their_shares():
    data, _ = circle(600, 1)
    with pytest.raises(DataError, match=r"2 sets .* 75.0%, 25.0%"):
        DiffusionMap(PLANE, n_landmarks=400).fit(np.concatenate([data, data[:200] + 30]), seed=1)


def two_wells(n: int, height: float) -> np.ndarray:
    """z1 uniform in 0 ... 10, z2 in one of two Gaussian wells at +-1 that narrow with the height of the barrier; (n, 1, 2)."""
    rng = np.random.default_rng(3)
    z2 = rng.choice([-1.0, 1.0], n) + rng.normal(scale=0.5 / np.sqrt(height), size=n)
    return np.stack([rng.uniform(0, 10, n), z2], axis=1)[:, None]


def test_a_coordinate_that_only_tells_two_wells_apart_is_named_and_the_bandwidth_it_advises_finds_the_slow_variable():
    data = two_wells(3000, 8.0)
    narrow = DiffusionMap(PLANE, n_landmarks=600).fit(data, seed=1)
    assert abs(np.corrcoef(narrow.coordinate().evaluate(data), data[:, 0, 0])[0, 1]) < 0.1
    assert abs(np.corrcoef(narrow.coordinate().evaluate(data), np.sign(data[:, 0, 1]))[0, 1]) > 0.99
    (finding,) = [f for f in narrow.warnings if f.code == "coordinate-of-a-gap"]
    advised = float(re.search(r"bandwidth = ([\d.]+)", finding.fix)[1])
    wide = DiffusionMap(PLANE, bandwidth=advised, n_landmarks=600).fit(data, seed=1)
    assert np.corrcoef(wide.coordinate().evaluate(data), data[:, 0, 0])[0, 1] > 0.99
    assert "coordinate-of-a-gap" not in [f.code for f in wide.warnings]


def test_a_coordinate_that_varies_everywhere_is_not_taken_for_a_gap(wells):
    # A bounded coordinate crowds at its ends without a gap; the sets on both sides of a gap may differ in size.
    assert "coordinate-of-a-gap" not in [f.code for f in wells[1].warnings]
    strip = np.random.default_rng(2).uniform((0, 0), (5, 0.4), size=(1500, 2))[:, None]
    assert "coordinate-of-a-gap" not in [f.code for f in DiffusionMap(PLANE, n_landmarks=300).fit(strip, seed=1).warnings]
    uneven = two_wells(3000, 8.0)
    uneven = uneven[(uneven[:, 0, 1] < 0) | (np.arange(3000) % 9 == 0)]
    assert "coordinate-of-a-gap" in [f.code for f in DiffusionMap(PLANE, n_landmarks=400).fit(uneven, seed=1).warnings]


def test_disconnected_wells_are_refused_with_a_bandwidth_that_joins_them():
    data = two_wells(3000, 60.0)
    with pytest.raises(DataError, match="widen the bandwidth to") as refused:
        DiffusionMap(PLANE, n_landmarks=600).fit(data, seed=1)
    advised = float(re.search(r"bandwidth to ([\d.]+)", refused.value.fix)[1])
    wide = DiffusionMap(PLANE, bandwidth=advised, n_landmarks=600).fit(data, seed=1)
    assert np.corrcoef(wide.coordinate().evaluate(data), data[:, 0, 0])[0, 1] > 0.99


def test_a_few_stray_frames_are_left_out_with_a_finding():
    data, _ = circle(600, 1)
    fitted = DiffusionMap(PLANE, n_landmarks=400).fit(np.concatenate([data, data[:2] + 30]), seed=1)
    (finding,) = [f for f in fitted.warnings if f.code == "disconnected-frames"]
    assert "0.33%" in finding.message
    assert np.abs(fitted.landmarks).max() < 2
    assert "disconnected-frames" in str(fitted)


def test_a_coordinate_that_tells_a_few_frames_from_the_rest_is_named():
    data = np.random.default_rng(5).uniform((0, 0), (3, 0.4), size=(800, 2))
    data[:4] = [3.33, 0.2]
    data[:4] += np.random.default_rng(6).normal(scale=0.01, size=(4, 2))
    fitted = DiffusionMap(PLANE, bandwidth=0.005, n_landmarks=800).fit(data[:, None], seed=1)
    assert "coordinate-of-few-frames" in [finding.code for finding in fitted.warnings]


def test_far_outside_the_data_the_coordinate_stays_finite(wells):
    _, fitted = wells
    values, gradient = fitted.coordinate().value_and_gradient(np.array([[[1e3, -1e3]], [[5.0, 0.0]]]))
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()


def test_the_gradient_is_that_of_the_value(wells):
    _, fitted = wells
    check_gradient(fitted.coordinate(2), evolving_wells(20, 3))


def test_plain_data_rebuild_the_coordinate_exactly(wells):
    data, fitted = wells
    cv = fitted.coordinate(2, "second")
    again = from_dict(json.loads(json.dumps(cv.to_dict())))
    assert again == cv
    assert np.array_equal(again.evaluate(data[:50]), cv.evaluate(data[:50]))
    assert (again.name, again.unit, again.period) == ("second", "", None)


def test_the_bandwidth_rule_finds_the_dimension():
    rng = np.random.default_rng(0)
    line, plane = rng.uniform(size=(500, 1)), rng.uniform(size=(500, 2))
    for points, dimension in ((line, 1), (plane, 2)):
        squared = ((points[:, None] - points) ** 2).sum(-1)
        u = squared / (4 * choose_bandwidth(squared))
        assert 2 * (u * np.exp(-u)).sum() / np.exp(-u).sum() == pytest.approx(dimension, abs=0.35)


def test_torsion_features_are_sine_and_cosine_of_every_heavy_torsion(peptide):
    topology, positions = peptide
    features = Features.torsions(topology)
    assert features.dihedrals == ((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5))
    angles = np.stack([Dihedral(t).evaluate(positions) for t in features.dihedrals], axis=1)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    assert features.compute(positions, np) == pytest.approx(expected, abs=1e-12)
    assert features.compute(torch.tensor(positions), torch).numpy() == pytest.approx(expected, abs=1e-12)


def test_aligned_features_undo_rotation_and_translation_but_not_reflection(peptide):
    topology, positions = peptide
    features = Features.aligned(positions[0], topology, length=1.0)
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    moved = positions @ rotation + 3.0
    assert features.compute(moved, np) == pytest.approx(features.compute(positions, np), abs=1e-9)
    assert np.abs(features.compute(-positions, np) - features.compute(positions, np)).max() > 0.01
    own = positions[0, :6] - positions[0, :6].mean(axis=0)
    assert features.compute(moved[:1], np).reshape(6, 3) == pytest.approx(own, abs=1e-9)


def test_distance_features_are_all_pairs_in_units_of_the_length(peptide):
    topology, positions = peptide
    features = Features.distances(topology, length=0.2)
    assert len(features) == 15
    expected = np.linalg.norm(positions[:, 0] - positions[:, 5], axis=1) / 0.2
    assert features.compute(positions, np)[:, features.pairs.index((0, 5))] == pytest.approx(expected)


def test_features_restricted_to_their_atoms_are_the_same_and_rebuild_from_plain_data(peptide):
    _, positions = peptide
    features = Features.torsions(atoms=[(1, 2, 4, 5)]) + Features.distances(atoms=(2, 6)) + Features.aligned(positions[0], atoms=(1, 4, 5))
    assert features.atoms == (1, 2, 4, 5, 6)
    assert np.array_equal(features.on(features.atoms).compute(positions[:, list(features.atoms)], np), features.compute(positions, np))
    assert Features.from_dict(json.loads(json.dumps(features.to_dict()))) == features


def test_a_bias_on_a_discovered_coordinate_pulls_in_openmm(peptide):
    topology, positions = peptide
    cv = DiffusionMap(Features.torsions(topology), n_landmarks=100).fit(positions, seed=1).coordinate()
    system = openmm.System()
    for _ in range(topology.n_atoms):
        system.addParticle(12.0)
    system.addForce(cv.to_openmm_energy("0.5*k*(slow-c)^2", {"k": 20.0, "c": 0.3}))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions[3])
    state = context.getState(energy=True, forces=True)
    (value,), (gradient,) = cv.value_and_gradient(positions[3])
    assert state.getPotentialEnergy()._value == pytest.approx(10 * (value - 0.3) ** 2, rel=1e-6)
    assert state.getForces(asNumpy=True)._value == pytest.approx(-20 * (value - 0.3) * gradient, rel=1e-5, abs=1e-6)
    assert HarmonicBias.on(cv, 0.3, 20.0).energy(np.array([[value]])) == pytest.approx(10 * (value - 0.3) ** 2)


def test_a_run_file_table_is_learned_from_data(peptide):
    topology, positions = peptide
    table = {"type": "diffusion_map", "features": ["torsions"], "index": 2, "landmarks": 80}
    cv = fit_from_config(table, topology, positions, "slow", seed=3)
    expected = DiffusionMap(Features.torsions(topology), n_landmarks=80).fit(positions, seed=3).coordinate(2)
    assert cv == expected
    toy = fit_from_config({"type": "diffusion_map", "features": ["coordinates"]}, None, evolving_wells(300, 1), "z", seed=3)
    assert toy.features == PLANE


def test_a_run_file_table_is_checked_before_there_are_data(peptide):
    topology, _ = peptide
    good = {"type": "diffusion_map", "features": ["torsions"]}
    plan_from_config(good, topology, "slow")
    with pytest.raises(ConfigError, match=r"learned from the unbiased data of \[explore\]"):
        from_config(good, topology, "slow")
    for change, message in (
        ({"featurs": 1}, "did you mean 'features'"),
        ({"features": ["torsion"]}, "did you mean 'torsions'"),
        ({"features": ["coordinates"]}, "do not fit this system"),
        ({"features": []}, "empty"),
        ({"index": 0}, "index = 0"),
        ({"alpha": 3}, "alpha = 3"),
        ({"bandwidth": "wide"}, "bandwidth = 'wide'"),
        ({"landmarks": "many"}, "does not fit"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            plan_from_config(good | change, topology, "slow")
    with pytest.raises(SelectionError, match="matches none"):
        plan_from_config(good | {"select": "select name XX"}, topology, "slow")


def test_bad_data_are_refused_with_a_reason(wells):
    data, fitted = wells
    damaged = data.copy()
    damaged[17] = np.nan
    for frames, message in (
        (data[:3], "expected"),
        (damaged, "frame 17"),
        (np.ones((50, 1, 2)), "same features"),
        (data[:, :, :1], "do not have"),
    ):
        with pytest.raises(DataError, match=message):
            DiffusionMap(PLANE).fit(frames, seed=1)
    with pytest.raises(DataError, match="no diffusion coordinate 7"):
        fitted.coordinate(7)
    with pytest.raises(DataError, match="nothing to compute"):
        Features()
    with pytest.raises(ConfigError, match="unknown features"):
        features_from_config(["bonds"], None)


def test_importing_couloir_cv_does_not_import_what_diffusion_maps_need():
    code = "import sys, couloir.cv; print([m for m in ('pydiffmap', 'sklearn', 'scipy.sparse', 'torch', 'openmm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_score_model_generates_at_values_of_a_discovered_coordinate(wells, tmp_path):
    data, fitted = wells
    cv = fitted.coordinate()
    model = ConditionalSGM(Vector(), label=cv, width=64, depth=2).fit(data, seed=1, plan=TrainingPlan(steps=300, batch_size=256))
    model.save(tmp_path)
    for value in (-1.0, 0.0, 1.0):
        made = cv.evaluate(ConditionalSGM.load(tmp_path).sample(value, 300, seed=2))
        assert np.median(made) == pytest.approx(value, abs=0.15)
        assert made.std() < 0.4
