r"""Potentials of Gaussian pair densities: two linear maps, transposes of each other.

A pair of primitives is a Gaussian of variance v at P. What the integrals need of an operator is
its potential, averaged over that Gaussian, and the derivatives of this in P,

.. math:: H_{lmk} = S_{lm}(\nabla)\, \nabla^{2k} \Phi(P), \qquad l + 2k \le L.

For charges q at C with widths sigma, :math:`\Phi(P) = \sum_C q_C g(|P - C|)`, with
:math:`g(r) = \mathrm{erf}(r / \sqrt{2 v'}) / r` and v' = v + sigma^2, and Hobson's theorem makes
every component a product: :math:`S_{lm}(\nabla) \nabla^{2k} g = S_{lm}(r)\, G_{lk}(r)` with
:math:`G_{lk} = (\frac1r \frac{d}{dr})^l \nabla^{2k} g`. There is no recursion over components
(McMurchie and Davidson's R_tuv hold the same numbers in another basis), and because the Laplacian
of g is a Gaussian, components with k > 0 vanish away from the charge.

``potential`` maps charges to H at the pairs; ``moments`` maps weights of H back to the charges.
Both also exist for dipoles in place of charges. A derivative of a member is a member of higher
order, so they are JAX primitives with exact rules for jvp, transpose and vmap: derivatives of any
order, forward and reverse, with no array over pairs *and* charges.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..numerics import Array, einsum, sum_of_tangents
from .boys import radial_top
from .harmonics import gradient, product, solid_harmonics, stacked_harmonics


@functools.cache
def components(order: int) -> tuple[tuple[int, int], ...]:
    """Blocks (l, k) with l + 2k up to ``order``, ascending: lower orders come first."""
    return tuple((n - 2 * k, k) for n in range(order + 1) for k in range(n // 2 + 1))


@functools.cache
def starts(order: int) -> dict[tuple[int, int], int]:
    """First row of each block."""
    out, start = {}, 0
    for l, k in components(order):
        out[l, k] = start
        start += 2 * l + 1
    return out


def n_rows(order: int) -> int:
    """Number of components lmk."""
    return (order + 1) * (order + 2) * (order + 3) // 6


@functools.cache
def shift(order: int) -> np.ndarray:
    """``(3, n_rows(L), n_rows(L + 1))``: derivatives in x, y, z as rows of the next order."""
    out = np.zeros((3, n_rows(order), n_rows(order + 1)))
    here, there = starts(order), starts(order + 1)
    for l, k in components(order):
        for up, table in product(1, l).items():
            column = there[up, k + (l + 1 - up) // 2]
            rows = slice(here[l, k], here[l, k] + 2 * l + 1)
            out[:, rows, column : column + 2 * up + 1] = table[[2, 0, 1]]
    return out


@functools.cache
def laplacian(order: int) -> np.ndarray:
    """``(n_rows(L),)`` row of order L + 2 that holds the Laplacian of each row."""
    there = starts(order + 2)
    return np.concatenate(
        [np.arange(2 * l + 1) + there[l, k + 1] for l, k in components(order)]
    ).astype(np.int32)


def _laguerre(n: int, a: float, t: Any) -> Any:
    """Associated Laguerre polynomial."""
    return sum(c * t**i for i, c in enumerate(_laguerre_coefficients(n, a)))


def _laguerre_coefficients(n: int, a: float) -> list[float]:
    out = []
    for i in range(n + 1):
        c = (-1) ** i * math.gamma(n + a + 1) / (math.gamma(n - i + 1) * math.gamma(a + i + 1))
        out.append(c / math.factorial(i))
    return out


def gaussian_radial(l: int, k: int, mu: Any, r2: Any) -> Any:
    r""":math:`(\frac1r\frac{d}{dr})^l \nabla^{2k} e^{-\mu r^2}`, without the exponential."""
    return (-2 * mu) ** l * (-4 * mu) ** k * math.factorial(k) * _laguerre(k, l + 0.5, mu * r2)


def radial(order: int, r2: Array, variance: Array, up: bool) -> dict[tuple[int, int], Array]:
    """Every G_lk to ``order``; with ``up`` also G_{l+1,k} for each (l, k)."""
    top_order = order + 1 if up else order
    inverse = 1 / variance
    top, t = radial_top(top_order, r2, inverse)
    out = {(top_order, 0): top}
    if top_order == 0:
        return out
    decay = jnp.exp(-t)
    e = math.sqrt(2 / math.pi) * jnp.sqrt(inverse) * decay
    powers: list[Array] = [e]
    for _ in range(top_order):
        powers.append(-inverse * powers[-1])
    for l in range(top_order, 0, -1):
        out[l - 1, 0] = (powers[l - 1] - r2 * out[l, 0]) * (1 / (2 * l - 1))
    for l, k in components(order):
        if k:
            for j in (l, l + 1) if up else (l,):
                scale = (-2 * inverse) ** (k - 1) * math.factorial(k - 1)
                out[j, k] = powers[j + 1] * scale * _laguerre(k - 1, j + 0.5, t)
    return out


def stacked_radial(order: int, r2: Array, variance: Array) -> Array:
    """Every G_lk to ``order``, in the order of :func:`components`, as one array.

    The same numbers as :func:`radial`, with fewer operations to compile at high orders.
    """
    inverse = 1 / variance
    top, t = radial_top(order, r2, inverse)
    powers: list[Array] = [math.sqrt(2 / math.pi) * jnp.sqrt(inverse) * jnp.exp(-t)]
    for _ in range(order):
        powers.append(-inverse * powers[-1])
    straight: list[Array] = [top]
    for l in range(order, 0, -1):
        straight.append((powers[l - 1] - r2 * straight[-1]) * (1 / (2 * l - 1)))
    out = []
    for l, k in components(order):
        polynomial: Any = straight[order - l] if k == 0 else 0.0
        for c in reversed(_laguerre_coefficients(k - 1, l + 0.5)):
            polynomial = polynomial * t + 2.0 ** (k - 1) * math.factorial(k - 1) * c
        out.append(powers[l + k] * polynomial if k else polynomial)
    return jnp.stack(out)


def _constant(table: np.ndarray, like: Array) -> Array:
    """A table in the precision of the data: float64 constants would promote float32."""
    return jnp.asarray(table.astype(like.dtype))


_STACKED_FROM = 4  # order from which whole degrees are built at once: slower to run, not to compile


def _rows(order: int, r: list[Array]) -> Any:
    """Harmonics one by one, or a degree at a time: what is indexed and multiplied by a G."""
    if order < _STACKED_FROM:
        return solid_harmonics(order, *r)
    return stacked_harmonics(order, *r)


def _displacements(pairs: Array, variances: Array, centre: Array, spread: Array):
    """x, y, z, r^2 and total variance, each (B, n), of all pairs to one charge."""
    x, y, z = (pairs[c] - centre[c, :, None] for c in range(3))
    return [x, y, z], x * x + y * y + z * z, variances + spread[:, None]


def _dot_gradient(l: int, vectors: list[Any], lower: Any) -> list[Any]:
    """``v . grad S_lm`` for each m, from the harmonics of degree l - 1."""
    table, out = gradient(l), []
    for m in range(2 * l + 1):
        total = 0.0
        for c in range(3):
            inner = 0.0
            for n in np.flatnonzero(table[c, m]):
                inner = inner + float(table[c, m, n]) * lower[n]
            if not isinstance(inner, float):
                total = total + vectors[c] * inner
        out.append(total)
    return out


def _potential(sources, centres, spreads, pairs, variances, *, order: int, dipole: bool):
    """Sum over charges, one at a time: (n_rows, K, B, n)."""
    stacked = order >= _STACKED_FROM

    def step(total, charge):
        source, centre, spread = charge  # (1 or 3, K, B), (3, B), (B,)
        r, r2, v = _displacements(pairs, variances, centre, spread)
        g = radial(order, r2, v, up=dipole)
        s = _rows(order, r)
        source = source[..., None]
        if dipole:
            along = source[0] * r[0] + source[1] * r[1] + source[2] * r[2]
        terms = []
        for l, k in components(order):
            value = along * g[l + 1, k] if dipole else source[0] * g[l, k]
            if stacked:
                block = s[l][:, None] * value
                for c in range(3) if dipole and l else ():
                    table = _constant(gradient(l)[c], value)
                    slope = einsum("mn,nbp->mbp", table, s[l - 1])
                    block = block + slope[:, None] * (source[c] * g[l, k])
                terms.append(block)
                continue
            slopes = _dot_gradient(l, source, s[l - 1]) if dipole and l else [0.0] * (2 * l + 1)
            for m in range(2 * l + 1):
                row = s[l][m] * value if l else value
                terms.append(row + slopes[m] * g[l, k] if dipole and l else row)
        return [a + b for a, b in zip(total, terms, strict=True)], None

    shape, dtype = (*sources.shape[2:], pairs.shape[-1]), sources.dtype
    if stacked:
        zeros = [jnp.zeros((2 * l + 1, *shape), dtype) for l, _ in components(order)]
    else:
        zeros = [jnp.zeros(shape, dtype) for _ in range(n_rows(order))]
    total, _ = jax.lax.scan(step, zeros, (sources, centres, spreads))
    return jnp.concatenate(total) if stacked else jnp.stack(total)


@functools.cache
def _slope_tables(order: int) -> tuple[dict[tuple[int, int], int], np.ndarray]:
    """Weights of S_l (each lmk) to weights of S_{l-1} in its gradient: starts, (3, n_lower, n)."""
    first, tables, start = {}, [], 0
    for (l, k), row in starts(order).items():
        if l:
            table = np.zeros((3, 2 * l - 1, n_rows(order)))
            table[:, :, row : row + 2 * l + 1] = gradient(l).transpose(0, 2, 1)
            tables.append(table)
            first[l, k] = start
            start += 2 * l - 1
    return first, np.concatenate(tables, axis=1) if tables else np.zeros((3, 0, n_rows(order)))


def _moments(weights, centres, spreads, pairs, variances, *, order: int, dipole: bool):
    """Sum over pairs, for one charge at a time: (n_charges, 1 or 3, K, B)."""
    first, table = _slope_tables(order)
    lower = einsum("cij,jkbn->cikbn", _constant(table, weights), weights) if dipole else None

    def step(_, charge):
        centre, spread = charge
        r, r2, v = _displacements(pairs, variances, centre, spread)
        g = radial(order, r2, v, up=dipole)
        s = solid_harmonics(order, *r)

        def sum_over(l: int, own: Callable[[int], Array]) -> Array:
            return functools.reduce(
                jnp.add, [own(m) * s[l][m] if l else own(m) for m in range(2 * l + 1)]
            )

        value = 0.0
        for (l, k), start in starts(order).items():
            own = sum_over(l, lambda m, at=start: weights[at + m])
            value = value + own * g[l + 1 if dipole else l, k]
        parts = [value]
        if lower is not None:
            parts = [value * x for x in r]
            for c in range(3):
                for (l, k), start in first.items():
                    own = sum_over(l - 1, lambda m, c=c, at=start, w=lower: w[c, at + m])
                    parts[c] = parts[c] + own * g[l, k]
        return None, jnp.stack([einsum("kbn->kb", x) for x in parts])

    return jax.lax.scan(step, None, (centres, spreads))[1]


# ---- the pair of primitives -------------------------------------------------------------------

_potential_p = Primitive("opml_potential")
_moments_p = Primitive("opml_moments")


def potential(sources, centres, spreads, pairs, variances, *, order: int, dipole: bool = False):
    r"""Potential components of charges (or dipoles) at Gaussian pairs.

    Args:
      sources: ``(n_charges, 1, K, B)`` charges in e, or ``(n_charges, 3, K, B)`` dipoles, e Bohr;
        K channels share positions, B molecules do not.
      centres: ``(n_charges, 3, B)`` Bohr.
      spreads: ``(n_charges, B)`` sigma^2 of each charge, Bohr^2; 0 for points.
      pairs: ``(3, B, n)`` centres P of the pairs, Bohr.
      variances: ``(B, n)`` variances v = 1 / 2p of the pairs, Bohr^2.
      order: highest degree L.
      dipole: sources are dipoles.

    Returns:
      ``(n_rows(L), K, B, n)``; rows ordered as :func:`components`, m = -l..l within.
    """
    args = (sources, centres, spreads, pairs, variances)
    return _potential_p.bind(*args, order=order, dipole=dipole)


def moments(weights, centres, spreads, pairs, variances, *, order: int, dipole: bool = False):
    """Transpose of :func:`potential` in its first argument.

    Args:
      weights: ``(n_rows(L), K, B, n)``.
      centres: as for :func:`potential`, like all further arguments.
      spreads: ``(n_charges, B)``.
      pairs: ``(3, B, n)``.
      variances: ``(B, n)``.
      order: highest degree L.
      dipole: return the gradient.

    Returns:
      ``(n_charges, 1, K, B)``, or ``(n_charges, 3, K, B)`` with ``dipole``.
    """
    args = (weights, centres, spreads, pairs, variances)
    return _moments_p.bind(*args, order=order, dipole=dipole)


def _potential_jvp(primals, tangents, *, order: int, dipole: bool):
    sources, *rest = primals
    d_sources, d_centres, d_spreads, d_pairs, d_variances = tangents
    moved = type(d_pairs) is not ad.Zero
    widened = type(d_variances) is not ad.Zero
    call = functools.partial(potential, dipole=dipole)
    # One evaluation at the highest order needed holds the value as its first rows.
    highest = order + (2 if widened else 1 if moved else 0)
    full = call(sources, *rest, order=highest)
    out = full[: n_rows(order)]
    table = _constant(shift(order), sources)
    terms = []
    if moved:
        turned = full[: n_rows(order + 1)] * d_pairs[:, None, None]
        terms.append(einsum("xij,xjkbn->ikbn", table, turned))
    if widened:
        terms.append(0.5 * full[laplacian(order)] * d_variances)
    if type(d_spreads) is not ad.Zero:
        wide = call(sources * d_spreads[:, None, None], *rest, order=order + 2)
        terms.append(0.5 * wide[laplacian(order)])
    if type(d_sources) is not ad.Zero:
        terms.append(call(d_sources, *rest, order=order))
    if type(d_centres) is not ad.Zero:
        # A charge that moves by d adds a dipole q d (with the sign of P - C), and so on upward.
        if not dipole:
            turned = sources * d_centres[:, :, None]
            terms.append(-potential(turned, *rest, order=order, dipole=True))
        else:
            turned = sources[:, :, None] * d_centres[:, None, :, None]  # dipole, direction
            n, _, _, channels, batch = turned.shape
            turned = turned.reshape(n, 3, 3 * channels, batch)
            up = potential(turned, *rest, order=order + 1, dipole=True)
            up = up.reshape(up.shape[0], 3, channels, *up.shape[2:])
            terms.append(-einsum("xij,jxkbn->ikbn", table, up))
    return out, sum_of_tangents(terms, out)


def _moments_jvp(primals, tangents, *, order: int, dipole: bool):
    weights, *rest = primals
    d_weights, d_centres, d_spreads, d_pairs, d_variances = tangents
    call = functools.partial(moments, dipole=dipole)
    out = call(weights, *rest, order=order)
    table = _constant(shift(order), weights)
    terms = []
    if type(d_weights) is not ad.Zero:
        terms.append(call(d_weights, *rest, order=order))
    if type(d_pairs) is not ad.Zero:
        turned = weights[None] * d_pairs[:, None, None]
        terms.append(call(einsum("xij,xikbn->jkbn", table, turned), *rest, order=order + 1))
    lap, rows = laplacian(order), n_rows(order + 2)

    def embedded(w):
        return jnp.zeros((rows, *w.shape[1:]), w.dtype).at[lap].set(w, unique_indices=True)

    if type(d_variances) is not ad.Zero:
        terms.append(call(embedded(0.5 * weights * d_variances), *rest, order=order + 2))
    if type(d_spreads) is not ad.Zero:
        wide = call(embedded(0.5 * weights), *rest, order=order + 2)
        terms.append(wide * d_spreads[:, None, None])
    if type(d_centres) is not ad.Zero:
        if not dipole:
            slopes = moments(weights, *rest, order=order, dipole=True)
            terms.append(-jnp.sum(slopes * d_centres[:, :, None], axis=1, keepdims=True))
        else:
            channels = weights.shape[1]
            raised = einsum("xij,ikbn->jxkbn", table, weights)
            raised = raised.reshape(raised.shape[0], 3 * channels, *raised.shape[3:])
            up = moments(raised, *rest, order=order + 1, dipole=True)
            up = up.reshape(*up.shape[:2], 3, channels, up.shape[-1])
            terms.append(-jnp.sum(up * d_centres[:, None, :, None], axis=2))
    return out, sum_of_tangents(terms, out)


def _transpose_of(other):
    def rule(cotangent, linear, *rest, order: int, dipole: bool):
        if type(cotangent) is ad.Zero:
            return (ad.Zero(linear.aval), None, None, None, None)
        back = other(cotangent, *rest, order=order, dipole=dipole)
        return (back, None, None, None, None)

    return rule


# Where the molecules are in each argument, and in the result.
_BATCH_AXES = {"potential": ((3, 2, 1, 1, 0), 2), "moments": ((2, 2, 1, 1, 0), 3)}


def _batching_of(name: str, function):
    inputs, output = _BATCH_AXES[name]

    def rule(args, axes, **params):
        size = next(a.shape[d] for a, d in zip(args, axes, strict=True) if d is not None)
        folded = []
        for a, d, own in zip(args, axes, inputs, strict=True):
            if d is None:
                a = jnp.broadcast_to(
                    jnp.expand_dims(a, own), (*a.shape[:own], size, *a.shape[own:])
                )
            else:
                a = jnp.moveaxis(a, d, own)
            folded.append(a.reshape(*a.shape[:own], size * a.shape[own + 1], *a.shape[own + 2 :]))
        out = function(*folded, **params)
        shape = (*out.shape[:output], size, out.shape[output] // size, *out.shape[output + 1 :])
        return out.reshape(shape), output

    return rule


def _potential_shape(sources, centres, spreads, pairs, variances, *, order, dipole):
    shape = (n_rows(order), *sources.shape[2:], pairs.shape[-1])
    return jax.core.ShapedArray(shape, sources.dtype)


def _moments_shape(weights, centres, spreads, pairs, variances, *, order, dipole):
    shape = (centres.shape[0], 3 if dipole else 1, *weights.shape[1:3])
    return jax.core.ShapedArray(shape, weights.dtype)


def _register(primitive, implementation, shape, jvp, function, transpose_to) -> None:
    primitive.def_impl(jax.jit(implementation, static_argnames=("order", "dipole")))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = _transpose_of(transpose_to)
    batching.primitive_batchers[primitive] = _batching_of(function.__name__, function)


_register(_potential_p, _potential, _potential_shape, _potential_jvp, potential, moments)
_register(_moments_p, _moments, _moments_shape, _moments_jvp, moments, potential)
