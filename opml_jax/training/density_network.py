"""Training of the networks of Op2Density with optax, on what the kernels (or the baseline) leave.

What is descended is the loss of the kernels, (c' - c)^T M (c' - c) with the float64 metric of each
structure, all couplings between atoms included, in units of what it was before; with weights, those
of :mod:`.density_losses` beside it. Readouts are written in functions that are orthonormal on their
atom, in units of what is left of each, so that one step size serves all. They are linear: at the
end they are solved by the kernels' conjugate gradients for the features that were learned, and the
better of both is kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ConvergenceError
from ..models.density import Op2Density, Params, reduced
from ..models.density_network import gated, gates_of, inputs
from ..numerics import einsum
from .config import OptimConfig
from .density import Labelled, left_over
from .density_losses import losses, maps_of
from .density_solver import Problem, conjugate_gradients, factors
from .descent import descend

VANISHING = 1e-4
"""Components whose spread is less, relative to the largest, are left out."""
PENALTIES = (1e-4, 1e-6)
"""Of the readout's weights, relative to what is left; validation chooses."""
TOLERANCE = 1e-3
"""Residual of the conjugate gradients that solve a readout."""


@dataclasses.dataclass(frozen=True)
class NetworkFit:
    """Result of :func:`train_density_network`.

    Attributes:
      params: of the model, with ``network`` if it is better than what it starts from.
      history: one row per epoch: training and validation loss, those of the start being 1.
      chosen: validation loss of the best epoch (``descent``) and with the readout solved
        (``solved_PENALTY``), by name.
    """

    params: Params
    history: list[dict[str, float]]
    chosen: dict[str, float]


def columns_of(n_components: int, x: dict[str, np.ndarray]) -> Params:
    """Scales of the leading components of one element's atoms, and means of scalars."""
    out = {}
    for l, own in x.items():
        own = own[:, :n_components]
        mean = own.mean(axis=0)[:, 0] if l == "0" else np.zeros(own.shape[1])
        spread = np.sqrt(((own.swapaxes(1, 2) - mean) ** 2).mean(axis=(0, 1)))
        kept = spread > VANISHING * spread.max()
        out[l] = {"scale": 1 / spread[kept]} | ({"mean": mean[kept]} if l == "0" else {})
    return out


def _cut(labelled: Labelled, left: np.ndarray, x: Params, maps: Params, size: int, rng) -> Params:
    """Batches of one shape: inputs and places of atoms by element, metrics, what is left.

    ``maps`` of :func:`maps_of` are cut likewise.
    """
    n, naux = left.shape
    batches = []
    for index, row in cuts(n, size, rng):
        real = index >= 0
        own = {"metric": labelled.metric[index] * real[:, None, None], "left": left[index]}
        own |= {"real": real.astype(float), "x": {}, "places": {}}
        own |= {k: v[index] * real[:, None, None] for k, v in maps.items()}
        for z, found in labelled.found.items():
            here = row[found.structure] >= 0
            first = row[found.structure[here], None, None] * naux
            own["places"][str(z)] = {str(l): first + p[here] for l, p in found.places.items()}
            own["x"][str(z)] = {l: v[here] for l, v in x[str(z)].items()}
        batches.append(own)
    most = {z: max(len(b["x"][z]["0"]) for b in batches) for z in batches[0]["x"]}
    for b in batches:
        for z, n_atoms in most.items():
            b["x"][z] = {l: filled(v, n_atoms, 0.0) for l, v in b["x"][z].items()}
            b["places"][z] = {l: filled(v, n_atoms, size * naux) for l, v in b["places"][z].items()}
    return jax.tree.map(lambda *v: np.stack(v), *batches)


def cuts(n: int, size: int, rng: np.random.Generator | None):
    """Molecules of each batch, -1 where it is not full, and the row of each of n in it, or -1.

    In the order they have, or in one that ``rng`` draws.
    """
    order = np.arange(n) if rng is None else rng.permutation(n)
    for index in np.concatenate([order, np.full(-n % size, -1)]).reshape(-1, size):
        row = np.full(n, -1)
        row[index[index >= 0]] = np.flatnonzero(index >= 0)
        yield index, row


def filled(v: np.ndarray, n: int, value: float) -> np.ndarray:
    """Rows added up to ``n``."""
    return np.concatenate([v, np.full((n - len(v), *v.shape[1:]), value, v.dtype)])


