r"""Op2Op: the Fock matrix of a molecule, from potentials that are known before any calculation.

.. math::
    F_0 &= T + W + A\big(\textstyle\sum_c X_c[S, T, W, E]\, w^0_c\big) \\
    F[P] &= T + V + \tilde J[P] + A\big(\textstyle\sum_c X_c[S, T, W, E, P, U]\, w_c\big),
    \qquad P = P(F[P])

or, instead of self-consistency, :math:`F_{k+1} = F_k[P(F_k)]` with weights of every stage
(:attr:`~opml_jax.models.Op2OpConfig.stages`). The first two terms are the baseline, one of
:data:`~opml_jax.models.op2op_config.BASELINES`. W is the potential of neutral atoms,
E are pieces of the nuclei's, by element and range,
:math:`U = V + \tilde J[P]` the electrostatic potential of nuclei and electrons, the latter fitted
(:func:`opml_jax.integrals.fitted_coulomb`). X are the irreps, block by block, of these operators
and of their products (words, :mod:`opml_jax.operators.words`), mapped linearly to the irreps of
the same kind of block of F (Nigam, Smidt, Dusson, arXiv:2602.15345, Op2Op), and A puts them back
into a matrix. What is learned besides the first guess is therefore the matrix of exchange and
correlation as a function of the density, and the density is made self-consistent at prediction. All
weights are solved in closed form at the reference's densities; equivariance, permutations and size
extensivity hold by construction.

Derivatives of the self-consistent matrices follow from the implicit function theorem. A model of
density matrices (``target="dm"``) is a first guess too, of P instead of F, made idempotent with the
right number of electrons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from .. import integrals, lapack
from ..basis import Basis, Bucket, batch, bucket_of, layout_of
from ..errors import ConfigError, OpmlError, refusal
from ..features.couple import IrrepKey, key_name, species_channels
from ..numerics import Array, einsum, is_concrete, pytree
from ..observables import density_matrix, dipole, project
from ..operators.species import (
    SpeciesKey,
    SpeciesTable,
    scatter_species,
    species_capacities,
    species_table,
)
from ..operators.words import spell
from ..structures import Structure, StructureBatch, centred
from .definition import Definition
from .fading import faded
from .fixed_point import fixed_point
from .op2op_config import DENSITY_LETTERS, LETTERS, PIECES, Op2OpConfig
from .op2op_network import (
    columns_of,
    network_irreps,
    operator_irreps,
    prepare,
    to_matrix,
)

Params = dict[str, Any]


@pytree
class InputTable(SpeciesTable):
    """The blocks of the matrices, and those of operators in an input basis.

    Attributes:
      inputs: the blocks of the same molecules in the input basis.
      structures: the molecules laid out in it; None for a single molecule.
    """

    inputs: SpeciesTable
    structures: StructureBatch | None


@dataclasses.dataclass(frozen=True, eq=False)
class Op2Op(Definition):
    """The model's pure functions.

    Args:
      config: hyper-parameters.
      basis: of the matrices.
      input_basis: of the operators that make the words, if it is another.
    """

    config: Op2OpConfig
    input_basis: Basis | None = None

    def __post_init__(self):
        given = self.input_basis and self.input_basis.name
        if (self.config.input_basis is None) != (given is None):
            raise ConfigError(
                refusal("input_basis", got=repr(given), expected=repr(self.config.input_basis))
            )

    @property
    def _key(self):
        return *super()._key, self.input_basis and self.input_basis.spec

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
        bucket = self.input_basis and bucket_of(molecules_of(structure), self.input_basis)
        return self.table_of(molecules_of(structure), structure.n_atoms, bucket=bucket)

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

        own, basis = blocks_in(self.basis), self.input_basis
        if basis is None:
            return own
        parts = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)}
        single = n_atoms is None
        laid_out = None if single else batch(molecules, basis, bucket=bucket, n_atoms=n_atoms)
        return InputTable(**parts, inputs=blocks_in(basis), structures=laid_out)

    def operators(
        self, structure: Structure | StructureBatch, table: SpeciesTable | None = None
    ) -> dict[str, Any]:
        """What is known before the density, ``(n_structures, nao, nao)`` each (1 for a molecule).

        ``S``, ``S^-1``, ``T``, ``V``, ``W``, and ``E`` ``(n_pieces, n_structures, nao, nao)``;
        with an input basis ``inputs``, the same in it, for which a batch needs its ``table``.
        """
        found: dict[str, Any] = self._operators(structure, self.basis)
        if self.input_basis is not None:
            if isinstance(structure, StructureBatch):
                assert isinstance(table, InputTable)  # as table_of makes them
                assert table.structures is not None
                structure = table.structures.replace(positions=structure.positions)
            found["inputs"] = self._operators(structure, self.input_basis)
        return found

    def _operators(self, structure: Structure | StructureBatch, basis: Basis) -> dict[str, Array]:
        s = integrals.overlap(structure, basis)
        eye = jnp.broadcast_to(jnp.eye(s.shape[-1], dtype=s.dtype), s.shape)
        if isinstance(structure, StructureBatch):  # padding has no overlap, not even with itself
            padded = s + jnp.where(structure.layout.ao_mask, 0.0, 1.0)[..., None] * eye
        else:
            padded = s
        inverse = lapack.solve(padded, eye, positive=True)
        numbers = jnp.asarray(structure.numbers)
        elements = np.repeat(basis.elements, len(self.config.exponents) + 1)
        charges = jnp.where(numbers == elements.reshape(-1, *[1] * numbers.ndim), numbers, 0)
        widths = np.concatenate([[0.0], (0.5 / np.array(self.config.exponents)) ** 0.5])
        potentials = jax.vmap(
            lambda q, w: integrals.external_potential(structure, basis, charges=q, widths=w)
        )(charges.astype(s.dtype), jnp.asarray(np.tile(widths, len(basis.elements)), s.dtype))
        potentials = potentials.reshape(len(basis.elements), len(widths), *s.shape)
        pieces = potentials[:, :-1] - potentials[:, 1:]
        pieces = pieces.reshape(pieces.shape[0] * pieces.shape[1], *s.shape)
        found: dict[str, Array] = {
            "S": s,
            "S^-1": 0.5 * (inverse + jnp.matrix_transpose(inverse)),
            "T": integrals.kinetic(structure, basis),
            "V": jnp.sum(potentials[:, 0], axis=0),
            "W": integrals.neutral_atom_potential(structure, basis),
            "E": pieces,
        }
        if isinstance(structure, Structure):
            found = {k: v[None] if k != "E" else v[:, None] for k, v in found.items()}
        return found

    def known_irreps(self, operators: dict[str, Any], table: SpeciesTable) -> dict[IrrepKey, Array]:
        """Irreps of :attr:`Op2OpConfig.words`.

        Returns:
          ``{key: (n_blocks, 2 L + 1, n_columns)}``.
        """
        if "inputs" not in operators:
            return operator_irreps(_spelled(self.config.words, LETTERS, operators), table)
        assert isinstance(table, InputTable)  # as table_of makes them
        words = _spelled(self.config.words, LETTERS, operators["inputs"])
        found = operator_irreps(words, table.inputs)
        return {k: x for k, x in found.items() if self.n_outputs(k)}

    def density_irreps(
        self, operators: dict[str, Array], table: SpeciesTable
    ) -> dict[IrrepKey, Array]:
        """Likewise of :attr:`Op2OpConfig.density_words`."""
        words = _spelled(self.config.density_words, DENSITY_LETTERS, operators)
        return operator_irreps(words, table)

    def with_density(
        self, structure: Structure | StructureBatch, operators: dict[str, Array], dm: Array
    ) -> dict[str, Array]:
        """The operators with P and U added; ``dm`` ``(n_structures, nao, nao)``."""
        one = isinstance(structure, Structure)
        j = integrals.fitted_coulomb(structure, self.basis, dm[0] if one else dm)
        return {**operators, "P": dm, "U": operators["V"] + (j[None] if one else j)}

    def assemble(
        self, weights: Params, x: dict[IrrepKey, Array], table: SpeciesTable, like: Array
    ) -> Array:
        """The matrix of linear maps of irreps, ``(n_structures, nao, nao)`` as ``like``."""
        y = {}
        for key, columns in x.items():
            if (own := weights.get(key_name(key))) is not None:
                y[key] = einsum("nmc,co->nmo", columns, own["weights"])
                if "constant" in own:
                    y[key] = y[key] + own["constant"]
        return to_matrix(y, table, like.shape[0], like.shape[-1])

    def learned_guess(
        self, params: Params, x: dict[IrrepKey, Array], table: SpeciesTable, s: Array
    ) -> Array:
        """What the closed form adds to the baseline, ``(n_structures, nao, nao)``.

        Args:
          params: of the model: ``guess``, and perhaps ``fade``, the scale of :func:`faded`.
          x: irreps of :attr:`Op2OpConfig.words`.
          table: of the blocks.
          s: overlap.
        """
        out = self.assemble(params["guess"], x, table, s)
        return faded(out, s, params["fade"]) if "fade" in params else out

    def baseline(
        self,
        params: Params,
        structure: Structure | StructureBatch,
        operators: dict[str, Array],
        table: SpeciesTable,
    ) -> Array:
        """What the first guess starts from, ``(n_structures, nao, nao)``.

        Args:
          params: of them ``atoms`` is read, density matrices of free atoms by atomic number, if
            the baseline is ``"superposed"``.
          structure: molecule or batch.
          operators: of :meth:`operators`.
          table: of its blocks.
        """
        s, name = operators["S"], self.config.baseline
        if name == "none":
            return jnp.zeros_like(s)
        if name == "superposed":
            blocks = {
                key: jnp.broadcast_to(
                    jnp.asarray(params["atoms"][str(key[1])], s.dtype),
                    (len(rows), *params["atoms"][str(key[1])].shape),
                )
                for key, rows in table.rows.items()
                if key[0] == 0
            }
            dm = scatter_species(blocks, table, s.shape[0], s.shape[-1])
            if self.config.target == "dm":
                return dm
            return operators["T"] + self.with_density(structure, operators, dm)["U"]
        fock = operators["T"] + operators["W" if name == "neutral_atoms" else "V"]
        return fock if self.config.target == "fock" else self.density(structure, s, fock)

    def density(self, structure: Structure | StructureBatch, s: Array, fock: Array) -> Array:
        """The density matrix of a Fock matrix, overlap ``s``: ``(n_structures, nao, nao)`` each."""
        mask = None if isinstance(structure, Structure) else structure.layout.ao_mask
        return density_matrix(fock, s, self.n_described(structure), mask=mask)

    def learned(
        self,
        params: Params,
        operators: dict[str, Array],
        x: dict[IrrepKey, Array],
        table: SpeciesTable,
    ) -> Array:
        """The matrix that the network adds, ``(n_structures, nao, nao)``; 0 if there is none."""
        s, network = operators["S"], self.config.network
        if network is None or "network" not in params:
            return jnp.zeros_like(s)
        own = params["network"]
        x = columns_of(network, x, operators, table)
        data = prepare(network, own["fixed"], x, operators, table)
        return to_matrix(network_irreps(network, own, data, table), table, *s.shape[:2])

    def _functional(
        self, params: Params, structure, operators, known, table: SpeciesTable, kinetic: Array
    ) -> Callable[[Array], Array]:
        """The Fock matrix of the density of a Fock matrix, with these ``known`` and ``density``."""
        s = operators["S"]
        constant = self.assemble(params["known"], known, table, s)

        def step(fock):
            dm = self.density(structure, s, fock)
            found = self.with_density(structure, operators, dm)
            x = self.density_irreps(found, table)
            own = constant + self.assemble(params["density"], x, table, s)
            own = own + self.learned(params, found, joined(known, x), table)
            if "functional_fade" in params:
                own = faded(own, s, params["functional_fade"])
            return kinetic + found["U"] + own

        return step

    def apply(
        self,
        params: Params,
        structure: Structure | StructureBatch,
        table: SpeciesTable | None = None,
        *,
        field: Array | None = None,
    ) -> dict[str, Array]:
        """Fock and density matrix, differentiable in positions, parameters and the field.

        Args:
          params: from training or a model file. ``fade`` and ``functional_fade`` are the scales of
            :func:`faded` of the first guess and of the self-consistent matrix; none: 0.
          structure: closed-shell molecule or batch (made for :attr:`basis`).
          table: of a batch whose composition is traced (:meth:`table`).
          field: uniform electric field ``(3,)``, Hartree/(e Bohr), added to the Fock matrix as
            ``field . r`` (electrons are negative); r is from the centre of nuclear charge. The
            density of a model with density words answers it self-consistently (with stages: as
            often as there are), also through exchange and correlation; the words themselves know
            the field by the density only.

        Returns:
          ``fock`` in Hartree (not by a model of density matrices), ``dm`` (occupation 2) and
          ``overlap``, ``(nao, nao)``, in the library's AO order, and ``residual``, the largest
          element of F[P] - F in Hartree, 0 for a model without density words. A batch adds a
          leading axis.
        """
        table = self.table(structure) if table is None else table
        operators = self.operators(structure, table)
        one = isinstance(structure, Structure)
        known = self.known_irreps(operators, table)
        s, kinetic = operators["S"], operators["T"]
        guess = self.baseline(params, structure, operators, table)
        guess = guess + self.learned_guess(params, known, table, s)
        if field is not None:
            if self.config.target == "dm":
                text = refusal("target of a model in a field", got="dm", expected="fock")
                raise OpmlError(text)
            position = integrals.position(centred(structure), self.basis)
            in_field = einsum("x,...xij->...ij", field, position)
            guess, kinetic = guess + in_field, kinetic + in_field
        out = {"overlap": s, "residual": jnp.zeros(guess.shape[0], guess.dtype)}
        if self.config.target == "dm":
            mask = None if one else structure.layout.ao_mask
            out["dm"] = project(guess, s, self.n_described(structure), mask=mask)
            return {k: v[0] for k, v in out.items()} if one else out
        if not self.config.density_words:
            out["fock"] = guess + self.learned(params, operators, known, table)
        elif self.config.stages:
            out["fock"] = guess
            for i in range(self.config.stages):
                own = params["stages"][str(i)]
                step = self._functional(own, structure, operators, known, table, kinetic)
                out["fock"] = step(out["fock"])
        else:
            c = self.config
            step = self._functional(params, structure, operators, known, table, kinetic)
            out["fock"], out["residual"] = fixed_point(
                step, guess, c.cycles, c.tolerance, c.history
            )
        out["dm"] = self.density(structure, s, out["fock"])
        return {k: v[0] for k, v in out.items()} if one else out

    def dipole_in_field(
        self, params: Params, structure: Structure, field: Array | None = None
    ) -> Array:
        """Dipole of the density in a uniform electric field, ``(3,)`` e Bohr.

        Args:
          params: as for :meth:`apply`.
          structure: closed-shell molecule.
          field: as for :meth:`apply`. Default: none.
        """
        dm = self.apply(params, structure, field=field)["dm"]
        return dipole(dm, structure, self.basis)

    def polarizability_in_field(
        self, params: Params, structure: Structure, field: Array | None = None
    ) -> Array:
        """Derivative of :meth:`dipole_in_field`, arguments as there: ``(3, 3)`` in Bohr^3.

        Of a model with density words this is the answer of coupled-perturbed Kohn-Sham theory with
        a learned exchange and correlation, which no label of a molecule in a field has trained; of
        one without, that of independent electrons (:func:`opml_jax.observables.polarizability`).
        """
        field = jnp.zeros(3) if field is None else field
        return jax.jacfwd(lambda f: self.dipole_in_field(params, structure, f))(field)

    @overload
    def first_level(self, structure: Structure) -> int: ...
    @overload
    def first_level(self, structure: StructureBatch) -> jax.Array: ...
    def first_level(self, structure: Structure | StructureBatch):
        """The level of a larger basis that the lowest of the matrix is, ``()`` or ``(n,)``.

        0 unless :attr:`Op2OpConfig.window` is ``"homo"``; then as many levels are below the highest
        occupied one as above it, as far as there are so many.
        """
        electrons = n_electrons(structure)
        if self.config.window == "lowest":
            return 0 * electrons
        if isinstance(structure, Structure):
            return max(0, electrons // 2 - 1 - (layout_of(structure, self.basis).nao - 1) // 2)
        nao = jnp.sum(structure.layout.ao_mask, axis=-1)
        return jnp.maximum(0, electrons // 2 - 1 - (nao - 1) // 2)

    @overload
    def n_described(self, structure: Structure) -> int: ...
    @overload
    def n_described(self, structure: StructureBatch) -> jax.Array: ...
    def n_described(self, structure: Structure | StructureBatch):
        """Electrons in the levels of the matrix, ``()`` or ``(n,)``."""
        return n_electrons(structure) - 2 * self.first_level(structure)

    def n_known(self, key: IrrepKey) -> int:
        """Columns of one key that :attr:`Op2OpConfig.words` make."""
        pieces = len(self.basis.elements) * len(self.config.exponents)
        n = sum(pieces if PIECES in word.split() else 1 for word in self.config.words)
        return n * _shell_pairs(self.input_basis or self.basis, key)

    def n_outputs(self, key: IrrepKey) -> int:
        """Shell pairs of one key, 0 if the basis has none."""
        return _shell_pairs(self.basis, key)


def _shell_pairs(basis: Basis, key: IrrepKey) -> int:
    return len(species_channels(basis.spec, key[:3]).get(key[3:], ()))


def _spelled(words: Sequence[str], letters: Sequence[str], operators: dict[str, Array]) -> Array:
    """Matrices of all words, ``(n, n_structures, nao, nao)``."""
    found = spell(words, {k: operators[k] for k in letters})
    own = [x if PIECES in w.split() else x[None] for w, x in zip(words, found, strict=True)]
    return jnp.concatenate(own)


def joined(known: dict[IrrepKey, Array], density: dict[IrrepKey, Array]) -> dict[IrrepKey, Array]:
    """Columns of known words, then those of the density's."""
    both = {k: jnp.concatenate([x, density[k]], axis=-1) for k, x in known.items() if k in density}
    return {**density, **known, **both}


