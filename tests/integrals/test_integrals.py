"""What every driver must give: agreement with PySCF, derivatives, batches, transformations.

What only libcint has, or lacks, names it; what only the native driver has is in test_native.
"""

import itertools
import subprocess
import sys

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import df, gto

from opml_jax import integrals
from opml_jax.basis import batch, from_pyscf, layout_of, load_basis
from opml_jax.errors import OpmlError
from opml_jax.structures import Structure
from opml_jax.units import ANGSTROM_PER_BOHR

# Two ways through the same C library differ in the last bits of double precision only. Elements
# of V reach hundreds of Hartree, so their last bits are larger: tolerances on V are relative to
# its largest element.
ROUND_OFF = 1e-12
# Richardson-extrapolated central differences in double precision: truncation h^4 = 1e-12 of a
# fifth derivative against round-off 1e-16 * |f| / h = 1e-13 |f|; core exponents make the former 1e3
FINITE_DIFFERENCE = 1e-7
# Forward and reverse mode, and batched against single, add up the same numbers in another order;
# derivatives of core functions are a hundred times the values.
REORDERING = 1e-10
# A native gradient holds a few more digits: no tensors of single centres are added up.
GRADIENT = 1e-11

BASES = ["sto-3g", "def2-svp", "def2-tzvp", "cc-pvqz"]  # the last one has g shells on C, N, O, F
NAMES = [
    "water",
    "methane",
    "carbon_dioxide",
    "hydrogen_cyanide",
    "fluoromethane",
    "hydrogen_sulfide",
    "formamide",
]
each_driver = pytest.mark.parametrize("driver", integrals.DRIVERS)


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# Compiling for the native driver takes seconds to a minute where libcint takes none. Its default
# tests have one molecule in every basis here, and many in a few (test_native).
TRIANGLE = Structure([1, 1, 1], [[0.0, 0.1, 0.0], [1.6, 0.0, 0.2], [0.7, 1.5, -0.3]], charge=1)


def _light(driver, structure):
    """A molecule to differentiate through transformations: with s functions only for native."""
    return TRIANGLE if driver == "native" else structure


def _mol(structure, name):
    atoms = list(zip(structure.symbols, np.asarray(structure.positions).tolist(), strict=True))
    return gto.M(atom=atoms, unit="Bohr", basis=name, charge=structure.charge)


def _close(ours, theirs, tolerance=ROUND_OFF):
    """Absolute, but relative to the largest element where that exceeds 1."""
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def _compiled(basis, driver):
    @jax.jit
    def everything(structure):
        return {
            "int1e_ovlp": integrals.overlap(structure, basis, driver=driver),
            "int1e_kin": integrals.kinetic(structure, basis, driver=driver),
            "int1e_r": integrals.position(structure, basis, driver=driver),
            "int1e_nuc": integrals.external_potential(structure, basis, driver=driver),
        }

    return everything


def _agreement():
    for driver, name, basis_name in itertools.product(integrals.DRIVERS, NAMES, BASES):
        # libcint has every l up to g; test_native has all elements
        quick = driver == "libcint" or (name, basis_name) == ("water", "sto-3g")
        row = driver, name, basis_name
        yield row if quick else _slow(*row)


@pytest.mark.parametrize(("driver", "name", "basis_name"), list(_agreement()))
def test_agrees_with_pyscf(molecules, driver, name, basis_name):
    s = molecules[name]
    basis, mol = load_basis(basis_name, s.numbers), _mol(s, basis_name)
    for key, ours in _compiled(basis, driver)(s).items():
        theirs = from_pyscf(mol.intor(key), s, basis)
        if key == "int1e_nuc":
            _close(ours, theirs)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize(
    ("driver", "basis_name", "names"),
    [
        ("libcint", "def2-svp", ["water", "hydrogen_cyanide", "hydrogen_sulfide"]),
        _slow("native", "sto-3g", ["water", "hydrogen_cyanide"]),
        _slow("native", "def2-svp", ["water", "hydrogen_cyanide", "hydrogen_sulfide"]),
        _slow("libcint", "cc-pvqz", ["carbon_dioxide", "water"]),
        _slow("native", "cc-pvqz", ["carbon_dioxide", "water"]),
    ],
)
def test_a_mixed_batch_is_its_molecules(molecules, driver, basis_name, names):
    chosen = [molecules[n] for n in names]
    basis = load_basis(basis_name, {z for s in chosen for z in s.numbers})
    padded, everything = batch(chosen, basis, n_atoms=4), _compiled(basis, driver)
    together = everything(padded)
    alone = [everything(s) for s in chosen]
    for key, ours in together.items():
        assert ours.shape[-2:] == (padded.layout.nao, padded.layout.nao)
        for b, s in enumerate(chosen):
            nao = layout_of(s, basis).nao
            _close(ours[b][..., :nao, :nao], alone[b][key])
            assert not np.asarray(ours[b][..., nao:, :]).any()
            assert not np.asarray(ours[b][..., :, nao:]).any()


