"""``opml evaluate``: errors of a model on a labelled data set."""

from __future__ import annotations

import argparse

from .options import add_reading_options


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("run", metavar="RUN", help="run directory or model file")
    p.add_argument("data", metavar="DATA", help="labelled data, or bundled:water")
    p.add_argument("--split", help="judge only this split of --splits")
    p.add_argument("--splits", default="", help="split file (default: splits.json of the run)")
    p.add_argument("--json", metavar="FILE", help="also write the metrics here")
    add_reading_options(p)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json
    from pathlib import Path

    from ..data import bundled, read_splits
    from ..data.files import write_text
    from ..errors import DataError, one_of
    from ..models import load_model
    from ..training import check_compatible
    from ..training.metrics import errors
    from .options import read_labelled
    from .runs import enable_x64, table

    enable_x64()
    model = load_model(args.run)
    path = args.data
    if path.startswith("bundled:"):
        path = bundled(path.removeprefix("bundled:"))
    dataset = read_labelled(path, args)
    name = "data"
    if args.split:
        splits = read_splits(args.splits or Path(args.run) / "splits.json")
        one_of("--split", args.split, splits, DataError)
        name, dataset = args.split, dataset.subset(splits[args.split])
    check_compatible(model, dataset)
    metrics = {}
    for suffix, linear in (("", False), ("_linear", True)):
        predicted = model.predict(dataset.structures, linear=linear)
        metrics[name + suffix] = errors(predicted, dataset)
    print(f"{len(dataset)} structures of {args.data}")
    print(table(metrics))
    if args.json:
        write_text(args.json, json.dumps(metrics, indent=2) + "\n")
    return 0
