from dataclasses import replace

import numpy as np
import pytest
from exact_systems import KT, torsion, umbrella

from couloir.analysis import BiasedSamples
from couloir.errors import DataError


@pytest.fixture(scope="module")
def samples():
    return umbrella(torsion, np.linspace(-3, 3, 4), 30 * KT, 50, period=2 * np.pi)


def test_joined_sets_keep_windows_and_walkers_apart(samples):
    both = BiasedSamples.join(samples, samples)
    assert both.n_windows == 2 * samples.n_windows
    assert len(np.unique(both.walker)) == 2 * len(np.unique(samples.walker))


def test_sets_in_different_units_are_not_joined(samples):
    with pytest.raises(DataError, match="x is in 'rad' in set 1 and in 'deg' in set 2"):
        BiasedSamples.join(samples, replace(samples, units=("deg",)))
    with pytest.raises(DataError, match="x is in 'rad' in set 1 and in 'no unit' in set 3"):
        BiasedSamples.join(samples, samples, replace(samples, units=("",)))


@pytest.mark.parametrize("period", [None, 360.0])
def test_sets_with_different_periods_are_not_joined(samples, period):
    with pytest.raises(DataError, match=r"x has the period 6.28.* in set 1 and .* in set 2"):
        BiasedSamples.join(samples, replace(samples, periods=(period,)))
