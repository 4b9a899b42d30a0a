"""A chain whose interface sampling is known exactly."""

from bisect import bisect_right

import numpy as np

from couloir.cv.geometric import Coordinate
from couloir.sampling import TransitionInterfaceSampling
from couloir.trajectory import Trajectory

X = Coordinate(0, "x")


class Walk:
    """A reversible Markov chain on the sites 0 ... 6 of a line, as an engine: 0 and 1 are A, 6 is B."""

    temperature, time_step, kT, topology, underdamped = 1.0, 1.0, 1.0, None, False
    masses = np.ones(1)

    def __init__(self):
        pi = np.exp(-np.array([0.0, 0.5, 1.0, 1.4, 1.7, 1.2, 0.0]))
        n = len(pi)
        self.P = np.zeros((n, n))
        for i in range(n):
            for j in (i - 1, i + 1):
                if 0 <= j < n:
                    self.P[i, j] = 0.49 * min(1, pi[j] / pi[i])
            self.P[i, i] = 1 - self.P[i].sum()
        self.steps = [np.cumsum(row).tolist() for row in self.P]

    def digest(self):
        return "walk"

    def propagate(self, states, *, duration, stride=None, stop=None, velocities=False, seed=0, **_):
        inside = stop.contains(np.arange(len(self.P), dtype=float)[:, None, None])
        out = []
        for state, one, most in zip(states, seed, np.broadcast_to(duration, len(states)), strict=True):
            x, frames, ended = int(state.positions[0, 0]), [], "complete"
            rng = np.random.default_rng(one)
            while len(frames) < round(most) and ended == "complete":
                x = bisect_right(self.steps[x], rng.random())
                frames.append(x)
                ended = "stopped" if inside[x] else "complete"
            out.append(Trajectory(np.array(frames, dtype=float)[:, None, None], 1.0, ended=ended))
        return out

    def reach(self, start, goal, back):
        """Return the probability to come from ``start`` to ``goal`` before ``back``, exactly."""
        between = np.arange(back + 1, goal)
        hit = np.linalg.solve(np.eye(len(between)) - self.P[np.ix_(between, between)], self.P[between, goal])
        return 1.0 if start >= goal else hit[start - back - 1]

    def stay(self, start, sites):
        """Return the mean number of frames, from ``start`` on, within ``sites``, exactly."""
        sites = list(sites)
        return np.linalg.solve(np.eye(len(sites)) - self.P[np.ix_(sites, sites)], np.ones(len(sites)))[sites.index(start)]


WALK = Walk()
LEVELS = (1.5, 2.5, 3.5)


def walk_sampling(move, **settings):
    return TransitionInterfaceSampling(WALK, X < 1.5, X > 5.5, X, LEVELS, move, max_duration=2000, **settings)


def first_path(sites=(1, 2, 3, 4, 5, 6)):
    return Trajectory(np.array(sites, dtype=float)[:, None, None], 1.0)
