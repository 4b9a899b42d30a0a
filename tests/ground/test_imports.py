"""Dependencies point one way, and importing Couloir costs little; both are read off the source and off a fresh process."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "couloir"
GROUND = frozenset({"errors", "units", "streams", "trajectory", "store", "progress"})
ROOMS = frozenset({"cv", "generative", "sampling", "analysis"})
MAY_USE = {
    "cv": GROUND,
    "analysis": GROUND | {"cv"},
    "generative": GROUND | {"cv"},
    "sampling": GROUND | {"cv", "analysis", "generative"},
}
HEAVY = ("torch", "openmm", "matplotlib", "mdtraj", "pymbar", "pydiffmap", "sklearn", "numba")


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name without the leading ``couloir.``; the package is ``""``."""
    out = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def arrows(source: str, name: str) -> set[str]:
    """Return the parts of Couloir (first level) that a module's text imports, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: imports are absolute here"
            targets = [f"couloir.{alias.name}" for alias in node.names] if node.module == "couloir" else [node.module or ""]
        else:
            continue
        found |= {target.split(".")[1] for target in targets if target.startswith("couloir.")}
    return found - {"__version__"}


def wrong_arrows(name: str, uses: set[str]) -> set[str]:
    """Return what a module uses although it may not."""
    part = name.partition(".")[0]
    if part in ROOMS:
        return uses - MAY_USE[part] - {part}
    if part in GROUND:
        return uses - GROUND
    return uses & {"cli"} - {part}


def test_the_graph_is_read_at_all() -> None:
    uses = {name: arrows(path.read_text(encoding="utf-8"), name) for name, path in modules().items()}
    assert {"cv", "units", "trajectory"} <= uses["analysis.samples"]
    assert len(uses) > 40


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_arrow_points_the_wrong_way(name: str) -> None:
    wrong = wrong_arrows(name, arrows(modules()[name].read_text(encoding="utf-8"), name))
    assert not wrong, f"couloir.{name} must not import couloir.{', couloir.'.join(sorted(wrong))}"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("analysis.wham", "from couloir.sampling.engine import Engine"),
        ("cv.base", "def f():\n    import couloir.generative.training"),
        ("generative.training", "from couloir import sampling"),
        ("units", "from couloir.cv.base import wrap"),
        ("report", "from couloir.cli import main"),
        ("sampling.toy", "from couloir.config import RunConfig"),
    ],
)
def test_a_wrong_arrow_would_be_seen(name: str, source: str) -> None:
    assert wrong_arrows(name, arrows(source, name))


def loaded_by(statement: str) -> set[str]:
    """Return the heavy packages that a statement loads in a fresh process."""
    code = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("name", ["couloir", "couloir.cv", "couloir.analysis", "couloir.config", "couloir.cli", "couloir.sampling"])
def test_importing_is_light(name: str) -> None:
    assert loaded_by(f"import {name}") == set()


def test_a_heavy_import_would_be_seen() -> None:
    assert "numba" in loaded_by("import numba")
