"""A trained model: definition, parameters and card, with a friendly ``predict``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import batch
from ..basis.buckets import Bucket, smallest_bucket
from ..errors import Code, OpmlError, refusal
from ..numerics import Array, require_x64
from ..structures import Structure, StructureBatch
from ..structures.contacts import warn_of_contacts
from ..structures.elements import symbol
from .chunks import in_chunks
from .doubt import warn_of_doubt
from .op2prop import Op2Prop, Params
from .operator_network import OperatorNetwork

CHUNKS = (1, 16)
"""Numbers of structures evaluated at once; the last chunk of a list is filled up by repeats.

Few, because compiling for another number costs more than filling up.
"""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model ready for use.

    Attributes:
      definition: the pure functions.
      params: their parameters, a pytree of arrays.
      card: what it was trained on and how well: plain JSON-able values.
    """

    definition: Op2Prop | OperatorNetwork
    params: Params
    card: dict[str, Any] = dataclasses.field(default_factory=dict)

    without: ClassVar[str] = "linear"
    """Argument of :meth:`predict` that leaves out the later part of a model."""

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers the model was trained on."""
        return self.definition.basis.elements

    @property
    def closed_form(self) -> Model:
        """The model without its networks; they are silenced, so nothing compiles anew."""
        if "scale" not in self.params:
            return self
        silent = jax.tree.map(np.zeros_like, self.params["scale"])
        return dataclasses.replace(self, params={**self.params, "scale": silent})

    @property
    def doubted(self) -> tuple[str, ...]:
        """Labels that :meth:`predict` has standard deviations of; none of most models."""
        if self.definition.config.members > 1:
            return ("energy", "forces")
        return tuple(k for k in ("energy", "forces") if k in self.params.get("last_layer", ()))

    def energy_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """A pure energy function for ``jax.grad``, ``jax.vmap`` and friends.

        Args:
          params: parameters to use. Default: the model's own.

        Returns:
          ``energy(structure) -> ()`` in Hartree (``(n_structures,)`` for a batch). Forces:
          ``-jax.grad(lambda R: energy(s.replace(positions=R)))(s.positions)``.
        """
        own = self.params if params is None else params
        return lambda structure: self.definition.apply(own, structure)["energy"]

    def has(self, name: str) -> bool:
        """Whether the model predicts a property beside the energy."""
        head = "anisotropic_polarizability" if name == "polarizability" else name
        return head in self.params

    def property_fn(self, name: str, params: Params | None = None) -> Callable[[Structure], Array]:
        """As :meth:`energy_fn`, for anything :meth:`Op2Prop.apply` returns, by name.

        Raises:
          OpmlError: the model was not trained on it.
        """
        own = self.params if params is None else params
        if name != "energy" and not self.has(name):
            raise OpmlError(
                refusal(
                    "model",
                    got=f"one trained without {name}",
                    expected=f"one trained with {name} in its targets",
                )
            )
        return lambda structure: self.definition.apply(own, structure)[name]

    def dipole_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """:meth:`property_fn` for the dipole ``(3,)`` in e Bohr."""
        return self.property_fn("dipole", params)

    def field_dipole_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """As :meth:`energy_fn`, for minus the derivative of the energy in a uniform field.

        Returns:
          ``dipole(structure) -> (3,)`` in e Bohr; see :meth:`Op2Prop.dipole_in_field`.

        Raises:
          OpmlError: the model's energy was not trained in a field.
        """
        return self._in_field("dipole_in_field", params)

    def field_polarizability_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """As :meth:`field_dipole_fn`, for minus the second derivative, ``(3, 3)`` in Bohr^3."""
        return self._in_field("polarizability_in_field", params)

    def _in_field(self, method: str, params: Params | None) -> Callable[[Structure], Array]:
        optim = self.card.get("config", {}).get("optim")
        if optim is not None and not optim.get("field_dipole_sigma"):
            raise OpmlError(
                refusal(
                    "model",
                    got="one whose energy never met a field",
                    expected="one trained with optim.field_dipole_sigma above 0",
                )
            )
        own = self.params if params is None else params
        return functools.partial(getattr(self.definition, method), own)

    def predict(
        self,
        structures: Structure | Sequence[Structure],
        *,
        linear: bool = False,
        uncertainty: bool | Literal["energy"] = False,
        bucket: Bucket | None = None,
    ) -> dict[str, np.ndarray]:
        """Energies, forces, and what else the model was trained on.

        Args:
          structures: one molecule or several (any mix of compositions the model knows).
          linear: use the closed-form part alone.
          uncertainty: also standard deviations, over the members of an ensemble or of the last
            layer (``model.last_layer``), ``energy_uncertainty`` and ``forces_uncertainty``, scaled
            so that on validation 68 % of errors were below them. Those of forces cost a gradient
            for each member, or a derivative in each coordinate (``"energy"`` leaves them out); a
            last layer has them if forces were learned. Structures far beyond the validation set's
            are a ``DataWarning``.
          bucket: shape to pad to. Default: the smallest round one that holds each chunk.

        Returns:
          ``energy`` (Hartree), ``forces`` (Hartree/Bohr), and, if trained, ``dipole`` (e Bohr),
          ``quadrupole`` (e Bohr^2, about the centre of nuclear charge), ``polarizability`` and
          ``isotropic_polarizability`` (Bohr^3). For one molecule shapes ``()``, ``(n_atoms, 3)``,
          ``(3,)``, ``(3, 3)``, ``(3, 3)``, ``()``; for a list a leading axis, forces padded with
          zeros to the largest molecule, and ``n_atoms``.

        Raises:
          OpmlError: an empty list, an element the model has not seen, or an uncertainty of a model
            with one network and no last layer.
          PrecisionError: x64 is off.
        """
        require_x64("a float64 model")
        if isinstance(structures, Structure):
            one = self.predict([structures], linear=linear, uncertainty=uncertainty, bucket=bucket)
            one.pop("n_atoms")
            return {k: v[0] for k, v in one.items()}
        structures = list(structures)
        if not structures:
            raise OpmlError(
                refusal("structures", got="an empty list", expected="at least one"), code=Code.EMPTY
            )
        self.check_structures(structures)
        if uncertainty and not self.doubted:
            raise OpmlError(
                refusal(
                    "uncertainty",
                    got="a model with one network",
                    expected="an ensemble, or a last layer",
                    hint="Train with model.members=4, or model.last_layer=true.",
                )
            )
        params = self.closed_form.params if linear else self.params
        n_atoms = [s.n_atoms for s in structures]
        order = np.argsort(n_atoms, kind="stable")

        def evaluate(chunk: int) -> dict[str, list[np.ndarray]]:
            out: dict[str, list[np.ndarray]] = {}
            for start in range(0, len(order), chunk):
                part = [structures[i] for i in order[start : start + chunk]]
                full = part + [part[-1]] * (chunk - len(part))
                # Always round numbers: a list of many compositions must not compile for each.
                basis = self.definition.basis
                shape = bucket or smallest_bucket(basis.spec, [s.numbers for s in full]).rounded()
                padded = batch(full, basis, bucket=shape)
                result = _evaluate(self.definition, params, padded, uncertainty)
                for name, values in result.items():
                    out.setdefault(name, []).extend(np.asarray(values)[: len(part)])
            return out

        out = in_chunks(evaluate, len(structures), CHUNKS)
        back = np.argsort(order)
        largest = max(n_atoms)
        final = {}
        for name, values in out.items():
            if name.startswith("forces"):
                final[name] = np.zeros((len(structures), largest, 3))
                for k, i in enumerate(back):
                    final[name][k, : n_atoms[k]] = values[i][: n_atoms[k]]
            else:
                final[name] = np.array(values)[back]
        final["n_atoms"] = np.array(n_atoms)
        if uncertainty:
            warn_of_doubt(self.doubt(final), self.card.get("largest_doubt"))
        return final

    def doubt(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """How far each structure is from the training set, ``(n_structures,)``.

        Args:
          predicted: of a list, with standard deviations. That of the energy per atom, Hartree.
        """
        return predicted["energy_uncertainty"] / predicted["n_atoms"]

    def check_elements(self, structures: Sequence[Structure]) -> None:
        """Raise :class:`OpmlError` for an element the model was not trained on."""
        unseen = sorted({z for s in structures for z in s.numbers} - set(self.elements))
        if unseen:
            known = ", ".join(symbol(z) for z in self.elements)
            raise OpmlError(
                refusal(
                    "structures",
                    got=", ".join(symbol(z) for z in unseen),
                    expected=f"only elements seen in training ({known})",
                ),
                code=Code.UNSEEN_ELEMENT,
            )

    def check_structures(self, structures: Sequence[Structure]) -> None:
        """:meth:`check_elements`, and a warning of contacts that training has not seen.

        A :class:`~opml_jax.errors.DataWarning` names pairs of elements closer than 0.9 times their
        closest distance in the training set, or that it never had.
        """
        self.check_elements(structures)
        warn_of_contacts(structures, self.card.get("closest_bohr", {}))

    def __repr__(self) -> str:
        names = " ".join(symbol(z) for z in self.elements)
        kind, basis = type(self.definition).__name__, self.definition.config.basis
        return f"Model({kind}, {basis}, elements {names})"


@functools.partial(jax.jit, static_argnums=(0, 3))
def _evaluate(
    definition: Op2Prop | OperatorNetwork,
    params: Params,
    structures: StructureBatch,
    uncertainty: bool | Literal["energy"],
) -> dict[str, Array]:
    def total(positions):
        out = definition.apply(params, structures.replace(positions=positions))
        members = out.pop("energy_members", None)
        if members is not None or not uncertainty:
            out.pop("energy_uncertainty", None)
        return (out["energy"], members if uncertainty else None), out

    (energy, members), back, out = jax.vjp(total, jnp.asarray(structures.positions), has_aux=True)
    nothing = jax.tree.map(jnp.zeros_like, members)
    out["forces"] = -back((jnp.ones_like(energy), nothing))[0]
    factor = {"energy": 1.0, "forces": 1.0, **params.get("calibration", {})}
    if members is not None:
        out["energy_uncertainty"] = factor["energy"] * jnp.std(members, axis=-1)
    if not uncertainty or uncertainty == "energy":
        return out
    if members is not None:
        one = jnp.eye(members.shape[-1], dtype=members.dtype)
        each = jax.vmap(
            lambda m: -back((jnp.zeros_like(energy), jnp.broadcast_to(m, members.shape)))[0]
        )(one)
        out["forces_uncertainty"] = factor["forces"] * jnp.std(each, axis=0)
    elif "forces" in params["last_layer"]:  # or forces were not learned
        assert isinstance(definition, Op2Prop)  # others were refused
        out["forces_uncertainty"] = _forces_uncertainty(definition, params, structures)
    return out


def _forces_uncertainty(definition: Op2Prop, params: Params, structures: StructureBatch) -> Array:
    """Standard deviations of the last layer, one coordinate after the other: memory is of one."""
    positions = jnp.asarray(structures.positions)
    n = positions.shape[1]

    def features(x):
        return definition.last_layer(params, structures.replace(positions=x))

    def one(direction):
        along = jnp.broadcast_to(direction, positions.shape)
        return jnp.linalg.norm(jax.jvp(features, (positions,), (along,))[1], axis=-1)

    spread = jax.lax.map(one, jnp.eye(3 * n, dtype=positions.dtype).reshape(3 * n, n, 3))
    return params["last_layer"]["forces"] * spread.T.reshape(positions.shape)
