"""HDF5 that may be damaged or hostile, and disks that may be full.

Reading follows nothing out of the file, and allocates no size that it does not have.

The HDF5 library itself trusts some lengths: a damaged heap of texts keeps it busy for ever, or
makes it ask for all memory. Those are checked before it sees them. What else is damaged in a file's
structure is told by the checksums of :data:`LIBVER`; files of earlier versions have none.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import Code, DataError, OpmlError, check_file
from .files import atomic_path

LIBVER = ("v110", "v110")
"""Format of files that are written: the first whose structure, and not only data, has checksums."""

OVERHEAD = 1.2
"""Bytes of a file, over those of the arrays in it, at most."""

WINDOW = 2**22
"""Bytes of a file that are looked at together, so that a large one is never in memory."""

CACHE = 2**21
"""Bytes of unpacked chunks that are kept of an array; h5py makes chunks of half as many at most."""

MAX_RATIO = 1100
"""More than deflate can compress (1032); an array that claims more was never written."""

_HEAP = re.compile(rb"GCOL\x01\0\0\0")
"""Signature, version and padding of a collection of texts of any length (HDF5 format, III.E)."""


@contextlib.contextmanager
def image(path: str | os.PathLike, check: Callable[[Path], None]) -> Iterator[h5py.File]:
    """A new file, made in memory and written, atomically, in one go.

    The HDF5 library survives no full disk: it fails again at every object that it closes, and then
    crashes.

    Args:
      path: the file.
      check: called with the written file before it replaces what is at ``path``, unless it raises.
    """
    with h5py.File(path, "w", driver="core", backing_store=False, libver=LIBVER) as f:
        yield f
        f.flush()
        whole = f.id.get_file_image()
    with atomic_path(path) as temporary:
        temporary.write_bytes(whole)
        check(temporary)


@contextlib.contextmanager
def on_disk(
    path: str | os.PathLike, needed: int, check: Callable[[Path], None]
) -> Iterator[h5py.File]:
    """A new file, written, atomically, as it comes: for what memory does not hold.

    A full disk is noticed beforehand, because HDF5 would not survive it (see :func:`image`).

    Args:
      path: the file.
      needed: bytes of the arrays that will be in it.
      check: as of :func:`image`.

    Raises:
      OSError: the disk has no room for them.
    """
    with atomic_path(path) as temporary:
        check_room(Path(path), int(OVERHEAD * needed) + 2**20)
        with h5py.File(temporary, "w", libver=LIBVER, rdcc_nbytes=CACHE) as f:
            yield f
        check(temporary)


def check_room(path: Path, needed: int) -> None:
    """Refuse to write more than the disk has room for.

    Args:
      path: where.
      needed: bytes.

    Raises:
      OSError: ENOSPC.
    """
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextlib.contextmanager
def one_line(path: Path, expected: str, hint: str = "") -> Iterator[None]:
    """Any failure to read a file, in one line.

    Args:
      path: the file.
      expected: what kind of file, for the message.
      hint: what to do.

    Raises:
      DataError: in place of what HDF5 raises; errors of this library pass.
    """
    try:
        yield
    except OpmlError:
        raise
    except Exception as err:  # h5py, and what is made of its answers, raise many kinds
        reason = (str(err) or type(err).__name__).splitlines()[0]
        got = f"an unreadable file ({reason})"
        raise DataError(
            str(path), got=got, expected=expected, hint=hint, code=Code.DAMAGED
        ) from err


def read_whole(path: Path, read: Callable[[h5py.File], Any], expected: str, hint: str = "") -> Any:
    """``read(file)``, any failure in one line.

    Args:
      path: the file.
      read: what to do with it.
      expected: what kind of file, for the message.
      hint: what to do.

    Raises:
      DataError: what ``read`` raises, or a file that HDF5 cannot read.
    """
    check_file(path, expected)
    with one_line(path, expected, hint):
        _check_heaps(path)
        with h5py.File(path, "r") as f:
            return read(f)


def _check_heaps(path: Path) -> None:
    """Refuse collections whose objects do not fill them one after the other."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for first in range(0, len(data), WINDOW):
            for found in _HEAP.finditer(data, first, min(first + WINDOW + 7, len(data))):
                _check_heap(data, found.start())
            if hasattr(mmap, "MADV_DONTNEED"):  # pages that were seen count as this process's
                data.madvise(mmap.MADV_DONTNEED, first, min(WINDOW, len(data) - first))


def _check_heap(data: mmap.mmap, start: int) -> None:
    end = start + int.from_bytes(data[start + 8 : start + 16], "little")
    at = start + 16
    if not at <= end <= len(data):
        raise ValueError("a heap longer than the file")
    while at + 16 <= end:
        size = int.from_bytes(data[at + 8 : at + 16], "little")
        if data[at : at + 2] == b"\0\0":  # the room that is left, its header included
            size -= 16
        padded = -(-size // 8) * 8
        if size < 0 or at + 16 + padded > end:
            raise ValueError("a heap with an object longer than itself")
        at += 16 + padded


def check_own(group: h5py.Group, name: str, path: Path) -> None:
    """Refuse what is not stored in this very file.

    Raises:
      KeyError: nothing of that name.
      DataError: a link.
    """
    if name not in group:
        raise KeyError(f"it has no {name!r}")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise DataError(
            f"{path}:{name}", got="a link", expected="data in the file", code=Code.UNSAFE
        )


def load(group: h5py.Group, name: str, path: Path, *shape: int) -> np.ndarray:
    """An array of the file, after :func:`checked` found its size to be real."""
    return checked(group, name, path, *shape)[()]


def checked(group: h5py.Group, name: str, path: Path, *shape: int) -> h5py.Dataset:
    """An array of the file, unread, whose size is real.

    Args:
      group: where it is.
      name: of the array.
      path: of the file, for messages.
      *shape: that it must have; none: any.

    Raises:
      KeyError: nothing of that name.
      DataError: a link, data outside the file, another shape, more than the file holds.
    """
    check_own(group, name, path)
    data, where = group[name], f"{path}:{name}"
    if data.is_virtual or data.external:
        raise DataError(
            where, got="data outside the file", expected="data in the file", code=Code.UNSAFE
        )
    if shape and data.shape != shape:
        raise DataError(
            where, got=f"shape {data.shape}", expected=f"shape {shape}", code=Code.DAMAGED
        )
    if data.nbytes > MAX_RATIO * data.id.get_storage_size():
        raise DataError(
            where,
            got=f"{data.id.get_storage_size()} bytes",
            expected=f"the {data.nbytes} bytes it claims",
            hint="Is the file truncated?",
            code=Code.DAMAGED,
        )
    return data
