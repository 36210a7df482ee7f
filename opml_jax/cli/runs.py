"""What train and quickstart share: run directories and their contents."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..training.config import DataConfig, TrainConfig
from ..training.trainer import Trained

HEADINGS = (
    ("density_error_percent", "density", "%"),
    ("density_self_energy_mae_uha", "self-energy", "uHa"),
    ("fock_mae_uha", "Fock", "uHa"),
    ("eigenvalue_occupied_mae_uha", "occupied", "uHa"),
    ("eigenvalue_virtual_mae_uha", "virtual", "uHa"),
    ("gap_mae_uha", "gap", "uHa"),
    ("lowdin_charges_mae_e", "charges", "e"),
    ("dm_mae", "P", ""),
    ("energy_mae_mev", "energy", "meV"),
    ("forces_mae_mev_per_angstrom", "forces", "meV/A"),
    ("dipole_mae_debye", "dipole", "D"),
    ("quadrupole_mae_ebohr2", "quadrupole", "e Bohr^2"),
    ("polarizability_mae_bohr3", "polarizability", "Bohr^3"),
    ("isotropic_polarizability_mae_bohr3", "isotropic", "Bohr^3"),
)


DONE = "report.html"
"""The last file of a run."""

JUDGED = 200
"""Structures whose standard deviations are held against their errors, at most: those of forces cost
a derivative in every coordinate."""


def enable_x64() -> None:
    """The command line, unlike the library, turns float64 on by itself.

    Raises:
      OpmlError: the environment asks for a device that is not there.
    """
    import jax

    from ..errors import Code, OpmlError, refusal

    jax.config.update("jax_enable_x64", True)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as err:  # JAX has both, with and without a plugin
        got = f"{os.environ.get('JAX_PLATFORMS', 'unset')}, which JAX cannot start"
        hint = "Unset it, or install JAX for that device."
        raise OpmlError(
            refusal("JAX_PLATFORMS", got=got, expected="a device that is there", hint=hint),
            code=Code.DEVICE,
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
    from ..errors import Code, DataError, refusal

    validation = max(1, there // 10)
    also = config.n_calibration > 0
    raise DataError(
        refusal(
            "data.n_train + data.n_validation" + also * " + data.n_calibration",
            got=f"{config.n_train} + {config.n_validation}" + also * f" + {config.n_calibration}",
            expected=f"at most {there}, the structures of {config.path}",
            hint=f"For example --set data.n_train={max(1, there - (2 + also) * validation)} "
            f"--set data.n_validation={validation}"
            + also * f" --set data.n_calibration={validation}"
            + ".",
        ),
        code=Code.SPLIT,
    )


@contextlib.contextmanager
def stages(*, quiet: bool = False) -> Iterator[Callable[[str, int, int, str], None]]:
    """A reporter for :func:`opml_jax.training.train` that shows one progress bar per stage."""
    from .progress import Progress

    if quiet:
        yield lambda stage, done, total, note: None
        return

    with contextlib.ExitStack() as stack:
        current: list = [None, None]

        def report(stage: str, done: int, total: int, note: str) -> None:
            if current[0] != stage:
                stack.close()
                current[:] = [stage, stack.enter_context(Progress(stage))]
            current[1].update(done, total, note=note)

        yield report


def check_writable(folder: Path) -> None:
    """Refuse a run directory that cannot be made, before anything is computed."""
    from ..errors import Code, OpmlError, refusal

    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OpmlError(
            refusal("output", got=str(folder), expected="a directory one may write to"),
            code=Code.NOT_WRITABLE,
        )


def check_same(folder: Path, config: TrainConfig) -> None:
    """Refuse a run directory of another configuration, and say what differs."""
    from ..errors import Code, ConfigError, refusal
    from ..training.config import load_config, to_mapping

    path = folder / "config.yaml"
    if not path.exists():
        return
    try:
        earlier = load_config(path)
    except ConfigError as err:
        raise ConfigError(f"{path}: {err.message} --restart replaces it.", code=err.code) from err

    def flat(tree: dict, prefix: str = "") -> dict:
        found = {}
        for key, value in tree.items():
            name = prefix + key
            found |= flat(value, name + ".") if isinstance(value, dict) else {name: value}
        return found

    old, new = flat(to_mapping(earlier)), flat(to_mapping(config))
    other = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    if other:
        raise ConfigError(
            refusal(
                str(folder),
                got="one with " + ", ".join(f"{k} {old.get(k)} (not {new.get(k)})" for k in other),
                expected="a new run directory or one of this configuration",
                hint="Choose another, or train it anew with --restart.",
            ),
            code=Code.OTHER_RUN,
        )


def complete(folder: Path, curve: bool) -> bool:
    """Whether a run directory holds all that :func:`evaluate_run` leaves, and nothing to go on."""
    from ..training.checkpoint import STATE, STRUCTURES

    names = (DONE, "metrics.json", "model.safetensors", *["learning_curve.jsonl"] * curve)
    there = all((folder / name).is_file() for name in names)
    return there and not any((folder / name).exists() for name in (STATE, STRUCTURES))


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
    from ..models import save_model
    from ..training import train
    from ..training.checkpoint import forget, write_history
    from ..training.config import to_mapping
    from ..training.parallel import is_first, wait
    from ..training.trainer import check_trainable

    folder = Path(output)
    check_writable(folder)
    if not restart:
        check_same(folder, config)
    dataset, splits = load_data(config.data)
    check_trainable(dataset, splits, config)
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        if restart:
            forget(folder)
            (folder / DONE).unlink(missing_ok=True)
        write_text(folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False))
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
    from ..models import save_model
    from ..report import Section, write_report
    from ..training.calibration import reliability, shares
    from ..training.checkpoint import forget, write_history
    from ..training.metrics import check_compatible, errors
    from .progress import working

    sets = {k: dataset.subset(i) for k, i in splits.items() if i}
    sets |= extra or {}
    metrics: dict[str, dict[str, float]] = {}
    sections = []
    with working(f"errors of {sum(map(len, sets.values()))} structures (compiles first)"):
        for name, part in sets.items():
            check_compatible(trained.model, part)
            predicted = trained.model.predict(part.structures)
            less = trained.model.without
            metrics[name] = errors(predicted, part, trained.model)
            if less:
                alone: dict[str, Any] = {less: True}
                fewer = trained.model.predict(part.structures, **alone)
                metrics[f"{name}_{less}"] = errors(fewer, part)
            sections.append(Section(name, part, predicted, splits.get(name, range(len(part)))))
        judged = "test" if "test" in sets else [*sets][-1]
        some = sets[judged].subset(range(min(len(sets[judged]), JUDGED)))
        doubts = reliability(trained.model, some)
        metrics[judged] |= shares(doubts)
    folder = Path(output)
    sizes = {name: len(part) for name, part in sets.items()}
    card = {**trained.model.card, "splits": sizes, "metrics": metrics, "seconds": trained.seconds}
    model = dataclasses.replace(trained.model, card=card)
    save_model(folder / "model.safetensors", model)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_text(folder / "card.md", card_text(card))
    if curve:
        write_history(folder / "learning_curve.jsonl", curve)
    write_report(folder / DONE, model, sections, trained.history, metrics, curve, doubts)
    forget(folder)
    if not quiet:
        print(table(metrics))
    return metrics


def table(metrics: dict[str, dict[str, float]]) -> str:
    """Mean absolute errors, one row per set, the earlier part alone beside the model."""
    columns = [h for h in HEADINGS if any(h[0] in m for m in metrics.values())]
    titles = [f"  {name} {unit}".rjust(16) for _, name, unit in columns]
    head = f"{'mean absolute error':<22}" + "".join(titles)
    lines = [head, "-" * len(head)]
    for name, row in metrics.items():
        less = next((k for k in ("linear", "guess") if name.endswith(f"_{k}")), "")
        label = f"{name.removesuffix(f'_{less}')} ({less or 'model'})"
        cells = (
            f"{row[key]:>{len(title)}.3g}" if key in row else "-".rjust(len(title))
            for (key, _, _), title in zip(columns, titles, strict=True)
        )
        lines.append(f"{label:<22}" + "".join(cells))
    return "\n".join(lines)


def card_text(card: dict) -> str:
    """A model card as Markdown: what it is, what it saw, how well it does, where it ends."""
    reference = card.get("reference", {})
    level = "/".join(str(reference[k]) for k in ("method", "basis") if k in reference) or "unstated"
    lines = [
        "# Model card",
        "",
        f"- **Model**: {card['model']}",
        f"- **Elements**: {', '.join(card['elements'])}",
        f"- **Targets**: {', '.join(card['targets'])}",
        f"- **Labels**: {level}, from {card['source'] or 'an unnamed source'}"
        f"; geometries and labels of training and validation have the hash {card['data_hash']}",
        f"- **Structures**: {', '.join(f'{k} {n}' for k, n in card['splits'].items())}",
        f"- **Seeds**: training {card['config']['seed']}, random split "
        f"{card['config']['data']['seed']}",
        f"- **Versions**: {', '.join(f'{k} {v}' for k, v in card['versions'].items())}",
        "",
        "## Errors",
        "",
        "```",
        table(card["metrics"]),
        "```",
        "",
        "## Limits",
        "",
        "Neutral closed-shell molecules of the elements above, near the geometries it was trained "
        "on. Outside them errors are unknown; `opml predict` warns of pairs of elements never seen "
        "as close, and unasked of nothing else.",
        "",
        *_doubts(card),
        "Units inside the file: Hartree, Bohr, e.",
        "",
    ]
    return "\n".join(lines)


def _doubts(card: dict) -> list[str]:
    """What a card says about standard deviations."""
    if "largest_doubt" not in card:
        return []
    scaled = "calibration" if "calibration" in card["splits"] else "validation"
    return [
        f"`opml predict --uncertainty` gives standard deviations, scaled on the {scaled} set, and "
        "names structures where they are more than twice the largest there: hints, no bounds.",
        "",
    ]
