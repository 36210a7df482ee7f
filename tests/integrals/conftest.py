"""What tests of integrals share: differences, clusters of many elements, a walk of jaxprs."""

import functools

import jax
import numpy as np
import pytest

from opml_jax.integrals import hermite
from opml_jax.structures import Structure


@pytest.fixture(scope="session")
def differences():
    """``differences(f, h)``: derivative of ``f(t)`` at 0, central, fourth order."""

    def derivative(f, h=1e-3):
        far, near = f(2 * h) - f(-2 * h), f(h) - f(-h)
        return (8 * near - far) / (12 * h)

    return derivative


@pytest.fixture(scope="session")
def every_equation():
    """``every_equation(f, *args)``: all equations of its jaxpr, nested ones included.

    Also those that the package's own primitives become.
    """
    own = {"opml_potential": hermite._potential, "opml_moments": hermite._moments}

    def inside(value):
        if isinstance(value, jax.extend.core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, jax.extend.core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            for x in value:
                yield from inside(x)

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            if eqn.primitive.name in own:
                function = functools.partial(own[eqn.primitive.name], **eqn.params)
                shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
                yield from walk(jax.make_jaxpr(function)(*shapes).jaxpr)
            for value in eqn.params.values():
                for nested in inside(value):
                    yield from walk(nested)

    return lambda f, *args: list(walk(jax.make_jaxpr(f)(*args).jaxpr))


def _cluster(numbers, rows) -> Structure:
    """Atoms at chemical distances, spin to fit the electrons."""
    return Structure(numbers, np.array(rows), spin=sum(numbers) % 2)


@pytest.fixture(scope="session")
def clusters() -> dict[str, Structure]:
    """H to Cl without the noble gases, three or four atoms each, Bohr; no symmetry."""
    return {
        "LiOHe": _cluster([3, 8, 2], [[0.0, 0.1, 0.0], [3.1, 0.3, -0.2], [0.4, 3.9, 1.1]]),
        "HBeBF": _cluster(
            [1, 4, 5, 9], [[-2.5, 0.1, 0.0], [0.0, 0.0, 0.1], [3.3, 0.2, 0.2], [5.0, 1.7, 0.9]]
        ),
        "NCNa": _cluster([7, 6, 11], [[-2.2, 0.1, 0.0], [0.0, 0.0, 0.1], [4.1, 0.4, 0.6]]),
        "MgAlCl": _cluster([12, 13, 17], [[0.0, 0.2, 0.1], [5.2, 0.0, 0.3], [1.9, 3.7, -0.4]]),
        "SiPSH": _cluster(
            [14, 15, 16, 1], [[0.0, 0.2, 0.1], [4.2, 0.0, 0.3], [1.9, 3.7, -0.4], [-1.8, -1.9, 0.7]]
        ),
    }
