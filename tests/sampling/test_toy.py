"""Claims about the toy engine's contract: determinism, batching, stops, strides, failures, and two equal loops."""

import pickle

import numpy as np
import pytest

from couloir.cv import FlatBottom, FunctionOfCVs, HarmonicBias, LinearCombination, Tabulated
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError, SimulationError
from couloir.sampling import potentials
from couloir.sampling.engine import Engine
from couloir.sampling.toy import ToyEngine
from couloir.sampling.toy_terms import compile_walkers

X, Y = Coordinate(index=0, name="x"), Coordinate(index=1, name="y")
DIFFERENCE = LinearCombination((X, Y), (1.0, -1.0), "difference")
NESTED = LinearCombination((DIFFERENCE, Y), (0.5, 2.0), "nested")
WELL = potentials.double_well(2.0, harmonic=3.0)


def engine(**options):
    return ToyEngine(WELL, **{"kT": 1.0, "time_step": 0.01, **options})


def numpy_only(monkeypatch):
    monkeypatch.setattr("couloir.sampling.toy.compile_walkers", lambda *_: None)


def same(a, b, exact=True):
    compare = np.testing.assert_array_equal if exact else lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-9)
    assert a.ended == b.ended
    compare(a.positions, b.positions)
    compare(a.series.values, b.series.values)
    compare(a.series.potential, b.series.potential)
    compare(a.last.positions, b.last.positions)
    if a.last.velocities is not None:
        compare(a.last.velocities, b.last.velocities)


@pytest.mark.parametrize("friction", [None, 2.0])
def test_it_is_an_engine_and_keeps_the_shapes_of_the_contract(friction):
    toy = engine(friction=friction)
    assert isinstance(toy, Engine)
    assert toy.topology is None
    assert toy.masses.shape == (1,)
    [t] = toy.propagate(toy.state(1, 0), duration=1.0, stride=0.1, record=[X], record_stride=0.05, velocities=True, seed=3)
    assert t.positions.shape == (10, 1, 2)
    assert t.series.values.shape == (20, 1)
    assert t.stride == pytest.approx(0.1)
    assert t.series.stride == pytest.approx(0.05)
    assert (t.velocities is None) == (friction is None)
    np.testing.assert_array_equal(t.series["x"][1::2], t.positions[:, 0, 0])
    np.testing.assert_allclose(t.series.potential[1::2], toy.energies(t.positions), rtol=1e-13)
    np.testing.assert_array_equal(t.last.positions, t.positions[-1])
    [none] = toy.propagate(toy.state(1, 0), duration=1.0, seed=3)
    assert none.positions.shape == (0, 1, 2)
    assert len(none.series) == 1
    np.testing.assert_array_equal(none.last.positions, t.last.positions)


@pytest.mark.parametrize("friction", [None, (2.0, 5.0)])
def test_a_walker_depends_on_its_state_bias_and_seed_alone(friction):
    toy = engine(friction=friction)
    biases = [HarmonicBias.on(X, c, 20.0) if c else None for c in (0.5, 0.0, -0.5, 0.2, 0.0)]
    states = [toy.state(c, 0.1) for c in (0.5, -1, -0.5, 0.2, 1)]
    call = {"duration": 5.0, "stride": 0.1, "record": [X, Y]}
    together = toy.propagate(states, bias=biases, seed=[11, 12, 13, 14, 15], **call)
    for threads in (1, 2, 5):
        again = engine(friction=friction, threads=threads).propagate(states, bias=biases, seed=[11, 12, 13, 14, 15], **call)
        for a, b in zip(together, again, strict=True):
            same(a, b)
    for i in (0, 3, 1):
        [alone] = toy.propagate(states[i], bias=biases[i], seed=[11 + i], **call)
        same(together[i], alone)
    others = toy.propagate(states, bias=biases, seed=[21, 12, 13, 14, 15], **call)
    assert not np.array_equal(others[0].positions, together[0].positions)
    same(others[1], together[1])


