"""Training of the residual networks on cached descriptors with optax.

All members of an ensemble train at once, in one compiled program: they differ in their initial
weights and in the order of their batches. Networks train in single precision: they correct what
the closed form, solved in double precision, leaves.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..conventions import e3nn_to_cartesian
from ..errors import Code, OpmlError
from ..models import Op2Prop
from ..models.op2prop import (
    Params,
    gated_vectors,
    kernel_energy,
    linear_energy,
    linear_irreps,
    project,
)
from ..numerics import Array, einsum
from ..units import DEBYE_PER_EBOHR
from .cache import Cache
from .calibration import scale_of
from .checkpoint import SAVE_EVERY, load_state, save_state
from .closed_form import SLOPES, scaled
from .config import OptimConfig
from .optimizer import is_over, moving_average, optimizer_of, room_for_batches
from .parallel import jit, mesh_for, replicate, spread

CHUNK = 64

Arrays = dict[str, Any]
"""Named arrays, structures first."""


def make_inputs(params: Params, cache: Cache, labels: Arrays) -> Arrays:
    """What the networks see of a set.

    Returns:
      ``z`` inputs, ``dz`` their derivatives (if those of the energy are learned), ``w`` vectors to
      gate (if dipoles are), ``one_hot``, and under ``energy``, ``forces``, ``field_dipole``,
      ``dipole`` what the closed form leaves of the labels; of the difference of the last two
      under ``consistency``.
    """
    chunks = [
        _inputs(params, scaled(cache.subset(index), params["scaler"]), labels, index)
        for index in np.array_split(np.arange(len(cache)), max(1, len(cache) // CHUNK))
    ]
    return {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}


def _inputs(params: Params, s: Cache, labels: Arrays, index: np.ndarray) -> Arrays:
    arrays = {"one_hot": s.one_hot}
    arrays["z"] = np.asarray(project(params["components"], s.x, s.one_hot))

    def energy(x):
        found = linear_energy(params["linear"], x, s.one_hot)
        if "kernel" in params:
            found = found + kernel_energy(params["kernel"], x, s.one_hot)
        return jnp.sum(found), found

    gradient, found = jax.grad(energy, has_aux=True)(jnp.asarray(s.x))
    arrays["energy"] = labels["energy"][index] - np.asarray(found)
    if slopes := [k for k in SLOPES if k in labels]:
        dx = np.asarray(s.dx)
        dz = np.zeros((*dx.shape[:3], arrays["z"].shape[-1]), dx.dtype)
        for e, components in enumerate(params["components"]):
            own = s.one_hot[:, None, :, e, None].astype(dx.dtype)
            dz += own * (dx @ components.astype(dx.dtype))
        arrays["dz"] = dz
        closed = -np.einsum("ndik,nik->nd", dx, np.asarray(gradient), optimize=True)
        flat = [labels[k][index].reshape(len(index), -1) for k in slopes]
        cuts = np.cumsum([own.shape[1] for own in flat])[:-1]
        left = np.split(np.concatenate(flat, axis=1) - closed, cuts, axis=1)
        arrays |= dict(zip(slopes, left, strict=True))
    if "dipole" in labels:
        head = params["dipole"]
        predicted = e3nn_to_cartesian(np.asarray(linear_irreps(head, s.v[1], s.one_hot)))
        arrays["dipole"] = labels["dipole"][index] - predicted
        arrays["w"] = e3nn_to_cartesian(np.asarray(gated_vectors(head, s.v[1], s.one_hot)))
        if "field_dipole" in arrays:
            arrays["consistency"] = arrays["field_dipole"] - arrays["dipole"]
    return arrays


def residual_scales(a: Arrays) -> dict[str, np.ndarray]:
    """Root mean squares of what is left, the natural scale of the networks' outputs."""
    real = a["one_hot"].sum(axis=-1)
    out = {"energy": np.sqrt(np.mean(a["energy"] ** 2))}
    if "forces" in a:
        out["forces"] = np.sqrt(np.sum(a["forces"] ** 2) / (3 * real.sum()))
    for name in ("dipole", "field_dipole"):
        if name in a:
            out[name] = np.sqrt(np.mean(a[name] ** 2))
    return {k: np.maximum(v, 1e-12) for k, v in out.items()}


def predict_residual(network: Callable, scale: Params, batch: dict[str, Array]) -> dict[str, Array]:
    """Residual energy, its derivatives (chain rule through the cached ones) and dipole."""
    mask = batch["one_hot"].sum(axis=-1)

    def energy(z):
        local, gates = network(z, batch["one_hot"])
        return scale["energy"] * jnp.sum(local * mask), (local, gates)

    gradient, (local, gates) = jax.grad(energy, has_aux=True)(batch["z"])
    out = {"energy": scale["energy"] * jnp.sum(local * mask, axis=-1)}
    if "dz" in batch:
        slopes, start = -einsum("ndik,nik->nd", batch["dz"], gradient), 0
        for name in SLOPES:
            if name in batch:
                out[name] = slopes[:, start : start + batch[name].shape[1]]
                start += batch[name].shape[1]
    if "w" in batch and gates.shape[-1]:
        out["dipole"] = scale["dipole"] * einsum("nik,nikx->nx", gates, batch["w"])
    return out


