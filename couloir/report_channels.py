"""What a report says of channels: groups of reactive paths that go different ways, with the share of the weight that each carries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from couloir import report_html as web
from couloir.analysis.channels import APART, MOST_CHANNELS, Channels
from couloir.analysis.path_ensemble import PathEnsemble
from couloir.analysis.path_independence import path_means
from couloir.analysis.plots import label
from couloir.analysis.timeseries import on_circle
from couloir.cv import CollectiveVariable
from couloir.report_html import Page
from couloir.trajectory import Array

_FEWEST = 10  # paths below which a group may be a path or two that happen to be alike


def write_channels(page: Page, paths: PathEnsemble, cvs: Sequence[CollectiveVariable]) -> None:
    """Say how many channels the paths that count follow along several CVs, and where each goes; nothing is said of a single CV."""
    if len(cvs) < 2 or not paths.weights.any():
        return
    names = " and ".join(filter(None, (", ".join(cv.name for cv in cvs[:-1]), cvs[-1].name)))
    n = int((paths.weights > 0).sum())
    if n < _FEWEST:
        page.add(web.paragraph(f"{n} paths that count are too few to tell channels along {names} apart."))
        return
    found = paths.channels(cvs)
    means = channel_means(paths, found, cvs)
    if len(found.shares) == 1:
        where = ", ".join(f"{cv.name} is {_short(mean)}{f' {cv.unit}' if cv.unit else ''}" for cv, mean in zip(cvs, means[0], strict=True))
        text = (
            f"Compared along {names}, all {n} paths that count follow one channel: no division into 2 to {MOST_CHANNELS} groups sets "
            f"them clearly apart (mean silhouette below {APART:g}). On average over these paths, {where}."
        )
        page.add(web.paragraph(text))
        return
    text = (
        f"Compared along {names}, the {n} paths that count follow {len(found.shares)} channels (mean silhouette {found.silhouette:.2f}, "
        "1 for channels far apart). The share of a channel is that of the paths' weight, with a standard error from how often chains "
        "change channel and how far they lie apart. A channel that no chain has been in is not known."
    )
    header = ("channel", "paths", "share", "standard error", *(f"mean {label(cv.name, cv.unit)}" for cv in cvs), "most central path")
    page.add(web.paragraph(text), web.table(header, _rows(paths, found, means)))


def channel_means(paths: PathEnsemble, found: Channels, cvs: Sequence[CollectiveVariable]) -> Array:
    """Return the mean of each CV over the paths of each channel, (n_channels, n_cvs): of means over each path, by the paths' weights.

    The mean of a periodic CV is that on the circle.
    """
    out = np.empty((len(found.shares), len(cvs)))
    members = [found.rows[found.label == k] for k in range(len(found.shares))]
    for j, cv in enumerate(cvs):
        points = on_circle(path_means(cv, paths.paths), cv.period)
        for k, rows in enumerate(members):
            center = np.average(points[rows], axis=0, weights=paths.weights[rows])
            out[k, j] = center[0] if cv.period is None else np.arctan2(center[1], center[0]) * cv.period / (2 * np.pi)
    return out


def _rows(paths: PathEnsemble, found: Channels, means: Array) -> list[tuple[str, ...]]:
    rows = []
    for k, (share, medoid) in enumerate(zip(found.shares, found.medoids, strict=True)):
        error = f"{share.standard_error:.2g}" if np.isfinite(share.standard_error) else "unknown"
        central = f"chain {paths.chain[medoid]}, step {paths.step[medoid]}"
        rows.append((str(k + 1), str(int((found.label == k).sum())), f"{share.value:.3g}", error, *map(_short, means[k]), central))
    return rows


def _short(value: float) -> str:
    return f"{value:.3g}"
