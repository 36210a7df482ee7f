"""The blocks of molecules, in the basis of the matrices and in that of the input (host side)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ...basis import Basis, Bucket, batch, bucket_of, layout_of
from ...errors import OpmlError, refusal
from ...numerics import is_concrete, pytree
from ...operators.species import SpeciesKey, SpeciesTable, species_capacities, species_table
from ...structures import Structure, StructureBatch


@pytree
class InputTable(SpeciesTable):
    """The blocks of the matrices, and those of operators in an input basis.

    Attributes:
      inputs: the blocks of the same molecules in the input basis.
      structures: the molecules laid out in it; None for a single molecule.
    """

    inputs: SpeciesTable
    structures: StructureBatch | None


class Tables(NamedTuple):
    """Tables of blocks, of molecules and of batches.

    Attributes:
      basis: of the matrices.
      input_basis: of the operators that make words, if it is another.
    """

    basis: Basis
    input_basis: Basis | None

    def table(self, structure: Structure | StructureBatch) -> SpeciesTable:
        """The blocks of a molecule, or of a batch whose composition is known (not traced).

        Raises:
          OpmlError: a traced composition.
        """
        if isinstance(structure, Structure):
            return self.table_of([structure])
        if not is_concrete(structure.numbers):
            raise OpmlError(
                refusal("table", got=None, expected="one made outside jit, by Op2Op.table(batch)")
            )
        molecules = molecules_of(structure)
        bucket = self.input_basis and bucket_of(molecules, self.input_basis)
        return self.table_of(molecules, structure.n_atoms, bucket=bucket)

    def table_of(
        self,
        molecules: Sequence[Structure],
        n_atoms: int | None = None,
        *,
        capacities: Mapping[SpeciesKey, int] | None = None,
        bucket: Bucket | None = None,
    ) -> SpeciesTable:
        """The blocks of molecules, padded to capacities.

        Args:
          molecules: in the order of their batch.
          n_atoms: of the padded batch; None: of a single molecule that is no batch.
          capacities: see :func:`opml_jax.operators.species_table`.
          bucket: shape of the batch in the input basis.
        """

        def blocks_in(basis: Basis) -> SpeciesTable:
            layouts = [layout_of(s, basis) for s in molecules]
            return species_table(layouts, capacities=capacities)

        blocks = blocks_in(self.basis)
        if self.input_basis is None:
            return blocks
        parts = {f.name: getattr(blocks, f.name) for f in dataclasses.fields(blocks)}
        laid_out = None
        if n_atoms is not None:
            laid_out = batch(molecules, self.input_basis, bucket=bucket, n_atoms=n_atoms)
        return InputTable(**parts, inputs=blocks_in(self.input_basis), structures=laid_out)

    def batches(
        self, structures: Sequence[Structure], size: int
    ) -> Iterator[tuple[StructureBatch, SpeciesTable, np.ndarray]]:
        """Structures in batches of one shape, so that one program serves all.

        Yields:
          the batch, filled up by repeats of its last structure, its table, and the indices of the
          structures in it, without the repeats.
        """
        n = len(structures)
        size = min(size, n)
        layouts = [layout_of(s, self.basis) for s in structures]
        order = np.argsort([layout.nao for layout in layouts], kind="stable")
        parts = [order[i : i + size] for i in range(0, n, size)]
        full = [np.append(p, np.repeat(p[-1], size - len(p))) for p in parts]
        room = species_capacities([[layouts[i] for i in p.tolist()] for p in full])
        bucket = bucket_of(structures, self.basis)
        inputs = self.input_basis and bucket_of(structures, self.input_basis)
        for index, part in zip(full, parts, strict=True):
            molecules = [structures[i] for i in index.tolist()]
            padded = batch(molecules, self.basis, bucket=bucket)
            table = self.table_of(molecules, padded.n_atoms, capacities=room, bucket=inputs)
            yield padded, table, part


def molecules_of(structures: StructureBatch) -> list[Structure]:
    """The molecules of a batch, as far as AO layouts are concerned: placed anywhere."""
    out = []
    for padded, charge in zip(
        *map(np.asarray, (structures.numbers, structures.charge)), strict=True
    ):
        numbers = padded[padded > 0]
        anywhere = 10.0 * np.arange(3 * len(numbers)).reshape(-1, 3)
        spin = int(numbers.sum() - charge) % 2
        out.append(Structure(numbers, anywhere, charge=int(charge), spin=spin))
    return out
