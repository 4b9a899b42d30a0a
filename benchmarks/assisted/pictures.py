"""Pictures of the benchmarks of model-assisted sampling."""

from __future__ import annotations

import re

import numpy as np

from benchmarks.assisted.fast_slow import CELLS
from benchmarks.assisted.runs import Curves
from benchmarks.results import FOLDER
from couloir.trajectory import Array


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


def draw_ramachandran(name: str, laws: dict[str, dict[str, Array]], edges: Array) -> None:
    """Write ``results/<name>.png``: p(other | label) in cells, one row per label, and one panel per source of the law.

    Each column of a panel is one law: it adds up to 1 at every value of the label.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    degrees = np.degrees(edges)
    figure, axes = plt.subplots(len(laws), 3, figsize=(10.0, 3.3 * len(laws)), squeeze=False, layout="constrained")
    for row, (label, sources) in zip(axes, laws.items(), strict=True):
        other = {"phi": "psi", "psi": "phi"}[label]
        for axis, (source, law) in zip(row, sources.items(), strict=True):
            mesh = axis.pcolormesh(degrees, degrees, np.where(law.T > 0, law.T, np.nan), norm="log", vmin=1e-3, vmax=0.5, cmap="viridis")
            axis.set(title=f"p({other} | {label}), {source}", xlabel=f"{label}, degrees", ylabel=f"{other}, degrees", aspect="equal")
        figure.colorbar(mesh, ax=row[-1])
    figure.savefig(FOLDER / f"{name}.png", dpi=70)
    plt.close(figure)
