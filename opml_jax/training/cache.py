"""Cached descriptors: they hold no parameters, so they and their derivatives are computed once.

With :math:`x(R)` and :math:`dx/dR` stored, forces of any model on top are a chain rule away and
training needs no second derivative of an integral. Derivatives come from forward-mode
differentiation through the same integrals that prediction uses.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import Bucket, batch, bucket_of
from ..models import Op2Prop
from ..structures import Structure, StructureBatch

CHUNK = 16
MAX_DOUBLE = 2**30
"""Bytes of derivatives kept in double precision."""
MAX_MEMORY = 2**32
"""Bytes of derivatives kept in memory."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """Descriptors of structures padded to one number of atoms.

    Attributes:
      x: ``(n, n_atoms, n_invariants)``.
      dx: ``(n, 3 n_atoms, n_atoms, n_invariants)`` derivative in each coordinate, or None. In
        single precision, and then in a temporary file, when they are many.
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
        """Rows at ``index``; a view if they follow each other."""
        i = np.asarray(index, dtype=np.int64)
        if len(i) and (np.diff(i) == 1).all():
            i = slice(int(i[0]), int(i[-1]) + 1)
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
    parts: list[list[np.ndarray]] = [[], [], []]
    dx = None
    for start in range(0, len(structures), chunk):
        part = list(structures[start : start + chunk])
        full = part + [part[-1]] * (chunk - len(part))
        result = _chunk(definition, batch(full, basis, bucket=bucket), derivatives)
        *found, slopes = result
        for own, values in zip(parts, found, strict=True):
            own.append(np.asarray(values)[: len(part)])
        if slopes is not None:
            if dx is None:
                dx = _storage((len(structures), *slopes.shape[1:]))
            dx[start : start + len(part)] = np.asarray(slopes)[: len(part)]
        on_progress(min(start + chunk, len(structures)), len(structures))
    x, v, one_hot = (np.concatenate(p) for p in parts)
    return Cache(x, dx, v, one_hot)


def _storage(shape: tuple[int, ...]) -> np.ndarray:
    """Room for derivatives: float64 while they are few, then float32, then on disk."""
    size = int(np.prod(shape))
    if 8 * size <= MAX_DOUBLE:
        return np.empty(shape)
    if 4 * size <= MAX_MEMORY:
        return np.empty(shape, np.float32)
    # unnamed: it vanishes with the last reference to the array
    file = tempfile.TemporaryFile(prefix="opml_descriptors_")  # noqa: SIM115
    return np.memmap(file, np.float32, "w+", shape=shape)


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
