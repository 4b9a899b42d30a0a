"""Transition path sampling: the paths of long dynamics, from paths that leave no trace; stored once and continued exactly."""

import os
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from couloir.analysis.timeseries import statistical_inefficiency
from couloir.cv import Features, LearnedCommittor
from couloir.errors import DataError, SimulationError
from couloir.sampling import ToyEngine, committor, potentials
from couloir.sampling.path_moves import ShootingMove, Trial
from couloir.sampling.path_sampling import TransitionPathSampling
from couloir.sampling.reactive import ReactiveSeeds
from couloir.sampling.selectors import GaussianSelector, LorentzianSelector
from couloir.store import Store
from couloir.trajectory import Trajectory

WELL = potentials.double_well(2.0, harmonic=4.0)
X, Y = WELL.cvs()
A, B = X < -0.8, X > 0.8
OVERDAMPED = ToyEngine(WELL, kT=1.0, time_step=1e-3, threads=1)
UNDERDAMPED = ToyEngine(WELL, kT=1.0, time_step=5e-3, friction=2.0, threads=1)
STRIDE = 2e-2
LIMIT = 4.0
MOVES = [ShootingMove.one_way(), ShootingMove.two_way(), ShootingMove.aimless(3), ShootingMove.spring(4, 0.2)]


@cache
def dynamics(engine=OVERDAMPED, n=8, duration=1000.0):
    return tuple(engine.propagate([engine.state(-1.0, 0.0)] * n, duration=duration, stride=STRIDE, velocities=True, seed=5))


@cache
def reactive_durations(engine=OVERDAMPED):
    """Times from the last frame in A to the first in B, and from B to A, which are alike by time reversal."""
    found = []
    for run in dynamics(engine):
        state = A.contains(run.positions).astype(int) - B.contains(run.positions).astype(int)
        at = np.flatnonzero(state)
        hops = np.flatnonzero(np.diff(state[at]) != 0)
        found += [(at[h + 1] - at[h]) * STRIDE for h in hops]
    return np.array([d for d in found if 2 * STRIDE <= d <= LIMIT])


def straight(n=60, sign=1.0):
    """A path that dynamics would never take: along a line."""
    x = sign * np.linspace(-0.9, 0.9, n)
    return Trajectory(np.stack([x, np.zeros(n)], axis=1)[:, None, :], STRIDE)


def sampling(engine=OVERDAMPED, move=None, **settings):
    return TransitionPathSampling(engine, A, B, move or ShootingMove.one_way(), **{"max_duration": LIMIT, **settings})


def test_paths_take_as_long_as_those_of_long_dynamics():
    check_durations(OVERDAMPED, ShootingMove.one_way(), 8000)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("engine", "move", "n_paths"),
    [
        (OVERDAMPED, ShootingMove.two_way(GaussianSelector(X, 0.0, 0.4)), 8000),
        (UNDERDAMPED, ShootingMove.one_way(), 8000),
        (UNDERDAMPED, ShootingMove.two_way(), 8000),
        (OVERDAMPED, ShootingMove.spring(8, 0.05), 20000),
        (UNDERDAMPED, ShootingMove.aimless(3), 12000),
    ],
    ids=["overdamped two-way near the top", "underdamped one-way", "underdamped two-way", "overdamped spring", "underdamped aimless"],
)
def test_paths_of_every_move_take_as_long_as_those_of_long_dynamics(engine, move, n_paths):
    check_durations(engine, move, n_paths)


def check_durations(engine, move, n_paths):
    sampled = sampling(engine, move).run(straight(), n_paths, 20, seed=11, run_until_decorrelated=True)
    brute = reactive_durations(engine)
    estimate = sampled.mean(sampled.durations, "ps")
    brute_error = brute.std() / np.sqrt(len(brute))
    assert estimate.standard_error < 0.06 * brute.mean()
    assert abs(estimate.value - brute.mean()) < 4.5 * np.hypot(estimate.standard_error, brute_error)
    series = sampled._series(sampled.durations)
    apart = int(np.ceil(2 * max(statistical_inefficiency(s) for s in series)))  # what is left is independent
    independent = np.concatenate([s[::apart] for s in series])
    assert len(independent) > 100
    assert stats.ks_2samp(independent, brute).pvalue > 1e-5


def test_every_path_runs_from_a_to_b_and_touches_them_only_at_its_ends():
    sampled = sampling().run(straight(), 100, 4, seed=2)
    for path in sampled.paths:
        assert np.flatnonzero(A.contains(path.positions)).tolist() == [0]
        assert np.flatnonzero(B.contains(path.positions)).tolist() == [len(path) - 1]
    assert sampled.durations.max() <= LIMIT


