"""The graph of windows: which ones share samples, in which sets, and which connection everything rests on.

Two windows are linked when, seen from either side, they overlap by at least 3 % (:mod:`couloir.analysis.overlap`).  The
maximum spanning tree of the overlap holds the best way from any window to any other, so its least link is the weakest that
free energies depend on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from couloir.analysis.diagnostics import LEAST_OVERLAP
from couloir.analysis.mbar import MbarResult
from couloir.analysis.overlap import Sets, biased_names, gap, name_windows, window_means
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.wham import WhamResult
from couloir.trajectory import Array

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class WindowGraph:
    """Windows and the links between them.

    Attributes
    ----------
    names, units, periods : of the biased CVs.
    places : (n_windows, n_names) mean of each CV in each window; NaN where a window is empty.
    links : (n_links, 2) windows that overlap by at least 3 %, and those that hold their set together by less.
    overlap : (n_links,) the larger of the two entries of the overlap matrix.
    backbone : (n_links,) whether the link belongs to the maximum spanning tree.
    sets : the sets of windows that share samples.
    weakest : the window pair of the backbone that overlaps least, and the place between them as text; None without a link.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    periods: tuple[float | None, ...]
    places: Array
    links: IntArray
    overlap: Array
    backbone: npt.NDArray[np.bool_]
    sets: Sets
    weakest: tuple[int, int, str] | None

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per link: the windows, their overlap, and whether it belongs to the backbone."""
        import pandas as pd

        one, other = self.links.T
        return pd.DataFrame({"window": one, "other": other, "overlap": self.overlap, "backbone": self.backbone})

    def __str__(self) -> str:
        n, m = len(self.places), len(self.links)
        head = f"{n} window{'s' * (n != 1)}, {m or 'no'} link{'s' * (m != 1)}"
        if n == 1:
            return head
        if len(self.sets) > 1:
            parts = "; ".join(name_windows(s) for s in self.sets)
            return f"{head}: {len(self.sets)} sets that share no samples ({parts})" + self._weakest()
        return f"{head}: one connected set" + self._weakest()

    def _weakest(self) -> str:
        if self.weakest is None:
            return ""
        a, b, where = self.weakest
        at = int(np.flatnonzero((self.links == sorted((a, b))).all(axis=1))[0])
        return f"; the weakest connection is that of windows {a} and {b} at {where}, which overlap by {100 * self.overlap[at]:.2g} %"


def window_graph(samples: BiasedSamples, estimate: WhamResult | MbarResult) -> WindowGraph:
    """Return which windows share samples, and through which pairs.

    Parameters
    ----------
    samples : that the estimate was made from.
    estimate : what :func:`couloir.analysis.wham` or :func:`couloir.analysis.mbar` returned.
    """
    names = biased_names(samples)
    columns = [samples.column(n) for n in names]
    best = np.maximum(estimate.overlap, estimate.overlap.T)
    owner = np.full(samples.n_windows, -1)
    for number, members in enumerate(estimate.sets):
        owner[list(members)] = number
    inside = np.triu((owner[:, None] == owner) & (owner >= 0), 1) & (best > 0)
    tree = np.zeros_like(inside)
    one, other = np.nonzero(inside)
    if len(one):
        # Least sum of negative overlaps: the maximum spanning tree.
        cut = minimum_spanning_tree(coo_array((-best[one, other], (one, other)), shape=best.shape).tocsr()).tocoo()
        tree[cut.row, cut.col] = True
    links = np.argwhere(tree | (inside & (best >= LEAST_OVERLAP)))
    overlap, backbone = best[links[:, 0], links[:, 1]], tree[links[:, 0], links[:, 1]]
    weakest = None
    if backbone.any():
        a, b = (int(w) for w in links[backbone][np.argmin(overlap[backbone])])
        weakest = gap(samples, (a,), (b,))
    return WindowGraph(
        names, tuple(samples.units[c] for c in columns), tuple(samples.periods[c] for c in columns), window_means(samples, names),
        links, overlap, backbone, estimate.sets, weakest,
    )  # fmt: skip
