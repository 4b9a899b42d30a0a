"""What a fitted model of snippets makes of given paths, with the exact denoiser of an Ornstein-Uhlenbeck process in its network's place."""

import numpy as np
import pytest
import torch
from exact_snippets import FRAMES, RATE, SCHEDULE, Snippets, covariance

from couloir.errors import DataError
from couloir.generative import FittedTrajectoryDiffusion, Vector

MEAN, SPREAD = 3.0, 2.0
EXACT = {"n_calls": 40, "device": "cpu"}


@pytest.fixture(scope="module")
def model():
    """Snippets of a process with mean 3 and standard deviation 2."""
    representation = Vector().fit(MEAN + SPREAD * np.array([-1.0, 1.0]).reshape(2, 1, 1))
    fitted = FittedTrajectoryDiffusion(representation, SCHEDULE, (FRAMES, FRAMES), 0.1, None, {"base_channels": 8, "multipliers": (1,)})
    exact = Snippets([1.0], torch.zeros(1, FRAMES), covariance())
    fitted.denoiser = lambda x, t, condition=None: exact(x.double(), t.double()).to(x.dtype)
    return fitted


def path_of(*values):
    """Return a path (frames, 1, 1) of values in units of the process."""
    return MEAN + SPREAD * np.array(values, dtype=float).reshape(-1, 1, 1)


def scaled(x):
    """Return (n, frames) in units of the process."""
    return (x[:, :, 0, 0] - MEAN) / SPREAD


@pytest.mark.parametrize("overlap", [None, 1])
def test_a_continuation_has_the_conditional_law_given_the_end_of_the_path(model, overlap):
    n, given = 3000, path_of(0.3, -0.5, 1.0, 1.8)
    x = model.extend(np.repeat(given[None], n, axis=0), 18, overlap=overlap, seed=1, **EXACT)
    assert x.shape == (n, 18, 1, 1)
    np.testing.assert_allclose(x[:, :4], np.repeat(given[None], n, axis=0), rtol=1e-13)
    future = scaled(x)[:, 4:]
    # of a Markov process, given its last frame 1.8; 14 frames take two windows
    k = np.arange(1, 15)
    decay = np.exp(-RATE * k)
    expected = np.exp(-RATE * np.abs(np.subtract.outer(k, k))) - np.outer(decay, decay)
    spread = np.sqrt(expected.diagonal())
    assert (np.abs(future.mean(axis=0) - 1.8 * decay) < (4.5 / np.sqrt(n) + 0.03) * spread).all()
    found = np.cov(future.T)
    # var(sample covariance) = (c_ii c_jj + c_ij^2) / n
    error = np.sqrt((np.outer(spread, spread) ** 2 + expected**2) / n)
    assert (np.abs(found - expected) < 5.0 * error + 0.03 * np.outer(spread, spread)).all()


def test_one_frame_can_be_gone_on_from_and_long_paths_begin_with_a_snippet(model):
    x = model.extend(path_of(1.5), 12, seed=1, **EXACT)
    assert x.shape == (1, 12, 1, 1)
    assert x[0, 0, 0, 0] == pytest.approx(MEAN + 1.5 * SPREAD, rel=1e-13)
    np.testing.assert_array_equal(model.extend(x, 12, seed=1, **EXACT), x)
    long = model.sample_long(3, 25, seed=4, **EXACT)
    np.testing.assert_allclose(long[:, :FRAMES], model.sample(3, seed=4, **EXACT), rtol=1e-13)


def test_what_cannot_be_continued_is_refused(model):
    with pytest.raises(DataError, match="cannot be continued"):
        model.extend(path_of(1.0, 2.0), 12, overlap=3, seed=1)
    with pytest.raises(DataError, match="cannot be continued"):
        model.extend(path_of(1.0, 2.0), 1, seed=1)
    with pytest.raises(DataError, match="for all, or"):
        model.extend(np.zeros((2, 1)), 12, seed=1)


