"""Optimisers of the networks: steps after one batch or several, and averages of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..errors import Code, OpmlError, memory_wanted
from ..numerics import Array
from .config import DescentConfig

Weights = Any

LAST = 0.01
"""Of the learning rate's peak, where it falls to."""


def optimizer_of(config: DescentConfig, n_batches: int) -> optax.GradientTransformation:
    """AdamW with clipped gradients, averaged over ``accumulate`` batches."""
    schedule = learning_rates(config, max(1, n_batches // config.accumulate))
    one = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )
    if config.accumulate == 1:
        return one
    return optax.MultiSteps(one, config.accumulate).gradient_transformation()


def learning_rates(config: DescentConfig, n_steps: int) -> optax.Schedule:
    """What the learning rate is after each of ``n_steps``."""
    peak, rising = config.learning_rate, round(config.warm_up * n_steps)
    rest = max(1, n_steps - rising)
    falling = {
        "cosine": optax.cosine_decay_schedule(peak, rest, LAST),
        "exponential": optax.exponential_decay(peak, rest, LAST),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if not rising:
        return falling
    return optax.join_schedules([optax.linear_schedule(0.0, peak, rising), falling], [rising])


def is_over(history: Sequence[Mapping[str, float]], config: DescentConfig) -> bool:
    """Whether ``best_validation_loss`` of the rows so far is the same for ``patience`` epochs."""
    if not 0 < config.patience < len(history):
        return False
    now, before = (history[i]["best_validation_loss"] for i in (-1, -1 - config.patience))
    return now >= before


@contextlib.contextmanager
def room_for_batches(config: DescentConfig) -> Iterator[None]:
    """An epoch; where memory lacks, the batches that would take less are named.

    Raises:
      OpmlError: out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as err:
        wanted = memory_wanted(err)
        if wanted is None:
            raise
        size, more = config.batch_size, config.accumulate
        hint = "Take fewer features or a machine with more."
        if size > 1:
            half = f"fit.batch_size {size // 2} and fit.accumulate {2 * more}"
            hint = f"{half} take the same steps with less at once."
        raise OpmlError(
            f"an epoch asks for {wanted:.1f} GiB at once, which memory lacks: {hint}",
            code=Code.MEMORY,
        ) from err


def moving_average(weights: Weights, average: Weights, decay: Array | float, state: Any) -> Weights:
    """The exponential moving average after a batch: of steps, not of batches in between."""
    moved = optax.incremental_update(weights, average, 1.0 - decay)
    if not isinstance(state, optax.MultiStepsState):
        return moved
    return jax.tree.map(lambda a, b: jnp.where(state.mini_step == 0, a, b), moved, average)
