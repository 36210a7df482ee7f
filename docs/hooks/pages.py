"""Pages whose source is elsewhere: the project's documents, notebooks, commands, docstrings.

Nothing here needs mkdocs, so tests use it too.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import notebook_pages
import peers
from docstrings import to_markdown

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
    "density": "Densities in an auxiliary basis; exchange and correlation on grids.",
    "mean_field": "Self-consistent fields: the solver, and Kohn-Sham calculations.",
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
CALLED = {
    "Molecules": ("Structure", "read_structures", "read_dataset", "bundled"),
    "Models": (
        *("load_model", "models.Model.predict", "models.Model.has", "pretrained", "save_model"),
        *("models.EnergyModel.energy_fn", "models.Op2OpModel.fock_fn"),
        "models.Op2DensityModel.density_fn",
    ),
    "Other programs": (
        *("interfaces.ase.OPMLCalculator", "interfaces.pyscf.guess"),
        *("interfaces.jax_md.energy_fn", "interfaces.export.export_energy"),
        *("interfaces.files.write_extxyz", "density.write_cube"),
    ),
    "Training and dynamics": (
        *("training.TrainConfig", "training.train", "dynamics.simulate", "dynamics.infrared"),
        "data.generate.generate",
    ),
    "Operators": (
        *("load_basis", "batch", "operators.external_potential", "operators.screened_potential"),
        *("features.atom_features", "to_pyscf", "from_pyscf"),
    ),
}
"""What users call, by what they want; the page of the API begins with it."""
FOUNDATIONS = (
    "units",
    "quantities",
    "errors",
    "numerics",
    "irreps",
    "programs",
    "traces",
    "lapack",
)
PACKAGE = ROOT / "opml_jax"


def documents() -> dict[str, str]:
    """The project's Markdown files, at the same places relative to each other.

    Benchmarks begin with pictures beside other programs.
    """
    texts = {name: (ROOT / name).read_text() for name in DOCUMENTS}
    intro, tables, rest = texts["benchmarks/README.md"].partition("\n| script | question |\n")
    texts["benchmarks/README.md"] = (
        f"{intro}\n{peers.shown('pictures')}\n## Scripts\n{tables}{rest}"
    )
    return texts


def pictures() -> dict[str, Path]:
    """Pictures that documents show."""
    found = {}
    for name, text in documents().items():
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            path = Path(name).parent / link
            found[path.as_posix()] = ROOT / path
    return found


def notebooks() -> dict[str, str]:
    """Notebooks as pages, without outputs; the site runs them, and tests do."""
    return {
        f"notebooks/{name}.md": notebook_pages.page(name, None) for name in notebook_pages.names()
    }


def parts(path: str) -> list[str]:
    """Blocks of a document before its second heading: paragraphs, tables, code, pictures."""
    fenced = re.split(r"(^```.*?^```$)", section(path, ""), flags=re.M | re.S)
    blocks = [[x] if x.startswith("```") else x.split("\n\n") for x in fenced]
    return [x.strip() for block in blocks for x in block if x.strip()]


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


def called() -> list[str]:
    """Tables of what users call, with the first sentence of each docstring."""
    lines = []
    for heading, names in CALLED.items():
        lines += [f"## {heading}", "", "| call | what it does |", "|---|---|"]
        for name in names:
            found = _named(name)
            path = f"{found.__module__}.{found.__qualname__}"
            words = inspect.signature(found).parameters.values()
            needed = [
                p.name
                for p in words
                if p.name != "self" and p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
            ]
            first = to_markdown((inspect.getdoc(found) or "").split("\n\n")[0])
            about = " ".join(first.split()).replace("|", r"\|")
            link = f"{page_of(path).removeprefix('api/')}#{path}"
            lines.append(f"| [`opml.{name}({', '.join(needed)})`]({link}) | {about} |")
        lines.append("")
    return lines


def _named(name: str):
    """What ``opml_jax.<name>`` is."""
    *modules, last = name.split(".")
    found = importlib.import_module("opml_jax")
    for i, part in enumerate(modules, 1):
        found = getattr(found, part, None) or importlib.import_module(
            f"opml_jax.{'.'.join(modules[:i])}"
        )
    return getattr(found, last)


def api() -> dict[str, str]:
    """A page of what users call, one for each room, and one for what stands below all rooms."""
    pages, index = {}, ["# Python", ""]
    index += ["What most programs call; everything else is [below](#room-by-room).", ""]
    index += [*called(), "## Room by room", ""]
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
    about = "Units, quantities, errors, safe mathematics, e3nn, compiled programs, LAPACK."
    index.append(f"| [below all rooms](foundations.md) | {about} |")
    text = ["# Below all rooms", ""]
    for module in FOUNDATIONS:
        text += [f"## {module}", "", f"::: opml_jax.{module}", ""]
    return pages | {"api/index.md": "\n".join(index), "api/foundations.md": "\n".join(text)}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Parsers of all commands by name: ``"generate"``, ``"data check"``."""
    from opml_jax.cli.main import COMMANDS, parser_of

    found = {}
    for command in COMMANDS:
        subparsers = _subparsers(parser_of(command))
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
        " 2; `--debug` shows the traceback, `--no-cache` neither uses nor keeps [compiled"
        " programs](../howto/compilation.md). `RUN` is a run directory or a model file.",
    ]
    for name, parser in parsers().items():
        about = parser.description or COMMANDS.get(name) or ""
        lines += ["", f"## opml {name}", "", about, "", "| argument | default | |", "|---|---|---|"]
        for action in parser._actions:
            if action.dest in ("help", "debug", "no_cache"):
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


