"""Parity plots: what was predicted against the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..figures import BLUE, GREY, RED, figure
from ..models.base.metrics import COMPARED, paired
from ..models.family import Evaluated, Family
from ..quantities import QUANTITIES
from .page import pretty

Pair = tuple[np.ndarray, np.ndarray]


def parity(sets: Sequence[Evaluated], family: Family) -> Any:
    """A panel for each quantity that both sides have in any of several sets, or None for none."""
    tables = {s.name: pairs(s, family) for s in sets}
    panels = list(dict.fromkeys(key for table in tables.values() for key in table))
    if not panels:
        return None
    drawn, axes = figure(len(panels))
    for axis, (name, unit) in zip(axes, panels, strict=True):
        of_sets = {label: table.get((name, unit)) for label, table in tables.items()}
        _panel(axis, of_sets)
        axis.set(xlabel=f"reference {name} ({unit})", ylabel=f"predicted ({unit})")
    axes[0].legend(frameon=False)
    return drawn


def pairs(evaluated: Evaluated, family: Family) -> dict[tuple[str, str], Pair]:
    """References and predictions by name and unit, flat; energies from the references' mean."""
    dataset, predicted = evaluated.dataset, evaluated.predicted
    table = {}
    for name in COMPARED:
        if name not in dataset or name not in predicted:
            continue
        quantity = QUANTITIES[name]
        reference, values = paired(name, predicted, dataset)
        origin = reference.mean() if name == "energy" else 0.0
        words = "component of " * bool(quantity.fixed) + name.replace("_", " ")
        table[words, pretty(quantity.shown)] = tuple(
            quantity.factor * np.ravel(x - origin) for x in (reference, values)
        )
    extra = {(name, unit): (ref, values) for name, unit, ref, values in family.parity(evaluated)}
    return table | extra


def _panel(axis: Any, of_sets: Mapping[str, Pair | None]) -> None:
    """Points of each set that has them, and the line where both sides are equal."""
    colours = [GREY, BLUE, RED][-len(of_sets) :] if len(of_sets) <= 3 else [None] * len(of_sets)
    low, high = np.inf, -np.inf
    for (label, pair), colour in zip(of_sets.items(), colours, strict=True):
        if pair is None:
            continue
        reference, values = pair
        axis.plot(reference, values, "o", ms=3.5, alpha=0.7, label=label, color=colour)
        low, high = min(low, reference.min()), max(high, reference.max())
    axis.plot([low, high], [low, high], color="black", lw=0.7)
