"""A trained model: definition, parameters and card."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import Code, OpmlError
from ...numerics import Array, require_x64
from ...structures import Structure
from ...structures.contacts import warn_of_contacts
from ...structures.elements import symbol
from .definition import Definition, Params


@dataclasses.dataclass(frozen=True)
class Model(abc.ABC):
    """A model ready for use; each family has its own kind.

    Attributes:
      definition: the pure functions.
      params: their parameters, a tree of arrays.
      card: what it was trained on and how well: plain JSON-able values.
    """

    definition: Definition
    params: Params
    card: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers the model was trained on."""
        return self.definition.elements

    @abc.abstractmethod
    def predict(self, structures: Structure | Sequence[Structure], **options: Any) -> dict:
        """Named arrays, of one molecule or padded for a list; every family says which."""

    @abc.abstractmethod
    def has(self, name: str) -> bool:
        """Whether the model predicts a quantity, by its name in :mod:`opml_jax.quantities`."""

    @property
    def parts(self) -> dict[str, Model]:
        """Models that stop earlier, such as the closed form without its networks, by name."""
        return {}

    @property
    def doubted(self) -> tuple[str, ...]:
        """Labels that :meth:`predict` has standard deviations of; none of most models."""
        return ()

    def doubt(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """How far each structure is from the training set, ``(n_structures,)``.

        Args:
          predicted: of a list, with standard deviations.

        Raises:
          OpmlError: a model that has none.
        """
        got = f"{self!r}, which has no standard deviation of a prediction as a whole"
        expected = "an ensemble, or a model with a last layer or draws of its weights"
        raise OpmlError("model", got=got, expected=expected, code=Code.CAPABILITY)

    @property
    def quick_doubt(self) -> dict[str, Any]:
        """Options of :meth:`predict` that give what :meth:`doubt` reads, and no more."""
        return {"uncertainty": True}

    def recalibrated(self, scales: Mapping[str, float]) -> Model:
        """The model with standard deviations of some quantities multiplied by numbers."""
        return self

    def energy_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """A pure function of the energy; refused here, as most families have none.

        Raises:
          OpmlError: the model predicts no energies.
        """
        self.require("energy")
        raise AssertionError("a model that has energies has a function of them")

    def require(self, name: str) -> None:
        """Refuse to go on with a model that does not predict a quantity.

        Raises:
          OpmlError: it does not.
        """
        if not self.has(name):
            got, expected = f"{self!r}, which does not predict {name}", f"one that predicts {name}"
            raise OpmlError(
                "model", got=got, expected=expected, hint=self.instead, code=Code.CAPABILITY
            )

    @property
    def instead(self) -> str:
        """What a user may do who asked for what the model does not predict."""
        return ""

    def ready(
        self, structures: Structure | Sequence[Structure], uncertainty: bool | str = False
    ) -> list[Structure]:
        """The structures of a prediction as a list, checked.

        Args:
          structures: one or several.
          uncertainty: whether standard deviations are asked for.

        Raises:
          OpmlError: an empty list, an element the model has not seen, or standard deviations of a
            model that has none.
          PrecisionError: x64 is off.
        """
        require_x64("a float64 model")
        several = [structures] if isinstance(structures, Structure) else list(structures)
        if not several:
            raise OpmlError(
                "structures", got="an empty list", expected="at least one", code=Code.EMPTY
            )
        self.check_structures(several)
        if uncertainty:
            self.check_uncertainty()
        return several

    def check_uncertainty(self) -> None:
        """Refuse standard deviations of a model that was trained without.

        Raises:
          OpmlError: it was.
        """
        if not self.doubted:
            got, expected = "a model trained without", "one trained with standard deviations"
            raise OpmlError("uncertainty", got=got, expected=expected, code=Code.CAPABILITY)

    def check_elements(self, structures: Sequence[Structure]) -> None:
        """Raise :class:`OpmlError` for an element the model was not trained on."""
        unseen = sorted({z for s in structures for z in s.numbers} - set(self.elements))
        if unseen:
            got, known = (", ".join(map(symbol, x)) for x in (unseen, self.elements))
            expected = f"only elements seen in training ({known})"
            raise OpmlError("structures", got=got, expected=expected, code=Code.UNSEEN_ELEMENT)

    def check_structures(self, structures: Sequence[Structure]) -> None:
        """:meth:`check_elements`, and a warning of contacts that training has not seen.

        A :class:`~opml_jax.errors.DataWarning` names pairs of elements closer than 0.9 times their
        closest distance in the training set, or that it never had.
        """
        self.check_elements(structures)
        warn_of_contacts(structures, self.card.get("closest_bohr", {}))

    def __repr__(self) -> str:
        names = " ".join(symbol(z) for z in self.elements)
        kind, basis = type(self.definition).__name__, self.definition.basis.name
        return f"Model({kind}, {basis}, elements {names})"


def of_one(predicted: Mapping[str, np.ndarray], sizes: Sequence[str]) -> dict[str, np.ndarray]:
    """The prediction of one molecule from that of a list of one, without ``sizes``."""
    return {k: v[0] for k, v in predicted.items() if k not in sizes}
