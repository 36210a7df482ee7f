"""PySCF started from a prediction, and what keeps it from being started so."""

import numpy as np
import pytest
from pyscf import dft, gto

import opml_jax as opml
from opml_jax.errors import OpmlError
from opml_jax.interfaces.pyscf import guess, structure_from_pyscf
from opml_jax.models import Op2Op, Op2OpConfig, OperatorModel
from opml_jax.training.op2op import fit_op2op

FEW = Op2OpConfig(
    words=("S", "T", "W", "W S", "T W", "S S", "W S^-1 W", "E"),
    density_words=("P", "S P S", "W P S", "U", "U S", "T U", "U U", "U P S"),
)


def _mol(structure, basis="def2-svp", **options):
    atom = list(zip(structure.symbols, np.asarray(structure.positions).tolist(), strict=True))
    return gto.M(atom=atom, unit="Bohr", basis=basis, verbose=0, **options)


def _kohn_sham(mol):
    mf = dft.RKS(mol, xc="pbe")
    mf.grids.level = 3
    return mf


@pytest.fixture(scope="module")
def water():
    return opml.read_dataset(opml.bundled("water"))


@pytest.fixture(scope="module")
def model(water):
    definition = Op2Op(FEW, opml.load_basis("def2-svp", [1, 8]))
    fit = fit_op2op(definition, water.subset(range(60)), water.subset(range(60, 80)))
    return OperatorModel(definition, fit.params)


def test_molecules_come_back(water):
    structure = water.structures[0]
    back = structure_from_pyscf(_mol(structure))
    assert back.numbers == structure.numbers
    assert np.abs(back.positions - structure.positions).max() < 1e-12
    with pytest.raises(OpmlError, match="ghost"):
        structure_from_pyscf(gto.M(atom="H 0 0 0; ghost-H 0 0 1", spin=1, verbose=0))
    with pytest.raises(OpmlError, match="effective core"):
        structure_from_pyscf(gto.M(atom="I 0 0 0", basis="def2-svp", ecp="def2-svp", spin=1))


@pytest.mark.slow
def test_a_prediction_saves_iterations(model, water):
    structure = water.structures[100]
    mf = _kohn_sham(_mol(structure))
    dm = guess(mf, model, fallback=None)
    assert np.abs(np.sum(dm * mf.get_ovlp()) - 10) < 1e-8
    start = mf.energy_tot(dm=dm)
    mf.kernel()
    plain, energy = mf.cycles, mf.e_tot
    mf.kernel(dm0=dm)
    assert mf.converged
    assert mf.cycles <= plain - 2
    assert abs(mf.e_tot - energy) < 1e-8
    assert 0 <= start - energy < 1e-6  # second order in the error of the density


@pytest.mark.slow
def test_where_it_cannot_help_it_says_so(model, water):
    structure = water.structures[100]
    other = _kohn_sham(_mol(structure, "sto-3g"))
    with pytest.raises(OpmlError, match="7 atomic orbitals"):
        guess(other, model, fallback=None)
    with pytest.warns(UserWarning, match="Starting from minao"):
        dm = guess(other, model)
    assert np.array_equal(dm, other.get_init_guess(key="minao"))
    with pytest.raises(OpmlError, match="closed shells"):
        guess(dft.UKS(_mol(structure, charge=1, spin=1)), model, fallback=None)
    methane = gto.M(atom="C 0 0 0; O 0 0 1.13", basis="def2-svp", verbose=0)
    with pytest.raises(OpmlError, match="C"):
        guess(_kohn_sham(methane), model, fallback=None)
