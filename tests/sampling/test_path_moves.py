"""Shooting moves keep the probability of paths: exactly on chains that can be enumerated, and on dynamics by brute force."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from markov_chain import MarkovChain, as_path, neighbours, sites_of
from scipy import stats

from couloir.cv.geometric import Coordinate
from couloir.errors import DataError, SimulationError, StoreError
from couloir.sampling import ToyEngine, potentials
from couloir.sampling.path_ensembles import TransitionEnsemble
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_sampling import TransitionPathSampling
from couloir.sampling.selectors import GaussianSelector, LorentzianSelector, TabulatedSelector, density_ratio_selector
from couloir.store import Store
from couloir.streams import stream
from couloir.trajectory import Trajectory

X = Coordinate(0, "x")
N_SITES, LONGEST = 5, 12


WALK = MarkovChain([0.0, 1.0, 1.6, 0.7, 0.1], neighbours(N_SITES, 0.45))
ENDS = TransitionEnsemble(X < 0.5, X > N_SITES - 1.5)


@cache
def enumerated():
    """Return every path from A to B of at most LONGEST frames, and its probability."""
    paths, weights, growing = [], [], [((0,), WALK.pi[0])]
    while growing:
        path, weight = growing.pop()
        for j in np.flatnonzero(WALK.P[path[-1]]):
            longer, w = (*path, int(j)), weight * WALK.P[path[-1], j]
            if j == N_SITES - 1:
                paths.append(longer)
                weights.append(w)
            elif j != 0 and len(longer) < LONGEST:
                growing.append((longer, w))
    return paths, np.array(weights) / np.sum(weights)


RATIO = density_ratio_selector(X, np.repeat([1, 2, 3], [10, 50, 20]), np.repeat(np.arange(5), [90, 30, 10, 20, 50]), bins=5)

MOVES = {
    "one way": ShootingMove.one_way(),
    "two way": ShootingMove.two_way(),
    "one way, Gaussian": ShootingMove.one_way(GaussianSelector(X, 1.5, 0.8)),
    "aimless": ShootingMove.aimless(1),
    "spring": ShootingMove.spring(2, 0.5),
    "two way, Lorentzian": ShootingMove.two_way(LorentzianSelector(X, 3.0, 0.7)),
    "one way, density ratio": ShootingMove.one_way(RATIO),
    "two way, density ratio": ShootingMove.two_way(RATIO),
}


@pytest.mark.parametrize("name", MOVES)
def test_exact_path_samples_stay_exact_under_moves(name):
    sites, exact = enumerated()
    n = 2000
    start = stream(3, "start").choice(len(sites), n, p=exact)
    chains = [as_path(sites[i]) for i in start]
    anchors = [None] * n
    for step in range(3):
        seeds = [10 * i + step for i in range(n)]
        trials = MOVES[name].propose(WALK, chains, ENDS, seeds=seeds, max_frames=LONGEST, anchors=anchors)
        anchors = [t.anchor for t in trials]
        chains = [t.path if t.path is not None else c for c, t in zip(chains, trials, strict=True)]
    index = {path: i for i, path in enumerate(sites)}
    found = np.bincount([index[sites_of(c)] for c in chains], minlength=len(sites))
    changed = np.mean([index[sites_of(c)] != i for c, i in zip(chains, start, strict=True)])
    assert changed > 0.1  # or nothing would have been tested
    lengths = np.array([len(path) for path in sites])
    for groups in (lengths, np.minimum(np.cumsum(exact) * 25, 24).astype(int)):  # how long they are, and which they are
        expected, counts = np.bincount(groups, exact) * n, np.bincount(groups, found)
        kept = expected > 0
        chi2 = np.sum((counts[kept] - expected[kept]) ** 2 / expected[kept])
        assert stats.chi2.sf(chi2, kept.sum() - 1) > 5e-5


WELL = potentials.double_well(4.0, harmonic=4.0)
WX = WELL.cvs()[0]
WELL_PATHS = TransitionEnsemble(WX < -0.8, WX > 0.8)
STRIDE, MAX_FRAMES = 0.02, 400


def toy(friction=None):
    return ToyEngine(WELL, kT=2.0, time_step=2e-3, friction=friction, threads=1)


@cache
def brute_force(friction):
    """Return transition paths cut from long runs."""
    engine = toy(friction)
    states = [engine.state(-1.0, 0.0)] * 4
    paths = []
    for run in engine.propagate(states, duration=1200.0, stride=STRIDE, velocities=True, seed=7):
        x = run.positions[:, 0, 0]
        where = np.where(x <= -0.8, -1, np.where(x >= 0.8, 1, 0))
        at = np.flatnonzero(where)
        for i, j in pairwise(at):
            if where[i] == -1 and where[j] == 1 and j - i >= 2:
                v = None if run.velocities is None else run.velocities[i : j + 1]
                paths.append(Trajectory(run.positions[i : j + 1], STRIDE, v))
    return paths


@pytest.mark.parametrize("friction", [None, 2.0])
@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.two_way()], ids=str)
def test_lengths_of_paths_from_shooting_equal_brute_force(move, friction):
    engine, exact = toy(friction), brute_force(friction)
    n_chains, steps = 200, 8
    chains = [exact[i % len(exact)] for i in range(n_chains)]
    for step in range(steps):
        seeds = [1000 * step + i for i in range(n_chains)]
        trials = move.propose(engine, chains, WELL_PATHS, seeds=seeds, max_frames=MAX_FRAMES)
        chains = [t.path or c for c, t in zip(chains, trials, strict=True)]
    for chain in chains[:20]:
        WELL_PATHS.require(chain)
        if friction is not None:  # the velocities of the past were turned: they lead along the path
            seen = np.diff(chain.positions[:, 0, 0]) / STRIDE
            assert np.corrcoef(seen, (chain.velocities[1:, 0, 0] + chain.velocities[:-1, 0, 0]) / 2)[0, 1] > 0.6
    assert len(exact) > 100
    assert np.mean([c is not exact[i % len(exact)] for i, c in enumerate(chains)]) > 0.6
    assert stats.ks_2samp([len(p) for p in chains], [len(p) for p in exact]).pvalue > 1e-4


def first(friction=None):
    return brute_force(friction)[0]


def test_a_trial_depends_on_its_path_and_seed_alone():
    paths = brute_force(None)[:3]
    settings = {"max_frames": MAX_FRAMES}
    together = ShootingMove.one_way().propose(toy(), paths, WELL_PATHS, seeds=[4, 5, 6], **settings)
    for path, seed, seen in zip(paths, (4, 5, 6), together, strict=True):
        (alone,) = ShootingMove.one_way().propose(toy(), [path], WELL_PATHS, seeds=[seed], **settings)
        assert (alone.reason, alone.frame_old, alone.log_ratio) == (seen.reason, seen.frame_old, seen.log_ratio)
        if alone.path is not None:
            np.testing.assert_array_equal(alone.path.positions, seen.path.positions)


@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.two_way()])
def test_giving_up_early_saves_as_much_among_neighbours_as_alone(move):
    paths = sorted(brute_force(None)[:40], key=len)
    settings = {"max_frames": MAX_FRAMES}
    together = move.propose(toy(), paths, WELL_PATHS, seeds=range(len(paths)), **settings)
    alone = [move.propose(toy(), [path], WELL_PATHS, seeds=[i], **settings)[0] for i, path in enumerate(paths)]
    assert any(t.reason == "acceptance" and t.log_ratio == -np.inf for t in alone)  # some are given up
    assert [(t.reason, t.log_ratio, t.force_evaluations) for t in together] == [(t.reason, t.log_ratio, t.force_evaluations) for t in alone]


def test_one_way_keeps_the_shared_frames_to_the_last_bit():
    old = first(2.0)
    trials = ShootingMove.one_way().propose(toy(2.0), [old] * 60, WELL_PATHS, seeds=range(60), max_frames=MAX_FRAMES)
    accepted = [t for t in trials if t.accepted]
    assert {t.direction for t in accepted} == {"forward", "backward"}
    for trial in accepted:
        a, b = trial.shared
        shift = trial.frame_new - trial.frame_old
        np.testing.assert_array_equal(trial.path.positions[a + shift : b + shift + 1], old.positions[a : b + 1])
        np.testing.assert_array_equal(trial.path.velocities[a + shift : b + shift + 1], old.velocities[a : b + 1])
        assert trial.force_evaluations == (len(trial.path) - (b - a + 1)) * 10


def test_paths_longer_than_allowed_are_refused_as_such():
    old = first()
    trials = ShootingMove.two_way().propose(toy(), [old] * 200, WELL_PATHS, seeds=range(200), max_frames=len(old) // 2)
    assert {t.reason for t in trials} >= {"max length"}
    assert all(len(t.path) <= len(old) // 2 for t in trials if t.accepted)


def test_dynamics_that_breaks_down_is_a_counted_rejection():
    wild = ToyEngine(WELL, kT=2.0, time_step=2.0, threads=1)
    path = Trajectory(first().positions, 20.0)
    trials = ShootingMove.one_way().propose(wild, [path] * 20, TransitionEnsemble(WX < -1e9, WX > 1e9), seeds=range(20), max_frames=300)
    assert {t.reason for t in trials} == {"failed"}
    assert all(t.path is None and t.frame_new == -1 for t in trials)


@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.two_way()], ids=str)
def test_a_limit_that_changes_the_lengths_of_paths_is_reported(move):
    found = {}
    for longest in (12, 24):
        sampling = TransitionPathSampling(WALK, ENDS.region_a, ENDS.region_b, move, max_duration=longest - 1)
        paths = sampling.run(as_path((0, 1, 2, 3, 4)), 1800, 60, seed=1)
        found[longest] = "paths-cut" in [f.code for f in paths.diagnose()]
    assert found == {12: True, 24: False}  # mean lengths are 7.0 and 7.5


@pytest.mark.parametrize("driving", [{"noise": [1.0, 0.1]}, {"noise": 0.0}, {"driven": ["y"]}])
def test_dynamics_that_is_not_reversible_is_refused(driving):
    engine = ToyEngine(WELL, kT=2.0, time_step=2e-3, threads=1, **driving)
    with pytest.raises(DataError, match="does not run backwards"):
        ShootingMove.one_way().propose(engine, [first()], WELL_PATHS, seeds=[1], max_frames=99)


def test_a_constant_force_is_reversible_on_a_line_and_drives_on_a_circle():
    assert ToyEngine(WELL, drift=[0.0, 3.0]).reversible
    assert ToyEngine(WELL, kT=2.0, friction=3.0, masses=4.0).reversible
    circle = potentials.hidden_barrier(periodic=True)
    around = [1.0 if period is not None else 0.0 for period in circle.periods]
    assert any(around)
    assert ToyEngine(circle).reversible
    assert not ToyEngine(circle, drift=around).reversible


def test_an_engine_that_cannot_run_at_all_says_why():
    class Broken(MarkovChain):
        def propagate(self, *_, **__):
            raise SimulationError("the device has no memory left")

    broken = Broken(np.zeros(N_SITES), neighbours(N_SITES, 0.45))
    with pytest.raises(SimulationError, match="no memory left"):
        ShootingMove.one_way().propose(broken, [as_path((0, 1, 2, 3, 4))], ENDS, seeds=[1], max_frames=LONGEST)


def test_what_a_move_cannot_work_with_is_refused_before_any_dynamics():
    bare = Trajectory(first(2.0).positions, STRIDE)
    with pytest.raises(DataError, match="path 0 has no velocities"):
        ShootingMove.one_way().propose(toy(2.0), [bare], WELL_PATHS, seeds=[1], max_frames=99)
    with pytest.raises(DataError, match="one seed for each"):
        ShootingMove.one_way().propose(toy(), [first()], WELL_PATHS, seeds=[1, 2], max_frames=99)
    with pytest.raises(DataError, match="one anchor per chain"):
        ShootingMove.aimless(2).propose(toy(), [first()], WELL_PATHS, seeds=[1], max_frames=99)
    with pytest.raises(DataError, match="weight zero"):
        ShootingMove.one_way(GaussianSelector(WX, 100.0, 0.01)).propose(toy(), [first()], WELL_PATHS, seeds=[1], max_frames=99)
    with pytest.raises(DataError, match="width = 0"):
        LorentzianSelector(WX, 0.0, 0.0)


def test_one_way_shooting_without_noise_is_refused_as_it_would_return_the_old_path():
    old = first(2.0)
    settings = {"seeds": [1], "max_frames": MAX_FRAMES}
    for move in (ShootingMove.one_way(), ShootingMove.spring(2, 0.1)):
        with pytest.raises(DataError, match="next to no noise"):
            move.propose(toy(1e-9), [old], WELL_PATHS, anchors=[None], **settings)
        move.propose(toy(0.1), [old], WELL_PATHS, anchors=[None], **settings)
    ShootingMove.two_way().propose(toy(1e-9), [old], WELL_PATHS, **settings)  # draws velocities


def test_an_ensemble_says_why_a_path_is_not_its_own():
    x = first().positions
    cases = {"does not end in B": x[:-1], "does not start in A": x[1:], "already in A or B": np.concatenate([x, x[-1:]]), "2 frames": x[:2]}
    for message, positions in cases.items():
        with pytest.raises(DataError, match=message):
            WELL_PATHS.require(Trajectory(positions, STRIDE))


def test_a_density_ratio_is_that_of_the_shares_of_points_in_each_bin():
    q, p = np.array([0, 10, 50, 20, 0]) + 1.0, np.array([90, 30, 10, 20, 50]) + 1.0
    ratio = (q / q.sum()) / (p / p.sum())
    np.testing.assert_allclose(RATIO.table, ratio, rtol=1e-14)
    path = as_path((-3, 0, 1, 2, 3, 4, 9, 4))
    np.testing.assert_allclose(RATIO.weights(path.positions), [0, *ratio, ratio[4], 0], rtol=1e-14)
    chosen = [ShootingMove.one_way(RATIO)._aim(path, seed, 99, None).frame for seed in range(4000)]
    share = np.bincount(chosen, minlength=8) / 4000
    expected = RATIO.weights(path.positions) / RATIO.weights(path.positions).sum()
    np.testing.assert_allclose(share, expected, atol=4.5 * 0.5 / np.sqrt(4000))


def test_a_density_ratio_needs_points_and_a_table_positive_weights():
    around = next(cv for cv in potentials.hidden_barrier(periodic=True).cvs() if cv.period is not None)
    whole = density_ratio_selector(around, np.array([0.0, 0.1]), np.array([0.2]), bins=4)
    assert whole.edges[::4] == (-around.period / 2, around.period / 2)
    for generated, sampled in (([], [1.0]), ([1.0], [np.nan]), ([1.0], [1.0])):
        with pytest.raises(DataError):
            density_ratio_selector(X, np.array(generated), np.array(sampled))
    with pytest.raises(DataError, match="not positive"):
        TabulatedSelector(X, (0, 1, 2), (1.0, 0.0))
    with pytest.raises(DataError, match="2 weights for 1 bins"):
        TabulatedSelector(X, (0, 1), (1.0, 2.0))
    with pytest.raises(DataError, match="do not increase"):
        TabulatedSelector(X, (0, 0), (1.0,))


def test_runs_with_other_tables_are_other_runs():
    def sampled(table, store):
        sampling = TransitionPathSampling(WALK, ENDS.region_a, ENDS.region_b, ShootingMove.one_way(TabulatedSelector(X, (0, 2, 4), table)))
        return sampling.run(as_path((0, 1, 2, 3, 4)), 4, 2, seed=1, store=store)

    with Store() as store:
        sampled((1.0, 2.0), store)
        sampled((1, 2), store)
        with pytest.raises(StoreError, match="different move"):
            sampled((1.0, 3.0), store)
