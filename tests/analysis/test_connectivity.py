"""The graph of windows: links where samples are shared, and the connection that everything rests on."""

from __future__ import annotations

import numpy as np
import pytest
from exact_systems import KT, double_well, umbrella

from couloir.analysis import mbar, wham, window_graph

NARROW = 300 * KT


def graph(centers, force_constant=NARROW, estimator=wham):
    samples = umbrella(double_well, np.array(centers), force_constant, 2000, seed=4)
    return window_graph(samples, estimator(samples))


@pytest.mark.parametrize("estimator", [wham, mbar])
def test_windows_in_a_row_are_linked_one_after_the_other(estimator):
    found = graph(np.arange(7) * 0.15, estimator=estimator)
    assert found.sets == (tuple(range(7)),)
    assert found.links[found.backbone].tolist() == [[k, k + 1] for k in range(6)]
    assert found.overlap[found.backbone].min() > 0.03
    assert "one connected set" in str(found)
    assert found.to_dataframe()["backbone"].sum() == 6


def test_the_weakest_connection_is_where_windows_are_furthest_apart():
    found = graph([0.0, 0.1, 0.2, 0.42, 0.52, 0.62])
    assert found.weakest is not None
    a, b, where = found.weakest
    assert (a, b) == (2, 3)
    assert where == "x = 0.333 nm"
    assert f"windows 2 and 3 at {where}" in str(found)
    assert found.overlap[(found.links == [2, 3]).all(axis=1)].item() == found.overlap[found.backbone].min()


def test_sets_that_share_nothing_are_named_and_never_linked():
    found = graph([-1.0, -0.9, 0.9, 1.0])
    assert found.sets == ((0, 1), (2, 3))
    assert {tuple(link) for link in found.links.tolist()} == {(0, 1), (2, 3)}
    assert "2 sets that share no samples (windows 0-1; windows 2-3)" in str(found)


def test_a_single_window_has_no_connection():
    found = graph([0.0])
    assert found.links.shape == (0, 2)
    assert found.weakest is None
    assert str(found) == "1 window, no links"
