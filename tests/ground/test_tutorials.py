"""Committed notebooks are clean, use public names only, and are not skipped silently."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def code_of(notebook: Path) -> str:
    """Return all code of a notebook as one module, magics left out."""
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%"))


def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_tutorials", ROOT / "tools" / "run_tutorials.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_tutorial() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_committed_without_outputs(notebook: Path) -> None:
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    for cell in content.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_public_names_that_exist(notebook: Path) -> None:
    for node in ast.walk(ast.parse(code_of(notebook))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("couloir"):
            assert "._" not in node.module
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert not alias.name.startswith("_")
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_running_no_tutorial_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = runner()
    monkeypatch.setenv("COULOIR_TUTORIAL_SCALE", "ci")
    monkeypatch.setenv("MPLBACKEND", "agg")
    assert module.main(["no_such.ipynb"]) == 1
    assert "no_such.ipynb" in capsys.readouterr().err
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    assert module.main([]) == 1


def test_a_failing_cell_is_reported_with_its_error(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    file = tmp_path / "broken.ipynb"
    nbformat.write(notebook, file)
    problem = runner().execute(file, tmp_path)
    assert problem is not None
    assert "ZeroDivisionError" in problem
