"""Standard deviations of trained models, held against errors on molecules with labels."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np

from ..data import Dataset
from ..errors import DataWarning
from ..learn.calibration import flat_errors, scale_of
from ..learn.novelty import growth_of
from ..models.base import Model
from ..structures.trained_for import novel

Doubts = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Absolute errors and standard deviations by label, ``(n,)`` each, atomic units."""


def reliability(model: Model, data: Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Absolute errors and standard deviations by label, ``(n,)`` each, atomic units.

    Args:
      model: any; without standard deviations there is nothing.
      data: references.
    """
    names = [k for k in model.doubted if k in data]
    if not names:
        return {}
    with warnings.catch_warnings(action="ignore", category=DataWarning):
        options = model.quick_doubt if names == ["energy"] else {"uncertainty": True}
        predicted = model.predict(data.structures, **options, **model.tolerant)
    failed = set(model.failed(predicted).tolist())
    there = [i for i in range(len(data)) if i not in failed]
    return {
        k: flat_errors(
            predicted[k][there],
            predicted[f"{k}_uncertainty"][there],
            [data.labels[k][i] for i in there],
        )
        for k in names
        if there
    }


def shares(doubts: Doubts) -> dict[str, float]:
    """``{name}_within_sigma_percent``: errors below a standard deviation; 68 of a normal one."""
    return {
        f"{k}_within_sigma_percent": 100 * float((error < sigma).mean())
        for k, (error, sigma) in doubts.items()
    }


def calibrated(model: Model, sets: Mapping[str, Dataset]) -> Model:
    """The model with standard deviations scaled, if a set does nothing else, and their largest.

    Molecules of that set whose surroundings training lacked say how large they grow on such
    (:mod:`opml_jax.learn.novelty`), the others scale those of all.

    Args:
      model: trained.
      sets: ``validation``, and perhaps ``calibration``, which chose nothing of the model.
    """
    if not model.doubted:
        return model
    if "calibration" in sets:
        held_out = sets["calibration"]
        unlike = novel(held_out.structures, model.card.get("trained_for"))
        like, other = (held_out.subset(np.flatnonzero(x).tolist()) for x in (~unlike, unlike))
        if len(like):
            doubts = reliability(model, like)
            model = model.recalibrated({k: scale_of(*pair) for k, pair in doubts.items()})
        if len(other):
            model = grown(model, other)
    data = sets.get("calibration", sets["validation"])
    with warnings.catch_warnings(action="ignore", category=DataWarning):
        doubt = model.doubt(model.predict(data.structures, **model.quick_doubt))
    known = doubt[np.isfinite(doubt)]
    if not len(known):
        return model
    return dataclasses.replace(model, card={**model.card, "largest_doubt": float(known.max())})


def grown(model: Model, dataset: Dataset) -> Model:
    """The model with standard deviations as large as its errors on molecules that it never saw.

    Args:
      model: trained.
      dataset: labels of such molecules; of too few, nothing changes.
    """
    bare = dataclasses.replace(model, card={**model.card, "growth": {}})
    found = {k: growth_of(*pair) for k, pair in reliability(bare, dataset).items()}
    growth = model.card.get("growth", {}) | {k: g for k, g in found.items() if g is not None}
    return dataclasses.replace(model, card={**model.card, "growth": growth})
