"""A store of path sampling is enough by itself: what chains started from is in it, to go on from and to read paths by."""

import numpy as np
import pytest

from couloir.cv import Coordinate, LinearCombination
from couloir.cv.geometric import Distance
from couloir.errors import DataError, StoreError
from couloir.sampling import (
    OpenMMEngine,
    ShootingMove,
    ToyEngine,
    TransitionInterfaceSampling,
    TransitionPathSampling,
    potentials,
    stored_ensemble,
    systems,
)
from couloir.sampling.path_store import keep_plan, kept_first
from couloir.sampling.selectors import GaussianSelector
from couloir.store import Store
from couloir.trajectory import Trajectory

WELL = potentials.double_well(2.0, harmonic=4.0)
X, _ = WELL.cvs()
OVERDAMPED = ToyEngine(WELL, kT=1.0, time_step=1e-3, threads=1)
UNDERDAMPED = ToyEngine(WELL, kT=1.0, time_step=5e-3, friction=2.0, threads=1)

LINE = potentials.double_well()
ALONG = Coordinate(0, "x")


def straight(sign=1.0, n=60):
    """A path without velocities, which are drawn then."""
    x = sign * np.linspace(-0.9, 0.9, n)
    return Trajectory(np.stack([x, np.zeros(n)], axis=1)[:, None, :], 2e-2)


def sampling(engine=UNDERDAMPED, **settings):
    return TransitionPathSampling(engine, X < -0.8, X > 0.8, ShootingMove.two_way(), **settings)


def given():
    """Both ways, and one that two chains share."""
    return [straight(), straight(-1.0, 70)]


def interrupt_at(n):
    def stop(done, _):
        if done >= n:
            raise KeyboardInterrupt

    return stop


def same_frames(one, other):
    assert len(one) == len(other)
    for p, q in zip(one, other, strict=True):
        assert p.stride == q.stride
        for name in ("positions", "velocities", "boxes"):
            a, b = getattr(p, name), getattr(q, name)
            assert (a is None) == (b is None)
            assert a is None or a.tobytes() == b.tobytes()


