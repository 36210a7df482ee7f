r"""Matrices of local potentials: integrals of two orbitals and the potential of a charge.

.. math::
    B_{k,ij} = \int \chi_i(r)\, g_k(r)\, \chi_j(r)\, dr = (k|ij)

where g is the electrostatic potential of a Gaussian charge, or a derivative of it.

A pair of primitives is a Gaussian of variance v = 1/2p at P. Averaged over the pair, g is the
potential of a wider charge, and a component of H (:mod:`.hermite`) is a derivative of it. For
:math:`g_{lm} = S_{lm}(\nabla_C)\, \mathrm{erf}(r_C / \sqrt{2u}) / r_C` the product rule of
harmonics (D) and Hobson's theorem give, with R = P - C and w = u + v,

.. math::
    S_{l'm'}(\nabla_P) \nabla_P^{2k} \langle g_{lm} \rangle = (-1)^l
    \sum_{l''} D^{l''}_{m' m m''} S_{l''m''}(R)\,
    \Big(\frac1R \frac{d}{dR}\Big)^{l''} \nabla^{2k''} \frac{\mathrm{erf}(R / \sqrt{2w})}{R},\quad
    l'' + 2 k'' = l' + 2k + l.

The matrix element follows from H as that of every other potential (:mod:`.pairs`). Functions are
computed atom by atom, so that what is between primitives and matrix elements stays small.

With gradients of the orbitals, as in a meta-GGA's matrix, the product rule for
:math:`\nabla^2 (\chi_i \chi_j)` and integration by parts give

.. math::
    \int \nabla\chi_i \cdot \nabla\chi_j\, g_k\, dr = \tfrac12 \int \big(\chi_i \chi_j \nabla^2 g_k
    - g_k\, \chi_j \nabla^2 \chi_i - g_k\, \chi_i \nabla^2 \chi_j\big)\, dr .

A charge spreads as heat does, so its Laplacian is a derivative in its variance; the Laplacian of
:math:`r^l Y_{lm} e^{-a r^2}` is one in a and in the coefficient. All three are one derivative of B.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import Basis, layout_of
from ..basis.primitives import Primitives
from ..numerics import Array, einsum
from ..structures import Structure, StructureBatch
from .harmonics import product, stacked_harmonics
from .hermite import components, n_rows, stacked_radial, starts
from .native import ao_index, pair_lists
from .pairs import PairList, classes_of, coupling, factors, shell_pairs_of

SIMPLE = 2
"""Sums of angular momenta, 0 and 1, of most pairs of primitives, which need the fewest components:
they are computed apart from the others."""


@dataclasses.dataclass(frozen=True)
class Shells:
    """Gaussians of one angular momentum, on every atom or on those heavier than helium.

    Attributes:
      l: angular momentum.
      exponents: in Bohr^-2.
      heavy: whether hydrogen and helium have none.
    """

    l: int
    exponents: tuple[float, ...]
    heavy: bool = False


def local_potentials(
    structure: Structure | StructureBatch,
    basis: Basis,
    functions: tuple[Shells, ...],
    *,
    of_gradients: bool = False,
) -> tuple[Array, Array]:
    r"""Integrals of pairs of orbitals with potentials of charges on the atoms.

    Charges are :math:`S_{lm}(\nabla_C)\, \rho(|r - C|)`, rho normal distributions with the
    exponents of the functions: 1 for l = 0. Differentiable in positions, exponents and
    coefficients of the orbitals. libcint: ``int3c2e``, whose functions are normalised.

    Args:
      structure: molecule, positions in Bohr, or a batch.
      basis: of the orbitals.
      functions: Gaussians.
      of_gradients: integrals of :math:`\nabla\chi_i \cdot \nabla\chi_j` in place of
        :math:`\chi_i \chi_j`, in Hartree/Bohr^2.

    Returns:
      ``(n_functions, n_pairs)`` in Hartree, pairs i >= j of orbitals as
      ``np.tril_indices``, for a batch with a leading axis; and ``(n_functions,)``, which of them
      are there: a batch has room for more. First come the functions that every atom has, atom by
      atom, then those of heavy atoms; on each atom in the order of ``functions``, m = -l..l and
      exponents within.

    Raises:
      BasisError: an element the basis does not cover.
    """
    integrals, at, mask = _prepared(structure, basis, functions)
    if of_gradients:
        _, found = jax.jvp(integrals, *_along_laplacians(basis, *at))
    else:
        found = integrals(*at)
    return _of_real(found, mask, structure)


def local_densities(
    structure: Structure | StructureBatch, basis: Basis, functions: tuple[Shells, ...]
) -> tuple[Array, Array]:
    r"""Integrals :math:`\int \chi_i\, g_k\, \chi_j\, dr` of two orbitals and a function on an atom.

    The functions are normalised, :math:`\int g_k^2\, dr = 1`, as those of libcint (``int3c1e``).
    A charge is minus the Laplacian of its potential over 4 pi, and that is the derivative of the
    potential in the charge's variance. Differentiable in positions.

    Args:
      structure: molecule, positions in Bohr, or a batch.
      basis: of the orbitals.
      functions: Gaussians.

    Returns:
      As of :func:`local_potentials`, in Bohr^-3/2.

    Raises:
      BasisError: an element the basis does not cover.
    """
    integrals, (table, width), mask = _prepared(structure, basis, functions)
    _, found = jax.jvp(lambda own: integrals(table, own), (width,), (jnp.ones_like(width),))
    out, there = _of_real(found, mask, structure)
    factors: list[float] = []
    for heavy in (False, True):
        own = [_normalised(f.l, a) for f in functions if f.heavy == heavy for a in f.exponents]
        factors += own * atoms_of(structure, basis, heavy)[0].shape[-1]
    factor = np.array(factors)[shells_of(structure, basis, functions)]
    return out * (-factor / (2 * np.pi)).astype(out.dtype)[:, None], there


def _normalised(l: int, exponent: float) -> float:
    r"""What makes :math:`S_{lm}(\nabla_C)` of a normal distribution a function of norm 1.

    It is :math:`(2a)^l S_{lm}(r)` times the distribution, by Hobson's theorem.
    """
    radial = 2 * (2 * exponent) ** (l + 1.5) / math.gamma(l + 1.5)
    angular = (2 * l + 1) / (4 * math.pi)
    return math.sqrt(radial * angular) / ((2 * exponent) ** l * (exponent / math.pi) ** 1.5)


def _prepared(
    structure: Structure | StructureBatch, basis: Basis, functions: tuple[Shells, ...]
) -> tuple[Callable[..., list[jax.Array]], tuple[tuple[Array, Array], Array], jax.Array]:
    """What integrals are computed with.

    Returns:
      integrals as a function of the table of the orbitals and of a widening of the charges; where
      to take it; and ``(B, n_functions)``, which functions are no padding.
    """
    topology, positions = layout_of(structure, basis).primitives, jnp.asarray(structure.positions)
    if isinstance(structure, Structure):
        topology, positions = jax.tree.map(lambda x: x[None], topology), positions[None]
    groups, centres, real = [], [], []
    for heavy in (False, True):
        if shells := tuple(f for f in functions if f.heavy == heavy):
            index, there = atoms_of(structure, basis, heavy)
            groups.append(shells)
            centres.append(jnp.take_along_axis(positions, index[..., None], 1))
            real.append(jnp.repeat(there, sum((2 * f.l + 1) * len(f.exponents) for f in shells), 1))

    def integrals(table, widening):
        return _integrals(tuple(groups), topology, table, widening, positions, centres)

    return integrals, (basis.flat(), jnp.zeros((), positions.dtype)), jnp.concatenate(real, axis=1)


def _of_real(
    parts: list[jax.Array], mask: jax.Array, structure: Structure | StructureBatch
) -> tuple[jax.Array, jax.Array]:
    """Integrals without those of padding, and the mask, as they are returned."""
    out = jnp.where(mask[..., None], jnp.concatenate(parts, axis=1), 0.0)
    return (out[0], mask[0]) if isinstance(structure, Structure) else (out, mask)


def shells_of(
    structure: Structure | StructureBatch, basis: Basis, functions: tuple[Shells, ...]
) -> np.ndarray:
    """The shell of each row of :func:`local_potentials`, ``(n_functions,)``, counted from 0.

    Rows of one shell differ in m alone: they turn into each other with the molecule.
    """
    out, n = [], 0
    for heavy in (False, True):
        own = [f for f in functions if f.heavy == heavy]
        n_atoms = atoms_of(structure, basis, heavy)[0].shape[-1] if own else 0
        for _ in range(n_atoms):
            for f in own:
                out.append(np.tile(n + np.arange(len(f.exponents)), 2 * f.l + 1))
                n += len(f.exponents)
    return np.concatenate(out)


def packed(matrices: Array, off_diagonal: float) -> jax.Array:
    """Elements i >= j of symmetric matrices ``(..., nao, nao)``: ``(..., n_pairs)``.

    Those with i > j are multiplied by ``off_diagonal``: 2 if they are to be summed as in a trace,
    root 2 as in a norm.
    """
    i, j = np.tril_indices(matrices.shape[-1])
    return jnp.asarray(matrices)[..., i, j] * np.where(i == j, 1.0, off_diagonal).astype(
        matrices.dtype
    )


def unpacked(elements: Array) -> jax.Array:
    """Symmetric matrices ``(..., nao, nao)`` of elements i >= j, ``(..., n_pairs)``."""
    n = (math.isqrt(8 * elements.shape[-1] + 1) - 1) // 2
    i, j = np.indices((n, n))
    return jnp.asarray(elements)[
        ..., np.maximum(i, j) * (np.maximum(i, j) + 1) // 2 + np.minimum(i, j)
    ]


def combined(matrices: Array, coefficients: Array) -> jax.Array:
    """Sum of matrices ``(..., n_functions, n_pairs)`` times ``(..., n_functions)``.

    In parts, of which there are several: XLA's CPU multiplies a lone vector by a matrix column by
    column, ten times slower than it reads the matrix.
    """
    n = matrices.shape[-2]
    parts = next((d for d in range(2, n + 1) if n % d == 0), 1)
    split = jnp.reshape(matrices, (*matrices.shape[:-2], parts, n // parts, matrices.shape[-1]))
    factors = jnp.reshape(coefficients, (*coefficients.shape[:-1], parts, n // parts))
    return jnp.sum(einsum("...sqp,...sq->...sp", split, factors), axis=-2)


def atoms_of(
    structure: Structure | StructureBatch, basis: Basis, heavy: bool
) -> tuple[Array, Array]:
    """Atoms that have functions, ``(B, n)``, and which of these are not padding.

    Of a batch there is room for as many as its basis functions allow.
    """
    if isinstance(structure, Structure):
        numbers = np.array(structure.numbers)
        index = np.flatnonzero(numbers > 2) if heavy else np.arange(len(numbers))
        return index[None], np.ones((1, len(index)), bool)
    layout, real, n = layout_of(structure, basis), structure.mask, structure.n_atoms
    if not heavy:
        return jnp.broadcast_to(jnp.arange(n), real.shape), real
    spec = layout.spec
    elements = zip(spec.elements, spec.ls, strict=True)
    sizes = [sum(2 * l + 1 for l in ls) for z, ls in elements if z > 2]
    room = min(n, layout.nao // min(sizes)) if sizes else 0
    chosen = real & (jnp.asarray(structure.numbers) > 2)
    index = jnp.argsort(~chosen, axis=1)[:, :room]  # stable
    return index, jnp.take_along_axis(chosen, index, 1)


def _along_laplacians(basis: Basis, table: tuple[Array, Array], widening: Array):
    """Arguments of integrals, and the direction in which they change as with gradients."""
    exponents, coefficients = map(jnp.asarray, table)
    l = np.concatenate([np.full(len(s.exponents), s.l) for own in basis.shells for s in own])
    l = np.append(l, 0).astype(exponents.dtype)  # the one that contributes nothing
    changes = 2 * exponents**2, (2 * l + 3) * exponents * coefficients
    return ((exponents, coefficients), widening), (changes, jnp.ones_like(widening))


@functools.partial(jax.jit, static_argnums=0)
def _integrals(
    groups: tuple[tuple[Shells, ...], ...],
    topology: Primitives,
    table: tuple[Array, Array],
    widening: Array,
    positions: Array,
    centres: list[Array],
) -> list[jax.Array]:
    """Of each group at ``(B, atoms, 3)``: ``(B, atoms and their functions, n_pairs)``.

    Charges have a variance larger by ``widening`` than that of their exponents.
    """
    lists = pair_lists(topology, *table, positions)
    joined = lists[:SIMPLE], lists[SIMPLE:]
    fixed = [(factors(pairs, pairs.order, 0), _couplings(pairs)) for pairs in lists]
    index = ao_index(topology)
    i, j = np.tril_indices(index.shape[-1])
    lower, upper = index[:, i, j], index[:, j, i]

    def of_atom(shells, centre):
        blocks: dict[tuple[int, int], Array] = {}
        parts = (_potentials(shells, some, centre, widening) for some in joined)
        for pairs, potential, of_both in zip(lists, itertools.chain(*parts), fixed, strict=True):
            blocks |= _coupled(pairs, potential, *of_both)
        flat = [blocks[c].reshape(-1, blocks[c].shape[-1]) for c in classes_of(topology.counts)]
        flat.append(jnp.zeros((1, flat[0].shape[-1]), flat[0].dtype))
        rows = jnp.concatenate(flat)
        return jnp.moveaxis(rows[lower] + rows[upper], -1, -2)

    parts = []
    for shells, own in zip(groups, centres, strict=True):
        out = jax.lax.map(functools.partial(of_atom, shells), jnp.moveaxis(own, 1, 0))
        parts.append(jnp.moveaxis(out, 1, 0).reshape(own.shape[0], -1, len(i)))
    return parts


@functools.cache
def _tables(order: int, l: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What components of H to ``order`` of functions of degree l are made of.

    Returns:
      the flat harmonic and the radial of each of n terms, and ``(n_rows(order), 2l+1, n)``, the
      product rule.
    """
    degree = [a for a, _ in components(order + l)]
    harmonic = np.concatenate([a * a + np.arange(2 * a + 1) for a in degree])
    radial = np.repeat(np.arange(len(degree)), 2 * np.array(degree) + 1)
    rule = np.zeros((n_rows(order), 2 * l + 1, n_rows(order + l)))
    for (a, k), row in starts(order).items():
        for b, table in product(a, l).items():
            column = starts(order + l)[b, k + (a + l - b) // 2]
            rule[row : row + 2 * a + 1, :, column : column + 2 * b + 1] = table
    needed = rule.any(axis=(0, 1))
    return harmonic[needed], radial[needed], rule[..., needed]


def _potentials(
    shells: tuple[Shells, ...], lists: list[PairList], centre: Array, widening: Array
) -> list[Array]:
    """Components of H of each list of pairs, ``(n_rows, functions, B, n)``.

    What is of all lists is computed at once, which is quicker to compile.
    """
    if not lists:
        return []
    r = jnp.concatenate([x.centre for x in lists], axis=-1) - centre.T[..., None]  # (3, B, n)
    variance = jnp.concatenate([x.variance for x in lists], axis=-1) + widening
    top = lists[-1].order + max(f.l for f in shells)
    harmonics = jnp.concatenate(stacked_harmonics(top, *r))
    radials = _radials(shells, top, jnp.sum(r * r, axis=0), variance)
    cuts = np.cumsum([0, *(x.centre.shape[-1] for x in lists)])
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    return [
        _averaged(shells, x.order, harmonics[..., part], radials[..., part])
        for x, part in zip(lists, parts, strict=True)
    ]


def _averaged(shells: tuple[Shells, ...], order: int, harmonics: Array, radials: Array) -> Array:
    """Components of H to ``order``, ``(n_rows, functions, B, n)``."""
    out, first = [], 0
    for own in shells:
        harmonic, of_row, rule = _tables(order, own.l)
        part = slice(first, first := first + len(own.exponents))
        rows = harmonics[harmonic][:, None] * radials[of_row, part]
        if own.l:
            rows = einsum("rmq,qeBn->rmeBn", rule.astype(rows.dtype), rows)
            rows = rows.reshape(rows.shape[0], -1, *rows.shape[3:])
        out.append(rows)
    return jnp.concatenate(out, axis=1)


def _radials(shells: tuple[Shells, ...], top: int, r2: Array, variance: Array) -> jax.Array:
    """Of every component to order ``top``, ``(n_radials, exponents, B, n)``, all kinds in one."""
    degrees = np.repeat([f.l for f in shells], [len(f.exponents) for f in shells])
    spread = 0.5 / np.concatenate([f.exponents for f in shells])
    spread, sign = (jnp.asarray(x.astype(r2.dtype)) for x in (spread, (-1.0) ** degrees))
    variance = variance + spread[:, None, None]
    radials = stacked_radial(top, jnp.broadcast_to(r2, variance.shape), variance)
    return sign[:, None, None] * radials


def _couplings(pairs: PairList) -> list[Array]:
    """From products to elements, of each class ``(B n_shell_pairs, n_elements, n_products)``."""
    harmonics = jnp.concatenate(stacked_harmonics(pairs.order, *pairs.separation))
    out = []
    for own in pairs.classes:
        c = coupling(own.la, own.lb, pairs.order)
        table = np.zeros((len(c.table), len(c.row), len(harmonics)))
        table[:, c.product, c.harmonic] = c.table
        of_shells = harmonics[:, :, slice(*own.shells)].reshape(len(harmonics), -1)
        out.append(einsum("sph,hn->nsp", table.astype(of_shells.dtype), of_shells))
    return out


def _coupled(
    pairs: PairList, potential: Array, of_pairs: list[Array], of_shells: list[Array]
) -> dict[tuple[int, int], Array]:
    """For each class ``((2 la + 1) (2 lb + 1), B n_shell_pairs, functions)``."""
    n_functions, out = potential.shape[1], {}
    for own, factor, couplings in zip(pairs.classes, of_pairs, of_shells, strict=True):
        row = coupling(own.la, own.lb, pairs.order).row
        products = factor[:, None] * potential[row][..., slice(*own.primitives)]
        products = jnp.moveaxis(products.reshape(len(row), n_functions, -1), -1, 0)
        total = jnp.zeros((len(couplings), len(row), n_functions), potential.dtype)
        total = total.at[shell_pairs_of(pairs, own)].add(products, mode="promise_in_bounds")
        out[own.la, own.lb] = einsum("nsp,npf->snf", couplings, total)
    return out
