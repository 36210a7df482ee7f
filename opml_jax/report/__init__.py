"""A self-contained HTML report of a model: errors, parity, curves, worst structures.

What is special to a family of models comes from it: ``Family.pictures``, ``parity``, ``worst``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from ..data.files import write_text
from ..models.base import Model
from ..models.family import Evaluated, Picture, family_of
from . import curves, page
from .parity import parity
from .tables import html_table
from .tables import text_table as text_table
from .worst import worst

_LEARNING = (
    "Mean absolute test errors of the closed form against the number of training geometries."
)
_HISTORY = "Loss, and root mean square errors on the validation set, by epoch."
_RELIABILITY = (
    "Share of errors within so many standard deviations, and of a normal distribution (grey); root "
    "mean square errors of tenths of the data by their standard deviations, atomic units."
)
_WORST = (
    "Largest errors first, a row or two for each kind of error that is known: index in the data "
    "file, composition, error of the energy (predicted minus reference), largest error of the "
    "force on an atom, length of the error of the dipole; of matrices the mean absolute error of "
    "an element or, where there is no reference, of an occupied level, in atomic units."
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
    """Write the report, atomically; pictures are embedded.

    Args:
      path: HTML file.
      model: the model.
      sets: evaluated sets; the last is drawn on top of the parity plots.
      history: rows of the training history.
      metrics: errors by set name, see :data:`opml_jax.report.tables.Metrics`.
      learning_curve: rows with ``n_train`` and the metric names, closed form on the test split.
      doubts: of the last set or ``test``, by label, absolute errors and standard deviations.
    """
    family = family_of(model)
    shown = [s for s in sets if s.name != "train"] or list(sets)
    judged = next((s for s in shown if s.name == "test"), shown[-1])
    pictures = [Picture("Parity", lambda: parity(shown, family), "")]
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
    heading = f"Worst structures of {judged.name}"
    pictures.append(Picture(heading, lambda: worst(judged, family), _WORST))
    parts = [page.title(repr(model), _summary(model)), page.section("Errors", html_table(metrics))]
    for picture in (*pictures, *family.pictures(model, judged)):
        if (figure := picture.figure()) is not None:
            parts.append(page.section(picture.title, page.image(figure), picture.note))
    write_text(path, page.document(parts))


def _summary(model: Model) -> str:
    card = model.card
    reference = card.get("reference", {})
    level = "/".join(str(reference[k]) for k in ("method", "basis") if k in reference)
    return (
        f"Input: {family_of(model).summary(model)}. Labels: {level or 'level not stated'}. "
        f"{card.get('n_train', '?')} training structures."
    )
