"""The native driver: every integral in JAX, to any derivative, without a host callback.

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
from .pairs import (
    PairClass,
    PairList,
    all_pairs,
    assemble,
    classes_of,
    contract,
    couple,
    coupling,
    shell_pair,
)
from .screening import ScreenedPairs

PAIR_BYTES = 256 * 2**20
"""Components of the potential beyond this many bytes are computed in chunks of pairs."""


def _take(values, index):
    """``values[..., b, index[b]]`` for every molecule b: (..., B, n)."""
    batch, n = values.shape[-2:]
    index = index + n * np.arange(batch, dtype=np.int32)[:, None]
    values = values.reshape(*values.shape[:-2], batch * n)
    if isinstance(values, np.ndarray) and isinstance(index, np.ndarray):
        return values[..., index]
    return jnp.asarray(values).at[..., index].get(mode="promise_in_bounds")


def _pick(values, index):
    """Entries for the same pairs in all molecules, (n,), or for each one's own, (B, n)."""
    return values[..., index] if index.ndim == 1 else _take(values, index)


def pair_lists(
    topology: Primitives, exponents, coefficients, positions: Array, chosen=None
) -> list[PairList]:
    """Primitive pairs, one list for each sum of angular momenta: all, or a screened choice."""
    dtype = positions.dtype
    counts, shell_counts = topology.counts, topology.shell_counts
    first = np.cumsum([0, *counts]).astype(np.int32)  # of each l, in all primitives
    first_shell = np.cumsum([0, *shell_counts]).astype(np.int32)
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
    classes = classes_of(counts)
    for order in sorted({la + lb for la, lb in classes}):
        own, i, j, weight, target, shells_i, shells_j = [], [], [], [], [], [], []
        n = n_shell_pairs = 0
        for k, (la, lb) in enumerate(classes):
            if la + lb != order:
                continue
            same = la == lb
            if chosen is None:
                p, q = all_pairs(counts[la], counts[lb], same)
                used = np.ones(len(p), dtype)
            else:
                p, q, used = chosen.first[k], chosen.second[k], chosen.mask[k].astype(dtype)
            s, t = all_pairs(shell_counts[la], shell_counts[lb], same)
            stops = n + p.shape[-1], n_shell_pairs + len(s)
            own.append(PairClass(la, lb, (n, stops[0]), (n_shell_pairs, stops[1])))
            n, n_shell_pairs = stops
            i.append(p + first[la])
            j.append(q + first[lb])
            # For equal l the matrix is this plus its transpose.
            weight.append(used * (1 - 0.5 * (p == q)).astype(dtype) if same else used)
            targets = _pick(shell, i[-1]), _pick(shell, j[-1])
            target.append(shell_pair(*targets, shell_counts[lb], same))
            shells_i.append(s + first_shell[la])
            shells_j.append(t + first_shell[lb])
        joined = np if chosen is None else jnp
        i, j, weight = (joined.concatenate(x, axis=-1) for x in (i, j, weight))
        shells_i, shells_j = np.concatenate(shells_i), np.concatenate(shells_j)
        a, b = _pick(exponents, i), _pick(exponents, j)
        at_a, at_b = _pick(centres, i), _pick(centres, j)
        r = at_a - at_b
        r2 = r[0] * r[0] + r[1] * r[1] + r[2] * r[2]
        inverse = 1 / (a + b)
        volume = math.pi**1.5 * inverse * jnp.sqrt(inverse)
        gaussian = volume * jnp.exp(-a * b * inverse * r2)
        out.append(
            PairList(
                order,
                tuple(own),
                a=a,
                b=b,
                scale=weight * _pick(coefficients, i) * _pick(coefficients, j) * gaussian,
                centre=at_a - (b * inverse) * r,
                distance2=r2,
                target=(xp if chosen is None else jnp).concatenate(target, axis=-1),
                separation=of_shell[..., shells_i] - of_shell[..., shells_j],
            )
        )
    return out


def ao_index(topology: Primitives):
    """``(B, nao, nao)`` place of each element in the blocks one after the other; the end if none.

    Elements with l < l', and blocks above the diagonal of equal l, are left to the transpose.
    """
    xp = np if isinstance(topology.ao, np.ndarray) else jnp
    n_l, batch = len(topology.counts), topology.ao.shape[0]
    start = np.zeros((n_l, n_l), np.int32)
    width = np.zeros((n_l, n_l), np.int32)
    total = 0
    for la, lb in classes_of(topology.counts):
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
    flat = [every[c].reshape(*every[c].shape[:-3], -1) for c in classes_of(topology.counts)]
    flat.append(jnp.zeros((*flat[0].shape[:-1], 1), flat[0].dtype))
    half = jnp.concatenate(flat, axis=-1)
    half = half.at[..., ao_index(topology)].get(mode="promise_in_bounds")
    return half + jnp.swapaxes(half, -1, -2)


# ---- operators of B molecules -------------------------------------------------------------------


def _overlap(*molecules) -> Array:
    return _matrix(molecules[0], [assemble(x, None, 0, 0) for x in pair_lists(*molecules)])


def _kinetic(*molecules) -> Array:
    lists = pair_lists(*molecules)
    return -0.5 * _matrix(molecules[0], [assemble(x, None, 0, 1) for x in lists])


