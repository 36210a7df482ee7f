import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax import integrals, operators
from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import ConventionError, OpmlError
from opml_jax.operators import Operator, blocks, from_blocks, pair_blocks, power, powers, trace

# A product of n x n matrices in another order of summation: n * 1e-16 of the largest element
ROUND_OFF = 1e-13
# Central differences of a polynomial of degree 4 in double precision
FINITE_DIFFERENCE = 1e-8


def _close(ours, theirs, tolerance=ROUND_OFF):
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


@pytest.fixture(scope="module")
def layout(water):
    return layout_of(water, load_basis("def2-svp", water.numbers))


@pytest.fixture
def pair(layout, rng):
    a, b = rng.normal(size=(2, layout.nao, layout.nao))
    return a, b, Operator.from_dense(a, layout), Operator.from_dense(b, layout)


def test_algebra_is_that_of_matrices(pair):
    a, b, A, B = pair
    _close((A + B).to_dense(), a + b)
    _close((A - B).to_dense(), a - b)
    _close((-A).to_dense(), -a)
    _close((A @ B).to_dense(), a @ b)
    _close(A.T.to_dense(), a.T)
    _close(((A @ B).T).to_dense(), (B.T @ A.T).to_dense())
    _close((2.5 * A - A @ (B + A) / 3).to_dense(), 2.5 * a - a @ (b + a) / 3)
    assert A.nao == len(a)
    assert "nao=24" in repr(A)
    assert repr(A).startswith("Operator(shape=(24, 24)")


@pytest.mark.parametrize(
    "two", [2, 2.0, np.float64(2), np.array(2.0), jnp.float64(2)], ids=lambda x: type(x).__name__
)
def test_any_scalar_scales(pair, two):
    a, _, A, _ = pair
    for scaled, expected in ((two * A, 2 * a), (A * two, 2 * a), (A / two, a / 2)):
        assert isinstance(scaled, Operator)
        _close(scaled.to_dense(), expected)