def same(one, other):
    assert [len(p) for p in one.paths] == [len(p) for p in other.paths]
    for p, q in zip(one.paths, other.paths, strict=True):
        assert (p.positions == q.positions).all()
        assert (p.velocities is None) == (q.velocities is None)
        assert p.velocities is None or (p.velocities == q.velocities).all()
    for name in ("chain", "step", "multiplicity", "decorrelated"):
        assert (getattr(one, name) == getattr(other, name)).all()
    assert all((one.outcomes[k] == other.outcomes[k]).all() for k in one.outcomes)
    assert one.force_evaluations == other.force_evaluations
    assert (one.shooting == other.shooting).all()


@pytest.mark.parametrize("engine", [OVERDAMPED, UNDERDAMPED], ids=["overdamped", "underdamped"])
@pytest.mark.parametrize("move", MOVES, ids=str)
def test_ten_steps_and_twenty_on_the_same_store_are_twenty_at_once(tmp_path, engine, move):
    run = sampling(engine, move)
    with Store(tmp_path / "halves.db") as store:
        run.run(straight(), 30, 3, seed=7, store=store)
    with Store(tmp_path / "halves.db") as store:
        continued = run.run(straight(), 60, 3, seed=7, store=store)
        again = run.run(straight(), 60, 3, seed=7, store=store)
        early = run.run(straight(), 30, 3, seed=7, store=store)
    with Store() as store:
        at_once = run.run(straight(), 60, 3, seed=7, store=store)
    same(continued, at_once)
    same(again, at_once)
    same(run.run(straight(), 60, 3, seed=7), at_once)
    same(early, run.run(straight(), 30, 3, seed=7))
    assert at_once.outcomes["accepted"].sum() > 0


def test_an_interrupted_run_keeps_its_steps_and_continues_as_if_nothing_happened():
    def interrupt(done, asked):
        if done >= 30:
            raise KeyboardInterrupt

    run, store = sampling(), Store()
    with pytest.raises(KeyboardInterrupt):
        run.run(straight(), 60, 3, seed=7, store=store, on_progress=interrupt)
    assert sum(len(chunk["reason"]) for chunk in store.chunks("paths/steps")) == 10
    same(run.run(straight(), 60, 3, seed=7, store=store), run.run(straight(), 60, 3, seed=7))


WRITER = """
import sys
import numpy as np
from couloir.sampling import ShootingMove, ToyEngine, TransitionPathSampling, potentials
from couloir.sampling import path_store
from couloir.store import Store
from couloir.trajectory import Trajectory
path_store.COMMIT_SECONDS = 0.0  # every step
well = potentials.double_well(2.0, harmonic=4.0)
x, _ = well.cvs()
line = np.linspace(-0.9, 0.9, 60)
first = Trajectory(np.stack([line, np.zeros(60)], axis=1)[:, None, :], 2e-2)
engine = ToyEngine(well, kT=1.0, time_step=5e-3, friction=2.0, threads=1)
run = TransitionPathSampling(engine, x < -0.8, x > 0.8, ShootingMove.spring(4, 0.2), max_duration=4.0)
with Store(sys.argv[1]) as store:
    run.run(first, 10**6, 3, seed=7, store=store, on_progress=lambda done, asked: print(done, flush=True))
"""


def test_a_killed_run_keeps_its_steps_and_continues_as_if_nothing_happened(tmp_path):
    path = tmp_path / "killed.db"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    told = int(process.stdout.readline())
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)  # while it writes, with no chance to clean up
    rest = process.stdout.read().split("\n")
    seen = max([told] + [int(line) for line in rest[:-1] if line])
    process.wait()
    run = sampling(UNDERDAMPED, ShootingMove.spring(4, 0.2))
    with Store(path) as store:
        kept = sum(len(chunk["reason"]) for chunk in store.chunks("paths/steps"))
        assert 3 * kept >= seen >= 3  # a step is told of after it is written
        n = 3 * (kept + 5)
        continued = run.run(straight(), n, 3, seed=7, store=store)
    same(continued, run.run(straight(), n, 3, seed=7))


def test_frames_that_a_path_shares_with_its_parent_are_stored_once():
    store = Store()
    sampled = sampling().run(straight(), 200, 2, seed=3, store=store)
    moved = [path for path, step in zip(sampled.paths, sampled.step, strict=True) if step > 0]
    stored = sum(len(chunk["positions"]) for chunk in store.chunks("paths/steps") if "positions" in chunk)
    fresh = 0
    for c in range(2):
        mine = [sampled.paths[i] for i in np.flatnonzero(sampled.chain == c)]
        for parent, child in pairwise(mine):
            known = {frame.tobytes() for frame in parent.positions}
            fresh += sum(frame.tobytes() not in known for frame in child.positions)
    assert stored == fresh < 0.75 * sum(len(path) for path in moved)


