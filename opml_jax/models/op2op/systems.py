"""Least squares of every kind of block and irrep, rows streamed molecule by molecule."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from ...data import Dataset
from ...errors import DataWarning
from ...features.couple import IrrepKey, couple_species, has_constant
from ...learn.keyed_ridge import Candidate, KeyedSystem, solve_key
from ...learn.run import Run
from ...numerics import Array
from ...observables import density_matrix
from ...operators.species import SpeciesTable, gather_species
from ...structures import StructureBatch
from ..base.definition import Params
from .draws import last_columns
from .functions import Op2Op
from .inputs import Irreps, joined, n_electrons
from .metrics import describe

NEVER_SEEN = 0.01
"""Columns are standardised by this part of the spread that they have at other elements, at least.

A column that hardly varies for one element (pairs of nitrogens that were never bonded) would else
be magnified a million times in a molecule where it does.
"""

CHUNK = 8
"""Molecules at once."""

Sides = dict[str, tuple[Irreps, Irreps]]
"""Irreps of words and of what they are to make, of each linear map."""

Systems = dict[str, dict[IrrepKey, KeyedSystem]]
"""Least squares of every key, of ``train`` and of ``validation``."""

Candidates = dict[IrrepKey, list[Candidate]]
"""Weights of every key for every lambda."""


def padded(matrices: Sequence[np.ndarray], size: int, nao: int) -> np.ndarray:
    """Matrices in one array, ``(size, nao, nao)``."""
    out = np.zeros((size, nao, nao))
    for i, m in enumerate(matrices):
        out[i, : len(m), : len(m)] = m
    return out


def labelled_batches(
    definition: Op2Op, part: Dataset, size: int
) -> Iterator[tuple[StructureBatch, SpeciesTable, np.ndarray, int]]:
    """Batches of a data set with their Fock matrices, and how many structures are no repeats."""
    for structures, table, index in definition.batches(part.structures, size):
        n, nao = structures.n_structures, structures.layout.nao
        labels = [part.labels["fock"][i] for i in index]
        labels += [labels[-1]] * (n - len(labels))
        yield structures, table, padded(labels, n, nao), len(index)


def real_rows(x: Array, key: Sequence[int], table: SpeciesTable, n: int) -> np.ndarray:
    """Rows of the blocks of the first n molecules, without padding.

    Args:
      x: ``(n_blocks, ..., n_columns)``.
      key: of the blocks: kind and elements, and perhaps an irrep.
      table: of the molecules.
      n: molecules that are no repeats.

    Returns:
      ``(n_rows, n_columns)``.
    """
    blocks = (abs(key[0]), key[1], key[2])
    inside = np.asarray(table.rows[blocks])[:, 0] < np.iinfo(np.int32).max
    x = np.asarray(x)[inside & (np.asarray(table.molecule[blocks]) < n)]
    return x.reshape(-1, x.shape[-1])


def _irreps(definition: Op2Op, matrix: Array, table: SpeciesTable) -> Irreps:
    return couple_species(gather_species(matrix, table), definition.basis.spec)


@functools.partial(jax.jit, static_argnums=0)
def sides_of_stage(
    definition: Op2Op, params: Params, structures, table: SpeciesTable, fock: Array
) -> Sides:
    """The ``functional`` of the last stage, at the density of the stage before."""
    operators, x = last_columns(definition, params, structures, table)
    residual = fock - operators["T"] - operators["U"]
    return {"functional": (x, _irreps(definition, residual, table))}


@functools.partial(jax.jit, static_argnums=0)
def sides_at_reference(
    definition: Op2Op, params: Params, structures, table: SpeciesTable, fock: Array
) -> Sides:
    """The ``guess``, and of a model with density words the ``functional``, at the reference."""
    operators = definition.operators(structures, table)
    known = definition.known_irreps(operators, table)
    electrons, mask = n_electrons(structures), structures.layout.ao_mask
    dm = density_matrix(fock, operators["S"], electrons, mask=mask)
    wanted = fock if definition.config.target == "fock" else dm
    residual = wanted - definition.baseline(params, structures, operators, table)
    sides = {"guess": (known, _irreps(definition, residual, table))}
    if definition.config.density_words:
        operators = definition.with_density(structures, operators, dm)
        columns = joined(known, definition.density_irreps(operators, table))
        residual = fock - operators["T"] - operators["U"]
        sides["functional"] = (columns, _irreps(definition, residual, table))
    return sides


def gathered(
    definition: Op2Op,
    params: Params,
    sets: Mapping[str, Dataset],
    run: Run,
    sides_of: Callable[..., Sides],
) -> dict[str, Systems]:
    """Least squares of every linear map that ``sides_of`` gives.

    Args:
      definition: the model's functions.
      params: what ``sides_of`` reads.
      sets: ``train`` and ``validation``, with ``fock``.
      run: told how far it is.
      sides_of: :func:`sides_at_reference` or :func:`sides_of_stage`.
    """
    names, done = ("train", "validation"), 0
    total = sum(len(sets[name]) for name in names)
    systems: dict[str, Systems] = {}
    lacking: set[IrrepKey] = set()
    for name in names:
        for structures, table, fock, n in labelled_batches(definition, sets[name], CHUNK):
            for part, (x, y) in sides_of(definition, params, structures, table, fock).items():
                lacking |= y.keys() - x.keys()
                system = systems.setdefault(part, {"train": {}, "validation": {}})[name]
                for key in x:
                    columns = real_rows(x[key], key, table, n)
                    if len(columns):
                        outputs = real_rows(y[key], key, table, n)
                        system.setdefault(key, KeyedSystem()).add(columns, outputs)
            done += n
            run.progress("closed form", done, total)
    _warn_of_lacking(definition, lacking)
    return systems


def _warn_of_lacking(definition: Op2Op, lacking: set[IrrepKey]) -> None:
    """Name irreps that the input basis cannot make."""
    if lacking:
        warnings.warn(
            f"the input basis {definition.config.input_basis!r} has no irreps for {len(lacking)} "
            f"kinds of block ({'; '.join(map(describe, sorted(lacking)[:3]))}, ...): the first "
            "guess keeps its baseline there. Choose a basis with higher angular momenta.",
            DataWarning,
            stacklevel=3,
        )


def candidates(definition: Op2Op, systems: Systems) -> Candidates:
    """Weights of every key for every lambda; keys that vanish by symmetry have none."""
    least = least_spreads(definition, systems["train"])
    solved = {
        key: solve_key(
            system,
            systems["validation"].get(key),
            definition.n_outputs(key),
            has_constant(key),
            least[key],
        )
        for key, system in systems["train"].items()
    }
    return {key: weights for key, weights in solved.items() if weights}


def least_spreads(
    definition: Op2Op, train: Mapping[IrrepKey, KeyedSystem]
) -> dict[IrrepKey, np.ndarray]:
    """The spreads that columns are standardised by, at least."""
    spreads = {
        key: system.spreads(definition.n_outputs(key), has_constant(key))
        for key, system in train.items()
    }
    widest: dict[tuple[int, ...], np.ndarray] = {}
    for key, spread in spreads.items():
        alike = _alike(key, spread)
        widest[alike] = np.maximum(widest.get(alike, 0.0), spread)
    return {key: NEVER_SEEN * widest[_alike(key, spread)] for key, spread in spreads.items()}


def _alike(key: IrrepKey, columns: np.ndarray) -> tuple[int, ...]:
    """What keys of other elements with the same columns share."""
    kind, _, _, *irrep = key
    return (kind, *irrep, len(columns))
