"""Labels are drawn where weights come from, and every structure is weighed in the mixture of all densities they were drawn from."""

import numpy as np
import pytest

from couloir.cv.geometric import Coordinate
from couloir.errors import ConfigError
from couloir.generative import ConditionalSGM, FittedConditionalSGM, TrainingPlan, Vector
from couloir.sampling import ToyEngine, dragged_seeds, potentials, sample_adaptively
from couloir.sampling.adaptive_labels import FIRST, SPREAD
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.trajectory import Array, State

X, Y = Coordinate(0, "x"), Coordinate(1, "y")
N, LOW, HIGH, BINS, HIGHEST = 2500, -2.2, 0.2, 12, 0.1
EXACT = {"n_steps": 20, "check": None}


def engine() -> ToyEngine:
    return ToyEngine(potentials.hidden_barrier(), kT=1.0, time_step=2e-3, threads=1)


@pytest.fixture(scope="module")
def model() -> FittedConditionalSGM:
    """A model of y given x that knows both of its modes, and little more."""
    rng = np.random.default_rng(3)
    x, mode = rng.uniform(-2.3, 0.3, 4000), rng.integers(2, size=4000)
    points = np.stack([x, np.where(mode, 1.0, -1.0) + 0.35 * rng.standard_normal(4000)], axis=1)[:, None]
    plan = TrainingPlan(steps=400, patience=None)
    return ConditionalSGM(Vector(), label=X, width=64, depth=2).fit(points, seed=1, plan=plan)


@pytest.fixture(scope="module")
def made(model: FittedConditionalSGM):
    return sample_adaptively(model, engine(), N, X, seed=2, record=(Y,), limits=[(LOW, HIGH)], bins=BINS, highest=HIGHEST, settings=EXACT)


def truth() -> tuple[Array, Array, Array]:
    """Return the integral of exp(-U) over each cell of x, the same at y > 0, and the edges."""
    edges = np.linspace(LOW, HIGH, BINS + 1)
    x, y = np.linspace(LOW, HIGH, 40 * BINS + 1), np.linspace(-3, 3, 601)
    middle = (x[1:] + x[:-1]) / 2
    grid = np.stack([g.ravel() for g in np.meshgrid(middle, y, indexing="ij")], axis=1)
    w = np.exp(-engine().potential.energy(grid)).reshape(BINS, 40, len(y)) * (x[1] - x[0]) * (y[1] - y[0])
    return w.sum(axis=(1, 2)), w[:, :, y > 0].sum(axis=(1, 2)), edges


def test_integrals_over_every_cell_are_right_within_their_errors(made) -> None:
    whole, above, edges = truth()
    ratio = np.exp(-made.samples.potential - made.log_prob)  # its mean over all that were drawn is the integral of exp(-U)
    x, y = made.samples["x"], made.samples["y"]
    assert ((x >= LOW) & (x <= HIGH)).all()
    assert 0.9 * N < len(made) < N  # kernels reach a little beyond
    for c in range(BINS):
        inside = (x > edges[c]) & (x < edges[c + 1])
        for part, exact in ((inside, whole[c]), (inside & (y > 0), above[c])):
            mean = (ratio * part).sum() / N
            error = np.sqrt(((ratio * part) ** 2).sum() / N - mean**2) / np.sqrt(N)
            assert abs(mean - exact) < 4.5 * error, (c, mean, exact, error)
            assert error < 0.5 * exact


def test_low_cells_hold_alike_many_structures_and_high_ones_few(made) -> None:
    whole, _, edges = truth()
    height = -np.log(whole / whole.max())
    counts = np.histogram(made.samples["x"], edges)[0] / len(made)
    far, near = height > HIGHEST + 1.2, height < HIGHEST + 0.3
    assert far.sum() >= 3
    assert near.sum() >= 3
    assert counts[far].max() < 0.7 * counts[near].min()
    assert counts[far].min() > 0.5 * (FIRST + (1 - FIRST) * SPREAD) / BINS


def test_the_surface_is_that_of_the_system(made) -> None:
    whole, _, _ = truth()
    surface = made.surface("x", bins=BINS, limits=(LOW, HIGH), n_bootstrap=50, seed=1)
    exact = -np.log(whole)
    off = surface.free_energy - surface.free_energy.min() - (exact - exact.min())
    assert np.abs(off).max() < 0.5
    assert 0.01 < np.nanmedian(surface.standard_error) < 0.2


def test_the_same_seed_gives_the_same_structures(model: FittedConditionalSGM) -> None:
    one, other = (sample_adaptively(model, engine(), 60, X, seed=5, limits=[(LOW, HIGH)], rounds=2, settings=EXACT) for _ in range(2))
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_array_equal(one.log_prob, other.log_prob)


def test_a_label_the_model_does_not_have_and_too_few_structures_are_refused(model: FittedConditionalSGM) -> None:
    with pytest.raises(ConfigError, match="'y' is no label of the model, which has x"):
        sample_adaptively(model, engine(), 100, Y, seed=1)
    with pytest.raises(ConfigError, match="ten structures a round"):
        sample_adaptively(model, engine(), 20, X, seed=1)


def test_structures_are_dragged_over_a_grid_without_being_minimized(monkeypatch) -> None:
    monkeypatch.setattr(ToyEngine, "minimize", lambda *_, **__: pytest.fail("minimized"))
    windows = UmbrellaSampling.grid([X, Y], [4, 3], 30.0, range=[(-1.0, 1.0), (-1.0, 1.0)])
    seeds = dragged_seeds(engine(), windows, State(np.array([[-1.0, -1.0]])), seed=1, thermalization=0.4, relax=False)
    assert sorted(seeds.windows) == list(range(12))
    points = np.array([state.positions[0] for state in seeds.states])
    away = [windows.distance(point[None], windows.centers[w])[0] for point, w in zip(points, seeds.windows, strict=True)]
    assert max(away) < 6.0  # widths of a window
