"""Exchange: what is reported is what happened."""

from __future__ import annotations

import numpy as np
import pytest

from couloir.analysis.exchange import exchange_report, neighbours, replica_places
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError
from couloir.sampling.chunks import ExchangeHistory, exchange_history
from couloir.sampling.potentials import harmonic
from couloir.sampling.toy import ToyEngine
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store
from couloir.trajectory import State

LINE = np.abs(np.arange(3.0)[:, None] - np.arange(3.0)[None])


def _history(sources: list[list[int]], interval: float = 2.0) -> ExchangeHistory:
    return ExchangeHistory(np.arange(len(sources[0])), np.array(sources), np.ones(np.shape(sources), dtype=bool), interval)


def test_a_rotating_permutation_carries_every_replica_around() -> None:
    places = replica_places(np.array([[2, 0, 1]] * 3))
    assert places[:, 0].tolist() == [0, 1, 2, 0]
    assert places[:, 2].tolist() == [2, 0, 1, 2]


def test_round_trips_of_a_hand_made_history_are_counted_exactly() -> None:
    swap01, swap12, stay = [1, 0, 2], [0, 2, 1], [0, 1, 2]
    # Replica 0 walks 0 1 2 2 1 0, replica 1 walks 1 0 0 0 0 1, replica 2 walks 2 2 1 1 2 2.
    report = exchange_report([_history([swap01, swap12, stay, swap12, swap01])], LINE)
    assert report.ends == (0, 2)
    assert report.round_trips.tolist() == [1.0, 0.0, 0.0]
    assert [path.tolist() for path in report.paths] == [[0, 1, 2, 2, 1, 0], [1, 0, 0, 0, 0, 1], [2, 2, 1, 1, 2, 2]]
    assert report.interval == 2.0
    # Under way for 5, 4 and 5 attempts of 2 ps; two passages: a round trip in 28 ps.
    assert report.round_trip_time == pytest.approx(28.0)
    # Window 0 lost its configuration in 2 of 5 attempts, window 1 in 4, window 2 in 2.
    np.testing.assert_allclose(report.left, [0.4, 0.8, 0.4])
    assert report.neighbours.tolist() == [[0, 1], [1, 2]]
    np.testing.assert_allclose(report.passed, [0.4, 0.4])
    assert [f.code for f in report.findings] == ["few-round-trips"]


def test_replicas_that_cannot_pass_are_reported_with_the_place() -> None:
    report = exchange_report([_history([[1, 0, 2]] * 50)], LINE)
    assert report.round_trips.sum() == 0
    assert not np.isfinite(report.round_trip_time)
    assert "between windows 1 and 2" in report.findings[0].fix
    named = exchange_report([_history([[1, 0, 2]] * 50)], LINE, lambda a, b: f"phi = {(a + b) / 2} rad")
    assert "insert a window at phi = 1.5 rad, between windows 1 and 2" in named.findings[0].fix
    assert "none finished" in str(report)


def test_replicas_that_travel_raise_no_finding() -> None:
    report = exchange_report([_history([[1, 0, 2], [0, 2, 1]] * 30)], LINE)
    assert report.findings == ()
    assert report.to_dataframe()["passed"].tolist() == [0.5, 0.5]


def test_neighbours_on_a_circle_close_it() -> None:
    angle = 2 * np.pi * np.arange(6) / 6
    delta = np.abs((angle[:, None] - angle[None] + np.pi) % (2 * np.pi) - np.pi)
    assert neighbours(delta).tolist() == [[0, 1], [0, 5], [1, 2], [2, 3], [3, 4], [4, 5]]


def test_something_that_is_no_permutation_is_refused() -> None:
    with pytest.raises(DataError, match="permutation"):
        replica_places(np.array([[0, 0, 1]]))


def test_the_history_of_a_run_is_the_one_its_walkers_followed() -> None:
    windows = UmbrellaSampling.grid(Coordinate(0, "x"), 4, 4.0, range=(-1.0, 1.0))
    store, engine = Store(), ToyEngine(harmonic((1.0,)), kT=1.0, time_step=1e-2)
    states = {w: [State(c[None])] * 2 for w, c in enumerate(windows.centers)}
    windows.run(engine, states, 60.0, seed=3, record_stride=0.1, store=store)
    report = windows.exchange_report()
    assert report.n_attempts == 2 * 59
    history = exchange_history(store, "umbrella")
    run = windows._run
    assert run is not None
    for number in (1, 17, 59):
        begun = run.starts(number)
        for group, one in zip(run.groups, history, strict=True):
            for place, source in zip(group, one.sources[number - 1], strict=True):
                end = store.chunk(f"umbrella/{run.walkers[group[source]]}", number - 1)
                np.testing.assert_array_equal(begun[place].positions, end["last_positions"])
    assert report.left.min() > 0.2
    assert report.round_trips.mean() > 1
    assert report.findings == ()


def test_a_window_that_stands_aside_counts_neither_attempts_nor_time() -> None:
    took_part = np.array([[True, True, True], [True, True, False], [True, True, False]])
    history = ExchangeHistory(np.arange(3), np.array([[1, 0, 2], [1, 0, 2], [0, 1, 2]]), took_part, 2.0)
    report = exchange_report([history], np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0))))
    np.testing.assert_allclose(report.left, [2 / 3, 2 / 3, 0.0])
    # The replica that waits in window 2 is under way for one attempt of 2 ps, the two others for three: no passage in 14 ps.
    assert report.round_trip_time == np.inf


def test_without_exchange_there_is_nothing_to_report() -> None:
    windows = UmbrellaSampling.grid(Coordinate(0, "x"), 2, 4.0, range=(-1.0, 1.0))
    with pytest.raises(DataError, match="nothing has been run"):
        windows.exchange_report()
    engine = ToyEngine(harmonic((1.0,)), kT=1.0, time_step=1e-2)
    windows.run(engine, {w: [State(c[None])] for w, c in enumerate(windows.centers)}, 5.0, seed=3, record_stride=0.1, exchange=False)
    with pytest.raises(DataError, match="no configurations were exchanged"):
        windows.exchange_report()


def test_a_run_whose_windows_lie_too_far_apart_is_told_where_one_is_missing() -> None:
    windows = UmbrellaSampling.at(Coordinate(0, "x"), [-1.0, -0.6, 2.0], 40.0)
    engine = ToyEngine(harmonic((1.0,)), kT=1.0, time_step=1e-3)
    windows.run(engine, {w: [State(c[None])] for w, c in enumerate(windows.centers)}, 20.0, seed=3, record_stride=0.05)
    (finding,) = windows.exchange_report().findings
    assert finding.code == "few-round-trips"
    assert finding.fix.startswith("insert a window at x = 0.7")


def test_neighbours_on_a_rectangular_grid_are_its_edges() -> None:
    points = np.stack(np.meshgrid(np.arange(3.0), 0.7 * np.arange(2.0), indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    assert neighbours(distance).tolist() == [[0, 1], [0, 2], [1, 3], [2, 3], [2, 4], [3, 5], [4, 5]]


def test_two_windows_at_one_place_cut_nothing_off() -> None:
    x = np.array([0.0, 1.0, 1.0, 2.0])
    assert neighbours(np.abs(x[:, None] - x)).tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
