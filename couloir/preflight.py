"""What can be wrong with a run file in view of its system, found before the first step of dynamics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from couloir.build import stand_in
from couloir.config import PathsTable, RatesTable, RunConfig
from couloir.cv import CollectiveVariable, CommittorCoordinate, Region
from couloir.cv.geometric import Coordinate
from couloir.errors import ConfigError, CouloirError, nearest
from couloir.paths_stage import STRIDE_STEPS
from couloir.rates_stage import limits_of
from couloir.sampling.engine import steps
from couloir.sampling.guides import place_in
from couloir.shooting import move_of


def check(config: RunConfig, engine: Any, cvs: Mapping[str, CollectiveVariable]) -> None:
    """Check strides, surfaces and basins of a run file against its engine and CVs.

    Raises
    ------
    ConfigError : a stride is no multiple of the time step, a coordinate does not exist, a surface is along CVs that are not
        recorded, a basin or a state cannot be read, or files of frames are given for a system without atoms.
    """
    for where, stride in (
        ("explore.stride", config.explore.stride if config.explore is not None else None),
        ("umbrella.record_stride", config.umbrella.record_stride if config.umbrella is not None else None),
        ("paths.stride", config.paths.stride if config.paths is not None else None),
    ):
        if stride is not None:
            _naming(where, steps, stride, engine.time_step, where)
    if config.explore is not None and config.explore.files and engine.topology is None:
        raise ConfigError("explore.files needs a system with atoms; this one has only coordinates", "remove explore.files")
    n_dim = 3 if engine.topology is not None else engine.potential.n_dim
    for name, cv in cvs.items():
        if isinstance(cv, Coordinate) and cv.index >= n_dim:
            raise ConfigError(f"[cv.{name}]: index = {cv.index}, but the system has {n_dim} coordinates", f"use 0 ... {n_dim - 1}")
        if isinstance(cv, CommittorCoordinate) and max(cv.features.indices, default=0) >= n_dim:
            raise ConfigError(
                f"[cv.{name}] needs coordinate {max(cv.features.indices)}, but the system has {n_dim} coordinates",
                "use a committor that was learned for this system",
            )
    # What a run learns later is known by name only.
    everything = {name: cvs.get(name, stand_in(name)) for name in config.cv}
    if config.umbrella is not None:
        _check_surfaces(config, everything)
    if config.paths is not None:
        _check_paths(config.paths, everything, engine)
    if config.paths is not None and config.rates is not None:
        _check_rates(config.paths, config.rates, everything, engine)


def check_model(representation: Any, labels: Sequence[CollectiveVariable]) -> None:
    """Check that a model has something to generate: a vector of coordinates that are not all labels.

    Raises
    ------
    ConfigError : every coordinate is a label.
    """
    periods = getattr(representation, "periods", None)
    if periods is not None and 0 < len(periods) <= len(labels):
        raise ConfigError(
            f"the labels {', '.join(cv.name for cv in labels)} are all the coordinates there are, so a model has nothing to generate",
            f'set umbrella.seeding = "dragged", or label the model with fewer: model.label = "{labels[0].name}"',
        )


def _check_surfaces(config: RunConfig, cvs: Mapping[str, CollectiveVariable]) -> None:
    umbrella = config.umbrella
    assert umbrella is not None
    recorded = {*umbrella.along, *(cvs if umbrella.record is None else umbrella.record)}
    for entry in config.surface.along:
        names = [entry] if isinstance(entry, str) else list(entry)
        if not 1 <= len(set(names)) == len(names) <= 2:
            raise ConfigError(f"surface.along has the entry {names}", "give one CV or a pair of two different ones")
        for name in names:
            if name not in recorded:
                raise ConfigError(
                    f"surface.along names {name!r}, which is not recorded{nearest(name, recorded)}", "add it to umbrella.record"
                )
    for name, text in config.surface.basins.items():
        _naming(f"surface.basins.{name}", Region.parse, text, cvs)


def _check_paths(table: PathsTable, cvs: Mapping[str, CollectiveVariable], engine: Any) -> None:
    a, b = (_naming(f"paths.{key}", Region.parse, text, cvs) for key, text in (("from", table.region_a), ("to", table.region_b)))
    for key, region in (("from", a), ("to", b)):
        _naming(f"paths.{key}", place_in, region, region, {cv.name: 0.0 for cv in region.cvs})
    move_of(table, cvs)
    if table.kT is not None and engine.topology is not None:
        raise ConfigError("paths.kT belongs to toy systems", "set paths.temperature for a molecule")
    if table.temperature is not None and engine.topology is None:
        raise ConfigError("paths.temperature belongs to molecules", "set paths.kT for a toy system")
    if table.max_duration is not None and table.stride is not None and table.max_duration < 4 * table.stride:
        raise ConfigError(
            f"paths.max_duration = {table.max_duration:g} ps holds no path of frames every {table.stride:g} ps",
            "raise it, or lower the stride",
        )
    if table.first_path == "inpainting" and engine.topology is None and any(p is not None for p in engine.potential.periods):
        raise ConfigError('paths.first_path = "inpainting" cannot generate coordinates with a period', 'set first_path = "steered"')


def _check_rates(paths: PathsTable, rates: RatesTable, cvs: Mapping[str, CollectiveVariable], engine: Any) -> None:
    texts = paths.region_a, paths.region_b
    limits_of(Region.parse(texts[0], cvs), Region.parse(texts[1], cvs), cvs[rates.along], texts)
    stride = paths.stride or STRIDE_STEPS * engine.time_step
    if rates.max_duration is not None and rates.max_duration < 4 * stride:
        raise ConfigError(
            f"rates.max_duration = {rates.max_duration:g} ps holds no path of frames every {stride:g} ps",
            "raise it, or lower paths.stride",
        )


def _naming(where: str, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except CouloirError as error:
        message = error.message if error.message.startswith(where) else f"{where}: {error.message}"
        raise ConfigError(message, error.fix) from None
