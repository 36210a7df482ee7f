"""How errors grow on molecules that training lacked: parts of it are left out in turn."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from ...data import Dataset
from ...errors import DataWarning
from ...learn.novelty import Growth, growth_of
from ...learn.run import Run
from ...structures.elements import formula
from ...structures.trained_for import novel, trained_for
from ..base import EnergyModel, Params
from ..base.metrics import paired
from .atomwise import AtomwiseDefinition
from .config import AtomwiseFit
from .descriptors import Labelled
from .last_layer import factor_of, feature_rows, gram_of

FOLDS = 4
"""Compositions are left out in so many turns."""

FEWEST = 8
"""With fewer compositions nothing is said of others."""

Refit = Callable[[np.ndarray], Params | None]
"""Parameters of the closed form solved for part of the training set, or None."""


def left_out_growth(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    params: Params,
    sets: tuple[Labelled, Dataset],
    lam: float,
    refit: Refit,
    run: Run,
) -> dict[str, Growth]:
    """What standard deviations of the last layer grow to on molecules that training lacked.

    A quarter of the compositions after the other is left out of the closed form and of the last
    layer. Their errors are held against their standard deviations where surroundings are new.

    Args:
      definition: the model's functions.
      fit: settings.
      params: with ``last_layer``.
      sets: the training set, as it is read and as it is.
      lam: of the last layer.
      refit: solves the closed form for part of the training set.
      run: hears how far it is; its seed deals the compositions out.

    Returns:
      By ``energy`` and, if learned, ``forces``; empty with fewer than :data:`FEWEST` compositions.
    """
    train, dataset = sets
    forces, last_layer = "forces" in fit.targets, params["last_layer"]
    folds = _folds(dataset, run.seed)
    if not folds:
        return {}
    grams = [gram_of(params, train, forces, fit.sigmas, fold) for fold in folds]
    pairs: dict[str, list[np.ndarray]] = {"energy": [], "forces": []}
    for k, fold in enumerate(folds):
        run.progress("molecules left out", k, len(folds))
        rest = np.setdiff1d(np.arange(len(train)), fold)
        unlike = novel(
            [dataset.structures[i] for i in fold],
            trained_for([dataset.structures[i] for i in rest]),
        )
        solved = refit(rest) if unlike.any() else None
        if solved is None:
            continue
        out = dataset.subset(fold[unlike].tolist())
        with warnings.catch_warnings(action="ignore", category=DataWarning):
            predicted = EnergyModel(definition, solved).predict(out.structures)
        factor = factor_of(sum(grams) - grams[k], lam)
        rows = feature_rows(params, train.cache.subset(fold[unlike]), forces)
        for name, features in rows.items():
            sigma = last_layer[name] * np.linalg.norm(features @ factor, axis=1)
            error = np.abs(np.subtract(*paired(name, predicted, out))).ravel()
            pairs[name].append(np.stack([error, sigma]))
    run.progress("molecules left out", len(folds), len(folds))
    joined = {name: np.concatenate(parts, axis=1) for name, parts in pairs.items() if parts}
    grown = {name: growth_of(*part) for name, part in joined.items()}
    return {name: growth for name, growth in grown.items() if growth is not None}


def _folds(dataset: Dataset, seed: int) -> list[np.ndarray]:
    """Indices of the structures that are left out together; none of few compositions."""
    names = np.array([formula(s.numbers) for s in dataset.structures])
    compositions = np.unique(names)
    if len(compositions) < FEWEST:
        return []
    dealt = np.random.default_rng(seed).permutation(compositions)
    return [np.flatnonzero(np.isin(names, dealt[k::FOLDS])) for k in range(FOLDS)]
