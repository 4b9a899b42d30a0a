"""What was sampled, as files for other programs: DCD or XTC with a PDB, PLUMED COLVAR, WHAM metafile, CSV, PLUMED grids.

Units are Couloir's: nm, ps, kJ/mol, radians.  Every file is written beside its place and moved there in one step, so an
export over an older one never leaves half a file.  Toy systems have no topology: their frames go to npz files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import FreeEnergySurface
from couloir.cv.bias import Bias, bias_from_dict
from couloir.errors import ConfigError, DataError, StoreError, nearest
from couloir.run import Run
from couloir.store import Arrays
from couloir.trajectory import Array

FORMATS = ("dcd", "xtc")


def export_run(run: Run, to: Path | None = None, format: str = "dcd") -> list[Path]:
    """Write everything a run holds so far; returns the files written.

    Parameters
    ----------
    to : folder; default ``RUN/export``.  Files of the same name are replaced.
    format : ``"dcd"`` or ``"xtc"``, for molecules.

    Raises
    ------
    ConfigError : the format is unknown.
    DataError : nothing has been sampled yet.
    StoreError : the folder cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown trajectory format {format!r}{nearest(format, FORMATS)}")
    plans = {name: run.store.get(f"{name}/plan") for name in ("explore", "umbrella")}
    sampled = {name: plan for name, plan in plans.items() if plan is not None and run.store.series(f"{name}/")}
    if not sampled and not run.store.count("paths/steps"):
        raise DataError(f"{run.path} holds no samples yet", "look at it with couloir status")
    folder = run.path / "export" if to is None else Path(to)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _Exporter(run, folder, format).everything(sampled)
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror or error}", "choose another folder with --to") from None


class _Exporter:
    def __init__(self, run: Run, folder: Path, format: str) -> None:
        from couloir.build import build_engine, stored_cvs

        self.run, self.folder, self.format = run, folder, format
        self.engine, self.start = build_engine(run)
        engine = self.engine
        self.topology: Any = engine.topology
        self.cvs = stored_cvs(run, engine.topology)
        self.written: list[Path] = []

    def everything(self, plans: dict[str, dict[str, Any]]) -> list[Path]:
        if self.topology is not None:
            self.write("topology.pdb", lambda file: self.trajectory(self.start.positions[None], self.start.box).save_pdb(str(file)))
        windows: dict[str, tuple[str, Bias]] = {}
        for name, plan in plans.items():
            for walker, data in zip(plan["walkers"], plan["biases"], strict=True):
                chunks = list(self.run.store.chunks(f"{name}/{walker}"))
                if not chunks:
                    continue
                stem = name if len(plan["walkers"]) == 1 else f"{name}_{walker.replace('/', '_')}"
                bias = None if data is None else bias_from_dict(data)
                self.frames(stem, chunks)
                self.colvar(stem, plan, chunks, bias)
                if bias is not None:
                    windows[walker] = (stem, bias)
        if windows:
            self.write("umbrella.meta", lambda file: file.write_text("".join(_metafile(list(windows.values())))))
        self.paths()
        self.results()
        return self.written

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Let ``save`` write a temporary file (same suffix), then move it into its place."""
        temporary, place = self.folder / f".partial-{name}", self.folder / name
        try:
            save(temporary)
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
        self.written.append(place)

    def trajectory(self, positions: Array, box: Array | None) -> Any:
        import mdtraj

        out = mdtraj.Trajectory(positions, self.topology)
        if box is not None:  # at constant volume every frame has the same one
            out.unitcell_vectors = np.repeat(np.asarray(box)[None], len(out), axis=0)
        return out

    def frames(self, stem: str, chunks: list[Arrays]) -> None:
        positions = np.concatenate([chunk["positions"] for chunk in chunks])
        if len(positions) == 0:
            return
        if self.topology is None:
            self.write(f"{stem}.npz", lambda file: np.savez_compressed(file, positions=positions))
        else:
            out = self.trajectory(positions, chunks[-1].get("last_box"))
            self.write(f"{stem}.{self.format}", lambda file: out.save(str(file)))

    def colvar(self, stem: str, plan: dict[str, Any], chunks: list[Arrays], bias: Bias | None) -> None:
        names = plan["record"]
        values = np.concatenate([chunk["values"] for chunk in chunks])
        time = plan["record_steps"] * plan["time_step"] * np.arange(1, len(values) + 1)
        columns = [time, *values.T, np.concatenate([chunk["potential"] for chunk in chunks])]
        fields = ["time", *names, "potential"]
        if bias is not None:
            columns.append(bias.energy(values[:, [names.index(name) for name in bias.names]]))
            fields.append("umbrella.bias")
        known = [(name, self.cvs[name]) for name in names if name in self.cvs]
        lines = ["#! FIELDS " + " ".join(fields)]
        for name, cv in known:
            if cv.period is not None:
                lines += [f"#! SET min_{name} {-cv.period / 2:.9g}", f"#! SET max_{name} {cv.period / 2:.9g}"]
        units = ", ".join(f"{name} {cv.unit or '1'}" for name, cv in known)
        lines.append(f"# units: time ps, potential (without bias) and bias kJ/mol, {units}")

        def save(file: Path) -> None:
            with file.open("w") as out:
                out.write("\n".join(lines) + "\n")
                np.savetxt(out, np.stack(columns, axis=1), fmt="%.9g")

        self.write(f"{stem}.colvar", save)

    def paths(self) -> None:
        """Write decorrelated paths into the folder ``paths``, or, where there is no topology, all of them to one npz file."""
        from couloir.paths_stage import stored_paths

        found = stored_paths(self.run, self.engine)
        if found is None:
            return
        if self.topology is None:
            self.write("paths.npz", found.save)
        elif found.decorrelated.any():
            self.written += found.export(self.folder / "paths")

    def results(self) -> None:
        results = self.run.path / "results"
        for file in sorted(results.glob("free_energy_*.npz")):
            surface = FreeEnergySurface.load(file)
            self.write(f"{file.stem}.csv", surface.to_csv)
            self.write(f"{file.stem}.grid", surface.to_plumed_grid)
        if (results / "samples.npz").exists():
            table = BiasedSamples.load(results / "samples.npz").to_dataframe()
            self.write("samples.csv", lambda file: table.to_csv(file, index=False))


def _metafile(windows: list[tuple[str, Bias]]) -> Iterator[str]:
    """Yield the lines of a metafile: the series of a walker, then centres and force constants, bias = 0.5 k (s - c)^2."""
    yield "# path, centres, force constants in kJ/mol per unit of the CV squared: " + " ".join(windows[0][1].names) + "\n"
    for stem, bias in windows:
        data = bias.to_dict()
        numbers = [*data["centers"], *data["force_constants"]]
        yield f"{stem}.colvar " + " ".join(f"{x:.9g}" for x in numbers) + "\n"
