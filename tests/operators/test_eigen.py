"""Roots of matrices with equal eigenvalues, and what is nearly singular."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from opml_jax import operators
from opml_jax.basis import batch, bucket_of, layout_of, load_basis
from opml_jax.conventions import rotation_to_e3nn
from opml_jax.errors import OpmlError
from opml_jax.operators import canonical_orthogonalisation, inverse_sqrt, lowdin, sqrtm
from opml_jax.operators.eigen import lyapunov
from opml_jax.structures import Structure

# Relative to the largest element, of matrices with condition numbers up to 100
ROUND_OFF = 1e-12
# Fourth-order differences over a step of 1e-3 of functions with derivatives up to 1e3
FINITE_DIFFERENCE = 1e-7
# Relative to the largest element of the matrix: V's own 1e-12
ROTATION = 1e-11

# S of methane has equal eigenvalues in threes, that of a linear molecule in pairs
DEGENERATE = ["identity", "methane", "carbon_dioxide"]
every_degenerate = pytest.mark.parametrize("name", DEGENERATE)
FUNCTIONS = {"sqrtm": sqrtm, "inverse_sqrt": inverse_sqrt}
both_functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def _overlap(structure):
    return operators.overlap(structure, load_basis("sto-3g", structure.numbers))


@pytest.fixture(scope="module")
def overlaps(molecules):
    found = {n: np.asarray(_overlap(molecules[n]).values) for n in DEGENERATE[1:]}
    return found | {"identity": np.eye(5)}


def _positive(rng, n=7):
    x = rng.normal(size=(n, n))
    return x @ x.T / n + 0.2 * np.eye(n)


def _close(ours, theirs, tolerance=ROUND_OFF):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def _direction(s, rng):
    d = rng.normal(size=s.shape)
    return 0.1 * (d + d.T) * np.linalg.eigvalsh(s)[0]


def _differences(f, h=1e-3):
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


# values


@every_degenerate
def test_roots_are_those_of_scipy(overlaps, name):
    s = overlaps[name]
    root = scipy.linalg.sqrtm(s).real
    _close(sqrtm(s), root)
    _close(inverse_sqrt(jnp.asarray(s)), np.linalg.inv(root))
    stack = jnp.stack([s, 2 * s])
    for function in (sqrtm, inverse_sqrt):
        both = function(stack)
        _close(both[0], function(stack[0]))
        _close(both[1], function(stack[1]))


def test_lyapunov_is_that_of_scipy(rng):
    """For right-hand sides that are not symmetric, too."""
    r, q = _positive(rng), rng.normal(size=(7, 7))
    for b in (q, q + q.T):
        _close(lyapunov(r, b), scipy.linalg.solve_continuous_lyapunov(r, b))
    stacked = lyapunov(jnp.stack([r, 2 * r]), jnp.stack([q, q]))
    _close(stacked[1], scipy.linalg.solve_continuous_lyapunov(2 * r, q))


def test_derivatives_of_lyapunov(rng):
    """In both arguments, to second order, by differences of SciPy's solution."""
    r, q, dq = _positive(rng), *rng.normal(size=(2, 7, 7))
    dr = _direction(r, rng)

    def f(t):
        return lyapunov(r + t * dr, q + t * dq)

    def theirs(t):
        return scipy.linalg.solve_continuous_lyapunov(r + t * dr, q + t * dq)

    slope = _differences(theirs)
    _close(jax.jvp(f, (0.0,), (1.0,))[1], slope, FINITE_DIFFERENCE)
    weights = rng.normal(size=q.shape)
    g = jax.grad(lambda r, q: jnp.sum(weights * lyapunov(r, q)), argnums=(0, 1))(r, q)
    reverse = np.sum(g[0] * dr) + np.sum(g[1] * dq)
    assert reverse == pytest.approx(np.sum(weights * slope), rel=1e-6)
    first = jax.jit(lambda t: jax.jvp(f, (t,), (1.0,))[1])
    _close(jax.jvp(first, (0.0,), (1.0,))[1], _differences(first), FINITE_DIFFERENCE)


# derivatives at equal eigenvalues


def test_derivatives_at_the_identity_are_those_of_a_series(rng):
    """(1 + t D)^p = 1 + p t D + p (p - 1) / 2 (t D)^2 + ..., all eigenvalues being equal."""
    d = rng.normal(size=(4, 4))
    d = d + d.T
    for function, p in ((sqrtm, 0.5), (inverse_sqrt, -0.5)):

        def f(t, function=function):
            return function(jnp.eye(4) + t * d)

        factor, power = 1.0, np.eye(4)
        for n in range(4):
            _close(jax.jit(f)(0.0), factor * power)
            f = jax.jacfwd(f)
            factor, power = factor * (p - n), power @ d


