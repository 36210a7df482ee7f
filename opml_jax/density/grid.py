"""Densities on points of space: integration grids, errors, cube files."""

from __future__ import annotations

import os

import jax
import numpy as np

from .. import integrals
from ..basis import Basis, Shell, check_widths, layout_of
from ..data.files import atomic_path
from ..data.reference import molecule
from ..errors import OpmlError
from ..numerics import Array
from ..structures import Structure

CHUNK = 4096
"""Points at a time."""


def grid(structure: Structure, level: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights for integrals over a molecule, PySCF's atomic grids joined by Becke.

    Args:
      structure: molecule.
      level: 0 to 9, coarse to fine.

    Returns:
      ``(n_points, 3)`` Bohr and ``(n_points,)`` Bohr^3.

    Raises:
      OpmlError: another level.
    """
    from pyscf.dft import gen_grid

    if level not in range(10):
        raise OpmlError("level", got=level, expected="from 0 to 9")
    grids = gen_grid.Grids(_bare(structure))
    grids.level, grids.verbose = level, 0
    grids.build(with_non0tab=False)
    return grids.coords, grids.weights


def _bare(structure: Structure):
    """``pyscf.gto.Mole`` with one function an atom: grids and cubes need the nuclei alone."""
    shells = [Shell(0, np.ones(1), np.ones(1))]
    return molecule(structure, Basis.from_shells("bare", dict.fromkeys(structure.numbers, shells)))


def on_points(
    coefficients: Array,
    structure: Structure,
    basis: Basis,
    points: np.ndarray,
    widths: Array | None = None,
) -> np.ndarray:
    """Density at points, a few thousand at a time.

    Args:
      coefficients: ``(..., naux)``.
      structure: molecule.
      basis: auxiliary basis.
      points: ``(n_points, 3)`` Bohr.
      widths: ``(n_shells,)`` factors of exponents, or None.

    Returns:
      ``(..., n_points)`` electrons per Bohr^3.
    """
    coefficients = np.asarray(coefficients)
    return _in_parts(lambda v: coefficients @ v.T, _values, structure, basis, points, widths)


def matrix_on_points(
    dm: Array, structure: Structure, basis: Basis, points: np.ndarray
) -> np.ndarray:
    """Density of a density matrix at points.

    Args:
      dm: ``(nao, nao)`` in the library's AO order.
      structure: molecule.
      basis: orbital basis.
      points: ``(n_points, 3)`` Bohr.

    Returns:
      ``(n_points,)`` electrons per Bohr^3.
    """
    dm = np.asarray(dm)
    return _in_parts(lambda v: np.sum((v @ dm) * v, axis=-1), _values, structure, basis, points)


def potential_on_points(
    coefficients: Array,
    structure: Structure,
    basis: Basis,
    points: np.ndarray,
    widths: Array | None = None,
) -> np.ndarray:
    """Electrostatic potential of nuclei and density at points.

    Arguments as for :func:`on_points`; points on nuclei give infinity.

    Returns:
      ``(..., n_points)`` Hartree per e, what a positive unit charge would feel.
    """
    coefficients, points = np.asarray(coefficients), np.asarray(points)
    electrons = _in_parts(
        lambda v: coefficients @ v.T, _potentials, structure, basis, points, widths
    )
    distance = np.linalg.norm(points[:, None] - np.asarray(structure.positions), axis=-1)
    with np.errstate(divide="ignore"):
        return (1 / distance) @ np.array(structure.numbers, float) - electrons


def _in_parts(
    use, function, structure: Structure, basis: Basis, points: np.ndarray, widths=None
) -> np.ndarray:
    """``use`` of what a function of points gives, a few thousand points at a time."""
    points, out = np.asarray(points), []
    if widths is not None:
        check_widths(layout_of(structure, basis), widths)  # inside jit they are no numbers
    for start in range(0, len(points), CHUNK):
        part = points[start : start + CHUNK]
        filled = np.concatenate([part, np.zeros((CHUNK - len(part), 3))])  # one shape to compile
        out.append(use(np.asarray(function(structure, basis, filled, widths))[: len(part)]))
    return np.concatenate(out, axis=-1)


_potentials = jax.jit(integrals.potentials)
_values = jax.jit(integrals.values)


def density_error_percent(
    difference: Array,
    structure: Structure,
    basis: Basis,
    *,
    level: int = 3,
    widths: Array | None = None,
) -> float:
    r"""Absolute error per electron, :math:`100 \int |\Delta\rho| / N` percent.

    The error quoted for predicted densities (Grisafi et al., arXiv:2206.14087).

    Args:
      difference: ``(naux,)`` coefficients of predicted minus reference density.
      structure: molecule.
      basis: auxiliary basis.
      level: of the integration grid.
      widths: ``(n_shells,)`` factors of exponents, those of both densities, or None.
    """
    points, weights = grid(structure, level)
    error = np.abs(on_points(difference, structure, basis, points, widths))
    return float(100 * (weights @ error) / structure.n_electrons)


def write_cube(
    path: str | os.PathLike,
    coefficients: Array,
    structure: Structure,
    basis: Basis,
    *,
    spacing: float = 0.2,
    margin: float = 5.0,
    widths: Array | None = None,
) -> None:
    """Write a density as a Gaussian cube file (PySCF's writer), atomically.

    Args:
      path: file to write.
      coefficients: ``(naux,)``.
      structure: molecule.
      basis: auxiliary basis.
      spacing: Bohr between points.
      margin: Bohr between the nuclei and the edge of the box.
      widths: ``(n_shells,)`` factors of exponents, or None.

    Raises:
      OpmlError: a spacing or margin that is not positive.
    """
    from pyscf.tools.cubegen import Cube

    for name, value in (("spacing", spacing), ("margin", margin)):
        if not value > 0:
            raise OpmlError(name, got=value, expected="positive")
    cube = Cube(_bare(structure), resolution=spacing, margin=margin)
    field = on_points(coefficients, structure, basis, cube.get_coords(), widths)
    with atomic_path(path) as temporary:
        cube.write(field.reshape(cube.nx, cube.ny, cube.nz), str(temporary), "density, e/Bohr^3")
