"""Op2Op in closed form: one ridge for every kind of block, rows streamed molecule by molecule."""

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
from ..models.op2op import Op2Op, Params, batches, joined, n_electrons
from ..models.op2op_draws import last_columns, up_to
from ..numerics import Array, require_x64
from ..observables import density_matrix
from ..operators.species import SpeciesTable, gather_species
from .keyed_ridge import Candidate, KeyedSystem, KeyFit, best_of, solve_key
from .op2op_variance import calibrated, drawn
from .operator_metrics import MICRO, describe, operator_errors

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
    calibration: Dataset | None = None,
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
      calibration: likewise; scales standard deviations. Default: ``validation``.
      on_progress: called with (stage, done, total).

    Raises:
      DataError: no Fock matrices, open shells, NaN.
      ConventionError: matrices of another basis.
      PrecisionError: x64 is off.
    """
    require_x64("training")
    for name, part in (("train", train), ("validation", validation)):
        check_operators(definition, name, part)
    fit = _fit_stage if definition.config.stages else _fit_first
    found = fit(definition, train, validation, on_progress)
    if definition.config.uncertainty:
        on_progress("uncertainty", 0, 1)
        params = calibrated(definition, found.params, calibration or validation)
        found = dataclasses.replace(found, params=params)
        on_progress("uncertainty", 1, 1)
    return found


def _fit_first(definition: Op2Op, train: Dataset, validation: Dataset, on_progress) -> Fitted:
    """A first guess, and perhaps the functional of a density that is made self-consistent."""
    atoms = atomic_densities(definition.basis) if definition.config.baseline == "superposed" else {}
    start: Params = {"atoms": atoms} if atoms else {}
    systems = _gathered(definition, start, train, validation, on_progress)
    solved = {stage: _candidates(definition, own) for stage, own in systems.items()}
    judges = validation.subset(range(min(N_JUDGED, len(validation))))
    first = up_to(definition, 0)
    guess = _chosen(first, {"guess": solved["guess"]}, 0.0, start).params
    fades = _judged_fades(first, lambda scale: {**guess, "fade": scale}, judges, on_progress)
    if best := _best_fade(fades):
        start["fade"] = best
    floors, last = {0.0: 0.0}, "guess"
    if "functional" in solved:
        last = "functional"
        for scale in FUNCTIONAL_FADES if "fade" in start else (0.0,):
            start |= {"functional_fade": scale} if scale else {}
            floors = _judged_floors(definition, solved, start, judges, on_progress)
            if np.isfinite(min(floors.values())):
                break
    floor = min(floors, key=lambda f: (floors[f], -f))
    found = _chosen(definition, solved, floor, start)
    if definition.config.uncertainty:
        found.params["draws"] = _draws(definition, systems[last], solved[last], floor)
    return dataclasses.replace(found, floors=floors if last == "functional" else {}, fades=fades)


def _fit_stage(definition: Op2Op, train: Dataset, validation: Dataset, on_progress) -> Fitted:
    """The last stage, after those before it."""
    number = definition.config.stages - 1
    before = fit_op2op(up_to(definition, number), train, validation, on_progress=on_progress)
    found = _gathered(definition, before.params, train, validation, on_progress, _stage_systems)
    candidates = _candidates(definition, found["functional"])
    weights, keys = _functional(definition, candidates)
    stages = before.params.get("stages", {})
    params = {**before.params, "stages": {**stages, str(number): weights}}
    judges = validation.subset(range(min(N_JUDGED, len(validation))))

    def with_fade(scale: float) -> Params:
        return {**params, "stages": {**stages, str(number): {**weights, "functional_fade": scale}}}

    fades = _judged_fades(definition, with_fade, judges, on_progress)
    if best := _best_fade(fades):
        weights["functional_fade"] = best
    if definition.config.uncertainty:
        params["draws"] = _draws(definition, found["functional"], candidates)
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
    least = _least(definition, systems["train"])
    found = {
        key: solve_key(
            system,
            systems["validation"].get(key),
            definition.n_outputs(key),
            has_constant(key),
            least[key],
        )
        for key, system in systems["train"].items()
    }
    return {key: own for key, own in found.items() if own}


def _least(definition: Op2Op, train: dict[IrrepKey, KeyedSystem]) -> dict[IrrepKey, np.ndarray]:
    """The spreads that columns are standardised by, at least."""
    spreads = {
        key: system.spreads(definition.n_outputs(key), has_constant(key))
        for key, system in train.items()
    }
    widest: dict[tuple[int, ...], np.ndarray] = {}
    for key, own in spreads.items():
        alike = _alike(key, spreads)
        widest[alike] = np.maximum(widest.get(alike, 0.0), own)
    return {key: NEVER_SEEN * widest[_alike(key, spreads)] for key in spreads}


def _draws(
    definition: Op2Op,
    systems: Systems,
    candidates: dict[IrrepKey, list[Candidate]],
    floor: float = 0.0,
) -> Params:
    """What standard deviations need, of the last linear map."""
    best = {key: best_of(own, floor) for key, own in candidates.items()}
    sets = systems["train"], systems["validation"]
    return drawn(definition, *sets, _least(definition, systems["train"]), best)


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
