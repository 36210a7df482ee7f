"""``opml evaluate``: errors of a model on a labelled data set."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_reading_options


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("run", metavar="RUN", help="run directory or model file")
    p.add_argument("data", metavar="DATA", help="labelled data, or bundled:water")
    p.add_argument("--split", help="judge only this split of --splits")
    p.add_argument("--splits", default="", help="split file (default: splits.json of the run)")
    p.add_argument(
        "--scf",
        type=int,
        default=0,
        metavar="N",
        help="of a model of operators or densities: start PySCF from the first N predictions, "
        "beside its own guesses",
    )
    p.add_argument("--json", metavar="FILE", help="also write the metrics here")
    add_reading_options(p)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json
    from pathlib import Path

    from ..data import bundled, read_splits
    from ..data.files import write_text
    from ..errors import Code, DataError, OpmlError, one_of, refusal
    from ..models import DensityModel, OperatorModel, load_model
    from ..training import check_compatible
    from ..training.metrics import errors
    from .options import read_labelled
    from .progress import working
    from .runs import enable_x64, table

    enable_x64()
    model = load_model(args.run)
    if args.scf and not isinstance(model, OperatorModel | DensityModel):
        expected = "an Op2Op or Op2Density model, which predicts densities"
        raise OpmlError(refusal("--scf", got=repr(model), expected=expected))
    path = args.data
    if path.startswith("bundled:"):
        path = bundled(path.removeprefix("bundled:"))
    dataset = read_labelled(path, args)
    name = "data"
    if args.split:
        splits = read_splits(args.splits or Path(args.run) / "splits.json")
        one_of("--split", args.split, splits, DataError)
        name, dataset = args.split, dataset.subset(splits[args.split])
    if not dataset.labels:
        raise DataError(
            refusal(
                str(args.data),
                got="structures without labels",
                expected="a labelled data set",
                hint="Label it with opml generate, or name its labels with --label.",
            ),
            code=Code.LABEL,
        )
    check_compatible(model, dataset)
    with working(f"predicting {len(dataset)} structures (compiles first)"):
        predicted = model.predict(dataset.structures)
        metrics = {name: errors(predicted, dataset, model)}
        if model.without:
            alone: dict[str, Any] = {model.without: True}
            less = model.predict(dataset.structures, **alone)
            metrics[f"{name}_{model.without}"] = errors(less, dataset)
    print(f"{len(dataset)} structures of {args.data}")
    print(table(metrics))
    if isinstance(model, OperatorModel):
        _operators(model, predicted, dataset, metrics[name], args.scf)
    if isinstance(model, DensityModel):
        _densities(model, dataset, metrics[name], args.scf)
    if args.json:
        write_text(args.json, json.dumps(metrics, indent=2) + "\n")
    return 0


def _operators(model, predicted, dataset, metrics: dict, n_scf: int) -> None:
    """What else is to be said of Fock matrices; ``metrics`` is added to."""
    from ..interfaces.pyscf import compare_guesses, guess_table
    from ..training.operator_metrics import describe, errors_by_key
    from .progress import Progress

    if "dm_mae" in metrics:
        keys = ("orbital_similarity", "dm_mae", "electron_number_error", "idempotency_error")
        for key in (k for k in keys if k in metrics):
            print(f"{key.replace('_', ' '):<24}{metrics[key]:>12.3g}")
        shares = errors_by_key(predicted, dataset, model.definition.basis)
        worst = [f"{describe(k)} {100 * share:.0f} %" for k, share in list(shares.items())[:5]]
        matrix = "F" if "fock" in predicted else "P"
        print(f"squared error of {matrix} by irrep: " + "; ".join(worst))
    if n_scf:
        with Progress("scf") as progress:
            found = compare_guesses(
                model, dataset.subset(range(min(n_scf, len(dataset)))), on_progress=progress.update
            )
        metrics |= found
        energy = found["energy_of_density_mae_uha"]
        print(guess_table(found))
        print(f"energy of the predicted density: {energy:.3g} uHa above the converged one")


def _densities(model, dataset, metrics: dict, n_scf: int) -> None:
    """What else is to be said of densities; ``metrics`` is added to."""
    from ..interfaces.density import compare_energies, energy_table
    from ..interfaces.pyscf import guess_table
    from .progress import Progress

    keys = ("density_error_percent_max", "density_error_total_percent", "density_rmse_percent")
    for key in (*keys, "dipole_fit_mae_debye"):
        print(f"{key.replace('_', ' '):<28}{metrics[key]:>12.3g}")
    if n_scf:
        part = dataset.subset(range(min(n_scf, len(dataset))))
        with Progress("scf") as progress:
            found = compare_energies(model, part, on_progress=progress.update)
        metrics |= found
        print(energy_table(found))
        print(guess_table(found))
