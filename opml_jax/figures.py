"""Figures that several rooms draw: panels, AO matrices, molecules. No global state, no display.

matplotlib and ase are imported when something is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from .basis import Basis, layout_of
from .structures import Structure
from .units import ANGSTROM_PER_BOHR

BLUE, RED, GREY = "#1f4e8c", "#c8553d", "#8a8a8a"


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
    return drawn, drawn.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()


def heat_maps(named: Mapping[str, np.ndarray], structure: Structure, basis: Basis) -> Any:
    """AO matrices of one molecule side by side, with lines between atoms.

    Args:
      named: matrices ``(nao, nao)`` by title.
      structure: the molecule.
      basis: what they are in.

    Returns:
      A ``matplotlib.figure.Figure``.
    """
    from matplotlib.colors import SymLogNorm

    offsets = layout_of(structure, basis).offsets
    centres = (offsets[:-1] + offsets[1:] - 1) / 2
    atoms = [f"{s}{i}" for i, s in enumerate(structure.symbols)]
    drawn, axes = figure(len(named), height=4.2)
    for axis, (title, values) in zip(axes, named.items(), strict=True):
        top = np.abs(values).max()
        norm = SymLogNorm(linthresh=1e-3 * top, vmin=-top, vmax=top)
        drawn.colorbar(axis.imshow(values, cmap="RdBu_r", norm=norm), ax=axis, shrink=0.8)
        axis.set_title(title)
        axis.set_xticks(centres, atoms)
        axis.set_yticks(centres, atoms)
        for edge in offsets[1:-1] - 0.5:
            axis.axhline(edge, color="black", lw=0.6)
            axis.axvline(edge, color="black", lw=0.6)
    return drawn


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
        options = {"facecolor": jmol_colors[z], "edgecolor": "#333333", "lw": 0.6}
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
