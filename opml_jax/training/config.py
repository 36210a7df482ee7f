"""Configuration: frozen dataclasses, YAML in and out, strict about names and types."""

from __future__ import annotations

import dataclasses
import inspect
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import Code, ConfigError, at_least, near_path, one_of, refusal
from ..models import Op2DensityConfig, Op2OpConfig, Op2PropConfig, OperatorNetworkConfig
from .operator_losses import OperatorLosses

TARGETS = (
    "energy",
    "forces",
    "dipole",
    "quadrupole",
    "polarizability",
    "isotropic_polarizability",
)

OBSERVABLES = ("mo_energy", "dipole", "lowdin_charges", "polarizability")
"""What a small matrix may be trained on in place of its elements."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the labels are and how they are split.

    Attributes:
      path: labelled data (HDF5, extxyz, npz, databases of QH9, PhiSNet and SchNOrb), or
        ``bundled:water``.
      splits: split file (JSON), or ``bundled:water``; empty: a random split of the sizes below.
      n_train: training structures of a random split.
      n_validation: validation structures of a random split.
      n_calibration: structures of a random split that scale standard deviations and nothing else;
        0: those of validation do, which also chose the model.
      n_test: test structures of a random split; -1: all that are left.
      seed: of the random split.
      length_unit: of xyz and npz files; empty: the format's own.
      energy_unit: of xyz and npz files; empty: the format's own.
      labels: labels to read instead of the format's, each FIELD=NAME:UNIT, for example
        energy=U0:hartree.
      basis: of AO matrices in npz and database files; empty: what file or format says.
      convention: their AO order: opml, pyscf or orca; empty: likewise.
      limit: read only so many structures, the first; 0: all.
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
class OptimConfig:
    """The residual network's training.

    Attributes:
      epochs: passes over the training set; 0 keeps the closed-form model.
      patience: stop after so many epochs that did not improve validation; 0: never.
      batch_size: structures a step.
      accumulate: batches whose gradients are averaged before each step: steps of so many times
        ``batch_size`` structures in the memory of one batch.
      learning_rate: its peak.
      schedule: how it falls, to a hundredth after all epochs: ``"cosine"``, ``"exponential"``, or
        ``"constant"``, not at all.
      warm_up: share of all steps in which it rises from zero before.
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
      field_dipole_sigma: in Debye, likewise, of minus the derivative of the energy in a uniform
        field, which is then fitted to dipoles together with energies and forces; 0: it is not.
      consistency_sigma: in Debye, likewise, of the difference between that and the dipole; both
        are then solved together, and 1e-4 makes them agree to 1e-7 e Bohr on water. 0: they may
        differ.
      force_precision: of the labels, in eV/Angstrom (integration grids leave about 5e-5). Among
        regularisations this close to the best the strongest is taken.
      dipole_precision: of the labels, in Debye; likewise.
    """

    epochs: int = 150
    patience: int = 0
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warm_up: float = 0.0
    weight_decay: float = 1e-4
    clip: float = 10.0
    ema: float = 0.99
    loss: str = "mse"
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    dipole_weight: float = 1.0
    force_sigma: float = 0.2
    energy_sigma: float = 0.04
    field_dipole_sigma: float = 0.0
    consistency_sigma: float = 0.0
    force_precision: float = 5e-5
    dipole_precision: float = 1e-4

    def __post_init__(self):
        positive = (
            "batch_size",
            "accumulate",
            "learning_rate",
            "clip",
            "force_sigma",
            "energy_sigma",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(
                    refusal(f"optim.{name}", got=getattr(self, name), expected="a positive number")
                )
        zero_or_more = (
            "epochs",
            "patience",
            "weight_decay",
            "energy_weight",
            "forces_weight",
            "dipole_weight",
            "force_precision",
            "dipole_precision",
            "field_dipole_sigma",
            "consistency_sigma",
        )
        at_least("optim", self, zero_or_more)
        if self.consistency_sigma and not self.field_dipole_sigma:
            raise ConfigError(
                refusal(
                    "optim.consistency_sigma",
                    got=f"{self.consistency_sigma} without field_dipole_sigma",
                    expected="0, or both",
                )
            )
        one_of("optim.loss", self.loss, ("mse", "mae"))
        one_of("optim.schedule", self.schedule, ("cosine", "exponential", "constant"))
        if not 0 <= self.warm_up < 1:
            expected = "a share of the steps, below 1"
            raise ConfigError(refusal("optim.warm_up", got=self.warm_up, expected=expected))
        if not 0 <= self.ema < 1:
            raise ConfigError(refusal("optim.ema", got=self.ema, expected="between 0 and 1"))


@dataclasses.dataclass(frozen=True)
class EffectiveConfig:
    """How an Op2Op model in a small basis is fitted to observables of a larger one.

    Errors count in units of what the closed form in the small basis leaves of them.

    Attributes:
      components: principal components of the columns of each kind of block that may move.
      steps: most steps of L-BFGS on each of two ways: all components alike, or half of the steps in
        proportion to their size and then alike; validation decides.
      penalty: of the squares of all variables of L-BFGS together.
      occupied_weight: of the mean square error of occupied orbital energies.
      virtual_weight: likewise of the unoccupied ones in the window.
      virtuals: how many of those count, from the lowest on; 0: all. Across compositions a small
        basis cannot have all virtual levels of a large one, and the gap needs the first.
      dipole_weight: likewise of dipoles.
      charges_weight: likewise of Löwdin's charges.
      polarizability_weight: likewise of polarizabilities.
    """

    components: int = 24
    steps: int = 300
    penalty: float = 1e-6
    occupied_weight: float = 1.0
    virtual_weight: float = 0.1
    virtuals: int = 0
    dipole_weight: float = 1.0
    charges_weight: float = 1.0
    polarizability_weight: float = 1.0

    def __post_init__(self):
        at_least("effective", self, ("components", "steps"), 1)
        at_least("effective", self, [f.name for f in dataclasses.fields(self)])


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything ``opml train`` needs.

    Attributes:
      data: labels and splits.
      model: the model.
      network: an operator network, trained in place of ``model`` if given.
      operator: an Op2Op model, in place of ``model`` if given; targets are then [fock], [dm], or
        observables; ``optim``, ``losses`` and ``seed`` have a part only in its network, if any.
      density: an Op2Density model, in place of ``model`` if given; targets are then [density];
        ``optim`` and ``seed`` have a part only in its network, if any, and ``losses`` none.
      effective: how it is fitted to observables of a larger basis (targets among mo_energy,
        dipole, lowdin_charges and polarizability).
      optim: the networks' training.
      losses: of the network of ``operator``.
      targets: which of energy, forces, dipole, quadrupole, polarizability and
        isotropic_polarizability to learn; energy is always among them.
      seed: of initial weights and batch order.
    """

    data: DataConfig = DataConfig()
    model: Op2PropConfig = Op2PropConfig()
    network: OperatorNetworkConfig | None = None
    operator: Op2OpConfig | None = None
    density: Op2DensityConfig | None = None
    effective: EffectiveConfig | None = None
    optim: OptimConfig = OptimConfig()
    losses: OperatorLosses = OperatorLosses()
    targets: tuple[str, ...] = ("energy", "forces", "dipole")
    seed: int = 0

    def __post_init__(self):
        self._check_targets()
        plain = OptimConfig()
        own = ("patience", "schedule", "warm_up")
        if self.network and any(getattr(self.optim, k) != getattr(plain, k) for k in own):
            raise ConfigError(
                refusal(
                    "optim",
                    got=", ".join(f"{k} {getattr(self.optim, k)}" for k in own),
                    expected="the defaults: an operator network keeps its last epoch, and has a "
                    "schedule of its own",
                )
            )
        if self.data.n_calibration and not self.doubts:
            raise ConfigError(
                refusal(
                    "data.n_calibration",
                    got=f"{self.data.n_calibration}, and a model without standard deviations",
                    expected="0",
                    hint="model.members, model.last_layer, density.uncertainty and "
                    "operator.uncertainty have them.",
                )
            )

    @property
    def doubts(self) -> bool:
        """Whether the model has standard deviations."""
        if self.density is not None:
            return self.density.uncertainty
        if self.operator is not None:
            return self.operator.uncertainty
        return self.network is None and (self.model.members > 1 or self.model.last_layer)

    def _check_targets(self):
        if self.density is not None or "density" in self.targets:
            others = (self.operator, self.network, self.effective)
            if self.density is None or any(others) or self.targets != ("density",):
                raise ConfigError(
                    refusal(
                        "targets",
                        got=self.targets,
                        expected="[density], with density: and no operator:, network: or "
                        "effective:",
                        hint="opml config template density prints such a configuration.",
                    )
                )
            return
        if self.effective is not None:
            self._check_effective()
            return
        if self.operator is not None or {"fock", "dm"} & set(self.targets):
            operator, wanted = self.operator, self.targets
            fits = operator is not None and self.network is None and wanted == (operator.target,)
            if operator is None or not fits or operator.window != "lowest":
                raise ConfigError(
                    refusal(
                        "targets",
                        got=self.targets,
                        expected="[fock] or [dm], as operator.target says, with operator.window: "
                        "lowest and no network:",
                        hint="opml config template op2op prints such a configuration.",
                    )
                )
            return
        unknown = [t for t in self.targets if t not in TARGETS]
        if unknown or "energy" not in self.targets:
            raise ConfigError(
                refusal("targets", got=self.targets, expected=f"energy and any of {TARGETS}")
            )
        if self.model.density and "dipole" in self.targets:
            raise ConfigError(
                refusal(
                    "targets",
                    got="dipole among them, and model.density",
                    expected="no dipole: it is that of the density",
                    hint="opml config template density-energy prints such a configuration.",
                )
            )
        if self.optim.field_dipole_sigma and "dipole" not in self.targets:
            raise ConfigError(
                refusal(
                    "targets",
                    got=self.targets,
                    expected="dipole among them",
                    hint="optim.field_dipole_sigma fits derivatives in a field to dipoles.",
                )
            )

    def _check_effective(self):
        """Observables as targets of a one-shot Op2Op model."""
        operator, expected = self.operator, None
        converges = operator is not None and operator.density_words and not operator.stages
        if operator is None or self.network or operator.network or converges:
            expected = "operator: with density_words: [] or stages, and no network:"
        elif operator.uncertainty:
            expected = "operator.uncertainty: false"
        elif not self.targets or not set(self.targets) <= set(OBSERVABLES):
            expected = f"targets among {OBSERVABLES}"
        elif operator.window != "lowest" and self.targets != ("mo_energy",):
            expected = "targets: [mo_energy], unless operator.window is lowest"
        if expected:
            raise ConfigError(
                refusal(
                    "effective",
                    got=f"targets {self.targets}, operator {operator}",
                    expected=expected,
                    hint="opml config template effective prints such a configuration.",
                )
            )


