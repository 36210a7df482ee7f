"""Pages whose source is elsewhere: the project's documents, notebooks, commands, docstrings.

Nothing here needs mkdocs, so tests use it too.
"""

from __future__ import annotations

import argparse
import ast
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
    "features": "Blocks to irreps, by atom and by pair; invariants.",
    "observables": "What follows from a Fock or density matrix.",
    "density": "Densities in an auxiliary basis.",
    "data": "Readers, labels by PySCF, checks, splits, loaders.",
    "learn": "Ridges, the descent loop, states, devices: what every family's training uses.",
    "models": "What a family of models is, and model files; each family has its own page.",
    "training": "Configuration, the run of any family, cards, metrics.",
    "dynamics": "Molecular dynamics, harmonic lines, spectra.",
    "interfaces": "ASE, jax-md, PySCF.",
    "analysis": "What operators and features resolve, and how far they reach.",
    "figures": "What pictures of several rooms have in common.",
    "report": "The HTML report.",
    "testing": "Helpers for your own tests.",
}
FOUNDATIONS = ("units", "quantities", "errors", "numerics", "lapack")
PACKAGE = ROOT / "opml_jax"


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
    body = body.replace("](docs/", "](")  # pages are there already
    return re.sub(r"\((notebooks/[^)]+)\.ipynb\)", r"(\1.md)", body).strip()


def code(path: str) -> str:
    """A file of Python as a block of code.

    Raises:
      FileNotFoundError: there is none.
    """
    return f"```python\n{(ROOT / path).read_text().strip()}\n```"


@functools.cache
def rooms() -> dict[str, str]:
    """What lives in each room, and in each room of a room, by its dotted name below the package."""
    found = {}
    for room, about in ROOMS.items():
        found[room] = about
        for path in sorted((PACKAGE / room).glob("*/__init__.py")):
            first = ast.get_docstring(ast.parse(path.read_text())) or ""
            found[f"{room}.{path.parent.name}"] = first.split("\n\n")[0].replace("\n", " ")
    return found


def room_of(path: str) -> str:
    """The innermost room of a dotted name that begins with ``opml_jax``."""
    _, room, *rest = path.split(".")
    within = f"{room}.{rest[0]}" if rest else room
    return within if within in rooms() else room


def page_of(path: str) -> str:
    """The page of a dotted name that begins with ``opml_jax``."""
    room = room_of(path)
    return f"api/{'foundations' if room in FOUNDATIONS else room.replace('.', '/')}.md"


def modules(room: str) -> list[str]:
    """Dotted names of the modules of a room that have anything public; ``__init__`` rarely has."""
    folder = PACKAGE.joinpath(*room.split("."))
    if not folder.is_dir():
        return [f"opml_jax.{room}"]
    body = ast.parse((folder / "__init__.py").read_text()).body
    names = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    face = [f"opml_jax.{room}"] if any(not name.startswith("_") for name in names) else []
    files = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    return face + [f"opml_jax.{room}.{stem}" for stem in files]


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
    for room, about in rooms().items():
        page = page_of(f"opml_jax.{room}")
        index.append(f"| [`opml_jax.{room}`]({page.removeprefix('api/')}) | {about} |")
        text = [f"# {room}", "", about, ""]
        for module in modules(room):
            text += [f"## {module.removeprefix('opml_jax.')}", "", f"::: {module}", ""]
        pages[page] = "\n".join(text)
    about = "Units, quantities, errors, safe mathematics, LAPACK."
    index.append(f"| [below all rooms](foundations.md) | {about} |")
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
