"""Potentials of Gaussian pairs and their transpose: two primitives and every rule they have."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax.integrals import hermite
from opml_jax.integrals.harmonics import solid_harmonics

# Sums of a few dozen products in double precision, in another order.
ROUND_OFF = 1e-13
# The reference differentiates erf(r) / r up to five times: each order divides by r and subtracts
# nearly equal numbers, and r is 1 or more.
AUTODIFF = 1e-10
# Fourth-order central differences. Components depend on the variance as v^-n, n up to 8 and v down
# to 0.2, so that the truncation h^4 f^(5) / 30 needs a step of 2e-4 to be 1e-9 of the derivative;
# round-off is 1e-16 / h = 1e-12 of the function.
STEP = 2e-4
FINITE_DIFFERENCE = 1e-8

N_CHARGES, K, B, N_PAIRS = 3, 2, 2, 4
# A derivative calls orders one or two higher, so that those of 0 and 2 cross the switch.
BELOW, ABOVE = 2, hermite._STACKED_FROM
FUNCTIONS = {"potential": hermite.potential, "moments": hermite.moments}
KINDS = list(itertools.product(FUNCTIONS, [False, True]))
QUICK = [("potential", False), ("moments", True)]


def _every_kind(quick, long):
    """The plainest and the richest function by default, all four and more orders when slow."""
    rows = [(*kind, quick, () if kind in QUICK else pytest.mark.slow) for kind in KINDS]
    rows += [(*kind, order, pytest.mark.slow) for order in long for kind in KINDS]
    return pytest.mark.parametrize(
        ("name", "dipole", "order"),
        [
            pytest.param(n, d, o, marks=m, id=f"{n}-{'dipole' if d else 'charge'}-{o}")
            for n, d, o, m in rows
        ],
    )


NAMES = ("first", "centres", "spreads", "pairs", "variances")


def _arguments(rng, name, dipole, order):
    """First argument of the function, then charges and pairs 1 Bohr and more apart."""
    source = (N_CHARGES, 3 if dipole else 1, K, B)
    first = source if name == "potential" else (hermite.n_rows(order), K, B, N_PAIRS)
    return (
        rng.normal(size=first),
        rng.uniform(-1.0, 1.0, size=(N_CHARGES, 3, B)),
        rng.uniform(0.0, 0.5, size=(N_CHARGES, B)),
        rng.uniform(-1.0, 1.0, size=(3, B, N_PAIRS)),
        rng.uniform(0.2, 0.8, size=(B, N_PAIRS)),
    )


def _function(name, dipole, order):
    return functools.partial(FUNCTIONS[name], order=order, dipole=dipole)


def _close(ours, theirs, tolerance):
    """Relative to the largest element: components of high degree reach a hundred."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    scale = max(np.abs(theirs).max(), 1.0)
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=tolerance)


# --- values --------------------------------------------------------------------------------------


class _Polynomial(dict):
    """``{(i, j, k): c}``: c x^i y^j z^k, enough arithmetic to write solid harmonics with it."""

    def _linear(self, other, sign):
        other = other if isinstance(other, _Polynomial) else _Polynomial({(0, 0, 0): other})
        return _Polynomial(
            {p: self.get(p, 0.0) + sign * other.get(p, 0.0) for p in {*self, *other}}
        )

    def __add__(self, other):
        return self._linear(other, 1)

    def __sub__(self, other):
        return self._linear(other, -1)

    def __mul__(self, other):
        if not isinstance(other, _Polynomial):
            return _Polynomial({p: c * other for p, c in self.items()})
        out = _Polynomial()
        for (p, a), (q, b) in itertools.product(self.items(), other.items()):
            key = tuple(x + y for x, y in zip(p, q, strict=True))
            out[key] = out.get(key, 0.0) + a * b
        return out

    __radd__, __rmul__ = __add__, __mul__


