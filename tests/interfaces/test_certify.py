"""PySCF judges a predicted density by one Fock matrix, without an SCF."""

import dataclasses
from pathlib import Path

import ase.build
import ase.io
import h5py
import numpy as np
import pytest
import scipy.linalg
from pyscf import gto, scf

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.errors import Code, ConventionError, OpmlError
from opml_jax.interfaces.pyscf import CERTIFIED, certified, certify, level_of
from opml_jax.models.files import save_model
from opml_jax.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

GOLDEN = Path(__file__).parents[1] / "models" / "golden"
SAME = 1e-10  # Hartree: two ways to one Fock matrix
TEXT = 5e-9  # Hartree or so: eight decimals of an extxyz file


def stated(name, **reference):
    """A saved model with what the README beside it says of its labels, and they did not."""
    model = opml.load_model(GOLDEN / f"{name}.safetensors")
    reference = {**model.card["reference"], "method": "hf", **reference}
    return dataclasses.replace(model, card={**model.card, "reference": reference})


@pytest.fixture(scope="module")
def waters():
    """Three waters, and what a self-consistent model predicted of them when it was saved."""
    with np.load(GOLDEN / "op2op_self_consistent.npz") as f:
        arrays = dict(f)
    structures = [opml.Structure([8, 1, 1], r) for r in arrays["positions"]]
    return structures, {
        k.removeprefix("plain/"): arrays[k] for k in arrays if k.startswith("plain/")
    }


def calculation(structure):
    """Hartree-Fock in STO-3G, as PySCF's users write it."""
    atoms = list(zip(structure.symbols, np.asarray(structure.positions).tolist(), strict=True))
    return scf.RHF(gto.M(atom=atoms, unit="Bohr", basis="sto-3g", verbose=0))


def test_the_certificate_is_that_of_an_independent_calculation(waters):
    structures, predicted = waters
    model = stated("op2op_self_consistent")
    found = certified(model, structures, predicted)
    for i, structure in enumerate(structures):
        mf = calculation(structure)
        basis = model.definition.basis
        fock, p = (
            np.asarray(opml.to_pyscf(predicted[k][i], structure, basis)) for k in ("fock", "dm")
        )
        h, s = mf.get_hcore(), mf.get_ovlp()
        integrals = mf.mol.intor("int2e")
        coulomb = np.einsum("ijkl,kl->ij", integrals, p)
        exchange = np.einsum("ikjl,kl->ij", integrals, p)
        f = h + coulomb - exchange / 2
        root = np.linalg.inv(scipy.linalg.sqrtm(s))
        residual = np.abs(root @ (f @ p @ s - s @ p @ f) @ root).max()
        energy = np.sum(p * (h + f)) / 2 + mf.mol.energy_nuc()
        assert found["certified_residual"][i] == pytest.approx(residual, abs=SAME)
        assert found["fock_deviation"][i] == pytest.approx(np.abs(fock - f).mean(), abs=SAME)
        assert found["energy_of_density"][i] == pytest.approx(energy, abs=SAME)
        assert found["intruder"][i] == 0
        mf.conv_tol = 1e-12
        excess = energy - mf.kernel()
        assert 0 < excess < 10 * residual**2  # of second order, and over gaps of 0.1 and more


def test_another_functional_is_noticed(waters):
    """The residual of the labels' own level is the smaller one by far."""
    structures, predicted = waters
    one = {k: v[0] for k, v in predicted.items()}
    own, other = (
        certify(stated("op2op_self_consistent", method=m), structures[0], one)
        for m in ("hf", "pbe")
    )
    assert other["certified_residual"] > 10 * own["certified_residual"]
    assert other["fock_deviation"] > 10 * own["fock_deviation"]


def test_an_occupied_orbital_that_should_not_be_is_an_intruder(waters):
    """The lowest unoccupied level of a prediction moved below all, its density with it."""
    structures, predicted = waters
    water, s = structures[0], predicted["overlap"][0]
    levels, orbitals = scipy.linalg.eigh(predicted["fock"][0], s)
    above = s @ orbitals[:, 5:6]
    fock = predicted["fock"][0] - (levels[5] - levels[4] + 0.1) * above @ above.T
    occupied = scipy.linalg.eigh(fock, s)[1][:, :5]
    wrong = {"fock": fock, "dm": 2 * occupied @ occupied.T, "overlap": s}
    model = stated("op2op_self_consistent")
    found = certify(model, water, wrong)
    right = certify(model, water, {k: v[0] for k, v in predicted.items()})
    assert found["intruder"] is True
    assert right["intruder"] is False
    assert found["energy_of_density"] > right["energy_of_density"] + 0.1


