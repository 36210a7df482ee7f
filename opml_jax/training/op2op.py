"""Op2Op in closed form: one ridge for every kind of block, its rows streamed molecule by molecule.

The rows of a key are never kept: a triangle (QR) of descriptors and labels holds all that least
squares needs, of training and of validation alike, and costs no precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import layout_of
from ..data import Dataset
from ..data.plausibility import check_finite
from ..errors import ConventionError, DataError, refusal
from ..features.couple import IrrepKey, couple_species
from ..models.op2op import Op2Op, Params, batches, has_constant, key_name, n_electrons
from ..numerics import require_x64
from ..observables import density_matrix
from ..operators.species import gather_species

LAMBDAS = tuple(10.0 ** np.arange(-11.0, 1.5, 1.0))
"""Candidates for the regularisation of columns of unit variance, by the number of rows.

Smaller ones serve the reference's densities and not the way there: on water, self-consistent
orbital energies are 3e-6 Hartree from the labels with 1e-14 and 6e-8 with 1e-11.
"""

CHUNK = 8
"""Molecules at once."""

VANISHING = 1e-10
"""Columns this much smaller than the largest of their key are rounding errors."""


class KeyedSystem:
    """Least squares of one key: rows ``[1, x, y]`` as a triangle."""

    def __init__(self):
        self._rows: list[np.ndarray] = []
        self._kept = 0
        self.n_rows = 0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Rows ``(n, n_columns)`` and ``(n, n_outputs)``."""
        rows = np.concatenate([np.ones((len(x), 1)), x, y], axis=1)
        self._rows.append(rows)
        self._kept += len(rows)
        self.n_rows += len(rows)
        if self._kept > 3 * rows.shape[1]:  # a triangle and twice as many: QR pays
            self.triangle()

    def triangle(self) -> np.ndarray:
        """What is left of the rows: as many as columns at most."""
        rows = np.concatenate(self._rows)
        if len(rows) > rows.shape[1]:
            rows = np.linalg.qr(rows, mode="r")
        self._rows, self._kept = [rows], len(rows)
        return rows

    def sum_of_squares(self, coefficients: np.ndarray) -> float:
        """Of the rows times ``coefficients`` ``(1 + n_columns + n_outputs, ...)``."""
        return float(((self.triangle() @ coefficients) ** 2).sum())


@dataclasses.dataclass(frozen=True)
class KeyFit:
    """What was chosen for a key.

    Attributes:
      lam: the regularisation.
      rmse: of the irreps, on validation, in the unit of the matrix.
      left: that, over the root mean square of what was to be learned.
    """

    lam: float
    rmse: float
    left: float


def solve_key(
    train: KeyedSystem, validation: KeyedSystem, n_outputs: int, constant: bool
) -> tuple[dict[str, np.ndarray], KeyFit] | None:
    """Weights of one key, lambda chosen by validation; None if it vanishes by symmetry.

    Returns:
      ``weights`` ``(n_columns, n_outputs)`` and, if asked for, ``constant`` ``(n_outputs,)``.
    """
    rows = train.triangle()
    r = np.linalg.qr(rows, mode="r")
    n, n_columns = train.n_rows, r.shape[1] - 1 - n_outputs
    # the first column is the constant: below its row the triangle is that of centred rows
    mean = r[0, 1:] / r[0, 0] if constant else np.zeros(r.shape[1] - 1)
    body = r[1:, 1:] if constant else np.linalg.qr(rows[:, 1:], mode="r")
    x, y = body[:, :n_columns], body[:, n_columns:]
    spread = np.sqrt((x**2).sum(axis=0) / n)
    size = np.sqrt((rows[:, 1 : 1 + n_columns] ** 2).sum(axis=0) / n)
    wanted = np.sqrt((y**2).sum(axis=0) / n)
    if not size.max() > 0 or not wanted.max() > 1e-12:
        return None
    inverse = np.where(spread > VANISHING * size.max(), 1 / np.maximum(spread, 1e-300), 0.0)
    u, s, vt = np.linalg.svd(x * inverse, full_matrices=False)
    projected = u.T @ y
    best = None
    for lam in LAMBDAS:
        filtered = s / (s * s + lam * n)
        w = inverse[:, None] * (vt.T @ (filtered[:, None] * projected))
        c = mean[n_columns:] - mean[:n_columns] @ w
        error = validation.sum_of_squares(np.concatenate([c[None], w, -np.eye(n_outputs)]))
        if best is None or error < best[0]:
            best = error, lam, w, c
    error, lam, w, c = best
    rmse = (error / (validation.n_rows * n_outputs)) ** 0.5
    fit = KeyFit(lam, rmse, rmse / float(np.sqrt((wanted**2).mean())))
    return ({"weights": w, "constant": c} if constant else {"weights": w}), fit


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Result of :func:`fit_op2op`.

    Attributes:
      params: of the model.
      keys: for ``guess`` and ``functional``, what was chosen for each key.
    """

    params: Params
    keys: dict[str, dict[IrrepKey, KeyFit]]


def _padded(matrices: Sequence[np.ndarray], size: int, nao: int) -> np.ndarray:
    out = np.zeros((size, nao, nao))
    for i, m in enumerate(matrices):
        out[i, : len(m), : len(m)] = m
    return out


def _rows(x: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Rows of real blocks."""
    x = np.asarray(x)[real]
    return x.reshape(-1, x.shape[-1])


