"""Training of Op2Op: a closed form, then observables of a larger basis or a network."""

from __future__ import annotations

from collections.abc import Mapping

from ...data import Dataset
from ...learn.run import Run
from ..base.definition import Params
from ..family import Fit
from .closed_form import fit_closed_form
from .config import Op2OpConfig, Op2OpNetworkFit
from .effective import projected
from .fit_network import train_network
from .fit_observables import fit_observables
from .functions import Op2Op


def fit(definition: Op2Op, config: Op2OpConfig, sets: Mapping[str, Dataset], run: Run) -> Fit:
    """Train a model of Fock or density matrices; arguments as for :meth:`Family.fit`."""
    observables = config.fit and config.fit.observables
    # a closed form that is only where a descent starts, or is left out
    start_alone = observables or (config.network and config.network.alone)
    if run.origin is not None and start_alone:
        return _further(definition, config, sets, run, run.origin.params)
    with run.stage("closed form"):
        matrices = dict(sets)
        if observables:
            basis, first_level = definition.basis, definition.first_level
            matrices = {k: projected(part, basis, first_level) for k, part in sets.items()}
        params = fit_closed_form(definition, matrices, run, config.fit).params
    return _further(definition, config, sets, run, params)


def _further(
    definition: Op2Op, config: Op2OpConfig, sets: Mapping[str, Dataset], run: Run, params: Params
) -> Fit:
    """What follows the closed form."""
    observables = config.fit and config.fit.observables
    if observables:
        with run.stage("observables"):
            return fit_observables(definition, params, sets, observables, run)
    if config.network is None:
        return Fit(params)
    settings = config.network.fit or Op2OpNetworkFit()
    with run.stage("network") as end_with:
        trained = train_network(definition, settings, params, sets, run)
        end_with(trained.facts["network"])
    return trained
