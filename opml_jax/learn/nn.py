"""Networks whose weights depend on the element of an atom."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..numerics import Array, einsum

LAST = 0.03
"""Factor on the initial last kernel: the residual starts near zero."""


class ElementMLP(nn.Module):
    """A multilayer perceptron for each element, with SiLU between layers."""

    n_elements: int
    hidden: Sequence[int]
    n_out: int

    @nn.compact
    def __call__(self, x: Array, one_hot: Array) -> Array:
        """``(..., n_in)`` and ``(..., n_elements)``, zero for padding, to ``(..., n_out)``."""
        for i, n in enumerate((*self.hidden, self.n_out)):
            scale = LAST if i == len(self.hidden) else 1.0

            def init(key, shape, dtype, scale=scale):
                return scale * jax.random.normal(key, shape, dtype) * shape[-2] ** -0.5

            shape = (self.n_elements, x.shape[-1], n)
            kernel = self.param(f"kernel_{i}", init, shape, jnp.float64)
            bias = self.param(f"bias_{i}", nn.initializers.zeros, shape[::2], jnp.float64)
            every = einsum("...k,eko->...eo", x, kernel) + bias
            x = einsum("...eo,...e->...o", every, one_hot)
            x = jax.nn.silu(x) if i < len(self.hidden) else x
        return x
