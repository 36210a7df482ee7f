"""A small real model: trained once on 40 bundled waters, in a basis that compiles fast."""

import pytest

import opml_jax as opml
from opml_jax.data.reference import molecule
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.training import TrainConfig, train


@pytest.fixture(scope="session")
def trained():
    dataset = opml.read_dataset(opml.bundled("water"))
    config = TrainConfig(model=Op2PropConfig(basis="sto-3g", fit=Op2PropFit(epochs=5)))
    return train(dataset, {"train": list(range(40)), "validation": list(range(40, 50))}, config)


@pytest.fixture(scope="session")
def model(trained):
    return trained.model


@pytest.fixture(scope="session")
def superposed_waters():
    """40 real geometries, and T + V + J + K of superposed atoms in STO-3G."""
    water = opml.read_dataset(opml.bundled("water")).structures[:40]
    basis, fock = opml.load_basis("sto-3g", [1, 8]), []
    for s in water:
        mf = molecule(s, "sto-3g").RHF()
        fock.append(opml.from_pyscf(mf.get_fock(dm=mf.get_init_guess(key="atom")), s, basis))
    return opml.Dataset(water, {"fock": fock})
