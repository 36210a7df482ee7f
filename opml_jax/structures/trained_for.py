"""What a model was trained for: charges and spins, compositions, and who is bonded to whom."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

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
      ``electrons``: of :func:`electrons_of`; ``coordinations``: see :func:`coordinations`;
      ``surroundings``: hashes of :func:`surroundings`. Of the 7101 molecules of QM7 these are 176
      formulas, 94 coordinations and 3797 surroundings, 45 kB.

    Raises:
      DataError: as :func:`electrons_of`.
    """
    return {
        "electrons": electrons_of(structures),
        "coordinations": sorted(set().union(*map(coordinations, structures))),
        "surroundings": sorted({_hash(name) for s in structures for name in surroundings(s)}),
    }


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
            raise _two_states(name, _state(first), _state(structure))
    return [
        {
            "charge": charge,
            "spin": spin,
            "compositions": sorted(k for k, s in states.items() if _state(s) == (charge, spin)),
        }
        for charge, spin in sorted({_state(s) for s in states.values()})
    ]


def _two_states(name: str, first: tuple[int, int], second: tuple[int, int]) -> DataError:
    """The refusal of a composition that has two charges or spins."""
    return DataError(
        "structures",
        got=f"{name} with {_words(*first)} and with {_words(*second)}",
        expected="of one charge and spin for each composition",
        hint="No model tells them apart; train one for each.",
        code=Code.ELECTRONS,
    )


def union_of(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What two training sets together had, each from :func:`trained_for`.

    Raises:
      DataError: a composition that has another charge or spin in the second.
    """
    states: dict[str, tuple[int, int]] = {}
    bare = set()
    for known in (first, second):
        for e in known["electrons"]:
            state = e["charge"], e["spin"]
            bare.add(state)
            for name in e["compositions"]:
                if states.setdefault(name, state) != state:
                    raise _two_states(name, states[name], state)
    named = [(s, sorted(k for k, state in states.items() if state == s)) for s in sorted(bare)]
    sets = {
        name: sorted({*first.get(name, ()), *second.get(name, ())})
        for name in ("coordinations", "surroundings")
        # one that an earlier version did not write is not known of both
        if name == "coordinations" or (name in first and name in second)
    }
    electrons = [{"charge": c, "spin": s, "compositions": names} for (c, s), names in named]
    return {"electrons": electrons, **sets}


def coordinations(structure: Structure) -> dict[str, int]:
    """The coordinations of a molecule, and an atom that has each.

    A coordination is an element with the elements bonded to it, ``"O(H2)"`` in water; who is bonded
    is said by :func:`~opml_jax.structures.contacts.bonds`.
    """
    return {name: i for i, name in enumerate(_coordinations(structure, _neighbours(structure)))}


def surroundings(structure: Structure) -> dict[str, int]:
    """Elements with the coordinations of the atoms bonded to them, and an atom that has each.

    Two bonds far: ``"H(O(H2))"`` in water, ``"O(C(CH2O) H(O))"`` in ethanol. A molecule that
    training lacked nearly always has one that it lacked.
    """
    neighbours = _neighbours(structure)
    near = _coordinations(structure, neighbours)
    return {
        f"{symbol(z)}({' '.join(sorted(near[j] for j in bonded))})": i
        for i, (z, bonded) in enumerate(zip(structure.numbers, neighbours, strict=True))
    }


def _neighbours(structure: Structure) -> list[list[int]]:
    """Atoms bonded to each."""
    neighbours: list[list[int]] = [[] for _ in structure.numbers]
    for i, j in bonds(structure)[0].tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    return neighbours


def _coordinations(structure: Structure, neighbours: list[list[int]]) -> list[str]:
    """The coordination of each atom."""
    z = structure.numbers
    return [f"{symbol(z[i])}({formula([z[j] for j in n])})" for i, n in enumerate(neighbours)]


def _hash(name: str) -> str:
    """Eight digits for a name of any length."""
    return hashlib.blake2s(name.encode(), digest_size=4).hexdigest()


def unseen_coordinations(structure: Structure, known: Mapping[str, Any] | None) -> list[str]:
    """The coordinations of a molecule that no molecule of training had; none if nothing is known.

    Args:
      structure: a molecule.
      known: from :func:`trained_for`, or None.
    """
    seen = set(known["coordinations"]) if known else coordinations(structure)
    return [name for name in coordinations(structure) if name not in seen]


def novel(structures: Sequence[Structure], known: Mapping[str, Any] | None) -> np.ndarray:
    """Which structures have an atom in surroundings that training lacked, ``(n_structures,)``.

    Args:
      structures: molecules to predict.
      known: from :func:`trained_for`; None, or of an earlier version: nothing is novel.
    """
    if not known or "surroundings" not in known:
        return np.zeros(len(structures), bool)
    seen = set(known["surroundings"])
    return np.array([any(_hash(k) not in seen for k in surroundings(s)) for s in structures], bool)


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


def warn_of_surroundings(structures: Sequence[Structure], known: Mapping[str, Any] | None) -> None:
    """Warn once of atoms bonded as none was in training, else of surroundings that it lacked.

    Args:
      structures: molecules to predict.
      known: from :func:`trained_for`; None: nothing is known, no warning.
    """
    if not known:
        return
    seen = set(known["coordinations"])
    if bonded := _unseen(structures, coordinations, seen.__contains__):
        _warn("atoms are bonded as none was in training", bonded)
    elif "surroundings" in known:
        hashes = set(known["surroundings"])
        if lacking := _unseen(structures, surroundings, lambda name: _hash(name) in hashes):
            _warn("atoms are surrounded, two bonds far, as none was in training", lacking)


def _unseen(
    structures: Sequence[Structure],
    names: Callable[[Structure], Mapping[str, int]],
    known: Callable[[str], bool],
) -> dict[str, tuple[int, int]]:
    """An atom and its structure for each name that is not ``known``."""
    unseen: dict[str, tuple[int, int]] = {}
    for i, structure in enumerate(structures):
        for name, atom in names(structure).items():
            if not known(name):
                unseen.setdefault(name, (atom, i))
    return unseen


def _warn(text: str, unseen: Mapping[str, tuple[int, int]]) -> None:
    named = ", ".join(
        f"{name} (atom {atom} of structure {name_of(i)})"
        for name, (atom, i) in [*unseen.items()][:NAMED]
    )
    more = f" and {len(unseen) - NAMED} more" if len(unseen) > NAMED else ""
    warnings.warn(
        f"{text}: {named}{more}. Predictions are extrapolations there.", DataWarning, stacklevel=6
    )


def _state(structure: Structure) -> tuple[int, int]:
    return structure.charge, structure.spin


def _words(charge: int, spin: int) -> str:
    return f"charge {charge}, spin {spin}"