@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.two_way()], ids=str)
def test_paths_with_a_frame_of_the_first_path_have_no_weight(move):
    seed_path = straight()
    sampled = sampling(move=move).run(seed_path, 400, 4, seed=4)
    seeds = {frame.tobytes() for frame in seed_path.positions}
    for path, free, weight in zip(sampled.paths, sampled.decorrelated, sampled.weights, strict=True):
        assert free == (not any(frame.tobytes() in seeds for frame in path.positions))
        assert (weight > 0) == free
    assert 0 < sampled.decorrelated.sum() < len(sampled)
    assert sampled.weights.sum() == pytest.approx(1.0)


def test_sampling_until_decorrelated_counts_only_paths_free_of_the_first_ones():
    sampled = sampling().run(straight(), 40, 4, seed=5, run_until_decorrelated=True)
    free = sampled.decorrelated
    assert sampled.multiplicity[free].sum() >= 40
    assert set(sampled.chain[free]) == {0, 1, 2, 3}
    assert sampled.multiplicity.sum() > 40
    assert not sampled.findings
    store = Store()
    sampling().run(straight(), 12, 4, seed=5, store=store)
    same(sampling().run(straight(), 40, 4, seed=5, store=store, run_until_decorrelated=True), sampled)


def test_sampling_until_decorrelated_gives_up_where_no_move_is_ever_accepted():
    class Stuck(ShootingMove):
        def propose(self, engine, paths, ensemble, *, seeds, max_frames, anchors):
            return [Trial(None, False, "ensemble", -np.inf, 1, -1, "forward", None, 1) for _ in paths]

    sampled = sampling(move=Stuck(1)).run(straight(), 6, 2, seed=1, run_until_decorrelated=True)
    assert sampled.n_steps == 30
    assert "first-path-remains" in [f.code for f in sampled.findings]


def test_chains_that_keep_their_first_path_are_reported():
    sampled = sampling().run(straight(), 4, 4, seed=5)
    assert [f.code for f in sampled.diagnose()] == ["first-path-remains"]
    with pytest.raises(DataError, match="no path is decorrelated"):
        sampled.mean(sampled.durations)


def test_outcomes_account_for_every_step_of_every_chain():
    sampled = sampling(max_duration=1.3).run(straight(), 200, 4, seed=6)
    assert (sum(sampled.outcomes.values()) == 50).all()
    assert sampled.multiplicity.sum() == 200
    assert all((np.bincount(sampled.chain[sampled.step > 0], minlength=4) == sampled.outcomes["accepted"]).tolist())
    assert 0 < sampled.acceptance < 1


def test_dynamics_that_breaks_down_is_a_counted_rejection():
    class Fragile(ToyEngine):
        def propagate(self, states, **settings):
            done = super().propagate(states, **settings)
            bad = [Trajectory(t.positions, t.stride, last=t.last, ended="failed") if len(t) > 15 else t for t in done]
            if any(t.ended == "failed" for t in bad):
                error = SimulationError("positions stopped being finite")
                error.partial = bad
                raise error
            return bad

    sampled = sampling(Fragile(WELL, kT=1.0, time_step=1e-3, threads=1)).run(straight(), 80, 4, seed=1)
    assert sampled.outcomes["failed"].sum() > 0
    assert sum(int(n.sum()) for n in sampled.outcomes.values()) == 80


def test_first_paths_are_cut_to_the_part_that_reacts_and_turned_when_they_run_from_b_to_a():
    ahead = Trajectory(np.concatenate([straight().positions[:5][::-1], straight().positions, straight().positions[::-1][1:9]]), STRIDE)
    expected = sampling().run(straight(), 4, 1, seed=1).paths[0]
    inside = A.contains(expected.positions)
    assert inside.tolist().count(True) == 1
    for given in (ahead, Trajectory(straight().positions[::-1], STRIDE)):
        first = sampling().run(given, 4, 1, seed=1).paths[0]
        assert (first.positions == expected.positions).all()


def test_a_path_turned_round_has_its_velocities_reversed():
    x = straight().positions
    v = np.full_like(x, 0.3)
    first = sampling(UNDERDAMPED).run(Trajectory(x[::-1], STRIDE, v), 2, 1, seed=1).paths[0]
    assert (first.velocities == -0.3).all()


def test_first_paths_are_dealt_to_the_chains_in_turn():
    sampled = sampling().run([straight(60), straight(80)], 4, 4, seed=1)
    lengths = sampled.lengths[sampled.step == 0]
    assert lengths[0] == lengths[2] < lengths[1] == lengths[3]


def test_what_a_generative_model_led_to_is_a_first_path_too():
    none = np.zeros(1, dtype=np.int64)
    found = ReactiveSeeds((straight(),), none, none, none, np.zeros((0, 2, 1, 2)), None, {})
    same(sampling().run(found, 8, 2, seed=1), sampling().run(straight(), 8, 2, seed=1))


