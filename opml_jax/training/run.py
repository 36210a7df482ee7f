"""From a data set and a configuration to a model, whichever family it is of."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from ..data import Dataset, check_splits
from ..errors import ConfigError
from ..learn.devices import is_first
from ..learn.history import History
from ..learn.run import Progress, Run, silent
from ..learn.states import fingerprint
from ..models.base import Definition, Model
from ..models.family import Fit, family
from ..models.files import load_model
from ..numerics import require_x64
from ..structures.names import called
from ..structures.trained_for import check_electrons, electrons_of, union_of
from .calibration import calibrated
from .card import card_of
from .config import TrainConfig, mapping_of
from .origin import card_with, check_origin, hash_of, with_largest_doubt


@dataclasses.dataclass(frozen=True)
class Trained:
    """Result of :func:`train`.

    Attributes:
      model: The model.
      seconds: Wall time of each stage.
      fit: What the family's training gave, with the history and what a learning curve needs.
    """

    model: Model
    seconds: dict[str, float]
    fit: Fit

    @property
    def history(self) -> list[dict[str, float]]:
        """One row an epoch."""
        return self.fit.history


def train(
    dataset: Dataset,
    splits: Mapping[str, Sequence[int]],
    config: TrainConfig,
    *,
    origin: Model | None = None,
    folder: str | os.PathLike | None = None,
    tensorboard: bool = False,
    on_progress: Progress = silent,
) -> Trained:
    """Train a model of any family: closed form first, then networks on what it leaves.

    Descriptors and networks of energies are spread over all devices, of one process or of several
    (:mod:`opml_jax.learn.devices`); batches must then divide evenly among them.

    Args:
      dataset: labelled structures in atomic units.
      splits: ``train`` and ``validation`` indices, and perhaps ``calibration``, which scales the
        standard deviations of models that have them (``test`` is not touched here).
      config: model and training.
      origin: a model of the same functions to start from: its closed form is what the new one's is
        drawn to, its networks are trained on, and its definition, scales and mixtures stand.
        Default: that of ``config.origin``, or none.
      folder: run directory that keeps descriptors, states of the networks and ``history.jsonl``
        as they come: after a kill the same call goes on from there, to the same weights.
        Several processes share one, and keep no descriptors. Default: nothing is kept.
      tensorboard: also write the history for TensorBoard, into the folder's ``tensorboard``.
      on_progress: called with (stage, done, total, note).

    Raises:
      DataError: targets the data lacks, NaN among them, splits that do not fit, or one composition
        with several charges or spins.
      StructureError: a charge or spin that the training split lacks.
      BasisError: an element the input basis lacks.
      ModelFileError: the folder holds the state of another training.
      PrecisionError: x64 is off.
    """
    require_x64("training")
    origin = origin_of(config, origin)
    definition, sets = check_trainable(dataset, splits, config, origin)
    chosen = family(config.model.family)
    data = _data(definition, config, sets, origin)
    settings = {"config": mapping_of(config)}
    run = Run(
        folder=None if folder is None else Path(folder),
        seed=config.seed,
        fingerprint=fingerprint(settings | _start(origin), *data),
        on_progress=on_progress,
        rows=_history(folder, tensorboard),
        origin=origin,
    )
    fit = chosen.fit(definition, config.model, sets, run)
    definition = fit.definition or definition
    card = card_of(definition, config, dataset, sets, fit, _hash(data, origin))
    model = chosen.model(definition, fit.params, card_with(origin, card) if origin else card)
    run.progress("standard deviations", 0, 1)
    model = calibrated(model.with_limits(sets["validation"].structures), sets)
    model = with_largest_doubt(origin, model) if origin else model
    run.progress("standard deviations", 1, 1)
    return Trained(model, run.seconds, fit)


def origin_of(config: TrainConfig, origin: Model | None = None) -> Model | None:
    """The model that training starts from: the one given, or that of the configuration, or none."""
    return origin or (load_model(config.origin) if config.origin else None)


def _start(origin: Model | None) -> dict[str, str]:
    """What a fingerprint has of a model that training starts from."""
    return {"origin": hash_of(origin)} if origin else {}


def check_trainable(
    dataset: Dataset,
    splits: Mapping[str, Sequence[int]],
    config: TrainConfig,
    origin: Model | None = None,
) -> tuple[Definition, dict[str, Dataset]]:
    """The definition and the sets of a training; refuses what cannot be learned.

    Nothing is computed or written before. Arguments as for :func:`train`.

    Raises:
      ConfigError: several processes, and a family whose training runs in one; a model to start
        from that has other functions, elements or targets.
      DataError: targets the data lacks, NaN among them, splits that do not fit, or one composition
        with several charges or spins.
      StructureError: a charge or spin that the training split lacks.
      BasisError: an element the input basis lacks.
    """
    origin = origin_of(config, origin)
    check_splits(dataset, splits)
    _check_electrons(dataset, splits, origin)
    chosen = family(config.model.family)
    if jax.process_count() > 1 and not chosen.spreads:
        got = f"{jax.process_count()} for {chosen.name}"
        expected = "one: models of energies and of matrices train on several"
        raise ConfigError("processes", got=got, expected=expected)
    names = [k for k in ("train", "validation", "calibration") if splits.get(k)]
    sets = {k: dataset.subset(splits[k]) for k in names}
    if origin is None:
        definition = chosen.define(config.model, sets["train"].elements)
    else:
        check_origin(origin, config.model, sets)
        definition = origin.definition
    chosen.check(definition, config.model, sets)
    return definition, sets


def _check_electrons(
    dataset: Dataset, splits: Mapping[str, Sequence[int]], origin: Model | None
) -> None:
    """Refuse charges and spins that no model tells apart, or that training would not know."""
    structures = dataset.structures
    known: dict = {"electrons": electrons_of([structures[i] for i in splits["train"]])}
    if origin and (before := origin.card.get("trained_for")):
        known = union_of(before, known)
    for name, indices in splits.items():
        with called(indices):
            check_electrons([structures[i] for i in indices], known, f"the {name} split")


def data_hash(dataset: Dataset, splits: Mapping[str, Sequence[int]], config: TrainConfig) -> str:
    """Hash of what a training reads, as a model's card has it.

    That is geometries and labels, and the weights of a model that it starts from.
    """
    origin = origin_of(config)
    definition, sets = check_trainable(dataset, splits, config, origin)
    return _hash(_data(definition, config, sets, origin), origin)


def _hash(data: tuple, origin: Model | None) -> str:
    return fingerprint(_start(origin), *data)


def _data(
    definition: Definition,
    config: TrainConfig,
    sets: Mapping[str, Dataset],
    origin: Model | None,
):
    """Structures and arrays that decide what a training comes to."""
    chosen, parts = family(config.model.family), [sets[k] for k in ("train", "validation")]
    structures = [s for part in parts for s in part.structures]
    labels = [
        values
        for part in parts
        for name in chosen.learned(config.model, part)
        for values in part.labels[name]
    ]
    others = [] if origin else chosen.fingerprint_arrays(definition, config.model)
    return structures, [*labels, *others]


def _history(folder: str | os.PathLike | None, tensorboard: bool) -> History | None:
    """The file of the rows of epochs, which the first of several processes writes."""
    if folder is None or not is_first():
        return None
    return History(Path(folder, "history.jsonl"), tensorboard=tensorboard)
