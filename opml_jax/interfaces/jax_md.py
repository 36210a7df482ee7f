"""Energies the way jax-md wants them: a pure function of positions. Does not import jax-md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import OpmlError, one_of
from ..models import Model
from ..numerics import Array, require_x64
from ..structures import Structure
from ..units import ENERGY, LENGTH


def energy_fn(
    model: Model,
    numbers: Sequence[int],
    *,
    length_unit: str = "bohr",
    energy_unit: str = "hartree",
    charge: int = 0,
    spin: int = 0,
    params: Any = None,
) -> Callable[..., Array]:
    """Energy of one molecule in free space as a function of positions.

    For ``jax_md.simulate``, ``jax_md.minimize`` and ``jax_md.quantity.force``, with the ``shift``
    of ``jax_md.space.free()``; under ``jit``, ``grad`` and ``vmap`` (over geometries) like any
    other function. There is no neighbour list to update. Outside of ``jit`` it is slow.

    Args:
      model: a trained model of energies.
      numbers: ``(n_atoms,)`` atomic numbers of a molecule.
      length_unit: ``"bohr"`` or ``"angstrom"``.
      energy_unit: ``"hartree"``, ``"ev"`` or ``"kcal/mol"``.
      charge: of the molecule, as the model was trained for.
      spin: its number of unpaired electrons, likewise.
      params: parameters to use. Default: the model's own.

    Returns:
      ``energy(positions, **unused) -> ()`` with positions ``(n_atoms, 3)`` in ``length_unit`` and
      the energy in ``energy_unit``, in float64. Its gradient is in energy_unit/length_unit. What
      jax-md passes besides (time, neighbours) is ignored.

    Raises:
      OpmlError: a model without energies, an unknown unit, or an element the model has not seen.
      StructureError: ``numbers`` of no molecule, or a charge and spin that they cannot have or that
        the model was not trained for.
      PrecisionError: x64 is off.
    """
    require_x64("a float64 model")
    model.require("energy")
    one_of("length_unit", length_unit, LENGTH, OpmlError)
    one_of("energy_unit", energy_unit, ENERGY, OpmlError)
    bohr, hartree = LENGTH[length_unit], ENERGY[energy_unit]
    n = np.size(numbers)
    # Any geometry: this checks the composition, positions come with each call.
    molecule = Structure(numbers, 10.0 * np.arange(3 * n).reshape(n, 3), charge, spin)
    model.check_species([molecule])
    energy = model.energy_fn(params)

    def energy_of(positions: Array, **unused: Any) -> Array:
        x = jnp.asarray(positions, float) * bohr
        if x.shape != (n, 3):
            raise OpmlError("positions", got=f"shape {x.shape}", expected=f"of shape ({n}, 3)")
        return energy(molecule.replace(positions=x)) / hartree

    return energy_of