@both_functions
@every_degenerate
def test_three_derivatives(overlaps, rng, name, function):
    """Each against differences of the one before, the first against differences of the values."""
    s = overlaps[name]
    d = _direction(s, rng)
    f = jax.jit(lambda t: function(s + t * d))
    for _ in range(3):
        slope = jax.jit(jax.jacfwd(f))
        assert np.abs(slope(0.0)).max() > 1e-6
        _close(slope(0.0), _differences(f, 1e-2), FINITE_DIFFERENCE)
        f = slope


@both_functions
@every_degenerate
def test_reverse_is_forward(overlaps, rng, name, function):
    """First, second and third derivatives along one line, by every nesting of the two modes."""
    s = overlaps[name]
    d, weights = _direction(s, rng), rng.normal(size=s.shape)

    def f(t):
        return jnp.sum(weights * function(s + t * d))

    fwd, rev = jax.jacfwd, jax.grad
    expected = [fwd(f), fwd(fwd(f)), fwd(fwd(fwd(f)))]
    nested = [(0, rev(f)), (1, rev(rev(f))), (1, fwd(rev(f)))]
    if name == "methane":  # compiling these is the time of this test
        nested += [(1, rev(fwd(f))), (2, fwd(rev(rev(f)))), (2, rev(rev(rev(f))))]
    expected, ours = jax.jit(lambda t: ([g(t) for g in expected], [g(t) for _, g in nested]))(0.0)
    for (order, _), value in zip(nested, ours, strict=True):
        assert float(value) == pytest.approx(float(expected[order]), rel=1e-9)


@both_functions
def test_gradient_is_a_symmetric_matrix(overlaps, rng, function):
    """Of a function of all elements: along every symmetric direction the finite difference."""
    s, weights = overlaps["methane"], rng.normal(size=overlaps["methane"].shape)
    weights = weights + weights.T
    f = jax.jit(lambda s: jnp.sum(weights * function(s)))
    gradient = np.asarray(jax.grad(f)(jnp.asarray(s)))
    _close(gradient, gradient.T)
    for i, j in ((0, 0), (1, 1), (2, 3), (4, 8), (5, 6)):
        d = np.zeros_like(s)
        d[i, j] += 0.5
        d[j, i] += 0.5
        slope = _differences(lambda t, d=d: f(s + t * d))
        np.testing.assert_allclose(gradient[i, j], slope, atol=1e-8 * np.abs(gradient).max())


def test_gradients_in_positions_at_methane(molecules, rng):
    """Where the derivative of eigenvectors, as JAX has it, is wrong."""
    methane = molecules["methane"]
    basis = load_basis("sto-3g", methane.numbers)
    d = rng.normal(size=methane.positions.shape)
    weights = rng.normal(size=(9, 9))

    def overlap(t):
        return operators.overlap(methane.replace(positions=methane.positions + t * d), basis).values

    def by_eigenvectors(s):
        w, u = jnp.linalg.eigh(s)
        return (u * w**-0.5) @ u.T

    slopes = {}
    s, ds = jax.jit(lambda t: jax.jvp(overlap, (t,), (1.0,)))(0.0)
    for function in (inverse_sqrt, by_eigenvectors):
        f = lambda t, function=function: jnp.sum(weights * function(s + t * ds))  # noqa: E731
        slopes[function] = float(jax.grad(f)(0.0))
        expected = float(_differences(f))
    assert slopes[inverse_sqrt] == pytest.approx(expected, rel=FINITE_DIFFERENCE)
    assert not abs(slopes[by_eigenvectors] - expected) < 1e-3 * abs(expected)


# near linear dependence


@pytest.fixture(scope="module")
def crowded():
    """S of hydrogen with two s functions, and two molecules of it almost on top of each other."""
    x = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.4], [0.0, 0.0, 1e-6], [0.0, 0.0, 1.4 + 1e-6]])
    pair = Structure([1, 1], x[:2])
    four = Structure([1, 1, 1, 1], 10 * x + np.arange(4)[:, None])  # checked, then moved
    return tuple(_overlap(s).values for s in (pair, four.replace(positions=x)))


def test_linear_dependence_is_refused(crowded):
    fit, unfit = crowded
    assert np.isfinite(inverse_sqrt(fit)).all()
    with pytest.raises(OpmlError, match=r"overlap must be .*linearly dependent; got smallest"):
        inverse_sqrt(unfit)
    with pytest.raises(OpmlError, match="canonical_orthogonalisation"):
        inverse_sqrt(jnp.stack([jnp.eye(4), unfit]))


