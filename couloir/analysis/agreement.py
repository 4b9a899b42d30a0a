"""Whether walkers of one window, and windows that share bins, sample one ensemble; and what it costs where they do not.

Where a hidden barrier is not crossed, walkers keep the mode of their seed.  Two walkers of a window in different modes
show it; walkers that were all started in the same mode do not, but then some neighbouring window was started in another.
So both are compared, by every recorded CV (on the circle where periodic) and by the potential energy:

- walkers of a window by the potential scale reduction R, and an F test of their means;
- neighbouring windows *inside shared bins of the biased CVs*, where the bias is the same constant for both and so the
  distribution of everything else must be the same.  With n_ib rows of window i in bin b and h_b = n_ib n_jb/(n_ib + n_jb),
  the shift ``D = sum_b h_b (mean_ib - mean_jb) / sum_b h_b`` is compared with its standard error in a t test.

All standard errors count decorrelated samples, and all tests of a run share one chance of a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from couloir.analysis.overlap import biased_names
from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.analysis.timeseries import observables, on_circle, scale_reduction, statistical_inefficiency, walkers
from couloir.analysis.wham import bin_numbers, occupied_bins
from couloir.trajectory import Array

DISAGREE = 1.1
"""Potential scale reduction above which walkers are taken to sample different distributions, when it is significant."""
FALSE_ALARM = 2e-4
"""Chance of a false alarm in all tests of a run together, of walkers and of windows each."""
LEAST_EFFECTIVE = 20
"""Decorrelated samples below which a walker's own mean and inefficiency are too uncertain to compare."""
LEAST_SHIFT = 0.2
"""Shift between neighbours, in standard deviations within them, below which it does not matter."""
UNKNOWN = 30.0
"""Offset error in kT that stands for an unknown one."""
_SHARED = 10.0


@dataclass(frozen=True)
class Shift:
    """Two neighbouring windows that differ in something within shared bins.

    Attributes
    ----------
    windows : the two.
    name : the CV (or ``potential``) that differs most.
    deviations : the shift in standard deviations within the windows.
    errors : the shift in standard errors.
    offset : error of the free energy of one window against the other, kT.
    """

    windows: tuple[int, int]
    name: str
    deviations: float
    errors: float

    @property
    def offset(self) -> float:
        """Jeffreys' divergence of two normal distributions so far apart: what reweighting one into the other may cost."""
        return min(self.deviations**2, UNKNOWN)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What comparing neighbours found: ``shifts``, and (n_directions, n_windows) ``directions`` in which offsets are uncertain, kT."""

    shifts: tuple[Shift, ...] = ()
    directions: Array = field(default_factory=lambda: np.empty((0, 0)))

    def draw(self, rng: np.random.Generator, n_windows: int) -> Array:
        """Return random errors of the windows' offsets (n_windows,), kT."""
        if not self.shifts:
            return np.zeros(n_windows)
        return np.asarray(rng.standard_normal(len(self.directions)) @ self.directions)


