"""Inpainting, variation and long trajectories, against stationary processes whose conditional laws are known exactly."""

import math
from pathlib import Path

import pytest
import torch
from exact_snippets import FRAMES, SCHEDULE, Snippets, covariance

from couloir.errors import ConfigError, DataError
from couloir.generative import TrajectoryDiffusion
from couloir.generative.conditioning import Guidance, inpaint, vary
from couloir.generative.long_trajectories import extend
from couloir.generative.networks.temporal_unet import SnippetDenoiser, TemporalUNet
from couloir.generative.schedule import VPLinear

MODEL = Path(__file__).parents[2] / "tutorials" / "models" / "double_well"
N = 2000
BOTH_ENDS, MIDDLE, SEVERAL = [0, FRAMES - 1], [4, 5], [0, 3, 4, 8]


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def ornstein_uhlenbeck(frames=FRAMES, schedule=SCHEDULE):
    return Snippets([1.0], torch.zeros(1, frames), covariance(frames), schedule)


def noise(n=N, frames=FRAMES, d=1, schedule=SCHEDULE, seed=1):
    return schedule.prior_std() * torch.randn(n, frames, d, generator=seeded(seed), dtype=torch.float64)


def frames_mask(imposed, frames=FRAMES):
    return torch.isin(torch.arange(frames), torch.tensor(imposed))[:, None]


def imposed_values(imposed, d=1):
    known = torch.full((FRAMES, d), math.nan, dtype=torch.float64)  # what is not imposed is never read
    known[imposed] = torch.tensor([1.5, -1.0, 0.5, 1.2], dtype=torch.float64)[: len(imposed), None]
    return known


def bridge(imposed, values):
    """Mean and covariance of the free frames given the imposed ones."""
    mask = frames_mask(imposed)[:, 0]
    c = covariance()
    gain = c[~mask][:, mask] @ torch.linalg.inv(c[mask][:, mask])
    return gain @ values, c[~mask][:, ~mask] - gain @ c[mask][:, ~mask]


def errors(samples, imposed, values):
    """Worst error of the mean in conditional standard deviations, and the extreme variances, in units of the exact ones.

    The extremes are over all linear combinations of free frames.
    """
    mean, cov = bridge(imposed, values)
    free = samples[:, ~frames_mask(imposed)[:, 0], 0]
    ratios = torch.linalg.eigvals(torch.linalg.solve(cov, torch.cov(free.T))).real
    return ((free.mean(0) - mean) / cov.diagonal().sqrt()).abs().max(), ratios.min(), ratios.max()


@pytest.mark.parametrize("imposed", [BOTH_ENDS, MIDDLE, SEVERAL], ids=["ends", "middle", "several"])
@pytest.mark.parametrize("schedule", [SCHEDULE, VPLinear()], ids=lambda s: s.kind)
def test_guidance_draws_the_exact_bridge(imposed, schedule):
    known = imposed_values(imposed)
    denoiser = ornstein_uhlenbeck(schedule=schedule)
    x = inpaint(denoiser, schedule, noise(schedule=schedule), known, frames_mask(imposed), generator=seeded(2))
    assert (x[:, imposed] == known[imposed]).all()
    mean, low, high = errors(x, imposed, known[imposed, 0])
    # 4.5 standard errors, 3 % of the mean and 5 % of variances for the solver; the extreme variances of 8 frames are
    # (1 +- sqrt(8 / N))^2 = 0.88 and 1.13, give or take 0.02.
    assert mean < 4.5 / math.sqrt(N) + 0.03
    assert low > 0.82
    assert high < 1.26


def from_two_neighbours(rate=0.05, frames=32):
    """An inertial process, correlation (1 + r) exp(-r): its denoiser, and the law of frames 2, 3, ... given 0 and 0.15 at the first two."""
    i = torch.arange(frames, dtype=torch.float64)
    r = rate * (i[:, None] - i).abs()
    c = (1.0 + r) * torch.exp(-r)
    gain = c[2:, :2] @ torch.linalg.inv(c[:2, :2])
    return Snippets([1.0], torch.zeros(1, frames), c), gain @ torch.tensor([0.0, 0.15], dtype=torch.float64), c[2:, 2:] - gain @ c[:2, 2:]


