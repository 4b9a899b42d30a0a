"""The studies of DynamicsDiffusion: what is trained, on what, and how it is judged."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import dynamics_pictures as pictures
from benchmarks import dynamics_studies as program
from benchmarks import tables
from benchmarks.systems import ablations
from benchmarks.systems.double_well import energy, profile_error
from couloir.generative import TrajectoryDiffusion, Vector
from couloir.trajectory import Trajectory

SMALL = ablations.SCALES["small"]
NAMES = ["heads", "encoder", "data", "calls", "targets", "lengths", "norms", "temperature"]


def boltzmann(kT: float, n: int, seed: int) -> np.ndarray:
    x = np.linspace(-2.0, 2.0, 20_001)
    cdf = np.cumsum(np.exp(-energy(x) / kT))
    return np.interp(np.random.default_rng(seed).random(n), cdf / cdf[-1], x)


def test_equal_names_mean_equal_trainings_so_that_studies_can_share_them() -> None:
    for scale in ablations.SCALES.values():
        named: dict[str, ablations.Training] = {}
        for study in ablations.studies(scale).values():
            for training in study.trainings:
                assert named.setdefault(training.name, training) == training
            pairs = [(training, look) for training in study.trainings for look in study.looks]
            assert len({study.label(*pair) for pair in pairs}) == len(pairs)
            assert len({look.name for look in study.looks}) == len(study.looks)


@pytest.mark.parametrize("scale", ablations.SCALES.values(), ids=ablations.SCALES)
def test_every_training_is_one_that_the_model_knows(scale: ablations.Scale) -> None:
    assert list(ablations.studies(scale)) == NAMES
    for study in ablations.studies(scale).values():
        for training in study.trainings:
            TrajectoryDiffusion(Vector(), training.lengths, base_channels=scale.channels, **training.network)


def test_held_out_temperatures_are_not_trained_on_but_judged() -> None:
    study = ablations.studies(SMALL)["temperature"]
    assert set(study.trainings[0].kT).isdisjoint(ablations.HELD_OUT)
    assert set(ablations.HELD_OUT) < {look.kT for look in study.looks}


def test_every_study_takes_less_than_an_hour_of_a_core_at_small_scale(tmp_path: Path) -> None:
    for study in ablations.studies(SMALL).values():
        total = SMALL.trainings * sum(ablations.core_seconds(t, study.looks, SMALL, tmp_path / t.name) for t in study.trainings)
        assert 60.0 < total < 3600.0


def test_what_is_done_is_not_counted_again(tmp_path: Path) -> None:
    training, looks = ablations.Training("any"), (ablations.Look(), ablations.Look(n_calls=5))
    both = ablations.core_seconds(training, looks, SMALL, tmp_path)
    (tmp_path / "model.json").touch()
    judging = ablations.core_seconds(training, looks, SMALL, tmp_path)
    (tmp_path / f"look_{looks[0].name}.json").touch()
    assert both > judging > ablations.core_seconds(training, looks, SMALL, tmp_path) > 0.0
    (tmp_path / f"look_{looks[1].name}.json").touch()
    assert ablations.core_seconds(training, looks, SMALL, tmp_path) == 0.0


def test_a_share_of_the_data_is_its_beginning() -> None:
    frames = np.arange(100.0)[:, None, None] * np.ones((1, 1, 2))
    parts = [Trajectory(frames + 1000.0 * i, 0.01) for i in range(3)]
    half = program.beginning(parts, 0.5, 8)
    assert [len(part.positions) for part in half] == [100, 50]
    np.testing.assert_array_equal(half[1].positions, parts[1].positions[:50])
    assert [len(part.positions) for part in program.beginning(parts, 1.0, 8)] == [100, 100, 100]
    # Four frames of the second trajectory are left over, too few for a snippet.
    assert [len(part.positions) for part in program.beginning(parts, 104 / 300, 8)] == [100]


def test_error_of_profile_is_that_of_the_benchmark_where_the_barrier_is_below_7_kt() -> None:
    x = boltzmann(1.0, 20_000, seed=1)
    error, known = program.error_of_profile(x), profile_error(x)
    assert error["transition"] == pytest.approx(known.transition)
    assert error["everywhere"] == pytest.approx(known.everywhere, abs=0.02)


def test_error_of_profile_leaves_out_a_barrier_that_samples_cannot_reach() -> None:
    error = program.error_of_profile(boltzmann(0.5, 200_000, seed=2), kT=0.5)
    assert np.isnan(error["transition"])
    assert error["everywhere"] < 0.1
    # The wrong temperature is seen.
    assert program.error_of_profile(boltzmann(1.0, 200_000, seed=2), kT=0.5)["everywhere"] > 0.5


def test_standard_error_of_a_mean() -> None:
    assert program.mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.0 / np.sqrt(3.0)))
    assert program.mean_and_error([4.0]) == (4.0, None)


def test_paper_stands_beside_its_model_only() -> None:
    study = ablations.studies(SMALL)["heads"]
    peers = {t.name: program._peer("heads", t, "transition", []) for t in study.trainings}
    assert peers["energy_attention"] == ("paper", 0.33)
    assert {peer for name, peer in peers.items() if name != "energy_attention"} == {("", None)}


def test_training_is_resumed_judged_and_put_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "REFERENCE", 200.0)
    program.reference.cache_clear()
    scale = replace(SMALL, data=100.0, steps=2, more_steps=2, channels=8, batch=4, generated=8)
    training = ablations.Training("tiny", {"head": "plain", "attention": False}, (8, 16), kT=(0.5, 1.5))
    study = ablations.Study((training,), (ablations.Look(n_frames=8, kT=1.5, n_calls=2),), lambda t, look: f"{t.name} {look.kT}")
    folder = program.folder_of(tmp_path, training, 0)
    program.work(training, study.looks, scale, 0, folder)
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*.json")}
    assert program.work(training, study.looks, scale, 0, folder) == "tiny_0"
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.json")} == written
    rows = [asdict(row) for row in program.table("temperature", study, scale, tmp_path, 1)]
    claims = [row["claim"] for row in rows]
    program.reference.cache_clear()
    assert "tiny 1.5: error of F(x)" in claims
    assert "tiny: time of a training step" in claims
    assert "8 snippets of 8 frames by the simulator, kT = 1.5: error of F(x)" in claims
    errors = pictures.errors_of(rows)
    assert list(errors) == ["8 snippets of 8 frames by the simulator, kT = 1.5", "tiny 1.5"]
    assert errors["tiny 1.5"]["F(x)"][0] == next(row["value"] for row in rows if row["claim"] == "tiny 1.5: error of F(x)")
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    (tmp_path / "dynamics_temperature.json").write_text(json.dumps(rows))
    pictures.draw_study("temperature")
    assert (tmp_path / "dynamics_temperature.png").stat().st_size > 1000


def test_make_bench_leaves_out_what_takes_hours() -> None:
    assert "dynamics_studies" not in tables.names()
    assert "dynamics_diffusion" in tables.names()
    for name in tables.HOURS:
        assert (tables.ROOT / "benchmarks" / f"{name}.py").exists()
