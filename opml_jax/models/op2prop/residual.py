"""Training of the residual networks on cached descriptors.

All members of an ensemble train at once, in one compiled program: they differ in their initial
weights and in the order of their batches. Networks train in single precision: they correct what
the closed form, solved in double precision, leaves.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...conventions import e3nn_to_cartesian
from ...learn.calibration import scale_of
from ...learn.descent import Task, descend
from ...learn.devices import jit, mesh_for, replicate, spread
from ...learn.history import RMSE, note, validation_errors
from ...learn.run import Run
from ...numerics import Array, einsum
from ..base import Params
from .atomwise import AtomwiseDefinition
from .closed_form import SLOPES
from .config import AtomwiseFit
from .descriptors import Arrays, Cache, Labelled
from .network import Residual
from .readout import closed_form_energy, gated_vectors, linear_irreps, project
from .scaling import scaled

CHUNK = 64

OUTPUTS = ("energy", "dipole")
"""What networks put out, in units that a model keeps."""

CONSISTENCY = "consistency"
"""The difference of two dipoles, which no label is."""


def make_inputs(params: Params, part: Labelled) -> Arrays:
    """What the networks see of a set, and what the closed form leaves of its labels, by name.

    ``z`` inputs, ``dz`` their derivatives (if those of the energy are learned), ``w`` vectors to
    gate (if dipoles are), ``one_hot``; ``consistency`` is left of the difference of two dipoles.
    """
    few = np.array_split(np.arange(len(part)), max(1, len(part) // CHUNK))
    chunks = [_inputs(params, part.subset(index)) for index in few]
    return {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}


def _inputs(params: Params, part: Labelled) -> Arrays:
    cache, labels = scaled(part.cache, params["scaler"]), part.labels
    arrays = {"one_hot": cache.one_hot}
    arrays["z"] = np.asarray(project(params["components"], cache.x, cache.one_hot))

    def energy(x):
        energies = closed_form_energy(params, x, cache.one_hot)
        return jnp.sum(energies), energies

    gradient, energies = jax.grad(energy, has_aux=True)(jnp.asarray(cache.x))
    arrays["energy"] = labels["energy"] - np.asarray(energies)
    if slopes := [k for k in SLOPES if k in labels]:
        dx = np.asarray(cache.dx)
        arrays["dz"] = _derivatives(params["components"], dx, cache)
        closed = -np.einsum("ndik,nik->nd", dx, np.asarray(gradient), optimize=True)
        flat = [labels[k].reshape(len(labels[k]), -1) for k in slopes]
        cuts = np.cumsum([values.shape[1] for values in flat])[:-1]
        remainders = np.split(np.concatenate(flat, axis=1) - closed, cuts, axis=1)
        arrays |= dict(zip(slopes, remainders, strict=True))
    if "dipole" in labels:
        head = params["dipole"]
        predicted = linear_irreps(head, cache.v[1], cache.one_hot)
        arrays["dipole"] = labels["dipole"] - e3nn_to_cartesian(np.asarray(predicted))
        vectors = gated_vectors(head, cache.v[1], cache.one_hot)
        arrays["w"] = e3nn_to_cartesian(np.asarray(vectors))
        if "field_dipole" in arrays:
            arrays[CONSISTENCY] = arrays["field_dipole"] - arrays["dipole"]
    return arrays


def _derivatives(components: np.ndarray, dx: np.ndarray, cache: Cache) -> np.ndarray:
    """Derivatives of the networks' inputs, in the precision of ``dx``."""
    dz = np.zeros((*dx.shape[:3], components.shape[-1]), dx.dtype)
    for e, of_element in enumerate(components):
        here = cache.one_hot[:, None, :, e, None].astype(dx.dtype)
        dz += here * (dx @ of_element.astype(dx.dtype))
    return dz


def residual_scales(a: Arrays) -> dict[str, np.ndarray]:
    """Root mean squares of the residuals, the natural scale of the networks' outputs."""
    real = a["one_hot"].sum(axis=-1)
    out = {k: np.sqrt(np.mean(a[k] ** 2)) for k in ("energy", "dipole", "field_dipole") if k in a}
    if "forces" in a:
        out["forces"] = np.sqrt(np.sum(a["forces"] ** 2) / (3 * real.sum()))
    return {k: np.maximum(v, 1e-12) for k, v in out.items()}


def predict_residual(network: Callable, scale: Params, batch: Arrays) -> dict[str, Array]:
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


