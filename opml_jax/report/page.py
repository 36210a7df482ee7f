"""Pieces of a self-contained HTML page: headings, embedded pictures, notes, things to copy.

The page follows the reader's light or dark style, and the width of a telephone.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

from ..figures import svg

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2128; --page: #fff; --soft: #59616e; --line: #d9dde3;
        --panel: #f5f7f9; --accent: #2f6fbd; --warn: #b45309; --warn-panel: #fff7e8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e5ea; --page: #1e2129; --soft: #a4abb8; --line: #3a4050; --panel: #272b35;
          --accent: #7fb0ec; --warn: #f0b35e; --warn-panel: #35291a; }
}
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page);
       max-width: 64rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .9rem;
     border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
a { color: var(--accent); } .note { color: var(--soft); font-size: .92rem; max-width: 48rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .9rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th { font-weight: 600; border-bottom-color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
img { max-width: 100%; height: auto; }
.panels { display: flex; flex-wrap: wrap; gap: 1rem 1.4rem; }
.row { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: .5rem 1rem; }
figure { margin: 0; } figure img { display: block; margin: 0 auto; }
figcaption { font-size: .85rem; line-height: 1.35; text-align: center; }
.box { border: 1px solid var(--line); border-left: 4px solid var(--accent); border-radius: 6px;
       background: var(--panel); padding: .2rem 1.1rem .9rem; margin: 1.4rem 0; }
.box h2 { border: 0; margin: .4rem 0 0; padding-top: .4rem; }
.warnings { border-left-color: var(--warn); background: var(--warn-panel); }
.warnings h2 { color: var(--warn); } .warnings ul { margin: .4rem 0 0; padding-left: 1.2rem; }
.copy { display: flex; align-items: start; gap: .6rem; margin: .7rem 0 0; }
pre { flex: 1; min-width: 0; margin: 0; padding: .5rem .7rem; white-space: pre-wrap;
      border: 1px solid var(--line); border-radius: 4px; background: var(--page);
      font: .84rem/1.5 ui-monospace, monospace; }
button { font: inherit; font-size: .84rem; padding: .35rem .7rem; cursor: pointer;
         color: var(--ink); background: var(--page); border: 1px solid var(--line);
         border-radius: 4px; }
button:hover { border-color: var(--accent); }
@media (max-width: 36rem) {
  body { padding: 1rem .9rem 3rem; } h1 { font-size: 1.35rem; }
  .panels img { width: 100%; }
  .row { grid-template-columns: repeat(5, 7rem); overflow-x: auto; padding-bottom: .5rem; }
  .copy { flex-direction: column; align-items: stretch; }
}
@media print { button { display: none; } }
"""

_SCRIPT = """
for (const button of document.querySelectorAll(".copy button")) button.onclick = async () => {
  await navigator.clipboard.writeText(button.previousElementSibling.textContent);
  button.textContent = "copied"; setTimeout(() => button.textContent = "copy", 1500);
};
"""

_SIGNS = {"uHa": "μHa", "/A": "/Å", "^2": "²", "^3": "³"}


def document(title: str, parts: Iterable[str]) -> str:
    """The page that parts of HTML make."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}<script>{_SCRIPT}</script></body></html>\n"
    )


def header(text: str, note: str) -> str:
    """The heading of the page and what is said below it."""
    return f"<h1>{html.escape(text)}</h1>{_note(note)}"


def section(heading: str, content: str, note: str = "") -> str:
    """A heading, something in HTML, and what it shows, in words."""
    return f"<h2>{html.escape(heading)}</h2>{content}{_note(note)}"


def images(drawn: Any, alt: str) -> str:
    """Figures side by side, or below each other where there is no room.

    Args:
      drawn: a ``matplotlib.figure.Figure`` or several; their labels say what they show.
      alt: what figures without a label show.
    """
    figures = drawn if isinstance(drawn, Sequence) else [drawn]
    return f'<div class="panels">{"".join(image(f, alt) for f in figures)}</div>'


def image(drawn: Any, alt: str = "") -> str:
    """A ``matplotlib.figure.Figure`` in HTML, with its label in words."""
    data = base64.b64encode(svg(drawn).encode()).decode()
    text = html.escape(drawn.get_label() or alt)
    width, height = (round(96 * inches) for inches in drawn.get_size_inches())
    source = f"data:image/svg+xml;base64,{data}"
    return f'<img alt="{text}" width="{width}" height="{height}" src="{source}">'


def row(heading: str, figures: Iterable[tuple[Any, str]]) -> str:
    """Small figures in a row, each with lines of text below it."""
    cells = (
        f"<figure>{image(drawn)}<figcaption>{html.escape(text).replace(chr(10), '<br>')}"
        "</figcaption></figure>"
        for drawn, text in figures
    )
    return f'<h3>{html.escape(heading)}</h3><div class="row">{"".join(cells)}</div>'


def warnings(sentences: Sequence[str]) -> str:
    """A box with what a reader must know first; nothing without sentences."""
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in sentences)
    heading = "Warning" if len(sentences) == 1 else "Warnings"
    return f'<div class="box warnings" role="note"><h2>{heading}</h2><ul>{items}</ul></div>'


def copyable(heading: str, before: str, lines: Iterable[str]) -> str:
    """A box with lines of code, each with a button that copies it; ``before`` is HTML."""
    button = '<button type="button" title="copy this">copy</button>'
    blocks = (f'<div class="copy"><pre>{html.escape(x)}</pre>{button}</div>' for x in lines)
    return f'<div class="box"><h2>{html.escape(heading)}</h2>{before}{"".join(blocks)}</div>'


def pretty(unit: str) -> str:
    """A unit of the table of quantities with the signs that a terminal may lack."""
    for plain, sign in _SIGNS.items():
        unit = unit.replace(plain, sign)
    return unit


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text, quote=False)}</p>' if text else ""
