"""Interface sampling gives flux and crossing probabilities: exactly known ones of a chain, and those of brute force."""

import numpy as np
import pytest
from scipy import stats
from walk_chain import LEVELS, WALK, X, first_path, walk_sampling

from couloir.analysis import crossing_probability
from couloir.errors import DataError, SimulationError
from couloir.sampling import ToyEngine, TransitionInterfaceSampling, initial_paths, potentials
from couloir.sampling.interface_ensembles import departures, excursions
from couloir.sampling.interface_sets import InterfaceSets
from couloir.sampling.interface_starts import dealt
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.path_store import PathLog
from couloir.store import Store


def per_set(samples, ensemble, values):
    """Return the mean of a row's value over the steps of each set in one ensemble."""
    chosen = samples.ensemble == ensemble
    return np.bincount(samples.chain[chosen], values[chosen]) / np.bincount(samples.chain[chosen])


@pytest.mark.parametrize(("swaps", "shots"), [(True, 1), (True, 3), (False, 1)])
@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.two_way()], ids=str)
def test_crossing_probabilities_and_flux_of_a_chain_are_exact(move, swaps, shots):
    samples = walk_sampling(move, swaps=swaps, shots=shots).run(first_path(), 45, seed=4, n_sets=40)
    exact = {
        "P(1|0)": (per_set(samples, 0, samples.maximum > 2.5), WALK.reach(2, 3, 1)),
        "P(2|1)": (per_set(samples, 1, samples.maximum > 3.5), WALK.reach(3, 4, 1)),
        "P(B|2)": (per_set(samples, 2, samples.ends_in_b), WALK.reach(4, 6, 1)),
        "time in A": (per_set(samples, -1, samples.length - 2.0), WALK.stay(1, (0, 1))),
        "time outside": (per_set(samples, 0, samples.length - 2.0), WALK.stay(2, (2, 3, 4, 5))),
    }
    for name, (found, truth) in exact.items():
        assert found.std() > 0, name
        assert stats.ttest_1samp(found, truth).pvalue > 1e-5, (name, found.mean(), truth)


@pytest.mark.parametrize("swaps", [True, False])
def test_a_path_whose_maximum_is_the_interface_reaches_it(swaps):
    # a CV that counts has values on its interfaces: sampling and analysis must agree on them
    sampling = TransitionInterfaceSampling(WALK, X < 1.0, X > 5.5, X, (1.0, 3.0, 4.0), max_duration=2000, swaps=swaps)
    found = crossing_probability(sampling.run(first_path(), 110, seed=4, n_sets=16))
    for k, exact in ((1, WALK.reach(2, 3, 1)), (2, WALK.reach(2, 4, 1))):
        assert abs(found.probability[k] - exact) < 4.5 * found.standard_error[k]
    assert abs(found.total.value - WALK.reach(2, 6, 1)) < 4.5 * found.total.standard_error
    assert found.total.standard_error < 0.2 * found.total.value


LOW = ToyEngine(potentials.double_well(), kT=0.35, time_step=0.01, friction=1.0, threads=1)
LOW_LEVELS = (-0.8, -0.5, -0.2)
STRIDE = 0.02


def brute_force(n_walkers, duration):
    """Return per walker: departures from A, arrivals in B and time in the overall state A (it was in A since it was in B)."""
    out = []
    for run in LOW.propagate([LOW.state(-1.0)] * n_walkers, duration=duration, stride=STRIDE, seed=11):
        x = run.positions[:, 0, 0]
        at = np.where(x <= LOW_LEVELS[0], 1, np.where(x >= 0.8, -1, 0))
        marked = np.maximum.accumulate(np.where(at != 0, np.arange(len(at)), 0))
        last = at[marked]  # the state that was visited last
        leaves = (at[:-1] == 1) & (at[1:] != 1)
        out.append((leaves.sum(), ((last[:-1] == 1) & (last[1:] == -1)).sum(), (last == 1).sum() * STRIDE))
    return np.array(out, dtype=float)


def test_flux_crossing_probability_and_rate_equal_those_of_brute_force():
    sampling = TransitionInterfaceSampling(LOW, LOW_LEVELS[0] > X, X > 0.8, X, LOW_LEVELS, max_duration=200)
    first = initial_paths(sampling, LOW.state(-1.0), stride=STRIDE, seed=2, n_shots=8)
    samples = sampling.run(first, 80, seed=3, n_sets=20, discard=15)
    period = STRIDE * (per_set(samples, -1, samples.length - 2.0) + per_set(samples, 0, samples.length - 2.0))
    steps = [
        per_set(samples, 0, samples.maximum > -0.5),
        per_set(samples, 1, samples.maximum > -0.2),
        per_set(samples, 2, samples.ends_in_b),
    ]
    md = brute_force(32, 1500)

    def log_of(parts):
        """Return the logarithm of a product of means, and its error from the spread over sets or walkers."""
        parts = [np.asarray(p) for p in parts]
        relative = sum(p / p.mean() - 1 for p in parts)
        return sum(np.log(p.mean()) for p in parts), relative.std(ddof=1) / np.sqrt(len(relative))

    def log_ratio(a, b):
        relative = a / a.mean() - b / b.mean()
        return np.log(a.mean() / b.mean()), relative.std(ddof=1) / np.sqrt(len(relative))

    flux, flux_error = log_of([period])
    crossing, crossing_error = log_of(steps)
    relative = sum(p / p.mean() - 1 for p in steps) - (period / period.mean() - 1)
    found = {
        "flux": ((-flux, flux_error), log_ratio(md[:, 0], md[:, 2])),
        "crossing probability": ((crossing, crossing_error), log_ratio(md[:, 1], md[:, 0])),
        "rate": ((crossing - flux, relative.std(ddof=1) / np.sqrt(len(relative))), log_ratio(md[:, 1], md[:, 2])),
    }
    for name, ((ours, error), (theirs, their_error)) in found.items():
        combined = np.hypot(error, their_error)
        assert combined < 0.25, name
        assert abs(ours - theirs) < 4.5 * combined, (name, ours, theirs, combined)


