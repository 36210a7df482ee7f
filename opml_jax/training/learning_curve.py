"""Errors against the number of training structures, for the closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..data import Dataset
from ..models import Op2Prop
from .closed_form import fit_closed_form
from .config import TrainConfig
from .metrics import errors
from .trainer import Trained


def closed_form_learning_curve(
    trained: Trained, test: Dataset, config: TrainConfig, sizes: Sequence[int] = ()
) -> list[dict[str, float]]:
    """Refit the closed form on the first structures of a shuffled training set, judge on ``test``.

    Cheap, because the descriptors are those of the training run.

    Args:
      trained: result of :func:`opml_jax.training.train`.
      test: labelled structures.
      config: the configuration of the run; its seed shuffles.
      sizes: numbers of training structures. Default: all, and halves of it down to ten. Left out
        are those whose structures lack an element.

    Returns:
      One row per size: ``n_train`` and the metrics of :func:`opml_jax.training.metrics.errors`.
    """
    caches, labels, definition = trained.caches, trained.labels, trained.model.definition
    assert isinstance(definition, Op2Prop)  # no other model has a closed form on descriptors
    assert trained.noise is not None
    order = np.random.default_rng(config.seed).permutation(len(caches["train"]))
    halves = [len(order) >> k for k in range(len(order).bit_length())]
    rows = []
    for n in sizes or [n for n in reversed(halves) if n >= 10]:
        index = np.sort(order[:n])
        if not caches["train"].one_hot[index].any(axis=(0, 1)).all():
            continue
        fit = fit_closed_form(
            definition,
            caches["train"].subset(index),
            caches["validation"],
            {k: v[index] for k, v in labels["train"].items()},
            labels["validation"],
            config.optim,
            trained.noise,
        )
        params = {**trained.model.params, **fit.params}
        model = dataclasses.replace(trained.model, params=params)
        rows.append(
            {"n_train": int(n), **errors(model.predict(test.structures, linear=True), test)}
        )
    return rows
