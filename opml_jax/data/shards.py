"""Labels made in several places: their files checked to the last byte, and put together."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import Code, ConventionError, DataError, OpmlError
from ..structures import Structure
from .dataset import Dataset, concatenate
from .files import locked
from .functionals import functional_of
from .generate import MANIFEST, PARTS, read_part
from .reference import other_setting
from .store import read_hdf5, write_hdf5


class Verified(NamedTuple):
    """What was found to be whole.

    Attributes:
      n_structures: with all their labels.
      n_labels: of each.
      n_wanted: structures that there will be; of a folder that ``opml generate`` fills more.
    """

    n_structures: int
    n_labels: int
    n_wanted: int


def verify(path: str | os.PathLike) -> Verified:
    """Read all of a data set, or of a folder of finished labels, against its checksums.

    HDF5 files have one for each chunk of a label (Fletcher), files of single labels one for each
    array (CRC-32).

    Args:
      path: an HDF5 data set, or the folder ``<output>.parts`` of ``opml generate``.

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
        return Verified(len(data), len(data.labels), len(data))
    found = {part: read_part(part) for part in sorted(path.glob("*.npz"))}
    if not found:
        raise DataError(
            str(path), got="no finished label", expected=f"a folder ...{PARTS}", code=Code.EMPTY
        )
    if damaged := [part.name for part, labels in found.items() if labels is None]:
        raise DataError(
            str(path),
            got=f"{len(damaged)} damaged files of {len(found)} ({damaged[0]}, ...)",
            expected="labels as they were written",
            hint="Remove them: opml generate calculates them again.",
            code=Code.DAMAGED,
        )
    wanted = _wanted(path / MANIFEST, {part.stem for part in found})
    return Verified(len(found), len(next(iter(found.values())) or ()), wanted)


def _wanted(manifest: Path, found: set[str]) -> int:
    """Geometries that a folder is to hold, with those that nobody asks for any more."""
    try:
        return len(found.union(json.loads(manifest.read_text(encoding="utf-8"))["geometries"]))
    except FileNotFoundError:  # of an earlier version
        return len(found)
    except (OSError, ValueError, TypeError, KeyError) as err:
        hint = "Remove it: opml generate writes it again."
        raise DataError(
            str(manifest),
            got=f"an unreadable file ({err})",
            expected="JSON",
            hint=hint,
            code=Code.DAMAGED,
        ) from err


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
      OpmlError: another process writes ``output``.
    """
    with locked(output):
        return _merge(paths, output)


def _merge(paths: Sequence[str | os.PathLike], output: str | os.PathLike) -> tuple[int, int]:
    parts = [read_hdf5(path, lazy=True) for path in paths]
    for path, part in zip(paths[1:], parts[1:], strict=True):
        _check_alike(Path(paths[0]), parts[0], Path(path), part)
    whole = concatenate(parts)
    sources = dict.fromkeys(str(p.meta["source"]) for p in parts if p.meta.get("source"))
    whole.meta |= {"source": ", ".join(sources)} if sources else {}
    level = parts[0].meta
    if "method" in level and not {"method", "pyscf_version"} <= whole.meta.keys():
        # names and versions may differ, what they mean does not
        whole.meta["method"] = functional_of(level["method"], level.get("pyscf_version"))
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
    if key := other_setting(data.meta, other.meta):
        raise ConventionError(
            f"level of theory of {other_path}",
            got=f"{key} {other.meta.get(key, 'not stated')}",
            expected=f"that of {path}, {key} {data.meta.get(key, 'not stated')}",
            code=Code.LEVEL_OF_THEORY,
        )
    if set(data.labels) != set(other.labels):
        raise DataError(
            f"labels of {other_path}",
            got=", ".join(sorted(other.labels)) or "none",
            expected=f"those of {path}: {', '.join(sorted(data.labels)) or 'none'}",
            hint="opml data pack --fields keeps some.",
            code=Code.LABEL,
        )
