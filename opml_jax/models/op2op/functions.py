r"""Op2Op: the Fock matrix of a molecule, from potentials that are known before any calculation.

.. math::
    F_0 &= T + W + \Pi A\big(\textstyle\sum_c X_c[S, T, W, E]\, w^0_c\big) \\
    F[P] &= T + V + \tilde J[P] + \Pi A\big(\textstyle\sum_c X_c[S, T, W, E, P, U]\, w_c\big),
    \qquad P = P(F[P])

or, instead of self-consistency, :math:`F_{k+1} = F_k[P(F_k)]` with weights of every stage
(:attr:`~opml_jax.models.Op2OpConfig.stages`). The first two terms are the baseline, one of
:data:`~opml_jax.models.op2op.config.BASELINES`. W is the potential of neutral atoms,
E are pieces of the nuclei's, by element and range,
:math:`U = V + \tilde J[P]` the electrostatic potential of nuclei and electrons, the latter by
density fitting (:func:`opml_jax.integrals.density_fit`; coarse where nothing is projected). A part
of exact exchange is added to F[P] for hybrids (:attr:`~opml_jax.models.Op2OpConfig.exchange`).
X are the irreps, block by block, of these operators and of their products (words,
:mod:`opml_jax.operators.words`), mapped linearly to the irreps of
the same kind of block of F (Nigam, Smidt, Dusson, arXiv:2602.15345, Op2Op), A puts them back
into a matrix, and :math:`\Pi` keeps of it what is the matrix of a local potential
(:mod:`opml_jax.operators.local`; :attr:`~opml_jax.models.Op2OpConfig.projection`). What is learned
besides the first guess is therefore the matrix of exchange and correlation as a function of the
density, and the density is made self-consistent at prediction. All weights are solved in closed
form at the reference's densities; equivariance, permutations and size extensivity hold by
construction.

Derivatives of the self-consistent matrices follow from the implicit function theorem. A model of
density matrices (``target="dm"``) is a first guess too, of P instead of F, made idempotent with the
right number of electrons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ... import integrals
from ...basis import Basis, layout_of
from ...errors import ConfigError, OpmlError
from ...features.couple import IrrepKey, key_name
from ...mean_field import commutator, fixed_point, orthogonal
from ...numerics import Array, einsum, is_concrete
from ...observables import density_matrix, dipole, project
from ...operators.species import SpeciesTable
from ...structures import Structure, StructureBatch, centred
from ..base.definition import Definition, Params
from .config import DENSITY_LETTERS, LETTERS, PIECES, Op2OpConfig
from .filters import sensible
from .inputs import (
    MOST_SHAPES,
    InputTable,
    Irreps,
    Operators,
    batches_of,
    fitted_operators,
    joined,
    known_operators,
    molecules_of,
    most_occupied,
    n_electrons,
    n_shell_pairs,
    operator_irreps,
    spelled,
    superposed,
    table_of,
)
from .network import network_data, network_irreps, to_matrix


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

    bases: ClassVar[tuple[str, ...]] = ("basis", "input_basis")

    def __post_init__(self):
        super().__post_init__()
        given = self.input_basis and self.input_basis.name
        if (self.config.input_basis is None) != (given is None):
            raise ConfigError(
                "input_basis", got=repr(given), expected=repr(self.config.input_basis)
            )

    def table(self, structure: Structure | StructureBatch) -> SpeciesTable:
        """The blocks of a molecule, or of a batch whose composition is known (not traced).

        Raises:
          OpmlError: a traced composition.
        """
        if isinstance(structure, Structure):
            return table_of([structure], self.basis, self.input_basis)
        if not is_concrete(structure.numbers):
            raise OpmlError(
                "table", got=None, expected="one made outside jit, by Op2Op.table(batch)"
            )
        molecules = molecules_of(structure)
        return table_of(molecules, self.basis, self.input_basis, structure.n_atoms)

    def batches(
        self, structures: Sequence[Structure], size: int, shapes: int = MOST_SHAPES
    ) -> Iterator[tuple[StructureBatch, SpeciesTable, np.ndarray]]:
        """Batches of few shapes, their tables, and indices of what is no repeat at their end."""
        return batches_of(structures, size, self.basis, self.input_basis, shapes)

    def operators(
        self, structure: Structure | StructureBatch, table: SpeciesTable | None = None
    ) -> Operators:
        """What is known before the density, ``(n_structures, nao, nao)`` each (1 for a molecule).

        ``S``, ``S^-1``, ``T``, ``V``, ``W``, and ``E`` ``(n_pieces, n_structures, nao, nao)``;
        with an input basis ``inputs``, the same in it, for which a batch needs its ``table``;
        ``density_fit``, which makes Coulomb and exchange matrices, of fine functions if the model
        needs them for more than Coulomb matrices, else coarse ones (if these are not too large to
        be kept), and ``projection`` on local potentials.
        """
        exponents = self.config.exponents
        operators: Operators = {**known_operators(structure, self.basis, exponents)}
        if self.input_basis is not None:
            inputs = structure
            if isinstance(structure, StructureBatch):
                assert isinstance(table, InputTable)  # as they are made for an input basis
                assert table.structures is not None
                inputs = table.structures.replace(positions=structure.positions)
            operators["inputs"] = known_operators(inputs, self.input_basis, exponents)
        return operators | fitted_operators(structure, self.basis, self.config)

    def known_irreps(self, operators: Operators, table: SpeciesTable) -> Irreps:
        """Irreps of :attr:`Op2OpConfig.words`, ``{key: (n_blocks, 2 L + 1, n_columns)}``."""
        if "inputs" not in operators:
            return operator_irreps(spelled(self.config.words, LETTERS, operators), table)
        assert isinstance(table, InputTable)  # as they are made for an input basis
        words = spelled(self.config.words, LETTERS, operators["inputs"])
        irreps = operator_irreps(words, table.inputs)
        return {k: x for k, x in irreps.items() if self.n_outputs(k)}

    def density_irreps(self, operators: Operators, table: SpeciesTable) -> Irreps:
        """Likewise of :attr:`Op2OpConfig.density_words`."""
        words = spelled(self.config.density_words, DENSITY_LETTERS, operators)
        return operator_irreps(words, table)

    def with_density(
        self, structure: Structure | StructureBatch, operators: Operators, dm: Array
    ) -> Operators:
        """The operators with those of a density, ``dm`` ``(n_structures, nao, nao)``.

        P is added, U, and ``mean_field``, which is U and the model's part of exact exchange.
        """
        if "density_fit" in operators:
            j = operators["density_fit"].coulomb(dm)
        else:
            one = isinstance(structure, Structure)
            j = integrals.fitted_coulomb(structure, self.basis, dm[0] if one else dm)
        mean_field = u = operators["V"] + j
        if self.config.exchange:
            part = -0.5 * self.config.exchange
            rank = most_occupied(structure, self.basis)
            mean_field = u + part * operators["density_fit"].exchange(dm, rank)
        return {**operators, "P": dm, "U": u, "mean_field": mean_field}

    def assemble(self, weights: Params, x: Irreps, table: SpeciesTable, like: Array) -> Array:
        """The matrix of linear maps of irreps, ``(n_structures, nao, nao)`` as ``like``."""
        y = {}
        for key, columns in x.items():
            if (linear := weights.get(key_name(key))) is not None:
                y[key] = einsum("nmc,co->nmo", columns, linear["weights"])
                if "constant" in linear:
                    y[key] = y[key] + linear["constant"]
        return to_matrix(y, table, like.shape[0], like.shape[-1])

    def learned_guess(
        self, params: Params, x: Irreps, table: SpeciesTable, operators: Operators
    ) -> Array:
        """What the closed form adds to the baseline, ``(n_structures, nao, nao)``."""
        out = self.assemble(params["guess"], x, table, operators["S"])
        return sensible(out, operators, params, "fade")[0]

    def baseline(
        self,
        params: Params,
        structure: Structure | StructureBatch,
        operators: Operators,
        table: SpeciesTable,
    ) -> Array:
        """What the first guess starts from, ``(n_structures, nao, nao)``.

        ``atoms`` of the parameters are density matrices of free atoms by atomic number, if the
        baseline is ``"superposed"``.
        """
        s, name = operators["S"], self.config.baseline
        if name == "none":
            return jnp.zeros_like(s)
        if name == "superposed":
            dm = superposed(params["atoms"], table, s)
            if self.config.target == "dm":
                return dm
            return operators["T"] + self.with_density(structure, operators, dm)["U"]
        fock = operators["T"] + operators["W" if name == "neutral_atoms" else "V"]
        return fock if self.config.target == "fock" else self.density(structure, s, fock)

    def density(self, structure: Structure | StructureBatch, s: Array, fock: Array) -> Array:
        """The density matrix of a Fock matrix, overlap ``s``: ``(n_structures, nao, nao)`` each."""
        return density_matrix(fock, s, self.n_described(structure), mask=_mask(structure))

    def learned(
        self, params: Params, operators: Operators, x: Irreps, table: SpeciesTable
    ) -> Array:
        """The matrix that the network adds, ``(n_structures, nao, nao)``; 0 if there is none."""
        s, network = operators["S"], self.config.network
        if network is None or "network" not in params:
            return jnp.zeros_like(s)
        weights = params["network"]
        data = network_data(weights["fixed"], x, table, *s.shape[:2])
        return to_matrix(network_irreps(network, weights, data), table, *s.shape[:2])

    def _functional(
        self, params: Params, structure, operators, known, table: SpeciesTable, kinetic: Array
    ) -> Callable[[Array], tuple[Array, Array]]:
        """F of a density, with the maps of ``params``, and what is left out of what is learned.

        ``(n_structures, nao, nao)`` each.
        """
        s = operators["S"]
        constant = self.assemble(params["known"], known, table, s)

        def step(dm):
            of_density = self.with_density(structure, operators, dm)
            x = self.density_irreps(of_density, table)
            matrix = constant + self.assemble(params["density"], x, table, s)
            matrix = matrix + self.learned(params, of_density, joined(known, x), table)
            kept, rest = sensible(matrix, operators, params)
            return kinetic + of_density["mean_field"] + kept, rest

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
            :func:`.filters.faded` of the first guess and of the self-consistent matrix; without
            them nothing fades. ``nonlocal`` is the part that is kept of what is no local potential
            in a projected model; without it nothing is.
          structure: closed-shell molecule or batch (made for :attr:`basis`).
          table: of a batch whose composition is traced (:meth:`table`).
          field: uniform electric field ``(3,)``, Hartree/(e Bohr), added to the Fock matrix as
            ``field . r`` (electrons are negative); r is from the centre of nuclear charge. The
            density of a model with density words answers it self-consistently (with stages: as
            often as there are), also through exchange and correlation; the words themselves know
            the field by the density only.

        Returns:
          ``fock`` in Hartree (not by a model of density matrices), ``dm`` (occupation 2) and
          ``overlap``, ``(nao, nao)``, in the library's AO order, and ``residual`` in Hartree, the
          largest element of what self-consistency makes small (:attr:`Op2OpConfig.extrapolation`),
          0 for a model without density words; of a self-consistent and projected model also
          ``nonlocality`` in Hartree, the root mean square element of what the projection leaves
          out.
          A batch adds a leading axis.

        Raises:
          OpmlError: a field, and a model of density matrices.
        """
        table = self.table(structure) if table is None else table
        operators = self.operators(structure, table)
        known = self.known_irreps(operators, table)
        s, kinetic = operators["S"], operators["T"]
        guess = self.baseline(params, structure, operators, table)
        guess = guess + self.learned_guess(params, known, table, operators)
        if field is not None:
            in_field = self._in_field(structure, field)
            guess, kinetic = guess + in_field, kinetic + in_field
        out = {"overlap": s, "residual": jnp.zeros(guess.shape[0], guess.dtype)}
        if self.config.target == "dm":
            electrons = self.n_described(structure)
            out["dm"] = project(guess, s, electrons, mask=_mask(structure))
        else:
            if self.config.density_words:
                read = structure, operators, known, table, kinetic
                out |= self._with_functional(params, guess, *read)
            else:
                out["fock"] = guess + self.learned(params, operators, known, table)
            out["dm"] = self.density(structure, s, out["fock"])
        return {k: v[0] for k, v in out.items()} if isinstance(structure, Structure) else out

    def _in_field(self, structure: Structure | StructureBatch, field: Array) -> Array:
        """What a field adds to a Fock matrix."""
        if self.config.target == "dm":
            raise OpmlError("target of a model in a field", got="dm", expected="fock")
        position = integrals.position(centred(structure), self.basis)
        return einsum("x,...xij->...ij", field, position)

    def _with_functional(self, params: Params, guess: Array, *read: Any) -> dict[str, Array]:
        """The Fock matrix of a density that is made self-consistent, or of the last stage."""
        c = self.config
        structure, s = read[0], read[1]["S"]
        if c.stages:
            fock = guess
            for i in range(c.stages):
                dm = self.density(structure, s, fock)
                fock, _ = self._functional(params["stages"][str(i)], *read)(dm)
            return {"fock": fock}
        functional = self._functional(params, *read)
        mask = _mask(structure)
        half = orthogonal(s, mask)
        nao = s.shape[-1] if mask is None else jnp.sum(mask, axis=1)

        def step(fock):
            dm = self.density(structure, s, fock)
            new, rest = functional(dm)
            doubt = jnp.sqrt(jnp.sum(rest**2, axis=(1, 2))) / nao  # any orientation has the same
            if c.extrapolation == "difference":
                return new, new - fock, doubt
            return new, commutator(half, s, new, dm), doubt

        fock, residual, doubt = fixed_point(step, guess, c.cycles, c.tolerance, c.history)
        out = {"fock": fock, "residual": residual}
        return {**out, "nonlocality": doubt} if c.judges_itself else out

    def dipole_in_field(
        self, params: Params, structure: Structure, field: Array | None = None
    ) -> Array:
        """Dipole of the density in a uniform field, ``(3,)`` e Bohr; arguments of :meth:`apply`."""
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

    def first_level(self, structure: Structure | StructureBatch) -> Any:
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

    def n_described(self, structure: Structure | StructureBatch) -> Any:
        """Electrons in the levels of the matrix, ``()`` or ``(n,)``."""
        return n_electrons(structure) - 2 * self.first_level(structure)

    def n_known(self, key: IrrepKey) -> int:
        """Columns of one key that :attr:`Op2OpConfig.words` make."""
        pieces = len(self.basis.elements) * len(self.config.exponents)
        n = sum(pieces if PIECES in word.split() else 1 for word in self.config.words)
        return n * n_shell_pairs(self.input_basis or self.basis, key)

    def n_outputs(self, key: IrrepKey) -> int:
        """Shell pairs of one key, 0 if the basis has none."""
        return n_shell_pairs(self.basis, key)


def _mask(structure: Structure | StructureBatch) -> Array | None:
    return None if isinstance(structure, Structure) else structure.layout.ao_mask
