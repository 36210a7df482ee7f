"""How far operators reach: block norms against distance, and what a cutoff costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..basis import AOLayout, Basis
from ..errors import ConventionError, refusal
from ..features import AtomFeatures
from ..features.inputs import OPERATORS
from ..operators import Operator, lowdin, overlap, plan
from ..structures import Structure


def block_norms(
    operator: Operator, structure: Structure
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Frobenius norms of atom-pair blocks against distance.

    Args:
      operator: of one molecule.
      structure: the molecule.

    Returns:
      ``{(Z_i, Z_j): (distance, norm)}`` for Z_i <= Z_j and i != j: ``(n_pairs,)`` Bohr, and the
      norms.

    Raises:
      ConventionError: the operator of a batch.
    """
    layout = operator.layout
    if not isinstance(layout, AOLayout):
        got = "the operator of a batch"
        raise ConventionError(refusal("operator", got=got, expected="that of one molecule"))
    starts = layout.offsets[:-1]
    squares = np.asarray(operator.to_dense(), float) ** 2
    norms = np.add.reduceat(np.add.reduceat(squares, starts, axis=0), starts, axis=1) ** 0.5
    positions, numbers = np.asarray(structure.positions), np.array(structure.numbers)
    i, j = np.triu_indices(len(numbers), 1)
    distance = np.linalg.norm(positions[i] - positions[j], axis=1)
    low, high = np.minimum(numbers[i], numbers[j]), np.maximum(numbers[i], numbers[j])
    out = {}
    for a, b in sorted(set(zip(low.tolist(), high.tolist(), strict=True))):
        own = (low == a) & (high == b)
        out[a, b] = (distance[own], norms[i, j][own])
    return out


def _eigenvalues(operator: Operator, structure: Structure, basis: Basis) -> np.ndarray:
    return np.linalg.eigvalsh(np.asarray(lowdin(operator, overlap(structure, basis)).to_dense()))


def cutoff_study(
    structure: Structure,
    basis: Basis,
    cutoffs: Sequence[float],
    *,
    powers: Sequence[int] = (1, 2, 3),
    operator: str = "external_potential",
    quantities: Mapping[str, Callable[[Operator], Any]] | None = None,
) -> dict[str, np.ndarray]:
    """What is lost when blocks of distant atoms are left out of an operator.

    The operator is restricted to each cutoff, and products keep to the pattern.

    Args:
      structure: the molecule.
      basis: covers its elements.
      cutoffs: Bohr.
      powers: of the features compared.
      operator: one of ``features.inputs.OPERATORS``.
      quantities: further functions of the operator, by name. Default: its eigenvalues in Löwdin's
        basis, Hartree.

    Returns:
      ``{"cutoff": ..., "kept": ..., "V^k features": ..., name: ...}``, arrays over the cutoffs:
      the fraction of the matrix kept; norm of the error of the atom features of each power over
      their norm; root mean square error of each quantity, in its own unit.
    """
    v = OPERATORS[operator](structure, basis)
    if quantities is None:
        quantities = {"eigenvalues": lambda o: _eigenvalues(o, structure, basis)}
    recipes = {k: AtomFeatures(basis.spec, (k,)) for k in powers}
    features = {k: jax.jit(recipe) for k, recipe in recipes.items()}
    exact = {k: np.asarray(f(v).array) for k, f in features.items()}
    target = {name: np.asarray(q(v)) for name, q in quantities.items()}
    rows: list[dict[str, float]] = []
    for cutoff in cutoffs:
        pattern = plan(structure, basis, float(cutoff), storage="dense")
        restricted = v.restrict(pattern)
        row = {"cutoff": float(cutoff), "kept": pattern.occupation}
        for k, f in features.items():
            error = np.asarray(f(restricted).array) - exact[k]
            row[f"V^{k} features"] = float(np.linalg.norm(error) / np.linalg.norm(exact[k]))
        bare = restricted.restrict(None)
        for name, q in quantities.items():
            row[name] = np.sqrt(np.mean(np.abs(np.asarray(q(bare)) - target[name]) ** 2))
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
