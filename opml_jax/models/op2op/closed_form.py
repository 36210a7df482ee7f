"""Op2Op in closed form: one ridge for every kind of block, of a first guess, functional, stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ...data import Dataset
from ...data.reference import atomic_densities
from ...features.couple import IrrepKey, key_name
from ...learn.keyed_ridge import KeyFit, best_of
from ...learn.run import Run
from ...numerics import require_x64
from ..base.definition import Params
from .draws import up_to
from .functions import Op2Op
from .selection import best_fade, converging, judged_fades, judges_of
from .systems import (
    Candidates,
    Systems,
    candidates,
    gathered,
    least_spreads,
    sides_at_reference,
    sides_of_stage,
)
from .variance import calibrated, drawn


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """Result of :func:`fit_closed_form`.

    Attributes:
      params: of the model.
      keys: for ``guess``, ``functional`` and ``stage 1``, ..., what was chosen for each key.
      floors: mean absolute error of self-consistent Fock matrices on validation, Hartree, by the
        smallest lambda of the functional; infinite where they did not converge.
      fades: mean absolute errors of occupied levels and of the gap of first guesses there, added,
        Hartree, by the scale of :func:`opml_jax.models.op2op.fading.faded`; empty if not judged.
    """

    params: Params
    keys: dict[str, dict[IrrepKey, KeyFit]]
    floors: dict[float, float] = dataclasses.field(default_factory=dict)
    fades: dict[float, float] = dataclasses.field(default_factory=dict)


def fit_closed_form(definition: Op2Op, sets: Mapping[str, Dataset], run: Run) -> ClosedForm:
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

    Raises:
      PrecisionError: x64 is off.
    """
    require_x64("training")
    fit = _fit_stage if definition.config.stages else _fit_at_reference
    solved = fit(definition, sets, run)
    if not definition.config.uncertainty:
        return solved
    with run.stage("uncertainty"):
        held_out = sets.get("calibration", sets["validation"])
        params = calibrated(definition, solved.params, held_out)
    return dataclasses.replace(solved, params=params)


def _fit_at_reference(definition: Op2Op, sets: Mapping[str, Dataset], run: Run) -> ClosedForm:
    """A first guess, and perhaps the functional of a density that is made self-consistent."""
    atoms = atomic_densities(definition.basis) if definition.config.baseline == "superposed" else {}
    start: Params = {"atoms": atoms} if atoms else {}
    systems = gathered(definition, start, sets, run, sides_at_reference)
    solved = {part: candidates(definition, system) for part, system in systems.items()}
    judges = judges_of(sets["validation"])
    first = up_to(definition, 0)
    guess = _chosen(first, {"guess": solved["guess"]}, 0.0, start).params
    fades = judged_fades(first, lambda scale: {**guess, "fade": scale}, judges, run)
    if best := best_fade(fades):
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
        start = faded(scale)
    floor = min(floors, key=lambda f: (floors[f], -f), default=0.0)
    chosen = _chosen(definition, solved, floor, start)
    if definition.config.uncertainty:
        last = "functional" if "functional" in solved else "guess"
        chosen.params["draws"] = _draws(definition, systems[last], solved[last], floor)
    return dataclasses.replace(chosen, floors=floors, fades=fades)


def _fit_stage(definition: Op2Op, sets: Mapping[str, Dataset], run: Run) -> ClosedForm:
    """The last stage, after those before it."""
    number = definition.config.stages - 1
    before = fit_closed_form(up_to(definition, number), sets, run)
    system = gathered(definition, before.params, sets, run, sides_of_stage)["functional"]
    solved = candidates(definition, system)
    weights, keys = _functional(definition, solved)
    stages = before.params.get("stages", {})

    def with_stage(**fade: float) -> Params:
        return {**before.params, "stages": {**stages, str(number): {**weights, **fade}}}

    judges = judges_of(sets["validation"])
    fades = judged_fades(definition, lambda scale: with_stage(functional_fade=scale), judges, run)
    best = best_fade(fades)
    params = with_stage(functional_fade=best) if best else with_stage()
    if definition.config.uncertainty:
        params["draws"] = _draws(definition, system, solved)
    return ClosedForm(params, {**before.keys, f"stage {number + 1}": keys}, fades=fades)


def _draws(definition: Op2Op, systems: Systems, solved: Candidates, floor: float = 0.0) -> Params:
    """What standard deviations need, of the last linear map."""
    best = {key: best_of(weights, floor) for key, weights in solved.items()}
    sets = systems["train"], systems["validation"]
    return drawn(definition, *sets, least_spreads(definition, systems["train"]), best)


def _chosen(
    definition: Op2Op, solved: Mapping[str, Candidates], floor: float, start: Params
) -> ClosedForm:
    """Parameters with the best lambda of every key, of the functional not below ``floor``."""
    params: Params = {**start, "guess": {}}
    keys: dict[str, dict[IrrepKey, KeyFit]] = {part: {} for part in solved}
    for key, weights in solved["guess"].items():
        params["guess"][key_name(key)], keys["guess"][key] = best_of(weights)
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
