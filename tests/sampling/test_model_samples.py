"""A model's density is normalized, and weighing by it repairs what the model, or trapped windows, got wrong."""

import numpy as np
import pytest

from couloir.analysis import free_energy_surface, mbar
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError, ModelError
from couloir.generative import ConditionalSGM, FittedConditionalSGM, TrainingPlan, Vector
from couloir.generative.model_state import ModelState, UniformLabels
from couloir.sampling import ToyEngine, UmbrellaSampling, potentials
from couloir.sampling.model_samples import sample_model, with_windows
from couloir.trajectory import Array, State

X, Y = Coordinate(0, "x"), Coordinate(1, "y")
BOX = UniformLabels(np.array([-1.8]), np.array([-0.2]), (None,))


def engine() -> ToyEngine:
    return ToyEngine(potentials.hidden_barrier(), kT=1.0, time_step=2e-3, threads=1)


def skewed(n: int, rng: np.random.Generator) -> Array:
    """Return structures whose y mode is wrong by a factor of 10: x uniform, y from its conditional, then y > 0 ten times as often."""
    x, grid = rng.uniform(-2.0, 0.0, n), np.linspace(-2, 2, 801)
    y = np.empty(n)
    for part in np.array_split(np.arange(n), 20):
        points = np.stack([np.repeat(x[part], len(grid)), np.tile(grid, len(part))], axis=1)
        w = np.exp(-engine().potential.energy(points)).reshape(len(part), -1) * np.where(grid > 0, 10.0, 1.0)
        cdf = np.cumsum(w, axis=1)
        y[part] = [np.interp(u, c / c[-1], grid) for u, c in zip(rng.random(len(part)), cdf, strict=True)]
    return np.stack([x, y], axis=1)[:, None]


@pytest.fixture(scope="module")
def model() -> FittedConditionalSGM:
    plan = TrainingPlan(steps=500, patience=None)
    return ConditionalSGM(Vector(), label=X, width=64, depth=2).fit(skewed(8000, np.random.default_rng(3)), seed=1, plan=plan)


def exact(points: Array) -> Array:
    return engine().potential.exact_free_energy(points, kT=1.0)


def test_the_density_of_a_state_is_normalized_and_that_of_its_samples(model: FittedConditionalSGM) -> None:
    state = ModelState(model, BOX)
    x, y = np.linspace(-1.9, -0.1, 46), np.linspace(-3, 3, 101)
    points = np.stack([g.ravel() for g in np.meshgrid(x, y, indexing="ij")], axis=1)[:, None]
    density = np.exp(state.log_prob(points)).reshape(len(x), len(y))
    inside = (x > -1.8) & (x < -0.2)
    assert (density[~inside] == 0).all()
    np.testing.assert_allclose(density[inside].sum(axis=1) * (y[1] - y[0]) * 1.6, 1.0, atol=3e-3)
    drawn = state.sample(200, seed=2)
    np.testing.assert_allclose(drawn.log_prob, state.log_prob(drawn.positions), atol=0.02)


def test_a_model_gives_itself_as_a_state(model: FittedConditionalSGM) -> None:
    assert model.as_state(BOX, n_steps=30).settings == {"n_steps": 30}
    drawn, same = model.as_state(BOX).sample(5, seed=2), ModelState(model, BOX).sample(5, seed=2)
    np.testing.assert_array_equal(drawn.log_prob, same.log_prob)
    with pytest.raises(ModelError, match="one imposed label"):
        model.as_state([0.0])


def test_weights_repair_a_model_that_is_wrong_by_ten(model: FittedConditionalSGM) -> None:
    generated = sample_model(ModelState(model, BOX), engine(), 6000, (X, Y), seed=5)
    # p(y > 0 | x in the box) with x weighted by exp(-F): against quadrature, within 4.5 standard errors of the weighted mean.
    grid = np.stack([g.ravel() for g in np.meshgrid(np.linspace(-1.8, -0.2, 321), np.linspace(-2, 2, 401), indexing="ij")], axis=1)
    w = np.exp(-engine().potential.energy(grid))
    truth = w[grid[:, 1] > 0].sum() / w.sum()
    weights, right = np.exp(generated.log_weights), generated.samples["y"] > 0
    error = np.sqrt(((weights * (right - truth)) ** 2).sum())
    assert abs(weights @ right - truth) < 4.5 * error
    assert error < 0.1 * truth
    assert right.mean() > 2 * truth  # what the model itself says
    assert generated.findings == ()
    assert 600 < generated.effective_samples < 5000


