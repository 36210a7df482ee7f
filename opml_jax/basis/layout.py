"""AO layout: which row of a matrix is which orbital of which atom, for a molecule or a batch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ..conventions import CONVENTION, pyscf_permutation
from ..errors import Code, ConventionError, StructureError
from ..numerics import Array, pytree, static
from ..structures import Structure, StructureBatch, pad_structures
from ..structures.elements import symbol
from .buckets import Bucket, bucket_of, pad_primitives, smallest_bucket
from .primitives import Primitives, primitives
from .shells import Basis
from .spec import BasisSpec


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class AOLayout:
    """AO order of one molecule: atoms in file order, shells ascending in l, m = -l..l.

    Hashable and static under jit (a pytree without leaves).
    """

    spec: BasisSpec
    numbers: tuple[int, ...]

    @functools.cached_property
    def atom_ls(self) -> tuple[tuple[int, ...], ...]:
        """Angular momenta of the shells of each atom."""
        return tuple(self.spec.ls[self.spec.element_index(z)] for z in self.numbers)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """``(n_atoms + 1,)`` first AO of each atom, closed by ``nao``."""
        return np.cumsum([0] + [sum(2 * l + 1 for l in ls) for ls in self.atom_ls])

    @property
    def nao(self) -> int:
        """Number of atomic orbitals."""
        return int(self.offsets[-1])

    @functools.cached_property
    def _table(self) -> np.ndarray:
        rows = []
        for a, ls in enumerate(self.atom_ls):
            n = {l: l for l in ls}  # principal number as PySCF prints it: s from 1, p from 2
            for l in ls:
                n[l] += 1
                rows.extend((a, n[l], l, m) for m in range(-l, l + 1))
        return np.array(rows, dtype=np.int32).reshape(-1, 4)

    @property
    def atom(self) -> np.ndarray:
        """``(nao,)`` atom of each AO."""
        return self._table[:, 0]

    @property
    def n(self) -> np.ndarray:
        """``(nao,)`` principal number of each AO (the k-th s shell is k, p k+1, d k+2)."""
        return self._table[:, 1]

    @property
    def l(self) -> np.ndarray:
        """``(nao,)`` angular momentum of each AO."""
        return self._table[:, 2]

    @property
    def m(self) -> np.ndarray:
        """``(nao,)`` magnetic number of each AO."""
        return self._table[:, 3]

    @property
    def shell_ls(self) -> tuple[int, ...]:
        """Angular momentum of every shell in AO order."""
        return tuple(l for ls in self.atom_ls for l in ls)

    @property
    def n_shells(self) -> int:
        """Number of shells."""
        return len(self.shell_ls)

    @property
    def shell(self) -> np.ndarray:
        """``(nao,)`` shell of each AO, counted over the molecule."""
        return np.repeat(np.arange(self.n_shells), 2 * np.array(self.shell_ls, int) + 1)

    def irreps(self, atom: int):
        """``e3nn_jax.Irreps`` of the AOs of one atom; shell l has parity (-1)^l."""
        import e3nn_jax as e3nn

        return e3nn.Irreps([(1, (l, (-1) ** l)) for l in self.atom_ls[atom]])

    @property
    def labels(self) -> list[str]:
        """Readable AO labels such as ``"0 O 2p y"``."""
        names = {0: [""], 1: ["y", "z", "x"], 2: ["xy", "yz", "z2", "xz", "x2-y2"]}
        out = []
        for a, n, l, m in self._table:
            name = names[l][m + l] if l in names else f"{m:+d}"
            out.append(f"{a} {symbol(self.numbers[a])} {n}{'spdfghi'[l]} {name}".rstrip())
        return out

    @functools.cached_property
    def hash(self) -> str:
        """16 hexadecimal digits naming convention, basis functions and atoms together.

        Elements the basis covers beyond those of the molecule do not enter.
        """
        atoms = ",".join(
            f"{z}:{self.spec.fingerprints[self.spec.element_index(z)]}" for z in self.numbers
        )
        text = f"{CONVENTION}|{atoms}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @functools.cached_property
    def slots(self) -> np.ndarray:
        """``(n_atoms, n_slots)`` AO that fills each slot of each atom; ``nao`` where none does."""
        rows = []
        for a, z in enumerate(self.numbers):
            local = self.spec.element_slots[self.spec.element_index(z)]
            rows.append(np.where(local >= 0, local + self.offsets[a], self.nao))
        return np.array(rows, dtype=np.int32)

    @functools.cached_property
    def ao_slot(self) -> np.ndarray:
        """``(nao,)`` flat slot (atom * n_slots + slot) of each AO."""
        atom, slot = np.nonzero(self.slots < self.nao)
        out = np.empty(self.nao, np.int32)
        out[self.slots[atom, slot]] = atom * self.spec.n_slots + slot
        return out

    @functools.cached_property
    def element(self) -> np.ndarray:
        """``(n_atoms,)`` index of each atom's element in ``spec.elements``."""
        return np.array([self.spec.element_index(z) for z in self.numbers], np.int32)

    @functools.cached_property
    def to_pyscf_index(self) -> np.ndarray:
        """``(nao,)`` index with ``theirs = ours[index]``."""
        return np.argsort(self.from_pyscf_index)

    @functools.cached_property
    def from_pyscf_index(self) -> np.ndarray:
        """``(nao,)`` index with ``ours = theirs[index]``."""
        return pyscf_permutation(self.shell_ls)

    @property
    def primitives(self) -> Primitives:
        """Shells and primitives of the molecule."""
        return primitives(self.spec, self.numbers)

    def __repr__(self) -> str:
        return f"AOLayout({self.spec.name!r}, nao={self.nao}, hash={self.hash})"