@pytest.mark.parametrize("loop", ["compiled", "numpy"])
@pytest.mark.parametrize("friction", [None, 2.0])
def test_walkers_with_durations_of_their_own_are_as_if_alone(loop, friction, monkeypatch):
    if loop == "numpy":
        numpy_only(monkeypatch)
    toy = engine(friction=friction)
    states, times = [toy.state(c, 0.1) for c in (0.0, -1.0, 0.5, 0.2)], [0.4, 3.0, 0.2, 1.0]
    call = {"stride": 0.2, "record_stride": 0.1, "record": [X], "velocities": True, "stop": X > 1.1}
    arrived = []
    together = toy.propagate(states, duration=times, seed=[1, 2, 3, 4], on_result=lambda i, _: arrived.append(i), **call)
    assert sorted(arrived) == [0, 1, 2, 3]
    assert {run.ended for run in together} >= {"complete"}
    for i, run in enumerate(together):
        assert run.ended == "stopped" or len(run) == round(times[i] / 0.2)
        same(run, toy.propagate(states[i], duration=times[i], seed=[1 + i], **call)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"duration": [1.0], "stride": 0.1}, "1 durations for 2 walkers"), ({"duration": [1.0, 2.0]}, "nothing says when to record")],
)
def test_durations_that_do_not_fit_the_walkers_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        engine().propagate([engine().state(0.0, 0.0)] * 2, **settings)


def test_one_seed_for_all_gives_walkers_different_streams():
    toy = engine()
    a, b = toy.propagate([toy.state(1, 0)] * 2, duration=1.0, stride=0.1, seed=5)
    assert not np.array_equal(a.positions, b.positions)


@pytest.mark.parametrize("friction", [None, 1.5])
def test_a_chunk_is_a_function_of_the_last_state_and_its_seed(friction):
    toy = pickle.loads(pickle.dumps(engine(friction=friction)))
    [first] = toy.propagate(toy.state(1, 0), duration=1.0, stride=0.1, seed=1)
    [a] = toy.propagate(first.last, duration=1.0, stride=0.1, seed=[77])
    [b] = engine(friction=friction).propagate(first.state(9) if friction is None else first.last, duration=1.0, stride=0.1, seed=[77])
    same(a, b)


@pytest.mark.parametrize("friction", [None, 3.0])
@pytest.mark.parametrize("kind", ["plain", "harmonic", "flat", "sum", "stop"])
def test_the_numpy_loop_takes_the_same_steps_as_the_compiled_one(friction, kind, monkeypatch):
    toy = engine(friction=friction)
    states = [toy.state(c, 0.3) for c in (-1, 0, 1.0)]
    bias = {
        "harmonic": HarmonicBias.on([X, Y], [0.3, -0.1], [10.0, 4.0]),
        "flat": FlatBottom.on(X, 0.5, 0.2, 50.0),
        "sum": HarmonicBias.on(X, -0.5, 10.0) + FlatBottom.on(Y, 0.0, 0.1, 30.0),
    }.get(kind)
    stop = ((X > 0.9) & ~(Y < 0)) | (X < -1.1) if kind == "stop" else None
    call = {"duration": 2.0, "stride": 0.1, "record": [X, Y], "record_stride": 0.02, "stop": stop, "seed": 9, "bias": bias}
    fast = toy.propagate(states, **call)
    numpy_only(monkeypatch)
    slow = toy.propagate(states, **call)
    for a, b in zip(fast, slow, strict=True):
        same(a, b, exact=False)
    if kind == "stop":
        assert any(t.ended == "stopped" for t in fast)


def test_a_periodic_coordinate_wraps_alike_in_both_loops(monkeypatch):
    toy = ToyEngine(potentials.hidden_barrier(periodic=True), time_step=0.005, kT=1.0)
    x, y = toy.potential.cvs()
    bias = HarmonicBias.on(x, 3.1, 20.0)
    call = {"duration": 5.0, "stride": 0.1, "record": [x, y], "bias": bias, "seed": 2, "stop": x.between(3.0, -3.12) & (y > 1.2)}
    [fast] = toy.propagate(toy.state(3.1, 1.0), **call)
    assert (np.abs(fast.positions[:, 0, 0]) <= np.pi).all()
    assert fast.series["x"].min() < -2.5 < 2.5 < fast.series["x"].max()
    numpy_only(monkeypatch)
    [slow] = toy.propagate(toy.state(3.1, 1.0), **call)
    same(fast, slow, exact=False)


def numpy_refused(*_):
    raise AssertionError("the NumPy loop was entered")


