"""Scores of generated paths: what is wrong with a path is named, what is right passes."""

import numpy as np
import pytest

from couloir.errors import DataError
from couloir.sampling import OpenMMEngine, ToyEngine, potentials, score_paths, systems
from couloir.sampling.path_scores import superposed_distance
from couloir.trajectory import Trajectory

N_FRAMES = 32


@pytest.fixture(scope="module")
def toy():
    engine = ToyEngine(potentials.dynamics_diffusion_well(), kT=1.0, time_step=1e-3, threads=1)
    [md] = engine.propagate(engine.state(-1.0, 0.0), duration=200.0, stride=1e-2, seed=1)
    return engine, md


@pytest.fixture(scope="module")
def butane():
    engine = OpenMMEngine(systems.butane(), platform="Reference", workers=1)
    [md] = engine.propagate(engine.molecule.state, duration="8 ps", stride="0.02 ps", seed=1)
    return engine, md


def snippets(md: Trajectory, n: int) -> np.ndarray:
    return md.positions[: n * N_FRAMES].reshape(n, N_FRAMES, *md.positions.shape[1:])


def test_pieces_of_md_pass_every_gate_on_a_toy(toy):
    engine, md = toy
    scores = score_paths(snippets(md, 50), md=md, engine=engine, imposed=np.arange(N_FRAMES) == 0)
    assert set(scores.passed) == {"finite", "energy", "jump", "seam"}
    assert scores.passed_all.all()
    assert (scores.energy_max >= scores.energy_mean).all()
    assert np.isnan(scores.bond_deviation).all()


def test_gates_that_were_not_judged_are_named_with_the_reason(toy, butane):
    engine, md = toy
    alone = score_paths(snippets(md, 2), md=md)
    assert set(alone.not_judged) == {"energy", "bonds", "angles", "seam"}
    assert alone.not_judged["energy"] == "no engine evaluates them"
    assert alone.not_judged["seam"] == "no frames were said to be imposed"
    assert set(score_paths(snippets(md, 2), md=md, engine=engine).not_judged) == {"bonds", "angles", "seam"}
    every = score_paths(snippets(md, 2), md=md, imposed=np.ones(N_FRAMES, dtype=bool))
    assert every.not_judged["seam"] == "no imposed frame has a generated neighbour"
    engine, md = butane
    carbons = [a.index for a in md.topology.atoms if a.element.symbol == "C"]
    heavy = score_paths(snippets(md, 2)[:, :, carbons], md=md, engine=engine, atoms=carbons, imposed=np.arange(N_FRAMES) == 0)
    assert heavy.not_judged == {"energy": "the paths hold 4 of 14 atoms"}
    assert "gate not judged: energy (the paths hold 4 of 14 atoms)" in str(heavy)
    assert np.isnan(heavy.energies).all()
    whole = score_paths(snippets(md, 2), md=md, engine=engine, imposed=np.arange(N_FRAMES) == 0)
    assert whole.not_judged == {}
    assert "not judged" not in str(whole)


def test_a_path_without_a_seam_passes_beside_one_that_has_a_bad_one(toy):
    engine, md = toy
    paths = snippets(md, 2).copy()
    paths[0, 5:] += 3.0
    imposed = np.zeros((2, N_FRAMES), dtype=bool)
    imposed[0, :5] = True
    assert score_paths(paths, md=md, engine=engine, imposed=imposed).passed["seam"].tolist() == [False, True]


def test_a_tear_is_seen_as_a_jump_and_at_imposed_frames_as_a_seam(toy):
    engine, md = toy
    paths = snippets(md, 3).copy()
    paths[1, 20:, 0, 1] += 1.0
    imposed = np.zeros(N_FRAMES, dtype=bool)
    imposed[:20] = True
    scores = score_paths(paths, md=md, engine=engine, imposed=imposed)
    assert scores.passed["jump"].tolist() == scores.passed["seam"].tolist() == [True, False, True]
    assert scores.jump_quantile[1] == 1.0
    assert scores.jump_ratio[1] == pytest.approx(scores.seam_ratio[1])
    assert "jump, seam" in scores.to_dataframe()["failed"][1]
    elsewhere = score_paths(paths, md=md, imposed=np.arange(N_FRAMES) == 5)
    assert elsewhere.passed["seam"].all()


def test_a_step_through_the_period_is_short():
    engine = ToyEngine(potentials.hidden_barrier(periodic=True), time_step=1e-3, threads=1)
    [md] = engine.propagate(engine.state(3.1, 1.0), duration=20.0, stride=1e-2, seed=1)
    crossing = np.array([[[[3.13, 1.0]], [[-3.13, 1.0]], [[-3.12, 1.0]]]])
    assert score_paths(crossing, md=md, engine=engine).jump[0] == pytest.approx(2 * np.pi - 6.26)


def test_a_path_that_is_not_finite_keeps_its_row_and_fails(toy):
    engine, md = toy
    paths = snippets(md, 2).copy()
    paths[0, 3] = np.nan
    scores = score_paths(paths, md=md, engine=engine)
    assert scores.passed_all.tolist() == [False, True]
    assert np.isinf(scores.jump[0])
    assert len(scores.to_dataframe()) == 2


def test_the_highest_energy_of_each_path_is_the_engines(toy):
    engine, md = toy
    paths = snippets(md, 4)
    scores = score_paths(paths, md=md, engine=engine)
    assert scores.energy_max == pytest.approx([engine.energies(path).max() for path in paths])
    assert scores.energies.shape == (4, N_FRAMES)
    assert scores.energies == pytest.approx(np.array([engine.energies(path) for path in paths]))


def test_a_stretched_bond_and_its_energy_are_seen_with_all_atoms_and_with_some(butane):
    engine, md = butane
    paths = snippets(md, 4).copy()
    carbons = [a.index for a in md.topology.atoms if a.element.symbol == "C"]
    axis = paths[1, 7, carbons[3]] - paths[1, 7, carbons[2]]
    paths[1, 7, carbons[3]] += 0.05 * axis / np.linalg.norm(axis)
    scores = score_paths(paths, md=md, engine=engine)
    assert scores.passed["bonds"].tolist() == [True, False, True, True]
    assert scores.passed_all.tolist() == [True, False, True, True]
    assert scores.energy_max[1] > scores.energy_max[[0, 2, 3]].max()
    heavy = score_paths(paths[:, :, carbons], md=md, engine=engine, atoms=carbons)
    assert heavy.passed["bonds"].tolist() == [True, False, True, True]
    assert "energy" not in heavy.passed
    assert np.isnan(heavy.energy_max).all()


def test_rotation_and_translation_are_no_step_but_a_mirror_image_is():
    x = np.random.default_rng(1).normal(size=(5, 9, 3))
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    assert superposed_distance(x, x @ rotation + 3.0) == pytest.approx(np.zeros(5), abs=1e-6)
    assert (superposed_distance(x, -x) > 0.1).all()


def test_paths_and_md_that_do_not_fit_are_refused(toy, butane):
    with pytest.raises(DataError, match="atoms="):
        score_paths(np.zeros((1, 4, 2, 3)), md=butane[1])
    with pytest.raises(DataError, match="does not divide"):
        score_paths(np.zeros((1, 4, 1, 2)), md=toy[1], stride=0.015)
    with pytest.raises(DataError, match="imposed"):
        score_paths(np.zeros((1, 4, 1, 2)), md=toy[1], imposed=[True])