@pytree
class BatchLayout:
    """AO topology of a padded batch. Composition is data: every array here is a leaf.

    Attributes:
      spec: the basis.
      nao: padded number of AOs.
      slots: ``(n_structures, n_atoms, n_slots)`` AO filling each slot, ``nao`` where none does.
      ao_slot: ``(n_structures, nao)`` flat slot (atom * n_slots + slot) of each AO; the last
        slot + 1 for padding.
      element: ``(n_structures, n_atoms)`` index into ``spec.elements``, 0 for padding.
      ao_mask: ``(n_structures, nao)`` True for real AOs.
      primitives: shells and primitives of each molecule (:class:`Primitives`).
    """

    spec: BasisSpec = static()
    nao: int = static()
    slots: Array
    ao_slot: Array
    element: Array
    ao_mask: Array
    primitives: Primitives

    def __repr__(self) -> str:
        return f"BatchLayout({self.spec.name!r}, padded nao={self.nao})"


@overload
def layout_of(structure: Structure, basis: Basis) -> AOLayout: ...
@overload
def layout_of(structure: StructureBatch, basis: Basis) -> BatchLayout: ...
@overload
def layout_of(structure: Structure | StructureBatch, basis: Basis) -> AOLayout | BatchLayout: ...
def layout_of(structure: Structure | StructureBatch, basis: Basis) -> AOLayout | BatchLayout:
    """AO layout of a molecule, or of a batch made for this basis.

    Raises:
      BasisError: an element the basis does not cover.
      ConventionError: a batch laid out for another basis.
    """
    if isinstance(structure, StructureBatch):
        if structure.layout is None or structure.layout.spec != basis.spec:
            got = "no basis" if structure.layout is None else str(structure.layout.spec.name)
            raise ConventionError(
                "structure",
                got=f"a batch laid out for {got}",
                expected=f"a batch made by opml_jax.batch with {basis!r}",
                code=Code.LAYOUT,
            )
        return structure.layout
    return _layout(basis.spec, structure.numbers)


@functools.lru_cache(maxsize=4096)
def _layout(spec: BasisSpec, numbers: tuple[int, ...]) -> AOLayout:
    for z in numbers:
        spec.element_index(z)  # refuses what the basis does not cover
    return AOLayout(spec, numbers)


