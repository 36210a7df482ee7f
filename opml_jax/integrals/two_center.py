r"""Integrals between single functions: overlap, Coulomb repulsion, values and potentials at points.

What density fitting needs, where the density is a sum of functions on atoms and not of products of
them. A solid-harmonic Gaussian is a derivative of an s function (see :mod:`.pairs`), so with
R = A - B every integral over two centres is a derivative of one function K of R,

.. math::
    \langle a m | O | b m' \rangle = \frac{(-1)^{l_b}}{(2a)^{l_a} (2b)^{l_b}} S_{l_a m}(\nabla)
    S_{l_b m'}(\nabla) K(R) = \frac{(-1)^{l_b}}{(2a)^{l_a} (2b)^{l_b}} \sum_L D^L_{m m' M} S_{LM}(R)
    \Big(\frac1R \frac{d}{dR}\Big)^L \nabla^{2k} K, \quad 2k = l_a + l_b - L,

by the product rule of harmonics and Hobson's theorem. For the repulsion K is
:math:`(\pi^2 / ab)^{3/2}\, \mathrm{erf}(R / \sqrt{2v}) / R` with v = 1/2a + 1/2b, for the overlap
:math:`(\pi / p)^{3/2} e^{-\mu R^2}`.

All take ``widths``, a positive factor of the exponents of each shell of the molecule (see
:mod:`opml_jax.basis.widths`); functions stay normalised. None: those of the basis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import (
    AOLayout,
    Basis,
    BatchLayout,
    check_widths,
    layout_of,
    scale_of_coefficients,
)
from ..errors import OpmlError, one_of
from ..numerics import Array, einsum, matmul
from ..structures import Structure, StructureBatch
from .harmonics import product, stacked_harmonics
from .hermite import components, gaussian_radial, radial

Radial = Callable[[int, Array, Array, Array], dict[tuple[int, int], Array]]


class _Functions:
    """Shells and primitives of a molecule, sorted by angular momentum.

    Of one molecule of a batch, under ``jax.vmap``, they are data, and some are padding.
    """

    def __init__(self, layout: AOLayout | BatchLayout, basis: Basis, positions: Array, widths=None):
        positions, topology = jnp.asarray(positions), layout.primitives
        exponents, coefficients = (jnp.asarray(x, positions.dtype) for x in basis.flat())
        counts = topology.shell_counts
        table = _joined(topology.table)
        self.l = np.repeat(np.arange(len(counts)), counts)  # of each shell
        self.first = np.concatenate([[0], np.cumsum(counts)])
        self.of_primitive = _joined(
            [s + n for s, n in zip(topology.shell, self.first, strict=False)]
        )
        self.l_of_primitive = np.repeat(np.arange(len(counts)), topology.counts)
        self.centres = positions[_joined(topology.shell_atom)]  # (n_shells, 3)
        self.exponents = exponents[table]
        self.coefficients = coefficients[table] * _NORMS[self.l_of_primitive]
        if widths is not None:
            assert isinstance(layout, AOLayout)  # a batch has none
            check_widths(layout, widths)
            by_l = np.argsort(layout.shell_ls, kind="stable")[self.of_primitive]
            own = jnp.asarray(widths, positions.dtype)[by_l]
            self.exponents = self.exponents * own
            self.coefficients *= scale_of_coefficients(self.l_of_primitive, own)
        start = np.concatenate([[0], np.cumsum(2 * self.l + 1)])
        l, m, shell = topology.ao.T
        self.is_padded = isinstance(layout, BatchLayout)
        if self.is_padded:
            column = jnp.asarray(start)[jnp.asarray(self.first)[l] + shell] + m
            self.order = jnp.where(l < 0, start[-1], column)
        else:
            self.order = start[self.first[l] + shell] + m

    @property
    def ls(self) -> list[int]:
        """Angular momenta that occur."""
        return sorted(set(self.l.tolist()))

    def shells(self, l: int) -> slice:
        """Those of one angular momentum."""
        return slice(self.first[l], self.first[l + 1])

    def contracted(self, x: Array) -> Array:
        """Sum over the primitives of each shell: ``(..., n_primitives)``."""
        if not self.is_padded and len(self.of_primitive) == len(self.l):  # nothing is contracted
            return x
        member = self.of_primitive[:, None] == np.arange(len(self.l))
        return matmul(x, jnp.asarray(member, x.dtype))


def _of_molecule(structure: Structure, basis: Basis, widths: Array | None = None) -> _Functions:
    """The functions of one molecule."""
    if not isinstance(structure, Structure):
        raise OpmlError(
            "structure",
            got=type(structure).__name__,
            expected="one Structure",
            hint="Use jax.vmap over positions for geometries of one molecule.",
        )
    return _Functions(layout_of(structure, basis), basis, structure.positions, widths)


def _joined(parts: Sequence[Array]) -> Array:
    """Index arrays in one; NumPy's unless they are data."""
    xp = np if all(isinstance(x, np.ndarray) for x in parts) else jnp
    return xp.concatenate(parts)


