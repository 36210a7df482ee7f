r"""From a Fock matrix to orbitals, and to the density matrix, whose derivatives are right.

The density matrix of a closed shell is a spectral projector: in Löwdin's basis
:math:`D = (1 - \mathrm{sign}(F' - \mu)) / 2`, :math:`P = 2\, S^{-1/2} D S^{-1/2}`, for any
:math:`\mu` in the gap. Sums over eigenvectors divide by differences of all eigenvalues when they
are differentiated, and are wrong where orbitals are degenerate; the sign function obeys

.. math::
    N\, dG + dG\, N = dF' - G\, dF' G, \qquad G = \mathrm{sign}(F' - \mu),\ N = (F' - \mu)\, G

(Higham, Functions of Matrices, SIAM 2008, section 5.1), which divides by sums of
:math:`|\epsilon - \mu|` only: for an occupied and a virtual orbital the difference of their
energies, and nothing else contributes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import Code, OpmlError
from ..lapack import eigh
from ..numerics import Array, einsum, is_concrete, matmul
from ..operators import inverse_sqrt
from ..operators.eigen import lyapunov
from .smearing import occupied

SMALLEST_GAP = 1e-6
"""Hartree; below it the density matrix of a closed shell is not defined to useful precision."""

OUTSIDE = 1e4
"""Hartree: where padded functions are put, above every orbital."""


@jax.custom_jvp
def _sign(x: Array, w: Array, u: Array) -> jax.Array:
    """Sign of symmetric matrices without an eigenvalue at 0, from their eigenvectors."""
    return matmul(u * jnp.sign(w)[..., None, :], jnp.matrix_transpose(u))


@_sign.defjvp
def _sign_jvp(primals, tangents):
    (x, w, u), dx = primals, _symmetric(tangents[0])
    g = _sign(x, w, u)
    size = _symmetric(matmul(x, g))
    return g, lyapunov(size, dx - matmul(matmul(g, dx), g), (jnp.abs(w), u))


def sign(x: Array) -> jax.Array:
    """Sign of symmetric matrices ``(..., n, n)`` without an eigenvalue at 0.

    Differentiable to any order, equal eigenvalues included.
    """
    return _sign(x, *eigh(x))


def _symmetric(x: jax.Array) -> jax.Array:
    return 0.5 * (x + jnp.matrix_transpose(x))


def _orthogonal(fock: Array, overlap: Array, mask: Array | None) -> tuple[jax.Array, jax.Array]:
    """F in Löwdin's basis with padded functions moved away, and S^-1/2."""
    fock, overlap = jnp.asarray(fock), jnp.asarray(overlap)
    if fock.shape[-2:] != overlap.shape[-2:] or fock.shape[-1] != fock.shape[-2]:
        raise OpmlError(
            "fock",
            got=f"shape {fock.shape} with an overlap of shape {overlap.shape}",
            expected="(..., nao, nao), both alike",
            code=Code.MATRIX,
        )
    if mask is not None:
        real = mask[..., :, None] & mask[..., None, :]
        eye = jnp.eye(fock.shape[-1], dtype=fock.dtype)
        overlap = jnp.where(real, overlap, eye)
        fock = jnp.where(real, fock, OUTSIDE * eye)
    x = inverse_sqrt(overlap)
    return _symmetric(matmul(matmul(x, fock), x)), x


def _pairs(n_electrons, nao: int) -> jax.Array:
    """Number of doubly occupied orbitals, checked if it is known."""
    n = jnp.asarray(n_electrons)
    if is_concrete(n):
        electrons = np.asarray(n)
        if np.any(electrons % 2) or np.any(electrons < 0) or np.any(electrons > 2 * nao):
            raise OpmlError(
                "n_electrons",
                got=n_electrons,
                expected=f"even numbers from 0 to {2 * nao}, two electrons an orbital",
                code=Code.ELECTRONS,
            )
    return n // 2


def orbitals(fock: Array, overlap: Array, *, mask: Array | None = None) -> tuple[Array, Array]:
    r"""Orbital energies and coefficients, :math:`F C = S C \epsilon`.

    Energies are differentiable once where levels are not degenerate, and so are sums over all
    levels of a degenerate set. Coefficients are not: functions of the occupied space are
    (:func:`density_matrix`).

    Args:
      fock: ``(..., nao, nao)`` symmetric, Hartree.
      overlap: the same shape.
      mask: ``(..., nao)`` True for functions that are not padding.

    Returns:
      ``mo_energy`` ``(..., nao)`` ascending, padding last (at :data:`OUTSIDE`), and ``mo_coeff``
      ``(..., nao, nao)`` in columns, derivative stopped.

    Raises:
      OpmlError: shapes that differ, or nearly linearly dependent functions.
    """
    f, x = _orthogonal(fock, overlap, mask)
    _, u = eigh(f)
    # Hellmann and Feynman: exact to first order, and finite at degeneracies
    energy = einsum("...ip,...ij,...jp->...p", u, f, u)
    return energy, jax.lax.stop_gradient(matmul(x, u))


