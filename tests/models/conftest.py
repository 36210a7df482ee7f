"""A small real model: trained once on 40 bundled waters, in a basis that compiles fast."""

import pytest

import opml_jax as opml
from opml_jax.models import Op2PropConfig
from opml_jax.training import TrainConfig, train
from opml_jax.training.config import OptimConfig


@pytest.fixture(scope="session")
def trained():
    dataset = opml.read_dataset(opml.bundled("water"))
    config = TrainConfig(model=Op2PropConfig(basis="sto-3g"), optim=OptimConfig(epochs=5))
    return train(dataset, {"train": list(range(40)), "validation": list(range(40, 50))}, config)


@pytest.fixture(scope="session")
def model(trained):
    return trained.model
