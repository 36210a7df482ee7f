"""Optimisers of the networks: steps after one batch or several, and averages of the weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..numerics import Array
from .config import OptimConfig

Weights = Any


def optimizer_of(optim: OptimConfig, n_batches: int) -> optax.GradientTransformation:
    """AdamW with clipped gradients, averaged over ``accumulate`` batches, and a cosine schedule."""
    n_steps = max(1, n_batches // optim.accumulate)
    schedule = optax.cosine_decay_schedule(optim.learning_rate, n_steps, 0.01)
    one = optax.chain(
        optax.clip_by_global_norm(optim.clip),
        optax.adamw(schedule, weight_decay=optim.weight_decay),
    )
    return accumulated(one, optim)


def accumulated(
    one: optax.GradientTransformation, optim: OptimConfig
) -> optax.GradientTransformation:
    """An optimiser that takes its step once ``accumulate`` batches have been."""
    if optim.accumulate == 1:
        return one
    return optax.MultiSteps(one, optim.accumulate).gradient_transformation()


def moving_average(weights: Weights, average: Weights, decay: Array | float, state: Any) -> Weights:
    """The exponential moving average after a batch: of steps, not of batches in between.

    Args:
      weights: after the batch.
      average: before it.
      decay: of the average, a step.
      state: of the optimiser, after the batch.
    """
    moved = optax.incremental_update(weights, average, 1.0 - decay)
    if not isinstance(state, optax.MultiStepsState):
        return moved
    return jax.tree.map(lambda a, b: jnp.where(state.mini_step == 0, a, b), moved, average)
