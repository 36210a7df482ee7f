"""Networks of scalars whose outputs multiply equivariant features."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..numerics import Array

SATURATION = 3.0
"""Inputs of gates, of unit variance, saturate here."""


class Gates(nn.Module):
    """A network of each group; with no outputs, ``n_out`` 0, its last hidden layer is put out."""

    hidden: tuple[int, ...]
    n_out: int

    @nn.compact
    def __call__(self, z: dict[str, Array]) -> dict[str, Array]:
        """``{group: (n, n_inputs)}`` to ``{group: (n, n_out)}``."""
        out = {}
        for group, x in z.items():
            for i, width in enumerate(self.hidden):
                x = jax.nn.silu(dense(width, f"{group}_{i}")(x))
            out[group] = dense(self.n_out, f"{group}_last")(x) if self.n_out else x
        return out


def dense(width: int, name: str) -> nn.Dense:
    """A layer in double precision."""
    return nn.Dense(width, name=name, param_dtype=jnp.float64)


def saturate(x: Array) -> Array:
    """Inputs of unit variance, smoothly limited to +-:data:`SATURATION`."""
    return SATURATION * jnp.tanh(x / SATURATION)
