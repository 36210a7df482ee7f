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
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from .. import density
from ..basis import layout_of
from ..data import Dataset
from ..density.fitting import solve
from ..models.density import Op2Density, Params, reduced
from ..models.density_network import gated, gates_of, inputs, widths_of, with_moments
from ..numerics import Array, einsum
from ..structures import Structure
from .config import OptimConfig
from .density import Environments, Labelled, Progress, check_densities, density_matrix, silent
from .density_losses import draw_points, maps_of
from .density_network import NetworkFit, columns_of, cuts, filled
from .descent import descend

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
    definition: Op2Density, dataset: Dataset, seed: int, on_progress: Progress = silent
) -> TrueDensities:
    """Densities of a data set's density matrices on ``config.network.points`` points of each.

    Raises:
      DataError: as :func:`opml_jax.training.density.check_densities`.
    """
    network = definition.config.network
    assert network is not None  # whose loss has points
    basis, n = check_densities(definition, dataset), len(dataset)
    rng, rows = np.random.default_rng(seed), []
    for i, s in enumerate(dataset.structures):
        points, weights = draw_points(s, network.points, rng)
        dm = density_matrix(dataset, i, basis)
        rows.append((points, weights, density.matrix_on_points(dm, s, basis, points)))
        on_progress("densities on points", i + 1, n, "")
    most = max(len(w) for _, w, _ in rows)
    out = [np.zeros((n, most, *x.shape[1:])) for x in rows[0]]
    for i, row in enumerate(rows):
        for padded, own in zip(out, row, strict=True):
            padded[i, : len(own)] = own
    return TrueDensities(*out)


