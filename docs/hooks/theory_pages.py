"""Every page in ``docs/theory`` appears in the navigation and in the list on the theory index, by its own title."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "theory"
MARKER = "<!-- pages -->"


def pages() -> dict[str, str]:
    """Return title by file name, in alphabetical order of titles."""
    titles = {p.name: p.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for p in FOLDER.glob("*.md") if p.name != "index.md"}
    return dict(sorted(titles.items(), key=lambda item: item[1]))


def on_config(config: Any, **_: Any) -> Any:
    """Fill the empty ``Theory`` section of the navigation."""
    for entry in config["nav"]:
        if "Theory" in entry:
            entry["Theory"] = [{"Overview": "theory/index.md"}] + [{title: f"theory/{name}"} for name, title in pages().items()]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write the list of pages where the index wants it."""
    if page.file.src_uri != "theory/index.md":
        return markdown
    return markdown.replace(MARKER, "\n".join(f"- [{title}]({name})" for name, title in pages().items()))
