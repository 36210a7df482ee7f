"""Docstrings speak reStructuredText's roles; the site speaks Markdown."""

import re

import griffe

_ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):`~?\.?([\w.]+)`")
_MATH = re.compile(r":math:`([^`]+)`")
_DIRECTIVE = re.compile(r"^( *)\.\. math::[ \n]+((?:\1 +\S.*\n?|\S.*\n?)(?:\1 +\S.*\n?)*)", re.M)
_TABLE = re.compile(r"^(=+(?: +=+)+)\n(.+)\n\1\n((?:.+\n)+?)\1$", re.M)


def to_markdown(text: str) -> str:
    """A docstring with roles, math directives, simple tables and literal blocks as Markdown."""
    text = _TABLE.sub(_table, text)
    text = _DIRECTIVE.sub(_display, text)
    text = _MATH.sub(lambda m: rf"\({' '.join(m[1].split())}\)", text)
    text = _ROLE.sub(lambda m: f"`{m[1]}`", text)
    text = re.sub(r"^( *)Example:\n", r"\1Examples:\n", text, flags=re.M)  # griffe's name for it
    return re.sub(r"::$", ":", text, flags=re.M)


def _display(match: re.Match) -> str:
    pad, formula = match[1], " ".join(match[2].split())
    return f"{pad}\\[\n{pad}{formula}\n{pad}\\]\n"


def _table(match: re.Match) -> str:
    cuts = [m.span() for m in re.finditer("=+", match[1])]
    cuts[-1] = (cuts[-1][0], None)
    rows = [match[2], *match[3].splitlines()]
    cells = [[row[a:b].strip().replace("|", r"\|") for a, b in cuts] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cuts) + "|", *lines[1:]])


class Docstrings(griffe.Extension):
    """Rewrites every docstring when griffe has read it."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
