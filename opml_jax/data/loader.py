"""Padded batches of few shapes for training: deterministic, and restartable anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..basis import Basis, batch
from ..basis.buckets import Bucket, buckets
from ..errors import DataError, counted
from ..numerics import Array, pytree
from ..quantities import LABELS
from ..structures import StructureBatch
from .dataset import Dataset

AUXILIARY = ("aux", "shell")
"""Axes of auxiliary functions and their shells, of which buckets know nothing: the longest."""


@pytree
class LabelledBatch:
    """Structures of one bucket with their labels; a pytree, so that a jitted step takes it whole.

    Attributes:
      structures: padded molecules; ``structures.mask`` and ``structures.layout.ao_mask`` tell
        real atoms and AOs.
      labels: by field, ``(n_structures, ...)`` atomic units, 0 for padded atoms, AOs and levels.
      weight: ``(n_structures,)`` 1, or 0 for a repeat that only fills the batch.
      index: ``(n_structures,)`` where in the data set each structure is.
    """

    structures: StructureBatch
    labels: dict[str, Array]
    weight: Array
    index: Array


class Loader:
    """Batches of a data set, each structure exactly once an epoch.

    Molecules are sorted into few buckets (:func:`opml_jax.basis.buckets`), so that few programs are
    compiled. Order depends on the seed and the epoch only: ``loader.epoch(3, start=7)`` continues
    where an interrupted run stopped. Labels that stay in a file (``read_dataset(..., lazy=True)``)
    are read a batch at a time.

    Args:
      dataset: structures and labels.
      basis: covers every element.
      batch_size: structures a batch; a bucket's last batch is filled with repeats of weight 0.
      labels: fields wanted. Default: all the data set has.
      n_buckets: most shapes.
      seed: of the order.
      shuffle: a new order every epoch; False: smallest bucket first, in the order of the set.

    Raises:
      DataError: an empty set, a batch size below 1, or a label the set lacks.
      ConventionError: AO matrices in another basis or order.

    Example:
      ``for batch in loader.epoch(epoch): state = step(state, batch)``, where ``step`` weighs
      every structure's error by ``batch.weight``.
    """

    def __init__(
        self,
        dataset: Dataset,
        basis: Basis,
        *,
        batch_size: int,
        labels: Sequence[str] | None = None,
        n_buckets: int = 4,
        seed: int = 0,
        shuffle: bool = True,
    ):
        if not len(dataset) or batch_size < 1:
            got = f"{counted(len(dataset), 'structure')}, batch_size={batch_size}"
            raise DataError("loader", got=got, expected="at least one of each")
        self.dataset = dataset
        self.basis = basis
        self.batch_size = batch_size
        self.labels = tuple(dataset.labels if labels is None else labels)
        self.seed = seed
        self.shuffle = shuffle
        dataset.check_labels(self.labels)
        if any({"ao", "mo"} & {*LABELS[name].axes} for name in self.labels):
            dataset.check_layout(basis)
        longest = [
            max((n for k in own for (n,) in dataset.shapes(k)), default=0)
            for own in ([k for k in self.labels if LABELS[k].axes == (a,)] for a in AUXILIARY)
        ]
        self.auxiliary = dict(zip(AUXILIARY, longest, strict=True))
        self.buckets = buckets(dataset.structures, basis, n=n_buckets)

    def __len__(self) -> int:
        """Batches an epoch."""
        return sum(-(-len(index) // self.batch_size) for _, index in self.buckets)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[LabelledBatch]:
        """Batches of one epoch.

        Args:
          epoch: which; any number, in any order.
          start: batches to leave out at the beginning, without making them.
        """
        for bucket, index in self._plan(epoch)[start:]:
            yield self._batch(bucket, index)

    def _plan(self, epoch: int) -> list[tuple[Bucket, np.ndarray]]:
        """Indices of every batch of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        plan = []
        for bucket, index in self.buckets:
            index = rng.permutation(index) if self.shuffle else index
            cuts = range(self.batch_size, len(index), self.batch_size)
            plan += [(bucket, part) for part in np.split(index, cuts)]
        return [plan[k] for k in rng.permutation(len(plan))] if self.shuffle else plan

    def _batch(self, bucket: Bucket, index: np.ndarray) -> LabelledBatch:
        real = np.arange(self.batch_size) < len(index)
        index = np.resize(index, self.batch_size)  # fills up by starting over
        sizes = {"atom": bucket.n_atoms, "ao": bucket.nao, "mo": bucket.nao, **self.auxiliary}
        labels = {}
        for name in self.labels:
            shape = [a if isinstance(a, int) else sizes[a] for a in LABELS[name].axes]
            labels[name] = np.zeros((self.batch_size, *shape))
            for row, i in enumerate(index):
                value = self.dataset.labels[name][i]
                labels[name][(row, *map(slice, value.shape))] = value
        structures = batch([self.dataset.structures[i] for i in index], self.basis, bucket=bucket)
        return LabelledBatch(structures, labels, real.astype(np.float64), index)