def molecules_of(structures: StructureBatch) -> list[Structure]:
    """The molecules of a batch (host side), as far as AO layouts are concerned: placed anywhere."""
    out = []
    for own, charge in zip(*map(np.asarray, (structures.numbers, structures.charge)), strict=True):
        numbers = own[own > 0]
        anywhere = 10.0 * np.arange(3 * len(numbers)).reshape(-1, 3)
        spin = int(numbers.sum() - charge) % 2
        out.append(Structure(numbers, anywhere, charge=int(charge), spin=spin))
    return out


def batches(
    definition: Op2Op, structures: Sequence[Structure], size: int
) -> Iterator[tuple[StructureBatch, SpeciesTable, np.ndarray]]:
    """Structures in batches of one shape, so that one program serves all (host side).

    Yields:
      the batch, filled up by repeats of its last structure, its table, and the indices of the
      structures in it, without the repeats.
    """
    basis, n = definition.basis, len(structures)
    size = min(size, n)
    order = np.argsort([layout_of(s, basis).nao for s in structures], kind="stable")
    parts = [order[i : i + size] for i in range(0, n, size)]
    full = [np.append(p, np.repeat(p[-1], size - len(p))) for p in parts]
    room = species_capacities([[layout_of(structures[i], basis) for i in p.tolist()] for p in full])
    bucket = bucket_of(structures, basis)
    inputs = definition.input_basis and bucket_of(structures, definition.input_basis)
    for index, part in zip(full, parts, strict=True):
        own = [structures[i] for i in index.tolist()]
        padded = batch(own, basis, bucket=bucket)
        yield (
            padded,
            definition.table_of(own, padded.n_atoms, capacities=room, bucket=inputs),
            part,
        )


@overload
def n_electrons(structure: Structure) -> int: ...
@overload
def n_electrons(structure: StructureBatch) -> jax.Array: ...
@overload
def n_electrons(structure: Structure | StructureBatch) -> int | jax.Array: ...
def n_electrons(structure: Structure | StructureBatch):
    """Electrons of a molecule, or ``(n_structures,)``."""
    if isinstance(structure, Structure):
        return sum(structure.numbers) - structure.charge
    return jnp.sum(jnp.asarray(structure.numbers), axis=-1) - jnp.asarray(structure.charge)
