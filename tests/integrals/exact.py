"""Moments of pairs of Gaussians in extended precision, where libcint's own rounding shows.

Obara and Saika's one-dimensional recurrences in 80-bit floats, contracted and turned to solid
harmonics in the same precision: slow, and good to 1e-18.
"""

import itertools

import numpy as np
from pyscf import gto

Long = np.longdouble
MOMENTS = {
    "int1e_r": [(0,), (1,), (2,)],
    "int1e_rr": list(itertools.product(range(3), repeat=2)),
}


def _one_dimension(a, b, xa, xb, la, lb):
    """``T[i, j]``: integral of (x - xa)^i (x - xb)^j over the pair, i to la, j to lb."""
    p, rows = a + b, la + lb + 1
    centre = (a * xa + b * xb) / p
    t = np.zeros((rows + 1, lb + 1), Long)
    t[0, 0] = np.sqrt(np.arccos(Long(-1)) / p) * np.exp(-a * b / p * (xa - xb) ** 2)
    for i in range(rows):
        t[i + 1, 0] = (centre - xa) * t[i, 0] + (i / (2 * p) * t[i - 1, 0] if i else 0)
    for j in range(lb):
        t[: rows - j, j + 1] = t[1 : rows - j + 1, j] + (xa - xb) * t[: rows - j, j]
    return t


def _monomials(l):
    return [(i, j, l - i - j) for i in range(l, -1, -1) for j in range(l - i, -1, -1)]


def moments(mol, key, i_shell, j_shell):
    """``(3 or 9, n_i, n_j)`` block of ``int1e_r`` or ``int1e_rr`` of two shells of a ``Mole``."""
    shells = (i_shell, j_shell)
    l = [mol.bas_angular(s) for s in shells]
    exponents = [mol.bas_exp(s).astype(Long) for s in shells]
    contraction = [mol._libcint_ctr_coeff(s).astype(Long) for s in shells]
    xa, xb = (mol.bas_coord(s).astype(Long) for s in shells)
    harmonics = [gto.cart2sph(x, normalized=None).astype(Long) for x in l]
    monomials = [_monomials(x) for x in l]
    widths = [c.shape[1] for c in contraction]
    out = np.zeros((len(MOMENTS[key]), len(monomials[0]), len(monomials[1]), *widths), Long)
    for (p, a), (q, b) in itertools.product(enumerate(exponents[0]), enumerate(exponents[1])):
        tables = [_one_dimension(a, b, xa[d], xb[d], l[0] + 2, l[1]) for d in range(3)]
        weight = np.outer(contraction[0][p], contraction[1][q])
        for (u, x), (v, y) in itertools.product(*map(enumerate, monomials)):
            # x^n = (x - xa + xa)^n
            raised = [
                [
                    t[x[d], y[d]],
                    t[x[d] + 1, y[d]] + xa[d] * t[x[d], y[d]],
                    t[x[d] + 2, y[d]] + 2 * xa[d] * t[x[d] + 1, y[d]] + xa[d] ** 2 * t[x[d], y[d]],
                ]
                for d, t in enumerate(tables)
            ]
            for m, axes in enumerate(MOMENTS[key]):
                out[m, u, v] += weight * np.prod([raised[d][axes.count(d)] for d in range(3)])
    # contracted functions of a shell are outside, harmonics inside, in PySCF's order
    block = np.einsum("muvij,ua,vb->miajb", out, *harmonics)
    return block.reshape(len(out), block.shape[1] * block.shape[2], -1)
