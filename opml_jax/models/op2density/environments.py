"""Atoms of one element in many molecules: their irreps, and where their functions are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from ...basis import batch, layout_of
from ...structures import Structure
from .functions import Op2Density, atoms_of, channels

CHUNK = 16
"""Molecules at a time."""

_features = jax.jit(Op2Density.features, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class Environments:
    """Atoms of one element in many molecules.

    Attributes:
      features: ``{l: (n, n_channels, 2 l + 1)}``.
      structure: ``(n,)`` molecule of each.
      places: ``{l: (n, n_radial, 2 l + 1)}`` functions of degree l among all of its molecule.
    """

    features: dict[int, np.ndarray]
    structure: np.ndarray
    places: dict[int, np.ndarray]

    def flat(self, naux: int) -> dict[int, np.ndarray]:
        """Places among the coefficients of all molecules, ``naux`` each, one after the other."""
        return {l: self.structure[:, None, None] * naux + p for l, p in self.places.items()}

    def on_atom(self, metric: np.ndarray, l: int) -> np.ndarray:
        """Metric ``(n_radial, n_radial)`` between functions of degree l of any of these atoms.

        Args:
          metric: ``(n_structures, naux, naux)``.
          l: degree; the metric is the same for every m, and zero between them.
        """
        at = self.places[l][0, :, 0]
        return metric[self.structure[0]][at[:, None], at]


def places(definition: Op2Density, structures: Sequence[Structure]) -> dict[int, Environments]:
    """Environments without features: atoms of each element, and where their functions are."""
    rows: dict[int, list] = {}
    for i, s in enumerate(structures):
        layout = layout_of(s, definition.aux_basis)
        for z, atoms in atoms_of(s.numbers).items():
            at = {l: channels(layout, atoms, l) for l in sorted(set(ls_of(definition, z)))}
            rows.setdefault(z, []).append((np.full(len(atoms), i), at))
    out = {}
    for z, of_element in sorted(rows.items()):
        structure, at = zip(*of_element, strict=True)
        joined = {l: np.concatenate([p[l] for p in at]) for l in at[0]}
        out[z] = Environments({}, np.concatenate(structure), joined)
    return out


def environments(
    definition: Op2Density, structures: Sequence[Structure]
) -> dict[int, Environments]:
    """Features of all atoms, by element."""
    rows: dict[int, list[dict[int, np.ndarray]]] = {}
    for start in range(0, len(structures), CHUNK):
        part = list(structures[start : start + CHUNK])
        filled = part + [part[-1]] * (min(CHUNK, len(structures)) - len(part))
        computed = _features(definition, batch(filled, definition.basis))
        features = {l: np.asarray(x) for l, x in computed.items()}
        for i, s in enumerate(part):
            for z, atoms in atoms_of(s.numbers).items():
                rows.setdefault(z, []).append({l: x[i, atoms] for l, x in features.items()})
    return {
        z: dataclasses.replace(
            placed, features={l: np.concatenate([x[l] for x in rows[z]]) for l in rows[z][0]}
        )
        for z, placed in places(definition, structures).items()
    }


def ls_of(definition: Op2Density, z: int) -> list[int]:
    """Angular momentum of every function of an element."""
    spec = definition.aux_basis.spec
    return [l for l in spec.ls[spec.element_index(z)] for _ in range(2 * l + 1)]