def train_density_network(
    definition: Op2Density,
    params: Params,
    train: Labelled,
    validation: Labelled,
    optim: OptimConfig,
    seed: int,
    *,
    state: Path | None = None,
    fingerprint: str = "",
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> NetworkFit:
    """Fit the network of :attr:`Op2DensityConfig.network`; kept only if validation improves.

    Args:
      definition: the model's functions.
      params: what it adds to: kernels, or :func:`opml_jax.training.density.subtract_baselines`'.
      train: molecules that are learned.
      validation: molecules that choose the epoch, and how the readout is solved.
      optim: hyper-parameters; batches are cut once, their order is drawn anew each epoch.
      seed: of initial weights and of batches.
      state: file to keep the state in, and to go on from: to the very same weights.
      fingerprint: what the state must belong to.
      on_epoch: called with the epoch and its row of the history.

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    config = definition.config.network
    assert config is not None  # what is trained
    sets = {"train": train, "validation": validation}
    left = {k: left_over(definition, params, v) for k, v in sets.items()}
    fixed, x = {}, {}
    for name, labelled in sets.items():
        components = {}
        for z, own in labelled.found.items():
            found = reduced(params[str(z)]["components"], own.features, definition.config.kernel)
            components[str(z)] = {l: np.asarray(v) for l, v in found.items()}
        if name == "train":
            fixed = {
                z: {"columns": columns_of(config.components, v)} for z, v in components.items()
            }
        x[name] = {z: jax.tree.map(np.asarray, inputs(fixed[z], v)) for z, v in components.items()}
    whitening = _whitening(train, left["train"])
    size = min(optim.batch_size, len(train.target))
    rng = np.random.default_rng(seed)
    weight = {"metric": 1.0, "dipole": config.dipole_weight}
    weight = {k: w for k, w in (weight | {"points": config.real_space_weight}).items() if w}
    parts = {}
    for name, labelled in sets.items():
        maps = maps_of(definition, labelled, tuple(weight), seed)
        shuffled = rng if name == "train" else None
        own = _cut(labelled, left[name], x[name], maps, size, shuffled)
        parts[name] = jax.tree.map(jnp.asarray, own)
    keys = dict(zip(sorted(fixed), jax.random.split(jax.random.key(seed), len(fixed)), strict=True))
    weights: Params = {}
    for z, own in x["train"].items():
        learned = gates_of(config).init(keys[z], {"s": own["0"][:1, 0]})["params"]
        columns = jax.eval_shape(functools.partial(gated, config), learned, own)
        readout = {l: jnp.zeros((columns[l].shape[-1], len(w))) for l, w in whitening[z].items()}
        weights[z] = {"learned": learned, "readout": readout}

    def raw_losses(weights, whitening, batch):
        out = jnp.zeros(batch["left"].size)
        for z, own in weights.items():
            f = gated(config, own["learned"], batch["x"][z])
            for l, r in own["readout"].items():
                c = einsum("nmf,fr->nrm", f[l], r @ whitening[z][l])
                out = out.at[batch["places"][z][l]].set(c, mode="drop")
        e = out.reshape(batch["left"].shape) - batch["left"]
        return losses(e, batch)

    def together(found, units):
        return sum(w * found[k] / units[k] for k, w in weight.items()) / sum(weight.values())

    def network_loss(weights, batch):
        found = raw_losses(weights, whitening, batch)
        return together(found, unit["train"]) / jnp.sum(batch["real"])

    @jax.jit
    def mean_losses(weights, whitening, part):
        found = jax.lax.map(lambda b: raw_losses(weights, whitening, b), part)
        return {k: jnp.sum(v) / jnp.sum(part["real"]) for k, v in found.items()}

    def judge(weights, whitening) -> float:
        found = mean_losses(weights, whitening, parts["validation"])
        return float(together(found, unit["validation"]))

    unit = {k: jax.tree.map(float, mean_losses(weights, whitening, v)) for k, v in parts.items()}
    done = descend(
        network_loss,
        lambda weights: judge(weights, whitening),
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
    source = kept if best < 1.0 else done.average
    kept = _in_coefficients(kept, whitening)
    as_they_are = jax.tree.map(lambda w: jnp.eye(len(w)), whitening)
    for penalty, solved in _solved(config, source, x["train"], train, left["train"]):
        error = chosen[f"solved_{penalty:.0e}"] = judge(solved, as_they_are)
        if error < best:
            best, kept = error, solved
    if not best < 1.0:
        return NetworkFit(params, history, chosen)
    found = {z: {**fixed[z], **jax.tree.map(np.asarray, own)} for z, own in kept.items()}
    return NetworkFit(
        {z: {**own, "network": found[z]} for z, own in params.items()}, history, chosen
    )


def _whitening(train: Labelled, left: np.ndarray) -> Params:
    """From coefficients of functions orthonormal on an atom, in units of what is left of them."""
    out: Params = {}
    for z, own in train.found.items():
        for l, p in own.flat(left.shape[1]).items():
            e, v = np.linalg.eigh(own.on_atom(train.metric, l))
            y = np.einsum("inm,nr->imr", left.reshape(-1)[p], v * np.sqrt(e))
            size = np.sqrt((y**2).mean(axis=(0, 1)))
            out.setdefault(str(z), {})[str(l)] = (v / np.sqrt(e) * size).T
    return out


def _in_coefficients(weights: Params, whitening: Params) -> Params:
    """Weights whose readouts give coefficients themselves."""
    return {
        z: {**own, "readout": {l: r @ whitening[z][l] for l, r in own["readout"].items()}}
        for z, own in weights.items()
    }


def _solved(config, weights: Params, x: Params, train: Labelled, left: np.ndarray):
    """Readouts that make the training set's loss least, penalty by penalty."""
    n, naux = left.shape
    psi, places = {}, {}
    for z, own in train.found.items():
        found = jax.jit(functools.partial(gated, config))(weights[str(z)]["learned"], x[str(z)])
        for l, p in own.flat(naux).items():
            psi[f"{z}_{l}"], places[f"{z}_{l}"] = np.asarray(found[str(l)]), p.swapaxes(1, 2)
    for penalty in PENALTIES:
        inverses = {}
        for key, f in psi.items():
            z, l = map(int, key.split("_"))
            on_atom = train.found[z].on_atom(train.metric, l)
            inverses[key] = factors(f, on_atom, n, penalty)
        problem = Problem(psi, places, train.metric, left, np.float64(penalty), inverses)
        try:
            found = conjugate_gradients(problem, tolerance=TOLERANCE).weights
        except ConvergenceError:
            return
        solved = {z: dict(own) for z, own in weights.items()}
        for z in solved:
            own = {k.split("_")[1]: v for k, v in found.items() if k.split("_")[0] == z}
            solved[z] = {**solved[z], "readout": jax.tree.map(jnp.asarray, own)}
        yield penalty, solved
