"""Labels of foreign files: which name holds which field, and in which unit.

A label is read when its meaning and unit are known: by the convention of the format for a few
names, because the file states its units, or because the user says so. Nothing else is guessed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from ..errors import Code, DataError, one_of
from ..units import DEBYE_PER_EBOHR, ENERGY, LENGTH

_DIPOLE = {"e bohr": 1.0, "e angstrom": LENGTH["angstrom"], "debye": 1 / DEBYE_PER_EBOHR}
_VOLUME = {f"{name}^3": factor**3 for name, factor in LENGTH.items()}

UNITS: dict[str, dict[str, float]] = {
    "length": LENGTH,
    "energy": ENERGY,
    "forces": {f"{e}/{r}": ENERGY[e] / LENGTH[r] for e in ENERGY for r in LENGTH},
    "dipole": _DIPOLE,
    "dipole_norm": _DIPOLE,
    "polarizability": _VOLUME,
    "isotropic_polarizability": _VOLUME,
    "quadrupole": {
        "e bohr^2": 1.0,
        "e angstrom^2": LENGTH["angstrom"] ** 2,
        "debye angstrom": LENGTH["angstrom"] / DEBYE_PER_EBOHR,
    },
    "frame": {"1": 1.0},
    "charge": {"1": 1.0},
    "spin": {"1": 1.0},
    "multiplicity": {"1": 1.0},
}
"""For every field a foreign file may hold, and for positions: factor from a named unit to atomic
units."""

SPELLINGS = {
    "hartree": ("ha", "eh", "e_h", "hartrees"),
    "ev": ("electronvolt", "electronvolts", "electron_volt"),
    "mev": ("millielectronvolt",),
    "kcal": ("kcals", "kilocalorie", "kilocalories"),
    "kj": ("kilojoule", "kilojoules"),
    "mol": ("mole",),
    "rydberg": ("ry", "rydbergs"),
    "angstrom": ("a", "ang", "angs", "angstroms", "ångström", "å", "aa"),
    "bohr": ("bohrs", "a0", "a_0", "bohr_radius"),
    "nm": ("nanometer", "nanometre", "nanometers", "nanometres"),
    "debye": ("d", "debyes"),
}
"""Words for units that files use, by the word that is meant here; upper case does not matter."""

ATOMIC = ("au", "a.u.", "atomic", "atomic units", "atomic_units")
"""What says of any quantity that it is in atomic units."""

_WORDS = {word: unit for unit, words in SPELLINGS.items() for word in (unit, *words)}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a field comes from.

    Attributes:
      names: names in the file, of which one serves the whole file: the first that it has.
      factor: from the file's unit to atomic units.
      required: every structure must have it.
      unit: the file's, in words.
    """

    names: tuple[str, ...]
    factor: float
    required: bool = False
    unit: str = ""


def factor_of(argument: str, unit: str, known: Mapping[str, float]) -> float:
    """Factor of a named unit, however it is spelled; raises as :func:`known_unit`."""
    return known[known_unit(argument, unit, known)]


def known_unit(argument: str, unit: str, known: Mapping[str, float]) -> str:
    """The name in ``known`` of a unit, however it is spelled.

    Raises:
      DataError: an unknown unit; the nearest known one is named.
    """
    text = plain_unit(unit)
    if text in ATOMIC:
        text = next(name for name, factor in known.items() if factor == 1.0)
    one_of(argument, text, known, DataError)
    return text


def plain_unit(unit: str) -> str:
    """A unit in the words of :data:`UNITS`: ``"kcal mol^-1 Ang^-1"`` is ``kcal/mol/angstrom``."""
    text = " ".join(
        str(unit).lower().replace("**", "^").replace("*", " ").replace("·", " ").split()
    )
    if text in ATOMIC:
        return text
    text = re.sub(r"\s*/\s*", "/", re.sub(r"[ _](\S+?)\^?-1\b", r"/\1", text))
    parts = re.split(r"([/ ^()])", text.replace("angstrom3", "angstrom^3"))
    return "".join(_WORDS.get(part, part) for part in parts)


def chosen_sources(labels: Mapping[str, tuple[str, str]]) -> dict[str, Source]:
    """What a user asks for: ``{"energy": ("U0", "hartree")}``.

    Raises:
      DataError: an unknown field, a missing or unknown unit.
    """
    sources = {}
    for field, label in labels.items():
        one_of("labels", field, [name for name in UNITS if name != "length"], DataError)
        if isinstance(label, str) or len(label) != 2:
            raise DataError(
                f"labels[{field!r}]",
                got=repr(label),
                expected="a pair (name in the file, unit)",
                hint=f"The unit is one of {', '.join(UNITS[field])}.",
                code=Code.UNIT,
            )
        name, unit = label
        factor = factor_of(f"unit of labels[{field!r}]", unit, UNITS[field])
        sources[field] = Source((name,), factor, required=True, unit=unit)
    return sources


def parse_labels(items: Iterable[str]) -> dict[str, tuple[str, str]] | None:
    """The mapping written as text: ``["energy=U0:hartree"]``; ``None`` for no items.

    Raises:
      DataError: text of another form, or a field twice.
    """
    labels: dict[str, tuple[str, str]] = {}
    for item in items:
        field, equals, rest = item.partition("=")
        name, colon, unit = rest.rpartition(":")
        if not (equals and colon) or field.strip() in labels:
            got = f"{item!r}{' a second time' if equals and colon else ''}"
            expected = "FIELD=NAME:UNIT, such as energy=U0:hartree"
            raise DataError("label", got=got, expected=expected, code=Code.LABEL)
        labels[field.strip()] = (name.strip(), unit.strip())
    return labels or None
