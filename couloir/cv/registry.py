"""CVs as plain data: rebuilding them from dictionaries, and reading the ``[cv.*]`` tables of a run file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.cv.base import CollectiveVariable
from couloir.cv.composite import FunctionOfCVs, LinearCombination, PathCV, path_s, path_z
from couloir.cv.geometric import RMSD, Angle, Coordinate, CoordinationNumber, Dihedral, Distance, RadiusOfGyration
from couloir.cv.selection import select_atoms
from couloir.errors import ConfigError, CouloirError, nearest
from couloir.units import convert

if TYPE_CHECKING:
    import mdtraj


def _diffusion_coordinate(**fields: Any) -> CollectiveVariable:
    from couloir.cv.diffusion_map import DiffusionCoordinate

    return DiffusionCoordinate(**fields)


def _committor_coordinate(**fields: Any) -> CollectiveVariable:
    from couloir.cv.learned_committor import CommittorCoordinate

    return CommittorCoordinate(**fields)


_CLASSES: dict[str, Callable[..., CollectiveVariable]] = {
    "distance": Distance,
    "angle": Angle,
    "dihedral": Dihedral,
    "radius_of_gyration": RadiusOfGyration,
    "rmsd": RMSD,
    "coordination": CoordinationNumber,
    "coordinate": Coordinate,
    "linear": LinearCombination,
    "function": FunctionOfCVs,
    "path_s": lambda **fields: PathCV(component="s", **fields),
    "path_z": lambda **fields: PathCV(component="z", **fields),
    "diffusion_map": _diffusion_coordinate,
    "learned_committor": _committor_coordinate,
}
_BACKBONE = {"phi": Dihedral.phi, "psi": Dihedral.psi}
_CONFIG_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "distance": ({"select"}, set()),
    "angle": ({"select"}, set()),
    "dihedral": ({"select"}, set()),
    "phi": ({"residue"}, set()),
    "psi": ({"residue"}, set()),
    "radius_of_gyration": ({"select"}, {"mass_weighted"}),
    "rmsd": ({"reference"}, {"select"}),
    "coordination": ({"group_a", "group_b", "r0"}, {"n", "m"}),
    "coordinate": ({"index"}, {"period"}),
    "linear": ({"of", "coefficients"}, {"unit", "period"}),
    "function": ({"of", "function"}, {"unit", "period"}),
    "path_s": ({"of", "nodes"}, {"smoothing"}),
    "path_z": ({"of", "nodes"}, {"smoothing"}),
    "diffusion_map": ({"features"}, {"index", "select", "alpha", "bandwidth", "landmarks"}),
    "learned_committor": ({"file"}, {"output"}),
}
"""Required and optional keys of a ``[cv.*]`` table by type."""


def from_dict(data: Mapping[str, Any]) -> CollectiveVariable:
    """Rebuild a CV from what its ``to_dict`` returned.

    Raises
    ------
    ConfigError : the type is unknown, or the entries do not fit it.
    """
    kind = _kind(data, _CLASSES, "a CV")
    entries = {key: _tuples(value) for key, value in data.items() if key not in ("type", "cvs")}
    if "cvs" in data:
        entries["cvs"] = tuple(from_dict(cv) for cv in data["cvs"])
    try:
        return _CLASSES[kind](**entries)
    except TypeError as error:
        raise ConfigError(f"a CV of type {kind!r} cannot be made from the entries {', '.join(sorted(entries))}: {error}") from None


def from_config(
    data: Mapping[str, Any],
    topology: mdtraj.Topology | None,
    name: str,
    *,
    cvs: Mapping[str, CollectiveVariable] | None = None,
    folder: str | Path = ".",
) -> CollectiveVariable:
    """Read the table ``[cv.NAME]`` of a run file.

    Parameters
    ----------
    data : the table: ``type`` and the keys of that type; atoms are named as :func:`couloir.cv.select_atoms` takes them.
    topology : what atoms are looked up in; None for toy systems, which have coordinates only.
    name : the CV's name.
    cvs : CVs read before, by name; those that composites may be made ``of``.
    folder : what the path of a reference structure or of a learned committor is relative to.

    Raises
    ------
    ConfigError : the type or a key is unknown, a key is missing, or a value does not fit.
    SelectionError : a selector matches no atom.
    """
    where = f"[cv.{name}]"
    kind = _kind(data, _CONFIG_KEYS, where)
    check_keys(kind, data, where)
    if kind == "diffusion_map":
        raise ConfigError(
            f"{where} is a diffusion map, which is learned from the unbiased data of [explore] and cannot be made before",
            "use couloir.cv.diffusion_map.fit_from_config once there are data",
        )
    try:
        if kind == "coordinate":
            return Coordinate(int(data["index"]), name, _period(data, "nm"))
        if kind == "learned_committor":
            from couloir.cv.committor_file import committor_from_config

            return committor_from_config(data, topology, name, folder)
        if "of" in _CONFIG_KEYS[kind][0]:
            return _composite(kind, data, name, cvs or {})
        if topology is None:
            raise ConfigError("this system has no atoms, only coordinates", 'use type = "coordinate"')
        return _of_atoms(kind, data, topology, name, Path(folder))
    except CouloirError as error:
        raise type(error)(f"{where}: {error.message}", error.fix) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} of type {kind!r} has a value that does not fit: {error}") from None


def check_keys(kind: str, data: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless a ``[cv.*]`` table of type ``kind`` has the keys of that type and no others."""
    required, optional = _CONFIG_KEYS[kind]
    for key in data:
        if key not in required | optional | {"type"}:
            raise ConfigError(f"{where} has the unknown key {key!r} for type {kind!r}{nearest(key, required | optional)}")
    missing = sorted(required - set(data))
    if missing:
        raise ConfigError(f"{where} of type {kind!r} lacks {', '.join(missing)}", f"add {missing[0]} = ...")


