r"""Products of randomly mixed irreps: many-body invariants of atoms.

Channels of an atom's irreps are mixed at random, with weights of its element, and multiplied with
themselves up to the fourth power,

.. math::
    A^{cLM} = \sum_k W^{L}_{Z k c}\, (x^{kLM} - \bar x_Z^{kLM}), \qquad
    B^{csLM} = \sum_p R^{L}_{spc}\, (A^c \otimes A^c)^{LM}_p, \qquad s = 1, 2

and what each channel gives are the scalars :math:`A^{c00}`, :math:`|A^{cL}|^2`,
:math:`B^{csL} \cdot A^{cL}` and :math:`B^{c1L} \cdot B^{csL}`: bodies are correlated channel by
channel and not in all combinations of channels, which loses little once the channels are random
mixtures (Darby et al., Phys. Rev. Lett. 131, 028001 (2023), for atomic densities).

What to mix is found out on pairs of atoms, at distances from a short bond to 4 Angstrom: their
irreps, in principal components that are lifted to comparable size. No data set enters, so a kind
of neighbour that is rare in one is not magnified.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import BasisSpec
from ..irreps import e3nn
from ..numerics import Array, einsum
from ..structures import Structure
from ..units import ANGSTROM_PER_BOHR
from .couple import clebsch_gordan
from .hierarchy import ON_SITE, AtomFeatures, by_molecule

Mixing = dict[str, Any]
"""Weights of the mixtures, a pytree of arrays; see :meth:`Products.draw`."""

SETS = 2
"""Sets s of mixed squares B; cubes and fourth powers are made of them."""

SHORTEST, LONGEST, DISTANCES = 0.75, 4.0, 40
"""Distances of the pairs: in sums of covalent radii, in Angstrom, and how many."""

KEPT, LIFT, LEAST = 12, 0.125, 1e-9
"""Principal components that are mixed: how many, the power of eigenvalues that divides them, and
the smallest eigenvalue, in units of the largest."""

KEPT_OF_DATA = 8
"""Likewise of the atoms of a data set, where the last components extrapolate worst: on water, 12
gave mean errors of 3 instead of 0.1 meV, all of it from few geometries (with mixtures lifted as
those of pairs are)."""

PRIOR = 0.25
"""How much smaller weights of invariants are expected to be with each factor in a product more."""

NEIGHBOURS = 8.0
"""Neighbours of an atom that together count as much as its on-site irreps."""


def pairs_of_atoms(elements: Sequence[int]) -> tuple[list[tuple[int, int]], list[Structure]]:
    """Pairs of elements, and diatomic molecules of each at :data:`DISTANCES` distances.

    Args:
      elements: atomic numbers.

    Returns:
      ``[(z1, z2), ...]`` with z1 <= z2, and the molecules in that order.
    """
    from ase.data import covalent_radii

    kinds, molecules = [], []
    for i, z1 in enumerate(elements):
        for z2 in elements[i:]:
            shortest = max(SHORTEST * (covalent_radii[z1] + covalent_radii[z2]), 0.6)
            kinds.append((z1, z2))
            for r in np.linspace(shortest, LONGEST, DISTANCES) / ANGSTROM_PER_BOHR:
                ends = [[0.0, 0.0, 0.0], [0.0, 0.0, r]]
                molecules.append(Structure([z1, z2], ends, charge=(z1 + z2) % 2))
    return kinds, molecules


@functools.lru_cache(maxsize=16)
def _couplings(ls: tuple[int, ...]) -> tuple[tuple[int, int, tuple[int, ...], np.ndarray], ...]:
    """``(l1, l2, Ls, table)`` for l1 <= l2: what two irreps couple to.

    Natural parity only, (-1)^(l1 + l2 + L) = 1; the rows of ``table``, ``(sum of 2 L + 1,
    (2 l1 + 1) (2 l2 + 1))``, are those of all L one after the other.
    """
    out = []
    for a, l1 in enumerate(ls):
        for l2 in ls[a:]:
            to = tuple(l for l in ls if not (l1 + l2 + l) % 2 and abs(l1 - l2) <= l <= l1 + l2)
            if to:
                rows = [clebsch_gordan(l1, l2, l).reshape(-1, 2 * l + 1).T for l in to]
                out.append((l1, l2, to, np.concatenate(rows)))
    return tuple(out)


def _n_paths(ls: tuple[int, ...]) -> dict[int, int]:
    """How many pairs of irreps couple to each L."""
    return {l: sum(l in to for _, _, to, _ in _couplings(ls)) for l in ls}


class Recipe(Protocol):
    """What makes the irreps that are multiplied."""

    @property
    def spec(self) -> BasisSpec:
        """Of a basis for its elements."""
        ...

    @property
    def irreps(self) -> e3nn.Irreps:
        """Of one atom."""
        ...

    def __call__(self, given: Any, /) -> e3nn.IrrepsArray:
        """``(..., n_atoms, irreps.dim)``."""
        ...


@dataclasses.dataclass(frozen=True)
class Products:
    """A recipe of invariants: static, hashable; call it with atom features.

    Args:
      recipe: what makes the irreps of atoms; those of parity (-1)^L are used. Anything with
        ``irreps`` and ``spec`` of a basis for its elements will do, but for :meth:`draw`.
      channels: random mixtures.
      lmax: highest irrep that is multiplied.
      lift: power of eigenvalues that divides principal components before they are mixed.

    Example:
      >>> recipe = Products(AtomFeatures(basis.spec, {"V": (1,), "S": (1,)}), 64)  # doctest: +SKIP
      >>> recipe(features, mixing, one_hot).shape                                  # doctest: +SKIP
      (9, 1344)
    """

    recipe: Recipe
    channels: int
    lmax: int = 3
    lift: float = LIFT

    @functools.cached_property
    def ls(self) -> tuple[int, ...]:
        """Angular momenta that are multiplied."""
        return tuple(
            ir.l for _, ir in self.recipe.irreps if ir.p == (-1) ** ir.l and ir.l <= self.lmax
        )

    @property
    def n_invariants(self) -> int:
        """Number of invariants of one atom."""
        return self.channels * (1 + len(self.ls) * (1 + 2 * SETS))

    @property
    def prior(self) -> np.ndarray:
        """``(n_invariants,)`` expected sizes of weights of standardised invariants."""
        one = [1, *(len(self.ls) * [2, *SETS * [3], *SETS * [4]])]
        return np.tile(PRIOR ** (np.array(one) - 1.0), self.channels)

    def _irreps(self, features: e3nn.IrrepsArray) -> dict[int, Array]:
        return {
            ir.l: chunk
            for (_, ir), chunk in zip(features.irreps, features.chunks, strict=True)
            if ir.p == (-1) ** ir.l and ir.l in self.ls
        }

    def draw(self, kinds, features: e3nn.IrrepsArray, seed: int) -> Mixing:
        """Random weights of the mixtures.

        Args:
          kinds: pairs of elements, from :func:`pairs_of_atoms`.
          features: ``(n_molecules, 2, irreps.dim)`` of these molecules.
          seed: of the weights.

        Returns:
          ``mean`` ``(n_elements, n_0)`` of scalars; ``mix`` ``{L: (n_elements, n_L, channels)}``;
          ``paths`` ``{L: (SETS, n_paths, channels)}``; L as a string.
        """
        assert isinstance(self.recipe, AtomFeatures)  # whose channels have neighbours
        rng = np.random.default_rng(seed)
        elements = self.recipe.spec.elements
        found = {
            l: np.asarray(x, np.float64).reshape(len(kinds), DISTANCES, 2, *x.shape[-2:])
            for l, x in self._irreps(features).items()
        }
        out: Mixing = {"mix": {}}
        for l, x in found.items():
            channels = [c for c in self.recipe.channels if (c.l, c.parity) == (l, (-1) ** l)]
            neighbour = np.array([c.neighbour for c in channels])
            mean = np.zeros((len(elements), len(channels)))
            mix = np.zeros((len(elements), len(channels), self.channels))
            for e, z in enumerate(elements):
                beside = {
                    b if a == z else a: x[i, :, 0 if a == z else 1]
                    for i, (a, b) in enumerate(kinds)
                    if z in (a, b)
                }
                for place in (ON_SITE, *elements):
                    own = np.flatnonzero(neighbour == place)
                    part = np.concatenate([*beside.values()]) if place == ON_SITE else beside[place]
                    part = part[:, own]
                    if l == 0 and place == ON_SITE:
                        mean[e, own] = part.mean(axis=(0, 2))
                        part = part - mean[e, own][:, None]
                    rows = np.swapaxes(part, 1, 2).reshape(-1, len(own))
                    weight = 1.0 if place == ON_SITE else NEIGHBOURS**-0.5
                    mix[e, own] = weight * _random_mixtures(rows, self.channels, self.lift, rng)
            if l == 0:
                out["mean"] = mean
            out["mix"][str(l)] = mix
        return {**out, "paths": self._paths(rng)}

    def draw_from(
        self,
        features: e3nn.IrrepsArray,
        element: np.ndarray,
        roots: dict[tuple[int, int], np.ndarray],
        seed: int,
    ) -> Mixing:
        """As :meth:`draw`, of principal components of given atoms, neither scaled nor lifted.

        Args:
          features: ``(n_atoms, irreps.dim)``.
          element: ``(n_atoms,)`` index of each atom's element.
          roots: by index of an element and L the symmetric root ``(n, n)`` of the metric of its
            first irreps, all it has: sizes of components are in this metric.
          seed: of the weights.
        """
        rng = np.random.default_rng(seed)
        n_elements = len(self.recipe.spec.elements)
        out: Mixing = {"mix": {}}
        for l, x in self._irreps(features).items():
            x = np.asarray(x, np.float64)
            mean = np.zeros((n_elements, x.shape[1]))
            mix = np.zeros((n_elements, x.shape[1], self.channels))
            for e in range(n_elements):
                n = len(roots.get((e, l), ()))
                if not n:
                    continue
                own = x[element == e, :n]
                if l == 0:
                    mean[e, :n] = own.mean(axis=(0, 2))
                    own = own - mean[e, :n, None]
                rows = np.swapaxes(own, 1, 2).reshape(-1, n) @ roots[e, l]
                _, u = np.linalg.eigh(rows.T @ rows)
                mixture = u[:, ::-1][:, :KEPT_OF_DATA]
                mixture = mixture @ rng.normal(size=(mixture.shape[1], self.channels))
                mix[e, :n] = roots[e, l] @ (mixture / _sizes(rows, mixture))
            if l == 0:
                out["mean"] = mean
            out["mix"][str(l)] = mix
        return {**out, "paths": self._paths(rng)}

    def _paths(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Random weights of the couplings."""
        return {
            str(l): rng.normal(size=(SETS, n, self.channels)) / n**0.5
            for l, n in _n_paths(self.ls).items()
        }

    def __call__(self, features: e3nn.IrrepsArray, mixing: Mixing, one_hot: Array) -> Array:
        """Invariants of atoms, differentiable to any order.

        Args:
          features: ``(..., n_atoms, irreps.dim)`` from the recipe.
          mixing: from :meth:`draw`.
          one_hot: ``(..., n_atoms, n_elements)``, zero for padding.

        Returns:
          ``(..., n_atoms, n_invariants)``.
        """
        irreps = self._irreps(features)
        dtype = features.array.dtype
        mixing = jax.tree.map(lambda w: jnp.asarray(w, dtype), mixing)
        paths = {l: mixing["paths"][str(l)] for l in self.ls}

        def molecule(irreps, hot):
            irreps = {**irreps, 0: irreps[0] - einsum("ie,ek->ik", hot, mixing["mean"])[..., None]}
            mixed = {
                l: einsum("ikm,ikc->mic", x, einsum("ie,ekc->ikc", hot, mixing["mix"][str(l)]))
                for l, x in irreps.items()
            }
            found = scalars(mixed, paths, self.ls)
            return found.reshape(len(found), -1)

        hot = jnp.asarray(one_hot, dtype)
        if hot.ndim == 2:
            return molecule(irreps, hot)
        return by_molecule(molecule, irreps, hot, chunk=1)  # what one atom needs fills a cache