def gap(fock: Array, overlap: Array, n_electrons, *, mask: Array | None = None) -> jax.Array:
    """Energy of the lowest unoccupied minus the highest occupied orbital, Hartree, ``(...)``.

    Arguments as for :func:`density_matrix`.
    """
    energy, _ = orbitals(fock, overlap, mask=mask)
    return _frontier(energy, _pairs(n_electrons, energy.shape[-1]))[1]


def _frontier(energy: Array, pairs: Array) -> tuple[jax.Array, jax.Array]:
    """Middle of the gap, and its width; infinite ends for none or all occupied."""
    ends = jnp.full((*energy.shape[:-1], 1), jnp.inf, energy.dtype)
    padded = jnp.concatenate([-ends, energy, ends], axis=-1)
    at = jnp.broadcast_to(pairs, energy.shape[:-1])[..., None]
    homo = jnp.take_along_axis(padded, at, axis=-1)[..., 0]
    lumo = jnp.take_along_axis(padded, at + 1, axis=-1)[..., 0]
    low, high = jnp.maximum(homo, energy[..., 0] - 2.0), jnp.minimum(lumo, energy[..., -1] + 2.0)
    return 0.5 * (low + high), lumo - homo


def density_matrix(
    fock: Array,
    overlap: Array,
    n_electrons,
    *,
    mask: Array | None = None,
    smearing: Array | float | None = None,
) -> jax.Array:
    r"""Closed-shell density matrix :math:`P = 2 \sum_{i \le N/2} c_i c_i^T`, or at a temperature.

    Differentiable to any order, forward and reverse, in both matrices; orbitals may be degenerate
    among the occupied and among the virtual ones.

    With ``smearing`` :math:`P = 2 \sum_i f_i c_i c_i^T`, where :math:`f_i = 1/(1 + e^{(\epsilon_i -
    \mu)/T})` and :math:`\mu` keeps the number of electrons (Mermin, Phys. Rev. 137, A1441 (1965)).
    There need be no gap, and levels may be degenerate anywhere. Differentiable twice, also in
    ``smearing``; memory of second derivatives grows as ``nao**3``.

    Args:
      fock: ``(..., nao, nao)`` symmetric, Hartree.
      overlap: the same shape.
      n_electrons: even, one number or one for each matrix; with ``smearing`` any number.
      mask: ``(..., nao)`` True for functions that are not padding.
      smearing: Boltzmann's constant times the electronic temperature in **Hartree**, positive, one
        number or one for each matrix (1000 K are 0.003167, see
        :data:`opml_jax.units.HARTREE_PER_KELVIN`). Default: none, a closed shell at 0 K.

    Returns:
      ``(..., nao, nao)``, trace of P S exactly ``n_electrons``. Under ``jit``, where nothing can
      be raised, NaN where the gap closes.

    Raises:
      OpmlError: shapes that differ, more electrons than fit, a ``smearing`` that is not positive,
        nearly linearly dependent functions; without smearing also an odd number of electrons and a
        gap below :data:`SMALLEST_GAP`.
    """
    if smearing is not None:
        d, x, _ = _smeared(fock, overlap, n_electrons, mask, smearing)
        return _without_padding(2 * matmul(matmul(x, d), x), mask)
    f, x = _orthogonal(fock, overlap, mask)
    pairs = _pairs(n_electrons, f.shape[-1])
    w, u = eigh(f)
    middle, width = _frontier(w, pairs)
    if is_concrete(width) and np.min(width) < SMALLEST_GAP:
        raise OpmlError(
            "fock",
            got=f"a gap of {np.min(width):.1e} Hartree at {n_electrons} electrons",
            expected=f"at least {SMALLEST_GAP:.0e}: a closed shell",
            hint="Check the number of electrons, or give a smearing.",
            code=Code.GAP,
        )
    eye = jnp.eye(f.shape[-1], dtype=f.dtype)
    g = _sign(f - middle[..., None, None] * eye, w - middle[..., None], u)
    p = _without_padding(matmul(matmul(x, eye - g), x), mask)
    return jnp.where((width >= SMALLEST_GAP)[..., None, None], p, jnp.nan)


