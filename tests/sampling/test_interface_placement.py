"""Interfaces are placed by pilot runs, and runs go on until the rate is known as well as asked."""

from dataclasses import replace

import numpy as np
import pytest

from couloir.analysis.path_ensemble import PathEnsemble
from couloir.cv.composite import LinearCombination
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError, StoreError
from couloir.sampling import ToyEngine, TransitionInterfaceSampling, potentials
from couloir.sampling.interface_ensembles import departures
from couloir.sampling.interface_placement import STAYS, Pilot, _around_a, boundary, next_level
from couloir.sampling.interface_starts import TIMES_KEPT, FirstPaths, evenly, initial_paths, leave, with_velocities
from couloir.store import Store
from couloir.trajectory import Trajectory

X = Coordinate(0, "x")
WELL = ToyEngine(potentials.double_well(), kT=0.35, time_step=0.01, friction=1.0, threads=1)
COLD = ToyEngine(potentials.double_well(), kT=0.12, time_step=0.01, friction=1.0, threads=1)
A, B = X < -0.8, X > 0.8
STRIDE = 0.02
PILOT = Pilot(n_chains=10, n_steps=15)


@pytest.fixture(scope="module")
def reactive():
    """A path by hand: pilot runs must forget it."""
    line = np.linspace(-0.85, 0.85, 40)
    return [Trajectory(line[:, None, None], STRIDE)]


def placed(reactive, **settings):
    return TransitionInterfaceSampling.from_paths(reactive, WELL, A, B, along=X, seed=1, pilot=PILOT, max_duration=100, **settings)


def test_interfaces_lie_between_a_and_b_and_a_good_share_of_paths_reaches_each(reactive):
    sampling = placed(reactive)
    levels = np.array(sampling.interfaces)
    assert levels[0] == -0.8
    assert levels[-1] < 0.8
    assert 2 <= len(levels) <= 8
    samples = sampling.run(n_cycles=50, seed=2, n_sets=6, discard=10)
    local = samples.crossing.local
    assert (local > 0.08).all()
    assert (local[:-1] < 0.75).all()
    assert "rare-crossing" not in [f.code for f in samples.crossing.findings]


def test_paths_are_moved_as_often_as_it_takes_for_all_to_last_as_long_as_those_in_a(reactive):
    sampling = placed(reactive)
    assert sampling.shots == 1
    warm = ToyEngine(potentials.double_well(), kT=0.2, time_step=0.01, friction=1.0, threads=1)
    deep = TransitionInterfaceSampling.from_paths(reactive, warm, X < -0.4, B, along=X, seed=1, pilot=PILOT, max_duration=10_000)
    samples = deep.run(n_cycles=20, seed=2, n_sets=4)
    inside, outside = (samples.length[(samples.ensemble < 0) == there].sum() for there in (True, False))
    assert 0.3 < deep.shots * outside / inside < 3
    assert deep.shots > 1


def test_paths_from_a_to_b_serve_the_other_side_too(reactive):
    back = LinearCombination((X,), (-1.0,), "back")
    sampling = TransitionInterfaceSampling.from_paths(
        reactive, WELL, back < -0.8, back > 0.8, along=back, seed=1, pilot=PILOT, max_duration=100
    )
    assert sampling.interfaces[0] == -0.8
    assert 2 <= len(sampling.interfaces) <= 8


def test_of_an_ensemble_paths_of_all_chains_that_hold_no_frame_of_a_first_one_are_started_from(reactive):
    n = 100  # of each of two chains; the first thirty still hold frames of their first path
    paths = tuple(replace(reactive[0], positions=reactive[0].positions.copy()) for _ in range(2 * n))
    step = np.tile(np.arange(n), 2)
    found = PathEnsemble(paths, np.repeat([0, 1], n), step, np.ones(2 * n), step >= 30, {"accepted": np.full(2, n)}, 0)
    seen = []

    def capture(sampling, given, **_):
        ids = {id(path.positions): i for i, path in enumerate(paths)}
        seen.extend(ids[id(path.positions)] for path in given if id(path.positions) in ids)
        return sampling

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("couloir.sampling.interface_sampling.both_ways", lambda engine, given, seed, key: list(given))
        patch.setattr("couloir.sampling.interface_sampling.place", capture)
        TransitionInterfaceSampling.from_paths(found, WELL, A, B, along=X, seed=1, max_duration=100)
    assert len(seen) == 64
    assert (step[seen] >= 30).all()
    assert np.bincount(found.chain[seen]).tolist() == [32, 32]


