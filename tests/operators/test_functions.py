"""Functions of operators against formulas in NumPy and SciPy, of molecules and of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from opml_jax import operators
from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import ConventionError, OpmlError
from opml_jax.operators import Operator, chebyshev, identity, lowdin, plan, powers, resolvent, trace

# Relative to the largest element: a few products of small matrices
ROUND_OFF = 1e-12
# The same through an inverse of S, whose condition number is up to 1e3 for these molecules
INVERSE = 1e-10
# Central differences of fourth order over a step of 1e-3
FINITE_DIFFERENCE = 1e-8

NAMES = ["water", "methane", "hydrogen_cyanide"]
every_molecule = pytest.mark.parametrize("name", NAMES)
BOUNDS = (-65.0, 5.0)  # Hartree; the potential of these molecules lies within


@pytest.fixture(scope="module")
def together(molecules):
    """V and S of the three molecules as one batch, padded."""
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    padded = batch([molecules[n] for n in NAMES], basis)
    assert padded.layout.nao > max(layout_of(molecules[n], basis).nao for n in NAMES)
    return (
        operators.external_potential(padded, basis),
        operators.overlap(padded, basis, padding=1),
    )


@pytest.fixture(scope="module")
def integrals(molecules, together):
    """``integrals(name)``: V and S of one of them, from the batch: one program for all."""

    def of(name):
        layout = layout_of(molecules[name], load_basis("sto-3g", [1, 6, 7, 8]))
        n, b = layout.nao, NAMES.index(name)
        return tuple(Operator(o.values[b, :n, :n], layout, symmetric=True) for o in together)

    return of


def _close(ours, theirs, tolerance=ROUND_OFF):
    scale = np.abs(theirs).max()
    assert scale > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def _numpy(*found):
    return [np.asarray(o.to_dense()) for o in found]


def _inverse_root(s):
    return np.linalg.inv(scipy.linalg.sqrtm(s).real)


# powers


def _plain(v, s, k):
    return np.linalg.matrix_power(v, k)


def _overlap(v, s, k):
    return v @ np.linalg.matrix_power(np.linalg.solve(s, v), k - 1)


def _lowdin(v, s, k):
    x = _inverse_root(s)
    return np.linalg.matrix_power(x @ v @ x, k)


FORMULAS = {"plain": _plain, "overlap": _overlap, "lowdin": _lowdin}
every_metric = pytest.mark.parametrize("metric", FORMULAS)


@every_metric
@every_molecule
def test_powers_are_their_formulas(integrals, name, metric):
    V, S = integrals(name)
    v, s = _numpy(V, S)
    exponents = (3, 1, 4, 2)
    for k, ours in zip(exponents, powers(V, exponents, metric=metric, overlap=S), strict=True):
        assert ours.symmetric
        _close(ours.to_dense(), FORMULAS[metric](v, s, k), INVERSE)
        _close(ours.to_dense(), ours.T.to_dense())


@every_metric
def test_powers_of_operators_that_are_not_symmetric(integrals, rng, metric):
    V, S = integrals("water")
    v, s = _numpy(V, S)
    v = v + rng.normal(size=v.shape)
    ours = powers(Operator(jnp.asarray(v), V.layout), (1, 2, 3), metric=metric, overlap=S)
    for k, A in zip((1, 2, 3), ours, strict=True):
        assert not A.symmetric
        _close(A.to_dense(), FORMULAS[metric](v, s, k), INVERSE)


def test_metrics_are_one_in_an_orthogonal_basis(integrals):
    V, _ = integrals("water")
    plain = powers(V, (2, 3))
    for metric in ("overlap", "lowdin"):
        for ours, theirs in zip(
            powers(V, (2, 3), metric=metric, overlap=identity(V)), plain, strict=True
        ):
            _close(ours.to_dense(), theirs.to_dense())


def test_two_metrics_are_one_operator(integrals):
    """In the overlap metric V^k is a matrix in the AO basis; in Löwdin's it is that of the same."""
    V, S = integrals("hydrogen_cyanide")
    (x,) = (_inverse_root(s) for s in _numpy(S))
    ours, theirs = (powers(V, (3,), metric=m, overlap=S)[0] for m in ("lowdin", "overlap"))
    _close(ours.to_dense(), x @ theirs.to_dense() @ x, INVERSE)


