r"""Kernels between environments, of irreps in principal components of their element.

.. math::
    k^l_{m m'}(i, j) = \kappa(i, j) \sum_q x^l_{i q m} x^l_{j q m'},

kappa being a function of the scalars among the irreps x: a Gaussian of their distance, or a power
of their scalar product, all irreps then being of unit length.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from ...numerics import Array, einsum
from ..base import Params
from .config import Op2DensityConfig


def reduced(components: Params, features: Mapping[int, Array], kind: str) -> dict[str, Array]:
    """Principal components of features, ``{l: (n_atoms, n_components, 2 l + 1)}``.

    For the polynomial kernel they are of unit length, and scalars keep their mean.
    """
    out = {}
    for l, c in components.items():
        x = features[int(l)]
        if "mean" in c:
            x = x - c["mean"][:, None]
        x = einsum("iqm,qk->ikm", x, c["matrix"])
        if kind == "polynomial":
            x = x / jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True) + 1e-300)
        out[l] = x
    return out


def kernel(config: Op2DensityConfig, l: int, a: Params, b: Params) -> Array:
    """Kernel between environments: ``(n_a, 2 l + 1, n_b, 2 l + 1)``.

    Args:
      config: which kernel.
      l: degree.
      a: :func:`reduced` features.
      b: likewise.
    """
    scalar = scalar_kernel(config, l, a, b)[:, None, :, None]
    if l == 0:
        return scalar
    return scalar * einsum("ikm,jkp->imjp", a[str(l)], b[str(l)])


def scalar_kernel(config: Op2DensityConfig, l: int, a: Params, b: Params) -> Array:
    """What multiplies products of irreps of degree l (at l = 0 all there is), ``(n_a, n_b)``."""
    za, zb = a["0"][..., 0], b["0"][..., 0]
    if config.kernel == "gaussian":
        # squares of differences, not of sums: close environments differ in the last digits
        d2 = jnp.sum((za[:, None] - zb[None]) ** 2, axis=-1)
        return jnp.exp(-0.5 / config.length**2 * d2)
    return einsum("ik,jk->ij", za, zb) ** (config.zeta if l == 0 else config.zeta - 1)


def kernel_coefficients(
    config: Op2DensityConfig, l: int, a: Params, b: Params, weights: Array
) -> Array:
    """:func:`kernel` times weights ``(n_b, 2 l + 1, n)``, without a kernel for every m and m'.

    Returns:
      ``(n_a, n, 2 l + 1)``.
    """
    scalar = scalar_kernel(config, l, a, b)
    if l == 0:
        return einsum("ij,jpn->inp", scalar, weights)
    mixed = einsum("jkp,jpn->jkn", b[str(l)], weights)
    return einsum("ikm,ikn->inm", a[str(l)], einsum("ij,jkn->ikn", scalar, mixed))


def self_kernel(l: int, x: Params) -> Array:
    """Trace of the kernel of every environment with itself, ``(n,)``."""
    irreps = x[str(l)]
    return jnp.ones(len(irreps)) if l == 0 else jnp.sum(irreps * irreps, axis=(1, 2))
