"""Labels that stay in their file until they are asked for, for data sets larger than memory."""

from __future__ import annotations

import dataclasses
import operator
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from ..errors import Code, DataError
from .hdf5 import CACHE, one_line


def check_finite_value(value: np.ndarray, name: str, path: Path, i: int) -> None:
    """Refuse a label that is no number.

    Raises:
      DataError: naming label, file and structure.
    """
    if not np.isfinite(value).all():
        got, expected = f"NaN in structure {i}", "finite labels"
        raise DataError(f"{name} of {path}", got=got, expected=expected, code=Code.NOT_FINITE)


def unpack(packed: np.ndarray, n: int) -> np.ndarray:
    """A symmetric matrix ``(n, n)`` from its lower triangle, row by row."""
    matrix = np.zeros((n, n))
    lower = np.tril_indices(n)
    matrix[lower] = packed
    matrix.T[lower] = packed
    return matrix


class LabelFile:
    """A file that has been checked, opened when a label is first read and left open.

    It may be shared by threads (h5py lets one at a time into HDF5) and by forked processes (HDF5
    reads at positions, and h5py lets nobody fork inside it), and sent to others, which open it
    anew. A file that was replaced in the meantime is refused.

    Args:
      path: the file.
      identity: its size and time of change when it was checked. Default: as it is now.

    Raises:
      DataError: from :meth:`label`: it is gone, was changed or cannot be read.
    """

    def __init__(self, path: str | os.PathLike, identity: tuple[int, int] | None = None):
        self.path = Path(path)
        self._absolute = self.path.absolute()  # workers may run in another folder
        self._identity = self._now() if identity is None else identity
        self._lock = threading.Lock()
        self._labels: dict[str, h5py.Dataset] = {}
        self._file: h5py.File | None = None

    def __reduce__(self):
        return LabelFile, (self._absolute, self._identity)

    def _now(self) -> tuple[int, int]:
        stat = os.stat(self._absolute)
        return stat.st_size, stat.st_mtime_ns

    def label(self, name: str) -> h5py.Dataset:
        """One of its labels, unread. Datasets are kept: their chunks are cached in them."""
        if name in self._labels:
            return self._labels[name]
        with self._lock:
            file = self._file
            if file is None:
                if self._now() != self._identity:
                    expected, hint = "as it was when it was opened", "Read it again."
                    raise DataError(
                        str(self.path),
                        got="another file",
                        expected=expected,
                        hint=hint,
                        code=Code.DAMAGED,
                    )
                file = self._file = h5py.File(self._absolute, "r", rdcc_nbytes=CACHE)
            return self._labels.setdefault(name, file["labels"][name])


@dataclasses.dataclass(frozen=True, eq=False)
class FileRows(Sequence):
    """One label of every structure of a file.

    Attributes:
      file: where.
      name: of the label.
      shapes: of its values, ``(n_structures, n_axes)``.
      starts: where each begins along the first axis of the array in the file.
      lengths: how far each goes there; None: it is one row.
      packed: the values are symmetric, and lower triangles in the file.
    """

    file: LabelFile
    name: str
    shapes: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray | None
    packed: bool

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> np.ndarray:
        start = int(self.starts[i])
        rows = start if self.lengths is None else slice(start, start + int(self.lengths[i]))
        with one_line(self.file.path, "a complete HDF5 data set of this library"):
            value = np.asarray(self.file.label(self.name)[rows], np.float64)
        check_finite_value(value, self.name, self.file.path, int(i))
        return unpack(value, int(self.shapes[i, 0])) if self.packed else value


class StoredLabel(Sequence):
    """A label of a data set, in the files where its values are.

    ``len(label)``, ``label[i]`` (read now; float64, atomic units), slices and :meth:`take` (not
    read), iteration (one value at a time), ``numpy.array(label)`` (all of it, if shapes agree).

    Args:
      parts: sequences of values, in files or in memory.
      where: ``(n, 2)`` part and index in it of each value. Default: all, one part after another.

    Raises:
      DataError: when a value is read: the file is damaged there, was changed, or has no number.
    """

    def __init__(self, parts: Iterable[Sequence[np.ndarray]], where: np.ndarray | None = None):
        self.parts = tuple(parts)
        if where is None:
            sizes = [len(part) for part in self.parts]
            every = [np.arange(n) for n in sizes]
            where = np.stack([np.repeat(np.arange(len(sizes)), sizes), np.concatenate(every)], 1)
        self.where = where

    @classmethod
    def joined(cls, labels: Sequence[Sequence[np.ndarray]]) -> StoredLabel:
        """The values of several, one after another, wherever they are."""
        labels = [v if isinstance(v, StoredLabel) else cls([v]) for v in labels]
        before = np.cumsum([0, *(len(v.parts) for v in labels)])[:-1]
        where = [v.where + np.array([n, 0]) for v, n in zip(labels, before, strict=True)]
        return cls([p for v in labels for p in v.parts], np.concatenate(where))

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return StoredLabel(self.parts, self.where[i])
        part, row = self.where[operator.index(i)]
        return self.parts[part][row]

    def take(self, indices: Sequence[int]) -> StoredLabel:
        """The values at ``indices``, in that order, unread."""
        return StoredLabel(self.parts, self.where[np.asarray(indices, np.int64)])

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of every value; reads none."""
        return [
            tuple(map(int, part.shapes[i])) if hasattr(part, "shapes") else part[i].shape
            for part, i in ((self.parts[k], i) for k, i in self.where)
        ]

    def __repr__(self) -> str:
        names = dict.fromkeys(p.file.path.name for p in self.parts if isinstance(p, FileRows))
        return f"StoredLabel({len(self)} values in {', '.join(names)})"
