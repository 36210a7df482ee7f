"""What the matrices of a small basis are fitted to: observables of a larger one, and their loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from ... import integrals, observables
from ...basis import Basis, layout_of, load_basis
from ...data import Dataset
from ...data.reference import cross_overlap, reference_observables
from ...features.couple import IrrepKey, has_constant, key_name
from ...learn.keyed_ridge import VANISHING
from ...numerics import Array, einsum
from ...operators.species import SpeciesTable
from ...structures import Structure, StructureBatch, centred
from ..base.definition import Params
from .config import ObservablesFit
from .draws import last_columns, last_map
from .functions import Op2Op
from .network import compress
from .rows import padded, real_rows

CHUNK = 16
"""Molecules at once."""

SMALLEST = 1e-12
"""Principal components with less of the largest one's variance are rounding errors."""


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
        overlap = cross_overlap(structure, large, large)
        cross = cross_overlap(structure, large, basis)
        energy, c = scipy.linalg.eigh(fock, overlap)
        first = first_level(structure)
        energy[:first] = energy[first + cross.shape[1] - 1]
        orbitals = cross.T @ c
        out.append((orbitals * energy) @ orbitals.T)
    meta = {**dataset.meta, "basis": basis.name}
    hashes = [layout_of(s, basis).hash for s in dataset.structures]
    return Dataset(dataset.structures, {"fock": out}, meta, hashes)


class Prepared(NamedTuple):
    """What weights are fitted with.

    ``columns`` are principal components, by name of a key, and the ``size`` that each had, the
    largest 1; ``parts`` all batches of ``train`` and ``validation``, stacked: components ``z``,
    matrices of the start, what is to be reached (``wanted``), and ``real`` structures, no repeats.
    """

    columns: Params
    keys: dict[str, IrrepKey]
    parts: dict[str, Params]


def prepare(
    definition: Op2Op, params: Params, sets: Mapping[str, Dataset], fit: ObservablesFit
) -> Prepared:
    """Columns, their components, the matrices of the start, and references."""
    batches = {
        name: _batches(definition, params, part, reference_observables(part, fit.targets))
        for name, part in sets.items()
    }
    moved = last_map(definition, params)["density" if definition.config.stages else "guess"]
    components = _components(batches["train"], fit.components)
    keys = {key_name(key): key for key in components if key_name(key) in moved}
    columns = {name: components[key] for name, key in keys.items()}
    parts = {name: _stacked(of_set, columns) for name, of_set in batches.items()}
    return Prepared(columns, keys, parts)


@functools.partial(jax.jit, static_argnums=0)
def _start(definition: Op2Op, params: Params, structures: StructureBatch, table: SpeciesTable):
    """Columns by key, and the matrices of the start."""
    return {
        "x": last_columns(definition, params, structures, table)[1],
        "fock": definition.apply(params, structures, table)["fock"],
        "overlap": integrals.overlap(structures, definition.basis, padding=1.0),
        "position": integrals.position(centred(structures), definition.basis),
    }


def _batches(
    definition: Op2Op, params: Params, part: Dataset, wanted: Mapping[str, list[np.ndarray]]
) -> list[Params]:
    """Every batch: what :func:`_start` gives, and what is to be reached."""
    out = []
    for structures, table, index in definition.batches(part.structures, CHUNK, shapes=1):
        batch = jax.tree.map(np.asarray, _start(definition, params, structures, table))
        n, nao = structures.n_structures, batch["fock"].shape[-1]
        first = np.asarray(definition.first_level(structures))
        sizes = {"mo_energy": (nao,), "lowdin_charges": (structures.n_atoms,)}
        batch["wanted"] = {}
        for name, values in wanted.items():
            rows = [values[i] for i in index] + [values[index[-1]]] * (n - len(index))
            if name == "mo_energy":
                rows = [row[int(f) :] for row, f in zip(rows, first, strict=True)]
            batch["wanted"][name] = padded(rows, sizes.get(name, rows[0].shape))
        batch |= {"structures": structures, "table": table, "real": np.arange(n) < len(index)}
        out.append(batch)
    return out


