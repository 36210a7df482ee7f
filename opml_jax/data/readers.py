"""Readers of structure and label files. Units are known from the format, the file, or the user."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import Code, DataError, OpmlError, check_file, one_of
from ..structures import Structure
from . import databases, foreign, keys, npz
from .assembly import Given, assembled
from .dataset import Dataset
from .labels import chosen_sources
from .records import Layout, Record
from .store import is_own, read_hdf5
from .store import label_names as hdf5_label_names
from .xyz import read_frames

SUFFIXES = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz", ".npz", ".db", ".traj", ".h5", ".hdf5")

XYZ = Layout(
    "xyz and extended xyz",
    "`.xyz`, `.extxyz`, also with `.gz`; upper case does not matter",
    {
        "energy": ("REF_energy", "energy"),
        "forces": ("REF_forces", "forces"),
        "dipole": ("REF_dipole", "dipole"),
    },
    {"length": "angstrom", "energy": "ev", "forces": "ev/angstrom", "dipole": "e angstrom"},
)
TRAJECTORY = dataclasses.replace(XYZ, name="ASE's trajectory", told_by="`.traj`")

LAYOUTS = (XYZ, TRAJECTORY, npz.MD17, npz.PHYSNET, *databases.LAYOUTS, *foreign.LAYOUTS)
"""Every format but the library's own."""


def read_structures(
    path: str | os.PathLike,
    *,
    length_unit: str | None = None,
    charge: int | None = None,
    spin: int | None = None,
) -> list[Structure]:
    """Structures of a file, whatever labels it has.

    Args:
      path: the file; its suffix names the format, see :func:`read_dataset`.
      length_unit: of positions, for files that do not state it. Default: the unit the format means
        (Angstrom for xyz, npz and ASE's; HDF5 states its own).
      charge: total charge, of a file that states none. Default: 0.
      spin: 2S, of a file that states none. Default: 0.

    Returns:
      Structures with positions in Bohr.

    Raises:
      DataError: missing, empty, truncated, unsafe or of an unknown format.
      StructureError: a geometry that cannot be meant (NaN, contact, electron count), or charge and
        spin that contradict what the file states.

    Warns:
      UnitWarning: bonds that look like another unit of length.
      DataWarning: what sounds like charge, spin or mass and is left unread.
    """
    path = _existing(path)
    if _suffix(path) in (".h5", ".hdf5") and is_own(path):
        return read_hdf5(path, fields=()).structures
    layout = dataclasses.replace(_layout(path, {}), names={}, sources={})
    given = Given({"length": length_unit}, charge=charge, spin=spin)
    return assembled(path, layout, given, lambda: label_names(path)).structures


def read_dataset(
    path: str | os.PathLike,
    *,
    labels: Mapping[str, tuple[str, str]] | None = None,
    length_unit: str | None = None,
    energy_unit: str | None = None,
    charge: int | None = None,
    spin: int | None = None,
    basis: str | None = None,
    convention: str | None = None,
    limit: int | None = None,
    lazy: bool = False,
) -> Dataset:
    """Structures with their labels, converted to atomic units.

    What is read of which format, under which names and in which units, is on the page "Files" of
    the documentation. Units that a file states are obeyed. Without ``labels`` only names whose unit
    is known are read, and one name serves the whole file. Charge and spin are read under the names
    of :mod:`opml_jax.data.keys`. AO matrices, in Hartree, come from npz once their basis is known
    and from databases, which fix units, basis and AO order; they are held against the geometry
    (:mod:`opml_jax.data.matrices`) and put in the library's order.

    Args:
      path: the file; its suffix names the format.
      labels: which labels to read instead, by field: name in the file and unit, for example
        ``{"energy": ("U0", "hartree"), "polarizability": ("alpha", "angstrom^3")}``. Fields and
        units are those of :data:`opml_jax.data.labels.UNITS`; ``charge``, ``multiplicity`` (2S + 1)
        and ``spin`` (2S) have the unit ``1``.
      length_unit: of positions, such as ``"angstrom"`` or ``"bohr"``, if the file does not state
        it.
      energy_unit: ``"hartree"``, ``"ev"``, ``"kcal/mol"`` or another, likewise. Forces are in
        energy_unit/length_unit.
      charge: total charge, of a file that states none. Default: 0.
      spin: 2S, of a file that states none. Default: 0.
      basis: of AO matrices, a name of :func:`opml_jax.load_basis`. Default: what the file (an npz
        may have a string ``basis``) or its format says.
      convention: order of AO matrices: ``"opml"``, ``"pyscf"`` or ``"orca"``
        (:data:`opml_jax.conventions.AO_ORDERS`). Default: likewise.
      limit: read only so many structures, the first.
      lazy: for data sets larger than memory: leave the labels in the file, which must be HDF5 and
        stay as it is, and read each when it is asked for (:class:`opml_jax.data.StoredLabel`).

    Returns:
      The data set. ``meta`` says where labels came from: ``source``, ``labels`` by field, and, of
      frames of single atoms marked as such, ``isolated_atoms``, their energies in Hartree.

    Raises:
      DataError: as :func:`read_structures`; also labels asked for that a structure lacks, NaN
        labels, labels no molecule can have (:mod:`opml_jax.data.plausibility`), and units that
        contradict what the file states.
      ConventionError: AO matrices whose order is not stated, or is another than what is stated;
        the message names the order they are in.

    Warns:
      UnitWarning: bonds or labels that look like another unit.
      DataWarning: labels are left unread: some structures lack them, or their unit or basis is not
        known.
    """
    path = _existing(path)
    if limit is not None and limit < 1:
        raise DataError("limit", got=limit, expected="at least 1")
    if _suffix(path) in (".h5", ".hdf5") and is_own(path):
        given = {"labels": labels, "basis": basis, "convention": convention}
        for name in (n for n, value in given.items() if value):
            got = f"a choice of {name} for {path.name}"
            expected = "left out: HDF5 states fields, units and basis itself"
            raise DataError(name, got=got, expected=expected, code=Code.UNIT)
        dataset = read_hdf5(path, lazy=lazy)
        return dataset if limit is None else dataset.subset(range(min(limit, len(dataset))))
    if lazy:
        got, expected = f"True for {path.name}", "left out: only HDF5 is read label by label"
        hint = "Store it as HDF5 first: opml data pack."
        raise DataError("lazy", got=got, expected=expected, hint=hint)
    if labels and energy_unit:
        expected = "left out: each of the labels names its unit"
        raise DataError("energy_unit", got=repr(energy_unit), expected=expected, code=Code.UNIT)
    chosen = chosen_sources(labels or {})
    layout = _layout(path, {s.names[0]: field for field, s in chosen.items()})
    stated = {"basis": basis, "convention": convention or layout.convention}
    meta = {**layout.meta, **{k: v for k, v in stated.items() if v is not None}}
    units = {"length": length_unit, "energy": energy_unit}
    given = Given(units, chosen, charge, spin, limit, meta)
    return assembled(path, layout, given, lambda: label_names(path))


