import contextlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.integrate import quad

from opml_jax.basis import Basis, Shell, load_basis
from opml_jax.basis.shells import normalised_coefficients
from opml_jax.errors import BasisError, OpmlError

# 9 digits of coefficients enter the fingerprint; quad's own error is far below
UNIT_NORM = 1e-10


@pytest.mark.parametrize(
    ("name", "elements", "says"),
    [
        ("def2-spv", ["O"], ["basis name", "known to PySCF", "'def2-spv'", "'def2svp'"]),
        ("ccpvtzz", ["O"], ["basis name", "'ccpvtzz'", "'ccpvtz'"]),
        ("sto-4g", ["O"], ["basis name", "'sto-4g'", "sto"]),
        ("utter nonsense", ["O"], ["basis name", "'utter nonsense'"]),
        ("", ["O"], ["basis name", "''"]),
        ("cc-pvqz", ["H", "I"], ["'cc-pvqz'", "lacks I"]),
        ("6-31g*", ["U"], ["'6-31g*'", "lacks U"]),
        ("sto-3g", [], ["numbers", "at least one element"]),
    ],
)
def test_refuses(name, elements, says):
    with pytest.raises(BasisError) as caught:
        load_basis(name, elements)
    for words in says:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("def2-svp", "I"),
        ("lanl2dz", "Na"),
        ("stuttgart", "Na"),
        ("cc-pvdz-pp", "Cu"),
        ("aug-cc-pvtz-pp", "Cu"),
        ("cc-pvtz-pp-nr", "Cu"),
        ("def2-mtzvp", "Rb"),
        ("bfd-vdz", "C"),
        ("ccecp-cc-pvdz", "O"),
        ("gth-szv", "C"),
        ("gth-dzvp", "O"),
    ],
)
def test_refuses_bases_of_effective_core_potentials(name, element):
    with pytest.raises(BasisError, match=r"all-electron basis") as caught:
        load_basis(name, [element])
    assert name in str(caught.value)


def test_says_what_to_use_instead_of_a_core_potential():
    with pytest.raises(BasisError) as caught:
        load_basis("def2-svp", ["I"])
    suggested = str(caught.value).split("Use ")[1].split("'")[1::2]
    assert len(suggested) >= 2
    for name in suggested:
        assert load_basis(name, ["I"]).elements == (53,)


def test_bases_with_core_potentials_serve_lighter_elements():
    assert load_basis("lanl2dz", ["C"]).elements == (6,)
    assert load_basis("def2-svp", ["Br"]).elements == (35,)


def test_loading_is_silent():
    """PySCF advertises another library; that is not our user's business."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, element in (("6-31g(d,p)", "P"), ("dyall-v2z", "Br"), ("def2-svp", "Xe")):
            with contextlib.suppress(BasisError):
                load_basis(name, [element])
    assert [str(w.message) for w in caught] == []


def test_missing_elements_are_noticed_beside_pyscfad():
    """Its padded molecules make PySCF return an empty shell where it would say what is missing."""
    script = """
import jax
jax.config.update("jax_enable_x64", True)
import pyscfad.ml.gto.mole_pad
from opml_jax.basis import load_basis
from opml_jax.errors import BasisError
try:
    load_basis("cc-pvqz", ["I"])
except BasisError as err:
    assert "lacks I" in str(err), err
else:
    raise AssertionError("no error")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["STO-3G", "sto3g", "sto_3g", "sto 3g"])
def test_names_are_read_as_pyscf_reads_them(name):
    assert load_basis(name, ["O"]).spec.fingerprint == load_basis("sto-3g", [8]).spec.fingerprint


@pytest.mark.parametrize("name", ["6-31g(d,p)", "6-311++g(2d,2p)", "unc-cc-pvdz", "cc-pvtz@3s2p1d"])
def test_composed_names_of_pyscf(name):
    """PySCF builds these from a stored basis: polarisation, uncontracted, truncated."""
    from pyscf import gto

    ours = load_basis(name, ["C"]).spec
    mol = gto.M(atom="C 0 0 0", basis=name, spin=0)
    assert ours.nao(6) == mol.nao


@pytest.mark.parametrize("name", ["def2-tzvp@3s2p", "cc-pvtz@", "cc-pvtz@xyz", "sto-3g@1s@1s"])
def test_truncations_that_a_basis_does_not_have(name):
    with pytest.raises(BasisError, match="how many functions of H are kept"):
        load_basis(name, ["H"])


def test_elements_are_sorted_and_unique():
    basis = load_basis("sto-3g", [8, 1, "C", 1])
    assert basis.elements == (1, 6, 8)
    assert repr(basis) == "Basis('sto-3g', H, C, O)"
    with pytest.raises(BasisError, match=r"covers N; got .* loaded for H, C, O\..*load_basis"):
        basis.element_shells(7)


def test_general_contractions_are_split():
    shells = load_basis("cc-pvdz", ["C"]).element_shells(6)
    assert [s.l for s in shells] == [0, 0, 0, 1, 1, 2]
    assert all(s.exponents.shape == s.coefficients.shape for s in shells)
    assert all((s.coefficients != 0).all() for s in shells)


@pytest.mark.parametrize("l", range(5))
def test_normalised_coefficients_have_unit_self_overlap(l, rng):
    a, c = rng.uniform(0.2, 5.0, 3), rng.normal(size=3)
    d = normalised_coefficients(l, a, c)

    def density(r):
        return (r ** (l + 1) * (d * np.exp(-a * r * r)).sum()) ** 2

    norm, _ = quad(density, 0, np.inf, epsabs=1e-13, epsrel=1e-13)
    assert norm == pytest.approx(1.0, abs=UNIT_NORM)


def _scaled(basis, factor):
    return Basis.from_shells(
        basis.name,
        {
            z: [Shell(s.l, s.exponents, factor * s.coefficients) for s in own]
            for z, own in zip(basis.elements, basis.shells, strict=True)
        },
    )


def test_fingerprint_names_the_functions():
    basis = load_basis("def2-svp", ["H", "O"])
    spec = basis.spec
    assert _scaled(basis, 3.7).spec == spec  # the factor of a contraction is arbitrary
    others = [
        load_basis("def2-tzvp", ["H", "O"]),
        load_basis("def2-svp", ["H", "N"]),
        Basis.from_shells("def2-svp", {1: basis.shells[0], 8: basis.shells[1][:-1]}),
        Basis.from_shells(
            "def2-svp",
            {
                1: basis.shells[0],
                8: [Shell(s.l, 1.001 * s.exponents, s.coefficients) for s in basis.shells[1]],
            },
        ),
    ]
    assert len({b.spec.fingerprint for b in (basis, *others)}) == 5


def test_from_shells_sorts_by_l_and_checks():
    s, p = Shell(0, np.ones(1), np.ones(1)), Shell(1, np.ones(1), np.ones(1))
    assert Basis.from_shells("mine", {1: [p, s]}).spec.ls == ((0, 1),)
    with pytest.raises(OpmlError, match="no shells for H"):
        Basis.from_shells("mine", {1: []})
    with pytest.raises(BasisError, match=r"l=6 \(i\).*l=7 on H"):
        Basis.from_shells("mine", {1: [Shell(7, np.ones(1), np.ones(1))]})


def test_primitives_come_steepest_first():
    """libcint bounds a shell pair by its last exponents; another order loses integrals."""
    s = Shell(0, np.array([0.1, 50.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    (ours,) = Basis.from_shells("mine", {1: [s]}).shells[0]
    assert ours.exponents.tolist() == [50.0, 3.0, 0.1]
    assert ours.coefficients.tolist() == [2.0, 3.0, 1.0]
