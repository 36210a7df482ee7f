"""How large standard deviations are: what 68 % of the errors on molecules with labels are below."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..data import Dataset
from ..errors import DataWarning
from ..models import Model, OperatorModel
from ..models.op2prop import Params

WITHIN = 0.6827
"""Share of the errors of a normal distribution that are within one standard deviation."""


def scale_of(error: np.ndarray, sigma: np.ndarray) -> float:
    """What standard deviations are multiplied by, so that 68 % of absolute errors are below.

    Args:
      error: absolute errors, of any shape.
      sigma: standard deviations; where they are not positive and finite an error says nothing.
    """
    error, sigma = np.ravel(error), np.ravel(sigma)
    real = (sigma > 0) & np.isfinite(error / np.where(sigma > 0, sigma, 1.0))
    return float(np.quantile(error[real] / sigma[real], WITHIN)) if real.any() else 1.0


def scale_of_rows(
    values: Iterable[np.ndarray], sigmas: Iterable[np.ndarray], wanted: Iterable[np.ndarray]
) -> float:
    """Likewise of predictions, each padded beyond what is ``wanted`` of it."""
    return scale_of(*_flat(values, sigmas, wanted))


def _flat(values, sigmas, wanted) -> tuple[np.ndarray, np.ndarray]:
    """Absolute errors and standard deviations, padding cut off."""
    error, sigma = [], []
    for value, spread, reference in zip(values, sigmas, wanted, strict=True):
        cut = tuple(map(slice, np.shape(reference)))
        error.append(np.ravel(np.abs(value[cut] - reference)))
        sigma.append(np.ravel(spread[cut]))
    return np.concatenate(error), np.concatenate(sigma)


def reliability(model: Model, data: Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Absolute errors and standard deviations by label, ``(n,)`` each, atomic units.

    Args:
      model: any; without standard deviations there is nothing.
      data: references.
    """
    names = [k for k in model.doubted if k in data]
    if not names:
        return {}
    with warnings.catch_warnings(action="ignore", category=DataWarning):
        found = model.predict(data.structures, uncertainty=True)
    return {k: _flat(found[k], found[f"{k}_uncertainty"], data.labels[k]) for k in names}


def shares(found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """``{name}_within_sigma_percent``: errors below a standard deviation; 68 of a normal one."""
    return {f"{k}_within_sigma_percent": 100 * float((e < s).mean()) for k, (e, s) in found.items()}


def recalibrated(model: Model, data: Dataset) -> Params:
    """Parameters whose standard deviations are scaled by molecules that chose nothing else.

    Args:
      model: of energies, an ensemble or with a last layer.
      data: with energies and, if forces were learned, forces.
    """
    where = "calibration" if "calibration" in model.params else "last_layer"
    own, found = model.params[where], reliability(model, data)
    scales = {k: own[k] * scale_of(*pair) for k, pair in found.items() if k in own}
    return {**model.params, where: {**own, **scales}}


def with_largest_doubt(model: Model, data: Dataset) -> Model:
    """The model, which then warns of structures that it doubts much more than these."""
    if not model.doubted:
        return model
    options: dict[str, Any] = {"uncertainty": "energy"}  # cheaper than those of forces
    if isinstance(model, OperatorModel):
        options = {"uncertainty": True, "allow_unconverged": True}
    with warnings.catch_warnings(action="ignore", category=DataWarning):
        doubt = model.doubt(model.predict(data.structures, **options))
    known = doubt[np.isfinite(doubt)]
    if not len(known):
        return model
    return dataclasses.replace(model, card={**model.card, "largest_doubt": float(known.max())})
