"""What the site says is so: its Python runs, its commands parse, its names and links exist."""

import argparse
import dataclasses
import importlib.util
import itertools
import re
import shlex
import types
import typing
from pathlib import Path

import pytest
import yaml

import opml_jax as opml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {p.relative_to(DOCS).as_posix(): p.read_text() for p in sorted(DOCS.rglob("*.md"))}
NOTES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "benchmarks/README.md")
TEXTS = PAGES | {"README.md": (ROOT / "README.md").read_text()}
FILES = TEXTS | {name: (ROOT / name).read_text() for name in NOTES}

_spec = importlib.util.spec_from_file_location("pages", DOCS / "hooks" / "pages.py")
site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site)

GENERATED = site.generated()

_FENCE = re.compile(r"(?:^<!-- test: (\w+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
_NAME = re.compile(r"\bopml(?:_jax)?((?:\.[A-Za-z_]\w*)+)")
_INLINE = re.compile(r"`(opml(?: [a-z]+)[^`\n]*)`")

_FILE = re.compile(r"`((?:\w+/)+\w+\.(?:py|md|svg|h5))`")

WATER = "3\n\nO 0.000 0.000 0.119\nH 0.000 0.763 -0.477\nH 0.000 -0.763 -0.477\n"


def _blocks(text: str, language: str) -> list[tuple[str, str]]:
    """``(mark, code)`` of fenced blocks; the mark is what a comment above says, or nothing."""
    return [(m[1] or "", m[3]) for m in _FENCE.finditer(text) if m[2] == language]


WITH_CODE = [k for k, text in PAGES.items() if any(not m for m, _ in _blocks(text, "python"))]
SLOW = [k for k, text in PAGES.items() if any(m == "slow" for m, _ in _blocks(text, "python"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader is after the ten-minute start, with a smaller model than the quickstart's."""
    from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
    from opml_jax.training import TrainConfig, train

    path = tmp_path_factory.mktemp("reader")
    for name in ("water.xyz", "waters.xyz"):
        (path / name).write_text(WATER)
    data = opml.read_dataset(opml.bundled("water"))
    closed_form = Op2PropFit(epochs=0)
    model = Op2PropConfig(basis="sto-3g", powers=(1, 2), gram_powers=(1,), fit=closed_form)
    config = TrainConfig(model=model)
    splits = {"train": list(range(30)), "validation": list(range(30, 40))}
    (path / "quickstart").mkdir()
    trained = train(data, splits, config).model
    opml.save_model(path / "quickstart" / "model.safetensors", trained)
    return path


def _run(page: str, marks: tuple[str, ...]) -> None:
    namespace = types.ModuleType("page").__dict__
    exec("import jax\nimport opml_jax as opml\n", namespace)
    for mark, code in _blocks(PAGES[page], "python"):
        if mark in marks:
            exec(compile(code, page, "exec"), namespace)


@pytest.mark.parametrize("page", WITH_CODE)
def test_python_runs(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    _run(page, ("",))


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_python_with_trained_operators_runs(page, folder, monkeypatch):
    from opml_jax.cli import main

    monkeypatch.chdir(folder)
    for template, run in (("op2op", "fock"), ("density", "density")):
        if f'load_model("{run}")' in PAGES[page] and not Path(run).exists():
            Path(f"{template}.yaml").write_text(_template(template))
            few = ["data.n_train=40", "data.n_validation=10", "data.n_test=5"]
            options = [x for setting in few for x in ("--set", setting)]
            assert main(["train", f"{template}.yaml", "-o", run, *options]) == 0
    _run(page, ("", "slow"))


def _template(name: str) -> str:
    from opml_jax.training.templates import template

    return template(name)


def _command_lines():
    for page, text in TEXTS.items():
        for _, code in _blocks(text, "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    if words and words[0] == "opml":
                        yield page, words[1:]


def test_commands_parse():
    from opml_jax.cli.main import _parser
    from opml_jax.training.templates import templates

    found = list(_command_lines())
    assert len(found) > 40
    for page, words in found:
        words = words[: words.index(">")] if ">" in words else words
        try:
            args = _parser(words[0]).parse_args(words)
        except SystemExit:
            pytest.fail(f"{page}: opml {' '.join(words)}")
        assert words[:2] != ["config", "template"] or args.name in templates(), page


def test_overrides_are_keys_of_a_configuration():
    """``--set key=value``, dotted keys in prose, and blocks of YAML."""
    from opml_jax.training.config import read_mapping

    for page, words in _command_lines():
        for a, b in itertools.pairwise(words):
            if a == "--set":
                _check_key(page, *b.split("=", 1))
    for page, text in TEXTS.items():
        for key, value in re.findall(
            r"`((?!model\.(?:safetensors|py))(?:data|model)\.[a-z_.]+)(?:: ([^`]+))?`", text
        ):
            _check_key(page, key, value)
        for _, block in _blocks(text, "yaml"):
            assert read_mapping(yaml.safe_load(block))


NEEDS = {
    "model.target": {"density_words": []},
    "model.fit.consistency_sigma": {"field_dipole_sigma": 0.01},
}
"""Settings beside a key without which its value would be refused."""


def _check_key(page: str, key: str, value: str) -> None:
    """A key must be one of some family, whose configuration takes the value if there is one.

    What a page calls ``model.NAME`` may also be an attribute of trained models.
    """
    from opml_jax.errors import ConfigError
    from opml_jax.models.family import families, family
    from opml_jax.training.config import DataConfig, read_mapping

    room, _, rest = key.partition(".")
    if room == "data":
        assert rest in {f.name for f in dataclasses.fields(DataConfig)}, (page, key)
        return
    of_families = [family(name) for name in families()]
    having = [f for f in of_families if rest in _dotted(f.Config)]
    assert having or any(hasattr(f.Model, rest) for f in of_families), (page, key)
    if not value:
        return
    refusals = []
    for of_family in having:
        *parents, last = rest.split(".")
        node = {last: yaml.safe_load(value), **NEEDS.get(key, {})}
        for parent in reversed(parents):
            node = {parent: node}
        try:
            read_mapping({"model": {"family": of_family.name, **node}})
            return
        except ConfigError as err:
            refusals.append(str(err))
    pytest.fail(f"{page}: {key}: {value}: {refusals}")


def _dotted(cls: type, prefix: str = "") -> set[str]:
    """Dotted names of all settings of a dataclass and of those that are its fields."""
    names, kinds = set(), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        names.add(prefix + field.name)
        for inner in (kinds[field.name], *typing.get_args(kinds[field.name])):
            if dataclasses.is_dataclass(inner):
                names |= _dotted(inner, f"{prefix}{field.name}.")
    return names


def test_commands_and_options_in_prose_exist():
    parsers = site.parsers()
    options = {k: {o for a in p._actions for o in a.option_strings} for k, p in parsers.items()}
    everything = set().union(*options.values())
    for page, text in TEXTS.items():
        for line in _INLINE.findall(text):
            words = line.split()[1:]
            command = next((k for k in parsers if words[: len(k.split())] == k.split()), None)
            assert command or words[0].isupper(), (page, line)
            given = {w for w in words if w.startswith("--")}
            assert not command or given <= options[command], (page, line)
        for option in re.findall(r"`(--[a-z-]+)", text):
            assert option in everything, (page, option)


def test_names_exist():
    for page, text in TEXTS.items():
        for match in _NAME.finditer(text):
            path = match[1].strip(".").split(".")
            if path[-1] in ("md", "py", "xyz"):
                continue
            assert _resolves(path), (page, match[0])


def _resolves(path: list[str]) -> bool:
    found = opml
    for i, name in enumerate(path):
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = importlib.import_module(f"opml_jax.{'.'.join(path[: i + 1])}")
            except ImportError:
                return name in getattr(found, "__dataclass_fields__", {})
    return True


@pytest.mark.parametrize("page", FILES)
def test_files_exist(page):
    """A path is told from the root, or from the package."""
    for path in _FILE.findall(FILES[page]):
        assert any((folder / path).exists() for folder in (ROOT, ROOT / "opml_jax")), path


def test_links_resolve():
    """Pages, pictures and headings."""
    known = GENERATED | PAGES
    for page, text in PAGES.items():
        for link in _LINK.findall(re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
            if link.startswith("https://"):
                continue
            target, _, anchor = link.partition("#")
            path = (DOCS / page).parent / target if target else DOCS / page
            uri = path.resolve().relative_to(DOCS).as_posix()
            assert uri in known or (DOCS / uri).is_file(), (page, link)
            if anchor:
                headings = re.findall(r"^#+ +(.+)$", known[uri], re.MULTILINE)
                assert anchor in map(_slug, headings), (page, link)


def _slug(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


def test_every_page_is_in_the_navigation_and_every_document_is_found():
    text = re.sub(r"!!python\S*", "", (ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"[\w/]+\.md", text[text.index("\nnav:") :]))
    assert listed == set(PAGES) | set(GENERATED)
    for page, source in PAGES.items():
        for path, heading in re.findall(r"<!-- include: ([\w./]+)#(.*?) -->", source):
            assert site.section(path, heading), page
        for path in re.findall(r"<!-- code: ([\w./]+) -->", source):
            assert site.code(path), page


def test_every_room_has_its_page():
    folder = ROOT / "opml_jax"
    rooms = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__", "cli"} == set(site.ROOMS) | set(site.FOUNDATIONS)


def test_every_error_is_explained():
    from opml_jax.dynamics import DomainError

    classes = {v.__name__ for v in vars(opml.errors).values() if isinstance(v, type)}
    named = {c for c in classes if c.endswith(("Error", "Warning"))} | {DomainError.__name__}
    page = PAGES["errors.md"]
    assert {c for c in named if f"## {c}\n" in page or f"`opml.errors.{c}`" in page} == named


def test_the_command_line_page_has_every_option():
    page = GENERATED["command_line.md"]
    for command, parser in site.parsers().items():
        part = page[page.index(f"## opml {command}\n") :]
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction) or action.dest == "debug":
                continue
            assert f"`{(action.option_strings or [action.metavar or action.dest])[-1]}`" in part


def test_pictures_are_small_and_have_their_script():
    scripts = "".join(p.read_text() for p in (DOCS / "pictures").glob("*.py"))
    for path in (DOCS / "pictures").glob("*.svg"):
        assert path.stat().st_size < 100_000
        assert f'save(figure, "{path.stem}")' in scripts
