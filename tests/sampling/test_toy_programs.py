"""Claims about functions of coordinates in the compiled toy loop: NumPy's values, and the NumPy loop's trajectories."""

import numpy as np
import pytest

from couloir.cv import FunctionOfCVs, HarmonicBias, LinearCombination
from couloir.cv._expression import _FUNCTIONS
from couloir.cv.geometric import Coordinate, Distance
from couloir.errors import DataError
from couloir.sampling import potentials, toy_kernels
from couloir.sampling.toy import ToyEngine
from couloir.sampling.toy_programs import packed, program_of
from couloir.sampling.toy_terms import compile_walkers

X, Y, Z = (Coordinate(index=i, name=name) for i, name in enumerate("xyz"))
ANGLE = Coordinate(index=1, name="a", period=2 * np.pi)
RADIUS = FunctionOfCVs((X, Y), "sqrt(x^2 + y^2)", "r")
WELL = potentials.double_well(2.0, harmonic=3.0)
CALLS = {1: "{}(x)", 2: "{}(x, y)", 3: "{}(x, y, z)"}
ODD_NUMBERS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 2.0])


def numpy_only(monkeypatch):
    monkeypatch.setattr("couloir.sampling.toy.compile_walkers", lambda *_: None)


def numpy_refused(*_):
    raise AssertionError("the NumPy loop was entered")


def function_of(text, period=None):
    """A function of those of x, y, z and the angle a that the text names."""
    names = set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())
    return FunctionOfCVs(tuple(cv for cv in (X, Y, Z, ANGLE) if cv.name in names), text, "f", period=period)


def compiled_values(cv, points):
    starts, codes, numbers = packed([[], program_of(X, 3), program_of(cv, 3)])
    slots = np.full(len(codes), np.nan)
    return np.array([toy_kernels.run_program(codes, numbers, starts[2], starts[3], point, slots) for point in points])


def agree(cv, points):
    with np.errstate(all="ignore"):
        expected = cv.evaluate(points[:, None, :])
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(compiled_values(cv, points), expected, rtol=1e-12, atol=1e-300)


def random_points(n=300):
    return np.random.default_rng(3).normal(size=(n, 3)) * [1.0, 2.0, 0.5]


@pytest.mark.parametrize("name", sorted(_FUNCTIONS))
def test_every_function_has_numpys_values_also_where_they_are_not_finite(name):
    cv = function_of(CALLS[_FUNCTIONS[name][0]].format(name))
    agree(cv, random_points())
    agree(cv, np.stack(np.meshgrid(*[ODD_NUMBERS] * 3), axis=-1).reshape(-1, 3))


@pytest.mark.parametrize(
    "text",
    [
        "x + y", "x - y", "x * y", "x / y", "x^y", "-x", "+x", "-x^2", "x^-2", "x^2", "x^3", "x^2.0", "x^0.5",
        "2^x^2", "(x - y)^3^2", "x - (y - z)",
        "x - y - z", "1e3*x/3", "2 + 3*4 - x", "square(x + cube(y - z))^2", "max(x*y, min(z, -2))",
        "select(step(x) - 1, y/z, select(y, -z, 7))",
        "cos(a) + x*a", "atan2(sin(a), -cos(a) - 0.0*x)", "recip(x) - recip(cube(x*y))",
    ],
)  # fmt: skip
def test_every_operator_nests_as_in_numpy(text):
    agree(function_of(text), random_points())


@pytest.mark.parametrize("text", ["x", "5*x*y", "x^2 - 7", "log(x)", "1/(x - x)"])
def test_a_function_wraps_by_its_period(text):
    cv, points = function_of(text, period=1.7), random_points()
    with np.errstate(all="ignore"):
        expected = cv.evaluate(points[:, None, :])
    values = compiled_values(cv, points)
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    finite = values[np.isfinite(values)]
    assert ((finite >= -0.85) & (finite < 0.85)).all()
    np.testing.assert_allclose(finite, expected[np.isfinite(values)], rtol=1e-9, atol=1e-12)


def test_functions_of_functions_and_of_combinations_are_programs_too():
    difference = LinearCombination((X, Y), (1.0, -2.5), "d")
    mixed = FunctionOfCVs((RADIUS, difference, Z), "r*d - d^2/(1 + r*r) + z", "mixed")
    around = LinearCombination((ANGLE, mixed), (2.0, 1.0), "around", period=4 * np.pi)
    for cv in (RADIUS, mixed, FunctionOfCVs((mixed, RADIUS, X), "mixed + r*tanh(x)", "again"), around):
        agree(cv, random_points())


