"""Operators cut into blocks: by atom pair and shell pair, or by atom pair in uniform slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..basis import AOLayout
from ..errors import ConventionError
from ..numerics import Array
from .operator import Operator
from .plans import is_tiled
from .product import apply, in_slots, on_site_of_tiles

BlockKey = tuple[int, int, int, int]


def _shell_starts(layout: AOLayout) -> list[list[tuple[int, int]]]:
    """For each atom the (first AO, width) of its shells."""
    out = []
    for a, ls in enumerate(layout.atom_ls):
        start, row = int(layout.offsets[a]), []
        for l in ls:
            row.append((start, 2 * l + 1))
            start += 2 * l + 1
        out.append(row)
    return out


def blocks(operator: Operator) -> dict[BlockKey, Array]:
    """Every (atom, atom, shell, shell) block of an operator of one molecule.

    Args:
      operator: ``(nao, nao)``.

    Returns:
      ``{(i, j, a, b): (2 l_a + 1, 2 l_b + 1)}``: rows are shell a of atom i, columns shell b of j.

    Raises:
      ConventionError: the operator of a batch.
    """
    layout = operator.layout
    if not isinstance(layout, AOLayout):
        raise ConventionError(
            "operator", got="the operator of a batch", expected="that of one molecule"
        )
    shells = _shell_starts(layout)
    m = operator.matrix
    return {
        (i, j, a, b): m[r : r + nr, c : c + nc]
        for i, rows in enumerate(shells)
        for j, columns in enumerate(shells)
        for a, (r, nr) in enumerate(rows)
        for b, (c, nc) in enumerate(columns)
    }


def from_blocks(parts: dict[BlockKey, Array], layout: AOLayout) -> Operator:
    """Inverse of :func:`blocks`; absent blocks are zero."""
    shells = _shell_starts(layout)
    dtype = jnp.result_type(*parts.values()) if parts else float
    m = jnp.zeros((layout.nao, layout.nao), dtype)
    for (i, j, a, b), block in parts.items():
        (r, nr), (c, nc) = shells[i][a], shells[j][b]
        m = m.at[r : r + nr, c : c + nc].set(block)
    return Operator(m, layout)


def on_site_blocks(operator: Operator) -> jax.Array:
    """On-site blocks in slots, ``(n_atoms, n_slots, n_slots)``; a batch adds a leading axis.

    Zero where an element has no such shell.
    """
    slots = jnp.asarray(operator.layout.slots)
    plan = operator.plan
    if is_tiled(plan):
        return on_site_of_tiles(operator.values[plan.lookup.diagonal()], slots, plan)
    function = jax.vmap(in_slots) if operator.values.ndim == 3 else in_slots
    return function(operator.values, slots, slots)


def pair_blocks(operator: Operator, pairs: Array) -> jax.Array:
    """Blocks of atom pairs in slots, ``(n_pairs, n_slots, n_slots)``, of one molecule.

    Args:
      operator: of one molecule.
      pairs: ``(n_pairs, 2)`` row and column atoms.
    """
    slots = jnp.asarray(operator.layout.slots)
    return in_slots(operator.to_dense(), slots[pairs[:, 0]], slots[pairs[:, 1]])


def pooled_blocks(operator: Operator) -> jax.Array:
    """Off-site blocks summed over the column atoms of each element, in slots, of one molecule.

    Returns:
      ``(n_atoms, n_elements, n_slots, n_slots)``.
    """
    layout = operator.layout
    width, n_elements = layout.spec.n_slots, len(layout.spec.elements)
    slots, ao_slot = jnp.asarray(layout.slots), jnp.asarray(layout.ao_slot)
    atom, slot = ao_slot // width, ao_slot % width
    element = jnp.append(jnp.asarray(layout.element), n_elements)[atom]  # padding pools to nothing
    columns = jax.nn.one_hot(
        element * width + slot, n_elements * width, dtype=operator.values.dtype
    )
    if is_tiled(operator.plan):
        owner = jnp.append(atom, len(slots))[operator.plan.ao]
        rows, others = jnp.pad(owner, ((0, 1), (0, 0)), constant_values=-1)[operator.plan.tiles.T]
        same = rows[:, :, None] == others[:, None, :]
    else:
        same = atom[:, None] == atom[None, :]
    off_site = jnp.where(same, 0, operator.values)
    pooled = apply(off_site, columns, operator.plan)
    pooled = jnp.pad(pooled, ((0, 1), (0, 0)))[slots]
    return pooled.reshape(*slots.shape, n_elements, width).transpose(0, 2, 1, 3)
