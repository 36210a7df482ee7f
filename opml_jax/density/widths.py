r"""Densities whose functions have widths of their own, from atom to atom.

Widths are factors of exponents (:mod:`opml_jax.basis.widths`): the "flexible basis" of DenSNet
(Bogojeski et al., arXiv:2604.24563). Functions with other widths are other functions, so
coefficients mean nothing without theirs. What knows a fixed basis alone takes a density from here:
as a whole the nearest one in a metric (:func:`without_widths`), or atom by atom
(:func:`on_own_atom`), where every angular momentum is on its own, in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from .. import integrals, lapack
from ..basis import Basis, scale_of_coefficients
from ..basis.shells import normalised_coefficients
from ..integrals.harmonics import stacked_harmonics
from ..numerics import Array, einsum
from ..structures import Structure
from .fitting import external_energies, metric_matrix, solve, with_electrons
from .moments import charges, electron_number


def without_widths(
    coefficients: Array,
    widths: Array,
    structure: Structure,
    aux_basis: Basis,
    metric: str = "coulomb",
) -> jax.Array:
    """The nearest density of the fixed functions, in a metric, with the same electrons.

    Args:
      coefficients: ``(naux,)`` of functions with ``widths``.
      widths: ``(n_shells,)`` factors of exponents.
      structure: molecule.
      aux_basis: auxiliary basis.
      metric: one of :data:`~opml_jax.density.METRICS`.

    Returns:
      ``(naux,)`` coefficients of the functions of the basis. Differentiable in everything.

    Raises:
      OpmlError: an unknown metric; widths of another shape, or not positive.
    """
    matrix = metric_matrix(structure, aux_basis, metric)
    kind = "overlap" if metric == "overlap" else "coulomb"
    right = integrals.cross_metric(structure, aux_basis, None, widths, kind) @ coefficients
    if metric == "hartree+external":
        fixed = external_energies(structure, aux_basis)
        right += fixed * (external_energies(structure, aux_basis, widths) @ coefficients)
    electrons = electron_number(coefficients, structure, aux_basis, widths)
    found = solve(matrix, right)
    return with_electrons(found, matrix, charges(structure, aux_basis), electrons)


def _primitives(basis: Basis, z: int, l: int) -> tuple[Array, Array]:
    """Exponents and coefficients ``(n_shells, n_primitives)`` of an element's shells of degree l.

    Coefficients are of unnormalised primitives; shells are padded by some of coefficient 0.
    """
    shells = [s for s in basis.element_shells(z) if s.l == l]
    most = max(len(s.exponents) for s in shells)
    exponents, coefficients = [], []
    for s in shells:
        a = jnp.asarray(s.exponents, float)
        fill = (0, most - len(a))
        exponents.append(jnp.pad(a, fill, constant_values=1.0))
        own = normalised_coefficients(l, a, jnp.asarray(s.coefficients, float))
        coefficients.append(jnp.pad(own, fill))
    return jnp.stack(exponents), jnp.stack(coefficients)


def overlap_on_atom(basis: Basis, z: int, l: int) -> jax.Array:
    """Overlap ``(n, n)`` of an element's functions of degree l and one m, on one atom."""
    a, d = _primitives(basis, z, l)
    p = l + 1.5
    pairs = math.gamma(p) / 2 * (a[:, :, None, None] + a) ** -p
    return einsum("np,npkq,kq->nk", d, pairs, d)


def on_own_atom(
    coefficients: Mapping[int, Array], widths: Mapping[int, Array], basis: Basis, z: int
) -> dict[int, jax.Array]:
    r"""The nearest functions of the basis on each atom alone, in the overlap metric.

    For each l the overlap on one atom is that of radial functions,
    :math:`\sum_{pq} N_p N_q\, \Gamma(l + \frac32) / 2 (a_p + b_q)^{l + 3/2}`, and no other l or m
    comes in. Electrons are kept only as far as the functions reach.

    Args:
      coefficients: ``{l: (n_atoms, n, 2 l + 1)}`` of atoms of one element.
      widths: ``{l: (n_atoms, n)}`` of theirs; an l that is not there has none.
      basis: auxiliary basis.
      z: the element.

    Returns:
      ``{l: (n_atoms, n, 2 l + 1)}``; differentiable in coefficients and widths.
    """
    out: dict[int, jax.Array] = {}
    for l, c in coefficients.items():
        if l not in widths:
            out[l] = jnp.asarray(c)
            continue
        a, d = _primitives(basis, z, l)
        p = l + 1.5
        front = math.gamma(p) / 2
        w = widths[l][..., None]
        b, e = a * w, d * scale_of_coefficients(l, w)
        cross = front * (a[:, :, None, None] + b[:, None, None]) ** -p
        right = einsum("np,inpkq,ikq,ikm->nim", d, cross, e, c)
        found = lapack.solve(overlap_on_atom(basis, z, l), right.reshape(len(a), -1), positive=True)
        out[l] = jnp.moveaxis(found.reshape(right.shape), 0, 1)
    return out


def of_atoms(
    coefficients: Mapping[int, Array],
    widths: Mapping[int, Array],
    basis: Basis,
    z: int,
    r: Array,
) -> jax.Array:
    """Density of the functions of each atom of one element, at points of its own.

    :func:`~opml_jax.density.on_points` for what is learned atom by atom: pure, differentiable in
    all but points, with nothing larger than atoms times shells times points.

    Args:
      coefficients: ``{l: (n_atoms, n, 2 l + 1)}``.
      widths: ``{l: (n_atoms, n)}``; an l that is not there has none.
      basis: auxiliary basis.
      z: the element.
      r: ``(n_atoms, n_points, 3)`` Bohr from the atom.

    Returns:
      ``(n_atoms, n_points)`` electrons per Bohr^3.
    """
    r2 = jnp.sum(r * r, axis=-1)[:, None, None]
    harmonics = stacked_harmonics(max(coefficients), *jnp.moveaxis(r, -1, 0))
    out = jnp.zeros(r.shape[:-1], r.dtype)
    for l, c in coefficients.items():
        a, d = _primitives(basis, z, l)
        d = d * np.sqrt((2 * l + 1) / (4 * np.pi))  # of Y_lm in terms of Racah's S_lm
        if l in widths:
            w = widths[l][..., None]
            a, d = a * w, d * scale_of_coefficients(l, w)
        radial = jnp.exp(-jnp.broadcast_to(a, (len(r), *a.shape[-2:]))[..., None] * r2)
        radial = jnp.sum(jnp.broadcast_to(d, radial.shape[:3])[..., None] * radial, axis=2)
        out += jnp.sum(radial * einsum("ikm,mig->ikg", c, harmonics[l]), axis=1)
    return out
