"""Cached descriptors: they hold no parameters, so they and their derivatives are computed once.

With :math:`x(R)` and :math:`dx/dR` stored, forces of any model on top are a chain rule away and
training needs no second derivative of an integral. Derivatives come from forward-mode
differentiation through the same integrals that prediction uses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ...basis import Bucket, batch
from ...basis.buckets import smallest_bucket
from ...data import Dataset
from ...data.moments import centred_quadrupoles
from ...data.plausibility import check_finite
from ...errors import Code, DataError
from ...learn.devices import collect, mesh_for
from ...learn.rows import Rows, Selected
from ...learn.run import COMPILING, Run, silent
from ...learn.states import fingerprint
from ...numerics import Array
from ...operators import map_molecules, shard_batch
from ...programs import Program
from ...structures import Structure, StructureBatch
from ..base import Params
from .atomwise import AtomwiseDefinition

Arrays = dict[str, Any]
"""Named arrays, structures first."""

CHUNK = 16
"""Structures differentiated at once, fewer if they are large."""

CHUNK_BYTES = 2**26
"""Bytes that derivatives of one operator of a chunk may take."""

MAX_DOUBLE = 2**30
"""Bytes of derivatives kept in double precision."""

OF_NEUTRAL = ("dipole", "quadrupole")
"""Labels that depend on the origin of coordinates for ions."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """Descriptors of structures padded to one number of atoms.

    Attributes:
      x: ``(n, n_atoms, n_invariants)``.
      dx: ``(n, 3 n_atoms, n_atoms, n_invariants)`` derivatives in coordinates, and in three more
        rows in the field if asked for (then those of coordinates may be left out), or None. Many
        are in single precision and in a temporary file, and read when a subset is asked for.
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


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A set of molecules as training reads it: descriptors, and arrays of labels by target."""

    cache: Cache
    labels: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.cache)

    def subset(self, index: np.ndarray) -> Labelled:
        """The molecules at ``index``."""
        return Labelled(self.cache.subset(index), {k: v[index] for k, v in self.labels.items()})


def check_labels(sets: Mapping[str, Dataset], targets: Sequence[str]) -> None:
    """Refuse sets that lack a target, moments of ions, and NaN among labels."""
    for name, dataset in sets.items():
        padded_labels(dataset, targets, max(s.n_atoms for s in dataset.structures))
        where = f"the data set ({name} split)"
        check_finite(where, {k: dataset.labels[k] for k in targets})


def padded_labels(dataset: Dataset, targets: Sequence[str], n_atoms: int) -> dict[str, np.ndarray]:
    """Targets as arrays with structures first, forces padded to ``n_atoms``.

    Raises:
      DataError: a target the data lacks, or moments of an ion.
    """
    labels = {}
    for name in targets:
        if name not in dataset:
            got = f"{name!r}, which the data set lacks"
            expected = f"labels it has: {', '.join(dataset.labels) or 'no labels'}"
            raise DataError("model.fit.targets", got=got, expected=expected, code=Code.LABEL)
        if name in OF_NEUTRAL and any(s.charge for s in dataset.structures):
            expected = f"neutral ones: an ion's {name} depends on the origin"
            got = f"{name!r} for charged molecules"
            raise DataError("model.fit.targets", got=got, expected=expected)
        if name == "forces":
            labels[name] = np.zeros((len(dataset), n_atoms, 3))
            for row, forces in zip(labels[name], dataset.labels[name], strict=True):
                row[: len(forces)] = forces
        elif name == "quadrupole":
            labels[name] = centred_quadrupoles(dataset)
        else:
            labels[name] = np.array(dataset.labels[name])
    return labels


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is computed: derivatives in coordinates and in a uniform field, irreps of these L."""

    derivatives: bool = False
    field: bool = False
    irreps: tuple[int, ...] = ()


def build_cache(
    definition: AtomwiseDefinition,
    structures: Sequence[Structure],
    wanted: Wanted,
    params: Params | None = None,
    *,
    bucket: Bucket | None = None,
    run: Run | None = None,
    name: str = "structures",
) -> Cache:
    """Descriptors (and derivatives) of structures, chunk by chunk through one compiled program.

    Args:
      definition: the model's functions.
      structures: molecules.
      wanted: what is computed.
      params: what the descriptors need beside the structure.
      bucket: shape to pad to. Default: the smallest that fits.
      run: keeps the arrays, so that a killed process goes on from there. Default: memory does. Of
        several processes none keeps them: what each has is its own.
      name: under which it does.
    """
    run = run or Run()
    bucket = bucket or _bucket(definition, structures)
    n, mesh = len(structures), mesh_for()
    chunk = _chunk_size(n, wanted, bucket, mesh)
    settings = {
        "model": [type(definition).__name__, repr(definition.config)],
        "basis": definition.basis.spec.fingerprint,
        "wanted": repr(wanted),
        "bucket": repr(bucket),
        "version": version("opml_jax"),
    }
    params = params or {}
    folder = run.path(name) if jax.process_count() == 1 else None
    rows = Rows(n, folder, fingerprint(settings, structures, jax.tree.leaves(params)))
    run.progress("descriptors", rows.done, n, COMPILING)
    directions = 3 * bucket.n_atoms if wanted.derivatives else 1
    evaluate = _of_chunk.for_work(n * bucket.pair_work * directions)
    for start in range(rows.done, n, chunk):
        part = list(structures[start : start + chunk])
        full = part + [part[-1]] * (chunk - len(part))
        padded = batch(full, definition.basis, bucket=bucket)
        padded = padded if mesh is None else shard_batch(padded, mesh)
        x, v, one_hot, dx = collect(evaluate(mesh, definition, wanted, padded, params))
        arrays = {"x": x, "one_hot": one_hot, **v}
        if dx is not None:
            few = 8 * n * dx.size // len(dx) <= MAX_DOUBLE
            arrays["dx"] = np.asarray(dx, np.float64 if few else np.float32)
        rows.append({k: array[: len(part)] for k, array in arrays.items()})
        run.progress("descriptors", rows.done, n)
    a = rows.arrays()
    return Cache(a["x"], a.get("dx"), {l: a[f"v{l}"] for l in wanted.irreps}, a["one_hot"])


