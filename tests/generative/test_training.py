import numpy as np
import pytest
import torch
from torch import nn

from couloir.errors import DataError, ModelError
from couloir.generative.training import TrainingPlan, split_blocks, train


def regression(network, rows, generator):
    x, y = rows
    noisy = x + 0.01 * torch.randn(x.shape, generator=generator)
    return ((network(noisy) - y) ** 2).mean(dim=1)


def line(n=400, slope=2.0):
    x = torch.linspace(-1, 1, n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))][:, None]
    return x, slope * x + 1


def linear():
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    return network


QUICK = TrainingPlan(steps=300, learning_rate=0.05, batch_size=32, ema_decay=0.99, evaluations=10)


def test_training_finds_a_line_and_keeps_its_best_parameters():
    network = linear()
    result = train(network, regression, line(), QUICK, seed=1)
    assert network.weight.item() == pytest.approx(2, abs=0.02)
    assert network.bias.item() == pytest.approx(1, abs=0.02)
    assert result.stopped_because == "steps"
    assert result.held_out_loss == result.history[:, 2].min()


def test_same_seed_same_parameters_and_another_seed_others():
    ends = []
    for seed in (1, 1, 2):
        network = linear()
        train(network, regression, line(), QUICK, seed=seed)
        ends.append(network.weight.item())
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize("kill_at", [30, 150, 300])
def test_training_killed_and_resumed_equals_an_uninterrupted_one(tmp_path, kill_at):
    class Killed(Exception):
        pass

    def kill(step, loss, held_out):
        if step == kill_at:
            raise Killed

    whole = linear()
    expected = train(whole, regression, line(), QUICK, seed=3, checkpoint=tmp_path / "whole")
    with pytest.raises(Killed):
        train(linear(), regression, line(), QUICK, seed=3, checkpoint=tmp_path / "part", progress=kill)
    resumed, steps = linear(), []
    result = train(resumed, regression, line(), QUICK, seed=3, checkpoint=tmp_path / "part", progress=lambda s, *_: steps.append(s))
    assert steps[0] == kill_at  # it continued from the checkpoint before, not from the start
    assert np.array_equal(result.history, expected.history)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_finished_training_is_not_repeated(tmp_path):
    train(linear(), regression, line(), QUICK, seed=3, checkpoint=tmp_path)
    network = linear()
    result = train(network, regression, line(), QUICK, seed=3, checkpoint=tmp_path, progress=lambda *_: pytest.fail("trained again"))
    assert network.weight.item() == pytest.approx(2, abs=0.02)
    assert len(result.history) == 10


def test_checkpoint_of_other_data_is_refused(tmp_path):
    train(linear(), regression, line(), QUICK, seed=3, checkpoint=tmp_path)
    with pytest.raises(ModelError, match="other data"):
        train(linear(), regression, line(slope=3.0), QUICK, seed=3, checkpoint=tmp_path)


def test_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "training.safetensors").write_bytes(b"half a file")
    with pytest.raises(ModelError, match=r"training\.safetensors"):
        train(linear(), regression, line(), QUICK, seed=3, checkpoint=tmp_path)


def test_rows_count_by_their_weight():
    low, high = line(slope=0.0), line(slope=0.0)
    data = (torch.cat([low[0], high[0]]), torch.cat([low[1], high[1] + 4]))  # y = 1 and y = 5
    order = torch.randperm(800, generator=torch.Generator().manual_seed(1))
    weights = np.where(order.numpy() < 400, 3.0, 1.0)
    network = linear()
    train(
        network,
        regression,
        [d[order] for d in data],
        TrainingPlan(steps=600, batch_size=256, learning_rate=0.02, ema_decay=0.99),
        seed=1,
        weights=weights,
    )
    assert network.bias.item() == pytest.approx(2, abs=0.15)  # (3 * 1 + 1 * 5) / 4


def test_early_stopping_stops_and_returns_the_best():
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(60, 8, generator=generator), torch.randn(60, 1, generator=generator))  # nothing to learn but noise
    network = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 1))
    plan = TrainingPlan(steps=5000, batch_size=256, learning_rate=0.01, evaluations=100, patience=4)
    result = train(network, regression, data, plan, seed=1)
    assert result.stopped_because == "patience"
    assert result.history[-1, 0] < 5000
    assert result.best_step == result.history[np.argmin(result.history[:, 2]), 0] < result.history[-1, 0]


def test_time_limit_stops():
    result = train(linear(), regression, line(), TrainingPlan(steps=10**6, evaluations=10**5, max_minutes=1e-3), seed=1)
    assert result.stopped_because == "time"


def test_epochs_count_passes_over_the_training_rows():
    result = train(linear(), regression, line(400), TrainingPlan(epochs=4, batch_size=36), seed=1)
    assert result.history[-1, 0] == 40  # 360 of 400 rows train, ten batches a pass


def test_learning_rate_warms_up_and_decays_to_zero():
    plan = TrainingPlan(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [plan.rate(s, 100) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert np.argmax(rates) in (9, 10)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_held_out_rows_are_blocks_at_the_asked_share():
    kept, held = split_blocks(1000, 0.1)
    assert len(held) == 100
    assert sorted([*kept, *held]) == list(range(1000))
    assert np.sum(np.diff(held) > 1) == 9  # ten stretches


@pytest.mark.parametrize(
    ("data", "weights", "message"),
    [
        ((), None, "no rows"),
        ((torch.zeros(0, 1), torch.zeros(0, 1)), None, "no rows"),
        ((torch.tensor([[0.0], [float("nan")]]), torch.zeros(2, 1)), None, "row 1"),
        ((torch.zeros(3, 1), torch.zeros(2, 1)), None, "3 and 2"),
        ((torch.zeros(3, 1), torch.zeros(3, 1)), np.ones(2), "weights"),
        ((torch.zeros(3, 1), torch.zeros(3, 1)), np.array([1, -1, 1]), "weights"),
        ((torch.zeros(3, 1), torch.zeros(3, 1)), np.zeros(3), "weights"),
    ],
)
def test_bad_data_is_refused_with_its_reason(data, weights, message):
    with pytest.raises(DataError, match=message):
        train(linear(), regression, data, QUICK, seed=1, weights=weights)


def test_diverging_loss_is_an_error():
    with pytest.raises(ModelError, match="not finite"):
        train(linear(), lambda net, rows, g: regression(net, rows, g) * float("inf"), line(), QUICK, seed=1)


def test_senseless_plan_is_refused():
    with pytest.raises(DataError, match="ema_decay"):
        TrainingPlan(ema_decay=1.0)
