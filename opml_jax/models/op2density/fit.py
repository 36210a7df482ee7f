"""Training of Op2Density: kernels in closed form, a network, widths, then their variances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...data import Dataset
from ...learn.run import Run
from ..base import Params
from ..family import Fit
from .closed_form import problem_of, solve_problem, subtract_baselines
from .config import Op2DensityConfig, Op2DensityFit, Op2DensityNetworkFit
from .fit_network import train_network
from .fit_widths import train_widths, true_densities
from .functions import Op2Density
from .labels import Labelled, free_atoms, label_dataset
from .objective import NetworkFit
from .variance import calibrated

JUDGED = ("train", "validation")
"""Sets that a network needs."""


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
        labelled = {"train": label_dataset(definition, sets["train"], run)}
        params, facts = _solve(definition, config, sets["train"], labelled["train"], run)
    if network is not None or config.uncertainty:
        labelled["validation"] = label_dataset(definition, sets["validation"], run)
    if network is not None:
        settings = network.fit or Op2DensityNetworkFit()
        with run.stage("network") as end_with:
            trained = train_network(definition, settings, params, labelled, run)
            params, history = trained.params, trained.history
            facts |= _network_facts(trained)
            end_with(facts["network"])
        if definition.flexible:
            with run.stage("widths") as end_with:
                trained = _widths(definition, settings, params, sets, labelled, len(history), run)
                params, history = trained.params, [*history, *trained.history]
                facts |= _widths_facts(trained)
                end_with(facts["widths"])
    if config.uncertainty:
        if "calibration" in sets:
            labelled["calibration"] = label_dataset(definition, sets["calibration"], run)
        held_out = labelled.get("calibration", labelled["validation"])
        params, facts["uncertainty_calibration"] = calibrated(definition, params, held_out)
    return Fit(params, facts, history)


def _solve(
    definition: Op2Density,
    config: Op2DensityConfig,
    dataset: Dataset,
    labelled: Labelled,
    run: Run,
) -> tuple[Params, dict[str, Any]]:
    """Parameters of the kernels, or of the baseline alone, and what the card says of them."""
    atoms = free_atoms(definition, dataset)
    if config.network is not None and config.network.alone:
        return subtract_baselines(definition, labelled, atoms)[0], {}
    settings = config.fit or Op2DensityFit()
    problem = problem_of(definition, settings, labelled, atoms)
    params, solution = solve_problem(definition, settings, *problem, run)
    return params, {"cg_steps": solution.steps, "cg_residual": solution.residual}


def _network_facts(trained: NetworkFit) -> dict[str, Any]:
    there = any("network" in of_element for of_element in trained.params.values())
    facts: dict[str, Any] = {"network": "kept" if there else "no better than the closed form"}
    return facts | {f"network_{name}": loss for name, loss in trained.chosen.items()}


def _widths(
    definition: Op2Density,
    settings: Op2DensityNetworkFit,
    params: Params,
    sets: Mapping[str, Dataset],
    labelled: Mapping[str, Labelled],
    before: int,
    run: Run,
) -> NetworkFit:
    """Widths, trained after so many epochs of the network, from which theirs are counted on."""
    judged = {}
    for i, name in enumerate(JUDGED):
        seed = run.seed + i
        true = true_densities(definition, sets[name], settings.points, seed, run)
        judged[name] = labelled[name], true
    after = dataclasses.replace(run, first_epoch=before)
    trained = train_widths(definition, settings, params, judged, after)
    history = [{**row, "epoch": before + row["epoch"]} for row in trained.history]
    return dataclasses.replace(trained, history=history)


def _widths_facts(trained: NetworkFit) -> dict[str, Any]:
    loss = trained.chosen["widths"]
    there = "kept" if loss < 1 else "no better than the fixed basis"
    return {"widths": there, "widths_validation": loss}