def batch(
    structures: Sequence[Structure],
    basis: Basis,
    *,
    bucket: Bucket | None = None,
    n_atoms: int | None = None,
    nao: int | None = None,
) -> StructureBatch:
    """Pad molecules to one bucket and attach the AO topology of ``basis`` (host side).

    Functions compiled for a bucket serve every molecule that fits it. By default molecules of one
    composition are not padded at all, and others to round numbers of atoms, AOs, shells and
    primitives (:func:`opml_jax.basis.bucket_of`), so that shapes recur.

    Args:
      structures: molecules, of any mix of composition.
      basis: covers every element.
      bucket: shape to pad to, for example one of :func:`opml_jax.basis.buckets`.
      n_atoms: padded number of atoms, instead of the bucket's.
      nao: padded number of AOs, instead of the bucket's.

    Raises:
      StructureError: no structures, or a capacity below what is needed.
      BasisError: an element the basis does not cover.
    """
    molecules = [s.numbers for s in structures]
    layouts = [layout_of(s, basis) for s in structures]
    default = bucket_of(structures, basis)
    needed = smallest_bucket(basis.spec, molecules)
    bucket = default if bucket is None else bucket
    given = {k: v for k, v in (("n_atoms", n_atoms), ("nao", nao)) if v is not None}
    for name, value in given.items():
        if value < getattr(needed, name):
            raise StructureError(name, got=value, expected=f"at least {getattr(needed, name)}")
    bucket = dataclasses.replace(bucket, **given)
    if not bucket.covers(needed):
        raise StructureError("bucket", got=bucket, expected=f"at least {needed}")
    padded = pad_structures(structures, bucket.n_atoms)
    nao, width = bucket.nao, basis.spec.n_slots
    slots = np.full((*padded.numbers.shape, width), nao, np.int32)
    ao_slot = np.full((len(structures), nao), padded.n_atoms * width, np.int32)
    element = np.zeros(padded.numbers.shape, np.int32)
    for b, l in enumerate(layouts):
        n = len(l.numbers)
        slots[b, :n] = np.where(l.slots < l.nao, l.slots, nao)
        element[b, :n] = l.element
        ao_slot[b, : l.nao] = l.ao_slot
    ao_mask = np.arange(nao)[None] < np.array([l.nao for l in layouts])[:, None]
    topology = pad_primitives(basis.spec, molecules, bucket)
    layout = BatchLayout(basis.spec, nao, slots, ao_slot, element, ao_mask, topology)
    return padded.replace(layout=layout)


def _permute(matrix, structure: Structure, basis: Basis, index_name: str):
    layout = layout_of(structure, basis)
    xp = jnp if isinstance(matrix, jax.Array) else np
    matrix = xp.asarray(matrix)
    if matrix.shape[-2:] != (layout.nao, layout.nao):
        raise ConventionError(
            "matrix",
            got=f"shape {matrix.shape}",
            expected=f"(..., nao, nao) with nao = {layout.nao} for {structure!r} in {basis!r}",
            code=Code.LAYOUT,
        )
    index = getattr(layout, index_name)
    return matrix[..., index[:, None], index[None, :]]


@overload
def to_pyscf(matrix: jax.Array, structure: Structure, basis: Basis) -> jax.Array: ...
@overload
def to_pyscf(matrix: ArrayLike, structure: Structure, basis: Basis) -> np.ndarray: ...
def to_pyscf(matrix, structure: Structure, basis: Basis):
    """AO matrix ``(..., nao, nao)`` from the library's order to PySCF's (p as x, y, z).

    Raises:
      ConventionError: the shape does not fit the molecule in this basis.
    """
    return _permute(matrix, structure, basis, "to_pyscf_index")


@overload
def from_pyscf(matrix: jax.Array, structure: Structure, basis: Basis) -> jax.Array: ...
@overload
def from_pyscf(matrix: ArrayLike, structure: Structure, basis: Basis) -> np.ndarray: ...
def from_pyscf(matrix, structure: Structure, basis: Basis):
    """AO matrix ``(..., nao, nao)`` from PySCF's order to the library's (p as y, z, x).

    Raises:
      ConventionError: the shape does not fit the molecule in this basis.
    """
    return _permute(matrix, structure, basis, "from_pyscf_index")
