"""Op2Op in closed form: one ridge for every kind of block, its rows streamed molecule by molecule.

The rows of a key are never kept: a triangle (QR) of descriptors and labels holds all that least
squares needs, of training and of validation alike, and costs no precision.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ..basis import layout_of
from ..data import Dataset
from ..data.plausibility import check_finite
from ..data.reference import atomic_densities, molecule
from ..errors import Code, ConventionError, ConvergenceError, DataError, DataWarning, refusal
from ..features.couple import IrrepKey, couple_species, has_constant, key_name
from ..models import OperatorModel
from ..models.linear import triangle
from ..models.op2op import Op2Op, Params, batches, joined, n_electrons
from ..numerics import Array, require_x64
from ..observables import density_matrix
from ..operators.species import SpeciesTable, gather_species
from .operator_metrics import MICRO, describe, operator_errors

LAMBDAS = tuple(10.0 ** np.arange(-14.0, 1.5, 1.0))
"""Candidates for the regularisation of columns of unit variance, by the number of rows."""

UNJUDGED = 1e-3
"""Least lambda of a key that validation lacks.

Its rows are few (a rare pair of elements): the least lambda would fit them exactly, and nothing
says how far they can be trusted. With two N-O pairs in training, mean errors of a molecule of QM7
reached 0.02 Hartree.
"""

FLOORS = (1e-11, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
"""Candidates for the smallest lambda of all keys.

Each key's own validation is at the reference's densities, and says nothing about the way there: a
map that serves them too well amplifies errors of the density. The floor is therefore chosen by
self-consistent predictions.
"""

N_JUDGED = 40
"""Validation structures that floors are judged by, at most."""

FADES = (0.0, 3e-3, 1e-2, 3e-2, 0.1)
"""Candidates for the eigenvalue of the overlap below which first guesses fade.

Judged by levels on validation: of 40 molecules of QM7 in def2-SVP a prediction that is right to
0.5 mHartree had gaps wrong by 125, and by 6 with the scale that validation chose.
"""

PAYS = 0.5
"""A fade must bring errors of levels below this part of those without: it also costs a little where
nothing is wrong (ethanol in def2-SVP: 0.01 mHartree in the elements)."""

FUNCTIONAL_FADES = (3e-4, 1e-3, 3e-3)
"""Candidates for the scale below which self-consistent matrices fade, if first guesses do.

The least is taken with which the densities of validation converge. Of 20 molecules of QM7 in
def2-SVP, five, with eigenvalues of the overlap below 9e-4, diverge without: errors of functions
that hardly exist become occupied levels. Mean errors of elements grow from 42 microhartree to 80 at
1e-3 and 182 at 3e-3.
"""

FADED_FLOORS = (1e-8, 1e-7, 1e-6, 1e-5)
"""Candidates for the smallest lambda where matrices fade.

Smaller ones are worse there: with a scale of 1e-3 those five molecules have 132 microhartree with
1e-9, 85 with 1e-6.
"""

SMALL_OVERLAP = 0.01
"""Fades are judged if the overlap of a validation structure has a smaller eigenvalue."""

NEVER_SEEN = 0.01
"""Columns are standardised by this part of the spread that they have at other elements, at least.

A column that hardly varies for one element (pairs of nitrogens that were never bonded) would else
be magnified a million times in a molecule where it does.
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
            rows = triangle(rows)
        self._rows, self._kept = [rows], len(rows)
        return rows

    def spreads(self, n_outputs: int, constant: bool) -> np.ndarray:
        """Standard deviations ``(n_columns,)``, about zero where there is no constant."""
        rows = self.triangle()
        x = rows[:, 1:-n_outputs]
        mean = rows[:, 0] @ x / (rows[:, 0] @ rows[:, 0]) if constant else 0.0
        return np.sqrt(((x - rows[:, :1] * mean) ** 2).sum(axis=0) / self.n_rows)

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


Candidate = tuple[dict[str, np.ndarray], KeyFit]
"""``weights`` ``(n_columns, n_outputs)`` and perhaps ``constant`` ``(n_outputs,)``, and the fit."""


