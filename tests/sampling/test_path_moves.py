"""Shooting moves keep the probability of paths: exactly on chains that can be enumerated, and on dynamics by brute force."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from couloir.cv.geometric import Coordinate
from couloir.sampling.path_ensembles import TransitionEnsemble
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.selectors import GaussianSelector, LorentzianSelector
from couloir.streams import stream
from couloir.trajectory import Trajectory

X = Coordinate(0, "x")
N_SITES, LONGEST = 5, 8


class Walk:
    """A reversible Markov chain on the sites 0 ... 4 of a line, as an engine: every path has a known probability."""

    temperature, time_step, kT, topology, underdamped = 1.0, 1.0, 1.0, None, False
    masses = np.ones(1)

    def __init__(self) -> None:
        pi = np.exp(-np.array([0.0, 1.0, 1.6, 0.7, 0.1]))
        self.P = np.zeros((N_SITES, N_SITES))
        for i in range(N_SITES):
            for j in (i - 1, i + 1):
                if 0 <= j < N_SITES:
                    self.P[i, j] = 0.45 * min(1, pi[j] / pi[i])
            self.P[i, i] = 1 - self.P[i].sum()
        self.pi = pi / pi.sum()

    def propagate(self, states, *, duration, stride=None, stop=None, velocities=False, seed=0, **_):
        out = []
        for state, one in zip(states, seed, strict=True):
            rng, x, frames, ended = np.random.default_rng(one), int(state.positions[0, 0]), [], "complete"
            while len(frames) < round(duration):
                x = int(np.searchsorted(np.cumsum(self.P[x]), rng.random()))
                frames.append(x)
                if stop is not None and stop.contains(np.array([[[float(x)]]]))[0]:
                    ended = "stopped"
                    break
            out.append(Trajectory(np.array(frames, dtype=float)[:, None, None], 1.0, ended=ended))
        return out


WALK = Walk()
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


def as_path(sites):
    return Trajectory(np.array(sites, dtype=float)[:, None, None], 1.0)


MOVES = {
    "one way": ShootingMove.one_way(),
    "two way": ShootingMove.two_way(),
    "one way, Gaussian": ShootingMove.one_way(GaussianSelector(X, 1.5, 0.8)),
    "two way, Lorentzian": ShootingMove.two_way(LorentzianSelector(X, 3.0, 0.7)),
}


@pytest.mark.parametrize("name", MOVES)
def test_exact_path_samples_stay_exact_under_moves(name):
    sites, exact = enumerated()
    n = 2500
    start = stream(3, "start").choice(len(sites), n, p=exact)
    chains = [as_path(sites[i]) for i in start]
    for step in range(2):
        trials = MOVES[name].propose(WALK, chains, ENDS, seeds=[10 * i + step for i in range(n)], max_frames=LONGEST)
        chains = [t.path if t.path is not None else c for c, t in zip(chains, trials, strict=True)]
    index = {path: i for i, path in enumerate(sites)}
    found = np.bincount([index[tuple(int(x) for x in c.positions[:, 0, 0])] for c in chains], minlength=len(sites))
    changed = np.mean([index[tuple(int(x) for x in c.positions[:, 0, 0])] != i for c, i in zip(chains, start, strict=True)])
    assert changed > 0.1  # or nothing would have been tested
    order = np.argsort(-exact)
    groups = np.minimum(np.cumsum(exact[order]) * 25, 24).astype(int)
    expected = np.bincount(groups, exact[order], 25) * n
    counts = np.bincount(groups, found[order], 25)
    keep = expected > 0
    chi2 = np.sum((counts[keep] - expected[keep]) ** 2 / expected[keep])
    assert stats.chi2.sf(chi2, keep.sum() - 1) > 1e-4
