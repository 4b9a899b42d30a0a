"""What a report says of paths beyond averages: the tree of a chain, and the committors of transition states."""

import re
from itertools import pairwise

import numpy as np
import pytest
import run_files
from run_files import WELL

from couloir import transition_states
from couloir.analysis.path_ensemble import PathEnsemble
from couloir.build import build_engine
from couloir.cv import Coordinate
from couloir.paths_stage import stored_branches
from couloir.run import Run
from couloir.sampling import committors
from couloir.sampling.path_moves import Trial
from couloir.sampling.path_tree import path_tree
from couloir.store import Store
from couloir.trajectory import Trajectory

TOY = (
    WELL
    + """
n_paths = 200
committor = 16
"""
)
MOLECULE = """
[system]
name = "alanine_dipeptide"
[engine]
platform = "Reference"  # the same shots every time
workers = 1
[cv.phi]
type = "phi"
residue = 2
[paths]
from = "phi < -0.7 and phi > -2.8"
to = "phi > 0.7 and phi < 1.5"
n_paths = 2
n_chains = 1
committor = 2
"""


def run(folder, text=TOY):
    return run_files.start(folder, text)


def candidates(folder):
    with np.load(folder / "toy.run/results/transition_states.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    assert run(folder) == 0
    return folder


@pytest.fixture
def shots(monkeypatch):
    """The number of candidates of every call that shoots."""
    real, calls = transition_states.committor, []

    def counted(engine, states, *args, **options):
        calls.append(len(states))
        return real(engine, states, *args, **options)

    monkeypatch.setattr(transition_states, "committor", counted)
    return calls


def path(n):
    return Trajectory(np.zeros((n, 1, 2)), 0.02)


def trial(n, old, new, direction, shared):
    return Trial(path(n) if n else None, bool(n), "accepted" if n else "ensemble", 0.0, old, new, direction, shared, 10)


def test_a_tree_places_shared_frames_at_the_same_number():
    trials = [
        trial(8, 6, 6, "forward", (0, 6)),  # of 10 frames: 7 are kept, and one is new
        trial(0, 2, -1, "backward", None),
        trial(9, 3, 4, "backward", (3, 7)),
        trial(7, 6, 2, "both", None),
        trial(6, 3, 3, "forward", (0, 3)),
    ]
    rows = list(path_tree(path(10), trials))
    assert [row.step for row in rows] == [0, 1, 3, 4, 5]
    assert [(row.begin, row.length) for row in rows] == [(0, 10), (0, 8), (-1, 9), (3, 7), (3, 6)]
    assert [row.shooting for row in rows] == [-1, 6, 4, 2, 3]
    assert [row.kept for row in rows] == [(0, 0), (0, 7), (4, 9), (0, 0), (0, 4)]
    # one frame of the two-way shot has the positions of the first path's frame 5; the last path keeps it
    assert [row.original for row in rows] == [(0, 10), (0, 7), (4, 8), (2, 3), (2, 3)]


def test_in_a_run_kept_frames_are_the_parents_and_others_are_not(finished):
    paths = PathEnsemble.load(finished / "toy.run/results/paths.npz")
    by_step = {int(paths.step[i]): paths.paths[i].positions for i in np.flatnonzero(paths.chain == 0)}
    with Run.open(finished / "toy.run") as opened:
        tree = stored_branches(opened, build_engine(opened)[0])
    assert len(tree) == 41
    for parent, branch in pairwise(tree):
        old, new = by_step[parent.step], by_step[branch.step]
        assert len(new) == branch.length
        shift = branch.begin - parent.begin
        first, end = branch.kept
        assert first <= branch.shooting < end
        np.testing.assert_array_equal(new[first:end], old[first + shift : end + shift])
        made = np.delete(new, np.arange(first, end), axis=0)
        assert len(made)
        assert not (made[:, None] == old[None]).all(axis=(2, 3)).any()
        first, end = branch.original
        np.testing.assert_array_equal(new[first:end], by_step[0][first + branch.begin : end + branch.begin])
        decorrelated = paths.decorrelated[(paths.chain == 0) & (paths.step == branch.step)]
        assert decorrelated.item() == (first == end)


def test_the_report_draws_the_tree_and_the_committor(finished):
    page = (finished / "toy.run/report.html").read_text()
    for part in ("the next 40 accepted ones", "run backward", "p_B of candidates along x", "Candidates for transition states: 16"):
        assert part in page, part


def test_the_report_counts_independent_paths_by_every_cv_and_tells_channels(finished):
    page = (finished / "toy.run/report.html").read_text()
    paths = PathEnsemble.load(finished / "toy.run/results/paths.npz")
    n = paths.n_independent([Coordinate(0, "x"), Coordinate(1, "y")])
    assert 1 <= n < 0.95 * paths.n_effective
    assert f"({n:.0f} effectively independent paths)" in page
    assert f"They are worth {n:.1f} effectively independent paths by durations and by means of x, y over paths" in page
    searching = int(re.search(r"(\d+) on first paths; (\d+) per effectively independent path", page)[1])
    assert f"; {(paths.force_evaluations + searching) / n:.0f} per effectively independent path" in page
    assert "Compared along x and y" in page
    assert "follow one channel" in page  # a plain double well


def test_committors_are_written_and_rise_towards_b(finished):
    found = candidates(finished)
    assert len(found["p"]) == 16
    assert (found["standard_error"] <= 0.1).all()
    x = found["positions"][:, 0, 0]
    assert np.corrcoef(x, found["p"])[0, 1] > 0.7
    table = np.genfromtxt(finished / "toy.run/results/committor.csv", delimiter=",", names=True)
    assert table.dtype.names == ("x", "y", "p_B", "standard_error", "n_shots")
    np.testing.assert_allclose(table["x"], x)
    np.testing.assert_allclose(table["p_B"], found["p"])
    assert not (finished / "toy.run/results/transition_states.pdb").exists()


def test_shots_are_made_once_and_again_for_more_candidates(tmp_path, shots):
    short = TOY.replace("n_paths = 200", "n_paths = 30").replace("committor = 16\n", "")
    assert run(tmp_path, short) == 0
    assert shots == []
    assert not (tmp_path / "toy.run/results/committor.csv").exists()
    assert run(tmp_path, short + "committor = 4\n") == 0
    first = candidates(tmp_path)
    assert run(tmp_path, short + "committor = 4\n") == 0
    assert shots == [4]
    assert run(tmp_path, short + "committor = 6\n") == 0
    assert shots == [4, 6]
    assert len(candidates(tmp_path)["p"]) == 6
    assert run(tmp_path, short + "committor = 4\n") == 0
    again = candidates(tmp_path)
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)
    assert run(tmp_path, short.replace("n_paths = 30", "n_paths = 40") + "committor = 4\n") == 0
    assert shots == [4, 6, 4, 4]  # other paths have other candidates


