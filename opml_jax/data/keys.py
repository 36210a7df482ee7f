"""What keys of a file mean beside labels: charge, spin, units, and what is no label.

One table for every format: comments and columns of extended xyz, arrays of npz, rows of databases,
``info`` of ASE's atoms. A key that says something is read, or refused by its name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import Code, DataError, StructureError
from .labels import ATOMIC, known_unit, plain_unit
from .labels import UNITS as KNOWN

CHARGE = ("charge", "total_charge", "net_charge", "tot_charge", "molecular_charge")
"""Total charge in units of e, an integer. Upper case does not matter, here and below."""

MULTIPLICITY = ("multiplicity", "spin_multiplicity", "molecular_multiplicity", "mult")
"""2S + 1."""

SPIN = ("spin", "total_spin", "n_unpaired", "unpaired_electrons", "uhf", "nelec_diff")
"""Number of unpaired electrons, 2S. Some programs write 2S + 1 under such a name: for a number of
electrons only one of the two is possible, and the other is refused."""

ATOM_CHARGES = ("initial_charges",)
"""Column of charges of atoms before a calculation (ASE): their sum is the total charge."""

ATOM_MOMENTS = ("initial_magmoms",)
"""Column of magnetic moments of atoms before a calculation (ASE): their sum is 2S."""

UNITS = {
    "length": tuple(
        "length_unit distance_unit position_unit positions_unit pos_unit coordinate_unit "
        "coordinates_unit coords_unit r_unit unit_length".split()
    ),
    "energy": ("energy_unit", "energies_unit", "e_unit", "unit_energy"),
    "forces": ("forces_unit", "force_unit", "f_unit", "unit_forces"),
    "dipole": ("dipole_unit", "dipoles_unit", "d_unit"),
    "": ("unit",),  # of what the unit is one of
}
"""Keys by which a file states the unit of a quantity (``energy_units`` too); ``units``
alone may name a system."""

SYSTEMS = {
    "metal": ("ev", "angstrom"),
    "real": ("kcal/mol", "angstrom"),
    "ase": ("ev", "angstrom"),
    "electron": ("hartree", "bohr"),
}
"""Systems of units that LAMMPS and others have a name for: of energy and length."""

BESIDE_ENERGY = ("free_energy", "stress", "virial", "virials", "energies", "energy_var", "magmom")
"""Results that programs write beside the energy, and that are no labels of molecules here."""

ISOLATED = "isolatedatom"
"""``config_type`` of a frame that holds the energy of one free atom."""

_SUGGESTIVE = re.compile(
    r"energ|forc|grad|dipol|polari|quadrup|hess|charge|spin|multiplic|magmom|mass|isotop|unit"
    r"|weight|virial|stress",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class State:
    """Charge and spin that a file states of a molecule; None where it does not.

    Attributes:
      charge: total charge, in units of e.
      spin: number of unpaired electrons, 2S.
    """

    charge: int | None = None
    spin: int | None = None


def integer(name: str, value: Any) -> int | None:
    """An integer, also as text or as an array of one number; None of nothing.

    Raises:
      StructureError: anything else, such as 0.9, a word, or several numbers.
    """
    array = np.asarray(value)
    if value is None:
        return None
    try:
        number = float(array.item() if array.dtype.kind != "O" else math.nan)
    except (TypeError, ValueError):
        number = math.nan
    if array.dtype.kind == "b" or not abs(number) < 1000 or number != round(number):
        raise StructureError(name, got=repr(value), expected="an integer", code=Code.ELECTRONS)
    return int(number)


def state_of(info: Mapping[str, Any], arrays: Mapping[str, Any], numbers: Iterable[int]) -> State:
    """Charge and spin from all keys that state them.

    Args:
      info: what a file has of one molecule as a whole, by its names.
      arrays: what it has of its atoms.
      numbers: atomic numbers.

    Raises:
      StructureError: what is no integer, keys that contradict each other, or a spin that the number
        of electrons excludes.
    """
    charges = _stated(info, CHARGE)
    if (total := _total(arrays, ATOM_CHARGES)) is not None:
        charges["the sum of initial_charges"] = total
    charge = _one("charge", charges)
    spins = {name: n - 1 for name, n in _stated(info, MULTIPLICITY).items()}
    for name, n in _stated(info, SPIN).items():
        electrons = sum(map(int, numbers)) - (charge or 0)
        if (electrons - n) % 2:
            raise StructureError(
                name,
                got=f"{n} for {electrons} electrons",
                expected="the number of unpaired electrons, 2S",
                hint=f"If it is 2S + 1, say so: label multiplicity={name}:1.",
                code=Code.ELECTRONS,
            )
        spins[name] = n
    if (moment := _total(arrays, ATOM_MOMENTS)) is not None:
        spins["the sum of initial_magmoms"] = abs(moment)
    return State(charge, _one("spin (2S)", spins))


def _stated(info: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    there = {k: integer(k, value) for k, value in info.items() if k.lower() in names}
    return {name: n for name, n in there.items() if n is not None}


def _total(arrays: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The sum of a column over atoms; None if there is none, or all of it is zero.

    Parts of charges add up to an integer only so far.
    """
    for name in names:
        if name in arrays and np.any(column := np.asarray(arrays[name], np.float64)):
            return integer(f"sum of {name}", round(float(column.sum()), 3))
    return None


