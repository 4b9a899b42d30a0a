"""What the benchmark of transition paths cuts out, and that its test tells ensembles apart."""

import numpy as np
import pytest

from benchmarks.systems.double_well import STRIDE, between_cores, passages, simulate
from benchmarks.transition_paths import NAMES, compare, displacement, observables


def along(x):
    return np.column_stack([x, np.arange(len(x))])


def test_passages_run_from_the_last_frame_in_a_to_the_first_in_b_and_returns_are_turned():
    there = along([-1.0, -0.9, -0.5, -0.7, 0.3, 0.9, 1.0, 0.5, 0.9, 0.2, -0.9])
    forth, back = passages(there)
    assert forth[:, 1].tolist() == [1, 2, 3, 4, 5]
    assert back[:, 1].tolist() == [10, 9, 8]


def test_an_excursion_that_returns_is_no_passage():
    assert passages(along([-0.9, 0.7, -0.9, 0.79])) == []
    assert passages(along([0.0, 0.5])) == []


def test_snippets_between_the_cores_are_turned_to_begin_in_a():
    frames = np.stack([along(x) for x in ([-1.0, 0.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 0.0, -1.0])])
    found = between_cores(frames)
    assert found[:, :, 1].tolist() == [[0, 1, 2], [2, 1, 0]]
    assert (found[:, 0, 0] == -1.0).all()


def test_observables_of_a_path_known_by_hand():
    seen = observables([along([-0.9, -0.4, 0.1, 0.3, 0.9])], seed=1)
    assert seen["duration"] == pytest.approx(4 * STRIDE)
    assert seen["y at the top"] == 2.0
    assert seen["mean square step across the top"] == pytest.approx((0.5**2 + 0.2**2 + 0.6**2) / 3)
    assert tuple(seen) == NAMES


def test_a_path_that_jumps_over_the_region_is_seen_in_its_steps():
    seen = observables([along([-0.9, 0.9])], seed=1)
    assert seen["mean square step across the top"] == pytest.approx(1.8**2)


def test_displacement_counts_pairs_that_begin_in_the_region_only():
    path = along([-0.9, -0.4, 0.1, 0.9])
    assert displacement([path], [1, 2, 3]) == pytest.approx([(0.5**2 + 0.8**2) / 2, 1.3**2, np.nan], nan_ok=True)


def test_the_comparison_accepts_two_halves_of_one_ensemble_and_refuses_paths_with_every_other_frame_lost():
    paths = [path for trajectory in simulate(16_000.0, seed=5) for path in passages(trajectory.positions[:, 0])]
    assert compare(paths[::2], paths[1::2]).p > 1e-4
    faster = [np.concatenate([path[:-1:2], path[-1:]]) for path in paths[::2]]
    assert compare(faster, paths[1::2]).p < 1e-6
