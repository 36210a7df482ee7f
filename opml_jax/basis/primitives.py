"""Which primitives and shells a molecule has, by angular momentum: the topology of its integrals.

Index arrays only, so that it is a constant for one molecule and data for a batch of many.
"""

from __future__ import annotations

import functools

import numpy as np

from ..numerics import Array, pytree
from .spec import BasisSpec


@pytree
class Primitives:
    """Primitives and shells of one molecule, or padded and stacked of a batch.

    Tuples have one entry per angular momentum, up to the basis' highest. Padding primitives
    point at the table's last entry, which has coefficient 0.

    Attributes:
      table: ``(n_primitives,)`` each: row of :meth:`Basis.flat`.
      shell: ``(n_primitives,)`` each: shell, counted within this angular momentum.
      shell_atom: ``(n_shells,)`` each: atom of the shell.
      ao: ``(nao, 3)``: l, component m + l, and shell of each AO; l = -1 for padding.
    """

    table: tuple[Array, ...]
    shell: tuple[Array, ...]
    shell_atom: tuple[Array, ...]
    ao: Array

    @property
    def counts(self) -> tuple[int, ...]:
        """Primitives of each angular momentum, padding included."""
        return tuple(t.shape[-1] for t in self.table)

    @property
    def shell_counts(self) -> tuple[int, ...]:
        """Shells of each angular momentum, padding included."""
        return tuple(t.shape[-1] for t in self.shell_atom)


@functools.lru_cache(maxsize=4096)
def primitives(spec: BasisSpec, numbers: tuple[int, ...]) -> Primitives:
    """Topology of one molecule, as NumPy arrays."""
    first, used = [], 0  # row of the table where each shell of each element starts
    for own in spec.sizes:
        rows = []
        for size in own:
            rows.append(used)
            used += size
        first.append(rows)
    ls = range(spec.lmax + 1)
    table, shell, shell_atom, ao = [[] for _ in ls], [[] for _ in ls], [[] for _ in ls], []
    for a, z in enumerate(numbers):
        e = spec.element_index(z)
        for l, size, row in zip(spec.ls[e], spec.sizes[e], first[e], strict=True):
            position = len(shell_atom[l])
            table[l].extend(range(row, row + size))
            shell[l].extend([position] * size)
            shell_atom[l].append(a)
            ao.extend((l, m, position) for m in range(2 * l + 1))

    def arrays(rows):
        return tuple(np.array(r, np.int32) for r in rows)

    return Primitives(
        arrays(table), arrays(shell), arrays(shell_atom), np.array(ao, np.int32).reshape(-1, 3)
    )
