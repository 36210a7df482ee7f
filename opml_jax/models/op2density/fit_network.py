r"""Training of the networks of Op2Density, on what the kernels leave, and of their widths.

What the network descends is the loss of the kernels, (c' - c)^T M (c' - c) with the float64 metric
of each structure, all couplings between atoms included, in units of what it was before; with
weights, those of :mod:`.objective` beside it. Readouts are written in functions that are
orthonormal on their atom, in units of what is to be learned of each, so that one step size serves
all. They are linear: at the end they are solved by the kernels' conjugate gradients for the
features that were learned, and the better of both is taken.

What a fixed basis cannot represent is what widths are for, so with them the absolute error is
descended against the *true* density of each density matrix, not against its fit, on random points
of turned atomic grids (the loss of DenSNet: Bogojeski et al., arXiv:2604.24563),

.. math::
    \frac1N \sum_A \sum_g w_g \Big| \sum_p c_p\, \phi_p(r_g; w) - \rho_A(r_g) \Big|,

in units of what it was before. (A loss in the metric would need new metrics at every step.) The
kernels stay as they are; the network's readout goes on from where it is, and that of the widths
from zero, so that the start is the model there was. Both are kept only if validation improves.

That loss is of densities before electrons are counted, to which is added what counting will cost at
most: electrons too many or too few times the absolute integral of the multiplier's density that
corrects one (of fixed functions, for which it is known beforehand; 2 in Coulomb's metric). Without
it electrons are traded for a better shape, which is worth nothing once they are counted. With
``dipole_weight`` the squared error of dipoles stands beside it, against the fit's, which absolute
errors say little of; each counts in units of what it was. The orthonormal functions of readouts
have a fraction of the size of what is learned beside the baseline.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ... import density
from ...data import Dataset
from ...density.fitting import solve
from ...errors import ConvergenceError
from ...learn.padding import padded
from ...learn.run import Run
from ...numerics import Array, einsum
from ..base import Params
from ..family import Fit
from .config import Op2DensityNetworkConfig, Op2DensityNetworkFit
from .functions import Op2Density
from .labels import Environments, Labelled, check_densities, density_matrix, residuals
from .network import gated, outputs, with_moments
from .objective import (
    Objective,
    columns_and_inputs,
    cut,
    draw_points,
    initial_weights,
    losses,
    maps_of,
    with_networks,
)
from .problem import Problem, conjugate_gradients, factors

PENALTIES = (1e-4, 1e-6)
"""Of the readout's weights, relative to what is to be learned; validation chooses."""
TOLERANCE = 1e-3
"""Residual of the conjugate gradients that solve a readout."""
SIZE = 0.01
"""Of the units of readouts beside widths, relative to targets less their baseline."""


