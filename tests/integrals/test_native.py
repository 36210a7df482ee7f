"""The native driver: accuracy, every derivative, batches, screening, memory and precision."""

import itertools
import subprocess
import sys

import chex
import exact
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import gto

from opml_jax import integrals
from opml_jax.basis import batch, from_pyscf, layout_of, load_basis, to_pyscf
from opml_jax.basis.buckets import smallest_bucket
from opml_jax.basis.shells import normalised_coefficients
from opml_jax.errors import OpmlError
from opml_jax.integrals import native, screening
from opml_jax.integrals.neutral_atoms import CLOUDS
from opml_jax.structures import Structure
from opml_jax.units import ANGSTROM_PER_BOHR

# Hartree, absolute. V of chlorine reaches 289 Hartree, where one unit in the last place of double
# precision is 6e-14: this is sixteen of them, over a sum of thousands of primitive pairs.
POTENTIAL = 1e-12
# S, T and r relative to their largest element: contractions of up to twenty primitives whose terms
# cancel; 450 units in the last place.
ROUND_OFF = 1e-13
# A gradient is a sum over nao^2 weights of numbers a hundred times the elements of V.
GRADIENT = 1e-11
# Second and third derivatives of core functions: each order multiplies terms that cancel by the
# root of an exponent of 1e3.
HIGHER = 1e-10
# Fourth-order central differences with h = 1e-3: truncation h^4 = 1e-12 of a fifth derivative,
# which core exponents make 1e3 to 1e5 times the first; round-off 1e-13 of the function.
FINITE_DIFFERENCE = 1e-7

OPERATORS = {
    "int1e_ovlp": integrals.overlap,
    "int1e_kin": integrals.kinetic,
    "int1e_r": integrals.position,
    "int1e_rr": integrals.second_moments,
    "int1e_nuc": integrals.external_potential,
}


def _mol(structure, name):
    atoms = list(zip(structure.symbols, np.asarray(structure.positions).tolist(), strict=True))
    return gto.M(
        atom=atoms, unit="Bohr", basis=name, charge=structure.charge, spin=structure.spin, verbose=0
    )


def _corrected(mol, key, theirs, ours):
    """PySCF's moments with those shell pairs that ours differ from computed without its rounding.

    For sodium's d and f functions in cc-pVQZ libcint is off by 1.2e-13 of the largest element.
    """
    first = mol.ao_loc_nr()
    shell = np.repeat(np.arange(mol.nbas), np.diff(first))
    apart = (np.abs(theirs - ours) > 0.3 * ROUND_OFF * np.abs(theirs).max()).any(axis=0)
    theirs = theirs.copy()
    for i, j in {(shell[a], shell[b]) for a, b in np.argwhere(apart)}:
        rows, columns = slice(first[i], first[i + 1]), slice(first[j], first[j + 1])
        theirs[:, rows, columns] = exact.moments(mol, key, i, j)
    return theirs


