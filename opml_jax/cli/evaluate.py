"""``opml evaluate``: errors of a model on a labelled data set."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .options import add_reading_options

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import Model


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("run", metavar="RUN", help="run directory or model file")
    p.add_argument("data", metavar="DATA", help="labelled data, or bundled:water")
    p.add_argument("--split", help="judge only this split of --splits (default: all)")
    p.add_argument("--splits", default="", help="split file (default: splits.json of the run)")
    p.add_argument(
        "--scf",
        type=int,
        default=0,
        metavar="N",
        help="of a model of matrices or densities: start PySCF from the first N predictions, "
        "beside its own guesses (default: 0)",
    )
    p.add_argument("--json", metavar="FILE", help="also write the metrics here (default: not)")
    add_reading_options(p)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json

    from ..data.files import write_text
    from ..errors import counted
    from ..models import family_of, load_model
    from ..report.tables import text_table
    from ..structures.names import called
    from ..training.metrics import baseline_errors, check_compatible, judged
    from .progress import COMPILES, working
    from .runs import enable_x64

    enable_x64()
    model = load_model(args.run)
    compare = _comparison(model) if args.scf else None
    name, dataset, places = _labelled(args)
    check_compatible(model, dataset)
    n = counted(len(dataset), "structure")
    with called(places), working(f"predicting {n}", COMPILES):
        found, evaluated = judged(model, dataset, name, places)
        metrics = {name: found}
        for part_name, part in model.parts.items():
            metrics[f"{name}_{part_name}"], _ = judged(part, dataset)
        if baseline := baseline_errors(model, evaluated):
            metrics[f"{name}_baseline"] = baseline
    print(f"{n} of {args.data}")
    print(text_table(metrics))
    if len(evaluated.dataset):
        for line in family_of(model).details(
            evaluated.predicted, evaluated.dataset, model, metrics[name]
        ):
            print(line)
    if compare is not None and len(evaluated.dataset):
        few = evaluated.dataset.subset(range(min(args.scf, len(evaluated.dataset))))
        metrics[name] |= compare(model, few)
    if args.json:
        write_text(args.json, json.dumps(metrics, indent=2) + "\n")
    return 0


def _labelled(args: argparse.Namespace) -> tuple[str, Dataset, Sequence[int]]:
    """The labelled set that is judged: its name, and the indices in the file.

    Raises:
      DataError: no labels, or no such split.
    """
    from pathlib import Path

    from ..data import bundled, read_splits
    from ..errors import Code, DataError, one_of
    from .options import read_labelled

    path = args.data
    if path.startswith("bundled:"):
        path = bundled(path.removeprefix("bundled:"))
    dataset, name = read_labelled(path, args), "data"
    places: Sequence[int] = range(len(dataset))
    if args.split:
        splits = read_splits(args.splits or Path(args.run) / "splits.json")
        one_of("--split", args.split, splits, DataError)
        name, places = args.split, splits[args.split]
        dataset = dataset.subset(places)
    if not dataset.labels:
        raise DataError(
            str(args.data),
            got="structures without labels",
            expected="a labelled data set",
            hint="Label it with opml generate, or name its labels with --label.",
            code=Code.LABEL,
        )
    return name, dataset, places


def _comparison(model: Model) -> Callable[[Model, Dataset], dict[str, float]]:
    """How the densities of a model are compared with PySCF's guesses.

    Raises:
      OpmlError: it predicts none.
    """
    from ..errors import Code, OpmlError

    ways = {"dm": _compare_guesses, "coefficients": _compare_energies}
    for name, compare in ways.items():
        if model.has(name):
            return compare
    raise OpmlError(
        "--scf", got=repr(model), expected="a model that predicts densities", code=Code.CAPABILITY
    )


def _compare_guesses(model: Model, dataset: Dataset) -> dict[str, float]:
    from ..interfaces.pyscf import compare_guesses, guess_table
    from .progress import Progress

    with Progress("scf") as progress:
        results = compare_guesses(model, dataset, on_progress=progress.update)
    energy = results["energy_of_density_mae_uha"]
    print(guess_table(results))
    print(f"energy of the predicted density: {energy:.3g} uHa above the converged one")
    return results


def _compare_energies(model: Model, dataset: Dataset) -> dict[str, float]:
    from ..interfaces.density import compare_energies, energy_table
    from ..interfaces.pyscf import guess_table
    from .progress import Progress

    with Progress("scf") as progress:
        results = compare_energies(model, dataset, on_progress=progress.update)
    print(energy_table(results))
    print(guess_table(results))
    return results
