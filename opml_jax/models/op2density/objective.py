"""What the descents of the network and of the widths share: inputs, start, batches, the loss.

Beside the loss in the metric stand those of dipoles, and absolute errors on points. All are of
coefficients before electrons are counted. Points are those of DenSNet (Bogojeski et al.,
arXiv:2604.24563): random ones of atomic grids that are turned at random, so that no direction is
preferred; here they are drawn once for each structure.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ... import density
from ...basis import layout_of
from ...learn.descent import Descent, Task, cut_batches, descend
from ...learn.gates import Gates
from ...learn.padding import padded
from ...learn.run import Run
from ...numerics import Array, einsum
from ...structures import Structure
from ..base import Params
from .config import Op2DensityNetworkConfig, Op2DensityNetworkFit
from .functions import Op2Density, reduced
from .labels import Labelled
from .network import inputs

GRID_LEVEL = 1
"""Of the grids that points are drawn from."""

VANISHING = 1e-4
"""Components whose spread is less, relative to the largest, are left out."""


def losses(error: Array, batch: dict[str, Array]) -> dict[str, Array]:
    """Sums over structures, of errors ``(n_structures, naux)``, by name: ``metric`` and maps."""
    out: dict[str, Array] = {"metric": einsum("sp,spq,sq->", error, batch["metric"], error)}
    if "dipole" in batch:
        out["dipole"] = jnp.sum(einsum("sxp,sp->sx", batch["dipole"], error) ** 2)
    if "points" in batch:
        out["points"] = jnp.sum(jnp.abs(einsum("sgp,sp->sg", batch["points"], error)))
    return out


def maps_of(
    definition: Op2Density, labelled: Labelled, names: Collection[str], n_points: int, seed: int
) -> dict[str, np.ndarray]:
    """Linear maps from coefficients to what losses compare, for each structure, by name.

    ``dipole`` ``(n_structures, 3, naux)`` e Bohr; ``points`` ``(n_structures, n_points, naux)``,
    electrons at each point with its weight, whose absolute values sum to an integral.
    """
    aux, rng = definition.aux_basis, np.random.default_rng(seed)
    maps: dict[str, list[np.ndarray]] = {}
    for s in labelled.structures:
        each = np.eye(layout_of(s, aux).nao)
        if "dipole" in names:
            maps.setdefault("dipole", []).append(np.asarray(density.dipole(each, s, aux)).T)
        if "points" in names:
            points, weights = draw_points(s, n_points, rng)
            values = density.on_points(each, s, aux, points)
            maps.setdefault("points", []).append(weights[:, None] * values.T)
    return {name: padded(matrices) for name, matrices in maps.items()}


def draw_points(
    structure: Structure, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Up to ``n`` points of a turned atomic grid, ``(n, 3)`` Bohr, and weights, ``(n,)`` Bohr^3."""
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    x = np.asarray(structure.positions)
    points, weights = density.grid(structure.replace(positions=x @ rotation.T), GRID_LEVEL)
    chosen = rng.permutation(len(points))[:n]
    return points[chosen] @ rotation, weights[chosen] * len(points) / len(chosen)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted mean of losses, each in units of what it was at the start.

    Attributes:
      losses: of weights and a batch, sums over its structures, by name.
      shares: weights of the losses, by name.
      parts: batches of ``train`` and ``validation``, from :func:`cut`.
      start: weights to descend from, whose losses are the units.
      whitening: by element and degree, from functions that readouts are of to coefficients.
    """

    losses: Callable[[Params, Params], dict[str, Array]]
    shares: Mapping[str, float]
    parts: Mapping[str, Params]
    start: Params
    whitening: Params

    @functools.cached_property
    def _means(self) -> Callable[[Params, Params], dict[str, Array]]:
        """The compiled function of weights and a part: means of the losses."""

        def means(weights, part):
            sums = jax.lax.map(lambda batch: self.losses(weights, batch), part)
            return {k: jnp.sum(v) / jnp.sum(part["real"]) for k, v in sums.items()}

        return jax.jit(means)

    @functools.cached_property
    def _units(self) -> dict[str, dict[str, float]]:
        start = self.of_coefficients(self.start)
        return {k: jax.tree.map(float, self._means(start, part)) for k, part in self.parts.items()}

    def of_coefficients(self, weights: Params) -> Params:
        """Weights whose readouts give coefficients themselves, and not of whitened functions."""
        out = {}
        for z, network in weights.items():
            readout = {l: r @ self.whitening[z][l] for l, r in network["readout"].items()}
            out[z] = {**network, "readout": readout}
        return out

    def _together(self, losses: Mapping[str, Array], units: Mapping[str, float]) -> Array:
        terms = (w * losses[k] / units[k] for k, w in self.shares.items())
        return sum(terms, jnp.zeros(())) / sum(self.shares.values())

    def validation(self, weights: Params) -> float:
        """Mean of the losses on the validation set, of readouts that give coefficients."""
        means = self._means(weights, self.parts["validation"])
        return float(self._together(means, self._units["validation"]))

    def descend(self, settings: Op2DensityNetworkFit, run: Run, name: str) -> Descent:
        """The descent, which keeps its state under ``name``."""
        units = self._units["train"]  # numbers, before anything is traced

        def loss(weights, batch):
            sums = self.losses(self.of_coefficients(weights), batch)
            return self._together(sums, units) / jnp.sum(batch["real"])

        def judge(weights):
            return self.validation(self.of_coefficients(weights)), {}

        task = Task(loss, judge, **cut_batches(self.parts["train"]))
        return descend(task, self.start, settings, run, name)


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
    """Columns by element, of ``train`` or of networks there are; inputs by set and element."""
    columns, read = {}, {name: {} for name in ("train", "validation")}
    for name, of_set in read.items():
        for e, atoms in sets[name].environments.items():
            z, p = str(e), params[str(e)]
            x = reduced(p["components"], atoms.features, definition.config.kernel)
            x = jax.tree.map(np.asarray, x)
            if name == "train":
                known = p.get("network", {}).get("columns")
                columns[z] = known or columns_of(definition.network.components, x)
            of_set[z] = jax.tree.map(np.asarray, inputs(columns[z], x))
    return columns, read


def initial_weights(
    config: Op2DensityNetworkConfig, params: Params, x: Params, whitening: Params, seed: int
) -> Params:
    """Weights of the networks there are, or of random ones that add nothing, by element."""
    keys = dict(zip(sorted(x), jax.random.split(jax.random.key(seed), len(x)), strict=True))
    gates, out = Gates(config.hidden, config.gates), {}
    for z, irreps in x.items():
        if known := params[z].get("network"):
            learned = jax.tree.map(jnp.asarray, known["learned"])
            readout = {
                l: jnp.asarray(np.linalg.solve(whitening[z][l].T, np.asarray(r).T).T)
                for l, r in known["readout"].items()
            }
        else:
            learned = gates.init(keys[z], {"s": irreps["0"][:1, 0]})["params"]
            n = {l: (1 + config.gates) * (v.shape[-1] + (l == "0")) for l, v in irreps.items()}
            readout = {l: jnp.zeros((n[l], len(w))) for l, w in whitening[z].items()}
        out[z] = {"learned": learned, "readout": readout}
    return out


def with_networks(params: Params, columns: Params, networks: Params) -> Params:
    """Parameters of a model with networks, of columns and of learned weights."""
    added = {
        z: {"network": {"columns": columns[z], **jax.tree.map(np.asarray, network)}}
        for z, network in networks.items()
    }
    return {z: {**p, **added.get(z, {})} for z, p in params.items()}


def cut(
    labelled: Labelled,
    of_atoms: Mapping[str, Params],
    of_structures: Mapping[str, np.ndarray],
    size: int,
    seed: int | None,
) -> Params:
    """Batches of one shape, stacked, on the device; ``seed`` draws which go together, if any.

    ``real`` ``(n_batches, size)`` is zero where a batch is not full, and ``of_structures`` mean
    nothing there. ``atoms`` have by element ``of_atoms``, trees of arrays ``(n_atoms, ...)``;
    ``row``, the molecule of each atom in its batch, or ``size`` of atoms that are none; and
    ``places`` ``{l: (n_atoms, n, 2 l + 1)}`` among the coefficients of all molecules of the batch.
    """
    n, naux = labelled.target.shape
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    index = np.concatenate([order, np.full(-n % size, -1)]).reshape(-1, size)
    out: Params = {"real": (index >= 0).astype(float), "atoms": {}}
    out |= {name: values[index] for name, values in of_structures.items()}
    for z, atoms in labelled.environments.items():
        here = [np.flatnonzero(np.isin(atoms.structure, batch)) for batch in index]
        most = max(map(len, here))
        filled = np.stack([np.append(i, np.full(most - len(i), -1)) for i in here])
        row = np.where(filled < 0, size, np.argsort(order)[atoms.structure[filled]] % size)
        first = row[..., None, None] * naux
        trees = {name: of_elements[str(z)] for name, of_elements in of_atoms.items()}
        trees = jax.tree.map(lambda v, i=filled: v[i], trees)
        places = {l: first + p[filled] for l, p in atoms.places.items()}
        out["atoms"][str(z)] = {**trees, "row": row, "places": places}
    return jax.tree.map(jnp.asarray, out)