@each_driver
def test_position_about_an_origin(water, driver):
    basis, origin = load_basis("def2-svp", water.numbers), np.array([0.3, -1.1, 0.7])
    mol = _mol(water, "def2-svp")
    with mol.with_common_origin(origin):
        theirs = from_pyscf(mol.intor("int1e_r"), water, basis)
    ours = integrals.position(water, basis, origin=origin, driver=driver)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("driver", ["libcint", _slow("native")])
def test_second_moments_are_pyscfs(water, molecules, driver):
    """About the coordinate origin, about another, and in a batch."""
    basis, origin = load_basis("sto-3g", [1, 8, 16]), np.array([0.3, -1.1, 0.7])
    nao = layout_of(water, basis).nao
    mol = _mol(water, "sto-3g")
    plain = from_pyscf(mol.intor("int1e_rr").reshape(3, 3, nao, nao), water, basis)
    with mol.with_common_origin(origin):
        moved = from_pyscf(mol.intor("int1e_rr").reshape(3, 3, nao, nao), water, basis)
    _close(integrals.second_moments(water, basis, driver=driver), plain)
    _close(integrals.second_moments(water, basis, origin=origin, driver=driver), moved)
    padded = batch([molecules["hydrogen_sulfide"], water], basis)
    together = integrals.second_moments(padded, basis, origin=origin, driver=driver)
    assert together.shape == (2, 3, 3, padded.layout.nao, padded.layout.nao)
    _close(together[1, ..., :nao, :nao], moved)
    assert not np.asarray(together[1, ..., nao:, :]).any()


# --- the external potential of anything but bare nuclei -----------------------------------------

SURROUNDINGS = (
    np.array([0.4, -1.3, 0.8]),
    np.array([[3.0, 0.5, -2.0], [0.1, -4.0, 1.0], [-2.5, 2.5, 2.5]]),
)
FIELD = np.array([0.02, -0.05, 0.03])
CHARGES = np.array([7.3, 0.6, -1.4])


def _attraction(mol, charges, centres, widths):
    """Minus the potential of Gaussian charges, by three-centre Coulomb integrals, PySCF's order."""
    total = np.zeros((mol.nao, mol.nao))
    for q, centre, width in zip(
        charges, centres, np.broadcast_to(widths, len(charges)), strict=True
    ):
        if width:
            cloud = gto.fakemol_for_charges(centre[None], expnt=0.5 / width**2)
            total -= q * df.incore.aux_e2(mol, cloud, intor="int3c2e")[..., 0]
        else:
            with mol.with_rinv_origin(centre):
                total -= q * mol.intor("int1e_rinv")
    return total


@pytest.mark.parametrize(
    ("charges", "widths", "point_charges", "field"),
    [
        (CHARGES, None, None, None),
        (None, 0.0, None, None),
        (None, 0.9, None, None),
        (CHARGES, np.array([0.5, 0.0, 1.7]), None, None),
        (None, None, SURROUNDINGS, None),
        (None, None, None, FIELD),
        (CHARGES, 0.4, SURROUNDINGS, FIELD),
    ],
    ids=["charges", "zero width", "width", "widths", "point charges", "field", "all"],
)
@each_driver
def test_external_potential_of_charges_and_fields(
    water, driver, charges, widths, point_charges, field
):
    basis, mol = load_basis("def2-svp", water.numbers), _mol(water, "def2-svp")
    q = water.numbers if charges is None else charges
    theirs = _attraction(mol, q, water.positions, 0.0 if widths is None else widths)
    if point_charges is not None:
        theirs += _attraction(mol, *point_charges, 0.0)
    if field is not None:
        theirs += np.einsum("x,xij->ij", field, mol.intor("int1e_r"))
    ours = integrals.external_potential(
        water,
        basis,
        charges=charges,
        widths=widths,
        point_charges=point_charges,
        field=field,
        driver=driver,
    )
    _close(ours, from_pyscf(theirs, water, basis))


