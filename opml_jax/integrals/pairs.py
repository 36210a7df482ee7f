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
import itertools
import math

import jax.numpy as jnp
import numpy as np

from ..numerics import Array, einsum, pytree, static
from .harmonics import addition, product, stacked_harmonics
from .hermite import components, gaussian_radial, starts


@dataclasses.dataclass(frozen=True)
class Coupling:
    """The constants of one pair of angular momenta, up to ``i + j = degree``.

    A *product* is what is contracted: exponent factors times a component of H. A *column* is a
    contracted product times a harmonic of R.

    Attributes:
      power_a: ``(n_products,)`` power of 1/2a in each product.
      power_b: ``(n_products,)`` power of 1/2b.
      radial: ``(n_products,)`` block (l, k) of the derivative of exp(-mu R^2).
      row: ``(n_products,)`` component of H.
      product: ``(n_columns,)`` product entering each column of the table.
      harmonic: ``(n_columns,)`` flat index l^2 + m of the harmonic of R that multiplies it.
      table: ``((2 la + 1) (2 lb + 1), n_columns)``.
    """

    power_a: np.ndarray
    power_b: np.ndarray
    radial: np.ndarray
    row: np.ndarray
    product: np.ndarray
    harmonic: np.ndarray
    table: np.ndarray


