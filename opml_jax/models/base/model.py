"""A trained model: definition, parameters and card."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import Code, OpmlError
from ...learn.novelty import Growth
from ...numerics import Array, require_x64
from ...quantities import SPREAD
from ...structures import Structure, StructureBatch, in_float64
from ...structures.contacts import warn_of_contacts
from ...structures.elements import symbol
from ...structures.trained_for import check_electrons, novel, warn_of_surroundings
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
        """Atomic numbers the model was trained on, which may be fewer than its functions know."""
        known = self.definition.elements
        trained = self.card.get("elements")
        return known if trained is None else tuple(z for z in known if symbol(z) in trained)

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

    def baseline(self, structures: Sequence[Structure]) -> dict[str, np.ndarray]:
        """What the model would predict had it learned nothing from operators, as :meth:`predict`.

        Its errors stand beside the model's: what there was to learn. Empty of models without one.

        Args:
          structures: a list.
        """
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

    @property
    def tolerant(self) -> dict[str, Any]:
        """Options of :meth:`predict` with which a molecule that fails has NaN, and no error."""
        return {}

    def failed(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """Indices of the structures of a :attr:`tolerant` prediction that failed; none of most."""
        return np.zeros(0, int)

    def grow(self, predicted: dict[str, np.ndarray], structures: Sequence[Structure]) -> None:
        """Standard deviations of molecules that training lacked, as large as its errors on such."""
        growth = self.card.get("growth", {})
        unlike = novel(structures, self.card.get("trained_for")) if growth else []
        for name, of_name in growth.items():
            if (key := name + SPREAD) in predicted:
                predicted[key][unlike] = Growth(*of_name)(predicted[key][unlike])

    def converged_to(self, tolerance: float) -> Model:
        """The model with another tolerance of what it makes self-consistent; most make nothing.

        Args:
          tolerance: in Hartree; a looser one is faster. Programs are compiled anew.
        """
        return self

    def with_limits(self, structures: Sequence[Structure]) -> Model:
        """The model whose card has how it judges itself at known ones; most do not.

        Args:
          structures: of the validation set. Predictions far beyond them are warned of.
        """
        return self

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

    def checked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A pure function of molecules as models hand them out.

        Whatever the positions are in, it computes in float64, also under ``jit`` and ``grad``:
        weights that cancel each other magnify the rounding of float32. A molecule of elements,
        charge or spin that training did not have is refused (not in a batch, where these are data).

        Args:
          function: of a structure or a batch first, and whatever else.
        """

        @functools.wraps(function)
        def of(structure: Structure | StructureBatch, *arguments: Any, **options: Any) -> Any:
            require_x64("a float64 model")
            if isinstance(structure, Structure):
                self.check_species([structure])
            return function(in_float64(structure), *arguments, **options)

        return of

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
        """The structures of a prediction as a list, checked, in float64, without masses.

        Args:
          structures: one or several.
          uncertainty: whether standard deviations are asked for.

        Raises:
          OpmlError: an empty list, an element, charge or spin the model has not seen, or standard
            deviations of a model that has none.
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
        # nothing that is predicted depends on masses: isotopologues share compiled programs
        return [in_float64(s).replace(masses=None) for s in several]

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

    def check_species(self, structures: Sequence[Structure]) -> None:
        """Refuse elements, charges and spins that the model was not trained for.

        Charge and spin are part of what a model was trained for, as it reads nuclei alone: those
        that no molecule of the training set had are refused, and for a composition of the training
        set all but its own. A model that does not say what it was trained on, such as one of
        version 0.1, takes neutral closed shells.

        Raises:
          OpmlError: an element (``UNSEEN_ELEMENT``), or a charge and spin (a
            :class:`~opml_jax.errors.StructureError`, ``ELECTRONS``).
        """
        self.check_elements(structures)
        check_electrons(structures, self.card.get("trained_for"))

    def check_structures(self, structures: Sequence[Structure]) -> None:
        """What every door asks: :meth:`check_species`, and warnings of what training had not.

        A :class:`~opml_jax.errors.DataWarning` names pairs of elements closer than 0.9 times their
        closest distance in the training set, or that it never had; another one, atoms whose element
        and bonded elements it never had together, such as the O of OH in a model of water. A
        composition that it never had is no reason: models are made for larger molecules of
        coordinations that they know.
        """
        self.check_species(structures)
        self.warn_of_extrapolation(structures)

    def warn_of_extrapolation(self, structures: Sequence[Structure]) -> None:
        """The warnings of :meth:`check_structures`."""
        warn_of_contacts(structures, self.card.get("closest_bohr", {}))
        warn_of_surroundings(structures, self.card.get("trained_for"))

    def __repr__(self) -> str:
        names = " ".join(symbol(z) for z in self.elements)
        kind, basis = type(self.definition).__name__, self.definition.basis.name
        return f"Model({kind}, {basis}, elements {names})"


def of_one(predicted: Mapping[str, np.ndarray], sizes: Sequence[str]) -> dict[str, np.ndarray]:
    """The prediction of one molecule from that of a list of one, without ``sizes``."""
    return {k: v[0] for k, v in predicted.items() if k not in sizes}
