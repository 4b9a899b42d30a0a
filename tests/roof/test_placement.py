"""``[umbrella] overlap``: windows placed by pilots, kept, and found again after a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from couloir.analysis import equilibrated, wham
from couloir.build import COARSE_1D, COARSE_ND, build_cvs, build_engine, build_windows
from couloir.config import parse_config
from couloir.errors import ConfigError
from couloir.placement import placed_windows
from couloir.run import Run
from couloir.sampling.toy import ToyEngine
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.sampling.window_overlap import gaps, pair_overlaps
from couloir.trajectory import State, Trajectory

LINE = """
seed = 3
[system]
name = "double_well"
parameters = {barrier = 40.0}
[engine]
kT = 1.0
time_step = 0.0002
[cv.x]
type = "coordinate"
index = 0
[umbrella]
along = "x"
overlap = 0.1
range = [-1.4, 1.4]
seeding = "dragged"
duration = "2 ps"
"""


class _Killed(Exception):
    pass


class _Mortal(ToyEngine):
    """The same dynamics, killed after so many calls."""

    lives = 0

    def propagate(self, *args: object, **settings: object) -> list[Trajectory]:  # type: ignore[override]
        self.lives -= 1
        if self.lives < 0:
            raise _Killed
        return super().propagate(*args, **settings)  # type: ignore[arg-type]


def _placed(folder: Path, text: str = LINE, lives: int | None = None) -> tuple[ToyEngine, UmbrellaSampling, list[str], Run]:
    file, told = folder / "in.toml", list[str]()
    file.write_text(text)
    with Run.create(file) as run:
        engine, start = build_engine(run)
        if lives is not None:
            engine = _Mortal(engine.potential, kT=engine.kT, time_step=engine.time_step)
            engine.lives = lives
        cvs = build_cvs(run, None)
        return engine, placed_windows(run, engine, cvs, start, np.empty((0, 1, start.positions.shape[1])), told.append), told, run


def test_windows_are_placed_until_neighbours_share_enough(tmp_path: Path) -> None:
    engine, windows, told, _ = _placed(tmp_path)
    assert len(windows) > COARSE_1D
    assert told[0].startswith(f"placement: {COARSE_1D} windows became {len(windows)}")
    assert len(told) == 1  # no findings
    states = {w: [State(c[None])] for w, c in enumerate(windows.centers)}
    samples = equilibrated(windows.run(engine, states, 4.0, seed=1, record_stride=0.004, exchange=False))
    assert len(wham(samples).sets) == 1
    assert gaps(windows, samples, pair_overlaps(windows, samples)) == ()


def test_windows_once_placed_are_found_again_without_sampling(tmp_path: Path) -> None:
    _, first, _, _ = _placed(tmp_path)
    _, again, told, _ = _placed(tmp_path, lives=0)
    assert again.windows == first.windows
    assert told == []


@pytest.mark.parametrize("lives", [0, 3, 17, 24])
def test_a_killed_placement_goes_on_to_the_same_windows(tmp_path: Path, lives: int) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    _, whole, _, _ = _placed(tmp_path / "whole")
    with pytest.raises(_Killed):
        _placed(tmp_path / "killed", lives=lives)
    _, resumed, _, _ = _placed(tmp_path / "killed")
    assert resumed.windows == whole.windows


def test_two_cvs_start_from_a_coarse_grid(tmp_path: Path) -> None:
    text = LINE.replace("barrier = 40.0", "barrier = 5.0, harmonic = 8.0").replace('along = "x"', 'along = ["x", "y"]')
    text = text.replace("[-1.4, 1.4]", "[[-1.4, 1.4], [-1.0, 1.0]]").replace(
        "[umbrella]", '[cv.y]\ntype = "coordinate"\nindex = 1\n[umbrella]'
    )
    _, windows, _, _ = _placed(tmp_path, text)
    assert len(windows) >= COARSE_ND**2
    assert [cv.name for cv in windows.cvs] == ["x", "y"]


def test_without_an_overlap_windows_stand_where_the_run_file_puts_them(tmp_path: Path) -> None:
    file = tmp_path / "in.toml"
    file.write_text(LINE.replace("overlap = 0.1", "windows = 5"))
    with Run.create(file) as run:
        engine, start = build_engine(run)
        cvs = build_cvs(run, None)
        windows = placed_windows(run, engine, cvs, start, np.empty((0, 1, 1)), print)
        assert windows.windows == build_windows(run, engine, cvs).windows
        assert len(windows) == 5
        assert run.store.series() == []


@pytest.mark.parametrize(
    ("keys", "complaints"),
    [
        ({"overlap": 0.1, "windows": 36}, ["overlap = 0.1", "leave out windows, or leave out overlap"]),
        ({"overlap": 0.1, "force_constant": 20.0}, ["leave out force_constant, or leave out overlap"]),
        ({"overlap": 0.1, "windows": 9, "force_constant": 20.0}, ["leave out windows and force_constant, or"]),
        ({"overlap": 0.03}, ["umbrella.overlap = 0.03", "greater than 0.03"]),
        ({"overlap": 0.45}, ["umbrella.overlap = 0.45", "less than 0.45"]),
        ({"overlap": "much"}, ["umbrella.overlap = 'much'", "number"]),
        ({"overlp": 0.1}, ["unknown key umbrella.overlp", "did you mean 'overlap'?"]),
    ],
)
def test_an_overlap_that_cannot_be_is_refused(keys: dict[str, object], complaints: list[str]) -> None:
    umbrella = {"along": "x", "seeding": "dragged", "duration": "1 ps", **keys}
    with pytest.raises(ConfigError) as error:
        parse_config({"system": {"name": "double_well"}, "cv": {"x": {"type": "coordinate", "index": 0}}, "umbrella": umbrella})
    for complaint in complaints:
        assert complaint in str(error.value)
