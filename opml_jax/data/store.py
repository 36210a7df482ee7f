"""The HDF5 store: ragged arrays end to end, units and convention in attributes.

Layout (``format_version`` 1): per-structure datasets ``numbers`` and ``positions`` are
concatenated over structures and cut by ``n_atoms``; labels likewise, per-AO ones cut by
``nao``; AO matrices are packed lower triangles (row by row). Reading allocates only what the
file really holds and follows no external link.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from ..conventions import CONVENTION
from ..errors import ConventionError, DataError, refusal
from ..structures import Structure
from .dataset import FIELDS, Dataset
from .files import atomic_path

FORMAT_VERSION = 1


def write_hdf5(path: str | os.PathLike, dataset: Dataset, fields: Iterable[str] | None = None):
    """Write a data set, atomically.

    Args:
      path: target file; replaced only once the new one is complete.
      dataset: structures and labels in atomic units and the library's convention.
      fields: which labels to keep. Default: all.
    """
    names = list(dataset.labels if fields is None else fields)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as f:
        f.attrs["format"] = "opml_jax data set"
        f.attrs["format_version"] = FORMAT_VERSION
        f.attrs["convention"] = CONVENTION
        f.attrs["meta"] = json.dumps(dataset.meta, sort_keys=True)
        structures = dataset.structures
        _array(f, "n_atoms", np.array([s.n_atoms for s in structures], np.int32), "1")
        _array(f, "numbers", np.concatenate([s.numbers for s in structures]).astype(np.uint8), "1")
        _array(f, "positions", np.concatenate([s.positions for s in structures]), "Bohr")
        _array(f, "charge", np.array([s.charge for s in structures], np.int8), "1")
        _array(f, "spin", np.array([s.spin for s in structures], np.int8), "1")
        if dataset.layout_hashes is not None:
            _array(f, "layout_hash", np.array(dataset.layout_hashes, "S16"), "1")
        group = f.create_group("labels")
        for name in names:
            field, values = FIELDS[name], dataset.labels[name]
            if "ao" in field.axes and "nao" not in f:
                _array(f, "nao", np.array([v.shape[0] for v in values], np.int32), "1")
            if field.symmetric:
                values = [v[np.tril_indices(len(v))] for v in values]
            ragged = field.axes and isinstance(field.axes[0], str)
            flat = np.concatenate(values) if ragged else np.array(values)
            _array(group, name, flat, field.unit)
            group[name].attrs["description"] = field.text


def _array(group, name: str, values: np.ndarray, unit: str) -> None:
    options = {"compression": "gzip", "shuffle": True} if values.size > 64 else {}
    group.create_dataset(name, data=values, **options).attrs["unit"] = unit


def read_hdf5(path: str | os.PathLike, *, fields: Iterable[str] | None = None) -> Dataset:
    """Read a data set written by :func:`write_hdf5` (or ``opml generate``).

    Args:
      path: the file.
      fields: which labels to read. Default: all present.

    Raises:
      DataError: not an HDF5 file, truncated, of a newer format, or inconsistent.
      ConventionError: matrices in another component convention.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as f:
            return _read(f, path, fields)
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as err:
        reason = str(err).splitlines()[0]
        raise DataError(
            refusal(
                str(path),
                got=f"an unreadable file ({reason})",
                expected="a complete HDF5 data set of this library",
                hint="It may be truncated: write it again with opml generate.",
            )
        ) from err


def _read(f: h5py.File, path: Path, fields: Iterable[str] | None) -> Dataset:
    version = int(f.attrs.get("format_version", 0))
    if not 1 <= version <= FORMAT_VERSION:
        raise DataError(
            refusal(
                str(path),
                got=f"format_version {version}",
                expected=f"1 to {FORMAT_VERSION}",
                hint="Written by a newer opml_jax? Upgrade.",
            )
        )
    convention = f.attrs["convention"]
    if convention != CONVENTION:
        raise ConventionError(
            refusal(f"convention of {path}", got=repr(convention), expected=repr(CONVENTION))
        )
    n_atoms = _load(f, "n_atoms", path)
    cuts = np.cumsum(n_atoms)[:-1]
    numbers, positions = _load(f, "numbers", path), _load(f, "positions", path)
    if len(numbers) != n_atoms.sum() or positions.shape != (n_atoms.sum(), 3):
        raise DataError(refusal(str(path), got="lengths that disagree", expected="one row an atom"))
    structures = [
        Structure(z, r, charge=int(c), spin=int(s))
        for z, r, c, s in zip(
            np.split(numbers, cuts),
            np.split(positions, cuts),
            _load(f, "charge", path),
            _load(f, "spin", path),
            strict=True,
        )
    ]
    group = f["labels"]
    labels = {}
    for name in group if fields is None else fields:
        if name not in group or name not in FIELDS:
            raise DataError(
                refusal(str(path), got=f"no label {name!r}", expected=f"one of: {', '.join(group)}")
            )
        axes, values = FIELDS[name].axes, _load(group, name, path)
        if not axes or axes[0] == 3:
            labels[name] = list(values)
            continue
        size = n_atoms if axes[0] == "atom" else _load(f, "nao", path).astype(np.int64)
        if FIELDS[name].symmetric:
            packed = np.split(values, np.cumsum(size * (size + 1) // 2)[:-1])
            labels[name] = [_unpack(v, n) for v, n in zip(packed, size, strict=True)]
        else:
            labels[name] = np.split(values, np.cumsum(size)[:-1])
    hashes = None
    if "layout_hash" in f:
        hashes = [h.decode("ascii") for h in _load(f, "layout_hash", path)]
    return Dataset(structures, labels, json.loads(f.attrs["meta"]), hashes)


def _load(group, name: str, path: Path) -> np.ndarray:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or group[name].is_virtual:
        raise DataError(refusal(f"{path}:{name}", got="a link out of the file", expected="data"))
    return group[name][()]


def _unpack(packed: np.ndarray, n: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    lower = np.tril_indices(n)
    matrix[lower] = packed
    matrix.T[lower] = packed
    return matrix
