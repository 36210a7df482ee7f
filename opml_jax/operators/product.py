r"""The product kernel: dense, or over tiles, in the precision given, at full precision of dots.

Both are bilinear maps restricted to a pattern, and their derivatives are the same maps with other
arguments. A square of a symmetric matrix is special: only half of it is computed, and by
:math:`d(X^2) = M + M^T, M = dX\,X` its derivative costs one product forward and one backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..numerics import Array, matmul, sum_of_tangents
from .plans import Plan, is_tiled

if TYPE_CHECKING:
    from .plans import TiledPlan

PANELS = 4
PANELS_FROM = 512
"""From this nao on, symmetric dense products are computed in panels of the upper triangle."""

ON_SITE_FROM = 160
"""Below this nao a whole product is taken rather than a small one per atom.

Measured to be faster at 72 AOs on a CPU; where it turns is an estimate from counted work.
"""


# dense


def _upper(x: Array, y: Array) -> jax.Array:
    """Upper triangle of ``x @ y``, zero below, by panels of rows."""
    n = x.shape[-1]
    edges = [n * p // PANELS for p in range(PANELS + 1)]
    rows = []
    for a, b in itertools.pairwise(edges):
        panel = matmul(x[..., a:b, :], y[..., :, a:])
        rows.append(jnp.pad(panel, [(0, 0)] * (x.ndim - 1) + [(a, 0)]))
    return jnp.triu(jnp.concatenate(rows, axis=-2))


def _mirror(upper: jax.Array) -> jax.Array:
    return upper + jnp.matrix_transpose(jnp.triu(upper, 1))


def _symmetric_dense(x: Array, y: Array) -> jax.Array:
    """``x @ y``, known to be symmetric."""
    if x.shape[-1] < PANELS_FROM:
        return matmul(x, y)
    return _mirror(_upper(x, y))


def _dense(x: Array, y: Array, square: bool, symmetric: bool) -> jax.Array:
    if square:
        return _square_dense(x)
    return _symmetric_dense(x, y) if symmetric else matmul(x, y)


@jax.custom_jvp
def _square_dense(x: Array) -> jax.Array:
    return _symmetric_dense(x, x)


@_square_dense.defjvp
def _square_dense_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    m = matmul(dx, x)
    return _square_dense(x), m + jnp.matrix_transpose(m)


# tiled: the bilinear primitive X, Y -> X^T Y on the squares of the plan, closed under transposition

CHUNK = 8
"""Outputs at a time on a CPU: their operands stay in cache. Elsewhere a class at once."""

_product_p = Primitive("opml_tile_product")
_transpose_p = Primitive("opml_tile_transpose")


def outputs(
    x: Array, y: Array, left: Sequence[Array], right: Sequence[Array], chunk: int | None
) -> list[Array]:
    """Sums over terms of ``X^T Y``: outputs of each class, ``(n_outputs, tile, tile)``."""
    tile = x.shape[-1]

    def one(terms):
        a, b = (m[t].reshape(-1, tile) for m, t in zip((x, y), terms, strict=True))
        return matmul(a.T, b)

    return [
        jax.lax.map(one, terms, batch_size=min(chunk or len(terms[0]), len(terms[0])))
        for terms in zip(left, right, strict=True)
    ]


def _product_of(chunk: int | None):
    def implementation(x, y, _, *tables, symmetric, known):
        del known
        left, right = tables[: len(tables) // 2], tables[len(tables) // 2 :]
        upper = outputs(x, y, left, right, chunk)
        lower = (
            [jnp.matrix_transpose(u) for u in upper]
            if symmetric
            else outputs(x, y, right, left, chunk)
        )
        return jnp.concatenate([*upper, *lower, jnp.zeros_like(x[:1])])

    return implementation


def _bind(
    x: Array, y: Array, indices: tuple, symmetric: bool = False, known: bool = False
) -> jax.Array:
    """``X^T Y`` in the pattern; what is outside the mask of the plan is not to be used.

    Args:
      x: tiles.
      y: tiles.
      indices: of the plan.
      symmetric: the product is symmetric: only its upper half is computed.
      known: X is symmetric, so its derivative rules need not transpose it.
    """
    return _product_p.bind(x, y, *indices, symmetric=symmetric, known=known)


def _product_jvp(primals, tangents, *, symmetric, known):
    (x, y, *rest), (dx, dy, *_) = primals, tangents
    indices = tuple(rest)
    out = _bind(x, y, indices, symmetric, known)
    terms = []
    if type(dx) is not ad.Zero:
        terms.append(_bind(dx, y, indices))
    if type(dy) is not ad.Zero:
        terms.append(_bind(x, dy, indices, known=known))
    return out, sum_of_tangents(terms, out)


def _product_transpose(cotangent, x, y, *indices, symmetric, known):
    del symmetric  # an operand that is a tangent differs from the other one
    nothing = [None] * len(indices)
    flip = indices[0]
    if ad.is_undefined_primal(x):
        if type(cotangent) is ad.Zero:
            return [ad.Zero(x.aval), None, *nothing]
        return [_bind(_flip(y, flip), _flip(cotangent, flip), indices), None, *nothing]
    if type(cotangent) is ad.Zero:
        return [None, ad.Zero(y.aval), *nothing]
    mirrored = x if known else _flip(x, flip)
    return [None, _bind(mirrored, cotangent, indices, known=known), *nothing]


def _product_batch(operands, axes, **parameters):
    batched = [d is not None for d in axes]
    moved = [
        jnp.moveaxis(x, d, 0) if d is not None else x for x, d in zip(operands, axes, strict=True)
    ]

    def one(part):
        part = iter(part)
        own = (next(part) if b else m for m, b in zip(moved, batched, strict=True))
        return _product_p.bind(*own, **parameters)

    return jax.lax.map(one, [m for m, b in zip(moved, batched, strict=True) if b]), 0


def _flip(x: Array, on_diagonal: Array) -> jax.Array:
    """The transposed matrix; an involution and its own adjoint."""
    return _transpose_p.bind(x, on_diagonal)


def _flip_of(x, on_diagonal):
    n, own = len(on_diagonal), on_diagonal[:, None, None]
    upper, lower = x[:n], x[n : 2 * n]
    mirrored = (
        jnp.matrix_transpose(jnp.where(own, upper, lower)),
        jnp.where(own, 0, jnp.matrix_transpose(upper)),
    )
    return jnp.concatenate([*mirrored, jnp.zeros_like(x[:1])])


def _flip_batch(operands, axes):
    batched = jax.vmap(_flip_of, tuple(0 if d is not None else None for d in axes))
    moved = (
        jnp.moveaxis(x, d, 0) if d is not None else x for x, d in zip(operands, axes, strict=True)
    )
    return batched(*moved), 0


def _register(primitive: Primitive, implementation, shape, static=(), **platforms) -> None:
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=static))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    for platform, own in platforms.items():
        lowering = mlir.lower_fun(own, multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform=platform)


_register(
    _product_p,
    _product_of(None),
    lambda x, *_, symmetric, known: x,
    static=("symmetric", "known"),
    cpu=_product_of(CHUNK),
)
_register(_transpose_p, _flip_of, lambda x, _: x)
ad.primitive_jvps[_product_p] = _product_jvp
ad.primitive_transposes[_product_p] = _product_transpose
batching.primitive_batchers[_product_p] = _product_batch
ad.defjvp(_transpose_p, lambda dx, _, own: _flip(dx, own), None)
ad.primitive_transposes[_transpose_p] = lambda ct, x, own: [
    ad.Zero(x.aval) if type(ct) is ad.Zero else _flip(ct, own),
    None,
]
batching.primitive_batchers[_transpose_p] = _flip_batch


def _indices(plan: TiledPlan) -> tuple:
    return (plan.on_diagonal, *plan.left, *plan.right)


@jax.custom_jvp
def _square_tiled(x: Array, plan: TiledPlan) -> jax.Array:
    return _bind(x, x, _indices(plan), symmetric=True, known=True)


@_square_tiled.defjvp
def _square_tiled_jvp(primals, tangents):
    (x, plan), (dx, _) = primals, tangents
    m = _bind(x, dx, _indices(plan), known=True)
    return _square_tiled(x, plan), m + _flip(m, plan.on_diagonal)


def transpose(x: Array, plan: Plan | None) -> jax.Array:
    """Values of the transposed operator."""
    return _flip(x, plan.on_diagonal) if is_tiled(plan) else jnp.matrix_transpose(x)


def multiply(x: Array, y: Array, plan: Plan | None, *, square: bool, symmetric: bool) -> jax.Array:
    """Product of the values of two operators, restricted to the pattern of their plan.

    Args:
      x: dense ``(..., n, n)`` or tiles.
      y: likewise.
      plan: their plan, or None.
      square: ``x`` and ``y`` are one symmetric operator.
      symmetric: the product is known to be symmetric.
    """
    if not is_tiled(plan):
        out = _dense(x, y, square, symmetric)
    elif square:
        out = _square_tiled(x, plan)
    else:
        out = _bind(_flip(x, plan.on_diagonal), y, _indices(plan), symmetric)
    return out if plan is None else jnp.where(plan.mask, out, 0)


def multiply_upper(x: Array, y: Array, plan: Plan | None) -> jax.Array:
    """The upper triangle of the product in the order of the storage, zero below."""
    if not is_tiled(plan):
        out = _upper(x, y) if x.shape[-1] >= PANELS_FROM else jnp.triu(matmul(x, y))
        return out if plan is None else jnp.where(plan.mask, out, 0)
    out = _bind(_flip(x, plan.on_diagonal), y, _indices(plan), symmetric=True)
    first, second = (plan.tiles[:, e, None, None] for e in (0, 1))
    within = jnp.triu(jnp.ones(out.shape[-2:], bool))
    return jnp.where(plan.mask & ((first < second) | ((first == second) & within)), out, 0)


def on_site(
    x: Array, y: Array, slots: Array, plan: Plan | None, *, square: bool = False
) -> jax.Array:
    """On-site blocks of the product ``x @ y`` in slots, of a large one without the rest of it.

    Args:
      x: dense ``(n, n)`` or tiles.
      y: likewise.
      slots: ``(n_atoms, n_slots)`` AO of each slot of each atom, n where none.
      plan: their plan, or None.
      square: ``x`` and ``y`` are one symmetric operator.

    Returns:
      ``(n_atoms, n_slots, n_slots)``, zero where an element has no such shell.
    """
    if not is_tiled(plan):
        if x.shape[-1] < ON_SITE_FROM:
            return in_slots(_square_dense(x) if square else matmul(x, y), slots, slots)
        rows = jnp.pad(x, ((0, 1), (0, 0)))[slots]
        columns = jnp.pad(jnp.matrix_transpose(y), ((0, 1), (0, 0)))[slots]
        return matmul(rows, jnp.matrix_transpose(columns))
    terms = (plan.diagonal,)
    (squares,) = outputs(_flip(x, plan.on_diagonal), y, terms, terms, CHUNK)
    return on_site_of_tiles(squares, slots, plan)


def in_slots(matrix: Array, rows: Array, columns: Array) -> jax.Array:
    """Blocks ``(n, n_slots, n_slots)`` of a matrix for n pairs of slots ``(n, n_slots)``."""
    padded = jnp.pad(matrix, ((0, 1), (0, 1)))  # an empty slot names the AO after the last
    return padded[rows[:, :, None], columns[:, None, :]]


def on_site_of_tiles(squares: Array, slots: Array, plan: TiledPlan) -> jax.Array:
    """On-site blocks in slots from the diagonal squares ``(n_rows, tile, tile)``."""
    place = jnp.pad(plan.place, ((0, 1), (0, 0)), constant_values=plan.tile)[slots]
    row = jnp.min(jnp.where(slots < plan.layout.nao, place[..., 0], len(squares)), axis=-1)
    t = jnp.where(slots < plan.layout.nao, place[..., 1], plan.tile)
    padded = jnp.pad(squares, ((0, 0), (0, 1), (0, 1)))
    return padded[row[:, None, None], t[:, :, None], t[:, None, :]]


def apply(values: Array, vectors: Array, plan: Plan | None) -> jax.Array:
    """An operator times a few vectors ``(n, k)``, ``(n, k)``."""
    if not is_tiled(plan):
        return matmul(values, vectors)
    n_rows = len(plan.ao)
    parts = jnp.pad(vectors, ((0, 1), (0, 0)))[plan.ao]
    parts = jnp.pad(parts, ((0, 1), (0, 0), (0, 0)))[plan.tiles[:, 1]]
    sums = jax.ops.segment_sum(matmul(values, parts), plan.tiles[:, 0], n_rows + 1)
    return sums[plan.place[:, 0], plan.place[:, 1]]
