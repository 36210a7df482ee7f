"""Which primitives and shells a molecule has, by angular momentum: the topology of its integrals.

Index arrays only, so that it is a constant for one molecule and data for a batch of many.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

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


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Shape of a padded batch; everything compiled for it serves every molecule that fits.

    Attributes:
      n_atoms: atoms.
      nao: atomic orbitals.
      n_primitives: primitives of each angular momentum.
      n_shells: shells of each angular momentum.
    """

    n_atoms: int
    nao: int
    n_primitives: tuple[int, ...]
    n_shells: tuple[int, ...]

    @property
    def pair_work(self) -> int:
        """Primitive pairs times nuclei of one molecule of this shape: cost of the potential."""
        return pair_count(self.n_primitives) * self.n_atoms

    def covers(self, other: Bucket) -> bool:
        """True when a molecule of the shape ``other`` fits."""
        return (
            self.n_atoms >= other.n_atoms
            and self.nao >= other.nao
            and all(a >= b for a, b in zip(self.n_primitives, other.n_primitives, strict=True))
            and all(a >= b for a, b in zip(self.n_shells, other.n_shells, strict=True))
        )


def pair_count(n_primitives: Sequence[int]) -> int:
    """Unordered pairs of primitives."""
    n = sum(n_primitives)
    return n * (n + 1) // 2


def smallest_bucket(spec: BasisSpec, molecules: Sequence[tuple[int, ...]]) -> Bucket:
    """The smallest shape that holds molecules given by their atomic numbers."""
    found = [primitives(spec, numbers) for numbers in set(molecules)]
    return Bucket(
        max(len(numbers) for numbers in molecules),
        max(len(p.ao) for p in found),
        tuple(np.max([p.counts for p in found], axis=0).tolist()),
        tuple(np.max([p.shell_counts for p in found], axis=0).tolist()),
    )


def pad_primitives(
    spec: BasisSpec, molecules: Sequence[tuple[int, ...]], bucket: Bucket
) -> Primitives:
    """Topology of several molecules, padded to a bucket and stacked."""
    empty = sum(sum(own) for own in spec.sizes)
    n = len(molecules)
    table = tuple(np.full((n, k), empty, np.int32) for k in bucket.n_primitives)
    shell = tuple(np.zeros((n, k), np.int32) for k in bucket.n_primitives)
    shell_atom = tuple(np.zeros((n, k), np.int32) for k in bucket.n_shells)
    ao = np.zeros((n, bucket.nao, 3), np.int32)
    ao[..., 0] = -1
    for b, numbers in enumerate(molecules):
        own = primitives(spec, numbers)
        for l in range(spec.lmax + 1):
            table[l][b, : len(own.table[l])] = own.table[l]
            shell[l][b, : len(own.shell[l])] = own.shell[l]
            shell_atom[l][b, : len(own.shell_atom[l])] = own.shell_atom[l]
        ao[b, : len(own.ao)] = own.ao
    return Primitives(table, shell, shell_atom, ao)