@each_driver
def test_the_same_in_a_batch(molecules, driver):
    water, sulfide = molecules["water"], molecules["hydrogen_sulfide"]
    basis = load_basis("sto-3g", [1, 8, 16])
    padded = batch([water, sulfide], basis, n_atoms=4)
    charges = np.array([[7.3, 0.6, -1.4, 0.0], [15.0, 1.5, 0.2, 0.0]])

    @jax.jit
    def both(structure, charges):
        v = integrals.external_potential(
            structure,
            basis,
            charges=charges,
            widths=0.7,
            point_charges=SURROUNDINGS,
            field=FIELD,
            driver=driver,
        )
        return v, integrals.position(structure, basis, origin=[0.3, 0.2, 0.1], driver=driver)

    v, r = both(padded, charges)
    for b, s in enumerate([water, sulfide]):
        nao = layout_of(s, basis).nao
        alone_v, alone_r = both(s, charges[b, :3])
        _close(v[b, :nao, :nao], alone_v)
        _close(r[b, :, :nao, :nao], alone_r)
        assert not np.asarray(v[b, nao:]).any()
        assert not np.asarray(r[b, :, nao:]).any()


@pytest.mark.parametrize(
    ("driver", "basis_name"),
    [("libcint", "def2-svp"), _slow("native", "sto-3g"), _slow("native", "def2-svp")],
)
def test_screened_potential_is_short_ranged(water, driver, basis_name):
    """A neutral atom far away must not change the potential among the orbitals of a molecule."""
    basis = load_basis(basis_name, [1, 2, 8])
    far = water.positions[0] + 20.0 / ANGSTROM_PER_BOHR * np.array([2.0, -1.0, 2.0]) / 3.0
    pair = Structure((*water.numbers, 2), [*water.positions, far])
    nao = layout_of(water, basis).nao

    def change(potential):
        both = potential(pair, basis, driver=driver)[:nao, :nao]
        return np.abs(both - potential(water, basis, driver=driver)).max()

    assert change(integrals.screened_potential) < 1e-10
    assert change(integrals.external_potential) > 1e-2  # 2 electrons' worth of charge at 38 Bohr


@each_driver
def test_screened_potential_adds_gaussian_clouds(water, driver):
    basis, mol = load_basis("sto-3g", water.numbers), _mol(water, "sto-3g")
    for width in (0.8, (0.5 / 0.3) ** 0.5):
        clouds = _attraction(mol, water.numbers, water.positions, width)
        theirs = from_pyscf(mol.intor("int1e_nuc") - clouds, water, basis)
        _close(integrals.screened_potential(water, basis, width=width, driver=driver), theirs)
    ours = integrals.screened_potential(water, basis, driver=driver)
    _close(ours, theirs)  # the default is exp(-0.3 r^2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"driver": "libcnt"}, ["driver", "'libcnt'", "libcint", "Did you mean"]),
        ({"charges": np.ones(2)}, ["charges", "(2,)", "(3,)"]),
        ({"charges": np.ones((3, 1))}, ["charges", "(3, 1)", "(3,)"]),
        ({"widths": np.ones(2)}, ["widths", "(2,)", "(3,)"]),
        ({"widths": -0.5}, ["widths", "-0.5"]),
        ({"point_charges": (np.ones(2), np.ones((3, 3)))}, ["point_charges", "(2,)", "(3, 3)"]),
        ({"point_charges": (np.ones((1, 2)), np.ones((2, 3)))}, ["point_charges", "(1, 2)"]),
        ({"field": np.ones(2)}, ["field", "(2,)", "(3,)"]),
        ({"field": 0.1}, ["field", "()", "(3,)"]),
    ],
    ids=lambda x: str(list(x)) if isinstance(x, dict) else "",
)
@each_driver
def test_refuses_arguments_that_do_not_fit(water, driver, arguments, says):
    basis = load_basis("sto-3g", water.numbers)
    with pytest.raises(OpmlError) as caught:
        integrals.external_potential(water, basis, **{"driver": driver, **arguments})
    for words in says:
        assert words in str(caught.value)


