"""A Markov chain on a line of states: every quantity of path sampling follows from its matrix, and its paths can be drawn exactly."""

from __future__ import annotations

import numpy as np

from couloir.analysis.interface_samples import InterfaceSamples

ENERGY = 4.0 * (((np.arange(20) - 9.7) / 5.5) ** 2 - 1) ** 2 + 0.05 * np.arange(20)
"""Energy of each state, kT: wells of different depth about 4 kT below a barrier."""


class LineChain:
    """Metropolis moves by one or two states; A is states 0..4, B is states 15..19."""

    def __init__(self, energy=ENERGY, first=5, last=14):
        n = len(energy)
        self.n, self.first, self.last = n, first, last
        self.pi = np.exp(-energy) / np.exp(-energy).sum()
        moves = np.zeros((n, n))
        for jump, chance in ((1, 0.3), (2, 0.15)):
            for x in range(n - jump):
                moves[x, x + jump] = chance * min(1.0, np.exp(energy[x] - energy[x + jump]))
                moves[x + jump, x] = chance * min(1.0, np.exp(energy[x + jump] - energy[x]))
        self.moves = moves + np.diag(1.0 - moves.sum(axis=1))
        x = np.arange(n)
        self.in_a, self.in_b = x < first, x > last
        self.committor = self.reach(last + 1)

    def reversed(self):
        """The same chain seen from B: state x is 19 - x."""
        return LineChain(-np.log(self.pi[::-1]), self.n - 1 - self.last, self.n - 1 - self.first)

    def reach(self, level):
        """Probability to reach a state >= level before A, (n,): 0 in A, 1 from the level on."""
        done = np.arange(self.n) >= level
        free = ~done & ~self.in_a
        out = done.astype(float)
        system = np.eye(free.sum()) - self.moves[np.ix_(free, free)]
        out[free] = np.linalg.solve(system, self.moves[np.ix_(free, done)].sum(axis=1))
        return out

    @property
    def leaving(self):
        """Stationary flow from each state of A to each state outside, (n, n) per step."""
        return self.pi[:, None] * self.moves * np.outer(self.in_a, ~self.in_a)

    def crossing(self, level):
        """Probability that a path that leaves A reaches a state >= level."""
        return float((self.leaving @ self.reach(level)).sum() / self.leaving.sum())

    @property
    def population(self):
        """Share of time in the overall state A (for a reversible chain the past is the mirror of the future)."""
        return float(self.pi @ (1 - self.committor))

    @property
    def flux(self):
        return float(self.leaving.sum() / self.population)

    @property
    def rate(self):
        return float((self.leaving @ self.committor).sum() / self.population)

    def draw(self, rng, n_paths, flow, level, stop):
        """Paths (``n_paths``) whose first two states follow ``flow`` and that reach ``level`` before they stop, as lists of states.

        Until the level is reached, moves are those of the chain conditioned on reaching it (Doob's transform).
        """
        reach = self.reach(level) if level is not None else np.ones(self.n)
        start = (flow * reach).ravel()
        pair = rng.choice(self.n**2, n_paths, p=start / start.sum())
        conditioned = self.moves * reach / np.where(reach > 0, reach, 1.0)[:, None]
        free = np.cumsum(self.moves, axis=1)
        toward = np.cumsum(conditioned / np.maximum(conditioned.sum(axis=1, keepdims=True), 1e-300), axis=1)
        history = [pair // self.n, pair % self.n]
        reached = np.full(n_paths, level is None) if level is None else history[1] >= level
        done = stop[history[1]]
        while not done.all():
            x = history[-1]
            rows = np.where(reached[:, None], free[x], toward[x])
            following = np.minimum((rows < rng.random(n_paths)[:, None]).sum(axis=1), self.n - 1)
            history.append(np.where(done, -1, following))
            reached |= history[-1] >= (-1 if level is None else level)
            done |= stop[following]
        table = np.array(history).T
        return [row[row >= 0] for row in table]


def draw_samples(chain, levels, n, rng, keep=0.0, n_chains=4, mirror=False):
    """Samples of [0-] and of an ensemble per level, ``n`` rows each: exact paths, each kept for another step with chance ``keep``."""
    outside = ~chain.in_a
    entering = chain.leaving.T
    drawn = [chain.draw(rng, n, entering, None, outside)]
    drawn += [chain.draw(rng, n, chain.leaving, level, chain.in_a | chain.in_b) for level in levels]
    ensemble = np.repeat(np.arange(-1, len(levels)), n)
    step = np.tile(np.arange(n) // n_chains, len(drawn))
    number = np.tile(np.arange(n) % n_chains, len(drawn))
    paths = []
    for group in drawn:
        held = list(group)
        for i in range(n_chains, n):
            if rng.random() < keep:
                held[i] = held[i - n_chains]
        paths += held
    series = {"x": tuple((chain.n - 1 - p if mirror else p).astype(float) for p in paths)}
    return InterfaceSamples(
        np.array(levels) - 0.5, "x", "", ensemble, number, step, [p.max() for p in paths], [p.min() for p in paths],
        [len(p) for p in paths], [bool(chain.in_b[p[-1]]) and e >= 0 for p, e in zip(paths, ensemble, strict=True)], 0.5, series,
    )  # fmt: skip
