"""``opml``: parses arguments, runs one command, turns errors into one line and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from importlib.metadata import version

COMMANDS = {
    "quickstart": "train on bundled water, test on it and on fresh PySCF calculations, report",
    "generate": "label structures with PySCF into an HDF5 file (restartable)",
    "train": "train a model from a configuration file",
    "evaluate": "errors of a model on a labelled data set",
    "predict": "energies, forces and dipoles of structures",
    "md": "molecular dynamics with a model (restartable)",
    "spectrum": "infrared spectrum and vibrational density of states of a trajectory",
    "export": "energies and forces of one molecule as a program that needs JAX alone",
    "config": "print a configuration template, or validate a file",
    "data": "check a data file, or pack it small",
    "doctor": "what is installed, and whether it works",
}


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line."""

    def error(self, message: str):
        self.exit(2, f"opml: error: {message} (see {self.prog} --help)\n")


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="opml", description="Machine learning on quantum-mechanical operators.")
    parser.add_argument("--version", action="version", version=f"opml_jax {version('opml_jax')}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    sub = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Parser
    )
    for name, text in COMMANDS.items():
        p = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        p.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
        if name == command:
            importlib.import_module(f".{name}", __package__).configure(p)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code (0, or 2 for bad input)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    command = next((a for a in argv if a in COMMANDS), None)
    args = _parser(command).parse_args(argv)
    module = importlib.import_module(f".{args.command}", __package__)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return module.run(args) or 0
    except KeyboardInterrupt:
        print("opml: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as err:
        if args.debug:
            raise
        print(f"opml: error: {' '.join(str(err).split())}", file=sys.stderr)
        return 2


def _show_warning(message, category, *_, **__):
    if issubclass(category, UserWarning):
        print(f"opml: warning: {' '.join(str(message).split())}", file=sys.stderr)
