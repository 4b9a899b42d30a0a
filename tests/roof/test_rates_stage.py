"""``[rates]`` in a run file: rates both ways, free energy and committor by one command, interrupted, continued, reported."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import run_files
from rich.console import Console
from run_files import WELL, couloir, edited

from couloir.analysis.surface import FreeEnergySurface
from couloir.cv import Coordinate
from couloir.rates_maps import committor as map_of_committor
from couloir.rates_maps import free_energy
from couloir.rates_numbers import readable
from couloir.rates_stage import NAMES, backward, stored_cycles
from couloir.report_rates import shots_and_exchanges
from couloir.run import Run
from couloir.sampling import interface_sampling
from couloir.sampling.path_store import PathLog
from couloir.status import status_table
from couloir.store import Store

TOY = (
    edited(WELL, ("barrier = 5.0", "barrier = 3.0"))
    + """
n_paths = 8
move = "two-way"
stride = 0.04
[rates]
along = "x"
relative_error = 0.3
n_cycles = 240
n_sets = 2
record = ["x", "y"]
"""
)
WINDOWS = """
[umbrella]
along = "x"
windows = 4
force_constant = 6
range = [-1.2, 1.2]
seeding = "dragged"
seeds_per_window = 1
duration = "4 ps"
record_stride = 0.02
[surface]
bootstrap = 40
bins = 24
"""
RESULTS = (
    "rates.json",
    *(f"path_{what}_{along}.{kind}" for along in ("x", "y", "x_y") for what, kind in (("free_energy", "npz"), ("committor", "csv"))),
)


def start(folder, text=TOY):
    return run_files.start(folder, text)


def rates(folder):
    return json.loads((folder / "toy.run/results/rates.json").read_text())


def sampled(folder):
    with Store(folder / "toy.run/store.db", read_only=True) as store:
        return store.digest("rates/")


def cycles(folder):
    with Run.open(folder / "toy.run") as run:
        return stored_cycles(run)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rates")
    assert start(folder) == 0
    return folder


@pytest.fixture
def mine(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_symmetric_well_is_left_as_often_either_way(finished):
    found = rates(finished)
    one, other = (found["rates"][key] for key in NAMES)
    assert one["low"] < one["value"] < one["high"]
    assert abs(np.log(one["value"] / other["value"])) < 4.5 * np.hypot(one["relative_error"], other["relative_error"])
    assert abs(found["population"]["value"] - 0.5) < 4.5 * found["population"]["standard_error"]
    flux = found["population"]["value"] * one["value"]  # every transition starts on A's side
    np.testing.assert_allclose(found["reactive_flux"]["value"], flux, rtol=1e-6)


def test_every_result_is_there_and_in_terms_of_the_run_file(finished):
    for name in RESULTS:
        assert (finished / "toy.run/results" / name).exists(), name
    found = rates(finished)
    for key, first in (("from_a", -0.8), ("from_b", 0.8)):
        side = found["sides"][key]
        x = [row["interface"] for row in side["interfaces"]]
        assert x[0] == pytest.approx(first)
        assert x == sorted(x, reverse=key == "from_b")
        assert side["interfaces"][0]["probability"] == pytest.approx(1)
        assert np.all(np.diff(side["curve"]["probability"]) <= 1e-12)
        assert side["curve"]["value"][-1] == pytest.approx(-first)
        assert side["curve"]["probability"][-1] == pytest.approx(side["crossing"]["value"])
    assert found["force_evaluations"] == sum(
        side["force_evaluations"] + side["force_evaluations_of_placement"] for side in found["sides"].values()
    )
    with Run.open(finished / "toy.run") as run:
        over_two = free_energy(run, ("x", "y"))
        on_grid, error = (column.reshape(over_two.free_energy.shape) for column in map_of_committor(run, ("x", "y")))
    assert over_two.names == ("x", "y")
    sure = error < 0.05
    assert sure.sum() > 100
    assert (np.isfinite(over_two.free_energy) == np.isfinite(on_grid)).all()
    right = over_two.grid[0] > 0.85
    assert (on_grid[right][sure[right]] == 1).all()
    assert (on_grid[over_two.grid[0] < -0.85][sure[over_two.grid[0] < -0.85]] == 0).all()
    x, committor, _ = np.genfromtxt(finished / "toy.run/results/path_committor_x.csv", delimiter=",", skip_header=1).T
    known = np.isfinite(committor)
    assert known.sum() > 30
    assert (committor[known & (x < -0.85)] == 0).all()
    assert (committor[known & (x > 0.85)] == 1).all()


def test_the_report_and_the_status_say_the_rates(finished):
    page = (finished / "toy.run/report.html").read_text()
    assert page.index('id="paths"') < page.index('id="rates"') < page.index('id="provenance"')
    for part in (
        "The rate from A to B is",
        "Interfaces from B",
        "Free energy along y from weighted paths",
        "Committor along x",
        "Free energy over x and y",
    ):
        assert part in page, part
    assert "shifted to agree best" not in page
    assert "mathdefault" not in page
    with Run.open(finished / "toy.run") as run:
        console = Console(file=io.StringIO(), width=250)
        console.print(status_table(run))
        codes = {finding.code for finding in run.findings()}
    assert re.search(r"rates .* done .* A to B .* 240 cycles from A, 240 from B", console.file.getvalue())
    found = rates(finished)["findings"]
    assert {code for code, _, _ in found} <= codes
    for code, message, _ in found:
        assert message.startswith(("paths from A: ", "paths from B: "))
        assert code in page


def test_channels_of_weighted_paths_are_kept_and_shown(finished):
    told = rates(finished)["channels"]
    assert told["along"] == ["x", "y"]
    assert sum(row["share"]["value"] for row in told["channels"]) == pytest.approx(1)
    page = (finished / "toy.run/report.html").read_text()
    assert "Compared along x and y, " in page[page.index('id="rates"') :]


def test_what_became_of_shots_and_exchanges_is_kept_and_shown(finished):
    page = (finished / "toy.run/report.html").read_text()
    for key, side in rates(finished)["sides"].items():
        tried, n = side["tried"], len(side["interfaces"]) + 1
        assert tried["ensembles"] == ["[0-]", *(f"[{i}+]" for i in range(n - 1))]
        assert {len(counts) for counts in tried["shots"].values()} == {n}
        assert {len(counts) for counts in tried["exchanges"].values()} == {n - 1}
        shots, exchanges = (np.sum(list(tried[what].values()), axis=0) for what in ("shots", "exchanges"))
        assert (shots % (side["cycles"] // 2 * side["sets"]) == 0).all()  # every other cycle shoots in every set, once or more
        assert (exchanges > 0).all()
        assert f"Shots and exchanges from {key[-1].upper()}" in page
        accepted = tried["shots"]["accepted"][1]
        assert f"<td>[0+]</td><td>{accepted} of {shots[1]} ({accepted / shots[1]:.0%})</td>" in page


def test_shots_and_exchanges_are_shown_per_ensemble():
    tried = {
        "ensembles": ["[0-]", "[0+]", "[1+]"],
        "shots": {"accepted": [9, 3, 0], "ensemble": [1, 2, 0], "failed": [0, 0, 0]},
        "exchanges": {"accepted": [4, 0], "ensemble": [4, 0]},
    }
    header, rows = shots_and_exchanges(tried)
    assert header == ("ensemble", "shots accepted", "rejected: ensemble", "exchanges accepted")
    assert rows == [
        ("[0-]", "9 of 10 (90%)", 1, "4 of 8 (50%)"), ("[0+]", "3 of 5 (60%)", 2, "none tried"), ("[1+]", "none tried", 0, ""),
    ]  # fmt: skip
    assert [row[-1] for row in shots_and_exchanges(tried | {"exchanges": {}})[1]] == ["", "", ""]


def test_a_run_that_did_not_keep_what_became_of_shots_is_still_reported(mine):
    file = mine / "toy.run/results/rates.json"
    found = rates(mine)
    for side in found["sides"].values():
        del side["tried"]
    file.write_text(json.dumps(found))
    assert couloir("report", mine / "toy.run") == 0
    page = (mine / "toy.run/report.html").read_text()
    assert "Interfaces from B" in page
    assert "Shots and exchanges" not in page


def test_a_surface_of_windows_along_the_same_cv_is_drawn_and_judged_beside_it(tmp_path):
    assert start(tmp_path, TOY + WINDOWS) == 0
    page = (tmp_path / "toy.run/report.html").read_text()
    assert page.count("shifted to agree best") == 1
    ((rms, largest, p),) = re.findall(
        r"Along x, free energy from paths and from windows differ by ([\d.]+) kT .*? at most ([\d.]+) standard errors .*?\((p [^)]+)\)",
        page,
    )
    row = rates(tmp_path)["agreement"]["x"]
    assert (rms, largest) == (f"{row['rms_kT']:.2g}", f"{row['largest_in_errors']:.2g}")
    assert p == (f"p = {row['p']:.2g}" if row["p"] >= 1e-4 else "p &lt; 0.0001")
    assert row["cells"] >= 5
    # two short runs of the same double well; a finding would be a false alarm
    assert row["p"] >= 1e-3
    assert "surfaces-disagree" not in page
    _displace(tmp_path)
    assert couloir("report", tmp_path / "toy.run") == 0  # the run has not noted it yet
    assert (tmp_path / "toy.run/report.html").read_text().count("surfaces-disagree") == 1
    assert start(tmp_path, TOY + WINDOWS) == 0
    assert (tmp_path / "toy.run/report.html").read_text().count("surfaces-disagree") == 1
    assert rates(tmp_path)["agreement"]["x"]["p"] < 1e-3


def _displace(folder):
    """Lift one well of the surface from paths, and of its replicas, by 6 kT."""
    file = folder / "toy.run/results/path_free_energy_x.npz"
    kept = FreeEnergySurface.load(file)
    lifted = 6 * kept.kT * (kept.grid[0] > 0)
    replace(kept, free_energy=kept.free_energy + lifted, replicas=kept.replicas + lifted).save(file)


def test_a_finished_run_is_not_sampled_again(mine, monkeypatch):
    before, told = sampled(mine), (mine / "toy.run/results/rates.json").read_bytes()
    monkeypatch.setattr("couloir.rates_stage._placed", lambda *_: pytest.fail("sampled again"))
    assert start(mine) == 0
    assert sampled(mine) == before
    assert (mine / "toy.run/results/rates.json").read_bytes() == told


def interrupted(where, after):
    """Return a ``PathLog.add`` that is interrupted once it has written so many steps of a series."""
    real, written = PathLog.add, []

    def add(self, trials, parents):
        real(self, trials, parents)
        written.append(self._series)
        if written.count(where) == after:
            raise KeyboardInterrupt

    return add


def test_interrupted_and_continued_it_gives_the_same_numbers(finished, tmp_path, monkeypatch):
    while_placing, within_a_cycle = ("rates/from B/pilot 1/steps", 8), ("rates/from B/steps", 40)
    for (where, after), text in (
        (while_placing, "There are no rates yet"),
        (within_a_cycle, "240 cycles from A and 26 from B are stored"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(PathLog, "add", interrupted(where, after))
            assert start(tmp_path) == 130
        assert not (tmp_path / "toy.run/results/rates.json").exists()
        assert couloir("report", tmp_path / "toy.run") == 0
        assert text in (tmp_path / "toy.run/report.html").read_text()
    assert start(tmp_path) == 0
    assert rates(tmp_path) == rates(finished)
    for name in (name for name in RESULTS if name.endswith(".npz")):
        one, other = (FreeEnergySurface.load(folder / "toy.run/results" / name) for folder in (tmp_path, finished))
        np.testing.assert_array_equal(one.free_energy, other.free_energy)


def test_more_cycles_more_paths_and_other_records_go_on_from_the_store(mine, capsys):
    assert cycles(mine) == (240, 240)
    more = edited(TOY, ("n_cycles = 240", "n_cycles = 260"), ('record = ["x", "y"]', 'record = "y"'), ("n_paths = 8", "n_paths = 20"))
    assert start(mine, more) == 0
    assert cycles(mine) == (260, 260)
    assert "Committor along x" not in (mine / "toy.run/report.html").read_text()
    assert start(mine, edited(more, ("n_sets = 2", "n_sets = 3"))) == 2
    assert "rates.n_sets changed" in capsys.readouterr().err


def test_paths_are_moved_as_often_in_a_cycle_as_placement_says(tmp_path, monkeypatch):
    place = interface_sampling.place
    monkeypatch.setattr(interface_sampling, "place", lambda *what, **how: replace(place(*what, **how), shots=3))
    assert start(tmp_path, edited(TOY, ("n_cycles = 240", "n_cycles = 31"))) == 0
    with Run.open(tmp_path / "toy.run") as run:
        assert [run.store.get(f"{name}/plan")["shots"] for name in NAMES.values()] == [3, 3]
        assert stored_cycles(run) == (31, 31)


def test_rates_may_be_added_to_a_run_that_had_none(tmp_path):
    assert start(tmp_path, TOY[: TOY.index("[rates]")]) == 0
    assert start(tmp_path, edited(TOY, ("n_cycles = 240", "n_cycles = 30"))) == 0
    assert cycles(tmp_path) == (30, 30)


def test_the_store_holds_frames_of_the_last_paths_only(finished):
    with Store(finished / "toy.run/store.db", read_only=True) as store:
        for name in NAMES.values():
            held = set(store.series(name))
            assert held == {f"{name}/placed", f"{name}/first", f"{name}/rows", f"{name}/stand"}  # and no pilot runs, and no step
            assert store.count(f"{name}/stand") == 1
            assert not any("positions" in chunk for chunk in store.chunks(f"{name}/rows"))


def test_a_cv_may_be_recorded_whose_values_were_not_asked_for_while_paths_were_sampled(tmp_path):
    short = edited(TOY, ("n_cycles = 240", "n_cycles = 30"), ('record = ["x", "y"]', 'record = "x"'))
    assert start(tmp_path, short) == 0
    assert start(tmp_path, edited(short, ('record = "x"', 'record = "y"'))) == 0
    assert cycles(tmp_path) == (30, 30)
    assert (tmp_path / "toy.run/results/path_free_energy_y.npz").exists()


def test_a_rate_is_told_in_the_unit_in_which_it_is_no_small_number():
    rate = {"value": 2e-5, "standard_error": 1e-5, "low": None, "high": 4e-5, "unit": "1/ps"}
    told = readable(rate)
    assert told["unit"] == "1/us"
    assert told["low"] is None
    assert [told[key] for key in ("value", "standard_error", "high")] == pytest.approx([20, 10, 40])
    assert readable({**rate, "value": 0.5})["unit"] == "1/ps"


def test_the_order_parameter_seen_from_b_is_minus_the_cv():
    x, phi = Coordinate(0, "x"), Coordinate(0, "phi", period=2.0)
    frames = np.array([-0.9, 0.3])[:, None, None]
    for cv in (x, phi):
        np.testing.assert_allclose(backward(cv).evaluate(frames), [0.9, -0.3])
        assert backward(cv).period == cv.period


MISTAKES = {
    "unknown CV": ([('along = "x"', 'along = "xx"')], ["rates.along names the unknown CV 'xx'"]),
    "unknown record": ([('["x", "y"]', '["x", "z"]')], ["rates.record names the unknown CV 'z'"]),
    "no paths": ([(TOY[TOY.index("[paths]") : TOY.index("[rates]")], "")], ["[rates] starts from reactive paths", "[paths]"]),
    "no CV": ([('along = "x"\n', "")], ["rates.along is missing"]),
    "misspelt key": ([("n_sets", "n_set")], ["unknown key rates.n_set", "did you mean 'n_sets'?"]),
    "no cycles": ([("n_cycles = 240", "n_cycles = 0")], ["rates.n_cycles = 0", "greater than 0"]),
    "no error": ([("relative_error = 0.3", "relative_error = 0")], ["rates.relative_error", "greater than 0"]),
    "A with two limits": (
        [('"x < -0.8"', '"x > -2.8 and x < -0.8"')],
        ['paths.from = "x > -2.8 and x < -0.8": [rates] needs A to be everything below one value of x, such as "x < -0.8"'],
    ),
    "B with two limits": (
        [('"x > 0.8"', '"x > 0.8 and x < 2"')],
        ['paths.to = "x > 0.8 and x < 2": [rates] needs B to be everything above one value of x, such as "x > 0.8"'],
    ),
    "another CV": ([('along = "x"', 'along = "y"')], ["needs A to be everything below one value of y"]),
    "two CVs": ([('"x < -0.8"', '"x < -0.8 and y < 5"')], ['such as "x < -0.8"']),
    "the wrong way": ([('from = "x < -0.8"\nto = "x > 0.8"', 'from = "x > 0.8"\nto = "x < -0.8"')], ["falls from A to B", "exchange"]),
    "overlap": ([('"x > 0.8"', '"x > -0.9"')], ["overlap along x"]),
    "duration": ([("n_sets", 'max_duration = "0.01 ps"\nn_sets')], ["rates.max_duration = 0.01 ps holds no path"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_anything_is_computed(tmp_path, capsys, mistake):
    changes, expected = MISTAKES[mistake]
    assert start(tmp_path, edited(TOY, *changes)) == 2
    told = " ".join(capsys.readouterr().err.split())
    for part in expected:
        assert part in told, told
    if Path(tmp_path / "toy.run/store.db").exists():
        with Store(tmp_path / "toy.run/store.db", read_only=True) as store:
            assert store.series() == []