WRONG = {
    "A + 1": lambda A, x: A + 1.0,
    "1 - A": lambda A, x: 1.0 - A,
    "A + array": lambda A, x: A + x,
    "array + A": lambda A, x: x + A,
    "A * A": lambda A, x: A * A,
    "A * array": lambda A, x: A * x,
    "array * A": lambda A, x: x * A,
    "A @ array": lambda A, x: A @ x,
    "array @ A": lambda A, x: x @ A,
    "A @ 2": lambda A, x: A @ 2.0,
    "1 / A": lambda A, x: 1.0 / A,
    "A / A": lambda A, x: A / A,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_no_algebra_is_refused(pair, wrong):
    """In particular a bare array, which has no layout to agree with."""
    a, _, A, _ = pair
    with pytest.raises(TypeError):
        wrong(A, a)


def test_mixing_layouts_names_both(pair, water, molecules):
    _, _, A, _ = pair
    small = layout_of(water, load_basis("sto-3g", water.numbers))
    sulfide = molecules["hydrogen_sulfide"]
    other = layout_of(sulfide, load_basis("def2-svp", sulfide.numbers))
    for layout in (small, other):
        B = Operator(jnp.eye(layout.nao), layout)
        for mix in (lambda: A + B, lambda: A - B, lambda: A @ B, lambda: trace(A, B)):  # noqa: B023
            with pytest.raises(ConventionError) as caught:
                mix()
            assert A.layout.hash in str(caught.value)
            assert layout.hash in str(caught.value)


def test_matrix_must_fit_the_layout(layout):
    for shape in ((23, 23), (24, 23), (24,)):
        with pytest.raises(ConventionError, match=r"matrix must be \(\.\.\., 24, 24\)"):
            Operator(jnp.zeros(shape), layout)


def test_powers(pair):
    a, _, A, _ = pair
    a, A = a / 10, A / 10
    expected = {k: np.linalg.matrix_power(a, k) for k in (1, 2, 3, 4, 7)}
    for k, ours in zip((3, 1, 7, 3), powers(A, (3, 1, 7, 3)), strict=True):
        _close(ours.to_dense(), expected[k])
    for k, theirs in expected.items():
        _close(power(A, k).to_dense(), theirs)


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_powers_must_be_positive_integers(pair, bad):
    A = pair[2]
    with pytest.raises(OpmlError, match="positive integer"):
        powers(A, (1, bad))
    with pytest.raises(OpmlError, match="positive integer"):
        power(A, bad)
    with pytest.raises(OpmlError, match="positive integers"):
        powers(A, ())


def test_trace(pair):
    a, b, A, B = pair
    _close(trace(A), np.trace(a))
    _close(trace(A, B), np.trace(a @ b))
    _close(trace(A, B), trace(A @ B))


def test_blocks_and_back(pair, layout):
    a, _, A, _ = pair
    parts = blocks(A)
    shells = [len(ls) for ls in layout.atom_ls]
    assert len(parts) == sum(shells) ** 2
    # the p shells of oxygen are its 4th and 5th, the p shell of hydrogen its 3rd
    np.testing.assert_array_equal(parts[0, 1, 4, 2], a[6:9, 16:19])
    np.testing.assert_array_equal(from_blocks(parts, layout).to_dense(), a)
    one = from_blocks({(0, 1, 4, 2): parts[0, 1, 4, 2]}, layout).to_dense()
    assert np.count_nonzero(one) == 9


def test_blocks_of_a_batch_are_refused(water):
    basis = load_basis("sto-3g", water.numbers)
    with pytest.raises(ConventionError, match="one molecule; got the operator of a batch"):
        blocks(operators.overlap(batch([water], basis), basis))


def test_blocks_in_slots(pair, layout):
    a, _, A, _ = pair
    n, width = layout.slots.shape
    every = np.indices((n, n)).reshape(2, -1).T
    cut = np.asarray(pair_blocks(A, every)).reshape(n, n, width, width).swapaxes(1, 2)
    assert cut.shape == (n, width, n, width)
    np.testing.assert_array_equal(cut[0, :, 0, :], a[:14, :14])  # oxygen fills every slot
    real = layout.slots < layout.nao
    assert not cut[~real].any()
    assert not cut[:, :, ~real].any()
    assert np.abs(cut).sum() == pytest.approx(np.abs(a).sum())


def test_is_a_pytree(pair):
    a, _, A, _ = pair
    leaves, tree = jax.tree.flatten(A)
    assert len(leaves) == 1
    assert jax.tree.unflatten(tree, leaves).layout == A.layout
    doubled = jax.tree.map(lambda x: 2 * x, A)
    _close(doubled.to_dense(), 2 * a)


def test_passes_through_jit_without_retracing(pair):
    a, b, A, B = pair

    @jax.jit
    @chex.assert_max_traces(1)
    def f(x, y):
        return x @ y - 0.5 * x.T

    _close(f(A, B).to_dense(), a @ b - 0.5 * a.T)
    _close(f(B, A).to_dense(), b @ a - 0.5 * b.T)
    assert f(A, B).layout == A.layout


def test_passes_through_vmap(pair, layout):
    a, b, *_ = pair
    stack = Operator(jnp.stack([a, b]), layout)
    mapped = jax.vmap(lambda x: x @ x + 2.0 * x)(stack)
    for ours, m in zip(mapped.to_dense(), (a, b), strict=True):
        _close(ours, m @ m + 2 * m)
    _close(jax.vmap(trace)(stack), [np.trace(a), np.trace(b)])


def test_passes_through_grad(pair):
    a, b, A, B = pair
    gradient = jax.grad(lambda x: trace(x @ x, B))(A)
    assert isinstance(gradient, Operator)
    _close(gradient.to_dense(), (a @ b + b @ a).T)


@pytest.mark.slow
def test_gradient_in_positions(water):
    basis = load_basis("sto-3g", water.numbers)

    def f(x):
        v = operators.external_potential(water.replace(positions=x), basis)
        return trace(v @ v @ v, v) / 1e4

    gradient = jax.jit(jax.grad(f))(water.positions)
    f, h = jax.jit(f), 1e-4
    for atom, axis in ((0, 2), (1, 0), (2, 1)):
        step = np.zeros((3, 3))
        step[atom, axis] = h
        x = water.positions
        far, near = f(x + 2 * step) - f(x - 2 * step), f(x + step) - f(x - step)
        _close(gradient[atom, axis], (8 * near - far) / (12 * h), FINITE_DIFFERENCE)


@pytest.mark.parametrize("name", ["overlap", "kinetic", "external_potential", "screened_potential"])
def test_builders_are_the_integrals(water, name):
    basis = load_basis("sto-3g", water.numbers)
    built = getattr(operators, name)(water, basis)
    np.testing.assert_array_equal(built.to_dense(), getattr(integrals, name)(water, basis))
    assert built.layout == layout_of(water, basis)


def test_builders_pass_options_on(water):
    basis = load_basis("sto-3g", water.numbers)
    built = operators.external_potential(water, basis, charges=np.zeros(3), field=np.ones(3))
    _close(built.to_dense(), integrals.position(water, basis).sum(axis=0))


def test_operators_of_a_batch(molecules, rng):
    chosen = [molecules["water"], molecules["hydrogen_cyanide"]]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    padded = batch(chosen, basis)
    m = rng.normal(size=(2, padded.layout.nao, padded.layout.nao))
    A = Operator(jnp.asarray(m), padded.layout)
    _close((A @ A.T + A).to_dense(), m @ m.transpose(0, 2, 1) + m)
    _close(trace(A, A), np.einsum("bij,bji->b", m, m))
    factors = np.array([2.0, -1.0])
    for scaled in (A * factors, factors * A, A * jnp.asarray(factors), jnp.asarray(factors) * A):
        assert isinstance(scaled, Operator)
        _close(scaled.to_dense(), factors[:, None, None] * m)
    V = operators.external_potential(padded, basis)
    jitted = jax.jit(lambda x: x @ x)(V)
    for b, s in enumerate(chosen):
        v = np.asarray(integrals.external_potential(s, basis))
        nao = len(v)
        _close(jitted.to_dense()[b, :nao, :nao], v @ v)
        assert not np.asarray(jitted.to_dense()[b, nao:]).any()
    other = operators.overlap(batch(chosen, basis, nao=24), basis)
    with pytest.raises(ConventionError, match=r"nao=16.*nao=24"):
        V + other
    with pytest.raises(ConventionError):
        V + operators.overlap(chosen[0], basis)


def test_batches_of_different_molecules_do_not_mix(molecules):
    """Same bucket, same basis, but row i of one is another orbital than row i of the other."""
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    A = operators.overlap(batch([molecules["water"]], basis, nao=16), basis)
    B = operators.overlap(batch([molecules["hydrogen_cyanide"]], basis, nao=16), basis)
    with pytest.raises(ConventionError, match=r"operands of \+"):
        A + B
