"""The one descent loop, of one network or an ensemble: epochs, best weights, restart."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ..errors import Code, OpmlError
from ..numerics import Array
from .config import DescentConfig
from .devices import jit, replicate
from .optimizer import is_over, moving_average, optimizer_of, room_for_batches
from .run import Run
from .states import SAVE_EVERY

Weights = Any
"""A pytree of arrays."""

Batch = Any
"""Likewise."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is minimised.

    Attributes:
      loss: Of weights and a batch, ``()``.
      judge: Of the averaged weights: the validation loss, ``()`` or of members
        ``(n_members,)``, and further columns of the history.
      data: Everything that batches are taken from, on the device.
      order: Of a random generator: indices of the batches of an epoch, one after the other; of
        members ``(n_members, n_batches, ...)``.
      n_batches: In an epoch.
      take: The batch of an index. Default: that row of every array.
      members: Whether weights have a leading axis of members, which all descend at once, each in
        an order of its own.
      mesh: Devices that share the work.
    """

    loss: Callable[[Weights, Batch], Array]
    judge: Callable[[Weights], tuple[Any, Mapping[str, float]]]
    data: Any
    order: Callable[[np.random.Generator], np.ndarray]
    n_batches: int
    take: Callable[[Any, Array], Batch] = lambda data, i: jax.tree.map(lambda x: x[i], data)
    members: bool = False
    mesh: Mesh | None = None


@dataclasses.dataclass(frozen=True)
class Descent:
    """Result of :func:`descend`.

    Attributes:
      best: Smallest validation loss, of all members ``(n_members,)``; the start's if none is less.
      weights: Averaged weights of that epoch; those of the start if there is none.
      last: Weights after the last epoch.
      average: Averaged weights after it.
      history: One row an epoch.
    """

    best: np.ndarray
    weights: Weights
    last: Weights
    average: Weights
    history: list[dict[str, float]]


def cut_batches(parts: Batch) -> dict[str, Any]:
    """``data``, ``order`` and ``n_batches`` of a task whose batches are cut once, and stacked."""
    n = len(jax.tree.leaves(parts)[0])
    return {"data": parts, "order": lambda rng: rng.permutation(n), "n_batches": n}


def descend(
    task: Task,
    weights: Weights,
    config: DescentConfig,
    run: Run,
    name: str,
    start: tuple[Any, Weights] | None = None,
) -> Descent:
    """Minimise a loss over batches whose order depends on seed and epoch only.

    Args:
      task: What is minimised.
      weights: To start from.
      config: Settings.
      run: Its seed draws the orders of batches; under ``name`` it keeps the state, from which a
        killed descent goes on to the very same weights.
      name: Of this descent.
      start: Validation loss and weights that are kept unless an epoch is better. Default: a loss
        of 1 and ``weights``, for losses in units of what they were at the start.

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    weights = replicate(weights, task.mesh)
    optimizer = optimizer_of(config, config.epochs * task.n_batches)
    initial = jax.vmap(optimizer.init) if task.members else optimizer.init
    running = (weights, weights, initial(weights))
    best, kept = (1.0, weights) if start is None else start
    best, history, saved = np.asarray(best, float), [], -np.inf
    if found := run.load(name, (running, best, kept)):
        (running, best, kept), facts = found
        running, kept = replicate((running, kept), task.mesh)
        history = facts["history"]
    epoch = _epoch(task, optimizer, config)
    run.announce_epochs(len(history), config.epochs)
    for number in range(len(history) + 1, config.epochs + 1):
        if is_over(history, config):
            break
        order = task.order(np.random.default_rng((run.seed, number)))
        with room_for_batches(config):
            running, value = epoch(running, jnp.asarray(order), task.data)
            losses, columns = task.judge(running[1])
            losses = np.asarray(losses)
        row = {"epoch": number, "loss": float(jnp.mean(value))}
        row |= {"validation_loss": float(losses.mean()), **columns}
        _check_finite(row, config)
        better = losses < best
        best = np.where(better, losses, best)
        kept = jax.tree.map(lambda new, old, b=better: _choose(b, new, old), running[1], kept)
        row["best_validation_loss"] = float(best.mean())
        history.append(row)
        run.epoch(row, config.epochs)
        last = number == config.epochs or is_over(history, config)
        if last or time.monotonic() > saved + SAVE_EVERY:
            run.save(name, (running, best, kept), {"history": history})
            saved = time.monotonic()
    return Descent(best, kept, running[0], running[1], history)


def _epoch(task: Task, optimizer: optax.GradientTransformation, config: DescentConfig):
    """The compiled function ``(running, order, data) -> (running, losses)`` of an epoch."""

    def one(running, order, data):
        def step(running, index):
            weights, average, state = running
            value, gradient = jax.value_and_grad(task.loss)(weights, task.take(data, index))
            updates, state = optimizer.update(gradient, state, weights)
            weights = optax.apply_updates(weights, updates)
            return (weights, moving_average(weights, average, config.ema, state), state), value

        running, values = jax.lax.scan(step, running, order)
        return running, jnp.mean(values)

    return jit(jax.vmap(one, (0, 0, None)) if task.members else one, task.mesh)


def _choose(better: np.ndarray, new: Array, old: Array) -> Array:
    """New weights of the members that are better, old ones of the others."""
    return jnp.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, old)


def _check_finite(row: Mapping[str, float], config: DescentConfig) -> None:
    if not np.isfinite(row["loss"]) or not np.isfinite(row["validation_loss"]):
        raise OpmlError(
            f"the loss became NaN in epoch {row['epoch']:.0f}. Lower fit.learning_rate "
            f"(now {config.learning_rate}).",
            code=Code.DIVERGED,
        )
