"""Seeds: where windows start, and how these structures came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.errors import Finding
from couloir.store import Store, text_array, text_value
from couloir.trajectory import Array, State

if TYPE_CHECKING:
    import pandas as pd

    from couloir.sampling.umbrella import UmbrellaSampling


@dataclass(frozen=True, eq=False)
class Seeds:
    """Starting states for windows, and how they came about.

    Attributes
    ----------
    states : one per seed, thermalized in its window.
    windows : (n_seeds,) the window of each.
    origins : ``"model"``, ``"dragged"`` or ``"given"`` for each.
    tally : per window, how many candidates were generated, failed each gate (the first one they failed), passed.
    findings : named warnings, e.g. windows where the model failed.
    centers : centre of each window by CV (name with its unit), each (n_windows,).
    """

    states: tuple[State, ...]
    windows: npt.NDArray[np.int64]
    origins: tuple[str, ...]
    tally: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    centers: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.states)

    def by_window(self) -> dict[int, list[State]]:
        """Return window number -> states."""
        out: dict[int, list[State]] = {}
        for window, state in zip(self.windows, self.states, strict=True):
            out.setdefault(int(window), []).append(state)
        return out

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per window: its centre, candidates, failures by gate, seeds by origin."""
        import pandas as pd

        n = max([int(self.windows.max()) + 1, *map(len, self.tally.values()), *map(len, self.centers.values())])
        counts = {kind: np.bincount(self.windows[[o == kind for o in self.origins]], minlength=n) for kind in dict.fromkeys(self.origins)}
        return pd.DataFrame({**self.centers, **self.tally, **{f"seeds from {kind}": c for kind, c in counts.items()}})

    def table(self) -> str:
        """Return the table as text (gates that nothing failed are left out), with the findings below it."""
        table = self.to_dataframe()
        shown = [c for c in table.columns if c in self.centers or table[c].any()]
        text = table[shown].rename_axis("window").reset_index().to_string(index=False, float_format=lambda x: f"{x:.3g}")
        return "\n".join([text, *map(str, self.findings)])

    def __str__(self) -> str:
        kinds = ", ".join(f"{self.origins.count(kind)} {kind}" for kind in ("model", "dragged", "given") if kind in self.origins)
        return f"Seeds: {len(self)} in {len(set(self.windows.tolist()))} windows ({kinds})\n{self.table()}"


def window_centers(windows: UmbrellaSampling) -> dict[str, Array]:
    """Return the centres of windows by CV, the unit in the name."""
    return {f"{cv.name} [{cv.unit}]" if cv.unit else cv.name: windows.centers[:, i] for i, cv in enumerate(windows.cvs)}


def save_seeds(store: Store, seeds: Seeds, series: str = "seeds") -> None:
    """Write seeds to a store in one step, as a chunk of ``series``."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "positions": np.array([state.positions for state in seeds.states]),
        "windows": seeds.windows,
        "origins": text_array(seeds.origins),
        "findings": text_array([[f.code, f.message, f.fix] for f in seeds.findings]),
        **{f"tally:{key}": counts for key, counts in seeds.tally.items()},
        **{f"center:{key}": values for key, values in seeds.centers.items()},
    }
    for name, values in (("velocities", [s.velocities for s in seeds.states]), ("boxes", [s.box for s in seeds.states])):
        if all(v is not None for v in values):
            arrays[name] = np.array(values)
    store.append({series: arrays})


def load_seeds(store: Store, series: str = "seeds") -> Seeds:
    """Read what :func:`save_seeds` wrote."""
    data = store.chunk(series, -1)
    n = len(data["windows"])
    velocities, boxes = data.get("velocities", [None] * n), data.get("boxes", [None] * n)
    return Seeds(
        tuple(State(x, v, b) for x, v, b in zip(data["positions"], velocities, boxes, strict=True)),
        data["windows"],
        tuple(text_value(data["origins"])),
        {key.removeprefix("tally:"): counts for key, counts in data.items() if key.startswith("tally:")},
        tuple(Finding(*row) for row in text_value(data["findings"])),
        {key.removeprefix("center:"): values for key, values in data.items() if key.startswith("center:")},
    )