@each_driver
def test_refuses_an_origin_that_is_not_a_point(water, driver):
    basis = load_basis("sto-3g", water.numbers)
    with pytest.raises(OpmlError, match=r"origin.*\(3,\)"):
        integrals.position(water, basis, origin=[0.0, 1.0], driver=driver)


# --- derivatives --------------------------------------------------------------------------------


def _problem(structure, basis_name, rng, driver):
    """``f(x)``: weighted sums of S, T, r and V with everything differentiable moved by ``x``.

    Everything is displaced by x; x = 0 is the start.
    """
    basis = load_basis(basis_name, structure.numbers)
    nao = layout_of(structure, basis).nao
    weights = rng.normal(size=(6, nao, nao))  # not symmetric: derivatives must not rely on that
    start = {
        "positions": np.zeros((structure.n_atoms, 3)),
        "charges": np.zeros(structure.n_atoms),
        "point_charges": np.zeros(3),
        "point_positions": np.zeros((3, 3)),
        "field": np.zeros(3),
        "origin": np.zeros(3),
    }
    zero, unravel = jax.flatten_util.ravel_pytree(start)

    def f(x):
        x = unravel(x)
        moved = structure.replace(positions=structure.positions + x["positions"])
        q, c = SURROUNDINGS
        v = integrals.external_potential(
            moved,
            basis,
            charges=np.array(structure.numbers) + x["charges"],
            point_charges=(q + x["point_charges"], c + x["point_positions"]),
            field=FIELD + x["field"],
            driver=driver,
        )
        r = integrals.position(moved, basis, origin=x["origin"], driver=driver)
        s = integrals.overlap(moved, basis, driver=driver)
        t = integrals.kinetic(moved, basis, driver=driver)
        return jnp.stack([(w * m).sum() for w, m in zip(weights, (s, t, *r, v), strict=True)])

    return f, zero


def test_libcint_refuses_derivatives_it_does_not_have(water):
    """libcint has none in exponents and coefficients; zero would be a wrong answer."""
    basis = load_basis("sto-3g", water.numbers)
    with pytest.raises(OpmlError, match="exponents and coefficients must be constant"):
        jax.grad(lambda b: integrals.overlap(water, b, driver="libcint").sum())(basis)
    with pytest.raises(OpmlError, match="exponents and coefficients must be constant"):
        jax.grad(lambda b: integrals.external_potential(water, b, driver="libcint").sum())(basis)


@each_driver
def test_exponents_may_be_traced(water, driver):
    basis = load_basis("sto-3g", water.numbers)
    scaled = basis.replace(shells=jax.tree.map(lambda a: 1.1 * a, basis.shells))
    traced = jax.jit(lambda b: integrals.overlap(water, b, driver=driver))(scaled)
    plain = integrals.overlap(water, scaled, driver=driver)
    np.testing.assert_allclose(traced, plain, atol=1e-14)
    assert np.abs(traced - integrals.overlap(water, basis, driver=driver)).max() > 1e-3


def _differences(f, x, h=1e-3):
    """Central differences of fourth order, one row per component of x."""
    rows = []
    for step in h * np.eye(len(x)):
        far, near = f(x + 2 * step) - f(x - 2 * step), f(x + step) - f(x - step)
        rows.append((8 * near - far) / (12 * h))
    return np.array(rows)


def _close_by_row(ours, theirs, tolerance):
    """Every row relative to its own largest element: S is not hidden behind V."""
    scale = np.maximum(np.abs(theirs).max(axis=1, keepdims=True), 1.0)
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("driver", "name", "basis_name"),
    [
        ("libcint", "water", "def2-svp"),
        ("libcint", "methane", "sto-3g"),
        _slow("libcint", "carbon_dioxide", "sto-3g"),
        _slow("libcint", "hydrogen_sulfide", "def2-svp"),
        _slow("native", "methane", "sto-3g"),
        _slow("native", "water", "def2-svp"),
        _slow("native", "hydrogen_sulfide", "def2-svp"),
    ],
)
def test_first_derivatives(molecules, rng, driver, name, basis_name):
    f, zero = _problem(molecules[name], basis_name, rng, driver)
    forward = jax.jit(jax.jacfwd(f))(zero)
    reverse = jax.jit(jax.jacrev(f))(zero)
    _close_by_row(forward, reverse, REORDERING)
    _close_by_row(reverse, _differences(jax.jit(f), zero).T, FINITE_DIFFERENCE)


