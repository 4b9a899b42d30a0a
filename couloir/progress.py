"""Progress bars for long work: rich on a terminal, silent anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """Where long work reports to; this base class is the silent one."""

    def advance(self, amount: float, note: str = "") -> None:
        """Report ``amount`` more of the total done; ``note`` is the quantity that matters (an error, a loss)."""


class _RichProgress(Progress):
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def advance(self, amount: float, note: str = "") -> None:
        self._bar.update(self._task, advance=amount, note=note)


@contextmanager
def progress_bar(title: str, total: float, unit: str = "") -> Iterator[Progress]:
    """Show a bar with rate and remaining time while the block runs, if the error stream is a terminal."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich import progress as rp
    from rich.console import Console

    columns = (
        rp.TextColumn("{task.description}"), rp.BarColumn(), rp.TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
        rp.TimeElapsedColumn(), rp.TextColumn("left"), rp.TimeRemainingColumn(), rp.TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with rp.Progress(*columns, console=Console(stderr=True)) as bar:
        yield _RichProgress(bar, bar.add_task(title, total=total, note=""))
