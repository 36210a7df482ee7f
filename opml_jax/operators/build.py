"""Physical operators of a molecule or a batch, as :class:`Operator` objects.

Each takes what the integral of the same name takes and is differentiable in the same ways.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import integrals
from ..basis import Basis, layout_of
from ..errors import OpmlError
from ..structures import Structure, StructureBatch
from .functions import lowdin
from .operator import Operator


def overlap(structure: Structure | StructureBatch, basis: Basis, **options: Any) -> Operator:
    """Overlap operator; see :func:`opml_jax.integrals.overlap`."""
    s = integrals.overlap(structure, basis, **options)
    return Operator(s, layout_of(structure, basis), symmetric=True)


def kinetic(structure: Structure | StructureBatch, basis: Basis, **options: Any) -> Operator:
    """Kinetic energy, Hartree; see :func:`opml_jax.integrals.kinetic`."""
    t = integrals.kinetic(structure, basis, **options)
    return Operator(t, layout_of(structure, basis), symmetric=True)


def external_potential(
    structure: Structure | StructureBatch, basis: Basis, **options: Any
) -> Operator:
    """External potential, Hartree; see :func:`opml_jax.integrals.external_potential`."""
    v = integrals.external_potential(structure, basis, **options)
    return Operator(v, layout_of(structure, basis), symmetric=True)


def screened_potential(
    structure: Structure | StructureBatch, basis: Basis, **options: Any
) -> Operator:
    """Screened potential, Hartree; see :func:`opml_jax.integrals.screened_potential`."""
    v = integrals.screened_potential(structure, basis, **options)
    return Operator(v, layout_of(structure, basis), symmetric=True)


def neutral_atom_potential(
    structure: Structure | StructureBatch, basis: Basis, **options: Any
) -> Operator:
    """Neutral atoms, Hartree; see :func:`opml_jax.integrals.neutral_atom_potential`."""
    v = integrals.neutral_atom_potential(structure, basis, **options)
    return Operator(v, layout_of(structure, basis), symmetric=True)


def spectral_bounds(
    basis: Basis, operator: str = "screened_potential", *, margin: float = 3.0
) -> tuple[float, float]:
    """Interval for the spectrum of a potential in Löwdin's basis, for any molecule (host side).

    The potentials are nowhere positive, which gives the upper bound 0. The lowest eigenvalue
    belongs to a core orbital of the heaviest atom; in a molecule the neighbours lower it, by
    less than 1 Hartree each for potentials of neutral atoms. Only these have such a bound:
    the bare potential grows with the molecule.

    Args:
      basis: whose elements are considered.
      operator: ``"screened_potential"`` or ``"neutral_atom_potential"``.
      margin: subtracted from the lowest eigenvalue of the free atoms, Hartree.

    Returns:
      Bounds in Hartree for :func:`~opml_jax.operators.chebyshev`, the same for every molecule.

    Raises:
      OpmlError: another operator.
    """
    potentials = {
        "screened_potential": screened_potential,
        "neutral_atom_potential": neutral_atom_potential,
    }
    if operator not in potentials:
        raise OpmlError(
            "operator",
            got=repr(operator),
            expected=f"one of {[*potentials]}",
            hint="Other operators have no bound that holds for every molecule.",
        )
    lowest = 0.0
    for z in basis.elements:
        atom = Structure([z], [[0.0, 0.0, 0.0]], spin=z % 2)
        v = lowdin(potentials[operator](atom, basis), overlap(atom, basis))
        lowest = min(lowest, float(np.linalg.eigvalsh(np.asarray(v.to_dense()))[0]))
    return lowest - margin, 0.0