def _float32(arrays: Arrays) -> Arrays:
    """Single precision, except for labels: their scale is chosen in float64 first."""
    return {k: np.asarray(v, np.float32) for k, v in arrays.items()}


def calibration(members: Arrays, wanted: Arrays) -> dict[str, np.ndarray]:
    """What standard deviations of an ensemble are multiplied by, so that 68 % of errors are below.

    Args:
      members: predictions by name, ``(n_members, n_structures, ...)``.
      wanted: what they should be, and ``one_hot`` of the elements.

    Returns:
      Factors of ``energy`` and, if predicted, ``forces``; 1 if all members agree.
    """
    out = {}
    for name in (k for k in ("energy", "forces") if k in members):
        mean, spread = (np.asarray(f(members[name], axis=0)) for f in (jnp.mean, jnp.std))
        real = spread > 0
        if name == "forces":
            real &= np.repeat(np.asarray(wanted["one_hot"]).sum(axis=-1), 3, axis=-1) > 0
        error = np.abs(mean - np.asarray(wanted[name]))
        out[name] = scale_of(error[real], spread[real])
    return {name: np.asarray(value, np.float64) for name, value in out.items()}


def train_residual(
    definition: Op2Prop,
    closed_form: Params,
    train: Arrays,
    validation: Arrays,
    optim: OptimConfig,
    seed: int,
    *,
    state: Path | None = None,
    fingerprint: str = "",
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> tuple[Params, list[dict[str, float]]]:
    """Fit the networks; keeps, for each member, the averaged weights of its best epoch.

    Epoch 0 is the closed form itself, so a member is never worse than it on validation.

    Args:
      definition: the model's functions.
      closed_form: its closed-form parameters.
      train: training inputs.
      validation: validation inputs.
      optim: hyper-parameters.
      seed: of initial weights and of batch order, which depends on seed and epoch only; runs
        repeat bit for bit on CPU.
      state: file to keep the state in, and to go on from: to the very same weights.
      fingerprint: what the state must belong to.
      on_epoch: called with the epoch and its row of the history.

    Returns:
      Parameters with ``residual`` (stacked over members) and ``scale`` added, of ensembles also
      ``calibration`` (:func:`calibration`), and one row per
      epoch with training loss, validation loss (means over members) and root mean square
      validation errors of the ensemble (atomic units).

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    use_dipole = "dipole" in closed_form
    members = definition.config.members
    module = definition.network(dipole=use_dipole)
    scale = residual_scales(train)
    n_train = len(train["z"])
    # in units of the scales, so that single precision holds them
    weight = {
        "energy": optim.energy_weight,
        "forces": optim.forces_weight,
        "dipole": optim.dipole_weight,
        "field_dipole": optim.dipole_weight,
    }
    if optim.consistency_sigma:
        weight["consistency"] = 1.0
        scale["consistency"] = np.asarray(optim.consistency_sigma / DEBYE_PER_EBOHR)
    relative = {k: float(v / scale["energy"]) for k, v in scale.items()}

    def prepared(arrays: Arrays) -> Arrays:
        divided = {k: arrays[k] / scale[k] for k in scale}
        return _float32({**arrays, **divided})

    arrays, held_out = prepared(train), prepared(validation)
    start = {k: jnp.asarray(v[:1]) for k, v in arrays.items()}
    keys = jax.random.split(jax.random.key(seed), members)

    def initial(key):
        found = module.init(key, start["z"], start["one_hot"])["params"]
        return jax.tree.map(lambda w: w.astype(jnp.float32), found)

    weights = jax.vmap(initial)(keys)
    size = min(optim.batch_size, n_train)
    steps = max(1, n_train // size)
    mesh = mesh_for(size)
    optimizer = optimizer_of(optim, optim.epochs * steps)

    def predict(weights, batch):
        network = functools.partial(module.apply, {"params": weights})
        found = predict_residual(network, {"energy": 1.0, "dipole": 1.0}, batch)
        for name in SLOPES:
            if name in found:
                found[name] = found[name] / relative[name]
        if "consistency" in scale:
            a, b = (relative[k] * found.get(k, 0.0) for k in ("field_dipole", "dipole"))
            return {**found, "consistency": (a - b) / relative["consistency"]}
        return found

    def errors(found, batch):
        mask = jnp.repeat(batch["one_hot"].sum(axis=-1), 3, axis=-1)
        out = {}
        for name, value in found.items():
            error = jnp.abs(value - batch[name])
            error = error**2 if optim.loss == "mse" else jnp.sqrt(error**2 + 0.01) - 0.1
            if name == "forces":
                out[name] = jnp.sum(error * mask) / jnp.sum(mask)
            else:
                out[name] = jnp.mean(error)
        return out

    def loss(weights, batch):
        return sum(weight[k] * v for k, v in errors(predict(weights, batch), batch).items())

    def step(state, index):
        weights, average, optimizer_state, arrays = state
        batch = spread({k: v[index] for k, v in arrays.items()}, mesh)
        value, gradient = jax.value_and_grad(loss)(weights, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, weights)
        weights = optax.apply_updates(weights, updates)
        average = moving_average(weights, average, optim.ema, optimizer_state)
        return (weights, average, optimizer_state, arrays), value

    @functools.partial(jit, mesh=mesh)
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None))
    def epoch(weights, average, optimizer_state, order, arrays):
        state = (weights, average, optimizer_state, arrays)
        (weights, average, optimizer_state, _), values = jax.lax.scan(step, state, order)
        return weights, average, optimizer_state, jnp.mean(values)

    @functools.partial(jit, mesh=mesh)
    def judge(weights, batch):
        found = jax.vmap(predict, (0, None))(weights, batch)
        losses = jax.vmap(lambda f: sum(weight[k] * v for k, v in errors(f, batch).items()))(found)
        mask = jnp.repeat(batch["one_hot"].sum(axis=-1), 3, axis=-1)
        squares = {}
        for name, value in found.items():
            square = (jnp.mean(value, axis=0) - batch[name]) ** 2
            masked = jnp.sum(square * mask) / jnp.sum(mask) if name == "forces" else None
            squares[name] = jnp.mean(square) if masked is None else masked
        return losses, squares

    arrays = replicate({k: jnp.asarray(v) for k, v in arrays.items()}, mesh)
    held_out = replicate({k: jnp.asarray(v) for k, v in held_out.items()}, mesh)
    weights = replicate(weights, mesh)
    average, optimizer_state = weights, jax.vmap(optimizer.init)(weights)
    silent = jax.tree.map(lambda w: w * 0.0, weights)  # zero networks: the closed form alone
    best, kept = np.asarray(judge(silent, held_out)[0]), silent
    history, saved = [], -np.inf
    running = (weights, average, optimizer_state, best, kept)
    if state is not None and (found := load_state(state, running, fingerprint)):
        (weights, average, optimizer_state, best, kept), meta = found
        weights, average, optimizer_state, kept = replicate(
            (weights, average, optimizer_state, kept), mesh
        )
        history = meta["history"]
    for number in range(len(history) + 1, optim.epochs + 1):
        if is_over(history, optim):
            break
        rng = np.random.default_rng((seed, number))
        order = [
            rng.permutation(n_train)[: steps * size].reshape(steps, size) for _ in range(members)
        ]
        with room_for_batches(optim):
            weights, average, optimizer_state, value = epoch(
                weights, average, optimizer_state, jnp.asarray(np.array(order)), arrays
            )
            losses, parts = judge(average, held_out)
            losses = np.asarray(losses)
        row = {
            "epoch": number,
            "loss": float(jnp.mean(value)),
            "validation_loss": float(losses.mean()),
        }
        row |= {f"validation_{k}_rmse": float(scale[k]) * float(v) ** 0.5 for k, v in parts.items()}
        if not np.isfinite(row["loss"]) or not np.isfinite(row["validation_loss"]):
            raise OpmlError(
                f"the loss became NaN in epoch {number}. Lower optim.learning_rate "
                f"(now {optim.learning_rate}).",
                code=Code.DIVERGED,
            )
        better = losses < best
        best = np.where(better, losses, best)
        kept = jax.tree.map(
            lambda new, old, b=better: jnp.where(b.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            average,
            kept,
        )
        row["best_validation_loss"] = float(best.mean())
        history.append(row)
        on_epoch(number, row)
        last = number == optim.epochs or is_over(history, optim)
        if state is not None and (last or time.monotonic() > saved + SAVE_EVERY):
            running = (weights, average, optimizer_state, best, kept)
            save_state(state, running, {"fingerprint": fingerprint, "history": history})
            saved = time.monotonic()
    params = {
        **closed_form,
        "residual": jax.tree.map(lambda w: np.asarray(w, np.float64), kept),
        "scale": {k: np.asarray(scale[k]) for k in scale if k in ("energy", "dipole")},
    }
    if members > 1:
        params["calibration"] = calibration(jax.vmap(predict, (0, None))(kept, held_out), held_out)
    return params, history
