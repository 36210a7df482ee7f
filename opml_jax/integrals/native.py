"""The native driver: every integral in JAX, for any device and any derivative.

Topology (which primitives a molecule has) is index arrays: constants for one molecule, data for a
batch, so that a bucket of mixed molecules shares one program. :mod:`.pairs` holds the formulas,
:mod:`.hermite` the potential of charges; here primitives become pairs, and pairs a matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, Basis
from ..basis.primitives import Primitives
from ..conventions import CARTESIAN_TO_E3NN
from ..numerics import Array, einsum
from . import hermite
from .pairs import PairList, assemble


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


def _pair_list(
    la: int, lb: int, topology: Primitives, exponents, coefficients, positions: Array
) -> PairList:
    """All primitive pairs of a class."""
    same = la == lb
    i, j = _all_pairs(topology.counts[la], topology.counts[lb], same)
    shell_a, shell_b = topology.shell[la], topology.shell[lb]
    n_a, n_b = topology.shell_counts[la], topology.shell_counts[lb]
    a_index, b_index = topology.table[la], topology.table[lb]
    a, b = exponents[a_index][i], exponents[b_index][j]
    weight = coefficients[a_index][i] * coefficients[b_index][j]
    if same:  # the matrix is this plus its transpose
        weight = weight * np.where(i == j, 0.5, 1.0).astype(weight.dtype)
    own = positions.T  # (3, n_atoms)
    centre_a = own[:, topology.shell_atom[la]]
    centre_b = own[:, topology.shell_atom[lb]]
    at_a, at_b = centre_a[:, shell_a][:, i], centre_b[:, shell_b][:, j]
    r = at_a - at_b
    p = a + b
    shells = _all_pairs(n_a, n_b, same)
    return PairList(
        la,
        lb,
        a=a,
        b=b,
        weight=weight,
        centre=at_a - (b / p) * r,
        distance2=jnp.sum(r * r, axis=0),
        target=_shell_pair(shell_a[i], shell_b[j], n_b, same),
        separation=centre_a[:, shells[0]] - centre_b[:, shells[1]],
    )


def _ao_index(topology: Primitives):
    """``(nao, nao)`` place of each element in the blocks one after the other; the end if none.

    Elements with l < l', and blocks above the diagonal of equal l, are left to the transpose.
    """
    xp = np if isinstance(topology.ao, np.ndarray) else jnp
    n_l = len(topology.counts)
    start = np.zeros((n_l, n_l), np.int32)
    width = np.zeros((n_l, n_l), np.int32)
    total = 0
    for la, lb in _classes(topology.counts):
        n_a, n_b = topology.shell_counts[la], topology.shell_counts[lb]
        width[la, lb] = n_a * (n_a + 1) // 2 if la == lb else n_a * n_b
        start[la, lb] = total
        total += (2 * la + 1) * (2 * lb + 1) * int(width[la, lb])
    n_shells = np.array(topology.shell_counts, np.int32)
    l, m, shell = (topology.ao[:, c] for c in range(3))
    la, lb, ma, mb = l[:, None], l[None, :], m[:, None], m[None, :]
    i, j = shell[:, None], shell[None, :]
    if xp is jnp:
        start, width, n_shells = (jnp.asarray(x) for x in (start, width, n_shells))
    same = la == lb
    pair = xp.where(same, i * (i + 1) // 2 + j, i * n_shells[lb] + j)
    index = start[la, lb] + (ma * (2 * lb + 1) + mb) * width[la, lb] + pair
    stored = (la >= 0) & (lb >= 0) & ((la > lb) | (same & (i >= j)))
    return xp.where(stored, index, total)


def _matrix(topology: Primitives, blocks: list[Array]) -> Array:
    """Blocks of all classes to the AO matrix, symmetric by construction: (..., nao, nao)."""
    lead = blocks[0].shape[:-2]
    flat = [b.reshape(*lead, -1) for b in blocks] + [jnp.zeros((*lead, 1), blocks[0].dtype)]
    half = jnp.concatenate(flat, axis=-1)[..., _ao_index(topology)]
    return half + jnp.swapaxes(half, -1, -2)


def _all_lists(topology: Primitives, exponents, coefficients, positions) -> list[PairList]:
    exponents, coefficients = (
        jnp.asarray(x, positions.dtype) if isinstance(x, np.ndarray) else x.astype(positions.dtype)
        for x in (exponents, coefficients)
    )
    return [
        _pair_list(la, lb, topology, exponents, coefficients, positions)
        for la, lb in _classes(topology.counts)
    ]


# ---- operators: blocks of one molecule ----------------------------------------------------------


def _overlap(topology, exponents, coefficients, positions) -> Array:
    lists = _all_lists(topology, exponents, coefficients, positions)
    return _matrix(topology, [assemble(x, None, 0) for x in lists])


def _kinetic(topology, exponents, coefficients, positions) -> Array:
    lists = _all_lists(topology, exponents, coefficients, positions)
    return _matrix(topology, [-0.5 * assemble(x, None, 0, laplacians=1) for x in lists])


def _position_potential(pairs: PairList) -> Array:
    """Components of the potentials x, y, z: (3, 4, n)."""
    unit = np.eye(3)[:, CARTESIAN_TO_E3NN]
    slope = jnp.broadcast_to(
        jnp.asarray(unit, pairs.centre.dtype)[..., None], (3, 3, pairs.a.shape[0])
    )
    return jnp.concatenate([pairs.centre[:, None], slope], axis=1)


def _position(topology, exponents, coefficients, positions) -> Array:
    lists = _all_lists(topology, exponents, coefficients, positions)
    return _matrix(topology, [assemble(x, _position_potential(x), 1) for x in lists])


@functools.cache
def _quadratic() -> np.ndarray:
    """``(3, 3, 6)``: S_2m(grad) and the Laplacian of the potentials x_i x_j."""
    x = np.eye(3)
    out = np.zeros((3, 3, 6))
    from .harmonics import solid_harmonics

    def s2(v):
        return np.array(solid_harmonics(2, *v)[2])

    for i in range(3):
        for j in range(3):  # polarisation: S_2 is a quadratic form
            out[i, j, :5] = s2(x[i] + x[j]) - s2(x[i]) - s2(x[j])
            out[i, j, 5] = 2.0 * (i == j)
    return out


def _second_potential(pairs: PairList) -> Array:
    """Components of the potentials x_i x_j averaged over the pairs: (3, 3, 10, n)."""
    dtype, n = pairs.centre.dtype, pairs.a.shape[0]
    r = pairs.centre
    unit = jnp.eye(3, dtype=dtype)
    value = r[:, None] * r[None, :] + unit[..., None] * pairs.variance
    slope = unit[:, None, :, None] * r[None, :, None] + unit[None, :, :, None] * r[:, None, None]
    slope = slope[:, :, CARTESIAN_TO_E3NN, :]
    second = jnp.broadcast_to(jnp.asarray(_quadratic(), dtype)[..., None], (3, 3, 6, n))
    return jnp.concatenate([value[:, :, None], slope, second], axis=2)


def _second_moments(topology, exponents, coefficients, positions) -> Array:
    lists = _all_lists(topology, exponents, coefficients, positions)
    return _matrix(topology, [assemble(x, _second_potential(x), 2) for x in lists])


def _coulomb(
    topology, exponents, coefficients, positions, charges, centres, spreads
) -> Array:
    lists = _all_lists(topology, exponents, coefficients, positions)
    blocks: dict[tuple[int, int], Array] = {}
    for order in sorted({x.la + x.lb for x in lists}):
        # Classes of one order share one evaluation, and one compilation, of the potential.
        own = [x for x in lists if x.la + x.lb == order]
        potential = hermite.potential(
            charges[None, None, :, None],
            centres[None],
            spreads[None],
            jnp.concatenate([x.centre for x in own], axis=-1)[None],
            jnp.concatenate([x.variance for x in own])[None],
            order=order,
        )[0, 0]
        stops = np.cumsum([x.a.shape[0] for x in own])[:-1]
        for x, part in zip(own, jnp.split(potential, stops, axis=-1), strict=True):
            blocks[x.la, x.lb] = assemble(x, part, order)
    return _matrix(topology, [blocks[x.la, x.lb] for x in lists])


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
    return _OPERATORS[operator](layout.primitives, *table, *arrays)


@functools.partial(jax.jit, static_argnums=0)
def _of_batch(operator: str, topology: Primitives, table, *arrays) -> Array:
    def one(own, *rest):
        return _OPERATORS[operator](own, *table, *rest)

    return jax.vmap(one)(topology, *arrays)


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
