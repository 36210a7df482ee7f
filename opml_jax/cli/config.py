"""``opml config``: print a template, validate a file, or bring one into today's form."""

from __future__ import annotations

import argparse


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = sub.add_parser("template", help="print a configuration, every key explained")
    show.add_argument("name", nargs="?", default="water", help="of --list (default: water)")
    show.add_argument("--list", action="store_true", help="names of the templates")
    validate = sub.add_parser("validate", help="check a configuration file")
    validate.add_argument("file", help="YAML configuration")
    validate.add_argument(
        "--data", action="store_true", help="also the data it names: sizes, labels, elements"
    )
    validate.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, e.g. data.n_train=20; may be repeated",
    )
    migrate = sub.add_parser("migrate", help="print a file of version 0.1 in today's form")
    migrate.add_argument("file", help="YAML configuration of version 0.1")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return {"template": _template, "validate": _validate, "migrate": _migrate}[args.action](args)


def _template(args: argparse.Namespace) -> int:
    from ..errors import one_of
    from ..training.templates import template, templates

    one_of("template", args.name, templates())
    listed = "".join(f"{name:<15} {about}\n" for name, (about, _) in templates().items())
    print(listed if args.list else template(args.name), end="")
    return 0


def _validate(args: argparse.Namespace) -> int:
    from ..errors import counted
    from ..training.config import load_config

    config, there = load_config(args.file, args.overrides), ""
    if args.data:
        from ..training.run import check_trainable
        from .runs import enable_x64, load_data

        enable_x64()
        dataset, splits = load_data(config.data)
        check_trainable(dataset, splits, config)
        n = counted(len(dataset), "structure")
        sizes = ", ".join(f"{len(index)} for {name}" for name, index in splits.items())
        there = f"; of the {n} of {config.data.path} {sizes}"
    print(f"{args.file}: valid{there}")
    return 0


def _migrate(args: argparse.Namespace) -> int:
    from ..learn.schema import as_mapping
    from ..training.config import explained, read_mapping, read_tree
    from ..training.migrate import is_old, migrated

    tree = as_mapping(read_tree(args.file), "config")
    print(explained(read_mapping(migrated(tree) if is_old(tree) else tree)), end="")
    return 0
