"""A small real model: the closed form of 40 bundled waters, in a basis that compiles fast."""

import contextlib

import jax
import pytest

import opml_jax as opml
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.training import TrainConfig, train


@pytest.fixture(scope="session")
def dataset():
    return opml.read_dataset(opml.bundled("water"))


@pytest.fixture(scope="session")
def model(dataset):
    config = TrainConfig(model=Op2PropConfig(basis="sto-3g", fit=Op2PropFit(epochs=0)))
    splits = {"train": list(range(40)), "validation": list(range(40, 50))}
    return train(dataset, splits, config).model


@pytest.fixture(scope="session")
def minimum(dataset):
    """The water the bundled geometries were displaced from."""
    how = dataset.meta["sampling"]
    return opml.Structure(how["numbers"], how["minimum_bohr"])


@pytest.fixture(scope="session")
def compilations():
    """``with compilations() as count``: how often XLA compiled anything, in the list ``count``."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: events.append(event)
    )

    @contextlib.contextmanager
    def watch():
        start, found = len(events), []
        yield found
        found += [e for e in events[start:] if e.endswith("backend_compile_duration")]

    return watch