def _components(batches: Sequence[Params], most: int) -> dict[IrrepKey, Params]:
    """Principal components of every key's columns, of unit size; ``size`` is what each was before.

    Of whole columns, centred before they are squared: added up as moments, small columns would be
    lost to rounding, and observables twice as wrong.
    """
    out: dict[IrrepKey, Params] = {}
    for key in batches[0]["x"]:
        rows = [real_rows(b["x"][key], key, b["table"], b["real"].sum()) for b in batches]
        x = np.concatenate(rows)
        if not np.any(x):
            continue
        of_key = {"mean": x.mean(axis=0)} if has_constant(key) else {}
        x = x - of_key.get("mean", 0.0)
        size = np.sqrt((x**2).mean(axis=0))
        inverse = np.where(size > VANISHING * size.max(), 1 / np.maximum(size, 1e-300), 0.0)
        values, u = np.linalg.eigh((x * inverse).T @ (x * inverse) / len(x))
        values, u = values[::-1][:most], u[:, ::-1][:, :most]
        large = values > SMALLEST * values[0]
        of_key["components"] = inverse[:, None] * u[:, large] / np.sqrt(values[large])
        of_key["size"] = np.sqrt(values[large] / values[0])
        out[key] = of_key
    return out


def _stacked(batches: Sequence[Params], columns: Params) -> Params:
    """All batches side by side, columns replaced by their principal components."""
    out = [{"z": compress(columns, batch.pop("x")), **batch} for batch in batches]
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *out)


Squares = dict[str, tuple[Array, Array]]
"""Sum of squares and number of values of every part of a loss."""


class ObservablesLoss(NamedTuple):
    """Errors of observables of matrices that are moved."""

    definition: Op2Op
    fit: ObservablesFit

    def total(self, weights: Params, batches: Params, scales: Mapping[str, float]) -> Array:
        """The weighted sum of mean squares over ``scales``; what has no scale does not count."""
        total = jnp.zeros(())
        for name, (square, n) in self.squares(weights, batches).items():
            if scales[name] > 0:
                total += getattr(self.fit, f"{name}_weight") * square / n / scales[name]
        return total

    def squares(self, weights: Params, batches: Params) -> Squares:
        """Sums over all molecules, of changes of the weights of components by name of a key."""

        def add(total, batch):
            return jax.tree.map(jnp.add, total, self._of_batch(weights, batch)), None

        shapes = jax.eval_shape(self._of_batch, weights, jax.tree.map(lambda x: x[0], batches))
        return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(()), shapes), batches)[0]

    def _of_batch(self, weights: Params, batch: Params) -> Squares:
        table = batch["table"]
        fock = batch["fock"] + self.definition.assemble(weights, batch["z"], table, batch["fock"])
        out = self._of_levels(fock, batch) if "mo_energy" in self.fit.targets else {}
        if set(self.fit.targets) == {"mo_energy"}:
            return out
        return out | self._of_density(fock, batch)

    def _of_levels(self, fock: Array, batch: Params) -> Squares:
        structures, wanted = batch["structures"], batch["wanted"]["mo_energy"]
        mask, nao = structures.layout.ao_mask, fock.shape[-1]
        energy, _ = observables.orbitals(fock, batch["overlap"], mask=mask)
        electrons = self.definition.n_described(structures)
        above = jnp.arange(nao) - electrons[:, None] // 2
        virtual = (above >= 0) & (above < (self.fit.virtuals or nao))
        kinds, real = {"occupied": above < 0, "virtual": virtual}, batch["real"][:, None]
        return {k: _squares(energy - wanted, kind & mask & real) for k, kind in kinds.items()}

    def _of_density(self, fock: Array, batch: Params) -> Squares:
        structures, overlap, wanted = batch["structures"], batch["overlap"], batch["wanted"]
        electrons, mask = self.definition.n_described(structures), structures.layout.ao_mask

        def dipole(field: Array) -> tuple[Array, Array]:
            in_field = fock + einsum("x,nxij->nij", field, batch["position"])
            dm = observables.density_matrix(in_field, overlap, electrons, mask=mask)
            return -einsum("nxij,nji->nx", batch["position"], dm), dm

        none, real, out = jnp.zeros(3, fock.dtype), batch["real"], {}
        moment, dm = dipole(none)
        if "dipole" in self.fit.targets:
            out["dipole"] = _squares(moment - wanted["dipole"], real[:, None])
        if "lowdin_charges" in self.fit.targets:
            basis = self.definition.basis
            charges = observables.lowdin_charges(dm, overlap, structures, basis)
            atoms = jnp.asarray(structures.numbers) > 0
            difference = charges - wanted["lowdin_charges"]
            out["charges"] = _squares(difference, atoms & real[:, None])
        if "polarizability" in self.fit.targets:
            alpha = jax.jacfwd(lambda f: dipole(f)[0])(none)
            difference = alpha - wanted["polarizability"]
            out["polarizability"] = _squares(difference, real[:, None, None])
        return out


def _squares(difference: Array, counted: Array) -> tuple[Array, Array]:
    """Sum of the squares that are counted, and their number."""
    counted = jnp.broadcast_to(counted, difference.shape)
    return (
        jnp.sum(jnp.where(counted, difference, 0.0) ** 2),
        jnp.sum(counted, dtype=difference.dtype),
    )
