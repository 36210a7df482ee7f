"""Training of the networks of Op2Op with optax, on what the closed form leaves at the reference.

Components and invariants of all molecules are computed once; what is descended is a loss of whole
matrices (:mod:`opml_jax.training.operator_losses`), in units of the closed form's. The readout is
linear, so at the end it is solved in closed form for the features that were learned, and the better
of both is kept. All in double precision: what is corrected is a millionth of the matrix.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..data import Dataset
from ..features.couple import has_constant, key_name
from ..models.op2op import Op2Op, Params, batches, joined, n_electrons
from ..models.op2op_network import (
    Irreps,
    columns_of,
    compress,
    invariants,
    module,
    network_irreps,
    operator_irreps,
    saturated,
    to_matrix,
)
from ..numerics import Array
from ..observables import density_matrix
from .config import OptimConfig
from .descent import descend
from .keyed_ridge import KeyedSystem, best_of, solve_key
from .op2op import N_JUDGED, mean_error, padded, real_rows
from .operator_losses import OperatorLosses, reference, total_loss

SMALLEST = 1e-6
"""Components with less of the largest component's variance than this are left out."""

VANISHING = 1e-10
"""Columns this much smaller than the largest are rounding errors."""


@dataclasses.dataclass(frozen=True)
class NetworkFit:
    """Result of :func:`train_op2op_network`.

    Attributes:
      params: of the model, with ``network`` if it is better than the closed form.
      history: one row per epoch: training and validation loss, the closed form's being 1.
      chosen: validation loss of the best epoch (``descent``) and with the readout solved for its
        features (``solved``), by name; of a self-consistent model also the mean absolute error of
        an element of F without and with the network, Hartree.
    """

    params: Params
    history: list[dict[str, float]]
    chosen: dict[str, float]


class Moments:
    """Means and covariances of rows, added up."""

    def __init__(self):
        self.n, self.total, self.square = 0, 0.0, 0.0

    def add(self, x: np.ndarray) -> None:
        """Rows ``(n, n_columns)``."""
        self.n += len(x)
        self.total, self.square = self.total + x.sum(axis=0), self.square + x.T @ x

    def components(self, most: int, centred: bool) -> Params:
        """Principal components of standardised columns, of unit variance, and their mean."""
        mean = self.total / self.n
        covariance = self.square / self.n - (np.outer(mean, mean) if centred else 0.0)
        spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        size = np.sqrt(np.diag(self.square) / self.n).max()
        inverse = np.where(spread > VANISHING**0.5 * size, 1 / np.maximum(spread, 1e-300), 0.0)
        w, v = np.linalg.eigh(covariance * inverse[:, None] * inverse)
        keep = np.argsort(-w)[:most]
        keep = keep[w[keep] > SMALLEST * w.max()]
        own = {"components": inverse[:, None] * v[:, keep] / np.sqrt(w[keep])}
        return {**own, "mean": mean} if centred else own


def _constants(guess: Params, mean: dict[str, np.ndarray]) -> Params:
    """The closed form of a first guess without its columns: constants only (0 where unknown)."""
    return {
        name: {"weights": np.zeros_like(own["weights"])}
        | ({"constant": mean.get(name, 0 * own["constant"])} if "constant" in own else {})
        for name, own in guess.items()
    }


@dataclasses.dataclass
class Prepared:
    """What networks are trained on.

    Attributes:
      params: closed form, constants alone if it is left out.
      fixed: components, inputs of gates, scales, products' scales.
      parts: for ``train`` and ``validation`` all batches, stacked.
    """

    params: Params
    fixed: Params
    parts: dict[str, Params]