def _convert(value: Any, kind: Any, name: str) -> Any:
    """A YAML value as a field's type, strictly."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = typing.get_args(kind)
        if value is None and type(None) in kinds:
            return None
        return _convert(value, next(k for k in kinds if k is not type(None)), name)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
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
        one_of(f"a key of {where or 'config'}", key, kinds)
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

    if not Path(path).is_file():
        hint = f"{near_path(path)} opml config template own > {path} makes one."
        raise ConfigError(
            refusal(
                "config", got=f"{path}, which is not a file", expected="a YAML file", hint=hint
            ),
            code=Code.NO_FILE,
        )
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as err:
        raise ConfigError(
            refusal(str(path), got=f"an unreadable file ({err})", expected="a YAML configuration"),
            code=Code.DAMAGED,
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
        for k, v in (config if isinstance(config, Mapping) else dataclasses.asdict(config)).items()
    }


def explained(config: TrainConfig) -> str:
    """A configuration as YAML, every key that has a part in it with what it means."""
    import yaml

    lines = []
    idle = ("losses", *(("model",) if config.network else ()))
    if config.operator:
        idle = ("model",) if config.operator.network else ("model", "optim", "losses", "seed")
    if config.density:
        idle = ("model", "operator", "network", "losses")
        idle += () if config.density.network else ("optim", "seed")
    idle += tuple(k for k in ("effective", "density") if getattr(config, k) is None)

    def emit(part, indent):
        about = _attribute_docs(type(part))
        for key, value in to_mapping(part).items():
            if part is config and key in idle:
                continue
            pad = "  " * indent
            lines.extend(f"{pad}# {text}" for text in about.get(key, ()))
            if isinstance(value, dict):
                lines.append(f"{pad}{key}:")
                emit(getattr(part, key), indent + 1)
            else:
                text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n")
                lines.append(f"{pad}{key}: {text.strip()}")

    emit(config, 0)
    return "\n".join(lines) + "\n"


def _attribute_docs(cls: type) -> dict[str, list[str]]:
    """The ``Attributes:`` section of a docstring, by attribute."""
    found: dict[str, list[str]] = {}
    current = None
    # without indentation, which Python 3.13 takes away itself
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    for line in section.splitlines():
        text = line.strip()
        if not text:
            continue
        if len(line) - len(line.lstrip()) == 2:
            current, _, text = text.partition(": ")
            found[current] = []
        if current:
            found[current].append(text.replace("``", ""))
    return found
