"""Errors of predicted densities, with names that say what of and how."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from ... import density, integrals
from ...basis import layout_of
from ...data import Dataset
from ...units import DEBYE_PER_EBOHR
from .functions import Op2Density
from .labels import check_densities, density_matrix, labelled_coefficients

GRID_LEVEL = 1
"""Of the grids that absolute errors are integrated on; their relative error is about 1e-3."""


@jax.jit
def _metrics(structure, aux, widths=None):
    """Coulomb and overlap metric of the functions of the basis, or between those with widths."""
    both = integrals.coulomb_metric, integrals.overlap_metric
    return tuple(metric(structure, aux, widths) for metric in both)


@jax.jit
def _cross(structure, aux, widths):
    """Likewise, between functions with widths and those of the basis."""
    kinds = "coulomb", "overlap"
    return tuple(integrals.cross_metric(structure, aux, widths, None, kind) for kind in kinds)


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
    references = labelled_coefficients(definition, dataset)
    rows = zip(predicted["coefficients"], references, strict=True)
    coefficients = [c[: len(r)] for c, r in rows]
    basis, total = check_densities(definition, dataset), []
    widths: list[np.ndarray | None] = [None] * len(coefficients)
    if "widths" in predicted:
        sizes = predicted["n_shells"]
        widths = [w[:n] for w, n in zip(predicted["widths"], sizes, strict=True)]
    for i, (c, s) in enumerate(zip(coefficients, dataset.structures, strict=True)):
        points, weights = density.grid(s, GRID_LEVEL)
        exact = density.matrix_on_points(density_matrix(dataset, i, basis), s, basis, points)
        error = density.on_points(c, s, definition.aux_basis, points, widths[i]) - exact
        total.append(100 * (weights @ np.abs(error)) / s.n_electrons)
    return {
        **coefficient_errors(coefficients, references, dataset.structures, definition, widths),
        "density_error_total_percent": float(np.mean(total)),
    }


def coefficient_errors(
    predicted, references, structures, definition, widths=None
) -> dict[str, float]:
    """What :func:`density_errors` returns, of coefficients ``(naux,)`` for each structure.

    ``widths`` ``(n_shells,)`` or None for each are of the predicted functions.
    """
    aux = definition.aux_basis
    means = _isotropic_means(references, structures, definition)
    absolute, energy, electrons, dipoles = [], [], [], []
    square = spread = 0.0
    for c, r, s, w in zip(
        predicted, references, structures, widths or [None] * len(predicted), strict=True
    ):
        fixed = [np.asarray(m) for m in _metrics(s, aux)]
        e, about = c - r, r - np.concatenate([means[z] for z in s.numbers])
        coulomb, overlap = fixed
        if w is None:
            absolute.append(density.density_error_percent(e, s, aux, level=GRID_LEVEL))
        else:  # functions of both kinds: c of those with widths, less r of the basis
            points, weights = density.grid(s, GRID_LEVEL)
            error = density.on_points(c, s, aux, points, w) - density.on_points(r, s, aux, points)
            absolute.append(100 * (weights @ np.abs(error)) / s.n_electrons)
            e = np.concatenate([c, -r])
            parts = zip(_metrics(s, aux, w), _cross(s, aux, w), fixed, strict=True)
            coulomb, overlap = (np.block([[a, b], [b.T, m]]) for a, b, m in parts)
        energy.append(density.self_energy(e, coulomb))
        electrons.append(abs(density.electron_number(c, s, aux, w) - s.n_electrons))
        dipoles.append(density.dipole(c, s, aux, w) - density.dipole(r, s, aux))
        square, spread = square + e @ overlap @ e, spread + about @ fixed[1] @ about
    return {
        "density_error_percent": float(np.mean(absolute)),
        "density_error_percent_max": float(np.max(absolute)),
        "density_rmse_percent": float(100 * np.sqrt(square / spread)),
        "density_self_energy_mae_uha": float(1e6 * np.mean(energy)),
        "electron_number_error": float(np.max(electrons)),
        "dipole_fit_mae_debye": float(DEBYE_PER_EBOHR * np.mean(np.abs(dipoles))),
    }


def _isotropic_means(references, structures, definition) -> dict[int, np.ndarray]:
    """Mean coefficients of s functions for each element; zero for all other functions."""
    rows: dict[int, list[np.ndarray]] = {}
    for c, s in zip(references, structures, strict=True):
        layout = layout_of(s, definition.aux_basis)
        isotropic = np.where(layout.l == 0, c, 0.0)
        for z, start, stop in zip(s.numbers, layout.offsets, layout.offsets[1:], strict=False):
            rows.setdefault(z, []).append(isotropic[start:stop])
    return {z: np.mean(of_element, axis=0) for z, of_element in rows.items()}
