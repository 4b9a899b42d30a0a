"""Configurations are followed through exchanges; those that never change by themselves are found, and widen the error bars."""

import numpy as np

from couloir.analysis import BiasedSamples, expectation, free_energy_surface
from couloir.analysis.bootstrap import make_blocks
from couloir.analysis.replicas import replicas_disagree
from couloir.cv.geometric import Coordinate
from couloir.sampling import ToyEngine, UmbrellaSampling, potentials
from couloir.store import Store
from couloir.trajectory import State

X, Y = Coordinate(0, "x"), Coordinate(1, "y")


def sampled(barrier: float, duration: float = 40.0, seed: int = 1) -> tuple[UmbrellaSampling, BiasedSamples, Store]:
    """Return windows away from the passage, each with two walkers on either side of y = 0."""
    windows = UmbrellaSampling.grid(X, 6, 20.0, range=(-1.4, -0.2))
    seeds = {w: [State(np.array([[c[0], side]])) for side in (-1.0, 1.0, -1.0, 1.0)] for w, c in enumerate(windows.centers)}
    mixed = {w: states[w % 2 :] + states[: w % 2] for w, states in seeds.items()}  # both modes in every exchanging set
    engine, store = ToyEngine(potentials.hidden_barrier(barrier=barrier), kT=1.0, time_step=2e-3, threads=1), Store()
    return windows, windows.run(engine, mixed, duration, seed=seed, record=(Y,), record_stride=0.02, store=store), store


def test_a_configuration_keeps_its_mode_through_all_exchanges() -> None:
    windows, samples, _ = sampled(25.0)
    windows.extend(samples, [20.0, 0.0, 20.0, 20.0, 0.0, 20.0])
    longer = windows.extend(samples, 10.0)
    for found in (samples, longer):
        right = np.bincount(found.replicas, found["y"] > 0) / np.bincount(found.replicas)
        assert set(right.tolist()) == {0.0, 1.0}
        assert len(right) == 24
        visited = [len(np.unique(found.window[found.replicas == r])) for r in range(24)]
        assert min(visited) > 2
    assert not (samples.replicas == samples.walker).all()


def test_a_continued_run_follows_the_same_configurations() -> None:
    windows, whole, _ = sampled(25.0)
    _, _, store = sampled(25.0, duration=13.0)
    again, engine = UmbrellaSampling(windows.cvs, windows.windows), ToyEngine(
        potentials.hidden_barrier(barrier=25.0), kT=1.0, time_step=2e-3, threads=1
    )  # fmt: skip
    states = {w: [State(np.array([[c[0], side]])) for side in (-1.0, 1.0, -1.0, 1.0)] for w, c in enumerate(windows.centers)}
    mixed = {w: s[w % 2 :] + s[: w % 2] for w, s in states.items()}
    continued = again.run(engine, mixed, 40.0, seed=1, record=(Y,), record_stride=0.02, store=store)
    np.testing.assert_array_equal(whole.replicas, continued.replicas)


def test_trapped_configurations_are_found_though_walkers_agree() -> None:
    """Half of them on either side, whatever the truth is (0.15 to 0.9 along x): only configurations show it."""
    _, samples, _ = sampled(25.0)
    assert set(replicas_disagree(samples)) >= {"y"}
    surface = free_energy_surface(samples, X, bins=12, n_bootstrap=100)
    assert "replicas-disagree" in [f.code for f in surface.findings]
    right = expectation(samples, (samples["y"] > 0).astype(float))
    # 24 configurations, each on one side for good, cannot know a share of one half better than this.
    assert right.standard_error > 0.7 * np.sqrt(0.25 / 24)


def test_configurations_that_change_by_themselves_raise_no_alarm() -> None:
    for barrier, seed in ((1.5, 0), (1.5, 1), (1.5, 2), (2.5, 3), (2.5, 4)):
        _, samples, _ = sampled(barrier, duration=30.0, seed=seed)
        assert replicas_disagree(samples) == {}


def test_weights_of_whole_configurations_average_to_one_in_every_window() -> None:
    _, samples, _ = sampled(25.0)
    blocks = make_blocks(samples)
    assert blocks.replica is not None
    rows = np.bincount(blocks.block)
    drawn = np.array([blocks.draw(np.random.default_rng(i)) for i in range(200)])
    for window in range(6):
        mine = blocks.window == window
        np.testing.assert_allclose(drawn[:, mine] @ rows[mine] / rows[mine].sum(), 1.0)
    # The same configuration weighs the same everywhere but for that normalization.
    one = [drawn[:, (blocks.window == w) & (blocks.replica == 3)] for w in np.unique(blocks.window[blocks.replica == 3])]
    assert np.corrcoef(one[0][:, 0], one[-1][:, 0])[0, 1] > 0.8


def test_without_exchange_walkers_are_the_configurations() -> None:
    walker, time = np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 1.0, 2.0])
    samples = BiasedSamples(("x",), ("",), (None,), np.zeros((4, 1)), np.zeros(4), np.zeros(4, dtype=np.int64), walker, time, (None,))
    assert samples.replicas.tolist() == [0, 0, 1, 1]
    assert BiasedSamples.join(samples, samples).replicas.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
