"""Training of Op2Prop: descriptors, their noise, the closed form, networks, the last layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...data import Dataset
from ...learn.devices import of_first
from ...learn.run import Run
from ..base import Params
from ..family import Fit
from .atomwise import AtomwiseDefinition
from .closed_form import ClosedForm, fit_closed_form
from .config import AtomwiseFit
from .descriptors import Labelled, Wanted, build_cache, rounding_noise
from .heads import TENSORS
from .labels import padded_labels
from .last_layer import fit_last_layer
from .model import silenced
from .residual import make_inputs, train_residual

PARTS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Described:
    """All that the parts of a training read.

    Attributes:
      sets: ``train`` and ``validation``.
      noise: Rounding noise of the invariants, ``(n_elements, n_invariants)``.
      drawn: Parameters that the descriptors were made with.
    """

    sets: dict[str, Labelled]
    noise: np.ndarray
    drawn: Params


def fit_atomwise(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    sets: Mapping[str, Dataset],
    run: Run,
    draw: Callable[[], Params],
) -> Fit:
    """Train a model that reads descriptors of atoms: closed form first, then networks.

    Args:
      definition: the model's functions.
      fit: settings.
      sets: ``train`` and ``validation``.
      run: keeps states and reports.
      draw: makes the parameters that the descriptors need.
    """
    with run.stage("descriptors"):
        described = describe(definition, fit, sets, run, draw())
    with run.stage("closed form") as end_with:
        solved = fit_closed_form(definition, fit, described.sets, described.noise, described.drawn)
        params, history = of_first(solved.params), []
        end_with(f"lambda {solved.energy.lam:.0e}")
    if fit.epochs:
        with run.stage("network"):
            inputs = {k: make_inputs(params, part) for k, part in described.sets.items()}
            params, history = train_residual(definition, fit, params, inputs, run)
    if definition.config.last_layer:
        with run.stage("last layer"):
            held_out = sets["validation"]
            last_layer = fit_last_layer(definition, fit, params, described.sets, held_out)
            params = {**params, "last_layer": last_layer}
    again = functools.partial(refitted, definition, fit, described, params)
    return Fit(params, facts_of(definition, solved), history, again)


def describe(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    sets: Mapping[str, Dataset],
    run: Run,
    drawn: Params,
) -> Described:
    """Descriptors and labels of the training and the validation set.

    Args:
      definition: the model's functions.
      fit: settings.
      sets: ``train`` and ``validation``.
      run: keeps descriptors.
      drawn: parameters that these need.
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
    return Described(out, noise, drawn)


def facts_of(definition: AtomwiseDefinition, solved: ClosedForm) -> dict[str, Any]:
    """What a card says: the regularisations, and the number of invariants."""
    ridges = {"energy": solved.energy, **solved.heads}
    facts: dict[str, Any] = {f"{name}_lambda": ridge.lam for name, ridge in ridges.items()}
    return {**facts, "n_invariants": definition.n_invariants}


def refitted(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    described: Described,
    params: Params,
    index: np.ndarray,
) -> Params | None:
    """Parameters with the closed form solved for some of the training set, networks silenced.

    Args:
      definition: the model's functions.
      fit: settings.
      described: the sets.
      params: of the trained model.
      index: into the training set.

    Returns:
      None if these structures lack an element.
    """
    train = described.sets["train"].subset(index)
    if not train.cache.one_hot.any(axis=(0, 1)).all():
        return None
    sets = {**described.sets, "train": train}
    solved = fit_closed_form(definition, fit, sets, described.noise, described.drawn)
    return silenced({**params, **solved.params})
