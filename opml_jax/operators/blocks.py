"""Operators cut into blocks: by atom pair and shell pair, or by atom pair in uniform slots."""

from __future__ import annotations

import jax.numpy as jnp

from ..basis import AOLayout, BatchLayout
from ..errors import ConventionError, refusal
from ..numerics import Array
from .operator import Operator

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
            refusal("operator", got="the operator of a batch", expected="that of one molecule")
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


def slot_blocks(matrix: Array, slots: Array) -> Array:
    """Atom-pair blocks of equal shape for any element, zero where an element has no such shell.

    Args:
      matrix: ``(nao, nao)``.
      slots: ``(n_atoms, n_slots)`` from the layout.

    Returns:
      ``(n_atoms, n_slots, n_atoms, n_slots)``.
    """
    padded = jnp.pad(matrix, ((0, 1), (0, 1)))
    return padded[slots[:, :, None, None], slots[None, None]]


def topology(layout: AOLayout | BatchLayout) -> tuple[Array, Array]:
    """``(slots, element)`` of a layout: ``(..., n_atoms, n_slots)`` and ``(..., n_atoms)``."""
    return jnp.asarray(layout.slots), jnp.asarray(layout.element)
