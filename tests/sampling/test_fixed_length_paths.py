"""Paths of a fixed number of frames: shooting keeps their probability, exactly on a chain, and on dynamics by brute force."""

from functools import cache
from itertools import product

import numpy as np
import pytest
from markov_chain import MarkovChain, as_path, sites_of
from scipy import stats

from couloir.cv.geometric import Coordinate
from couloir.errors import DataError, StoreError
from couloir.sampling import FixedLengthEnsemble, ToyEngine, TransitionEnsemble, potentials
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_sampling import TransitionPathSampling
from couloir.sampling.selectors import GaussianSelector, LorentzianSelector
from couloir.store import Store
from couloir.streams import stream
from couloir.trajectory import Trajectory

X = Coordinate(0, "x")
A, B = X < 0.5, X > 2.5
N_FRAMES = 7
FIXED = FixedLengthEnsemble(A, B, N_FRAMES)
SURE = 5e-5  # probability with which a test of an exact sampler fails


JUMPS = np.array([[0.0, 0.4, 0.1, 0.02], [0.4, 0.0, 0.4, 0.1], [0.1, 0.4, 0.0, 0.4], [0.02, 0.1, 0.4, 0.0]])
WALK = MarkovChain([0.0, 1.0, 1.4, 0.3], JUMPS)  # all jumps are possible, so paths come back to A and B


@cache
def enumerated():
    """Return every path of N_FRAMES frames from A to B, and its probability."""
    paths = [(0, *between, 3) for between in product(range(4), repeat=N_FRAMES - 2)]
    steps = np.array(paths)
    weights = WALK.P[steps[:, :-1], steps[:, 1:]].prod(axis=1)
    return paths, weights / weights.sum()


def fits(found, exact):
    """Assert that counts of paths are drawn from ``exact``: paths in groups of like probability, the sites in turn, chi-square."""
    paths = np.array(enumerated()[0])
    n = found.sum()
    half = N_FRAMES // 2
    groups = [
        np.minimum(np.cumsum(exact) * 25, 24).astype(int),
        paths[:, 1] * 16 + paths[:, half] * 4 + paths[:, -2],
        (paths == 0).sum(axis=1),
        paths @ np.arange(N_FRAMES),
    ]
    for group in groups:
        expected, counts = np.bincount(group, exact) * n, np.bincount(group, found, minlength=group.max() + 1)
        rare = expected < 5
        seen = np.append(counts[~rare], counts[rare].sum())
        meant = np.append(expected[~rare], expected[rare].sum())
        kept = meant > 0
        chi2 = np.sum((seen[kept] - meant[kept]) ** 2 / meant[kept])
        assert stats.chi2.sf(chi2, kept.sum() - 1) > SURE


MOVES = {
    "two way": ShootingMove.two_way(),
    "aimless": ShootingMove.aimless(1),
    "two way, Lorentzian": ShootingMove.two_way(LorentzianSelector(X, 2.0, 0.7)),
    "two way, Gaussian": ShootingMove.two_way(GaussianSelector(X, 1.0, 0.9)),
    "aimless, Lorentzian": ShootingMove.aimless(2, LorentzianSelector(X, 1.0, 0.5)),
    "one way": ShootingMove.one_way(),
    "one way, Gaussian": ShootingMove.one_way(GaussianSelector(X, 1.0, 0.9)),
    "spring": ShootingMove.spring(2, 0.5),
}


@pytest.mark.parametrize("name", MOVES)
def test_exact_samples_of_fixed_length_stay_exact_under_moves(name):
    sites, exact = enumerated()
    n = 4000
    start = stream(3, "start").choice(len(sites), n, p=exact)
    chains, anchors = [as_path(sites[i]) for i in start], [None] * n
    for step in range(3):
        seeds = [10 * i + step for i in range(n)]
        trials = MOVES[name].propose(WALK, chains, FIXED, seeds=seeds, max_frames=3, anchors=anchors)
        anchors = [t.anchor for t in trials]
        chains = [t.path if t.path is not None else c for c, t in zip(chains, trials, strict=True)]
        assert {t.reason for t in trials} <= {"accepted", "acceptance", "ensemble"}
    index = {path: i for i, path in enumerate(sites)}
    ended = [index[sites_of(c)] for c in chains]
    assert np.mean(np.array(ended) != start) > 0.1  # or nothing would have been tested
    fits(np.bincount(ended, minlength=len(sites)), exact)


