r"""Real solid harmonics as polynomials: values, products, translations, gradients.

:math:`S_{lm}(r) = r^l \sqrt{4\pi/(2l+1)}\, Y_{lm}(\hat r)` (Racah's normalisation), m = -l..l, z
polar, so that :math:`S_0 = 1` and :math:`S_1 = (y, z, x)`. The tables are exact constants found by
quadrature on the sphere. With r replaced by the gradient they hold for derivatives too: that is
what the integrals use them for. Helgaker, Jorgensen, Olsen, sec. 6.4.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..numerics import Array, einsum


def solid_harmonics(lmax: int, x: Any, y: Any, z: Any) -> list[list[Any]]:
    """``S[l][m + l]`` for l up to ``lmax``; works on NumPy and JAX arrays."""
    out = [[x * 0 + 1]]
    r2 = x * x + y * y + z * z if lmax > 1 else 0.0
    for l in range(lmax):
        last, before = out[l], out[l - 1] if l else []
        f = math.sqrt((1 if l else 2) * (2 * l + 1) / (2 * l + 2))
        plus, minus = last[-1], last[0]
        row = [f * (y * plus + x * minus) if l else y]
        for m in range(-l, l + 1):
            term = (2 * l + 1) * z * last[m + l]
            if abs(m) < l:
                term = term - math.sqrt((l + m) * (l - m)) * r2 * before[m + l - 1]
            row.append(term * (1 / math.sqrt((l + m + 1) * (l - m + 1))))
        row.append(f * (x * plus - y * minus) if l else x)
        out.append(row)
    return out


def stacked_harmonics(lmax: int, x: Array, y: Array, z: Array) -> list[jax.Array]:
    """The same as ``(2l+1, *x.shape)`` arrays, by matrix products: few operations to compile."""
    first = jnp.stack([y, z, x])
    out = [jnp.ones_like(first[:1]), first]
    for l in range(2, lmax + 1):
        products = (first[:, None] * out[-1][None]).reshape(3 * (2 * l - 1), *x.shape)
        table = jnp.asarray(_climb(l).astype(x.dtype))
        out.append(einsum("st,t...->s...", table, products))
    return out[: lmax + 1]


@functools.cache
def _climb(l: int) -> np.ndarray:
    """``(2l+1, 3 (2l-1))``: S_l from the products of S_1 with S_{l-1}."""
    table = product(1, l - 1)[l]
    table = table / (table**2).sum(axis=(0, 1))
    return table.reshape(-1, 2 * l + 1).T


@functools.cache
def _sphere(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Points ``(n, 3)`` and weights (sum 1) exact for polynomials up to ``degree``."""
    z, w = np.polynomial.legendre.leggauss(degree // 2 + 1)
    phi = 2 * np.pi * np.arange(degree + 1) / (degree + 1)
    s = np.sqrt(1 - z**2)
    points = np.stack(
        [np.outer(s, np.cos(phi)), np.outer(s, np.sin(phi)), np.outer(z, np.ones_like(phi))], -1
    )
    weights = np.repeat(w / 2, len(phi)) / len(phi)
    return points.reshape(-1, 3), weights


def _stacked(l: int, points: np.ndarray) -> np.ndarray:
    """``(2l+1, n)`` harmonics of one degree."""
    return np.stack(solid_harmonics(l, *points.T)[l])


def _clean(table: np.ndarray) -> np.ndarray:
    """Exact zeros where quadrature leaves rounding."""
    return np.where(np.abs(table) < 1e-13, 0.0, table)


@functools.cache
def product(i: int, j: int) -> dict[int, np.ndarray]:
    r"""Harmonics in a product: :math:`S_{ia} S_{jb} = \sum_l r^{i+j-l} D^l_{abc} S_{lc}`.

    Returns:
      ``{l: (2i+1, 2j+1, 2l+1)}`` for l = \|i-j\|, \|i-j\|+2, ..., i+j.
    """
    points, weights = _sphere(2 * (i + j))
    a, b = _stacked(i, points), _stacked(j, points)
    return {
        l: _clean((2 * l + 1) * np.einsum("an,bn,cn,n->abc", a, b, _stacked(l, points), weights))
        for l in range(abs(i - j), i + j + 1, 2)
    }


@functools.cache
def addition(l: int, i: int) -> np.ndarray:
    r"""Part of degree i in u of :math:`S_{lm}(u + w) = \sum_i A_{mab} S_{ia}(u) S_{l-i,b}(w)`.

    Returns:
      ``(2l+1, 2i+1, 2(l-i)+1)``.
    """
    points, weights = _sphere(2 * l)
    both = (points[:, None] + points[None]).reshape(-1, 3)
    values = _stacked(l, both).reshape(2 * l + 1, len(points), len(points))
    a, b = _stacked(i, points), _stacked(l - i, points)
    norm = (2 * i + 1) * (2 * (l - i) + 1)
    return _clean(norm * np.einsum("mnk,an,bk,n,k->mab", values, a, b, weights, weights))


@functools.cache
def gradient(l: int) -> np.ndarray:
    r"""Gradient of a harmonic: :math:`\partial_x S_{lm} = \sum_{m'} T_{xmm'} S_{l-1,m'}`.

    Returns:
      ``(3, 2l+1, 2l-1)``, components x, y, z.
    """
    # The Laplacian of x S_lm is 2 d_x S_lm; that of r^2 S_{l-1} is (4 l + 2) S_{l-1}.
    return (2 * l + 1) * product(1, l)[l - 1][[2, 0, 1]]