def calibration(members: Arrays, wanted: Arrays) -> dict[str, np.ndarray]:
    """Factors of standard deviations of an ensemble, so that 68 % of errors are below; else 1.

    Of predictions ``members`` ``(n_members, n_structures, ...)`` by name, and what they should be.
    """
    out = {}
    for name in (k for k in ("energy", "forces") if k in members):
        mean, std = (np.asarray(f(members[name], axis=0)) for f in (jnp.mean, jnp.std))
        if name == "forces":  # padding says nothing
            real = np.asarray(wanted["one_hot"]).sum(axis=-1) > 0
            std = np.where(np.repeat(real, 3, axis=-1), std, 0)
        scale = scale_of(np.abs(mean - np.asarray(wanted[name])), std)
        out[name] = np.asarray(scale, np.float64)
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """What the networks minimise, in units that single precision holds.

    ``scale`` is what counts as one of each quantity, in atomic units.
    """

    module: Residual
    scale: dict[str, np.ndarray]
    fit: AtomwiseFit

    @classmethod
    def of(cls, module: Residual, fit: AtomwiseFit, train: Arrays, known: Params) -> Objective:
        """The objective of a training set, with scales of outputs that are ``known`` already."""
        scale = residual_scales(train)
        scale |= {k: np.asarray(v) for k, v in known.items() if k in scale}
        if CONSISTENCY in fit.sigmas:
            scale[CONSISTENCY] = np.asarray(fit.sigmas[CONSISTENCY])
        return cls(module, scale, fit)

    @functools.cached_property
    def relative(self) -> dict[str, float]:
        """Scales in units of the energy's."""
        return {k: float(v / self.scale["energy"]) for k, v in self.scale.items()}

    def prepared(self, arrays: Arrays) -> Arrays:
        """Inputs in single precision, labels divided by their scale in double precision before."""
        divided = {k: arrays[k] / scale for k, scale in self.scale.items()}
        single = {k: np.asarray(v, np.float32) for k, v in {**arrays, **divided}.items()}
        return jax.tree.map(jnp.asarray, single)

    def predict(self, weights: Params, batch: Arrays) -> dict[str, Array]:
        """Predictions of one network, each in units of its scale."""
        network = functools.partial(self.module.apply, {"params": weights})
        out = predict_residual(network, {"energy": 1.0, "dipole": 1.0}, batch)
        for name in SLOPES:
            if name in out:
                out[name] = out[name] / self.relative[name]
        if CONSISTENCY in self.scale:
            a, b = (self.relative[k] * out.get(k, 0.0) for k in ("field_dipole", "dipole"))
            out[CONSISTENCY] = jnp.asarray(a - b) / self.relative[CONSISTENCY]
        return out

    def loss(self, weights: Params, batch: Arrays) -> Array:
        """The weighted sum of mean errors, ``()``."""
        return self._loss(self.predict(weights, batch), batch)

    def _loss(self, predicted: Mapping[str, Array], batch: Arrays) -> Array:
        total = jnp.zeros((), jnp.float32)
        for name, value in predicted.items():
            error = jnp.abs(value - batch[name])
            error = error**2 if self.fit.loss == "mse" else jnp.sqrt(error**2 + 0.01) - 0.1
            total = total + self.fit.weights[name] * _mean(name, error, batch)
        return total

    def judge(self, weights: Params, batch: Arrays) -> tuple[Array, dict[str, Array]]:
        """Losses of all members ``(n_members,)``, and mean square errors of their means."""
        predicted = jax.vmap(self.predict, (0, None))(weights, batch)
        losses = jax.vmap(lambda of_member: self._loss(of_member, batch))(predicted)
        squares = {k: (jnp.mean(v, axis=0) - batch[k]) ** 2 for k, v in predicted.items()}
        return losses, {k: _mean(k, v, batch) for k, v in squares.items()}

    def columns(self, squares: Mapping[str, Array]) -> dict[str, float]:
        """Columns of the history from mean square errors."""
        rmse = {k: float(self.scale[k]) * float(v) ** 0.5 for k, v in squares.items()}
        both = rmse.pop(CONSISTENCY, None)
        extra = {} if both is None else {f"validation_{CONSISTENCY}_rmse": both}
        return validation_errors(rmse) | extra


