r"""The Boys function, tabulated, and the radial derivatives of the potential of a Gaussian.

:math:`F_m(T) = \int_0^1 t^{2m} e^{-T t^2} dt`. Helgaker, Jorgensen, Olsen, sec. 9.8.

Near the origin: a Taylor series about the nearest point of a grid. Of the terms it needs only the
highest order is stored; the others follow by the downward recursion, which adds positive numbers
only. Beyond ``36 + 2 m`` (18 + 2 m in float32) the asymptotic form is exact to the last bit.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..numerics import Array

_STEP = 1 / 16  # of the grid: exact in binary, and so are its multiples


def _terms(dtype: Any) -> int:
    """Terms of the series: (step / 2)^n / n! is 6e-15 for n = 7 and 4e-8 for n = 4."""
    return 7 if jnp.dtype(dtype).itemsize > 4 else 4


def _limit(order: int, dtype: Any) -> int:
    """T from which the asymptotic form of F_order holds to the precision of ``dtype``."""
    return (36 if jnp.dtype(dtype).itemsize > 4 else 18) + 2 * order


def _series(order: int, t: np.ndarray) -> np.ndarray:
    """F_order(T) by its ascending series, all terms positive; exact, slow, for tables."""
    t = t.astype(np.longdouble)
    term = np.ones_like(t) / (2 * order + 1)
    total = term.copy()
    for k in range(1, 1000):
        term = term * 2 * t / (2 * order + 2 * k + 1)
        total += term
        if (term < 1e-22 * total).all():
            break
    return np.exp(-t) * total


@functools.cache
def _table(order: int, terms: int) -> np.ndarray:
    """``(2, n)``: F_{order + terms - 1} and exp(-T) on the grid up to the limit of ``order``."""
    grid = np.arange(int(_limit(order, np.float64) / _STEP) + 2) * _STEP
    return np.stack([_series(order + terms - 1, grid), np.exp(-grid)]).astype(np.float64)


def _near(order: int, t: Array) -> tuple[Array, Array]:
    """F_order(T) and exp(-T) for T below the limit; T above it is taken as the limit."""
    n_terms = _terms(t.dtype)
    top, decay = _table(order, n_terms).astype(t.dtype)
    top, decay = jnp.asarray(top), jnp.asarray(decay)
    t = jnp.minimum(t, _limit(order, t.dtype))
    k = (t * (1 / _STEP) + 0.5).astype(jnp.int32)
    centre = k.astype(t.dtype) * _STEP
    step = centre - t
    e = decay[k]
    terms = [top[k]]  # F_{order + terms - 1}, ..., F_order at the grid point
    for m in range(order + n_terms - 1, order, -1):
        terms.append((2 * centre * terms[-1] + e) * (1 / (2 * m - 1)))
    value = terms[0]
    for n, term in zip(range(n_terms - 1, 0, -1), terms[1:], strict=True):
        value = term + value * step * (1 / n)
    factor = jnp.ones_like(t)
    for n in range(n_terms + 1, 0, -1):
        factor = 1 + step * (1 / n) * factor
    return value, e * factor


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def boys(order: int, t: Array) -> jax.Array:
    r"""Boys functions :math:`F_0(T) \dots F_m(T)`.

    Relative error below 1e-13 in float64 and 7e-7 in float32, for m up to 16 and T up to 1e6
    (as far as the value can be represented).

    Args:
      order: highest m.
      t: T of any shape, zero or more.

    Returns:
      ``(m + 1, *t.shape)``. The derivative with respect to T is :math:`-F_{m+1}`, to any order.
    """
    t = jnp.asarray(t, float) if not jnp.issubdtype(jnp.result_type(t), jnp.floating) else t
    value, e = _near(order, t)
    near = [value]
    for m in range(order, 0, -1):
        near.append((2 * t * near[-1] + e) * (1 / (2 * m - 1)))
    away = jnp.maximum(t, 1.0)
    far, out = math.sqrt(math.pi / 4) / jnp.sqrt(away), []
    for m, value in enumerate(reversed(near)):
        out.append(jnp.where(t < _limit(m, t.dtype), value, far))
        far = far * (m + 0.5) / away
    return jnp.stack(out)


@boys.defjvp
def _boys_jvp(order, primals, tangents):
    (t,), (dt,) = primals, tangents
    values = boys(order + 1, t)
    return values[:-1], -values[1:] * dt


def radial_top(order: int, r2: Array, inverse_variance: Array) -> tuple[Array, Array]:
    r"""Radial derivative of the potential of a normalised Gaussian charge, of one order.

    .. math::
        G_l = \Big(\frac1r \frac{d}{dr}\Big)^l \frac{\mathrm{erf}(r/\sqrt{2v})}{r}
            = \sqrt{\frac{2}{\pi v}} \Big(\frac{-1}{v}\Big)^l F_l\Big(\frac{r^2}{2v}\Big)

    Scaled so that neither factor over- or underflows in float32 where the product does not. The
    quotient comes last on purpose: XLA keeps the result of a division instead of recomputing the
    whole function for every component that uses it.

    Args:
      order: l.
      r2: squared distance, Bohr^2.
      inverse_variance: 1/v, Bohr^-2.

    Returns:
      G_l and T = r2 / 2 v.
    """
    t = 0.5 * r2 * inverse_variance
    value, _ = _near(order, t)
    near = t < _limit(order, t.dtype)
    odd = math.prod(range(1, 2 * order, 2))
    away = jnp.where(near, 1.0, r2)
    numerator = jnp.where(
        near, math.sqrt(2 / math.pi) * value * jnp.sqrt(inverse_variance), odd * jnp.sqrt(1 / away)
    )
    scale = -jnp.where(near, 1 / inverse_variance, r2)
    power = scale
    for _ in range(order - 1):
        power = power * scale
    return (numerator / power if order else numerator), t
