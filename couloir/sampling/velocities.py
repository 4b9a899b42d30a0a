"""Fresh velocities and the reversal of time, exact for each engine's integrator.

A leapfrog such as OpenMM's ``LangevinMiddleIntegrator`` keeps v from before the kick of its next step.  With P the
projection along the constraints, the velocity at the time of the positions is c = P (v + dt f / 2m), and the reversal

    R(x, v) = (x, -P (v + dt f(x) / m))

is an involution: without noise, n steps, R and n steps lead back (:meth:`~couloir.sampling.OpenMMEngine.kicked` is
P (v + a dt f / m)).  BAOAB keeps v at the time of the positions, so R is -v, and overdamped dynamics has no velocities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from couloir.errors import DataError
from couloir.sampling.engine import Engine, per_walker_seeds
from couloir.streams import stream
from couloir.trajectory import Array, State, Trajectory


def has_velocities(engine: Engine) -> bool:
    """Return whether the engine's dynamics is underdamped, so that velocities belong to its states."""
    return bool(getattr(engine, "underdamped", True))


def fresh(engine: Engine, states: Sequence[State], seed: int | Sequence[int]) -> list[State]:
    """Return the states with velocities drawn from the Maxwell-Boltzmann distribution, as the integrator keeps them.

    The velocities at the time of the positions have variance kT/m; projecting independent Gaussians along the
    constraints leaves their Maxwell-Boltzmann distribution.  Overdamped states come back without velocities.

    Parameters
    ----------
    seed : one for all, or one per state.
    """
    bare = [_bare(engine, state) for state in states]
    if not has_velocities(engine):
        return bare
    masses = np.asarray(engine.masses, dtype=np.float64)
    spread = np.sqrt(np.divide(engine.kT, masses, out=np.zeros_like(masses), where=masses > 0))[:, None]
    drawn = [
        State(state.positions, spread * stream(one, "velocities").standard_normal(state.positions.shape), state.box)
        for state, one in zip(bare, per_walker_seeds(seed, len(bare)), strict=True)
    ]
    constrain = getattr(engine, "apply_constraints", None)
    return _kicked(engine, drawn if constrain is None else [constrain(state) for state in drawn], -0.5)


def turned(engine: Engine, states: Sequence[State]) -> list[State]:
    """Return the states from which the dynamics runs backward in time, R(x, v).

    Raises
    ------
    DataError : underdamped states have no velocities.
    """
    if not has_velocities(engine):
        return list(states)
    bare = [i for i, state in enumerate(states) if state.velocities is None]
    if bare:
        raise DataError(f"state {bare[0]} has no velocities, so it cannot be turned round", "draw them with fresh(engine, states, seed)")
    return [replace(state, velocities=-_of(state)) for state in _kicked(engine, list(states), 1.0)]


def turned_paths(engine: Engine, paths: Sequence[Trajectory]) -> list[Trajectory]:
    """Return paths as they run backward in time: frames in reverse order, each turned; without series."""
    if getattr(engine, "kicked", None) is None:  # R is -v: whole paths at once
        return [_reversed(path) for path in paths]
    lengths = [len(path) for path in paths]
    moving = [path.velocities is not None for path in paths]
    states = turned(engine, [path.state(i) for path, ok in zip(paths, moving, strict=True) if ok for i in range(len(path))])
    out, at = [], 0
    for path, n, ok in zip(paths, lengths, moving, strict=True):
        velocities = None
        if ok:
            velocities = np.array([_of(s) for s in states[at : at + n]]).reshape(path.positions.shape)[::-1]
            at += n
        boxes = None if path.boxes is None else path.boxes[::-1]
        out.append(Trajectory(path.positions[::-1], path.stride, velocities, boxes, path.topology))
    return out


def _reversed(path: Trajectory) -> Trajectory:
    velocities = None if path.velocities is None else -path.velocities[::-1]
    boxes = None if path.boxes is None else path.boxes[::-1]
    return Trajectory(path.positions[::-1], path.stride, velocities, boxes, path.topology)


def _kicked(engine: Any, states: list[State], fraction: float) -> list[State]:
    kicked = getattr(engine, "kicked", None)
    return states if kicked is None or not states else list(kicked(states, fraction))


def _bare(engine: Any, state: State) -> State:
    """Return the state without velocities, and with the molecule's box where it has none, as the engine would have it."""
    usual = getattr(getattr(engine, "molecule", None), "state", None)
    return State(state.positions, None, state.box if state.box is not None or usual is None else usual.box)


def _of(state: State) -> Array:
    assert state.velocities is not None
    return state.velocities
