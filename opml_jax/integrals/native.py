"""The native driver: every integral in JAX, for any device and any derivative.

Topology (which primitives a molecule has) is index arrays: constants for one molecule, data for a
batch, so that a bucket of mixed molecules shares one program. :mod:`.pairs` holds the formulas,
:mod:`.hermite` the potential of charges; here primitives become pairs, and pairs a matrix.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, Basis
from ..basis.primitives import Primitives
from ..conventions import CARTESIAN_TO_E3NN
from ..numerics import Array
from . import hermite
from .harmonics import solid_harmonics
from .pairs import PairClass, PairList, assemble


def _classes(counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pairs of angular momenta that occur, the larger one first."""
    ls = [l for l, n in enumerate(counts) if n]
    return [(la, lb) for la in ls for lb in ls if la >= lb]


@functools.lru_cache(maxsize=256)
def _all_pairs(n_a: int, n_b: int, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of primitives; the lower triangle when both are of one kind."""
    if same:
        return tuple(x.astype(np.int32) for x in np.tril_indices(n_a))
    i, j = np.divmod(np.arange(n_a * n_b, dtype=np.int32), n_b)
    return i, j


def _shell_pair(i, j, n_b: int, same: bool):
    """Number of a pair of shells; i >= j when both are of one kind."""
    return i * (i + 1) // 2 + j if same else i * n_b + j


def _take(values, index):
    """``values[..., b, index[b]]`` for every molecule b: (..., B, n)."""
    if isinstance(values, np.ndarray) and isinstance(index, np.ndarray):
        return np.take_along_axis(values, np.broadcast_to(index, values.shape[:-1] + index.shape[-1:]), -1)
    values = jnp.asarray(values)
    index = jnp.broadcast_to(index, (*values.shape[:-1], index.shape[-1]))
    return jnp.take_along_axis(values, index, axis=-1, mode="promise_in_bounds")


def _pair_lists(topology: Primitives, exponents, coefficients, positions: Array) -> list[PairList]:
    """All primitive pairs, one list for each sum of angular momenta."""
    dtype = positions.dtype
    counts, shell_counts = topology.counts, topology.shell_counts
    first = np.cumsum([0, *counts])  # of each l, in all primitives of the molecule
    first_shell = np.cumsum([0, *shell_counts])
    xp = np if isinstance(topology.ao, np.ndarray) else jnp
    table = xp.concatenate(topology.table, axis=-1)
    shell = xp.concatenate(topology.shell, axis=-1)
    shell_atom = xp.concatenate(topology.shell_atom, axis=-1)
    all_shells = xp.concatenate(
        [s + n for s, n in zip(topology.shell, first_shell, strict=False)], axis=-1
    )
    exponents, coefficients = (jnp.asarray(x, dtype)[table] for x in (exponents, coefficients))
    of_shell = _take(jnp.moveaxis(positions, -1, 0), shell_atom)  # (3, B, n_shells)
    centres = _take(of_shell, all_shells)

    out = []
    classes = _classes(counts)
    for order in sorted({la + lb for la, lb in classes}):
        own, i, j, weight, target, shells_i, shells_j = [], [], [], [], [], [], []
        n = n_shell_pairs = 0
        for la, lb in (c for c in classes if sum(c) == order):
            same = la == lb
            p, q = _all_pairs(counts[la], counts[lb], same)
            s, t = _all_pairs(shell_counts[la], shell_counts[lb], same)
            own.append(
                PairClass(la, lb, (n, n + len(p)), (n_shell_pairs, n_shell_pairs + len(s)))
            )
            i.append(p + first[la])
            j.append(q + first[lb])
            # For equal l the matrix is this plus its transpose.
            weight.append(np.where(p == q, 0.5, 1.0) if same else np.ones(len(p)))
            target.append(_shell_pair(shell[:, i[-1]], shell[:, j[-1]], shell_counts[lb], same))
            shells_i.append(s + first_shell[la])
            shells_j.append(t + first_shell[lb])
            n, n_shell_pairs = own[-1].primitives[1], own[-1].shells[1]
        i, j, shells_i, shells_j = (np.concatenate(x) for x in (i, j, shells_i, shells_j))
        a, b = exponents[:, i], exponents[:, j]
        at_a, at_b = centres[..., i], centres[..., j]
        r = at_a - at_b
        r2 = r[0] * r[0] + r[1] * r[1] + r[2] * r[2]
        inverse = 1 / (a + b)
        gaussian = (math.pi * inverse) ** 1.5 * jnp.exp(-a * b * inverse * r2)
        weight = jnp.asarray(np.concatenate(weight).astype(dtype))
        out.append(
            PairList(
                order,
                tuple(own),
                a=a,
                b=b,
                scale=weight * coefficients[:, i] * coefficients[:, j] * gaussian,
                centre=at_a - (b * inverse) * r,
                distance2=r2,
                target=xp.concatenate(target, axis=-1),
                separation=of_shell[..., shells_i] - of_shell[..., shells_j],
            )
        )
    return out


def _ao_index(topology: Primitives):
    """``(B, nao, nao)`` place of each element in the blocks one after the other; the end if none.

    Elements with l < l', and blocks above the diagonal of equal l, are left to the transpose.
    """
    xp = np if isinstance(topology.ao, np.ndarray) else jnp
    n_l, batch = len(topology.counts), topology.ao.shape[0]
    start = np.zeros((n_l, n_l), np.int32)
    width = np.zeros((n_l, n_l), np.int32)
    total = 0
    for la, lb in _classes(topology.counts):
        n_a, n_b = topology.shell_counts[la], topology.shell_counts[lb]
        width[la, lb] = n_a * (n_a + 1) // 2 if la == lb else n_a * n_b
        start[la, lb] = total
        total += batch * (2 * la + 1) * (2 * lb + 1) * int(width[la, lb])
    n_shells = np.array(topology.shell_counts, np.int32)
    l, m, shell = (topology.ao[..., c] for c in range(3))
    la, lb, ma, mb = l[:, :, None], l[:, None, :], m[:, :, None], m[:, None, :]
    i, j = shell[:, :, None], shell[:, None, :]
    if xp is jnp:
        start, width, n_shells = (jnp.asarray(x) for x in (start, width, n_shells))
    same = la == lb
    pair = xp.where(same, i * (i + 1) // 2 + j, i * n_shells[lb] + j)
    molecule = np.arange(batch, dtype=np.int32)[:, None, None]
    index = start[la, lb] + ((ma * (2 * lb + 1) + mb) * batch + molecule) * width[la, lb] + pair
    stored = (la >= 0) & (lb >= 0) & ((la > lb) | (same & (i >= j)))
    return xp.where(stored, index, total)


def _matrix(topology: Primitives, blocks: list[dict[tuple[int, int], Array]]) -> Array:
    """Blocks of all classes to the AO matrix, symmetric by construction: (..., B, nao, nao)."""
    every = {key: value for some in blocks for key, value in some.items()}
    flat = [every[c].reshape(*every[c].shape[:-3], -1) for c in _classes(topology.counts)]
    flat.append(jnp.zeros((*flat[0].shape[:-1], 1), flat[0].dtype))
    half = jnp.concatenate(flat, axis=-1)[..., _ao_index(topology)]
    return half + jnp.swapaxes(half, -1, -2)


# ---- operators of B molecules -------------------------------------------------------------------


def _overlap(*molecules) -> Array:
    return _matrix(molecules[0], [assemble(x, None, 0, 0) for x in _pair_lists(*molecules)])


def _kinetic(*molecules) -> Array:
    lists = _pair_lists(*molecules)
    return -0.5 * _matrix(molecules[0], [assemble(x, None, 0, 1) for x in lists])


def _position_potential(pairs: PairList) -> Array:
    """Components of the potentials x, y, z: (3, 4, B, n)."""
    r = pairs.centre
    unit = jnp.asarray(np.eye(3)[:, CARTESIAN_TO_E3NN].astype(r.dtype))
    slope = jnp.broadcast_to(unit[..., None, None], (3, 3, *r.shape[1:]))
    return jnp.concatenate([r[:, None], slope], axis=1)


def _position(*molecules) -> Array:
    lists = _pair_lists(*molecules)
    r = _matrix(molecules[0], [assemble(x, _position_potential(x), 1, 0) for x in lists])
    return jnp.moveaxis(r, 0, 1)


@functools.cache
def _quadratic() -> np.ndarray:
    """``(3, 3, 6)``: S_2m(grad) and the Laplacian of the potentials x_i x_j."""
    x = np.eye(3)
    out = np.zeros((3, 3, 6))

    def s2(v):
        return np.array(solid_harmonics(2, *v)[2])

    for i in range(3):
        for j in range(3):  # polarisation: S_2 is a quadratic form
            out[i, j, :5] = s2(x[i] + x[j]) - s2(x[i]) - s2(x[j])
            out[i, j, 5] = 2.0 * (i == j)
    return out


def _second_potential(pairs: PairList) -> Array:
    """Components of the potentials x_i x_j averaged over the pairs: (3, 3, 10, B, n)."""
    r = pairs.centre
    unit = jnp.eye(3, dtype=r.dtype)[..., None, None]
    value = r[:, None] * r[None, :] + unit * pairs.variance
    slope = unit[:, None] * r[None, :, None] + unit[None] * r[:, None, None]
    slope = slope[:, :, CARTESIAN_TO_E3NN, :]
    second = jnp.asarray(_quadratic().astype(r.dtype))[..., None, None]
    second = jnp.broadcast_to(second, (3, 3, 6, *r.shape[1:]))
    return jnp.concatenate([value[:, :, None], slope, second], axis=2)


def _second_moments(*molecules) -> Array:
    lists = _pair_lists(*molecules)
    rr = _matrix(molecules[0], [assemble(x, _second_potential(x), 2, 0) for x in lists])
    return jnp.moveaxis(rr, 2, 0)


def _coulomb(topology, exponents, coefficients, positions, charges, centres, spreads) -> Array:
    blocks = []
    for pairs in _pair_lists(topology, exponents, coefficients, positions):
        potential = hermite.potential(
            charges.T[:, None, None],
            jnp.moveaxis(centres, 0, -1),
            spreads.T,
            pairs.centre,
            pairs.variance,
            order=pairs.order,
        )
        blocks.append(assemble(pairs, potential[:, 0], pairs.order, 0))
    return _matrix(topology, blocks)


_OPERATORS: dict[str, Callable[..., Array]] = {
    "ovlp": _overlap,
    "kin": _kinetic,
    "r": _position,
    "rr": _second_moments,
    "coulomb": _coulomb,
}


# ---- molecules and batches ----------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_molecule(operator: str, layout: AOLayout, table, *arrays) -> Array:
    topology = jax.tree.map(lambda x: x[None], layout.primitives)
    return _OPERATORS[operator](topology, *table, *(x[None] for x in arrays))[0]


@functools.partial(jax.jit, static_argnums=0)
def _of_batch(operator: str, topology: Primitives, table, *arrays) -> Array:
    return _OPERATORS[operator](topology, *table, *arrays)


def _evaluate(operator: str, structure, basis: Basis, layout, *arrays) -> Array:
    table = basis.flat()
    positions = jnp.asarray(structure.positions)
    arrays = [x.astype(positions.dtype) for x in arrays]
    if isinstance(layout, AOLayout):
        return _of_molecule(operator, layout, table, positions, *arrays)
    return _of_batch(operator, layout.primitives, table, positions, *arrays)


def matrix(operator: str, structure, basis: Basis, layout) -> Array:
    """``"ovlp"``, ``"kin"`` (..., nao, nao), ``"r"`` (..., 3, nao, nao), ``"rr"`` (3, 3)."""
    return _evaluate(operator, structure, basis, layout)


def coulomb(structure, basis: Basis, layout, charges: Array, centres: Array, widths: Array):
    r"""Sum over centres C of :math:`q_C \langle i| erf(|r-C|/\sqrt 2 \sigma_C)/|r-C| |j\rangle`.

    Args:
      structure: molecule or batch.
      basis: its basis.
      layout: its AO layout.
      charges: ``(n,)``, or ``(n_structures, n)``.
      centres: ``(n, 3)`` Bohr, or with a leading batch axis.
      widths: ``(n,)`` Bohr, 0 for points.
    """
    return _evaluate(
        "coulomb", structure, basis, layout, charges, jnp.asarray(centres), widths * widths
    )