def solve_key(
    train: KeyedSystem,
    validation: KeyedSystem | None,
    n_outputs: int,
    constant: bool,
    least: np.ndarray | float = 0.0,
) -> list[Candidate]:
    """Weights of one key for each of :data:`LAMBDAS`; none if it vanishes by symmetry.

    Of a key that validation lacks (None) those from :data:`UNJUDGED` on, by what training leaves.
    Columns that spread less than ``least`` are standardised by it.
    """
    rows = train.triangle()
    r = triangle(rows)
    n, n_columns = train.n_rows, r.shape[1] - 1 - n_outputs
    # the first column is the constant: below its row the triangle is that of centred rows
    mean = r[0, 1:] / r[0, 0] if constant else np.zeros(r.shape[1] - 1)
    body = r[1:, 1:] if constant else triangle(rows[:, 1:])
    x, y = body[:, :n_columns], body[:, n_columns:]
    spread = np.sqrt((x**2).sum(axis=0) / n)
    size = np.sqrt((rows[:, 1 : 1 + n_columns] ** 2).sum(axis=0) / n)
    wanted = np.sqrt((y**2).sum(axis=0) / n)
    if not size.max() > 0 or not wanted.max() > 1e-12:
        return []
    floored = np.maximum(np.maximum(spread, least), 1e-300)
    inverse = np.where(spread > VANISHING * size.max(), 1 / floored, 0.0)
    u, s, vt = np.linalg.svd(x * inverse, full_matrices=False)
    projected = u.T @ y
    judge, out = validation or train, []
    for lam in LAMBDAS if validation else [lam for lam in LAMBDAS if lam >= UNJUDGED]:
        filtered = s / (s * s + lam * n)
        w = inverse[:, None] * (vt.T @ (filtered[:, None] * projected))
        c = mean[n_columns:] - mean[:n_columns] @ w
        error = judge.sum_of_squares(np.concatenate([c[None], w, -np.eye(n_outputs)]))
        rmse = (error / (judge.n_rows * n_outputs)) ** 0.5
        fit = KeyFit(lam, rmse, rmse / float(np.sqrt((wanted**2).mean())))
        out.append(({"weights": w, "constant": c} if constant else {"weights": w}, fit))
    return out


def best_of(candidates: Sequence[Candidate], floor: float = 0.0) -> Candidate:
    """The candidate of smallest validation error whose lambda is not below ``floor``."""
    allowed = [c for c in candidates if c[1].lam >= 0.99 * floor]
    return min(allowed, key=lambda c: c[1].rmse)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Result of :func:`fit_op2op`.

    Attributes:
      params: of the model.
      keys: for ``guess`` and ``functional``, what was chosen for each key.
      floors: mean absolute error of self-consistent Fock matrices on validation, Hartree, by the
        smallest lambda of the functional; infinite where they did not converge.
      fades: mean absolute errors of occupied levels and of the gap of first guesses there, added,
        Hartree, by the scale of :func:`opml_jax.models.fading.faded`; empty if not judged.
    """

    params: Params
    keys: dict[str, dict[IrrepKey, KeyFit]]
    floors: dict[float, float]
    fades: dict[float, float]


def padded(matrices: Sequence[np.ndarray], size: int, nao: int) -> np.ndarray:
    """Matrices in one array, ``(size, nao, nao)``."""
    out = np.zeros((size, nao, nao))
    for i, m in enumerate(matrices):
        out[i, : len(m), : len(m)] = m
    return out


def _rows(x: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Rows of real blocks."""
    x = np.asarray(x)[real]
    return x.reshape(-1, x.shape[-1])


def real_rows(key: tuple[int, ...], table: SpeciesTable, n: int) -> np.ndarray:
    """Which blocks of a kind are those of the first n molecules, and not padding."""
    own = (abs(key[0]), key[1], key[2])
    inside = np.asarray(table.rows[own])[:, 0] < np.iinfo(np.int32).max
    return inside & (np.asarray(table.molecule[own]) < n)


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
        raise DataError(
            refusal(name, got=repr(part), expected="structures with the label 'fock'"),
            code=Code.LABEL,
        )
    if odd := [s for s in part.structures if s.spin or n_electrons(s) % 2]:
        raise DataError(
            refusal(name, got=repr(odd[0]), expected="closed shells"), code=Code.ELECTRONS
        )
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
                ),
                code=Code.LAYOUT,
            )


def up_to(definition: Op2Op, stages: int) -> Op2Op:
    """The same model with its first stages only; 0: the first guess alone."""
    parts = {"stages": stages} if stages else {"stages": 0, "density_words": (), "network": None}
    return dataclasses.replace(definition, config=dataclasses.replace(definition.config, **parts))


