"""Fits of PySCF's densities against PySCF's own numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax import density, integrals
from opml_jax.basis import Basis, Shell, layout_of
from opml_jax.errors import BasisError, ConventionError, OpmlError
from opml_jax.numerics import replace

AUX = "def2-universal-jkfit"


@dataclasses.dataclass
class Case:
    structure: opml.Structure
    basis: Basis
    aux: Basis
    mf: object
    dm: np.ndarray  # the library's order


@pytest.fixture(scope="module")
def case(water) -> Case:
    from pyscf import dft, gto

    atoms = list(zip(water.symbols, np.asarray(water.positions).tolist(), strict=True))
    mol = gto.M(atom=atoms, unit="Bohr", basis="def2-svp", verbose=0)
    mf = dft.RKS(mol, xc="pbe").run()
    basis = opml.load_basis("def2-svp", water.numbers)
    aux = opml.load_basis(AUX, water.numbers)
    return Case(water, basis, aux, mf, opml.from_pyscf(mf.make_rdm1(), water, basis))


def _pyscf_fit(case: Case, kind: str):
    """Metric and coefficients in PySCF's order, electrons constrained by the projection."""
    from pyscf import df

    mol = case.mf.mol
    aux = df.addons.make_auxmol(mol, AUX)
    two, three = {"coulomb": ("int2c2e", "int3c2e"), "overlap": ("int1e_ovlp", "int3c1e")}[kind]
    metric = aux.intor(two)
    w = np.einsum("ijp,ij->p", df.incore.aux_e2(mol, aux, three), case.mf.make_rdm1())
    c = np.linalg.solve(metric, w)
    # an s function of exponent 0 and coefficient 2 sqrt(pi) is 1 everywhere
    q = np.asarray(
        density.to_pyscf(density.charges(case.structure, case.aux), case.structure, case.aux)
    )
    u = np.linalg.solve(metric, q)
    return metric, c - u * (q @ c - mol.nelectron) / (q @ u)


@pytest.mark.parametrize("kind", ["coulomb", "overlap"])
def test_coefficients_are_pyscfs(case, kind):
    metric, expected = _pyscf_fit(case, kind)
    ours = density.fit(case.dm, case.structure, case.basis, case.aux, kind)
    d = np.asarray(density.to_pyscf(ours, case.structure, case.aux)) - expected
    # 1e-8 of the norm of the density in this metric; condition numbers are 1e8
    assert np.sqrt(d @ metric @ d) < 1e-8 * np.sqrt(expected @ metric @ expected)
    electrons = density.electron_number(ours, case.structure, case.aux)
    assert abs(electrons - case.structure.n_electrons) < 1e-10


def test_the_external_energy_is_kept_where_it_is_asked_for(case):
    exact = np.sum(case.dm * np.asarray(integrals.external_potential(case.structure, case.basis)))
    external = density.external_energies(case.structure, case.aux)
    errors = {
        m: abs(external @ density.fit(case.dm, case.structure, case.basis, case.aux, m) - exact)
        for m in density.METRICS
    }
    # PySCF's int1e_nuc for the exact one; a Coulomb fit misses 0.3 Hartree of 199
    assert errors["hartree+external"] < 1e-3 < 0.1 < errors["coulomb"]


def test_moments_are_integrals_on_a_grid(case, rng):
    """Closed forms of charge, dipole and quadrupole against numerical integration."""
    s, aux = case.structure, case.aux
    c = np.asarray(density.fit(case.dm, s, case.basis, aux))
    c = c * (1 + 0.05 * rng.normal(size=c.shape))  # nothing is left that symmetry hides
    points, weights = density.grid(s, 6)
    rho = weights * density.on_points(c, s, aux, points)
    centre = np.asarray(opml.structures.centre_of_nuclear_charge(s))
    r, at = points - centre, np.asarray(s.positions) - centre
    np.testing.assert_allclose(density.electron_number(c, s, aux), rho.sum(), atol=1e-6)
    numbers = np.array(s.numbers)
    dipole = numbers @ at - rho @ r
    np.testing.assert_allclose(density.dipole(c, s, aux), dipole, atol=1e-5)
    second = np.einsum("a,ax,ay->xy", numbers, at, at) - np.einsum("g,gx,gy->xy", rho, r, r)
    expected = 1.5 * second - 0.5 * np.trace(second) * np.eye(3)
    np.testing.assert_allclose(density.quadrupole(c, s, aux), expected, atol=1e-4)