def _operators(order):
    """The polynomials S_lm(x, y, z) (x^2 + y^2 + z^2)^k, in the order of the rows."""
    x, y, z = (_Polynomial({p: 1.0}) for p in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    square = x * x + y * y + z * z
    harmonics = solid_harmonics(order, x, y, z)
    for l, k in hermite.components(order):
        for s in harmonics[l]:
            yield functools.reduce(lambda p, _: p * square, range(k), s)


def _differentiated(f, order):
    """``{(i, j, k): d^i/dx^i d^j/dy^j d^k/dz^k f}`` up to an order, as a function of the point."""

    def all_orders(r):
        tensors, g = [], f
        for _ in range(order + 1):
            tensors.append(g(r))
            g = jax.jacfwd(g)
        return tensors

    def table(r):
        tensors = all_orders(r)
        out = {}
        for n, t in enumerate(tensors):
            for axes in itertools.combinations_with_replacement(range(3), n):
                out[tuple(axes.count(a) for a in range(3))] = t[..., *axes] if n else t
        return out

    return table


@pytest.mark.parametrize("dipole", [False, True], ids=["charge", "dipole"])
@pytest.mark.parametrize("order", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_components_are_derivatives_of_the_summed_potential(rng, order, dipole):
    """A dipole d at C is the potential of d . grad_P, one derivative more."""
    assert (order < hermite._STACKED_FROM) == (order == 3)  # both ways of building are run
    sources = rng.normal(size=(2, 3 if dipole else 1))
    centres = np.array([[0.2, -0.4, 0.1], [-0.9, 0.3, 0.7]])
    spreads, variance = np.array([0.0, 0.35]), 0.45
    point = np.array([1.1, 0.9, -1.3])

    def summed(p):
        r = jnp.sqrt(jnp.sum((p - centres) ** 2, axis=1))
        v = variance + spreads
        return jax.scipy.special.erf(r / jnp.sqrt(2 * v)) / r

    def field(p):
        if dipole:
            return (jax.jacfwd(summed)(p) * sources).sum()
        return (summed(p) * sources[:, 0]).sum()

    table = jax.jit(_differentiated(field, order))(point)
    expected = [
        sum(c * table[p] for p, c in operator.items() if c) for operator in _operators(order)
    ]
    ours = hermite.potential(
        sources[..., None, None],
        centres[..., None],
        spreads[:, None],
        point[:, None, None],
        np.full((1, 1), variance),
        order=order,
        dipole=dipole,
    )
    assert ours.shape == (hermite.n_rows(order), 1, 1, 1)
    _close(ours[:, 0, 0, 0], expected, AUTODIFF)
    assert np.abs(ours[-3:]).min() > 1e-6  # the highest Laplacians are there


@pytest.mark.parametrize("dipole", [False, True], ids=["charge", "dipole"])
@pytest.mark.parametrize(
    "order", [0, 1, BELOW, ABOVE, pytest.param(ABOVE + 3, marks=pytest.mark.slow)]
)
def test_the_two_maps_are_transposes_of_each_other(rng, order, dipole):
    sources, *rest = _arguments(rng, "potential", dipole, order)
    weights = rng.normal(size=(hermite.n_rows(order), K, B, N_PAIRS))
    out = _function("potential", dipole, order)(sources, *rest)
    back = _function("moments", dipole, order)(weights, *rest)
    assert back.shape == sources.shape
    # As matrices: the sum over everything would hide a row that is small.
    for k, b in itertools.product(range(K), range(B)):
        size = np.abs(weights[:, k, b] * out[:, k, b]).sum()
        ours = (weights[:, k, b] * out[:, k, b]).sum()
        assert float(abs(ours - (sources[..., k, b] * back[..., k, b]).sum()) / size) < ROUND_OFF


def test_lower_orders_are_the_first_rows(rng):
    arguments = _arguments(rng, "potential", False, 0)
    full = hermite.potential(*arguments, order=ABOVE + 2)
    for order in range(ABOVE + 2):
        part = hermite.potential(*arguments, order=order)
        _close(full[: hermite.n_rows(order)], part, ROUND_OFF)


# --- derivatives ---------------------------------------------------------------------------------


def _directions(rng, arguments):
    """One direction moves each argument alone, the last one everything: stacked."""
    moves = [rng.normal(size=np.shape(a)) for a in arguments]
    n = len(arguments)
    rows = [np.stack([m * (k in (i, n)) for k in range(n + 1)]) for i, m in enumerate(moves)]
    return tuple(rows), tuple(moves)


def _along(arguments, direction, t):
    return tuple(a + t * d for a, d in zip(arguments, direction, strict=True))


def _row(tree, k):
    return tuple(x[k] for x in tree)


@pytest.mark.slow
@_every_kind(BELOW, [ABOVE])
def test_first_derivatives_in_every_argument(rng, differences, name, dipole, order):
    f, x = _function(name, dipole, order), _arguments(rng, name, dipole, order)
    rows, _ = _directions(rng, x)
    forward = jax.jit(jax.vmap(lambda d: jax.jvp(f, x, d)[1]))(rows)
    weights = rng.normal(size=forward.shape[1:])
    backward = jax.jit(lambda *a: jax.vjp(f, *a)[1](weights))(*x)
    g = jax.jit(f)
    for k, what in enumerate((*NAMES, "all")):
        d = _row(rows, k)
        finite = differences(lambda t, d=d: np.asarray(g(*_along(x, d, t))), STEP)
        assert np.abs(finite).max() > 1e-3, what
        _close(forward[k], finite, FINITE_DIFFERENCE)
        pulled = sum((b * m).sum() for b, m in zip(backward, d, strict=True))
        _close(pulled, (weights * forward[k]).sum(), 1e2 * ROUND_OFF)  # a thousand terms


@pytest.mark.slow
@_every_kind(0, [BELOW, ABOVE])
def test_second_derivatives_in_every_argument(rng, differences, name, dipole, order):
    """All four ways to nest forward and reverse, each argument against everything."""
    f, x = _function(name, dipole, order), _arguments(rng, name, dipole, order)
    rows, moves = _directions(rng, x)
    w = rng.normal(size=jax.eval_shape(f, *x).shape)

    def pushed(a, d):  # one number: <w, df>
        return (w * jax.jvp(f, a, d)[1]).sum()

    def pulled(a, d):  # the same number through the transpose
        return sum((g * m).sum() for g, m in zip(jax.vjp(f, *a)[1](w), d, strict=True))

    def jvp_of(g):
        return jax.vmap(lambda d: jax.jvp(lambda a: g(a, d), (x,), (moves,))[1])

    def vjp_of(g):
        def one(d):
            slopes = jax.grad(g)(x, d)
            return sum((s * m).sum() for s, m in zip(slopes, moves, strict=True))

        return jax.vmap(one)

    # Not jitted: the primitives compile once each, and all these derivatives share them.
    ways = [way(g) for way in (jvp_of, vjp_of) for g in (pushed, pulled)]
    numbers = [way(rows) for way in ways]
    slope = jax.vmap(pushed, in_axes=(None, 0))
    finite = differences(lambda t: np.asarray(slope(_along(x, moves, t), rows)), STEP)
    scale = np.maximum(np.abs(finite), 1.0)
    assert np.abs(finite).min() > 1e-3
    for ours in numbers:
        np.testing.assert_allclose(ours / scale, finite / scale, rtol=0, atol=FINITE_DIFFERENCE)
        np.testing.assert_allclose(ours / scale, numbers[0] / scale, rtol=0, atol=1e2 * ROUND_OFF)


@pytest.mark.parametrize(("name", "dipole"), KINDS)
def test_what_is_constant_costs_no_term(rng, name, dipole):
    """Moving one argument and holding the others is the same as moving them by zero."""
    f, x = _function(name, dipole, 0), _arguments(rng, name, dipole, 0)
    rows, _ = _directions(rng, x)
    for k in range(len(x)):

        def only(own, k=k):
            return f(*x[:k], own, *x[k + 1 :])

        _, alone = jax.jvp(only, (x[k],), (rows[k][k],))
        _, zeros = jax.jvp(f, x, _row(rows, k))
        _close(alone, zeros, ROUND_OFF)
        w = np.ones(alone.shape)
        (pulled,) = jax.vjp(only, x[k])[1](w)
        _close((pulled * rows[k][k]).sum(), alone.sum(), 1e2 * ROUND_OFF)


# --- transformations -----------------------------------------------------------------------------


@pytest.mark.parametrize("dipole", [False, True], ids=["charge", "dipole"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_mapping_any_subset_of_arguments_is_a_loop(rng, name, dipole):
    f = _function(name, dipole, 1)
    x = _arguments(rng, name, dipole, 1)
    where = [int(rng.integers(a.ndim + 1)) for a in x]
    two = [np.stack([a, 0.9 * a + 0.05], axis=w) for a, w in zip(x, where, strict=True)]
    subsets = [s for s in itertools.product([False, True], repeat=5) if any(s)]
    for chosen in subsets:
        axes = tuple(w if c else None for w, c in zip(where, chosen, strict=True))
        given = [t if c else a for t, a, c in zip(two, x, chosen, strict=True)]
        mapped = jax.vmap(f, in_axes=axes)(*given)
        for k in range(2):
            alone = [
                np.take(t, k, w) if c else a
                for t, a, w, c in zip(two, x, where, chosen, strict=True)
            ]
            _close(mapped[k], f(*alone), ROUND_OFF)


def test_mapping_twice_over_the_stacked_form_is_a_loop(rng):
    f = _function("potential", True, ABOVE)
    x = _arguments(rng, "potential", True, ABOVE)
    pairs = np.stack([x[3], x[3] + 0.1, x[3] - 0.2])
    charges = np.stack([x[0], 2 * x[0]])
    mapped = jax.vmap(
        jax.vmap(f, in_axes=(None, None, None, 0, None)), in_axes=(0, None, None, None, None)
    )(charges, *x[1:3], pairs, x[4])
    for i, j in itertools.product(range(2), range(3)):
        _close(mapped[i, j], f(charges[i], *x[1:3], pairs[j], x[4]), ROUND_OFF)


def test_the_derivative_of_a_map_is_the_map_of_derivatives(rng):
    f, x = _function("moments", False, BELOW), _arguments(rng, "moments", False, BELOW)
    pairs = np.stack([x[3], x[3] + 0.1])

    def total(p):
        return (f(*x[:3], p, x[4]) ** 2).sum()

    mapped = jax.grad(lambda p: jax.vmap(total)(p).sum())(pairs)
    for k in range(2):
        _close(mapped[k], jax.grad(total)(pairs[k]), 1e2 * ROUND_OFF)


# --- coincidence ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dipole", "order"),
    [
        (False, 1),
        pytest.param(True, 1, marks=pytest.mark.slow),
        pytest.param(False, BELOW, marks=pytest.mark.slow),
        pytest.param(True, ABOVE, marks=pytest.mark.slow),
    ],
)
def test_a_pair_on_top_of_a_charge_has_a_value_and_derivatives(rng, differences, order, dipole):
    """Pairs of one atom are centred on its nucleus: r = 0 is the usual case, not a corner."""
    f = _function("potential", dipole, order)
    x = list(_arguments(rng, "potential", dipole, order))
    x[2][0] = 0.0  # a point
    x[3][:, :, 0] = x[1][0]
    x = tuple(x)
    rows, moves = _directions(rng, x)
    g = jax.jit(f)
    forward = jax.jit(jax.vmap(lambda d: jax.jvp(f, x, d)[1]))(rows)
    for k in range(len(x) + 1):
        d = _row(rows, k)
        finite = differences(lambda t, d=d: np.asarray(g(*_along(x, d, t))), STEP)
        _close(forward[k], finite, FINITE_DIFFERENCE)

    def slope(a):
        return jax.jvp(f, a, moves)[1].sum()

    bend = jax.jit(lambda a: jax.grad(slope)(a))(x)
    ours = sum((b * m).sum() for b, m in zip(bend, moves, strict=True))
    finite = differences(lambda t: np.asarray(jax.jit(slope)(_along(x, moves, t))), STEP)
    _close(ours, finite, FINITE_DIFFERENCE)


def test_single_precision_stays_single(rng):
    for (name, dipole), order in itertools.product(KINDS, (BELOW, ABOVE)):
        x = tuple(a.astype(np.float32) for a in _arguments(rng, name, dipole, order))
        f = _function(name, dipole, order)
        _, tangent = jax.eval_shape(lambda *a, f=f: jax.jvp(f, a, a), *x)
        assert tangent.dtype == np.float32
        every = jax.eval_shape(jax.grad(lambda *a, f=f: f(*a).sum(), range(5)), *x)
        assert {g.dtype for g in every} == {np.dtype(np.float32)}
