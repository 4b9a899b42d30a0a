"""Runs of a molecule that are broken off anywhere end byte for byte as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from chain_files import PHI, Stop, break_off_training, completed, digests
from run_files import edited

from couloir.pipeline import execute
from couloir.run import Run
from couloir.store import Store

MOLECULES = {
    "dragged": edited(PHI, ("windows = 3", 'windows = 3\nseeding = "dragged"'), ('duration = "1 ps"', 'duration = "6 ps"')),
    "model": edited(PHI, ('duration = "1 ps"', 'duration = "6 ps"')),
}


@pytest.fixture(scope="module", params=list(MOLECULES))
def molecule_run(request, tmp_path_factory):
    text = MOLECULES[request.param]
    return text, completed(tmp_path_factory.mktemp(request.param), text)


def test_a_molecule_broken_off_at_random_writes_ends_byte_for_byte_the_same(molecule_run, tmp_path, monkeypatch):
    text, whole = molecule_run
    (tmp_path / "a.toml").write_text(text)
    chance, append, stops = random.Random(4), Store.append, 0
    while True:
        left = iter(range(chance.randrange(1, 6)))

        def failing(self, chunks, left=left):
            append(self, chunks)
            if next(left, None) is None:
                raise Stop

        with monkeypatch.context() as patch:
            patch.setattr(Store, "append", failing)
            try:
                with Run.create(tmp_path / "a.toml") as run:
                    execute(run, say=lambda text: None)
                break
            except Stop:
                stops += 1
    assert stops >= 3
    assert digests(tmp_path / "a.run") == digests(whole)
    csv = "results/free_energy_phi.csv"
    assert (tmp_path / "a.run" / csv).read_bytes() == (whole / csv).read_bytes()


def test_a_molecule_killed_at_random_instants_ends_byte_for_byte_the_same(molecule_run, tmp_path):
    text, whole = molecule_run
    (tmp_path / "a.toml").write_text(text)
    chance, killed = random.Random(7), 0
    for _ in range(2):
        command = [sys.executable, "-c", "from couloir.cli import main; main()", "run", "a.toml"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)
        while process.poll() is None and not (tmp_path / "a.run/run.log").exists():
            time.sleep(0.02)
        time.sleep(chance.random() * 3.0)
        process.kill()
        process.wait()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 1
    assert digests(completed(tmp_path, text)) == digests(whole)


def test_training_broken_off_and_resumed_gives_the_same_model(molecule_run, tmp_path, monkeypatch):
    text, whole = molecule_run
    if 'seeding = "dragged"' in text:
        pytest.skip("there is no model")
    (tmp_path / "a.toml").write_text(text)
    for after in (0, 3):
        break_off_training(monkeypatch, tmp_path / "a.toml", after)
        assert (tmp_path / "a.run/training").exists()
        assert not (tmp_path / "a.run/model").exists()
    run = completed(tmp_path, text)
    assert (run / "model/weights.safetensors").read_bytes() == (whole / "model/weights.safetensors").read_bytes()
    assert digests(run) == digests(whole)