@pytest.mark.parametrize("friction", [None, 3.0])
@pytest.mark.parametrize("kind", ["plain", "harmonic", "two", "flat", "sum", "per walker", "stop"])
def test_combinations_of_coordinates_are_compiled_and_take_the_steps_of_the_numpy_loop(friction, kind, monkeypatch):
    toy = engine(friction=friction)
    states = [toy.state(c, 0.3) for c in (-1, 0, 1.0)]
    bias = {
        "harmonic": HarmonicBias.on(DIFFERENCE, 0.4, 30.0),
        "two": HarmonicBias.on([DIFFERENCE, X], [0.3, -0.1], [10.0, 4.0]),
        "flat": FlatBottom.on(NESTED, 0.5, 0.1, 50.0),
        "sum": HarmonicBias.on(DIFFERENCE, -0.5, 10.0) + FlatBottom.on(Y, 0.0, 0.1, 30.0) + HarmonicBias.on(NESTED, 0.2, 5.0),
        "per walker": [None, HarmonicBias.on(NESTED, 0.4, 30.0), HarmonicBias.on([X, DIFFERENCE], [0.3, -0.1], [10.0, 4.0])],
    }.get(kind)
    stop = ((DIFFERENCE > 0.9) & ~(NESTED < 0)) | (X < -1.1) if kind == "stop" else None
    call = {"duration": 2.0, "stride": 0.1, "record": [DIFFERENCE, X, Y, NESTED], "record_stride": 0.02, "stop": stop, "seed": 9}
    with monkeypatch.context() as patch:
        patch.setattr("couloir.sampling.toy_blocks._numpy_block", numpy_refused)
        fast = toy.propagate(states, bias=bias, **call)
    numpy_only(monkeypatch)
    slow = toy.propagate(states, bias=bias, **call)
    for a, b in zip(fast, slow, strict=True):
        same(a, b, exact=False)
        np.testing.assert_allclose(a.series["nested"], 0.5 * a.series["x"] + 1.5 * a.series["y"], rtol=1e-12, atol=1e-12)
    if kind == "stop":
        assert any(t.ended == "stopped" for t in fast)


def test_a_combination_that_is_one_coordinate_gives_the_numbers_of_that_coordinate():
    toy = engine(friction=2.0)
    call = {"duration": 5.0, "stride": 0.1, "seed": 4}
    for only in (LinearCombination((Y,), (1.0,), "only"), LinearCombination((X, Y), (0.0, 1.0), "only")):
        [a] = toy.propagate(toy.state(1, 0.2), record=[Y], bias=HarmonicBias.on(Y, 0.3, 40.0), **call)
        [b] = toy.propagate(toy.state(1, 0.2), record=[only], bias=HarmonicBias.on(only, 0.3, 40.0), **call)
        same(a, b)


@pytest.mark.parametrize(
    "cv",
    [
        FunctionOfCVs((X, Y), "x-y", "s"),
        LinearCombination((X, Y), (1.0, -1.0), "s", period=4.0),
        LinearCombination((FunctionOfCVs((X,), "x^2", "xx"), Y), (1.0, 1.0), "s"),
    ],
)
def test_what_is_not_linear_in_the_coordinates_stays_in_numpy_and_acts(cv):
    bias = HarmonicBias.on(cv, 0.3, 200.0)
    assert compile_walkers([X], [None], None, 2) is not None
    assert compile_walkers([X, cv], [bias], None, 2) is None
    toy = engine(time_step=1e-3)
    [held] = toy.propagate([toy.state(0.3, 0.0)], duration=0.5, record_stride=0.01, record=[cv], bias=bias, seed=3)
    assert abs(held.series["s"][20:].mean() - 0.3) < 0.1  # a slope of ~6 kJ/mol/nm shifts it by 0.03; unbiased it leaves for a well


def test_other_kinds_of_bias_act_too():
    toy = engine()
    grid = np.linspace(-3, 3, 201)
    table = Tabulated(("x",), -3.0, 3.0, tuple(10.0 * (grid - 0.5) ** 2))
    states = [toy.state(0.5, 0)] * 4
    spline = toy.propagate(states, duration=3.0, stride=0.05, record=[X], bias=table, seed=4)
    harmonic = toy.propagate(states, duration=3.0, stride=0.05, record=[X], bias=HarmonicBias.on(X, 0.5, 20.0), seed=4)
    for a, b in zip(spline, harmonic, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=2e-3)


def test_it_stops_at_the_first_record_inside_the_region():
    toy = engine()
    region = (X > 0.8) & (Y < 0.2)
    free = toy.propagate([toy.state(-1, 0)] * 6, duration=60.0, record=[X, Y], record_stride=0.05, seed=8)
    stopped = toy.propagate([toy.state(-1, 0)] * 6, duration=60.0, record=[X, Y], record_stride=0.05, stop=region, seed=8)
    hits = 0
    for a, b in zip(free, stopped, strict=True):
        inside = np.flatnonzero(region.contains_values({"x": a.series["x"], "y": a.series["y"]}))
        n = inside[0] + 1 if len(inside) else len(a.series)
        hits += len(inside) > 0
        assert b.ended == ("stopped" if len(inside) else "complete")
        np.testing.assert_array_equal(b.series.values, a.series.values[:n])
        np.testing.assert_array_equal(b.last.positions[0], b.series.values[-1])
    assert hits >= 3


