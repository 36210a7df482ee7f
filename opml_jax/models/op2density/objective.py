"""What the descents of the network and of the widths share: inputs, start, batches, the loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...learn.descent import Task, cut_batches
from ...numerics import Array
from ..base import Params
from .config import Op2DensityNetworkConfig
from .functions import Op2Density
from .kernels import reduced
from .labels import Labelled
from .network import gated, gates_of, inputs

VANISHING = 1e-4
"""Components whose spread is less, relative to the largest, are left out."""


@dataclasses.dataclass(frozen=True)
class NetworkFit:
    """Result of a descent.

    Attributes:
      params: of the model, with ``network`` if it is better than what it starts from.
      history: one row per epoch: training and validation loss, those of the start being 1.
      chosen: validation losses of what could be chosen, by name.
    """

    params: Params
    history: list[dict[str, float]]
    chosen: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted mean of losses, each in units of what it was at the start.

    Attributes:
      losses: of weights and a batch, sums over its structures, by name.
      shares: weights of the losses, by name.
      parts: batches of ``train`` and ``validation``, stacked, on the device.
      start: weights whose losses are the units.
      units: mean losses of the start, by part and name.
    """

    losses: Callable[[Params, Params], dict[str, Array]]
    shares: Mapping[str, float]
    parts: Mapping[str, Params]
    start: dataclasses.InitVar[Params]
    units: dict[str, dict[str, float]] = dataclasses.field(init=False)

    def __post_init__(self, start: Params):
        units = {k: jax.tree.map(float, self._means(start, part)) for k, part in self.parts.items()}
        object.__setattr__(self, "units", units)

    @functools.cached_property
    def _means(self) -> Callable[[Params, Params], dict[str, Array]]:
        """The compiled function of weights and a part: means of the losses."""

        def means(weights, part):
            sums = jax.lax.map(lambda batch: self.losses(weights, batch), part)
            return {k: jnp.sum(v) / jnp.sum(part["real"]) for k, v in sums.items()}

        return jax.jit(means)

    def _together(self, losses: Mapping[str, Array], part: str) -> Array:
        terms = (w * losses[k] / self.units[part][k] for k, w in self.shares.items())
        return sum(terms, jnp.zeros(())) / sum(self.shares.values())

    def validation(self, weights: Params) -> float:
        """Mean of the losses on the validation set."""
        return float(self._together(self._means(weights, self.parts["validation"]), "validation"))

    def task(self, whitening: Params) -> Task:
        """What is descended, of weights whose readouts are of whitened functions."""

        def loss(weights, batch):
            sums = self.losses(in_coefficients(weights, whitening), batch)
            return self._together(sums, "train") / jnp.sum(batch["real"])

        def judge(weights):
            return self.validation(in_coefficients(weights, whitening)), {}

        return Task(loss, judge, **cut_batches(self.parts["train"]))


def in_coefficients(weights: Params, whitening: Params) -> Params:
    """Weights whose readouts give coefficients themselves, and not of whitened functions."""
    return {
        z: {**network, "readout": {l: r @ whitening[z][l] for l, r in network["readout"].items()}}
        for z, network in weights.items()
    }


def columns_of(n_components: int, x: Mapping[str, np.ndarray]) -> Params:
    """Scales of the leading components of one element's atoms, and means of scalars."""
    out = {}
    for l, components in x.items():
        leading = components[:, :n_components]
        mean = leading.mean(axis=0)[:, 0] if l == "0" else np.zeros(leading.shape[1])
        spread = np.sqrt(((leading.swapaxes(1, 2) - mean) ** 2).mean(axis=(0, 1)))
        real = spread > VANISHING * spread.max()
        out[l] = {"scale": 1 / spread[real]} | ({"mean": mean[real]} if l == "0" else {})
    return out


