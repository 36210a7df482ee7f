r"""The Coulomb matrix of a density, with the density fitted by charges and dipoles on the atoms.

.. math::
    J_{ij} = \sum_{kl} (ij|kl) P_{kl} \approx \sum_Q (ij|Q)\, c_Q, \qquad
    \sum_{Q'} (Q|Q')\, c_{Q'} = \sum_{kl} (Q|kl) P_{kl}

in the Coulomb metric (Dunlap, Connolly, Sabin, J. Chem. Phys. 71, 3396 (1979)). Fitting functions
Q are s and p Gaussians in even-tempered steps, the same on every atom: s Gaussians are the charge
clouds of :func:`~opml_jax.integrals.external_potential`, p Gaussians their derivatives in the
centre. So no integral over three centres is ever stored: J is a potential of charges and its
derivative, and :math:`(Q|P)` is the transpose of that. The fit is coarse and smooth: 4e-4 Hartree
for a matrix element of ethanol in the mean, 0.015 at worst. It misses 3e-4 of its 26 electrons. No
multiplier keeps their number, because that would spread what one molecule misses over all others,
however far away.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .. import lapack
from ..basis import Basis, layout_of
from ..errors import OpmlError
from ..numerics import Array
from ..structures import Structure, StructureBatch
from .boys import boys
from .one_electron import DEFAULT_DRIVER, _engine

S_EXPONENTS = 0.2 * 2.2 ** np.arange(11)
"""Exponents of the s functions in Bohr^-2, 0.2 to 531."""
P_EXPONENTS = 0.25 * 2.5 ** np.arange(4)
"""Exponents of the p functions in Bohr^-2, 0.25 to 3.9."""

_WIDTHS = (0.5 / np.concatenate([S_EXPONENTS, P_EXPONENTS])) ** 0.5
_N_S = len(S_EXPONENTS)
N_FIT = _N_S + 3 * len(P_EXPONENTS)
"""Fitting functions of one atom."""


def fit_metric(positions: Array) -> jax.Array:
    r"""Coulomb energies :math:`(Q|Q')` of the fitting functions, Hartree.

    s functions hold a charge of 1, p functions are their derivatives in the centre (a dipole of 1).
    Helgaker, Jorgensen, Olsen, sec. 9.7: with :math:`\sigma^2` the sum of both variances the
    energy of two s functions is :math:`\sqrt{2/\pi}\, F_0(R^2 / 2 \sigma^2) / \sigma`.

    Args:
      positions: ``(..., n_atoms, 3)`` Bohr.

    Returns:
      ``(..., n_atoms N_FIT, n_atoms N_FIT)``; on each atom s ascending in exponent, then p, each
      with x, y, z.
    """
    n = positions.shape[-2]
    sigma2 = _WIDTHS**2
    d = positions[..., :, None, :] - positions[..., None, :, :]
    r2 = jnp.sum(d * d, axis=-1)[..., None, None]  # (..., n, n, 1, 1)
    total = sigma2[:, None] + sigma2[None, :]
    f0, f1, f2 = boys(2, r2 / (2 * total))
    front = (2 / np.pi) ** 0.5 / total**0.5
    value, slope, bend = front * f0, -front / total * f1, front / total**2 * f2
    s, p = slice(None, _N_S), slice(_N_S, None)
    ss = value[..., s, s]
    # derivatives in the centre of the row's function are those in d; of the column's, minus those
    ps = slope[..., p, s][..., :, None, :] * d[..., :, :, None, :, None]
    sp = -slope[..., s, p][..., :, :, None] * d[..., :, :, None, None, :]
    outer = d[..., :, None] * d[..., None, :]
    pp = -(
        slope[..., p, p][..., :, None, :, None] * np.eye(3)[:, None, :]
        + bend[..., p, p][..., :, None, :, None] * outer[..., :, :, None, :, None, :]
    )
    lead, n_p = r2.shape[:-2], 3 * len(P_EXPONENTS)
    rows = [
        jnp.concatenate([ss, sp.reshape(*lead, _N_S, n_p)], axis=-1),
        jnp.concatenate([ps.reshape(*lead, n_p, _N_S), pp.reshape(*lead, n_p, n_p)], axis=-1),
    ]
    metric = jnp.swapaxes(jnp.concatenate(rows, axis=-2), -3, -2)
    return metric.reshape(*positions.shape[:-2], n * N_FIT, n * N_FIT)


def fitted_coulomb(
    structure: Structure | StructureBatch,
    basis: Basis,
    dm: Array,
    *,
    driver: str = DEFAULT_DRIVER,
) -> jax.Array:
    r"""Coulomb matrix of a density fitted by s and p Gaussians on the atoms; see the module.

    Linear in ``dm``, differentiable in everything. libcint: ``int3c2e`` and ``int2c2e``.

    Args:
      structure: molecule, positions in Bohr, or a batch.
      basis: covers its elements.
      dm: ``(nao, nao)`` symmetric density matrix, for a batch with a leading axis.
      driver: engine.

    Returns:
      ``(nao, nao)`` in Hartree, the repulsion of an electron from the density; a batch adds a
      leading axis.

    Raises:
      OpmlError: a density matrix of another shape.
      PrecisionError: the driver needs float64 and x64 is off.
    """
    layout = layout_of(structure, basis)
    positions = jnp.asarray(structure.positions)
    lead, n = positions.shape[:-2], positions.shape[-2]
    if dm.shape != (*lead, layout.nao, layout.nao):
        raise OpmlError(
            "dm", got=f"shape {dm.shape}", expected=f"{(*lead, layout.nao, layout.nao)}"
        )
    real = _real_atoms(structure)
    dtype, width = positions.dtype, len(_WIDTHS)
    dipoles = (n, len(P_EXPONENTS), 3)

    def potential(charges, centres):
        shape = (*lead, n * width)
        return _engine(driver).coulomb(
            structure,
            basis,
            layout,
            charges.reshape(shape),
            centres.reshape(*shape, 3),
            jnp.broadcast_to(jnp.asarray(np.tile(_WIDTHS, n), dtype), shape),
        )

    unit = jnp.concatenate([jnp.zeros(_N_S, dtype), jnp.ones(width - _N_S, dtype)])
    charges = real[..., None] * unit
    centres = jnp.broadcast_to(positions[..., None, :], (*lead, n, width, 3))
    _, pull = jax.vjp(potential, charges, centres)
    of_charges, of_centres = pull(0.5 * (dm + jnp.matrix_transpose(dm)))
    moments = jnp.concatenate(
        [of_charges[..., :_N_S], of_centres[..., _N_S:, :].reshape(*lead, n, -1)], axis=-1
    ).reshape(*lead, n * N_FIT)

    metric, scale, own = _scaled_metric(positions, real)
    right = (jnp.where(own, moments, 0.0) * scale)[..., None]
    c = lapack.solve(metric, right, positive=True)[..., 0]
    c = (scale * c).reshape(*lead, n, N_FIT)

    push_charges = jnp.concatenate([c[..., :_N_S], jnp.zeros((*lead, n, width - _N_S), dtype)], -1)
    push_centres = jnp.concatenate(
        [
            jnp.zeros((*lead, n, _N_S, 3), dtype),
            c[..., _N_S:].reshape(*lead, *dipoles),
        ],
        axis=-2,
    )
    return jax.jvp(potential, (charges, centres), (push_charges, push_centres))[1]


def _scaled_metric(positions: Array, real: Array) -> tuple[Array, Array, Array]:
    """The metric with a diagonal of 1, the factors that make it so, and which functions are there.

    Padding has the unit matrix.
    """
    own = jnp.repeat(real, N_FIT, axis=-1)
    eye = jnp.eye(own.shape[-1], dtype=positions.dtype)
    metric = jnp.where(own[..., :, None] & own[..., None, :], fit_metric(positions), 0.0)
    metric = metric + jnp.where(own, 0.0, 1.0)[..., None] * eye
    scale = 1 / jnp.sqrt(jnp.diagonal(metric, axis1=-2, axis2=-1))
    return metric * scale[..., :, None] * scale[..., None, :], scale, own


def _real_atoms(structure: Structure | StructureBatch) -> Array:
    batch = isinstance(structure, StructureBatch)
    return structure.mask if batch else jnp.ones(structure.n_atoms, bool)