def _random_mixtures(
    rows: np.ndarray, channels: int, power: float, rng: np.random.Generator
) -> np.ndarray:
    """``(n_columns, channels)`` random mixtures of principal components, of unit mean square."""
    deviation = np.sqrt((rows**2).mean(axis=0))
    present = deviation > 1e-6 * max(deviation.max(initial=0.0), 1e-12)
    inverse = np.where(present, 1.0 / np.where(present, deviation, 1.0), 0.0)
    scaled = rows * inverse
    values, u = np.linalg.eigh(scaled.T @ scaled / len(rows))
    values, u = values[::-1][:KEPT], u[:, ::-1][:, :KEPT]
    kept = values > LEAST * values[0]
    lift = np.where(kept, np.where(kept, values, 1.0) ** -power, 0.0)
    mixture = inverse[:, None] * u * lift @ rng.normal(size=(len(values), channels))
    return mixture / _sizes(rows, mixture)


def _sizes(rows: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """Root mean square of each mixture of rows; 1 for those that are zero."""
    size = np.sqrt(((rows @ mixture) ** 2).mean(axis=0))
    return np.where(size > 0, size, 1.0)


def scalars(a: Mapping[int, Array], paths: Mapping[int, Array], ls: tuple[int, ...]) -> Array:
    """Scalars of each channel from its irreps.

    Irreps are coupled two by two before channels weigh what they give. One tensor for each channel
    that holds weights and couplings would make each product larger, and the tensor itself, mostly
    zeros, larger than a cache.

    Args:
      a: ``{l: (2 l + 1, ..., channels)}`` for all l in ``ls``; components come first, so that
        each product is one matrix product over all atoms and channels.
      paths: ``{L: (SETS, n_paths, channels)}`` weights of the couplings.
      ls: angular momenta.

    Returns:
      ``(..., channels, 1 + len(ls) (1 + 2 SETS))``.
    """
    coupled: dict[int, list[Array]] = {l: [] for l in ls}
    for l1, l2, to, table in _couplings(ls):
        outer = (a[l1][:, None] * a[l2]).reshape(table.shape[1], *a[l1].shape[1:])
        flat = einsum("pq,q...->p...", table.astype(outer.dtype), outer)
        cuts = np.cumsum([2 * l + 1 for l in to])[:-1]
        for l, part in zip(to, jnp.split(flat, cuts), strict=True):
            coupled[l].append(part)
    values = [a[0][0]]
    for l in ls:
        norm = (2 * l + 1) ** -0.5
        b = [
            functools.reduce(jnp.add, [w * x for w, x in zip(own, coupled[l], strict=True)])
            for own in paths[l]
        ]
        pairs = [(a[l], a[l]), *((x, a[l]) for x in b), *((x, b[0]) for x in b)]
        values += [norm * jnp.sum(x * y, axis=0) for x, y in pairs]
    return jnp.stack(values, axis=-1)
