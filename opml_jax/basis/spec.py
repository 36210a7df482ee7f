"""The static part of a basis: hashable, comparable, enough to know every array shape."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from ..errors import BasisError, Code
from ..structures.elements import symbol


@dataclasses.dataclass(frozen=True)
class BasisSpec:
    """What jit sees of a basis.

    Besides the shells of every element it defines the *slots*: one AO range wide enough for
    any element (for each l the largest number of shells), in which atoms of different
    elements have blocks of equal shape. Features live in slots; matrices stay compact.

    Attributes:
      name: name of the basis set.
      elements: atomic numbers, ascending.
      ls: angular momenta of the shells of each element, ascending.
      sizes: number of primitives of each of these shells.
      fingerprints: hash of exponents and coefficients of each element.
    """

    name: str
    elements: tuple[int, ...]
    ls: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    fingerprints: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """One hash for all elements."""
        text = ";".join(f"{z}:{h}" for z, h in zip(self.elements, self.fingerprints, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def element_index(self, z: int) -> int:
        """Position of atomic number ``z`` in ``elements``; BasisError if it is not covered."""
        if z not in self.elements:
            covered = ", ".join(symbol(e) for e in self.elements)
            raise BasisError(
                "basis",
                got=f"{self.name!r} loaded for {covered}",
                expected=f"a basis that covers {symbol(int(z))}",
                hint="Pass every element to load_basis.",
                code=Code.BASIS_LACKS_ELEMENT,
            )
        return self.elements.index(z)

    def nao(self, z: int) -> int:
        """Number of AOs of one element."""
        return sum(2 * l + 1 for l in self.ls[self.element_index(z)])

    @property
    def lmax(self) -> int:
        """Highest angular momentum."""
        return max(max(ls) for ls in self.ls)

    @functools.cached_property
    def slot_counts(self) -> tuple[int, ...]:
        """For each l up to ``lmax`` the largest number of shells any element has."""
        return tuple(max(ls.count(l) for ls in self.ls) for l in range(self.lmax + 1))

    @functools.cached_property
    def slot_ls(self) -> tuple[int, ...]:
        """Angular momentum of each slot shell, ascending."""
        return tuple(l for l, n in enumerate(self.slot_counts) for _ in range(n))

    @property
    def n_slots(self) -> int:
        """Width of the slot range in AOs."""
        return sum((2 * l + 1) * n for l, n in enumerate(self.slot_counts))

    def slot_start(self, l: int) -> int:
        """First slot AO of angular momentum ``l``."""
        return sum((2 * k + 1) * self.slot_counts[k] for k in range(l))

    @functools.cached_property
    def element_slots(self) -> tuple[np.ndarray, ...]:
        """For each element ``(n_slots,)``: the atom's AO in that slot, or -1."""
        out = []
        for ls in self.ls:
            slots = np.full(self.n_slots, -1, np.int32)
            used = dict.fromkeys(range(self.lmax + 1), 0)
            ao = 0
            for l in ls:
                start = self.slot_start(l) + used[l] * (2 * l + 1)
                slots[start : start + 2 * l + 1] = np.arange(ao, ao + 2 * l + 1)
                used[l] += 1
                ao += 2 * l + 1
            out.append(slots)
        return tuple(out)
