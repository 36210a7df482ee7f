"""Training of the residual networks on cached descriptors with optax."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..errors import OpmlError
from ..models import Op2Prop
from ..models.op2prop import Params, gated_vectors, linear_dipole, linear_energy, project
from ..numerics import Array, einsum
from .cache import Cache
from .closed_form import scaled
from .config import OptimConfig

Arrays = dict[str, Any]
"""Named arrays, structures first."""


def make_inputs(params: Params, cache: Cache, labels: Arrays) -> Arrays:
    """What the networks see of a set.

    Returns:
      ``z`` inputs, ``dz`` their derivatives (if forces are a target), ``w`` vectors to gate (if
      dipoles are), ``one_hot``, and under ``energy``, ``forces``, ``dipole`` what the closed form
      leaves of the labels.
    """
    s = scaled(cache, params["scaler"])
    arrays = {"one_hot": s.one_hot}
    arrays["z"] = np.asarray(project(params["components"], s.x, s.one_hot))
    arrays["energy"] = labels["energy"] - np.asarray(
        linear_energy(params["linear"], s.x, s.one_hot)
    )
    if "forces" in labels:
        arrays["dz"] = np.asarray(project(params["components"], s.dx, s.one_hot[:, None]))
        weights = s.one_hot @ params["linear"]["weights"]
        linear = -np.einsum("ndik,nik->nd", s.dx, weights, optimize=True)
        arrays["forces"] = labels["forces"].reshape(linear.shape) - linear
    if "dipole" in labels:
        arrays["w"] = np.asarray(gated_vectors(params["dipole"], s.v, s.one_hot))
        predicted = np.asarray(linear_dipole(params["dipole"], s.v, s.one_hot))
        arrays["dipole"] = labels["dipole"] - predicted
    return arrays


def residual_scales(a: Arrays) -> dict[str, np.ndarray]:
    """Root mean squares of what is left, the natural scale of the networks' outputs."""
    real = a["one_hot"].sum(axis=-1)
    out = {"energy": np.sqrt(np.mean(a["energy"] ** 2))}
    if "forces" in a:
        out["forces"] = np.sqrt(np.sum(a["forces"] ** 2) / (3 * real.sum()))
    if "dipole" in a:
        out["dipole"] = np.sqrt(np.mean(a["dipole"] ** 2))
    return {k: np.maximum(v, 1e-12) for k, v in out.items()}


def predict_residual(network: Callable, scale: Params, batch: dict[str, Array]) -> dict[str, Array]:
    """Residual energy, forces (by the chain rule through the cached derivatives) and dipole."""
    mask = batch["one_hot"].sum(axis=-1)

    def energy(z):
        local, gates = network(z, batch["one_hot"])
        return scale["energy"] * jnp.sum(local * mask), (local, gates)

    gradient, (local, gates) = jax.grad(energy, has_aux=True)(batch["z"])
    out = {"energy": scale["energy"] * jnp.sum(local * mask, axis=-1)}
    if "dz" in batch:
        out["forces"] = -einsum("ndik,nik->nd", batch["dz"], gradient)
    if "w" in batch and gates.shape[-1]:
        out["dipole"] = scale["dipole"] * einsum("nik,nikx->nx", gates, batch["w"])
    return out