def _bucket(definition: AtomwiseDefinition, structures: Sequence[Structure]) -> Bucket:
    """The smallest shape: derivatives of padded atoms would cost as much as others."""
    return smallest_bucket(definition.basis.spec, [s.numbers for s in structures])


def _chunk_size(n: int, wanted: Wanted, bucket: Bucket, mesh: Mesh | None) -> int:
    """Structures differentiated at once, a multiple of the devices."""
    chunk = min(CHUNK, n)
    if wanted.derivatives:
        each = 8 * 3 * bucket.n_atoms * bucket.nao**2
        chunk = min(chunk, max(1, CHUNK_BYTES // each))
    return chunk if mesh is None else -(-chunk // mesh.size) * mesh.size


@functools.partial(Program, static_argnums=(0, 1, 2))
def _of_chunk(
    mesh: Mesh | None,
    definition: AtomwiseDefinition,
    wanted: Wanted,
    structures: StructureBatch,
    params: Params,
):
    """:func:`_descriptors` of molecules spread over a mesh."""
    of_device = functools.partial(_descriptors, definition, wanted, params)
    return of_device(structures) if mesh is None else map_molecules(of_device, mesh)(structures)


def _descriptors(
    definition: AtomwiseDefinition, wanted: Wanted, params: Params, structures: StructureBatch
):
    """Invariants, the irreps wanted, one-hot elements, and derivatives of the invariants."""
    positions = jnp.asarray(structures.positions)
    n_structures, n = positions.shape[:2]

    def moved(positions):
        return definition.descriptors(structures.replace(positions=positions), params)

    def in_field(field):
        return definition.descriptors(structures, params, field=field)

    pushed = []
    if wanted.derivatives:
        pushed.append(_push(moved, positions, jnp.eye(3 * n).reshape(3 * n, 1, n, 3)))
    if wanted.field:
        pushed.append(_push(in_field, jnp.zeros((n_structures, 3)), jnp.eye(3)[:, None]))
    x, v = pushed[0][0] if pushed else definition.descriptors(structures, params)
    dx = jnp.concatenate([slope for _, (slope, _) in pushed], axis=1) if pushed else None
    return x, {f"v{l}": v[l] for l in wanted.irreps}, definition.one_hot(structures), dx


def _push(descriptors: Callable, point: Array, directions: Array):
    """Descriptors at a point, and their derivatives in each direction."""

    def one(direction):
        return jax.jvp(descriptors, (point,), (jnp.broadcast_to(direction, point.shape),))

    return jax.vmap(one, out_axes=(None, 1))(directions)


def rounding_noise(
    definition: AtomwiseDefinition,
    structures: Sequence[Structure],
    cache: Cache,
    wanted: Wanted,
    params: Params | None = None,
    *,
    run: Run | None = None,
) -> np.ndarray:
    """``(n_elements, n_invariants)`` root mean square changes of invariants if molecules turn.

    Invariants that vanish by symmetry (in a planar molecule, say) are nothing but rounding, and
    standardising them would make it as loud as physics. Arguments are those that ``cache`` was
    built of, so that no program is compiled anew.
    """
    rng = np.random.default_rng(0)
    chosen = np.linspace(0, len(structures) - 1, min(CHUNK, len(structures))).astype(int)
    turned = []
    for i in chosen:
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turned.append(structures[i].replace(positions=np.asarray(structures[i].positions) @ q.T))
    bucket = _bucket(definition, structures)
    run = run and dataclasses.replace(run, on_progress=silent)
    other = build_cache(definition, turned, wanted, params, bucket=bucket, run=run, name="turned")
    square = np.einsum("nie,nik->ek", other.one_hot, (other.x - cache.x[chosen]) ** 2)
    return np.sqrt(square / np.maximum(other.one_hot.sum(axis=(0, 1)), 1.0)[:, None])
