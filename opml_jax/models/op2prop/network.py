"""The networks that learn what the closed form leaves; whoever has none need not import Flax."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from ...learn.nn import ElementMLP
from ...numerics import Array

BOUND = 6.0
"""Outputs of the residual networks saturate here, in units of what the closed form leaves."""


def bounded(x: Array) -> Array:
    """Smoothly limited to +-:data:`BOUND`: far away the closed form alone extrapolates."""
    return BOUND * jnp.tanh(x / BOUND)


class Residual(nn.Module):
    """What the closed form leaves over: an energy per atom, and gates of dipole vectors.

    Both networks have hidden layers of the same widths; without vectors there are no gates.
    """

    n_elements: int
    hidden: Sequence[int]
    n_vectors: int

    @nn.compact
    def __call__(self, x: Array, one_hot: Array) -> tuple[Array, Array]:
        """``(..., n_atoms, k)`` to energies ``(..., n_atoms)`` and gates ``(..., n_vectors)``."""
        energy = ElementMLP(self.n_elements, self.hidden, 1, name="energy")(x, one_hot)[..., 0]
        energy = bounded(energy)
        if not self.n_vectors:
            return energy, jnp.zeros((*energy.shape, 0), energy.dtype)
        gates = ElementMLP(self.n_elements, self.hidden, self.n_vectors, name="dipole")(x, one_hot)
        return energy, bounded(gates)
