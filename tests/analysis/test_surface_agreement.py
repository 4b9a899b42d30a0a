"""The test of two surfaces: chances are what it says, and a well that is off is found."""

import numpy as np
import pytest
from scipy import stats

from couloir.analysis import FreeEnergySurface
from couloir.analysis.surface_agreement import LEAST_REPLICAS, agreement, on_grid
from couloir.errors import DataError

X = np.linspace(-1.5, 1.5, 40)
KT = 2.5
TRUE = KT * 4 * (X**2 - 1) ** 2
WELL = 0.15  # kT, standard error of the well difference of one surface
REPEATS = 400
DRAWS = 2000


def surface(f, replicas, x=X, period=None, kT=KT):
    """A surface with its minimum at 0, as are replicas of paths; errors are of -kT ln p."""
    p = np.exp(-replicas / kT)
    error = (-kT * np.log(p / np.nansum(p, axis=1, keepdims=True))).std(axis=0, ddof=1)
    zeroed = replicas - np.nanmin(replicas, axis=1, keepdims=True)
    return FreeEnergySurface(("x",), ("",), (period,), (x,), f - np.nanmin(f), error, kT, "made", zeroed, np.ones(len(x)))


def noise(random, n):
    """Draw n errors (n, n_cells): a shared offset of a well, a smooth tilt, and noise of every cell that grows with the energy."""
    well = WELL * random.standard_normal((n, 1)) * (X > 0)
    tilt = 0.03 * random.standard_normal((n, 1)) * X**2
    return KT * (well + tilt + random.standard_normal((n, len(X))) * (0.05 + 0.03 * TRUE / KT))


def drawn(random, n_replicas, off=0.0):
    f = TRUE + off * KT * (X > 0) + noise(random, 1)[0]
    return surface(f, f + noise(random, n_replicas))


def share_is_near(found, expected):
    """Whether a count out of REPEATS is within the range that is left with probability below 1e-4."""
    low, high = stats.binom.ppf(5e-5, REPEATS, expected[0]), stats.binom.isf(5e-5, REPEATS, expected[1])
    return low <= found <= high


@pytest.mark.parametrize("n_replicas", [(30, 60), (200, 100)], ids=["few replicas", "as runs have"])
def test_equal_surfaces_are_called_different_as_often_as_said(n_replicas):
    random = np.random.default_rng(31)
    found = [agreement(*(drawn(random, n) for n in n_replicas), n_draws=DRAWS, seed=i) for i in range(REPEATS)]
    p = np.array([one.p for one in found])
    # the chance itself is known to a part in two
    assert share_is_near((p < 0.05).sum(), (0.025, 0.075))
    assert share_is_near((p < 0.5).sum(), (0.4, 0.6))
    assert min(one.n_cells for one in found) >= 20


def test_a_well_that_is_off_by_four_standard_errors_is_found():
    random = np.random.default_rng(32)
    off = 4 * np.sqrt(2) * WELL
    found = [agreement(drawn(random, 200), drawn(random, 100, off), n_draws=DRAWS, seed=i) for i in range(REPEATS)]
    # of a shift of 4 errors a perfect test at this level misses 2 %; noise of cells and many comparisons cost a part of it
    assert sum(one.p < 0.05 for one in found) >= stats.binom.ppf(1e-4, REPEATS, 0.9)


def blocks(random, n, off=0.0):
    """Draw a surface as sampling gives it: counts of n blocks that sit more in one well or the other, and a bootstrap of blocks."""
    p = np.exp(-TRUE / KT)
    in_well = 1 / (1 + np.exp(off + 0.5 * random.standard_normal(n)))
    counts = np.stack([random.multinomial(2000, p * np.where(X > 0, w, 1 - w) / (p * np.where(X > 0, w, 1 - w)).sum()) for w in in_well])
    weights = random.dirichlet(np.full(n, (n - 2) / n), 100)  # as the replicas of surfaces are made
    with np.errstate(divide="ignore"):
        return surface(*(np.nan_to_num(-KT * np.log(c), posinf=np.nan) for c in (counts.sum(axis=0) / n, weights @ counts)))


