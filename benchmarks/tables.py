"""The benchmark tables in README.md and docs/benchmarks.md, made from ``benchmarks/results/*.json``.

    python -m benchmarks.tables            rewrite what stands between the markers
    python -m benchmarks.tables --list     name the benchmarks of `make bench` (one a line)

Numbers in a page are never typed: a test compares the committed pages with what this script makes of the results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
PAGES = {"README.md": False, "docs/benchmarks.md": True}
"""Pages with tables, and whether they show everything, or headlines, what was missed, and how many targets were met."""
HEADLINES = (
    "WHAM: RMSE of F(phi) below 8 kT",
    "demonstration: time",
    "WHAM is faster than MBAR from pymbar",
    "MBAR as it comes is faster",
    "WHAM streams",
    "umbrella window, CV and energy",
    "hidden barrier: time to RMSE 0.3 kT",
    "phi, adaptive: RMSE",
    "network calls saved",
    "assisted: RMSE",
    "force evaluations to 0.3 kT, well-tempered metadynamics",
    "total crossing probability at kT = 0.07",
    "wrong model (0.89 on the right), (b) model as a state: weight",
    "wrong model (0.89 on the right), (c) generative moves: weight",
)
"""How the claims begin that a first page shows."""
NOT_BENCHMARKS = {"__init__", "alone", "dynamics_pictures", "results", "tables"}
HOURS = {"alanine_rate", "assisted_alanine", "assisted_psi", "dynamics_studies"}
"""Benchmarks that take an hour or more even when they are small; ``make studies`` runs them."""


def names() -> list[str]:
    """Return the benchmark scripts that ``make bench`` runs, in alphabetical order."""
    return sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in NOT_BENCHMARKS | HOURS)


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every result file by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def render(results: dict[str, list[dict[str, Any]]], everything: bool) -> str:
    """Return the tables in Markdown: all rows, each file apart; or headlines, counts of targets, and what was missed."""
    if everything:
        parts = [f"### {name}\n\n{_origin(rows[0])}\n\n{_table(rows)}" for name, rows in results.items() if rows]
        return "\n\n".join(parts) or "No results yet."
    targets = {name: [row for row in rows if row["target"] is not None and row["met"] is not None] for name, rows in results.items()}
    rows = [row for some in targets.values() for row in some]
    if not rows:
        return "No results yet."
    origins = sorted({f"{row['machine']} ({row['date']}, scale {row['scale']})" for row in rows})
    first = [row for head in HEADLINES for row in rows if row["claim"].startswith(head)]
    missed = [row for row in rows if not row["met"]]
    counts = [(name, sum(row["met"] for row in some), len(some)) for name, some in targets.items() if some]
    lines = [f"| [{name}](docs/benchmarks.md#{name}) | {met} of {n} |" for name, met, n in counts]
    parts = [
        _table(first), "All targets, by benchmark:", "\n".join(["| Benchmark | Targets met |", "|---|---|", *lines]),
        *(["Missed:", _table(missed)] if missed else []), f"Measured on {'; '.join(origins)}.",
    ]  # fmt: skip
    return "\n\n".join(parts)


def update(text: str, tables: str) -> str:
    """Return a page with the part between its markers replaced."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{tables}\n{END}{tail}"


def pages() -> dict[Path, str]:
    """Return what the pages with tables should hold."""
    results = read(ROOT / "benchmarks" / "results")
    return {ROOT / page: update((ROOT / page).read_text(encoding="utf-8"), render(results, all_)) for page, all_ in PAGES.items()}


def _origin(row: dict[str, Any]) -> str:
    commit = f", commit {row['commit']}" if row["commit"] else ""
    return f"`{row['command']}` on {row['machine']}, {row['date']}{commit}"


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| What | Measured | Target | Compared with | Met |", "|---|---|---|---|---|"]
    for row in rows:
        error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.2g}"
        target = "" if row["target"] is None else f"{row['target']:g} {row['unit']}"
        peer = row["peer"] + ("" if row["peer_value"] is None else f": {row['peer_value']:.4g}")
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        cells = (row["claim"], f"{row['value']:.4g}{error} {row['unit']}", target, peer, met)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").strip() for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite the pages, or list the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the benchmarks and change nothing")
    if parser.parse_args().list:
        print("\n".join(names()))
        return
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