def _mean(name: str, values: Array, batch: Arrays) -> Array:
    """Mean over structures; of forces over those of real atoms."""
    mask = jnp.repeat(batch["one_hot"].sum(axis=-1), 3, axis=-1)
    return jnp.sum(values * mask) / jnp.sum(mask) if name == "forces" else jnp.mean(values)


PAYS = 0.05
"""Networks that lower no error on validation by this part are not worth their time."""


@dataclasses.dataclass(frozen=True)
class Residuals:
    """Result of :func:`train_residual`.

    Attributes:
      params: Parameters with ``residual`` (stacked over members), ``scale`` and of ensembles
        :func:`calibration` added.
      history: One row an epoch.
      before: Root mean square errors on validation without what was trained, as the history has
        them.
      after: And with it.
    """

    params: Params
    history: list[dict[str, float]]
    before: dict[str, float]
    after: dict[str, float]

    @property
    def pays(self) -> bool:
        """Whether some error on validation is lower by more than :data:`PAYS`."""
        return any(self.after[k] < (1 - PAYS) * error for k, error in self.before.items())

    @property
    def words(self) -> str:
        """The errors before and after, for people."""
        return f"{note(self.before)} before, {note(self.after).removeprefix(RMSE)} after"


def train_residual(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    closed_form: Params,
    sets: Mapping[str, Arrays],
    run: Run,
) -> Residuals:
    """Fit the networks; keeps, for each member, the averaged weights of its best epoch.

    Epoch 0 is the closed form itself, so a member is never worse than it on validation; with
    networks among its parameters (of a model that training starts from) it is with these.

    Args:
      definition: the model's functions.
      fit: settings.
      closed_form: its closed-form parameters.
      sets: inputs of ``train`` and ``validation`` (:func:`make_inputs`).
      run: its seed draws initial weights and batch order.

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    module, known = definition.network(dipole="dipole" in closed_form), closed_form.get("residual")
    objective = Objective.of(module, fit, sets["train"], closed_form.get("scale", {}))
    train, validation = (objective.prepared(sets[k]) for k in ("train", "validation"))
    size, n_members = min(fit.batch_size, len(train["z"])), definition.config.members
    mesh = mesh_for(size)
    first = known and jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), known)
    weights = replicate(first or _initial(module, run.seed, n_members, train), mesh)
    train, validation = (replicate(arrays, mesh) for arrays in (train, validation))
    judged = jit(objective.judge, mesh)

    def judge(weights: Params) -> tuple[np.ndarray, dict[str, float]]:
        losses, squares = judged(weights, validation)
        return np.asarray(losses), objective.columns(squares)

    # zero networks: the closed form alone
    begin = weights if known else jax.tree.map(lambda w: w * 0.0, weights)
    task = _task(objective, judge, train, size, n_members, mesh)
    losses, before = judge(begin)
    start = losses, begin
    descent = descend(task, weights, fit, run, "network", start)
    params = {
        **closed_form,
        "residual": jax.tree.map(lambda w: np.asarray(w, np.float64), descent.weights),
        "scale": {
            **closed_form.get("scale", {}),
            **{k: np.asarray(v) for k, v in objective.scale.items() if k in OUTPUTS},
        },
    }
    if n_members > 1:
        members = jax.vmap(objective.predict, (0, None))(descent.weights, validation)
        params["calibration"] = calibration(members, validation)
    return Residuals(params, descent.history, before, judge(descent.weights)[1])


def _initial(module: Residual, seed: int, n_members: int, arrays: Arrays) -> Params:
    """Initial weights of all members, stacked, in single precision."""
    z, one_hot = (arrays[k][:1] for k in ("z", "one_hot"))

    def of_member(key):
        weights = module.init(key, z, one_hot)["params"]
        return jax.tree.map(lambda w: w.astype(jnp.float32), weights)

    return jax.vmap(of_member)(jax.random.split(jax.random.key(seed), n_members))


def _task(
    objective: Objective, judge: Callable, data: Arrays, size: int, n_members: int, mesh: Any
) -> Task:
    """The descent of all members, each in batches of its own order."""
    n = len(data["z"])
    n_batches = max(1, n // size)

    def order(rng: np.random.Generator) -> np.ndarray:
        orders = [rng.permutation(n)[: n_batches * size] for _ in range(n_members)]
        return np.array(orders).reshape(n_members, n_batches, size)

    def take(data: Any, index: Array) -> Arrays:
        return spread({k: v[index] for k, v in data.items()}, mesh)

    return Task(objective.loss, judge, data, order, n_batches, take, members=True, mesh=mesh)
