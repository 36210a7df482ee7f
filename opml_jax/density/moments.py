r"""Moments of a density in closed form: every function has one moment about its own atom.

With coefficients N of unnormalised primitives, :math:`\int S_{lm}(r) \phi_{lm} =
\sqrt{4\pi/(2l+1)}\, N\, \Gamma(l + \frac32) / 2 a^{l + 3/2}`, and no other function of the shell's
atom has a moment of that degree, except the spherical second moment of an s function. With
``widths`` w (factors of exponents, :mod:`opml_jax.basis.widths`) a moment of degree k becomes
:math:`w^{-(k + 3/2) / 2}` of what it was.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import Basis, check_widths, layout_of
from ..conventions import e3nn_to_cartesian, e3nn_to_matrix
from ..numerics import Array, einsum
from ..structures import Structure, centre_of_nuclear_charge


def _radial_moments(
    structure: Structure, basis: Basis, degree: int, widths: Array | None = None
) -> Array:
    """``(naux,)`` of each function: int r^(degree) R(r) Y_lm(r) S_lm(r / |r|)."""
    layout = layout_of(structure, basis)
    topology = layout.primitives
    exponents, coefficients = basis.flat()
    xp = np if isinstance(exponents, np.ndarray) else jnp
    l, _, shell = topology.ao.T
    out = xp.zeros(layout.nao)
    for k, (table, member) in enumerate(zip(topology.table, topology.shell, strict=True)):
        if not len(table):
            continue
        p = (k + degree + 3) / 2
        front = math.sqrt(4 * math.pi / (2 * k + 1)) * math.gamma(p) / 2
        own = front * coefficients[table] * exponents[table] ** -p
        of_shell = xp.asarray(member[None] == np.arange(topology.shell_counts[k])[:, None], float)
        out = xp.where(l == k, (of_shell @ own)[xp.where(l == k, shell, 0)], out)
    if widths is None:
        return out
    check_widths(layout, widths)
    return out * jnp.asarray(widths)[layout.shell] ** (-0.5 * (degree + 1.5))


def charges(structure: Structure, basis: Basis, widths: Array | None = None) -> jax.Array:
    """Integral of every function: ``(naux,)``, zero but for s functions.

    Args:
      structure: molecule.
      basis: auxiliary basis.
      widths: ``(n_shells,)`` factors of exponents, or None.

    Raises:
      OpmlError: widths of another shape, or not positive.
    """
    l = layout_of(structure, basis).l
    return _radial_moments(structure, basis, 0, widths) * (l == 0)


def electron_number(
    coefficients: Array, structure: Structure, basis: Basis, widths: Array | None = None
) -> jax.Array:
    """Electrons of a density: ``(...)`` from coefficients ``(..., naux)``."""
    return einsum("...p,p->...", coefficients, charges(structure, basis, widths))


def _own_dipoles(coefficients, structure, basis, widths) -> tuple[Array, np.ndarray]:
    """First moments of p shells about their atoms, ``(..., n_shells, 3)``, and these atoms."""
    layout = layout_of(structure, basis)
    first = np.flatnonzero((layout.l == 1) & (layout.m == -1))
    d = _radial_moments(structure, basis, 1, widths)[first]
    vectors = coefficients[..., first[:, None] + np.arange(3)] * d[:, None]
    return e3nn_to_cartesian(vectors), layout.atom[first]


def dipole(
    coefficients: Array, structure: Structure, basis: Basis, widths: Array | None = None
) -> jax.Array:
    r"""Dipole :math:`\sum_A Z_A R_A - \int \rho r` about the centre of nuclear charge.

    Args:
      coefficients: ``(..., naux)`` of the density of electrons, in the library's order.
      structure: molecule.
      basis: auxiliary basis.
      widths: ``(n_shells,)`` factors of exponents, or None.

    Returns:
      ``(..., 3)`` in e Bohr, x, y, z; differentiable in everything.
    """
    q = charges(structure, basis, widths)
    at = jnp.asarray(structure.positions) - centre_of_nuclear_charge(structure)
    of_charges = einsum("...p,p,px->...x", coefficients, q, at[layout_of(structure, basis).atom])
    own, _ = _own_dipoles(coefficients, structure, basis, widths)
    return -(of_charges + jnp.sum(own, axis=-2))


def quadrupole(
    coefficients: Array, structure: Structure, basis: Basis, widths: Array | None = None
) -> jax.Array:
    r"""Traceless quadrupole :math:`\frac12 \sum q (3 r r^T - r^2)`, arguments as above.

    Buckingham's convention, about the centre of nuclear charge, as
    :func:`opml_jax.observables.quadrupole`.

    Returns:
      ``(..., 3, 3)`` in e Bohr^2.
    """
    layout = layout_of(structure, basis)
    positions = jnp.asarray(structure.positions)
    centred = positions - centre_of_nuclear_charge(structure)
    numbers = jnp.asarray(structure.numbers, centred.dtype)
    nuclei = einsum("a,ax,ay->xy", numbers, centred, centred)
    at = centred[layout.atom]
    second = einsum("...p,p,px,py->...xy", coefficients, charges(structure, basis, widths), at, at)
    vectors, atoms = _own_dipoles(coefficients, structure, basis, widths)
    mixed = einsum("...px,py->...xy", vectors, centred[atoms])
    second += mixed + jnp.swapaxes(mixed, -1, -2)
    own = np.flatnonzero((layout.l == 2) & (layout.m == -2))
    if len(own):
        t = _radial_moments(structure, basis, 2, widths)[own]
        five = jnp.sum(coefficients[..., own[:, None] + np.arange(5)] * t[:, None], axis=-2)
        # S_2 is the traceless part of r r^T in an orthonormal basis, times sqrt(3/2)
        second += math.sqrt(2 / 3) * e3nn_to_matrix(five)
    second = nuclei - second
    trace = jnp.trace(second, axis1=-2, axis2=-1)[..., None, None]
    return 1.5 * second - 0.5 * trace * jnp.eye(3, dtype=second.dtype)
