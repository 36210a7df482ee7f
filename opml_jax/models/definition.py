"""What every model's definition shares: configuration, basis, identity, elements of atoms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from ..basis import Basis, layout_of
from ..numerics import Array
from ..structures import Structure, StructureBatch


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """Pure functions of one model for one basis; hashable, holds no numbers but the basis's.

    Args:
      config: hyper-parameters.
      basis: the input basis, loaded for every element the model knows.
    """

    config: Any
    basis: Basis

    @property
    def _key(self):
        return type(self), self.config, self.basis.spec

    def __eq__(self, other) -> bool:
        return isinstance(other, Definition) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def one_hot(self, structure: Structure | StructureBatch) -> Array:
        """``(..., n_atoms, n_elements)``, zero for padding."""
        layout = layout_of(structure, self.basis)
        hot = jax.nn.one_hot(layout.element, len(self.basis.elements), dtype=float)
        return hot * structure.mask[..., None] if isinstance(structure, StructureBatch) else hot

    def draw(
        self,
        seed: int,
        structures: Sequence[Structure] = (),
        known: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Parameters that descriptors need and that are there before training: none.

        Args:
          seed: of what is random.
          structures: the training set.
          known: parameters that others trained.
        """
        return {}
