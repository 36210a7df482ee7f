r"""Atom features: the irreps of on-site blocks and of neighbour-pooled blocks of operator powers.

For atom i and power k, *on-site* features couple the block :math:`(V^k)_{ii}`; *pair* features
couple :math:`\sum_{j \ne i, Z_j = Z} (V^k)_{ij}` for every element Z of the basis. Coupling is
linear, so blocks are pooled first. Atoms of different elements share one set of channels: those
of the slots of the basis, zero where an element lacks the shell.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, Basis, BasisSpec
from ..errors import ConventionError, OpmlError, nearest, refusal
from ..numerics import Array, einsum
from ..operators import Operator, build, powers, slot_blocks
from ..operators.blocks import topology
from ..structures import Structure, StructureBatch
from ..structures.elements import symbol
from .couple import clebsch_gordan

OPERATORS = {
    "external_potential": build.external_potential,
    "screened_potential": build.screened_potential,
}
"""Input operators by name."""


@dataclasses.dataclass(frozen=True)
class Channel:
    """What one irrep of the features is.

    Attributes:
      power: k of V^k.
      neighbour: atomic number of the pooled neighbours; 0 for on-site blocks.
      l1: angular momentum of the row shell, which sits on the atom itself.
      n1: index of that shell among the slots of l1.
      l2: angular momentum of the column shell.
      n2: index of that shell.
      l: angular momentum of the irrep; its parity is (-1)^(l1 + l2).
    """

    power: int
    neighbour: int
    l1: int
    n1: int
    l2: int
    n2: int
    l: int

    @property
    def parity(self) -> int:
        """1 (even) or -1 (odd)."""
        return (-1) ** (self.l1 + self.l2)

    def __str__(self) -> str:
        where = "on-site" if not self.neighbour else f"sum over {symbol(self.neighbour)}"
        a = f"{self.n1 + self.l1 + 1}{'spdfg'[self.l1]}"
        b = f"{self.n2 + self.l2 + 1}{'spdfg'[self.l2]}"
        return f"V^{self.power} {where} {a},{b} -> {self.l}{'e' if self.parity > 0 else 'o'}"


@dataclasses.dataclass(frozen=True)
class AtomFeatures:
    """A recipe of atom features: static, hashable; call it with an operator.

    Args:
      spec: the basis.
      powers: which V^k.
      pair: whether to add neighbour-pooled blocks.
      lmax: highest irrep kept. Default: all, 2 lmax of the basis.

    Example:
      >>> AtomFeatures(basis.spec, powers=(1, 2)).irreps     # doctest: +SKIP
    """

    spec: BasisSpec
    powers: tuple[int, ...] = (1, 2, 3)
    pair: bool = True
    lmax: int | None = None

    @functools.cached_property
    def _terms(self) -> tuple:
        """((L, parity), neighbour, l1, l2, n1 index array, n2 index array), in output order.

        For on-site blocks of a symmetric operator, pairs of one shell with itself couple to
        even L only, and (b, a) repeats (a, b): neither is kept.
        """
        counts = self.spec.slot_counts
        terms = []
        for neighbour in (0, *(self.spec.elements if self.pair else ())):
            for l1, n1 in enumerate(counts):
                for l2, n2 in enumerate(counts):
                    if not (n1 and n2) or (not neighbour and l2 < l1):
                        continue
                    a, b = (x.ravel() for x in np.meshgrid(range(n1), range(n2), indexing="ij"))
                    for l in range(abs(l1 - l2), l1 + l2 + 1):
                        if self.lmax is not None and l > self.lmax:
                            continue
                        keep = np.ones(len(a), bool)
                        if not neighbour and l1 == l2:
                            keep = a <= b if l % 2 == 0 else a < b
                        if keep.any():
                            key = (l, -((-1) ** (l1 + l2)))
                            terms.append((key, neighbour, l1, l2, a[keep], b[keep]))
        return tuple(sorted(terms, key=lambda t: t[0]))

    @functools.cached_property
    def channels(self) -> tuple[Channel, ...]:
        """What every irrep is, in the order of :attr:`irreps`."""
        out = []
        for key in sorted({t[0] for t in self._terms}):
            for k in self.powers:
                for own, neighbour, l1, l2, a, b in self._terms:
                    if own == key:
                        out.extend(
                            Channel(k, neighbour, l1, int(x), l2, int(y), key[0])
                            for x, y in zip(a, b, strict=True)
                        )
        return tuple(out)

    @functools.cached_property
    def irreps(self) -> e3nn.Irreps:
        """Irreps of the features of one atom, sorted by L, even before odd."""
        counts: dict[tuple[int, int], int] = {}
        for c in self.channels:
            counts[(c.l, c.parity)] = counts.get((c.l, c.parity), 0) + 1
        return e3nn.Irreps([(n, key) for key, n in counts.items()])

    def __call__(self, operator: Operator) -> e3nn.IrrepsArray:
        """Features of a symmetric operator.

        Args:
          operator: of one molecule, or of a batch.

        Returns:
          ``IrrepsArray`` of shape ``(n_atoms, irreps.dim)``, zero for padding; a batch adds a
          leading axis. Transform it with :func:`opml_jax.conventions.rotation_to_e3nn`.

        Raises:
          ConventionError: an operator in another basis.
        """
        layout = operator.layout
        if layout.spec != self.spec:
            raise ConventionError(
                refusal(
                    "operator",
                    got=f"one in {layout!r}",
                    expected=f"one in {self.spec.name!r}, the basis of the recipe",
                )
            )
        slots, element = topology(layout)
        function = self._of_powers
        if not isinstance(layout, AOLayout):
            function = jax.vmap(function)
        stack = jnp.stack([p.matrix for p in powers(operator, self.powers)], axis=-3)
        array = function(stack, slots, element)
        return e3nn.IrrepsArray(self.irreps, array)

    def _of_powers(self, matrices: Array, slots: Array, element: Array) -> Array:
        """``(n_powers, nao, nao)`` to ``(n_atoms, irreps.dim)``."""
        n_atoms = len(slots)
        blocks = jax.vmap(slot_blocks, (0, None))(matrices, slots)
        eye = np.eye(n_atoms)
        sources = {0: einsum("piajb,ij->ipab", blocks, eye)}
        if self.pair:
            other = einsum("piajb,ij->piajb", blocks, 1 - eye)
            # a padded atom has no AOs, so its (arbitrary) element adds only zeros
            one_hot = jax.nn.one_hot(element, len(self.spec.elements), dtype=blocks.dtype)
            pooled = einsum("piajb,jz->zipab", other, one_hot)
            sources |= dict(zip(self.spec.elements, pooled, strict=True))

        def shells(source, l1, l2):
            """``(n_atoms, n_powers, n1, 2 l1 + 1, n2, 2 l2 + 1)``."""
            n1, n2 = self.spec.slot_counts[l1], self.spec.slot_counts[l2]
            i, j = self.spec.slot_start(l1), self.spec.slot_start(l2)
            part = source[..., i : i + n1 * (2 * l1 + 1), j : j + n2 * (2 * l2 + 1)]
            return part.reshape(*part.shape[:2], n1, 2 * l1 + 1, n2, 2 * l2 + 1)

        chunks = []
        for key in sorted({t[0] for t in self._terms}):
            parts = []
            for own, neighbour, l1, l2, a, b in self._terms:
                if own == key:
                    block = shells(sources[neighbour], l1, l2)
                    c = clebsch_gordan(l1, l2, key[0])
                    coupled = einsum("ipambn,mnk->ipabk", block, c)
                    parts.append(coupled[:, :, a, b])
            chunk = jnp.concatenate(parts, axis=2)
            chunks.append(chunk.reshape(n_atoms, -1))
        return jnp.concatenate(chunks, axis=-1)


def atom_features(
    structure: Structure | StructureBatch,
    basis: Basis,
    powers: Sequence[int] = (1, 2, 3),
    *,
    operator: str = "external_potential",
    pair: bool = True,
    lmax: int | None = None,
    driver: str | None = None,
) -> e3nn.IrrepsArray:
    """Irreps of on-site and neighbour-pooled blocks of powers of the external potential.

    Args:
      structure: molecule or batch.
      basis: covers its elements.
      powers: which V^k.
      operator: ``"external_potential"`` or ``"screened_potential"``.
      pair: whether to add neighbour-pooled blocks.
      lmax: highest irrep kept. Default: all.
      driver: integral engine. Default: the library's.

    Returns:
      ``IrrepsArray`` of shape ``(n_atoms, irreps.dim)``; a batch adds a leading axis.

    Raises:
      OpmlError: an unknown operator name, or powers that are not positive integers.
      BasisError: an element the basis lacks.
    """
    if operator not in OPERATORS:
        raise OpmlError(
            refusal(
                "operator",
                got=repr(operator),
                expected=f"one of {[*OPERATORS]}",
                hint=nearest(operator, OPERATORS),
            )
        )
    options = {} if driver is None else {"driver": driver}
    v = OPERATORS[operator](structure, basis, **options)
    return AtomFeatures(basis.spec, tuple(powers), pair, lmax)(v)
