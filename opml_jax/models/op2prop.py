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
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import batch
from ..conventions import e3nn_to_cartesian, e3nn_to_matrix
from ..errors import Code, ConfigError, OpmlError, refusal
from ..features import (
    AtomFeatures,
    Inputs,
    Products,
    invariants,
    n_invariants,
    pairs_of_atoms,
)
from ..numerics import Array, einsum, is_concrete
from ..structures import Structure, StructureBatch, centre_of_nuclear_charge, centred
from .definition import Definition
from .nn import Residual

Params = dict[str, Any]

HEADS = {
    "dipole": 1,
    "quadrupole": 2,
    "isotropic_polarizability": 0,
    "anisotropic_polarizability": 2,
}
"""Parts of the properties beside the energy, each a set of irreps of one L and parity (-1)^L."""


@dataclasses.dataclass(frozen=True)
class Op2PropConfig:
    """What the model is made of.

    Attributes:
      basis: basis set of the input operator (need not be that of the labels).
      operator: ``"screened_potential"`` (size-extensive), ``"external_potential"`` or
        ``"neutral_atom_potential"``; ``"overlap"`` or ``"kinetic"`` for what is known without V.
      powers: powers of the operator that give features.
      gram_powers: powers whose on-site irreps enter scalar products.
      metric: ``"plain"``, ``"lowdin"``, ``"overlap"``, ``"lifted"`` or ``"damped"``; see
        :class:`opml_jax.features.Inputs`.
      resolve: ``"none"``, ``"charges"`` or ``"intermediates"``: V or V^2 by element.
      others: operators beside it, such as ``overlap`` and ``kinetic``.
      channels: random mixtures whose products are the invariants
        (:class:`opml_jax.features.Products`); 0: scalar products of ``gram_powers`` are, which
        are not read otherwise.
      references: reference atoms of each element for the kernel, up to so many; 0 for none. Worth
        the most where compositions differ.
      components: principal components of the invariants fed to the networks.
      hidden: hidden widths of the networks.
      vectors: principal dipole vectors gated by the network; 0 turns the gate off.
      members: networks in the ensemble; more than one also gives an uncertainty.
      last_layer: keep what standard deviations of one network or none need; an ensemble has its
        own.
      density: a trained Op2Density model, run directory or file: energies are then functions of
        the density it predicts (:mod:`opml_jax.models.density2prop`), and the dipole is that
        density's. It is copied into the model; ``basis`` becomes that of its operator.
      density_beside: read the operator too; with a density it is not read otherwise.
    """

    basis: str = "def2-svp"
    operator: str = "screened_potential"
    powers: tuple[int, ...] = (1, 2, 3, 4)
    gram_powers: tuple[int, ...] = (1, 2)
    metric: str = "plain"
    resolve: str = "none"
    others: tuple[str, ...] = ()
    channels: int = 0
    references: int = 0
    components: int = 48
    hidden: tuple[int, ...] = (64, 64)
    vectors: int = 12
    members: int = 1
    last_layer: bool = False
    density: str = ""
    density_beside: bool = False

    def __post_init__(self):
        Inputs(self.operator, self.metric, self.resolve, self.others)  # refuses what it must
        for name in ("powers", "gram_powers"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(
                    refusal(f"model.{name}", got=getattr(self, name), expected="positive integers")
                )
        if not self.channels and not set(self.gram_powers) <= set(self.powers):
            raise ConfigError(
                refusal(
                    "model.gram_powers",
                    got=self.gram_powers,
                    expected=f"a part of powers {self.powers}",
                )
            )
        least = {"components": 1, "members": 1, "vectors": 0, "references": 0, "channels": 0}
        sizes = {k: getattr(self, k) for k in least}
        if any(sizes[k] < least[k] for k in sizes) or min(self.hidden, default=0) < 1:
            raise ConfigError(
                refusal(
                    "model",
                    got=", ".join(f"{k} {v}" for k, v in {**sizes, "hidden": self.hidden}.items()),
                    expected="positive sizes (channels, vectors and references may be 0)",
                )
            )
        if self.density and not self.channels:
            raise ConfigError(
                refusal(
                    "model.channels",
                    got="0 with model.density",
                    expected="a positive number: products of mixtures are the invariants",
                    hint="opml config template density-energy prints such a configuration.",
                )
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Op2Prop(Definition):
    """The model's pure functions."""

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
        if self.config.channels:
            return self.products.n_invariants
        return n_invariants(self.recipe, self._gram)

    @property
    def prior(self) -> np.ndarray:
        """``(n_invariants,)`` expected sizes of weights of standardised invariants."""
        if self.config.channels:
            return self.products.prior
        return np.ones(self.n_invariants)

    def draw(
        self, seed: int, structures: Sequence[Structure] = (), known: Params | None = None
    ) -> Params:
        """Parameters that the descriptors need: ``mixing`` of the products, drawn at random.

        Nothing if the configuration has no channels; arguments as for :meth:`Definition.draw`.
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
        self,
        structure: Structure | StructureBatch,
        params: Params | None = None,
        *,
        field: Array | None = None,
    ) -> tuple[Array, dict[int, Array]]:
        """Invariants and irreps of every atom, differentiable in positions and field.

        Args:
          structure: molecule or batch.
          params: of them ``mixing`` is read, if the configuration has channels (:meth:`draw`).
          field: ``(3,)`` uniform electric field, atomic units, for a batch also
            ``(n_structures, 3)``. Default: none. +E.r is added to V, with r about the centre of
            nuclear charge, where the energy of the nuclei in the field vanishes.

        Returns:
          ``(n_atoms, n_invariants)``, and for L = 1 (odd) and 2 (even) ``(n_atoms, n, 2 L + 1)``
          in the order of :mod:`opml_jax.conventions`; a batch adds a leading axis. No trained
          parameter enters them.

        Raises:
          OpmlError: channels, and no ``mixing`` in ``params``.
        """
        if field is not None:
            structure = centred(structure)
        operators = self.inputs(structure, self.basis, self.config.powers, field=field)
        features = self.recipe(operators)
        chunk = {
            (ir.l, ir.p): c for (_, ir), c in zip(features.irreps, features.chunks, strict=True)
        }
        irreps = {}
        for l in (1, 2):  # a basis of s functions alone has none
            none = jnp.zeros((*features.shape[:-1], 0, 2 * l + 1), features.array.dtype)
            irreps[l] = chunk.get((l, (-1) ** l), none)
        if self.config.channels:
            if not params or "mixing" not in params:
                raise OpmlError(
                    refusal("params", got="no mixing", expected="those of draw(seed) or a model")
                )
            return self.products(features, params["mixing"], self.one_hot(structure)), irreps
        return invariants(features, self.recipe, self._gram), irreps

    def apply(self, params: Params, structure: Structure | StructureBatch) -> dict[str, Array]:
        """Energy, and what else the model was trained on.

        Args:
          params: from training or a model file.
          structure: molecule or batch (made for :attr:`basis`).

        Returns:
          ``energy`` in Hartree, shape ``()``; ``energy_members`` ``(members,)`` of an ensemble,
          ``energy_uncertainty`` ``()`` of a model with a last layer (``config.last_layer``);
          if learned ``dipole`` in e Bohr (x, y, z), shape ``(3,)``, traceless ``quadrupole`` about
          the centre of nuclear charge in e Bohr^2, ``(3, 3)``, ``polarizability`` in Bohr^3,
          ``(3, 3)``, and ``isotropic_polarizability``, a third of its trace, ``()``. A batch adds
          a leading axis.
        """
        x, v = self.descriptors(structure, params)
        return self.readout(params, x, v, self.one_hot(structure))

    def energy_in_field(
        self, params: Params, structure: Structure | StructureBatch, field: Array
    ) -> Array:
        """Energy in a uniform electric field: +E.r is added to the potential the model reads.

        What the field does to molecules is learned as far as dipoles trained it
        (``optim.field_dipole_sigma``).

        Args:
          params: from training or a model file.
          structure: neutral molecule, or batch of them.
          field: ``(3,)`` atomic units, for a batch also ``(n_structures, 3)``.

        Returns:
          ``()`` Hartree; a batch adds a leading axis.

        Raises:
          OpmlError: an ion: its energy in a field depends on the origin.
          ConfigError: an operator that takes no field, such as the neutral-atom potential.
        """
        if is_concrete(charge := structure.charge) and np.any(charge):
            raise OpmlError(
                refusal(
                    "structure",
                    got=f"charge {np.max(np.abs(charge))}",
                    expected="neutral: the energy of an ion in a field depends on the origin",
                ),
                code=Code.ELECTRONS,
            )
        x, v = self.descriptors(structure, params, field=field)
        return self.readout(params, x, v, self.one_hot(structure))["energy"]

    def dipole_in_field(
        self, params: Params, structure: Structure | StructureBatch, field: Array | None = None
    ) -> Array:
        """Dipole as minus the derivative of :meth:`energy_in_field` in the field.

        Args:
          params: from training or a model file.
          structure: neutral molecule, or batch of them.
          field: where to differentiate, see there. Default: no field.

        Returns:
          ``(3,)`` e Bohr; a batch adds a leading axis. Errors as there.
        """
        field = _field(structure, field)
        return -jax.grad(lambda f: jnp.sum(self.energy_in_field(params, structure, f)))(field)

    def polarizability_in_field(
        self, params: Params, structure: Structure | StructureBatch, field: Array | None = None
    ) -> Array:
        """Polarizability as the derivative of :meth:`dipole_in_field`; arguments as there.

        Returns:
          ``(3, 3)`` Bohr^3, symmetric; a batch adds a leading axis.
        """
        field = _field(structure, field)
        dipole = functools.partial(self.dipole_in_field, params, structure)

        def slope(direction):
            return jax.jvp(dipole, (field,), (jnp.broadcast_to(direction, field.shape),))[1]

        return jax.vmap(slope, out_axes=-1)(jnp.eye(3, dtype=field.dtype))

    def readout(
        self, params: Params, x: Array, v: dict[int, Array], one_hot: Array
    ) -> dict[str, Array]:
        """Properties from descriptors (see :meth:`descriptors`, :meth:`one_hot`)."""
        x = standardise(params["scaler"], x, one_hot)
        energy = linear_energy(params["linear"], x, one_hot)
        if "kernel" in params:
            energy = energy + kernel_energy(params["kernel"], x, one_hot)
        out = {}
        parts = linear_heads(params, x, v, one_hot)
        use_dipole = "dipole" in params
        if {"residual", "last_layer"} & set(params):
            z = project(params["components"], x, one_hot)
        if "last_layer" in params:
            spread = jnp.linalg.norm(whitened(params["last_layer"], z, one_hot), axis=-1)
            out["energy_uncertainty"] = params["last_layer"]["energy"] * spread
        if "residual" in params:
            local, gates = self.networks(params["residual"], z, one_hot, dipole=use_dipole)
            members = params["scale"]["energy"] * jnp.sum(local * one_hot.sum(axis=-1), axis=-1)
            energy = energy + jnp.mean(members, axis=0)
            if len(members) > 1:
                out["energy_members"] = jnp.moveaxis(members, 0, -1)
            if use_dipole and gates.shape[-1]:
                w = gated_vectors(params["dipole"], v[1], one_hot)
                parts["dipole"] += params["scale"]["dipole"] * einsum(
                    "...ik,...ikm->...m", jnp.mean(gates, axis=0), w
                )
        return {"energy": energy, **out, **cartesian(parts)}

    def last_layer(self, params: Params, structure: Structure | StructureBatch) -> Array:
        """Features ``(..., n_features)`` whose squares add up to the variance of the energy.

        Squares of their derivatives are variances of its derivatives; both but for the factors
        ``energy`` and ``forces`` of ``params["last_layer"]``
        (:mod:`opml_jax.training.last_layer`).
        """
        x, _ = self.descriptors(structure, params)
        one_hot = self.one_hot(structure)
        z = project(params["components"], standardise(params["scaler"], x, one_hot), one_hot)
        return whitened(params["last_layer"], z, one_hot)

    def network(self, *, dipole: bool) -> Residual:
        """The Linen module of one network."""
        n = self.config.vectors if dipole else 0
        return Residual(len(self.basis.elements), self.config.hidden, n)

    def networks(
        self, weights: Params, z: Array, one_hot: Array, *, dipole: bool
    ) -> tuple[Array, Array]:
        """Energies ``(members, ..., n_atoms)`` and gates of all networks; weights stacked."""
        module = self.network(dipole=dipole)
        every = jax.vmap(lambda w: module.apply({"params": w}, z, one_hot))
        return every(weights)  # pyright: ignore[reportReturnType]  # no mutable state beside it


def _field(structure: Structure | StructureBatch, field: Array | None) -> Array:
    """A field for each molecule, zero by default."""
    like = centre_of_nuclear_charge(structure)
    return jnp.broadcast_to(jnp.asarray(0.0 if field is None else field, like.dtype), like.shape)


def standardise(scaler: Params, x: Array, one_hot: Array) -> Array:
    """Invariants minus the element's mean, over its standard deviation (0 where constant)."""
    mean = einsum("...e,ek->...k", one_hot, scaler["mean"])
    inverse = einsum("...e,ek->...k", one_hot, scaler["inverse_std"])
    return (x - mean) * inverse


def linear_energy(linear: Params, x: Array, one_hot: Array) -> Array:
    """Sum over atoms of the element's offset and weights times standardised invariants."""
    weights = einsum("...e,ek->...k", one_hot, linear["weights"])
    return jnp.sum(weights * x, axis=(-1, -2)) + einsum("...ie,e->...", one_hot, linear["offsets"])


def kernel_features(kernel: Params, x: Array, one_hot: Array) -> Array:
    r"""Sums over atoms of Gaussians of the distance to each reference atom of its element.

    :math:`\sum_i \exp(-|y_i - y_m|^2 / 2)` with :math:`y = C_Z \hat x`, sparse kernel regression
    (Bartok, Csanyi, Int. J. Quantum Chem. 115, 1051 (2015)).

    Args:
      kernel: ``components`` ``(n_elements, n_invariants, k)`` and ``references``
        ``(n_elements, m, k)``.
      x: standardised invariants ``(..., n_atoms, n_invariants)``.
      one_hot: ``(..., n_atoms, n_elements)``.

    Returns:
      ``(..., n_elements, m)``.
    """
    y = project(kernel["components"], x, one_hot)
    y2, m2 = jnp.sum(y**2, axis=-1), jnp.sum(kernel["references"] ** 2, axis=-1)
    cross = einsum("...ik,emk->...iem", y, kernel["references"])
    value = jnp.exp(cross - 0.5 * (y2[..., None, None] + m2))
    return einsum("...ie,...iem->...em", one_hot, value)


def kernel_energy(kernel: Params, x: Array, one_hot: Array) -> Array:
    """Energy of the kernel part: :func:`kernel_features` times ``weights`` ``(n_elements, m)``."""
    return einsum("...em,em->...", kernel_features(kernel, x, one_hot), kernel["weights"])


def project(components: Array, x: Array, one_hot: Array) -> Array:
    """Network inputs: the element's principal components ``(n_elements, n_invariants, k)``."""
    every = einsum("...k,eko->...eo", x, components)
    return einsum("...eo,...e->...o", every, one_hot)


def element_sums(z: Array, one_hot: Array) -> Array:
    """For each element the sum of network inputs over its atoms, and their number.

    Returns:
      ``(..., n_elements (k + 1))``.
    """
    one = jnp.ones((*z.shape[:-1], 1), z.dtype)
    sums = einsum("...ie,...ik->...ek", one_hot, jnp.concatenate([z, one], axis=-1))
    return sums.reshape(*sums.shape[:-2], -1)


def whitened(last_layer: Params, z: Array, one_hot: Array) -> Array:
    """:func:`element_sums` in units in which training leaves each a variance of one."""
    return einsum("...f,fg->...g", element_sums(z, one_hot), last_layer["factor"])


def linear_irreps(head: Params, v: Array, one_hot: Array) -> Array:
    """Sum over atoms of the element's weights times its irreps of one L, ``(..., 2 L + 1)``."""
    weights = einsum("...e,ec->...c", one_hot, head["weights"])
    return einsum("...ic,...icm->...m", weights, v)


def linear_heads(params: Params, x: Array, v: dict[int, Array], one_hot: Array) -> dict[str, Array]:
    """The closed-form part of every head of :data:`HEADS` that has parameters."""
    return {
        name: linear_irreps(params[name], v[l], one_hot)
        if l
        else linear_energy(params[name], x, one_hot)
        for name, l in HEADS.items()
        if name in params
    }


def cartesian(parts: dict[str, Array]) -> dict[str, Array]:
    """Properties in x, y, z from the irreps of :data:`HEADS`."""
    out = {}
    if "dipole" in parts:
        out["dipole"] = e3nn_to_cartesian(parts["dipole"])
    if "quadrupole" in parts:
        out["quadrupole"] = e3nn_to_matrix(parts["quadrupole"])
    if "isotropic_polarizability" in parts:
        out["isotropic_polarizability"] = parts["isotropic_polarizability"]
    if "anisotropic_polarizability" in parts:
        mean = parts["isotropic_polarizability"][..., None, None] * jnp.eye(3)
        out["polarizability"] = mean + e3nn_to_matrix(parts["anisotropic_polarizability"])
    return out


def gated_vectors(dipole: Params, v: Array, one_hot: Array) -> Array:
    """The element's principal vectors, ``(..., n_atoms, k, 3)``."""
    mix = einsum("...e,eck->...ck", one_hot, dipole["mixing"])
    return einsum("...cm,...ck->...km", v, mix)
