"""Configuration: frozen dataclasses, YAML in and out, strict about names and types."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest, refusal
from ..features.inputs import one_of
from ..models import Op2PropConfig

TARGETS = ("energy", "forces", "dipole")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the labels are and how they are split.

    Attributes:
      path: labelled data (HDF5, extxyz, npz), or ``bundled:water``.
      splits: split file (JSON), or ``bundled:water``; empty: a random split of the sizes below.
      n_train: training structures of a random split.
      n_validation: validation structures of a random split.
      n_test: test structures of a random split; -1: all that are left.
      seed: of the random split.
      length_unit: of xyz and npz files; empty: the format's own.
      energy_unit: of xyz and npz files; empty: the format's own.
      labels: labels to read instead of the format's, each FIELD=NAME:UNIT, for example
        energy=U0:hartree.
    """

    path: str = "bundled:water"
    splits: str = ""
    n_train: int = 400
    n_validation: int = 50
    n_test: int = -1
    seed: int = 0
    length_unit: str = ""
    energy_unit: str = ""
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The residual network's training.

    Attributes:
      epochs: passes over the training set; 0 keeps the closed-form model.
      batch_size: structures a step.
      learning_rate: peak of the cosine schedule.
      weight_decay: of AdamW.
      clip: global gradient norm.
      ema: decay of the exponential moving average of the weights that is kept.
      loss: ``"mse"``, or ``"mae"`` (smooth within a tenth of what the closed form leaves).
      energy_weight: weight of energy errors in units of what the closed form leaves.
      forces_weight: likewise for forces.
      dipole_weight: likewise for dipoles.
      force_sigma: error of a force component, in eV/Angstrom, that counts as much in the
        closed-form solution as ``energy_sigma``.
      energy_sigma: in eV, see ``force_sigma``.
      force_precision: of the labels, in eV/Angstrom (integration grids leave about 5e-5). Among
        regularisations this close to the best the strongest is taken.
      dipole_precision: of the labels, in Debye; likewise.
    """

    epochs: int = 150
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    clip: float = 10.0
    ema: float = 0.99
    loss: str = "mse"
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    dipole_weight: float = 1.0
    force_sigma: float = 0.2
    energy_sigma: float = 0.04
    force_precision: float = 5e-5
    dipole_precision: float = 1e-4

    def __post_init__(self):
        positive = ("batch_size", "learning_rate", "clip", "force_sigma", "energy_sigma")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(
                    refusal(f"optim.{name}", got=getattr(self, name), expected="a positive number")
                )
        for name in (
            "epochs",
            "weight_decay",
            "energy_weight",
            "forces_weight",
            "dipole_weight",
            "force_precision",
            "dipole_precision",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(
                    refusal(f"optim.{name}", got=getattr(self, name), expected="zero or more")
                )
        one_of("optim.loss", self.loss, ("mse", "mae"))
        if not 0 <= self.ema < 1:
            raise ConfigError(refusal("optim.ema", got=self.ema, expected="between 0 and 1"))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything ``opml train`` needs.

    Attributes:
      data: labels and splits.
      model: the model.
      optim: the residual network's training.
      targets: which of energy, forces, dipole to learn; energy is always among them.
      seed: of initial weights and batch order.
    """

    data: DataConfig = DataConfig()
    model: Op2PropConfig = Op2PropConfig()
    optim: OptimConfig = OptimConfig()
    targets: tuple[str, ...] = TARGETS
    seed: int = 0

    def __post_init__(self):
        unknown = [t for t in self.targets if t not in TARGETS]
        if unknown or "energy" not in self.targets:
            raise ConfigError(
                refusal("targets", got=self.targets, expected=f"energy and any of {TARGETS}")
            )


def _convert(value: Any, kind: Any, name: str) -> Any:
    """A YAML value as a field's type, strictly."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = typing.get_args(kind)
        if value is None and type(None) in kinds:
            return None
        return _convert(value, next(k for k in kinds if k is not type(None)), name)
    if dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, name)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(refusal(name, got=repr(value), expected="a list"))
        return tuple(
            _convert(v, typing.get_args(kind)[0], f"{name}[{i}]") for i, v in enumerate(value)
        )
    if kind is float and isinstance(value, str):
        try:  # YAML 1.1 reads 3e-3 as text
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(refusal(name, got=repr(value), expected=f"of type {kind.__name__}"))
    return value


def from_mapping(cls: type, mapping: Any, where: str = "") -> Any:
    """Dataclass from a mapping; an unknown key is an error that names the nearest known one."""
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            refusal(where or "config", got=repr(mapping), expected="key: value pairs")
        )
    kinds = typing.get_type_hints(cls)
    values = {}
    for key, value in mapping.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in kinds:
            raise ConfigError(
                refusal(
                    "config key",
                    got=repr(name),
                    expected=f"one of {', '.join(kinds)}",
                    hint=nearest(str(key), kinds),
                )
            )
        values[key] = _convert(value, kinds[key], name)
    return cls(**values)


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML configuration.

    Args:
      path: the file.
      overrides: ``"model.components=64"`` and the like, applied on top.

    Raises:
      ConfigError: unreadable YAML, an unknown key (the nearest is named), a wrong type or value.
    """
    import yaml

    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(
            refusal(str(path), got=f"an unreadable file ({err})", expected="a YAML configuration")
        ) from err
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(refusal("--set", got=repr(item), expected="key=value"))
        node = tree
        *parents, last = key.strip().split(".")
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node[last] = yaml.safe_load(text)
    return from_mapping(TrainConfig, tree)


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain YAML- and JSON-able values of a configuration."""
    return {
        k: list(v) if isinstance(v, tuple) else to_mapping(v) if isinstance(v, dict) else v
        for k, v in (
            dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
        ).items()
    }


def template() -> str:
    """The default configuration as YAML, every key with what it means."""
    import yaml

    lines = []

    def emit(cls, values, indent):
        about = _attribute_docs(cls)
        for key, value in values.items():
            pad = "  " * indent
            lines.extend(f"{pad}# {text}" for text in about.get(key, ()))
            if isinstance(value, dict):
                lines.append(f"{pad}{key}:")
                emit(typing.get_type_hints(cls)[key], value, indent + 1)
            else:
                text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n")
                lines.append(f"{pad}{key}: {text.strip()}")

    emit(TrainConfig, to_mapping(TrainConfig()), 0)
    return "\n".join(lines) + "\n"


def _attribute_docs(cls: type) -> dict[str, list[str]]:
    """The ``Attributes:`` section of a docstring, by attribute."""
    found: dict[str, list[str]] = {}
    current = None
    _, _, section = (cls.__doc__ or "").partition("Attributes:\n")
    for line in section.splitlines():
        text = line.strip()
        if not text:
            continue
        if len(line) - len(line.lstrip()) == 6:
            current, _, text = text.partition(": ")
            found[current] = []
        if current:
            found[current].append(text.replace("``", ""))
    return found