def extrapolated(n=4000, frames=32):
    """Largest error of the mean, in conditional standard deviations, and extreme variances over the exact ones, of single frames."""
    denoiser, mean, cov = from_two_neighbours()
    known = torch.zeros(frames, 1, dtype=torch.float64)
    known[1] = 0.15
    x = inpaint(denoiser, SCHEDULE, noise(n, frames), known, frames_mask([0, 1], frames), generator=seeded(2))[:, 2:, 0]
    variance = x.var(0) / cov.diagonal()
    return ((x.mean(0) - mean) / cov.diagonal().sqrt()).abs().max(), variance.min(), variance.max()


def test_guidance_extrapolates_a_smooth_process_from_two_neighbouring_frames():
    mean, low, high = extrapolated()
    # 4.5 standard errors of 4000 paths (of a variance, sqrt(2 / 4000) = 0.022), and what 40 calls leave: 0.03 and 3 %.
    assert mean < 4.5 / math.sqrt(4000) + 0.03
    assert low > 1.0 - 4.5 * 0.0224 - 0.03
    assert high < 1.0 + 4.5 * 0.0224 + 0.03


def moved(jacobian, **options):
    """What gaps of 0.5 and 0.25 in two imposed entries do to the third, D being x J: at alpha = sigma = 1, V / r^2 is 2 J."""
    matrix = torch.tensor(jacobian, dtype=torch.float64)
    known, mask = torch.tensor([[0.5, 0.25, 0.0]], dtype=torch.float64), torch.tensor([[True, True, False]])
    one = torch.tensor(1.0, dtype=torch.float64)
    return Guidance(**options).estimate(lambda x: x @ matrix.T, torch.zeros(1, 3, dtype=torch.float64), one, one, known, mask)[0, 2].item()


def test_a_solve_that_a_jacobian_allows_is_exact_however_far_it_goes():
    assert moved([[1.0, 0.0, 20.0], [0.0, 9.0, 0.0], [20.0, 0.0, 500.0]]) == pytest.approx(10.0)  # 20 times the gap of 0.5
    assert moved([[1.0, 0.0, 20.0], [0.0, 1e-4, 0.1], [20.0, 0.1, 500.0]]) == pytest.approx(10.0 + 250.0)


def test_no_eigenvalue_counts_for_less_than_the_error_that_the_jacobian_admits():
    """One that is not symmetric, or not positive, is no covariance, and by how much bounds what can be read from it."""
    negative = [[1.0, 0.0, 20.0], [0.0, -0.5, 20.0], [20.0, 20.0, 500.0]]  # read as 1 and 0.5
    assert moved(negative) == pytest.approx(20.0 * 0.5 + 20.0 * 0.25 / 0.5)
    skew = [[0.1, 0.7, 20.0], [-0.7, 0.1, 0.0], [20.0, 0.0, 500.0]]  # read as 0.7 and 0.7
    assert moved(skew) == pytest.approx(20.0 * 0.5 / 0.7)
    assert moved(skew, solves=0) == pytest.approx(2 * 20.0 * 0.5)


def test_guidance_keeps_coordinates_and_rows_apart():
    known = imposed_values(BOTH_ENDS, 2)
    known[0, 1] = -0.7
    mask = frames_mask(BOTH_ENDS).repeat(1, 2)
    mask[-1, 1] = False  # one coordinate of a frame, not the frame
    x = inpaint(ornstein_uhlenbeck(), SCHEDULE, noise(d=2), known, mask, generator=seeded(2))
    for coordinate, imposed in enumerate([BOTH_ENDS, [0]]):
        mean, _, _ = errors(x[:, :, coordinate : coordinate + 1], imposed, known[imposed, coordinate])
        assert mean < 4.5 / math.sqrt(N) + 0.03
    free = x[:, 1:-1] - x[:, 1:-1].mean(0)
    assert (free[..., 0] * free[..., 1]).mean(0).abs().max() < 4.5 / math.sqrt(N)