def test_the_cvs_of_a_stop_region_need_not_be_recorded():
    toy = engine()
    [t] = toy.propagate(toy.state(0, 0), duration=50.0, record=[Y], record_stride=0.05, stop=X > 0.5, seed=1)
    assert t.ended == "stopped"
    assert t.series.names == ("y",)
    assert t.last.positions[0, 0] > 0.5


@pytest.mark.parametrize("loop", ["compiled", "numpy"])
def test_a_walker_that_blows_up_is_named_and_leaves_what_was_sampled(loop, monkeypatch):
    if loop == "numpy":
        numpy_only(monkeypatch)
    toy = engine(time_step=0.1, kT=0.01)
    with pytest.raises(SimulationError, match=r"walker 1.*frame") as caught:
        toy.propagate([toy.state(1, 0), toy.state(3.5, 0)], duration=5.0, stride=0.2, record=[X], record_stride=0.1, seed=1)
    good, bad = caught.value.partial
    assert len(good) == 25
    assert len(bad) < 25
    assert np.isfinite(bad.series.values).all()
    assert np.isfinite(bad.last.positions).all()


def test_results_arrive_as_walkers_finish():
    toy = engine()
    seen = []
    out = toy.propagate(
        [toy.state(c, 0) for c in (-1, 0.9, -1)], duration=2000.0, record_stride=0.1, record=[X], stop=X > 1.0, seed=1,
        on_result=lambda w, t: seen.append((w, t)),
    )  # fmt: skip
    assert sorted(w for w, _ in seen) == [0, 1, 2]
    assert all(out[w] is t for w, t in seen)


def test_minimize_finds_the_wells_with_and_without_bias():
    toy = engine()
    found = toy.minimize([toy.state(0.4, 1.0), toy.state(-0.2, -1.0)])
    np.testing.assert_allclose([s.positions[0] for s in found], [[1, 0], [-1, 0]], atol=1e-6)
    [held] = toy.minimize(toy.state(1, 0), bias=HarmonicBias.on(X, 0.3, 1e6), record=[X])
    assert held.positions[0, 0] == pytest.approx(0.3, abs=1e-4)


def test_driven_coordinates_feel_drift_noise_and_bias_only():
    wells = potentials.evolving_wells()
    toy = ToyEngine(wells, kT=0.5, time_step=0.01, drift=(0.3, 0), noise=(0.0, None), driven=("z1",))
    [t] = toy.propagate(toy.state(0.0, 1.0), duration=10.0, stride=1.0, seed=1)
    np.testing.assert_allclose(t.positions[:, 0, 0], 0.3 * t.times, rtol=1e-12)
    z1, _ = wells.cvs()
    [held] = toy.propagate(toy.state(5.0, 1.0), duration=20.0, stride=1.0, record=[z1], bias=HarmonicBias.on(z1, 5.0, 2.0), seed=1)
    assert held.positions[-1, 0, 0] == pytest.approx(5.15, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kT": -1}, "kT"),
        ({"friction": (1.0, 2.0, 3.0)}, "friction"),
        ({"mobility": (1.0, 0.0)}, "mobility"),
        ({"mobility": 2.0, "friction": 1.0}, "mobility"),
        ({"noise": (1.0,)}, "noise"),
        ({"driven": ("z",)}, "driven"),
    ],
)
def test_an_engine_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        engine(**options)


def test_calls_that_make_no_sense_are_refused():
    toy = engine()
    with pytest.raises(DataError, match="record"):
        toy.propagate(toy.state(1, 0), duration=1.0, bias=HarmonicBias.on(X, 0, 1))
    with pytest.raises(DataError, match="reads coordinate 5"):
        toy.propagate(toy.state(1, 0), duration=1.0, record=[Coordinate(index=5, name="q")])
    beyond = LinearCombination((X, Coordinate(index=5, name="q")), (1.0, 1.0), "beyond")
    with pytest.raises(DataError, match="reads coordinate 5"):
        toy.propagate(toy.state(1, 0), duration=1.0, record=[beyond], bias=HarmonicBias.on(beyond, 0, 1))
    with pytest.raises(DataError, match="shape"):
        toy.propagate(ToyEngine(potentials.double_well()).state(1.0), duration=1.0)
    with pytest.raises(DataError, match="multiple"):
        toy.propagate(toy.state(1, 0), duration=0.015)