def test_the_result_does_not_depend_on_the_neighbours_of_a_chain():
    alone, among = (sampling().run(straight(), 30 * n, n, seed=9) for n in (1, 3))
    mine = among.chain == 0
    assert (alone.durations == among.durations[mine]).all()
    assert (alone.multiplicity == among.multiplicity[mine]).all()


def test_without_a_limit_paths_may_take_ten_times_as_long_as_the_longest_first_path():
    first = [straight(60), straight(80)]
    longest = max(len(path) for path in sampling().run(first, 2, 2, seed=1).paths if len(path) > 60)
    settings = {"max_duration": 10 * (longest - 1) * STRIDE}
    same(sampling(max_duration=None).run(first, 40, 2, seed=1), sampling(**settings).run(first, 40, 2, seed=1))


@pytest.mark.parametrize(
    ("first", "settings", "message"),
    [
        ([], {}, "no first paths"),
        (Trajectory(straight().positions[:30], STRIDE), {}, "never in B"),
        (Trajectory(straight().positions[10:20], STRIDE), {}, "never in A and B"),
        (straight(400), {}, "longer than max_duration"),
        (straight(2), {}, "no frame between A and B"),
        ([straight(), Trajectory(straight().positions, 2 * STRIDE)], {}, "differ in atoms or stride"),
        (straight(), {"max_duration": STRIDE}, "holds no path"),
    ],
)
def test_first_paths_that_do_not_fit_are_refused(first, settings, message):
    with pytest.raises(DataError, match=message):
        sampling(**settings).run(first, 4, 2, seed=1)


def test_states_that_overlap_are_refused():
    with pytest.raises(DataError, match="overlap"):
        TransitionPathSampling(OVERDAMPED, X < 0.2, X > -0.2, max_duration=LIMIT).run(straight(), 4, 2, seed=1)


@pytest.fixture(scope="module")
def learned():
    """A committor learned from the outcomes of a few shots."""
    x = np.random.default_rng(1).uniform(-0.8, 0.8, size=(100, 1))
    states = [OVERDAMPED.state(float(one), 0.0) for one in x[:, 0]]
    shot = OVERDAMPED.propagate([s for s in states for _ in range(8)], duration=LIMIT, record_stride=STRIDE, stop=A | B, seed=3)
    hits = np.array([B.contains(t.last.positions[None])[0] for t in shot]).reshape(-1, 8).sum(axis=1)
    fitted = LearnedCommittor((), max_epochs=40, learning_rate=0.1).fit(x, 8 - hits, hits, seed=1)
    return fitted.coordinate(Features(indices=(0,)), output="p"), fitted.coordinate(Features(indices=(0,)))


def test_a_learned_committor_puts_shooting_points_near_one_half(learned):
    p, _ = learned
    near_half = LorentzianSelector(p, 0.5, 0.1)
    selected = sampling(move=ShootingMove.two_way(near_half)).run(straight(), 400, 8, seed=12)
    anywhere = sampling(move=ShootingMove.two_way()).run(straight(), 400, 8, seed=12)
    at = {}
    for name, run in (("selected", selected), ("anywhere", anywhere)):
        moved = np.flatnonzero(run.shooting >= 0)
        at[name] = p.evaluate(np.array([run.paths[i].positions[run.shooting[i]] for i in moved]))
    assert np.abs(at["selected"] - 0.5).mean() < 0.6 * np.abs(at["anywhere"] - 0.5).mean()


@pytest.mark.statistical
def test_selection_by_a_learned_committor_leaves_no_bias(learned):
    check_durations(OVERDAMPED, ShootingMove.two_way(LorentzianSelector(learned[0], 0.5, 0.1)), 8000)


def test_transition_states_fall_either_way(learned):
    p, logit = learned
    sampled = sampling(move=ShootingMove.two_way()).run(straight(), 400, 8, seed=12)
    shot = sampled.transition_states(30)
    free = sampled.decorrelated
    points = {p.positions[i].tobytes() for p, i in zip(np.array(sampled.paths, dtype=object)[free], sampled.shooting[free], strict=True)}
    assert len(shot) == 30
    assert all(state.positions.tobytes() in points for state in shot)
    by_p, by_logit = sampled.transition_states(30, committor=p), sampled.transition_states(30, committor=logit)
    # p_B of shooting points spreads like p(1 - p) with the errors of the shots: 0.25, here 30 times
    for states, spread in ((shot, 0.37), (by_p, 0.15), (by_logit, 0.15)):
        found = committor(OVERDAMPED, states, A, B, standard_error=0.1, max_duration=LIMIT, stride=STRIDE, seed=2)
        assert found.p.mean() == pytest.approx(0.5, abs=0.15)
        assert found.p.std() < spread
