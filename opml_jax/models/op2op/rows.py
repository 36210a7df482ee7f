"""Rows of the least squares of Op2Op's linear maps: irreps of words, and what they are to make.

Rows are streamed molecule by molecule.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from ...data import Dataset
from ...errors import DataWarning
from ...features.couple import IrrepKey
from ...learn import devices as parallel
from ...learn.keyed_ridge import KeyedSystem
from ...learn.run import COMPILING, Run
from ...numerics import Array
from ...observables import density_matrix
from ...operators.species import SpeciesTable
from ...quantities import N_ITERATES, iterate
from ...structures import StructureBatch
from ..base.definition import Params
from .draws import last_columns
from .functions import Op2Op
from .inputs import MOST_SHAPES, Irreps, Operators, joined, n_electrons, operator_irreps
from .metrics import describe

CHUNK = 8
"""Molecules at once."""

BETWEEN_STATES = 16
"""Batches of :data:`CHUNK` molecules between states on disk: minutes of work in def2-SVP."""

Sides = dict[str, tuple[Irreps, Irreps]]
"""Irreps of words and of what they are to make, of each linear map."""

Systems = dict[str, dict[IrrepKey, KeyedSystem]]
"""Least squares of every key, of ``train`` and of ``validation``."""


def padded(rows: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Arrays in one, ``(n, *shape)``, each cut or filled up with zeros to ``shape``."""
    out = np.zeros((len(rows), *shape))
    for whole, row in zip(out, rows, strict=True):
        cut = tuple(slice(min(a, b)) for a, b in zip(shape, row.shape, strict=True))
        whole[cut] = row[cut]
    return out


def labelled_batches(
    definition: Op2Op, part: Dataset, size: int, label: str = "fock", shapes: int = MOST_SHAPES
) -> Iterator[tuple[StructureBatch, SpeciesTable, np.ndarray, int]]:
    """Batches, their tables and ``(size, nao, nao)`` Fock matrices, and how many are no repeats."""
    for structures, table, index in definition.batches(part.structures, size, shapes):
        n, nao = structures.n_structures, structures.layout.nao
        labels = [part.labels[label][i] for i in index]
        labels += [labels[-1]] * (n - len(labels))
        yield structures, table, padded(labels, (nao, nao)), len(index)


def real_rows(x: Array, key: Sequence[int], table: SpeciesTable, n: int) -> np.ndarray:
    """Rows ``(n_rows, n_columns)`` of ``(n_blocks, ..., n_columns)``, of the first n molecules."""
    blocks = (abs(key[0]), key[1], key[2])
    inside = np.asarray(table.rows[blocks])[:, 0] < np.iinfo(np.int32).max
    x = np.asarray(x)[inside & (np.asarray(table.molecule[blocks]) < n)]
    return x.reshape(-1, x.shape[-1])


@functools.partial(jax.jit, static_argnums=0)
def sides_of_stage(
    definition: Op2Op, params: Params, structures, table: SpeciesTable, fock: Array
) -> Sides:
    """The ``functional`` of the last stage, at the density of the stage before."""
    operators, x = last_columns(definition, params, structures, table)
    residual = fock - operators["T"] - operators["mean_field"]
    return {"functional": (x, operator_irreps(residual[None], table))}


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
    if not definition.config.density_words:  # of a model that training starts from
        residual = residual - definition.learned(params, operators, known, table)
    sides = {"guess": (known, operator_irreps(residual[None], table))}
    if definition.config.density_words:
        operators = definition.with_density(structures, operators, dm)
        sides |= _functional(definition, params, operators, known, table, fock)
    return sides


@functools.partial(jax.jit, static_argnums=0)
def sides_of_density(
    definition: Op2Op, params: Params, structures, table: SpeciesTable, fock: Array, dm: Array
) -> Sides:
    """The ``functional`` at a density and the Fock matrix of it, converged or not."""
    operators = definition.operators(structures, table)
    known = definition.known_irreps(operators, table)
    operators = definition.with_density(structures, operators, dm)
    return _functional(definition, params, operators, known, table, fock)


def _functional(
    definition: Op2Op,
    params: Params,
    operators: Operators,
    known: Irreps,
    table: SpeciesTable,
    fock: Array,
) -> Sides:
    columns = joined(known, definition.density_irreps(operators, table))
    residual = fock - operators["T"] - operators["mean_field"]
    residual = residual - definition.learned(params, operators, columns, table)
    return {"functional": (columns, operator_irreps(residual[None], table))}


