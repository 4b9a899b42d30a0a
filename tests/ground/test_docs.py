"""What the pages say exists: keys, names, tables; and the built site loads nothing from elsewhere."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import tables
from couloir.analysis import FreeEnergySurface
from couloir.analysis.diagnostics import __doc__ as diagnostics
from couloir.config import RunConfig, parse_config
from couloir.cv.registry import _CONFIG_KEYS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (page, code) of every fenced block in a language."""
    found = []
    for page in PAGES:
        found += [(page.name, code) for code in re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)]
    return found


def tables_of_run_files() -> dict[str, set[str]]:
    """Return the keys that a run file may hold, by table."""
    found: dict[str, set[str]] = {"": set()}
    for name, field in RunConfig.model_fields.items():
        models = [t for t in (field.annotation, *get_args(field.annotation)) if hasattr(t, "model_fields")]
        if models:
            inner = {
                key: [t for t in get_args(known.annotation) if hasattr(t, "model_fields")] for key, known in models[0].model_fields.items()
            }
            found |= {f"{name}.{key}": set(tables[0].model_fields) for key, tables in inner.items() if tables}
            found[name] = {known.alias or key for key, known in models[0].model_fields.items()}
        elif name != "cv":
            found[""].add(name)
    return found


def documented_keys() -> dict[str, set[str]]:
    """Return the keys in the tables of the reference page, by section."""
    found: dict[str, set[str]] = {}
    for section in re.split(r"^## ", read("docs/run_file.md"), flags=re.MULTILINE):
        name = match[1] if (match := re.match(r"`\[([a-z.]+)(?:\.NAME)?\]`", section)) else ""
        first_cells = re.findall(r"^\| (`[^|]*)\|", section, re.MULTILINE)
        found[name] = {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}
    return found


def test_every_key_of_the_run_file_is_documented_and_no_other() -> None:
    documented = documented_keys()
    for table, keys in tables_of_run_files().items():
        assert documented[table] == keys, f"docs/run_file.md [{table}]"


def test_every_type_of_cv_is_documented_with_its_keys() -> None:
    section = read("docs/run_file.md").partition("## `[cv.NAME]`")[2].partition("\n## ")[0]
    assert documented_keys()["cv"] - {"type"} == set(_CONFIG_KEYS)
    for kind, (required, optional) in _CONFIG_KEYS.items():
        row = next(line for line in section.splitlines() if line.startswith("|") and f"`{kind}`" in line)
        assert required | optional <= set(re.findall(r"`(\w+)", row)), row


def test_every_finding_of_the_analysis_is_explained() -> None:
    codes = re.findall(r"``([a-z-]+)``", diagnostics or "")
    page = read("docs/theory/umbrella_and_reweighting.md")
    assert len(codes) >= 7
    assert [code for code in codes if f"| `{code}` |" not in page] == []


@pytest.mark.parametrize(("page", "code"), blocks("toml"))
def test_run_files_in_the_pages_are_valid(page: str, code: str) -> None:
    config = parse_config(tomllib.loads(code), page)
    assert config.umbrella is not None or config.paths is not None


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_names_in_python_examples_exist(page: str, code: str) -> None:
    tree = ast.parse(code)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("couloir")]
    assert imports, f"an example in {page} imports nothing from Couloir"
    for node in imports:
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            assert hasattr(module, alias.name), f"{page}: {node.module} has no {alias.name}"


def test_commands_in_the_pages_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    used = {target for page in PAGES for target in re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)}
    assert {"demo", "test"} <= used <= targets


def test_tables_of_benchmarks_are_those_of_the_results() -> None:
    for path, text in tables.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: python -m benchmarks.tables"


def test_a_changed_result_changes_the_table_and_nothing_else() -> None:
    row = {
        "claim": "a|b", "value": 2.0, "standard_error": 0.1, "target": 1.0, "unit": "x", "peer": "p", "peer_value": 3.0, "met": False,
        "scale": "small", "command": "c", "machine": "m", "date": "d", "commit": "",
    }  # fmt: skip
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    new = tables.update(page, tables.render({"name": [row]}, everything=False))
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "old" not in new
    assert "| a\\|b | 2 ± 0.1 x | 1 x | p: 3 | **no** |" in new
    assert tables.update(new, tables.render({}, everything=True)).count("No results yet.") == 1
    with pytest.raises(ValueError, match="lacks the markers"):
        tables.update("no markers", "table")


def test_every_dependency_is_pinned_and_has_a_reason() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    decisions = read("docs/decisions.md")
    # Peers of the benchmarks are not installed with the tests.
    peers = {canonicalize_name(Requirement(text).name) for text in project["optional-dependencies"]["bench"]}
    installed = {canonicalize_name(found.name) for found in metadata.distributions()}
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} does not satisfy {requirement}"
        assert re.search(rf"\b{requirement.name}\b", decisions), f"docs/decisions.md gives no reason for {name}"
        for text in [] if name in peers - installed else metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in pins, f"{needed.name}, which {name} needs, is not pinned"


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= 8
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loads = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(https?:)?//', text)
        loads += re.findall(r'<link\b(?![^>]*rel="canonical")[^>]*\bhref="(?:https?:)?//[^"]*"', text)
        assert not loads, f"{page.name} loads {loads}"
        assert 'class="arithmatex"' not in text, f"{page.name} holds a formula that was not converted"
    assert "<math" in (tmp_path / "site" / "theory" / "umbrella_and_reweighting.html").read_text(encoding="utf-8")


def test_the_example_of_the_readme_runs_to_a_surface() -> None:
    code = next(code for page, code in blocks("python") if page == "README.md")
    smaller = {
        'time_step="2 fs"': 'time_step="2 fs", platform="Reference", workers=1',
        '"2 ns"': '"4 ps"',
        '"1 ps"': '"0.02 ps"',
        "fit(md, seed=1)": "fit(md, seed=1, plan=TrainingPlan(steps=50))",
        "n_windows=36": "n_windows=4",
        "per_window=2": "per_window=1",
        '"100 kJ/mol/rad^2"': '"5 kJ/mol/rad^2"',
        '"400 ps"': '"2 ps"',
        'surface.barrier("C7eq", "alphaL"), ': "",
    }
    for full, small in smaller.items():
        assert full in code
        code = code.replace(full, small)
    names: dict[str, object] = {}
    exec("from couloir.generative import TrainingPlan\n" + code, names)
    surface = names["surface"]
    assert isinstance(surface, FreeEnergySurface)
    assert surface.names == ("phi",)
    assert "few-effective-samples" in {finding.code for finding in surface.warnings}
