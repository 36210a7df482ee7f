"""What a training run leaves on disk as it goes, so that a killed one goes on. No pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..data.files import atomic_path, write_text
from ..errors import Code, ModelFileError, OpmlError, refusal
from ..structures import Structure

SAVE_EVERY = 2.0
"""Seconds between states on disk: that much work a kill may cost."""

STATE, NETWORK, WIDTHS = "state.npz", "network.npz", "widths.npz"
STRUCTURES, TURNED = "cache/structures", "cache/turned"
"""What only a killed run needs: files and folders in its run directory."""


def forget(folder: str | os.PathLike) -> None:
    """Delete what a run directory keeps for a killed run; the next one begins anew."""
    folder = Path(folder)
    for name in (STATE, NETWORK, WIDTHS):
        (folder / name).unlink(missing_ok=True)
    for name in (STRUCTURES, TURNED):
        shutil.rmtree(folder / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # absent, or something else is in it
        (folder / STRUCTURES).parent.rmdir()


def fingerprint(
    settings: Mapping[str, Any], structures: Sequence[Structure], labels: Iterable[np.ndarray] = ()
) -> str:
    """Hash of what a computation depends on: JSON-able settings, molecules, labels."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for s in structures:
        digest.update(repr((s.numbers, s.charge, s.spin)).encode())
        digest.update(np.asarray(s.positions, np.float64).tobytes())
    for values in labels:
        digest.update(np.asarray(values, np.float64).tobytes())
    return digest.hexdigest()[:16]


def save_state(path: str | os.PathLike, state: Any, meta: Mapping[str, Any]) -> None:
    """Write the arrays of a pytree, in order, and JSON-able facts; atomically.

    Of several processes, which hold the same, the first one does.

    Args:
      path: file, replaced if it exists.
      state: any pytree of arrays, such as weights and optimizer state.
      meta: what :func:`load_state` gives back, and ``"fingerprint"``, which it compares.
    """
    if jax.process_index():
        return
    leaves = {f"leaf_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        about = np.array(json.dumps(meta))
        np.savez(f, meta=about, **leaves)  # pyright: ignore[reportArgumentType]  # none is allow_pickle


def load_state(path: str | os.PathLike, like: Any, fingerprint: str) -> tuple[Any, dict] | None:
    """The state and facts in a file, or None if there is none.

    Args:
      path: file from :func:`save_state`.
      like: pytree of the same structure and shapes.
      fingerprint: of the run that wants to go on: configuration and data.

    Raises:
      ModelFileError: a damaged file, or the state of another run.
    """
    if not Path(path).is_file():
        return None
    hint = "Delete it to begin anew, or choose another run directory."
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as f:
            meta = json.loads(str(f["meta"]))
            leaves = [f[f"leaf_{i}"] for i in range(len(f.files) - 1)]
    except Exception as err:  # zip and NumPy raise many kinds on a damaged file
        got = f"an unreadable file ({err})"
        raise ModelFileError(
            refusal(str(path), got=got, expected="a training state", hint=hint), code=Code.DAMAGED
        ) from err
    shapes = [np.shape(x) for x in jax.tree.leaves(like)]
    if meta.get("fingerprint") != fingerprint or [x.shape for x in leaves] != shapes:
        got = "that of another configuration or data set"
        raise ModelFileError(
            refusal(str(path), got=got, expected="the state of this training", hint=hint),
            code=Code.OTHER_RUN,
        )
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta


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
    """TensorBoard's files, by tensorboardX: what is added is in the file at once, as in others.

    Args:
      folder: to write into.

    Raises:
      OpmlError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError as err:
            raise OpmlError(
                "TensorBoard's files are written with tensorboardX, which is not installed: "
                "pip install 'opml_jax[tensorboard]'"
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
