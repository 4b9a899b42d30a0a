"""Targets averaged over the snippets that a noisy one may have come from: the same on average as the snippet itself, with less noise."""

import numpy as np
import pytest
import torch

from couloir.errors import ConfigError
from couloir.generative import TrajectoryDiffusion, Vector
from couloir.generative.networks.temporal_unet import TemporalUNet, posterior_mean, snippet_loss
from couloir.generative.schedule import EDM
from couloir.generative.training import TrainingPlan, train


@pytest.mark.parametrize("n_data", [2, 5])
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_they_are_unbiased_however_few_snippets_tell(n_data, noise):
    """E[x (target - x_0)] = 0 and the target's regression on x is that of Gaussian data, x / (1 + s^2), at every number of snippets."""
    generator, n = torch.Generator().manual_seed(3), 40_000
    data = torch.randn(n, n_data, 1, generator=generator, dtype=torch.float64)
    x = data[:, :1] + noise * torch.randn(n, 1, 1, generator=generator, dtype=torch.float64)
    s = torch.full((1,), noise, dtype=torch.float64)
    means = torch.stack([posterior_mean(a, b, s) for a, b in zip(x, data, strict=True)])[:, 0, 0].numpy()
    x, own = x[:, 0, 0].numpy(), data[:, 0, 0].numpy()
    for value, expected in ((x * means, 1.0), (means * np.sign(x), np.sqrt(2 / np.pi / (1 + noise**2)))):
        assert abs(value.mean() - expected) < 4.5 * value.std() / np.sqrt(n)
    true = x / (1 + noise**2)
    assert np.mean((means - true) ** 2) < 0.95 * np.mean((own - true) ** 2)


def test_of_far_apart_snippets_it_is_the_nearest():
    data = 100.0 * torch.arange(6.0)[:, None, None].expand(6, 4, 2)
    torch.testing.assert_close(posterior_mean(data[:3] + 1.0, data, torch.ones(3)), data[:3])


def test_snippets_at_another_temperature_tell_a_row_that_knows_its_own_nothing():
    data, kT = torch.randn(40, 3, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5, 1.0]).repeat(20)[:, None]
    s, keep = torch.full((2,), 50.0), torch.tensor([True, False])
    found = posterior_mean(data[:2], data, s, kT, keep)
    torch.testing.assert_close(found[0], data[::2].mean(dim=0), atol=0.02, rtol=0)
    torch.testing.assert_close(found[1], data.mean(dim=0), atol=0.02, rtol=0)


def test_rows_of_the_loss_are_the_first_and_without_others_nothing_changes():
    torch.manual_seed(0)
    net, x = TemporalUNet(2, base_channels=8), torch.randn(30, 8, 2, generator=torch.Generator().manual_seed(2))
    alone, same, averaged = (
        snippet_loss(net, EDM(), data, None, 0.0, torch.Generator().manual_seed(0), n=n) for data, n in ((x[:5], None), (x[:5], 5), (x, 5))
    )
    torch.testing.assert_close(alone, same)
    assert averaged.shape == (5,)
    assert not torch.allclose(alone, averaged)


def test_batches_have_companions_and_held_out_rows_none():
    sizes = {True: set(), False: set()}

    def loss(network, rows, generator):
        sizes[torch.is_grad_enabled()].add(len(rows[0]))
        return network(rows[0][: 8 if torch.is_grad_enabled() else None]).square().sum(dim=1)

    plan = TrainingPlan(steps=4, batch_size=8, evaluations=2, validation_fraction=0.2)
    train(torch.nn.Linear(1, 1), loss, (torch.randn(100, 1),), plan, seed=0, companions=5)
    assert sizes == {True: {13}, False: {20}}


def test_a_negative_number_of_companions_is_refused():
    with pytest.raises(ConfigError, match="companions = -1"):
        TrajectoryDiffusion(Vector(), companions=-1)
    assert TrajectoryDiffusion.as_published(Vector()).companions == 0
