"""What a report says of channels: groups of reactive paths that go different ways, with the share of the weight that each carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir import report_html as web
from couloir.analysis.channels import APART, MOST_CHANNELS, Channels
from couloir.analysis.path_ensemble import PathEnsemble
from couloir.analysis.path_independence import path_means
from couloir.analysis.plots import label
from couloir.cv import CollectiveVariable
from couloir.rates_numbers import FEWEST_IN_CHANNELS
from couloir.report_html import Page
from couloir.trajectory import Array


def write_channels(page: Page, paths: PathEnsemble, cvs: Sequence[CollectiveVariable]) -> None:
    """Say how many channels the paths that count follow along several CVs, and where each goes; nothing is said of a single CV."""
    if len(cvs) < 2 or not paths.weights.any():
        return
    n = int((paths.weights > 0).sum())
    if n < FEWEST_IN_CHANNELS:
        page.add(web.paragraph(f"{n} paths that count are too few to tell channels along {listed([cv.name for cv in cvs])} apart."))
        return
    found = paths.channels(cvs)
    central = [f"chain {paths.chain[medoid]}, step {paths.step[medoid]}" for medoid in found.medoids]
    shown = Shown(
        [(cv.name, cv.unit) for cv in cvs],
        np.bincount(found.label).tolist(),
        [(share.value, share.standard_error) for share in found.shares],
        channel_means(paths, found, cvs).tolist(),
        central,
        found.silhouette,
    )
    page.add(*shown.parts("paths that count", "how often chains change channel and how far they lie apart"))


def write_weighted_channels(page: Page, told: Mapping[str, Any] | None) -> None:
    """Say the same of the weighted paths of ``rates.json``; nothing of a single CV, and of runs of earlier versions."""
    if told is None:
        return
    rows = told["channels"]
    if not rows:
        text = f"{told['paths']} different paths from A to B are too few to tell channels along {listed(told['along'])} apart."
        page.add(web.paragraph(text))
        return
    shares = [(row["share"]["value"], np.nan if row["share"]["standard_error"] is None else row["share"]["standard_error"]) for row in rows]
    shown = Shown(
        list(zip(told["along"], told["units"], strict=True)), [row["paths"] for row in rows], shares, [row["means"] for row in rows],
        [row["most_central"] for row in rows], np.nan if told["silhouette"] is None else told["silhouette"],
    )  # fmt: skip
    page.add(*shown.parts("weighted paths from A to B, repeats counted,", "the blocks of the rate and how far sets lie apart"))


@dataclass(frozen=True)
class Shown:
    """Channels as a report shows them.

    Attributes
    ----------
    cvs : names and units of what paths were compared along.
    counts, shares, means, central : per channel, its paths, share with standard error, mean of every CV, name of its most central path.
    silhouette : see :class:`~couloir.analysis.channels.Channels`.
    """

    cvs: Sequence[tuple[str, str]]
    counts: Sequence[int]
    shares: Sequence[tuple[float, float]]
    means: Sequence[Sequence[float]]
    central: Sequence[str]
    silhouette: float

    def parts(self, paths: str, errors: str) -> tuple[str, ...]:
        """Return the text, and the table where there are several channels; ``paths`` and ``errors`` say what these are and are from."""
        names, n = listed([name for name, _ in self.cvs]), sum(self.counts)
        if len(self.counts) == 1:
            where = ", ".join(
                f"{name} is {_short(mean)}{f' {unit}' if unit else ''}" for (name, unit), mean in zip(self.cvs, self.means[0], strict=True)
            )
            text = (
                f"Compared along {names}, all {n} {paths} follow one channel: no division into 2 to {MOST_CHANNELS} groups sets "
                f"them clearly apart (mean silhouette below {APART:g}). On average over these paths, {where}."
            )
            return (web.paragraph(text),)
        text = (
            f"Compared along {names}, the {n} {paths} follow {len(self.counts)} channels (mean silhouette {self.silhouette:.2f}, "
            f"1 for channels far apart). The share of a channel is that of the paths' weight, with a standard error from {errors}. "
            "A channel that no chain has been in is not known."
        )
        header = ("channel", "paths", "share", "standard error", *(f"mean {label(*cv)}" for cv in self.cvs), "most central path")
        return web.paragraph(text), web.table(header, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        rows = []
        for k, (n, (share, error)) in enumerate(zip(self.counts, self.shares, strict=True)):
            known = f"{error:.2g}" if np.isfinite(error) else "unknown"
            rows.append((str(k + 1), str(n), f"{share:.3g}", known, *map(_short, self.means[k]), self.central[k]))
        return rows


def channel_means(paths: PathEnsemble, found: Channels, cvs: Sequence[CollectiveVariable]) -> Array:
    """Return the mean of each CV over the paths of each channel, (n_channels, n_cvs): of means over each path, by the paths' weights.

    The mean of a periodic CV is that on the circle.
    """
    return np.column_stack([found.means(path_means(cv, paths.paths), paths.weights, cv.period) for cv in cvs])


def listed(names: Sequence[str]) -> str:
    """Return names as in "x, y and z"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _short(value: float) -> str:
    return f"{value:.3g}"
