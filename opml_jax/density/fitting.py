r"""Density fitting: from a density matrix to coefficients of functions on the atoms.

The coefficients c of :math:`\tilde\rho = \sum_p c_p \phi_p` make
:math:`(\rho - \tilde\rho | M | \rho - \tilde\rho)` least in one of three metrics M, so that
:math:`M c = w` with :math:`w_p = (p | M | \rho)`. They are linear in the density matrix: a
predicted matrix has a density for free. Dunlap, Connolly, Sabin, J. Chem. Phys. 71, 3396 (1979).

*coulomb*: the repulsion of the error with itself. *overlap*: its square. *hartree+external*: the
repulsion, and the square of the error of its energy in the field of the nuclei (in Hartree), which
a Coulomb fit misses by tens of milli-Hartree and more. That energies of the nuclei's field enter a
fit is Zhang et al.'s idea (arXiv:2309.16578); this form of it is ours.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .. import integrals, lapack
from ..basis import Basis, layout_of
from ..conventions import diagnose
from ..errors import BasisError, Code, ConventionError, OpmlError, one_of
from ..numerics import Array, einsum, is_concrete, pytree, require_x64
from ..structures import Structure
from ..structures.elements import symbol
from . import moments

METRICS = ("coulomb", "overlap", "hartree+external")
ELECTRONS = 1e-3
"""A density matrix whose electrons are off by more is refused."""


def metric_matrix(
    structure: Structure,
    aux_basis: Basis,
    metric: str = "coulomb",
    widths: Array | None = None,
) -> jax.Array:
    """The matrix M of a metric between the functions of an auxiliary basis.

    Args:
      structure: molecule; derivatives in positions are right.
      aux_basis: auxiliary basis.
      metric: one of :data:`METRICS`.
      widths: ``(n_shells,)`` factors of exponents, or None.

    Returns:
      ``(naux, naux)``: Hartree, 1, or Hartree with the square of an energy added.

    Raises:
      OpmlError: an unknown metric.
    """
    one_of("metric", metric, METRICS, OpmlError)
    if metric == "overlap":
        return integrals.overlap_metric(structure, aux_basis, widths)
    matrix = integrals.coulomb_metric(structure, aux_basis, widths)
    if metric == "hartree+external":
        external = external_energies(structure, aux_basis, widths)
        matrix = matrix + external[:, None] * external
    return matrix


def external_energies(
    structure: Structure, aux_basis: Basis, widths: Array | None = None
) -> jax.Array:
    """Energy of every function in the field of the nuclei, ``(naux,)`` Hartree."""
    positions = jnp.asarray(structure.positions)
    at_nuclei = integrals.potentials(structure, aux_basis, positions, widths)
    return -jnp.asarray(structure.numbers, positions.dtype) @ at_nuclei


_compiled = jax.jit(metric_matrix, static_argnames="metric")


@pytree
class Fitting:
    """The linear map from a density matrix to coefficients; see :func:`fitting`.

    Attributes:
      metric: ``(naux, naux)`` matrix M.
      projections: ``(naux, nao, nao)``, w of a density matrix.
      overlap: ``(nao, nao)``.
      charges: ``(naux,)`` electrons of each function.
    """

    metric: Array
    projections: Array
    overlap: Array
    charges: Array

    def __call__(self, dm: Array) -> jax.Array:
        """Coefficients ``(naux,)`` of ``(nao, nao)``, with its number of electrons exactly."""
        w = einsum("pij,ij->p", self.projections, dm)
        c = solve(self.metric, w)
        return with_electrons(c, self.metric, self.charges, einsum("ij,ij->", self.overlap, dm))


def solve(metric: Array, right: Array) -> jax.Array:
    """``M^-1 w``: ``(naux,)``, rows and columns scaled to a unit diagonal first."""
    scale = 1 / jnp.sqrt(jnp.diagonal(metric))
    scaled = metric * scale[:, None] * scale
    return scale * lapack.solve(scaled, (scale * right)[:, None], positive=True)[:, 0]


def with_electrons(
    coefficients: jax.Array, metric: Array, charges: Array, n_electrons: Array | float
) -> jax.Array:
    r"""The nearest density with a given number of electrons, in a metric.

    :math:`c - M^{-1} q\, (q c - N) / (q M^{-1} q)`.

    Args:
      coefficients: ``(naux,)``.
      metric: ``(naux, naux)``.
      charges: ``(naux,)`` q.
      n_electrons: N.
    """
    answer = solve(metric, charges)
    excess = charges @ coefficients - n_electrons
    return coefficients - answer * excess / (charges @ answer)


def fitting(
    structure: Structure,
    basis: Basis,
    aux_basis: Basis,
    metric: str = "coulomb",
    widths: Array | None = None,
) -> Fitting:
    """Everything that fits density matrices of one geometry (integrals by libcint, on the host).

    Args:
      structure: molecule, positions not traced.
      basis: orbital basis of the density matrices.
      aux_basis: any set PySCF knows, by :func:`opml_jax.load_basis`, or another basis.
      metric: one of :data:`METRICS`.
      widths: ``(n_shells,)`` factors of exponents of the auxiliary functions, not traced, or None.

    Returns:
      A :class:`Fitting`: call it with density matrices; jit, vmap and grad go through.

    Raises:
      OpmlError: an unknown metric; a metric that is not positive definite.
      BasisError: an element without functions up to the angular momentum of its orbitals.
      PrecisionError: x64 is off; condition numbers reach 1e9.
    """
    one_of("metric", metric, METRICS, OpmlError)
    require_x64("Density fitting")
    layout_of(structure, basis)
    layout_of(structure, aux_basis)
    for z in sorted(set(structure.numbers)):
        least, own = (max(b.spec.ls[b.spec.element_index(z)]) for b in (basis, aux_basis))
        if own < least:
            raise BasisError(
                "aux_basis",
                got=f"{aux_basis.name!r} with angular momenta up to {own} on {symbol(z)}",
                expected=f"up to {least} or more, as the orbitals of {basis.name!r}",
            )
    kind = "overlap" if metric == "overlap" else "coulomb"
    projections = integrals.three_center(structure, basis, aux_basis, kind, widths)
    if metric == "hartree+external":
        attraction = integrals.external_potential(structure, basis)
        external = np.asarray(jax.jit(external_energies)(structure, aux_basis, widths))
        projections = projections + external[:, None, None] * attraction
    matrix = np.asarray(_compiled(structure, aux_basis, metric, widths))
    check_positive(matrix, f"the {metric} metric of {aux_basis!r}")
    return Fitting(
        matrix,
        projections,
        integrals.overlap(structure, basis),
        moments.charges(structure, aux_basis, widths),
    )


def check_positive(matrix: np.ndarray, name: str) -> None:
    """Refuse a metric that is not positive definite.

    Raises:
      OpmlError: it is not, or holds numbers that are not finite.
    """
    scale = np.sqrt(np.maximum(np.diagonal(matrix), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = matrix / np.outer(scale, scale)
    least = np.linalg.eigvalsh(scaled)[0] if np.isfinite(scaled).all() else float("nan")
    if not least > 0:
        raise OpmlError(
            name,
            got=f"least eigenvalue {least:.1e} of its correlations",
            expected="positive definite",
            hint="Functions repeat themselves, or atoms coincide.",
            code=Code.SINGULAR,
        )


def fit(
    dm: Array,
    structure: Structure,
    basis: Basis,
    aux_basis: Basis,
    metric: str = "coulomb",
    widths: Array | None = None,
) -> jax.Array:
    """Coefficients of the density of a density matrix.

    Args:
      dm: ``(nao, nao)`` density matrix, occupation 2, in the library's AO order.
      structure: molecule, positions not traced.
      basis: orbital basis.
      aux_basis: auxiliary basis, for example ``load_basis("def2-universal-jkfit", numbers)``.
      metric: one of :data:`METRICS`.
      widths: ``(n_shells,)`` factors of exponents of the auxiliary functions, not traced, or None.

    Returns:
      ``(naux,)`` in the library's order (atoms, shells ascending in l, m = -l..l), with the
      electrons of the density matrix. Linear in ``dm``, and differentiable in it.

    Raises:
      OpmlError: a density matrix of another shape, or whose electrons are not those of the
        molecule to 1e-3; and as :func:`fitting`.
    """
    layout = layout_of(structure, basis)
    if dm.shape != (layout.nao, layout.nao):
        raise OpmlError("dm", got=f"shape {dm.shape}", expected=f"{(layout.nao, layout.nao)}")
    own = fitting(structure, basis, aux_basis, metric, widths)
    if is_concrete(dm):
        electrons = float(np.sum(np.asarray(dm) * np.asarray(own.overlap)))
        if abs(electrons - structure.n_electrons) > ELECTRONS:
            raise OpmlError(
                "dm",
                got=f"{electrons:.4f} electrons",
                expected=f"the density matrix of {structure.n_electrons}",
                hint="Is it of another molecule or basis, or in PySCF's order?",
                code=Code.ELECTRON_NUMBER,
            )
    return own(jnp.asarray(dm))


def to_pyscf(coefficients: Array, structure: Structure, aux_basis: Basis) -> Array:
    """Coefficients ``(..., naux)`` from the library's order to PySCF's (p as x, y, z)."""
    return coefficients[..., _index(coefficients, structure, aux_basis, "to_pyscf_index")]


def from_pyscf(coefficients: Array, structure: Structure, aux_basis: Basis) -> Array:
    """Coefficients ``(..., naux)`` from PySCF's order to the library's (p as y, z, x)."""
    return coefficients[..., _index(coefficients, structure, aux_basis, "from_pyscf_index")]


def _index(coefficients, structure: Structure, aux_basis: Basis, name: str) -> np.ndarray:
    layout = layout_of(structure, aux_basis)
    if coefficients.shape[-1] != layout.nao:
        raise ConventionError(
            "coefficients",
            got=f"shape {coefficients.shape}",
            expected=f"(..., {layout.nao}) for {structure!r} in {aux_basis!r}",
        )
    return getattr(layout, name)


def check_coefficients(
    coefficients: Array,
    expected: Array,
    structure: Structure,
    aux_basis: Basis,
    *,
    tolerance: float = 1e-3,
    where: str = "coefficients",
) -> None:
    """Hold coefficients of a file against a fit, and name the order they are in if it is another.

    Args:
      coefficients: ``(naux,)`` in question.
      expected: ``(naux,)`` of the same density, in the library's order, from :func:`fit`.
      structure: molecule.
      aux_basis: auxiliary basis.
      tolerance: largest difference, relative to the largest coefficient.
      where: what they are called.

    Raises:
      ConventionError: another number of functions, another order, or another basis.
    """
    layout = layout_of(structure, aux_basis)
    c, e = np.asarray(coefficients), np.asarray(expected)
    scale = np.abs(e).max()
    # products of two coefficients are what a matrix in the same basis looks like
    verdict = (
        f"shape {c.shape} instead of {e.shape}"
        if c.shape != e.shape
        else diagnose(
            np.outer(c, c) / scale**2, np.outer(e, e) / scale**2, layout.shell_ls, 2 * tolerance
        )
    )
    if verdict != "agrees":
        if verdict == "unknown":
            off = np.abs(c - e).max() / scale
            verdict = f"a difference of {off:.1e} of the largest in every known order"
        raise ConventionError(
            where,
            got=verdict,
            expected=f"those of {aux_basis!r} in the library's order (p as y, z, x)",
            hint="Use opml_jax.density.from_pyscf for coefficients in PySCF's order.",
            code=Code.LAYOUT,
        )


def self_energy(coefficients: Array, metric: Array) -> jax.Array:
    r"""Coulomb energy of a density with itself, :math:`\frac12 c^T J c`.

    Args:
      coefficients: ``(..., naux)``; of a difference of densities it measures the error.
      metric: ``(naux, naux)`` :func:`opml_jax.integrals.coulomb_metric`.

    Returns:
      ``(...)`` Hartree.
    """
    return 0.5 * jnp.einsum(
        "...p,pq,...q->...",
        coefficients,
        metric,
        coefficients,
        precision=jax.lax.Precision.HIGHEST,
    )
