"""Scales and principal components of the invariants of each element's atoms."""

from __future__ import annotations

import dataclasses

import numpy as np

from ...errors import OpmlError
from ...learn.rows import Selected
from ..base import Params
from .descriptors import Cache

CONSTANT = 1e-9
"""Invariants whose standard deviation is below this fraction of their mean are constant."""

MAX_NOISE = 1e-8
"""Invariants whose rounding exceeds this fraction of their standard deviation are dropped."""

NOISE = 1e-14
"""Variances below this part of the largest are rounding."""

FLOOR = 0.1
"""Least standard deviation of an element's invariant, in units of the largest of any element.

What hardly varies in the training set for one element (neighbours of a kind it never had there)
may vary a lot elsewhere, and would then be magnified millions of times.
"""


def fit_scaler(cache: Cache, noise: np.ndarray) -> Params:
    """Mean and inverse standard deviation of the invariants over all atoms of each element.

    Columns that are constant, or ``noise`` (:func:`~.descriptors.rounding_noise`), get an inverse
    of zero and vanish from everything that follows.
    """
    means, spreads, varies = [], [], []
    for e in range(cache.one_hot.shape[-1]):
        rows = cache.x[cache.one_hot[..., e] > 0]
        if not len(rows):
            got, expected = f"no atom of element number {e}", "every element of the basis"
            raise OpmlError("training set", got=got, expected=expected)
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        means.append(mean)
        spreads.append(std)
        real = std > CONSTANT * np.maximum(np.abs(mean), 1e-12)
        varies.append(real & (std * MAX_NOISE > noise[e]))
    std = np.maximum(spreads, FLOOR * np.max(spreads, axis=0))
    inverses = np.where(varies, 1.0 / np.where(varies, std, 1.0), 0.0)
    return {"mean": np.array(means), "inverse_std": inverses}


def scaled(cache: Cache, scaler: Params) -> Cache:
    """The cache with standardised invariants, zero for padding."""
    mean, inverse = cache.one_hot @ scaler["mean"], cache.one_hot @ scaler["inverse_std"]
    dx = None if cache.dx is None else Selected(cache.dx, factor=inverse[:, None])
    return dataclasses.replace(cache, x=(cache.x - mean) * inverse, dx=dx)


def principal(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations (0 for noise) and directions of the first ``k`` principal components."""
    # from the covariance, or from products of rows where these are fewer: directions are accurate
    # down to 1e-7 of the largest deviation
    few = len(rows) < rows.shape[1]
    values, u = np.linalg.eigh((rows @ rows.T if few else rows.T @ rows) / len(rows))
    values, u = values[::-1][:k], u[:, ::-1][:, :k]
    if few:
        real = values > NOISE * values[0]
        u = rows.T @ (u * np.where(real, len(rows) * np.where(real, values, 1.0), np.inf) ** -0.5)
    # signs are LAPACK's choice, and would give networks other inputs on another machine
    size = np.abs(u)
    first = np.argmax(size > (1 - 1e-6) * size.max(axis=0), axis=0)
    u = u * np.sign(np.take_along_axis(u, first[None], axis=0))
    return np.sqrt(np.where(values > NOISE * values[0], values, 0.0)), u.T


def fit_components(cache: Cache, k: int) -> np.ndarray:
    """``(n_elements, n_invariants, k)`` principal components of unit mean variance, half whitened.

    An eigenvalue e is scaled to sqrt(e): full whitening would blow up the noise of the last ones.
    Numbers are those of float32, as the networks' weights are: half of a model file would be these.
    """
    out = []
    for e in range(cache.one_hot.shape[-1]):
        rows = cache.x[cache.one_hot[..., e] > 0]
        s, vt = principal(rows, k)
        real = s > 0
        scale = np.where(real, np.where(real, s, 1.0) ** -0.5, 0.0)
        scale = scale / np.sqrt(np.mean((scale * s)[real] ** 2)) if real.any() else scale
        padded = np.zeros((rows.shape[1], k))
        padded[:, : len(s)] = vt.T * scale
        out.append(padded)
    return np.array(out).astype(np.float32).astype(np.float64)