@pytest.mark.parametrize("metric", ["overlap", "lowdin"])
def test_derivatives_of_powers(integrals, rng, metric):
    """Along a change of both V and S, at methane, whose S has equal eigenvalues."""
    V, S = integrals("methane")
    dv, ds = rng.normal(size=(2, V.nao, V.nao))
    dv, ds = dv + dv.T, 0.02 * (ds + ds.T)

    @jax.jit
    def f(t):
        a = Operator(V.values + t * dv, V.layout, symmetric=True)
        s = Operator(S.values + t * ds, S.layout, symmetric=True)
        return powers(a, (3,), metric=metric, overlap=s)[0].to_dense()

    h = 1e-3
    differences = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
    _close(jax.jvp(f, (0.0,), (1.0,))[1], differences, FINITE_DIFFERENCE)
    weights = rng.normal(size=dv.shape)
    reverse = jax.grad(lambda t: jnp.sum(weights * f(t)))(0.0)
    assert float(reverse) == pytest.approx(float(np.sum(weights * differences)), rel=1e-6)


# Chebyshev polynomials and the identity


@every_molecule
def test_chebyshev_polynomials_of_the_eigenvalues(integrals, name):
    X = lowdin(*integrals(name))
    w, u = np.linalg.eigh(X.to_dense())
    low, high = BOUNDS
    assert low < w.min() < w.max() < high
    scaled = (2 * w - (low + high)) / (high - low)
    degrees = (5, 0, 1, 8, 2, 7)
    for n, ours in zip(degrees, chebyshev(X, degrees, BOUNDS), strict=True):
        values = np.polynomial.chebyshev.chebval(scaled, np.eye(n + 1)[n])
        assert ours.symmetric
        _close(ours.to_dense(), (u * values) @ u.T)
        assert np.abs(np.linalg.eigvalsh(ours.to_dense())).max() < 1 + ROUND_OFF


@pytest.mark.parametrize("symmetric", [True, False])
def test_chebyshev_polynomials_obey_their_recurrence(integrals, rng, symmetric):
    V, _ = integrals("water")
    if not symmetric:
        V = Operator(V.values + rng.normal(size=V.values.shape), V.layout)
    low, high = BOUNDS
    one = np.eye(V.nao)
    x = (2 * np.asarray(V.to_dense()) - (low + high) * one) / (high - low)
    found = [one, x]
    for _ in range(5):
        found.append(2 * x @ found[-1] - found[-2])
    for ours, theirs in zip(chebyshev(V, range(7), BOUNDS), found, strict=True):
        assert ours.symmetric == symmetric or theirs is one
        _close(ours.to_dense(), theirs)


def test_restricted_chebyshev_polynomials(molecules, integrals):
    """One pattern in two storages, by T_3 = 2 T_1 T_2 - T_1 with its symmetric part."""
    V, _ = integrals("hydrogen_cyanide")
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    dense, tiled = (
        V.restrict(plan(molecules["hydrogen_cyanide"], basis, 3.0, storage=kind, tile=tile))
        for kind, tile in (("dense", None), ("tiled", 5))
    )
    for ours, theirs in zip(
        chebyshev(tiled, range(6), BOUNDS), chebyshev(dense, range(6), BOUNDS), strict=True
    ):
        assert ours.plan is tiled.plan
        _close(ours.to_dense(), theirs.to_dense())
        _close(ours.to_dense(), ours.T.to_dense())
    mask = dense.plan.mask
    one, x = np.eye(V.nao), (2 * np.asarray(V.to_dense()) - sum(BOUNDS) * np.eye(V.nao)) / 70.0
    x = x * mask
    second = 2 * (x @ x) * mask - one
    third = (x @ second + second @ x) * mask - x
    _close(chebyshev(dense, (3,), BOUNDS)[0].to_dense(), third)