def _relative(ours, theirs):
    """Largest difference over the largest element."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _symmetric(rng, n):
    w = rng.normal(size=(n, n))
    return (w + w.T) / 2


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "basis_name",
    [
        "sto-3g",
        pytest.param("def2-svp", marks=pytest.mark.slow),
        pytest.param("def2-tzvp", marks=pytest.mark.slow),
        pytest.param("cc-pvqz", marks=pytest.mark.slow),
    ],
)
def test_elements_from_hydrogen_to_chlorine_agree_with_pyscf(clusters, basis_name):
    structures = list(clusters.values())
    elements = {z for s in structures for z in s.numbers}
    assert elements == set(range(1, 18)) - {10}
    basis = load_basis(basis_name, elements)
    padded = batch(structures, basis)
    everything = jax.jit(lambda s: {k: f(s, basis) for k, f in OPERATORS.items()})
    for key, ours in everything(padded).items():
        for b, s in enumerate(structures):
            nao = layout_of(s, basis).nao
            own = np.asarray(ours[b])[..., :nao, :nao]
            mol = _mol(s, basis_name)
            theirs = mol.intor(key)
            if key in exact.MOMENTS:
                flat = to_pyscf(own, s, basis).reshape(theirs.shape)
                theirs = _corrected(mol, key, theirs, flat)
            theirs = from_pyscf(theirs.reshape(*own.shape[:-2], nao, nao), s, basis)
            if key == "int1e_nuc":
                np.testing.assert_allclose(own, theirs, rtol=0, atol=POTENTIAL)
            else:
                assert _relative(own, theirs) < ROUND_OFF, (key, s)
            np.testing.assert_array_equal(own, np.swapaxes(own, -1, -2))  # exactly symmetric


# --- derivatives in positions --------------------------------------------------------------------


def _mole_lite(structure, basis_name, weights):
    """``f(positions)``: <W, V> of pyscfad's differentiable molecule, in PySCF's AO order."""
    from pyscfad.gto.mole_lite import MoleLite

    def f(x):
        mol = MoleLite(numbers=structure.numbers, coords=x, basis=basis_name, verbose=0)
        return (weights * mol.intor("int1e_nuc", hermi=1)).sum()

    return f


def _native(structure, basis, weights):
    def f(x):
        v = integrals.external_potential(structure.replace(positions=x), basis, driver="native")
        return (weights * v).sum()

    return f


@pytest.mark.parametrize(
    ("basis_name", "whole"),
    [
        pytest.param("sto-3g", False, marks=pytest.mark.slow),
        pytest.param("def2-svp", True, marks=pytest.mark.slow),
    ],
)
def test_three_orders_of_derivatives_are_pyscfads(water, rng, basis_name, whole):
    """The Hessian as a whole, or along the line on which the third order is taken."""
    basis = load_basis(basis_name, water.numbers)
    weights = _symmetric(rng, layout_of(water, basis).nao)
    ours = _native(water, basis, from_pyscf(weights, water, basis))
    theirs = _mole_lite(water, basis_name, weights)
    x, line = jnp.asarray(water.positions), jnp.asarray(rng.normal(size=(3, 3)))

    def orders(f):
        gradient = jax.grad(f)

        def along(x):  # third order along a line, to keep pyscfad's tensors small
            return jax.jvp(lambda y: jax.jvp(gradient, (y,), (line,))[1], (x,), (line,))[1]

        def once(x):
            return jax.jvp(gradient, (x,), (line,))[1]

        second = jax.jacfwd(gradient) if whole else once
        return jax.jit(lambda x: (gradient(x), second(x), along(x)))(x)

    mine, reference = orders(ours), orders(theirs)
    for a, b, tolerance in zip(mine, reference, (GRADIENT, HIGHER, HIGHER), strict=True):
        assert _relative(a, np.asarray(b)) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", ["H3+", "water"])
def test_forward_and_reverse_nest_all_four_ways(molecules, rng, name):
    # s functions compile fast; the test above and those of test_integrals have p and d
    triangle = [[0.0, 0.1, 0.0], [1.6, 0.0, 0.2], [0.7, 1.5, -0.3]]
    s = molecules[name] if name in molecules else Structure([1, 1, 1], triangle, charge=1)
    basis = load_basis("sto-3g", s.numbers)
    nao = layout_of(s, basis).nao
    f = _native(s, basis, rng.normal(size=(nao, nao)))  # not symmetric
    x = jnp.asarray(s.positions)
    hessians = [
        jax.jit(outer(inner(f)))(x)
        for outer, inner in itertools.product((jax.jacfwd, jax.jacrev), repeat=2)
    ]
    assert np.abs(hessians[0]).max() > 0.1
    for other in hessians[1:]:
        assert _relative(other, np.asarray(hessians[0])) < HIGHER


# --- derivatives in everything else --------------------------------------------------------------

FIELD = np.array([0.02, -0.05, 0.03])
POINTS = np.array([0.4, -1.3]), np.array([[3.0, 0.5, -2.0], [0.1, -4.0, 1.0]])
WIDTHS = np.array([0.05, 0.7, 1.3])


def _everything(structure, basis, rng):
    """``f(x)``: weighted S, T, r and V with each thing they depend on moved by x."""
    nao = layout_of(structure, basis).nao
    weights = rng.normal(size=(4, nao, nao))
    start = {
        "charges": np.zeros(structure.n_atoms),
        "field": np.zeros(3),
        "origin": np.zeros(3),
        "point_charges": np.zeros(2),
        "point_positions": np.zeros((2, 3)),
        "positions": np.zeros((structure.n_atoms, 3)),
        "shells": jax.tree.map(lambda a: np.zeros(a.shape), basis.shells),
        "widths": np.zeros(structure.n_atoms),
    }
    zero, unravel = jax.flatten_util.ravel_pytree(start)

    def f(x):
        x = unravel(x)
        moved = structure.replace(positions=structure.positions + x["positions"])
        # Relative changes: exponents range over three orders of magnitude.
        own = basis.replace(
            shells=jax.tree.map(lambda a, d: a * (1 + d), basis.shells, x["shells"])
        )
        v = integrals.external_potential(
            moved,
            own,
            charges=np.array(structure.numbers) + x["charges"],
            widths=WIDTHS + x["widths"],
            point_charges=(POINTS[0] + x["point_charges"], POINTS[1] + x["point_positions"]),
            field=FIELD + x["field"],
        )
        r = integrals.position(moved, own, origin=x["origin"])
        s, t = integrals.overlap(moved, own), integrals.kinetic(moved, own)
        matrices = (s, t, r.sum(axis=0), v)
        return jnp.stack([(w * m).sum() for w, m in zip(weights, matrices, strict=True)])

    return f, np.asarray(zero), unravel


@pytest.mark.slow
def test_forward_is_reverse_in_everything(water, rng):
    basis = load_basis("sto-3g", water.numbers)
    f, zero, _ = _everything(water, basis, rng)
    forward, reverse = (np.asarray(jax.jit(jac(f))(zero)) for jac in (jax.jacfwd, jax.jacrev))
    assert _relative(forward, reverse) < GRADIENT


@pytest.mark.slow
def test_derivatives_in_everything_agree_with_differences(water, rng, differences):
    """Alchemical, in widths down to 0.05 Bohr, exponents, coefficients, fields, point charges."""
    basis = load_basis("sto-3g", water.numbers)
    f, zero, unravel = _everything(water, basis, rng)
    g = jax.jit(f)
    reverse = np.asarray(jax.jit(jax.jacrev(f))(zero))
    steps = np.eye(len(zero))
    finite = np.stack([differences(lambda t, e=e: np.asarray(g(t * e))) for e in steps], axis=1)
    for name, own, expected in zip("STrV", reverse, finite, strict=True):
        ours, theirs = unravel(jnp.asarray(own)), unravel(jnp.asarray(expected))
        for what in theirs:  # each on its own scale, so that none hides behind the exponents
            a, b = (np.asarray(jax.flatten_util.ravel_pytree(x[what])[0]) for x in (ours, theirs))
            scale = max(np.abs(b).max(), 1.0)
            np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=FINITE_DIFFERENCE)
            if name == "V" and what != "origin":  # and there is something to compare
                assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(theirs[what])), what


@pytest.mark.slow
def test_second_derivatives_in_everything_agree_with_differences(water, rng, differences):
    basis = load_basis("sto-3g", water.numbers)
    f, zero, _ = _everything(water, basis, rng)
    line = rng.normal(size=len(zero)) / 10  # exponents move by a tenth of themselves

    def pulled(x):  # reverse
        return jax.vjp(f, x)[1](jnp.ones(4))[0]

    def forward(x):
        return jax.jvp(pulled, (x,), (line,))[1]

    def backward(x):
        return jax.grad(lambda y: (pulled(y) * line).sum())(x)

    g = jax.jit(pulled)
    finite = differences(lambda t: np.asarray(g(t * line)))
    a, b = np.asarray(jax.jit(forward)(zero)), np.asarray(jax.jit(backward)(zero))
    assert _relative(a, b) < HIGHER
    assert _relative(a, finite) < FINITE_DIFFERENCE


@pytest.mark.parametrize("width", [0.0, 1e-6, 0.05])
def test_narrow_clouds_have_a_derivative_in_their_width(water, width):
    basis = load_basis("sto-3g", water.numbers)

    def f(sigma):
        return integrals.external_potential(water, basis, widths=sigma)[0, 0]

    slope = jax.jit(jax.jacrev(f))(width)
    # A cloud that spreads attracts a core electron less, by the density at the nucleus.
    assert np.isfinite(slope)
    assert slope > 1.0 if width == 0.05 else abs(slope) < 1e-2


# --- what is compiled ----------------------------------------------------------------------------


def _sums(structure, basis):
    """``{name: f(positions)}``: the sum of every function of the native driver."""
    q, c = POINTS

    def potential(s, b):
        return integrals.external_potential(s, b, widths=0.5, point_charges=(q, c), field=FIELD)

    functions = {
        **OPERATORS,
        "everything": potential,
        "screened": integrals.screened_potential,
        "neutral": integrals.neutral_atom_potential,
    }

    def total(function):
        return lambda x: (function(structure.replace(positions=x), basis) ** 2).sum()

    return {k: total(f) for k, f in functions.items()}


@pytest.mark.parametrize(
    "name", [*OPERATORS, "everything", "screened", "neutral"], ids=lambda x: x.split("_")[-1]
)
def test_nothing_calls_the_host(water, every_equation, name):
    basis = load_basis("sto-3g", water.numbers)
    f, x = _sums(water, basis)[name], jnp.asarray(water.positions)
    for g in (f, jax.grad(f), jax.jacfwd(jax.grad(f))):
        names = {eqn.primitive.name for eqn in every_equation(g, x)}
        assert len(names) > 10
        assert not {n for n in names if "callback" in n}


def test_the_walk_would_find_a_call_to_the_host(water, every_equation):
    basis = load_basis("sto-3g", water.numbers)

    def f(x):
        return integrals.overlap(water.replace(positions=x), basis, driver="libcint").sum()

    for g in (f, jax.grad(f)):
        equations = every_equation(jax.jit(g), jnp.asarray(water.positions))
        assert "pure_callback" in {eqn.primitive.name for eqn in equations}


ETHANOL = Structure(
    [6, 6, 8, 1, 1, 1, 1, 1, 1],
    np.array(
        [
            [1.168, -0.403, 0.021],
            [-0.000, 0.559, -0.013],
            [-1.190, -0.215, 0.034],
            [2.115, 0.143, -0.047],
            [1.139, -1.021, 0.924],
            [1.101, -1.080, -0.841],
            [0.051, 1.236, 0.853],
            [0.032, 1.167, -0.928],
            [-1.938, 0.395, 0.002],
        ]
    )
    / ANGSTROM_PER_BOHR,
)


def test_no_array_holds_a_matrix_for_every_nucleus_and_direction(rng, every_equation):
    basis = load_basis("sto-3g", ETHANOL.numbers)
    nao = layout_of(ETHANOL, basis).nao
    weights, x = rng.normal(size=(nao, nao)), jnp.asarray(ETHANOL.positions)

    def f(x, driver="native"):
        v = integrals.external_potential(ETHANOL.replace(positions=x), basis, driver=driver)
        return (weights * v).sum()

    def largest(g):
        return max(
            np.prod(v.aval.shape, dtype=int) for e in every_equation(g, x) for v in e.outvars
        )

    limit = ETHANOL.n_atoms * 3 * nao * nao
    assert largest(f) < limit
    assert largest(jax.grad(f)) < limit
    assert largest(jax.grad(lambda x: f(x, "libcint"))) >= limit  # the walk would find it


@pytest.mark.slow
def test_chunks_of_pairs_add_up(molecules, monkeypatch, rng, every_equation):
    s = molecules["formamide"]
    basis = load_basis("sto-3g", s.numbers)
    weights = rng.normal(size=(layout_of(s, basis).nao,) * 2)

    def f(x):
        v = integrals.external_potential(s.replace(positions=x), basis)
        return (weights * v).sum(), v

    def run():
        jax.clear_caches()  # the size is read when a function is traced
        loops = [e for e in every_equation(f, s.positions) if e.primitive.name == "scan"]
        (_, matrix), slope = jax.jit(jax.value_and_grad(f, has_aux=True))(s.positions)
        return len(loops), np.asarray(matrix), np.asarray(slope)

    whole = run()
    monkeypatch.setattr(native, "PAIR_BYTES", 1)
    pieces = run()
    monkeypatch.undo()
    jax.clear_caches()
    assert pieces[0] > whole[0]
    np.testing.assert_allclose(pieces[1], whole[1], rtol=0, atol=POTENTIAL)
    assert _relative(pieces[2], whole[2]) < GRADIENT


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bucket_compiles_once_and_gives_what_each_molecule_gives(molecules):
    pairs = [("water", "hydrogen_cyanide"), ("methane", "formamide")]
    chosen = [[molecules[n] for n in names] for names in pairs]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    bucket = smallest_bucket(basis.spec, [s.numbers for own in chosen for s in own])

    functions = {k: f for k, f in OPERATORS.items() if k != "int1e_rr"}

    def total(structure, driver="native"):
        return (integrals.external_potential(structure, basis, driver=driver) ** 2).sum()

    def everything(structure):
        matrices = {k: f(structure, basis) for k, f in functions.items()}
        slope = jax.grad(lambda x: total(structure.replace(positions=x)))(structure.positions)
        return matrices, slope

    compiled = jax.jit(chex.assert_max_traces(everything, 1))
    for own in chosen:
        padded = batch(own, basis, bucket=bucket)
        together, slopes = compiled(padded)
        assert not np.asarray(slopes)[~padded.mask].any()
        for b, s in enumerate(own):
            nao = layout_of(s, basis).nao
            # The reference compiles nothing; water also against the driver itself.
            drivers = integrals.DRIVERS if s is molecules["water"] else ["libcint"]
            for key, driver in itertools.product(together, drivers):
                ours = np.asarray(together[key][b])
                single = functions[key](s, basis, driver=driver)
                np.testing.assert_allclose(ours[..., :nao, :nao], single, rtol=0, atol=POTENTIAL)
                assert not ours[..., nao:, :].any()
                assert not ours[..., :, nao:].any()
            slope = jax.grad(lambda x, s=s, d=drivers[0]: total(s.replace(positions=x), driver=d))(
                s.positions
            )
            assert _relative(slopes[b, : s.n_atoms], np.asarray(slope)) < GRADIENT


def test_padded_overlap_can_be_inverted(molecules):
    chosen = [molecules[n] for n in ("water", "formamide")]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    padded = batch(chosen, basis)
    s = np.asarray(integrals.overlap(padded, basis, padding=1.0))
    plain = np.asarray(integrals.overlap(padded, basis))
    for b, structure in enumerate(chosen):
        nao = layout_of(structure, basis).nao
        assert nao < s.shape[-1]
        np.testing.assert_array_equal(s[b, :nao], plain[b, :nao])
        np.testing.assert_array_equal(s[b, nao:, nao:], np.eye(s.shape[-1] - nao))
        assert not s[b, :nao, nao:].any()
    assert np.linalg.eigvalsh(s).min() > 1e-3
    assert np.linalg.eigvalsh(plain).min() < 1e-12


# --- screening -----------------------------------------------------------------------------------


def _alkane(n) -> Structure:
    """Zigzag C_n H_2n+2, Angstrom inside, with a little noise that leaves no symmetry."""
    numbers, rows = [], []
    for i in range(n):
        up = 1 if i % 2 else -1
        centre = np.array([1.27 * i, 0.0, 0.43 * up])
        numbers += [6, 1, 1]
        rows += [centre + np.array([0.0, w, abs(w) * up * 0.72]) for w in (0.0, 0.88, -0.88)]
        if i in (0, n - 1):
            numbers.append(1)
            rows.append(centre + np.array([-0.88 if i == 0 else 0.88, 0.0, -0.63 * up]))
    noise = 0.02 * np.random.default_rng(1).normal(size=(len(rows), 3))
    return Structure(numbers, (np.array(rows) + noise) / ANGSTROM_PER_BOHR)


@pytest.fixture(scope="module")
def octane():
    s = _alkane(8)
    basis = load_basis("sto-3g", s.numbers)
    exact = jax.jit(lambda s: integrals.external_potential(s, basis))
    return s, basis, exact


def _all_pairs(structure, basis):
    counts = layout_of(structure, basis).primitives.counts
    return sum(counts) * (sum(counts) + 1) // 2


@pytest.mark.parametrize("tolerance", [1e-6, 1e-9, 1e-12])
def test_screening_errs_by_no_more_than_it_says(octane, tolerance):
    s, basis, exact = octane
    pairs = integrals.screen(s, basis, tolerance=tolerance)
    assert pairs.count < 0.8 * _all_pairs(s, basis)
    v = jax.jit(lambda s, p: integrals.external_potential(s, basis, pairs=p))(s, pairs)
    error = np.abs(v - exact(s)).max()
    assert error <= tolerance + POTENTIAL
    if tolerance > 1e-7:
        assert error > 0  # something was left out


@pytest.mark.slow
def test_screening_holds_for_neutral_atoms_too(octane):
    s, basis, _ = octane
    pairs = integrals.screen(s, basis, tolerance=1e-8)
    ours = integrals.neutral_atom_potential(s, basis, pairs=pairs)
    assert 0 < np.abs(ours - integrals.neutral_atom_potential(s, basis)).max() <= 1e-8


def test_screening_keeps_more_for_a_smaller_tolerance(octane):
    s, basis, _ = octane
    counts = [integrals.screen(s, basis, tolerance=t).count for t in (1e-3, 1e-6, 1e-9, 1e-12)]
    assert counts == sorted(set(counts))
    wide = integrals.screen(s, basis, tolerance=1e-6, skin=0.5).count
    assert counts[1] < wide < _all_pairs(s, basis)


def test_the_bound_holds_for_every_pair(rng):
    """One-primitive shells of any l, exponents over four orders, charges where it hurts most."""
    tightest = 0.0
    for _ in range(150):
        la, lb = rng.integers(0, 5, size=2)
        a, b = 10 ** rng.uniform(-1, 3, size=2)
        far = rng.choice([0.0, 0.3, 1.0]) * rng.uniform(0, 3) / min(a, b) ** 0.5
        away = rng.normal(size=3)
        away *= far / np.linalg.norm(away)
        mol = gto.M(
            atom=[("H@1", (0.0, 0.0, 0.0)), ("H@2", tuple(away))],
            unit="Bohr",
            basis={"H@1": [[int(la), [a, 1.0]]], "H@2": [[int(lb), [b, 1.0]]]},
            verbose=0,
        )
        c = rng.normal(size=2)  # of either sign
        ca, cb = (
            normalised_coefficients(l, np.array([x]), np.ones(1))[0] * y
            for l, x, y in ((la, a, c[0]), (lb, b, c[1]))
        )
        bound = screening.pair_bounds(
            la, lb, *(np.array([x]) for x in (a, b, ca, cb)), np.array([far])
        )[0]
        between = away * b / (a + b)
        spread = 1 / (a + b) ** 0.5
        points = [between, np.zeros(3), away, *(between + spread * rng.normal(size=(6, 3)))]
        for point in points:
            with mol.with_rinv_origin(point):
                block = mol.intor("int1e_rinv")[: 2 * la + 1, 2 * la + 1 :]
            value = np.abs(c[0] * c[1] * block).max()
            assert value <= bound * (1 + 1e-12)  # round-off of equality, for two s on one centre
            tightest = max(tightest, value / bound)
    assert tightest > 0.5  # and it is a bound of these integrals, not of anything


def test_a_skin_holds_within_and_says_so_beyond(octane, rng):
    s, basis, exact = octane
    tolerance, skin = 1e-7, 0.5
    pairs = integrals.screen(s, basis, tolerance=tolerance, skin=skin)
    v = jax.jit(lambda s: integrals.external_potential(s, basis, pairs=pairs))
    for _ in range(3):
        step = rng.normal(size=s.positions.shape)
        step *= 0.999 * skin / 2 / np.linalg.norm(step, axis=1, keepdims=True)
        moved = s.replace(positions=s.positions + step)
        assert np.abs(v(moved) - exact(moved)).max() <= tolerance
    step = np.zeros(s.positions.shape)
    step[4, 1] = 1.01 * skin / 2
    assert np.isnan(v(s.replace(positions=s.positions + step))).all()


def test_without_a_skin_any_move_is_refused(octane):
    s, basis, _ = octane
    pairs = integrals.screen(s, basis, tolerance=1e-7)
    moved = s.replace(positions=s.positions + 0.01)
    assert np.isfinite(integrals.external_potential(s, basis, pairs=pairs)).all()
    assert np.isnan(integrals.external_potential(moved, basis, pairs=pairs)).all()


@pytest.mark.slow
def test_gradients_of_screened_potentials_are_close(octane, rng):
    """The derivative of what is left out is not bounded by the tolerance, but it is as small."""
    s, basis, _ = octane
    weights = _symmetric(rng, layout_of(s, basis).nao)
    pairs = integrals.screen(s, basis, tolerance=1e-9)

    def f(x, pairs=None):
        v = integrals.external_potential(s.replace(positions=x), basis, pairs=pairs)
        return (weights * v).sum()

    exact, ours = jax.jit(jax.grad(f))(s.positions), jax.jit(jax.grad(f))(s.positions, pairs)
    # 58^2 elements, each wrong by 1e-9 times the root of an exponent of at most 1e2
    assert 0 < np.abs(ours - exact).max() < 58 * 58 * 1e-9 * 10


def test_updated_pairs_keep_their_shapes_while_they_fit(octane):
    s, basis, exact = octane
    tolerance = 1e-7

    def stretched(factor):
        return s.replace(positions=factor * s.positions)

    compiled = jax.jit(
        chex.assert_max_traces(lambda s, p: integrals.external_potential(s, basis, pairs=p), 1)
    )
    pairs = integrals.screen(s, basis, tolerance=tolerance)
    np.testing.assert_allclose(compiled(s, pairs), exact(s), rtol=0, atol=tolerance)
    for factor in (1.02, 1.1):
        moved = stretched(factor)
        updated = pairs.update(moved, basis)
        assert not updated.overflowed
        assert updated.capacity == pairs.capacity
        assert updated.count < pairs.count
        np.testing.assert_allclose(compiled(moved, updated), exact(moved), rtol=0, atol=tolerance)
    moved = stretched(0.9)
    grown = pairs.update(moved, basis)
    assert grown.overflowed
    assert sum(grown.capacity) > grown.count > pairs.count
    v = integrals.external_potential(moved, basis, pairs=grown)
    np.testing.assert_allclose(v, exact(moved), rtol=0, atol=tolerance)
    again = grown.update(moved, basis)
    assert not again.overflowed
    assert again.capacity == grown.capacity


@pytest.mark.slow
def test_screening_a_batch_is_screening_its_molecules(molecules):
    far = Structure(
        [8, 1, 1, 8, 1, 1],
        np.concatenate([molecules["water"].positions, molecules["water"].positions + 7.0]),
    )
    chosen = [far, molecules["formamide"], molecules["water"]]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    padded = batch(chosen, basis)
    tolerance = 1e-7
    pairs = integrals.screen(padded, basis, tolerance=tolerance, skin=0.2)
    v = jax.jit(lambda s, p: integrals.external_potential(s, basis, pairs=p))
    exact = integrals.external_potential(padded, basis)
    ours = v(padded, pairs)
    assert 0 < np.abs(ours - exact).max() <= tolerance
    nao = layout_of(molecules["water"], basis).nao
    assert not np.asarray(ours[2, nao:]).any()
    moved = padded.positions.copy()
    moved[1, 2, 0] += 0.15
    ours = v(padded.replace(positions=moved), pairs)
    assert np.isnan(ours).all(axis=(1, 2)).tolist() == [False, True, False]
    assert np.isfinite(ours[0]).all()
    assert np.isfinite(ours[2]).all()


def test_charges_beyond_the_default_can_be_announced(octane):
    s, basis, exact = octane
    point = np.array([200.0]), np.array([[8.0, 3.0, 0.0]])
    tolerance = 1e-6
    charge = float(sum(s.numbers) + 200.0)
    pairs = integrals.screen(s, basis, tolerance=tolerance, charge=charge)
    ours = integrals.external_potential(s, basis, point_charges=point, pairs=pairs)
    plain = integrals.external_potential(s, basis, point_charges=point)
    assert np.abs(ours - plain).max() <= tolerance
    assert np.abs(plain - exact(s)).max() > 1.0


@pytest.mark.slow
def test_more_charge_than_announced_is_not_silent(water):
    basis = load_basis("sto-3g", water.numbers)
    pairs = integrals.screen(water, basis, tolerance=1e-9)  # holds for twice the nuclei: 20
    point = np.array([30.0]), np.array([[0.0, 0.0, 9.0]])
    beyond = integrals.external_potential(water, basis, point_charges=point, pairs=pairs)
    assert np.isnan(beyond).all()
    assert not np.isnan(integrals.neutral_atom_potential(water, basis, pairs=pairs)).any()


def test_screening_refuses_what_makes_no_sense(water):
    basis = load_basis("sto-3g", water.numbers)
    for tolerance in (0.0, -1e-9, float("nan")):
        with pytest.raises(OpmlError, match=r"tolerance must be a positive number; got"):
            integrals.screen(water, basis, tolerance=tolerance)
    with pytest.raises(OpmlError, match=r"skin must be zero or more; got -0\.1"):
        integrals.screen(water, basis, skin=-0.1)
    with pytest.raises(OpmlError, match=r"traced positions.*outside jit"):
        jax.jit(lambda x: integrals.screen(water.replace(positions=x), basis).first)(
            water.positions
        )
    with pytest.raises(OpmlError, match=r"traced positions or basis.*outside jit"):
        jax.jit(lambda b: integrals.screen(water, b).first)(basis)
    pairs = integrals.screen(water, basis)
    with pytest.raises(OpmlError, match=r"pairs must be driver='native'; got with driver='libc"):
        integrals.external_potential(water, basis, pairs=pairs, driver="libcint")


# --- precision -----------------------------------------------------------------------------------

# Single precision: 6e-8 of elements of V of up to 70 Hartree, over sums of a few terms of both
# signs; the gradient adds nao^2 such numbers times weights of order 1, whose errors are random.
SINGLE_POTENTIAL = 1e-5
SINGLE_GRADIENT = 1e-4

_SINGLE = """
import sys
import numpy as np
import jax
import opml_jax as opml
given = np.load(sys.argv[1])
s = opml.Structure(given["numbers"], given["positions"])
basis = opml.load_basis("def2-svp", s.numbers)
def f(x):
    v = opml.integrals.external_potential(s.replace(positions=x), basis)
    return (given["weights"].astype(np.float32) * v).sum(), v
