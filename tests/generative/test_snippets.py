"""Where snippets may be cut, which of them are held out, and what a training refuses to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from couloir.errors import ConfigError, DataError, ModelError
from couloir.generative import EDM, FittedTrajectoryDiffusion, TrainingPlan, TrajectoryDiffusion, Vector
from couloir.generative.networks.temporal_unet import snippet_loss
from couloir.generative.snippets import Snippets, holding
from couloir.generative.solvers import sample
from couloir.generative.training import split_blocks
from couloir.generative.trajectory_diffusion import DEFAULT_PLAN, PAPER_PLAN
from couloir.trajectory import Trajectory

TINY: dict[str, Any] = {"base_channels": 8, "head": "plain", "attention": False}
PLAN = TrainingPlan(steps=4, batch_size=8, evaluations=2, patience=None)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 1, 2)) * [0.1, 3.0] + [7.0, -1.0]


@pytest.fixture(scope="module")
def tiny() -> FittedTrajectoryDiffusion:
    return TrajectoryDiffusion(Vector(), 8, **TINY).fit([noise(200)], seed=1, stride=0.1, plan=PLAN)


@pytest.mark.parametrize("n_rows", [700, 2000, 20_000])
@pytest.mark.parametrize("span", [8, 64])
def test_held_out_snippets_share_no_frame_with_training_ones(n_rows: int, span: int) -> None:
    kept, held = split_blocks(n_rows, 0.05, gap=span)
    assert 0.03 * n_rows < len(held) < 0.07 * n_rows
    assert len(kept) >= 0.5 * n_rows
    frames = np.zeros(n_rows + span - 1, dtype=bool)
    for row in held:
        frames[row : row + span] = True
    assert not any(frames[row : row + span].any() for row in kept)


def test_nothing_is_held_out_when_gaps_would_leave_too_little() -> None:
    kept, held = split_blocks(200, 0.05, gap=64)
    assert (len(kept), len(held)) == (200, 0)


def test_every_other_frame_makes_snippets_of_twice_the_duration() -> None:
    data = [np.arange(n, dtype=float)[:, None, None] + 1000.0 * i for i, n in enumerate((9, 30))]
    cut = Snippets.of(data, Vector(), (5, 5), 0.5, None, stride_frames=2)
    assert (cut.stride, cut.span) == (1.0, 9)
    assert len(cut.starts) == 1 + 22
    pieces = cut.frames[cut.starts[:, None] + 2 * torch.arange(5)]
    values = cut.representation.decode(pieces.reshape(-1, 1).numpy())[:, 0, 0].reshape(-1, 5)
    np.testing.assert_allclose(np.diff(values, axis=1), 2.0, atol=1e-3)
    model = TrajectoryDiffusion(Vector(), 5, **TINY).fit(data, seed=0, stride=0.5, stride_frames=2, plan=PLAN)
    assert model.stride == 1.0


def test_trajectories_bring_their_stride_and_need_not_be_equally_long() -> None:
    parts = [Trajectory(noise(n, n), 0.25) for n in (40, 60)]
    assert TrajectoryDiffusion(Vector(), 8, **TINY).fit(parts, seed=0, plan=PLAN).stride == 0.25
    assert TrajectoryDiffusion(Vector(), 8, **TINY).fit(parts[0], seed=0, plan=PLAN).sample(2, n_frames=5, seed=0).shape == (2, 5, 1, 2)


def test_short_snippets_begin_wherever_they_can_equally_often() -> None:
    """Of short runs most frames lie where no longest snippet begins."""
    data = [100.0 * i + np.arange(n, dtype=float)[:, None, None] * np.ones(2) for i, n in enumerate((10, 16))]
    cut = Snippets.of(data, Vector(), (4, 12), 1.0, None, stride_frames=1)
    assert cut.span == 12
    assert cut.starts.tolist() == [*range(7), *range(10, 23)]
    assert cut.room.tolist() == [*range(10, 3, -1), *range(16, 3, -1)]
    twice = Snippets.of(data, Vector(), (4, 6), 1.0, None, stride_frames=2)
    assert (twice.starts.tolist(), twice.room.tolist()) == ([0, 1, 2, 3, *range(10, 20)], [5, 5, 4, 4, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4])
    generator, n = torch.Generator().manual_seed(1), 20_000
    for length, good in ((4, 20), (8, 3 + 9), (12, 5)):
        drawn = torch.randint(len(cut.starts), (n,), generator=generator)
        rows = holding(cut.room[drawn], length, generator)
        counts = torch.bincount(drawn[rows], minlength=len(cut.starts))
        assert ((counts > 0) == (cut.room >= length)).all()
        expected = n / good
        # rows that give way take their place from a sample of the same size, which doubles the variance at most
        assert (counts[counts > 0] - expected).abs().max() < 5.0 * (2.0 * expected) ** 0.5


def test_runs_shorter_than_the_longest_snippet_are_learned_from() -> None:
    parts = [noise(n, n) for n in (20, 40)]
    model = TrajectoryDiffusion(Vector(), (8, 30), **TINY).fit(parts, seed=0, stride=1.0, plan=PLAN)
    assert model.sample(2, n_frames=30, seed=0).shape == (2, 30, 1, 2)
    with pytest.raises(DataError, match="no trajectory has the 41 frames"):
        TrajectoryDiffusion(Vector(), (8, 41), **TINY).fit(parts, seed=0, stride=1.0, plan=PLAN)


def test_imposed_and_kept_frames_come_back_to_double_precision(tiny: FittedTrajectoryDiffusion) -> None:
    path, mask = noise(8, 5), np.arange(8) % 3 == 0
    for out in (tiny.inpaint(path, mask, 3, seed=1), tiny.vary(path, 1.0, 3, mask=mask, seed=1)):
        assert out.shape == (3, 8, 1, 2)
        np.testing.assert_allclose(out[:, mask], np.repeat(path[None, mask], 3, axis=0), rtol=1e-13)
        assert (np.abs(out[:, ~mask] - path[~mask]) > 1e-6).all()


def test_chunks_only_bound_memory(tiny: FittedTrajectoryDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = tiny.denoiser.forward
    monkeypatch.setattr(tiny.denoiser, "forward", lambda x, *rest: seen.append(len(x)) or forward(x, *rest))
    monkeypatch.setattr("couloir.generative.fitted_trajectories._FRAMES_AT_ONCE", 80)
    assert tiny.sample(25, seed=1).shape == (25, 8, 1, 2)
    assert sorted(set(seen)) == [5, 10]


def test_a_training_with_another_schedule_or_other_lengths_is_not_continued(tmp_path: Path) -> None:
    def fit(n_frames: Any, **options: Any) -> None:
        TrajectoryDiffusion(Vector(), n_frames, **TINY, **options).fit([noise(200)], seed=1, stride=1.0, plan=PLAN, checkpoint=tmp_path)

    fit((4, 8))
    for n_frames, options in (((5, 8), {}), ((4, 8), {"schedule": EDM()}), ((4, 8), {"norm": "frame"})):
        with pytest.raises(ModelError, match="settings"):
            fit(n_frames, **options)


@pytest.mark.parametrize(("n_frames", "memory"), [(16, 0.8), (64, 0.8), (64, 0.98)])
def test_twenty_calls_solve_every_mode_of_a_gaussian_process_under_the_default_schedule(n_frames: int, memory: float) -> None:
    schedule, k = TrajectoryDiffusion(Vector(), n_frames).schedule, np.arange(n_frames)
    variances = torch.from_numpy(np.linalg.eigvalsh(memory ** np.abs(np.subtract.outer(k, k))))

    def denoise(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return x * (variances / (variances + t[:, None] ** 2))

    # The flow is linear and keeps modes apart, so one state of size prior_std gives all variances, without noise.
    out = sample(denoise, schedule, torch.full((1, n_frames), schedule.prior_std(), dtype=torch.float64), n_calls=20)[0]
    np.testing.assert_allclose(out**2 / variances, 1.0, atol=0.035)


@pytest.mark.parametrize(("period", "expected"), [(8, 0.02), (60, 0.25 * np.sin(np.pi / 60)), (1000, 0.002)])
def test_generation_ends_at_noise_far_below_the_steps_between_frames(period: int, expected: float) -> None:
    """Steps of a sine of unit variance have the size 2 sin(pi / period); an eighth of the smallest counts, within limits."""
    t = np.arange(2000)
    data = np.stack([np.sin(2 * np.pi * t / period), np.random.default_rng(0).normal(size=2000)], axis=1)[:, None]
    fitted = TrajectoryDiffusion(Vector(), 8, **TINY).fit([data], seed=1, stride=1.0, plan=PLAN)
    assert fitted.schedule.end == pytest.approx(expected, rel=0.01)
    given = TrajectoryDiffusion(Vector(), 8, schedule=EDM(), **TINY).fit([data], seed=1, stride=1.0, plan=PLAN)
    assert given.schedule == EDM()


def test_plans_of_snippets_do_not_round_the_smallest_noise_away() -> None:
    # bfloat16 keeps 8 bits: rounding x_0 + s eps adds a third of the noise at s = 0.005.
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert float((x.bfloat16().float() - x).std()) / TrajectoryDiffusion(Vector()).schedule.end > 0.3
    assert DEFAULT_PLAN.precision == PAPER_PLAN.precision == "float32"


def test_snippets_are_learned_in_single_precision_also_where_a_gpu_would_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[Any] = set()

    def loss(*arguments: Any, **options: Any) -> torch.Tensor:
        seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return snippet_loss(*arguments, **options)

    monkeypatch.setattr("couloir.generative.trajectory_diffusion.snippet_loss", loss)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    assert PLAN.precision == "auto"
    TrajectoryDiffusion(Vector(), 8, **TINY).fit([noise(200)], seed=1, stride=0.1, plan=PLAN)
    assert seen == {("highest", False)}
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (before, True)


def test_long_trajectories_have_at_least_one_frame(tiny: FittedTrajectoryDiffusion) -> None:
    assert tiny.sample_long(2, 1, seed=0).shape == (2, 1, 1, 2)
    with pytest.raises(DataError, match="0 frames"):
        tiny.sample_long(2, 0, seed=0)


def conditioned() -> TrajectoryDiffusion:
    return TrajectoryDiffusion(Vector(), 8, temperature_conditioned=True, **TINY)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrajectoryDiffusion(Vector(), (9, 8)), "snippets of"),
        (lambda: TrajectoryDiffusion(Vector(), 8).fit([Trajectory(noise(20), s) for s in (1.0, 2.0)], seed=0), "strides differ: 1, 2 ps"),
        (lambda: TrajectoryDiffusion(Vector(), 8).fit(Trajectory(noise(20), 1.0), seed=0, stride=2.0), "strides differ: 1, 2 ps"),
        (lambda: TrajectoryDiffusion(Vector(), 8).fit(noise(20), seed=0, stride=1.0, stride_frames=3), "20 frames, a snippet 22"),
        (lambda: TrajectoryDiffusion(Vector(), 8).fit(noise(20), seed=0, stride=1.0, stride_frames=0), "stride_frames = 0"),
        (lambda: TrajectoryDiffusion(Vector(), 8).fit(noise(20), seed=0, stride=1.0, kT=[1.0]), "does not learn it"),
        (lambda: conditioned().fit([noise(20)] * 2, seed=0, stride=1.0, kT=[1.0, -1.0]), "not positive"),
        (lambda: conditioned().fit([noise(20)] * 2, seed=0, stride=1.0, kT=[1.0, 1.0]), "one temperature"),
        (lambda: conditioned().fit([noise(20)] * 2, seed=0, stride=1.0, kT=2.5), "1 temperatures for 2 trajectories"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_a_misspelled_parameter_of_the_network_is_named_before_training() -> None:
    with pytest.raises(ConfigError, match="did you mean 'base_channels'"):
        TrajectoryDiffusion(Vector(), 8, base_chanels=32)
    with pytest.raises(ConfigError, match="n_conditions"):
        TrajectoryDiffusion(Vector(), 8, n_conditions=2)


def test_what_cannot_be_generated_is_refused(tiny: FittedTrajectoryDiffusion) -> None:
    with pytest.raises(DataError, match="0 snippets"):
        tiny.sample(0, seed=0)
    with pytest.raises(DataError, match="0 frames"):
        tiny.sample(1, n_frames=0, seed=0)
    with pytest.raises(DataError, match="for 3 snippets"):
        tiny.vary(np.zeros((2, 8, 1, 2)), 0.5, 3, seed=0)
    with pytest.raises(DataError, match="a boolean for each frame"):
        tiny.inpaint(np.zeros((8, 1, 2)), [0, 7], seed=0)
    with pytest.raises(ConfigError, match="overlap"):
        tiny.sample_long(1, 20, overlap=0, seed=0)
    with pytest.raises(ModelError, match="not fitted"):
        TrajectoryDiffusion(Vector(), 8).sample(1, seed=0)
