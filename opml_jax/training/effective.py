r"""Effective Op2Op: a small matrix whose observables are those of a larger basis.

The first guess of :class:`~opml_jax.models.Op2Op` is linear in its weights, and so is its last
stage, if it has stages. It starts as the closed form of the larger basis' Fock operator between the
small functions,

.. math::
    F_s = S_{sl} S_{ll}^{-1} F_l S_{ll}^{-1} S_{ls},

and its weights then move, in principal components of each kind of block's columns, until orbital
energies, dipoles, charges and polarizabilities agree (Nigam, Smidt, Dusson, arXiv:2602.15345;
Cignoni et al., arXiv:2311.00844, indirect learning). All molecules enter every step of L-BFGS.
Components move first in proportion to their size, which carries over to other molecules, and then
all alike; or all alike from the start, which may fit one molecule further. Validation decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from .. import integrals, observables
from ..basis import Basis, layout_of, load_basis
from ..data import Dataset
from ..data.plausibility import check_finite
from ..data.reference import cross_overlap
from ..errors import Code, DataError, refusal
from ..features.couple import IrrepKey, has_constant, key_name
from ..models.op2op import Op2Op, Params, batches, n_electrons
from ..models.op2op_draws import last_columns
from ..models.op2op_network import compress
from ..numerics import Array, einsum, require_x64
from ..structures import Structure, centred
from .config import EffectiveConfig
from .keyed_ridge import VANISHING
from .op2op import fit_op2op, real_rows, split_columns
from .operator_metrics import reference_observables

CHUNK = 16
"""Molecules at once."""

SMALLEST = 1e-12
"""Principal components with less of the largest one's variance are rounding errors."""

PATIENCE = 20
"""Steps without a better validation error after which training stops."""


def check_observables(name: str, part: Dataset, targets: Sequence[str]) -> None:
    """Refuse data that has no reference for observables.

    Args:
      name: of the data, for the message.
      part: the data.
      targets: of :data:`~opml_jax.training.config.OBSERVABLES`.

    Raises:
      DataError: labels or basis that are not there, open shells, NaN.
    """
    needed = ["fock"] + ["polarizability"] * ("polarizability" in targets)
    if any(label not in part for label in needed) or "basis" not in part.meta or not len(part):
        raise DataError(
            refusal(
                name,
                got=repr(part),
                expected=f"structures with {' and '.join(needed)}, and the name of their basis",
                hint="opml generate makes files with Fock matrices.",
            ),
            code=Code.LABEL,
        )
    if odd := [s for s in part.structures if s.spin or n_electrons(s) % 2]:
        raise DataError(
            refusal(name, got=repr(odd[0]), expected="closed shells"), code=Code.ELECTRONS
        )
    check_finite(name, {label: part.labels[label] for label in needed})


def projected(
    dataset: Dataset, basis: Basis, first_level: Callable[[Structure], int] = lambda s: 0
) -> Dataset:
    """The same Fock operators between the functions of another basis.

    Args:
      dataset: ``fock`` in the basis that ``meta`` names.
      basis: a smaller one, of PySCF's library.
      first_level: of a structure; levels below are moved to the top of those the smaller basis has
        room for, so that their functions serve what is above.

    Returns:
      Structures with ``fock`` in ``basis``.
    """
    large = load_basis(dataset.meta["basis"], dataset.elements)
    out = []
    for structure, fock in zip(dataset.structures, dataset.labels["fock"], strict=True):
        own = cross_overlap(structure, large, large)
        cross = cross_overlap(structure, large, basis)
        energy, c = scipy.linalg.eigh(fock, own)
        first = first_level(structure)
        energy[:first] = energy[first + cross.shape[1] - 1]
        seen = cross.T @ c
        out.append((seen * energy) @ seen.T)
    meta = {**dataset.meta, "basis": basis.name}
    return Dataset(
        dataset.structures,
        {"fock": out},
        meta,
        [layout_of(s, basis).hash for s in dataset.structures],
    )


