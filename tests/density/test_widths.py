"""Densities whose functions have widths: libcint, grids, differences, projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax import density, integrals
from opml_jax.basis import Basis, Shell, layout_of
from opml_jax.data.reference import molecule
from opml_jax.errors import OpmlError
from opml_jax.testing import assert_grad_matches_fd

pytestmark = pytest.mark.slow  # a minute of compiling

AUX = Basis.from_shells(
    "contracted",
    {
        1: [Shell(0, np.array([3.0, 0.8]), np.array([0.3, 0.7])), Shell(1, np.ones(1), np.ones(1))],
        8: [
            Shell(0, np.array([9.0, 2.0, 0.5]), np.array([0.2, 0.5, 0.6])),
            Shell(0, np.array([0.7]), np.ones(1)),
            Shell(1, np.array([1.9]), np.ones(1)),
            Shell(2, np.array([1.4, 0.6]), np.array([0.6, 0.5])),
            Shell(3, np.array([0.9]), np.ones(1)),
        ],
    },
)
"""Contractions, and angular momenta to f."""


@pytest.fixture(scope="module")
def widths(water) -> np.ndarray:
    n = layout_of(water, AUX).n_shells
    return np.exp(np.random.default_rng(3).uniform(-0.4, 0.4, size=n))


@pytest.fixture(scope="module")
def coefficients(water) -> np.ndarray:
    return np.random.default_rng(4).normal(size=layout_of(water, AUX).nao)


@pytest.fixture(scope="module")
def mol(water, widths):
    """PySCF's molecule of the same functions: exponents written out for every atom."""
    from pyscf import gto

    own, sets, atoms = iter(widths), {}, []
    for a, (name, z) in enumerate(zip(water.symbols, water.numbers, strict=True)):
        atoms.append((f"{name}{a}", np.asarray(water.positions)[a].tolist()))
        sets[f"{name}{a}"] = []
        for shell in AUX.element_shells(z):
            w = next(own)
            rows = zip(shell.exponents * w, shell.coefficients, strict=True)
            sets[f"{name}{a}"].append([shell.l, *map(list, rows)])
    return gto.M(atom=atoms, unit="Bohr", basis=sets, verbose=0)


def test_integrals_are_libcints(water, widths, mol, rng):
    from pyscf import df, gto

    index = layout_of(water, AUX).from_pyscf_index
    for function, name in (
        (integrals.coulomb_metric, "int2c2e"),
        (integrals.overlap_metric, "int1e_ovlp"),
    ):
        theirs = mol.intor(name)[index][:, index]
        ours = jax.jit(function)(water, AUX, widths)
        np.testing.assert_allclose(ours, theirs, atol=3e-14 * np.abs(theirs).max())
        fixed = molecule(water, AUX)
        theirs = gto.intor_cross(name, mol, fixed)[index][:, index]
        kind = "coulomb" if name == "int2c2e" else "overlap"
        ours = integrals.cross_metric(water, AUX, widths, None, kind)
        np.testing.assert_allclose(ours, theirs, atol=3e-14 * np.abs(theirs).max())
    points = rng.normal(size=(20, 3)) * 2
    values = mol.eval_gto("GTOval_sph", points)[:, index]
    np.testing.assert_allclose(integrals.values(water, AUX, points, widths), values, atol=1e-13)
    charges = gto.fakemol_for_charges(points)
    potentials = gto.intor_cross("int2c2e", charges, mol)[:, index]
    ours = integrals.potentials(water, AUX, points, widths)
    np.testing.assert_allclose(ours, potentials, atol=1e-11)
    basis = opml.load_basis("sto-3g", water.numbers)
    i = layout_of(water, basis).from_pyscf_index
    orbitals = molecule(water, basis)
    for kind, name in (("coulomb", "int3c2e"), ("overlap", "int3c1e")):
        theirs = df.incore.aux_e2(orbitals, mol, name).transpose(2, 0, 1)[index][:, i[:, None], i]
        ours = integrals.three_center(water, basis, AUX, kind, widths)
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


def test_pyscf_gets_the_same_molecule(water, widths, mol):
    np.testing.assert_allclose(
        molecule(water, AUX, widths).intor("int1e_ovlp"), mol.intor("int1e_ovlp"), atol=1e-14
    )