def _position_potential(pairs: PairList) -> Array:
    """Components of the potentials x, y, z: (3, 4, B, n)."""
    r = pairs.centre
    unit = jnp.asarray(np.eye(3)[:, CARTESIAN_TO_E3NN].astype(r.dtype))
    slope = jnp.broadcast_to(unit[..., None, None], (3, 3, *r.shape[1:]))
    return jnp.concatenate([r[:, None], slope], axis=1)


def _position(*molecules) -> Array:
    lists = pair_lists(*molecules)
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
    lists = pair_lists(*molecules)
    rr = _matrix(molecules[0], [assemble(x, _second_potential(x), 2, 0) for x in lists])
    return jnp.moveaxis(rr, 2, 0)


def _contract_coulomb(pairs: PairList, charges, centres, spreads) -> list[Array]:
    potential = hermite.potential(
        charges, centres, spreads, pairs.centre, pairs.variance, order=pairs.order
    )
    return contract(pairs, potential[:, 0], pairs.order, 0)


def _in_chunks(pairs: PairList, chunk: int, *sources) -> list[Array]:
    """The same, a few pairs at a time, class by class; backward passes recompute each chunk."""
    out = []
    for own in pairs.classes:
        start, stop = own.primitives
        n = -(-(stop - start) // chunk)

        def folded(x, filler, start=start, stop=stop, n=n):
            x = x[..., start:stop]
            room = [(0, 0)] * (x.ndim - 1) + [(0, n * chunk - x.shape[-1])]
            x = jnp.pad(x, room, constant_values=filler)
            return jnp.moveaxis(x.reshape(*x.shape[:-1], n, chunk), -2, 0)

        shells = own.shells[1] - own.shells[0]
        part = PairClass(own.la, own.lb, (0, chunk), (0, shells))
        # Padding: exponent 1, scale 0.
        varying = {"a": 1, "b": 1, "scale": 0, "centre": 0, "distance2": 0, "target": 0}
        arrays = {k: folded(jnp.asarray(getattr(pairs, k)), v) for k, v in varying.items()}
        separation = pairs.separation[..., slice(*own.shells)]

        @jax.checkpoint
        def step(total, piece, part=part, separation=separation):
            own = PairList(pairs.order, (part,), separation=separation, **piece)
            return total + _contract_coulomb(own, *sources)[0], None

        n_products = len(coupling(own.la, own.lb, pairs.order).row)
        zero = jnp.zeros((n_products, *separation.shape[1:]), pairs.centre.dtype)
        out.append(jax.lax.scan(step, zero, arrays)[0])
    return out


def _coulomb(
    topology, exponents, coefficients, positions, charges, centres, spreads, chosen=None
) -> Array:
    sources = charges.T[:, None, None], jnp.moveaxis(centres, 0, -1), spreads.T
    blocks = []
    for pairs in pair_lists(topology, exponents, coefficients, positions, chosen):
        batch, n = pairs.a.shape
        width = hermite.n_rows(pairs.order + 1) * batch * positions.dtype.itemsize
        chunk = max(64, PAIR_BYTES // width)
        if n > chunk:
            contracted = _in_chunks(pairs, chunk, *sources)
        else:
            contracted = _contract_coulomb(pairs, *sources)
        blocks.append(couple(pairs, contracted, pairs.order))
    v = _matrix(topology, blocks)
    if chosen is not None:
        beyond = chosen.moved(jax.lax.stop_gradient(positions)) | chosen.exceeded(charges)
        v = jnp.where(beyond[:, None, None], jnp.nan, v)
    return v


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
    arrays = (x if isinstance(x, ScreenedPairs) else x[None] for x in arrays)
    return _OPERATORS[operator](topology, *table, *arrays)[0]


@functools.partial(jax.jit, static_argnums=0)
def _of_batch(operator: str, topology: Primitives, table, *arrays) -> Array:
    return _OPERATORS[operator](topology, *table, *arrays)


def _evaluate(operator: str, structure, basis: Basis, layout, *arrays) -> Array:
    table = basis.flat()
    positions = jnp.asarray(structure.positions)
    if isinstance(layout, AOLayout):
        return _of_molecule(operator, layout, table, positions, *arrays)
    return _of_batch(operator, layout.primitives, table, positions, *arrays)


def matrix(operator: str, structure, basis: Basis, layout) -> Array:
    """``"ovlp"``, ``"kin"`` (..., nao, nao), ``"r"`` (..., 3, nao, nao), ``"rr"`` (3, 3)."""
    return _evaluate(operator, structure, basis, layout)


def coulomb(
    structure,
    basis: Basis,
    layout,
    charges: Array,
    centres: Array,
    widths: Array,
    pairs: ScreenedPairs | None = None,
):
    r"""Sum over centres C of :math:`q_C \langle i| erf(|r-C|/\sqrt 2 \sigma_C)/|r-C| |j\rangle`.

    Args:
      structure: molecule or batch.
      basis: its basis.
      layout: its AO layout.
      charges: ``(n,)``, or ``(n_structures, n)``.
      centres: ``(n, 3)`` Bohr, or with a leading batch axis.
      widths: ``(n,)`` Bohr, 0 for points.
      pairs: primitive pairs to use. Default: all.
    """
    extra = () if pairs is None else (pairs,)
    arrays = (charges, jnp.asarray(centres), widths * widths, *extra)
    return _evaluate("coulomb", structure, basis, layout, *arrays)
