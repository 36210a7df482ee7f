"""Networks as pure functions with explicit weights, and thin Linen shells that own the weights."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..numerics import Array, einsum

Layers = Sequence[tuple[Array, Array]]


def element_mlp(layers: Layers, x: Array, one_hot: Array) -> Array:
    """A multilayer perceptron whose weights depend on the element of each row.

    Args:
      layers: ``(kernel, bias)`` pairs, ``(n_elements, n_in, n_out)`` and ``(n_elements, n_out)``.
      x: ``(..., n_in)``.
      one_hot: ``(..., n_elements)``, zero for padding.

    Returns:
      ``(..., n_out)``; SiLU between layers, none after the last.
    """
    for i, (kernel, bias) in enumerate(layers):
        every = einsum("...k,eko->...eo", x, kernel) + bias
        x = einsum("...eo,...e->...o", every, one_hot)
        if i + 1 < len(layers):
            x = jax.nn.silu(x)
    return x


class ElementMLP(nn.Module):
    """Linen shell of :func:`element_mlp`.

    Attributes:
      n_elements: number of elements.
      hidden: hidden widths.
      n_out: outputs.
      last_scale: factor on the initial last kernel; a small one starts the residual near zero.
    """

    n_elements: int
    hidden: Sequence[int]
    n_out: int
    last_scale: float = 0.03

    @nn.compact
    def __call__(self, x: Array, one_hot: Array) -> Array:
        """``(..., n_in)`` and ``(..., n_elements)`` to ``(..., n_out)``."""
        layers, n_in = [], x.shape[-1]
        widths = (*self.hidden, self.n_out)
        for i, n in enumerate(widths):
            scale = self.last_scale if i + 1 == len(widths) else 1.0

            def init(key, shape, dtype, scale=scale):
                return scale * jax.random.normal(key, shape, dtype) * shape[-2] ** -0.5

            kernel = self.param(f"kernel_{i}", init, (self.n_elements, n_in, n), jnp.float64)
            bias = self.param(f"bias_{i}", nn.initializers.zeros, (self.n_elements, n), jnp.float64)
            layers.append((kernel, bias))
            n_in = n
        return element_mlp(layers, x, one_hot)