def prepare_networks(
    definition: Op2Op,
    closed_form: Params,
    sets: dict[str, Dataset],
    size: int,
    seed: int,
    *,
    with_orbitals: bool,
) -> Prepared:
    """Components, invariants, references and what the closed form leaves, batch by batch.

    Args:
      definition: the model's functions.
      closed_form: its parameters.
      sets: ``train`` and ``validation``.
      size: molecules of a batch.
      seed: of the composition of batches.
      with_orbitals: the losses need those of the references.
    """
    network = definition.config.network
    assert network is not None  # what is prepared for
    stage = "density" if definition.config.density_words else "guess"
    params = dict(closed_form)
    if network.alone:
        params["guess"] = _constants(closed_form["guess"], {})

    @jax.jit
    def features(params, structures, table, fock):
        operators = definition.operators(structures, table)
        x, s = definition.known_irreps(operators, table), operators["S"]
        electrons, mask = n_electrons(structures), structures.layout.ao_mask
        if stage == "density":
            dm = density_matrix(fock, s, electrons, mask=mask)
            operators = definition.with_density(structures, operators, dm)
            density = definition.density_irreps(operators, table)
            left = fock - operators["T"] - operators["U"]
            left = left - definition.assemble(params["known"], x, table, s)
            left = left - definition.assemble(params["density"], density, table, s)
            x = joined(x, density)
        else:
            left = fock - definition.baseline(params, structures, operators, table)
            left = left - definition.learned_guess(params, x, table, s)
        x = columns_of(network, x, operators, table)
        y = operator_irreps(left[None], table)
        own = {"x": {k: x[k] for k in x if key_name(k) in params[stage]}, "y": y, "left": left}
        own["reference"] = reference(fock, s, electrons, mask, with_orbitals=with_orbitals)
        return own | {"W": operators["W"]}

    def through(name):
        part, rng = sets[name], np.random.default_rng(seed)
        order = rng.permutation(len(part)) if name == "train" else np.arange(len(part))
        part = part.subset(order)
        for structures, table, index in batches(definition, part.structures, size):
            n, nao = structures.n_structures, structures.layout.nao
            labels = [part.labels["fock"][i] for i in index]
            labels += [labels[-1]] * (n - len(labels))
            fock = jnp.asarray(padded(labels, n, nao))
            yield features(params, structures, table, fock), table, len(index)

    def rows(x, key, table, n):
        x, real = np.asarray(x), real_rows(key, table, n)
        return x[real].reshape(-1, x.shape[-1])

    of_x: dict = {}
    of_y: dict = {}
    for found, table, n in through("train"):
        for key, x in found["x"].items():
            of_x.setdefault(key, Moments()).add(rows(x, key, table, n))
            of_y.setdefault(key, Moments()).add(rows(found["y"][key], key, table, n))
    fixed: Params = {"columns": {}, "inputs": {}, "scale": {}}
    mean = {key_name(k): m.total / m.n for k, m in of_y.items()}
    if network.alone:
        params["guess"] = _constants(closed_form["guess"], mean)
    for key, m in of_x.items():
        name, centred = key_name(key), has_constant(key)
        fixed["columns"][name] = m.components(network.components, centred)
        y = of_y[key]
        square = np.diag(y.square) / y.n
        centre = mean[name] ** 2 if network.alone and centred else 0.0
        fixed["scale"][name] = np.sqrt(np.maximum(square - centre, 1e-30))

    @jax.jit
    def compressed(x, table, left):
        x = compress(fixed["columns"], x)
        return x, invariants(x, table, *left.shape[:2])

    of_z: dict[str, Moments] = {}
    kept: dict[str, list[Params]] = {name: [] for name in sets}
    for name in sets:
        for found, table, n in through(name):
            x, z = compressed(found.pop("x"), table, found["left"])
            if name == "train":
                for group, own in z.items():
                    key = tuple(map(int, group.split("_")))
                    of_z.setdefault(group, Moments()).add(rows(own, key, table, n))
            found["data"] = {"x": x, "z": z}
            if network.kind == "matrix":
                found["data"]["W"] = found["W"]
            del found["W"]
            found["real"] = (np.arange(len(found["left"])) < n).astype(float)
            kept[name].append({**found, "table": table})
    fixed["inputs"] = {g: m.components(network.inputs, True) for g, m in of_z.items()}
    parts, squash = {}, jax.jit(functools.partial(saturated, fixed["inputs"]))
    for name, own in kept.items():
        for batch in own:
            batch["data"]["z"] = squash(batch["data"]["z"])
        parts[name] = jax.tree.map(lambda *x: np.stack(x), *own)
    return Prepared(params, fixed, parts)


def _measured(network, weights: Params, fixed: Params, batch: Params) -> Params:
    """Scales of products of the untrained network: inverse root mean squares over a batch."""

    @jax.jit
    def products(scales):
        own = {**fixed, "products": scales}
        _, seen = module(network).apply(
            {"params": weights}, own, batch["data"], batch["table"], mutable=["intermediates"]
        )
        return seen["intermediates"]

    scales: Params = {}
    for layer in range(network.layers):
        found: Irreps = products(scales)[f"products_{layer}"][0]
        scales = {**scales, str(layer): {}}
        for key, x in found.items():
            size = np.sqrt(np.mean(np.asarray(x) ** 2, axis=(0, 1)))
            floor = VANISHING * size.max()
            scale = np.where(size > floor, 1 / np.maximum(size, 1e-300), 0.0)
            scales[str(layer)][key_name(key)] = scale
    return scales