def test_linear_dependence_is_nan_under_jit(crowded):
    fit, unfit = crowded
    compiled = jax.jit(inverse_sqrt)
    _close(compiled(fit), inverse_sqrt(fit))
    assert np.isnan(compiled(unfit)).all()
    both = compiled(jnp.stack([jnp.eye(4), unfit]))
    _close(both[0], np.eye(4))  # the other matrix is as good as it was
    assert np.isnan(both[1]).all()


def test_threshold_can_be_chosen():
    s = jnp.diag(jnp.array([1e-3, 1.0]))
    _close(inverse_sqrt(s), np.diag([1e-3**-0.5, 1.0]))
    with pytest.raises(OpmlError, match=r"smallest eigenvalue 1\.0e-03"):
        inverse_sqrt(s, threshold=1e-2)
    assert np.isnan(jax.jit(lambda s: inverse_sqrt(s, threshold=1e-2))(s)).all()
    single = jnp.diag(jnp.array([1e-6, 1.0], jnp.float32))  # within the rounding of float32
    with pytest.raises(OpmlError, match="linearly dependent"):
        inverse_sqrt(single)


@pytest.mark.parametrize("dropped", [0, 2, 3])
def test_canonical_orthogonalisation_drops_what_depends(rng, dropped):
    """X^T S X is one on the space that is kept, and X X^T the inverse of S there."""
    q, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    w = np.concatenate([1e-9 * np.arange(1, dropped + 1), np.linspace(0.1, 2.0, 8 - dropped)])
    s = (q * w) @ q.T
    x = np.asarray(canonical_orthogonalisation(jnp.asarray(s)))
    kept = np.diag((np.arange(8) >= dropped).astype(float))
    assert (np.abs(x).max(axis=0) == 0).sum() == dropped
    np.testing.assert_allclose(x.T @ s @ x, kept, rtol=0, atol=1e-12)
    inverse = (q * np.where(np.arange(8) < dropped, 0.0, 1 / w)) @ q.T
    _close(x @ x.T, inverse)


def test_canonical_orthogonalisation_of_a_molecule(crowded):
    fit, unfit = crowded
    x = np.asarray(canonical_orthogonalisation(unfit))
    assert (np.abs(x).max(axis=0) > 0).tolist() == [False, False, True, True]
    np.testing.assert_allclose(x.T @ unfit @ x, np.diag([0, 0, 1, 1]), rtol=0, atol=1e-12)
    both = canonical_orthogonalisation(jnp.stack([unfit, jnp.eye(4)]), cut=1e-7)
    _close(both[0] @ both[0].T, x @ x.T)
    assert not (np.abs(canonical_orthogonalisation(fit, cut=10.0)) > 0).any()


def test_canonical_orthogonalisation_has_no_derivative(overlaps):
    s = jnp.asarray(overlaps["methane"])
    assert not np.asarray(jax.grad(lambda s: jnp.sum(canonical_orthogonalisation(s)))(s)).any()


# symmetry


TURNED = ["methane", "carbon_dioxide", "formamide"]


@pytest.fixture(scope="module")
def orthogonal(molecules):
    """``orthogonal(structure)``: T in Löwdin's basis; one program for the molecules of a bucket.

    V is turned in tests/features/test_recipes.py; T takes less time to compile.
    """
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    bucket = bucket_of([molecules[n] for n in TURNED], basis)

    @jax.jit
    def batched(s):
        T, S = operators.kinetic(s, basis), operators.overlap(s, basis, padding=1)
        return lowdin(T, S).to_dense()

    def of(structure):
        layout = layout_of(structure, basis)
        padded = batched(batch([structure], basis, bucket=bucket))
        return np.asarray(padded[0, : layout.nao, : layout.nao]), layout.shell_ls

    return of


@pytest.mark.parametrize("name", TURNED)
def test_lowdin_turns_with_the_molecule(molecules, rng, random_rotation, orthogonal, name):
    """Orthogonalised AOs transform as the AOs do, at equal eigenvalues as well."""
    s = molecules[name]
    plain, shells = orthogonal(s)
    for improper in (False, True):
        r = random_rotation(rng, improper)
        turn = scipy.linalg.block_diag(
            *(
                np.asarray(e3nn.Irrep(l, (-1) ** l).D_from_matrix(rotation_to_e3nn(r)))
                for l in shells
            )
        )
        turned, _ = orthogonal(s.replace(positions=s.positions @ r.T))
        _close(turned, turn @ plain @ turn.T, ROTATION)