def _weighted(structure, basis_name, rng, driver, **options):
    """``f(positions)``: the sum of V and T under random weights."""
    basis = load_basis(basis_name, structure.numbers)
    weights = rng.normal(size=(layout_of(structure, basis).nao,) * 2)

    def f(positions):
        moved = structure.replace(positions=positions.reshape(-1, 3))
        v = integrals.external_potential(moved, basis, driver=driver, **options)
        return (weights * (v + integrals.kinetic(moved, basis, driver=driver))).sum()

    return f, structure.positions.ravel()


@pytest.mark.parametrize(
    ("driver", "name", "options"),
    [
        ("libcint", "water", {}),
        ("libcint", "methane", {}),
        ("libcint", "water", {"widths": 0.8, "field": FIELD}),
        _slow("native", "triangle", {"widths": 0.8, "field": FIELD}),
        _slow("native", "water", {"widths": 0.8, "field": FIELD}),
        _slow("native", "water", {}),
        _slow("native", "methane", {}),
    ],
    ids=lambda x: ("smeared" if x else "nuclei") if isinstance(x, dict) else None,
)
def test_second_derivatives(molecules, rng, driver, name, options):
    structure = molecules.get(name, TRIANGLE)
    f, x = _weighted(structure, "sto-3g", rng, driver, **options)
    gradient = jax.grad(f)
    forward, reverse = jax.jit(jax.jacfwd(gradient))(x), jax.jit(jax.jacrev(gradient))(x)
    _close(forward, reverse, REORDERING)
    _close(forward, forward.T, REORDERING)
    _close(forward, _differences(jax.jit(gradient), x), FINITE_DIFFERENCE)


@pytest.mark.parametrize("driver", ["libcint", _slow("native")])
def test_second_derivatives_in_everything(water, rng, driver):
    """Also the mixed ones: how the force on a nucleus depends on a charge far away."""
    f, zero = _problem(water, "sto-3g", rng, driver)
    jacobian = jax.jit(jax.jacrev(f))
    forward, reverse = (jax.jit(d(jax.jacrev(f)))(zero) for d in (jax.jacfwd, jax.jacrev))
    differences = _differences(jacobian, zero).transpose(1, 2, 0)
    for a, b, c in zip(forward, reverse, differences, strict=True):
        _close(a, b, REORDERING)
        _close(a, a.T, REORDERING)
        _close(a, c, FINITE_DIFFERENCE)


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "basis_name"), [("libcint", "def2-svp"), ("native", "sto-3g")])
def test_higher_derivatives_of_every_operator(water, rng, driver, basis_name):
    """S, T, r and V along a line on which every centre moves and every charge changes."""
    f, zero = _problem(water, basis_name, rng, driver)
    line = rng.normal(size=len(zero))

    def lower(t):
        return f(line * t)

    for _ in range(4):
        higher, g, h = jax.jit(jax.jacfwd(lower)), jax.jit(lower), 1e-3
        finite = (8 * (g(h) - g(-h)) - (g(2 * h) - g(-2 * h))) / (12 * h)
        np.testing.assert_allclose(higher(0.0), finite, rtol=FINITE_DIFFERENCE)
        lower = jax.jacfwd(lower)


@pytest.mark.parametrize(
    ("driver", "name", "basis_name"),
    [
        ("libcint", "water", "def2-tzvp"),
        ("libcint", "methane", "def2-svp"),
        ("native", "methane", "sto-3g"),
        _slow("native", "methane", "def2-svp"),
        _slow("native", "water", "def2-tzvp"),
        _slow("native", "water", "cc-pvqz"),
    ],
)
def test_gradient_of_nuclear_attraction_is_pyscfs(molecules, rng, driver, name, basis_name):
    s = molecules[name]
    basis, mol = load_basis(basis_name, s.numbers), _mol(s, basis_name)
    weights = rng.normal(size=(mol.nao, mol.nao))
    weights += weights.T
    ours = jax.grad(
        lambda x: (
            from_pyscf(weights, s, basis)
            * integrals.external_potential(s.replace(positions=x), basis, driver=driver)
        ).sum()
    )(s.positions)
    bra = -mol.intor("int1e_ipnuc", comp=3)
    for atom, (_, _, start, stop) in enumerate(mol.aoslice_by_atom()):
        with mol.with_rinv_at_nucleus(atom):
            half = -mol.atom_charge(atom) * mol.intor("int1e_iprinv", comp=3)
        half[:, start:stop] += bra[:, start:stop]
        expected = 2 * np.einsum("xij,ij->x", half, weights)
        _close(ours[atom], expected, GRADIENT if driver == "native" else REORDERING)


