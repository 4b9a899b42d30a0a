"""Pictures of the benchmarks of DynamicsDiffusion.

``python -m benchmarks.dynamics_pictures`` draws those of all studies that have results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.results import FOLDER
from benchmarks.systems.double_well import STRIDE, autocorrelation, profile, transitions
from couloir.trajectory import Array

STUDIES = ("heads", "encoder", "data", "calls", "targets", "lengths", "norms", "temperature")
MEASURES = {"F(x)": "everywhere", "F(x) in the transition region": "transition region"}
"""What rows of a study are about, after "error of"."""


def figure_of(n: int, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    """Return a figure of n panels side by side, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=size, layout="constrained", squeeze=False)
    return figure, axes[0]


def save(figure: Any, name: str) -> None:
    """Write ``results/<name>.png``."""
    from matplotlib import pyplot as plt

    figure.savefig(FOLDER / f"{name}.png", dpi=70)
    plt.close(figure)


def draw_snippets(generated: Array, reference: Array) -> None:
    """Write ``results/dynamics_diffusion.png``: F(x), memory and durations of generated and of simulated snippets (n, n_frames, 2)."""
    figure, (left, middle, right) = figure_of(3, (13, 3.8))
    kinds = {"simulated": (reference, "k-"), "generated": (generated, "C1--")}
    lags = np.arange(1, generated.shape[1] * 2 // 3)
    for name, (frames, style) in kinds.items():
        centers, free, exact = profile(frames[..., 0])
        left.plot(centers, free, style, label=name)
        for i, coordinate in enumerate("xy"):
            about = reference[..., i]
            values = autocorrelation(frames[..., i], float(about.mean()), float(about.var()), lags.tolist())
            middle.plot(lags * STRIDE, values, style, alpha=1.0 - 0.5 * i, label=f"{coordinate}, {name}")
        durations = np.sort(transitions(frames[..., 0]).durations)
        right.plot(durations, np.arange(1, len(durations) + 1) / len(durations), style, label=f"{len(durations)} {name}")
    left.plot(centers, exact, "C0:", label="exact")
    left.set(xlabel="x", ylabel="F / kT")
    middle.set(xlabel="lag", ylabel="autocorrelation")
    right.set(xlabel="duration of a transition", ylabel="share that is shorter")
    for axis in (left, middle, right):
        axis.legend(fontsize="small")
    save(figure, "dynamics_diffusion")


def errors_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the errors of F(x) and their standard errors among the rows of a study, by what was tried and by measure."""
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        label, _, what = row["claim"].partition(": error of ")
        if what in MEASURES:
            points.setdefault(label, {})[what] = row["value"], row["standard_error"] or 0.0
    return points


def draw_study(study: str) -> None:
    """Write ``results/dynamics_<study>.png``: errors of F(x) of all that was tried, from the study's results."""
    points = errors_of(json.loads((FOLDER / f"dynamics_{study}.json").read_text(encoding="utf-8")))
    figure, (axis,) = figure_of(1, (7.5, 0.6 + 0.32 * len(points)))
    for i, (what, name) in enumerate(MEASURES.items()):
        there = [(k, *values[what]) for k, values in enumerate(points.values()) if what in values]
        if there:
            k, value, error = np.array(there).T
            axis.errorbar(value, k, xerr=error, fmt="so"[i], ms=4, label=name)
    axis.set_yticks(range(len(points)), points, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel="mean absolute error of F(x), kT", xlim=(0, None))
    axis.legend(fontsize=7)
    save(figure, f"dynamics_{study}")


def main() -> None:
    """Draw what there are results of."""
    for study in STUDIES:
        if (FOLDER / f"dynamics_{study}.json").exists():
            draw_study(study)


if __name__ == "__main__":
    main()
