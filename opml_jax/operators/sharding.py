r"""Many devices: a batch by molecules, or one large system by rows of tiles.

Molecules do not talk to each other: place the arrays of a batch on the devices
(:func:`shard_batch`) and let each compute its own (:func:`map_molecules`). A large system in
tiled storage is cut into runs of tile rows (:func:`shard_operator`). Spatial order makes the
neighbours of a run live on few other devices: before a product each device sends exactly those
squares that another needs, one ``ppermute`` per distance between devices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import ConventionError, OpmlError, counted
from ..numerics import Array, pytree, static
from ..structures import StructureBatch
from .operator import Operator
from .plans import N_CLASSES, Plan, is_tiled
from .product import CHUNK, outputs

if TYPE_CHECKING:
    from .plans import TiledPlan


def _spread(mesh: Mesh) -> NamedSharding:
    """First axis over the devices.

    Axes of type Auto whatever the mesh has: shardings then are no part of types, and sharded
    arrays may be used anywhere.
    """
    if len(mesh.axis_names) != 1:
        got = f"axes {mesh.axis_names}"
        raise OpmlError("mesh", got=got, expected="a mesh of one axis")
    return NamedSharding(Mesh(mesh.devices, mesh.axis_names), PartitionSpec(*mesh.axis_names))


def shard_batch(batch: StructureBatch, mesh: Mesh) -> StructureBatch:
    """The batch with its molecules spread over the devices of a mesh.

    Every function of the library takes it and gives the same numbers as on one device. Left to
    itself the compiler may still move molecules between devices; :func:`map_molecules` does not.

    Args:
      batch: of as many molecules as a multiple of the devices.
      mesh: of one axis.

    Raises:
      OpmlError: molecules that do not divide evenly.

    Example:
      >>> mesh = jax.make_mesh((8,), ("molecules",))      # doctest: +SKIP
      >>> spread = shard_batch(batch, mesh)               # doctest: +SKIP
      >>> map_molecules(features, mesh)(spread)           # doctest: +SKIP
    """
    n = batch.n_structures
    if n % mesh.size:
        raise OpmlError(
            "batch",
            got=counted(n, "molecule"),
            expected=f"a multiple of {mesh.size} devices",
            hint="Repeat the last molecule, and drop its copies from the result.",
        )
    return jax.device_put(batch, _spread(mesh))


def map_molecules(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function of batches, run by each device on its own molecules, without communication.

    Args:
      function: of arrays or pytrees whose leaves have the molecules first, to the same.
      mesh: of one axis.

    Returns:
      The function of sharded batches (:func:`shard_batch`); also under ``jit`` and ``grad``.
    """
    spread = _spread(mesh)
    return jax.shard_map(
        function, mesh=spread.mesh, in_specs=spread.spec, out_specs=spread.spec, check_vma=False
    )


@pytree
class ShardedOperator:
    """A tiled operator whose rows of tiles are spread over devices; ``@``, ``+``, ``-``, ``*``.

    Attributes:
      values: ``(n_devices, n_own, tile, tile)``, the last square of each device empty.
      rows: which squares are where, and how products find them.
      plan: of the whole operator.
    """

    values: Array
    rows: ShardedRows
    plan: Plan

    def __matmul__(self, other: ShardedOperator) -> ShardedOperator:
        """Product restricted to the pattern."""
        return self._with(_product(self.values, self._same(other), self.rows))

    def __add__(self, other: ShardedOperator) -> ShardedOperator:
        """Sum."""
        return self._with(self.values + self._same(other))

    def __sub__(self, other: ShardedOperator) -> ShardedOperator:
        """Difference."""
        return self._with(self.values - self._same(other))

    def __mul__(self, scalar: float) -> ShardedOperator:
        """Multiple."""
        return self._with(self.values * scalar)

    __rmul__ = __mul__

    def gather(self) -> Operator:
        """The operator in one piece, through the host."""
        flat = np.asarray(self.values).reshape(-1, *self.values.shape[2:])
        values = jnp.asarray(flat[np.asarray(self.rows.position)])
        return Operator(values, self.plan.layout, self.plan)

    def _with(self, values: Array) -> ShardedOperator:
        return ShardedOperator(values, self.rows, self.plan)

    def _same(self, other: ShardedOperator) -> Array:
        if self.rows is not other.rows and self.values.shape != other.values.shape:
            got = f"{self.values.shape} and {other.values.shape}"
            raise ConventionError("sharded operators", got=got, expected="sharded by one plan")
        return other.values