def label_names(path: str | os.PathLike) -> list[str]:
    """Names a file has labels under, whatever they mean; of an xyz file, its first structure's.

    Raises:
      DataError: as :func:`read_structures`.
    """
    path = _existing(path)
    if _suffix(path) in (".h5", ".hdf5") and is_own(path):
        return hdf5_label_names(path)
    if _suffix(path) == ".npz":
        return npz.label_names(path)
    record = next(_layout(path, {}).records(), None)
    return [] if record is None else sorted(_numeric(record))


def _numeric(record: Record) -> list[str]:
    every = {**record.info, **record.arrays}
    return [k for k, v in every.items() if np.asarray(v).dtype.kind in "fiu" and keys.is_label(k)]


def _suffix(path: Path) -> str:
    """The suffix that names the format, in lower case; ``.xyz.gz`` is one."""
    name = path.name.lower()
    return next((s for s in SUFFIXES if name.endswith(s)), path.suffix.lower())


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    check_file(path, "structures")
    one_of(f"suffix of {path.name}", _suffix(path), SUFFIXES, DataError)
    if path.stat().st_size == 0:
        raise DataError(str(path), got="an empty file", expected="structures", code=Code.DAMAGED)
    return path


def _layout(path: Path, labels: Mapping[str, str]) -> Layout:
    """What the format of a file says; ``labels`` are fields that are asked for, by name."""
    suffix = _suffix(path)
    if suffix == ".npz":
        return npz.npz_layout(path, labels)
    if suffix == ".db":
        return databases.database_layout(path)
    if suffix in (".h5", ".hdf5"):
        return foreign.foreign_layout(path)
    if suffix == ".traj":
        return TRAJECTORY.of(lambda: _trajectory(path))
    return XYZ.of(lambda: read_frames(path))


def _trajectory(path: Path) -> Iterator[Record]:
    from ase.io.trajectory import TrajectoryReader

    try:
        with TrajectoryReader(path) as frames:
            for atoms in cast(Iterator[Any], iter(frames)):
                if atoms.pbc.any():
                    raise DataError(
                        str(path), got="a periodic cell", expected="molecules", code=Code.PERIODIC
                    )
                results = atoms.calc.results if atoms.calc is not None else {}
                arrays = dict(atoms.arrays)
                numbers, positions = (arrays.pop(k) for k in ("numbers", "positions"))
                masses = arrays.pop("masses", None)
                yield Record(numbers, positions, atoms.info | results, arrays, masses)
    except OpmlError:
        raise
    except Exception as err:  # ASE raises many kinds on a damaged file
        got = f"an unreadable file ({type(err).__name__}: {err})"
        expected = "a complete trajectory of ASE"
        raise DataError(str(path), got=got, expected=expected, code=Code.DAMAGED) from err