@dataclasses.dataclass(frozen=True)
class FittedEffective:
    """Result of :func:`fit_effective`.

    Attributes:
      params: of the model.
      history: one row a step, one way after the other: the loss of training and validation, 1 for
        each weight at the start.
    """

    params: Params
    history: list[dict[str, float]]


def fit_effective(
    definition: Op2Op,
    train: Dataset,
    validation: Dataset,
    targets: Sequence[str],
    config: EffectiveConfig,
    *,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> FittedEffective:
    """Weights whose matrices have the observables of the labels; the best on validation.

    Args:
      definition: one-shot model in the small basis: without density words, or with stages, of
        which the last one's weights move.
      train: closed shells with ``fock`` in a larger basis, and other labels of ``targets``.
      validation: likewise.
      targets: of :data:`~opml_jax.training.config.OBSERVABLES`.
      config: weights and settings.
      on_progress: called with (stage, done, total).

    Raises:
      DataError: labels that are not there, open shells.
      PrecisionError: x64 is off.
    """
    from scipy.optimize import minimize

    require_x64("training")
    sets = {"train": train, "validation": validation}
    for name, part in sets.items():
        check_observables(name, part, targets)
    small = {
        k: projected(part, definition.basis, definition.first_level) for k, part in sets.items()
    }
    start = fit_op2op(definition, small["train"], small["validation"], on_progress=on_progress)
    last = _last(definition, start.params)
    for name in ("fade", "functional_fade"):  # observables are fitted from here on, not elements
        last.pop(name, None)
    prepared = {
        k: _prepare(definition, start.params, part, reference_observables(part, targets))
        for k, part in sets.items()
    }
    fitted = last["density" if definition.config.stages else "guess"]
    columns = {
        key_name(key): own
        for key, own in _components(prepared["train"], config.components).items()
        if key_name(key) in fitted
    }
    keys = {key_name(key): key for key in prepared["train"][0]["x"]}
    stacked = {k: _stack(parts, columns) for k, parts in prepared.items()}
    weights, sizes = {}, {}
    for name, own in columns.items():
        n_outputs = definition.n_outputs(keys[name])
        weights[name] = {"weights": np.zeros((own["components"].shape[1], n_outputs))}
        sizes[name] = {"weights": np.repeat(own["size"][:, None], n_outputs, axis=1)}
        if "mean" in own:
            weights[name]["constant"] = np.zeros(n_outputs)
            sizes[name]["constant"] = np.ones(n_outputs)
    flat, unflatten = jax.flatten_util.ravel_pytree(weights)
    sizes, _ = jax.flatten_util.ravel_pytree(sizes)
    parts = _parts(definition, targets, config.virtuals)

    @jax.jit
    def squares(flat, batches):
        """Sum of squares and number of values of every part of the loss, over all molecules."""

        def add(total, batch):
            found = parts(unflatten(flat), batch)
            return jax.tree.map(jnp.add, total, found), None

        one = jax.tree.map(lambda x: x[0], batches)
        zero = jax.tree.map(lambda x: jnp.zeros(()), jax.eval_shape(parts, weights, one))
        return jax.lax.scan(add, zero, batches)[0]

    scales = {name: float(s / n) for name, (s, n) in squares(flat, stacked["train"]).items()}

    @jax.jit
    def loss(flat, batches):
        return sum(
            getattr(config, f"{name}_weight") * s / n / scales[name]
            for name, (s, n) in squares(flat, batches).items()
            if scales[name] > 0
        )

    loss_and_slope = jax.jit(jax.value_and_grad(loss))
    history: list[dict[str, float]] = []

    def descend(start: Point, size: np.ndarray, steps: int) -> Point:
        """The best on validation of the way from ``start``, in variables that move by ``size``."""
        best, since, seen = start, 0, 0.0

        def evaluate(x):
            nonlocal seen
            seen, slope = loss_and_slope(jnp.asarray(size * x), stacked["train"])
            penalty = config.penalty
            return float(seen) + penalty * x @ x, size * np.asarray(slope) + 2 * penalty * x

        def step(x):
            nonlocal best, since
            now = Point(float(loss(jnp.asarray(size * x), stacked["validation"])), size * x)
            best, since = (now, 0) if now.loss < best.loss else (best, since + 1)
            row = {"step": len(history) + 1, "loss": float(seen), "validation_loss": now.loss}
            history.append(row)
            on_progress("observables", len(history), 2 * config.steps)
            if since >= PATIENCE:
                raise StopIteration

        minimize(
            evaluate,
            start.flat / size,
            jac=True,
            method="L-BFGS-B",
            callback=step,
            options={"maxiter": steps, "maxcor": 30},
        )
        return best

    start_at = Point(float(loss(flat, stacked["validation"])), np.asarray(flat))
    alike = np.ones_like(flat)
    by_size = descend(start_at, np.asarray(sizes), (config.steps + 1) // 2)
    ways = [descend(by_size, alike, config.steps // 2), descend(start_at, alike, config.steps)]
    best = min(ways, key=lambda point: point.loss)
    on_progress("observables", 2 * config.steps, 2 * config.steps)
    changes = _changes(columns, unflatten(jnp.asarray(best.flat)))
    if definition.config.stages:
        apart = split_columns(definition, {keys[name]: own for name, own in changes.items()})
        for name, own in apart.items():
            last[name] = _moved(last[name], own)
    else:
        last["guess"] = _moved(last["guess"], changes)
    return FittedEffective(start.params, history)


def _last(definition: Op2Op, params: Params) -> Params:
    """Those of a model's parameters that hold its last linear map."""
    n = definition.config.stages
    return params["stages"][str(n - 1)] if n else params


class Point(NamedTuple):
    """Changes of all weights, and the validation loss there."""

    loss: float
    flat: np.ndarray


def _prepare(
    definition: Op2Op, params: Params, part: Dataset, wanted: Mapping[str, list[np.ndarray]]
) -> list[dict[str, Any]]:
    """Every batch: columns by key, the matrices of the start, and what is to be reached."""

    @jax.jit
    def of_batch(structures, table):
        return {
            "x": last_columns(definition, params, structures, table)[1],
            "fock": definition.apply(params, structures, table)["fock"],
            "overlap": integrals.overlap(structures, definition.basis, padding=1.0),
            "position": integrals.position(centred(structures), definition.basis),
        }

    out = []
    for structures, table, index in batches(definition, part.structures, CHUNK):
        found = jax.tree.map(np.asarray, of_batch(structures, table))
        n = structures.n_structures
        real = np.arange(n) < len(index)
        found |= {"structures": structures, "table": table, "real": real}
        found["wanted"] = {}
        for name, values in wanted.items():
            rows = [values[i] for i in index] + [values[index[-1]]] * (n - len(index))
            if name == "mo_energy":
                first = definition.first_level(structures)
                rows = [row[int(f) :] for row, f in zip(rows, np.asarray(first), strict=True)]
                shape = (found["fock"].shape[-1],)
            elif name == "lowdin_charges":
                shape = (structures.numbers.shape[1],)
            else:
                shape = rows[0].shape
            full = np.zeros((n, *shape))
            for own, row in zip(full, rows, strict=True):
                cut = tuple(slice(min(a, b)) for a, b in zip(shape, row.shape, strict=True))
                own[cut] = row[cut]
            found["wanted"][name] = full
        out.append(found)
    return out


def _components(prepared: Sequence[dict[str, Any]], most: int) -> dict[IrrepKey, Params]:
    """Principal components of every key's columns, of unit size, for :func:`compress`.

    ``size`` is what each was before, the largest 1.

    Of whole columns, centred before they are squared: added up as moments, small columns would be
    lost to rounding, and observables twice as wrong.
    """
    out: dict[IrrepKey, Params] = {}
    for key in prepared[0]["x"]:
        rows = [
            part["x"][key][real_rows(key, part["table"], part["real"].sum())] for part in prepared
        ]
        x = np.concatenate([own.reshape(-1, own.shape[-1]) for own in rows])
        if not np.any(x):
            continue
        own = {"mean": x.mean(axis=0)} if has_constant(key) else {}
        x = x - own.get("mean", 0.0)
        size = np.sqrt((x**2).mean(axis=0))
        inverse = np.where(size > VANISHING * size.max(), 1 / np.maximum(size, 1e-300), 0.0)
        values, u = np.linalg.eigh((x * inverse).T @ (x * inverse) / len(x))
        values, u = values[::-1][:most], u[:, ::-1][:, :most]
        kept = values > SMALLEST * values[0]
        own["components"] = inverse[:, None] * u[:, kept] / np.sqrt(values[kept])
        own["size"] = np.sqrt(values[kept] / values[0])
        out[key] = own
    return out


def _stack(prepared: Sequence[dict[str, Any]], columns: Params) -> dict[str, Any]:
    """All batches side by side, columns replaced by their principal components."""
    out = []
    for part in prepared:
        rest = {k: v for k, v in part.items() if k != "x"}
        out.append({**rest, "z": compress(columns, part["x"])})
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *out)


def _parts(definition: Op2Op, targets: Sequence[str], virtuals: int):
    """``f(weights, batch)``: sum of squares and number of values of each part of the loss."""
    basis = definition.basis

    def parts(weights, batch) -> dict[str, tuple[Array, Array]]:
        structures, table = batch["structures"], batch["table"]
        change = definition.assemble(weights, batch["z"], table, batch["fock"])
        fock, overlap, mask = batch["fock"] + change, batch["overlap"], structures.layout.ao_mask
        electrons = definition.n_described(structures)
        real, wanted, out = batch["real"], batch["wanted"], {}

        def add(name, difference, counted):
            counted = jnp.broadcast_to(counted, difference.shape)
            out[name] = (
                jnp.sum(jnp.where(counted, difference, 0.0) ** 2),
                jnp.sum(counted, dtype=difference.dtype),
            )

        if "mo_energy" in targets:
            energy, _ = observables.orbitals(fock, overlap, mask=mask)
            above = jnp.arange(fock.shape[-1]) - electrons[:, None] // 2
            virtual = (above >= 0) & (above < (virtuals or fock.shape[-1]))
            for name, which in (("occupied", above < 0), ("virtual", virtual)):
                add(name, energy - wanted["mo_energy"], which & mask & real[:, None])
        if set(targets) == {"mo_energy"}:
            return out

        def dipole(field):
            in_field = fock + einsum("x,nxij->nij", field, batch["position"])
            dm = observables.density_matrix(in_field, overlap, electrons, mask=mask)
            return -einsum("nxij,nji->nx", batch["position"], dm), dm

        none = jnp.zeros(3, fock.dtype)
        moment, dm = dipole(none)
        if "dipole" in targets:
            add("dipole", moment - wanted["dipole"], real[:, None])
        if "lowdin_charges" in targets:
            charges = observables.lowdin_charges(dm, overlap, structures, basis)
            atoms = jnp.asarray(structures.numbers) > 0
            add("charges", charges - wanted["lowdin_charges"], atoms & real[:, None])
        if "polarizability" in targets:
            alpha = jax.jacfwd(lambda f: dipole(f)[0])(none)
            add("polarizability", alpha - wanted["polarizability"], real[:, None, None])
        return out

    return parts


def _changes(columns: Params, weights: Params) -> Params:
    """Weights of principal components as weights of columns."""
    out: Params = {}
    for name, own in columns.items():
        change = own["components"] @ np.asarray(weights[name]["weights"])
        out[name] = {"weights": change}
        if "mean" in own:
            out[name]["constant"] = np.asarray(weights[name]["constant"]) - own["mean"] @ change
    return out


def _moved(start: Params, changes: Params) -> Params:
    """Weights by name, with changes of some of them."""
    return start | {
        name: {k: start[name][k] + v for k, v in change.items()} for name, change in changes.items()
    }
