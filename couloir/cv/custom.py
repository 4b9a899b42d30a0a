"""CVs written by the user as a Python function of positions, in torch or NumPy, with a checked gradient.

They work everywhere a CV does.  As a bias they run through OpenMM's PythonForce, whose every step waits for the function
and its gradient: small torch formulas take 0.2 to 1 ms, where a native bias takes microseconds.  Prefer a built-in CV, or
a function of built-in ones, where that is possible.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakValueDictionary

import numpy as np

from couloir.cv._native import check_name, collective
from couloir.cv.base import CollectiveVariable
from couloir.errors import ConfigError, DataError, ModelError
from couloir.streams import stream
from couloir.trajectory import Array

if TYPE_CHECKING:
    import openmm

_STEP = 1e-5
"""Half-width of central differences, nm: balances truncation (h^2) against rounding (1e-16/h)."""


@dataclass(frozen=True)
class FunctionCV(CollectiveVariable):
    """A Python function of positions as a CV.

    Parameters
    ----------
    function : takes positions (n_frames, n_atoms, 3) nm, returns values (n_frames,).
    name, unit, period : as for every CV; a periodic function returns values in [-period/2, period/2).
    backend : ``"torch"`` (gradient by autograd) or ``"numpy"`` (gradient by central differences, which costs
        6 n_atoms evaluations per frame).
    atoms : the function is given these atoms only, in this order; None gives it all.  Fewer atoms make biasing faster.
    """

    function: Callable[[Any], Any]
    name: str
    unit: str = ""
    period: float | None = None
    backend: Literal["torch", "numpy"] = "torch"
    atoms: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.backend not in ("torch", "numpy"):
            raise ConfigError(f"{self.name!r} has the unknown backend {self.backend!r}", "use 'torch' or 'numpy'")
        if self.atoms is not None:
            object.__setattr__(self, "atoms", tuple(int(i) for i in self.atoms))

    def compute(self, positions: Any, xp: Any) -> Any:
        return self._of_atoms(positions if self.atoms is None else positions[:, list(self.atoms)], xp)

    def _of_atoms(self, x: Any, xp: Any) -> Any:
        if self.backend == "numpy":
            return self._call(x) if xp is np else _differentiable(self._call, x)
        if xp is not np:
            return self._call(x)
        import torch

        with torch.no_grad():
            return self._call(torch.tensor(x)).numpy()

    def _call(self, x: Any) -> Any:
        values = self.function(x)
        if getattr(values, "shape", None) != (len(x),):
            shape = getattr(values, "shape", type(values).__name__)
            raise DataError(
                f"the function of CV {self.name!r} returned {shape} for positions {tuple(x.shape)}, expected ({len(x)},)",
                "return one value per frame",
            )
        return values

    def to_dict(self) -> dict[str, Any]:
        raise DataError(
            f"the CV {self.name!r} is a Python function and cannot be written into a run file",
            "use a built-in CV, or a function of built-in ones, when a run must be resumed from its file",
        )

    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        import openmm

        inner = openmm.PythonForce(_Computation(self))
        if self.atoms is not None:
            inner.setParticles(list(self.atoms))
        return collective(expression, parameters, {self.name: inner})


class _Computation:
    """What PythonForce calls: value and forces of the CV; the gradient is checked on the first call.

    CustomCVForce copies its inner forces by pickling, which lambdas and closures refuse; so a copy within this process is
    the computation itself, found by its number.
    """

    _number = itertools.count()
    _alive: ClassVar[WeakValueDictionary[tuple[int, int], _Computation]] = WeakValueDictionary()

    def __init__(self, cv: FunctionCV) -> None:
        self.key = (os.getpid(), next(self._number))
        self._alive[self.key] = self
        self.cv = FunctionCV(cv.function, cv.name, cv.unit, cv.period, cv.backend)  # OpenMM passes the chosen atoms only
        self.checked = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (_living_computation, (self.key,))

    def __call__(self, state: Any) -> tuple[float, Array]:
        positions = np.asarray(state.getPositions(asNumpy=True)._value, dtype=np.float64)
        if not self.checked:
            check_gradient(self.cv, positions)
            self.checked = True
        values, gradients = _value_and_gradient(self.cv, positions)
        return float(values[0]), np.ascontiguousarray(-gradients[0])


def _living_computation(key: tuple[int, int]) -> _Computation:
    try:
        return _Computation._alive[key]
    except KeyError:
        raise DataError(
            "a bias on a Python function cannot be read back from a serialized OpenMM System", "make it again from its CV"
        ) from None


def check_gradient(cv: CollectiveVariable, positions: Array, *, tolerance: float = 1e-4, seed: int = 0) -> None:
    """Compare a CV's gradient with finite differences of its value, along four random directions per frame.

    Parameters
    ----------
    cv : any CV.
    positions : (n_frames, n_atoms, 3) nm, or one frame.
    tolerance : largest difference allowed, relative to the length of the gradient (and at least 1 unit/nm).

    Raises
    ------
    ModelError : the gradient is not that of the value, or there is none.
    DataError : value or gradient is not finite.
    """
    batch = np.asarray(positions, dtype=np.float64)
    batch = batch[None] if batch.ndim == 2 else batch
    values, gradient = _value_and_gradient(cv, batch)
    if not (np.isfinite(values).all() and np.isfinite(gradient).all()):
        raise DataError(f"the CV {cv.name!r} or its gradient is not finite", "check it at the starting structure")
    scale = np.maximum(1.0, np.sqrt((gradient**2).sum(axis=(1, 2))))
    for direction in stream(seed, "check_gradient").normal(size=(4, *batch.shape[1:])):
        direction /= np.linalg.norm(direction)
        change = cv.evaluate(batch + _STEP * direction) - cv.evaluate(batch - _STEP * direction)
        if cv.period is not None:
            change = (change + cv.period / 2) % cv.period - cv.period / 2
        error = np.abs(change / (2 * _STEP) - (gradient * direction).sum(axis=(1, 2))) / scale
        if not error.max() < tolerance:
            raise ModelError(
                f"the gradient of CV {cv.name!r} is not that of its value: relative difference {error.max():.2g}",
                "a bias on it would not conserve energy; write it with differentiable torch functions in double precision, "
                "or use backend='numpy'",
            )


def _value_and_gradient(cv: CollectiveVariable, positions: Array) -> tuple[Array, Array]:
    try:
        return cv.value_and_gradient(positions)
    except RuntimeError as error:
        raise ModelError(
            f"torch cannot differentiate the CV {cv.name!r}: {error}", "use torch functions throughout, or backend='numpy'"
        ) from error


def _differentiable(function: Callable[[Array], Array], x: Any) -> Any:
    """Return the NumPy ``function`` of a torch tensor, with central differences as its backward pass."""
    import torch

    class Differences(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Any) -> Any:
            ctx.save_for_backward(inputs)
            return torch.as_tensor(function(inputs.detach().cpu().double().numpy())).to(inputs)

        @staticmethod
        def backward(ctx: Any, *outputs: Any) -> Any:
            (inputs,) = ctx.saved_tensors
            gradient = np.stack([_differences(function, frame) for frame in inputs.detach().cpu().double().numpy()])
            return torch.as_tensor(gradient).to(inputs) * outputs[0][:, None, None]

    return Differences.apply(x)  # type: ignore[no-untyped-call]


def _differences(function: Callable[[Array], Array], frame: Array) -> Array:
    steps = _STEP * np.eye(frame.size).reshape(-1, *frame.shape)
    ahead, behind = np.split(np.asarray(function(np.concatenate([frame + steps, frame - steps]))), 2)
    return np.asarray((ahead - behind) / (2 * _STEP)).reshape(frame.shape)