def test_ones_are_the_basis(water, coefficients, rng):
    ones, points = np.ones(layout_of(water, AUX).n_shells), rng.normal(size=(5, 3))
    for function in (integrals.coulomb_metric, integrals.overlap_metric, density.charges):
        np.testing.assert_array_equal(function(water, AUX, ones), function(water, AUX))
    for function in (density.dipole, density.quadrupole):
        here, there = (function(coefficients, water, AUX, w) for w in (ones, None))
        np.testing.assert_array_equal(here, there)
    for function in (density.on_points, density.potential_on_points):
        here, there = (function(coefficients, water, AUX, points, w) for w in (ones, None))
        np.testing.assert_array_equal(here, there)


def test_derivatives_in_widths(water, widths, rng):
    """Fourth-order differences, to the checker's 1e-6 of the largest component."""
    n = layout_of(water, AUX).nao
    weights, points = rng.normal(size=(n, n)), jnp.asarray(rng.normal(size=(7, 3)))
    on_points = rng.normal(size=(7, n))

    def metrics(w):
        both = integrals.coulomb_metric(water, AUX, w) + integrals.overlap_metric(water, AUX, w)
        return jnp.sum(weights * (both + integrals.cross_metric(water, AUX, None, w)))

    def at_points(w):
        values = integrals.values(water, AUX, points, w)
        return jnp.sum(on_points * (values + integrals.potentials(water, AUX, points, w)))

    def moments(w):
        dipole, quadrupole = (
            f(weights[0], water, AUX, w) for f in (density.dipole, density.quadrupole)
        )
        return jnp.sum(dipole) + jnp.sum(quadrupole * weights[:3, :3])

    def projected(w):
        return weights[1] @ density.without_widths(weights[0], w, water, AUX)

    for function in (metrics, at_points, moments, projected):
        assert_grad_matches_fd(jax.jit(function), jnp.asarray(widths))


def test_moments_are_integrals_on_a_grid(water, widths, coefficients):
    s, c = water, coefficients
    points, weights = density.grid(s, 6)
    rho = weights * density.on_points(c, s, AUX, points, widths)
    centre = np.asarray(opml.structures.centre_of_nuclear_charge(s))
    r, at = points - centre, np.asarray(s.positions) - centre
    np.testing.assert_allclose(density.electron_number(c, s, AUX, widths), rho.sum(), atol=1e-6)
    numbers = np.array(s.numbers)
    dipole = numbers @ at - rho @ r
    np.testing.assert_allclose(density.dipole(c, s, AUX, widths), dipole, atol=1e-5)
    second = np.einsum("a,ax,ay->xy", numbers, at, at) - np.einsum("g,gx,gy->xy", rho, r, r)
    expected = 1.5 * second - 0.5 * np.trace(second) * np.eye(3)
    np.testing.assert_allclose(density.quadrupole(c, s, AUX, widths), expected, atol=1e-4)


def by_atom(structure, basis, z, c, w):
    """Coefficients and widths of an element's atoms as a model has them."""
    layout = layout_of(structure, basis)
    atoms = [a for a, n in enumerate(structure.numbers) if n == z]
    rows, shells = {}, {}
    for l in sorted(set(layout.l[layout.atom == atoms[0]])):
        at = np.array([np.flatnonzero((layout.atom == a) & (layout.l == l)) for a in atoms])
        at = at.reshape(len(atoms), -1, 2 * l + 1)
        rows[int(l)], shells[int(l)] = at, layout.shell[at[..., 0]]
    return atoms, rows, {l: c[at] for l, at in rows.items()}, {l: w[k] for l, k in shells.items()}


def test_atoms_add_up_to_the_density(water, widths, coefficients, rng):
    points = rng.normal(size=(30, 3)) * 2
    total = 0.0
    for z in (1, 8):
        atoms, _, c, w = by_atom(water, AUX, z, coefficients, widths)
        r = points - np.asarray(water.positions)[atoms][:, None]
        total += density.of_atoms(c, w, AUX, z, r).sum(axis=0)
    expected = density.on_points(coefficients, water, AUX, points, widths)
    np.testing.assert_allclose(total, expected, atol=1e-13)


