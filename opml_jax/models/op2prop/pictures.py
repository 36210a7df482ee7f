"""Pictures of an Op2Prop model for the report: the operator that it reads, and its forces."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...features.inputs import OPERATORS
from ...figures import BLUE, RED, figure, heat_maps, principal_axes
from ...units import ANGSTROM_PER_BOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE
from ..family import Evaluated, Picture
from .functions import Op2Prop

LENGTH = 4.0
"""Forces in eV/Angstrom whose arrows are 1 Angstrom long."""


def operator_picture(definition: Op2Prop, evaluated: Evaluated) -> Picture:
    """The operator and its square for one molecule."""

    def draw() -> Any:
        structure, basis = evaluated.dataset.structures[0], definition.basis
        operator = OPERATORS[definition.config.operator](structure, basis)
        named = {"V": operator, "V²": operator @ operator}
        named = {title: np.asarray(o.to_dense()) for title, o in named.items()}
        return heat_maps(named, structure, basis)

    return Picture(
        "The operator the model reads",
        draw,
        "The input operator and its square for one molecule, AO by AO. The square couples every "
        "pair of orbitals through all others: it sees three atoms at once.",
    )


def forces_picture(evaluated: Evaluated) -> list[Picture]:
    """Forces of the structure with the largest ones, if forces are predicted."""
    if "forces" not in evaluated.predicted:
        return []
    note = f"1 Å is {LENGTH:g} eV/Å, in the plane that shows most of the molecule."
    return [Picture("Forces", lambda: _forces(evaluated), note)]


def _forces(evaluated: Evaluated) -> Any:
    dataset, predicted = evaluated.dataset, evaluated.predicted["forces"]
    largest = [np.abs(predicted[i, : s.n_atoms]).max() for i, s in enumerate(dataset.structures)]
    i = int(np.argmax(largest))
    structure = dataset.structures[i]
    centre, directions = principal_axes(structure)
    plane = directions[:2].T
    flat = (np.asarray(structure.positions) - centre) @ plane * ANGSTROM_PER_BOHR
    drawn, (axis,) = figure(1, height=4.2)
    sizes = [420 if z > 1 else 240 for z in structure.numbers]
    axis.scatter(*flat.T, s=sizes, color="#e8e4da", edgecolor="black", zorder=5)
    for point, name in zip(flat, structure.symbols, strict=True):
        axis.annotate(name, point, ha="center", va="center", zorder=6)
    arrows = {"angles": "xy", "scale_units": "xy", "scale": LENGTH, "alpha": 0.8, "zorder": 4}
    sets = [("predicted", predicted[i, : structure.n_atoms], BLUE, 0.011)]
    if "forces" in dataset:
        sets.insert(0, ("reference", dataset.labels["forces"][i], RED, 0.022))
    for label, forces, colour, width in sets:
        along = (forces @ plane * EV_PER_ANGSTROM_PER_ATOMIC_FORCE).T
        axis.quiver(*flat.T, *along, color=colour, width=width, label=label, **arrows)
    span = np.abs(flat).max() + 0.9
    axis.set(xlabel="Å", ylabel="Å", title=f"{evaluated.name}: structure {i}")
    axis.set(xlim=(-span, span), ylim=(-span, span), aspect="equal")
    axis.legend(frameon=False, loc="upper right")
    return drawn
