"""What a report says of channels of reactive paths, and of how many paths are independent, on ensembles made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from couloir import report_html as web
from couloir import report_paths
from couloir.analysis import FreeEnergySurface, PathEnsemble
from couloir.cv import Coordinate
from couloir.report_channels import channel_means, write_channels
from couloir.report_data import RunData
from couloir.report_paths import answer, surface_figure
from couloir.trajectory import Trajectory

X, Y = Coordinate(0, "x"), Coordinate(1, "y", period=4.0)


class Page:
    """Gathers what is added."""

    def __init__(self):
        self.text = ""

    def add(self, *parts):
        self.text += "".join(parts)


def arcs(signs, height=1.0, seed=1):
    """One chain per row of signs, (n_chains, n_steps): a path of equal duration above (+1) or below (-1) each."""
    rng = np.random.default_rng(seed)
    paths = []
    for sign in np.ravel(signs):
        x = np.linspace(0.0, 1.0, 9)
        y = height * sign * np.sin(np.pi * x) + 0.05 * rng.standard_normal(9)
        paths.append(Trajectory(np.stack([x, y], axis=1)[:, None, :], 0.1))
    chain, step = np.divmod(np.arange(len(paths)), np.shape(signs)[1])
    one = np.ones(len(paths), dtype=int)
    return PathEnsemble(tuple(paths), chain, step + 1, one, one, {"accepted": np.full(len(signs), np.shape(signs)[1])}, 0)


def said(paths, cvs=(X, Y)):
    page = Page()
    write_channels(page, paths, cvs)
    return page.text


def mixed(share=0.7, n=100):
    return np.where(np.random.default_rng(2).random((4, n)) < share, 1, -1)


def test_two_channels_are_told_with_shares_errors_and_means():
    paths = arcs(mixed())
    found = paths.channels((X, Y))
    text = said(paths)
    assert "the 400 paths that count follow 2 channels" in text
    share, error = found.shares[0].value, found.shares[0].standard_error
    assert abs(share - 0.7) < 4.5 * error
    assert error < 0.05
    first = found.medoids[0]
    means = channel_means(paths, found, (X, Y))
    # the mean of sin over the 9 frames, above and below; of 0.05 noise over 9 frames of 100 paths and more remains < 0.01
    height = np.sin(np.pi * np.linspace(0, 1, 9)).mean()
    assert means == pytest.approx(np.array([[0.5, height], [0.5, -height]]), abs=0.06)
    row = (
        f"<td>1</td><td>{int((found.label == 0).sum())}</td><td>{share:.3g}</td><td>{error:.2g}</td><td>0.5</td><td>{means[0, 1]:.3g}</td>"
    )
    assert row + f"<td>chain {paths.chain[first]}, step {paths.step[first]}</td>" in text
    assert "<th>mean x [nm]</th>" in text


def test_means_of_a_periodic_cv_are_those_on_the_circle_and_weighted():
    x = [np.array([[[0.0, y]]] * 3) for y in (1.9, -1.9, -1.9, 0.0)]
    paths = PathEnsemble(
        tuple(Trajectory(p, 0.1) for p in x), (0,) * 4, (1, 2, 5, 9), (1, 1, 2, 4), (1,) * 4, {"accepted": np.array([8])}, 0
    )
    means = channel_means(paths, paths.channels(Y, 2), [Y])[:, 0]
    # half of the steps are at 0; the others lie 0.1 on either side of 2 = -2, three of each four beyond it
    near = sorted(means, key=abs)
    assert near[0] == pytest.approx(0.0)
    points = np.exp(2j * np.pi / 4 * np.array([1.9, -1.9, -1.9, -1.9]))
    assert near[1] == pytest.approx(np.angle(points.mean()) * 4 / (2 * np.pi))
    assert abs(near[1]) > 1.9


def test_one_channel_is_said_to_be_one():
    text = said(arcs(mixed(), height=0.0))
    assert "all 400 paths that count follow one channel" in text
    assert "x is 0.5 nm, y is" in text
    assert "<table>" not in text


def test_nothing_is_said_of_a_single_cv_or_of_paths_without_weight_and_little_of_few():
    paths = arcs(mixed())
    assert said(paths, (X,)) == ""
    bound = PathEnsemble(paths.paths, paths.chain, paths.step, paths.multiplicity, np.zeros(400), paths.outcomes, 0)
    assert said(bound) == ""
    assert "5 paths that count are too few" in said(arcs([[1, 1, -1, -1, 1]]))


def test_the_headline_counts_paths_by_the_cv_that_chains_do_not_change():
    stuck = arcs([[1] * 50, [1] * 50, [-1] * 50, [-1] * 50])
    assert stuck.n_effective == 200
    data = RunData(None, finished=False, cvs={"x": X, "y": Y}, paths=stuck)
    assert data.n_independent < 4
    assert f"({data.n_independent:.0f} effectively independent paths)" in answer(data)
    assert "(200 effectively independent paths)" in answer(RunData(None, finished=False, paths=stuck))
    assert RunData(None, finished=False).n_independent == 0


def test_paths_without_a_frame_between_are_reported_without_densities(monkeypatch):
    monkeypatch.setattr(report_paths, "stored_branches", lambda run, engine: [])
    monkeypatch.setattr(report_paths, "stored_candidates", lambda run: None)
    monkeypatch.setattr(report_paths, "stored_generated", lambda run: None)
    states = SimpleNamespace(region_a="x < -0.5", region_b="x > 0.5")
    run = SimpleNamespace(config=SimpleNamespace(paths=states))
    first = {"how": "steered", "n": 1, "force_evaluations": 50, "counts": {}}
    one = np.ones(3, dtype=int)
    for n, shown in ((2, False), (3, True)):
        path = Trajectory(np.linspace([[-1.0, 0.0]], [[1.0, 0.0]], n), 0.1)
        paths = PathEnsemble((path,) * 3, 0 * one, 1 + np.arange(3), one, one, {"accepted": np.array([3])}, 100)
        page = web.Page("paths")
        report_paths.write_paths(page, RunData(run, finished=True, cvs={"x": X, "y": Y}, paths=paths, first_paths=first))
        text = page.render()
        assert "x along paths" in text
        assert ("spend their time" in text) == shown
        assert "They are worth 3.0 effectively independent paths by durations and by means of x, y over paths" in text
        assert "50 per effectively independent path" in text


def test_the_lines_on_a_surface_enclose_no_frames_in_a_or_b():
    """Paths from (-1, -1), in A, to (1, 1), in B, by four frames near (0, 0); every third has none between."""
    rng, ends = np.random.default_rng(1), np.array([[-1.0, -1.0], [1.0, 1.0]])
    frames = [np.insert(ends, 1, 0.2 * rng.standard_normal((4 if i % 3 else 0, 2)), axis=0) for i in range(60)]
    one = np.ones(60, dtype=int)
    outcomes = {"accepted": np.array([60])}
    paths = PathEnsemble(tuple(Trajectory(p[:, None, :], 0.1) for p in frames), 0 * one, np.arange(60), one, one, outcomes, 0)
    grid, flat = np.linspace(-1.5, 1.5, 16), np.zeros((16, 16))
    surface = FreeEnergySurface(
        names=("x", "z"), units=("", ""), periods=(None, None), grid=(grid, grid), free_energy=flat + np.abs(grid),
        standard_error=flat + 0.1, kT=1.0, estimator="by hand", replicas=np.empty((0, 16, 16)), n_effective=flat + 100.0,
    )  # fmt: skip
    figure = surface_figure(paths, surface, {"x": X, "z": Coordinate(1, "z")})
    [white] = [c for c in figure.axes[0].collections if len(c.get_edgecolor()) and (c.get_edgecolor()[0] == 1.0).all()]
    corners = np.concatenate([path.vertices for path in white.get_paths() if len(path.vertices)])
    assert 0.1 < np.abs(corners).max() < 0.9  # the ends lie in the cells at 0.9 and 1.1