@pytree
class ShardedRows:
    """Which device owns which squares, and the indices of a product; made on the host.

    Attributes:
      mesh: of one axis.
      hops: distances between devices over which squares are sent, in order of ``send``.
      own: ``(n_devices, n_own)`` square of the plan at each place.
      position: ``(n_tiles,)`` flat place of each square of the plan.
      mask: ``(n_devices, n_own, tile, tile)``.
      send: per hop ``(n_devices, n_sent)`` places of the squares sent.
      left: per class ``(n_devices, n_outputs, n_terms)`` places of the terms of A.
      right: the same of B, in own squares followed by received ones.
      output: ``(n_devices, n_own)`` output that each place holds.
    """

    mesh: Mesh = static()
    hops: tuple[int, ...] = static()
    own: Array
    position: Array
    mask: Array
    send: tuple[Array, ...]
    left: tuple[Array, ...]
    right: tuple[Array, ...]
    output: Array


def shard_operator(operator: Operator, mesh: Mesh | ShardedRows) -> ShardedOperator:
    """A tiled operator cut into runs of tile rows, one for each device of a mesh (host side).

    Args:
      operator: in tiled storage (``restrict(plan)``).
      mesh: of one axis; or the ``rows`` of another sharded operator of the same plan.

    Raises:
      OpmlError: a dense operator, or fewer rows of tiles than devices.
    """
    plan = operator.plan
    if not is_tiled(plan):
        raise OpmlError(
            "operator",
            got=f"{operator!r}",
            expected="tiled storage",
            hint="V.restrict(plan(structure, basis, cutoff, storage='tiled')).",
        )
    rows = mesh if isinstance(mesh, ShardedRows) else _rows(plan, mesh)
    values = jax.device_put(operator.values[rows.own], _spread(rows.mesh))
    return ShardedOperator(values, rows, plan)


def _pad(rows: list[np.ndarray], fill: int) -> np.ndarray:
    out = np.full((len(rows), max(1, *(len(r) for r in rows))), fill, np.int32)
    for d, r in enumerate(rows):
        out[d, : len(r)] = r
    return out


