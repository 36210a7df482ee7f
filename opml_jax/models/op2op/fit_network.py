"""Training of the networks of Op2Op, on what the closed form leaves at the reference.

Components and invariants of all molecules are computed once; what is descended is a loss of whole
matrices (:mod:`opml_jax.models.op2op.losses`), in units of the closed form's. The readout is
linear, so at the end it is solved in closed form for the features that were learned, and the better
of both is taken. All in double precision: what is corrected is a millionth of the matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ...data import Dataset
from ...features.couple import IrrepKey, key_name
from ...learn.descent import Descent, Task, cut_batches, descend
from ...learn.keyed_ridge import KeyedSystem, best_of, solve_key
from ...learn.run import Run
from ...numerics import Array
from ..base.definition import Params
from .config import Op2OpNetworkConfig, Op2OpNetworkFit, OperatorLosses
from .functions import Op2Op
from .inputs import Irreps
from .losses import total_loss
from .network import GatedFeatures, network_irreps, to_matrix
from .network_batches import prepare
from .selection import judges_of, mean_error
from .systems import real_rows


@dataclasses.dataclass(frozen=True)
class NetworkFit:
    """Result of :func:`train_network`.

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


def train_network(
    definition: Op2Op,
    fit: Op2OpNetworkFit,
    closed_form: Params,
    sets: Mapping[str, Dataset],
    run: Run,
) -> NetworkFit:
    """Fit the network of :attr:`Op2OpConfig.network`; taken only if validation improves.

    Args:
      definition: the model's functions.
      fit: settings; batches are cut once, their order is drawn anew each epoch.
      closed_form: parameters from :func:`opml_jax.models.op2op.closed_form.fit_closed_form`.
      sets: checked structures with ``fock``: ``train``, and ``validation``, which chooses the
        epoch.
      run: keeps the state ``network``.

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    network = definition.config.network
    assert network is not None  # what is trained
    orbitals = fit.losses.need_orbitals
    size, seed = fit.batch_size, run.seed
    ready = prepare(definition, closed_form, sets, size, seed, with_orbitals=orbitals)
    parts = jax.tree.map(jnp.asarray, ready.parts)
    loss = NetworkLoss(network, fit.losses, ready.fixed)
    units = {name: float(jax.jit(loss.of_closed_form)(part)) for name, part in parts.items()}
    mean = jax.jit(loss.of_part)

    def judge(weights: Params) -> Array:
        return mean(weights, parts["validation"]) / units["validation"]

    task = Task(
        lambda weights, batch: loss.of_batch(weights, batch) / units["train"],
        lambda weights: (judge(weights), {}),
        **cut_batches(parts["train"]),
    )
    done = descend(task, loss.start(parts["train"], seed), fit, run, "network")
    weights, chosen = _better_readout(loss, done, judge, parts)
    if not min(chosen.values()) < 1.0:
        return NetworkFit(ready.params, done.history, chosen)
    learned = jax.tree.map(np.asarray, {"fixed": ready.fixed, **weights})
    params = {**ready.params, "network": learned}
    if definition.config.density_words:
        judges = judges_of(sets["validation"])
        chosen["mae_closed_form"] = mean_error(definition, closed_form, judges)
        chosen["mae_network"] = mean_error(definition, params, judges)
        if not chosen["mae_network"] < chosen["mae_closed_form"]:
            params = ready.params
    return NetworkFit(params, done.history, chosen)


@dataclasses.dataclass(frozen=True)
class NetworkLoss:
    """The loss of matrices to which a network adds, Hartree squared.

    Attributes:
      network: sizes.
      losses: weights of the parts of the loss.
      fixed: what the network does not learn.
    """

    network: Op2OpNetworkConfig
    losses: OperatorLosses
    fixed: Params

    def start(self, part: Params, seed: int) -> Params:
        """Random weights of the gates, and a readout of zeros, for batches like these."""
        first = jax.tree.map(lambda x: x[0], part)
        initial = jax.jit(GatedFeatures(self.network).init)
        learned = initial(jax.random.key(seed), self.fixed, first["data"])["params"]
        shapes = jax.eval_shape(self.features, {"learned": learned}, first)[0]
        outputs = {key_name(key): len(self.fixed["scale"][key_name(key)]) for key in shapes}
        readout = {
            key_name(key): jnp.zeros((f.shape[-1], outputs[key_name(key)]))
            for key, f in shapes.items()
        }
        return {"learned": learned, "readout": readout}

    def features(self, weights: Params, batch: Params) -> tuple[Irreps, Irreps]:
        """Features and gates of outputs, see :class:`GatedFeatures`."""
        learned = {"params": weights["learned"]}
        # Flax's types do not tell that without mutable state there is the output alone
        return GatedFeatures(self.network).apply(learned, self.fixed, batch["data"])  # pyright: ignore[reportReturnType]

    def _total(self, batch: Params, added: Array | float) -> Array:
        """Sum over the structures of a batch that are no repeats."""
        r = batch["reference"]
        losses = total_loss(self.losses, r.fock + added - batch["residual"], r)
        return jnp.sum(losses * batch["real"])

    def _total_with_network(self, weights: Params, batch: Params) -> Array:
        y = network_irreps(self.network, {"fixed": self.fixed, **weights}, batch["data"])
        return self._total(batch, to_matrix(y, batch["table"], *batch["residual"].shape[:2]))

    def of_batch(self, weights: Params, batch: Params) -> Array:
        """Mean over the structures of a batch."""
        return self._total_with_network(weights, batch) / jnp.sum(batch["real"])

    def of_part(self, weights: Params, part: Params) -> Array:
        """Mean over the structures of all batches."""
        totals = jax.lax.map(lambda batch: self._total_with_network(weights, batch), part)
        return jnp.sum(totals) / jnp.sum(part["real"])

    def of_closed_form(self, part: Params) -> Array:
        """Likewise, without the network."""
        totals = jax.lax.map(lambda batch: self._total(batch, 0.0), part)
        return jnp.sum(totals) / jnp.sum(part["real"])


def _better_readout(
    loss: NetworkLoss,
    done: Descent,
    judge: Callable[[Params], Array],
    parts: Mapping[str, Params],
) -> tuple[Params, dict[str, float]]:
    """The weights of the descent, or with the readout solved for its features, and both losses."""
    chosen = {"descent": float(done.best)}
    if not loss.network.gates:  # outputs with gates of their own are not linear in the readout
        return done.weights, chosen
    source = done.weights if chosen["descent"] < 1.0 else done.last
    readout = solve_readout(loss, source, parts)
    solved = {**source, "readout": readout}
    chosen["solved"] = float(judge(solved))
    return (solved if chosen["solved"] < chosen["descent"] else done.weights), chosen


def solve_readout(
    loss: NetworkLoss, weights: Params, parts: Mapping[str, Params]
) -> dict[str, Array]:
    """Readout of given features by one ridge a key, each lambda chosen by validation."""
    features = jax.jit(loss.features)
    systems: dict[str, dict[IrrepKey, KeyedSystem]] = {name: {} for name in parts}
    for name, part in parts.items():
        for i in range(len(part["real"])):
            batch = jax.tree.map(lambda x, i=i: x[i], part)
            n = int(batch["real"].sum())
            for key, f in features(weights, batch)[0].items():
                x = real_rows(f, key, batch["table"], n)
                if len(x):
                    y = real_rows(batch["y"][key], key, batch["table"], n)
                    y = y / loss.fixed["scale"][key_name(key)]
                    systems[name].setdefault(key, KeyedSystem()).add(x, y)
    readout = dict(weights["readout"])
    for key, system in systems["train"].items():
        judge = systems["validation"].get(key)
        n_outputs = readout[key_name(key)].shape[1]
        if solved := solve_key(system, judge, n_outputs, False):
            readout[key_name(key)] = jnp.asarray(best_of(solved)[0]["weights"])
    return readout
