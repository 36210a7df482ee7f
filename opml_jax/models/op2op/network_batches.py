"""What networks of Op2Op are trained on: components, invariants and errors of the closed form."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ...data import Dataset
from ...features.couple import IrrepKey, has_constant, key_name
from ...numerics import Array
from ...observables import density_matrix
from ...operators.species import SpeciesTable
from ..base.definition import Params
from .config import Op2OpNetworkConfig
from .functions import Op2Op
from .inputs import Irreps, joined, n_electrons, operator_irreps
from .losses import reference
from .network import compress, invariants, saturated
from .systems import labelled_batches, real_rows

SMALLEST = 1e-6
"""Components with less of the largest component's variance than this are left out."""

VANISHING = 1e-10
"""Columns this much smaller than the largest are rounding errors."""


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


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What networks are trained on.

    Attributes:
      params: closed form, constants alone if it is left out.
      fixed: components, inputs of gates, scales.
      parts: for ``train`` and ``validation`` all batches, stacked: ``data`` of the network, the
        ``reference``, the ``residual`` matrices of the closed form and their irreps ``y``, the
        ``table``, and ``real``, 1 for structures that are no repeats.
    """

    params: Params
    fixed: Params
    parts: dict[str, Params]


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Data sets in batches, with what the closed form leaves of them."""

    definition: Op2Op
    sets: Mapping[str, Dataset]
    size: int
    seed: int
    with_orbitals: bool

    def batches(self, params: Params, name: str) -> Iterator[tuple[Params, SpeciesTable, int]]:
        """Errors of the closed form, tables, and how many structures are no repeats.

        Training structures are shuffled, so that batches are alike.
        """
        part, order = self.sets[name], np.arange(len(self.sets[name]))
        if name == "train":
            order = np.random.default_rng(self.seed).permutation(len(part))
        for structures, table, fock, n in labelled_batches(
            self.definition, part.subset(order), self.size
        ):
            sets = structures, table, jnp.asarray(fock)
            yield _residuals(self.definition, self.with_orbitals, params, *sets), table, n


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
        residual = fock - operators["T"] - operators["U"]
        residual = residual - definition.assemble(params["known"], x, table, s)
        residual = residual - definition.assemble(params["density"], density, table, s)
        x, weights = joined(x, density), params["density"]
    else:
        residual = fock - definition.baseline(params, structures, operators, table)
        residual = residual - definition.learned_guess(params, x, table, s)
        weights = params["guess"]
    return {
        "x": {k: x[k] for k in x if key_name(k) in weights},
        "y": operator_irreps(residual[None], table),
        "residual": residual,
        "reference": reference(fock, s, electrons, mask, with_orbitals=with_orbitals),
    }


def prepare(
    definition: Op2Op,
    closed_form: Params,
    sets: Mapping[str, Dataset],
    size: int,
    seed: int,
    *,
    with_orbitals: bool,
) -> Prepared:
    """Components, invariants, references and what the closed form leaves, batch by batch.

    Args:
      definition: the model's functions.
      closed_form: its parameters.
      sets: ``train`` and ``validation``.
      size: molecules of a batch.
      seed: of the composition of batches.
      with_orbitals: the losses need those of the references.
    """
    network = definition.config.network
    assert network is not None  # what is prepared for
    reader = _Reader(definition, sets, size, seed, with_orbitals)
    params = _without_columns(closed_form, {}) if network.alone else closed_form
    of_x, of_y = _moments(reader.batches(params, "train"))
    if network.alone:
        mean = {key_name(key): moments.mean for key, moments in of_y.items()}
        params = _without_columns(closed_form, mean)
    fixed = _fixed(network, of_x, of_y)
    of_invariants: dict[str, Moments] = {}
    batches = {
        name: [
            _compressed(fixed["columns"], batch, of_invariants if name == "train" else None)
            for batch in reader.batches(params, name)
        ]
        for name in ("train", "validation")
    }
    fixed["inputs"] = {g: m.components(network.inputs, True) for g, m in of_invariants.items()}
    squash, parts = jax.jit(functools.partial(saturated, fixed["inputs"])), {}
    for name, of_set in batches.items():
        for batch in of_set:
            batch["data"]["z"] = squash(batch["data"]["z"])
        parts[name] = jax.tree.map(lambda *x: np.stack(x), *of_set)
    return Prepared(params, fixed, parts)


def _without_columns(params: Params, mean: Mapping[str, np.ndarray]) -> Params:
    """A closed form whose first guess has constants only (0 where no mean is known)."""
    guess = {
        name: {"weights": np.zeros_like(linear["weights"])}
        | ({"constant": mean.get(name, 0 * linear["constant"])} if "constant" in linear else {})
        for name, linear in params["guess"].items()
    }
    return {**params, "guess": guess}


def _moments(
    batches: Iterable[tuple[Params, SpeciesTable, int]],
) -> tuple[dict[IrrepKey, Moments], dict[IrrepKey, Moments]]:
    """Moments of the columns of every key, and of what they are to make."""
    of_x: dict[IrrepKey, Moments] = {}
    of_y: dict[IrrepKey, Moments] = {}
    for batch, table, n in batches:
        for key, x in batch["x"].items():
            of_x.setdefault(key, Moments()).add(real_rows(x, key, table, n))
            of_y.setdefault(key, Moments()).add(real_rows(batch["y"][key], key, table, n))
    return of_x, of_y


def _fixed(
    network: Op2OpNetworkConfig,
    of_x: Mapping[IrrepKey, Moments],
    of_y: Mapping[IrrepKey, Moments],
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


def _compressed(
    columns: Params,
    read: tuple[Params, SpeciesTable, int],
    moments: dict[str, Moments] | None,
) -> Params:
    """A batch with components in place of columns; invariants are added to ``moments``, if any."""
    batch, table, n = read
    x, z = _components_and_invariants(columns, batch["x"], table, batch["residual"])
    if moments is not None:
        for group, values in z.items():
            rows = real_rows(values, list(map(int, group.split("_"))), table, n)
            moments.setdefault(group, Moments()).add(rows)
    real = (np.arange(len(batch["residual"])) < n).astype(float)
    rest = {k: v for k, v in batch.items() if k != "x"}
    return {**rest, "data": {"x": x, "z": z}, "real": real, "table": table}