def _one(what: str, stated: Mapping[str, int]) -> int | None:
    """The one value of several keys."""
    if len(set(stated.values())) > 1:
        got = " and ".join(f"{value} by {name}" for name, value in stated.items())
        raise StructureError(what, got=got, expected="one value", code=Code.ELECTRONS)
    return next(iter(stated.values()), None)


def declared_units(values: Mapping[str, Any]) -> dict[str, str]:
    """Units that a file states, by ``length``, ``energy``, or the name of a field.

    Raises:
      DataError: a unit that is not known, or two of one quantity.
    """
    out: dict[str, str] = {}
    for name, value in values.items():
        quantity = _quantity_of(name)
        if quantity is None:
            continue
        if not isinstance(value, str | bytes) and np.asarray(value).dtype.kind != "U":
            raise DataError(name, got=repr(value), expected="a unit", code=Code.UNIT)
        unit = plain_unit(value.decode() if isinstance(value, bytes) else str(value))
        if quantity:
            parts = {quantity: known_unit(f"unit of {quantity} in the file", unit, KNOWN[quantity])}
        elif unit in SYSTEMS or unit in ATOMIC:
            energy, length = SYSTEMS.get(unit, ("hartree", "bohr"))
            parts = {"energy": energy, "length": length}
        else:
            of = next((q for q in ("length", "energy") if unit in KNOWN[q]), "forces")
            parts = {of: known_unit(f"unit of {of} in the file", unit, KNOWN[of])}
        for part, meant in parts.items():
            if out.setdefault(part, meant) != meant:
                got = f"{out[part]} and {meant}"
                where = f"unit of {part} in the file"
                raise DataError(where, got=got, expected="one unit", code=Code.UNIT)
    return out


def _quantity_of(name: str) -> str | None:
    """What a key states the unit of, empty if it does not say; None: it states none."""
    singular = re.sub("units$", "unit", name.lower())
    return next((quantity for quantity, names in UNITS.items() if singular in names), None)


def is_suggestive(name: str) -> bool:
    """Whether a key sounds like a label, a charge or a unit, so that it is named if left unread."""
    return bool(_SUGGESTIVE.search(name))


def states_unit(name: str) -> bool:
    """Whether a key states a unit."""
    return _quantity_of(name) is not None


def states_charge_or_spin(name: str) -> bool:
    """Whether a key states charge or spin of a molecule."""
    return name.lower() in (*CHARGE, *MULTIPLICITY, *SPIN)


def is_label(name: str) -> bool:
    """Whether a key may be a label: it says nothing of charge, spin or units."""
    known = (*ATOM_CHARGES, *ATOM_MOMENTS)
    return not (states_unit(name) or states_charge_or_spin(name) or name in known)


def sounds_unread(name: str) -> bool:
    """Whether a key that nobody reads should be named."""
    return is_suggestive(name) and is_label(name)
