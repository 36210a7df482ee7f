"""Labels of foreign files: which name holds which field, and in which unit.

A label is read when its meaning and unit are known: by the convention of the format for a few
names, or because the user says so. Nothing else is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from ..errors import Code, DataError, one_of
from ..units import DEBYE_PER_EBOHR, ENERGY, LENGTH

_DIPOLE = {"e bohr": 1.0, "e angstrom": LENGTH["angstrom"], "debye": 1 / DEBYE_PER_EBOHR}
_VOLUME = {f"{name}^3": factor**3 for name, factor in LENGTH.items()}

UNITS: dict[str, dict[str, float]] = {
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
}
"""For every field a foreign file may hold: factor from a named unit to atomic units."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a field comes from.

    Attributes:
      names: names in the file; the first one present is taken.
      factor: from the file's unit to atomic units.
      required: every structure must have it.
    """

    names: tuple[str, ...]
    factor: float
    required: bool = False


def factor_of(argument: str, unit: str, known: Mapping[str, float]) -> float:
    """Factor of a named unit; upper case and ``*`` between units do not matter.

    Raises:
      DataError: an unknown unit; the nearest known one is named.
    """
    text = " ".join(str(unit).lower().replace("*", " ").split())
    one_of(argument, text, known, DataError)
    return known[text]


def chosen_sources(labels: Mapping[str, tuple[str, str]]) -> dict[str, Source]:
    """What a user asks for: ``{"energy": ("U0", "hartree")}``.

    Raises:
      DataError: an unknown field, a missing or unknown unit.
    """
    sources = {}
    for field, label in labels.items():
        one_of("labels", field, UNITS, DataError)
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
        sources[field] = Source((name,), factor, required=True)
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
