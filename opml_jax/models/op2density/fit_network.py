"""Training of the networks of Op2Density, on what the kernels (or the baseline) leave.

What is descended is the loss of the kernels, (c' - c)^T M (c' - c) with the float64 metric of each
structure, all couplings between atoms included, in units of what it was before; with weights, those
of :mod:`.losses` beside it. Readouts are written in functions that are orthonormal on their atom,
in units of what is to be learned of each, so that one step size serves all. They are linear: at the
end they are solved by the kernels' conjugate gradients for the features that were learned, and the
better of both is taken.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import ConvergenceError
from ...learn.descent import descend
from ...learn.run import Run
from ...numerics import Array, einsum
from ..base import Params
from .config import Op2DensityNetworkConfig, Op2DensityNetworkFit
from .functions import Op2Density
from .labels import Labelled, residuals
from .losses import losses, maps_of
from .network import gated
from .objective import (
    NetworkFit,
    Objective,
    columns_and_inputs,
    cut,
    in_coefficients,
    initial_weights,
)
from .solver import Problem, conjugate_gradients, factors

PENALTIES = (1e-4, 1e-6)
"""Of the readout's weights, relative to what is to be learned; validation chooses."""
TOLERANCE = 1e-3
"""Residual of the conjugate gradients that solve a readout."""


def train_network(
    definition: Op2Density,
    settings: Op2DensityNetworkFit,
    params: Params,
    sets: Mapping[str, Labelled],
    run: Run,
) -> NetworkFit:
    """Fit the network of :attr:`Op2DensityConfig.network`; it is taken only if validation improves.

    Args:
      definition: the model's functions.
      settings: of the descent; batches are cut once, their order is drawn anew each epoch.
      params: what it adds to: kernels, or baselines
        (:func:`opml_jax.models.op2density.closed_form.subtract_baselines`).
      sets: ``train``, molecules that are learned, and ``validation``, which choose the epoch, and
        how the readout is solved.
      run: keeps the state ``network``; its seed draws initial weights and batches.

    Returns:
      ``params`` with ``network``, or as they were; the history; validation losses of the best epoch
      (``descent``) and with the readout solved (``solved_PENALTY``).

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    config, train = definition.config.network, sets["train"]
    assert config is not None  # what is trained
    residual = {name: residuals(definition, params, labelled) for name, labelled in sets.items()}
    columns, x = columns_and_inputs(definition, params, sets)
    whitening = _whitening(train, residual["train"])
    weights = initial_weights(config, params, x["train"], whitening, run.seed)
    shares = {"metric": 1.0, "dipole": settings.dipole_weight, "points": settings.real_space_weight}
    shares = {name: weight for name, weight in shares.items() if weight}
    rng, parts = np.random.default_rng(run.seed), {}
    size = min(settings.batch_size, len(train.target))
    for name, labelled in sets.items():
        maps = maps_of(definition, labelled, shares, settings.points, run.seed)
        of_structures = {"metric": labelled.metric, "residual": residual[name], **maps}
        of_atoms = {"x": x[name], "places": _places(labelled)}
        parts[name] = cut(labelled, of_atoms, of_structures, size, rng if name == "train" else None)
    start = in_coefficients(weights, whitening)
    objective = Objective(functools.partial(_losses, config), shares, parts, start)
    done = descend(objective.task(whitening), weights, settings, run, "network")
    gates = done.weights if done.best < 1.0 else done.average
    descended = {"descent": in_coefficients(done.weights, whitening)}
    solved = _solved(config, gates, x["train"], train, residual["train"])
    chosen = {"descent": float(done.best)}
    chosen |= {name: objective.validation(network) for name, network in solved.items()}
    best = min(chosen, key=chosen.__getitem__)
    if not chosen[best] < 1.0:
        return NetworkFit(params, done.history, chosen)
    networks = {
        z: {"columns": columns[z], **jax.tree.map(np.asarray, network)}
        for z, network in (descended | solved)[best].items()
    }
    with_network = {z: {**kernels, "network": networks[z]} for z, kernels in params.items()}
    return NetworkFit(with_network, done.history, chosen)


def _places(labelled: Labelled) -> Params:
    """Functions of each atom among those of its molecule, by element and degree."""
    return {
        str(z): {str(l): p for l, p in atoms.places.items()}
        for z, atoms in labelled.environments.items()
    }


def _losses(config: Op2DensityNetworkConfig, weights: Params, batch: Params) -> dict[str, Array]:
    """Losses of the coefficients that networks add, summed over the structures of a batch."""
    residual = batch["residual"]
    added = jnp.zeros(residual.size)
    for z, atoms in batch["atoms"].items():
        f = gated(config, weights[z]["learned"], atoms["x"])
        first = atoms["row"][:, None, None] * residual.shape[1]
        for l, r in weights[z]["readout"].items():
            c = einsum("nmf,fr->nrm", f[l], r)
            added = added.at[first + atoms["places"][l]].set(c, mode="drop")
    error = added.reshape(residual.shape) - residual
    return losses(error * batch["real"][:, None], batch)


def _whitening(train: Labelled, residual: np.ndarray) -> Params:
    """From coefficients of functions orthonormal on an atom, in units of what each has to learn."""
    out: Params = {}
    for z, atoms in train.environments.items():
        for l, p in atoms.flat(residual.shape[1]).items():
            e, v = np.linalg.eigh(atoms.on_atom(train.metric, l))
            y = np.einsum("inm,nr->imr", residual.reshape(-1)[p], v * np.sqrt(e))
            size = np.sqrt((y**2).mean(axis=(0, 1)))
            out.setdefault(str(z), {})[str(l)] = (v / np.sqrt(e) * size).T
    return out


def _solved(
    config: Op2DensityNetworkConfig,
    weights: Params,
    x: Params,
    train: Labelled,
    residual: np.ndarray,
) -> dict[str, Params]:
    """Weights whose readouts make the training set's loss least, by ``solved_PENALTY``."""
    n, naux = residual.shape
    psi, places, out = {}, {}, {}
    for z, atoms in train.environments.items():
        columns = jax.jit(functools.partial(gated, config))(weights[str(z)]["learned"], x[str(z)])
        for l, p in atoms.flat(naux).items():
            psi[f"{z}_{l}"], places[f"{z}_{l}"] = np.asarray(columns[str(l)]), p.swapaxes(1, 2)
    for penalty in PENALTIES:
        inverses = {}
        for key, f in psi.items():
            z, l = map(int, key.split("_"))
            on_atom = train.environments[z].on_atom(train.metric, l)
            inverses[key] = factors(f, on_atom, n, penalty)
        problem = Problem(psi, places, train.metric, residual, np.float64(penalty), inverses)
        try:
            solution = conjugate_gradients(problem, tolerance=TOLERANCE).weights
        except ConvergenceError:
            break
        solved = {z: {**network, "readout": {}} for z, network in weights.items()}
        for key, readout in solution.items():
            z, l = key.split("_")
            solved[z]["readout"][l] = jnp.asarray(readout)
        out[f"solved_{penalty:.0e}"] = solved
    return out
