"""What Op2Op may learn, and from where: Fock or density matrices, and their baselines."""

import dataclasses

import numpy as np
import pytest
from pyscf import gto, scf

import opml_jax as opml
from opml_jax.data.reference import atomic_densities, molecule
from opml_jax.errors import ConfigError
from opml_jax.learn.run import Run
from opml_jax.models import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.config import BASELINES
from opml_jax.observables import density_matrix, idempotency_error
from opml_jax.structures import Structure
from opml_jax.training.config import TrainConfig
from opml_jax.training.metrics import errors

ONE_SHOT = Op2OpConfig(words=("S", "T", "W", "W S", "S S", "E"), density_words=())
ROUNDING = 1e-11


@pytest.fixture(scope="module")
def water():
    return opml.read_dataset(opml.bundled("water")).subset(range(60))


@pytest.fixture(scope="module")
def basis():
    return opml.load_basis("def2-svp", [1, 8])


def test_atomic_densities_are_free_atoms(basis):
    found = atomic_densities(basis)
    for z, n_electrons in ((1, 1), (8, 8)):
        atom = Structure([z], [[0.0, 0.0, 0.0]], spin=z % 2)
        overlap = np.asarray(opml.integrals.overlap(atom, basis))
        assert abs(np.sum(found[str(z)] * overlap) - n_electrons) < 1e-10
    by_atom = np.diag(found["8"])[-8:-5]  # the last p shell: alike in x, y, z
    assert np.ptp(by_atom) < 1e-12
    mol = gto.M(atom="O", basis="def2-svp", verbose=0)
    assert abs(np.trace(found["8"]) - np.trace(scf.hf.init_guess_by_atom(mol))) < 1e-12


@pytest.mark.parametrize(
    "baseline",
    [pytest.param(b, marks=[pytest.mark.slow] * (b == "superposed")) for b in BASELINES],
)
def test_baselines_are_what_they_say(water, basis, baseline):
    """Each against PySCF's integrals; the Coulomb matrix of superposed atoms against its get_j."""
    structure = water.structures[0]
    definition = Op2Op(dataclasses.replace(ONE_SHOT, baseline=baseline), basis)
    operators, table = definition.operators(structure), definition.table(structure)
    atoms = atomic_densities(basis)
    found = np.asarray(definition.baseline({"atoms": atoms}, structure, operators, table)[0])
    mol = molecule(structure, "def2-svp")
    hcore = opml.from_pyscf(mol.intor("int1e_kin") + mol.intor("int1e_nuc"), structure, basis)
    if baseline == "none":
        assert not found.any()
    elif baseline == "hcore":
        assert np.abs(found - hcore).max() < ROUNDING
    elif baseline == "neutral_atoms":
        neutral = opml.integrals.neutral_atom_potential(structure, basis)
        kinetic = opml.integrals.kinetic(structure, basis, driver="libcint")
        assert np.abs(found - kinetic - neutral).max() < ROUNDING
    else:
        coulomb = scf.hf.get_jk(mol, scf.hf.init_guess_by_atom(mol))[0]
        left = found - hcore - opml.from_pyscf(coulomb, structure, basis)
        assert np.abs(left).max() < 2e-3  # what the fit by s and p functions leaves
        of_dm = dataclasses.replace(definition.config, target="dm")
        definition = dataclasses.replace(definition, config=of_dm)
        dm = definition.baseline({"atoms": atoms}, structure, operators, table)[0]
        superposed = opml.from_pyscf(scf.hf.init_guess_by_atom(mol), structure, basis)
        assert np.abs(dm - superposed).max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["neutral_atoms", "superposed"])
def test_density_matrices_of_other_geometries(water, basis, baseline):
    config = dataclasses.replace(ONE_SHOT, target="dm", baseline=baseline)
    definition = Op2Op(config, basis)
    sets = {"train": range(40), "validation": range(40, 50), "test": range(50, 60)}
    parts = {name: water.subset(i) for name, i in sets.items()}
    fit = fit_closed_form(definition, parts, Run())
    model = Op2OpModel(definition, fit.params, {"elements": ["H", "O"]})
    predicted = model.predict(parts["test"].structures)
    assert {"fock", "mo_energy", "gap"}.isdisjoint(predicted)
    found = errors(predicted, parts["test"], model)
    s = predicted["overlap"]
    wanted = np.array(
        [density_matrix(f, o, 10) for f, o in zip(parts["test"]["fock"], s, strict=True)]
    )
    assert found["dm_mae"] == pytest.approx(np.abs(predicted["dm"] - wanted).mean(), rel=1e-6)
    assert found["dm_mae"] < 2e-3  # densities of water vary by 1e-2
    assert np.max(idempotency_error(predicted["dm"], s)) < 1e-10
    assert found["electron_number_error"] < 1e-10


def test_targets_and_functions_agree():
    of_densities = TrainConfig(model=dataclasses.replace(ONE_SHOT, target="dm"))
    assert of_densities.model.targets == ("dm",)
    assert TrainConfig(model=ONE_SHOT).model.targets == ("fock",)
    with pytest.raises(ConfigError, match=r"model\.window must be lowest, unless model\.fit\."):
        TrainConfig(model=dataclasses.replace(ONE_SHOT, window="homo"))
    wrong = {"fock, dm": {"target": "energy"}, "in one step": {"target": "dm"}}
    for match, change in (wrong | {"neutral_atoms": {"baseline": "neutral"}}).items():
        with pytest.raises(ConfigError, match=match):
            Op2OpConfig(**change)
