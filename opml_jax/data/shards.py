"""Labels made in several places: their files checked to the last byte, and put together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import Code, ConventionError, DataError, OpmlError, refusal
from ..structures import Structure
from .dataset import Dataset, concatenate
from .generate import read_part
from .reference import Method
from .store import read_hdf5, write_hdf5

PARTS = ".parts"
"""End of the name of the folder that ``opml generate`` fills."""


def verify(path: str | os.PathLike) -> tuple[int, int]:
    """Read all of a data set, or of a folder of finished labels, against its checksums.

    HDF5 files have one for each chunk of a label (Fletcher), files of single labels one for each
    array (CRC-32).

    Args:
      path: an HDF5 data set, or the folder ``<output>.parts`` of ``opml generate``.

    Returns:
      How many structures and how many labels of each.

    Raises:
      DataError: what is damaged, by label and structure or file.
    """
    path = Path(path)
    if not path.is_dir():
        data = read_hdf5(path, lazy=True)
        for name, values in data.labels.items():
            for i in range(len(data)):
                try:
                    values[i]
                except OpmlError as err:
                    raise err.within(f"{name} of structure {i}") from err
        return len(data), len(data.labels)
    found = {part: read_part(part) for part in sorted(path.glob("*.npz"))}
    if not found:
        raise DataError(
            refusal(str(path), got="no finished label", expected=f"a folder ...{PARTS}"),
            code=Code.EMPTY,
        )
    if damaged := [part.name for part, labels in found.items() if labels is None]:
        raise DataError(
            refusal(
                str(path),
                got=f"{len(damaged)} damaged files of {len(found)} ({damaged[0]}, ...)",
                expected="labels as they were written",
                hint="Remove them: opml generate calculates them again.",
            ),
            code=Code.DAMAGED,
        )
    return len(found), len(next(iter(found.values())) or ())


def merge(paths: Sequence[str | os.PathLike], output: str | os.PathLike) -> tuple[int, int]:
    """Join data sets of one level of theory; their labels pass through memory in blocks.

    Args:
      paths: HDF5 data sets, in the order of the result.
      output: HDF5 file to write; it may be one of them.

    Returns:
      How many structures it has, and how many geometries of later files were there already and
      are left out.

    Raises:
      ConventionError: another level of theory.
      DataError: another set of labels, or a file that cannot be read.
    """
    parts = [read_hdf5(path, lazy=True) for path in paths]
    for path, part in zip(paths[1:], parts[1:], strict=True):
        _check_alike(Path(paths[0]), parts[0], Path(path), part)
    whole = concatenate(parts)
    sources = dict.fromkeys(str(p.meta["source"]) for p in parts if p.meta.get("source"))
    whole.meta |= {"source": ", ".join(sources)} if sources else {}
    first: dict[tuple, int] = {}
    for i, structure in enumerate(whole.structures):
        first.setdefault(_identity(structure), i)
    write_hdf5(output, whole.subset(first.values()))
    return len(first), len(whole) - len(first)


def _identity(structure: Structure) -> tuple:
    """Equal for the same atoms at the same places, to 1e-10 Bohr."""
    places = np.round(np.asarray(structure.positions), 10) + 0.0  # no negative zeros
    return structure.numbers, structure.charge, structure.spin, places.tobytes()


def _check_alike(path: Path, data: Dataset, other_path: Path, other: Dataset) -> None:
    levels = [
        Method.from_meta(d.meta) if {"method", "basis"} <= set(d.meta) else None
        for d in (data, other)
    ]
    if levels[0] != levels[1]:
        raise ConventionError(
            refusal(
                f"level of theory of {other_path}",
                got=str(levels[1]),
                expected=f"{levels[0]}, as of {path}",
            ),
            code=Code.LEVEL_OF_THEORY,
        )
    if set(data.labels) != set(other.labels):
        raise DataError(
            refusal(
                f"labels of {other_path}",
                got=", ".join(sorted(other.labels)) or "none",
                expected=f"those of {path}: {', '.join(sorted(data.labels)) or 'none'}",
                hint="opml data pack --fields keeps some.",
            ),
            code=Code.LABEL,
        )