(_, v), g = jax.jit(jax.value_and_grad(f, has_aux=True))(s.positions.astype(np.float32))
assert v.dtype == g.dtype == np.float32, (v.dtype, g.dtype)
assert not jax.config.jax_enable_x64
assert "pyscfad" not in sys.modules
others = [opml.integrals.overlap, opml.integrals.kinetic, opml.integrals.position]
others = [np.asarray(h(s, basis)) for h in others]
assert {x.dtype for x in others} == {np.dtype(np.float32)}
np.savez(sys.argv[2], v=v, g=g, s=others[0], t=others[1], r=others[2])
"""


@pytest.mark.slow
def test_single_precision_is_enough_for_chemistry(tmp_path, rng):
    """Without x64, in another process; ethanol in def2-SVP."""
    basis = load_basis("def2-svp", ETHANOL.numbers)
    weights = _symmetric(rng, layout_of(ETHANOL, basis).nao)
    given, made = tmp_path / "given.npz", tmp_path / "made.npz"
    # The same rounded geometry for both: what is compared is arithmetic.
    positions = ETHANOL.positions.astype(np.float32).astype(np.float64)
    np.savez(given, numbers=ETHANOL.numbers, positions=positions, weights=weights)
    command = [sys.executable, "-W", "error::FutureWarning", "-c", _SINGLE, str(given), str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(made) as f:
        single = dict(f)

    def f(x):  # libcint, which agrees to 1e-12 and compiles nothing
        s = ETHANOL.replace(positions=x)
        v = integrals.external_potential(s, basis, driver="libcint")
        return (weights * v).sum(), v

    (_, v), g = jax.value_and_grad(f, has_aux=True)(jnp.asarray(positions))
    s = ETHANOL.replace(positions=positions)
    assert np.abs(single["v"] - v).max() <= SINGLE_POTENTIAL
    assert np.abs(single["g"] - g).max() <= SINGLE_GRADIENT
    for key, function in (("s", integrals.overlap), ("t", integrals.kinetic)):
        assert np.abs(single[key] - function(s, basis, driver="libcint")).max() <= SINGLE_POTENTIAL


def test_single_precision_positions_stay_single_with_x64_on(molecules):
    water = molecules["water"]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    single = jnp.asarray(water.positions, jnp.float32)
    functions = [*OPERATORS.values(), integrals.screened_potential]
    functions.append(integrals.neutral_atom_potential)
    padded = batch([water, molecules["hydrogen_cyanide"]], basis)
    together = jnp.asarray(padded.positions, jnp.float32)
    for function in functions:
        f = jax.eval_shape(lambda x, f=function: f(water.replace(positions=x), basis), single)
        assert f.dtype == jnp.float32
        g = jax.eval_shape(
            jax.grad(lambda x, f=function: f(water.replace(positions=x), basis).sum()), single
        )
        assert g.dtype == jnp.float32
        b = jax.eval_shape(lambda x, f=function: f(padded.replace(positions=x), basis), together)
        assert b.dtype == jnp.float32
    field = integrals.external_potential(
        water.replace(positions=single), basis, widths=0.3, point_charges=POINTS, field=FIELD
    )
    assert field.dtype == jnp.float32


# --- neutral atoms -------------------------------------------------------------------------------


def test_clouds_hold_as_many_electrons_as_the_nucleus_attracts():
    assert set(CLOUDS) >= set(range(1, 37))
    for z, cloud in CLOUDS.items():
        charges, widths = np.array(cloud).T
        assert abs(charges.sum() - z) < 1e-12, z
        assert (charges > 0).all(), z
        assert (widths > 0).all(), z


def test_neutral_atoms_are_nuclei_and_their_clouds(molecules):
    s = molecules["formamide"]
    basis = load_basis("sto-3g", s.numbers)
    total = integrals.external_potential(s, basis)
    for atom, z in enumerate(s.numbers):
        for charge, width in CLOUDS[z]:
            q = np.zeros(s.n_atoms)
            q[atom] = -charge
            total = total + integrals.external_potential(s, basis, charges=q, widths=width)
    ours = integrals.neutral_atom_potential(s, basis)
    np.testing.assert_allclose(ours, total, rtol=0, atol=POTENTIAL)


def test_neutral_atoms_are_short_ranged(water):
    basis = load_basis("sto-3g", [1, 2, 8])
    far = water.positions[0] + 20.0 * np.array([2.0, -1.0, 2.0]) / 3.0
    pair = Structure((*water.numbers, 2), [*water.positions, far])
    nao = layout_of(water, basis).nao
    near = integrals.neutral_atom_potential(water, basis)
    both = integrals.neutral_atom_potential(pair, basis)[:nao, :nao]
    assert np.abs(both - near).max() < 1e-8
    bare = integrals.external_potential(pair, basis)[:nao, :nao]
    assert np.abs(bare - integrals.external_potential(water, basis)).max() > 0.05


@pytest.mark.slow
def test_neutral_atoms_of_a_batch_are_those_of_its_molecules(molecules):
    chosen = [molecules["water"], molecules["formamide"]]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    together = np.asarray(integrals.neutral_atom_potential(batch(chosen, basis), basis))
    for own, s in zip(together, chosen, strict=True):
        nao = layout_of(s, basis).nao
        alone = integrals.neutral_atom_potential(s, basis)
        np.testing.assert_allclose(own[:nao, :nao], alone, rtol=0, atol=POTENTIAL)
        assert not own[nao:].any()
        assert not own[:, nao:].any()


def test_neutral_atoms_refuse_an_element_without_a_cloud():
    s = Structure([53, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 3.04]])
    basis = load_basis("sto-3g", s.numbers)
    with pytest.raises(OpmlError, match="I"):
        integrals.neutral_atom_potential(s, basis)
