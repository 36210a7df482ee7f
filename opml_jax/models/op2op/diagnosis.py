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


@dataclasses.dataclass(frozen=True)
class Fault:
    """What keeps a density from self-consistency.

    Attributes:
      kind: ``contact``, ``level``, ``gap``, ``coordination`` or ``residual``.
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
) -> Fault:
    """What is at fault, the likeliest first.

    Args:
      structure: closed-shell molecule.
      fock: where the cycles ended, ``(nao, nao)`` Hartree.
      overlap: ``(nao, nao)``.
      dm: density matrix, occupation 2, of the last Fock matrix or the one before.
      card: of the model; what it does not say of training is taken as seen.
    """
    known = card.get("closest_bohr")
    if known and (lacking := lacking_bonds(structure, known)):
        contacts = "; ".join(in_words(*bond, known) for bond in lacking.items())
        return Fault("contact", f"training had no bond as short as {contacts}")
    if not all(np.isfinite(x).all() for x in (fock, dm)):
        return Fault("residual", "its matrices are not finite")
    if text := intruder(structure, fock, overlap):
        return Fault("level", text)
    if (gap := gap_of(fock, overlap, dm)) < GAP:
        text = f"the gap between occupied and unoccupied levels is {gap:.3f} Hartree, too small"
        return Fault("gap", f"{text} to say which are occupied")
    if unseen := unseen_coordinations(structure, card.get("trained_for")):
        text = f"atoms are bonded as none was in training, {', '.join(unseen)}"
        return Fault("coordination", text)
    return Fault("residual", f"its bonds, levels and gap ({gap:.2f} Hartree) give no reason")


def counted_by_kind(faults: Iterable[Fault]) -> str:
    """How many there are of each kind: ``"1 level, 2 contacts"``."""
    kinds = Counter(fault.kind for fault in faults)
    return ", ".join(counted(n, kind) for kind, n in sorted(kinds.items()))
