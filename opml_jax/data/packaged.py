"""Data that ships with the package, so that the quickstart and the tests run offline."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ..errors import DataError, nearest, refusal

NAMES = ("water",)


def bundled(name: str, suffix: str = ".h5") -> Path:
    """Path of a bundled file: ``bundled("water")`` or ``bundled("water", ".splits.json")``.

    ``water``: 500 geometries at about 500 K, PBE/def2-SVP; see ``water.md`` beside it.

    Raises:
      DataError: no such data set.
    """
    path = Path(str(files("opml_jax.data").joinpath("bundled", name + suffix)))
    if name not in NAMES or not path.is_file():
        raise DataError(
            refusal(
                "bundled data set",
                got=repr(name + suffix),
                expected=f"one of {NAMES}",
                hint=nearest(name, NAMES),
            )
        )
    return path
