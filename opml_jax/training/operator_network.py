"""Training of the operator network on cached blocks, by energies and forces.

Blocks of operators hold no parameters, so they and their derivatives in the positions are computed
once; forces are the chain rule through them, and training needs no derivative of an integral.
Gradient descent learns the mixing. What it leaves of the labels is then fitted in closed form on
the scalars of the trained layers: a readout is linear, and descent is slow at what is badly
conditioned (variable projection: Golub, Pereyra, SIAM J. Numer. Anal. 10, 413 (1973)).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..errors import Code, OpmlError
from ..models.linear import Ridge, composition_offsets, ridge_validated
from ..models.operator_network import OperatorNetwork, Params
from ..numerics import Array, einsum
from ..units import EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE
from .cache import Cache
from .checkpoint import load_state, save_state
from .config import OptimConfig
from .optimizer import accumulated, moving_average, room_for_batches

WARM_UP = 100
"""Steps in which the learning rate rises, or a tenth of all."""

EVALUATE = 20
"""Structures evaluated at once."""


def predict(
    definition: OperatorNetwork, params: Params, x: Array, dx: Array, one_hot: Array
) -> tuple[Array, Array]:
    """Energies ``(n,)`` in Hartree and forces ``(n, 3 n_atoms)`` from cached inputs."""

    def total(x):
        energy = definition.readout(params, x, one_hot)
        return jnp.sum(energy), energy

    gradient, energy = jax.grad(total, has_aux=True)(x)
    return energy, -einsum("ndpk,npk->nd", dx, gradient)


def _batch(cache: Cache, labels: dict[str, np.ndarray], index: np.ndarray) -> dict[str, Array]:
    assert cache.dx is not None  # forces are learned
    batch = {"x": cache.x[index], "dx": cache.dx[index], "one_hot": cache.one_hot[index]}
    batch |= {"energy": labels["energy"][index]}
    batch |= {"forces": labels["forces"][index].reshape(len(index), -1)}
    return {k: np.asarray(v, np.float32) for k, v in batch.items()}


def initial(
    definition: OperatorNetwork, train: Cache, labels: dict[str, np.ndarray], seed: int
) -> Params:
    """Random weights; scales, means and offsets from the training set."""
    scaler = definition.fit_scaler(train.x, train.one_hot)
    few = slice(0, 32)
    x, one_hot = jnp.asarray(train.x[few], jnp.float32), jnp.asarray(train.one_hot[few])
    variables = definition.init(jax.random.key(seed), scaler, x, one_hot.astype(jnp.float32))
    return {
        "scaler": scaler,
        "network": variables["params"],
        "norms": variables["norms"],
        "scale": np.sqrt(np.mean(labels["forces"] ** 2)),
        "offsets": composition_offsets(train.one_hot.sum(axis=1), labels["energy"]),
    }


def train_network(
    definition: OperatorNetwork,
    train: Cache,
    validation: Cache,
    labels: dict[str, np.ndarray],
    held_out: dict[str, np.ndarray],
    optim: OptimConfig,
    seed: int,
    *,
    state: Path | None = None,
    fingerprint: str = "",
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> tuple[Params, list[dict[str, float]]]:
    """Learn the mixing by gradient descent, then the readout in closed form.

    Args:
      definition: the model's functions.
      train: cached inputs with derivatives (:func:`opml_jax.training.cache.build_cache`).
      validation: the same; judges every fifth epoch and chooses lambda of the readout.
      labels: ``energy`` (n,) Hartree, ``forces`` (n, n_atoms, 3) Hartree/Bohr.
      held_out: the same for validation.
      optim: hyper-parameters; energies and forces are weighed in units of the forces (1 Bohr).
      seed: of weights and batch order, which depends on seed and epoch only.
      state: file to keep the state in after every fifth epoch, and to go on from.
      fingerprint: what the state must belong to.
      on_epoch: called with the epoch and its row of the history.

    Returns:
      Parameters (averaged weights of the last epoch, with the readout if it helps on validation)
      and one row per judged epoch: training loss and validation errors (atomic units).

    Raises:
      OpmlError: the loss became NaN.
    """
    fixed = initial(definition, train, labels, seed)
    weights = fixed.pop("network")
    scale = float(fixed["scale"])
    size = min(optim.batch_size, len(train))
    steps = max(1, len(train) // size)
    n_steps = max(1, optim.epochs * steps // optim.accumulate)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        optim.learning_rate,
        min(WARM_UP, n_steps // 10),
        n_steps,
        0.005 * optim.learning_rate,
    )
    one = optax.chain(
        optax.clip_by_global_norm(optim.clip),
        optax.scale_by_amsgrad(),
        optax.add_decayed_weights(optim.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    optimizer = accumulated(one, optim)
    # offsets are large and stay out of single precision
    baseline = {id(c): c.one_hot.sum(axis=1) @ fixed["offsets"] for c in (train, validation)}
    relative = {**fixed, "offsets": np.zeros_like(fixed["offsets"])}
    own = {**labels, "energy": labels["energy"] - baseline[id(train)]}
    other = {**held_out, "energy": held_out["energy"] - baseline[id(validation)]}

    def loss(weights, batch):
        params = {**relative, "network": weights}
        energy, forces = predict(definition, params, batch["x"], batch["dx"], batch["one_hot"])
        real = jnp.repeat(batch["one_hot"].sum(axis=-1), 3, axis=-1)
        error = optim.forces_weight * jnp.sum((forces - batch["forces"]) ** 2 * real) / real.sum()
        error += optim.energy_weight * jnp.mean((energy - batch["energy"]) ** 2)
        return error / scale**2

    @jax.jit
    def step(weights, average, optimizer_state, batch, number):
        value, gradient = jax.value_and_grad(loss)(weights, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, weights)
        weights = optax.apply_updates(weights, updates)
        decay = jnp.minimum(optim.ema, number / (number + 9.0))  # short runs forget their start
        average = moving_average(weights, average, decay, optimizer_state)
        return weights, average, optimizer_state, value

    evaluate = jax.jit(lambda params, b: predict(definition, params, b["x"], b["dx"], b["one_hot"]))
    running = (weights, weights, optimizer.init(weights))
    first, history = 0, []
    found = None if state is None else load_state(state, running, fingerprint)
    if found is not None:
        running, meta = found
        first, history = meta["epoch"], meta["history"]
    for epoch in range(first, optim.epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(train))
        values = []
        for i, index in enumerate(order[: steps * size].reshape(steps, size)):
            # sorted: neighbouring rows of a file on disk are read together
            batch = _batch(train, own, np.sort(index))
            with room_for_batches(optim):
                *running, value = step(*running, batch, epoch * steps + i + 1.0)
            values.append(value)
        number = epoch + 1
        if number % 5 and number != optim.epochs:
            continue
        params = {**relative, "network": running[1]}
        row = {"epoch": number, "loss": float(np.mean(values))}
        row |= _judge(evaluate, params, validation, other)
        if not np.isfinite(list(row.values())).all():
            raise OpmlError(
                f"the loss became NaN in epoch {number}. Lower optim.learning_rate "
                f"(now {optim.learning_rate}).",
                code=Code.DIVERGED,
            )
        history.append(row)
        on_epoch(number, row)
        if state is not None:
            meta = {"epoch": number, "history": history, "fingerprint": fingerprint}
            save_state(state, running, meta)
    params = {**relative, "network": jax.tree.map(np.asarray, running[1])}
    params = with_readout(definition, params, train, validation, own, other, optim)[0]
    return {**params, "offsets": params["offsets"] + fixed["offsets"]}, history


def _judge(evaluate, params: Params, cache: Cache, labels) -> dict[str, float]:
    """Root mean square errors on a set, atomic units."""
    energy, forces, count = 0.0, 0.0, 0.0
    for start in range(0, len(cache), EVALUATE):
        index = np.arange(start, min(start + EVALUATE, len(cache)))
        full = np.resize(index, EVALUATE)  # one shape, one program
        batch = _batch(cache, labels, full)
        e, f = (np.asarray(x)[: len(index)] for x in evaluate(params, batch))
        energy += np.sum((e - batch["energy"][: len(index)]) ** 2)
        real = np.repeat(batch["one_hot"][: len(index)].sum(axis=-1), 3, axis=-1)
        forces += np.sum((f - batch["forces"][: len(index)]) ** 2 * real)
        count += real.sum()
    return {
        "validation_energy_rmse": float((energy / len(cache)) ** 0.5),
        "validation_forces_rmse": float((forces / count) ** 0.5),
    }


def with_readout(
    definition: OperatorNetwork,
    params: Params,
    train: Cache,
    validation: Cache,
    labels: dict[str, np.ndarray],
    held_out: dict[str, np.ndarray],
    optim: OptimConfig,
) -> tuple[Params, Ridge | None]:
    """Parameters with a linear readout of the layers' scalars fitted to what the network leaves.

    The ridge is kept if validation says that it helps.

    Args:
      definition: the model's functions.
      params: trained parameters.
      train: cached inputs.
      validation: the same; chooses lambda.
      labels: energies without offsets, forces; padded.
      held_out: the same for validation.
      optim: its sigmas weigh energies against forces.

    Returns:
      The parameters, and the ridge, or None if it does not help.
    """
    sigma = (
        optim.energy_sigma / EV_PER_HARTREE,
        optim.force_sigma / EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    )
    n_elements = train.one_hot.shape[-1]
    scale = float(params["scale"])

    @jax.jit
    def molecule(x, dx, one_hot):
        """Energy columns, their derivatives, and the network's own energy and forces."""

        def columns(x):
            local, features = definition.atoms(params, x[None], one_hot[None])
            summed = einsum("nf,nz->zf", features[0], one_hot)
            energy = jnp.sum(local[0] * one_hot.sum(axis=-1))
            return scale * jnp.concatenate([summed.ravel(), energy[None]])

        value, push = jax.linearize(columns, x)
        slopes = jax.vmap(push)(dx)
        return value, -slopes

    spread: Any = None

    def rows(cache: Cache, own, index):
        nonlocal spread
        batch = _batch(cache, own, index)
        found = [
            molecule(*(batch[k][i] for k in ("x", "dx", "one_hot"))) for i in range(len(index))
        ]
        value = np.array([np.asarray(v, np.float64) for v, _ in found])
        slope = np.array([np.asarray(s, np.float64) for _, s in found])
        if spread is None:
            s = np.sqrt(np.mean(slope[..., :-1] ** 2, axis=(0, 1)))
            spread = np.where(s > 1e-9 * s.max(), s, np.inf) / sigma[1]
        real = np.repeat(batch["one_hot"].sum(axis=-1) > 0, 3, axis=-1).ravel()
        force = slope.reshape(-1, slope.shape[-1])[real] / sigma[1]
        left = (batch["forces"].ravel()[real] / sigma[1]) - force[:, -1]
        a = np.concatenate([value / sigma[0], force])
        y = np.concatenate([(batch["energy"] - value[:, -1]) / sigma[0], left])
        offsets = np.zeros((len(a), n_elements))
        offsets[: len(value)] = batch["one_hot"].sum(axis=1) * scale / sigma[0]
        return np.hstack([a[:, :-1] / spread, offsets]), y

    chunk = 192  # many rows at a time: the QR factorisation repeats itself less
    chunks = (
        rows(train, labels, np.arange(i, min(i + chunk, len(train))))
        for i in range(0, len(train), chunk)
    )
    first = next(chunks)
    held = rows(validation, held_out, np.arange(len(validation)))

    def every():
        yield first
        yield from chunks

    fit = ridge_validated(every(), held)
    before = float(np.sqrt(np.mean(held[1] ** 2)))
    if fit.score >= before:
        return params, None
    weights = (fit.weights[:-n_elements] / spread).reshape(n_elements, -1)
    offsets = params["offsets"] + scale * fit.weights[-n_elements:]
    return {**params, "readout": weights, "offsets": offsets}, fit
