"""A run: one directory that holds what was asked (``run.toml``), what was sampled (``store.db``) and what came of it.

A run can be killed at any instant.  Opening it again with the same run file continues it; settings that only say how
long to sample or what to analyse may change, anything else is refused rather than mixed.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from couloir import __version__
from couloir.config import RunConfig, read_config
from couloir.errors import ConfigError, Finding, StoreError
from couloir.store import Store

_FREE = {"umbrella": {"duration", "until", "max_duration"}, "engine": {"workers"}, "paths": {"n_paths", "committor"},
         "rates": {"relative_error", "n_cycles", "record"}}  # fmt: skip
"""Settings that may change between invocations; so may all of ``[surface]``, and ``[paths]`` and ``[rates]`` may be added."""


class Run:
    """An opened run directory; use :meth:`create` to start or continue one, :meth:`open` to look at one.

    Attributes
    ----------
    path : the directory.
    config : the validated run file.
    store : what was sampled.
    folder : what relative paths in the run file are relative to.
    """

    def __init__(self, path: Path, config: RunConfig, store: Store, folder: Path) -> None:
        self.path, self.config, self.store, self.folder = path, config, store, folder

    @classmethod
    @contextmanager
    def create(cls, file: str | Path, directory: str | Path | None = None) -> Iterator[Run]:
        """Start the run that ``file`` describes, or continue it; the directory is ``FILE`` with the suffix ``.run``.

        Raises
        ------
        ConfigError : the file is invalid, or the directory holds a run that was asked for differently.
        StoreError : the directory cannot be written, or another process is working on it.
        """
        file = Path(file)
        config = read_config(file)
        path = Path(directory) if directory is not None else file.with_suffix(".run")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the run directory {path}: {error.strerror}", "choose another with --directory") from None
        with _locked(path), Store(path / "store.db") as store:
            if store.series():
                _refuse_changes(path, config)
            else:  # nothing was sampled, perhaps because of a mistake that has been corrected since
                store["engine"] = {}
            _write(path / "run.toml", file.read_text(encoding="utf-8"))
            store["folder"] = str(file.resolve().parent)
            yield cls(path, config, store, file.resolve().parent)

    @classmethod
    @contextmanager
    def open(cls, directory: str | Path) -> Iterator[Run]:
        """Open an existing run for reading, also while it is being written.

        Raises
        ------
        StoreError : there is no run in this directory.
        """
        path = Path(directory)
        if path.suffix == ".toml" and path.with_suffix(".run").is_dir():
            path = path.with_suffix(".run")
        if not (path / "run.toml").exists():
            raise StoreError(f"{path} is not a run directory", "give the directory that couloir run made, e.g. alanine.run")
        with Store(path / "store.db", read_only=True) as store:
            yield cls(path, read_config(path / "run.toml"), store, Path(store.get("folder", ".")))

    def log(self, text: str) -> None:
        """Append a line with the time to ``run.log``."""
        with (self.path / "run.log").open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def note_timing(self, stage: str, seconds: float) -> None:
        """Add seconds to what a stage has taken over all invocations."""
        timings = self.store.get("timings", {})
        timings[stage] = timings.get(stage, 0.0) + seconds
        self.store["timings"] = timings

    def note_findings(self, stage: str, findings: Sequence[Finding]) -> None:
        """Keep the findings of a stage, in place of those it had before."""
        noted = self.store.get("findings", {})
        noted[stage] = [[f.code, f.message, f.fix] for f in findings]
        self.store["findings"] = noted

    def findings(self) -> list[Finding]:
        """Return the findings that the stages have kept."""
        return [Finding(*row) for rows in self.store.get("findings", {}).values() for row in rows]

    def __str__(self) -> str:
        return f"Run {self.path}: seed {self.config.seed}, {len(self.store.series())} series stored"


def provenance() -> dict[str, Any]:
    """Return what the numbers depend on besides the run file: versions and machine."""
    packages = ("openmm", "torch", "numpy", "scipy", "numba", "mdtraj", "pymbar", "pydiffmap")
    versions = {name: metadata.version(name) for name in packages}
    return {
        "couloir": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock on the directory; the system drops it when the process dies, however it dies."""
    import fcntl

    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"another process is working on {path}", "wait for it, or look at it with couloir status") from None
        yield


def _refuse_changes(path: Path, config: RunConfig) -> None:
    previous = path / "run.toml"
    if not previous.exists():
        return
    old, new = (c.model_dump(mode="json", exclude={"surface"}, by_alias=True) for c in (read_config(previous), config))
    for table in ("paths", "rates"):  # nothing that was sampled before depends on these
        if old[table] is None:
            old[table] = new[table]
    changed = [
        f"{table}.{key}" if key else table
        for table in old
        for key in (sorted(old[table]) if isinstance(old[table], dict) and isinstance(new[table], dict) else [""])
        if (old[table] if not key else old[table][key]) != (new[table] if not key else new[table].get(key))
        and key not in _FREE.get(table, set())
    ]
    for table in new:
        if isinstance(old[table], dict) and isinstance(new[table], dict):
            changed += [f"{table}.{key}" for key in new[table] if key not in old[table]]
    if changed:
        raise ConfigError(
            f"{path} holds a run that was asked for differently: {', '.join(sorted(set(changed)))} changed",
            "restore the run file, or start a new run with --directory; only durations, paths.n_paths, paths.committor, how well "
            "[rates] are to be known, rates.record and [surface] may change, and [paths] and [rates] may be added",
        )


def _write(file: Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def write_json(file: Path, data: Any) -> None:
    """Write JSON in one step."""
    _write(file, json.dumps(data, indent=1))
