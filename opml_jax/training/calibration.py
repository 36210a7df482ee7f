"""Standard deviations of trained models, held against errors on molecules with labels."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np

from ..data import Dataset
from ..errors import DataWarning
from ..learn.calibration import flat_errors, scale_of
from ..models.base import Model

Doubts = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Absolute errors and standard deviations by label, ``(n,)`` each, atomic units."""


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
        predicted = model.predict(data.structures, uncertainty=True)
    return {
        k: flat_errors(predicted[k], predicted[f"{k}_uncertainty"], data.labels[k]) for k in names
    }


def shares(doubts: Doubts) -> dict[str, float]:
    """``{name}_within_sigma_percent``: errors below a standard deviation; 68 of a normal one."""
    return {
        f"{k}_within_sigma_percent": 100 * float((error < sigma).mean())
        for k, (error, sigma) in doubts.items()
    }


def calibrated(model: Model, sets: Mapping[str, Dataset]) -> Model:
    """The model with standard deviations scaled, if a set does nothing else, and their largest.

    Args:
      model: trained.
      sets: ``validation``, and perhaps ``calibration``, which chose nothing of the model.
    """
    if not model.doubted:
        return model
    if "calibration" in sets:
        doubts = reliability(model, sets["calibration"])
        model = model.recalibrated({k: scale_of(*pair) for k, pair in doubts.items()})
    data = sets.get("calibration", sets["validation"])
    with warnings.catch_warnings(action="ignore", category=DataWarning):
        doubt = model.doubt(model.predict(data.structures, **model.quick_doubt))
    known = doubt[np.isfinite(doubt)]
    if not len(known):
        return model
    return dataclasses.replace(model, card={**model.card, "largest_doubt": float(known.max())})
