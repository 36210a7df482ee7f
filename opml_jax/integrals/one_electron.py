r"""Overlap, kinetic energy, position and external potential in a basis of Gaussian orbitals.

Every function takes a :class:`~opml_jax.structures.Structure` and returns ``(nao, nao)``, or a
batch made by :func:`opml_jax.batch` and returns ``(n_structures, nao, nao)`` with zeros in
padded rows. ``driver`` names the engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import Basis, BatchLayout, layout_of
from ..errors import OpmlError, one_of
from ..numerics import Array, einsum, is_concrete
from ..structures import Structure, StructureBatch
from .neutral_atoms import clouds_of
from .screening import ScreenedPairs

DRIVERS = ("native", "libcint")
"""Engines: ``"native"`` (JAX, no host callback), ``"libcint"`` (host, float64, by pyscfad)."""

DEFAULT_DRIVER = "native"

PointCharges = tuple[Array, Array]
Cloud = tuple[Array, Array, Array | float]  # charges, centres, widths


def _engine(driver: str):
    one_of("driver", driver, DRIVERS, OpmlError)
    return importlib.import_module(f".{driver}", __package__)


def overlap(
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    padding: float = 0.0,
    driver: str = DEFAULT_DRIVER,
) -> jax.Array:
    r"""Overlap matrix :math:`S_{ij} = \langle i | j \rangle`. libcint: ``int1e_ovlp``.

    Args:
      structure: molecule, positions in Bohr, or a batch.
      basis: covers its elements.
      padding: diagonal of padded rows of a batch; 1 makes it invertible, for a solver.
      driver: engine, one of :data:`DRIVERS`.

    Returns:
      ``(nao, nao)``, dimensionless; a batch adds a leading axis.

    Raises:
      BasisError: an element the basis lacks.
      PrecisionError: the driver needs float64 and x64 is off.
    """
    layout = layout_of(structure, basis)
    s = _engine(driver).matrix("ovlp", structure, basis, layout)
    if padding and isinstance(layout, BatchLayout):
        s = s + jnp.where(layout.ao_mask, 0.0, padding).astype(s.dtype)[..., None] * jnp.eye(
            layout.nao, dtype=s.dtype
        )
    return s


def kinetic(
    structure: Structure | StructureBatch, basis: Basis, *, driver: str = DEFAULT_DRIVER
) -> jax.Array:
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
) -> jax.Array:
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
    origin = _vector("origin", origin, r.dtype)
    s = engine.matrix("ovlp", structure, basis, layout)
    return r - origin[:, None, None] * s[..., None, :, :]


def second_moments(
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    origin: Sequence[float] | Array | None = None,
    driver: str = DEFAULT_DRIVER,
) -> jax.Array:
    r"""Second moments :math:`\langle i | (r - O)_a (r - O)_b | j \rangle`.

    libcint: ``int1e_rr``. Arguments and errors as :func:`position`.

    Returns:
      ``(3, 3, nao, nao)`` in Bohr^2, components x, y, z; a batch adds a leading axis.
    """
    layout = layout_of(structure, basis)
    engine = _engine(driver)
    rr = engine.matrix("rr", structure, basis, layout)
    if origin is None:
        return rr
    r = engine.matrix("r", structure, basis, layout)
    s = engine.matrix("ovlp", structure, basis, layout)
    origin = _vector("origin", origin, r.dtype)
    mixed = origin[:, None, None, None] * r[..., None, :, :, :]
    square = (origin[:, None] * origin[None, :])[:, :, None, None]
    return rr - mixed - jnp.swapaxes(mixed, -4, -3) + square * s[..., None, None, :, :]


def _vector(name: str, value: Any, dtype: Any, lead: tuple[int, ...] = ()) -> jax.Array:
    """A vector, or one for each molecule of a batch."""
    value = jnp.asarray(value, dtype)
    if value.shape not in ((3,), (*lead, 3)):
        expected = f"shape (3,) or {(*lead, 3)}" if lead else "shape (3,)"
        raise OpmlError(name, got=f"shape {value.shape}", expected=expected)
    return value


def external_potential(
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    charges: Array | None = None,
    widths: Array | float | None = None,
    point_charges: PointCharges | None = None,
    field: Array | None = None,
    pairs: ScreenedPairs | None = None,
    driver: str = DEFAULT_DRIVER,
) -> jax.Array:
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
        point. Default: points.
      point_charges: ``(q, R)`` with ``q`` ``(n,)`` in e and ``R`` ``(n, 3)`` in Bohr, as in QM/MM.
        For a batch shared by all molecules, or with a leading axis (charges 0 for padding).
      field: ``(3,)`` uniform electric field E in atomic units (x, y, z); the electron's energy in
        it is +E.r, about the coordinate origin. For a batch also ``(n_structures, 3)``.
      pairs: primitive pairs worth computing, from :func:`opml_jax.integrals.screen`. Default: all.
      driver: engine. The libcint driver has no derivatives in widths, exponents and coefficients,
        and says so.

    Returns:
      ``(nao, nao)`` in Hartree; a batch adds a leading axis. NaN where ``pairs`` were made for
      another geometry, further away than their ``skin`` allows, or for less ``charge``.

    Raises:
      OpmlError: an argument of the wrong shape, or an unknown driver.
      BasisError: an element the basis lacks.
      PrecisionError: the driver needs float64 and x64 is off.
    """
    layout = layout_of(structure, basis)
    shape = _atoms(structure)
    dtype = _dtype(structure)
    q = _charges(structure, charges)
    sigma = jnp.asarray(0.0 if widths is None else widths, dtype)
    fits = sigma.shape in ((), shape)
    if not fits or (is_concrete(sigma) and not (np.asarray(sigma) >= 0).all()):
        raise OpmlError(
            "widths",
            got=np.asarray(sigma).tolist() if fits else f"shape {sigma.shape}",
            expected=f"zero or more, a number or of shape {shape}",
        )
    clouds: list[Cloud] = [(q, structure.positions, sigma)]
    if point_charges is not None:
        q, centres = (jnp.asarray(x, dtype) for x in point_charges)
        shared = q.ndim == 1 and centres.shape == (*q.shape, 3)
        own = q.shape[:-1] == shape[:-1] and centres.shape == (*q.shape, 3) and q.ndim > 0
        if not (shared or own):
            per_molecule = ", each with a leading axis for its molecules" if shape[:-1] else ""
            raise OpmlError(
                "point_charges",
                got=f"shapes {q.shape} and {centres.shape}",
                expected=f"charges (n,) and positions (n, 3){per_molecule}",
            )
        clouds.append((q, centres, 0.0))
    v = _attraction(structure, basis, layout, clouds, pairs, driver)
    return _with_field(v, field, structure, basis, layout, driver)