def test_few_blocks_do_not_raise_false_alarms_when_their_number_is_told():
    random, n = np.random.default_rng(33), (10, 40)
    told = {"freedom": [k - 1 for k in n], "n_draws": DRAWS}
    p = np.array([agreement(*(blocks(random, k) for k in n), **told).p for _ in range(REPEATS)])
    assert share_is_near((p < 0.05).sum(), (0.01, 0.1))


def test_numbers_of_a_difference_are_those_put_in():
    random = np.random.default_rng(34)
    one, off = drawn(random, 100), np.where(X > 0, 1.5 * KT, 0.0)
    other = surface(one.free_energy + off + 7.0, one.free_energy + noise(random, 100))
    found = agreement(one, other)
    assert 20 <= found.n_cells <= (one.free_energy < 8 * KT).sum()
    assert found.rms == pytest.approx(0.75, abs=0.1)  # half the offset either way, where both wells weigh the same
    assert found.p == pytest.approx(1 / 50_001)
    assert found.largest > 4
    (finding,) = found.findings
    assert finding.code == "surfaces-disagree"
    assert "slow CV" in finding.fix
    assert agreement(one, surface(one.free_energy + 7.0, other.replicas)).findings == ()


@pytest.mark.parametrize("period", [None, 3.0])
def test_a_surface_is_put_on_other_cells_without_moving_probability(period):
    def exact(n, low=-1.5, high=1.5):
        edges = np.linspace(low, high, n + 1)
        fine = edges[:-1, None] + (edges[1] - edges[0]) * (np.arange(50) + 0.5) / 50
        f = KT * (3 + 3 * np.cos(2 * np.pi * fine / 3))
        return (edges[1:] + edges[:-1]) / 2, -KT * np.log(np.exp(-f / KT).mean(axis=1))

    x, f = exact(72)
    low = -1.5 if period is None else -1.0
    centres, expected = exact(50, low, low + 3.0)
    found = on_grid(surface(f, np.tile(f, (25, 1)), x, period), centres)
    np.testing.assert_allclose(found.free_energy, expected - expected.min(), atol=0.01 * KT)
    np.testing.assert_allclose(found.replicas[3], found.free_energy, atol=1e-9)
    f[30] = np.nan
    gap = np.isnan(on_grid(surface(f, np.tile(f, (25, 1)), x, period), centres).free_energy)
    assert 1 <= gap.sum() <= 2
    # width of an old and a new cell: 3 / 72 and 3 / 50
    assert (np.abs(centres[gap] - x[30]) < 3 / 144 + 3 / 100).all()


def test_what_reaches_out_of_the_old_grid_is_not_known():
    found = on_grid(surface(TRUE, np.tile(TRUE, (25, 1))), X + 0.5)
    assert np.isnan(found.free_energy[-5:]).all()
    assert np.isfinite(found.free_energy[:20]).all()
    with pytest.raises(DataError, match="no sampled cell"):
        on_grid(surface(TRUE, np.tile(TRUE, (25, 1))), X + 9)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f, r: surface(f, r, X + 0.1), "different grids"),
        (lambda f, r: surface(f[1:], r[:, 1:], X[1:]), "different grids"),
        (lambda f, r: surface(f, r, kT=3.0), "different temperatures"),
        (lambda f, r: surface(f, r[: LEAST_REPLICAS - 1]), "replicas"),
        (lambda f, r: surface(f, f + 30 * (r - f)), "fewer than 2 cells"),
    ],
)
def test_what_cannot_be_compared_is_said(change, match):
    random = np.random.default_rng(35)
    f = TRUE + noise(random, 1)[0]
    with pytest.raises(DataError, match=match):
        agreement(surface(f, f + noise(random, 50)), change(f, f + noise(random, 50)))