MASKS = {"ends": [0, FRAMES - 1], "middle": [4, 5], "first": [0], "several": [1, 3, 8]}


def test_paths_with_masks_of_their_own_have_the_exact_law_of_each(model):
    n, known = 1200, path_of(*np.linspace(1.5, -1.0, FRAMES))
    one_each = np.array([np.isin(np.arange(FRAMES), frames) for frames in MASKS.values()])
    masks = np.repeat(one_each, n, axis=0)[np.random.default_rng(0).permutation(4 * n)]
    x = model.inpaint(known, masks, seed=2, **EXACT)
    np.testing.assert_allclose(x[masks], np.broadcast_to(known, x.shape)[masks], rtol=1e-13)
    z, cov, y = scaled(x), covariance().numpy(), np.linspace(1.5, -1.0, FRAMES)
    for mask in one_each:
        mine = z[(masks == mask).all(axis=1)][:, ~mask]
        gain = cov[np.ix_(~mask, mask)] @ np.linalg.inv(cov[np.ix_(mask, mask)])
        expected = cov[np.ix_(~mask, ~mask)] - gain @ cov[np.ix_(mask, ~mask)]
        error = (mine.mean(axis=0) - gain @ y[mask]) / np.sqrt(expected.diagonal())
        assert len(mine) == n
        assert np.abs(error).max() < 4.5 / np.sqrt(n) + 0.03
        ratios = np.linalg.eigvals(np.linalg.solve(expected, np.cov(mine.T))).real
        # (1 +- sqrt(9 / n))^2 are 0.83 and 1.18
        assert ratios.min() > 0.78
        assert ratios.max() < 1.26


def test_a_path_is_what_its_own_mask_makes_of_it_whatever_the_others_have(model, monkeypatch):
    known = path_of(*np.linspace(1.5, -1.0, FRAMES))
    masks = np.array([np.isin(np.arange(FRAMES), frames) for frames in MASKS.values()])
    x = model.inpaint(known, masks, seed=3, **EXACT)
    varied = model.vary(known, 2.0, mask=masks, seed=3, device="cpu")
    for i, mask in enumerate(masks):
        np.testing.assert_allclose(x[i], model.inpaint(known, mask, len(masks), seed=3, **EXACT)[i], atol=1e-4)
        np.testing.assert_allclose(varied[i], model.vary(known, 2.0, len(masks), mask=mask, seed=3, device="cpu")[i], atol=1e-4)
    monkeypatch.setattr("couloir.generative.fitted_trajectories._FRAMES_AT_ONCE", 2 * FRAMES)
    batched = model.inpaint(known, masks, seed=3, **EXACT)
    np.testing.assert_allclose(batched[masks], np.broadcast_to(known, x.shape)[masks], rtol=1e-13)


def test_lines_run_from_start_to_end_in_equal_steps(model):
    ends = np.stack([path_of(1.0, -2.0), path_of(0.5, 3.0)])
    lines = model.interpolate(ends[:, 0], ends[:, 1], 7)
    np.testing.assert_allclose(lines, np.linspace(ends[:, 0], ends[:, 1], 7, axis=1), atol=1e-12)
    assert model.interpolate(ends[:, 0], ends[:, 1]).shape[1] == model.n_frames


def test_masks_that_do_not_fit_are_refused(model):
    known = path_of(*np.zeros(FRAMES))
    some = np.arange(FRAMES) < 2
    with pytest.raises(DataError, match="0 of 10 frames"):
        model.inpaint(known, np.array([some, ~some & some]), seed=1)
    with pytest.raises(DataError, match="10 of 10 frames"):
        model.inpaint(known, np.array([some, ~some | some]), seed=1)
    with pytest.raises(DataError, match=r"mask is bool \(2, 10\)"):
        model.inpaint(known, np.array([some, some]), 3, seed=1)
    with pytest.raises(DataError, match=r"mask is bool \(2, 10\)"):
        model.vary(np.repeat(known[None], 3, axis=0), 1.0, mask=np.array([some, some]), seed=1)
