"""Readers of structure and label files. Units are known from the format, the file, or the user."""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..conventions import CONVENTION
from ..errors import (
    Code,
    DataError,
    DataWarning,
    OpmlError,
    StructureError,
    near_path,
    nearest,
    one_of,
)
from ..quantities import LABELS
from ..structures import Structure
from ..structures.elements import symbol
from . import databases, foreign, keys, npz
from .dataset import Dataset
from .labels import Source, chosen_sources
from .matrices import MATRICES, own_matrices
from .plausibility import check_labels, check_lengths
from .records import Layout, Reading, Record, declared_by, reading_of
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

FREE_ATOM = "A free atom that others are measured from is marked with config_type=IsolatedAtom."

STATE = ("charge", "spin", "multiplicity")
"""What a user may name among labels, although it is part of the structure."""


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
    return _read(path, layout, {"length": length_unit}, None, charge, spin, None, {}).structures


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
    given = {"length": length_unit, "energy": energy_unit}
    return _read(path, layout, given, chosen, charge, spin, limit, meta)


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
    if not path.is_file():
        raise DataError(
            "path",
            got=f"{path}, which is not a file",
            expected="a file",
            hint=near_path(path),
            code=Code.NO_FILE,
        )
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


def _read(
    path: Path,
    layout: Layout,
    given: Mapping[str, str | None],
    chosen: Mapping[str, Source] | None,
    charge: int | None,
    spin: int | None,
    limit: int | None,
    meta: Mapping[str, str],
) -> Dataset:
    """Structures and labels, checked; ``meta`` says what matrices are in."""
    records = list(itertools.islice(layout.records(), limit))
    try:
        reading = reading_of(layout, declared_by(layout, records), given, chosen)
    except OpmlError as err:
        raise err.within(path) from err
    states = {k: v.names[0] for k, v in reading.sources.items() if k in STATE}
    reading = dataclasses.replace(
        reading, sources={k: v for k, v in reading.sources.items() if k not in STATE}
    )
    isolated = [_is_isolated(r) for r in records]
    atoms = [r for r, single in zip(records, isolated, strict=True) if single]
    records = [r for r, single in zip(records, isolated, strict=True) if not single]
    structures = [
        _structure(path, i, r, reading.length, states, charge, spin) for i, r in enumerate(records)
    ]
    if not structures:
        raise DataError(
            f"structures of {path}", got="none", expected="at least one", code=Code.EMPTY
        )
    check_lengths(str(path), structures)
    names = _names(path, layout, reading, records)
    unread = unread_keys(layout, records, {*names.values(), *states.values()})
    if chosen or not layout.names:  # of a user's own choice only what is no key=value
        words = {word for record in records for word in record.unread}
        _say_what_is_unread(path, [name for name in unread if name in words])
    else:
        _say_what_is_unread(path, unread)
    try:
        values = {field: _values(field, name, reading, records) for field, name in names.items()}
    except (TypeError, ValueError) as err:
        raise DataError(
            f"labels of {path}", got=f"{err}", expected="numbers", code=Code.LABEL_SHAPE
        ) from err
    about: dict[str, Any] = {**meta, "format": layout.name, "length_unit": reading.units["length"]}
    about |= {"labels": _read_as(names, reading), "unread": unread}
    if atoms and "energy" in names:
        about["isolated_atoms"] = _energies_of_atoms(path, atoms, names["energy"], reading)
    matrices = {n: values.pop(n) for n in MATRICES if n in values}
    order, hashes = about.pop("convention", None), None
    if matrices and "basis" not in about:
        warnings.warn(
            f"{', '.join(matrices)} of {path} not read: the basis is not known. Name basis and AO "
            "order: basis='def2-svp', convention='pyscf' (--basis, --convention).",
            DataWarning,
            stacklevel=3,
        )
    elif matrices:
        own, hashes = own_matrices(path, structures, matrices, about["basis"], order)
        values |= own
        about |= {"convention": CONVENTION, "order_in_file": order}
    try:
        dataset = Dataset(structures, values, {"source": path.name, **about}, hashes)
    except DataError as err:
        raise err.within(path) from err
    numbers = {n: v for n, v in dataset.labels.items() if n not in MATRICES}
    factors = {n: reading.sources[n].factor for n in numbers}
    check_labels(str(path), structures, numbers, factors)
    return dataset


def _structure(
    path: Path,
    i: int,
    record: Record,
    length: float,
    named: Mapping[str, str],
    charge: int | None,
    spin: int | None,
) -> Structure:
    """A molecule; ``named`` are keys that the user says to be charge, spin or multiplicity."""
    info = {k: v for k, v in record.info.items() if k not in named.values()}
    info |= {field: record.info[name] for field, name in named.items() if name in record.info}
    try:
        state = keys.state_of(info, record.arrays, record.numbers)
        return Structure(
            record.numbers,
            np.asarray(record.positions, np.float64) * length,
            charge=_agreed("charge", charge, state.charge),
            spin=_agreed("spin", spin, state.spin),
            masses=record.masses,
        )
    except OpmlError as err:
        if len(record.numbers) == 1 and err.code == Code.ELECTRONS:
            err = type(err)(f"{err.message} {FREE_ATOM}", code=err.code)
        raise err.within(f"{path}, structure {i}") from err


