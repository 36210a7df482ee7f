r"""Density to property: energies as functions of a predicted electron density.

The second of two maps (Bogojeski et al., arXiv:2604.24563): an :class:`Op2Density` model gives
the coefficients :math:`c_{inlm}` of the total density, free atoms included, on every atom, and the
energy is :class:`Op2Prop`'s function of the many-body invariants of these irreps, alone or beside
those of the operator. Forces are minus its derivative through both maps and the integrals. The
dipole is the density's own.

Coefficients are read *before electrons are counted*. The multiplier that makes their number exact
spreads what one atom lacks over the whole molecule, so that molecules that are far apart would
change each other's energy, and forces would need derivatives of the metric. The density and the
dipole that are predicted have all electrons.

Of a density with widths every atom's functions are first brought to those of the basis, by their
overlaps on that atom (:func:`opml_jax.density.on_own_atom`): invariants compare coefficients, and
these are of the same functions only then.

What to mix is found on the training set (in :class:`Op2Prop` on pairs of atoms, of which a density
model knows nothing): the leading principal components of each element's coefficients. Functions of
an auxiliary basis are nearly dependent, so components are those of coefficients of orthonormal
functions: sizes are then those of densities. Mixed in units of their own spread, small components
were as loud as large ones, and extrapolated worst.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import density
from ...basis import Basis, BasisSpec, batch, bucket_of, layout_of
from ...errors import ConfigError, OpmlError
from ...features import Products
from ...irreps import e3nn
from ...numerics import Array
from ...structures import Structure
from ..base import Params
from ..op2density import Op2Density
from ..op2prop import Op2Prop, Op2PropConfig
from ..op2prop.atomwise import AtomwiseDefinition, Molecules
from .config import Density2PropConfig

CHUNK, DRAWN = 16, 256
"""Molecules at a time, and how many of the training set tell what to mix."""


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """A recipe whose irreps are coefficients of a density in the functions of a basis."""

    spec: BasisSpec

    @property
    def irreps(self) -> e3nn.Irreps:
        """Of one atom: what the element with most functions of each degree has."""
        return e3nn.Irreps([(n, (l, (-1) ** l)) for l, n in enumerate(self.spec.slot_counts) if n])

    def __call__(self, on_atoms: Mapping[int, Array]) -> e3nn.IrrepsArray:
        """``(..., n_atoms, irreps.dim)``."""
        flat = [on_atoms[ir.l].reshape(*on_atoms[ir.l].shape[:-2], -1) for _, ir in self.irreps]
        return e3nn.IrrepsArray(self.irreps, jnp.concatenate(flat, axis=-1))


@dataclasses.dataclass(frozen=True, eq=False)
class Density2Prop(AtomwiseDefinition):
    """The pure functions: those of :class:`Op2Prop` with descriptors of a model of densities."""

    config: Density2PropConfig
    density: Op2Density

    bases = ("basis", "aux_basis")

    @property
    def identity(self) -> tuple[Any, ...]:
        """As of every definition, with the functions of the density."""
        return (*super().identity, self.density.config)

    @property
    def aux_basis(self) -> Basis:
        """Of the density."""
        return self.density.aux_basis

    @functools.cached_property
    def beside(self) -> Op2Prop | None:
        """Describes atoms by operators, whose descriptors are read beside the density's."""
        if self.config.beside is None:
            return None
        read, c = vars(self.config.beside), self.config.channels
        return Op2Prop(Op2PropConfig(basis=self.basis.name, channels=c, **read), self.basis)

    @functools.cached_property
    def products(self) -> Products:
        """Makes invariants of the density."""
        return Products(Coefficients(self.aux_basis.spec), self.config.channels)

    @property
    def n_invariants(self) -> int:
        """Invariants of one atom."""
        return self.products.n_invariants + (self.beside.n_invariants if self.beside else 0)

    @property
    def prior(self) -> np.ndarray:
        """``(n_invariants,)`` expected sizes of weights of standardised invariants."""
        prior = self.products.prior
        return np.concatenate([prior, self.beside.prior]) if self.beside else prior

    def draw(self, seed: int, structures: Sequence[Structure], params: Params) -> Params:
        """Parameters that the descriptors need, from those of the density model.

        Up to :data:`DRAWN` structures, of the training set, tell what is mixed.
        """
        features, elements = self._features(structures, params)
        mixing = self.products.draw_from(features, elements, self._roots(), seed)
        beside = self.beside.draw(seed) if self.beside else {}
        return {"density": params, "density_mixing": mixing, **beside}

    def _features(self, structures: Sequence[Structure], params: Params):
        """Coefficients and element of every atom of some structures."""
        chosen = np.linspace(0, len(structures) - 1, min(DRAWN, len(structures))).astype(int)
        chosen = [structures[i] for i in np.unique(chosen)]
        bucket, on_atoms = bucket_of(chosen, self.basis), jax.jit(self.density.on_atoms)
        features, elements = [], []
        for start in range(0, len(chosen), CHUNK):
            part = chosen[start : start + CHUNK]
            full = part + [part[-1]] * (min(CHUNK, len(chosen)) - len(part))
            density_of = on_atoms(params, batch(full, self.basis, bucket=bucket))
            rows = np.asarray(self.products.recipe(density_of.fixed).array)
            for s, row in zip(part, rows, strict=False):
                features.append(row[: s.n_atoms])
                elements.append(layout_of(s, self.basis).element)
        together = jnp.asarray(np.concatenate(features))
        return e3nn.IrrepsArray(self.products.recipe.irreps, together), np.concatenate(elements)

    def _roots(self) -> dict[tuple[int, int], np.ndarray]:
        """By element and degree the root of the overlap of the functions of one atom."""
        roots = {}
        for e, z in enumerate(self.basis.elements):
            for l in {shell.l for shell in self.aux_basis.element_shells(z)}:
                values, u = np.linalg.eigh(density.overlap_on_atom(self.aux_basis, z, l))
                roots[e, l] = (u * np.sqrt(np.maximum(values, 0.0))) @ u.T
        return roots

    def descriptors(
        self, structure: Molecules, params: Params | None = None, *, field: Array | None = None
    ) -> tuple[Array, dict[int, Array]]:
        """Invariants and irreps of every atom; see :meth:`AtomwiseDefinition.descriptors`.

        Of ``params`` those of :meth:`draw` are read.

        Raises:
          ConfigError: a field: densities were learned of molecules without.
          OpmlError: parameters without a density.
        """
        if field is not None:
            got = "one with a predicted density"
            raise ConfigError("field", got=got, expected="no field")
        if not params or "density" not in params:
            expected = "those of draw or of a model"
            raise OpmlError("params", got="no density", expected=expected)
        on_atoms = self.density.on_atoms(params["density"], structure).fixed
        return self._described(on_atoms, structure, params)

    def _described(self, on_atoms, structure, params: Params) -> tuple[Array, dict[int, Array]]:
        """:meth:`descriptors` with the coefficients known."""
        features, hot = self.products.recipe(on_atoms), self.one_hot(structure)
        x = self.products(features, params["density_mixing"], hot)
        lead = features.shape[:-1]
        irreps = {l: on_atoms.get(l, jnp.zeros((*lead, 0, 2 * l + 1), x.dtype)) for l in (1, 2)}
        if self.beside is None:
            return x, irreps
        others, of_operators = self.beside.descriptors(structure, params)
        joined: dict[int, Array] = {
            l: jnp.concatenate([irreps[l], of_operators[l]], axis=-2) for l in irreps
        }
        return jnp.concatenate([x, others], axis=-1), joined

    def apply(self, params: Params, structure: Molecules) -> dict[str, Array]:
        """As :meth:`AtomwiseDefinition.apply`; of a molecule also the ``dipole`` of its density.

        Not of a batch: counting electrons takes a metric, which batches do not have.
        """
        on_atoms = self.density.on_atoms(params["density"], structure)
        x, v = self._described(on_atoms.fixed, structure, params)
        out = self.readout(params, x, v, self.one_hot(structure))
        if isinstance(structure, Structure):
            out["dipole"] = self.density.counted(on_atoms, structure)["dipole"]
        return out
