"""How large standard deviations are: what 68 % of the errors on molecules with labels are below."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

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
    return scale_of(*flat_errors(values, sigmas, wanted))


def flat_errors(values, sigmas, wanted) -> tuple[np.ndarray, np.ndarray]:
    """Absolute errors and standard deviations, padding cut off."""
    error, sigma = [], []
    for value, spread, reference in zip(values, sigmas, wanted, strict=True):
        cut = tuple(map(slice, np.shape(reference)))
        error.append(np.ravel(np.abs(value[cut] - reference)))
        sigma.append(np.ravel(spread[cut]))
    return np.concatenate(error), np.concatenate(sigma)
