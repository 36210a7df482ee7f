"""One run of training: what is random in it, what it keeps on disk, and how it says where it is."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .history import History, note
from .states import STATES, load_state, save_state

Progress = Callable[[str, int, int, str], None]
"""Called with (stage, done, total, note): the one signature of progress.

A stage says that it begins, with nothing done, before it computes; its note then says how long
that usually takes.
"""

COMPILING = "compiling, usually a minute or two"
"""A note for what waits for XLA."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Report nothing."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What every part of a training needs beside its data and its settings.

    Attributes:
      folder: Run directory; None: nothing is kept.
      seed: Of mixtures, initial weights and the order of batches.
      fingerprint: Of configuration and data; states of another are refused.
      on_progress: Called with (stage, done, total, note).
      rows: Keeps the rows of epochs; None: nobody does.
      first_epoch: What epochs are counted from, where several descents follow each other.
      origin: The model that training starts from; None: from nothing.
      seconds: Wall time of each stage, filled by :meth:`stage`.
    """

    folder: Path | None = None
    seed: int = 0
    fingerprint: str = ""
    on_progress: Progress = silent
    rows: History | None = None
    first_epoch: int = 0
    origin: Any = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say how far a stage is."""
        self.on_progress(stage, done, total, note)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """A stage from its beginning to its end, and how long it took.

        Yields:
          a function that takes the note to end with.
        """
        words = [""]

        def end_with(text: str) -> None:
            words[0] = text

        clock = time.perf_counter()
        self.progress(name, 0, 1)
        yield end_with
        self.progress(name, 1, 1, words[0])
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - clock

    def path(self, name: str) -> Path | None:
        """A file or folder that only a killed run needs; None where nothing is kept."""
        return None if self.folder is None else self.folder / STATES / name

    def load(self, name: str, like: Any) -> tuple[Any, dict] | None:
        """The state of this name and its facts, or None; see :func:`load_state` for errors."""
        path = self.path(f"{name}.npz")
        return None if path is None else load_state(path, like, self.fingerprint)

    def save(self, name: str, state: Any, facts: Mapping[str, Any]) -> None:
        """Keep a state, from which :meth:`load` goes on."""
        if (path := self.path(f"{name}.npz")) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_state(path, state, {**facts, "fingerprint": self.fingerprint})

    def announce_epochs(self, done: int, epochs: int) -> None:
        """Say that a descent of ``epochs`` begins, or goes on after ``done``; it compiles next."""
        total = self.first_epoch + epochs
        self.progress("epochs", self.first_epoch + done, total, f"network: {COMPILING}")

    def epoch(self, row: Mapping[str, float], epochs: int) -> None:
        """Keep and report the row of an epoch of a descent that takes ``epochs``."""
        number = self.first_epoch + int(row["epoch"])
        if self.rows is not None:
            self.rows.append({**row, "epoch": number})
        self.progress("epochs", number, self.first_epoch + epochs, note(row))
