"""The molecule as a pytree: composition static, geometry traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ..errors import Code, StructureError
from ..numerics import Array, is_concrete, pytree, replace, static
from ..units import ELECTRON_MASS_PER_DALTON
from . import validation
from .elements import SYMBOLS, formula
from .elements import masses as standard_masses


def _integer(name: str, value: Any) -> int:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiu" or not float(array.item()).is_integer():
        raise StructureError(name, got=value, expected="an integer", code=Code.ELECTRONS)
    return int(array.item())


def _numbers(value: Any) -> tuple[int, ...]:
    array = np.asarray(value).reshape(-1)
    if array.size and (array.dtype.kind not in "fiu" or (array != np.round(array)).any()):
        raise StructureError(
            "numbers", got=array.tolist(), expected="atomic numbers, each an integer"
        )
    return tuple(int(z) for z in array)


@pytree
class Structure:
    """A molecule.

    A pytree: ``positions`` is its only leaf, so ``jax.jit`` compiles once per composition
    and a new geometry never recompiles.

    Args:
      numbers: ``(n_atoms,)`` atomic numbers.
      positions: ``(n_atoms, 3)`` in Bohr.
      charge: total charge in units of e.
      spin: number of unpaired electrons, 2S.
      masses: ``(n_atoms,)`` in Dalton, of isotopes; None (and what equals them): standard atomic
        weights. Motion depends on them, energies and forces do not; functions that are jitted over
        a structure compile again for other masses.

    Raises:
      StructureError: (a ``ValueError``) for a wrong shape, NaN, nuclei closer than
        0.3 Angstrom, an unknown element, an electron count that does not fit ``spin``, or masses
        that are not positive.
        :meth:`replace` does not check, for use inside transformations and scans.

    Example:
      >>> water = Structure([8, 1, 1], [[0, 0, 0.22], [0, 1.43, -0.88], [0, -1.43, -0.88]])
      >>> water
      Structure(H2O, charge=0, spin=0)
    """

    numbers: tuple[int, ...] = static()
    positions: Array
    charge: int = static(default=0)
    spin: int = static(default=0)
    masses: tuple[float, ...] | None = static(default=None)

    if TYPE_CHECKING:  # it takes more than it holds; integers may be of any type

        def __init__(
            self,
            numbers: Sequence[int] | Array,
            positions: ArrayLike,
            charge: float = 0,
            spin: float = 0,
            masses: ArrayLike | None = None,
        ) -> None: ...

    def __post_init__(self):
        numbers = _numbers(self.numbers)
        set_ = object.__setattr__
        set_(self, "numbers", numbers)
        set_(self, "charge", _integer("charge", self.charge))
        set_(self, "spin", _integer("spin", self.spin))
        validation.check_numbers(numbers)
        validation.check_electrons(numbers, self.charge, self.spin)
        if self.masses is not None:
            set_(self, "masses", validation.check_masses(numbers, self.masses))
        if not hasattr(self.positions, "aval") or is_concrete(self.positions):
            try:
                positions = np.asarray(self.positions)
            except ValueError as err:
                raise StructureError(
                    "positions",
                    got="rows of different length",
                    expected=f"an array of shape (n_atoms, 3) = ({len(numbers)}, 3)",
                    code=Code.SHAPE,
                ) from err
            if positions.dtype.kind not in "fiu":
                raise StructureError(
                    "positions",
                    got=f"dtype {positions.dtype}",
                    expected="real numbers",
                    code=Code.COORDINATE,
                )
            validation.check_positions(numbers, positions)
            if not hasattr(self.positions, "aval"):
                set_(self, "positions", positions.astype(np.float64))

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @property
    def n_electrons(self) -> int:
        """Number of electrons, sum of atomic numbers minus charge."""
        return sum(self.numbers) - self.charge

    @property
    def symbols(self) -> tuple[str, ...]:
        """Chemical symbols."""
        return tuple(SYMBOLS[z] for z in self.numbers)

    @property
    def atomic_masses(self) -> np.ndarray:
        """``(n_atoms,)`` in electron masses: those given, or standard atomic weights."""
        if self.masses is None:
            return standard_masses(self.numbers)
        return np.array(self.masses) * ELECTRON_MASS_PER_DALTON

    def replace(self, **changes: Any) -> Structure:
        """Copy with other ``positions`` (or fields); unchecked, so it works under jit."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        return f"Structure({formula(self.numbers)}, charge={self.charge}, spin={self.spin})"


