"""Functions of operators."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from ..errors import OpmlError, refusal
from ..numerics import Array, einsum
from .operator import Operator


def powers(operator: Operator, exponents: Sequence[int]) -> tuple[Operator, ...]:
    """Matrix powers ``V^k`` (plain products), each computed once.

    Powers raise body order: ``V_ii`` holds two centres, ``(V^k)_ii`` up to 2k (Nigam, Smidt,
    Dusson, arXiv:2602.15345).

    Args:
      operator: the operator V.
      exponents: positive integers, in any order.

    Raises:
      OpmlError: an exponent that is not a positive integer.
    """
    if not exponents or any(int(k) != k or k < 1 for k in exponents):
        raise OpmlError(refusal("powers", got=tuple(exponents), expected="positive integers"))
    found = {1: operator}
    for k in range(2, max(exponents) + 1):
        found[k] = found[k - 1] @ operator
    return tuple(found[int(k)] for k in exponents)


def power(operator: Operator, exponent: int) -> Operator:
    """One matrix power ``V^k``, by repeated squaring."""
    if int(exponent) != exponent or exponent < 1:
        raise OpmlError(refusal("exponent", got=exponent, expected="a positive integer"))
    if exponent == 1:
        return operator
    half = power(operator, exponent // 2)
    square = half @ half
    return square @ operator if exponent % 2 else square


def trace(a: Operator, b: Operator | None = None) -> Array:
    """``Tr A``, or ``Tr A B`` without forming the product."""
    if b is None:
        return jnp.trace(a.matrix, axis1=-2, axis2=-1)
    return einsum("...ij,...ji->...", a.matrix, a._same(b, "trace"))
