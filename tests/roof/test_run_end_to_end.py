"""A whole run through the command line on a toy: it finishes, resumes, extends, refuses to mix, and survives being killed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from run_files import couloir

from couloir.analysis import FreeEnergySurface
from couloir.analysis.samples import BiasedSamples
from couloir.store import Store

RUN = """
seed = 3
[system]
name = "hidden_barrier"
[engine]
kT = 1.0
time_step = 0.001
workers = 1
[cv.x]
type = "coordinate"
index = 0
[cv.y]
type = "coordinate"
index = 1
[explore]
duration = "40 ps"
stride = 0.2
[model]
steps = 30
width = 16
depth = 1
[umbrella]
along = "x"
windows = 4
range = [-2, 2]
seeds_per_window = 1
duration = "20 ps"
[surface]
along = ["x", ["x", "y"]]
bootstrap = 5
[surface.basins]
left = "x < -1"
right = "x > 1"
"""
# Long enough that kills land inside the dynamics; no model, whose training would take most of the time.
LONG = RUN
for _old, _new in (
    ('duration = "20 ps"', 'duration = "4 ns"\nseeding = "dragged"\nrecord_stride = "1 ps"'),
    ('duration = "40 ps"\nstride = 0.2', 'duration = "3 ns"\nstride = "1 ps"'),
    ('along = ["x", ["x", "y"]]', 'along = "x"'),
):
    assert _old in LONG
    LONG = LONG.replace(_old, _new)


def digest(run, prefix=""):
    with Store(run / "store.db", read_only=True) as store:
        return store.digest(prefix)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "toy.toml").write_text(RUN)
    assert couloir("run", folder / "toy.toml") == 0
    return folder


@pytest.fixture
def mine(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_run_leaves_its_results(finished):
    results = finished / "toy.run" / "results"
    surface = FreeEnergySurface.load(results / "free_energy_x.npz")
    assert np.isfinite(surface.free_energy).any()
    assert FreeEnergySurface.load(results / "free_energy_x_y.npz").names == ("x", "y")
    samples = BiasedSamples.load(results / "samples.npz")
    assert len(samples) == 4 * 200
    assert json.loads((results / "provenance.json").read_text())["engine"]["potential"] == "hidden_barrier"
    assert "<html" in (finished / "toy.run" / "report.html").read_text().lower()


def test_a_finished_run_is_not_computed_again(mine, capsys):
    before = digest(mine / "toy.run")
    csv = (mine / "toy.run/results/free_energy_x.csv").read_bytes()
    assert couloir("run", mine / "toy.toml") == 0
    assert digest(mine / "toy.run") == before
    assert (mine / "toy.run/results/free_energy_x.csv").read_bytes() == csv


def test_the_same_seed_gives_the_same_run(mine, finished):
    assert couloir("run", mine / "toy.toml", "--directory", mine / "again") == 0
    assert digest(mine / "again") == digest(finished / "toy.run")


def test_a_longer_duration_continues(mine):
    with Store(mine / "toy.run/store.db", read_only=True) as store:
        series = store.series("umbrella/")
        before = {name: np.concatenate([c["values"] for c in store.chunks(name)]) for name in series}
    (mine / "toy.toml").write_text(RUN.replace('"20 ps"', '"30 ps"'))
    assert couloir("run", mine / "toy.toml") == 0
    with Store(mine / "toy.run/store.db", read_only=True) as store:
        for name in series:
            values = np.concatenate([c["values"] for c in store.chunks(name)])
            assert len(values) == 300
            np.testing.assert_array_equal(values[:200], before[name])


def test_surfaces_may_change_and_nothing_is_sampled_anew(mine):
    before = digest(mine / "toy.run")
    (mine / "toy.toml").write_text(RUN.replace('along = ["x", ["x", "y"]]', 'along = "y"'))
    assert couloir("run", mine / "toy.toml") == 0
    assert digest(mine / "toy.run") == before
    assert (mine / "toy.run/results/free_energy_y.npz").exists()


def test_changed_physics_is_refused(mine, capsys):
    before = digest(mine / "toy.run")
    (mine / "toy.toml").write_text(RUN.replace("kT = 1.0", "kT = 1.5").replace("seed = 3", "seed = 4"))
    assert couloir("run", mine / "toy.toml") == 2
    assert "engine.kT, seed changed" in capsys.readouterr().err
    assert digest(mine / "toy.run") == before


def start(folder, log=None):
    command = [sys.executable, "-c", "from couloir.cli import main; main()", "run", "long.toml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def rows(folder):
    """Return how many chunks are stored (0 before there is a store)."""
    try:
        with Store(folder / "long.run/store.db", read_only=True) as store:
            return sum(store.count(name) for name in store.series())
    except Exception:
        return 0


def wait_for(process, folder, chunks):
    """Wait until ``chunks`` chunks are stored, or the process has ended."""
    while process.poll() is None and rows(folder) < chunks:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    (folder / "long.toml").write_text(LONG)
    assert couloir("run", folder / "long.toml") == 0
    return folder


def _survives(n_kills, uninterrupted, folder):
    (folder / "long.toml").write_text(LONG)
    total, chance, landed = rows(uninterrupted), random.Random(n_kills), 0
    for kill in range(n_kills):
        process = start(folder)
        wait_for(process, folder, rows(folder) + 1 + chance.randrange(max(1, (total - rows(folder)) // (n_kills - kill + 1))))
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.communicate()
        landed += process.returncode == -signal.SIGKILL
    assert landed == n_kills
    assert 0 < rows(folder) < total
    last = start(folder)
    _, problems = last.communicate()
    assert last.returncode == 0, problems
    for prefix in ("explore", "seeds", "umbrella"):
        assert digest(folder / "long.run", prefix) == digest(uninterrupted / "long.run", prefix), prefix
    same = Path("long.run/results/free_energy_x.csv")
    assert hashlib.sha256((folder / same).read_bytes()).digest() == hashlib.sha256((uninterrupted / same).read_bytes()).digest()


def test_killed_four_times_it_ends_byte_for_byte_the_same(uninterrupted, tmp_path):
    _survives(4, uninterrupted, tmp_path)


@pytest.mark.statistical
def test_killed_twenty_times_it_ends_byte_for_byte_the_same(uninterrupted, tmp_path):
    _survives(20, uninterrupted, tmp_path)


def test_sigterm_keeps_everything_and_tells_how_to_resume(tmp_path):
    (tmp_path / "long.toml").write_text(LONG)
    process = start(tmp_path)
    wait_for(process, tmp_path, 5)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate()
    assert process.returncode == 130, told
    assert "interrupted" in told
    assert "Resume with: couloir run long.toml" in told
    assert rows(tmp_path) >= 5
