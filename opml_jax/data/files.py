"""Writing so that nothing half-written is ever left behind, and by one process at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import Code, OpmlError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as err:
        err.filename = err.filename or str(path)  # a full disk does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def locked(output: str | os.PathLike) -> Iterator[None]:
    """Keep other processes from writing the same output.

    The lock is the operating system's: it ends with this process, however that ends. Its file has
    a hidden name, in a folder ``.lock``, beside a file ``out.h5`` ``.out.h5.lock``.

    Args:
      output: file, or folder that is there, which is written.

    Raises:
      OpmlError: another process writes it.
    """
    path = Path(output).absolute()
    file = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise OpmlError(
            str(output),
            got=f"one that {_holder(file)} writes",
            expected="an output that no other process writes",
            hint="Wait for its end, or choose another.",
            code=Code.BUSY,
        ) from None
    try:
        file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees it is gone
        lock.release()


def _holder(file: Path) -> str:
    """Which process holds a lock."""
    try:
        process, host = file.read_text(encoding="utf-8").split()
    except (OSError, ValueError):  # it has not said so yet
        return "another process"
    return f"process {process} on {host}"
