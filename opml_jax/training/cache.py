"""Cached descriptors: they hold no parameters, so they and their derivatives are computed once.

With :math:`x(R)` and :math:`dx/dR` stored, forces of any model on top are a chain rule away and
training needs no second derivative of an integral. Derivatives come from forward-mode
differentiation through the same integrals that prediction uses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import Bucket, batch, bucket_of
from ..models import Op2Prop
from ..structures import Structure, StructureBatch

CHUNK = 16


@dataclasses.dataclass(frozen=True)
class Cache:
    """Descriptors of structures padded to one number of atoms.

    Attributes:
      x: ``(n, n_atoms, n_invariants)``.
      dx: ``(n, 3 n_atoms, n_atoms, n_invariants)`` derivative in each coordinate, or None.
      v: ``(n, n_atoms, n_vectors, 3)``.
      one_hot: ``(n, n_atoms, n_elements)``.
    """

    x: np.ndarray
    dx: np.ndarray | None
    v: np.ndarray
    one_hot: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def subset(self, index: Sequence[int]) -> Cache:
        """Rows at ``index``."""
        i = np.asarray(index, dtype=np.int64)
        return Cache(self.x[i], None if self.dx is None else self.dx[i], self.v[i], self.one_hot[i])


@functools.partial(jax.jit, static_argnums=(0, 2))
def _chunk(definition: Op2Prop, structures: StructureBatch, derivatives: bool):
    one_hot = definition.one_hot(structures)

    def at(positions):
        return definition.descriptors(structures.replace(positions=positions))

    positions = jnp.asarray(structures.positions)
    if not derivatives:
        return *at(positions), one_hot, None
    n = structures.n_atoms
    directions = jnp.eye(3 * n).reshape(3 * n, 1, n, 3)

    def push(direction):
        tangent = jnp.broadcast_to(direction, positions.shape)
        (x, v), (dx, _) = jax.jvp(at, (positions,), (tangent,))
        return x, v, dx

    x, v, dx = jax.vmap(push, out_axes=(None, None, 1))(directions)
    return x, v, one_hot, dx


def build_cache(
    definition: Op2Prop,
    structures: Sequence[Structure],
    *,
    derivatives: bool,
    bucket: Bucket | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Cache:
    """Descriptors (and derivatives) of structures, chunk by chunk through one compiled program.

    Args:
      definition: the model's functions.
      structures: molecules.
      derivatives: whether to differentiate the invariants in all coordinates.
      bucket: shape to pad to. Default: the smallest that fits.
      on_progress: called with (done, total).
    """
    basis = definition.basis
    bucket = bucket or bucket_of(structures, basis)
    chunk = min(CHUNK, len(structures))
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for start in range(0, len(structures), chunk):
        part = list(structures[start : start + chunk])
        full = part + [part[-1]] * (chunk - len(part))
        result = _chunk(definition, batch(full, basis, bucket=bucket), derivatives)
        for own, values in zip(parts, result, strict=True):
            if values is not None:
                own.append(np.asarray(values)[: len(part)])
        on_progress(min(start + chunk, len(structures)), len(structures))
    x, v, one_hot, dx = (np.concatenate(p) if p else None for p in parts)
    return Cache(x, dx, v, one_hot)


def rounding_noise(
    definition: Op2Prop, structures: Sequence[Structure], cache: Cache, *, derivatives: bool
) -> np.ndarray:
    """How far rounding moves each invariant, measured by turning molecules.

    Invariants that vanish by symmetry (in a planar molecule, say) are nothing but rounding, and
    standardising them would make it as loud as physics.

    Args:
      definition: the model's functions.
      structures: the structures of ``cache``, in order.
      cache: their descriptors.
      derivatives: as ``cache`` was built, so that no program is compiled anew.

    Returns:
      ``(n_elements, n_invariants)`` root mean square change under random rotations.
    """
    rng = np.random.default_rng(0)
    chosen = np.linspace(0, len(structures) - 1, min(CHUNK, len(structures))).astype(int)
    turned = []
    for i in chosen:
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turned.append(structures[i].replace(positions=np.asarray(structures[i].positions) @ q.T))
    bucket = bucket_of(structures, definition.basis)
    other = build_cache(definition, turned, derivatives=derivatives, bucket=bucket)
    square = np.einsum("nie,nik->ek", other.one_hot, (other.x - cache.x[chosen]) ** 2)
    return np.sqrt(square / np.maximum(other.one_hot.sum(axis=(0, 1)), 1.0)[:, None])
