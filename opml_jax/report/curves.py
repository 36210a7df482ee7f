"""Curves: errors against the size of the training set and the epoch, standard deviations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..figures import BLUE, GREY, RED, figure
from ..quantities import QUANTITIES, columns, metric
from .page import pretty

Rows = Sequence[Mapping[str, float]]


def learning_curve(rows: Rows) -> list[Any]:
    """Errors against the number of training geometries, a figure for each quantity."""
    return [_learning_curve(rows, *column) for column in columns(rows[:1])]


def _learning_curve(rows: Rows, key: str, heading: str, unit: str) -> Any:
    drawn, axis = _panel()
    sizes, errors = [r["n_train"] for r in rows], [r[key] for r in rows]
    axis.loglog(sizes, errors, "o-", color=BLUE, ms=4)
    axis.set(xlabel="training geometries", ylabel=f"test MAE, {heading}, {pretty(unit)}")
    axis.grid(which="both", alpha=0.2)
    ends = f"{errors[0]:.2g} from {sizes[0]} to {errors[-1]:.2g} {pretty(unit)} from {sizes[-1]}"
    drawn.set_label(f"Learning curve, test error of {heading}: {ends} training geometries")
    return drawn


def history(rows: Rows) -> list[Any]:
    """The loss and the validation errors of a training by epoch."""
    errors = {f"validation_{metric(name, 'rmse')}": name for name in QUANTITIES}
    errors = {key: name for key, name in errors.items() if key in rows[0]}
    loss, first = _panel()
    loss.set_label("Loss of training and validation by epoch, logarithmic")
    figures, epoch = [loss], "epoch" if "epoch" in rows[0] else "step"
    epochs = [r[epoch] for r in rows]
    for key, name, colour in (
        ("loss", "training", GREY),
        ("validation_loss", "validation", BLUE),
    ):
        if key in rows[0]:
            first.semilogy(epochs, [r[key] for r in rows], color=colour, label=name)
    first.set(xlabel=epoch, ylabel="loss")
    first.legend(frameon=False, fontsize=8)
    for key, name in errors.items():
        drawn, axis = _panel()
        values = [r[key] for r in rows]
        axis.plot(epochs, values, color=BLUE)
        axis.set_yscale("log" if max(values) > 5 * min(values) > 0 else "linear")
        text = f"{name.replace('_', ' ')}, {pretty(QUANTITIES[name].shown)}"
        axis.set(xlabel=epoch, ylabel=f"validation RMSE, {text}")
        drawn.set_label(f"Validation error of {text} by {epoch}, {values[-1]:.2g} at the end")
        figures.append(drawn)
    return figures


def reliability(doubts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[Any]:
    """How many errors are within so many standard deviations, and how the two go together.

    Args:
      doubts: absolute errors and standard deviations, ``(n,)`` each, by label.
    """
    (first, shares), (second, sizes) = _panel(), _panel()
    first.set_label("Share of errors within so many standard deviations, and of a normal one")
    second.set_label("Root mean square errors by standard deviation, beside the line of equality")
    widths = np.linspace(0, 3, 61)
    normal = [math.erf(w / 2**0.5) for w in widths]
    shares.plot(widths, normal, color=GREY, linewidth=3)
    for (name, (error, sigma)), colour in zip(doubts.items(), (BLUE, RED), strict=False):
        within = [(error < w * sigma).mean() for w in widths]
        shares.plot(widths, within, color=colour, label=name.replace("_", " "))
        tenths = np.array_split(np.argsort(sigma), min(10, len(sigma)))
        x, y = (np.array([(v[t] ** 2).mean() ** 0.5 for t in tenths]) for v in (sigma, error))
        sizes.loglog(x, y, "o-", color=colour, markersize=4)
        sizes.plot(x, x, color=GREY, linewidth=1)
    shares.set(xlabel="standard deviations", ylabel="share of errors within")
    shares.legend(frameon=False, fontsize=8)
    sizes.set(xlabel="standard deviation", ylabel="root mean square error")
    return [first, second]


def _panel() -> tuple[Any, Any]:
    """A figure of one panel, and its axis."""
    drawn, (axis,) = figure(1, width=3.2, height=2.7)
    return drawn, axis
