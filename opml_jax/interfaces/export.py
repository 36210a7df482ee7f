"""Energies and forces of one molecule as a compiled program that needs JAX alone.

The program (StableHLO, :mod:`jax.export`) holds the model's parameters. Who runs it needs neither
this library nor PySCF::

    import jax
    jax.config.update("jax_enable_x64", True)
    program = jax.export.deserialize(open("water.stablehlo", "rb").read())
    energy, forces = program.call(positions)  # (n, n_atoms, 3) -> (n,), (n, n_atoms, 3)

The molecule is fixed, the number of geometries is not. JAX promises that programs can be read for
six months, and says more at https://docs.jax.dev/en/latest/export/export.html.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ..data.files import atomic_path
from ..errors import OpmlError, one_of
from ..models import Model
from .jax_md import energy_fn

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_energy(
    model: Model,
    numbers: Sequence[int],
    *,
    length_unit: str = "angstrom",
    energy_unit: str = "ev",
    charge: int = 0,
    spin: int = 0,
    platforms: Sequence[str] = ("cpu",),
) -> jax.export.Exported:
    """A function of geometries of one molecule, ready to be written.

    Args:
      model: a trained model of energies.
      numbers: ``(n_atoms,)`` atomic numbers of a molecule.
      length_unit: ``"bohr"`` or ``"angstrom"``.
      energy_unit: ``"hartree"``, ``"ev"`` or ``"kcal/mol"``.
      charge: of the molecule, as the model was trained for.
      spin: its number of unpaired electrons, likewise.
      platforms: where it shall run, of :data:`PLATFORMS`; none of them needs to be here.

    Returns:
      Of positions ``(n, n_atoms, 3)`` in ``length_unit``, float64, n free: energies ``(n,)`` and
      forces ``(n, n_atoms, 3)`` in ``energy_unit`` and ``energy_unit/length_unit``. Its ``call``
      runs it; :func:`write_program` writes it.

    Raises:
      OpmlError: an unknown unit or platform, an element the model has not seen, a model without
        energies.
      StructureError: ``numbers`` of no molecule, or a charge and spin that they cannot have or that
        the model was not trained for.
      PrecisionError: x64 is off.
    """
    if not platforms:
        raise OpmlError("platforms", got="none", expected="at least one")
    for name in platforms:
        one_of("platform", name, PLATFORMS, OpmlError)
    units = {"length_unit": length_unit, "energy_unit": energy_unit}
    energy = energy_fn(model, numbers, **units, charge=charge, spin=spin)

    def energies_and_forces(positions):
        e, slope = jax.vmap(jax.value_and_grad(energy))(positions)
        return e, -slope

    n = jax.export.symbolic_shape("n")[0]
    shape = jax.ShapeDtypeStruct((n, len(np.asarray(numbers)), 3), jnp.float64)
    return jax.export.export(jax.jit(energies_and_forces), platforms=[*platforms])(shape)


def write_program(path: str | os.PathLike, program: jax.export.Exported) -> None:
    """Write a program whole or not at all; ``jax.export.deserialize`` reads its bytes."""
    text = program.serialize()
    with atomic_path(path) as temporary:
        temporary.write_bytes(text)
