r"""Kohn-Sham calculations of closed shells, LDA or PBE, as pure functions of a geometry.

.. math::
    E = \mathrm{Tr}\, P (T + V) + \tfrac12 \mathrm{Tr}\, P J[P] + E_{xc}[P] + E_{nn}, \qquad
    F[P] = T + V + J[P] + V_{xc}[P]

with J by density fitting (:mod:`opml_jax.integrals.density_fitting`) and exchange and correlation
on a grid that moves with the atoms (:mod:`opml_jax.density.exchange_correlation`). F is the
derivative of E, so that first derivatives of E in anything but P need no response of P:

.. math::
    \frac{dE}{dx} = \frac{\partial}{\partial x} E\big(x, P'(x)\big), \qquad
    P' = \tfrac12 (3 P S P - P S P S P)

at the self-consistent P, where P' stays idempotent when S changes (McWeeny's purification), which
is Pulay's term. Second derivatives have the response of P, by the implicit function theorem.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import integrals
from ..basis import Basis
from ..density import AtomicGrids, exchange_correlation
from ..errors import Code, OpmlError
from ..numerics import Array, einsum, is_concrete
from ..observables import density_matrix, nuclear_repulsion, purify
from ..structures import Structure, StructureBatch, centred
from .commutator import commutator, orthogonal
from .fixed_point import fixed_point

Operators = dict[str, Any]
"""Overlap, h = T + V, fits and grids of one geometry, and the repulsion of its nuclei."""


def kohn_sham(
    structure: Structure | StructureBatch,
    basis: Basis,
    grids: AtomicGrids,
    functional: str = "lda",
    *,
    field: Array | None = None,
    guess: Array | None = None,
    cycles: int = 50,
    tolerance: float = 1e-6,
    history: int = 8,
) -> dict[str, jax.Array]:
    """The self-consistent energy, and its matrices, of a closed shell.

    Compiled with ``jax.jit`` over positions; differentiable in them, to any order.

    Args:
      structure: closed-shell molecule, positions in Bohr, or a batch.
      basis: of the orbitals.
      grids: of this molecule or batch (:func:`opml_jax.density.atomic_grids`, outside jit).
      functional: ``lda`` or ``pbe``.
      field: uniform electric field ``(3,)``, Hartree/(e Bohr). The dipole, about the centre of
        nuclear charge, is minus the energy's derivative in it, the polarizability that of the
        dipole.
      guess: Fock matrix to begin with, ``(..., nao, nao)`` in Hartree. Default: T and the
        potential of neutral atoms.
      cycles: most self-consistent cycles.
      tolerance: largest element of the commutator of F and P that may remain, Hartree.
      history: matrices remembered by the extrapolation.

    Returns:
      ``energy`` ``(...)``, Hartree, with the repulsion of the nuclei; ``fock``, ``dm`` (occupation
      2) and ``overlap`` ``(..., nao, nao)`` in the library's AO order; ``residual`` ``(...)``, the
      largest element of the commutator, Hartree: above ``tolerance`` nothing has converged.

    Raises:
      OpmlError: an open shell; an unknown functional; integrals that need too much memory.
      BasisError: an element the basis does not cover.
    """
    alone = isinstance(structure, Structure)
    mask = None if alone else structure.layout.ao_mask
    electrons = _electrons(structure)
    s, kinetic = (f(structure, basis) for f in (integrals.overlap, integrals.kinetic))
    core = kinetic + integrals.external_potential(structure, basis)
    if field is not None:
        position = integrals.position(centred(structure), basis)
        core = core + einsum("x,...xij->...ij", field, position)  # electrons are negative
    operators: Operators = {
        "overlap": s,
        "core": core,
        "density_fit": integrals.density_fit(structure, basis),
        "exchange_correlation": exchange_correlation(structure, basis, grids, functional),
        "repulsion": nuclear_repulsion(structure),
    }
    if guess is None:
        guess = kinetic + integrals.neutral_atom_potential(structure, basis)
    half = orthogonal(s, mask)

    def density(fock: Array) -> jax.Array:
        return density_matrix(fock, s, electrons, mask=mask)

    def step(stacked: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        fock = stacked[0] if alone else stacked
        dm = density(fock)
        new = _fock(operators, dm)
        error = commutator(half, s, new, dm)
        new, error = (new[None], error[None]) if alone else (new, error)
        return new, error, jnp.zeros(new.shape[0], new.dtype)

    start = guess[None] if alone else guess
    fock, residual, _ = fixed_point(step, start, cycles, tolerance, history)
    fock, residual = (fock[0], residual[0]) if alone else (fock, residual)
    dm = density(fock)
    energy = _stationary_energy(operators, dm)
    return {"energy": energy, "fock": fock, "dm": dm, "overlap": s, "residual": residual}


def _electrons(structure: Structure | StructureBatch) -> Any:
    """Electrons, ``(...)``; an open shell is refused wherever spins are numbers."""
    if isinstance(structure, Structure):
        electrons, spin = structure.n_electrons, structure.spin
    else:
        electrons = jnp.sum(jnp.asarray(structure.numbers), axis=-1) - jnp.asarray(structure.charge)
        spin = structure.spin
    if is_concrete(spin) and np.any(spin):
        raise OpmlError(
            "structure", got=f"spin {np.max(spin)}", expected="closed shells", code=Code.ELECTRONS
        )
    return electrons


def _fock(operators: Operators, dm: Array) -> jax.Array:
    """F of a density matrix, ``(..., nao, nao)``."""
    coulomb = operators["density_fit"].coulomb(dm)
    return operators["core"] + coulomb + operators["exchange_correlation"](dm)[1]


def _energy(operators: Operators, dm: Array) -> jax.Array:
    """Total energy of a density matrix, made idempotent."""
    dm = purify(dm, operators["overlap"])
    one_electron = operators["core"] + 0.5 * operators["density_fit"].coulomb(dm)
    energy = einsum("...ij,...ij->...", one_electron, dm)
    return energy + operators["exchange_correlation"](dm)[0] + operators["repulsion"]


@jax.custom_jvp
def _stationary_energy(operators: Operators, dm: Array) -> jax.Array:
    """The energy, whose first derivative knows that it is stationary in a self-consistent P."""
    return _energy(operators, dm)


@_stationary_energy.defjvp
def _stationary_energy_jvp(primals, tangents):
    (operators, dm), (changes, _) = primals, tangents
    return jax.jvp(lambda own: _energy(own, dm), (operators,), (changes,))
