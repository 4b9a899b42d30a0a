"""MBAR for any mixture of states: torch against pymbar, models as states with known answers, chunks, bad starts, bad input."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from exact_systems import KT, double_well, umbrella

from couloir.analysis import BiasedSamples, ReducedState, expectation, mbar, reweight, solve_mbar, wham
from couloir.cv.bias import HarmonicBias
from couloir.errors import ConfigError, DataError
from couloir.units import GAS_CONSTANT

MBAR_FILE = sys.modules["couloir.analysis.mbar"]


def wells(n=200, seed=1, k=14):
    return umbrella(double_well, np.linspace(-1.5, 1.5, k), 120 * KT, n, seed=seed)


def reduced(samples):
    return samples.bias_energies() / KT, samples.counts


class Gaussian:
    """A 'generative model' in one dimension with its exact log-density."""

    def __init__(self, mean, width):
        self.mean, self.width = mean, width

    def log_prob(self, x):
        return -0.5 * ((x[:, 0] - self.mean) / self.width) ** 2 - np.log(self.width * np.sqrt(2 * np.pi))


KAPPA, STIFF, HEIGHT = 40.0, 120.0, 5000.0
"""Harmonic system U = 0.5 KAPPA x^2 + HEIGHT (kJ/mol) and the force constant of its windows."""


def harmonic_windows(n, seed, *, model=None, centers=(-0.4, 0.0, 0.4)):
    """Return exact samples of windows on the harmonic system, and of ``model`` as one more window; and exact free energies -ln Z."""
    rng = np.random.default_rng(seed)
    drawn = [STIFF * c / (STIFF + KAPPA) + np.sqrt(KT / (STIFF + KAPPA)) * rng.standard_normal(n) for c in centers]
    biases = [HarmonicBias(("x",), (c,), (STIFF,), (None,)) for c in centers]
    absolute = [
        0.5 * KAPPA * STIFF / (KAPPA + STIFF) * c**2 / KT + HEIGHT / KT - 0.5 * np.log(2 * np.pi * KT / (KAPPA + STIFF)) for c in centers
    ]
    if model is not None:
        drawn.append(model.mean + model.width * rng.standard_normal(n))
        biases.append(None)
        absolute.append(0.0)
    x = np.concatenate(drawn)
    which = np.repeat(np.arange(len(drawn)), n)
    samples = BiasedSamples(
        ("x",), ("nm",), (None,), x[:, None], 0.5 * KAPPA * x**2 + HEIGHT, which, which, np.tile(np.arange(1.0 * n), len(drawn)),
        tuple(biases), np.array([300.0]),
    )  # fmt: skip
    return samples, np.array(absolute)


UNBIASED = HEIGHT / KT - 0.5 * np.log(2 * np.pi * KT / KAPPA)


def test_newton_finds_the_free_energies_of_pymbar():
    import pymbar

    u, n = reduced(wells())
    result = solve_mbar(u, n)
    assert result.converged
    assert result.residual < 1e-12
    assert np.abs(result.free_energies - pymbar.MBAR(u, n).f_k).max() < 1e-8


def test_both_solvers_give_one_result():
    samples = wells(seed=2)
    one, other = mbar(samples, solver="torch"), mbar(samples, solver="pymbar")
    assert np.abs(one.free_energies - other.free_energies).max() < 1e-8
    assert np.abs(one.log_weights - other.log_weights).max() < 1e-8
    assert np.abs(one.overlap - other.overlap).max() < 1e-8
    assert np.allclose(one.effective_samples, other.effective_samples, rtol=1e-7)
    assert one.sets == other.sets


def test_both_solvers_give_one_result_across_temperatures_and_large_energies():
    samples, _ = harmonic_windows(200, 3)
    samples = BiasedSamples(**{**samples.__dict__, "temperatures": np.array([300.0, 330.0, 360.0])})
    one, other = mbar(samples, solver="torch"), mbar(samples, solver="pymbar")
    assert one.residual < 1e-9
    assert np.abs(one.free_energies - other.free_energies).max() < 1e-6


def test_disconnected_windows_are_solved_apart_by_torch_too():
    samples = umbrella(double_well, [-1.0, -0.9, 0.9, 1.0], 150 * KT, 300, seed=4)
    result = mbar(samples, solver="torch")
    assert result.sets == ((0, 1), (2, 3))
    assert result.weights[samples.window <= 1].sum() == pytest.approx(0.5)
    assert np.abs(result.free_energies - mbar(samples, solver="pymbar").free_energies).max() < 1e-8


@pytest.mark.parametrize("seed", range(3))
def test_a_start_100_kt_away_ends_in_the_same_place(seed):
    u, n = reduced(wells(seed=5))
    start = np.random.default_rng(seed).uniform(-100, 100, len(n))
    good, bad = solve_mbar(u, n), solve_mbar(u, n, start=start)
    assert bad.converged
    assert np.abs(good.free_energies - bad.free_energies).max() < 1e-9


@pytest.mark.parametrize("size", [100.0, 1e6])
@pytest.mark.parametrize("zeros", [True, False])
def test_huge_free_energies_are_found_from_zero_or_no_start(size, zeros):
    u, n = reduced(wells(seed=6))
    shift = np.random.default_rng(6).uniform(-size, size, len(n))
    shifted = solve_mbar(u + shift[:, None], n, start=np.zeros(len(n)) if zeros else None)
    assert shifted.converged
    # Numbers of 1e6 have ten digits after the point.
    assert np.abs(shifted.free_energies - (solve_mbar(u, n).free_energies + shift - shift[0])).max() < 1e-9 * max(1.0, size / 1e3)


def test_chunks_do_not_change_the_answer():
    u, n = reduced(wells(seed=7))
    whole = solve_mbar(u, n, chunk=u.shape[1])
    for chunk in (1000, 37):
        parts = solve_mbar(u, n, chunk=chunk)
        assert np.abs(parts.free_energies - whole.free_energies).max() < 1e-12
        assert np.abs(parts.log_mixture - whole.log_mixture).max() < 1e-12
        assert np.abs(parts.overlap - whole.overlap).max() < 1e-12


def test_energies_made_chunk_by_chunk_equal_a_stored_matrix(monkeypatch):
    samples = wells(seed=8)
    stored = mbar(samples, solver="torch")
    monkeypatch.setattr(MBAR_FILE, "STORED_ROWS", 100)
    made = mbar(samples, solver="torch")
    assert np.abs(made.free_energies - stored.free_energies).max() < 1e-12
    assert np.abs(made.log_weights - stored.log_weights).max() < 1e-12


def test_large_problems_choose_torch(monkeypatch):
    used = []
    newton = MBAR_FILE.newton
    monkeypatch.setattr(MBAR_FILE, "newton", lambda *a, **k: (used.append(1), newton(*a, **k))[1])
    samples = wells(n=20, seed=9)
    mbar(samples)
    assert used == []
    monkeypatch.setattr(MBAR_FILE, "LARGE", 1000)
    mbar(samples)
    assert used == [1]


def test_the_order_of_rows_and_states_does_not_matter():
    u, n = reduced(wells(seed=21))
    rng = np.random.default_rng(21)
    states, rows = rng.permutation(len(n)), rng.permutation(u.shape[1])
    f, other = solve_mbar(u, n).free_energies, solve_mbar(u[np.ix_(states, rows)], n[states]).free_energies
    assert np.abs(other - (f[states] - f[states[0]])).max() < 1e-10


def test_one_sample_per_state_is_enough_to_solve():
    u = 3 * np.random.default_rng(20).standard_normal((5, 5))
    result = solve_mbar(u, np.ones(5))
    assert result.converged
    assert result.residual < 1e-8


@pytest.mark.filterwarnings("error")
def test_any_memory_layout_gives_the_same_answer():
    u, n = reduced(wells(seed=19))
    frozen = u.copy()
    frozen.setflags(write=False)
    for layout in (frozen, np.asfortranarray(u), u[:, ::-1]):
        assert np.abs(solve_mbar(layout, n).free_energies - solve_mbar(u, n).free_energies).max() < 1e-12


def test_duplicated_states_share_one_free_energy():
    u, n = reduced(wells(seed=10, k=6))
    half = n[0] // 2
    twice = solve_mbar(np.vstack([u, u[:1]]), np.append(n, 0) + np.array([-half, 0, 0, 0, 0, 0, half]))
    assert twice.free_energies[-1] == pytest.approx(0, abs=1e-9)
    assert np.abs(twice.free_energies[:-1] - solve_mbar(u, n).free_energies).max() < 1e-9


def test_a_state_without_samples_gets_the_free_energy_of_pymbar():
    import pymbar

    samples = wells(seed=11)
    u, _ = reduced(samples)
    keep = (samples.window != 5) & (samples.window != 0)
    n = samples.select(keep).counts
    result = solve_mbar(u[:, keep], n, chunk=100)
    exact = pymbar.MBAR(u[:, keep], n)
    assert np.abs((result.free_energies - result.free_energies[1]) - (exact.f_k - exact.f_k[1])).max() < 1e-8
    assert np.abs(result.overlap - exact.compute_overlap()["matrix"]).max() < 1e-8
    assert np.allclose(result.effective_samples, exact.compute_effective_sample_number(), rtol=1e-7)


def test_a_model_as_a_state_makes_free_energies_absolute():
    # A normalized density has the free energy 0, so the windows' own ln Z is measured against it.
    model = Gaussian(0.05, 0.3)
    samples, exact = harmonic_windows(4000, 12, model=model)
    state = ReducedState.from_model(model, samples.values, window=3, batch=999)
    result = mbar(samples, states=[state])
    absolute = result.free_energies - result.free_energies[3]
    # Overlaps of about a third at least: the variance of each step is below 4/4000.
    assert result.overlap[3, :3].min() > 0.05
    assert np.abs(absolute - exact).max() < 4 * np.sqrt(4 / 4000)
    assert -result.free_energies[3] == pytest.approx(UNBIASED, abs=4 * np.sqrt(4 / 4000))
    assert result.energies
    torch = mbar(samples, states=[state], solver="torch")
    assert np.abs(torch.free_energies - result.free_energies).max() < 1e-7


def test_model_samples_far_from_the_windows_are_named_disconnected():
    model = Gaussian(9.0, 0.05)
    samples, _ = harmonic_windows(300, 13, model=model)
    result = mbar(samples, states=[ReducedState.from_model(model, samples.values, window=3)])
    assert result.sets == ((0, 1, 2), (3,))
    assert "disconnected-windows" in {f.code for f in result.findings}


def test_an_unsampled_model_and_another_hamiltonian_follow_the_windows():
    model = Gaussian(0.0, 0.2)
    samples, exact = harmonic_windows(4000, 14)
    x = samples["x"]
    softer = ReducedState.from_energies(0.5 * 30.0 * x**2 + HEIGHT, "320 K", name="softer")
    result = mbar(samples, states=[ReducedState.from_model(model, samples.values), softer])
    assert result.free_energies.shape == (5,)
    kt = GAS_CONSTANT * 320
    exact = np.array([0.0, HEIGHT / kt - 0.5 * np.log(2 * np.pi * kt / 30.0)]) - UNBIASED
    assert np.abs(result.free_energies[3:] - exact).max() < 4 * np.sqrt(4 / 4000)
    assert (result.effective_samples[3:] > 1000).all()


def test_reweighting_gives_the_moments_and_free_energy_of_the_target():
    samples, _ = harmonic_windows(4000, 15)
    result = mbar(samples)
    assert not result.energies
    x = samples["x"]
    target = reweight(samples, result, 0.5 * 40.0 * x**2 / KT)
    assert target.weights.sum() == pytest.approx(1)
    assert target.weights @ x**2 == pytest.approx(KT / 80.0, rel=4 * np.sqrt(2 / target.effective_samples))
    assert target.free_energy == pytest.approx(0.5 * np.log(2), abs=4 / np.sqrt(target.effective_samples))
    assert np.allclose(reweight(samples, result, np.zeros(len(x))).log_weights, result.log_weights, atol=1e-12)
    assert target.findings == ()


def test_means_of_reweighted_samples_carry_errors_and_effective_numbers():
    samples, _ = harmonic_windows(2000, 22)
    x = samples["x"]
    for weights in (mbar(samples), wham(samples)):
        here = reweight(samples, weights)
        found = here.mean("x")
        assert here.free_energy == 0
        assert abs(found.value) < 4 * found.standard_error
        assert found.n_effective > 500
        assert found.value == expectation(samples, "x", weights=weights).value
        softer = reweight(samples, weights, 0.5 * 20.0 * x**2 / KT).mean(lambda row: row["x"] ** 2)
        assert softer.value == pytest.approx(KT / 60.0, abs=5 * softer.standard_error)


@pytest.mark.parametrize("warm_start", [True, False])
def test_pymbar_is_handed_the_solution_of_wham(monkeypatch, warm_start):
    import pymbar

    handed, original = [], pymbar.MBAR
    monkeypatch.setattr(pymbar, "MBAR", lambda u, n, **given: (handed.append(given.get("initial_f_k")), original(u, n, **given))[1])
    samples = wells(seed=23)
    mbar(samples, warm_start=warm_start, solver="pymbar")
    if not warm_start:
        assert handed == [None]
        return
    f = wham(samples).free_energies
    assert np.abs(handed[0] - (f - f[0])).max() < 1e-9


@pytest.mark.parametrize("solver", ["torch", "pymbar"])
def test_a_solution_that_stopped_early_is_reported(monkeypatch, solver):
    import pymbar

    newton = MBAR_FILE.newton
    monkeypatch.setattr(MBAR_FILE, "newton", lambda *a, **k: newton(*a, **k, max_iterations=1))
    monkeypatch.setattr(pymbar, "MBAR", lambda u, n, **given: SimpleNamespace(f_k=np.zeros(len(n))))
    result = mbar(wells(seed=24), solver=solver, warm_start=False)
    assert result.residual > 0.1
    assert "not-converged" in {f.code for f in result.findings}


def test_a_target_nobody_sampled_is_reported():
    samples, _ = harmonic_windows(100, 16)
    far = reweight(samples, mbar(samples), 4000.0 * (samples["x"] - 1.5) ** 2)
    assert far.effective_samples < 5
    assert [f.code for f in far.warnings] == ["few-effective-samples"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"u_kn": np.zeros(5)}, "shape"),
        ({"n_k": [5, 5, 5]}, "shape"),
        ({"n_k": [5, 4]}, "10 rows"),
        ({"n_k": [12, -2]}, "10 rows"),
        ({"u_kn": np.where(np.arange(10) == 7, np.nan, np.zeros((2, 10)))}, "row 7 in state 0 is nan"),
        ({"u_kn": np.where(np.arange(10) == 7, np.inf, np.zeros((2, 10)))}, "row 7 is impossible"),
        ({"u_kn": np.stack([np.zeros(10), np.full(10, np.inf)])}, "state 1 holds samples but forbids"),
        ({"start": [0.0]}, "start"),
        ({"start": [0.0, np.nan]}, "start"),
    ],
)
def test_arrays_that_cannot_be_right_are_refused(change, match):
    with pytest.raises(DataError, match=match):
        solve_mbar(**{"u_kn": np.zeros((2, 10)), "n_k": [5, 5], **change})


def test_states_that_do_not_fit_are_refused():
    samples, _ = harmonic_windows(20, 17)
    rows = len(samples)
    with pytest.raises(DataError, match="nan in row 3"):
        ReducedState(np.where(np.arange(rows) == 3, np.nan, 0.0))
    with pytest.raises(DataError, match="60 rows"):
        mbar(samples, states=[ReducedState(np.zeros(5))])
    with pytest.raises(DataError, match="claims window 9"):
        mbar(samples, states=[ReducedState(np.zeros(rows), window=9)])
    with pytest.raises(DataError, match="claims window 1"):
        mbar(samples, states=[ReducedState(np.zeros(rows), window=1), ReducedState(np.zeros(rows), window=1)])
    with pytest.raises(DataError, match="potential energy"):
        mbar(wells(n=20), states=[ReducedState(np.zeros(280))])
    with pytest.raises(DataError, match="60 rows"):
        reweight(samples, mbar(samples), np.zeros(3))
    with pytest.raises(DataError, match="the weights are for 60 rows"):
        reweight(samples.select(slice(9)), mbar(samples))
    with pytest.raises(ConfigError, match="did you mean 'torch'"):
        mbar(samples, solver="torhc")
    with pytest.raises(ConfigError, match="cannot be used"):
        solve_mbar(np.zeros((2, 10)), [5, 5], device="nonsense")


def test_a_state_may_forbid_rows_of_others():
    # A hard wall at x = 0: infinite energy beyond it.
    rng = np.random.default_rng(18)
    x = rng.standard_normal(4000)
    x[2000:] = np.abs(x[2000:])
    u = np.stack([0.5 * x**2, np.where(x > 0, 0.5 * x**2, np.inf)])
    result = solve_mbar(u, [2000, 2000])
    assert result.free_energies[1] == pytest.approx(np.log(2), abs=4 * np.sqrt(1 / 2000))


def test_importing_the_analysis_leaves_torch_alone():
    code = "import couloir.analysis, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
