r"""Words of an atom: rotational invariants of what density there is around it.

The density matrix and superposed free atoms are projected on Gaussians of every atom,

.. math::
    n_k = \sum_{ij} P_{ij} \int \chi_i\, g_k\, \chi_j\, dr, \qquad \delta n = n - n^0 .

Words are all scalars and quadratic invariants of the principal components of :math:`\delta n` and
:math:`n^0` of the atom's element, and cubic and quartic ones of random mixtures of them: words of
one channel correlate it with itself (Darby et al., Phys. Rev. Lett. 131, 028001 (2023)).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import OpmlError
from ...integrals import Shells
from ...numerics import Array, einsum

FUNCTIONS = (
    Shells(0, tuple(0.12 * 2.0**n for n in range(11))),
    Shells(1, tuple(0.20 * 2.2**n for n in range(6))),
    Shells(2, tuple(0.25 * 2.5**n for n in range(4))),
)
"""Gaussians of every atom, 49 numbers."""

LIFT = 0.25
"""Principal components are divided by this power of their size: small ones count for more than
their size, and less than the largest."""

CUBIC, QUARTIC = 5, 9
"""Words that one channel gives."""

Maps = dict[str, Any]
"""Of every element, ``(n_elements, ...)``: what makes words of projections."""


@dataclasses.dataclass(frozen=True)
class Words:
    """Which words an atom has.

    Attributes:
      cubic: channels of the third degree.
      quartic: channels of the fourth degree.
      prior: size of the columns of higher degree; those of lower degree have that of their
        components. The larger, the more a fit makes of them.
      seed: of the mixtures.
    """

    cubic: int = 96
    quartic: int = 48
    prior: float = 1e-3
    seed: int = 0

    @property
    def size(self) -> int:
        """Words of an atom."""
        channels = [2 * len(f.exponents) for f in FUNCTIONS]
        low = 1 + channels[0] + sum(n * (n + 1) // 2 for n in channels)
        return low + CUBIC * self.cubic + QUARTIC * self.quartic


def by_degree(x: Array) -> list[Array]:
    """Projections of an atom ``(..., 49)`` by l, ``(..., 2 l + 1, n_exponents)`` each."""
    sizes = [(2 * f.l + 1) * len(f.exponents) for f in FUNCTIONS]
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return [
        x[..., part].reshape(*x.shape[:-1], 2 * f.l + 1, -1)
        for part, f in zip(parts, FUNCTIONS, strict=True)
    ]


def fit_maps(words: Words, change: np.ndarray, atoms: np.ndarray, element: np.ndarray) -> Maps:
    """Principal components, mixtures, and scales of words, of the atoms of a training set.

    Args:
      words: which there are.
      change: ``(n, 49)``, the projections less those of free atoms.
      atoms: ``(n, 49)``, of superposed free atoms.
      element: ``(n,)``, index of each atom's element, from 0.

    Raises:
      OpmlError: an element between that no atom has.
    """
    n_elements = element.max() + 1
    if lacking := sorted({*range(n_elements)} - {*element.tolist()}):
        raise OpmlError("element", got=f"no atom of number {lacking[0]}", expected="some of each")
    mean = np.stack([_spherical(atoms[element == e].mean(axis=0)) for e in range(n_elements)])
    rng = np.random.default_rng(words.seed)
    maps: Maps = {"mean": mean}
    for name, rows in (("change", change), ("atoms", atoms - mean[element])):
        maps[name] = [
            np.stack([_components(np.asarray(part)[element == e]) for e in range(n_elements)])
            for part in by_degree(rows)
        ]
    for name, n in (("cubic", words.cubic), ("quartic", words.quartic)):
        sizes = [2 * len(f.exponents) for f in FUNCTIONS]
        maps[name] = [rng.normal(size=(n_elements, k, n)) / math.sqrt(k) for k in sizes]
    maps["scale"] = np.ones((n_elements, words.size))
    values = jax.jit(jax.vmap(words_of))
    for e in range(n_elements):
        own = element == e
        rows = np.asarray(values(of_elements(maps, element[own]), change[own], atoms[own]))
        spread = rows.std(axis=0)
        higher = np.arange(words.size) >= words.size - CUBIC * words.cubic - QUARTIC * words.quartic
        there = higher & (spread > 0)
        maps["scale"][e, there] = words.prior / spread[there]
    return maps


def of_elements(maps: Maps, element: Array) -> Maps:
    """The maps of atoms, by the index of their element ``(...)``."""
    return jax.tree.map(lambda x: jnp.asarray(x)[element], maps)


def words_of(maps: Maps, change: Array, atoms: Array) -> jax.Array:
    """Words ``(n_words,)`` of one atom, with the maps of its element.

    Args:
      maps: of :func:`fit_maps`, of one element.
      change: ``(49,)``, the projections less those of free atoms.
      atoms: ``(49,)``, of superposed free atoms.
    """
    both = zip(by_degree(change), maps["change"], strict=True)
    y = [einsum("mk,kc->mc", x, linear) for x, linear in both]
    both = zip(by_degree(atoms - maps["mean"]), maps["atoms"], strict=True)
    y = [
        jnp.concatenate([own, einsum("mk,kc->mc", x, linear)], axis=1)
        for own, (x, linear) in zip(y, both, strict=True)
    ]
    out = [jnp.ones(1, change.dtype), y[0][0]]
    for own in y:
        i, j = np.triu_indices(own.shape[1])
        out.append(einsum("mc,md->cd", own, own)[i, j])
    channels = [
        [einsum("mc,cd->md", own, linear) for own, linear in zip(y, maps[name], strict=True)]
        for name in ("cubic", "quartic")
    ]
    return jnp.concatenate([*out, *_cubic(*channels[0]), *_quartic(*channels[1])]) * maps["scale"]


def _spherical(mean: np.ndarray) -> np.ndarray:
    """The mean of scalars, 0 of what turns with the molecule."""
    first = len(FUNCTIONS[0].exponents)
    return np.where(np.arange(len(mean)) < first, mean, 0.0)


def _components(rows: np.ndarray) -> np.ndarray:
    """``(n_exponents, n_exponents)`` of ``(n, 2 l + 1, n_exponents)``, over a power of their size.

    Components that no atom has are left out.
    """
    rows = rows.reshape(-1, rows.shape[-1])
    square, vectors = np.linalg.eigh(rows.T @ rows / max(len(rows), 1))
    size = np.sqrt(np.maximum(square, 0.0))
    there = size > 1e-8 * size.max()
    return np.where(there, vectors / np.where(there, size, 1.0) ** LIFT, 0.0)


def _matrix(d: Array) -> jax.Array:
    """The symmetric traceless matrix of each d irrep: ``(5, n)`` to ``(3, 3, n)`` in x, y, z.

    The squares of its elements sum to twice those of the components.
    """
    xy, yz, zz, xz, difference = d
    third = zz / math.sqrt(3.0)
    rows = [[difference - third, xy, xz], [xy, -difference - third, yz], [xz, yz, 2 * third]]
    return jnp.stack([jnp.stack(row) for row in rows])


def _cubic(s: Array, p: Array, d: Array) -> list[jax.Array]:
    a, v, m = s[0], p[jnp.array([2, 0, 1])], _matrix(d)  # p is (y, z, x)
    mv = einsum("xyc,yc->xc", m, v)
    squared = einsum("xyc,yzc->xzc", m, m)
    cube = einsum("xyc,yxc->c", squared, m)
    return [a**3, a * _square(v), a * _square(d), _product(v, mv), cube]


def _quartic(s: Array, p: Array, d: Array) -> list[jax.Array]:
    a, v, m = s[0], p[jnp.array([2, 0, 1])], _matrix(d)
    mv = einsum("xyc,yc->xc", m, v)
    cube = einsum("xyc,yzc,zxc->c", m, m, m)
    vv, dd = _square(v), _square(d)
    even = [a**4, a**2 * vv, a**2 * dd, vv**2, dd**2, vv * dd]
    return [*even, a * _product(v, mv), a * cube, _square(mv)]


def _product(a: Array, b: Array) -> jax.Array:
    return jnp.sum(a * b, axis=0)


def _square(a: Array) -> jax.Array:
    return _product(a, a)
