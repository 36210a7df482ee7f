"""What the package says of itself: extras that resolve, and how they are installed."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

from opml_jax.errors import to_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TEXTS = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    *sorted((ROOT / "opml_jax").rglob("*.py")),
]


def test_extras_are_installed_from_the_clone():
    """The package may be on no index: what is named is a path, and an extra that there is."""
    found = []
    for path in TEXTS:
        text = path.read_text()
        assert "opml_jax[" not in text.replace("opml_jax[{", ""), path
        for names in re.findall(r"pip install[^\n`]*?[\"' ]\.\[([\w,]+)\]", text):
            found += names.split(",")
    assert len(found) > 4
    assert set(found) <= set(EXTRAS)


@pytest.mark.parametrize("extra", ["md", "dask", "tensorboard"])
def test_hints_name_what_the_extra_asks_for(extra):
    (package,) = EXTRAS[extra]
    assert to_install(extra).lower() == f"pip install '{package}' (the extra {extra})".lower()


def test_metadata_are_those_of_an_index():
    found = metadata("opml_jax")
    assert found["Name"] == "opml_jax"
    assert found["Description-Content-Type"] == "text/markdown"
    assert found["License-Expression"] == PROJECT["license"]
    assert 0 < len(found["Summary"]) <= 512  # what an index takes
    assert set(found.get_all("Provides-Extra")) == set(EXTRAS)
    assert (ROOT / "opml_jax" / "py.typed").is_file()


def test_ci_builds_a_wheel_and_checks_it():
    """What is checked is in .ci/check_wheel.py, which needs a wheel, and so an index."""
    text = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"pip wheel .*--no-deps", text)
    assert ".ci/check_wheel.py" in text
