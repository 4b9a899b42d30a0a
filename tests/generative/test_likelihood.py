"""Probability-flow likelihoods against closed forms, and as densities: normalized, consistent with their samples."""

import math

import pytest
import torch

from couloir.errors import ConfigError
from couloir.generative.exact import GaussianMixture
from couloir.generative.likelihood import log_prob, sample_with_log_prob
from couloir.generative.schedule import EDM, Cosine, VPLinear
from couloir.generative.solvers import initial_noise

SCHEDULES = [VPLinear(), Cosine(), EDM()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.0, 0.02], [1.0, 0.0, -0.02]], [[0.2, 0.01, 0.02], [0.2, 0.02, 0.01]])
ON_CYLINDER = GaussianMixture([0.4, 0.6], [[-0.6, 2.9], [0.5, -0.5]], [[0.4, 0.5], [0.3, 0.6]], circular=[False, True])


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noised(mixture, schedule, n):
    t = torch.tensor(schedule.end, dtype=torch.float64)
    x = mixture.sample(n, seeded())
    return schedule.alpha(t) * x + schedule.sigma(t) * torch.randn(x.shape, generator=seeded(2), dtype=x.dtype)


class Imperfect:
    """An exact denoiser with a smooth error that respects the period of the second coordinate."""

    def __init__(self, denoiser, size=1.0):
        self.denoiser, self.size = denoiser, size

    def __call__(self, x_t, t, condition=None, /):
        reach = (self.size * t**2 / (1 + t**2) ** 2)[:, None]
        first, angle = x_t[:, :1], x_t[:, 1:]
        wrong = torch.cat([angle.sin() * torch.tanh(first), torch.cos(angle + 1) + 0.5 * torch.tanh(first)], 1)
        return self.denoiser(x_t, t, condition) + reach * wrong


@every_schedule
def test_density_of_a_gaussian_is_that_of_the_carried_prior_to_four_digits(schedule):
    width = torch.tensor([0.01, 0.3, 1.5], dtype=torch.float64)
    gaussian = GaussianMixture([1.0], [[0.2, -0.4, 0.0]], width[None])
    x = noised(gaussian, schedule, 20)
    ends = torch.tensor([schedule.end, schedule.start], dtype=torch.float64)
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    spread = (alpha[:, None] ** 2 * width**2 + sigma[:, None] ** 2).sqrt()
    start = alpha[1] * gaussian.means + (x - alpha[0] * gaussian.means) * spread[1] / spread[0]
    prior = torch.distributions.Normal(0.0, schedule.prior_std()).log_prob(start).sum(1)
    exact = prior + (spread[1] / spread[0]).log().sum()
    torch.testing.assert_close(log_prob(gaussian.denoiser(schedule), schedule, x, n_steps=100).values, exact, rtol=0, atol=1e-4)


@every_schedule
def test_density_of_a_stiff_mixture_is_the_exact_one_and_its_error_is_bounded(schedule):
    x = noised(MIXTURE, schedule, 40)
    fine = log_prob(MIXTURE.denoiser(schedule), schedule, x, n_steps=100, check="return")
    # What is left comes from the prior, which has forgotten alpha(start) / sigma(start) of the data.
    torch.testing.assert_close(fine.values, MIXTURE.log_prob(x, schedule=schedule, t=schedule.end), rtol=0, atol=0.02)
    assert fine.error.max() < 1e-3
    coarse = log_prob(MIXTURE.denoiser(schedule), schedule, x, n_steps=40)
    assert ((coarse.values - fine.values).abs() <= coarse.error + 1e-3).all()
    assert (coarse.values - fine.values).abs().max() > 1e-3


def test_density_on_a_cylinder_is_exact_and_periodic():
    schedule = EDM()
    x = ON_CYLINDER.sample(40, seeded())
    denoiser, mask = ON_CYLINDER.denoiser(schedule), ON_CYLINDER.circular
    found = log_prob(denoiser, schedule, x, circular=mask)
    torch.testing.assert_close(found.values, ON_CYLINDER.log_prob(x, schedule=schedule, t=schedule.end), rtol=0, atol=0.02)
    turned = log_prob(denoiser, schedule, x + torch.tensor([0.0, 2 * math.pi], dtype=torch.float64), circular=mask)
    torch.testing.assert_close(found.values, turned.values, rtol=0, atol=1e-9)


