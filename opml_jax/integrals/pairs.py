r"""From potentials of primitive pairs to matrix elements of contracted shells.

A solid-harmonic Gaussian is a derivative of an s function, :math:`S_l(r_A) e^{-a r_A^2} =
S_l(\nabla_A) e^{-a r_A^2} / (2a)^l`. With :math:`\nabla_A = \frac ap \nabla_P + \nabla_R` and
:math:`\nabla_B = \frac bp \nabla_P - \nabla_R` (R = A - B, P the centre of the pair) the addition
theorem of solid harmonics splits every matrix element into components H of the operator's
potential at P (:mod:`.hermite`), derivatives of :math:`e^{-\mu R^2}`, and constants:

.. math::
    \langle a m | O | b m' \rangle = \Big(\frac\pi p\Big)^{3/2} (2a)^{-l_a} (2b)^{-l_b}
    \sum_{ij} \Big(\frac ap\Big)^i \Big(\frac bp\Big)^j (-1)^{l_b-j}
    \sum T\; H_{lk}(P)\; S_{l''}(R)\, g_{l''k''}(\mu, R^2) e^{-\mu R^2}

Everything that depends on the exponents is scalar, so contraction comes before the angular
momenta are coupled: that last, largest step is done once for a pair of shells.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np

from ..numerics import Array, einsum
from .harmonics import addition, product, solid_harmonics
from .hermite import gaussian_radial, starts


@dataclasses.dataclass(frozen=True)
class Term:
    """One factor that depends on exponents: powers of a/p and b/p, harmonic in R."""

    i: int
    j: int
    l: int  # of S_l(R)
    k: int  # Laplacians on exp(-mu R^2)


@dataclasses.dataclass(frozen=True)
class Coupling:
    """The constants of one pair of angular momenta, up to ``i + j = degree``.

    Attributes:
      terms: exponent factors.
      factor: ``(n_products,)`` term of each contracted product.
      row: ``(n_products,)`` component of H of each.
      product: ``(n_columns,)`` contracted product entering each column of the table.
      harmonic: ``(n_columns,)`` flat index l^2 + m of the harmonic of R that multiplies it.
      table: ``((2 la + 1) (2 lb + 1), n_columns)``.
    """

    terms: tuple[Term, ...]
    factor: np.ndarray
    row: np.ndarray
    product: np.ndarray
    harmonic: np.ndarray
    table: np.ndarray


@functools.cache
def coupling(la: int, lb: int, degree: int) -> Coupling:
    """Tables for shells of angular momenta ``la`` and ``lb``."""
    terms: list[Term] = []
    factor, row, products, harmonic, columns = [], [], [], [], []
    first = starts(la + lb)
    norm = math.sqrt((2 * la + 1) * (2 * lb + 1)) / (4 * math.pi)
    for i in range(la + 1):
        for j in range(lb + 1):
            if i + j > degree:
                continue
            up = addition(la, i), addition(lb, j)
            sign = (-1) ** (lb - j) * norm
            for l_r, in_r in product(la - i, lb - j).items():
                terms.append(Term(i, j, l_r, (la - i + lb - j - l_r) // 2))
                for l_p, in_p in product(i, j).items():
                    # m, m' of the shells; c of H; d of S(R)
                    table = sign * np.einsum("mab,nef,aec,bfd->mncd", *up, in_p, in_r)
                    start = first[l_p, (i + j - l_p) // 2]
                    for c in range(2 * l_p + 1):
                        for d in range(2 * l_r + 1):
                            if not table[:, :, c, d].any():
                                continue
                            products.append(len(factor))
                            harmonic.append(l_r * l_r + d)
                            columns.append(table[:, :, c, d].ravel())
                        factor.append(len(terms) - 1)
                        row.append(start + c)
    return Coupling(
        tuple(terms), *(np.array(x) for x in (factor, row, products, harmonic)), np.array(columns).T
    )


@dataclasses.dataclass(frozen=True)
class PairList:
    """Primitive pairs of one class (la, lb) of one molecule, with what depends on them alone.

    Attributes:
      la: larger angular momentum.
      lb: smaller one.
      a: ``(n,)`` exponents of the first primitives.
      b: ``(n,)`` of the second.
      weight: ``(n,)`` product of coefficients; half for a primitive paired with itself.
      centre: ``(3, n)`` P.
      distance2: ``(n,)`` R^2.
      target: ``(n,)`` pair of shells each contributes to.
      separation: ``(3, n_shell_pairs)`` R of the pairs of shells.
    """

    la: int
    lb: int
    a: Array
    b: Array
    weight: Array
    centre: Array
    distance2: Array
    target: Array
    separation: Array

    @property
    def variance(self) -> Array:
        """``(n,)`` variance 1 / 2p of the pair densities."""
        return 0.5 / (self.a + self.b)


def _powers(x: Array, n: int) -> list[Array]:
    out = [jnp.ones_like(x)]
    for _ in range(n):
        out.append(out[-1] * x)
    return out


def assemble(pairs: PairList, potential: Array | None, degree: int, laplacians: int = 0) -> Array:
    """Matrix elements of all pairs of shells of a class.

    Args:
      pairs: the primitive pairs.
      potential: ``(..., n_rows, n)`` components of the operator's potential, rows of
        :func:`.hermite.components`; None for the unit operator.
      degree: highest degree of these components that does not vanish.
      laplacians: Laplacians in R applied to the result: 1 (and a factor -1/2) is kinetic energy.

    Returns:
      ``(..., (2 la + 1) (2 lb + 1), n_shell_pairs)``.
    """
    la, lb = pairs.la, pairs.lb
    c = coupling(la, lb, min(degree, la + lb))
    a, b = pairs.a, pairs.b
    dtype = pairs.centre.dtype
    p = a + b
    inverse = 1 / p
    mu = a * b * inverse
    scale = pairs.weight * jnp.exp(-mu * pairs.distance2) * (math.pi * inverse) * inverse**0.5
    scale = scale * math.sqrt(math.pi) * (0.5 / a) ** la * (0.5 / b) ** lb
    in_a, in_b = _powers(a * inverse, la), _powers(b * inverse, lb)
    factors = jnp.stack(
        [
            scale
            * (in_a[t.i] * in_b[t.j])
            * gaussian_radial(t.l, t.k + laplacians, mu, pairs.distance2)
            for t in c.terms
        ]
    )
    products = factors[c.factor]
    if potential is not None:
        products = products * potential[..., c.row, :]
    n_shell_pairs = pairs.separation.shape[-1]
    contracted = jnp.zeros((*products.shape[:-1], n_shell_pairs), dtype)
    contracted = contracted.at[..., pairs.target].add(products)
    lmax = max(t.l for t in c.terms)
    harmonics = solid_harmonics(lmax, *pairs.separation)
    harmonics = jnp.stack([s for of_l in harmonics for s in of_l])
    columns = contracted[..., c.product, :] * harmonics[c.harmonic]
    return einsum("st,...tn->...sn", c.table.astype(dtype), columns)
