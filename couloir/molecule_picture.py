"""Ball-and-stick pictures of molecules with matplotlib alone: no display, no viewer, no network.

Atoms and bonds are drawn back to front (painter's algorithm) as shaded discs and two-coloured sticks.  Structures that
are shown side by side are superposed on the same atoms (Kabsch, Acta Cryst. A32, 922 (1976)) and seen from the same side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "H": "#e8ebef", "C": "#5b6470", "N": "#3b6fd4", "O": "#d9413b", "S": "#e0b429", "P": "#e58a2e", "F": "#58b368",
    "Cl": "#3fa34d", "Br": "#9c4a2f", "I": "#7a3fa0", "Na": "#8e6bd1", "K": "#8e6bd1", "Mg": "#4c9a6a", "Ca": "#7d8c5c", "Zn": "#7d80b0",
}  # fmt: skip
_OTHER = "#c86fa0"
_RADII = {"H": 0.021, "C": 0.034, "N": 0.034, "O": 0.034, "S": 0.042, "P": 0.042}
_STICK = 0.0115
_HIGHLIGHT = "#f2a900"
_CAPTION = "#7b8794"  # readable on light and on dark pages
_SHOWN_WITH_HYDROGENS = 80
_SOLVENT = {"HOH", "WAT", "SOL", "TIP3", "NA", "CL", "K", "NA+", "CL-", "K+"}

Bonds = Iterable[tuple[int, int]]
Rgb = npt.NDArray[np.float64]


def draw_molecule(
    ax: Axes, positions: Array, elements: Sequence[str], bonds: Bonds, *, highlight: Sequence[int] = (), radius: float = 1.0
) -> Axes:
    """Draw one structure, seen along the z axis from above; returns the axes.

    Parameters
    ----------
    positions : (n_atoms, 3) nm.
    elements : symbol of each atom.
    bonds : pairs of atoms.
    highlight : atoms of a CV: the bonds between neighbours in this list are outlined in colour.
    radius : factor on the size of atoms and bonds.

    Raises
    ------
    DataError : positions and elements do not fit.
    """
    from matplotlib.collections import PatchCollection

    x = np.asarray(positions, dtype=np.float64)
    if x.shape != (len(elements), 3):
        raise DataError(f"positions of shape {x.shape} for {len(elements)} atoms")
    depth = _shades(x[:, 2])
    base = [_rgb(COLORS.get(e, _OTHER)) * s for e, s in zip(elements, depth, strict=True)]
    marked = {frozenset(pair) for pair in pairwise(highlight)}
    shapes: list[tuple[float, Any, Rgb]] = []
    for i, j in bonds:
        outline = _rgb(_HIGHLIGHT) if frozenset((i, j)) in marked else 0.45 * np.minimum(base[i], base[j])
        shapes += _bond(x[i], x[j], base[i], base[j], outline, radius)
    for i, element in enumerate(elements):
        shapes += _atom(x[i], radius * _RADII.get(element, 0.04), base[i])
    # Python's sort is stable: the layers of one atom keep their order.
    shapes.sort(key=lambda shape: shape[0])
    faces = np.clip([color for _, _, color in shapes], 0.0, 1.0)
    ax.add_collection(PatchCollection([patch for _, patch, _ in shapes], facecolors=faces, edgecolors="none", antialiaseds=True))
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def picture_grid(
    positions: Array,
    topology: mdtraj.Topology,
    titles: Sequence[str],
    *,
    highlight: Sequence[int] = (),
    columns: int = 4,
    size: float = 1.7,
) -> Figure:
    """Return a figure of several structures of one molecule, superposed on its backbone and seen from the same side.

    Solvent and ions are left out; so are the hydrogens of molecules with more than 80 atoms.

    Parameters
    ----------
    positions : (n_structures, n_atoms, 3) nm.
    titles : one per structure.
    highlight : atoms of a CV, in its order.
    columns : pictures per row.
    size : width of one picture in inches.

    Raises
    ------
    DataError : there is no structure, or their number differs from that of the titles.
    """
    from matplotlib.figure import Figure

    if len(positions) == 0 or len(positions) != len(titles):
        raise DataError(f"{len(positions)} structures and {len(titles)} titles: there must be one each")
    shown = _shown_atoms(topology)
    number = {atom: k for k, atom in enumerate(shown)}
    atoms = [topology.atom(i) for i in shown]
    elements = [a.element.symbol if a.element is not None else "X" for a in atoms]
    bonds = [(number[a.index], number[b.index]) for a, b in topology.bonds if a.index in number and b.index in number]
    frames = np.asarray(positions, dtype=np.float64)[:, shown]
    frames = in_view(superpose(frames, [number[i] for i in _frame_atoms(topology, shown)]))
    low, high = frames[..., :2].min(axis=(0, 1)) - 0.06, frames[..., :2].max(axis=(0, 1)) + 0.06
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    shape = float(np.clip((high[1] - low[1]) / (high[0] - low[0]), 0.45, 1.3))
    lines = max(title.count("\n") + 1 for title in titles)
    figure = Figure(figsize=(columns * size, rows * (size * shape + 0.1 + 0.17 * lines)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in panels[len(frames) :]:
        ax.set_axis_off()
    for ax, frame, title in zip(panels, frames, titles, strict=False):
        draw_molecule(ax, frame, elements, bonds, highlight=[number[i] for i in highlight if i in number])
        ax.set_xlim(low[0], high[0])
        ax.set_ylim(low[1], high[1])
        ax.set_title(title, fontsize=8, pad=2, color=_CAPTION)
    return figure


def superpose(frames: Array, atoms: Sequence[int]) -> Array:
    """Return frames (n_frames, n_atoms, 3) moved and turned so that ``atoms`` lie as in the first frame."""
    pick = list(atoms)
    centered = frames - frames[:, pick].mean(axis=1, keepdims=True)
    target = centered[0, pick]
    out: Array = np.empty(centered.shape)
    for k, frame in enumerate(centered):
        u, _, vt = np.linalg.svd(frame[pick].T @ target)
        # Without the sign a mirror image could fit better than any rotation.
        sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
        out[k] = frame @ (u @ sign @ vt)
    return out


def in_view(frames: Array) -> Array:
    """Return frames turned together so that their longest extent lies along x and the shortest along the line of sight."""
    points = frames.reshape(-1, 3) - frames.reshape(-1, 3).mean(axis=0)
    axes = np.linalg.svd(points, full_matrices=False)[2]
    axes[2] = np.cross(axes[0], axes[1])
    return np.asarray(frames @ axes.T)


def _shown_atoms(topology: mdtraj.Topology) -> list[int]:
    solute = [a.index for a in topology.atoms if a.residue.name.upper() not in _SOLVENT] or list(range(topology.n_atoms))
    if len(solute) <= _SHOWN_WITH_HYDROGENS:
        return solute
    return [i for i in solute if topology.atom(i).element is None or topology.atom(i).element.symbol != "H"]


def _frame_atoms(topology: mdtraj.Topology, shown: Sequence[int]) -> list[int]:
    """Atoms to superpose on: the backbone of residues that have a C-alpha, else all heavy atoms."""
    keep = set(shown)
    residues = [r for r in topology.residues if any(a.name == "CA" and a.index in keep and len(list(r.atoms)) > 1 for a in r.atoms)]
    backbone = [a.index for r in residues for a in r.atoms if a.name in ("N", "CA", "C", "CB") and a.index in keep]
    if len(backbone) >= 3:
        return backbone
    heavy = [i for i in shown if topology.atom(i).element is None or topology.atom(i).element.symbol != "H"]
    return heavy if len(heavy) >= 3 else list(shown)


def _rgb(color: str) -> Rgb:
    return np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])


def _shades(z: Array) -> Array:
    """Brightness by depth: what lies further back is darker, which reads on light and dark pages alike."""
    span = float(np.ptp(z))
    return np.ones(len(z)) if span < 1e-9 else np.asarray(0.72 + 0.28 * (z - z.min()) / span)


def _atom(center: Array, radius: float, color: Rgb) -> list[tuple[float, Any, Rgb]]:
    from matplotlib.patches import Circle

    x, y, z = center
    layers = [(1.08, 0.0, 0.38 * color), (1.0, 0.0, 0.86 * color)]
    layers += [(0.86 - 0.17 * k, 0.1 + 0.075 * k, color + (1 - color) * (0.02 + 0.13 * k)) for k in range(5)]
    front = z + radius
    return [(front, Circle((x - shift * radius, y + shift * radius), scale * radius), shade) for scale, shift, shade in layers]


def _bond(a: Array, b: Array, color_a: Rgb, color_b: Rgb, outline: Rgb, scale: float) -> list[tuple[float, Any, Rgb]]:
    from matplotlib.patches import Polygon

    along = b[:2] - a[:2]
    length = float(np.linalg.norm(along))
    if length < 1e-6:
        return []
    side = np.array([-along[1], along[0]]) / length
    middle = 0.5 * (a + b)
    accent = bool(np.allclose(outline, _rgb(_HIGHLIGHT)))

    def stick(start: Array, end: Array, width: float, shift: float = 0.0) -> Any:
        offset = shift * side
        return Polygon([start[:2] + width * side + offset, end[:2] + width * side + offset,
                        end[:2] - width * side + offset, start[:2] - width * side + offset])  # fmt: skip

    width = scale * _STICK
    border = width * (1.75 if accent else 1.25)
    out: list[tuple[float, Any, Rgb]] = []
    up = 0.35 * width * (1.0 if side[1] > 0 else -1.0)
    for end, color in ((a, color_a), (b, color_b)):
        z = float(0.5 * (middle[2] + end[2]))
        out.append((z - 1e-6, stick(end, middle, border), outline))
        out.append((z, stick(end, middle, width), 0.86 * color))
        out.append((z, stick(end, middle, 0.4 * width, up), color + (1 - color) * 0.3))
    return out