@pytest.mark.parametrize("move", [ShootingMove.two_way(), ShootingMove.aimless(1, LorentzianSelector(X, 1.0, 0.7)), ShootingMove.one_way()])
def test_chains_come_from_one_path_to_all_of_them(move):
    sampling = TransitionPathSampling(WALK, A, B, move, n_frames=N_FRAMES)
    n, steps = 200, 100  # a chain forgets in about ten
    paths = sampling.run(as_path((0, 1, 2, 3)), n * steps, n, seed=2)
    last = dict(zip(paths.chain.tolist(), paths.paths, strict=True))  # rows are in the order of steps
    sites, exact = enumerated()
    index = {path: i for i, path in enumerate(sites)}
    assert np.mean([paths.step[paths.chain == c].max() > 0 for c in range(n)]) > 0.99
    fits(np.bincount([index[sites_of(p)] for p in last.values()], minlength=len(sites)), exact)


def test_a_shot_runs_for_as_many_frames_as_the_path_has_on_either_side():
    path = as_path((0, 0, 1, 1, 2, 3, 3))
    trials = ShootingMove.two_way().propose(WALK, [path] * 400, FIXED, seeds=range(400), max_frames=3)
    assert all(t.force_evaluations == N_FRAMES - 1 for t in trials)
    accepted = [t for t in trials if t.accepted]
    for trial in accepted:
        FIXED.require(trial.path)
        assert trial.path.positions[trial.frame_new] == path.positions[trial.frame_old]
    assert {t.frame_new == t.frame_old for t in accepted if t.frame_old != 3} == {True, False}  # the halves may change places
    assert all(t.frame_new in (t.frame_old, N_FRAMES - 1 - t.frame_old) for t in accepted)


def test_both_kinds_of_ensembles_move_in_one_batch():
    path, short = as_path((0, 0, 1, 1, 2, 3, 3)), as_path((0, 1, 2, 3))
    flexible = TransitionEnsemble(A, B)
    together = ShootingMove.two_way().propose(WALK, [path, short] * 50, [FIXED, flexible] * 50, seeds=range(100), max_frames=30)
    for i, (p, e) in enumerate([(path, FIXED), (short, flexible)] * 50):
        (alone,) = ShootingMove.two_way().propose(WALK, [p], e, seeds=[i], max_frames=30)
        assert (alone.reason, alone.frame_new, alone.log_ratio) == (together[i].reason, together[i].frame_new, together[i].log_ratio)
        assert not together[i].accepted or e.accepts(together[i].path)


WELL = potentials.double_well(2.0, harmonic=4.0)
WX = WELL.cvs()[0]
WA, WB = WX < -0.8, WX > 0.8
STRIDE, LENGTH = 0.04, 31


@cache
def cut_out(friction):
    """Return an engine, and every piece of the right length that leads from A to B in a long run."""
    engine = ToyEngine(WELL, kT=1.0, time_step=4e-3, friction=friction, threads=1)
    duration = 1500.0 if friction is None else 6000.0
    pieces = []
    for run in engine.propagate([engine.state(-1.0, 0.0)] * 8, duration=duration, stride=STRIDE, velocities=True, seed=7):
        x, v = run.positions[:, 0, 0], run.velocities
        for i in np.flatnonzero((x[: -LENGTH + 1] < -0.8) & (x[LENGTH - 1 :] > 0.8)):
            pieces.append(Trajectory(run.positions[i : i + LENGTH], STRIDE, None if v is None else v[i : i + LENGTH]))
    return engine, pieces


