"""Errors of predicted densities, with names that say what of and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import jax
import numpy as np

from ... import density, integrals
from ...basis import layout_of
from ...data import Dataset
from ...learn.padding import padded
from ...structures import Structure
from ...units import DEBYE_PER_EBOHR
from .functions import Op2Density
from .labels import check_densities, density_matrix, labelled_coefficients, places

GRID_LEVEL = 1
"""Of the grids that absolute errors are integrated on; their relative error is about 1e-3."""


@jax.jit
def _metrics(s, aux, widths=None):
    """Coulomb and overlap metric of the functions of the basis, or between those with widths."""
    return integrals.coulomb_metric(s, aux, widths), integrals.overlap_metric(s, aux, widths)


@jax.jit
def _cross(s, aux, widths):
    """Likewise, between functions with widths and those of the basis."""
    kinds = "coulomb", "overlap"
    return tuple(integrals.cross_metric(s, aux, widths, None, kind) for kind in kinds)


def density_errors(
    predicted: Mapping[str, np.ndarray], dataset: Dataset, definition: Op2Density
) -> dict[str, float]:
    r"""Errors of coefficients against fits of a data set's density matrices.

    Args:
      predicted: from :meth:`opml_jax.models.Op2DensityModel.predict` on ``dataset.structures``.
      dataset: with density or Fock matrices.
      definition: of the model, for its bases and the metric of the fits.

    Returns:
      ``density_error_percent``: :math:`100 \int |\Delta\rho| / N` against the fit, mean over
      structures, and ``_max``; ``density_error_total_percent``: the same against the density
      matrix's own density, which a perfect fit misses too; ``density_rmse_percent``: error relative
      to the spread of the densities about their mean isotropic coefficients, both in the overlap
      metric (SALTED's "% RMSE"); ``density_self_energy_mae_uha``: Coulomb energy of the error with
      itself; ``electron_number_error``; ``dipole_fit_mae_debye``: against the dipole of the fit.
      Of a model with widths all but the total also hold what a fit to the fixed basis misses.
    """
    structures, aux = dataset.structures, definition.aux_basis
    layouts = [layout_of(s, aux) for s in structures]
    c = [row[: n.nao] for row, n in zip(predicted["coefficients"], layouts, strict=True)]
    widths = None
    if "widths" in predicted:
        widths = [w[: n.n_shells] for w, n in zip(predicted["widths"], layouts, strict=True)]
    references = _references(definition, dataset)
    fitted, total = [], []
    for i, (s, w) in enumerate(zip(structures, widths or [None] * len(c), strict=True)):
        rho = density.on_points(c[i], s, aux, references.points[i], w)
        fitted.append(rho - references.fitted[i])
        total.append(_percent(rho - references.exact[i], references.weights[i], s))
    on_grid = [*zip(fitted, references.weights, strict=True)]
    known = references.coefficients, structures, definition, widths
    errors = coefficient_errors(c, *known, on_grid=on_grid)
    return errors | {"density_error_total_percent": float(np.mean(total))}


@dataclasses.dataclass(frozen=True)
class References:
    """Densities of a data set, an array for each structure.

    Attributes:
      coefficients: Fits ``(naux,)``.
      points: ``(n_points, 3)`` of a grid of :data:`GRID_LEVEL`, and their ``weights``.
      fitted: The fits there.
      exact: Densities of the density matrices there.
    """

    coefficients: list[np.ndarray]
    points: list[np.ndarray]
    weights: list[np.ndarray]
    fitted: list[np.ndarray]
    exact: list[np.ndarray]


_known: WeakKeyDictionary[Dataset, tuple[Op2Density, References]] = WeakKeyDictionary()


def _references(definition: Op2Density, dataset: Dataset) -> References:
    """The densities that errors are of; made once for a model, its parts and its baseline."""
    asked, known = _known.get(dataset, (None, None))
    if known is not None and asked is definition:
        return known
    basis, aux = check_densities(definition, dataset), definition.aux_basis
    made = References(labelled_coefficients(definition, dataset), [], [], [], [])
    for i, s in enumerate(dataset.structures):
        points, weights = density.grid(s, GRID_LEVEL)
        made.points.append(points)
        made.weights.append(weights)
        made.fitted.append(density.on_points(made.coefficients[i], s, aux, points))
        dm = density_matrix(dataset, i, basis)
        made.exact.append(density.matrix_on_points(dm, s, basis, points))
    _known[dataset] = definition, made
    return made


def _on_grid(c, r, structure, aux, widths) -> tuple[np.ndarray, np.ndarray]:
    """Error of coefficients c, of functions with widths, against r, on points; their weights."""
    points, weights = density.grid(structure, GRID_LEVEL)
    if widths is None:
        return density.on_points(c - r, structure, aux, points), weights
    predicted = density.on_points(c, structure, aux, points, widths)
    return predicted - density.on_points(r, structure, aux, points), weights


def _percent(error: np.ndarray, weights: np.ndarray, structure: Structure) -> float:
    """Absolute error per electron, of an error on points."""
    return float(100 * (weights @ np.abs(error)) / structure.n_electrons)


def coefficient_errors(
    predicted, references, structures, definition, widths=None, on_grid=None
) -> dict[str, float]:
    """What :func:`density_errors` returns, of coefficients ``(naux,)`` for each structure.

    ``widths`` ``(n_shells,)`` or None for each are of the predicted functions; ``on_grid`` are
    errors on points and the points' weights, if they are known.
    """
    aux = definition.aux_basis
    about = padded(references)  # less their mean isotropic coefficients
    for atoms in places(definition, structures).values():
        at = atoms.flat(about.shape[1])[0]
        about.reshape(-1)[at] -= about.reshape(-1)[at].mean(axis=0)
    absolute, energy, electrons, dipoles = [], [], [], []
    square = spread = 0.0
    widths = widths or [None] * len(predicted)
    for i, (c, r, s, w) in enumerate(zip(predicted, references, structures, widths, strict=True)):
        coulomb, overlap = fixed = [np.asarray(m) for m in _metrics(s, aux)]
        e, b = c - r, about[i, : len(r)]
        spread += b @ overlap @ b
        error, weights = on_grid[i] if on_grid else _on_grid(c, r, s, aux, w)
        if w is not None:  # functions of both kinds: c of those with widths, less r of the basis
            e = np.concatenate([c, -r])
            parts = zip(_metrics(s, aux, w), _cross(s, aux, w), fixed, strict=True)
            coulomb, overlap = (np.block([[a, b], [b.T, m]]) for a, b, m in parts)
        absolute.append(_percent(error, weights, s))
        energy.append(density.self_energy(e, coulomb))
        electrons.append(abs(density.electron_number(c, s, aux, w) - s.n_electrons))
        dipoles.append(density.dipole(c, s, aux, w) - density.dipole(r, s, aux))
        square += e @ overlap @ e
    return {
        "density_error_percent": float(np.mean(absolute)),
        "density_error_percent_max": float(np.max(absolute)),
        "density_rmse_percent": float(100 * np.sqrt(square / spread)),
        "density_self_energy_mae_uha": float(1e6 * np.mean(energy)),
        "electron_number_error": float(np.max(electrons)),
        "dipole_fit_mae_debye": float(DEBYE_PER_EBOHR * np.mean(np.abs(dipoles))),
    }
