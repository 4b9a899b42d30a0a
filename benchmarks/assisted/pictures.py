"""Pictures of the benchmarks of model-assisted sampling."""

from __future__ import annotations

import re

import numpy as np

from benchmarks.assisted.fast_slow import CELLS
from benchmarks.assisted.runs import Curves
from benchmarks.results import FOLDER


def draw_curves(name: str, curves: Curves, budgets: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 10000)) -> None:
    """Write ``results/<name>.png``: densities of z2 (exact and model), or errors against steps, one panel per system.

    Curves called "system: kind" are errors with standard errors at the last of ``budgets``; the others are pairs of densities.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not curves:
        return
    panels = list(dict.fromkeys(re.split(": ", key)[0] for key in curves))
    columns = min(3, len(panels))
    figure, axes = plt.subplots(
        -(-len(panels) // columns), columns, figsize=(3.4 * columns, 2.8 * -(-len(panels) // columns)), squeeze=False
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        for key, (first, second) in curves.items():
            if key == panel:
                centres, width = 0.5 * (CELLS[1:] + CELLS[:-1]), CELLS[1] - CELLS[0]
                axis.plot(centres, first / width, "k-", label="exact")
                axis.plot(centres, second / width, "C1--", label="model")
                axis.set(xlabel="z2", xlim=(-2.2, 2.2))
            elif key.startswith(f"{panel}: "):
                steps = budgets[-len(first) :]
                axis.errorbar(steps, first, yerr=np.asarray(second), marker=".", label=key.removeprefix(f"{panel}: "))
                axis.set(xscale="log", yscale="log", xlabel="steps per walker", ylabel="L1")
        axis.set_title(panel, fontsize=9)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.png", dpi=70)
    plt.close(figure)
