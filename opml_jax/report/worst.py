"""The structures with the largest errors, drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..figures import draw_molecule, figure, sum_formula
from ..models.family import Evaluated, Family
from ..quantities import QUANTITIES
from . import page

COLUMNS = 5
"""Structures in a row."""

Errors = dict[str, tuple[np.ndarray, str]]
"""One error a structure, and how it is written, by name."""


def worst(evaluated: Evaluated, family: Family) -> str:
    """The structures with the largest errors in HTML, a row for each kind; empty without errors."""
    errors, rows = errors_of(evaluated, family), []
    for name, (values, _) in errors.items():
        known = int(np.isfinite(values).sum())
        chosen = np.argsort(-np.abs(values))[: min(COLUMNS, known)]  # NaN comes last
        if known:
            cells = [_cell(evaluated, int(i), errors) for i in chosen]
            rows.append(page.row(f"by {name.replace('_', ' ')}", cells))
    return "".join(rows)


def _cell(evaluated: Evaluated, i: int, errors: Errors) -> tuple[Any, str]:
    """A drawing of a structure, and its errors in words."""
    structure = evaluated.dataset.structures[i]
    drawn, (axis,) = figure(1, width=1.7, height=1.5)
    axis.set_axis_off()
    draw_molecule(axis, structure)
    drawn.set_label(f"Molecule {evaluated.indices[i]}, {sum_formula(structure)}, balls and sticks")
    texts = [text.format(values[i]) for values, text in errors.values()]
    return drawn, "\n".join([f"{evaluated.indices[i]}: {sum_formula(structure)}", *texts])


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
