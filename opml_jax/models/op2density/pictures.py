"""Pictures of predicted densities for the report."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ...basis import layout_of
from ...data import Dataset
from ...density import on_points
from ...figures import BLACK, figure, principal_axes, signed_map
from ...structures import Structure
from ...units import ANGSTROM_PER_BOHR
from ..family import Evaluated, Picture
from .model import Op2DensityModel

POINTS = 120
"""Of the grid of a picture, along an edge."""
MARGIN = 3.5
"""Bohr around the molecule."""


def density_picture(model: Op2DensityModel, evaluated: Evaluated) -> Picture:
    """The predicted density of the structure whose dipole is most wrong, and what is wrong with it.

    Args:
      model: of densities; a model of other things may stand on it.
      evaluated: a set, whose predictions have dipoles.
    """
    worst, dataset = 0, evaluated.dataset
    if "dipole" in dataset:
        error = np.linalg.norm(evaluated.predicted["dipole"] - dataset["dipole"], axis=-1)
        worst = int(np.argmax(np.nan_to_num(error)))
    return Picture(
        "Predicted density",
        functools.partial(_draw, model, dataset.subset([worst])),
        "In the plane that shows most of the molecule, of the structure with the largest error of "
        "the dipole: the density; predicted minus reference, the fit of the reference's density "
        "matrix that the error in the table is against; and what the model adds to its baseline. "
        "Crosses are nuclei.",
    )


def _draw(model: Op2DensityModel, dataset: Dataset) -> list[Any]:
    """A density and what it differs from, in a plane through the molecule of a set of one."""
    from .labels import labelled_coefficients

    (structure,), aux = dataset.structures, model.definition.aux_basis
    predicted = model.predict(structure)
    plane = _Plane(structure)

    def on_plane(coefficients: np.ndarray, widths: Any = None) -> np.ndarray:
        return on_points(coefficients, structure, aux, plane.points, widths)

    rho = on_plane(predicted["coefficients"], predicted.get("widths"))
    drawn = [plane.density(rho)]
    if "dm" in dataset or "fock" in dataset:
        (reference,) = labelled_coefficients(model.definition, dataset)
        drawn.append(plane.difference("predicted − reference", rho - on_plane(reference)))
    change = rho - on_plane(_baseline(model, structure))
    return [*drawn, plane.difference("predicted − baseline", change)]


class _Plane:
    """The plane that shows most of a molecule: ``points`` ``(POINTS**2, 3)`` in Bohr."""

    def __init__(self, structure: Structure):
        centre, directions = principal_axes(structure)
        self.atoms = (np.asarray(structure.positions) - centre) @ directions[:2].T
        span = np.abs(self.atoms).max() + MARGIN
        line = np.linspace(-span, span, POINTS)
        flat = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
        self.points = flat @ directions[:2] + centre
        self.extent = np.array([-span, span, -span, span]) * ANGSTROM_PER_BOHR

    def density(self, rho: np.ndarray) -> Any:
        """A density in logarithmic colours."""
        from matplotlib.colors import LogNorm

        drawn, axis = self._panel("density, e/Bohr³")
        image = axis.imshow(
            np.maximum(rho, 1e-4).reshape(POINTS, POINTS),
            **{"cmap": "viridis", "norm": LogNorm(1e-3, rho.max()), **self._options},
        )
        drawn.colorbar(image, ax=axis, shrink=0.85).ax.tick_params(labelsize=8)
        return drawn

    def difference(self, title: str, values: np.ndarray) -> Any:
        """A difference of densities, of both signs."""
        drawn, axis = self._panel(f"{title}, e/Bohr³")
        signed_map(axis, values.reshape(POINTS, POINTS), **self._options)
        drawn.set_label(f"{drawn.get_label()}; at most {np.abs(values).max():.2g}")
        return drawn

    @property
    def _options(self) -> dict[str, Any]:
        return {"origin": "lower", "extent": self.extent}

    def _panel(self, title: str) -> tuple[Any, Any]:
        drawn, (axis,) = figure(1, width=3.9, height=3.3)
        drawn.set_label(f"Map of {title}, in a plane through the molecule")
        axis.plot(*(self.atoms * ANGSTROM_PER_BOHR).T, "+", color=BLACK, ms=5, mew=0.8)
        axis.set(title=title, xlabel="Å", ylabel="Å")
        return drawn, axis


def _baseline(model: Op2DensityModel, structure: Structure) -> np.ndarray:
    """Coefficients ``(naux,)`` of what the model adds to."""
    layout = layout_of(structure, model.definition.aux_basis)
    out = np.zeros(layout.nao)
    for z, start in zip(structure.numbers, layout.offsets, strict=False):
        baseline = model.params[str(z)]["baseline"]
        out[start : start + len(baseline)] = baseline  # s functions come first
    return out
