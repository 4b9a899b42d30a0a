"""Channels of reactive paths: found where paths part, with the share of transitions each carries."""

from dataclasses import replace

import numpy as np
import pytest
from line_chain import LineChain, draw_samples

from couloir.analysis import PathEnsemble
from couloir.analysis.reweighted_paths import reweighted_paths
from couloir.cv import Coordinate
from couloir.errors import DataError
from couloir.streams import stream
from couloir.trajectory import Trajectory

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
    found = paths[0].channels(["x", "y"], 2)
    assert (paths[1][found.rows] == np.where(found.label == 0, 1.0, -1.0)).mean() > 0.99
    assert abs(found.shares[0].value - UPPER) < 4.5 * found.shares[0].standard_error
    assert found.shares[0].standard_error < 0.05
    assert sum(s.value for s in found.shares) == pytest.approx(1.0)
    assert found.silhouette > paths[0].channels(["x", "y"], 4).silhouette


def test_one_channel_carries_all(paths):
    assert paths[0].channels(["y"], 1).shares[0].value == pytest.approx(1.0)


def test_more_channels_than_paths_are_refused(paths):
    with pytest.raises(DataError, match="different reactive paths"):
        paths[0].channels(["x", "y"], 10**6)
    with pytest.raises(DataError, match="no CV to tell channels apart"):
        paths[0].channels([])
    with pytest.raises(DataError, match="no series of z"):
        paths[0].channels(["x", "z"])


def test_shares_of_weighted_paths_have_the_spread_of_repeated_samplings():
    z = []
    for seed in range(12):
        rng = stream(seed, "draw")
        samples = draw_samples(LineChain(), (5, 8, 11), 300, rng)
        sign = np.where(rng.random(len(samples)) < UPPER, 1.0, -1.0)
        y = tuple(s * np.sin(np.pi * x / 19) for s, x in zip(sign, samples.series["x"], strict=True))
        found = reweighted_paths(replace(samples, series={"y": y})).channels("y", 2)
        upper = found.shares[0 if sign[found.medoids[0]] > 0 else 1]
        z.append((upper.value - UPPER) / upper.standard_error)
    assert 0.3 < np.std(z) < 1.9
    assert np.abs(z).max() < 6


def test_the_number_of_channels_of_weighted_paths_is_found(paths):
    assert len(paths[0].channels("y").shares) == 2
    samples = paths[0].sides[0].samples
    noise = stream(2, "noise")
    flat = tuple(0.1 * noise.standard_normal(n) for n in samples.length)
    assert len(reweighted_paths(replace(samples, series={"y": flat})).channels("y").shares) == 1


def test_weighted_paths_of_chains_that_never_change_channel_do_not_know_their_shares(paths):
    samples = paths[0].sides[0].samples
    stuck = tuple((1.0 if c < 2 else -1.0) * np.sin(np.pi * x / 19) for c, x in zip(samples.chain, samples.series["x"], strict=True))
    found = reweighted_paths(replace(samples, series={"y": stuck})).channels("y")
    assert abs(found.shares[0].value - 0.5) < 0.2
    assert found.shares[0].standard_error > 0.2


X, Y = Coordinate(0, "x"), Coordinate(1, "y")


def arcs(seed, n_chains=4, n_steps=150, stay=0.7, height=1.0, start=None):
    """Chains of paths around above (equilibrium share 0.7) or below, which forget which with chance 1 - ``stay`` per step."""
    rng = stream(seed, "arcs")
    paths, signs = [], []
    for c in range(n_chains):
        upper = rng.random() < UPPER if start is None else start[c]
        for _ in range(n_steps):
            upper = upper if rng.random() < stay else rng.random() < UPPER
            x = np.linspace(0.0, 1.0, int(rng.integers(8, 14)))
            y = height * (1 if upper else -1) * np.sin(np.pi * x) + 0.1 * rng.standard_normal(len(x))
            paths.append(Trajectory(np.stack([x, y], axis=1)[:, None, :], 0.1))
            signs.append(upper)
    chain, step = np.divmod(np.arange(len(paths)), n_steps)
    free = step > 0  # the first path of each chain carries no weight
    outcomes = {"accepted": np.full(n_chains, n_steps)}
    return PathEnsemble(tuple(paths), chain, step, np.ones(len(paths)), free, outcomes, 0), np.array(signs)


def test_shares_of_channels_that_chains_visit_have_the_spread_of_repeated_samplings():
    found = []
    for seed in range(20):
        ensemble, upper = arcs(seed)
        channel = ensemble.channels([X, Y])  # finds that there are two
        assert len(channel.shares) == 2
        assert (channel.rows == np.flatnonzero(ensemble.decorrelated)).all()
        first = 1 if upper[channel.medoids[0]] else 0
        assert (upper[channel.rows] == (channel.label == 1 - first)).mean() > 0.99
        found.append(channel.shares[0] if first else channel.shares[1])
    z = np.array([(share.value - UPPER) / share.standard_error for share in found])
    assert 0.45 < z.std() < 1.7
    assert np.abs(z).max() < 5


def test_paths_of_one_way_around_are_one_channel():
    channel = arcs(1, height=0.0)[0].channels(Y)
    assert channel.shares[0].value == 1.0
    assert np.isnan(channel.silhouette)


def test_chains_that_never_change_channel_do_not_know_their_shares():
    channel = arcs(1, stay=1.0, start=(True, True, False, False))[0].channels((X, Y), 2)
    assert channel.shares[0].standard_error > 0.2


def test_channels_of_paths_that_are_not_sampled_yet_are_refused():
    ensemble = arcs(1, n_chains=1, n_steps=1)[0]
    with pytest.raises(DataError, match="no path is decorrelated"):
        ensemble.channels([X])
    with pytest.raises(DataError, match="no CV to tell channels apart"):
        arcs(1, n_steps=3)[0].channels([])
