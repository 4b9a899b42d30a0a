"""The measures by which generated snippets of alanine dipeptide are judged."""

import numpy as np
import pytest

from benchmarks.systems import snippet_measures as snippets


def test_divergence_is_zero_for_equal_and_ln_2_for_disjoint_distributions() -> None:
    p, q = np.array([[0.5, 0.5], [0.0, 0.0]]), np.array([[0.0, 0.0], [0.25, 0.75]])
    assert snippets.jensen_shannon(p, p) == 0.0
    assert snippets.jensen_shannon(p, q) == pytest.approx(np.log(2.0))


def test_surface_error_ignores_a_shift_and_counts_unvisited_cells() -> None:
    reference = np.array([0.6, 0.3, 0.1])
    assert snippets.surface_error(reference, reference) == pytest.approx(0.0)
    assert snippets.surface_error(np.array([0.6, 0.4, 0.0]), reference, below=5.0) > 5.0 / 3
    tilted = reference * np.exp([0.5, -0.5, 0.0])
    assert snippets.surface_error(tilted / tilted.sum(), reference) == pytest.approx(1.0 / 3)


def test_autocorrelation_of_a_turning_angle_is_the_cosine_of_how_far_it_turned() -> None:
    start = np.linspace(0.0, 2 * np.pi, 50, endpoint=False)
    angle = start[:, None] + 0.1 * np.arange(20)
    np.testing.assert_allclose(snippets.circular_autocorrelation(angle, 0.0), np.cos(0.1 * np.arange(20)), atol=1e-12)


def test_autocorrelation_of_independent_angles_vanishes_about_their_mean() -> None:
    angle = np.random.default_rng(0).normal(1.0, 0.5, size=(4000, 8))
    memory = snippets.circular_autocorrelation(angle, complex(np.exp(1j - 0.125)))
    assert memory[0] == pytest.approx(1.0)
    # 16000 pairs or more at lags up to 4; five standard errors of about 1 / sqrt(16000)
    assert np.abs(memory[1:5]).max() < 5 / np.sqrt(16_000)


def test_pieces_hold_no_frame_on_a_barrier_and_no_change_of_side() -> None:
    barriers = ((-0.4, 0.4), (1.9, 2.5))
    phi = np.array([-1.0, -1.1, -0.1, 1.0, 1.1, 1.2, 2.2, 3.0, -3.0, -2.9, 1.0, 1.0])
    frames = np.arange(12.0)
    got = [piece.tolist() for piece in snippets.pieces(frames, phi, barriers, 2)]
    assert got == [[0, 1], [3, 4, 5], [7, 8, 9], [10, 11]]
    assert [piece.tolist() for piece in snippets.pieces(frames, phi, barriers, 3)] == [[3, 4, 5], [7, 8, 9]]


def test_crossings_count_changes_of_core_and_not_recrossings_of_the_top() -> None:
    phi = np.array([-1.0, 0.1, -0.1, 0.1, 1.0, 0.7, 1.0, 0.0, -1.0, -1.2])
    assert snippets.crossings(phi, (-2.8, -0.7), (0.8, 1.6)).tolist() == [1, 1]


def test_bond_lengths_are_those_of_the_named_pairs() -> None:
    frames = np.zeros((2, 3, 3, 3))
    frames[:, :, 1, 0], frames[:, :, 2, 0] = 1.0, 3.0
    frames[0, :, 2, 0] = 4.0
    mean, spread = snippets.bond_lengths(frames, np.array([[0, 1], [1, 2]]))
    np.testing.assert_allclose(mean, [1.0, 2.5])
    np.testing.assert_allclose(spread, [0.0, 0.5])


def test_snippets_do_not_overlap_and_drop_the_rest() -> None:
    got = snippets.cut([np.arange(7.0), np.arange(10.0, 13.0)], 3)
    assert got.tolist() == [[0, 1, 2], [3, 4, 5], [10, 11, 12]]
