"""Files of path ensembles: one archive that comes back bit for bit, and trajectories for other programs."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis.samples import IntArray
from couloir.errors import DataError, Finding
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    import mdtraj

    from couloir.analysis.path_ensemble import PathEnsemble

FORMAT = "couloir-paths-1"
ROWS = ("chain", "step", "multiplicity", "decorrelated", "shooting")
"""Arrays of an ensemble with one entry per path."""
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading an archive raises that is damaged or holds something else."""
_FRAMES = ("positions", "velocities", "boxes")
_PART = ".part"


def save(paths: PathEnsemble, file: str | Path) -> None:
    """Write an ensemble to one npz file (no pickles); a file that is there stays whole until the new one is complete."""
    meta = {
        "format": FORMAT, "stride": paths.stride, "force_evaluations": paths.force_evaluations, "outcomes": list(paths.outcomes),
        "findings": [asdict(finding) for finding in paths.findings], "topology": described(paths.paths[0].topology),
    }  # fmt: skip
    arrays: dict[str, Any] = frames_of(paths.paths) | {name: getattr(paths, name) for name in ROWS}
    arrays |= {f"outcome_{i}": np.asarray(counts) for i, counts in enumerate(paths.outcomes.values())}
    write_archive(file, meta, {"lengths": paths.lengths, **arrays})


def load(file: str | Path) -> dict[str, Any]:
    """Return the fields of the ensemble that :func:`save` wrote; raises DataError when the file is something else."""
    try:
        with np.load(file, allow_pickle=False) as data:
            meta = read_meta(data, file, FORMAT)
            return {
                "paths": paths_from(data, data["lengths"], meta),
                **{name: data[name] for name in ROWS},
                "force_evaluations": meta["force_evaluations"],
                "outcomes": {name: data[f"outcome_{i}"] for i, name in enumerate(meta["outcomes"])},
                "findings": tuple(Finding(**finding) for finding in meta["findings"]),
            }
    except DAMAGED as error:
        raise DataError(f"{file} does not hold saved paths: {error}") from error


def write_archive(file: str | Path, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write arrays and what JSON can tell to one npz file; a file that is there stays whole until the new one is complete."""
    target = Path(file)
    part = target.with_name(target.name + _PART)
    with part.open("wb") as out:
        np.savez_compressed(out, meta=np.array(json.dumps(meta)), **arrays)
    part.replace(target)


def read_meta(data: Mapping[str, Any], file: str | Path, expected: str) -> dict[str, Any]:
    """Return what :func:`write_archive` was told beside arrays; raises DataError when the archive is of another format."""
    meta: dict[str, Any] = json.loads(str(data["meta"]))
    if meta["format"] != expected:
        raise DataError(f"{file} holds {meta['format']!r}, expected {expected!r}")
    return meta


def frames_of(paths: Sequence[Trajectory]) -> dict[str, Array]:
    """Return positions, and velocities and boxes where there are any, of all paths one after the other.

    Raises
    ------
    DataError : some paths have velocities or boxes and others have none.
    """
    held = [name for name in _FRAMES if getattr(paths[0], name) is not None]
    if any((getattr(path, name) is None) == (name in held) for path in paths for name in _FRAMES):
        raise DataError("some paths have velocities or boxes and others have none", "save those of one run")
    return {name: np.concatenate([getattr(path, name) for path in paths]) for name in held}


def paths_from(data: Mapping[str, Any], lengths: IntArray, meta: Mapping[str, Any]) -> tuple[Trajectory, ...]:
    """Return paths of ``lengths`` from their frames one after the other, with the stride and the topology in ``meta``."""
    frames = {name: np.split(data[name], np.cumsum(lengths)[:-1]) for name in _FRAMES if name in data}
    topology = _rebuilt(meta["topology"])
    return tuple(
        Trajectory(stride=meta["stride"], topology=topology, **dict(zip(frames, parts, strict=True)))
        for parts in zip(*frames.values(), strict=True)
    )


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


def described(topology: mdtraj.Topology | None) -> dict[str, Any] | None:
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
