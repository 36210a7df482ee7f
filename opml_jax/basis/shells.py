"""Contracted real solid-harmonic Gaussian shells, and the basis that collects them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import gamma
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import BasisError, Code
from ..numerics import Array, is_concrete, pytree, replace, static
from ..structures.elements import symbol
from .spec import BasisSpec

MAX_L = 6
"""Highest angular momentum supported (i shells); auxiliary bases need h."""


@pytree
class Shell:
    r"""One contracted shell of angular momentum ``l``.

    :math:`\phi_m(r) = N \sum_p c_p N_p r^l e^{-\alpha_p r^2} Y_{lm}(\hat r)`, where N_p normalises
    the primitive and N the contraction (libcint's definition): ``coefficients`` refer to
    normalised primitives, and their common factor is irrelevant.

    Args:
      l: angular momentum.
      exponents: ``(n_primitives,)`` in Bohr^-2.
      coefficients: ``(n_primitives,)`` dimensionless.
    """

    l: int = static()
    exponents: Array
    coefficients: Array


@pytree
class Basis:
    """Shells for a set of elements: static names and angular momenta, traced numbers.

    A pytree whose leaves are exponents and contraction coefficients.

    Attributes:
      spec: what is static: name, elements, angular momenta, fingerprint (:class:`BasisSpec`).
      shells: one tuple of :class:`Shell` per element of ``spec.elements``, ascending in l.
    """

    spec: BasisSpec = static()
    shells: tuple[tuple[Shell, ...], ...]

    @classmethod
    def from_shells(cls, name: str, shells: Mapping[int, Sequence[Shell]]) -> Basis:
        """Basis from ``{atomic number: shells}``; shells are sorted by l, stably.

        Raises:
          BasisError: an element without shells, or an angular momentum above i.
        """
        elements = tuple(sorted(shells))
        ordered = []
        for z in elements:
            own = tuple(sorted(map(_steepest_first, shells[z]), key=lambda s: s.l))
            if not own:
                raise BasisError(
                    "basis",
                    got=f"no shells for {symbol(z)}",
                    expected="shells",
                    code=Code.BASIS_LACKS_ELEMENT,
                )
            if own[-1].l > MAX_L:
                raise BasisError(
                    "basis",
                    got=f"{name!r} with l={own[-1].l} on {symbol(z)}",
                    expected=f"angular momenta up to l={MAX_L} (i)",
                )
            ordered.append(own)
        ls = tuple(tuple(s.l for s in own) for own in ordered)
        sizes = tuple(tuple(len(s.exponents) for s in own) for own in ordered)
        spec = BasisSpec(name, elements, ls, sizes, tuple(fingerprint(own) for own in ordered))
        return cls(spec, tuple(ordered))

    @property
    def name(self) -> str:
        """Name of the basis set."""
        return self.spec.name

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers covered, ascending."""
        return self.spec.elements

    def element_shells(self, z: int) -> tuple[Shell, ...]:
        """Shells of atomic number ``z``.

        Raises:
          BasisError: ``z`` is not covered.
        """
        return self.shells[self.spec.element_index(z)]

    def flat(self) -> tuple[Array, Array]:
        """All primitives in one table, elements in order, closed by one that contributes nothing.

        Returns:
          Exponents and coefficients of unnormalised primitives ``r^l exp(-a r^2)`` of normalised
          shells, ``(n + 1,)`` each; NumPy unless something is traced.
        """
        shells = [s for own in self.shells for s in own]
        concrete = all(is_concrete(x) for s in shells for x in (s.exponents, s.coefficients))
        xp = np if concrete else jnp
        exponents = [xp.asarray(s.exponents, float) for s in shells]
        coefficients = [
            normalised_coefficients(s.l, a, xp.asarray(s.coefficients, float))
            for s, a in zip(shells, exponents, strict=True)
        ]
        return (
            xp.concatenate([*exponents, xp.ones(1)]),
            xp.concatenate([*coefficients, xp.zeros(1)]),
        )

    def replace(self, **changes: Any) -> Basis:
        """Copy with other ``shells``, e.g. traced exponents; the fingerprint stays the old one."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        return f"Basis({self.name!r}, {', '.join(symbol(z) for z in self.elements)})"


def _steepest_first(shell: Shell) -> Shell:
    """Primitives by descending exponent: libcint bounds a shell by its last one."""
    if not is_concrete(shell.exponents):
        return shell
    order = np.argsort(-np.asarray(shell.exponents), kind="stable")
    return replace(shell, exponents=shell.exponents[order], coefficients=shell.coefficients[order])


def fingerprint(shells: Sequence[Shell]) -> str:
    """Hash of the functions an element's shells span: equal for equal functions.

    Coefficients enter normalised and rounded to 9 digits, so the arbitrary common factor of
    a contraction and last-digit noise do not matter. 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for shell in shells:
        if not is_concrete(shell.exponents):
            return "traced"
        a = np.asarray(shell.exponents, np.float64)
        c = normalised_coefficients(shell.l, a, np.asarray(shell.coefficients, np.float64))
        order = np.argsort(-a, kind="stable")
        numbers = " ".join(f"{x:.8e} {y:.8e}" for x, y in zip(a[order], c[order], strict=True))
        digest.update(f"{shell.l} {numbers};".encode())
    return digest.hexdigest()[:16]


def _radial_overlap(l: int, p):
    """Integral of r^(2l+2) exp(-p r^2) over r from 0 to infinity."""
    return gamma(l + 1.5) / (2.0 * p ** (l + 1.5))


def normalised_coefficients(l: int, exponents, coefficients):
    """Coefficients of *unnormalised* primitives ``r^l exp(-a r^2)`` of the normalised shell.

    Helgaker, Jorgensen, Olsen, Molecular Electronic-Structure Theory, sec. 6.6.
    ``(n_primitives,)`` in, ``(n_primitives,)`` out; works on NumPy and JAX arrays.
    """
    a = exponents
    primitive = coefficients / _radial_overlap(l, 2.0 * a) ** 0.5
    norm2 = primitive @ _radial_overlap(l, a[:, None] + a[None, :]) @ primitive
    return primitive / norm2**0.5
