r"""Plans: which atom pairs an operator keeps, and how products over them are computed.

A plan is made on the host, in NumPy, for one geometry: pairs of atoms within ``cutoff``, the
storage (dense or tiled), and for tiles every index a product needs. Its shapes are static and
its contents are data, so the next geometry (:meth:`Plan.update`) does not recompile.

Tiled storage: atoms in spatial order are packed into groups of at most ``tile`` AOs; a matrix is
the list of its (tile, tile) squares that hold at least one pair of atoms within ``cutoff``. A
product is computed output by output, :math:`C_{ij} = \sum_k (A^T)_{ki}^T B_{kj}`: both operands
are gathered along k and contracted in one matrix product. Outputs are sorted by the number of
terms into a few classes, so that little of it is padding; squares are stored in that order, so
that what a product writes is its result.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import jax
import numpy as np

from ..basis import AOLayout, Basis, BatchLayout, layout_of
from ..errors import OpmlError, StructureError
from ..numerics import Array, is_concrete, pytree, static
from ..structures import Structure, StructureBatch

N_CLASSES = 8
SLACK = 1.08
# Speed of a product over tiles of this many AOs, in units of that of one large dense product: one
# core of Zen 5, float32 (benchmarks/products.py); not measured on accelerators
TILE_SPEED = {24: 0.33, 48: 0.55}
TILES_FROM = 200  # AOs; below, not worth trying (a water cluster of 288 is faster dense)


@pytree
class Plan:
    """Pattern of an operator and the indices of products over it; see :func:`plan`.

    Attributes:
      layout: AO layout it was made for.
      cutoff: distance of the atom pairs kept, Bohr.
      storage: ``"dense"`` or ``"tiled"``.
      mask: dense: ``(..., nao, nao)``; tiled: ``(n_tiles, tile, tile)``; True where kept.
      ao: tiled: ``(n_rows, tile)`` AO at each place of a group of atoms, ``nao`` where none.
      tiles: tiled: ``(n_tiles, 2)`` groups of each stored square: the upper half by class, then
        the lower half in the same order, then an empty one.
      lookup: tiled: ``(n_rows, n_rows)`` position of a square, that of the empty one where none.
      on_diagonal: tiled: ``(n_upper,)`` True for the squares that are their own mirror image; their
        places in the lower half are empty.
      place: tiled: ``(nao, 2)`` group and place of each AO.
      left: tiled: per class of upper squares ``(n_outputs, n_terms)`` positions of terms of A^T.
      right: tiled: the same of B.
      diagonal: tiled: ``(n_rows, n_terms)`` positions of the squares of each column of groups.
    """

    layout: AOLayout | BatchLayout
    cutoff: float = static()
    storage: str = static()
    mask: Array
    ao: Array | None = None
    tiles: Array | None = None
    lookup: Array | None = None
    on_diagonal: Array | None = None
    place: Array | None = None
    left: tuple[Array, ...] = ()
    right: tuple[Array, ...] = ()
    diagonal: Array | None = None

    @property
    def tile(self) -> int:
        """AOs of a group; 0 if dense."""
        return 0 if self.ao is None else self.ao.shape[-1]

    @property
    def n_tiles(self) -> int:
        """Squares stored, padding included; 0 if dense."""
        return 0 if self.tiles is None else len(self.tiles)

    @property
    def shapes(self) -> tuple:
        """Everything a compiled program depends on."""
        arrays = (self.mask, self.ao, self.left, self.diagonal)
        return self.cutoff, *jax.tree.leaves(jax.tree.map(np.shape, arrays))

    @property
    def occupation(self) -> float:
        """Fraction of the matrix that is kept (of all matrices, for a batch)."""
        whole = self.mask.size if self.storage == "dense" else self.layout.nao**2
        return float(np.sum(self.mask) / whole)

    @property
    def flops(self) -> float:
        """Floating point operations of one symmetric product, padding included."""
        if self.storage == "dense":
            return 2.0 * self.layout.nao**3
        return 2.0 * self.tile**3 * sum(x.size for x in self.left)

    def update(self, structure: Structure) -> Plan:
        """Plan of a new geometry, in the shapes of this one where they suffice (host side).

        Nothing compiled for the old plan is compiled again then; else shapes grow.
        """
        if not is_tiled(self):
            return _dense(self.layout, structure, self.cutoff)
        positions = np.asarray(structure.positions, float)
        pairs = _close_pairs(positions, self.cutoff)
        pattern = _pattern(self.layout, positions, pairs, self.tile)
        return _tiled(self.layout, pairs, *pattern, self.cutoff, self.tile, like=self)

    def __repr__(self) -> str:
        tiles = f", {self.n_tiles} tiles of {self.tile}" if self.tile else ""
        return f"Plan(cutoff={self.cutoff:g} Bohr, {self.storage}{tiles}, {self.layout!r})"


if TYPE_CHECKING:

    class TiledPlan(Plan):
        """A plan of tiles: nothing is missing."""

        layout: AOLayout
        ao: Array
        tiles: Array
        lookup: Array
        on_diagonal: Array
        place: Array
        diagonal: Array


def is_tiled(plan: Plan | None) -> TypeGuard[TiledPlan]:
    """Whether values are stored in tiles."""
    return plan is not None and plan.storage == "tiled"


def same_plan(a: Plan | None, b: Plan | None) -> bool:
    """Whether two operators can meet: the same pattern, stored in the same way."""
    if a is b:
        return True
    if a is None or b is None:
        return False
    if (a.storage, a.shapes) != (b.storage, b.shapes):
        return False
    tables = ((a.ao, b.ao), (a.tiles, b.tiles)) if is_tiled(a) and is_tiled(b) else ()
    for x, y in (*tables, (a.mask, b.mask)):  # the rest follows
        if is_concrete(x) and is_concrete(y) and not (x is y or np.array_equal(x, y)):
            return False
    return True


def plan(
    structure: Structure | StructureBatch,
    basis: Basis,
    cutoff: float,
    *,
    storage: str | None = None,
    tile: int | None = None,
) -> Plan:
    """Which blocks of an operator to keep, and how to multiply them (host side, cached).

    Args:
      structure: molecule or batch, with concrete positions. A batch is stored dense.
      basis: covers its elements.
      cutoff: pairs of atoms at most this far apart are kept, Bohr.
      storage: ``"dense"`` or ``"tiled"``. Default: whichever is predicted to multiply faster.
      tile: AOs of a group of atoms. Default: predicted likewise.

    Raises:
      OpmlError: a cutoff that is not positive, an unknown storage, tiles for a batch.
      StructureError: positions that are being traced.
    """
    layout = layout_of(structure, basis)
    return plan_of(structure, layout, cutoff, storage=storage, tile=tile)


def plan_of(
    structure: Structure | StructureBatch,
    layout: AOLayout | BatchLayout,
    cutoff: float,
    *,
    storage: str | None = None,
    tile: int | None = None,
) -> Plan:
    """As :func:`plan`, for a layout at hand."""
    if not cutoff > 0:
        raise OpmlError("cutoff", got=cutoff, expected="a positive length in Bohr")
    if storage not in (None, "dense", "tiled"):
        raise OpmlError("storage", got=repr(storage), expected="'dense' or 'tiled'")
    if not is_concrete(structure.positions):
        raise StructureError(
            "positions",
            got="a traced array",
            expected="numbers: plans are made outside jit",
            hint="Make the plan first and close over it, or pass it as an argument.",
        )
    if isinstance(structure, StructureBatch):
        if storage == "tiled":
            got = f"a batch of {structure.n_structures}"
            raise OpmlError("structure", got=got, expected="one molecule for tiles")
        return _dense(layout, structure, float(cutoff))
    key = (layout, float(cutoff), storage, tile)
    return _cached(
        key, np.ascontiguousarray(structure.positions, float).tobytes(), _Hold(structure)
    )


class _Hold:
    """An argument that takes no part in caching."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hold)


