"""Execute the notebooks in ``tutorials/`` and fail where a cell does: ``python tools/run_tutorials.py [NAME ...]``.

They run at the reduced size that ``COULOIR_TUTORIAL_SCALE`` names (default ``ci``) in a temporary folder, so that nothing
is left in the working tree and the committed notebooks stay as they are.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
TIMEOUT_SECONDS = 900


def execute(notebook: Path, folder: Path) -> str | None:
    """Run one notebook in ``folder``; returns what went wrong, or None."""
    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(content, timeout=TIMEOUT_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()
    except CellExecutionError as error:
        return str(error)
    return None


def main(names: list[str]) -> int:
    """Run the named notebooks, or all; returns the number that failed (1 when there is nothing to run)."""
    os.environ.setdefault("COULOIR_TUTORIAL_SCALE", "ci")
    os.environ.setdefault("MPLBACKEND", "agg")
    notebooks = [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb"))
    missing = [notebook.name for notebook in notebooks if not notebook.exists()]
    if missing or not notebooks:
        print(f"no notebook {', '.join(missing) or '*.ipynb'} in {FOLDER}", file=sys.stderr)
        return 1
    failed = 0
    for notebook in notebooks:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary) / "tutorials"
            shutil.copytree(FOLDER, work, ignore=shutil.ignore_patterns("*.run", ".ipynb_checkpoints"))
            problem = execute(notebook, work)
        print(f"{notebook.name}: {'ok' if problem is None else 'FAILED'} in {time.perf_counter() - start:.0f} s", flush=True)
        if problem is not None:
            print(problem, file=sys.stderr)
            failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