def _of_atoms(kind: str, data: Mapping[str, Any], topology: Any, name: str, folder: Path) -> CollectiveVariable:
    if kind in _BACKBONE:
        return _BACKBONE[kind](topology, data["residue"], name)
    if kind == "coordination":
        a, b = (select_atoms(topology, data[key]) for key in ("group_a", "group_b"))
        return CoordinationNumber(a, b, convert(data["r0"], "nm", "r0"), data.get("n", 6), data.get("m", 12), name)
    atoms = select_atoms(topology, data["select"]) if "select" in data else None
    if kind == "rmsd":
        return RMSD(_reference(folder / data["reference"], topology), atoms, name)
    assert atoms is not None
    if kind == "radius_of_gyration":
        weighted = data.get("mass_weighted", True)
        return RadiusOfGyration(atoms, tuple(topology.atom(i).element.mass for i in atoms) if weighted else None, name)
    return _CLASSES[kind](atoms=atoms, name=name)


def _composite(kind: str, data: Mapping[str, Any], name: str, cvs: Mapping[str, CollectiveVariable]) -> CollectiveVariable:
    for part in data["of"]:
        if part not in cvs:
            raise ConfigError(f"it is made of the unknown CV {part!r}{nearest(part, cvs)}", "define that CV above it")
    parts = tuple(cvs[part] for part in data["of"])
    if kind in ("path_s", "path_z"):
        return (path_s if kind == "path_s" else path_z)(parts, data["nodes"], data.get("smoothing"), name)
    unit = data.get("unit", "")
    if kind == "linear":
        return LinearCombination(parts, data["coefficients"], name, unit, _period(data, unit))
    return FunctionOfCVs(parts, data["function"], name, unit, _period(data, unit))


def _reference(path: Path, topology: Any) -> Any:
    import mdtraj

    if not path.exists():
        raise ConfigError(f"the reference structure {path} does not exist")
    structure = mdtraj.load(str(path))
    if structure.n_atoms != topology.n_atoms:
        raise ConfigError(f"the reference structure {path} has {structure.n_atoms} atoms, the system {topology.n_atoms}")
    return np.asarray(structure.xyz[0], dtype=np.float64)


def _period(data: Mapping[str, Any], unit: str) -> float | None:
    return convert(data["period"], unit, "period") if data.get("period") is not None else None


def _kind(data: Mapping[str, Any], known: Mapping[str, Any], where: str) -> str:
    kind = data.get("type")
    if not isinstance(kind, str):
        raise ConfigError(f"{where} has no type", f"add type = one of {', '.join(sorted(known))}")
    if kind not in known:
        raise ConfigError(f"{where} has the unknown type {kind!r}{nearest(kind, known)}")
    return kind


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
