"""The networks of Op2Prop, which learn what the closed form leaves over."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from ...learn.nn import ElementMLP
from ...numerics import Array

BOUND = 6.0
"""Outputs of the residual networks saturate here, in units of what the closed form leaves."""


def bounded(x: Array) -> Array:
    """Smoothly limited to +-:data:`BOUND`, the identity near zero.

    A residual is small by construction; far from the training set it must stay so, and leave
    the extrapolation to the closed form.
    """
    return BOUND * jnp.tanh(x / BOUND)


class Residual(nn.Module):
    """What the closed form leaves over: an energy per atom, and gates of dipole vectors.

    Attributes:
      n_elements: number of elements.
      hidden: hidden widths of both networks.
      n_vectors: number of dipole vectors to gate; 0 for no dipole.
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
