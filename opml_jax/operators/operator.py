"""The operator: an AO matrix that carries its layout, and its pattern, through an algebra."""

from __future__ import annotations

import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, BatchLayout
from ..errors import ConventionError, OpmlError, one_of
from ..numerics import Array, is_concrete, pytree, static
from ..structures import Structure, StructureBatch
from . import product
from .plans import Plan, is_tiled, plan_of, same_plan

OUTPUTS = ("pattern", "full", "diagonal", "upper")


@pytree
class Operator:
    """Matrix of a one-electron operator, ``(..., nao, nao)``, in the basis its layout names.

    A pytree; ``+ - * @ .T`` follow linear algebra. ``A @ B`` is the plain product of the
    matrices, without the inverse overlap. An operator restricted to a cutoff
    (:meth:`restrict`) stays so: its products keep to the pattern of its plan, and its values may
    be stored in tiles. Mixing layouts or plans is an error that names both.

    Attributes:
      values: dense: ``(nao, nao)``, or ``(n_structures, nao, nao)`` for a batch; tiled:
        ``(n_tiles, tile, tile)``.
      layout: the AO layout, :class:`~opml_jax.basis.AOLayout` or
        :class:`~opml_jax.basis.BatchLayout`.
      plan: the pattern it is restricted to, or None.
      symmetric: whether the matrix is symmetric by construction. Squares of symmetric operators do
        half the work, and are differentiated as functions of a symmetric matrix.

    Example:
      >>> V2 = V @ V + 0.5 * V            # doctest: +SKIP
    """

    values: Array
    layout: AOLayout | BatchLayout
    plan: Plan | None = None
    symmetric: bool = static(default=False)

    __array_ufunc__ = None  # so that a NumPy scalar on the left defers to __rmul__

    def __post_init__(self):
        shape, nao = getattr(self.values, "shape", None), self.layout.nao
        if self.storage == "dense" and shape is not None and shape[-2:] != (nao, nao):
            raise ConventionError(
                "matrix", got=f"shape {shape}", expected=f"(..., {nao}, {nao}) for {self.layout!r}"
            )

    @classmethod
    def from_dense(
        cls, matrix: Array, layout: AOLayout | BatchLayout, *, symmetric: bool = False
    ) -> Operator:
        """Operator of a matrix in the library's AO order (see :func:`opml_jax.from_pyscf`)."""
        return cls(jnp.asarray(matrix), layout, symmetric=symmetric)

    def to_dense(self) -> Array:
        """The matrix, ``(..., nao, nao)``."""
        if not is_tiled(self.plan):
            return self.values
        row, place = self.plan.place.T
        square = self.plan.lookup[row[:, None], row[None, :]]
        return self.values[..., square, place[:, None], place[None, :]]

    @property
    def matrix(self) -> Array:
        """The matrix, ``(..., nao, nao)``; see :meth:`to_dense`."""
        return self.to_dense()

    @property
    def storage(self) -> str:
        """``"dense"`` or ``"tiled"``."""
        return "dense" if self.plan is None else self.plan.storage

    @property
    def nao(self) -> int:
        """Number of AOs (padded, for a batch)."""
        return self.layout.nao

    @property
    def T(self) -> Operator:
        """Transpose."""
        return self._with(product.transpose(self.values, self.plan), symmetric=self.symmetric)

    def restrict(
        self,
        pattern: Plan | float | None,
        structure: Structure | StructureBatch | None = None,
        **options: Any,
    ) -> Operator:
        """The operator with the blocks of distant atoms set to zero, now and in products.

        Args:
          pattern: a plan, or a cutoff in Bohr; None lifts the restriction.
          structure: where the atoms are, if a cutoff is given.
          **options: ``storage`` and ``tile``, see :func:`plan`.

        Raises:
          ConventionError: a plan of another layout.
          OpmlError: a cutoff without a structure.
        """
        if pattern is None:
            return Operator(self.to_dense(), self.layout, None, self.symmetric)
        if not isinstance(pattern, Plan):
            if structure is None:
                raise OpmlError(
                    "structure",
                    got=None,
                    expected="the molecule, when a cutoff is given",
                    hint="V.restrict(6.0, structure), or V.restrict(plan).",
                )
            pattern = plan_of(structure, self.layout, pattern, **options)
        _same_layout(self.layout, pattern.layout, "restrict")
        dense = self.to_dense()
        if is_tiled(pattern):
            rows, columns = jnp.pad(pattern.ao, ((0, 1), (0, 0)), constant_values=self.nao)[
                pattern.tiles.T
            ]
            padded = jnp.pad(dense, [(0, 0)] * (dense.ndim - 2) + [(0, 1), (0, 1)])
            dense = padded[..., rows[:, :, None], columns[:, None, :]]
        values = jnp.where(pattern.mask, dense, 0)
        return Operator(values, self.layout, pattern, self.symmetric)

    def symmetrised(self) -> Operator:
        """``(A + A^T) / 2``, marked as symmetric."""
        if self.symmetric:
            return self
        values = 0.5 * (self.values + product.transpose(self.values, self.plan))
        return self._with(values, symmetric=True)

    @overload
    def multiply(
        self,
        other: Operator,
        *,
        out: Literal["pattern", "full", "upper"] = "pattern",
        symmetric: bool | None = None,
    ) -> Operator: ...
    @overload
    def multiply(
        self, other: Operator, *, out: Literal["diagonal"], symmetric: bool | None = None
    ) -> Array: ...
    @overload
    def multiply(
        self, other: Operator, *, out: str = "pattern", symmetric: bool | None = None
    ) -> Operator | Array: ...
    def multiply(
        self, other: Operator, *, out: str = "pattern", symmetric: bool | None = None
    ) -> Operator | Array:
        """Product of two operators, or the part of it that is wanted.

        Args:
          other: in the same layout and plan.
          out: ``"pattern"``: restricted like the operands (all of it, if they are not);
            ``"full"``: unrestricted, dense; ``"upper"``: the upper triangle in the order of the
            storage, zero below; ``"diagonal"``: on-site blocks alone.
          symmetric: whether the product is known to be symmetric, as of two powers of one operator.
            Default: it is the square of a symmetric operator.

        Returns:
          An operator; for ``"diagonal"`` an array ``(..., n_atoms, n_slots, n_slots)`` of blocks in
          the slots of the basis, zero where an element has no such shell.

        Raises:
          ConventionError: operands of different layouts or plans.
          OpmlError: an unknown ``out``.
        """
        one_of("out", out, OUTPUTS, OpmlError)
        y = self._same(other, "@")
        square = self.symmetric and other.symmetric and self.values is other.values
        symmetric = square if symmetric is None else symmetric
        if out == "diagonal":
            return self._on_site(y, square)
        if out == "upper":
            return self._with(product.multiply_upper(self.values, y, self.plan), symmetric=False)
        if out == "full" and self.plan is not None:
            whole = self.restrict(None)
            return whole.multiply(whole if square else other.restrict(None), symmetric=symmetric)
        values = product.multiply(
            self.values, y, self.plan, square=square, symmetric=bool(symmetric)
        )
        return self._with(values, symmetric=bool(symmetric))

    def _on_site(self, y: Array, square: bool) -> Array:
        slots = jnp.asarray(self.layout.slots)
        function = functools.partial(product.on_site, plan=self.plan, square=square)
        if slots.ndim == 3:  # a batch, dense
            function = jax.vmap(function)
        return function(self.values, y, slots)

    def _with(self, values: Array, *, symmetric: bool) -> Operator:
        return Operator(values, self.layout, self.plan, symmetric)

    def _same(self, other: Operator, symbol: str) -> Array:
        _same_layout(self.layout, other.layout, symbol)
        if not same_plan(self.plan, other.plan):
            got = " and ".join(
                "an unrestricted operator" if p is None else repr(p)
                for p in (self.plan, other.plan)
            )
            raise ConventionError(
                f"operands of {symbol}",
                got=got,
                expected="restricted by one plan",
                hint="Use a.restrict(b.plan).",
            )
        return other.values

    def _scalar(self, value: Any) -> Any:
        lead = jnp.ndim(self.values) - (2 if self.storage == "dense" else 3)
        if isinstance(value, Operator) or jnp.ndim(value) not in (0, lead):
            return NotImplemented
        value = jnp.asarray(value)
        return value.reshape(value.shape + (1,) * (jnp.ndim(self.values) - lead))

    def __add__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            return NotImplemented
        values = self.values + self._same(other, "+")
        return self._with(values, symmetric=self.symmetric and other.symmetric)

    def __sub__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            return NotImplemented
        values = self.values - self._same(other, "-")
        return self._with(values, symmetric=self.symmetric and other.symmetric)

    def __neg__(self) -> Operator:
        return self._with(-self.values, symmetric=self.symmetric)

    def __mul__(self, scalar: Any) -> Operator:
        factor = self._scalar(scalar)
        if factor is NotImplemented:
            return NotImplemented
        return self._with(self.values * factor, symmetric=self.symmetric)

    __rmul__ = __mul__

    def __truediv__(self, scalar: Any) -> Operator:
        factor = self._scalar(scalar)
        if factor is NotImplemented:
            return NotImplemented
        return self._with(self.values / factor, symmetric=self.symmetric)

    def __matmul__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            return NotImplemented
        return self.multiply(other)

    def __repr__(self) -> str:
        if self.storage == "tiled":
            return f"Operator(nao={self.nao}, {self.plan!r})"
        shape = getattr(self.values, "shape", None)
        restricted = "" if self.plan is None else f", cutoff={self.plan.cutoff:g} Bohr"
        return f"Operator(shape={shape}{restricted}, {self.layout!r})"


def _same_layout(a: AOLayout | BatchLayout, b: AOLayout | BatchLayout, symbol: str) -> None:
    if a is b:
        return
    if isinstance(a, AOLayout) or isinstance(b, AOLayout):
        agree = a == b
    else:
        agree = (a.spec, a.nao, a.slots.shape) == (b.spec, b.nao, b.slots.shape)
        if agree and is_concrete(a.slots) and is_concrete(b.slots):  # no tracers: compare
            agree = np.array_equal(a.slots, b.slots) and np.array_equal(a.element, b.element)
    if not agree:
        raise ConventionError(
            f"operands of {symbol}", got=f"{a!r} and {b!r}", expected="in one layout"
        )
