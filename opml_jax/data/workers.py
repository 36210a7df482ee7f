"""Executors for labels: processes of this machine that are replaced when they die, or Dask's."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures.thread import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..errors import Code, DataError, OpmlError, to_install

SPAWN = get_context("spawn")
"""How processes begin: anew, because a fork of a process with JAX's threads hangs."""


class Workers(Executor):
    """Processes, each with a thread that hands it calls.

    One that dies (out of memory, a crash of compiled code) is replaced, and only the call that it
    was busy with is lost: its future raises :class:`DataError`. In a ``ProcessPoolExecutor`` one
    death ends all calls. If the block of its ``with`` is left by an exception, Ctrl-C among them,
    they end at once, whatever they are busy with; and they end with their parent.

    Args:
      n: processes.
      threads: that PySCF may use in each.
    """

    def __init__(self, n: int, threads: int = 1):
        self._n_threads = threads
        self._handlers = ThreadPoolExecutor(n)
        self._own = threading.local()
        self._pools: list[ProcessPoolExecutor] = []
        self._watched, self._held = SPAWN.Pipe(duplex=False)  # closed, it tells workers to end

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """As of every executor."""
        return self._handlers.submit(self._call, fn, *args, **kwargs)

    def __exit__(self, kind, *_) -> None:
        """Wait for the calls, or end them if an exception leaves the block."""
        if kind is not None:
            self._held.close()
        self.shutdown(cancel_futures=kind is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of every executor."""
        self._handlers.shutdown(wait, cancel_futures=cancel_futures)
        for pool in self._pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._held.close()
            self._watched.close()

    def _call(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Any:
        pool = getattr(self._own, "pool", None)
        if pool is None:
            if hasattr(signal, "pthread_sigmask"):  # workers inherit it: their parent ends them
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            start = (SPAWN, set_up, (self._n_threads, self._watched))
            pool = self._own.pool = ProcessPoolExecutor(1, *start)
            self._pools.append(pool)
        try:
            return pool.submit(fn, *args, **kwargs).result()
        except BrokenExecutor as err:
            self._own.pool = None
            raise DataError("its process died (out of memory?)", code=Code.WORKER) from err


def set_up(threads: int, parent: Any) -> None:
    """Start of a worker process: threads PySCF may use, and an end with its parent.

    Args:
      threads: for PySCF.
      parent: end of a pipe whose other end the parent alone has. A parent that is killed cannot
        stop its workers, and they would calculate for nobody.
    """

    def watch() -> None:
        parent.poll(None)  # nothing is ever sent: until the other end is closed
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    from pyscf import lib

    lib.num_threads(threads)


@contextlib.contextmanager
def dask_workers(scheduler: str) -> Iterator[Executor]:
    """The workers of a Dask cluster, which must see the same files.

    Args:
      scheduler: its address (``tcp://host:8786``), or its scheduler file.

    Raises:
      OpmlError: no such cluster, or Dask is not installed.
    """
    try:
        from distributed import Client
    except ImportError as err:
        raise OpmlError(
            f"a Dask scheduler needs Dask: {to_install('dask')}", code=Code.DEVICE
        ) from err
    file = Path(scheduler).is_file()
    try:
        client = Client(scheduler_file=scheduler) if file else Client(scheduler)
    except (OSError, ValueError) as err:
        got = f"{scheduler} ({type(err).__name__})"
        raise OpmlError(
            "--scheduler", got=got, expected="a Dask scheduler that answers", code=Code.DEVICE
        ) from err
    with client, client.get_executor(pure=False) as executor:
        yield executor
