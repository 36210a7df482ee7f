"""Definitions whose properties are sums over atoms of functions of what describes the atoms."""

from __future__ import annotations

import abc
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import Code, OpmlError
from ...numerics import Array, einsum, is_concrete
from ...structures import Structure, StructureBatch, centre_of_nuclear_charge
from ..base import EnergyDefinition, Params
from .readout import (
    cartesian,
    closed_form_energy,
    gated_vectors,
    linear_heads,
    project,
    standardise,
    whitened,
)

if TYPE_CHECKING:
    from .network import Residual

Molecules = Structure | StructureBatch
"""One molecule, or a batch."""


class AtomwiseDefinition(EnergyDefinition):
    """Pure functions of a model that reads invariants and irreps of every atom, of any kind."""

    @property
    @abc.abstractmethod
    def n_invariants(self) -> int:
        """Invariants of one atom."""

    @property
    @abc.abstractmethod
    def prior(self) -> np.ndarray:
        """``(n_invariants,)`` expected sizes of weights of standardised invariants."""

    @abc.abstractmethod
    def descriptors(
        self, structure: Molecules, params: Params | None = None, *, field: Array | None = None
    ) -> tuple[Array, dict[int, Array]]:
        """Invariants and irreps of every atom, differentiable in positions and field.

        Args:
          structure: molecule or batch.
          params: what of the model's parameters they need.
          field: ``(3,)`` uniform electric field, atomic units, for a batch also
            ``(n_structures, 3)``. Default: none. +E.r is added to V, with r about the centre of
            nuclear charge, where the energy of the nuclei in the field vanishes.

        Returns:
          ``(n_atoms, n_invariants)``, and for L = 1 (odd) and 2 (even) ``(n_atoms, n, 2 L + 1)``
          in the order of :mod:`opml_jax.conventions`; a batch adds a leading axis. No trained
          parameter enters them.

        Raises:
          OpmlError: parameters that lack what they need.
        """

    def apply(self, params: Params, structure: Molecules) -> dict[str, Array]:
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

    def readout(
        self, params: Params, x: Array, v: dict[int, Array], one_hot: Array
    ) -> dict[str, Array]:
        """Properties from descriptors (see :meth:`descriptors`, :meth:`one_hot`)."""
        x = standardise(params["scaler"], x, one_hot)
        energy, out = closed_form_energy(params, x, one_hot), {}
        heads = linear_heads(params, x, v, one_hot)
        if {"residual", "last_layer"} & set(params):
            z = project(params["components"], x, one_hot)
        if "last_layer" in params:
            spread = jnp.linalg.norm(whitened(params["last_layer"], z, one_hot), axis=-1)
            out["energy_uncertainty"] = params["last_layer"]["energy"] * spread
        if "residual" in params:
            local, gates = self.networks(params["residual"], z, one_hot, dipole="dipole" in heads)
            members = params["scale"]["energy"] * jnp.sum(local * one_hot.sum(axis=-1), axis=-1)
            energy = energy + jnp.mean(members, axis=0)
            if len(members) > 1:
                out["energy_members"] = jnp.moveaxis(members, 0, -1)
            if "dipole" in heads and gates.shape[-1]:
                w = gated_vectors(params["dipole"], v[1], one_hot)
                heads["dipole"] += params["scale"]["dipole"] * einsum(
                    "...ik,...ikm->...m", jnp.mean(gates, axis=0), w
                )
        return {"energy": energy, **out, **cartesian(heads)}

    def network(self, *, dipole: bool) -> Residual:
        """The Linen module of one network."""
        from .network import Residual  # what is taken from disk needs no Flax

        n_vectors = self.config.vectors if dipole else 0
        return Residual(len(self.elements), self.config.hidden, n_vectors)

    def networks(
        self, weights: Params, z: Array, one_hot: Array, *, dipole: bool
    ) -> tuple[Array, Array]:
        """Energies ``(members, ..., n_atoms)`` and gates of all networks; weights stacked."""
        module = self.network(dipole=dipole)
        every = jax.vmap(lambda w: module.apply({"params": w}, z, one_hot))
        return every(weights)  # pyright: ignore[reportReturnType]  # no mutable state beside it

    def last_layer(self, params: Params, structure: Molecules) -> Array:
        """Features ``(..., n_features)`` whose squares add up to the variance of the energy.

        But for a factor, see :mod:`opml_jax.models.op2prop.last_layer`; likewise derivatives.
        """
        x, _ = self.descriptors(structure, params)
        one_hot = self.one_hot(structure)
        z = project(params["components"], standardise(params["scaler"], x, one_hot), one_hot)
        return whitened(params["last_layer"], z, one_hot)

    def forces_uncertainty(self, params: Params, structures: StructureBatch) -> Array | None:
        """Standard deviations of the forces by the last layer, Hartree/Bohr, if it has them."""
        if "forces" not in params.get("last_layer", ()):
            return None
        positions = jnp.asarray(structures.positions)
        n = positions.shape[1]

        def features(x):
            return self.last_layer(params, structures.replace(positions=x))

        _, slopes = jax.linearize(features, positions)  # integrals are computed once

        def one(direction):
            return jnp.linalg.norm(slopes(jnp.broadcast_to(direction, positions.shape)), axis=-1)

        # one coordinate after the other, so that memory is of one
        spread = jax.lax.map(one, jnp.eye(3 * n, dtype=positions.dtype).reshape(3 * n, n, 3))
        return params["last_layer"]["forces"] * spread.T.reshape(positions.shape)

    def energy_in_field(self, params: Params, structure: Molecules, field: Array) -> Array:
        """Energy in a uniform electric field: +E.r is added to the potential the model reads.

        What the field does to molecules is learned as far as dipoles trained it
        (``model.fit.field_dipole_sigma``).

        Args:
          params: from training or a model file.
          structure: neutral molecule, or batch of them.
          field: ``(3,)`` atomic units, for a batch also ``(n_structures, 3)``.

        Returns:
          ``()`` Hartree; a batch adds a leading axis.

        Raises:
          OpmlError: an ion: its energy in a field depends on the origin.
          ConfigError: what takes no field, such as the neutral-atom potential.
        """
        if is_concrete(charge := structure.charge) and np.any(charge):
            got = f"charge {np.max(np.abs(charge))}"
            expected = "neutral: the energy of an ion in a field depends on the origin"
            raise OpmlError("structure", got=got, expected=expected, code=Code.ELECTRONS)
        x, v = self.descriptors(structure, params, field=field)
        return self.readout(params, x, v, self.one_hot(structure))["energy"]

    def dipole_in_field(
        self, params: Params, structure: Molecules, field: Array | None = None
    ) -> Array:
        """Dipole as minus the derivative of :meth:`energy_in_field` in the field, by default at 0.

        Returns:
          ``(3,)`` e Bohr; a batch adds a leading axis. Arguments and errors as there.
        """
        field = _of_each(structure, field)
        return -jax.grad(lambda f: jnp.sum(self.energy_in_field(params, structure, f)))(field)

    def polarizability_in_field(
        self, params: Params, structure: Molecules, field: Array | None = None
    ) -> Array:
        """Polarizability as the derivative of :meth:`dipole_in_field`; arguments as there.

        Returns:
          ``(3, 3)`` Bohr^3, symmetric; a batch adds a leading axis.
        """
        field = _of_each(structure, field)
        dipole = functools.partial(self.dipole_in_field, params, structure)

        def slope(direction):
            return jax.jvp(dipole, (field,), (jnp.broadcast_to(direction, field.shape),))[1]

        return jax.vmap(slope, out_axes=-1)(jnp.eye(3, dtype=field.dtype))


def _of_each(structure: Molecules, field: Array | None) -> Array:
    """A field for each molecule, zero by default."""
    like = centre_of_nuclear_charge(structure)
    return jnp.broadcast_to(jnp.asarray(0.0 if field is None else field, like.dtype), like.shape)