def test_identity(integrals, together):
    V, _ = integrals("water")
    one = identity(V)
    assert one.symmetric
    assert one.values.dtype == V.values.dtype
    np.testing.assert_array_equal(one.to_dense(), np.eye(V.nao))
    _close((one @ V).to_dense(), V.to_dense())
    padded = np.asarray(identity(together[0]).to_dense())
    for unit, mask in zip(padded, together[0].layout.ao_mask, strict=True):
        np.testing.assert_array_equal(unit, np.diag(mask.astype(float)))


# resolvents


@pytest.mark.parametrize("z", [0.5, 3, 2.0 + 1.5j, -20.0 + 0.5j])
@every_molecule
def test_resolvent_is_the_inverse(integrals, name, z):
    V, S = integrals(name)
    v, s = _numpy(V, S)
    ours = resolvent(V, z, overlap=S)
    assert ours.symmetric
    assert jnp.iscomplexobj(ours.values) == isinstance(z, complex)
    _close(ours.to_dense(), np.linalg.inv(z * s - v), INVERSE)
    _close(resolvent(V, z).to_dense(), np.linalg.inv(z * np.eye(len(v)) - v), INVERSE)
    _close(ours.to_dense(), np.asarray(ours.to_dense()).T, INVERSE)


def test_resolvents_obey_their_equation(integrals):
    """R(y) - R(z) = (z - y) R(y) S R(z)."""
    V, S = integrals("water")
    (s,) = _numpy(S)
    r, q = (np.asarray(resolvent(V, z, overlap=S).to_dense()) for z in (0.7, -3.0 + 2.0j))
    _close((-3.0 + 2.0j - 0.7) * r @ s @ q, r - q, INVERSE)


def test_derivative_of_a_resolvent(integrals, rng):
    """Smooth at methane too: no eigenvalues are taken."""
    V, S = integrals("methane")
    dv = rng.normal(size=V.values.shape)
    dv = dv + dv.T

    def f(v):
        return resolvent(Operator(v, V.layout, symmetric=True), 0.5, overlap=S).to_dense()

    r = np.asarray(f(V.values))
    _close(jax.jvp(f, (V.values,), (dv,))[1], r @ dv @ r, INVERSE)


# Löwdin's basis


@every_molecule
def test_lowdin_is_its_formula(integrals, name):
    V, S = integrals(name)
    v, s = _numpy(V, S)
    x = _inverse_root(s)
    ours = lowdin(V, S)
    assert ours.symmetric
    assert ours.layout == V.layout
    _close(ours.to_dense(), x @ v @ x, INVERSE)
    np.testing.assert_array_equal(ours.to_dense(), ours.T.to_dense())
    _close(lowdin(S, S).to_dense(), np.eye(len(s)), INVERSE)
    theirs = scipy.linalg.eigh(v, s, eigvals_only=True)
    _close(np.linalg.eigvalsh(ours.to_dense()), theirs, INVERSE)


# batches


def _functions(V, S):
    return {
        **{
            f"{metric} {k}": A
            for metric in FORMULAS
            for k, A in zip((2, 3), powers(V, (2, 3), metric=metric, overlap=S), strict=True)
        },
        "lowdin": lowdin(V, S),
        **{
            f"chebyshev {n}": A
            for n, A in zip((0, 3, 4), chebyshev(lowdin(V, S), (0, 3, 4), BOUNDS), strict=True)
        },
        "resolvent in a metric": resolvent(V, 0.5, overlap=S),
        "resolvent": resolvent(V, 0.5),
    }


@pytest.fixture(scope="module")
def functions(integrals, together):
    """Every function, of the batch and of each molecule."""
    return _functions(*together), [_functions(*integrals(n)) for n in NAMES]


WHAT = [
    *(f"{m} {k}" for m in FORMULAS for k in (2, 3)),
    *("lowdin", "chebyshev 0", "chebyshev 3", "chebyshev 4", "resolvent in a metric", "resolvent"),
]
every_function = pytest.mark.parametrize("what", WHAT)


@every_function
def test_batch_is_its_molecules(functions, what):
    batched, alone = functions
    values = np.asarray(batched[what].to_dense())
    assert len(values) == len(alone)
    for ours, theirs in zip(values, alone, strict=True):
        n = theirs[what].nao
        _close(ours[:n, :n], theirs[what].to_dense(), INVERSE)
        assert not ours[n:, :n].any()
        assert not ours[:n, n:].any()