@pytest.mark.parametrize("driver", ["libcint", _slow("native")])
def test_gradients_of_a_batch_are_those_of_its_molecules(molecules, driver):
    chosen = [molecules["water"], molecules["hydrogen_cyanide"]]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    padded = batch(chosen, basis, n_atoms=4)

    def f(structure):
        return (integrals.external_potential(structure, basis, driver=driver) ** 2).sum()

    together = jax.grad(lambda x: f(padded.replace(positions=x)))(padded.positions)
    for b, s in enumerate(chosen):
        alone = jax.grad(lambda x, s=s: f(s.replace(positions=x)))(s.positions)
        _close(together[b, : s.n_atoms], alone, REORDERING)
        assert not np.asarray(together[b, s.n_atoms :]).any()


@pytest.mark.parametrize(("driver", "basis_name"), [("libcint", "def2-svp"), ("native", "sto-3g")])
def test_maps_over_geometries(water, rng, driver, basis_name):
    basis = load_basis(basis_name, water.numbers)
    stack = water.positions + 0.1 * rng.normal(size=(3, 3, 3))

    def v(x):
        return integrals.external_potential(water.replace(positions=x), basis, driver=driver)

    for mapped, x in zip(jax.vmap(v)(stack), stack, strict=True):
        _close(mapped, v(x))


@each_driver
def test_compiles_once_for_all_geometries(water, rng, driver):
    basis = load_basis("sto-3g", water.numbers)

    chex.clear_trace_counter()  # it counts by line of source, and this line has two drivers

    @jax.jit
    @chex.assert_max_traces(1)
    def v(structure):
        return integrals.external_potential(structure, basis, driver=driver)

    first = v(water)
    moved = water.replace(positions=water.positions + 0.1 * rng.normal(size=(3, 3)))
    _close(v(moved), integrals.external_potential(moved, basis, driver=driver))
    assert np.abs(v(moved) - first).max() > 1e-3


def test_widths_have_no_derivative_in_libcint_and_say_so(water):
    basis = load_basis("sto-3g", water.numbers)

    def f(width, x):
        moved = water.replace(positions=x)
        v = integrals.external_potential(moved, basis, widths=width, driver="libcint")
        return v.sum()

    for derivative in (jax.grad(f), jax.jacfwd(f), jax.jit(jax.grad(f))):
        with pytest.raises(OpmlError, match=r"widths must be constant.*no derivative"):
            derivative(0.5, water.positions)
    jax.grad(f, argnums=1)(0.5, water.positions)  # positions do


def _mapped(f):
    return lambda x: jax.lax.map(f, x[None])[0]


def _scanned(f):
    return lambda x: jax.lax.scan(lambda c, _: (c, f(c)), x, None, length=1)[1][0]


@pytest.mark.parametrize("options", [{}, {"widths": 0.8}], ids=["nuclei", "smeared"])
@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, _mapped, _scanned], ids=["jit", "checkpoint", "map", "scan"]
)
@each_driver
def test_can_be_differentiated_through_transformations(water, rng, driver, wrap, options):
    """A jitted energy function, or one step of a trajectory, is differentiated from outside."""
    f, x = _weighted(_light(driver, water), "sto-3g", rng, driver, **options)
    _close(jax.grad(wrap(f))(x), jax.grad(f)(x), REORDERING)


@each_driver
def test_can_be_differentiated_twice_through_jit(water, rng, driver):
    f, x = _weighted(_light(driver, water), "sto-3g", rng, driver)
    hessian = jax.jacfwd(jax.jit(jax.grad(jax.jit(f))))(x)
    _close(hessian, jax.jit(jax.jacfwd(jax.grad(f)))(x), REORDERING)


@each_driver
def test_a_batch_can_be_differentiated_through_jit(water, driver):
    basis = load_basis("sto-3g", water.numbers)
    padded = batch([water], basis)

    def f(x):
        s = integrals.overlap(padded.replace(positions=x), basis, driver=driver)
        return (s**2).sum()

    _close(jax.grad(jax.jit(f))(padded.positions), jax.grad(f)(padded.positions), REORDERING)


