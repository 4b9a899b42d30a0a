"""Sampling until the surface is known: the target is met in truth, the time goes where it is needed, and interrupts cost nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from couloir.cv.geometric import Coordinate
from couloir.errors import DataError
from couloir.sampling.potentials import double_well
from couloir.sampling.target import Stage, cells_that_count, run_until
from couloir.sampling.toy import ToyEngine
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store
from couloir.trajectory import State

X = Coordinate(0, "x")
N = 12


def _engine() -> ToyEngine:
    return ToyEngine(double_well(barrier=5.0), kT=1.0, time_step=2e-3, threads=1)


def _windows() -> UmbrellaSampling:
    return UmbrellaSampling.grid(X, N, 40.0, range=(-1.5, 1.5))


def _states() -> dict[int, list[State]]:
    return {w: [State(center[None])] * 2 for w, center in enumerate(_windows().centers)}


def _run(target: Any, **options: Any) -> Any:
    return run_until(_windows(), _engine(), _states(), target, seed=4, record_stride=0.02, **{"first": 2.0, **options})


def test_the_error_asked_for_is_reached_claimed_and_true() -> None:
    known = _run("0.15 kT")
    assert known.findings == ()
    assert known.stages[-1].error <= 0.15 < known.stages[-2].error
    assert known.stages[-1].total == pytest.approx(2 * known.durations.sum())
    surface = known.surface
    counted = cells_that_count(surface, _windows())
    exact = 5.0 * (surface.grid[0] ** 2 - 1) ** 2
    off = (surface.free_energy - exact)[counted]
    # The cells' errors are at most 0.15 kT; 5 of these for the largest of 40 correlated cells.
    assert np.abs(off - off.mean()).max() < 5 * 0.15


def test_time_goes_to_the_windows_that_need_it() -> None:
    adaptive, uniform = _run(0.12), _run(0.12, allocation="uniform")
    assert np.ptp(uniform.durations) == 0
    assert adaptive.durations.max() > 1.2 * adaptive.durations.min()
    # A quarter of every stage is spread evenly.
    assert adaptive.durations.min() > 2.0 + 0.2 * (adaptive.durations.mean() - 2.0)


def test_an_interrupted_run_ends_as_an_uninterrupted_one() -> None:
    whole, store = _run(0.15), Store()
    for n_stages in (1, 1, 2):
        left = iter(range(n_stages))

        def stop(stage: Stage, left: Any = left) -> None:
            next(left)

        with pytest.raises(StopIteration):
            _run(0.15, store=store, on_stage=stop)
    again = _run(0.15, store=store)
    np.testing.assert_array_equal(again.samples.values, whole.samples.values)
    assert str(again.stages[-1]) == str(whole.stages[-1])


def test_another_target_goes_on_from_what_is_there() -> None:
    store = Store()
    first = _run(0.2, store=store)
    relaxed, stricter = _run(0.5, store=store), _run(0.14, store=store)
    assert len(relaxed.samples) == len(first.samples)
    np.testing.assert_array_equal(stricter.samples.values[stricter.samples.walker == 0][:100], first.samples.values[:100])
    assert stricter.stages[-1].error <= 0.14


def test_cells_count_where_a_window_holds_them() -> None:
    known = _run(0.5)
    counted = cells_that_count(known.surface, _windows())
    x = known.surface.grid[0]
    assert counted[np.abs(x) < 1.2].all()
    # F'' + k = 5 (12 x^2 - 4) + 40 near x = 1.4: 2 kT below its peak the outermost window has given up the cells beyond.
    assert not counted[np.abs(x) > 1.45].any()


def test_windows_that_share_nothing_never_meet_a_target() -> None:
    windows = UmbrellaSampling.at(X, [-1.1, -1.0, 1.0, 1.1], 300.0)
    states = {w: [State(center[None])] * 2 for w, center in enumerate(windows.centers)}
    known = run_until(windows, _engine(), states, 5.0, seed=4, record_stride=0.02, first=1.0, most=4.0)
    assert [finding.code for finding in known.findings] == ["disconnected-windows", "target-not-reached"]


def test_a_target_out_of_reach_ends_with_a_finding() -> None:
    known = _run(0.001, most=5.0)
    assert known.durations.max() == pytest.approx(5.0)
    assert [finding.code for finding in known.findings] == ["target-not-reached"]
    assert "0.001" in str(known)


@pytest.mark.parametrize("target", [0.0, "-1 kT"])
def test_a_target_must_be_positive(target: Any) -> None:
    with pytest.raises(DataError, match="not positive"):
        _run(target)
