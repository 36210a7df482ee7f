"""Losses of densities beside that in the metric: dipoles, and absolute errors on points.

Both are of coefficients before electrons are counted, as the loss in the metric is. Points are
those of DenSNet (Bogojeski et al., arXiv:2604.24563): random ones of atomic grids that are turned
at random, so that no direction is preferred; here they are drawn once for each structure.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from .. import density
from ..basis import layout_of
from ..models.density import Op2Density
from ..numerics import Array, einsum
from ..structures import Structure
from .density import Labelled

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
    definition: Op2Density, labelled: Labelled, names: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Linear maps from coefficients to what losses compare, for each structure.

    Args:
      definition: the model's functions.
      labelled: molecules, with ``structures``.
      names: of the maps.
      seed: of the points.

    Returns:
      ``dipole`` ``(n_structures, 3, naux)`` e Bohr; ``points`` ``(n_structures, n_points, naux)``,
      electrons at each point with its weight, whose absolute values sum to an integral.
    """
    shape = (len(labelled.target), -1, labelled.target.shape[1])
    rng, out = np.random.default_rng(seed), {}
    if "dipole" in names:
        out["dipole"] = [_dipole(s, definition) for s in labelled.structures]
    if "points" in names:
        network = definition.config.network
        assert network is not None  # whose loss has points
        out["points"] = [_points(s, definition, network.points, rng) for s in labelled.structures]
    for name, rows in out.items():
        most = max(len(r) for r in rows)
        padded = np.zeros((shape[0], most, shape[2]))
        for i, r in enumerate(rows):
            padded[i, : r.shape[0], : r.shape[1]] = r
        out[name] = padded
    return out


def _dipole(structure: Structure, definition: Op2Density) -> np.ndarray:
    each = np.eye(layout_of(structure, definition.aux_basis).nao)
    return np.asarray(density.dipole(each, structure, definition.aux_basis)).T


def draw_points(structure: Structure, n: int, rng: np.random.Generator):
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


def _points(structure: Structure, definition: Op2Density, n: int, rng) -> np.ndarray:
    points, weights = draw_points(structure, n, rng)
    each = np.eye(layout_of(structure, definition.aux_basis).nao)
    return weights[:, None] * density.on_points(each, structure, definition.aux_basis, points).T
