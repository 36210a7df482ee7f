"""Losses of densities beside that in the metric: dipoles, and absolute errors on points.

Both are of coefficients before electrons are counted, as the loss in the metric is. Points are
those of DenSNet (Bogojeski et al., arXiv:2604.24563): random ones of atomic grids that are turned
at random, so that no direction is preferred; here they are drawn once for each structure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import jax.numpy as jnp
import numpy as np

from ... import density
from ...basis import Basis, layout_of
from ...numerics import Array, einsum
from ...structures import Structure
from .functions import Op2Density
from .labels import Labelled

GRID_LEVEL = 1
"""Of the grids that points are drawn from."""


def losses(error: Array, batch: dict[str, Array]) -> dict[str, Array]:
    """Sums over structures of the squared error in the metric and of what maps there are.

    Args:
      error: ``(n_structures, naux)`` of coefficients.
      batch: ``metric``, and maps of :func:`maps_of`.
    """
    out: dict[str, Array] = {"metric": einsum("sp,spq,sq->", error, batch["metric"], error)}
    if "dipole" in batch:
        out["dipole"] = jnp.sum(einsum("sxp,sp->sx", batch["dipole"], error) ** 2)
    if "points" in batch:
        out["points"] = jnp.sum(jnp.abs(einsum("sgp,sp->sg", batch["points"], error)))
    return out


def maps_of(
    definition: Op2Density, labelled: Labelled, names: Collection[str], n_points: int, seed: int
) -> dict[str, np.ndarray]:
    """Linear maps from coefficients to what losses compare, for each structure.

    Args:
      definition: the model's functions.
      labelled: molecules, with ``structures``.
      names: of the maps.
      n_points: of each structure.
      seed: of the points.

    Returns:
      ``dipole`` ``(n_structures, 3, naux)`` e Bohr; ``points`` ``(n_structures, n_points, naux)``,
      electrons at each point with its weight, whose absolute values sum to an integral.
    """
    aux, naux = definition.aux_basis, labelled.target.shape[1]
    rng, out = np.random.default_rng(seed), {}
    if "dipole" in names:
        out["dipole"] = _padded([_dipole(s, aux) for s in labelled.structures], naux)
    if "points" in names:
        maps = [_points(s, aux, n_points, rng) for s in labelled.structures]
        out["points"] = _padded(maps, naux)
    return out


def _padded(maps: Sequence[np.ndarray], naux: int) -> np.ndarray:
    """Matrices of each structure as one array, padded by zeros."""
    out = np.zeros((len(maps), max(map(len, maps)), naux))
    for padded, matrix in zip(out, maps, strict=True):
        padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return out


def _dipole(structure: Structure, aux: Basis) -> np.ndarray:
    each = np.eye(layout_of(structure, aux).nao)
    return np.asarray(density.dipole(each, structure, aux)).T


def _points(structure: Structure, aux: Basis, n: int, rng: np.random.Generator) -> np.ndarray:
    points, weights = draw_points(structure, n, rng)
    each = np.eye(layout_of(structure, aux).nao)
    return weights[:, None] * density.on_points(each, structure, aux, points).T


def draw_points(
    structure: Structure, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random points of a turned atomic grid, and weights that make sums over them integrals.

    Args:
      structure: molecule.
      n: how many; fewer if the grid has no more.
      rng: draws the rotation and the points.

    Returns:
      ``(n, 3)`` Bohr and ``(n,)`` Bohr^3.
    """
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    x = np.asarray(structure.positions)
    points, weights = density.grid(structure.replace(positions=x @ rotation.T), GRID_LEVEL)
    chosen = rng.permutation(len(points))[:n]
    return points[chosen] @ rotation, weights[chosen] * len(points) / len(chosen)
