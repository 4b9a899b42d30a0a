"""Errors that say what is wrong, where, what was expected and what to do; and findings, which are results."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class CouloirError(Exception):
    """Base of every error that Couloir raises on purpose.

    Parameters
    ----------
    message : what is wrong and where (one sentence).
    fix : what the user can do about it (one sentence), or None.
    """

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message if fix is None else f"{message}\n  -> {fix}")
        self.message = message
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.fix), self.__dict__)


class UnitError(CouloirError):
    """A value has no unit that fits, or cannot be read as a number with a unit."""


class SelectionError(CouloirError):
    """An atom selection matches nothing, too much, or atoms that do not exist."""


class ConfigError(CouloirError):
    """A run file asks for something that does not exist or does not fit together."""


class DataError(CouloirError):
    """Arrays or files given by the user are empty, of the wrong shape, or not finite."""


class StoreError(CouloirError):
    """A run directory or its store cannot be read or written."""


class SimulationError(CouloirError):
    """A simulation failed; ``partial`` holds whatever had been sampled before it did."""

    partial: Any = None


class ModelError(CouloirError):
    """A generative model was used before fitting, outside its contract, or cannot be loaded, or nothing it made can be used.

    ``partial`` holds what it made, where it made something.
    """

    partial: Any = None


@dataclass(frozen=True)
class Finding:
    """A named warning attached to a result.

    Attributes
    ----------
    code : stable short name, e.g. ``"disconnected-windows"``.
    message : what was found, with numbers.
    fix : what to do about it; may be empty.
    """

    code: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}" + (f" -> {self.fix}" if self.fix else "")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` or a list of the choices, to end an error message with."""
    options = sorted(choices)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choices are {', '.join(options)}" if options else ""
