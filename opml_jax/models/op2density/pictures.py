"""Pictures of predicted densities for the report."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ...basis import layout_of
from ...density import on_points
from ...figures import figure, principal_axes
from ...structures import Structure
from ...units import ANGSTROM_PER_BOHR
from ..family import Evaluated, Picture
from .model import Op2DensityModel

POINTS = 80
"""Of the grid of a picture, along an edge."""
MARGIN = 3.5
"""Bohr around the molecule."""


def density_picture(model: Op2DensityModel, evaluated: Evaluated) -> Picture:
    """The predicted density of the structure whose dipole is most wrong.

    Args:
      model: of densities; a model of other things may stand on it.
      evaluated: a set, whose predictions have dipoles.
    """
    worst, dataset = 0, evaluated.dataset
    if "dipole" in dataset:
        error = np.linalg.norm(evaluated.predicted["dipole"] - dataset["dipole"], axis=-1)
        worst = int(np.argmax(error))
    return Picture(
        "Predicted density",
        functools.partial(_draw, model, dataset.structures[worst]),
        "In the plane that shows most of the molecule, of the structure with the largest error of "
        "the dipole: the density, and what the model adds to its baseline.",
    )


def _draw(model: Op2DensityModel, structure: Structure) -> Any:
    """A density and its difference from the baseline, in a plane through the molecule."""
    from matplotlib.colors import LogNorm, SymLogNorm

    aux, predicted = model.definition.aux_basis, model.predict(structure)
    centre, directions = principal_axes(structure)
    atoms = (np.asarray(structure.positions) - centre) @ directions[:2].T
    span = np.abs(atoms).max() + MARGIN
    line = np.linspace(-span, span, POINTS)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2) @ directions[:2] + centre
    rho = on_points(predicted["coefficients"], structure, aux, grid, predicted.get("widths"))
    change = rho - on_points(_baseline(model, structure), structure, aux, grid)
    top = np.abs(change).max()
    panels = (
        ("density, e/Bohr³", np.maximum(rho, 1e-4), "viridis", LogNorm(1e-3, rho.max())),
        ("minus baseline", change, "RdBu_r", SymLogNorm(0.01 * top, vmin=-top, vmax=top)),
    )
    extent = np.array([-span, span, -span, span]) * ANGSTROM_PER_BOHR
    drawn, axes = figure(2, height=4.0)
    for axis, (title, values, colours, norm) in zip(axes, panels, strict=True):
        image = axis.imshow(
            values.reshape(POINTS, POINTS), origin="lower", extent=extent, cmap=colours, norm=norm
        )
        drawn.colorbar(image, ax=axis, shrink=0.8)
        axis.plot(*(atoms * ANGSTROM_PER_BOHR).T, "+", color="black", ms=5)
        axis.set(title=title, xlabel="Å", ylabel="Å")
    return drawn


def _baseline(model: Op2DensityModel, structure: Structure) -> np.ndarray:
    """Coefficients ``(naux,)`` of what the model adds to."""
    layout = layout_of(structure, model.definition.aux_basis)
    out = np.zeros(layout.nao)
    for z, start in zip(structure.numbers, layout.offsets, strict=False):
        baseline = model.params[str(z)]["baseline"]
        out[start : start + len(baseline)] = baseline  # s functions come first
    return out
