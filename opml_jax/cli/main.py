"""``opml``: parses arguments, runs one command, turns errors into one line and exit code 2."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import warnings
from importlib.metadata import version

from ..errors import Code, nearest

COMMANDS = {
    "quickstart": "train on bundled water, test on it and on fresh PySCF calculations, report",
    "generate": "label structures with PySCF into an HDF5 file (restartable)",
    "train": "train a model from a configuration file (restartable)",
    "evaluate": "errors of a model on a labelled data set",
    "predict": "energies, forces and dipoles of structures",
    "md": "molecular dynamics with a model (restartable)",
    "spectrum": "infrared spectrum and vibrational density of states of a trajectory",
    "export": "energies and forces of one molecule as a program that needs JAX alone",
    "config": "print a configuration template, or validate a file",
    "data": "check a data file, or pack it small",
    "doctor": "what is installed, and whether it works",
}

RESTARTABLE = ("quickstart", "generate", "train", "md")
"""Commands that go on where they were, if they are given again."""


OF_SYSTEM = {
    errno.ENOENT: Code.NO_FILE,
    errno.ENOSPC: Code.DISK_FULL,
    errno.EDQUOT: Code.DISK_FULL,
    errno.EACCES: Code.NOT_WRITABLE,
    errno.EPERM: Code.NOT_WRITABLE,
    errno.EROFS: Code.NOT_WRITABLE,
}
"""Codes of errors of the system."""


class _Help(argparse.HelpFormatter):
    """argparse's help, with every default that its text does not name."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        nothing = default is None or default is False or default in ("", argparse.SUPPRESS)
        if nothing or default == [] or "default" in (action.help or ""):
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, list) else "%(default)s"
        return f"{action.help} (default: {shown})"


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, and name what may be meant."""

    def __init__(self, **options):
        super().__init__(formatter_class=_Help, **options)

    def error(self, message: str):
        self.exit(2, f"opml: error: {message} (see {self.prog} --help) [{Code.COMMAND_LINE}]\n")

    def _check_value(self, action: argparse.Action, value) -> None:
        if action.choices is None or value in action.choices:
            return
        name = "/".join(action.option_strings) or action.dest
        known = [str(choice) for choice in action.choices]
        meant = nearest(value, known) or f"There are {', '.join(known)}."
        self.error(f"there is no {name} {value!r}. {meant}")

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """As of argparse, once every option is known; required ones are missed after that."""
        for word in () if self._subparsers or args is None else args:
            name = word.partition("=")[0]
            known = [o for o in self._option_string_actions if o.startswith("--")]
            if name == "--":
                break
            if name.startswith("--") and not any(o.startswith(name) for o in known):
                self.error(f"there is no option {name}. {nearest(name, known)}".rstrip())
        return super().parse_known_args(args, namespace)


def parser_of(command: str | None) -> argparse.ArgumentParser:
    """The parser of the command line, with the options of one command."""
    parser = _Parser(prog="opml", description="Machine learning on quantum-mechanical operators.")
    parser.add_argument("--version", action="version", version=f"opml_jax {version('opml_jax')}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    no_cache = "neither use nor keep compiled programs on disk"
    parser.add_argument("--no-cache", action="store_true", help=no_cache)
    sub = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Parser
    )
    for name, text in COMMANDS.items():
        p = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        p.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
        p.add_argument("--no-cache", action="store_true", default=argparse.SUPPRESS, help=no_cache)
        if name == command:
            importlib.import_module(f".{name}", __package__).configure(p)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code (0, or 2 for bad input)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--debug" not in argv and "jax" not in sys.modules:
        # XLA's alarms about slow compilation, also of worker processes; JAX sets a louder level
        # when it is imported. What fails is raised in any case.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    command = next((a for a in argv if a in COMMANDS), None)
    args = parser_of(command).parse_args(argv)
    if args.no_cache:
        os.environ["OPML_CACHE"] = "off"  # of child processes too
    module = importlib.import_module(f".{args.command}", __package__)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _Warnings()
            return module.run(args) or 0
    except KeyboardInterrupt:
        goes_on = "; the same command goes on where it was" * (args.command in RESTARTABLE)
        print(f"opml: interrupted{goes_on}", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError) as err:
        code = _code(err)
        if args.debug or code is None:
            raise
        print(f"opml: error: {_one_line(err, code)}", file=sys.stderr)
        return 2


def _code(err: Exception) -> Code | None:
    """Code of a refusal, of this library or of the system; None: a bug, to be seen whole."""
    if isinstance(err, OSError):
        return OF_SYSTEM.get(err.errno or 0, Code.SYSTEM)
    if isinstance(err, MemoryError) or "RESOURCE_EXHAUSTED" in str(err):
        return Code.MEMORY
    return None if isinstance(err, RuntimeError) else getattr(err, "code", Code.ARGUMENT)


def _one_line(err: Exception, code: Code) -> str:
    hint = {Code.MEMORY: " Ask for less at once: smaller batches, fewer workers or replicas."}
    text = getattr(err, "message", str(err) or type(err).__name__)
    return f"{' '.join(text.split())}{hint.get(code, '')} [{code}]"


class _Warnings:
    """Shows warnings in one line, each text once, wherever it comes from."""

    def __init__(self):
        self.shown: set[str] = set()

    def __call__(self, message, category, *_, **__) -> None:
        text = " ".join(str(message).split())
        if not issubclass(category, UserWarning) or text in self.shown:
            return
        self.shown.add(text)
        code = getattr(category, "code", None)
        print(f"opml: warning: {text}{f' [{code}]' if code else ''}", file=sys.stderr)
