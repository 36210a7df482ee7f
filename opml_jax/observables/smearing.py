r"""Fermi and Dirac's occupations of a matrix, at a fixed number of electrons, with derivatives.

:math:`D = f(X)`, :math:`X = (F - \mu)/T`, :math:`f(x) = 1/(1 + e^x)`. In the eigenvectors of X the
derivative multiplies by divided differences, :math:`dD_{ij} = f[x_i, x_j]\, dX_{ij}` (Daleckii and
Krein; Higham, Functions of Matrices, SIAM 2008, theorem 3.11), the second one sums
:math:`f[x_i, x_k, x_j]` over k. Both have limits where levels are equal, partially occupied ones
included, and those are taken. They are one JAX primitive with a list of directions: its derivative
in X adds a direction, and its transpose in a direction is itself.

The chemical potential follows from the number of electrons: of :math:`\mathrm{Tr}\, dD = 0`,
:math:`d\mu = T\, \mathrm{Tr}\, Df[dF/T] / \mathrm{Tr}\, Df[1]`.
"""

from __future__ import annotations

import jax
import jax.core
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..errors import OpmlError
from ..lapack import eigh
from ..numerics import Array, einsum, matmul, sum_of_tangents

CLOSE = {"float64": 0.02, "float32": 0.3}
"""Three levels within this (in units of T) have their divided difference from a Taylor series."""

HALVINGS = 200
"""Of the interval that holds the chemical potential: enough for any, to the last bit."""

VANISHING = 1e-30
"""Sum of slopes of occupations below which none is partial, and the potential does not matter."""


def occupied(f: Array, n: Array, t: Array) -> tuple[jax.Array, jax.Array]:
    """Occupations of a matrix in an orthonormal basis.

    Args:
      f: ``(..., nao, nao)`` symmetric, Hartree.
      n: ``(...)`` number of orbitals that are occupied, at least 0 and at most ``nao``.
      t: ``(...)`` temperature times Boltzmann's constant, Hartree.

    Returns:
      D ``(..., nao, nao)``, of trace n, and ``(...)`` the entropy of the orbitals, in units of
      Boltzmann's constant. Differentiable twice in ``f`` and ``t``, forward and reverse.

    Raises:
      OpmlError: a third derivative is asked for.
    """
    t = jnp.broadcast_to(jnp.asarray(t, f.dtype), f.shape[:-2])
    levels, u = eigh(f)
    mu, w = jax.lax.stop_gradient(_aufbau(levels, n, t))
    x = _relative(f, _potential(f, t, mu, w, u), t)
    return _fermi(x, w, u), _entropy(x, w, u)


def _aufbau(levels: Array, n: Array, t: Array) -> tuple[Array, Array]:
    """Chemical potential ``(...)``, and the levels relative to it in units of t ``(..., nao)``.

    Bisection from the highest level that would be occupied without smearing, in units of t: the
    number of electrons is exact however small t is. In a gap wide enough, where many potentials
    give that number to the last bit, their middle is taken.
    """
    at = jnp.clip(jnp.ceil(n).astype(int) - 1, 0, levels.shape[-1] - 1)
    at = jnp.broadcast_to(at, t.shape)[..., None]
    origin = jnp.take_along_axis(levels, at, axis=-1)
    scaled = (levels - origin) / t[..., None]
    far = 1 - jnp.log(jnp.finfo(levels.dtype).tiny)

    def edge(too_low):
        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            count = jnp.sum(jax.nn.sigmoid(middle - scaled), axis=-1, keepdims=True)
            up = too_low(count, n[..., None])
            return jnp.where(up, middle, low), jnp.where(up, high, middle)

        ends = (scaled[..., :1] - far, scaled[..., -1:] + far)
        return sum(jax.lax.fori_loop(0, HALVINGS, halve, ends)) / 2

    middle = 0.5 * (edge(jnp.less) + edge(jnp.less_equal))
    return (origin + middle * t[..., None])[..., 0], scaled - middle


def _relative(f: Array, mu: Array, t: Array) -> Array:
    eye = jnp.eye(f.shape[-1], dtype=f.dtype)
    return (f - mu[..., None, None] * eye) / t[..., None, None]


def _trace(x: Array) -> jax.Array:
    return jnp.trace(x, axis1=-2, axis2=-1)


@jax.custom_jvp
def _potential(f: Array, t: Array, mu: Array, w: Array, u: Array) -> Array:
    """The chemical potential that was found, as a function of f and t."""
    return mu


@_potential.defjvp
def _potential_jvp(primals, tangents):
    (f, t, _, w, u), (df, dt, *_) = primals, tangents
    mu = _potential(*primals)
    x = _relative(f, mu, t)
    direction = (df - x * dt[..., None, None]) / t[..., None, None]
    unit = jnp.broadcast_to(jnp.eye(f.shape[-1], dtype=f.dtype), f.shape)
    slope = _trace(_fermi(x, w, u, unit))
    partial = -slope > VANISHING
    change = t * _trace(_fermi(x, w, u, direction)) / jnp.where(partial, slope, -1.0)
    return mu, jnp.where(partial, change, 0.0)


@jax.custom_jvp
def _entropy(x: Array, w: Array, u: Array) -> jax.Array:
    """Sum over orbitals of -f ln f - (1 - f) ln(1 - f)."""
    size = jnp.abs(w)
    return jnp.sum(jnp.log1p(jnp.exp(-size)) + size * jax.nn.sigmoid(-size), axis=-1)


