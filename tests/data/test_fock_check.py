"""``opml data check --fock``: matrices against those of their densities."""

import re

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.basis import load_basis, to_pyscf
from opml_jax.cli import main
from opml_jax.data import Dataset
from opml_jax.data.reference import Method, calculate, fock_deviation, mean_field
from opml_jax.data.store import write_hdf5
from opml_jax.structures import Structure

METHOD = Method("b3lyp5", "6-31g", grid_level=1, forces=False)
# Orbital gradients of an SCF that is converged to 1e-10 Hartree are below 1e-5
SCF = 1e-5


@pytest.fixture(scope="module")
def labels(water):
    return calculate(water, METHOD)


def _file(path, water, labels, **meta):
    data = Dataset([water, water], {"fock": [labels["fock"]] * 2}, {**METHOD.meta(), **meta})
    write_hdf5(path, data)
    return str(path)


def test_a_converged_matrix_is_that_of_its_density(water, labels):
    assert np.abs(fock_deviation(water, labels["fock"], METHOD)).max() < SCF


def test_another_matrix_is_not(water):
    """The core Hamiltonian: what is missing is the potential of its own electrons."""
    mf = mean_field(water, METHOD)
    core = mf.get_hcore()
    levels, orbitals = mf.eig(core, mf.get_ovlp())
    dm = mf.make_rdm1(orbitals, mf.get_occ(levels, orbitals))
    basis = load_basis("6-31g", water.numbers)
    ours = opml.from_pyscf(core, water, basis)
    np.testing.assert_allclose(to_pyscf(ours, water, basis), core, atol=0)
    np.testing.assert_allclose(fock_deviation(water, ours, METHOD), mf.get_veff(dm=dm), atol=1e-10)


def test_nearly_dependent_functions():
    """PySCF drops one of these 46, in the calculation and in the check."""
    close = Structure([1, 1], [[0, 0, 0], [0, 0, 0.35 / 0.529177]])
    method = Method("hf", "aug-cc-pvtz", forces=False)
    assert np.abs(fock_deviation(close, calculate(close, method)["fock"], method)).max() < SCF


def test_the_command_tells_the_two_b3lyp_apart(tmp_path, water, labels, capsys):
    right = _file(tmp_path / "right.h5", water, labels)
    wrong = _file(tmp_path / "wrong.h5", water, labels, method="b3lyp")
    means = []
    for file in (right, wrong):
        assert not main(["data", "check", file, "--fock", "2"])
        out = capsys.readouterr().out
        means.append(float(re.search(r"is (\S+) uHa on average", out)[1]))
        assert ("problem: fock differs" in out) == (file == wrong)
    assert means[0] < 1 < 100 < means[1]  # measured: below 0.1, and several hundred


@pytest.mark.parametrize("n", ["-1", "2"])
def test_what_cannot_be_checked_is_refused(tmp_path, water, labels, n, capsys):
    data = Dataset([water], {"fock": [labels["fock"]]}, {"basis": "6-31g"})
    write_hdf5(tmp_path / "bare.h5", data)
    assert main(["data", "check", str(tmp_path / "bare.h5"), "--fock", n]) == 2
    assert ("--fock" if n == "-1" else "method of the data set") in capsys.readouterr().err