def test_interrupted_while_it_shoots_it_comes_to_the_same(tmp_path, monkeypatch):
    text = TOY.replace("n_paths = 200", "n_paths = 30").replace("committor = 16", "committor = 3")
    (tmp_path / "one").mkdir()
    assert run(tmp_path / "one", text) == 0

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transition_states, "committor", interrupted)
        assert run(tmp_path, text) == 130
    assert run(tmp_path, text) == 0
    for name, values in candidates(tmp_path / "one").items():
        np.testing.assert_array_equal(candidates(tmp_path)[name], values)


def test_interrupted_between_rounds_of_shots_it_goes_on_with_the_next(tmp_path, monkeypatch):
    text = TOY.replace("n_paths = 200", "n_paths = 30").replace("committor = 16", "committor = 6")
    (tmp_path / "one").mkdir()
    made, shoot, append = [], committors._Shooting.run, Store.append
    monkeypatch.setattr(committors._Shooting, "run", lambda self, shots: (made.extend(shots), shoot(self, shots))[1])
    assert run(tmp_path / "one", text) == 0
    once = sorted(made)
    made.clear()

    def failing(self, chunks, **options):
        append(self, chunks, **options)
        if any(series.endswith("/shots") for series in chunks):
            raise KeyboardInterrupt

    times = 0
    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", failing)
        while run(tmp_path, text) == 130:
            times += 1
            assert not (tmp_path / "toy.run/results/committor.csv").exists()
    assert times >= 2
    assert len(once) == len(set(once))
    assert sorted(made) == once
    stored = [Store(folder / "toy.run/store.db", read_only=True) for folder in (tmp_path / "one", tmp_path)]
    assert len({store.digest("transition-states") for store in stored}) == 1
    names = "committor.csv", "transition_states.npz"
    for name in names:
        one, other = ((folder / "toy.run/results" / name).read_bytes() for folder in (tmp_path / "one", tmp_path))
        assert one == other, name


def test_transition_states_of_a_molecule_are_a_pdb_file(tmp_path, monkeypatch):
    import mdtraj

    monkeypatch.setattr(transition_states, "TARGET", 0.3)
    monkeypatch.setattr(transition_states, "NEAR_HALF", 0.5)
    assert run(tmp_path, MOLECULE) == 0
    found, structures = candidates(tmp_path), mdtraj.load(str(tmp_path / "toy.run/results/transition_states.pdb"))
    np.testing.assert_allclose(structures.xyz, found["positions"], atol=1e-4)
