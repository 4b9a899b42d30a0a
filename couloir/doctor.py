"""What is installed, which platforms and devices work, and how fast: everything a bug report should begin with."""

from __future__ import annotations

import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from couloir import __version__
from couloir.errors import CouloirError

if TYPE_CHECKING:
    from rich.table import Table

_PACKAGES = (
    "numpy", "scipy", "pandas", "numba", "openmm", "mdtraj", "torch", "safetensors", "loky", "pymbar", "pydiffmap", "matplotlib",
    "pydantic",
)  # fmt: skip
_TIME_STEP = 0.002
_SECONDS = 2.0


def examine() -> list[Table]:
    """Return tables of versions, of the machine, and of OpenMM platforms with their speed on alanine dipeptide; takes seconds."""
    return [_versions(), _machine(), *(_speeds(solvent) for solvent in ("vacuum", "obc2"))]


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    return table


def _versions() -> Table:
    table = _table("Installed", "package", "version")
    table.add_row("couloir", __version__)
    table.add_row("python", platform.python_version())
    for name in _PACKAGES:
        try:
            table.add_row(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            table.add_row(name, f"missing: pip install {name}")
    return table


def _machine() -> Table:
    from couloir.sampling._pool import available_cores

    cores, there = available_cores(), os.cpu_count() or 1
    limited = "" if cores == there else f" (of {there}; the others are not given to this process)"
    table = _table("Machine", "what", "found")
    table.add_row("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    table.add_row("cores", f"{cores}{limited}")
    table.add_row("memory", _memory())
    table.add_row("torch device", _torch_device())
    for name, folder in (("this folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        table.add_row(name, _writable(folder))
    return table


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{size / 2**30:.1f} GiB"


def _torch_device() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"torch does not load ({error}): reinstall it, pip install --force-reinstall torch"
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda is None else " (torch is built for CUDA and finds no device: check the driver with nvidia-smi)"
        return f"cpu, {torch.get_num_threads()} threads{built}"
    return f"cuda: {torch.cuda.get_device_name()}"


def _writable(folder: Path) -> str:
    """Say whether a store can be kept in a folder: it is written, synchronized and read back."""
    import numpy as np

    from couloir.store import Store

    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".couloir-doctor-") as inside:
            with Store(Path(inside) / "store.db") as store:
                store.append({"test": {"x": np.arange(3)}})
            with Store(Path(inside) / "store.db", read_only=True) as store:
                store.chunk("test", 0)
    except (OSError, CouloirError) as error:
        return f"{folder}: cannot keep a store here ({error}); run on a local disk, or choose a folder with --directory"
    return f"{folder}: writable"


def _speeds(solvent: str) -> Table:
    from couloir.sampling import systems
    from couloir.sampling.platforms import benchmark_platforms

    table = _table(
        f"OpenMM on alanine dipeptide ({solvent}), 22 atoms, 2 fs", "platform", "steps/s", "ns/day", "all cores, ns/day", "problem"
    )
    for speed in benchmark_platforms(systems.alanine_dipeptide(solvent=solvent), time_step=_TIME_STEP, seconds=_SECONDS):  # type: ignore[arg-type]
        if speed.steps_per_second > 0:
            rates = (f"{speed.steps_per_second:,.0f}", *(f"{_ns_per_day(r):,.0f}" for r in (speed.steps_per_second, speed.aggregate)))
            table.add_row(speed.name, *rates, "")
        else:
            table.add_row(speed.name, "", "", "", _explain(speed.name, speed.problem))
    return table


def _ns_per_day(steps_per_second: float) -> float:
    return steps_per_second * _TIME_STEP * 1e-3 * 86400


def _explain(name: str, problem: str) -> str:
    fixes = {
        "CUDA": "check the driver with nvidia-smi, and install openmm[cuda12] to match it",
        "OpenCL": "install the OpenCL driver of your device, or ignore this platform",
        "HIP": "install ROCm and openmm[hip6], or ignore this platform",
    }
    return problem + (f" -> {fixes[name]}" if name in fixes else "")
