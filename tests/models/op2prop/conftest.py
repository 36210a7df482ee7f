"""What a training has read, for tests that look inside."""

import pytest

from opml_jax.learn.run import Run
from opml_jax.models.op2prop.fit import describe


@pytest.fixture(scope="session")
def described():
    """Descriptors and labels of a training, by the program that it compiled."""

    def of(trained, config, dataset, splits):
        sets = {k: dataset.subset(splits[k]) for k in ("train", "validation")}
        drawn = {k: v for k, v in trained.model.params.items() if k == "mixing"}
        return describe(trained.model.definition, config.model.fit, sets, Run(), drawn)

    return of
