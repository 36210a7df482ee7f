"""Integrals over pairs of orbitals and one auxiliary function, by libcint on the host.

They make labels: coefficients of a density matrix. Geometry is not traced through them, and asking
for that is an error rather than a derivative of zero.
"""

from __future__ import annotations

import numpy as np

from ..basis import AOLayout, Basis, check_widths, layout_of, scale_of_coefficients
from ..errors import OpmlError, one_of
from ..numerics import Array, is_concrete
from ..structures import Structure
from .libcint import ENV_START, tables

KINDS = {
    "coulomb": "int3c2e_sph",
    "overlap": "int3c1e_sph",
    "overlap_gradient": "int3c1e_ip1_sph",
}


def three_center(
    structure: Structure,
    basis: Basis,
    aux_basis: Basis,
    kind: str = "coulomb",
    widths: Array | None = None,
) -> np.ndarray:
    r"""Integrals :math:`(p|ij) = \int\!\int p(r)\, i(r') j(r') / |r - r'|`, or :math:`\int p i j`.

    Args:
      structure: molecule, positions in Bohr, numbers and not traced.
      basis: of the orbitals i and j.
      aux_basis: of p.
      kind: ``"coulomb"`` (Hartree) or ``"overlap"`` (Bohr^-1.5), or ``"overlap_gradient"``, with
        the gradient of the orbital i in place of i (Bohr^-2.5; in the place of its nucleus it is
        minus this).
      widths: ``(n_shells,)`` factors of the exponents of p, not traced, or None.

    Returns:
      ``(naux, nao, nao)``, all axes in the library's AO order; gradients ``(3, naux, nao, nao)``.

    Raises:
      OpmlError: an unknown kind; positions or widths that are traced; other shapes of widths.
      BasisError: an element a basis does not cover.
    """
    from pyscf.gto.moleintor import getints

    one_of("kind", kind, KINDS, OpmlError)
    if not (is_concrete(structure.positions) and (widths is None or is_concrete(widths))):
        raise OpmlError(
            "positions",
            got="traced ones",
            expected="numbers for integrals over three centres, which have no derivatives",
            hint="Differentiate coulomb_metric, values or potentials instead.",
        )
    layouts = [layout_of(structure, b) for b in (basis, aux_basis)]
    (atm, of_orbitals, permutation), (_, of_aux, aux_permutation) = (
        tables(layout.spec, structure.numbers) for layout in layouts
    )
    flat = [np.stack(b.flat()) for b in (basis, aux_basis)]
    of_aux = of_aux.copy()
    if widths is not None:
        flat[1] = _with_widths(layouts[1], flat[1], np.asarray(widths), of_aux)
    of_aux[:, [5, 6]] += flat[0].size
    bas = np.concatenate([of_orbitals, of_aux])
    n, total = len(of_orbitals), len(bas)
    positions = np.asarray(structure.positions, np.float64)
    env = np.concatenate([np.zeros(ENV_START), positions.ravel(), *(f.ravel() for f in flat)])
    out = getints(KINDS[kind], atm, bas, env, shls_slice=(0, n, 0, n, n, total), aosym="s1")
    order = aux_permutation[:, None, None], permutation[:, None], permutation
    return np.ascontiguousarray(np.moveaxis(out, -1, -3)[(..., *order)])


def _with_widths(layout: AOLayout, flat: np.ndarray, widths: np.ndarray, bas: np.ndarray):
    """``(2, n)`` exponents and coefficients, shell by shell, which ``bas`` then points at."""
    check_widths(layout, widths)
    start, sizes = ENV_START + 3 * len(layout.numbers), bas[:, 2]
    rows = np.concatenate(
        [np.arange(p, p + n) for p, n in zip(bas[:, 5] - start, sizes, strict=True)]
    )
    exponents, coefficients = flat[:, rows]
    own, l = np.repeat(widths, sizes), np.repeat(layout.shell_ls, sizes)
    bas[:, 5] = start + np.cumsum(sizes) - sizes
    bas[:, 6] = bas[:, 5] + len(rows)
    return np.stack([exponents * own, coefficients * scale_of_coefficients(l, own)])
