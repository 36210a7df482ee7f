r"""Training of the widths of Op2Density's functions, with its network's coefficients.

What a fixed basis cannot represent is what widths are for, so what is descended is the absolute
error against the *true* density of each density matrix, not against its fit, on random points of
turned atomic grids (the loss of DenSNet: Bogojeski et al., arXiv:2604.24563),

.. math::
    \frac1N \sum_A \sum_g w_g \Big| \sum_p c_p\, \phi_p(r_g; w) - \rho_A(r_g) \Big|,

in units of what it was before. (A loss in the metric would need new metrics at every step.) The
kernels stay as they are; the network's readout goes on from where it is, and that of the widths
from zero, so that the start is the model there was. Both are kept only if validation improves.

The loss is of densities before electrons are counted, to which is added what counting will cost at
most: electrons too many or too few times the absolute integral of the multiplier's density that
corrects one (of fixed functions, for which it is known beforehand; 2 in Coulomb's metric). Without
it electrons are traded for a better shape, which is worth nothing once they are counted. With
``dipole_weight`` the squared error of dipoles stands beside it, against the fit's, which absolute
errors say little of; each counts in units of what it was.

Readouts are written in functions that are orthonormal on their atom, which together have a
fraction of the size of what is learned beside the baseline: one step size serves all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ... import density
from ...basis import layout_of
from ...data import Dataset
from ...density.fitting import solve
from ...learn.descent import descend
from ...learn.run import Run
from ...numerics import Array, einsum
from ...structures import Structure
from ..base import Params
from .config import Op2DensityNetworkFit
from .environments import Environments
from .functions import Op2Density
from .labels import Labelled, check_densities, density_matrix
from .losses import draw_points, maps_of
from .network import gated, widths_of, with_moments
from .objective import (
    NetworkFit,
    Objective,
    columns_and_inputs,
    cut,
    in_coefficients,
    initial_weights,
)

SIZE = 0.01
"""Of the units of readouts, relative to targets less their baseline."""


@dataclasses.dataclass(frozen=True)
class TrueDensities:
    """Densities of density matrices on random points, padded by points of no weight.

    Attributes:
      points: ``(n_structures, n_points, 3)`` Bohr.
      weights: ``(n_structures, n_points)`` Bohr^3.
      values: ``(n_structures, n_points)`` electrons per Bohr^3.
    """

    points: np.ndarray
    weights: np.ndarray
    values: np.ndarray


def true_densities(
    definition: Op2Density, dataset: Dataset, n_points: int, seed: int, run: Run
) -> TrueDensities:
    """Densities of a data set's density matrices on random points of each structure.

    Args:
      definition: the model's functions.
      dataset: with density or Fock matrices.
      n_points: of each structure.
      seed: of the points.
      run: hears how far it is.

    Raises:
      DataError: as :func:`opml_jax.models.op2density.labels.check_densities`.
    """
    basis, n = check_densities(definition, dataset), len(dataset)
    rng, rows = np.random.default_rng(seed), []
    for i, s in enumerate(dataset.structures):
        points, weights = draw_points(s, n_points, rng)
        dm = density_matrix(dataset, i, basis)
        rows.append((points, weights, density.matrix_on_points(dm, s, basis, points)))
        run.progress("densities on points", i + 1, n)
    most = max(len(weights) for _, weights, _ in rows)
    out = [np.zeros((n, most, *x.shape[1:])) for x in rows[0]]
    for i, row in enumerate(rows):
        for padded, values in zip(out, row, strict=True):
            padded[i, : len(values)] = values
    return TrueDensities(*out)


def train_widths(
    definition: Op2Density,
    settings: Op2DensityNetworkFit,
    params: Params,
    sets: Mapping[str, tuple[Labelled, TrueDensities]],
    run: Run,
) -> NetworkFit:
    """Fit widths and the network's coefficients; they are taken only if validation improves.

    Args:
      definition: the model's functions, with ``config.network.widths``.
      settings: of the descent; batches are cut once, their order is drawn anew each epoch.
      params: what it begins with: kernels or baselines, with or without a network.
      sets: ``train`` and ``validation``: molecules, and their densities on points.
      run: keeps the state ``widths``; its seed draws initial weights, if there is no network, and
        batches.

    Returns:
      ``params`` with ``network`` and in it ``widths``, or as they were; the history; the validation
      loss of the best epoch (``widths``).

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    config, train = definition.config.network, sets["train"][0]
    assert config is not None  # what is trained
    shares = {"points": 1.0, "dipole": settings.dipole_weight}
    shares = {name: weight for name, weight in shares.items() if weight}
    labelled = {name: molecules for name, (molecules, _) in sets.items()}
    columns, x = columns_and_inputs(definition, params, labelled)
    whitening = {
        str(z): _whitening(definition, z, atoms, params[str(z)], train.target)
        for z, atoms in train.environments.items()
    }
    weights = initial_weights(config, params, x["train"], whitening, run.seed)
    weights = {z: {**network, "widths": _widths_of_one(network)} for z, network in weights.items()}
    kernels = {z: {k: v for k, v in p.items() if k != "network"} for z, p in params.items()}
    rng, parts = np.random.default_rng(run.seed), {}
    size = min(settings.batch_size, len(train.target))
    for name, (molecules, true) in sets.items():
        of_atoms, of_structures = _rows(definition, kernels, molecules, true, "dipole" in shares)
        of_atoms["x"] = x[name]
        shuffled = rng if name == "train" else None
        parts[name] = cut(molecules, of_atoms, of_structures, size, shuffled)
    charges = {z: _charges(definition, int(z)) for z in weights}
    errors = functools.partial(_errors, definition, charges)
    objective = Objective(errors, shares, parts, in_coefficients(weights, whitening))
    done = descend(objective.task(whitening), weights, settings, run, "widths")
    best = float(done.best)
    if not best < 1.0:
        return NetworkFit(params, done.history, {"widths": best})
    out = {}
    for z, network in in_coefficients(done.weights, whitening).items():
        network = {"columns": columns[z], **jax.tree.map(np.asarray, network)}
        out[z] = {**kernels[z], "network": network}
    return NetworkFit(out, done.history, {"widths": best})