@every_function
def test_padding_stays_empty(functions, what):
    """So that traces of a batch are those of its molecules."""
    batched, alone = functions
    theirs = np.array([trace(found[what]) for found in alone])
    _close(trace(batched[what]), theirs, INVERSE)


def test_overlap_of_a_batch_must_be_padded(molecules, together):
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    V = together[0]
    bare = operators.overlap(batch([molecules[n] for n in NAMES], basis), basis)
    with pytest.raises(OpmlError, match=r"overlap must be a positive definite one.*padding=1"):
        powers(V, (2,), metric="overlap", overlap=bare)
    with pytest.raises(OpmlError, match="overlap must be"):
        powers(V, (2,), metric="lowdin", overlap=bare)


# what is refused


def test_metrics_are_checked(integrals):
    V, S = integrals("water")
    with pytest.raises(OpmlError, match=r"metric must be one of .*'lowdn'.*Did you mean 'lowdin'"):
        powers(V, (2,), metric="lowdn", overlap=S)
    for metric in ("overlap", "lowdin"):
        with pytest.raises(OpmlError, match=f"overlap must be S, for the metric '{metric}'"):
            powers(V, (2,), metric=metric)
    other = integrals("hydrogen_cyanide")[1]
    for metric in ("overlap", "lowdin"):
        with pytest.raises(ConventionError, match="in one layout"):
            powers(V, (2,), metric=metric, overlap=other)
    with pytest.raises(ConventionError, match="in one layout"):
        resolvent(V, 1.0, overlap=other)


def test_inverses_of_restricted_operators_are_refused(molecules, integrals):
    V, S = integrals("water")
    p = plan(molecules["water"], load_basis("sto-3g", [1, 6, 7, 8]), 2.0)
    for v, s in ((V.restrict(p), S.restrict(p)), (V.restrict(p), S), (V, S.restrict(p))):
        for call in (
            lambda: powers(v, (2,), metric="overlap", overlap=s),  # noqa: B023
            lambda: powers(v, (2,), metric="lowdin", overlap=s),  # noqa: B023
            lambda: lowdin(v, s),  # noqa: B023
            lambda: resolvent(v, 1.0, overlap=s),  # noqa: B023
        ):
            with pytest.raises(OpmlError, match="must be unrestricted operators"):
                call()
    with pytest.raises(OpmlError, match="must be unrestricted operators"):
        resolvent(V.restrict(p), 1.0)


@pytest.mark.parametrize("degrees", [(), (1, -1), (1.5,)])
def test_degrees_are_checked(integrals, degrees):
    with pytest.raises(OpmlError, match="degrees must be integers from 0 up"):
        chebyshev(integrals("water")[0], degrees, BOUNDS)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, -1.0), (float("nan"), 1.0)])
def test_bounds_are_checked(integrals, bounds):
    with pytest.raises(OpmlError, match="bounds must be two ascending numbers"):
        chebyshev(integrals("water")[0], (1, 2), bounds)


# Trace of the block of oxygen, degrees 1 to 6, at 64 displaced waters: condition numbers of columns
# of unit length are 8e7 for powers and 2e5 for Chebyshev polynomials
def test_chebyshev_polynomials_are_far_better_conditioned_than_powers(molecules):
    water, rng = molecules["water"], np.random.default_rng(0)
    basis = load_basis("sto-3g", water.numbers)
    moves = 0.15 * rng.normal(size=(64, 3, 3))
    moved = batch([water.replace(positions=water.positions + m) for m in moves], basis)
    v = jax.jit(
        lambda s: lowdin(operators.screened_potential(s, basis), operators.overlap(s, basis))
    )(moved)

    def condition(found):
        blocks = [operators.on_site_blocks(o)[:, 0] for o in found]
        traces = np.stack([np.trace(b, axis1=1, axis2=2) for b in blocks], axis=-1)
        return np.linalg.cond(traces / np.linalg.norm(traces, axis=0))

    degrees = range(1, 7)
    bounds = operators.spectral_bounds(basis)
    assert condition(chebyshev(v, degrees, bounds)) < condition(powers(v, degrees)) / 100
