"""Cached descriptors: they hold no parameters, so they and their derivatives are computed once.

With :math:`x(R)` and :math:`dx/dR` stored, forces of any model on top are a chain rule away and
training needs no second derivative of an integral. Derivatives come from forward-mode
differentiation through the same integrals that prediction uses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..basis import Bucket, batch, bucket_of
from ..models import Op2Prop, OperatorNetwork
from ..models.op2prop import Params
from ..operators import map_molecules, shard_batch
from ..structures import Structure, StructureBatch
from .checkpoint import fingerprint
from .parallel import collect, mesh_for
from .rows import Rows, Selected

CHUNK = 16
"""Structures differentiated at once, fewer if they are large."""

CHUNK_BYTES = 2**26
"""Bytes that derivatives of one operator of a chunk may take."""

MAX_DOUBLE = 2**30
"""Bytes of derivatives kept in double precision."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """Descriptors of structures padded to one number of atoms.

    Attributes:
      x: ``(n, n_atoms, n_invariants)``.
      dx: ``(n, 3 n_atoms, n_atoms, n_invariants)`` derivative in each coordinate, and in three
        more rows in the field if asked for (then rows of coordinates may be left out), or None.
        In single precision, and then in a temporary file, when they are many; a subset of those
        is read when its rows are asked for.
      v: for each L asked for, the irreps ``(n, n_atoms, n_irreps, 2 L + 1)``.
      one_hot: ``(n, n_atoms, n_elements)``.
    """

    x: np.ndarray
    dx: np.ndarray | Selected | None
    v: dict[int, np.ndarray]
    one_hot: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def subset(self, index: Sequence[int] | np.ndarray) -> Cache:
        """Rows at ``index``; a view if they follow each other."""
        i = np.asarray(index, dtype=np.int64)
        if len(i) and (np.diff(i) == 1).all():
            i = slice(int(i[0]), int(i[-1]) + 1)
        dx = self.dx
        if isinstance(dx, (np.memmap, Selected)):
            dx = Selected(dx, np.arange(len(dx))[i])
        elif dx is not None:
            dx = dx[i]
        return Cache(self.x[i], dx, {l: v[i] for l, v in self.v.items()}, self.one_hot[i])


What = tuple[Op2Prop | OperatorNetwork, bool, bool, tuple[int, ...]]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _chunk(mesh: Mesh | None, what: What, structures: StructureBatch, params: Params):
    """:func:`_descriptors` (``what`` they begin with) of molecules spread over a mesh."""

    def own(structures):
        return _descriptors(*what, structures, params)

    return own(structures) if mesh is None else map_molecules(own, mesh)(structures)


def _descriptors(
    definition: Op2Prop | OperatorNetwork,
    derivatives: bool,
    field: bool,
    irreps: tuple[int, ...],
    structures: StructureBatch,
    params: Params,
):
    def push(at, point, directions):
        """Descriptors at a point, and their derivatives in each direction."""

        def one(direction):
            return jax.jvp(at, (point,), (jnp.broadcast_to(direction, point.shape),))

        return jax.vmap(one, out_axes=(None, 1))(directions)

    positions = jnp.asarray(structures.positions)
    n_structures, n = positions.shape[:2]
    found = []
    if derivatives:
        found.append(
            push(
                lambda r: definition.descriptors(structures.replace(positions=r), params),
                positions,
                jnp.eye(3 * n).reshape(3 * n, 1, n, 3),
            )
        )
    if field:
        assert isinstance(definition, Op2Prop)  # operator networks never meet a field
        found.append(
            push(
                lambda f: definition.descriptors(structures, params, field=f),
                jnp.zeros((n_structures, 3)),
                jnp.eye(3)[:, None],
            )
        )
    x, v = found[0][0] if found else definition.descriptors(structures, params)
    dx = jnp.concatenate([slope for _, (slope, _) in found], axis=1) if found else None
    return x, {l: v[l] for l in irreps}, definition.one_hot(structures), dx


def build_cache(
    definition: Op2Prop | OperatorNetwork,
    structures: Sequence[Structure],
    *,
    derivatives: bool,
    params: Params | None = None,
    field: bool = False,
    irreps: Sequence[int] = (),
    bucket: Bucket | None = None,
    folder: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Cache:
    """Descriptors (and derivatives) of structures, chunk by chunk through one compiled program.

    Args:
      definition: the model's functions.
      structures: molecules.
      derivatives: whether to differentiate the invariants in all coordinates.
      params: what the descriptors need beside the structure (:meth:`Op2Prop.draw`).
      field: whether to differentiate them in a uniform electric field.
      irreps: L of the irreps to keep.
      bucket: shape to pad to. Default: the smallest that fits.
      folder: keeps the arrays; a killed process goes on from there. Default: memory.
      on_progress: called with (done, total).
    """
    basis = definition.basis
    bucket = bucket or bucket_of(structures, basis)
    n, chunk = len(structures), min(CHUNK, len(structures))
    if derivatives:
        each = 8 * 3 * bucket.n_atoms * bucket.nao**2
        chunk = min(chunk, max(1, CHUNK_BYTES // each))
    mesh = mesh_for()
    if mesh is not None:
        chunk = -(-chunk // mesh.size) * mesh.size
    settings = {
        "model": [type(definition).__name__, repr(definition.config), basis.spec.fingerprint],
        "what": [derivatives, field, *irreps],
        "bucket": repr(bucket),
        "version": version("opml_jax"),
    }
    params = params or {}
    rows = Rows(n, folder, fingerprint(settings, structures, jax.tree.leaves(params)))
    on_progress(rows.done, n)
    for start in range(rows.done, n, chunk):
        part = list(structures[start : start + chunk])
        full = part + [part[-1]] * (chunk - len(part))
        padded = batch(full, basis, bucket=bucket)
        padded = padded if mesh is None else shard_batch(padded, mesh)
        what = definition, derivatives, field, tuple(irreps)
        x, v, one_hot, dx = collect(_chunk(mesh, what, padded, params))
        found = {"x": x, "one_hot": one_hot, **{f"v{l}": v[l] for l in irreps}}
        if dx is not None:
            few = 8 * n * dx.size // len(dx) <= MAX_DOUBLE
            found["dx"] = np.asarray(dx, np.float64 if few else np.float32)
        rows.append({k: own[: len(part)] for k, own in found.items()})
        on_progress(rows.done, n)
    a = rows.arrays()
    return Cache(a["x"], a.get("dx"), {l: a[f"v{l}"] for l in irreps}, a["one_hot"])


def rounding_noise(
    definition: Op2Prop,
    structures: Sequence[Structure],
    cache: Cache,
    **built: Any,
) -> np.ndarray:
    """How far rounding moves each invariant, measured by turning molecules.

    Invariants that vanish by symmetry (in a planar molecule, say) are nothing but rounding, and
    standardising them would make it as loud as physics.

    Args:
      definition: the model's functions.
      structures: the structures of ``cache``, in order.
      cache: their descriptors.
      built: how ``cache`` was built (see :func:`build_cache`): no program is compiled anew.

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
    other = build_cache(definition, turned, bucket=bucket, **built)
    square = np.einsum("nie,nik->ek", other.one_hot, (other.x - cache.x[chosen]) ** 2)
    return np.sqrt(square / np.maximum(other.one_hot.sum(axis=(0, 1)), 1.0)[:, None])
