"""HTML for one self-contained page: inline style, inline figures, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from couloir.errors import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = "#010203"
"""Drawn in this colour, text and axes take the colour of the page's text, light or dark."""
_LINE = "#1f4e79"

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1d2530; --soft: #5d6978; --rule: #dfe4ea; --card: #f6f8fa;
  --accent: #1f6fb2; --warn: #b25e00; --warn-card: #fff6e8; --good: #1f7a4d; --good-card: #ecf8f1; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --ink: #e3e8ee; --soft: #9aa7b5; --rule: #2b333d; --card: #1a2028;
  --accent: #6db3f2; --warn: #f0b35c; --warn-card: #2b2114; --good: #67c797; --good-card: #14261d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: .4rem 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--rule); }
p { margin: .5rem 0; max-width: 48rem; }
.answer { font-size: 1.05rem; }
.soft { color: var(--soft); }
.badge { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; font-size: .82rem; font-weight: 600;
  background: var(--good-card); color: var(--good); }
.badge.partial { background: var(--warn-card); color: var(--warn); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.numbers div { background: var(--card); border-radius: .6rem; padding: .6rem .8rem; }
.numbers b { display: block; font-size: 1.12rem; } .numbers span { color: var(--soft); font-size: .84rem; }
.finding, .fine { border-left: 4px solid var(--warn); background: var(--warn-card);
  border-radius: .3rem; padding: .5rem .8rem; margin: .5rem 0; }
.fine { border-color: var(--good); background: var(--good-card); }
.finding code { color: var(--warn); font-weight: 600; } .finding .fix { display: block; color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem; align-items: start; }
figure { margin: .8rem 0; } figure.wide { grid-column: 1 / -1; }
figure svg, figure img { display: block; width: 100%; height: auto; } figure:not(.wide) svg { max-width: 36rem; }
figure img { min-width: 34rem; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .35rem; max-width: 48rem; }
.scroll { overflow-x: auto; margin: .7rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .22rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; }
pre { background: var(--card); border-radius: .6rem; padding: .8rem; overflow-x: auto; font-size: .85rem; line-height: 1.45; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
"""


@contextmanager
def figure_style() -> Iterator[None]:
    """Make matplotlib's figures fit the page: inherited text colour, real text, reproducible ids, no mathematics in names."""
    import matplotlib

    colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    options: Any = dict.fromkeys(colors, _INK)
    options |= {"svg.fonttype": "none", "svg.hashsalt": "couloir", "text.parse_math": False, "font.size": 10.0, "font.family": "sans-serif"}
    options |= {"axes.spines.top": False, "axes.spines.right": False, "legend.fontsize": 9.0, "axes.linewidth": 0.8}
    with matplotlib.rc_context(options):
        yield


class Page:
    """Collects sections; figures get distinct ids, so that their definitions do not collide in one document."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []
        self._figures = 0

    def add(self, *parts: str) -> None:
        """Append pieces of HTML."""
        self._parts += parts

    def heading(self, name: str, text: str) -> None:
        """Begin a section that links can point to as ``#name``."""
        self._parts.append(f'<h2 id="{escape(name)}">{escape(text)}</h2>')

    def vector(self, figure: Figure, caption: str, *, wide: bool = False) -> str:
        """Return a figure as inline SVG."""
        self._figures += 1
        return _figure(_svg(figure, f"f{self._figures}-"), caption, wide)

    def raster(self, figure: Figure, caption: str, *, dpi: int = 130) -> str:
        """Return a figure as a PNG within the page; for pictures of many shapes."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, transparent=True, metadata={"Software": None})
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        return _figure(f'<div class="scroll">{image}</div>', caption, True)

    def render(self) -> str:
        """Return the whole document."""
        head = (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        )
        return head + "\n".join(self._parts) + "\n</main>\n</body>\n</html>\n"


def escape(text: Any) -> str:
    """Return text with everything that HTML would read as markup escaped."""
    return html.escape(str(text), quote=True)


def paragraph(text: str, style: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def grid(*figures: str) -> str:
    """Return figures side by side where there is room."""
    return '<div class="figures">' + "".join(figures) + "</div>"


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table that scrolls sideways on narrow screens; the first column is text."""
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(rows: Sequence[tuple[str, Any]]) -> str:
    """Return a table of names and values."""
    body = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows)
    return f'<div class="scroll"><table class="facts"><tbody>{body}</tbody></table></div>'


def numbers(items: Sequence[tuple[str, str]]) -> str:
    """Return a row of numbers with what they are."""
    return '<div class="numbers">' + "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in items) + "</div>"


def finding(found: Finding) -> str:
    """Return a warning with its name and what to do about it."""
    fix = f'<span class="fix">{escape(found.fix)}</span>' if found.fix else ""
    return f'<div class="finding"><code>{escape(found.code)}</code> {escape(found.message)}{fix}</div>'


def duration(ps: float) -> str:
    """Return a time in ps with the unit that suits it."""
    for unit, scale in (("us", 1e6), ("ns", 1e3)):
        if ps >= scale:
            return f"{ps / scale:.4g} {unit}"
    return f"{ps:.4g} ps"


def details(summary: str, content: str) -> str:
    """Return something that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def preformatted(text: str) -> str:
    """Return text as it is, in a fixed-width font."""
    return f"<pre>{escape(text)}</pre>"


def _figure(content: str, caption: str, wide: bool) -> str:
    return f"<figure{' class=wide' if wide else ''}>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def _svg(figure: Figure, prefix: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, dpi=130, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text, count=4)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|url\(#|href="#)', lambda match: match[1] + prefix, text)
    return text.replace(_INK, "currentColor").replace(_LINE, "var(--accent)")
