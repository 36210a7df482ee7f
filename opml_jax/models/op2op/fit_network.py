"""Training of the networks of Op2Op, on what the closed form leaves at the reference.

Components and invariants of all molecules are computed once; what is descended is a loss of whole
matrices (:mod:`opml_jax.models.op2op.losses`), in units of the closed form's. The readout is
linear, so at the end it is solved in closed form for the features that were learned, and the better
of both is taken. All in double precision: what is corrected is a millionth of the matrix.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...data import Dataset
from ...features.couple import IrrepKey, has_constant, key_name
from ...learn.descent import Descent, Task, cut_batches, descend
from ...learn.keyed_ridge import VANISHING, KeyedSystem, best_of, solve_key
from ...learn.run import Run
from ...numerics import Array
from ...observables import density_matrix
from ...operators.species import SpeciesTable
from ..base.definition import Params
from ..family import Fit
from .config import Op2OpNetworkConfig, Op2OpNetworkFit, OperatorLosses
from .functions import Op2Op
from .inputs import Irreps, joined, n_electrons, operator_irreps
from .losses import reference, total_loss
from .network import (
    GatedFeatures,
    compress,
    gated_features,
    invariants,
    network_irreps,
    saturated,
    to_matrix,
)
from .rows import labelled_batches, real_rows
from .selection import judges_of, mean_error

Read = tuple[Params, SpeciesTable, int]
"""What the closed form leaves of a batch, its table, and how many structures are no repeats."""

SMALLEST = 1e-6
"""Components with less of the largest component's variance than this are left out."""