def same(one, other):
    same_frames(one.paths, other.paths)
    for name in ("chain", "step", "multiplicity", "decorrelated", "shooting"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert {k: v.tolist() for k, v in one.outcomes.items()} == {k: v.tolist() for k, v in other.outcomes.items()}
    assert one.force_evaluations == other.force_evaluations
    assert one.findings == other.findings


def without_first(store, name):
    """The same store as it was written before first paths were kept."""
    old = Store()
    for series in store.series():
        for chunk in store.chunks(series) if series != f"{name}/first" else ():
            old.append({series: chunk})
    old[f"{name}/plan"] = store.get(f"{name}/plan")
    return old


@pytest.mark.parametrize("engine", [OVERDAMPED, UNDERDAMPED], ids=["overdamped", "underdamped"])
def test_an_interrupted_run_goes_on_without_its_first_paths(tmp_path, engine):
    whole = sampling(engine).run(given(), 90, 3, seed=7)
    with Store(tmp_path / "s") as store, pytest.raises(KeyboardInterrupt):
        sampling(engine).run(given(), 90, 3, seed=7, store=store, on_progress=interrupt_at(30))
    with Store(tmp_path / "s") as store:
        same(sampling(engine).run(None, 90, 3, seed=7, store=store), whole)
        same(sampling(engine).run(given(), 90, 3, seed=7, store=store), whole)
        assert store.count("paths/first") == 1
        assert store.chunk("paths/first", 0)["which"].tolist() == [0, 1, 0]
    assert whole.outcomes["accepted"].sum() > 0


def test_first_paths_that_differ_in_a_bit_are_refused_and_the_stored_ones_offered():
    store = Store()
    sampling().run(given(), 9, 3, seed=7, store=store)
    moved = straight().positions.copy()
    moved[30, 0, 0] = np.nextafter(moved[30, 0, 0], 1.0)
    with pytest.raises(StoreError, match=r"different first\)") as caught:
        sampling().run([Trajectory(moved, 2e-2), given()[1]], 9, 3, seed=7, store=store)
    assert "first=None" in str(caught.value)
    with pytest.raises(StoreError, match=r"different .*n_chains"):
        sampling().run(None, 9, 2, seed=7, store=store)
    with pytest.raises(StoreError, match="different seed") as caught:
        sampling().run(None, 9, 3, seed=8, store=store)
    assert "first=None" not in str(caught.value)


def test_a_run_until_decorrelated_goes_on_without_its_first_paths():
    whole, store = sampling().run(given(), 60, 3, seed=4, run_until_decorrelated=True), Store()
    with pytest.raises(KeyboardInterrupt):
        sampling().run(given(), 60, 3, seed=4, store=store, run_until_decorrelated=True, on_progress=interrupt_at(1))
    same(sampling().run(None, 60, 3, seed=4, store=store, run_until_decorrelated=True), whole)


def test_a_stored_ensemble_is_what_the_run_returned(tmp_path):
    with Store(tmp_path / "s") as store:
        whole = sampling(name="mine").run(given(), 60, 3, seed=7, store=store)
    with Store(tmp_path / "s", read_only=True) as store:
        same(stored_ensemble(store, "mine"), whole)
        with pytest.raises(DataError, match="no run called 'paths'"):
            stored_ensemble(store)


def test_a_stored_ensemble_of_an_interrupted_run_ends_where_that_stopped():
    store = Store()
    with pytest.raises(KeyboardInterrupt):
        sampling().run(given(), 90, 3, seed=7, store=store, on_progress=interrupt_at(30))
    same(stored_ensemble(store), sampling().run(given(), 30, 3, seed=7))


def test_a_run_without_steps_has_no_ensemble(monkeypatch):
    def at_once(*_, **__):
        raise KeyboardInterrupt

    store = Store()
    with monkeypatch.context() as patch:
        patch.setattr(ShootingMove, "propose", at_once)
        with pytest.raises(KeyboardInterrupt):
            sampling().run(given(), 30, 3, seed=7, store=store)
    with pytest.raises(StoreError, match="has no steps yet"):
        stored_ensemble(store)
    same(sampling().run(None, 30, 3, seed=7, store=store), sampling().run(given(), 30, 3, seed=7))


def test_a_store_without_first_paths_says_what_to_give_and_goes_on_with_it():
    whole, store = sampling().run(given(), 90, 3, seed=7), Store()
    sampling().run(given(), 30, 3, seed=7, store=store)
    old = without_first(store, "paths")
    for ask in (lambda: sampling().run(None, 90, 3, seed=7, store=old), lambda: stored_ensemble(old)):
        with pytest.raises(StoreError, match="not the paths that it started from") as caught:
            ask()
        assert "first=" in str(caught.value)
    same(sampling().run(given(), 60, 3, seed=7, store=old), sampling().run(given(), 60, 3, seed=7))
    same(sampling().run(None, 90, 3, seed=7, store=old), whole)  # it has them now
    same(stored_ensemble(old), whole)


def test_first_paths_of_a_run_that_was_killed_before_it_began_are_replaced():
    store, stale = Store(), Store()
    sampling().run(straight(n=50), 3, 3, seed=7, store=stale)
    store.append({"paths/first": stale.chunk("paths/first", 0)})  # the plan, which is written next, is not there
    with pytest.raises(DataError, match="the store holds no run"):
        sampling().run(None, 9, 3, seed=7, store=store)
    sampling().run(given(), 9, 3, seed=7, store=store)
    same(sampling().run(None, 30, 3, seed=7, store=store), sampling().run(given(), 30, 3, seed=7))


def test_nothing_to_start_from_is_said():
    with pytest.raises(DataError, match="there are no first paths"):
        sampling().run(None, 30, 3, seed=7)
    with pytest.raises(DataError, match="the store holds no run called 'paths'"):
        sampling().run(None, 30, 3, seed=7, store=Store())


def test_boxes_and_velocities_come_back_bit_for_bit_and_shared_paths_once():
    rng = np.random.default_rng(3)
    one, other = (Trajectory(rng.normal(size=(n, 4, 3)), 0.1, rng.normal(size=(n, 4, 3)), rng.normal(size=(n, 3, 3))) for n in (5, 7))
    store = Store()
    keep_plan(store, "paths", {"seed": 1}, first=([one, other, one], 12))
    starts, spent = kept_first(store, "paths", None)
    same_frames(starts, [one, other, one])
    assert starts[0] is starts[2]
    assert spent == 12
    assert len(store.chunk("paths/first", 0)["positions"]) == 12
    keep_plan(store, "half", {"seed": 1}, first=([one, Trajectory(other.positions, 0.1, other.velocities)], 0))
    with pytest.raises(StoreError, match="not the paths"):  # rather than without the boxes that one of them has
        kept_first(store, "half", None)


def test_a_molecule_goes_on_with_its_topology():
    engine = OpenMMEngine(systems.alanine_dipeptide(), temperature=300, time_step=0.002, friction=1.0, platform="Reference", workers=1)
    bond = Distance((1, 4), "bond")
    (run,) = engine.propagate(engine.molecule.state, duration=1.0, stride=0.004, record=None, velocities=True, seed=1)
    low, high = np.quantile(bond.evaluate(run.positions), [0.2, 0.8])
    paths, store = TransitionPathSampling(engine, bond < low, bond > high), Store()
    whole = paths.run(run, 12, 2, seed=3)
    paths.run(run, 4, 2, seed=3, store=store)
    same(paths.run(None, 12, 2, seed=3, store=store), whole)
    found = stored_ensemble(store, topology=engine.topology)
    same(found, whole)
    assert all(path.topology is engine.topology for path in found.paths)
    assert whole.outcomes["accepted"].sum() > 0


def interfaces(**settings):
    engine = ToyEngine(LINE, kT=0.35, time_step=0.01, friction=1.0, threads=1)
    return TransitionInterfaceSampling(engine, ALONG < -0.8, ALONG > 0.8, ALONG, (-0.8, -0.5, 0.0), max_duration=100, **settings)


def line(n=40):
    return Trajectory(np.linspace(-0.85, 0.85, n)[:, None, None], 0.02)


def same_samples(one, other):
    for name in ("ensemble", "chain", "step", "maximum", "minimum", "length", "ends_in_b"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.force_evaluations == other.force_evaluations
    assert one.findings == other.findings


@pytest.mark.parametrize("keep_frames", [True, False])
def test_interface_sampling_goes_on_without_its_first_paths(keep_frames, tmp_path):
    settings = {"seed": 5, "n_sets": 2, "keep_frames": keep_frames}
    whole = interfaces().run(line(), 20, **settings)
    with Store(tmp_path / "s") as store, pytest.raises(KeyboardInterrupt):
        interfaces().run(line(), 20, store=store, on_progress=interrupt_at(7), **settings)
    with Store(tmp_path / "s") as store:
        assert store.count("interfaces/first") == 1
        assert store.chunk("interfaces/first", 0)["spent"][0] > 0  # of the path of [0-], which is counted once
        same_samples(interfaces().run(n_cycles=12, store=store, **settings), interfaces().run(line(), 12, **settings))
        other = interfaces(first=(line(45),))  # found again, a little differently
        same_samples(other.run(n_cycles=20, store=store, **settings), whole)
        with pytest.raises(StoreError, match="different first"):
            interfaces().run(line(45), 20, store=store, **settings)
        with pytest.raises(StoreError, match="8 first paths of 'interfaces', not one for each of 3 sets of 4"):
            interfaces().run(n_cycles=20, store=store, **{**settings, "n_sets": 3})
        with pytest.raises(StoreError, match="not one of transition path sampling"):
            stored_ensemble(store, "interfaces")


def test_interface_sampling_takes_what_it_was_placed_with_where_a_store_has_none():
    store = Store()
    placed = interfaces(first=(line(),))
    whole = placed.run(n_cycles=12, seed=5, n_sets=2)
    placed.run(n_cycles=6, seed=5, n_sets=2, store=store)
    old = without_first(store, "interfaces")
    with pytest.raises(StoreError, match="not the paths that it started from"):
        interfaces().run(n_cycles=12, seed=5, n_sets=2, store=old)
    same_samples(placed.run(n_cycles=9, seed=5, n_sets=2, store=old), placed.run(n_cycles=9, seed=5, n_sets=2))
    same_samples(interfaces().run(n_cycles=12, seed=5, n_sets=2, store=old), whole)
    with pytest.raises(DataError, match="there are no first paths"):
        interfaces().run(n_cycles=12, seed=5)


def one_way(move=None):
    return TransitionPathSampling(OVERDAMPED, X < -0.8, X > 0.8, move or ShootingMove.one_way(), max_duration=4.0)


def test_a_store_refuses_paths_that_were_sampled_differently():
    store = Store()
    one_way().run(straight(), 4, 2, seed=1, store=store)
    with pytest.raises(StoreError, match="different seed"):
        one_way().run(straight(), 4, 2, seed=2, store=store)
    other = Store()
    one_way(move=ShootingMove.spring(4, 0.2)).run(straight(), 4, 2, seed=1, store=other)
    for move in (ShootingMove.spring(5, 0.2), ShootingMove.spring(4, 0.3)):
        with pytest.raises(StoreError, match="different move"):
            one_way(move=move).run(straight(), 4, 2, seed=1, store=other)
    with pytest.raises(StoreError, match="different move"):
        one_way(move=ShootingMove.one_way(GaussianSelector(X, 0.0, 0.2))).run(straight(), 4, 2, seed=1, store=store)


def test_a_store_knows_cvs_by_what_they_are_and_limits_to_the_last_bit():
    store, also = Store(), Store()
    chosen = ShootingMove.one_way(GaussianSelector(X, 0.0, 0.2))
    for kept, move in ((store, None), (also, chosen)):
        one_way(move=move).run(straight(), 4, 2, seed=1, store=kept)
    other = LinearCombination((Coordinate(0, "first"),), (1.0,), "x")  # goes by the same name
    for a, b, changed in ((other < -0.8, other > 0.8, "cvs"), (X < -0.8 - 1e-9, X > 0.8, "limits")):
        with pytest.raises(StoreError, match=f"different {changed}"):
            TransitionPathSampling(OVERDAMPED, a, b, ShootingMove.one_way(), max_duration=4.0).run(straight(), 4, 2, seed=1, store=store)
    with pytest.raises(StoreError, match="different cvs"):
        one_way(move=ShootingMove.one_way(GaussianSelector(other, 0.0, 0.2))).run(straight(), 4, 2, seed=1, store=also)
    plan = store.get("paths/plan")
    store["paths/plan"] = {key: value for key, value in plan.items() if key not in ("cvs", "limits")}  # as older ones are
    assert len(one_way().run(straight(), 4, 2, seed=1, store=store)) > 0
