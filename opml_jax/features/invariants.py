r"""Invariants of atom features: the scalars, and scalar products of on-site irreps.

Scalar products :math:`\sum_M b^{c}_{LM} b^{c'}_{LM} / \sqrt{2L + 1}` of two channels of one irrep
type play the part the power spectrum plays for a density (Nigam, Smidt, Dusson,
arXiv:2602.15345; Willatt, Musil, Ceriotti, J. Chem. Phys. 150, 154110 (2019)).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..irreps import e3nn
from ..numerics import einsum
from .hierarchy import AtomFeatures

Powers = Sequence[int] | Mapping[str, Sequence[int]]


def _gram_selection(recipe: AtomFeatures, powers: Powers):
    """For each chunk of irreps the channels whose products are taken."""
    if not isinstance(powers, Mapping):
        powers = {name: powers for name, _ in recipe.sources}
    return _selection(recipe, tuple((name, tuple(ks)) for name, ks in powers.items()))


@functools.lru_cache(maxsize=256)
def _selection(recipe: AtomFeatures, powers: tuple[tuple[str, tuple[int, ...]], ...]):
    wanted = {(name, k) for name, ks in powers for k in ks}
    out, start = [], 0
    for mul, ir in recipe.irreps:
        own = recipe.channels[start : start + mul]
        start += mul
        chosen = [
            i for i, c in enumerate(own) if not c.neighbour and (c.operator, c.power) in wanted
        ]
        out.append(np.array(chosen if ir.l > 0 else [], dtype=np.int64))
    return tuple(out)


def n_invariants(recipe: AtomFeatures, gram_powers: Powers = (1, 2)) -> int:
    """Number of columns :func:`invariants` returns."""
    scalars = sum(c.l == 0 and c.parity == 1 for c in recipe.channels)
    sizes = [len(s) for s in _gram_selection(recipe, gram_powers)]
    return scalars + sum(n * (n + 1) // 2 for n in sizes)


def invariants(
    features: e3nn.IrrepsArray, recipe: AtomFeatures, gram_powers: Powers = (1, 2)
) -> jax.Array:
    """Rotation-, reflection- and translation-invariant numbers of every atom.

    Args:
      features: ``(..., n_atoms, irreps.dim)`` from ``recipe``.
      recipe: what made them.
      gram_powers: powers whose on-site irreps with L > 0 enter scalar products: of every operator
        of the recipe, or by operator ``{name: powers}``.

    Returns:
      ``(..., n_atoms, n_invariants)``: all 0e channels, then the products chunk by chunk.
    """
    columns = []
    for (_, ir), chunk, chosen in zip(
        features.irreps, features.chunks, _gram_selection(recipe, gram_powers), strict=True
    ):
        if ir.l == 0 and ir.p == 1:
            columns.append(chunk[..., 0])
        if len(chosen):
            x = chunk[..., chosen, :]
            gram = einsum("...cm,...dm->...cd", x, x) / (2 * ir.l + 1) ** 0.5
            c, d = np.triu_indices(len(chosen))
            columns.append(gram[..., c, d])
    return jnp.concatenate(columns, axis=-1)