def test_charges_are_overlaps_with_one(water):
    """To rounding: the overlap with an s function of exponent zero (pyscf)."""
    from pyscf import gto

    aux = opml.load_basis(AUX, water.numbers)
    atoms = list(zip(water.symbols, np.asarray(water.positions).tolist(), strict=True))
    mol = gto.M(atom=atoms, unit="Bohr", basis=AUX, verbose=0)
    one = gto.M(atom="ghost-H 0 0 0", basis={"ghost-H": [[0, [1.0, 1.0]]]}, verbose=0)
    one._env[one._bas[0, 5]], one._env[one._bas[0, 6]] = 0.0, 2 * np.sqrt(np.pi)
    expected = gto.intor_cross("int1e_ovlp", one, mol)[0]
    ours = density.to_pyscf(density.charges(water, aux), water, aux)
    np.testing.assert_allclose(ours, expected, atol=1e-12 * np.abs(expected).max())
    both = one + mol
    moments = both.intor("int1e_r")[:, 0, 1:]
    # the dipole of one function alone has no nuclei: differences from the molecule's own
    unit = np.eye(len(expected))
    ours = -np.asarray(density.dipole(unit, water, aux))
    ours += np.outer(density.charges(water, aux), opml.structures.centre_of_nuclear_charge(water))
    ours = np.asarray(density.to_pyscf(ours.T, water, aux))
    np.testing.assert_allclose(ours, moments, atol=1e-12 * np.abs(moments).max())


@pytest.mark.slow
def test_fits_turn_with_the_molecule(case, rng, random_rotation):
    """Libcint's integrals of a turned molecule, and coefficients turned by e3nn's matrices."""
    import e3nn_jax as e3nn

    from opml_jax.conventions import rotation_to_e3nn

    rotation = random_rotation(rng, improper=True)
    turned = case.structure.replace(positions=case.structure.positions @ rotation.T)

    def irreps(basis):
        layout = layout_of(case.structure, basis)
        return e3nn.Irreps([ir for a in range(3) for ir in layout.irreps(a)])

    matrix = {}
    for name in ("basis", "aux"):
        own = irreps(getattr(case, name))
        eye = e3nn.IrrepsArray(own, jnp.eye(own.dim))
        matrix[name] = np.asarray(
            eye.transform_by_matrix(jnp.asarray(rotation_to_e3nn(rotation))).array
        )
    dm = matrix["basis"].T @ case.dm @ matrix["basis"]
    expected = density.fit(case.dm, case.structure, case.basis, case.aux) @ matrix["aux"]
    found = density.fit(dm, turned, case.basis, case.aux)
    # condition number 1e8 times rounding 1e-16, in coefficients up to 10
    np.testing.assert_allclose(found, expected, atol=1e-6)
    d, metric = found - expected, integrals.coulomb_metric(turned, case.aux)
    assert np.sqrt(d @ metric @ d) < 1e-10 * np.sqrt(expected @ metric @ expected)


def test_fitting_is_linear_and_differentiable(case):
    own = density.fitting(case.structure, case.basis, case.aux)
    dm = jnp.asarray(case.dm)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=dm.shape))
    direction = direction + direction.T
    _, slope = jax.jvp(own, (dm,), (direction,))
    np.testing.assert_allclose(slope, own(direction), rtol=1e-8, atol=1e-6)
    both = jax.vmap(own)(jnp.stack([dm, 2 * dm]))
    np.testing.assert_allclose(both[1], 2 * both[0], rtol=1e-8, atol=1e-9)


def test_free_atoms(case):
    c = density.superposed_atoms(case.structure, case.basis, case.aux)
    assert abs(density.electron_number(c, case.structure, case.aux) - 10) < 1e-9
    fitted = density.fit(case.dm, case.structure, case.basis, case.aux)
    # superposed atoms miss a tenth of a molecule's density (11 percent of water's)
    error = density.density_error_percent(c - fitted, case.structure, case.aux, level=1)
    assert 5 < error < 20
    spherical = layout_of(case.structure, case.aux).l == 0
    assert not c[~spherical].any()
    again = density.superposed_atoms(case.structure, case.basis, case.aux)
    np.testing.assert_array_equal(c, again)


def test_the_error_of_a_density_is_found_on_a_grid(case):
    """A charge too many on one function: the integral of its absolute value is known."""
    s, aux = case.structure, case.aux
    q = np.asarray(density.charges(s, aux))
    c = np.zeros(len(q))
    c[np.argmax(np.abs(q))] = 0.1 / np.abs(q).max()
    assert abs(density.density_error_percent(c, s, aux, level=5) - 1.0) < 1e-5  # 0.1 of 10


