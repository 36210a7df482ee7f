"""Metrics against hand-computed numbers, and the refusal to compare what cannot be compared."""

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.data import Dataset
from opml_jax.models.base import Model
from opml_jax.models.base.metrics import quantity_errors
from opml_jax.training import check_compatible
from opml_jax.units import DEBYE_PER_EBOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE


@pytest.fixture
def labelled(water):
    labels = {"energy": [1.0, 2.0], "forces": [np.zeros((3, 3))] * 2, "dipole": [np.zeros(3)] * 2}
    return Dataset(
        [water, water], labels, {"method": "pbe", "basis": "def2-svp", "convention": "opml-1"}
    )


def test_numbers(labelled):
    predicted = {
        "energy": np.array([1.001, 1.999]),
        "forces": np.full((2, 3, 3), -0.01),
        "dipole": np.array([[0.0, 0.0, 0.03], [0.0, 0.0, 0.0]]),
    }
    found = quantity_errors(predicted, labelled)
    assert found["energy_mae_mev"] == pytest.approx(EV_PER_HARTREE)
    assert found["energy_mae_mev_per_atom"] == pytest.approx(EV_PER_HARTREE / 3)
    assert found["forces_mae_mev_per_angstrom"] == pytest.approx(
        10 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE
    )
    assert found["dipole_mae_debye"] == pytest.approx(0.005 * DEBYE_PER_EBOHR)
    assert found["dipole_rmse_debye"] == pytest.approx(0.03 / 6**0.5 * DEBYE_PER_EBOHR)


def _model(**reference):
    class Known(Model):
        elements = (1, 8)

        def predict(self, structures, **options):
            raise AssertionError("nobody asks")

        def has(self, name):
            return False

    return Known(None, {}, {"reference": reference})


def test_same_level_passes(labelled):
    check_compatible(_model(method="PBE", basis="def2-svp", convention="opml-1"), labelled)


@pytest.mark.parametrize(
    ("key", "value"), [("method", "b3lyp"), ("basis", "def2-tzvp"), ("convention", "pyscf")]
)
def test_other_level_is_named(labelled, key, value):
    other = Dataset(labelled.structures, labelled.labels, {**labelled.meta, key: value})
    model = _model(method="pbe", basis="def2-svp", convention="opml-1")
    with pytest.raises(ValueError, match=f"{key} of the data set must be .*{value}"):
        check_compatible(model, other)


def test_unstated_level_warns(labelled):
    bare = Dataset(labelled.structures, labelled.labels)
    with pytest.warns(opml.errors.UnitWarning, match="does not state its level"):
        check_compatible(_model(method="pbe", basis="def2-svp"), bare)


def test_functionals_are_compared_by_their_meaning(labelled):
    """PySCF's b3lyp has VWN5 before 2.3."""

    def data(method, version=None):
        meta = {"method": method, "basis": "def2-svp", "pyscf_version": version}
        return Dataset(labelled.structures, labelled.labels, meta)

    model = _model(method="b3lyp", basis="def2-SVP", pyscf_version="2.14.0")
    check_compatible(model, data("b3lypg"))
    check_compatible(model, data("B3LYP", "2.9.0"))
    for other in (data("b3lyp5"), data("b3lyp", "2.2.1")):
        with pytest.raises(ValueError, match="method of the data set must be"):
            check_compatible(model, other)
    with pytest.warns(opml.errors.UnitWarning, match="b3lyp5 or b3lypg"):
        check_compatible(model, data("b3lyp"))
