"""A trained Op2Prop model: its closed form, its dipoles in a field, its standard deviations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ...errors import Code, OpmlError
from ...numerics import Array
from ...structures import Structure
from ..base import EnergyModel, Params
from .atomwise import AtomwiseDefinition
from .config import PROPERTIES
from .readout import HEADS, cartesian, head_of


@dataclasses.dataclass(frozen=True, repr=False)
class Op2PropModel(EnergyModel):
    """An Op2Prop model ready for use; see :class:`Model` for its attributes."""

    definition: AtomwiseDefinition

    @property
    def closed_form(self) -> Op2PropModel:
        """The model without its networks; they are silenced, so nothing compiles anew."""
        return dataclasses.replace(self, params=silenced(self.params))

    @property
    def parts(self) -> dict[str, Op2PropModel]:
        """The closed form, as ``linear``, if there are networks beside it."""
        return {"linear": self.closed_form} if "residual" in self.params else {}

    def baseline(self, structures: Sequence[Structure]) -> dict[str, np.ndarray]:
        """What the composition tells: sums over elements, and nothing that has a direction."""
        counts = np.array([[s.numbers.count(z) for z in self.elements] for s in structures])
        size = max(s.n_atoms for s in structures)
        out = {
            "energy": counts @ np.asarray(self.params["linear"]["offsets"]),
            "forces": np.zeros((len(structures), size, 3)),
        }
        heads: dict[str, Any] = {
            name: counts @ np.asarray(self.params[name]["offsets"])
            if l == 0
            else np.zeros((len(structures), 2 * l + 1))
            for name, l in HEADS.items()
            if name in self.params
        }
        return out | {k: np.asarray(v) for k, v in cartesian(heads).items()}

    def has(self, name: str) -> bool:
        """Whether the model predicts a quantity."""
        heads = [head_of(name, l) for l in PROPERTIES.get(name, ())]
        return super().has(name) or (bool(heads) and all(head in self.params for head in heads))

    @property
    def instead(self) -> str:
        """What a user may do who asked for what the model does not predict."""
        return "Name it in model.fit.targets when you train."

    def field_dipole_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """As :meth:`energy_fn`, for minus the derivative of the energy in a uniform field.

        Returns:
          ``dipole(structure) -> (3,)`` in e Bohr; see :meth:`AtomwiseDefinition.dipole_in_field`.

        Raises:
          OpmlError: the model's energy was not trained in a field.
        """
        return self._in_field(self.definition.dipole_in_field, params)

    def field_polarizability_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """As :meth:`field_dipole_fn`, for minus the second derivative, ``(3, 3)`` in Bohr^3."""
        return self._in_field(self.definition.polarizability_in_field, params)

    def _in_field(self, function: Callable, params: Params | None) -> Callable:
        """A function of the model's parameters, if its card says that its energy met a field."""
        earlier = self.card.get("config", {}).get("optim", {})  # cards of version 0.1
        met = [card.get("field_dipole_sigma") for card in (self.card, earlier)]
        if self.card and not any(met):
            got = "one whose energy never met a field"
            expected = "one trained with model.fit.field_dipole_sigma above 0"
            raise OpmlError("model", got=got, expected=expected, code=Code.CAPABILITY)
        return self.checked(functools.partial(function, self.params if params is None else params))

    @property
    def doubted(self) -> tuple[str, ...]:
        """Labels that :meth:`predict` has standard deviations of; none of most models."""
        if self.definition.config.members > 1 and "residual" in self.params:
            return ("energy", "forces")
        return tuple(k for k in ("energy", "forces") if k in self.params.get("last_layer", ()))

    def check_uncertainty(self) -> None:
        """Refuse standard deviations of a model that was trained without.

        Raises:
          OpmlError: it was.
        """
        if not self.doubted:
            got, expected = "a model with one network or none", "an ensemble, or a last layer"
            hint = "Train with model.members=4, or model.last_layer=true."
            raise OpmlError(
                "uncertainty", got=got, expected=expected, hint=hint, code=Code.CAPABILITY
            )

    def recalibrated(self, scales: Mapping[str, float]) -> Op2PropModel:
        """The model with standard deviations of some quantities multiplied by numbers."""
        where = "calibration" if "calibration" in self.params else "last_layer"
        factors = self.params[where]
        scaled = {k: factors[k] * scale for k, scale in scales.items() if k in factors}
        return dataclasses.replace(self, params={**self.params, where: {**factors, **scaled}})


def silenced(params: Params) -> Params:
    """Parameters whose networks, if there are any, add nothing to the closed form."""
    if "scale" not in params:
        return params
    return {**params, "scale": jax.tree.map(np.zeros_like, params["scale"])}
