"""``[paths]`` in a run file: from two regions to an ensemble by one command, interrupted, continued, reported, exported."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import run_files
from rich.console import Console
from run_files import WELL, couloir, edited

from couloir.analysis.path_ensemble import PathEnsemble
from couloir.cv import Coordinate, Region
from couloir.errors import ConfigError, DataError, SimulationError
from couloir.export import export_run
from couloir.paths_stage import stored_paths, stored_steps
from couloir.run import Run
from couloir.sampling import ToyEngine, potentials
from couloir.sampling.guides import Guides, first_paths, place_in, steer
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_sampling import described
from couloir.sampling.path_store import PathLog
from couloir.sampling.reactive import ReactiveSeeds
from couloir.sampling.selectors import GaussianSelector, LorentzianSelector
from couloir.status import status_table
from couloir.store import Store
from couloir.trajectory import State

TOY = (
    WELL
    + """
n_paths = 60
move = "two-way"
"""
)
X = Coordinate(0, "x")
ALANINE = """
[system]
name = "alanine_dipeptide"
[engine]
platform = "Reference"
workers = 1
[cv.phi]
type = "phi"
residue = 2
[cv.psi]
type = "psi"
residue = 2
[paths]
from = "phi < -0.7 and phi > -2.8"
to = "phi > 0.7 and phi < 1.5"
n_paths = 2
n_chains = 1
"""


def start(folder, text=TOY):
    return run_files.start(folder, text)


def steps(run):
    with Store(run / "store.db", read_only=True) as store:
        return store.digest("paths/") if store.count("paths/steps") else None


def same(one, other):
    assert len(one) == len(other)
    for name in ("chain", "step", "multiplicity", "decorrelated", "shooting"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for p, q in zip(one.paths, other.paths, strict=True):
        np.testing.assert_array_equal(p.positions, q.positions)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths")
    assert start(folder) == 0
    return folder


@pytest.fixture
def mine(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_two_regions_are_enough_for_an_ensemble_of_paths(finished):
    paths = PathEnsemble.load(finished / "toy.run/results/paths.npz")
    assert paths.n_chains == 2
    assert (paths.multiplicity * paths.decorrelated).sum() >= 60
    for path in paths.paths:
        x = path.positions[:, 0, 0]
        assert x[0] < -0.8 < x[1:-1].min()
        assert x[1:-1].max() < 0.8 < x[-1]


def test_what_the_store_holds_is_what_was_sampled(finished):
    with Run.open(finished / "toy.run") as run:
        from couloir.build import build_engine

        same(stored_paths(run, build_engine(run)[0]), PathEnsemble.load(finished / "toy.run/results/paths.npz"))


def test_a_run_written_before_chains_kept_their_first_paths_is_read_by_its_own(mine):
    from couloir.build import build_engine

    with Store(mine / "toy.run" / "store.db") as store:
        store.append({"unused": {"n": np.zeros(1)}}, replace=("paths/first",))
    whole = PathEnsemble.load(mine / "toy.run/results/paths.npz")
    with Run.open(mine / "toy.run") as run:
        assert not run.store.count("paths/first")
        same(stored_paths(run, build_engine(run)[0]), whole)


def test_a_finished_run_is_not_sampled_again(mine):
    before = steps(mine / "toy.run")
    assert start(mine) == 0
    assert steps(mine / "toy.run") == before


def test_interrupted_and_continued_it_gives_the_same_paths(finished, tmp_path, monkeypatch):
    real, calls = PathLog.add, []

    def interrupted(self, trials, parents):
        real(self, trials, parents)
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PathLog, "add", interrupted)
        assert start(tmp_path) == 130
    with Run.open(tmp_path / "toy.run") as run:
        assert stored_steps(run) == 7
    assert not (tmp_path / "toy.run/results/paths.npz").exists()
    assert couloir("report", tmp_path / "toy.run") == 0
    assert "partial" in (tmp_path / "toy.run/report.html").read_text()
    assert start(tmp_path) == 0
    one, other = (PathEnsemble.load(folder / "toy.run/results/paths.npz") for folder in (tmp_path, finished))
    same(one, other)


def test_more_paths_continue_and_other_states_are_refused(mine, capsys):
    before = PathEnsemble.load(mine / "toy.run/results/paths.npz")
    assert start(mine, edited(TOY, ("n_paths = 60", "n_paths = 90"))) == 0
    after = PathEnsemble.load(mine / "toy.run/results/paths.npz")
    assert (after.multiplicity * after.decorrelated).sum() >= 90
    kept = after.step <= before.n_steps
    assert kept.sum() == len(before) < len(after)
    assert start(mine, edited(TOY, ("n_paths = 60", "n_paths = 90"), ('to = "x > 0.8"', 'to = "x > 0.9"'))) == 2
    assert "paths.to changed" in capsys.readouterr().err


def test_report_status_and_export_show_the_paths(finished, tmp_path):
    page = (finished / "toy.run/report.html").read_text()
    assert "Paths from A to B take" in page
    for part in (
        "Reactive paths",
        "moves were accepted",
        "per effectively independent path",
        "Durations of paths",
        "x along paths",
    ):
        assert part in page, part
    with Run.open(finished / "toy.run") as run:
        console = Console(file=io.StringIO(), width=200)
        console.print(status_table(run))
        assert re.search(r"paths .* done .* 2 first paths \(steered\); 2 chains x \d+ steps", console.file.getvalue())
        (file,) = (path for path in export_run(run, tmp_path) if "paths" in path.name)
    assert len(PathEnsemble.load(file)) > 0


def test_a_run_may_have_windows_and_paths_in_one_report(tmp_path):
    windows = (
        '\n[umbrella]\nalong = ["x", "y"]\nwindows = [3, 1]\nforce_constant = 4\nrange = [[-1.2, 1.2], [-0.5, 0.5]]\nseeding = "dragged"\n'
    )
    windows += 'seeds_per_window = 1\nduration = "4 ps"\nrecord_stride = 0.02\n[surface]\nbootstrap = 2\nbins = 12\nalong = [["x", "y"]]\n'
    assert start(tmp_path, edited(TOY, ("n_paths = 60", "n_paths = 10")) + windows) == 0
    page = (tmp_path / "toy.run/report.html").read_text()
    assert "Reactive paths on the free-energy surface along x, y" in page
    assert page.index('id="surfaces"') < page.index('id="paths"')


def test_paths_may_be_added_to_a_run_that_had_none(tmp_path):
    windows = edited(TOY[: TOY.index("[paths]")] + '[explore]\nduration = "0.2 ps"\nstride = 0.02\n')
    assert start(tmp_path, windows) == 0
    assert start(tmp_path, windows + edited(TOY[TOY.index("[paths]") :], ("n_paths = 60", "n_paths = 4"))) == 0
    assert (tmp_path / "toy.run/results/paths.npz").exists()


def test_first_paths_at_a_high_temperature(tmp_path):
    assert start(tmp_path, edited(TOY, ("n_paths = 60", 'n_paths = 4\nfirst_path = "high_temperature"\nkT = 3.0'))) == 0
    with Run.open(tmp_path / "toy.run") as run:
        assert run.store.get("first-paths/about")["how"] == "high_temperature"


def test_first_paths_from_a_file_that_leads_back_to_front(tmp_path):
    line = np.linspace(0.9, -0.9, 61)
    np.savez(tmp_path / "way.npz", positions=np.stack([line, 0 * line], axis=1)[:, None, :])
    assert start(tmp_path, edited(TOY, ("n_paths = 60", 'n_paths = 4\nfirst_path = "file"\nfiles = ["way.npz"]'))) == 0
    np.savez(tmp_path / "way.npz", positions=np.full((5, 1, 2), 0.1))
    again = edited(TOY, ("n_paths = 60", 'n_paths = 4\nfirst_path = "file"\nfiles = ["way.npz"]'))
    (tmp_path / "other.toml").write_text(again)
    assert couloir("run", tmp_path / "other.toml") == 2


def test_generated_first_paths_or_a_finding_and_steered_ones(tmp_path):
    model = 'first_path = "inpainting"\nstride = 0.02\n[paths.model]\nduration = "20 ps"\nn_frames = 16\nsteps = 5\nwidth = 8\n'
    assert start(tmp_path, edited(TOY, ("n_paths = 60", "n_paths = 2")) + model) == 0
    with Run.open(tmp_path / "toy.run") as run:
        about, found = run.store.get("first-paths/about"), [f.code for f in run.findings()]
    assert (about["how"] == "inpainting") != ("generated-paths-failed" in found)
    assert about["force_evaluations"] > 20 / 0.002  # the dynamics that was learned from counts, whatever came of it
    assert (tmp_path / "toy.run/paths_model/model.json").exists()


def test_generated_paths_are_kept_with_their_scores_and_not_made_anew(tmp_path, monkeypatch):
    model = 'first_path = "inpainting"\nstride = 0.02\n[paths.model]\nduration = "20 ps"\nn_frames = 16\nsteps = 5\nwidth = 8\n'
    text = edited(TOY, ("n_paths = 60", "n_paths = 2")) + model

    def killed(*_, **__):
        raise KeyboardInterrupt

    # a kill after the paths were generated and shot from, before first paths are stored
    with monkeypatch.context() as patch:
        patch.setattr("couloir.paths_stage.keep_paths", killed)
        assert start(tmp_path, text) != 0
    with np.load(tmp_path / "toy.run/results/generated_paths.npz") as data:
        before = dict(data)
    assert before["positions"].shape == (64, 16, 1, 2)
    assert before["jump_ratio"].shape == before["passed_jump"].shape == (64,)
    assert float(before["stride"]) == 0.02
    monkeypatch.setattr("couloir.generative.fitted_trajectories.FittedTrajectoryDiffusion.inpaint", killed)
    assert start(tmp_path, text) == 0
    rows = (tmp_path / "toy.run/results/generated_paths.csv").read_text().splitlines()
    assert len(rows) == 65
    assert rows[0].startswith("path,")
    with np.load(tmp_path / "toy.run/results/generated_paths.npz") as data:
        assert dict(data).keys() == before.keys()
        np.testing.assert_array_equal(data["positions"], before["positions"])
    passed = sum(row.endswith(",") for row in rows[1:])
    assert f"A model generated 64 paths, of which {passed} passed every gate" in (tmp_path / "toy.run/report.html").read_text()


@pytest.mark.parametrize("connect", [True, False])
def test_generated_paths_that_fail_the_gates_are_shot_from_and_what_fails_counts(tmp_path, monkeypatch, connect):
    """Lines with a jump far beyond that of dynamics: no gate lets them pass, yet shots from them connect, if they may last long enough."""

    def jagged(self, known, mask, n=None, *, seed, **_):
        weight = np.linspace(0.0, 1.0, known.shape[1])[None, :, None, None]
        lines = (1 - weight) * known[:, :1] + weight * known[:, -1:]
        lines[:, 1::2, :, 1] += 4.0
        return np.where(mask[None, :, None, None], known, lines)

    monkeypatch.setattr("couloir.generative.fitted_trajectories.FittedTrajectoryDiffusion.inpaint", jagged)
    if not connect:

        def nothing(*_, **__):
            none = np.zeros(0, dtype=int)
            error = SimulationError("no shot connects A and B")
            error.partial = ReactiveSeeds((), none, none, none, np.zeros((1, 3, 1, 2)), None, {"force evaluations": 12_345}, ())
            raise error

        monkeypatch.setattr("couloir.sampling.reactive.reactive_seeds", nothing)
    model = 'first_path = "inpainting"\nstride = 0.02\n[paths.model]\nduration = "20 ps"\nn_frames = 16\nsteps = 5\nwidth = 8\n'
    assert start(tmp_path, edited(TOY, ("n_paths = 60", "n_paths = 2")) + model) == 0
    with Run.open(tmp_path / "toy.run") as run:
        about, found = run.store.get("first-paths/about"), [f.code for f in run.findings()]
    assert about["how"] == ("inpainting" if connect else "steered")
    assert ("gates-failed" in found) == connect
    assert ("generated-paths-failed" in found) != connect
    assert about["force_evaluations"] > 20 / 0.002 + (0 if connect else 12_345)


@pytest.mark.parametrize(
    ("asked", "move"),
    [
        ('move = "aimless"', ShootingMove.aimless(5)),
        ('move = "aimless"\nreach = 2', ShootingMove.aimless(2)),
        ('move = "spring"\nstiffness = 0.3', ShootingMove.spring(10, 0.3)),
        ('select = { cv = "x", center = 0.1, width = "0.3" }', ShootingMove.one_way(LorentzianSelector(X, 0.1, 0.3))),
        ('move = "two-way"\nselect = { cv = "x", center = 0, width = 0.3, shape = "gaussian" }',
         ShootingMove.two_way(GaussianSelector(X, 0.0, 0.3))),
    ],
)  # fmt: skip
def test_a_run_file_chooses_the_move_and_where_it_shoots_from(tmp_path, asked, move):
    assert start(tmp_path, edited(TOY, ("n_paths = 60", "n_paths = 4"), ('move = "two-way"', asked))) == 0
    with Run.open(tmp_path / "toy.run") as run:
        assert run.store.get("paths/plan")["move"] == described(move)


def test_a_molecule_gets_paths_and_dcd_files(tmp_path):
    (tmp_path / "ala.toml").write_text(ALANINE)
    assert couloir("run", tmp_path / "ala.toml") == 0
    assert couloir("export", tmp_path / "ala.run") == 0
    folder = tmp_path / "ala.run/export/paths"
    assert (folder / "topology.pdb").exists()
    assert len(list(folder.glob("*.dcd"))) >= 1


MISTAKES = {
    "unknown CV": ([("x < -0.8", "xx < -0.8")], ["paths.from", "unknown CV 'xx'"]),
    "syntax": ([("x > 0.8", "x >")], ["paths.to", "cannot read the region 'x >'"]),
    "empty region": ([("x > 0.8", "x > 0.8 and x < 0.2")], ["paths.to", "empty"]),
    "no target": ([('to = "x > 0.8"\n', "")], ["paths.to is missing"]),
    "misspelt key": ([('to = "x > 0.8"', 'too = "x > 0.8"')], ["unknown key paths.too", "did you mean 'to'?"]),
    "move": ([('"two-way"', '"twoway"')], ["paths.move = 'twoway'", "did you mean 'two-way'?"]),
    "first path": ([("n_paths", 'first_path = "steerd"\nn_paths')], ["paths.first_path", "did you mean 'steered'?"]),
    "no file": ([("n_paths", 'first_path = "file"\nn_paths')], ["paths", "files"]),
    "file of another source": ([("n_paths", 'files = ["a.npz"]\nn_paths')], ["files belongs to", "file"]),
    "missing file": ([("n_paths", 'first_path = "file"\nfiles = ["a.npz"]\nn_paths')], ["paths.files", "a.npz"]),
    "inpainting without data": ([("n_paths", 'first_path = "inpainting"\nn_paths')], ["paths.model.duration", "[explore]", "steered"]),
    "stride": ([("n_paths", 'stride = "0.003 ps"\nn_paths')], ["paths.stride", "multiple of the time step"]),
    "temperature of a toy": (
        [("n_paths", 'first_path = "high_temperature"\ntemperature = "600 K"\nn_paths')],
        ["paths.temperature", "paths.kT"],
    ),
    "reach of another move": ([("n_paths", "reach = 3\nn_paths")], ["reach belongs to move", "aimless", '"two-way"']),
    "stiffness of another move": ([('move = "two-way"', 'move = "aimless"\nstiffness = 1.0')], ["stiffness belongs to move", "spring"]),
    "selected along nothing": ([('move = "two-way"', 'select = { cv = "z", center = 0, width = 1 }')], ["paths.select.cv", "'z'"]),
    "selected nowhere": ([('move = "two-way"', 'select = { cv = "x", center = 0, width = 0 }')], ["paths.select.width", "positive"]),
    "no paths": ([("n_paths = 60", "n_paths = 0")], ["paths.n_paths = 0", "greater than 0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_anything_is_computed(tmp_path, capsys, mistake):
    changes, expected = MISTAKES[mistake]
    assert start(tmp_path, edited(TOY, *changes)) == 2
    told = capsys.readouterr().err
    for part in expected:
        assert part in told, told
    if Path(tmp_path / "toy.run/store.db").exists():
        with Store(tmp_path / "toy.run/store.db", read_only=True) as store:
            assert store.series() == []


def test_a_place_in_a_region_is_inside_and_on_the_near_side():
    x, phi = Coordinate(0, "x"), Coordinate(1, "phi", period=2 * np.pi)
    region = Region.parse("(x > 1 or x < -3) and not phi > 1", {"x": x, "phi": phi})
    place = place_in(region, region, {"x": 0.0, "phi": 2.0})
    assert region.contains_values({name: np.array([v]) for name, v in place.items()})[0]
    assert place["x"] > 1
    for text in ("phi > 1.75", "phi < 0.35", "phi > -3", "phi < -2.9"):  # one limit on a circle
        side = Region.parse(text, {"phi": phi})
        place = place_in(side, side, {"phi": 0.0})
        assert side.contains_values({"phi": np.array([place["phi"]])})[0], text
    with pytest.raises(ConfigError, match="empty"):
        place_in(Region.parse("x > 1 and x < 0", {"x": x}), region, {"x": 0.0})


def test_steering_arrives_and_shots_from_its_frames_connect_the_states():
    well = potentials.double_well(6.0, harmonic=4.0)
    x, _ = well.cvs()
    a, b = x < -0.8, x > 0.8
    engine = ToyEngine(well, kT=1.0, time_step=1e-3)
    guides = steer(engine, [engine.state(-1.0, 0.0)] * 2, b, a, seed=1)
    assert len(guides) == 2
    assert all(b.contains(path).any() and a.contains(path[:1])[0] for path in guides.paths)
    paths, tally = first_paths(engine, guides, a, b, 2, box=None, max_duration=20.0, stride=0.02, seed=1)
    assert tally["connecting"] >= len(paths) >= 1
    with pytest.raises(SimulationError, match="no guide has a frame between"):
        first_paths(engine, Guides(guides.paths[:, :1], 0), a, b, 2, box=None, max_duration=20.0, stride=0.02, seed=1)
    with pytest.raises(DataError, match="none of 1 paths connects"):
        Guides.of([State(np.zeros((1, 2))).positions[None]], a, b)
