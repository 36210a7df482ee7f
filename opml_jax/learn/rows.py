"""Arrays too large for memory: filled row by row, and read in the same way."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data.files import write_text

MAX_MEMORY = 2**32
"""Bytes of one array kept in memory."""

SAVE_SECONDS = 20.0
"""Least time between two writes to the disk, which for large arrays take seconds each."""


class Selected:
    """Rows of an array, picked and multiplied only when they are read.

    Stands for an array in what goes through its first axis in parts: ``shape``, ``dtype``,
    ``len``, and indices into the first axis, which give an array of their rows.

    Args:
      array: ``(n, ...)``, or another selection.
      index: rows of it, in order. Default: all.
      factor: ``(len(index), ...)`` broadcast against them. Default: 1.
    """

    def __init__(
        self,
        array: np.ndarray | Selected,
        index: np.ndarray | None = None,
        factor: np.ndarray | None = None,
    ):
        self.array, self.factor = array, factor
        self.index = np.arange(len(array)) if index is None else np.asarray(index)
        self.dtype, self.shape = array.dtype, (len(self.index), *array.shape[1:])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i) -> np.ndarray:
        rows = np.asarray(self.array[self.index[i]])
        return rows if self.factor is None else rows * self.factor[i].astype(self.dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class Rows:
    """Named arrays of ``n`` rows, filled from the front.

    Args:
      n: rows.
      folder: keeps the arrays, each in a file. What an earlier process filled from the same
        source, but for the last :data:`SAVE_SECONDS`, is taken up, anything else in the folder is
        deleted. Default, and where the disk has not twice the room: memory.
      source: fingerprint of what the rows are computed from.

    Attributes:
      done: rows filled so far.
    """

    def __init__(self, n: int, folder: str | os.PathLike | None = None, source: str = ""):
        self.n, self.source, self.done = n, source, 0
        self._saved = -SAVE_SECONDS
        self.folder = None if folder is None else Path(folder)
        self._arrays: dict[str, np.ndarray] = {}
        if self.folder is not None and self.folder.exists():
            self._take_up(self.folder)

    def _take_up(self, folder: Path) -> None:
        try:
            left = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # killed before the first rows were complete
            left = {}
        if left.get("source") != self.source:
            shutil.rmtree(folder)
            return
        self.done = left["done"]
        self._arrays = {k: np.load(_file(folder, k), mmap_mode="r+") for k in left["names"]}

    def append(self, values: Mapping[str, np.ndarray]) -> None:
        """Fill the next rows of every array, of the shapes and types of the first call."""
        if not self._arrays:
            self._allocate(values)
        stop = self.done + len(next(iter(values.values())))
        for name, own in values.items():
            self._arrays[name][self.done : stop] = own
        self.done = stop
        late = time.monotonic() - self._saved >= SAVE_SECONDS or stop == self.n
        if self.folder is not None and late:
            for array in self._arrays.values():
                if isinstance(array, np.memmap):
                    array.flush()
            self._saved = time.monotonic()
            left = {"source": self.source, "done": stop, "names": [*values]}
            write_text(self.folder / "rows.json", json.dumps(left))

    def _allocate(self, values: Mapping[str, np.ndarray]) -> None:
        shapes = {k: (self.n, *v.shape[1:]) for k, v in values.items()}
        if self.folder is not None:
            size = sum(np.prod(shapes[k]) * v.itemsize for k, v in values.items())
            self.folder.mkdir(parents=True, exist_ok=True)
            # a file that grows into a full disk would end the process without a word
            if shutil.disk_usage(self.folder).free < 2 * size:
                self.folder = None
        for name, own in values.items():
            self._arrays[name] = self._array(name, shapes[name], own.dtype)

    def _array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if self.folder is not None:
            return np.lib.format.open_memmap(_file(self.folder, name), "w+", dtype, shape)
        if np.prod(shape) * dtype.itemsize <= MAX_MEMORY:
            return np.empty(shape, dtype)
        with tempfile.TemporaryFile(prefix="opml_rows_") as file:  # goes with the last reference
            return np.memmap(file, dtype, "w+", shape=shape)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, in memory unless they are large."""
        return {
            k: np.array(v) if isinstance(v, np.memmap) and v.nbytes <= MAX_MEMORY else v
            for k, v in self._arrays.items()
        }


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"
