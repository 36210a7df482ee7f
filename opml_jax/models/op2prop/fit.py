"""Training of Op2Prop: descriptors, their noise, the closed form, networks, the last layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...data import Dataset
from ...learn.devices import of_first
from ...learn.ridge import stated
from ...learn.run import Run
from ...structures.elements import symbol
from ..base import Params
from ..family import Fit
from .atomwise import AtomwiseDefinition
from .changes import WORTH, fit_changes, with_numbers
from .closed_form import TENSORS, ClosedForm, fit_closed_form
from .config import AtomwiseFit
from .descriptors import Labelled, Wanted, build_cache, padded_labels, rounding_noise
from .last_layer import fit_last_layer
from .model import silenced
from .novelty import left_out_growth
from .residual import Residuals, make_inputs, train_residual

PARTS = ("train", "validation")

LEFT_OUT = "left out"
"""What is said of networks that do not pay."""

WEIGHTS, SCALING = "weights", "scaling"
"""What is taken over from a model that training starts from."""

SAID = {"": "", WEIGHTS: ", in the earlier weights", SCALING: ", in the earlier scaling alone"}

Sets = Mapping[str, Dataset]


@dataclasses.dataclass(frozen=True)
class Described:
    """All that the parts of a training read: settings, sets and rounding noise of invariants.

    ``drawn`` are parameters that descriptors need, or all those of the model that training starts
    from: with its :data:`WEIGHTS`, or with its :data:`SCALING` alone.
    """

    definition: AtomwiseDefinition
    fit: AtomwiseFit
    sets: dict[str, Labelled]
    noise: np.ndarray
    drawn: Params
    start: str = ""

    def solved(self, **sets: Labelled) -> ClosedForm:
        """The closed form, of other sets where they are given."""
        every, given = {**self.sets, **sets}, (self.definition, self.fit)
        if self.start:
            return fit_changes(*given, every, self.drawn, weights=self.start == WEIGHTS)
        return fit_closed_form(*given, every, self.noise, self.drawn)

    def chosen(self) -> tuple[Described, ClosedForm]:
        """Itself and the closed form; of a model's weights and scaling what validates better."""
        solved = self.solved()
        if self.start != WEIGHTS:
            return self, solved
        other = dataclasses.replace(self, start=SCALING)
        without = other.solved()
        better = without.energy.score < WORTH * solved.energy.score
        return (other, without) if better else (self, solved)

    @property
    def elements(self) -> Any:
        """``(n_elements,)``: whether the training set has atoms of each."""
        return self.sets["train"].cache.one_hot.any(axis=(0, 1))

    def refitted(self, params: Params, index: np.ndarray) -> Params | None:
        """Parameters with the closed form solved for part of the training set, networks silenced.

        None if these structures lack an element.
        """
        train = self.sets["train"].subset(index)
        if self.start != WEIGHTS and (train.cache.one_hot.any(axis=(0, 1)) < self.elements).any():
            return None
        return silenced({**params, **self.solved(train=train).params})


def fit_atomwise(
    definition: AtomwiseDefinition, fit: AtomwiseFit, sets: Sets, run: Run, draw: Callable
) -> Fit:
    """Train a model that reads descriptors of atoms: closed form first, then networks.

    With an origin of the run both begin with its weights, or, where these do not help, with its
    scaling.

    Args:
      definition: the model's functions.
      fit: settings.
      sets: ``train`` and ``validation``.
      run: keeps states and reports.
      draw: makes the parameters that the descriptors need.
    """
    origin = run.origin and with_numbers(run.origin.params)
    with run.stage("descriptors"):
        described = describe(definition, fit, sets, run, origin or draw())
    with run.stage("closed form") as end_with:
        described, solved = described.chosen()
        params, history = of_first(solved.params), []
        facts = _about_start(described)
        end_with(f"lambda {solved.energy.lam:.0e}{SAID[described.start]}")
    if fit.epochs or "residual" in params:
        with run.stage("network") as end_with:
            inputs = {k: make_inputs(params, part) for k, part in described.sets.items()}
            trained = train_residual(definition, fit, params, inputs, run)
            history, facts["network"] = trained.history, _judgement(definition, params, trained)
            params = params if facts["network"].startswith(LEFT_OUT) else trained.params
            end_with(facts["network"])
    if definition.config.last_layer:
        with run.stage("last layer"):
            held_out = sets["validation"]
            last_layer, lam = fit_last_layer(definition, fit, params, described.sets, held_out)
            params["last_layer"] = {**params.get("last_layer", {}), **last_layer}
    refit = functools.partial(described.refitted, params)
    ridges = {"energy": solved.energy, **solved.heads}
    facts |= {f"{name}_lambda": stated(r.lam) for name, r in ridges.items()}
    if definition.config.last_layer:
        train = described.sets["train"], sets["train"]
        facts["growth"] = left_out_growth(definition, fit, params, train, lam, refit, run)
    facts["n_invariants"] = definition.n_invariants
    return Fit(params, facts, history, refit)


def _about_start(described: Described) -> dict[str, Any]:
    """What was taken over from an earlier model; elements that are lost with its weights go."""
    if described.start != SCALING:
        return {"start": described.start} if described.start else {}
    known = described.definition.elements
    there = [symbol(z) for z, has in zip(known, described.elements, strict=True) if has]
    return {"start": described.start, "elements": there}


def _judgement(definition: AtomwiseDefinition, closed_form: Params, trained: Residuals) -> str:
    """Whether networks stay, and why, in words.

    Those of an ensemble without a last layer stay in any case, for its standard deviations, and so
    do those of a model that training started from.
    """
    config = definition.config
    if trained.pays:
        return f"kept: {trained.words}"
    if "residual" in closed_form or (config.members > 1 and not config.last_layer):
        return f"of little use, but kept: {trained.words}"
    return f"{LEFT_OUT}, as it hardly helps: {trained.words}"


def describe(
    definition: AtomwiseDefinition, fit: AtomwiseFit, sets: Sets, run: Run, drawn: Params
) -> Described:
    """Descriptors, made with what was ``drawn``, and labels of training and validation set.

    Of a run with an origin ``drawn`` are all its parameters.
    """
    wanted = Wanted(
        derivatives="forces" in fit.targets,
        field="field_dipole" in fit.sigmas,
        irreps=tuple(sorted({TENSORS[t] for t in fit.targets if t in TENSORS})),
    )
    structures = [s for k in PARTS for s in sets[k].structures]
    cache = build_cache(definition, structures, wanted, drawn, run=run)
    noise = rounding_noise(definition, structures, cache, wanted, drawn, run=run)
    out, start = {}, 0
    for name in PARTS:
        stop = start + len(sets[name])
        labels = padded_labels(sets[name], fit.targets, cache.one_hot.shape[1])
        if wanted.field:
            labels["field_dipole"] = labels["dipole"]
        out[name] = Labelled(cache.subset(range(start, stop)), labels)
        start = stop
    return Described(definition, fit, out, noise, drawn, WEIGHTS if run.origin else "")
