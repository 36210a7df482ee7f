"""From the records of a file to a data set: which name is read as what, checked and converted."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..conventions import CONVENTION
from ..errors import Code, DataError, DataWarning, OpmlError, StructureError, nearest
from ..quantities import LABELS
from ..structures import Structure
from ..structures.elements import symbol
from . import keys
from .dataset import Dataset
from .labels import Source
from .matrices import MATRICES, own_matrices
from .plausibility import check_labels, check_lengths
from .records import Layout, Reading, Record, declared_by, reading_of

FREE_ATOM = "A free atom that others are measured from is marked with config_type=IsolatedAtom."

STATE = ("charge", "spin", "multiplicity")
"""What a user may name among labels, although it is part of the structure."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What a user says of a file.

    Attributes:
      units: of ``length`` and ``energy``.
      chosen: labels to read instead of the format's, by field.
      charge: total charge, if the file states none.
      spin: 2S, likewise.
      limit: read only so many structures.
      meta: ``basis`` and ``convention`` of AO matrices, and what the format says.
    """

    units: Mapping[str, str | None]
    chosen: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    charge: int | None = None
    spin: int | None = None
    limit: int | None = None
    meta: Mapping[str, str] = dataclasses.field(default_factory=dict)


def assembled(
    path: Path, layout: Layout, given: Given, names_there: Callable[[], list[str]]
) -> Dataset:
    """Structures and labels of a file, checked, in atomic units.

    Args:
      path: the file, for messages.
      layout: what its format says.
      given: what the user says.
      names_there: names under which the file has labels, whatever they mean.

    Raises:
      OpmlError: as :func:`opml_jax.data.read_dataset`.
    """
    records = list(itertools.islice(layout.records(), given.limit))
    try:
        reading = reading_of(layout, declared_by(layout, records), given.units, given.chosen)
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
        _structure(f"{path}, structure {i}", r, reading.length, states, given)
        for i, r in enumerate(records)
    ]
    if not structures:
        raise DataError(
            f"structures of {path}", got="none", expected="at least one", code=Code.EMPTY
        )
    check_lengths(str(path), structures)
    names = _names(path, reading, records, names_there)
    unread = unread_keys(layout, records, {*names.values(), *states.values()})
    if given.chosen or not layout.names:  # of a user's own choice only what is no key=value
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
    about: dict[str, Any] = {
        **given.meta,
        "format": layout.name,
        "length_unit": reading.units["length"],
    }
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
    where: str, record: Record, length: float, named: Mapping[str, str], given: Given
) -> Structure:
    """A molecule; ``named`` are keys that the user says to be charge, spin or multiplicity."""
    info = {k: v for k, v in record.info.items() if k not in named.values()}
    info |= {field: record.info[name] for field, name in named.items() if name in record.info}
    try:
        state = keys.state_of(info, record.arrays, record.numbers)
        return Structure(
            record.numbers,
            np.asarray(record.positions, np.float64) * length,
            charge=_agreed("charge", given.charge, state.charge),
            spin=_agreed("spin", given.spin, state.spin),
            masses=record.masses,
        )
    except OpmlError as err:
        if len(record.numbers) == 1 and err.code == Code.ELECTRONS:
            err = type(err)(f"{err.message} {FREE_ATOM}", code=err.code)
        raise err.within(where) from err


def _agreed(name: str, given: int | None, stated: int | None) -> int:
    """What the file states, or the user, or 0."""
    if given is not None and stated is not None and given != stated:
        got = f"{given} for a structure that states {stated}"
        raise StructureError(name, got=got, expected="left out", code=Code.ELECTRONS)
    return next((value for value in (stated, given) if value is not None), 0)


def _value(record: Record, name: str) -> Any:
    """What a record has under a name; None for nothing."""
    return record.info[name] if name in record.info else record.arrays.get(name)


def _names(
    path: Path, reading: Reading, records: list[Record], names_there: Callable[[], list[str]]
) -> dict[str, str]:
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
            have = names_there()
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
    if reading.sources and not chosen and (have := names_there()):
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
