r"""Op2Prop: energy and dipole of a molecule from its external potential.

.. math::
    E = \sum_i e_{Z_i} + w_{Z_i} \cdot \hat x_i + g_{Z_i}(P_{Z_i} \hat x_i), \qquad
    \mu = \sum_i \sum_c u_{Z_i c} v_{ic} + \sum_k \phi_{Z_i k}(P_{Z_i} \hat x_i) (Q_{Z_i} v_i)_k

with standardised invariants :math:`\hat x_i` of powers of the (screened) potential and its 1o
irreps :math:`v_i` (Nigam, Smidt, Dusson, arXiv:2602.15345, Op2Prop). e, w and u are solved in
closed form, the networks g and phi learn what is left. Everything is a pure function of parameters
and structure; forces are ``-jax.grad`` of it, through the integrals.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..basis import AOLayout, Basis, layout_of
from ..conventions import e3nn_to_cartesian
from ..errors import ConfigError, nearest, refusal
from ..features import AtomFeatures, invariants, n_invariants
from ..features.hierarchy import OPERATORS
from ..numerics import Array, einsum
from ..structures import Structure, StructureBatch
from .nn import Residual

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Op2PropConfig:
    """What the model is made of.

    Attributes:
      basis: basis set of the input operator (need not be that of the labels).
      operator: ``"screened_potential"`` (size-extensive) or ``"external_potential"``.
      powers: powers of the operator that give features.
      gram_powers: powers whose on-site irreps enter scalar products.
      components: principal components of the invariants fed to the networks.
      hidden: hidden widths of the networks.
      vectors: principal dipole vectors gated by the network; 0 turns the gate off.
    """

    basis: str = "def2-svp"
    operator: str = "screened_potential"
    powers: tuple[int, ...] = (1, 2, 3, 4)
    gram_powers: tuple[int, ...] = (1, 2)
    components: int = 48
    hidden: tuple[int, ...] = (64, 64)
    vectors: int = 12

    def __post_init__(self):
        if self.operator not in OPERATORS:
            raise ConfigError(
                refusal(
                    "model.operator",
                    got=repr(self.operator),
                    expected=f"one of {[*OPERATORS]}",
                    hint=nearest(self.operator, OPERATORS),
                )
            )
        for name in ("powers", "gram_powers"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(
                    refusal(f"model.{name}", got=getattr(self, name), expected="positive integers")
                )
        if not set(self.gram_powers) <= set(self.powers):
            raise ConfigError(
                refusal(
                    "model.gram_powers",
                    got=self.gram_powers,
                    expected=f"a part of powers {self.powers}",
                )
            )
        if self.components < 1 or self.vectors < 0 or min(self.hidden, default=0) < 1:
            raise ConfigError(
                refusal(
                    "model",
                    got=f"components {self.components}, vectors "
                    f"{self.vectors}, hidden {self.hidden}",
                    expected="positive sizes",
                )
            )


@dataclasses.dataclass(frozen=True)
class Op2Prop:
    """The model's pure functions for one basis; hashable, holds no numbers but the basis's.

    Args:
      config: hyper-parameters.
      basis: the input basis, loaded for every element the model knows.
    """

    config: Op2PropConfig
    basis: Basis

    def __eq__(self, other) -> bool:
        return isinstance(other, Op2Prop) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self):
        return self.config, self.basis.spec

    @functools.cached_property
    def recipe(self) -> AtomFeatures:
        """The atom features this model reads."""
        return AtomFeatures(self.basis.spec, self.config.powers)

    @property
    def n_invariants(self) -> int:
        """Invariants of one atom."""
        return n_invariants(self.recipe, self.config.gram_powers)

    @functools.cached_property
    def n_vectors(self) -> int:
        """1o irreps of one atom."""
        return sum(c.l == 1 and c.parity == -1 for c in self.recipe.channels)

    @property
    def residual(self) -> Residual:
        """The Linen module of the networks."""
        return Residual(len(self.basis.elements), self.config.hidden, self.config.vectors)

    def descriptors(self, structure: Structure | StructureBatch) -> tuple[Array, Array]:
        """Invariants and vectors of every atom, differentiable in positions.

        Returns:
          ``(n_atoms, n_invariants)`` and ``(n_atoms, n_vectors, 3)`` in x, y, z; a batch adds a
          leading axis. No parameter enters them.
        """
        operator = OPERATORS[self.config.operator](structure, self.basis)
        features = self.recipe(operator)
        chunk = {
            (ir.l, ir.p): c for (_, ir), c in zip(features.irreps, features.chunks, strict=True)
        }
        none = jnp.zeros((*features.shape[:-1], 0, 3), features.array.dtype)  # s functions alone
        vectors = e3nn_to_cartesian(chunk.get((1, -1), none))
        return invariants(features, self.recipe, self.config.gram_powers), vectors

    def one_hot(self, structure: Structure | StructureBatch) -> Array:
        """``(..., n_atoms, n_elements)``, zero for padding."""
        layout = layout_of(structure, self.basis)
        hot = jax.nn.one_hot(layout.element, len(self.basis.elements), dtype=float)
        return hot if isinstance(layout, AOLayout) else hot * structure.mask[..., None]

    def apply(self, params: Params, structure: Structure | StructureBatch) -> dict[str, Array]:
        """Energy and dipole.

        Args:
          params: from training or a model file.
          structure: molecule or batch (made for :attr:`basis`).

        Returns:
          ``energy`` in Hartree, shape ``()``; ``dipole`` in e Bohr (x, y, z), shape ``(3,)``, if
          the model was trained on dipoles. A batch adds a leading axis.
        """
        x, v = self.descriptors(structure)
        return self.readout(params, x, v, self.one_hot(structure))

    def readout(self, params: Params, x: Array, v: Array, one_hot: Array) -> dict[str, Array]:
        """Properties from descriptors (see :meth:`descriptors`, :meth:`one_hot`)."""
        x = standardise(params["scaler"], x, one_hot)
        energy = linear_energy(params["linear"], x, one_hot)
        use_dipole = "dipole" in params
        gates = None
        if "residual" in params:
            z = project(params["components"], x, one_hot)
            network = self._network(params)
            local, gates = network(z, one_hot)
            energy = energy + params["scale"]["energy"] * jnp.sum(
                local * one_hot.sum(axis=-1), axis=-1
            )
        out = {"energy": energy}
        if use_dipole:
            out["dipole"] = linear_dipole(params["dipole"], v, one_hot)
            if gates is not None and gates.shape[-1]:
                w = gated_vectors(params["dipole"], v, one_hot)
                out["dipole"] += params["scale"]["dipole"] * einsum("...ik,...ikx->...x", gates, w)
        return out

    def _network(self, params: Params):
        n = self.config.vectors if "dipole" in params else 0
        module = Residual(len(self.basis.elements), self.config.hidden, n)
        return functools.partial(module.apply, {"params": params["residual"]})


def standardise(scaler: Params, x: Array, one_hot: Array) -> Array:
    """Invariants minus the element's mean, over its standard deviation (0 where constant)."""
    mean = einsum("...e,ek->...k", one_hot, scaler["mean"])
    inverse = einsum("...e,ek->...k", one_hot, scaler["inverse_std"])
    return (x - mean) * inverse


def linear_energy(linear: Params, x: Array, one_hot: Array) -> Array:
    """Sum over atoms of the element's offset and weights times standardised invariants."""
    weights = einsum("...e,ek->...k", one_hot, linear["weights"])
    return jnp.sum(weights * x, axis=(-1, -2)) + einsum("...ie,e->...", one_hot, linear["offsets"])


def project(components: Array, x: Array, one_hot: Array) -> Array:
    """Network inputs: the element's principal components ``(n_elements, n_invariants, k)``."""
    every = einsum("...k,eko->...eo", x, components)
    return einsum("...eo,...e->...o", every, one_hot)


def linear_dipole(dipole: Params, v: Array, one_hot: Array) -> Array:
    """Sum over atoms of the element's weights times its vectors."""
    weights = einsum("...e,ec->...c", one_hot, dipole["weights"])
    return einsum("...ic,...icx->...x", weights, v)


def gated_vectors(dipole: Params, v: Array, one_hot: Array) -> Array:
    """The element's principal vectors, ``(..., n_atoms, k, 3)``."""
    mix = einsum("...e,eck->...ck", one_hot, dipole["mixing"])
    return einsum("...cx,...ck->...kx", v, mix)
