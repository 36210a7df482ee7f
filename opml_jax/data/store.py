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
from ..errors import Code, ConventionError, DataError, OpmlError, refusal
from ..structures import Structure
from .dataset import FIELDS, Dataset
from .hdf5 import check_own, image, load, read_whole

FORMAT_VERSION = 1

SIZES = {"ao": "nao", "aux": "naux"}
"""Where the lengths of ragged axes other than that of atoms are."""


def write_hdf5(path: str | os.PathLike, dataset: Dataset, fields: Iterable[str] | None = None):
    """Write a data set, atomically.

    Args:
      path: target file; replaced only once the new one is complete.
      dataset: structures and labels in atomic units and the library's convention.
      fields: which labels to keep. Default: all.
    """
    names = list(dataset.labels if fields is None else fields)
    with image(path) as f:
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
            for axis, sizes in SIZES.items():
                if axis in field.axes and sizes not in f:
                    _array(f, sizes, np.array([v.shape[0] for v in values], np.int32), "1")
            if field.symmetric:
                values = [v[np.tril_indices(len(v))] for v in values]
            ragged = field.axes and isinstance(field.axes[0], str)
            flat = np.concatenate(values) if ragged else np.array(values)
            _array(group, name, flat, field.unit)
            group[name].attrs["description"] = field.text


def _array(group, name: str, values: np.ndarray, unit: str) -> None:
    options = {"compression": "gzip", "shuffle": True} if values.size > 64 else {}
    options |= {"fletcher32": True} if values.size else {}
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
    return _open(path, lambda f: _read(f, path, fields))


def label_names(path: str | os.PathLike) -> list[str]:
    """Names of the labels a file holds.

    Raises:
      DataError: not an HDF5 data set.
    """
    return _open(Path(path), lambda f: sorted(f["labels"]))


def _open(path: Path, read):
    expected = "a complete HDF5 data set of this library"
    hint = "It may be truncated: write it again with opml generate."
    return read_whole(path, read, expected, hint)


def _read(f: h5py.File, path: Path, fields: Iterable[str] | None) -> Dataset:
    version = int(f.attrs.get("format_version", 0))
    if not 1 <= version <= FORMAT_VERSION:
        raise DataError(
            refusal(
                str(path),
                got=f"format_version {version}",
                expected=f"1 to {FORMAT_VERSION}",
                hint="Written by a newer opml_jax? Upgrade.",
            ),
            code=Code.FORMAT_VERSION,
        )
    convention = f.attrs["convention"]
    if convention != CONVENTION:
        raise ConventionError(
            refusal(f"convention of {path}", got=repr(convention), expected=repr(CONVENTION))
        )
    n_atoms = load(f, "n_atoms", path)
    n, total = len(n_atoms), int(n_atoms.sum())
    cuts = np.cumsum(n_atoms)[:-1]
    rows = zip(
        np.split(load(f, "numbers", path, total), cuts),
        np.split(load(f, "positions", path, total, 3), cuts),
        load(f, "charge", path, n),
        load(f, "spin", path, n),
        strict=True,
    )
    structures = []
    for i, (z, r, charge, spin) in enumerate(rows):
        try:
            structures.append(Structure(z, r, charge=int(charge), spin=int(spin)))
        except OpmlError as err:
            raise err.within(f"{path}, structure {i}") from err
    check_own(f, "labels", path)
    group = f["labels"]
    labels = {}
    for name in group if fields is None else fields:
        if name not in group or name not in FIELDS:
            raise DataError(
                refusal(
                    str(path), got=f"no label {name!r}", expected=f"one of: {', '.join(group)}"
                ),
                code=Code.LABEL,
            )
        labels[name] = _load_label(f, name, n_atoms, path)
        bad = [i for i, v in enumerate(labels[name]) if not np.isfinite(v).all()]
        if bad:
            raise DataError(
                refusal(
                    f"{name} of {path}", got=f"NaN in structure {bad[0]}", expected="finite labels"
                ),
                code=Code.NOT_FINITE,
            )
    hashes = None
    if "layout_hash" in f:
        hashes = [h.decode("ascii") for h in load(f, "layout_hash", path, n)]
    return Dataset(structures, labels, json.loads(f.attrs["meta"]), hashes)


def _load_label(f: h5py.File, name: str, n_atoms: np.ndarray, path: Path) -> list[np.ndarray]:
    """One label, cut into structures."""
    group, axes = f["labels"], FIELDS[name].axes
    n, fixed = len(n_atoms), [a for a in axes if isinstance(a, int)]
    if not axes or not isinstance(axes[0], str):
        return list(load(group, name, path, n, *fixed))
    ragged = n_atoms if axes[0] == "atom" else load(f, SIZES[axes[0]], path, n)
    size = ragged.astype(np.int64)
    if FIELDS[name].symmetric:
        lengths = size * (size + 1) // 2
        packed = np.split(load(group, name, path, int(lengths.sum())), np.cumsum(lengths)[:-1])
        return [_unpack(v, k) for v, k in zip(packed, size, strict=True)]
    return np.split(load(group, name, path, int(size.sum()), *fixed), np.cumsum(size)[:-1])


def _unpack(packed: np.ndarray, n: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    lower = np.tril_indices(n)
    matrix[lower] = packed
    matrix.T[lower] = packed
    return matrix