def _widths_of_one(network: Params) -> dict[str, Array]:
    """Readouts of widths that leave exponents as they are."""
    n_columns = len(network["readout"]["0"])  # widths are functions of the gated scalars
    return {l: jnp.zeros((n_columns, r.shape[1])) for l, r in network["readout"].items()}


def _whitening(
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
    true: TrueDensities,
    with_dipoles: bool,
) -> tuple[dict[str, Params], dict[str, np.ndarray]]:
    """What the loss reads of atoms, by name and element, and of structures, by name."""
    of_element = jax.jit(definition.of_element)
    of_atoms: dict[str, Params] = {"start": {}, "position": {}}
    for z, atoms in labelled.environments.items():
        c = of_element(kernels[str(z)], atoms.features)
        of_atoms["start"][str(z)] = {str(l): np.asarray(v) for l, v in c.items()}
        of_atoms["position"][str(z)] = _positions(labelled, z)
    of_structures = {"points": true.points, "values": true.values, "weights": true.weights}
    of_structures["electrons"] = np.array([float(s.n_electrons) for s in labelled.structures])
    of_structures["cost"] = _costs(definition, labelled, true)
    if with_dipoles:
        of_atoms["dipole_map"], of_structures["dipole"] = _dipoles(definition, labelled)
    return of_atoms, of_structures


def _positions(labelled: Labelled, z: int) -> np.ndarray:
    """``(n_atoms, 3)`` of an element's atoms in the order of their environments."""
    return np.concatenate(
        [np.asarray(s.positions)[np.array(s.numbers) == z] for s in labelled.structures]
    )


def _costs(definition: Op2Density, labelled: Labelled, true: TrueDensities) -> np.ndarray:
    """Absolute integral of what corrects one electron in each molecule, on its points."""
    aux, out = definition.aux_basis, []
    for i, s in enumerate(labelled.structures):
        q = density.charges(s, aux)
        answer = solve(labelled.metric[i, : len(q), : len(q)], q)
        rho = density.on_points(answer, s, aux, true.points[i])
        out.append(true.weights[i] @ np.abs(rho) / float(q @ answer))
    return np.array(out)


def _dipoles(definition: Op2Density, labelled: Labelled) -> tuple[Params, np.ndarray]:
    """Maps ``{z: {l: (n_atoms, 3, n, 2 l + 1)}}`` to dipoles, and those of the targets."""
    maps = maps_of(definition, labelled, ("dipole",), 0, 0)["dipole"]  # no points, so no seed
    xyz = np.arange(3)[:, None, None]
    of_atoms = {
        str(z): {
            str(l): maps[atoms.structure[:, None, None, None], xyz, p[:, None]]
            for l, p in atoms.places.items()
        }
        for z, atoms in labelled.environments.items()
    }
    return of_atoms, np.einsum("sxp,sp->sx", maps, labelled.target)


def _charges(definition: Op2Density, z: int) -> np.ndarray:
    """``(n,)`` electrons of an element's s functions."""
    atom = Structure((z,), np.zeros((1, 3)), spin=z % 2)
    s_functions = layout_of(atom, definition.aux_basis).l == 0
    return np.asarray(density.charges(atom, definition.aux_basis))[s_functions]


def _errors(
    definition: Op2Density, charges: Mapping[str, np.ndarray], weights: Params, batch: Params
) -> dict[str, Array]:
    """Sums over structures: absolute errors with the cost of counting, squares of dipoles."""
    config, aux = definition.config.network, definition.aux_basis
    assert config is not None  # what is trained
    rho, excess = jnp.zeros(batch["values"].shape), -batch["electrons"]
    dipole = -batch["dipole"] if "dipole" in batch else None
    for z, atoms in batch["atoms"].items():
        network, row = weights[z], atoms["row"]
        f = gated(config, network["learned"], atoms["x"])
        c = dict(atoms["start"])
        for l, r in network["readout"].items():
            added = einsum("nmf,fr->nrm", f[l], r)
            c[l] = c[l] + added if l in c else added
        electrons = jnp.sum(charges[z] * c["0"][..., 0], axis=1)  # whatever the widths are
        excess = excess.at[row].add(electrons, mode="drop")
        if dipole is not None:  # moments are those of fixed functions
            maps = atoms["dipole_map"].items()
            of_atoms = sum(einsum("ixnm,inm->ix", d, c[l]) for l, d in maps)
            dipole = dipole.at[row].add(of_atoms, mode="drop")
        w = widths_of(config, network["widths"], f["0"])
        c, w = ({int(l): v for l, v in by_degree.items()} for by_degree in (c, w))
        r = batch["points"].at[row].get(mode="clip") - atoms["position"][:, None]
        of_atoms = density.of_atoms(with_moments(c, w), w, aux, int(z), r)
        rho = rho.at[row].add(of_atoms, mode="drop")
    real = batch["real"]
    missed = jnp.sum(real[:, None] * batch["weights"] * jnp.abs(rho - batch["values"]))
    miscounted = jnp.sum(real * batch["cost"] * jnp.abs(excess))
    out: dict[str, Array] = {"points": missed + miscounted}
    return out if dipole is None else out | {"dipole": jnp.sum((real[:, None] * dipole) ** 2)}
