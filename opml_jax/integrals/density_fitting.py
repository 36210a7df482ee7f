r"""Coulomb and exchange matrices of many densities of one geometry, by density fitting.

.. math::
    J_{ij} = \sum_{QQ'} (ij|Q)\, (Q|Q')^{-1} \sum_{kl} (Q'|kl)\, P_{kl}, \qquad
    K_{ij} = \sum_{QQ'} \sum_{kl} (ik|Q)\, (Q|Q')^{-1} (Q'|jl)\, P_{kl}

in the Coulomb metric (Vahtras, Almloef, Feyereisen, Chem. Phys. Lett. 213, 514 (1993)). Of few
occupied orbitals :math:`K_{ij} = \sum_{Qa} (Q|ia)(Q|ja)` over functions orthogonal in the metric,
one product of what is as long as there are orbitals. Q are
Gaussian charges and their derivatives on the atoms; integrals over three centres are kept, those
over two are derivatives of erf(R)/R as in :mod:`.two_center`.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from .. import lapack
from ..basis import Basis, layout_of
from ..errors import Code, OpmlError
from ..numerics import Array, einsum, pytree
from ..structures import Structure, StructureBatch
from .coulomb import P_EXPONENTS, S_EXPONENTS
from .harmonics import product, stacked_harmonics
from .hermite import components, stacked_radial
from .local import Shells, atoms_of, combined, local_potentials, packed, unpacked

COARSE = (Shells(0, tuple(S_EXPONENTS.tolist())), Shells(1, tuple(P_EXPONENTS.tolist())))
"""Functions of :func:`.fitted_coulomb`, 23 on every atom; errors of J are 4e-4 Hartree in ethanol.
"""


def _part(l: int, first: float, ratio: float, steps: list[int], heavy: bool) -> Shells:
    return Shells(l, tuple(first * ratio**n for n in steps), heavy)


FINE = (
    _part(0, 0.12, 2.6, [0, 1, 2, 3, 4], heavy=False),
    _part(0, 0.12, 2.6, [5, 6, 7, 8], heavy=True),
    _part(1, 0.17, 2.6, [1, 2, 3], heavy=False),
    _part(1, 0.17, 2.6, [0, 4, 5, 6], heavy=True),
    _part(2, 0.25, 2.6, [1, 2], heavy=False),
    _part(2, 0.25, 2.6, [0, 3, 4], heavy=True),
    _part(3, 0.45, 2.2, [0, 1, 2], heavy=True),
    _part(4, 0.8, 2.2, [0, 1], heavy=True),
)
"""Functions up to g, 24 on hydrogen and 94 on other atoms.

