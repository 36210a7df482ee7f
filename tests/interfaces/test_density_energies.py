"""Energies of densities against PySCF's own, where both must be the same."""

import numpy as np
import pytest

import opml_jax as opml
from opml_jax import density
from opml_jax.basis import layout_of
from opml_jax.data.reference import molecule
from opml_jax.errors import OpmlError
from opml_jax.interfaces.density import energies

AUX = "def2-universal-jkfit"


def _mean_field(structure, xc):
    from pyscf import dft, gto

    atoms = list(zip(structure.symbols, np.asarray(structure.positions).tolist(), strict=True))
    return dft.RKS(gto.M(atom=atoms, unit="Bohr", basis="def2-svp", verbose=0), xc=xc)


@pytest.fixture(scope="module")
def bases(water):
    return tuple(opml.load_basis(n, water.numbers) for n in ("def2-svp", AUX))


@pytest.fixture(scope="module")
def converged(water, bases):
    """Two functionals: density matrix and coefficients of each."""
    out = {}
    for xc in ("lda,vwn", "pbe"):
        mf = _mean_field(water, xc).run(conv_tol=1e-11)
        dm = opml.from_pyscf(mf.make_rdm1(), water, bases[0])
        out[xc] = mf, np.asarray(density.fit(dm, water, *bases))
    return out


@pytest.mark.parametrize("xc", ["lda,vwn", "pbe"])
def test_the_ladder(converged, bases, xc):
    mf, c = converged[xc]
    found = energies(mf, c, bases[1])
    # published for this pair of bases: the fit costs 0.2 to 3 micro-Hartree after one
    # diagonalisation, and 0.2 to 2 milli-Hartree in Harris' functional
    assert 0 <= found.one_shot - mf.e_tot < 3e-6
    assert abs(found.harris - mf.e_tot) < 2e-3
    exact = mf.get_veff().exc
    assert abs(found.exchange_correlation - exact) < 0.02  # of 9 Hartree: the fit is coarse
    assert 0 < found.negative < 1e-2  # fits dip below zero
    assert abs(np.sum(found.dm * mf.get_ovlp()) - 10) < 1e-9
    components = mf.scf_summary
    assert abs(found.hartree - components["coul"]) < 1e-2
    nuclei = mf.energy_nuc()
    assert found.electrostatic == pytest.approx(found.hartree + found.external + nuclei, abs=1e-9)


def test_potential_is_pyscfs_at_a_density_that_both_can_hold():
    """One s function an atom, twice occupied: its square is an s function too."""
    from pyscf import dft, gto

    from opml_jax.basis import Basis, Shell
    from opml_jax.interfaces.density import _exchange_correlation

    atom = opml.Structure((2,), np.zeros((1, 3)))
    for xc in ("lda,vwn", "pbe"):
        mol = gto.M(atom="He 0 0 0", basis={"He": [[0, [1.2, 1.0]], [1, [0.8, 1.0]]]}, verbose=0)
        mf = dft.RKS(mol, xc=xc)
        dm = np.diag([2.0, 0, 0, 0])
        aux = Basis.from_shells("square", {2: [Shell(0, np.array([2.4]), np.ones(1))]})
        q = float(density.charges(atom, aux)[0])
        mf.grids.build()
        _, exc, vxc = mf._numint.nr_rks(mol, mf.grids, xc, dm)
        found = _exchange_correlation(mf, np.array([2.0 / q]), atom, aux)
        assert found[0] == pytest.approx(exc, abs=1e-10)
        np.testing.assert_allclose(found[2], vxc, atol=1e-10)
        assert found[1] == pytest.approx(np.sum(vxc * dm), abs=1e-10)


def test_errors_are_of_second_order(converged, bases, water):
    """Half the error of the density, a quarter of that of the energy."""
    mf, c = converged["pbe"]
    away = density.superposed_atoms(water, *bases) - c
    base = energies(mf, c, bases[1])
    for name in ("one_shot", "harris"):
        shifts = [
            getattr(energies(mf, c + x * away, bases[1]), name) - getattr(base, name)
            for x in (0.1, 0.05)
        ]
        # the fit's own error adds a first-order part: a factor of 4 to a tenth
        assert shifts[0] / shifts[1] == pytest.approx(4, rel=0.1)


def test_a_density_is_a_good_start(converged, bases, water):
    mf, c = converged["pbe"]
    start = energies(mf, c, bases[1]).dm
    cycles = []
    for dm0 in (start, None):
        again = _mean_field(water, "pbe")
        again.kernel(dm0=dm0)
        assert again.converged
        cycles.append(again.cycles)
    assert cycles[0] < cycles[1]


def test_refusals(converged, bases, water):
    mf, c = converged["pbe"]
    with pytest.raises(OpmlError, match="a functional of the density and its gradient"):
        energies(_mean_field(water, "b3lyp"), c, bases[1])
    with pytest.raises(OpmlError, match="shape"):
        energies(mf, c[:-1], bases[1])
    with pytest.raises(OpmlError, match=r"10\.0200 electrons"):
        energies(mf, 1.002 * c, bases[1])
    with pytest.raises(OpmlError, match="Kohn-Sham"):
        energies(_mean_field(water, "pbe").to_hf(), c, bases[1])


def test_it_is_found_under_its_name():
    assert opml.interfaces.density.energies is energies


def test_densities_with_widths(converged, bases, water):
    """The fit in functions with widths: PySCF's integrals of the same density by its own basis."""
    mf, _ = converged["pbe"]
    dm = opml.from_pyscf(mf.make_rdm1(), water, bases[0])
    n = layout_of(water, bases[1]).n_shells
    widths = np.exp(np.random.default_rng(0).uniform(-0.02, 0.02, size=n))
    c = np.asarray(density.fit(dm, water, *bases, widths=widths))
    found = energies(mf, c, bases[1], widths)
    # as for fixed functions; a fit is a minimum, so what it costs hardly changes
    assert 0 <= found.one_shot - mf.e_tot < 3e-6
    assert abs(found.harris - mf.e_tot) < 3e-3
    mol = molecule(water, bases[1], widths)
    theirs = density.to_pyscf(c, water, bases[1])
    hartree = 0.5 * theirs @ mol.intor("int2c2e") @ theirs
    assert found.hartree == pytest.approx(hartree, abs=1e-10)
    # without them they are of another density, which has not all electrons
    with pytest.raises(OpmlError, match=r"of other widths.*OPML-304"):
        energies(mf, c, bases[1])
    fixed = np.asarray(density.without_widths(c, widths, water, bases[1]))
    again = energies(mf, fixed, bases[1])
    assert abs(again.one_shot - mf.e_tot) < 3e-6
