"""Rates between the three minima of the Mueller-Brown surface from interface sampling equal those of brute force."""

from itertools import permutations

import numpy as np
import pytest

from couloir.analysis import rate_matrix
from couloir.cv import FunctionOfCVs
from couloir.sampling import ToyEngine, TransitionInterfaceSampling, potentials
from couloir.trajectory import Trajectory

SURFACE = potentials.mueller_brown()
X, Y = SURFACE.cvs()
ENGINE = ToyEngine(SURFACE, kT=15.0, time_step=1e-5)
STRIDE = 1e-4
MINIMA = {"top": (-0.558, 1.442), "middle": (-0.05, 0.467), "right": (0.623, 0.028)}
NAMES = list(MINIMA)
ORDERS = {n: FunctionOfCVs((X, Y), f"sqrt((x - {a})^2 + (y - {b})^2)", name=f"from_{n}", unit="nm") for n, (a, b) in MINIMA.items()}
STATES = {name: along < 0.15 for name, along in ORDERS.items()}


def brute_force() -> tuple[np.ndarray, np.ndarray]:
    """Return how often long dynamics came from each state to each other (3, 3), and the time since it was in each last (3,)."""
    hops, time = np.zeros((3, 3)), np.zeros(3)
    starts = [ENGINE.state(*MINIMA[name]) for name in NAMES for _ in range(6)]
    for run in ENGINE.propagate(starts, duration=80.0, stride=STRIDE, seed=5):
        inside = np.stack([STATES[name].contains(run.positions) for name in NAMES], axis=1)
        at = np.flatnonzero(inside.any(axis=1))
        which = inside[at].argmax(axis=1)
        since = which[np.searchsorted(at, np.arange(at[0], len(inside)), side="right") - 1]
        time += STRIDE * np.bincount(since, minlength=3)
        np.add.at(hops, (which[:-1], which[1:]), which[:-1] != which[1:])
    return hops, time


def line(name: str, other: str) -> Trajectory:
    return Trajectory(np.linspace(MINIMA[name], MINIMA[other], 60)[:, None, :], STRIDE)


@pytest.mark.statistical
def test_rates_between_three_minima_are_those_of_brute_force() -> None:
    runs = {}
    for name, other in (("top", "middle"), ("middle", "right"), ("right", "middle")):
        first, second = (region for key, region in STATES.items() if key != name)
        sampling = TransitionInterfaceSampling.from_paths(
            [line(name, other)], ENGINE, STATES[name], first | second, along=ORDERS[name], seed=3, name=name
        )
        runs[name] = sampling.run(relative_error=0.1, seed=3, n_sets=12, record=list(ORDERS.values()))
    found = rate_matrix(runs, STATES)
    hops, time = brute_force()
    checked = 0
    for a, b in permutations(range(3), 2):
        if hops[a, b] < 30:  # from top to right, and back, without a visit to the middle
            continue
        rate = found.rate(NAMES[a], NAMES[b])
        error = np.hypot(rate.relative_error, hops[a, b] ** -0.5)
        assert abs(np.log(rate.value / (hops[a, b] / time[a]))) < 4.5 * error
        checked += 1
    assert checked == 4
    for share, seen in zip(found.populations, time / time.sum(), strict=True):
        assert abs(share.value - seen) < 4.5 * np.hypot(share.standard_error, seen * hops.sum(axis=1).min() ** -0.5)
