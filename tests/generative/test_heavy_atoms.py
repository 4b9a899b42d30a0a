"""Heavy atoms as x: exact round trips up to rigid motion, one scale, handedness kept, saved and loaded."""

import json
from pathlib import Path

import numpy as np
import pytest

import couloir
from couloir.errors import DataError, ModelError
from couloir.generative import HeavyAtoms, representation_from

md = pytest.importorskip("mdtraj")

STRUCTURES = Path(couloir.__file__).parent / "sampling" / "structures"


@pytest.fixture(scope="module")
def pdb():
    return md.load(str(STRUCTURES / "alanine_dipeptide.pdb"))


@pytest.fixture(scope="module")
def frames(pdb):
    """Shaken alanine dipeptide, each frame turned and moved at random."""
    rng = np.random.default_rng(1)
    shaken = pdb.xyz[0].astype(np.float64) + 0.01 * rng.standard_normal((100, 22, 3))
    turns = np.linalg.qr(rng.standard_normal((100, 3, 3)))[0]
    turns *= np.sign(np.linalg.det(turns))[:, None, None]
    return shaken @ turns + rng.standard_normal((100, 1, 3))


@pytest.fixture(scope="module")
def fitted(pdb, frames):
    return HeavyAtoms(pdb.topology).fit(frames)


def distances(x):
    i, j = np.triu_indices(x.shape[1], 1)
    return np.linalg.norm(x[:, i] - x[:, j], axis=-1)


def volumes(x):
    """Signed volume at the alpha carbon (kept atoms N, C, CB around CA): its sign is the handedness."""
    ca, n, cb, c = (x[:, k] for k in (4, 3, 5, 6))
    return np.einsum("ni,ni->n", np.cross(n - ca, c - ca), cb - ca)


def test_the_atoms_kept_are_those_that_are_no_hydrogens(pdb, fitted):
    assert fitted.atoms.tolist() == [0, 4, 5, 6, 8, 10, 14, 15, 16, 18]
    assert all(pdb.topology.atom(i).element.symbol != "H" for i in fitted.atoms)
    assert fitted.dimension == 30


def test_a_round_trip_keeps_shape_and_handedness(frames, fitted):
    x = fitted.encode(frames)
    decoded, kept = fitted.decode(x), frames[:, fitted.atoms]
    assert x.shape == (100, 30)
    assert decoded.shape == (100, 10, 3)
    assert np.abs(distances(decoded) - distances(kept)).max() < 1e-10
    np.testing.assert_allclose(volumes(decoded), volumes(kept), atol=1e-12)
    np.testing.assert_allclose(fitted.encode(decoded), x, atol=1e-8)


def test_frames_of_all_atoms_and_of_the_kept_atoms_are_encoded_alike(frames, fitted):
    np.testing.assert_array_equal(fitted.encode(frames[:, fitted.atoms]), fitted.encode(frames))
    np.testing.assert_array_equal(fitted.encode(frames[0])[0], fitted.encode(frames)[0])


def test_hydrogens_and_rigid_motion_leave_no_trace(pdb, frames, fitted):
    moved = frames.copy()
    hydrogens = np.setdiff1d(np.arange(22), fitted.atoms)
    moved[:, hydrogens] = np.nan
    np.testing.assert_allclose(fitted.encode(moved[:, :, [1, 2, 0]] + 5.0), fitted.encode(frames), atol=1e-8)
    assert np.abs(fitted.encode(-frames) - fitted.encode(frames)).max() > 1


def test_distances_in_x_are_distances_in_space_over_one_scale(frames, fitted):
    x = fitted.encode(frames)
    scale = fitted.scale_of(0)
    assert all(fitted.scale_of(k) == scale for k in range(30))
    in_space = np.linalg.norm(fitted.decode(x[:50]) - fitted.decode(x[50:]), axis=(1, 2))
    np.testing.assert_allclose(np.linalg.norm(x[:50] - x[50:], axis=1) * scale, in_space, rtol=1e-10)
    assert (x**2).mean() == pytest.approx(1.0)


def test_saving_and_loading_gives_the_same_maps(pdb, frames, fitted):
    unfitted = HeavyAtoms(pdb.topology)
    blank = representation_from(json.loads(json.dumps(unfitted.to_dict())), unfitted.arrays())
    np.testing.assert_array_equal(blank.fit(frames).encode(frames), fitted.encode(frames))
    restored = representation_from(json.loads(json.dumps(fitted.to_dict())), fitted.arrays())
    assert isinstance(restored, HeavyAtoms)
    np.testing.assert_array_equal(restored.atoms, fitted.atoms)
    x = fitted.encode(frames)
    np.testing.assert_array_equal(restored.encode(frames), x)
    np.testing.assert_array_equal(restored.decode(x), fitted.decode(x))


def test_misuse_is_named(pdb, frames, fitted):
    with pytest.raises(ModelError, match="HeavyAtoms is not fitted"):
        HeavyAtoms(pdb.topology).encode(frames)
    with pytest.raises(DataError, match=r"expected \(n, 10, 3\)"):
        fitted.encode(frames[:, :12])
    small = md.load(str(STRUCTURES / "alanine_dipeptide.pdb")).atom_slice([0, 1, 4]).topology
    with pytest.raises(DataError, match="2 heavy atoms"):
        HeavyAtoms(small)
