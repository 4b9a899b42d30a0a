"""States and trajectories refuse what cannot be, stay as they were made, and travel to mdtraj and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest

from couloir.errors import DataError
from couloir.sampling.systems import structure_file
from couloir.trajectory import Series, State, Trajectory

RNG = np.random.default_rng(0)


def molecule(n_frames: int = 4, box: bool = False) -> Trajectory:
    topology = mdtraj.load(str(structure_file("alanine_dipeptide.pdb"))).topology
    positions = RNG.normal(size=(n_frames, topology.n_atoms, 3))
    boxes = np.tile(np.diag([3.0, 4.0, 5.0]), (n_frames, 1, 1)) if box else None
    return Trajectory(positions, 0.5, boxes=boxes, topology=topology)


def toy(n_frames: int, **extra: Any) -> Trajectory:
    return Trajectory(RNG.normal(size=(n_frames, 1, 2)), 0.1, **extra)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": np.zeros(3)}, r"shape \(3,\), expected"),
        ({"positions": np.zeros((2, 5, 3))}, "expected"),
        ({"positions": [[0, 0, 0], [0, np.nan, 0]]}, "positions of atom 1 are not finite"),
        ({"positions": np.zeros((2, 3)), "velocities": np.zeros((3, 3))}, "differ in shape"),
        ({"positions": np.zeros((2, 3)), "box": np.ones(3)}, r"box has shape \(3,\)"),
    ],
)
def test_an_impossible_state_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        State(**fields)


def test_a_state_is_a_copy_that_cannot_be_written_to() -> None:
    mine = np.zeros((2, 3))
    state = State(mine)
    mine[0, 0] = 7.0
    assert state.positions[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        state.positions[0, 0] = 1.0


def test_a_trajectory_needs_three_axes() -> None:
    with pytest.raises(DataError, match=r"expected \(n_frames, n_atoms, 3\)"):
        Trajectory(np.zeros((5, 3)), 1.0)


def test_the_first_frame_is_one_stride_after_the_start() -> None:
    np.testing.assert_allclose(toy(3).times, [0.1, 0.2, 0.3])


def test_a_frame_carries_its_velocities_and_box() -> None:
    positions, velocities = RNG.normal(size=(2, 3, 4, 3))
    boxes = np.array([np.eye(3) * size for size in (1.0, 2.0, 3.0)])
    state = Trajectory(positions, 1.0, velocities, boxes).state(1)
    np.testing.assert_array_equal(state.positions, positions[1])
    assert state.velocities is not None
    assert state.box is not None
    np.testing.assert_array_equal(state.velocities, velocities[1])
    np.testing.assert_array_equal(state.box, boxes[1])


def test_a_series_is_read_by_name() -> None:
    series = Series(("phi", "psi"), np.arange(6.0).reshape(3, 2), np.zeros(3), 0.2)
    np.testing.assert_array_equal(series["psi"], [1.0, 3.0, 5.0])
    with pytest.raises(DataError, match="'chi' was not recorded") as caught:
        series["chi"]
    assert "phi, psi" in str(caught.value)


def test_joining_puts_frames_and_series_one_after_another() -> None:
    def part(n: int, end: str) -> Trajectory:
        last = State(np.full((1, 2), n))
        return toy(n, series=Series(("x",), np.full((2 * n, 1), n), np.full(2 * n, -n), 0.05), last=last, ended=end)

    joined = Trajectory.join([part(2, "complete"), part(3, "stopped")])
    assert len(joined) == 5
    assert joined.ended == "stopped"
    assert joined.series is not None
    assert joined.last is not None
    np.testing.assert_array_equal(joined.series["x"], [2] * 4 + [3] * 6)
    np.testing.assert_array_equal(joined.series.potential, [-2] * 4 + [-3] * 6)
    assert joined.last.positions[0, 0] == 3


def test_joining_keeps_only_what_every_part_has() -> None:
    with_velocities = toy(2, velocities=np.zeros((2, 1, 2)))
    assert Trajectory.join([with_velocities, with_velocities]).velocities is not None
    assert Trajectory.join([with_velocities, toy(1)]).velocities is None


@pytest.mark.parametrize("other", [Trajectory(np.zeros((2, 1, 3)), 0.1), Trajectory(np.zeros((2, 1, 2)), 0.2)])
def test_only_like_is_joined_to_like(other: Trajectory) -> None:
    with pytest.raises(DataError, match="differ in atoms or stride"):
        Trajectory.join([toy(2), other])
    with pytest.raises(DataError, match="nothing to join"):
        Trajectory.join([])


@pytest.mark.parametrize("box", [False, True])
def test_mdtraj_and_back_keeps_everything_to_single_precision(box: bool) -> None:
    before = molecule(box=box)
    after = Trajectory.from_mdtraj(before.to_mdtraj())
    np.testing.assert_allclose(after.positions, before.positions, rtol=1e-6)
    assert after.stride == pytest.approx(before.stride)
    assert after.topology == before.topology
    if before.boxes is None:
        assert after.boxes is None
    else:
        assert after.boxes is not None
        np.testing.assert_allclose(after.boxes, before.boxes, atol=1e-5)


def test_files_written_by_mdtraj_are_read(tmp_path: Path) -> None:
    before = molecule()
    before.to_mdtraj().save_dcd(str(tmp_path / "md.dcd"))
    after = Trajectory.load(tmp_path / "md.dcd", structure_file("alanine_dipeptide.pdb"))
    np.testing.assert_allclose(after.positions, before.positions, atol=1e-5)


def test_files_that_are_missing_or_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: .*missing\.dcd"):
        Trajectory.load(tmp_path / "missing.dcd")
    molecule().to_mdtraj().save_dcd(str(tmp_path / "md.dcd"))
    with pytest.raises(DataError, match=r"cannot read .*md\.dcd"):
        Trajectory.load(tmp_path / "md.dcd", structure_file("alanine_tripeptide.pdb"))


def test_a_toy_trajectory_has_no_topology_to_give() -> None:
    with pytest.raises(DataError, match="no topology"):
        toy(2).to_mdtraj()


def test_a_trajectory_says_what_it_is() -> None:
    assert str(toy(3)) == "Trajectory: 3 frames x 2 coordinates, one every 0.1 ps (0.3 ps), complete"
    assert "22 atoms" in str(molecule())
