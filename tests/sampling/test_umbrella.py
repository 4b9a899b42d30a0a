"""Umbrella windows: placed right, sampled right, resumed exactly."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from couloir.analysis import free_energy_surface
from couloir.cv import HarmonicBias
from couloir.cv.geometric import Coordinate, Dihedral
from couloir.errors import DataError, StoreError
from couloir.sampling.chunks import gibbs_permutation
from couloir.sampling.potentials import double_well, harmonic, hidden_barrier
from couloir.sampling.toy import ToyEngine
from couloir.sampling.umbrella import UmbrellaSampling, stored_frames
from couloir.store import Store
from couloir.streams import stream
from couloir.trajectory import State

X = Coordinate(0, "x")


def _engine() -> ToyEngine:
    return ToyEngine(double_well(barrier=5.0), kT=1.0, time_step=1e-3)


def _windows(n: int = 9) -> UmbrellaSampling:
    return UmbrellaSampling.grid(X, n, 40.0, range=(-1.6, 1.6))


def _states(windows: UmbrellaSampling, n: int = 2) -> dict[int, list[State]]:
    return {w: [State(center[None])] * n for w, center in enumerate(windows.centers)}


def test_windows_on_a_circle_are_evenly_spread_and_do_not_meet_twice() -> None:
    windows = UmbrellaSampling.grid(Dihedral((0, 1, 2, 3), "phi"), 36, "100 kJ/mol/rad^2")
    gaps = np.diff(np.append(windows.centers[:, 0], windows.centers[0, 0] + 2 * np.pi))
    np.testing.assert_allclose(gaps, 2 * np.pi / 36)
    assert windows.windows[3].force_constants == (100.0,)


def test_a_centre_outside_the_period_is_refused() -> None:
    phi = Dihedral((0, 1, 2, 3), "phi")
    assert UmbrellaSampling.at(phi, ["-60 deg", np.pi], 10.0).centers[0, 0] == pytest.approx(-np.pi / 3)
    with pytest.raises(DataError, match=r"(?s)centre of window 1 = 60 .*\"60 deg\""):
        UmbrellaSampling.at(phi, [0.5, 60], 10.0)
    with pytest.raises(DataError, match="window 0"):
        UmbrellaSampling.at((X, phi), [(0.5, "200 deg")], 10.0)


def test_two_cvs_make_a_product_of_windows() -> None:
    y = Coordinate(1, "y")
    windows = UmbrellaSampling.grid((X, y), (3, 2), (10.0, 20.0), range=[(0, 2), (-1, 1)])
    assert windows.centers.tolist() == [[0, -1], [0, 1], [1, -1], [1, 1], [2, -1], [2, 1]]
    np.testing.assert_allclose(windows.distance(np.array([[1.0, 1.0]]), np.zeros(2)), np.sqrt(10 + 20))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UmbrellaSampling.grid(X, 3, 1.0), "no period"),
        (lambda: UmbrellaSampling.grid(X, 3, 1.0, range=(1.0, 0.0)), "is empty"),
        (lambda: UmbrellaSampling.grid(X, 0, 1.0, range=(0.0, 1.0)), "0 windows"),
        (lambda: UmbrellaSampling.grid(Dihedral((0, 1, 2, 3), "phi"), 3, 1.0, range=(0.0, 4.0)), "leaves the period"),
        (lambda: UmbrellaSampling(X, []), "at least one window"),
        (lambda: UmbrellaSampling(X, [HarmonicBias.on(Coordinate(1, "y"), 0.0, 1.0)]), "biases"),
        (lambda: UmbrellaSampling.grid(X, 3, -1.0, range=(0.0, 1.0)), "negative"),
    ],
)
def test_impossible_windows_are_refused(make: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()  # type: ignore[operator]


def test_umbrella_sampling_recovers_the_exact_surface_within_its_error_bars() -> None:
    engine, windows = _engine(), _windows()
    samples = windows.run(engine, _states(windows), 200.0, seed=5, record_stride=0.02)
    surface = free_energy_surface(samples, "x", bins=40, limits=(-1.5, 1.5), n_bootstrap=60)
    exact = engine.potential.exact_free_energy(surface.grid[0], kT=1.0)
    deviation = (surface.free_energy - surface.free_energy.mean()) - (exact - exact.mean())
    # 40 correlated cells: the root mean square of z stays below 2.2 unless bars or surface are wrong (p < 1e-4).
    assert np.sqrt(np.mean((deviation / surface.standard_error) ** 2)) < 2.2
    assert np.abs(deviation).max() < 0.5


@pytest.mark.parametrize("exchange", [True, False])
def test_resumed_and_extended_runs_equal_one_long_run_byte_for_byte(tmp_path: Path, exchange: bool) -> None:
    engine, windows, whole = _engine(), _windows(3), Store()
    windows.run(engine, _states(windows), 40.0, seed=2, exchange=exchange, store=whole)
    with Store(tmp_path / "s.db") as part:
        windows.run(engine, _states(windows), 7.3, seed=2, exchange=exchange, store=part)
    with Store(tmp_path / "s.db") as part:
        again = _windows(3)
        samples = again.run(engine, _states(again), 20.0, seed=2, exchange=exchange, store=part)
        samples = again.extend(samples, 20.0)
        assert part.digest("umbrella") == whole.digest("umbrella")
    assert samples.time.max() == pytest.approx(40.0)
    assert len(samples) == 3 * 2 * 400


def test_a_store_half_way_through_a_round_of_exchanges_continues_as_if_nothing_had_happened() -> None:
    engine, windows, whole, part = _engine(), _windows(3), Store(), Store()
    windows.run(engine, _states(windows), 5.0, seed=2, store=whole)
    for series in whole.series():
        for chunk in list(whole.chunks(series))[: 2 if series.endswith("w0001/000") else 3]:
            part.append({series: chunk})
    windows.run(engine, _states(windows), 5.0, seed=2, store=part)
    assert part.digest("umbrella") == whole.digest("umbrella")


@pytest.mark.parametrize("exchange", [True, False])
def test_windows_given_unequal_times_continue_among_themselves_and_resume_exactly(exchange: bool) -> None:
    engine, windows = _engine(), _windows(4)
    times = np.array([2.0, 6.0, 3.0, 2.0])
    settings: dict[str, Any] = {"seed": 3, "record_stride": 0.05, "exchange": exchange}
    at_once = windows.run(engine, _states(windows), times, **settings)
    store = Store()
    for number in range(1, 7):
        _stop_after(store, number)
        with contextlib.suppress(KeyboardInterrupt):
            _windows(4).run(engine, _states(windows), np.minimum(times, 1.0 * number), **settings, store=store)
        store.__dict__.pop("append", None)
    in_steps = _windows(4)
    again = in_steps.run(engine, _states(windows), times, **settings, store=store)
    assert again.counts.tolist() == [80, 240, 120, 80]
    np.testing.assert_array_equal(at_once.values, again.values)
    if exchange:
        report = in_steps.exchange_report()
        assert report.n_attempts == 2 * 11
    everything = in_steps.extend(again, times.max() - times)
    assert everything.counts.tolist() == [240] * 4
    np.testing.assert_array_equal(everything.values[everything.walker == 2], again.values[again.walker == 2])


def _stop_after(store: Store, n_commits: int) -> None:
    """Interrupt the run that writes to this store once it has committed so many times."""
    append, left = store.append, itertools.count(n_commits, -1)

    def once(chunks: Any) -> None:
        append(chunks)
        if next(left) == 1:
            raise KeyboardInterrupt

    store.append = once  # type: ignore[method-assign]


def test_unequal_times_with_exchange_leave_every_window_its_distribution() -> None:
    engine = ToyEngine(harmonic((1.0,)), kT=1.0, time_step=2e-2)
    windows = UmbrellaSampling.grid(X, 4, 1.0, range=(-1.5, 1.5))
    samples = windows.run(engine, _states(windows, 8), [100.0, 800.0, 400.0, 100.0], seed=11, record_stride=0.2)
    for w, center in enumerate(windows.centers[:, 0]):
        values = samples["x"][samples.window == w]
        # U + bias: centre c / 2 and variance 1/2, which Euler-Maruyama with step h widens by 1 / (1 - h); relaxation time 1/2.
        error = np.sqrt(0.5 * 2 * 0.5 / (8 * [100.0, 800.0, 400.0, 100.0][w]))
        assert abs(values.mean() - center / 2) < 4.5 * error
        assert values.var() == pytest.approx(0.5 / 0.98, rel=4.5 * np.sqrt(2 * 0.5 / (8 * [100.0, 800.0, 400.0, 100.0][w])))


def test_times_must_be_one_per_window_and_positive() -> None:
    windows = _windows(3)
    with pytest.raises(DataError, match="2 durations for 3 windows"):
        windows.run(_engine(), _states(windows), [1.0, 2.0], seed=0)
    with pytest.raises(DataError, match="window 1 gets no time"):
        windows.run(_engine(), _states(windows), [1.0, 0.0, 1.0], seed=0)


def test_exchange_draws_permutations_with_their_exact_probabilities() -> None:
    energies = np.array([[0.0, 1.2, 2.5], [0.7, 0.0, 0.3], [1.0, 0.4, 0.0]])
    orders = list(itertools.permutations(range(3)))
    exact = np.array([np.exp(-sum(energies[place, c] for place, c in enumerate(order))) for order in orders])
    n = 20_000
    drawn = Counter(tuple(gibbs_permutation(energies, stream(1, "draw", i))) for i in range(n))
    expected = n * exact / exact.sum()
    chi2 = sum((drawn[order] - e) ** 2 / e for order, e in zip(orders, expected, strict=True))
    assert chi2 < 27.9  # five degrees of freedom: p = 4e-5


def test_exchange_frees_walkers_that_a_hidden_barrier_keeps_apart() -> None:
    """Only the leftmost windows have a passage between the y modes; by exchange every window profits from it."""
    engine = ToyEngine(hidden_barrier(barrier=9.0), kT=1.0, time_step=1e-3)
    windows = UmbrellaSampling.grid(X, 6, 12.0, range=(-2.5, -0.5))
    starts = {w: [State(np.array([[c[0], -1.0]]))] * 6 for w, c in enumerate(windows.centers)}
    upper = {}
    for exchange in (True, False):
        samples = windows.run(engine, starts, 200.0, seed=1, record=(X, Coordinate(1, "y")), exchange=exchange)
        upper[exchange] = float((samples["y"][(samples.window == 5) & (samples.time > 50)] > 0).mean())
    # Exactly, 75 % of the last window lies at y > 0; none of its walkers began there, and alone they do not get there.
    assert upper[False] < 0.2
    assert upper[True] > 0.35


def test_a_store_of_another_run_is_refused() -> None:
    engine, windows, store = _engine(), _windows(3), Store()
    windows.run(engine, _states(windows), 1.0, seed=2, store=store)
    with pytest.raises(StoreError, match=r"different seed\)"):
        windows.run(engine, _states(windows), 1.0, seed=3, store=store)
    with pytest.raises(StoreError, match="different dynamics"):
        windows.run(ToyEngine(double_well(barrier=6.0), kT=1.0, time_step=1e-3), _states(windows), 1.0, seed=2, store=store)
    moved = {w: [State(s.positions + 0.1) for s in states] for w, states in _states(windows).items()}
    with pytest.raises(StoreError, match="different states"):
        windows.run(engine, moved, 1.0, seed=2, store=store)


def test_every_window_needs_a_seed() -> None:
    windows = _windows(3)
    with pytest.raises(DataError, match="no seed for window 2"):
        windows.run(_engine(), {0: [State(np.zeros((1, 1)))], 1: [State(np.zeros((1, 1)))]}, 1.0, seed=1)
    with pytest.raises(DataError, match="window 7"):
        windows.run(_engine(), {7: [State(np.zeros((1, 1)))]}, 1.0, seed=1)
    with pytest.raises(DataError, match="nothing to extend"):
        windows.extend(None, 1.0)  # type: ignore[arg-type]


def test_frames_are_kept_with_their_windows_and_other_cvs_are_recorded() -> None:
    engine, store = ToyEngine(hidden_barrier(), kT=1.0, time_step=1e-3), Store()
    windows = UmbrellaSampling.grid(X, 3, 40.0, range=(-1, 1))
    starts = {w: [State(np.array([[c[0], 1.0]]))] for w, c in enumerate(windows.centers)}
    samples = windows.run(engine, starts, 20.0, seed=1, record=(X, Coordinate(1, "y")), store=store)
    positions, homes = stored_frames(store)
    assert samples.names == ("x", "y")
    assert np.bincount(homes).tolist() == [20, 20, 20]
    np.testing.assert_allclose(positions[0, 0], samples.values[9], rtol=1e-6)