def files() -> str:
    """What is read of data files, from the readers' own tables."""
    from opml_jax.data import keys, labels, readers

    def names(values) -> str:
        return ", ".join(f"`{value}`" for value in values)

    lines = [
        "# Files",
        "",
        "What is read of structure and data files, from the table that readers use. A file is"
        " understood or refused with a [code](../errors.md); what sounds like a label, a charge or"
        " a unit and is not read is named in a warning. `opml data check FILE` prints what was"
        " understood of yours.",
        "",
        "## Formats",
        "",
        "The library's own HDF5 (of `opml generate`, `opml data pack`, `opml predict`) states"
        " everything itself. Of the others:",
        "",
        "| format | told by | fields and their names | units | AO order, level |",
        "|---|---|---|---|---|",
    ]
    for layout in readers.LAYOUTS:
        sources = {field: source.names for field, source in layout.sources.items()}
        fields = "; ".join(f"{k}: {names(v)}" for k, v in ({**layout.names} | sources).items())
        units = ", ".join(f"{k} {v}" for k, v in layout.units.items()) or "as the file says"
        about = ", ".join(map(str, filter(None, (layout.convention, *layout.meta.values()))))
        cells = (layout.name, layout.told_by, fields, units, about)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    lines += [
        "",
        "- Of several names the first that a file has serves the whole file; names that take"
        " turns are refused (OPML-405). Other labels are named with `labels=` or `--label`.",
        "- AO matrices are in Hartree. Those of npz files need `basis` and `convention`, as texts"
        " in the file or as options.",
        "- Fields that only some structures have are left unread, with a warning.",
        "- Frames with the comment `config_type=IsolatedAtom` and one atom are set aside:"
        " `meta['isolated_atoms']`.",
        '- Periodic cells are refused (OPML-107); `pbc="F F F"` makes a cell a box. Other suffixes'
        " are refused by name (OPML-501).",
        "",
        "## Frames of xyz files",
        "",
        "A frame is a number of atoms, a comment, and a line for each atom. Blank lines between"
        " frames and carriage returns mean nothing; other text outside of a frame is refused with"
        " its line (OPML-402). Of a comment `key=value` is read, also with spaces around `=`,"
        " quoted, and with exponents of Fortran. A word is a word: `energy -76.4` is named in a"
        " warning, and only `charge -1` and `multiplicity 3` are read without a `=`. Symbols may"
        " be isotopes (`D`, `T`, `13C`); a column `masses` is read.",
        "",
        "## Charge and spin",
        "",
        "| says | keys |",
        "|---|---|",
        f"| total charge | {names(keys.CHARGE)} |",
        f"| 2S + 1 | {names(keys.MULTIPLICITY)} |",
        f"| 2S, the number of unpaired electrons | {names(keys.SPIN)} |",
        f"| total charge, as a sum over atoms | {names(keys.ATOM_CHARGES)} |",
        f"| 2S, as a sum over atoms | {names(keys.ATOM_MOMENTS)} |",
        "",
        "Upper case does not matter. Keys that contradict each other, what is no integer, and a"
        " 2S that the number of electrons excludes are refused (OPML-106). Where a program writes"
        " 2S + 1 under `spin`, say so: `--label multiplicity=spin:1`. `--charge` and `--spin` are"
        " for files that state none, and refused where the file states another.",
        "",
        "## Units",
        "",
        "| unit of | keys by which a file states it |",
        "|---|---|",
        *(f"| {k or 'what it is a unit of'} | {names(v)} |" for k, v in keys.UNITS.items()),
        "",
        f"`units` may also name a system: {names(keys.SYSTEMS)}, or {names(labels.ATOMIC[:2])}."
        " A unit that the file states is obeyed; another one from the user is refused (OPML-406)."
        " Forces without a unit of their own are in the unit of energy over that of length.",
        "",
        "| field | units |",
        "|---|---|",
        *(f"| {field} | {names(units)} |" for field, units in labels.UNITS.items()),
        "",
        "Spellings: "
        + "; ".join(f"`{unit}`: {names(words)}" for unit, words in labels.SPELLINGS.items())
        + ". Powers as in `kcal mol^-1 Ang^-1` are read.",
        "",
        "## What is not read",
        "",
        f"Weights of frames and of labels; beside an energy {names(keys.BESIDE_ENERGY)}:"
        " results that are no labels of molecules.",
    ]
    return "\n".join(lines) + "\n"


@functools.cache
def generated() -> dict[str, str]:
    """Every page that is not a file of its own, by its place in the site."""
    return (
        documents()
        | notebooks()
        | api()
        | {
            "command_line.md": command_line(),
            "howto/files.md": files(),
        }
    )
