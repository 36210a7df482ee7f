"""Op2Op in closed form: one ridge for every kind of block, of a first guess, functional, stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ...data import Dataset
from ...data.reference import atomic_densities
from ...features.couple import IrrepKey, has_constant, key_name
from ...learn import devices as parallel
from ...learn.few_bits import rounded
from ...learn.keyed_ridge import Candidate, KeyedSystem, KeyFit, best_of, solve_key, spectrum
from ...learn.run import Run
from ...numerics import require_x64
from ..base.definition import Params
from .config import Op2OpFit
from .draws import up_to
from .functions import Op2Op
from .local import check_local
from .rows import (
    CHUNK,
    Systems,
    add_iterates,
    gathered,
    labelled_batches,
    sides_at_reference,
    sides_of_stage,
)
from .selection import PAYS, best_fade, converging, judged_fades, judges_of, mean_error
from .variance import calibrated, drawn

NEVER_SEEN = 0.01
"""Columns are standardised by this part of the spread that they have at other elements, at least.

A column that hardly varies for one element (pairs of nitrogens that were never bonded) would else
be magnified a million times in a molecule where it does.
"""

PARTS = ("guess", "known", "density")
"""Parameters that have weights by the name of a key."""

Candidates = dict[IrrepKey, list[Candidate]]
"""Weights of every key for every lambda."""


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """Result of :func:`fit_closed_form`.

    Attributes:
      params: of the model.
      keys: for ``guess``, ``functional`` and ``stage 1``, ..., what was chosen for each key.
      floors: mean absolute error of self-consistent Fock matrices on validation, Hartree, by the
        smallest lambda of the functional; infinite where they did not converge.
      fades: mean absolute errors of occupied levels and of the gap of first guesses there, added,
        Hartree, by the scale of :func:`opml_jax.models.op2op.filters.faded`; empty if not judged.
    """

    params: Params
    keys: dict[str, dict[IrrepKey, KeyFit]]
    floors: dict[float, float] = dataclasses.field(default_factory=dict)
    fades: dict[float, float] = dataclasses.field(default_factory=dict)


def fit_closed_form(
    definition: Op2Op, sets: Mapping[str, Dataset], run: Run, settings: Op2OpFit | None = None
) -> ClosedForm:
    """Weights of the guess and of the functional, at the density matrices of the reference.

    Each key chooses its lambda by validation at the reference's densities; the smallest one that
    the functional may choose is the one with the best self-consistent matrices. Stages are fitted
    at the densities of the stage before instead.

    Args:
      definition: the model's functions.
      sets: checked structures with ``fock`` in the library's AO order; densities are made from it:
        ``train``, ``validation``, which chooses lambdas, and perhaps ``calibration``, which scales
        standard deviations in its place.
      run: told how far it is.
      settings: of the fit. Default: as they come.

    Raises:
      PrecisionError: x64 is off.
    """
    require_x64("training")
    if definition.config.stages:
        solved = _fit_stage(definition, sets, run)
    else:
        solved = _fit_at_reference(definition, sets, run, settings or Op2OpFit())
    solved = dataclasses.replace(solved, params=parallel.of_first(solved.params))
    if not definition.config.uncertainty:
        return solved
    with run.stage("uncertainty"):
        held_out = sets.get("calibration", sets["validation"])
        params = calibrated(definition, solved.params, held_out)
    return dataclasses.replace(solved, params=params)


def _fit_at_reference(
    definition: Op2Op, sets: Mapping[str, Dataset], run: Run, settings: Op2OpFit
) -> ClosedForm:
    """A first guess, and perhaps the functional of a density that is made self-consistent."""
    atoms = atomic_densities(definition.basis) if definition.config.baseline == "superposed" else {}
    origin: Params = run.origin.params if run.origin else {}
    start: Params = {"atoms": atoms} if atoms else {}
    start |= {"network": origin["network"]} if "network" in origin else {}
    systems = gathered(definition, start, sets, run, sides_at_reference)
    if "functional" in systems:
        rows = systems["functional"]["train"]
        add_iterates(definition, start, sets["train"], rows, settings.iterates, run)
    known = {"guess": origin.get("guess", {}), "functional": joined_columns(origin)}
    solved = {part: candidates(definition, s, known[part]) for part, s in systems.items()}
    judges = judges_of(sets["validation"])
    few = judges.subset(range(min(CHUNK, len(judges))))
    check_local(definition, labelled_batches(definition, few, CHUNK))
    first = up_to(definition, 0)
    guess = _chosen(first, {"guess": solved["guess"]}, 0.0, start).params
    fades = judged_fades(first, lambda scale: {**guess, "fade": scale}, judges, run)
    if best := max(best_fade(fades), float(np.max(origin.get("fade", 0.0)))):
        start["fade"] = best

    def faded(scale: float) -> Params:
        return {**start, "functional_fade": scale} if scale else start

    floors: dict[float, float] = {}
    if "functional" in solved:
        scale, floors = converging(
            definition,
            lambda scale, floor: _chosen(definition, solved, floor, faded(scale)).params,
            judges,
            run,
            fades="fade" in start,
        )
        scale = max(scale, float(np.max(origin.get("functional_fade", 0.0))))
        start = faded(scale)
    floor = min(floors, key=lambda f: (floors[f], -f), default=0.0)
    if definition.config.is_local and definition.config.projection == "auto" and floors:
        whole = {**start, "nonlocal": 1.0}

        def unprojected(_: float, floor: float) -> Params:
            return _chosen(definition, solved, floor, whole).params

        # a few molecules of one composition: matrices are right in every direction there
        tried = mean_error(definition, unprojected(0.0, floor), judges)
        if tried < PAYS * floors[floor]:
            _, floors = converging(definition, unprojected, judges, run, fades=False)
            floor, start = min(floors, key=lambda f: (floors[f], -f)), whole
    chosen = _chosen(definition, solved, floor, start)
    if settings.bits == 16:
        chosen = _in_few_bits(definition, systems, chosen)
    if definition.config.uncertainty:
        last = "functional" if "functional" in solved else "guess"
        draws = _draws(definition, systems[last], solved[last], origin, floor)
        chosen.params["draws"] = draws
    params = _over(origin, {k: v for k, v in chosen.params.items() if k != "network"})
    return dataclasses.replace(chosen, params=params, floors=floors, fades=fades)


def _in_few_bits(
    definition: Op2Op, systems: Mapping[str, Systems], chosen: ClosedForm
) -> ClosedForm:
    """The weights of a first guess and of a functional as a model file stores them in 16 bits."""
    params = dict(chosen.params)
    for part, of_part in systems.items():
        train, weights = of_part["train"], params["guess"]
        if part == "functional":
            weights = joined_columns(params)
        least, out = least_spreads(definition, train), {}
        for key, fit in chosen.keys[part].items():
            own = spectrum(train[key], definition.n_outputs(key), has_constant(key), least[key])
            out[key] = weights[key_name(key)]
            if own is not None and np.isfinite(fit.lam):  # else it is an earlier model's
                out[key] = rounded(out[key], own, fit.lam)
        if part == "functional":
            params |= split_columns(definition, out)
        else:
            params[part] = {key_name(key): linear for key, linear in out.items()}
    return dataclasses.replace(chosen, params=params)


def _over(earlier: Params, params: Params) -> Params:
    """Parameters, and those of an earlier model for keys (pairs of elements, say) they lack."""
    lacking = {k: {**earlier[k], **params[k]} for k in params if k in PARTS and k in earlier}
    return {**params, **lacking}


def _fit_stage(definition: Op2Op, sets: Mapping[str, Dataset], run: Run) -> ClosedForm:
    """The last stage, after those before it."""
    number = definition.config.stages - 1
    before = fit_closed_form(up_to(definition, number), sets, run)
    rows = gathered(definition, before.params, sets, run, sides_of_stage, f"rows_{number}")
    system = rows["functional"]
    origin: Params = run.origin.params if run.origin else {}
    earlier = origin["stages"][str(number)] if origin else {}
    solved = candidates(definition, system, joined_columns(earlier))
    weights, keys = _functional(definition, solved)
    weights = _over(earlier, weights)
    stages = before.params.get("stages", {})

    def with_stage(**fade: float) -> Params:
        return {**before.params, "stages": {**stages, str(number): {**weights, **fade}}}

    judges = judges_of(sets["validation"])
    fades = judged_fades(definition, lambda scale: with_stage(functional_fade=scale), judges, run)
    best = max(best_fade(fades), float(np.max(earlier.get("functional_fade", 0.0))))
    params = with_stage(functional_fade=best) if best else with_stage()
    if definition.config.uncertainty:
        params["draws"] = _draws(definition, system, solved, origin)
    return ClosedForm(params, {**before.keys, f"stage {number + 1}": keys}, fades=fades)


def _draws(
    definition: Op2Op, systems: Systems, solved: Candidates, origin: Params, floor: float = 0.0
) -> Params:
    """What standard deviations need, of the last linear map."""
    best = {key: best_of(weights, floor) for key, weights in solved.items()}
    sets, known = (systems["train"], systems["validation"]), origin.get("draws", {})
    least = least_spreads(definition, systems["train"])
    return {**known, **drawn(definition, *sets, least, best, known)}


def _chosen(
    definition: Op2Op, solved: Mapping[str, Candidates], floor: float, start: Params
) -> ClosedForm:
    """Parameters with the best lambda of every key, of the functional not below ``floor``."""
    best = {key: best_of(weights) for key, weights in solved["guess"].items()}
    keys = {"guess": {key: fit for key, (_, fit) in best.items()}}
    params: Params = {**start, "guess": {key_name(k): weights for k, (weights, _) in best.items()}}
    if "functional" in solved:
        functional, keys["functional"] = _functional(definition, solved["functional"], floor)
        params |= functional
    return ClosedForm(params, keys)


def _functional(
    definition: Op2Op, solved: Candidates, floor: float = 0.0
) -> tuple[Params, dict[IrrepKey, KeyFit]]:
    """``known`` and ``density``, with the best lambda of every key that is not below ``floor``."""
    best = {key: best_of(weights, floor) for key, weights in solved.items()}
    params = split_columns(definition, {key: weights for key, (weights, _) in best.items()})
    return params, {key: fit for key, (_, fit) in best.items()}


def split_columns(definition: Op2Op, weights: Mapping[IrrepKey, Params]) -> Params:
    """Weights of all columns of every key as those of known words and of the density's."""
    out: Params = {"known": {}, "density": {}}
    for key, linear in weights.items():
        cut, name = definition.n_known(key), key_name(key)
        known = {**linear, "weights": linear["weights"][:cut]}
        density = {**linear, "weights": linear["weights"][cut:]}
        if cut:  # an input basis may lack it
            out["known"][name] = known
            density.pop("constant", None)
        out["density"][name] = density
    return out


