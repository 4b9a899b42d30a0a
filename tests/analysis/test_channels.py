"""Channels of reactive paths: found where paths part, with the share of transitions each carries."""

from dataclasses import replace

import numpy as np
import pytest
from line_chain import LineChain, draw_samples

from couloir.analysis.channels import channels
from couloir.analysis.reweighted_paths import reweighted_paths
from couloir.errors import DataError
from couloir.streams import stream

UPPER = 0.7


@pytest.fixture(scope="module")
def paths():
    """Paths that go around above (with chance 0.7) or below; which way does not depend on x."""
    rng = stream(1, "draw")
    samples = draw_samples(LineChain(), (5, 7, 9, 11), 1500, rng)
    sign = np.where(rng.random(len(samples)) < UPPER, 1.0, -1.0)
    arcs = (s * np.sin(np.pi * x / 19) + 0.1 * rng.standard_normal(len(x)) for s, x in zip(sign, samples.series["x"], strict=True))
    return reweighted_paths(replace(samples, series={"x": samples.series["x"], "y": tuple(arcs)})), sign


def test_two_ways_around_are_two_channels_with_their_shares(paths):
    found = channels(paths[0], ["x", "y"], 2)
    assert (paths[1][found.rows] == np.where(found.label == 0, 1.0, -1.0)).mean() > 0.99
    assert abs(found.shares[0].value - UPPER) < 4.5 * found.shares[0].standard_error
    assert found.shares[0].standard_error < 0.05
    assert sum(s.value for s in found.shares) == pytest.approx(1.0)
    assert found.silhouette > channels(paths[0], ["x", "y"], 4).silhouette


def test_one_channel_carries_all(paths):
    assert channels(paths[0], ["y"], 1).shares[0].value == pytest.approx(1.0)


def test_more_channels_than_paths_are_refused(paths):
    with pytest.raises(DataError, match="different reactive paths"):
        channels(paths[0], ["x", "y"], 10**6)