def train_network(
    definition: Op2Density,
    settings: Op2DensityNetworkFit,
    params: Params,
    sets: Mapping[str, Labelled],
    run: Run,
) -> Fit:
    """Fit the network of :attr:`Op2DensityConfig.network`; it is taken only if validation improves.

    Args:
      definition: the model's functions.
      settings: of the descent; batches are cut once, their order is drawn anew each epoch.
      params: what it adds to: kernels, or baselines
        (:func:`opml_jax.models.op2density.closed_form.subtract_baselines`), and perhaps a network
        to start from.
      sets: ``train``, molecules that are learned, and ``validation``, which choose the epoch, and
        how the readout is solved.
      run: keeps the state ``network``; its seed draws initial weights and batches.

    Returns:
      ``params`` with ``network``, or as they were; the history; as facts validation losses of the
      best epoch (``descent``) and with the readout solved (``solved_PENALTY``).

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    network, train = definition.network, sets["train"]
    kernels = {z: {k: v for k, v in p.items() if k != "network"} for z, p in params.items()}
    residual = {name: residuals(definition, kernels, labelled) for name, labelled in sets.items()}
    columns, x = columns_and_inputs(definition, params, sets)
    whitening = _of_residuals(train, residual["train"])
    weights = initial_weights(network, params, x["train"], whitening, run.seed)
    shares = {"metric": 1.0, "dipole": settings.dipole_weight, "points": settings.real_space_weight}
    shares = {name: weight for name, weight in shares.items() if weight}
    parts, size = {}, min(settings.batch_size, len(train.target))
    for name, labelled in sets.items():
        maps = maps_of(definition, labelled, shares, settings.points, run.seed)
        of_structures = {"metric": labelled.metric, "residual": residual[name], **maps}
        seed = run.seed if name == "train" else None
        parts[name] = cut(labelled, {"x": x[name]}, of_structures, size, seed)
    errors = functools.partial(_network_losses, definition)
    objective = Objective(errors, shares, parts, weights, whitening)
    done = objective.descend(settings, run, "network")
    gates = done.weights if done.best < 1.0 else done.average
    solved = _solved(network, gates, x["train"], train, residual["train"])
    chosen = {"descent": float(done.best)}
    chosen |= {name: objective.validation(weights) for name, weights in solved.items()}
    best = min(chosen, key=chosen.__getitem__)
    if chosen[best] < 1.0:
        networks = {"descent": objective.of_coefficients(done.weights), **solved}
        params = with_networks(params, columns, networks[best])
    return Fit(params, chosen, done.history)


def _network_losses(definition: Op2Density, weights: Params, batch: Params) -> dict[str, Array]:
    """Losses of the coefficients that networks add, summed over the structures of a batch."""
    residual = batch["residual"]
    added = jnp.zeros(residual.size)
    for z, atoms in batch["atoms"].items():
        for l, c in outputs(definition.network, weights[z], atoms["x"])[0].items():
            added = added.at[atoms["places"][l]].set(c, mode="drop")
    error = added.reshape(residual.shape) - residual
    return losses(error * batch["real"][:, None], batch)


def _of_residuals(train: Labelled, residual: np.ndarray) -> Params:
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
    psi, places, on_atom, out = {}, {}, {}, {}
    for z, atoms in train.environments.items():
        columns = jax.jit(functools.partial(gated, config))(weights[str(z)]["learned"], x[str(z)])
        for l, p in atoms.flat(residual.shape[1]).items():
            key = f"{z}_{l}"
            psi[key], places[key] = np.asarray(columns[str(l)]), p.swapaxes(1, 2)
            on_atom[key] = atoms.on_atom(train.metric, l)
    of_atoms = {k: factors(f, on_atom[k], len(residual)) for k, f in psi.items()}
    for penalty in PENALTIES:
        problem = Problem(psi, places, train.metric, residual, np.float64(penalty), of_atoms)
        try:
            solution = conjugate_gradients(problem, tolerance=TOLERANCE).weights
        except ConvergenceError:
            break
        out[f"solved_{penalty:.0e}"] = {
            z: {**network, "readout": {l: solution[f"{z}_{l}"] for l in network["readout"]}}
            for z, network in weights.items()
        }
    return out


def true_densities(
    definition: Op2Density, dataset: Dataset, n_points: int, seed: int, run: Run
) -> dict[str, np.ndarray]:
    """Densities of a data set's density matrices on random points of each structure.

    Returns:
      ``points`` ``(n_structures, n_points, 3)`` Bohr, ``weights`` ``(n_structures, n_points)``
      Bohr^3 and ``values``, likewise, electrons per Bohr^3; padded by points of no weight.

    Raises:
      DataError: as :func:`~.labels.check_densities`.
    """
    basis, rng = check_densities(definition, dataset), np.random.default_rng(seed)
    rows: dict[str, list[np.ndarray]] = {"points": [], "weights": [], "values": []}
    run.progress("densities on points", 0, len(dataset))
    for i, s in enumerate(dataset.structures):
        points, weights = draw_points(s, n_points, rng)
        values = density.matrix_on_points(density_matrix(dataset, i, basis), s, basis, points)
        for column, row in zip(rows.values(), (points, weights, values), strict=True):
            column.append(row)
        run.progress("densities on points", i + 1, len(dataset))
    return {name: padded(column) for name, column in rows.items()}


def train_widths(
    definition: Op2Density,
    settings: Op2DensityNetworkFit,
    params: Params,
    sets: Mapping[str, tuple[Labelled, dict[str, np.ndarray]]],
    run: Run,
) -> Fit:
    """Fit widths and the network's coefficients; they are taken only if validation improves.

    Arguments and errors as for :func:`train_network`; ``params`` may have a network, ``sets`` hold
    molecules and their :func:`true_densities`, and the state is ``widths``.

    Returns:
      ``params`` with ``network`` and in it ``widths``, or as they were; the history; as a fact the
      validation loss of the best epoch (``validation``).
    """
    train = sets["train"][0]
    shares = {"points": 1.0, "dipole": settings.dipole_weight}
    shares = {name: weight for name, weight in shares.items() if weight}
    labelled = {name: molecules for name, (molecules, _) in sets.items()}
    columns, x = columns_and_inputs(definition, params, labelled)
    whitening = {
        str(z): _of_densities(definition, z, atoms, params[str(z)], train.target)
        for z, atoms in train.environments.items()
    }
    weights = initial_weights(definition.network, params, x["train"], whitening, run.seed)
    for z, network in weights.items():  # exponents as they are, by functions of gated scalars
        n, readout = len(network["readout"]["0"]), network["readout"]
        known = params[z].get("network", {}).get("widths", {})
        zero = {l: jnp.zeros((n, r.shape[1])) for l, r in readout.items()}
        network["widths"] = zero | jax.tree.map(jnp.asarray, known)
    kernels = {z: {k: v for k, v in p.items() if k != "network"} for z, p in params.items()}
    parts, size = {}, min(settings.batch_size, len(train.target))
    for name, (molecules, true) in sets.items():
        of_atoms, of_structures = _rows(definition, kernels, molecules, true, "dipole" in shares)
        of_atoms["x"] = x[name]
        seed = run.seed if name == "train" else None
        parts[name] = cut(molecules, of_atoms, of_structures, size, seed)
    errors = functools.partial(_widths_losses, definition)
    objective = Objective(errors, shares, parts, weights, whitening)
    done = objective.descend(settings, run, "widths")
    if done.best < 1.0:
        params = with_networks(params, columns, objective.of_coefficients(done.weights))
    return Fit(params, {"validation": float(done.best)}, done.history)


def _of_densities(
    definition: Op2Density, z: int, atoms: Environments, params: Params, target: np.ndarray
) -> dict[str, np.ndarray]:
    """From coefficients of functions orthonormal on an atom, in small units of what is learned."""
    out, total, count = {}, 0.0, 0
    for l, p in atoms.flat(target.shape[1]).items():
        overlap = np.asarray(density.overlap_on_atom(definition.aux_basis, z, l))
        e, v = np.linalg.eigh(overlap)
        out[str(l)] = (v / np.sqrt(e)).T
        c = target.reshape(-1)[p]
        if l == 0:
            c = c - params["baseline"][:, None]
        total += np.einsum("inm,nk,ikm->", c, overlap, c) / len(c)
        count += (2 * l + 1) * len(overlap)
    return {l: m * SIZE * np.sqrt(total / count) for l, m in out.items()}


def _rows(
    definition: Op2Density,
    kernels: Params,
    labelled: Labelled,
    true: dict[str, np.ndarray],
    with_dipoles: bool,
) -> tuple[dict[str, Params], dict[str, np.ndarray]]:
    """What the loss reads of atoms, by name and element, and of structures, by name."""
    of_element, start, position = jax.jit(definition.of_element), {}, {}
    structures, aux, cost = labelled.structures, definition.aux_basis, []
    for z, atoms in labelled.environments.items():
        start[str(z)] = jax.tree.map(np.asarray, of_element(kernels[str(z)], atoms.features)[0])
        at = [np.asarray(s.positions)[np.array(s.numbers) == z] for s in structures]
        position[str(z)] = np.concatenate(at)
    charges = [np.asarray(density.charges(s, aux)) for s in structures]
    for i, (s, q) in enumerate(zip(structures, charges, strict=True)):
        # absolute integral of what corrects one electron
        answer = solve(labelled.metric[i, : len(q), : len(q)], q)
        rho = density.on_points(answer, s, aux, true["points"][i])
        cost.append(true["weights"][i] @ np.abs(rho) / float(q @ answer))
    electrons = np.array([float(s.n_electrons) for s in structures])
    of_structures = {**true, "electrons": electrons, "cost": np.array(cost)}
    of_structures |= {"charges": padded(charges), "target": labelled.target}
    if with_dipoles:  # no points, so no seed
        of_structures |= maps_of(definition, labelled, ("dipole",), 0, 0)
    return {"start": start, "position": position}, of_structures


def _widths_losses(definition: Op2Density, weights: Params, batch: Params) -> dict[str, Array]:
    """Sums over structures: absolute errors with the cost of counting, squares of dipoles."""
    rho, coefficients = jnp.zeros(batch["values"].shape), jnp.zeros(batch["target"].size)
    for z, atoms in batch["atoms"].items():
        added, w = outputs(definition.network, weights[z], atoms["x"])
        c = dict(atoms["start"])
        for l, more in added.items():
            c[l] = c[l] + more if l in c else more
        for l, of_degree in c.items():
            coefficients = coefficients.at[atoms["places"][l]].set(of_degree, mode="drop")
        r = batch["points"].at[atoms["row"]].get(mode="clip") - atoms["position"][:, None]
        of_atoms = density.of_atoms(with_moments(c, w), w, definition.aux_basis, int(z), r)
        rho = rho.at[atoms["row"]].add(of_atoms, mode="drop")
    # moments are those of fixed functions, whatever the widths are
    real, coefficients = batch["real"], coefficients.reshape(batch["target"].shape)
    excess = jnp.sum(batch["charges"] * coefficients, axis=1) - batch["electrons"]
    missed = jnp.sum(real[:, None] * batch["weights"] * jnp.abs(rho - batch["values"]))
    out: dict[str, Array] = {"points": missed + jnp.sum(real * batch["cost"] * jnp.abs(excess))}
    if "dipole" in batch:
        error = (coefficients - batch["target"]) * real[:, None]
        out["dipole"] = jnp.sum(einsum("sxp,sp->sx", batch["dipole"], error) ** 2)
    return out