def test_what_a_program_cannot_say_and_biases_along_functions_stay_in_numpy():
    distance = Distance((0, 1), name="d")
    assert compile_walkers([X, RADIUS], [HarmonicBias.on(X, 0.0, 1.0)], RADIUS > 1, 2) is not None
    assert compile_walkers([X, RADIUS], [HarmonicBias.on(RADIUS, 0.0, 1.0)], None, 2) is None
    assert (
        compile_walkers([X, RADIUS], [None, HarmonicBias.on(X, 0.0, 1.0) + HarmonicBias.on([X, RADIUS], [0, 0], [1, 1])], None, 2) is None
    )
    assert compile_walkers([FunctionOfCVs((X, distance), "x*d", "f")], [None], None, 2) is None
    assert compile_walkers([LinearCombination((X, distance), (1.0, 1.0), "f")], [None], None, 2) is None
    with pytest.raises(DataError, match="reads coordinate 2"):
        compile_walkers([function_of("x*z")], [None], None, 2)


def test_a_bias_along_a_function_acts_while_a_function_is_recorded():
    toy = ToyEngine(WELL, kT=0.2, time_step=0.002)
    call = {"duration": 0.6, "record_stride": 0.01, "record": [RADIUS, X], "seed": 1}
    [held] = toy.propagate(toy.state(1.5, 0.0), bias=HarmonicBias.on(RADIUS, 1.5, 200.0), **call)
    [free] = toy.propagate(toy.state(1.5, 0.0), **call)
    assert abs(held.series["r"][20:].mean() - 1.5) < 0.05
    assert free.series["r"][20:].mean() < 1.3


def both_loops(toy, states, monkeypatch, **call):
    """Trajectories of the compiled loop and of the NumPy loop, which must be equal but for the last digits of functions."""
    with monkeypatch.context() as patch:
        patch.setattr("couloir.sampling.toy_blocks._numpy_block", numpy_refused)
        fast = toy.propagate(states, **call)
    with monkeypatch.context() as patch, np.errstate(all="ignore"):
        numpy_only(patch)
        slow = toy.propagate(states, **call)
    for a, b in zip(fast, slow, strict=True):
        assert a.ended == b.ended
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.last.positions, b.last.positions)
        np.testing.assert_array_equal(a.series.potential, b.series.potential)
        np.testing.assert_allclose(a.series.values, b.series.values, rtol=1e-12, atol=1e-12)
    return fast


@pytest.mark.parametrize("friction", [None, 3.0])
def test_both_loops_give_the_same_trajectories_with_functions_recorded_and_in_the_stop_region(friction, monkeypatch):
    toy = ToyEngine(WELL, kT=1.0, time_step=0.01, friction=friction)
    tilted = FunctionOfCVs((RADIUS, Y), "select(step(y), r, -r^3)", "tilted")
    wound = FunctionOfCVs((X, Y), "atan2(y, x)", "wound", period=2 * np.pi)
    stop = ((RADIUS > 1.3) & ~(tilted < 0)) | wound.between(3.0, -3.0) | (X > 1.4)
    states = [toy.state(c, 0.2) for c in (-1, 0, 0.5, 1.0)]
    call = {"duration": 3.0, "stride": 0.1, "record_stride": 0.02, "record": [tilted, X, wound], "stop": stop, "seed": 9}
    runs = both_loops(toy, states, monkeypatch, bias=[None, HarmonicBias.on(X, 0.3, 10.0), None, None], **call)
    assert {run.ended for run in runs} == {"stopped", "complete"}


@pytest.mark.parametrize(
    ("region", "stops"),
    [
        (lambda root: root > -1, False),
        (lambda root: ~(root > -1), True),
        (lambda root: ~(root < -1) & (X > -9), True),
        (lambda root: ~((root < -1) | (X > 9)), True),
        (lambda root: ~((root > -1) & (X < 9)), True),
        (lambda root: (root > -1) | (X > 9), False),
        (lambda root: ~root.between(-np.inf, np.inf), True),
        (lambda root: ~~root.between(-np.inf, np.inf), False),
    ],
)
def test_a_function_that_is_not_a_number_is_in_no_interval_and_so_outside_all(region, stops, monkeypatch):
    toy = ToyEngine(WELL, kT=0.1, time_step=0.01)
    root = FunctionOfCVs((X,), "sqrt(x - 5)", "root")
    [run] = both_loops(toy, [toy.state(1.0, 0.0)], monkeypatch, duration=0.2, record_stride=0.01, record=[root], stop=region(root), seed=2)
    assert np.isnan(run.series["root"]).all()
    assert run.ended == ("stopped" if stops else "complete")


def test_a_function_that_is_not_a_number_leaves_other_stop_conditions_alone(monkeypatch):
    toy = ToyEngine(WELL, kT=1.0, time_step=0.01)
    root = FunctionOfCVs((X,), "sqrt(x - 5)", "root")
    [run] = both_loops(toy, [toy.state(1.0, 0.0)], monkeypatch, duration=20.0, record_stride=0.01, record=[root], stop=X > 1.2, seed=2)
    assert run.ended == "stopped"
    assert run.last.positions[0, 0] > 1.2
