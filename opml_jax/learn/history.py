"""The history of a training: rows of epochs in a file as they come, and in words."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.files import write_text
from ..errors import OpmlError, to_install
from ..quantities import QUANTITIES, metric

RMSE = "validation rmse "
"""What a note of errors begins with."""


def validation_errors(errors: Mapping[str, float]) -> dict[str, float]:
    """Columns of a row from root mean square errors of quantities, given in atomic units."""
    return {
        f"validation_{metric(name, 'rmse')}": QUANTITIES[name].factor * float(value)
        for name, value in errors.items()
    }


def note(row: Mapping[str, float]) -> str:
    """The validation errors of a row in words, or its loss where it has none."""
    shown = {f"validation_{metric(k, 'rmse')}": (k, q.shown) for k, q in QUANTITIES.items()}
    found = [
        f"{row[key]:.3g} {unit}{' in a field' * (name == 'field_dipole')}"
        for key, (name, unit) in shown.items()
        if key in row
    ]
    if found:
        return f"{RMSE}{', '.join(found)}"
    return f"validation loss {row['validation_loss']:.3g}"


class History:
    """Rows of a training as lines of JSON, appended as they come and readable at any moment.

    A run that goes on continues the file; rows from its first epoch on are replaced.

    Args:
      path: the file.
      tensorboard: also keep them in the folder ``tensorboard`` beside it.

    Raises:
      OpmlError: ``tensorboard``, and tensorboardX is not installed.
    """

    def __init__(self, path: str | os.PathLike, *, tensorboard: bool = False):
        self.path, self._begun = Path(path), False
        self._board = _Board(self.path.parent / "tensorboard") if tensorboard else None

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; its ``epoch`` is above those before."""
        if not self._begun:
            earlier = read_history(self.path) if self.path.exists() else []
            write_history(self.path, [r for r in earlier if r["epoch"] < row["epoch"]])
            self._begun = True
            if self._board is not None:
                self._board.begin(int(row["epoch"]))
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        if self._board is not None:
            self._board.add(row)


class _Board:
    """TensorBoard's files, by tensorboardX: what is added is in the file at once, as in others."""

    def __init__(self, folder: Path):
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError as err:
            raise OpmlError(
                "TensorBoard's files are written with tensorboardX, which is not installed: "
                f"{to_install('tensorboard')}"
            ) from err
        self._folder, self._writer, self._file = folder, EventsWriter, None
        self._events, self._summaries = event_pb2, summary_pb2

    def _write(self, epoch: int, **content: Any) -> None:
        assert self._file is not None  # begun
        self._file.write_event(self._events.Event(wall_time=time.time(), step=epoch, **content))
        self._file.flush()

    def begin(self, epoch: int) -> None:
        """Open a file; rows from this epoch on, of earlier ones, count no more."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._writer(str(self._folder / "events"), f".{epoch}")
        weakref.finalize(self, self._file.close)
        log = self._events.SessionLog
        self._write(epoch, session_log=log(status=log.START))

    def add(self, row: Mapping[str, float]) -> None:
        """Write a row."""
        value = self._summaries.Summary.Value
        values = [value(tag=k, simple_value=v) for k, v in row.items() if k != "epoch"]
        self._write(int(row["epoch"]), summary=self._summaries.Summary(value=values))


def write_history(path: str | os.PathLike, rows: Iterable[Mapping[str, float]]) -> None:
    """Write a whole history, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_history(path: str | os.PathLike) -> list[dict[str, float]]:
    """Rows of a history; a last line that a kill cut off is left out."""
    *lines, _ = Path(path).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]
