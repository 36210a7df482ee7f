"""The operator: an AO matrix that carries its layout through an algebra."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, BatchLayout
from ..errors import ConventionError, refusal
from ..numerics import Array, is_concrete, matmul, pytree


@pytree
class Operator:
    """Matrix of a one-electron operator, ``(..., nao, nao)``, in the basis its layout names.

    A pytree; ``+ - * @ .T`` follow linear algebra. ``A @ B`` is the plain product of the
    matrices, without the inverse overlap. Mixing layouts is an error that names both.

    Attributes:
      matrix: ``(nao, nao)``, or ``(n_structures, nao, nao)`` for a batch.
      layout: the AO layout, :class:`~opml_jax.basis.AOLayout` or
        :class:`~opml_jax.basis.BatchLayout`.

    Example:
      >>> V2 = V @ V + 0.5 * V            # doctest: +SKIP
    """

    matrix: Array
    layout: AOLayout | BatchLayout

    __array_ufunc__ = None  # so that a NumPy scalar on the left defers to __rmul__

    def __post_init__(self):
        shape, nao = getattr(self.matrix, "shape", None), self.layout.nao
        if shape is not None and (len(shape) < 2 or shape[-2:] != (nao, nao)):
            raise ConventionError(
                refusal(
                    "matrix",
                    got=f"shape {shape}",
                    expected=f"(..., {nao}, {nao}) for {self.layout!r}",
                )
            )

    @classmethod
    def from_dense(cls, matrix: Array, layout: AOLayout | BatchLayout) -> Operator:
        """Operator of a matrix in the library's AO order (see :func:`opml_jax.from_pyscf`)."""
        return cls(jnp.asarray(matrix), layout)

    def to_dense(self) -> Array:
        """The matrix, ``(..., nao, nao)``."""
        return self.matrix

    @property
    def nao(self) -> int:
        """Number of AOs (padded, for a batch)."""
        return self.layout.nao

    @property
    def T(self) -> Operator:
        """Transpose."""
        return Operator(jnp.swapaxes(self.matrix, -1, -2), self.layout)

    def _same(self, other: Operator, symbol: str) -> Array:
        a, b = self.layout, other.layout
        if isinstance(a, AOLayout) or isinstance(b, AOLayout):
            agree = a == b
        else:
            agree = (a.spec, a.nao, a.slots.shape) == (b.spec, b.nao, b.slots.shape)
            if agree and is_concrete(a.slots) and is_concrete(b.slots):  # no tracers: compare
                agree = np.array_equal(a.slots, b.slots) and np.array_equal(a.element, b.element)
        if not agree:
            raise ConventionError(
                refusal(f"operands of {symbol}", got=f"{a!r} and {b!r}", expected="in one layout")
            )
        return other.matrix

    def _scalar(self, value: Any) -> Any:
        if isinstance(value, Operator) or jnp.ndim(value) not in (0, jnp.ndim(self.matrix) - 2):
            return NotImplemented
        return jnp.asarray(value)[..., None, None]

    def __add__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            return NotImplemented
        return Operator(self.matrix + self._same(other, "+"), self.layout)

    def __sub__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            return NotImplemented
        return Operator(self.matrix - self._same(other, "-"), self.layout)

    def __neg__(self) -> Operator:
        return Operator(-self.matrix, self.layout)

    def __mul__(self, scalar: Any) -> Operator:
        factor = self._scalar(scalar)
        if factor is NotImplemented:
            return NotImplemented
        return Operator(self.matrix * factor, self.layout)

    __rmul__ = __mul__

    def __truediv__(self, scalar: Any) -> Operator:
        factor = self._scalar(scalar)
        if factor is NotImplemented:
            return NotImplemented
        return Operator(self.matrix / factor, self.layout)

    def __matmul__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            return NotImplemented
        return Operator(matmul(self.matrix, self._same(other, "@")), self.layout)

    def __repr__(self) -> str:
        shape = getattr(self.matrix, "shape", None)
        return f"Operator(shape={shape}, {self.layout!r})"
