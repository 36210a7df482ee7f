"""Refusals of data that Op2Op cannot learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...basis import layout_of
from ...data import Dataset
from ...data.plausibility import check_finite
from ...errors import Code, ConventionError, DataError, OpmlError, refusal
from ...structures import Structure
from .config import ObservablesFit
from .functions import Op2Op


def check_closed_shells(
    name: str, structures: Sequence[Structure], error: type[OpmlError] = OpmlError
) -> None:
    """Refuse molecules with unpaired electrons.

    Args:
      name: of what they are, for the message.
      structures: molecules.
      error: what to raise.

    Raises:
      OpmlError: of the class ``error``.
    """
    if odd := [s for s in structures if s.spin or s.n_electrons % 2]:
        raise error(refusal(name, got=repr(odd[0]), expected="closed shells"), code=Code.ELECTRONS)


def check_references(
    definition: Op2Op, observables: ObservablesFit | None, sets: Mapping[str, Dataset]
) -> None:
    """Refuse data that an Op2Op model cannot be fitted to.

    Args:
      definition: the model's functions.
      observables: what it is fitted to; None: to the elements of the matrices.
      sets: data by name.

    Raises:
      DataError: labels or their basis that are not there, open shells, NaN.
      ConventionError: matrices of another basis than the model's, if their elements are learned.
    """
    labels = ["fock"]
    if observables and "polarizability" in observables.targets:
        labels.append("polarizability")
    for name, part in sets.items():
        has_basis = observables is None or "basis" in part.meta
        if any(label not in part for label in labels) or not has_basis or not len(part):
            basis = ", and the name of their basis" if observables else ""
            raise DataError(
                refusal(
                    name,
                    got=repr(part),
                    expected=f"structures with the label {' and '.join(labels)}{basis}",
                    hint="opml generate makes files with Fock matrices.",
                ),
                code=Code.LABEL,
            )
        check_closed_shells(name, part.structures, DataError)
        check_finite(name, {label: part.labels[label] for label in labels})
        if observables is None:
            _check_basis(definition, part)


def _check_basis(definition: Op2Op, part: Dataset) -> None:
    """Refuse matrices of another basis, by the layouts in the data or by their sizes."""
    part.check_layout(definition.basis)
    for structure, fock in zip(part.structures, part.labels["fock"], strict=True):
        if len(fock) != (nao := layout_of(structure, definition.basis).nao):
            raise ConventionError(
                refusal(
                    f"Fock matrix of {structure!r}",
                    got=f"{len(fock)} functions",
                    expected=f"{nao}, as {definition.basis!r} has",
                    hint="Set model.basis to the basis of the labels.",
                ),
                code=Code.LAYOUT,
            )
