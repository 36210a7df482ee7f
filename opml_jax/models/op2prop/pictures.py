"""Pictures of an Op2Prop model for the report: the operators that it reads, and its forces."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...figures import BLUE, RED, figure, heat_map, principal_axes
from ...units import ANGSTROM_PER_BOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE
from ..family import Evaluated, Picture
from .functions import Op2Prop

SHOWN = 6
"""No more operators than these are drawn."""
LONGEST = 1.2
"""Angstrom, of the arrow of the largest force."""


def operator_picture(definition: Op2Prop, evaluated: Evaluated) -> Picture:
    """The operators that a model reads, in its metric, for one molecule."""
    config = definition.config
    metric = {"plain": "", "lowdin": ", in orthogonalised orbitals"}.get(
        config.metric, f", {config.metric}" if config.metric in ("lifted", "damped") else ""
    )
    between = " with the inverse overlap between factors" if config.metric == "overlap" else ""
    return Picture(
        "The operators the model reads",
        lambda: _operators(definition, evaluated),
        f"V is the {config.operator.replace('_', ' ')} in {config.basis}{metric}; its powers are "
        f"products{between}, AO by AO, atomic units. The square couples every pair of orbitals "
        "through all others: it sees three atoms at once.",
    )


def _operators(definition: Op2Prop, evaluated: Evaluated) -> list[Any]:
    """A heat map of each power of each operator."""
    structure, exponents = evaluated.dataset.structures[0], definition.config.powers
    operators = definition.inputs(structure, definition.basis, exponents)
    drawn = []
    for name, powers in definition.inputs.sources(definition.basis.spec, exponents).items():
        for k in powers:
            matrix = np.linalg.matrix_power(np.asarray(operators[name].to_dense()), k)
            title = name.replace("_", " ") if k == 1 else f"{name}^{k}"
            title = title.replace("^2", "²").replace("^3", "³").replace("^4", "⁴")
            drawn.append((title, matrix))
    basis = definition.basis
    return [heat_map(title, matrix, structure, basis) for title, matrix in drawn[:SHOWN]]


def forces_picture(evaluated: Evaluated) -> list[Picture]:
    """Forces of the structure with the largest ones, if forces are predicted."""
    if "forces" not in evaluated.predicted:
        return []
    note = "In the plane that shows most of the molecule; blue on red where both are the same."
    return [Picture("Forces", lambda: _forces(evaluated), note)]


def _forces(evaluated: Evaluated) -> Any:
    dataset, predicted = evaluated.dataset, evaluated.predicted["forces"]
    largest = [np.abs(predicted[i, : s.n_atoms]).max() for i, s in enumerate(dataset.structures)]
    i = int(np.argmax(np.nan_to_num(largest)))
    structure = dataset.structures[i]
    centre, directions = principal_axes(structure)
    plane = directions[:2].T
    flat = (np.asarray(structure.positions) - centre) @ plane * ANGSTROM_PER_BOHR
    sets = [("predicted", predicted[i, : structure.n_atoms], BLUE, 0.012)]
    if "forces" in dataset:
        sets.insert(0, ("reference", dataset.labels["forces"][i], RED, 0.024))
    along = [x @ plane * EV_PER_ANGSTROM_PER_ATOMIC_FORCE for _, x, *_ in sets]
    most = max(np.linalg.norm(x, axis=1).max() for x in along)
    drawn, (axis,) = figure(1, width=5.4, height=4.4)
    drawn.set_label(f"Forces on the atoms of structure {i} of {evaluated.name} as arrows")
    sizes = [420 if z > 1 else 240 for z in structure.numbers]
    axis.scatter(*flat.T, s=sizes, color="#e8e4da", edgecolor="#000000", zorder=5)
    for point, name in zip(flat, structure.symbols, strict=True):
        axis.annotate(name, point, ha="center", va="center", zorder=6)
    scale = most / LONGEST or 1.0  # eV/Angstrom that are an Angstrom long
    arrows = {"angles": "xy", "scale_units": "xy", "scale": scale, "alpha": 0.85, "zorder": 4}
    for (label, _, colour, width), arrow in zip(sets, along, strict=True):
        axis.quiver(*flat.T, *arrow.T, color=colour, width=width, label=label, **arrows)
    ends = np.concatenate([flat, *(flat + arrow / scale for arrow in along)])
    low, high = ends.min(axis=0) - 0.5, ends.max(axis=0) + 0.5
    title = f"{evaluated.name}: structure {i}; 1 Å is {scale:.2g} eV/Å"
    axis.set(xlabel="Å", ylabel="Å", title=title, aspect="equal")
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    drawn.legend(loc="outside lower center", ncols=len(sets), frameon=False)
    return drawn
