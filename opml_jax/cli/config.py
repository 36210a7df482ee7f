"""``opml config``: print a template, or validate a file."""

from __future__ import annotations

import argparse


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    sub.add_parser("template", help="print the default configuration, every key explained")
    validate = sub.add_parser("validate", help="check a configuration file")
    validate.add_argument("file")
    validate.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..training.config import load_config, template

    if args.action == "template":
        print(template(), end="")
        return 0
    load_config(args.file, args.overrides)
    print(f"{args.file}: valid")
    return 0
