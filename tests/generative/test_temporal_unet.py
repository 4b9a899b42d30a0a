import itertools
import json

import pytest
import torch
from torch.autograd.functional import jacobian

from couloir.errors import ConfigError, DataError, ModelError
from couloir.generative.networks.temporal_unet import SnippetDenoiser, TemporalUNet, snippet_loss
from couloir.generative.schedule import EDM, Cosine
from couloir.generative.solvers import sample
from couloir.generative.training import TrainingPlan, train

TRIALS = list(itertools.product(["energy", "plain"], ["group", "frame"]))
HEADS = pytest.mark.parametrize("head", ["energy", "plain"])
HEADS_AND_NORMS = pytest.mark.parametrize(("head", "norm"), TRIALS)


def network(n_coordinates=2, n_conditions=0, *, seed=0, dtype=torch.float64, **parameters):
    """A small network with all its parameters random, because a new one predicts zero."""
    torch.manual_seed(seed)
    net = TemporalUNet(n_coordinates, n_conditions, **{"base_channels": 8, "heads": 2, **parameters}).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net.eval()


def snippets(n=3, frames=32, n_coordinates=2, seed=1, dtype=torch.float64):
    return torch.randn(n, frames, n_coordinates, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def levels(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("frames", [1, 32, 33, 64, 101, 325, 326])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 4)])
def test_snippets_of_any_length_keep_their_shape(frames, multipliers):
    x, s = snippets(2, frames), levels(0.1, 2.0)
    for head in ("energy", "plain"):
        out = network(head=head, multipliers=multipliers)(x, s)
        assert out.shape == x.shape
        assert out.isfinite().all()


