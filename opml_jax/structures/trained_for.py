"""What a model was trained for: charges and spins, compositions, and who is bonded to whom."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import Code, DataError, DataWarning, StructureError
from .contacts import bonds
from .elements import formula, symbol
from .names import name_of
from .structure import Structure

UNSAID: dict[str, Any] = {"electrons": [{"charge": 0, "spin": 0, "compositions": []}]}
"""Of models that do not say it, such as those of version 0.1: neutral closed shells."""

NAMED = 5
"""A warning names so many."""


def trained_for(structures: Sequence[Structure]) -> dict[str, Any]:
    """What a model card says of the molecules of a training set, JSON-able.

    Args:
      structures: the training set.

    Returns:
      ``electrons``: of :func:`electrons_of`; ``coordinations``: see :func:`coordinations`. Of the
      7101 molecules of QM7 these are 176 formulas and 94 coordinations, 3 kB.

    Raises:
      DataError: as :func:`electrons_of`.
    """
    environments = set().union(*map(coordinations, structures))
    return {"electrons": electrons_of(structures), "coordinations": sorted(environments)}


def electrons_of(structures: Sequence[Structure]) -> list[dict[str, Any]]:
    """Each charge and spin of a training set, with the formulas of the molecules that have it.

    Raises:
      DataError: molecules of one composition with different charges or spins, which no model tells
        apart: all read nuclei.
    """
    states: dict[str, Structure] = {}
    for structure in structures:
        name = formula(structure.numbers)
        first = states.setdefault(name, structure)
        if _state(first) != _state(structure):
            raise DataError(
                "structures",
                got=f"{name} with {_words(*_state(first))} and with {_words(*_state(structure))}",
                expected="of one charge and spin for each composition",
                hint="No model tells them apart; train one for each.",
                code=Code.ELECTRONS,
            )
    return [
        {
            "charge": charge,
            "spin": spin,
            "compositions": sorted(k for k, s in states.items() if _state(s) == (charge, spin)),
        }
        for charge, spin in sorted({_state(s) for s in states.values()})
    ]


def coordinations(structure: Structure) -> dict[str, int]:
    """The coordinations of a molecule, and an atom that has each.

    A coordination is an element with the elements bonded to it, ``"O(H2)"`` in water; who is bonded
    is said by :func:`~opml_jax.structures.contacts.bonds`.
    """
    neighbours: list[list[int]] = [[] for _ in structure.numbers]
    for i, j in bonds(structure)[0].tolist():
        neighbours[i].append(structure.numbers[j])
        neighbours[j].append(structure.numbers[i])
    return {
        f"{symbol(z)}({formula(bonded)})": i
        for i, (z, bonded) in enumerate(zip(structure.numbers, neighbours, strict=True))
    }


def check_electrons(
    structures: Sequence[Structure], known: Mapping[str, Any] | None, where: str = "structures"
) -> None:
    """Refuse charges and spins that a model was not trained for.

    Args:
      structures: molecules to predict.
      known: from :func:`trained_for`; None: of a model that does not say, which is taken as trained
        on neutral closed shells.
      where: what the structures are called.

    Raises:
      StructureError: a charge and spin that no molecule of the training set had, or another than
        the molecules of this composition had there.
    """
    electrons = (known or UNSAID)["electrons"]
    states = {(e["charge"], e["spin"]) for e in electrons}
    for i, structure in enumerate(structures):
        state, allowed = _state(structure), states
        if len(states) > 1:
            name = formula(structure.numbers)
            had = {(e["charge"], e["spin"]) for e in electrons if name in e["compositions"]}
            allowed = had or states
        if state not in allowed:
            expected = " or ".join(_words(*s) for s in sorted(allowed))
            said = "as in training" if known else "as the model does not say what it was trained on"
            raise StructureError(
                where,
                got=f"{formula(structure.numbers)} with {_words(*state)} (structure {name_of(i)})",
                expected=f"molecules with {expected}, {said}",
                hint="Models do not read charges and spins: train one on such molecules.",
                code=Code.ELECTRONS,
            )


def warn_of_coordinations(structures: Sequence[Structure], known: Mapping[str, Any] | None) -> None:
    """Warn once of atoms that are bonded as none was in training.

    A composition that training lacked is no reason: models are made for larger molecules of
    coordinations that they know.

    Args:
      structures: molecules to predict.
      known: from :func:`trained_for`; None: nothing is known, no warning.
    """
    seen = set(known["coordinations"]) if known else None
    if seen is None:
        return
    unseen: dict[str, tuple[int, int]] = {}
    for i, structure in enumerate(structures):
        for name, atom in coordinations(structure).items():
            if name not in seen:
                unseen.setdefault(name, (atom, i))
    if unseen:
        named = ", ".join(
            f"{name} (atom {atom} of structure {name_of(i)})"
            for name, (atom, i) in [*unseen.items()][:NAMED]
        )
        more = f" and {len(unseen) - NAMED} more" if len(unseen) > NAMED else ""
        warnings.warn(
            f"atoms are bonded as none was in training: {named}{more}. Predictions are "
            "extrapolations there.",
            DataWarning,
            stacklevel=5,
        )


def _state(structure: Structure) -> tuple[int, int]:
    return structure.charge, structure.spin


def _words(charge: int, spin: int) -> str:
    return f"charge {charge}, spin {spin}"