_NORMS = np.sqrt((2 * np.arange(20) + 1) / (4 * np.pi))  # of Y_lm in terms of Racah's S_lm


def _repulsion(order: int, a: Array, b: Array, r2: Array) -> dict[tuple[int, int], Array]:
    front = (math.pi**2 / (a * b)) ** 1.5
    return {k: front * x for k, x in radial(order, r2, 0.5 / a + 0.5 / b, up=False).items()}


def _overlap(order: int, a: Array, b: Array, r2: Array) -> dict[tuple[int, int], Array]:
    mu = a * b / (a + b)
    front = (math.pi / (a + b)) ** 1.5 * jnp.exp(-mu * r2)
    return {(l, k): front * gaussian_radial(l, k, mu, r2) for l, k in components(order)}


def _matrix(own: _Functions, kernel: Radial, other: _Functions | None = None) -> jax.Array:
    """Of functions with each other (a symmetric matrix), or with others of the same basis."""
    symmetric, other = other is None, other or own
    top = 2 * own.ls[-1]
    r = own.centres[:, None] - other.centres
    r2 = jnp.sum(r * r, axis=-1)[own.of_primitive][:, other.of_primitive]
    l = own.l_of_primitive
    rows, columns = (x.coefficients / (2 * x.exponents) ** l for x in (own, other))
    weights = rows[:, None] * columns * (-1.0) ** l
    # One evaluation for all pairs, to the order of the highest: far less to compile than each own.
    found = kernel(top, own.exponents[:, None], other.exponents, r2)
    found = own.contracted(jnp.stack([found[k] * weights for k in components(top)]))
    found = jnp.swapaxes(own.contracted(jnp.swapaxes(found, -1, -2)), -1, -2)
    row = {k: i for i, k in enumerate(components(top))}
    harmonics = jnp.concatenate(stacked_harmonics(top, *jnp.moveaxis(r, -1, 0)))
    blocks: dict[tuple[int, int], Array] = {}
    for la in own.ls:
        for lb in (lb for lb in own.ls if lb <= la or not symmetric):
            tables = product(la, lb)
            harmonic = np.concatenate([l * l + np.arange(2 * l + 1) for l in tables])
            radials = np.concatenate([[row[l, (la + lb - l) // 2]] * (2 * l + 1) for l in tables])
            pairs = slice(None), own.shells(la), own.shells(lb)
            columns = harmonics[pairs][harmonic] * found[pairs][radials]
            table = np.concatenate([*tables.values()], axis=-1).astype(columns.dtype)
            block = einsum("mnk,kab->ambn", table, columns)
            blocks[la, lb] = block.reshape(block.shape[0] * block.shape[1], -1)
    rows = [
        jnp.concatenate([blocks[i, j] if (i, j) in blocks else blocks[j, i].T for j in own.ls], 1)
        for i in own.ls
    ]
    return jnp.concatenate(rows)[own.order][:, own.order]


def coulomb_metric(structure: Structure, basis: Basis, widths: Array | None = None) -> jax.Array:
    r"""Repulsion of single functions, :math:`(p|q) = \int\!\int p(r)\, q(r') / |r - r'|`.

    Differentiable in positions, exponents, coefficients and widths, to any order. libcint:
    ``int2c2e``.

    Args:
      structure: molecule, positions in Bohr.
      basis: an auxiliary basis that covers its elements.
      widths: ``(n_shells,)`` factors of exponents, or None.

    Returns:
      ``(naux, naux)`` Hartree, in the library's AO order.

    Raises:
      OpmlError: a batch instead of a molecule; widths of another shape, or not positive.
      BasisError: an element the basis does not cover.
    """
    return _matrix(_of_molecule(structure, basis, widths), _repulsion)


def overlap_metric(structure: Structure, basis: Basis, widths: Array | None = None) -> jax.Array:
    """Overlap of single functions, arguments as for :func:`coulomb_metric`.

    The same matrix as :func:`~opml_jax.integrals.overlap`, cheaper to compile for high angular
    momenta.

    Returns:
      ``(naux, naux)``.
    """
    return _matrix(_of_molecule(structure, basis, widths), _overlap)


CROSS = {"coulomb": _repulsion, "overlap": _overlap}
"""Kinds of :func:`cross_metric`."""


def cross_metric(
    structure: Structure,
    basis: Basis,
    widths: Array | None,
    others: Array | None = None,
    kind: str = "coulomb",
) -> jax.Array:
    """Repulsion or overlap of functions of one basis in two sets of widths.

    Args:
      structure: molecule, positions in Bohr.
      basis: auxiliary basis.
      widths: ``(n_shells,)`` of the rows' functions, or None.
      others: likewise, of the columns'.
      kind: ``"coulomb"`` or ``"overlap"``.

    Returns:
      ``(naux, naux)`` Hartree, or 1.

    Raises:
      OpmlError: an unknown kind; and as :func:`coulomb_metric`.
    """
    one_of("kind", kind, CROSS, OpmlError)
    rows, columns = (_of_molecule(structure, basis, w) for w in (widths, others))
    return _matrix(rows, CROSS[kind], columns)


def _at_points(own: _Functions, points: Array, function: Callable) -> jax.Array:
    r = points[:, None] - own.centres  # (n_points, n_shells, 3)
    r2 = jnp.sum(r * r, axis=-1)[:, own.of_primitive]
    radials = own.contracted(function(own, r2) * own.coefficients)
    harmonics = stacked_harmonics(own.ls[-1], *jnp.moveaxis(r, -1, 0))
    columns = [
        einsum("gs,mgs->gsm", radials[:, part], harmonics[l][..., part]).reshape(len(points), -1)
        for l, part in ((l, own.shells(l)) for l in own.ls)
    ]
    nothing = [jnp.zeros((len(points), 1), r.dtype)] if own.is_padded else []
    return jnp.concatenate([*columns, *nothing], axis=1)[:, own.order]


def values(
    structure: Structure | StructureBatch,
    basis: Basis,
    points: Array,
    widths: Array | None = None,
) -> jax.Array:
    """Values of basis functions at points; differentiable in everything. libcint: ``eval_gto``.

    Args:
      structure: molecule, positions in Bohr, or a batch.
      basis: orbital or auxiliary basis.
      points: ``(n_points, 3)`` Bohr; of a batch ``(n_structures, n_points, 3)``.
      widths: ``(n_shells,)`` factors of exponents, of a molecule alone, or None.

    Returns:
      ``(n_points, nao)`` Bohr^-1.5; of a batch with a leading axis, 0 for padding.

    Raises:
      OpmlError: a batch and widths; widths of another shape, or not positive.
      BasisError: an element the basis does not cover.
    """
    if isinstance(structure, StructureBatch):
        if widths is not None:
            got = f"{structure!r} and widths"
            raise OpmlError("structure", got=got, expected="one Structure, or no widths")
        layout = layout_of(structure, basis)

        def of_one(layout, positions, points):
            return _at_points(_Functions(layout, basis, positions), points, _gaussians)

        return jax.vmap(of_one)(layout, structure.positions, points)
    return _at_points(_of_molecule(structure, basis, widths), points, _gaussians)


def _gaussians(own: _Functions, r2: Array) -> jax.Array:
    return jnp.exp(-own.exponents * r2)


def potentials(
    structure: Structure, basis: Basis, points: Array, widths: Array | None = None
) -> jax.Array:
    r"""Potentials of basis functions as charge densities, :math:`\int \phi(r') / |r - r'|`.

    Arguments as for :func:`values`; differentiable in everything.

    Returns:
      ``(n_points, nao)``, in e/Bohr for functions that hold electrons per Bohr^3.
    """

    def potential(own: _Functions, r2: Array) -> jax.Array:
        a, l = own.exponents, own.l_of_primitive
        front = (math.pi / a) ** 1.5 * (-2 * a) ** (-l)  # the derivative is at the point: a sign
        found = radial(own.ls[-1], r2, jnp.broadcast_to(0.5 / a, r2.shape), up=False)
        return front * jnp.select([l == k for k in own.ls], [found[k, 0] for k in own.ls])

    return _at_points(_of_molecule(structure, basis, widths), points, potential)