@functools.cache
def coupling(la: int, lb: int, degree: int) -> Coupling:
    """Tables for shells of angular momenta ``la`` and ``lb``."""
    blocks = {block: i for i, block in enumerate(components(la + lb))}
    first = starts(la + lb)
    norm = math.sqrt((2 * la + 1) * (2 * lb + 1)) / (4 * math.pi)
    factors, products, harmonic, columns = [], [], [], []
    for i, j in itertools.product(range(la + 1), range(lb + 1)):
        if i + j > degree:
            continue
        up_a, up_b = addition(la, i), addition(lb, j)
        sign = (-1) ** (lb - j) * norm
        for l_r, in_r in product(la - i, lb - j).items():
            block = blocks[l_r, (la - i + lb - j - l_r) // 2]
            for l_p, in_p in product(i, j).items():
                # m, n of the shells; c of H; d of S(R)
                table = sign * np.einsum("mab,nef,aec,bfd->cdmn", up_a, up_b, in_p, in_r)
                row = first[l_p, (i + j - l_p) // 2]
                for c, of_c in enumerate(table):
                    for d, entries in enumerate(of_c):
                        if entries.any():
                            products.append(len(factors))
                            harmonic.append(l_r * l_r + d)
                            columns.append(entries.ravel())
                    factors.append((la - i, lb - j, block, row + c))
    indices = (*np.array(factors).T, products, harmonic)
    return Coupling(*(np.array(x, np.int32) for x in indices), table=np.array(columns).T)


@dataclasses.dataclass(frozen=True)
class PairClass:
    """Which part of a :class:`PairList` belongs to one pair of angular momenta."""

    la: int
    lb: int
    primitives: tuple[int, int]
    shells: tuple[int, int]


def classes_of(counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pairs of angular momenta that occur, the larger one first."""
    ls = [l for l, n in enumerate(counts) if n]
    return [(la, lb) for la in ls for lb in ls if la >= lb]


@functools.lru_cache(maxsize=256)
def all_pairs(n_a: int, n_b: int, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of primitives; the lower triangle when both are of one kind."""
    if same:
        i, j = (x.astype(np.int32) for x in np.tril_indices(n_a))
        return i, j
    i, j = np.divmod(np.arange(n_a * n_b, dtype=np.int32), np.int32(n_b))
    return i, j


def shell_pair(i, j, n_b: int, same: bool):
    """Number of a pair of shells; i >= j when both are of one kind."""
    return i * (i + 1) // 2 + j if same else i * n_b + j


@pytree
class PairList:
    """Primitive pairs of B molecules, of all classes with one sum of angular momenta.

    Attributes:
      order: la + lb.
      classes: where each class is.
      a: ``(B, n)`` exponents of the first primitives.
      b: ``(B, n)`` of the second.
      scale: ``(B, n)`` coefficients times ``(pi / p)^1.5 exp(-mu R^2)``.
      centre: ``(3, B, n)`` P.
      distance2: ``(B, n)`` R^2.
      target: ``(B, n)`` pair of shells, counted within its class.
      separation: ``(3, B, n_shell_pairs)`` R of the pairs of shells.
    """

    order: int = static()
    classes: tuple[PairClass, ...] = static()
    a: Array
    b: Array
    scale: Array
    centre: Array
    distance2: Array
    target: Array
    separation: Array

    @property
    def variance(self) -> Array:
        """``(B, n)`` variance 1 / 2p of the pair densities."""
        return 0.5 / (self.a + self.b)


def _powers(x: Array, n: int) -> Array:
    out = [jnp.ones_like(x)]
    for _ in range(n):
        out.append(out[-1] * x)
    return jnp.stack(out)


def assemble(
    pairs: PairList, potential: Array | None, degree: int, laplacians: int
) -> dict[tuple[int, int], Array]:
    """Matrix elements of all pairs of shells.

    Args:
      pairs: the primitive pairs.
      potential: ``(..., n_rows, B, n)`` components of the operator's potential, rows of
        :func:`.hermite.components`; None for the unit operator.
      degree: highest degree of these components that does not vanish.
      laplacians: Laplacians in R applied to the result: 1 (and a factor -1/2) is kinetic energy.

    Returns:
      For each class ``(..., (2 la + 1) (2 lb + 1), B, n_shell_pairs)``.
    """
    return couple(pairs, contract(pairs, potential, degree, laplacians), degree)


def contract(pairs: PairList, potential: Array | None, degree: int, laplacians: int) -> list[Array]:
    """Products summed over primitives: ``(..., n_products, B, n_shell_pairs)`` for each class."""
    batch = pairs.distance2.shape[0]
    out = []
    for own, products in zip(pairs.classes, factors(pairs, degree, laplacians), strict=True):
        if potential is not None:
            row = coupling(own.la, own.lb, min(degree, pairs.order)).row
            products = products * potential[..., row, :, slice(*own.primitives)]
        n_shell_pairs = own.shells[1] - own.shells[0]
        lead = products.shape[:-2]
        total = jnp.zeros((*lead, batch * n_shell_pairs), products.dtype)
        products = products.reshape(*lead, -1)
        target = shell_pairs_of(pairs, own)
        total = total.at[..., target].add(products, mode="promise_in_bounds")
        out.append(total.reshape(*lead, batch, n_shell_pairs))
    return out


def factors(pairs: PairList, degree: int, laplacians: int) -> list[Array]:
    """What multiplies components of H in products: ``(n_products, B, n)`` for each class."""
    order, v = pairs.order, pairs.variance
    mu = 2 * pairs.a * pairs.b * v
    radial = jnp.stack(
        [
            pairs.scale
            * v ** (order - l - 2 * k)
            * gaussian_radial(l, k + laplacians, mu, pairs.distance2)
            for l, k in components(order)
        ]
    )
    in_a = _powers(0.5 / pairs.a, max(c.la for c in pairs.classes))
    in_b = _powers(0.5 / pairs.b, max(c.lb for c in pairs.classes))
    out = []
    for own in pairs.classes:
        c, part = coupling(own.la, own.lb, min(degree, order)), slice(*own.primitives)
        products = in_a[c.power_a, :, part] * in_b[c.power_b, :, part]
        out.append(products * radial[c.radial, :, part])
    return out


def shell_pairs_of(pairs: PairList, own: PairClass) -> Array:
    """``(B n,)`` pair of shells of each primitive pair of a class, counted over all molecules."""
    batch, n_shell_pairs = pairs.distance2.shape[0], own.shells[1] - own.shells[0]
    first = n_shell_pairs * np.arange(batch, dtype=np.int32)[:, None]
    return (pairs.target[:, slice(*own.primitives)] + first).reshape(-1)


def couple(pairs: PairList, contracted: list[Array], degree: int) -> dict[tuple[int, int], Array]:
    """Contracted products to matrix elements of spherical shells."""
    harmonics = jnp.concatenate(stacked_harmonics(pairs.order, *pairs.separation))
    out = {}
    for own, total in zip(pairs.classes, contracted, strict=True):
        c = coupling(own.la, own.lb, min(degree, pairs.order))
        columns = total[..., c.product, :, :] * harmonics[c.harmonic, :, slice(*own.shells)]
        table = c.table.astype(columns.dtype)
        out[own.la, own.lb] = einsum("st,...tbn->...sbn", table, columns)
    return out