def check_operators(definition: Op2Op, name: str, part: Dataset) -> None:
    """Refuse data that an Op2Op model cannot be fitted to.

    Args:
      definition: the model's functions.
      name: of the data, for the message.
      part: the data.

    Raises:
      DataError: no Fock matrices, open shells, NaN.
      ConventionError: matrices of another basis.
    """
    if "fock" not in part or not len(part):
        raise DataError(refusal(name, got=repr(part), expected="structures with the label 'fock'"))
    if odd := [s for s in part.structures if s.spin or n_electrons(s) % 2]:
        raise DataError(refusal(name, got=repr(odd[0]), expected="closed shells"))
    check_finite(name, {"fock": part.labels["fock"]})
    part.check_layout(definition.basis)
    for structure, fock in zip(part.structures, part.labels["fock"], strict=True):
        if len(fock) != (nao := layout_of(structure, definition.basis).nao):
            raise ConventionError(
                refusal(
                    f"Fock matrix of {structure!r}",
                    got=f"{len(fock)} functions",
                    expected=f"{nao}, as {definition.basis!r} has",
                    hint="Set operator.basis to the basis of the labels.",
                )
            )


def fit_op2op(
    definition: Op2Op,
    train: Dataset,
    validation: Dataset,
    *,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Fitted:
    """Weights of the guess and of the functional, at the density matrices of the reference.

    Args:
      definition: the model's functions.
      train: structures with ``fock`` in the library's AO order; densities are made from it.
      validation: likewise; chooses lambda for every key.
      on_progress: called with (stage, done, total).

    Raises:
      DataError: no Fock matrices, open shells, NaN.
      ConventionError: matrices of another basis.
      PrecisionError: x64 is off.
    """
    require_x64("training")
    for name, part in (("train", train), ("validation", validation)):
        check_operators(definition, name, part)
    stages = ["guess"] + ["functional"] * bool(definition.config.density_words)
    systems: dict[str, dict[str, dict[IrrepKey, KeyedSystem]]] = {
        stage: {"train": {}, "validation": {}} for stage in stages
    }
    total, done = len(train) + len(validation), 0

    @jax.jit
    def features(structures, table, fock):
        operators = definition.operators(structures)
        known = definition.known_irreps(operators, table)
        out = {"guess": (known, irreps(fock - operators["T"] - operators["W"], table))}
        if "functional" in stages:
            electrons, mask = n_electrons(structures), structures.layout.ao_mask
            dm = density_matrix(fock, operators["S"], electrons, mask=mask)
            operators = definition.with_density(structures, operators, dm)
            density = definition.density_irreps(operators, table)
            x = {k: jnp.concatenate([known[k], density[k]], axis=-1) for k in known}
            out["functional"] = x, irreps(fock - operators["T"] - operators["U"], table)
        return out

    def irreps(matrix, table):
        return couple_species(gather_species(matrix, table), definition.basis.spec)

    for name, part in (("train", train), ("validation", validation)):
        for structures, table, index in batches(definition, part.structures, CHUNK):
            n, nao = structures.n_structures, structures.layout.nao
            labels = [part.labels["fock"][i] for i in index]
            labels += [labels[-1]] * (n - len(labels))
            found = features(structures, table, jnp.asarray(_padded(labels, n, nao)))
            for stage, (x, y) in found.items():
                for key in x:
                    own = (abs(key[0]), *key[1:3])
                    inside = np.asarray(table.rows[own])[:, 0] < nao
                    real = inside & (np.asarray(table.molecule[own]) < len(index))
                    if real.any():
                        system = systems[stage][name].setdefault(key, KeyedSystem())
                        system.add(_rows(x[key], real), _rows(y[key], real))
            done += len(index)
            on_progress("closed form", done, total)
    solved: dict[str, dict[IrrepKey, tuple]] = {}
    for stage in stages:
        solved[stage] = {}
        for key, system in systems[stage]["train"].items():
            judge = systems[stage]["validation"].get(key, system)
            found = solve_key(system, judge, definition.n_outputs(key), has_constant(key))
            if found is not None:
                solved[stage][key] = found
    keys = {stage: {k: fit for k, (_, fit) in own.items()} for stage, own in solved.items()}
    params: Params = {"guess": {key_name(k): w for k, (w, _) in solved["guess"].items()}}
    if "functional" in stages:
        params |= {"known": {}, "density": {}}
        n_known = definition.n_known
        for key, (own, _) in solved["functional"].items():
            cut = n_known * definition.n_outputs(key)  # as many shell pairs as outputs
            params["known"][key_name(key)] = {**own, "weights": own["weights"][:cut]}
            params["density"][key_name(key)] = {"weights": own["weights"][cut:]}
    return Fitted(params, keys)