def train_density_widths(
    definition: Op2Density,
    params: Params,
    sets: dict[str, tuple[Labelled, TrueDensities]],
    optim: OptimConfig,
    seed: int,
    *,
    state: Path | None = None,
    fingerprint: str = "",
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> NetworkFit:
    """Fit widths and the network's coefficients; kept only if validation improves.

    Args:
      definition: the model's functions, with ``config.network.widths``.
      params: what they begin with: kernels or baselines, with or without a network.
      sets: ``train`` and ``validation``: molecules, and their densities on points.
      optim: hyper-parameters; batches are cut once, their order is drawn anew each epoch.
      seed: of initial weights, if there is no network, and of batches.
      state: file to keep the state in, and to go on from: to the very same weights.
      fingerprint: what the state must belong to.
      on_epoch: called with the epoch and its row of the history.

    Returns:
      ``params`` with ``network`` and in it ``widths``, or as they were; the history, losses being
      those of the start's; the validation loss of the best epoch, by name.

    Raises:
      OpmlError: the loss became NaN.
      ModelFileError: a damaged state, or one of another training.
    """
    config = definition.config.network
    assert config is not None  # what is trained
    aux, weight = definition.aux_basis, {"points": 1.0}
    weight |= {"dipole": config.dipole_weight} if config.dipole_weight else {}
    below = {z: {k: v for k, v in own.items() if k != "network"} for z, own in params.items()}
    fixed, x, start = {}, {}, {}
    of_element = jax.jit(definition.of_element)
    for name, (labelled, _) in sets.items():
        x[name], start[name] = {}, {}
        for z, own in labelled.found.items():
            before, key = below[str(z)], str(z)
            found = reduced(before["components"], own.features, definition.config.kernel)
            if name == "train":
                known = params[key].get("network", {})
                leading = jax.tree.map(np.asarray, found)
                fixed[key] = {
                    "columns": known.get("columns") or columns_of(config.components, leading)
                }
            x[name][key] = jax.tree.map(np.asarray, inputs(fixed[key], found))
            c = of_element(before, own.features)
            start[name][key] = {str(l): np.asarray(v) for l, v in c.items()}
    whitening = {
        str(z): _whitening(definition, z, own, params[str(z)], sets["train"][0].target)
        for z, own in sets["train"][0].found.items()
    }
    weights = _initial(definition, params, x["train"], whitening, seed)
    size = min(optim.batch_size, len(sets["train"][0].target))
    rng = np.random.default_rng(seed)
    parts = {}
    for name, (labelled, true) in sets.items():
        shuffled = rng if name == "train" else None
        rows = {"x": x[name], "start": start[name]}
        of_molecules = {"cost": _costs(definition, labelled, true)}
        if "dipole" in weight:
            rows["dipole_map"], of_molecules["dipole"] = _dipoles(definition, labelled)
        own = _cut(labelled, true, rows, of_molecules, size, shuffled)
        parts[name] = jax.tree.map(jnp.asarray, own)

    charges = {z: _charges(definition, int(z)) for z in x["train"]}

    def errors(weights: Params, batch: Params) -> dict[str, Array]:
        """Sums over structures: absolute errors with the cost of counting, squares of dipoles."""
        rho, excess = jnp.zeros(batch["values"].shape), -batch["electrons"]
        dipole = -batch["dipole"] if "dipole" in batch else None
        for z, atoms in batch["atoms"].items():
            own, row = weights[z], atoms["row"]
            f = gated(config, own["learned"], atoms["x"])
            w = widths_of(config, own["widths"], f["0"])
            c = dict(atoms["start"])
            for l, r in own["readout"].items():
                added = einsum("nmf,fr->nrm", f[l], r @ whitening[z][l])
                c[l] = c[l] + added if l in c else added
            held = jnp.sum(charges[z] * c["0"][..., 0], axis=1)  # whatever the widths are
            excess = excess.at[row].add(held, mode="drop")
            if dipole is not None:  # moments are those of fixed functions
                own_dipoles = [
                    einsum("ixnm,inm->ix", d, c[l]) for l, d in atoms["dipole_map"].items()
                ]
                dipole = dipole.at[row].add(sum(own_dipoles), mode="drop")
            c, w = ({int(l): v for l, v in y.items()} for y in (c, w))
            c = with_moments(c, w)
            r = batch["points"].at[row].get(mode="clip") - atoms["position"][:, None]
            rho = rho.at[row].add(density.of_atoms(c, w, aux, int(z), r), mode="drop")
        missed = jnp.sum(batch["weights"] * jnp.abs(rho - batch["values"]))
        out: dict[str, Array] = {"points": missed + jnp.sum(batch["cost"] * jnp.abs(excess))}
        return out if dipole is None else out | {"dipole": jnp.sum(dipole**2)}

    def together(found, units):
        return sum(w * found[k] / units[k] for k, w in weight.items()) / sum(weight.values())

    @jax.jit
    def mean_errors(weights: Params, part: Params) -> dict[str, Array]:
        found = jax.lax.map(lambda b: errors(weights, b), part)
        return {k: jnp.sum(v) / jnp.sum(part["real"]) for k, v in found.items()}

    unit = {k: jax.tree.map(float, mean_errors(weights, v)) for k, v in parts.items()}
    done = descend(
        lambda w, batch: together(errors(w, batch), unit["train"]) / jnp.sum(batch["real"]),
        lambda w: float(together(mean_errors(w, parts["validation"]), unit["validation"])),
        weights,
        parts["train"],
        optim,
        seed,
        state=state,
        fingerprint=fingerprint,
        on_epoch=on_epoch,
    )
    chosen = {"widths": done.best}
    if not done.best < 1.0:
        return NetworkFit(params, done.history, chosen)
    out = {}
    for z, own in done.kept.items():
        readout = {l: r @ whitening[z][l] for l, r in own["readout"].items()}
        network = jax.tree.map(np.asarray, {**own, "readout": readout})
        out[z] = {**below[z], "network": {**fixed[z], **network}}
    return NetworkFit(out, done.history, chosen)


def _whitening(
    definition: Op2Density, z: int, own: Environments, params: Params, target: np.ndarray
) -> dict[str, np.ndarray]:
    """From coefficients of functions orthonormal on an atom, in small units of what is learned."""
    out, total, count = {}, 0.0, 0
    for l, p in own.flat(target.shape[1]).items():
        overlap = np.asarray(density.overlap_on_atom(definition.aux_basis, z, l))
        e, v = np.linalg.eigh(overlap)
        out[str(l)] = (v / np.sqrt(e)).T
        c = target.reshape(-1)[p]
        if l == 0:
            c = c - params["baseline"][:, None]
        total += np.einsum("inm,nk,ikm->", c, overlap, c) / len(c)
        count += (2 * l + 1) * len(overlap)
    return {l: m * SIZE * np.sqrt(total / count) for l, m in out.items()}


def _initial(
    definition: Op2Density, params: Params, x: Params, whitening: Params, seed: int
) -> Params:
    """Weights of the model there is, and of widths that are one."""
    config = definition.config.network
    assert config is not None
    keys = dict(zip(sorted(x), jax.random.split(jax.random.key(seed), len(x)), strict=True))
    out = {}
    for z, own in x.items():
        known = params[z].get("network")
        if known is None:
            learned = gates_of(config).init(keys[z], {"s": own["0"][:1, 0]})["params"]
        else:
            learned = jax.tree.map(jnp.asarray, known["learned"])
        columns = jax.eval_shape(functools.partial(gated, config), learned, own)
        readout = {l: jnp.zeros((columns[l].shape[-1], len(w))) for l, w in whitening[z].items()}
        widths = {l: jnp.zeros((columns["0"].shape[-1], len(w))) for l, w in whitening[z].items()}
        if known is not None:
            readout |= {
                l: jnp.asarray(np.linalg.solve(whitening[z][l].T, np.asarray(r).T).T)
                for l, r in known["readout"].items()
            }
        out[z] = {"learned": learned, "readout": readout, "widths": widths}
    return out


def _charges(definition: Op2Density, z: int) -> np.ndarray:
    """``(n,)`` electrons of an element's s functions."""
    atom = Structure((z,), np.zeros((1, 3)), spin=z % 2)
    s_functions = layout_of(atom, definition.aux_basis).l == 0
    return np.asarray(density.charges(atom, definition.aux_basis))[s_functions]


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
    maps = maps_of(definition, labelled, ("dipole",), 0)["dipole"]  # of no seed
    xyz = np.arange(3)[:, None, None]
    of_atoms = {
        str(z): {
            str(l): maps[own.structure[:, None, None, None], xyz, p[:, None]]
            for l, p in own.places.items()
        }
        for z, own in labelled.found.items()
    }
    return of_atoms, np.einsum("sxp,sp->sx", maps, labelled.target)


def _cut(
    labelled: Labelled, true: TrueDensities, rows: Params, of_molecules: Params, size: int, rng
) -> Params:
    """Batches of one shape: atoms by element, each with the row of its molecule; points."""
    n = len(labelled.structures)
    electrons = np.array([float(s.n_electrons) for s in labelled.structures])
    rows = {**rows, "position": {str(z): _positions(labelled, z) for z in labelled.found}}
    batches = []
    for index, row in cuts(n, size, rng):
        real = index >= 0
        batch = {"real": real.astype(float), "atoms": {}}
        batch |= {"points": true.points[index], "values": true.values[index]}
        batch["weights"] = true.weights[index] * real[:, None]
        batch["electrons"] = electrons[index] * real
        batch |= {k: (v[index].T * real).T for k, v in of_molecules.items()}
        for z, found in labelled.found.items():
            here = row[found.structure] >= 0
            of_element = {k: v[str(z)] for k, v in rows.items()}
            own = jax.tree.map(lambda v, here=here: v[here], of_element)
            batch["atoms"][str(z)] = {**own, "row": row[found.structure[here]]}
        batches.append(batch)
    for z in batches[0]["atoms"]:
        most = max(len(b["atoms"][z]["row"]) for b in batches)
        for b in batches:
            own = b["atoms"][z]
            row = filled(own["row"], most, size)  # of no molecule
            b["atoms"][z] = {**jax.tree.map(lambda v, n=most: filled(v, n, 0), own), "row": row}
    return jax.tree.map(lambda *v: np.stack(v), *batches)


def _positions(labelled: Labelled, z: int) -> np.ndarray:
    """``(n_atoms, 3)`` of an element's atoms in the order of their environments."""
    return np.concatenate(
        [np.asarray(s.positions)[np.array(s.numbers) == z] for s in labelled.structures]
    )
