"""What a family of models is, and which there are.

A family is a folder: ``config``, ``functions``, ``model``, ``fit``, ``metrics`` and what else it
needs, and in its ``__init__`` a class of its own of :class:`Family` with an instance ``FAMILY``.
Everything outside asks the family, by the name in a configuration or in a model file, and never for
a class of definitions or models.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..basis import Basis
from ..data import Dataset
from ..errors import ConfigError, one_of
from ..learn.schema import from_mapping, to_mapping
from .base import Definition, Model, ModelConfig, Params
from .base.metrics import quantity_errors

if TYPE_CHECKING:
    from ..learn.run import Run

FOLDERS = {
    "op2prop": "opml_jax.models.op2prop",
    "op2op": "opml_jax.models.op2op",
    "op2density": "opml_jax.models.op2density",
    "density2prop": "opml_jax.models.density2prop",
}
"""Families of the library by name, imported when they are asked for."""

_registered: dict[str, Family] = {}


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a family's training gives back.

    Attributes:
      params: Parameters of the model.
      facts: What its card should say beside what every card says.
      history: One row an epoch.
      refit: Of indices into the training set: parameters of the closed form solved for these
        structures alone, or None if they lack an element; for learning curves.
      definition: The functions with settings that training chose; None: as they were.
    """

    params: Params
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    refit: Callable[[np.ndarray], Params | None] | None = None
    definition: Definition | None = None


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One evaluated set of structures.

    Attributes:
      name: Of the set.
      dataset: Structures and references.
      predicted: As ``model.predict`` returns.
      indices: Of the structures in the file they are from.
      failed: Likewise, of those without a prediction, which are not in the set.
    """

    name: str
    dataset: Dataset
    predicted: Mapping[str, np.ndarray]
    indices: Sequence[int]
    failed: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
    """A section of the report.

    Attributes:
      title: Its heading.
      figure: Draws it, a ``matplotlib.figure.Figure``.
      note: What it shows, in words.
    """

    title: str
    figure: Callable[[], Any]
    note: str


@dataclasses.dataclass(frozen=True)
class Template:
    """A configuration to start from.

    Attributes:
      about: What it is for, and what a user sets.
      data: Settings of the data that are not the defaults.
      model: Of the model and its training.
    """

    about: str
    data: dict[str, Any]
    model: ModelConfig


class Family(abc.ABC):
    """A family of models: from a configuration to a trained model and its errors.

    Attributes:
      name: Of the family: ``model.family`` in configurations, and ``family`` in model files.
      about: What its models are, in a sentence.
      Config: Class of its configurations.
      Functions: Class of its definitions.
      Model: Class of its trained models.
      spreads: Whether its training runs in several processes.
      refits: Whether :attr:`Fit.refit` is there, so that learning curves can be had.
      starts: Whether its training reads ``run.origin``, a model to start from.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    Config: ClassVar[type[ModelConfig]]
    Functions: ClassVar[type[Definition]]
    Model: ClassVar[type[Model]]
    spreads: ClassVar[bool] = False
    refits: ClassVar[bool] = False
    starts: ClassVar[bool] = False

    @abc.abstractmethod
    def define(self, config: Any, elements: Sequence[int]) -> Definition:
        """The pure functions of a configuration, with bases loaded for ``elements``.

        Raises:
          BasisError: an element that a basis lacks.
        """

    @abc.abstractmethod
    def check(self, definition: Any, config: Any, sets: Mapping[str, Dataset]) -> None:
        """Refuse data that cannot be learned, before anything is computed or written.

        Args:
          definition: of :meth:`define`.
          config: the configuration, with its ``fit``.
          sets: ``train``, ``validation`` and perhaps ``calibration``.

        Raises:
          DataError: labels that are missing, or not numbers, or of ions.
          ConventionError: labels in another basis or order.
        """

    @abc.abstractmethod
    def fit(self, definition: Any, config: Any, sets: Mapping[str, Dataset], run: Run) -> Fit:
        """Train; arguments as for :meth:`check`, and the run, which keeps states and reports."""

    def learned(self, config: Any, dataset: Dataset) -> list[str]:
        """Labels of a data set that training reads; they are in the fingerprint of a run."""
        return [name for name in config.targets if name in dataset]

    def written(self, model: Any) -> dict[str, Any]:
        """What a configuration says of a model's functions."""
        return to_mapping(model.definition.config)

    def fingerprint_arrays(self, definition: Any, config: Any) -> list[np.ndarray]:
        """Arrays beside the labels that decide what training comes to."""
        return []

    def errors(
        self, predicted: Mapping[str, np.ndarray], dataset: Dataset, model: Model
    ) -> dict[str, float]:
        """Errors of predictions, units in their names."""
        return quantity_errors(predicted, dataset)

    def details(
        self,
        predicted: Mapping[str, np.ndarray],
        dataset: Dataset,
        model: Any,
        metrics: Mapping[str, float],
    ) -> list[str]:
        """Lines that ``opml evaluate`` prints below its table."""
        return []

    def describe(self, config: Any) -> str:
        """What a model card says that the model is."""
        return self.about

    def summary(self, model: Any) -> str:
        """What a model reads, in words, for the report."""
        return f"operators in {model.definition.basis.name}"

    def parity(self, evaluated: Evaluated) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
        """``(name, unit, reference, predicted)`` for the report, beside those of all families."""
        return []

    def worst(self, evaluated: Evaluated) -> dict[str, tuple[np.ndarray, str]]:
        """Errors of each structure and how they are written, beside those of all families."""
        return {}

    def pictures(self, model: Any, evaluated: Evaluated) -> list[Picture]:
        """Sections of the report that are this family's own."""
        return []

    def templates(self) -> dict[str, Template]:
        """Configurations to start from, by name: ``TEMPLATES`` of the folder's ``templates``."""
        module = self._beside("templates")
        return {} if module is None else module.TEMPLATES

    def migrated(self, tree: Mapping[str, Any]) -> dict[str, Any] | None:
        """The ``model`` section for a configuration of version 0.1, if it was of this family."""
        module = self._beside("legacy")
        return None if module is None else module.migrated(tree)

    def _beside(self, name: str) -> Any:
        """A module of the family's folder, if it has one of that name."""
        folder = type(self).__module__.rpartition(".")[0]
        there = folder and find_spec(f"{folder}.{name}") is not None
        return import_module(f"{folder}.{name}") if there else None

    def header(self, definition: Any) -> dict[str, Any]:
        """What a model file says of a definition beside its configuration and bases."""
        return {}

    def read_config(self, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration in a model file."""
        return from_mapping(self.Config, {**values, "fit": None})

    def restore(self, header: Mapping[str, Any], bases: Mapping[str, Basis]) -> Definition:
        """The definition in a model file.

        Args:
          header: of the file, with ``config``.
          bases: by the names of the definition's bases.
        """
        return self.Functions(self.read_config(header["config"]), **bases)

    def model(self, definition: Any, params: Params, card: dict[str, Any]) -> Model:
        """A trained model."""
        return self.Model(definition, params, card)


def register(own: Family) -> Family:
    """Make a family known under its name, such as one that is not part of the library.

    Raises:
      ConfigError: another family has that name.
    """
    known = own.name in FOLDERS or _registered.get(own.name, own) is not own
    if known:
        raise ConfigError(f"there is a family {own.name!r} already; choose another name.")
    _registered[own.name] = own
    return own


def families() -> list[str]:
    """Names of all families."""
    return [*FOLDERS, *_registered]


def family(name: str) -> Family:
    """The family of a name.

    Raises:
      ConfigError: there is none; the nearest is named.
    """
    one_of("model.family", name, families())
    if name in _registered:
        return _registered[name]
    return import_module(FOLDERS[name]).FAMILY


def family_of(what: ModelConfig | Definition | Model) -> Family:
    """The family of a configuration, a definition or a model."""
    for attribute in ("definition", "config"):
        what = getattr(what, attribute, what)
    return family(what.family)  # pyright: ignore[reportAttributeAccessIssue]
