"""A committor learned from shots: right likelihood, honest calibration, and a CV that can bias."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from couloir.cv import CommittorCoordinate, Features, FittedCommittor, HarmonicBias, LearnedCommittor, check_gradient, from_dict
from couloir.cv.reliability import reliability
from couloir.errors import DataError, ModelError
from couloir.sampling import ToyEngine, potentials

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def truth(y: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(3 * y[:, 0] + 2 * np.sin(2 * y[:, 1]))))


def shots(n: int, per_configuration: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    y = rng.uniform(-1.5, 1.5, size=(n, 2))
    hits = rng.binomial(per_configuration, truth(y))
    return y, per_configuration - hits, hits


FRESH = np.random.default_rng(99).uniform(-1.4, 1.4, size=(2000, 2))


@pytest.fixture(scope="module")
def fitted() -> FittedCommittor:
    return LearnedCommittor((16, 16), max_epochs=150).fit(*shots(600, 10, 1), seed=1)


def test_it_learns_a_committor_that_is_not_linear(fitted: FittedCommittor) -> None:
    assert np.sqrt(((fitted.p(FRESH) - truth(FRESH)) ** 2).mean()) < 0.04
    linear = LearnedCommittor((), max_epochs=150).fit(*shots(600, 10, 1), seed=1)
    assert np.sqrt(((linear.p(FRESH) - truth(FRESH)) ** 2).mean()) > 0.08
    assert fitted.held_out_loss < linear.held_out_loss < fitted.constant_loss
    assert not fitted.warnings


def test_single_shots_are_enough() -> None:
    model = LearnedCommittor((16, 16), max_epochs=60).fit(*shots(3000, 1, 2), seed=1)
    assert np.sqrt(((model.p(FRESH) - truth(FRESH)) ** 2).mean()) < 0.07


def test_a_linear_logit_is_the_maximum_of_the_binomial_likelihood() -> None:
    # with enough steps and no decay: the score sum_i (k_B - n p) (1, y) vanishes on the configurations trained on
    rng = np.random.default_rng(3)
    y, n = rng.normal(size=(400, 1)), rng.integers(1, 9, size=400)
    hits = rng.binomial(n, 1 / (1 + np.exp(-(0.5 + 2 * y[:, 0]))))
    whole = LearnedCommittor((), held_out=0.005, weight_decay=0, patience=1000, batch_size=400, learning_rate=0.05, max_epochs=300)
    z = whole.fit(y, n - hits, hits, seed=1).logit(np.array([[0.0], [1.0]]))
    # the maximum by Newton's method; two configurations out of 400 are held out, and choose the epoch
    design, beta = np.c_[np.ones(400), y], np.zeros(2)
    for _ in range(20):
        p = 1 / (1 + np.exp(-design @ beta))
        information = design.T @ (design * (n * p * (1 - p))[:, None])
        beta = beta + np.linalg.solve(information, design.T @ (hits - n * p))
    error = np.sqrt(np.diag(np.linalg.inv(information)))
    assert z[0] == pytest.approx(beta[0], abs=error[0])
    assert z[1] - z[0] == pytest.approx(beta[1], abs=error[1])


def test_its_reliability_is_that_of_fresh_shots(fitted: FittedCommittor) -> None:
    y, to_a, to_b = shots(400, 10, 7)
    right = reliability(truth(y), to_a, to_b)
    assert right.chi_squared < 3  # ten squares of standard normals: above 3 with probability 1e-4 at most
    assert (right.n_shots.sum(), right.n_configurations.sum()) == (4000, 400)
    sharper = reliability(truth(y) ** 2 / (truth(y) ** 2 + (1 - truth(y)) ** 2), to_a, to_b)
    assert sharper.chi_squared > 10
    assert np.abs(fitted.held_out.observed - fitted.held_out.predicted).max() < 0.2
    assert list(fitted.held_out.to_dataframe().columns)[:2] == ["predicted", "observed"]
    assert "Reliability" in str(fitted.held_out)


def test_features_that_say_nothing_are_reported() -> None:
    rng = np.random.default_rng(5)
    hits = rng.binomial(10, rng.beta(0.5, 0.5, size=60))
    model = LearnedCommittor(max_epochs=60).fit(rng.normal(size=(60, 8)), 10 - hits, hits, seed=3)
    assert [w.code for w in model.warnings] == ["committor-not-learned"]


def test_a_seed_repeats_and_another_differs() -> None:
    quick = LearnedCommittor((8,), max_epochs=5)
    one, same, other = (quick.fit(*shots(100, 5, 1), seed=s).logit(FRESH) for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


def test_configurations_without_shots_do_not_count() -> None:
    y, to_a, to_b = shots(100, 5, 1)
    to_a[:40] = to_b[:40] = 0
    assert LearnedCommittor((4,), max_epochs=2).fit(y, to_a, to_b, seed=1).n_configurations == 60


def test_a_saved_model_is_the_same_model(fitted: FittedCommittor, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    again = FittedCommittor.load(tmp_path / "model")
    assert np.array_equal(again.logit(FRESH), fitted.logit(FRESH))
    assert str(again) == str(fitted)
    assert str(again.held_out) == str(fitted.held_out)


def test_damaged_or_missing_models_are_refused(fitted: FittedCommittor, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        FittedCommittor.load(tmp_path)
    fitted.save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    with pytest.raises(ModelError, match="two saves"):
        FittedCommittor.load(tmp_path)


def test_as_a_cv_it_has_the_values_of_the_model(fitted: FittedCommittor) -> None:
    features = Features.coordinates((0, 1))
    positions = FRESH[:, None, :]
    logit, p = fitted.coordinate(features), fitted.coordinate(features, "p_b", "p")
    assert logit.evaluate(positions) == pytest.approx(fitted.logit(FRESH))
    assert p.evaluate(positions) == pytest.approx(fitted.p(FRESH))
    check_gradient(logit, positions[:20])
    check_gradient(p, positions[:20])
    again = from_dict(json.loads(json.dumps(logit.to_dict())))
    assert isinstance(again, CommittorCoordinate)
    assert np.array_equal(again.evaluate(positions), logit.evaluate(positions))


def test_a_bias_on_a_linear_logit_is_that_on_the_coordinate_itself() -> None:
    rng = np.random.default_rng(8)
    x = rng.uniform(-1, 1, size=(200, 1))
    hits = rng.binomial(10, 1 / (1 + np.exp(-2 * x[:, 0])))
    model = LearnedCommittor((), max_epochs=50).fit(x, 10 - hits, hits, seed=1)
    logit = model.coordinate(Features.coordinates((0,)))
    offset, end = model.logit(np.array([[0.0], [1.0]]))
    slope = end - offset
    engine = ToyEngine(potentials.double_well(2.0), kT=1.0, time_step=2e-3, threads=1)
    (plain,) = engine.potential.cvs()
    settings = {"duration": 0.4, "stride": 0.1, "seed": 5}
    learned = engine.propagate(engine.state(0.3), bias=HarmonicBias.on([logit], [0.5], [20.0]), record=[logit], **settings)
    native = engine.propagate(
        engine.state(0.3), bias=HarmonicBias.on([plain], [(0.5 - offset) / slope], [20.0 * slope**2]), record=[plain], **settings
    )
    assert learned[0].positions == pytest.approx(native[0].positions, abs=1e-9)


def test_features_of_another_number_are_refused(fitted: FittedCommittor) -> None:
    with pytest.raises(DataError, match="layers"):
        fitted.coordinate(Features.coordinates((0,)))
    with pytest.raises(DataError, match="features"):
        fitted.p(np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("to_a", "to_b"),
    [(np.ones(20), np.zeros(20)), (np.ones(19), np.ones(20)), (np.full(20, 0.5), np.ones(20)), (-np.ones(20), np.ones(20))],
)
def test_shots_that_teach_nothing_are_refused(to_a: np.ndarray, to_b: np.ndarray) -> None:
    with pytest.raises(DataError):
        LearnedCommittor().fit(np.zeros((20, 2)), to_a, to_b, seed=1)


@pytest.mark.parametrize("settings", [{"hidden": (0,)}, {"held_out": 1.0}, {"patience": 0}, {"weight_decay": -1.0}])
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(DataError):
        LearnedCommittor(**settings)
