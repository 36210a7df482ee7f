"""Notebooks as pages, with what they print and draw: run when the site is built, and kept.

What a run printed and drew is kept in ``.notebooks/``, by a hash of the notebook and the package,
so that it runs again when either changes. Nothing here needs mkdocs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opml_jax.figures import two_styles

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".notebooks"
SWITCH = "OPML_NOTEBOOKS"
"""Environment variable; ``skip`` builds pages without outputs, in seconds."""
LARGEST = 150_000
"""Characters of an SVG picture beyond which its bitmap is shown."""
LINES = 40
"""A cell prints no more lines than these on its page."""

_DRAWN = (
    "%config InlineBackend.figure_formats = ['svg', 'png']\n"
    "%config InlineBackend.rc = {'svg.fonttype': 'none', 'svg.hashsalt': 'opml_jax'}\n"
    "%matplotlib inline"
)
_COLOURED = re.compile(r"\x1b\[[0-9;]*m")


def names() -> list[str]:
    """Names of the notebooks, without their ending."""
    return sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))


def source(name: str) -> dict[str, Any]:
    """A notebook as it is committed, without outputs."""
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())


def page(name: str, executed: dict[str, Any] | None) -> str:
    """A notebook in Markdown, with the outputs of its cells if it was ``executed``."""
    said = "its outputs are those of this build" if executed else "it was not run for this build"
    parts, heading, drawn = [], name, 0
    for cell in (executed or source(name))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ +(.+)$", text, re.M) or [heading])[-1]
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for kind, content in outputs(cell):
            if kind == "text":
                parts.append(f"``` {{ .text .output }}\n{content}\n```")
            else:
                drawn += 1
                parts.append(f"![{heading}: picture {drawn}](pictures/{name}_{drawn}.{kind})")
    parts.insert(1, f"*The notebook is `notebooks/{name}.ipynb`; {said}.*")
    return "\n\n".join(parts) + "\n"


def pictures(name: str, executed: dict[str, Any]) -> dict[str, bytes]:
    """Pictures of an executed notebook by their place in the site."""
    shown = [x for cell in executed["cells"] for x in outputs(cell) if x[0] != "text"]
    folder = f"notebooks/pictures/{name}"
    return {f"{folder}_{i}.{kind}": content for i, (kind, content) in enumerate(shown, 1)}


def outputs(cell: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a cell left: ``"text"`` and lines, ``"svg"`` or ``"png"`` and bytes."""
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            if output["name"] == "stdout":
                yield "text", _lines("".join(output["text"]))
            continue
        data = output.get("data", {})
        svg = "".join(data.get("image/svg+xml", ""))
        if svg and len(svg) < LARGEST:
            yield "svg", two_styles(svg[svg.index("<svg") :]).encode()
        elif "image/png" in data:
            yield "png", base64.b64decode("".join(data["image/png"]))
        elif "text/plain" in data:
            yield "text", _lines("".join(data["text/plain"]))


def _lines(text: str) -> str:
    """Lines without colours, as a terminal leaves them, and not too many."""
    lines = [line.rpartition("\r")[2] for line in _COLOURED.sub("", text).rstrip().split("\n")]
    return "\n".join([*lines[:LINES], "..."] if len(lines) > LINES else lines)


def executed(name: str) -> dict[str, Any] | None:
    """A notebook with its outputs, run now if nothing is kept; None if that is switched off.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell of it fails.
    """
    if os.environ.get(SWITCH) == "skip":
        return None
    path = KEPT / f"{name}-{_hash(name)}.ipynb"
    if not path.exists():
        print(f"running notebooks/{name}.ipynb (minutes; {SWITCH}=skip builds without)", flush=True)
        ran = _run(name)
        KEPT.mkdir(exist_ok=True)
        for old in KEPT.glob(f"{name}-*.ipynb"):
            old.unlink()
        path.write_text(json.dumps(ran))
    return json.loads(path.read_text())


def _run(name: str) -> dict[str, Any]:
    import nbclient
    import nbformat

    notebook = nbformat.reads(json.dumps(source(name)), as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_DRAWN))
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=3600, resources=place).execute()
    del notebook.cells[0]
    return notebook


def _hash(name: str) -> str:
    """Of a notebook and of every file of the package."""
    hashed = hashlib.sha256(json.dumps(source(name)).encode() + _DRAWN.encode())
    package = ROOT / "opml_jax"
    for path in sorted(p for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        hashed.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return hashed.hexdigest()[:16]
