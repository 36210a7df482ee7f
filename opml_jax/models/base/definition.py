"""What every model's definition shares: configuration, bases, identity, elements of atoms."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from ...basis import Basis, layout_of
from ...numerics import Array
from ...structures import Structure, StructureBatch

Params = dict[str, Any]
"""Parameters of a model: a tree of arrays."""


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """Pure functions of one model for its bases; hashable, holds no numbers but the bases'.

    Two definitions are equal if they have the same functions, whatever objects they are made of and
    however they were trained: a model that is loaded twice compiles once.

    Args:
      config: hyper-parameters of the functions.
      basis: the input basis, loaded for every element the model knows.
    """

    config: Any
    basis: Basis

    bases: ClassVar[tuple[str, ...]] = ("basis",)
    """Names of the bases, which model files hold."""

    def __post_init__(self):
        object.__setattr__(self, "config", self.config.functions)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What is equal for equal functions: plain values, of which there is a text."""
        bases = (getattr(self, name) for name in self.bases)
        return type(self), self.config, *(b and b.spec for b in bases)

    def __eq__(self, other) -> bool:
        return isinstance(other, Definition) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the model knows."""
        return self.basis.elements

    def one_hot(self, structure: Structure | StructureBatch) -> Array:
        """``(..., n_atoms, n_elements)``, zero for padding."""
        layout = layout_of(structure, self.basis)
        hot = jax.nn.one_hot(layout.element, len(self.basis.elements), dtype=float)
        return hot * structure.mask[..., None] if isinstance(structure, StructureBatch) else hot
