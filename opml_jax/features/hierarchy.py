r"""Features of operators: irreps of blocks, by atom and by pair.

For atom i and operator M (a power of the potential, say), *on-site* features couple the block
:math:`M_{ii}`, *pooled* ones :math:`\sum_{j \ne i, Z_j = Z} M_{ij}` for every element Z of the
basis, *pair* features :math:`M_{ij}` itself. Coupling is linear, so blocks are pooled first. Atoms
of different elements share one set of channels: those of the slots of the basis, zero where an
element lacks the shell.

Nothing is computed that is not asked for: on-site blocks of :math:`V^{a + b}` come from rows of
V^a and columns of V^b, so no power above V^2 is needed for those of V^4 (of small molecules a
whole product is faster, and taken). Batches are taken a few molecules at a time on a CPU, so that
powers stay in cache, and recomputed in the backward pass.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, Basis, BasisSpec
from ..errors import ConventionError, OpmlError, one_of
from ..irreps import e3nn
from ..numerics import Array, einsum
from ..operators import Operator, on_site_blocks, pair_blocks, pooled_blocks, powers
from ..structures import Structure, StructureBatch
from ..structures.elements import symbol
from .couple import coupling_matrix
from .inputs import OPERATORS

ON_SITE, PAIR = 0, -1
CHUNK = 16
"""Molecules at a time on a CPU, so that a few powers of 72 AOs fit in its cache."""

Key = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Channel:
    """What one irrep of the features is.

    Attributes:
      power: k of V^k.
      neighbour: atomic number of the pooled neighbours; 0 for on-site blocks, -1 for pairs.
      l1: angular momentum of the row shell, which sits on the atom itself.
      n1: index of that shell among the slots of l1.
      l2: angular momentum of the column shell.
      n2: index of that shell.
      l: angular momentum of the irrep; its parity is (-1)^(l1 + l2).
      operator: name of V.
    """

    power: int
    neighbour: int
    l1: int
    n1: int
    l2: int
    n2: int
    l: int
    operator: str = "V"

    @property
    def parity(self) -> int:
        """1 (even) or -1 (odd)."""
        return (-1) ** (self.l1 + self.l2)

    def __str__(self) -> str:
        where = {ON_SITE: "on-site", PAIR: "pair"}.get(self.neighbour)
        where = where or f"sum over {symbol(self.neighbour)}"
        a = f"{self.n1 + self.l1 + 1}{'spdfghi'[self.l1]}"
        b = f"{self.n2 + self.l2 + 1}{'spdfghi'[self.l2]}"
        irrep = f"{self.l}{'e' if self.parity > 0 else 'o'}"
        return f"{self.operator}^{self.power} {where} {a},{b} -> {irrep}"


# what the blocks at one place give: {(L, -parity): ((l1, n1, l2, n2), ...)}
Kept = dict[Key, tuple[tuple[int, int, int, int], ...]]


@dataclasses.dataclass(frozen=True)
class _Recipe(abc.ABC):
    """What recipes share: which operators, which powers, which channels."""

    spec: BasisSpec
    powers: tuple[int, ...] | Mapping[str, Sequence[int]] = (1, 2, 3)

    def __post_init__(self):
        given = self.powers
        if isinstance(given, Mapping):
            given = tuple((str(name), tuple(ks)) for name, ks in given.items())
        else:
            given = tuple(given)
        object.__setattr__(self, "powers", given)
        for _, ks in self.sources or (("", ()),):
            if not ks or any(int(k) != k or k < 1 for k in ks):
                raise OpmlError("powers", got=given, expected="positive integers")

    @property
    @abc.abstractmethod
    def _places(self) -> tuple[tuple[int, Kept], ...]:
        """``(neighbour, what the blocks there give)`` for each kind of block, see Channel."""

    @property
    def sources(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """``((operator name, powers), ...)``; one unnamed operator is V."""
        # no mapping since __post_init__, which a field's type cannot say
        named = self.powers and isinstance(self.powers[0], tuple)  # pyright: ignore[reportArgumentType]
        return self.powers if named else (("V", self.powers),)  # pyright: ignore[reportReturnType]

    @functools.cached_property
    def channels(self) -> tuple[Channel, ...]:
        """What every irrep is, in the order of :attr:`irreps`."""
        kinds = [(name, k) for name, ks in self.sources for k in ks]
        return tuple(
            Channel(k, neighbour, *shells, key[0], name)
            for key in sorted({key for _, kept in self._places for key in kept})
            for name, k in kinds
            for neighbour, kept in self._places
            for shells in kept.get(key, ())
        )

    @functools.cached_property
    def irreps(self) -> e3nn.Irreps:
        """Irreps of the features of one atom or pair, sorted by L, even before odd."""
        counts: dict[Key, int] = {}
        for c in self.channels:
            counts[(c.l, c.parity)] = counts.get((c.l, c.parity), 0) + 1
        return e3nn.Irreps([(n, key) for key, n in counts.items()])

    def _operators(self, given: Operator | Mapping[str, Operator]) -> list[Operator]:
        """The operators of :attr:`sources`, checked."""
        names = [name for name, _ in self.sources]
        if isinstance(given, Operator) and len(names) == 1:
            given = {names[0]: given}
        if not isinstance(given, Mapping) or set(names) - set(given):
            got = [*given] if isinstance(given, Mapping) else "one operator"
            raise OpmlError("operators", got=got, expected=f"operators named {names}")
        for name in names:
            if given[name].layout.spec != self.spec:
                raise ConventionError(
                    f"operator {name}",
                    got=f"one in {given[name].layout!r}",
                    expected=f"one in {self.spec.name!r}, the basis of the recipe",
                )
            given[names[0]]._same(given[name], "features")
        return [given[name] for name in names]


@functools.lru_cache(maxsize=256)
def _kept(spec: BasisSpec, lmax: int | None, symmetric: bool) -> Kept:
    """What one block gives, sorted by L, even before odd.

    In the on-site block of a symmetric operator pairs of one shell with itself couple to even L
    only, and (b, a) repeats (a, b): neither is kept.
    """
    counts, out = spec.slot_counts, {}
    for l1, l2 in np.ndindex(len(counts), len(counts)):
        if symmetric and l2 < l1:
            continue
        for l in range(abs(l1 - l2), l1 + l2 + 1):
            if lmax is not None and l > lmax:
                continue
            row = out.setdefault((l, -((-1) ** (l1 + l2))), [])
            for n1, n2 in np.ndindex(counts[l1], counts[l2]):
                if symmetric and l1 == l2 and (n1 > n2 or (n1 == n2 and l % 2)):
                    continue
                row.append((l1, n1, l2, n2))
    return {key: tuple(row) for key, row in sorted(out.items()) if row}


def _couple(blocks: Array, spec: BasisSpec, kept: Kept) -> dict[Key, Array]:
    """Irreps of blocks in slots: ``(..., n_slots, n_slots)`` to ``{key: (..., n, 2 L + 1)}``."""
    counts, lead = spec.slot_counts, blocks.shape[:-2]
    parts: dict[Key, list[Array]] = {key: [] for key in kept}
    for l1, l2 in sorted({(row[0], row[2]) for rows in kept.values() for row in rows}):
        i, j = spec.slot_start(l1), spec.slot_start(l2)
        n1, n2, m1, m2 = counts[l1], counts[l2], 2 * l1 + 1, 2 * l2 + 1
        cut = blocks[..., i : i + n1 * m1, j : j + n2 * m2].reshape(*lead, n1, m1, n2, m2)
        coefficients = coupling_matrix(l1, l2).astype(blocks.dtype)
        coupled = einsum("...ambn,mnk->...abk", cut, coefficients)
        coupled = coupled.reshape(*lead, n1 * n2, m1 * m2)
        for l in range(abs(l1 - l2), l1 + l2 + 1):
            rows = kept.get((l, -((-1) ** (l1 + l2))), ())
            own = [a * n2 + b for x, a, y, b in rows if (x, y) == (l1, l2)]
            if own:
                start = l * l - (l1 - l2) ** 2
                part = coupled[..., start : start + 2 * l + 1]
                whole = len(own) == n1 * n2
                parts[l, -((-1) ** (l1 + l2))].append(
                    part if whole else part[..., np.array(own), :]
                )
    return {key: jnp.concatenate(p, axis=-2) for key, p in parts.items()}


def _assembled(parts: list[dict[Key, Array]]) -> Array:
    """``{key: (n, n_kinds, n_channels, 2 L + 1)}`` side by side: ``(n, irreps.dim)``."""
    chunks = []
    for key in sorted({key for part in parts for key in part}):
        chunk = jnp.concatenate([part[key] for part in parts if key in part], axis=2)
        chunks.append(chunk.reshape(len(chunk), -1))
    return jnp.concatenate(chunks, axis=-1)


def by_molecule(function: Callable, *arguments: Any, chunk: int = CHUNK) -> Any:
    """``vmap`` over molecules; on a CPU a few at a time, recomputed in the backward pass."""
    n = len(jax.tree.leaves(arguments)[0])
    if jax.default_backend() != "cpu" or n <= chunk:
        return jax.vmap(function)(*arguments)
    # a divisor if there is one of good size: a remainder would be compiled once more
    size = next((c for c in range(chunk, chunk // 4, -1) if n % c == 0), chunk)
    return jax.lax.map(jax.checkpoint(lambda a: function(*a)), arguments, batch_size=size)


@dataclasses.dataclass(frozen=True)
class AtomFeatures(_Recipe):
    """A recipe of atom features: static, hashable; call it with operators.

    Args:
      spec: the basis.
      powers: which V^k of one operator; for several, ``{name: powers}``.
      pair: whether to add neighbour-pooled blocks.
      lmax: highest irrep kept. Default: all, 2 lmax of the basis.
      symmetric: whether the operators are symmetric; if not, all on-site channels are kept.

    Example:
      >>> recipe = AtomFeatures(basis.spec, {"V": (1, 2), "S": (1,)})    # doctest: +SKIP
      >>> recipe({"V": V, "S": S}).irreps                                # doctest: +SKIP
    """

    pair: bool = True
    lmax: int | None = None
    symmetric: bool = True

    @functools.cached_property
    def _places(self) -> tuple[tuple[int, Kept], ...]:
        on_site = (ON_SITE, _kept(self.spec, self.lmax, self.symmetric))
        pooled = _kept(self.spec, self.lmax, False)
        return (on_site, *((z, pooled) for z in self.spec.elements if self.pair))

    def __call__(
        self,
        operators: Operator | Mapping[str, Operator],
        *,
        then: Callable[[e3nn.IrrepsArray], Any] | None = None,
    ) -> Any:
        """Features of operators.

        Args:
          operators: one, or one for each name of the recipe; of one molecule or of a batch.
          then: what to make of the features ``(n_atoms, irreps.dim)`` of each molecule, such as an
            energy; those of a whole batch then never exist at once, nor in the backward pass.

        Returns:
          ``IrrepsArray`` of shape ``(n_atoms, irreps.dim)``, zero for padding; a batch adds a
          leading axis. Transform it with :func:`opml_jax.conventions.rotation_to_e3nn`. With
          ``then`` its results, a batch stacked.

        Raises:
          ConventionError: operators in another basis, or in different layouts or plans.
          OpmlError: an operator that is missing, or not known to be symmetric.
        """
        given = self._operators(operators)
        for o in given:
            if self.symmetric and not o.symmetric:
                raise OpmlError(
                    "operator",
                    got=f"{o!r}, not known to be symmetric",
                    expected="a symmetric one",
                    hint="Use its .symmetrised(), or a recipe with symmetric=False.",
                )

        def molecule(operators):
            features = self._molecule(operators)
            return features if then is None else then(e3nn.IrrepsArray(self.irreps, features))

        single = isinstance(given[0].layout, AOLayout)
        found = molecule(given) if single else by_molecule(molecule, given)
        return e3nn.IrrepsArray(self.irreps, found) if then is None else found

    def _molecule(self, operators: list[Operator]) -> Array:
        blocks = _pooled_too if self.pair else _on_site_alone
        found = [blocks(o, ks) for o, (_, ks) in zip(operators, self.sources, strict=True)]
        on_site, *pooled = (jnp.concatenate(p, axis=1) for p in zip(*found, strict=True))
        parts = [_couple(on_site, self.spec, self._places[0][1])]
        if pooled:
            coupled = _couple(pooled[0], self.spec, self._places[1][1])
            # (atom, kind, element, channel, m): elements and channels become one axis
            parts.append({k: c.reshape(*c.shape[:2], -1, c.shape[-1]) for k, c in coupled.items()})
        return _assembled(parts)


def _on_site_alone(operator: Operator, ks: Sequence[int]) -> tuple[Array]:
    """``(n_atoms, n_powers, n_slots, n_slots)``, from powers of half the exponent."""
    halves = sorted({h for k in ks if k > 1 for h in (k // 2, k - k // 2)})
    found = dict(zip(halves, powers(operator, halves), strict=True)) if halves else {}
    blocks = []
    for k in ks:
        block = on_site_blocks(operator) if k == 1 else None
        if k > 1:
            block = found[k // 2].multiply(found[k - k // 2], out="diagonal")
            if operator.plan is not None and operator.symmetric and k % 2:
                block = 0.5 * (block + jnp.swapaxes(block, -1, -2))  # as restricted powers are
        blocks.append(block)
    return (jnp.stack(blocks, axis=1),)


def _pooled_too(operator: Operator, ks: Sequence[int]) -> tuple[Array, Array]:
    """The same, and ``(n_atoms, n_powers, n_elements, n_slots, n_slots)`` summed by element.

    Pooling takes whole powers: on-site blocks cannot be left out of a product of halves, and
    subtracted they would leave rounding noise where an atom has no such neighbour.
    """
    found = powers(operator, ks)
    on_site = jnp.stack([on_site_blocks(o) for o in found], axis=1)
    return on_site, jnp.stack([pooled_blocks(o) for o in found], axis=1)


@dataclasses.dataclass(frozen=True)
class PairFeatures(_Recipe):
    """A recipe of features of ordered atom pairs: static, hashable; call it with operators.

    Args:
      spec: the basis.
      powers: which V^k of one operator; for several, ``{name: powers}``.
      lmax: highest irrep kept. Default: all.
    """

    lmax: int | None = None

    @functools.cached_property
    def _places(self) -> tuple[tuple[int, Kept], ...]:
        return ((PAIR, _kept(self.spec, self.lmax, False)),)

    def __call__(
        self, operators: Operator | Mapping[str, Operator], pairs: Array
    ) -> e3nn.IrrepsArray:
        """Features of pairs.

        Args:
          operators: one, or one for each name of the recipe; of one molecule or of a batch.
          pairs: ``(n_pairs, 2)`` atoms i and j; for a batch ``(n_structures, n_pairs, 2)``.

        Returns:
          ``IrrepsArray`` of shape ``(n_pairs, irreps.dim)``; a batch adds a leading axis.

        Raises:
          ConventionError: operators in another basis, or in different layouts or plans.
          OpmlError: an operator that is missing.
        """
        given = self._operators(operators)
        function = self._molecule
        if not isinstance(given[0].layout, AOLayout):
            return e3nn.IrrepsArray(self.irreps, by_molecule(function, given, jnp.asarray(pairs)))
        return e3nn.IrrepsArray(self.irreps, function(given, jnp.asarray(pairs)))

    def _molecule(self, operators: list[Operator], pairs: Array) -> Array:
        blocks = [
            pair_blocks(o, pairs)
            for operator, (_, ks) in zip(operators, self.sources, strict=True)
            for o in powers(operator, ks)
        ]
        return _assembled([_couple(jnp.stack(blocks, axis=1), self.spec, self._places[0][1])])


def atom_features(
    structure: Structure | StructureBatch,
    basis: Basis,
    powers: Sequence[int] | Mapping[str, Sequence[int]] = (1, 2, 3),
    *,
    operator: str = "external_potential",
    pair: bool = True,
    lmax: int | None = None,
    driver: str | None = None,
) -> e3nn.IrrepsArray:
    """Irreps of on-site and neighbour-pooled blocks of powers of physical operators.

    Args:
      structure: molecule or batch.
      basis: covers its elements.
      powers: which V^k; or several operators of :data:`OPERATORS`, ``{name: powers}``.
      operator: name of V, if there is only one.
      pair: whether to add neighbour-pooled blocks.
      lmax: highest irrep kept. Default: all.
      driver: integral engine. Default: the library's.

    Returns:
      ``IrrepsArray`` of shape ``(n_atoms, irreps.dim)``; a batch adds a leading axis.

    Raises:
      ConfigError: an unknown operator name.
      OpmlError: powers that are not positive integers.
      BasisError: an element the basis lacks.
    """
    named = dict(powers) if isinstance(powers, Mapping) else {operator: tuple(powers)}
    for name in named:
        one_of("operator", name, OPERATORS)
    options = {} if driver is None else {"driver": driver}
    found = {name: OPERATORS[name](structure, basis, **options) for name in named}
    if not isinstance(powers, Mapping):
        return AtomFeatures(basis.spec, tuple(powers), pair, lmax)(found[operator])
    return AtomFeatures(basis.spec, named, pair, lmax)(found)
