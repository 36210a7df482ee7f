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
    from opml_jax.cli.main import parser_of
    from opml_jax.training.templates import templates

    found = list(_command_lines())
    assert len(found) > 40
    for page, words in found:
        words = words[: words.index(">")] if ">" in words else words
        try:
            args = parser_of(words[0]).parse_args(words)
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
    assert rooms - {"__init__", "__main__", "cli"} == set(site.ROOMS) | set(site.FOUNDATIONS)


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
            if isinstance(action, argparse._HelpAction) or action.dest in ("debug", "no_cache"):
                continue
            assert f"`{(action.option_strings or [action.metavar or action.dest])[-1]}`" in part


LONGEST = 90
"""Characters of a line of code that fit the usual width of the site."""
ON_ONE_LINE = "python3 -m venv .venv && "
"""Commands of the README that other programs read as one line; the site breaks them."""


@pytest.mark.parametrize("page", [*FILES, *(p for p in GENERATED if p.startswith("notebooks/"))])
def test_code_fits_the_width(page):
    text = GENERATED[page] if page.startswith("notebooks/") else FILES[page]
    for fence in re.findall(r"^ *```.*?\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        for line in fence.splitlines():
            assert len(line) <= LONGEST or line.startswith(ON_ONE_LINE), line


def test_the_front_page_has_a_picture_and_three_doors():
    page = PAGES["index.md"]
    doors = re.findall(r"^### \[(\w+)\]\(([\w/]+\.md)\)", page, re.MULTILINE)
    assert [name for name, _ in doors] == ["Predict", "Train", "Operators"]
    parts = [site.parts(path)[int(n) - 1] for path, n in re.findall(r"part: (\S+)#(\d+)", page)]
    assert parts[0] in (ROOT / "README.md").read_text()
    assert parts[1].startswith("![")
    assert page.index("#3 -->") < page.index("doors")
    assert len(parts) == len(site.parts("README.md")) == 6  # nothing of the opening is lost


def test_the_api_begins_with_what_users_call():
    page = GENERATED["api/index.md"]
    first, rooms = page.split("## Room by room")
    rows = re.findall(
        r"^\| \[`opml\.([\w.]+)\(.*?\)`\]\(([\w/]+\.md)#([\w.]+)\) \| (.+) \|$", first, re.M
    )
    assert [name for name, *_ in rows] == [n for names in site.CALLED.values() for n in names]
    assert {"load_model", "models.Model.predict", "Structure", "read_structures"} <= {
        name for name, *_ in rows
    }
    for name, uri, path, about in rows:
        assert _resolves(name.split(".")), name
        module = path.rsplit(".", 2)[0] if "Model." in path else path.rpartition(".")[0]
        assert f"::: {module}\n" in GENERATED[f"api/{uri}"], (name, uri)
        assert about.endswith("."), name
    assert "opml_jax.operators" in rooms


def test_pictures_of_benchmarks_have_the_numbers_of_the_tables():
    import peers

    text = (ROOT / "benchmarks" / "README.md").read_text()
    for comparison in peers.comparisons():
        section = text[text.index(f"## {comparison.section}\n") :]
        section = section[: section.find("\n## ", 5)]
        numbers = {float(x) for x in re.findall(r"\d+(?:\.\d+)?", section)}
        curves = [value for curve in comparison.curves.values() for value in curve.values()]
        for value in [*comparison.bars.values(), *curves]:
            shown = {float(f"{value:.{n}{kind}}") for n, kind in ((2, "g"), (3, "g"), (2, "f"))}
            assert shown & numbers, (comparison.name, value)
        picture = comparison.draw()
        assert "prefers-color-scheme" in picture
        assert len(picture) < 60_000


def test_pages_of_notebooks_show_what_a_run_printed_and_drew():
    """Of a run that is written down here: streams, pictures of either kind, colours, many lines."""
    import base64

    svg = '<?xml version="1.0"?>\n<svg><path style="fill: #ffffff"/></svg>'
    png = base64.b64encode(b"bitmap").decode()
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["10 %\r100 %\n", "done\n"]},
        {"output_type": "stream", "name": "stderr", "text": ["noise"]},
        {"output_type": "display_data", "data": {"image/svg+xml": [svg], "image/png": png}},
        {"output_type": "display_data", "data": {"image/png": png, "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/plain": ["\x1b[31mArray\x1b[0m"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "## Part"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": outputs},
    ]
    runs = site.notebook_pages
    page = runs.page("01_toy", {"cells": cells})
    assert "``` { .text .output }\n100 %\ndone\n```" in page
    assert "``` { .text .output }\nArray\n```" in page
    assert "noise" not in page
    assert re.findall(r"!\[(.*?)\]\((.*?)\)", page) == [
        ("Part: picture 1", "pictures/01_toy_1.svg"),
        ("Part: picture 2", "pictures/01_toy_2.png"),
    ]
    drawn = runs.pictures("01_toy", {"cells": cells})
    assert drawn["notebooks/pictures/01_toy_2.png"] == b"bitmap"
    assert b"prefers-color-scheme" in drawn["notebooks/pictures/01_toy_1.svg"]


def test_search_reads_its_index_from_disk():
    """The theme's plugin, and in the site itself what it would load from elsewhere."""
    text = (ROOT / "mkdocs.yml").read_text()
    assert re.search(r"^  - search\n  - offline", text, re.MULTILINE)
    assert "polyfills: [iframe-worker.js]" in text
    assert "IFrameWorker" in (DOCS / "iframe-worker.js").read_text()
    for path in DOCS.rglob("*"):
        if path.suffix in (".js", ".css"):
            assert "//" not in path.read_text().replace("/*", ""), path


def test_pictures_are_small_and_have_their_script():
    scripts = "".join(p.read_text() for p in (DOCS / "pictures").glob("*.py"))
    for path in (DOCS / "pictures").glob("*.svg"):
        assert path.stat().st_size < 100_000
        assert f'save(figure, "{path.stem}")' in scripts
