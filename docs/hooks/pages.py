"""Pages whose source is elsewhere: the project's documents, notebooks, commands, docstrings.

Nothing here needs mkdocs, so tests use it too.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")

ROOMS = {
    "structures": "Molecules, and padded batches of them.",
    "basis": "Basis sets, AO layouts, batches, buckets.",
    "conventions": "The one component convention, and every permutation.",
    "integrals": "S, T, r and potentials, in JAX, to any derivative.",
    "operators": "The algebra of AO matrices: products, powers, roots, patterns.",
    "features": "Blocks to irreps, by atom, pair and structure; invariants.",
    "observables": "What follows from a Fock or density matrix.",
    "density": "Densities in an auxiliary basis.",
    "models": "Op2Prop, Op2Op, Op2Density: pure functions, and files.",
    "data": "Readers, labels by PySCF, checks, splits, loaders.",
    "training": "Configuration, closed forms, networks, metrics.",
    "dynamics": "Molecular dynamics, harmonic lines, spectra.",
    "interfaces": "ASE, jax-md, PySCF.",
    "analysis": "What operators and features resolve, and how far they reach.",
    "report": "The HTML report.",
    "testing": "Helpers for your own tests.",
}
FOUNDATIONS = ("units", "errors", "numerics", "lapack")


def documents() -> dict[str, str]:
    """The project's Markdown files, at the same places relative to each other."""
    return {name: (ROOT / name).read_text() for name in DOCUMENTS}


def pictures() -> dict[str, Path]:
    """Pictures that documents show."""
    found = {}
    for name, text in documents().items():
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            path = Path(name).parent / link
            found[path.as_posix()] = ROOT / path
    return found


def notebooks() -> dict[str, str]:
    """Notebooks as pages, without outputs; tests run them."""
    pages = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        parts = []
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts.insert(
            1, f"*The notebook is `notebooks/{path.name}`; its outputs come when it runs.*"
        )
        pages[f"notebooks/{path.stem}.md"] = "\n\n".join(parts) + "\n"
    return pages


def section(path: str, heading: str) -> str:
    """Text of a document below a heading; that before the first if ``heading`` is empty.

    Raises:
      KeyError: no such heading.
    """
    text = (ROOT / path).read_text()
    parts = re.split(r"^#{1,2} +(.+)\n", text, flags=re.MULTILINE)[1:]
    named = dict(zip(parts[::2], parts[1::2], strict=True))
    body = next(iter(named.values())) if not heading else named[heading]
    body = re.sub(r"^<!--.*-->\n", "", body, flags=re.MULTILINE)
    return re.sub(r"\((notebooks/[^)]+)\.ipynb\)", r"(\1.md)", body).strip()


def modules(room: str) -> list[str]:
    """Dotted names of the modules of a room that have anything public, ``__init__`` left out."""
    folder = ROOT / "opml_jax" / room
    if not folder.is_dir():
        return [f"opml_jax.{room}"]
    files = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    return [f"opml_jax.{room}.{stem}" for stem in files]


def api() -> dict[str, str]:
    """A page for each room, and one for what stands below all rooms."""
    pages, index = {}, ["# Python, room by room", ""]
    index += [
        "Every public function, class and constant, from its docstring. Names that a room's page"
        " lists under its modules are usually used from the room itself:"
        " `opml_jax.operators.powers` is defined in `opml_jax.operators.functions`."
        " [Architecture](../ARCHITECTURE.md) says which room may use which.",
        "",
        "| room | what lives there |",
        "|---|---|",
    ]
    for room, about in ROOMS.items():
        index.append(f"| [`opml_jax.{room}`]({room}.md) | {about} |")
        text = [f"# {room}", "", about, ""]
        for module in modules(room):
            text += [f"## {module.removeprefix('opml_jax.')}", "", f"::: {module}", ""]
        pages[f"api/{room}.md"] = "\n".join(text)
    index.append("| [below all rooms](foundations.md) | Units, errors, safe mathematics, LAPACK. |")
    text = ["# Below all rooms", ""]
    for module in FOUNDATIONS:
        text += [f"## {module}", "", f"::: opml_jax.{module}", ""]
    return pages | {"api/index.md": "\n".join(index), "api/foundations.md": "\n".join(text)}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Parsers of all commands by name: ``"generate"``, ``"data check"``."""
    from opml_jax.cli.main import COMMANDS, _parser

    found = {}
    for command in COMMANDS:
        subparsers = _subparsers(_parser(command))
        below = _subparsers(subparsers[command])
        found |= {f"{command} {k}": v for k, v in below.items()} or {command: subparsers[command]}
    return found


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def command_line() -> str:
    """Every command and option, from the parsers themselves."""
    from opml_jax.cli.main import COMMANDS

    lines = [
        "# Command line",
        "",
        "`opml COMMAND --help` prints the same. Bad input is answered with one line and exit code"
        " 2; `--debug` shows the traceback. `RUN` is a run directory or a model file.",
    ]
    for name, parser in parsers().items():
        about = parser.description or COMMANDS.get(name) or ""
        lines += ["", f"## opml {name}", "", about, "", "| argument | default | |", "|---|---|---|"]
        for action in parser._actions:
            if action.dest in ("help", "debug"):
                continue
            named = ", ".join(f"`{o}`" for o in action.option_strings)
            value = action.metavar or action.dest
            if action.nargs != 0 and action.option_strings:
                named += f" `{', '.join(map(str, action.choices)) if action.choices else value}`"
            default = action.default
            shown = "" if default in (None, "", []) or default is False else f"`{default}`"
            shown = "required" if action.required and action.option_strings else shown
            cells = (named or f"`{value}`", shown, action.help or "")
            lines.append("| " + " | ".join(c.replace("|", r"\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


@functools.cache
def generated() -> dict[str, str]:
    """Every page that is not a file of its own, by its place in the site."""
    return documents() | notebooks() | api() | {"command_line.md": command_line()}
