"""The configuration of a training: YAML in and out, one family's settings under ``model``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import Code, ConfigError, check_file, one_of
from ..learn.schema import as_mapping, convert, from_mapping, to_mapping, yaml_lines
from ..learn.schema import flat as flat
from ..models.base import ModelConfig
from ..models.family import families, family
from .migrate import is_old
from .origin import filled


def _first_family() -> ModelConfig:
    """What a configuration that names no family is of."""
    return family(families()[0]).Config()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the labels are and how they are split.

    Attributes:
      path: Labelled data (HDF5, extxyz, npz, databases of QH9, PhiSNet and SchNOrb), or
        bundled:water.
      splits: Split file (JSON), or bundled:water; empty means a random split of the sizes below.
      n_train: Training structures of a random split.
      n_validation: Validation structures of a random split.
      n_calibration: Structures of a random split that scale standard deviations and nothing else;
        with 0 those of validation do, which also chose the model.
      n_test: Test structures of a random split; -1 means all that remain.
      seed: Seed of the random split.
      length_unit: Unit of lengths in xyz and npz files; empty means the format's own.
      energy_unit: Unit of energies in xyz and npz files; empty means the format's own.
      labels: Labels to read instead of the format's, each FIELD=NAME:UNIT, for example
        energy=U0:hartree.
      basis: Basis of AO matrices in npz and database files; empty means what the file or its format
        says.
      convention: AO order of these matrices, which is opml, pyscf or orca; empty likewise.
      limit: Structures to read, the first ones of the file; 0 means all.
    """

    path: str = "bundled:water"
    splits: str = ""
    n_train: int = 400
    n_validation: int = 50
    n_calibration: int = 0
    n_test: int = -1
    seed: int = 0
    length_unit: str = ""
    energy_unit: str = ""
    labels: tuple[str, ...] = ()
    basis: str = ""
    convention: str = ""
    limit: int = 0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything ``opml train`` needs.

    Attributes:
      data: Labels and splits.
      model: The model, of the family that it names, and under fit how it is trained.
      seed: Seed of all that is random in training: mixtures, initial weights, order of batches.
      origin: A trained model to start from, which is a run directory, a model file or
        pretrained:NAME; keys of the model that are left out are those of that model. Empty means
        that training starts from nothing.
    """

    data: DataConfig = DataConfig()
    model: ModelConfig = dataclasses.field(default_factory=_first_family)
    seed: int = 0
    origin: str = ""

    def __post_init__(self):
        self.model.check()
        if self.data.n_calibration and not self.model.doubts and not self.origin:
            got = f"{self.data.n_calibration}, and a model without standard deviations"
            hint = "How a model gets them: docs/howto/uncertainty.md."
            raise ConfigError("data.n_calibration", got=got, expected="0", hint=hint)


def read_mapping(tree: Any) -> TrainConfig:
    """The configuration that key: value pairs are.

    Raises:
      ConfigError: an unknown key (the nearest is named), a wrong type or value, or a file in the
        form of version 0.1.
      ModelFileError: no readable model under ``origin``.
    """
    tree = dict(as_mapping(tree, "config"))
    if is_old(tree):
        raise ConfigError(
            "this configuration has the form of version 0.1. Now model: names its family and holds "
            "what was operator:, density: or model:, and model.fit: what was optim:, losses:, "
            "effective: and targets:. opml config migrate FILE prints it in this form."
        )
    model = dict(as_mapping(tree.pop("model", None), "model"))
    if origin := convert(tree.get("origin", ""), str, "origin"):
        model = filled(model, origin)
    name = model.pop("family", families()[0])
    settings = family(convert(name, str, "model.family")).Config
    values = {"model": from_mapping(settings, model, "model")}
    kinds = {"data": DataConfig, "seed": int, "origin": str}
    for key, value in tree.items():
        one_of("a key of config", key, ["model", *kinds])
        values[key] = convert(value, kinds[key], key)
    return TrainConfig(**values)


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML configuration.

    Args:
      path: the file.
      overrides: ``"model.components=64"`` and the like, applied on top.

    Raises:
      ConfigError: unreadable YAML, and as :func:`read_mapping`.
    """
    tree = read_tree(path)
    for item in overrides:
        _override(tree, item)
    return read_mapping(tree)


def read_tree(path: str | os.PathLike) -> Any:
    """What a YAML file holds.

    Raises:
      ConfigError: no file, or one that is not YAML.
    """
    import yaml

    hint = f"opml config template own > {path} makes one."
    check_file(path, "a YAML configuration", error=ConfigError, hint=hint)
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as err:
        raise ConfigError(
            str(path),
            got=f"an unreadable file ({err})",
            expected="a YAML configuration",
            code=Code.DAMAGED,
        ) from err


def _override(tree: Any, item: str) -> None:
    """Set one ``key=value`` in a tree."""
    import yaml

    key, separator, text = item.partition("=")
    if not separator:
        raise ConfigError("--set", got=repr(item), expected="key=value")
    node = tree
    *parents, last = key.strip().split(".")
    for parent in parents:
        if not isinstance(node, dict):
            return  # refused as what it is, not as what was to be set in it
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    if isinstance(node, dict):
        node[last] = yaml.safe_load(text)


def mapping_of(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain YAML- and JSON-able values."""
    model = {"family": config.model.family, **to_mapping(config.model)}
    general = {"seed": config.seed, "origin": config.origin}
    return {"data": to_mapping(config.data), "model": model, **general}


def explained(config: TrainConfig) -> str:
    """A configuration as YAML, every key with what it means."""
    lines = yaml_lines(config)
    at = lines.index("model:") + 1
    name, _, about = family(config.model.family).about.partition(": ")
    lines[at:at] = [f"  # The family is {name}: {about}.", f"  family: {config.model.family}"]
    return "\n".join(lines) + "\n"