def test_guidance_without_solves_is_the_rougher_pigdm():
    known, mask = imposed_values(BOTH_ENDS), frames_mask(BOTH_ENDS)
    means = [
        errors(
            inpaint(ornstein_uhlenbeck(), SCHEDULE, noise(), known, mask, method=way, solver="dpmpp_2m", n_calls=20),
            BOTH_ENDS,
            known[BOTH_ENDS, 0],
        )[0]
        for way in (Guidance(), Guidance(solves=0))
    ]
    assert means[0] < 0.13
    assert 0.15 < means[1] < 0.5


def test_replacement_needs_resampling_and_approaches_the_bridge_with_it():
    known, mask = imposed_values(BOTH_ENDS), frames_mask(BOTH_ENDS)
    found = []
    for resamples in (1, 8, 64):
        options = {"method": "replacement", "resamples": resamples, "n_calls": 20, "generator": seeded(2)}
        x = inpaint(ornstein_uhlenbeck(), SCHEDULE, noise(), known, mask, **options)
        assert (x[:, BOTH_ENDS] == known[BOTH_ENDS]).all()
        found.append(errors(x, BOTH_ENDS, known[BOTH_ENDS, 0]))
    means, _, highs = zip(*found, strict=True)
    assert means[0] > 0.6  # plain replacement: the bridge does not reach its ends
    assert highs[0] > 2.5  # and is far too wide
    assert means[1] < 0.55 * means[0]
    assert means[2] < 0.4 * means[1]
    assert means[2] < 0.2
    assert highs[2] < 1.5


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_replacement_works_with_stochastic_and_deterministic_steps(solver):
    known, mask = imposed_values(BOTH_ENDS), frames_mask(BOTH_ENDS)
    arguments = (ornstein_uhlenbeck(), SCHEDULE, noise(), known, mask)
    plain, repeated = (
        errors(inpaint(*arguments, method="replacement", resamples=r, solver=solver, generator=seeded(2)), BOTH_ENDS, known[BOTH_ENDS, 0])[
            0
        ]
        for r in (1, 16)
    )
    assert repeated < 0.4 * plain


def test_imposed_ends_in_one_mode_give_only_that_mode():
    """Plain replacement strays into the other mode, which has the larger weight, and resampling brings nearly all of it back."""
    modes = torch.tensor([[2.0], [-2.0]]).expand(2, FRAMES)
    known = torch.full((FRAMES, 1), 1.8, dtype=torch.float64)

    def strayed(**options):
        denoiser = Snippets([0.3, 0.7], modes, 0.09 * covariance())
        x = inpaint(denoiser, SCHEDULE, noise(1000), known, frames_mask(BOTH_ENDS), generator=seeded(), **options)
        return (x < 0).any(dim=1).double().mean()

    assert strayed(method="guidance") == 0.0
    assert strayed(method="replacement", resamples=1) > 0.4
    assert strayed(method="replacement", resamples=10) < 0.02


def switching():
    """Paths that stay at one of -2 and 2 (60 %) or switch once, after k of 10 frames with probability proportional to k."""
    means, weights = [], []
    for side in (-2.0, 2.0):
        for k in range(1, FRAMES + 1):
            means.append([side] * k + [-side] * (FRAMES - k))
            weights.append(0.6 if k == FRAMES else 0.4 * k / 45)
    return Snippets(weights, torch.tensor(means), 0.09 * covariance())


def switch_times(n, **options):
    """Share of paths from -1.8 to 2.1 that switch exactly once, and how many of these after k = 1, 2, ... frames."""
    known = torch.zeros(FRAMES, 1, dtype=torch.float64)
    known[0], known[-1] = -1.8, 2.1
    x = inpaint(switching(), SCHEDULE, noise(n), known, frames_mask(BOTH_ENDS), generator=seeded(3), **options)[..., 0]
    once = (x > 0).int().diff(dim=1).abs().sum(1) == 1
    return once.double().mean(), torch.bincount((x < 0).sum(1)[once], minlength=FRAMES)[1:FRAMES].double()


