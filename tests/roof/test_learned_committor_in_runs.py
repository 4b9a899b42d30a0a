"""``type = "learned_committor"`` in a run file: windows and paths along a committor that was learned and saved before."""

import json
import shutil

import numpy as np
import pytest
from run_files import WELL, couloir, edited, start

from couloir.analysis import BiasedSamples
from couloir.analysis.path_ensemble import PathEnsemble
from couloir.build import build_engine, stored_cvs
from couloir.cv import CommittorCoordinate, Features, LearnedCommittor, from_config
from couloir.errors import ConfigError, DataError, ModelError
from couloir.run import Run
from couloir.sampling.systems import alanine_dipeptide

TOY = (
    edited(WELL, ("[paths]", '[cv.q]\ntype = "learned_committor"\nfile = "models/q.json"\n[paths]'), ('to = "x > 0.8"', 'to = "q > 4"'))
    + """
n_paths = 6
[umbrella]
along = "q"
windows = 4
force_constant = 3
range = [-3, 3]
seeding = "dragged"
seeds_per_window = 1
duration = "4 ps"
record_stride = 0.02
[surface]
along = ["q", "x"]
bootstrap = 2
bins = 12
"""
)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(1)
    y = rng.uniform(-1.2, 1.2, size=(200, 2))
    hits = rng.binomial(10, 1 / (1 + np.exp(-5 * y[:, 0])))
    return LearnedCommittor((6,), max_epochs=60, learning_rate=0.02).fit(y, 10 - hits, hits, seed=1)


@pytest.fixture(scope="module")
def saved(model):
    return model.coordinate(Features.coordinates((0, 1)), "anything")


@pytest.fixture(scope="module")
def finished(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("committor")
    saved.save(folder / "models/q.json")
    assert start(folder, TOY) == 0
    return folder


@pytest.fixture
def mine(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_windows_and_paths_along_a_saved_committor_run_to_the_end(finished, saved):
    samples = BiasedSamples.load(finished / "toy.run/results/samples.npz")
    assert samples.names == ("q", "x", "y")
    q, x, y = samples.values.T
    np.testing.assert_array_equal(q, saved.evaluate(np.stack([x, y], axis=1)[:, None]))
    means = np.array([q[samples.window == w].mean() for w in range(4)])
    assert (np.abs(means - [-3, -1, 1, 3]) < 1).all()  # the bias acts: unbiased, q stays near -4 or 4
    paths = PathEnsemble.load(finished / "toy.run/results/paths.npz")
    for path in paths.paths:
        along = saved.evaluate(path.positions)
        assert along[-2] < 4 < along[-1]


def test_the_cv_of_a_run_is_the_saved_one(finished, saved):
    positions = np.random.default_rng(2).uniform(-1, 1, size=(50, 1, 2))
    with Run.open(finished / "toy.run") as run:
        q = stored_cvs(run, build_engine(run)[0].topology)["q"]
    assert q.name == "q"
    np.testing.assert_array_equal(q.evaluate(positions), saved.evaluate(positions))


def test_output_may_be_the_probability_itself(finished, model):
    table = {"type": "learned_committor", "file": "models/q.json", "output": "p"}
    positions = np.random.default_rng(2).uniform(-1, 1, size=(50, 1, 2))
    p = from_config(table, None, "p_b", folder=finished)
    np.testing.assert_array_equal(p.evaluate(positions), model.p(positions[:, 0]))
    with pytest.raises(ConfigError, match="unknown output 'odds'"):
        from_config(table | {"output": "odds"}, None, "p_b", folder=finished)


def test_a_run_keeps_its_committor_and_refuses_another(mine, saved, capsys):
    (mine / "models/q.json").unlink()
    assert couloir("report", mine / "toy.run") == 0
    longer = edited(TOY, ('duration = "4 ps"', 'duration = "6 ps"'))
    assert start(mine, longer) == 0
    other = CommittorCoordinate(saved.features, saved.matrices, tuple(tuple(2 * v for v in row) for row in saved.offsets))
    other.save(mine / "models/q.json")
    assert start(mine, longer) == 2
    assert "has changed since the run began" in capsys.readouterr().err


def test_a_missing_or_foreign_file_is_refused_with_what_to_do(tmp_path, model, saved, capsys):
    file = tmp_path / "models/q.json"
    expected = {"there is no file": lambda: None}
    model.save(tmp_path / "folder")
    expected["does not say what features it takes"] = lambda: shutil.copytree(tmp_path / "folder", file)

    def foreign(content):
        if file.is_dir():
            shutil.rmtree(file)
        file.write_text(content)

    saved.save(tmp_path / "good.json")
    good = json.loads((tmp_path / "good.json").read_text())
    expected["holds no learned committor that can be read"] = lambda: foreign("not JSON")
    expected["of the kind 'model'"] = lambda: foreign(json.dumps(good | {"kind": "model"}))
    expected["type 'coordinate'"] = lambda: foreign(json.dumps(good | {"cv": {"type": "coordinate", "index": 0, "name": "x"}}))
    expected["format version 9"] = lambda: foreign(json.dumps(good | {"version": 9}))
    for message, prepare in expected.items():
        prepare()
        assert start(tmp_path, TOY) == 2, message
        error = " ".join(capsys.readouterr().err.split())
        assert "[cv.q]" in error
        assert message in error
        assert "save" in error
    too_many = CommittorCoordinate(Features.coordinates((0, 5)), saved.matrices, saved.offsets)
    too_many.save(file)
    assert start(tmp_path, TOY) == 2
    assert "needs coordinate 5, but the system has 2" in " ".join(capsys.readouterr().err.split())


def test_atoms_are_those_it_was_learned_for(model, saved, tmp_path):
    topology = alanine_dipeptide().topology
    cv = model.coordinate(Features.distances(atoms=(4, 8)) + Features.distances(atoms=(6, 14)))
    cv.save(tmp_path / "d.json", topology)
    table = {"type": "learned_committor", "file": "d.json"}
    made = from_config(table, topology, "q", folder=tmp_path)
    positions = np.random.default_rng(3).normal(size=(5, topology.n_atoms, 3))
    np.testing.assert_array_equal(made.evaluate(positions), cv.evaluate(positions))
    other = topology.copy()
    other.atom(8).name = "XX"
    with pytest.raises(DataError, match=r"other atoms: ALA2-CA is ALA2-XX here"):
        CommittorCoordinate.load(tmp_path / "d.json", other)
    with pytest.raises(ConfigError, match="needs atom 14, but the system has 5 atoms"):
        from_config(table, topology.subset(range(5)), "q", folder=tmp_path)
    with pytest.raises(ConfigError, match="only coordinates"):
        from_config(table, None, "q", folder=tmp_path)
    saved.save(tmp_path / "toy.json")
    with pytest.raises(ConfigError, match="this one has atoms"):
        from_config(table | {"file": "toy.json"}, topology, "q", folder=tmp_path)
    with pytest.raises(ModelError, match="there is no file"):
        CommittorCoordinate.load(tmp_path / "nothing.json")