def test_even_the_shortest_pilot_forgets_that_the_given_paths_came_to_b(reactive):
    # of what leaves A at this temperature, one path in thousands comes to B
    short = Pilot(n_chains=6, n_steps=1)
    sampling = TransitionInterfaceSampling.from_paths(reactive, COLD, A, B, along=X, seed=1, pilot=short, max_duration=100)
    assert len(sampling.interfaces) > 3
    left = departures(sampling.first[:14], A, B)
    assert len(left) >= 6
    assert all(X.evaluate(path.positions).max() < 0.0 for path in left)


def test_a_run_goes_on_until_the_relative_error_is_reached_and_not_much_longer(reactive):
    sampling = placed(reactive)
    samples = sampling.run(relative_error=0.25, seed=3, n_sets=4)
    rate = samples.rate
    assert rate.rate.relative_error <= 0.25
    assert samples.step.max() >= 100
    rough = sampling.run(relative_error=0.9, seed=3, n_sets=4)
    assert rough.step.max() <= samples.step.max()
    assert rough.step.min() == rough.step.max() // 10 + 1


def test_a_budget_that_ends_before_the_error_is_reached_is_said_so(reactive):
    sampling = TransitionInterfaceSampling(WELL, A, B, X, (-0.8, -0.5, -0.2), max_duration=100)
    samples = sampling.run(reactive, 20, relative_error=0.01, seed=4, n_sets=2)
    [finding] = [f for f in samples.findings if f.code == "rate-uncertain"]
    assert "0.01 after 20 cycles" in finding.message


