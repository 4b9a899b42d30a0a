"""Error bars are true: 95 % intervals cover the exact answer in 90-99 % of repeated experiments."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from exact_systems import KT, double_well, exact_cells, gauge, umbrella

from couloir.analysis import free_energy_surface


def coverage(repeats, correlation, n, walkers=1):
    centers = np.linspace(-1.5, 1.5, 12)
    hits = []
    for seed in range(repeats):
        samples = umbrella(double_well, centers, 50 * KT, n, seed=100 + seed, correlation=correlation, walkers=walkers)
        surface = free_energy_surface(samples, "x", bins=24, limits=(-1.4, 1.4), n_bootstrap=60, seed=seed)
        hits.append(np.abs(gauge(surface) - exact_cells(double_well, surface.grid[0])) < 1.96 * surface.standard_error)
    return float(np.mean(hits))


def test_intervals_cover_the_truth_quickly_checked():
    # 40 repeats of 24 correlated cells: the standard deviation of the mean is at most 0.25/sqrt(40) = 0.04.
    assert 0.85 < coverage(40, 0.0, 300) <= 1.0


@pytest.mark.statistical
@pytest.mark.parametrize(("correlation", "walkers"), [(0.0, 1), (0.8, 1), (0.8, 2), (0.8, 10)])
def test_intervals_cover_the_truth_in_ninety_to_ninety_nine_percent(correlation, walkers):
    assert 0.90 < coverage(200, correlation, 2000, walkers) < 0.99
