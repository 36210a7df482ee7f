"""Codes of refusals: each has one meaning, a row on the page of errors, and a use."""

import ast
import pickle
import re
from pathlib import Path

import pytest

from opml_jax import errors
from opml_jax.errors import Code, OpmlError, StructureError
from opml_jax.structures import Structure

ROOT = Path(__file__).parents[1]
CODES = re.compile(r"OPML-\d{3}")


def _names_used():
    """Names of codes that the source mentions, and which classes have one of their own."""
    for path in (ROOT / "opml_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Code":
                yield node.attr


def test_every_code_is_documented_and_used():
    documented = CODES.findall((ROOT / "docs" / "errors.md").read_text())
    tables = [c for c in documented if documented.count(c) == 1 or c == "OPML-102"]  # the example
    assert sorted(set(tables)) == sorted(Code)
    assert {*_names_used()} == {*Code.__members__}


def test_every_class_has_a_code_of_its_own():
    classes = [
        c
        for c in vars(errors).values()
        if isinstance(c, type) and issubclass(c, (OpmlError, Warning))
    ]
    assert len({c.code for c in classes}) == len(classes)


def test_a_refusal_says_its_code_once():
    with pytest.raises(StructureError, match=r"atoms 0 and 1.*\[OPML-102\]$") as found:
        Structure([1, 1], [[0, 0, 0], [0, 0, 0.1]])
    err = found.value
    assert err.code is Code.CONTACT
    assert "OPML" not in err.message
    inside = err.within("w.xyz")
    assert type(inside) is StructureError
    assert inside.code is Code.CONTACT
    assert str(inside) == f"w.xyz: {err.message} [OPML-102]"
    again = pickle.loads(pickle.dumps(inside))  # as worker processes send it
    assert (type(again), str(again), again.code) == (StructureError, str(inside), Code.CONTACT)
