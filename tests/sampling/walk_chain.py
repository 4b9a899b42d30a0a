"""A chain whose interface sampling is known exactly."""

import numpy as np
from markov_chain import MarkovChain, as_path, neighbours

from couloir.cv.geometric import Coordinate
from couloir.sampling import TransitionInterfaceSampling

X = Coordinate(0, "x")


class Walk(MarkovChain):
    """A reversible Markov chain on the sites 0 ... 6 of a line, as an engine: 0 and 1 are A, 6 is B."""

    def __init__(self):
        super().__init__([0.0, 0.5, 1.0, 1.4, 1.7, 1.2, 0.0], neighbours(7, 0.49))

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
    return as_path(sites)