def train_residual(
    definition: Op2Prop,
    closed_form: Params,
    train: Arrays,
    validation: Arrays,
    optim: OptimConfig,
    seed: int,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> tuple[Params, list[dict[str, float]]]:
    """Fit the networks; keeps the averaged weights of the epoch with the least validation loss.

    Epoch 0 is the closed form itself, so the result is never worse than it on validation.

    Args:
      definition: the model's functions.
      closed_form: its closed-form parameters.
      train: training inputs.
      validation: validation inputs.
      optim: hyper-parameters.
      seed: of initial weights and batch order; runs repeat bit for bit on CPU.
      on_epoch: called with the epoch and its row of the history.

    Returns:
      Parameters with ``residual`` and ``scale`` added, and one row per epoch with training loss,
      validation loss and root mean square validation errors (atomic units).

    Raises:
      OpmlError: the loss became NaN.
    """
    use_dipole = "dipole" in closed_form
    n_vectors = definition.config.vectors if use_dipole else 0
    module = definition.residual.clone(n_vectors=n_vectors)
    scale = residual_scales(train)
    n_train = len(train["z"])
    key = jax.random.key(seed)
    start = {k: jnp.asarray(v[:1]) for k, v in train.items()}
    weights = module.init(key, start["z"], start["one_hot"])["params"]
    size = min(optim.batch_size, n_train)
    steps = max(1, n_train // size)
    schedule = optax.cosine_decay_schedule(optim.learning_rate, max(1, optim.epochs * steps), 0.01)
    optimizer = optax.chain(
        optax.clip_by_global_norm(optim.clip),
        optax.adamw(schedule, weight_decay=optim.weight_decay),
    )
    factor = {
        "energy": optim.energy_weight,
        "forces": optim.forces_weight,
        "dipole": optim.dipole_weight,
    }

    def squares(weights, batch):
        network = functools.partial(module.apply, {"params": weights})
        found = predict_residual(network, scale, batch)
        mask = jnp.repeat(batch["one_hot"].sum(axis=-1), 3, axis=-1)
        out = {}
        for name, value in found.items():
            d2 = (value - batch[name]) ** 2
            out[name] = jnp.sum(d2 * mask) / jnp.sum(mask) if name == "forces" else jnp.mean(d2)
        return out

    def loss(weights, batch):
        return sum(factor[k] * v / scale[k] ** 2 for k, v in squares(weights, batch).items())

    def step(state, index):
        weights, average, optimizer_state, arrays = state
        batch = {k: v[index] for k, v in arrays.items()}
        value, gradient = jax.value_and_grad(loss)(weights, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, weights)
        weights = optax.apply_updates(weights, updates)
        average = optax.incremental_update(weights, average, 1.0 - optim.ema)
        return (weights, average, optimizer_state, arrays), value

    @jax.jit
    def epoch(weights, average, optimizer_state, order, arrays):
        state = (weights, average, optimizer_state, arrays)
        (weights, average, optimizer_state, _), values = jax.lax.scan(step, state, order)
        return weights, average, optimizer_state, jnp.mean(values)

    judge = jax.jit(lambda weights, batch: (loss(weights, batch), squares(weights, batch)))
    arrays = {k: jnp.asarray(v) for k, v in train.items()}
    held_out = {k: jnp.asarray(v) for k, v in validation.items()}
    average, optimizer_state = weights, optimizer.init(weights)
    rng = np.random.default_rng(seed)
    silent = jax.tree.map(lambda w: w * 0.0, weights)  # zero networks: the closed form alone
    best, kept = float(judge(silent, held_out)[0]), silent
    history = []
    for number in range(1, optim.epochs + 1):
        order = rng.permutation(n_train)[: steps * size].reshape(steps, size)
        weights, average, optimizer_state, value = epoch(
            weights, average, optimizer_state, jnp.asarray(order), arrays
        )
        validation_loss, parts = judge(average, held_out)
        row = {"epoch": number, "loss": float(value), "validation_loss": float(validation_loss)}
        row |= {f"validation_{k}_rmse": float(v) ** 0.5 for k, v in parts.items()}
        if not np.isfinite(row["loss"]) or not np.isfinite(row["validation_loss"]):
            raise OpmlError(
                f"the loss became NaN in epoch {number}. Lower optim.learning_rate "
                f"(now {optim.learning_rate})."
            )
        if row["validation_loss"] < best:
            best, kept = row["validation_loss"], average
        row["best_validation_loss"] = best
        history.append(row)
        on_epoch(number, row)
    params = {
        **closed_form,
        "residual": jax.tree.map(np.asarray, kept),
        "scale": {k: np.asarray(scale[k]) for k in scale if k != "forces"},
    }
    return params, history
