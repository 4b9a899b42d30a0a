"""The collective-variable contract.

A CV maps positions to one number per frame.  A subclass writes its formula once, in :meth:`compute`, against the
functions that NumPy and torch share (``xp`` is either module); batching, gradients, regions and OpenMM forces follow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.errors import DataError
from couloir.trajectory import Array
from couloir.units import convert

if TYPE_CHECKING:
    import openmm

    from couloir.cv.region import Region


def wrap(values: Array, period: float | None) -> Array:
    """Wrap ``values`` into [-period/2, period/2); returned unchanged when ``period`` is None."""
    return values if period is None else (values + period / 2) % period - period / 2


def require_in_period(cv: CollectiveVariable, value: float, what: str) -> None:
    """Refuse a value outside [-period/2, period/2] of a periodic CV, which no frame ever has; infinite limits pass.

    Raises
    ------
    DataError : the value is outside; says which value inside means the same.
    """
    if cv.period is None or np.isinf(value) or abs(value) <= cv.period / 2 + 1e-9:
        return
    same = float(wrap(np.array(value), cv.period))
    raise DataError(
        f"{what} = {value:g} is outside the period of {cv.name}, whose values lie in [{-cv.period / 2:.4g}, {cv.period / 2:.4g}) {cv.unit}",
        f"the same place is {same:.4g}" + (f'; if {value:g} is in degrees, write "{value:g} deg"' if cv.unit == "rad" else ""),
    )


class CollectiveVariable(ABC):
    """One number per frame, with a name, a unit and perhaps a period.

    Attributes
    ----------
    name : identifier, used for columns, OpenMM parameters and run files.
    unit : ``"nm"``, ``"rad"`` or ``""``.
    period : None, or the period of the values (2 pi for a torsion), which lie in [-period/2, period/2).
    """

    name: str
    unit: str
    period: float | None

    @abstractmethod
    def compute(self, positions: Any, xp: Any) -> Any:
        """Return the values (n_frames,) of positions (n_frames, n_atoms, 3), using the array module ``xp``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain data that :func:`couloir.cv.from_dict` turns back into this CV."""

    def evaluate(self, positions: Array) -> Array:
        """Return the value of every frame.

        Parameters
        ----------
        positions : (n_frames, n_atoms, 3) nm; one frame (n_atoms, 3) counts as a batch of one.
        """
        batch = np.asarray(positions, dtype=np.float64)
        return np.asarray(self.compute(batch[None] if batch.ndim == 2 else batch, np), dtype=np.float64)

    def of_frame(self) -> Callable[[Array], float] | None:
        """Return a function that evaluates one frame (n_atoms, 3) to rounding, much faster than a batch of one; None if there is none."""
        return None

    def value_and_gradient(self, positions: Array) -> tuple[Array, Array]:
        """Return values (n_frames,) and their gradients (n_frames, n_atoms, 3) in unit/nm."""
        import torch

        batch = np.asarray(positions, dtype=np.float64)
        x = torch.tensor(batch[None] if batch.ndim == 2 else batch, requires_grad=True)
        values = self.compute(x, torch)
        (gradient,) = torch.autograd.grad(values.sum(), x)
        return values.detach().numpy(), gradient.numpy()

    def to_openmm(self) -> openmm.Force:
        """Return an OpenMM force whose energy (kJ/mol, as a number) is the value of this CV."""
        return self.to_openmm_energy(self.name, {})

    @abstractmethod
    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        """Return an OpenMM force whose energy is a Lepton ``expression`` of this CV.

        Parameters
        ----------
        expression : uses the CV under its own name, e.g. ``"0.5*k*(phi-c)^2"``, and names in ``parameters``.
        parameters : global parameters of the force with their default values.
        """

    def __lt__(self, limit: Any) -> Region:
        return self._interval(-np.inf, limit)

    def __le__(self, limit: Any) -> Region:
        return self._interval(-np.inf, limit)

    def __gt__(self, limit: Any) -> Region:
        return self._interval(limit, np.inf)

    def __ge__(self, limit: Any) -> Region:
        return self._interval(limit, np.inf)

    def between(self, low: Any, high: Any) -> Region:
        """Return the region low <= CV <= high; for a periodic CV, ``low > high`` runs through the period's edge.

        Raises
        ------
        DataError : a limit is outside the period of a periodic CV.
        UnitError : a limit has a unit that does not fit.
        """
        return self._interval(low, high)

    def _interval(self, low: Any, high: Any) -> Region:
        from couloir.cv.region import Interval

        low, high = (
            limit if isinstance(limit, float) and np.isinf(limit) else convert(limit, self.unit, f"the limit of {self.name}")
            for limit in (low, high)
        )
        return Interval(self, float(low), float(high))

    def __str__(self) -> str:
        return f"{self.name} [{self.unit}]" if self.unit else self.name
