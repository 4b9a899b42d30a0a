"""Snippets: cut right, learned right on a process whose every statistic is known, conditioned, imposed, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from couloir.errors import ConfigError, DataError, ModelError
from couloir.generative import PAPER_PLAN, FittedTrajectoryDiffusion, TrainingPlan, TrajectoryDiffusion, Vector
from couloir.generative.snippets import Snippets

FORGET = 0.8
"""Correlation of neighbouring frames."""
SMALL: dict[str, Any] = {"base_channels": 16, "multipliers": (1,), "head": "plain", "attention": False}
QUICK = TrainingPlan(steps=400, batch_size=32, learning_rate=5e-3, ema_decay=0.98, patience=None, evaluations=2, held_out_rows=64)


def process(n: int, seed: int, kT: float = 1.0, d: int = 1) -> np.ndarray:
    """Frames (n, 1, d) of a stationary Gaussian process: variance kT, correlation FORGET^k at lag k."""
    rng = np.random.default_rng(seed)
    out = np.empty((n, d))
    out[0] = rng.normal(size=d)
    kick = np.sqrt(1 - FORGET**2) * rng.normal(size=(n, d))
    for i in range(1, n):
        out[i] = FORGET * out[i - 1] + kick[i]
    return np.sqrt(kT) * out[:, None, :]


@pytest.fixture(scope="module")
def model() -> FittedTrajectoryDiffusion:
    return TrajectoryDiffusion(Vector(), 16, **SMALL).fit([process(20_000, 1) + 3.0], seed=1, stride=0.1, plan=QUICK)


def test_snippets_of_a_gaussian_process_have_its_mean_variance_and_memory(model: FittedTrajectoryDiffusion) -> None:
    x = model.sample(4000, seed=2)
    assert x.shape == (4000, 16, 1, 1)
    y = x[:, :, 0, 0] - 3.0
    # 4000 independent snippets: standard errors are below 0.02; the rest is what 400 steps of training leave.
    assert abs(y.mean()) < 0.1
    assert y.var() == pytest.approx(1.0, abs=0.12)
    for lag in (1, 2, 4, 8):
        assert (y[:, lag:] * y[:, :-lag]).mean() / y.var() == pytest.approx(FORGET**lag, abs=0.08)
    assert y.var(axis=0).max() / y.var(axis=0).min() < 1.25


def test_imposed_frames_come_back_and_the_rest_is_the_bridge_between_them(model: FittedTrajectoryDiffusion) -> None:
    known, mask = np.zeros((16, 1, 1)), np.zeros(16, dtype=bool)
    known[0], known[-1], mask[[0, -1]] = 3.0 + 1.5, 3.0 - 1.5, True
    x = model.inpaint(known, mask, 800, seed=3)[:, :, 0, 0] - 3.0
    np.testing.assert_allclose(x[:, 0], 1.5, atol=1e-5)
    np.testing.assert_allclose(x[:, -1], -1.5, atol=1e-5)
    lags = np.abs(np.subtract.outer(np.arange(16), np.arange(16)))
    c = FORGET ** lags.astype(float)
    ends, middle = [0, 15], np.arange(1, 15)
    mean = c[np.ix_(middle, ends)] @ np.linalg.solve(c[np.ix_(ends, ends)], [1.5, -1.5])
    assert np.abs(x[:, 1:-1].mean(axis=0) - mean).max() < 0.2


def test_a_variation_keeps_what_is_larger_than_its_level(model: FittedTrajectoryDiffusion) -> None:
    path = model.sample(200, seed=4)
    distance = [np.sqrt(((model.vary(path, level, seed=5) - path) ** 2).mean()) for level in (0.05, 0.5, 5.0)]
    assert distance[0] < 0.1
    assert distance[0] < distance[1] < distance[2]


def test_long_trajectories_have_no_seams(model: FittedTrajectoryDiffusion) -> None:
    x = model.sample_long(500, 40, overlap=4, seed=6, n_calls=10)[:, :, 0, 0] - 3.0
    assert x.shape == (500, 40)
    steps = (np.diff(x, axis=1) ** 2).mean(axis=0)
    within = (np.diff(model.sample(2000, seed=7, n_calls=10)[:, :, 0, 0], axis=1) ** 2).mean()
    assert steps == pytest.approx(within, rel=0.4)
    assert x.var(axis=0) == pytest.approx(1.0, abs=0.35)


def test_temperature_widens_what_is_generated() -> None:
    temperatures = (0.5, 1.0, 2.0)
    data = [process(6000, i, kT) for i, kT in enumerate(temperatures)]
    model = TrajectoryDiffusion(Vector(), 8, temperature_conditioned=True, **SMALL).fit(
        data, seed=1, stride=1.0, kT=temperatures, plan=QUICK
    )
    variance = {kT: model.sample(1000, kT=kT, seed=2).var() for kT in (0.5, 0.75, 1.0, 1.5, 2.0)}
    # 0.75 and 1.5 were never seen.
    for kT, found in variance.items():
        assert found == pytest.approx(kT, rel=0.3)
    assert list(variance.values()) == sorted(variance.values())
    with pytest.raises(DataError, match="kT is missing"):
        model.sample(1, seed=0)


def test_mixed_lengths_are_learned_without_filling() -> None:
    model = TrajectoryDiffusion(Vector(), (8, 24), **SMALL).fit([process(10_000, 1)], seed=1, stride=1.0, plan=QUICK)
    for n_frames in (8, 13, 24):
        y = model.sample(1500, n_frames=n_frames, seed=2)[:, :, 0, 0]
        assert y.shape == (1500, n_frames)
        assert y.var() == pytest.approx(1.0, abs=0.25)
        assert (y[:, 1:] * y[:, :-1]).mean() / y.var() == pytest.approx(FORGET, abs=0.12)


def test_snippets_never_cross_the_end_of_a_trajectory() -> None:
    data = [np.arange(n, dtype=float)[:, None, None] + 1000.0 * i for i, n in enumerate((10, 7, 30))]
    cut = Snippets.of(data, Vector(), (5, 5), 1.0, None)
    assert len(cut.starts) == 6 + 3 + 26
    pieces = cut.frames[cut.starts[:, None] + torch.arange(5)]
    values = cut.representation.decode(pieces.reshape(-1, 1).numpy())[:, 0, 0].reshape(-1, 5)
    np.testing.assert_allclose(np.diff(values, axis=1), 1.0, atol=1e-3)


def test_a_saved_model_generates_the_same(model: FittedTrajectoryDiffusion, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = TrajectoryDiffusion.load(tmp_path)
    np.testing.assert_array_equal(again.sample(3, seed=1), model.sample(3, seed=1))
    assert (again.stride, again.lengths) == (0.1, (16, 16))
    assert "snippets of 16 frames, 0.1 ps apart" in str(again)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    data, plan = [process(500, 1)], TrainingPlan(steps=12, batch_size=8, evaluations=4, patience=None)

    def fit(**options: Any) -> FittedTrajectoryDiffusion:
        return TrajectoryDiffusion(Vector(), 8, **SMALL).fit(data, seed=1, stride=1.0, plan=plan, **options)

    def stop(*_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=tmp_path, progress=lambda step, *_: stop() if step == 6 else None)
    resumed, whole = fit(checkpoint=tmp_path), fit()
    for a, b in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ModelError, match="other data"):
        TrajectoryDiffusion(Vector(), 8, **SMALL).fit([process(500, 2)], seed=1, stride=1.0, plan=plan, checkpoint=tmp_path)


def test_the_published_model_and_plan_can_be_trained() -> None:
    from dataclasses import replace

    model = TrajectoryDiffusion.as_published(Vector(), 8, base_channels=8)
    fitted = model.fit([process(300, 1)], seed=1, stride=1.0, plan=replace(PAPER_PLAN, steps=4, batch_size=8, evaluations=2))
    assert fitted.network.prediction == "noise"
    assert fitted.network.head == "energy"
    assert np.isfinite(fitted.sample(2, seed=1, solver="ancestral", n_calls=20)).all()
    assert PAPER_PLAN.rate(10, 1000) == 1e-4
    assert PAPER_PLAN.rate(999, 1000) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrajectoryDiffusion(Vector(), 1), "snippets of 1 frames"),
        (lambda: TrajectoryDiffusion(Vector(), 8).fit([process(5, 1)], seed=0, stride=1.0), "trajectory 0 has 5 frames, a snippet 8"),
        (lambda: TrajectoryDiffusion(Vector(), 8).fit([process(50, 1)], seed=0), "no stride is known"),
        (lambda: TrajectoryDiffusion(Vector(), 8).fit([], seed=0, stride=1.0), "no trajectories"),
        (lambda: TrajectoryDiffusion(Vector(), 8, temperature_conditioned=True).fit([process(50, 1)], seed=0, stride=1.0), "kT is missing"),
        (
            lambda: TrajectoryDiffusion(Vector(), 8, temperature_conditioned=True).fit([process(50, 1)], seed=0, stride=1.0, kT=[1.0, 2.0]),
            "2 temperatures for 1 trajectories",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_what_cannot_be_imposed_is_refused(model: FittedTrajectoryDiffusion) -> None:
    with pytest.raises(DataError, match="16 of 16 frames are imposed"):
        model.inpaint(np.zeros((16, 1, 1)), np.ones(16, dtype=bool), seed=0)
    with pytest.raises(DataError, match="known frames have shape"):
        model.inpaint(np.zeros((16, 1, 1)), np.ones(8, dtype=bool), seed=0)
    with pytest.raises(DataError, match="not conditioned on temperature"):
        model.sample(1, kT=1.0, seed=0)


def test_a_device_that_computes_nothing_is_refused_and_leaves_the_model_as_it_is(model: FittedTrajectoryDiffusion) -> None:
    before = model.sample(3, seed=1, device="cpu")
    for device in ("meta", "cuda:99", "abacus"):
        with pytest.raises(ConfigError, match=device):
            model.sample(3, seed=1, device=device)
    np.testing.assert_array_equal(model.sample(3, seed=1, device="cpu"), before)
    np.testing.assert_allclose(model.sample(3, seed=1), before, atol=1e-3)


def test_a_network_that_was_sent_elsewhere_makes_the_same_snippets(model: FittedTrajectoryDiffusion) -> None:
    """``cpu:0`` is taken for another device: the network is copied there, and every call goes there and back."""
    known, mask = np.zeros((16, 1, 1)), np.arange(16) % 15 == 0
    for make in (
        lambda device: model.sample(3, seed=1, device=device),
        lambda device: model.inpaint(known, mask, 2, seed=1, n_calls=4, device=device),
        lambda device: model.vary(known, 1.0, 2, seed=1, n_calls=4, device=device),
        lambda device: model.sample_long(2, 24, seed=1, n_calls=4, device=device),
    ):
        np.testing.assert_array_equal(make("cpu:0"), make("cpu"))
