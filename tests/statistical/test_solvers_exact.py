"""Every solver under every schedule reproduces the weights, means and widths of a mixture with stiff modes."""

import math

import pytest
import torch

from couloir.generative.exact import GaussianMixture
from couloir.generative.schedule import EDM, Cosine, VPLinear
from couloir.generative.solvers import initial_noise, sample

pytestmark = pytest.mark.statistical

WEIGHTS = (0.3, 0.7)
MEANS = torch.tensor([[-1.0, 0.0, 0.02], [1.0, 0.0, -0.02]], dtype=torch.float64)
WIDTHS = torch.tensor([0.2, 0.01, 0.02], dtype=torch.float64)
MIXTURE = GaussianMixture(WEIGHTS, MEANS, WIDTHS.expand(2, 3))
ADEQUATE = {
    "ancestral": 500,
    "euler_maruyama": 500,
    "predictor_corrector": 601,
    "ddim": 250,
    "heun": 161,
    "dpmpp_2m": 60,
    "dpmpp_2m_sde": 60,
}
BIAS = 0.04  # relative width error that discretization may leave at these numbers of calls
SIGMAS = 4.5  # of a normal: 7e-6 per comparison


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("schedule", [VPLinear(), Cosine(), EDM()], ids=lambda s: s.kind)
@pytest.mark.parametrize("solver", sorted(ADEQUATE))
def test_solvers_reproduce_weights_means_and_widths(solver, schedule):
    n = 5000
    start = initial_noise(schedule, n, 3, generator=seeded(1), dtype=torch.float64)
    x = sample(MIXTURE.denoiser(schedule), schedule, start, solver=solver, n_calls=ADEQUATE[solver], generator=seeded(2))
    left = x[:, 0] < 0.0
    weight_error = math.sqrt(WEIGHTS[0] * WEIGHTS[1] / n)
    assert abs(float(left.double().mean()) - WEIGHTS[0]) < SIGMAS * weight_error + 0.01
    for mode, rows in enumerate((left, ~left)):
        m = int(rows.sum())
        tolerance = BIAS + SIGMAS / math.sqrt(2 * m)
        assert tolerance < 0.29 / 2, "would miss a sampler that returns 0.71 of the width"
        assert ((x[rows].std(0) / WIDTHS - 1.0).abs() < tolerance).all()
        # Few calls leave a little of the drift between modes, in units of the widths.
        assert (((x[rows].mean(0) - MEANS[mode]) / WIDTHS).abs() < SIGMAS / math.sqrt(m) + 0.05).all()


@pytest.mark.parametrize("schedule", [VPLinear(), Cosine(), EDM()], ids=lambda s: s.kind)
def test_twenty_calls_of_the_default_solver_keep_stiff_widths_within_three_percent(schedule):
    n = 40000
    start = initial_noise(schedule, n, 3, generator=seeded(3), dtype=torch.float64)
    x = sample(MIXTURE.denoiser(schedule), schedule, start, n_calls=20)
    which = (x[:, 0] > 0.0).long()
    away = (x - MEANS[which]) / WIDTHS
    # Width from the quartiles: the rare sample caught between the modes says nothing about the width of either.
    low, high = away[:, 1:].quantile(torch.tensor([0.25, 0.75], dtype=torch.float64), dim=0)
    ratio = (high - low) / 1.348980
    assert ((ratio - 1.0).abs() < 0.03 + SIGMAS * 1.166 / math.sqrt(n)).all()


@pytest.mark.parametrize("solver", sorted(ADEQUATE))
def test_solvers_reproduce_the_moments_of_a_distribution_on_the_torus(solver):
    schedule, n = EDM(), 5000
    mixture = GaussianMixture([0.4, 0.6], [[3.0, 1.0], [-0.5, -2.8]], [[0.4, 0.3], [0.6, 0.5]], circular=[True, True])
    start = initial_noise(schedule, n, 2, mixture.circular, seeded(4), dtype=torch.float64)
    x = sample(
        mixture.denoiser(schedule), schedule, start, solver=solver, n_calls=ADEQUATE[solver],
        circular=mixture.circular, generator=seeded(5),
    )  # fmt: skip
    order = torch.tensor([[1, 0], [0, 1], [1, 1], [2, 0], [0, 2], [1, -1]], dtype=torch.float64)
    phases = mixture.means @ order.T
    damping = (-0.5 * mixture.variances @ (order**2).T).exp()
    exact = (mixture.weights[:, None] * damping * torch.exp(1j * phases)).sum(0)
    found = torch.exp(1j * (x @ order.T)).mean(0)
    assert ((found - exact).abs() < SIGMAS / math.sqrt(n) + 0.01).all()
