"""Buckets: the padded shapes of batches, and how to choose few of them that waste little."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import Code, OpmlError, StructureError, counted
from ..structures import Structure
from .primitives import Primitives, primitives
from .shells import Basis
from .spec import BasisSpec

Numbers = tuple[int, ...]


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
        """Pairs of primitives times nuclei, of one molecule: the cost of its potential."""
        n = sum(self.n_primitives)
        return n * (n + 1) // 2 * self.n_atoms

    def covers(self, other: Bucket) -> bool:
        """True when a molecule of the shape ``other`` fits."""
        return all(a >= b for a, b in zip(self._flat, other._flat, strict=True))

    @property
    def _flat(self) -> tuple[int, ...]:
        return (self.n_atoms, self.nao, *self.n_primitives, *self.n_shells)

    def rounded(self) -> Bucket:
        """Next round numbers: atoms 1, 2, 3, 4, 6, 8, ..., AOs by 8, shells and primitives by 4."""

        def by(step: int, n: int) -> int:
            return -(-n // step) * step

        return Bucket(
            capacity(self.n_atoms),
            by(8, self.nao),
            tuple(by(4, n) for n in self.n_primitives),
            tuple(by(4, n) for n in self.n_shells),
        )


def capacity(n: int) -> int:
    """Next bucket size at or above ``n``: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... (steps of ~sqrt 2)."""
    size = 1
    while size < n:
        size = size + size // 2 if size & (size - 1) == 0 and size > 1 else -(-size * 4 // 3)
    return size


def _largest(shapes: Iterable[Bucket]) -> Bucket:
    shapes = list(shapes)
    return Bucket(
        max(s.n_atoms for s in shapes),
        max(s.nao for s in shapes),
        tuple(np.max([s.n_primitives for s in shapes], axis=0).tolist()),
        tuple(np.max([s.n_shells for s in shapes], axis=0).tolist()),
    )


def smallest_bucket(spec: BasisSpec, molecules: Iterable[Numbers]) -> Bucket:
    """The smallest shape that holds molecules given by their atomic numbers."""
    shapes = []
    for numbers in {tuple(sorted(m)) for m in molecules}:
        own = primitives(spec, numbers)
        shapes.append(Bucket(len(numbers), len(own.ao), own.counts, own.shell_counts))
    return _largest(shapes)


def bucket_of(structures: Sequence[Structure], basis: Basis) -> Bucket:
    """The shape :func:`opml_jax.batch` pads to by default.

    Molecules of one composition are not padded at all; others are padded to round numbers, so that
    shapes recur from batch to batch.

    Raises:
      StructureError: no structures.
      BasisError: an element the basis does not cover.
    """
    if not structures:
        raise StructureError(
            "structures", got="an empty list", expected="at least one structure", code=Code.EMPTY
        )
    molecules = {tuple(sorted(s.numbers)) for s in structures}
    needed = smallest_bucket(basis.spec, molecules)
    return needed if len(molecules) == 1 else needed.rounded()


def buckets(
    structures: Sequence[Structure], basis: Basis, *, n: int = 8, each: float = 0.0, chunk: int = 1
) -> list[tuple[Bucket, np.ndarray]]:
    """Few shapes for a whole data set, chosen to waste little work.

    Compositions are ordered by the work they need (:attr:`Bucket.pair_work`) and cut into at most
    ``n`` runs such that the padded work is least, by dynamic programming.

    Args:
      structures: molecules of any composition.
      basis: covers every element.
      n: most buckets allowed: one compilation each.
      each: what a bucket costs beside its work, in units of pair work: fewer buckets are chosen
        where that is less in all.
      chunk: structures computed at once; a bucket's last ones are filled up.

    Returns:
      ``[(bucket, indices), ...]``: every structure in exactly one, smallest bucket first.

    Raises:
      OpmlError: no structures, or ``n`` below 1.
      BasisError: an element the basis does not cover.
    """
    if not structures or n < 1:
        got = f"{counted(len(structures), 'structure')}, n={n}"
        raise OpmlError("structures, n", got=got, expected="at least one of each")
    molecules = [tuple(sorted(s.numbers)) for s in structures]
    count = Counter(molecules)
    shape = {numbers: smallest_bucket(basis.spec, [numbers]) for numbers in count}
    order = sorted(count, key=lambda numbers: (shape[numbers].pair_work, numbers))
    m = len(order)
    # cost[i][j]: work of compositions i..j in one bucket
    cost = np.full((m, m), np.inf)
    for i in range(m):
        widest, members = shape[order[i]], 0
        for j in range(i, m):
            if not widest.covers(shape[order[j]]):
                widest = _largest([widest, shape[order[j]]])
            members += count[order[j]]
            cost[i, j] = -(-members // chunk) * chunk * widest.pair_work + each
    best, cuts = cost[0].copy(), []
    for _ in range(min(n, m) - 1):
        # last run starts at k: everything before it in one bucket less
        options = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        cuts.append(options.argmin(axis=0))
        best = np.minimum(best, options.min(axis=0))
        cuts[-1] = np.where(options.min(axis=0) <= best, cuts[-1], -1)
    runs, stop = [], m
    for cut in reversed(cuts):
        start = int(cut[stop - 1])
        if start > 0:
            runs.append((start, stop))
            stop = start
    runs.append((0, stop))
    out = []
    for start, stop in reversed(runs):
        inside = set(order[start:stop])
        indices = np.array([k for k, numbers in enumerate(molecules) if numbers in inside])
        out.append((_largest(shape[numbers] for numbers in inside), indices))
    return out


def pad_primitives(spec: BasisSpec, molecules: Sequence[Numbers], bucket: Bucket) -> Primitives:
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
