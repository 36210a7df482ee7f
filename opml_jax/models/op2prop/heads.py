"""Closed forms of the properties beside the energy: a ridge for each set of irreps of one L."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...conventions import cartesian_to_e3nn, matrix_to_e3nn
from ...learn.ridge import Ridge, composition_offsets, ridge_leave_one_out
from ..base import Params
from .config import PROPERTIES
from .descriptors import Cache
from .readout import head_of

TENSORS = {name: max(ls) for name, ls in PROPERTIES.items() if max(ls)}
"""Targets that read irreps, and the L of these."""


def head_labels(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Irreps of the labels, by head (:data:`~opml_jax.models.op2prop.readout.HEADS`)."""
    return {
        head_of(name, l): _irreps(labels[name], l, ls)
        for name, ls in PROPERTIES.items()
        for l in ls
        if name in labels
    }


def _irreps(values: np.ndarray, l: int, ls: tuple[int, ...]) -> np.ndarray:
    """The irreps L of numbers, vectors or matrices that are made of those of ``ls``."""
    if l:
        return cartesian_to_e3nn(values) if l == 1 else matrix_to_e3nn(values)
    return values if ls == (0,) else np.trace(values, axis1=-2, axis2=-1) / 3


def used_columns(cache: Cache) -> np.ndarray:
    """Which of the ``n_elements n_invariants`` sums over atoms are not zero in a set."""
    squares = np.einsum("nie,nik->ek", cache.one_hot, cache.x**2, optimize=True)
    return np.flatnonzero((squares > 0).ravel())


def energy_rows(cache: Cache, used: np.ndarray) -> np.ndarray:
    """``(n, n_used)``: for each element the sum of its atoms' standardised invariants."""
    rows = np.einsum("nie,nik->nek", cache.one_hot, cache.x, optimize=True)
    return rows.reshape(len(rows), -1)[:, used]


def linear_weights(solution: np.ndarray, used: np.ndarray, cache: Cache) -> np.ndarray:
    """``(n_elements, n_invariants)`` from weights of :func:`energy_rows`."""
    shape = (cache.one_hot.shape[-1], cache.x.shape[-1])
    weights = np.zeros(np.prod(shape))
    weights[used] = solution
    return weights.reshape(shape)


def fit_scalar(cache: Cache, labels: np.ndarray, tolerance: float = 0.0) -> tuple[Params, Ridge]:
    """Offsets by composition, then ridge on the invariants, lambda by leave-one-out.

    Args:
      cache: standardised training cache.
      labels: ``(n,)``.
      tolerance: precision of the labels.

    Returns:
      ``offsets`` ``(n_elements,)`` and ``weights`` ``(n_elements, n_invariants)``, and the ridge.
    """
    counts, used = cache.one_hot.sum(axis=1), used_columns(cache)
    offsets = composition_offsets(counts, labels)
    rows = energy_rows(cache, used)
    fit = ridge_leave_one_out(rows, labels - counts @ offsets, tolerance=tolerance)
    return {"offsets": offsets, "weights": linear_weights(fit.weights, used, cache)}, fit


def irreps_scale(cache: Cache, l: int) -> np.ndarray:
    """``(n_elements, n_irreps)`` inverse root mean squares of irreps of L, 0 for absent ones."""
    square = np.einsum("nie,nicm->ec", cache.one_hot, cache.v[l] ** 2, optimize=True)
    rms = np.sqrt(square / ((2 * l + 1) * cache.one_hot.sum(axis=(0, 1)))[:, None])
    used = rms > 1e-9 * rms.max(axis=1, keepdims=True)
    return np.where(used, 1.0 / np.where(used, rms, 1.0), 0.0)


def irreps_rows(cache: Cache, l: int, scale: np.ndarray) -> np.ndarray:
    """``(n * (2 L + 1), n_used)``: for each element the sum of its atoms' scaled irreps."""
    rows = np.einsum("nie,nicm->nmec", cache.one_hot, cache.v[l], optimize=True) * scale
    return rows.reshape(len(cache) * (2 * l + 1), -1)[:, scale.ravel() > 0]


def irreps_weights(solution: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Weights ``(n_elements, n_irreps)`` of irreps as they are, from those of scaled ones."""
    weights = np.zeros(scale.shape)
    weights[scale > 0] = solution
    return weights * scale


def fit_irreps(cache: Cache, labels: np.ndarray, tolerance: float = 0.0) -> tuple[Params, Ridge]:
    """Ridge on the irreps of one L, lambda by leave-one-out.

    Args:
      cache: training cache with these irreps.
      labels: ``(n, 2 L + 1)``.
      tolerance: precision of the labels.

    Returns:
      ``weights`` ``(n_elements, n_irreps)``, and the ridge.
    """
    l = labels.shape[-1] // 2
    scale = irreps_scale(cache, l)
    rows = irreps_rows(cache, l, scale)
    fit = ridge_leave_one_out(rows, labels.reshape(-1), tolerance=tolerance)
    return {"weights": irreps_weights(fit.weights, scale)}, fit


def fit_mixing(cache: Cache, n_mixed: int) -> np.ndarray:
    """``(n_elements, n_irreps, n_mixed)``: principal 1o irreps of each element, for the gates."""
    mixing, scale = [], irreps_scale(cache, 1)
    for e, inverse in enumerate(scale):
        v = cache.v[1][cache.one_hot[..., e] > 0] * inverse[:, None]
        values, u = np.linalg.eigh(np.einsum("acm,adm->cd", v, v) / (3 * len(v)))
        top = u[:, ::-1][:, :n_mixed] / np.sqrt(np.maximum(values[::-1][:n_mixed], 1e-12))
        top = np.where(values[::-1][:n_mixed] > 1e-10 * values[-1], top, 0.0)
        padded = np.zeros((len(inverse), n_mixed))
        padded[:, : top.shape[1]] = top * inverse[:, None]
        mixing.append(padded)
    return np.array(mixing)
