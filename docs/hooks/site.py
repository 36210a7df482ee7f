"""What mkdocs does beside its plugins: pages from elsewhere, links to the API, formulas."""

from __future__ import annotations

import functools
import html
import posixpath
import re
import sys
from pathlib import Path

import griffe
import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import notebook_pages
import pages
import peers
from docstrings import to_markdown

from opml_jax.figures import two_styles

_INCLUDE = re.compile(r"^<!-- include: ([\w./]+)(?:#(.*?))? -->$", re.MULTILINE)
_PART = re.compile(r"^<!-- part: ([\w./]+)#(\d+) -->$", re.MULTILINE)
_SOURCE = re.compile(r"^<!-- code: ([\w./]+) -->$", re.MULTILINE)
_RAISERS = re.compile(r"^<!-- raised: (\w+) -->$", re.MULTILINE)
_CODE = re.compile(r"(?<![`\[])`opml(?:_jax)?\.([\w.]+)(\([^`\n]*\))?`(?!`)")
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.DOTALL)


@functools.cache
def package() -> griffe.Module:
    """The package, read without importing it."""
    return griffe.load("opml_jax", search_paths=[str(pages.ROOT)], resolve_aliases=True)


def canonical(name: str) -> str | None:
    """Where a name used from the outside is defined: ``"operators.powers"``; None if nowhere."""
    try:
        return package()[name].canonical_path
    except (KeyError, griffe.AliasResolutionError):
        return None


def on_files(files, config):
    """Add pages and pictures that have their source elsewhere; SVG follows light and dark."""
    for uri, content in generated().items():
        files.append(File.generated(config, uri, content=content))
    for uri, path in pages.pictures().items():
        if path.suffix != ".svg":
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    for file in [f for f in files if f.src_uri.endswith(".svg") and f.abs_src_path]:
        drawn = two_styles(Path(file.abs_src_path).read_text())
        files.remove(file)
        files.append(File.generated(config, file.src_uri, content=drawn))
    return files


@functools.cache
def generated() -> dict[str, str | bytes]:
    """Pages and pictures that are made now, by their place in the site."""
    made = {**pages.generated()}
    for name in notebook_pages.names():
        ran = notebook_pages.executed(name)
        made[f"notebooks/{name}.md"] = notebook_pages.page(name, ran)
        made |= notebook_pages.pictures(name, ran) if ran else {}
    drawn = {f"benchmarks/pictures/{c.name}.svg": c.draw() for c in peers.comparisons()}
    return made | drawn


def on_page_markdown(markdown, page, config, files):
    """Include, list what raises an error, link names to the API."""
    if page.file.src_uri in pages.generated():
        return markdown
    markdown = _INCLUDE.sub(lambda m: pages.section(m[1], m[2] or ""), markdown)
    markdown = _PART.sub(lambda m: pages.parts(m[1])[int(m[2]) - 1], markdown)
    markdown = _SOURCE.sub(lambda m: pages.code(m[1]), markdown)
    markdown = _RAISERS.sub(lambda m: raisers(m[1]), markdown)
    here = posixpath.dirname(page.file.src_uri)

    def link(match):
        path = canonical(match[1])
        if path is None or path.count(".") < 2:
            return match[0]
        uri = posixpath.relpath(pages.page_of(path), here or ".")
        return f"[{match[0]}]({uri}#{path})"

    parts = _FENCE.split(markdown)
    return "".join(p if i % 2 else _CODE.sub(link, p) for i, p in enumerate(parts))


def raisers(error: str) -> str:
    """A table of public functions whose docstrings say that they raise an error."""
    rows = sorted({row for row in _raises(package()) if row[0] == error})
    if not rows:
        raise PluginError(f"no docstring says that it raises {error}")
    lines = [f'??? note "Raised by {len(rows)} functions and classes"', ""]
    lines += ["    | where | when |", "    |---|---|"]
    for _, path, text in rows:
        text = " ".join(to_markdown(text).split()).replace("|", r"\|")
        lines.append(
            f"    | [`{path.removeprefix('opml_jax.')}`]({pages.page_of(path)}#{path}) | {text} |"
        )
    return "\n".join(lines)


def _raises(obj):
    for member in obj.members.values():
        if member.is_alias or member.name.startswith("_"):
            continue
        if member.is_module or member.is_class:
            yield from _raises(member)
        if member.path.startswith("opml_jax.cli") or member.docstring is None:
            continue
        for part in member.docstring.parse("google", warnings=False):
            if part.kind is griffe.DocstringSectionKind.raises:
                for item in part.value:
                    yield str(item.annotation).split(".")[-1], member.path, item.description


def on_page_content(html_text, page, config, files):
    """Formulas as MathML, which browsers draw without a script."""
    return _FORMULA.sub(lambda m: _mathml(m, page.file.src_uri), html_text)


def _mathml(match, where: str) -> str:
    try:
        display = "block" if match[2] == "[" else "inline"
        return latex2mathml.converter.convert(html.unescape(match[3]).strip(), display=display)
    except Exception as err:  # whatever the converter trips over is a fault of the page
        raise PluginError(f"{where}: formula not understood: {match[3]}") from err