def train_network(
    definition: Op2Op,
    fit: Op2OpNetworkFit,
    closed_form: Params,
    sets: Mapping[str, Dataset],
    run: Run,
) -> Fit:
    """Fit the network of :attr:`Op2OpConfig.network`; taken only if validation improves.

    Args:
      definition: the model's functions.
      fit: settings; batches are cut once, their order is drawn anew each epoch.
      closed_form: parameters from :func:`opml_jax.models.op2op.closed_form.fit_closed_form`.
      sets: checked structures with ``fock``: ``train``, and ``validation``, which chooses the
        epoch.
      run: keeps the state ``network``.

    Returns:
      Parameters, with ``network`` if it is better than the closed form. Facts: whether it is, the
      validation loss of the best epoch (``network_descent``) and with the readout solved for its
      features (``network_solved``), and of a self-consistent model the mean absolute error of an
      element of F without and with the network, Hartree. History: training and validation loss of
      every epoch, the closed form's being 1.

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    network = definition.config.network
    assert network is not None  # what is trained
    known: Params = run.origin.params.get("network", {}) if run.origin else {}
    closed, fixed, parts = _prepared(definition, closed_form, sets, fit, run.seed, known)
    parts = jax.tree.map(jnp.asarray, parts)
    loss = NetworkLoss(network, fit.losses, fixed)
    mean = jax.jit(loss.mean)
    units = {name: float(mean(None, part)) for name, part in parts.items()}

    def judge(weights: Params) -> Array:
        return mean(weights, parts["validation"]) / units["validation"]

    task = Task(
        lambda w, batch: loss.total(w, batch) / jnp.sum(batch["real"]) / units["train"],
        lambda weights: (judge(weights), {}),
        **cut_batches(parts["train"]),
    )
    weights = {k: jax.tree.map(jnp.asarray, known[k]) for k in known if k != "fixed"}
    start = (float(judge(weights)), weights) if weights else None
    weights = weights or loss.start(parts["train"], run.seed)
    done = descend(task, weights, fit, run, "network", start)
    weights, chosen = _better_readout(loss, done, judge, parts)
    better = min(chosen.values()) < 1.0
    params = {**closed, "network": jax.tree.map(np.asarray, {"fixed": fixed, **weights})}
    if better and definition.config.density_words:
        judges = judges_of(sets["validation"])
        chosen["mae_closed_form"] = mean_error(definition, closed_form, judges)
        chosen["mae_network"] = mean_error(definition, params, judges)
        better = chosen["mae_network"] < chosen["mae_closed_form"]
    facts: dict[str, Any] = {"network": "kept" if better else "no better than the closed form"}
    facts |= {f"network_{name}": value for name, value in chosen.items()}
    return Fit(params if better else closed, facts, done.history)


@dataclasses.dataclass(frozen=True)
class NetworkLoss:
    """The loss of matrices to which a network adds, Hartree squared; ``fixed`` is not learned."""

    network: Op2OpNetworkConfig
    losses: OperatorLosses
    fixed: Params

    def start(self, part: Params, seed: int) -> Params:
        """Random weights of the gates, and a readout of zeros, for batches like these."""
        first = jax.tree.map(lambda x: x[0], part)
        initial = jax.jit(GatedFeatures(self.network).init)
        learned = initial(jax.random.key(seed), self.fixed, first["data"])["params"]
        shapes = jax.eval_shape(self.features, {"learned": learned}, first)[0]
        widths = {key_name(key): f.shape[-1] for key, f in shapes.items()}
        scale = self.fixed["scale"]
        readout = {name: jnp.zeros((width, len(scale[name]))) for name, width in widths.items()}
        return {"learned": learned, "readout": readout}

    def features(self, weights: Params, batch: Params) -> tuple[Irreps, Irreps]:
        """Features and gates of outputs, see :class:`GatedFeatures`."""
        return gated_features(self.network, self.fixed, weights["learned"], batch["data"])

    def total(self, weights: Params | None, batch: Params) -> Array:
        """Sum over the structures of a batch that are no repeats; None: without the network."""
        r, added = batch["reference"], 0.0
        if weights is not None:
            y = network_irreps(self.network, {"fixed": self.fixed, **weights}, batch["data"])
            added = to_matrix(y, batch["table"], *batch["residual"].shape[:2])
        losses = total_loss(self.losses, r.fock + added - batch["residual"], r)
        return jnp.sum(losses * batch["real"])

    def mean(self, weights: Params | None, part: Params) -> Array:
        """Mean over the structures of all batches."""
        totals = jax.lax.map(functools.partial(self.total, weights), part)
        return jnp.sum(totals) / jnp.sum(part["real"])


def _better_readout(
    loss: NetworkLoss, done: Descent, judge: Callable[[Params], Array], parts: Mapping[str, Params]
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


class Moments:
    """Means and covariances of rows, added up."""

    def __init__(self):
        self.n, self.total, self.square = 0, np.zeros(()), np.zeros(())

    def add(self, x: np.ndarray) -> None:
        """Rows ``(n, n_columns)``."""
        self.n += len(x)
        self.total, self.square = self.total + x.sum(axis=0), self.square + x.T @ x

    @property
    def mean(self) -> np.ndarray:
        """``(n_columns,)``."""
        return self.total / self.n

    def components(self, most: int, centred: bool) -> Params:
        """Principal components of standardised columns, of unit variance, and their mean."""
        mean = self.mean
        covariance = self.square / self.n - (np.outer(mean, mean) if centred else 0.0)
        spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        size = np.sqrt(np.diag(self.square) / self.n).max()
        inverse = np.where(spread > VANISHING**0.5 * size, 1 / np.maximum(spread, 1e-300), 0.0)
        w, v = np.linalg.eigh(covariance * inverse[:, None] * inverse)
        largest = np.argsort(-w)[:most]
        largest = largest[w[largest] > SMALLEST * w.max()]
        components = inverse[:, None] * v[:, largest] / np.sqrt(w[largest])
        return {"components": components, **({"mean": mean} if centred else {})}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _residuals(
    definition: Op2Op, with_orbitals: bool, params: Params, structures, table: SpeciesTable, fock
) -> Params:
    """Irreps ``x`` of the words of a batch, and what the closed form leaves of its matrices."""
    operators = definition.operators(structures, table)
    x, s = definition.known_irreps(operators, table), operators["S"]
    electrons, mask = n_electrons(structures), structures.layout.ao_mask
    if definition.config.density_words:
        dm = density_matrix(fock, s, electrons, mask=mask)
        operators = definition.with_density(structures, operators, dm)
        density = definition.density_irreps(operators, table)
        residual = fock - operators["T"] - operators["mean_field"]
        residual = residual - definition.assemble(params["known"], x, table, s)
        residual = residual - definition.assemble(params["density"], density, table, s)
        x, weights = joined(x, density), params["density"]
    else:
        residual = fock - definition.baseline(params, structures, operators, table)
        residual = residual - definition.learned_guess(params, x, table, operators)
        weights = params["guess"]
    return {
        "x": {k: x[k] for k in x if key_name(k) in weights},
        "y": operator_irreps(residual[None], table),
        "residual": residual,
        "reference": reference(fock, s, electrons, mask, with_orbitals=with_orbitals),
    }


def _prepared(
    definition: Op2Op,
    closed_form: Params,
    sets: Mapping[str, Dataset],
    fit: Op2OpNetworkFit,
    seed: int,
    known: Params,
) -> tuple[Params, Params, dict[str, Params]]:
    """The closed form (constants alone if it is left out), what is fixed, and stacked batches.

    With a network that is ``known`` what it has fixed stands, and so does the closed form.

    Fixed are components, inputs of gates and scales. Batches of ``train`` and ``validation`` have
    ``data`` of the network, the ``reference``, the ``residual`` matrices of the closed form and
    their irreps ``y``, the ``table``, and ``real``, 1 for structures that are no repeats.
    """
    network = definition.config.network
    assert network is not None  # what is prepared for

    def read(params: Params, name: str) -> Iterator[Read]:
        part, order = sets[name], np.arange(len(sets[name]))
        if name == "train":  # so that batches are alike
            order = np.random.default_rng(seed).permutation(len(part))
        labelled = labelled_batches(definition, part.subset(order), fit.batch_size, shapes=1)
        orbitals = fit.losses.need_orbitals
        for structures, table, fock, n in labelled:
            batch = structures, table, jnp.asarray(fock)
            yield _residuals(definition, orbitals, params, *batch), table, n

    alone = network.alone and not known
    params = _without_columns(closed_form, {}) if alone else closed_form
    if known:
        fixed = {k: v for k, v in known["fixed"].items() if k != "inputs"}
    else:
        of_x, of_y = _moments(read(params, "train"))
        if alone:
            mean = {key_name(key): moments.mean for key, moments in of_y.items()}
            params = _without_columns(closed_form, mean)
        fixed = _fixed(network, of_x, of_y)
    of_invariants: dict[str, Moments] = {}
    batches = {
        name: [_compressed(fixed["columns"], batch, moments) for batch in read(params, name)]
        for name, moments in (("train", of_invariants), ("validation", None))
    }
    inputs = {g: m.components(network.inputs, True) for g, m in of_invariants.items()}
    fixed["inputs"] = known["fixed"]["inputs"] if known else inputs
    squash, parts = jax.jit(functools.partial(saturated, fixed["inputs"])), {}
    for name, of_set in batches.items():
        for batch in of_set:
            batch["data"]["z"] = squash(batch["data"]["z"])
        parts[name] = jax.tree.map(lambda *x: np.stack(x), *of_set)
    return params, fixed, parts


def _without_columns(params: Params, mean: Mapping[str, np.ndarray]) -> Params:
    """A closed form whose first guess has constants only (0 where no mean is known)."""
    guess = {
        name: {"weights": np.zeros_like(linear["weights"])}
        | ({"constant": mean.get(name, 0 * linear["constant"])} if "constant" in linear else {})
        for name, linear in params["guess"].items()
    }
    return {**params, "guess": guess}


def _moments(batches: Iterable[Read]) -> tuple[dict[IrrepKey, Moments], dict[IrrepKey, Moments]]:
    """Moments of the columns of every key, and of what they are to make."""
    of_x: dict[IrrepKey, Moments] = {}
    of_y: dict[IrrepKey, Moments] = {}
    for batch, table, n in batches:
        for key, x in batch["x"].items():
            of_x.setdefault(key, Moments()).add(real_rows(x, key, table, n))
            of_y.setdefault(key, Moments()).add(real_rows(batch["y"][key], key, table, n))
    return of_x, of_y


def _fixed(
    network: Op2OpNetworkConfig, of_x: Mapping[IrrepKey, Moments], of_y: Mapping[IrrepKey, Moments]
) -> Params:
    """Components of the columns of every key, and the scale of what they are to make."""
    columns, scale = {}, {}
    for key, moments in of_x.items():
        name, centred, y = key_name(key), has_constant(key), of_y[key]
        columns[name] = moments.components(network.components, centred)
        centre = y.mean**2 if network.alone and centred else 0.0
        scale[name] = np.sqrt(np.maximum(np.diag(y.square) / y.n - centre, 1e-30))
    return {"columns": columns, "scale": scale}


@jax.jit
def _components_and_invariants(
    columns: Params, x: Irreps, table: SpeciesTable, like: Array
) -> tuple[Irreps, dict[str, Array]]:
    x = compress(columns, x)
    return x, invariants(x, table, *like.shape[:2])


def _compressed(columns: Params, read: Read, moments: dict[str, Moments] | None) -> Params:
    """A batch with components in place of columns; invariants are added to ``moments``, if any."""
    batch, table, n = read
    x, z = _components_and_invariants(columns, batch["x"], table, batch["residual"])
    if moments is not None:
        for group, values in z.items():
            rows = real_rows(values, list(map(int, group.split("_"))), table, n)
            moments.setdefault(group, Moments()).add(rows)
    real = (np.arange(len(batch["residual"])) < n).astype(float)
    del batch["x"]
    return {**batch, "data": {"x": x, "z": z}, "real": real, "table": table}
