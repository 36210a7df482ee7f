r"""Overlap, kinetic energy, position and external potential in a basis of Gaussian orbitals.

Every function takes a :class:`~opml_jax.structures.Structure` and returns ``(nao, nao)``, or a
batch made by :func:`opml_jax.batch` and returns ``(n_structures, nao, nao)`` with zeros in
padded rows. ``driver`` names the engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ..basis import Basis, layout_of
from ..errors import OpmlError, nearest, refusal
from ..numerics import Array, einsum, is_concrete
from ..structures import Structure, StructureBatch

DRIVERS = ("native", "libcint")
"""Engines: ``"native"`` (JAX, any device), ``"libcint"`` (host, float64, through pyscfad)."""

DEFAULT_DRIVER = "native"

PointCharges = tuple[Array, Array]


def _engine(driver: str):
    if driver not in DRIVERS:
        raise OpmlError(
            refusal(
                "driver",
                got=repr(driver),
                expected=f"one of {DRIVERS}",
                hint=nearest(driver, DRIVERS),
            )
        )
    return importlib.import_module(f".{driver}", __package__)


def overlap(
    structure: Structure | StructureBatch, basis: Basis, *, driver: str = DEFAULT_DRIVER
) -> Array:
    r"""Overlap matrix :math:`S_{ij} = \langle i | j \rangle`. libcint: ``int1e_ovlp``.

    Args:
      structure: molecule, positions in Bohr, or a batch.
      basis: covers its elements.
      driver: engine, one of :data:`DRIVERS`.

    Returns:
      ``(nao, nao)``, dimensionless; a batch adds a leading axis.

    Raises:
      BasisError: an element the basis lacks.
      PrecisionError: the driver needs float64 and x64 is off.
    """
    layout = layout_of(structure, basis)
    return _engine(driver).matrix("ovlp", structure, basis, layout)


def kinetic(
    structure: Structure | StructureBatch, basis: Basis, *, driver: str = DEFAULT_DRIVER
) -> Array:
    r"""Kinetic energy matrix :math:`T_{ij} = \langle i | -\nabla^2/2 | j \rangle`.

    libcint: ``int1e_kin``. Arguments and errors as :func:`overlap`.

    Returns:
      ``(nao, nao)`` in Hartree; a batch adds a leading axis.
    """
    layout = layout_of(structure, basis)
    return _engine(driver).matrix("kin", structure, basis, layout)


def position(
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    origin: Sequence[float] | Array | None = None,
    driver: str = DEFAULT_DRIVER,
) -> Array:
    r"""Position matrices :math:`\langle i | r - O | j \rangle`, components x, y, z.

    libcint: ``int1e_r``. The electronic dipole of a density matrix P is ``-Tr(P r)``.

    Args:
      structure: molecule or batch.
      basis: covers its elements.
      origin: ``(3,)`` Bohr, differentiable. Default: the coordinate origin.
      driver: engine.

    Returns:
      ``(3, nao, nao)`` in Bohr; a batch adds a leading axis. Errors as :func:`overlap`.
    """
    layout = layout_of(structure, basis)
    engine = _engine(driver)
    r = engine.matrix("r", structure, basis, layout)
    if origin is None:
        return r
    origin = jnp.asarray(origin, float)
    if origin.shape != (3,):
        raise OpmlError(refusal("origin", got=f"shape {origin.shape}", expected="shape (3,)"))
    s = engine.matrix("ovlp", structure, basis, layout)
    return r - origin[:, None, None] * s[..., None, :, :]


def external_potential(
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    charges: Array | None = None,
    widths: Array | float | None = None,
    point_charges: PointCharges | None = None,
    field: Array | None = None,
    driver: str = DEFAULT_DRIVER,
) -> Array:
    r"""Potential energy of an electron in the field of nuclei, charges and a uniform field.

    .. math::
        V_{ij} = -\sum_A q_A \langle i | \frac{\mathrm{erf}(|r-R_A|/\sqrt 2 \sigma_A)}{|r-R_A|}
        | j \rangle - \sum_C q_C \langle i | \frac{1}{|r-R_C|} | j \rangle
        + \langle i | E \cdot r | j \rangle

    libcint: ``int1e_nuc``, ``int1e_rinv``. Helgaker, Jorgensen, Olsen, sec. 9.7-9.9.

    Args:
      structure: molecule or batch; its nuclei sit at R_A.
      basis: covers its elements.
      charges: ``(n_atoms,)`` q_A in e, any real numbers, differentiable. Default: nuclear charges.
        For a batch ``(n_structures, n_atoms)``, 0 for padding.
      widths: Gaussian standard deviations sigma_A in Bohr, a number or ``(n_atoms,)``; 0 is a
        point. Default: points. The libcint driver has no derivative with respect to widths and
        says so.
      point_charges: ``(q, R)`` with ``q`` ``(n,)`` in e and ``R`` ``(n, 3)`` in Bohr, as in QM/MM.
      field: ``(3,)`` uniform electric field E in atomic units (x, y, z); the electron's energy in
        it is +E.r, about the coordinate origin.
      driver: engine.

    Returns:
      ``(nao, nao)`` in Hartree; a batch adds a leading axis.

    Raises:
      OpmlError: an argument of the wrong shape, or an unknown driver.
      BasisError: an element the basis lacks.
      PrecisionError: the driver needs float64 and x64 is off.
    """
    layout = layout_of(structure, basis)
    engine = _engine(driver)
    is_batch = isinstance(structure, StructureBatch)
    shape = structure.numbers.shape if is_batch else (structure.n_atoms,)
    q = jnp.asarray(structure.numbers if charges is None else charges, float)
    if q.shape != shape:
        raise OpmlError(refusal("charges", got=f"shape {q.shape}", expected=f"shape {shape}"))
    sigma = jnp.asarray(0.0 if widths is None else widths, float)
    fits = sigma.shape in ((), shape)
    if not fits or (is_concrete(sigma) and not (np.asarray(sigma) >= 0).all()):
        raise OpmlError(
            refusal(
                "widths",
                got=np.asarray(sigma).tolist() if fits else f"shape {sigma.shape}",
                expected=f"zero or more, a number or of shape {shape}",
            )
        )
    sigma = jnp.broadcast_to(sigma, shape)
    v = -engine.coulomb(structure, basis, layout, q, structure.positions, sigma)
    if point_charges is not None:
        q, centres = (jnp.asarray(x, float) for x in point_charges)
        if q.ndim != 1 or centres.shape != (len(q), 3):
            raise OpmlError(
                refusal(
                    "point_charges",
                    got=f"shapes {q.shape} and {centres.shape}",
                    expected="charges (n,) and positions (n, 3)",
                )
            )
        if is_batch:
            q, centres = (jnp.broadcast_to(x, (shape[0], *x.shape)) for x in (q, centres))
        v = v - engine.coulomb(structure, basis, layout, q, centres, jnp.zeros(q.shape))
    if field is not None:
        field = jnp.asarray(field, float)
        if field.shape != (3,):
            raise OpmlError(refusal("field", got=f"shape {field.shape}", expected="shape (3,)"))
        r = engine.matrix("r", structure, basis, layout)
        v = v + einsum("x,...xij->...ij", field, r)
    return v


def screened_potential(
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    width: float = 1.2909944487358056,
    driver: str = DEFAULT_DRIVER,
) -> Array:
    r"""Potential of the nuclei, each neutralised by a Gaussian electron cloud of its charge.

    :math:`-\sum_A Z_A \langle i | \mathrm{erfc}(|r-R_A|/\sqrt 2 \sigma)/|r-R_A| | j \rangle`.
    Short-ranged, so whatever is built from it is size-extensive; the bare potential is not.

    Args:
      structure: molecule or batch.
      basis: covers its elements.
      width: sigma in Bohr. The default is exp(-0.3 r^2), 0.3 Bohr^-2 = 1 / (2 sigma^2).
      driver: engine.

    Returns:
      ``(nao, nao)`` in Hartree; a batch adds a leading axis. Errors as :func:`external_potential`.
    """
    return external_potential(structure, basis, driver=driver) - external_potential(
        structure, basis, widths=width, driver=driver
    )