def _agreed(name: str, given: int | None, stated: int | None) -> int:
    """What the file states, or the user, or 0."""
    if given is not None and stated is not None and given != stated:
        got = f"{given} for a structure that states {stated}"
        raise StructureError(name, got=got, expected="left out", code=Code.ELECTRONS)
    return next((value for value in (stated, given) if value is not None), 0)


def _value(record: Record, name: str) -> Any:
    """What a record has under a name; None for nothing."""
    return record.info[name] if name in record.info else record.arrays.get(name)


def _names(path: Path, layout: Layout, reading: Reading, records: list[Record]) -> dict[str, str]:
    """For each field the one name under which every structure has it.

    Raises:
      DataError: a label that was asked for and is not everywhere, or names that take turns.
    """
    chosen = {}
    for field, source in reading.sources.items():
        there = {n: [_value(r, n) is not None for r in records] for n in source.names}
        there = {n: having for n, having in there.items() if any(having)}
        first = next(iter(there), source.names[0])
        having = there.get(first, [False] * len(records))
        if all(having):
            chosen[field] = first
            continue
        lacking = having.index(False)
        other = next((n for n, x in there.items() if n != first and x[lacking]), None)
        if source.required:
            have = label_names(path)
            raise DataError(
                f"label {first!r} of {path}",
                got=f"none in structure {lacking}",
                expected=f"one in every structure, under one of its names: {', '.join(have)}",
                hint=nearest(first, have),
                code=Code.LABEL,
            )
        if other is not None:
            raise DataError(
                f"{field} of {path}",
                got=f"{first} in structure {having.index(True)}, and {other} in {lacking}",
                expected="under one name in the whole file",
                hint=f"Name it with labels, such as {field}={other}:{reading.units.get(field)}.",
                code=Code.LABEL,
            )
        if any(having):
            warnings.warn(
                f"{field} of {path} is not read: {having.count(False)} of {len(records)} "
                f"structures lack it, first structure {lacking}.",
                DataWarning,
                stacklevel=4,
            )
    if reading.sources and not chosen and (have := label_names(path)):
        warnings.warn(
            f"no label of {path} is read: the units of {', '.join(have)} are not known. Name "
            "field, label and unit: labels={'energy': ('U0', 'hartree')} (energy=U0:hartree on the "
            "command line).",
            DataWarning,
            stacklevel=4,
        )
    return chosen


def unread_keys(layout: Layout, records: Iterable[Record], read: set[str]) -> list[str]:
    """Keys of a file that sound like labels, charges or units, and are not read."""
    known = {*read} | {name for names in layout.names.values() for name in names}
    known |= {n for source in layout.sources.values() for n in source.names}
    if not {*read}.isdisjoint(layout.names.get("energy", ())):
        known |= {*keys.BESIDE_ENERGY}
    unread: dict[str, None] = {}
    for record in records:
        unread |= dict.fromkeys(record.unread)
        for name in (*record.info, *record.arrays):
            of_atoms = name in record.arrays and keys.states_charge_or_spin(name)
            if name not in known and (of_atoms or keys.sounds_unread(name)):
                unread[name] = None
    return list(unread)


def _say_what_is_unread(path: Path, unread: list[str]) -> None:
    if unread:
        shown = ", ".join(unread[:8]) + (", ..." if len(unread) > 8 else "")
        text = f"not read in {path}: {shown}. Labels are named with labels (--label)."
        warnings.warn(text, DataWarning, stacklevel=4)


def _read_as(names: Mapping[str, str], reading: Reading) -> dict[str, str]:
    """Names and units of labels, in words."""
    units = {field: reading.units.get(field, "hartree" * (field == "fock")) for field in names}
    return {k: f"{name} ({units[k]})" if units[k] else name for k, name in names.items()}


def _is_isolated(record: Record) -> bool:
    """Whether a frame is a free atom, marked as one, whose energy others may be measured from."""
    kind = str(record.info.get("config_type", "")).lower().replace("_", "").replace("-", "")
    return len(record.numbers) == 1 and kind == keys.ISOLATED


def _energies_of_atoms(
    path: Path, records: list[Record], name: str, reading: Reading
) -> dict[str, float]:
    """Energies of marked free atoms by symbol, Hartree.

    Raises:
      DataError: two energies of one element.
    """
    energies: dict[str, float] = {}
    for record in records:
        if (value := _value(record, name)) is None:
            continue
        element = symbol(int(record.numbers[0]))
        energy = float(_shaped("energy", value)) * reading.sources["energy"].factor
        if energies.setdefault(element, energy) != energy:
            got = f"{energies[element]} and {energy} Hartree"
            where = f"energy of a free {element} in {path}"
            raise DataError(where, got=got, expected="one", code=Code.LABEL)
    return energies


def _values(field: str, name: str, reading: Reading, records: list[Record]) -> list[np.ndarray]:
    factor = reading.sources[field].factor
    return [_shaped(field, _value(record, name)) * factor for record in records]


def _shaped(field: str, value: Any) -> np.ndarray:
    """A label as float64; a tensor written as nine numbers in its shape."""
    if np.asarray(value).dtype.kind == "b":
        raise ValueError(f"{value} for {field}")
    array, axes = np.asarray(value, np.float64), LABELS[field].axes
    shape = tuple(n for n in axes if isinstance(n, int))
    fixed = len(shape) == len(axes) and array.size == np.prod(shape, dtype=int)
    return array.reshape(shape) if fixed else array