def _charges(structure: Structure | StructureBatch, charges: Array | None) -> jax.Array:
    """Charges of the nuclei, checked."""
    q = jnp.asarray(structure.numbers if charges is None else charges, _dtype(structure))
    shape = _atoms(structure)
    if q.shape != shape:
        raise OpmlError("charges", got=f"shape {q.shape}", expected=f"shape {shape}")
    return q


def _with_field(v: jax.Array, field: Array | None, structure, basis, layout, driver) -> jax.Array:
    """The potential with that of a uniform field added."""
    if field is None:
        return v
    r = _engine(driver).matrix("r", structure, basis, layout)
    field = _vector("field", field, r.dtype, _atoms(structure)[:-1])
    return v + einsum("...x,...xij->...ij", field, r)


def _atoms(structure: Structure | StructureBatch) -> tuple[int, ...]:
    """Shape of one number for each atom."""
    batch = isinstance(structure, StructureBatch)
    return structure.numbers.shape if batch else (structure.n_atoms,)


def _dtype(structure: Structure | StructureBatch) -> Any:
    """Integrals are computed in the precision of the positions."""
    return jnp.asarray(structure.positions).dtype


def _attraction(structure, basis, layout, clouds, pairs, driver) -> jax.Array:
    """Minus the potential of several sets of (charges, centres, widths), in one pass."""
    lead = _atoms(structure)[:-1]
    parts = []
    for q, centres, sigma in clouds:
        n = q.shape[-1]
        parts.append(
            (
                jnp.broadcast_to(q, (*lead, n)),
                jnp.broadcast_to(jnp.asarray(centres), (*lead, n, 3)),
                jnp.broadcast_to(jnp.asarray(sigma, q.dtype), (*lead, n)),
            )
        )
    q, centres, sigma = (
        jnp.concatenate(x, axis=len(lead)) if len(clouds) > 1 else x[0]
        for x in zip(*parts, strict=True)
    )
    options = {}
    if pairs is not None:
        if driver != "native":
            raise OpmlError("pairs", got=f"with driver={driver!r}", expected="driver='native'")
        options["pairs"] = pairs
    return -_engine(driver).coulomb(structure, basis, layout, q, centres, sigma, **options)


