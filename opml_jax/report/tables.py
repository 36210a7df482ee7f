"""The table of errors, as text and as HTML: one row a set, one column a quantity."""

from __future__ import annotations

import html
from collections.abc import Mapping

from ..quantities import columns
from .page import pretty

Metrics = Mapping[str, Mapping[str, float]]
"""Errors by ``<set>``, and by ``<set>_<part>`` of the parts of a model alone."""

_PARTS = {"linear": "closed form", "guess": "first guess", "baseline": "baseline"}


def text_table(metrics: Metrics) -> str:
    """Mean absolute errors for a terminal, one row a set, parts of the model below the whole."""
    titles = [f"  {heading} {unit}".rjust(16) for _, heading, unit in columns(metrics.values())]
    head = f"{'mean absolute error':<22}" + "".join(titles)
    lines = [head, "-" * len(head)]
    for (name, part), cells in _rows(metrics, "-"):
        label = f"{name} ({part or 'model'})"
        aligned = (cell.rjust(len(title)) for cell, title in zip(cells, titles, strict=True))
        lines.append(f"{label:<22}" + "".join(aligned))
    return "\n".join(lines)


def html_table(metrics: Metrics) -> str:
    """The same columns and rows in HTML, and the numbers of structures."""
    headings = ["mean absolute error", "structures"]
    for _, heading, unit in columns(metrics.values()):
        headings.append(", ".join(filter(None, (heading, pretty(unit)))))
    lines = ["".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings)]
    for ((name, part), cells), row in zip(_rows(metrics, "–"), metrics.values(), strict=True):
        label = ", ".join(filter(None, (name, _PARTS.get(part, part))))
        values = [html.escape(label), str(row["n_structures"]), *cells]
        lines.append("".join(f"<td>{value}</td>" for value in values))
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>{rows}</table></div>'


def _rows(metrics: Metrics, missing: str) -> list[tuple[tuple[str, str], list[str]]]:
    """The set and the part of each row, and its cells."""
    keys = [key for key, _, _ in columns(metrics.values())]
    return [
        (
            _set_and_part(name, metrics),
            [f"{row[key]:.3g}" if key in row else missing for key in keys],
        )
        for name, row in metrics.items()
    ]


def _set_and_part(name: str, metrics: Metrics) -> tuple[str, str]:
    whole, _, part = name.rpartition("_")
    return (whole, part) if whole in metrics else (name, "")
