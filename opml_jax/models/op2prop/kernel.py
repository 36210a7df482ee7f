"""The kernel of Op2Prop's closed form: reference atoms, and the columns of its ridge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...learn.references import farthest_points
from ..base import Params
from .descriptors import Cache
from .scaling import principal

LENGTH, COMPONENTS = 1.5, 200
"""Length in units of the spread of an element's atoms, and how many of their principal components
are compared."""

ABSENT = 1e3
"""Coordinate of references that an element lacks: so far away that their Gaussian is 0."""


def fit_references(cache: Cache, m: int) -> Params:
    """Coordinates of the kernel and its reference atoms, ``m`` of each element.

    Coordinates are principal components of the standardised (and by the prior weighted)
    invariants, in units of :data:`LENGTH` times their root mean square distance from the mean.
    """
    components, references = [], []
    for e in range(cache.one_hot.shape[-1]):
        rows = cache.x[cache.one_hot[..., e] > 0]
        s, vt = principal(rows, COMPONENTS)
        spread = np.sqrt(np.sum(s**2)) * LENGTH
        c = np.zeros((rows.shape[1], COMPONENTS))
        c[:, : len(s)] = vt.T * (s > 0) / max(spread, 1e-12)
        y = rows @ c
        chosen = y[farthest_points(y, m)]
        padded = np.full((m, COMPONENTS), ABSENT)
        padded[: len(chosen)] = chosen
        components.append(c)
        references.append(padded)
    return {"components": np.array(components), "references": np.array(references)}


class KernelColumns:
    """Columns of the ridge for the kernel part, whitened so that one penalty fits all.

    A Gaussian of amplitude t^2 in coordinates x / t is x . x' to first order, the kernel of the
    linear columns, whose penalty is then the right one for both. ``n`` is their number.
    """

    def __init__(self, kernel: Params):
        self.kernel, self.whiten = kernel, []
        for c, references in zip(kernel["components"], kernel["references"], strict=True):
            amplitude = 1.0 / max(np.linalg.norm(c, axis=0).max(), 1e-12)
            real = references[:, 0] < 0.1 * ABSENT
            values, u = np.linalg.eigh(_gaussians(references[real], references[real]))
            sound = values > 1e-10 * values[-1]
            w = np.zeros((len(references), sound.sum()))
            w[real] = amplitude * u[:, sound] / np.sqrt(values[sound])
            self.whiten.append(w)
        self.n = sum(w.shape[1] for w in self.whiten)

    def _sums(self, cache: Cache, shape: tuple[int, ...], of_atoms: Callable) -> np.ndarray:
        """Sums over atoms of each element of columns ``of_atoms(e, rows, i)`` for atoms i."""
        columns = []
        for e, w in enumerate(self.whiten):
            total = np.zeros((len(cache), *shape, len(w)))
            for i in range(cache.x.shape[1]):
                rows = np.flatnonzero(cache.one_hot[:, i, e] > 0)
                if len(rows):
                    total[rows] += of_atoms(e, rows, i)
            columns.append(total @ w)
        return np.concatenate(columns, axis=-1)

    def energy(self, cache: Cache) -> np.ndarray:
        """``(n_structures, n)``."""

        def of_atoms(e, rows, i):
            y = cache.x[rows, i] @ self.kernel["components"][e]
            return _gaussians(y, self.kernel["references"][e])

        return self._sums(cache, (), of_atoms)

    def slopes(self, cache: Cache) -> np.ndarray:
        """Minus derivatives: each Gaussian times (y_i - y_m) . dy_i, summed over atoms."""
        dx = np.asarray(cache.dx)

        def of_atoms(e, rows, i):
            c, references = self.kernel["components"][e], self.kernel["references"][e]
            y, dy = cache.x[rows, i] @ c, dx[rows, :, i] @ c
            slope = np.einsum("ndk,nk->nd", dy, y)[..., None] - dy @ references.T
            return slope * _gaussians(y, references)[:, None]

        sums = self._sums(cache, dx.shape[1:2], of_atoms)
        return sums.reshape(-1, sums.shape[-1])

    def weights(self, solution: np.ndarray) -> np.ndarray:
        """``(n_elements, m)`` from the whitened solution."""
        cuts = np.cumsum([w.shape[1] for w in self.whiten])[:-1]
        parts = np.split(solution, cuts)
        return np.array([w @ part for w, part in zip(self.whiten, parts, strict=True)])


def _gaussians(y: np.ndarray, references: np.ndarray) -> np.ndarray:
    """``(n, m)`` Gaussians of the distances between rows."""
    y2, m2 = (y**2).sum(axis=-1), (references**2).sum(axis=-1)
    return np.exp(np.minimum(y @ references.T - 0.5 * (y2[:, None] + m2), 0.0))
