"""Progress with an estimate of the time left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator


class Progress:
    """Context manager; call :meth:`update` with how much is done.

    Args:
      label: what is counted.
      every: seconds between lines when standard error is not a terminal.
    """

    def __init__(self, label: str, every: float = 20.0):
        self.label, self.every = label, every
        self.start = self.last = time.monotonic()
        self.first: int | None = None
        self.tty = sys.stderr.isatty()
        self.bar = None

    def __enter__(self) -> Progress:
        if self.tty:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn(self.label),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=None, note="")
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, total: int, failed: int = 0, note: str = "") -> None:
        """Report ``done`` of ``total``; ``failed`` and ``note`` are shown beside it."""
        note = note or (f"{failed} failed" if failed else "")
        now, begins = time.monotonic(), self.first is None
        # what an earlier process did says nothing about the time left
        first = self.first = done if self.first is None else self.first
        if self.bar is not None:
            if begins:
                self.bar.reset(self.task, completed=done)
            self.bar.update(self.task, completed=done, total=total, note=note)
            return
        if done < total and now - self.last < self.every:
            return
        self.last = now
        rate = (done - first) / max(now - self.start, 1e-9)
        eta = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        print(
            f"{self.label}: {done}/{total}{eta}{', ' + note if note else ''}",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Say what takes a while and has no count: a spinner on a terminal, one plain line elsewhere.

    Nothing may be printed meanwhile: on a terminal it would land on standard error.
    """
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(text):
            yield
        return
    line = threading.Timer(3.0, lambda: print(f"{text} ...", file=sys.stderr, flush=True))
    line.daemon = True
    line.start()  # after a while: a refusal is one line
    try:
        yield
    finally:
        line.cancel()
