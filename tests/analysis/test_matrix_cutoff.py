"""Restricted Fock and density matrices against sums over atoms, PySCF's integrals, and limits."""

import numpy as np
import pytest
import scipy.linalg

import opml_jax as opml
from opml_jax.analysis import cutoff_weights, matrix_cutoff_study
from opml_jax.basis import layout_of
from opml_jax.data.reference import Method, calculate, density_of, molecule
from opml_jax.errors import ConfigError, OpmlError

ROUND_OFF = 1e-10

# Bohr: the hydrogen's bond, both bonds, everything (bonds 2.0 and 2.2, ends 4.2 apart)
CUTOFFS = [1.0, 2.1, 3.0, 5.0, np.inf]


@pytest.fixture(scope="module")
def cyanide(molecules):
    return molecules["hydrogen_cyanide"]


@pytest.fixture(scope="module")
def basis(cyanide):
    return opml.load_basis("sto-3g", cyanide.numbers)


@pytest.fixture(scope="module")
def fock(cyanide):
    return calculate(cyanide, Method("hf", "sto-3g", forces=False))["fock"]


@pytest.fixture(scope="module")
def study(cyanide, basis, fock):
    return matrix_cutoff_study(cyanide, fock, basis, CUTOFFS)


def test_nothing_is_lost_within_the_molecule(cyanide, basis, fock, study):
    lowdin = matrix_cutoff_study(cyanide, fock, basis, CUTOFFS, orthogonal=True)
    traces = ("P: electrons", "P: charges")
    for found in (study, lowdin):
        np.testing.assert_array_equal(found["cutoff"], CUTOFFS)
        for name in found:
            if name not in ("cutoff", "kept"):
                assert np.abs(found[name][-2:]).max() < ROUND_OFF, name
                assert abs(found[name][0]) > 1e-5 or (found is lowdin and name in traces), name
    # sums of diagonal elements in Löwdin's basis, which no cutoff touches
    assert max(np.abs(lowdin[name]).max() for name in traces) < ROUND_OFF
    assert study["P: electrons"][0] > 1


def test_what_is_lost_by_sums_over_atoms(cyanide, basis, fock, study):
    """Overlap populations, PySCF's position integrals and blocks of F, pair by pair."""
    mol, atom = molecule(cyanide, "sto-3g"), layout_of(cyanide, basis).atom
    s, *r = (
        np.asarray(opml.from_pyscf(m, cyanide, basis))
        for m in (mol.intor("int1e_ovlp"), *mol.intor("int1e_r"))
    )
    dm, positions = density_of(fock, s, cyanide), np.asarray(cyanide.positions)
    # not neutral without the blocks: the dipole is about the centre of nuclear charge
    centre = np.average(positions, axis=0, weights=cyanide.numbers)
    r = [m - c * s for m, c in zip(r, centre, strict=True)]
    for n, cutoff in enumerate(CUTOFFS):
        electrons, trace, dipole, bare = 0.0, 0.0, np.zeros(3), np.array(fock)
        for i in range(cyanide.n_atoms):
            for j in range(cyanide.n_atoms):
                if np.linalg.norm(positions[i] - positions[j]) > cutoff:
                    block = np.ix_(atom == i, atom == j)
                    electrons += (dm[block] * s[block]).sum()
                    trace += (dm[block] * fock[block]).sum()
                    dipole += [(dm[block] * m[block]).sum() for m in r]
                    bare[block] = 0
        assert abs(study["P: electrons"][n] - electrons) < ROUND_OFF
        assert abs(study["P: trace"][n] - abs(trace)) < ROUND_OFF
        assert abs(study["P: dipole"][n] - np.linalg.norm(dipole)) < ROUND_OFF
        change = scipy.linalg.eigh(bare, s)[0] - scipy.linalg.eigh(fock, s)[0]
        assert abs(study["F: occupied levels"][n] - np.abs(change[:7]).mean()) < ROUND_OFF
        assert abs(study["F: gap"][n] - abs(change[7] - change[6])) < ROUND_OFF
        assert abs(study["F: trace"][n] - abs(2 * change[:7].sum())) < ROUND_OFF


def test_weights_fall_smoothly(cyanide, basis):
    positions, atom = np.asarray(cyanide.positions), layout_of(cyanide, basis).atom
    far = np.linalg.norm(positions[:, None] - positions, axis=-1)[np.ix_(atom, atom)]
    np.testing.assert_array_equal(cutoff_weights(cyanide, basis, 2.1), far <= 2.1)
    found = [cutoff_weights(cyanide, basis, c, 1.0) for c in np.arange(1.5, 6, 0.05)]
    for n, c in enumerate(np.arange(1.5, 6, 0.05)):
        assert (found[n][far >= c] == (far[far >= c] == 0)).all()
        assert (found[n][far <= c - 1] == 1).all()
    assert (np.diff(found, axis=0) >= 0).all()
    assert np.abs(np.diff(found, axis=0)).max() < 0.05 * np.pi / 2 + 1e-12


def test_refusals(cyanide, basis, fock):
    for cutoff, width in ((0.0, 0.0), (2.0, 3.0), (2.0, -1.0)):
        with pytest.raises(ConfigError, match="cutoff"):
            cutoff_weights(cyanide, basis, cutoff, width)
    with pytest.raises(OpmlError, match="closed shell"):
        matrix_cutoff_study(cyanide.replace(charge=1, spin=1), fock, basis, [1.0])