def train_op2op_network(
    definition: Op2Op,
    closed_form: Params,
    train: Dataset,
    validation: Dataset,
    optim: OptimConfig,
    losses: OperatorLosses,
    seed: int,
    *,
    state: Path | None = None,
    fingerprint: str = "",
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> NetworkFit:
    """Fit the network of :attr:`Op2OpConfig.network`; kept only if validation improves.

    Args:
      definition: the model's functions.
      closed_form: parameters from :func:`opml_jax.training.op2op.fit_op2op`.
      train: structures with ``fock``, checked.
      validation: likewise; chooses the epoch.
      optim: hyper-parameters; batches are cut once, their order is drawn anew each epoch.
      losses: what is descended.
      seed: of initial weights and of batches.
      state: file to keep the state in, and to go on from: to the very same weights.
      fingerprint: what the state must belong to.
      on_epoch: called with the epoch and its row of the history.

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    network = definition.config.network
    assert network is not None  # what is trained
    sets = {"train": train, "validation": validation}
    size, orbitals = optim.batch_size, losses.need_orbitals
    ready = prepare_networks(definition, closed_form, sets, size, seed, with_orbitals=orbitals)
    fixed, parts = ready.fixed, jax.tree.map(jnp.asarray, ready.parts)
    first = jax.tree.map(lambda x: x[0], parts["train"])
    bare = {**fixed, "products": {}}

    @jax.jit
    def initial(key):
        return module(network).init(key, bare, first["data"], first["table"])["params"]

    learned = initial(jax.random.key(seed))
    if network.kind == "matrix":
        fixed["products"] = _measured(network, learned, fixed, first)

    def features(weights, batch):
        own = {"params": weights["learned"]}
        return module(network).apply(own, fixed, batch["data"], batch["table"])

    shapes = jax.eval_shape(features, {"learned": learned}, first)[0]
    readout = {
        key_name(k): jnp.zeros((f.shape[-1], len(fixed["scale"][key_name(k)])))
        for k, f in shapes.items()
    }
    weights = {"learned": learned, "readout": readout}

    def raw_loss(batch, added):
        r = batch["reference"]
        per = total_loss(losses, r.fock + added - batch["left"], r)
        return jnp.sum(per * batch["real"])

    def network_loss(weights, batch):
        own, left = {"fixed": fixed, **weights}, batch["left"]
        y = network_irreps(network, own, batch["data"], batch["table"])
        added = to_matrix(y, batch["table"], *left.shape[:2])
        return raw_loss(batch, added) / jnp.sum(batch["real"]) / unit["train"]

    @jax.jit
    def closed_form_loss(part):
        return jnp.sum(jax.lax.map(lambda b: raw_loss(b, 0.0), part)) / jnp.sum(part["real"])

    @jax.jit
    def judge(weights, part):
        def one(batch):
            return network_loss(weights, batch) * jnp.sum(batch["real"])

        total = jnp.sum(jax.lax.map(one, part)) / jnp.sum(part["real"])
        return total * unit["train"] / unit["validation"]

    unit = {name: float(closed_form_loss(part)) for name, part in parts.items()}
    done = descend(
        network_loss,
        lambda weights: float(judge(weights, parts["validation"])),
        weights,
        parts["train"],
        optim,
        seed,
        state=state,
        fingerprint=fingerprint,
        on_epoch=on_epoch,
    )
    best, kept, history = done.best, done.kept, done.history
    chosen = {"descent": best}
    if network.gates:  # outputs without gates of their own are linear in the readout
        source = kept if best < 1.0 else done.last
        solved = {**source, "readout": solve_readout(jax.jit(features), source, fixed, parts)}
        chosen["solved"] = float(judge(solved, parts["validation"]))
        if chosen["solved"] < best:
            best, kept = chosen["solved"], solved
    if not best < 1.0:
        return NetworkFit(ready.params, history, chosen)
    added = jax.tree.map(np.asarray, {"fixed": fixed, **kept})
    params = {**ready.params, "network": added}
    if definition.config.density_words:
        names = {"mae_closed_form": closed_form, "mae_network": params}
        judges = validation.subset(range(min(N_JUDGED, len(validation))))
        chosen |= {k: mean_error(definition, p, judges) for k, p in names.items()}
        if not chosen["mae_network"] < chosen["mae_closed_form"]:
            params = ready.params
    return NetworkFit(params, history, chosen)


def solve_readout(
    features: Callable, weights: Params, fixed: Params, parts: dict[str, Params]
) -> dict[str, Array]:
    """Readout of given features by one ridge a key, each lambda chosen by validation."""
    systems: dict[str, dict] = {name: {} for name in parts}
    for name, part in parts.items():
        for i in range(len(part["real"])):
            batch = jax.tree.map(lambda x, i=i: x[i], part)
            n = int(batch["real"].sum())
            for key, f in features(weights, batch)[0].items():
                real = real_rows(key, batch["table"], n)
                if real.any():
                    x, y = (np.asarray(v)[real] for v in (f, batch["y"][key]))
                    x, y = (v.reshape(-1, v.shape[-1]) for v in (x, y))
                    y = y / fixed["scale"][key_name(key)]
                    systems[name].setdefault(key, KeyedSystem()).add(x, y)
    out = dict(weights["readout"])
    for key, system in systems["train"].items():
        judge = systems["validation"].get(key)
        n_outputs = out[key_name(key)].shape[1]
        found: Sequence = solve_key(system, judge, n_outputs, False)
        if found:
            out[key_name(key)] = jnp.asarray(best_of(found)[0]["weights"])
    return out
