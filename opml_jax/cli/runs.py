"""What train and quickstart share: run directories and their contents."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import Dataset
from ..training.config import DataConfig, TrainConfig
from ..training.run import Trained

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.family import Evaluated

DONE = "report.html"
"""The last file of a run."""

JUDGED = 200
"""Structures whose standard deviations are held against their errors, at most: those of forces cost
a derivative in every coordinate."""


def enable_x64() -> None:
    """The command line, unlike the library, turns float64 on and keeps compiled programs.

    Raises:
      OpmlError: the environment asks for a device that is not there.
    """
    import jax

    from ..errors import Code, OpmlError
    from ..programs import keep_programs

    jax.config.update("jax_enable_x64", True)
    keep_programs()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as err:  # JAX has both, with and without a plugin
        got = f"{os.environ.get('JAX_PLATFORMS', 'unset')}, which JAX cannot start"
        hint = "Unset it, or install JAX for that device."
        raise OpmlError(
            "JAX_PLATFORMS", got=got, expected="a device that is there", hint=hint, code=Code.DEVICE
        ) from err


def load_data(config: DataConfig) -> tuple[Dataset, dict[str, list[int]]]:
    """Data set and splits of a configuration; ``bundled:NAME`` stands for bundled files."""
    from ..data import bundled, check_splits, random_split, read_dataset, read_splits
    from ..data.labels import parse_labels

    def path(text: str, suffix: str) -> Path:
        name = text.removeprefix("bundled:")
        return bundled(name, suffix) if text.startswith("bundled:") else Path(text)

    dataset = read_dataset(
        path(config.path, ".h5"),
        labels=parse_labels(config.labels),
        length_unit=config.length_unit or None,
        energy_unit=config.energy_unit or None,
        basis=config.basis or None,
        convention=config.convention or None,
        limit=config.limit or None,
    )
    if config.splits:
        splits = read_splits(path(config.splits, ".splits.json"))
    else:
        rest = len(dataset) - config.n_train - config.n_validation - config.n_calibration
        if rest < 0 and len(dataset) > 1:
            _refuse_sizes(config, len(dataset))
        n_test = max(rest, 0) if config.n_test < 0 else config.n_test
        sizes = (config.n_train, config.n_validation, n_test)
        splits = random_split(
            len(dataset), *sizes, seed=config.seed, calibration=config.n_calibration
        )
    check_splits(dataset, splits)
    return dataset, splits


def _refuse_sizes(config: DataConfig, there: int) -> None:
    """Training and validation ask for more than is ``there``: say what would do."""
    from ..errors import Code, DataError

    validation = max(1, there // 10)
    also = config.n_calibration > 0
    raise DataError(
        "data.n_train + data.n_validation" + also * " + data.n_calibration",
        got=f"{config.n_train} + {config.n_validation}" + also * f" + {config.n_calibration}",
        expected=f"at most {there}, the structures of {config.path}",
        hint=f"For example --set data.n_train={max(1, there - (2 + also) * validation)} "
        f"--set data.n_validation={validation}"
        + also * f" --set data.n_calibration={validation}"
        + ".",
        code=Code.SPLIT,
    )


@contextlib.contextmanager
def stages(*, quiet: bool = False) -> Iterator[Callable[[str, int, int, str], None]]:
    """A reporter for :func:`opml_jax.training.train` that says what is going on."""
    from .progress import Progress

    with Progress(quiet=quiet) as progress:
        yield progress.report


def check_writable(folder: Path) -> None:
    """Refuse a run directory that cannot be made, before anything is computed."""
    from ..errors import Code, OpmlError

    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OpmlError(
            "output",
            got=str(folder),
            expected="a directory one may write to",
            code=Code.NOT_WRITABLE,
        )


def check_same(folder: Path, config: TrainConfig) -> None:
    """Refuse a run directory of another configuration, and say what differs."""
    from ..errors import Code, ConfigError
    from ..training.config import flat, load_config, mapping_of

    path = folder / "config.yaml"
    if not path.exists():
        return
    try:
        earlier = load_config(path)
    except ConfigError as err:
        raise ConfigError(f"{path}: {err.message} --restart replaces it.", code=err.code) from err
    old, new = flat(mapping_of(earlier)), flat(mapping_of(config))
    other = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    if other:
        raise ConfigError(
            str(folder),
            got="one with " + ", ".join(f"{k} {old.get(k)} (not {new.get(k)})" for k in other),
            expected="a new run directory or one of this configuration",
            hint="Choose another, or train it anew with --restart.",
            code=Code.OTHER_RUN,
        )


def check_same_data(folder: Path, config: TrainConfig) -> None:
    """Refuse a finished run whose data file holds other structures, labels or splits by now."""
    from ..errors import Code, ConfigError
    from ..models import load_model
    from ..training.run import data_hash

    if not config.data.path.startswith("bundled:") and not Path(config.data.path).exists():
        return  # moved away since; what is there is complete
    now = data_hash(*load_data(config.data), config)
    then = load_model(folder).card.get("data_hash", now)
    if then != now:
        raise ConfigError(
            str(folder),
            got=f"one of other data: {config.data.path} has the hash {now}, and had {then}",
            expected="a new run directory or one of these data",
            hint="Choose another, or train it anew with --restart.",
            code=Code.OTHER_RUN,
        )


def complete(folder: Path, curve: bool) -> bool:
    """Whether a run directory holds all that :func:`evaluate_run` leaves, and nothing to go on."""
    from ..learn.states import STATES

    names = (DONE, "metrics.json", "model.safetensors", *["learning_curve.jsonl"] * curve)
    there = all((folder / name).is_file() for name in names)
    return there and not (folder / STATES).exists()


@contextlib.contextmanager
def run_directory(output: str) -> Iterator[None]:
    """Keep other trainings out of a run directory; of several processes the first one does.

    One that was made is gone again if nothing was written into it.

    Raises:
      OpmlError: another process trains into it; it cannot be made.
    """
    from ..data.files import locked
    from ..learn.devices import is_first

    enable_x64()
    if not is_first():
        yield
        return
    folder = Path(output)
    check_writable(folder)
    missing = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            yield
    finally:
        if missing and not any(folder.iterdir()):
            folder.rmdir()


def train_run(
    config: TrainConfig, output: str, *, restart: bool = False, tensorboard: bool = False
) -> tuple[Trained, Dataset, dict[str, list[int]]]:
    """Train, and write configuration, splits, history and model into a run directory.

    A run that was killed goes on where it was. Of several processes the first one writes.

    Args:
      config: the configuration.
      output: run directory.
      restart: forget what the directory holds, of whichever configuration.
      tensorboard: also write the history for TensorBoard.
    """
    enable_x64()
    import yaml

    from ..data.files import write_text
    from ..data.splits import write_splits
    from ..learn.devices import is_first, wait
    from ..learn.history import write_history
    from ..learn.states import forget
    from ..models import save_model
    from ..training import train
    from ..training.config import mapping_of
    from ..training.run import check_trainable
    from .progress import working

    folder = Path(output)
    check_writable(folder)
    if not restart:
        check_same(folder, config)
    with working("reading and checking data"):
        dataset, splits = load_data(config.data)
        check_trainable(dataset, splits, config)
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        if restart:
            forget(folder)
            (folder / DONE).unlink(missing_ok=True)
        write_text(folder / "config.yaml", yaml.safe_dump(mapping_of(config), sort_keys=False))
        write_splits(folder / "splits.json", splits)
    wait("run directory")
    with stages(quiet=not is_first()) as report:
        trained = train(
            dataset, splits, config, folder=folder, tensorboard=tensorboard, on_progress=report
        )
    if is_first():
        write_history(folder / "history.jsonl", trained.history)
        save_model(folder / "model.safetensors", trained.model)
    return trained, dataset, splits


def evaluate_run(
    output: str,
    trained: Trained,
    dataset: Dataset,
    splits: dict[str, list[int]],
    extra: dict[str, Dataset] | None = None,
    *,
    curve: Sequence[dict] = (),
    quiet: bool = False,
) -> dict[str, dict[str, float]]:
    """Errors per split, model and closed form alone, and a report; saved with the model's card.

    This completes the run: what a killed one would have gone on from is deleted.

    Args:
      output: run directory.
      trained: result of training.
      dataset: all labels.
      splits: indices.
      extra: further labelled sets, judged like a split under their name.
      curve: rows of a learning curve for the report.
      quiet: do not print the table.
    """
    from ..data.files import write_text
    from ..errors import counted
    from ..learn.history import write_history
    from ..learn.states import forget
    from ..models import save_model
    from ..report import text_table, write_report
    from ..training.calibration import reliability, shares
    from ..training.card import card_text
    from ..training.verdict import verdict
    from .progress import COMPILES, Progress

    sets = {k: dataset.subset(i) for k, i in splits.items() if i} | (extra or {})
    n = counted(sum(map(len, sets.values())), "structure")
    with Progress(f"errors of {n}", COMPILES) as progress:
        metrics, evaluated = evaluate_sets(trained.model, sets, splits, progress.update)
        progress.update(len(sets), len(sets), note="standard deviations")
        judged = "test" if "test" in sets else [*sets][-1]
        some = sets[judged].subset(range(min(len(sets[judged]), JUDGED)))
        doubts = reliability(trained.model, some)
        metrics[judged] |= shares(doubts)
    folder = Path(output)
    sizes = {name: len(part) for name, part in sets.items()}
    card = {
        **trained.model.card,
        "splits": sizes,
        "metrics": metrics,
        "warnings": verdict(metrics, evaluated),
        "seconds": trained.seconds,
    }
    model = dataclasses.replace(trained.model, card=card)
    save_model(folder / "model.safetensors", model)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_text(folder / "card.md", card_text(card, text_table(metrics)))
    if curve:
        write_history(folder / "learning_curve.jsonl", curve)
    with Progress("report"):
        write_report(folder / DONE, model, evaluated, trained.history, metrics, curve, doubts)
    forget(folder)
    if not quiet:
        print(text_table(metrics))
    for text in card["warnings"]:
        print(f"warning: {text}")
    return metrics


def evaluate_sets(
    model: Model,
    sets: dict[str, Dataset],
    splits: dict[str, list[int]],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, dict[str, float]], list[Evaluated]]:
    """Errors of a model, its earlier parts and its baseline on each set, and its predictions.

    ``on_progress`` is called with sets done and sets in all.
    """
    from ..structures.names import called
    from ..training.metrics import baseline_errors, check_compatible, judged

    metrics, evaluated = {}, []
    for done, (name, part) in enumerate(sets.items()):
        on_progress(done, len(sets))
        check_compatible(model, part)
        indices = splits.get(name, range(len(part)))
        with called(indices):
            metrics[name], whole = judged(model, part, name, indices)
            for part_name, earlier in model.parts.items():
                metrics[f"{name}_{part_name}"], _ = judged(earlier, part)
            if name != "train" and (found := baseline_errors(model, whole)):
                metrics[f"{name}_baseline"] = found
        evaluated.append(whole)
    return metrics, evaluated