def _rows(plan: TiledPlan, mesh: Mesh) -> ShardedRows:
    n_devices, n_rows, empty = mesh.size, len(plan.ao), plan.n_tiles - 1
    if n_rows < n_devices:
        got = f"{n_rows} rows of tiles"
        raise OpmlError("operator", got=got, expected=f"at least {n_devices}, one a device")
    first, second = (np.asarray(x) for x in plan.tiles[:].T)
    lookup = np.asarray(plan.lookup)
    real = np.flatnonzero(first < n_rows)
    real = real[np.argsort(first[real], kind="stable")]
    # runs of rows with about equal numbers of squares
    load = np.searchsorted(first[real], np.arange(1, n_rows + 1))
    device_of_row = np.minimum((load - 1) * n_devices // len(real), n_devices - 1)
    device = device_of_row[first[real]]
    own = [real[device == d] for d in range(n_devices)]
    n_own = max(len(o) for o in own) + 1
    local = np.full(plan.n_tiles, n_own - 1)
    for o in own:
        local[o] = np.arange(len(o))
    home = np.zeros(plan.n_tiles, int)
    home[real] = device

    # the rows of a device need the squares (k, j) that share an output (i, j) with one (i, k)
    stored = lookup < empty
    needs = []
    for d in range(n_devices):
        mine = stored[device_of_row == d]
        reach = (mine.T.astype(np.float32) @ mine.astype(np.float32)) > 0
        needs.append(lookup[reach & stored])
    hops, send, place = [], [], [dict(zip(o.tolist(), range(len(o)), strict=True)) for o in own]
    start = n_own
    for hop in sorted(range(1 - n_devices, n_devices), key=lambda h: (abs(h), h)):
        if hop == 0:
            continue
        sent = [np.array([], int)] * n_devices
        for d in range(n_devices):
            if 0 <= d + hop < n_devices:
                wanted = needs[d + hop]
                sent[d] = wanted[home[wanted] == d]
        if not any(len(s) for s in sent):
            continue
        width = max(len(s) for s in sent)
        for d in range(n_devices):
            if 0 <= d + hop < n_devices:
                place[d + hop] |= {t: start + i for i, t in enumerate(sent[d].tolist())}
        hops.append(hop)
        send.append(_pad([local[s] for s in sent], n_own - 1))
        start += width

    left, right, output = _terms(own, first, second, stored, lookup, local, place, n_own)
    position = home * n_own + local
    position[first >= n_rows] = n_own - 1
    own = np.stack([np.pad(o, (0, n_own - len(o)), constant_values=empty) for o in own])
    tables = (np.asarray(plan.mask)[own], tuple(send), left, right, output)
    spread = _spread(mesh)
    assert isinstance(spread.mesh, Mesh)  # of devices, as the one given
    return ShardedRows(spread.mesh, tuple(hops), own, position, *jax.device_put(tables, spread))


def _terms(own, first, second, stored, lookup, local, place, n_own):
    """Tables of the outputs of each device, in classes of about equal numbers of terms."""
    shared = [stored[first[o]] & stored[second[o]] for o in own]
    count = [s.sum(axis=1) for s in shared]
    order = [np.argsort(c, kind="stable") for c in count]
    longest = max(len(o) for o in own)
    cuts = np.linspace(0, longest, min(N_CLASSES, longest) + 1).astype(int)
    left, right = [], []
    for a, b in itertools.pairwise(cuts):
        width = max([c[o[a:b]].max() for c, o in zip(count, order, strict=True) if len(o[a:b])])
        shape = (len(own), b - a, width)
        tables = [np.full(shape, n_own - 1, np.int32) for _ in range(2)]
        for d, (mine, s, o) in enumerate(zip(own, shared, order, strict=True)):
            chosen = o[a:b]
            r, k = np.nonzero(s[chosen])
            c = np.arange(len(r)) - np.searchsorted(r, r)
            tiles = mine[chosen[r]]
            tables[0][d, r, c] = local[lookup[first[tiles], k]]
            tables[1][d, r, c] = [place[d][t] for t in lookup[k, second[tiles]].tolist()]
        left.append(tables[0])
        right.append(tables[1])
    output = np.zeros((len(own), n_own), np.int32)
    for d, o in enumerate(order):
        output[d, o] = np.arange(len(o))
    return tuple(left), tuple(right), output


def _product(x: Array, y: Array, rows: ShardedRows) -> Array:
    (axis,), n = rows.mesh.axis_names, rows.mesh.size

    def local(x, y, send, left, right, output, mask):
        x, y, output, mask = x[0], y[0], output[0], mask[0]
        buffer = [y]
        for hop, table in zip(rows.hops, send, strict=True):
            to = [(d, d + hop) for d in range(n) if 0 <= d + hop < n]
            buffer.append(jax.lax.ppermute(y[table[0]], axis, to))
        left, right = ([table[0] for table in tables] for tables in (left, right))
        parts = outputs(jnp.swapaxes(x, -1, -2), jnp.concatenate(buffer), left, right, CHUNK)
        return jnp.where(mask, jnp.concatenate(parts)[output], 0)[None]

    spread = PartitionSpec(axis)
    mapped = jax.shard_map(local, mesh=rows.mesh, in_specs=(spread,) * 7, out_specs=spread)
    return mapped(x, y, rows.send, rows.left, rows.right, rows.output, rows.mask)
