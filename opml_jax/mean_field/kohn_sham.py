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
from ..density import AtomicGrids, ExchangeCorrelation, exchange_correlation
from ..errors import Code, OpmlError
from ..integrals import DensityFit
from ..numerics import Array, einsum, is_concrete, pytree
from ..observables import density_matrix, nuclear_repulsion, purify
from ..structures import Structure, StructureBatch, centred
from .commutator import commutator, orthogonal
from .fixed_point import fixed_point


@pytree
class Hamiltonian:
    """Energies and Fock matrices of any closed-shell density of one geometry, or of a batch.

    Attributes:
      overlap: S ``(..., nao, nao)``.
      core: T + V, and what a field adds, Hartree.
      repulsion: of the nuclei ``(...)``, Hartree.
      density_fit: of Coulomb matrices.
      exchange_correlation: on a grid.
      correction: a further functional of the density, or None: called with density matrices it
        gives the energy ``(...)`` and its derivative ``(..., nao, nao)``, and is a pytree of all
        that it knows of the geometry.
    """

    overlap: Array
    core: Array
    repulsion: Array
    density_fit: DensityFit
    exchange_correlation: ExchangeCorrelation
    correction: Any = None

    def fock(self, dm: Array) -> jax.Array:
        """F of density matrices, ``(..., nao, nao)`` each; Hartree."""
        fock = jnp.add(self.core, self.density_fit.coulomb(dm))
        fock = fock + self.exchange_correlation(dm)[1]
        return fock if self.correction is None else fock + self.correction(dm)[1]

    def energy(self, dm: Array) -> jax.Array:
        """Total energy of density matrices made idempotent, ``(...)`` Hartree.

        The derivative in what the operators are functions of has Pulay's term, and is that of the
        self-consistent energy where P is self-consistent.
        """
        dm = purify(dm, self.overlap)
        one_electron = self.core + 0.5 * self.density_fit.coulomb(dm)
        energy = einsum("...ij,...ij->...", one_electron, dm) + self.repulsion
        energy = energy + self.exchange_correlation(dm)[0]
        return energy if self.correction is None else jnp.add(energy, self.correction(dm)[0])


def hamiltonian(
    structure: Structure | StructureBatch,
    basis: Basis,
    grids: AtomicGrids,
    functional: str = "lda",
    *,
    field: Array | None = None,
    correction: Any = None,
) -> Hamiltonian:
    """What energies and Fock matrices need of a geometry; arguments of :func:`kohn_sham`."""
    core = integrals.kinetic(structure, basis) + integrals.external_potential(structure, basis)
    if field is not None:
        position = integrals.position(centred(structure), basis)
        core = core + einsum("x,...xij->...ij", field, position)  # electrons are negative
    return Hamiltonian(
        integrals.overlap(structure, basis),
        core,
        nuclear_repulsion(structure),
        integrals.density_fit(structure, basis),
        exchange_correlation(structure, basis, grids, functional),
        correction,
    )


def kohn_sham(
    structure: Structure | StructureBatch,
    basis: Basis,
    grids: AtomicGrids,
    functional: str = "lda",
    *,
    field: Array | None = None,
    correction: Any = None,
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
      correction: a further functional of the density (:attr:`Hamiltonian.correction`), a learned
        one say.
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
    own = hamiltonian(structure, basis, grids, functional, field=field, correction=correction)
    if guess is None:
        neutral = integrals.neutral_atom_potential(structure, basis)
        guess = integrals.kinetic(structure, basis) + neutral
    half = orthogonal(own.overlap, mask)

    def density(fock: Array) -> jax.Array:
        return density_matrix(fock, own.overlap, electrons, mask=mask)

    def step(stacked: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        fock = stacked[0] if alone else stacked
        dm = density(fock)
        new = own.fock(dm)
        error = commutator(half, own.overlap, new, dm)
        new, error = (new[None], error[None]) if alone else (new, error)
        return new, error, jnp.zeros(new.shape[0], new.dtype)

    start = guess[None] if alone else guess
    fock, residual, _ = fixed_point(step, start, cycles, tolerance, history)
    fock, residual = (fock[0], residual[0]) if alone else (fock, residual)
    dm = density(fock)
    matrices = {"fock": fock, "dm": dm, "overlap": own.overlap}
    return {"energy": _stationary_energy(own, dm), **matrices, "residual": residual}


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


@jax.custom_jvp
def _stationary_energy(own: Hamiltonian, dm: Array) -> jax.Array:
    """The energy, whose first derivative knows that it is stationary in a self-consistent P."""
    return own.energy(dm)


@_stationary_energy.defjvp
def _stationary_energy_jvp(primals, tangents):
    (own, dm), (changes, _) = primals, tangents
    return jax.jvp(lambda moved: moved.energy(dm), (own,), (changes,))
