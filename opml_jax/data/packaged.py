"""Data that ships with the package, so that the quickstart and the tests run offline."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ..errors import DataError, one_of

NAMES = ("water",)
SUFFIXES = (".h5", ".splits.json", ".xyz")


def bundled(name: str, suffix: str = ".h5") -> Path:
    """Path of a bundled file: ``bundled("water")`` or ``bundled("water", ".splits.json")``.

    ``water``: 500 geometries at about 500 K, PBE/def2-SVP; see ``water.md`` beside it.

    Raises:
      DataError: no such data set.
    """
    one_of("bundled data set", name, NAMES, DataError)
    one_of("suffix of a bundled data set", suffix, SUFFIXES, DataError)
    return Path(str(files("opml_jax.data").joinpath("bundled", name + suffix)))
