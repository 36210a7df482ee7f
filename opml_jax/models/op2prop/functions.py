r"""Op2Prop: energy, dipole, quadrupole and polarizability of a molecule from its potential.

.. math::
    E = \sum_i e_{Z_i} + w_{Z_i} \cdot \hat x_i + \sum_m a_m k_{Z_i}(y_i, y_m)
        + g_{Z_i}(P_{Z_i} \hat x_i), \qquad
    T^L = \sum_i \sum_c u^L_{Z_i c} v^L_{ic}, \qquad
    \mu = T^1 + \sum_i \sum_k \phi_{Z_i k}(P_{Z_i} \hat x_i) (Q_{Z_i} v^1_i)_k

with standardised invariants :math:`\hat x_i` of powers of the (screened) potential and its irreps
:math:`v^L_i` (Nigam, Smidt, Dusson, arXiv:2602.15345, Op2Prop). The quadrupole is :math:`T^2`, the
polarizability :math:`T^0 + T^2`, with :math:`T^0` of the form of the energy. e, w, a and u are
solved in closed form; k compares atoms with reference atoms (a sparse Gaussian kernel, optional);
the networks g and phi, one or an ensemble, learn what is left. Everything is a pure function of
parameters and structure; forces are ``-jax.grad`` of it, through the integrals.

The energy in a uniform field, the potential with +E.r added, gives dipole and polarizability a
second time, as minus its first and second derivative in the field.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ...basis import batch
from ...errors import OpmlError
from ...features import AtomFeatures, Inputs, Products, invariants, n_invariants, pairs_of_atoms
from ...numerics import Array
from ...structures import centred
from ..base import Params
from .atomwise import AtomwiseDefinition, Molecules
from .config import Op2PropConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Op2Prop(AtomwiseDefinition):
    """Pure functions of an Op2Prop model; see :class:`AtomwiseDefinition` for most of them."""

    config: Op2PropConfig

    @property
    def inputs(self) -> Inputs:
        """The operators this model reads."""
        c = self.config
        return Inputs(c.operator, c.metric, c.resolve, c.others)

    @functools.cached_property
    def recipe(self) -> AtomFeatures:
        """The atom features this model reads."""
        spec = self.basis.spec
        return AtomFeatures(spec, self.inputs.sources(spec, self.config.powers))

    @functools.cached_property
    def _gram(self) -> dict[str, tuple[int, ...]]:
        return self.inputs.gram(self.basis.spec, self.config.gram_powers)

    @functools.cached_property
    def products(self) -> Products:
        """Makes the invariants, if the configuration has channels."""
        if self.config.metric == "damped":  # what was made small stays small
            return Products(self.recipe, self.config.channels, lift=0.0)
        return Products(self.recipe, self.config.channels)

    @property
    def n_invariants(self) -> int:
        """Invariants of one atom."""
        c = self.config.channels
        return self.products.n_invariants if c else n_invariants(self.recipe, self._gram)

    @property
    def prior(self) -> np.ndarray:
        """``(n_invariants,)`` expected sizes of weights of standardised invariants."""
        return self.products.prior if self.config.channels else np.ones(self.n_invariants)

    def draw(self, seed: int) -> Params:
        """Parameters that the descriptors need: ``mixing`` of the products, drawn at random.

        Nothing if the configuration has no channels.
        """
        if not self.config.channels:
            return {}
        kinds, molecules = pairs_of_atoms(self.basis.elements)

        @jax.jit
        def features(structures):
            return self.recipe(self.inputs(structures, self.basis, self.config.powers))

        return {"mixing": self.products.draw(kinds, features(batch(molecules, self.basis)), seed)}

    def n_irreps(self, l: int) -> int:
        """Irreps of angular momentum l and parity (-1)^l of one atom."""
        return sum(c.l == l and c.parity == (-1) ** l for c in self.recipe.channels)

    def descriptors(
        self, structure: Molecules, params: Params | None = None, *, field: Array | None = None
    ) -> tuple[Array, dict[int, Array]]:
        """Invariants and irreps of every atom; see :meth:`AtomwiseDefinition.descriptors`.

        Of ``params`` ``mixing`` (:meth:`draw`) is read, if the configuration has channels.

        Raises:
          OpmlError: channels, and no ``mixing`` in ``params``.
          ConfigError: a field, and an operator that takes none.
        """
        if field is not None:
            structure = centred(structure)
        operators = self.inputs(structure, self.basis, self.config.powers, field=field)
        features = self.recipe(operators)
        irreps, pairs = {}, zip(features.irreps, features.chunks, strict=True)
        chunk = {(ir.l, ir.p): c for (_, ir), c in pairs}
        for l in (1, 2):  # a basis of s functions alone has none
            none = jnp.zeros((*features.shape[:-1], 0, 2 * l + 1), features.array.dtype)
            irreps[l] = chunk.get((l, (-1) ** l), none)
        if self.config.channels:
            if not params or "mixing" not in params:
                expected = "those of draw(seed) or a model"
                raise OpmlError("params", got="no mixing", expected=expected)
            return self.products(features, params["mixing"], self.one_hot(structure)), irreps
        return invariants(features, self.recipe, self._gram), irreps
