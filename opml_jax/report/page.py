"""Pieces of a self-contained HTML page: headings, embedded pictures, notes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } .note { color: #555; font-size: .92rem; }
"""

_SIGNS = {"uHa": "μHa", "/A": "/Å", "^2": "²", "^3": "³"}


def document(parts: Iterable[str]) -> str:
    """The page that parts of HTML make."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>opml_jax report</title>"
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def title(text: str, note: str) -> str:
    """The heading of the page and what is said below it."""
    return f"<h1>{html.escape(text)}</h1>{_note(note)}"


def section(heading: str, content: str, note: str = "") -> str:
    """A heading, something in HTML, and what it shows, in words."""
    return f"<h2>{html.escape(heading)}</h2>{content}{_note(note)}"


def image(figure: Any) -> str:
    """A ``matplotlib.figure.Figure`` in HTML."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="" src="data:image/png;base64,{data}"></p>'


def pretty(unit: str) -> str:
    """A unit of the table of quantities with the signs that a terminal may lack."""
    for plain, sign in _SIGNS.items():
        unit = unit.replace(plain, sign)
    return unit


def _note(text: str) -> str:
    return f"<p class=note>{html.escape(text, quote=False)}</p>" if text else ""
