"""Paths that never change are one path, however often ensembles exchange them."""

import numpy as np
import pytest

from couloir.analysis.interface_samples import InterfaceSamples
from couloir.analysis.path_weights import _memory


@pytest.mark.parametrize("every", [1, 50])
def test_exchanges_do_not_hide_that_paths_are_stuck(every):
    """Four paths of four ensembles, all of which reach all interfaces, are replaced together, and given out anew in every step."""
    rng, n, levels = np.random.default_rng(1), 800, np.array([0.0, 1.0, 2.0, 3.0])
    paths = rng.uniform(3.5, 4.0, size=(n // every, 4)).repeat(every, axis=0)
    lengths = rng.integers(5, 400, size=(n // every, 4)).repeat(every, axis=0)
    order = rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1)
    maximum, length = (np.take_along_axis(table, order, axis=1).ravel() for table in (paths, lengths))
    samples = InterfaceSamples(
        interfaces=levels, along="x", unit="", ensemble=np.tile(np.arange(4), n), chain=np.zeros(4 * n, dtype=int),
        step=np.arange(n).repeat(4), maximum=maximum, minimum=-np.ones(4 * n), length=length, ends_in_b=np.zeros(4 * n, dtype=bool),
        stride=1.0,
    )  # fmt: skip
    memory = _memory(samples, [0])
    assert every / 2 < memory < 2 * every + 2
