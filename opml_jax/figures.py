"""Figures that several rooms draw: panels, AO matrices, molecules. No global state, no display.

matplotlib and ase are imported when something is drawn.
"""

from __future__ import annotations

import colorsys
import io
import re
from collections import Counter
from typing import Any

import numpy as np

from .basis import Basis, layout_of
from .structures import Structure
from .units import ANGSTROM_PER_BOHR

BLUE, RED, GREY = "#2f6fbd", "#c8553d", "#8a8a8a"
"""Read well on white and on black."""
WHITE, BLACK = "#fefefe", "#010101"
"""Stay what they are in dark style: hydrogen, and marks on what is drawn in colours of its own."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_SVG = re.compile(r"<svg\b[^>]*>")


def figure(
    columns: int,
    rows: int = 1,
    *,
    width: float = 4.0,
    height: float = 3.4,
    sharey: bool = False,
) -> tuple[Any, np.ndarray]:
    """An empty figure of several panels.

    Args:
      columns: of panels.
      rows: of panels.
      width: of a panel, inches.
      height: of a panel, inches.
      sharey: whether all panels have one vertical axis.

    Returns:
      A ``matplotlib.figure.Figure`` and its axes ``(rows * columns,)``, row by row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
    for axis in axes:
        axis.tick_params(labelsize=8)
        for text, size in ((axis.title, 10), (axis.xaxis.label, 9), (axis.yaxis.label, 9)):
            text.set_size(size)
    return drawn, axes


