"""What is computed and not learned: the baseline's energies, matrices and forces of densities."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from ...basis import Basis, Bucket, batch, bucket_of
from ...density import AtomicGrids, atomic_grids
from ...mean_field import hamiltonian
from ...numerics import Array
from ...structures import Structure, StructureBatch


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A functional on a grid, for molecules that are to share one compiled program.

    Attributes:
      basis: of the matrices.
      functional: ``lda`` or ``pbe``.
      grid_level: PySCF's, 0 to 9.
    """

    basis: Basis
    functional: str = "lda"
    grid_level: int = 1

    def room(self, structures: Sequence[Structure]) -> tuple[Bucket, int]:
        """The shape and the number of points that hold any of some molecules."""
        points = {s.numbers: len(atomic_grids(s, self.grid_level).volumes) for s in structures}
        return bucket_of(structures, self.basis), max(points.values())

    def laid_out(
        self, structures: Sequence[Structure], room: tuple[Bucket, int]
    ) -> tuple[StructureBatch, AtomicGrids]:
        """Molecules in one batch, and their grids."""
        together = batch(structures, self.basis, bucket=room[0])
        return together, atomic_grids(together, self.grid_level, room[1])

    def of_densities(
        self, structures: StructureBatch, grids: AtomicGrids, dms: Array
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies and gradients of the first of some density matrices, and all Fock matrices.

        Args:
          structures: batch of n.
          grids: of it.
          dms: ``(n_densities, n, nao, nao)``.

        Returns:
          Hartree ``(n,)``, Hartree/Bohr ``(n, n_atoms, 3)`` with Pulay's term, and Hartree
          ``(n_densities, n, nao, nao)``.
        """
        found = _of_densities(self.basis, self.functional, structures, grids, dms)
        energy, gradient, focks = map(np.asarray, found)
        return energy, gradient, focks


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_densities(basis: Basis, functional: str, structures, grids: AtomicGrids, dms: Array):
    def total(positions):
        own = hamiltonian(structures.replace(positions=positions), basis, grids, functional)
        energy = own.energy(dms[0])
        return energy.sum(), (energy, jax.lax.map(own.fock, dms))

    gradient, (energy, focks) = jax.grad(total, has_aux=True)(structures.positions)
    return energy, gradient, focks
