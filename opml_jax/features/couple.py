r"""Coupling of shell-pair blocks to irreps, with real Clebsch-Gordan coefficients.

A block :math:`B_{m_1 m_2}` of shells l1, l2 becomes :math:`b^{LM} = \sum C^{LM}_{l_1 m_1 l_2 m_2}
B_{m_1 m_2}` for L = \|l1 - l2\| .. l1 + l2: an irrep of O(3) with parity (-1)^(l1 + l2). The
coefficients are e3nn's, scaled to an orthonormal change of basis, so the inverse is the transpose
and norms are kept.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import BasisSpec
from ..irreps import e3nn
from ..numerics import Array, einsum
from ..operators.species import SpeciesKey


@functools.cache
def clebsch_gordan(l1: int, l2: int, l: int) -> np.ndarray:
    """Real coefficients ``(2 l1 + 1, 2 l2 + 1, 2 l + 1)``, float64, orthonormal over (m1, m2)."""
    c = np.asarray(e3nn.clebsch_gordan(l1, l2, l), np.float64) * (2 * l + 1) ** 0.5
    c.setflags(write=False)
    return c


@functools.cache
def coupling_matrix(l1: int, l2: int) -> np.ndarray:
    """All L side by side: ``(2 l1 + 1, 2 l2 + 1, (2 l1 + 1)(2 l2 + 1))``, an orthogonal matrix."""
    c = [clebsch_gordan(l1, l2, l) for l in range(abs(l1 - l2), l1 + l2 + 1)]
    return np.concatenate(c, axis=-1)


def couple(block: Array, l1: int, l2: int) -> dict[int, Array]:
    """Irreps of shell-pair blocks.

    Args:
      block: ``(..., 2 l1 + 1, 2 l2 + 1)``, m = -l..l.
      l1: angular momentum of the rows.
      l2: angular momentum of the columns.

    Returns:
      ``{L: (..., 2 L + 1)}``, parity (-1)^(l1 + l2).
    """
    flat = einsum("...mn,mnk->...k", block, coupling_matrix(l1, l2).astype(block.dtype))
    ls = range(abs(l1 - l2), l1 + l2 + 1)
    cuts = np.cumsum([2 * l + 1 for l in ls])[:-1]
    return dict(zip(ls, jnp.split(flat, cuts, axis=-1), strict=True))


def uncouple(irreps: dict[int, Array], l1: int, l2: int) -> jax.Array:
    """Inverse of :func:`couple`: blocks ``(..., 2 l1 + 1, 2 l2 + 1)``."""
    flat = jnp.concatenate([irreps[l] for l in range(abs(l1 - l2), l1 + l2 + 1)], axis=-1)
    return einsum("...k,mnk->...mn", flat, coupling_matrix(l1, l2).astype(flat.dtype))


# blocks by species: one orthogonal matrix per pair of elements

IrrepKey = tuple[int, int, int, int, int]
"""Kind, atomic numbers of row and column atom, L, and sigma = (-1)^(l1 + l2 + L)."""


def key_name(key: IrrepKey) -> str:
    """A key as text, for parameters and files: ``"2_1_6_0_1"``."""
    return "_".join(map(str, key))


def has_constant(key: IrrepKey) -> bool:
    """True for scalars on an atom; of a pair, a constant would not vanish with distance."""
    kind, _, _, l, sigma = key
    return kind == l == 0 and sigma == 1


@functools.lru_cache(maxsize=256)
def species_coupling(spec: BasisSpec, z1: int, z2: int):
    r"""The orthogonal matrix from the block of two atoms to its irreps, and what they are.

    Args:
      spec: the basis.
      z1: atomic number of the row atom.
      z2: atomic number of the column atom.

    Returns:
      ``(Q, irreps)``: Q is ``(nao_1 nao_2, nao_1 nao_2)``, columns sorted by (L, sigma), then shell
      a, shell b, M; irreps is ``((L, sigma, a, b), ...)`` in that order, 2 L + 1 columns each.
    """
    shells = [spec.ls[spec.element_index(z)] for z in (z1, z2)]
    starts = [np.cumsum([0] + [2 * l + 1 for l in ls]) for ls in shells]
    n2 = int(starts[1][-1])
    irreps = sorted(
        (l, -((-1) ** (l1 + l2 + l)), a, b)
        for a, l1 in enumerate(shells[0])
        for b, l2 in enumerate(shells[1])
        for l in range(abs(l1 - l2), l1 + l2 + 1)
    )
    columns = []
    for l, _, a, b in irreps:
        l1, l2 = shells[0][a], shells[1][b]
        rows = starts[0][a] + np.arange(2 * l1 + 1)
        own = (rows[:, None] * n2 + starts[1][b] + np.arange(2 * l2 + 1)).ravel()
        column = np.zeros((int(starts[0][-1]) * n2, 2 * l + 1))
        column[own] = clebsch_gordan(l1, l2, l).reshape(-1, 2 * l + 1)
        columns.append(column)
    matrix = np.concatenate(columns, axis=1)
    matrix.setflags(write=False)
    return matrix, tuple((l, -sign, a, b) for l, sign, a, b in irreps)


@functools.lru_cache(maxsize=256)
def species_channels(spec: BasisSpec, key: SpeciesKey) -> dict[tuple[int, int], tuple]:
    """``{(L, sigma): ((a, b), ...)}`` shell pairs that the blocks of one kind have irreps of.

    Symmetric blocks (kinds 0 and 1) and antisymmetric ones (-1) are given by a <= b, and a shell
    with itself couples to sigma = 1 or -1 only.
    """
    kind, z1, z2 = key
    out: dict[tuple[int, int], list] = {}
    for l, sigma, a, b in species_coupling(spec, z1, z2)[1]:
        if kind != 2 and (a > b or (a == b and sigma != (-1 if kind == -1 else 1))):
            continue
        out.setdefault((l, sigma), []).append((a, b))
    return {k: tuple(v) for k, v in out.items()}


def couple_species(blocks: dict[SpeciesKey, Array], spec: BasisSpec) -> dict[IrrepKey, Array]:
    """Irreps of blocks by species (:func:`opml_jax.operators.species_blocks`).

    Returns:
      ``{(kind, Z_i, Z_j, L, sigma): (..., n_pairs, 2 L + 1, n_channels)}``; channels are the shell
      pairs of :func:`species_channels`. sigma = 1: proper tensors; -1: pseudotensors.
    """
    out = {}
    for key, block in blocks.items():
        whole, irreps = block.reshape(*block.shape[:-2], -1), {}
        for elements, matrix, channels in _needed(spec, key):
            flat = einsum("...k,kc->...c", whole[..., elements], matrix.astype(block.dtype))
            start = 0
            for (l, sigma), n in channels.items():
                part = flat[..., start : (start := start + (2 * l + 1) * n)]
                irreps[l, sigma] = part.reshape(*part.shape[:-1], 2 * l + 1, n)
        out |= {(*key, *of): irreps[of] for of in species_channels(spec, key)}
    return out


@functools.lru_cache(maxsize=256)
def _needed(spec: BasisSpec, key: SpeciesKey) -> list[tuple[np.ndarray, np.ndarray, dict]]:
    """Elements of a block that its irreps are made of, the matrix to these, and their channels.

    Of either parity apart. Elements of (a, b) say it all where a block is symmetric or
    antisymmetric. Columns are sorted by (L, sigma), then M, then shell pair.
    """
    matrix, irreps = species_coupling(spec, *key[1:])
    first = dict(zip(irreps, np.cumsum([0] + [2 * l + 1 for l, *_ in irreps])[:-1], strict=True))
    out = []
    for parity in (1, -1):
        channels = {
            (l, sigma): pairs
            for (l, sigma), pairs in species_channels(spec, key).items()
            if sigma * (-1) ** l == parity
        }
        columns = [
            first[l, sigma, a, b] + m
            for (l, sigma), pairs in channels.items()
            for m in range(2 * l + 1)
            for a, b in pairs
        ]
        if columns:
            own = matrix[:, columns]
            elements = np.flatnonzero(own.any(axis=1))
            out.append((elements, own[elements], {k: len(v) for k, v in channels.items()}))
    return out


def uncouple_species(irreps: dict[IrrepKey, Array], spec: BasisSpec) -> dict[SpeciesKey, Array]:
    """Inverse of :func:`couple_species`; absent irreps are zero."""
    out: dict[SpeciesKey, Array] = {}
    for key in dict.fromkeys(k[:3] for k in irreps):
        kind, z1, z2 = key
        matrix, order = species_coupling(spec, z1, z2)
        first = dict(zip(order, np.cumsum([0] + [2 * l + 1 for l, *_ in order])[:-1], strict=True))
        values, columns, diagonal = [], [], []
        for (l, sigma), pairs in species_channels(spec, key).items():
            if (*key, l, sigma) in irreps:
                x = irreps[*key, l, sigma]
                values.append(x.swapaxes(1, 2).reshape(len(x), -1))
                for a, b in pairs:
                    start = first[l, sigma, a, b]
                    columns.extend(range(start, start + 2 * l + 1))
                    diagonal.extend([a == b] * (2 * l + 1))
        flat, columns = jnp.concatenate(values, axis=1), np.array(columns)
        shape = (-1, spec.nao(z1), spec.nao(z2))
        if kind == 2:
            out[key] = einsum("nc,kc->nk", flat, matrix[:, columns].astype(flat.dtype)).reshape(
                shape
            )
            continue
        # half of what is on the diagonal of shells, so that adding the mirror image completes both
        half = flat * np.where(np.array(diagonal), 0.5, 1.0).astype(flat.dtype)
        upper = einsum("nc,kc->nk", half, matrix[:, columns].astype(flat.dtype)).reshape(shape)
        out[key] = upper + (-1 if kind == -1 else 1) * upper.swapaxes(1, 2)
    return out


def species_irreps_norm(irreps: dict[IrrepKey, Array], spec: BasisSpec) -> jax.Array:
    """Frobenius norm of the matrix of these reduced irreps: weight 1 for a = b, else 2."""
    total = 0.0
    for (*key, l, sigma), x in irreps.items():
        pairs = species_channels(spec, tuple(key))[l, sigma]
        weight = np.array([1.0 if key[0] != 2 and a == b else 2.0 for a, b in pairs])
        total += jnp.sum(x * x * weight)
    return jnp.sqrt(total)
