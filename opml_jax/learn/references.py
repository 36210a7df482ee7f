"""Reference points of kernels."""

from __future__ import annotations

import numpy as np

ALIKE = 1e-12
"""Squared distance, in units in which points have a spread of about one, of repeats."""


def farthest_points(x: np.ndarray, n: int) -> np.ndarray:
    """Indices of up to ``n`` rows of ``x``, each the farthest from those before.

    The first one is the farthest from the mean; repeats of those chosen are left out.
    """
    x = x - x.mean(axis=0)
    square = (x**2).sum(axis=1)
    chosen = [int(np.argmax(square))]
    nearest = np.full(len(x), np.inf)
    while len(chosen) < min(n, len(x)):
        last = chosen[-1]
        nearest = np.minimum(nearest, square + square[last] - 2 * (x @ x[last]))
        if nearest.max() <= ALIKE:
            break
        chosen.append(int(np.argmax(nearest)))
    return np.array(chosen)
