import numpy as np
import pytest
from exact_systems import KT, double_well, umbrella
from scipy.signal import lfilter

from couloir.analysis import BiasedSamples, diagnose, free_energy_surface
from couloir.analysis.agreement import compare_neighbours, walkers_disagree
from couloir.cv.bias import HarmonicBias

CENTERS = np.linspace(-1.2, 1.2, 13)
CODES = {"walkers-disagree", "windows-disagree"}


def sides(rng, x, window, walker):
    """A second CV that a hidden barrier keeps below 0 in the left windows, and above 0 in the right ones."""
    return np.where(window < 6, -1.0, 1.0) + 0.4 * rng.standard_normal(len(x))


def noise(rng, n, rho=0.9):
    """Return a stationary autoregressive series."""
    kick = np.sqrt(1 - rho**2) * rng.standard_normal(n)
    return lfilter([1], [1, -rho], kick, zi=[rho * rng.standard_normal()])[0]


def test_windows_in_different_hidden_modes_are_found_though_their_walkers_agree():
    samples = umbrella(double_well, CENTERS, 60 * KT, 1000, walkers=2, hidden=sides, seed=1)
    assert not walkers_disagree(samples)[1].any()
    found = compare_neighbours(samples)
    assert (5, 6) in {s.windows for s in found.shifts}
    assert {s.name for s in found.shifts} == {"y"}
    (finding,) = [f for f in diagnose(samples) if f.code == "windows-disagree"]
    assert "sample different y where they overlap" in finding.message


def test_error_bars_cover_the_offset_that_hidden_modes_leave_open():
    def hidden(rng, x, window, walker):
        return np.where(window < 6, -0.5, 0.5) + 0.5 * rng.standard_normal(len(x))

    def tilted(x):
        return double_well(x) + np.where(x > 0, KT, 0.0)

    centers = CENTERS
    apart = umbrella(tilted, centers, 60 * KT, 1000, walkers=2, hidden=hidden, seed=2)
    left, right = (-1.4, 0.0), (0.0, 1.4)
    found = free_energy_surface(apart, "x", bins=28, limits=(-1.4, 1.4), seed=1).difference(left, right)
    x = np.linspace(-1.4, 1.4, 20001)
    p = np.exp(-double_well(x) / KT)
    exact = -KT * np.log(p[x > 0].sum() / p[x < 0].sum())
    # The right side was sampled in a mode 1 kT above the one that belongs there.
    assert abs(found.value - exact) > 0.8 * KT
    assert abs(found.value - exact) < 2 * found.standard_error


@pytest.mark.parametrize("batch", range(4))
def test_healthy_correlated_samples_raise_no_alarm(batch):
    def free(rng, x, window, walker):
        return 0.3 * x + noise(rng, len(x))

    for seed in range(10):
        samples = umbrella(double_well, CENTERS[::2], 30 * KT, 1600, walkers=2, hidden=free, correlation=0.9, seed=100 * batch + seed)
        assert not walkers_disagree(samples)[1].any()
        assert compare_neighbours(samples).shifts == ()


def plane(mode, n=300):
    """Return windows on a grid over (x, y) of a flat plane, with a hidden z of mean ``mode(window's x)``."""
    rng = np.random.default_rng(5)
    k = 30 * KT
    centers = [(a, b) for a in np.linspace(0, 1, 5) for b in np.linspace(0, 0.75, 4)]
    values = [
        np.column_stack([np.array(c) + rng.standard_normal((n, 2)) / np.sqrt(30), mode(c[0]) + rng.standard_normal(n)]) for c in centers
    ]
    window = np.repeat(np.arange(len(centers)), n)
    return BiasedSamples(
        names=("x", "y", "z"),
        units=("nm",) * 3, periods=(None,) * 3, values=np.concatenate(values), potential=np.full(len(window), np.nan),
        window=window, walker=window, time=np.tile(np.arange(1.0, n + 1), len(centers)),
        biases=tuple(HarmonicBias(("x", "y"), c, (k, k), (None, None)) for c in centers),
    )  # fmt: skip


def test_windows_of_a_plane_are_compared_across_both_cvs():
    assert compare_neighbours(plane(lambda x: 0.0)).shifts == ()
    shifts = compare_neighbours(plane(lambda x: 3.0 if x > 0.6 else -3.0)).shifts
    column = np.repeat(np.arange(5), 4)
    assert shifts
    assert all(column[s.windows[0]] <= 2 < column[s.windows[1]] for s in shifts)


def test_nothing_to_compare_is_not_disagreement():
    one = umbrella(double_well, [0.5], 60 * KT, 500, hidden=sides, seed=3)
    assert compare_neighbours(one).shifts == ()
    assert not walkers_disagree(one)[1].any()
    assert np.isnan(walkers_disagree(one)[0]).all()
    several = umbrella(double_well, CENTERS, 60 * KT, 200, hidden=sides, seed=3)
    emptied = several.select(several.window == 0)
    assert compare_neighbours(emptied).draw(np.random.default_rng(0), emptied.n_windows).tolist() == [0.0] * len(CENTERS)
    assert not CODES & {f.code for f in diagnose(emptied)}
