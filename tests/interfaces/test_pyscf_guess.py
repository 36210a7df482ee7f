"""PySCF started from a prediction, and what keeps it from being started so."""

import types

import numpy as np
import pytest
from pyscf import dft, gto, scf

import opml_jax as opml
from opml_jax.errors import ConventionError, OpmlError
from opml_jax.interfaces.pyscf import (
    compare_guesses,
    guess,
    guess_table,
    pyscf_guesses,
    scf_ends,
    structure_from_pyscf,
)
from opml_jax.models.op2op import Op2OpConfig, Op2OpFit
from opml_jax.training import TrainConfig, train

FEW = Op2OpConfig(
    words=("S", "T", "W", "W S", "T W", "S S", "W S^-1 W", "E"),
    density_words=("P", "S P S", "W P S", "U", "U S", "T U", "U U", "U P S"),
    fit=Op2OpFit(),
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
    splits = {"train": list(range(60)), "validation": list(range(60, 80))}
    return train(water, splits, TrainConfig(model=FEW)).model


def test_molecules_come_back(water):
    structure = water.structures[0]
    back = structure_from_pyscf(_mol(structure))
    assert back.numbers == structure.numbers
    assert np.abs(back.positions - structure.positions).max() < 1e-12
    with pytest.raises(OpmlError, match="ghost"):
        structure_from_pyscf(gto.M(atom="H 0 0 0; ghost-H 0 0 1", spin=1, verbose=0))
    with pytest.raises(OpmlError, match="effective core"):
        structure_from_pyscf(gto.M(atom="I 0 0 0", basis="def2-svp", ecp="def2-svp", spin=1))


def test_guesses_that_pyscf_offers(water):
    """Hartree-Fock has no vsap, and minao is not taken for it."""
    mol = _mol(water.structures[0], "sto-3g")
    kohn_sham, hartree_fock = _kohn_sham(mol), scf.RHF(mol)
    found = pyscf_guesses(kohn_sham)
    assert list(found) == ["minao", "atom", "vsap", "hcore"]
    for name, dm in found.items():
        np.testing.assert_array_equal(dm, kohn_sham.get_init_guess(key=name))
        assert np.sum(dm * mol.intor("int1e_ovlp")) == pytest.approx(10, abs=0.3)
    assert list(pyscf_guesses(hartree_fock)) == ["minao", "atom", "hcore"]
    assert "sap" in pyscf_guesses(hartree_fock, ("sap",))
    with pytest.raises(OpmlError, match="Did you mean 'minao'"):
        pyscf_guesses(kohn_sham, ("minoa",))
    ends = scf_ends(kohn_sham, found)
    assert kohn_sham.converged
    ends |= scf_ends(kohn_sham, {"own": kohn_sham.make_rdm1()})
    energies = [energy for _, energy in ends.values()]
    assert np.ptp(energies) < 1e-8
    assert ends["own"][0] <= 2 < ends["minao"][0] < ends["hcore"][0]
    kohn_sham.max_cycle = 2
    assert np.isnan(scf_ends(kohn_sham, {"hcore": found["hcore"]})["hcore"][1])


def test_table_of_guesses():
    found = {
        "scf_iterations_model": 4.0,
        "scf_iterations_minao": 8.0,
        "scf_iterations_atom": 10.0,
        "scf_iterations_ratio_minao": 0.5,
        "scf_failures_hcore": 2,
        "n_scf": 2,
    }
    rows = [line.split() for line in guess_table(found).splitlines()]
    assert rows[0] == ["SCF", "from", "cycles", "of", "minao", "failed"]
    assert rows[1] == ["model", "4.0", "0.50", "0"]
    assert [r[0] for r in rows[1:]] == ["model", "minao", "atom", "hcore"]
    assert rows[4][1:] == ["inf", "inf", "2"]


class _ConvergedDensity:
    """A model whose prediction is the converged density of RHF."""

    def __init__(self, basis):
        self.definition = types.SimpleNamespace(
            config=types.SimpleNamespace(basis=basis.name), basis=basis
        )

    def require(self, name):
        assert name == "dm"

    def check_species(self, structures):
        pass

    def converged_to(self, tolerance):
        return self

    def predict(self, structure):
        basis = self.definition.basis
        mf = scf.RHF(_mol(structure, basis.name)).run(conv_tol=1e-11)
        matrices = {"dm": mf.make_rdm1(), "overlap": mf.get_ovlp()}
        return {k: opml.from_pyscf(v, structure, basis) for k, v in matrices.items()}


def test_the_converged_density_needs_the_fewest_cycles(water):
    model = _ConvergedDensity(opml.load_basis("sto-3g", [1, 8]))
    some = opml.data.Dataset(water.structures[:2], meta={"method": "hf", "basis": "sto-3g"})
    found = compare_guesses(model, some)
    assert found["scf_iterations_model"] <= 2
    assert found["scf_iterations_model"] < found["scf_iterations_minao"]
    assert found["scf_iterations_hcore"] >= found["scf_iterations_minao"]
    assert found["energy_of_density_mae_uha"] < 1e-3
    assert "scf_iterations_vsap" not in found
    assert found["n_scf"] == 2
    other = opml.data.Dataset(water.structures[:1], meta={"method": "pbe"})
    assert "scf_iterations_vsap" in compare_guesses(model, other, guesses=("vsap",))


@pytest.mark.parametrize(
    ("basis", "cart"), [("def2-tzvp", False), ("sto-3g", False), ("6-31g*", 1)]
)
def test_a_density_in_another_basis(water, basis, cart):
    """PySCF's projection of orbitals, made orthonormal, and cycles that it saves."""
    model = _ConvergedDensity(opml.load_basis("def2-svp", [1, 8]))
    structure = water.structures[0]
    mf = scf.RHF(_mol(structure, basis, cart=bool(cart)))
    if cart:
        with pytest.raises(ConventionError, match="Cartesian"):
            guess(mf, model, fallback=None)
        return
    dm, overlap = guess(mf, model, fallback=None), mf.get_ovlp()
    assert np.sum(dm * overlap) == pytest.approx(10, abs=1e-10)
    assert np.abs(dm @ overlap @ dm - 2 * dm).max() < 1e-10
    own = scf.RHF(_mol(structure)).run(conv_tol=1e-11)
    c = scf.addons.project_mo_nr2nr(own.mol, own.mo_coeff[:, :5], mf.mol)
    wanted = 2 * c @ np.linalg.solve(c.T @ overlap @ c, c.T)
    assert np.abs(dm - wanted).max() < 1e-6  # the density is converged to that
    ends = scf_ends(mf, {"model": dm, **pyscf_guesses(mf, ("minao",))})
    assert abs(ends["model"][1] - ends["minao"][1]) < 1e-8
    assert ends["model"][0] <= ends["minao"][0]


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
    other = _kohn_sham(_mol(structure, "sto-3g", cart=True))
    with pytest.raises(OpmlError, match="Cartesian"):
        guess(other, model, fallback=None)
    with pytest.warns(UserWarning, match="Starting from minao"):
        dm = guess(other, model)
    assert np.array_equal(dm, other.get_init_guess(key="minao"))
    with pytest.raises(OpmlError, match="charge 1, spin 1"):
        guess(dft.UKS(_mol(structure, charge=1, spin=1)), model, fallback=None)
    methane = gto.M(atom="C 0 0 0; O 0 0 1.13", basis="def2-svp", verbose=0)
    with pytest.raises(OpmlError, match="C"):
        guess(_kohn_sham(methane), model, fallback=None)