def _without_padding(p: jax.Array, mask: Array | None) -> jax.Array:
    """Zero but for rounding, of functions at :data:`OUTSIDE`; then zero."""
    return p if mask is None else jnp.where(mask[..., :, None] & mask[..., None, :], p, 0.0)


def _smeared(
    fock: Array, overlap: Array, n_electrons, mask: Array | None, smearing
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Occupations in Löwdin's basis, S^-1/2, and the entropy of the orbitals."""
    f, x = _orthogonal(fock, overlap, mask)
    n, nao = jnp.asarray(n_electrons, f.dtype), f.shape[-1]
    if is_concrete(n) and not np.all((np.asarray(n) >= 0) & (np.asarray(n) <= 2 * nao)):
        expected = f"from 0 to {2 * nao}, two electrons an orbital"
        raise OpmlError("n_electrons", got=n_electrons, expected=expected)
    if is_concrete(smearing) and not np.all(np.asarray(smearing) > 0):
        hint = "Leave it out for a closed shell at 0 K."
        raise OpmlError("smearing", got=smearing, expected="positive, Hartree", hint=hint)
    d, entropy = occupied(f, jnp.broadcast_to(0.5 * n, f.shape[:-2]), smearing)
    return d, x, entropy


def electronic_entropy(
    fock: Array, overlap: Array, n_electrons, smearing, *, mask: Array | None = None
) -> jax.Array:
    r"""Entropy :math:`-2 \sum_i f_i \ln f_i + (1 - f_i) \ln(1 - f_i)` of Fermi-Dirac occupations.

    Arguments, errors and derivatives as for :func:`density_matrix` with ``smearing``.

    Returns:
      ``(...)``, in units of Boltzmann's constant: an energy less ``smearing`` times it is a free
      energy, for example that of :func:`opml_jax.observables.hartree_fock_energy`.
    """
    return 2 * _smeared(fock, overlap, n_electrons, mask, smearing)[2]


def free_energy(
    fock: Array, overlap: Array, n_electrons, smearing, *, mask: Array | None = None
) -> jax.Array:
    r"""Helmholtz free energy :math:`\mathrm{Tr}\, P F - T S` of independent electrons, Hartree.

    Its derivative in F is P, and in ``smearing`` minus the entropy. Arguments, errors and
    derivatives as for :func:`density_matrix` with ``smearing``.
    """
    d, x, entropy = _smeared(fock, overlap, n_electrons, mask, smearing)
    p = _without_padding(2 * matmul(matmul(x, d), x), mask)
    return einsum("...ij,...ji->...", p, jnp.asarray(fock)) - 2 * smearing * entropy


def project(dm: Array, overlap: Array, n_electrons, *, mask: Array | None = None) -> jax.Array:
    """The idempotent density matrix of ``n_electrons`` that is nearest to ``dm``.

    Keeps the N/2 natural orbitals of largest occupation, doubly occupied; nearest in the Frobenius
    norm of Löwdin's basis. Differentiable as :func:`density_matrix`; arguments, shapes and errors
    as there (occupations in the place of energies: the gap is the step in occupation).
    """
    s = jnp.asarray(overlap)
    return density_matrix(-matmul(matmul(s, dm), s), s, n_electrons, mask=mask)


def purify(dm: Array, overlap: Array) -> jax.Array:
    r"""One step of McWeeny's purification, :math:`P' = (3 P S P - P S P S P) / 2`.

    R. McWeeny, Rev. Mod. Phys. 32, 335 (1960), for occupations of 2. Errors of idempotency are
    squared; the number of electrons is kept to second order only (:func:`project` keeps it).

    Args:
      dm: ``(..., nao, nao)``.
      overlap: the same shape.
    """
    ps = matmul(dm, overlap)
    square = matmul(ps, dm)
    return 1.5 * square - 0.5 * matmul(ps, square)


def electron_number(dm: Array, overlap: Array) -> jax.Array:
    """Trace of P S, ``(...)``."""
    return einsum("...ij,...ji->...", dm, overlap)


def idempotency_error(dm: Array, overlap: Array) -> jax.Array:
    """Largest element of :math:`|P S P / 2 - P|`, ``(...)``; 0 for a closed shell."""
    error = 0.5 * matmul(matmul(dm, overlap), dm) - dm
    return jnp.max(jnp.abs(error), axis=(-1, -2))
