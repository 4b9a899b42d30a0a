"""What must hold for any windows whatever: shifts, orders, copies, images, units, empty and lonely windows, huge biases, bad rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couloir.analysis import BiasedSamples, free_energy_surface, mbar, wham
from couloir.cv.bias import Bias, HarmonicBias
from couloir.errors import DataError
from couloir.units import kt

T = np.array([300.0])
KT = kt(300.0)
EXACT = {"wham": wham, "pymbar": partial(mbar, solver="pymbar"), "torch": partial(mbar, solver="torch")}
examples = partial(settings, derandomize=True, deadline=None, database=None)
some, few = examples(max_examples=40), examples(max_examples=12)
each_estimator = pytest.mark.parametrize("estimate", EXACT.values(), ids=EXACT)


@dataclass(frozen=True)
class Raised(Bias):
    """A bias with a constant added to it."""

    bias: Bias
    constant: float

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.bias.names

    def energy(self, values: Any) -> Any:
        return self.bias.energy(values) + self.constant

    gradient = lepton = to_dict = None  # type: ignore[assignment]


@st.composite
def windows(draw: Any, *, least: int = 2, rows: int = 50, periodic: bool | None = None) -> BiasedSamples:
    """Windows of a few rows on a flat potential (nm or rad), one walker in each, mostly overlapping."""
    n = draw(st.integers(least, 6))
    counts = draw(st.lists(st.integers(min(8, rows), rows), min_size=n, max_size=n))
    period = 2 * np.pi if (draw(st.booleans()) if periodic is None else periodic) else None
    stiffness = draw(st.floats(20.0, 200.0))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    width, gap = np.sqrt(KT / stiffness), draw(st.sampled_from([1.0, 2.0, 5.0, 30.0]))
    centers = (rng.uniform(-3, 3) if period else 0.0) + gap * width * np.arange(n)
    x = np.concatenate([c + width * rng.standard_normal(m) for c, m in zip(centers, counts, strict=True)])
    which = np.repeat(np.arange(n), counts)
    biases = tuple(HarmonicBias(("x",), (float(wrapped(c, period)),), (stiffness,), (period,)) for c in centers)
    return BiasedSamples(
        ("x", "y"), ("rad" if period else "nm", "nm"), (period, None), np.column_stack([wrapped(x, period), rng.standard_normal(len(x))]),
        np.full(len(x), np.nan), which, which, np.concatenate([np.arange(1.0, m + 1) for m in counts]), biases, T,
    )  # fmt: skip


def wrapped(x: Any, period: float | None) -> Any:
    return x if period is None else (x + period / 2) % period - period / 2


def alike(one: Any, other: Any, tolerance: float = 1e-6) -> bool:
    """Whether two arrays agree, also in where nothing is known."""
    return np.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)


def surface(samples: BiasedSamples, estimator: str = "wham", **options: Any) -> Any:
    return free_energy_surface(samples, "x", estimator=estimator, bins=12, n_bootstrap=0, equilibrate=False, **options)


@each_estimator
@some
@given(samples=windows(), raised=st.integers(0, 5), constant=st.floats(-300.0, 300.0))
def test_a_constant_added_to_a_bias_shifts_that_window_and_nothing_else(estimate, samples, raised, constant):
    k = raised % samples.n_windows
    biases = tuple(Raised(b, constant * KT) if i == k else b for i, b in enumerate(samples.biases))
    before, after = estimate(samples), estimate(replace(samples, biases=biases))
    assert alike(after.free_energies - before.free_energies, constant * (np.arange(samples.n_windows) == k))
    assert alike(after.weights, before.weights)
    assert alike(after.overlap, before.overlap)
    assert after.sets == before.sets


@each_estimator
@some
@given(samples=windows(), seed=st.integers(0, 1000))
def test_the_order_of_windows_and_of_walkers_does_not_matter(estimate, samples, seed):
    new = np.random.default_rng(seed).permutation(samples.n_windows)
    # Window k becomes number new[k], and rows are interleaved anew, in time order within each walker.
    rows = np.lexsort((np.random.default_rng(seed + 1).permutation(samples.n_windows)[samples.window], samples.time))
    moved = samples.select(rows)
    moved = replace(moved, window=new[moved.window], biases=tuple(samples.biases[k] for k in np.argsort(new)))
    before, after = estimate(samples), estimate(moved)
    assert alike(after.free_energies[new], before.free_energies)
    assert alike(after.weights, before.weights[rows])
    assert alike(surface(moved, weights=after).free_energy, surface(samples, weights=before).free_energy, 1e-4)


@each_estimator
@some
@given(samples=windows(), copied=st.integers(0, 5), seed=st.integers(0, 1000))
def test_a_window_given_twice_changes_nothing(estimate, samples, copied, seed):
    k = copied % samples.n_windows
    to_copy = (samples.window == k) & (np.random.default_rng(seed).random(len(samples)) < 0.5)
    twice = replace(
        samples, window=np.where(to_copy, samples.n_windows, samples.window), biases=(*samples.biases, samples.biases[k]), temperatures=T
    )
    before, after = estimate(samples), estimate(twice)
    # WHAM's own bins follow the widths of the windows' samples: only binless estimates are equal to rounding.
    tolerance = 1e-6 if estimate is not wham else 0.02
    assert alike(after.free_energies[:-1], before.free_energies, tolerance)
    assert after.free_energies[-1] == pytest.approx(after.free_energies[k], abs=1e-6)
    assert alike(after.weights, before.weights, tolerance)


@each_estimator
@some
@given(samples=windows(), emptied=st.integers(0, 5))
def test_an_empty_window_is_reported_and_changes_nothing(estimate, samples, emptied):
    at = emptied % (samples.n_windows + 1)
    biases = (*samples.biases[:at], replace(samples.biases[0], force_constants=(30.0,)), *samples.biases[at:])
    more = replace(samples, window=samples.window + (samples.window >= at), biases=biases, temperatures=T)
    before, after = estimate(samples), estimate(more)
    assert alike(np.delete(after.free_energies, at), before.free_energies)
    assert alike(after.weights, before.weights)
    assert np.isfinite(after.free_energies[at]) == (len(after.sets) == 1)
    assert "empty-windows" in {f.code for f in after.findings}


@each_estimator
@some
@given(samples=windows(rows=1))
def test_one_sample_per_window_gives_finite_answers(estimate, samples):
    result = estimate(samples)
    assert np.isfinite(result.free_energies).all()
    assert result.weights.sum() == pytest.approx(1)
    f = surface(samples, weights=result).free_energy
    assert np.nanmin(f) == 0


@each_estimator
@some
@given(samples=windows(), huge=st.floats(1e5, 1e6), both=st.booleans())
def test_biases_of_a_million_kt_are_solved(estimate, samples, huge, both):
    # Stiff enough that the farthest row is at ``huge`` kT in the first window (and in the last).
    chosen = (0, samples.n_windows - 1) if both else (0,)
    biases = list(samples.biases)
    for k in chosen:
        far = samples.bias_energy(k, samples.values).max() / KT
        biases[k] = replace(biases[k], force_constants=(biases[k].force_constants[0] * huge / far,))
    result = estimate(replace(samples, biases=tuple(biases)))
    assert np.isfinite(result.free_energies).all()
    assert np.isfinite(result.overlap).all()
    assert result.weights.sum() == pytest.approx(1)
    assert not {f.code for f in result.findings} & {"not-converged"}


@each_estimator
@some
@given(samples=windows(periodic=True), images=st.integers(-3, 3), seed=st.integers(0, 1000))
def test_periodic_images_change_nothing(estimate, samples, images, seed):
    some_rows = np.random.default_rng(seed).random(len(samples)) < 0.5
    shift = np.column_stack([np.where(some_rows, images * samples.periods[0], 0.0), np.zeros(len(samples))])
    moved = replace(samples, values=samples.values + shift)
    before, after = estimate(samples), estimate(moved)
    assert alike(after.free_energies, before.free_energies)
    assert alike(after.weights, before.weights)
    assert alike(surface(moved, weights=after).free_energy, surface(samples, weights=before).free_energy, 1e-4)


@each_estimator
@some
@given(samples=windows(periodic=False), factor=st.sampled_from([0.1, 10.0, 1000.0, np.pi / 180]))
def test_the_unit_of_a_cv_does_not_matter(estimate, samples, factor):
    def scaled(b: HarmonicBias) -> HarmonicBias:
        return replace(b, centers=(b.centers[0] * factor,), force_constants=(b.force_constants[0] / factor**2,))

    other = replace(samples, values=samples.values * [factor, 1.0], biases=tuple(scaled(b) for b in samples.biases))
    before, after = estimate(samples), estimate(other)
    # A row on the edge of one of WHAM's bins may be rounded into the next.
    assert alike(after.free_energies, before.free_energies, 1e-6 if estimate is not wham else 0.01)


@some
@given(samples=windows(), row=st.integers(0, 10**6), bad=st.sampled_from([np.nan, np.inf, -np.inf]), column=st.integers(0, 1))
def test_a_row_that_is_not_finite_is_named(samples, row, bad, column):
    values = samples.values.copy()
    values[row % len(samples), column] = bad
    with pytest.raises(DataError, match=f"row {row % len(samples)} "):
        replace(samples, values=values)


def hot(samples: BiasedSamples, potential: Any) -> BiasedSamples:
    """The same windows at rising temperatures, with potential energies."""
    return replace(samples, potential=potential, temperatures=300.0 + 5.0 * np.arange(samples.n_windows))


@some
@given(samples=windows(), row=st.integers(0, 10**6), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_row_without_the_potential_energy_it_needs_is_named(samples, row, bad):
    potential = np.where(np.arange(len(samples)) == row % len(samples), bad, 0.0)
    for use in (mbar, BiasedSamples.to_pymbar):
        with pytest.raises(DataError, match=f"that of row {row % len(samples)} is {bad}"):
            use(hot(samples, potential))


@pytest.mark.parametrize("solver", ["pymbar", "torch"])
@few
@given(samples=windows(), constant=st.floats(-1e6, 1e6), seed=st.integers(0, 1000))
def test_the_zero_of_the_potential_energy_shifts_each_temperature_by_its_beta(solver, samples, constant, seed):
    potential = np.random.default_rng(seed).normal(0.0, 2.0, len(samples))
    below, above = hot(samples, potential), hot(samples, potential + constant)
    before, after = mbar(below, solver=solver), mbar(above, solver=solver)
    expected = constant / below.kT - constant / below.kT[0]
    # Energies of 1e6 kJ/mol leave nine digits after the point, and so do their differences.
    assert alike(after.free_energies - before.free_energies, expected, 1e-5)
    assert alike(after.weights, before.weights)


@pytest.mark.parametrize("estimator", ["wham", "mbar"])
@few
@given(samples=windows(), raised=st.integers(0, 5), constant=st.floats(-300.0, 300.0))
def test_surfaces_and_their_errors_do_not_see_constants(estimator, samples, raised, constant):
    k = raised % samples.n_windows
    biases = tuple(Raised(b, constant * KT) if i == k else b for i, b in enumerate(samples.biases))
    options = {"estimator": estimator, "bins": 12, "n_bootstrap": 10}
    before, after = (free_energy_surface(s, "x", **options) for s in (samples, replace(samples, biases=biases)))
    assert alike(after.free_energy, before.free_energy, 1e-4)
    assert alike(after.standard_error, before.standard_error, 1e-4)
    assert [f.code for f in after.findings] == [f.code for f in before.findings]