def joined_columns(params: Params) -> Params:
    """By name of a key, what :func:`split_columns` made ``known`` and ``density`` of; or nothing.

    Parameters of another kind have none.
    """
    known, out = params.get("known", {}), {}
    for name, linear in params.get("density", {}).items():
        parts = [known[name], linear] if name in known else [linear]
        out[name] = {**parts[0], "weights": np.concatenate([p["weights"] for p in parts])}
    return out


def candidates(definition: Op2Op, systems: Systems, known: Params | None = None) -> Candidates:
    """Weights of every key for every lambda; keys that vanish by symmetry have none.

    Of keys by whose names weights are ``known`` (of a model that training starts from) those are
    what solutions are drawn to.
    """
    least = least_spreads(definition, systems["train"])
    solved = {
        key: solve_key(
            system,
            systems["validation"].get(key),
            definition.n_outputs(key),
            has_constant(key),
            least[key],
            (known or {}).get(key_name(key)),
        )
        for key, system in systems["train"].items()
    }
    return {key: weights for key, weights in solved.items() if weights}


def least_spreads(
    definition: Op2Op, train: Mapping[IrrepKey, KeyedSystem]
) -> dict[IrrepKey, np.ndarray]:
    """The spreads ``(n_columns,)`` of every key that columns are standardised by, at least."""
    spreads = {
        key: system.spreads(definition.n_outputs(key), has_constant(key))
        for key, system in train.items()
    }
    # keys of other elements with the same columns
    alike = {key: (key[0], *key[3:], len(spread)) for key, spread in spreads.items()}
    widest: dict[tuple[int, ...], np.ndarray] = {}
    for key, spread in spreads.items():
        widest[alike[key]] = np.maximum(widest.get(alike[key], 0.0), spread)
    return {key: NEVER_SEEN * widest[alike[key]] for key in spreads}
