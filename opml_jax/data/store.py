"""The HDF5 store: ragged arrays end to end, units and convention in attributes.

Layout (``format_version`` 1): per-structure datasets ``numbers`` and ``positions`` are
concatenated over structures and cut by ``n_atoms``; labels likewise, per-level ones cut by
``n_mo`` (files of version 0.1: ``nao``); AO matrices are packed lower triangles (row by row) of
``nao`` rows. Reading allocates only what the file really holds and follows no external link. Labels
may be left in the file, and written from one file to another without being in memory.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from ..conventions import CONVENTION
from ..errors import Code, ConventionError, DataError, OpmlError
from ..quantities import LABELS
from ..structures import Structure
from ..structures.elements import WEIGHTS
from .dataset import Dataset
from .hdf5 import check_own, checked, image, load, on_disk, read_whole
from .stored import FileRows, LabelFile, StoredLabel, check_finite_value, unpack

FORMAT, FORMAT_VERSION = "opml_jax data set", 1

SIZES = {"ao": "nao", "mo": "n_mo", "aux": "naux", "shell": "n_shells"}
"""Where the lengths of ragged axes other than that of atoms are."""

GROUPS = 8
"""How many groups of a foreign file its refusal names."""

BLOCK = 2**20
"""Bytes of a label that are written together."""


def write_hdf5(path: str | os.PathLike, dataset: Dataset, fields: Iterable[str] | None = None):
    """Write a data set, atomically; labels that stay in files pass through memory in blocks.

    It is read back, value by value, before it replaces what was there.

    Args:
      path: target file; replaced only once the new one is complete.
      dataset: structures and labels in atomic units and the library's convention.
      fields: which labels to keep. Default: all.

    Raises:
      OSError: the disk is full.
      DataError: a label that stays in a file cannot be read, or what was written cannot.
    """
    names = list(dataset.labels if fields is None else fields)

    def read_back(written: Path) -> None:
        try:
            _check_written(written, dataset, names)
        except OpmlError as err:
            text = f"{path} is as it was: what was to replace it cannot be read ({err.message})"
            raise DataError(text, code=Code.DAMAGED) from err

    with _target(path, dataset, names, read_back) as f:
        f.attrs["format"] = FORMAT
        f.attrs["format_version"] = FORMAT_VERSION
        f.attrs["convention"] = CONVENTION
        f.attrs["meta"] = json.dumps(dataset.meta, sort_keys=True)
        structures = dataset.structures
        _array(f, "n_atoms", np.array([s.n_atoms for s in structures], np.int32), "1")
        _array(f, "numbers", np.concatenate([s.numbers for s in structures]).astype(np.uint8), "1")
        _array(f, "positions", np.concatenate([s.positions for s in structures]), "Bohr")
        _array(f, "charge", np.array([s.charge for s in structures], np.int8), "1")
        _array(f, "spin", np.array([s.spin for s in structures], np.int8), "1")
        if any(s.masses for s in structures):
            masses = [s.masses or WEIGHTS[list(s.numbers)] for s in structures]
            _array(f, "masses", np.concatenate(masses), "Dalton")
        if dataset.layout_hashes is not None:
            _array(f, "layout_hash", np.array(dataset.layout_hashes, "S16"), "1")
        group = f.create_group("labels")
        for name in names:
            shapes = dataset.shapes(name)
            for axis, sizes in SIZES.items():
                if axis in LABELS[name].axes and sizes not in f:
                    _array(f, sizes, np.array([n for n, *_ in shapes], np.int32), "1")
            _write_label(group, name, dataset.labels[name], shapes)


def _target(path: str | os.PathLike, dataset: Dataset, names: list[str], check):
    """Where to write: a file in memory, unless labels are not in memory either."""
    if not any(isinstance(dataset.labels[name], StoredLabel) for name in names):
        return image(path, check)
    numbers = sum(math.prod(shape) for name in names for shape in dataset.shapes(name))
    return on_disk(path, 8 * numbers + 64 * sum(s.n_atoms for s in dataset.structures), check)


def _check_written(path: Path, dataset: Dataset, names: list[str]) -> None:
    """Refuse a file that does not have these labels; predictions of a set may be NaN."""
    found = read_hdf5(path, lazy=True)
    for name in names:
        shapes, expected = found.shapes(name), dataset.shapes(name)
        if shapes != expected:
            i = next(i for i, shape in enumerate(expected) if shape != shapes[i])
            where, got = f"{name} of structure {i}", f"shape {shapes[i]}"
            raise DataError(where, got=got, expected=f"{expected[i]}", code=Code.LABEL_SHAPE)
        for i in range(len(found)):
            try:
                found.labels[name][i]
            except DataError as err:
                if err.code is not Code.NOT_FINITE:
                    raise


def _write_label(group, name: str, values: Sequence[np.ndarray], shapes: list[tuple]) -> None:
    """One label, block by block."""
    field = LABELS[name]
    ragged = bool(field.axes) and isinstance(field.axes[0], str)
    sizes = np.array([shape[0] for shape in shapes] if ragged else np.ones(len(shapes)), np.int64)
    total = int((sizes * (sizes + 1) // 2 if field.symmetric else sizes).sum())
    tail = () if field.symmetric else field.fixed
    data = _empty(group, name, (total, *tail), np.float64, field.unit)
    data.attrs["description"] = field.text
    join = np.concatenate if ragged else np.array
    at, block, size = 0, [], 0
    for i, value in enumerate(values):
        block.append(value[np.tril_indices(len(value))] if field.symmetric else value)
        size += block[-1].nbytes
        if size >= BLOCK or i == len(values) - 1:
            rows = join(block)
            data[at : at + len(rows)] = rows
            at, block, size = at + len(rows), [], 0


def _array(group, name: str, values: np.ndarray, unit: str) -> None:
    _empty(group, name, values.shape, values.dtype, unit)[...] = values


def _empty(group, name: str, shape: tuple[int, ...], dtype, unit: str) -> h5py.Dataset:
    size = math.prod(shape)
    options = {"compression": "gzip", "shuffle": True} if size > 64 else {}
    options |= {"fletcher32": True} if size else {}
    data = group.create_dataset(name, shape, dtype, **options)
    data.attrs["unit"] = unit
    return data


def read_hdf5(
    path: str | os.PathLike, *, fields: Iterable[str] | None = None, lazy: bool = False
) -> Dataset:
    """Read a data set written by :func:`write_hdf5` (or ``opml generate``).

    Args:
      path: the file.
      fields: which labels to read. Default: all present.
      lazy: leave labels in the file, which must stay as it is; each value is read, and checked,
        when it is asked for.

    Raises:
      DataError: not an HDF5 file, truncated, of a newer format, or inconsistent.
      ConventionError: matrices in another component convention.
    """
    path = Path(path)
    return _open(path, lambda f: _read(f, path, fields, lazy))


def is_own(path: str | os.PathLike) -> bool:
    """Whether an HDF5 file says that it is a data set of this library."""
    return _open(Path(path), lambda f: "format_version" in f.attrs)


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


def _read(f: h5py.File, path: Path, fields: Iterable[str] | None, lazy: bool) -> Dataset:
    if f.attrs.get("format") != FORMAT:
        raise DataError(
            str(path),
            got=f"an HDF5 file with {', '.join(sorted(f)[:GROUPS]) or 'nothing'} in it",
            expected="a data set of opml_jax",
            hint="Convert it, for example to extxyz or npz.",
        )
    version = int(f.attrs.get("format_version", 0))
    if not 1 <= version <= FORMAT_VERSION:
        raise DataError(
            str(path),
            got=f"format_version {version}",
            expected=f"1 to {FORMAT_VERSION}",
            hint="Written by a newer opml_jax? Upgrade.",
            code=Code.FORMAT_VERSION,
        )
    convention = f.attrs["convention"]
    if convention != CONVENTION:
        raise ConventionError(
            f"convention of {path}", got=repr(convention), expected=repr(CONVENTION)
        )
    n_atoms = load(f, "n_atoms", path)
    n, total = len(n_atoms), int(n_atoms.sum())
    cuts = np.cumsum(n_atoms)[:-1]
    masses = np.split(load(f, "masses", path, total), cuts) if "masses" in f else [None] * n
    rows = zip(
        np.split(load(f, "numbers", path, total), cuts),
        np.split(load(f, "positions", path, total, 3), cuts),
        load(f, "charge", path, n),
        load(f, "spin", path, n),
        masses,
        strict=True,
    )
    structures = []
    for i, (z, r, charge, spin, mass) in enumerate(rows):
        try:
            structures.append(Structure(z, r, charge=int(charge), spin=int(spin), masses=mass))
        except OpmlError as err:
            raise err.within(f"{path}, structure {i}") from err
    check_own(f, "labels", path)
    group, file = f["labels"], LabelFile(path)
    labels = {}
    for name in group if fields is None else fields:
        if name not in group or name not in LABELS:
            raise DataError(
                str(path),
                got=f"no label {name!r}",
                expected=f"one of: {', '.join(group)}",
                code=Code.LABEL,
            )
        data, rows = _locate(f, name, n_atoms, file)
        if lazy:
            labels[name] = StoredLabel([rows])
            continue
        labels[name] = _cut(data[()], rows)
        for i, value in enumerate(labels[name]):
            check_finite_value(value, name, path, i)
    hashes = None
    if "layout_hash" in f:
        hashes = [h.decode("ascii") for h in load(f, "layout_hash", path, n)]
    return Dataset(structures, labels, json.loads(f.attrs["meta"]), hashes)


def _locate(
    f: h5py.File, name: str, n_atoms: np.ndarray, file: LabelFile
) -> tuple[h5py.Dataset, FileRows]:
    """The array of a label, and which of its rows are whose; refused unless they fit."""
    group, path, field, n = f["labels"], file.path, LABELS[name], len(n_atoms)
    axes = field.axes
    if axes and isinstance(axes[0], str):
        sizes = "n_atoms" if axes[0] == "atom" else SIZES[axes[0]]
        if sizes == "n_mo" and sizes not in f:  # an earlier version: as many levels as AOs
            sizes = "nao"
        size = load(f, sizes, path, n).astype(np.int64)
        if n and not (size.min() >= 0 and size.max() < 2**31):
            got, expected = f"{size.min()} to {size.max()}", "lengths"
            where = f"lengths of {name} of {path}"
            raise DataError(where, got=got, expected=expected, code=Code.DAMAGED)
        lengths = size * (size + 1) // 2 if field.symmetric else size
        tail = () if field.symmetric else field.fixed
        whole = (sum(lengths.tolist()), *tail)  # Python's integers do not wrap
        shapes = np.stack([size] * 2 if field.symmetric else [size, *(0 * size + a for a in tail)])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])[:n]
    else:
        whole, lengths, starts = (n, *field.fixed), None, np.arange(n)
        shapes = np.repeat(np.array(field.fixed, np.int64)[:, None], n, axis=1)
    data = checked(group, name, path, *whole)
    if data.dtype.kind not in "biuf":
        got, expected = f"dtype {data.dtype}", "real numbers"
        raise DataError(f"{name} of {path}", got=got, expected=expected, code=Code.DAMAGED)
    return data, FileRows(file, name, shapes.T, starts, lengths, field.symmetric)


def _cut(values: np.ndarray, rows: FileRows) -> list[np.ndarray]:
    """The array of a label, cut into structures."""
    if rows.lengths is None:
        return list(values)
    parts = np.split(values, rows.starts[1:])
    if rows.packed:
        return [unpack(v, int(n)) for v, n in zip(parts, rows.shapes[:, 0], strict=True)]
    return parts
