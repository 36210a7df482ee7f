"""What follows from predicted matrices of a batch: levels, gaps, dipoles, charges."""

from __future__ import annotations

import jax.numpy as jnp

from ... import integrals, observables
from ...numerics import Array
from ...structures import StructureBatch
from .functions import Op2Op


def following_from(
    definition: Op2Op,
    structures: StructureBatch,
    polarizability: bool,
    fock: Array | None,
    dm: Array,
) -> dict[str, Array]:
    """What follows from a Fock and a density matrix."""
    basis, electrons = definition.basis, definition.n_described(structures)
    padded = integrals.overlap(structures, basis, padding=1.0)
    mask, out = structures.layout.ao_mask, {}
    if fock is not None:
        energy, _ = observables.orbitals(fock, padded, mask=mask)
        at = jnp.minimum(electrons[:, None] // 2 + jnp.array([-1, 0]), energy.shape[-1] - 1)
        frontier = jnp.take_along_axis(energy, at, axis=-1)
        out["mo_energy"] = jnp.where(mask, energy, 0.0)
        out["gap"] = frontier[:, 1] - frontier[:, 0]
    if definition.config.window != "lowest":
        return out
    if polarizability and fock is not None:
        out["polarizability"] = observables.polarizability(
            fock, padded, electrons, structures, basis, mask=mask
        )
    return {
        **out,
        "dipole": observables.dipole(dm, structures, basis),
        "mulliken_charges": observables.mulliken_charges(dm, padded, structures, basis),
        "lowdin_charges": observables.lowdin_charges(dm, padded, structures, basis),
    }
