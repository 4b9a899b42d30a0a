"""Fresh velocities and the reversal of time, exact for each engine's integrator.

A leapfrog such as OpenMM's ``LangevinMiddleIntegrator`` keeps v from before the kick of its next step.  With P the
projection along the constraints, the velocity at the time of the positions is c = P (v + dt f / 2m), and the reversal

    R(x, v) = (x, -P (v + dt f(x) / m))

is an involution: without noise, n steps, R and n steps lead back (:meth:`~couloir.sampling.OpenMMEngine.kicked` is
P (v + a dt f / m)).  BAOAB keeps v at the time of the positions, so R is -v, and overdamped dynamics has no velocities.

Where forces or constraints fail, velocities are NaN: dynamics from there breaks down at once and is counted as failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np

from couloir.errors import DataError, SimulationError
from couloir.sampling.engine import Engine, per_walker_seeds
from couloir.streams import stream
from couloir.trajectory import Array, State, Trajectory


def has_velocities(engine: Engine) -> bool:
    """Return whether the engine's dynamics is underdamped, so that velocities belong to its states."""
    return bool(getattr(engine, "underdamped", True))


def fresh(engine: Engine, states: Sequence[State], seed: int | Sequence[int]) -> list[State]:
    """Return the states with velocities drawn from the Maxwell-Boltzmann distribution, as the integrator keeps them.

    The velocities at the time of the positions have variance kT/m; projecting independent Gaussians along the
    constraints leaves their Maxwell-Boltzmann distribution.  Overdamped states come back without velocities.  Those
    of a state whose forces or constraints fail are NaN.

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
    return _kicked(engine, [_constrained(engine, state) for state in drawn], -0.5, 1.0)


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
    return _kicked(engine, list(states), 1.0, -1.0)


def turned_paths(engine: Engine, paths: Sequence[Trajectory]) -> list[Trajectory]:
    """Return paths as they run backward in time: frames in reverse order, each turned; without series.

    A path that has a frame which cannot be turned comes back with ``ended`` ``"failed"``.
    """
    out = []
    for path, velocities in zip(paths, _turned_velocities(engine, paths), strict=True):
        boxes = None if path.boxes is None else path.boxes[::-1].copy()
        backward = None if velocities is None else velocities[::-1].copy()
        ended: Literal["complete", "failed"] = "complete" if backward is None or np.isfinite(backward).all() else "failed"
        out.append(Trajectory.owning(path.positions[::-1].copy(), path.stride, backward, boxes, path.topology, ended=ended))
    return out


def require_velocities(number: int, velocities: Sequence[Array | None] | Array, begin: int = 0) -> None:
    """Raise a SimulationError where those of a given path, its own or found for it, are not finite.

    Parameters
    ----------
    number : of the path.
    velocities : of each of its frames from number ``begin`` on, in its order; None where it has none.
    """
    bad = [i for i, v in enumerate(velocities, begin) if v is not None and not np.isfinite(v).all()]
    if bad:
        raise SimulationError(
            f"first path {number} has no finite velocities at frame {bad[0]}: they are not, or forces or constraints fail there",
            "leave the path out, or give the part of it without that frame",
        )


def _turned_velocities(engine: Any, paths: Sequence[Trajectory]) -> list[Array | None]:
    """Return the velocities of R(x, v) at every frame of the paths, None where they have none."""
    out: list[Array | None] = [None if path.velocities is None else path.velocities for path in paths]
    moving = [path for path in paths if path.velocities is not None and len(path)]
    if not moving or getattr(engine, "kicked", None) is None:  # R is -v
        return [None if v is None else -v for v in out]
    boxes = None if moving[0].boxes is None else np.concatenate([path.boxes for path in moving if path.boxes is not None])
    velocities = np.concatenate([path.velocities for path in moving if path.velocities is not None])
    kicked = -engine.kicked(np.concatenate([path.positions for path in moving]), velocities, 1.0, boxes)
    parts = iter(np.split(kicked, np.cumsum([len(path) for path in moving])[:-1]))
    return [v if v is None or not len(v) else next(parts) for v in out]


def _constrained(engine: Any, state: State) -> State:
    """Return the state on the engine's constraints and its velocities along them; NaN velocities where that cannot be."""
    constrain = getattr(engine, "apply_constraints", None)
    try:
        return state if constrain is None else cast(State, constrain(state))
    except SimulationError:
        return State.owning(state.positions, np.full_like(state.positions, np.nan), state.box)


def _kicked(engine: Any, states: list[State], fraction: float, sign: float) -> list[State]:
    """Return the states with their velocities kicked where the engine does that, and times ``sign``."""
    if not states:
        return []
    velocities = np.array([state.velocities for state in states])
    if getattr(engine, "kicked", None) is not None:
        boxes = None if all(state.box is None for state in states) else np.array([state.box for state in states], dtype=np.float64)
        velocities = engine.kicked(np.array([state.positions for state in states]), velocities, fraction, boxes)
    return [State.owning(state.positions, sign * v, state.box) for state, v in zip(states, velocities, strict=True)]


def _bare(engine: Any, state: State) -> State:
    """Return the state without velocities, and with the molecule's box where it has none, as the engine would have it."""
    usual = getattr(getattr(engine, "molecule", None), "state", None)
    return State(state.positions, None, state.box if state.box is not None or usual is None else usual.box)