In def2-SVP they leave 1e-6 Hartree of an element of J in the mean and 4e-6 of K, a quarter of what
PySCF's def2-universal-jkfit leaves (four molecules of QM7). Their potentials span those of exchange
and correlation: :mod:`opml_jax.operators.local`.
"""

RANK = 1e-9
"""Eigenvalues of a density matrix below this part of the largest are rounding errors."""

LARGEST_BYTES = 16 * 2**30
"""Memory of the integrals of all pairs of orbitals, at most. A molecule of 30 atoms heavier than
helium needs two thirds of it in def2-SVP."""


@pytree
class DensityFit:
    """What Coulomb and exchange matrices need of a geometry.

    Attributes:
      integrals: ``(..., n_functions, n_pairs)``, (Q|ij) of pairs i >= j, over the norm of Q.
      metric: ``(..., n_functions, n_functions)`` of these functions.
      factor: its lower Cholesky factor.
      orthogonal: ``(..., n_functions, n_pairs)``, integrals with functions that are orthogonal in
        the metric, for exchange; or None.
    """

    integrals: Array
    metric: Array
    factor: Array
    orthogonal: Array | None = None

    def coulomb(self, dm: Array) -> jax.Array:
        """Coulomb matrices J of density matrices, ``(..., nao, nao)`` each; Hartree."""
        dm = 0.5 * (dm + jnp.matrix_transpose(dm))
        moments = einsum("...qp,...p->...q", self.integrals, packed(dm, 2.0))
        c = lapack.solve_factored(self.metric, self.factor, moments[..., None])[..., 0]
        return unpacked(combined(self.integrals, c))

    def exchange(self, dm: Array, rank: int | None = None) -> jax.Array:
        """Exchange matrices K of density matrices, ``(..., nao, nao)`` each; Hartree.

        Hartree and Fock's matrix of closed shells is h + J - K / 2.

        Args:
          dm: density matrices.
          rank: as many occupied orbitals as a positive density matrix has, or more: the cost is
            proportional to it. Matrices of a higher rank cost what any matrix does, the default.

        Raises:
          OpmlError: made without exchange.
        """
        if self.orthogonal is None:
            raise OpmlError("density fit", got="one without exchange", expected="exchange=True")
        dm = 0.5 * (dm + jnp.matrix_transpose(dm))
        of_one = _exchange
        if rank is not None and rank < dm.shape[-1]:
            of_one = functools.partial(_exchange_of_rank, rank=rank)
        if dm.ndim == 2:
            return of_one(self.orthogonal, dm)
        # one molecule after another: all integrals at once would be twice as large
        return jax.lax.map(lambda each: of_one(*each), (self.orthogonal, dm))


def _exchange(orthogonal: Array, dm: Array) -> jax.Array:
    """K ``(nao, nao)`` of any symmetric matrix."""
    whole = unpacked(orthogonal)
    k = einsum("qil,qjl->ij", einsum("qik,kl->qil", whole, dm), whole)
    return 0.5 * (k + k.T)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _exchange_of_rank(orthogonal: Array, dm: Array, rank: int) -> jax.Array:
    """K of a positive matrix of at most ``rank``, by its eigenvectors; derivatives are as of K."""
    values, vectors = lapack.eigh(dm)
    most, least = jnp.max(jnp.abs(values)), jnp.min(values)
    rest = jnp.maximum(jnp.max(jnp.abs(values[:-rank])), -least)

    def of_orbitals():
        orbitals = vectors[:, -rank:] * jnp.sqrt(jnp.maximum(values[-rank:], 0.0))
        half = einsum("qik,ka->qia", unpacked(orthogonal), orbitals)
        return einsum("qia,qja->ij", half, half)

    # a guess of superposed atoms, say, has more orbitals than a molecule
    return jax.lax.cond(rest <= RANK * most, of_orbitals, lambda: _exchange(orthogonal, dm))


@_exchange_of_rank.defjvp
def _exchange_of_rank_jvp(rank, primals, tangents):
    # the eigenvectors of a density matrix are degenerate and its changes have no such rank
    return _exchange_of_rank(*primals, rank), jax.jvp(_exchange, primals, tangents)[1]


def density_fit(
    structure: Structure | StructureBatch,
    basis: Basis,
    functions: tuple[Shells, ...] = FINE,
    *,
    exchange: bool = False,
) -> DensityFit:
    """Integrals of one geometry for the Coulomb and exchange matrices of many densities.

    Differentiable in positions. With :data:`COARSE` functions Coulomb matrices are those of
    :func:`.fitted_coulomb` to rounding, at a hundredth of the cost of each.

    Args:
      structure: molecule, positions in Bohr, or a batch.
      basis: covers its elements.
      functions: Gaussian charges that densities are fitted by.
      exchange: whether exchange matrices will be asked for.

    Raises:
      OpmlError: integrals that need more than :data:`LARGEST_BYTES`.
      BasisError: an element the basis does not cover.
    """
    needed = density_fit_bytes(structure, basis, functions)
    if needed > LARGEST_BYTES:
        raise OpmlError(
            "structure",
            got=f"integrals of density fitting of {needed / 2**30:.0f} GiB",
            expected=f"at most {LARGEST_BYTES / 2**30:.0f} GiB",
            hint="Take a smaller molecule or fewer of them at once, or (Op2Op) train with "
            "model.projection=none.",
            code=Code.MEMORY,
        )
    found, real = local_potentials(structure, basis, functions)
    metric = jnp.where(real[..., :, None] & real[..., None, :], 0.0, jnp.eye(real.shape[-1]))
    metric = metric + _repulsions(structure, basis, functions, real)
    scale = 1 / jnp.sqrt(jnp.diagonal(metric, axis1=-2, axis2=-1))
    metric = metric * scale[..., :, None] * scale[..., None, :]
    found, factor = found * scale[..., None], lapack.cholesky(metric)
    orthogonal = lapack.solve_lower(factor, found) if exchange else None
    return DensityFit(found, metric, factor, orthogonal)


def density_fit_bytes(
    structure: Structure | StructureBatch, basis: Basis, functions: tuple[Shells, ...] = FINE
) -> int:
    """Memory of the integrals of a :class:`DensityFit`."""
    nao, positions = layout_of(structure, basis).nao, jnp.asarray(structure.positions)
    n = sum(
        atoms_of(structure, basis, f.heavy)[0].size * (2 * f.l + 1) * len(f.exponents)
        for f in functions
    )
    return n * nao * (nao + 1) // 2 * positions.dtype.itemsize


def _repulsions(
    structure: Structure | StructureBatch,
    basis: Basis,
    functions: tuple[Shells, ...],
    real: Array,
) -> jax.Array:
    """Coulomb energies (Q|Q') in the order of :func:`.local_potentials`, zero of padding.

    Those of all functions on all atoms are computed, which is quick, and ours are taken.
    """
    positions = jnp.asarray(structure.positions)
    alone = isinstance(structure, Structure)
    positions = positions[None] if alone else positions
    ls = sorted({f.l for f in functions})
    exponents = [np.concatenate([f.exponents for f in functions if f.l == l]) for l in ls]
    starts = np.cumsum([0, *((2 * l + 1) * len(e) for l, e in zip(ls, exponents, strict=True))])
    index = []
    for heavy in (False, True):
        columns, known = [], dict.fromkeys(ls, 0)
        for f in functions:
            own, n = ls.index(f.l), len(f.exponents)
            if f.heavy == heavy:
                m, e = np.arange(2 * f.l + 1)[:, None], known[f.l] + np.arange(n)
                columns.append((starts[own] + len(exponents[own]) * m + e).reshape(-1))
            known[f.l] += n
        if columns:
            atoms, _ = atoms_of(structure, basis, heavy)
            rows = jnp.asarray(atoms)[..., None] * starts[-1] + np.concatenate(columns)
            index.append(rows.reshape(len(positions), -1))
    index = jnp.concatenate(index, axis=1)
    out = _of_all_atoms(positions, ls, exponents)
    out = jnp.take_along_axis(out, index[:, :, None], 1)
    out = jnp.take_along_axis(out, index[:, None, :], 2)
    out = out[0] if alone else out
    return jnp.where(jnp.asarray(real)[..., :, None] & real[..., None, :], out, 0.0)


def _of_all_atoms(positions: Array, ls: list[int], exponents: list[np.ndarray]) -> jax.Array:
    """Of functions at ``(B, n, 3)``, on each by l, m and exponent: ``(B, n n_f, n n_f)``."""
    r = positions[:, :, None] - positions[:, None]
    r2, half = jnp.sum(r * r, axis=-1)[..., None, None], 0.5 / np.concatenate(exponents)
    variance = jnp.asarray((half[:, None] + half).astype(r2.dtype))
    shape = (*r2.shape[:3], *variance.shape)
    top = 2 * ls[-1]
    radials = stacked_radial(top, jnp.broadcast_to(r2, shape), jnp.broadcast_to(variance, shape))
    harmonics = stacked_harmonics(top, *jnp.moveaxis(r, -1, 0))
    cuts = np.cumsum([0, *map(len, exponents)])
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    blocks: dict[tuple[int, int], jax.Array] = {}
    for (a, rows), (b, columns) in itertools.product(zip(ls, parts, strict=True), repeat=2):
        if (b, a) in blocks:  # between the same atoms the other way round
            blocks[a, b] = jnp.transpose(blocks[b, a], (0, 4, 5, 6, 1, 2, 3))
            continue
        block = 0.0
        for l, table in product(a, b).items():
            angular = einsum("xyM,MBnm->Bnxmy", table.astype(r2.dtype), harmonics[l])
            value = radials[components(top).index((l, (a + b - l) // 2))][..., rows, columns]
            block = block + einsum("Bnxmy,Bnmef->Bnxemyf", angular, value)
        blocks[a, b] = (-1) ** b * jnp.asarray(block)  # the second derivative is at the second atom

    def flat(block: jax.Array) -> jax.Array:
        n_batch, n, m, e, *_ = block.shape
        return block.reshape(n_batch, n, m * e, n, -1)

    bands = [jnp.concatenate([flat(blocks[a, b]) for b in ls], axis=-1) for a in ls]
    out = jnp.concatenate(bands, axis=2)
    return out.reshape(out.shape[0], out.shape[1] * out.shape[2], -1)
