"""Configuration files: what is written is read, what is wrong is named."""

import dataclasses

import pytest
import yaml

from opml_jax.cli import main
from opml_jax.data.labels import parse_labels
from opml_jax.errors import ConfigError
from opml_jax.learn.schema import attribute_docs
from opml_jax.models.family import families, family
from opml_jax.models.op2prop import Op2PropConfig
from opml_jax.training import TrainConfig, load_config
from opml_jax.training.config import DataConfig, flat, mapping_of, read_mapping
from opml_jax.training.templates import template, templates


def _write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", templates())
def test_templates_are_configurations(tmp_path, name):
    text = template(name)
    config = load_config(_write(tmp_path, text))
    assert config == templates()[name][1]
    assert (config == TrainConfig()) == (name == "water")
    assert read_mapping(yaml.safe_load(yaml.safe_dump(mapping_of(config)))) == config
    parse_labels(config.data.labels)
    comments = [line for line in text.splitlines() if line.strip().startswith("#")]
    assert len(comments) >= 25  # every key has one
    assert not [line for line in comments if "`" in line]  # roles are for the site


def _settings(cls):
    """A configuration and all that are in it, of the kinds that it may have."""
    yield cls
    config = cls()
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from _settings(type(value))


@pytest.mark.parametrize("cls", [TrainConfig, DataConfig, *(family(n).Config for n in families())])
def test_every_key_is_explained(cls):
    for settings in _settings(cls):
        assert set(attribute_docs(settings)) >= {f.name for f in dataclasses.fields(settings)}


def test_models_that_were_fitted_differently_have_the_same_functions():
    one, other = (read_mapping({"model": {"fit": {"epochs": n}}}).model for n in (3, 4))
    assert one != other
    assert one.functions == other.functions
    assert hash(one.functions) == hash(other.functions)


def test_overrides(tmp_path):
    path = _write(tmp_path, "model: {fit: {epochs: 3}}\n")
    changes = ["model.fit.learning_rate=1e-3", "model.hidden=[8]", "seed=4"]
    config = load_config(path, changes)
    assert (config.model.fit.epochs, config.model.fit.learning_rate) == (3, 1e-3)
    assert config.model.hidden == (8,)
    assert config.seed == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {fit: {epoch: 3}}", r"key of model\.fit .*'epoch'.*Did you mean 'epochs'"),
        ("modell: {}", "key of config .*'modell'.*Did you mean 'model'"),
        ("model: {fit: {epochs: many}}", r"fit\.epochs must be of type int; got 'many'"),
        ("model: {fit: {epochs: true}}", r"fit\.epochs must be of type int"),
        ("model: {fit: {epochs: -1}}", r"fit\.epochs must be zero or more"),
        ("model: {fit: {ema: 1.0}}", r"fit\.ema must be between 0 and 1"),
        ("model: {fit: {learning_rate: 0}}", r"fit\.learning_rate must be a positive"),
        ("model: {powers: 3}", r"model\.powers must be a list"),
        ("model: {powers: [0, 1]}", r"model\.powers must be positive"),
        ("model: {operator: screened}", "Did you mean 'screened_potential'"),
        ("model: {powers: [1], gram_powers: [1, 2]}", r"model\.gram_powers must be a part"),
        ("model: {components: 0}", r"model\.components must be at least 1"),
        ("model: {channels: -1}", r"model\.channels must be zero or more"),
        ("model: {hidden: [8, 0]}", r"model\.hidden must be positive"),
        ("model: {fit: {consistency_sigma: 1.0e-4}}", "consistency_sigma must be 0, or both"),
        ("model: {fit: {targets: [energy], field_dipole_sigma: 1}}", "dipole among them"),
        ("model: {fit: {targets: [forces]}}", r"fit\.targets must be energy and any of"),
        ("model: {fit: {targets: [energy, charge]}}", r"fit\.targets must be energy and any of"),
        ("model: {family: op2pop}", r"model\.family .*'op2pop'.*Did you mean 'op2prop'"),
        ("model: {family: op2density, powers: [1], vectors: 3}", "key of model .*'vectors'"),
        ("model: 4", "model must be key: value pairs"),
        ("[1, 2]", "config must be key: value pairs"),
        ("a: [", "a YAML configuration"),
        ("optim: {epochs: 3}", "the form of version 0.1.*opml config migrate"),
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
        assert TrainConfig(data=data, model=model).model.doubts
    with pytest.raises(ConfigError, match=r"data\.n_calibration.*without standard deviations"):
        TrainConfig(data=data)


OLD = {
    "op2prop": (
        "{model: {vectors: 3}, optim: {epochs: 3, force_sigma: 0.1}, targets: [energy], seed: 2}",
        {"seed": 2, "model.vectors": 3, "model.fit.epochs": 3, "model.fit.force_sigma": 0.1},
    ),
    "op2op": (
        "{operator: {density_words: [], network: {kind: gated, channels: 4, gates: 8}}, "
        "optim: {epochs: 3, force_sigma: 0.2}, losses: {occupied: 1.0}, targets: [fock]}",
        {
            "model.network.gates": 8,
            "model.network.fit.epochs": 3,
            "model.network.fit.losses.occupied": 1.0,
        },
    ),
    "op2op, observables": (
        "{operator: {basis: sto-3g, density_words: []}, effective: {steps: 7}, targets: [dipole]}",
        {"model.fit.observables.steps": 7, "model.fit.observables.targets": ["dipole"]},
    ),
    "op2density": (
        "{density: {penalty: 1.0e-9, network: {points: 40, widths: 0.2}}, optim: {ema: 0.5}, "
        "targets: [density]}",
        {"model.fit.penalty": 1e-9, "model.network.fit.points": 40, "model.network.fit.ema": 0.5},
    ),
    "op2density, no points": (
        "{density: {network: {points: 300, real_space_weight: 0.0, widths: 0.0}}}",
        {"model.network.fit.points": 500, "model.network.widths": 0.0},
    ),
    "density2prop": (
        "{model: {density: run, density_beside: true, powers: [1], channels: 8}, "
        "targets: [energy, forces]}",
        {"model.density": "run", "model.beside.powers": [1], "model.channels": 8},
    ),
}


@pytest.mark.parametrize(("name", "text", "expected"), [(k, *v) for k, v in OLD.items()], ids=OLD)
def test_files_of_version_0_1_are_migrated(tmp_path, capsys, name, text, expected):
    """Refused by everything but the command that prints them in today's form, which is read."""
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match="opml config migrate"):
        load_config(path)
    assert main(["config", "migrate", str(path)]) == 0
    printed = capsys.readouterr().out
    config = load_config(_write(tmp_path, printed))
    assert config.model.family == name.partition(",")[0]
    assert flat(mapping_of(config)).items() >= expected.items()
    assert main(["config", "migrate", str(path)]) == 0  # of a file in that form: itself
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network: {layers: 2}", "operator network, which was removed"),
        ("operator: {network: {kind: matrix}}", "matrix, which was removed"),
    ],
)
def test_what_was_removed_is_not_migrated(tmp_path, capsys, text, message):
    assert main(["config", "migrate", str(_write(tmp_path, text))]) == 2
    assert message in capsys.readouterr().err