def distance(counts):
    """Total variation between the counts and the exact times, proportional to k."""
    return 0.5 * (counts / counts.sum() - torch.arange(1, FRAMES) / 45).abs().sum()


def test_guidance_switches_wells_once_at_times_close_to_the_exact_where_pigdm_and_replacement_do_not():
    once, counts = switch_times(3000)
    assert once == 1.0
    assert distance(counts) < 0.06  # of which 0.02 is noise; the rest is the moment matching, which chi-square would reject
    assert distance(switch_times(1000, method=Guidance(solves=0))[1]) > 0.2
    plain, resampled = (distance(switch_times(1000, method="replacement", resamples=r)[1]) for r in (1, 10))
    assert plain > 0.35
    assert resampled < 0.85 * plain


def stationary(n=N, frames=FRAMES, d=1, seed=5):
    z = torch.randn(n, d, frames, generator=seeded(seed), dtype=torch.float64)
    return (z @ torch.linalg.cholesky(covariance(frames)).T).transpose(1, 2)


def test_variations_stay_stationary_and_leave_the_original_as_the_level_grows():
    x = stationary()
    moved = []
    for level in (0.1, 0.5, 2.0, 80.0):
        y = vary(ornstein_uhlenbeck(), SCHEDULE, x, level, generator=seeded(6), n_calls=30)
        ratios = torch.linalg.eigvals(torch.linalg.solve(covariance(), torch.cov(y[..., 0].T))).real
        assert y.mean(0).abs().max() < 4.5 / math.sqrt(N)
        assert ratios.min() > 0.8
        assert ratios.max() < 1.2
        moved.append(float((y - x).square().mean()))
    assert moved == sorted(moved)
    assert moved[0] < 0.02
    assert abs(moved[-1] - 2.0) < 0.15  # independent of x


def test_variation_at_level_zero_returns_the_original():
    x = stationary(5)
    assert (vary(ornstein_uhlenbeck(), SCHEDULE, x, 0.0) == x).all()


def test_variations_of_a_path_keep_its_imposed_frames_and_are_bridges_at_the_highest_level():
    x = imposed_values(BOTH_ENDS).nan_to_num(0.3).expand(N, FRAMES, 1)
    y = vary(ornstein_uhlenbeck(), SCHEDULE, x, 80.0, mask=frames_mask(BOTH_ENDS), generator=seeded(7), n_calls=40)
    assert (y[:, BOTH_ENDS] == x[:, BOTH_ENDS]).all()
    mean, low, high = errors(y, BOTH_ENDS, x[0, BOTH_ENDS, 0])
    assert mean < 4.5 / math.sqrt(N) + 0.03
    assert low > 0.82
    assert high < 1.20


@pytest.mark.parametrize("overlap", [1, 3])
def test_long_trajectories_have_the_covariance_of_the_process_across_every_seam(overlap):
    frames = 22
    x = extend(ornstein_uhlenbeck(), SCHEDULE, stationary(), frames, window=FRAMES, overlap=overlap, generator=seeded(8), n_calls=30)
    assert x.shape == (N, frames, 1)
    found = x[..., 0].T @ x[..., 0] / N
    # var(sample covariance) = (1 + c^2) / N
    c = covariance(frames)
    assert ((found - c).abs() < 5.0 * ((1 + c * c) / N).sqrt() + 0.03).all()


def test_a_continued_path_begins_with_what_was_given():
    path = stationary(4, 7)
    x = extend(ornstein_uhlenbeck(), SCHEDULE, path, 15, window=FRAMES, overlap=2, generator=seeded())
    assert x.shape == (4, 15, 1)
    assert (x[:, :7] == path).all()


