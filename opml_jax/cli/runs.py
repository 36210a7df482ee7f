"""What train and quickstart share: run directories and their contents."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..data import Dataset
from ..training.config import DataConfig, TrainConfig
from ..training.trainer import Trained

HEADINGS = (
    ("energy_mae_mev", "energy", "meV"),
    ("forces_mae_mev_per_angstrom", "forces", "meV/A"),
    ("dipole_mae_debye", "dipole", "D"),
)


def enable_x64() -> None:
    """The command line, unlike the library, turns float64 on by itself."""
    import jax

    jax.config.update("jax_enable_x64", True)


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
    )
    if config.splits:
        splits = read_splits(path(config.splits, ".splits.json"))
    else:
        rest = len(dataset) - config.n_train - config.n_validation
        n_test = max(rest, 0) if config.n_test < 0 else config.n_test
        splits = random_split(
            len(dataset), config.n_train, config.n_validation, n_test, seed=config.seed
        )
    check_splits(dataset, splits)
    return dataset, splits


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int, str], None]]:
    """A reporter for :func:`opml_jax.training.train` that shows one progress bar per stage."""
    from .progress import Progress

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
    from ..errors import OpmlError, refusal

    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OpmlError(refusal("output", got=str(folder), expected="a directory one may write to"))


def train_run(config: TrainConfig, output: str) -> tuple[Trained, Dataset, dict[str, list[int]]]:
    """Train, and write configuration, splits, history and model into a run directory."""
    enable_x64()
    import yaml

    from ..data.files import write_text
    from ..data.splits import write_splits
    from ..models import save_model
    from ..training import train
    from ..training.config import to_mapping

    folder = Path(output)
    check_writable(folder)
    dataset, splits = load_data(config.data)
    with stages() as report:
        trained = train(dataset, splits, config, on_progress=report)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False))
    write_splits(folder / "splits.json", splits)
    write_text(folder / "history.jsonl", "".join(json.dumps(r) + "\n" for r in trained.history))
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
    from ..models import Model, save_model
    from ..report import Section, write_report
    from ..training.metrics import check_compatible, errors

    sets = {k: dataset.subset(i) for k, i in splits.items() if i}
    sets |= extra or {}
    metrics: dict[str, dict[str, float]] = {}
    sections = []
    for name, part in sets.items():
        check_compatible(trained.model, part)
        predicted = trained.model.predict(part.structures)
        linear = trained.model.predict(part.structures, linear=True)
        metrics[name] = errors(predicted, part)
        metrics[f"{name}_linear"] = errors(linear, part)
        sections.append(Section(name, part, predicted))
    folder = Path(output)
    card = {**trained.model.card, "metrics": metrics, "seconds": trained.seconds}
    model = Model(trained.model.definition, trained.model.params, card)
    save_model(folder / "model.safetensors", model)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_text(folder / "card.md", card_text(card))
    write_report(folder / "report.html", model, sections, trained.history, metrics, curve)
    if not quiet:
        print(table(metrics))
    return metrics


def table(metrics: dict[str, dict[str, float]]) -> str:
    """Mean absolute errors, one row per set, the closed form alone beside the model."""
    columns = [h for h in HEADINGS if any(h[0] in m for m in metrics.values())]
    head = f"{'mean absolute error':<22}" + "".join(
        f"{name + ' ' + unit:>16}" for _, name, unit in columns
    )
    lines = [head, "-" * len(head)]
    for name, row in metrics.items():
        label = (
            f"{name.removesuffix('_linear')} ({'linear' if name.endswith('_linear') else 'model'})"
        )
        cells = (f"{row[key]:>16.3g}" if key in row else f"{'-':>16}" for key, _, _ in columns)
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
        f"- **Labels**: {level}; {card['n_train']} training and {card['n_validation']} validation "
        f"structures from {card['source'] or 'an unnamed source'}",
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
        "on. Outside them errors are unknown and nothing warns.",
        "",
        "Units inside the file: Hartree, Bohr, e.",
        "",
    ]
    return "\n".join(lines)
