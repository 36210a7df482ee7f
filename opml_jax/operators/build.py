"""Physical operators of a molecule or a batch, as :class:`Operator` objects.

Each takes what the integral of the same name takes and is differentiable in the same ways.
"""

from __future__ import annotations

from typing import Any

from .. import integrals
from ..basis import Basis, layout_of
from ..structures import Structure, StructureBatch
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
