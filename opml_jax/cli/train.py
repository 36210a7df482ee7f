"""``opml train``: a run directory with a model, its metrics, predictions and report."""

from __future__ import annotations

import argparse


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("config", help="YAML configuration (opml config template prints one)")
    p.add_argument("-o", "--output", required=True, metavar="RUN", help="run directory")
    p.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, e.g. model.components=64",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..training.config import load_config
    from .runs import evaluate_run, train_run

    trained, dataset, splits = train_run(load_config(args.config, args.overrides), args.output)
    evaluate_run(args.output, trained, dataset, splits)
    print(f"{args.output}: model.safetensors, metrics.json, report.html")
    return 0