@pytest.mark.parametrize("head", ["energy", "plain"])
def test_guidance_goes_through_the_network_and_leaves_no_gradients(head):
    torch.manual_seed(0)
    network = TemporalUNet(2, base_channels=16, multipliers=(1, 2), head=head)
    known, mask = torch.zeros(12, 2), frames_mask([0, 11], 12)
    x = inpaint(SnippetDenoiser(network, SCHEDULE), SCHEDULE, noise(3, 12, 2).float(), known, mask, n_calls=4, generator=seeded())
    assert x.isfinite().all()
    assert (x[:, [0, 11]] == 0.0).all()
    assert not x.requires_grad
    assert all(p.grad is None for p in network.parameters())


def test_the_same_generator_gives_the_same_paths():
    known, mask = imposed_values(BOTH_ENDS), frames_mask(BOTH_ENDS)
    first, again = (
        inpaint(ornstein_uhlenbeck(), SCHEDULE, noise(3), known, mask, method="replacement", generator=seeded(4)) for _ in range(2)
    )
    assert (first == again).all()


def test_mistakes_are_named():
    denoiser, known, mask = ornstein_uhlenbeck(), imposed_values(BOTH_ENDS), frames_mask(BOTH_ENDS)
    with pytest.raises(ConfigError, match="did you mean 'guidance'"):
        inpaint(denoiser, SCHEDULE, noise(2), known, mask, method="guidence")
    with pytest.raises(DataError, match="do not broadcast"):
        inpaint(denoiser, SCHEDULE, noise(2, d=3), known[:, :1].repeat(1, 3), mask[:, 0])
    with pytest.raises(DataError, match="expected bool"):
        inpaint(denoiser, SCHEDULE, noise(2), known, mask.double())
    with pytest.raises(DataError, match="not finite"):
        inpaint(denoiser, SCHEDULE, noise(2), known, ~mask)
    with pytest.raises(ConfigError, match="resamples = 0"):
        inpaint(denoiser, SCHEDULE, noise(2), known, mask, resamples=0)
    with pytest.raises(ConfigError, match="makes no sense"):
        Guidance(solves=-1)
    with pytest.raises(ConfigError, match="data_std=0"):
        Guidance(data_std=0.0)
    with pytest.raises(ConfigError, match="outside this schedule"):
        vary(denoiser, SCHEDULE, stationary(2), 100.0)
    with pytest.raises(ConfigError, match="overlap of 10"):
        extend(denoiser, SCHEDULE, stationary(2), 30, window=FRAMES, overlap=10)
    with pytest.raises(DataError, match="cannot be continued"):
        extend(denoiser, SCHEDULE, stationary(2, 2), 30, window=FRAMES, overlap=3)


def test_guidance_keeps_its_head_where_a_learned_jacobian_is_no_covariance():
    """The tutorials' model of the double well at the highest noise, both ends imposed: data of variance one allow eigenvalues of 0 to 2."""
    model = TrajectoryDiffusion.load(MODEL)
    n, frames, level = 32, 64, torch.tensor(80.0)
    x = (level * torch.randn(n, frames, 2, generator=seeded())).requires_grad_()
    imposed = frames_mask([0, frames - 1], frames).expand(frames, 2)
    clean = model.denoiser(x, level.expand(n), None)
    rows = [torch.autograd.grad(clean[:, i, j].sum(), x, retain_graph=True)[0] for i in (0, -1) for j in (0, 1)]
    covariance = level**2 * torch.stack([row[:, [0, -1]].flatten(1) for row in rows], dim=1)
    values = torch.linalg.eigvalsh(0.5 * (covariance + covariance.mT))
    assert values[:, 0].median() < -1.0
    assert values[:, -1].max() > 2.5
    known = torch.ones(n, frames, 2)
    mask = imposed.expand(n, frames, 2)
    guided = Guidance().estimate(lambda y: model.denoiser(y, level.expand(n), None), x, torch.ones(1), level, known, mask)
    shift = (guided - clean).abs().amax(dim=(1, 2)) / (known - clean)[mask].reshape(n, -1).abs().amax(dim=1)
    assert shift.max() < 4.0