def in_mode(positions: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(positions[:, 0, 1] > 0, dtype=np.int64)


def test_trapped_windows_beside_the_model_give_the_right_surface(model: FittedConditionalSGM) -> None:
    """Every walker starts, and stays, at y > 0, the rare side: pooled windows are wrong, and so is the model."""
    windows = UmbrellaSampling.grid(X, 4, 20.0, range=(-1.3, -0.4))
    seeds = {w: [State(np.array([[c[0], 1.0]]))] * 3 for w, c in enumerate(windows.centers)}
    samples = windows.run(engine(), seeds, 40.0, seed=3, record=(Y,), record_stride=0.2, exchange=False)
    frames = np.stack([samples["x"], samples["y"]], axis=1)[:, None]
    assert (samples["y"] > 0).all()
    state = ModelState(model, BOX)
    generated = sample_model(state, engine(), 6000, (X, Y), seed=6)
    joined, states = with_windows(generated, state, samples, frames, in_mode)
    limits = {"bins": 10, "limits": (-1.3, -0.4)}
    surface = free_energy_surface(joined, X, weights=mbar(joined, states=states), n_bootstrap=60, **limits)
    pooled = free_energy_surface(samples, X, n_bootstrap=0, **limits)
    truth = _centred(exact(surface.grid[0]))
    off = _centred(surface.free_energy) - truth
    assert surface.standard_error.max() < 0.15
    assert (np.abs(off) < 4.5 * surface.standard_error + 0.02).all()
    assert np.sqrt(np.mean((_centred(pooled.free_energy) - truth) ** 2)) > 0.15
    # Taken for equilibrium samples of their windows, the trapped rows would pull the answer their way.
    naive, alone = with_windows(generated, state, samples, frames)
    pulled = free_energy_surface(naive, X, weights=mbar(naive, states=alone), n_bootstrap=0, **limits)
    assert np.abs(_centred(pulled.free_energy) - truth).max() > 2 * np.abs(off).max()


def _centred(free_energy: Array) -> Array:
    return np.asarray(free_energy - free_energy.mean())


def test_a_model_far_from_the_molecule_says_so(model: FittedConditionalSGM) -> None:
    cold = ToyEngine(potentials.hidden_barrier(kT=40.0), kT=1.0, time_step=1e-4, threads=1)
    generated = sample_model(ModelState(model, BOX), cold, 300, (X, Y), seed=5)
    assert [f.code for f in generated.findings] == ["model-far-off"]
    assert "300 structures" in str(generated)


def test_a_flow_integrated_too_coarsely_says_so(model: FittedConditionalSGM) -> None:
    fine = sample_model(ModelState(model, BOX), engine(), 300, (X, Y), seed=5)
    coarse = sample_model(ModelState(model, BOX, {"n_steps": 4, "method": "heun"}), engine(), 300, (X, Y), seed=5)
    assert "inexact-density" in [f.code for f in coarse.findings]
    assert "inexact-density" not in [f.code for f in fine.findings]


def test_labels_that_leave_no_density_are_refused(model: FittedConditionalSGM) -> None:
    with pytest.raises(ModelError, match="one imposed label"):
        ModelState(model, (0.0,))
    with pytest.raises(DataError, match="label box"):
        UniformLabels(np.array([1.0]), np.array([-1.0]), (None,))
    generated = sample_model(ModelState(model, BOX), engine(), 20, (X, Y), seed=5)
    with pytest.raises(DataError, match="2 configurations for"):
        with_windows(generated, ModelState(model, BOX), generated.samples, np.zeros((2, 1, 2)))


def test_a_periodic_box_may_run_through_the_edge() -> None:
    box = UniformLabels(np.array([2.5]), np.array([4.0]), (2 * np.pi,))
    drawn = box.draw(4000, np.random.default_rng(1))
    assert np.abs(drawn).max() <= np.pi
    assert set(np.exp(box.log_density(drawn)).round(6)) == {round(1 / 1.5, 6)}
    assert box.log_density(np.array([[0.0], [-3.0], [3.0]])).tolist() == [-np.inf, pytest.approx(-np.log(1.5)), pytest.approx(-np.log(1.5))]
