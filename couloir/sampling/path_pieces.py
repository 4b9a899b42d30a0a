"""Paths out of pieces of paths: what is sound already is not checked again, and only what lasts is copied."""

from __future__ import annotations

import numpy as np

from couloir.trajectory import Array, State, Trajectory


def at(path: Trajectory, frame: int) -> State:
    """Return one frame."""
    velocities = None if path.velocities is None else path.velocities[frame]
    return State.owning(path.positions[frame], velocities, None if path.boxes is None else path.boxes[frame])


def piece(path: Trajectory, first: int, end: int) -> Trajectory:
    """Return the frames from ``first`` up to ``end``."""
    velocities = None if path.velocities is None else path.velocities[first:end]
    boxes = None if path.boxes is None else path.boxes[first:end]
    return Trajectory.owning(path.positions[first:end], path.stride, velocities, boxes, path.topology)


def one_frame(state: State, path: Trajectory) -> Trajectory:
    """Return a state as a path of one frame, with stride and topology of ``path``."""
    velocities = None if state.velocities is None else state.velocities[None]
    box = None if state.box is None else state.box[None]
    return Trajectory.owning(state.positions[None], path.stride, velocities, box, path.topology)


def backward_positions(path: Trajectory) -> Trajectory:
    """Return the frames in reverse order, without velocities."""
    boxes = None if path.boxes is None else path.boxes[::-1]
    return Trajectory.owning(path.positions[::-1], path.stride, None, boxes, path.topology)


def joined(first: Trajectory, second: Trajectory) -> Trajectory:
    """Return one path, of what both have."""
    positions = np.concatenate((first.positions, second.positions))
    velocities, boxes = _together(first.velocities, second.velocities), _together(first.boxes, second.boxes)
    return Trajectory.owning(positions, first.stride, velocities, boxes, first.topology)


def _together(first: Array | None, second: Array | None) -> Array | None:
    return None if first is None or second is None else np.concatenate((first, second))
