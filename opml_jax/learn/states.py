"""States of a training on disk, from which a killed one goes on, bit for bit. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..data.files import atomic_path
from ..errors import Code, ModelFileError
from ..structures import Structure

SAVE_EVERY = 2.0
"""Seconds between states on disk: that much work a kill may cost."""

STATES = "state"
"""Folder in a run directory with all that only a killed run needs."""


def forget(folder: str | os.PathLike) -> None:
    """Delete what a run directory keeps for a killed run; the next one begins anew."""
    shutil.rmtree(Path(folder) / STATES, ignore_errors=True)


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

    Of several processes, which hold the same, the first one does. The facts are what
    :func:`load_state` gives back, and ``"fingerprint"``, which it compares.
    """
    if jax.process_index():
        return
    leaves = {f"leaf_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        about = np.array(json.dumps(meta))
        np.savez(f, meta=about, **leaves)  # pyright: ignore[reportArgumentType]  # none is allow_pickle


def load_state(path: str | os.PathLike, like: Any, fingerprint: str) -> tuple[Any, dict] | None:
    """The state, of the structure and shapes of ``like``, and facts in a file; None if none is.

    Where only the facts say what there is, ``like`` is None: the state is a list of arrays.

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
            str(path), got=got, expected="a training state", hint=hint, code=Code.DAMAGED
        ) from err
    like = leaves if like is None else like
    shapes = [np.shape(x) for x in jax.tree.leaves(like)]
    if meta.get("fingerprint") != fingerprint or [x.shape for x in leaves] != shapes:
        got = "that of another configuration or data set"
        raise ModelFileError(
            str(path),
            got=got,
            expected="the state of this training",
            hint=hint,
            code=Code.OTHER_RUN,
        )
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta
