"""A family that is no part of the library is trained, judged, reported, saved and loaded by it."""

import numpy as np
import pytest
from contract import Contract
from toy_family import FAMILY, PairsConfig

import opml_jax as opml
from opml_jax.cli.runs import evaluate_run, train_run
from opml_jax.errors import ConfigError
from opml_jax.models.family import _registered, families, family
from opml_jax.testing import assert_grad_matches_fd
from opml_jax.training import TrainConfig
from opml_jax.training.config import DataConfig, explained, mapping_of, read_mapping

PAIRS_LEAVE = 0.4  # of energies' mean deviation, and of forces; measured 0.25 and 0.24


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Known to the registry as long as these tests run."""
    yield opml.models.register(FAMILY)
    _registered.pop(FAMILY.name)


class TestPairs(Contract):
    config = PairsConfig()


def test_a_run_has_errors_card_and_report(tmp_path):
    config = TrainConfig(DataConfig(n_train=100, n_validation=30, n_test=30), PairsConfig())
    trained, data, splits = train_run(config, str(tmp_path / "run"))
    metrics = evaluate_run(str(tmp_path / "run"), trained, data, splits, quiet=True)

    test = data.subset(splits["test"])
    energies = 1e3 * opml.units.EV_PER_HARTREE * np.asarray(test["energy"])
    deviation = np.abs(energies - energies.mean()).mean()
    assert metrics["test"]["energy_mae_mev"] < PAIRS_LEAVE * deviation
    forces = np.concatenate(test.labels["forces"])  # never learned: a gradient
    size = 1e3 * opml.units.EV_PER_ANGSTROM_PER_ATOMIC_FORCE * np.abs(forces).mean()
    assert metrics["test"]["forces_mae_mev_per_angstrom"] < PAIRS_LEAVE * size

    card = (tmp_path / "run" / "card.md").read_text()
    assert f"- **Model**: {FAMILY.about}" in card
    assert "Pairs" not in card.replace(FAMILY.about, "")
    assert "Input: distances between atoms." in (tmp_path / "run" / "report.html").read_text()

    loaded = opml.load_model(tmp_path / "run")
    assert loaded.card["metrics"] == metrics
    s = data.structures[splits["test"][0]]
    assert_grad_matches_fd(
        lambda R: loaded.energy_fn()(s.replace(positions=R)), np.asarray(s.positions)
    )


def test_its_configuration_is_read_and_explained():
    config = TrainConfig(model=PairsConfig(gaussians=8))
    assert read_mapping(mapping_of(config)) == config
    text = explained(config)
    assert "  family: pairs\n" in text
    assert "  # Number of Gaussians of the distance of two atoms.\n  gaussians: 8\n" in text
    with pytest.raises(ConfigError, match="gaussians"):
        read_mapping({"model": {"family": "pairs", "gaussian": 8}})


def test_a_name_is_given_once():
    assert family("pairs") is FAMILY
    assert families()[-1] == "pairs"

    class Another(type(FAMILY)):
        """Of the same name."""

    with pytest.raises(ConfigError, match="family 'pairs' already"):
        opml.models.register(Another())
