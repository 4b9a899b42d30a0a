"""Heavy atoms as internal coordinates without a seam."""

from __future__ import annotations

import math

import numpy as np
import pytest

from couloir.cv.geometric import Dihedral
from couloir.errors import DataError, ModelError
from couloir.generative import HeavyInternal
from couloir.generative.representation import representation_from
from couloir.sampling import OpenMMEngine, systems
from couloir.sampling.path_scores import superposed_distance
from couloir.trajectory import Array


@pytest.fixture(scope="module")
def frames() -> Array:
    """Frames of alanine dipeptide whose phi goes round the whole circle, (n, 22, 3)."""
    molecule = systems.alanine_dipeptide()
    engine = OpenMMEngine(molecule, temperature=300.0, platform="Reference")
    [md] = engine.propagate(molecule.state, duration=4.0, stride=0.04, seed=1)
    return turned_about_phi(md.positions, molecule.topology)


def turned_about_phi(positions: Array, topology: object) -> Array:
    """Return the frames with everything beyond N-CA turned about that bond, further in every frame."""
    out = positions.copy()
    n, ca = 6, 8
    moved = np.array([a for a in range(22) if a not in (0, 1, 2, 3, 4, 5, 6, 7)])
    for i, frame in enumerate(out):
        axis = (frame[ca] - frame[n]) / np.linalg.norm(frame[ca] - frame[n])
        angle = 2 * math.pi * i / len(out)
        v = frame[moved] - frame[n]
        turned = v * math.cos(angle) + np.cross(axis, v) * math.sin(angle) + np.outer(v @ axis, axis) * (1 - math.cos(angle))
        out[i, moved] = frame[n] + turned
    return out


def test_positions_survive_a_round_trip(frames: Array) -> None:
    representation = HeavyInternal(systems.alanine_dipeptide().topology).fit(frames)
    back = representation.decode(representation.encode(frames))
    assert back.shape == (len(frames), 10, 3)
    assert superposed_distance(back, frames[:, representation.atoms]).max() < 1e-6


def test_all_atoms_and_heavy_atoms_give_the_same_coordinates(frames: Array) -> None:
    representation = HeavyInternal(systems.alanine_dipeptide().topology).fit(frames)
    np.testing.assert_allclose(representation.encode(frames), representation.encode(frames[:, representation.atoms]), atol=1e-12)


def test_coordinates_have_no_seam_and_the_scale_of_one(frames: Array) -> None:
    representation = HeavyInternal(systems.alanine_dipeptide().topology).fit(frames)
    x = representation.encode(frames)
    assert not representation.circular.any()
    np.testing.assert_allclose(x.mean(axis=0), 0.0, atol=1e-9)
    assert x.std(axis=0).min() > 0.5
    assert x.std(axis=0).max() < 1.5
    phi = Dihedral.phi(systems.alanine_dipeptide().topology, residue=2).evaluate(frames)
    across = np.flatnonzero(np.abs(np.diff(phi)) > math.pi)
    assert len(across) > 0, "phi passes the seam in these frames"
    steps = np.abs(np.diff(x[:, -2 * len(representation.arrays()["circle"]) :], axis=0)).max(axis=1)
    assert steps[across].max() < 3 * np.median(steps)


def test_a_point_off_the_circle_is_taken_in_its_direction(frames: Array) -> None:
    representation = HeavyInternal(systems.alanine_dipeptide().topology).fit(frames)
    x = representation.encode(frames[:5])
    circle = representation.arrays()["circle"]
    off = x.copy()
    points = x[:, -2 * len(circle) :].reshape(5, -1, 2) * circle[:, 2:] + circle[:, :2]
    off[:, -2 * len(circle) :] = ((1.3 * points - circle[:, :2]) / circle[:, 2:]).reshape(5, -1)
    assert superposed_distance(representation.decode(off), representation.decode(x)).max() < 1e-6


def test_saved_and_restored_it_is_the_same(frames: Array) -> None:
    representation = HeavyInternal(systems.alanine_dipeptide().topology).fit(frames)
    again = representation_from(representation.to_dict(), representation.arrays())
    np.testing.assert_array_equal(again.encode(frames), representation.encode(frames))
    assert str(again) == str(representation)


def test_it_says_what_it_cannot_do(frames: Array) -> None:
    topology = systems.alanine_dipeptide().topology
    with pytest.raises(ModelError, match="not fitted"):
        HeavyInternal(topology).encode(frames)
    with pytest.raises(DataError, match="shape"):
        HeavyInternal(topology).fit(frames[:, :7])
    with pytest.raises(ModelError, match="density"):
        HeavyInternal(topology).fit(frames).log_volume(np.zeros((1, 26)))
