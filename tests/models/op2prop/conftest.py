"""Bundled water, and what a training has read, for tests that look inside."""

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.learn.run import Run
from opml_jax.models.op2prop.fit import describe


@pytest.fixture(scope="session")
def dataset():
    return opml.read_dataset(opml.bundled("water"))


@pytest.fixture(scope="session")
def described():
    """Descriptors and labels of a training, by the program that it compiled."""

    def of(trained, config, dataset, splits):
        sets = {k: dataset.subset(splits[k]) for k in ("train", "validation")}
        drawn = {k: v for k, v in trained.model.params.items() if k == "mixing"}
        return describe(trained.model.definition, config.model.fit, sets, Run(), drawn)

    return of


@pytest.fixture(scope="session")
def within():
    """Shares of absolute errors of energies and forces below a standard deviation."""

    def of(model, part):
        found = model.predict(part.structures, uncertainty=True)
        errors = {k: np.abs(found[k] - np.array(part.labels[k])) for k in ("energy", "forces")}
        return {k: float((e < found[f"{k}_uncertainty"]).mean()) for k, e in errors.items()}

    return of


@pytest.fixture(scope="session")
def stretched():
    """Medians of standard deviations of energies and forces of structures stretched more."""

    def of(model, near):
        sigma = []
        for stretch in (1.0, 1.1, 1.2, 1.3):
            far = [s.replace(positions=stretch * np.asarray(s.positions)) for s in near]
            found = model.predict(far, uncertainty=True)
            sigma.append([np.median(found[f"{k}_uncertainty"]) for k in ("energy", "forces")])
        return sigma

    return of