@HEADS_AND_NORMS
@pytest.mark.parametrize("level_attention", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_filling_a_batch_of_mixed_lengths_changes_no_snippet(head, norm, level_attention, dtype, tolerance):
    lengths = [37, 64, 41, 1]
    net = network(head=head, norm=norm, multipliers=(1, 2, 4), level_attention=level_attention, dtype=dtype)
    s = torch.tensor([0.05, 0.5, 3.0, 1.0], dtype=dtype)
    mask = torch.arange(90) < torch.tensor(lengths)[:, None]
    # What fills the batch is not even a number: it must not matter.
    batch = snippets(4, 90, dtype=dtype).masked_fill(~mask[:, :, None], torch.nan)
    with torch.no_grad():
        together = net.raw(batch, s, None, None, mask)
        assert (together[~mask] == 0).all()
        for i, n in enumerate(lengths):
            alone = net.raw(batch[i : i + 1, :n], s[i : i + 1])[0]
            assert (together[i, :n] - alone).abs().max() < tolerance * alone.abs().max().clamp(min=1.0)


def test_masked_frames_do_not_touch_energies_or_the_training_gradient():
    net, s = network(multipliers=(1, 2, 4)), levels(0.4)
    x = snippets(1, 38)
    mask = torch.arange(50)[None] < 38
    filled = torch.cat([x, snippets(1, 12, seed=7)], dim=1)
    torch.testing.assert_close(net.energy(filled, s, None, mask)[:, :38], net.energy(x, s))
    gradients = []
    for inputs in ((x, s), (filled, s, None, mask)):
        net.zero_grad()
        (net.train()(*inputs) ** 2).sum().backward()
        gradients.append(torch.cat([p.grad.ravel() for p in net.parameters()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("parameters", [{}, {"prediction": "noise"}, {"encoder_only": True}, {"norm": "frame", "data_std": 0.6}])
@pytest.mark.parametrize("frames", [12, 9])
def test_expected_noise_is_the_gradient_of_the_energy_by_finite_differences(parameters, frames):
    net, x, s = network(multipliers=(1, 2), **parameters), snippets(1, frames), levels(0.7)
    noise = (x - net(x, s)) / 0.7
    step = 1e-5
    moves = step * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    with torch.no_grad():
        ahead, back = (net.energy(x + sign * moves, s.expand(len(moves))).sum(dim=1) for sign in (1, -1))
    torch.testing.assert_close(((ahead - back) / (2 * step)).reshape(x.shape), noise, rtol=1e-6, atol=1e-8)


@HEADS
@pytest.mark.parametrize("norm", ["group", "frame"])
def test_energy_head_is_free_of_curl_and_the_plain_head_is_not(head, norm):
    net, s = network(head=head, norm=norm), levels(0.7)
    x = snippets(1, 10)
    j = jacobian(lambda v: net(v, s), x).reshape(20, 20)
    curl = (j - j.T).abs().max() / j.abs().max()
    assert curl < 1e-10 if head == "energy" else curl > 1e-3


@HEADS
def test_noise_level_condition_and_its_absence_all_matter(head):
    net, x = network(n_conditions=1, head=head), snippets(1)
    answers = [
        net.raw(x, levels(level), condition)
        for level, condition in [(0.5, levels(1.0)[None]), (0.6, levels(1.0)[None]), (0.5, levels(1.2)[None]), (0.5, None)]
    ]
    for a, b in itertools.combinations(answers, 2):
        assert (a - b).abs().max() > 1e-4


def test_rows_without_a_condition_are_those_with_nan_and_those_not_kept():
    net, x = network(n_conditions=2), snippets(3)
    s = levels(0.5, 0.5, 0.5)
    free = net.raw(x, s)
    condition = torch.tensor([[1.0, 2.0], [torch.nan, 2.0], [1.0, 2.0]], dtype=torch.float64)
    given = net.raw(x, s, condition, keep=torch.tensor([True, True, False]))
    torch.testing.assert_close(given[1:], free[1:])
    assert (given[0] - free[0]).abs().max() > 1e-4
    net.train().raw(x, s, condition).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_encoder_only_network_shares_its_energy_out_among_real_frames():
    whole, encoder = network(multipliers=(1, 2, 4)), network(multipliers=(1, 2, 4), encoder_only=True)
    assert sum(p.numel() for p in encoder.parameters()) < sum(p.numel() for p in whole.parameters())
    x = snippets(2, 13)
    energies = encoder.energy(x, levels(0.5, 1.0))
    assert energies.shape == (2, 13)
    assert encoder(x, levels(0.5, 1.0)).shape == x.shape
    with pytest.raises(ConfigError, match="plain head"):
        TemporalUNet(2, head="plain", encoder_only=True)


@pytest.mark.parametrize("head", ["energy", "plain"])
def test_without_attention_a_shift_in_time_shifts_the_output(head):
    net = network(head=head, norm="frame", attention=False)
    # No frame further than this is heard: 51 frames on the way to an energy, and as many on the way back from it.
    long, s, reach = snippets(1, 240), levels(0.5), 102
    shift = 2 * net.stride
    first, second = net(long[:, :-shift], s), net(long[:, shift:], s)
    torch.testing.assert_close(first[:, reach + shift : -reach], second[:, reach : -reach - shift])


def test_with_norm_by_frame_a_long_snippet_agrees_with_its_middle_part():
    net, x, s = network(norm="frame", attention=False), snippets(1, 300), levels(0.5)
    torch.testing.assert_close(net(x, s)[:, 140:160], net(x[:, 36:264], s)[:, 104:124])
    mixing = network(norm="group", attention=False)
    assert (mixing(x, s)[:, 140:160] - mixing(x[:, 36:264], s)[:, 104:124]).abs().max() > 1e-4


def test_attention_lets_distant_frames_speak_and_can_be_left_out():
    x, s = snippets(1, 200), levels(0.5)
    moved = x.clone()
    moved[:, -1] += 1.0
    sizes = {}
    for attention in (False, True):
        net = network(norm="frame", attention=attention)
        sizes[attention] = sum(p.numel() for p in net.parameters())
        heard = (net(moved, s) - net(x, s))[:, :50].abs().max()
        assert (heard > 1e-8) == attention
    assert sizes[True] > sizes[False]
    assert sum(p.numel() for p in network(level_attention=True).parameters()) > sizes[True]


def test_parameters_number_what_the_docstring_says():
    for multipliers, attention, encoder_only in (
        ((1, 2), True, False),
        ((1, 2), False, False),
        ((1, 2, 4), True, False),
        ((1, 2), True, True),
    ):
        net = TemporalUNet(2, base_channels=128, multipliers=multipliers, attention=attention, encoder_only=encoder_only)
        size = sum(p.numel() for p in net.parameters())
        assert f"{size / 1e6:.1f} million" in TemporalUNet.__doc__


@HEADS_AND_NORMS
def test_training_through_the_second_derivative_lowers_the_loss(head, norm):
    torch.manual_seed(0)
    net = TemporalUNet(2, 1, base_channels=8, heads=2, head=head, norm=norm)
    angle = torch.rand(60, 1) * 6.28 + 0.4 * torch.arange(16)
    data = 1.4 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    kt = torch.rand(60, 1) + 0.5

    def loss(net, rows, generator):
        return snippet_loss(net, EDM(), rows[0], rows[1], 0.1, generator)

    def held(net):
        return float(loss(net, (data, kt), torch.Generator().manual_seed(5)).mean().detach())

    untrained = held(net)
    plan = TrainingPlan(
        steps=40, batch_size=16, learning_rate=1e-2, ema_decay=0.9, evaluations=2, validation_fraction=0.0, precision="float32"
    )
    train(net, loss, (data, kt), plan, seed=1)
    assert held(net) < 0.75 * untrained


@pytest.mark.parametrize("prediction", ["velocity", "noise"])
@pytest.mark.parametrize("data_std", [1.0, 0.5])
def test_loss_is_zero_for_the_network_that_knows_the_answer(prediction, data_std):
    """All snippets are zero, so D = 0: a linear F, which a stub gives exactly, has no loss left."""

    class Knowing(TemporalUNet):
        def raw(self, x, noise, condition=None, keep=None, mask=None):
            s = noise[:, None, None]
            return x / s if self.prediction == "noise" else -x * self.data_std / (s * (s**2 + self.data_std**2).sqrt())

    net = Knowing(2, base_channels=8, prediction=prediction, data_std=data_std)
    x = torch.zeros(5, 9, 2)
    assert snippet_loss(net, Cosine(), x, None, 0.0, torch.Generator().manual_seed(0)).abs().max() < 1e-6
    torch.testing.assert_close(net(snippets(5, 9, dtype=torch.float32), torch.full((5,), 0.3)), x, atol=1e-5, rtol=0)


def test_loss_averages_over_real_frames_alone():
    net, x = network(dtype=torch.float32), snippets(4, 20, dtype=torch.float32)
    mask = torch.arange(20) < torch.tensor([20, 11, 5, 1])[:, None]
    both = [
        snippet_loss(net, EDM(), x.masked_fill(~mask[:, :, None], fill), None, 0.0, torch.Generator().manual_seed(0), mask)
        for fill in (0.0, 50.0)
    ]
    torch.testing.assert_close(*both)
    assert both[0].shape == (4,)


def test_new_network_is_the_best_linear_denoiser():
    x = snippets(1, dtype=torch.float32)
    torch.testing.assert_close(TemporalUNet(2, base_channels=8)(x, torch.tensor([3.0])), x / 10)
    torch.testing.assert_close(TemporalUNet(2, base_channels=8, data_std=2.0)(x, torch.tensor([2.0])), x / 2)


@HEADS
def test_solvers_take_the_network_under_a_schedule(head):
    schedule, start = Cosine(), snippets(4, 21)
    denoiser = SnippetDenoiser(network(n_conditions=1, head=head), schedule)
    kt = torch.full((4, 1), 1.25, dtype=torch.float64)
    out = sample(denoiser, schedule, start, n_calls=5, condition=kt)
    assert out.shape == start.shape
    assert out.isfinite().all()
    assert out.dtype == start.dtype
    assert not out.requires_grad


def test_denoiser_under_a_schedule_predicts_the_gradient_of_the_energy_as_noise():
    schedule, net, x_t = Cosine(), network(), snippets(2, 9)
    t = levels(0.3, 0.8)
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    x = (x_t / alpha).requires_grad_()
    (slope,) = torch.autograd.grad(net.energy(x, (sigma / alpha)[:, 0, 0]).sum(), x)
    torch.testing.assert_close((x_t - alpha * SnippetDenoiser(net, schedule)(x_t, t)) / sigma, slope)


def test_gradients_reach_the_input_through_the_energy_head_in_eval_mode():
    net, x = network(), snippets(1, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: net(v, levels(0.5)), x, atol=1e-6)


def test_network_is_rebuilt_from_its_json_description_and_weights():
    net = network(3, 1, attention=False, norm="frame", prediction="noise", data_std=0.5)
    again = TemporalUNet.from_dict(json.loads(json.dumps(net.to_dict()))).double()
    again.load_state_dict(net.state_dict())
    x, c = snippets(2, 15, 3), levels(0.5, 1.0)[:, None]
    torch.testing.assert_close(again(x, levels(0.1, 1.0), c), net(x, levels(0.1, 1.0), c), rtol=0, atol=0)
    assert again.to_dict() == net.to_dict()
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        TemporalUNet.from_dict({**net.to_dict(), "atention": True})
    with pytest.raises(ConfigError, match="kind"):
        TemporalUNet.from_dict({"kind": "score_mlp"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"head": "energie"},
        {"base_channels": 12},
        {"kernel_size": 4},
        {"multipliers": ()},
        {"heads": 3},
        {"data_std": 0.0},
        {"norm": "batch"},
    ],
)
def test_senseless_parameters_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TemporalUNet(2, **wrong)


def test_inputs_that_do_not_fit_are_refused():
    net, x, s = network(), snippets(2), levels(1.0, 1.0)
    with pytest.raises(DataError, match="expected"):
        net(snippets(2, n_coordinates=3), s)
    with pytest.raises(DataError, match="mask"):
        net(x, s, None, torch.ones(2, 31, dtype=torch.bool))
    with pytest.raises(DataError, match="come first"):
        net(x, s, None, torch.arange(32).expand(2, -1) > 3)
    with pytest.raises(ModelError, match="unconditional"):
        net(x, s, torch.ones(2, 1))
    with pytest.raises(DataError, match="conditions"):
        network(n_conditions=1)(x, s, torch.ones(2, 2))
    with pytest.raises(ModelError, match="no energy"):
        network(head="plain").energy(x, s)