def test_densities_and_potentials_of_matrices_at_points(case, rng):
    """PySCF's own: orbitals at points, and int1e_rinv; the fit's potential is coarser."""
    mol, dm = case.mf.mol, case.mf.make_rdm1()
    points = rng.normal(size=(7, 3)) * 2 + 1.0
    orbitals = mol.eval_gto("GTOval_sph", points)
    exact = np.einsum("gi,ij,gj->g", orbitals, dm, orbitals)
    found = density.matrix_on_points(case.dm, case.structure, case.basis, points)
    np.testing.assert_allclose(found, exact, atol=1e-12)

    expected = []
    for point in points:
        with mol.with_rinv_at_nucleus(0), mol.with_rinv_origin(point):
            electrons = np.sum(dm * mol.intor("int1e_rinv"))
        distance = np.linalg.norm(mol.atom_coords() - point, axis=1)
        expected.append((mol.atom_charges() / distance).sum() - electrons)
    c = density.fit(case.dm, case.structure, case.basis, case.aux)
    found = density.potential_on_points(c, case.structure, case.aux, points)
    assert np.abs(expected).max() > 0.02
    np.testing.assert_allclose(found, expected, atol=3e-3)  # of the fit: 1e-3 in the valence


def test_cube_files_are_pyscfs(case, tmp_path):
    from pyscf.tools import cubegen

    s, aux = case.structure, case.aux
    c = np.asarray(density.fit(case.dm, s, case.basis, aux))
    density.write_cube(tmp_path / "rho.cube", c, s, aux, spacing=0.8, margin=2.0)
    cube = cubegen.Cube(case.mf.mol, resolution=0.8, margin=2.0)
    orbitals = case.mf.mol.eval_gto("GTOval_sph", cube.get_coords())
    found = cube.read(str(tmp_path / "rho.cube"))
    exact = np.einsum("gi,ij,gj->g", orbitals, case.mf.make_rdm1(), orbitals).reshape(found.shape)
    away = exact < 1  # a fit is coarse at nuclei
    assert np.abs(found - exact)[away].max() < 0.02
    assert [p.name for p in tmp_path.iterdir()] == ["rho.cube"]


def test_refusals(case, tmp_path):
    s, basis, aux = case.structure, case.basis, case.aux
    with pytest.raises(OpmlError, match="one of coulomb, overlap, hartree"):
        density.fit(case.dm, s, basis, aux, "euclidean")
    with pytest.raises(OpmlError, match=r"dm must be .*got shape \(3, 3\)"):
        density.fit(np.eye(3), s, basis, aux)
    with pytest.raises(OpmlError, match=r"10\.0120 electrons.*PySCF's order"):
        density.fit(case.dm * 1.0012, s, basis, aux)
    poor = Basis.from_shells(
        "poor", {z: [Shell(0, np.array([1.0]), np.ones(1))] for z in aux.elements}
    )
    with pytest.raises(BasisError, match="angular momenta up to 0 on H"):
        density.fit(case.dm, s, basis, poor)
    twice = Basis.from_shells(
        "twice", {z: [*aux.element_shells(z), *aux.element_shells(z)] for z in aux.elements}
    )
    with pytest.raises(OpmlError, match=r"positive definite.*repeat themselves"):
        density.fit(case.dm, s, basis, twice)
    with pytest.raises(OpmlError, match="level"):
        density.grid(s, 11)
    with pytest.raises(OpmlError, match="spacing"):
        density.write_cube(tmp_path / "x.cube", np.zeros(1), s, aux, spacing=0.0)


def test_the_order_of_foreign_coefficients_is_named(case):
    s, aux = case.structure, case.aux
    c = np.asarray(density.fit(case.dm, s, case.basis, aux))
    density.check_coefficients(c, c, s, aux)
    with pytest.raises(ConventionError, match=r"p components stored as \(x, y, z\)"):
        density.check_coefficients(np.asarray(density.to_pyscf(c, s, aux)), c, s, aux)
    with pytest.raises(ConventionError, match="every known order"):
        density.check_coefficients(1.1 * c, c, s, aux)
    with pytest.raises(ConventionError, match="instead of"):
        density.check_coefficients(c[:-1], c, s, aux)
    with pytest.raises(ConventionError, match=r"\(\.\.\., 111\)|for Structure"):
        density.from_pyscf(c[:-1], s, aux)


def test_floats_of_single_precision_are_refused(case):
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(opml.errors.PrecisionError, match="Density fitting needs float64"):
            density.fitting(replace(case.structure), case.basis, case.aux)
    finally:
        jax.config.update("jax_enable_x64", True)
