"""Descent of networks of operators and densities: epochs, best weights, going on after a kill."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..errors import Code, OpmlError
from ..models.op2op import Params
from ..numerics import Array
from .checkpoint import SAVE_EVERY, load_state, save_state
from .config import OptimConfig
from .optimizer import is_over, moving_average, optimizer_of, room_for_batches


@dataclasses.dataclass(frozen=True)
class Descent:
    """Result of :func:`descend`.

    Attributes:
      best: smallest validation loss; 1 if none was below the start's.
      kept: averaged weights of that epoch; the initial ones if there is none.
      last: weights after the last epoch.
      average: averaged weights after it.
      history: one row per epoch.
    """

    best: float
    kept: Params
    last: Params
    average: Params
    history: list[dict[str, float]]


def descend(
    loss: Callable[[Params, Params], Array],
    judge: Callable[[Params], float],
    weights: Params,
    part: Params,
    optim: OptimConfig,
    seed: int,
    *,
    state: Path | None = None,
    fingerprint: str = "",
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> Descent:
    """Minimise a loss over batches whose order depends on seed and epoch only.

    Args:
      loss: of weights and a batch, the start's being 1.
      judge: validation loss of averaged weights, likewise.
      weights: to start from.
      part: batches, stacked.
      optim: hyper-parameters.
      seed: of the order of batches.
      state: file to keep the state in, and to go on from: to the very same weights.
      fingerprint: what the state must belong to.
      on_epoch: called with the epoch and its row of the history.

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    n_batches = len(part["real"])
    optimizer = optimizer_of(optim, optim.epochs * n_batches)

    @jax.jit
    def epoch(running, order, part):
        def step(running, i):
            weights, average, optimizer_state = running
            batch = jax.tree.map(lambda x: x[i], part)
            value, gradient = jax.value_and_grad(loss)(weights, batch)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, weights)
            weights = optax.apply_updates(weights, updates)
            average = moving_average(weights, average, optim.ema, optimizer_state)
            return (weights, average, optimizer_state), value

        running, values = jax.lax.scan(step, running, order)
        return running, jnp.mean(values)

    running = (weights, weights, optimizer.init(weights))
    best, kept, history, saved = 1.0, weights, [], -np.inf
    if state is not None and (found := load_state(state, (running, best, kept), fingerprint)):
        (running, best, kept), meta = found
        best, history = float(best), meta["history"]
    for number in range(len(history) + 1, optim.epochs + 1):
        if is_over(history, optim):
            break
        order = np.random.default_rng((seed, number)).permutation(n_batches)
        with room_for_batches(optim):
            running, value = epoch(running, jnp.asarray(order), part)
            error = judge(running[1])
            row = {"epoch": number, "loss": float(value), "validation_loss": error}
        if not np.isfinite(row["loss"]) or not np.isfinite(error):
            raise OpmlError(
                f"the loss became NaN in epoch {number}. Lower optim.learning_rate "
                f"(now {optim.learning_rate}).",
                code=Code.DIVERGED,
            )
        if error < best:
            best, kept = error, running[1]
        row["best_validation_loss"] = best
        history.append(row)
        on_epoch(number, row)
        last = number == optim.epochs or is_over(history, optim)
        if state is not None and (last or time.monotonic() > saved + SAVE_EVERY):
            meta = {"fingerprint": fingerprint, "history": history}
            save_state(state, (running, best, kept), meta)
            saved = time.monotonic()
    return Descent(best, kept, running[0], running[1], history)