@functools.lru_cache(maxsize=16)
def _cached(key: tuple, _: bytes, hold: _Hold) -> Plan:
    layout, cutoff, storage, tile = key
    structure = hold.value
    if storage == "dense" or (storage is None and layout.nao < TILES_FROM):
        return _dense(layout, structure, cutoff)
    positions = np.asarray(structure.positions, float)
    pairs = _close_pairs(positions, cutoff)
    widest = max(np.diff(layout.offsets))
    sizes = [tile] if tile else sorted({max(t, -(-widest // 8) * 8) for t in TILE_SPEED})
    patterns = {t: _pattern(layout, positions, pairs, t) for t in sizes}
    cost = {t: t**3 * _n_terms(stored) / _speed(t) for t, (_, stored) in patterns.items()}
    best = min(cost, key=lambda t: cost[t])
    # a symmetric dense product of this size does three quarters of the work
    if storage is None and 0.75 * layout.nao**3 <= cost[best]:
        return _dense(layout, structure, cutoff)
    return _tiled(layout, pairs, *patterns[best], cutoff, best)


def _speed(tile: int) -> float:
    return float(np.interp(tile, list(TILE_SPEED), list(TILE_SPEED.values())))


def _close_pairs(positions: np.ndarray, cutoff: float) -> np.ndarray:
    """``(n, 2)`` atom pairs i < j at most ``cutoff`` apart."""
    from scipy.spatial import cKDTree

    return cKDTree(positions).query_pairs(cutoff, output_type="ndarray")


def _dense(layout: AOLayout | BatchLayout, structure: Any, cutoff: float) -> Plan:
    positions = np.asarray(structure.positions, float)
    distance = np.linalg.norm(positions[..., :, None, :] - positions[..., None, :, :], axis=-1)
    close = distance <= cutoff
    if isinstance(layout, AOLayout):
        return Plan(layout, cutoff, "dense", close[np.ix_(layout.atom, layout.atom)])
    # padded AOs belong to no atom: they get a row and a column of False
    atom = np.asarray(layout.ao_slot) // layout.spec.n_slots
    close = np.pad(close, ((0, 0), (0, 1), (0, 1)))
    b = np.arange(len(atom))[:, None, None]
    return Plan(layout, cutoff, "dense", close[b, atom[:, :, None], atom[:, None, :]])


def _units(layout: AOLayout, positions: np.ndarray) -> np.ndarray:
    """Unit of each atom: a heavy atom and the hydrogens nearest to it belong together."""
    from scipy.spatial import cKDTree

    numbers = np.array(layout.numbers)
    heavy = np.flatnonzero(numbers > 1)
    unit = np.arange(len(numbers))
    if 0 < len(heavy) < len(numbers):
        light = np.flatnonzero(numbers == 1)
        _, nearest = cKDTree(positions[heavy]).query(positions[light])
        unit[light] = heavy[nearest]
    return unit


def _spatial_order(centres: np.ndarray) -> np.ndarray:
    """Order in which neighbours in a list are neighbours in space: recursive bisection.

    Every level halves each segment along its longest axis, all segments at once.
    """
    n = len(centres)
    order = np.arange(n)
    bounds = np.array([0, n])
    while np.diff(bounds).max() > 1:
        segment = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        x = centres[order]
        spread = np.maximum.reduceat(x, bounds[:-1]) - np.minimum.reduceat(x, bounds[:-1])
        axis = spread.argmax(axis=1)
        order = order[np.lexsort((x[np.arange(n), axis[segment]], segment))]
        middle = (bounds[:-1] + bounds[1:]) // 2
        bounds = np.unique(np.concatenate([bounds, middle]))
    return order


def _groups(layout: AOLayout, positions: np.ndarray, tile: int) -> np.ndarray:
    """Group of each atom; groups hold at most ``tile`` AOs."""
    unit = _units(layout, positions)
    members, unit = np.unique(unit, return_inverse=True)
    rank = np.empty(len(members), int)
    rank[_spatial_order(positions[members])] = np.arange(len(members))
    atoms = np.argsort(rank[unit], kind="stable")
    width = np.diff(layout.offsets)
    whole = np.bincount(rank[unit], weights=width).astype(int)
    group = np.empty(len(atoms), int)
    current, used, last = 0, 0, -1
    for a, u, w in zip(
        atoms.tolist(), rank[unit][atoms].tolist(), width[atoms].tolist(), strict=True
    ):
        # a unit that fits into a group is not divided between two
        needed = whole[u] if u != last and whole[u] <= tile else w
        if used + needed > tile and used:
            current, used = current + 1, 0
        group[a], used, last = current, used + w, u
    return group


def _pattern(
    layout: AOLayout, positions: np.ndarray, pairs: np.ndarray, tile: int
) -> tuple[np.ndarray, np.ndarray]:
    """Group of each atom, and ``(n_rows, n_rows)`` True where a pair of groups is stored."""
    widest = max(np.diff(layout.offsets))
    if widest > tile:
        raise OpmlError("tile", got=tile, expected=f"at least {widest}: one atom")
    group = _groups(layout, positions, tile)
    stored = np.eye(int(group.max()) + 1, dtype=bool)
    stored[group[pairs[:, 0]], group[pairs[:, 1]]] = True
    return group, stored | stored.T


def _n_terms(stored: np.ndarray) -> float:
    """Products of squares in the upper half of a product."""
    first, second = np.nonzero(np.triu(stored))
    bits = np.packbits(stored, axis=1)
    return float(np.bitwise_count(bits[first] & bits[second]).sum())


def _tiled(
    layout: AOLayout,
    pairs: np.ndarray,
    group: np.ndarray,
    stored: np.ndarray,
    cutoff: float,
    tile: int,
    like: TiledPlan | None = None,
) -> Plan:
    nao, width = layout.nao, np.diff(layout.offsets)
    n_rows = max(len(stored), 0 if like is None else len(like.ao))
    if n_rows > len(stored):  # empty groups, to keep a shape: not even a diagonal
        stored = np.pad(stored, (0, n_rows - len(stored)))

    # AOs of each group, and where each AO stands
    ao = np.full((n_rows, tile), nao, np.int32)
    by_group = np.argsort(np.repeat(group, width), kind="stable")
    row = np.repeat(group, width)[by_group]
    column = np.arange(nao) - np.searchsorted(row, np.arange(n_rows))[row]
    ao[row, column] = by_group
    place = np.empty((nao, 2), np.int32)
    place[by_group] = np.stack([row, column], axis=1)

    # upper squares by class, then their mirror images, then an empty one
    first, second = np.nonzero(np.triu(stored))
    shared = stored[first]
    shared &= stored[second]
    n_terms = shared.sum(axis=1)
    classes = None if like is None else _classes(n_terms, [x.shape for x in like.left])
    if classes is None:
        classes = _classes(n_terms, _capacities(n_terms))
    assert classes is not None  # capacities made for these outputs hold them
    half = sum(n for (n, _), _ in classes)
    n_tiles = 2 * half + 1
    tiles = np.full((n_tiles, 2), n_rows, np.int32)
    lookup = np.full((n_rows, n_rows), n_tiles - 1, np.int32)
    begin = 0
    for (n, _), own in classes:
        tiles[begin : begin + len(own)] = np.stack([first[own], second[own]], axis=1)
        begin += n
    on_diagonal = (tiles[:half, 0] == tiles[:half, 1]) & (tiles[:half, 0] < n_rows)
    tiles[half : 2 * half] = np.where(on_diagonal[:, None], n_rows, tiles[:half, ::-1])
    real = np.flatnonzero(tiles[:, 0] < n_rows)
    lookup[tiles[real, 0], tiles[real, 1]] = real

    left, right = [], []
    for (n, width), own in classes:
        r, k = np.divmod(np.flatnonzero(shared[own]), n_rows)
        c = np.arange(len(r)) - np.searchsorted(r, r)
        for tables, ends in ((left, first), (right, second)):
            table = np.full((n, width), n_tiles - 1, np.int32)
            table[r, c] = lookup[k, ends[own][r]]
            tables.append(table)
    widest = int(stored.sum(axis=0).max())
    kept = 0 if like is None else like.diagonal.shape[1]
    widest = kept if widest <= kept else _room(widest)
    diagonal = np.full((n_rows, widest), n_tiles - 1, np.int32)
    r, k = np.nonzero(stored)
    diagonal[r, np.arange(len(r)) - np.searchsorted(r, r)] = lookup[k, r]
    mask = np.zeros((n_tiles, tile, tile), bool)
    upper, lower = mask[:half], mask[half : 2 * half]
    _fill_mask(upper, layout, group, pairs, tiles[:half], lookup, place)
    lower[:] = np.swapaxes(upper, 1, 2)
    lower[on_diagonal] = False
    return Plan(
        layout,
        cutoff,
        "tiled",
        mask,
        ao,
        tiles,
        lookup,
        on_diagonal,
        place,
        tuple(left),
        tuple(right),
        diagonal,
    )


def _capacities(n_terms: np.ndarray) -> list[tuple[int, int]]:
    """Outputs and terms of each class: equal numbers of outputs, and some room."""
    ordered = np.sort(n_terms)
    cuts = np.linspace(0, len(ordered), min(N_CLASSES, len(ordered)) + 1).astype(int)
    out = [(_room(b - a), int(ordered[b - 1])) for a, b in itertools.pairwise(cuts)]
    return [*out[:-1], (out[-1][0], _room(out[-1][1]))]


def _room(n: int) -> int:
    """A few more than needed now, for the next geometry."""
    return int(n * SLACK) + 1


def _classes(
    n_terms: np.ndarray, capacities: Sequence[tuple[int, ...]]
) -> list[tuple[tuple[int, int], np.ndarray]] | None:
    """``[(capacity, outputs)]``: outputs sorted into classes; None if there is no room for one.

    What has too many terms for its class, or finds it full, goes to the next. Within a class
    outputs are in order of rows, so that neighbours share operands in cache.
    """
    order, done, out = np.argsort(n_terms, kind="stable"), 0, []
    for n, width in capacities:
        own = order[done : done + n]
        own = own[n_terms[own] <= width]
        done += len(own)
        out.append(((n, width), np.sort(own)))
    return out if done == len(order) else None


def _fill_mask(mask, layout, group, pairs, tiles, lookup, place) -> None:
    """Set ``(len(tiles), tile, tile)`` True for AOs of one atom, or of atoms within the cutoff."""
    # rank of each atom in its group, and of the atom at each place of a group
    order = np.argsort(group, kind="stable")
    rank = np.empty(len(group), int)
    rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    members, n_rows = int(rank.max()) + 1, len(lookup)
    near = np.zeros((2 * len(tiles) + 1, members + 1, members + 1), bool)
    a, b = pairs.T
    every = np.arange(len(group))
    i, j = np.concatenate([a, b, every]), np.concatenate([b, a, every])
    near[lookup[group[i], group[j]], rank[i], rank[j]] = True
    at = np.full((n_rows + 1, mask.shape[-1]), members)
    at[place[:, 0], place[:, 1]] = rank[layout.atom]
    rows = near[np.arange(len(tiles))[:, None], at[tiles[:, 0]]]
    # groups of equal composition share their columns
    kinds, kind = np.unique(at, axis=0, return_inverse=True)
    kind = kind[tiles[:, 1]]
    for k in np.unique(kind):
        own = np.flatnonzero(kind == k)
        if len(own) == len(tiles):
            np.take(rows, kinds[k], axis=-1, out=mask, mode="clip")
        else:
            mask[own] = np.take(rows[own], kinds[k], axis=-1)
