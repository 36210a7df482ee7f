"""The documents say what is true: the README's example, its commands, the notebooks."""

import doctest
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_readme_example_prints_what_it_says():
    text = (ROOT / "README.md").read_text()
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted >= 8
    assert result.failed == 0
    assert text.index("```python") < 600  # code before prose


def test_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 20
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        headings = re.findall(r"^#+ +(.+)$", (ROOT / path).read_text(), re.M) if anchor else []
        slugs = [re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings]
        assert not anchor or anchor in slugs, link


@pytest.mark.parametrize("name", ["run", "test"])
def test_readme_commands_are_marked(name):
    text = (ROOT / "README.md").read_text()
    block = re.search(rf"<!-- command: {name} -->\n```bash\n(.+?)\n```", text, re.DOTALL)
    assert block
    assert ".venv/" in block[1]
    assert "constraints.txt" in block[1]


SLOW = (  # minutes
    "01_operators_and_features",
    "02_external_potential",
    "06_dynamics_and_infrared_spectra",
    "03_fock_matrices",
    "04_from_your_own_xyz_to_vibrations",
    "05_electron_densities",
    "07_from_short_chains_to_longer_ones",
)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem in SLOW))
        for p in sorted((ROOT / "notebooks").glob("*.ipynb"))
    ],
)
def test_notebook_runs(path, tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "strip the outputs"
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()


def test_docstring_examples():
    import opml_jax.basis.library
    import opml_jax.structures.structure

    for module, needed in (
        (opml_jax.structures.structure, "Structure"),
        (opml_jax.basis.library, "load_basis"),
    ):
        result = doctest.testmod(module, extraglobs={needed: getattr(module, needed)})
        assert result.attempted >= 1
        assert result.failed == 0


def test_nothing_of_a_machine_is_tracked():
    """No lock files, index addresses, or notebook outputs in the tree."""
    for path in ROOT.rglob("*"):
        if any(part.startswith(".venv") or part == ".git" for part in path.parts):
            continue
        assert path.name not in ("uv.lock", "poetry.lock", "pdm.lock")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert path.stat().st_size < 100_000
        json.loads(path.read_text())