@_entropy.defjvp
def _entropy_jvp(primals, tangents):
    x, w, u = primals
    change = _fermi(x, w, u, _symmetric(tangents[0]))
    return _entropy(x, w, u), einsum("...ij,...ij->...", x, change)


def _symmetric(x: Array) -> Array:
    return 0.5 * (x + jnp.matrix_transpose(x))


# ---- divided differences ----------------------------------------------------------------------


def divided(x: Array, y: Array) -> jax.Array:
    r"""First divided difference of f, :math:`-\sinh(h) / (4 h \cosh(x/2) \cosh(y/2))`.

    With h = (x - y) / 2; written so that nothing overflows.
    """
    h = jnp.abs(x - y)
    apart = h > 0
    ratio = jnp.where(apart, -jnp.expm1(-h) / jnp.where(apart, h, 1.0), 1.0)
    size = jnp.abs(x) + jnp.abs(y)
    sides = (1 + jnp.exp(-jnp.abs(x))) * (1 + jnp.exp(-jnp.abs(y)))
    return -jnp.exp(0.5 * (h - size)) * ratio / sides


def twice_divided(x: Array, y: Array, z: Array) -> jax.Array:
    """Second divided difference of f, symmetric in its arguments."""
    low, high = jnp.minimum(jnp.minimum(x, y), z), jnp.maximum(jnp.maximum(x, y), z)
    middle = jnp.maximum(jnp.minimum(x, y), jnp.minimum(jnp.maximum(x, y), z))
    width = high - low
    close = width < CLOSE[str(width.dtype)]
    far = (divided(middle, high) - divided(low, middle)) / jnp.where(close, 1.0, width)
    return jnp.where(close, _series(low, middle, high), far)


def _series(x: Array, y: Array, z: Array) -> jax.Array:
    """About the mean: Taylor coefficients of f times complete homogeneous polynomials."""
    mean = (x + y + z) / 3
    a, b, c = x - mean, y - mean, z - mean
    two, three = a * b + b * c + c * a, a * b * c  # elementary; their sum is 0
    f = [jax.nn.sigmoid(-mean)]
    for k in range(6):  # f' = f^2 - f
        square = sum(f[i] * f[k - i] for i in range(k + 1))
        f.append((square - f[k]) / (k + 1))
    return f[2] - f[4] * two + f[5] * three + f[6] * two * two


# ---- the matrix function and its derivatives: one primitive -----------------------------------

_fermi_p = Primitive("opml_fermi")


def _fermi(x: Array, w: Array, u: Array, *directions: Array) -> jax.Array:
    """Occupations of a symmetric matrix, or their first or second derivative in directions.

    Args:
      x: ``(..., n, n)``, which carries derivatives.
      w: ``(..., n)`` its eigenvalues.
      u: ``(..., n, n)`` its eigenvectors.
      directions: up to two, each ``(..., n, n)``.
    """
    if len(directions) > 2:
        raise OpmlError(
            "third derivatives of a density matrix with smearing are not available; without "
            "smearing it has derivatives of any order."
        )
    return _fermi_p.bind(x, jax.lax.stop_gradient(w), jax.lax.stop_gradient(u), *directions)


def _value(x: Array, w: Array, u: Array, *directions: Array) -> jax.Array:
    ut = jnp.matrix_transpose(u)
    inner = [matmul(matmul(ut, e), u) for e in directions]
    if not inner:
        return matmul(u * jax.nn.sigmoid(-w)[..., None, :], ut)
    if len(inner) == 1:
        changed = divided(w[..., :, None], w[..., None, :]) * inner[0]
    else:
        a, b = inner
        ikj = twice_divided(w[..., :, None, None], w[..., None, :, None], w[..., None, None, :])
        changed = einsum("...ikj,...ik,...kj->...ij", ikj, a, b)
        changed += einsum("...ikj,...ik,...kj->...ij", ikj, b, a)
    return matmul(matmul(u, changed), ut)


def _fermi_jvp(primals, tangents):
    x, w, u, *directions = primals
    dx, _, _, *changes = tangents
    terms = []
    if type(dx) is not ad.Zero:
        terms.append(_fermi(x, w, u, *directions, _symmetric(dx)))
    for i, change in enumerate(changes):
        if type(change) is not ad.Zero:
            terms.append(_fermi(x, w, u, *directions[:i], change, *directions[i + 1 :]))
    out = _fermi(*primals)
    return out, sum_of_tangents(terms, out)


def _fermi_transpose(cotangent, x, w, u, *directions):
    linear = [ad.is_undefined_primal(e) for e in directions]
    at = linear.index(True)
    if type(cotangent) is ad.Zero:
        back = ad.Zero(directions[at].aval)
    else:
        others = [jnp.matrix_transpose(e) for i, e in enumerate(directions) if i != at]
        back = _fermi(x, w, u, cotangent, *others)
    return [None, None, None, *(back if i == at else None for i in range(len(directions)))]


def _fermi_batch(args, axes):
    size = next(a.shape[d] for a, d in zip(args, axes, strict=True) if d is not None)
    whole = [
        jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(args, axes, strict=True)
    ]
    return _fermi_p.bind(*whole), 0


_fermi_p.def_impl(jax.jit(_value))
_fermi_p.def_abstract_eval(lambda x, *_: jax.core.ShapedArray(x.shape, x.dtype))
mlir.register_lowering(_fermi_p, mlir.lower_fun(_value, multiple_results=False))
ad.primitive_jvps[_fermi_p] = _fermi_jvp
ad.primitive_transposes[_fermi_p] = _fermi_transpose
batching.primitive_batchers[_fermi_p] = _fermi_batch