def walkers_disagree(samples: BiasedSamples) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return the scale reduction of every observable in each window, and where it exceeds 1.1 beyond chance.

    Returns
    -------
    Two arrays (n_windows, n_observables) in the order of :func:`couloir.analysis.timeseries.observables`; NaN and False
    with fewer than two walkers, or with fewer than 20 decorrelated samples in any of them.
    """
    columns = observables(samples)
    reduction = np.full((samples.n_windows, len(columns)), np.nan)
    chance = np.ones_like(reduction)
    groups: dict[int, list[IntArray]] = {}
    for window, _, rows in walkers(samples):
        groups.setdefault(window, []).append(rows)
    for window, members in groups.items():
        for c, (_, values, period) in enumerate(columns if len(members) > 1 else ()):
            found = scale_reduction([values[rows] for rows in members], period)
            reduction[window, c] = found.value
            if found.n_effective.min() < LEAST_EFFECTIVE:
                continue
            # Half the effective samples as degrees of freedom: their number is itself estimated.
            freedom = 0.5 * float(found.n_effective.sum())
            chance[window, c] = 0.0 if np.isinf(found.ratio) else stats.f.sf(found.ratio, len(members) - 1, freedom)
    n_tests = max(1, int(np.isfinite(reduction).sum()))
    return reduction, (np.nan_to_num(reduction, nan=1.0) > DISAGREE) & (chance < FALSE_ALARM / n_tests)


def compare_neighbours(samples: BiasedSamples) -> Neighbours:
    """Compare every window with the two it shares most with (four in two dimensions)."""
    names = biased_names(samples)
    columns = [c for c in observables(samples) if c[0] not in names]
    links, shared, bins = _links(samples, names)
    if not columns or not len(links):
        return Neighbours()
    rows: dict[int, list[IntArray]] = {}
    for window, _, mine in walkers(samples):
        rows.setdefault(window, []).append(mine)
    whole = np.concatenate([on_circle(values, period) for _, values, period in columns], axis=1)
    owner = np.repeat(np.arange(len(columns)), [1 if period is None else 2 for _, _, period in columns])
    g = {w: [[statistical_inefficiency(whole[r, c]) for c in range(len(owner))] for r in members] for w, members in rows.items()}
    n_tests = len(links) * len(owner)
    shifts, offsets = [], np.zeros(len(links))
    for number, (i, j) in enumerate(links):
        worst = _worst(whole, owner, bins, (rows[i], rows[j]), (g[i], g[j]), FALSE_ALARM / n_tests)
        if worst is not None:
            column, deviations, errors = worst
            shift = Shift((int(i), int(j)), columns[column][0], deviations, errors)
            shifts.append(shift)
            offsets[number] = shift.offset
    return Neighbours(tuple(shifts), _directions(links, shared, offsets, samples.n_windows) if shifts else np.empty((0, 0)))


def _links(samples: BiasedSamples, names: tuple[str, ...]) -> tuple[IntArray, Array, IntArray]:
    """Return neighbouring pairs (n_pairs, 2) at one temperature, how much they share, and the bin of each row."""
    periods = [samples.periods[samples.column(n)] for n in names]
    data = np.stack([samples[n] for n in names], axis=1) if names else np.zeros((len(samples), 0))
    # Wider than those of WHAM: rows per bin matter here, and a slope within a bin does not (see LEAST_SHIFT).
    numbers = [max(1, n // (4 if len(names) == 1 else 2)) for n in bin_numbers(samples, names, None)]
    bins, means = occupied_bins(data, periods, numbers)
    table = np.zeros((samples.n_windows, len(means)))
    np.add.at(table, (samples.window, bins), 1.0)
    k = samples.n_windows
    shared = np.zeros((k, k))
    for i in range(k):
        total = table[i] + table
        shared[i] = np.divide(table[i] * table, total, out=np.zeros_like(table), where=total > 0).sum(axis=1)
    shared[~np.isclose(samples.temperatures[:, None], samples.temperatures)] = 0.0
    np.fill_diagonal(shared, 0.0)
    nearest = np.argsort(-shared, axis=1)[:, : max(2, 2 * len(names))]
    pairs = {(min(i, int(j)), max(i, int(j))) for i in range(k) for j in nearest[i] if shared[i, j] >= _SHARED}
    links = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return links, shared[links[:, 0], links[:, 1]], bins


def _worst(
    whole: Array, owner: IntArray, bins: IntArray, rows: tuple[list[IntArray], ...], g: tuple[list[list[float]], ...], level: float
) -> tuple[int, float, float] | None:
    """Return (column, shift in deviations, in errors) of the most different observable of two windows, or None when all agree."""
    both = np.concatenate([r for members in rows for r in members])
    side = np.repeat([0, 1], [sum(map(len, members)) for members in rows])
    walker = np.repeat(np.arange(len(rows[0]) + len(rows[1])), [len(r) for members in rows for r in members])
    local = np.unique(bins[both], return_inverse=True)[1]
    n = np.stack([np.bincount(local[side == s], minlength=local.max() + 1) for s in (0, 1)]).astype(float)
    h = n[0] * n[1] / (n[0] + n[1])
    weight = (h / np.maximum(n, 1.0) / h.sum())[side, local]
    worst: tuple[int, float, float] | None = None
    squares = np.zeros(owner.max() + 1)
    tests = []
    for c, column in enumerate(owner):
        y = whole[both, c]
        y = y - (np.bincount(local, y) / n.sum(axis=0))[local]
        means = np.array([(weight * y)[side == s].sum() for s in (0, 1)])
        residual = y - means[side]
        spread = float((weight * residual**2).sum()) / 2
        walkers_g = [one[c] for members in g for one in members]
        variance, freedom = _variance(weight, residual, walker, side, walkers_g, spread)
        delta = float(means[0] - means[1])
        squares[column] += delta**2
        tests.append((int(column), delta, variance, freedom, spread))
    total = np.bincount(owner, [t[4] for t in tests])
    for column, delta, variance, freedom, _ in tests:
        if freedom < LEAST_EFFECTIVE:
            continue
        errors = abs(delta) / np.sqrt(variance) if variance > 0 else (np.inf if abs(delta) > 1e-9 else 0.0)
        deviations = float(np.sqrt(squares[column] / total[column])) if total[column] > 0 else np.inf
        significant = 2 * stats.t.sf(errors, 0.5 * freedom) < level and deviations > LEAST_SHIFT
        if significant and (worst is None or deviations > worst[1]):
            worst = (column, deviations, float(errors))
    return worst


def _variance(weight: Array, residual: Array, walker: IntArray, side: IntArray, g: list[float], spread: float) -> tuple[float, float]:
    """Return the variance of the shift, and the decorrelated samples of the window that has fewer."""
    total, effective = np.zeros(2), np.zeros(2)
    parts: tuple[list[tuple[float, float]], ...] = ([], [])
    for k in range(len(g)):
        mine = walker == k
        z = weight[mine] * residual[mine]
        s, n = int(side[mine][0]), int(mine.sum())
        mass = float(weight[mine].sum())
        # Slow motion is weak in z, where rows outside of shared bins are zero, so its own inefficiency has a say.
        own = statistical_inefficiency(z)
        total[s] += max(float(((z - z.mean()) ** 2).sum()) * own, mass**2 * spread * g[k] / n)
        effective[s] += n / max(own, g[k])
        if mass > 0:
            parts[s].append((mass, float(z.sum()) / mass))
    for s in (0, 1):
        m, mean = np.array(parts[s]).reshape(-1, 2).T
        if len(m) > 1:
            center = float((m * mean).sum() / m.sum())
            total[s] = max(total[s], float((m**2 * (mean - center) ** 2).sum()) * len(m) / (len(m) - 1))
    return float(total.sum()), float(effective.min())


def _directions(links: IntArray, shared: Array, offsets: Array, n_windows: int) -> Array:
    """Return (n, n_windows) independent errors of offsets: across each disagreeing link, everything behind it moves together."""
    i, j = links.T
    graph = coo_array((-shared, (i, j)), shape=(n_windows, n_windows)).tocsr()
    tree = minimum_spanning_tree(graph).tocoo()
    inside = set(zip(tree.row.tolist(), tree.col.tolist(), strict=True))
    out = []
    for (a, b), offset in zip(links.tolist(), offsets, strict=True):
        if offset == 0:
            continue
        row = np.zeros(n_windows)
        if (a, b) in inside:
            rest = [(x, y) for x, y in inside if (x, y) != (a, b)]
            cut = coo_array((np.ones(len(rest)), tuple(np.array(rest).reshape(-1, 2).T)), shape=(n_windows, n_windows))
            label = connected_components(cut, directed=False)[1]
            row[label == label[b]] = offset
            out.append(row)
            continue
        for w in (a, b):
            one = np.zeros(n_windows)
            one[w] = offset / np.sqrt(2)
            out.append(one)
    return np.array(out)
