r"""Functions of operators: powers in three metrics, Chebyshev polynomials, resolvents.

The matrix of an operator in a non-orthogonal basis can be multiplied in three ways, which give
three families of powers (Nigam, Smidt, Dusson, arXiv:2602.15345, use the first):

=============  ==========================================  ======================================
metric         power k                                     is the matrix of
=============  ==========================================  ======================================
``"plain"``    :math:`V^k`                                 no power, but equivariant, and cheapest
``"overlap"``  :math:`V S^{-1} V \cdots V`                 the k-th power, in the same basis
``"lowdin"``   :math:`(S^{-1/2} V S^{-1/2})^k`             the k-th power, in Löwdin's basis
=============  ==========================================  ======================================
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .. import lapack
from ..basis import AOLayout
from ..errors import Code, OpmlError, one_of
from ..numerics import Array, einsum, is_concrete
from . import product
from .eigen import inverse_sqrt
from .operator import Operator
from .plans import is_tiled

METRICS = ("plain", "overlap", "lowdin")


def _positive(name: str, exponents: Sequence[int]) -> tuple[int, ...]:
    if not len(exponents) or any(int(k) != k or k < 1 for k in exponents):
        raise OpmlError(name, got=tuple(exponents), expected="positive integers")
    return tuple(int(k) for k in exponents)


def _metric(metric: str, overlap: Operator | None) -> None:
    one_of("metric", metric, METRICS, OpmlError)
    if metric != "plain" and overlap is None:
        raise OpmlError("overlap", got=None, expected=f"S, for the metric {metric!r}")


def powers(
    operator: Operator,
    exponents: Sequence[int],
    *,
    metric: str = "plain",
    overlap: Operator | None = None,
) -> tuple[Operator, ...]:
    """Powers of an operator, each computed once; even ones as squares.

    Powers raise body order: ``V_ii`` holds two centres, ``(V^k)_ii`` up to 2k (Nigam, Smidt,
    Dusson, arXiv:2602.15345).

    Args:
      operator: the operator V.
      exponents: positive integers, in any order.
      metric: ``"plain"``, ``"overlap"`` or ``"lowdin"``, see the module.
      overlap: S, for the last two (of a batch: with ``padding=1``).

    Raises:
      OpmlError: an exponent that is not a positive integer, an unknown metric, a metric without
        overlap or with operators restricted to a cutoff.
    """
    exponents = _positive("powers", exponents)
    _metric(metric, overlap)
    if metric == "plain" or overlap is None:
        found = _chain(operator, exponents)
    elif metric == "lowdin":
        return powers(lowdin(operator, overlap), exponents)
    else:
        factor, inner = cholesky(operator, overlap)
        found = {k: _outside(factor, w) for k, w in _chain(inner, exponents).items()}
    return tuple(found[k] for k in exponents)


def _chain(first: Operator, exponents: Sequence[int]) -> dict[int, Operator]:
    """Powers by exponent, those needed on the way included.

    Restricted products do not commute, so restricted odd powers are symmetrised.
    """
    found = {1: first}

    def make(k: int) -> Operator:
        if k not in found:
            found[k] = _commuting(make(k // 2), make(k - k // 2))
        return found[k]

    for k in sorted(exponents):
        make(k)
    return found


def _commuting(a: Operator, b: Operator) -> Operator:
    """Product of two polynomials of one operator."""
    symmetric = a.symmetric and b.symmetric
    if symmetric and a is not b and a.plan is not None:
        return a.multiply(b).symmetrised()
    return a.multiply(b, symmetric=symmetric)


def _unrestricted(what: str, *operators: Operator) -> None:
    for o in operators:
        if o.plan is not None:
            raise OpmlError(
                what,
                got=f"{o!r}",
                expected="unrestricted operators",
                hint="Inverses are not sparse: restrict(None) first.",
            )


def cholesky(operator: Operator, overlap: Operator) -> tuple[Array, Operator]:
    r"""``(L, W)`` with :math:`S = L L^T` and :math:`W = L^{-1} V L^{-T}`.

    Then :math:`V (S^{-1} V)^{k - 1} = L W^k L^T`.

    Raises:
      OpmlError: restricted operators, or an overlap that is not positive definite.
    """
    _unrestricted("operands of the overlap metric", operator, overlap)
    operator._same(overlap, "the overlap metric")
    factor = lapack.cholesky(overlap.values)
    if is_concrete(factor) and not np.isfinite(factor).all():
        raise OpmlError(
            "overlap",
            got="a matrix without Cholesky factor",
            expected="a positive definite one",
            hint="For a batch, make it with overlap(batch, basis, padding=1).",
            code=Code.SINGULAR,
        )
    half = jax.scipy.linalg.solve_triangular(factor, operator.values, lower=True)
    w = jax.scipy.linalg.solve_triangular(factor, jnp.swapaxes(half, -1, -2), lower=True)
    w = 0.5 * (w + jnp.swapaxes(w, -1, -2)) if operator.symmetric else jnp.swapaxes(w, -1, -2)
    return factor, Operator(w, operator.layout, symmetric=operator.symmetric)


def _outside(factor: Array, w: Operator) -> Operator:
    values = einsum("...ij,...jk,...lk->...il", factor, w.values, factor)
    return Operator(values, w.layout, symmetric=w.symmetric)


def lowdin(operator: Operator, overlap: Operator) -> Operator:
    r"""The operator in Löwdin's orthogonal basis, :math:`S^{-1/2} V S^{-1/2}`.

    Löwdin, J. Chem. Phys. 18, 365 (1950). Orthogonalised AOs keep their atoms and transform as
    the AOs do, so the layout is the same.

    Raises:
      OpmlError: restricted operators, or nearly linearly dependent AOs
        (:func:`~opml_jax.operators.inverse_sqrt`).
    """
    _unrestricted("operands of lowdin", operator, overlap)
    operator._same(overlap, "lowdin")
    x = inverse_sqrt(overlap.values)
    values = einsum("...ij,...jk,...kl->...il", x, operator.values, x)
    if operator.symmetric:
        values = 0.5 * (values + jnp.swapaxes(values, -1, -2))
    return Operator(values, operator.layout, symmetric=operator.symmetric)


REACH = 1e-8
"""Floor of squared overlaps: blocks of pairs weaker than its root are not lifted any further."""


def lifted(operator: Operator, overlap: Operator) -> Operator:
    r"""The operator with its blocks over the root of how much their atoms overlap.

    :math:`V_{ij} / s_{ij}^{1/2}` with :math:`s_{ij}^2 = \epsilon + \sum_{ab} S_{ia, jb}^2` over the
    s functions of atoms i and j: blocks of far pairs, which decay as the overlap does, are made
    visible beside those of near ones, and still vanish smoothly.

    Raises:
      OpmlError: restricted operators.
    """
    return _times_overlaps(operator, overlap, -0.5, "lifted")


def damped(operator: Operator, overlap: Operator) -> Operator:
    r"""The operator with its blocks times how much their atoms overlap.

    :math:`V_{ij} s_{ij}` with :math:`s_{ij}` as in :func:`lifted`: far pairs count less, as radial
    scaling has it in descriptors of densities (Willatt, Musil, Ceriotti, Phys. Chem. Chem. Phys.
    20, 29661 (2018)). Energies across compositions depend on bonds first.

    Raises:
      OpmlError: restricted operators.
    """
    return _times_overlaps(operator, overlap, 1.0, "damped")


def _times_overlaps(operator: Operator, overlap: Operator, exponent: float, name: str) -> Operator:
    """Blocks times a power of :math:`s_{ij}`."""
    _unrestricted(f"operands of {name}", operator, overlap)
    operator._same(overlap, name)
    layout = operator.layout
    n_s, width = layout.spec.slot_counts[0], layout.spec.n_slots

    def molecule(values, s, slots, ao_slot):
        # sums over atoms as products with one-hot vectors: gathers are slow, their tangents more
        own = jax.nn.one_hot(ao_slot // width, len(slots), dtype=values.dtype)
        round_ones = own * (ao_slot % width < n_s)[:, None]
        square = einsum("pi,pq,qj->ij", round_ones, s**2, round_ones)
        return values * einsum("pi,ij,qj->pq", own, (square + REACH) ** (exponent / 2), own)

    if not isinstance(layout, AOLayout):
        molecule = jax.vmap(molecule)
    slots, ao_slot = jnp.asarray(layout.slots), jnp.asarray(layout.ao_slot)
    values = molecule(operator.values, overlap.values, slots, ao_slot)
    return Operator(values, layout, symmetric=operator.symmetric)


def power(operator: Operator, exponent: int) -> Operator:
    """One matrix power ``V^k``, by repeated squaring."""
    return powers(operator, (exponent,))[0]


def chebyshev(
    operator: Operator, degrees: Sequence[int], bounds: tuple[float, float]
) -> tuple[Operator, ...]:
    r"""Chebyshev polynomials :math:`T_n(X)` of the operator scaled to [-1, 1].

    :math:`X = (2 V - (a + b)) / (b - a)`. As features they are far better conditioned than powers,
    and span the same space. Each is a product of two of about half its degree:
    :math:`T_{m+n} = 2 T_m T_n - T_{|m-n|}`.

    Args:
      operator: V, best in an orthogonal basis (:func:`lowdin`).
      degrees: not negative, in any order; 0 is the identity.
      bounds: a and b, Hartree: numbers chosen once for a basis (:func:`spectral_bounds`), not
        eigenvalues of this molecule, so that polynomials are smooth in the geometry and those of
        two distant molecules are those of each.

    Raises:
      OpmlError: negative degrees, or bounds that are not ascending.
    """
    if not len(degrees) or any(int(n) != n or n < 0 for n in degrees):
        raise OpmlError("degrees", got=tuple(degrees), expected="integers from 0 up")
    low, high = bounds
    if not low < high:
        raise OpmlError("bounds", got=bounds, expected="two ascending numbers")
    one = identity(operator)
    found = {0: one, 1: (operator * 2.0 - one * (low + high)) / (high - low)}

    def make(n: int) -> Operator:
        if n not in found:
            a, b = make(n // 2), make(n - n // 2)
            found[n] = 2.0 * _commuting(a, b) - make(n % 2)
        return found[n]

    return tuple(make(int(n)) for n in degrees)


def identity(like: Operator) -> Operator:
    """Unit matrix in the layout and storage of another operator (zero for padding of a batch)."""
    eye = jnp.broadcast_to(jnp.eye(like.nao, dtype=like.values.dtype), (like.nao, like.nao))
    mask = getattr(like.layout, "ao_mask", None)
    if mask is not None:
        eye = eye * jnp.asarray(mask)[..., None]
    return Operator(eye, like.layout, symmetric=True).restrict(like.plan)


def resolvent(
    operator: Operator, z: complex | float, *, overlap: Operator | None = None
) -> Operator:
    r"""Resolvent :math:`(z S - V)^{-1}`, or :math:`(z - V)^{-1}` without an overlap.

    A rational function of V that mixes all powers: each pole z sees the spectrum around it, as
    the filters of matrix function networks do (Batatia et al., arXiv:2310.10434).

    Args:
      operator: V.
      z: pole: complex, or real outside the spectrum (above 0 for a potential of nuclei).
      overlap: S (of a batch: with ``padding=1``).

    Raises:
      OpmlError: operators restricted to a cutoff: the resolvent is not sparse.
    """
    _unrestricted("operands of resolvent", operator, *([] if overlap is None else [overlap]))
    unit = jnp.eye(operator.nao, dtype=operator.values.dtype)
    s = unit if overlap is None else operator._same(overlap, "resolvent")
    shifted = z * s - operator.values
    right = jnp.broadcast_to(unit, shifted.shape).astype(shifted.dtype)
    inverse = lapack.solve(shifted, right)
    mask = getattr(operator.layout, "ao_mask", None)
    if mask is not None:  # padding has no resolvent
        inverse = jnp.where(jnp.asarray(mask)[..., :, None], inverse, 0)
    return Operator(inverse, operator.layout, symmetric=operator.symmetric)


def commutator(a: Operator, b: Operator) -> Operator:
    """``A B - B A``."""
    if a.symmetric and b.symmetric:
        forward = a @ b
        return forward - forward.T
    return a @ b - b @ a


def trace(a: Operator, b: Operator | None = None) -> jax.Array:
    """``Tr A``, or ``Tr A B`` without forming the product."""
    if b is not None:
        y = a._same(b, "trace")
        if a.storage == "tiled":
            return jnp.sum(a.values * product.transpose(y, a.plan))
        return einsum("...ij,...ji->...", a.values, y)
    if is_tiled(a.plan):
        return jnp.trace(a.values[a.plan.lookup.diagonal()], axis1=-2, axis2=-1).sum()
    return jnp.trace(a.values, axis1=-2, axis2=-1)