def columns_and_inputs(
    definition: Op2Density, params: Params, sets: Mapping[str, Labelled]
) -> tuple[dict[str, Params], dict[str, dict[str, Params]]]:
    """What the networks of all elements read.

    Args:
      definition: the model's functions.
      params: of the model, perhaps with networks, which keep their columns.
      sets: molecules by name; ``train`` tells scales and means.

    Returns:
      By element ``columns``, and by set and element what :func:`~.network.inputs` gives.
    """
    config = definition.config.network
    assert config is not None  # what is trained
    components = {}
    for name, labelled in sets.items():
        components[name] = {
            str(z): reduced(params[str(z)]["components"], atoms.features, definition.config.kernel)
            for z, atoms in labelled.environments.items()
        }
    columns = {}
    for z, x in components["train"].items():
        known = params[z].get("network", {}).get("columns")
        columns[z] = known or columns_of(config.components, jax.tree.map(np.asarray, x))
    return columns, {
        name: {
            z: jax.tree.map(np.asarray, inputs({"columns": columns[z]}, x))
            for z, x in of_elements.items()
        }
        for name, of_elements in components.items()
    }


def initial_weights(
    config: Op2DensityNetworkConfig, params: Params, x: Params, whitening: Params, seed: int
) -> Params:
    """Weights of the networks there are, or of ones that add nothing.

    Args:
      config: sizes.
      params: of the model, perhaps with networks.
      x: inputs of each element.
      whitening: by element and degree, from functions of readouts to coefficients.
      seed: of what is drawn.
    """
    keys = dict(zip(sorted(x), jax.random.split(jax.random.key(seed), len(x)), strict=True))
    out = {}
    for z, irreps in x.items():
        known = params[z].get("network")
        if known is None:
            learned = gates_of(config).init(keys[z], {"s": irreps["0"][:1, 0]})["params"]
        else:
            learned = jax.tree.map(jnp.asarray, known["learned"])
        columns = jax.eval_shape(functools.partial(gated, config), learned, irreps)
        readout = {l: jnp.zeros((columns[l].shape[-1], len(w))) for l, w in whitening[z].items()}
        if known is not None:
            readout |= {
                l: jnp.asarray(np.linalg.solve(whitening[z][l].T, np.asarray(r).T).T)
                for l, r in known["readout"].items()
            }
        out[z] = {"learned": learned, "readout": readout}
    return out


def cut(
    labelled: Labelled,
    of_atoms: Mapping[str, Mapping[str, Any]],
    of_structures: Mapping[str, np.ndarray],
    size: int,
    rng: np.random.Generator | None,
) -> Params:
    """Batches of one shape, stacked, on the device.

    Args:
      labelled: molecules.
      of_atoms: trees of arrays ``(n_atoms, ...)``, by name and element.
      of_structures: arrays ``(n_structures, ...)``, by name.
      size: molecules of a batch.
      rng: draws which go together. None: in the order they have.

    Returns:
      ``real`` ``(n_batches, size)``, zero where a batch is not full; ``of_structures``, which mean
      nothing there; ``atoms``: by element ``of_atoms`` and ``row``, the molecule of each atom in
      its batch, or ``size`` of atoms that are none.
    """
    n = len(labelled.target)
    order = np.arange(n) if rng is None else rng.permutation(n)
    batches = []
    for index in np.concatenate([order, np.full(-n % size, -1)]).reshape(-1, size):
        row = np.full(n, -1)
        row[index[index >= 0]] = np.flatnonzero(index >= 0)
        batch = {"real": (index >= 0).astype(float), "atoms": {}}
        batch |= {name: values[index] for name, values in of_structures.items()}
        for z, atoms in labelled.environments.items():
            here = row[atoms.structure] >= 0
            trees = {name: of_elements[str(z)] for name, of_elements in of_atoms.items()}
            trees = jax.tree.map(lambda v, here=here: v[here], trees)
            batch["atoms"][str(z)] = {**trees, "row": row[atoms.structure[here]]}
        batches.append(batch)
    for z in batches[0]["atoms"]:
        _fill([batch["atoms"][z] for batch in batches], size)
    return jax.tree.map(lambda *v: jnp.asarray(np.stack(v)), *batches)


def _fill(batches: list[Params], size: int) -> None:
    """Give an element's atoms of every batch one number, by atoms of no molecule."""
    most = max(len(atoms["row"]) for atoms in batches)
    for atoms in batches:
        missing = most - len(atoms["row"])
        row = np.concatenate([atoms["row"], np.full(missing, size)])
        atoms |= jax.tree.map(
            lambda v, k=missing: np.concatenate([v, np.zeros((k, *v.shape[1:]), v.dtype)]), atoms
        )
        atoms["row"] = row