def test_every_row_belongs_to_its_ensemble_and_paths_are_kept_when_asked():
    sampling = walk_sampling(ShootingMove.one_way())
    samples = sampling.run(first_path(), 10, seed=1, n_sets=3, keep_paths=True)
    assert len(samples) == len(samples.paths) == (10 - samples.step.min() + 1) * 3 * 4
    for i, path in enumerate(samples.paths):
        assert sampling.ensembles[samples.ensemble[i] + 1].accepts(path)
        values = path.positions[:, 0, 0]
        assert (samples.maximum[i], samples.minimum[i], samples.length[i]) == (values.max(), values.min(), len(path))
        assert samples.ends_in_b[i] == (values[-1] > 5.5)


def holds(path, frames):
    return any(tuple(x.ravel()) in frames for x in path.positions)


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("move", [ShootingMove.one_way(), ShootingMove.two_way()], ids=str)
def test_no_returned_path_holds_a_frame_of_a_first_path_but_the_cycle_before_some_did(move, swaps):
    sampling = TransitionInterfaceSampling(LOW, X < -0.8, X > 0.8, X, LOW_LEVELS[:2], move, swaps, max_duration=50)
    first = initial_paths(sampling, LOW.state(-1.0), stride=STRIDE, seed=2, n_shots=4)
    first += LOW.propagate([LOW.state(-1.0)], duration=20, stride=STRIDE, seed=1, velocities=True)  # holds excursions
    frames = {tuple(x.ravel()) for path in first for x in path.positions}
    samples = sampling.run(first, 110, seed=3, n_sets=2, discard=0, keep_paths=True)
    assert not samples.findings
    assert samples.step.min() > 2
    assert not any(holds(path, frames) for path in samples.paths)
    free = samples.step.min() - 1
    before = sampling.run(first, int(free) - 1, seed=3, n_sets=2, discard=0, keep_paths=True)
    assert any(holds(path, frames) for path, step in zip(before.paths, before.step, strict=True) if step == free - 1)
    [finding] = [f for f in before.findings if f.code != "few-passages"]
    assert finding.code == "first-path-remains"
    assert f"after {free - 1} cycles" in finding.message


def test_frames_of_first_paths_are_known_through_shots_swaps_and_exchanges():
    sampling = TransitionInterfaceSampling(LOW, X < -0.8, X > 0.8, X, LOW_LEVELS[:2], max_duration=50)
    first = initial_paths(sampling, LOW.state(-1.0), stride=STRIDE, seed=2, n_shots=4)
    sets = InterfaceSets(sampling, dealt(sampling, first, 16, 1)[0], 16)
    frames = {tuple(x.ravel()) for path in sets.paths for x in path.positions}
    for k in range(1, 9):
        sampling._cycle(sets, k, 1, [], PathLog(None, "none", {}))
        for path, made in zip(sets.paths, sets.made_by, strict=True):
            assert [tuple(x.ravel()) in frames for x in path.positions] == (made == 0).tolist()
    assert (sets.exchanges["accepted"] > 0).all()
    assert sets.stuck


def test_more_may_be_discarded_than_first_paths_but_not_less():
    sampling = walk_sampling(ShootingMove.one_way())
    begins = [sampling.run(first_path(), 60, seed=1, discard=discard).step.min() for discard in (0, 1, None, 50)]
    assert begins[0] == begins[1] > 2
    assert begins[2] == max(begins[0], 7)
    assert begins[3] == 51


def test_what_became_of_shots_and_exchanges_is_counted():
    n_sets, cycles = 3, 40
    samples = walk_sampling(ShootingMove.two_way()).run(first_path(), cycles, seed=1, n_sets=n_sets)
    np.testing.assert_array_equal(sum(samples.outcomes.values()), [n_sets * cycles] * 4)
    np.testing.assert_array_equal(sum(samples.exchanges.values()), [n_sets * cycles / 2, *[n_sets * cycles] * 2])
    assert (samples.outcomes["accepted"] > 0).all()
    assert (samples.exchanges["accepted"] > 0).all()
    assert samples.force_evaluations > n_sets * cycles * 4
    assert "[0-] [0+]" in str(samples)
    assert f"{samples.force_evaluations} force evaluations" in str(samples)
    more = walk_sampling(ShootingMove.two_way(), shots=4).run(first_path(), cycles, seed=1, n_sets=n_sets)
    np.testing.assert_array_equal(sum(more.outcomes.values()), np.array([1, 4, 4, 4]) * n_sets * cycles)
    np.testing.assert_array_equal(sum(more.exchanges.values()), np.array([0.5, 4, 4]) * n_sets * cycles)
    alone = walk_sampling(ShootingMove.two_way(), swaps=False).run(first_path(), 5, seed=1)
    assert not any(count.any() for count in alone.exchanges.values())


