"""Systems sampled exactly: windows on potentials whose free energy is known, and correlated series of known inefficiency."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from couloir.analysis import BiasedSamples
from couloir.cv.base import wrap
from couloir.cv.bias import HarmonicBias
from couloir.units import kt

KT = kt(300.0)


def double_well(x):
    """A barrier of 6 kT at 0 and a tilt, kJ/mol."""
    return KT * (6 * (x**2 - 1) ** 2 + 0.5 * x)


def torsion(x):
    """A periodic potential with barriers of 8 and 4 kT, kJ/mol; its minimum is next to the edge at pi."""
    return KT * (3 * np.cos(x) - 2 * np.sin(2 * x))


def umbrella(
    potential, centers, force_constant, n, *, period=None, seed=0, correlation=0.0, hidden=None, walkers=1, limits=(-3.0, 3.0)
) -> BiasedSamples:
    """Return ``n`` samples per window drawn by inverse CDF; ``correlation`` is that of the AR(1) series behind them.

    ``hidden(rng, x, window, walker)`` gives a second CV, y.
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(*((-period / 2, period / 2) if period else limits), 6001)
    biases, values, walker = [], [], []
    for w, center in enumerate(centers):
        bias = HarmonicBias(("x",), (float(center),), (force_constant,), (period,))
        energy = potential(x) + bias.energy(x[:, None])
        density = np.exp(-(energy - energy.min()) / KT)
        cdf = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
        for i in range(walkers):
            noise = rng.standard_normal(n // walkers)
            for t in range(1, len(noise) if correlation else 0):
                noise[t] = correlation * noise[t - 1] + np.sqrt(1 - correlation**2) * noise[t]
            drawn = np.interp(norm.cdf(noise), cdf / cdf[-1], x)
            second = [] if hidden is None else [hidden(rng, drawn, w, i)]
            values.append(np.column_stack([drawn, *second]))
            walker.append(np.full(len(drawn), w * walkers + i))
        biases.append(bias)
    lengths = [len(v) for v in values]
    names = ("x",) if hidden is None else ("x", "y")
    return BiasedSamples(
        names=names, units=("rad" if period else "nm", "nm")[: len(names)], periods=(period, None)[: len(names)],
        values=np.concatenate(values), potential=np.full(sum(lengths), np.nan), window=np.concatenate(walker) // walkers,
        walker=np.concatenate(walker), time=np.concatenate([np.arange(1.0, m + 1) for m in lengths]),
        biases=tuple(biases), temperatures=np.array([300.0]),
    )  # fmt: skip


def exact_free_energies(potential, samples: BiasedSamples, limits=(-3.0, 3.0)):
    """Return the exact free energy of every window relative to the unbiased state, kT."""
    period = samples.periods[0]
    x = np.linspace(*((-period / 2, period / 2) if period else limits), 20001)
    values = np.zeros((len(x), len(samples.names)))
    values[:, 0] = wrap(x, period)
    weight = np.exp(-potential(x) / KT)
    return np.array(
        [-np.log((weight * np.exp(-samples.bias_energy(k, values) / KT)).sum() / weight.sum()) for k in range(samples.n_windows)]
    )


def exact_cells(potential, centers):
    """Return the exact -kT ln p of equal cells around ``centers``, p normalized over them, kJ/mol."""
    width = centers[1] - centers[0]
    fine = (np.arange(201) + 0.5) / 201 - 0.5
    p = np.exp(-potential(centers[:, None] + width * fine) / KT).mean(axis=1)
    return -KT * np.log(p / p.sum())


def gauge(surface):
    """Return -kT ln p of a surface, p normalized over its cells, kJ/mol."""
    return -surface.kT * np.log(surface.probability)
