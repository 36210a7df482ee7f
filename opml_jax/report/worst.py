"""The structures with the largest errors, drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..figures import draw_molecule, figure, sum_formula
from ..models.family import Evaluated, Family
from ..quantities import QUANTITIES

COLUMNS = 5

Errors = dict[str, tuple[np.ndarray, str]]
"""One error a structure, and how it is written, by name."""


def worst(evaluated: Evaluated, family: Family) -> Any:
    """The structures with the largest errors, a row or two for each kind; None without errors."""
    errors = errors_of(evaluated, family)
    if not errors:
        return None
    each = COLUMNS * max(1, 3 - len(errors))
    chosen = [i for values, _ in errors.values() for i in np.argsort(-np.abs(values))[:each]]
    drawn, axes = figure(COLUMNS, -(-len(chosen) // COLUMNS), width=2.2, height=2.4)
    for axis in axes:
        axis.set_axis_off()
    for axis, i in zip(axes, chosen, strict=False):
        structure = evaluated.dataset.structures[i]
        texts = ", ".join(text.format(values[i]) for values, text in errors.values())
        draw_molecule(axis, structure)
        title = f"{evaluated.indices[i]}: {sum_formula(structure)}\n{texts}"
        axis.set_title(title, fontsize=8)
    return drawn


def errors_of(evaluated: Evaluated, family: Family) -> Errors:
    """Errors of energies, of what the family adds, else of dipoles; and of forces."""
    dataset, predicted = evaluated.dataset, evaluated.predicted

    def both(name: str) -> bool:
        return name in dataset and name in predicted

    errors: Errors = {}
    if both("energy"):
        difference = predicted["energy"] - np.asarray(dataset["energy"])
        errors["energy"] = QUANTITIES["energy"].factor * difference, "{:+.3g} meV"
    errors |= family.worst(evaluated)
    if not errors and both("dipole"):
        length = np.linalg.norm(predicted["dipole"] - dataset["dipole"], axis=-1)
        errors["dipole"] = 1e3 * QUANTITIES["dipole"].factor * length, "{:.3g} mD"
    if both("forces"):
        largest = [
            np.linalg.norm(force[: len(reference)] - reference, axis=1).max()
            for force, reference in zip(predicted["forces"], dataset.labels["forces"], strict=True)
        ]
        errors["forces"] = QUANTITIES["forces"].factor * np.array(largest), "{:.3g} meV/Å"
    return errors
