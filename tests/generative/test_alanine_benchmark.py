"""What the benchmark of alanine dipeptide in vacuum says of brute force that saw few arrivals, or none."""

import numpy as np
import pytest

from benchmarks.systems.alanine import TIME_STEP, Waiting


@pytest.mark.parametrize(("arrivals", "found"), [(0.5, 8.0), (3.0, 20.0)])
def test_the_lower_bound_of_a_saving_holds_in_95_of_100_repeats_with_few_arrivals_or_none(arrivals: float, found: float) -> None:
    rng, n, time, spent = np.random.default_rng(1), 4000, 1e4, 5e4
    truth = (found / spent) / (arrivals / (time / TIME_STEP))
    counts = zip(rng.poisson(arrivals, n), rng.poisson(found, n), strict=True)
    above = np.mean([Waiting(int(k), time).at_least(int(m), spent) > truth for k, m in counts])
    assert above < 0.05 + 4 * np.sqrt(0.05 * 0.95 / n)
    assert (above > 0.0) == (arrivals > 1.0)  # counts are whole numbers: with hardly any arrival the bound is on the safe side
    assert Waiting(0, time).at_least(8, spent) > 0.25 * 8.0 / 3.0 * time / TIME_STEP / spent


def test_nothing_found_bounds_nothing() -> None:
    assert Waiting(2, 100.0).at_least(0, 1000.0) == 0.0