def test_projections_are_the_nearest_densities(water, widths, coefficients):
    """What is left is orthogonal to every fixed function, but for the electrons that are kept."""
    for metric in density.METRICS:
        found = density.without_widths(coefficients, widths, water, AUX, metric)
        electrons = density.electron_number(coefficients, water, AUX, widths)
        assert abs(density.electron_number(found, water, AUX) - electrons) < 1e-10
    overlap = np.asarray(integrals.overlap_metric(water, AUX))
    found = density.without_widths(coefficients, widths, water, AUX, "overlap")
    left = (
        overlap @ found - integrals.cross_metric(water, AUX, None, widths, "overlap") @ coefficients
    )
    q = np.asarray(density.charges(water, AUX))
    left = left - q * (q @ left) / (q @ q)
    np.testing.assert_allclose(left, 0.0, atol=1e-11)
    same = density.without_widths(coefficients, np.ones_like(widths), water, AUX)
    np.testing.assert_allclose(same, coefficients, atol=1e-9)


def test_atoms_are_projected_alone(water, widths, coefficients):
    """Libcint's overlaps between functions of one atom, solved."""
    overlap = np.asarray(integrals.overlap_metric(water, AUX))
    cross = np.asarray(integrals.cross_metric(water, AUX, None, widths, "overlap"))
    layout = layout_of(water, AUX)
    for z in (1, 8):
        atoms, rows, c, w = by_atom(water, AUX, z, coefficients, widths)
        found = density.on_own_atom(c, w, AUX, z)
        ones = density.on_own_atom(c, jax.tree.map(np.ones_like, w), AUX, z)
        for i, a in enumerate(atoms):
            own = np.flatnonzero(layout.atom == a)
            block = np.ix_(own, own)
            expected = np.linalg.solve(overlap[block], cross[block] @ coefficients[own])
            for l, at in rows.items():
                np.testing.assert_allclose(found[l][i], expected[at[i] - own[0]], atol=1e-12)
                np.testing.assert_allclose(ones[l][i], c[l][i], atol=1e-12)


def test_fits_are_in_the_functions_with_widths(water):
    """All electrons, and a fixed point: the density of a fit is fitted by itself."""
    from pyscf import scf

    basis = opml.load_basis("sto-3g", water.numbers)
    aux = opml.load_basis("def2-universal-jfit", water.numbers)
    mf = scf.RHF(molecule(water, basis)).run()
    p = opml.from_pyscf(mf.make_rdm1(), water, basis)
    n = layout_of(water, aux).n_shells
    widths = np.exp(np.random.default_rng(0).uniform(-0.05, 0.05, size=n))
    points, weights = density.grid(water, 1)
    exact = density.matrix_on_points(p, water, basis, points)
    for metric in density.METRICS:
        c = density.fit(p, water, basis, aux, metric, widths)
        assert abs(density.electron_number(c, water, aux, widths) - 10) < 1e-10
        found = density.on_points(c, water, aux, points, widths)
        wrong = density.on_points(c, water, aux, points)  # read as of fixed functions
        errors = [10 * weights @ np.abs(x - exact) for x in (found, wrong)]  # percent
        assert errors[0] < 0.8 * errors[1]


def test_cube_files(water, widths, coefficients, tmp_path):
    for name, w in (("with", widths), ("without", None)):
        path = tmp_path / f"{name}.cube"
        density.write_cube(path, coefficients, water, AUX, spacing=1.5, margin=1.0, widths=w)
    assert (tmp_path / "with.cube").read_text() != (tmp_path / "without.cube").read_text()


def test_refusals(water, widths):
    with pytest.raises(OpmlError, match=r"a factor for each shell.*got shape \(3,\).*OPML-103"):
        integrals.coulomb_metric(water, AUX, np.ones(3))
    for wrong in (0.0, -1.0, np.nan):
        bad = widths.copy()
        bad[1] = wrong
        with pytest.raises(OpmlError, match="positive factors of exponents"):
            density.charges(water, AUX, bad)
        with pytest.raises(OpmlError, match="positive factors of exponents"):
            density.on_points(np.zeros(1), water, AUX, np.zeros((1, 3)), bad)
    with pytest.raises(OpmlError, match="one of coulomb, overlap"):
        integrals.cross_metric(water, AUX, widths, None, "gravity")
    basis = opml.load_basis("sto-3g", water.numbers)
    with pytest.raises(OpmlError, match="no derivatives"):
        jax.grad(lambda w: integrals.three_center(water, basis, AUX, widths=w).sum())(widths)
