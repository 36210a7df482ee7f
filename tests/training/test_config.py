"""Configuration files: what is written is read, what is wrong is named."""

import pytest

from opml_jax.data.labels import parse_labels
from opml_jax.errors import ConfigError
from opml_jax.models import Op2PropConfig, OperatorNetworkConfig
from opml_jax.training import TrainConfig, load_config
from opml_jax.training.config import DataConfig, explained, from_mapping, to_mapping
from opml_jax.training.templates import TEMPLATES, template


def _write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_configurations(tmp_path, name):
    text = template(name)
    config = load_config(_write(tmp_path, text))
    assert config == TEMPLATES[name][1]
    assert (config == TrainConfig()) == (name == "water")
    parse_labels(config.data.labels)
    comments = [line for line in text.splitlines() if line.strip().startswith("#")]
    assert len(comments) >= 25  # every key has one


def test_optional_parts_are_explained_too():
    text = explained(TrainConfig(network=OperatorNetworkConfig()))
    assert "  # products with the operator.\n  layers: 2" in text


def test_round_trip():
    config = from_mapping(TrainConfig, {"model": {"powers": [1, 2]}, "optim": {"epochs": 3}})
    assert from_mapping(TrainConfig, to_mapping(config)) == config
    assert config.model.powers == (1, 2)


def test_overrides(tmp_path):
    path = _write(tmp_path, "optim: {epochs: 3}\n")
    config = load_config(path, ["optim.learning_rate=1e-3", "model.hidden=[8]", "seed=4"])
    assert (config.optim.epochs, config.optim.learning_rate) == (3, 1e-3)
    assert config.model.hidden == (8,)
    assert config.seed == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {epoch: 3}", "key of optim .*'epoch'.*Did you mean 'epochs'"),
        ("modell: {}", "key of config .*'modell'.*Did you mean 'model'"),
        ("optim: {epochs: many}", r"optim\.epochs must be of type int; got 'many'"),
        ("optim: {epochs: true}", r"optim\.epochs must be of type int"),
        ("optim: {epochs: -1}", r"optim\.epochs must be zero or more"),
        ("optim: {ema: 1.0}", r"optim\.ema must be between 0 and 1"),
        ("optim: {learning_rate: 0}", r"optim\.learning_rate must be a positive"),
        ("model: {powers: 3}", r"model\.powers must be a list"),
        ("targets: [forces]", "targets must be energy and any of"),
        ("targets: [energy, charge]", "targets must be energy and any of"),
        ("model: 4", "model must be key: value pairs"),
        ("[1, 2]", "config must be key: value pairs"),
        ("a: [", "a YAML configuration"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(_write(tmp_path, text))


def test_malformed_override(tmp_path):
    with pytest.raises(ValueError, match="--set must be key=value"):
        load_config(_write(tmp_path, ""), ["seed"])


def test_only_standard_deviations_are_calibrated():
    data = DataConfig(n_calibration=20)
    for model in (Op2PropConfig(members=2), Op2PropConfig(last_layer=True)):
        assert TrainConfig(data=data, model=model).doubts
    with pytest.raises(ConfigError, match=r"data\.n_calibration.*without standard deviations"):
        TrainConfig(data=data)
