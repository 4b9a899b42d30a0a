"""The shooting move that ``[paths]`` of a run file asks for."""

from __future__ import annotations

from collections.abc import Mapping

from couloir.config import PathsTable, SelectTable
from couloir.cv import CollectiveVariable
from couloir.errors import ConfigError, nearest
from couloir.sampling.path_moves import ShootingMove
from couloir.sampling.selectors import GaussianSelector, LorentzianSelector, Selector, UniformSelector
from couloir.units import convert

REACH = {"aimless": 5, "spring": 10}
"""Frames between the points that a move chooses from, when the run file does not say."""
STIFFNESS = 0.1
"""Of spring shooting, per frame."""


def move_of(table: PathsTable, cvs: Mapping[str, CollectiveVariable]) -> ShootingMove:
    """Return the move.

    Raises
    ------
    ConfigError : points are selected along a CV that is not there, or by numbers that make no sense.
    """
    selector = UniformSelector() if table.select is None else _selector(table.select, cvs)
    if table.move == "aimless":
        return ShootingMove.aimless(table.reach or REACH["aimless"], selector)
    if table.move == "spring":
        return ShootingMove.spring(table.reach or REACH["spring"], table.stiffness or STIFFNESS, selector)
    return ShootingMove.two_way(selector) if table.move == "two-way" else ShootingMove.one_way(selector)


def _selector(table: SelectTable, cvs: Mapping[str, CollectiveVariable]) -> Selector:
    if table.cv not in cvs:
        raise ConfigError(f"paths.select.cv: unknown CV {table.cv!r}{nearest(table.cv, cvs)}", f"name a [cv.{table.cv}], or another CV")
    cv = cvs[table.cv]
    center, width = (convert(getattr(table, key), cv.unit, f"paths.select.{key}") for key in ("center", "width"))
    if width <= 0:
        raise ConfigError(f"paths.select.width = {table.width}", "give a positive width")
    return (GaussianSelector if table.shape == "gaussian" else LorentzianSelector)(cv, center, width)
