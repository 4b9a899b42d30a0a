"""A store that keeps frames of the last paths only: a run goes on from it bit for bit."""

import numpy as np
import pytest

from couloir.cv.geometric import Coordinate, Distance
from couloir.errors import DataError, StoreError
from couloir.sampling import OpenMMEngine, ToyEngine, TransitionInterfaceSampling, potentials, systems
from couloir.store import Store
from couloir.trajectory import Trajectory

X = Coordinate(0, "x")
WELL = ToyEngine(potentials.double_well(), kT=0.35, time_step=0.01, friction=1.0, threads=1)
LINE = Trajectory(np.linspace(-0.85, 0.85, 40)[:, None, None], 0.02)


def well(shots=1):
    return TransitionInterfaceSampling(WELL, X < -0.8, X > 0.8, X, (-0.8, -0.5, 0.0), max_duration=100, shots=shots)


def sample(sampling, first, n, store=None, stop=None, **settings):
    def at(done, _):
        if done == stop:
            raise KeyboardInterrupt

    return sampling.run(first, n, seed=5, n_sets=2, store=store, keep_frames=False, on_progress=at, **settings)


def same(one, other):
    for name in ("ensemble", "chain", "step", "maximum", "minimum", "length", "ends_in_b"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.force_evaluations == other.force_evaluations
    assert one.findings == other.findings
    for counts in ("outcomes", "exchanges"):
        for reason, count in getattr(one, counts).items():
            np.testing.assert_array_equal(count, getattr(other, counts)[reason])
    for name, values in one.series.items():
        np.testing.assert_array_equal(np.concatenate(values), np.concatenate(other.series[name]))


@pytest.mark.parametrize("shots", [1, 3])
def test_an_interrupted_run_goes_on_bit_for_bit(shots, tmp_path):
    whole = well(shots).run(LINE, 24, seed=5, n_sets=2, record=[X])
    store = Store(tmp_path / "s")
    for stop in (7, 8, 15):
        with pytest.raises(KeyboardInterrupt):
            sample(well(shots), LINE, 24, store, stop, record=[X])
    same(sample(well(shots), LINE, 24, store, record=[X]), whole)
    same(sample(well(shots), LINE, 24, store, record=[X]), whole)  # all of it from the store


def test_a_cycle_that_was_interrupted_is_done_again(tmp_path, monkeypatch):
    whole = sample(well(3), LINE, 12)
    store, shots, left = Store(tmp_path / "s"), TransitionInterfaceSampling._shots, [20]

    def breaks(self, *what):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return shots(self, *what)

    with monkeypatch.context() as patch:
        patch.setattr(TransitionInterfaceSampling, "_shots", breaks)
        with pytest.raises(KeyboardInterrupt):
            sample(well(3), LINE, 12, store)
    same(sample(well(3), LINE, 12, store), whole)


def test_a_molecule_takes_room_for_the_last_paths_only_and_goes_on_bit_for_bit(tmp_path):
    engine = OpenMMEngine(systems.alanine_dipeptide(), temperature=300, time_step=0.002, friction=1.0, platform="Reference", workers=1)
    bond = Distance((1, 4), "bond")
    (run,) = engine.propagate(engine.molecule.state, duration=1.0, stride=0.004, record=None, velocities=True, seed=1)
    values = bond.evaluate(run.positions)
    low, high = np.quantile(values, [0.4, 0.8])
    sampling = TransitionInterfaceSampling(engine, bond < low, bond > values.max() + 0.05, bond, (low, high), max_duration=0.4)
    whole = sampling.run(run, 12, seed=5, n_sets=2, record=[bond], store=Store(tmp_path / "whole"))
    store = Store(tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        sample(sampling, run, 12, store, 5, record=[bond])
    found = sample(sampling, run, 12, store, record=[bond])
    same(found, whole)
    frames = {name: len(next(iter(store.chunks(f"interfaces/{name}"))).get("positions", ())) for name in ("rows", "stand")}
    assert frames["rows"] == 0
    assert 0 < frames["stand"] == sum(store.chunk("interfaces/stand", 0)["lengths"])
    assert store.count("interfaces/stand") == 1


def test_what_such_a_store_does_not_hold_is_not_promised(tmp_path):
    store = Store(tmp_path / "s")
    with pytest.raises(DataError, match="keep_paths needs all frames"):
        sample(well(), LINE, 5, store, keep_paths=True)
    sample(well(), LINE, 5, store, record=[X])
    with pytest.raises(StoreError, match="different record"):
        sample(well(), LINE, 5, store, record=[])
    with pytest.raises(StoreError, match="different frames"):
        well().run(LINE, 5, seed=5, n_sets=2, store=store)