def last_columns(
    definition: Op2Op, params: Params, structures, table: SpeciesTable
) -> tuple[dict[str, Array], dict[IrrepKey, Array]]:
    """What the last linear map of a model reads: the first guess', or its last stage's.

    Returns:
      The operators, and the columns of every key.
    """
    operators = definition.operators(structures, table)
    known = definition.known_irreps(operators, table)
    if not definition.config.stages:
        return operators, known
    before = up_to(definition, definition.config.stages - 1)
    dm = before.apply(params, structures, table)["dm"]
    operators = definition.with_density(structures, operators, dm)
    return operators, joined(known, definition.density_irreps(operators, table))


def _irreps(definition: Op2Op, matrix: Array, table: SpeciesTable) -> dict[IrrepKey, Array]:
    return couple_species(gather_species(matrix, table), definition.basis.spec)


@functools.partial(jax.jit, static_argnums=0)
def _stage_systems(definition: Op2Op, params: Params, structures, table: SpeciesTable, fock: Array):
    """Irreps of the words of the last stage, and of what they are to make."""
    operators, x = last_columns(definition, params, structures, table)
    left = fock - operators["T"] - operators["U"]
    return {"functional": (x, _irreps(definition, left, table))}


@functools.partial(jax.jit, static_argnums=0)
def _systems(definition: Op2Op, drawn: Params, structures, table: SpeciesTable, fock: Array):
    """Irreps of words and of what they are to make, for ``guess`` and perhaps ``functional``."""
    operators = definition.operators(structures, table)
    known = definition.known_irreps(operators, table)
    electrons, mask = n_electrons(structures), structures.layout.ao_mask
    dm = density_matrix(fock, operators["S"], electrons, mask=mask)
    wanted = fock if definition.config.target == "fock" else dm
    left = wanted - definition.baseline(drawn, structures, operators, table)
    out = {"guess": (known, _irreps(definition, left, table))}
    if definition.config.density_words:
        operators = definition.with_density(structures, operators, dm)
        columns = joined(known, definition.density_irreps(operators, table))
        left = fock - operators["T"] - operators["U"]
        out["functional"] = (columns, _irreps(definition, left, table))
    return out


