"""Data that ships with the package, so that the quickstart and the tests run offline."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ..errors import DataError, one_of

NAMES = ("water", "alkanes")
SUFFIXES = (".h5", ".splits.json", ".xyz")


def bundled(name: str, suffix: str = ".h5") -> Path:
    """Path of a bundled file: ``bundled("water")`` or ``bundled("water", ".splits.json")``.

    ``water``: 500 geometries at about 500 K, PBE/def2-SVP; ``alkanes``: C1 to C4, 60 geometries
    each, and C6 and C8, 20 each, PBE/STO-3G, energies and forces alone. See ``water.md`` and
    ``alkanes.md`` beside them.

    Raises:
      DataError: no such data set, or no such file of it.
    """
    one_of("bundled data set", name, NAMES, DataError)
    folder = Path(str(files("opml_jax.data").joinpath("bundled")))
    there = [s for s in SUFFIXES if (folder / (name + s)).exists()]
    one_of("suffix of a bundled data set", suffix, there, DataError)
    return folder / (name + suffix)
