"""The engine contract: what every source of dynamics (OpenMM, toy potentials, learned propagators) can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import Bias
from couloir.cv.region import Region
from couloir.errors import DataError
from couloir.streams import integer_seed
from couloir.trajectory import Array, State, Trajectory
from couloir.units import convert

OnResult = Callable[[int, Trajectory], None]


@runtime_checkable
class Engine(Protocol):
    """A description of dynamics; picklable, and cheap until used.

    Attributes
    ----------
    temperature : K (toy engines: chosen so that ``kT`` is what the user asked for).
    kT : kJ/mol.
    time_step : ps.
    masses : (n_atoms,) amu.
    topology : mdtraj topology, or None.
    """

    temperature: float
    time_step: float

    @property
    def kT(self) -> float: ...
    @property
    def masses(self) -> Array: ...
    @property
    def topology(self) -> Any: ...

    def digest(self) -> str:
        """Return a hash of all that shapes the dynamics (system, integrator), so that a store refuses to mix two."""
        ...

    def propagate(
        self,
        states: State | Sequence[State],
        *,
        duration: Any,
        stride: Any = None,
        bias: Bias | Sequence[Bias | None] | None = None,
        record: Sequence[CollectiveVariable] | None = (),
        record_stride: Any = None,
        stop: Region | None = None,
        velocities: bool = False,
        seed: int | Sequence[int] = 0,
        on_result: OnResult | None = None,
    ) -> list[Trajectory]:
        """Propagate a batch of walkers in parallel; one state is a batch of one.

        Parameters
        ----------
        states : where each walker starts; missing velocities are drawn at the engine's temperature.
        duration : time (ps, text or Quantity), one for all or one per walker; multiples of the strides.
        stride : time between kept frames; None keeps no frames (shape (0, n_atoms, 3)).
        bias : one for all, or one per walker (None: no bias).  Its CVs are looked up by name in ``record``, which
            therefore lists every CV that is biased, plus any other to record.
        record : CVs to record, with the unbiased potential energy, every ``record_stride``; None records nothing, not even
            the energy, which costs OpenMM as much as a step.
        record_stride : time between records; default ``stride``.  Must divide ``stride``.
        stop : end a walker at the first record inside this region (its CVs need not be in ``record``).
        velocities : keep velocities with the frames.
        seed : one for all (walker i draws from its own stream), or one per walker, used as it is: a walker's result
            depends on its state, bias and seed alone, never on its neighbours or on the number of workers.
        on_result : called with (walker, trajectory) in the calling thread as walkers finish.

        Returns
        -------
        One trajectory per walker, in order; ``series`` is set (always with energy) unless ``record`` is None, ``last``
        always.

        Raises
        ------
        SimulationError : a walker's positions, or an energy that is recorded, stopped being finite; names walker and frame, and carries the
            trajectories sampled until then as ``partial``.
        DataError : shapes, strides or numbers of durations, biases and seeds do not fit.
        """
        ...


def as_states(states: State | Sequence[State]) -> list[State]:
    """Return a list of states; raises DataError when it is empty."""
    out = [states] if isinstance(states, State) else list(states)
    if not out:
        raise DataError("no states to propagate", "give at least one starting state")
    return out


def per_walker_biases(bias: Bias | Sequence[Bias | None] | None, n: int) -> list[Bias | None]:
    """Return one bias per walker; raises DataError when their numbers differ."""
    if bias is None or isinstance(bias, Bias):
        return [bias] * n
    out = list(bias)
    if len(out) != n:
        raise DataError(f"{len(out)} biases for {n} walkers", "give one bias, or one per walker")
    return out


def per_walker_seeds(seed: int | Sequence[int], n: int) -> list[int]:
    """Return one seed per walker; raises DataError when their numbers differ."""
    if isinstance(seed, (int, np.integer)):
        return [integer_seed(int(seed), "walker", i) for i in range(n)]
    out = [int(s) for s in seed]
    if len(out) != n:
        raise DataError(f"{len(out)} seeds for {n} walkers", "give one seed, or one per walker")
    return out


def steps(value: Any, time_step: float, name: str) -> int:
    """Return a time as a whole number (at least one) of time steps.

    Raises
    ------
    DataError : it is not a multiple of the time step.
    """
    time = convert(value, "ps", name)
    n = round(time / time_step)
    if n < 1 or abs(n * time_step - time) > 1e-6 * max(time, time_step):
        raise DataError(f"{name} = {value} is not a positive multiple of the time step {time_step:g} ps")
    return n


def schedule(duration: Any, stride: Any, record_stride: Any, time_step: float) -> tuple[int, int, int]:
    """Return (number of records, steps per record, records per kept frame; 0 keeps none).

    Raises
    ------
    DataError : the times are not multiples of each other.
    """
    total = steps(duration, time_step, "duration")
    frame = None if stride is None else steps(stride, time_step, "stride")
    record = steps(record_stride, time_step, "record_stride") if record_stride is not None else (frame or total)
    if total % record or (frame is not None and (frame % record or total % frame)):
        raise DataError(
            f"duration = {duration}, stride = {stride} and record_stride = {record_stride} do not divide one another",
            "make the duration a multiple of the stride, and the stride a multiple of the record stride",
        )
    return total // record, record, 0 if frame is None else frame // record


def schedules(duration: Any, n: int, stride: Any, record_stride: Any, time_step: float) -> tuple[list[int], int, int]:
    """Return (number of records of each of ``n`` walkers, steps per record, records per kept frame; 0 keeps none).

    Raises
    ------
    DataError : the times are not multiples of each other, there is not one duration per walker, or durations differ where no
        stride says when to record.
    """
    if not isinstance(duration, (list, tuple, np.ndarray)):
        n_records, record, frame = schedule(duration, stride, record_stride, time_step)
        return [n_records] * n, record, frame
    if len(duration) != n:
        raise DataError(f"{len(duration)} durations for {n} walkers", "give one duration, or one per walker")
    each = [schedule(one, stride, record_stride, time_step) for one in duration]
    if len({one[1:] for one in each}) > 1:
        raise DataError("durations differ between walkers, and nothing says when to record", "give a stride or a record_stride")
    return [one[0] for one in each], *each[0][1:]
