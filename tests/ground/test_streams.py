"""One seed, a stream for everything: the same always, whoever asks first, and unlike every other."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from couloir.streams import integer_seed, stream


def test_a_stream_depends_on_seed_and_key_alone() -> None:
    first = stream(1, "window", 3, "chunk", 7).random(5)
    stream(1, "window", 4).random(1000)
    np.testing.assert_array_equal(stream(1, "window", 3, "chunk", 7).random(5), first)


def test_streams_are_the_same_in_another_process() -> None:
    code = "from couloir.streams import integer_seed; print(integer_seed(5, 'window', 2))"
    environment = {"PYTHONHASHSEED": "123"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert int(out) == integer_seed(5, "window", 2)


def test_streams_do_not_change_between_versions() -> None:
    # A stored run is continued with these numbers: changing them breaks resuming.
    assert [integer_seed(1), integer_seed(1, "window", 0), integer_seed(2, "window", 0)] == [1835504128, 594710734, 1232411478]


def test_every_part_of_the_key_counts() -> None:
    keys = [(1,), (2,), (1, "a"), (1, "b"), (1, "a", 0), (1, "a", 1), (1, 0, "a"), (1, "a", "b"), (1, "b", "a")]
    seeds = [integer_seed(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)


def test_integer_seeds_suit_openmm() -> None:
    seeds = [integer_seed(s, "walker", i) for s in range(20) for i in range(200)]
    assert min(seeds) >= 1
    assert max(seeds) <= 2**31 - 2
    # 4000 draws from 2e9 values: a pair coincides with probability 0.4 %, three coincidences do not happen.
    assert len(set(seeds)) >= len(seeds) - 2


def test_neighbouring_streams_are_uncorrelated() -> None:
    n = 4000
    draws = np.stack([stream(7, "window", i).normal(size=n) for i in range(30)])
    correlation = np.corrcoef(draws)[np.triu_indices(30, 1)]
    # 435 pairs, each normal with standard error 1/sqrt(n): beyond 5.5 of these once in 60,000 such tests.
    assert np.abs(correlation).max() < 5.5 / np.sqrt(n)
