"""Reversible Markov chains as engines: the probability of every path is known."""

from bisect import bisect_right

import numpy as np

from couloir.streams import integer_seed
from couloir.trajectory import State, Trajectory


class MarkovChain:
    """A chain with weights exp(-energies) (n,) that proposes jumps with probabilities (n, n), by Metropolis' rule.

    Sites (n, n_dimensions) are where a particle is; without them it is at 0 ... n - 1 of a line.
    """

    temperature, time_step, kT, topology, underdamped = 1.0, 1.0, 1.0, None, False
    masses = np.ones(1)

    def __init__(self, energies, jumps, sites=None):
        weights = np.exp(-np.array(energies))
        self.pi = weights / weights.sum()
        self.P = jumps * np.minimum(1, self.pi / self.pi[:, None])
        self.P += np.diag(1 - self.P.sum(axis=1))
        self.frames = np.array(range(len(weights)) if sites is None else sites, dtype=float).reshape(len(weights), 1, -1)
        self.number = {tuple(frame[0]): i for i, frame in enumerate(self.frames)}
        self._cumulated = [np.cumsum(row)[:-1].tolist() for row in self.P]

    def digest(self):
        return f"chain of {len(self.P)}"

    def propagate(self, states, *, duration, stride=None, stop=None, velocities=False, seed=0, **_):
        inside = np.zeros(len(self.P), dtype=bool) if stop is None else stop.contains(self.frames)
        seeds = [integer_seed(seed, k) for k in range(len(states))] if isinstance(seed, int) else seed
        out = []
        for state, one, most in zip(states, seeds, np.broadcast_to(duration, len(states)), strict=True):
            at, visited, ended = self.number[tuple(state.positions[0])], [], "complete"
            draw = np.random.default_rng(one).random
            while len(visited) < round(most) and ended == "complete":
                at = bisect_right(self._cumulated[at], draw())
                visited.append(at)
                ended = "stopped" if inside[at] else "complete"
            out.append(Trajectory(self.frames[visited], 1.0, ended=ended, last=State(self.frames[at])))
        return out


def neighbours(n, probability):
    """Return jumps (n, n) to either neighbour on a line of n sites."""
    return np.where(np.abs(np.subtract.outer(range(n), range(n))) == 1, probability, 0.0)


def as_path(sites):
    """Return a path over sites of a line."""
    return Trajectory(np.array(sites, dtype=float)[:, None, None], 1.0)


def sites_of(path):
    """Return the sites of a line that a path visits."""
    return tuple(int(x) for x in path.positions[:, 0, 0])