def svg(drawn: Any) -> str:
    """A figure as an SVG document that follows the reader's light or dark style.

    Text stays text, the background is transparent, and the same figure is the same document.

    Args:
      drawn: a ``matplotlib.figure.Figure``.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "opml_jax"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.savefig(buffer, format="svg", transparent=True, metadata=nothing, dpi=200)
    text = buffer.getvalue()
    return two_styles(text[text.index("<svg") :])


def two_styles(document: str) -> str:
    """An SVG document whose colours turn with ``prefers-color-scheme``: white to black, and back.

    Hues stay; pictures within the document, :data:`WHITE` and :data:`BLACK` do too.

    Args:
      document: colours in it are of the form ``#rrggbb``, and text without one is black.
    """

    def variable(colour: str) -> str:
        return f"--c{colour[1:]}"

    def style(rule: str) -> str:
        return f"svg{{fill:var(--c000000);{rule}}}"

    first = _SVG.search(document)
    if first is None:
        raise ValueError("no <svg> in the document")
    colours = sorted({"#000000", *_HEX.findall(document)} - {WHITE, BLACK})
    light = "".join(f"{variable(c)}:{c};" for c in colours)
    dark = "".join(f"{variable(c)}:{_dark(c)};" for c in colours)
    sheet = f"{style(light)}@media (prefers-color-scheme:dark){{{style(dark)}}}"
    body = _HEX.sub(
        lambda m: m[0] if m[0] in (WHITE, BLACK) else f"var({variable(m[0])})",
        document[first.end() :],
    )
    return f"{document[: first.end()]}<style>{sheet}</style>{body}"


def _dark(colour: str) -> str:
    """A colour of the same hue, dark for light and light for dark; greys are a little blue."""
    hue, light, strength = colorsys.rgb_to_hls(
        *(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    )
    if strength < 0.1:
        hue, strength = 0.63, 0.12
    vivid = strength > 0.3 and 0.2 < light < 0.75  # lines and words, which must be seen
    light = max(0.93 - 0.79 * light, 0.62 if vivid else 0.0)
    return "#" + "".join(f"{round(255 * x):02x}" for x in colorsys.hls_to_rgb(hue, light, strength))


def heat_map(title: str, values: np.ndarray, structure: Structure, basis: Basis) -> Any:
    """An AO matrix of one molecule, with lines between atoms; colours are logarithmic.

    Args:
      title: what it is.
      values: ``(nao, nao)``.
      structure: the molecule.
      basis: what it is in.

    Returns:
      A ``matplotlib.figure.Figure``.
    """
    offsets = layout_of(structure, basis).offsets
    centres = (offsets[:-1] + offsets[1:] - 1) / 2
    atoms = [f"{s}{i}" for i, s in enumerate(structure.symbols)]
    drawn, (axis,) = figure(1, width=3.9, height=3.5)
    drawn.set_label(f"{title}: heat map, atoms {', '.join(atoms)}")
    signed_map(axis, values, aspect="equal")
    axis.set_title(title)
    axis.set_xticks(centres, atoms)
    axis.set_yticks(centres, atoms)
    axis.tick_params(length=0, labelsize=8 if len(atoms) < 12 else 5)
    for edge in offsets[1:-1] - 0.5:
        axis.axhline(edge, color=GREY, lw=0.6)
        axis.axvline(edge, color=GREY, lw=0.6)
    return drawn


def signed_map(axis: Any, values: np.ndarray, **options: Any) -> None:
    """Numbers of both signs as colours, in three decades of each, with a bar that says which.

    Args:
      axis: a ``matplotlib.axes.Axes``.
      values: ``(rows, columns)``.
      options: of ``imshow``.
    """
    from matplotlib.colors import SymLogNorm

    top = np.abs(values).max() or 1.0
    norm = SymLogNorm(linthresh=1e-3 * top, vmin=-top, vmax=top)
    image = axis.imshow(values, cmap="RdBu_r", norm=norm, interpolation="none", **options)
    bar = axis.figure.colorbar(image, ax=axis, shrink=0.85)
    decades = int(np.floor(np.log10(top))) - np.arange(3)
    decades = decades.tolist()
    signed = [(-1, k) for k in decades] + [(0, 0)] + [(1, k) for k in decades[::-1]]
    bar.set_ticks([sign * 10.0**k for sign, k in signed], labels=[_power(*x) for x in signed])
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=8)


def _power(sign: int, k: int) -> str:
    """A power of ten as text."""
    if not sign:
        return "0"
    digits = f"{10.0**k:g}" if abs(k) < 3 else "10" + str(k).translate(_SUPERSCRIPTS)
    return "−" * (sign < 0) + digits


def principal_axes(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """The mean position ``(3,)`` in Bohr, and ``(3, 3)`` rows: where a molecule extends most first.

    The first two rows span the plane that shows most of it.
    """
    x = np.asarray(structure.positions)
    centre = x.mean(axis=0)
    return centre, np.linalg.svd(x - centre)[2]


def draw_molecule(axis: Any, structure: Structure) -> None:
    """Draw balls and sticks, seen along the direction in which the molecule is thinnest.

    Args:
      axis: a ``matplotlib.axes.Axes``.
      structure: the molecule.
    """
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from matplotlib.patches import Circle

    centre, directions = principal_axes(structure)
    x = (np.asarray(structure.positions) - centre) @ directions.T * ANGSTROM_PER_BOHR
    radii = covalent_radii[list(structure.numbers)]
    for i, z in enumerate(structure.numbers):
        face = WHITE if z == 1 else jmol_colors[z]
        options = {"facecolor": face, "edgecolor": "#333333", "lw": 0.6}
        axis.add_patch(
            Circle((x[i, 0], x[i, 1]), 0.25 + 0.3 * radii[i], zorder=10 + x[i, 2], **options)
        )
        for j in range(i):
            if np.linalg.norm(x[i] - x[j]) < 1.25 * (radii[i] + radii[j]):
                depth = 10 + min(x[i, 2], x[j, 2]) - 0.01
                axis.plot(*x[[i, j], :2].T, color="#777777", lw=2.5, zorder=depth)
    span = np.abs(x[:, :2]).max() + 0.7
    axis.set(xlim=(-span, span), ylim=(-span, span), aspect="equal")


def sum_formula(structure: Structure) -> str:
    """Sum formula, carbon and hydrogen first."""
    count = Counter(structure.symbols)
    order = sorted(count, key=lambda x: ("CH".find(x) % 3, x))
    return "".join(x + (str(count[x]) if count[x] > 1 else "") for x in order)