# --- what libcint needs, what it leaves alone, and how far it goes -------------------------------


def _run(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_libcint_needs_x64_and_does_not_turn_it_on():
    _run("""
import sys
import jax
import opml_jax as opml
from opml_jax.errors import PrecisionError
s = opml.Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
basis = opml.load_basis("sto-3g", s.numbers)
for x in (s, opml.batch([s], basis)):
    try:
        opml.integrals.overlap(x, basis, driver="libcint")
    except PrecisionError as err:
        assert 'jax.config.update("jax_enable_x64", True)' in str(err)
    else:
        raise AssertionError("no error")
assert not jax.config.jax_enable_x64
assert "pyscfad" not in sys.modules
""")


def test_libcint_leaves_pyscf_as_it_was():
    """A module of pyscfad replaces PySCF's basis loaders by ones that return empty shells."""
    _run("""
import jax
jax.config.update("jax_enable_x64", True)
from pyscf import gto
from pyscf.gto import basis as library
from pyscf.gto.basis import parse_nwchem
from pyscf.lib.exceptions import BasisNotFoundError
before = library._load_external, parse_nwchem.load
import opml_jax as opml
s = opml.Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
basis = opml.load_basis("sto-3g", s.numbers)
opml.integrals.overlap(s, basis, driver="libcint")
opml.integrals.overlap(opml.batch([s], basis), basis, driver="libcint")
assert (library._load_external, parse_nwchem.load) == before
for missing in (lambda: library.load("cc-pvqz", "I"), lambda: gto.M(atom="I", basis="cc-pvqz")):
    try:
        missing()
    except (BasisNotFoundError, KeyError):
        continue
    raise AssertionError("a missing basis did not raise")
""")


def test_second_derivatives_of_libcint_are_pyscfads(water, rng):
    """pyscfad's own differentiable molecule, inside one jit, where it can be differentiated.

    The native driver's are in test_native.
    """
    basis = load_basis("def2-svp", water.numbers)
    weights = rng.normal(size=(layout_of(water, basis).nao,) * 2)
    weights = weights + weights.T

    def ours(x):
        v = integrals.external_potential(water.replace(positions=x), basis, driver="libcint")
        return (from_pyscf(weights, water, basis) * v).sum()

    def theirs(x):
        from pyscfad.gto.mole_lite import MoleLite

        mol = MoleLite(numbers=water.numbers, coords=x, basis="def2-svp", verbose=0)
        return (weights * mol.intor("int1e_nuc", hermi=1)).sum()

    x = jnp.asarray(water.positions)
    expected = jax.jit(jax.jacfwd(jax.grad(theirs)))(x)
    scale = np.abs(expected).max()
    for hessian in (jax.jacfwd(jax.grad(ours)), jax.jacrev(jax.grad(ours))):
        np.testing.assert_allclose(jax.jit(hessian)(x) / scale, expected / scale, atol=REORDERING)


@pytest.mark.slow
def test_derivatives_of_libcint_to_fourth_order_and_no_further(water, rng):
    """Along one line, forward and reverse alternating, each order against the one before."""
    basis = load_basis("sto-3g", water.numbers)
    weights, line = rng.normal(size=(7, 7)), rng.normal(size=(3, 3))

    def f(t):
        moved = water.replace(positions=water.positions + t * line)
        v = integrals.external_potential(moved, basis, widths=0.5, driver="libcint")
        r = integrals.position(moved, basis, driver="libcint")
        return (weights * (v + r.sum(axis=0))).sum()

    def forward(g):
        return lambda t: jax.jvp(g, (t,), (1.0,))[1]

    orders = [f]
    for k in range(4):
        orders.append(jax.grad(orders[-1]) if k % 2 else forward(orders[-1]))
    for lower, higher in itertools.pairwise(orders):
        g, h = jax.jit(lower), 1e-3
        finite = (8 * (g(h) - g(-h)) - (g(2 * h) - g(-2 * h))) / (12 * h)
        assert float(jax.jit(higher)(0.0)) == pytest.approx(float(finite), rel=1e-8)
    with pytest.raises(OpmlError, match="derivatives to order 4; got order 5"):
        forward(orders[-1])(0.0)
