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
        help="override a setting, e.g. model.components=64; may be repeated",
    )
    p.add_argument(
        "--from",
        dest="origin",
        metavar="MODEL",
        help="start from a trained model of the same family: a run directory, a model file or "
        "pretrained:NAME (default: that of the configuration, or none)",
    )
    p.add_argument(
        "--curve",
        action="store_true",
        help="also solve the closed form for ever fewer structures: a learning curve",
    )
    p.add_argument(
        "--restart",
        action="store_true",
        help="forget what RUN holds; without it, a killed run goes on and a directory of another "
        "configuration is refused",
    )
    p.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write losses and errors of epochs for TensorBoard, into RUN/tensorboard",
    )
    p.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="train with other processes, this command in each: address of the first one, or auto "
        "where JAX finds them itself (Slurm, Open MPI, Kubernetes; default: alone)",
    )
    p.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="how many, with --coordinator (default: JAX knows)",
    )
    p.add_argument(
        "--process", type=int, metavar="I", help="which one this is, from 0 (default: JAX knows)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from ..errors import ConfigError
    from ..learn.devices import is_first, join, leave
    from ..models.family import family
    from ..training.config import load_config
    from ..training.learning_curve import closed_form_learning_curve
    from .progress import working
    from .runs import (
        check_same,
        check_same_data,
        complete,
        enable_x64,
        evaluate_run,
        run_directory,
        train_run,
    )

    overrides = [*args.overrides, *([f"origin={args.origin}"] if args.origin else [])]
    config = load_config(args.config, overrides)
    chosen = family(config.model.family)
    if args.curve and not chosen.refits:
        expected = "a family whose closed form can be solved for fewer structures"
        raise ConfigError("--curve", got=f"model.family {chosen.name}", expected=expected)
    if not args.restart and complete(Path(args.output), args.curve):
        enable_x64()
        check_same(Path(args.output), config)
        check_same_data(Path(args.output), config)
        print(f"{args.output}: complete; --restart trains it anew")
        return 0
    if args.coordinator:
        join(args.coordinator, args.processes, args.process)
    elif args.processes is not None or args.process is not None:
        raise ConfigError("--coordinator", got="none", expected="one, with --processes")
    with run_directory(args.output):
        trained, dataset, splits = train_run(
            config, args.output, restart=args.restart, tensorboard=args.tensorboard
        )
        first = is_first()
        leave()
        if not first:
            return 0
        curve = []
        if args.curve:
            test = dataset.subset(splits.get("test") or splits["validation"])
            with working("learning curve"):
                curve = closed_form_learning_curve(trained, test, config)
        evaluate_run(args.output, trained, dataset, splits, curve=curve)
    print(f"{args.output}: report.html, model.safetensors, card.md, metrics.json, history.jsonl")
    return 0
