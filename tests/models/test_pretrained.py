"""Models in the package: there, described, and as good as their cards say."""

from pathlib import Path

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.data.reference import Method, calculate
from opml_jax.errors import ModelFileError
from opml_jax.models.files import PRETRAINED


@pytest.mark.parametrize("name", PRETRAINED)
def test_it_is_there_with_its_card(name):
    path = opml.pretrained(name)
    model = opml.load_model(f"pretrained:{name}")
    assert model.elements == opml.load_model(path).elements
    assert Path(model.card["config"]["data"]["path"]).name == model.card["config"]["data"]["path"]
    card = path.with_suffix(".md").read_text()
    for said in ("**Labels**", "**Command**", "Mean absolute errors", "**Limits**"):
        assert said in card
    # what the card says is what training measured
    test = model.card["metrics"]["test"]
    assert f"{test['forces_mae_mev_per_angstrom']:.2g} meV/Å" in card


def test_another_name_is_refused():
    with pytest.raises(ModelFileError, match=r"'watre'.*'water'"):
        opml.pretrained("watre")


def test_water_is_that_of_pyscf(water):
    """Ten times the errors of its card: of one geometry, and of the grid's orientation."""
    found = opml.load_model("pretrained:water").predict(water)
    expected = calculate(water, Method("pbe", "def2-svp", 5, 1e-11))
    assert found["energy"] == pytest.approx(float(expected["energy"]), abs=1.3e-7)
    np.testing.assert_allclose(found["forces"], expected["forces"], atol=2e-6)
    np.testing.assert_allclose(found["dipole"], expected["dipole"], atol=2e-5)
