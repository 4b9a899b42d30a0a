"""The run file: what ``couloir run FILE.toml`` is asked to do, validated before anything is computed.

Every mistake becomes a :class:`ConfigError` that names the file, the key and the value, says what was expected and, for
a misspelt key or name, the nearest one that exists.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from couloir.errors import ConfigError, CouloirError, nearest
from couloir.units import convert


def _unit(unit: str, *, positive: bool = True) -> Any:
    def read(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError(f'expected a number or text such as "1 {unit}"')
        try:
            number = convert(value, unit)
        except CouloirError as error:
            raise ValueError(str(error).removeprefix(f"value = {value!r} ")) from None
        if positive and number <= 0:
            raise ValueError("expected a positive value")
        return number

    return BeforeValidator(read)


Time = Annotated[float, _unit("ps")]
Temperature = Annotated[float, _unit("K")]
Friction = Annotated[float, _unit("1/ps")]
Length = Annotated[float, _unit("nm")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SystemTable(_Table):
    """``[system]``: exactly one of ``name``, ``pdb``, ``prmtop``, ``top``."""

    name: str | None = None
    solvent: Literal["vacuum", "obc2", "tip3p"] | None = None
    parameters: dict[str, float] = Field(default_factory=dict)
    pdb: Path | None = None
    force_field: tuple[str, ...] = ("amber14-all.xml", "implicit/obc2.xml")
    add_hydrogens: bool = False
    prmtop: Path | None = None
    inpcrd: Path | None = None
    top: Path | None = None
    gro: Path | None = None
    implicit_solvent: Literal["obc2"] | None = None
    constraints: Literal["none", "HBonds", "AllBonds", "HAngles"] = "HBonds"
    nonbonded_cutoff: Length | None = None
    hydrogen_mass: Annotated[float, _unit("amu")] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SystemTable:
        given = [key for key in ("name", "pdb", "prmtop", "top") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of name, pdb, prmtop, top (found {', '.join(given) or 'none'})")
        for key in ("constraints", "nonbonded_cutoff", "hydrogen_mass"):
            if self.name is not None and key in self.model_fields_set:
                raise ValueError(f"{key} belongs to a system from a file: {self.name} comes with its own; give pdb, prmtop or top instead")
        for key, partner in (("prmtop", "inpcrd"), ("top", "gro")):
            if (getattr(self, key) is None) != (getattr(self, partner) is None):
                raise ValueError(f"{key} and {partner} belong together: give both")
        return self


class EngineTable(_Table):
    """``[engine]``: thermostat, time step, hardware."""

    temperature: Temperature = 300.0
    time_step: Time | None = None
    friction: Friction | None = None
    kT: Annotated[float, Field(gt=0)] | None = None
    platform: str = "auto"
    workers: PositiveInt | None = None


class ExploreTable(_Table):
    """``[explore]``: unbiased dynamics that the model learns from."""

    duration: Time
    stride: Time | None = None
    walkers: PositiveInt = 1
    minimize: bool = True
    files: tuple[Path, ...] = ()


class ModelTable(_Table):
    """``[model]``: the conditional score model."""

    type: Literal["conditional_sgm"] = "conditional_sgm"
    label: str | None = None
    representation: Literal["internal", "cartesian", "vector"] | None = None
    steps: PositiveInt | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    width: PositiveInt | None = None
    depth: PositiveInt | None = None


class UmbrellaTable(_Table):
    """``[umbrella]``: windows along one or two CVs."""

    along: tuple[str, ...]
    windows: tuple[PositiveInt, ...] = (36,)
    range: tuple[tuple[float | str, float | str], ...] | None = None
    force_constant: float | str | tuple[float | str, ...] | None = None
    overlap: Annotated[float, Field(gt=0.03, lt=0.45)] | None = None
    seeding: Literal["model", "dragged"] = "model"
    seeds_per_window: PositiveInt = 2
    frontier: bool = False
    exchange: bool = True
    duration: Time | None = None
    until: str | None = None
    max_duration: Time | None = None
    allocation: Literal["adaptive", "uniform"] = "adaptive"
    record: tuple[str, ...] | None = None
    record_stride: Time | None = None

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = dict(data)
            for key in ("along", "windows", "record"):
                if key in data and not isinstance(data[key], list):
                    data[key] = [data[key]]
            if isinstance(data.get("range"), list) and data["range"] and not isinstance(data["range"][0], list):
                data["range"] = [data["range"]]
        return data

    @model_validator(mode="after")
    def _one_end(self) -> UmbrellaTable:
        if (self.duration is None) == (self.until is None):
            raise ValueError('give either duration = "400 ps" or until = "0.25 kT"')
        unused = {"max_duration", "allocation"} & self.model_fields_set
        if self.until is None and unused:
            raise ValueError(f"{' and '.join(sorted(unused))} belong to until, not to duration: leave them out, or ask for until")
        if self.until is not None and convert(self.until, "kT", "until") <= 0:
            raise ValueError(f'until = {self.until!r} is not positive: give an error to reach, such as "0.25 kT"')
        return self

    @model_validator(mode="after")
    def _one_way_to_place(self) -> UmbrellaTable:
        given = [key for key in ("windows", "force_constant") if key in self.model_fields_set]
        if self.overlap is not None and given:
            raise ValueError(
                f"overlap = {self.overlap:g} has windows placed by sampling, and {' and '.join(given)} says where they are: leave out "
                f"{' and '.join(given)}, or leave out overlap"
            )
        return self

    @model_validator(mode="after")
    def _one_per_cv(self) -> UmbrellaTable:
        n, n_ranges = len(self.along), len(self.along) if self.range is None else len(self.range)
        if len(self.windows) not in (1, n) or n_ranges != n:
            raise ValueError(f"umbrella.along has {n} CVs, windows {len(self.windows)} entries, range {n_ranges}: give one per CV")
        return self


class PathModelTable(_Table):
    """``[paths.model]``: the model of trajectory snippets that ``first_path = "inpainting"`` trains."""

    duration: Time | None = None
    n_frames: Annotated[int, Field(ge=4)] = 64
    steps: PositiveInt | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    width: PositiveInt | None = None


class SelectTable(_Table):
    """``[paths.select]``: where along a CV paths are shot from rather."""

    cv: str
    center: float | str
    width: float | str
    shape: Literal["gaussian", "lorentzian"] = "lorentzian"


class PathsTable(_Table):
    """``[paths]``: reactive paths from one region to another."""

    region_a: str = Field(alias="from")
    region_b: str = Field(alias="to")
    n_paths: PositiveInt
    n_chains: PositiveInt = 4
    committor: PositiveInt | None = None
    move: Literal["one-way", "two-way", "aimless", "spring"] = "one-way"
    reach: PositiveInt | None = None
    stiffness: Annotated[float, Field(gt=0)] | None = None
    select: SelectTable | None = None
    stride: Time | None = None
    max_duration: Time | None = None
    first_path: Literal["steered", "high_temperature", "inpainting", "file"] = "steered"
    files: tuple[Path, ...] = ()
    temperature: Temperature | None = None
    kT: Annotated[float, Field(gt=0)] | None = None
    model: PathModelTable | None = None

    @model_validator(mode="after")
    def _what_belongs_together(self) -> PathsTable:
        owners = {"files": "file", "temperature": "high_temperature", "kT": "high_temperature", "model": "inpainting"}
        for key, owner in owners.items():
            if key in self.model_fields_set and self.first_path != owner:
                raise ValueError(f'{key} belongs to first_path = "{owner}", not to "{self.first_path}": leave it out, or change first_path')
        for key, moves in (("reach", ("aimless", "spring")), ("stiffness", ("spring",))):
            if key in self.model_fields_set and self.move not in moves:
                text = " or ".join(f'"{move}"' for move in moves)
                raise ValueError(f'{key} belongs to move = {text}, not to "{self.move}": leave it out, or change move')
        if self.first_path == "file" and not self.files:
            raise ValueError('first_path = "file" needs files = ["path.dcd"]')
        return self


class RatesTable(_Table):
    """``[rates]``: rates from A to B and back, by interface sampling that starts from the paths of ``[paths]``."""

    along: str
    relative_error: Annotated[float, Field(gt=0)] = 0.2
    n_cycles: PositiveInt = 20_000
    n_sets: PositiveInt = 4
    record: tuple[str, ...] | None = None
    max_duration: Time | None = None

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        return {**data, "record": [data["record"]]} if isinstance(data, dict) and isinstance(data.get("record"), str) else data


class SurfaceTable(_Table):
    """``[surface]``: which surfaces, by which estimator; basins by name for barriers and differences."""

    along: tuple[str | tuple[str, ...], ...] = ()
    estimator: Literal["wham", "mbar"] = "wham"
    method: Literal["histogram", "kde", "spline"] = "histogram"
    bins: PositiveInt | None = None
    bootstrap: PositiveInt = 100
    basins: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        return {**data, "along": [data["along"]]} if isinstance(data, dict) and isinstance(data.get("along"), str) else data

    @model_validator(mode="after")
    def _one_dimension(self) -> SurfaceTable:
        planes = [entry for entry in self.along if not isinstance(entry, str) and len(entry) > 1]
        if self.method == "spline" and planes:
            raise ValueError(f'method = "spline" is for one CV, not {list(planes[0])}; use "histogram" or "kde"')
        return self


def _named(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for name in tables:
        if not name.isidentifier():
            raise ValueError(f"the CV name {name!r} must be a plain identifier such as phi or d1")
    return tables


class RunConfig(_Table):
    """A whole run file."""

    seed: Annotated[int, Field(ge=0)] = 1
    system: SystemTable
    engine: EngineTable = EngineTable()
    cv: Annotated[dict[str, dict[str, Any]], AfterValidator(_named)]
    explore: ExploreTable | None = None
    model: ModelTable | None = None
    umbrella: UmbrellaTable | None = None
    paths: PathsTable | None = None
    rates: RatesTable | None = None
    surface: SurfaceTable = SurfaceTable()

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        for where, name in self._cv_references():
            if name not in self.cv:
                raise ValueError(f"{where} names the unknown CV {name!r}{nearest(name, self.cv)}")
        if self.rates is not None and self.paths is None:
            raise ValueError("[rates] starts from reactive paths, and there is no [paths]: add it, with from, to and n_paths")
        if self.umbrella is None and self.explore is None and self.paths is None:
            raise ValueError("there is nothing to do: add [umbrella], [paths], or [explore] for unbiased dynamics alone")
        inpainting = self.paths is not None and self.paths.first_path == "inpainting"
        if inpainting and self.explore is None and (self.paths.model is None or self.paths.model.duration is None):  # type: ignore[union-attr]
            raise ValueError(
                'paths.first_path = "inpainting" needs dynamics to learn from: give paths.model.duration, or add [explore], '
                'or set first_path = "steered"'
            )
        if self.umbrella is not None and self.umbrella.seeding == "model" and self.explore is None:
            raise ValueError('umbrella.seeding = "model" needs data to learn from: add [explore], or set seeding = "dragged"')
        if self.umbrella is not None and self.umbrella.frontier and self.umbrella.seeding != "model":
            raise ValueError('umbrella.frontier extends a model, and seeding = "dragged" uses none: set seeding = "model", or leave it out')
        label = self.model.label if self.model is not None else None
        if self.umbrella is not None and self.umbrella.seeding == "model" and label is not None and label not in self.umbrella.along:
            raise ValueError(
                f"model.label = {label!r} is not among umbrella.along = {list(self.umbrella.along)}: a model that seeds windows "
                "must be labelled by a CV that they run along"
            )
        return self

    def _cv_references(self) -> list[tuple[str, str]]:
        out = []
        if self.umbrella is not None:
            out += [("umbrella.along", name) for name in self.umbrella.along]
            out += [("umbrella.record", name) for name in self.umbrella.record or ()]
        if self.model is not None and self.model.label is not None:
            out.append(("model.label", self.model.label))
        if self.rates is not None:
            out += [("rates.along", self.rates.along), *(("rates.record", name) for name in self.rates.record or ())]
        for entry in self.surface.along:
            out += [("surface.along", name) for name in ([entry] if isinstance(entry, str) else entry)]
        return out


def read_config(path: str | Path) -> RunConfig:
    """Read and validate a run file.

    Raises
    ------
    ConfigError : the file is missing, is not TOML, or asks for something that does not exist or fit together.
    """
    file = Path(path)
    if not file.exists():
        others = [p.name for p in file.parent.glob("*.toml")] if file.parent.is_dir() else []
        raise ConfigError(f"no such run file: {file}{nearest(file.name, others)}", "couloir init MOLECULE.pdb writes one to start from")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}", 'text needs quotes: temperature = "300 K"') from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    return parse_config(data, str(file))


def parse_config(data: dict[str, Any], source: str = "the run file") -> RunConfig:
    """Validate a run file given as nested dictionaries; ``source`` is what errors call it."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        problems = [_explain(problem, data) for problem in error.errors()]
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"{source} has {len(problems)} mistake{'s' * (len(problems) > 1)}:{lines}") from None


def _explain(problem: Any, data: dict[str, Any]) -> str:
    location = [part for part in problem["loc"] if isinstance(part, (str, int))]
    table, where = _table_of(location), _where(location)
    if problem["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in table.model_fields.items()] if table is not None else []
        return f"unknown key {where}{nearest(str(location[-1]), known)}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        choices = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{where} = {problem['input']!r}: expected one of {', '.join(choices)}" + _guess(problem["input"], choices)
    value = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    return f"{where}{value}: {message}" if where else message


def _guess(value: Any, choices: Sequence[str]) -> str:
    hint = nearest(str(value), choices)
    return hint if "did you mean" in hint else ""


def _where(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location)


def _table_of(location: Sequence[str | int]) -> type[BaseModel] | None:
    if len(location) <= 1:
        return RunConfig
    tables: dict[str, type[BaseModel]] = {
        "system": SystemTable, "engine": EngineTable, "explore": ExploreTable, "model": ModelTable,
        "umbrella": UmbrellaTable, "paths": PathsTable, "rates": RatesTable, "surface": SurfaceTable,
    }  # fmt: skip
    if list(location[:2]) == ["paths", "model"] and len(location) > 2:
        return PathModelTable
    return tables.get(str(location[0]))
