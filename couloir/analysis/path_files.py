"""Files of path ensembles: one archive that comes back bit for bit, and trajectories for other programs."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.errors import DataError, Finding
from couloir.trajectory import Trajectory

if TYPE_CHECKING:
    import mdtraj

    from couloir.analysis.path_ensemble import PathEnsemble

FORMAT = "couloir-paths-1"
ROWS = ("chain", "step", "multiplicity", "decorrelated", "shooting")
"""Arrays of an ensemble with one entry per path."""
_FRAMES = ("positions", "velocities", "boxes")
_PART = ".part"


def save(paths: PathEnsemble, file: str | Path) -> None:
    """Write an ensemble to one npz file (no pickles); a file that is there stays whole until the new one is complete."""
    first = paths.paths[0]
    held = [name for name in _FRAMES if getattr(first, name) is not None]
    if any((getattr(path, name) is None) == (name in held) for path in paths.paths for name in _FRAMES):
        raise DataError("some paths have velocities or boxes and others have none", "save those of one run")
    meta = {
        "format": FORMAT, "stride": first.stride, "force_evaluations": paths.force_evaluations, "outcomes": list(paths.outcomes),
        "findings": [asdict(finding) for finding in paths.findings], "topology": _described(first.topology),
    }  # fmt: skip
    arrays: dict[str, Any] = {name: np.concatenate([getattr(path, name) for path in paths.paths]) for name in held}
    arrays |= {name: getattr(paths, name) for name in ROWS}
    arrays |= {f"outcome_{i}": np.asarray(counts) for i, counts in enumerate(paths.outcomes.values())}
    target = Path(file)
    part = target.with_name(target.name + _PART)
    with part.open("wb") as out:
        np.savez_compressed(out, meta=np.array(json.dumps(meta)), lengths=paths.lengths, **arrays)
    part.replace(target)


def load(file: str | Path) -> dict[str, Any]:
    """Return the fields of the ensemble that :func:`save` wrote; raises DataError when the file is something else."""
    try:
        with np.load(file, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            if meta["format"] != FORMAT:
                raise DataError(f"{file} holds {meta['format']!r}, expected {FORMAT!r}")
            cuts = np.cumsum(data["lengths"])[:-1]
            frames = {name: np.split(data[name], cuts) for name in _FRAMES if name in data}
            topology = _rebuilt(meta["topology"])
            paths = tuple(
                Trajectory(stride=meta["stride"], topology=topology, **dict(zip(frames, parts, strict=True)))
                for parts in zip(*frames.values(), strict=True)
            )
            return {
                "paths": paths, **{name: data[name] for name in ROWS}, "force_evaluations": meta["force_evaluations"],
                "outcomes": {name: data[f"outcome_{i}"] for i, name in enumerate(meta["outcomes"])},
                "findings": tuple(Finding(**finding) for finding in meta["findings"]),
            }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{file} does not hold saved paths: {error}") from error


def export(paths: PathEnsemble, folder: str | Path, *, every_path: bool = False) -> list[Path]:
    """Write ``topology.pdb``, one DCD file per path and a table ``paths.csv`` with their names and weights; see the method."""
    chosen = np.arange(len(paths)) if every_path else np.flatnonzero(paths.decorrelated)
    if not len(chosen):
        raise DataError("no path is decorrelated from the paths the chains were started from", "sample more, or give every_path=True")
    if paths.paths[0].topology is None:
        raise DataError("these paths have no topology, so they cannot become DCD files", "paths of toy systems can be saved by save()")
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    paths.paths[chosen[0]].to_mdtraj()[0].save_pdb(str(place / "topology.pdb"))
    names = {int(i): f"chain{paths.chain[i]:03d}_step{paths.step[i]:06d}.dcd" for i in chosen}
    for i, name in names.items():
        paths.paths[i].to_mdtraj().save_dcd(str(place / name))
    table = paths.to_dataframe().iloc[chosen]
    table.insert(0, "file", list(names.values()))
    table.to_csv(place / "paths.csv", index=False)
    return [place / name for name in names.values()]


def _described(topology: mdtraj.Topology | None) -> dict[str, Any] | None:
    """Return a topology as JSON."""
    if topology is None:
        return None
    atoms, bonds = topology.to_dataframe()
    return {"atoms": atoms.to_json(orient="table", index=False), "bonds": np.asarray(bonds, dtype=np.float64).tolist()}


def _rebuilt(described: dict[str, Any] | None) -> mdtraj.Topology | None:
    if described is None:
        return None
    import mdtraj
    import pandas as pd

    atoms = pd.read_json(io.StringIO(described["atoms"]), orient="table")
    return mdtraj.Topology.from_dataframe(atoms, np.array(described["bonds"], dtype=np.float64).reshape(-1, 4))
