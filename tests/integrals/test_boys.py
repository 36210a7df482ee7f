"""The Boys function against its exact series, and the radial derivatives built on it."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from opml_jax.integrals.boys import boys, radial_top

HIGHEST = 16
# What the docstring promises. 1e-13 is 450 units in the last place of float64, 7e-7 is 6 of
# float32: a table entry, a short series and up to 22 steps of a recursion without cancellation.
DOUBLE = 1e-13
SINGLE = 7e-7
# Fourth-order central differences with step 1/64: h^4 F^(5) / 30 is 2e-9 for these functions, whose
# derivatives are all below 1; round-off is 1e-16 / h.
FINITE_DIFFERENCE = 1e-8
# The reference itself: nested derivatives of erf(x) / x in double precision. Each order divides by
# r and subtracts nearly equal numbers; ten digits are left of the fourth at r = 0.7 and beyond.
AUTODIFF = 1e-9


def _exact(highest: int, t: float) -> list[decimal.Decimal]:
    """F_0 ... F_highest by the ascending series at 60 digits, which has positive terms only.

    Beyond T = 150 the complete gamma function: what that leaves out is below exp(-T) T^16 = 1e-30.
    """
    with decimal.localcontext() as context:
        context.prec = 60
        t = decimal.Decimal(float(t))
        if t > 150:
            pi = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494")
            out = [(pi / t).sqrt() / 2]
            for m in range(highest):
                out.append(out[-1] * (2 * m + 1) / (2 * t))
            return out
        term = total = decimal.Decimal(1) / (2 * highest + 1)
        k = 0
        while term > total * decimal.Decimal("1e-40"):
            k += 1
            term = term * 2 * t / (2 * highest + 2 * k + 1)
            total += term
        decay = (-t).exp()
        out = [decay * total]
        for m in range(highest, 0, -1):  # adds positive numbers: loses nothing
            out.append((2 * t * out[-1] + decay) / (2 * m - 1))
        return out[::-1]


def _arguments() -> np.ndarray:
    """T from 0 to 1e6: dense where the table is, and around every switch and grid point."""
    switches = [36 + 2 * m for m in range(HIGHEST + 2)]
    beside = [np.nextafter(t, side) for t in switches for side in (0.0, 1e9)]
    halves = (np.arange(8) + 0.5) / 16  # where the series is longest
    return np.unique(
        np.concatenate(
            [
                [0.0, 5e-324, 1e-300, 1e-30, 1e-16, 1e-8, 1e-4],
                np.linspace(0.0, 75.0, 1501),
                np.geomspace(1e-6, 1e6, 400),
                halves,
                np.nextafter(halves, 0.0),
                switches,
                beside,
            ]
        )
    )


@pytest.fixture(scope="module")
def exact():
    """Arguments ``(n,)`` and exact values ``(17, n)`` as decimals."""
    t = _arguments()
    return t, np.array([_exact(HIGHEST, x) for x in t], dtype=object).T


@pytest.mark.parametrize("order", range(HIGHEST + 1))
def test_every_order_has_the_accuracy_it_promises(exact, order):
    t, values = exact
    values = values[: order + 1].astype(np.float64)
    ours = np.asarray(jax.jit(boys, static_argnums=0)(order, t))
    assert ours.shape == (order + 1, len(t))
    np.testing.assert_allclose(ours, values, rtol=DOUBLE, atol=0)


@pytest.mark.parametrize("order", [0, 3, 9, 16])
def test_single_precision_has_the_accuracy_it_promises(exact, order):
    t, _ = exact
    t = np.unique(t.astype(np.float32))
    values = np.array([_exact(order, x) for x in t], dtype=object).T.astype(np.float64)
    ours = jax.jit(boys, static_argnums=0)(order, t)
    assert ours.dtype == np.float32
    normal = values > np.finfo(np.float32).tiny
    assert normal.mean() > 0.8  # F_16(1e6) is 1e-89 and cannot be held
    np.testing.assert_allclose(np.asarray(ours)[normal], values[normal], rtol=SINGLE, atol=0)
    assert np.isfinite(ours).all()
    assert (np.asarray(ours)[~normal] <= np.finfo(np.float32).tiny).all()


def test_derivatives_at_the_origin_are_the_known_fractions():
    m = np.arange(9)
    first = jax.jacfwd(lambda t: boys(8, t))(0.0)
    second = jax.jacfwd(jax.jacrev(lambda t: boys(8, t)))(0.0)
    third = jax.jacrev(jax.jacfwd(jax.jacfwd(lambda t: boys(8, t))))(0.0)
    np.testing.assert_allclose(first, -1 / (2 * m + 3), rtol=DOUBLE)
    np.testing.assert_allclose(second, 1 / (2 * m + 5), rtol=DOUBLE)
    np.testing.assert_allclose(third, -1 / (2 * m + 7), rtol=DOUBLE)


@pytest.mark.parametrize("t", [0.3, 7.96875, 36.0, 43.9, 51.0, 400.0])
def test_derivatives_agree_with_differences_of_exact_values(t):
    h = decimal.Decimal(1) / 64

    def value(step):
        return np.array(_exact(4, float(decimal.Decimal(t) + step * h)), dtype=object)

    near, far = value(1) - value(-1), value(2) - value(-2)
    slope = ((8 * near - far) / (12 * h)).astype(np.float64)
    np.testing.assert_allclose(
        jax.jacrev(lambda x: boys(4, x))(t), slope, rtol=0, atol=FINITE_DIFFERENCE
    )
    bend = (16 * (value(1) + value(-1)) - value(2) - value(-2) - 30 * value(0)) / (12 * h * h)
    np.testing.assert_allclose(
        jax.jacfwd(jax.grad(lambda x: boys(4, x)[2]))(t),
        float(bend[2]),
        rtol=0,
        atol=FINITE_DIFFERENCE,
    )


def test_transformations_change_nothing(rng):
    t = rng.uniform(0.0, 60.0, size=(3, 4))
    plain = boys(5, t)
    np.testing.assert_allclose(jax.jit(boys, static_argnums=0)(5, t), plain, rtol=DOUBLE)
    np.testing.assert_allclose(
        jax.vmap(jax.vmap(lambda x: boys(5, x)))(t).transpose(2, 0, 1), plain, rtol=DOUBLE
    )
    slopes = jax.vmap(jax.grad(lambda x: boys(5, x)[5]))(t.ravel())
    np.testing.assert_allclose(slopes, -boys(6, t)[6].ravel(), rtol=DOUBLE)


# --- radial derivatives of the potential of a Gaussian -------------------------------------------


@pytest.mark.parametrize("order", range(5))
def test_radial_derivatives_are_those_of_the_potential(order):
    """(1/r d/dr)^l erf(r / sqrt(2 v)) / r by nested differentiation of what it says."""

    def potential(r, v):
        return jax.scipy.special.erf(r / jnp.sqrt(2 * v)) / r

    def lowered(f):
        return lambda r, v: jax.grad(f)(r, v) / r

    expected = potential
    for _ in range(order):
        expected = lowered(expected)
    r, v = (x.ravel() for x in np.meshgrid([0.7, 1.3, 2.9, 8.0, 40.0], [0.05, 0.4, 1.1]))
    ours, t = jax.jit(radial_top, static_argnums=0)(order, r * r, 1 / v)
    np.testing.assert_allclose(ours, jax.vmap(expected)(r, v), rtol=AUTODIFF)
    np.testing.assert_allclose(t, r * r / (2 * v), rtol=DOUBLE)


@pytest.mark.parametrize("order", range(10))
def test_radial_derivatives_have_their_limit_at_the_origin(order):
    v = np.array([0.01, 0.3, 1.0, 20.0])
    limit = np.sqrt(2 / (np.pi * v)) * (-1 / v) ** order / (2 * order + 1)
    for r2 in (0.0, 1e-300, 1e-20):
        ours, _ = radial_top(order, np.full(4, r2), 1 / v)
        np.testing.assert_allclose(ours, limit, rtol=DOUBLE)


def test_the_zeroth_is_the_potential_itself():
    r, v = np.geomspace(1e-3, 1e3, 200), 0.6
    ours, _ = radial_top(0, jnp.asarray(r * r), jnp.full(200, 1 / v))
    np.testing.assert_allclose(ours, erf(r / np.sqrt(2 * v)) / r, rtol=DOUBLE)


@pytest.mark.parametrize("order", [0, 4, 9])
def test_radial_derivatives_do_not_overflow_in_single_precision(order):
    """Core exponents of 1e5 at 20 Bohr, and diffuse functions: the factors alone would."""
    r2, v = (x.ravel() for x in np.meshgrid([0.0, 1e-4, 1.0, 400.0], [5e-6, 0.1, 50.0]))
    double, _ = radial_top(order, r2, 1 / v)
    single, _ = radial_top(order, r2.astype(np.float32), (1 / v).astype(np.float32))
    double = np.asarray(double)
    size = np.abs(double)
    held = (size > np.finfo(np.float32).tiny) & (size < np.finfo(np.float32).max)
    assert held.sum() >= 8
    # v is rounded before it is raised to the power l
    np.testing.assert_allclose(np.asarray(single)[held], double[held], rtol=(order + 6) * 1.2e-7)
