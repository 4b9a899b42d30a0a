"""One frame at a time: the same values to rounding, and the same decisions to the last bit."""

import math

import numpy as np
import pytest

from couloir.cv import Angle, Coordinate, Dihedral, Distance, FunctionOfCVs, LinearCombination, RadiusOfGyration, path_s, path_z

CVS = [
    Distance((0, 3), "r"),
    Angle((0, 1, 2), "theta"),
    Dihedral((0, 1, 2, 3), "phi"),
    Coordinate(1, "y"),
    Coordinate(0, "x", period=1.0),
]
CVS += [
    LinearCombination((CVS[0], CVS[1]), (2.0, -1.0), "sum"),
    FunctionOfCVs((CVS[2],), "phi + 1.05", name="onward", period=2 * math.pi),
    FunctionOfCVs((CVS[0], CVS[2]), "select(step(r - 1), cos(phi)^2, min(r, 0.5))", name="function"),
    path_s((CVS[0], CVS[2]), [(0.5, 0.0), (1.5, 1.0), (2.0, 3.0)], 2.0),
    path_z((CVS[0], CVS[2]), [(0.5, 0.0), (1.5, 1.0), (2.0, 3.0)], 2.0),
]
FRAMES = np.random.default_rng(1).normal(size=(400, 4, 3))


@pytest.mark.parametrize("cv", CVS, ids=lambda cv: cv.name)
def test_a_value_of_one_frame_is_that_of_the_batch_to_rounding(cv):
    one = cv.of_frame()
    np.testing.assert_allclose([one(frame) for frame in FRAMES], cv.evaluate(FRAMES), rtol=1e-13, atol=1e-13)


def test_a_dihedral_of_collinear_atoms_and_of_a_half_turn_are_those_of_the_batch():
    line = np.array([[float(i), 0.0, 0.0] for i in range(4)])
    trans = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, -1.0, 0.0]])
    phi = Dihedral((0, 1, 2, 3))
    assert [phi.of_frame()(frame) for frame in (line, trans)] == phi.evaluate(np.stack([line, trans])).tolist() == [0.0, -math.pi]


@pytest.mark.parametrize("cv", CVS, ids=lambda cv: cv.name)
def test_decisions_at_the_border_are_those_about_stored_frames(cv):
    for frame in FRAMES[:60]:
        (value,) = cv.evaluate(frame)
        for limit in (value, np.nextafter(value, -np.inf), np.nextafter(value, np.inf)):
            for region in (cv < limit, cv > limit, ~(cv < limit), (cv > limit) & (cv < limit), (cv > limit) | (cv < 0.0)):
                assert region.decider()(frame) == region.contains(frame[None])[0]


def test_decisions_of_combined_regions_are_those_about_stored_frames():
    distance, angle, phi, *_ = CVS
    region = ((phi > 1.0) | (phi < -2.0)) & ~(distance < 1.5) | phi.between(2.5, -2.5) & (angle > 0.7)
    decide = region.decider()
    expected = region.contains(FRAMES)
    assert 0.1 < expected.mean() < 0.9
    assert [decide(frame) for frame in FRAMES] == expected.tolist()


def test_only_next_to_a_limit_the_batch_is_asked():
    region = Distance((0, 1), "r") > 1.0
    assert region.decides({"r": 1.1}) is True
    assert region.decides({"r": 0.9}) is False
    assert region.decides({"r": 1.0 + 1e-12}) is None
    assert region.decides({"r": math.nan}) is None
    assert (Dihedral((0, 1, 2, 3), "phi") > 1.0).decides({"phi": math.pi - 1e-12}) is None


def test_a_cv_without_a_formula_for_one_frame_decides_all_the_same():
    size = RadiusOfGyration((0, 1, 2, 3), name="rg")
    assert size.of_frame() is None
    region = (size > 1.4) & (CVS[0] > 1.0)
    assert [region.decider()(frame) for frame in FRAMES] == region.contains(FRAMES).tolist()
