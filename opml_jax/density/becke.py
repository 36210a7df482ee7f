r"""Integration grids that move with the atoms, for use inside compiled and differentiated programs.

Around each atom is a grid of PySCF's (radii of Treutler and Ahlrichs, Lebedev's angles, pruned);
Becke's cells (J. Chem. Phys. 88, 2547 (1988)), whose walls are shifted by the atoms' radii
(J. Chem. Phys. 102, 346 (1995)), share space among the atoms. Points and weights are those of
PySCF's default grids, and both have derivatives.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import OpmlError
from ..numerics import Array, is_concrete, pytree
from ..structures import Structure, StructureBatch
from ..structures.elements import symbol

BLOCK = 1024
"""Points at a time. Their number is padded to a multiple of it."""


@pytree
class AtomicGrids:
    """Grids around the atoms of a molecule, or of a batch (with a leading axis).

    Attributes:
      offsets: ``(..., n_points, 3)`` from the atom, Bohr.
      volumes: ``(..., n_points)`` weights for integrals over all space, Bohr^3; 0 of padding.
      atom: ``(..., n_points)`` that they are around.
      shifts: ``(..., n_atoms, n_atoms)`` of the walls between cells, antisymmetric.
      real: ``(..., n_atoms)``, False of padding.
    """

    offsets: Array
    volumes: Array
    atom: Array
    shifts: Array
    real: Array

    def at(self, positions: Array) -> tuple[jax.Array, jax.Array]:
        """Points and weights for nuclei at ``(..., n_atoms, 3)``, differentiable.

        Returns:
          ``(..., n_points, 3)`` Bohr and ``(..., n_points)`` Bohr^3.
        """
        positions = jnp.asarray(positions)
        placed = jax.vmap(_placed) if positions.ndim == 3 else _placed
        return placed(self, positions)


def atomic_grids(
    structure: Structure | StructureBatch, level: int = 3, n_points: int = 0
) -> AtomicGrids:
    """Grids around the atoms; host side, as composition decides on them and geometry does not.

    Args:
      structure: molecule, or a batch whose composition is known (not traced).
      level: PySCF's, 0 to 9, coarse to fine.
      n_points: room for so many at least, so that one program serves other molecules too.

    Raises:
      OpmlError: another level; a traced composition.
    """
    if level not in range(10):
        raise OpmlError("level", got=level, expected="from 0 to 9")
    if isinstance(structure, Structure):
        own = _of_molecule(structure.numbers, level)
        return _padded(own, _room(n_points, own), len(structure.numbers))
    if not is_concrete(structure.numbers):
        raise OpmlError("atomic_grids", got=None, expected="grids made outside jit")
    molecules = [
        tuple(z[real].tolist())
        for z, real in zip(
            np.asarray(structure.numbers), np.asarray(structure.mask).astype(bool), strict=True
        )
    ]
    grids = [_of_molecule(numbers, level) for numbers in molecules]
    padded = [_padded(g, _room(n_points, *grids), structure.n_atoms) for g in grids]
    return jax.tree.map(lambda *x: np.stack(x), *padded)


def _room(n_points: int, *grids: AtomicGrids) -> int:
    """Whole blocks, for so many points at least."""
    most = max(n_points, *(len(g.volumes) for g in grids))
    return most + -most % BLOCK


def _of_molecule(numbers: tuple[int, ...], level: int) -> AtomicGrids:
    of_atoms = [_of_element(z, level) for z in numbers]
    root = np.sqrt([_radius(z) for z in numbers])
    ratio = root / root[:, None]
    return AtomicGrids(
        np.concatenate([points for points, _ in of_atoms]),
        np.concatenate([volumes for _, volumes in of_atoms]),
        np.repeat(np.arange(len(numbers)), [len(v) for _, v in of_atoms]).astype(np.int32),
        np.clip(0.25 * (ratio - ratio.T), -0.5, 0.5),
        np.ones(len(numbers), bool),
    )


@functools.lru_cache(maxsize=256)
def _of_element(z: int, level: int) -> tuple[np.ndarray, np.ndarray]:
    from pyscf import gto
    from pyscf.dft import gen_grid

    name = symbol(z)
    atom = gto.M(atom=[(name, (0, 0, 0))], basis={name: [[0, [1.0, 1.0]]]}, spin=None, verbose=0)
    grids = gen_grid.Grids(atom)
    ((points, volumes),) = grids.gen_atomic_grids(atom, level=level).values()
    return points, volumes


def _radius(z: int) -> float:
    """Bragg's, Bohr."""
    from pyscf.dft import radi

    return float(radi.BRAGG_RADII[z])


def _padded(own: AtomicGrids, n_points: int, n_atoms: int) -> AtomicGrids:
    """With points of no weight, away from the nuclei, and atoms that are not there."""
    points, atoms = n_points - len(own.volumes), n_atoms - len(own.real)
    return AtomicGrids(
        np.concatenate([own.offsets, np.ones((points, 3))]),
        np.pad(own.volumes, (0, points)),
        np.pad(own.atom, (0, points)),
        np.pad(own.shifts, (0, atoms)),
        np.pad(own.real, (0, atoms)),
    )


def _placed(own: AtomicGrids, positions: Array) -> tuple[jax.Array, jax.Array]:
    n = positions.shape[0]
    real = jnp.asarray(own.real)
    pairs = real[:, None] & real & ~np.eye(n, dtype=bool)
    separation = jnp.where(pairs[..., None], positions[:, None] - positions, 1.0)
    inverse = 1 / jnp.linalg.norm(separation, axis=-1)

    def weights(block):
        points, volumes, atom = block
        distance = jnp.linalg.norm(points[:, None] - positions, axis=-1)
        g = (distance[:, :, None] - distance[:, None]) * inverse
        g = g + own.shifts * (1 - g**2)
        for _ in range(3):
            g = 0.5 * g * (3 - g**2)
        cells = jnp.prod(jnp.where(pairs, 0.5 * (1 - g), 1.0), axis=-1)
        cells = jnp.where(real, cells, 0.0)
        inside = jnp.take_along_axis(cells, atom[:, None], 1)[:, 0]
        return volumes * inside / jnp.sum(cells, axis=-1)

    points = positions[own.atom] + jnp.asarray(own.offsets, positions.dtype)
    volumes, atom = jnp.asarray(own.volumes, positions.dtype), jnp.asarray(own.atom)
    blocks = jax.tree.map(lambda x: x.reshape(-1, BLOCK, *x.shape[1:]), (points, volumes, atom))
    return points, jax.lax.map(jax.checkpoint(weights), blocks).reshape(-1)
