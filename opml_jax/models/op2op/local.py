"""Whether reference matrices are those of potentials, as a projection takes for granted."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import Code, DataError
from ...numerics import Array
from ...observables import density_matrix
from ...operators.species import SpeciesTable
from ...structures import StructureBatch
from .functions import Op2Op
from .inputs import n_electrons
from .metrics import MICRO

LARGEST_BIAS = 3e-4
"""Hartree: mean element that the projection may take from a reference.

It takes 3e-6 of PBE's matrices in def2-SVP.
"""

Batches = Iterable[tuple[StructureBatch, SpeciesTable, np.ndarray, int]]
"""Molecules, their blocks, Fock matrices, and how many are no repeats."""


def check_local(definition: Op2Op, batches: Batches) -> None:
    """Refuse references that are not local where what is learned is made so.

    Raises:
      DataError: of exact exchange, or of another functional that is not semilocal.
    """
    if not definition.config.is_local:
        return
    bias = projection_bias(definition, batches)
    if not max(bias) < LARGEST_BIAS:
        raise DataError(
            "fock",
            got="matrices whose exchange and correlation is not that of a local potential, by "
            f"{MICRO * max(bias):.0f} microhartree in the mean of an element",
            expected="matrices of a semilocal functional and model.exchange",
            hint="Set model.exchange to the functional's part of exact exchange, or for a meta-GGA "
            "model.projection=meta_gga. Or train with model.projection=none.",
            code=Code.LEVEL_OF_THEORY,
        )


def projection_bias(definition: Op2Op, batches: Batches) -> list[float]:
    r"""Mean absolute element of :math:`\Pi M - M`, M what there is to learn, of each molecule."""
    out: list[float] = []
    for structures, _, fock, n in batches:
        out += np.asarray(_bias(definition, structures, fock))[:n].tolist()
    return out


@functools.partial(jax.jit, static_argnums=0)
def _bias(definition: Op2Op, structures: StructureBatch, fock: Array) -> Array:
    operators, mask = definition.operators(structures), structures.layout.ao_mask
    dm = density_matrix(fock, operators["S"], n_electrons(structures), mask=mask)
    rest = fock - operators["T"] - definition.with_density(structures, operators, dm)["mean_field"]
    taken = jnp.sum(jnp.abs(operators["projection"](rest) - rest), axis=(1, 2))
    return taken / jnp.sum(mask, axis=1) ** 2
