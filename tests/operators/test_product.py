"""Products, dense and over tiles, held against loops over atoms, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import ConventionError, OpmlError
from opml_jax.operators import Operator, commutator, identity, on_site_blocks, plan, powers, trace
from opml_jax.operators import product as kernels
from opml_jax.testing import reference_product

# A sum of tens of terms in another order, relative to the largest element of the result
ROUND_OFF = {np.dtype("float64"): 1e-12, np.dtype("float32"): 1e-5}
# Central differences of a polynomial of second degree: exact but for rounding over the step
FINITE_DIFFERENCE = 1e-9

# molecule, basis, cutoff in Bohr that drops some pairs, tile that makes several groups
CASES = {
    "water": ("def2-svp", 2.0, 14),
    "formamide": ("sto-3g", 3.0, 8),
    "hydrogen_cyanide": ("sto-3g", 3.0, 5),
    "three waters": ("sto-3g", 5.0, 8),
}
SMALL = "hydrogen_cyanide"  # three groups, and the tile of H and N is not stored
PAIRS = [("water", "unrestricted"), ("water", "dense"), *((name, "tiled") for name in CASES)]
# of derivatives, whose compilation is their time
FEW = [(SMALL, "unrestricted"), (SMALL, "dense"), ("water", "tiled"), ("three waters", "tiled")]
few_cases = pytest.mark.parametrize(("name", "kind"), FEW)
every_case = pytest.mark.parametrize(("name", "kind"), PAIRS)
three_kinds = pytest.mark.parametrize("kind", ["unrestricted", "dense", "tiled"])
both_storages = pytest.mark.parametrize("kind", ["dense", "tiled"])


def _slow_for(slow, cases):
    """Those of one molecule are slow."""
    return [pytest.param(*c, marks=pytest.mark.slow) if c[0] == slow else c for c in cases]


class Problem:
    """A molecule, a pattern in one storage, and random operators over it."""

    def __init__(self, structure, basis_name, cutoff, tile, kind, rng):
        basis = load_basis(basis_name, structure.numbers)
        self.structure, self.basis, self.layout = structure, basis, layout_of(structure, basis)
        self.plan = self.cutoff = None
        if kind != "unrestricted":
            tile = tile if kind == "tiled" else None
            self.plan = plan(structure, basis, cutoff, storage=kind, tile=tile)
            self.cutoff = cutoff
            assert 0 < self.plan.occupation < 1
        # a, b, and two tangents; what a pattern drops is there to be dropped
        self.a, self.b, self.da, self.db = rng.normal(size=(4, self.layout.nao, self.layout.nao))

    def operator(self, matrix, symmetric=False):
        return Operator(jnp.asarray(matrix), self.layout, symmetric=symmetric).restrict(self.plan)

    def reference(self, a, b, out="pattern"):
        return reference_product(a, b, self.layout, self.cutoff, self.structure.positions, out)


@pytest.fixture
def problem(name, kind, molecules, waters, rng):
    structure = waters(3) if name == "three waters" else molecules[name]
    return Problem(structure, *CASES[name], kind, rng)


@pytest.fixture
def small(kind, molecules, rng):
    return Problem(molecules[SMALL], *CASES[SMALL], kind, rng)


def _close(ours, theirs, tolerance=None):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    tolerance = ROUND_OFF[ours.dtype] if tolerance is None else tolerance
    scale = np.abs(theirs).max()
    assert scale > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def _symmetric(x):
    return x + x.T


def _upper_in_storage(matrix, p):
    """The elements on and above the diagonal, in the order of a plan."""
    if p is None or p.storage == "dense":
        return np.triu(matrix)
    order = p.place[:, 0] * p.tile + p.place[:, 1]
    return np.where(order[:, None] <= order[None, :], matrix, 0)


# values


@pytest.mark.parametrize(("name", "kind"), _slow_for("formamide", PAIRS))
def test_product_is_that_of_the_blocks(problem):
    A, B = problem.operator(problem.a), problem.operator(problem.b)
    AB = A @ B
    assert not AB.symmetric
    assert AB.plan is A.plan
    _close(AB.to_dense(), problem.reference(problem.a, problem.b))
    _close((A @ A).to_dense(), problem.reference(problem.a, problem.a))
    _close((A @ B.T).to_dense(), problem.reference(problem.a, problem.b.T))


@every_case
def test_square_of_a_symmetric_operator(problem):
    a, b = _symmetric(problem.a), _symmetric(problem.b)
    A, B = problem.operator(a, symmetric=True), problem.operator(b, symmetric=True)
    square = A @ A
    assert square.symmetric
    _close(square.to_dense(), problem.reference(a, a))
    _close(square.to_dense(), square.T.to_dense())
    assert not (A @ B).symmetric  # a product of two is not
    _close((A @ B).to_dense(), problem.reference(a, b))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("out", ["pattern", "full", "diagonal", "upper"])
@three_kinds
def test_parts_of_a_product(small, out, dtype):
    a, b = small.a.astype(dtype), small.b.astype(dtype)
    A, B = small.operator(a), small.operator(b)
    ours = A.multiply(B, out=out)
    if out == "diagonal":
        assert ours.shape == (3, small.basis.spec.n_slots, small.basis.spec.n_slots)
        _close(ours, on_site_blocks(A @ B))
    elif out == "full":
        assert ours.plan is None
        ours = ours.to_dense()
    else:
        assert ours.plan is A.plan
        ours = ours.to_dense()
    theirs = small.reference(a, b, out)
    if out == "upper":
        theirs = _upper_in_storage(small.reference(a, b), small.plan)
    if out == "upper" and small.plan is None:
        np.testing.assert_array_equal(theirs, small.reference(a, b, out))
    assert ours.dtype == dtype
    _close(ours, theirs)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["unrestricted", "dense"])
def test_on_site_blocks_of_large_products(small, monkeypatch, symmetric):
    """From a small product for each atom, as for a molecule of many more AOs."""
    matrix = _symmetric(small.a) if symmetric else small.a
    A = small.operator(matrix, symmetric=symmetric)
    for threshold in (0, 10**6):
        monkeypatch.setattr(kernels, "ON_SITE_FROM", threshold)
        ours = A.multiply(A, out="diagonal")
        _close(ours, small.reference(matrix, matrix, "diagonal"))
        x = (A.values,)
        slope = jax.jvp(lambda x: A.multiply(A._with(x, symmetric=False), out="diagonal"), x, x)[1]
        _close(slope, ours)


@three_kinds
def test_upper_triangle_is_half_of_a_square(small):
    A = small.operator(_symmetric(small.a), symmetric=True)
    upper = A.multiply(A, out="upper").to_dense()
    _close(upper + upper.T - jnp.diag(jnp.diag(upper)), (A @ A).to_dense())
    _close(
        A.multiply(A, out="full").to_dense(), small.reference(*[_symmetric(small.a)] * 2, "full")
    )


def test_tiled_is_dense(molecules):
    """The same pattern in both storages, for everything that can be asked of an operator."""
    dense, tiled = (
        Problem(molecules["formamide"], *CASES["formamide"], kind, np.random.default_rng(1))
        for kind in ("dense", "tiled")
    )
    a, b = dense.a, dense.b

    def everything(p):
        A, B = p.operator(a), p.operator(b)
        S, R = (p.operator(_symmetric(x), symmetric=True) for x in (a, b))
        return {
            "itself": A.to_dense(),
            "product": (A @ B).to_dense(),
            "square": (S @ S).to_dense(),
            "full": A.multiply(B, out="full").to_dense(),
            "diagonal": A.multiply(B, out="diagonal"),
            "transpose": A.T.to_dense(),
            "algebra": (2.0 * A - B / 3.0 + (-A) * 0.5).to_dense(),
            "symmetrised": A.symmetrised().to_dense(),
            "commutator": commutator(A, B).to_dense(),
            "commutator of symmetric": commutator(S, R).to_dense(),
            "trace": trace(A),
            "trace of product": trace(A, B),
            "identity": identity(A).to_dense(),
            "on-site": on_site_blocks(A),
        }

    ours = everything(tiled)
    for what, theirs in everything(dense).items():
        np.testing.assert_allclose(
            ours[what], theirs, rtol=0, atol=1e-12 * np.abs(theirs).max(), err_msg=what
        )


@three_kinds
def test_algebra_keeps_to_the_pattern(small, kept):
    mask = 1.0 if small.plan is None else kept(small.structure, small.layout, small.cutoff)
    a, b = small.a * mask, small.b * mask
    A, B = small.operator(small.a), small.operator(small.b)
    for ours, theirs in (
        (A, a),
        (A + B, a + b),
        (A - B, a - b),
        (2.5 * A, 2.5 * a),
        (A.T, a.T),
        (A.symmetrised(), (a + a.T) / 2),
        (commutator(A, B), (a @ b - b @ a) * mask),
        (identity(A), np.eye(len(a))),
    ):
        assert ours.plan is A.plan
        _close(ours.to_dense(), theirs)
    assert A.symmetrised().symmetric
    S, R = A.symmetrised(), B.symmetrised()
    s, r = (a + a.T) / 2, (b + b.T) / 2
    _close(commutator(S, R).to_dense(), (s @ r - r @ s) * mask)
    _close(trace(A), np.trace(a))
    _close(trace(A, B), np.trace(a @ b))


@three_kinds
def test_dense_and_back(small, kept):
    A = small.operator(small.a)
    free = A.restrict(None)
    assert free.plan is None
    mask = 1.0 if small.plan is None else kept(small.structure, small.layout, small.cutoff)
    np.testing.assert_array_equal(free.to_dense(), small.a * mask)
    again = free.restrict(small.plan)
    np.testing.assert_array_equal(again.values, A.values)
    np.testing.assert_array_equal(A.restrict(A.plan).values, A.values)
    assert A.storage == ("dense" if small.plan is None else small.plan.storage)
    narrow = A.restrict(2.0, small.structure)  # from any storage to that of another plan
    wanted = small.a * kept(small.structure, small.layout, 2.0)
    np.testing.assert_array_equal(narrow.to_dense(), wanted)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_restricted_powers_are_symmetric(molecules, k):
    """V^2 and V^4 as squares; V^3 is the symmetric part of the product of V^2 and V."""
    dense, tiled = (
        Problem(molecules["formamide"], *CASES["formamide"], kind, np.random.default_rng(2))
        for kind in ("dense", "tiled")
    )
    a = _symmetric(dense.a)
    ours, theirs = (powers(p.operator(a, symmetric=True), (k,))[0] for p in (tiled, dense))
    assert ours.symmetric
    assert theirs.symmetric
    _close(ours.to_dense(), theirs.to_dense())
    _close(ours.to_dense(), ours.to_dense().T)
    square = dense.reference(a, a)
    theirs = square if k == 2 else dense.reference(square, {3: a, 4: square}[k])
    _close(ours.to_dense(), (theirs + theirs.T) / 2)


def test_products_known_to_be_symmetric(molecules, rng):
    """With a cutoff beyond the molecule nothing is dropped, and powers of one operator commute."""
    s = molecules["formamide"]
    free = Problem(s, *CASES["formamide"], "unrestricted", rng)
    p = plan(s, free.basis, 100.0, storage="tiled", tile=8)
    assert p.occupation == 1.0
    a = _symmetric(free.a)
    for A in (free.operator(a, symmetric=True), free.operator(a, symmetric=True).restrict(p)):
        cube = A.multiply(A @ A, symmetric=True)
        assert cube.symmetric
        _close(cube.to_dense(), a @ a @ a)


# derivatives


def _derivatives(f, x, dx, weights):
    """Forward along ``dx``, and reverse in each argument."""
    return jax.jvp(f, x, dx)[1], *jax.vjp(f, *x)[1](weights)


@pytest.mark.parametrize(("name", "kind"), _slow_for(SMALL, FEW))
def test_first_derivatives_of_a_product(problem, rng):
    """Forward and reverse, in both operands, against those of the reference."""
    weights = rng.normal(size=problem.a.shape)

    def ours(a, b):
        return (problem.operator(a) @ problem.operator(b)).to_dense()

    x, dx = (problem.a, problem.b), (problem.da, problem.db)
    for mine, theirs in zip(
        *(_derivatives(f, x, dx, weights) for f in (ours, problem.reference)), strict=True
    ):
        _close(mine, theirs)


@few_cases
def test_first_derivatives_of_a_square(problem, rng):
    """Along symmetric directions: the derivative of a function of a symmetric matrix."""
    weights = rng.normal(size=problem.a.shape)
    a, da = _symmetric(problem.a), _symmetric(problem.da)

    def ours(a):
        A = problem.operator(a, symmetric=True)
        return (A @ A).to_dense()

    def theirs(a):
        return problem.reference(a, a)

    for mine, other in zip(
        *(_derivatives(f, (a,), (da,), weights) for f in (ours, theirs)), strict=True
    ):
        _close(_symmetric(mine), _symmetric(other))


@pytest.mark.parametrize("out", ["full", "diagonal", "upper"])
@three_kinds
def test_derivatives_of_parts_of_a_product(small, rng, out):
    def ours(a, b):
        part = small.operator(a).multiply(small.operator(b), out=out)
        return part if out == "diagonal" else part.to_dense()

    def theirs(a, b):
        if out != "upper":
            return small.reference(a, b, out)
        mask = _upper_in_storage(np.ones(small.a.shape), small.plan)
        return small.reference(a, b) * mask

    x, dx = (small.a, small.b), (small.da, small.db)
    weights = rng.normal(size=jax.eval_shape(ours, *x).shape)
    for mine, other in zip(*(_derivatives(f, x, dx, weights) for f in (ours, theirs)), strict=True):
        _close(mine, other)


def _quartic(multiply, square):
    """A function of fourth degree in a and second in b, made of both kinds of product."""

    def f(a, b):
        s = square(a)
        return jnp.sum(jnp.sin(multiply(s, b))) + jnp.sum(multiply(b, s) ** 2) / 100

    return f


@pytest.mark.parametrize("kind", [pytest.param("dense", marks=pytest.mark.slow), "tiled"])
def test_second_derivatives(small):
    """jvp of grad, and reverse over reverse, along symmetric directions of the squared operator."""
    a, b, da, db = _symmetric(small.a) / 5, small.b / 5, _symmetric(small.da), small.db

    def square(x):
        A = small.operator(x, symmetric=True)
        return (A @ A).to_dense()

    ours = _quartic(lambda x, y: (small.operator(x) @ small.operator(y)).to_dense(), square)
    theirs = _quartic(small.reference, lambda x: small.reference(x, x))

    def forward(f):
        gradient = jax.grad(f, argnums=(0, 1))
        first, second = jax.jvp(gradient, (a, b), (da, db))[1]
        return _symmetric(first), second

    for mine, other in zip(forward(jax.jit(ours)), forward(theirs), strict=True):
        _close(mine, other)

    def slope(a, b):
        g, h = jax.grad(ours, argnums=(0, 1))(a, b)
        return jnp.sum(g * da) + jnp.sum(h * db)

    first, second = jax.jit(jax.grad(slope, argnums=(0, 1)))(a, b)
    for mine, other in zip((_symmetric(first), second), forward(theirs), strict=True):
        _close(mine, other)


@three_kinds
def test_finite_differences(small):
    """Which share no code with any rule of differentiation."""
    a, da = _symmetric(small.a), _symmetric(small.da)

    def f(t):
        A = small.operator(a + t * da, symmetric=True)
        B = small.operator(small.b + t * small.db)
        return (A @ A + A @ B).to_dense()

    _, slope = jax.jvp(f, (0.0,), (1.0,))
    _close(slope, (f(0.5) - f(-0.5)) / 1.0, FINITE_DIFFERENCE)
    _, curvature = jax.jvp(lambda t: jax.jvp(f, (t,), (1.0,))[1], (0.3,), (1.0,))
    _close(curvature, (f(1.0) - 2 * f(0.0) + f(-1.0)) / 1.0, FINITE_DIFFERENCE)


# transformations


@pytest.mark.parametrize(
    "kind", ["unrestricted", "dense", pytest.param("tiled", marks=pytest.mark.slow)]
)
def test_vmap_over_values(small, rng):
    a = rng.normal(size=(3, *small.a.shape))
    b = rng.normal(size=(3, *small.a.shape))

    def f(a, b):
        A, S = small.operator(a), small.operator(a + a.T, symmetric=True)
        return (A @ small.operator(b) + S @ S).to_dense()

    def g(a, b):
        return jax.grad(lambda a, b: jnp.sum(f(a, b) ** 2))(a, b), f(a, b)

    one = jax.jit(g)
    alone = zip(*(one(*x) for x in zip(a, b, strict=True)), strict=True)
    for ours, theirs in zip(jax.jit(jax.vmap(g))(a, b), alone, strict=True):
        _close(ours, jnp.stack(theirs))
    for axes, x in (((0, None), (a, b[0])), ((None, 0), (a[0], b))):
        _close(jax.vmap(f, axes)(*x)[0], one(a[0], b[0])[1])


@pytest.mark.slow
def test_vmap_over_plans(molecules, rng):
    """Geometries of one trajectory at once: plans of one shape are stacked like any data."""
    s = molecules["formamide"]
    basis = load_basis("sto-3g", s.numbers)
    first = plan(s, basis, 3.0, storage="tiled", tile=8)
    steps = [s.replace(positions=s.positions * k) for k in (1.0, 1.01, 0.9)]
    plans = [first.update(x) for x in steps]
    assert len({int(np.sum(p.mask)) for p in plans}) > 1
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *plans)
    a = rng.normal(size=(3, first.layout.nao, first.layout.nao))

    def f(a, p):
        A = Operator(a, p.layout).restrict(p)
        return (A @ A.T).to_dense()

    def g(a, p):
        return f(a, p), jax.grad(lambda x: jnp.sum(f(x, p) ** 2))(a)

    together, one = jax.jit(jax.vmap(g))(a, stacked), jax.jit(g)
    alone = zip(*(one(*x) for x in zip(a, plans, strict=True)), strict=True)
    for ours, theirs in zip(together, alone, strict=True):
        _close(ours, jnp.stack(theirs))


@three_kinds
def test_jit_takes_operators(small):
    A, B = small.operator(small.a), small.operator(_symmetric(small.b), symmetric=True)
    f = jax.jit(lambda A, B: (A @ B - B @ B, trace(A, B)))
    ours, number = f(A, B)
    theirs, other = A @ B - B @ B, trace(A, B)
    assert ours.storage == theirs.storage
    _close(ours.to_dense(), theirs.to_dense())
    _close(number, other)


@three_kinds
def test_jit_closes_over_a_plan(small):
    """Plans are made outside; what is compiled may hold them as constants."""

    @jax.jit
    def f(a):
        A = small.operator(a)
        return trace(A), on_site_blocks(A), trace(A, A), A.multiply(A, out="diagonal")

    A = small.operator(small.a)
    expected = trace(A), on_site_blocks(A), trace(A, A), A.multiply(A, out="diagonal")
    for ours, theirs in zip(f(small.a), expected, strict=True):
        _close(ours, theirs)


@both_storages
def test_single_precision_stays_single(small):
    A = small.operator(_symmetric(small.a).astype(np.float32), symmetric=True)
    B = small.operator(small.b.astype(np.float32))
    for x in (A @ A, A @ B, commutator(A, A), 2.0 * A, A.T, identity(A), powers(A, (3,))[0]):
        assert x.values.dtype == np.float32
    a = _symmetric(small.a)
    _close((A @ A).to_dense(), small.reference(a, a).astype(np.float32))


# dense products by panels of the upper triangle


@pytest.mark.parametrize("nao", [511, 512, 515])
def test_large_products_are_computed_by_panels(rng, nao):
    """From 512 AOs on; a size that four panels do not divide, too."""
    a, b = rng.normal(size=(2, nao, nao))
    a = _symmetric(a)
    _close(kernels.multiply(a, a, None, square=True, symmetric=True), a @ a)
    _close(kernels.multiply(a, a @ a, None, square=False, symmetric=True), a @ a @ a)
    _close(kernels.multiply_upper(jnp.asarray(a), jnp.asarray(b), None), np.triu(a @ b))


@pytest.mark.parametrize("kind", ["unrestricted", "dense"])
def test_derivatives_by_panels(small, rng, monkeypatch, kind):
    """A low threshold sends a molecule of 11 AOs, which 4 does not divide, the same way."""
    a, da = _symmetric(small.a) / 5, _symmetric(small.da)
    weights = rng.normal(size=a.shape)

    def f(a):
        A = small.operator(a, symmetric=True)
        fourth = (A @ A).multiply(A @ A, symmetric=True)
        return jnp.sum(weights * (fourth + A.multiply(A, out="upper")).to_dense())

    def directional(f):
        gradient = jax.grad(f)
        return _symmetric(gradient(a)), _symmetric(jax.jvp(gradient, (a,), (da,))[1])

    plain, expected = f(a), directional(f)
    asked = []
    panels = kernels._upper
    monkeypatch.setattr(kernels, "_upper", lambda x, y: asked.append(1) or panels(x, y))
    monkeypatch.setattr(kernels, "PANELS_FROM", 8)
    _close(f(a), plain)
    assert asked
    for mine, other in zip(directional(f), expected, strict=True):
        _close(mine, other)


# batches


def test_diagonal_of_products_of_a_batch(molecules, rng, monkeypatch):
    """Restricted or not: the on-site blocks of the product, with the axis of molecules in front."""
    chosen = [molecules["water"], molecules["hydrogen_cyanide"]]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    padded = batch(chosen, basis)
    a, b = rng.normal(size=(2, 2, padded.layout.nao, padded.layout.nao))
    for pattern in (None, plan(padded, basis, 2.5)):
        A, B = (Operator(jnp.asarray(x), padded.layout).restrict(pattern) for x in (a, b))
        for threshold in (0, 10**6):
            monkeypatch.setattr(kernels, "ON_SITE_FROM", threshold)
            _close(A.multiply(B, out="diagonal"), on_site_blocks(A @ B))


def test_parts_of_products_of_a_batch(molecules, rng):
    chosen = [molecules["water"], molecules["hydrogen_cyanide"]]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    padded = batch(chosen, basis)
    a, b = rng.normal(size=(2, 2, padded.layout.nao, padded.layout.nao))
    p = plan(padded, basis, 2.5)
    A, B = (Operator(jnp.asarray(x), padded.layout).restrict(p) for x in (a, b))
    a, b = (x * p.mask for x in (a, b))
    _close(A.multiply(B, out="full").to_dense(), a @ b)
    _close(A.multiply(B, out="upper").to_dense(), np.triu(a @ b * p.mask))
    _close(trace(A, B), np.einsum("bij,bji->b", a, b))
    _close(commutator(A, B).to_dense(), (a @ b - b @ a) * p.mask)


# what does not go together


def _mixes(A, B):
    return [
        lambda: A + B,
        lambda: A - B,
        lambda: A @ B,
        lambda: trace(A, B),
        lambda: commutator(A, B),
        lambda: A.multiply(B, out="diagonal"),
    ]


def test_plans_do_not_mix(molecules, rng):
    s = molecules["formamide"]
    free = Problem(s, *CASES["formamide"], "unrestricted", rng).operator(np.eye(18))
    options = [(2.0, "dense", None), (3.0, "dense", None), (3.0, "tiled", 8), (3.0, "tiled", 5)]
    basis = load_basis("sto-3g", s.numbers)
    restricted = [free.restrict(plan(s, basis, c, storage=k, tile=t)) for c, k, t in options]
    for i, A in enumerate(restricted):
        for B in restricted[:i]:
            for mix in _mixes(A, B):
                with pytest.raises(ConventionError, match="restricted by one plan") as caught:
                    mix()
                assert repr(A.plan) in str(caught.value)
                assert repr(B.plan) in str(caught.value)
        for mix in (*_mixes(A, free), *_mixes(free, A)):
            with pytest.raises(ConventionError, match="an unrestricted operator") as caught:
                mix()
            assert repr(A.plan) in str(caught.value)


@both_storages
def test_plans_of_two_geometries_do_not_mix(small, kind):
    A = small.operator(small.a)
    stretched = small.structure.replace(positions=small.structure.positions * 1.5)
    B = Operator(jnp.asarray(small.b), small.layout).restrict(small.plan.update(stretched))
    with pytest.raises(ConventionError, match="restricted by one plan"):
        A @ B
    same = Operator(jnp.asarray(small.b), small.layout)
    again = small.plan.update(small.structure)  # another object, and the same pattern
    _close((A @ same.restrict(again)).to_dense(), small.reference(small.a, small.b))


@three_kinds
def test_layouts_do_not_mix(small, molecules, kind, rng):
    A = small.operator(small.a)
    other = Problem(molecules["formamide"], *CASES["formamide"], kind, rng)
    B = other.operator(other.a)
    for mix in _mixes(A, B):
        with pytest.raises(ConventionError, match="in one layout") as caught:
            mix()
        assert A.layout.hash in str(caught.value)
        assert B.layout.hash in str(caught.value)


@three_kinds
def test_unknown_parts_are_refused(small):
    A = small.operator(small.a)
    with pytest.raises(OpmlError, match=r"out must be one of .*'diagonl'.*'diagonal'\?"):
        A.multiply(A, out="diagonl")
    with pytest.raises(OpmlError, match="out must be one of"):
        small.reference(small.a, small.a, "diagonl")


def test_a_cutoff_needs_a_molecule(molecules, rng):
    small = Problem(molecules["formamide"], *CASES["formamide"], "unrestricted", rng)
    with pytest.raises(OpmlError, match=r"structure must be .* when a cutoff is given; got None"):
        small.operator(small.a).restrict(3.0)
    with pytest.raises(OpmlError, match="positions must be given with a cutoff"):
        reference_product(small.a, small.a, small.layout, cutoff=3.0)