def alike(paths, friction):
    """Assert that one path per chain is as those cut out of a long run."""
    exact = cut_out(friction)[1]
    assert len(exact) > 3000  # pieces of one hop overlap; of as few as are compared, hardly any two do
    some = [exact[i] for i in np.random.default_rng(1).permutation(len(exact))[:100]]
    last = dict(zip(paths.chain.tolist(), paths.paths, strict=True)).values()
    assert set(paths.lengths) == {LENGTH}
    seen, meant = (np.array([p.positions[:, 0, 0] for p in group]) for group in (last, some))
    for describe in (lambda p: p.mean(axis=1), lambda p: (p > 0).sum(axis=1), lambda p: p[:, LENGTH // 2]):
        assert stats.ks_2samp(describe(seen), describe(meant)).pvalue > SURE


def test_chains_from_a_line_come_to_the_paths_of_long_dynamics():
    line = np.linspace(-0.9, 0.9, 12)  # shorter: it waits in A and in B
    first = Trajectory(np.stack([line, 0 * line], axis=1)[:, None, :], STRIDE)
    n = 200
    alike(TransitionPathSampling(cut_out(None)[0], WA, WB, ShootingMove.two_way(), n_frames=LENGTH).run(first, 50 * n, n, seed=3), None)


@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.two_way()], ids=str)
def test_paths_with_inertia_stay_those_of_long_dynamics(move):
    engine, exact = cut_out(2.0)
    n = 150
    first = exact[:: len(exact) // n]
    paths = TransitionPathSampling(engine, WA, WB, move, n_frames=LENGTH).run(first, 60 * n, n, seed=3)
    last_moves = [paths.step[paths.chain == c].max() for c in range(n)]
    assert np.mean(np.array(last_moves) > 0) > 0.5
    alike(paths, 2.0)
    for path in paths.paths[:20]:  # the velocities of the past were turned: they lead along the path
        seen = np.diff(path.positions[:, 0, 0]) / STRIDE
        assert np.corrcoef(seen, (path.velocities[1:, 0, 0] + path.velocities[:-1, 0, 0]) / 2)[0, 1] > 0.6


def test_a_stored_run_of_fixed_length_continues_and_refuses_another_length(tmp_path):
    def sampled(n, frames, store):
        sampling = TransitionPathSampling(WALK, A, B, ShootingMove.two_way(), n_frames=frames)
        return sampling.run(as_path((0, 1, 1, 2, 3)), n, 4, seed=5, store=store)

    with Store(tmp_path / "s.db") as store:
        sampled(40, N_FRAMES, store)
        continued = sampled(80, N_FRAMES, store)
        with pytest.raises(StoreError, match="different n_frames"):
            sampled(80, None, store)
    whole = sampled(80, N_FRAMES, None)
    assert len(whole) == len(continued) > 10
    assert [sites_of(p) for p in whole.paths] == [sites_of(p) for p in continued.paths]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ((0, 1, 2, 3), (0, 0, 1, 2, 3, 3, 3)),
        ((1, 0, 0, 1, 0, 1, 2, 3, 3, 2), (0, 0, 1, 0, 1, 2, 3)),
        ((2, 3, 3, 1, 0, 1), (0, 0, 0, 1, 3, 3, 3)),  # backwards
        ((0, 1, 2, 1, 1, 1, 1, 2, 1, 3, 1, 2, 0), (0, 0, 2, 1, 3, 3, 3)),  # the way there is too long
    ],
)
def test_first_paths_are_cut_or_wait_in_the_states(given, taken):
    paths = TransitionPathSampling(WALK, A, B, n_frames=N_FRAMES).run(as_path(given), 1, 1, seed=1)
    assert sites_of(paths.paths[0]) == taken


def test_what_does_not_fit_a_fixed_length_is_refused():
    with pytest.raises(DataError, match=r"does not connect A .* in 7 frames"):
        TransitionPathSampling(WALK, A, B, n_frames=N_FRAMES).run(as_path((0, 1, 1, 2, 1, 2, 2, 1, 3)), 1, 1, seed=1)
    with pytest.raises(DataError, match="n_frames = 2"):
        TransitionPathSampling(WALK, A, B, n_frames=2).run(as_path((0, 1, 3)), 1, 1, seed=1)
    with pytest.raises(DataError, match="either a fixed n_frames or a max_duration"):
        TransitionPathSampling(WALK, A, B, n_frames=5, max_duration=9.0).run(as_path((0, 1, 3)), 1, 1, seed=1)
    cases = {
        "6 frames, expected 7": (0, 1, 1, 1, 2, 3),
        "does not start in A": (1, 1, 1, 1, 1, 2, 3),
        "does not end in B": (0, 1, 1, 1, 1, 2, 2),
    }
    for message, sites in cases.items():
        with pytest.raises(DataError, match=message):
            FIXED.require(as_path(sites))
    with pytest.raises(DataError, match="in A and in B"):
        FixedLengthEnsemble(X < 9.0, B, N_FRAMES).require(as_path((0, 1, 1, 1, 1, 2, 3)))
