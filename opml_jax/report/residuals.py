"""Residuals: predicted minus reference against the reference, with the mean absolute error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..figures import BLUE, GREY, RED, figure
from ..models.base.metrics import COMPARED, paired
from ..models.family import Evaluated, Family
from ..quantities import QUANTITIES
from .page import pretty

Pair = tuple[np.ndarray, np.ndarray]
Panel = tuple[str, str]
"""Name and unit of a quantity."""

MANY = 200
"""Points beyond which they are drawn as a bitmap, which is smaller."""


def residuals(sets: Sequence[Evaluated], family: Family) -> list[Any] | None:
    """A figure for each quantity that both sides have in any of several sets, or None for none."""
    tables = {s.name: pairs(s, family) for s in sets}
    panels = dict.fromkeys(key for table in tables.values() for key in table)
    drawn = [
        _panel(key, {name: table[key] for name, table in tables.items() if key in table})
        for key in panels
    ]
    return drawn or None


def pairs(evaluated: Evaluated, family: Family) -> dict[Panel, Pair]:
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


def _panel(panel: Panel, of_sets: dict[str, Pair]) -> Any:
    """Points of each set; predictions that are not numbers have none."""
    name, unit = panel
    drawn, (axis,) = figure(1, width=3.2, height=2.9)
    axis.axhline(0, color=GREY, lw=0.8)
    errors = []
    colours = [GREY, BLUE, RED][-len(of_sets) :] if len(of_sets) <= 3 else [None] * len(of_sets)
    for (label, (reference, values)), colour in zip(of_sets.items(), colours, strict=True):
        known = np.isfinite(values)
        residual = (values - reference)[known]
        text = f"{label} MAE {np.abs(residual).mean():.2g} {unit}" if known.any() else label
        style = {"ms": 3.2, "alpha": 0.65, "mew": 0, "rasterized": len(residual) > MANY}
        axis.plot(reference[known], residual, "o", color=colour, label=text, **style)
        errors.append(text)
    axis.set(xlabel=f"reference {name} ({unit})", ylabel=f"predicted − reference ({unit})")
    limit = 1.08 * (np.abs(axis.get_ylim()).max() or 1.0)
    axis.set(ylim=(-limit, limit))
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=False)
    axis.margins(x=0.05)
    drawn.legend(loc="outside upper left", frameon=False, fontsize=8, handletextpad=0.2)
    drawn.set_label(f"Residuals of {name} against the reference: {'; '.join(errors)}")
    return drawn
