"""Models in the package: there, described, and as good as their cards say."""

from pathlib import Path

import ase.build
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.data.reference import Method, calculate, mean_field
from opml_jax.errors import ModelFileError
from opml_jax.interfaces.ase import structure_from_ase
from opml_jax.interfaces.pyscf import certify, guess, scf_ends
from opml_jax.models.files import PRETRAINED
from opml_jax.quantities import metric

MEASURED = {metric("forces"): "meV/Å", metric("fock"): "μHartree"}
"""What cards say of test sets, of what their model has."""


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
    measured = [f"{test[k]:.2g} {unit}" for k, unit in MEASURED.items() if k in test]
    assert measured
    assert all(text in card for text in measured)


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


def _cycles(structure, method):
    """Cycles of PySCF's SCF from the shipped model, and from minao; both end alike."""
    mf = mean_field(structure, method)
    starts = {"model": guess(mf, fallback=None), "minao": mf.get_init_guess(key="minao")}
    ends = scf_ends(mf, starts)
    assert ends["model"][1] == pytest.approx(ends["minao"][1], abs=1e-7)
    return ends["model"][0], ends["minao"][0]


def test_an_scf_of_water_starts_from_the_model_of_matrices(water):
    ours, minao = _cycles(water, Method("pbe", "def2-svp", 1))
    assert ours <= minao - 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:atoms are surrounded, two bonds far, as none was in training")
def test_matrices_of_a_molecule_that_training_lacked():
    """Acetic acid, in the basis of the model and in another one with another functional."""
    atoms = ase.build.molecule("CH3COOH")
    structure = structure_from_ase(atoms)
    model = opml.load_model("pretrained:chno-fock")
    found = model.predict(structure)
    wanted = calculate(structure, Method("pbe", "def2-svp", 1, 1e-10, forces=False))
    assert np.abs(found["fock"] - wanted["fock"]).mean() < 3e-5  # Hartree; 1.2e-5 was seen
    judged = certify(model, structure, found)
    assert judged["fock_deviation"] < 3e-5
    assert not judged["intruder"]
    ours, minao = _cycles(structure, Method("pbe", "def2-svp", 1))
    assert ours <= 0.6 * minao
    ours, minao = _cycles(structure, Method("b3lyp", "def2-tzvp", 1, density_fit=True))
    assert ours < minao
