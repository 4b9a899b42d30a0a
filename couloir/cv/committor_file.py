"""A learned committor as one JSON file: its layers and the features they take, so that a run file can name it.

Numbers are written in full, so the CV that is read has bit for bit the values of the one that was saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from couloir.cv.learned_committor import CommittorCoordinate
from couloir.errors import ConfigError, CouloirError, DataError, ModelError

if TYPE_CHECKING:
    import mdtraj

_KIND, _VERSION = "committor_coordinate", 1
_SAVE = "write it by CommittorCoordinate.save, as in model.coordinate(features).save(file)"


def write_committor(file: str | Path, cv: CommittorCoordinate, topology: mdtraj.Topology | None = None) -> None:
    """Write a committor to a file, in one step.

    Parameters
    ----------
    topology : of the system it belongs to; the names of its atoms are then checked whenever the file is used.

    Raises
    ------
    DataError : the topology lacks atoms of the features.
    """
    names = None
    if topology is not None:
        _check_number(cv, topology, "the committor")
        names = _names(cv, topology)
    file = Path(file)
    part = file.with_name(f"{file.name}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps({"kind": _KIND, "version": _VERSION, "cv": cv.to_dict(), "atoms": names}), encoding="utf-8")
    part.replace(file)


def read_committor(file: str | Path, topology: mdtraj.Topology | None = None) -> CommittorCoordinate:
    """Read what :func:`write_committor` wrote.

    Parameters
    ----------
    topology : of the system it is to be used for; None checks no atoms.

    Raises
    ------
    ModelError : there is no such file, or it holds something else or is damaged.
    DataError : the committor was learned for other atoms.
    """
    file = Path(file)
    if file.is_dir() and (file / "model.json").exists():
        fix = "load it by FittedCommittor.load, and save model.coordinate(features), which knows its features, by .save(file)"
        raise ModelError(f"{file} is a folder with a model, which does not say what features it takes", fix)
    if not file.is_file():
        raise ModelError(f"there is no file {file}", _SAVE)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind, version, data, names = (content[key] for key in ("kind", "version", "cv", "atoms"))
        if kind != _KIND or not isinstance(data, Mapping):
            raise ValueError(f"it is of the kind {kind!r}")
        if version != _VERSION:
            raise ModelError(f"{file} has format version {version}, this Couloir reads {_VERSION}", "use the Couloir that saved it")
        cv = _made(data)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, CouloirError) as error:
        raise ModelError(f"{file} holds no learned committor that can be read: {error}", _SAVE) from error
    if topology is not None:
        _check_number(cv, topology, str(file))
        if names is not None and names != _names(cv, topology):
            raise DataError(
                f"{file} was learned for other atoms: {_difference(names, _names(cv, topology))}", "use the system it belongs to"
            )
    return cv


def committor_from_config(
    table: Mapping[str, Any], topology: mdtraj.Topology | None, name: str, folder: str | Path = "."
) -> CommittorCoordinate:
    """Return the CV of a table ``[cv.NAME]`` of type ``learned_committor``.

    Parameters
    ----------
    table : ``file`` and, optionally, ``output`` (default: as it was saved).
    topology : None for toy systems, whose committors depend on coordinates only.
    folder : what the path of the file is relative to.

    Raises
    ------
    ConfigError : the file is missing or holds something else, or the committor was learned for another kind of system.
    """
    try:
        saved = read_committor(Path(folder) / table["file"], topology)
        cv = CommittorCoordinate(saved.features, saved.matrices, saved.offsets, table.get("output", saved.output), name)
    except (ModelError, DataError) as error:
        raise ConfigError(error.message, error.fix) from None
    # features of a toy are its coordinates, and those of a molecule never are
    if topology is None and set(cv.features.atoms) - {0}:
        raise ConfigError(f"{table['file']} needs {cv.features}, but this system has only coordinates", "learn one for this system")
    if topology is not None and cv.features.indices:
        raise ConfigError(f"{table['file']} needs {cv.features} of a toy system, but this one has atoms", "learn one for this system")
    return cv


def _made(data: Mapping[str, Any]) -> CommittorCoordinate:
    from couloir.cv.registry import from_dict

    cv = from_dict(data)
    if not isinstance(cv, CommittorCoordinate):
        raise ValueError(f"it holds a CV of type {data.get('type')!r}")
    return cv


def _check_number(cv: CommittorCoordinate, topology: mdtraj.Topology, what: str) -> None:
    last = max(cv.features.atoms, default=-1)
    if last >= topology.n_atoms:
        raise DataError(f"{what} needs atom {last}, but the system has {topology.n_atoms} atoms", "use the system it belongs to")


def _names(cv: CommittorCoordinate, topology: mdtraj.Topology) -> list[str]:
    return [str(topology.atom(i)) for i in cv.features.atoms]


def _difference(saved: list[str], here: list[str]) -> str:
    pairs = [(old, new) for old, new in zip(saved, here, strict=False) if old != new]
    return f"{pairs[0][0]} is {pairs[0][1]} here" if pairs else f"{len(saved)} atoms, {len(here)} here"
