"""A self-contained HTML report of a model: errors, residuals, curves, worst structures.

What is special to a family of models comes from it: ``Family.pictures``, ``parity``, ``worst``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.files import write_text
from ..models.base import Model
from ..models.family import Evaluated, Picture, family_of
from . import curves, page, words
from .residuals import residuals
from .tables import html_table
from .tables import text_table as text_table
from .worst import worst

_RESIDUALS = (
    "Predicted minus reference, against the reference, of whatever is known on both sides; beside "
    "the name of each set its mean absolute error (MAE), of vectors that of a component. Energies "
    "are relative to the mean of the references."
)
_LEARNING = (
    "Mean absolute test errors of the closed form against the number of training geometries."
)
_HISTORY = "Loss, and root mean square errors on the validation set, by epoch."
_RELIABILITY = (
    "Share of errors within so many standard deviations, and of a normal distribution (grey); root "
    "mean square errors of tenths of the data by their standard deviations, atomic units."
)
_WORST = (
    "Largest errors first, a row for each kind of error that is known: index in the data file, "
    "composition, error of the energy (predicted minus reference), largest error of the force on "
    "an atom, length of the error of the dipole; of matrices the mean absolute error of an element "
    "or, where there is no reference, of an occupied level, in atomic units."
)


def write_report(
    path: str | os.PathLike,
    model: Model,
    sets: Sequence[Evaluated],
    history: Sequence[Mapping[str, float]],
    metrics: Mapping[str, Mapping[str, float]],
    learning_curve: Sequence[Mapping[str, float]] = (),
    doubts: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> None:
    """Write the report, atomically; pictures are embedded, and follow light and dark styles.

    Args:
      path: HTML file, in the folder of the run.
      model: the model; ``card["warnings"]``, sentences, are shown first.
      sets: evaluated sets; the last is drawn on top of the residuals.
      history: rows of the training history.
      metrics: errors by set name, see :data:`opml_jax.report.tables.Metrics`.
      learning_curve: rows with ``n_train`` and the metric names, closed form on the test split.
      doubts: of the last set or ``test``, by label, absolute errors and standard deviations.
    """
    family = family_of(model)
    shown = [s for s in sets if s.name != "train"] or list(sets)
    judged = next((s for s in shown if s.name == "test"), shown[-1])
    title, run = words.title(model), Path(path).resolve().parent.name
    parts = [
        page.header(title, _summary(model)),
        page.warnings(model.card.get("warnings", [])),
        words.use(model, run, judged.dataset),
        page.section("Errors", html_table(metrics)),
    ]
    pictures = [Picture("Residuals", lambda: residuals(shown, family), _RESIDUALS)]
    if learning_curve:
        pictures.append(
            Picture("Learning curve", lambda: curves.learning_curve(learning_curve), _LEARNING)
        )
    if history:
        pictures.append(Picture("Training", lambda: curves.history(history), _HISTORY))
    if doubts:
        pictures.append(
            Picture("Standard deviations", lambda: curves.reliability(doubts), _RELIABILITY)
        )
    parts += map(_section, pictures)
    if rows := worst(judged, family):
        parts.append(page.section(f"Worst structures of {judged.name}", rows, _WORST))
    parts += map(_section, family.pictures(model, judged))
    write_text(path, page.document(title, parts))


def _section(picture: Picture) -> str:
    """A section of the report in HTML; empty if there is nothing to draw."""
    figures = picture.figure()
    if figures is None:
        return ""
    drawn = page.images(figures, f"{picture.title}. {picture.note}")
    return page.section(picture.title, drawn, picture.note)


def _summary(model: Model) -> str:
    card = model.card
    return (
        f"Input: {family_of(model).summary(model)}. "
        f"Labels: {words.level(model) or 'level not stated'}. "
        f"{card.get('n_train', '?')} training structures."
    )
