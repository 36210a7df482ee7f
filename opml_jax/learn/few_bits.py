r"""Weights of a ridge regression in 16 bits each, rounded so that errors cancel on training rows.

Columns of descriptors are nearly dependent: weights are large and their sum is small. Rounded one
by one they are useless. But what the rounding of one weight does to the training rows the others
can undo, and the next ones are rounded from there (Babai's nearest plane, Combinatorica 6, 1
(1986)): with R the triangle of the standardised rows and of the ridge, row i from the last on,

.. math:: \hat w_i = \mathrm{round}\Big(w_i - \sum_{j > i} R_{ij}\, (\hat w_j - w_j) / R_{ii}\Big)
"""

from __future__ import annotations

import numpy as np

from .keyed_ridge import Spectrum
from .ridge import triangle

LARGEST = 2**15 - 1
"""Of the integers that weights are, times a power of two for each column."""


def rounded(
    weights: dict[str, np.ndarray], spectrum: Spectrum, lam: float
) -> dict[str, np.ndarray]:
    """Weights near those of a key, each an integer of 16 bits times its column's power of two.

    Args:
      weights: ``weights`` ``(n_columns, n_outputs)`` and perhaps ``constant`` ``(n_outputs,)``.
      spectrum: of the training rows.
      lam: the regularisation that they were solved with.
    """
    used = np.flatnonzero(spectrum.inverse)
    steps = 2.0 ** _exponents(2 * weights["weights"])[:, 0]  # room for what others leave to undo
    used = used[np.argsort(steps[used] / spectrum.inverse[used])]  # what nothing undoes is least
    given, spread = weights["weights"][used], 1 / spectrum.inverse[used]
    rows = spectrum.s[:, None] * spectrum.vt[:, used]
    ridge = (lam * spectrum.n) ** 0.5 * np.eye(len(used))
    r = triangle(np.concatenate([rows, ridge]))
    out, error = np.zeros_like(given), np.zeros_like(given)
    for i in reversed(range(len(used))):
        step = steps[used[i]]
        wanted = given[i] - r[i, i + 1 :] @ error[i + 1 :] / (r[i, i] * spread[i])
        out[i] = step * np.clip(np.rint(wanted / step), -LARGEST, LARGEST)
        error[i] = (out[i] - given[i]) * spread[i]
    whole = np.zeros_like(weights["weights"])
    whole[used] = out
    if "constant" not in weights:
        return {"weights": whole}
    moved = spectrum.mean[: len(whole)] @ (whole - weights["weights"])
    return {"weights": whole, "constant": weights["constant"] - moved}


def packed(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Integers ``(n, m)`` and exponents ``(n, 1)`` that a matrix is, int16 and int8.

    None of numbers that are no integers of 16 bits times a power of two for each row.
    """
    exponents = _exponents(weights)
    integers = np.ldexp(weights, -exponents)
    fits = (np.rint(integers) == integers).all() and (np.abs(exponents) < 2**7).all()
    return (integers.astype(np.int16), exponents.astype(np.int8)) if fits else None


def unpacked(integers: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """The inverse of :func:`packed`, float64."""
    return np.ldexp(integers.astype(np.float64), exponents.astype(np.int32))


def _exponents(weights: np.ndarray) -> np.ndarray:
    """Of the least power of two times :data:`LARGEST` that no number of a row exceeds, ``(n, 1)``.

    0 of a row of zeros.
    """
    most = np.abs(weights).max(axis=1, keepdims=True, initial=0.0)
    exponents = np.ceil(np.log2(np.where(most > 0, most, 1.0) / LARGEST))
    return np.where(most > 0, exponents, 0.0).astype(np.int32)
