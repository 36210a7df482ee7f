"""Pictures of predicted matrices for the report."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ...figures import heat_map
from ..family import Evaluated, Picture
from .metrics import MICRO, errors_by_structure, is_effective, paired_levels, paired_matrices
from .model import Op2OpModel


def occupied_levels(evaluated: Evaluated) -> tuple[str, str, np.ndarray, np.ndarray]:
    """Name, unit, references and predictions of the levels that are occupied."""
    levels = paired_levels(evaluated.predicted, evaluated.dataset)
    reference = np.concatenate([wanted[:k] for wanted, _, k in levels])
    predicted = np.concatenate([energy[:k] for _, energy, k in levels])
    return "occupied level", "Hartree", reference, predicted


def matrix_picture(model: Op2OpModel, evaluated: Evaluated) -> Picture:
    """The matrix of the structure with the largest error, and what is wrong with it."""
    return Picture(
        "Predicted matrix and its error",
        functools.partial(_worst_matrix, model, evaluated),
        "Predicted matrix of the structure with the largest error, AO by AO, and predicted minus "
        "reference (an effective matrix has none).",
    )


def _worst_matrix(model: Op2OpModel, evaluated: Evaluated) -> list[Any] | None:
    """Heat maps; None if no prediction is a number."""
    predicted, dataset = evaluated.predicted, evaluated.dataset
    errors = errors_by_structure(predicted, dataset)
    if not np.isfinite(errors).any():
        return None
    i = int(np.nanargmax(errors))
    n = predicted["nao"][i]
    if is_effective(predicted, dataset):
        named = {"F, Hartree": predicted["fock"][i, :n, :n]}
    else:
        matrix, wanted = paired_matrices(predicted, dataset)[i]
        name, unit = ("F, Hartree", "μHartree") if "fock" in predicted else ("P", "1e-6")
        named = {name: matrix, f"error, {unit}": MICRO * (matrix - wanted)}
    structure, basis = dataset.structures[i], model.definition.basis
    return [heat_map(title, values, structure, basis) for title, values in named.items()]
