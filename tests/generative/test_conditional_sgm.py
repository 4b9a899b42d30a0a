import json

import numpy as np
import pytest

from couloir.cv.geometric import Coordinate
from couloir.errors import DataError, ModelError
from couloir.generative.conditional_sgm import ConditionalSGM
from couloir.generative.labels import LabelRange
from couloir.generative.representation import Vector
from couloir.generative.schedule import VPLinear
from couloir.generative.training import TrainingPlan
from couloir.trajectory import Trajectory

TWO_PI = 2 * np.pi
LABEL = Coordinate(0, "c")


def wrap(angle):
    return (angle + np.pi) % TWO_PI - np.pi


def spread(values):
    """Return half the width of the middle 68 %, which is the standard deviation of a Gaussian."""
    return np.subtract(*np.quantile(values, [0.84, 0.16])) / 2


def two_branches(n, seed):
    """Return positions (n, 1, 3) of (c, y, angle): two modes, whose share is 0.3, that part and turn as c grows."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(-2, 2, n)
    upper = rng.random(n) < 0.3
    y = np.where(upper, 1 + 0.5 * c, -1) + 0.2 * rng.normal(size=n)
    angle = np.where(upper, 3.0, -1 + 0.3 * c) + 0.3 * rng.normal(size=n)  # the upper mode lies across +-pi
    return np.stack([c, y, wrap(angle)], axis=1)[:, None]


SMALL = {"width": 64, "depth": 2}
TINY = TrainingPlan(steps=20, batch_size=32, evaluations=2)


def model_of(**options):
    return ConditionalSGM(Vector(periods=[None, None, TWO_PI]), LABEL, **{**SMALL, **options})


@pytest.fixture(scope="module")
def branches():
    return model_of().fit(two_branches(4000, 0), seed=1, plan=TrainingPlan(steps=700, batch_size=512))


@pytest.fixture(scope="module")
def untrained():
    return model_of(width=16, depth=1).fit(two_branches(200, 0), seed=1, plan=TINY)


@pytest.mark.parametrize("c", [-1.0, 0.37, 1.5])
def test_conditional_mixture_is_learned_along_the_label(branches, c):
    q = branches.sample(c, 4000, seed=2)[:, 0]
    upper = q[:, 1] > 0.25 * c
    assert q[:, 0] == pytest.approx(c, abs=1e-12)
    assert upper.mean() == pytest.approx(0.3, abs=0.06)
    for side, center, angle in ((upper, 1 + 0.5 * c, 3.0), (~upper, -1.0, -1 + 0.3 * c)):
        assert np.median(q[side, 1]) == pytest.approx(center, abs=0.08)
        assert spread(q[side, 1]) == pytest.approx(0.2, rel=0.25)
        turned = wrap(q[side, 2] - angle)
        assert np.median(turned) == pytest.approx(0, abs=0.1)
        assert spread(turned) == pytest.approx(0.3, rel=0.25)


def test_density_given_the_label_integrates_to_one(branches):
    y, angle = np.linspace(-3, 4, 45), np.linspace(-np.pi, np.pi, 36, endpoint=False)
    grid = np.stack([g.ravel() for g in np.meshgrid([0.5], y, angle, indexing="ij")], axis=1)[:, None]
    density = np.exp(branches.log_prob(grid, n_steps=30, check=None))
    assert density.sum() * (y[1] - y[0]) * (angle[1] - angle[0]) == pytest.approx(1, abs=0.02)


def test_proposals_come_with_the_density_that_log_prob_gives_them(branches):
    proposed = branches.sample_with_log_prob([-1.0, 0.0, 1.0], seed=4, n_steps=60)
    assert proposed.positions.shape == (3, 1, 3)
    again = branches.log_prob(proposed.positions, [-1.0, 0.0, 1.0], n_steps=60)
    assert proposed.log_prob == pytest.approx(again, abs=0.02)


def test_density_of_a_structure_off_its_imposed_label_is_zero(branches):
    assert branches.log_prob(two_branches(2, 1), [5.0, 5.0], n_steps=4, check=None).tolist() == [-np.inf, -np.inf]


def test_label_that_is_learned_and_not_imposed_is_met_within_its_spread():
    fitted = model_of(impose=False).fit(two_branches(4000, 0), seed=1, plan=TrainingPlan(steps=400, batch_size=256, ema_decay=0.99))
    c = fitted.sample(1.0, 1000, seed=2)[:, 0, 0]
    assert 0 < c.std() < 0.3
    assert c.mean() == pytest.approx(1.0, abs=0.1)


def test_two_labels_are_both_imposed():
    labels = (LABEL, Coordinate(2, "angle", period=TWO_PI))
    fitted = ConditionalSGM(Vector(periods=[None, None, TWO_PI]), labels, **SMALL).fit(two_branches(200, 0), seed=1, plan=TINY)
    q = fitted.sample([[0.5, 3.0], [-0.5, -3.0]], seed=1)[:, 0]
    assert q[:, [0, 2]] == pytest.approx(np.array([[0.5, 3.0], [-0.5, -3.0]]))
    assert fitted.sample([0.5, 3.0], 5, seed=1).shape == (5, 1, 3)


def test_weights_move_the_share_of_a_mode():
    q = two_branches(4000, 0)
    weights = np.where(q[:, 0, 1] > 0.25 * q[:, 0, 0], 0.7 / 0.3, 0.3 / 0.7)
    fitted = model_of().fit(q, seed=1, plan=TrainingPlan(steps=400, batch_size=256, ema_decay=0.99), weights=weights)
    assert (fitted.sample(0.0, 2000, seed=2)[:, 0, 1] > 0).mean() == pytest.approx(0.7, abs=0.1)


def test_seed_decides_training_and_samples(untrained):
    again = model_of(width=16, depth=1).fit(two_branches(200, 0), seed=1, plan=TINY)
    other = model_of(width=16, depth=1).fit(two_branches(200, 0), seed=2, plan=TINY)
    first = untrained.sample(0.0, 3, seed=5)
    assert np.array_equal(first, again.sample(0.0, 3, seed=5))
    assert not np.array_equal(first, untrained.sample(0.0, 3, seed=6))
    assert not np.array_equal(first, other.sample(0.0, 3, seed=5))


def test_guidance_of_one_is_the_plain_model_and_more_differs(untrained):
    plain = untrained.sample(1.0, 3, seed=5)
    assert np.array_equal(plain, untrained.sample(1.0, 3, seed=5, guidance=1.0))
    assert not np.array_equal(plain, untrained.sample(1.0, 3, seed=5, guidance=2.0))


def test_saved_model_gives_identical_samples(untrained, tmp_path):
    untrained.save(tmp_path / "model")
    loaded = ConditionalSGM.load(tmp_path / "model", label=LABEL)
    assert np.array_equal(untrained.sample(0.5, 4, seed=3), loaded.sample(0.5, 4, seed=3))
    assert loaded.label_range.covers(0.5)
    assert not loaded.label_range.covers(9.0)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "weights.safetensors"]


def test_damaged_newer_or_missing_models_are_refused(untrained, tmp_path):
    with pytest.raises(ModelError, match="no saved model"):
        ConditionalSGM.load(tmp_path)
    untrained.save(tmp_path)
    sidecar = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**sidecar, "version": 99}))
    with pytest.raises(ModelError, match="version 99"):
        ConditionalSGM.load(tmp_path, label=LABEL)
    (tmp_path / "model.json").write_text(json.dumps({**sidecar, "kind": "DiffMD"}))
    with pytest.raises(ModelError, match="holds a DiffMD"):
        ConditionalSGM.load(tmp_path, label=LABEL)
    (tmp_path / "model.json").write_text(json.dumps({**sidecar, "sha256": "0" * 64}))
    with pytest.raises(ModelError, match="does not belong"):
        ConditionalSGM.load(tmp_path, label=LABEL)


def test_interrupted_fit_continues_to_the_same_model(tmp_path):
    class Killed(Exception):
        pass

    def kill(step, *_):
        raise Killed

    q = two_branches(200, 0)
    with pytest.raises(Killed):
        model_of().fit(q, seed=1, plan=TINY, checkpoint=tmp_path, progress=kill)
    whole, resumed = model_of().fit(q, seed=1, plan=TINY), model_of().fit(q, seed=1, plan=TINY, checkpoint=tmp_path)
    assert np.array_equal(whole.sample(0.0, 5, seed=1), resumed.sample(0.0, 5, seed=1))


def test_trajectories_and_arrays_train_the_same_model():
    q = two_branches(200, 0)
    from_array = model_of().fit(q, seed=1, plan=TINY)
    from_parts = model_of().fit([Trajectory(q[:80], 1.0), Trajectory(q[80:], 1.0)], seed=1, plan=TINY)
    assert np.array_equal(from_array.sample(0.0, 2, seed=1), from_parts.sample(0.0, 2, seed=1))


def with_nan(q):
    q = q.copy()
    q[7, 0, 1] = np.nan
    return q


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (np.zeros((0, 1, 3)), None, "at least one frame"),
        (np.zeros((5, 3)), None, "shape"),
        (with_nan(two_branches(60, 0)), None, "frame 7"),
        (two_branches(60, 0), np.zeros(59), "59 label values for 60"),
        (two_branches(60, 0), np.full(60, np.nan), "not finite"),
        (two_branches(60, 0), np.linspace(0, 1, 60), "not the values of 'c'"),
    ],
)
def test_bad_training_data_is_refused_with_its_reason(data, labels, message):
    with pytest.raises(DataError, match=message):
        model_of().fit(data, seed=1, plan=TINY, labels=labels)


def test_constant_label_is_refused():
    with pytest.raises(DataError, match="in every frame"):
        model_of(impose=False).fit(two_branches(60, 0), seed=1, plan=TINY, labels=np.ones(60))


def test_bad_requests_are_refused_with_their_reason(untrained):
    with pytest.raises(DataError, match="3 label values for 2"):
        untrained.sample([0.0, 1.0, 2.0], 2, seed=1)
    with pytest.raises(DataError, match="not finite"):
        untrained.sample(np.nan, 2, seed=1)
    with pytest.raises(ModelError, match="not fitted"):
        model_of().sample(0.0, 2, seed=1)


def test_circular_coordinates_refuse_a_schedule_that_scales_angles():
    with pytest.raises(ModelError, match="EDM"):
        model_of(schedule=VPLinear()).fit(two_branches(60, 0), seed=1, plan=TINY)


def test_label_range_knows_gaps_and_the_edge_of_the_period():
    angle = Coordinate(0, "a", period=TWO_PI)
    seen = LabelRange.of([angle], wrap(np.concatenate([np.linspace(2.5, 4.0, 200), np.linspace(-1.0, 0.0, 200)]))[:, None])
    assert seen.covers([3.0, -3.0, -0.5]).all()
    assert not seen.covers([1.5, -1.7]).any()
    assert (seen.low[0], seen.high[0]) == pytest.approx((2.5, 0.0))


@pytest.mark.statistical
@pytest.mark.timeout(1200)
def test_evolving_wells_are_learned_to_a_mean_l1_distance_of_five_per_cent():
    """p(z2 | z1) of U = (z2^2 - 1)^2 + (0.2 z1 - 1) z2 at kT = 0.5, from 100,000 labelled samples."""
    rng = np.random.default_rng(3)
    z1, grid = rng.uniform(0, 10, 100_000), np.linspace(-2.4, 2.4, 481)
    step = grid[1] - grid[0]

    def exact(at):
        density = np.exp(-((grid**2 - 1) ** 2 + (0.2 * at[:, None] - 1) * grid) / 0.5)
        return density / (density.sum(axis=1, keepdims=True) * step)

    share = np.cumsum(exact(z1), axis=1) * step
    z2 = np.array([np.interp(u, row, grid + step / 2) for u, row in zip(rng.random(len(z1)), share, strict=True)])
    plan = TrainingPlan(steps=4000, batch_size=2048, learning_rate=5e-3, patience=None)
    fitted = ConditionalSGM(Vector(2), Coordinate(0, "z1"), **SMALL).fit(np.stack([z1, z2], axis=1)[:, None], seed=1, plan=plan)
    distances, sampled = [], []
    for at in (1.0, 3.0, 5.0, 7.0, 9.0):
        rows = np.stack([np.full_like(grid, at), grid], axis=1)[:, None]
        density, truth = np.exp(fitted.log_prob(rows, check=None)), exact(np.array([at]))[0]
        distances.append(np.abs(density - truth).sum() * step)
        counts, _ = np.histogram(fitted.sample(at, 40_000, seed=2)[:, 0, 1], grid[::12])
        expected = np.add.reduceat(truth[:-1], np.arange(0, 480, 12)) * step
        sampled.append(np.abs(counts / 40_000 - expected).sum())
    assert np.mean(distances) <= 0.05, distances
    assert max(distances) <= 0.08, distances  # a single label has fewer neighbours to learn from
    assert np.mean(sampled) <= 0.05 + 0.025, sampled  # 0.025: what 40,000 exact samples in 40 bins would show