def test_velocities_lead_along_every_path_also_after_exchanges():
    sampling = TransitionInterfaceSampling(LOW, X < -0.8, X > 0.8, X, LOW_LEVELS[:1], max_duration=50)
    first = initial_paths(sampling, LOW.state(-1.0), stride=STRIDE, seed=2, n_shots=4)
    for path in sampling.run(first, 12, seed=3, n_sets=4, keep_paths=True).paths:
        x, v = path.positions[:, 0, 0], path.velocities[:, 0, 0]
        # noise of the velocity within a stride is 0.12, of which displacements miss about a third
        assert np.abs(np.diff(x) / STRIDE - (v[1:] + v[:-1]) / 2).max() < 0.3


@pytest.mark.parametrize("shots", [1, 3])
def test_an_interrupted_run_goes_on_bit_for_bit(shots, tmp_path):
    sampling = walk_sampling(ShootingMove.one_way(), shots=shots)
    whole = sampling.run(first_path(), 12, seed=5, n_sets=2)

    def stop_at_seven(done, _):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampling.run(first_path(), 12, seed=5, n_sets=2, store=Store(tmp_path / "s"), on_progress=stop_at_seven)
    again = sampling.run(first_path(), 12, seed=5, n_sets=2, store=Store(tmp_path / "s"))
    for name in ("ensemble", "chain", "step", "maximum", "minimum", "length", "ends_in_b"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_a_trajectory_is_cut_into_departures_and_excursions():
    path = first_path((2, 1, 0, 1, 2, 3, 2, 1, 1, 2, 3, 4, 5, 6, 5))
    a, b = X < 1.5, X > 5.5
    assert [p.positions[:, 0, 0].tolist() for p in excursions([path], a)] == [[2, 1, 0, 1, 2], [2, 1, 1, 2]]
    assert [p.positions[:, 0, 0].tolist() for p in departures([path], a, b)] == [[1, 2, 3, 2, 1], [1, 2, 3, 4, 5, 6]]


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(DataError, match="ascending"):
        TransitionInterfaceSampling(WALK, X < 1.5, X > 5.5, X, (2.5, 1.5), max_duration=100)
    for move in (ShootingMove.aimless(1), ShootingMove.spring(2, 0.5)):
        with pytest.raises(DataError, match="anchor"):
            walk_sampling(move)
    with pytest.raises(DataError, match="first interface"):
        TransitionInterfaceSampling(WALK, X < 0.5, X > 5.5, X, LEVELS, max_duration=100).run(first_path(), 2, seed=1)
    with pytest.raises(DataError, match=r"crosses the interface at x = 3.5; the farthest comes to 3"):
        walk_sampling(ShootingMove.one_way()).run(first_path((1, 2, 3, 2, 1)), 2, seed=1)
    with pytest.raises(DataError, match="leaves A"):
        walk_sampling(ShootingMove.one_way()).run(first_path((1, 0, 1)), 2, seed=1)


def test_the_stride_of_first_paths_takes_a_unit():
    sampling = TransitionInterfaceSampling(LOW, X < -0.8, X > 0.8, X, LOW_LEVELS[:1], max_duration="50 ps")
    found = [initial_paths(sampling, LOW.state(-1.0), stride=stride, seed=1, n_shots=2) for stride in (STRIDE, "20 fs")]
    for path, same in zip(*found, strict=True):
        np.testing.assert_array_equal(path.positions, same.positions)


def test_a_state_that_can_also_be_left_elsewhere_than_through_the_first_interface_is_refused_once_that_shows():
    leaky = (X > -1.45) & (X < -0.8)
    sampling = TransitionInterfaceSampling(LOW, leaky, X > 0.8, X, LOW_LEVELS[:2], max_duration=100)
    first = initial_paths(sampling, LOW.state(-1.0), stride=STRIDE, seed=2, n_shots=8)
    with pytest.raises(DataError, match="outside A"):
        sampling.run(first, 40, seed=3, n_sets=4)


def test_first_paths_that_cannot_climb_say_where():
    cold = ToyEngine(potentials.double_well(), kT=0.02, time_step=0.01, friction=1.0, threads=1)
    sampling = TransitionInterfaceSampling(cold, X < -0.9, X > 0.8, X, (-0.9, 0.0), max_duration=50)
    with pytest.raises(SimulationError, match="crossed the interface at x = 0"):
        initial_paths(sampling, cold.state(-1.0), stride=0.02, seed=1, n_shots=4, patience=3)