def test_what_did_not_converge_has_no_certificate(waters):
    structures, predicted = waters
    failed = {k: np.array(v, float) for k, v in predicted.items()}
    for name in ("fock", "dm", "overlap"):
        failed[name][1] = np.nan
    failed["residual"][1] = 0.1
    failed |= {k: predicted[k] for k in ("nao", "n_atoms")}
    model, said = stated("op2op_self_consistent"), []
    found = certified(model, structures, failed, on_result=lambda *x: said.append(x))
    for name in CERTIFIED:
        assert np.isnan(found[name]).tolist() == [False, True, False]
    assert [(i, result is None) for i, result in said] == [(0, False), (1, True), (2, False)]
    with pytest.raises(OpmlError, match="NaN") as caught:
        certify(model, structures[1], {k: v[1] for k, v in failed.items()})
    assert caught.value.code == Code.NOT_FINITE


@pytest.mark.parametrize("name", ["op2op_dm", "effective", "op2prop_products", "density"])
def test_models_of_other_things_are_refused(name):
    with pytest.raises(OpmlError) as caught:
        certify(stated(name), opml.Structure([2], [[0.0, 0.0, 0.0]]))
    assert caught.value.code == Code.CAPABILITY


def test_the_level_must_be_stated_and_the_basis_the_models(waters):
    structures, predicted = waters
    one = {k: v[0] for k, v in predicted.items()}
    with pytest.raises(ConventionError, match="states no method") as caught:
        certify(opml.load_model(GOLDEN / "op2op_self_consistent.safetensors"), structures[0], one)
    assert caught.value.code == Code.LEVEL_OF_THEORY
    with pytest.raises(ConventionError, match=rf"13 atomic orbitals.*{Code.LAYOUT}"):
        certify(stated("op2op_self_consistent", basis="6-31g"), structures[0], one)
    settings = {"method": "pbe", "grid_level": 2, "density_fit": True}
    method = level_of(stated("op2op_self_consistent", **settings))
    assert (method.method, method.grid_level, method.density_fit) == ("pbe", 2, True)


@pytest.mark.slow
def test_on_the_command_line(tmp_path, capsys, waters):
    """A line for each molecule, and the numbers in both kinds of file."""
    model = stated("op2op_network", density_fit=False)
    save_model(tmp_path / "model.safetensors", model)
    waters = waters[0][:2]
    frames = [ase.Atoms(s.symbols, np.asarray(s.positions) * ANGSTROM_PER_BOHR) for s in waters]
    ase.io.write(tmp_path / "two.xyz", frames)
    wanted = certified(model, waters, model.predict(waters))
    for suffix in ("h5", "extxyz"):
        out = tmp_path / f"out.{suffix}"
        command = ["predict", tmp_path / "model.safetensors", tmp_path / "two.xyz", "-o", out]
        assert main([*map(str, command), "--certify"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "certified by PySCF: hf/sto-3g, no density fitting"
        micro = 1e6 * wanted["certified_residual"]
        assert lines[1] == f"0 (H2O): residual {micro[0]:.1f} uHa, intruder no"
        assert lines[2] == f"1 (H2O): residual {micro[1]:.1f} uHa, intruder no"
    stored = opml.read_dataset(tmp_path / "out.h5")
    written = ase.io.read(tmp_path / "out.extxyz", ":")
    for name in CERTIFIED:
        unit = 1.0 if name == "intruder" else EV_PER_HARTREE
        np.testing.assert_allclose(stored[name], wanted[name], atol=1e-7)  # positions in Angstrom
        in_ase = [atoms.info[f"opml_{name}"] / unit for atoms in written]
        np.testing.assert_allclose(in_ase, stored[name], atol=TEXT)
    assert opml.read_dataset(tmp_path / "out.h5")["energy_of_density"].shape == (2,)


@pytest.mark.slow
@pytest.mark.filterwarnings("default::opml_jax.errors.DataWarning")
def test_a_density_may_be_self_consistent_and_wrong(tmp_path, capsys):
    """Of stretched hydrogen peroxide, by a model of water: PySCF says that it is wrong.

    As it is the molecule has no self-consistent density, and no certificate.
    """
    save_model(tmp_path / "model.safetensors", stated("op2op_self_consistent"))
    peroxide, apart = ase.build.molecule("H2O2"), ase.build.molecule("H2O2")
    apart.positions *= 1.12
    ase.io.write(tmp_path / "all.xyz", [ase.build.molecule("H2O"), peroxide, apart])
    files = [str(tmp_path / name) for name in ("model.safetensors", "all.xyz", "out.h5")]
    command = ["predict", *files[:2], "-o", files[2], "--certify", "--allow-unconverged"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "as short as O-O at 1.47 A (training: never)" in said.err
    lines = said.out.splitlines()
    assert lines[0] == "certified by PySCF: hf/sto-3g, no density fitting (not stated)"
    assert lines[1].endswith("intruder no")
    assert lines[2] == "1 (H2O2): not self-consistent"
    assert lines[3].startswith("2 (H2O2): residual 2")
    with h5py.File(files[2]) as f:
        residual, energy = (f["labels"][k][()] for k in ("certified_residual", "energy_of_density"))
    assert residual[0] < 1e-3  # Hartree
    assert np.isnan(residual[1])
    assert residual[2] > 0.1
    mf = calculation(opml.read_structures(files[1])[2])
    assert energy[2] > mf.kernel() + 0.01
