r"""Exchange and correlation of closed shells, as energy densities of density and gradient.

``lda``: Slater's exchange and the correlation of Perdew and Wang, Phys. Rev. B 45, 13244 (1992)
(PySCF: ``lda,pw_mod``). ``pbe``: Perdew, Burke, Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996), which
is the former where the density does not change. Potentials are derivatives, by JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from ..numerics import Array

KAPPA = 0.804
BETA = 0.06672455060314922
MU = BETA * math.pi**2 / 3
GAMMA = (1 - math.log(2)) / math.pi**2

VANISHING = 1e-14
"""Electrons per Bohr^3 below which there is nothing: powers of zero have no derivative."""


def lda(rho: Array, sigma: Array) -> Array:
    """Slater's exchange and Perdew and Wang's correlation; arguments as for :func:`pbe`."""
    return rho * (_slater(rho) + _perdew_wang(rho))


def pbe(rho: Array, sigma: Array) -> Array:
    """Perdew, Burke and Ernzerhof's exchange and correlation.

    Args:
      rho: density, electrons per Bohr^3, positive.
      sigma: square of its gradient, Bohr^-8.

    Returns:
      Hartree per Bohr^3.
    """
    fermi = jnp.cbrt(3 * math.pi**2 * rho)
    s2 = sigma / (2 * fermi * rho) ** 2
    exchange = _slater(rho) * (1 + KAPPA - KAPPA / (1 + MU * s2 / KAPPA))
    local = _perdew_wang(rho)
    t2 = sigma * math.pi / (16 * fermi * rho**2)
    a = BETA / GAMMA / jnp.expm1(-local / GAMMA)
    ratio = t2 * (1 + a * t2) / (1 + a * t2 * (1 + a * t2))
    return rho * (exchange + local + GAMMA * jnp.log1p(BETA / GAMMA * ratio))


FUNCTIONALS: dict[str, Callable[[Array, Array], Array]] = {"lda": lda, "pbe": pbe}
"""By name."""

SEMILOCAL = {"lda": False, "pbe": True}
"""Whether they read the gradient of the density."""


def _slater(rho: Array) -> Array:
    """Exchange energy of an electron."""
    return -0.75 * (3 / math.pi) ** (1 / 3) * jnp.cbrt(rho)


def _perdew_wang(rho: Array) -> Array:
    """Correlation energy of an electron, with the digits that libxc has for PBE."""
    a, root = 0.0310907, jnp.cbrt(3 / (4 * math.pi * rho)) ** 0.5
    series = root * (7.5957 + root * (3.5876 + root * (1.6382 + root * 0.49294)))
    return -2 * a * (1 + 0.2137 * root**2) * jnp.log1p(1 / (2 * a * series))
