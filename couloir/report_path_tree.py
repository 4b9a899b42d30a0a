"""The figure of a report that shows how the paths of one chain follow from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from couloir.report_figures import COLORS, new
from couloir.sampling.path_tree import Branch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORWARD, _BACKWARD, _KEPT, _ORIGINAL = COLORS[0], COLORS[1], "#b5bcc4", "#6b7580"


def tree_figure(tree: Sequence[Branch], stride: float) -> Figure:
    """Draw a path per row, from top to bottom: thick what was run anew, thin what was kept, a dot at the shooting frame.

    Parameters
    ----------
    tree : the first path and what came of it.
    stride : ps between frames.
    """
    from matplotlib import rcParams
    from matplotlib.lines import Line2D

    figure, ax = new((8.6, 1.2 + 0.11 * max(len(tree), 14)))
    thick, ink = 3.6, rcParams["text.color"]  # the page may be dark
    for row, branch in enumerate(tree):
        if branch.direction in ("backward", "both"):
            _bar(ax, branch, row, stride, (0, branch.shooting + 1), _BACKWARD, thick)
        if branch.direction in ("forward", "both"):
            _bar(ax, branch, row, stride, (branch.shooting, branch.length), _FORWARD, thick)
        _bar(ax, branch, row, stride, branch.kept, _KEPT, 1.2)
        _bar(ax, branch, row, stride, branch.original, _ORIGINAL, 2.0 if branch.step else thick)
    shot = [(branch.begin + branch.shooting, row) for row, branch in enumerate(tree) if branch.shooting >= 0]
    if shot:
        x, y = np.array(shot).T
        ax.plot(stride * x, y, "o", color=ink, markersize=2.6, zorder=4)
        ax.vlines(stride * x, y - 1, y, color="#888888", linewidth=0.6, zorder=1)  # from where it was in the path before
    ax.set_ylim(len(tree) - 0.3, -0.7)
    shown = np.unique(np.linspace(0, len(tree) - 1, min(len(tree), 9)).round().astype(int))
    ax.set_yticks(shown, [str(tree[i].step) for i in shown])
    ax.set_xlabel("time since the first frame of the first path [ps]")
    ax.set_ylabel("step")
    handles = [
        Line2D([], [], color=color, linewidth=width, label=text)
        for text, color, width in (
            ("first path", _ORIGINAL, 2.6), ("run forward", _FORWARD, thick), ("run backward", _BACKWARD, thick), ("kept", _KEPT, 1.2)
        )
    ]  # fmt: skip
    handles.append(Line2D([], [], color=ink, marker="o", markersize=2.6, linestyle="", label="shooting frame"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _bar(ax: Axes, branch: Branch, row: int, stride: float, span: tuple[int, int], color: str, width: float) -> None:
    first, end = span
    if first < end:
        x = stride * (branch.begin + np.array([first, max(end - 1, first)]))
        ax.plot(x, [row, row], color=color, linewidth=width, solid_capstyle="butt", zorder=2)
