"""Benchmark results: one JSON file per script, one table on the screen, always as measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One claim and its measurement.

    Attributes
    ----------
    claim : what is claimed, as a README could print it.
    value, standard_error : the measurement; the error is None where there was a single one.
    target : what it must reach, or None for a number that is only reported.
    unit : of value and target.
    met : whether the target is reached; None without a target.
    peer, peer_value : what it was compared with in the same run.
    """

    claim: str
    value: float
    unit: str
    standard_error: float | None = None
    target: float | None = None
    met: bool | None = None
    peer: str = ""
    peer_value: float | None = None


def machine() -> str:
    """Return CPU model and the number of cores this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"


def commit() -> str:
    """Return the short commit that is checked out, marked when couloir/ or benchmarks/ differ from it; empty outside git."""
    root = Path(__file__).parents[1]
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "couloir", "benchmarks/*.py"], cwd=root).returncode
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("-modified" if changed else "")


def scale_parser(description: str | None, scales: Iterable[str] = ("small", "paper"), help: str | None = None) -> argparse.ArgumentParser:
    """Return the command line of a benchmark: ``--scale``, to which it adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=sorted(scales), default="small", help=help)
    return parser


def write_results(name: str, rows: Sequence[Row], *, scale: str, update: bool = False) -> Path:
    """Write ``results/<name>.json``, print the table, and return the path.

    With ``update`` rows that were measured before, by claim, are replaced and all others kept; each row says when and how it was made.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec is not None else f"benchmarks.{name}"
    command = " ".join(["python", "-m", module, *sys.argv[1:]])
    common = {"scale": scale, "command": command, "machine": machine(), "date": datetime.now(UTC).date().isoformat(), "commit": commit()}
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    measured = {row.claim: asdict(row) | common for row in rows}
    written = list(measured.values())
    if update and path.exists():
        before = json.loads(path.read_text())
        written = [measured.pop(row["claim"], row) for row in before] + list(measured.values())
    _print(name, rows, f"{common['machine']}; {common['date']}; {common['commit']}; scale {scale}")
    path.write_text(json.dumps(written, indent=2, default=lambda number: number.item()) + "\n")
    return path


def _print(name: str, rows: Sequence[Row], caption: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, caption=caption)
    for heading in ("claim", "value", "target", "compared with", "met"):
        table.add_column(heading)
    for row in rows:
        value = f"{row.value:.4g}" + ("" if row.standard_error is None else f" ± {row.standard_error:.2g}") + f" {row.unit}"
        peer = row.peer + ("" if row.peer_value is None else f": {row.peer_value:.4g}")
        met = {True: "yes", False: "no", None: ""}[row.met]
        table.add_row(row.claim, value, "" if row.target is None else f"{row.target:g}", peer, met)
    Console().print(table)