def fit_op2op(
    definition: Op2Op,
    train: Dataset,
    validation: Dataset,
    *,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Fitted:
    """Weights of the guess and of the functional, at the density matrices of the reference.

    Each key chooses its lambda by validation at the reference's densities; the smallest one that
    the functional may choose is the one with the best self-consistent matrices. Stages are fitted
    at the densities of the stage before instead.

    Args:
      definition: the model's functions.
      train: structures with ``fock`` in the library's AO order; densities are made from it.
      validation: likewise; chooses lambdas.
      on_progress: called with (stage, done, total).

    Raises:
      DataError: no Fock matrices, open shells, NaN.
      ConventionError: matrices of another basis.
      PrecisionError: x64 is off.
    """
    require_x64("training")
    for name, part in (("train", train), ("validation", validation)):
        check_operators(definition, name, part)
    if definition.config.stages:
        return _fit_stage(definition, train, validation, on_progress)
    atoms = atomic_densities(definition.basis) if definition.config.baseline == "superposed" else {}
    drawn: Params = {"atoms": atoms} if atoms else {}
    systems = _gathered(definition, drawn, train, validation, on_progress)
    solved = {stage: _candidates(definition, own) for stage, own in systems.items()}
    judges = validation.subset(range(min(N_JUDGED, len(validation))))
    first = up_to(definition, 0)
    guess = _chosen(first, {"guess": solved["guess"]}, 0.0, drawn).params
    fades = _judged_fades(first, lambda scale: {**guess, "fade": scale}, judges, on_progress)
    if best := _best_fade(fades):
        drawn["fade"] = best
    if "functional" not in solved:
        return dataclasses.replace(_chosen(definition, solved, 0.0, drawn), fades=fades)
    for scale in FUNCTIONAL_FADES if "fade" in drawn else (0.0,):
        drawn |= {"functional_fade": scale} if scale else {}
        floors = _judged_floors(definition, solved, drawn, judges, on_progress)
        if np.isfinite(min(floors.values())):
            break
    floor = min(floors, key=lambda f: (floors[f], -f))
    found = _chosen(definition, solved, floor, drawn)
    return dataclasses.replace(found, floors=floors, fades=fades)


def _fit_stage(definition: Op2Op, train: Dataset, validation: Dataset, on_progress) -> Fitted:
    """The last stage, after those before it."""
    number = definition.config.stages - 1
    before = fit_op2op(up_to(definition, number), train, validation, on_progress=on_progress)
    found = _gathered(definition, before.params, train, validation, on_progress, _stage_systems)
    weights, keys = _functional(definition, _candidates(definition, found["functional"]))
    stages = before.params.get("stages", {})
    params = {**before.params, "stages": {**stages, str(number): weights}}
    judges = validation.subset(range(min(N_JUDGED, len(validation))))

    def with_fade(scale: float) -> Params:
        return {**params, "stages": {**stages, str(number): {**weights, "functional_fade": scale}}}

    fades = _judged_fades(definition, with_fade, judges, on_progress)
    if best := _best_fade(fades):
        weights["functional_fade"] = best
    return Fitted(params, {**before.keys, f"stage {number + 1}": keys}, {}, fades)


Systems = dict[str, dict[IrrepKey, KeyedSystem]]
"""Least squares of every key, of ``train`` and of ``validation``."""


def _gathered(
    definition: Op2Op,
    drawn: Params,
    train: Dataset,
    validation: Dataset,
    on_progress,
    systems_of=_systems,
) -> dict[str, Systems]:
    """Least squares of every stage that ``systems_of`` gives, molecule by molecule."""
    total, done = len(train) + len(validation), 0
    systems: dict[str, Systems] = {}
    lacking: set[IrrepKey] = set()
    for name, part in (("train", train), ("validation", validation)):
        for structures, table, index in batches(definition, part.structures, CHUNK):
            n, nao = structures.n_structures, structures.layout.nao
            labels = [part.labels["fock"][i] for i in index]
            labels += [labels[-1]] * (n - len(labels))
            found = systems_of(definition, drawn, structures, table, padded(labels, n, nao))
            for x, y in found.values():
                lacking |= y.keys() - x.keys()
            for stage, (x, y) in found.items():
                own = systems.setdefault(stage, {"train": {}, "validation": {}})[name]
                for key in x:
                    real = real_rows(key, table, len(index))
                    if real.any():
                        own.setdefault(key, KeyedSystem()).add(
                            _rows(x[key], real), _rows(y[key], real)
                        )
            done += len(index)
            on_progress("closed form", done, total)
    if lacking:
        warnings.warn(
            f"the input basis {definition.config.input_basis!r} has no irreps for {len(lacking)} "
            f"kinds of block ({'; '.join(map(describe, sorted(lacking)[:3]))}, ...): the first "
            "guess keeps its baseline there. Choose a basis with higher angular momenta.",
            DataWarning,
            stacklevel=3,
        )
    return systems


def _candidates(definition: Op2Op, systems: Systems) -> dict[IrrepKey, list[Candidate]]:
    """Weights of every key for every lambda."""
    spreads = {
        key: system.spreads(definition.n_outputs(key), has_constant(key))
        for key, system in systems["train"].items()
    }
    widest: dict[tuple[int, ...], np.ndarray] = {}
    for key, own in spreads.items():
        alike = _alike(key, spreads)
        widest[alike] = np.maximum(widest.get(alike, 0.0), own)
    found = {
        key: solve_key(
            system,
            systems["validation"].get(key),
            definition.n_outputs(key),
            has_constant(key),
            NEVER_SEEN * widest[_alike(key, spreads)],
        )
        for key, system in systems["train"].items()
    }
    return {key: own for key, own in found.items() if own}


def _judged_fades(
    definition: Op2Op, with_fade: Callable[[float], Params], judges: Dataset, on_progress
) -> dict[float, float]:
    """Errors of levels by the scale of a fade; empty where no overlap is small."""
    if definition.config.target != "fock" or not _small_overlap(definition, judges):
        return {}
    fades = {}
    for i, scale in enumerate(FADES):
        on_progress("fade", i, len(FADES))
        fades[scale] = level_error(definition, with_fade(scale), judges)
    on_progress("fade", len(FADES), len(FADES))
    return fades


def _best_fade(fades: dict[float, float]) -> float:
    """The scale with the least error, 0 unless it pays."""
    best = min(fades, key=lambda f: fades[f], default=0.0)
    return best if best and fades[best] < PAYS * fades.get(0.0, np.inf) else 0.0


def _judged_floors(
    definition: Op2Op, solved, drawn: Params, judges: Dataset, on_progress
) -> dict[float, float]:
    """Errors of self-consistent matrices by the smallest lambda of the functional."""
    floors: dict[float, float] = {}
    candidates = FADED_FLOORS if "functional_fade" in drawn else FLOORS
    for i, floor in enumerate(candidates):
        on_progress("self-consistent", i, len(candidates))
        params = _chosen(definition, solved, floor, drawn).params
        floors[floor] = mean_error(definition, params, judges)
        if floors[floor] > 2 * min(floors.values()) and np.isfinite(min(floors.values())):
            break  # larger ones are worse still
    on_progress("self-consistent", len(candidates), len(candidates))
    return floors


def _small_overlap(definition: Op2Op, data: Dataset) -> bool:
    """Whether the overlap of a structure has an eigenvalue below :data:`SMALL_OVERLAP`."""
    return any(
        np.linalg.eigvalsh(molecule(s, definition.basis).intor("int1e_ovlp"))[0] < SMALL_OVERLAP
        for s in data.structures
    )


def _alike(key: IrrepKey, spreads: dict[IrrepKey, np.ndarray]) -> tuple[int, ...]:
    """Keys of other elements with the same columns."""
    kind, _, _, *irrep = key
    return (kind, *irrep, len(spreads[key]))


def _chosen(definition: Op2Op, solved, floor: float, drawn: Params) -> Fitted:
    """Parameters with the best lambda of every key, of the functional not below ``floor``."""
    params: Params = {**drawn, "guess": {}}
    keys: dict[str, dict[IrrepKey, KeyFit]] = {stage: {} for stage in solved}
    for key, candidates in solved["guess"].items():
        params["guess"][key_name(key)], keys["guess"][key] = best_of(candidates)
    if "functional" in solved:
        weights, keys["functional"] = _functional(definition, solved["functional"], floor)
        params |= weights
    return Fitted(params, keys, {}, {})


def _functional(
    definition: Op2Op, candidates: dict[IrrepKey, list[Candidate]], floor: float = 0.0
) -> tuple[Params, dict[IrrepKey, KeyFit]]:
    """``known`` and ``density``, with the best lambda of every key that is not below ``floor``."""
    best = {key: best_of(own, floor) for key, own in candidates.items()}
    weights = split_columns(definition, {key: own for key, (own, _) in best.items()})
    return weights, {key: fit for key, (_, fit) in best.items()}


def split_columns(definition: Op2Op, weights: dict[IrrepKey, Params]) -> Params:
    """Weights of all columns of every key as those of known words and of the density's."""
    out: Params = {"known": {}, "density": {}}
    for key, own in weights.items():
        cut, name = definition.n_known(key), key_name(key)
        known = {**own, "weights": own["weights"][:cut]}
        rest = {**own, "weights": own["weights"][cut:]}
        if cut:  # an input basis may lack it
            out["known"][name] = known
            rest.pop("constant", None)
        out["density"][name] = rest
    return out


def mean_error(definition: Op2Op, params: Params, data: Dataset) -> float:
    """Mean absolute error of an element of F, Hartree; infinite if a density does not converge."""
    found = _predicted(definition, params, data)
    if found is None:
        return float("inf")
    left = [
        np.abs(found["fock"][i, : len(f), : len(f)] - f).ravel()
        for i, f in enumerate(data.labels["fock"])
    ]
    return float(np.concatenate(left).mean())


def level_error(definition: Op2Op, params: Params, data: Dataset) -> float:
    """Mean absolute errors of occupied levels and of the gap, added; likewise."""
    found = _predicted(definition, params, data)
    if found is None:
        return float("inf")
    out = operator_errors(found, data)
    return (out["eigenvalue_occupied_mae_uha"] + out.get("gap_mae_uha", 0.0)) / MICRO


def _predicted(definition: Op2Op, params: Params, data: Dataset) -> dict[str, np.ndarray] | None:
    """Predictions, or None if a density does not converge."""
    with warnings.catch_warnings(action="ignore", category=DataWarning):
        try:
            return OperatorModel(definition, params).predict(data.structures)
        except ConvergenceError:
            return None