def gathered(
    definition: Op2Op,
    params: Params,
    sets: Mapping[str, Dataset],
    run: Run,
    sides_of: Callable[..., Sides],
    state: str = "rows",
) -> dict[str, Systems]:
    """Least squares of every linear map of ``sides_of``, of ``train`` and ``validation``.

    They are kept as the ``state`` of the run from time to time, from which a killed one goes on. Of
    several processes each takes its share of the batches, and none keeps what it has on the way.
    """
    names = ("train", "validation")
    total = sum(len(sets[name]) for name in names)
    n_batches, done, systems = _begun(run, state) if jax.process_count() == 1 else (0, 0, {})
    lacking: set[IrrepKey] = set()
    run.progress("closed form", done, total, COMPILING)
    batches = ((n, *b) for n in names for b in labelled_batches(definition, sets[n], CHUNK))
    for i, (name, structures, table, fock, n) in enumerate(batches):
        if i < n_batches or not _is_ours(i):
            continue
        for part, (x, y) in sides_of(definition, params, structures, table, fock).items():
            lacking |= y.keys() - x.keys()
            system = systems.setdefault(part, {"train": {}, "validation": {}})[name]
            add_rows(system, x, y, table, n)
        done += n
        run.progress("closed form", done, total)
        if (i + 1) % BETWEEN_STATES == 0 and jax.process_count() == 1:
            _keep(run, state, i + 1, done, systems)
    systems = _of_all_processes(systems)
    if lacking:
        warnings.warn(
            f"the input basis {definition.config.input_basis!r} has no irreps for {len(lacking)} "
            f"kinds of block ({'; '.join(map(describe, sorted(lacking)[:3]))}, ...): the first "
            "guess keeps its baseline there. Choose a basis with higher angular momenta.",
            DataWarning,
            stacklevel=2,
        )
    return systems


def _is_ours(batch: int) -> bool:
    """Whether a batch is one of this process."""
    return batch % jax.process_count() == jax.process_index()


def _of_all_processes(systems: dict[str, Systems]) -> dict[str, Systems]:
    """The rows of all processes together, in the order of the processes, on each of them."""
    if jax.process_count() == 1:
        return systems
    triangles, about = _written(systems)
    about = np.frombuffer(json.dumps(about).encode(), np.uint8)
    out: dict[str, Systems] = {}
    for text, *rows in parallel.gathered([about, *triangles]):
        for part, sets in _read(rows, json.loads(text.tobytes())).items():
            for name, keys in sets.items():
                whole = out.setdefault(part, {"train": {}, "validation": {}})[name]
                for key, system in keys.items():
                    whole.setdefault(key, KeyedSystem()).join(system)
    return out


def _written(systems: dict[str, Systems]) -> tuple[list[np.ndarray], list[tuple]]:
    """Triangles, and of what each is."""
    every = [
        (part, name, key, system)
        for part, sets in systems.items()
        for name, keys in sets.items()
        for key, system in keys.items()
    ]
    triangles = [system.triangle() for *_, system in every]
    return triangles, [
        (part, name, list(map(int, key)), system.n_rows) for part, name, key, system in every
    ]


def _read(triangles: Sequence[np.ndarray], about: Sequence[tuple]) -> dict[str, Systems]:
    """What :func:`_written` wrote."""
    systems: dict[str, Systems] = {}
    for rows, (part, name, key, n_rows) in zip(triangles, about, strict=True):
        sets = systems.setdefault(part, {"train": {}, "validation": {}})
        sets[name][tuple(key)] = KeyedSystem.of(rows, n_rows)
    return systems


def _keep(run: Run, state: str, n_batches: int, done: int, systems: dict[str, Systems]) -> None:
    """Write triangles; they are made whether or not a run keeps them: weights are the same."""
    triangles, about = _written(systems)
    run.save(state, triangles, {"n_batches": n_batches, "done": done, "systems": about})


def _begun(run: Run, state: str) -> tuple[int, int, dict[str, Systems]]:
    """Batches and molecules whose rows a killed run kept, and these; or none."""
    if (found := run.load(state, None)) is None:
        return 0, 0, {}
    triangles, facts = found
    return facts["n_batches"], facts["done"], _read(triangles, facts["systems"])


def add_rows(
    system: dict[IrrepKey, KeyedSystem],
    x: Irreps,
    y: Irreps,
    table: SpeciesTable,
    n: int,
    weight: float = 1.0,
) -> None:
    """The rows of the first n molecules of a batch to those of every key."""
    for key in x:
        columns = real_rows(x[key], key, table, n)
        if len(columns):
            outputs = real_rows(y[key], key, table, n)
            system.setdefault(key, KeyedSystem()).add(columns, outputs, weight)


def add_iterates(
    definition: Op2Op,
    params: Params,
    part: Dataset,
    system: dict[IrrepKey, KeyedSystem],
    weight: float,
    run: Run,
) -> None:
    """Rows of the densities of the first cycles of reference SCFs, if the data have them.

    At converged densities alone a functional never sees those that lead there.
    """
    alone = jax.process_count() == 1
    own: dict[IrrepKey, KeyedSystem] = system if alone else {}
    cycles = [c for c in range(1, N_ITERATES + 1) if weight and iterate("dm", c) in part]
    for cycle in cycles:
        focks = labelled_batches(definition, part, CHUNK, iterate("fock", cycle))
        dms = labelled_batches(definition, part, CHUNK, iterate("dm", cycle))
        done = 0
        batches = enumerate(zip(focks, dms, strict=True))
        for i, ((structures, table, fock, n), (*_, dm, _)) in batches:
            if not _is_ours(i):
                continue
            sides = sides_of_density(definition, params, structures, table, fock, dm)
            x, y = sides["functional"]
            add_rows(own, x, y, table, n, weight)
            done += n
            run.progress(f"cycle {cycle} of the references", done, len(part))
    if cycles and not alone:
        found = _of_all_processes({"functional": {"train": own, "validation": {}}})
        for key, rows in found["functional"]["train"].items():
            system.setdefault(key, KeyedSystem()).join(rows)
