"""Why the density of a molecule does not become self-consistent: what is at fault, in words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...errors import counted
from ...observables.aufbau import gap_of, intruder
from ...structures import Structure
from ...structures.contacts import in_words, lacking_bonds
from ...structures.trained_for import unseen_coordinations

GAP = 0.02
"""Hartree: with a gap below this one cannot say which orbitals are occupied; the changes that
a cycle makes of levels far from convergence are as large."""


BEYOND = 5.0
"""Times the largest ``nonlocality`` of the validation set: a density with more is wrong.

B3LYP matrices from 74 molecules of at most five heavy atoms, in means of absolute elements: 24
others have 8 to 67 microhartree, and F is wrong by 5 to 30; of ten with nine heavy atoms seven have
30 to 142, and are wrong by 12 to 84, two are self-consistent, have 588 and 667, and are wrong by
3600 and 8500."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """What keeps a density from self-consistency.

    Attributes:
      kind: ``contact``, ``level``, ``potential``, ``gap``, ``coordination`` or ``residual``.
      text: a clause that says it.
    """

    kind: str
    text: str


def fault_of(
    structure: Structure,
    fock: np.ndarray,
    overlap: np.ndarray,
    dm: np.ndarray,
    card: Mapping[str, Any],
    nonlocality: float = 0.0,
) -> Fault:
    """What is at fault, the likeliest first.

    Args:
      structure: closed-shell molecule.
      fock: where the cycles ended, ``(nao, nao)`` Hartree.
      overlap: ``(nao, nao)``.
      dm: density matrix, occupation 2, of the last Fock matrix or the one before.
      card: of the model; what it does not say of training is taken as seen.
      nonlocality: of a projected model, Hartree (:meth:`.Op2Op.apply`).
    """
    known = card.get("closest_bohr")
    if known and (lacking := lacking_bonds(structure, known)):
        contacts = "; ".join(in_words(*bond, known) for bond in lacking.items())
        return Fault("contact", f"training had no bond as short as {contacts}")
    if not all(np.isfinite(x).all() for x in (fock, dm)):
        return Fault("residual", "its matrices are not finite")
    if text := intruder(structure, fock, overlap):
        return Fault("level", text)
    if text := far_from_local(nonlocality, card):
        return Fault("potential", text)
    if (gap := gap_of(fock, overlap, dm)) < GAP:
        text = f"the gap between occupied and unoccupied levels is {gap:.3f} Hartree, too small"
        return Fault("gap", f"{text} to say which are occupied")
    if unseen := unseen_coordinations(structure, card.get("trained_for")):
        text = f"atoms are bonded as none was in training, {', '.join(unseen)}"
        return Fault("coordination", text)
    return Fault("residual", f"its bonds, levels and gap ({gap:.2f} Hartree) give no reason")


def far_from_local(nonlocality: float, card: Mapping[str, Any]) -> str:
    """What is wrong with a learned matrix of which too much is that of no potential, or nothing."""
    known = card.get("largest_nonlocality")
    if known is None or not nonlocality > BEYOND * known:
        return ""
    return (
        f"of what is learned {1e6 * nonlocality:.0f} microhartree (root mean square) are no "
        f"matrix of a potential (validation: at most {1e6 * known:.0f})"
    )


def counted_by_kind(faults: Iterable[Fault]) -> str:
    """How many there are of each kind: ``"1 level, 2 contacts"``."""
    kinds = Counter(fault.kind for fault in faults)
    return ", ".join(counted(n, kind) for kind, n in sorted(kinds.items()))