@pytree
class StructureBatch:
    """Several molecules padded to one shape; composition is data, so a bucket compiles once.

    Made by :func:`opml_jax.batch`, which also attaches the AO topology of a basis.

    Attributes:
      numbers: ``(n_structures, n_atoms)`` atomic numbers, 0 for padding.
      positions: ``(n_structures, n_atoms, 3)`` Bohr, 0 for padding.
      mask: ``(n_structures, n_atoms)`` True for real atoms.
      charge: ``(n_structures,)``.
      spin: ``(n_structures,)``.
      layout: AO topology (:class:`opml_jax.basis.BatchLayout`) or None.
    """

    numbers: Array
    positions: Array
    mask: Array
    charge: Array
    spin: Array
    layout: Any = None

    @property
    def n_structures(self) -> int:
        """Number of molecules."""
        return self.numbers.shape[0]

    @property
    def n_atoms(self) -> int:
        """Padded number of atoms."""
        return self.numbers.shape[1]

    def replace(self, **changes: Any) -> StructureBatch:
        """Copy with some fields changed; unchecked."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        return f"StructureBatch(numbers of shape {getattr(self.numbers, 'shape', None)})"


@overload
def in_float64(structure: Structure) -> Structure: ...
@overload
def in_float64(structure: StructureBatch) -> StructureBatch: ...
def in_float64(structure: Structure | StructureBatch) -> Structure | StructureBatch:
    """The same molecules with positions in float64, whatever they are in; for tracers too."""
    x = structure.positions
    if getattr(x, "dtype", None) == np.float64:
        return structure
    return structure.replace(positions=jnp.asarray(x, np.float64))


def centre_of_nuclear_charge(structure: Structure | StructureBatch) -> Array:
    """Mean of the positions of the nuclei, weighted by their charges.

    Args:
      structure: molecule or batch.

    Returns:
      ``(3,)`` in Bohr, differentiable; a batch adds a leading axis.
    """
    batch = isinstance(structure, StructureBatch)
    numbers = structure.numbers if batch else np.array(structure.numbers)
    weighted = numbers[..., None] * structure.positions
    return weighted.sum(axis=-2) / numbers.sum(axis=-1)[..., None]


@overload
def centred(structure: Structure) -> Structure: ...
@overload
def centred(structure: StructureBatch) -> StructureBatch: ...
def centred(structure: Structure | StructureBatch) -> Structure | StructureBatch:
    """The molecule, or those of a batch, with the centre of nuclear charge at the origin."""
    centre = centre_of_nuclear_charge(structure)[..., None, :]
    return structure.replace(positions=structure.positions - centre)


def pad_structures(structures: Sequence[Structure], n_atoms: int) -> StructureBatch:
    """Stack structures, padding each to ``n_atoms`` (host side, NumPy).

    Raises:
      StructureError: no structures, or one has more than ``n_atoms`` atoms.
    """
    if not structures:
        raise StructureError(
            "structures", got="an empty list", expected="at least one structure", code=Code.EMPTY
        )
    largest = max(s.n_atoms for s in structures)
    if largest > n_atoms:
        raise StructureError("n_atoms", got=n_atoms, expected=f"at least {largest}")
    shape = (len(structures), n_atoms)
    numbers = np.zeros(shape, np.int32)
    positions = np.zeros((*shape, 3))
    for b, s in enumerate(structures):
        numbers[b, : s.n_atoms] = s.numbers
        positions[b, : s.n_atoms] = np.asarray(s.positions)
    return StructureBatch(
        numbers=numbers,
        positions=positions,
        mask=numbers > 0,
        charge=np.array([s.charge for s in structures], np.int32),
        spin=np.array([s.spin for s in structures], np.int32),
    )