def test_density_of_an_imperfect_model_on_a_cylinder_integrates_to_one():
    schedule = EDM()
    across = torch.linspace(-3.5, 3.5, 97, dtype=torch.float64)
    around = torch.linspace(-math.pi, math.pi, 25, dtype=torch.float64)[:-1]
    grid = torch.cartesian_prod(across, around)
    model = Imperfect(ON_CYLINDER.denoiser(schedule))
    values = log_prob(model, schedule, grid, circular=ON_CYLINDER.circular, n_steps=40, check=None, chunk=4096).values
    cell = float(across[1] - across[0]) * 2 * math.pi / 24
    assert float(values.exp().sum()) * cell == pytest.approx(1.0, abs=2e-3)
    assert float((values - ON_CYLINDER.log_prob(grid)).abs().max()) > 0.2


def test_importance_weights_of_an_imperfect_model_average_to_one():
    schedule, n = EDM(), 2000
    model, mask = Imperfect(ON_CYLINDER.denoiser(schedule), size=0.4), ON_CYLINDER.circular
    start = initial_noise(schedule, n, 2, mask, seeded(3), dtype=torch.float64)
    x, density = sample_with_log_prob(model, schedule, start, circular=mask, n_steps=40, check=None, chunk=4096)
    weights = (ON_CYLINDER.log_prob(x) - density.values).exp()
    standard_error = float(weights.std()) / math.sqrt(n)
    assert standard_error < 0.03
    assert abs(float(weights.mean()) - 1.0) < 4.5 * standard_error
    assert float(weights.std()) > 0.1


@every_schedule
def test_samples_carry_the_density_that_their_likelihood_gives(schedule):
    mixture = GaussianMixture([0.5, 0.5], [[-0.7, 0.0], [0.7, 0.2]], [[0.3, 0.05], [0.3, 0.05]])
    start = initial_noise(schedule, 30, 2, generator=seeded(4), dtype=torch.float64)
    model = Imperfect(mixture.denoiser(schedule))
    x, density = sample_with_log_prob(model, schedule, start, n_steps=100, check="return")
    back = log_prob(model, schedule, x, n_steps=100, check=None)
    torch.testing.assert_close(back.values, density.values, rtol=0, atol=5e-3)
    assert density.error.max() < 5e-3
    assert back.error.isnan().all()


def test_chunks_conditions_and_calls_add_up():
    schedule, seen = VPLinear(), []

    def model(x, t, condition=None, /):
        seen.append(len(x))
        return 0.5 * x + condition

    x, c = torch.randn(7, 2, generator=seeded()), torch.randn(7, 2, generator=seeded(2))
    whole = log_prob(model, schedule, x, condition=c, n_steps=10, method="heun")
    assert whole.n_calls == len(seen) == 2 * 10 + 2 * 5
    parts = log_prob(model, schedule, x, condition=c, n_steps=10, method="heun", chunk=3)
    torch.testing.assert_close(whole.values, parts.values)
    double = log_prob(model, schedule, x, condition=c, n_steps=10, method="heun", dtype=torch.float64)
    assert double.values.dtype == torch.float64
    torch.testing.assert_close(whole.values.double(), double.values, rtol=1e-4, atol=1e-4)


def test_a_network_in_training_leaves_no_graph():
    layer = torch.nn.Linear(2, 2)
    found = log_prob(lambda x, t, c=None: torch.tanh(layer(x)), VPLinear(), torch.zeros(3, 2), n_steps=4)
    assert not found.values.requires_grad


def test_misuse_of_the_likelihood_says_what_to_do():
    schedule = VPLinear()
    denoiser, x = GaussianMixture([1.0], [[0.0]], [[1.0]]).denoiser(schedule), torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(ConfigError, match="choices are heun, rk4"):
        log_prob(denoiser, schedule, x, method="leapfrog")
    with pytest.raises(ConfigError, match="at least 2"):
        log_prob(denoiser, schedule, x, n_steps=1)
    with pytest.raises(ConfigError, match="halving"):
        log_prob(denoiser, schedule, x, check="twice")
    with pytest.raises(ConfigError, match="use EDM"):
        log_prob(denoiser, schedule, x, circular=torch.tensor([True]))
