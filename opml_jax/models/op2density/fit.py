"""Training of Op2Density: kernels in closed form, a network, widths, then their variances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...data import Dataset
from ...learn.run import Run
from ..base import Params
from ..family import Fit
from .changes import solve_changes, without_widths
from .closed_form import problem_of, solve_problem, solved, subtract_baselines
from .config import Op2DensityConfig, Op2DensityFit, Op2DensityNetworkFit
from .fit_network import train_network, train_widths, true_densities
from .functions import Op2Density
from .labels import Labelled, free_atoms, label_dataset
from .selection import chosen_kernels, is_set
from .variance import calibrated


def fit(
    definition: Op2Density, config: Op2DensityConfig, sets: Mapping[str, Dataset], run: Run
) -> Fit:
    """Train a model of densities.

    Args:
      definition: the model's functions.
      config: with ``fit`` and the network's; None stands for the defaults.
      sets: ``train``, ``validation`` and perhaps ``calibration``.
      run: keeps the states ``kernels``, ``network`` and ``widths``, and reports.

    Raises:
      ConvergenceError: conjugate gradients did not reach the tolerance.
      OpmlError: a loss became NaN; coefficients that cannot be fitted.
      ModelFileError: a damaged state, or one of another training.
    """
    network, history = config.network, []
    with run.stage("closed form"):
        judges = run.origin is not None or _judges(definition, config)
        needed = ("train", "validation") if judges else ("train",)
        labelled = {name: label_dataset(definition, sets[name], run) for name in needed}
        if run.origin is None:
            definition, params, facts = _solve(definition, config, sets["train"], labelled, run)
        else:
            params, facts = _solve_changes(definition, config, labelled, run)
    if network is not None:
        settings = network.fit or Op2DensityNetworkFit()
        with run.stage("network") as end_with:
            earlier, params = params, without_widths(params)
            trained = train_network(definition, settings, params, labelled, run)
            params, history = trained.params, trained.history
            facts |= _facts("network", trained, "closed form")
            end_with(facts["network"])
        if definition.flexible:
            with run.stage("widths") as end_with:
                judged, done = {}, len(history)
                for seed, name in enumerate(labelled, run.seed):
                    true = true_densities(definition, sets[name], settings.points, seed, run)
                    judged[name] = labelled[name], true
                after = dataclasses.replace(run, first_epoch=done)
                params = _with_widths(params, earlier)
                trained = train_widths(definition, settings, params, judged, after)
                params, facts = trained.params, facts | _facts("widths", trained, "fixed basis")
                history += [{**row, "epoch": done + row["epoch"]} for row in trained.history]
                end_with(facts["widths"])
    if config.uncertainty:
        if "calibration" in sets:
            labelled["calibration"] = label_dataset(definition, sets["calibration"], run)
        held_out = labelled.get("calibration", labelled["validation"])
        params, facts["uncertainty_calibration"] = calibrated(definition, params, held_out)
    return Fit(params, facts, history, definition=definition)


def _judges(definition: Op2Density, config: Op2DensityConfig) -> bool:
    """Whether the validation set has a say in the training."""
    if config.network is not None or config.uncertainty:
        return True
    return not is_set(definition, config.fit or Op2DensityFit())


def _solve(
    definition: Op2Density,
    config: Op2DensityConfig,
    dataset: Dataset,
    labelled: Mapping[str, Labelled],
    run: Run,
) -> tuple[Op2Density, Params, dict[str, Any]]:
    """Functions with what validation chose, parameters of the kernels, and facts for the card.

    Without kernels: the parameters of the baseline alone.
    """
    atoms = free_atoms(definition, dataset)
    if config.network is not None and config.network.alone:
        return definition, subtract_baselines(definition, labelled["train"], atoms)[0], {}
    settings = config.fit or Op2DensityFit()
    if settings.penalty is not None and is_set(definition, settings):
        set_problem = problem_of(definition, settings.penalty, labelled["train"], atoms)
        params, solution = solve_problem(definition, settings, *set_problem, run)
        return definition, params, {"cg_steps": solution.steps, "cg_residual": solution.residual}
    chosen = chosen_kernels(definition, settings, labelled, atoms, run)
    definition, problem, bases, weights, facts = chosen
    return definition, solved(definition, problem, bases, weights, run), facts


def _solve_changes(
    definition: Op2Density, config: Op2DensityConfig, labelled: Mapping[str, Labelled], run: Run
) -> tuple[Params, dict[str, Any]]:
    """Likewise of a model that starts from the origin of the run."""
    if config.network is not None and config.network.alone:
        return run.origin.params, {}
    settings = config.fit or Op2DensityFit()
    return solve_changes(definition, settings, labelled, run.origin.params, run)


def _with_widths(params: Params, earlier: Params) -> Params:
    """Parameters with the widths that networks had before, if they had some."""
    out = {}
    for z, p in params.items():
        widths = earlier[z].get("network", {}).get("widths")
        out[z] = {**p, "network": {**p["network"], "widths": widths}} if widths else p
    return out


def _facts(name: str, trained: Fit, start: str) -> dict[str, Any]:
    """What the card says of a descent: whether it is kept, and validation losses."""
    kept = "kept" if min(trained.facts.values()) < 1.0 else f"no better than the {start}"
    return {name: kept, **{f"{name}_{k}": loss for k, loss in trained.facts.items()}}