def screened_potential(
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    charges: Array | None = None,
    width: float = 1.2909944487358056,
    field: Array | None = None,
    pairs: ScreenedPairs | None = None,
    driver: str = DEFAULT_DRIVER,
) -> jax.Array:
    r"""Potential of the nuclei, each neutralised by one Gaussian electron cloud of its charge.

    :math:`-\sum_A Z_A \langle i | \mathrm{erfc}(|r-R_A|/\sqrt 2 \sigma)/|r-R_A| | j \rangle`.
    Short-ranged, so whatever is built from it is size-extensive; the bare potential is not. One
    width for every element: see :func:`neutral_atom_potential` for clouds of atomic shape.

    Args:
      structure: molecule or batch.
      basis: covers its elements.
      charges: as for :func:`external_potential`; clouds carry the opposite charge.
      width: sigma in Bohr. The default is exp(-0.3 r^2), 0.3 Bohr^-2 = 1 / (2 sigma^2).
      field: as for :func:`external_potential`; not screened.
      pairs: as for :func:`external_potential`.
      driver: engine.

    Returns:
      ``(nao, nao)`` in Hartree; a batch adds a leading axis. Errors as :func:`external_potential`.
    """
    layout = layout_of(structure, basis)
    q = _charges(structure, charges)
    clouds = [
        (q, structure.positions, 0.0),
        (-q, structure.positions, width),
    ]
    v = _attraction(structure, basis, layout, clouds, pairs, driver)
    return _with_field(v, field, structure, basis, layout, driver)


def neutral_atom_potential(
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    pairs: ScreenedPairs | None = None,
    driver: str = DEFAULT_DRIVER,
) -> jax.Array:
    r"""Potential of neutral atoms: nuclei and the spherical electron clouds of free atoms.

    .. math::
        V_{ij} = -\sum_A \langle i | \frac{Z_A - \sum_g c_{Ag}\,
        \mathrm{erf}(|r-R_A|/\sqrt 2 \sigma_{Ag})}{|r-R_A|} | j \rangle, \qquad
        \sum_g c_{Ag} = Z_A

    The electrostatic potential of a superposition of atoms. Clouds are Gaussians fitted to
    Hartree-Fock densities (:data:`opml_jax.integrals.neutral_atoms.CLOUDS`, H to Kr), so the
    potential of an atom has the range of its density and no tail.

    Args:
      structure: molecule or batch.
      basis: covers its elements.
      pairs: as for :func:`external_potential`.
      driver: engine.

    Returns:
      ``(nao, nao)`` in Hartree; a batch adds a leading axis.

    Raises:
      OpmlError: an element without a fitted cloud. Others as :func:`external_potential`.
    """
    layout = layout_of(structure, basis)
    dtype = _dtype(structure)
    charge, width = clouds_of(basis.elements)
    numbers = jnp.asarray(structure.numbers)
    q = numbers.astype(dtype)
    clouds: list[Cloud] = [(q, structure.positions, 0.0)]
    for c, sigma in zip(charge.T, width.T, strict=True):  # g by g; an atom without it has charge 0
        c, sigma = (jnp.asarray(x.astype(dtype))[numbers] for x in (c, sigma))
        clouds.append((-c, structure.positions, sigma))
    return _attraction(structure, basis, layout, clouds, pairs, driver)
