"""What readers of files have in common: a record for each molecule, a layout for each file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import Code, DataError
from .keys import declared_units
from .labels import UNITS, Source, factor_of, known_unit


@dataclasses.dataclass(frozen=True)
class Record:
    """What a file has of one molecule.

    Attributes:
      numbers: ``(n_atoms,)`` atomic numbers.
      positions: ``(n_atoms, 3)`` in the file's unit.
      info: what else it has of the molecule as a whole, by its name in the file.
      arrays: what it has of its atoms.
      masses: ``(n_atoms,)`` Dalton, if the file says other than standard weights.
      unread: numbers or words that are no label, in words.
    """

    numbers: np.ndarray
    positions: np.ndarray
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    masses: np.ndarray | None = None
    unread: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is known of a file from its format.

    Attributes:
      name: of the format, in words.
      told_by: how a file of it is known.
      names: names in the file that hold a field, by field; the first that is there is read.
      units: of these fields, where the file does not state another; ``length`` is that of
        positions.
      fixed: whether the format fixes the unit of energies, so that nobody may name another.
      sources: labels whose unit is never another, such as AO matrices.
      meta: what the format says of the level of theory; ``basis`` is that of matrices.
      convention: order of AO matrices, one of :data:`opml_jax.conventions.AO_ORDERS`.
      records: of a file, its molecules, one by one.
      stated: keys of a file as a whole, which may state units.
    """

    name: str
    told_by: str
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: bool = False
    sources: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    convention: str | None = None
    records: Callable[[], Iterator[Record]] = lambda: iter(())
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def of(self, records: Callable[[], Iterator[Record]], **changes: Any) -> Layout:
        """The layout of a file with these molecules."""
        return dataclasses.replace(self, records=records, **changes)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a file is read: what the format, the file and the user say of it, put together.

    Attributes:
      length: factor from the file's unit of length to Bohr.
      sources: where fields come from.
      units: in words, of positions (``length``) and of every field that has one.
    """

    length: float
    sources: Mapping[str, Source]
    units: Mapping[str, str]


def reading_of(
    layout: Layout,
    declared: Mapping[str, str],
    given: Mapping[str, str | None],
    chosen: Mapping[str, Source] | None,
) -> Reading:
    """Units and sources of a file.

    Args:
      layout: what the format says.
      declared: what the file says (:func:`opml_jax.data.keys.declared_units`).
      given: ``length`` and ``energy``, as far as the user names their units.
      chosen: labels that the user names, instead of the format's.

    Raises:
      DataError: a unit that is not known, or that contradicts what the file states.
    """
    given = {
        k: known_unit(f"{k}_unit", unit, UNITS[k]) for k, unit in given.items() if unit is not None
    }
    for name, unit in given.items():
        if declared.get(name, unit) != unit:
            got = f"{unit!r} of a file that states {declared[name]!r}"
            raise DataError(f"{name}_unit", got=got, expected="left out", code=Code.UNIT)
        if layout.fixed and name == "energy":
            expected = "left out: the format fixes it (or name a unit with labels)"
            raise DataError(f"{name}_unit", got=repr(unit), expected=expected, code=Code.UNIT)
    units = {**layout.units, **declared, **given}
    if (
        "forces" in units
        and "forces" not in declared
        and {"energy", "length"} & {*declared, *given}
    ):
        units["forces"] = f"{units['energy']}/{units['length']}"
    factors = {
        name: factor_of(f"unit of {name} in the file", unit, UNITS[name])
        for name, unit in units.items()
        if name in UNITS
    }
    sources = {k: Source(v, factors.get(k, 1.0)) for k, v in layout.names.items()} | dict(
        layout.sources
    )
    if chosen:
        for name, source in chosen.items():
            if name in declared and not np.isclose(factors[name], source.factor, rtol=1e-9):
                got = f"another unit than {declared[name]!r}, which the file states"
                where = f"unit of labels[{name!r}]"
                raise DataError(where, got=got, expected="that of the file", code=Code.UNIT)
        sources = {**layout.sources, **chosen}
        units |= {name: source.unit for name, source in chosen.items()}
    return Reading(factors["length"], sources, units)


def declared_by(layout: Layout, records: list[Record]) -> dict[str, str]:
    """Units that a file states as a whole or in every record alike.

    Raises:
      DataError: records that state different units.
    """
    declared = declared_units(layout.stated)
    for i, record in enumerate(records):
        for name, unit in declared_units(record.info).items():
            if declared.setdefault(name, unit) != unit:
                raise DataError(
                    f"unit of {name}",
                    got=f"{declared[name]}, and {unit} in structure {i}",
                    expected="one for the whole file",
                    code=Code.UNIT,
                )
    return declared