def test_pilot_runs_and_rounds_go_on_from_a_store_bit_for_bit(reactive, tmp_path):
    whole = placed(reactive).run(relative_error=2.0, n_cycles=110, seed=3, n_sets=2)

    def stop_at_seven(done, _):
        if done == 7:
            raise KeyboardInterrupt

    store = Store(tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        placed(reactive, store=store).run(n_cycles=20, seed=3, n_sets=2, store=store, on_progress=stop_at_seven)
    again = placed(reactive, store=store)
    assert again.interfaces == placed(reactive).interfaces
    found = again.run(relative_error=2.0, n_cycles=110, seed=3, n_sets=2, store=store)
    np.testing.assert_array_equal(found.maximum, whole.maximum)
    with pytest.raises(StoreError, match="different seed"):
        TransitionInterfaceSampling.from_paths(reactive, WELL, A, B, along=X, seed=2, pilot=PILOT, max_duration=100, store=store)


def test_the_next_interface_is_where_the_share_is_nearest():
    maxima, back = np.arange(1.0, 11.0), np.zeros(10, dtype=bool)
    assert next_level(maxima, back) == 8.0  # 8, 9 and 10 reach it
    near = back.copy()
    near[-2:] = True
    assert next_level(maxima, near) is None
    assert next_level(np.array([1.0, 2.0, 2.0, 2.0, 9.0, 9.0]), np.array([0, 0, 0, 0, 0, 1], dtype=bool)) == 9.0
    assert next_level(np.full(10, 3.0), back) is None


def test_a_state_without_a_limit_along_the_order_parameter_is_refused():
    with pytest.raises(DataError, match="no limit along x"):
        boundary(Coordinate(0, "y") < 0.0, X)


def test_paths_that_are_cut_off_are_found(reactive):
    sampling = TransitionInterfaceSampling(WELL, A, B, X, (-0.8, -0.6), max_duration=1.5)
    samples = sampling.run(reactive, 40, seed=1, n_sets=4)
    [finding] = [f for f in samples.rate.findings if f.code == "paths-cut"]
    assert "[0-]" in finding.message


def test_a_run_without_an_end_is_refused(reactive):
    sampling = TransitionInterfaceSampling(WELL, A, B, X, (-0.8,), max_duration=50)
    with pytest.raises(DataError, match="says when to stop"):
        sampling.run(reactive, seed=1)
    with pytest.raises(DataError, match="positive"):
        sampling.run(reactive, 10, relative_error=0.0, seed=1)


def test_every_walker_gives_the_last_of_the_paths_by_which_it_left():
    sampling = TransitionInterfaceSampling(WELL, A, B, X, (-0.8,), max_duration=100)
    found = leave(sampling, [WELL.state(-1.0)] * 3, STRIDE, seed=1)
    assert len(found) == len({path.positions.tobytes() for path in found}) == 3 * TIMES_KEPT
    assert all(sampling.ensembles[1].accepts(path) for path in found)


def test_the_cost_of_placement_is_that_of_all_dynamics(reactive, monkeypatch):
    done = []
    propagate = ToyEngine.propagate

    def counted(self, states, **settings):
        runs = propagate(self, states, **settings)
        done.append(sum(len(run) for run in runs))  # without the first frame
        return runs

    monkeypatch.setattr(ToyEngine, "propagate", counted)
    sampling = placed(reactive)
    assert sampling.placement_force_evaluations == 2 * sum(done)  # two steps between frames
    done.clear()
    start = TransitionInterfaceSampling(WELL, A, B, X, (-0.8, -0.5), max_duration=100)
    first = initial_paths(start, WELL.state(-1.0), stride=STRIDE, seed=2, n_shots=4)
    assert first.force_evaluations == 2 * sum(done)


def test_the_default_maximum_length_grows_until_stays_in_a_fit(reactive, tmp_path):
    jump = [Trajectory(np.array([-0.81, -0.5, 0.0, 0.5, 0.81])[:, None, None], STRIDE)]  # 0.08 ps: 20 times that is short in A
    store = Store(tmp_path / "s")
    settings = {"along": X, "seed": 1, "pilot": PILOT, "store": store}
    sampling = TransitionInterfaceSampling.from_paths(jump, WELL, A, B, **settings)
    assert sampling.max_duration > 6.0
    samples = sampling.run(n_cycles=40, seed=3, n_sets=4)
    assert "paths-cut" not in [f.code for f in samples.findings]
    assert TransitionInterfaceSampling.from_paths(jump, WELL, A, B, **settings).max_duration == sampling.max_duration
    assert placed(reactive).max_duration == 100


def test_the_default_maximum_length_grows_even_where_it_cuts_every_stay_in_a(reactive):
    out = [with_velocities(WELL, Trajectory(np.array([-1.0, -0.79, -1.0])[:, None, None], STRIDE), seed=1)]  # from deep inside
    short = TransitionInterfaceSampling(WELL, A, B, X, (-0.8,), max_duration=2 * STRIDE)
    settings = {"starts": [out[0].state(0)], "like": reactive[0], "seed": 2, "store": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("couloir.sampling.interface_placement.leave", lambda *_: FirstPaths(out[:1]))
        sampling, _, inside = _around_a(short, **settings, longer=True)
        assert sampling.max_duration >= STAYS * max(len(path) for path in inside) * STRIDE
        with pytest.raises(DataError, match="did not leave it again within max_duration"):
            _around_a(short, **settings, longer=False)


def test_dynamics_out_of_a_is_not_done_again_when_a_store_holds_it(reactive, tmp_path, monkeypatch):
    store = Store(tmp_path / "s")
    one = placed(reactive, store=store)
    monkeypatch.setattr("couloir.sampling.interface_placement.leave", lambda *_: pytest.fail("left A again"))
    again = placed(reactive, store=store)
    assert (again.interfaces, again.placement_force_evaluations) == (one.interfaces, one.placement_force_evaluations)


def test_paths_are_picked_evenly_and_once():
    line = Trajectory(np.zeros((3, 1, 1)), STRIDE)
    paths = [Trajectory(line.positions + k, STRIDE) for k in range(9)]
    assert [path.positions[0, 0, 0] for path in evenly([paths[0], *paths], 3)] == [0, 4, 8]
    assert evenly(paths[:2] * 3, 5) == paths[:2]
